//! Instances: what REST and gRPC do with them. Changes begin a saga and give its operation.

mod names;
mod size;

use std::collections::HashMap;

use berth_operations::Operation;
use berth_proto::image::{self, ResolveImageRequest, resolve_image_request::Selector};
use berth_proto::instance::instance::Type;
use berth_proto::instance::{
    GetInstanceRequest, GetSnapshotRequest, ImageInfo, Instance, InstanceView,
    ListInstancesRequest, ListSnapshotsRequest, PlanCreateInstanceRequest, UpdateInstanceRequest,
};
use berth_proto::storage::BatchGetUsageRequest;
use berth_rpc::{Code, Error};

pub use names::{random_name, validate_name};
pub use size::limits as size_limits;

use crate::Gateway;
use crate::app::operations::About;
use crate::app::sagas::devices::{self, Contents};
use crate::app::sagas::instances::state::{Action, Change};
use crate::app::sagas::instances::{create, delete, rename, restore, snapshots, state, update};
use crate::app::wire::Wire;

/// Bytes used and the quota of volumes, by resource name.
pub type Usage = HashMap<String, (i64, i64)>;

/// Where a new instance comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// An image.
    Image(Selector),
    /// An instance's or a snapshot's resource name.
    Copy {
        /// The source.
        of: String,
        /// Leave its snapshots.
        without_snapshots: bool,
    },
    /// No contents.
    Empty,
}

/// An instance to be.
#[derive(Debug, Clone)]
pub struct Creation {
    /// Project's short name.
    pub project: String,
    /// Short name.
    pub name: String,
    /// description, config, devices, profiles, ephemeral, type, architecture.
    pub instance: Instance,
    /// With no profiles given: use the image's, else `default`.
    pub default_profiles: bool,
    /// Where it comes from.
    pub source: Source,
    /// Start it when it is made.
    pub start: bool,
    /// The caller's id for its request.
    pub request_id: String,
}

/// Begins making an instance. The image is looked up first, so that a wrong name is told at once.
///
/// # Errors
/// When the source is not there or not supported.
pub async fn create(app: &Gateway, creation: Creation) -> Result<Operation, Error> {
    let kind = match creation.instance.r#type() {
        Type::VirtualMachine => return Err(Error::unimplemented("Virtual machines")),
        Type::Container | Type::Unspecified => Type::Container,
    };
    validate_name(&creation.name)?;
    let parent = format!("projects/{}", creation.project);
    let mut plan = PlanCreateInstanceRequest {
        parent: parent.clone(),
        instance_id: creation.name.clone(),
        default_profiles: creation.default_profiles,
        ..Default::default()
    };
    let contents = match creation.source {
        Source::Empty => Contents::Empty,
        Source::Image(selector) => {
            let image = resolve(app, &parent, selector, kind).await?;
            let contents = Contents::Image {
                fingerprint: image.fingerprint.clone(),
                blobs: image.blobs.into_iter().map(Wire).collect(),
            };
            plan.image = Some(ImageInfo {
                fingerprint: image.fingerprint,
                architecture: image.architecture,
                properties: image.properties,
                profiles: image.profiles,
            });
            contents
        }
        Source::Copy {
            of,
            without_snapshots,
        } => {
            let contents = copied(app, &of, without_snapshots).await?;
            plan.copy_of = of;
            contents
        }
    };
    let mut instance = creation.instance;
    instance.set_type(kind);
    instance.name = format!("{parent}/instances/{}", creation.name);
    plan.instance = Some(instance);
    let about = About::task("Creating instance", &creation.project)
        .on_container(&creation.name)
        .requested_as(&creation.request_id);
    let params = create::Params {
        plan: Wire(plan),
        contents,
        start: creation.start,
    };
    app.operations.start(create::NAME, &params, about).await
}

