//! Project quotas (ext4, xfs): limits and usage of a directory tree by its project id.

use std::os::fd::{AsFd, AsRawFd};

use crate::error::{Doing, Result};

const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820;
const FS_XFLAG_PROJINHERIT: u32 = 0x200;
const PRJQUOTA: i32 = 2;
const Q_XGETQSTAT: i32 = 0x5805;
const Q_GETQUOTA: i32 = 0x80_0007;
const Q_SETQUOTA: i32 = 0x80_0008;
const QIF_BLIMITS: u32 = 1;
const PDQ_ACCT: u16 = 1 << 4;
const PDQ_ENFD: u16 = 1 << 5;

#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

#[repr(C)]
#[derive(Default)]
struct Dqblk {
    bhardlimit: u64,
    bsoftlimit: u64,
    curspace: u64,
    ihardlimit: u64,
    isoftlimit: u64,
    curinodes: u64,
    btime: u64,
    itime: u64,
    valid: u32,
}

/// `quotactl_fd(2)`; `arg` must point at what `command` reads or writes.
fn quotactl<T>(dir: impl AsFd, command: i32, id: u32, arg: &mut T) -> std::io::Result<()> {
    // The kernel's QCMD: the command above the type's byte.
    let command = (command << 8) | PRJQUOTA;
    // SAFETY: callers pass the structure that the command is defined with; it outlives the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            dir.as_fd().as_raw_fd(),
            command,
            id,
            std::ptr::from_mut(arg),
        )
    };
    if rc < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// True when the filesystem counts and enforces project quotas.
pub fn enforced(dir: impl AsFd) -> bool {
    // struct fs_quota_stat, 80 bytes; qs_flags at offset 2.
    let mut stat = [0_u16; 128];
    quotactl(dir, Q_XGETQSTAT, 0, &mut stat).is_ok()
        && stat[1] & (PDQ_ACCT | PDQ_ENFD) == (PDQ_ACCT | PDQ_ENFD)
}

/// Marks an empty directory: everything made beneath it counts for project `id`.
pub fn assign(dir: impl AsFd, id: u32) -> Result<()> {
    let fd = dir.as_fd().as_raw_fd();
    let mut attr = FsXattr::default();
    // SAFETY: FSGETXATTR writes one struct fsxattr (28 bytes) to the pointer.
    if unsafe { libc::ioctl(fd, FS_IOC_FSGETXATTR, &mut attr) } < 0 {
        return Err(std::io::Error::last_os_error()).doing(|| "reading the project id");
    }
    attr.projid = id;
    attr.xflags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: FSSETXATTR reads one struct fsxattr from the pointer.
    if unsafe { libc::ioctl(fd, FS_IOC_FSSETXATTR, &attr) } < 0 {
        return Err(std::io::Error::last_os_error()).doing(|| "setting the project id");
    }
    Ok(())
}

/// Sets the hard limit of project `id`; `None` lifts it.
pub fn set_limit(dir: impl AsFd, id: u32, bytes: Option<u64>) -> Result<()> {
    let mut limit = Dqblk {
        bhardlimit: bytes.map_or(0, |b| b.div_ceil(1024).max(1)),
        valid: QIF_BLIMITS,
        ..Dqblk::default()
    };
    quotactl(dir, Q_SETQUOTA, id, &mut limit).doing(|| "setting a project quota")
}

/// Bytes that project `id` uses; `None` when the kernel has no record of it.
pub fn usage(dir: impl AsFd, id: u32) -> Result<Option<u64>> {
    let mut quota = Dqblk::default();
    match quotactl(dir, Q_GETQUOTA, id, &mut quota) {
        Ok(()) => Ok(Some(quota.curspace)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(error) => Err(error).doing(|| "reading a project quota"),
    }
}
