//! Use cases. Each verb has its file; what they share is here: the instances in memory, expansion, and the
//! one way to commit a change.

mod autostart;
mod console;
mod create_instance;
mod delete_instance;
mod exec;
mod files;
mod freeze_instance;
mod host_shutdown;
mod live;
mod logs;
mod plan;
mod profiles;
mod purge;
mod recover;
mod rename_instance;
mod slot;
mod snapshots;
mod start_instance;
mod state;
mod stop_instance;
mod update_instance;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use berth_store::Event;

use crate::Error;
use crate::host::facts::Facts;
use crate::model::cpu::CpuBalance;
use crate::model::expand::{Expanded, expand};
use crate::model::idmap::IdSpace;
use crate::model::limits::HostSize;
use crate::model::plan::volatile_device;
use crate::model::record::{Instance, Millis, Profile, Snapshot};
use crate::runtime::Runtime;
use crate::runtime::apparmor::{self, AppArmor};
use crate::runtime::seccomp::Programs;
use crate::store::{Answer, Change, Records};

pub use console::{ConsoleInput, ConsoleSession};
pub use create_instance::{ImageFacts, NewInstance};
pub use exec::{ExecInput, ExecOutput, ExecRequest, ExecStarted};
pub use files::FileReader;
pub use host_shutdown::Stopped;
pub use plan::{NeededPort, NeededVolume, Plan, Values};
pub use profiles::ProfileUpdate;
pub use purge::purge;
pub use slot::{Run, Slot};
pub use snapshots::NewSnapshot;
pub use state::LiveState;
pub use stop_instance::StopHow;
pub use update_instance::InstanceUpdate;

/// Name of the profile that every project has.
pub const DEFAULT_PROFILE: &str = "default";

/// What the configuration file says that use cases need.
#[derive(Debug, Clone)]
pub struct Settings {
    pub id_base: u32,
    pub id_count: u32,
    pub id_length: u32,
    pub cgroup_parent: String,
    pub unified_parent: Option<String>,
    pub host_mount_ns: Option<String>,
    pub lxcfs_dir: Option<std::path::PathBuf>,
    pub state_deadline: Duration,
    pub autostart: bool,
    pub autostart_parallel: usize,
    /// Confine guests where the kernel can.
    pub apparmor: bool,
    /// Where compiled profiles are kept.
    pub apparmor_dir: std::path::PathBuf,
}

/// How answers are encoded for the store; given by the layer that knows the messages.
#[derive(Debug, Clone, Copy)]
pub struct Encode {
    pub instance: fn(&View) -> Vec<u8>,
    pub snapshot: fn(&View, &Snapshot) -> Vec<u8>,
    pub profile: fn(&Profile, &[String]) -> Vec<u8>,
    pub empty: fn() -> Vec<u8>,
}

/// One instance as a reader sees it, at one moment.
#[derive(Debug, Clone)]
pub struct View {
    pub record: Arc<Instance>,
    pub expanded: Expanded,
    pub run: Run,
    pub snapshots: Arc<Vec<Snapshot>>,
}

/// Instances and profiles by project and name.
type ByName<T> = BTreeMap<(String, String), T>;

