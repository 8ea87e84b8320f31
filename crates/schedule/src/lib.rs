//! When a snapshot is due and when it is over: the texts of `snapshots.schedule`, `snapshots.expiry`
//! and `snapshots.pattern`. The owners check them, the gateway acts on them.

mod cron;
mod expiry;
mod pattern;
mod schedule;

pub use expiry::after;
pub use pattern::{check as check_pattern, fill as fill_pattern};
pub use schedule::Schedule;
