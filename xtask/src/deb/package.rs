//! What is in which package.

/// One package.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    pub name: &'static str,
    /// The first line of its description.
    pub summary: &'static str,
    pub description: &'static str,
    /// Binaries and the directories they go to.
    pub binaries: &'static [(&'static str, &'static str)],
    /// Binaries that write their own manual pages and completions.
    pub documented: &'static [&'static str],
    /// The service whose configuration, AppArmor profile and scripts it has.
    pub service: Option<&'static str>,
    /// Of `systemd/`.
    pub units: &'static [&'static str],
    /// Files of the repository and where they go.
    pub files: &'static [(&'static str, &'static str)],
    /// Beside the libraries that its binaries are linked with. `@version@` stands for its own.
    pub depends: &'static [&'static str],
    pub recommends: &'static [&'static str],
    pub suggests: &'static [&'static str],
}

const NONE: Package = Package {
    name: "",
    summary: "",
    description: "",
    binaries: &[],
    documented: &[],
    service: None,
    units: &[],
    files: &[],
    depends: &[],
    recommends: &[],
    suggests: &[],
};

const COMMON: &str = "berth-common (>= @version@)";

/// In the order in which they can be configured.
pub const PACKAGES: &[Package] = &[
    Package {
        name: "berth-common",
        summary: "manager of Linux systems - user, directories and target",
        description: "Berth runs full Linux systems from images and speaks LXD's REST API.\n\n\
            This package has what its services share: the system user and group berth, /run/berth, /var/lib/berth, \
            and berth.target, which starts and stops the services that are installed.",
        files: &[
            ("systemd/berth.sysusers", "usr/lib/sysusers.d/berth.conf"),
            ("systemd/berth.tmpfiles", "usr/lib/tmpfiles.d/berth.conf"),
        ],
        units: &["berth.target"],
        // Where systemd is not init, its two tools alone do.
        depends: &[
            "init-system-helpers (>= 1.52)",
            "passwd",
            "systemd | systemd-standalone-sysusers",
            "systemd | systemd-standalone-tmpfiles",
        ],
        ..NONE
    },
    Package {
        name: "berth-image",
        summary: "manager of Linux systems - images",
        description: "Berth runs full Linux systems from images and speaks LXD's REST API.\n\n\
            This service keeps images: their bytes by SHA-256, their properties and aliases. It needs no privilege \
            and serves berth.image.v1 over gRPC to any client.",
        binaries: &[("berth-image", "usr/bin")],
        documented: &["berth-image"],
        service: Some("image"),
        units: &["berth-image.service", "berth-image.socket"],
        depends: &[COMMON, "apparmor"],
        ..NONE
    },
    Package {
        name: "berth-storage",
        summary: "manager of Linux systems - storage pools and volumes",
        description: "Berth runs full Linux systems from images and speaks LXD's REST API.\n\n\
            This service owns storage pools (directories, btrfs), volumes, snapshots and quotas. It serves \
            berth.storage.v1 over gRPC to any client.",
        binaries: &[("berth-storage", "usr/bin")],
        documented: &["berth-storage"],
        service: Some("storage"),
        units: &["berth-storage.service", "berth-storage.socket"],
        depends: &[COMMON, "apparmor", "btrfs-progs"],
        ..NONE
    },
    Package {
        name: "berth-network",
        summary: "manager of Linux systems - bridges, DHCP, DNS and NAT",
        description: "Berth runs full Linux systems from images and speaks LXD's REST API.\n\n\
            This service owns bridges, their addresses and leases by dnsmasq, NAT and filters in a table of nf_tables \
            of its own. It serves berth.network.v1 over gRPC to any client.",
        binaries: &[("berth-network", "usr/bin")],
        documented: &["berth-network"],
        service: Some("network"),
        units: &["berth-network.service", "berth-network.socket"],
        depends: &[COMMON, "apparmor", "dnsmasq-base"],
        // It speaks to the kernel itself; people want to see the rules.
        recommends: &["nftables"],
        ..NONE
    },
    Package {
        name: "berth-instance",
        summary: "manager of Linux systems - instances",
        description: "Berth runs full Linux systems from images and speaks LXD's REST API.\n\n\
            This service runs instances and keeps their configuration, profiles and snapshots. Each instance belongs to \
            a small monitor of its own and outlives any restart or upgrade of the service, which serves \
            berth.instance.v1 over gRPC to any client.",
        binaries: &[
            ("berth-instance", "usr/bin"),
            ("berth-monitor", "usr/libexec/berth"),
        ],
        documented: &["berth-instance"],
        service: Some("instance"),
        units: &[
            "berth-instance.service",
            "berth-instance.socket",
            "berth-guests.service",
        ],
        depends: &[
            COMMON,
            "apparmor",
            "default-dbus-system-bus | dbus-system-bus",
            "lxcfs",
        ],
        ..NONE
    },
    Package {
        name: "berth-gateway",
        summary: "manager of Linux systems - LXD's REST API",
        description: "Berth runs full Linux systems from images and speaks LXD's REST API.\n\n\
            This service presents LXD's REST API, and the same over gRPC, and coordinates the image, storage, network \
            and instance services, on this host or elsewhere. It needs no privilege.",
        binaries: &[("berth-gateway", "usr/bin")],
        documented: &["berth-gateway"],
        service: Some("gateway"),
        units: &[
            "berth-gateway.service",
            "berth-gateway.socket",
            "berth-rest.socket",
        ],
        depends: &[COMMON, "apparmor"],
        suggests: &["lxd-client"],
        ..NONE
    },
    Package {
        name: "berth-cli",
        summary: "manager of Linux systems - command line",
        description: "Berth runs full Linux systems from images and speaks LXD's REST API.\n\n\
            This is its command line, which drives any server that speaks LXD's REST API over a unix socket. It can be \
            installed beside lxd-client.",
        binaries: &[("berth", "usr/bin")],
        documented: &["berth"],
        suggests: &["lxd-client"],
        ..NONE
    },
    Package {
        name: "berth",
        summary: "manager of Linux systems (metapackage)",
        description: "Berth runs full Linux systems from images and speaks LXD's REST API: lxc, pylxd and Ansible drive \
            it unmodified.\n\n\
            This package pulls in all of it: five services, which can also be installed each on its own, and the \
            command line.",
        depends: &[
            "berth-common (>= @version@)",
            "berth-image (>= @version@)",
            "berth-storage (>= @version@)",
            "berth-network (>= @version@)",
            "berth-instance (>= @version@)",
            "berth-gateway (>= @version@)",
            "berth-cli (>= @version@)",
        ],
        suggests: &["lxd-client"],
        ..NONE
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sandbox::SERVICES;
    use crate::sandbox::paths::{BINARIES, workspace};

    #[test]
    fn every_binary_is_in_one_package_and_every_service_has_one() {
        let packed: Vec<_> = PACKAGES
            .iter()
            .flat_map(|package| package.binaries.iter().map(|(name, _)| *name))
            .collect();
        let built: BTreeSet<_> = BINARIES.iter().map(|(_, binary)| *binary).collect();
        assert_eq!(packed.len(), built.len());
        assert_eq!(packed.into_iter().collect::<BTreeSet<_>>(), built);
        let services: BTreeSet<_> = PACKAGES
            .iter()
            .filter_map(|package| package.service)
            .collect();
        assert_eq!(services, BTreeSet::from(SERVICES));
    }

    /// Units and profiles that somebody adds to the repository are not forgotten.
    #[test]
    fn everything_of_systemd_is_in_one_package() {
        let mut packed: Vec<String> = Vec::new();
        for package in PACKAGES {
            packed.extend(package.units.iter().map(|unit| (*unit).to_owned()));
            let files = package
                .files
                .iter()
                .filter_map(|(from, _)| from.strip_prefix("systemd/"));
            packed.extend(files.map(str::to_owned));
        }
        for entry in std::fs::read_dir(workspace().join("systemd")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.path().is_dir() {
                assert_eq!(name, "apparmor", "a directory of services' profiles");
                continue;
            }
            let times = packed.iter().filter(|packed| **packed == name).count();
            assert_eq!(times, 1, "{name}");
        }
    }

    #[test]
    fn the_one_package_pulls_in_all_others() {
        let (all, others) = PACKAGES.split_last().unwrap();
        let wanted: Vec<_> = others
            .iter()
            .map(|package| format!("{} (>= @version@)", package.name))
            .collect();
        assert_eq!(all.name, "berth");
        assert_eq!(all.depends, wanted);
    }
}
