//! Links, addresses and routes, by rtnetlink.

use std::collections::HashMap;
use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};

use super::HostError;
use crate::model::mac::Mac;

/// What a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// `lo`.
    Loopback,
    /// A bridge of the kernel.
    Bridge,
    /// A VLAN on another link.
    Vlan,
    /// Several links as one.
    Bond,
    /// Hardware.
    Physical,
    /// Anything else (veth, tunnels, ...).
    Other,
}

/// How far an address reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everywhere.
    Global,
    /// On the link.
    Link,
    /// On the host.
    Local,
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkAddress {
    /// Address and prefix length.
    pub net: IpNet,
    /// How far it reaches.
    pub scope: Scope,
}

/// What a bridge tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bridge {
    /// `8000.00163e112233`.
    pub id: String,
    /// Spanning tree is on.
    pub stp: bool,
    /// Hundredths of a second.
    pub forward_delay: u32,
    /// VLAN of untagged frames.
    pub vlan_default: u16,
    /// VLANs are kept apart.
    pub vlan_filtering: bool,
}

/// A link of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Kernel's number.
    pub index: u32,
    /// Name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Its MAC, if it has one.
    pub mac: Option<Mac>,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Knows broadcast.
    pub broadcast: bool,
    /// Has one peer only.
    pub point_to_point: bool,
    /// Index of the bridge or bond it is a port of.
    pub controller: Option<u32>,
    /// Its alias; Berth's own links carry their identity there.
    pub alias: Option<String>,
    /// Addresses.
    pub addresses: Vec<LinkAddress>,
    /// Bytes and packets received, bytes and packets sent.
    pub counters: [u64; 4],
    /// For bridges.
    pub bridge: Option<Bridge>,
}

fn failed(doing: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> HostError {
    let doing = doing.into();
    move |source| HostError::Netlink {
        doing,
        source: Box::new(source),
    }
}

/// The kernel's errno, positive.
pub(crate) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            message.code.map(|code| code.get().saturating_abs())
        }
        _ => None,
    }
}

/// rtnetlink's requests that Berth needs.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    handle: Handle,
}

