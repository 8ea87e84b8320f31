//! Sagas on snapshots: contents are storage's, records the instance service's.

use berth_operations::{Saga, Step};
use berth_proto::instance::instance::Status;
use berth_proto::instance::{
    CreateSnapshotRequest, DeleteSnapshotRequest, FreezeInstanceRequest, RenameSnapshotRequest,
    Snapshot, UnfreezeInstanceRequest,
};
use berth_proto::storage;
use berth_rpc::{Code, Error};
use serde::{Deserialize, Serialize};

use crate::Gateway;
use crate::app::sagas::Context;
use crate::app::sagas::devices;
use crate::app::sagas::undo::{absent_is_fine, answer, may_have_happened, noted};

/// Makes a snapshot.
pub const CREATE: &str = "create_instance_snapshot";
/// Removes one.
pub const DELETE: &str = "delete_instance_snapshot";
/// Renames one.
pub const RENAME: &str = "rename_instance_snapshot";

/// The monitor thaws by itself after this, should everybody else be gone.
const FREEZE_LEASE_SECONDS: i32 = 60;

/// A snapshot to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Create {
    /// The instance's resource name.
    pub instance: String,
    /// Short name.
    pub snapshot: String,
    /// RFC 3339; empty = never.
    pub expire_time: String,
    /// With memory; refused by its owner.
    pub stateful: bool,
}

/// A snapshot that is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Delete {
    /// The instance's resource name.
    pub instance: String,
    /// Short name.
    pub snapshot: String,
}

/// A snapshot and its new name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rename {
    /// The instance's resource name.
    pub instance: String,
    /// Short name.
    pub snapshot: String,
    /// New short name.
    pub new: String,
}

/// `create_instance_snapshot`: validate → [freeze] → contents → (thaw ∥ record).
pub fn create() -> Saga<Gateway> {
    Saga {
        name: CREATE,
        version: 1,
        stages: vec![
            vec![Step::new("validate", |ctx| Box::pin(validate(ctx)))],
            vec![Step::with_undo(
                "freeze",
                |ctx| Box::pin(freeze(ctx)),
                |ctx| Box::pin(thaw(ctx)),
            )],
            vec![Step::with_undo(
                "contents",
                |ctx| Box::pin(contents(ctx)),
                |ctx| Box::pin(undo_contents(ctx)),
            )],
            vec![
                Step::new("thaw", |ctx| Box::pin(thaw(ctx))),
                Step::with_undo(
                    "record",
                    |ctx| Box::pin(record(ctx)),
                    |ctx| Box::pin(undo_record(ctx)),
                ),
            ],
        ],
    }
}

fn record_request(
    params: &Create,
    request_id: String,
    validate_only: bool,
) -> CreateSnapshotRequest {
    CreateSnapshotRequest {
        parent: params.instance.clone(),
        snapshot_id: params.snapshot.clone(),
        snapshot: Some(Snapshot {
            expire_time: params.expire_time.clone(),
            stateful: params.stateful,
            ..Default::default()
        }),
        request_id,
        validate_only,
    }
}

async fn validate(ctx: Context) -> Result<(), Error> {
    let params: Create = ctx.params()?;
    let request = record_request(&params, String::new(), true);
    let mut snapshots = ctx.app.owners.snapshots();
    let (valid, instance) = tokio::join!(
        snapshots.create_snapshot(request),
        super::read(&ctx, &params.instance)
    );
    let instance = instance?;
    answer(valid)?;
    let (_, attachment) = devices::root(&instance)?;
    ctx.put("volume", &attachment.volume)?;
    let freeze = attachment.needs_freeze && instance.status() == Status::Running;
    ctx.put("freeze", &freeze)
}

async fn freeze(ctx: Context) -> Result<(), Error> {
    if !ctx.require::<bool>("freeze")? {
        return Ok(());
    }
    let params: Create = ctx.params()?;
    let request = FreezeInstanceRequest {
        name: params.instance,
        lease_seconds: FREEZE_LEASE_SECONDS,
        request_id: ctx.request_id(),
    };
    let freeze = async { answer(ctx.app.owners.instances().freeze_instance(request).await) };
    noted(&ctx, "frozen", freeze).await.map(drop)
}

async fn thaw(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, "frozen")? {
        return Ok(());
    }
    let params: Create = ctx.params()?;
    let request = UnfreezeInstanceRequest {
        name: params.instance,
        request_id: ctx.request_id(),
    };
    match answer(ctx.app.owners.instances().unfreeze_instance(request).await) {
        Ok(_) => Ok(()),
        // Thawed by its lease, stopped or removed meanwhile.
        Err(error) if matches!(error.code, Code::NotFound | Code::FailedPrecondition) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn contents(ctx: Context) -> Result<(), Error> {
    let params: Create = ctx.params()?;
    let request = storage::CreateSnapshotRequest {
        parent: ctx.require("volume")?,
        snapshot_id: params.snapshot,
        snapshot: Some(storage::Snapshot {
            expire_time: params.expire_time,
            ..Default::default()
        }),
        request_id: ctx.request_id(),
    };
    let create = async { answer(ctx.app.owners.volumes().create_snapshot(request).await) };
    noted(&ctx, "contents", create).await.map(drop)
}

async fn undo_contents(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, "contents")? {
        return Ok(());
    }
    let params: Create = ctx.params()?;
    let volume: String = ctx.require("volume")?;
    delete_contents(&ctx, &volume, &params.snapshot).await
}

