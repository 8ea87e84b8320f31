//! The host for real.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ipnet::IpNet;
use tokio::sync::Notify;

use super::dnsmasq::Dnsmasqs;
use super::links::{Link, LinkKind, Links};
use super::{Host, HostError, PortGuard, io, nf, release, shape, sysctl, watch};
use crate::model::dnsmasq::HostRecord;
use crate::model::lease::{self, FileLease};
use crate::model::mac::Mac;
use crate::model::plan::NetworkPlan;

/// What the host side needs to know.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Names Berth's tables and marks its links; without dots.
    pub prefix: String,
    /// dnsmasq's program.
    pub dnsmasq: PathBuf,
    /// Who dnsmasq runs as.
    pub dnsmasq_user: String,
    /// Directory for dnsmasq's files.
    pub dnsmasq_dir: PathBuf,
}

#[derive(Debug, Default)]
struct Guards {
    ports: HashMap<String, PortGuard>,
    // The tables are there.
    built: bool,
}

/// The Linux host in whose network namespace the service runs.
#[derive(Debug)]
pub struct Linux {
    prefix: String,
    links: Links,
    dnsmasqs: Dnsmasqs,
    guards: tokio::sync::Mutex<Guards>,
    // Limits towards guests by link; applied when the link appears.
    shapes: Arc<Mutex<HashMap<String, u64>>>,
    // Networks' rules as last applied.
    applied: Mutex<HashMap<String, NetworkPlan>>,
    notes: Mutex<HashMap<String, Vec<String>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a blocking netlink exchange off the runtime's threads. They are all in the network
/// namespace that the service was started in.
async fn blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, HostError>
where
    T: Send + 'static,
    E: Into<HostError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(io("run a netlink exchange")(std::io::Error::other(error))),
    }
}

/// A step that a test may make fail.
async fn point(name: &str) -> Result<(), HostError> {
    berth_server::failpoint::pass(name)
        .await
        .map_err(|e| io("pass a failpoint")(std::io::Error::other(e)))
}

