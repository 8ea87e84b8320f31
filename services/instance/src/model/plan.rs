//! What a configuration needs of storage and network, and the difference between two of them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::device::{self, option};
use super::expand::Expanded;
use super::keys::Config;
use super::record::{Device, Devices};
use crate::Error;

/// A volume that a disk device uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedVolume {
    pub pool: String,
    pub root: bool,
    /// Custom volume's name when not root.
    pub volume: String,
    /// Volume config of the root disk, e.g. `size`.
    pub config: BTreeMap<String, String>,
}

/// A port that a nic device uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPort {
    /// Managed network; empty for an unmanaged parent.
    pub network: String,
    pub port_id: String,
    pub mac: String,
    pub guest_name: String,
    pub hostname: String,
    /// The device's options for the network service.
    pub config: BTreeMap<String, String>,
}

/// Everything outside that a configuration uses, by device name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    pub volumes: BTreeMap<String, WantedVolume>,
    pub ports: BTreeMap<String, WantedPort>,
}

/// What `uid`, named `name`, uses with this configuration.
pub fn wanted(uid: &str, name: &str, config: &Config, expanded: &Expanded) -> Wanted {
    let mut wanted = Wanted::default();
    for (device_name, options) in expanded.active() {
        match option(options, "type") {
            "disk" if device::is_pool_disk(options) => {
                wanted.volumes.insert(device_name.clone(), volume(options));
            }
            "nic" => {
                let port = port(uid, name, device_name, options, config);
                wanted.ports.insert(device_name.clone(), port);
            }
            _ => {}
        }
    }
    wanted
}

fn volume(options: &Device) -> WantedVolume {
    let root = device::is_root(options);
    let mut config = BTreeMap::new();
    if root && !option(options, "size").is_empty() {
        config.insert("size".to_owned(), option(options, "size").to_owned());
    }
    WantedVolume {
        pool: option(options, "pool").to_owned(),
        root,
        volume: if root {
            String::new()
        } else {
            option(options, "source").to_owned()
        },
        config,
    }
}

fn port(uid: &str, name: &str, device_name: &str, options: &Device, config: &Config) -> WantedPort {
    let volatile = |what: &str| {
        config
            .get(&format!("volatile.{device_name}.{what}"))
            .cloned()
            .unwrap_or_default()
    };
    let own = |key: &str, fallback: &str| match option(options, key) {
        "" => volatile(fallback),
        text => text.to_owned(),
    };
    let elsewhere = ["type", "network", "name", "hwaddr", "boot.priority"];
    let rest = options.iter().filter(|(k, v)| {
        !elsewhere.contains(&k.as_str()) && !k.starts_with("user.") && !v.is_empty()
    });
    WantedPort {
        network: option(options, "network").to_owned(),
        port_id: format!("{uid}-{}", berth_rpc::names::encode_segment(device_name)),
        mac: own("hwaddr", "hwaddr").to_ascii_lowercase(),
        guest_name: own("name", "name"),
        hostname: name.to_owned(),
        config: rest.map(|(k, v)| (k.clone(), v.clone())).collect(),
    }
}

impl WantedPort {
    /// Whether a port can be turned into the other by an update.
    fn same_link(&self, other: &WantedPort) -> bool {
        let parent = |p: &WantedPort| {
            let get = |k: &str| p.config.get(k).cloned().unwrap_or_default();
            (
                p.network.clone(),
                get("nictype"),
                get("parent"),
                get("host_name"),
            )
        };
        parent(self) == parent(other)
    }
}

impl WantedVolume {
    fn same_volume(&self, other: &WantedVolume) -> bool {
        (&self.pool, self.root, &self.volume) == (&other.pool, other.root, &other.volume)
    }
}

/// What must be made, changed and removed to get from one to the other, as device names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    pub needed_volumes: BTreeSet<String>,
    pub changed_volumes: BTreeSet<String>,
    pub surplus_volumes: BTreeSet<String>,
    pub needed_ports: BTreeSet<String>,
    pub changed_ports: BTreeSet<String>,
    pub surplus_ports: BTreeSet<String>,
}

/// The instance's own root volume never moves to another pool by an update.
pub fn difference(old: &Wanted, new: &Wanted) -> Result<Difference, Error> {
    let mut diff = Difference::default();
    for (name, volume) in &new.volumes {
        match old.volumes.get(name) {
            Some(before) if before.same_volume(volume) => {
                if before.config != volume.config {
                    diff.changed_volumes.insert(name.clone());
                }
            }
            _ => {
                diff.needed_volumes.insert(name.clone());
            }
        }
    }
    for (name, volume) in &old.volumes {
        if !new
            .volumes
            .get(name)
            .is_some_and(|after| after.same_volume(volume))
        {
            diff.surplus_volumes.insert(name.clone());
        }
    }
    keep_root(old, new, &mut diff)?;
    for (name, port) in &new.ports {
        match old.ports.get(name) {
            Some(before) if before.same_link(port) => {
                if before != port {
                    diff.changed_ports.insert(name.clone());
                }
            }
            _ => {
                diff.needed_ports.insert(name.clone());
            }
        }
    }
    for (name, port) in &old.ports {
        if !new
            .ports
            .get(name)
            .is_some_and(|after| after.same_link(port))
        {
            diff.surplus_ports.insert(name.clone());
        }
    }
    Ok(diff)
}

