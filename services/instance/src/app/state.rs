//! What a guest uses now: one question to its monitor, and none to anybody else.

use std::sync::Arc;

use berth_monitor::protocol::{Reply, Request, State};
use futures::future::join_all;

use super::{App, Slot, View};
use crate::Error;

/// Live numbers, or why there are none.
#[derive(Debug, Clone, Default)]
pub struct LiveState {
    pub state: Option<Box<State>>,
    /// Set when a part is missing.
    pub unknown: String,
    /// Memory that the guest may use: its limit, or the host's.
    pub memory_total: u64,
}

impl App {
    /// State of one instance; a stopped one has an empty state.
    pub async fn state(&self, slot: &Slot) -> LiveState {
        let mut live = LiveState {
            memory_total: self.facts.memory_bytes,
            ..LiveState::default()
        };
        let Some(link) = slot.link() else { return live };
        let asked = Request::GetState {
            without_network: false,
        };
        match link.call_within(self.settings.state_deadline, asked).await {
            Ok((Reply::State(state), _)) => {
                if let Some(limit) = state.memory.limit {
                    live.memory_total = live.memory_total.min(limit);
                }
                live.state = Some(state);
            }
            Ok(_) => live.unknown = "The instance's monitor gave another answer".to_owned(),
            Err(error) => live.unknown = error.to_string(),
        }
        live
    }

    /// All of them side by side; a stuck guest delays nobody beyond its own deadline.
    pub async fn states(&self, slots: &[Arc<Slot>]) -> Vec<LiveState> {
        join_all(slots.iter().map(|slot| self.state(slot))).await
    }

    /// One instance with its state.
    pub async fn get_state(&self, project: &str, name: &str) -> Result<(View, LiveState), Error> {
        let slot = self.slot(project, name)?;
        let live = self.state(&slot).await;
        Ok((self.view(&slot), live))
    }
}
