//! (architecture page follows)
pub mod caps;
pub mod error;
pub mod frame;
pub mod netlink;
pub mod protocol;
pub mod ring;
pub mod rlimit;
pub mod spawn;
pub mod spec;
pub mod sys;
