//! Where a btrfs pool's filesystem comes from: a loop file, a block device, or one that is there.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Access, Setup, SourceKind, empty_dir};
use crate::error::{Doing, Error, Result};
use crate::host::{self, btrfs, loopdev, loopdev::LoopDevice, mount};

const GIB: u64 = 1 << 30;
/// mkfs.btrfs refuses less.
const SMALLEST: u64 = 114_294_784;

/// A filesystem that is ready, and the pool's top directory in it.
pub(super) struct Opened {
    pub(super) fd: OwnedFd,
    pub(super) access: Access,
    pub(super) device: Option<LoopDevice>,
}

pub(super) fn plan(
    state_dir: &Path,
    source: Option<&str>,
    size: Option<u64>,
    setup: &mut Setup,
) -> Result<()> {
    let Some(path) = source.filter(|s| !s.is_empty()) else {
        setup.kind = SourceKind::Loop;
        setup.source = state_dir.join("disks").join(format!("{}.img", setup.uid));
        setup.size = match size {
            Some(size) if size < SMALLEST => {
                return Err(Error::invalid(
                    "config.size",
                    format!("a btrfs pool needs at least {SMALLEST} bytes"),
                ));
            }
            Some(size) => size / 4096 * 4096,
            None => default_size(state_dir)?,
        };
        return Ok(());
    };
    if !path.starts_with('/') {
        return Err(Error::invalid(
            "config.source",
            format!("source {path:?} is not an absolute path"),
        ));
    }
    if size.is_some() {
        return Err(Error::invalid(
            "config.size",
            "size goes with a loop file only: leave out source, or leave out size",
        ));
    }
    setup.source = PathBuf::from(path);
    match std::fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => setup.kind = SourceKind::Device,
        Ok(meta) if meta.is_dir() => setup.kind = SourceKind::Directory,
        Ok(_) => {
            return Err(Error::invalid(
                "config.source",
                format!("source {path} is neither a directory nor a block device"),
            ));
        }
        Err(error) => {
            return Err(Error::invalid(
                "config.source",
                format!("source {path}: {error}"),
            ));
        }
    }
    Ok(())
}

/// A fifth of what is free, between 5 and 30 GiB, as LXD does.
fn default_size(state_dir: &Path) -> Result<u64> {
    let space = host::fs::space(host::fs::open_admin_dir(state_dir)?)?;
    Ok((space.available / 5).clamp(5 * GIB, 30 * GIB) / 4096 * 4096)
}

pub(super) fn make(setup: &mut Setup) -> Result<()> {
    match setup.kind {
        SourceKind::Loop => {
            if let Some(parent) = setup.source.parent() {
                std::fs::create_dir_all(parent)
                    .doing(|| format!("making directory {}", parent.display()))?;
            }
            make_file(&setup.source, setup.size)?;
            mkfs(setup)?;
            setup.fs_uuid = setup.uid.clone();
        }
        SourceKind::Device => {
            mkfs(setup)?;
            setup.fs_uuid = setup.uid.clone();
        }
        SourceKind::Directory => {
            let fd = empty_dir(&setup.source)?;
            if host::fs::magic(&fd)? != host::fs::BTRFS_MAGIC {
                return Err(Error::invalid(
                    "config.source",
                    format!(
                        "source {} is not on a btrfs filesystem",
                        setup.source.display()
                    ),
                ));
            }
            setup.fs_uuid = btrfs::fs_uuid(&fd)?;
            return Ok(());
        }
    }
    // Quotas come before the first byte, so that every extent is counted.
    let opened = open(setup)?;
    if let Err(error) = btrfs::enable_simple_quota(&opened.fd) {
        // Kernels before 6.7 have no simple quotas. Full ones would make every clone 25 times
        // slower, so there are none then; the pool says so.
        tracing::warn!(pool = setup.name, %error, "sizes are not enforced in this pool");
    }
    Ok(())
}

