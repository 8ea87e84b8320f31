//! Reaching a guest's files: of a running one through its monitor, of a stopped one through a mount that
//! is attached nowhere.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use berth_monitor::error::Fault;
use berth_monitor::spec::Attachment;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::ids::IdView;

/// A guest's root directory and how its ids look through it.
#[derive(Debug)]
pub struct GuestRoot {
    pub dir: OwnedFd,
    pub ids: IdView,
}

/// A volume of a stopped guest: its top, which holds `rootfs/`, `metadata.yaml` and `templates/`.
#[derive(Debug)]
pub struct Volume {
    top: OwnedFd,
}

impl Volume {
    /// Mounts it, detached; the mount ends with the value. In the mount namespace `ns` when given.
    pub fn open(attachment: &Attachment, ns: Option<&str>) -> Result<Volume, Fault> {
        if let Some(path) = ns {
            enter(path).map_err(|e| Fault::io("attachment", &e, format!("entering {path}")))?;
        }
        Ok(Volume {
            top: berth_monitor::attach::open_attachment(attachment, None)?,
        })
    }

    /// The root filesystem in it.
    pub fn rootfs(&self, ids: IdView) -> io::Result<GuestRoot> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let dir = rustix::fs::openat2(&self.top, "rootfs", flags, Mode::empty(), resolve)?;
        Ok(GuestRoot { dir, ids })
    }

    /// A file of the volume that is not the guest's, at most `max` bytes of it; `None` when there is none.
    pub fn read(&self, path: &str, max: u64) -> io::Result<Option<String>> {
        use std::io::Read;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let opened = rustix::fs::openat2(&self.top, path, flags, Mode::empty(), resolve);
        let fd = match opened {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            opened => opened?,
        };
        if !rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode).is_file() {
            return Err(io::Error::other(format!("{path} is no regular file")));
        }
        let mut text = String::new();
        let read = std::fs::File::from(fd)
            .take(max + 1)
            .read_to_string(&mut text)?;
        if read as u64 > max {
            return Err(io::Error::other(format!(
                "{path} is longer than {max} bytes"
            )));
        }
        Ok(Some(text))
    }
}

/// Joins a mount namespace with this thread alone, which must end afterwards.
fn enter(path: &str) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let ns = rustix::fs::open(path, flags, Mode::empty())?;
    // SAFETY: unshare(CLONE_FS) gives this thread its own working directory, which setns demands.
    if unsafe { libc::unshare(libc::CLONE_FS) } < 0 {
        return Err(io::Error::last_os_error());
    }
    use std::os::fd::AsRawFd;
    // SAFETY: setns changes this thread only; `ns` is an open namespace descriptor.
    if unsafe { libc::setns(ns.as_fd().as_raw_fd(), libc::CLONE_NEWNS) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
