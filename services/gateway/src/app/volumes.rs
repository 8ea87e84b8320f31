//! Custom volumes and their snapshots.

use berth_proto::storage::{self, CreateVolumeRequest, create_volume_request::Source};
use berth_rpc::{Code, Error};

use crate::App;
use crate::app::operations::{About, View};
use crate::app::sagas::{self, volumes as steps};
use crate::app::time;
use crate::clients::Owners;
use crate::error::Failure;

/// Snapshots of a volume, oldest first; `-` for a segment of its name means all.
///
/// # Errors
/// When storage refuses.
pub async fn snapshots_of(
    owners: &Owners,
    volume: &str,
) -> Result<Vec<storage::Snapshot>, tonic::Status> {
    let request = storage::ListSnapshotsRequest {
        parent: volume.to_owned(),
    };
    let mut snapshots = owners
        .volumes()
        .list_snapshots(request)
        .await?
        .into_inner()
        .snapshots;
    snapshots.sort_by(|a, b| (&a.create_time, &a.name).cmp(&(&b.create_time, &b.name)));
    Ok(snapshots)
}

/// The next name that a volume's pattern gives.
///
/// # Errors
/// When the pattern is none.
pub fn next_snapshot_name(
    volume: &storage::Volume,
    present: &[storage::Snapshot],
) -> Result<String, Error> {
    let pattern = volume.config.get("snapshots.pattern");
    let taken: Vec<&str> = present.iter().map(|s| last(&s.name)).collect();
    berth_schedule::fill_pattern(
        pattern.map_or("snap%d", String::as_str),
        chrono::Local::now(),
        &taken,
    )
    .map_err(|why| Error::invalid("config.snapshots.pattern", why))
}

/// Until when a new snapshot of a volume is kept, by the volume's own rule.
///
/// # Errors
/// When the rule is none.
pub fn snapshot_expiry(volume: &storage::Volume) -> Result<String, Error> {
    time::expiry(volume.config.get("snapshots.expiry"))
        .map_err(|why| Error::invalid("config.snapshots.expiry", why))
}

fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn creation(request: CreateVolumeRequest) -> steps::Create {
    let volume = request.volume.unwrap_or_default();
    steps::Create {
        parent: request.parent,
        volume: request.volume_id,
        description: volume.description,
        content_type: volume.content_type,
        config: volume.config.into_iter().collect(),
        copy_of: match request.source {
            Some(Source::CopyOf(name)) => Some(name),
            _ => None,
        },
        with_snapshots: request.with_snapshots,
    }
}

/// Makes an empty volume, and returns when it is there.
///
/// # Errors
/// In LXD's words where it has some.
pub async fn create(app: &App, project: &str, request: CreateVolumeRequest) -> Result<(), Failure> {
    sagas::finish(
        app,
        steps::CREATE,
        &creation(request),
        About::task("Creating storage volume", project),
    )
    .await
    .map_err(|error| match error.code {
        Code::AlreadyExists => Failure::conflict("Volume by that name already exists"),
        _ => error.into(),
    })
}

/// Begins to copy a volume.
///
/// # Errors
/// When the name is taken or the source is not there.
pub async fn copy(app: &App, project: &str, request: CreateVolumeRequest) -> Result<View, Failure> {
    let params = creation(request);
    let new = About::task("Copying storage volume", project).on("storage_volumes", &params.volume);
    app.operations.begin(steps::CREATE, &params, new).await
}

/// Begins to take a volume, with its snapshots, to another pool or name.
///
/// # Errors
/// When the operation cannot be written down.
pub async fn relocate(
    app: &App,
    project: &str,
    volume: storage::Volume,
    parent: String,
    name: String,
) -> Result<View, Failure> {
    let about = About::task("Moving storage volume", project).on("storage_volumes", &name);
    let params = steps::Move {
        from: volume.name.clone(),
        to: steps::Create {
            parent,
            volume: name,
            description: volume.description,
            content_type: volume.content_type,
            config: volume.config.into_iter().collect(),
            copy_of: Some(volume.name),
            with_snapshots: true,
        },
    };
    app.operations.begin(steps::MOVE, &params, about).await
}

