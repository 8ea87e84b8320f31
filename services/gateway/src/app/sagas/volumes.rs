//! Sagas on custom volumes and their snapshots. Each is one call of the storage service, which
//! does it whole or not at all; being written down makes it go on after a crash.

use std::collections::BTreeMap;

use berth_operations::{Saga, Step};
use berth_proto::storage::{self, create_volume_request::Source};
use berth_rpc::{Code, Error};
use serde::{Deserialize, Serialize};

use super::Context;
use super::undo::{answer, may_have_happened, noted};

/// Makes a volume, empty or as a copy.
pub const CREATE: &str = "create_volume";
/// Takes a volume to another pool.
pub const MOVE: &str = "move_volume";
/// Removes a volume with its snapshots.
pub const DELETE: &str = "delete_volume";
/// Takes a snapshot.
pub const CREATE_SNAPSHOT: &str = "create_volume_snapshot";
/// Renames a snapshot.
pub const RENAME_SNAPSHOT: &str = "rename_volume_snapshot";
/// Removes a snapshot.
pub const DELETE_SNAPSHOT: &str = "delete_volume_snapshot";
/// Brings a volume back to a snapshot.
pub const RESTORE: &str = "restore_volume";

/// Noted where it may have been made: only then is it ours to remove.
const CREATED: &str = "created";

/// A volume to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Create {
    /// `projects/{p}/storagePools/{pool}`.
    pub parent: String,
    /// Short name.
    pub volume: String,
    /// As the client wrote it.
    pub description: String,
    /// `filesystem` or `block`.
    pub content_type: String,
    /// As the client wrote it.
    pub config: BTreeMap<String, String>,
    /// Resource name of a volume or snapshot to copy.
    pub copy_of: Option<String>,
    /// Bring its snapshots too.
    pub with_snapshots: bool,
}

impl Create {
    fn name(&self) -> String {
        format!("{}/custom/{}", self.parent, self.volume)
    }
}

fn one(name: &'static str, run: berth_operations::StepFn<crate::Gateway>) -> Saga<crate::Gateway> {
    Saga {
        name,
        version: 1,
        stages: vec![vec![Step::new(name, run)]],
    }
}

/// `create_volume`.
pub fn create() -> Saga<crate::Gateway> {
    Saga {
        name: CREATE,
        version: 1,
        stages: vec![vec![Step::with_undo(
            CREATE,
            |ctx| Box::pin(create_volume(ctx)),
            |ctx| Box::pin(remove_volume(ctx)),
        )]],
    }
}

/// A volume on its way to another pool.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Move {
    /// Resource name.
    pub from: String,
    /// What it becomes; `copy_of` is `from`.
    pub to: Create,
}

/// `move_volume`: a copy, then no original. One that is in use stays where it is.
pub fn relocate() -> Saga<crate::Gateway> {
    Saga {
        name: MOVE,
        version: 1,
        stages: vec![
            vec![Step::with_undo(
                "copy",
                |ctx| {
                    Box::pin(async move {
                        let Move { to, .. } = ctx.params()?;
                        make_volume(&ctx, to).await
                    })
                },
                |ctx| {
                    Box::pin(async move {
                        let Move { from, to } = ctx.params()?;
                        // With the original gone the copy is the volume.
                        if !may_have_happened(&ctx, CREATED)? || !is_there(&ctx, from).await? {
                            return Ok(());
                        }
                        delete_by_name(&ctx, to.name(), true).await
                    })
                },
            )],
            vec![Step::new("delete_original", |ctx| {
                Box::pin(async move {
                    let Move { from, .. } = ctx.params()?;
                    delete_by_name(&ctx, from, false).await
                })
            })],
        ],
    }
}

async fn is_there(ctx: &Context, name: String) -> Result<bool, Error> {
    let request = storage::GetVolumeRequest { name };
    match answer(ctx.app.owners.volumes().get_volume(request).await) {
        Ok(_) => Ok(true),
        Err(error) if error.code == Code::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

async fn create_volume(ctx: Context) -> Result<(), Error> {
    let params: Create = ctx.params()?;
    make_volume(&ctx, params).await
}

async fn make_volume(ctx: &Context, params: Create) -> Result<(), Error> {
    let mut client = ctx.app.owners.volumes();
    let request = storage::CreateVolumeRequest {
        parent: params.parent,
        collection: "custom".into(),
        volume_id: params.volume,
        volume: Some(storage::Volume {
            description: params.description,
            content_type: params.content_type,
            config: params.config.into_iter().collect(),
            ..Default::default()
        }),
        source: Some(match params.copy_of {
            Some(name) => Source::CopyOf(name),
            None => Source::Empty(()),
        }),
        request_id: ctx.request_id(),
        with_snapshots: params.with_snapshots,
        ..Default::default()
    };
    noted(ctx, CREATED, async {
        answer(client.create_volume(request).await)
    })
    .await?;
    Ok(())
}

async fn remove_volume(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, CREATED)? {
        return Ok(());
    }
    let params: Create = ctx.params()?;
    delete_by_name(&ctx, params.name(), true).await
}

async fn delete_by_name(ctx: &Context, name: String, allow_missing: bool) -> Result<(), Error> {
    ctx.app
        .owners
        .volumes()
        .delete_volume(storage::DeleteVolumeRequest {
            name,
            allow_missing,
            request_id: ctx.request_id(),
            ..Default::default()
        })
        .await?;
    Ok(())
}

/// What is deleted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Delete {
    /// Resource name.
    pub name: String,
}

