//! Sagas on networks.

use std::collections::BTreeMap;

use berth_operations::{Saga, Step};
use berth_proto::network;
use berth_rpc::{Error, names};
use serde::{Deserialize, Serialize};

use super::Context;
use super::undo::{absent_is_fine, answer, may_have_happened, noted};
use crate::app::holds;

/// Makes a network, and holds it for profiles that name it already.
pub const CREATE: &str = "create_network";
/// Removes a network.
pub const DELETE: &str = "delete_network";

/// Noted where it may have been made: only then is it ours to remove.
const CREATED: &str = "created";

/// A network to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Create {
    /// Project's short name.
    pub project: String,
    /// Short name.
    pub network: String,
    /// As the client wrote it.
    pub description: String,
    /// `bridge`.
    pub kind: String,
    /// As the client wrote it.
    pub config: BTreeMap<String, String>,
}

/// `create_network`.
pub fn create() -> Saga<crate::Gateway> {
    Saga {
        name: CREATE,
        version: 1,
        stages: vec![
            vec![Step::with_undo(
                "create_network",
                |ctx| Box::pin(create_network(ctx)),
                |ctx| Box::pin(remove_network(ctx)),
            )],
            vec![Step::with_undo(
                "hold_for_profiles",
                |ctx| Box::pin(hold_for_profiles(ctx)),
                |ctx| Box::pin(release_profiles(ctx)),
            )],
        ],
    }
}

async fn create_network(ctx: Context) -> Result<(), Error> {
    let params: Create = ctx.params()?;
    let mut client = ctx.app.owners.networks();
    let request = network::CreateNetworkRequest {
        parent: names::Project::new(params.project).to_string(),
        network_id: params.network,
        network: Some(network::Network {
            description: params.description,
            r#type: params.kind,
            config: params.config.into_iter().collect(),
            ..Default::default()
        }),
        request_id: ctx.request_id(),
        validate_only: false,
    };
    noted(&ctx, CREATED, async {
        answer(client.create_network(request).await)
    })
    .await?;
    Ok(())
}

async fn remove_network(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, CREATED)? {
        return Ok(());
    }
    let params: Create = ctx.params()?;
    let deleted = ctx
        .app
        .owners
        .networks()
        .delete_network(network::DeleteNetworkRequest {
            name: names::Network::new(params.project, params.network).to_string(),
            request_id: ctx.request_id(),
            ..Default::default()
        })
        .await;
    absent_is_fine(answer(deleted))
}

async fn hold_for_profiles(ctx: Context) -> Result<(), Error> {
    let params: Create = ctx.params()?;
    holds::hold_new_network(&ctx.app.owners, &params.project, &params.network).await
}

async fn release_profiles(ctx: Context) -> Result<(), Error> {
    let params: Create = ctx.params()?;
    if !may_have_happened(&ctx, CREATED)? {
        return Ok(());
    }
    holds::release_network(&ctx.app.owners, &params.project, &params.network).await
}

/// What is deleted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Delete {
    /// Resource name.
    pub name: String,
}

/// `delete_network`.
pub fn delete() -> Saga<crate::Gateway> {
    Saga {
        name: DELETE,
        version: 1,
        stages: vec![vec![Step::new("delete_network", |ctx| {
            Box::pin(delete_network(ctx))
        })]],
    }
}

async fn delete_network(ctx: Context) -> Result<(), Error> {
    let Delete { name } = ctx.params()?;
    ctx.app
        .owners
        .networks()
        .delete_network(network::DeleteNetworkRequest {
            name,
            request_id: ctx.request_id(),
            ..Default::default()
        })
        .await?;
    Ok(())
}
