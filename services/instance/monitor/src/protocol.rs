//! What is said over `monitor.sock`.
//!
//! A unix stream socket; only uid 0 is answered. Both sides send frames:
//!
//! ```text
//! u32 LE  length of what follows (at most MAX_FRAME)
//! u32 LE  length of the JSON header (at most length - 4)
//! JSON    ToMonitor or FromMonitor
//! bytes   payload (exec or console data), the rest
//! ```
//!
//! Several clients may be connected; each asks as many things at once as it likes and finds the
//! answer by `id`. A request with `id` 0 wants no answer (stdin, acknowledgements, console input);
//! when it fails an `Event::Refused` comes. The first request on a connection is `Hello`.
//!
//! Flow of an exec: `StartExec` answers once the program runs (or says why not); the monitor reads
//! its output into one ring per stream of [`EXEC_WINDOW`] bytes. `AttachExec` names the offsets to go
//! on from; `ExecOutput` events follow. `AckExec` frees the ring; while unacknowledged bytes fill it
//! the pipe is not read, so a program writes no faster than its reader. When the program has ended
//! and everything was sent, `ExecExited` comes. An exec without a client goes on and keeps its output;
//! after its end it is kept until `DeleteExec` or [`EXEC_LINGER_SECONDS`].

use serde::{Deserialize, Serialize};

use crate::error::Fault;
use crate::spec::{DeviceNode, Limits, Mount, PortSpec, Spec};

/// The protocol spoken here. A monitor outlives upgrades of the service, so a service speaks this and older ones.
pub const PROTOCOL_VERSION: u32 = 1;
/// Largest frame, without its first four bytes.
pub const MAX_FRAME: usize = 1 << 20;
/// Largest payload the monitor puts in one frame, and the advised one for clients.
pub const CHUNK: usize = 64 << 10;
/// Unacknowledged output kept per stream, and stdin a client may send beyond what was accepted.
pub const EXEC_WINDOW: usize = 256 << 10;
/// How long an ended exec nobody deletes is kept.
pub const EXEC_LINGER_SECONDS: u64 = 300;
/// Bytes of console output kept.
pub const CONSOLE_RING: usize = 128 << 10;

/// Client to monitor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ToMonitor {
    /// Chosen by the client; 0: no answer.
    pub id: u64,
    pub body: Request,
}