/// The service.
#[derive(Debug)]
pub struct App {
    pub settings: Settings,
    pub facts: Facts,
    pub records: Records,
    pub runtime: Arc<dyn Runtime>,
    encode: Encode,
    programs: Programs,
    pub apparmor: AppArmor,
    instances: RwLock<ByName<Arc<Slot>>>,
    /// Every MAC given to an instance, with its uid.
    macs: Mutex<HashMap<String, String>>,
    profiles: RwLock<Arc<ByName<Profile>>>,
    /// Held for reading by who commits an instance against profiles, for writing by who changes profiles.
    profile_gate: tokio::sync::RwLock<()>,
    ids: Mutex<IdSpace>,
    cpus: Mutex<CpuBalance>,
    /// Images' template lists by fingerprint.
    templates: Mutex<HashMap<String, Arc<crate::host::templates::Templates>>>,
    /// The host goes down: nothing starts any more.
    closing: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds since the epoch.
pub(crate) fn now() -> Millis {
    chrono::Utc::now().timestamp_millis()
}

impl App {
    /// Reads the database into memory. Guests are found by [`App::recover`] afterwards.
    pub async fn open(
        settings: Settings,
        facts: Facts,
        records: Records,
        runtime: Arc<dyn Runtime>,
        encode: Encode,
    ) -> Result<Arc<App>, Error> {
        let mut ids = IdSpace::new(settings.id_base, settings.id_count);
        let mut snapshots: HashMap<String, Vec<Snapshot>> = HashMap::new();
        for (uid, snapshot) in records.snapshots().await? {
            snapshots.entry(uid).or_default().push(snapshot);
        }
        let mut instances = ByName::new();
        let mut macs = HashMap::new();
        for instance in records.instances().await? {
            if !ids.take(instance.ids) {
                tracing::warn!(instance = %instance.resource(), "its id range overlaps another's");
            }
            macs.extend(macs_of(&instance).map(|m| (m, instance.uid.clone())));
            let mut its = snapshots.remove(&instance.uid).unwrap_or_default();
            its.sort_by(|a, b| (a.create_time, &a.name).cmp(&(b.create_time, &b.name)));
            let key = (instance.project.clone(), instance.name.clone());
            instances.insert(key, Arc::new(Slot::new(instance, its)));
        }
        let profiles = records.profiles().await?;
        let profiles: ByName<Profile> = profiles
            .into_iter()
            .map(|p| ((p.project.clone(), p.name.clone()), p))
            .collect();
        let cpus = CpuBalance::new(&facts.cpus);
        let confinement = apparmor::State::of_host(settings.apparmor);
        let apparmor = AppArmor::new(confinement, settings.apparmor_dir.clone());
        Ok(Arc::new(App {
            settings,
            facts,
            records,
            runtime,
            encode,
            programs: Programs::default(),
            apparmor,
            instances: RwLock::new(instances),
            macs: Mutex::new(macs),
            profiles: RwLock::new(Arc::new(profiles)),
            profile_gate: tokio::sync::RwLock::new(()),
            ids: Mutex::new(ids),
            cpus: Mutex::new(cpus),
            templates: Mutex::new(HashMap::new()),
            closing: AtomicBool::new(false),
        }))
    }

    /// The instance of that name.
    pub fn slot(&self, project: &str, name: &str) -> Result<Arc<Slot>, Error> {
        let instances = self
            .instances
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let key = (project.to_owned(), name.to_owned());
        instances
            .get(&key)
            .cloned()
            .ok_or_else(|| Error::not_found("Instance", name))
    }

    /// All instances of a project (`-`: of all), in the order of project and name.
    pub fn slots(&self, project: &str) -> Vec<Arc<Slot>> {
        let instances = self
            .instances
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let wanted = instances
            .iter()
            .filter(|((p, _), _)| project == "-" || p == project);
        wanted.map(|(_, slot)| slot.clone()).collect()
    }

    fn insert_slot(&self, slot: Arc<Slot>) {
        let record = slot.record();
        let key = (record.project.clone(), record.name.clone());
        lock(&self.macs).extend(macs_of(&record).map(|m| (m, record.uid.clone())));
        self.instances
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, slot);
    }

