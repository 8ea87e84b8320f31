use std::collections::HashMap;

use berth_rpc::names;
use berth_store::{Arg, Fetch, Row, StoreError, Tx, args};

use super::{config, config_text};
use crate::driver::Place;
use crate::model::config::Config;

/// What names a volume within a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VolumeKey {
    /// Project.
    pub project: String,
    /// `containers`, `virtualMachines`, `images` or `custom`.
    pub collection: String,
    /// Name.
    pub name: String,
}

/// A volume as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRow {
    /// Identity.
    pub uid: String,
    /// Pool's uid.
    pub pool: String,
    /// Name.
    pub key: VolumeKey,
    /// User's text.
    pub description: String,
    /// `filesystem`.
    pub content_type: String,
    /// Configuration.
    pub config: Config,
    /// Grows when the contents are replaced.
    pub generation: i64,
    /// Number of its quota record.
    pub quota_id: u32,
    /// RFC 3339.
    pub created_at: String,
    /// Number of snapshots, where the row was read.
    pub snapshot_count: i64,
}

/// Who uses something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// User's resource name.
    pub holder: String,
    /// Who may release it.
    pub authority: String,
    /// RFC 3339; empty = until released.
    pub expires_at: String,
}

/// Which volumes to list; `None` = all.
#[derive(Debug, Clone, Default)]
pub struct VolumeFilter {
    /// Pool's uid.
    pub pool: Option<String>,
    /// Project.
    pub project: Option<String>,
    /// Collection.
    pub collection: Option<String>,
}

const COLUMNS: &str = "v.uid, v.pool, v.project, v.collection, v.name, v.description,
    v.content_type, v.config, v.generation, v.quota_id, v.created_at,
    (SELECT COUNT(*) FROM snapshots s WHERE s.volume = v.uid) AS snapshot_count";

impl VolumeRow {
    /// Where its contents are.
    pub fn place(&self) -> Place {
        Place::volume(&self.uid, self.generation)
    }

    /// Resource name in the pool called `pool`.
    pub fn resource(&self, pool: &str) -> String {
        let key = &self.key;
        names::Volume::new(&key.project, pool, &key.collection, &key.name).to_string()
    }

    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            uid: row.text("uid")?,
            pool: row.text("pool")?,
            key: VolumeKey {
                project: row.text("project")?,
                collection: row.text("collection")?,
                name: row.text("name")?,
            },
            description: row.text("description")?,
            content_type: row.text("content_type")?,
            config: config(&row.text("config")?)?,
            generation: row.i64("generation")?,
            quota_id: u32::try_from(row.i64("quota_id")?).map_err(|_| StoreError::Column {
                column: "quota_id".to_owned(),
                expected: "a quota number",
            })?,
            created_at: row.text("created_at")?,
            snapshot_count: row.i64("snapshot_count")?,
        })
    }

    /// One volume by name.
    pub async fn find(
        db: &mut impl Fetch,
        pool: &str,
        key: &VolumeKey,
    ) -> Result<Option<Self>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM volumes v
             WHERE v.pool = $1 AND v.project = $2 AND v.collection = $3 AND v.name = $4"
        );
        db.fetch_optional(&sql, args![pool, &key.project, &key.collection, &key.name])
            .await?
            .as_ref()
            .map(Self::read)
            .transpose()
    }

    /// Volumes that fit a filter.
    pub async fn list(db: &mut impl Fetch, filter: &VolumeFilter) -> Result<Vec<Self>, StoreError> {
        let mut sql = format!("SELECT {COLUMNS} FROM volumes v WHERE 1 = 1");
        let mut values: Vec<Arg> = Vec::new();
        for (column, value) in [
            ("pool", &filter.pool),
            ("project", &filter.project),
            ("collection", &filter.collection),
        ] {
            if let Some(value) = value {
                values.push(Arg::from(value));
                sql.push_str(&format!(" AND v.{column} = ${}", values.len()));
            }
        }
        db.fetch_all(&sql, values)
            .await?
            .iter()
            .map(Self::read)
            .collect()
    }

    /// The largest quota number in use.
    pub async fn last_quota_id(db: &mut impl Fetch) -> Result<i64, StoreError> {
        let row = db
            .fetch_one(
                "SELECT COALESCE(MAX(quota_id), 0) AS last FROM volumes",
                args![],
            )
            .await?;
        row.i64("last")
    }

    /// Adds the row; [`StoreError::Unique`] when the name is taken.
    pub async fn insert(&self, tx: &mut Tx) -> Result<(), StoreError> {
        tx.execute(
            "INSERT INTO volumes (uid, pool, project, collection, name, description, content_type,
                config, generation, quota_id, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            args![
                &self.uid,
                &self.pool,
                &self.key.project,
                &self.key.collection,
                &self.key.name,
                &self.description,
                &self.content_type,
                config_text(&self.config),
                self.generation,
                self.quota_id,
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
                "UPDATE volumes SET name = $2, description = $3, config = $4, generation = $5,
                    quota_id = $6 WHERE uid = $1",
                args![
                    &self.uid,
                    &self.key.name,
                    &self.description,
                    config_text(&self.config),
                    self.generation,
                    self.quota_id
                ],
            )
            .await?;
        if rows == 0 {
            return Err(StoreError::NoRow);
        }
        Ok(())
    }

    /// Removes the row with its snapshots and holds.
    pub async fn delete(tx: &mut Tx, uid: &str) -> Result<(), StoreError> {
        for sql in [
            "DELETE FROM snapshots WHERE volume = $1",
            "DELETE FROM holds WHERE resource = $1",
            "DELETE FROM volumes WHERE uid = $1",
        ] {
            tx.execute(sql, args![uid]).await?;
        }
        Ok(())
    }
}

