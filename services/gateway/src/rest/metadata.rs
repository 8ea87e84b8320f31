//! `/1.0/instances/{name}/metadata`: the image metadata that an instance carries.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use berth_proto::instance::InstanceView as View;
use serde_json::{Map, Value, json};

use super::envelope::{self, Answer};
use super::instances::resource;
use super::query::Query;
use super::{etag, refused};
use crate::App;
use crate::app::instances;
use crate::error::Failure;

pub(super) fn routes(prefix: &str) -> Router<App> {
    let change = || async { Failure::unsupported("changing instance metadata") };
    Router::new()
        .route(
            &format!("{prefix}/{{name}}/metadata"),
            get(show).put(change).patch(change),
        )
        .route(
            &format!("{prefix}/{{name}}/metadata/templates"),
            refused("instance templates"),
        )
}

/// From the instance's record: architecture, time of creation, and the `image.*` keys that it got
/// from its image as properties.
async fn show(State(app): State<App>, Path(name): Path<String>, query: Query) -> Answer {
    let instance = instances::get(&app, &resource(&query, &name)?, View::Basic).await?;
    let properties: Map<String, Value> = instance
        .config
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix("image.")?, value)))
        .map(|(key, value)| (key.to_owned(), value.clone().into()))
        .collect();
    let created = chrono::DateTime::parse_from_rfc3339(&instance.create_time)
        .map(|time| time.timestamp())
        .unwrap_or_default();
    let metadata = json!({
        "architecture": instance.architecture,
        "creation_date": created,
        "expiry_date": 0,
        "properties": properties,
        "templates": Value::Null,
    });
    let tag = etag::of(&metadata);
    Ok(envelope::sync_etag(metadata, &tag))
}
