//! `CreateSnapshot`, `RenameSnapshot`, `DeleteSnapshot`.

use std::sync::Arc;

use berth_rpc::{Code, Error, names};
use berth_server::failpoint;
use berth_store::StoreError;

use super::locks::{self, Want};
use super::{App, Ask, OpenPool, SnapshotView, blocking, discard, event, new_uid, publish, read};
use crate::driver::Area;
use crate::model;
use crate::store::{SnapshotRow, VolumeRow, bury, failed};

/// A snapshot to be taken.
pub struct NewSnapshot {
    /// Of which volume.
    pub volume: names::Volume,
    /// Name.
    pub name: String,
    /// User's text.
    pub description: String,
    /// RFC 3339; empty = never.
    pub expires_at: String,
}

struct Locked {
    pool: Arc<OpenPool>,
    volume: VolumeRow,
    _held: locks::Held,
}

async fn lock(app: &App, name: &names::Volume) -> Result<Locked, Error> {
    let pool = app.pool(&name.pool)?;
    let key = read::key(name);
    let _held = app
        .locks
        .take([
            (locks::pool(&pool.row.name), Want::Read),
            (locks::volume(&pool.row.uid, &key), Want::Write),
        ])
        .await;
    let volume = app.volume(&pool, &key).await?;
    Ok(Locked {
        pool,
        volume,
        _held,
    })
}

fn resource(pool: &OpenPool, volume: &VolumeRow, name: &str) -> String {
    format!("{}/snapshots/{name}", volume.resource(&pool.row.name))
}

fn taken(error: StoreError, name: &str) -> Error {
    match error {
        StoreError::Unique(_) => Error::already_exists("Storage volume snapshot", name),
        other => failed(other),
    }
}

/// Takes a snapshot.
pub async fn create_snapshot(
    app: &Arc<App>,
    new: NewSnapshot,
    ask: Ask<SnapshotView>,
) -> Result<SnapshotView, Error> {
    model::names::snapshot("snapshot_id", &new.name)?;
    if new.volume.collection == super::image_cache::IMAGES {
        return Err(Error::invalid(
            "parent",
            "an image's volume has no snapshots",
        ));
    }
    let Locked {
        pool,
        volume,
        _held,
    } = lock(app, &new.volume).await?;
    let there = SnapshotRow::find(&mut app.store.read(), &volume.uid, &new.name).await;
    if there.map_err(failed)?.is_some() {
        return Err(Error::already_exists("Storage volume snapshot", &new.name));
    }
    let driver = pool.driver()?;
    let row = SnapshotRow {
        uid: new_uid(),
        volume: volume.uid.clone(),
        name: new.name,
        description: new.description,
        config: volume.config.clone(),
        created_at: berth_store::now(),
        expires_at: new.expires_at,
    };
    let staged = row.place().staged();
    let _building = app.building(&row.uid);
    let (work, from, to) = (driver.clone(), volume.place(), staged.clone());
    let made = blocking(move || work.copy(&from, &to, None, true)).await;
    let view = SnapshotView { row, volume, pool };
    let done = match made {
        Ok(()) => commit(app, &view, &ask).await,
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        discard(app, driver, vec![staged]).await;
        return Err(error);
    }
    let hit = failpoint::pass("storage.create_snapshot.committed").await;
    publish(app, driver, vec![staged]).await?;
    hit?;
    Ok(view)
}

async fn commit(app: &App, view: &SnapshotView, ask: &Ask<SnapshotView>) -> Result<(), Error> {
    failpoint::pass("storage.create_snapshot.made").await?;
    let row = &view.row;
    let mut tx = app.begin().await?;
    row.insert(&mut tx)
        .await
        .map_err(|error| taken(error, &row.name))?;
    let name = resource(&view.pool, &view.volume, &row.name);
    tx.emit(event(
        "storage-volume-snapshot-created",
        name,
        &view.volume.key.project,
    ))
    .await
    .map_err(failed)?;
    tx.finish_request(&ask.request_id, (ask.render)(view))
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)
}

