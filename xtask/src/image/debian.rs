//! The Debian-sized image: bookworm with systemd, its address by systemd-networkd.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Written;
use super::archive::{self, Metadata, TarFile};

/// Midnight of the release of Debian 12: fixed, so that only the packages change the image.
const CREATED: u64 = 1_686_355_200;

/// udev, because systemd-networkd waits for it before it touches a link where /sys is writable.
const PACKAGES: &str = "systemd,systemd-sysv,systemd-resolved,udev,dbus,iproute2,procps";

/// Runs with the root filesystem as `$1`, after the packages are installed.
///
/// wait-online is masked because a guest must reach `running` without a network too; host name
/// and machine id are removed because each instance has its own.
const HOOK: &str = r#"
set -e
r=$1
mkdir -p "$r/etc/systemd/network"
cat >"$r/etc/systemd/network/10-eth0.network" <<END
[Match]
Name=eth0

[Network]
DHCP=yes
IPv6AcceptRA=yes

[DHCPv4]
ClientIdentifier=mac
UseDomains=yes
END
chroot "$r" systemctl --quiet enable systemd-networkd systemd-resolved
chroot "$r" systemctl --quiet mask systemd-networkd-wait-online.service
ln -sf ../run/systemd/resolve/stub-resolv.conf "$r/etc/resolv.conf"
rm -f "$r/etc/hostname" "$r/etc/.resolv.conf.systemd-resolved.bak" "$r/var/lib/dbus/machine-id"
: >"$r/etc/machine-id"
rm -rf "$r"/usr/share/doc/* "$r"/usr/share/man/* "$r"/usr/share/locale/* \
    "$r"/var/cache/apt/*.bin "$r"/var/lib/apt/lists/* "$r"/var/log/*.log
"#;

pub(super) fn write(out: &Path, split: bool, cache: &Path) -> Result<Written> {
    let metadata = Metadata {
        architecture: "x86_64",
        creation_date: CREATED,
        properties: BTreeMap::from([
            ("architecture", "amd64"),
            ("description", "Debian bookworm test image (amd64)"),
            ("name", "debian-bookworm-amd64"),
            ("os", "Debian"),
            ("release", "bookworm"),
            ("variant", "default"),
        ]),
    };
    archive::write(
        out,
        split,
        &metadata,
        &mut TarFile {
            file: rootfs(cache)?,
            created: CREATED,
        },
    )
}

/// Changes with what the image is made from.
pub(super) fn recipe() -> String {
    super::short_digest(&[PACKAGES.as_bytes(), HOOK.as_bytes()])
}

fn rootfs(cache: &Path) -> Result<PathBuf> {
    let tar = cache.join(format!("debian-rootfs-{}.tar", recipe()));
    if tar.exists() {
        return Ok(tar);
    }
    std::fs::create_dir_all(cache)?;
    eprintln!("mmdebstrap: a Debian root filesystem, once, about a minute");
    let hook = cache.join("debian-hook.sh");
    std::fs::write(&hook, HOOK)?;
    let partial = cache.join("debian-rootfs.partial.tar");
    let output = Command::new("mmdebstrap")
        .env("SOURCE_DATE_EPOCH", CREATED.to_string())
        .args(["--mode=root", "--variant=minbase", "--quiet"])
        .arg(format!("--include={PACKAGES}"))
        .arg(format!(
            "--customize-hook=sh {} \"$1\"",
            hook.canonicalize()?.display()
        ))
        .arg("bookworm")
        .arg(&partial)
        .output()
        .context("mmdebstrap (package mmdebstrap)")?;
    std::fs::remove_file(&hook)?;
    if !output.status.success() {
        bail!(
            "mmdebstrap: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    std::fs::rename(&partial, &tar)?;
    Ok(tar)
}
