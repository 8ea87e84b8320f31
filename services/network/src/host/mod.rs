//! The only place that touches the kernel or runs a program.

mod dnsmasq;
mod fake;
mod links;
mod linux;
mod nf;
mod release;
mod shape;
mod sysctl;
mod watch;
mod wire;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use async_trait::async_trait;
use ipnet::IpNet;

use crate::model::dnsmasq::HostRecord;
use crate::model::lease::FileLease;
use crate::model::mac::Mac;
use crate::model::plan::NetworkPlan;

pub use fake::Fake;
pub use links::{Bridge, Link, LinkAddress, LinkKind, Scope};
pub use linux::{HostConfig, Linux};
pub use nf::NfError;

/// What a port may not do, and how fast it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortGuard {
    /// Link's name on the host; it need not exist yet.
    pub host_name: String,
    /// Whether the link is (or will be) in a bridge.
    pub bridged: bool,
    /// Frames only from this MAC.
    pub mac: Option<[u8; 6]>,
    /// What it may use of IPv4.
    pub ipv4: AddressFilter<Ipv4Addr>,
    /// What it may use of IPv6.
    pub ipv6: AddressFilter<Ipv6Addr>,
    /// No frames to other isolated ports.
    pub isolated: bool,
    /// Bits per second from the guest, 0 = unlimited.
    pub egress_bps: u64,
    /// Bits per second towards the guest, 0 = unlimited.
    pub ingress_bps: u64,
}

/// Addresses that a port may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressFilter<A> {
    /// Any.
    Off,
    /// The family is blocked.
    Nothing,
    /// These only.
    Only(Vec<A>),
}

impl PortGuard {
    /// Whether packets have to be looked at for it. LXD's defaults ask for nothing.
    pub fn is_needed(&self) -> bool {
        self.mac.is_some()
            || self.ipv4 != AddressFilter::Off
            || self.ipv6 != AddressFilter::Off
            || self.isolated
            || self.egress_bps > 0
    }
}

/// What the host refused.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A link of that name is there and is not Berth's.
    #[error("a link named {0:?} exists on this host and does not belong to Berth")]
    ForeignLink(String),
    /// A link that is needed is not there.
    #[error("link {0:?} does not exist")]
    NoLink(String),
    /// A link cannot be a port of a bridge.
    #[error("link {link:?} cannot be bridged: {why}")]
    Unfit {
        /// The link.
        link: String,
        /// Why not.
        why: String,
    },
    /// rtnetlink refused.
    #[error("cannot {doing}: {source}")]
    Netlink {
        /// What was tried.
        doing: String,
        /// The kernel's answer.
        source: Box<rtnetlink::Error>,
    },
    /// nf_tables refused.
    #[error(transparent)]
    Firewall(#[from] NfError),
    /// dnsmasq did not start.
    #[error("dnsmasq did not start on {network}: {why}")]
    Dnsmasq {
        /// The network.
        network: String,
        /// What it said.
        why: String,
    },
    /// A file or socket.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// Why not.
        source: std::io::Error,
    },
}

pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> HostError {
    let doing = doing.into();
    move |source| HostError::Io { doing, source }
}

/// The host as the use cases see it. Everything is safe to repeat.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    /// All links with their addresses.
    async fn links(&self) -> Result<Vec<Link>, HostError>;

    /// One link.
    async fn link(&self, name: &str) -> Result<Option<Link>, HostError>;

    /// Subnets that links have or routes lead to.
    async fn used_subnets(&self) -> Result<Vec<IpNet>, HostError>;

    /// Whether the kernel has IPv6.
    fn has_ipv6(&self) -> bool;

    /// Makes the host as the plan says. `before` is what it was made like last, so that what is
    /// no longer wanted goes away.
    async fn apply(
        &self,
        plan: &NetworkPlan,
        before: Option<&NetworkPlan>,
    ) -> Result<(), HostError>;

    /// Removes the network's link, rules and services; its lease file too.
    async fn remove(&self, plan: &NetworkPlan) -> Result<(), HostError>;

    /// Puts those of the links that are there and in no bridge back into theirs.
    async fn adopt(&self, bridge: &str, links: Vec<String>) -> Result<(), HostError>;

    /// Removes bridges, rules and services of Berth's that belong to none of these networks
    /// (name and uid). A bridge that links are in is left alone, with a warning in the log.
    async fn sweep(&self, known: Vec<(String, String)>) -> Result<(), HostError>;

    /// What will not work on the network, and why.
    fn warnings(&self, network: &str) -> Vec<String>;

    /// Holds exactly these ports' filters from now on.
    async fn reset_guards(&self, guards: Vec<PortGuard>) -> Result<(), HostError>;

    /// Puts a port's filters in place, instead of those it had.
    async fn arm(&self, guard: PortGuard) -> Result<(), HostError>;

    /// Removes a port's filters.
    async fn disarm(&self, host_name: &str) -> Result<(), HostError>;

    /// Makes DHCP's records of a network exactly these.
    async fn reset_records(&self, network: &str, records: Vec<HostRecord>)
    -> Result<(), HostError>;

    /// Adds or replaces a record.
    async fn put_record(&self, network: &str, record: &HostRecord) -> Result<(), HostError>;

    /// Removes a port's record and gives back the lease of its MAC.
    async fn drop_record(
        &self,
        network: &str,
        port: &str,
        mac: Mac,
        gateway: Option<IpAddr>,
    ) -> Result<(), HostError>;

    /// Leases that DHCP has given.
    async fn leases(&self, network: &str) -> Result<Vec<FileLease>, HostError>;

    /// Renames a network's lease file along with the network.
    async fn rename_leases(&self, from: &str, to: &str) -> Result<(), HostError>;
}