async fn resolve(
    app: &Gateway,
    parent: &str,
    selector: Selector,
    kind: Type,
) -> Result<image::Image, Error> {
    let missing = match &selector {
        Selector::Alias(_) => "Image alias not found",
        Selector::Fingerprint(_) | Selector::Properties(_) => "Image not found",
    };
    let request = ResolveImageRequest {
        parent: parent.to_owned(),
        r#type: match kind {
            Type::VirtualMachine => image::image::Type::VirtualMachine.into(),
            Type::Container | Type::Unspecified => image::image::Type::Container.into(),
        },
        touch: true,
        selector: Some(selector),
    };
    match app.owners.images().resolve_image(request).await {
        Ok(image) => Ok(image.into_inner()),
        Err(status) => {
            let error = Error::from(status);
            if error.code == Code::NotFound {
                return Err(Error::new(
                    Code::NotFound,
                    "IMAGE_NOT_FOUND_BY_NAME",
                    missing,
                ));
            }
            Err(error)
        }
    }
}

/// The volume to copy for a source instance or snapshot.
async fn copied(app: &Gateway, of: &str, without_snapshots: bool) -> Result<Contents, Error> {
    let (instance_name, snapshot) = match of.split_once("/snapshots/") {
        Some((instance, snapshot)) => (instance, Some(snapshot)),
        None => (of, None),
    };
    let instance = get(app, instance_name, InstanceView::Basic)
        .await
        .map_err(|error| source_error(error, instance_name))?;
    let (_, attachment) = devices::root(&instance)?;
    let of = match snapshot {
        None => attachment.volume.clone(),
        Some(snapshot) => {
            let request = GetSnapshotRequest {
                name: of.to_owned(),
            };
            app.owners.snapshots().get_snapshot(request).await?;
            format!("{}/snapshots/{snapshot}", attachment.volume)
        }
    };
    let snapshots = if snapshot.is_some() || without_snapshots || instance.snapshot_count == 0 {
        Vec::new()
    } else {
        let request = ListSnapshotsRequest {
            parent: instance_name.to_owned(),
        };
        let list = app.owners.snapshots().list_snapshots(request).await?;
        let names = list.into_inner().snapshots.into_iter();
        names
            .map(|s| s.name.rsplit('/').next().unwrap_or_default().to_owned())
            .collect()
    };
    Ok(Contents::Copy { of, snapshots })
}

fn source_error(error: Error, name: &str) -> Error {
    if error.code != Code::NotFound {
        return error;
    }
    let parts: Vec<&str> = name.split('/').collect();
    let (project, short) = match parts.as_slice() {
        ["projects", project, "instances", short] => (*project, *short),
        _ => ("", name),
    };
    Error::new(
        Code::NotFound,
        "SOURCE_NOT_FOUND",
        format!("Failed to fetch instance {short:?} in project {project:?}: Instance not found"),
    )
}

/// One instance.
///
/// # Errors
/// When it is not there.
pub async fn get(app: &Gateway, name: &str, view: InstanceView) -> Result<Instance, Error> {
    let request = GetInstanceRequest {
        name: name.to_owned(),
        view: view.into(),
    };
    Ok(app
        .owners
        .instances()
        .get_instance(request)
        .await?
        .into_inner())
}

/// One instance with its state, and what its volumes use.
///
/// # Errors
/// When it is not there.
pub async fn get_full(app: &Gateway, name: &str) -> Result<(Instance, Usage), Error> {
    let instance = get(app, name, InstanceView::Full).await?;
    let names: Vec<String> = instance
        .attachments
        .values()
        .map(|a| a.volume.clone())
        .filter(|volume| !volume.is_empty())
        .collect();
    let usage = if names.is_empty() {
        Usage::new()
    } else {
        usage(app, names, String::new()).await
    };
    Ok((instance, usage))
}

