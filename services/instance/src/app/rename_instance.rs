//! Renaming a stopped instance.

use std::sync::Arc;

use super::{App, Values, View, event};
use crate::Error;
use crate::model::name;
use crate::model::record::Status;

impl App {
    /// The uid, the run counter and the snapshots stay. `values` are what storage and network renamed.
    pub async fn rename(
        self: &Arc<Self>,
        project: &str,
        old: &str,
        new: &str,
        values: Values,
        request_id: &str,
    ) -> Result<View, Error> {
        name::instance(new)?;
        let slot = self.slot(project, old)?;
        let _busy = slot.begin("rename").await?;
        if slot.run().status != Status::Stopped {
            let why = "Renaming of running instance not allowed";
            return Err(Error::precondition("RUNNING", why));
        }
        if self.slot(project, new).is_ok() {
            return Err(Error::already_exists("Instance", new));
        }
        let before = slot.record();
        let unknown = values
            .attachments
            .keys()
            .find(|d| !before.attachments.contains_key(*d));
        if let Some(device) = unknown {
            let why = format!("The device {device:?} has no attachment");
            return Err(Error::invalid(format!("attachments.{device}"), why));
        }
        if let Some(device) = values.ports.keys().find(|d| !before.ports.contains_key(*d)) {
            let why = format!("The device {device:?} has no port");
            return Err(Error::invalid(format!("ports.{device}"), why));
        }
        let mut told = event("instance-renamed", &before, before.generation);
        told.resource = crate::model::record::resource(project, new);
        told.attributes
            .insert("old_name".to_owned(), old.to_owned());
        let view = self
            .commit(&slot, None, request_id, Some(told), |record| {
                record.name = new.to_owned();
                record.attachments.extend(values.attachments);
                record.ports.extend(values.ports);
                // The next start tells the guest its new name; a creation's templates do so as well.
                let pending = record.config.entry("volatile.apply_template".to_owned());
                pending.or_insert_with(|| "rename".to_owned());
                Ok(())
            })
            .await?;
        self.remove_slot(&before);
        self.insert_slot(slot.clone());
        Ok(view)
    }
}
