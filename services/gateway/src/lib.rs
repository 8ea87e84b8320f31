//! The gateway: LXD's REST API and `berth.gateway.v1` over the four owners.
//!
//! ```text
//!  lxc · pylxd · UI          gRPC clients
//!        │ rest/                   │ grpc/
//!        ▼                         ▼
//!  ┌───────────────── app/ ─────────────────┐     store: operations, their steps,
//!  │ reads: one call per owner              │ ──▶ the event cursors (SQLite or
//!  │ changes: sagas/, run by `Operations`   │     PostgreSQL, durability Normal)
//!  └──┬─────────┬──────────┬──────────┬─────┘
//!     ▼         ▼          ▼          ▼  clients/
//!   image    storage    network   instance
//! ```
//!
//! **Owns**: operations (durable ones are sagas, live ones are websockets that die with it), the
//! clients' event stream, and the translation of every value and error between the owners' words
//! and LXD's. It owns no instance, image, volume or network and keeps no copy of one: every read
//! asks the owners, in parallel, once each.
//!
//! **Life of a change**
//!
//! ```text
//!   request ─▶ validate ─▶ operation (written) ─▶ step 1 ─▶ … ─▶ step n ─▶ Success
//!                                                   │ fails
//!                                                   └─▶ undo k … undo 1 ─▶ Failure
//! ```
//!
//! **Invariants**
//! - A step's `request_id` is made from the operation and the step; running it twice is running it once.
//! - The final event of an operation follows its last metadata update; a finished operation stays
//!   readable for half a minute.
//! - Once a minute it takes the snapshots that are due and removes those that are over, by the same sagas
//!   as on request; the rules are the owners' configuration.
//! - No root, no host effects: nothing here opens a file outside the state directory, and host facts
//!   come from the owners.
//!
//! **What a crash leaves behind**: rows of unfinished operations, which the next start resumes or
//! unwinds; websockets are gone, and what they drove (an exec) ends by its owner's linger time.

pub mod app;
pub mod clients;
pub mod config;
pub mod error;
pub mod grpc;
pub mod rest;

use std::sync::Arc;

use berth_rpc::Error;
use berth_rpc::tls::ClientTls;
use berth_store::Store;

/// What the gateway's database is made of.
pub const MIGRATIONS: &[berth_store::Migration] =
    &[berth_operations::MIGRATION, app::warnings::MIGRATION];

/// Whose operations are whose, where several gateways share a database; there is one.
const NODE: &str = "none";

/// What every handler has.
#[derive(Debug)]
pub struct Gateway {
    /// The four owners.
    pub owners: clients::Owners,
    /// Operations, durable and live.
    pub operations: app::operations::Operations,
    /// The clients' event stream.
    pub events: app::events::Events,
    /// What does not work, as far as somebody looked.
    pub warnings: app::warnings::Warnings,
    /// How the server presents itself.
    pub identity: config::Identity,
}

/// Shared by all handlers.
pub type App = Arc<Gateway>;

impl Gateway {
    /// Over the gateway's own database and the owners' addresses. Nothing happens yet.
    ///
    /// # Errors
    /// When an address is malformed.
    pub fn open(
        store: Store,
        services: &config::Services,
        tls: Option<&Arc<ClientTls>>,
    ) -> Result<App, Error> {
        Ok(Self::over(store, clients::Owners::connect(services, tls)?))
    }

    /// Over owners reached some other way, e.g. in memory.
    pub fn over(store: Store, owners: clients::Owners) -> App {
        let events = app::events::Events::default();
        let warnings = app::warnings::Warnings::new(store.clone());
        let durable = berth_operations::Operations::new(store, NODE, app::sagas::all());
        Arc::new(Self {
            owners,
            operations: app::operations::Operations::new(durable, events.clone()),
            events,
            warnings,
            identity: config::Identity::of_this_process(),
        })
    }

    /// Takes up what a crash left unfinished, and begins to follow the owners' events.
    ///
    /// # Errors
    /// When the database can't be read.
    pub async fn begin(self: &Arc<Self>) -> Result<(), Error> {
        let count = self.operations.durable().resume(self).await?;
        if count > 0 {
            tracing::info!(count, "operations are taken up again");
        }
        app::follow::begin(self);
        app::scheduled::begin(self);
        Ok(())
    }
}
