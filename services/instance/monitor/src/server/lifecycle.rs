//! Stopping, rebooting, the end.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::freeze::signal_init;
use super::{Asker, Monitor, wrong_state};
use crate::cgroup::stats::Counters;
use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::protocol::{Ended, Event, ExitReason, ExitStatus, Reply, StopHow};
use crate::spec::Spec;
use crate::start;
use crate::sys;

/// SIGRTMIN+3 as the kernel numbers it: glibc keeps 32 and 33, so its SIGRTMIN is 34.
const SYSTEMD_HALT: i32 = 37;
/// How long the last answers may take to leave.
const GOODBYE: Duration = Duration::from_secs(1);

pub(super) struct StopState {
    killed: bool,
    pub(super) deadline: Option<Instant>,
    waiting: Vec<(Asker, Option<Instant>)>,
}

impl StopState {
    pub(super) fn is_kill(&self) -> bool {
        self.killed
    }
}

impl Monitor {
    /// Answers once the guest is gone, or when the time of a graceful stop is over.
    pub(super) fn request_stop(&mut self, asker: Asker, how: StopHow) {
        let deadline = match how {
            StopHow::Graceful { timeout_ms } if timeout_ms > 0 => {
                Some(Instant::now() + Duration::from_millis(timeout_ms))
            }
            _ => None,
        };
        // A stop supersedes a reboot that was asked for.
        for waiting in self.reboot.take().unwrap_or_default() {
            self.answer(
                waiting,
                Err(wrong_state("the guest is being stopped instead")),
            );
        }
        let stop = self.stop.get_or_insert(StopState {
            killed: false,
            deadline: None,
            waiting: Vec::new(),
        });
        stop.waiting.push((asker, deadline));
        stop.deadline = stop.waiting.iter().filter_map(|(_, d)| *d).min();
        self.thaw_for_good();
        match how {
            StopHow::Kill => self.kill_guest(),
            StopHow::Graceful { .. } => {
                let signal = self
                    .spec
                    .halt_signal
                    .unwrap_or_else(|| halt_signal(self.run.init.pid));
                if let Err(e) = signal_init(&self.run, signal) {
                    crate::log::line(format_args!("{e}"));
                }
            }
        }
    }

    pub(super) fn kill_guest(&mut self) {
        self.thaw_for_good();
        self.stop
            .get_or_insert(StopState {
                killed: true,
                deadline: None,
                waiting: Vec::new(),
            })
            .killed = true;
        // Its end ends the pid namespace. ESRCH: it is ending already.
        if let Err(e) = sys::pidfd_signal(&self.run.init.pidfd, libc::SIGKILL) {
            crate::log::line(format_args!("killing init: {e}"));
        }
    }

    pub(super) fn stop_deadline(&mut self, now: Instant) {
        let Some(stop) = &mut self.stop else { return };
        if stop.deadline.is_none_or(|d| d > now) {
            return;
        }
        let (over, left) = stop
            .waiting
            .drain(..)
            .partition(|(_, d)| d.is_some_and(|d| d <= now));
        stop.waiting = left;
        stop.deadline = stop.waiting.iter().filter_map(|(_, d)| *d).min();
        let over: Vec<(Asker, Option<Instant>)> = over;
        if stop.waiting.is_empty() && !stop.killed {
            // Whoever asked has given up: the guest counts as running again (it may still halt later).
            self.stop = None;
        }
        for (asker, _) in over {
            let text = "the guest did not stop in time";
            self.answer(asker, Err(Fault::new("stop", FaultCode::Timeout, text)));
        }
    }

    pub(super) fn request_reboot(&mut self, asker: Asker, how: StopHow) {
        if self.stop.is_some() {
            self.answer(asker, Err(wrong_state("the guest is being stopped")));
            return;
        }
        self.reboot.get_or_insert_default().push(asker);
        self.thaw_for_good();
        // SIGINT is what Ctrl-Alt-Del sends: every init takes it for a reboot.
        let signal = match how {
            StopHow::Kill => libc::SIGKILL,
            StopHow::Graceful { .. } => libc::SIGINT,
        };
        if let Err(e) = signal_init(&self.run, signal) {
            crate::log::line(format_args!("{e}"));
        }
    }

    /// Init was reaped: everything of its pid namespace is gone.
    pub(super) fn on_init_exit(&mut self, raw: i32) {
        let status = sys::exit_status(raw);
        let reason = self.reason_of(status);
        crate::log::line(format_args!("init ended: {status:?}, {reason:?}"));
        self.announce(&Event::InitExited {
            run: self.run_number,
            reason,
        });
        self.end_execs();
        self.end_helpers();
        self.console.end(&self.poller);
        self.send_console();
        let cpu_ns = self.run.cgroup.cpu_ns();
        let ended = Ended {
            uid: self.spec.uid.clone(),
            generation: self.spec.generation,
            run: self.run_number,
            reason,
            status: Some(status),
            started_at_ms: self.run.started_at_ms,
            ended_at_ms: sys::now_ms(),
            cpu_ns,
            fault: None,
        };
        if reason == ExitReason::Reboot {
            self.start_again(ended);
        } else {
            self.forget_freeze();
            self.finish(ended);
        }
    }