async fn find(app: &App, volume: &VolumeRow, name: &str) -> Result<SnapshotRow, Error> {
    SnapshotRow::find(&mut app.store.read(), &volume.uid, name)
        .await
        .map_err(failed)?
        .ok_or_else(|| Error::not_found("Storage volume snapshot", name))
}

/// Renames a snapshot: one row.
pub async fn rename_snapshot(
    app: &Arc<App>,
    volume: &names::Volume,
    name: &str,
    new_name: &str,
    ask: Ask<SnapshotView>,
) -> Result<SnapshotView, Error> {
    model::names::snapshot("new_snapshot_id", new_name)?;
    let Locked {
        pool,
        volume,
        _held,
    } = lock(app, volume).await?;
    let mut row = find(app, &volume, name).await?;
    row.name = new_name.to_owned();
    let view = SnapshotView { row, volume, pool };
    let mut tx = app.begin().await?;
    SnapshotRow::rename(&mut tx, &view.row.uid, new_name)
        .await
        .map_err(|error| taken(error, new_name))?;
    let mut renamed = event(
        "storage-volume-snapshot-renamed",
        resource(&view.pool, &view.volume, new_name),
        &view.volume.key.project,
    );
    renamed
        .attributes
        .insert("old_name".to_owned(), name.to_owned());
    tx.emit(renamed).await.map_err(failed)?;
    tx.finish_request(&ask.request_id, (ask.render)(&view))
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    Ok(view)
}

/// Changes what a user writes of a snapshot; `None` leaves it.
pub async fn update_snapshot(
    app: &Arc<App>,
    volume: &names::Volume,
    name: &str,
    description: Option<String>,
    expires_at: Option<String>,
    ask: Ask<SnapshotView>,
) -> Result<SnapshotView, Error> {
    let Locked {
        pool,
        volume,
        _held,
    } = lock(app, volume).await?;
    let mut row = find(app, &volume, name).await?;
    row.description = description.unwrap_or(row.description);
    row.expires_at = expires_at.unwrap_or(row.expires_at);
    let view = SnapshotView { row, volume, pool };
    let mut tx = app.begin().await?;
    view.row.describe(&mut tx).await.map_err(failed)?;
    tx.emit(event(
        "storage-volume-snapshot-updated",
        resource(&view.pool, &view.volume, name),
        &view.volume.key.project,
    ))
    .await
    .map_err(failed)?;
    tx.finish_request(&ask.request_id, (ask.render)(&view))
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    Ok(view)
}

/// Removes a snapshot.
pub async fn delete_snapshot(
    app: &Arc<App>,
    volume: &names::Volume,
    name: &str,
    allow_missing: bool,
    ask: Ask<()>,
) -> Result<(), Error> {
    let found = async {
        let locked = lock(app, volume).await?;
        let row = find(app, &locked.volume, name).await?;
        Ok((locked, row))
    };
    let (locked, row) = match found.await {
        Ok(found) => found,
        Err(error) => {
            let error: Error = error;
            if allow_missing && error.code == Code::NotFound {
                return Ok(());
            }
            return Err(error);
        }
    };
    let driver = locked.pool.driver()?;
    let mut tx = app.begin().await?;
    bury(&mut tx, &locked.pool.row.uid, Area::Snapshots, &row.uid)
        .await
        .map_err(failed)?;
    SnapshotRow::delete(&mut tx, &row.uid)
        .await
        .map_err(failed)?;
    let name = resource(&locked.pool, &locked.volume, &row.name);
    tx.emit(event(
        "storage-volume-snapshot-deleted",
        name,
        &locked.volume.key.project,
    ))
    .await
    .map_err(failed)?;
    tx.finish_request(&ask.request_id, (ask.render)(&()))
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    let hit = failpoint::pass("storage.delete_snapshot.committed").await;
    super::delete_volume::remove_buried(app, driver, vec![row.place()]).await;
    hit
}
