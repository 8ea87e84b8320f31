//! The service's configuration file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_server::{Configuration, Findings, ServerConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::app::Settings;

/// Name of the service's socket and directory.
pub const SERVICE: &str = "instance";

/// The ids from here up to 2^31 are nobody's by convention: useradd gives subordinate ids below 600,100,000,
/// LXD takes 1,000,000 to 1,001,000,000, systemd's containers end right before. Above 2^31 programs that take
/// an id for a signed number go wrong.
const ID_BASE: u32 = 0x7000_0000;
const ID_COUNT: u32 = 0x1000_0000;

/// Whether guests get an AppArmor profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Confinement {
    /// Where the kernel has AppArmor; a start fails when it cannot be used there.
    Auto,
    /// Never.
    Off,
}

/// Every key of the file; what is not there has these defaults.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What all services have.
    pub server: ServerConfig,
    /// Rows of a shared database that are this host's; the hostname when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Sockets of monitors, on a filesystem that does not outlive a boot.
    pub run_dir: PathBuf,
    /// Logs of instances; `logs` in `server.state_dir` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_dir: Option<PathBuf>,
    /// The `berth-monitor` binary; beside this one or in `../libexec/berth` from there when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<PathBuf>,
    /// First host id given to guests.
    pub id_base: u32,
    /// How many host ids there are for guests.
    pub id_count: u32,
    /// Ids of one guest, unless `security.idmap.size` says otherwise.
    pub id_length: u32,
    /// Directory below each cgroup hierarchy's root for guests.
    pub cgroup_parent: String,
    /// Mount namespace for host paths, e.g. `/proc/1/ns/mnt`; the service's own when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_mount_ns: Option<String>,
    /// Where lxcfs is mounted; empty: guests see the host's CPUs and memory.
    pub lxcfs_dir: PathBuf,
    /// Milliseconds that a guest's state may take to be told.
    pub state_deadline_ms: u64,
    /// Start guests after the host booted.
    pub autostart: bool,
    /// Do so when `berth-instance start-guests` asks for it (`berth-guests.service`), not when the service starts:
    /// storage and networks may come up later than it.
    pub autostart_waits: bool,
    /// How many of one priority start at once.
    pub autostart_parallel: usize,
    /// Confine guests with AppArmor where the kernel has it: `auto` or `off`.
    pub apparmor: Confinement,
    /// Under systemd, ask it for a delegated scope for guests.
    pub systemd_scope: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            server: ServerConfig::for_service(SERVICE),
            node: None,
            run_dir: PathBuf::from("/run/berth/instances"),
            log_dir: None,
            monitor: None,
            id_base: ID_BASE,
            id_count: ID_COUNT,
            id_length: 65_536,
            cgroup_parent: "berth".to_owned(),
            host_mount_ns: None,
            lxcfs_dir: PathBuf::from("/var/lib/lxcfs"),
            state_deadline_ms: 200,
            autostart: true,
            autostart_waits: false,
            autostart_parallel: 8,
            apparmor: Confinement::Auto,
            systemd_scope: true,
        }
    }
}

impl Config {
    pub fn log_dir(&self) -> PathBuf {
        self.log_dir
            .clone()
            .unwrap_or_else(|| self.server.state_dir.join("logs"))
    }

    /// The monitor's binary, by default the one built or installed with this program.
    pub fn monitor(&self) -> std::io::Result<PathBuf> {
        match &self.monitor {
            Some(path) => Ok(path.clone()),
            None => Ok(monitor_of(&std::env::current_exe()?)),
        }
    }

