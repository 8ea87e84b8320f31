//! Plans: what a change needs of storage and network, worked out without changing anything.

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{App, ByName, Run, View, lock};
use crate::Error;
use crate::model::attachment::{Attachment, Port};
use crate::model::expand::{Expanded, expand};
use crate::model::plan::{self, Difference, Wanted, WantedPort, WantedVolume};
use crate::model::record::{self, Instance, Profile};
use crate::model::{device, keys};

/// What storage and network made, by device name.
#[derive(Debug, Clone, Default)]
pub struct Values {
    pub attachments: BTreeMap<String, Attachment>,
    pub ports: BTreeMap<String, Port>,
}

/// A volume to make or find, for a device.
#[derive(Debug, Clone)]
pub struct NeededVolume {
    pub device: String,
    pub volume: WantedVolume,
}

#[derive(Debug, Clone)]
pub struct NeededPort {
    pub device: String,
    pub port: WantedPort,
}

/// See the module. The etag is over all that the plan depends on.
#[derive(Debug, Clone)]
pub struct Plan {
    pub etag: String,
    pub view: View,
    pub needed_volumes: Vec<NeededVolume>,
    pub needed_ports: Vec<NeededPort>,
    pub changed_ports: Vec<NeededPort>,
    pub surplus_volumes: Vec<(String, Attachment, bool)>,
    pub surplus_ports: Vec<(String, Port)>,
    /// Device, volume's resource name, its new config.
    pub volume_changes: Vec<(String, String, BTreeMap<String, String>)>,
}

/// Everything a plan is made of, kept for the commit.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub record: Instance,
    pub expanded: Expanded,
    pub wanted: Wanted,
    pub difference: Difference,
    pub etag: String,
}

impl App {
    /// Checks a record that is to be, gives its nics names and addresses, and says what it needs more than `before`.
    /// `profiles` are those to expand with.
    pub(super) fn draft(
        &self,
        mut record: Instance,
        before: Option<(&Instance, &Expanded)>,
        profiles: &ByName<Profile>,
    ) -> Result<Draft, Error> {
        keys::validate(&record.config, keys::Scope::Container)?;
        device::validate(&record.devices)?;
        if !self.facts.architectures.contains(&record.architecture) {
            let why = "Requested architecture isn't supported by this host";
            return Err(Error::invalid("architecture", why));
        }
        let used = used_profiles(&record, profiles)?;
        let expanded = expand(used.iter().copied(), &record.config, &record.devices);
        // What a profile says for virtual machines is not for this one.
        device::validate_expanded(&expanded.devices)?;
        let uid = record.uid.clone();
        let devices = expanded.devices.clone();
        let names: Vec<String> = devices
            .iter()
            .filter(|(_, d)| device::option(d, "type") == "nic")
            .map(|(n, _)| n.clone())
            .collect();
        let mut fresh = names
            .iter()
            .filter(|n| {
                let own = device::option(&devices[*n], "hwaddr").is_empty();
                own && !record.config.contains_key(&format!("volatile.{n}.hwaddr"))
            })
            .map(|n| self.new_mac(&uid, n))
            .collect::<Vec<_>>()
            .into_iter();
        plan::fill_volatile(&mut record.config, &devices, || {
            fresh.next().unwrap_or_default()
        });
        let expanded = expand(used.iter().copied(), &record.config, &record.devices);
        let wanted = plan::wanted(&record.uid, &record.name, &record.config, &expanded);
        let old = match before {
            Some((old, expanded)) => plan::wanted(&old.uid, &old.name, &old.config, expanded),
            None => Wanted::default(),
        };
        let difference = plan::difference(&old, &wanted)?;
        let etag = draft_etag(before.map(|(r, _)| r), &record, &used);
        Ok(Draft {
            record,
            expanded,
            wanted,
            difference,
            etag,
        })
    }

    /// An address made from the instance and the device, so that a plan and its commit agree; the next one
    /// while it is taken.
    fn new_mac(&self, uid: &str, device: &str) -> String {
        let macs = lock(&self.macs);
        let mut salt = 0_u32;
        loop {
            let mut hash = Sha256::new();
            hash.update(uid.as_bytes());
            hash.update([0]);
            hash.update(device.as_bytes());
            hash.update(salt.to_le_bytes());
            let digest = hash.finalize();
            let mac = format!(
                "00:16:3e:{:02x}:{:02x}:{:02x}",
                digest[0], digest[1], digest[2]
            );
            if macs.get(&mac).is_none_or(|owner| owner == uid) || salt > 1000 {
                return mac;
            }
            salt += 1;
        }
    }

