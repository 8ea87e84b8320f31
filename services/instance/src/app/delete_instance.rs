//! Removing the record of a stopped instance.

use std::sync::Arc;

use super::{App, Slot, View, event, lock};
use crate::Error;
use crate::model::record::Status;
use crate::model::value;

impl App {
    /// Removes it and gives what it was, so that the caller can remove what it used. `generation` other than
    /// 0: only if it has not run since.
    pub async fn delete(
        self: &Arc<Self>,
        project: &str,
        name: &str,
        etag: &str,
        generation: i64,
        request_id: &str,
    ) -> Result<View, Error> {
        let slot = self.slot(project, name)?;
        let _busy = slot.begin("delete").await?;
        let view = self.view(&slot);
        self.check_delete(&slot, &view, etag, generation)?;
        berth_server::failpoint::pass("instance.delete.commit").await?;
        let mut tx = self.records.begin().await?;
        tx.delete_instance(&slot.uid).await?;
        let event = event("instance-deleted", &view.record, view.record.generation);
        self.finish(
            &mut tx,
            Some(event),
            request_id,
            (self.encode.instance)(&view),
        )
        .await?;
        tx.commit().await?;
        slot.set_deleted();
        self.apparmor.unload(&slot.uid).await;
        self.remove_slot(&view.record);
        lock(&self.ids).free(view.record.ids);
        for done in [
            self.runtime.clean(&slot.uid, false).await,
            self.runtime.remove_logs(&slot.uid).await,
        ] {
            if let Err(error) = done {
                tracing::warn!(instance = %view.record.resource(), %error, "leftovers stay");
            }
        }
        Ok(view)
    }

    fn check_delete(
        &self,
        slot: &Slot,
        view: &View,
        etag: &str,
        generation: i64,
    ) -> Result<(), Error> {
        if !etag.is_empty() && etag != view.record.etag() {
            return Err(Error::etag_mismatch(view.record.resource()));
        }
        if generation != 0 && generation != view.record.generation {
            let why = "The instance was started again meanwhile";
            return Err(Error::aborted("GENERATION_PASSED", why));
        }
        if !matches!(slot.run().status, Status::Stopped | Status::Error) {
            return Err(Error::precondition("RUNNING", "Instance is running"));
        }
        if value::is_true(view.expanded.config.get("security.protection.delete")) {
            return Err(Error::precondition("PROTECTED", "Instance is protected"));
        }
        Ok(())
    }
}
