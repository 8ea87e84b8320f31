//! Storage volumes. Those of instances and images are shown here and belong to these.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::routing::get;
use berth_proto::storage;
use berth_rpc::{Error, names};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::body::{self, Config, Json};
use super::envelope::{self, Answer};
use super::query::Query;
use super::{etag, refuse_all, storage_pools, storage_volume_snapshots, urls};
use crate::App;
use crate::app::{lists, time, volumes};
use crate::error::Failure;

/// Routes.
pub(super) fn routes() -> Router<App> {
    const BACKUPS: &str = "backups of storage volumes";
    Router::new()
        .route("/1.0/storage-pools/{pool}/volumes", get(list).post(create))
        .route(
            "/1.0/storage-pools/{pool}/volumes/{type}",
            get(list_type).post(create_typed),
        )
        .route(
            "/1.0/storage-pools/{pool}/volumes/{type}/{volume}",
            get(show)
                .put(replace)
                .patch(change)
                .post(rename)
                .delete(delete),
        )
        .route(
            "/1.0/storage-pools/{pool}/volumes/{type}/{volume}/state",
            get(state),
        )
        .merge(storage_volume_snapshots::routes())
        .merge(refuse_all(&[
            (
                "/1.0/storage-pools/{pool}/volumes/{type}/{volume}/backups",
                BACKUPS,
            ),
            (
                "/1.0/storage-pools/{pool}/volumes/{type}/{volume}/backups/{backup}",
                BACKUPS,
            ),
            (
                "/1.0/storage-pools/{pool}/volumes/{type}/{volume}/backups/{backup}/export",
                BACKUPS,
            ),
        ]))
}

/// A volume as LXD renders it.
#[derive(Debug, Clone, Serialize)]
struct Shown {
    config: BTreeMap<String, String>,
    description: String,
    name: String,
    r#type: String,
    used_by: Vec<String>,
    location: &'static str,
    content_type: String,
    project: String,
    created_at: String,
    #[serde(skip)]
    pool: String,
}

impl From<storage::Volume> for Shown {
    fn from(volume: storage::Volume) -> Self {
        let name = names::Volume::parse("name", &volume.name).unwrap_or_else(|_| {
            // A name the service itself gave; shown as it is rather than left out.
            names::Volume::new("", "", "", urls::last(&volume.name))
        });
        Self {
            config: volume.config.into_iter().collect(),
            description: volume.description,
            name: name.volume.clone(),
            r#type: urls::volume_type(&name.collection).to_owned(),
            used_by: match name.collection.as_str() {
                // An image's copy in a pool is the image's.
                "images" => vec![format!("/1.0/images/{}", name.volume)],
                _ => urls::of_resources(volume.holds.iter().map(|hold| hold.holder.as_str())),
            },
            location: "none",
            content_type: volume.content_type,
            project: name.project,
            created_at: time::or_zero(&volume.create_time).to_owned(),
            pool: name.pool,
        }
    }
}

