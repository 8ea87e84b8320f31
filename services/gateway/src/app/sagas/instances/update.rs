//! `update_instance`: plan → (volumes ∥ ports ∥ quotas) → commit → surplus.
//!
//! Until the commit everything is taken back; after it everything goes forward: then the surplus
//! is removed even when the operation unwinds.

use std::collections::HashMap;

use berth_operations::{Saga, Step};
use berth_proto::instance::{Instance, InstancePlan, UpdateInstanceRequest};
use berth_proto::types::{Attachment, Port};
use berth_rpc::{Code, Error};
use serde::{Deserialize, Serialize};

use crate::Gateway;
use crate::app::sagas::Context;
use crate::app::sagas::devices::{self, Contents, Names};
use crate::app::sagas::undo::{answer, may_have_happened, noted};
use crate::app::wire::Wire;

/// Name of the saga.
pub const NAME: &str = "update_instance";

/// Plans that are made again when something they depend on changed meanwhile.
const REPLANS: usize = 5;

/// What is changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Params {
    /// As the instance service takes it, without plan, attachments, ports and request id.
    pub update: Wire<UpdateInstanceRequest>,
}

impl Params {
    fn names(&self) -> Result<Names, Error> {
        let instance = self.update.0.instance.as_ref();
        Names::parse(instance.map_or("", |i| i.name.as_str()))
    }
}

/// The saga.
pub fn saga() -> Saga<Gateway> {
    Saga {
        name: NAME,
        version: 1,
        stages: vec![
            vec![Step::new("plan", |ctx| Box::pin(plan(ctx)))],
            vec![
                Step::with_undo(
                    "volumes",
                    |ctx| Box::pin(volumes(ctx)),
                    |ctx| Box::pin(undo_volumes(ctx)),
                ),
                Step::with_undo(
                    "ports",
                    |ctx| Box::pin(ports(ctx)),
                    |ctx| Box::pin(undo_ports(ctx)),
                ),
                Step::with_undo(
                    "quotas",
                    |ctx| Box::pin(quotas(ctx)),
                    |ctx| Box::pin(undo_quotas(ctx)),
                ),
            ],
            vec![Step::with_undo(
                "commit",
                |ctx| Box::pin(commit(ctx)),
                |ctx| Box::pin(undo_commit(ctx)),
            )],
            vec![Step::new("surplus", |ctx| Box::pin(surplus(ctx)))],
        ],
    }
}

async fn make_plan(ctx: &Context, params: &Params) -> Result<InstancePlan, Error> {
    let request = params.update.0.clone();
    answer(
        ctx.app
            .owners
            .instances()
            .plan_update_instance(request)
            .await,
    )
}

async fn plan(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let name = params.names()?.holder();
    let (before, plan) = tokio::join!(super::read(&ctx, &name), make_plan(&ctx, &params));
    let (before, plan) = (before?, plan?);
    if plan.needed_volumes.iter().any(|needed| needed.root) {
        return Err(Error::unimplemented(
            "The root disk cannot be moved to another pool by an update",
        ));
    }
    ctx.put("before", &Wire(before))?;
    ctx.put("plan", &Wire(plan))
}

fn planned(ctx: &Context) -> Result<InstancePlan, Error> {
    Ok(ctx.require::<Wire<InstancePlan>>("plan")?.0)
}

/// Past the commit nothing is taken back.
fn is_committed(ctx: &Context) -> Result<bool, Error> {
    Ok(ctx.output::<bool>("committed")?.unwrap_or(false))
}

async fn volumes(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let plan = planned(&ctx)?;
    let made = devices::make_volumes(&ctx, &params.names()?, &plan, &Contents::Empty).await?;
    ctx.put("attachments", &made)
}

async fn undo_volumes(ctx: Context) -> Result<(), Error> {
    if is_committed(&ctx)? {
        return Ok(());
    }
    let params: Params = ctx.params()?;
    devices::unmake_volumes(&ctx, &params.names()?, &planned(&ctx)?).await
}

async fn ports(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let made = devices::make_ports(&ctx, &params.names()?, &planned(&ctx)?).await?;
    ctx.put("ports", &made)
}

async fn undo_ports(ctx: Context) -> Result<(), Error> {
    if is_committed(&ctx)? {
        return Ok(());
    }
    let params: Params = ctx.params()?;
    let Wire(before) = ctx.require::<Wire<Instance>>("before")?;
    devices::unmake_ports(&ctx, &params.names()?, &planned(&ctx)?, Some(&before)).await
}

async fn quotas(ctx: Context) -> Result<(), Error> {
    devices::change_volumes(&ctx, &planned(&ctx)?).await
}

async fn undo_quotas(ctx: Context) -> Result<(), Error> {
    if is_committed(&ctx)? {
        return Ok(());
    }
    devices::unchange_volumes(&ctx, &planned(&ctx)?).await
}

async fn commit(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let plan = planned(&ctx)?;
    let attachments: HashMap<String, Wire<Attachment>> = ctx.require("attachments")?;
    let ports: HashMap<String, Wire<Port>> = ctx.require("ports")?;
    let mut request = UpdateInstanceRequest {
        plan_etag: plan.plan_etag.clone(),
        attachments: devices::plain(attachments),
        ports: devices::plain(ports),
        request_id: ctx.request_id(),
        ..params.update.0.clone()
    };
    for attempt in 0..REPLANS {
        let update = async {
            answer(
                ctx.app
                    .owners
                    .instances()
                    .update_instance(request.clone())
                    .await,
            )
        };
        match noted(&ctx, "commit", update).await {
            Ok(_) => return ctx.put("committed", &true),
            Err(error) if error.code == Code::Aborted && error.reason != "ETAG_MISMATCH" => {
                let again = make_plan(&ctx, &params).await?;
                if !super::create::needs_the_same(&plan, &again) {
                    return Err(Error::aborted(
                        "PLAN_CHANGED",
                        "the instance was changed by somebody else meanwhile",
                    ));
                }
                request.plan_etag = again.plan_etag;
                request.request_id = ctx.request_id_for(&format!("replan{attempt}"));
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::aborted(
        "PLAN_CHANGED",
        "the instance keeps being changed by somebody else",
    ))
}

/// A commit whose answer was lost: if it happened, go on forward after all.
async fn undo_commit(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, "commit")? {
        return Ok(());
    }
    if !is_committed(&ctx)? {
        let Wire(before) = ctx.require::<Wire<Instance>>("before")?;
        let now = match super::read(&ctx, &before.name).await {
            Ok(now) => now,
            Err(error) if error.code == Code::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if now.etag == before.etag {
            return Ok(());
        }
        ctx.put("committed", &true)?;
    }
    surplus(ctx).await
}

async fn surplus(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    devices::drop_surplus(&ctx, &params.names()?, &planned(&ctx)?).await
}
