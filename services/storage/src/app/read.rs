//! What reads: gets, lists, usage, resources.

use std::collections::HashMap;
use std::sync::Arc;

use berth_rpc::{Error, etag, names, page};

use super::{App, OpenPool, PoolView, SnapshotView, VolumeView, blocking};
use crate::driver::Space;
use crate::model::config::{Config, limit};
use crate::store::{Hold, PoolRow, SnapshotRow, VolumeFilter, VolumeKey, VolumeRow, failed};

fn config_etag(description: &str, config: &Config) -> String {
    let mut parts = vec![description];
    for (key, value) in config {
        parts.extend([key.as_str(), value.as_str()]);
    }
    etag(parts)
}

/// Etag over what users write.
pub fn pool_etag(row: &PoolRow) -> String {
    config_etag(&row.description, &row.config)
}

/// Etag over what users write.
pub fn volume_etag(row: &VolumeRow) -> String {
    config_etag(&row.description, &row.config)
}

/// Compares what the caller read with what is; an empty etag fits all.
pub fn check_etag(given: &str, now: &str, resource: &str) -> Result<(), Error> {
    if given.is_empty() || given == now {
        return Ok(());
    }
    Err(Error::etag_mismatch(resource))
}

/// Resource names of what uses a pool: volumes, and who holds it.
pub async fn pool_users(app: &App, row: &PoolRow) -> Result<Vec<String>, Error> {
    let filter = VolumeFilter {
        pool: Some(row.uid.clone()),
        ..VolumeFilter::default()
    };
    let mut db = app.store.read();
    let volumes = VolumeRow::list(&mut db, &filter).await.map_err(failed)?;
    let mut users: Vec<String> = volumes.iter().map(|v| v.resource(&row.name)).collect();
    let holds = Hold::of(&mut db, &row.uid, &berth_store::now())
        .await
        .map_err(failed)?;
    users.extend(holds.into_iter().map(|h| h.holder));
    users.sort();
    Ok(users)
}

/// One pool.
pub async fn get_pool(app: &App, name: &str) -> Result<PoolView, Error> {
    let pool = app.pool(name)?;
    let used_by = pool_users(app, &pool.row).await?;
    Ok(PoolView { pool, used_by })
}

/// A page of pools and the next page's token.
pub async fn list_pools(
    app: &App,
    page_size: i32,
    token: &str,
) -> Result<(Vec<PoolView>, String), Error> {
    let (pools, next) = page::cut(app.pools(), page_size, token, |p| p.row.name.as_str())?;
    let mut db = app.store.read();
    let mut users: HashMap<String, Vec<VolumeRow>> = HashMap::new();
    for volume in VolumeRow::list(&mut db, &VolumeFilter::default())
        .await
        .map_err(failed)?
    {
        users.entry(volume.pool.clone()).or_default().push(volume);
    }
    let mut holds = Hold::all(&mut db, &berth_store::now())
        .await
        .map_err(failed)?;
    let views = pools.into_iter().map(|pool| {
        let volumes = users.remove(&pool.row.uid).unwrap_or_default();
        let mut used_by: Vec<_> = volumes.iter().map(|v| v.resource(&pool.row.name)).collect();
        let held = holds.remove(&pool.row.uid).unwrap_or_default();
        used_by.extend(held.into_iter().map(|h| h.holder));
        used_by.sort();
        PoolView { pool, used_by }
    });
    Ok((views.collect(), next))
}

/// Space of a pool.
pub async fn pool_resources(app: &App, name: &str) -> Result<Space, Error> {
    let driver = app.pool(name)?.driver()?;
    blocking(move || driver.space()).await
}

/// One volume.
pub async fn get_volume(app: &App, name: &names::Volume) -> Result<VolumeView, Error> {
    let pool = app.pool(&name.pool)?;
    let row = app.volume(&pool, &key(name)).await?;
    app.view(pool, row).await
}

/// A volume's key within its pool.
pub fn key(name: &names::Volume) -> VolumeKey {
    VolumeKey {
        project: name.project.clone(),
        collection: name.collection.clone(),
        name: name.volume.clone(),
    }
}

/// Where to list: `-` stands for all projects or pools.
pub struct Within {
    /// Project, or `-`.
    pub project: String,
    /// Pool, or `-`.
    pub pool: String,
    /// Collection; empty = all.
    pub collection: String,
}