    /// What use cases need of it. `unified_parent`: the delegated scope, where there is one.
    pub fn settings(&self, unified_parent: Option<String>) -> Settings {
        let lxcfs = Some(self.lxcfs_dir.clone()).filter(|dir| !dir.as_os_str().is_empty());
        Settings {
            id_base: self.id_base,
            id_count: self.id_count,
            id_length: self.id_length,
            cgroup_parent: self.cgroup_parent.clone(),
            unified_parent,
            host_mount_ns: self.host_mount_ns.clone(),
            lxcfs_dir: lxcfs,
            state_deadline: Duration::from_millis(self.state_deadline_ms),
            autostart: self.autostart,
            autostart_parallel: self.autostart_parallel,
            apparmor: self.apparmor == Confinement::Auto,
            apparmor_dir: self.server.state_dir.join("apparmor"),
        }
    }
}

/// A build has it beside the service, a package in `libexec`: it is no command for users.
fn monitor_of(own: &Path) -> PathBuf {
    let bin = own.parent().unwrap_or(Path::new("/"));
    let installed = bin
        .parent()
        .map(|prefix| prefix.join("libexec/berth/berth-monitor"));
    let beside = bin.join("berth-monitor");
    installed
        .filter(|path| !beside.exists() && path.exists())
        .unwrap_or(beside)
}

impl Configuration for Config {
    const VARIABLES: &'static str = "BERTH_INSTANCE";

    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn check_own(&self, findings: &mut Findings) {
        findings.ensure(
            "id_base",
            self.id_base >= 65_536,
            "the first 65536 ids are the host's own",
        );
        findings.ensure(
            "id_count",
            self.id_base.checked_add(self.id_count).is_some(),
            "the range ends beyond the last id",
        );
        findings.ensure(
            "id_length",
            (1..=self.id_count).contains(&self.id_length),
            "no guest fits into id_count",
        );
        let plain = |part: &str| !matches!(part, "" | "." | "..");
        findings.ensure(
            "cgroup_parent",
            self.cgroup_parent.split('/').all(plain),
            "not a plain relative path",
        );
        findings.absolute("run_dir", &self.run_dir);
        if let Some(dir) = &self.log_dir {
            findings.absolute("log_dir", dir);
        }
        if let Some(monitor) = &self.monitor {
            findings.absolute("monitor", monitor);
        }
        if !self.lxcfs_dir.as_os_str().is_empty() {
            findings.absolute("lxcfs_dir", &self.lxcfs_dir);
        }
        if let Some(node) = &self.node {
            findings.ensure("node", !node.is_empty(), "must not be empty");
        }
        findings.ensure(
            "autostart_parallel",
            self.autostart_parallel > 0,
            "no guest would start",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monitor_is_found_where_builds_and_packages_put_it() {
        let prefix = tempfile::tempdir().unwrap();
        let (bin, libexec) = (
            prefix.path().join("bin"),
            prefix.path().join("libexec/berth"),
        );
        let own = bin.join("berth-instance");
        // Nothing there: the error will name the place beside the service.
        assert_eq!(monitor_of(&own), bin.join("berth-monitor"));
        for directory in [&libexec, &bin] {
            std::fs::create_dir_all(directory).unwrap();
            std::fs::write(directory.join("berth-monitor"), "").unwrap();
            assert_eq!(monitor_of(&own), directory.join("berth-monitor"));
        }
    }

    #[test]
    fn defaults_are_valid_and_wrong_values_are_named() {
        let found = |config: &Config| {
            let mut findings = Findings::default();
            config.check(&mut findings);
            findings.keys().map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(found(&Config::default()).is_empty());
        for (change, key) in [
            (
                (|c: &mut Config| c.id_base = 0) as fn(&mut Config),
                "id_base",
            ),
            (|c| c.id_count = u32::MAX, "id_count"),
            (|c| c.id_length = 0, "id_length"),
            (|c| c.cgroup_parent = "../x".into(), "cgroup_parent"),
            (|c| c.run_dir = "run".into(), "run_dir"),
            (|c| c.autostart_parallel = 0, "autostart_parallel"),
        ] {
            let mut config = Config::default();
            change(&mut config);
            assert_eq!(found(&config), [key]);
        }
    }
}
