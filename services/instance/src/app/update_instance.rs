//! Planning and committing a change of an instance's configuration.

use berth_rpc::mask::Mask;

use super::live::Applied;
use super::plan::{Draft, check_etag, merge_values};
use super::{App, Plan, Slot, Values, View, event};
use crate::Error;
use crate::model::expand::Expanded;
use crate::model::record::{Instance, Writable};
use crate::model::update::keep_own_keys;

/// What a client wants changed.
#[derive(Debug, Clone)]
pub struct InstanceUpdate {
    pub project: String,
    pub name: String,
    pub writable: Writable,
    pub mask: Mask,
    /// Checked when it is not empty.
    pub etag: String,
}

impl App {
    /// Says what an update would need. Changes nothing.
    pub fn plan_update(&self, update: &InstanceUpdate) -> Result<Plan, Error> {
        let slot = self.slot(&update.project, &update.name)?;
        let before = slot.record();
        let draft = self.update_draft(&before, update)?;
        Ok(self.plan(draft, Some(&before), slot.run()))
    }

    fn update_draft(&self, before: &Instance, update: &InstanceUpdate) -> Result<Draft, Error> {
        if !update.etag.is_empty() && update.etag != before.etag() {
            return Err(Error::etag_mismatch(before.resource()));
        }
        let record = updated(before, update)?;
        let old = self.expand(before);
        self.draft(record, Some((before, &old)), &self.profiles_now())
    }

    /// Commits an update; what may change live changes in a running guest first, so that a guest that
    /// refuses a change keeps its old configuration.
    pub async fn update(
        &self,
        update: &InstanceUpdate,
        plan_etag: &str,
        values: Values,
        request_id: &str,
    ) -> Result<View, Error> {
        let slot = self.slot(&update.project, &update.name)?;
        let _busy = slot.begin("update").await?;
        let _profiles = self.profile_gate.read().await;
        let before = slot.record();
        let old = self.expand(&before);
        let draft = self.update_draft(&before, update)?;
        check_etag(plan_etag, &draft.etag)?;
        let values = merge_values(Some(&before), &draft, values)?;
        let mut record = draft.record;
        record.attachments = values.attachments;
        record.ports = values.ports;
        check_privilege(&slot, &old, &draft.expanded)?;
        self.check_apparmor(Some(&old.config), &draft.expanded.config)
            .await?;
        let applied = self
            .apply_live(&slot, (&before, &old), (&record, &draft.expanded))
            .await?;
        let committed = self.commit_update(&slot, &before, record, request_id).await;
        if committed.is_err() {
            self.undo_live(&slot, applied, (&before, &old)).await;
        }
        committed
    }

    async fn commit_update(
        &self,
        slot: &Slot,
        before: &Instance,
        record: Instance,
        request_id: &str,
    ) -> Result<View, Error> {
        berth_server::failpoint::pass("instance.update.commit").await?;
        let event = event("instance-updated", before, before.generation);
        self.commit(slot, None, request_id, Some(event), |now| {
            // A run may have ended or begun meanwhile: what belongs to the run stays as it is now.
            let mut writable = record.writable();
            keep_own_keys(&now.config, &mut writable.config)?;
            now.set_writable(writable);
            now.attachments = record.attachments;
            now.ports = record.ports;
            Ok(())
        })
        .await
    }

    async fn undo_live(&self, slot: &Slot, applied: Applied, before: (&Instance, &Expanded)) {
        if let Err(error) = self.revert_live(slot, applied, before).await {
            tracing::warn!(instance = %before.0.resource(), %error, "a refused update was not undone whole");
        }
    }
}

/// The record with the update applied, checked by nobody yet.
fn updated(before: &Instance, update: &InstanceUpdate) -> Result<Instance, Error> {
    let new = &update.writable;
    let mask = &update.mask;
    if let Mask::Paths(paths) = mask {
        let known = [
            "description",
            "architecture",
            "ephemeral",
            "profiles",
            "config",
            "devices",
        ];
        let unknown = |p: &&String| {
            !known.contains(&p.as_str()) && !p.starts_with("config.") && !p.starts_with("devices.")
        };
        if let Some(path) = paths.iter().find(unknown) {
            return Err(Error::invalid(
                "update_mask",
                format!("{path:?} cannot be written"),
            ));
        }
    }
    let mut record = before.clone();
    let mut writable = record.writable();
    let config = new.config.clone().into_iter().collect();
    let devices = new.devices.clone().into_iter().collect();
    writable.config = mask.merge_map("config", &before.config, &config, String::is_empty);
    writable.devices = mask.merge_map("devices", &before.devices, &devices, |d| d.is_empty());
    if mask.has("description") {
        writable.description.clone_from(&new.description);
    }
    if mask.has("architecture") && !new.architecture.is_empty() {
        writable.architecture.clone_from(&new.architecture);
    }
    if mask.has("ephemeral") {
        writable.ephemeral = new.ephemeral;
    }
    if mask.has("profiles") {
        writable.profiles.clone_from(&new.profiles);
    }
    keep_own_keys(&before.config, &mut writable.config)?;
    record.set_writable(writable);
    Ok(record)
}

/// The ids on the disk of a volume that was shifted are those of before.
fn check_privilege(slot: &Slot, old: &Expanded, new: &Expanded) -> Result<(), Error> {
    let shifted = slot.record().attachments.values().any(|a| {
        a.mounts
            .iter()
            .any(|m| m.ownership == crate::model::attachment::Ownership::Shifted)
    });
    if shifted && old.privileged() != new.privileged() {
        let why =
            "The key \"security.privileged\" cannot be changed: the volume's files are shifted";
        return Err(Error::invalid("config.security.privileged", why));
    }
    if old.get("security.idmap.size") != new.get("security.idmap.size") {
        let why = "The key \"security.idmap.size\" is read when the instance is created";
        return Err(Error::invalid("config.security.idmap.size", why));
    }
    Ok(())
}
