//! `RestoreVolume`.

use std::sync::Arc;

use berth_rpc::{Error, names};
use berth_server::failpoint;

use super::locks::{self, Want};
use super::{App, Ask, VolumeView, blocking, discard, event, read};
use crate::model::config;
use crate::store::{SnapshotRow, VolumeRow, failed};

/// Replaces a volume's contents by a snapshot's. They are made beside the old ones under the next
/// generation, and count from the moment the row says so.
pub async fn restore_volume(
    app: &Arc<App>,
    name: &names::Volume,
    snapshot: &str,
    ask: Ask<VolumeView>,
) -> Result<VolumeView, Error> {
    let pool = app.pool(&name.pool)?;
    let key = read::key(name);
    let _held = app
        .locks
        .take([
            (locks::pool(&pool.row.name), Want::Read),
            (locks::volume(&pool.row.uid, &key), Want::Write),
        ])
        .await;
    let old = app.volume(&pool, &key).await?;
    let snapshot = SnapshotRow::find(&mut app.store.read(), &old.uid, snapshot)
        .await
        .map_err(failed)?
        .ok_or_else(|| Error::not_found("Storage volume snapshot", snapshot))?;
    let driver = pool.driver()?;
    let row = VolumeRow {
        generation: old.generation + 1,
        // Counted anew: for a while both contents are there, and the old must not press the new.
        quota_id: app.next_quota_id(),
        ..old.clone()
    };
    let _building = app.building(&row.uid);
    let (to, from, quota) = (row.place(), snapshot.place(), row.quota_id);
    let limit = config::limit(&row.config);
    let work = driver.clone();
    let made = blocking(move || {
        // Left by a try that failed at the very end.
        work.remove(to.area, &to.name())?;
        work.copy(&from, &to, Some(quota), false)?;
        match limit {
            Some(_) => work.set_limit(&to, quota, limit),
            None => Ok(()),
        }
    })
    .await;
    let done = match made {
        Ok(()) => commit(app, &pool, &row, &ask).await,
        Err(error) => Err(error),
    };
    let view = match done {
        Ok(view) => view,
        Err(error) => {
            discard(app, driver, vec![row.place()]).await;
            return Err(error);
        }
    };
    let hit = failpoint::pass("storage.restore_volume.committed").await;
    app.mark_untidy();
    discard(app, driver, vec![old.place()]).await;
    hit?;
    Ok(view)
}

async fn commit(
    app: &App,
    pool: &Arc<super::OpenPool>,
    row: &VolumeRow,
    ask: &Ask<VolumeView>,
) -> Result<VolumeView, Error> {
    failpoint::pass("storage.restore_volume.made").await?;
    let view = app.view(pool.clone(), row.clone()).await?;
    let mut tx = app.begin().await?;
    row.update(&mut tx).await.map_err(failed)?;
    let mut restored = event(
        "storage-volume-restored",
        row.resource(&pool.row.name),
        &row.key.project,
    );
    restored.generation = row.generation;
    tx.emit(restored).await.map_err(failed)?;
    tx.finish_request(&ask.request_id, (ask.render)(&view))
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    Ok(view)
}
