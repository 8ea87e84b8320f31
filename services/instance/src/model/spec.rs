//! The monitor's spec of a run, built from the record alone.

use berth_monitor::spec as monitor;

use super::attachment::{self, Attachment, Port, PortKind};
use super::device::{self, option};
use super::expand::Expanded;
use super::limits;
use super::record::{Device, Instance};
use crate::Error;

/// What the host contributes to a spec.
#[derive(Debug, Clone)]
pub struct Host {
    pub run_dir: String,
    pub log_dir: String,
    pub host_mount_ns: Option<String>,
    pub cgroup_parent: String,
    pub unified_parent: Option<String>,
    pub lxcfs_dir: Option<String>,
    pub limits: monitor::Limits,
    pub seccomp: Option<monitor::Bpf>,
    /// Name of the loaded profile, where guests are confined.
    pub apparmor_profile: Option<String>,
    pub traceparent: Option<String>,
}

/// Finds out what a host path is a device of; `None` when there is none there.
pub type NodeLookup<'a> = &'a dyn Fn(&str) -> Option<(monitor::NodeKind, u32, u32)>;

/// Capabilities with which a guest's root could change the host; a privileged guest's root is the host's.
const PRIVILEGED_DROP: [&str; 5] = [
    "sys_time",
    "sys_module",
    "sys_rawio",
    "mac_admin",
    "mac_override",
];
/// Means nothing outside the first user namespace; without it systemd skips mounts that would fail.
const UNPRIVILEGED_DROP: [&str; 1] = ["sys_rawio"];

/// Builds the spec of run `generation`.
pub fn build(
    instance: &Instance,
    expanded: &Expanded,
    generation: i64,
    host: Host,
    nodes: NodeLookup<'_>,
) -> Result<monitor::Spec, Error> {
    let privileged = expanded.privileged();
    let drop: &[&str] = if privileged {
        &PRIVILEGED_DROP
    } else {
        &UNPRIVILEGED_DROP
    };
    Ok(monitor::Spec {
        version: monitor::SPEC_VERSION,
        uid: instance.uid.clone(),
        project: instance.project.clone(),
        name: instance.name.clone(),
        generation: u64::try_from(generation).map_err(Error::internal)?,
        run_dir: host.run_dir,
        log_dir: host.log_dir,
        host_mount_ns: host.host_mount_ns,
        init: Vec::new(),
        init_env: environment(expanded),
        hostname: instance.name.clone(),
        idmap: idmap(instance, privileged),
        privileged,
        nesting: expanded.is_true("security.nesting"),
        rootfs: rootfs(instance, expanded)?,
        mounts: mounts(instance, expanded)?,
        nics: nics(instance, expanded)?,
        devices: device_nodes(expanded, nodes)?,
        cgroup: monitor::CgroupSpec {
            parent: host.cgroup_parent,
            unified_parent: host.unified_parent,
            name: cgroup_name(&instance.uid),
            guest_view: guest_cgroups(expanded),
        },
        limits: host.limits,
        rlimits: limits::rlimits(expanded),
        sysctls: prefixed(expanded, "linux.sysctl."),
        seccomp: host.seccomp,
        drop_capabilities: drop.iter().map(|c| (*c).to_owned()).collect(),
        lxcfs_dir: host.lxcfs_dir,
        apparmor_profile: host.apparmor_profile,
        oom_score_adj: None,
        dev_lxd_dir: None,
        reboot_in_place: !instance.ephemeral,
        halt_signal: None,
        max_reboots_per_minute: 10,
        traceparent: host.traceparent,
    })
}

/// Directory of the guest in every hierarchy.
pub fn cgroup_name(uid: &str) -> String {
    format!("berth-{uid}")
}

/// `environment.*` without the prefix.
pub fn environment(expanded: &Expanded) -> Vec<(String, String)> {
    prefixed(expanded, "environment.")
}

fn prefixed(expanded: &Expanded, prefix: &str) -> Vec<(String, String)> {
    let pairs = expanded.config.iter();
    pairs
        .filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_owned(), v.clone())))
        .collect()
}

/// An image that needs cgroup v1 says so.
fn guest_cgroups(expanded: &Expanded) -> monitor::GuestCgroups {
    match expanded.get("image.requirements.cgroup") {
        Some("v1") => monitor::GuestCgroups::Empty,
        _ => monitor::GuestCgroups::Unified,
    }
}

