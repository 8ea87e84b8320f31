//! Freezing, as long as somebody holds it. A holder with a lease is forgotten when it runs out, so that a
//! service that dies in the middle of a snapshot never leaves a guest frozen.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::watch::{Token, Watched};
use super::{Asker, Monitor, not_found};
use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::protocol::{Event, Reply, Status};
use crate::sys;
use crate::sys::poll::PRI;

/// Longest a guest may take to freeze (a task in an uninterruptible sleep cannot).
const PATIENCE: Duration = Duration::from_secs(10);
/// v1 has no notification: asked again this often while freezing.
const V1_TICK: Duration = Duration::from_millis(1);

#[derive(Default)]
pub(super) struct Freeze {
    /// Holder → end of its lease.
    holders: BTreeMap<String, Option<Instant>>,
    phase: Phase,
    waiting: Vec<(Asker, String)>,
    events: Option<Watched>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Thawed,
    /// Since when, and when to look again (v1).
    Freezing {
        until: Instant,
        look_at: Option<Instant>,
    },
    Frozen,
}

impl Freeze {
    pub(super) fn deadline(&self) -> Option<Instant> {
        let lease = self.holders.values().flatten().min().copied();
        let phase = match self.phase {
            Phase::Freezing { until, look_at } => Some(look_at.unwrap_or(until)),
            _ => None,
        };
        [lease, phase].into_iter().flatten().min()
    }

    pub(super) fn is_thawed(&self) -> bool {
        self.phase == Phase::Thawed
    }

    pub(super) fn status(&self) -> Status {
        match self.phase {
            Phase::Thawed => Status::Running,
            Phase::Freezing { .. } => Status::Freezing,
            Phase::Frozen => Status::Frozen,
        }
    }

    pub(super) fn holders(&self) -> Vec<String> {
        self.holders.keys().cloned().collect()
    }
}

impl Monitor {
    pub(super) fn freeze(&mut self, asker: Asker, holder: String, lease_seconds: Option<u32>) {
        let lease = lease_seconds.map(|s| Instant::now() + Duration::from_secs(s.into()));
        self.freeze.holders.insert(holder.clone(), lease);
        self.freeze.waiting.push((asker, holder));
        match self.freeze.phase {
            Phase::Frozen => self.answer_frozen(Ok(())),
            Phase::Freezing { .. } => {}
            Phase::Thawed => {
                if let Err(fault) = self.begin_freezing() {
                    self.give_up_freezing(&fault);
                }
            }
        }
    }

    fn begin_freezing(&mut self) -> Result<()> {
        let events = self.run.cgroup.events();
        let now = Instant::now();
        let look_at = events.is_none().then(|| now + V1_TICK);
        self.freeze.events = match events {
            Some(fd) => {
                let mut watched = Watched::new(fd, Token::Freeze.raw());
                watched
                    .watch(&self.poller, PRI)
                    .at("freeze", "watching cgroup.events")?;
                Some(watched)
            }
            None => None,
        };
        self.freeze.phase = Phase::Freezing {
            until: now + PATIENCE,
            look_at,
        };
        self.run.cgroup.set_frozen(true)?;
        self.check_frozen();
        Ok(())
    }

    /// After a notification, a tick, or the request itself.
    pub(super) fn check_frozen(&mut self) {
        if let Some(events) = &self.freeze.events {
            // Reading this very descriptor arms the next notification.
            let mut buffer = [0; 256];
            if let Err(e) = rustix::io::pread(events, &mut buffer, 0) {
                crate::log::line(format_args!("reading cgroup.events: {e}"));
            }
        }
        let Phase::Freezing { until, .. } = self.freeze.phase else {
            return;
        };
        match self.run.cgroup.frozen() {
            Ok(true) => {
                self.freeze.phase = Phase::Frozen;
                self.freeze.events = None;
                self.answer_frozen(Ok(()));
                self.announce(&Event::Frozen);
            }
            Ok(false) => {
                let look_at = self
                    .freeze
                    .events
                    .is_none()
                    .then(|| Instant::now() + V1_TICK);
                self.freeze.phase = Phase::Freezing { until, look_at };
            }
            Err(fault) => self.give_up_freezing(&fault),
        }
    }

    fn answer_frozen(&mut self, result: Result<()>) {
        for (asker, _) in std::mem::take(&mut self.freeze.waiting) {
            self.answer(asker, result.clone().map(|()| Reply::Done));
        }
    }

    /// Those who waited get the fault and hold nothing; without another holder the guest goes on.
    fn give_up_freezing(&mut self, fault: &Fault) {
        for (asker, holder) in std::mem::take(&mut self.freeze.waiting) {
            self.freeze.holders.remove(&holder);
            self.answer(asker, Err(fault.clone()));
        }
        self.thaw_if_unheld();
    }

    fn thaw_if_unheld(&mut self) {
        if !self.freeze.holders.is_empty() || self.freeze.is_thawed() {
            return;
        }
        self.freeze.events = None;
        self.freeze.phase = Phase::Thawed;
        let gone = Fault::new("freeze", FaultCode::State, "thawed before it was frozen");
        self.answer_frozen(Err(gone));
        match self.run.cgroup.set_frozen(false) {
            Ok(()) => self.announce(&Event::Thawed),
            Err(fault) => crate::log::line(format_args!("cannot thaw: {fault}")),
        }
    }

    pub(super) fn thaw(&mut self, holder: &str) -> Result<Reply> {
        self.freeze
            .holders
            .remove(holder)
            .ok_or_else(|| not_found("freeze holder", holder))?;
        self.thaw_if_unheld();
        Ok(Reply::Done)
    }

    /// Whoever holds it: a stop wins.
    pub(super) fn thaw_for_good(&mut self) {
        self.freeze.holders.clear();
        self.thaw_if_unheld();
    }

    /// A new run is not frozen, and nobody holds it.
    pub(super) fn forget_freeze(&mut self) {
        self.freeze.phase = Phase::Thawed;
        let gone = Fault::new("freeze", FaultCode::State, "the guest ended");
        self.answer_frozen(Err(gone));
        self.freeze = Freeze::default();
    }

    pub(super) fn freeze_deadlines(&mut self, now: Instant) {
        self.freeze.holders.retain(|holder, lease| {
            let over = lease.is_some_and(|l| l <= now);
            if over {
                crate::log::line(format_args!("the freeze lease of {holder} ran out"));
            }
            !over
        });
        self.thaw_if_unheld();
        if let Phase::Freezing { until, look_at } = self.freeze.phase {
            if until <= now {
                let text = "not all tasks of the guest froze in time";
                self.give_up_freezing(&Fault::new("freeze", FaultCode::Timeout, text));
            } else if look_at.is_some_and(|t| t <= now) {
                self.check_frozen();
            }
        }
    }
}

/// Signals wait for a frozen guest's thaw; execs would freeze half started.
pub(super) fn refuse_frozen(freeze: &Freeze) -> Result<()> {
    match freeze.is_thawed() {
        true => Ok(()),
        false => Err(super::wrong_state("the guest is frozen")),
    }
}

/// Sends a signal to init.
pub(super) fn signal_init(run: &crate::start::Run, signal: i32) -> Result<Reply> {
    if !(1..=libc::SIGRTMAX()).contains(&signal) {
        return Err(super::invalid(format!("{signal} is no signal")));
    }
    sys::pidfd_signal(&run.init.pidfd, signal).at("signal", format!("sending {signal} to init"))?;
    Ok(Reply::Done)
}
