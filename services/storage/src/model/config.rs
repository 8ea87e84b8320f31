//! Configuration keys of pools and volumes, in one table. A key that isn't here is refused by name.

use std::collections::BTreeMap;

use berth_rpc::Error;

use super::size;

/// A configuration, ordered so that its etag is stable.
pub type Config = BTreeMap<String, String>;

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Size,
    Text,
    /// Blank-separated `<n>S|M|H|d|w|m|y`.
    Expiry,
    /// Five fields of cron, or `@hourly` and its like; several joined by `, `.
    Schedule,
    /// Text with one `%d`, or a time.
    Pattern,
    /// Filesystem options joined by commas.
    MountOptions,
    /// Known to LXD, not done by this build: only empty is accepted.
    NotYet,
}

/// Keys of every pool.
const POOL: &[(&str, Kind)] = &[
    ("source", Kind::Text),
    ("volatile.initial_source", Kind::Text),
    ("rsync.bwlimit", Kind::Size),
    ("rsync.compression", Kind::Bool),
    ("source.wipe", Kind::NotYet),
    ("source.recover", Kind::NotYet),
];

/// Further keys of a btrfs pool.
const POOL_BTRFS: &[(&str, Kind)] = &[
    ("size", Kind::Size),
    ("btrfs.mount_options", Kind::MountOptions),
];

/// Keys of every volume; in a pool's configuration they stand behind `volume.`.
const VOLUME: &[(&str, Kind)] = &[
    ("size", Kind::Size),
    ("snapshots.expiry", Kind::Expiry),
    ("snapshots.pattern", Kind::Pattern),
    ("snapshots.schedule", Kind::Schedule),
];

/// Further keys of custom volumes that hold files.
const VOLUME_CUSTOM: &[(&str, Kind)] = &[
    ("security.shifted", Kind::Bool),
    ("security.unmapped", Kind::Bool),
];

/// Keys that only services write.
const VOLUME_VOLATILE: &[&str] = &[
    "volatile.idmap.last",
    "volatile.idmap.next",
    "volatile.rootfs.size",
    "volatile.uuid",
];

/// Whether a text is one of LXD's booleans, and which.
pub fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" | "" => Some(false),
        _ => None,
    }
}

fn unknown(key: &str) -> Error {
    Error::invalid(
        format!("config.{key}"),
        format!("Unknown configuration key: {key}"),
    )
}

fn check_value(key: &str, kind: Kind, value: &str) -> Result<(), Error> {
    let bad = |what: &str| {
        Err(Error::invalid(
            format!("config.{key}"),
            format!("Invalid value {value:?} for {key:?}: {what}"),
        ))
    };
    if value.len() > 4096 || value.chars().any(char::is_control) {
        return bad("it is too long or holds a control character");
    }
    if value.is_empty() {
        return Ok(());
    }
    match kind {
        Kind::Bool if boolean(value).is_none() => bad("it is not a boolean"),
        Kind::Size if size::parse(value).is_none() => bad("it is not a size such as 10GiB"),
        Kind::Expiry if !is_expiry(value) => bad("it is not an expiry such as 1w 2d"),
        Kind::Schedule if !is_schedule(value) => bad("it is not a schedule such as @daily"),
        Kind::Pattern if berth_schedule::check_pattern(value).is_err() => {
            bad("it is not a pattern such as snap%d")
        }
        Kind::MountOptions if mount_options(value).is_err() => {
            bad("device, subvolume and propagation options are not the pool's to give")
        }
        Kind::NotYet => Err(Error::unimplemented(format!(
            "configuration key {key} is not supported by this build"
        ))),
        Kind::Bool
        | Kind::Size
        | Kind::Text
        | Kind::Expiry
        | Kind::Schedule
        | Kind::Pattern
        | Kind::MountOptions => Ok(()),
    }
}

fn is_expiry(value: &str) -> bool {
    berth_schedule::after(value, chrono::DateTime::UNIX_EPOCH).is_ok()
}

fn is_schedule(value: &str) -> bool {
    berth_schedule::Schedule::parse(value).is_ok()
}

/// Filesystem options of `btrfs.mount_options`.
/// Those that would reach another device or another subvolume are refused.
pub fn mount_options(value: &str) -> Result<Vec<String>, Error> {
    let mut out = Vec::new();
    for option in value.split(',').map(str::trim).filter(|o| !o.is_empty()) {
        let key = option.split('=').next().unwrap_or(option);
        if matches!(
            key,
            "device" | "subvol" | "subvolid" | "source" | "ro" | "rw" | "degraded" | "bind"
        ) {
            return Err(Error::invalid(
                "config.btrfs.mount_options",
                format!("mount option {option:?} may not be set"),
            ));
        }
        out.push(option.to_owned());
    }
    Ok(out)
}

