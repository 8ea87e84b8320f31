use std::collections::HashMap;

use berth_store::{Fetch, Row, StoreError, Tx, args};

use super::{config, config_text};
use crate::driver::Place;
use crate::model::config::Config;

/// A snapshot as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRow {
    /// Identity.
    pub uid: String,
    /// Volume's uid.
    pub volume: String,
    /// Name.
    pub name: String,
    /// User's text.
    pub description: String,
    /// The volume's configuration when it was taken.
    pub config: Config,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; empty = never.
    pub expires_at: String,
}

impl SnapshotRow {
    /// Where its contents are.
    pub fn place(&self) -> Place {
        Place::snapshot(&self.uid)
    }

    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            uid: row.text("uid")?,
            volume: row.text("volume")?,
            name: row.text("name")?,
            description: row.text("description")?,
            config: config(&row.text("config")?)?,
            created_at: row.text("created_at")?,
            expires_at: row.text("expires_at")?,
        })
    }

    /// Snapshots of a volume, oldest first.
    pub async fn of(db: &mut impl Fetch, volume: &str) -> Result<Vec<Self>, StoreError> {
        db.fetch_all(
            "SELECT * FROM snapshots WHERE volume = $1 ORDER BY created_at, uid",
            args![volume],
        )
        .await?
        .iter()
        .map(Self::read)
        .collect()
    }

    /// Snapshots of all volumes by volume, oldest first.
    pub async fn by_volume(db: &mut impl Fetch) -> Result<HashMap<String, Vec<Self>>, StoreError> {
        let rows = db
            .fetch_all("SELECT * FROM snapshots ORDER BY created_at, uid", args![])
            .await?;
        let mut all: HashMap<String, Vec<Self>> = HashMap::new();
        for row in &rows {
            let snapshot = Self::read(row)?;
            all.entry(snapshot.volume.clone())
                .or_default()
                .push(snapshot);
        }
        Ok(all)
    }

    /// One by name.
    pub async fn find(
        db: &mut impl Fetch,
        volume: &str,
        name: &str,
    ) -> Result<Option<Self>, StoreError> {
        db.fetch_optional(
            "SELECT * FROM snapshots WHERE volume = $1 AND name = $2",
            args![volume, name],
        )
        .await?
        .as_ref()
        .map(Self::read)
        .transpose()
    }

    /// Uids of all snapshots of a pool's volumes.
    pub async fn uids_in_pool(db: &mut impl Fetch, pool: &str) -> Result<Vec<String>, StoreError> {
        db.fetch_all(
            "SELECT s.uid FROM snapshots s JOIN volumes v ON v.uid = s.volume WHERE v.pool = $1",
            args![pool],
        )
        .await?
        .iter()
        .map(|row| row.text("uid"))
        .collect()
    }

    /// Adds the row; [`StoreError::Unique`] when the name is taken.
    pub async fn insert(&self, tx: &mut Tx) -> Result<(), StoreError> {
        tx.execute(
            "INSERT INTO snapshots (uid, volume, name, description, config, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            args![
                &self.uid,
                &self.volume,
                &self.name,
                &self.description,
                config_text(&self.config),
                &self.created_at,
                &self.expires_at
            ],
        )
        .await?;
        Ok(())
    }

    /// Renames; [`StoreError::Unique`] when the name is taken.
    pub async fn rename(tx: &mut Tx, uid: &str, name: &str) -> Result<(), StoreError> {
        let rows = tx
            .execute(
                "UPDATE snapshots SET name = $2 WHERE uid = $1",
                args![uid, name],
            )
            .await?;
        if rows == 0 {
            return Err(StoreError::NoRow);
        }
        Ok(())
    }

    /// Writes what may change beside the name.
    pub async fn describe(&self, tx: &mut Tx) -> Result<(), StoreError> {
        let rows = tx
            .execute(
                "UPDATE snapshots SET description = $2, expires_at = $3 WHERE uid = $1",
                args![&self.uid, &self.description, &self.expires_at],
            )
            .await?;
        if rows == 0 {
            return Err(StoreError::NoRow);
        }
        Ok(())
    }

    /// Removes the row.
    pub async fn delete(tx: &mut Tx, uid: &str) -> Result<(), StoreError> {
        tx.execute("DELETE FROM snapshots WHERE uid = $1", args![uid])
            .await?;
        Ok(())
    }
}
