//! `/1.0/instances` and its two older names.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::{OriginalUri, Path, State};
use axum::routing::get;
use berth_proto::image::resolve_image_request::{Properties, Selector};
use berth_proto::instance::instance::{Status, Type};
use berth_proto::instance::{Device, Instance, InstanceView as View, UpdateInstanceRequest};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;

use super::body::{self, Config, Json};
use super::envelope::{self, Answer};
use super::instance_state::StateBody;
use super::instance_view::{InstanceView, last, status, type_name};
use super::query::Query;
use super::{etag, refused, urls};
use crate::App;
use crate::app::instances::{self, Creation, Source};
use crate::error::Failure;

pub(super) fn routes(prefix: &str) -> Router<App> {
    Router::new()
        .route(prefix, get(list).post(create).put(bulk))
        .route(
            &format!("{prefix}/{{name}}"),
            get(show)
                .put(replace)
                .patch(merge)
                .post(rename)
                .delete(delete),
        )
        .route(
            &format!("{prefix}/{{name}}/backups"),
            get(backups).post(|| async { Failure::unsupported("instance backups") }),
        )
        .route(
            &format!("{prefix}/{{name}}/backups/{{backup}}"),
            refused("instance backups"),
        )
        .route(
            &format!("{prefix}/{{name}}/backups/{{backup}}/export"),
            refused("instance backups"),
        )
}

/// The collection a request names, e.g. `containers`, and the type it implies.
pub(super) fn collection(uri: &http::Uri) -> (&str, Option<Type>) {
    match uri.path().split('/').nth(2) {
        Some("containers") => ("containers", Some(Type::Container)),
        Some("virtual-machines") => ("virtual-machines", Some(Type::VirtualMachine)),
        _ => ("instances", None),
    }
}

fn wanted_type(query: &Query, implied: Option<Type>) -> Result<Option<Type>, Failure> {
    match query.get("instance-type") {
        "" => Ok(implied),
        "container" => Ok(Some(Type::Container)),
        "virtual-machine" => Ok(Some(Type::VirtualMachine)),
        _ => Err(Failure::bad_request("Invalid instance type")),
    }
}

