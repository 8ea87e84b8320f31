//! Snapshots of custom volumes; those of instances are [`super::snapshots`].

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use berth_proto::storage;
use berth_rpc::Error;
use http::HeaderMap;
use serde::{Deserialize, Serialize};

use super::body::Json;
use super::envelope::{self, Answer};
use super::query::Query;
use super::{etag, storage_volumes, urls};
use crate::App;
use crate::app::{time, volumes};
use crate::error::Failure;

/// Routes.
pub(super) fn routes() -> Router<App> {
    const SNAPSHOTS: &str = "/1.0/storage-pools/{pool}/volumes/{type}/{volume}/snapshots";
    Router::new()
        .route(SNAPSHOTS, get(list).post(create))
        .route(
            &format!("{SNAPSHOTS}/{{snapshot}}"),
            get(show)
                .put(replace)
                .patch(change)
                .post(rename)
                .delete(delete),
        )
}

/// A snapshot as LXD renders it.
#[derive(Debug, Serialize)]
struct Shown {
    description: String,
    expires_at: Option<String>,
    name: String,
    config: BTreeMap<String, String>,
    content_type: &'static str,
    created_at: String,
}

impl Shown {
    fn alone(found: storage::Snapshot) -> Self {
        Self {
            // Alone it shows the zero time where a list shows null.
            expires_at: Some(expiry(&found).unwrap_or_else(|| time::ZERO.to_owned())),
            name: urls::last(&found.name).to_owned(),
            description: found.description,
            config: found.config.into_iter().collect(),
            content_type: "filesystem",
            created_at: time::or_zero(&found.create_time).to_owned(),
        }
    }