impl Links {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle }
    }

    pub(crate) async fn all(&self) -> Result<Vec<Link>, HostError> {
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list links"))?;
        let mut addresses = self.addresses().await?;
        Ok(messages
            .into_iter()
            .map(|message| {
                let mut link = parse_link(&message);
                link.addresses = addresses.remove(&link.index).unwrap_or_default();
                link
            })
            .collect())
    }

    pub(crate) async fn get(&self, name: &str) -> Result<Option<Link>, HostError> {
        let found = self
            .handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute()
            .try_next()
            .await;
        let message = match found {
            Ok(message) => message,
            // The kernel also tells what can be the name of no link.
            Err(e) if matches!(errno(&e), Some(libc::ENODEV | libc::ERANGE | libc::EINVAL)) => None,
            Err(e) => return Err(failed(format!("look for link {name}"))(e)),
        };
        let Some(message) = message else {
            return Ok(None);
        };
        let mut link = parse_link(&message);
        link.addresses = self
            .addresses()
            .await?
            .remove(&link.index)
            .unwrap_or_default();
        Ok(Some(link))
    }

    async fn addresses(&self) -> Result<HashMap<u32, Vec<LinkAddress>>, HostError> {
        let messages: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("list addresses"))?;
        let mut out: HashMap<u32, Vec<LinkAddress>> = HashMap::new();
        for message in messages {
            if let Some(address) = parse_address(&message) {
                out.entry(message.header.index).or_default().push(address);
            }
        }
        Ok(out)
    }

    /// Destinations of all routes but the default one.
    pub(crate) async fn routed(&self) -> Result<Vec<IpNet>, HostError> {
        Ok(self
            .routes()
            .await?
            .iter()
            .filter_map(destination)
            .filter(|net| net.prefix_len() > 0)
            .collect())
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>, HostError> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut ask = RouteMessage::default();
            ask.header.address_family = family;
            let found: Vec<RouteMessage> = self
                .handle
                .route()
                .get(ask)
                .execute()
                .try_collect()
                .await
                .map_err(failed("list routes"))?;
            all.extend(found);
        }
        Ok(all)
    }

    pub(crate) async fn add_bridge(&self, name: &str, mac: Mac) -> Result<(), HostError> {
        self.handle
            .link()
            .add(LinkBridge::new(name).address(mac.0.to_vec()).build())
            .execute()
            .await
            .map_err(failed(format!("add bridge {name}")))
    }

    /// Alias, MAC, MTU and up, where they differ.
    pub(crate) async fn configure(
        &self,
        link: &Link,
        alias: &str,
        mac: Mac,
        mtu: Option<u32>,
    ) -> Result<(), HostError> {
        let same_mtu = mtu.is_none_or(|m| m == link.mtu);
        if link.up && link.alias.as_deref() == Some(alias) && link.mac == Some(mac) && same_mtu {
            return Ok(());
        }
        let mut message = LinkUnspec::new_with_index(link.index).up();
        if link.alias.as_deref() != Some(alias) {
            message = message.alias(alias);
        }
        if link.mac != Some(mac) {
            message = message.address(mac.0.to_vec());
        }
        if let Some(mtu) = mtu.filter(|m| *m != link.mtu) {
            message = message.mtu(mtu);
        }
        self.handle
            .link()
            .set(message.build())
            .execute()
            .await
            .map_err(failed(format!("configure link {}", link.name)))
    }

    /// Makes a link a port of a bridge, or of none.
    pub(crate) async fn enslave(&self, link: &Link, bridge: Option<u32>) -> Result<(), HostError> {
        let message = LinkUnspec::new_with_index(link.index);
        let message = match bridge {
            Some(index) => message.controller(index).up(),
            None => message.nocontroller(),
        };
        self.handle
            .link()
            .set(message.build())
            .execute()
            .await
            .map_err(failed(format!("change the bridge of link {}", link.name)))
    }

    pub(crate) async fn remove(&self, link: &Link) -> Result<(), HostError> {
        match self.handle.link().del(link.index).execute().await {
            Err(e) if errno(&e) == Some(libc::ENODEV) => Ok(()),
            other => other.map_err(failed(format!("remove link {}", link.name))),
        }
    }

    /// Gives a link exactly these addresses, apart from those the kernel made for the link.
    pub(crate) async fn set_addresses(
        &self,
        link: &Link,
        wanted: &[IpNet],
    ) -> Result<(), HostError> {
        let messages: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(link.index)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list addresses"))?;
        for message in messages {
            let Some(address) = parse_address(&message) else {
                continue;
            };
            let by_kernel = address.scope == Scope::Link && address.net.addr().is_ipv6();
            if !by_kernel && !wanted.contains(&address.net) {
                self.handle
                    .address()
                    .del(message)
                    .execute()
                    .await
                    .map_err(failed(format!("remove {} from {}", address.net, link.name)))?;
            }
        }
        for net in wanted {
            if link.addresses.iter().any(|a| a.net == *net) {
                continue;
            }
            let mut request = self
                .handle
                .address()
                .add(link.index, net.addr(), net.prefix_len());
            if net.addr().is_ipv6() {
                // Nobody else is on a bridge that was just made, and dnsmasq cannot listen on an
                // address that is still being tried.
                request
                    .message_mut()
                    .attributes
                    .push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            match request.execute().await {
                Err(e) if errno(&e) == Some(libc::EEXIST) => {}
                other => other.map_err(failed(format!("add {net} to {}", link.name)))?,
            }
        }
        Ok(())
    }

    /// Gives a link exactly these static routes.
    pub(crate) async fn set_routes(&self, link: &Link, wanted: &[IpNet]) -> Result<(), HostError> {
        let mut present = Vec::new();
        for message in self.routes().await? {
            let on_link = message
                .attributes
                .iter()
                .any(|a| matches!(a, RouteAttribute::Oif(i) if *i == link.index));
            if !on_link || message.header.protocol != RouteProtocol::Static {
                continue;
            }
            let Some(net) = destination(&message) else {
                continue;
            };
            if wanted.contains(&net) {
                present.push(net);
            } else {
                self.handle
                    .route()
                    .del(message)
                    .execute()
                    .await
                    .map_err(failed(format!("remove the route to {net}")))?;
            }
        }
        for net in wanted.iter().filter(|n| !present.contains(n)) {
            let message = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(net.addr(), net.prefix_len())
                .map_err(|_| HostError::Unfit {
                    link: link.name.clone(),
                    why: format!("no route to {net} can be made"),
                })?
                .output_interface(link.index)
                .protocol(RouteProtocol::Static)
                .build();
            match self.handle.route().add(message).execute().await {
                Err(e) if errno(&e) == Some(libc::EEXIST) => {}
                other => other.map_err(failed(format!("add a route to {net}")))?,
            }
        }
        Ok(())
    }
}