impl Linux {
    /// Opens the kernel's interfaces. `firewall_changed` is notified when anyone changes tables
    /// or chains of nf_tables.
    pub fn open(config: HostConfig, firewall_changed: Arc<Notify>) -> Result<Self, HostError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(io("open rtnetlink"))?;
        tokio::spawn(connection);
        let shapes: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
        let seen = shapes.clone();
        watch::links(move |link| {
            if let Some(bps) = lock(&seen).get(&link.name).copied() {
                limit(&link, bps);
            }
        })?;
        watch::firewall(firewall_changed)?;
        Ok(Self {
            dnsmasqs: Dnsmasqs::new(config.dnsmasq, config.dnsmasq_dir, &config.dnsmasq_user)?,
            prefix: config.prefix,
            links: Links::new(handle),
            guards: tokio::sync::Mutex::default(),
            shapes,
            applied: Mutex::default(),
            notes: Mutex::default(),
        })
    }

    /// What a bridge of Berth's carries as its alias.
    fn alias(&self, uid: &str) -> String {
        format!("{}:{uid}", self.prefix)
    }

    /// A bridge that a service with this prefix made.
    fn is_marked(&self, link: &Link) -> bool {
        let mark = link.alias.as_deref().and_then(|a| a.split_once(':'));
        link.kind == LinkKind::Bridge && mark.is_some_and(|(prefix, _)| prefix == self.prefix)
    }

    /// The network's own bridge: there already, or made now.
    async fn bridge(&self, plan: &NetworkPlan) -> Result<Link, HostError> {
        if let Some(link) = self.links.get(&plan.name).await? {
            let ours = match &link.alias {
                Some(alias) => *alias == self.alias(&plan.uid),
                // Made by us a moment before a crash: nobody else has its random MAC.
                None => link.mac == Some(plan.hwaddr),
            };
            if link.kind != LinkKind::Bridge || !ours {
                return Err(HostError::ForeignLink(plan.name.clone()));
            }
            return Ok(link);
        }
        self.links.add_bridge(&plan.name, plan.hwaddr).await?;
        self.links
            .get(&plan.name)
            .await?
            .ok_or_else(|| HostError::NoLink(plan.name.clone()))
    }

    async fn attach(
        &self,
        bridge: &Link,
        plan: &NetworkPlan,
        before: Option<&NetworkPlan>,
    ) -> Result<Vec<String>, HostError> {
        let mut notes = Vec::new();
        for name in &plan.external_interfaces {
            let Some(link) = self.links.get(name).await? else {
                notes.push(format!(
                    "External interface {name:?} does not exist and is not bridged"
                ));
                continue;
            };
            if link.controller == Some(bridge.index) {
                continue;
            }
            let why = if link.controller.is_some() {
                Some("it is a port of another link")
            } else if link
                .addresses
                .iter()
                .any(|a| a.scope == super::Scope::Global)
            {
                Some("it has addresses; only links without can be bridged")
            } else {
                None
            };
            if let Some(why) = why {
                return Err(HostError::Unfit {
                    link: name.clone(),
                    why: why.to_owned(),
                });
            }
            self.links.enslave(&link, Some(bridge.index)).await?;
        }
        for name in before.iter().flat_map(|b| &b.external_interfaces) {
            if plan.external_interfaces.contains(name) {
                continue;
            }
            if let Some(link) = self.links.get(name).await?
                && link.controller == Some(bridge.index)
            {
                self.links.enslave(&link, None).await?;
            }
        }
        Ok(notes)
    }

    fn kernel_settings(plan: &NetworkPlan) -> Result<(), HostError> {
        // Before the link is up: it must neither try its own addresses for duplicates nor
        // listen to routers that a guest pretends to be.
        for (key, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("autoconf", "0")] {
            sysctl::set(&["ipv6", "conf", &plan.name, key], value)?;
        }
        if plan.ipv4.as_ref().is_some_and(|f| f.routing) {
            sysctl::enable_forwarding(false)?;
        }
        if plan.ipv6.as_ref().is_some_and(|f| f.routing) {
            sysctl::enable_forwarding(true)?;
        }
        Ok(())
    }

    async fn firewall(&self, plan: &NetworkPlan) -> Result<Vec<String>, HostError> {
        let known = lock(&self.applied).get(&plan.name) == Some(plan);
        let (prefix, copy) = (self.prefix.clone(), plan.clone());
        let notes = blocking(move || {
            let table = (nf::INET, nf::nat::table(&prefix, &copy.name));
            if !known || !nf::tables()?.contains(&table) {
                nf::nat::apply(&prefix, &copy)?;
            }
            let mut notes = nf::foreign::settle(&prefix, &copy)?;
            notes.extend(nf::legacy::warnings(&copy));
            Ok::<_, HostError>(notes)
        })
        .await?;
        lock(&self.applied).insert(plan.name.clone(), plan.clone());
        Ok(notes)
    }

    async fn rebuild_guards(&self, guards: &mut Guards) -> Result<(), HostError> {
        let prefix = self.prefix.clone();
        let ports: Vec<PortGuard> = guards.ports.values().cloned().collect();
        let needed = ports.iter().any(PortGuard::is_needed);
        blocking(move || nf::guard::rebuild(&prefix, &ports)).await?;
        guards.built = needed;
        Ok(())
    }

    async fn shape(&self, guard: &PortGuard) -> Result<(), HostError> {
        let name = guard.host_name.clone();
        let before = if guard.ingress_bps > 0 {
            lock(&self.shapes).insert(name.clone(), guard.ingress_bps)
        } else {
            lock(&self.shapes).remove(&name)
        };
        if before == (guard.ingress_bps > 0).then_some(guard.ingress_bps) {
            return Ok(());
        }
        // The link of a running guest; one that appears later is seen by the watcher.
        let Some(link) = self.links.get(&name).await? else {
            return Ok(());
        };
        let bps = guard.ingress_bps;
        blocking(move || {
            if bps > 0 {
                shape::limit(link.index, bps)
            } else {
                shape::unlimit(link.index)
            }
            .map_err(io(format!("limit {}", link.name)))
        })
        .await
    }

    /// Removes everything that carries this prefix, whatever the database knows.
    pub async fn purge(&self) -> Result<(), HostError> {
        for network in self.dnsmasqs.known() {
            self.dnsmasqs.remove(&network).await?;
        }
        for link in self.links.all().await?.iter().filter(|l| self.is_marked(l)) {
            self.links.remove(link).await?;
        }
        let prefix = self.prefix.clone();
        blocking(move || {
            nf::foreign::withdraw_all(&prefix)?;
            let mut batch = nf::Batch::new();
            for (family, name) in nf::tables()? {
                let ours = name == prefix
                    || name
                        .strip_prefix(&prefix)
                        .is_some_and(|rest| rest.starts_with('.'));
                if ours && (family == nf::INET || family == nf::BRIDGE) {
                    batch.remove_table(family, &name);
                }
            }
            batch.commit()
        })
        .await
    }
}

fn limit(link: &Link, bps: u64) {
    // One exchange of microseconds; the link may be gone again.
    if let Err(error) = shape::limit(link.index, bps) {
        tracing::warn!(link = %link.name, bps, %error, "the limit towards the guest cannot be set");
    }
}

