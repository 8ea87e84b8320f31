use std::sync::Arc;

use berth_rpc::Error;
use berth_rpc::mask::Mask;
use berth_server::failpoint;

use super::{App, NetworkView, Render, event, guard_of, host_record_of, plan_of};
use crate::model::plan::NetworkPlan;
use crate::model::records::NetworkRecord;
use crate::model::{check_network_name, keys};

/// What is to change.
#[derive(Debug, Clone)]
pub struct UpdateNetwork {
    /// Project's name.
    pub project: String,
    /// Network's name.
    pub name: String,
    /// New description, where the mask has it.
    pub description: String,
    /// New keys, where the mask has them.
    pub config: std::collections::HashMap<String, String>,
    /// What is written.
    pub mask: Mask,
    /// What the client has read, or empty.
    pub etag: String,
    /// Key of the request.
    pub request_id: String,
}

impl App {
    /// Changes a network under its guests.
    pub async fn update_network(
        self: Arc<Self>,
        ask: UpdateNetwork,
        render: Render<NetworkView>,
    ) -> Result<NetworkView, Error> {
        let own = self.lock_of(&ask.name);
        let _own = own.lock().await;
        let old = self.managed(&ask.project, &ask.name).await?;
        if !ask.etag.is_empty() && ask.etag != old.etag() {
            return Err(Error::etag_mismatch(format!("Network {:?}", ask.name)));
        }
        let mut new = old.clone();
        new.generation += 1;
        if ask.mask.has("description") {
            new.description.clone_from(&ask.description);
        }
        new.config = ask
            .mask
            .merge_map("config", &old.config, &ask.config, String::is_empty);
        keys::check(&new.config)?;
        let choosing = self.choosing.lock().await;
        self.choose_subnets(&mut new.config).await?;
        let before = plan_of(&old)?;
        let plan = plan_of(&new)?;
        self.check_ports_fit(&new, &plan).await?;
        if plan.external_interfaces != before.external_interfaces {
            self.check_externals(&plan).await?;
        }
        if let Err(error) = self.replumb(&plan, &before).await {
            self.restore(&before, &plan).await;
            return Err(error);
        }
        let view = self.view(new).await?;
        let answer = render(&view);
        let told = event("network-updated", &view.record);
        let written = self
            .store
            .update_network(&view.record, told, &ask.request_id, answer)
            .await;
        drop(choosing);
        match written {
            Ok(true) => {}
            Ok(false) => {
                self.restore(&before, &plan).await;
                return Err(Error::etag_mismatch(format!("Network {:?}", ask.name)));
            }
            Err(error) => {
                self.restore(&before, &plan).await;
                return Err(error);
            }
        }
        self.refresh_ports(&view.record, &plan).await?;
        Ok(view)
    }

    async fn replumb(&self, plan: &NetworkPlan, before: &NetworkPlan) -> Result<(), Error> {
        if plan != before {
            self.host.apply(plan, Some(before)).await?;
        }
        failpoint::pass("network.update.applied").await
    }

    async fn restore(&self, before: &NetworkPlan, tried: &NetworkPlan) {
        if let Err(error) = self.host.apply(before, Some(tried)).await {
            tracing::error!(network = %before.name, %error, "a failed change cannot be undone; the reconciler tries again");
        }
    }

    /// Static addresses of ports must stay possible.
    async fn check_ports_fit(&self, new: &NetworkRecord, plan: &NetworkPlan) -> Result<(), Error> {
        let misfits: Vec<String> = self
            .store
            .ports_of(&new.uid)
            .await?
            .into_iter()
            .filter(|port| {
                port.addresses
                    .iter()
                    .any(|a| !plan.families().any(|f| f.can_host(*a)))
            })
            .map(|port| port.spec.holder)
            .collect();
        if misfits.is_empty() {
            return Ok(());
        }
        let mut error = Error::precondition(
            "STATIC_ADDRESSES",
            format!(
                "Static addresses on network {:?} do not fit its new subnets: {}",
                new.name,
                misfits.join(", ")
            ),
        );
        error.holders = misfits;
        Err(error)
    }

    /// Filters and records of ports follow the network's subnets and names.
    async fn refresh_ports(&self, record: &NetworkRecord, plan: &NetworkPlan) -> Result<(), Error> {
        let mut records = Vec::new();
        for port in self.store.ports_of(&record.uid).await? {
            self.host.arm(guard_of(&port, Some(plan))?).await?;
            records.extend(host_record_of(&port, plan)?);
        }
        Ok(self.host.reset_records(&plan.name, records).await?)
    }

    /// Gives an unused network another name.
    pub async fn rename_network(
        self: Arc<Self>,
        (project, name, new_name): (String, String, String),
        request_id: String,
        render: Render<NetworkView>,
    ) -> Result<NetworkView, Error> {
        check_network_name("new_network_id", &new_name)?;
        // In the order of names, so that two renames never wait for each other.
        let mut names = [&name, &new_name];
        names.sort();
        let locks = names.map(|n| self.lock_of(n));
        let _first = locks[0].lock().await;
        let second = (name != new_name).then(|| locks[1].clone());
        let _second = match &second {
            Some(lock) => Some(lock.lock().await),
            None => None,
        };
        let old = self.managed(&project, &name).await?;
        if self.store.network(&new_name).await?.is_some()
            || self.host.link(&new_name).await?.is_some()
        {
            return Err(Error::already_exists("Network", &new_name));
        }
        let holders = self.holders_of(&old).await?;
        if !holders.is_empty() {
            return Err(Error::held(format!("Network {name:?}"), holders));
        }
        let mut new = old.clone();
        new.name.clone_from(&new_name);
        new.generation += 1;
        let (before, plan) = (plan_of(&old)?, plan_of(&new)?);
        if let Err(error) = self.move_bridge(&before, &plan).await {
            self.move_back(&plan, &before).await;
            return Err(error);
        }
        let view = self.view(new).await?;
        let mut told = event("network-renamed", &view.record);
        told.attributes.insert("old_name".to_owned(), name.clone());
        let answer = render(&view);
        match self
            .store
            .update_network(&view.record, told, &request_id, answer)
            .await
        {
            Ok(true) => Ok(view),
            Ok(false) => {
                self.move_back(&plan, &before).await;
                Err(Error::etag_mismatch(format!("Network {name:?}")))
            }
            Err(error) => {
                self.move_back(&plan, &before).await;
                Err(error)
            }
        }
    }

    async fn move_bridge(&self, from: &NetworkPlan, to: &NetworkPlan) -> Result<(), Error> {
        self.host.rename_leases(&from.name, &to.name).await?;
        self.host.remove(from).await?;
        failpoint::pass("network.rename.removed").await?;
        Ok(self.host.apply(to, None).await?)
    }

    async fn move_back(&self, from: &NetworkPlan, to: &NetworkPlan) {
        if let Err(error) = self.move_bridge(from, to).await {
            tracing::error!(network = %to.name, %error, "a failed rename cannot be undone; the reconciler tries again");
        }
    }
}
