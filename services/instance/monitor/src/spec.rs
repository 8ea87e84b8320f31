//! What the instance service hands to a monitor: one value that says everything about a run.
//!
//! The spec is JSON in a sealed memfd. It is self-contained: the monitor asks nobody anything, so a
//! guest can reboot itself while every service is away. `validate` refuses by name what this version
//! does not know how to do; nothing is silently left out.

use serde::{Deserialize, Serialize};

use crate::error::{Fault, FaultCode};

/// Version of [`Spec`]; a monitor refuses any other.
pub const SPEC_VERSION: u32 = 1;

/// Everything one instance needs to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// [`SPEC_VERSION`].
    pub version: u32,
    /// The instance's uid (UUID text); only reported back.
    pub uid: String,
    pub project: String,
    pub name: String,
    /// The service's run counter; reported in events so that a late event of an earlier run is known.
    pub generation: u64,
    /// Existing directory of this instance alone (mode 0700): `monitor.sock`, `status.json`, `monitor.lock`, `devices/`.
    pub run_dir: String,
    /// Existing directory: `console.log`, `monitor.log`.
    pub log_dir: String,
    /// Mount namespace in which host paths are looked up, e.g. `/proc/1/ns/mnt`; the monitor enters it first. `None`: its own.
    #[serde(default)]
    pub host_mount_ns: Option<String>,
    /// argv of pid 1; empty means `/sbin/init`.
    #[serde(default)]
    pub init: Vec<String>,
    /// Environment of pid 1. `container=lxc`, `PATH`, `TERM` and `HOME` are added where missing.
    #[serde(default)]
    pub init_env: Vec<(String, String)>,
    pub hostname: String,
    /// Empty exactly when `privileged`.
    #[serde(default)]
    pub idmap: Vec<IdMap>,
    #[serde(default)]
    pub privileged: bool,
    /// `security.nesting`: unmasked copies of proc and sysfs below `/dev/.lxc`.
    #[serde(default)]
    pub nesting: bool,
    pub rootfs: Attachment,
    /// Disk devices, in mount order.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    #[serde(default)]
    pub nics: Vec<PortSpec>,
    /// `unix-char` and `unix-block` devices.
    #[serde(default)]
    pub devices: Vec<DeviceNode>,
    pub cgroup: CgroupSpec,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// Dotted names (`net.ipv4.ip_forward`); written inside the guest's namespaces.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
    /// A compiled classic BPF program (`struct sock_filter[]`), 8 bytes an instruction.
    #[serde(default)]
    pub seccomp: Option<Bpf>,
    /// Names without `CAP_`, in lower case (`sys_rawio`); taken out of the bounding set.
    #[serde(default)]
    pub drop_capabilities: Vec<String>,
    /// Where lxcfs is mounted on the host; its files are bound over /proc and /sys. A missing one fails the start.
    #[serde(default)]
    pub lxcfs_dir: Option<String>,
    /// An AppArmor profile that is already loaded.
    #[serde(default)]
    pub apparmor_profile: Option<String>,
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    /// Host directory that holds the guest API socket `sock`; bound to `/dev/lxd`.
    #[serde(default)]
    pub dev_lxd_dir: Option<String>,
    /// What happens when the guest reboots itself; `false` (ephemeral instances) turns a reboot into a stop.
    #[serde(default = "yes")]
    pub reboot_in_place: bool,
    /// Signal for a graceful stop; `None`: SIGRTMIN+3 when init blocks it, SIGPWR otherwise.
    #[serde(default)]
    pub halt_signal: Option<i32>,
    /// More runs than this within a minute end the monitor with reason `reboot_loop`.
    #[serde(default = "default_reboots")]
    pub max_reboots_per_minute: u32,
    /// W3C trace context of the operation that starts the guest; written to the log.
    #[serde(default)]
    pub traceparent: Option<String>,
}

fn yes() -> bool {
    true
}

fn default_reboots() -> u32 {
    10
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdKind {
    Uid,
    Gid,
    Both,
}

/// One line of uid_map and/or gid_map: ids `ns..ns+len` inside are `host..host+len` outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdMap {
    pub kind: IdKind,
    pub host: u32,
    pub ns: u32,
    pub len: u32,
}

