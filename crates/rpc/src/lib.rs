//! What every gRPC service and client of Berth shares: the error vocabulary, resource names,
//! page tokens, etags, field masks, trace context and channels.

pub mod call;
pub mod client;
mod error;
mod etag;
pub mod mask;
pub mod names;
pub mod page;
pub mod tls;
pub mod trace;

pub use client::{Channel, check_address, connect, connect_with, notice_loss};
pub use error::{Code, Error, FieldViolation};
pub use etag::etag;

/// Metadata key of a caller's id for one mutating request, where the message has no field for it.
pub const REQUEST_ID: &str = "berth-request-id";
/// Metadata key with which the gateway says for whom it acts. Believed only from the gateway.
pub const ON_BEHALF_OF: &str = "berth-on-behalf-of";