impl Hold {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            holder: row.text("holder")?,
            authority: row.text("authority")?,
            expires_at: row.text("expires_at")?,
        })
    }

    /// Holds of one thing that are in force at `now` (RFC 3339, UTC, as the store writes it).
    pub async fn of(
        db: &mut impl Fetch,
        resource: &str,
        now: &str,
    ) -> Result<Vec<Self>, StoreError> {
        db.fetch_all(
            "SELECT holder, authority, expires_at FROM holds
             WHERE resource = $1 AND (expires_at = '' OR expires_at > $2) ORDER BY holder",
            args![resource, now],
        )
        .await?
        .iter()
        .map(Self::read)
        .collect()
    }

    /// Holds of everything, by uid.
    pub async fn all(
        db: &mut impl Fetch,
        now: &str,
    ) -> Result<HashMap<String, Vec<Self>>, StoreError> {
        let rows = db
            .fetch_all(
                "SELECT resource, holder, authority, expires_at FROM holds
                 WHERE expires_at = '' OR expires_at > $1 ORDER BY holder",
                args![now],
            )
            .await?;
        let mut out: HashMap<String, Vec<Self>> = HashMap::new();
        for row in &rows {
            out.entry(row.text("resource")?)
                .or_default()
                .push(Self::read(row)?);
        }
        Ok(out)
    }

    /// Takes or renews a hold.
    pub async fn take(&self, tx: &mut Tx, resource: &str) -> Result<(), StoreError> {
        tx.execute(
            "INSERT INTO holds (resource, holder, authority, expires_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (resource, holder)
             DO UPDATE SET authority = excluded.authority, expires_at = excluded.expires_at",
            args![resource, &self.holder, &self.authority, &self.expires_at],
        )
        .await?;
        Ok(())
    }

    /// Releases a hold; one that isn't there is released already.
    pub async fn release(tx: &mut Tx, resource: &str, holder: &str) -> Result<(), StoreError> {
        tx.execute(
            "DELETE FROM holds WHERE resource = $1 AND holder = $2",
            args![resource, holder],
        )
        .await?;
        Ok(())
    }
}
