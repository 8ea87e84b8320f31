//! What changing a configuration means for a guest that runs.

use std::collections::BTreeSet;

use super::device::{self, option};
use super::expand::Expanded;
use super::keys::{self, Change};
use super::record::{Device, Instance};
use crate::Error;

/// Steps for a running guest, as device names; removals come first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LiveChange {
    pub limits: bool,
    pub remove_mounts: BTreeSet<String>,
    pub add_mounts: BTreeSet<String>,
    pub remove_nics: BTreeSet<String>,
    pub add_nics: BTreeSet<String>,
    pub remove_nodes: BTreeSet<String>,
    pub add_nodes: BTreeSet<String>,
}

impl LiveChange {
    /// Nothing for the running guest itself; its next run may still differ.
    pub fn is_empty(&self) -> bool {
        *self == LiveChange::default()
    }
}

/// Keys whose value differs, set and unset ones.
pub fn changed_keys(old: &Expanded, new: &Expanded) -> BTreeSet<String> {
    let all = old.config.keys().chain(new.config.keys());
    all.filter(|k| old.config.get(*k) != new.config.get(*k))
        .cloned()
        .collect()
}

/// From one committed state to the next. Errors name a key that cannot change while the guest runs.
pub fn live_change(
    old: (&Instance, &Expanded),
    new: (&Instance, &Expanded),
) -> Result<LiveChange, Error> {
    let mut change = LiveChange::default();
    for key in changed_keys(old.1, new.1) {
        if keys::change(&key) == Change::Stopped {
            let why = format!("The key {key:?} cannot be changed while the instance is running");
            return Err(Error::invalid(format!("config.{key}"), why));
        }
        change.limits |= keys::is_limit(&key);
    }
    if old.0.architecture != new.0.architecture {
        let why = "The architecture cannot be changed while the instance is running";
        return Err(Error::invalid("architecture", why));
    }
    let names: BTreeSet<&String> = old.1.devices.keys().chain(new.1.devices.keys()).collect();
    for name in names {
        let before = old
            .1
            .devices
            .get(name)
            .filter(|d| option(d, "type") != "none");
        let after = new
            .1
            .devices
            .get(name)
            .filter(|d| option(d, "type") != "none");
        let same = before == after
            && old.0.ports.get(name).map(link_of) == new.0.ports.get(name).map(link_of)
            && old.0.attachments.get(name) == new.0.attachments.get(name);
        if !same {
            device_change(name, before, after, &mut change);
        }
    }
    Ok(change)
}

/// What of a port makes the link; the rest is the network's business alone.
fn link_of(
    port: &super::attachment::Port,
) -> (super::attachment::PortKind, [&str; 5], u32, &[String]) {
    let names = [
        &port.host_name,
        &port.guest_name,
        &port.mac,
        &port.parent,
        &port.host_mac,
    ];
    (port.kind, names.map(String::as_str), port.mtu, &port.routes)
}

fn device_change(
    name: &str,
    before: Option<&Device>,
    after: Option<&Device>,
    change: &mut LiveChange,
) {
    if let Some(device) = before {
        match option(device, "type") {
            "disk" if !device::is_root(device) => {
                change.remove_mounts.insert(name.to_owned());
            }
            "nic" => {
                change.remove_nics.insert(name.to_owned());
            }
            "unix-char" | "unix-block" => {
                change.remove_nodes.insert(name.to_owned());
            }
            _ => {}
        }
    }
    if let Some(device) = after {
        match option(device, "type") {
            "disk" if !device::is_root(device) => {
                change.add_mounts.insert(name.to_owned());
            }
            "nic" => {
                change.add_nics.insert(name.to_owned());
            }
            "unix-char" | "unix-block" => {
                change.add_nodes.insert(name.to_owned());
            }
            _ => {}
        }
    }
}

/// Keys that only this service writes.
fn is_own(key: &str) -> bool {
    const OWN: [&str; 6] = [
        "volatile.uuid",
        "volatile.base_image",
        "volatile.apply_template",
        "volatile.cloud-init.instance-id",
        "volatile.last_state.",
        "volatile.idmap.",
    ];
    let own = |o: &&str| key == *o || (o.ends_with('.') && key.starts_with(*o));
    OWN.iter().any(own) || (key.starts_with("volatile.") && key.ends_with(".host_name"))
}

/// A client's new configuration with the service's own keys as they are. Changing an id map is refused.
pub fn keep_own_keys(old: &keys::Config, new: &mut keys::Config) -> Result<(), Error> {
    for (key, value) in new.iter() {
        let idmap = key.starts_with("volatile.idmap.") || key == "volatile.last_state.idmap";
        if idmap && old.get(key).is_some_and(|before| before != value) {
            let why = "Volatile idmap keys can't be changed by the user";
            return Err(Error::invalid(format!("config.{key}"), why));
        }
    }
    new.retain(|key, value| !is_own(key) && !value.is_empty());
    new.extend(
        old.iter()
            .filter(|(k, _)| is_own(k))
            .map(|(k, v)| (k.clone(), v.clone())),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::keys::Config;

    #[test]
    fn own_keys_stay_whatever_a_client_puts() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let old = Config::from([
            pair("volatile.uuid", "1"),
            pair("volatile.eth0.hwaddr", "a"),
            pair("user.x", "1"),
        ]);
        let mut new = Config::from([
            pair("volatile.uuid", "2"),
            pair("user.y", "1"),
            pair("user.z", ""),
        ]);
        keep_own_keys(&old, &mut new).unwrap();
        assert_eq!(
            new,
            Config::from([pair("volatile.uuid", "1"), pair("user.y", "1")])
        );
        let old = Config::from([pair("volatile.idmap.base", "1")]);
        assert!(
            keep_own_keys(&old, &mut Config::from([pair("volatile.idmap.base", "0")])).is_err()
        );
    }

    #[test]
    fn only_differences_are_applied() {
        let mut old = Expanded::default();
        old.config.insert("limits.cpu".into(), "1".into());
        let disk = |source: &str| {
            Device::from([
                ("type".into(), "disk".into()),
                ("path".into(), "/x".into()),
                ("source".into(), source.into()),
            ])
        };
        old.devices.insert("d".into(), disk("/a"));
        let mut new = old.clone();
        assert_eq!(changed_keys(&old, &new).len(), 0);
        new.config.insert("limits.cpu".into(), "2".into());
        new.devices.insert("d".into(), disk("/b"));
        assert_eq!(
            changed_keys(&old, &new).into_iter().collect::<Vec<_>>(),
            ["limits.cpu"]
        );
    }
}
