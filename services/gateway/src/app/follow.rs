//! Follows what the owners tell: their events become clients' lifecycle events, and an ephemeral
//! instance that stopped is removed.

use std::time::Duration;

use berth_proto::instance::instance::Status as InstanceStatus;
use berth_proto::instance::{GetInstanceRequest, InstanceView};
use berth_proto::types::{Event, WatchEventsRequest};
use berth_rpc::{Code, Error};
use serde_json::{Map, Value};
use tonic::{Response, Status, Streaming};

use crate::App;
use crate::app::{instances, scheduled};
use crate::clients::Owners;
use crate::rest::urls;

/// Between two tries to reach an owner that is away.
const PAUSE: Duration = Duration::from_millis(500);

/// The owners that have events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Image,
    Storage,
    Network,
    Instance,
}

/// Begins to follow all owners, for as long as the process lives.
pub fn begin(app: &App) {
    for owner in [
        Owner::Image,
        Owner::Storage,
        Owner::Network,
        Owner::Instance,
    ] {
        tokio::spawn(follow(app.clone(), owner));
    }
}

impl Owner {
    async fn watch(
        self,
        owners: &Owners,
        request: WatchEventsRequest,
    ) -> Result<Response<Streaming<Event>>, Status> {
        match self {
            Self::Image => owners.images().watch_events(request).await,
            Self::Storage => owners.pools().watch_events(request).await,
            Self::Network => owners.networks().watch_events(request).await,
            Self::Instance => owners.instances().watch_events(request).await,
        }
    }
}

async fn follow(app: App, owner: Owner) {
    let mut seen = WatchEventsRequest::default();
    loop {
        match owner.watch(&app.owners, seen.clone()).await {
            Ok(stream) => {
                if owner == Owner::Instance {
                    // What stopped while nobody listened.
                    let app = app.clone();
                    tokio::spawn(async move {
                        if let Err(error) = sweep_ephemeral(&app).await {
                            tracing::warn!(%error, "ephemeral instances could not be looked over");
                        }
                    });
                }
                read(&app, owner, stream.into_inner(), &mut seen).await;
            }
            Err(status) => {
                let error = Error::from(status);
                if error.code == Code::InvalidArgument || error.code == Code::FailedPrecondition {
                    // A place in the order that the owner no longer knows: from now on, then.
                    seen = WatchEventsRequest::default();
                }
                tracing::debug!(?owner, %error, "events cannot be followed");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn read(
    app: &App,
    owner: Owner,
    mut stream: Streaming<Event>,
    seen: &mut WatchEventsRequest,
) {
    loop {
        match stream.message().await {
            Ok(Some(event)) => {
                seen.after_epoch.clone_from(&event.epoch);
                seen.after_sequence = event.sequence;
                tell(app, &event);
                if owner == Owner::Instance && event.action == "instance-started" {
                    let app = app.clone();
                    let name = event.resource.clone();
                    tokio::spawn(async move {
                        if let Err(error) = scheduled::started(&app, &name).await {
                            tracing::warn!(%name, %error, "no snapshot at the start");
                        }
                    });
                }
                if owner == Owner::Instance && has_ended(&event.action) {
                    let app = app.clone();
                    tokio::spawn(async move {
                        if let Err(error) = remove_ephemeral(&app, &event).await {
                            tracing::warn!(%error, "an ephemeral instance could not be removed");
                        }
                    });
                }
            }
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(?owner, %status, "events broke off");
                return;
            }
        }
    }
}

/// Passes an owner's event on in LXD's form. Volumes of instances and images are their business.
fn tell(app: &App, event: &Event) {
    let parts: Vec<&str> = event.resource.split('/').collect();
    if let ["projects", _, "storagePools", _, collection, ..] = parts.as_slice()
        && *collection != "custom"
    {
        return;
    }
    if matches!(
        parts.as_slice(),
        ["projects", _, "networks", _, "ports", ..]
    ) {
        return;
    }
    let mut context: Map<String, Value> = event
        .attributes
        .iter()
        .map(|(key, value)| (key.clone(), value.clone().into()))
        .collect();
    context.remove("uid");
    app.events.lifecycle(
        &event.project,
        &event.action,
        &urls::of_resource(&event.resource),
        (!context.is_empty()).then_some(Value::Object(context)),
    );
}

fn has_ended(action: &str) -> bool {
    matches!(action, "instance-stopped" | "instance-shutdown")
}

/// Removes the instance of a stop event when it is ephemeral, and only if it stopped in that run.
async fn remove_ephemeral(app: &App, event: &Event) -> Result<(), Error> {
    let request = GetInstanceRequest {
        name: event.resource.clone(),
        view: InstanceView::Basic.into(),
    };
    let instance = match app.owners.instances().get_instance(request).await {
        Ok(instance) => instance.into_inner(),
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    if !instance.ephemeral
        || instance.status() != InstanceStatus::Stopped
        || instance.generation != event.generation
    {
        return Ok(());
    }
    begin_removal(app, &instance.name, &instance.uid, instance.generation).await
}

/// The same for all that are found stopped after a run.
async fn sweep_ephemeral(app: &App) -> Result<(), Error> {
    for instance in instances::list(app, "projects/-", InstanceView::Basic).await? {
        let over = instance.status() == InstanceStatus::Stopped && instance.generation > 0;
        if instance.ephemeral && over {
            begin_removal(app, &instance.name, &instance.uid, instance.generation).await?;
        }
    }
    Ok(())
}

async fn begin_removal(app: &App, name: &str, uid: &str, generation: i64) -> Result<(), Error> {
    // One removal for each run, however often it is told.
    let request_id = format!("ephemeral/{uid}/{generation}");
    instances::begin_delete(app, name, false, generation, &request_id)
        .await
        .map(drop)
}