/// A root disk under another device name (a profile's `root` overridden by `disk0`) is the same volume.
fn keep_root(old: &Wanted, new: &Wanted, diff: &mut Difference) -> Result<(), Error> {
    let root = |wanted: &Wanted| {
        wanted
            .volumes
            .iter()
            .find(|(_, v)| v.root)
            .map(|(n, v)| (n.clone(), v.clone()))
    };
    let (Some((old_name, old_root)), Some((new_name, new_root))) = (root(old), root(new)) else {
        return Ok(());
    };
    if old_root.pool != new_root.pool {
        return Err(Error::invalid(
            format!("devices.{new_name}.pool"),
            "Cannot update root disk device pool name",
        ));
    }
    if old_name != new_name {
        diff.needed_volumes.remove(&new_name);
        diff.surplus_volumes.remove(&old_name);
        if old_root.config != new_root.config {
            diff.changed_volumes.insert(new_name);
        }
    }
    Ok(())
}

/// Gives every nic a name in the guest and a MAC, kept in `volatile.<device>.*`; forgets those of devices
/// that are gone. `new_mac` gives a fresh address.
pub fn fill_volatile(config: &mut Config, devices: &Devices, mut new_mac: impl FnMut() -> String) {
    let nics: Vec<(&String, &Device)> = devices
        .iter()
        .filter(|(_, d)| option(d, "type") == "nic")
        .collect();
    let is_nic = |name: &str| nics.iter().any(|(n, _)| n.as_str() == name);
    config.retain(|key, _| match volatile_device(key) {
        Some((device, what)) => is_nic(device) || !matches!(what, "hwaddr" | "name" | "host_name"),
        None => true,
    });
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for (name, device) in &nics {
        let volatile = config.get(&format!("volatile.{name}.name"));
        let own = option(device, "name");
        if !own.is_empty() {
            taken.insert(own.to_owned());
        } else if let Some(name) = volatile {
            taken.insert(name.clone());
        }
    }
    for (name, device) in &nics {
        let mac_key = format!("volatile.{name}.hwaddr");
        if option(device, "hwaddr").is_empty() {
            config.entry(mac_key).or_insert_with(&mut new_mac);
        } else {
            config.remove(&mac_key);
        }
        let name_key = format!("volatile.{name}.name");
        if !option(device, "name").is_empty() {
            config.remove(&name_key);
        } else if let Entry::Vacant(vacant) = config.entry(name_key) {
            let free = (0..)
                .map(|n| format!("eth{n}"))
                .find(|n| !taken.contains(n));
            let free = free.unwrap_or_else(|| "eth0".to_owned());
            taken.insert(free.clone());
            vacant.insert(free);
        }
    }
}

/// Device and rest of `volatile.<device>.<rest>` where the rest is a device's.
pub fn volatile_device(key: &str) -> Option<(&str, &str)> {
    let rest = key.strip_prefix("volatile.")?;
    ["hwaddr", "host_name", "name", "apply_quota"]
        .into_iter()
        .find_map(|what| {
            rest.strip_suffix(what)?
                .strip_suffix('.')
                .map(|device| (device, what))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::expand::expand;

    fn device(options: &[(&str, &str)]) -> Device {
        options
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn of(devices: &Devices, config: &mut Config) -> Wanted {
        let expanded = expand([], config, devices);
        let mut n = 0;
        fill_volatile(config, &expanded.devices, || {
            n += 1;
            format!("00:16:3e:00:00:{n:02x}")
        });
        wanted("u", "c1", config, &expanded)
    }

    #[test]
    fn nics_get_names_and_addresses_that_stay() {
        let mut config = Config::new();
        let mut devices = Devices::from([
            ("a".to_owned(), device(&[("type", "nic"), ("network", "n")])),
            (
                "b".to_owned(),
                device(&[("type", "nic"), ("network", "n"), ("name", "eth0")]),
            ),
        ]);
        let first = of(&devices, &mut config);
        assert_eq!(first.ports["a"].guest_name, "eth1");
        assert_eq!(first.ports["b"].guest_name, "eth0");
        assert_eq!(of(&devices, &mut config), first);
        devices.remove("a");
        of(&devices, &mut config);
        assert!(!config.contains_key("volatile.a.hwaddr"));
    }

    #[test]
    fn differences_keep_identity() {
        let mut config = Config::new();
        let root = |size: &str| {
            device(&[
                ("type", "disk"),
                ("path", "/"),
                ("pool", "p"),
                ("size", size),
            ])
        };
        let old = Devices::from([
            ("root".to_owned(), root("1GiB")),
            (
                "eth0".to_owned(),
                device(&[("type", "nic"), ("network", "n")]),
            ),
        ]);
        let mut new = old.clone();
        let before = of(&old, &mut config);
        assert_eq!(difference(&before, &before).unwrap(), Difference::default());
        new.insert("root".into(), root("2GiB"));
        new.insert("eth0".into(), device(&[("type", "nic"), ("network", "m")]));
        new.insert(
            "data".into(),
            device(&[
                ("type", "disk"),
                ("path", "/d"),
                ("pool", "p"),
                ("source", "v"),
            ]),
        );
        let diff = difference(&before, &of(&new, &mut config)).unwrap();
        assert!(diff.changed_volumes.contains("root") && diff.needed_volumes.contains("data"));
        assert!(diff.needed_ports.contains("eth0") && diff.surplus_ports.contains("eth0"));
        new.remove("root");
        new.insert("disk0".into(), root("2GiB"));
        let diff = difference(&before, &of(&new, &mut config)).unwrap();
        assert!(!diff.needed_volumes.contains("disk0") && diff.changed_volumes.contains("disk0"));
        new.insert(
            "disk0".into(),
            device(&[("type", "disk"), ("path", "/"), ("pool", "q")]),
        );
        assert!(difference(&before, &of(&new, &mut config)).is_err());
    }
}