fn make_file(path: &Path, size: u64) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .doing(|| format!("making {}", path.display()))?;
    file.set_len(size)
        .doing(|| format!("sizing {}", path.display()))
}

/// The one program that is run: there is no other maker of btrfs filesystems.
fn mkfs(setup: &Setup) -> Result<()> {
    let output = Command::new("mkfs.btrfs")
        .arg("--quiet")
        .args(["--uuid", &setup.uid])
        .args(["--label", &setup.name])
        .arg("--")
        .arg(&setup.source)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::Precondition(
                "mkfs.btrfs isn't installed (Debian package btrfs-progs)".into(),
            ),
            _ => Error::io("running mkfs.btrfs", error),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Precondition(format!(
        "mkfs.btrfs failed on {}: {}",
        setup.source.display(),
        said.trim().replace('\n', "; ")
    )))
}

/// Options of the mount itself, `ro` and the like, are not filesystem options.
fn fs_options(setup: &Setup) -> Vec<String> {
    setup.mount_options.clone()
}

pub(super) fn open(setup: &Setup) -> Result<Opened> {
    let (device, path, seq) = match setup.kind {
        SourceKind::Directory => {
            let fd = host::fs::open_admin_dir(&setup.source)?;
            if host::fs::magic(&fd)? != host::fs::BTRFS_MAGIC {
                return Err(Error::Unavailable(format!(
                    "{} is not on btrfs now: is its filesystem mounted?",
                    setup.source.display()
                )));
            }
            check_uuid(setup, &fd)?;
            return Ok(Opened {
                fd,
                access: Access::HostPath(setup.source.clone()),
                device: None,
            });
        }
        SourceKind::Loop => {
            // Guests may still be mounted from a device of an earlier run: it must be that one.
            let device = match LoopDevice::find(&setup.source)? {
                Some(device) => device,
                None => LoopDevice::attach(&setup.source)?,
            };
            let (path, seq) = (device.path.clone(), device.diskseq()?);
            (Some(device), path, seq)
        }
        SourceKind::Device => {
            let file = std::fs::File::open(&setup.source)
                .doing(|| format!("opening {}", setup.source.display()))?;
            (
                None,
                setup.source.clone(),
                loopdev::diskseq(file.as_raw_fd())?,
            )
        }
    };
    let options = fs_options(setup);
    let fd = mount::mount_detached("btrfs", &path, &options)?;
    check_uuid(setup, &fd)?;
    Ok(Opened {
        fd,
        access: Access::Device {
            path,
            diskseq: seq,
            fs_type: "btrfs",
            options,
            fs_uuid: setup.fs_uuid.clone(),
        },
        device,
    })
}

fn check_uuid(setup: &Setup, fd: &OwnedFd) -> Result<()> {
    if setup.fs_uuid.is_empty() {
        return Ok(());
    }
    let found = btrfs::fs_uuid(fd)?;
    if found == setup.fs_uuid {
        return Ok(());
    }
    Err(Error::Unavailable(format!(
        "{} holds filesystem {found}, not this pool's {}",
        setup.source.display(),
        setup.fs_uuid
    )))
}

pub(super) fn unmake(setup: &Setup) -> Result<()> {
    match setup.kind {
        SourceKind::Directory => match host::fs::open_admin_dir(&setup.source) {
            Ok(fd) => super::dir::remove_empty_areas(fd),
            Err(error) if error.is_errno(libc::ENOENT) => Ok(()),
            Err(error) => Err(error),
        },
        // The device is the administrator's; its filesystem stays for them to wipe.
        SourceKind::Device => Ok(()),
        SourceKind::Loop => {
            if let Some(device) = LoopDevice::find(&setup.source)? {
                device.detach()?;
            }
            match std::fs::remove_file(&setup.source) {
                Ok(()) => Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error).doing(|| format!("removing {}", setup.source.display())),
            }
        }
    }
}
