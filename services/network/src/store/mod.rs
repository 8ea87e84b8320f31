//! The database: networks, ports, the addresses ports have, and holds.
//!
//! Rows carry the `node` they are of; where several hosts share a database each replica sees
//! its own. What must not be twice (names, links, MACs and addresses on a network) is a unique
//! key, not a check.

use berth_rpc::Error;
use berth_store::{Event, Fetch, Migration, Row, Store, StoreError, Tx, args};

use crate::model::records::{HoldRecord, NetworkRecord, PortRecord};

/// The schema.
pub const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "create_networks_and_ports",
    sql: "
CREATE TABLE networks (
    uid TEXT PRIMARY KEY, node TEXT NOT NULL, project TEXT NOT NULL, name TEXT NOT NULL,
    description TEXT NOT NULL, config TEXT NOT NULL, hwaddr TEXT NOT NULL,
    generation BIGINT NOT NULL, request_id TEXT NOT NULL, created_at TEXT NOT NULL);
CREATE UNIQUE INDEX networks_name ON networks (node, name);
CREATE TABLE ports (
    uid TEXT PRIMARY KEY, node TEXT NOT NULL, project TEXT NOT NULL, segment TEXT NOT NULL,
    id TEXT NOT NULL, network TEXT, parent TEXT NOT NULL, holder TEXT NOT NULL,
    host_name TEXT NOT NULL, mac TEXT NOT NULL, dns_name TEXT, record TEXT NOT NULL);
CREATE UNIQUE INDEX ports_name ON ports (node, project, segment, id);
CREATE UNIQUE INDEX ports_host_name ON ports (node, host_name);
CREATE UNIQUE INDEX ports_mac ON ports (network, mac);
CREATE INDEX ports_dns_name ON ports (network, dns_name);
CREATE INDEX ports_parent ON ports (node, parent);
CREATE TABLE port_addresses (
    network TEXT NOT NULL, address TEXT NOT NULL, port TEXT NOT NULL,
    PRIMARY KEY (network, address));
CREATE INDEX port_addresses_port ON port_addresses (port);
CREATE TABLE holds (
    network TEXT NOT NULL, holder TEXT NOT NULL, authority TEXT NOT NULL, expires TEXT NOT NULL,
    PRIMARY KEY (network, holder));
",
}];

/// A port's unique keys, to say which one is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Its name.
    Name,
    /// Its link on the host.
    HostName,
    /// Its MAC on the network.
    Mac,
    /// One of its addresses on the network.
    Address,
}

/// The service's database, as seen by one node.
#[derive(Debug, Clone)]
pub struct Networks {
    store: Store,
    node: String,
}

const NETWORK: &str = "uid, project, name, description, config, hwaddr, generation";

fn network(row: &Row) -> Result<NetworkRecord, Error> {
    let text = |column| row.text(column).map_err(Error::internal);
    Ok(NetworkRecord {
        uid: text("uid")?,
        project: text("project")?,
        name: text("name")?,
        description: text("description")?,
        config: serde_json::from_str(&text("config")?).map_err(Error::internal)?,
        hwaddr: text("hwaddr")?,
        generation: row.i64("generation").map_err(Error::internal)?,
    })
}

fn port(row: &Row) -> Result<PortRecord, Error> {
    let record = row.text("record").map_err(Error::internal)?;
    serde_json::from_str(&record).map_err(Error::internal)
}

fn hold(row: &Row) -> Result<HoldRecord, Error> {
    let text = |column| row.text(column).map_err(Error::internal);
    Ok(HoldRecord {
        holder: text("holder")?,
        authority: text("authority")?,
        expires: text("expires")?,
    })
}

fn full(error: StoreError) -> Error {
    match error {
        StoreError::Full(_) => {
            Error::exhausted("DATABASE_FULL", "No space is left for the network database")
        }
        other => Error::internal(other),
    }
}

impl Networks {
    /// The rows of one node.
    pub fn new(store: Store, node: impl Into<String>) -> Self {
        Self {
            store,
            node: node.into(),
        }
    }

    /// The database itself, for events and requests.
    pub fn store(&self) -> &Store {
        &self.store
    }

    async fn begin(&self) -> Result<Tx, Error> {
        self.store.begin().await.map_err(full)
    }

