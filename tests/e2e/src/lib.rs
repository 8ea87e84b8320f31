//! Whole-system scenarios: the five real binaries in a sandbox of their own (`xtask up
//! --isolated`), driven by the clients people use: the stock `lxc`, pylxd, raw REST, gRPC.
//!
//! Scenarios that only speak LXD's API also run against any other server, which is how they are
//! checked against LXD itself: `BERTH_E2E_SOCKET=/path/unix.socket cargo nextest run -p berth-e2e
//! lxc_`. They leave such a server as they found it.

#![expect(
    clippy::unwrap_used,
    reason = "a scenario reports what it did not expect by panicking"
)]

pub mod collector;
pub mod inventory;
pub mod lxc;
pub mod machine;
pub mod python;
pub mod rest;
pub mod server;
pub mod wait;

pub use collector::Collector;
pub use lxc::Lxc;
pub use machine::Machine;
pub use rest::Rest;
pub use server::Server;
pub use xtask::image::Kind as Image;
