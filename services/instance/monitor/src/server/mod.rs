//! The monitor proper: one thread, one epoll loop, one guest.
//!
//! Nothing here blocks on the guest: what runs inside it (execs, mount helpers) reports through descriptors,
//! and what takes time has a deadline that the loop waits for.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::protocol::{Event, Reply};
use crate::spec::Spec;
use crate::start::{self, Host, Run};
use crate::sys;
use crate::sys::poll::{self, IN, Poller};

mod conn;
mod console;
mod exec;
mod exec_child;
mod exec_streams;
mod freeze;
mod hotplug;
mod lifecycle;
mod requests;
mod state;
mod watch;

use conn::Conn;
use console::Console;
use exec::Exec;
use freeze::Freeze;
use hotplug::Helper;
use lifecycle::StopState;
use watch::Token;

/// Whom to answer later.
#[derive(Debug, Clone, Copy)]
struct Asker {
    conn: u64,
    id: u64,
}

/// Descriptors the monitor was started with.
pub(crate) struct Setup {
    pub(crate) spec: Spec,
    pub(crate) host: Host,
    pub(crate) run_dir: OwnedFd,
    pub(crate) log_dir: OwnedFd,
    pub(crate) listener: OwnedFd,
    /// The monitor's own pid namespace, to return to after an exec.
    pub(crate) pidns: OwnedFd,
}

pub(crate) struct Monitor {
    spec: Spec,
    host: Host,
    run_dir: OwnedFd,
    listener: OwnedFd,
    pidns: OwnedFd,
    poller: Poller,
    signals: OwnedFd,
    run: Run,
    /// 1 for the first.
    run_number: u64,
    conns: HashMap<u64, Conn>,
    execs: BTreeMap<String, Exec>,
    helpers: HashMap<u64, Helper>,
    serial: u64,
    console: Console,
    freeze: Freeze,
    stop: Option<StopState>,
    /// Asked to start anew after init's end.
    reboot: Option<Vec<Asker>>,
    reboots: VecDeque<Instant>,
    /// Spec for the next run, from `ReplaceSpec`.
    next_spec: Option<Spec>,
    finished: bool,
}

