use std::collections::BTreeMap;

use crate::{Fetch, Store, StoreError, Tx, args};

/// Events older than this many are dropped.
const KEPT: i64 = 10_000;

/// Something that happened, told in the transaction that makes it so.
#[derive(Debug, Clone, Default)]
pub struct Event {
    /// LXD's lifecycle action where it has one, e.g. `image-created`.
    pub action: String,
    /// Resource name.
    pub resource: String,
    /// Project's name, empty for what belongs to none.
    pub project: String,
    /// The instance's run, 0 where that means nothing.
    pub generation: i64,
    /// More about it.
    pub attributes: BTreeMap<String, String>,
    /// W3C traceparent of what caused it, or empty.
    pub traceparent: String,
}

/// An event with its place in the order.
#[derive(Debug, Clone)]
pub struct EventRecord {
    /// Grows by one with each event of the epoch.
    pub sequence: i64,
    /// RFC 3339.
    pub time: String,
    /// What happened.
    pub event: Event,
}

impl Tx {
    /// Adds an event; seen by watchers once this transaction is committed.
    pub async fn emit(&mut self, event: Event) -> Result<i64, StoreError> {
        // The counter's row lock keeps the order of sequences that of commits.
        let sequence = self
            .fetch_one(
                "UPDATE berth_counters SET value = value + 1 WHERE name = 'events' RETURNING value",
                args![],
            )
            .await?
            .i64("value")?;
        let attributes = serde_json::to_string(&event.attributes).unwrap_or_default();
        self.execute(
            "INSERT INTO berth_events
                (sequence, time, action, resource, project, generation, attributes, traceparent)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            args![
                sequence,
                crate::now(),
                event.action,
                event.resource,
                event.project,
                event.generation,
                attributes,
                event.traceparent
            ],
        )
        .await?;
        if sequence % 1000 == 0 {
            self.execute(
                "DELETE FROM berth_events WHERE sequence <= $1",
                args![sequence - KEPT],
            )
            .await?;
        }
        self.last_event = Some(sequence);
        Ok(sequence)
    }
}

impl Store {
    /// Up to `limit` events after a sequence, oldest first.
    pub async fn events_after(
        &self,
        sequence: i64,
        limit: i64,
    ) -> Result<Vec<EventRecord>, StoreError> {
        self.read()
            .fetch_all(
                "SELECT sequence, time, action, resource, project, generation, attributes,
                        traceparent
                 FROM berth_events WHERE sequence > $1 ORDER BY sequence LIMIT $2",
                args![sequence, limit],
            )
            .await?
            .iter()
            .map(|row| {
                Ok(EventRecord {
                    sequence: row.i64("sequence")?,
                    time: row.text("time")?,
                    event: Event {
                        action: row.text("action")?,
                        resource: row.text("resource")?,
                        project: row.text("project")?,
                        generation: row.i64("generation")?,
                        attributes: serde_json::from_str(&row.text("attributes")?)
                            .unwrap_or_default(),
                        traceparent: row.text("traceparent")?,
                    },
                })
            })
            .collect()
    }
}
