//! Whole trees of files: removing one, copying one. Both work on descriptors, follow no link, and
//! cope with trees that a guest made deeper than any path may be.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::fs::{file_type, lstat, open_dir_beneath, proc_path};
use crate::error::{Doing, Error, Result};

/// Descriptors that a removal keeps open at most; deeper directories are moved up first.
const REMOVE_DEPTH: usize = 64;
/// Levels that a copy goes down; PATH_MAX allows no program to name anything deeper.
const COPY_DEPTH: usize = 2048;
/// Bytes of a path, its NUL included.
const PATH_MAX: usize = 4096;

fn entries(dir: impl AsFd) -> Result<Vec<(CString, FileType)>> {
    let mut out = Vec::new();
    for entry in Dir::read_from(dir).doing(|| "reading a directory")? {
        let entry = entry.doing(|| "reading a directory")?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            out.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(out)
}

/// Removes `name` in `parent` with all that is in it. What is absent is removed already.
pub fn remove(parent: impl AsFd, name: &str) -> Result<()> {
    let parent = parent.as_fd();
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno).doing(|| format!("removing {name}")),
    }
    let top = match open_dir_beneath(parent, name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno).doing(|| format!("opening {name} to remove it")),
    };
    let mut moved = 0_u64;
    // Each pass ends with the top empty; directories moved up into the top need another.
    loop {
        clear(&top, &mut moved)?;
        if entries(&top)?.is_empty() {
            break;
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno).doing(|| format!("removing directory {name}")),
    }
}

/// A directory under way: itself, its name in the one above, and what is left in it.
struct Level {
    dir: OwnedFd,
    name: CString,
    left: Vec<(CString, FileType)>,
}

fn clear(top: &OwnedFd, moved: &mut u64) -> Result<()> {
    let dup = rustix::io::fcntl_dupfd_cloexec(top, 0).doing(|| "duplicating a descriptor")?;
    let left = entries(&dup)?;
    let mut stack = vec![Level {
        dir: dup,
        name: CString::default(),
        left,
    }];
    while let Some(level) = stack.last_mut() {
        let Some((name, kind)) = level.left.pop() else {
            let done = stack.pop();
            if let (Some(done), Some(above)) = (done, stack.last()) {
                match rustix::fs::unlinkat(&above.dir, &done.name, AtFlags::REMOVEDIR) {
                    // Something was added while we looked; the next pass takes it.
                    Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => {}
                    Err(errno) => return Err(errno).doing(|| "removing a directory"),
                }
            }
            continue;
        };
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(&level.dir, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => {}
                Err(errno) => return Err(errno).doing(|| "removing a file"),
            }
        }
        if stack.len() >= REMOVE_DEPTH {
            if let Some(level) = stack.last() {
                *moved += 1;
                let to = format!(".berth-removing-{moved}");
                rustix::fs::renameat(&level.dir, &name, top, to.as_str())
                    .doing(|| "moving a deep directory up to remove it")?;
            }
            continue;
        }
        let Some(level) = stack.last() else { break };
        match open_dir_beneath(&level.dir, &name) {
            Ok(dir) => {
                let left = entries(&dir)?;
                stack.push(Level { dir, name, left });
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).doing(|| "opening a directory to remove it"),
        }
    }
    Ok(())
}

/// Copies what is in `from` into the empty directory `to`, and `from`'s own attributes:
/// ownership, modes, times, extended attributes (with them ACLs and file capabilities), hard links,
/// holes, devices. Data is shared where the filesystem can.
pub fn copy(from: impl AsFd, to: impl AsFd) -> Result<()> {
    let mut copying = Copying {
        links: HashMap::new(),
        root: rustix::io::fcntl_dupfd_cloexec(to.as_fd(), 0).doing(|| "duplicating")?,
        reflink: true,
        buffer: Vec::new(),
    };
    copying.run(from.as_fd(), to.as_fd())
}

/// A directory and a name in it.
type FirstName = (Arc<[u8]>, CString);

struct Copying {
    /// Where the first copy of a file with several names is beneath `root`, by device and inode: its directory,
    /// shared by all files in it, and its name. A guest chooses how many and how deep.
    links: HashMap<(u64, u64), FirstName>,
    root: OwnedFd,
    reflink: bool,
    buffer: Vec<u8>,
}

struct Pair {
    from: OwnedFd,
    to: OwnedFd,
    stat: Stat,
    /// Beneath the root, ending with `/` unless empty; absent where it is longer than any path may be.
    path: Option<Arc<[u8]>>,
    left: Vec<(CString, FileType)>,
}

