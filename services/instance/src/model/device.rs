//! Devices: which options each type takes, and what they may say.

use super::name;
use super::record::{Device, Devices};
use super::value;
use crate::Error;

type Check = fn(&str) -> Result<(), String>;

fn any(text: &str) -> Result<(), String> {
    value::single_line(text)
}

fn boolean(text: &str) -> Result<(), String> {
    value::boolean(text)
        .map(drop)
        .ok_or_else(|| format!("Invalid value for a boolean: {text:?}"))
}

fn number(text: &str) -> Result<(), String> {
    text.parse::<u32>()
        .map(drop)
        .map_err(|_| format!("Invalid number: {text:?}"))
}

fn mode(text: &str) -> Result<(), String> {
    octal(text).map(drop)
}

fn size(text: &str) -> Result<(), String> {
    value::bytes(text).map(drop)
}

fn mac(text: &str) -> Result<(), String> {
    value::mac(text).map(drop)
}

fn absolute(text: &str) -> Result<(), String> {
    any(text)?;
    if !text.starts_with('/') {
        return Err(format!("Path {text:?} is not absolute"));
    }
    if text.split('/').any(|part| part == "..") {
        return Err(format!("Path {text:?} holds a \"..\""));
    }
    Ok(())
}

/// Options that LXD has and this version does not; refused by name rather than ignored.
const UNSUPPORTED_DISK: [&str; 13] = [
    "size.state",
    "propagation",
    "limits.read",
    "limits.write",
    "limits.max",
    "raw.mount.options",
    "ceph.cluster_name",
    "ceph.user_name",
    "io.bus",
    "io.cache",
    "io.threads",
    "source.snapshot",
    "source.type",
];

const DISK: &[(&str, Check)] = &[
    ("path", absolute),
    ("source", any),
    ("pool", any),
    ("size", size),
    ("readonly", boolean),
    ("recursive", boolean),
    ("required", boolean),
    ("optional", boolean),
    ("shift", boolean),
    ("boot.priority", number),
];

/// The network service knows what each option may say for which network; only names are checked here.
const NIC: &[(&str, Check)] = &[
    ("network", any),
    ("nictype", any),
    ("parent", any),
    ("name", name::link),
    ("hwaddr", mac),
    ("mtu", number),
    ("host_name", name::link),
    ("ipv4.address", any),
    ("ipv6.address", any),
    ("ipv4.routes", any),
    ("ipv6.routes", any),
    ("limits.ingress", any),
    ("limits.egress", any),
    ("limits.max", any),
    ("security.mac_filtering", boolean),
    ("security.ipv4_filtering", boolean),
    ("security.ipv6_filtering", boolean),
    ("security.port_isolation", boolean),
    ("boot.priority", number),
];

const UNSUPPORTED_NIC: [&str; 20] = [
    "ipv4.routes.external",
    "ipv6.routes.external",
    "vlan",
    "vlan.tagged",
    "gvrp",
    "mode",
    "ipv4.gateway",
    "ipv6.gateway",
    "ipv4.host_address",
    "ipv6.host_address",
    "ipv4.host_table",
    "ipv6.host_table",
    "ipv4.neighbor_probe",
    "ipv6.neighbor_probe",
    "security.acls",
    "limits.priority",
    "queue.tx.length",
    "maas.subnet.ipv4",
    "maas.subnet.ipv6",
    "acceleration",
];

const UNIX: &[(&str, Check)] = &[
    ("source", absolute),
    ("path", absolute),
    ("major", number),
    ("minor", number),
    ("uid", number),
    ("gid", number),
    ("mode", mode),
    ("required", boolean),
];

const OTHER_TYPES: [&str; 7] = [
    "unix-hotplug",
    "usb",
    "gpu",
    "infiniband",
    "proxy",
    "tpm",
    "pci",
];

/// Permission bits of `0660` or `660`.
pub fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && !text.is_empty() => Ok(mode),
        _ => Err(format!("Invalid mode: {text:?}")),
    }
}

