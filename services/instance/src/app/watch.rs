//! One task for each running guest: it hears what the monitor tells and makes it so in the database.

use std::sync::Arc;
use std::time::Duration;

use berth_monitor::protocol::{Ended, Event, ExitReason, Reply, Request, State};

use super::start_instance::note_start;
use super::{App, Run, Slot, event, lock};
use crate::Error;
use crate::model::record::Status;
use crate::runtime::link::{Events, Link};

/// A monitor that lives takes a connection at once; it ended when none of these is taken.
const RECONNECTS: u32 = 3;
/// A monitor that lives greets at once; one that does not in this time is stuck.
const GREETING: Duration = Duration::from_secs(2);
/// Between tries to write down an end while the database refuses.
const RETRY: Duration = Duration::from_secs(2);

/// A connection that hears events, and the guest's state at its beginning.
pub(super) type Connected = (Link, Events, Box<State>);

impl App {
    pub(super) fn spawn_watch(self: &Arc<Self>, slot: &Arc<Slot>, events: Events) {
        let (app, slot) = (self.clone(), slot.clone());
        tokio::spawn(async move { app.watch(&slot, events).await });
    }

    async fn watch(self: Arc<Self>, slot: &Arc<Slot>, mut events: Events) {
        loop {
            while let Some((event, _payload)) = events.recv().await {
                match event {
                    Event::Stopped(ended) => return self.ended(slot, Some(ended)).await,
                    other => self.heard(slot, other).await,
                }
            }
            match self.reconnect(slot).await {
                Some((again, more)) => {
                    slot.set_link(Some(again));
                    events = more;
                }
                None => {
                    let ended = self.runtime.ended(&slot.uid).await;
                    return self.ended(slot, ended).await;
                }
            }
        }
    }

    async fn heard(&self, slot: &Slot, event: Event) {
        match event {
            Event::InitExited { reason, .. } if reason != ExitReason::Reboot => {
                slot.set_status(Status::Stopping);
            }
            Event::Rebooted { run, init_pid, .. } => self.rebooted(slot, run, init_pid).await,
            Event::Frozen => slot.set_status(Status::Frozen),
            Event::Thawed if slot.run().status == Status::Frozen => {
                slot.set_status(Status::Running)
            }
            Event::Refused { fault } => {
                tracing::warn!(uid = slot.uid, %fault, "the monitor refused")
            }
            _ => {}
        }
    }

    /// The guest rebooted itself: a new run, in the same monitor.
    async fn rebooted(&self, slot: &Slot, number: u64, pid: i32) {
        let now = slot.run();
        let generation = now.base + i64::try_from(number).unwrap_or(1) - 1;
        let run = Run {
            status: Status::Running,
            generation,
            pid,
            ..now
        };
        slot.set_run(run.clone());
        let event = event("instance-restarted", &slot.record(), generation);
        // Every change of the configuration went into the spec of the next run.
        let privileged = self.expand(&slot.record()).privileged();
        let committed = self
            .commit(slot, Some(run), "", Some(event), |record| {
                note_start(record, generation, privileged);
                Ok(())
            })
            .await;
        if let Err(error) = committed {
            // The next event or the next start of this service writes it.
            tracing::error!(uid = slot.uid, %error, "a reboot was not written down");
        }
    }