#[async_trait]
impl Host for Linux {
    async fn links(&self) -> Result<Vec<Link>, HostError> {
        self.links.all().await
    }

    async fn link(&self, name: &str) -> Result<Option<Link>, HostError> {
        self.links.get(name).await
    }

    async fn used_subnets(&self) -> Result<Vec<IpNet>, HostError> {
        let mut used: Vec<IpNet> = self
            .links
            .all()
            .await?
            .iter()
            .flat_map(|l| l.addresses.iter().map(|a| a.net.trunc()))
            .collect();
        used.extend(self.links.routed().await?);
        Ok(used)
    }

    fn has_ipv6(&self) -> bool {
        sysctl::has_ipv6()
    }

    async fn apply(
        &self,
        plan: &NetworkPlan,
        before: Option<&NetworkPlan>,
    ) -> Result<(), HostError> {
        let mut link = self.bridge(plan).await?;
        point("network.apply.bridge").await?;
        if plan.ipv6.is_some() && !sysctl::has_ipv6() {
            return Err(HostError::Unfit {
                link: plan.name.clone(),
                why: "the kernel has no IPv6; set ipv6.address=none".to_owned(),
            });
        }
        Self::kernel_settings(plan)?;
        let alias = self.alias(&plan.uid);
        let mtu = plan
            .mtu
            .or_else(|| before.and_then(|b| b.mtu).map(|_| 1500));
        self.links
            .configure(&link, &alias, plan.hwaddr, mtu)
            .await?;
        link = self.bridge(plan).await?;
        let addresses: Vec<IpNet> = plan.addresses().collect();
        self.links.set_addresses(&link, &addresses).await?;
        let routes: Vec<IpNet> = plan.families().flat_map(|f| f.routes.clone()).collect();
        self.links.set_routes(&link, &routes).await?;
        let mut notes = self.attach(&link, plan, before).await?;
        notes.extend(self.firewall(plan).await?);
        point("network.apply.firewall").await?;
        lock(&self.notes).insert(plan.name.clone(), notes);
        self.dnsmasqs.ensure(plan).await
    }

    async fn remove(&self, plan: &NetworkPlan) -> Result<(), HostError> {
        self.dnsmasqs.remove(&plan.name).await?;
        if let Some(link) = self.links.get(&plan.name).await?
            && (link.alias.as_deref() == Some(&self.alias(&plan.uid))
                || (link.alias.is_none() && link.mac == Some(plan.hwaddr)))
        {
            self.links.remove(&link).await?;
        }
        lock(&self.applied).remove(&plan.name);
        lock(&self.notes).remove(&plan.name);
        let (prefix, name) = (self.prefix.clone(), plan.name.clone());
        blocking(move || {
            nf::foreign::withdraw(&prefix, &name)?;
            nf::nat::remove(&prefix, &name)
        })
        .await
    }

    async fn adopt(&self, bridge: &str, links: Vec<String>) -> Result<(), HostError> {
        let Some(bridge) = self.links.get(bridge).await? else {
            return Ok(());
        };
        for name in links {
            if let Some(link) = self.links.get(&name).await?
                && link.controller.is_none()
            {
                self.links.enslave(&link, Some(bridge.index)).await?;
            }
        }
        Ok(())
    }

    async fn sweep(&self, known: Vec<(String, String)>) -> Result<(), HostError> {
        let names: Vec<String> = known.iter().map(|(name, _)| name.clone()).collect();
        for stray in self.dnsmasqs.known() {
            if !names.contains(&stray) {
                tracing::warn!(network = %stray, "removing dnsmasq of a network that is not there");
                self.dnsmasqs.remove(&stray).await?;
            }
        }
        let links = self.links.all().await?;
        for link in links.iter().filter(|l| self.is_marked(l)) {
            let belongs = known
                .iter()
                .any(|(name, uid)| *name == link.name && link.alias == Some(self.alias(uid)));
            if belongs {
                continue;
            }
            if links.iter().any(|l| l.controller == Some(link.index)) {
                tracing::warn!(bridge = %link.name, "a bridge of no network is in use and left alone");
            } else {
                tracing::warn!(bridge = %link.name, "removing a bridge of no network");
                self.links.remove(link).await?;
            }
        }
        let prefix = self.prefix.clone();
        blocking(move || {
            for (family, table) in nf::tables()? {
                let stray = table
                    .strip_prefix(&format!("{prefix}."))
                    .filter(|name| family == nf::INET && !names.iter().any(|n| n == name));
                if let Some(name) = stray {
                    nf::foreign::withdraw(&prefix, name)?;
                    nf::nat::remove(&prefix, name)?;
                }
            }
            Ok::<_, nf::NfError>(())
        })
        .await
    }

