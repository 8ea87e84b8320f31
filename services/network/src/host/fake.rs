//! A host of the imagination, for tests of the use cases: it keeps what it is told.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use ipnet::IpNet;

use super::{Host, HostError, Link, PortGuard};
use crate::model::dnsmasq::HostRecord;
use crate::model::lease::FileLease;
use crate::model::mac::Mac;
use crate::model::plan::NetworkPlan;

/// What the host has been made like.
#[derive(Debug, Default)]
pub struct FakeState {
    /// Links that are there besides the networks'.
    pub links: Vec<Link>,
    /// Networks by name.
    pub networks: BTreeMap<String, NetworkPlan>,
    /// Filters by link.
    pub guards: HashMap<String, PortGuard>,
    /// Records by network and port.
    pub records: BTreeMap<(String, String), HostRecord>,
    /// Leases by network.
    pub leases: HashMap<String, Vec<FileLease>>,
    /// Steps that shall fail: `apply`, `arm`, `record`.
    pub failing: Vec<&'static str>,
}

/// Keeps what it is told.
#[derive(Debug, Default)]
pub struct Fake {
    state: Mutex<FakeState>,
}

impl Fake {
    /// What it has been told so far; also to prepare it.
    pub fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, step: &str) -> Result<(), HostError> {
        if self.state().failing.contains(&step) {
            return Err(HostError::Io {
                doing: step.to_owned(),
                source: std::io::Error::other("asked to fail"),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Host for Fake {
    async fn links(&self) -> Result<Vec<Link>, HostError> {
        Ok(self.state().links.clone())
    }

    async fn link(&self, name: &str) -> Result<Option<Link>, HostError> {
        Ok(self.state().links.iter().find(|l| l.name == name).cloned())
    }

    async fn used_subnets(&self) -> Result<Vec<IpNet>, HostError> {
        let state = self.state();
        let links = state
            .links
            .iter()
            .flat_map(|l| l.addresses.iter().map(|a| a.net));
        let networks = state.networks.values().flat_map(NetworkPlan::addresses);
        Ok(links.chain(networks).collect())
    }

    fn has_ipv6(&self) -> bool {
        true
    }

    async fn apply(
        &self,
        plan: &NetworkPlan,
        _before: Option<&NetworkPlan>,
    ) -> Result<(), HostError> {
        if self.state().links.iter().any(|l| l.name == plan.name) {
            return Err(HostError::ForeignLink(plan.name.clone()));
        }
        // As on a real host, a failure comes after something was done.
        self.state()
            .networks
            .insert(plan.name.clone(), plan.clone());
        self.check("apply")
    }

    async fn remove(&self, plan: &NetworkPlan) -> Result<(), HostError> {
        let mut state = self.state();
        state.networks.remove(&plan.name);
        state
            .records
            .retain(|(network, _), _| *network != plan.name);
        Ok(())
    }

    async fn adopt(&self, _bridge: &str, _links: Vec<String>) -> Result<(), HostError> {
        Ok(())
    }

    async fn sweep(&self, known: Vec<(String, String)>) -> Result<(), HostError> {
        let is_known =
            |n: &NetworkPlan| known.iter().any(|k| *k == (n.name.clone(), n.uid.clone()));
        self.state().networks.retain(|_, n| is_known(n));
        Ok(())
    }

    fn warnings(&self, _network: &str) -> Vec<String> {
        Vec::new()
    }

    async fn reset_guards(&self, guards: Vec<PortGuard>) -> Result<(), HostError> {
        self.state().guards = guards
            .into_iter()
            .map(|g| (g.host_name.clone(), g))
            .collect();
        Ok(())
    }

    async fn arm(&self, guard: PortGuard) -> Result<(), HostError> {
        self.check("arm")?;
        self.state().guards.insert(guard.host_name.clone(), guard);
        Ok(())
    }

    async fn disarm(&self, host_name: &str) -> Result<(), HostError> {
        self.state().guards.remove(host_name);
        Ok(())
    }

    async fn reset_records(
        &self,
        network: &str,
        records: Vec<HostRecord>,
    ) -> Result<(), HostError> {
        let mut state = self.state();
        state.records.retain(|(n, _), _| n != network);
        for record in records {
            state
                .records
                .insert((network.to_owned(), record.port.clone()), record);
        }
        Ok(())
    }

    async fn put_record(&self, network: &str, record: &HostRecord) -> Result<(), HostError> {
        self.check("record")?;
        let key = (network.to_owned(), record.port.clone());
        self.state().records.insert(key, record.clone());
        Ok(())
    }

    async fn drop_record(
        &self,
        network: &str,
        port: &str,
        mac: Mac,
        _gateway: Option<IpAddr>,
    ) -> Result<(), HostError> {
        let mut state = self.state();
        state.records.remove(&(network.to_owned(), port.to_owned()));
        if let Some(leases) = state.leases.get_mut(network) {
            leases.retain(|l| l.mac != Some(mac));
        }
        Ok(())
    }

    async fn leases(&self, network: &str) -> Result<Vec<FileLease>, HostError> {
        Ok(self
            .state()
            .leases
            .get(network)
            .cloned()
            .unwrap_or_default())
    }

    async fn rename_leases(&self, from: &str, to: &str) -> Result<(), HostError> {
        let mut state = self.state();
        if let Some(leases) = state.leases.remove(from) {
            state.leases.insert(to.to_owned(), leases);
        }
        Ok(())
    }
}