/// All instances of a project.
///
/// # Errors
/// When the instance service is away.
pub async fn list(app: &Gateway, parent: &str, view: InstanceView) -> Result<Vec<Instance>, Error> {
    let mut instances = app.owners.instances();
    let mut all = Vec::new();
    let mut request = ListInstancesRequest {
        parent: parent.to_owned(),
        view: view.into(),
        ..Default::default()
    };
    loop {
        let page = instances
            .list_instances(request.clone())
            .await?
            .into_inner();
        all.extend(page.instances);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}

/// The same with what their volumes use: both services are asked at once.
///
/// # Errors
/// When the instance service is away.
pub async fn list_full(app: &Gateway, parent: &str) -> Result<(Vec<Instance>, Usage), Error> {
    let pools = format!("{parent}/storagePools/-");
    let (instances, usage) = tokio::join!(
        list(app, parent, InstanceView::Full),
        usage(app, Vec::new(), pools)
    );
    Ok((instances?, usage))
}

/// What storage knows; where it is away the disks are left out, as for volumes that can't tell.
async fn usage(app: &Gateway, names: Vec<String>, parent: String) -> Usage {
    let request = BatchGetUsageRequest { names, parent };
    match app.owners.volumes().batch_get_usage(request).await {
        Ok(answer) => answer
            .into_inner()
            .usages
            .into_iter()
            .map(|u| (u.name, (u.used_bytes, u.total_bytes)))
            .collect(),
        Err(status) => {
            tracing::warn!(%status, "disk usage is not known");
            Usage::new()
        }
    }
}

/// How the change of an instance presents itself.
fn about_update(update: &UpdateInstanceRequest) -> Result<About, Error> {
    let name = update.instance.as_ref().map_or("", |i| i.name.as_str());
    let name = berth_rpc::names::Instance::parse("instance.name", name)?;
    Ok(About::task("Updating instance", &name.project)
        .on_container(&name.instance)
        .requested_as(&update.request_id))
}

/// Begins an update.
///
/// # Errors
/// When the name is malformed or the database refuses.
pub async fn begin_update(
    app: &Gateway,
    update: UpdateInstanceRequest,
) -> Result<Operation, Error> {
    let about = about_update(&update)?;
    let params = update::Params {
        update: Wire(update),
    };
    app.operations.start(update::NAME, &params, about).await
}

/// Begins a rename.
///
/// # Errors
/// When a name is malformed.
pub async fn begin_rename(
    app: &Gateway,
    name: &str,
    new: &str,
    request_id: &str,
) -> Result<Operation, Error> {
    let parsed = berth_rpc::names::Instance::parse("name", name)?;
    validate_name(new)?;
    let about = About::task("Renaming instance", &parsed.project)
        .on_container(&parsed.instance)
        .requested_as(request_id);
    let params = rename::Params {
        name: name.to_owned(),
        new: new.to_owned(),
    };
    app.operations.start(rename::NAME, &params, about).await
}

/// Begins a deletion; with `force` of a running instance too.
///
/// # Errors
/// When the name is malformed.
pub async fn begin_delete(
    app: &Gateway,
    name: &str,
    force: bool,
    generation: i64,
    request_id: &str,
) -> Result<Operation, Error> {
    let parsed = berth_rpc::names::Instance::parse("name", name)?;
    let about = About::task("Deleting instance", &parsed.project)
        .on_container(&parsed.instance)
        .requested_as(request_id);
    let params = delete::Params {
        name: name.to_owned(),
        force,
        generation,
    };
    app.operations.start(delete::NAME, &params, about).await
}

/// Begins a change of state.
///
/// # Errors
/// When the name is malformed.
pub async fn begin_change(
    app: &Gateway,
    name: &str,
    change: Change,
    request_id: &str,
) -> Result<Operation, Error> {
    let parsed = berth_rpc::names::Instance::parse("name", name)?;
    let about = About::task(change.action.description(), &parsed.project)
        .on("instances", &parsed.instance)
        .requested_as(request_id);
    let params = state::Params {
        name: name.to_owned(),
        change,
    };
    app.operations.start(state::NAME, &params, about).await
}

/// Begins a change of every instance of a project whose status it applies to.
///
/// # Errors
/// When the instances cannot be listed.
pub async fn begin_bulk_change(
    app: &Gateway,
    project: &str,
    change: Change,
) -> Result<Operation, Error> {
    let parent = format!("projects/{project}");
    let names: Vec<String> = list(app, &parent, InstanceView::Basic)
        .await?
        .into_iter()
        .filter(|i| change.action.applies_to(i.status()))
        .map(|i| i.name)
        .collect();
    let mut about = About::task(change.action.description(), project);
    for name in &names {
        about = about.on("instances", name.rsplit('/').next().unwrap_or(name));
    }
    let params = state::BulkParams { names, change };
    app.operations.start(state::BULK, &params, about).await
}

/// A change of state with LXD's defaults.
pub fn change(action: Action, force: bool, timeout: i32) -> Change {
    Change {
        action,
        force,
        timeout,
        stateful: false,
    }
}

fn about_snapshot(words: &str, instance: &str, request_id: &str) -> Result<About, Error> {
    let parsed = berth_rpc::names::Instance::parse("parent", instance)?;
    Ok(About::task(words, &parsed.project)
        .on_container(&parsed.instance)
        .requested_as(request_id))
}

/// Until when a new snapshot of an instance is kept, by the instance's own rule.
///
/// # Errors
/// When the rule is none.
pub fn snapshot_expiry(instance: &Instance) -> Result<String, Error> {
    let rule = instance.expanded_config.get("snapshots.expiry");
    crate::app::time::expiry(rule).map_err(|why| Error::invalid("config.snapshots.expiry", why))
}

/// Begins a snapshot. An empty name is the next that the instance's pattern gives.
///
/// # Errors
/// When the name is wrong or the pattern is not supported.
pub async fn begin_snapshot(
    app: &Gateway,
    mut snapshot: snapshots::Create,
    request_id: &str,
) -> Result<Operation, Error> {
    if snapshot.snapshot.is_empty() {
        snapshot.snapshot = next_snapshot_name(app, &snapshot.instance).await?;
    }
    names::validate_snapshot_name(&snapshot.snapshot)?;
    let about = about_snapshot("Snapshotting instance", &snapshot.instance, request_id)?;
    app.operations
        .start(snapshots::CREATE, &snapshot, about)
        .await
}

async fn next_snapshot_name(app: &Gateway, instance: &str) -> Result<String, Error> {
    let mut snapshots = app.owners.snapshots();
    let (record, list) = tokio::join!(
        get(app, instance, InstanceView::Basic),
        snapshots.list_snapshots(ListSnapshotsRequest {
            parent: instance.to_owned(),
        })
    );
    let record = record?;
    let pattern = record
        .expanded_config
        .get("snapshots.pattern")
        .map_or("snap%d", String::as_str);
    let present = list?.into_inner().snapshots;
    let taken: Vec<&str> = present
        .iter()
        .map(|s| s.name.rsplit('/').next().unwrap_or_default())
        .collect();
    berth_schedule::fill_pattern(pattern, chrono::Local::now(), &taken)
        .map_err(|why| Error::invalid("config.snapshots.pattern", why))
}

/// Begins a restore.
///
/// # Errors
/// When the name is malformed.
pub async fn begin_restore(
    app: &Gateway,
    instance: &str,
    snapshot: &str,
    request_id: &str,
) -> Result<Operation, Error> {
    let about = about_snapshot("Restoring snapshot", instance, request_id)?;
    let params = restore::Params {
        instance: instance.to_owned(),
        snapshot: snapshot.to_owned(),
    };
    app.operations.start(restore::NAME, &params, about).await
}

/// Begins the deletion of a snapshot.
///
/// # Errors
/// When the name is malformed.
pub async fn begin_delete_snapshot(
    app: &Gateway,
    instance: &str,
    snapshot: &str,
    request_id: &str,
) -> Result<Operation, Error> {
    let about = about_snapshot("Deleting snapshot", instance, request_id)?;
    let params = snapshots::Delete {
        instance: instance.to_owned(),
        snapshot: snapshot.to_owned(),
    };
    app.operations
        .start(snapshots::DELETE, &params, about)
        .await
}

/// Begins the rename of a snapshot.
///
/// # Errors
/// When a name is wrong.
pub async fn begin_rename_snapshot(
    app: &Gateway,
    instance: &str,
    snapshot: &str,
    new: &str,
    request_id: &str,
) -> Result<Operation, Error> {
    names::validate_snapshot_name(new)?;
    let about = about_snapshot("Renaming snapshot", instance, request_id)?;
    let params = snapshots::Rename {
        instance: instance.to_owned(),
        snapshot: snapshot.to_owned(),
        new: new.to_owned(),
    };
    app.operations
        .start(snapshots::RENAME, &params, about)
        .await
}