/// Lines of the user namespace's map.
pub fn idmap(instance: &Instance, privileged: bool) -> Vec<monitor::IdMap> {
    if privileged {
        return Vec::new();
    }
    let range = instance.ids;
    vec![monitor::IdMap {
        kind: monitor::IdKind::Both,
        host: range.base,
        ns: 0,
        len: range.len,
    }]
}

fn missing(what: &str, device_name: &str) -> Error {
    Error::precondition(
        "DEVICE_NOT_READY",
        format!("Device {device_name:?} has no {what}: the {what} was not given when it was added"),
    )
}

/// The volume of the root disk.
pub fn root_attachment<'a>(
    instance: &'a Instance,
    expanded: &Expanded,
) -> Result<&'a Attachment, Error> {
    let (name, _) = expanded
        .root_disk()
        .ok_or_else(|| Error::precondition("NO_ROOT_DISK", "The instance has no root disk"))?;
    instance
        .attachments
        .get(name)
        .ok_or_else(|| missing("attachment", name))
}

fn rootfs(instance: &Instance, expanded: &Expanded) -> Result<monitor::Attachment, Error> {
    let attachment = root_attachment(instance, expanded)?;
    let readonly = expanded
        .root_disk()
        .is_some_and(|(_, d)| device::flag(d, "readonly", false));
    monitor_attachment("root", attachment, Some("rootfs"), readonly)
}

/// The top of a volume, or `below` it, as the monitor mounts it.
pub fn monitor_attachment(
    device_name: &str,
    attachment: &Attachment,
    below: Option<&str>,
    readonly: bool,
) -> Result<monitor::Attachment, Error> {
    let refuse = |what: &str| {
        Error::unimplemented(format!(
            "Device {device_name:?}: {what} is not supported by this version"
        ))
    };
    let [mount] = attachment.mounts.as_slice() else {
        return Err(refuse("a volume of several mounts, or of none,"));
    };
    if !mount.target.is_empty() {
        return Err(refuse("a first mount with a target"));
    }
    let parts = [mount.subpath.trim_matches('/'), below.unwrap_or("")];
    let sub: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
    let sub = sub.join("/");
    let source = match &mount.source {
        attachment::Source::Device { path, diskseq } => monitor::Source::Device {
            path: path.clone(),
            diskseq: u64::try_from(*diskseq).ok().filter(|d| *d != 0),
            fs_type: mount.fs_type.clone(),
            options: mount.fs_options.clone(),
            subpath: Some(sub).filter(|s| !s.is_empty()),
        },
        attachment::Source::HostPath(path) => monitor::Source::HostPath {
            path: match sub.is_empty() {
                true => path.clone(),
                false => format!("{}/{sub}", path.trim_end_matches('/')),
            },
            recursive: false,
        },
        attachment::Source::Dataset(_) => return Err(refuse("a dataset")),
        attachment::Source::Remote { .. } => return Err(refuse("a remote filesystem")),
    };
    let is_device = matches!(source, monitor::Source::Device { .. });
    Ok(monitor::Attachment {
        source,
        attr: monitor::MountAttr {
            ro: mount.read_only || readonly,
            nosuid: mount.nosuid,
            nodev: mount.nodev,
            noexec: mount.noexec,
        },
        fs_uuid: Some(mount.fs_uuid.clone()).filter(|u| is_device && !u.is_empty()),
        ownership: match mount.ownership {
            attachment::Ownership::Raw => monitor::Ownership::Raw,
            attachment::Ownership::Shifted => monitor::Ownership::Shifted,
            attachment::Ownership::Unmapped => monitor::Ownership::Unmapped,
        },
        can_idmap: mount.can_idmap,
    })
}

fn mounts(instance: &Instance, expanded: &Expanded) -> Result<Vec<monitor::Mount>, Error> {
    let disks = expanded
        .active()
        .filter(|(_, d)| option(d, "type") == "disk" && !device::is_root(d));
    let mut mounts = disks
        .map(|(name, device)| mount(instance, name, device))
        .collect::<Result<Vec<_>, Error>>()?;
    // A disk below another one's path goes on top of it.
    mounts.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(mounts)
}

