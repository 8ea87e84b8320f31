use std::path::PathBuf;

use berth_store::{Fetch, Row, StoreError, Tx, args};

use super::{config, config_text};
use crate::driver::{Setup, SourceKind};
use crate::model::config::{self as keys, Config};

/// As LXD: a guest may remove the subvolumes that it made.
const DEFAULT_MOUNT_OPTIONS: &str = "user_subvol_rm_allowed";

/// How far a pool has come.
///
/// ```text
///  creating ──made──▶ created ──delete──▶ deleting ──unmade──▶ (no row)
///      └──────────── failed, crashed ───────▲
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolState {
    /// Its storage is being made; after a crash what was made is removed.
    Creating,
    /// In use.
    Created,
    /// Being removed; after a crash the removal goes on.
    Deleting,
}

impl PoolState {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Deleting => "deleting",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Creating, Self::Created, Self::Deleting]
            .into_iter()
            .find(|s| s.as_str() == text)
    }
}

/// A pool as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRow {
    /// Identity.
    pub uid: String,
    /// Host that has it.
    pub node: String,
    /// Name.
    pub name: String,
    /// User's text.
    pub description: String,
    /// Backend.
    pub driver: String,
    /// Configuration as users see it.
    pub config: Config,
    /// How far it has come.
    pub state: PoolState,
    /// Resolved source.
    pub source: PathBuf,
    /// What the source is.
    pub source_kind: SourceKind,
    /// Size of the loop file; 0 unless there is one.
    pub size_bytes: u64,
    /// Filesystem's UUID; empty where it isn't checked.
    pub fs_uuid: String,
    /// RFC 3339.
    pub created_at: String,
}

impl PoolRow {
    /// What the driver needs to know.
    pub fn setup(&self) -> Setup {
        let options = self.config.get("btrfs.mount_options");
        let options = options.map_or(DEFAULT_MOUNT_OPTIONS, String::as_str);
        Setup {
            uid: self.uid.clone(),
            name: self.name.clone(),
            driver: self.driver.clone(),
            source: self.source.clone(),
            size: self.size_bytes,
            kind: self.source_kind,
            fs_uuid: self.fs_uuid.clone(),
            // They were checked when they were set.
            mount_options: keys::mount_options(options).unwrap_or_default(),
        }
    }

    /// Resource name.
    pub fn resource(&self) -> String {
        berth_rpc::names::Pool::new(&self.name).to_string()
    }

    fn read(row: &Row) -> Result<Self, StoreError> {
        let wrong = |column: &str, expected: &'static str| StoreError::Column {
            column: column.to_owned(),
            expected,
        };
        Ok(Self {
            uid: row.text("uid")?,
            node: row.text("node")?,
            name: row.text("name")?,
            description: row.text("description")?,
            driver: row.text("driver")?,
            config: config(&row.text("config")?)?,
            state: PoolState::parse(&row.text("state")?)
                .ok_or_else(|| wrong("state", "a pool's state"))?,
            source: PathBuf::from(row.text("source")?),
            source_kind: SourceKind::parse(&row.text("source_kind")?)
                .ok_or_else(|| wrong("source_kind", "a kind of source"))?,
            size_bytes: u64::try_from(row.i64("size_bytes")?)
                .map_err(|_| wrong("size_bytes", "a size"))?,
            fs_uuid: row.text("fs_uuid")?,
            created_at: row.text("created_at")?,
        })
    }

    /// All pools of a node, by name.
    pub async fn all(db: &mut impl Fetch, node: &str) -> Result<Vec<Self>, StoreError> {
        db.fetch_all(
            "SELECT * FROM pools WHERE node = $1 ORDER BY name",
            args![node],
        )
        .await?
        .iter()
        .map(Self::read)
        .collect()
    }

    /// Adds the row; [`StoreError::Unique`] when the name is taken.
    pub async fn insert(&self, tx: &mut Tx) -> Result<(), StoreError> {
        tx.execute(
            "INSERT INTO pools (uid, node, name, description, driver, config, state, source,
                source_kind, size_bytes, fs_uuid, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            args![
                &self.uid,
                &self.node,
                &self.name,
                &self.description,
                &self.driver,
                config_text(&self.config),
                self.state.as_str(),
                self.source.display().to_string(),
                self.source_kind.as_str(),
                i64::try_from(self.size_bytes).unwrap_or(i64::MAX),
                &self.fs_uuid,
                &self.created_at
            ],
        )
        .await?;
        Ok(())
    }

    /// Writes what may change.
    pub async fn update(&self, tx: &mut Tx) -> Result<(), StoreError> {
        let rows = tx
            .execute(
                "UPDATE pools SET description = $2, config = $3, state = $4, size_bytes = $5,
                    fs_uuid = $6 WHERE uid = $1",
                args![
                    &self.uid,
                    &self.description,
                    config_text(&self.config),
                    self.state.as_str(),
                    i64::try_from(self.size_bytes).unwrap_or(i64::MAX),
                    &self.fs_uuid
                ],
            )
            .await?;
        if rows == 0 {
            return Err(StoreError::NoRow);
        }
        Ok(())
    }

    /// Removes the pool's row and all that hangs on it.
    pub async fn delete(tx: &mut Tx, uid: &str) -> Result<(), StoreError> {
        for sql in [
            "DELETE FROM holds WHERE resource IN (SELECT uid FROM volumes WHERE pool = $1)",
            "DELETE FROM snapshots WHERE volume IN (SELECT uid FROM volumes WHERE pool = $1)",
            "DELETE FROM volumes WHERE pool = $1",
            "DELETE FROM tombstones WHERE pool = $1",
            "DELETE FROM holds WHERE resource = $1",
            "DELETE FROM pools WHERE uid = $1",
        ] {
            tx.execute(sql, args![uid]).await?;
        }
        Ok(())
    }
}
