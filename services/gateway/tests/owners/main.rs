//! Images, profiles, storage, networks and the small endpoints, over REST, with the owners in memory.

#![allow(clippy::unwrap_used)]

#[path = "../bed/mod.rs"]
mod bed;
#[path = "../fakes/mod.rs"]
mod fakes;

mod client;
mod grpc;
mod images;
mod networks;
mod others;
mod profiles;
mod storage;