async fn delete_contents(ctx: &Context, volume: &str, snapshot: &str) -> Result<(), Error> {
    let request = storage::DeleteSnapshotRequest {
        name: format!("{volume}/snapshots/{snapshot}"),
        allow_missing: true,
        request_id: ctx.request_id(),
    };
    absent_is_fine(answer(
        ctx.app.owners.volumes().delete_snapshot(request).await,
    ))
}

async fn record(ctx: Context) -> Result<(), Error> {
    let params: Create = ctx.params()?;
    let request = record_request(&params, ctx.request_id(), false);
    let create = async { answer(ctx.app.owners.snapshots().create_snapshot(request).await) };
    noted(&ctx, "record", create).await.map(drop)
}

async fn undo_record(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, "record")? {
        return Ok(());
    }
    let params: Create = ctx.params()?;
    delete_record(&ctx, &params.instance, &params.snapshot).await
}

async fn delete_record(ctx: &Context, instance: &str, snapshot: &str) -> Result<(), Error> {
    let request = DeleteSnapshotRequest {
        name: format!("{instance}/snapshots/{snapshot}"),
        allow_missing: true,
        request_id: ctx.request_id(),
    };
    absent_is_fine(answer(
        ctx.app.owners.snapshots().delete_snapshot(request).await,
    ))
}

/// `delete_instance_snapshot`: record → contents. With the record gone it only goes forward.
pub fn delete() -> Saga<Gateway> {
    Saga {
        name: DELETE,
        version: 1,
        stages: vec![
            vec![Step::new("inspect", |ctx| Box::pin(inspect(ctx)))],
            vec![Step::with_undo(
                "record",
                |ctx| Box::pin(remove_record(ctx)),
                |ctx| Box::pin(remove_contents_after_record(ctx)),
            )],
            vec![Step::new("contents", |ctx| Box::pin(remove_contents(ctx)))],
        ],
    }
}

async fn inspect(ctx: Context) -> Result<(), Error> {
    let params: Delete = ctx.params()?;
    let instance = super::read(&ctx, &params.instance).await?;
    let (_, attachment) = devices::root(&instance)?;
    ctx.put("volume", &attachment.volume)
}

async fn remove_record(ctx: Context) -> Result<(), Error> {
    let params: Delete = ctx.params()?;
    noted(
        &ctx,
        "record",
        delete_record(&ctx, &params.instance, &params.snapshot),
    )
    .await
}

async fn remove_contents_after_record(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, "record")? {
        return Ok(());
    }
    let params: Delete = ctx.params()?;
    // An answer that was lost: it is removed now, so that record and contents go together.
    delete_record(&ctx, &params.instance, &params.snapshot).await?;
    remove_contents(ctx).await
}

async fn remove_contents(ctx: Context) -> Result<(), Error> {
    let params: Delete = ctx.params()?;
    let volume: String = ctx.require("volume")?;
    delete_contents(&ctx, &volume, &params.snapshot).await
}

/// `rename_instance_snapshot`: contents → record.
pub fn rename() -> Saga<Gateway> {
    Saga {
        name: RENAME,
        version: 1,
        stages: vec![
            vec![Step::new("inspect", |ctx| Box::pin(inspect(ctx)))],
            vec![Step::with_undo(
                "contents",
                |ctx| Box::pin(rename_contents(ctx)),
                |ctx| Box::pin(undo_rename_contents(ctx)),
            )],
            vec![Step::with_undo(
                "record",
                |ctx| Box::pin(rename_record(ctx)),
                |ctx| Box::pin(undo_rename_record(ctx)),
            )],
        ],
    }
}

async fn move_contents(ctx: &Context, from: &str, to: &str) -> Result<(), Error> {
    let volume: String = ctx.require("volume")?;
    let request = storage::RenameSnapshotRequest {
        name: format!("{volume}/snapshots/{from}"),
        new_snapshot_id: to.to_owned(),
        request_id: ctx.request_id(),
    };
    answer(ctx.app.owners.volumes().rename_snapshot(request).await).map(drop)
}

async fn rename_contents(ctx: Context) -> Result<(), Error> {
    let params: Rename = ctx.params()?;
    noted(
        &ctx,
        "contents",
        move_contents(&ctx, &params.snapshot, &params.new),
    )
    .await
}

async fn undo_rename_contents(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, "contents")? {
        return Ok(());
    }
    let params: Rename = ctx.params()?;
    absent_is_fine(move_contents(&ctx, &params.new, &params.snapshot).await)
}

async fn move_record(ctx: &Context, instance: &str, from: &str, to: &str) -> Result<(), Error> {
    let request = RenameSnapshotRequest {
        name: format!("{instance}/snapshots/{from}"),
        new_snapshot_id: to.to_owned(),
        request_id: ctx.request_id(),
    };
    answer(ctx.app.owners.snapshots().rename_snapshot(request).await).map(drop)
}

async fn rename_record(ctx: Context) -> Result<(), Error> {
    let params: Rename = ctx.params()?;
    noted(
        &ctx,
        "record",
        move_record(&ctx, &params.instance, &params.snapshot, &params.new),
    )
    .await
}

async fn undo_rename_record(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, "record")? {
        return Ok(());
    }
    let params: Rename = ctx.params()?;
    absent_is_fine(move_record(&ctx, &params.instance, &params.new, &params.snapshot).await)
}
