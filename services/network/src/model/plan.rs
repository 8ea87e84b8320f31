//! What a network's configuration means for the host.

use std::net::IpAddr;

use ipnet::IpNet;

use super::mac::Mac;

/// A bridge as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Name of the network and of its link.
    pub name: String,
    /// Identity; written on the link, so that Berth knows its own.
    pub uid: String,
    /// The link's MAC.
    pub hwaddr: Mac,
    /// Bytes; `None` leaves the kernel's choice.
    pub mtu: Option<u32>,
    /// Links of the host that are made ports of the bridge.
    pub external_interfaces: Vec<String>,
    /// IPv4, unless `none`.
    pub ipv4: Option<Family>,
    /// IPv6, unless `none`.
    pub ipv6: Option<Family>,
    /// Names.
    pub dns: Dns,
    /// Lines for dnsmasq's own configuration file.
    pub raw_dnsmasq: String,
}

/// One address family of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// The bridge's own address with the subnet's prefix length.
    pub subnet: IpNet,
    /// Translate what leaves the network.
    pub nat: bool,
    /// To this address instead of the outgoing link's.
    pub nat_address: Option<IpAddr>,
    /// Behind the rules of others instead of before them.
    pub nat_after: bool,
    /// Make accept (or reject) rules.
    pub firewall: bool,
    /// Route between the network and others.
    pub routing: bool,
    /// DHCP; `None` when it is off.
    pub dhcp: Option<Dhcp>,
    /// Further subnets that are reached through the bridge.
    pub routes: Vec<IpNet>,
}

/// DHCP of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dhcp {
    /// As dnsmasq reads it: `1h`, `infinite`.
    pub expiry: String,
    /// Given to guests as the router instead of the bridge.
    pub gateway: Option<IpAddr>,
    /// First and last address; for IPv6 only with `stateful`.
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// Addresses by DHCPv6 (always true for IPv4).
    pub stateful: bool,
}

/// Where names come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsMode {
    /// From Berth's records.
    Managed,
    /// From what guests ask for.
    Dynamic,
    /// No names.
    None,
}

/// DNS of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Domain of the guests.
    pub domain: String,
    /// Where names come from.
    pub mode: DnsMode,
    /// Search list; empty = the domain.
    pub search: Vec<String>,
}

impl NetworkPlan {
    /// The families that are on.
    pub fn families(&self) -> impl Iterator<Item = &Family> {
        self.ipv4.iter().chain(&self.ipv6)
    }

    /// Whether dnsmasq has anything to do.
    pub fn wants_dnsmasq(&self) -> bool {
        self.families().next().is_some()
    }

    /// The bridge's own addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpNet> {
        self.families().map(|f| f.subnet)
    }
}

impl Family {
    /// The bridge's address without prefix length.
    pub fn gateway(&self) -> IpAddr {
        self.subnet.addr()
    }

    /// Whether a guest may have the address: in the subnet, and not the bridge's, the network's
    /// or the broadcast address.
    pub fn can_host(&self, address: IpAddr) -> bool {
        self.subnet.contains(&address)
            && address != self.subnet.addr()
            && address != self.subnet.network()
            && (address.is_ipv6() || address != self.subnet.broadcast())
    }
}
