//! One instance in memory: what is committed, what runs, and who may change it.
//!
//! ```text
//!  operation ── waits for ──▶ busy            one start/stop/update at a time; a forced stop does not wait
//!  commit    ── waits for ──▶ writing         one change of the record at a time, held over the commit only
//!  reads     ── never wait                    they take the last published values
//! ```

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;

use crate::Error;
use crate::model::record::{Instance, Snapshot, Status};
use crate::runtime::link::Link;
use crate::runtime::meter::Meter;

/// How long an operation waits for the one before it.
const BUSY_PATIENCE: Duration = Duration::from_secs(30);

/// What the instance is doing now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub status: Status,
    pub generation: i64,
    /// Generation that the monitor was started with; reboots from inside count on from it.
    pub base: i64,
    /// Of the guest's init, as the host numbers it; 0 when there is none.
    pub pid: i32,
    /// Why the status is what it is, when that is no success.
    pub message: String,
}

impl Run {
    pub fn stopped(generation: i64) -> Run {
        Run {
            status: Status::Stopped,
            generation,
            base: generation,
            pid: 0,
            message: String::new(),
        }
    }
}

/// A stop that was asked for: what its end tells and answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub force: bool,
    /// It will start again at once: the end of this run is no end of the instance.
    pub restart: bool,
    /// The host goes down: it should run again after the next boot.
    pub keep_running: bool,
    pub request_id: String,
}

/// How a guest's numbers are read without its monitor. It is for one run: it keeps the run's network namespace.
#[derive(Debug, Default)]
enum MeterPlace {
    #[default]
    Absent,
    /// Being opened, or in use by another reader.
    Away,
    Here(i64, Meter),
    /// Not to be had for this run.
    Refused(i64),
}

/// An exec that never ran, kept for whoever asks how it ended.
type FailedExec = (String, i32);

/// How many of them are kept.
const FAILED_EXECS: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct Slot {
    pub uid: String,
    record: RwLock<Arc<Instance>>,
    snapshots: RwLock<Arc<Vec<Snapshot>>>,
    run: watch::Sender<Run>,
    link: RwLock<Option<Link>>,
    meter: Mutex<MeterPlace>,
    busy: tokio::sync::Mutex<()>,
    operation: Mutex<&'static str>,
    pub(super) writing: tokio::sync::Mutex<()>,
    asked: Mutex<Option<Asked>>,
    /// Running since before this process and not known to the database as started.
    unclaimed: Mutex<bool>,
    failed_execs: Mutex<Vec<FailedExec>>,
    deleted: Mutex<bool>,
}

