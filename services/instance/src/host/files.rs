//! Files of a guest, beneath its root only. The guest may be hostile and may change everything while we
//! look: each path is resolved by the kernel with the guest's root as its root, types are checked on the
//! opened descriptor, and nothing but regular files is read or written.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use berth_monitor::spec::IdKind;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};

use super::ids::create_as;
use super::rootfs::GuestRoot;
use crate::Error;

/// Symlinks are the guest's and stay inside; `/proc/<pid>/root` and its like lead outside.
const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// As the guest sees them.
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub size: i64,
    pub modified_seconds: i64,
    pub modified_nanos: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File,
    /// Names in it, sorted.
    Directory(Vec<String>),
    /// Where it points, made absolute.
    Symlink(String),
}

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    pub path: String,
    pub kind: NewKind,
    /// For what does not exist yet; what exists keeps its owner and mode.
    pub uid: u32,
    pub gid: u32,
    pub mode: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewKind {
    File { append: bool },
    Directory,
    Symlink(String),
}

/// Directory entries that are listed; more is an attack.
const ENTRIES_MAX: usize = 1 << 20;

fn fail(path: &str, error: impl Into<io::Error>) -> Error {
    let error = error.into();
    match error.raw_os_error() {
        Some(libc::ENOENT) => Error::not_found("File", path),
        Some(libc::EEXIST) => Error::already_exists("File", path),
        Some(libc::ENOTDIR | libc::ELOOP | libc::EISDIR | libc::ENAMETOOLONG | libc::EINVAL) => {
            Error::invalid("path", format!("{path}: {error}"))
        }
        Some(libc::ENOTEMPTY) => {
            Error::precondition("NOT_EMPTY", format!("{path}: the directory is not empty"))
        }
        Some(libc::ENOSPC | libc::EDQUOT) => {
            Error::exhausted("NO_SPACE", format!("{path}: {error}"))
        }
        Some(
            libc::EROFS | libc::EACCES | libc::EPERM | libc::EBUSY | libc::ETXTBSY | libc::EAGAIN,
        ) => Error::precondition("FILE_REFUSED", format!("{path}: {error}")),
        _ => Error::internal_with(format!("{path}: {error}"), error),
    }
}

/// An absolute path's part below the root: `.` for the root itself.
fn below(path: &str) -> Result<&str, Error> {
    if path.contains('\0') {
        return Err(Error::invalid("path", "The path holds a NUL"));
    }
    let below = path.trim_start_matches('/');
    Ok(if below.is_empty() { "." } else { below })
}

/// Kinds of file systems that hold data, as statfs(2) numbers them: ext, XFS, btrfs, ZFS, F2FS, bcachefs,
/// tmpfs, overlayfs, FUSE, NFS, CIFS, SMB2, Ceph, 9p, squashfs, erofs, ISO 9660, UDF, FAT, exFAT, NTFS.
const DATA: [i64; 21] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x2fc1_2fc1,
    0xf2f5_2010,
    0xca45_1a4e,
    0x0102_1994,
    0x794c_7630,
    0x6573_5546,
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x0102_1997,
    0x7371_7368,
    0xe0f5_e1e2,
    0x9660,
    0x1501_3346,
    0x4d44,
    0x2011_bab0,
    0x7366_746e,
];

/// Refuses what the kernel makes up (procfs, sysfs, cgroups and their like). It acts with the authority of
/// who opens it, and that is the host's root here: sysctls that belong to no namespace, the host's log.
fn hold_data(root: &GuestRoot, fd: &OwnedFd, path: &str) -> Result<(), Error> {
    let kind = |fd: &OwnedFd| rustix::fs::fstatfs(fd).map_err(|e| fail(path, e));
    let found = kind(fd)?.f_type;
    // Whatever the guest's root itself lies on.
    if DATA.contains(&found) || found == kind(&root.dir)?.f_type {
        return Ok(());
    }
    let why = format!("{path}: it is no stored file but one of the kernel's (kind {found:#x})");
    Err(Error::precondition("FILE_REFUSED", why))
}