    fn warnings(&self, network: &str) -> Vec<String> {
        let mut all = lock(&self.notes).get(network).cloned().unwrap_or_default();
        all.extend(self.dnsmasqs.trouble(network));
        all
    }

    async fn reset_guards(&self, ports: Vec<PortGuard>) -> Result<(), HostError> {
        let mut guards = self.guards.lock().await;
        let wanted: HashMap<String, PortGuard> = ports
            .into_iter()
            .map(|p| (p.host_name.clone(), p))
            .collect();
        let there = blocking(nf::tables)
            .await?
            .contains(&(nf::BRIDGE, self.prefix.clone()));
        let needed = wanted.values().any(PortGuard::is_needed);
        // A first start cannot know what the tables hold.
        if guards.ports != wanted || guards.built != there || needed != there {
            guards.ports = wanted;
            if needed || there {
                self.rebuild_guards(&mut guards).await?;
            }
        }
        let all: Vec<PortGuard> = guards.ports.values().cloned().collect();
        drop(guards);
        for guard in &all {
            self.shape(guard).await?;
        }
        Ok(())
    }

    async fn arm(&self, guard: PortGuard) -> Result<(), HostError> {
        let mut guards = self.guards.lock().await;
        let before = guards.ports.insert(guard.host_name.clone(), guard.clone());
        let was_needed = before.as_ref().is_some_and(PortGuard::is_needed);
        if guard.is_needed() || was_needed {
            let quick = if guards.built {
                let (prefix, new, old) = (self.prefix.clone(), guard.clone(), before);
                blocking(move || match old {
                    Some(old) => nf::guard::replace(&prefix, &old, &new),
                    None => nf::guard::arm(&prefix, &new),
                })
                .await
            } else {
                Err(HostError::NoLink(String::new()))
            };
            // Not made yet, or someone flushed the rules: all of it anew, in one go.
            if quick.is_err()
                && let Err(error) = self.rebuild_guards(&mut guards).await
            {
                guards.ports.remove(&guard.host_name);
                guards.built = false;
                return Err(error);
            }
        }
        drop(guards);
        self.shape(&guard).await
    }

    async fn disarm(&self, host_name: &str) -> Result<(), HostError> {
        let mut guards = self.guards.lock().await;
        lock(&self.shapes).remove(host_name);
        let Some(guard) = guards.ports.remove(host_name) else {
            return Ok(());
        };
        if !guard.is_needed() || !guards.built {
            return Ok(());
        }
        if !guards.ports.values().any(PortGuard::is_needed) {
            return self.rebuild_guards(&mut guards).await;
        }
        let prefix = self.prefix.clone();
        let quick = blocking(move || nf::guard::disarm(&prefix, &guard)).await;
        if quick.is_err() {
            return self.rebuild_guards(&mut guards).await;
        }
        Ok(())
    }

    async fn reset_records(
        &self,
        network: &str,
        records: Vec<HostRecord>,
    ) -> Result<(), HostError> {
        self.dnsmasqs.reset_records(network, &records)
    }

    async fn put_record(&self, network: &str, record: &HostRecord) -> Result<(), HostError> {
        self.dnsmasqs.put_record(network, record)
    }

    async fn drop_record(
        &self,
        network: &str,
        port: &str,
        mac: Mac,
        gateway: Option<IpAddr>,
    ) -> Result<(), HostError> {
        self.dnsmasqs.drop_record(network, port)?;
        let Some(IpAddr::V4(server)) = gateway else {
            return Ok(());
        };
        for lease in self.leases(network).await? {
            if let (IpAddr::V4(address), true) = (lease.address, lease.mac == Some(mac))
                && let Err(error) = release::send(mac, address, server)
            {
                tracing::debug!(network, %address, %error, "the lease stays until it expires");
            }
        }
        Ok(())
    }

    async fn leases(&self, network: &str) -> Result<Vec<FileLease>, HostError> {
        let path = self.dnsmasqs.paths(network).leases();
        match tokio::fs::read_to_string(&path).await {
            Ok(text) => Ok(lease::parse(&text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(io(format!("read {}", path.display()))(e)),
        }
    }

    async fn rename_leases(&self, from: &str, to: &str) -> Result<(), HostError> {
        self.dnsmasqs.stop(from).await?;
        let (from, to) = (self.dnsmasqs.paths(from).dir, self.dnsmasqs.paths(to).dir);
        match tokio::fs::rename(&from, &to).await {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(io(format!("rename {}", from.display()))),
        }
    }
}