/// Ends with the operation.
#[derive(Debug)]
pub(super) struct Busy<'a> {
    _guard: tokio::sync::MutexGuard<'a, ()>,
    slot: &'a Slot,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        *lock(&self.slot.operation) = "";
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    pub fn new(record: Instance, snapshots: Vec<Snapshot>) -> Slot {
        let run = Run::stopped(record.generation);
        Slot {
            uid: record.uid.clone(),
            record: RwLock::new(Arc::new(record)),
            snapshots: RwLock::new(Arc::new(snapshots)),
            run: watch::Sender::new(run),
            link: RwLock::new(None),
            meter: Mutex::default(),
            busy: tokio::sync::Mutex::new(()),
            operation: Mutex::new(""),
            writing: tokio::sync::Mutex::new(()),
            asked: Mutex::new(None),
            unclaimed: Mutex::new(false),
            failed_execs: Mutex::new(Vec::new()),
            deleted: Mutex::new(false),
        }
    }

    pub fn record(&self) -> Arc<Instance> {
        self.record
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn publish(&self, record: Instance) -> Arc<Instance> {
        let record = Arc::new(record);
        *self.record.write().unwrap_or_else(PoisonError::into_inner) = record.clone();
        record
    }

    pub fn snapshots(&self) -> Arc<Vec<Snapshot>> {
        self.snapshots
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn publish_snapshots(&self, snapshots: Vec<Snapshot>) {
        *self
            .snapshots
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshots);
    }

    pub fn run(&self) -> Run {
        self.run.borrow().clone()
    }

    pub(super) fn set_run(&self, run: Run) {
        self.run.send_replace(run);
    }

    pub(super) fn set_status(&self, status: Status) {
        self.run.send_modify(|run| run.status = status);
    }

    pub(super) fn watch_run(&self) -> watch::Receiver<Run> {
        self.run.subscribe()
    }

    /// The connection to the guest's monitor, while it runs.
    pub fn link(&self) -> Option<Link> {
        self.link
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set_link(&self, link: Option<Link>) {
        let gone = link.is_none();
        *self.link.write().unwrap_or_else(PoisonError::into_inner) = link;
        if gone {
            self.drop_meter();
        }
    }

    /// Whether there is a meter for the present run that nobody uses.
    pub(super) fn has_meter(&self) -> bool {
        let now = self.run().generation;
        matches!(&*lock(&self.meter), MeterPlace::Here(of, _) if *of == now)
    }

    /// True once for a running guest that has none; whoever is told so opens one.
    pub(super) fn wants_meter(&self) -> bool {
        let (now, runs) = (self.run().generation, self.link().is_some());
        let mut place = lock(&self.meter);
        let wants = match *place {
            MeterPlace::Absent => true,
            MeterPlace::Here(of, _) | MeterPlace::Refused(of) => of != now,
            MeterPlace::Away => false,
        };
        if wants && runs {
            *place = MeterPlace::Away;
        }
        wants && runs
    }

    /// Takes it away from other readers until it is given back.
    pub(super) fn take_meter(&self) -> Option<(i64, Meter)> {
        let mut place = lock(&self.meter);
        match std::mem::replace(&mut *place, MeterPlace::Away) {
            MeterPlace::Here(of, meter) => Some((of, meter)),
            other => {
                *place = other;
                None
            }
        }
    }

    /// Gives it back, unless its run has ended meanwhile.
    pub(super) fn keep_meter(&self, generation: i64, meter: Meter) {
        let mut place = lock(&self.meter);
        // Looked at under the lock: an end that comes later finds the meter and drops it.
        let lasts = self.link().is_some() && self.run().generation == generation;
        *place = match lasts {
            true => MeterPlace::Here(generation, meter),
            false => MeterPlace::Absent,
        };
    }

    pub(super) fn refuse_meter(&self, generation: i64) {
        *lock(&self.meter) = MeterPlace::Refused(generation);
    }

    pub(super) fn drop_meter(&self) {
        *lock(&self.meter) = MeterPlace::Absent;
    }

    /// Waits until no other operation runs, not for ever.
    pub(super) async fn begin(&self, operation: &'static str) -> Result<Busy<'_>, Error> {
        let guard = tokio::time::timeout(BUSY_PATIENCE, self.busy.lock())
            .await
            .map_err(|_| {
                let other = *lock(&self.operation);
                Error::precondition(
                    "BUSY",
                    format!("Instance is busy running a {other:?} operation"),
                )
            })?;
        if *lock(&self.deleted) {
            return Err(Error::not_found("Instance", &self.record().name));
        }
        *lock(&self.operation) = operation;
        Ok(Busy {
            _guard: guard,
            slot: self,
        })
    }

    /// What runs now, empty when nothing does.
    pub(super) fn operation(&self) -> &'static str {
        *lock(&self.operation)
    }

    pub(super) fn set_deleted(&self) {
        *lock(&self.deleted) = true;
    }

    pub(super) fn ask(&self, asked: Option<Asked>) {
        *lock(&self.asked) = asked;
    }

    pub(super) fn asked(&self) -> Option<Asked> {
        lock(&self.asked).clone()
    }

    pub(super) fn set_unclaimed(&self, unclaimed: bool) {
        *lock(&self.unclaimed) = unclaimed;
    }

    /// True once for a guest whose start was interrupted after it ran.
    pub(super) fn claim(&self) -> bool {
        std::mem::take(&mut *lock(&self.unclaimed))
    }

    pub(super) fn keep_failed_exec(&self, id: &str, code: i32) {
        let mut failed = lock(&self.failed_execs);
        if failed.len() >= FAILED_EXECS {
            failed.remove(0);
        }
        failed.retain(|(other, _)| other != id);
        failed.push((id.to_owned(), code));
    }

    pub(super) fn failed_exec(&self, id: &str) -> Option<i32> {
        lock(&self.failed_execs)
            .iter()
            .find(|(other, _)| other == id)
            .map(|(_, code)| *code)
    }

    pub(super) fn forget_failed_exec(&self, id: &str) {
        lock(&self.failed_execs).retain(|(other, _)| other != id);
    }
}
