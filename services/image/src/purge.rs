//! `berth-image purge`: takes back everything the service made.

use crate::config::Config;
use crate::error::Error;
use crate::store::MIGRATIONS;
use berth_store::Store;
use std::io::ErrorKind;

/// Removes all images: rows, blobs, and what was set aside. The database itself stays, empty.
///
/// # Errors
/// Refused while the service runs, since its database is locked then.
pub async fn purge(config: &Config) -> Result<(), Error> {
    let state_dir = &config.server.state_dir;
    // Nothing was ever made: don't make it now.
    if config.server.database.is_none() && !state_dir.join("state.db").exists() {
        return Ok(());
    }
    let store = Store::open(&config.server.database(), MIGRATIONS).await?;
    let mut tx = store.begin().await?;
    // In the order of what refers to what.
    for table in [
        "image_holds",
        "image_aliases",
        "image_blobs",
        "images",
        "blob_removals",
    ] {
        tx.execute(&format!("DELETE FROM {table}"), Vec::new())
            .await?;
    }
    tx.commit().await?;
    for directory in ["blobs", "incoming", "set-aside"] {
        match std::fs::remove_dir_all(state_dir.join(directory)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io("removing the blobs")(error));
            }
            _ => {}
        }
    }
    store.close().await;
    Ok(())
}
