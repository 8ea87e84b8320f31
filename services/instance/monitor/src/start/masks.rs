//! What of /proc and /sys a guest does not see or may not write.
//!
//! A user namespace already keeps a guest from what belongs to the host's root; the masks take away what is
//! readable by everybody and tells of the host, and the mount points that a guest's systemd would try (and
//! fail) to mount itself.

use std::os::fd::OwnedFd;

use super::tree;
use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::spec::Spec;
use crate::sys::{self, mount};

/// Files replaced by /dev/null.
const NULL_PROC: [&str; 5] = [
    "kcore",
    "timer_list",
    "timer_stats",
    "sched_debug",
    "latency_stats",
];
/// Directories replaced by an empty read-only one.
const EMPTY_PROC: [&str; 3] = ["acpi", "scsi", "asound"];
const EMPTY_SYS: [&str; 7] = [
    "firmware",
    "kernel/debug",
    "kernel/tracing",
    "kernel/security",
    "kernel/config",
    "fs/pstore",
    "fs/fuse/connections",
];
/// Left visible, made read-only.
const READ_ONLY_PROC: [&str; 4] = ["bus", "fs", "irq", "sysrq-trigger"];

/// Applies all masks. `proc` and `sysfs` are the attached mounts, `dev` the filled /dev.
pub(super) fn apply(spec: &Spec, dev: &OwnedFd, proc: &OwnedFd, sysfs: &OwnedFd) -> Result<()> {
    let null = sys::openat(dev, "null", libc::O_PATH | libc::O_NOFOLLOW, 0)
        .at("masks", "opening /dev/null")?;
    let stat = sys::fstat(&null).at("masks", "looking at /dev/null")?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFCHR || stat.st_rdev != libc::makedev(1, 3) {
        return Err(Fault::new(
            "masks",
            FaultCode::State,
            "/dev/null is not the null device",
        ));
    }
    for path in NULL_PROC {
        on(proc, path, |_| mount::clone_tree(&null, "", false))?;
    }
    for (base, paths) in [(proc, &EMPTY_PROC[..]), (sysfs, &EMPTY_SYS[..])] {
        for path in paths {
            on(base, path, |_| {
                let attr = mount::ATTR_RDONLY
                    | mount::ATTR_NOSUID
                    | mount::ATTR_NODEV
                    | mount::ATTR_NOEXEC;
                mount::new_filesystem(
                    "tmpfs",
                    Some("none"),
                    &["size=4k", "nr_inodes=2", "mode=555"],
                    attr,
                )
            })?;
        }
    }
    for path in READ_ONLY_PROC {
        on(proc, path, read_only_copy)?;
    }
    if spec.privileged && !spec.nesting {
        // Without a user namespace these would be the host's to change: only the network's part stays writable.
        keep_writable(proc, "sys/net", "sys")?;
        let net = tree::existing(sysfs, "devices/virtual/net")
            .at("masks", "finding devices/virtual/net")?;
        let net = net
            .map(|n| mount::clone_tree(&n, "", false))
            .transpose()
            .at("masks", "keeping devices/virtual/net")?;
        mount::set_attr(sysfs, mount::ATTR_RDONLY, 0, None, false)
            .at("masks", "making /sys read-only")?;
        if let Some(net) = net {
            on(sysfs, "devices/virtual/net", |_| Ok(net))?;
        }
    }
    Ok(())
}

/// Puts a mount over something beneath `base`; what this kernel does not have needs no mask.
fn on(
    base: &OwnedFd,
    path: &str,
    make: impl FnOnce(&OwnedFd) -> std::io::Result<OwnedFd>,
) -> Result<()> {
    let Some(place) = tree::existing(base, path).at("masks", format!("finding {path}"))? else {
        return Ok(());
    };
    let cover = make(&place).at("masks", format!("making the mask of {path}"))?;
    mount::attach(&cover, &place).at("masks", format!("masking {path}"))
}

fn read_only_copy(place: &OwnedFd) -> std::io::Result<OwnedFd> {
    let copy = mount::clone_tree(place, "", false)?;
    mount::set_attr(&copy, mount::ATTR_RDONLY, 0, None, false)?;
    Ok(copy)
}

/// Makes `outer` read-only but for `inner` beneath it.
fn keep_writable(base: &OwnedFd, inner: &str, outer: &str) -> Result<()> {
    let Some(place) = tree::existing(base, inner).at("masks", format!("finding {inner}"))? else {
        return Ok(());
    };
    let copy = mount::clone_tree(&place, "", false).at("masks", format!("keeping {inner}"))?;
    on(base, outer, read_only_copy)?;
    on(base, inner, |_| Ok(copy))
}