/// A filesystem to mount, never a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    pub source: Source,
    #[serde(default)]
    pub attr: MountAttr,
    /// Refuse when the filesystem found has another UUID (text form). Only for `device` sources.
    #[serde(default)]
    pub fs_uuid: Option<String>,
    #[serde(default)]
    pub ownership: Ownership,
    /// The filesystem supports idmapped mounts.
    #[serde(default)]
    pub can_idmap: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// An absolute path as the host sees it; `recursive` takes the mounts beneath it along.
    HostPath {
        path: String,
        #[serde(default)]
        recursive: bool,
    },
    /// A block device mounted by the monitor. `subpath` is beneath the filesystem's root.
    Device {
        path: String,
        /// Sequence number of the disk as the kernel counts them; refuses a device number that was reused.
        #[serde(default)]
        diskseq: Option<u64>,
        fs_type: String,
        /// `key` or `key=value` each, as for mount(8).
        #[serde(default)]
        options: Vec<String>,
        #[serde(default)]
        subpath: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MountAttr {
    pub ro: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
}

/// Whose ids are on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ownership {
    /// Ids as the guest sees them: needs an idmapped mount unless the guest is privileged.
    #[default]
    Raw,
    /// Ids already shifted into the guest's host range: mounted as it is.
    Shifted,
    /// Host ids, shown unmapped (a `disk` device with `shift=false`).
    Unmapped,
}

/// A disk device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Device name; key for removal.
    pub name: String,
    pub attachment: Attachment,
    /// Absolute path in the guest; missing directories are made.
    pub target: String,
    /// Leave it out when the source does not exist.
    #[serde(default)]
    pub optional: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortKind {
    Bridged,
    P2p,
    Macvlan,
    Routed,
    Ipvlan,
    Physical,
    Sriov,
}

/// A link declared by the network service and made by the monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Device name; key for removal.
    pub name: String,
    pub kind: PortKind,
    /// Bridge (bridged) or lower link (macvlan).
    #[serde(default)]
    pub parent: Option<String>,
    /// Name of the host end (bridged, p2p); at most 15 bytes.
    #[serde(default)]
    pub host_name: Option<String>,
    /// MAC of the host end.
    #[serde(default)]
    pub host_hwaddr: Option<String>,
    pub guest_name: String,
    /// MAC of the guest end, `aa:bb:cc:dd:ee:ff`.
    #[serde(default)]
    pub hwaddr: Option<String>,
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Not supported yet: refused.
    #[serde(default)]
    pub vlan: Option<u16>,
    /// Bridge port is isolated from other isolated ports.
    #[serde(default)]
    pub isolated: bool,
    /// Routes to these prefixes through the host end (`ipv4.routes`, `ipv6.routes`).
    #[serde(default)]
    pub host_routes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    Char,
    Block,
}

/// A device node shown in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceNode {
    /// Device name; key for removal.
    pub name: String,
    /// Absolute path in the guest.
    pub path: String,
    pub kind: NodeKind,
    pub major: u32,
    pub minor: u32,
    /// Permission bits, e.g. 0o660.
    pub mode: u32,
    /// Ids as the guest sees them.
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
}

/// Where the guest's cgroups are, relative to each hierarchy's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CgroupSpec {
    /// Parent directory, made when missing, e.g. `berth`.
    pub parent: String,
    /// Parent in cgroup2 and name=systemd when it differs (a scope delegated by systemd).
    #[serde(default)]
    pub unified_parent: Option<String>,
    /// Directory of this guest; unique on the host, e.g. `berth-<uid>`.
    pub name: String,
    #[serde(default)]
    pub guest_view: GuestCgroups,
}

/// What the guest finds at /sys/fs/cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestCgroups {
    /// cgroup2 where the host has it. systemd since 256 demands it.
    #[default]
    Unified,
    /// An empty directory: the guest's init mounts what it wants (old systemd on v1 hosts).
    Empty,
}