impl Copying {
    fn run(&mut self, from: impl AsFd, to: impl AsFd) -> Result<()> {
        let top = Pair {
            from: rustix::io::fcntl_dupfd_cloexec(from.as_fd(), 0).doing(|| "duplicating")?,
            to: rustix::io::fcntl_dupfd_cloexec(to.as_fd(), 0).doing(|| "duplicating")?,
            stat: rustix::fs::fstat(&from).doing(|| "reading a directory's attributes")?,
            path: Some(Arc::from(&[][..])),
            left: entries(&from)?,
        };
        let mut stack = vec![top];
        while let Some(pair) = stack.last_mut() {
            let Some((name, _)) = pair.left.pop() else {
                if let Some(done) = stack.pop() {
                    // Last, because copying into it changed its times.
                    copy_attributes(&done.from, &done.to, &done.stat)?;
                }
                continue;
            };
            let stat = match lstat(&pair.from, &name) {
                Ok(stat) => stat,
                // A live tree may lose files while it is copied.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno).doing(|| "reading a file's attributes"),
            };
            if file_type(&stat) != FileType::Directory {
                self.entry(pair, &name, &stat)?;
                continue;
            }
            let next = match open_dir_beneath(&pair.from, &name) {
                Ok(dir) => dir,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno).doing(|| "opening a directory to copy it"),
            };
            rustix::fs::mkdirat(&pair.to, &name, Mode::RWXU).doing(|| "making a directory")?;
            let made = open_dir_beneath(&pair.to, &name).doing(|| "opening a new directory")?;
            let path = pair.path.as_ref().and_then(|above| {
                let fits = above.len() + name.to_bytes().len() < PATH_MAX;
                fits.then(|| Arc::from([above, name.to_bytes(), b"/"].concat()))
            });
            if stack.len() >= COPY_DEPTH {
                return Err(Error::Precondition(format!(
                    "the volume holds directories more than {COPY_DEPTH} levels deep"
                )));
            }
            let left = entries(&next)?;
            stack.push(Pair {
                from: next,
                to: made,
                stat,
                path,
                left,
            });
        }
        Ok(())
    }

    fn entry(&mut self, pair: &Pair, name: &CStr, stat: &Stat) -> Result<()> {
        let id = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some((above, first)) = self.links.get(&id)
        {
            let first = [above, first.to_bytes()].concat();
            // Every directory on the way was made by this copy, so there is no link to follow.
            return rustix::fs::linkat(&self.root, &first[..], &pair.to, name, AtFlags::empty())
                .doing(|| "making a hard link");
        }
        let made = match file_type(stat) {
            FileType::RegularFile => {
                let Some(made) = self.file(pair, name, stat)? else {
                    return Ok(());
                };
                made
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&pair.from, name, Vec::new())
                    .doing(|| "reading a symbolic link")?;
                rustix::fs::symlinkat(&target, &pair.to, name)
                    .doing(|| "making a symbolic link")?;
                open_path(&pair.to, name)?
            }
            kind => {
                rustix::fs::mknodat(&pair.to, name, kind, Mode::RUSR, stat.st_rdev)
                    .doing(|| "making a device, fifo or socket node")?;
                open_path(&pair.to, name)?
            }
        };
        let source = open_path(&pair.from, name)?;
        copy_attributes(&source, &made, stat)?;
        if stat.st_nlink > 1 {
            let above = pair.path.clone().ok_or_else(|| {
                Error::Precondition(
                    "the volume holds hard links deeper than any path may be".into(),
                )
            })?;
            self.links.insert(id, (above, name.to_owned()));
        }
        Ok(())
    }

    fn file(&mut self, pair: &Pair, name: &CStr, stat: &Stat) -> Result<Option<OwnedFd>> {
        let from = match rustix::fs::openat(
            &pair.from,
            name,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(from) => from,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno).doing(|| "opening a file to copy it"),
        };
        let to = rustix::fs::openat(
            &pair.to,
            name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )
        .doing(|| "making a file")?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size > 0 && !(self.reflink && self.clone_data(&from, &to)?) {
            self.copy_data(&from, &to, size)?;
        }
        Ok(Some(to))
    }

    /// True when the data is shared now.
    fn clone_data(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<bool> {
        match rustix::fs::ioctl_ficlone(to, from) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY) => {
                self.reflink = false;
                Ok(false)
            }
            Err(errno) => Err(errno).doing(|| "sharing a file's data"),
        }
    }

    /// Copies extent by extent, so that holes stay holes.
    fn copy_data(&mut self, from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<()> {
        let mut at = 0_u64;
        while at < size {
            let start = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno).doing(|| "looking for data in a file"),
            };
            let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(start))
                .doing(|| "looking for holes in a file")?
                .min(size);
            let (mut off_in, mut off_out) = (start, start);
            while off_in < end {
                let want = usize::try_from(end - off_in).unwrap_or(usize::MAX);
                let n = match rustix::fs::copy_file_range(
                    from,
                    Some(&mut off_in),
                    to,
                    Some(&mut off_out),
                    want,
                ) {
                    Ok(n) => n,
                    Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP) => {
                        self.through_memory(from, to, &mut off_in, &mut off_out, want)?
                    }
                    Err(errno) => return Err(errno).doing(|| "copying a file's data"),
                };
                if n == 0 {
                    break;
                }
            }
            at = end.max(start + 1);
        }
        rustix::fs::ftruncate(to, size).doing(|| "sizing a file")
    }

    fn through_memory(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        off_in: &mut u64,
        off_out: &mut u64,
        want: usize,
    ) -> Result<usize> {
        self.buffer.resize(1 << 20, 0);
        let want = want.min(self.buffer.len());
        let n = rustix::io::pread(from, &mut self.buffer[..want], *off_in)
            .doing(|| "reading a file")?;
        let mut done = 0;
        while done < n {
            done += rustix::io::pwrite(to, &self.buffer[done..n], *off_out + done as u64)
                .doing(|| "writing a file")?;
        }
        *off_in += n as u64;
        *off_out += n as u64;
        Ok(n)
    }
}

