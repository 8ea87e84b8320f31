//! Use cases, used by REST and gRPC alike.

pub mod events;
pub mod instances;
pub mod lists;
pub mod operations;
pub mod sagas;
pub mod time;

/// A fresh request id, for calls that are no step of a saga.
pub fn request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
