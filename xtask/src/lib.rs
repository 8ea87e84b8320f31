//! The workspace's own tool, and what its tests share with it: images, sandboxes, a REST client,
//! the benchmark.

pub mod bed;
pub mod bench;
pub mod deb;
pub mod docs;
pub mod image;
pub mod observe;
pub mod packages;
mod postgres;
pub mod quickstart;
pub mod rest;
pub mod sandbox;
pub mod setup;
pub mod test;
pub mod venv;
