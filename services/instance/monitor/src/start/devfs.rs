//! /dev: a small tmpfs of the guest's own, the host's harmless nodes bound in, terminals.

use std::os::fd::{AsRawFd, OwnedFd};

use super::tree;
use crate::error::{AtStage, Result};
use crate::sys::{self, mount};

pub(super) struct Dev {
    pub(super) fd: OwnedFd,
    pub(super) pts: OwnedFd,
}

/// A terminal of the guest's devpts.
pub(super) struct Console {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

/// Mounts and fills /dev. `nested` are unmasked proc and sysfs for `security.nesting`.
pub(super) fn mount_dev(
    root: &OwnedFd,
    nodes: &[(&'static str, OwnedFd)],
    nested: Option<(OwnedFd, OwnedFd)>,
) -> Result<Dev> {
    let tmpfs = |size: &str, mode: &str, attr| {
        mount::new_filesystem("tmpfs", Some("tmpfs"), &[size, mode], attr)
            .at("devices", "making a tmpfs")
    };
    let dev = tmpfs("size=1m", "mode=755", mount::ATTR_NOSUID)?;
    mount::attach(&dev, tree::plain_dir(root, "dev")?).at("devices", "attaching /dev")?;
    for dir in ["pts", "shm", "mqueue", "net"] {
        sys::mkdirat(&dev, dir, 0o755).at("devices", format!("making /dev/{dir}"))?;
    }
    let place = |name: &str| tree::plain_dir(&dev, name);
    let quiet = mount::ATTR_NOSUID | mount::ATTR_NOEXEC;
    let options = [
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
        "max=1024",
    ];
    let pts = mount::new_filesystem("devpts", Some("devpts"), &options, quiet)
        .at("devices", "making devpts")?;
    mount::attach(&pts, place("pts")?).at("devices", "attaching /dev/pts")?;
    let shm = tmpfs(
        "size=50%",
        "mode=1777",
        mount::ATTR_NOSUID | mount::ATTR_NODEV,
    )?;
    mount::attach(&shm, place("shm")?).at("devices", "attaching /dev/shm")?;
    let mqueue = mount::new_filesystem("mqueue", Some("mqueue"), &[], quiet | mount::ATTR_NODEV)
        .at("devices", "making mqueue")?;
    mount::attach(&mqueue, place("mqueue")?).at("devices", "attaching /dev/mqueue")?;
    for (name, node) in nodes {
        let file = new_file(&dev, name)?;
        mount::attach(node, &file).at("devices", format!("binding /dev/{name}"))?;
    }
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    for (name, target) in links {
        sys::symlinkat(target, &dev, name).at("devices", format!("linking /dev/{name}"))?;
    }
    if let Some((proc, sysfs)) = nested {
        for (dir, tree) in [("proc", proc), ("sys", sysfs)] {
            let path = format!("/.lxc/{dir}");
            tree::attach_at(&dev, &path, &tree).at("devices", format!("attaching /dev{path}"))?;
        }
    }
    Ok(Dev { fd: dev, pts })
}

/// An empty file on the fresh tmpfs.
fn new_file(dev: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY;
    sys::openat(dev, name, flags, 0o644).at("devices", format!("making /dev/{name}"))?;
    sys::openat(dev, name, libc::O_PATH | libc::O_NOFOLLOW, 0)
        .at("devices", format!("opening /dev/{name}"))
}

/// The console: a pty of the guest's devpts, its slave bound to /dev/console.
pub(super) fn make_console(dev: &Dev) -> Result<Console> {
    let (master, slave) = open_pty(&dev.pts).at("console", "opening a terminal")?;
    let bind = mount::clone_tree(&slave, "", false).at("console", "binding the terminal")?;
    let file = new_file(&dev.fd, "console")?;
    mount::attach(&bind, &file).at("console", "attaching /dev/console")?;
    Ok(Console { master, slave })
}

/// A new pty beneath a devpts directory, no path looked up outside it.
pub(crate) fn open_pty(devpts: &OwnedFd) -> std::io::Result<(OwnedFd, OwnedFd)> {
    const TIOCGPTPEER: libc::c_ulong = 0x5441;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // The guest may have bound something else over it, which the monitor must not open.
    let resolve = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_XDEV | sys::RESOLVE_NO_SYMLINKS;
    let master = sys::openat2(devpts, "ptmx", flags, 0, resolve)?;
    let unlock: i32 = 0;
    // SAFETY: the ioctl reads one int.
    sys::check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock) })?;
    // SAFETY: the ioctl takes open flags and gives a descriptor.
    let slave = sys::own(unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER as _, flags) })?;
    Ok((master, slave))
}

/// The console as stdin, stdout and stderr, but not as the controlling terminal: an interrupt typed there
/// would go to init, which takes it for ctrl-alt-del and reboots, and a shell on it could not have it.
pub(super) fn take_console(console: &Console) -> Result<()> {
    for fd in 0..3 {
        sys::dup2(console.slave.as_raw_fd(), fd).at("console", "taking stdio")?;
    }
    Ok(())
}
