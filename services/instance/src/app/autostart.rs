//! Starting guests after the host booted, in waves: by priority, a few at once, with the delays asked for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;

use super::{App, Slot};
use crate::Error;
use crate::model::expand::Expanded;
use crate::model::record::{Instance, Status};
use crate::model::value;

/// One guest to start.
struct Due {
    slot: Arc<Slot>,
    priority: i64,
    delay: Duration,
}

/// `boot.autostart` decides; without it, whether it ran when the host went down.
fn wants_start(record: &Instance, expanded: &Expanded) -> bool {
    match expanded.get("boot.autostart").and_then(value::boolean) {
        Some(wanted) => wanted,
        None => record.running,
    }
}

impl App {
    /// Starts what is due when this is the first start of the service since the host booted.
    pub async fn autostart(self: &Arc<Self>) -> Result<usize, Error> {
        let booted = self.records.boot_id().await?;
        if booted.as_deref() == Some(self.facts.boot_id.as_str()) {
            return Ok(0);
        }
        // Written first: a service that dies on the way must not start guests again that a user stopped since.
        self.records.set_boot_id(&self.facts.boot_id).await?;
        if !self.settings.autostart {
            return Ok(0);
        }
        let mut due = self.due();
        due.sort_by_key(|d| (std::cmp::Reverse(d.priority), d.slot.record().name.clone()));
        let mut started = 0;
        let mut rest = due.as_slice();
        while let Some(first) = rest.first() {
            let end = rest
                .iter()
                .position(|d| d.priority != first.priority)
                .unwrap_or(rest.len());
            let (wave, later) = rest.split_at(end);
            started += self.start_wave(wave).await;
            rest = later;
        }
        Ok(started)
    }

    fn due(&self) -> Vec<Due> {
        let slots = self.slots("-").into_iter();
        let due = slots.filter_map(|slot| {
            let record = slot.record();
            let expanded = self.expand(&record);
            if slot.run().status != Status::Stopped || !wants_start(&record, &expanded) {
                return None;
            }
            let number = |key: &str| expanded.get(key).and_then(|t| t.parse::<i64>().ok());
            let delay = number("boot.autostart.delay").and_then(|d| u64::try_from(d).ok());
            Some(Due {
                priority: number("boot.autostart.priority").unwrap_or(0),
                delay: Duration::from_secs(delay.unwrap_or(0)),
                slot,
            })
        });
        due.collect()
    }

    /// Guests of one priority: side by side unless one asks that others wait after it.
    async fn start_wave(self: &Arc<Self>, wave: &[Due]) -> usize {
        let parallel = match wave.iter().any(|d| !d.delay.is_zero()) {
            true => 1,
            false => self.settings.autostart_parallel.max(1),
        };
        let mut starts = Vec::new();
        for due in wave {
            starts.push(start_one(self.clone(), due.slot.clone(), due.delay));
        }
        let done = futures::stream::iter(starts).buffer_unordered(parallel);
        done.fold(0, |n, one| async move { n + one }).await
    }
}

/// How often a start is tried, and how long between: a bridge or a pool may come up a little later.
const TRIES: u32 = 3;
const BETWEEN: Duration = Duration::from_secs(5);

async fn start_one(app: Arc<App>, slot: Arc<Slot>, delay: Duration) -> usize {
    let record = slot.record();
    let mut tried = 0;
    let started = loop {
        tried += 1;
        match app.start(&record.project, &record.name, "").await {
            Ok(_) => break true,
            Err(error) => {
                tracing::error!(instance = %record.resource(), tried, %error, "autostart failed");
            }
        }
        let stays_down = app.closing.load(Ordering::SeqCst) || slot.run().status.is_active();
        if tried == TRIES || stays_down {
            break false;
        }
        tokio::time::sleep(BETWEEN).await;
    };
    tokio::time::sleep(delay).await;
    usize::from(started)
}
