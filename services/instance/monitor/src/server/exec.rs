//! Programs run in the guest for clients: each a resource with an id, kept output and a status.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::console::set_size;
use super::exec_child::{self, ExecContext};
use super::exec_streams::{Output, Stdin, Stdio, make_pipes};
use super::freeze::refuse_frozen;
use super::watch::{Token, Watched};
use super::{Asker, Monitor, invalid, not_found, wrong_state};
use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::protocol::{
    CHUNK, EXEC_LINGER_SECONDS, EXEC_WINDOW, Event, ExecState, ExitStatus, PtySize, Reply,
    StartExec, Stream,
};
use crate::spec::IdKind;
use crate::start::{self, devfs};
use crate::sys;
use crate::sys::poll::IN;

/// After a program's end its terminal may still be held open by what it left behind, and the kernel moves
/// the last bytes through it by a worker: this long it is listened to.
const PTY_DRAIN: Duration = Duration::from_millis(50);
/// After a program's end its pipes are listened to until nobody holds them any more, since what it left
/// behind (a `tee`, say) may still have something to write; but a daemon that keeps them does not hold the exec.
const PIPE_DRAIN: Duration = Duration::from_secs(3);
const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

pub(super) struct Exec {
    serial: u64,
    child: sys::Child,
    phase: Phase,
    status: Option<ExitStatus>,
    started_at_ms: u64,
    ended_at: Option<Instant>,
    pub(super) attached: Option<u64>,
    told_exit: bool,
    is_pty: bool,
    outputs: [Output; 2],
    stdin: Stdin,
}

enum Phase {
    /// Not executed yet; who wants to know.
    Starting {
        status: Watched,
        waiting: Vec<Asker>,
    },
    Running,
}

impl Exec {
    pub(super) fn deadline(&self) -> Option<Instant> {
        let ended = self.ended_at?;
        let listening = |o: &Output| o.fd.is_some() && o.ring.room() > 0;
        Some(match self.outputs.iter().any(listening) {
            true if self.is_pty => ended + PTY_DRAIN,
            true => ended + PIPE_DRAIN,
            false => ended + Duration::from_secs(EXEC_LINGER_SECONDS),
        })
    }

    fn finished(&self) -> bool {
        self.status.is_some() && self.outputs.iter().all(|o| o.fd.is_none())
    }

    fn state(&self, id: &str) -> ExecState {
        let range = |o: &Output| (o.ring.base(), o.ring.end());
        ExecState {
            exec_id: id.to_owned(),
            pid: self.child.pid,
            status: self.status,
            started_at_ms: self.started_at_ms,
            attached: self.attached.is_some(),
            stdout: range(&self.outputs[0]),
            stderr: range(&self.outputs[1]),
            stdin_offset: self.stdin.received,
        }
    }
}

impl Monitor {
    pub(super) fn start_exec(&mut self, asker: Asker, start: StartExec) {
        if let Some(exec) = self.execs.get_mut(&start.exec_id) {
            let (exec_id, pid) = (start.exec_id, exec.child.pid);
            match &mut exec.phase {
                Phase::Starting { waiting, .. } => waiting.push(asker),
                Phase::Running => self.answer(
                    asker,
                    Ok(Reply::ExecStarted {
                        exec_id,
                        pid,
                        already: true,
                    }),
                ),
            }
            return;
        }
        if let Err(fault) = self.begin_exec(asker, &start) {
            self.answer(asker, Err(fault));
        }
    }