impl Monitor {
    /// Starts the guest. On success the monitor is ready to [`serve`](Self::serve).
    pub(crate) fn start(setup: Setup) -> Result<Monitor> {
        let Setup {
            spec,
            host,
            run_dir,
            log_dir,
            listener,
            pidns,
        } = setup;
        let poller = Poller::new().at("monitor", "making the poller")?;
        let signals = poll::signals(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
            .at("monitor", "taking signals")?;
        poller
            .add(&signals, Token::Signals.raw(), IN)
            .at("monitor", "watching signals")?;
        poller
            .add(&listener, Token::Listener.raw(), IN)
            .at("monitor", "watching the socket")?;
        let mut console = Console::new(&log_dir)?;
        let run = start::start(&spec, &host)?;
        let begun = console.begin(&poller, &run.console_master);
        let monitor = Monitor {
            spec,
            host,
            run_dir,
            listener,
            pidns,
            poller,
            signals,
            run,
            run_number: 1,
            conns: HashMap::new(),
            execs: BTreeMap::new(),
            helpers: HashMap::new(),
            serial: 0,
            console,
            freeze: Freeze::default(),
            stop: None,
            reboot: None,
            reboots: VecDeque::new(),
            next_spec: None,
            finished: false,
        };
        if let Err(fault) = begun {
            monitor.run.destroy(&monitor.spec, &monitor.host);
            return Err(fault);
        }
        Ok(monitor)
    }

    pub(crate) fn init_pid(&self) -> i32 {
        self.run.init.pid
    }

    pub(crate) fn started_at_ms(&self) -> u64 {
        self.run.started_at_ms
    }

    /// Runs until the guest has ended and everything is cleaned up.
    pub(crate) fn serve(mut self) -> Result<()> {
        while !self.finished {
            let now = Instant::now();
            let timeout = self
                .next_deadline()
                .map(|d| d.saturating_duration_since(now));
            for (raw, events) in self
                .poller
                .wait(timeout)
                .at("monitor", "waiting for events")?
            {
                if let Some(token) = Token::parse(raw) {
                    self.dispatch(token, events);
                }
                if self.finished {
                    break;
                }
            }
            self.on_deadlines(Instant::now());
            self.drop_dead();
        }
        Ok(())
    }

    fn dispatch(&mut self, token: Token, events: u32) {
        match token {
            Token::Listener => self.accept(),
            Token::Signals => self.on_signals(),
            Token::Conn(n) => self.on_conn(n, events),
            Token::ExecStatus(n) => self.on_exec_status(n),
            Token::ExecStdin(n) => self.on_exec_stdin(n),
            Token::ExecStdout(n) => self.on_exec_output(n, 0),
            Token::ExecStderr(n) => self.on_exec_output(n, 1),
            Token::Console => self.on_console(events),
            Token::Freeze => self.check_frozen(),
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn accept(&mut self) {
        use std::os::fd::AsRawFd;
        // SAFETY: no address is asked for.
        let fd = unsafe {
            libc::accept4(
                self.listener.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            )
        };
        // The client may be gone again.
        let Ok(fd) = sys::own(fd) else { return };
        if !matches!(sys::socket::peer_uid(&fd), Ok(0)) {
            crate::log::line(format_args!("refused a client that is not root"));
            return;
        }
        let number = self.next_serial();
        if let Ok(conn) = Conn::new(fd, Token::Conn(number).raw(), &self.poller) {
            self.conns.insert(number, conn);
        }
    }

    fn on_conn(&mut self, number: u64, events: u32) {
        let Some(conn) = self.conns.get_mut(&number) else {
            return;
        };
        if events & poll::OUT != 0 {
            conn.flush(&self.poller);
            self.pump(number);
        }
        if events & !poll::OUT == 0 {
            return;
        }
        let Some(conn) = self.conns.get_mut(&number) else {
            return;
        };
        for (request, payload) in conn.receive() {
            if self.finished {
                return;
            }
            self.handle(
                Asker {
                    conn: number,
                    id: request.id,
                },
                request.body,
                payload,
            );
        }
    }

    /// Sends streams that waited for room on a connection.
    fn pump(&mut self, number: u64) {
        let attached: Vec<String> = self
            .execs
            .iter()
            .filter(|(_, e)| e.attached == Some(number))
            .map(|(id, _)| id.clone())
            .collect();
        for id in attached {
            self.send_output(&id);
        }
        if self.console.attached == Some(number) {
            self.send_console();
        }
    }

    fn drop_dead(&mut self) {
        let dead: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, c)| c.dead)
            .map(|(n, _)| *n)
            .collect();
        for number in dead {
            self.conns.remove(&number);
            for exec in self
                .execs
                .values_mut()
                .filter(|e| e.attached == Some(number))
            {
                exec.attached = None;
            }
            if self.console.attached == Some(number) {
                self.console.attached = None;
            }
        }
    }

    fn answer(&mut self, asker: Asker, result: Result<Reply>) {
        if let Some(conn) = self.conns.get_mut(&asker.conn) {
            conn.reply(&self.poller, asker.id, result);
        }
    }

    /// To one connection.
    fn tell(&mut self, conn: u64, event: Event, payload: &[u8]) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.event(&self.poller, event, payload);
        }
    }

    /// To all subscribers.
    fn announce(&mut self, event: &Event) {
        for conn in self.conns.values_mut().filter(|c| c.subscribed) {
            conn.event(&self.poller, event.clone(), &[]);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let stop = self.stop.as_ref().and_then(|s| s.deadline);
        let helpers = self.helpers.values().map(|h| h.deadline);
        let execs = self.execs.values().filter_map(Exec::deadline);
        let others = [stop, self.freeze.deadline(), self.console.retry_at];
        others
            .into_iter()
            .flatten()
            .chain(helpers)
            .chain(execs)
            .min()
    }

    fn on_deadlines(&mut self, now: Instant) {
        if self.finished {
            return;
        }
        self.freeze_deadlines(now);
        self.stop_deadline(now);
        self.helper_deadlines(now);
        self.exec_deadlines(now);
        if self.console.retry_at.is_some_and(|t| t <= now) {
            self.console.retry_at = None;
            self.console.resume(&self.poller);
        }
    }

    fn on_signals(&mut self) {
        while let Some(signal) = poll::next_signal(&self.signals) {
            match signal {
                libc::SIGCHLD => {}
                libc::SIGTERM | libc::SIGINT => {
                    crate::log::line(format_args!("signal {signal}: stopping the guest"));
                    self.kill_guest();
                }
                _ => {}
            }
        }
        // SIGCHLDs merge: reap until there is nobody left. Init comes after the last of its namespace, whose
        // ends it waits for, so the order here is the kernel's.
        let mut init_status = None;
        while let Some((pid, status)) = sys::reap_one() {
            if pid == self.run.init.pid {
                init_status = Some(status);
            } else if !self.exec_ended(pid, status) {
                self.helper_ended(pid, status);
            }
        }
        if let Some(status) = init_status {
            self.on_init_exit(status);
        }
    }
}

fn not_found(what: &str, name: &str) -> Fault {
    Fault::new(
        "request",
        FaultCode::NotFound,
        format!("no {what} {name:?}"),
    )
}

fn invalid(message: impl Into<String>) -> Fault {
    Fault::new("request", FaultCode::Invalid, message)
}

fn wrong_state(message: impl Into<String>) -> Fault {
    Fault::new("request", FaultCode::State, message)
}
