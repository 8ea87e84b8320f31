//! Answering what the guest is doing, in one round trip.

use super::Monitor;
use crate::cgroup::stats::Counters;
use crate::error::Result;
use crate::netlink::links;
use crate::protocol::{HelloReply, MemoryState, PROTOCOL_VERSION, State, Status};

impl Monitor {
    pub(super) fn hello(&self) -> HelloReply {
        HelloReply {
            version: PROTOCOL_VERSION,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            uid: self.spec.uid.clone(),
            project: self.spec.project.clone(),
            name: self.spec.name.clone(),
            generation: self.spec.generation,
            monitor_pid: std::process::id() as i32,
        }
    }

    /// With all numbers.
    pub(super) fn state(&self, with_network: bool) -> Result<State> {
        let mut state = self.brief_state();
        if with_network {
            state.links = links::read(&self.run.guest_route)?;
            links::name_hosts(&mut state.links, &self.spec.nics);
        }
        let cgroup = &self.run.cgroup;
        state.cpu_ns = cgroup.cpu_ns();
        state.memory = MemoryState {
            inactive_file: cgroup.inactive_file(),
            oom_kills: cgroup.oom_kills(),
            ..cgroup.memory()
        };
        (state.pids, state.pids_limit) = (cgroup.pids(), cgroup.pids_limit());
        Ok(state)
    }

    /// Which run it is and how it is, without what it uses.
    pub(super) fn brief_state(&self) -> State {
        State {
            status: if self.stop.is_some() {
                Status::Stopping
            } else {
                self.freeze.status()
            },
            generation: self.spec.generation,
            run: self.run_number,
            init_pid: self.run.init.pid,
            monitor_pid: std::process::id() as i32,
            started_at_ms: self.run.started_at_ms,
            uptime_ms: self.run.started.elapsed().as_millis() as u64,
            cpu_ns: None,
            memory: MemoryState::default(),
            pids: None,
            pids_limit: None,
            links: Vec::new(),
            frozen_by: self.freeze.holders(),
            console_attached: self.console.attached.is_some(),
        }
    }
}
