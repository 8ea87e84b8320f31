use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use berth_rpc::Error;
use tokio::sync::Notify;

use super::{App, guard_of, host_record_of, lock, plan_of};
use crate::model::plan::NetworkPlan;
use crate::model::records::NetworkRecord;

/// Changes of others come in bursts (a firewall that reloads); one look after it is enough.
const GATHER: Duration = Duration::from_millis(300);
/// Answers of requests are kept this long for retries.
const KEPT_DAYS: i64 = 2;

impl App {
    /// At start, before anyone is served: the host as the database says, and nothing besides.
    pub async fn recover(&self) -> Result<(), Error> {
        let networks = self.store.networks().await?;
        let known = networks.into_iter().map(|n| (n.name, n.uid)).collect();
        // Guests may be running: their filters come before anything else.
        self.reconcile_guards().await?;
        self.host.sweep(known).await?;
        self.reconcile(true).await
    }

    /// Brings the host to what the database says. One network's trouble is no other's.
    /// `records` also compares DHCP's records, which only a crash can part from the database.
    pub async fn reconcile(&self, records: bool) -> Result<(), Error> {
        // Filters first: a guest that runs must not be without them while bridges are looked at.
        self.reconcile_guards().await?;
        for network in self.store.networks().await? {
            let own = self.lock_of(&network.name);
            let _own = own.lock().await;
            // It may have changed while this waited.
            let Some(current) = self.store.network(&network.name).await? else {
                continue;
            };
            if current.uid != network.uid {
                continue;
            }
            match self.reconcile_network(&current, records).await {
                Ok(()) => {
                    lock(&self.troubles).remove(&network.uid);
                }
                Err(error) => {
                    let before =
                        lock(&self.troubles).insert(network.uid.clone(), error.message.clone());
                    if before.as_deref() != Some(&error.message) {
                        tracing::error!(network = %network.name, %error, "the network is not as it should be");
                    }
                }
            }
        }
        Ok(())
    }

    async fn reconcile_network(&self, record: &NetworkRecord, records: bool) -> Result<(), Error> {
        let plan = plan_of(record)?;
        if records {
            let mut wanted = Vec::new();
            for port in self.store.ports_of(&record.uid).await? {
                wanted.extend(host_record_of(&port, &plan)?);
            }
            self.host.reset_records(&plan.name, wanted).await?;
        }
        let was_gone = self.host.link(&plan.name).await?.is_none();
        self.host.apply(&plan, None).await?;
        if was_gone {
            // Guests that run have lost their bridge with it.
            let ports = self.store.ports_of(&record.uid).await?;
            let links = ports.into_iter().map(|p| p.host_name).collect();
            self.host.adopt(&plan.name, links).await?;
        }
        Ok(())
    }

    async fn reconcile_guards(&self) -> Result<(), Error> {
        // No port is half-way between host and database now.
        let _ports = self.ports.write().await;
        let plans: HashMap<String, NetworkPlan> = self
            .store
            .networks()
            .await?
            .iter()
            .map(|n| Ok((n.uid.clone(), plan_of(n)?)))
            .collect::<Result<_, Error>>()?;
        let guards = self
            .store
            .ports()
            .await?
            .iter()
            .map(|port| {
                let plan = port.network.as_ref().and_then(|uid| plans.get(uid));
                guard_of(port, plan)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(self.host.reset_guards(guards).await?)
    }

    /// Reconciles on a timer and whenever others change firewall rules, for ever.
    pub async fn keep_reconciled(self: Arc<Self>, every: Duration, changed: Arc<Notify>) {
        let mut swept = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = changed.notified() => tokio::time::sleep(GATHER).await,
            }
            if let Err(error) = self.reconcile(false).await {
                tracing::error!(%error, "reconciling failed; it is tried again");
            }
            if swept.elapsed() > Duration::from_secs(3600) {
                swept = tokio::time::Instant::now();
                if let Err(error) = self.forget_requests().await {
                    tracing::warn!(%error, "old requests stay");
                }
            }
        }
    }

    async fn forget_requests(&self) -> Result<(), Error> {
        let before = (chrono::Utc::now() - chrono::Duration::days(KEPT_DAYS))
            .to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        let mut tx = self.store.store().begin().await.map_err(Error::internal)?;
        tx.forget_requests(&before).await.map_err(Error::internal)?;
        tx.commit().await.map_err(Error::internal)
    }
}
