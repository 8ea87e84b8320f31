//! The instance service's database. The only place that writes SQL.
//!
//! Records are JSON beside the columns that are looked up or must be unique:
//!
//! ```text
//! instances  uid* node project name id_base id_len record     (project, name) unique, (node, id_base) unique
//! snapshots  uid* instance_uid name record                    (instance_uid, name) unique; go with their instance
//! profiles   uid* project name record                         (project, name) unique
//! hosts      node* boot_id                                    the boot that guests were last started for
//! ```

use berth_store::{DatabaseConfig, Event, Fetch, Migration, Row, Store, StoreError, Tx, args};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::model::record::{Instance, Profile, Snapshot};

const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "create",
    sql: "
        CREATE TABLE instances (
            uid TEXT NOT NULL PRIMARY KEY,
            node TEXT NOT NULL,
            project TEXT NOT NULL,
            name TEXT NOT NULL,
            id_base BIGINT NOT NULL,
            id_len BIGINT NOT NULL,
            record TEXT NOT NULL,
            UNIQUE (project, name),
            UNIQUE (node, id_base)
        );
        CREATE TABLE snapshots (
            uid TEXT NOT NULL PRIMARY KEY,
            instance_uid TEXT NOT NULL REFERENCES instances (uid) ON DELETE CASCADE,
            name TEXT NOT NULL,
            record TEXT NOT NULL,
            UNIQUE (instance_uid, name)
        );
        CREATE TABLE profiles (
            uid TEXT NOT NULL PRIMARY KEY,
            project TEXT NOT NULL,
            name TEXT NOT NULL,
            record TEXT NOT NULL,
            UNIQUE (project, name)
        );
        CREATE TABLE hosts (
            node TEXT NOT NULL PRIMARY KEY,
            boot_id TEXT NOT NULL
        );
    ",
}];

/// What a request gets as its recorded answer: its id and the encoded message.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub request_id: String,
    pub bytes: Vec<u8>,
}

/// The database of one node's instances.
#[derive(Debug, Clone)]
pub struct Records {
    store: Store,
    node: String,
}

/// One change with what it tells and answers, committed together.
#[derive(Debug)]
pub struct Change {
    tx: Tx,
    node: String,
}

fn fault(error: StoreError) -> Error {
    match error {
        StoreError::Full(_) => {
            Error::exhausted("NO_SPACE", "No space left for the instance database")
        }
        other => Error::internal(other),
    }
}

fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(Error::internal)
}

fn record<T: DeserializeOwned>(row: &Row) -> Result<T, Error> {
    let text = row.text("record").map_err(fault)?;
    serde_json::from_str(&text).map_err(Error::internal)
}

fn records<T: DeserializeOwned>(rows: &[Row]) -> Result<Vec<T>, Error> {
    rows.iter().map(record).collect()
}

impl Records {
    pub async fn open(config: &DatabaseConfig, node: &str) -> Result<Records, StoreError> {
        let store = Store::open(config, MIGRATIONS).await?;
        Ok(Records {
            store,
            node: node.to_owned(),
        })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// All instances of this node.
    pub async fn instances(&self) -> Result<Vec<Instance>, Error> {
        let sql = "SELECT record FROM instances WHERE node = $1 ORDER BY project, name";
        let rows = self
            .store
            .read()
            .fetch_all(sql, args![&self.node])
            .await
            .map_err(fault)?;
        records(&rows)
    }

    /// All snapshots of this node's instances, each with its instance's uid, oldest first.
    pub async fn snapshots(&self) -> Result<Vec<(String, Snapshot)>, Error> {
        let sql = "SELECT s.instance_uid, s.record FROM snapshots s
                   JOIN instances i ON i.uid = s.instance_uid WHERE i.node = $1";
        let rows = self
            .store
            .read()
            .fetch_all(sql, args![&self.node])
            .await
            .map_err(fault)?;
        let pairs = rows
            .iter()
            .map(|row| Ok((row.text("instance_uid").map_err(fault)?, record(row)?)));
        pairs.collect()
    }

    pub async fn profiles(&self) -> Result<Vec<Profile>, Error> {
        let sql = "SELECT record FROM profiles ORDER BY project, name";
        let rows = self
            .store
            .read()
            .fetch_all(sql, args![])
            .await
            .map_err(fault)?;
        records(&rows)
    }

    /// The boot for which guests were last started.
    pub async fn boot_id(&self) -> Result<Option<String>, Error> {
        let sql = "SELECT boot_id FROM hosts WHERE node = $1";
        let row = self
            .store
            .read()
            .fetch_optional(sql, args![&self.node])
            .await
            .map_err(fault)?;
        row.map(|r| r.text("boot_id")).transpose().map_err(fault)
    }

    pub async fn set_boot_id(&self, boot_id: &str) -> Result<(), Error> {
        let mut tx = self.store.begin().await.map_err(fault)?;
        let sql = "INSERT INTO hosts (node, boot_id) VALUES ($1, $2)
                   ON CONFLICT (node) DO UPDATE SET boot_id = excluded.boot_id";
        tx.execute(sql, args![&self.node, boot_id])
            .await
            .map_err(fault)?;
        tx.commit().await.map_err(fault)
    }

    pub async fn begin(&self) -> Result<Change, Error> {
        let tx = self.store.begin().await.map_err(fault)?;
        Ok(Change {
            tx,
            node: self.node.clone(),
        })
    }
}

impl Change {
    pub async fn insert_instance(&mut self, instance: &Instance) -> Result<(), Error> {
        let sql = "INSERT INTO instances (uid, node, project, name, id_base, id_len, record)
                   VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let values = args![
            &instance.uid,
            &self.node,
            &instance.project,
            &instance.name,
            instance.ids.base,
            instance.ids.len,
            json(instance)?
        ];
        self.tx
            .execute(sql, values)
            .await
            .map_err(|e| taken(e, "Instance", &instance.name))?;
        Ok(())
    }