    /// All networks, by name.
    pub async fn networks(&self) -> Result<Vec<NetworkRecord>, Error> {
        self.store
            .read()
            .fetch_all(
                &format!("SELECT {NETWORK} FROM networks WHERE node = $1 ORDER BY name"),
                args![&self.node],
            )
            .await
            .map_err(Error::internal)?
            .iter()
            .map(network)
            .collect()
    }

    /// A network by its name, which is unique on the node over all projects.
    pub async fn network(&self, name: &str) -> Result<Option<NetworkRecord>, Error> {
        self.store
            .read()
            .fetch_optional(
                &format!("SELECT {NETWORK} FROM networks WHERE node = $1 AND name = $2"),
                args![&self.node, name],
            )
            .await
            .map_err(Error::internal)?
            .as_ref()
            .map(network)
            .transpose()
    }

    /// The network that a request has made.
    pub async fn network_of_request(&self, request: &str) -> Result<Option<NetworkRecord>, Error> {
        if request.is_empty() {
            return Ok(None);
        }
        self.store
            .read()
            .fetch_optional(
                &format!("SELECT {NETWORK} FROM networks WHERE node = $1 AND request_id = $2"),
                args![&self.node, request],
            )
            .await
            .map_err(Error::internal)?
            .as_ref()
            .map(network)
            .transpose()
    }

    /// Writes a new network down; `false` when the name is taken.
    pub async fn insert_network(
        &self,
        record: &NetworkRecord,
        request: &str,
    ) -> Result<bool, Error> {
        let config = serde_json::to_string(&record.config).map_err(Error::internal)?;
        let mut tx = self.begin().await?;
        let inserted = tx
            .execute(
                "INSERT INTO networks (uid, node, project, name, description, config, hwaddr,
                     generation, request_id, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
                args![
                    &record.uid,
                    &self.node,
                    &record.project,
                    &record.name,
                    &record.description,
                    config,
                    &record.hwaddr,
                    record.generation,
                    request,
                    berth_store::now()
                ],
            )
            .await;
        match inserted {
            Err(StoreError::Unique(_)) => return Ok(false),
            other => other.map_err(full)?,
        };
        tx.commit().await.map_err(full)?;
        Ok(true)
    }

    /// Records that a request has had its effect, with the event that tells of it.
    pub async fn finish(
        &self,
        event: Option<Event>,
        request: &str,
        answer: Vec<u8>,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        if let Some(event) = event {
            tx.emit(event).await.map_err(full)?;
        }
        tx.finish_request(request, answer).await.map_err(full)?;
        tx.commit().await.map_err(full)
    }

    /// Replaces a network's row if it is still of `record.generation - 1`; `false` if it is not,
    /// or if the new name is taken.
    pub async fn update_network(
        &self,
        record: &NetworkRecord,
        event: Event,
        request: &str,
        answer: Vec<u8>,
    ) -> Result<bool, Error> {
        let config = serde_json::to_string(&record.config).map_err(Error::internal)?;
        let mut tx = self.begin().await?;
        let updated = tx
            .execute(
                "UPDATE networks SET name = $1, description = $2, config = $3, generation = $4
                 WHERE uid = $5 AND generation = $6",
                args![
                    &record.name,
                    &record.description,
                    config,
                    record.generation,
                    &record.uid,
                    record.generation - 1
                ],
            )
            .await;
        match updated {
            Err(StoreError::Unique(_)) | Ok(0) => return Ok(false),
            other => other.map_err(full)?,
        };
        tx.emit(event).await.map_err(full)?;
        tx.finish_request(request, answer).await.map_err(full)?;
        tx.commit().await.map_err(full)?;
        Ok(true)
    }