/// Removes a volume, and returns when it is gone.
///
/// # Errors
/// In LXD's words where it has some.
pub async fn delete(app: &App, project: &str, name: &str) -> Result<(), Failure> {
    let params = steps::Delete {
        name: name.to_owned(),
    };
    let new = About::task("Deleting storage volume", project);
    sagas::finish(app, steps::DELETE, &params, new)
        .await
        .map_err(|error| match (error.code, error.reason.as_str()) {
            (_, "HELD") => Failure::bad_request("The storage volume is still in use"),
            (Code::NotFound, _) if !error.message.contains("ool \"") => {
                Failure::not_found("Storage pool volume not found")
            }
            _ => error.into(),
        })
}

fn of_snapshot(volume: &str, snapshot: &str) -> steps::OfSnapshot {
    steps::OfSnapshot {
        volume: volume.to_owned(),
        snapshot: snapshot.to_owned(),
        new_name: String::new(),
        expire_time: String::new(),
    }
}

fn project_of(volume: &str) -> &str {
    volume.split('/').nth(1).unwrap_or_default()
}

/// Begins to take a snapshot.
///
/// # Errors
/// When the operation cannot be written down.
pub async fn create_snapshot(
    app: &App,
    volume: &str,
    snapshot: &str,
    expire_time: &str,
    request_id: &str,
) -> Result<View, Error> {
    let mut params = of_snapshot(volume, snapshot);
    expire_time.clone_into(&mut params.expire_time);
    let new = About::task("Creating storage volume snapshot", project_of(volume))
        .on("storage_volumes", last(volume))
        .requested_as(request_id);
    let begun = app.operations.start(steps::CREATE_SNAPSHOT, &params, new);
    Ok(begun.await?.record().into())
}

/// Begins to rename a snapshot.
///
/// # Errors
/// When the operation cannot be written down.
pub async fn rename_snapshot(
    app: &App,
    project: &str,
    volume: &str,
    snapshot: &str,
    new_name: &str,
) -> Result<View, Failure> {
    let mut params = of_snapshot(volume, snapshot);
    new_name.clone_into(&mut params.new_name);
    let new = About::task("Renaming storage volume snapshot", project)
        .on("storage_volume_snapshots", last(volume));
    app.operations
        .begin(steps::RENAME_SNAPSHOT, &params, new)
        .await
}

/// Begins to remove a snapshot.
///
/// # Errors
/// When the operation cannot be written down.
pub async fn delete_snapshot(
    app: &App,
    volume: &str,
    snapshot: &str,
    request_id: &str,
) -> Result<View, Error> {
    let new = About::task("Deleting storage volume snapshot", project_of(volume))
        .on("storage_volume_snapshots", last(volume))
        .requested_as(request_id);
    let params = of_snapshot(volume, snapshot);
    let begun = app.operations.start(steps::DELETE_SNAPSHOT, &params, new);
    Ok(begun.await?.record().into())
}

/// Changes what a user writes of a snapshot.
///
/// # Errors
/// When storage refuses.
pub async fn update_snapshot(app: &App, snapshot: storage::Snapshot) -> Result<(), Error> {
    let request = storage::UpdateSnapshotRequest {
        snapshot: Some(snapshot),
        update_mask: None,
        request_id: crate::app::request_id(),
    };
    app.owners.volumes().update_snapshot(request).await?;
    Ok(())
}

/// Brings a volume back to a snapshot, and returns when it is done.
///
/// # Errors
/// When there is no such snapshot, or the volume is in use.
pub async fn restore(
    app: &App,
    project: &str,
    volume: &str,
    snapshot: &str,
) -> Result<(), Failure> {
    let new = About::task("Restoring storage volume", project);
    let params = of_snapshot(volume, snapshot);
    Ok(sagas::finish(app, steps::RESTORE, &params, new).await?)
}
