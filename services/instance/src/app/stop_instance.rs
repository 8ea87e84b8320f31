//! Stopping and restarting a guest.

use std::sync::Arc;
use std::time::Duration;

use berth_monitor::error::FaultCode;
use berth_monitor::protocol::{Request, StopHow as MonitorStop};
use berth_server::failpoint;

use super::slot::Asked;
use super::{App, Slot, View};
use crate::Error;
use crate::model::record::{Instance, Status};
use crate::runtime::link::LinkError;

/// A killed guest is gone within milliseconds; this long only when the kernel is stuck.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopHow {
    /// Kill instead of asking.
    pub force: bool,
    /// Seconds a graceful stop may take; 0 and less: for ever.
    pub timeout_seconds: i32,
}

fn already_stopped() -> Error {
    Error::precondition("ALREADY_STOPPED", "The instance is already stopped")
}

impl App {
    /// Stops a running guest and answers once it is gone.
    pub async fn stop(
        self: &Arc<Self>,
        project: &str,
        name: &str,
        how: StopHow,
        request_id: &str,
    ) -> Result<View, Error> {
        let slot = self.slot(project, name)?;
        let asked = Asked {
            force: how.force,
            request_id: request_id.to_owned(),
            ..Asked::default()
        };
        // A graceful stop that hangs is what a forced one is for: it goes past the queue.
        if how.force
            && matches!(slot.operation(), "stop" | "restart")
            && slot.run().status.is_active()
        {
            return self.stop_now(&slot, how, asked).await;
        }
        let _busy = slot.begin("stop").await?;
        self.stop_now(&slot, how, asked).await
    }

    pub(super) async fn stop_now(
        &self,
        slot: &Arc<Slot>,
        how: StopHow,
        asked: Asked,
    ) -> Result<View, Error> {
        let before = slot.run();
        if before.status == Status::Error {
            return Err(Error::unavailable(before.message));
        }
        let Some(link) = slot.link().filter(|_| before.status.is_active()) else {
            return Err(already_stopped());
        };
        failpoint::pass("instance.stop.begin").await?;
        slot.ask(Some(asked));
        let mut gone = slot.watch_run();
        let request = if how.force {
            MonitorStop::Kill
        } else {
            if before.status == Status::Frozen {
                // A frozen guest does not hear.
                self.thaw_all(&link).await?;
            }
            let seconds = u64::try_from(how.timeout_seconds).unwrap_or(0);
            MonitorStop::Graceful {
                timeout_ms: seconds * 1000,
            }
        };
        let request = Request::Stop { how: request };
        let answered = match how.force {
            true => link.call_within(KILL_PATIENCE, request).await,
            false => link.call(request).await,
        };
        match answered {
            // The monitor ends after it: its end may come before its answer.
            Ok(_) | Err(LinkError::Gone) => {}
            Err(LinkError::Fault(fault)) if fault.code == FaultCode::Timeout => {
                slot.ask(None);
                let why = "Failed shutting down instance, status is \"Running\": context deadline exceeded";
                return Err(Error::precondition("SHUTDOWN_TIMEOUT", why));
            }
            Err(error) => {
                slot.ask(None);
                return Err(super::live::link_error(error, "Stopping the instance"));
            }
        }
        let stopped = gone.wait_for(|run| {
            run.generation > before.generation
                || matches!(
                    run.status,
                    Status::Stopped | Status::Starting | Status::Error
                )
        });
        match tokio::time::timeout(KILL_PATIENCE, stopped).await {
            Ok(Ok(_)) => Ok(self.view(slot)),
            Ok(Err(error)) => Err(Error::internal(error)),
            Err(_) => Err(Error::unavailable(
                "The guest was stopped, and its end is not known yet",
            )),
        }
    }

    /// Stops and starts again; ephemeral instances stay.
    pub async fn restart(
        self: &Arc<Self>,
        project: &str,
        name: &str,
        how: StopHow,
        request_id: &str,
    ) -> Result<View, Error> {
        let slot = self.slot(project, name)?;
        let _busy = slot.begin("restart").await?;
        if !slot.run().status.is_active() {
            return Err(Error::precondition(
                "NOT_RUNNING",
                "The instance isn't running",
            ));
        }
        let asked = Asked {
            force: how.force,
            restart: true,
            ..Asked::default()
        };
        self.stop_now(&slot, how, asked).await?;
        self.start_now(&slot, "instance-restarted", request_id)
            .await
    }

    /// Removes what a run put into the record. The record's `running` says whether it should run again.
    pub(super) fn note_stop(record: &mut Instance, generation: i64, keep_running: bool) {
        forget_run_keys(record);
        record.generation = record.generation.max(generation);
        record.running = keep_running;
        let power = if keep_running { "RUNNING" } else { "STOPPED" };
        record
            .config
            .insert("volatile.last_state.power".to_owned(), power.to_owned());
    }
}

/// Keys that are true only during a run.
pub(super) fn forget_run_keys(record: &mut Instance) {
    record
        .config
        .retain(|key, _| !(key.starts_with("volatile.") && key.ends_with(".host_name")));
}
