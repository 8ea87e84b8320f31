//! Storage pools.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use berth_proto::storage;
use berth_rpc::names;
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::body::{self, Config, Json};
use super::envelope::{self, Answer};
use super::query::Query;
use super::{etag, urls};
use crate::App;
use crate::app::{lists, pools};
use crate::error::Failure;

/// Routes.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/1.0/storage-pools", get(list).post(create))
        .route(
            "/1.0/storage-pools/{pool}",
            get(show).put(replace).patch(change).delete(delete),
        )
        .route("/1.0/storage-pools/{pool}/resources", get(resources))
}

/// A pool as LXD renders it.
#[derive(Debug, Serialize)]
struct Shown {
    config: BTreeMap<String, String>,
    description: String,
    name: String,
    driver: String,
    // `null` when nothing uses it, as LXD has it.
    used_by: Option<Vec<String>>,
    status: String,
    locations: [&'static str; 1],
}

impl From<storage::Pool> for Shown {
    fn from(pool: storage::Pool) -> Self {
        let used_by = urls::of_resources(pool.used_by.iter().map(String::as_str));
        Self {
            config: pool.config.into_iter().collect(),
            description: pool.description,
            name: urls::last(&pool.name).to_owned(),
            driver: pool.driver,
            used_by: (!used_by.is_empty()).then_some(used_by),
            status: pool.status,
            locations: ["none"],
        }
    }
}

impl Shown {
    fn etag(&self) -> String {
        etag::of(&(&self.name, &self.driver, &self.config, &self.description))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    name: String,
    driver: String,
    description: Option<String>,
    #[serde(deserialize_with = "body::config_opt")]
    config: Option<Config>,
}

/// The resource name of the pool in a path.
pub(super) fn resource(pool: &str) -> Result<String, Failure> {
    Ok(names::Pool::new(urls::named("Storage pool", pool)?).to_string())
}

fn location(name: &str) -> String {
    format!("/1.0/storage-pools/{}", urls::escape(name))
}

async fn list(State(app): State<App>, query: Query) -> Answer {
    let mut shown: Vec<Shown> = lists::pools(&app.owners)
        .await?
        .into_iter()
        .map(Shown::from)
        .collect();
    shown.sort_by(|a, b| a.name.cmp(&b.name));
    if query.recursion == 0 {
        let urls: Vec<String> = shown.iter().map(|pool| location(&pool.name)).collect();
        return Ok(envelope::sync(urls));
    }
    Ok(envelope::sync(shown))
}

async fn read(app: &App, pool: &str) -> Result<storage::Pool, Failure> {
    let name = resource(pool)?;
    let pool = app
        .owners
        .pools()
        .get_pool(storage::GetPoolRequest { name })
        .await
        .map_err(missing)?;
    Ok(pool.into_inner())
}

/// A call that can only miss the pool itself.
pub(super) fn missing(status: tonic::Status) -> Failure {
    if status.code() == tonic::Code::NotFound {
        Failure::not_found("Storage pool not found")
    } else {
        status.into()
    }
}

async fn show(State(app): State<App>, Path(pool): Path<String>, _query: Query) -> Answer {
    let shown = Shown::from(read(&app, &pool).await?);
    let etag = shown.etag();
    Ok(envelope::sync_etag(shown, &etag))
}

async fn create(State(app): State<App>, query: Query, Json(body): Json<Body>) -> Answer {
    if body.name.is_empty() {
        return Err(Failure::bad_request("No name provided"));
    }
    if body.name.contains('/') {
        return Err(Failure::bad_request(
            "Storage pool names may not contain slashes",
        ));
    }
    if body.driver.is_empty() {
        return Err(Failure::bad_request("No driver provided"));
    }
    let pool = storage::Pool {
        name: resource(&body.name)?,
        description: body.description.unwrap_or_default(),
        driver: body.driver,
        config: body.config.unwrap_or_default().into_iter().collect(),
        ..storage::Pool::default()
    };
    pools::create(&app, &query.project, pool).await?;
    Ok(envelope::created(&location(&body.name)))
}

async fn replace(
    State(app): State<App>,
    Path(pool): Path<String>,
    _query: Query,
    headers: HeaderMap,
    Json(body): Json<Body>,
) -> Answer {
    let mut new = read(&app, &pool).await?;
    etag::check(&headers, &Shown::from(new.clone()).etag())?;
    if etag::if_match(&headers).is_none() {
        new.etag.clear();
    }
    new.config = body.config.unwrap_or_default().into_iter().collect();
    new.description = body.description.unwrap_or_default();
    write(&app, new).await
}

async fn change(
    State(app): State<App>,
    Path(pool): Path<String>,
    _query: Query,
    headers: HeaderMap,
    Json(body): Json<Body>,
) -> Answer {
    let mut new = read(&app, &pool).await?;
    etag::check(&headers, &Shown::from(new.clone()).etag())?;
    new.config.extend(body.config.unwrap_or_default());
    if let Some(description) = body.description {
        new.description = description;
    }
    write(&app, new).await
}

async fn write(app: &App, mut pool: storage::Pool) -> Answer {
    pool.config.retain(|_, value| !value.is_empty());
    app.owners
        .pools()
        .update_pool(storage::UpdatePoolRequest {
            pool: Some(pool),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["*".into()],
            }),
            request_id: crate::app::request_id(),
        })
        .await?;
    Ok(envelope::empty())
}

async fn delete(State(app): State<App>, Path(pool): Path<String>, query: Query) -> Answer {
    pools::delete(&app, &query.project, &resource(&pool)?).await?;
    Ok(envelope::empty())
}

async fn resources(State(app): State<App>, Path(pool): Path<String>, _query: Query) -> Answer {
    let name = resource(&pool)?;
    let found = app
        .owners
        .pools()
        .get_pool_resources(storage::GetPoolResourcesRequest { name })
        .await
        .map_err(missing)?
        .into_inner();
    Ok(envelope::sync(json!({
        "space": {"used": found.space_used_bytes, "total": found.space_total_bytes},
        "inodes": {"used": found.inodes_used, "total": found.inodes_total},
    })))
}