/// One disk device that is not the root.
pub fn mount(instance: &Instance, name: &str, device: &Device) -> Result<monitor::Mount, Error> {
    let readonly = device::flag(device, "readonly", false);
    let attachment = if device::is_pool_disk(device) {
        let attachment = instance
            .attachments
            .get(name)
            .ok_or_else(|| missing("attachment", name))?;
        monitor_attachment(name, attachment, None, readonly)?
    } else {
        let shift = device::flag(device, "shift", false);
        monitor::Attachment {
            source: monitor::Source::HostPath {
                path: option(device, "source").to_owned(),
                recursive: device::flag(device, "recursive", false),
            },
            attr: monitor::MountAttr {
                ro: readonly,
                ..Default::default()
            },
            fs_uuid: None,
            ownership: match shift {
                true => monitor::Ownership::Raw,
                false => monitor::Ownership::Unmapped,
            },
            // The kernel says so when the filesystem cannot; nobody else knows what is at a host's path.
            can_idmap: shift,
        }
    };
    Ok(monitor::Mount {
        name: name.to_owned(),
        attachment,
        target: device::guest_path(device),
        optional: !device::required(device),
    })
}

fn nics(instance: &Instance, expanded: &Expanded) -> Result<Vec<monitor::PortSpec>, Error> {
    let nics = expanded
        .active()
        .filter(|(_, d)| option(d, "type") == "nic");
    nics.map(|(name, _)| nic(instance, name)).collect()
}

/// The link of a nic device.
pub fn nic(instance: &Instance, name: &str) -> Result<monitor::PortSpec, Error> {
    let port = instance
        .ports
        .get(name)
        .ok_or_else(|| missing("port", name))?;
    port_spec(name, port)
}

fn port_spec(name: &str, port: &Port) -> Result<monitor::PortSpec, Error> {
    let kind = match port.kind {
        PortKind::Bridged => monitor::PortKind::Bridged,
        PortKind::P2p => monitor::PortKind::P2p,
        PortKind::Macvlan => monitor::PortKind::Macvlan,
        PortKind::Routed => monitor::PortKind::Routed,
        PortKind::Ipvlan => monitor::PortKind::Ipvlan,
        PortKind::Physical => monitor::PortKind::Physical,
        PortKind::Vf => monitor::PortKind::Sriov,
        PortKind::Tap => {
            let what = format!("Device {name:?}: a tap port is for virtual machines only");
            return Err(Error::unimplemented(what));
        }
    };
    let some = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
    Ok(monitor::PortSpec {
        name: name.to_owned(),
        kind,
        parent: some(&port.parent),
        host_name: some(&port.host_name),
        host_hwaddr: some(&port.host_mac),
        guest_name: port.guest_name.clone(),
        hwaddr: some(&port.mac),
        mtu: Some(port.mtu).filter(|m| *m != 0),
        vlan: None,
        isolated: false,
        host_routes: port.routes.clone(),
    })
}

fn device_nodes(
    expanded: &Expanded,
    nodes: NodeLookup<'_>,
) -> Result<Vec<monitor::DeviceNode>, Error> {
    let unix = expanded
        .active()
        .filter(|(_, d)| option(d, "type").starts_with("unix-"));
    let found = unix.map(|(name, device)| device_node(name, device, nodes));
    found.filter_map(Result::transpose).collect()
}

