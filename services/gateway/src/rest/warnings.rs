//! Warnings.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::body::Json;
use super::envelope::{self, Answer};
use super::query::Query;
use super::{etag, urls};
use crate::App;
use crate::app::warnings::Warning;
use crate::error::Failure;

/// Routes.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/1.0/warnings", get(list)).route(
        "/1.0/warnings/{id}",
        get(show).put(change).patch(change).delete(delete),
    )
}

/// A warning as LXD renders it.
#[derive(Debug, Serialize)]
struct Shown {
    status: &'static str,
    uuid: Uuid,
    location: &'static str,
    project: String,
    r#type: String,
    count: u64,
    first_seen_at: String,
    last_seen_at: String,
    last_message: String,
    severity: &'static str,
    entity_url: String,
}

impl From<Warning> for Shown {
    fn from(warning: Warning) -> Self {
        Self {
            status: if warning.acknowledged {
                "acknowledged"
            } else {
                "new"
            },
            uuid: warning.id,
            location: "none",
            project: warning.project,
            r#type: warning.kind,
            count: warning.count,
            first_seen_at: warning.first_seen,
            last_seen_at: warning.last_seen,
            last_message: warning.message,
            severity: warning.severity,
            entity_url: urls::of_resource(&warning.resource),
        }
    }
}

fn not_found() -> Failure {
    Failure::not_found("Warning not found")
}

fn parse(id: &str) -> Result<Uuid, Failure> {
    id.parse().map_err(|_| not_found())
}

async fn list(State(app): State<App>, query: Query) -> Answer {
    let warnings = app
        .warnings
        .look(&app.owners, &app.operations.busy_instances())
        .await;
    if query.recursion == 0 {
        let urls: Vec<String> = warnings
            .iter()
            .map(|warning| format!("/1.0/warnings/{}", warning.id))
            .collect();
        return Ok(envelope::sync(urls));
    }
    let shown: Vec<Shown> = warnings.into_iter().map(Shown::from).collect();
    Ok(envelope::sync(shown))
}

async fn show(State(app): State<App>, Path(id): Path<String>) -> Answer {
    let id = parse(&id)?;
    let warning = app
        .warnings
        .look(&app.owners, &app.operations.busy_instances())
        .await
        .into_iter()
        .find(|warning| warning.id == id)
        .ok_or_else(not_found)?;
    let shown = Shown::from(warning);
    let etag = etag::of(&shown.status);
    Ok(envelope::sync_etag(shown, &etag))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Put {
    status: String,
}

async fn change(State(app): State<App>, Path(id): Path<String>, Json(put): Json<Put>) -> Answer {
    let acknowledged = match put.status.as_str() {
        "acknowledged" => true,
        "new" => false,
        _ => {
            return Err(Failure::bad_request(
                "Status may only be set to \"acknowledged\" or \"new\"",
            ));
        }
    };
    if app.warnings.acknowledge(parse(&id)?, acknowledged).await? {
        Ok(envelope::empty())
    } else {
        Err(not_found())
    }
}

async fn delete(State(app): State<App>, Path(id): Path<String>) -> Answer {
    if app.warnings.forget(parse(&id)?).await? {
        Ok(envelope::empty())
    } else {
        Err(not_found())
    }
}
