//! `change_instance_state` and `change_many_states`: start, stop, restart, freeze, unfreeze.

use berth_operations::{Saga, Step, for_each};
use berth_proto::instance::instance::Status;
use berth_proto::instance::{
    FreezeInstanceRequest, RestartInstanceRequest, StartInstanceRequest, StopInstanceRequest,
    UnfreezeInstanceRequest,
};
use berth_rpc::{Code, Error};
use serde::{Deserialize, Serialize};

use crate::Gateway;
use crate::app::sagas::Context;
use crate::app::sagas::undo::answer;

/// Name of the saga on one instance.
pub const NAME: &str = "change_instance_state";
/// Name of the saga on many.
pub const BULK: &str = "change_many_states";

/// Instances changed side by side.
const AT_ONCE: usize = 8;

/// What to do, in LXD's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Start it.
    Start,
    /// Stop it.
    Stop,
    /// Stop it and start it again.
    Restart,
    /// Freeze it.
    Freeze,
    /// Thaw it.
    Unfreeze,
}

impl Action {
    /// The action of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "start" => Self::Start,
            "stop" => Self::Stop,
            "restart" => Self::Restart,
            "freeze" => Self::Freeze,
            "unfreeze" => Self::Unfreeze,
            _ => return None,
        })
    }

    /// The operation's description.
    pub fn description(self) -> &'static str {
        match self {
            Self::Start => "Starting instance",
            Self::Stop => "Stopping instance",
            Self::Restart => "Restarting instance",
            Self::Freeze => "Freezing instance",
            Self::Unfreeze => "Unfreezing instance",
        }
    }

    /// Whether an instance of that status is meant when all are.
    pub fn applies_to(self, status: Status) -> bool {
        match self {
            Self::Start => status == Status::Stopped,
            Self::Freeze => status == Status::Running,
            Self::Unfreeze => status == Status::Frozen,
            Self::Stop | Self::Restart => status == Status::Running || status == Status::Frozen,
        }
    }
}

/// A change of state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// What to do.
    pub action: Action,
    /// Kill instead of asking.
    pub force: bool,
    /// Seconds to wait for a graceful stop; -1 = for ever.
    pub timeout: i32,
    /// With memory; owners refuse it by name.
    pub stateful: bool,
}

/// One instance's change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Params {
    /// Resource name.
    pub name: String,
    /// What.
    #[serde(flatten)]
    pub change: Change,
}

/// Many instances' change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BulkParams {
    /// Resource names.
    pub names: Vec<String>,
    /// What.
    #[serde(flatten)]
    pub change: Change,
}

/// The saga. There is no way back from a stop: what a guest's shutdown did is done.
pub fn saga() -> Saga<Gateway> {
    Saga {
        name: NAME,
        version: 1,
        stages: vec![vec![Step::new("change", |ctx| Box::pin(one(ctx)))]],
    }
}

/// The saga on many: every instance is tried, and the failures are told together.
pub fn bulk() -> Saga<Gateway> {
    Saga {
        name: BULK,
        version: 1,
        stages: vec![vec![Step::new("change", |ctx| Box::pin(many(ctx)))]],
    }
}

async fn one(ctx: Context) -> Result<(), Error> {
    let params: Params = ctx.params()?;
    let request_id = ctx.request_id();
    change(&ctx, &params.name, &params.change, request_id).await
}

async fn many(ctx: Context) -> Result<(), Error> {
    let params: BulkParams = ctx.params()?;
    let what = &params.change;
    let ctx = &ctx;
    for_each(params.names, AT_ONCE, |name| async move {
        let request_id = ctx.request_id_for(&name);
        change(ctx, &name, what, request_id)
            .await
            .map_err(|e| e.context(name.rsplit('/').next().unwrap_or(&name)))
    })
    .await
}

async fn change(
    ctx: &Context,
    name: &str,
    change: &Change,
    request_id: String,
) -> Result<(), Error> {
    let mut instances = ctx.app.owners.instances();
    let name = name.to_owned();
    let result = match change.action {
        Action::Start => {
            let request = StartInstanceRequest {
                name,
                stateful: change.stateful,
                request_id,
            };
            instances.start_instance(request).await
        }
        Action::Stop => {
            let request = StopInstanceRequest {
                name,
                force: change.force,
                timeout_seconds: change.timeout,
                stateful: change.stateful,
                request_id,
            };
            instances.stop_instance(request).await
        }
        Action::Restart => {
            let request = RestartInstanceRequest {
                name,
                force: change.force,
                timeout_seconds: change.timeout,
                request_id,
            };
            instances.restart_instance(request).await
        }
        Action::Freeze => {
            let request = FreezeInstanceRequest {
                name,
                lease_seconds: 0,
                request_id,
            };
            instances.freeze_instance(request).await
        }
        Action::Unfreeze => {
            let request = UnfreezeInstanceRequest { name, request_id };
            instances.unfreeze_instance(request).await
        }
    };
    answer(result).map(drop)
}

/// Stops an instance by force; one that is stopped or gone is stopped.
pub(super) async fn force_stop(ctx: &Context, name: &str) -> Result<(), Error> {
    match super::read(ctx, name).await {
        Ok(instance) if instance.status() == Status::Stopped => return Ok(()),
        Ok(_) => {}
        Err(error) if error.code == Code::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let request = super::create::stop_request(name, ctx.request_id_for("stop"));
    match answer(ctx.app.owners.instances().stop_instance(request).await) {
        Ok(_) => Ok(()),
        // It stopped or went away meanwhile.
        Err(error) if matches!(error.code, Code::NotFound | Code::FailedPrecondition) => {
            match super::read(ctx, name).await {
                Ok(instance) if instance.status() != Status::Stopped => Err(error),
                _ => Ok(()),
            }
        }
        Err(error) => Err(error),
    }
}
