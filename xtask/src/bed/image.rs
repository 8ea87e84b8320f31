//! The guest's disk, kernel and keys, made once from Debian's packages and kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::image::short_digest;
use crate::sandbox::paths;

/// What is installed in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Image {
    /// Everything that Berth and its tests use.
    Full,
    /// Debian as freshly installed, with ssh; the rest waits in a repository below
    /// `/var/local/repo`, which `apt install` uses.
    Plain,
}

impl std::fmt::Display for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Plain => "plain",
        })
    }
}

const SUITE: &str = "bookworm";

/// A small Debian, and what makes a virtual machine of it.
const PLAIN: &[&str] = &[
    "apparmor",
    "ca-certificates",
    "dbus",
    "ifupdown",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "less",
    "linux-image-cloud-amd64",
    "openssh-server",
    "procps",
    "systemd-sysv",
    "udev",
    "zstd",
];

/// What Berth's packages depend on, and what its tests run.
const TOOLS: &[&str] = &[
    "btrfs-progs",
    "busybox-static",
    "bzip2",
    "dnsmasq-base",
    "file",
    "libseccomp2",
    "lvm2",
    "lxcfs",
    "lxd-client",
    "nftables",
    "python3",
    "quota",
    "sqlite3",
    "squashfs-tools",
    "strace",
    "thin-provisioning-tools",
    "xfsprogs",
    "xz-utils",
];

const HOOK: &str = include_str!("hook.sh");

/// Size of the root filesystem; what is not used takes no room.
const SIZE: &str = "8G";

/// An image on disk.
#[derive(Clone, Debug)]
pub(super) struct Built {
    directory: PathBuf,
}

impl Built {
    pub(super) fn disk(&self) -> PathBuf {
        self.directory.join("disk")
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.directory.join("initrd")
    }

    /// Lets root in.
    pub(super) fn key(&self) -> PathBuf {
        self.directory.join("key")
    }

    /// A machine that has booted from the disk.
    pub(super) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub(super) fn known_hosts(&self) -> PathBuf {
        self.directory.join("known_hosts")
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The name under which ssh knows every bed.
pub(super) const HOST: &str = "bed";

/// Makes the image unless it is there; callers at the same time make it once. `finish` has the
/// last word on a new one; what it does depends on `recipe`.
pub(super) fn cached(
    image: Image,
    recipe: &str,
    finish: impl FnOnce(&Built) -> Result<()>,
) -> Result<Built> {
    let (include, repository) = match image {
        Image::Full => ([PLAIN, TOOLS].concat(), Vec::new()),
        Image::Plain => (PLAIN.to_vec(), TOOLS.to_vec()),
    };
    let (include, repository) = (include.join(","), repository.join(" "));
    let recipe = [SUITE, &include, &repository, HOOK, SIZE, recipe].map(str::as_bytes);
    let cache = paths::cache();
    let directory = cache.join(format!("bed-{image}-{}", short_digest(&recipe)));
    if let Ok(directory) = directory.canonicalize() {
        return Ok(Built { directory });
    }
    fs::create_dir_all(&cache)?;
    let lock = File::create(cache.join("bed.lock"))?;
    lock.lock()?;
    // Another may have made it meanwhile.
    if !directory.exists() {
        eprintln!("mmdebstrap: the bed's {image} Debian, once, about two minutes");
        let partial = cache.join("bed.partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir(&partial)?;
        make(&partial, &include, &repository)?;
        finish(&Built {
            directory: partial.canonicalize()?,
        })?;
        fs::rename(&partial, &directory)?;
    }
    let directory = directory.canonicalize()?;
    Ok(Built { directory })
}

fn make(out: &Path, include: &str, repository: &str) -> Result<()> {
    keygen(&out.join("key"))?;
    keygen(&out.join("host_key"))?;
    let host_key = fs::read_to_string(out.join("host_key.pub"))?;
    fs::write(out.join("known_hosts"), format!("{HOST} {host_key}"))?;
    fs::write(out.join("repository"), repository)?;
    let (hook, root) = (out.join("hook.sh"), out.join("root"));
    fs::write(&hook, HOOK)?;
    let quoted = |path: &Path| -> Result<String> {
        let path = path.canonicalize()?;
        let path = path.to_str().context("the cache's path is not UTF-8")?;
        Ok(shlex::try_quote(path)?.into_owned())
    };
    let mut mmdebstrap = Command::new("mmdebstrap");
    // The hook makes the initrd, with modules it has chosen.
    mmdebstrap.env("INITRD", "No");
    mmdebstrap.args(["--mode=root", "--variant=minbase", "--quiet"]);
    // The hook leaves the guest's own package list.
    mmdebstrap.arg("--skip=cleanup/apt/lists");
    mmdebstrap.arg(format!("--include={include}"));
    mmdebstrap.arg(format!(
        "--customize-hook=sh {} \"$1\" {}",
        quoted(&hook)?,
        quoted(out)?
    ));
    mmdebstrap.arg(SUITE).arg(&root);
    succeed(&mut mmdebstrap, "mmdebstrap")?;

    let disk = out.join("disk");
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-m", "0", "-O", "^metadata_csum"]);
    mke2fs.args(["-E", "root_owner=0:0,lazy_itable_init=1", "-d"]);
    mke2fs.arg(&root).arg(&disk).arg(SIZE);
    succeed(&mut mke2fs, "e2fsprogs")?;
    fs::remove_dir_all(&root)?;
    Ok(())
}

fn keygen(file: &Path) -> Result<()> {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "bed", "-f"]);
    succeed(keygen.arg(file), "openssh-client")
}

/// Runs a program that a Debian package brings.
fn succeed(command: &mut Command, package: &str) -> Result<()> {
    let program = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("{program} (package {package})"))?;
    if !output.status.success() {
        bail!(
            "{program}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