/// Checks a pool's configuration.
pub fn check_pool(driver: &str, config: &Config) -> Result<(), Error> {
    for (key, value) in config {
        if key.starts_with("user.") {
            continue;
        }
        if let Some(volume_key) = key.strip_prefix("volume.") {
            let kind = find(VOLUME, volume_key).or_else(|| find(VOLUME_CUSTOM, volume_key));
            check_value(key, kind.ok_or_else(|| unknown(key))?, value)?;
            continue;
        }
        let kind = find(POOL, key)
            .or_else(|| find(POOL_BTRFS, key).filter(|_| driver == "btrfs"))
            .ok_or_else(|| unknown(key))?;
        check_value(key, kind, value)?;
    }
    Ok(())
}

/// Checks a volume's configuration.
pub fn check_volume(collection: &str, config: &Config) -> Result<(), Error> {
    for (key, value) in config {
        if key.starts_with("user.") {
            continue;
        }
        if VOLUME_VOLATILE.contains(&key.as_str()) {
            check_value(key, Kind::Text, value)?;
            continue;
        }
        let kind = find(VOLUME, key)
            .or_else(|| find(VOLUME_CUSTOM, key).filter(|_| collection == "custom"))
            .ok_or_else(|| unknown(key))?;
        check_value(key, kind, value)?;
    }
    let on = |key: &str| config.get(key).and_then(|v| boolean(v)) == Some(true);
    if on("security.shifted") && on("security.unmapped") {
        return Err(Error::invalid(
            "config.security.shifted",
            "security.shifted and security.unmapped exclude each other",
        ));
    }
    Ok(())
}

fn find(table: &[(&str, Kind)], key: &str) -> Option<Kind> {
    table.iter().find(|(k, _)| *k == key).map(|(_, kind)| *kind)
}

/// The keys of a pool that can't change once it is made.
pub const POOL_FIXED: [&str; 2] = ["source", "volatile.initial_source"];

/// A volume's configuration with the pool's defaults for keys that it doesn't set.
pub fn with_defaults(pool: &Config, collection: &str, config: &Config) -> Config {
    let mut out = config.clone();
    for (key, value) in pool {
        let Some(key) = key.strip_prefix("volume.") else {
            continue;
        };
        let fits = find(VOLUME, key).is_some() || collection == "custom";
        // Snapshots of instances are scheduled by the instance's own keys; images have no limits.
        let wanted = match collection {
            "custom" => true,
            "images" => false,
            _ => key == "size",
        };
        if fits && wanted && !value.is_empty() && !out.contains_key(key) {
            out.insert(key.to_owned(), value.clone());
        }
    }
    out
}

/// The limit that `size` sets, in bytes; `None` = none.
pub fn limit(config: &Config) -> Option<u64> {
    config
        .get("size")
        .and_then(|s| size::parse(s))
        .filter(|b| *b > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(pairs: &[(&str, &str)]) -> Config {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn unknown_keys_are_named() {
        let error = check_pool("dir", &config(&[("zfs.pool_name", "x")])).unwrap_err();
        assert_eq!(error.message, "Unknown configuration key: zfs.pool_name");
        assert_eq!(error.fields[0].field, "config.zfs.pool_name");
        assert!(check_pool("dir", &config(&[("size", "1GiB")])).is_err());
        assert!(check_pool("btrfs", &config(&[("size", "1GiB")])).is_ok());
        assert!(check_volume("containers", &config(&[("security.shifted", "true")])).is_err());
        assert!(check_volume("custom", &config(&[("security.shifted", "true")])).is_ok());
        assert!(check_volume("custom", &config(&[("user.note", "x")])).is_ok());
        assert!(check_pool("dir", &config(&[("volume.nonsense", "x")])).is_err());
    }

    #[test]
    fn values_are_checked() {
        for (key, bad) in [
            ("size", "lots"),
            ("snapshots.expiry", "1w 2w"),
            ("snapshots.schedule", "* * *"),
            ("snapshots.pattern", "a\nb"),
            ("security.shifted", "perhaps"),
        ] {
            assert!(
                check_volume("custom", &config(&[(key, bad)])).is_err(),
                "{key}={bad}"
            );
        }
        let good = [
            ("size", "10GiB"),
            ("snapshots.expiry", "1w 2d"),
            ("snapshots.schedule", "@daily, 0 6 * * *"),
        ];
        assert!(check_volume("custom", &config(&good)).is_ok());
        assert!(mount_options("noatime,compress=zstd:3").is_ok());
        assert!(mount_options("device=/dev/sda").is_err());
    }

    #[test]
    fn pool_defaults_reach_new_volumes() {
        let pool = config(&[("volume.size", "3GiB"), ("volume.snapshots.expiry", "1d")]);
        let own = config(&[("size", "1GiB")]);
        assert_eq!(limit(&with_defaults(&pool, "custom", &own)), Some(1 << 30));
        let root = with_defaults(&pool, "containers", &Config::new());
        assert_eq!(root, config(&[("size", "3GiB")]));
        assert!(with_defaults(&pool, "images", &Config::new()).is_empty());
    }

    proptest! {
        #[test]
        fn any_configuration_is_answered(key in "\\PC{0,20}", value in "\\PC{0,20}") {
            let config = Config::from([(key, value)]);
            let _ = check_pool("btrfs", &config);
            let _ = check_volume("custom", &config);
        }
    }
}
