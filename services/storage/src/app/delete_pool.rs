//! `DeletePool`.

use std::sync::Arc;

use berth_rpc::Error;
use berth_server::failpoint;

use super::locks::{self, Want};
use super::{App, Ask, OpenPool, blocking, event, read, reconcile};
use crate::driver::{self, Driver};
use crate::store::{Hold, PoolRow, PoolState, SnapshotRow, VolumeFilter, VolumeRow, failed};

/// Removes a pool with its cached images. Refused while anything else is in it or holds it.
pub async fn delete_pool(
    app: &Arc<App>,
    name: &str,
    etag: &str,
    ask: Ask<()>,
) -> Result<(), Error> {
    let _held = app.locks.take([(locks::pool(name), Want::Write)]).await;
    let pool = match app.pool(name) {
        Ok(pool) => pool,
        Err(_) if reconcile::finish_interrupted(app, name).await? => return Ok(()),
        Err(error) => return Err(error),
    };
    read::check_etag(etag, &read::pool_etag(&pool.row), &pool.row.resource())?;
    let users = users(app, &pool.row).await?;
    if !users.is_empty() {
        return Err(Error::held(format!("Storage pool {name:?}"), users));
    }
    set_state(app, &pool.row, PoolState::Deleting).await?;
    app.drop_pool(name);
    let row = pool.row.clone();
    // The driver holds the mount, and must be the last to hold it.
    let opened = match Arc::try_unwrap(pool) {
        Ok(pool) => pool.driver.ok(),
        Err(pool) => pool.driver.clone().ok(),
    };
    let unmade = async {
        failpoint::pass("storage.delete_pool.recorded").await?;
        unmake(app, &row, opened).await
    };
    if let Err(error) = unmade.await {
        // It is all there still, or at least known: the pool stays for another try.
        set_state(app, &row, PoolState::Created).await?;
        reopen(app, row).await;
        return Err(error);
    }
    failpoint::pass("storage.delete_pool.unmade").await?;
    let mut tx = app.begin().await?;
    PoolRow::delete(&mut tx, &row.uid).await.map_err(failed)?;
    tx.emit(event("storage-pool-deleted", row.resource(), ""))
        .await
        .map_err(failed)?;
    tx.finish_request(&ask.request_id, (ask.render)(&()))
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)
}

/// Who keeps the pool from being deleted.
async fn users(app: &App, row: &PoolRow) -> Result<Vec<String>, Error> {
    let now = berth_store::now();
    let mut db = app.store.read();
    let filter = VolumeFilter {
        pool: Some(row.uid.clone()),
        ..VolumeFilter::default()
    };
    let mut users = Vec::new();
    for volume in VolumeRow::list(&mut db, &filter).await.map_err(failed)? {
        if volume.key.collection != "images" {
            users.push(volume.resource(&row.name));
            continue;
        }
        let holds = Hold::of(&mut db, &volume.uid, &now).await.map_err(failed)?;
        users.extend(holds.into_iter().map(|h| h.holder));
    }
    let holds = Hold::of(&mut db, &row.uid, &now).await.map_err(failed)?;
    users.extend(holds.into_iter().map(|h| h.holder));
    users.sort();
    users.dedup();
    Ok(users)
}

async fn set_state(app: &App, row: &PoolRow, state: PoolState) -> Result<(), Error> {
    let row = PoolRow {
        state,
        ..row.clone()
    };
    let mut tx = app.begin().await?;
    row.update(&mut tx).await.map_err(failed)?;
    tx.commit().await.map_err(failed)
}

/// Removes a pool's contents and storage; used by start-up and purge as well.
pub(super) async fn unmake(
    app: &App,
    row: &PoolRow,
    opened: Option<Arc<dyn Driver>>,
) -> Result<(), Error> {
    let mut known: Vec<String> = {
        let filter = VolumeFilter {
            pool: Some(row.uid.clone()),
            ..VolumeFilter::default()
        };
        let volumes = VolumeRow::list(&mut app.store.read(), &filter)
            .await
            .map_err(failed)?;
        volumes.into_iter().map(|v| v.uid).collect()
    };
    known.extend(
        SnapshotRow::uids_in_pool(&mut app.store.read(), &row.uid)
            .await
            .map_err(failed)?,
    );
    let buried = crate::store::Tombstone::of(&mut app.store.read(), &row.uid).await;
    known.extend(buried.map_err(failed)?.into_iter().map(|t| t.uid));
    let setup = row.setup();
    blocking(move || {
        if let Some(driver) = &opened {
            for found in driver.entries()? {
                let ours = |p: &driver::Place| p.staged || known.contains(&p.uid);
                if found.place.as_ref().is_some_and(ours) {
                    driver.remove(found.area, &found.name)?;
                }
            }
        }
        driver::unmake(&setup, opened)
    })
    .await
}

/// Opens a pool's storage and puts the pool among those in use, whatever comes of it.
pub(super) async fn reopen(app: &App, mut row: PoolRow) -> Arc<OpenPool> {
    row.state = PoolState::Created;
    let setup = row.setup();
    let opened = blocking(move || driver::open(&setup)).await;
    let driver = opened.map_err(|error| {
        tracing::warn!(pool = row.name, %error, "the storage pool can't be used");
        error.message
    });
    app.put_pool(OpenPool { row, driver })
}