    /// The draft in a plan's shape.
    pub(super) fn plan(&self, draft: Draft, before: Option<&Instance>, run: Run) -> Plan {
        let Draft {
            record,
            expanded,
            wanted,
            difference,
            etag,
        } = draft;
        let volume = |device: &String| {
            let volume = wanted.volumes.get(device)?.clone();
            Some(NeededVolume {
                device: device.clone(),
                volume,
            })
        };
        let port = |device: &String| {
            let port = wanted.ports.get(device)?.clone();
            Some(NeededPort {
                device: device.clone(),
                port,
            })
        };
        let old_root = before.and_then(root_attachment);
        let attachment = |device: &String| before?.attachments.get(device).cloned();
        let surplus_volumes = difference.surplus_volumes.iter().filter_map(|device| {
            let attachment = attachment(device)?;
            let root = old_root
                .as_ref()
                .is_some_and(|r| r.volume_uid == attachment.volume_uid);
            Some((device.clone(), attachment, root))
        });
        let volume_changes = difference.changed_volumes.iter().filter_map(|device| {
            let config = wanted.volumes.get(device)?.config.clone();
            let attachment = attachment(device).or_else(|| old_root.clone())?;
            // An unset size is said as one, or the volume would keep its quota.
            let mut config = config;
            config
                .entry("size".to_owned())
                .or_insert_with(|| "0".to_owned());
            Some((device.clone(), attachment.volume, config))
        });
        let surplus_ports = difference
            .surplus_ports
            .iter()
            .filter_map(|device| Some((device.clone(), before?.ports.get(device)?.clone())));
        Plan {
            etag,
            needed_volumes: difference
                .needed_volumes
                .iter()
                .filter_map(volume)
                .collect(),
            needed_ports: difference.needed_ports.iter().filter_map(port).collect(),
            changed_ports: difference.changed_ports.iter().filter_map(port).collect(),
            surplus_volumes: surplus_volumes.collect(),
            surplus_ports: surplus_ports.collect(),
            volume_changes: volume_changes.collect(),
            view: View {
                record: std::sync::Arc::new(record),
                expanded,
                run,
                snapshots: std::sync::Arc::default(),
            },
        }
    }
}

/// The volume of the instance's own root disk, whatever the device is called.
fn root_attachment(record: &Instance) -> Option<Attachment> {
    let own = |a: &&Attachment| {
        let volume = berth_rpc::names::Volume::parse("volume", &a.volume);
        volume.is_ok_and(|v| v.collection == "containers")
    };
    record.attachments.values().find(own).cloned()
}

/// The profiles a record names, in order; naming one that is missing is an error.
pub(super) fn used_profiles<'a>(
    record: &Instance,
    profiles: &'a ByName<Profile>,
) -> Result<Vec<&'a Profile>, Error> {
    let mut used = Vec::new();
    for (at, name) in record.profiles.iter().enumerate() {
        if record.profiles[..at].contains(name) {
            return Err(Error::invalid(
                "profiles",
                "Duplicate profile found in request",
            ));
        }
        match profiles.get(&(record.project.clone(), name.clone())) {
            Some(profile) => used.push(profile),
            // It always exists, stored or not.
            None if name == super::DEFAULT_PROFILE => {}
            None => {
                let why = format!("Requested profile {name:?} doesn't exist");
                return Err(Error::invalid("profiles", why));
            }
        }
    }
    Ok(used)
}

#[derive(Serialize)]
struct Depends<'a> {
    before: Option<String>,
    uid: &'a str,
    name: &'a str,
    after: record::Writable,
    profiles: Vec<(&'a str, String)>,
}

fn draft_etag(before: Option<&Instance>, after: &Instance, used: &[&Profile]) -> String {
    record::etag(&Depends {
        before: before.map(Instance::etag),
        uid: &after.uid,
        name: &after.name,
        after: after.writable(),
        profiles: used.iter().map(|p| (p.name.as_str(), p.etag())).collect(),
    })
}

/// Refuses a commit whose plan is of another state of things. No etag: the caller made no plan.
pub(super) fn check_etag(given: &str, now: &str) -> Result<(), Error> {
    if given.is_empty() || given == now {
        return Ok(());
    }
    Err(Error::aborted(
        "PLAN_STALE",
        "What the plan depends on was changed meanwhile",
    ))
}

/// The values a record keeps: those it had for devices that still are, and the new ones. Whatever a device
/// needs and nobody gave is named.
pub(super) fn merge_values(
    before: Option<&Instance>,
    draft: &Draft,
    given: Values,
) -> Result<Values, Error> {
    let mut values = Values::default();
    let root = before.and_then(root_attachment);
    for (name, wanted) in &draft.wanted.volumes {
        let kept = before
            .filter(|_| !draft.difference.needed_volumes.contains(name))
            .and_then(|r| {
                r.attachments
                    .get(name)
                    .cloned()
                    .or_else(|| root.clone().filter(|_| wanted.root))
            });
        let attachment = given
            .attachments
            .get(name)
            .cloned()
            .or(kept)
            .ok_or_else(|| {
                let why = format!("The device {name:?} needs an attachment");
                Error::invalid(format!("attachments.{name}"), why)
            })?;
        values.attachments.insert(name.clone(), attachment);
    }
    for name in draft.wanted.ports.keys() {
        let kept = before
            .filter(|_| !draft.difference.needed_ports.contains(name))
            .and_then(|r| r.ports.get(name).cloned());
        let port = given.ports.get(name).cloned().or(kept).ok_or_else(|| {
            Error::invalid(
                format!("ports.{name}"),
                format!("The device {name:?} needs a port"),
            )
        })?;
        values.ports.insert(name.clone(), port);
    }
    let unknown = given
        .attachments
        .keys()
        .find(|n| !draft.wanted.volumes.contains_key(*n));
    if let Some(name) = unknown {
        let why = format!("There is no disk device {name:?} of a storage pool");
        return Err(Error::invalid(format!("attachments.{name}"), why));
    }
    if let Some(name) = given
        .ports
        .keys()
        .find(|n| !draft.wanted.ports.contains_key(*n))
    {
        let why = format!("There is no nic device {name:?}");
        return Err(Error::invalid(format!("ports.{name}"), why));
    }
    Ok(values)
}
