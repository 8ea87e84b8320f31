//! `DeleteVolume`.

use std::sync::Arc;

use berth_rpc::{Error, names};
use berth_server::failpoint;

use super::locks::{self, Want};
use super::{App, Ask, blocking, event, read};
use crate::driver::{Area, Driver, Place};
use crate::store::{Hold, SnapshotRow, VolumeRow, bury, failed};

/// What is to be deleted.
pub struct Deletion {
    /// The volume.
    pub name: names::Volume,
    /// Etag that the caller read; empty = any.
    pub etag: String,
    /// What is absent is deleted already.
    pub allow_missing: bool,
    /// Whose hold is released with it; empty = nobody's.
    pub holder: String,
}

/// Removes a volume with its snapshots.
pub async fn delete_volume(app: &Arc<App>, what: Deletion, ask: Ask<()>) -> Result<(), Error> {
    let pool = match app.pool(&what.name.pool) {
        Ok(pool) => pool,
        Err(error) if what.allow_missing && error.code == berth_rpc::Code::NotFound => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let key = read::key(&what.name);
    let _held = app
        .locks
        .take([
            (locks::pool(&pool.row.name), Want::Read),
            (locks::volume(&pool.row.uid, &key), Want::Write),
        ])
        .await;
    let row = match app.volume(&pool, &key).await {
        Ok(row) => row,
        Err(error) if what.allow_missing && error.code == berth_rpc::Code::NotFound => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let resource = row.resource(&pool.row.name);
    read::check_etag(&what.etag, &read::volume_etag(&row), &resource)?;
    let driver = pool.driver()?;
    let snapshots = SnapshotRow::of(&mut app.store.read(), &row.uid)
        .await
        .map_err(failed)?;

    let mut tx = app.begin().await?;
    // Looked at in the transaction: a hold that comes in between must win.
    let holds = Hold::of(&mut tx, &row.uid, &berth_store::now())
        .await
        .map_err(failed)?;
    let others: Vec<String> = holds
        .into_iter()
        .map(|hold| hold.holder)
        .filter(|holder| *holder != what.holder)
        .collect();
    if !others.is_empty() {
        return Err(Error::held(
            format!("Storage volume {:?}", key.name),
            others,
        ));
    }
    bury(&mut tx, &pool.row.uid, Area::Volumes, &row.uid)
        .await
        .map_err(failed)?;
    for snapshot in &snapshots {
        bury(&mut tx, &pool.row.uid, Area::Snapshots, &snapshot.uid)
            .await
            .map_err(failed)?;
    }
    VolumeRow::delete(&mut tx, &row.uid).await.map_err(failed)?;
    tx.emit(event("storage-volume-deleted", resource, &key.project))
        .await
        .map_err(failed)?;
    tx.finish_request(&ask.request_id, (ask.render)(&()))
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    let hit = failpoint::pass("storage.delete_volume.committed").await;

    let mut places: Vec<Place> = snapshots.iter().map(SnapshotRow::place).collect();
    places.push(row.place());
    remove_buried(app, driver, places).await;
    hit
}

/// Removes contents whose rows are gone. What can't be removed now has a tombstone, and is removed
/// by reconcile.
pub(super) async fn remove_buried(app: &App, driver: Arc<dyn Driver>, places: Vec<Place>) {
    app.mark_untidy();
    let removed = blocking(move || {
        let mut first = Ok(());
        for place in &places {
            let done = driver.remove(place.area, &place.name());
            if first.is_ok() {
                first = done;
            }
        }
        first
    })
    .await;
    if let Err(error) = removed {
        tracing::warn!(%error, "deleted contents are still there; they are removed later");
    }
}
