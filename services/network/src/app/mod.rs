//! Use cases. They decide and order; the host does and the store remembers.
//!
//! Order within each: what a crash leaves behind is either nothing, or a row whose effects the
//! reconciler repeats. Ports: effects first (they are harmless without a row), then the row.
//! Networks: the row first, then effects; removal the other way round.

mod create_network;
mod create_port;
mod delete_network;
mod delete_port;
mod holds;
mod leases;
mod read_networks;
mod read_ports;
mod reconcile;
mod resolve_port;
mod update_network;
mod update_port;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use berth_rpc::{Code, Error};
use berth_store::Event;

use crate::host::{AddressFilter, Host, HostError, PortGuard};
use crate::model::dnsmasq::HostRecord;
use crate::model::keys;
use crate::model::mac::Mac;
use crate::model::plan::{DnsMode, NetworkPlan};
use crate::model::records::{Filter, NetworkRecord, PortKind, PortRecord};
use crate::store::Networks;

pub use create_network::CreateNetwork;
pub use create_port::CreatePort;
pub use leases::{Lease, LeaseKind};
pub use update_network::UpdateNetwork;

/// How a result is written into the record of its request.
pub type Render<T> = fn(&T) -> Vec<u8>;

/// A network as clients see it.
#[derive(Debug, Clone)]
pub struct NetworkView {
    /// What is remembered; for unmanaged links what the kernel says.
    pub record: NetworkRecord,
    /// `bridge`, `physical`, ...
    pub kind: String,
    /// Berth made it.
    pub managed: bool,
    /// Why it is not as it should be; empty when it is.
    pub trouble: String,
    /// What will not work.
    pub warnings: Vec<String>,
    /// Resource names of holders.
    pub used_by: Vec<String>,
}

/// The service.
pub struct App {
    store: Networks,
    host: Arc<dyn Host>,
    // One change at a time on a network or, for unmanaged parents, on a link.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    // Choosing subnets.
    choosing: tokio::sync::Mutex<()>,
    // Ports change under `read`; the reconciler compares all of them under `write`.
    ports: tokio::sync::RwLock<()>,
    // Why networks are not as they should be, by uid.
    troubles: Mutex<BTreeMap<String, String>>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl From<HostError> for Error {
    fn from(error: HostError) -> Self {
        let message = error.to_string();
        let message = message
            .get(..1)
            .map(|first| first.to_uppercase() + &message[1..])
            .unwrap_or(message);
        match error {
            HostError::ForeignLink(_) => Error::new(Code::AlreadyExists, "LINK_EXISTS", message),
            HostError::NoLink(_) => Error::precondition("NO_LINK", message),
            HostError::Unfit { .. } => Error::precondition("LINK_UNFIT", message),
            HostError::Dnsmasq { .. } => Error::precondition("DNSMASQ", message),
            other => Error::internal_with(message, other),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl App {
    /// The use cases over a store and a host.
    pub fn new(store: Networks, host: Arc<dyn Host>) -> Arc<Self> {
        Arc::new(Self {
            store,
            host,
            locks: Mutex::default(),
            choosing: tokio::sync::Mutex::default(),
            ports: tokio::sync::RwLock::default(),
            troubles: Mutex::default(),
        })
    }

    /// The database.
    pub fn store(&self) -> &Networks {
        &self.store
    }

    fn lock_of(&self, link: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = lock(&self.locks);
        // Names come and go; what nobody holds need not be kept.
        if locks.len() > 1024 {
            locks.retain(|_, l| Arc::strong_count(l) > 1);
        }
        locks.entry(link.to_owned()).or_default().clone()
    }

    /// A managed network of a project.
    async fn managed(&self, project: &str, name: &str) -> Result<NetworkRecord, Error> {
        self.store
            .network(name)
            .await?
            .filter(|n| n.project == project)
            .ok_or_else(|| Error::not_found("Network", name))
    }
}

/// The plan of a network that was valid when it was written.
fn plan_of(record: &NetworkRecord) -> Result<NetworkPlan, Error> {
    let hwaddr: Mac = record.hwaddr.parse().map_err(Error::internal)?;
    keys::plan(&record.name, &record.uid, hwaddr, &record.config)
}

fn event(action: &str, record: &NetworkRecord) -> Event {
    Event {
        action: action.to_owned(),
        resource: record.resource(),
        project: record.project.clone(),
        traceparent: berth_rpc::trace::current_traceparent().unwrap_or_default(),
        ..Event::default()
    }
}

/// What has to hold for a port's packets.
fn guard_of(port: &PortRecord, plan: Option<&NetworkPlan>) -> Result<PortGuard, Error> {
    let mac: Mac = port.mac.parse().map_err(Error::internal)?;
    let v4 = port.addresses.iter().filter_map(|a| match a {
        IpAddr::V4(a) => Some(*a),
        IpAddr::V6(_) => None,
    });
    let v6 = port.addresses.iter().filter_map(|a| match a {
        IpAddr::V6(a) => Some(*a),
        IpAddr::V4(_) => None,
    });
    let ipv4 = match port.ipv4_filter {
        Filter::Off => AddressFilter::Off,
        Filter::Nothing => AddressFilter::Nothing,
        Filter::Own => AddressFilter::Only(v4.collect()),
    };
    let ipv6 = match port.ipv6_filter {
        Filter::Off => AddressFilter::Off,
        Filter::Nothing => AddressFilter::Nothing,
        Filter::Own => {
            let mut own: Vec<_> = v6.collect();
            own.push(mac.link_local());
            if let Some(IpAddr::V6(subnet)) = plan.and_then(slaac_subnet) {
                own.push(mac.eui64(subnet));
            }
            AddressFilter::Only(own)
        }
    };
    Ok(PortGuard {
        host_name: port.host_name.clone(),
        bridged: port.kind == PortKind::Bridged,
        mac: port.mac_filtering.then_some(mac.0),
        ipv4,
        ipv6,
        isolated: port.isolated,
        egress_bps: port.egress_bps,
        ingress_bps: port.ingress_bps,
    })
}

/// The /64 in which guests choose their own addresses, if there is one.
fn slaac_subnet(plan: &NetworkPlan) -> Option<IpAddr> {
    let family = plan.ipv6.as_ref()?;
    let stateful = family.dhcp.as_ref().is_some_and(|d| d.stateful);
    (!stateful && family.subnet.prefix_len() == 64).then(|| family.subnet.network())
}

/// What DHCP has to know of a port, if anything.
fn host_record_of(port: &PortRecord, plan: &NetworkPlan) -> Result<Option<HostRecord>, Error> {
    let serves = plan.families().any(|f| f.dhcp.is_some());
    if port.kind != PortKind::Bridged || !serves {
        return Ok(None);
    }
    let hostname = match plan.dns.mode {
        DnsMode::Managed => port.dns_name.clone(),
        DnsMode::Dynamic | DnsMode::None => None,
    };
    if hostname.is_none() && port.addresses.is_empty() {
        return Ok(None);
    }
    Ok(Some(HostRecord {
        port: port.uid.clone(),
        mac: port.mac.parse().map_err(Error::internal)?,
        addresses: port.addresses.clone(),
        hostname,
    }))
}