    /// Forgets a network. Without an event it never was.
    pub async fn delete_network(
        &self,
        uid: &str,
        event: Option<Event>,
        request: &str,
    ) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        tx.execute("DELETE FROM holds WHERE network = $1", args![uid])
            .await
            .map_err(full)?;
        tx.execute("DELETE FROM networks WHERE uid = $1", args![uid])
            .await
            .map_err(full)?;
        if let Some(event) = event {
            tx.emit(event).await.map_err(full)?;
            tx.finish_request(request, Vec::new()).await.map_err(full)?;
        }
        tx.commit().await.map_err(full)
    }

    /// All ports, by name.
    pub async fn ports(&self) -> Result<Vec<PortRecord>, Error> {
        self.ports_where("node = $1 AND uid <> $2", "").await
    }

    /// Ports on a managed network.
    pub async fn ports_of(&self, network: &str) -> Result<Vec<PortRecord>, Error> {
        self.ports_where("node = $1 AND network = $2", network)
            .await
    }

    /// Ports on a link of the host.
    pub async fn ports_on(&self, parent: &str) -> Result<Vec<PortRecord>, Error> {
        self.ports_where("node = $1 AND parent = $2", parent).await
    }

    async fn ports_where(&self, condition: &str, value: &str) -> Result<Vec<PortRecord>, Error> {
        self.store
            .read()
            .fetch_all(
                &format!(
                    "SELECT record FROM ports WHERE {condition} ORDER BY project, segment, id"
                ),
                args![&self.node, value],
            )
            .await
            .map_err(Error::internal)?
            .iter()
            .map(port)
            .collect()
    }

    /// Resource names of the holders of all ports, with their network's uid or, without one,
    /// the parent link.
    pub async fn port_holders(&self) -> Result<Vec<(String, String)>, Error> {
        self.store
            .read()
            .fetch_all(
                "SELECT DISTINCT COALESCE(network, parent) AS used, holder FROM ports
                 WHERE node = $1 ORDER BY 1, 2",
                args![&self.node],
            )
            .await
            .map_err(Error::internal)?
            .iter()
            .map(|row| {
                let text = |column| row.text(column).map_err(Error::internal);
                Ok((text("used")?, text("holder")?))
            })
            .collect()
    }

    /// One port.
    pub async fn port(
        &self,
        project: &str,
        segment: &str,
        id: &str,
    ) -> Result<Option<PortRecord>, Error> {
        self.store
            .read()
            .fetch_optional(
                "SELECT record FROM ports
                 WHERE node = $1 AND project = $2 AND segment = $3 AND id = $4",
                args![&self.node, project, segment, id],
            )
            .await
            .map_err(Error::internal)?
            .as_ref()
            .map(port)
            .transpose()
    }

    /// The holder of another's port that has a DNS name on a network.
    pub async fn dns_name_holder(
        &self,
        network: &str,
        name: &str,
        but: &str,
    ) -> Result<Option<String>, Error> {
        self.store
            .read()
            .fetch_optional(
                "SELECT holder FROM ports WHERE network = $1 AND dns_name = $2 AND holder <> $3",
                args![network, name, but],
            )
            .await
            .map_err(Error::internal)?
            .map(|row| row.text("holder").map_err(Error::internal))
            .transpose()
    }

    /// Addresses that ports have on a network, but for one port's.
    pub async fn addresses(&self, network: &str, but: &str) -> Result<Vec<String>, Error> {
        self.store
            .read()
            .fetch_all(
                "SELECT address FROM port_addresses WHERE network = $1 AND port <> $2",
                args![network, but],
            )
            .await
            .map_err(Error::internal)?
            .iter()
            .map(|row| row.text("address").map_err(Error::internal))
            .collect()
    }

    /// Writes a port down, new or in the place of the one with its uid.
    pub async fn put_port(
        &self,
        record: &PortRecord,
        request: &str,
        answer: Vec<u8>,
    ) -> Result<Result<(), Taken>, Error> {
        let json = serde_json::to_string(record).map_err(Error::internal)?;
        let mut tx = self.begin().await?;
        tx.execute(
            "DELETE FROM port_addresses WHERE port = $1",
            args![&record.uid],
        )
        .await
        .map_err(full)?;
        let written = tx
            .execute(
                "INSERT INTO ports (uid, node, project, segment, id, network, parent, holder,
                     host_name, mac, dns_name, record)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
                 ON CONFLICT (uid) DO UPDATE SET holder = excluded.holder,
                     parent = excluded.parent, network = excluded.network,
                     host_name = excluded.host_name, mac = excluded.mac,
                     dns_name = excluded.dns_name, record = excluded.record",
                args![
                    &record.uid,
                    &self.node,
                    &record.project,
                    &record.segment,
                    &record.id,
                    record.network.clone(),
                    &record.parent,
                    &record.spec.holder,
                    &record.host_name,
                    &record.mac,
                    record.dns_name.clone(),
                    json
                ],
            )
            .await;
        match written {
            Err(StoreError::Unique(_)) => {
                drop(tx);
                return Ok(Err(self.taken(record).await?));
            }
            other => other.map_err(full)?,
        };
        if let Some(network) = &record.network {
            for address in &record.addresses {
                let written = tx
                    .execute(
                        "INSERT INTO port_addresses (network, address, port) VALUES ($1, $2, $3)",
                        args![network, address.to_string(), &record.uid],
                    )
                    .await;
                match written {
                    Err(StoreError::Unique(_)) => return Ok(Err(Taken::Address)),
                    other => other.map_err(full)?,
                };
            }
        }
        tx.finish_request(request, answer).await.map_err(full)?;
        tx.commit().await.map_err(full)?;
        Ok(Ok(()))
    }

    /// Uid of the port that has a link's name.
    pub async fn port_of_link(&self, host_name: &str) -> Result<Option<String>, Error> {
        self.store
            .read()
            .fetch_optional(
                "SELECT uid FROM ports WHERE node = $1 AND host_name = $2",
                args![&self.node, host_name],
            )
            .await
            .map_err(Error::internal)?
            .map(|row| row.text("uid").map_err(Error::internal))
            .transpose()
    }

    async fn taken(&self, record: &PortRecord) -> Result<Taken, Error> {
        let named = self
            .port(&record.project, &record.segment, &record.id)
            .await?;
        if named.is_some_and(|p| p.uid != record.uid) {
            return Ok(Taken::Name);
        }
        let link = self.port_of_link(&record.host_name).await?;
        Ok(if link.is_some_and(|uid| uid != record.uid) {
            Taken::HostName
        } else {
            Taken::Mac
        })
    }

    /// Forgets a port.
    pub async fn delete_port(&self, uid: &str, request: &str) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        for table in ["port_addresses WHERE port", "ports WHERE uid"] {
            tx.execute(&format!("DELETE FROM {table} = $1"), args![uid])
                .await
                .map_err(full)?;
        }
        tx.finish_request(request, Vec::new()).await.map_err(full)?;
        tx.commit().await.map_err(full)
    }

    /// Holds of a network that have not expired.
    pub async fn holds(&self, network: &str) -> Result<Vec<HoldRecord>, Error> {
        self.store
            .read()
            .fetch_all(
                "SELECT holder, authority, expires FROM holds
                 WHERE network = $1 AND (expires = '' OR expires > $2) ORDER BY holder",
                args![network, berth_store::now()],
            )
            .await
            .map_err(Error::internal)?
            .iter()
            .map(hold)
            .collect()
    }

    /// All holds that have not expired, with their network's uid.
    pub async fn all_holds(&self) -> Result<Vec<(String, String)>, Error> {
        self.store
            .read()
            .fetch_all(
                "SELECT network, holder FROM holds WHERE expires = '' OR expires > $1
                 ORDER BY network, holder",
                args![berth_store::now()],
            )
            .await
            .map_err(Error::internal)?
            .iter()
            .map(|row| {
                let text = |column| row.text(column).map_err(Error::internal);
                Ok((text("network")?, text("holder")?))
            })
            .collect()
    }

    /// Adds or renews a hold.
    pub async fn put_hold(&self, network: &str, hold: &HoldRecord) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        tx.execute(
            "INSERT INTO holds (network, holder, authority, expires) VALUES ($1, $2, $3, $4)
             ON CONFLICT (network, holder) DO UPDATE SET authority = excluded.authority,
                 expires = excluded.expires",
            args![network, &hold.holder, &hold.authority, &hold.expires],
        )
        .await
        .map_err(full)?;
        tx.commit().await.map_err(full)
    }

    /// Removes a hold, if it is there.
    pub async fn delete_hold(&self, network: &str, holder: &str) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        tx.execute(
            "DELETE FROM holds WHERE network = $1 AND holder = $2",
            args![network, holder],
        )
        .await
        .map_err(full)?;
        tx.commit().await.map_err(full)
    }
}
