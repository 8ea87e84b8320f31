//! `/1.0/instances/{name}/snapshots`.

use axum::Router;
use axum::extract::{OriginalUri, Path, State};
use axum::routing::get;
use berth_proto::instance::{
    GetSnapshotRequest, InstanceView as View, ListSnapshotsRequest, Snapshot, UpdateSnapshotRequest,
};
use berth_rpc::{Code, Error};
use http::HeaderMap;
use serde::Deserialize;

use super::body::Json;
use super::envelope::{self, Answer};
use super::instance_view::{SnapshotView, last};
use super::instances::{collection, resource};
use super::query::Query;
use super::{etag, urls};
use crate::App;
use crate::app::operations::About;
use crate::app::sagas::instances::snapshots::Create;
use crate::app::{instances, time};
use crate::error::Failure;

pub(super) fn routes(prefix: &str) -> Router<App> {
    Router::new()
        .route(
            &format!("{prefix}/{{name}}/snapshots"),
            get(list).post(create),
        )
        .route(
            &format!("{prefix}/{{name}}/snapshots/{{snapshot}}"),
            get(show)
                .put(replace)
                .patch(change)
                .post(rename)
                .delete(delete),
        )
}

async fn list(
    State(app): State<App>,
    Path(name): Path<String>,
    OriginalUri(uri): OriginalUri,
    query: Query,
) -> Answer {
    let (collection, _) = collection(&uri);
    let request = ListSnapshotsRequest {
        parent: resource(&query, &name)?,
    };
    let mut snapshots = app
        .owners
        .snapshots()
        .list_snapshots(request)
        .await?
        .into_inner()
        .snapshots;
    snapshots.sort_by(|a, b| (&a.create_time, &a.name).cmp(&(&b.create_time, &b.name)));
    if query.recursion > 0 {
        let views: Vec<_> = snapshots.into_iter().map(SnapshotView::new).collect();
        return Ok(envelope::sync(views));
    }
    let urls: Vec<String> = snapshots
        .iter()
        .map(|s| {
            let (name, snapshot) = (urls::escape(&name), urls::escape(last(&s.name)));
            format!("/1.0/{collection}/{name}/snapshots/{snapshot}")
        })
        .collect();
    Ok(envelope::sync(urls))
}

async fn read(app: &App, query: &Query, name: &str, snapshot: &str) -> Result<Snapshot, Failure> {
    let instance = resource(query, name)?;
    let snapshot_name = urls::named("InstanceSnapshot", snapshot)?;
    let request = GetSnapshotRequest {
        name: format!("{instance}/snapshots/{snapshot_name}"),
    };
    match app.owners.snapshots().get_snapshot(request).await {
        Ok(found) => Ok(found.into_inner()),
        Err(status) => {
            let error = Error::from(status);
            if error.code == Code::NotFound {
                return Err(Failure::not_found(format!(
                    "Failed to fetch snapshot {snapshot:?} of instance {name:?} in project {:?}: \
                     InstanceSnapshot not found",
                    query.project
                )));
            }
            Err(error.into())
        }
    }
}

async fn show(
    State(app): State<App>,
    Path((name, snapshot)): Path<(String, String)>,
    query: Query,
) -> Answer {
    let snapshot = read(&app, &query, &name, &snapshot).await?;
    let tag = snapshot.etag.clone();
    Ok(envelope::sync_etag(SnapshotView::new(snapshot), &tag))
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct CreateBody {
    name: String,
    stateful: bool,
    expires_at: Option<String>,
}

async fn create(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Query,
    Json(body): Json<CreateBody>,
) -> Answer {
    let instance = resource(&query, &name)?;
    if body.stateful {
        return Err(Failure::unsupported("stateful snapshots"));
    }
    let record = instances::get(&app, &instance, View::Basic).await?;
    let expire_time = match body.expires_at.as_deref() {
        // Nothing said: the instance's own rule holds.
        None => instances::snapshot_expiry(&record)?,
        said => time::or_empty(said).map_err(Failure::bad_request)?,
    };
    let snapshot = Create {
        instance,
        snapshot: body.name,
        expire_time,
        stateful: false,
    };
    let operation = instances::begin_snapshot(&app, snapshot, "").await?;
    Ok(envelope::operation(&operation.record().into()))
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct UpdateBody {
    expires_at: Option<String>,
}

async fn replace(
    State(app): State<App>,
    Path(path): Path<(String, String)>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<UpdateBody>,
) -> Answer {
    let expires_at = Some(body.expires_at.unwrap_or_default());
    update(&app, path, &query, &headers, expires_at).await
}

async fn change(
    State(app): State<App>,
    Path(path): Path<(String, String)>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<UpdateBody>,
) -> Answer {
    update(&app, path, &query, &headers, body.expires_at).await
}

/// Only the expiry changes, and 5.0.2 answers with an operation.
async fn update(
    app: &App,
    (name, snapshot): (String, String),
    query: &Query,
    headers: &HeaderMap,
    expires_at: Option<String>,
) -> Answer {
    let current = read(app, query, &name, &snapshot).await?;
    etag::check(headers, &current.etag)?;
    let expire_time = match expires_at {
        None => current.expire_time,
        said => time::or_empty(said.as_deref()).map_err(Failure::bad_request)?,
    };
    let request = UpdateSnapshotRequest {
        snapshot: Some(Snapshot {
            name: current.name,
            expire_time,
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["expire_time".to_owned()],
        }),
        request_id: crate::app::request_id(),
    };
    // One call to one owner, durable there; the operation is only the form of the answer.
    app.owners.snapshots().update_snapshot(request).await?;
    let about = About::task("Updating snapshot", &query.project).on_container(&snapshot);
    let view = app.operations.spawn(about, |_| async { Ok(()) });
    Ok(envelope::operation(&view))
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct RenameBody {
    name: String,
    migration: bool,
}

async fn rename(
    State(app): State<App>,
    Path((name, snapshot)): Path<(String, String)>,
    query: Query,
    Json(body): Json<RenameBody>,
) -> Answer {
    if body.migration {
        return Err(Failure::unsupported("migration"));
    }
    read(&app, &query, &name, &snapshot).await?;
    if read(&app, &query, &name, &body.name).await.is_ok() {
        return Err(Failure::conflict(format!(
            "Name '{name}/{}' already in use",
            body.name
        )));
    }
    let instance = resource(&query, &name)?;
    let operation =
        instances::begin_rename_snapshot(&app, &instance, &snapshot, &body.name, "").await?;
    Ok(envelope::operation(&operation.record().into()))
}

async fn delete(
    State(app): State<App>,
    Path((name, snapshot)): Path<(String, String)>,
    query: Query,
) -> Answer {
    read(&app, &query, &name, &snapshot).await?;
    let instance = resource(&query, &name)?;
    let operation = instances::begin_delete_snapshot(&app, &instance, &snapshot, "").await?;
    Ok(envelope::operation(&operation.record().into()))
}