/// A unix device; `None` when its host node is missing and need not be there.
pub fn device_node(
    name: &str,
    device: &Device,
    nodes: NodeLookup<'_>,
) -> Result<Option<monitor::DeviceNode>, Error> {
    let kind = match option(device, "type") {
        "unix-char" => monitor::NodeKind::Char,
        _ => monitor::NodeKind::Block,
    };
    let source = match option(device, "source") {
        "" => option(device, "path"),
        source => source,
    };
    let number = |key: &str| option(device, key).parse::<u32>().ok();
    let (major, minor) = match (number("major"), number("minor")) {
        (Some(major), Some(minor)) => (major, minor),
        _ => match nodes(source) {
            Some((found, major, minor)) if found == kind => (major, minor),
            _ if !device::required(device) => return Ok(None),
            _ => {
                let why = format!("Device {name:?}: {source} is no such device on the host");
                return Err(Error::precondition("DEVICE_MISSING", why));
            }
        },
    };
    Ok(Some(monitor::DeviceNode {
        name: name.to_owned(),
        path: device::guest_path(device),
        kind,
        major,
        minor,
        mode: device::octal(option(device, "mode")).unwrap_or(0o660),
        uid: number("uid").unwrap_or(0),
        gid: number("gid").unwrap_or(0),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::expand::expand;
    use crate::model::idmap::IdRange;
    use crate::model::keys::Config;
    use crate::model::record::Devices;

    fn options(pairs: &[(&str, &str)]) -> Device {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn instance() -> Instance {
        let mount = attachment::Mount {
            source: attachment::Source::HostPath("/pool/v/".into()),
            fs_type: String::new(),
            fs_options: vec![],
            subpath: String::new(),
            read_only: false,
            nosuid: false,
            nodev: false,
            noexec: false,
            fs_uuid: "ignored-for-paths".into(),
            ownership: attachment::Ownership::Raw,
            can_idmap: true,
            target: String::new(),
        };
        let root = Attachment {
            mounts: vec![mount],
            ..Attachment::default()
        };
        Instance {
            uid: "u".into(),
            project: "default".into(),
            name: "c1".into(),
            description: String::new(),
            architecture: "x86_64".into(),
            ephemeral: false,
            config: Config::from([("environment.A".into(), "1".into())]),
            devices: Devices::from([
                (
                    "root".into(),
                    options(&[("type", "disk"), ("path", "/"), ("pool", "p")]),
                ),
                (
                    "b".into(),
                    options(&[("type", "disk"), ("path", "/a/b"), ("source", "/s")]),
                ),
                (
                    "z".into(),
                    options(&[
                        ("type", "disk"),
                        ("path", "/a"),
                        ("source", "/s"),
                        ("shift", "true"),
                    ]),
                ),
                (
                    "tty".into(),
                    options(&[("type", "unix-char"), ("path", "/dev/tty0")]),
                ),
            ]),
            profiles: vec![],
            create_time: 0,
            last_used_time: 0,
            generation: 0,
            running: false,
            ids: IdRange {
                base: 1_000_000,
                len: 65_536,
            },
            attachments: [("root".to_owned(), root)].into(),
            ports: [].into(),
        }
    }

    fn host() -> Host {
        Host {
            run_dir: "/run/x".into(),
            log_dir: "/log/x".into(),
            host_mount_ns: None,
            cgroup_parent: "berth".into(),
            unified_parent: None,
            lxcfs_dir: None,
            limits: monitor::Limits::default(),
            apparmor_profile: None,
            seccomp: None,
            traceparent: None,
        }
    }

    #[test]
    fn a_spec_is_what_the_monitor_takes() {
        let instance = instance();
        let expanded = expand([], &instance.config, &instance.devices);
        let lookup = |_: &str| Some((monitor::NodeKind::Char, 4, 0));
        let spec = build(&instance, &expanded, 7, host(), &lookup).unwrap();
        spec.validate().unwrap();
        let monitor::Source::HostPath { path, .. } = &spec.rootfs.source else {
            panic!()
        };
        assert_eq!(path, "/pool/v/rootfs");
        let targets: Vec<&str> = spec.mounts.iter().map(|m| m.target.as_str()).collect();
        assert_eq!(targets, ["/a", "/a/b"]);
        assert_eq!((spec.devices[0].major, spec.devices[0].mode), (4, 0o660));
        assert_eq!(spec.init_env, [("A".to_owned(), "1".to_owned())]);
        assert_eq!(spec.generation, 7);
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut instance = instance();
        let expanded = expand([], &instance.config, &instance.devices);
        let error = build(&instance, &expanded, 1, host(), &|_| None).unwrap_err();
        assert!(error.message.contains("\"tty\""), "{error}");
        instance.devices.insert(
            "eth0".into(),
            options(&[("type", "nic"), ("nictype", "p2p")]),
        );
        instance.devices.remove("tty");
        let expanded = expand([], &instance.config, &instance.devices);
        let error = build(&instance, &expanded, 1, host(), &|_| None).unwrap_err();
        assert!(error.message.contains("\"eth0\""), "{error}");
    }
}
