//! `berth-monitor`: one small, single-threaded process per running instance, the parent of its init.
//!
//! It is the only code of Berth that forks. The instance service starts it ([`spawn`]), hands it one sealed
//! [`spec::Spec`] and talks to it over a socket ([`protocol`], [`frame`]); the service may die, be upgraded and come
//! back while guests run. As a library this crate is those types, a blocking [`client::Client`],
//! [`attach::open_attachment`] for the files of stopped guests, and [`meter`] for the numbers of running ones. No
//! tokio, no tonic: the program must stay small (half a megabyte each) and its children must be able to allocate
//! after a fork.
//!
//! # Owns
//!
//! Everything a run of a guest has on the host: namespaces, mounts (never attached in anybody else's mount
//! namespace), cgroup directories, links, device nodes, the console, execs. A [`spec::Attachment`] or a
//! [`spec::PortSpec`] says what is wanted; who made the volume or the bridge is not its business.
//!
//! # Life
//!
//! ```text
//!  spec ──► starting ──► running ◄──► freezing ─► frozen
//!              │            │  ▲
//!        report error       │  └── rebooted: new namespaces, cgroups, mounts; run + 1
//!        nothing is left    ▼
//!                        init reaped ──► status.json ──► Stopped ──► socket gone ──► links gone ──► exit
//! ```
//!
//! `starting` is one exchange with the child (`start`): the parent makes cgroups, opens detached mounts and clones;
//! the child joins its v1 cgroups; the parent writes the maps and idmaps the mounts; the child takes its other
//! namespaces; the parent makes the links while the child builds its mount tree; the child executes init.
//! `running` is an epoll loop (`server`) over signals, the socket, the console, execs and the freezer.
//!
//! # Invariants
//!
//! - The loop never waits for the guest: what must run inside runs in a child with a status socket and a deadline.
//! - What a guest wrote is hostile: paths in it are opened beneath a descriptor (openat2) and mounted on by
//!   descriptor; proc that is written to is our own, never the guest's.
//! - An exec has exactly what init has: namespaces, cgroups, bounding set, filter, label, limits.
//! - Every descriptor is close-on-exec; a guest's init begins with 0, 1 and 2.
//! - A frozen guest is held by somebody; a lease ends by itself, and a stop thaws.
//! - `monitor.sock` is there exactly while the guest runs (or is starting); `status.json` is written before it goes.
//!
//! # What a crash leaves
//!
//! Init dies with the monitor (PR_SET_PDEATHSIG), and with it the namespaces, mounts and links. Cgroup directories,
//! the socket file and device nodes stay; the next start of the instance removes them by name. A socket that refuses
//! connections and no `status.json` mean that the monitor was killed.
//!
//! # Run directory
//!
//! `monitor.sock`, `monitor.lock` (flock: one monitor at a time), `status.json` ([`protocol::Ended`]), `devices/`.
//! Log directory: `monitor.log`, `console.log`.

/// Directory of the delegated scope that monitors are in: processes may be in leaves only.
pub const MONITORS: &str = "monitors";

pub mod attach;
pub mod caps;
mod cgroup;
pub mod client;
pub mod error;
pub mod frame;
mod log;
pub mod meter;
pub mod netlink;
pub mod protocol;
pub mod ring;
pub mod rlimit;
pub mod run;
mod server;
pub mod spawn;
pub mod spec;
mod start;
pub mod sys;
