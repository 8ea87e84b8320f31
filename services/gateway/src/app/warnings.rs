//! What does not work and why, gathered when somebody asks: owners that are away, and what the
//! owners themselves warn of. Facts, not records: after a restart they are found again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_proto::network::Network;
use berth_proto::{image, instance};
use berth_rpc::Error;
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

/// Warnings seen since the start.
#[derive(Debug, Default)]
pub struct Warnings {
    seen: Mutex<BTreeMap<Uuid, Warning>>,
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
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Warning>> {
        // Every change under the lock is whole by itself.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again, and gives what is there now, sorted by id. `busy` are instances that operations
    /// work on.
    pub async fn look(&self, owners: &Owners, busy: &BTreeSet<String>) -> Vec<Warning> {
        let found = gather(owners, busy).await;
        let now = time::now();
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
                acknowledged: false,
            });
            warning.count += 1;
            warning.last_seen.clone_from(&now);
            current.insert(id, warning);
        }
        // What was not found again is over.
        *seen = current;
        seen.values().cloned().collect()
    }

    /// Sets whether somebody took note; `false` when there is no such warning.
    pub fn acknowledge(&self, id: Uuid, acknowledged: bool) -> bool {
        match self.lock().get_mut(&id) {
            Some(warning) => {
                warning.acknowledged = acknowledged;
                true
            }
            None => false,
        }
    }

    /// Forgets one; it comes back if it is found again. `false` when there is no such warning.
    pub fn forget(&self, id: Uuid) -> bool {
        self.lock().remove(&id).is_some()
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
