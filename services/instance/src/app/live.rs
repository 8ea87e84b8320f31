//! Changing a guest that runs: limits, links, mounts and device nodes, each undone when a later one fails.

use berth_monitor::protocol::Request;
use berth_monitor::spec::Spec;

use super::{App, Slot, lock};
use crate::Error;
use crate::host::device_node;
use crate::model::expand::Expanded;
use crate::model::record::Instance;
use crate::model::update::{LiveChange, changed_keys, live_change};
use crate::model::{limits, spec};
use crate::runtime::host::describe;
use crate::runtime::link::{Link, LinkError};

/// What undoes the steps that were done, last first.
#[derive(Debug, Default)]
pub(super) struct Applied {
    undo: Vec<Request>,
    limits: bool,
    spec: bool,
}

/// A link's failure in the service's words.
pub(super) fn link_error(error: LinkError, doing: &str) -> Error {
    match error {
        LinkError::Fault(fault) => describe(fault, doing),
        LinkError::Gone => Error::precondition("NOT_RUNNING", "Instance is not running"),
        LinkError::Late => Error::unavailable(format!("{doing}: {error}")),
    }
}

type State<'a> = (&'a Instance, &'a Expanded);

impl App {
    /// Brings a running guest from one configuration to the other; nothing for a stopped one.
    pub(super) async fn apply_live(
        &self,
        slot: &Slot,
        old: State<'_>,
        new: State<'_>,
    ) -> Result<Applied, Error> {
        let Some(link) = slot.link() else {
            return Ok(Applied::default());
        };
        let change = live_change(old, new)?;
        let changed = !change.is_empty() || !changed_keys(old.1, new.1).is_empty();
        if !changed && old.0.ephemeral == new.0.ephemeral {
            return Ok(Applied::default());
        }
        let mut applied = Applied::default();
        let done = self
            .apply_steps(slot, &link, &change, old, new, &mut applied)
            .await;
        if let Err(error) = done {
            if let Err(undo) = self.revert_live(slot, applied, old).await {
                tracing::warn!(instance = %old.0.resource(), %undo, "a failed change was not undone whole");
            }
            return Err(error);
        }
        Ok(applied)
    }

    async fn apply_steps(
        &self,
        slot: &Slot,
        link: &Link,
        change: &LiveChange,
        old: State<'_>,
        new: State<'_>,
        applied: &mut Applied,
    ) -> Result<(), Error> {
        for (request, undo) in steps(change, old, new)? {
            let doing = doing(&request);
            link.done(request)
                .await
                .map_err(|e| link_error(e, &doing))?;
            applied.undo.push(undo);
        }
        if change.limits {
            applied.limits = true;
            let limits = self.place_limits(&slot.uid, new.1)?;
            link.done(Request::UpdateLimits { limits })
                .await
                .map_err(|e| link_error(e, "Changing the limits"))?;
        }
        applied.spec = true;
        let spec = self.running_spec(slot, new).await?;
        link.done(Request::ReplaceSpec {
            spec: Box::new(spec),
        })
        .await
        .map_err(|e| link_error(e, "Changing the configuration of the next run"))
    }

    /// Back to `old`; the first failure is reported, the rest is tried nevertheless.
    pub(super) async fn revert_live(
        &self,
        slot: &Slot,
        applied: Applied,
        old: State<'_>,
    ) -> Result<(), Error> {
        let Some(link) = slot.link() else {
            return Ok(());
        };
        let mut first = Ok(());
        for request in applied.undo.into_iter().rev() {
            let doing = doing(&request);
            let done = link.done(request).await.map_err(|e| link_error(e, &doing));
            first = first.and(done);
        }
        if applied.limits {
            let limits = self.place_limits(&slot.uid, old.1)?;
            let done = link.done(Request::UpdateLimits { limits }).await;
            first = first.and(done.map_err(|e| link_error(e, "Restoring the limits")));
        }
        if applied.spec {
            let spec = Box::new(self.running_spec(slot, old).await?);
            let done = link.done(Request::ReplaceSpec { spec }).await;
            first = first.and(done.map_err(|e| link_error(e, "Restoring the configuration")));
        }
        first
    }