/// The disk at `/`, which a pool provides.
pub fn is_root(device: &Device) -> bool {
    option(device, "type") == "disk" && option(device, "path") == "/"
}

/// A disk of a storage pool, the root disk among them.
pub fn is_pool_disk(device: &Device) -> bool {
    option(device, "type") == "disk" && !option(device, "pool").is_empty()
}

/// An option, empty when it is not there.
pub fn option<'a>(device: &'a Device, key: &str) -> &'a str {
    device.get(key).map_or("", String::as_str)
}

/// Whether an option says true.
pub fn flag(device: &Device, key: &str, default: bool) -> bool {
    value::boolean(option(device, key)).unwrap_or(default)
}

/// Whether the device must be there for the guest to start.
pub fn required(device: &Device) -> bool {
    match device.get("required") {
        Some(text) => value::boolean(text).unwrap_or(true),
        None => !flag(device, "optional", false),
    }
}

/// Refuses, by name, what a single set of devices may not hold.
pub fn validate(devices: &Devices) -> Result<(), Error> {
    for (device_name, device) in devices {
        name::device(device_name)?;
        validate_one(device_name, device)?;
    }
    Ok(())
}

fn validate_one(device_name: &str, device: &Device) -> Result<(), Error> {
    let kind = option(device, "type");
    match kind {
        "none" => check_options(device_name, device, &[], &[]),
        "disk" => {
            check_options(device_name, device, DISK, &UNSUPPORTED_DISK)?;
            disk(device_name, device)
        }
        "nic" => {
            check_options(device_name, device, NIC, &UNSUPPORTED_NIC)?;
            nic(device_name, device)
        }
        "unix-char" | "unix-block" => {
            check_options(device_name, device, UNIX, &[])?;
            unix(device_name, device)
        }
        "" => Err(wrong(device_name, "type", "Missing device type".to_owned())),
        other if OTHER_TYPES.contains(&other) => {
            let what = format!("The device type {other:?} is not supported by this version");
            Err(wrong(device_name, "type", what))
        }
        other => Err(wrong(
            device_name,
            "type",
            format!("Unsupported device type {other:?}"),
        )),
    }
}

fn wrong(device: &str, option: &str, why: String) -> Error {
    let sentence = format!("Device validation failed for {device:?}: {why}");
    Error::invalid(format!("devices.{device}.{option}"), sentence)
}

fn check_options(
    device_name: &str,
    device: &Device,
    known: &[(&str, Check)],
    unsupported: &[&str],
) -> Result<(), Error> {
    for (option, text) in device {
        if option == "type" || option.starts_with("user.") {
            continue;
        }
        if unsupported.contains(&option.as_str()) || option.starts_with("initial.") {
            let why = format!("The device option {option:?} is not supported by this version");
            return Err(wrong(device_name, option, why));
        }
        let Some((_, check)) = known.iter().find(|(name, _)| name == option) else {
            return Err(wrong(
                device_name,
                option,
                format!("Invalid device option {option:?}"),
            ));
        };
        if !text.is_empty() {
            check(text).map_err(|why| {
                wrong(
                    device_name,
                    option,
                    format!("Invalid value for device option {option:?}: {why}"),
                )
            })?;
        }
    }
    Ok(())
}

fn disk(device_name: &str, device: &Device) -> Result<(), Error> {
    let (path, source, pool) = (
        option(device, "path"),
        option(device, "source"),
        option(device, "pool"),
    );
    if path.is_empty() {
        return Err(wrong(
            device_name,
            "path",
            "Disk entry is missing the required \"path\" property".into(),
        ));
    }
    if is_root(device) {
        if pool.is_empty() {
            return Err(wrong(
                device_name,
                "pool",
                "Root disk entry must have a \"pool\" property set".into(),
            ));
        }
        if !source.is_empty() {
            return Err(wrong(
                device_name,
                "source",
                "Root disk entry may not have a \"source\" property set".into(),
            ));
        }
        return Ok(());
    }
    if path.split('/').all(|part| part.is_empty() || part == ".") {
        return Err(wrong(device_name, "path", format!("Invalid path {path:?}")));
    }
    if source.is_empty() {
        return Err(wrong(
            device_name,
            "source",
            "Disk entry is missing the required \"source\" property".into(),
        ));
    }
    if source.starts_with("ceph:")
        || source.starts_with("cephfs:")
        || source.starts_with("cloud-init:")
    {
        return Err(wrong(
            device_name,
            "source",
            format!("The source {source:?} is not supported by this version"),
        ));
    }
    if pool.is_empty() {
        absolute(source).map_err(|why| wrong(device_name, "source", why))?;
    } else if source.contains('/') {
        return Err(wrong(
            device_name,
            "source",
            "Storage volumes cannot be specified as paths".into(),
        ));
    }
    if pool.is_empty() && !option(device, "size").is_empty() {
        return Err(wrong(
            device_name,
            "size",
            "Only the root disk may have a size quota".into(),
        ));
    }
    Ok(())
}

