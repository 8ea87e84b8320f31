//! What does not work and why, gathered when somebody asks: owners that are away, and what the
//! owners themselves warn of. Facts, not records: after a restart they are found again. That somebody
//! took note of one is a record, and goes with the warning.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_proto::network::Network;
use berth_proto::{image, instance};
use berth_rpc::Error;
use berth_store::{Fetch, Migration, Store, StoreError, args};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::app::{lists, orphans, time};
use crate::clients::Owners;

/// One warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The same thing has the same id each time it is found.
    pub id: Uuid,
    /// A few words: the kind.
    pub kind: String,
    /// Empty where it is of no project.
    pub project: String,
    /// Resource name of what it is about; may be empty.
    pub resource: String,
    /// A sentence.
    pub message: String,
    /// `low`, `moderate` or `high`.
    pub severity: &'static str,
    /// Times it was found.
    pub count: u64,
    /// RFC 3339.
    pub first_seen: String,
    /// RFC 3339.
    pub last_seen: String,
    /// Somebody has taken note.
    pub acknowledged: bool,
}

/// Makes the table of what somebody took note of.
pub const MIGRATION: Migration = Migration {
    version: 2,
    name: "acknowledged_warnings",
    sql: "CREATE TABLE acknowledged_warnings (id TEXT NOT NULL PRIMARY KEY)",
};

/// Warnings seen since the start.
#[derive(Debug)]
pub struct Warnings {
    store: Store,
    seen: Mutex<BTreeMap<Uuid, Warning>>,
    /// What an earlier process was told of, until it is seen again.
    acknowledged: OnceCell<Mutex<BTreeSet<Uuid>>>,
}

/// A finding before it is known whether it is new.
#[derive(Debug)]
struct Finding {
    kind: &'static str,
    project: String,
    resource: String,
    message: String,
    severity: &'static str,
}

impl Warnings {
    /// None are seen yet; what was taken note of is in `store`.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            seen: Mutex::default(),
            acknowledged: OnceCell::new(),
        }
    }

    async fn load(&self) -> Result<Mutex<BTreeSet<Uuid>>, StoreError> {
        let rows = self
            .store
            .read()
            .fetch_all("SELECT id FROM acknowledged_warnings", args![])
            .await?;
        let ids = rows.iter().map(|row| row.text("id"));
        let ids: Vec<String> = ids.collect::<Result<_, _>>()?;
        let ids = ids.iter().filter_map(|id| id.parse().ok()).collect();
        Ok(Mutex::new(ids))
    }

    /// Writes down whether somebody took note.
    async fn note(&self, id: Uuid, acknowledged: bool) -> Result<(), StoreError> {
        let sql = if acknowledged {
            "INSERT INTO acknowledged_warnings (id) VALUES ($1) ON CONFLICT (id) DO NOTHING"
        } else {
            "DELETE FROM acknowledged_warnings WHERE id = $1"
        };
        let mut tx = self.store.begin().await?;
        tx.execute(sql, args![id.to_string()]).await?;
        tx.commit().await
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Warning>> {
        // Every change under the lock is whole by itself.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again, and gives what is there now, sorted by id. `busy` are instances that operations
    /// work on.
    pub async fn look(&self, owners: &Owners, busy: &BTreeSet<String>) -> Vec<Warning> {
        let found = gather(owners, busy).await;
        let known = match self.acknowledged.get_or_try_init(|| self.load()).await {
            Ok(known) => Some(known),
            Err(error) => {
                tracing::warn!(%error, "which warnings were taken note of is not known");
                None
            }
        };
        let (current, over) = self.renew(found, known);
        for id in over {
            // Staying, it would hide the same warning when it comes again.
            if let Err(error) = self.note(id, false).await {
                tracing::warn!(%error, "a warning that is over could not be forgotten");
            }
        }
        current
    }

    /// Takes over what was found. Gives that, and ids of acknowledged ones that are over.
    fn renew(
        &self,
        found: Vec<Finding>,
        known: Option<&Mutex<BTreeSet<Uuid>>>,
    ) -> (Vec<Warning>, Vec<Uuid>) {
        let now = time::now();
        let was_noted = |id: &Uuid| {
            known.is_some_and(|known| {
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                known.remove(id)
            })
        };
        let mut seen = self.lock();
        let mut current = BTreeMap::new();
        for finding in found {
            let id = identity(&finding);
            let mut warning = seen.remove(&id).unwrap_or_else(|| Warning {
                id,
                kind: finding.kind.to_owned(),
                project: finding.project,
                resource: finding.resource,
                message: finding.message,
                severity: finding.severity,
                count: 0,
                first_seen: now.clone(),
                last_seen: String::new(),
                acknowledged: was_noted(&id),
            });
            warning.count += 1;
            warning.last_seen.clone_from(&now);
            current.insert(id, warning);
        }
        // What was not found again is over.
        let over = seen.values().filter(|w| w.acknowledged).map(|w| w.id);
        let over = over.collect();
        *seen = current;
        (seen.values().cloned().collect(), over)
    }

    /// Sets whether somebody took note; `false` when there is no such warning.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn acknowledge(&self, id: Uuid, acknowledged: bool) -> Result<bool, Error> {
        if !self.lock().contains_key(&id) {
            return Ok(false);
        }
        self.note(id, acknowledged).await.map_err(Error::internal)?;
        // It may have ended meanwhile, which is as good.
        if let Some(warning) = self.lock().get_mut(&id) {
            warning.acknowledged = acknowledged;
        }
        Ok(true)
    }

    /// Forgets one; it comes back if it is found again. `false` when there is no such warning.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn forget(&self, id: Uuid) -> Result<bool, Error> {
        let there = self.lock().remove(&id).is_some();
        if there {
            self.note(id, false).await.map_err(Error::internal)?;
        }
        Ok(there)
    }
}

