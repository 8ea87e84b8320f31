//! Operations: changes that take a moment, written down so that a crash cannot lose them.
//!
//! A [`Saga`] is a list of stages; the steps of a stage run side by side. Each step has `run` and
//! may have `undo`. Parameters and what steps put out are rows of the gateway's database. After a
//! crash [`Operations::resume`] goes on where the rows say: forward when the operation was
//! running, back when it was unwinding.
//!
//! What a saga's author must keep:
//! * a step is idempotent under its [`StepContext::request_id`];
//! * `undo` succeeds when there is nothing to undo, since a step that failed half-way is undone too;
//! * what is undone in reverse must not need what came later.
//!
//! ```text
//!            step failed or cancelled
//!  running ──────────────────────────► unwinding ──► failed | cancelled
//!     └────► succeeded
//! ```
//!
//! Transient errors (a service is away) are retried inside the step: running forward for
//! [`Patience::forward`], unwinding until it works. Exec and tokens are operations too, but live
//! with their process: [`Operations::spawn`].

mod grpc;
mod measure;
mod model;
mod operation;
mod registry;
mod runner;
mod saga;
mod table;

pub use grpc::{longrunning_server, to_proto, watch_server};
pub use model::{Class, Failure, New, Record, State};
pub use operation::Operation;
pub use registry::{Operations, Patience};
pub use runner::{Fault, Phase, Probe};
pub use saga::{Saga, Step, StepContext, StepFn, for_each};
pub use table::MIGRATION;
