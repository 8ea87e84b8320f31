//! Making, removing and reading links.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{Message, RouteSocket, attributes, parse_mac, parse_prefix, u32_at};
use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::protocol::{LinkAddress, LinkCounters, LinkState};
use crate::spec::{PortKind, PortSpec};
use crate::sys;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const CREATE_NEW: u16 = 0x400 | 0x200;
const CREATE_OR_REPLACE: u16 = 0x400 | 0x100;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_MACVLAN_MODE: u16 = 1;
const MACVLAN_MODE_BRIDGE: u32 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;

fn ifinfomsg(family: u8, index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut out = [0; 16];
    out[0] = family;
    out[4..8].copy_from_slice(&index.to_ne_bytes());
    out[8..12].copy_from_slice(&flags.to_ne_bytes());
    out[12..16].copy_from_slice(&change.to_ne_bytes());
    out
}

const UP: u32 = libc::IFF_UP as u32;

/// Index of a link in the present namespace.
fn index_of(name: &str) -> io::Result<u32> {
    let name = sys::cstring(name)?;
    // SAFETY: name lives over the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Makes a declared port: the host end in this namespace (up, on its bridge), the guest end born in `guest_ns`.
/// A leftover of the same host name (its guest was killed with its monitor) is removed first.
pub(crate) fn create(host: &RouteSocket, port: &PortSpec, guest_ns: &OwnedFd) -> Result<()> {
    let what = |action: &str| format!("{action} nic {:?}", port.name);
    let made = match create_message(port, guest_ns).and_then(|m| host.request(m)) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) && port.host_name.is_some() => {
            if !is_leftover(host, port).at("network", what("looking for the leftover of"))? {
                let name = port.host_name.as_deref().unwrap_or_default();
                let text = format!("nic {:?}: the host has a link {name:?} already", port.name);
                return Err(Fault::new("network", FaultCode::Exists, text));
            }
            delete(host, port).at("network", what("removing the leftover of"))?;
            create_message(port, guest_ns).and_then(|m| host.request(m))
        }
        other => other,
    };
    made.map_err(|e| {
        let fault = Fault::io("network", &e, what("making"));
        if e.raw_os_error() == Some(libc::ENODEV) {
            let parent = port.parent.as_deref().unwrap_or("?");
            return Fault {
                message: format!("nic {:?}: link {parent:?} does not exist", port.name),
                ..fault
            };
        }
        fault
    })?;
    let finish = || -> Result<()> {
        if port.isolated && port.kind == PortKind::Bridged {
            isolate(host, port).at("network", what("isolating"))?;
        }
        for route in &port.host_routes {
            add_route(host, port, route).at("network", format!("adding route {route}"))?;
        }
        Ok(())
    };
    finish().inspect_err(|_| {
        // The port is half made and its maker gets the error; a second failure adds nothing.
        let _ = delete(host, port);
    })
}

/// Whether the link of this name on the host can be this port's: a veth on the same bridge, or on none for
/// p2p. Names come from users, and a name alone could be the host's uplink or another bridge.
fn is_leftover(host: &RouteSocket, port: &PortSpec) -> io::Result<bool> {
    let Some(name) = port.host_name.as_deref() else {
        return Ok(false);
    };
    let wanted = match (port.kind, port.parent.as_deref()) {
        (PortKind::Bridged, Some(bridge)) => Some(index_of(bridge)?),
        _ => None,
    };
    let links = host.dump(Message::new(RTM_GETLINK, 0, &ifinfomsg(0, 0, 0, 0)))?;
    let found = links.iter().find_map(|(_, body)| {
        let body = body.get(16..)?;
        let (mut named, mut master, mut kind) = (false, None, String::new());
        for (attribute, value) in attributes(body) {
            match attribute {
                IFLA_IFNAME => named = text_of(value) == name,
                IFLA_MASTER => master = Some(u32_at(value, 0)),
                IFLA_LINKINFO => {
                    let info = attributes(value).find(|(k, _)| *k == IFLA_INFO_KIND);
                    kind = info.map(|(_, v)| text_of(v)).unwrap_or_default();
                }
                _ => {}
            }
        }
        named.then_some((kind, master))
    });
    // Gone meanwhile: nothing stands in the way.
    Ok(found.is_none_or(|(kind, master)| kind == "veth" && master == wanted))
}