    fn remove_slot(&self, record: &Instance) {
        let key = (record.project.clone(), record.name.clone());
        lock(&self.macs).retain(|_, uid| *uid != record.uid);
        self.instances
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&key);
    }

    /// All stored profiles, as they are now.
    fn profiles_now(&self) -> Arc<ByName<Profile>> {
        self.profiles
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn publish_profiles(&self, change: impl FnOnce(&mut ByName<Profile>)) {
        let mut profiles = self
            .profiles
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut profiles));
    }

    /// Profiles and own configuration merged.
    pub fn expand(&self, record: &Instance) -> Expanded {
        let profiles = self.profiles_now();
        let used = record.profiles.iter();
        let used = used.filter_map(|name| profiles.get(&(record.project.clone(), name.clone())));
        expand(used, &record.config, &record.devices)
    }

    /// What a reader sees of an instance.
    pub fn view(&self, slot: &Slot) -> View {
        let record = slot.record();
        View {
            expanded: self.expand(&record),
            record,
            run: slot.run(),
            snapshots: slot.snapshots(),
        }
    }

    /// What of a configuration decides about the guest's profile.
    pub(crate) fn confined_as(
        config: &crate::model::keys::Config,
    ) -> crate::model::apparmor::Guest {
        let is_true = |key: &str| crate::model::value::is_true(config.get(key));
        crate::model::apparmor::Guest {
            privileged: is_true("security.privileged"),
            nesting: is_true("security.nesting"),
            raw: config.get("raw.apparmor").cloned().unwrap_or_default(),
        }
    }

    /// Lets the parser judge `raw.apparmor`, unless it is as before.
    async fn check_apparmor(
        &self,
        before: Option<&crate::model::keys::Config>,
        config: &crate::model::keys::Config,
    ) -> Result<(), Error> {
        let guest = App::confined_as(config);
        match before.map(App::confined_as) {
            Some(before) if before == guest => Ok(()),
            _ => self.apparmor.check(&guest).await,
        }
    }

    pub fn host_size(&self) -> HostSize {
        HostSize {
            memory_bytes: self.facts.memory_bytes,
        }
    }

    /// The one way to change a record: `change` edits a copy, the copy is committed with the event and the
    /// recorded answer, then readers see it. `run` is what the answer says of the run.
    async fn commit(
        &self,
        slot: &Slot,
        run: Option<Run>,
        request_id: &str,
        event: Option<Event>,
        change: impl FnOnce(&mut Instance) -> Result<(), Error>,
    ) -> Result<View, Error> {
        let _writing = slot.writing.lock().await;
        let before = slot.record();
        let mut record = (*before).clone();
        change(&mut record)?;
        let mut tx = self.records.begin().await?;
        tx.update_instance(&record).await?;
        let view = View {
            expanded: self.expand(&record),
            record: Arc::new(record.clone()),
            run: run.unwrap_or_else(|| slot.run()),
            snapshots: slot.snapshots(),
        };
        self.finish(&mut tx, event, request_id, (self.encode.instance)(&view))
            .await?;
        tx.commit().await?;
        self.published(slot, &before, record);
        Ok(view)
    }

    async fn finish(
        &self,
        tx: &mut Change,
        event: Option<Event>,
        request_id: &str,
        bytes: Vec<u8>,
    ) -> Result<(), Error> {
        if let Some(event) = event {
            tx.emit(event).await?;
        }
        if request_id.is_empty() {
            return Ok(());
        }
        tx.answer(Answer {
            request_id: request_id.to_owned(),
            bytes,
        })
        .await
    }

    fn published(&self, slot: &Slot, before: &Instance, record: Instance) {
        let mut macs = lock(&self.macs);
        for mac in macs_of(before) {
            macs.remove(&mac);
        }
        macs.extend(macs_of(&record).map(|m| (m, record.uid.clone())));
        drop(macs);
        slot.publish(record);
    }
}

/// MACs that the service gave.
fn macs_of(record: &Instance) -> impl Iterator<Item = String> + '_ {
    record
        .config
        .iter()
        .filter_map(|(key, mac)| match volatile_device(key) {
            Some((_, "hwaddr")) => Some(mac.clone()),
            _ => None,
        })
}

/// An event of an instance.
fn event(action: &str, record: &Instance, generation: i64) -> Event {
    Event {
        action: action.to_owned(),
        resource: record.resource(),
        project: record.project.clone(),
        generation,
        attributes: BTreeMap::from([("uid".to_owned(), record.uid.clone())]),
        traceparent: berth_rpc::trace::current_traceparent().unwrap_or_default(),
    }
}
