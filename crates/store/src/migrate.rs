use sha2::{Digest, Sha256};

use crate::{Fetch, Store, StoreError, Tx, args};

/// One step of the schema. Applied once, in order of `version`, each in a transaction.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// 1, 2, 3, ...
    pub version: i64,
    /// `create_images`, ...
    pub name: &'static str,
    /// Statements for both databases, separated by `;`. Only ever adds (the release before must
    /// still be able to read).
    pub sql: &'static str,
}

const OWN: &str = "
CREATE TABLE IF NOT EXISTS berth_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS berth_migrations (
    version BIGINT PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, applied_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS berth_counters (name TEXT PRIMARY KEY, value BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS berth_events (
    sequence BIGINT PRIMARY KEY, time TEXT NOT NULL, action TEXT NOT NULL, resource TEXT NOT NULL,
    project TEXT NOT NULL, generation BIGINT NOT NULL, attributes TEXT NOT NULL,
    traceparent TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS berth_requests (
    request_id TEXT PRIMARY KEY, response BYTEA NOT NULL, finished_at TEXT NOT NULL);
INSERT INTO berth_counters (name, value) VALUES ('events', 0) ON CONFLICT (name) DO NOTHING;
";

/// Brings the schema up to date; gives the epoch and the newest event's sequence.
pub(crate) async fn run(
    store: &Store,
    migrations: &[Migration],
) -> Result<(String, i64), StoreError> {
    let mut tx = store.begin().await?;
    if store.is_postgres() {
        // Two replicas of a service may start at the same moment.
        tx.fetch_all(
            "SELECT 1 AS one FROM (SELECT pg_advisory_xact_lock(7310)) AS locked",
            args![],
        )
        .await?;
    }
    tx.execute_batch(OWN).await?;
    for migration in migrations {
        apply(&mut tx, migration).await?;
    }
    let known = migrations.last().map_or(0, |m| m.version);
    for row in tx
        .fetch_all(
            "SELECT version, name FROM berth_migrations WHERE version > $1",
            args![known],
        )
        .await?
    {
        tracing::warn!(
            version = row.i64("version")?,
            name = row.text("name")?,
            "the database was used by a newer release; its schema only grew, so going on"
        );
    }
    tx.execute(
        "INSERT INTO berth_meta (key, value) VALUES ('epoch', $1) ON CONFLICT (key) DO NOTHING",
        args![uuid::Uuid::new_v4().to_string()],
    )
    .await?;
    let epoch = tx
        .fetch_one("SELECT value FROM berth_meta WHERE key = 'epoch'", args![])
        .await?
        .text("value")?;
    let last = tx
        .fetch_one(
            "SELECT value FROM berth_counters WHERE name = 'events'",
            args![],
        )
        .await?
        .i64("value")?;
    tx.commit().await?;
    Ok((epoch, last))
}

async fn apply(tx: &mut Tx, migration: &Migration) -> Result<(), StoreError> {
    let digest = hex::encode(Sha256::digest(migration.sql.as_bytes()));
    let applied = tx
        .fetch_optional(
            "SELECT digest FROM berth_migrations WHERE version = $1",
            args![migration.version],
        )
        .await?;
    if let Some(row) = applied {
        if row.text("digest")? != digest {
            return Err(StoreError::MigrationChanged {
                version: migration.version,
                name: migration.name.to_owned(),
            });
        }
        return Ok(());
    }
    tx.execute_batch(migration.sql).await?;
    tx.execute(
        "INSERT INTO berth_migrations (version, name, digest, applied_at) VALUES ($1, $2, $3, $4)",
        args![migration.version, migration.name, digest, crate::now()],
    )
    .await?;
    Ok(())
}
