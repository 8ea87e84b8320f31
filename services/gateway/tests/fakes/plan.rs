//! The fake instance service's planning: expansion, what devices need, the difference.

use std::collections::{BTreeMap, HashMap};

use berth_proto::instance::{
    Device, Instance, InstancePlan, NeededPort, NeededVolume, Profile, SurplusPort, SurplusVolume,
    VolumeChange,
};
use berth_rpc::{Error, etag};

use super::replay::last;

type Options = HashMap<String, String>;

/// Profiles in order, then the instance's own.
pub fn expand(profiles: &BTreeMap<String, Profile>, instance: &mut Instance) -> Result<(), Error> {
    let project = instance.name.split('/').nth(1).unwrap_or_default();
    let mut config = HashMap::new();
    let mut devices: HashMap<String, Device> = HashMap::new();
    for name in &instance.profiles {
        let profile = profiles
            .get(&format!("projects/{project}/profiles/{name}"))
            .ok_or_else(|| Error::not_found("Profile", name))?;
        config.extend(profile.config.clone());
        devices.extend(profile.devices.clone());
    }
    config.extend(instance.config.clone());
    devices.extend(instance.devices.clone());
    instance.expanded_config = config;
    instance.expanded_devices = devices;
    Ok(())
}

pub fn instance_etag(instance: &Instance) -> String {
    let config: BTreeMap<_, _> = instance.config.iter().collect();
    let devices: BTreeMap<_, _> = instance
        .devices
        .iter()
        .map(|(name, d)| (name, d.options.iter().collect::<BTreeMap<_, _>>()))
        .collect();
    let text = format!(
        "{}{config:?}{devices:?}{:?}{}",
        instance.description, instance.profiles, instance.ephemeral
    );
    etag([text.as_str()])
}

fn get<'a>(options: &'a Options, key: &str) -> &'a str {
    options.get(key).map_or("", String::as_str)
}

fn volumes(instance: &Instance) -> BTreeMap<String, NeededVolume> {
    instance
        .expanded_devices
        .iter()
        .filter(|(_, d)| get(&d.options, "type") == "disk" && !get(&d.options, "pool").is_empty())
        .map(|(device, d)| {
            let root = get(&d.options, "path") == "/";
            let size = get(&d.options, "size");
            let config = (root && !size.is_empty())
                .then(|| ("size".to_owned(), size.to_owned()))
                .into_iter()
                .collect();
            let volume = NeededVolume {
                device: device.clone(),
                pool: get(&d.options, "pool").to_owned(),
                root,
                volume: get(&d.options, "source").to_owned(),
                config,
            };
            (device.clone(), volume)
        })
        .collect()
}

fn ports(instance: &Instance) -> BTreeMap<String, NeededPort> {
    instance
        .expanded_devices
        .iter()
        .filter(|(_, d)| get(&d.options, "type") == "nic")
        .map(|(device, d)| {
            let elsewhere = ["type", "network", "name", "hwaddr"];
            let config = d
                .options
                .iter()
                .filter(|(key, _)| !elsewhere.contains(&key.as_str()))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            let port = NeededPort {
                device: device.clone(),
                network: get(&d.options, "network").to_owned(),
                port_id: format!("{}-{device}", instance.uid),
                mac: "00:16:3e:00:00:02".into(),
                guest_name: get(&d.options, "name").to_owned(),
                hostname: last(&instance.name),
                config,
            };
            (device.clone(), port)
        })
        .collect()
}

/// What getting from `old` to `new` needs. `old` is `None` for an instance to be.
pub fn plan(
    old: Option<&Instance>,
    new: Instance,
    plan_etag: String,
) -> Result<InstancePlan, Error> {
    let (new_volumes, new_ports) = (volumes(&new), ports(&new));
    if !new_volumes.values().any(|volume| volume.root) {
        return Err(Error::invalid("devices", "No root device could be found"));
    }
    let (old_volumes, old_ports) = match old {
        Some(old) => (volumes(old), ports(old)),
        None => Default::default(),
    };
    let mut plan = InstancePlan {
        plan_etag,
        ..InstancePlan::default()
    };
    let same = |a: &NeededVolume, b: &NeededVolume| {
        (&a.pool, a.root, &a.volume) == (&b.pool, b.root, &b.volume)
    };
    for (device, volume) in &new_volumes {
        match old_volumes.get(device) {
            Some(before) if same(before, volume) => {
                if before.config != volume.config {
                    plan.volume_changes.push(VolumeChange {
                        device: device.clone(),
                        volume: old
                            .and_then(|old| old.attachments.get(device))
                            .map(|a| a.volume.clone())
                            .unwrap_or_default(),
                        config: volume.config.clone(),
                    });
                }
            }
            Some(before) if before.root || volume.root => {
                return Err(Error::invalid(
                    "devices",
                    "Cannot update root disk device pool name",
                ));
            }
            _ => plan.needed_volumes.push(volume.clone()),
        }
    }
    for (device, port) in &new_ports {
        match old_ports.get(device) {
            Some(before) if before.network == port.network => {
                if before != port {
                    plan.changed_ports.push(port.clone());
                }
            }
            _ => plan.needed_ports.push(port.clone()),
        }
    }
    if let Some(old) = old {
        for (device, volume) in &old_volumes {
            if !new_volumes.get(device).is_some_and(|now| same(volume, now)) {
                plan.surplus_volumes.push(SurplusVolume {
                    device: device.clone(),
                    attachment: old.attachments.get(device).cloned(),
                    root: volume.root,
                });
            }
        }
        for (device, port) in &old_ports {
            let kept = new_ports
                .get(device)
                .is_some_and(|now| now.network == port.network);
            if !kept {
                plan.surplus_ports.push(SurplusPort {
                    device: device.clone(),
                    port: old.ports.get(device).cloned(),
                });
            }
        }
    }
    plan.instance = Some(new);
    Ok(plan)
}