/// The directory of a path and the last name in it, which is not followed.
fn parent(root: &GuestRoot, path: &str) -> Result<(OwnedFd, String), Error> {
    let below = below(path)?.trim_end_matches('/');
    let (directory, name) = below.rsplit_once('/').unwrap_or((".", below));
    if matches!(name, "" | "." | "..") {
        return Err(Error::invalid(
            "path",
            format!("{path}: the last part is no name"),
        ));
    }
    let directory = if directory.is_empty() { "." } else { directory };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(&root.dir, directory, flags, Mode::empty(), RESOLVE)
        .map_err(|e| fail(path, e))?;
    hold_data(root, &fd, path)?;
    Ok((fd, name.to_owned()))
}

/// Opens what an O_PATH descriptor stands for; the kernel follows the descriptor, not a name.
fn reopen(fd: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::open(
        path,
        flags | OFlags::CLOEXEC | OFlags::NOCTTY,
        Mode::empty(),
    )?)
}

/// Looks at a path without following a symlink at its end. A file comes open for reading.
pub fn get(root: &GuestRoot, path: &str) -> Result<(Header, Option<File>), Error> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(&root.dir, below(path)?, flags, Mode::empty(), RESOLVE)
        .map_err(|e| fail(path, e))?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| fail(path, e))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let (kind, file) = match kind {
        FileType::RegularFile => {
            hold_data(root, &fd, path)?;
            // Not waiting for a lease that the guest holds on it.
            let file = reopen(&fd, OFlags::RDONLY | OFlags::NONBLOCK).map_err(|e| fail(path, e))?;
            (Kind::File, Some(File::from(file)))
        }
        FileType::Directory => (
            Kind::Directory(entries(&fd).map_err(|e| fail(path, e))?),
            None,
        ),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(|e| fail(path, e))?;
            (
                Kind::Symlink(absolute_target(path, &target.to_string_lossy())),
                None,
            )
        }
        _ => {
            let why = format!("{path}: neither a file, a directory nor a symlink");
            return Err(Error::invalid("path", why));
        }
    };
    Ok((header(root, &stat, kind), file))
}

