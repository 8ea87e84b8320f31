//! What the instance service hands to a monitor: one value that says everything about a run.
//!
//! The spec is JSON in a sealed memfd. It is self-contained: the monitor asks nobody anything, so a
//! guest can reboot itself while every service is away. `validate` refuses by name what this version
//! does not know how to do; nothing is silently left out.

use serde::{Deserialize, Serialize};

use crate::error::{Fault, FaultCode};

mod validate;

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

impl CgroupSpec {
    /// The parent in a hierarchy whose guests' directories are delegated or not.
    pub(crate) fn parent_in<'a>(
        parent: &'a str,
        unified_parent: Option<&'a str>,
        delegated: bool,
    ) -> &'a str {
        unified_parent.filter(|_| delegated).unwrap_or(parent)
    }
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