    fn etag(&self) -> String {
        etag::of(&(
            &self.name,
            &self.description,
            &self.config,
            &self.expires_at,
        ))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    name: String,
    expires_at: Option<String>,
}

fn expiry(snapshot: &storage::Snapshot) -> Option<String> {
    (!snapshot.expire_time.is_empty()).then(|| snapshot.expire_time.clone())
}

fn volume(query: &Query, (pool, kind, volume): (&str, &str, &str)) -> Result<String, Failure> {
    storage_volumes::collection(kind)?;
    if kind != "custom" {
        return Err(Failure::bad_request(format!(
            "Invalid storage volume type {kind:?}"
        )));
    }
    storage_volumes::resource(query, (pool, kind, volume))
}

async fn read(app: &App, parent: &str) -> Result<Vec<storage::Snapshot>, Failure> {
    volumes::snapshots_of(&app.owners, parent)
        .await
        .map_err(storage_volumes::missing)
}

async fn find(app: &App, parent: &str, snapshot: &str) -> Result<storage::Snapshot, Failure> {
    read(app, parent)
        .await?
        .into_iter()
        .find(|candidate| urls::last(&candidate.name) == snapshot)
        .ok_or_else(|| Failure::not_found("Storage pool volume snapshot not found"))
}

async fn list(
    State(app): State<App>,
    Path((pool, kind, name)): Path<(String, String, String)>,
    query: Query,
) -> Answer {
    let parent = volume(&query, (&pool, &kind, &name))?;
    let snapshots = read(&app, &parent).await?;
    if query.recursion == 0 {
        let urls: Vec<String> = snapshots
            .iter()
            .map(|snapshot| {
                format!(
                    "/1.0/storage-pools/{}/volumes/{kind}/{}/snapshots/{}",
                    urls::escape(&pool),
                    urls::escape(&name),
                    urls::escape(urls::last(&snapshot.name))
                )
            })
            .collect();
        return Ok(envelope::sync(urls));
    }
    let shown: Vec<Shown> = snapshots
        .into_iter()
        .map(|snapshot| Shown {
            expires_at: expiry(&snapshot),
            name: format!("{name}/{}", urls::last(&snapshot.name)),
            description: snapshot.description,
            config: snapshot.config.into_iter().collect(),
            content_type: "",
            created_at: time::or_zero(&snapshot.create_time).to_owned(),
        })
        .collect();
    Ok(envelope::sync(shown))
}

async fn show(
    State(app): State<App>,
    Path((pool, kind, name, snapshot)): Path<(String, String, String, String)>,
    query: Query,
) -> Answer {
    let parent = volume(&query, (&pool, &kind, &name))?;
    let shown = Shown::alone(find(&app, &parent, &snapshot).await?);
    let etag = shown.etag();
    Ok(envelope::sync_etag(shown, &etag))
}

async fn create(
    State(app): State<App>,
    Path((pool, kind, name)): Path<(String, String, String)>,
    query: Query,
    Json(body): Json<Body>,
) -> Answer {
    let parent = volume(&query, (&pool, &kind, &name))?;
    let request = storage::GetVolumeRequest {
        name: parent.clone(),
    };
    let owner = app
        .owners
        .volumes()
        .get_volume(request)
        .await
        .map_err(storage_volumes::missing)?
        .into_inner();
    let expires = match body.expires_at.as_deref() {
        // Nothing said: the volume's own rule holds.
        None => volumes::snapshot_expiry(&owner)?,
        said => time::or_empty(said).map_err(|why| Error::invalid("expires_at", why))?,
    };
    let present = read(&app, &parent).await?;
    let snapshot = if body.name.is_empty() {
        volumes::next_snapshot_name(&owner, &present)?
    } else {
        body.name
    };
    if snapshot.contains('/') {
        return Err(Failure::bad_request(
            "Snapshot names may not contain slashes",
        ));
    }
    if present.iter().any(|s| urls::last(&s.name) == snapshot) {
        return Err(Failure::conflict(format!(
            "Snapshot {snapshot:?} already in use"
        )));
    }
    let view = volumes::create_snapshot(&app, &parent, &snapshot, &expires, "").await?;
    Ok(envelope::operation(&view))
}

async fn rename(
    State(app): State<App>,
    Path((pool, kind, name, snapshot)): Path<(String, String, String, String)>,
    query: Query,
    Json(body): Json<Body>,
) -> Answer {
    let parent = volume(&query, (&pool, &kind, &name))?;
    if body.name.is_empty() {
        return Err(Failure::bad_request("No name provided"));
    }
    if body.name.contains('/') {
        return Err(Failure::bad_request(
            "Storage volume names may not contain slashes",
        ));
    }
    let snapshot = urls::named("Storage pool volume snapshot", &snapshot)?;
    let view =
        volumes::rename_snapshot(&app, &query.project, &parent, snapshot, &body.name).await?;
    Ok(envelope::operation(&view))
}

async fn delete(
    State(app): State<App>,
    Path((pool, kind, name, snapshot)): Path<(String, String, String, String)>,
    query: Query,
) -> Answer {
    let parent = volume(&query, (&pool, &kind, &name))?;
    find(&app, &parent, &snapshot).await?;
    let view = volumes::delete_snapshot(&app, &parent, &snapshot, "").await?;
    Ok(envelope::operation(&view))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Put {
    description: Option<String>,
    expires_at: Option<String>,
}

/// PUT: what is absent is empty.
async fn replace(
    State(app): State<App>,
    Path(path): Path<(String, String, String, String)>,
    query: Query,
    headers: HeaderMap,
    Json(put): Json<Put>,
) -> Answer {
    let put = Put {
        description: Some(put.description.unwrap_or_default()),
        expires_at: Some(put.expires_at.unwrap_or_default()),
    };
    update(&app, path, &query, &headers, put).await
}

/// PATCH: what is absent stays.
async fn change(
    State(app): State<App>,
    Path(path): Path<(String, String, String, String)>,
    query: Query,
    headers: HeaderMap,
    Json(put): Json<Put>,
) -> Answer {
    update(&app, path, &query, &headers, put).await
}

async fn update(
    app: &App,
    (pool, kind, name, snapshot): (String, String, String, String),
    query: &Query,
    headers: &HeaderMap,
    put: Put,
) -> Answer {
    let parent = volume(query, (&pool, &kind, &name))?;
    let mut found = find(app, &parent, &snapshot).await?;
    etag::check(headers, &Shown::alone(found.clone()).etag())?;
    if let Some(description) = put.description {
        found.description = description;
    }
    if put.expires_at.is_some() {
        found.expire_time = time::or_empty(put.expires_at.as_deref())
            .map_err(|why| Error::invalid("expires_at", why))?;
    }
    volumes::update_snapshot(app, found).await?;
    Ok(envelope::empty())
}