async fn list(State(app): State<App>, OriginalUri(uri): OriginalUri, query: Query) -> Answer {
    let (collection, implied) = collection(&uri);
    let wanted = wanted_type(&query, implied)?;
    let filter = query.filter()?;
    let parent = if query.all_projects {
        "projects/-".to_owned()
    } else {
        query.parent()
    };
    // A filter may ask for anything, the state included.
    let full = query.recursion >= 2;
    let (mut all, usage) = if full {
        instances::list_full(&app, &parent).await?
    } else {
        let all = instances::list(&app, &parent, View::Basic).await?;
        (all, instances::Usage::new())
    };
    all.retain(|i| wanted.is_none_or(|kind| type_name(i.r#type()) == type_name(kind)));
    all.sort_by(|a, b| a.name.cmp(&b.name));
    if query.recursion == 0 && filter.is_none() {
        let urls: Vec<String> = all
            .iter()
            .map(|i| format!("/1.0/{collection}/{}", urls::escape(last(&i.name))))
            .collect();
        return Ok(envelope::sync(urls));
    }
    let views = all.into_iter().map(|i| {
        if full {
            InstanceView::full(i, &usage)
        } else {
            InstanceView::basic(i)
        }
    });
    let Some(filter) = filter else {
        return Ok(envelope::sync(views.collect::<Vec<_>>()));
    };
    let mut passed = Vec::new();
    for view in views {
        let name = view.name.clone();
        let value = serde_json::to_value(view).map_err(|e| Failure::internal(e.to_string()))?;
        if filter.matches(&value) {
            passed.push(if query.recursion == 0 {
                Value::String(format!("/1.0/{collection}/{}", urls::escape(&name)))
            } else {
                value
            });
        }
    }
    Ok(envelope::sync(passed))
}

/// Resource name of the instance that a path names.
pub(super) fn resource(query: &Query, name: &str) -> Result<String, Failure> {
    let name = urls::named("Instance", name)?;
    Ok(format!("{}/instances/{name}", query.parent()))
}

async fn show(State(app): State<App>, Path(name): Path<String>, query: Query) -> Answer {
    let name = resource(&query, &name)?;
    if query.recursion > 0 {
        let (instance, usage) = instances::get_full(&app, &name).await?;
        let tag = instance.etag.clone();
        return Ok(envelope::sync_etag(
            InstanceView::full(instance, &usage),
            &tag,
        ));
    }
    let instance = instances::get(&app, &name, View::Basic).await?;
    let tag = instance.etag.clone();
    Ok(envelope::sync_etag(InstanceView::basic(instance), &tag))
}

/// POST /1.0/instances.
#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct CreateBody {
    name: String,
    architecture: String,
    #[serde(deserialize_with = "body::config")]
    config: Config,
    #[serde(deserialize_with = "body::devices")]
    devices: BTreeMap<String, Config>,
    ephemeral: bool,
    profiles: Option<Vec<String>>,
    description: String,
    stateful: bool,
    source: SourceBody,
    instance_type: String,
    r#type: String,
    start: bool,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct SourceBody {
    r#type: String,
    mode: String,
    alias: String,
    fingerprint: String,
    #[serde(deserialize_with = "body::config")]
    properties: Config,
    server: String,
    protocol: String,
    secret: String,
    source: String,
    project: String,
    refresh: bool,
    instance_only: bool,
    container_only: bool,
}

impl SourceBody {
    fn read(self, parent: &str) -> Result<Source, Failure> {
        match self.r#type.as_str() {
            "none" => Ok(Source::Empty),
            "image" => self.image(),
            "copy" => self.copy(parent),
            "migration" => Err(Failure::unsupported("migration between servers")),
            other => Err(Failure::bad_request(format!("Unknown source type {other}"))),
        }
    }

    fn image(self) -> Result<Source, Failure> {
        if !self.server.is_empty() {
            let what = format!("images from another server ({})", self.server);
            return Err(Failure::unsupported(what));
        }
        for (field, value) in [("protocol", &self.protocol), ("secret", &self.secret)] {
            if !value.is_empty() {
                return Err(Failure::bad_request(format!(
                    "source.{field} needs source.server"
                )));
            }
        }
        if !matches!(self.mode.as_str(), "" | "pull" | "local") {
            return Err(Failure::unsupported(format!("source.mode {:?}", self.mode)));
        }
        let selector = if !self.fingerprint.is_empty() {
            Selector::Fingerprint(self.fingerprint)
        } else if !self.alias.is_empty() {
            Selector::Alias(self.alias)
        } else if !self.properties.is_empty() {
            Selector::Properties(Properties {
                properties: self.properties.into_iter().collect(),
            })
        } else {
            return Err(Failure::bad_request(
                "Must specify one of alias, fingerprint or properties for init from image",
            ));
        };
        Ok(Source::Image(selector))
    }

    fn copy(self, parent: &str) -> Result<Source, Failure> {
        if self.source.is_empty() {
            return Err(Failure::bad_request("Must specify a source instance"));
        }
        if !matches!(self.project.as_str(), "" | super::query::DEFAULT_PROJECT) {
            return Err(Failure::not_found("Project not found"));
        }
        if self.refresh {
            return Err(Failure::unsupported("refreshing a copy"));
        }
        let of = match self.source.split_once('/') {
            Some((instance, snapshot)) => {
                format!("{parent}/instances/{instance}/snapshots/{snapshot}")
            }
            None => format!("{parent}/instances/{}", self.source),
        };
        Ok(Source::Copy {
            of,
            without_snapshots: self.instance_only || self.container_only,
        })
    }
}

fn device_map(devices: BTreeMap<String, Config>) -> std::collections::HashMap<String, Device> {
    devices
        .into_iter()
        .map(|(name, options)| {
            let options = options.into_iter().collect();
            (name, Device { options })
        })
        .collect()
}

async fn create(
    State(app): State<App>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    query: Query,
    request: axum::extract::Request,
) -> Answer {
    if headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/octet-stream")
    {
        return Err(Failure::unsupported("importing a backup"));
    }
    use axum::extract::FromRequest;
    let Json(body) = Json::<CreateBody>::from_request(request, &()).await?;
    let (_, implied) = collection(&uri);
    let kind = match (body.r#type.as_str(), implied) {
        ("", implied) => implied.unwrap_or(Type::Container),
        ("container", _) => Type::Container,
        ("virtual-machine", _) => Type::VirtualMachine,
        (other, _) => {
            return Err(Failure::bad_request(format!(
                "Invalid instance type {other:?}"
            )));
        }
    };
    let mut config = body.config;
    if !body.instance_type.is_empty() {
        for (key, value) in instances::size_limits(&body.instance_type)? {
            config.entry(key.to_owned()).or_insert(value);
        }
    }
    let source = body.source.read(&query.parent())?;
    let name = if body.name.is_empty() {
        instances::random_name()
    } else {
        body.name
    };
    let creation = Creation {
        project: query.project.clone(),
        name,
        default_profiles: body.profiles.is_none(),
        instance: Instance {
            description: body.description,
            r#type: kind.into(),
            architecture: body.architecture,
            ephemeral: body.ephemeral,
            stateful: body.stateful,
            config: config.into_iter().collect(),
            devices: device_map(body.devices),
            profiles: body.profiles.unwrap_or_default(),
            ..Default::default()
        },
        source,
        start: body.start,
        request_id: String::new(),
    };
    let operation = instances::create(&app, creation).await?;
    Ok(envelope::operation(&operation.record().into()))
}

/// PUT /1.0/instances: a change of state of all.
async fn bulk(State(app): State<App>, query: Query, Json(body): Json<BulkBody>) -> Answer {
    let change = body.state.read()?;
    let operation = instances::begin_bulk_change(&app, &query.project, change).await?;
    Ok(envelope::operation(&operation.record().into()))
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct BulkBody {
    state: StateBody,
}

/// PUT and PATCH of one.
#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct UpdateBody {
    architecture: Option<String>,
    #[serde(deserialize_with = "body::config_opt")]
    config: Option<Config>,
    #[serde(deserialize_with = "body::devices_opt")]
    devices: Option<BTreeMap<String, Config>>,
    ephemeral: Option<bool>,
    profiles: Option<Vec<String>>,
    description: Option<String>,
    stateful: bool,
    restore: String,
}

/// Replaces the configuration, or restores a snapshot: then every other field is noise.
async fn replace(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<UpdateBody>,
) -> Answer {
    let name = resource(&query, &name)?;
    let current = instances::get(&app, &name, View::Basic).await?;
    etag::check(&headers, &current.etag)?;
    if !body.restore.is_empty() {
        if body.stateful {
            return Err(Failure::unsupported("restoring memory (stateful)"));
        }
        // `lxc` sends instance/snapshot, pylxd the snapshot alone.
        let snapshot = match body.restore.split_once('/') {
            Some((instance, snapshot)) if instance == last(&name) => snapshot,
            Some(_) => return Err(Failure::bad_request("Snapshot of another instance")),
            None => body.restore.as_str(),
        };
        let operation = instances::begin_restore(&app, &name, snapshot, "").await?;
        return Ok(envelope::operation(&operation.record().into()));
    }
    let update = UpdateInstanceRequest {
        instance: Some(Instance {
            name,
            description: body.description.unwrap_or_default(),
            architecture: body.architecture.unwrap_or(current.architecture),
            ephemeral: body.ephemeral.unwrap_or_default(),
            config: body.config.unwrap_or_default().into_iter().collect(),
            devices: device_map(body.devices.unwrap_or_default()),
            profiles: body.profiles.unwrap_or_default(),
            etag: etag::if_match(&headers).unwrap_or_default().to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let operation = instances::begin_update(&app, update).await?;
    Ok(envelope::operation(&operation.record().into()))
}

/// Merges: config per key, devices per device, lists as a whole. Answers when it is done.
async fn merge(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Query,
    headers: HeaderMap,
    Json(body): Json<UpdateBody>,
) -> Answer {
    if !body.restore.is_empty() {
        return Err(Failure::bad_request("Can't call PATCH in restore mode"));
    }
    let name = resource(&query, &name)?;
    let current = instances::get(&app, &name, View::Basic).await?;
    etag::check(&headers, &current.etag)?;
    let mut paths = Vec::new();
    let mut instance = Instance {
        name,
        etag: etag::if_match(&headers).unwrap_or_default().to_owned(),
        ..Default::default()
    };
    if let Some(architecture) = body.architecture {
        paths.push("architecture".to_owned());
        instance.architecture = architecture;
    }
    if let Some(description) = body.description {
        paths.push("description".to_owned());
        instance.description = description;
    }
    if let Some(ephemeral) = body.ephemeral {
        paths.push("ephemeral".to_owned());
        instance.ephemeral = ephemeral;
    }
    if let Some(profiles) = body.profiles {
        paths.push("profiles".to_owned());
        instance.profiles = profiles;
    }
    if let Some(config) = body.config {
        paths.extend(config.keys().map(|key| format!("config.{key}")));
        instance.config = config.into_iter().collect();
    }
    if let Some(devices) = body.devices {
        paths.extend(devices.keys().map(|name| format!("devices.{name}")));
        instance.devices = device_map(devices);
    }
    if paths.is_empty() {
        return Ok(envelope::empty());
    }
    let update = UpdateInstanceRequest {
        instance: Some(instance),
        update_mask: Some(prost_types::FieldMask { paths }),
        ..Default::default()
    };
    let operation = instances::begin_update(&app, update).await?;
    finished(&operation.wait(None).await)?;
    Ok(envelope::empty())
}

/// The failure of a finished operation, for changes that are answered when they are done.
pub(super) fn finished(record: &berth_operations::Record) -> Result<(), Failure> {
    match (&record.state, &record.failure) {
        (berth_operations::State::Succeeded, _) | (_, None) => Ok(()),
        (_, Some(failure)) => Err(berth_rpc::Error::from(failure.clone()).into()),
    }
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct RenameBody {
    name: String,
    migration: bool,
    pool: String,
    project: String,
}

async fn rename(
    State(app): State<App>,
    Path(name): Path<String>,
    query: Query,
    Json(body): Json<RenameBody>,
) -> Answer {
    let resource = resource(&query, &name)?;
    if body.migration || !body.pool.is_empty() || !body.project.is_empty() {
        return Err(Failure::unsupported("migration"));
    }
    instances::get(&app, &resource, View::Basic).await?;
    instances::validate_name(&body.name)?;
    let new = format!("{}/instances/{}", query.parent(), body.name);
    if instances::get(&app, &new, View::Basic).await.is_ok() {
        return Err(Failure::conflict(format!(
            "Name {:?} already in use",
            body.name
        )));
    }
    let operation = instances::begin_rename(&app, &resource, &body.name, "").await?;
    Ok(envelope::operation(&operation.record().into()))
}

async fn delete(State(app): State<App>, Path(name): Path<String>, query: Query) -> Answer {
    let name = resource(&query, &name)?;
    let instance = instances::get(&app, &name, View::Basic).await?;
    if instance.status() != Status::Stopped && instance.status() != Status::Error {
        let (word, _) = status(instance.status());
        return Err(Failure::bad_request(format!(
            "Instance is {}",
            word.to_lowercase()
        )));
    }
    let operation = instances::begin_delete(&app, &name, false, 0, "").await?;
    Ok(envelope::operation(&operation.record().into()))
}

/// There are none, since none can be made yet.
async fn backups(State(app): State<App>, Path(name): Path<String>, query: Query) -> Answer {
    instances::get(&app, &resource(&query, &name)?, View::Basic).await?;
    Ok(envelope::sync(Vec::<Value>::new()))
}