/// Limits; `None` is "no limit" and is written as such on a live update.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// List of CPUs (`0-1,4`); `None`: all that the parent has.
    pub cpuset_cpus: Option<String>,
    /// NUMA nodes.
    pub cpuset_mems: Option<String>,
    /// Hard limit: microseconds of CPU time per `cpu_period_us`.
    pub cpu_quota_us: Option<u64>,
    /// Default 100000.
    pub cpu_period_us: Option<u64>,
    /// Relative weight in cgroup v1 terms (2..=262144, default 1024); converted on v2.
    pub cpu_shares: Option<u64>,
    /// Hard limit in bytes.
    pub memory_bytes: Option<u64>,
    /// Soft limit in bytes (v1 soft_limit, v2 memory.high).
    pub memory_soft_bytes: Option<u64>,
    /// Swap in bytes beside `memory_bytes`; `Some(0)` forbids swap.
    pub swap_bytes: Option<u64>,
    /// v1 only: 0..=100.
    pub swappiness: Option<u8>,
    pub pids: Option<u64>,
    /// Relative I/O weight, 10..=1000.
    pub io_weight: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rlimit {
    /// Lower case without `RLIMIT_`: `nofile`.
    pub name: String,
    /// `None`: unlimited.
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// Raw bytes, hexadecimal in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bpf(pub Vec<u8>);

impl Serialize for Bpf {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use std::fmt::Write;
        let mut text = String::with_capacity(self.0.len() * 2);
        for byte in &self.0 {
            write!(text, "{byte:02x}").map_err(serde::ser::Error::custom)?;
        }
        s.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Bpf {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let text = String::deserialize(d)?;
        let digits = text
            .bytes()
            .map(|b| (b as char).to_digit(16).map(|v| v as u8))
            .collect::<Option<Vec<u8>>>()
            .ok_or_else(|| D::Error::custom("not hexadecimal"))?;
        if digits.len() % 2 != 0 {
            return Err(D::Error::custom("odd number of hexadecimal digits"));
        }
        Ok(Bpf(digits
            .chunks_exact(2)
            .map(|c| c[0] << 4 | c[1])
            .collect()))
    }
}

impl Spec {
    /// Parses and validates.
    pub fn from_json(bytes: &[u8]) -> Result<Spec, Fault> {
        let spec: Spec = serde_json::from_slice(bytes)
            .map_err(|e| Fault::new("spec", FaultCode::Invalid, format!("spec: {e}")))?;
        spec.validate()?;
        Ok(spec)
    }

    /// Refuses, by the field's name, what cannot or must not be run.
    pub fn validate(&self) -> Result<(), Fault> {
        if self.version != SPEC_VERSION {
            return Err(unsupported(format!("spec version {}", self.version)));
        }
        if self.privileged != self.idmap.is_empty() {
            return Err(invalid(
                "idmap must be empty exactly when privileged is set",
            ));
        }
        for (field, text) in [
            ("run_dir", &self.run_dir),
            ("log_dir", &self.log_dir),
            ("cgroup.parent", &self.cgroup.parent),
            ("cgroup.name", &self.cgroup.name),
            ("hostname", &self.hostname),
        ] {
            if text.is_empty() || text.contains('\0') {
                return Err(invalid(format!("{field} is empty or holds a NUL")));
            }
        }
        if !self.run_dir.starts_with('/') || !self.log_dir.starts_with('/') {
            return Err(invalid("run_dir and log_dir must be absolute"));
        }
        if self.hostname.len() > 64 {
            return Err(invalid("hostname is longer than 64 bytes"));
        }
        let parents = [
            Some(&self.cgroup.parent),
            self.cgroup.unified_parent.as_ref(),
        ];
        for parent in parents.into_iter().flatten() {
            if parent.starts_with('/') || parent.split('/').any(|c| matches!(c, "" | "." | "..")) {
                return Err(invalid(format!(
                    "cgroup parent {parent:?} is not a plain relative path"
                )));
            }
        }
        if self.cgroup.name.contains('/') || self.cgroup.name.starts_with('.') {
            return Err(invalid("cgroup.name must be one path component"));
        }
        validate_idmap(&self.idmap)?;
        self.rootfs.validate("rootfs", self.privileged)?;
        for mount in &self.mounts {
            mount.validate(self.privileged)?;
        }
        for nic in &self.nics {
            nic.validate()?;
        }
        for device in &self.devices {
            device.validate()?;
        }
        if let Some(Bpf(bytes)) = &self.seccomp
            && (bytes.is_empty() || bytes.len() % 8 != 0 || bytes.len() / 8 > 4096)
        {
            return Err(invalid("seccomp is not a BPF program"));
        }
        for name in &self.drop_capabilities {
            crate::caps::number(name).ok_or_else(|| {
                invalid(format!("drop_capabilities: unknown capability {name:?}"))
            })?;
        }
        for limit in &self.rlimits {
            crate::rlimit::resource(&limit.name)
                .ok_or_else(|| invalid(format!("rlimits: unknown resource {:?}", limit.name)))?;
        }
        for (key, _) in &self.sysctls {
            if key.is_empty()
                || !key
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b))
                || key.contains("..")
            {
                return Err(invalid(format!("sysctls: bad name {key:?}")));
            }
        }
        self.limits.validate()
    }

    /// argv of pid 1.
    pub fn init_argv(&self) -> Vec<String> {
        if self.init.is_empty() {
            vec!["/sbin/init".to_owned()]
        } else {
            self.init.clone()
        }
    }

    /// Environment of pid 1 with the defaults every system container gets.
    pub fn init_environment(&self) -> Vec<(String, String)> {
        let mut env = self.init_env.clone();
        for (key, value) in [
            ("container", "lxc"),
            (
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ),
            ("TERM", "linux"),
            ("HOME", "/"),
        ] {
            if !env.iter().any(|(k, _)| k == key) {
                env.push((key.to_owned(), value.to_owned()));
            }
        }
        env
    }

    /// Host id of an id inside the guest; `None` when it is not mapped.
    pub fn host_id(&self, kind: IdKind, id: u32) -> Option<u32> {
        if self.privileged {
            return Some(id);
        }
        self.idmap
            .iter()
            .filter(|m| m.kind == IdKind::Both || m.kind == kind)
            .find(|m| id >= m.ns && id - m.ns < m.len)
            .map(|m| m.host + (id - m.ns))
    }

    /// Text for uid_map or gid_map.
    pub fn map_text(&self, kind: IdKind) -> String {
        self.idmap
            .iter()
            .filter(|m| m.kind == IdKind::Both || m.kind == kind)
            .map(|m| format!("{} {} {}\n", m.ns, m.host, m.len))
            .collect()
    }
}

