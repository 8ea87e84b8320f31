//! A gateway over the four owners in memory, and what tests do with it.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::sync::Arc;
use std::time::Duration;

use berth_gateway::app::operations::About;
use berth_gateway::{App, Gateway};
use berth_operations::{Patience, Record, State};
use berth_testkit::TestDatabase;
use serde::Serialize;

use crate::fakes::Fakes;

/// Owners, a database, and gateways that come and go over them.
pub struct Bed {
    pub fakes: Fakes,
    database: TestDatabase,
}

impl Bed {
    pub fn new() -> Self {
        Self {
            fakes: Fakes::default(),
            database: TestDatabase::sqlite(),
        }
    }

    /// A gateway that has not looked at its database yet.
    pub async fn open(&self) -> App {
        let store = self
            .database
            .open(&[berth_operations::MIGRATION])
            .await
            .unwrap();
        let app = Gateway::over(store, self.fakes.owners().await);
        app.operations.durable().set_patience(Patience {
            forward: Duration::from_millis(300),
            longest_pause: Duration::from_millis(20),
        });
        app
    }

    /// One that serves.
    pub async fn begin(&self) -> App {
        let app = self.open().await;
        app.begin().await.unwrap();
        app
    }
}

/// Runs a saga to whatever end.
pub async fn run(app: &App, saga: &str, params: &impl Serialize) -> Record {
    let operation = app
        .operations
        .start(saga, params, About::task(saga, "default"))
        .await
        .unwrap();
    let record = operation.wait(Some(Duration::from_secs(10))).await;
    assert!(record.state.is_final(), "{saga} hangs at {:?}", record.step);
    record
}

/// Runs one that must work.
pub async fn done(app: &App, saga: &str, params: &impl Serialize) {
    let record = run(app, saga, params).await;
    assert_eq!(record.state, State::Succeeded, "{saga}: {:?}", record.failure);
}

/// Drops a gateway as a kill would.
pub async fn kill(app: App) {
    app.operations.durable().halt().await;
    drop(app);
    // Calls under way die with their tasks; what they had begun ends now.
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Unused halves of `Arc`s would keep a killed gateway alive.
pub fn alone(app: &App) -> usize {
    Arc::strong_count(app)
}
