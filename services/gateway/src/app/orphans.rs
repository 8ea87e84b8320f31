//! Volumes and holds of instances that are no more: what an operation left that neither ended nor
//! was undone. Never deleted on sight: somebody may have put it there, so it is only told.

use std::collections::BTreeSet;

use berth_proto::network::Network;
use berth_proto::storage::Volume;
use berth_rpc::Error;

use crate::app::lists;
use crate::clients::Owners;

/// Something that names an instance which does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Resource name of the thing.
    pub resource: String,
    /// A sentence.
    pub message: String,
}

/// Finds them. `busy` are instances that operations work on right now: theirs come and go.
///
/// # Errors
/// When an owner is away; then nothing can be said.
pub async fn find(
    owners: &Owners,
    networks: &[Network],
    busy: &BTreeSet<String>,
) -> Result<Vec<Orphan>, Error> {
    // Volumes first: an instance that is made meanwhile is then in the later list.
    let volumes = lists::volumes(owners, "projects/-/storagePools/-", "").await?;
    let instances: BTreeSet<String> = crate::app::reads::instance_names(owners, "projects/-")
        .await?
        .into_iter()
        .collect();
    let gone = |name: &str| is_instance(name) && !instances.contains(name) && !busy.contains(name);
    Ok(among(&volumes, networks, gone))
}

fn is_instance(name: &str) -> bool {
    matches!(
        name.split('/').collect::<Vec<_>>().as_slice(),
        ["projects", _, "instances", _]
    )
}

fn among(volumes: &[Volume], networks: &[Network], gone: impl Fn(&str) -> bool) -> Vec<Orphan> {
    let mut found = Vec::new();
    for volume in volumes {
        let parts: Vec<&str> = volume.name.split('/').collect();
        if let [
            "projects",
            project,
            "storagePools",
            _,
            "containers" | "virtualMachines",
            name,
        ] = parts.as_slice()
        {
            let instance = format!("projects/{project}/instances/{name}");
            if gone(&instance) {
                found.push(Orphan {
                    resource: volume.name.clone(),
                    message: format!("the volume of {name} has no instance"),
                });
            }
            continue;
        }
        for hold in volume.holds.iter().filter(|hold| gone(&hold.holder)) {
            found.push(Orphan {
                resource: volume.name.clone(),
                message: format!("held by {}, which is not there", hold.holder),
            });
        }
    }
    for network in networks {
        for user in network.used_by.iter().filter(|user| gone(user)) {
            found.push(Orphan {
                resource: network.name.clone(),
                message: format!("has a port of {user}, which is not there"),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::types::Hold;

    #[test]
    fn only_what_names_a_missing_instance_is_told() {
        let volume = |name: &str, holder: &str| Volume {
            name: name.into(),
            holds: vec![Hold {
                holder: holder.into(),
                ..Hold::default()
            }],
            ..Volume::default()
        };
        let (here, gone) = (
            "projects/default/instances/c1",
            "projects/default/instances/c2",
        );
        let pool = "projects/default/storagePools/p";
        let volumes = [
            volume(&format!("{pool}/containers/c1"), here),
            volume(&format!("{pool}/containers/c2"), gone),
            volume(&format!("{pool}/custom/v1"), here),
            volume(&format!("{pool}/custom/v2"), gone),
            volume(&format!("{pool}/custom/v3"), "projects/default/profiles/p"),
            volume(&format!("{pool}/images/abc"), ""),
        ];
        let network = Network {
            name: "projects/default/networks/br0".into(),
            used_by: vec![
                here.into(),
                gone.into(),
                "projects/default/profiles/p".into(),
            ],
            ..Network::default()
        };
        let missing = |name: &str| is_instance(name) && name == gone;
        let found: Vec<String> = among(&volumes, &[network], missing)
            .into_iter()
            .map(|orphan| orphan.resource)
            .collect();
        assert_eq!(
            found,
            [
                format!("{pool}/containers/c2"),
                format!("{pool}/custom/v2"),
                "projects/default/networks/br0".to_owned(),
            ]
        );
    }
}
