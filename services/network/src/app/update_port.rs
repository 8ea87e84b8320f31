use std::sync::Arc;

use berth_rpc::{Error, names};
use berth_server::failpoint;

use super::create_port::{link_key, taken_error};
use super::{App, Render, guard_of, host_record_of, plan_of};
use crate::model::nic;
use crate::model::records::{NetworkRecord, PortRecord, PortSpec};

impl App {
    /// Changes a port under its guest: addresses, filters, limits, names. What is part of the
    /// link itself changes only while there is no link.
    pub async fn update_port(
        self: Arc<Self>,
        name: names::Port,
        spec: PortSpec,
        request_id: String,
        render: Render<PortRecord>,
    ) -> Result<PortRecord, Error> {
        let options = nic::parse(&spec.config)?;
        let parent = names::Network::new(&name.project, &name.network);
        let _ports = self.ports.read().await;
        let seen = self.get_port(&name).await?;
        let own = self.lock_of(if seen.parent.is_empty() {
            "-"
        } else {
            &seen.parent
        });
        let _own = own.lock().await;
        let old = self.get_port(&name).await?;
        let place = self.place(&parent, &options).await?;
        let new = self
            .resolve(&name, spec, &place, &options, Some(&old))
            .await?;
        self.check_link_unchanged(&old, &new).await?;
        let link = self.lock_of(&link_key(&new));
        let _link = link.lock().await;
        self.check_link_free(&new).await?;
        self.check_name_free(&new, Some(&old)).await?;
        let network = self.network_of(&old).await?;
        let before = network.as_ref().map(plan_of).transpose()?;
        let result = self.put_effects(&new, &place).await;
        let result = match result {
            Ok(()) => {
                self.move_record(&old, &new, place.plan().map(|p| p.name.as_str()))
                    .await
            }
            Err(error) => Err(error),
        };
        let result = match result {
            Ok(()) => match failpoint::pass("network.port.updated").await {
                Ok(()) => {
                    let answer = render(&new);
                    self.store.put_port(&new, &request_id, answer).await
                }
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let error = match result {
            Ok(Ok(())) => {
                if old.host_name != new.host_name {
                    self.host.disarm(&old.host_name).await?;
                }
                return Ok(new);
            }
            Ok(Err(taken)) => taken_error(taken, &new),
            Err(error) => error,
        };
        self.put_back(&old, &new, before.as_ref()).await;
        if old.host_name != new.host_name
            && let Err(error) = self.host.disarm(&new.host_name).await
        {
            tracing::error!(%error, "filters of a failed change stay; the reconciler removes them");
        }
        Err(error)
    }

    async fn check_link_unchanged(&self, old: &PortRecord, new: &PortRecord) -> Result<(), Error> {
        let same = old.kind == new.kind
            && old.host_name == new.host_name
            && old.mac == new.mac
            && old.mtu == new.mtu
            && old.parent == new.parent
            && old.spec.guest_name == new.spec.guest_name;
        if same || self.host.link(&old.host_name).await?.is_none() {
            return Ok(());
        }
        Err(Error::precondition(
            "LINK_IN_USE",
            format!(
                "The link {:?} of {} exists; its kind, names, MAC, MTU and parent cannot change now",
                old.host_name, old.spec.holder
            ),
        ))
    }

    /// A record whose network changed, or that is no longer needed, goes away.
    async fn move_record(
        &self,
        old: &PortRecord,
        new: &PortRecord,
        now: Option<&str>,
    ) -> Result<(), Error> {
        let Some(network) = self.network_of(old).await? else {
            return Ok(());
        };
        let plan = plan_of(&network)?;
        let had = host_record_of(old, &plan)?;
        let has = if now == Some(network.name.as_str()) {
            host_record_of(new, &plan)?
        } else {
            None
        };
        if had.is_some() && has.is_none() {
            let mac = old.mac.parse().map_err(Error::internal)?;
            self.host
                .drop_record(&network.name, &old.uid, mac, None)
                .await?;
        }
        Ok(())
    }

    async fn put_back(
        &self,
        old: &PortRecord,
        new: &PortRecord,
        plan: Option<&crate::model::plan::NetworkPlan>,
    ) {
        let result = async {
            self.host.arm(guard_of(old, plan)?).await?;
            let Some(plan) = plan else { return Ok(()) };
            match host_record_of(old, plan)? {
                Some(record) => self.host.put_record(&plan.name, &record).await?,
                None => {
                    let mac = new.mac.parse().map_err(Error::internal)?;
                    self.host
                        .drop_record(&plan.name, &new.uid, mac, None)
                        .await?;
                }
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = result.await {
            tracing::error!(port = %old.resource(), %error, "a failed change cannot be undone; the reconciler tries again");
        }
    }

    /// The managed network that a port is on.
    pub(super) async fn network_of(
        &self,
        port: &PortRecord,
    ) -> Result<Option<NetworkRecord>, Error> {
        match &port.network {
            Some(_) => self.store.network(&port.parent).await,
            None => Ok(None),
        }
    }
}
