//! What a spec may say: every field that cannot or must not be run is refused by its name.

use super::{
    Attachment, Bpf, DeviceNode, IdKind, IdMap, Limits, Mount, Ownership, PortKind, PortSpec,
    SPEC_VERSION, Source, Spec,
};
use crate::error::{Fault, FaultCode};

impl Spec {
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