fn invalid(message: impl Into<String>) -> Fault {
    Fault::new("spec", FaultCode::Invalid, message)
}

fn unsupported(message: impl Into<String>) -> Fault {
    Fault::new("spec", FaultCode::Unsupported, message)
}

fn validate_idmap(map: &[IdMap]) -> Result<(), Fault> {
    if map.len() > 340 {
        return Err(invalid("idmap has more than 340 lines"));
    }
    for entry in map {
        if entry.len == 0
            || entry.host.checked_add(entry.len - 1).is_none()
            || entry.ns.checked_add(entry.len - 1).is_none()
        {
            return Err(invalid(format!(
                "idmap: empty or overflowing range {entry:?}"
            )));
        }
    }
    for kind in [IdKind::Uid, IdKind::Gid] {
        let zero = map
            .iter()
            .any(|m| (m.kind == IdKind::Both || m.kind == kind) && m.ns == 0);
        if !map.is_empty() && !zero {
            return Err(invalid("idmap does not map id 0"));
        }
    }
    Ok(())
}

fn absolute(field: &str, path: &str) -> Result<(), Fault> {
    if path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|c| c == "..") {
        return Ok(());
    }
    Err(invalid(format!(
        "{field} {path:?} is not an absolute path without .."
    )))
}

impl Attachment {
    fn validate(&self, field: &str, privileged: bool) -> Result<(), Fault> {
        match &self.source {
            Source::HostPath { path, .. } => {
                absolute(field, path)?;
                if self.fs_uuid.is_some() {
                    return Err(invalid(format!(
                        "{field}: fs_uuid is only checked for devices"
                    )));
                }
            }
            Source::Device {
                path,
                fs_type,
                options,
                subpath,
                ..
            } => {
                absolute(field, path)?;
                if fs_type.is_empty() || fs_type.contains('\0') {
                    return Err(invalid(format!("{field}: fs_type is missing")));
                }
                if options.iter().any(|o| o.is_empty() || o.contains('\0')) {
                    return Err(invalid(format!("{field}: empty mount option")));
                }
                if let Some(sub) = subpath
                    && (sub.starts_with('/')
                        || sub.split('/').any(|c| matches!(c, "" | "." | "..")))
                {
                    return Err(invalid(format!(
                        "{field}: subpath {sub:?} is not a plain relative path"
                    )));
                }
            }
        }
        if self.ownership == Ownership::Raw && !self.can_idmap && !privileged {
            return Err(unsupported(format!(
                "{field}: the filesystem cannot be idmapped and its ownership is not shifted"
            )));
        }
        Ok(())
    }

    /// Whether the mount gets the guest's user namespace.
    pub fn needs_idmap(&self, privileged: bool) -> bool {
        self.ownership == Ownership::Raw && !privileged
    }
}

