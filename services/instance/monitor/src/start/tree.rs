//! Finding places in a guest's root filesystem, whose content is hostile.
//!
//! Everything is opened beneath a descriptor; symbolic links resolve inside the guest or not at all, and
//! mounts are attached to what was opened, never to a path that could have changed since.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::sys;
use crate::sys::mount;

/// A directory of ours (`proc`, `sys`, `dev`) at the guest's root, made when missing. A symbolic link or
/// anything else in its place is refused: following it would mount proc where the guest wants it.
pub(super) fn plain_dir(root: impl AsFd, name: &str) -> Result<OwnedFd> {
    let resolve = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_MAGICLINKS;
    let open = || sys::openat2(&root, name, libc::O_PATH | libc::O_DIRECTORY, 0, resolve);
    let opened = match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            sys::mkdirat(&root, name, 0o755).at("rootfs", format!("making /{name}"))?;
            open()
        }
        other => other,
    };
    opened.map_err(|e| {
        let text = format!("/{name} in the guest's root filesystem is not a directory");
        match e.raw_os_error() {
            Some(libc::ELOOP | libc::ENOTDIR) => {
                Fault::io("rootfs", &e, text).with_code(FaultCode::Invalid)
            }
            _ => Fault::io("rootfs", &e, format!("opening /{name}")),
        }
    })
}

/// The place for a mount at `path` as the guest sees it, made (directories, then a directory or an empty
/// file) where missing. Links are followed inside the root.
pub(crate) fn target(root: impl AsFd + Copy, path: &str, directory: bool) -> io::Result<OwnedFd> {
    let resolve = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS;
    let kind = if directory {
        libc::O_PATH | libc::O_DIRECTORY
    } else {
        libc::O_PATH
    };
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        return sys::openat2(root, "/", libc::O_PATH | libc::O_DIRECTORY, 0, resolve);
    }
    match sys::openat2(root, path, kind, 0, resolve) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let (parent, leaf) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = target(root, parent, true)?;
    let made = if directory {
        sys::mkdirat(&parent, leaf, 0o755)
    } else {
        sys::openat(
            &parent,
            leaf,
            libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY,
            0o644,
        )
        .map(|_| ())
    };
    match made {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let beneath = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_MAGICLINKS;
    sys::openat2(&parent, leaf, kind, 0, beneath)
}

/// The directory that holds `path` and the last component, for unmounting and unlinking it.
pub(crate) fn parent_of(root: impl AsFd, path: &str) -> io::Result<(OwnedFd, String)> {
    let path = path.trim_end_matches('/');
    let (parent, leaf) = path.rsplit_once('/').unwrap_or(("", path));
    if leaf.is_empty() || leaf == "." || leaf == ".." {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let parent = if parent.is_empty() { "/" } else { parent };
    let resolve = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS;
    let dir = sys::openat2(root, parent, libc::O_PATH | libc::O_DIRECTORY, 0, resolve)?;
    Ok((dir, leaf.to_owned()))
}

/// Attaches a detached mount at a path in the guest.
pub(crate) fn attach_at(root: impl AsFd + Copy, path: &str, tree: &OwnedFd) -> io::Result<()> {
    let place = target(root, path, sys::is_dir(tree)?)?;
    mount::attach(tree, &place)
}

/// Something beneath a filesystem of ours; `None` when this kernel does not have it.
pub(super) fn existing(dir: impl AsFd, path: &str) -> io::Result<Option<OwnedFd>> {
    let resolve = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_SYMLINKS | sys::RESOLVE_NO_MAGICLINKS;
    match sys::openat2(dir, path, libc::O_PATH | libc::O_NOFOLLOW, 0, resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn open_dir(path: &std::path::Path) -> OwnedFd {
        sys::open(path.to_str().unwrap(), libc::O_PATH | libc::O_DIRECTORY).unwrap()
    }

    #[test]
    fn symlinked_system_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/etc", dir.path().join("proc")).unwrap();
        std::fs::write(dir.path().join("sys"), "").unwrap();
        let root = open_dir(dir.path());
        for name in ["proc", "sys"] {
            let fault = plain_dir(&root, name).unwrap_err();
            assert_eq!(fault.code, FaultCode::Invalid, "{fault}");
        }
        plain_dir(&root, "dev").unwrap();
        assert!(dir.path().join("dev").is_dir());
    }

    #[test]
    fn links_never_leave_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        symlink("../../../../../../../../etc", dir.path().join("up")).unwrap();
        let root = open_dir(dir.path());
        // Links resolve inside: their targets do not exist there, and dangling links are not created through.
        assert!(target(&root, "/out/made", true).is_err());
        assert!(target(&root, "/up", true).is_err());
        assert!(target(&root, "/up/passwd", false).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        target(&root, "/a/b/c", true).unwrap();
        target(&root, "/a/b/file", false).unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
        assert!(dir.path().join("a/b/file").is_file());
    }

    #[test]
    fn parents() {
        let dir = tempfile::tempdir().unwrap();
        let root = open_dir(dir.path());
        assert_eq!(parent_of(&root, "/x").unwrap().1, "x");
        for bad in ["/", "/..", "/a/.", "/none/x"] {
            assert!(parent_of(&root, bad).is_err(), "{bad}");
        }
    }
}
