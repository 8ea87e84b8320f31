//! Snapshots' records. Their contents are the storage service's.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_store::Event;

use super::{App, Slot, View, event, now};
use crate::Error;
use crate::model::attachment::Attachment;
use crate::model::name;
use crate::model::record::{Millis, Snapshot, Status};
use crate::model::update::keep_own_keys;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct NewSnapshot {
    pub name: String,
    pub description: String,
    /// 0: never.
    pub expire_time: Millis,
}

fn find(slot: &Slot, name: &str) -> Result<Snapshot, Error> {
    let snapshots = slot.snapshots();
    let found = snapshots.iter().find(|s| s.name == name);
    found
        .cloned()
        .ok_or_else(|| Error::not_found("Instance snapshot", name))
}

fn snapshot_event(action: &str, view: &View, snapshot: &str) -> Event {
    let mut told = event(action, &view.record, view.record.generation);
    told.resource = format!("{}/snapshots/{snapshot}", view.record.resource());
    told
}

impl App {
    /// Records the configuration of now under a name.
    pub async fn create_snapshot(
        self: &Arc<Self>,
        project: &str,
        instance: &str,
        new: NewSnapshot,
        validate_only: bool,
        request_id: &str,
    ) -> Result<(View, Snapshot), Error> {
        name::snapshot(&new.name)?;
        let slot = self.slot(project, instance)?;
        let _writing = slot.writing.lock().await;
        let view = self.view(&slot);
        if view.snapshots.iter().any(|s| s.name == new.name) {
            return Err(Error::already_exists("Snapshot", &new.name));
        }
        let record = &view.record;
        let snapshot = Snapshot {
            uid: uuid::Uuid::now_v7().to_string(),
            name: new.name,
            description: new.description,
            create_time: now(),
            expire_time: new.expire_time,
            last_used_time: record.last_used_time,
            ephemeral: record.ephemeral,
            architecture: record.architecture.clone(),
            config: record.config.clone(),
            devices: record.devices.clone(),
            profiles: record.profiles.clone(),
            expanded_config: view.expanded.config.clone(),
            expanded_devices: view.expanded.devices.clone(),
            ids: record.ids,
        };
        if validate_only {
            return Ok((view, snapshot));
        }
        berth_server::failpoint::pass("instance.snapshot.commit").await?;
        let mut tx = self.records.begin().await?;
        tx.insert_snapshot(&slot.uid, &snapshot).await?;
        let told = snapshot_event("instance-snapshot-created", &view, &snapshot.name);
        let bytes = (self.encode.snapshot)(&view, &snapshot);
        self.finish(&mut tx, Some(told), request_id, bytes).await?;
        tx.commit().await?;
        let mut all = (*view.snapshots).clone();
        all.push(snapshot.clone());
        slot.publish_snapshots(all);
        Ok((view, snapshot))
    }

    pub fn snapshot(
        &self,
        project: &str,
        instance: &str,
        name: &str,
    ) -> Result<(View, Snapshot), Error> {
        let slot = self.slot(project, instance)?;
        let snapshot = find(&slot, name)?;
        Ok((self.view(&slot), snapshot))
    }

    /// A changed snapshot, committed and published.
    async fn change_snapshot(
        &self,
        slot: &Slot,
        name: &str,
        action: &str,
        request_id: &str,
        change: impl FnOnce(&mut Snapshot) -> Result<(), Error>,
    ) -> Result<(View, Snapshot), Error> {
        let _writing = slot.writing.lock().await;
        let mut snapshot = find(slot, name)?;
        change(&mut snapshot)?;
        let view = self.view(slot);
        let mut tx = self.records.begin().await?;
        tx.update_snapshot(&snapshot).await?;
        let mut told = snapshot_event(action, &view, &snapshot.name);
        if snapshot.name != name {
            told.attributes
                .insert("old_name".to_owned(), name.to_owned());
        }
        let bytes = (self.encode.snapshot)(&view, &snapshot);
        self.finish(&mut tx, Some(told), request_id, bytes).await?;
        tx.commit().await?;
        let mut all = (*slot.snapshots()).clone();
        for one in all.iter_mut().filter(|s| s.uid == snapshot.uid) {
            one.clone_from(&snapshot);
        }
        slot.publish_snapshots(all);
        Ok((self.view(slot), snapshot))
    }

