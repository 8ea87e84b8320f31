//! One request, one call.

use std::rc::Rc;

use super::freeze::signal_init;
use super::{Asker, Monitor, invalid, wrong_state};
use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::protocol::{PROTOCOL_VERSION, Reply, Request};
use crate::spec::Spec;
use crate::start;
use crate::sys;

impl Monitor {
    pub(super) fn handle(&mut self, asker: Asker, request: Request, payload: Vec<u8>) {
        let Some(conn) = self.conns.get_mut(&asker.conn) else {
            return;
        };
        if !conn.greeted && !matches!(request, Request::Hello { .. }) {
            conn.reply(
                &self.poller,
                asker.id,
                Err(invalid("the first request must be hello")),
            );
            conn.dead = true;
            return;
        }
        match request {
            // Answered later, or with more than a reply.
            Request::Stop { how } => self.request_stop(asker, how),
            Request::Reboot { how } => self.request_reboot(asker, how),
            Request::Freeze {
                holder,
                lease_seconds,
            } => self.freeze(asker, holder, lease_seconds),
            Request::StartExec(start) => self.start_exec(asker, start),
            Request::AttachExec {
                exec_id,
                stdout_offset,
                stderr_offset,
            } => {
                self.attach_exec(asker, &exec_id, [stdout_offset, stderr_offset]);
            }
            Request::AddMount { mount } => self.add_mount(asker, mount),
            Request::RemoveMount { name } => self.remove_mount(asker, &name),
            Request::AddDevice { device } => self.add_device(asker, device),
            Request::RemoveDevice { name } => self.remove_device(asker, &name),
            Request::OpenRoot => self.open_root(asker),
            Request::OpenRoute => self.open_route(asker),
            Request::GetConsoleLog => {
                let bytes = self.console.log_bytes();
                if let Some(conn) = self.conns.get_mut(&asker.conn) {
                    conn.reply_with(
                        &self.poller,
                        asker.id,
                        Ok(Reply::ConsoleLog),
                        &bytes,
                        Vec::new(),
                    );
                }
            }
            other => {
                let result = self.handle_now(asker, other, payload);
                self.answer(asker, result);
            }
        }
    }

    /// What is answered at once.
    fn handle_now(&mut self, asker: Asker, request: Request, payload: Vec<u8>) -> Result<Reply> {
        match request {
            Request::Hello { version } => self.greet(asker, version),
            Request::GetState { without_network } => {
                Ok(Reply::State(Box::new(self.state(!without_network)?)))
            }
            Request::Subscribe => {
                let state = self.brief_state();
                if let Some(conn) = self.conns.get_mut(&asker.conn) {
                    conn.subscribed = true;
                }
                Ok(Reply::State(Box::new(state)))
            }
            Request::Thaw { holder } => self.thaw(&holder),
            Request::UpdateLimits { limits } => {
                limits.validate()?;
                self.run.cgroup.apply(&limits, false)?;
                self.spec.limits = limits;
                Ok(Reply::Done)
            }
            Request::SignalInit { signal } => signal_init(&self.run, signal),
            Request::ReplaceSpec { spec } => self.replace_spec(*spec),
            Request::AddNic { nic } => self.add_nic(nic),
            Request::RemoveNic { name } => self.remove_nic(&name),
            Request::SetNicLink { name, up } => self.set_nic_link(&name, up),
            Request::DetachExec { exec_id } => self.detach_exec(asker, &exec_id),
            Request::AckExec {
                exec_id,
                stdout,
                stderr,
            } => self.ack_exec(&exec_id, [stdout, stderr]),
            Request::ExecStdin {
                exec_id,
                offset,
                eof,
            } => self.exec_stdin(&exec_id, offset, eof, &payload),
            Request::ResizeExec {
                exec_id,
                rows,
                cols,
            } => self.resize_exec(&exec_id, rows, cols),
            Request::SignalExec { exec_id, signal } => self.signal_exec(&exec_id, signal),
            Request::KillExec { exec_id } => self.signal_exec(&exec_id, libc::SIGKILL),
            Request::GetExec { exec_id } => self.exec_state(&exec_id).map(Reply::Exec),
            Request::ListExecs => Ok(Reply::Execs(self.exec_states())),
            Request::DeleteExec { exec_id } => self.delete_exec(&exec_id),
            Request::AttachConsole { force, size } => self.attach_console(asker, force, size),
            Request::DetachConsole => {
                if self.console.attached == Some(asker.conn) {
                    self.console.attached = None;
                }
                Ok(Reply::Done)
            }
            Request::ConsoleInput => self.console_input(asker, &payload),
            Request::ResizeConsole { size } => self.resize_console(size),
            Request::ClearConsoleLog => self.console.clear_log().map(|()| Reply::Done),
            Request::Stop { .. }
            | Request::Reboot { .. }
            | Request::Freeze { .. }
            | Request::StartExec(_)
            | Request::AttachExec { .. }
            | Request::AddMount { .. }
            | Request::RemoveMount { .. }
            | Request::AddDevice { .. }
            | Request::RemoveDevice { .. }
            | Request::OpenRoot
            | Request::OpenRoute
            | Request::GetConsoleLog => Err(invalid(
                "a request that is answered later came to the wrong place",
            )),
        }
    }