    fn begin_exec(&mut self, asker: Asker, start: &StartExec) -> Result<()> {
        refuse_frozen(&self.freeze)?;
        if self.stop.as_ref().is_some_and(super::StopState::is_kill) {
            return Err(wrong_state("the guest is being stopped"));
        }
        if start.argv.first().is_none_or(|a| a.is_empty()) || start.exec_id.is_empty() {
            return Err(invalid("exec_id or argv is empty"));
        }
        let unmapped =
            |what: &str, id: u32| invalid(format!("{what} {id} is not mapped in the guest"));
        let uid = self
            .spec
            .host_id(IdKind::Uid, start.uid)
            .ok_or_else(|| unmapped("uid", start.uid))?;
        let gid = self
            .spec
            .host_id(IdKind::Gid, start.gid)
            .ok_or_else(|| unmapped("gid", start.gid))?;
        let Stdio { ours, theirs } = match start.pty {
            Some(size) => self.make_terminal(size, uid)?,
            None => make_pipes(start.stdin, uid, gid)?,
        };
        let (status, child_status) = sys::socket::pair().at("exec", "making a socket pair")?;
        let Some(child) = self.clone_into_guest()? else {
            drop((status, ours));
            exec_child::run(ExecContext {
                spec: &self.spec,
                start,
                init: &self.run.init.pidfd,
                tasks: &self.run.tasks,
                oom_score_adj: self.host.oom_score_adj,
                status: child_status,
                stdio: theirs,
            });
        };
        drop((child_status, theirs));
        self.watch_exec(asker, start, child, status, ours)
    }

    fn watch_exec(
        &mut self,
        asker: Asker,
        start: &StartExec,
        child: sys::Child,
        status: OwnedFd,
        ours: [Option<OwnedFd>; 3],
    ) -> Result<()> {
        let serial = self.next_serial();
        let [stdin, stdout, stderr] = ours;
        let watched =
            |fd: Option<OwnedFd>, token: Token| fd.map(|fd| Watched::new(fd, token.raw()));
        let mut status = Watched::new(status, Token::ExecStatus(serial).raw());
        let mut outputs = [
            Output::new(watched(stdout, Token::ExecStdout(serial))),
            Output::new(watched(stderr, Token::ExecStderr(serial))),
        ];
        let watching = status.watch(&self.poller, IN).and_then(|()| {
            outputs
                .iter_mut()
                .filter_map(|o| o.fd.as_mut())
                .try_for_each(|fd| fd.watch(&self.poller, IN))
        });
        if let Err(e) = watching {
            let _ = sys::pidfd_signal(&child.pidfd, libc::SIGKILL);
            return Err(Fault::io("exec", &e, "watching the program"));
        }
        let exec = Exec {
            serial,
            child,
            phase: Phase::Starting {
                status,
                waiting: vec![asker],
            },
            status: None,
            started_at_ms: sys::now_ms(),
            ended_at: None,
            attached: None,
            told_exit: false,
            is_pty: start.pty.is_some(),
            outputs,
            stdin: Stdin {
                fd: watched(stdin, Token::ExecStdin(serial)),
                ..Stdin::default()
            },
        };
        self.execs.insert(start.exec_id.clone(), exec);
        Ok(())
    }

    fn make_terminal(&self, size: PtySize, uid: u32) -> Result<Stdio> {
        let (master, slave) = devfs::open_pty(&self.run.devpts).at("exec", "opening a terminal")?;
        set_size(&master, size).at("exec", "sizing the terminal")?;
        // Made by the host's root, who is nobody in the guest; group tty stays as devpts gave it.
        sys::fchownat(&slave, "", uid, u32::MAX).at("exec", "giving the terminal away")?;
        sys::set_nonblocking(&master).at("exec", "making the terminal non-blocking")?;
        let copy = |fd: &OwnedFd| fd.try_clone().at("exec", "copying the terminal");
        let ours = [Some(copy(&master)?), Some(master), None];
        let theirs = [copy(&slave)?, copy(&slave)?, slave];
        Ok(Stdio { ours, theirs })
    }

    /// Born in the guest's pid namespace and cgroup2 directory: one fork, no move.
    fn clone_into_guest(&self) -> Result<Option<sys::Child>> {
        sys::setns(&self.run.init.pidfd, libc::CLONE_NEWPID)
            .at("exec", "taking the guest's pid namespace")?;
        let mut cloned = sys::clone3(0, self.run.cgroup.v2());
        if matches!(&cloned, Err(e) if e.raw_os_error() == Some(libc::EBUSY)) {
            // The guest's init enabled controllers in its root, which may hold no processes then.
            let leaf = self.run.cgroup.v2_leaf();
            cloned = match leaf {
                Ok(leaf) => sys::clone3(0, leaf.as_ref().map(std::os::fd::AsFd::as_fd)),
                Err(_) => cloned,
            };
        }
        if let Ok(None) = cloned {
            return Ok(None);
        }
        if let Err(e) = sys::setns(&self.pidns, libc::CLONE_NEWPID) {
            // Every later child (the next run's init) would be born in the old guest.
            crate::log::line(format_args!(
                "cannot return to the host's pid namespace: {e}"
            ));
            sys::exit_now(1);
        }
        cloned.at("exec", "clone3")
    }

