//! The host goes down: guests are stopped in order, and written down as running, so that the next boot starts them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::slot::Asked;
use super::stop_instance::StopHow;
use super::{App, Slot};
use crate::Error;
use crate::model::expand::Expanded;

/// `boot.host_shutdown_timeout` where it is not set, in seconds.
const TIMEOUT: i32 = 30;
/// No boot has this id: guests are due at the next start of guests, whether or not the host booted in between.
pub(super) const NO_BOOT: &str = "guests-stopped";

/// What became of the guests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stopped {
    /// How many ended by themselves, and how many were killed after their time.
    pub in_time: usize,
    pub killed: usize,
    /// Names of those that still run.
    pub left: Vec<String>,
}

enum Outcome {
    InTime,
    Killed,
    Left(String),
}

fn priority(expanded: &Expanded) -> i64 {
    let text = expanded.get("boot.stop.priority");
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Seconds; LXD takes 0 as no time at all.
fn timeout(expanded: &Expanded) -> i32 {
    let text = expanded.get("boot.host_shutdown_timeout");
    text.and_then(|text| text.parse().ok()).unwrap_or(TIMEOUT)
}

impl App {
    /// Stops every guest: those of the highest `boot.stop.priority` first, all of one priority side by side, each with
    /// its `boot.host_shutdown_timeout`, then by force. No guest starts until [`App::start_guests`].
    pub async fn stop_guests(self: &Arc<Self>) -> Result<Stopped, Error> {
        self.closing.store(true, Ordering::SeqCst);
        // First of all: should the power go on the way, what ran is due all the same.
        self.records.set_boot_id(NO_BOOT).await?;
        let mut all: Vec<(i64, i32, Arc<Slot>)> = self
            .slots("-")
            .into_iter()
            .map(|slot| {
                let expanded = self.expand(&slot.record());
                (priority(&expanded), timeout(&expanded), slot)
            })
            .collect();
        all.sort_by_key(|(priority, _, slot)| (std::cmp::Reverse(*priority), slot.uid.clone()));
        let mut stopped = Stopped::default();
        for wave in all.chunk_by(|a, b| a.0 == b.0) {
            let mut stops = tokio::task::JoinSet::new();
            for (_, timeout, slot) in wave {
                let (app, slot, timeout) = (self.clone(), slot.clone(), *timeout);
                stops.spawn(async move { app.stop_guest(&slot, timeout).await });
            }
            while let Some(done) = stops.join_next().await {
                match done.map_err(Error::internal)? {
                    Some(Outcome::InTime) => stopped.in_time += 1,
                    Some(Outcome::Killed) => stopped.killed += 1,
                    Some(Outcome::Left(name)) => stopped.left.push(name),
                    None => {}
                }
            }
        }
        tracing::info!(
            in_time = stopped.in_time,
            killed = stopped.killed,
            left = stopped.left.len(),
            "guests stopped for the host's shutdown"
        );
        Ok(stopped)
    }

    /// Lets guests start again; those that are due after a boot or after [`App::stop_guests`] are started.
    pub async fn start_guests(self: &Arc<Self>) -> Result<usize, Error> {
        self.closing.store(false, Ordering::SeqCst);
        self.autostart().await
    }

    /// `None`: it did not run.
    async fn stop_guest(self: &Arc<Self>, slot: &Arc<Slot>, seconds: i32) -> Option<Outcome> {
        let name = slot.record().name.clone();
        let asked = |force| Asked {
            force,
            keep_running: true,
            ..Asked::default()
        };
        // A start or another stop that is under way ends first; one that hangs does not hold up the shutdown.
        let busy = slot.begin("stop").await;
        if !slot.run().status.is_active() {
            return None;
        }
        let graceful = StopHow {
            force: false,
            timeout_seconds: seconds,
        };
        if seconds > 0 && busy.is_ok() {
            match self.stop_now(slot, graceful, asked(false)).await {
                Ok(_) => return Some(Outcome::InTime),
                Err(error) => tracing::warn!(instance = name, %error, "killed at shutdown"),
            }
        }
        let killed = StopHow {
            force: true,
            ..graceful
        };
        match self.stop_now(slot, killed, asked(true)).await {
            Ok(_) => Some(Outcome::Killed),
            Err(_) if !slot.run().status.is_active() => Some(Outcome::Killed),
            Err(error) => {
                tracing::error!(instance = name, %error, "still runs at shutdown");
                Some(Outcome::Left(name))
            }
        }
    }
}