fn create_message(port: &PortSpec, guest_ns: &OwnedFd) -> io::Result<Message> {
    let ns = guest_ns.as_raw_fd() as u32;
    let parent = port.parent.as_deref().map(index_of).transpose()?;
    let mac = |text: &Option<String>| text.as_deref().and_then(parse_mac);
    let guest_end = |m: &mut Message| {
        m.text(IFLA_IFNAME, &port.guest_name);
        if let Some(mac) = mac(&port.hwaddr) {
            m.attribute(IFLA_ADDRESS, &mac);
        }
        if let Some(mtu) = port.mtu {
            m.number(IFLA_MTU, mtu);
        }
        m.number(IFLA_NET_NS_FD, ns);
    };
    if port.kind == PortKind::Macvlan {
        let mut message = Message::new(RTM_NEWLINK, CREATE_NEW, &ifinfomsg(0, 0, 0, 0));
        guest_end(&mut message);
        message.number(
            IFLA_LINK,
            parent.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?,
        );
        message.nest(IFLA_LINKINFO, |m| {
            m.attribute(IFLA_INFO_KIND, b"macvlan");
            m.nest(IFLA_INFO_DATA, |m| {
                m.number(IFLA_MACVLAN_MODE, MACVLAN_MODE_BRIDGE)
            });
        });
        return Ok(message);
    }
    let host_name = port
        .host_name
        .as_deref()
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut message = Message::new(RTM_NEWLINK, CREATE_NEW, &ifinfomsg(0, 0, UP, UP));
    message.text(IFLA_IFNAME, host_name);
    if let Some(mac) = mac(&port.host_hwaddr) {
        message.attribute(IFLA_ADDRESS, &mac);
    }
    if let Some(mtu) = port.mtu {
        message.number(IFLA_MTU, mtu);
    }
    if let (PortKind::Bridged, Some(bridge)) = (port.kind, parent) {
        message.number(IFLA_MASTER, bridge);
    }
    message.nest(IFLA_LINKINFO, |m| {
        m.attribute(IFLA_INFO_KIND, b"veth");
        m.nest(IFLA_INFO_DATA, |m| {
            m.nest(VETH_INFO_PEER, |m| {
                m.raw(&ifinfomsg(0, 0, 0, 0));
                guest_end(m);
            });
        });
    });
    Ok(message)
}

fn isolate(host: &RouteSocket, port: &PortSpec) -> io::Result<()> {
    let index = index_of(port.host_name.as_deref().unwrap_or_default())?;
    let mut message = Message::new(
        RTM_SETLINK,
        0,
        &ifinfomsg(libc::AF_BRIDGE as u8, index, 0, 0),
    );
    message.nest(IFLA_PROTINFO, |m| m.attribute(IFLA_BRPORT_ISOLATED, &[1]));
    host.request(message)
}

fn add_route(host: &RouteSocket, port: &PortSpec, route: &str) -> io::Result<()> {
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let (address, length) = parse_prefix(route).ok_or_else(invalid)?;
    // A bridged port's routes go out of its bridge: the veth itself has no layer 3.
    let through = if port.kind == PortKind::Bridged {
        &port.parent
    } else {
        &port.host_name
    };
    let index = index_of(through.as_deref().ok_or_else(invalid)?)?;
    let (family, bytes) = match address {
        IpAddr::V4(a) => (libc::AF_INET as u8, a.octets().to_vec()),
        IpAddr::V6(a) => (libc::AF_INET6 as u8, a.octets().to_vec()),
    };
    let (table_main, protocol_boot, scope_link, unicast) = (254, 3, 253, 1);
    let rtmsg = [
        family,
        length,
        0,
        0,
        table_main,
        protocol_boot,
        scope_link,
        unicast,
        0,
        0,
        0,
        0,
    ];
    let mut message = Message::new(RTM_NEWROUTE, CREATE_OR_REPLACE, &rtmsg);
    message.attribute(RTA_DST, &bytes);
    message.number(RTA_OIF, index);
    host.request(message)
}

/// Removes the host end (and so both); one that is gone already is fine. Macvlans end with their namespace.
pub(crate) fn delete(host: &RouteSocket, port: &PortSpec) -> io::Result<()> {
    match port.host_name.as_deref() {
        Some(name) if port.kind != PortKind::Macvlan => delete_named(host, name),
        _ => Ok(()),
    }
}

