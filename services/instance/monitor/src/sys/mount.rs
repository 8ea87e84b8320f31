//! The mount API by descriptors: nothing here takes a path that a guest could have made.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount as rx;

use super::{check, check_long, cstring};

pub const ATTR_RDONLY: u64 = 0x1;
pub const ATTR_NOSUID: u64 = 0x2;
pub const ATTR_NODEV: u64 = 0x4;
pub const ATTR_NOEXEC: u64 = 0x8;
pub const ATTR_IDMAP: u64 = 0x0010_0000;

/// A new filesystem instance as a detached mount. `options` are `key` or `key=value`.
pub(crate) fn new_filesystem(
    fs_type: &str,
    source: Option<&str>,
    options: &[&str],
    attr: u64,
) -> io::Result<OwnedFd> {
    let fs = rx::fsopen(fs_type, rx::FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some(source) = source {
        rx::fsconfig_set_string(&fs, "source", source)?;
    }
    for option in options {
        match option.split_once('=') {
            Some((key, value)) => rx::fsconfig_set_string(&fs, key, value)?,
            None => rx::fsconfig_set_flag(&fs, *option)?,
        }
    }
    rx::fsconfig_create(&fs).map_err(|e| with_log(&fs, e.into()))?;
    let attr = rx::MountAttrFlags::from_bits_retain(attr as u32);
    Ok(rx::fsmount(&fs, rx::FsMountFlags::FSMOUNT_CLOEXEC, attr)?)
}

/// The kernel tells on the filesystem context why it refused; errno alone (EINVAL) says little.
fn with_log(fs: &OwnedFd, error: io::Error) -> io::Error {
    let mut text = [0; 512];
    match super::read(fs, &mut text) {
        Ok(n) if n > 2 && error.raw_os_error() == Some(libc::EINVAL) => {
            let told = String::from_utf8_lossy(&text[2..n]).trim().to_owned();
            io::Error::new(io::ErrorKind::InvalidInput, told)
        }
        _ => error,
    }
}

/// A detached copy of what `dir`/`path` shows; `path` may be empty for `dir` itself.
pub(crate) fn clone_tree(dir: impl AsFd, path: &str, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = rx::OpenTreeFlags::OPEN_TREE_CLONE
        | rx::OpenTreeFlags::OPEN_TREE_CLOEXEC
        | rx::OpenTreeFlags::AT_EMPTY_PATH
        | rx::OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    if recursive {
        flags |= rx::OpenTreeFlags::AT_RECURSIVE;
    }
    private(rx::open_tree(dir, path, flags)?, recursive)
}

/// A detached copy of a host path; symbolic links in it are the administrator's and followed.
pub(crate) fn clone_path(path: &str, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = rx::OpenTreeFlags::OPEN_TREE_CLONE | rx::OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= rx::OpenTreeFlags::AT_RECURSIVE;
    }
    private(rx::open_tree(CWD, path, flags)?, recursive)
}

/// Takes a copy out of the peer group of what it was copied from: on hosts where mounts are shared (systemd's)
/// a guest's mount on top of it would appear on the host, over /dev/null for one.
fn private(tree: OwnedFd, recursive: bool) -> io::Result<OwnedFd> {
    let attr = MountAttr {
        set: 0,
        clear: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    change(&tree, &attr, recursive)?;
    Ok(tree)
}

/// Attaches a detached mount on what `target` is, no path involved.
pub(crate) fn attach(tree: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags =
        rx::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | rx::MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rx::move_mount(tree, "", target, "", flags)?)
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// mount_setattr(2) on the mount itself. `userns` goes with [`ATTR_IDMAP`].
pub(crate) fn set_attr(
    mount: impl AsFd,
    set: u64,
    clear: u64,
    userns: Option<&OwnedFd>,
    recursive: bool,
) -> io::Result<()> {
    let attr = MountAttr {
        set,
        clear,
        propagation: 0,
        userns_fd: userns.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    change(mount, &attr, recursive)
}

fn change(mount: impl AsFd, attr: &MountAttr, recursive: bool) -> io::Result<()> {
    const AT_RECURSIVE: i32 = 0x8000;
    let flags = libc::AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: attr is laid out as struct mount_attr and lives over the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            attr,
            size_of::<MountAttr>(),
        )
    };
    check_long(done).map(|_| ())
}

/// Propagation of a whole tree (`MS_PRIVATE`, `MS_SHARED`) by path.
pub(crate) fn propagation(path: &str, kind: libc::c_ulong) -> io::Result<()> {
    let path = cstring(path)?;
    // SAFETY: path lives over the call; the others may be null for a propagation change.
    let done = unsafe {
        libc::mount(
            std::ptr::null(),
            path.as_ptr(),
            std::ptr::null(),
            libc::MS_REC | kind,
            std::ptr::null(),
        )
    };
    check(done).map(|_| ())
}

/// Makes the working directory the root and drops the old one.
pub(crate) fn pivot_into_cwd() -> io::Result<()> {
    // SAFETY: literals.
    check_long(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    // The old root now lies on top of ".".
    // SAFETY: literal.
    check(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) })?;
    Ok(())
}

/// Unmounts `name` in the working directory without following it.
pub(crate) fn unmount_in_cwd(name: &str) -> io::Result<()> {
    let name = cstring(name)?;
    // SAFETY: name lives over the call.
    check(unsafe { libc::umount2(name.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) })
        .map(|_| ())
}
