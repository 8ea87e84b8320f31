//! Networks: making and removing one.

use berth_proto::network::Network;

use crate::App;
use crate::app::operations::About;
use crate::app::sagas::{self, networks as steps};
use crate::error::Failure;

/// A network as the saga's parameters have it.
pub fn creation(project: &str, network: Network) -> steps::Create {
    steps::Create {
        project: project.to_owned(),
        network: network
            .name
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned(),
        description: network.description,
        kind: network.r#type,
        config: network.config.into_iter().collect(),
    }
}

/// How the making of a network presents itself.
pub fn about_create(project: &str, request_id: &str) -> About {
    About::task("Creating network", project).requested_as(request_id)
}

/// How the removal of a network presents itself.
pub fn about_delete(project: &str, request_id: &str) -> About {
    About::task("Deleting network", project).requested_as(request_id)
}

/// Makes one, and returns when it is there.
///
/// # Errors
/// In LXD's words where it has some.
pub async fn create(app: &App, project: &str, network: Network) -> Result<(), Failure> {
    sagas::finish(
        app,
        steps::CREATE,
        &creation(project, network),
        about_create(project, ""),
    )
    .await
    .map_err(|error| match error.code {
        // 400, not 409: that is LXD's answer here.
        berth_rpc::Code::AlreadyExists => Failure::bad_request("The network already exists"),
        _ => error.into(),
    })
}

/// Removes one, and returns when it is gone.
///
/// # Errors
/// In LXD's words where it has some.
pub async fn delete(app: &App, project: &str, name: &str) -> Result<(), Failure> {
    sagas::finish(
        app,
        steps::DELETE,
        &steps::Delete {
            name: name.to_owned(),
        },
        about_delete(project, ""),
    )
    .await
    .map_err(|error| match (error.code, error.reason.as_str()) {
        (_, "HELD") => Failure::bad_request("The network is currently in use"),
        (berth_rpc::Code::NotFound, _) => Failure::not_found("Network not found"),
        _ => error.into(),
    })
}