fn nic(device_name: &str, device: &Device) -> Result<(), Error> {
    let (network, nictype) = (option(device, "network"), option(device, "nictype"));
    if network.is_empty() && nictype.is_empty() {
        let why = "One of \"network\" or \"nictype\" is required".to_owned();
        return Err(wrong(device_name, "nictype", why));
    }
    if !network.is_empty() {
        for refused in ["nictype", "parent", "mtu"] {
            if !option(device, refused).is_empty() {
                let why = format!(
                    "Cannot use {refused:?} property in conjunction with \"network\" property"
                );
                return Err(wrong(device_name, refused, why));
            }
        }
        return Ok(());
    }
    match nictype {
        "bridged" | "macvlan" if option(device, "parent").is_empty() => Err(wrong(
            device_name,
            "parent",
            "Required device option \"parent\" is missing".into(),
        )),
        "bridged" | "macvlan" | "p2p" => Ok(()),
        "ipvlan" | "routed" | "physical" | "sriov" | "ovn" => {
            let why = format!("The nictype {nictype:?} is not supported by this version");
            Err(wrong(device_name, "nictype", why))
        }
        other => Err(wrong(
            device_name,
            "nictype",
            format!("Unsupported nictype {other:?}"),
        )),
    }
}

fn unix(device_name: &str, device: &Device) -> Result<(), Error> {
    if option(device, "source").is_empty() && option(device, "path").is_empty() {
        return Err(wrong(
            device_name,
            "path",
            "Unix device entry is missing the required \"source\" or \"path\" property".into(),
        ));
    }
    if option(device, "major").is_empty() != option(device, "minor").is_empty() {
        return Err(wrong(
            device_name,
            "minor",
            "Both \"major\" and \"minor\" are needed".into(),
        ));
    }
    Ok(())
}