fn header(root: &GuestRoot, stat: &Stat, kind: Kind) -> Header {
    Header {
        kind,
        uid: root.ids.to_guest(IdKind::Uid, stat.st_uid),
        gid: root.ids.to_guest(IdKind::Gid, stat.st_gid),
        mode: stat.st_mode & 0o7777,
        size: stat.st_size,
        modified_seconds: stat.st_mtime,
        modified_nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

fn entries(fd: &OwnedFd) -> io::Result<Vec<String>> {
    let directory = reopen(fd, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if !matches!(&*name, "." | "..") {
            names.push(name.into_owned());
        }
        if names.len() > ENTRIES_MAX {
            return Err(io::Error::other("too many entries"));
        }
    }
    names.sort();
    Ok(names)
}

/// A relative target is relative to the link's directory.
fn absolute_target(path: &str, target: &str) -> String {
    if target.starts_with('/') {
        return target.to_owned();
    }
    let directory = path.rsplit_once('/').map_or("", |(d, _)| d);
    let mut parts: Vec<&str> = Vec::new();
    for part in directory.split('/').chain(target.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Makes a directory or symlink, or opens a file for writing. An existing directory or the same symlink
/// is fine. Changes this thread's credentials: see [`create_as`].
pub fn put(root: &GuestRoot, new: &NewFile) -> Result<Option<File>, Error> {
    let host = |kind, id| {
        root.ids.to_host(kind, id).ok_or_else(|| {
            Error::invalid(
                "uid",
                format!("The id {id} is not in the range of this instance"),
            )
        })
    };
    let (uid, gid) = (host(IdKind::Uid, new.uid)?, host(IdKind::Gid, new.gid)?);
    create_as(uid, gid).map_err(|e| fail(&new.path, e))?;
    match &new.kind {
        NewKind::Directory => make_directory(root, new).map(|()| None),
        NewKind::Symlink(target) => make_symlink(root, &new.path, target).map(|()| None),
        NewKind::File { append } => open_file(root, new, *append).map(Some),
    }
}

fn make_directory(root: &GuestRoot, new: &NewFile) -> Result<(), Error> {
    let path = &new.path;
    if below(path)?.split('/').all(|p| matches!(p, "" | ".")) {
        return Ok(());
    }
    let (directory, name) = parent(root, path)?;
    let mode = Mode::from_raw_mode(new.mode.unwrap_or(0o750));
    match rustix::fs::mkdirat(&directory, &name, Mode::from_raw_mode(0o700)) {
        Ok(()) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(&directory, &name, flags, Mode::empty());
            // The mode is set on what was made, past the umask.
            made.and_then(|fd| rustix::fs::fchmod(&fd, mode))
                .map_err(|e| fail(path, e))
        }
        Err(rustix::io::Errno::EXIST) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let there = rustix::fs::openat2(&root.dir, below(path)?, flags, Mode::empty(), RESOLVE);
            there.map(drop).map_err(|e| fail(path, e))
        }
        Err(error) => Err(fail(path, error)),
    }
}

fn make_symlink(root: &GuestRoot, path: &str, target: &str) -> Result<(), Error> {
    if target.is_empty() || target.contains('\0') {
        return Err(Error::invalid(
            "symlink_target",
            "The symlink needs a target",
        ));
    }
    let (directory, name) = parent(root, path)?;
    match rustix::fs::symlinkat(target, &directory, &name) {
        Err(rustix::io::Errno::EXIST) => {
            let there = rustix::fs::readlinkat(&directory, &name, Vec::new());
            match there {
                Ok(there) if there.to_bytes() == target.as_bytes() => Ok(()),
                _ => Err(fail(path, rustix::io::Errno::EXIST)),
            }
        }
        other => other.map_err(|e| fail(path, e)),
    }
}

fn open_file(root: &GuestRoot, new: &NewFile, append: bool) -> Result<File, Error> {
    let path = &new.path;
    let find = || {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(&root.dir, below(path)?, flags, Mode::empty(), RESOLVE)
            .map_err(|e| fail(path, e))
    };
    let there = match find() {
        Err(error) if error.code == crate::Code::NotFound => match create_file(root, new)? {
            Some(file) => return Ok(file),
            // Someone made it between our two looks.
            None => find()?,
        },
        there => there?,
    };
    let stat = rustix::fs::fstat(&there).map_err(|e| fail(path, e))?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(Error::invalid(
            "path",
            format!("{path}: it exists and is no regular file"),
        ));
    }
    hold_data(root, &there, path)?;
    let how = if append {
        OFlags::APPEND
    } else {
        OFlags::TRUNC
    };
    let file = reopen(&there, OFlags::WRONLY | OFlags::NONBLOCK | how);
    file.map(File::from).map_err(|e| fail(path, e))
}

fn create_file(root: &GuestRoot, new: &NewFile) -> Result<Option<File>, Error> {
    let path = &new.path;
    let (directory, name) = parent(root, path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::from_raw_mode(0o600);
    let file = match rustix::fs::openat(&directory, &name, flags, mode) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::EXIST) => return Ok(None),
        Err(error) => return Err(fail(path, error)),
    };
    let mode = Mode::from_raw_mode(new.mode.unwrap_or(0o644));
    rustix::fs::fchmod(file.as_fd(), mode).map_err(|e| fail(path, e))?;
    Ok(Some(File::from(file)))
}

/// Removes a file, a symlink or an empty directory.
pub fn delete(root: &GuestRoot, path: &str) -> Result<(), Error> {
    let (directory, name) = parent(root, path)?;
    match rustix::fs::unlinkat(&directory, &name, AtFlags::empty()) {
        Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {
            rustix::fs::unlinkat(&directory, &name, AtFlags::REMOVEDIR).map_err(|e| fail(path, e))
        }
        other => other.map_err(|e| fail(path, e)),
    }
}

/// Reads up to `buffer`'s length; 0 at the end.
pub fn read(file: &mut File, buffer: &mut [u8], path: &str) -> Result<usize, Error> {
    file.read(buffer).map_err(|e| fail(path, e))
}

