//! `restore_instance`: inspect → [stop] → validate → contents → record → [start].
//!
//! Contents that were replaced cannot be had back, so from there it goes forward: the contents'
//! undo is the record's run, so that both are the snapshot's.

use std::collections::HashMap;

use berth_operations::{Saga, Step};
use berth_proto::instance::instance::Status;
use berth_proto::instance::{GetSnapshotRequest, RestoreSnapshotRequest, StartInstanceRequest};
use berth_proto::storage::RestoreVolumeRequest;
use berth_proto::types::Attachment;
use berth_rpc::{Code, Error};
use serde::{Deserialize, Serialize};

use crate::Gateway;
use crate::app::sagas::Context;
use crate::app::sagas::devices;
use crate::app::sagas::undo::answer;
use crate::app::wire::Wire;

/// Name of the saga.
pub const NAME: &str = "restore_instance";

/// What is restored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Params {
    /// The instance's resource name.
    pub instance: String,
    /// Short name of its snapshot.
    pub snapshot: String,
}

/// The saga.
pub fn saga() -> Saga<Gateway> {
    Saga {
        name: NAME,
        version: 1,
        stages: vec![
            vec![Step::new("inspect", |ctx| Box::pin(inspect(ctx)))],
            vec![Step::with_undo(
                "stop",
                |ctx| Box::pin(stop(ctx)),
                |ctx| Box::pin(start(ctx)),
            )],
            vec![Step::new("validate", |ctx| Box::pin(validate(ctx)))],
            vec![Step::with_undo(
                "contents",
                |ctx| Box::pin(contents(ctx)),
                |ctx| Box::pin(record_after_contents(ctx)),
            )],
            vec![Step::new("record", |ctx| Box::pin(record(ctx)))],
            vec![Step::new("start", |ctx| Box::pin(start(ctx)))],
        ],
    }
}

async fn inspect(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let short = params.instance.rsplit('/').next().unwrap_or_default();
    let request = GetSnapshotRequest {
        name: format!("{}/snapshots/{}", params.instance, params.snapshot),
    };
    let mut snapshots = ctx.app.owners.snapshots();
    let (snapshot, instance) = tokio::join!(
        snapshots.get_snapshot(request),
        super::read(&ctx, &params.instance)
    );
    let instance = instance?;
    match answer(snapshot) {
        Ok(_) => {}
        Err(error) if error.code == Code::NotFound => {
            return Err(Error::new(
                Code::NotFound,
                "SNAPSHOT_NOT_FOUND",
                format!("Snapshot {short}/{} does not exist", params.snapshot),
            ));
        }
        Err(error) => return Err(error),
    }
    let (device, attachment) = devices::root(&instance)?;
    ctx.put("device", device)?;
    ctx.put("volume", &attachment.volume)?;
    let running = matches!(instance.status(), Status::Running | Status::Frozen);
    ctx.put("running", &running)
}

async fn stop(ctx: Context) -> Result<(), Error> {
    if !ctx.require::<bool>("running")? {
        return Ok(());
    }
    let params: Params = ctx.params()?;
    super::state::force_stop(&ctx, &params.instance).await
}

async fn start(ctx: Context) -> Result<(), Error> {
    if !ctx.require::<bool>("running")? {
        return Ok(());
    }
    let params: Params = ctx.params()?;
    let request = StartInstanceRequest {
        name: params.instance.clone(),
        stateful: false,
        request_id: ctx.request_id(),
    };
    match answer(ctx.app.owners.instances().start_instance(request).await) {
        Ok(_) => Ok(()),
        // Already running: it never stopped, or this step ran before.
        Err(error) if error.code == Code::FailedPrecondition => {
            match super::read(&ctx, &params.instance).await {
                Ok(instance) if instance.status() == Status::Running => Ok(()),
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

fn restore_request(params: &Params, request_id: String) -> RestoreSnapshotRequest {
    RestoreSnapshotRequest {
        name: params.instance.clone(),
        snapshot_id: params.snapshot.clone(),
        request_id,
        ..Default::default()
    }
}

async fn validate(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let mut request = restore_request(&params, String::new());
    request.validate_only = true;
    answer(ctx.app.owners.snapshots().restore_snapshot(request).await).map(drop)
}

async fn contents(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let request = RestoreVolumeRequest {
        name: ctx.require("volume")?,
        snapshot_id: params.snapshot,
        request_id: ctx.request_id(),
    };
    let volume = answer(ctx.app.owners.volumes().restore_volume(request).await)?;
    let attachment = volume.attachment.ok_or_else(|| {
        Error::internal(format!("volume {} came without an attachment", volume.name))
    })?;
    ctx.put("attachment", &Wire(attachment))
}

async fn record(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let Wire(attachment) = ctx.require::<Wire<Attachment>>("attachment")?;
    // The same id forward and back: it is the same effect, wanted once.
    let mut request = restore_request(&params, format!("{}/record", ctx.operation.id()));
    request.attachments = HashMap::from([(ctx.require::<String>("device")?, attachment)]);
    answer(ctx.app.owners.snapshots().restore_snapshot(request).await).map(drop)
}

async fn record_after_contents(ctx: Context) -> Result<(), Error> {
    if ctx.output::<Wire<Attachment>>("attachment")?.is_none() {
        return Ok(());
    }
    record(ctx).await
}
