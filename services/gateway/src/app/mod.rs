//! Use cases, used by REST and gRPC alike.

pub mod events;
pub mod follow;
pub mod holds;
pub mod images;
pub mod instances;
pub mod lists;
pub mod networks;
pub mod operations;
pub mod orphans;
pub mod pools;
pub mod profiles;
pub mod reads;
pub mod sagas;
pub mod scheduled;
pub mod time;
pub mod volumes;
pub mod warnings;
pub mod wire;

/// A fresh request id, for calls that are no step of a saga.
pub fn request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