    fn exec_by_serial(&mut self, serial: u64) -> Option<(String, &mut Exec)> {
        self.execs
            .iter_mut()
            .find(|(_, e)| e.serial == serial)
            .map(|(id, e)| (id.clone(), e))
    }

    /// A fault, or the close by the exec: it runs.
    pub(super) fn on_exec_status(&mut self, serial: u64) {
        let Some((exec_id, exec)) = self.exec_by_serial(serial) else {
            return;
        };
        let Phase::Starting { status, waiting } = &mut exec.phase else {
            return;
        };
        let mut message = vec![0; 8 << 10];
        let received = sys::socket::receive(&*status, &mut message, libc::MSG_DONTWAIT);
        let waiting = std::mem::take(waiting);
        let pid = exec.child.pid;
        let result = match received {
            Ok((0, _)) => Ok(Reply::ExecStarted {
                exec_id: exec_id.clone(),
                pid,
                already: false,
            }),
            Ok((n, _)) if message[0] == b'E' => Err(start::parse_fault(&message[1..n])),
            Ok(_) => Err(Fault::new(
                "exec",
                FaultCode::State,
                "the child said something unknown",
            )),
            Err(e) => Err(Fault::io("exec", &e, "hearing the child")),
        };
        if result.is_ok() {
            exec.phase = Phase::Running;
        } else {
            // It ends by itself and is reaped as an unknown child.
            let _ = sys::pidfd_signal(&exec.child.pidfd, libc::SIGKILL);
            self.execs.remove(&exec_id);
        }
        for asker in waiting {
            self.answer(asker, result.clone());
        }
    }

    pub(super) fn on_exec_output(&mut self, serial: u64, stream: usize) {
        let poller = &self.poller;
        let found = self.execs.iter_mut().find(|(_, e)| e.serial == serial);
        let Some((id, exec)) = found else { return };
        exec.outputs[stream].fill(poller, false);
        let id = id.clone();
        self.send_output(&id);
    }

    pub(super) fn on_exec_stdin(&mut self, serial: u64) {
        let poller = &self.poller;
        let found = self.execs.iter_mut().find(|(_, e)| e.serial == serial);
        let Some((id, exec)) = found else { return };
        if exec.stdin.drain(poller) {
            let (id, offset, conn) = (id.clone(), exec.stdin.accepted, exec.attached);
            if let Some(conn) = conn {
                self.tell(
                    conn,
                    Event::ExecStdinAccepted {
                        exec_id: id,
                        offset,
                    },
                    &[],
                );
            }
        }
    }

    /// Whether the reaped child is an exec.
    pub(super) fn exec_ended(&mut self, pid: i32, raw: i32) -> bool {
        let found = self
            .execs
            .iter()
            .find(|(_, e)| e.child.pid == pid && e.status.is_none());
        let Some((id, serial)) = found.map(|(id, e)| (id.clone(), e.serial)) else {
            return false;
        };
        // Its exec (or fault) came before its end.
        self.on_exec_status(serial);
        let poller = &self.poller;
        let Some(exec) = self.execs.get_mut(&id) else {
            return true;
        };
        exec.status = Some(sys::exit_status(raw));
        exec.ended_at = Some(Instant::now());
        for output in &mut exec.outputs {
            output.fill(poller, false);
        }
        exec.stdin.close(poller);
        exec.stdin.drain(poller);
        self.send_output(&id);
        true
    }