    /// Limits with CPUs chosen for this guest.
    pub(super) fn place_limits(
        &self,
        uid: &str,
        expanded: &Expanded,
    ) -> Result<berth_monitor::spec::Limits, Error> {
        let wanted = limits::cpu(expanded);
        let placed = lock(&self.cpus).place(uid, wanted.as_ref());
        let cpus = placed.map_err(|why| {
            Error::invalid(
                "config.limits.cpu",
                format!("Invalid config option \"limits.cpu\": {why}"),
            )
        })?;
        Ok(limits::limits(expanded, cpus.as_deref(), self.host_size()))
    }

    /// The spec that the running guest's next run starts from.
    async fn running_spec(&self, slot: &Slot, state: State<'_>) -> Result<Spec, Error> {
        let limits = self.place_limits(&slot.uid, state.1)?;
        let host = self.spec_host(state.0, state.1, limits).await?;
        spec::build(state.0, state.1, slot.run().base, host, &device_node)
    }

    /// Evens out CPUs after guests left; moves at most a few at once.
    pub(super) async fn rebalance(&self) {
        let moves = lock(&self.cpus).rebalance(8);
        for (uid, cpus) in moves {
            let slots = self.slots("-");
            let Some(slot) = slots.iter().find(|s| s.uid == uid) else {
                continue;
            };
            let Some(link) = slot.link() else { continue };
            let expanded = self.expand(&slot.record());
            let limits = limits::limits(&expanded, Some(&cpus), self.host_size());
            if let Err(error) = link.done(Request::UpdateLimits { limits }).await {
                tracing::warn!(uid, %error, "a guest was not moved to other CPUs");
            }
        }
    }
}

fn doing(request: &Request) -> String {
    match request {
        Request::AddNic { nic } => format!("Adding device {:?}", nic.name),
        Request::AddMount { mount } => format!("Adding device {:?}", mount.name),
        Request::AddDevice { device } => format!("Adding device {:?}", device.name),
        Request::RemoveNic { name }
        | Request::RemoveMount { name }
        | Request::RemoveDevice { name } => {
            format!("Removing device {name:?}")
        }
        _ => "Changing the guest".to_owned(),
    }
}

/// Requests in order, each with what undoes it.
fn steps(
    change: &LiveChange,
    old: State<'_>,
    new: State<'_>,
) -> Result<Vec<(Request, Request)>, Error> {
    let mut steps = Vec::new();
    for name in &change.remove_mounts {
        let mount = spec::mount(old.0, name, &old.1.devices[name])?;
        steps.push((
            Request::RemoveMount { name: name.clone() },
            Request::AddMount { mount },
        ));
    }
    for name in &change.remove_nics {
        let nic = spec::nic(old.0, name)?;
        steps.push((
            Request::RemoveNic { name: name.clone() },
            Request::AddNic { nic },
        ));
    }
    for name in &change.remove_nodes {
        if let Some(device) = spec::device_node(name, &old.1.devices[name], &device_node)? {
            steps.push((
                Request::RemoveDevice { name: name.clone() },
                Request::AddDevice { device },
            ));
        }
    }
    for name in &change.add_mounts {
        let mount = spec::mount(new.0, name, &new.1.devices[name])?;
        steps.push((
            Request::AddMount { mount },
            Request::RemoveMount { name: name.clone() },
        ));
    }
    for name in &change.add_nics {
        let nic = spec::nic(new.0, name)?;
        steps.push((
            Request::AddNic { nic },
            Request::RemoveNic { name: name.clone() },
        ));
    }
    for name in &change.add_nodes {
        if let Some(device) = spec::device_node(name, &new.1.devices[name], &device_node)? {
            steps.push((
                Request::AddDevice { device },
                Request::RemoveDevice { name: name.clone() },
            ));
        }
    }
    Ok(steps)
}
