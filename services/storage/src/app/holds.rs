//! Holds on pools and volumes: who uses them. Taking and releasing are idempotent by holder.

use std::sync::Arc;

use berth_rpc::{Error, names};

use super::locks::{self, Want};
use super::{App, PoolView, VolumeView, read};
use crate::store::{Hold, failed};

/// Takes or renews a hold on a pool.
pub async fn hold_pool(app: &Arc<App>, name: &str, hold: &Hold) -> Result<PoolView, Error> {
    let _held = app.locks.take([(locks::pool(name), Want::Read)]).await;
    let pool = app.pool(name)?;
    let mut tx = app.begin().await?;
    hold.take(&mut tx, &pool.row.uid).await.map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    read::get_pool(app, name).await
}

/// Releases a hold on a pool.
pub async fn release_pool(app: &Arc<App>, name: &str, holder: &str) -> Result<PoolView, Error> {
    let _held = app.locks.take([(locks::pool(name), Want::Read)]).await;
    let pool = app.pool(name)?;
    let mut tx = app.begin().await?;
    Hold::release(&mut tx, &pool.row.uid, holder)
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    read::get_pool(app, name).await
}

/// Takes or renews a hold on a volume.
pub async fn hold_volume(
    app: &Arc<App>,
    name: &names::Volume,
    hold: &Hold,
) -> Result<VolumeView, Error> {
    let (pool, key) = (app.pool(&name.pool)?, read::key(name));
    let wanted = [
        (locks::pool(&pool.row.name), Want::Read),
        (locks::volume(&pool.row.uid, &key), Want::Write),
    ];
    let _held = app.locks.take(wanted).await;
    let row = app.volume(&pool, &key).await?;
    let mut tx = app.begin().await?;
    hold.take(&mut tx, &row.uid).await.map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    app.view(pool, row).await
}

/// Releases a hold on a volume.
pub async fn release_volume(
    app: &Arc<App>,
    name: &names::Volume,
    holder: &str,
) -> Result<VolumeView, Error> {
    let pool = app.pool(&name.pool)?;
    let row = app.volume(&pool, &read::key(name)).await?;
    let mut tx = app.begin().await?;
    Hold::release(&mut tx, &row.uid, holder)
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    app.view(pool, row).await
}