    /// The guest is gone: every exec of it ended, what is in the pipes is all there will be.
    pub(super) fn end_execs(&mut self) {
        let ids: Vec<String> = self.execs.keys().cloned().collect();
        for id in ids {
            let poller = &self.poller;
            let Some(exec) = self.execs.get_mut(&id) else {
                continue;
            };
            exec.status.get_or_insert(ExitStatus::Signal(libc::SIGKILL));
            exec.ended_at.get_or_insert_with(Instant::now);
            for output in &mut exec.outputs {
                output.fill(poller, true);
            }
            self.send_output(&id);
        }
    }

    /// Sends new output to the attached client, and the exit once all of it was sent.
    pub(super) fn send_output(&mut self, id: &str) {
        let Some(exec) = self.execs.get_mut(id) else {
            return;
        };
        let Some(number) = exec.attached else { return };
        for (output, stream) in exec.outputs.iter_mut().zip(STREAMS) {
            while output.sent < output.ring.end() {
                let Some(conn) = self.conns.get_mut(&number).filter(|c| c.has_room()) else {
                    return;
                };
                let bytes = output.ring.read(output.sent, CHUNK);
                let event = Event::ExecOutput {
                    exec_id: id.to_owned(),
                    stream,
                    offset: output.sent,
                };
                output.sent += bytes.len() as u64;
                conn.event(&self.poller, event, &bytes);
            }
        }
        if let (true, false, Some(status)) = (exec.finished(), exec.told_exit, exec.status) {
            exec.told_exit = true;
            let [stdout_end, stderr_end] = [0, 1].map(|n| exec.outputs[n].ring.end());
            self.tell(
                number,
                Event::ExecExited {
                    exec_id: id.to_owned(),
                    status,
                    stdout_end,
                    stderr_end,
                },
                &[],
            );
        }
    }

    pub(super) fn attach_exec(&mut self, asker: Asker, id: &str, offsets: [u64; 2]) {
        let result = self.try_attach(asker, id, offsets);
        let attached = result.is_ok();
        self.answer(asker, result);
        if attached {
            // The reply tells what came; only this tells how much room there is.
            let accepted = self.execs.get(id).map_or(0, |exec| exec.stdin.accepted);
            let event = Event::ExecStdinAccepted {
                exec_id: id.to_owned(),
                offset: accepted,
            };
            self.tell(asker.conn, event, &[]);
            self.send_output(id);
        }
    }

    fn try_attach(&mut self, asker: Asker, id: &str, offsets: [u64; 2]) -> Result<Reply> {
        let exec = self
            .execs
            .get_mut(id)
            .ok_or_else(|| not_found("exec", id))?;
        for (output, offset) in exec.outputs.iter().zip(offsets) {
            if offset < output.ring.base() || offset > output.ring.end() {
                let text = format!(
                    "offset {offset} is outside {}..={}",
                    output.ring.base(),
                    output.ring.end()
                );
                return Err(Fault::new("exec", FaultCode::OffsetGone, text));
            }
        }
        for (output, offset) in exec.outputs.iter_mut().zip(offsets) {
            output.sent = offset;
        }
        let earlier = exec
            .attached
            .replace(asker.conn)
            .filter(|c| *c != asker.conn);
        exec.told_exit = false;
        let reply = Reply::ExecAttached {
            exec_id: id.to_owned(),
            pid: exec.child.pid,
            stdin_offset: exec.stdin.received,
            stdout_offset: offsets[0],
            stderr_offset: offsets[1],
        };
        if let Some(earlier) = earlier {
            self.tell(
                earlier,
                Event::ExecDetached {
                    exec_id: id.to_owned(),
                },
                &[],
            );
        }
        Ok(reply)
    }

    pub(super) fn detach_exec(&mut self, asker: Asker, id: &str) -> Result<Reply> {
        let exec = self
            .execs
            .get_mut(id)
            .ok_or_else(|| not_found("exec", id))?;
        if exec.attached == Some(asker.conn) {
            exec.attached = None;
        }
        Ok(Reply::Done)
    }

