//! `berth-storage purge`: removes all pools of this host, data and all.

use std::path::Path;
use std::sync::Arc;

use berth_rpc::Error;
use berth_store::Store;

use super::{App, delete_pool};
use crate::config::Config;
use crate::driver;
use crate::host::loopdev::LoopDevice;
use crate::store::{MIGRATIONS, PoolRow, failed};

/// Removes every pool's contents, loop files and loop devices. Works on after a failure, and
/// gives the first one in the end.
pub async fn purge(config: &Config) -> Result<(), Error> {
    let mut first = Ok(());
    let mut note = |result: Result<(), Error>| {
        if let Err(error) = result {
            tracing::error!(%error, "purge");
            if first.is_ok() {
                first = Err(error);
            }
        }
    };
    if config.server.state_dir.exists() {
        note(purge_pools(config).await);
        note(purge_disks(&config.server.state_dir.join("disks")));
    }
    first
}

async fn purge_pools(config: &Config) -> Result<(), Error> {
    let store = Store::open(&config.server.database(), MIGRATIONS)
        .await
        .map_err(failed)?;
    let app = App::closed(store, config);
    let mut first = Ok(());
    for row in PoolRow::all(&mut app.store.read(), &app.node)
        .await
        .map_err(failed)?
    {
        if let Err(error) = purge_pool(&app, &row).await {
            tracing::error!(pool = row.name, %error, "the pool can't be purged");
            first = first.and(Err(error));
        }
    }
    app.store.close().await;
    first
}

async fn purge_pool(app: &Arc<App>, row: &PoolRow) -> Result<(), Error> {
    let setup = row.setup();
    // A pool that can't be opened any more loses its loop file all the same.
    let opened = super::blocking(move || driver::open(&setup)).await.ok();
    delete_pool::unmake(app, row, opened).await?;
    let mut tx = app.begin().await?;
    PoolRow::delete(&mut tx, &row.uid).await.map_err(failed)?;
    tx.commit().await.map_err(failed)
}

/// Loop files that no row tells of: the database may be gone.
fn purge_disks(disks: &Path) -> Result<(), Error> {
    let Ok(entries) = std::fs::read_dir(disks) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry.map_err(Error::internal)?.path();
        if path.extension().is_some_and(|e| e == "img") {
            if let Some(device) = LoopDevice::find(&path)? {
                device.detach()?;
            }
            std::fs::remove_file(&path).map_err(Error::internal)?;
        }
    }
    Ok(())
}
