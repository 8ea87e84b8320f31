//! What guests use now. It is read in this process where that is possible, and asked of the monitor where it is not.

use std::sync::Arc;

use berth_monitor::protocol::{Reply, Request};
use futures::future::join_all;

use super::{App, Slot, View};
use crate::Error;
use crate::model::spec;
use crate::runtime::Numbers;

/// Fewer guests than this are not worth another thread.
const SMALLEST_SHARE: usize = 8;

/// Live numbers, or why there are none.
#[derive(Debug, Clone, Default)]
pub struct LiveState {
    pub numbers: Option<Numbers>,
    /// Set when a part is missing.
    pub unknown: String,
    /// Memory that the guest may use: its limit, or the host's.
    pub memory_total: u64,
}

impl App {
    /// States of guests, in their order; a stopped one has an empty state. A stuck guest delays nobody beyond its
    /// own deadline.
    pub async fn states(self: &Arc<Self>, slots: &[Arc<Slot>]) -> Vec<LiveState> {
        let measured = self.measure_all(slots).await;
        let states = slots.iter().zip(measured).map(|(slot, numbers)| async {
            match numbers {
                Some(numbers) => self.live(numbers),
                None => self.ask_state(slot).await,
            }
        });
        join_all(states).await
    }

    /// One instance with its state.
    pub async fn get_state(
        self: &Arc<Self>,
        project: &str,
        name: &str,
    ) -> Result<(View, LiveState), Error> {
        let slot = self.slot(project, name)?;
        let live = self.states(std::slice::from_ref(&slot)).await.pop();
        Ok((self.view(&slot), live.unwrap_or_default()))
    }

    fn live(&self, numbers: Numbers) -> LiveState {
        let host = self.facts.memory_bytes;
        LiveState {
            memory_total: numbers.memory.limit.map_or(host, |limit| limit.min(host)),
            numbers: Some(numbers),
            unknown: String::new(),
        }
    }

    async fn ask_state(&self, slot: &Slot) -> LiveState {
        let nothing = |unknown| LiveState {
            numbers: None,
            unknown,
            memory_total: self.facts.memory_bytes,
        };
        let Some(link) = slot.link() else {
            return nothing(String::new());
        };
        let asked = Request::GetState {
            without_network: false,
        };
        match link.call_within(self.settings.state_deadline, asked).await {
            Ok((Reply::State(state), _)) => self.live(Numbers::from(*state)),
            Ok(_) => nothing("The instance's monitor gave another answer".to_owned()),
            Err(error) => nothing(error.to_string()),
        }
    }

    /// Numbers of those guests that have a meter. Those without get one for the next time.
    async fn measure_all(self: &Arc<Self>, slots: &[Arc<Slot>]) -> Vec<Option<Numbers>> {
        let mut all: Vec<Option<Numbers>> = vec![None; slots.len()];
        let (mut ready, mut wanting) = (Vec::new(), Vec::new());
        for (number, slot) in slots.iter().enumerate() {
            if slot.has_meter() {
                ready.push((number, slot.clone()));
            } else if slot.wants_meter() {
                wanting.push(slot.clone());
            }
        }
        if !wanting.is_empty() {
            let app = self.clone();
            tokio::task::spawn_blocking(move || app.open_meters(&wanting));
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = ready.len().div_ceil(threads).max(SMALLEST_SHARE);
        let shares = ready.chunks(share).map(|share| {
            let (app, share) = (self.clone(), share.to_vec());
            let work = move || -> Vec<(usize, Option<Numbers>)> {
                let measured = share
                    .iter()
                    .map(|(number, slot)| (*number, app.measure(slot)));
                measured.collect()
            };
            // What the kernel keeps waiting is asked of the monitor, which has a deadline of its own.
            tokio::time::timeout(
                self.settings.state_deadline,
                tokio::task::spawn_blocking(work),
            )
        });
        for measured in join_all(shares).await.into_iter().flatten().flatten() {
            for (number, numbers) in measured {
                all[number] = numbers;
            }
        }
        all
    }

    fn measure(&self, slot: &Slot) -> Option<Numbers> {
        let (generation, mut meter) = slot.take_meter()?;
        let record = slot.record();
        let ports = record
            .ports
            .keys()
            .filter_map(|name| spec::nic(&record, name).ok());
        let ports: Vec<_> = ports.collect();
        match self.runtime.measure(&slot.uid, &mut meter, &ports) {
            Ok(numbers) => {
                slot.keep_meter(generation, meter);
                Some(numbers)
            }
            Err(error) => {
                tracing::debug!(uid = slot.uid, %error, "a guest's numbers were not read");
                slot.drop_meter();
                None
            }
        }
    }

    /// One after another: a monitor that hangs costs its guests' neighbours nothing but their own meters.
    fn open_meters(&self, slots: &[Arc<Slot>]) {
        for slot in slots {
            let generation = slot.run().generation;
            match self.runtime.open_meter(&slot.uid) {
                Ok(meter) => slot.keep_meter(generation, meter),
                Err(error) => {
                    tracing::debug!(uid = slot.uid, %error, "a guest's monitor is asked for its numbers");
                    match error.errno {
                        // It did not answer in time; it may the next time.
                        libc::EAGAIN => slot.drop_meter(),
                        _ => slot.refuse_meter(generation),
                    }
                }
            }
        }
    }
}