    pub(super) fn ack_exec(&mut self, id: &str, offsets: [u64; 2]) -> Result<Reply> {
        let exec = self
            .execs
            .get_mut(id)
            .ok_or_else(|| not_found("exec", id))?;
        for (output, offset) in exec.outputs.iter_mut().zip(offsets) {
            // What was not sent cannot have been taken.
            output.ring.release(offset.min(output.sent));
            output.fill(&self.poller, false);
        }
        self.send_output(id);
        Ok(Reply::Done)
    }

    pub(super) fn exec_stdin(
        &mut self,
        id: &str,
        offset: u64,
        eof: bool,
        bytes: &[u8],
    ) -> Result<Reply> {
        let exec = self
            .execs
            .get_mut(id)
            .ok_or_else(|| not_found("exec", id))?;
        let stdin = &mut exec.stdin;
        if offset > stdin.received {
            return Err(invalid(format!(
                "stdin from {offset}, but only {} came before",
                stdin.received
            )));
        }
        // A resend after a reconnect: what came before is dropped.
        let new = bytes
            .get((stdin.received - offset) as usize..)
            .unwrap_or_default();
        if stdin.queue.len() + new.len() > EXEC_WINDOW {
            return Err(wrong_state(
                "more stdin than the program took; wait for exec_stdin_accepted",
            ));
        }
        if stdin.eof && !new.is_empty() {
            return Err(wrong_state("stdin after its end"));
        }
        stdin.queue.extend(new);
        stdin.received += new.len() as u64;
        // A terminal's end of input is a key, not a close.
        stdin.eof |= eof && !exec.is_pty;
        let serial = exec.serial;
        self.on_exec_stdin(serial);
        Ok(Reply::Done)
    }

    pub(super) fn resize_exec(&mut self, id: &str, rows: u16, cols: u16) -> Result<Reply> {
        let exec = self
            .execs
            .get_mut(id)
            .ok_or_else(|| not_found("exec", id))?;
        match (&exec.outputs[0].fd, exec.is_pty) {
            (Some(terminal), true) => {
                set_size(terminal, PtySize { rows, cols }).at("exec", "resizing")?;
                Ok(Reply::Done)
            }
            (None, true) => Ok(Reply::Done),
            (_, false) => Err(wrong_state("the exec has no terminal")),
        }
    }

    pub(super) fn signal_exec(&mut self, id: &str, signal: i32) -> Result<Reply> {
        let exec = self.execs.get(id).ok_or_else(|| not_found("exec", id))?;
        if !(1..=libc::SIGRTMAX()).contains(&signal) {
            return Err(invalid(format!("{signal} is no signal")));
        }
        if exec.status.is_some() {
            return Err(wrong_state("the exec has ended"));
        }
        sys::pidfd_signal(&exec.child.pidfd, signal).at("exec", format!("sending {signal}"))?;
        Ok(Reply::Done)
    }

    pub(super) fn exec_state(&self, id: &str) -> Result<ExecState> {
        self.execs
            .get(id)
            .map(|e| e.state(id))
            .ok_or_else(|| not_found("exec", id))
    }

    pub(super) fn exec_states(&self) -> Vec<ExecState> {
        self.execs.iter().map(|(id, e)| e.state(id)).collect()
    }

    pub(super) fn delete_exec(&mut self, id: &str) -> Result<Reply> {
        let exec = self.execs.remove(id).ok_or_else(|| not_found("exec", id))?;
        if exec.status.is_none() {
            // Reaped as an unknown child later.
            let _ = sys::pidfd_signal(&exec.child.pidfd, libc::SIGKILL);
        }
        Ok(Reply::Done)
    }

    pub(super) fn exec_deadlines(&mut self, now: Instant) {
        let due: Vec<String> = self
            .execs
            .iter()
            .filter(|(_, e)| e.deadline().is_some_and(|d| d <= now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            let poller = &self.poller;
            let Some(exec) = self.execs.get_mut(&id) else {
                continue;
            };
            if exec.outputs.iter().any(|output| output.fd.is_some()) {
                for output in &mut exec.outputs {
                    output.fill(poller, true);
                }
                self.send_output(&id);
            } else {
                self.execs.remove(&id);
            }
        }
    }
}
