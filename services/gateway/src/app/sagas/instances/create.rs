//! `create_instance`: plan → (volumes ∥ ports) → commit → [start].

use std::collections::HashMap;

use berth_operations::{Saga, Step};
use berth_proto::instance::{
    CreateInstanceRequest, DeleteInstanceRequest, InstancePlan, PlanCreateInstanceRequest,
    StartInstanceRequest, StopInstanceRequest,
};
use berth_proto::types::{Attachment, Port};
use berth_rpc::{Code, Error};
use serde::{Deserialize, Serialize};

use crate::Gateway;
use crate::app::sagas::Context;
use crate::app::sagas::devices::{self, Contents, Names};
use crate::app::sagas::undo::{absent_is_fine, answer, may_have_happened, noted};
use crate::app::wire::Wire;

/// Name of the saga.
pub const NAME: &str = "create_instance";

/// Plans that are made again when something they depend on changed meanwhile.
const REPLANS: usize = 5;

/// What is made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Params {
    /// What the instance service plans.
    pub plan: Wire<PlanCreateInstanceRequest>,
    /// Where the root volume's contents come from.
    pub contents: Contents,
    /// Start it when it is made.
    pub start: bool,
}

impl Params {
    fn names(&self) -> Result<Names, Error> {
        Names::parse(&format!(
            "{}/instances/{}",
            self.plan.0.parent, self.plan.0.instance_id
        ))
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
            ],
            vec![Step::with_undo(
                "commit",
                |ctx| Box::pin(commit(ctx)),
                |ctx| Box::pin(undo_commit(ctx)),
            )],
            vec![Step::with_undo(
                "start",
                |ctx| Box::pin(start(ctx)),
                |ctx| Box::pin(undo_start(ctx)),
            )],
        ],
    }
}

async fn make_plan(ctx: &Context, params: &Params, uid: &str) -> Result<InstancePlan, Error> {
    let mut request = params.plan.0.clone();
    // The identity of the first plan: addresses are made from it, and the etag is over it.
    request.instance.get_or_insert_default().uid = uid.to_owned();
    answer(
        ctx.app
            .owners
            .instances()
            .plan_create_instance(request)
            .await,
    )
}

async fn plan(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let plan = make_plan(&ctx, &params, "").await?;
    ctx.put("plan", &Wire(plan))
}

async fn volumes(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let Wire(plan) = ctx.require::<Wire<InstancePlan>>("plan")?;
    let made = devices::make_volumes(&ctx, &params.names()?, &plan, &params.contents).await?;
    ctx.put("attachments", &made)
}

async fn undo_volumes(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let Wire(plan) = ctx.require::<Wire<InstancePlan>>("plan")?;
    devices::unmake_volumes(&ctx, &params.names()?, &plan).await
}

async fn ports(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let Wire(plan) = ctx.require::<Wire<InstancePlan>>("plan")?;
    let made = devices::make_ports(&ctx, &params.names()?, &plan).await?;
    ctx.put("ports", &made)
}

async fn undo_ports(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let Wire(plan) = ctx.require::<Wire<InstancePlan>>("plan")?;
    devices::unmake_ports(&ctx, &params.names()?, &plan, None).await
}

/// Whether two plans need the same things, so that what was made for one serves the other.
pub(super) fn needs_the_same(a: &InstancePlan, b: &InstancePlan) -> bool {
    a.needed_volumes == b.needed_volumes
        && a.needed_ports == b.needed_ports
        && a.changed_ports == b.changed_ports
        && a.volume_changes == b.volume_changes
}

async fn commit(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let Wire(plan) = ctx.require::<Wire<InstancePlan>>("plan")?;
    let attachments: HashMap<String, Wire<Attachment>> = ctx.require("attachments")?;
    let ports: HashMap<String, Wire<Port>> = ctx.require("ports")?;
    let (trigger, snapshots) = match &params.contents {
        Contents::Copy { snapshots, .. } => ("copy", snapshots.clone()),
        Contents::Empty | Contents::Image { .. } => ("create", Vec::new()),
    };
    let mut request = CreateInstanceRequest {
        parent: params.plan.0.parent.clone(),
        instance_id: params.plan.0.instance_id.clone(),
        instance: plan.instance.clone(),
        plan_etag: plan.plan_etag.clone(),
        attachments: devices::plain(attachments),
        ports: devices::plain(ports),
        request_id: ctx.request_id(),
        template_trigger: trigger.to_owned(),
        copy_snapshots_of: match snapshots.is_empty() {
            true => String::new(),
            false => params.plan.0.copy_of.clone(),
        },
        copy_snapshots: snapshots,
    };
    for attempt in 0..REPLANS {
        let create = async {
            answer(
                ctx.app
                    .owners
                    .instances()
                    .create_instance(request.clone())
                    .await,
            )
        };
        match noted(&ctx, "committed", create).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code == Code::Aborted => {
                // A profile changed meanwhile: go on if what was made still fits.
                let uid = plan.instance.as_ref().map_or("", |i| i.uid.as_str());
                let again = make_plan(&ctx, &params, uid).await?;
                if !needs_the_same(&plan, &again) {
                    return Err(Error::aborted(
                        "PLAN_CHANGED",
                        "a profile of the instance was changed while it was being created",
                    ));
                }
                request.plan_etag = again.plan_etag;
                request.instance = again.instance;
                request.request_id = ctx.request_id_for(&format!("replan{attempt}"));
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::aborted(
        "PLAN_CHANGED",
        "the instance's profiles keep changing",
    ))
}

async fn undo_commit(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, "committed")? {
        return Ok(());
    }
    let params: Params = ctx.params()?;
    let request = DeleteInstanceRequest {
        name: params.names()?.holder(),
        request_id: ctx.request_id(),
        ..Default::default()
    };
    absent_is_fine(answer(
        ctx.app.owners.instances().delete_instance(request).await,
    ))
}

async fn start(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    if !params.start {
        return Ok(());
    }
    let request = StartInstanceRequest {
        name: params.names()?.holder(),
        stateful: false,
        request_id: ctx.request_id(),
    };
    answer(ctx.app.owners.instances().start_instance(request).await).map(drop)
}

async fn undo_start(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    if !params.start {
        return Ok(());
    }
    super::state::force_stop(&ctx, &params.names()?.holder()).await
}

/// Kept beside the saga that needs it most.
pub(super) fn stop_request(name: &str, request_id: String) -> StopInstanceRequest {
    StopInstanceRequest {
        name: name.to_owned(),
        force: true,
        timeout_seconds: -1,
        stateful: false,
        request_id,
    }
}
