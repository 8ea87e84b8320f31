//! The service's tables. Rows carry their node, so that several hosts may share one database.

mod pools;
mod snapshots;
mod volumes;

use berth_rpc::Error;
use berth_store::{Migration, StoreError, Tx, args};

pub use pools::{PoolRow, PoolState};
pub use snapshots::SnapshotRow;
pub use volumes::{Hold, VolumeFilter, VolumeKey, VolumeRow};

use crate::driver::Area;
use crate::model::config::Config;

/// The schema.
pub const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "create_pools_and_volumes",
    sql: "
-- A pool. `state`: creating and deleting are repaired at start.
CREATE TABLE pools (
    uid TEXT PRIMARY KEY, node TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL,
    driver TEXT NOT NULL, config TEXT NOT NULL, state TEXT NOT NULL,
    source TEXT NOT NULL, source_kind TEXT NOT NULL, size_bytes BIGINT NOT NULL,
    fs_uuid TEXT NOT NULL, created_at TEXT NOT NULL,
    UNIQUE (node, name));
-- A volume. Its contents are at volumes/<uid>.<generation> of its pool.
CREATE TABLE volumes (
    uid TEXT PRIMARY KEY, pool TEXT NOT NULL, project TEXT NOT NULL, collection TEXT NOT NULL,
    name TEXT NOT NULL, description TEXT NOT NULL, content_type TEXT NOT NULL,
    config TEXT NOT NULL, generation BIGINT NOT NULL, quota_id BIGINT NOT NULL,
    created_at TEXT NOT NULL,
    UNIQUE (pool, project, collection, name));
-- A snapshot. Its contents are at snapshots/<uid>.0 of its volume's pool.
CREATE TABLE snapshots (
    uid TEXT PRIMARY KEY, volume TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL,
    config TEXT NOT NULL, created_at TEXT NOT NULL, expires_at TEXT NOT NULL,
    UNIQUE (volume, name));
-- Who uses a pool or volume (`resource` is its uid).
CREATE TABLE holds (
    resource TEXT NOT NULL, holder TEXT NOT NULL, authority TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    PRIMARY KEY (resource, holder));
-- What was deleted and may still be on disk: after a power cut it may even be there again.
CREATE TABLE tombstones (
    uid TEXT PRIMARY KEY, pool TEXT NOT NULL, area TEXT NOT NULL);
",
}];

/// Gives a database error its gRPC code.
pub fn failed(error: StoreError) -> Error {
    match error {
        StoreError::Full(_) => Error::exhausted("DATABASE_FULL", "no space left for the database"),
        other => Error::internal(other),
    }
}

/// Reads a configuration column.
fn config(text: &str) -> Result<Config, StoreError> {
    serde_json::from_str(text).map_err(|_| StoreError::Column {
        column: "config".to_owned(),
        expected: "a JSON object of strings",
    })
}

/// Writes a configuration column.
fn config_text(config: &Config) -> String {
    // A map of strings always has a JSON form.
    serde_json::to_string(config).unwrap_or_else(|_| "{}".to_owned())
}

/// Remembers that contents must not be there any more.
pub async fn bury(tx: &mut Tx, pool: &str, area: Area, uid: &str) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO tombstones (uid, pool, area) VALUES ($1, $2, $3)
         ON CONFLICT (uid) DO NOTHING",
        args![uid, pool, area.dir()],
    )
    .await?;
    Ok(())
}

/// Something that was deleted and may be on disk yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// Identity of what was deleted.
    pub uid: String,
    /// Its pool.
    pub pool: String,
}

impl Tombstone {
    /// Those of one pool.
    pub async fn of(db: &mut impl berth_store::Fetch, pool: &str) -> Result<Vec<Self>, StoreError> {
        db.fetch_all(
            "SELECT uid, pool FROM tombstones WHERE pool = $1",
            args![pool],
        )
        .await?
        .iter()
        .map(|row| {
            Ok(Self {
                uid: row.text("uid")?,
                pool: row.text("pool")?,
            })
        })
        .collect()
    }

    /// Forgets them: what they stood for is gone from the disk for good.
    pub async fn forget(tx: &mut Tx, all: &[Self]) -> Result<(), StoreError> {
        for one in all {
            tx.execute("DELETE FROM tombstones WHERE uid = $1", args![&one.uid])
                .await?;
        }
        Ok(())
    }
}