    /// Replaces the record; `uid` stays.
    pub async fn update_instance(&mut self, instance: &Instance) -> Result<(), Error> {
        let sql =
            "UPDATE instances SET name = $1, id_base = $2, id_len = $3, record = $4 WHERE uid = $5";
        let values = args![
            &instance.name,
            instance.ids.base,
            instance.ids.len,
            json(instance)?,
            &instance.uid
        ];
        let rows = self
            .tx
            .execute(sql, values)
            .await
            .map_err(|e| taken(e, "Instance", &instance.name))?;
        if rows == 1 {
            Ok(())
        } else {
            Err(Error::not_found("Instance", &instance.name))
        }
    }

    pub async fn delete_instance(&mut self, uid: &str) -> Result<(), Error> {
        let sql = "DELETE FROM instances WHERE uid = $1";
        self.tx.execute(sql, args![uid]).await.map_err(fault)?;
        Ok(())
    }

    pub async fn insert_snapshot(
        &mut self,
        instance: &str,
        snapshot: &Snapshot,
    ) -> Result<(), Error> {
        let sql = "INSERT INTO snapshots (uid, instance_uid, name, record) VALUES ($1, $2, $3, $4)";
        let values = args![&snapshot.uid, instance, &snapshot.name, json(snapshot)?];
        self.tx
            .execute(sql, values)
            .await
            .map_err(|e| taken(e, "Snapshot", &snapshot.name))?;
        Ok(())
    }

    pub async fn update_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let sql = "UPDATE snapshots SET name = $1, record = $2 WHERE uid = $3";
        let values = args![&snapshot.name, json(snapshot)?, &snapshot.uid];
        self.tx
            .execute(sql, values)
            .await
            .map_err(|e| taken(e, "Snapshot", &snapshot.name))?;
        Ok(())
    }

    pub async fn delete_snapshot(&mut self, uid: &str) -> Result<(), Error> {
        self.tx
            .execute("DELETE FROM snapshots WHERE uid = $1", args![uid])
            .await
            .map_err(fault)?;
        Ok(())
    }

    pub async fn put_profile(&mut self, profile: &Profile) -> Result<(), Error> {
        let sql = "INSERT INTO profiles (uid, project, name, record) VALUES ($1, $2, $3, $4)
                   ON CONFLICT (uid) DO UPDATE SET name = excluded.name, record = excluded.record";
        let values = args![
            &profile.uid,
            &profile.project,
            &profile.name,
            json(profile)?
        ];
        self.tx
            .execute(sql, values)
            .await
            .map_err(|e| taken(e, "Profile", &profile.name))?;
        Ok(())
    }

    pub async fn delete_profile(&mut self, uid: &str) -> Result<(), Error> {
        self.tx
            .execute("DELETE FROM profiles WHERE uid = $1", args![uid])
            .await
            .map_err(fault)?;
        Ok(())
    }

    pub async fn emit(&mut self, event: Event) -> Result<(), Error> {
        self.tx.emit(event).await.map_err(fault)?;
        Ok(())
    }

    pub async fn answer(&mut self, answer: Answer) -> Result<(), Error> {
        self.tx
            .finish_request(&answer.request_id, answer.bytes)
            .await
            .map_err(fault)
    }

    /// The answered change survives a power cut.
    pub async fn commit(self) -> Result<(), Error> {
        self.tx.commit().await.map_err(fault)
    }
}

fn taken(error: StoreError, kind: &str, name: &str) -> Error {
    match error {
        StoreError::Unique(_) => Error::already_exists(kind, name),
        other => fault(other),
    }
}