fn identity(finding: &Finding) -> Uuid {
    let text = format!(
        "{}\0{}\0{}",
        finding.kind, finding.resource, finding.message
    );
    Uuid::new_v5(&Uuid::NAMESPACE_URL, text.as_bytes())
}

async fn gather(owners: &Owners, busy: &BTreeSet<String>) -> Vec<Finding> {
    let mut images = owners.images();
    let mut instances = owners.instances();
    let (networks, pools, image, instance) = tokio::join!(
        lists::networks(owners, "projects/default", false),
        lists::pools(owners),
        images.list_images(image::ListImagesRequest {
            parent: "projects/default".into(),
            page_size: 1,
            ..Default::default()
        }),
        instances.get_host(instance::GetHostRequest {}),
    );
    let mut found = Vec::new();
    found.extend(away("image", image.err().map(Error::from)));
    found.extend(away("instance", instance.err().map(Error::from)));
    match networks {
        Ok(networks) => {
            found.extend(left_behind(owners, &networks, busy).await);
            for network in networks {
                found.extend(network.warnings.iter().map(|message| Finding {
                    kind: "Network not fully working",
                    project: "default".into(),
                    resource: network.name.clone(),
                    message: message.clone(),
                    severity: "moderate",
                }));
                if network.status != "Created" {
                    found.push(Finding {
                        kind: "Network unavailable",
                        project: "default".into(),
                        resource: network.name,
                        message: network.status_message,
                        severity: "high",
                    });
                }
            }
        }
        Err(error) => found.extend(away("network", Some(error))),
    }
    match pools {
        Ok(pools) => found.extend(pools.into_iter().filter(|p| p.status != "Created").map(
            |pool| Finding {
                kind: "Storage pool unavailable",
                project: String::new(),
                resource: pool.name,
                message: pool.status_message,
                severity: "high",
            },
        )),
        Err(error) => found.extend(away("storage", Some(error))),
    }
    found
}

async fn left_behind(
    owners: &Owners,
    networks: &[Network],
    busy: &BTreeSet<String>,
) -> Vec<Finding> {
    match orphans::find(owners, networks, busy).await {
        Ok(found) => found
            .into_iter()
            .map(|orphan| Finding {
                kind: "Left behind",
                project: "default".into(),
                resource: orphan.resource,
                message: orphan.message,
                severity: "low",
            })
            .collect(),
        // An owner is away, which is told beside this.
        Err(_) => Vec::new(),
    }
}

fn away(service: &'static str, error: Option<Error>) -> Option<Finding> {
    // Not the error's own words: they differ from try to try, and it would be a new warning each.
    error.filter(Error::is_transient).map(|_| Finding {
        kind: "Service unavailable",
        project: String::new(),
        resource: String::new(),
        message: format!("the {service} service does not answer"),
        severity: "high",
    })
}