    pub async fn set_snapshot_expiry(
        &self,
        project: &str,
        instance: &str,
        name: &str,
        expire_time: Millis,
        etag: &str,
        request_id: &str,
    ) -> Result<(View, Snapshot), Error> {
        let slot = self.slot(project, instance)?;
        let action = "instance-snapshot-updated";
        self.change_snapshot(&slot, name, action, request_id, |snapshot| {
            if !etag.is_empty() && etag != snapshot.etag() {
                return Err(Error::etag_mismatch(format!("Snapshot {name:?}")));
            }
            snapshot.expire_time = expire_time;
            Ok(())
        })
        .await
    }

    pub async fn rename_snapshot(
        &self,
        project: &str,
        instance: &str,
        old: &str,
        new: &str,
        request_id: &str,
    ) -> Result<(View, Snapshot), Error> {
        name::snapshot(new)?;
        let slot = self.slot(project, instance)?;
        let action = "instance-snapshot-renamed";
        self.change_snapshot(&slot, old, action, request_id, |snapshot| {
            new.clone_into(&mut snapshot.name);
            Ok(())
        })
        .await
    }

    pub async fn delete_snapshot(
        &self,
        project: &str,
        instance: &str,
        name: &str,
        allow_missing: bool,
        request_id: &str,
    ) -> Result<(), Error> {
        let slot = match self.slot(project, instance) {
            Err(_) if allow_missing => return Ok(()),
            slot => slot?,
        };
        let _writing = slot.writing.lock().await;
        let snapshot = match find(&slot, name) {
            Err(_) if allow_missing => return Ok(()),
            found => found?,
        };
        let view = self.view(&slot);
        let mut tx = self.records.begin().await?;
        tx.delete_snapshot(&snapshot.uid).await?;
        let told = snapshot_event("instance-snapshot-deleted", &view, name);
        self.finish(&mut tx, Some(told), request_id, (self.encode.empty)())
            .await?;
        tx.commit().await?;
        let mut all = (*view.snapshots).clone();
        all.retain(|s| s.uid != snapshot.uid);
        slot.publish_snapshots(all);
        Ok(())
    }

    /// Brings a stopped instance's record back to a snapshot's. What storage and network made for the devices
    /// of now must fit the devices of then.
    pub async fn restore_snapshot(
        self: &Arc<Self>,
        project: &str,
        instance: &str,
        name: &str,
        attachments: BTreeMap<String, Attachment>,
        validate_only: bool,
        request_id: &str,
    ) -> Result<View, Error> {
        let slot = self.slot(project, instance)?;
        let _busy = slot.begin("restore").await?;
        let snapshot = find(&slot, name)?;
        if slot.run().status != Status::Stopped {
            let why = "The instance must be stopped to be restored";
            return Err(Error::precondition("RUNNING", why));
        }
        let _profiles = self.profile_gate.read().await;
        let before = slot.record();
        let mut record = (*before).clone();
        record.architecture.clone_from(&snapshot.architecture);
        record.ephemeral = snapshot.ephemeral;
        record.profiles.clone_from(&snapshot.profiles);
        record.devices.clone_from(&snapshot.devices);
        let mut config = snapshot.config.clone();
        // A snapshot that came with a copy has its source's.
        config.retain(|key, _| {
            !key.starts_with("volatile.idmap.") && key != "volatile.last_state.idmap"
        });
        keep_own_keys(&before.config, &mut config)?;
        record.config = config;
        let old = self.expand(&before);
        let draft = self.draft(record, Some((&before, &old)), &self.profiles_now())?;
        if validate_only {
            return Ok(self.view(&slot));
        }
        let values = super::Values {
            attachments,
            ports: BTreeMap::new(),
        };
        let values = super::plan::merge_values(Some(&before), &draft, values)?;
        let mut told = event("instance-restored", &before, before.generation);
        told.attributes
            .insert("snapshot".to_owned(), name.to_owned());
        self.commit(&slot, None, request_id, Some(told), |now| {
            now.set_writable(draft.record.writable());
            now.attachments = values.attachments;
            now.ports = values.ports;
            Ok(())
        })
        .await
    }
}