    fn reason_of(&mut self, status: ExitStatus) -> ExitReason {
        if let Some(stop) = &self.stop {
            return if stop.killed {
                ExitReason::Killed
            } else {
                ExitReason::Halt
            };
        }
        let reboots = self.reboot.is_some() || status == ExitStatus::Signal(libc::SIGHUP);
        if !reboots {
            return match status {
                // reboot(2) in a pid namespace: SIGINT is power off, SIGHUP is restart.
                ExitStatus::Signal(libc::SIGINT) | ExitStatus::Code(0) => ExitReason::Halt,
                _ => ExitReason::Crash,
            };
        }
        if self.reboot.is_none() && !self.spec.reboot_in_place {
            return ExitReason::Reboot;
        }
        let now = Instant::now();
        self.reboots
            .retain(|t| now.duration_since(*t) < Duration::from_secs(60));
        self.reboots.push_back(now);
        match self.reboots.len() > self.spec.max_reboots_per_minute as usize {
            true => ExitReason::RebootLoop,
            false => ExitReason::Reboot,
        }
    }

    /// A new run: new namespaces, new cgroups, a new mount of the root.
    fn start_again(&mut self, mut ended: Ended) {
        self.forget_freeze();
        if self.reboot.is_none() && !self.spec.reboot_in_place {
            self.finish(ended);
            return;
        }
        let before = self.spec.clone();
        if let Some(next) = self.next_spec.take() {
            self.spec = next;
        }
        match self.replace_run(&before) {
            Ok(()) => {
                self.run_number += 1;
                crate::log::line(format_args!(
                    "run {} started, init is {}",
                    self.run_number, self.run.init.pid
                ));
                self.announce(&Event::Rebooted {
                    run: self.run_number,
                    init_pid: self.run.init.pid,
                    generation: self.spec.generation,
                });
                for asker in self.reboot.take().unwrap_or_default() {
                    self.answer(asker, Ok(Reply::Done));
                }
            }
            Err(fault) => {
                crate::log::line(format_args!(
                    "the guest could not be started again: {fault}"
                ));
                for asker in self.reboot.take().unwrap_or_default() {
                    self.answer(asker, Err(fault.clone()));
                }
                ended.reason = ExitReason::RestartFailed;
                ended.fault = Some(fault);
                self.report_end(ended);
            }
        }
    }

    fn replace_run(&mut self, before: &Spec) -> Result<()> {
        self.run.take_down(before, &self.host);
        self.run.remove_links(before, &self.host);
        self.run = start::start(&self.spec, &self.host)?;
        let begun = self.console.begin(&self.poller, &self.run.console_master);
        if begun.is_err() {
            self.run.destroy(&self.spec, &self.host);
        }
        begun
    }

    fn finish(&mut self, ended: Ended) {
        self.run.take_down(&self.spec, &self.host);
        self.report_end(ended);
    }

    /// Status first, then the news, then the socket goes: its absence means "stopped, see status.json".
    fn report_end(&mut self, ended: Ended) {
        if let Err(fault) = write_status(&self.run_dir, &ended) {
            crate::log::line(format_args!("{fault}"));
        }
        self.announce(&Event::Stopped(ended));
        for (asker, _) in self.stop.take().map(|s| s.waiting).unwrap_or_default() {
            self.answer(asker, Ok(Reply::Done));
        }
        crate::run::remove_socket(&self.run_dir);
        self.say_goodbye();
        self.finished = true;
        // The next monitor of this instance waits for our lock, so it finds the names free.
        self.run.remove_links(&self.spec, &self.host);
    }

    /// Lets what is queued leave, for a moment.
    fn say_goodbye(&mut self) {
        let until = Instant::now() + GOODBYE;
        while self.conns.values().any(|c| !c.is_idle()) {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return;
            };
            let Ok(ready) = self.poller.wait(Some(left)) else {
                return;
            };
            if ready.is_empty() {
                return;
            }
            for conn in self.conns.values_mut() {
                conn.flush(&self.poller);
            }
        }
    }
}

/// Whole or not at all: a reader never sees half a file.
fn write_status(run_dir: &OwnedFd, ended: &Ended) -> Result<()> {
    let json = serde_json::to_vec(ended).map_err(|e| {
        Fault::new(
            "status",
            FaultCode::Invalid,
            format!("encoding status.json: {e}"),
        )
    })?;
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_NOFOLLOW;
    let file =
        sys::openat(run_dir, "status.json.new", flags, 0o600).at("status", "making status.json")?;
    sys::write_whole(&file, &json).at("status", "writing status.json")?;
    rustix::fs::renameat(run_dir, "status.json.new", run_dir, "status.json")
        .map_err(std::io::Error::from)
        .at("status", "renaming status.json")
}

/// systemd blocks SIGRTMIN+3 to read it from a descriptor; the other inits power off on SIGPWR.
fn halt_signal(init: i32) -> i32 {
    // Ours and not reaped, so the number is init's.
    let status = std::fs::read_to_string(format!("/proc/{init}/status")).unwrap_or_default();
    match blocks(&status, SYSTEMD_HALT) {
        true => SYSTEMD_HALT,
        false => libc::SIGPWR,
    }
}

/// Whether a /proc status text shows a signal as blocked.
fn blocks(status: &str, signal: i32) -> bool {
    status
        .lines()
        .find_map(|l| l.strip_prefix("SigBlk:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 << (signal - 1) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_known_by_what_it_blocks() {
        // Debian 12's systemd as pid 1 and busybox init.
        assert!(blocks(
            "Name:\tsystemd\nSigBlk:\t7be3c0fe28014a03\n",
            SYSTEMD_HALT
        ));
        assert!(!blocks(
            "Name:\tinit\nSigBlk:\t0000000000000000\n",
            SYSTEMD_HALT
        ));
        assert!(!blocks("", SYSTEMD_HALT));
    }
}