/// Writes all of it.
pub fn write(file: &mut File, bytes: &[u8], path: &str) -> Result<(), Error> {
    file.write_all(bytes).map_err(|e| fail(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ids::IdView;

    fn root(dir: &std::path::Path) -> GuestRoot {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        GuestRoot {
            dir: rustix::fs::open(dir, flags, Mode::empty()).unwrap(),
            ids: IdView::Same,
        }
    }

    /// Each on a thread of its own, as in the service.
    fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    fn new(path: &str, kind: NewKind) -> NewFile {
        let owner = |id: libc::uid_t| id;
        // SAFETY: both only read this process's ids.
        let (uid, gid) = unsafe { (owner(libc::getuid()), owner(libc::getgid())) };
        NewFile {
            path: path.into(),
            kind,
            uid,
            gid,
            mode: None,
        }
    }

    #[test]
    fn files_are_made_read_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        on_thread(|| {
            put(&root, &new("/a", NewKind::Directory)).unwrap();
            put(&root, &new("/a", NewKind::Directory)).unwrap();
            let file = new("/a/f", NewKind::File { append: false });
            put(&root, &file)
                .unwrap()
                .unwrap()
                .write_all(b"hello")
                .unwrap();
            let more = new("/a/f", NewKind::File { append: true });
            put(&root, &more)
                .unwrap()
                .unwrap()
                .write_all(b" you")
                .unwrap();
            put(&root, &new("/l", NewKind::Symlink("a/f".into()))).unwrap();
            put(&root, &new("/l", NewKind::Symlink("a/f".into()))).unwrap();
            assert!(put(&root, &new("/l", NewKind::Symlink("b".into()))).is_err());
        });
        let (header, file) = get(&root, "/a/f").unwrap();
        assert_eq!(
            (header.kind, header.mode, header.size),
            (Kind::File, 0o644, 9)
        );
        let mut text = String::new();
        file.unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello you");
        assert_eq!(
            get(&root, "/l").unwrap().0.kind,
            Kind::Symlink("/a/f".into())
        );
        let (header, _) = get(&root, "a").unwrap();
        assert_eq!(
            (header.kind, header.mode),
            (Kind::Directory(vec!["f".into()]), 0o750)
        );
        assert_eq!(delete(&root, "/a").unwrap_err().reason, "NOT_EMPTY");
        for path in ["/a/f", "/l", "/a"] {
            delete(&root, path).unwrap();
        }
        assert_eq!(get(&root, "/a").unwrap_err().code, crate::Code::NotFound);
    }

    #[test]
    fn no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        let target = outside.path().to_str().unwrap();
        std::os::unix::fs::symlink(target, dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink("../../../../..", dir.path().join("up")).unwrap();
        let root = root(dir.path());
        on_thread(|| {
            assert!(get(&root, "/out/secret").is_err());
            assert!(get(&root, &format!("/up{target}/secret")).is_err());
            assert!(get(&root, &format!("/../../..{target}/secret")).is_err());
            assert!(put(&root, &new("/out/new", NewKind::File { append: false })).is_err());
            assert!(put(&root, &new("/out/d", NewKind::Directory)).is_err());
            assert!(delete(&root, "/out/secret").is_err());
        });
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn pipes_and_devices_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&fifo, mode).unwrap();
        let root = root(dir.path());
        assert!(get(&root, "/fifo").is_err());
        on_thread(|| assert!(put(&root, &new("/fifo", NewKind::File { append: false })).is_err()));
    }

    /// A running guest's /proc and /sys are in reach, and answer to the host's root.
    #[test]
    fn files_of_the_kernel_are_refused() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = GuestRoot {
            dir: rustix::fs::open("/", flags, Mode::empty()).unwrap(),
            ids: IdView::Same,
        };
        on_thread(|| {
            for path in [
                "/proc/uptime",
                "/proc/sys/kernel/ostype",
                "/sys/kernel/notes",
            ] {
                assert_eq!(
                    get(&root, path).unwrap_err().reason,
                    "FILE_REFUSED",
                    "{path}"
                );
            }
            for (path, kind) in [
                (
                    "/proc/sys/kernel/printk_delay",
                    NewKind::File { append: true },
                ),
                ("/proc/self/new", NewKind::File { append: false }),
                ("/sys/kernel/new", NewKind::Directory),
                ("/proc/new", NewKind::Symlink("x".into())),
            ] {
                let refused = put(&root, &new(path, kind)).unwrap_err();
                assert_eq!(refused.reason, "FILE_REFUSED", "{path}");
            }
            let refused = delete(&root, "/proc/uptime").unwrap_err();
            assert_eq!(refused.reason, "FILE_REFUSED");
        });
    }

    #[test]
    fn targets_become_absolute() {
        assert_eq!(absolute_target("/a/b", "../c"), "/c");
        assert_eq!(absolute_target("/b", "../../c"), "/c");
        assert_eq!(absolute_target("/a/b", "/x"), "/x");
    }
}
