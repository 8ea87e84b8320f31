use std::sync::Arc;

use berth_rpc::{Code, Error, names};
use berth_server::failpoint;

use super::resolve_port::Place;
use super::{App, Render, guard_of, host_record_of};
use crate::model::nic;
use crate::model::records::{PortRecord, PortSpec};
use crate::store::Taken;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct CreatePort {
    /// Its name.
    pub name: names::Port,
    /// What it shall be.
    pub spec: PortSpec,
    /// Key of the request.
    pub request_id: String,
    /// Only say what would be made.
    pub validate_only: bool,
}

impl App {
    /// Declares a port: filters, limits and DHCP's record wait for its link from now on.
    pub async fn create_port(
        self: Arc<Self>,
        ask: CreatePort,
        render: Render<PortRecord>,
    ) -> Result<PortRecord, Error> {
        check_id(&ask.name.port)?;
        let options = nic::parse(&ask.spec.config)?;
        let parent = names::Network::new(&ask.name.project, &ask.name.network);
        let _ports = self.ports.read().await;
        let own = self.lock_of(match ask.name.network.as_str() {
            "-" => options.parent.as_deref().unwrap_or("-"),
            name => name,
        });
        let _own = own.lock().await;
        let place = self.place(&parent, &options).await?;
        let name = &ask.name;
        if self
            .store
            .port(&name.project, &name.network, &name.port)
            .await?
            .is_some()
        {
            return Err(Error::already_exists("Port", name));
        }
        let record = self.resolve(name, ask.spec, &place, &options, None).await?;
        // Filters are keyed by the link: never touch those of another port's.
        let link = self.lock_of(&link_key(&record));
        let _link = link.lock().await;
        self.check_link_free(&record).await?;
        self.check_name_free(&record, None).await?;
        if ask.validate_only {
            return Ok(record);
        }
        if let Err(error) = self.put_effects(&record, &place).await {
            self.drop_effects(&record, &place).await;
            return Err(error);
        }
        let answer = render(&record);
        match self.store.put_port(&record, &ask.request_id, answer).await {
            Ok(Ok(())) => Ok(record),
            Ok(Err(taken)) => {
                self.drop_effects(&record, &place).await;
                Err(taken_error(taken, &record))
            }
            Err(error) => {
                self.drop_effects(&record, &place).await;
                Err(error)
            }
        }
    }

    pub(super) async fn put_effects(
        &self,
        record: &PortRecord,
        place: &Place,
    ) -> Result<(), Error> {
        self.host.arm(guard_of(record, place.plan())?).await?;
        failpoint::pass("network.port.armed").await?;
        if let Some(plan) = place.plan()
            && let Some(host) = host_record_of(record, plan)?
        {
            self.host.put_record(&plan.name, &host).await?;
        }
        failpoint::pass("network.port.recorded").await
    }

    async fn drop_effects(&self, record: &PortRecord, place: &Place) {
        let mut result = self.host.disarm(&record.host_name).await;
        if let (Some(plan), Ok(mac)) = (place.plan(), record.mac.parse()) {
            let dropped = self
                .host
                .drop_record(&plan.name, &record.uid, mac, None)
                .await;
            result = result.and(dropped);
        }
        if let Err(error) = result {
            tracing::error!(port = %record.resource(), %error, "a failed port leaves something on the host; the reconciler removes it");
        }
    }

    /// A name that a user chose for a new link is none that the host has already, nor a network's: the guest's
    /// start would have to take it away from there. `old` is what the port was.
    pub(super) async fn check_name_free(
        &self,
        record: &PortRecord,
        old: Option<&PortRecord>,
    ) -> Result<(), Error> {
        let name = &record.host_name;
        let chosen = record.spec.config.get("host_name") == Some(name);
        if !chosen || old.is_some_and(|o| o.host_name == *name) {
            return Ok(());
        }
        if self.store.network(name).await?.is_none() && self.host.link(name).await?.is_none() {
            return Ok(());
        }
        Err(Error::new(
            Code::AlreadyExists,
            "HOST_NAME_TAKEN",
            format!("Host interface name {name:?} is already used by a link of this host"),
        ))
    }

    /// The link's name belongs to no other port.
    pub(super) async fn check_link_free(&self, record: &PortRecord) -> Result<(), Error> {
        match self.store.port_of_link(&record.host_name).await? {
            Some(uid) if uid != record.uid => Err(taken_error(Taken::HostName, record)),
            _ => Ok(()),
        }
    }
}

/// Serialises changes of filters of one link; no network's name has a slash.
pub(super) fn link_key(record: &PortRecord) -> String {
    format!("/{}", record.host_name)
}

pub(super) fn taken_error(taken: Taken, record: &PortRecord) -> Error {
    let new = |reason, message| Error::new(Code::AlreadyExists, reason, message);
    match taken {
        Taken::Name => Error::already_exists("Port", record.resource()),
        Taken::HostName => new(
            "HOST_NAME_TAKEN",
            format!(
                "Host interface name {:?} is already used by another port",
                record.host_name
            ),
        ),
        Taken::Mac => new(
            "MAC_TAKEN",
            format!(
                "MAC address {:?} is already used on {:?}",
                record.mac, record.parent
            ),
        ),
        Taken::Address => new(
            "ADDRESS_TAKEN",
            format!(
                "One of the addresses {:?} is already used on {:?}",
                record.addresses, record.parent
            ),
        ),
    }
}

/// Port ids are chosen by clients: 1 to 128 characters of `[-_.a-zA-Z0-9]`.
fn check_id(id: &str) -> Result<(), Error> {
    let fits = (1..=128).contains(&id.len())
        && id != "."
        && id != ".."
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if fits {
        Ok(())
    } else {
        Err(Error::invalid(
            "port_id",
            format!("{id:?} is not a port's id"),
        ))
    }
}
