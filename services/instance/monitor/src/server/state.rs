//! Answering what the guest is doing, in one round trip.

use super::Monitor;
use crate::error::Result;
use crate::netlink::links;
use crate::protocol::{HelloReply, PROTOCOL_VERSION, State, Status};

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

    pub(super) fn state(&self, with_network: bool) -> Result<State> {
        let links = match with_network {
            true => links::read(&self.run.guest_route, &self.spec.nics)?,
            false => Vec::new(),
        };
        let (pids, pids_limit) = self.run.cgroup.pids();
        Ok(State {
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
            cpu_ns: self.run.cgroup.cpu_ns(),
            memory: self.run.cgroup.memory(),
            pids,
            pids_limit,
            links,
            frozen_by: self.freeze.holders(),
            console_attached: self.console.attached.is_some(),
        })
    }
}
