//! The storage service: pools, volumes and snapshots, for containers and for whoever speaks
//! `berth.storage.v1`.
//!
//! ```text
//!  grpc/    PoolService, VolumeService            the only place that names tonic
//!  app/     one use case a module, reconcile      locks → effect → one commit → publish
//!  store/   pools, volumes, snapshots, holds,     the only place with SQL
//!           tombstones
//!  driver/  dir, btrfs behind one trait           one contract suite: tests/driver.rs
//!  source/  blobs, tar, squashfs, the confined    nothing an archive says leads out of its volume
//!           unpacking thread
//!  host/    ioctls, mounts, loop devices          the only place with `unsafe`
//!  model/   sizes, names, configuration keys      pure
//! ```
//!
//! # What it owns
//! Pools (a directory, or a btrfs in a loop file, on a block device, or one that is there), the
//! volumes in them, their snapshots, and the cache of unpacked images: an image is unpacked once a
//! pool, then cloned. It mounts a pool's filesystem *detached*, without a place in any mount table;
//! others get an `Attachment`, a description of what to mount, and mount it themselves. A loop
//! device stays attached when this service ends, so that guests start without it.
//!
//! # A volume's life
//!
//! ```text
//!                 effect          commit           rename
//!   (nothing) ──▶ staging-<uid>.1 ──▶ row+event ──▶ <uid>.1 ──restore──▶ <uid>.2 ──▶ …
//!                    │ crash here        │ crash here               │
//!                    ▼ removed           ▼ renamed at start         ▼ delete: row → tombstone,
//!                                                                     then contents
//! ```
//!
//! # Invariants
//! * One commit, hence one fsync, for each change; what was answered is in the database.
//! * Names on disk are made from uids. A rename in the API touches one row.
//! * A staging name without a row was never told to anyone and is removed. A final name without
//!   row or tombstone is not known, and is set aside, never removed.
//! * Contents are replaced under a new generation; an old attachment never shows new contents.
//! * What is held is not deleted; the refusal lists the holders.
//! * The kernel tells usage from its quota records; no tree is ever walked for it.
//! * A pool that can't be opened doesn't keep the service from starting; it is tried again.

pub mod app;
pub mod config;
pub mod driver;
pub mod error;
mod grpc;
pub mod host;
pub mod metrics;
pub mod model;
pub mod source;
pub mod store;

pub use app::{App, purge::purge, reconcile};
pub use config::Config;
pub use grpc::Storage;
pub use store::MIGRATIONS;