    async fn reconnect(&self, slot: &Slot) -> Option<(Link, Events)> {
        for _ in 0..RECONNECTS {
            match self.connect_guest(slot).await {
                Ok(Some((link, events, state))) => {
                    self.take_state(slot, &state);
                    return Some((link, events));
                }
                Ok(None) => return None,
                Err(error) => tracing::warn!(uid = slot.uid, %error, "the monitor is not reached"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        None
    }

    /// A connection that hears the monitor's events; `None` when there is no monitor.
    pub(super) async fn connect_guest(&self, slot: &Slot) -> Result<Option<Connected>, Error> {
        use std::io::ErrorKind;
        let stream = match self.runtime.connect(&slot.uid).await {
            Ok(stream) => stream,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(Error::internal(error)),
        };
        let greeted = tokio::time::timeout(GREETING, Link::greet(stream)).await;
        let (link, events, hello) = greeted
            .map_err(|_| Error::unavailable("The instance's monitor does not answer"))?
            .map_err(|e| Error::internal(e.to_string()))?;
        if hello.uid != slot.uid {
            return Err(Error::internal(
                "the monitor at this instance's socket is another's",
            ));
        }
        match link.call_within(GREETING, Request::Subscribe).await {
            Ok((Reply::State(state), _)) => Ok(Some((link, events, state))),
            Ok(_) => Err(Error::internal("unexpected answer of the monitor")),
            Err(error) => Err(Error::internal(error.to_string())),
        }
    }

    /// The run as the monitor tells it.
    pub(super) fn take_state(&self, slot: &Slot, state: &State) -> Run {
        use berth_monitor::protocol::Status as Monitor;
        let number = i64::try_from(state.run).unwrap_or(1);
        let base = i64::try_from(state.generation).unwrap_or_default();
        let run = Run {
            status: match state.status {
                Monitor::Running => Status::Running,
                Monitor::Freezing => Status::Freezing,
                Monitor::Frozen => Status::Frozen,
                Monitor::Stopping => Status::Stopping,
            },
            generation: base + number - 1,
            base,
            pid: state.init_pid,
            message: String::new(),
        };
        slot.set_run(run.clone());
        run
    }

    /// The guest is gone. Without `ended` its monitor was killed, and what it left is removed.
    pub(super) async fn ended(self: &Arc<Self>, slot: &Arc<Slot>, ended: Option<Ended>) {
        slot.set_link(None);
        // A monitor that ended in order still removes its links, under the lock in its run directory.
        if ended.is_none()
            && let Err(error) = self.runtime.clean(&slot.uid, true).await
        {
            tracing::error!(uid = slot.uid, %error, "what the guest's monitor left was not removed");
        }
        lock(&self.cpus).release(&slot.uid);
        // Before it is said to be stopped: a start after that loads it again.
        self.apparmor.unload(&slot.uid).await;
        while let Err(error) = self.commit_end(slot, ended.as_ref()).await {
            tracing::error!(uid = slot.uid, %error, "the end of a run was not written down yet");
            tokio::time::sleep(RETRY).await;
        }
        let app = self.clone();
        tokio::spawn(async move { app.rebalance().await });
    }

    async fn commit_end(&self, slot: &Slot, ended: Option<&Ended>) -> Result<(), Error> {
        let asked = slot.asked();
        let now = slot.run();
        let generation = match ended {
            Some(e) => {
                now.base
                    .max(i64::try_from(e.generation).unwrap_or_default())
                    + i64::try_from(e.run).unwrap_or(1)
                    - 1
            }
            None => now.generation,
        };
        let message = end_message(ended);
        let run = Run {
            message,
            ..Run::stopped(generation)
        };
        let restart = asked.as_ref().is_some_and(|a| a.restart);
        let keep_running = restart || asked.as_ref().is_some_and(|a| a.keep_running);
        let record = slot.record();
        let action = match &asked {
            Some(asked) if asked.force => "instance-stopped",
            _ => "instance-shutdown",
        };
        let mut event = event(action, &record, generation);
        if let Some(ended) = ended {
            let reason = serde_json::to_value(ended.reason).ok();
            let reason = reason
                .and_then(|r| r.as_str().map(str::to_owned))
                .unwrap_or_default();
            event.attributes.insert("reason".to_owned(), reason);
        } else {
            event
                .attributes
                .insert("reason".to_owned(), "monitor_died".to_owned());
        }
        if record.ephemeral && !restart {
            event
                .attributes
                .insert("ephemeral".to_owned(), "true".to_owned());
        }
        let request_id = asked.map(|a| a.request_id).unwrap_or_default();
        let told = (!restart).then_some(event);
        self.commit(slot, Some(run.clone()), &request_id, told, |record| {
            App::note_stop(record, generation, keep_running);
            Ok(())
        })
        .await?;
        slot.ask(None);
        slot.set_run(run);
        Ok(())
    }
}

fn end_message(ended: Option<&Ended>) -> String {
    let Some(ended) = ended else {
        return "The instance's monitor died".to_owned();
    };
    match (ended.reason, &ended.fault) {
        (ExitReason::RestartFailed, Some(fault)) => format!("Restarting it failed: {fault}"),
        (ExitReason::RebootLoop, _) => "It rebooted too often and was not started again".to_owned(),
        (ExitReason::Crash, _) => "Its init ended by itself".to_owned(),
        _ => String::new(),
    }
}
