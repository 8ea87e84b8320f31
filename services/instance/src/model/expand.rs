//! Expansion: profiles in order, then the instance's own; devices override whole by name.

use super::keys::Config;
use super::record::{Devices, Profile};

/// An instance's effective configuration.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Expanded {
    pub config: Config,
    /// With `none` devices, which mask a profile's device of their name.
    pub devices: Devices,
}

/// `profiles` in the order in which they apply.
pub fn expand<'a>(
    profiles: impl IntoIterator<Item = &'a Profile>,
    config: &Config,
    devices: &Devices,
) -> Expanded {
    let mut all = Expanded::default();
    for profile in profiles {
        all.config.extend(profile.config.clone());
        all.devices.extend(profile.devices.clone());
    }
    all.config.extend(config.clone());
    all.config.retain(|_, value| !value.is_empty());
    all.devices.extend(devices.clone());
    all
}

impl Expanded {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.config.get(key).map(String::as_str)
    }

    pub fn is_true(&self, key: &str) -> bool {
        super::value::is_true(self.config.get(key))
    }

    pub fn privileged(&self) -> bool {
        self.is_true("security.privileged")
    }

    /// Devices that do something.
    pub fn active(&self) -> impl Iterator<Item = (&String, &super::record::Device)> {
        self.devices
            .iter()
            .filter(|(_, d)| d.get("type").is_some_and(|t| t != "none"))
    }

    /// The disk at `/`.
    pub fn root_disk(&self) -> Option<(&String, &super::record::Device)> {
        self.active()
            .find(|(_, device)| super::device::is_root(device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::Device;

    fn device(kind: &str, extra: &str) -> Device {
        Device::from([("type".into(), kind.into()), ("x".into(), extra.into())])
    }

    #[test]
    fn later_wins_and_none_masks() {
        let profile = |name: &str, cpu: &str| Profile {
            uid: name.into(),
            project: "default".into(),
            name: name.into(),
            description: String::new(),
            config: Config::from([
                ("limits.cpu".into(), cpu.into()),
                (format!("user.{name}"), "1".into()),
            ]),
            devices: Devices::from([("eth0".into(), device("nic", name))]),
        };
        let profiles = [profile("a", "1"), profile("b", "2")];
        let own = Config::from([("user.a".to_owned(), String::new())]);
        let devices = Devices::from([("eth0".to_owned(), device("none", ""))]);
        let expanded = expand(&profiles, &own, &devices);
        assert_eq!(expanded.get("limits.cpu"), Some("2"));
        assert_eq!(expanded.get("user.a"), None);
        assert_eq!(expanded.get("user.b"), Some("1"));
        assert_eq!(expanded.active().count(), 0);
    }
}
