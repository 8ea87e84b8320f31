//! The service through its gRPC API, over an in-memory channel, on every database there is.

mod pools;
#[path = "../support/mod.rs"]
mod support;
mod volumes;
