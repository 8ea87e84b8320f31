//! What is true without any disk: sizes, names, configuration keys. No I/O, no clock.

pub mod config;
pub mod names;
pub mod size;

/// First number given to a volume's quota record; smaller ones are left to other programs that
/// share the filesystem (LXD counts from 10,000).
pub const QUOTA_BASE: u32 = 0x4245_0000;