/// Removes a link by name in the socket's namespace; one that is gone already is fine.
pub(crate) fn delete_named(socket: &RouteSocket, name: &str) -> io::Result<()> {
    let mut message = Message::new(RTM_DELLINK, 0, &ifinfomsg(0, 0, 0, 0));
    message.text(IFLA_IFNAME, name);
    match socket.request(message) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Sets a link up or down by name, in the socket's namespace.
pub(crate) fn set_up(socket: &RouteSocket, name: &str, up: bool) -> io::Result<()> {
    let flags = if up { UP } else { 0 };
    let mut message = Message::new(RTM_NEWLINK, 0, &ifinfomsg(0, 0, flags, UP));
    message.text(IFLA_IFNAME, name);
    socket.request(message)
}

/// All links of the socket's namespace with addresses and counters.
pub(crate) fn read(guest: &RouteSocket) -> Result<Vec<LinkState>> {
    let dump = |message| {
        guest
            .dump(message)
            .at("network", "reading the guest's links")
    };
    let mut ask_links = Message::new(RTM_GETLINK, 0, &ifinfomsg(0, 0, 0, 0));
    // The kernel would add up IPv6's own counters of each link over all CPUs, which nobody here reads.
    ask_links.number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    let mut links: Vec<LinkState> = dump(ask_links)?
        .iter()
        .filter(|(kind, _)| *kind == RTM_NEWLINK)
        .filter_map(|(_, body)| parse_link(body))
        .collect();
    let ask_addresses = Message::new(RTM_GETADDR, 0, &ifinfomsg(0, 0, 0, 0));
    for (kind, body) in dump(ask_addresses)? {
        if kind == RTM_NEWADDR
            && let Some((index, address)) = parse_address(&body)
            && let Some(link) = links.iter_mut().find(|l| l.index == index)
        {
            link.addresses.push(address);
        }
    }
    Ok(links)
}

/// Says which links are whose host end, as far as they are those of `ports`.
pub(crate) fn name_hosts(links: &mut [LinkState], ports: &[PortSpec]) {
    for link in links {
        // A guest may rename its links: the MAC knows them then.
        let port = ports
            .iter()
            .find(|p| p.hwaddr.is_some() && p.hwaddr == link.hwaddr)
            .or_else(|| ports.iter().find(|p| p.guest_name == link.name));
        link.host_name = port.and_then(|p| p.host_name.clone());
    }
}

fn parse_link(body: &[u8]) -> Option<LinkState> {
    if body.len() < 16 {
        return None;
    }
    let flags = u32_at(body, 8);
    let mut link = LinkState {
        index: u32_at(body, 4),
        flags,
        up: flags & UP != 0,
        ..LinkState::default()
    };
    link.kind = match flags {
        f if f & libc::IFF_LOOPBACK as u32 != 0 => "loopback",
        f if f & libc::IFF_POINTOPOINT as u32 != 0 => "point-to-point",
        _ => "broadcast",
    }
    .to_owned();
    for (kind, value) in attributes(&body[16..]) {
        match kind {
            IFLA_IFNAME => link.name = text_of(value),
            IFLA_MTU => link.mtu = u32_at(value, 0),
            IFLA_ADDRESS if value.len() == 6 => {
                let parts: Vec<String> = value.iter().map(|b| format!("{b:02x}")).collect();
                link.hwaddr = Some(parts.join(":"));
            }
            IFLA_STATS64 => link.counters = parse_counters(value),
            _ => {}
        }
    }
    Some(link)
}

fn text_of(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn parse_counters(value: &[u8]) -> LinkCounters {
    let at = |n: usize| {
        value
            .get(n * 8..n * 8 + 8)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_ne_bytes)
    };
    LinkCounters {
        packets_received: at(0),
        packets_sent: at(1),
        bytes_received: at(2),
        bytes_sent: at(3),
        errors_received: at(4),
        errors_sent: at(5),
        dropped_inbound: at(6),
        dropped_outbound: at(7),
    }
}

fn parse_address(body: &[u8]) -> Option<(u32, LinkAddress)> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    if body.len() < 8 {
        return None;
    }
    let (family, prefix, scope, index) = (body[0] as i32, body[1], body[3], u32_at(body, 4));
    let find = |wanted| {
        attributes(&body[8..])
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, v)| v)
    };
    // On a point-to-point link IFA_ADDRESS is the other side.
    let value = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?;
    let (family, address) = match family {
        libc::AF_INET => ("inet", IpAddr::from(<[u8; 4]>::try_from(value).ok()?)),
        libc::AF_INET6 => ("inet6", IpAddr::from(<[u8; 16]>::try_from(value).ok()?)),
        _ => return None,
    };
    let scope = match scope {
        0 => "global",
        253 => "link",
        254 => "local",
        _ => "global",
    };
    let address = LinkAddress {
        family: family.to_owned(),
        address: address.to_string(),
        prefix,
        scope: scope.to_owned(),
    };
    Some((index, address))
}

/// For a caller that must name an absent device.
pub(crate) fn not_found(name: &str) -> Fault {
    Fault::new("network", FaultCode::NotFound, format!("no nic {name:?}"))
}