/// Monitor to client.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromMonitor {
    Reply {
        id: u64,
        result: std::result::Result<Reply, Fault>,
    },
    Event(Event),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// → `Reply::Hello`.
    Hello {
        version: u32,
    },
    /// → `Reply::State`.
    GetState {
        /// Leave the links out (they cost two netlink dumps).
        #[serde(default)]
        without_network: bool,
    },
    /// Lifecycle events from now on go to this connection. → `Reply::State`, so nothing is missed in between.
    Subscribe,
    /// → `Reply::Done` when the guest is gone and cleaned up, `Timeout` when a graceful stop took longer. The monitor ends after it.
    Stop {
        how: StopHow,
    },
    /// A graceful request to reboot (SIGINT to init), or at once. → `Reply::Done` when the next run has started.
    Reboot {
        how: StopHow,
    },
    /// Frozen while any holder is left. A lease ends by itself. → `Reply::Done` once frozen.
    Freeze {
        holder: String,
        #[serde(default)]
        lease_seconds: Option<u32>,
    },
    /// → `Reply::Done` once thawed, or still frozen by another holder.
    Thaw {
        holder: String,
    },
    /// All limits anew. → `Reply::Done`; on error those before it have taken effect.
    UpdateLimits {
        limits: Limits,
    },
    /// Signal to the guest's init. → `Reply::Done`.
    SignalInit {
        signal: i32,
    },
    /// Replaces what the next run (reboot from inside) starts from. uid, run_dir, cgroup must be the same. → `Reply::Done`.
    ReplaceSpec {
        spec: Box<Spec>,
    },

    /// → `Reply::Done`. Kept for the next run as well, like the three below.
    AddNic {
        nic: PortSpec,
    },
    RemoveNic {
        name: String,
    },
    /// Host end up or down. → `Reply::Done`.
    SetNicLink {
        name: String,
        up: bool,
    },
    AddMount {
        mount: Mount,
    },
    RemoveMount {
        name: String,
    },
    AddDevice {
        device: DeviceNode,
    },
    RemoveDevice {
        name: String,
    },

    /// → `Reply::ExecStarted`.
    StartExec(StartExec),
    /// Output events from these offsets go to this connection (taking them from an earlier one). → `Reply::ExecAttached`.
    AttachExec {
        exec_id: String,
        #[serde(default)]
        stdout_offset: u64,
        #[serde(default)]
        stderr_offset: u64,
    },
    /// Stop sending, keep running. → `Reply::Done`.
    DetachExec {
        exec_id: String,
    },
    /// Everything before the offsets was taken.
    AckExec {
        exec_id: String,
        stdout: u64,
        stderr: u64,
    },
    /// Payload for stdin; `offset` of its first byte since the start, so that a resend is dropped. `eof` closes after it.
    ExecStdin {
        exec_id: String,
        offset: u64,
        #[serde(default)]
        eof: bool,
    },
    ResizeExec {
        exec_id: String,
        rows: u16,
        cols: u16,
    },
    SignalExec {
        exec_id: String,
        signal: i32,
    },
    /// SIGKILL. → `Reply::Done`.
    KillExec {
        exec_id: String,
    },
    /// → `Reply::Exec`.
    GetExec {
        exec_id: String,
    },
    /// → `Reply::Execs`.
    ListExecs,
    /// Forgets an ended exec; kills a running one first. → `Reply::Done`.
    DeleteExec {
        exec_id: String,
    },

    /// Console output from now on goes to this connection and its input is taken. One at a time: `State` error unless `force`.
    AttachConsole {
        #[serde(default)]
        force: bool,
        #[serde(default)]
        size: Option<PtySize>,
    },
    DetachConsole,
    /// Payload: keys.
    ConsoleInput,
    ResizeConsole {
        size: PtySize,
    },
    /// → `Reply::ConsoleLog` with the ring as payload.
    GetConsoleLog,
    ClearConsoleLog,

    /// → `Reply::Root` with two descriptors (SCM_RIGHTS): the guest's root directory (O_PATH) and its user namespace
    /// (the host's own one for a privileged guest). Use openat2 RESOLVE_IN_ROOT beneath the first.
    OpenRoot,
    /// → `Reply::Route` with one descriptor: a route socket in the guest's network namespace, which it keeps alive.
    /// A monitor that does not know this drops the connection.
    OpenRoute,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopHow {
    /// Ask init; wait at most this long (0: for ever).
    Graceful { timeout_ms: u64 },
    /// Thaw and kill.
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtySize {
    pub rows: u16,
    pub cols: u16,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartExec {
    /// Chosen by the service, unique for this guest. Starting it again answers with the running one.
    pub exec_id: String,
    pub argv: Vec<String>,
    /// The whole environment; `PATH` in it is where argv[0] is looked up, inside the guest.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// `None`: `/`.
    #[serde(default)]
    pub cwd: Option<String>,
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
    #[serde(default)]
    pub groups: Vec<u32>,
    /// With a terminal there is one stream: stdout.
    #[serde(default)]
    pub pty: Option<PtySize>,
    /// Without it stdin is at its end from the start. Ignored with a terminal.
    #[serde(default)]
    pub stdin: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Done,
    Hello(HelloReply),
    State(Box<State>),
    /// `pid` in the host's numbering.
    ExecStarted {
        exec_id: String,
        pid: i32,
        already: bool,
    },
    /// `stdin_offset`: send stdin from here on.
    ExecAttached {
        exec_id: String,
        pid: i32,
        stdin_offset: u64,
        stdout_offset: u64,
        stderr_offset: u64,
    },
    Exec(ExecState),
    Execs(Vec<ExecState>),
    ConsoleLog,
    Root,
    Route,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloReply {
    pub version: u32,
    /// Version of the program, for the log.
    pub build: String,
    pub uid: String,
    pub project: String,
    pub name: String,
    pub generation: u64,
    pub monitor_pid: i32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Init ended; its namespaces may still be there.
    InitExited {
        run: u64,
        reason: ExitReason,
    },
    /// A new run after a reboot from inside.
    Rebooted {
        run: u64,
        init_pid: i32,
        generation: u64,
    },
    /// The last event: everything is cleaned up, `status.json` is written. Only the host's ends of links may be
    /// there for some 20 ms more; a start of the same instance waits for them.
    Stopped(Ended),
    Frozen,
    Thawed,
    /// The exec's client (or nobody) got everything.
    ExecExited {
        exec_id: String,
        status: ExitStatus,
        stdout_end: u64,
        stderr_end: u64,
    },
    /// Payload: bytes of the stream from `offset`.
    ExecOutput {
        exec_id: String,
        stream: Stream,
        offset: u64,
    },
    /// Stdin up to `offset` was given to the program: the client may send EXEC_WINDOW beyond it.
    ExecStdinAccepted {
        exec_id: String,
        offset: u64,
    },
    /// Another connection took this exec over.
    ExecDetached {
        exec_id: String,
    },
    /// Payload: bytes.
    ConsoleOutput,
    /// Another connection took the console over, or the guest rebooted or stopped.
    ConsoleDetached,
    /// A request with id 0 failed.
    Refused {
        fault: Fault,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    Code(i32),
    Signal(i32),
}

impl ExitStatus {
    /// As a shell tells it: 128 + signal.
    pub fn shell_code(self) -> i32 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128 + signal,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest switched itself off, or init ended with status 0.
    Halt,
    Reboot,
    /// `Stop { how: Kill }`.
    Killed,
    /// Init ended by itself in another way.
    Crash,
    /// It rebooted too often, and was not started again.
    RebootLoop,
    /// The run after a reboot could not be started.
    RestartFailed,
}

/// Content of `status.json` and of [`Event::Stopped`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub uid: String,
    pub generation: u64,
    pub run: u64,
    pub reason: ExitReason,
    pub status: Option<ExitStatus>,
    pub started_at_ms: u64,
    pub ended_at_ms: u64,
    /// CPU time of the last run.
    pub cpu_ns: Option<u64>,
    /// Set for `RestartFailed`.
    pub fault: Option<Fault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Running,
    /// Asked to, not all tasks are frozen yet.
    Freezing,
    Frozen,
    /// A stop was asked for, or init is ending.
    Stopping,
}

/// What the kernel says about the guest now. `None`: the kernel has no such counter here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub status: Status,
    pub generation: u64,
    /// 1 for the first, one more per reboot.
    pub run: u64,
    pub init_pid: i32,
    pub monitor_pid: i32,
    /// Start of this run, milliseconds since the epoch.
    pub started_at_ms: u64,
    pub uptime_ms: u64,
    pub cpu_ns: Option<u64>,
    pub memory: MemoryState,
    pub pids: Option<u64>,
    pub pids_limit: Option<u64>,
    pub links: Vec<LinkState>,
    pub frozen_by: Vec<String>,
    pub console_attached: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryState {
    pub usage: Option<u64>,
    pub peak: Option<u64>,
    /// `None` also when there is no limit.
    pub limit: Option<u64>,
    /// Page cache that can be dropped without I/O; part of `usage`.
    pub inactive_file: Option<u64>,
    pub swap_usage: Option<u64>,
    pub swap_peak: Option<u64>,
    pub oom_kills: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkState {
    pub name: String,
    pub index: u32,
    /// Host end, when it is one of ours.
    pub host_name: Option<String>,
    pub hwaddr: Option<String>,
    pub mtu: u32,
    /// `IFF_*`.
    pub flags: u32,
    /// `loopback` or `broadcast` or `point-to-point`.
    pub kind: String,
    pub up: bool,
    pub addresses: Vec<LinkAddress>,
    pub counters: LinkCounters,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkAddress {
    /// `inet` or `inet6`.
    pub family: String,
    pub address: String,
    pub prefix: u8,
    /// `local`, `link` or `global`.
    pub scope: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCounters {
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub packets_received: u64,
    pub packets_sent: u64,
    pub errors_received: u64,
    pub errors_sent: u64,
    pub dropped_inbound: u64,
    pub dropped_outbound: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecState {
    pub exec_id: String,
    pub pid: i32,
    pub status: Option<ExitStatus>,
    pub started_at_ms: u64,
    pub attached: bool,
    /// First kept and one past the last byte of each stream.
    pub stdout: (u64, u64),
    pub stderr: (u64, u64),
    pub stdin_offset: u64,
}

/// The one line on the status descriptor when a monitor starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartReport {
    Ok {
        init_pid: i32,
        monitor_pid: i32,
        started_at_ms: u64,
    },
    Error(Fault),
}
