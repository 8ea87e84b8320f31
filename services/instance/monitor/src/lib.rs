//! The per-instance monitor: the only code of Berth that forks, and the parent of a guest's init.
//!
//! (architecture page follows)
pub mod attach;
pub mod caps;
mod cgroup;
pub mod client;
pub mod error;
pub mod frame;
mod log;
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
