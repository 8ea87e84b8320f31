//! `/1.0/instances/{name}/state`.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use berth_proto::instance::InstanceView as View;
use serde::Deserialize;

use super::body::Json;
use super::envelope::{self, Answer};
use super::instance_view::StateView;
use super::instances::resource;
use super::query::Query;
use crate::App;
use crate::app::instances;
use crate::app::sagas::instances::state::{Action, Change};
use crate::error::Failure;

pub(super) fn routes(prefix: &str) -> Router<App> {
    Router::new().route(&format!("{prefix}/{{name}}/state"), get(show).put(change))
}

async fn show(State(app): State<App>, Path(name): Path<String>, query: Query) -> Answer {
    let (instance, usage) = instances::get_full(&app, &resource(&query, &name)?).await?;
    Ok(envelope::sync(StateView::of(instance, &usage)))
}

/// What to do with an instance's state.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct StateBody {
    action: String,
    timeout: i32,
    force: bool,
    stateful: bool,
}

impl Default for StateBody {
    fn default() -> Self {
        Self {
            action: String::new(),
            timeout: -1,
            force: false,
            stateful: false,
        }
    }
}

impl StateBody {
    pub(super) fn read(self) -> Result<Change, Failure> {
        let action = Action::parse(&self.action)
            .ok_or_else(|| Failure::bad_request(format!("Unknown action: '{}'", self.action)))?;
        Ok(Change {
            action,
            force: self.force,
            timeout: self.timeout,
            stateful: self.stateful,
        })
    }
}

async fn change(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Query,
    Json(body): Json<StateBody>,
) -> Answer {
    let name = resource(&query, &name)?;
    let change = body.read()?;
    // Only for the 404 that clients branch on.
    instances::get(&app, &name, View::Basic).await?;
    let operation = instances::begin_change(&app, &name, change, "").await?;
    Ok(envelope::operation(&operation.record().into()))
}
