//! The instance service: it owns instances, their snapshots' records and profiles, and runs guests.
//!
//! ```text
//! main.rs ─▶ grpc/ ─▶ app/<verb>_<noun>.rs ─▶ store/      records, events, answered requests (one commit)
//!                            │                model/      pure: keys, devices, expansion, plans, limits, specs
//!                            ├──────────────▶ runtime/    monitors: start, find, speak (`trait Runtime`)
//!                            └──────────────▶ host/       guests' files, logs, cgroup leftovers, host facts
//!
//! runtime/host ──posix_spawn──▶ berth-monitor (one for each guest; outlives this service)
//!      ▲                             │
//!      └── monitor.sock: one lasting connection for questions and events, one more for each exec or console
//! ```
//!
//! It calls no other service. What storage and network made for a device comes as an attachment or a port
//! with the commit, and stays with the record: starts, reboots and autostart need nobody else.
//!
//! # State
//!
//! ```text
//!            create                start                       kill, halt, crash
//!  (nothing) ──────▶ Stopped ───────────▶ Starting ──▶ Running ──────────────▶ Stopped
//!            ◀──────                                    │  ▲ ▲                    ▲
//!            delete                        freeze │  └──┘ reboot from inside     │
//!                                                 ▼   unfreeze                   │
//!                                               Frozen ── kill ──────────────────┘
//! ```
//!
//! # Invariants
//!
//! * The record in memory is the one that was last committed; readers take it without waiting.
//! * One operation at a time works on an instance; a forced stop goes past a graceful one. Other instances
//!   are never waited for.
//! * A change is one transaction: record, event and answer of its request. A launch costs two of them.
//! * A running guest's configuration changes live before it is committed; a guest that refuses keeps the old.
//! * `generation` counts runs. An event says which run it is of, so that a late end of run 7 is not taken
//!   for one of run 8.
//! * What guests use is read in this process ([`runtime::meter`]); a list of many wakes none of their monitors.
//!   What that needs of a guest's network namespace is closed with the run, or the namespace would stay.
//! * Ids of no two instances overlap. No path of a guest is ever resolved in the host's tree.
//!
//! # What a crash leaves
//!
//! * Guests run on. At the next start [`app::App::recover`] finds their monitors by their sockets, takes over
//!   what runs, writes down ends and reboots that nobody saw, and removes leftovers of dead monitors.
//! * A guest that was spawned and not yet committed is adopted as started; the retry of its request gets the
//!   answer it would have had.
//! * Nothing is started again but at the first start after the host booted (`boot_id` is stored).

pub mod app;
pub mod command;
pub mod config;
pub mod grpc;
pub mod host;
pub mod metrics;
pub mod model;
pub mod runtime;
pub mod store;

pub use berth_rpc::{Code, Error};
