//! Sagas on instances.

pub mod create;
pub mod delete;
pub mod rename;
pub mod restore;
pub mod snapshots;
pub mod state;
pub mod update;

use berth_operations::Saga;
use berth_proto::instance::{GetInstanceRequest, Instance, InstanceView};
use berth_rpc::Error;

use super::Context;
use super::undo::answer;
use crate::Gateway;

/// All of them.
pub(super) fn all() -> Vec<Saga<Gateway>> {
    vec![
        create::saga(),
        delete::saga(),
        rename::saga(),
        restore::saga(),
        state::saga(),
        state::bulk(),
        snapshots::create(),
        snapshots::delete(),
        snapshots::rename(),
        update::saga(),
    ]
}

/// Reads an instance's record.
async fn read(ctx: &Context, name: &str) -> Result<Instance, Error> {
    let request = GetInstanceRequest {
        name: name.to_owned(),
        view: InstanceView::Basic.into(),
    };
    answer(ctx.app.owners.instances().get_instance(request).await)
}
