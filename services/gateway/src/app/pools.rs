//! Storage pools: making and removing one.

use berth_proto::storage::Pool;

use crate::App;
use crate::app::operations::About;
use crate::app::sagas::{self, pools as steps};
use crate::error::Failure;

/// A pool as the saga's parameters have it.
pub fn creation(pool: Pool) -> steps::Create {
    steps::Create {
        pool: pool.name.rsplit('/').next().unwrap_or_default().to_owned(),
        description: pool.description,
        driver: pool.driver,
        config: pool.config.into_iter().collect(),
    }
}

/// How the making of a pool presents itself.
pub fn about_create(project: &str, request_id: &str) -> About {
    About::task("Creating storage pool", project).requested_as(request_id)
}

/// How the removal of a pool presents itself.
pub fn about_delete(project: &str, request_id: &str) -> About {
    About::task("Deleting storage pool", project).requested_as(request_id)
}

/// Makes one, and returns when it is there.
///
/// # Errors
/// In LXD's words where it has some.
pub async fn create(app: &App, project: &str, pool: Pool) -> Result<(), Failure> {
    sagas::finish(
        app,
        steps::CREATE,
        &creation(pool),
        about_create(project, ""),
    )
    .await
    .map_err(|error| match error.code {
        berth_rpc::Code::AlreadyExists => {
            Failure::conflict("The storage pool already exists: The record already exists")
        }
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
        (_, "HELD") => Failure::bad_request("The storage pool is currently in use"),
        (berth_rpc::Code::NotFound, _) => Failure::not_found("Storage pool not found"),
        _ => error.into(),
    })
}
