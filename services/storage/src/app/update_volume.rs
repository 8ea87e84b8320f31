//! `UpdateVolume` and `RenameVolume`.

use std::collections::HashMap;
use std::sync::Arc;

use berth_rpc::mask::Mask;
use berth_rpc::{Error, names};
use berth_server::failpoint;
use berth_store::StoreError;

use super::image_cache::IMAGES;
use super::locks::{self, Want};
use super::{App, Ask, VolumeView, blocking, event, read};
use crate::model::{self, config};
use crate::store::{VolumeKey, failed};

/// What is to change.
pub struct VolumeChange {
    /// The volume.
    pub name: names::Volume,
    /// New text.
    pub description: String,
    /// New configuration, whole or the masked keys of it.
    pub config: HashMap<String, String>,
    /// Which of the two.
    pub mask: Mask,
    /// Etag that the caller read; empty = any.
    pub etag: String,
}

/// Changes description and configuration; `size` holds at once.
pub async fn update_volume(
    app: &Arc<App>,
    change: VolumeChange,
    ask: Ask<VolumeView>,
) -> Result<VolumeView, Error> {
    let pool = app.pool(&change.name.pool)?;
    let key = read::key(&change.name);
    let _held = app
        .locks
        .take([
            (locks::pool(&pool.row.name), Want::Read),
            (locks::volume(&pool.row.uid, &key), Want::Write),
        ])
        .await;
    let old = app.volume(&pool, &key).await?;
    let resource = old.resource(&pool.row.name);
    read::check_etag(&change.etag, &read::volume_etag(&old), &resource)?;
    let mut row = old.clone();
    if change.mask.has("description") {
        row.description = change.description;
    }
    if change.mask.has("config") {
        row.config = change
            .mask
            .merge_map("config", &old.config, &change.config, String::is_empty);
        config::check_volume(&key.collection, &row.config)?;
        if key.collection == IMAGES && row.config.contains_key("size") {
            return Err(Error::invalid(
                "config.size",
                "an image's volume has no size of its own",
            ));
        }
    }
    let (before, after) = (config::limit(&old.config), config::limit(&row.config));
    let driver = pool.driver()?;
    if before != after {
        let (driver, place, quota) = (driver.clone(), row.place(), row.quota_id);
        blocking(move || driver.set_limit(&place, quota, after)).await?;
    }
    let view = app.view(pool.clone(), row).await?;
    let commit = async {
        failpoint::pass("storage.update_volume.limited").await?;
        let mut tx = app.begin().await?;
        view.row.update(&mut tx).await.map_err(failed)?;
        tx.emit(event("storage-volume-updated", resource, &key.project))
            .await
            .map_err(failed)?;
        tx.finish_request(&ask.request_id, (ask.render)(&view))
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)
    };
    if let Err(error) = commit.await {
        if before != after {
            let (place, quota) = (old.place(), old.quota_id);
            if let Err(again) = blocking(move || driver.set_limit(&place, quota, before)).await {
                tracing::warn!(error = %again, "a limit stays changed until the service restarts");
            }
        }
        return Err(error);
    }
    Ok(view)
}

/// Renames a volume: one row, for its contents are called by its uid.
pub async fn rename_volume(
    app: &Arc<App>,
    name: &names::Volume,
    new_name: &str,
    ask: Ask<VolumeView>,
) -> Result<VolumeView, Error> {
    model::names::volume("new_volume_id", new_name)?;
    if name.collection == IMAGES {
        return Err(Error::invalid(
            "name",
            "an image's volume is called by its fingerprint",
        ));
    }
    let pool = app.pool(&name.pool)?;
    let key = read::key(name);
    let new_key = VolumeKey {
        name: new_name.to_owned(),
        ..key.clone()
    };
    let _held = app
        .locks
        .take([
            (locks::pool(&pool.row.name), Want::Read),
            (locks::volume(&pool.row.uid, &key), Want::Write),
            (locks::volume(&pool.row.uid, &new_key), Want::Write),
        ])
        .await;
    let mut row = app.volume(&pool, &key).await?;
    row.key = new_key;
    let view = app.view(pool.clone(), row).await?;
    // Those who use a custom volume know it by its name; an instance's own is renamed with it.
    if key.collection == "custom" && !view.holds.is_empty() {
        return Err(Error::held(
            format!("Storage volume {:?}", key.name),
            view.holds.into_iter().map(|hold| hold.holder).collect(),
        ));
    }
    let mut tx = app.begin().await?;
    view.row
        .update(&mut tx)
        .await
        .map_err(|error| match error {
            StoreError::Unique(_) => Error::already_exists("Storage volume", new_name),
            other => failed(other),
        })?;
    let resource = view.row.resource(&pool.row.name);
    let mut renamed = event("storage-volume-renamed", resource, &key.project);
    renamed.attributes.insert("old_name".to_owned(), key.name);
    tx.emit(renamed).await.map_err(failed)?;
    tx.finish_request(&ask.request_id, (ask.render)(&view))
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    Ok(view)
}
