//! A gateway over the four owners in memory, and what tests do with it.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::sync::Mutex;
use std::time::Duration;

use berth_gateway::app::operations::About;
use berth_gateway::{App, Gateway};
use berth_operations::{Patience, Record, State};
use berth_proto::instance::Profile;
use berth_store::Store;
use berth_testkit::TestDatabase;
use serde::Serialize;

use crate::fakes::Fakes;

/// Owners, a database, and gateways that come and go over them.
pub struct Bed {
    pub fakes: Fakes,
    database: TestDatabase,
    /// Of the gateway that is open: a database has one user at a time.
    store: Mutex<Option<Store>>,
}

impl Bed {
    /// With the default profile that every instance service begins with.
    pub fn new() -> Self {
        let fakes = Fakes::default();
        let name = "projects/default/profiles/default";
        fakes.instance.0.lock().profiles.insert(
            name.into(),
            Profile {
                name: name.into(),
                description: "Default LXD profile".into(),
                ..Profile::default()
            },
        );
        Self {
            fakes,
            database: TestDatabase::sqlite(),
            store: Mutex::default(),
        }
    }

    /// A gateway that has not looked at its database yet.
    pub async fn open(&self) -> App {
        let store = self.database.open(berth_gateway::MIGRATIONS).await.unwrap();
        *self.store.lock().unwrap() = Some(store.clone());
        let app = Gateway::over(store, self.fakes.owners().await);
        app.operations.durable().set_patience(Patience {
            forward: Duration::from_millis(300),
            longest_pause: Duration::from_millis(20),
        });
        app
    }

    /// One that has taken up what was left unfinished. It does not follow the owners' events: the
    /// tasks that do outlive it, and its database would stay in use.
    pub async fn begin(&self) -> App {
        let app = self.open().await;
        app.operations.durable().resume(&app).await.unwrap();
        app
    }

    /// Drops a gateway as a kill would.
    pub async fn kill(&self, app: App) {
        app.operations.durable().halt().await;
        drop(app);
        // Calls under way die with their tasks; what they had begun in an owner ends now.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let store = self.store.lock().unwrap().take();
        if let Some(store) = store {
            store.close().await;
        }
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
    assert_eq!(
        record.state,
        State::Succeeded,
        "{saga}: {:?}",
        record.failure
    );
}
