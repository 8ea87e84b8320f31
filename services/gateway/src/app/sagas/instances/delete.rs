//! `delete_instance`: [stop] → record → (volumes ∥ ports).
//!
//! With the record gone there is no way back, so what follows goes on forward even when the
//! operation unwinds: the clean-up's undo is the clean-up.

use berth_operations::{Saga, Step};
use berth_proto::instance::{DeleteInstanceRequest, Instance};
use berth_rpc::{Code, Error};
use serde::{Deserialize, Serialize};

use crate::Gateway;
use crate::app::sagas::Context;
use crate::app::sagas::devices;
use crate::app::sagas::undo::answer;
use crate::app::wire::Wire;

/// Name of the saga.
pub const NAME: &str = "delete_instance";

/// What is deleted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Params {
    /// Resource name.
    pub name: String,
    /// Stop it first, by force.
    pub force: bool,
    /// Only if it stopped in this run (ephemeral clean-up); 0 = any.
    pub generation: i64,
}

/// The saga.
pub fn saga() -> Saga<Gateway> {
    Saga {
        name: NAME,
        version: 1,
        stages: vec![
            vec![Step::new("stop", |ctx| Box::pin(stop(ctx)))],
            vec![Step::with_undo(
                "record",
                |ctx| Box::pin(record(ctx)),
                |ctx| Box::pin(clean_up(ctx)),
            )],
            vec![Step::new("clean_up", |ctx| Box::pin(clean_up(ctx)))],
        ],
    }
}

async fn stop(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    if !params.force {
        return Ok(());
    }
    super::state::force_stop(&ctx, &params.name).await
}

async fn record(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let request = DeleteInstanceRequest {
        name: params.name.clone(),
        etag: String::new(),
        request_id: ctx.request_id(),
        generation: params.generation,
    };
    match answer(ctx.app.owners.instances().delete_instance(request).await) {
        Ok(instance) => ctx.put("instance", &Wire(instance)),
        // An ephemeral instance that somebody else removed first.
        Err(error) if params.generation != 0 && error.code == Code::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

async fn clean_up(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let Some(Wire(instance)) = ctx.output::<Wire<Instance>>("instance")? else {
        return Ok(());
    };
    let (volumes, ports) = tokio::join!(
        devices::drop_volumes(
            &ctx,
            &params.name,
            instance.attachments.into_values().collect()
        ),
        devices::drop_ports(&ctx, instance.ports.into_values().collect()),
    );
    volumes.and(ports)
}
