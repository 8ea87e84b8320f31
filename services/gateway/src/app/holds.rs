//! What profiles use: pools and networks are held in the profile's name, so that their `used_by`
//! tells of it and they cannot be deleted under it.

use std::collections::{BTreeSet, HashMap};

use berth_proto::instance::{Device, Profile};
use berth_proto::types::Hold;
use berth_proto::{network, storage};
use berth_rpc::names::{self, DEFAULT_PROJECT};
use berth_rpc::{Code, Error};
use serde::{Deserialize, Serialize};

use crate::app::lists;
use crate::clients::Owners;

/// Who may release what the gateway holds.
const AUTHORITY: &str = "gateway";

/// Pools and networks by their short names.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uses {
    /// Storage pools of disks.
    pub pools: BTreeSet<String>,
    /// Networks of nics.
    pub networks: BTreeSet<String>,
}

impl Uses {
    /// What devices name.
    pub fn of(devices: &HashMap<String, Device>) -> Self {
        let mut uses = Self::default();
        for device in devices.values() {
            let option = |key: &str| device.options.get(key).filter(|value| !value.is_empty());
            match option("type").map(String::as_str) {
                Some("disk") => uses.pools.extend(option("pool").cloned()),
                Some("nic") => match option("network") {
                    Some(network) => {
                        uses.networks.insert(network.clone());
                    }
                    // A bridge named as a plain parent is a managed network all the same.
                    None if option("nictype").is_some_and(|kind| kind == "bridged") => {
                        uses.networks.extend(option("parent").cloned());
                    }
                    None => {}
                },
                _ => {}
            }
        }
        uses
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            pools: self.pools.difference(&other.pools).cloned().collect(),
            networks: self.networks.difference(&other.networks).cloned().collect(),
        }
    }
}

fn hold_of(holder: &str) -> Option<Hold> {
    Some(Hold {
        holder: holder.to_owned(),
        authority: AUTHORITY.into(),
        expire_time: String::new(),
    })
}

/// A name that nothing has, or that is no name at all: LXD takes profiles that name such, and
/// what they name is held when it is made.
fn absent(error: &Error) -> bool {
    matches!(error.code, Code::NotFound | Code::InvalidArgument)
}

fn unless_absent<T>(result: Result<T, tonic::Status>) -> Result<(), Error> {
    match result.map_err(Error::from) {
        Ok(_) => Ok(()),
        Err(error) if absent(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Takes holds; again is the same as once.
///
/// # Errors
/// When an owner is away.
pub async fn hold(owners: &Owners, project: &str, uses: &Uses, holder: &str) -> Result<(), Error> {
    for pool in &uses.pools {
        let request = storage::HoldPoolRequest {
            name: names::Pool::new(pool).to_string(),
            hold: hold_of(holder),
        };
        unless_absent(owners.pools().hold_pool(request).await)?;
    }
    for network in &uses.networks {
        let request = network::HoldNetworkRequest {
            name: names::Network::new(project, network).to_string(),
            hold: hold_of(holder),
        };
        unless_absent(owners.networks().hold_network(request).await)?;
    }
    Ok(())
}

/// Releases holds; what is not held is released already.
///
/// # Errors
/// When an owner is away.
pub async fn release(
    owners: &Owners,
    project: &str,
    uses: &Uses,
    holder: &str,
) -> Result<(), Error> {
    for pool in &uses.pools {
        let request = storage::ReleasePoolRequest {
            name: names::Pool::new(pool).to_string(),
            holder: holder.to_owned(),
        };
        unless_absent(owners.pools().release_pool(request).await)?;
    }
    for network in &uses.networks {
        let request = network::ReleaseNetworkRequest {
            name: names::Network::new(project, network).to_string(),
            holder: holder.to_owned(),
        };
        unless_absent(owners.networks().release_network(request).await)?;
    }
    Ok(())
}

/// Holds a new pool for the profiles that named it before it was there.
///
/// # Errors
/// When an owner is away.
pub async fn hold_new_pool(owners: &Owners, pool: &str) -> Result<(), Error> {
    let uses = Uses {
        pools: BTreeSet::from([pool.to_owned()]),
        ..Uses::default()
    };
    for profile in naming(owners, |of| of.pools.contains(pool)).await? {
        hold(owners, DEFAULT_PROJECT, &uses, &profile.name).await?;
    }
    Ok(())
}

/// The same for a new network.
///
/// # Errors
/// When an owner is away.
pub async fn hold_new_network(owners: &Owners, project: &str, network: &str) -> Result<(), Error> {
    let uses = Uses {
        networks: BTreeSet::from([network.to_owned()]),
        ..Uses::default()
    };
    for profile in naming(owners, |of| of.networks.contains(network)).await? {
        hold(owners, project, &uses, &profile.name).await?;
    }
    Ok(())
}

/// Releases a pool, about to go, from all profiles.
///
/// # Errors
/// When an owner is away.
pub async fn release_pool(owners: &Owners, pool: &str) -> Result<(), Error> {
    let uses = Uses {
        pools: BTreeSet::from([pool.to_owned()]),
        ..Uses::default()
    };
    for profile in naming(owners, |of| of.pools.contains(pool)).await? {
        release(owners, DEFAULT_PROJECT, &uses, &profile.name).await?;
    }
    Ok(())
}

/// The same for a network.
///
/// # Errors
/// When an owner is away.
pub async fn release_network(owners: &Owners, project: &str, network: &str) -> Result<(), Error> {
    let uses = Uses {
        networks: BTreeSet::from([network.to_owned()]),
        ..Uses::default()
    };
    for profile in naming(owners, |of| of.networks.contains(network)).await? {
        release(owners, project, &uses, &profile.name).await?;
    }
    Ok(())
}

async fn naming(owners: &Owners, wanted: impl Fn(&Uses) -> bool) -> Result<Vec<Profile>, Error> {
    let mut profiles = lists::profiles(owners, &format!("projects/{DEFAULT_PROJECT}")).await?;
    profiles.retain(|profile| wanted(&Uses::of(&profile.devices)));
    Ok(profiles)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(options: &[(&str, &str)]) -> Device {
        Device {
            options: options
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn disks_use_pools_and_nics_use_networks() {
        let devices = HashMap::from([
            (
                "root".to_owned(),
                device(&[("type", "disk"), ("pool", "p"), ("path", "/")]),
            ),
            (
                "host".to_owned(),
                device(&[("type", "disk"), ("source", "/srv"), ("path", "/x")]),
            ),
            (
                "eth0".to_owned(),
                device(&[("type", "nic"), ("network", "n")]),
            ),
            (
                "eth1".to_owned(),
                device(&[("type", "nic"), ("nictype", "bridged"), ("parent", "b")]),
            ),
            (
                "eth2".to_owned(),
                device(&[("type", "nic"), ("nictype", "macvlan"), ("parent", "m")]),
            ),
        ]);
        let uses = Uses::of(&devices);
        assert_eq!(uses.pools, BTreeSet::from(["p".to_owned()]));
        assert_eq!(
            uses.networks,
            BTreeSet::from(["b".to_owned(), "n".to_owned()])
        );
        assert_eq!(uses.without(&uses), Uses::default());
    }
}
