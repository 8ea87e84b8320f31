//! `/1.0/operations`.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::get;
use serde_json::Value;

use super::envelope::{self, Answer};
use super::query::Query;
use crate::App;
use crate::error::Failure;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/1.0/operations", get(list))
        .route("/1.0/operations/{id}", get(show).delete(cancel))
        .route("/1.0/operations/{id}/wait", get(wait))
        .route("/1.0/operations/{id}/websocket", get(websocket))
}

/// A map keyed by lowercase status: an array breaks the client.
async fn list(State(app): State<App>, query: Query) -> Answer {
    let mut by_status: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for view in app.operations.list() {
        if !query.all_projects && !view.project.is_empty() && view.project != query.project {
            continue;
        }
        let item = if query.recursion == 0 {
            Value::String(format!("/1.0/operations/{}", view.id))
        } else {
            serde_json::to_value(&view).map_err(|e| Failure::internal(e.to_string()))?
        };
        by_status
            .entry(view.status.to_lowercase())
            .or_default()
            .push(item);
    }
    Ok(envelope::sync(by_status))
}

async fn show(State(app): State<App>, Path(id): Path<String>) -> Answer {
    Ok(envelope::sync(app.operations.get(&id)?))
}

async fn cancel(State(app): State<App>, Path(id): Path<String>) -> Answer {
    app.operations.cancel(&id)?;
    Ok(envelope::empty())
}

/// Failure of the operation, and running out of time, are both 200.
async fn wait(State(app): State<App>, Path(id): Path<String>, query: Query) -> Answer {
    let timeout = match query.get("timeout") {
        "" => None,
        text => {
            let seconds: i64 = text.parse().map_err(|_| {
                Failure::bad_request(format!("timeout {text:?} is not a number of seconds"))
            })?;
            u64::try_from(seconds).ok().map(Duration::from_secs)
        }
    };
    Ok(envelope::sync(app.operations.wait(&id, timeout).await?))
}

async fn websocket(
    State(app): State<App>,
    Path(id): Path<String>,
    query: Query,
    upgrade: WebSocketUpgrade,
) -> Answer {
    let sockets = app.operations.sockets(&id)?;
    let secret = query.get("secret");
    if secret.is_empty() {
        return Err(Failure::bad_request("missing secret"));
    }
    let stream = sockets
        .stream(secret)
        .ok_or_else(|| Failure::forbidden("not authorized"))?;
    Ok(upgrade
        .max_message_size(16 << 20)
        .on_upgrade(move |socket| async move { sockets.attach(&stream, socket) })
        .into_response())
}
