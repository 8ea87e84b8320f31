use std::net::IpAddr;

use berth_rpc::{Error, names};

use super::{App, plan_of, slaac_subnet};
use crate::model::mac::Mac;

/// Where an address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseKind {
    /// From a port's configuration.
    Static,
    /// From DHCP, or chosen by the guest in a way that can be told.
    Dynamic,
    /// The bridge's own.
    Gateway,
}

/// An address in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Name of the guest.
    pub hostname: String,
    /// Its MAC, or empty.
    pub mac: String,
    /// The address.
    pub address: IpAddr,
    /// Where it comes from.
    pub kind: LeaseKind,
    /// Project of the guest, or empty for those unknown to Berth.
    pub project: String,
}

impl App {
    /// Addresses in use on a network.
    pub async fn leases(&self, project: &str, name: &str) -> Result<Vec<Lease>, Error> {
        let record = self.managed(project, name).await?;
        let plan = plan_of(&record)?;
        let mut out: Vec<Lease> = plan
            .families()
            .map(|family| Lease {
                hostname: format!("{name}.gw"),
                mac: plan.hwaddr.to_string(),
                address: family.gateway(),
                kind: LeaseKind::Gateway,
                project: String::new(),
            })
            .collect();
        let ports = self.store.ports_of(&record.uid).await?;
        let slaac = slaac_subnet(&plan);
        for port in &ports {
            let lease = |address, kind| Lease {
                hostname: port.spec.hostname.clone(),
                mac: port.mac.clone(),
                address,
                kind,
                project: holder_project(&port.spec.holder),
            };
            out.extend(port.addresses.iter().map(|a| lease(*a, LeaseKind::Static)));
            if let (Some(IpAddr::V6(subnet)), Ok(mac)) = (slaac, port.mac.parse::<Mac>()) {
                out.push(lease(mac.eui64(subnet).into(), LeaseKind::Dynamic));
            }
        }
        for lease in self.host.leases(name).await? {
            if out.iter().any(|l| l.address == lease.address) {
                continue;
            }
            let mac = lease.mac.map(|m| m.to_string()).unwrap_or_default();
            let port = ports.iter().find(|p| p.mac == mac);
            out.push(Lease {
                hostname: port.map_or(lease.hostname, |p| p.spec.hostname.clone()),
                mac,
                address: lease.address,
                kind: LeaseKind::Dynamic,
                project: port
                    .map(|p| holder_project(&p.spec.holder))
                    .unwrap_or_default(),
            });
        }
        Ok(out)
    }
}

/// The project in a holder's resource name.
fn holder_project(holder: &str) -> String {
    names::Instance::parse("holder", holder)
        .map(|i| i.project)
        .unwrap_or_default()
}
