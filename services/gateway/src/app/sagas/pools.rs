//! Sagas on storage pools.

use std::collections::BTreeMap;

use berth_operations::{Saga, Step};
use berth_proto::storage;
use berth_rpc::{Error, names};
use serde::{Deserialize, Serialize};

use super::Context;
use super::undo::{absent_is_fine, answer, may_have_happened, noted};
use crate::app::holds;

/// Makes a pool, and holds it for profiles that name it already.
pub const CREATE: &str = "create_pool";
/// Removes a pool.
pub const DELETE: &str = "delete_pool";

/// Noted where it may have been made: only then is it ours to remove.
const CREATED: &str = "created";

/// A pool to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Create {
    /// Short name.
    pub pool: String,
    /// As the client wrote it.
    pub description: String,
    /// `dir` or `btrfs`.
    pub driver: String,
    /// As the client wrote it.
    pub config: BTreeMap<String, String>,
}

/// `create_pool`.
pub fn create() -> Saga<crate::Gateway> {
    Saga {
        name: CREATE,
        version: 1,
        stages: vec![
            vec![Step::with_undo(
                "create_pool",
                |ctx| Box::pin(create_pool(ctx)),
                |ctx| Box::pin(remove_pool(ctx)),
            )],
            vec![Step::with_undo(
                "hold_for_profiles",
                |ctx| Box::pin(hold_for_profiles(ctx)),
                |ctx| Box::pin(release_profiles(ctx)),
            )],
        ],
    }
}

async fn create_pool(ctx: Context) -> Result<(), Error> {
    let params: Create = ctx.params()?;
    let mut client = ctx.app.owners.pools();
    let request = storage::CreatePoolRequest {
        pool_id: params.pool,
        pool: Some(storage::Pool {
            description: params.description,
            driver: params.driver,
            config: params.config.into_iter().collect(),
            ..Default::default()
        }),
        request_id: ctx.request_id(),
        validate_only: false,
    };
    noted(&ctx, CREATED, async {
        answer(client.create_pool(request).await)
    })
    .await?;
    Ok(())
}

async fn remove_pool(ctx: Context) -> Result<(), Error> {
    if !may_have_happened(&ctx, CREATED)? {
        return Ok(());
    }
    let params: Create = ctx.params()?;
    let deleted = ctx
        .app
        .owners
        .pools()
        .delete_pool(storage::DeletePoolRequest {
            name: names::Pool::new(params.pool).to_string(),
            request_id: ctx.request_id(),
            ..Default::default()
        })
        .await;
    absent_is_fine(answer(deleted))
}

async fn hold_for_profiles(ctx: Context) -> Result<(), Error> {
    let params: Create = ctx.params()?;
    holds::hold_new_pool(&ctx.app.owners, &params.pool).await
}

async fn release_profiles(ctx: Context) -> Result<(), Error> {
    let params: Create = ctx.params()?;
    if !may_have_happened(&ctx, CREATED)? {
        return Ok(());
    }
    holds::release_pool(&ctx.app.owners, &params.pool).await
}

/// What is deleted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Delete {
    /// Resource name.
    pub name: String,
}

/// `delete_pool`.
pub fn delete() -> Saga<crate::Gateway> {
    Saga {
        name: DELETE,
        version: 1,
        stages: vec![vec![Step::new("delete_pool", |ctx| {
            Box::pin(delete_pool(ctx))
        })]],
    }
}

async fn delete_pool(ctx: Context) -> Result<(), Error> {
    let Delete { name } = ctx.params()?;
    ctx.app
        .owners
        .pools()
        .delete_pool(storage::DeletePoolRequest {
            name,
            request_id: ctx.request_id(),
            ..Default::default()
        })
        .await?;
    Ok(())
}