async fn rows(
    app: &App,
    within: &Within,
) -> Result<Vec<(VolumeRow, Arc<OpenPool>, String)>, Error> {
    let some = |text: &str| (text != "-" && !text.is_empty()).then(|| text.to_owned());
    let pool = match some(&within.pool) {
        Some(name) => Some(app.pool(&name)?.row.uid.clone()),
        None => None,
    };
    let filter = VolumeFilter {
        pool,
        project: some(&within.project),
        collection: some(&within.collection),
    };
    let pools: HashMap<String, Arc<OpenPool>> = app
        .pools()
        .into_iter()
        .map(|p| (p.row.uid.clone(), p))
        .collect();
    let rows = VolumeRow::list(&mut app.store.read(), &filter)
        .await
        .map_err(failed)?;
    let mut out = Vec::with_capacity(rows.len());
    for row in rows {
        // Rows of other nodes' pools, and of those being deleted, have no pool here.
        if let Some(pool) = pools.get(&row.pool) {
            let name = row.resource(&pool.row.name);
            out.push((row, pool.clone(), name));
        }
    }
    Ok(out)
}

/// A page of volumes by resource name, and the next page's token.
pub async fn list_volumes(
    app: &App,
    within: &Within,
    page_size: i32,
    token: &str,
) -> Result<(Vec<VolumeView>, String), Error> {
    let (rows, next) = page::cut(rows(app, within).await?, page_size, token, |r| r.2.as_str())?;
    let mut holds = Hold::all(&mut app.store.read(), &berth_store::now())
        .await
        .map_err(failed)?;
    let views = rows.into_iter().map(|(row, pool, _)| VolumeView {
        holds: holds.remove(&row.uid).unwrap_or_default(),
        row,
        pool,
    });
    Ok((views.collect(), next))
}

/// Snapshots of a volume, oldest first. `-` for a part of its name means all of them.
pub async fn list_snapshots(app: &App, name: &names::Volume) -> Result<Vec<SnapshotView>, Error> {
    let parts = [&name.project, &name.pool, &name.collection, &name.volume];
    if !parts.iter().any(|part| *part == "-") {
        let pool = app.pool(&name.pool)?;
        let volume = app.volume(&pool, &key(name)).await?;
        let rows = SnapshotRow::of(&mut app.store.read(), &volume.uid)
            .await
            .map_err(failed)?;
        return Ok(views(rows, &volume, &pool));
    }
    let within = Within {
        project: name.project.clone(),
        pool: name.pool.clone(),
        collection: name.collection.clone(),
    };
    let mut snapshots = SnapshotRow::by_volume(&mut app.store.read())
        .await
        .map_err(failed)?;
    let mut found = Vec::new();
    for (volume, pool, _) in rows(app, &within).await? {
        if name.volume == "-" || name.volume == volume.key.name {
            let rows = snapshots.remove(&volume.uid).unwrap_or_default();
            found.extend(views(rows, &volume, &pool));
        }
    }
    Ok(found)
}

fn views(rows: Vec<SnapshotRow>, volume: &VolumeRow, pool: &Arc<OpenPool>) -> Vec<SnapshotView> {
    rows.into_iter()
        .map(|row| SnapshotView {
            row,
            volume: volume.clone(),
            pool: pool.clone(),
        })
        .collect()
}

/// What a volume uses.
pub struct Usage {
    /// Resource name.
    pub name: String,
    /// Bytes.
    pub used: u64,
    /// Limit in bytes; 0 = none.
    pub total: u64,
}

/// Usage of the volumes named, or of all within: one question to each pool's accounting.
pub async fn batch_usage(
    app: &App,
    wanted: &[names::Volume],
    within: &Within,
) -> Result<Vec<Usage>, Error> {
    let mut by_pool: HashMap<String, (Arc<OpenPool>, Vec<VolumeRow>)> = HashMap::new();
    let mut add = |row: VolumeRow, pool: Arc<OpenPool>| {
        let slot = by_pool
            .entry(pool.row.uid.clone())
            .or_insert_with(|| (pool, Vec::new()));
        slot.1.push(row);
    };
    if wanted.len() > FEW || wanted.is_empty() {
        let names: std::collections::HashSet<String> =
            wanted.iter().map(ToString::to_string).collect();
        for (row, pool, name) in rows(app, within).await? {
            if names.is_empty() || names.contains(&name) {
                add(row, pool);
            }
        }
    } else {
        for name in wanted {
            // A pool or volume that is gone has no usage; the others are still answered.
            let Ok(pool) = app.pool(&name.pool) else {
                continue;
            };
            let found = VolumeRow::find(&mut app.store.read(), &pool.row.uid, &key(name)).await;
            if let Some(row) = found.map_err(failed)? {
                add(row, pool);
            }
        }
    }
    let mut out = Vec::new();
    for (pool, rows) in by_pool.into_values() {
        let Ok(driver) = pool.driver() else { continue };
        let ids: Vec<u32> = rows.iter().map(|r| r.quota_id).collect();
        let used = blocking(move || driver.usage(&ids)).await?;
        out.extend(rows.into_iter().filter_map(|row| {
            Some(Usage {
                used: *used.get(&row.quota_id)?,
                total: limit(&row.config).unwrap_or(0),
                name: row.resource(&pool.row.name),
            })
        }));
    }
    out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(out)
}

/// Up to so many volumes are looked up one by one; more are filtered out of all.
const FEW: usize = 16;
