//! Freezing and thawing a guest. A user's pause and a snapshot's lease are two holders: the guest runs
//! again when neither is left.

use std::sync::Arc;

use berth_monitor::protocol::{Reply, Request};

use super::live::link_error;
use super::{App, View, event};
use crate::Error;
use crate::model::record::Status;
use crate::runtime::link::Link;

const PAUSE: &str = "pause";
const LEASE: &str = "lease";

fn not_running() -> Error {
    Error::precondition("NOT_RUNNING", "The instance isn't running")
}

impl App {
    /// Freezes; with `lease_seconds` the monitor thaws by itself after that time.
    pub async fn freeze(
        self: &Arc<Self>,
        project: &str,
        name: &str,
        lease_seconds: Option<u32>,
        request_id: &str,
    ) -> Result<View, Error> {
        let slot = self.slot(project, name)?;
        let _busy = slot.begin("freeze").await?;
        let link = slot.link().ok_or_else(not_running)?;
        if lease_seconds.is_none() && holders(&link).await?.iter().any(|h| h == PAUSE) {
            return Err(Error::precondition(
                "ALREADY_FROZEN",
                "The container is already frozen",
            ));
        }
        let holder = if lease_seconds.is_some() {
            LEASE
        } else {
            PAUSE
        }
        .to_owned();
        link.done(Request::Freeze {
            holder,
            lease_seconds,
        })
        .await
        .map_err(|e| link_error(e, "Freezing the instance"))?;
        slot.set_status(Status::Frozen);
        let record = slot.record();
        let told = lease_seconds.is_none();
        let event = told.then(|| event("instance-paused", &record, slot.run().generation));
        if event.is_none() && request_id.is_empty() {
            return Ok(self.view(&slot));
        }
        self.commit(&slot, None, request_id, event, |_| Ok(()))
            .await
    }

    /// Ends a lease where there is one, else a user's pause.
    pub async fn unfreeze(
        self: &Arc<Self>,
        project: &str,
        name: &str,
        request_id: &str,
    ) -> Result<View, Error> {
        let slot = self.slot(project, name)?;
        let _busy = slot.begin("unfreeze").await?;
        let link = slot.link().ok_or_else(not_running)?;
        let frozen_by = holders(&link).await?;
        if frozen_by.is_empty() {
            return Err(Error::precondition(
                "NOT_FROZEN",
                "The container is already running",
            ));
        }
        let lease = frozen_by.iter().any(|h| h == LEASE);
        let holder = if lease { LEASE } else { PAUSE }.to_owned();
        link.done(Request::Thaw { holder })
            .await
            .map_err(|e| link_error(e, "Unfreezing the instance"))?;
        if frozen_by.len() == 1 {
            slot.set_status(Status::Running);
        }
        let record = slot.record();
        let event = (!lease).then(|| event("instance-resumed", &record, slot.run().generation));
        if event.is_none() && request_id.is_empty() {
            return Ok(self.view(&slot));
        }
        self.commit(&slot, None, request_id, event, |_| Ok(()))
            .await
    }

    /// For a stop: whoever holds it frozen loses.
    pub(super) async fn thaw_all(&self, link: &Link) -> Result<(), Error> {
        for holder in holders(link).await? {
            link.done(Request::Thaw { holder })
                .await
                .map_err(|e| link_error(e, "Unfreezing the instance"))?;
        }
        Ok(())
    }
}

async fn holders(link: &Link) -> Result<Vec<String>, Error> {
    let asked = link
        .call(Request::GetState {
            without_network: true,
        })
        .await;
    match asked.map_err(|e| link_error(e, "Asking the instance's monitor"))? {
        (Reply::State(state), _) => Ok(state.frozen_by),
        _ => Err(link_error(
            crate::runtime::link::unexpected(),
            "Asking the instance's monitor",
        )),
    }
}
