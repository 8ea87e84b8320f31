use std::sync::Arc;

use berth_rpc::{Code, Error};
use berth_server::failpoint;
use ipnet::IpNet;

use super::{App, NetworkView, Render, event, plan_of};
use crate::model::keys::{self, Config};
use crate::model::mac::Mac;
use crate::model::plan::NetworkPlan;
use crate::model::records::NetworkRecord;
use crate::model::{allocate, check_network_name};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct CreateNetwork {
    /// Project's name.
    pub project: String,
    /// Network's name.
    pub name: String,
    /// For people.
    pub description: String,
    /// `bridge`, or empty for it.
    pub kind: String,
    /// LXD's keys.
    pub config: Config,
    /// Key of the request.
    pub request_id: String,
    /// Only say what would be made.
    pub validate_only: bool,
}

impl App {
    /// Makes a bridge with all that belongs to it, or nothing.
    pub async fn create_network(
        self: Arc<Self>,
        ask: CreateNetwork,
        render: Render<NetworkView>,
    ) -> Result<NetworkView, Error> {
        check_network_name("network_id", &ask.name)?;
        check_kind(&ask.kind)?;
        let own = self.lock_of(&ask.name);
        let _own = own.lock().await;
        let record = match self.store.network_of_request(&ask.request_id).await? {
            // Written down before a crash; what was begun is finished now.
            Some(record) if record.name == ask.name => record,
            _ => match self.write_down(&ask).await? {
                Written::Record(record) => record,
                Written::Checked(view) => return Ok(view),
            },
        };
        let plan = plan_of(&record)?;
        if let Err(error) = self.plumb(&plan).await {
            self.undo_creation(&record, &plan).await;
            return Err(error);
        }
        let view = self.view(record).await?;
        let event = event("network-created", &view.record);
        let answer = render(&view);
        self.store
            .finish(Some(event), &ask.request_id, answer)
            .await?;
        Ok(view)
    }

    async fn plumb(&self, plan: &NetworkPlan) -> Result<(), Error> {
        failpoint::pass("network.create.recorded").await?;
        self.host.apply(plan, None).await?;
        failpoint::pass("network.create.applied").await
    }

    async fn undo_creation(&self, record: &NetworkRecord, plan: &NetworkPlan) {
        if let Err(error) = self.host.remove(plan).await {
            tracing::error!(network = %record.name, %error, "a failed creation cannot be undone on the host");
        }
        if let Err(error) = self.store.delete_network(&record.uid, None, "").await {
            tracing::error!(network = %record.name, %error, "a failed creation stays in the database");
        }
    }

    async fn write_down(&self, ask: &CreateNetwork) -> Result<Written, Error> {
        let taken = || Error::already_exists("Network", &ask.name);
        if self.store.network(&ask.name).await?.is_some() {
            return Err(taken());
        }
        if self.host.link(&ask.name).await?.is_some() {
            return Err(Error::new(
                Code::AlreadyExists,
                "LINK_EXISTS",
                format!(
                    "Network interface {:?} already exists on this host",
                    ask.name
                ),
            ));
        }
        let mut config: Config = ask
            .config
            .iter()
            .filter(|(_, v)| !v.is_empty())
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        if !self.host.has_ipv6() {
            config
                .entry("ipv6.address".into())
                .or_insert_with(|| "none".into());
        }
        keys::check(&config)?;
        keys::fill_for_create(&mut config);
        let random: [u8; 3] = rand::random();
        let mut record = NetworkRecord {
            uid: uuid::Uuid::now_v7().to_string(),
            project: ask.project.clone(),
            name: ask.name.clone(),
            description: ask.description.clone(),
            config,
            hwaddr: Mac::from_random(random).to_string(),
            generation: 1,
        };
        let _choosing = self.choosing.lock().await;
        self.choose_subnets(&mut record.config).await?;
        let plan = plan_of(&record)?;
        self.check_externals(&plan).await?;
        if ask.validate_only {
            return Ok(Written::Checked(self.view(record).await?));
        }
        if !self.store.insert_network(&record, &ask.request_id).await? {
            return Err(taken());
        }
        Ok(Written::Record(record))
    }

    /// Puts subnets in the place of `auto`.
    pub(super) async fn choose_subnets(&self, config: &mut Config) -> Result<(), Error> {
        let is_auto = |config: &Config, key: &str| config.get(key).is_some_and(|v| v == "auto");
        if !is_auto(config, "ipv4.address") && !is_auto(config, "ipv6.address") {
            return Ok(());
        }
        let mut used = self.host.used_subnets().await?;
        for other in self.store.networks().await? {
            used.extend(
                ["ipv4.address", "ipv6.address"]
                    .iter()
                    .filter_map(|key| other.config.get(*key).and_then(|a| a.parse::<IpNet>().ok())),
            );
        }
        let full = |family: &str| {
            Error::exhausted(
                "NO_FREE_SUBNET",
                format!("No unused {family} subnet was found; set {family}.address"),
            )
        };
        if is_auto(config, "ipv4.address") {
            let net = allocate::pick_ipv4(&used, rand::random).ok_or_else(|| full("ipv4"))?;
            config.insert("ipv4.address".into(), net.to_string());
        }
        if is_auto(config, "ipv6.address") {
            let net = allocate::pick_ipv6(&used, rand::random).ok_or_else(|| full("ipv6"))?;
            config.insert("ipv6.address".into(), net.to_string());
        }
        Ok(())
    }

    /// External interfaces have to be there when they are named; later they may come and go.
    pub(super) async fn check_externals(&self, plan: &NetworkPlan) -> Result<(), Error> {
        for name in &plan.external_interfaces {
            if self.host.link(name).await?.is_none() {
                return Err(Error::invalid(
                    "config.bridge.external_interfaces",
                    format!("External interface {name:?} does not exist"),
                ));
            }
        }
        Ok(())
    }
}

enum Written {
    Record(NetworkRecord),
    Checked(NetworkView),
}

fn check_kind(kind: &str) -> Result<(), Error> {
    match kind {
        "" | "bridge" => Ok(()),
        "macvlan" | "sriov" | "ovn" | "physical" => Err(Error::unimplemented(format!(
            "Network type {kind:?} is not supported by Berth"
        ))),
        _ => Err(Error::invalid(
            "network.type",
            format!("Unknown network type {kind:?}"),
        )),
    }
}