impl Mount {
    pub fn validate(&self, privileged: bool) -> Result<(), Fault> {
        absolute("mount target", &self.target)?;
        if self.target.split('/').all(|c| c.is_empty() || c == ".") {
            return Err(invalid(format!(
                "mount {:?}: target is the root directory",
                self.name
            )));
        }
        self.attachment
            .validate(&format!("mount {:?}", self.name), privileged)
    }
}

impl DeviceNode {
    pub fn validate(&self) -> Result<(), Fault> {
        absolute("device path", &self.path)?;
        if self.name.is_empty() || self.name.contains('\0') {
            return Err(invalid("device name is empty"));
        }
        if self.mode & !0o777 != 0 {
            return Err(invalid(format!(
                "device {:?}: mode has more than permission bits",
                self.name
            )));
        }
        Ok(())
    }
}

impl PortSpec {
    pub fn validate(&self) -> Result<(), Fault> {
        let link_name = |field: &str, name: &str| {
            let bad = name.is_empty()
                || name.len() > 15
                || name == "."
                || name == ".."
                || name
                    .bytes()
                    .any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace());
            if bad {
                Err(invalid(format!(
                    "nic {:?}: {field} {name:?} is no link name",
                    self.name
                )))
            } else {
                Ok(())
            }
        };
        match self.kind {
            PortKind::Bridged | PortKind::P2p => {
                let host = self.host_name.as_deref();
                link_name(
                    "host_name",
                    host.ok_or_else(|| {
                        invalid(format!("nic {:?}: host_name is missing", self.name))
                    })?,
                )?;
            }
            PortKind::Macvlan => {}
            kind => return Err(unsupported(format!("nic {:?}: kind {kind:?}", self.name))),
        }
        link_name("guest_name", &self.guest_name)?;
        if self.kind != PortKind::P2p {
            let parent = self.parent.as_deref();
            link_name(
                "parent",
                parent.ok_or_else(|| invalid(format!("nic {:?}: parent is missing", self.name)))?,
            )?;
        }
        if self.vlan.is_some() {
            return Err(unsupported(format!("nic {:?}: vlan", self.name)));
        }
        if !self.host_routes.is_empty() && self.kind == PortKind::Macvlan {
            return Err(unsupported(format!(
                "nic {:?}: host_routes on macvlan",
                self.name
            )));
        }
        for mac in [&self.hwaddr, &self.host_hwaddr].into_iter().flatten() {
            crate::netlink::parse_mac(mac)
                .ok_or_else(|| invalid(format!("nic {:?}: bad MAC {mac:?}", self.name)))?;
        }
        for route in &self.host_routes {
            crate::netlink::parse_prefix(route)
                .ok_or_else(|| invalid(format!("nic {:?}: bad route {route:?}", self.name)))?;
        }
        if self.mtu.is_some_and(|m| !(68..=65535).contains(&m)) {
            return Err(invalid(format!("nic {:?}: mtu out of range", self.name)));
        }
        Ok(())
    }
}

impl Limits {
    pub fn validate(&self) -> Result<(), Fault> {
        for (field, list) in [
            ("cpuset_cpus", &self.cpuset_cpus),
            ("cpuset_mems", &self.cpuset_mems),
        ] {
            if let Some(list) = list
                && (list.is_empty()
                    || !list
                        .bytes()
                        .all(|b| b.is_ascii_digit() || b == b',' || b == b'-'))
            {
                return Err(invalid(format!("limits.{field}: {list:?} is no list")));
            }
        }
        if self.cpu_quota_us.is_some_and(|q| q < 1000) {
            return Err(invalid("limits.cpu_quota_us is below the kernel's 1000"));
        }
        if self
            .cpu_period_us
            .is_some_and(|p| !(1000..=1_000_000).contains(&p))
        {
            return Err(invalid("limits.cpu_period_us is outside 1000..=1000000"));
        }
        if self.cpu_shares.is_some_and(|s| !(2..=262_144).contains(&s)) {
            return Err(invalid("limits.cpu_shares is outside 2..=262144"));
        }
        if self.io_weight.is_some_and(|w| !(10..=1000).contains(&w)) {
            return Err(invalid("limits.io_weight is outside 10..=1000"));
        }
        if self.swappiness.is_some_and(|s| s > 100) {
            return Err(invalid("limits.swappiness is above 100"));
        }
        if self.swap_bytes.is_some() && self.memory_bytes.is_none() {
            return Err(invalid("limits.swap_bytes needs memory_bytes"));
        }
        Ok(())
    }
}
