//! The operations table.

use berth_rpc::Error;
use berth_store::{Fetch, Migration, Row, Store, StoreError, args};
use serde_json::{Map, Value};

use crate::{Class, Record, State};

/// The service that runs sagas puts this among its migrations.
pub const MIGRATION: Migration = Migration {
    version: 1,
    name: "create_operations",
    sql: "
CREATE TABLE operations (
    id TEXT PRIMARY KEY,
    saga TEXT NOT NULL,
    saga_version BIGINT NOT NULL,
    node TEXT NOT NULL,
    lease_until TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    verb TEXT NOT NULL,
    description TEXT NOT NULL,
    project TEXT NOT NULL,
    state TEXT NOT NULL,
    params TEXT NOT NULL,
    outputs TEXT NOT NULL,
    done_steps TEXT NOT NULL,
    resources TEXT NOT NULL,
    metadata TEXT NOT NULL,
    may_cancel BOOLEAN NOT NULL,
    cancelled BOOLEAN NOT NULL,
    failure TEXT,
    traceparent TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL);
CREATE INDEX operations_by_state ON operations (state);
",
};

/// An operation's row.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) record: Record,
    pub(crate) saga: String,
    pub(crate) saga_version: i64,
    pub(crate) attempt: i64,
    pub(crate) params: Value,
    pub(crate) outputs: Map<String, Value>,
    /// Steps whose effect may be there, in the order they were begun.
    pub(crate) done_steps: Vec<String>,
    pub(crate) cancelled: bool,
}

fn internal(error: StoreError) -> Error {
    match error {
        StoreError::Full(source) => {
            let mut e = Error::exhausted("DISK_FULL", "no space left for the database");
            e.source = Some(Box::new(source));
            e
        }
        other => Error::internal(other),
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(Error::internal)
}

/// Leases are long: on one node they only show who works on a row.
fn lease() -> String {
    (chrono::Utc::now() + chrono::Duration::minutes(5))
        .to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

pub(crate) async fn insert(store: &Store, node: &str, stored: &Stored) -> Result<(), Error> {
    let r = &stored.record;
    let arguments = args![
        &r.id,
        &stored.saga,
        stored.saga_version,
        node,
        lease(),
        stored.attempt,
        &r.verb,
        &r.description,
        &r.project,
        r.state.as_str(),
        json(&stored.params)?,
        json(&stored.outputs)?,
        json(&stored.done_steps)?,
        json(&r.resources)?,
        json(&r.metadata)?,
        r.may_cancel,
        stored.cancelled,
        &r.traceparent,
        &r.created_at,
        &r.updated_at,
    ];
    let inserted = store.execute(
        "INSERT INTO operations (id, saga, saga_version, node, lease_until, attempt, verb,
            description, project, state, params, outputs, done_steps, resources, metadata,
            may_cancel, cancelled, traceparent, created_at, updated_at)
         VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$20)",
        arguments,
    );
    inserted.await.map(drop).map_err(|e| match e {
        StoreError::Unique(_) => Error::already_exists("Operation", &r.id),
        other => internal(other),
    })
}

pub(crate) async fn update(store: &Store, stored: &Stored) -> Result<(), Error> {
    let r = &stored.record;
    let failure = r.failure.as_ref().map(json).transpose()?;
    let arguments = args![
        &r.id,
        r.state.as_str(),
        json(&stored.outputs)?,
        json(&stored.done_steps)?,
        json(&r.resources)?,
        json(&r.metadata)?,
        r.may_cancel,
        stored.cancelled,
        failure,
        &r.updated_at,
        stored.attempt,
        lease(),
    ];
    let updated = store.execute(
        "UPDATE operations SET state = $2, outputs = $3, done_steps = $4, resources = $5,
            metadata = $6, may_cancel = $7, cancelled = $8, failure = $9, updated_at = $10,
            attempt = $11, lease_until = $12
         WHERE id = $1",
        arguments,
    );
    updated.await.map(drop).map_err(internal)
}

pub(crate) async fn unfinished(store: &Store, node: &str) -> Result<Vec<Stored>, Error> {
    store
        .read()
        .fetch_all(
            "SELECT * FROM operations
             WHERE state IN ('pending', 'running', 'unwinding') AND node = $1
             ORDER BY created_at",
            args![node],
        )
        .await
        .map_err(internal)?
        .iter()
        .map(read)
        .collect()
}

pub(crate) async fn get(store: &Store, id: &str) -> Result<Option<Stored>, Error> {
    store
        .read()
        .fetch_optional("SELECT * FROM operations WHERE id = $1", args![id])
        .await
        .map_err(internal)?
        .as_ref()
        .map(read)
        .transpose()
}

pub(crate) async fn recent(store: &Store, limit: i64) -> Result<Vec<Stored>, Error> {
    store
        .read()
        .fetch_all(
            "SELECT * FROM operations ORDER BY created_at DESC LIMIT $1",
            args![limit],
        )
        .await
        .map_err(internal)?
        .iter()
        .map(read)
        .collect()
}

/// Forgets finished operations older than `before`.
pub(crate) async fn forget(store: &Store, before: &str) -> Result<u64, Error> {
    let forgotten = store.execute(
        "DELETE FROM operations
         WHERE state IN ('succeeded', 'failed', 'cancelled') AND updated_at < $1",
        args![before],
    );
    forgotten.await.map_err(internal)
}

pub(crate) async fn delete(store: &Store, id: &str) -> Result<(), Error> {
    let deleted = store.execute("DELETE FROM operations WHERE id = $1", args![id]);
    deleted.await.map(drop).map_err(internal)
}

fn read(row: &Row) -> Result<Stored, Error> {
    let text = |column: &str| row.text(column).map_err(internal);
    let state = text("state")?;
    Ok(Stored {
        record: Record {
            id: text("id")?,
            class: Class::Task,
            verb: text("verb")?,
            description: text("description")?,
            project: text("project")?,
            state: State::from_str(&state)
                .ok_or_else(|| Error::internal(format!("operation state {state:?}")))?,
            step: String::new(),
            resources: parse(&text("resources")?)?,
            metadata: parse(&text("metadata")?)?,
            may_cancel: row.bool("may_cancel").map_err(internal)?,
            created_at: text("created_at")?,
            updated_at: text("updated_at")?,
            failure: row
                .opt_text("failure")
                .map_err(internal)?
                .map(|t| parse(&t))
                .transpose()?,
            traceparent: text("traceparent")?,
        },
        saga: text("saga")?,
        saga_version: row.i64("saga_version").map_err(internal)?,
        attempt: row.i64("attempt").map_err(internal)?,
        params: parse(&text("params")?)?,
        outputs: parse(&text("outputs")?)?,
        done_steps: parse(&text("done_steps")?)?,
        cancelled: row.bool("cancelled").map_err(internal)?,
    })
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(Error::internal)
}
