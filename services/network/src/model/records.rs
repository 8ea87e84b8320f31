//! What the service remembers: networks and ports as the database holds them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::keys::Config;

/// A managed network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRecord {
    /// Identity; stays through a rename.
    pub uid: String,
    /// Project's name.
    pub project: String,
    /// Network's name, which is its bridge's.
    pub name: String,
    /// For people.
    pub description: String,
    /// Keys of LXD, addresses resolved.
    pub config: Config,
    /// The bridge's MAC where `bridge.hwaddr` gives none.
    pub hwaddr: String,
    /// Grows with every change.
    pub generation: i64,
}

impl NetworkRecord {
    /// Its resource name.
    pub fn resource(&self) -> String {
        berth_rpc::names::Network::new(&self.project, &self.name).to_string()
    }

    /// Changes whenever something a client can write changes.
    pub fn etag(&self) -> String {
        let mut parts = vec![self.uid.as_str(), &self.name, &self.description];
        parts.extend(self.config.iter().flat_map(|(k, v)| [k.as_str(), v]));
        berth_rpc::etag(parts)
    }
}

/// What was asked of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// Resource name of its holder.
    pub holder: String,
    /// Name in DHCP and DNS, or empty.
    pub hostname: String,
    /// MAC that was asked for, or empty.
    pub mac: String,
    /// Link's name in the guest, or empty.
    pub guest_name: String,
    /// LXD's options of the nic.
    pub config: BTreeMap<String, String>,
}

/// Kinds of ports that Berth makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortKind {
    /// A veth whose host side is in a bridge.
    Bridged,
    /// A veth whose host side is by itself.
    P2p,
    /// A child of a link of the host.
    Macvlan,
}

/// What a guest may use of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Anything.
    Off,
    /// Nothing.
    Nothing,
    /// The port's own addresses.
    Own,
}

/// A port with everything decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRecord {
    /// Identity.
    pub uid: String,
    /// Project's name.
    pub project: String,
    /// Network segment of its resource name; `-` for unmanaged parents.
    pub segment: String,
    /// Last segment of its resource name.
    pub id: String,
    /// Uid of the managed network it is on.
    pub network: Option<String>,
    /// What was asked.
    pub spec: PortSpec,
    /// What kind of link it is.
    pub kind: PortKind,
    /// Link's name on the host.
    pub host_name: String,
    /// Guest's MAC.
    pub mac: String,
    /// 0 = the parent's.
    pub mtu: u32,
    /// Bridge or parent link.
    pub parent: String,
    /// Name in DNS; absent where the network gives none.
    pub dns_name: Option<String>,
    /// Static addresses.
    pub addresses: Vec<IpAddr>,
    /// Subnets behind the port.
    pub routes: Vec<IpNet>,
    /// Bits per second towards the guest, 0 = unlimited.
    pub ingress_bps: u64,
    /// Bits per second from the guest, 0 = unlimited.
    pub egress_bps: u64,
    /// Frames only from its MAC.
    pub mac_filtering: bool,
    /// What it may use of IPv4.
    pub ipv4_filter: Filter,
    /// What it may use of IPv6.
    pub ipv6_filter: Filter,
    /// No frames to other isolated ports.
    pub isolated: bool,
    /// Grows with every change.
    pub generation: i64,
}

impl PortRecord {
    /// Its resource name.
    pub fn resource(&self) -> String {
        berth_rpc::names::Port::new(&self.project, &self.segment, &self.id).to_string()
    }
}

/// Something other than a port that uses a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRecord {
    /// Resource name of the user.
    pub holder: String,
    /// Who may release it.
    pub authority: String,
    /// RFC 3339; empty = until released.
    pub expires: String,
}
