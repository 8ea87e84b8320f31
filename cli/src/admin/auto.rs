//! What `--auto` chooses, from what the server has.

use anyhow::bail;
use serde::Deserialize;

use super::Init;
use super::preseed::{Config, Network, Pool, Preseed, Profile};
use crate::rest::Server;

/// Name of the pool that is made when nobody says.
pub(crate) const DEFAULT_POOL: &str = "default";
/// Name of the bridge that is made when nobody says.
pub(crate) const DEFAULT_BRIDGE: &str = "berthbr0";

/// What the server has already, as far as the choices depend on it.
#[derive(Debug, Default)]
pub(crate) struct Present {
    /// Names of pools.
    pub pools: Vec<String>,
    /// Names of managed networks.
    pub managed: Vec<String>,
    /// Names of every link, managed or not.
    pub links: Vec<String>,
    /// Drivers of pools the server can make.
    pub drivers: Vec<String>,
    /// Device names of the default profile.
    pub devices: Vec<String>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    managed: bool,
}

#[derive(Deserialize)]
struct ServerInfo {
    environment: Environment,
}

#[derive(Deserialize)]
struct Environment {
    #[serde(default)]
    storage_supported_drivers: Vec<Driver>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Driver {
    name: String,
    #[serde(default)]
    remote: bool,
}

#[derive(Deserialize)]
struct DefaultProfile {
    #[serde(default)]
    devices: std::collections::BTreeMap<String, Config>,
}

impl Present {
    /// Asks the server.
    pub(crate) async fn read(server: &Server) -> anyhow::Result<Self> {
        let info = server.get::<ServerInfo>("/1.0").await?.value;
        let pools = server
            .get::<Vec<Named>>("/1.0/storage-pools?recursion=1")
            .await?
            .value;
        let networks = server
            .get::<Vec<Named>>("/1.0/networks?recursion=1")
            .await?
            .value;
        let profile = server
            .get::<DefaultProfile>("/1.0/profiles/default")
            .await?
            .value;
        let names = |list: &[Named], wanted: fn(&Named) -> bool| {
            list.iter()
                .filter(|item| wanted(item))
                .map(|item| item.name.clone())
                .collect::<Vec<_>>()
        };
        Ok(Self {
            pools: names(&pools, |_| true),
            managed: names(&networks, |network| network.managed),
            links: names(&networks, |_| true),
            drivers: info
                .environment
                .storage_supported_drivers
                .into_iter()
                .filter(|driver| !driver.remote)
                .map(|driver| driver.name)
                .collect(),
            devices: profile.devices.into_keys().collect(),
        })
    }

    /// The driver for a pool when nobody names one: snapshots and clones cost nothing on btrfs.
    pub(crate) fn best_driver(&self) -> &str {
        let has = |name: &str| self.drivers.iter().any(|driver| driver == name);
        if has("btrfs") { "btrfs" } else { "dir" }
    }

    /// A name no link has yet, beginning with the one usually taken.
    pub(crate) fn free_bridge(&self) -> String {
        let stem = DEFAULT_BRIDGE.trim_end_matches('0');
        (0..)
            .map(|n| format!("{stem}{n}"))
            .find(|name| !self.links.contains(name))
            .unwrap_or_else(|| DEFAULT_BRIDGE.to_owned())
    }
}

/// The preseed that `--auto` stands for. Empty where the server has all of it.
///
/// # Errors
/// When a flag names what the server does not have.
pub(crate) fn choose(flags: &Init, present: &Present) -> anyhow::Result<Preseed> {
    let mut preseed = Preseed::default();
    let mut profile = Profile {
        name: "default".into(),
        ..Profile::default()
    };
    let named = flags.storage_pool.as_deref();
    let pool = named.unwrap_or(DEFAULT_POOL);
    let use_pool = if present.pools.iter().any(|name| name == pool) {
        if flags.storage_backend.is_some() || flags.storage_create_device.is_some() {
            bail!("storage pool {pool:?} exists already");
        }
        named.is_some()
    } else if present.pools.is_empty() || named.is_some() {
        preseed.storage_pools.push(new_pool(flags, present, pool)?);
        true
    } else {
        false
    };
    if use_pool && !present.devices.iter().any(|name| name == "root") {
        profile.devices.insert("root".into(), root_disk(pool));
    }
    let bridge = match &flags.network_bridge {
        Some(name) if present.managed.contains(name) => None,
        Some(name) => Some(name.clone()),
        None if present.managed.is_empty() => Some(present.free_bridge()),
        None => None,
    };
    if let Some(name) = bridge {
        if !present.devices.iter().any(|device| device == "eth0") {
            profile.devices.insert("eth0".into(), nic(&name));
        }
        preseed.networks.push(new_bridge(&name, "auto", "auto"));
    }
    if !profile.devices.is_empty() {
        preseed.profiles.push(profile);
    }
    Ok(preseed)
}

fn new_pool(flags: &Init, present: &Present, name: &str) -> anyhow::Result<Pool> {
    let driver = match &flags.storage_backend {
        Some(driver) if !present.drivers.contains(driver) => bail!(
            "the server has no storage driver {driver:?}; it has {}",
            present.drivers.join(", ")
        ),
        Some(driver) => driver.as_str(),
        None => present.best_driver(),
    };
    let mut config = Config::new();
    if let Some(device) = &flags.storage_create_device {
        if driver == "dir" {
            bail!("--storage-create-device is of no use to the dir driver");
        }
        config.insert("source".into(), device.clone());
    }
    if let Some(size) = flags.storage_create_loop {
        if driver == "dir" {
            bail!("--storage-create-loop is of no use to the dir driver");
        }
        config.insert("size".into(), format!("{size}GiB"));
    }
    Ok(Pool {
        name: name.to_owned(),
        driver: driver.to_owned(),
        config,
        ..Pool::default()
    })
}

/// A root disk on `pool`.
pub(crate) fn root_disk(pool: &str) -> Config {
    Config::from([
        ("type".into(), "disk".into()),
        ("path".into(), "/".into()),
        ("pool".into(), pool.to_owned()),
    ])
}

/// A first network interface on `network`.
pub(crate) fn nic(network: &str) -> Config {
    Config::from([
        ("type".into(), "nic".into()),
        ("name".into(), "eth0".into()),
        ("network".into(), network.to_owned()),
    ])
}

/// A bridge with the given addresses: CIDR, `auto` or `none`.
pub(crate) fn new_bridge(name: &str, ipv4: &str, ipv6: &str) -> Network {
    Network {
        name: name.to_owned(),
        kind: "bridge".into(),
        config: Config::from([
            ("ipv4.address".into(), ipv4.to_owned()),
            ("ipv6.address".into(), ipv6.to_owned()),
        ]),
        ..Network::default()
    }
}
