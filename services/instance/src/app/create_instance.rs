//! Planning and committing a new instance.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::plan::{check_etag, merge_values};
use super::{App, Plan, Run, Slot, Values, View, event, lock, now};
use crate::Error;
use crate::model::idmap::IdRange;
use crate::model::keys::{self, Config};
use crate::model::name;
use crate::model::record::{Devices, Instance, Snapshot, Writable};
use crate::model::template::Trigger;

/// What an instance takes over from its image.
#[derive(Debug, Clone, Default)]
pub struct ImageFacts {
    pub fingerprint: String,
    pub architecture: String,
    pub properties: BTreeMap<String, String>,
    pub profiles: Vec<String>,
}

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct NewInstance {
    pub project: String,
    pub name: String,
    /// Given by a plan; empty: a new one is made.
    pub uid: String,
    pub writable: Writable,
    pub image: Option<ImageFacts>,
    /// No profiles were given: the image's or the source's, else `default`.
    pub default_profiles: bool,
    /// Instance, or instance and snapshot, of the same project.
    pub copy_of: Option<(String, Option<String>)>,
    /// An instance of the same project, and those of its snapshots whose records are taken over.
    pub snapshots_of: Option<(String, Vec<String>)>,
}

impl App {
    /// What creating this instance would need. Changes nothing.
    pub fn plan_create(&self, new: NewInstance) -> Result<Plan, Error> {
        let record = self.new_record(new)?;
        let draft = self.draft(record, None, &self.profiles_now())?;
        Ok(self.plan(draft, None, Run::stopped(0)))
    }

    /// Commits a new, stopped instance.
    pub async fn create(
        &self,
        new: NewInstance,
        plan_etag: &str,
        values: Values,
        trigger: &str,
        request_id: &str,
    ) -> Result<View, Error> {
        let trigger = match trigger {
            "" => Trigger::Create,
            text => Trigger::parse(text)
                .filter(|t| matches!(t, Trigger::Create | Trigger::Copy))
                .ok_or_else(|| Error::invalid("template_trigger", "It must be create or copy"))?,
        };
        let _profiles = self.profile_gate.read().await;
        let snapshots = self.copied_snapshots(&new)?;
        let record = self.new_record(new)?;
        let draft = self.draft(record, None, &self.profiles_now())?;
        check_etag(plan_etag, &draft.etag)?;
        self.check_apparmor(None, &draft.expanded.config).await?;
        let values = merge_values(None, &draft, values)?;
        let mut record = draft.record;
        record.attachments = values.attachments;
        record.ports = values.ports;
        record.ids = self.allocate_ids(&draft.expanded.config)?;
        own_keys(&mut record, trigger);
        let committed = self.insert(record.clone(), snapshots, request_id).await;
        if committed.is_err() {
            lock(&self.ids).free(record.ids);
        }
        committed
    }

    /// Records of the source's snapshots, as records of others.
    fn copied_snapshots(&self, new: &NewInstance) -> Result<Vec<Snapshot>, Error> {
        let Some((source, names)) = &new.snapshots_of else {
            return Ok(Vec::new());
        };
        let there = self.slot(&new.project, source)?.snapshots();
        let copies = names.iter().map(|name| {
            let mut copy = there
                .iter()
                .find(|snapshot| snapshot.name == *name)
                .cloned()
                .ok_or_else(|| Error::not_found("Instance snapshot", name))?;
            copy.uid = uuid::Uuid::now_v7().to_string();
            Ok(copy)
        });
        copies.collect()
    }

    async fn insert(
        &self,
        record: Instance,
        snapshots: Vec<Snapshot>,
        request_id: &str,
    ) -> Result<View, Error> {
        berth_server::failpoint::pass("instance.create.commit").await?;
        let view = View {
            expanded: self.expand(&record),
            record: Arc::new(record.clone()),
            run: Run::stopped(0),
            snapshots: Arc::new(snapshots.clone()),
        };
        let mut tx = self.records.begin().await?;
        tx.insert_instance(&record).await?;
        for snapshot in &snapshots {
            tx.insert_snapshot(&record.uid, snapshot).await?;
        }
        let event = event("instance-created", &record, 0);
        self.finish(
            &mut tx,
            Some(event),
            request_id,
            (self.encode.instance)(&view),
        )
        .await?;
        tx.commit().await?;
        self.insert_slot(Arc::new(Slot::new(record, snapshots)));
        Ok(view)
    }

    fn allocate_ids(&self, config: &Config) -> Result<IdRange, Error> {
        let wanted = config
            .get("security.idmap.size")
            .and_then(|text| text.parse().ok());
        let len = wanted.unwrap_or(self.settings.id_length);
        lock(&self.ids).allocate(len).ok_or_else(|| {
            Error::exhausted("NO_IDS", "Not enough uid/gid available for the container")
        })
    }