/// `delete_volume`.
pub fn delete() -> Saga<crate::Gateway> {
    one(DELETE, |ctx| {
        Box::pin(async move {
            let Delete { name } = ctx.params()?;
            delete_by_name(&ctx, name, false).await
        })
    })
}

/// A volume and one of its snapshots.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OfSnapshot {
    /// Volume's resource name.
    pub volume: String,
    /// Snapshot's short name.
    pub snapshot: String,
    /// The name it gets, for a rename.
    pub new_name: String,
    /// RFC 3339 or empty, for a new one.
    pub expire_time: String,
}

impl OfSnapshot {
    fn name(&self) -> String {
        format!("{}/snapshots/{}", self.volume, self.snapshot)
    }
}

/// `create_volume_snapshot`.
pub fn create_snapshot() -> Saga<crate::Gateway> {
    Saga {
        name: CREATE_SNAPSHOT,
        version: 1,
        stages: vec![vec![Step::with_undo(
            CREATE_SNAPSHOT,
            |ctx| Box::pin(take_snapshot(ctx)),
            |ctx| {
                Box::pin(async move {
                    if may_have_happened(&ctx, CREATED)? {
                        remove_snapshot(ctx, true).await?;
                    }
                    Ok(())
                })
            },
        )]],
    }
}

async fn take_snapshot(ctx: Context) -> Result<(), Error> {
    let params: OfSnapshot = ctx.params()?;
    let mut client = ctx.app.owners.volumes();
    let request = storage::CreateSnapshotRequest {
        parent: params.volume,
        snapshot_id: params.snapshot,
        snapshot: Some(storage::Snapshot {
            expire_time: params.expire_time,
            ..Default::default()
        }),
        request_id: ctx.request_id(),
    };
    noted(&ctx, CREATED, async {
        answer(client.create_snapshot(request).await)
    })
    .await?;
    Ok(())
}

async fn remove_snapshot(ctx: Context, allow_missing: bool) -> Result<(), Error> {
    let params: OfSnapshot = ctx.params()?;
    ctx.app
        .owners
        .volumes()
        .delete_snapshot(storage::DeleteSnapshotRequest {
            name: params.name(),
            allow_missing,
            request_id: ctx.request_id(),
        })
        .await?;
    Ok(())
}

/// `delete_volume_snapshot`.
pub fn delete_snapshot() -> Saga<crate::Gateway> {
    one(DELETE_SNAPSHOT, |ctx| Box::pin(remove_snapshot(ctx, false)))
}

/// `rename_volume_snapshot`.
pub fn rename_snapshot() -> Saga<crate::Gateway> {
    Saga {
        name: RENAME_SNAPSHOT,
        version: 1,
        stages: vec![vec![Step::with_undo(
            RENAME_SNAPSHOT,
            |ctx| {
                Box::pin(async move {
                    let params: OfSnapshot = ctx.params()?;
                    let name = params.name();
                    noted(&ctx, CREATED, give_name(&ctx, name, params.new_name)).await
                })
            },
            |ctx| {
                Box::pin(async move {
                    if !may_have_happened(&ctx, CREATED)? {
                        return Ok(());
                    }
                    let params: OfSnapshot = ctx.params()?;
                    let renamed = format!("{}/snapshots/{}", params.volume, params.new_name);
                    give_name(&ctx, renamed, params.snapshot).await
                })
            },
        )]],
    }
}

async fn give_name(ctx: &Context, name: String, new_name: String) -> Result<(), Error> {
    ctx.app
        .owners
        .volumes()
        .rename_snapshot(storage::RenameSnapshotRequest {
            name,
            new_snapshot_id: new_name,
            request_id: ctx.request_id(),
        })
        .await?;
    Ok(())
}

/// `restore_volume`.
pub fn restore() -> Saga<crate::Gateway> {
    one(RESTORE, |ctx| {
        Box::pin(async move {
            let params: OfSnapshot = ctx.params()?;
            ctx.app
                .owners
                .volumes()
                .restore_volume(storage::RestoreVolumeRequest {
                    name: params.volume,
                    snapshot_id: params.snapshot,
                    request_id: ctx.request_id(),
                })
                .await?;
            Ok(())
        })
    })
}