fn open_path(dir: impl AsFd, name: &CStr) -> Result<OwnedFd> {
    rustix::fs::openat(
        dir,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing(|| "opening a file")
}

/// Copies owner, mode, extended attributes and times. Owner first: a chown clears set-id bits and
/// file capabilities.
fn copy_attributes(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> Result<()> {
    let kind = file_type(stat);
    set_owner(to, stat.st_uid, stat.st_gid)?;
    if kind != FileType::Symlink {
        set_mode(to, stat.st_mode)?;
    }
    if kind == FileType::RegularFile || kind == FileType::Directory || kind == FileType::Symlink {
        copy_xattrs(from, to)?;
    }
    set_times(
        to,
        &Timestamps {
            last_access: Timespec {
                tv_sec: stat.st_atime,
                tv_nsec: stat.st_atime_nsec as _,
            },
            last_modification: Timespec {
                tv_sec: stat.st_mtime,
                tv_nsec: stat.st_mtime_nsec as _,
            },
        },
    )
}

/// Sets the owner of what a descriptor (also `O_PATH`, also of a link) holds.
pub fn set_owner(fd: &OwnedFd, uid: u32, gid: u32) -> Result<()> {
    rustix::fs::chownat(
        fd,
        c"",
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::EMPTY_PATH,
    )
    .doing(|| "setting a file's owner")
}

/// Sets permission bits, set-id and sticky bits.
pub fn set_mode(fd: &OwnedFd, mode: u32) -> Result<()> {
    let path = proc_path(fd.as_fd());
    rustix::fs::chmod(path.as_str(), Mode::from_raw_mode(mode & 0o7777))
        .doing(|| "setting a file's mode")
}

/// Sets access and modification time, of a link itself too.
pub fn set_times(fd: &OwnedFd, times: &Timestamps) -> Result<()> {
    match rustix::fs::utimensat(fd, c"", times, AtFlags::EMPTY_PATH) {
        Ok(()) => Ok(()),
        Err(errno) => Err(errno).doing(|| "setting a file's times"),
    }
}

/// Sets one extended attribute of what a descriptor (also `O_PATH`) holds.
pub fn set_xattr(fd: &OwnedFd, name: &CStr, value: &[u8]) -> Result<()> {
    let path = proc_path(fd.as_fd());
    match rustix::fs::setxattr(path.as_str(), name, value, XattrFlags::empty()) {
        Ok(()) => Ok(()),
        Err(errno) => Err(errno).doing(|| format!("setting attribute {}", name.to_string_lossy())),
    }
}

fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let path = proc_path(from.as_fd());
    let mut list = vec![0_u8; 0];
    let size = match rustix::fs::listxattr_query(path.as_str()) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(size) => size,
        Err(errno) => return Err(errno).doing(|| "listing extended attributes"),
    };
    list.resize(size + 256, 0);
    let n = rustix::fs::listxattr(path.as_str(), &mut list[..])
        .doing(|| "listing extended attributes")?;
    let mut value = vec![0_u8; 65536];
    for name in list[..n].split_inclusive(|b| *b == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let n = match rustix::fs::getxattr(path.as_str(), name, &mut value[..]) {
            Ok(n) => n,
            Err(Errno::NODATA) => continue,
            Err(errno) => return Err(errno).doing(|| "reading an extended attribute"),
        };
        set_xattr(to, name, &value[..n])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fs::DIRECTORY;

    /// A guest makes directories far deeper than any path; copying them must not take the memory of all paths.
    #[test]
    fn hard_links_deeper_than_any_path_are_refused_by_a_sentence() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open =
            |path: &std::path::Path| rustix::fs::open(path, DIRECTORY, Mode::empty()).unwrap();
        let top = open(from.path());
        let name = CString::new("d".repeat(255)).unwrap();
        let mut dir = open(from.path());
        for _ in 0..20 {
            rustix::fs::mkdirat(&dir, &name, Mode::RWXU).unwrap();
            dir = open_dir_beneath(&dir, &name).unwrap();
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        drop(rustix::fs::openat(&dir, c"one", flags, Mode::RUSR).unwrap());
        copy(&top, open(to.path())).unwrap();
        rustix::fs::linkat(&dir, c"one", &dir, c"two", AtFlags::empty()).unwrap();
        let again = tempfile::tempdir().unwrap();
        let refused = copy(&top, open(again.path())).unwrap_err();
        assert!(
            refused.to_string().contains("hard links deeper"),
            "{refused}"
        );
        // tempfile's own removal goes by paths.
        for dir in [from, to, again] {
            remove(open(dir.path()), name.to_str().unwrap()).unwrap();
        }
    }
}