/// What only the effective set of devices can break: one root disk, one device a path, one link a name.
pub fn validate_expanded(devices: &Devices) -> Result<(), Error> {
    let mut roots = devices.iter().filter(|(_, d)| is_root(d));
    if roots.next().is_none() {
        return Err(Error::invalid(
            "devices",
            "Failed detecting root disk device: No root device could be found",
        ));
    }
    if let Some((second, _)) = roots.next() {
        return Err(wrong(
            second,
            "path",
            "More than one disk device at \"/\"".into(),
        ));
    }
    let mut paths: Vec<(String, &str)> = Vec::new();
    let mut links: Vec<&str> = Vec::new();
    for (device_name, device) in devices {
        match option(device, "type") {
            "disk" | "unix-char" | "unix-block" => {
                let path = guest_path(device);
                if let Some((_, other)) = paths.iter().find(|(p, _)| *p == path) {
                    let why = format!("The path {path:?} is used by {other:?} as well");
                    return Err(wrong(device_name, "path", why));
                }
                paths.push((path, device_name));
            }
            "nic" => {
                let link = option(device, "name");
                if !link.is_empty() && links.contains(&link) {
                    let why = format!("Duplicate network interface name {link:?}");
                    return Err(wrong(device_name, "name", why));
                }
                links.push(link);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Where the device is in the guest, without doubled or trailing slashes.
pub fn guest_path(device: &Device) -> String {
    let path = match option(device, "path") {
        "" => option(device, "source"),
        path => path,
    };
    let parts: Vec<&str> = path
        .split('/')
        .filter(|p| !p.is_empty() && *p != ".")
        .collect();
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device(options: &[(&str, &str)]) -> Device {
        options
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn check(options: &[(&str, &str)]) -> Result<(), Error> {
        validate(&Devices::from([("d".to_owned(), device(options))]))
    }

    #[test]
    fn good_devices_pass() {
        for options in [
            &[("type", "none")][..],
            &[
                ("type", "disk"),
                ("path", "/"),
                ("pool", "default"),
                ("size", "5GiB"),
            ],
            &[
                ("type", "disk"),
                ("path", "/mnt/x"),
                ("source", "/srv"),
                ("readonly", "true"),
            ],
            &[
                ("type", "disk"),
                ("path", "/data"),
                ("source", "vol1"),
                ("pool", "default"),
            ],
            &[("type", "nic"), ("network", "lxdbr0"), ("name", "eth0")],
            &[("type", "nic"), ("nictype", "bridged"), ("parent", "br0")],
            &[("type", "nic"), ("nictype", "p2p")],
            &[
                ("type", "unix-char"),
                ("path", "/dev/ttyS0"),
                ("mode", "0660"),
            ],
        ] {
            assert!(check(options).is_ok(), "{options:?}");
        }
    }

    #[test]
    fn bad_devices_name_their_fault() {
        for (options, field) in [
            (&[("path", "/")][..], "devices.d.type"),
            (&[("type", "gpu")], "devices.d.type"),
            (&[("type", "disk"), ("path", "/")], "devices.d.pool"),
            (&[("type", "disk"), ("path", "/x")], "devices.d.source"),
            (
                &[("type", "disk"), ("path", "/x"), ("source", "rel")],
                "devices.d.source",
            ),
            (
                &[("type", "disk"), ("path", "/../x"), ("source", "/srv")],
                "devices.d.path",
            ),
            (
                &[("type", "disk"), ("path", "//"), ("source", "/srv")],
                "devices.d.path",
            ),
            (
                &[
                    ("type", "disk"),
                    ("path", "/x"),
                    ("source", "/s"),
                    ("bogus", "1"),
                ],
                "devices.d.bogus",
            ),
            (&[("type", "nic")], "devices.d.nictype"),
            (
                &[("type", "nic"), ("network", "n"), ("parent", "p")],
                "devices.d.parent",
            ),
            (
                &[("type", "nic"), ("nictype", "routed")],
                "devices.d.nictype",
            ),
            (
                &[
                    ("type", "nic"),
                    ("network", "n"),
                    ("name", "much-too-long-name"),
                ],
                "devices.d.name",
            ),
            (
                &[("type", "unix-char"), ("path", "/dev/x"), ("mode", "9")],
                "devices.d.mode",
            ),
        ] {
            let error = check(options).unwrap_err();
            assert_eq!(error.fields[0].field, field, "{options:?}");
        }
    }

    #[test]
    fn the_whole_set_needs_one_root_and_distinct_paths() {
        let root = device(&[("type", "disk"), ("path", "/"), ("pool", "p")]);
        let mut devices = Devices::from([("root".to_owned(), root.clone())]);
        assert!(validate_expanded(&devices).is_ok());
        assert!(validate_expanded(&Devices::new()).is_err());
        devices.insert("again".into(), root);
        assert!(validate_expanded(&devices).is_err());
        devices.remove("again");
        for name in ["a", "b"] {
            let path = if name == "a" { "/x/" } else { "//x" };
            devices.insert(
                name.into(),
                device(&[("type", "disk"), ("path", path), ("source", "/s")]),
            );
        }
        assert!(validate_expanded(&devices).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(options in proptest::collection::btree_map("[a-z.]{1,10}", ".{0,12}", 0..5)) {
            let devices = Devices::from([("d".to_owned(), options)]);
            let _ = (validate(&devices), validate_expanded(&devices));
        }
    }
}
