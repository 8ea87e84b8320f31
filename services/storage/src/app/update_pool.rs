//! `UpdatePool`.

use std::collections::HashMap;
use std::sync::Arc;

use berth_rpc::Error;
use berth_rpc::mask::Mask;
use berth_server::failpoint;

use super::locks::{self, Want};
use super::{App, Ask, OpenPool, PoolView, blocking, event, read};
use crate::driver::SourceKind;
use crate::model::{config, size};
use crate::store::{PoolRow, failed};

/// What is to change.
pub struct PoolChange {
    /// Pool's name.
    pub name: String,
    /// New text.
    pub description: String,
    /// New configuration, whole or the masked keys of it.
    pub config: HashMap<String, String>,
    /// Which of the two.
    pub mask: Mask,
    /// Etag that the caller read; empty = any.
    pub etag: String,
}

/// Changes description and configuration; a larger `size` grows a loop pool at once.
pub async fn update_pool(
    app: &Arc<App>,
    change: PoolChange,
    ask: Ask<PoolView>,
) -> Result<PoolView, Error> {
    let _held = app
        .locks
        .take([(locks::pool(&change.name), Want::Write)])
        .await;
    let pool = app.pool(&change.name)?;
    read::check_etag(
        &change.etag,
        &read::pool_etag(&pool.row),
        &pool.row.resource(),
    )?;
    let mut row: PoolRow = pool.row.clone();
    if change.mask.has("description") {
        row.description = change.description;
    }
    if change.mask.has("config") {
        let mut new =
            change
                .mask
                .merge_map("config", &row.config, &change.config, String::is_empty);
        // What the service wrote itself stays when a client leaves it out.
        for key in config::POOL_FIXED {
            let old = row.config.get(key);
            match new.get(key) {
                None => {
                    new.extend(old.map(|v| (key.to_owned(), v.clone())));
                }
                given if given == old => {}
                Some(_) => {
                    return Err(Error::invalid(
                        format!("config.{key}"),
                        format!("{key} can't be changed once the pool is made"),
                    ));
                }
            }
        }
        config::check_pool(&row.driver, &new)?;
        row.config = new;
        resize(&pool, &mut row).await?;
    }
    failpoint::pass("storage.update_pool.done").await?;
    let updated = OpenPool {
        row: row.clone(),
        driver: pool.driver.clone(),
    };
    let view = PoolView {
        pool: Arc::new(updated),
        used_by: read::pool_users(app, &row).await?,
    };
    let mut tx = app.begin().await?;
    row.update(&mut tx).await.map_err(failed)?;
    tx.emit(event("storage-pool-updated", row.resource(), ""))
        .await
        .map_err(failed)?;
    tx.finish_request(&ask.request_id, (ask.render)(&view))
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    app.put_pool(OpenPool {
        row,
        driver: pool.driver.clone(),
    });
    Ok(view)
}

async fn resize(pool: &OpenPool, row: &mut PoolRow) -> Result<(), Error> {
    if row.source_kind != SourceKind::Loop {
        if row.config.get("size") != pool.row.config.get("size") {
            return Err(Error::invalid(
                "config.size",
                "only a pool in a loop file of this service has a size that can change",
            ));
        }
        return Ok(());
    }
    let wanted = match row.config.get("size").and_then(|s| size::parse(s)) {
        Some(bytes) => bytes / 4096 * 4096,
        None => {
            row.config
                .insert("size".to_owned(), size::format(row.size_bytes));
            return Ok(());
        }
    };
    if wanted == row.size_bytes {
        return Ok(());
    }
    if wanted < row.size_bytes {
        return Err(Error::invalid(
            "config.size",
            "a loop pool can only grow: making it smaller is not supported",
        ));
    }
    let driver = pool.driver()?;
    blocking(move || driver.grow(wanted)).await?;
    row.size_bytes = wanted;
    Ok(())
}
