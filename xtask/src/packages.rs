//! What Berth and its tests need from Debian, by package name.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// To build and to run.
pub const RUN: &[&str] = &[
    "btrfs-progs",
    "busybox-static",
    "ca-certificates",
    "dnsmasq-base",
    "gcc",
    "iproute2",
    "libc6-dev",
    "libseccomp-dev",
    "lxcfs",
    "lxd-client",
    "nftables",
    "pkg-config",
    "squashfs-tools",
];

/// To test, beside [`RUN`].
pub const TEST: &[&str] = &[
    "apparmor",
    "bzip2",
    "mmdebstrap",
    "postgresql",
    "python3",
    "python3-venv",
    "sqlite3",
    "strace",
    "systemd",
    "xz-utils",
    "zstd",
];

/// To make and check Debian packages.
pub const DEB: &[&str] = &["binutils", "dpkg-dev", "lintian", "shellcheck"];

/// To make and run the bed.
pub const BED: &[&str] = &[
    "binutils",
    "dpkg-dev",
    "e2fsprogs",
    "mmdebstrap",
    "openssh-client",
    "qemu-system-x86",
];

/// Installs those that are missing; needs root only when one is.
pub fn install(wanted: &[&str]) -> Result<()> {
    let missing = missing(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", missing.join(" "));
    ensure!(
        nix::unistd::geteuid().is_root(),
        "installing packages needs root"
    );
    apt(&["update", "--quiet"], &[])?;
    apt(
        &["install", "--quiet", "--yes", "--no-install-recommends"],
        &missing,
    )
}

fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut missing = Vec::new();
    for package in wanted {
        let status = Command::new("dpkg-query")
            .args(["--show", "--showformat=${db:Status-Status}", package])
            .stderr(Stdio::null())
            .output()
            .context("dpkg-query: is this Debian?")?;
        if status.stdout != b"installed" {
            missing.push(*package);
        }
    }
    Ok(missing)
}

fn apt(args: &[&str], packages: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(args)
        .args(packages)
        .output()
        .context("apt-get")?;
    if !output.status.success() {
        bail!(
            "apt-get {}: {}",
            args[0],
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
