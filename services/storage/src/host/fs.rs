//! Access beneath a directory descriptor, and facts about filesystems.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use crate::error::{Doing, Result};

/// Flags of every directory that is opened here.
pub const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// How paths from outside are resolved: never up, never through any link.
pub const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Opens the directory `path` beneath `dir`, through no link.
pub fn open_dir_beneath(
    dir: impl AsFd,
    path: impl rustix::path::Arg,
) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(dir, path, DIRECTORY, Mode::empty(), BENEATH)
}

/// Opens a directory that an administrator named; links are theirs to use.
pub fn open_admin_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing(|| format!("opening directory {}", path.display()))
}

/// Makes `name` in `dir` with `mode` unless it is there, and opens it.
pub fn ensure_dir(dir: impl AsFd, name: &str, mode: u32) -> Result<OwnedFd> {
    match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(errno).doing(|| format!("making directory {name}")),
    }
    open_dir_beneath(&dir, name).doing(|| format!("opening directory {name}"))
}

/// Metadata without following a link.
pub fn lstat(dir: impl AsFd, name: &CStr) -> rustix::io::Result<Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// True when `name` exists in `dir`.
pub fn exists(dir: impl AsFd, name: &str) -> Result<bool> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno).doing(|| format!("looking up {name}")),
    }
}

/// Names in a directory, without `.` and `..`.
pub fn names(dir: impl AsFd) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let entries = Dir::read_from(dir).doing(|| "reading a directory")?;
    for entry in entries {
        let entry = entry.doing(|| "reading a directory")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            out.push(name);
        }
    }
    Ok(out)
}

/// Space and inodes of the filesystem that holds a descriptor, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes in use.
    pub used: u64,
    /// Bytes there are.
    pub total: u64,
    /// Bytes an ordinary user may still take.
    pub available: u64,
    /// Inodes in use; 0 where the filesystem doesn't count them.
    pub inodes_used: u64,
    /// Inodes there are; 0 where the filesystem doesn't count them.
    pub inodes_total: u64,
}

/// Reads [`Space`].
pub fn space(dir: impl AsFd) -> Result<Space> {
    let s = rustix::fs::fstatvfs(dir).doing(|| "reading the filesystem's size")?;
    Ok(Space {
        used: s
            .f_blocks
            .saturating_sub(s.f_bfree)
            .saturating_mul(s.f_frsize),
        total: s.f_blocks.saturating_mul(s.f_frsize),
        available: s.f_bavail.saturating_mul(s.f_frsize),
        inodes_used: s.f_files.saturating_sub(s.f_ffree),
        inodes_total: s.f_files,
    })
}

/// Magic number of btrfs in statfs.
pub const BTRFS_MAGIC: i64 = 0x9123_683e;

/// Magic number of the filesystem that holds a descriptor.
pub fn magic(dir: impl AsFd) -> Result<i64> {
    let s = rustix::fs::fstatfs(dir).doing(|| "reading the filesystem's kind")?;
    Ok(s.f_type)
}

/// True for filesystems that take idmapped mounts on the kernels this runs on (5.15 and later).
pub fn can_idmap(magic: i64) -> bool {
    const EXT4: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    const F2FS: i64 = 0xf2f5_2010;
    const TMPFS: i64 = 0x0102_1994;
    matches!(magic, EXT4 | XFS | F2FS | TMPFS | BTRFS_MAGIC)
}

/// `/proc/self/fd/N`: the one way to name what an `O_PATH` descriptor holds.
pub fn proc_path(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// File type of a stat.
pub fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}
