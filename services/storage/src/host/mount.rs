//! Mounts. A pool's filesystem is mounted detached: it has no place in any mount table, its
//! descriptor is the only way in, and it ends with the process that holds it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::error::{Doing, Error, Result};

/// Mounts `device` and gives the root directory, usable for reading and `ioctl`s.
/// `options` are filesystem options, `key` or `key=value`.
pub fn mount_detached(fs_type: &str, device: &Path, options: &[String]) -> Result<OwnedFd> {
    let context = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)
        .doing(|| format!("opening filesystem type {fs_type}"))?;
    fsconfig_set_string(&context, "source", device)
        .doing(|| format!("naming device {}", device.display()))?;
    for option in options {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, option.as_str()),
        }
        .map_err(|errno| {
            let why = kernel_log(&context);
            Error::invalid(
                "config.btrfs.mount_options",
                format!("mount option {option:?} is refused: {errno}{why}"),
            )
        })?;
    }
    fsconfig_create(&context).map_err(|errno| {
        let why = kernel_log(&context);
        Error::io(
            format!("mounting {} as {fs_type}{why}", device.display()),
            errno,
        )
    })?;
    // nodev and nosuid guard this service alone: guests' attributes come with the attachment.
    let mount = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID,
    )
    .doing(|| format!("mounting {}", device.display()))?;
    // fsmount gives an O_PATH descriptor; ioctls and readdir need an open one.
    rustix::fs::openat(&mount, ".", super::fs::DIRECTORY, rustix::fs::Mode::empty())
        .doing(|| format!("opening the root of {}", device.display()))
}

/// What the kernel says about a failed mount, as `" (text)"`, or nothing.
fn kernel_log(context: impl AsFd) -> String {
    let mut lines = Vec::new();
    let mut buffer = [0_u8; 1024];
    while let Ok(n) = rustix::io::read(&context, &mut buffer[..]) {
        if n == 0 || lines.len() > 8 {
            break;
        }
        lines.push(String::from_utf8_lossy(&buffer[..n]).trim().to_owned());
    }
    if lines.is_empty() {
        String::new()
    } else {
        format!(" ({})", lines.join("; "))
    }
}

/// Puts the process into a mount namespace of its own. Must run before any other thread exists.
/// The host's later mounts and unmounts still arrive here; nothing done here goes back.
pub fn private_mounts() -> Result<()> {
    // SAFETY: only the mount namespace is unshared, no descriptors or memory, and main calls this
    // while it is the only thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.doing(|| "making a private mount namespace")?;
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .doing(|| "keeping mounts private")
}