fn destination(message: &RouteMessage) -> Option<IpNet> {
    let address: IpAddr = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(a)) => Some((*a).into()),
        RouteAttribute::Destination(RouteAddress::Inet6(a)) => Some((*a).into()),
        _ => None,
    })?;
    let prefix = message.header.destination_prefix_length;
    // Multicast and link-local routes are on every link.
    let everywhere = match address {
        IpAddr::V4(a) => a.is_multicast() || a.is_link_local(),
        IpAddr::V6(a) => a.is_multicast() || a.is_unicast_link_local(),
    };
    if everywhere {
        return None;
    }
    IpNet::new(address, prefix).ok()
}

fn parse_address(message: &AddressMessage) -> Option<LinkAddress> {
    // On point-to-point links `Address` is the peer's.
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(a) => Some(*a),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(a) => Some(*a),
            _ => None,
        })
    })?;
    let scope = match message.header.scope {
        AddressScope::Link => Scope::Link,
        AddressScope::Host => Scope::Local,
        _ => Scope::Global,
    };
    let net = IpNet::new(address, message.header.prefix_len).ok()?;
    Some(LinkAddress { net, scope })
}

/// A link without its addresses.
pub(crate) fn parse_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other,
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        broadcast: flags.contains(LinkFlags::Broadcast),
        point_to_point: flags.contains(LinkFlags::Pointopoint),
        controller: None,
        alias: None,
        addresses: Vec::new(),
        counters: [0; 4],
        bridge: None,
    };
    let mut virtual_kind = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Address(bytes) => {
                link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
            }
            LinkAttribute::Stats64(s) => {
                link.counters = [s.rx_bytes, s.rx_packets, s.tx_bytes, s.tx_packets];
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => virtual_kind = Some(kind.clone()),
                        LinkInfo::Data(InfoData::Bridge(data)) => {
                            link.bridge = Some(parse_bridge(data));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link.kind = if flags.contains(LinkFlags::Loopback) {
        LinkKind::Loopback
    } else {
        match virtual_kind {
            Some(InfoKind::Bridge) => LinkKind::Bridge,
            Some(InfoKind::Vlan) => LinkKind::Vlan,
            Some(InfoKind::Bond) => LinkKind::Bond,
            Some(_) => LinkKind::Other,
            None => LinkKind::Physical,
        }
    };
    link
}

fn parse_bridge(data: &[InfoBridge]) -> Bridge {
    let mut bridge = Bridge::default();
    for info in data {
        match info {
            InfoBridge::BridgeId(id) => {
                bridge.id = format!("{:04x}.{}", id.priority, hex::encode(id.address));
            }
            InfoBridge::StpState(state) => bridge.stp = *state != BridgeStpState::Disabled,
            InfoBridge::ForwardDelay(delay) => bridge.forward_delay = *delay,
            InfoBridge::VlanDefaultPvid(vlan) => bridge.vlan_default = *vlan,
            InfoBridge::VlanFiltering(on) => bridge.vlan_filtering = *on,
            _ => {}
        }
    }
    bridge
}