impl Shown {
    fn etag(&self) -> String {
        etag::of(&(&self.name, &self.r#type, &self.config, &self.description))
    }

    fn url(&self) -> String {
        location(&self.pool, &self.r#type, &self.name)
    }
}

fn location(pool: &str, kind: &str, volume: &str) -> String {
    format!(
        "/1.0/storage-pools/{}/volumes/{kind}/{}",
        urls::escape(pool),
        urls::escape(volume)
    )
}

/// The collection that a path's volume type names.
pub(super) fn collection(kind: &str) -> Result<&'static str, Failure> {
    urls::collection(kind).ok_or_else(|| Failure::bad_request("Invalid storage volume type name"))
}

/// The resource name of the volume in a path.
pub(super) fn resource(
    query: &Query,
    (pool, kind, volume): (&str, &str, &str),
) -> Result<String, Failure> {
    let collection = collection(kind)?;
    let pool = urls::named("Storage pool", pool)?;
    let volume = urls::named("Storage pool volume", volume)?;
    Ok(names::Volume::new(&query.project, pool, collection, volume).to_string())
}

/// LXD's words for a volume that is not there; a missing pool keeps its own.
pub(super) fn missing(status: tonic::Status) -> Failure {
    let mut failure = Failure::from(status);
    if failure.status == http::StatusCode::NOT_FOUND
        && !failure.message.starts_with("Storage pool")
        && !failure.message.starts_with("Pool")
    {
        failure.message = "Storage pool volume not found".to_owned();
    }
    failure
}

async fn list(State(app): State<App>, Path(pool): Path<String>, query: Query) -> Answer {
    listing(&app, &query, &pool, "").await
}

async fn list_type(
    State(app): State<App>,
    Path((pool, kind)): Path<(String, String)>,
    query: Query,
) -> Answer {
    let collection = collection(&kind)?;
    listing(&app, &query, &pool, collection).await
}

async fn listing(app: &App, query: &Query, pool: &str, collection: &str) -> Answer {
    let filter = query.filter()?;
    let pool = urls::named("Storage pool", pool)?;
    let parent = names::ProjectPool::new(&query.project, pool).to_string();
    let volumes = lists::volumes(&app.owners, &parent, collection).await?;
    let has_snapshots = volumes.iter().any(|volume| volume.snapshot_count > 0);
    let mut shown: Vec<Shown> = volumes.into_iter().map(Shown::from).collect();
    if query.recursion > 0 && has_snapshots {
        let kind = if collection.is_empty() {
            "-"
        } else {
            collection
        };
        let snapshots = volumes::snapshots_of(&app.owners, &format!("{parent}/{kind}/-")).await?;
        let snapshots: Vec<Shown> = snapshots
            .iter()
            .filter_map(|snapshot| as_volume(&shown, snapshot))
            .collect();
        shown.extend(snapshots);
    }
    shown.sort_by(|a, b| (&a.r#type, &a.name).cmp(&(&b.r#type, &b.name)));
    if let Some(filter) = filter {
        shown.retain(|volume| {
            serde_json::to_value(volume).is_ok_and(|object| filter.matches(&object))
        });
    }
    if query.recursion == 0 {
        let urls: Vec<String> = shown.iter().map(Shown::url).collect();
        return Ok(envelope::sync(urls));
    }
    Ok(envelope::sync(shown))
}

/// LXD lists a volume's snapshots beside it, named `volume/snapshot`.
fn as_volume(shown: &[Shown], snapshot: &storage::Snapshot) -> Option<Shown> {
    let name = names::VolumeSnapshot::parse("name", &snapshot.name).ok()?;
    let kind = urls::volume_type(&name.collection);
    let owner = shown
        .iter()
        .find(|v| v.name == name.volume && v.r#type == kind && v.pool == name.pool)?;
    Some(Shown {
        config: snapshot.config.clone().into_iter().collect(),
        description: snapshot.description.clone(),
        name: format!("{}/{}", owner.name, name.snapshot),
        created_at: time::or_zero(&snapshot.create_time).to_owned(),
        ..owner.clone()
    })
}

async fn read(
    app: &App,
    query: &Query,
    path: (&str, &str, &str),
) -> Result<storage::Volume, Failure> {
    let name = resource(query, path)?;
    let volume = app
        .owners
        .volumes()
        .get_volume(storage::GetVolumeRequest { name })
        .await
        .map_err(missing)?;
    Ok(volume.into_inner())
}

async fn show(
    State(app): State<App>,
    Path((pool, kind, volume)): Path<(String, String, String)>,
    query: Query,
) -> Answer {
    let shown = Shown::from(read(&app, &query, (&pool, &kind, &volume)).await?);
    let etag = shown.etag();
    Ok(envelope::sync_etag(shown, &etag))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    name: String,
    r#type: String,
    content_type: String,
    description: Option<String>,
    #[serde(deserialize_with = "body::config_opt")]
    config: Option<Config>,
    source: Source,
    /// PUT: a snapshot to go back to.
    restore: String,
    /// POST on a volume: where to move it.
    pool: String,
    project: String,
    migration: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Source {
    name: String,
    r#type: String,
    pool: String,
    project: String,
    volume_only: bool,
    refresh: bool,
}

async fn create(
    State(app): State<App>,
    Path(pool): Path<String>,
    query: Query,
    request: Request,
) -> Answer {
    let body = posted(request).await?;
    let kind = body.r#type.clone();
    make(&app, &query, &pool, &kind, body).await
}

async fn create_typed(
    State(app): State<App>,
    Path((pool, kind)): Path<(String, String)>,
    query: Query,
    request: Request,
) -> Answer {
    let body = posted(request).await?;
    make(&app, &query, &pool, &kind, body).await
}

async fn posted(request: Request) -> Result<Body, Failure> {
    use axum::extract::FromRequest as _;

    if request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/octet-stream")
    {
        return Err(Failure::unsupported("importing a storage volume's backup"));
    }
    let Json(body) = Json::from_request(request, &()).await?;
    Ok(body)
}

async fn make(app: &App, query: &Query, pool: &str, kind: &str, body: Body) -> Answer {
    if body.name.is_empty() {
        return Err(Failure::bad_request("No name provided"));
    }
    if body.name.contains('/') {
        return Err(Failure::bad_request(
            "Storage volume names may not contain slashes",
        ));
    }
    if kind != "custom" {
        return Err(Failure::bad_request(format!(
            "Currently not allowed to create storage volumes of type {kind:?}"
        )));
    }
    let pool = urls::named("Storage pool", pool)?;
    let content_type = match body.content_type.as_str() {
        "" => "filesystem".to_owned(),
        _ => body.content_type.clone(),
    };
    let mut request = storage::CreateVolumeRequest {
        parent: names::ProjectPool::new(&query.project, pool).to_string(),
        collection: "custom".into(),
        volume_id: body.name.clone(),
        volume: Some(storage::Volume {
            description: body.description.clone().unwrap_or_default(),
            content_type,
            config: body
                .config
                .clone()
                .unwrap_or_default()
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .collect(),
            ..storage::Volume::default()
        }),
        ..storage::CreateVolumeRequest::default()
    };
    match body.source.r#type.as_str() {
        "" if body.source.name.is_empty() => {
            request.source = Some(storage::create_volume_request::Source::Empty(()));
            volumes::create(app, &query.project, request).await?;
            Ok(envelope::empty())
        }
        "" | "copy" => {
            request.with_snapshots = !body.source.volume_only;
            let copied = copy_source(query, pool, &body.source)?;
            request.source = Some(storage::create_volume_request::Source::CopyOf(copied));
            let view = volumes::copy(app, &query.project, request).await?;
            Ok(envelope::operation(&view))
        }
        "migration" => Err(Failure::unsupported(
            "migrating a storage volume (source.type)",
        )),
        other => Err(Failure::bad_request(format!(
            "Unknown source type {other:?}"
        ))),
    }
}

/// Resource name of what is copied: a volume, or `volume/snapshot`.
fn copy_source(query: &Query, pool: &str, source: &Source) -> Result<String, Failure> {
    if source.refresh {
        return Err(Failure::unsupported(
            "refreshing a copied storage volume (source.refresh)",
        ));
    }
    if !source.project.is_empty() && source.project != query.project {
        return Err(Failure::not_found("Project not found"));
    }
    let pool = if source.pool.is_empty() {
        pool
    } else {
        source.pool.as_str()
    };
    let (volume, snapshot) = match source.name.split_once('/') {
        Some((volume, snapshot)) => (volume, Some(snapshot)),
        None => (source.name.as_str(), None),
    };
    let name = resource(query, (pool, "custom", volume))?;
    match snapshot {
        None => Ok(name),
        Some(snapshot) => {
            let snapshot = urls::named("Storage pool volume", snapshot)?;
            Ok(format!("{name}/snapshots/{snapshot}"))
        }
    }
}

async fn replace(
    State(app): State<App>,
    Path((pool, kind, volume)): Path<(String, String, String)>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<Body>,
) -> Answer {
    let path = (pool.as_str(), kind.as_str(), volume.as_str());
    let mut new = read(&app, &query, path).await?;
    etag::check(&headers, &Shown::from(new.clone()).etag())?;
    if !body.restore.is_empty() {
        if kind != "custom" {
            return Err(Failure::bad_request(format!(
                "Restoring storage volumes of type {kind:?} is not allowed"
            )));
        }
        volumes::restore(&app, &query.project, &new.name, urls::last(&body.restore)).await?;
        return Ok(envelope::empty());
    }
    if etag::if_match(&headers).is_none() {
        new.etag.clear();
    }
    new.config = body.config.unwrap_or_default().into_iter().collect();
    new.description = body.description.unwrap_or_default();
    write(&app, new).await
}

async fn change(
    State(app): State<App>,
    Path((pool, kind, volume)): Path<(String, String, String)>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<Body>,
) -> Answer {
    let mut new = read(&app, &query, (&pool, &kind, &volume)).await?;
    etag::check(&headers, &Shown::from(new.clone()).etag())?;
    new.config.extend(body.config.unwrap_or_default());
    if let Some(description) = body.description {
        new.description = description;
    }
    write(&app, new).await
}

async fn write(app: &App, mut volume: storage::Volume) -> Answer {
    volume.config.retain(|_, value| !value.is_empty());
    app.owners
        .volumes()
        .update_volume(storage::UpdateVolumeRequest {
            volume: Some(volume),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["config".into(), "description".into()],
            }),
            request_id: crate::app::request_id(),
        })
        .await
        .map_err(missing)?;
    Ok(envelope::empty())
}

async fn rename(
    State(app): State<App>,
    Path((pool, kind, volume)): Path<(String, String, String)>,
    query: Query,
    Json(body): Json<Body>,
) -> Answer {
    if body.migration {
        return Err(Failure::unsupported("migrating a storage volume"));
    }
    if body.name.is_empty() {
        return Err(Failure::bad_request("No name provided"));
    }
    if body.name.contains('/') {
        return Err(Failure::bad_request(
            "Storage volume names may not contain slashes",
        ));
    }
    if kind != "custom" {
        return Err(Failure::bad_request(format!(
            "Renaming storage volumes of type {kind:?} is not allowed"
        )));
    }
    if !body.project.is_empty() && body.project != query.project {
        return Err(Failure::not_found("Project not found"));
    }
    if !body.pool.is_empty() && body.pool != pool {
        let there = urls::named("Storage pool", &body.pool)?;
        let parent = names::ProjectPool::new(&query.project, there).to_string();
        let moved = read(&app, &query, (&pool, &kind, &volume)).await?;
        let view = volumes::relocate(&app, &query.project, moved, parent, body.name).await?;
        return Ok(envelope::operation(&view));
    }
    app.owners
        .volumes()
        .rename_volume(storage::RenameVolumeRequest {
            name: resource(&query, (&pool, &kind, &volume))?,
            new_volume_id: body.name.clone(),
            request_id: crate::app::request_id(),
        })
        .await
        .map_err(|status| match Error::from(status.clone()).reason.as_str() {
            "HELD" => Failure::bad_request("Volume is still in use by instances or profiles"),
            _ => missing(status),
        })?;
    Ok(envelope::created(&location(&pool, &kind, &body.name)))
}

async fn delete(
    State(app): State<App>,
    Path((pool, kind, volume)): Path<(String, String, String)>,
    query: Query,
) -> Answer {
    let name = resource(&query, (&pool, &kind, &volume))?;
    if kind != "custom" && kind != "image" {
        return Err(Failure::bad_request(format!(
            "Storage volumes of type {kind:?} cannot be deleted with the storage API"
        )));
    }
    volumes::delete(&app, &query.project, &name).await?;
    Ok(envelope::empty())
}

async fn state(
    State(app): State<App>,
    Path((pool, kind, volume)): Path<(String, String, String)>,
    query: Query,
) -> Answer {
    storage_pools::resource(&pool)?;
    let name = resource(&query, (&pool, &kind, &volume))?;
    let usages = app
        .owners
        .volumes()
        .batch_get_usage(storage::BatchGetUsageRequest {
            names: vec![name.clone()],
            parent: String::new(),
        })
        .await
        .map_err(missing)?
        .into_inner()
        .usages;
    match usages.into_iter().find(|usage| usage.name == name) {
        Some(usage) => Ok(envelope::sync(json!({
            "usage": {"used": usage.used_bytes, "total": usage.total_bytes},
        }))),
        None => {
            // Either there is no such volume, or its pool cannot tell.
            read(&app, &query, (&pool, &kind, &volume)).await?;
            Err(Failure::internal("Not supported"))
        }
    }
}
