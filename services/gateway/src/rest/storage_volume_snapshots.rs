//! Snapshots of custom volumes; those of instances are [`super::snapshots`].

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use berth_proto::storage;
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
                .patch(replace)
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
    let request = storage::ListSnapshotsRequest {
        parent: parent.to_owned(),
    };
    let mut snapshots = app
        .owners
        .volumes()
        .list_snapshots(request)
        .await
        .map_err(storage_volumes::missing)?
        .into_inner()
        .snapshots;
    snapshots.sort_by(|a, b| (&a.create_time, &a.name).cmp(&(&b.create_time, &b.name)));
    Ok(snapshots)
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
    let found = read(&app, &parent)
        .await?
        .into_iter()
        .find(|candidate| urls::last(&candidate.name) == snapshot)
        .ok_or_else(|| Failure::not_found("Storage pool volume snapshot not found"))?;
    let shown = Shown {
        // Alone it shows the zero time where a list shows null.
        expires_at: Some(expiry(&found).unwrap_or_else(|| time::ZERO.to_owned())),
        name: snapshot,
        description: found.description,
        config: found.config.into_iter().collect(),
        content_type: "filesystem",
        created_at: time::or_zero(&found.create_time).to_owned(),
    };
    let etag = etag::of(&(
        &shown.name,
        &shown.description,
        &shown.config,
        &shown.expires_at,
    ));
    Ok(envelope::sync_etag(shown, &etag))
}

async fn create(
    State(app): State<App>,
    Path((pool, kind, name)): Path<(String, String, String)>,
    query: Query,
    Json(body): Json<Body>,
) -> Answer {
    let parent = volume(&query, (&pool, &kind, &name))?;
    let expires = time::or_empty(body.expires_at.as_deref())
        .map_err(|why| berth_rpc::Error::invalid("expires_at", why))?;
    let present = read(&app, &parent).await?;
    let snapshot = if body.name.is_empty() {
        next_name(&present)
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
    let view = volumes::create_snapshot(&app, &query.project, &parent, &snapshot, &expires).await?;
    Ok(envelope::operation(&view))
}

/// `snap0`, `snap1`, ...: one more than the highest there is.
fn next_name(present: &[storage::Snapshot]) -> String {
    let next = present
        .iter()
        .filter_map(|s| {
            urls::last(&s.name)
                .strip_prefix("snap")?
                .parse::<u64>()
                .ok()
        })
        .map(|n| n.saturating_add(1))
        .max()
        .unwrap_or(0);
    format!("snap{next}")
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
    let there = read(&app, &parent)
        .await?
        .iter()
        .any(|candidate| urls::last(&candidate.name) == snapshot);
    if !there {
        return Err(Failure::not_found("Storage pool volume snapshot not found"));
    }
    let view = volumes::delete_snapshot(&app, &query.project, &parent, &snapshot).await?;
    Ok(envelope::operation(&view))
}

async fn replace(_headers: HeaderMap) -> Answer {
    Err(Failure::unsupported(
        "changing a storage volume's snapshot (description, expires_at)",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_snapshot_is_one_above_the_highest() {
        let snapshot = |name: &str| storage::Snapshot {
            name: format!("projects/p/storagePools/s/custom/v/snapshots/{name}"),
            ..storage::Snapshot::default()
        };
        assert_eq!(next_name(&[]), "snap0");
        let present = ["snap3", "mine", "snap1", "snapx"].map(snapshot);
        assert_eq!(next_name(&present), "snap4");
    }
}