    fn greet(&mut self, asker: Asker, version: u32) -> Result<Reply> {
        let Some(conn) = self.conns.get_mut(&asker.conn) else {
            return Err(wrong_state("the connection is gone"));
        };
        if version < PROTOCOL_VERSION {
            let text =
                format!("protocol version {version} is not spoken here, {PROTOCOL_VERSION} is");
            return Err(Fault::new("request", FaultCode::Unsupported, text));
        }
        conn.greeted = true;
        Ok(Reply::Hello(self.hello()))
    }

    fn replace_spec(&mut self, spec: Spec) -> Result<Reply> {
        spec.validate()?;
        let same = spec.uid == self.spec.uid
            && spec.run_dir == self.spec.run_dir
            && spec.log_dir == self.spec.log_dir
            && spec.cgroup == self.spec.cgroup;
        if !same {
            return Err(invalid(
                "uid, run_dir, log_dir and cgroup cannot be replaced",
            ));
        }
        self.next_spec = Some(spec);
        Ok(Reply::Done)
    }

    fn open_root(&mut self, asker: Asker) {
        let opened = self.root_descriptors();
        let Some(conn) = self.conns.get_mut(&asker.conn) else {
            return;
        };
        match opened {
            Ok(fds) => conn.reply_with(&self.poller, asker.id, Ok(Reply::Root), &[], fds),
            Err(fault) => conn.reply(&self.poller, asker.id, Err(fault)),
        }
    }

    /// One of its own for each asker: answers of two that share a socket would mix.
    fn open_route(&mut self, asker: Asker) {
        let opened = start::open_route_in(&self.run.netns, &self.host.netns);
        let Some(conn) = self.conns.get_mut(&asker.conn) else {
            return;
        };
        match opened {
            Ok(socket) => {
                let fds = vec![Rc::new(socket.into_fd())];
                conn.reply_with(&self.poller, asker.id, Ok(Reply::Route), &[], fds);
            }
            Err(fault) => conn.reply(&self.poller, asker.id, Err(fault)),
        }
    }

    fn root_descriptors(&self) -> Result<Vec<Rc<std::os::fd::OwnedFd>>> {
        // Init is our child: while it is not reaped its number is its own.
        let path = format!("/proc/{}/root", self.run.init.pid);
        let root = sys::open(&path, libc::O_PATH | libc::O_DIRECTORY)
            .at("root", "opening the guest's root")?;
        let userns = self
            .run
            .userns
            .try_clone()
            .at("root", "copying the user namespace")?;
        Ok(vec![Rc::new(root), Rc::new(userns)])
    }
}
