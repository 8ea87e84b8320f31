//! Pure: types, parsers, transitions and plans. No I/O, no clock, no randomness.

pub mod apparmor;
pub mod attachment;
pub mod cpu;
pub mod device;
pub mod expand;
pub mod idmap;
pub mod keys;
pub mod limits;
pub mod name;
pub mod plan;
pub mod record;
pub mod spec;
pub mod syscalls;
pub mod template;
pub mod template_guard;
pub mod update;
pub mod value;