    fn new_record(&self, mut new: NewInstance) -> Result<Instance, Error> {
        name::instance(&new.name)?;
        if self.slot(&new.project, &new.name).is_ok() {
            return Err(Error::already_exists("Instance", &new.name));
        }
        let uid = match new.uid.as_str() {
            "" => uuid::Uuid::now_v7().to_string(),
            text => uuid::Uuid::parse_str(text)
                .map_err(|_| Error::invalid("instance.uid", "It is no UUID"))?
                .to_string(),
        };
        if new.uid.is_empty() {
            // A client names no service's keys of its own; a plan's answer carries them back.
            strip_volatile(&mut new.writable.config);
        }
        let copied = self.take_over_source(&mut new)?;
        let mut writable = new.writable;
        if new.default_profiles {
            let image = new
                .image
                .as_ref()
                .map(|i| i.profiles.clone())
                .filter(|p| !p.is_empty());
            writable.profiles = copied
                .or(image)
                .unwrap_or_else(|| vec![super::DEFAULT_PROFILE.to_owned()]);
        }
        if let Some(image) = &new.image {
            take_over_image(&mut writable, image);
        }
        if writable.architecture.is_empty() {
            writable.architecture = self.facts.kernel_architecture.clone();
        }
        writable.config.retain(|_, value| !value.is_empty());
        let uuid = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, uid.as_bytes()).to_string();
        for key in ["volatile.uuid", "volatile.cloud-init.instance-id"] {
            writable
                .config
                .entry(key.to_owned())
                .or_insert_with(|| uuid.clone());
        }
        let mut record = Instance {
            uid,
            project: new.project,
            name: new.name,
            description: String::new(),
            architecture: String::new(),
            ephemeral: false,
            config: Config::new(),
            devices: Devices::new(),
            profiles: Vec::new(),
            create_time: now(),
            last_used_time: 0,
            generation: 0,
            running: false,
            ids: IdRange { base: 0, len: 0 },
            attachments: BTreeMap::new(),
            ports: BTreeMap::new(),
        };
        record.set_writable(writable);
        Ok(record)
    }

    /// Fills in what a copy has and the request does not say; gives the source's profiles.
    fn take_over_source(&self, new: &mut NewInstance) -> Result<Option<Vec<String>>, Error> {
        let Some((source, snapshot)) = &new.copy_of else {
            return Ok(None);
        };
        let slot = self.slot(&new.project, source)?;
        let (mut config, devices, profiles, architecture) = match snapshot {
            None => {
                let r = slot.record();
                (
                    r.config.clone(),
                    r.devices.clone(),
                    r.profiles.clone(),
                    r.architecture.clone(),
                )
            }
            Some(snapshot) => {
                let snapshots = slot.snapshots();
                let found = snapshots.iter().find(|s| s.name == *snapshot);
                let s = found.ok_or_else(|| Error::not_found("Snapshot", snapshot))?;
                (
                    s.config.clone(),
                    s.devices.clone(),
                    s.profiles.clone(),
                    s.architecture.clone(),
                )
            }
        };
        config.retain(|key, _| !key.starts_with("volatile.") || key == "volatile.base_image");
        config.extend(std::mem::take(&mut new.writable.config));
        let mut all = devices;
        all.extend(std::mem::take(&mut new.writable.devices));
        new.writable.config = config;
        new.writable.devices = all;
        if new.writable.architecture.is_empty() {
            new.writable.architecture = architecture;
        }
        Ok(Some(profiles))
    }
}

fn strip_volatile(config: &mut Config) {
    config.retain(|key, _| !key.starts_with("volatile.") || key == "volatile.base_image");
}

fn take_over_image(writable: &mut Writable, image: &ImageFacts) {
    for (key, value) in &image.properties {
        let single_line = keys::validate(
            &Config::from([(format!("image.{key}"), value.clone())]),
            keys::Scope::Container,
        );
        // A property is text for people; one that cannot be a key is left out rather than failing a launch.
        if single_line.is_ok() {
            writable
                .config
                .entry(format!("image.{key}"))
                .or_insert_with(|| value.clone());
        }
    }
    if !image.fingerprint.is_empty() {
        writable
            .config
            .insert("volatile.base_image".to_owned(), image.fingerprint.clone());
    }
    if writable.architecture.is_empty() {
        writable.architecture = image.architecture.clone();
    }
}

/// What LXD's clients find in a fresh instance's volatile keys.
fn own_keys(record: &mut Instance, trigger: Trigger) {
    let map = record.ids.volatile();
    let keys = [
        ("volatile.apply_template", trigger.name().to_owned()),
        ("volatile.idmap.base", record.ids.base.to_string()),
        ("volatile.idmap.next", map),
        ("volatile.last_state.idmap", "[]".to_owned()),
    ];
    record.config.extend(keys.map(|(k, v)| (k.to_owned(), v)));
}
