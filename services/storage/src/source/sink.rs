//! Writes entries of an archive beneath one directory. Nothing an entry says can lead out of it:
//! every directory on the way is opened beneath the root and through no link, new files are made
//! exclusively, and existing links are replaced, never followed.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::blob::Part;
use super::limits::Meter;
use crate::error::{Doing, Error, Result};
use crate::host::fs::{BENEATH, DIRECTORY, file_type, open_dir_beneath};

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file of `size` bytes whose data are these segments (offset, length), in order.
    File {
        /// Length, holes included.
        size: u64,
        /// Where data are; the rest is holes.
        segments: Vec<(u64, u64)>,
    },
    /// A directory.
    Directory,
    /// A symbolic link with its target, which is never looked at here.
    Symlink(Vec<u8>),
    /// Another name of an earlier entry.
    Hardlink(Vec<u8>),
    /// A character device.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket's node.
    Socket,
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path as the archive has it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<(CString, Vec<u8>)>,
}

impl Entry {
    /// Path for sentences: shortened, and nothing that would upset a terminal.
    pub fn shown(&self) -> String {
        shown(&self.path)
    }
}

fn shown(path: &[u8]) -> String {
    let mut text: String = String::from_utf8_lossy(&path[..path.len().min(200)])
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    if path.len() > 200 {
        text.push('…');
    }
    text
}

/// Steps of a path that leads down only; the empty path is the root itself.
pub fn steps(path: &[u8]) -> Result<Vec<&[u8]>> {
    let refuse = |why: &str| Err(Error::Archive(format!("entry {:?} {why}", shown(path))));
    if path.first() == Some(&b'/') {
        return refuse("has an absolute path");
    }
    if path.len() > 4095 {
        return refuse("has a path longer than 4095 bytes");
    }
    if path.contains(&0) {
        return refuse("holds a NUL byte");
    }
    let mut out = Vec::new();
    for step in path.split(|b| *b == b'/') {
        match step {
            b"" | b"." => {}
            b".." => return refuse("leads upwards with \"..\""),
            step if step.len() > 255 => return refuse("has a name longer than 255 bytes"),
            step => out.push(step),
        }
    }
    Ok(out)
}

/// Writes one part of an image.
pub struct Sink<'m> {
    root: OwnedFd,
    part: Part,
    meter: &'m mut Meter,
    /// The directory of the last entry, because the next is mostly in it too.
    last_parent: Option<(Vec<u8>, OwnedFd)>,
    /// Times of directories, set when nothing more is put into them.
    directories: HashMap<Vec<u8>, Timestamps>,
    /// Bytes of the paths in it.
    held: usize,
    buffer: Vec<u8>,
}

/// Paths kept in memory until an image is unpacked may take this much.
pub(super) const MAX_HELD: usize = 256 << 20;

/// Data are written in pieces of this size; a piece of zeros becomes a hole.
const PIECE: usize = 64 * 1024;

impl<'m> Sink<'m> {
    /// `root` is the volume's top, or its rootfs for [`Part::Rootfs`].
    pub fn new(root: OwnedFd, part: Part, meter: &'m mut Meter) -> Self {
        Self {
            root,
            part,
            meter,
            last_parent: None,
            directories: HashMap::new(),
            held: 0,
            buffer: vec![0; PIECE],
        }
    }

    /// See [`Meter::stream_limit`].
    pub fn stream_limit(&self) -> u64 {
        self.meter.stream_limit()
    }

    /// See [`Meter::max_entries`].
    pub fn max_entries(&self) -> u64 {
        self.meter.max_entries()
    }

    /// Whether the entry belongs into a volume. False = it is left out.
    fn admits(&self, entry: &Entry, steps: &[&[u8]]) -> Result<bool> {
        if self.part == Part::Rootfs {
            return Ok(true);
        }
        let refuse = |why: &str| Err(Error::Archive(format!("entry {:?} {why}", entry.shown())));
        let directory = entry.kind == Kind::Directory;
        match steps {
            [] => Ok(false),
            [b"metadata.yaml"] => match &entry.kind {
                Kind::File { size, .. } if *size <= self.meter.max_metadata_bytes() => Ok(true),
                Kind::File { .. } => refuse("is too large"),
                _ => refuse("is not a regular file"),
            },
            [b"rootfs", rest @ ..] => {
                if self.part == Part::Metadata {
                    return refuse("stands in the metadata part of a split image");
                }
                if rest.is_empty() && !directory {
                    return refuse("is not a directory");
                }
                Ok(true)
            }
            [b"rootfs.img" | b"root.img"] => {
                refuse("belongs to a virtual machine, which this build does not support")
            }
            [b"templates", rest @ ..] => {
                let file = matches!(entry.kind, Kind::File { .. });
                if !(directory || file && !rest.is_empty()) {
                    return refuse("is not a plain file or directory");
                }
                Ok(true)
            }
            _ => {
                tracing::debug!(entry = entry.shown(), "not part of an image, left out");
                Ok(false)
            }
        }
    }

    /// Writes one entry; `data` gives the bytes of its segments.
    pub fn entry(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<()> {
        self.meter.entry()?;
        let steps = steps(&entry.path)?;
        if !self.admits(entry, &steps)? {
            return Ok(());
        }
        let Some((name, parents)) = steps.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(Error::Archive("its root is not a directory".into()));
            }
            let root = self.reopen_root()?;
            return self.directory_attributes(&root, entry, Vec::new());
        };
        let name = CString::new(*name).map_err(|_| Error::Archive("NUL in a name".into()))?;
        let parent = self.parent(parents, entry)?;
        match &entry.kind {
            Kind::Directory => {
                let dir = self.make_directory(&parent, &name, entry)?;
                self.directory_attributes(&dir, entry, steps.join(&b'/'))?;
            }
            Kind::File { size, segments } => {
                let file = self.make_file(&parent, &name, entry)?;
                self.write(&file, *size, segments, data)?;
                rustix::fs::fchown(&file, Some(uid(entry)), Some(gid(entry)))
                    .doing(|| "setting a file's owner")?;
                set_xattrs(&file, entry)?;
                rustix::fs::fchmod(&file, mode(entry)).doing(|| "setting a file's mode")?;
                rustix::fs::futimens(&file, &times(entry)).doing(|| "setting a file's times")?;
            }
            Kind::Hardlink(target) => self.hard_link(target, &parent, &name, entry)?,
            Kind::Symlink(target) => {
                let target = CString::new(&target[..])
                    .map_err(|_| Error::Archive("a link's target holds a NUL byte".into()))?;
                self.exclusively(&parent, &name, entry, |dir, name| {
                    rustix::fs::symlinkat(&target, dir, name)
                })?;
                self.node_attributes(&parent, &name, entry, false)?;
            }
            Kind::Char(..) | Kind::Block(..) | Kind::Fifo | Kind::Socket => {
                let (kind, device) = match entry.kind {
                    Kind::Char(major, minor) => (FileType::CharacterDevice, (major, minor)),
                    Kind::Block(major, minor) => (FileType::BlockDevice, (major, minor)),
                    Kind::Fifo => (FileType::Fifo, (0, 0)),
                    _ => (FileType::Socket, (0, 0)),
                };
                let device = rustix::fs::makedev(device.0, device.1);
                self.exclusively(&parent, &name, entry, |dir, name| {
                    rustix::fs::mknodat(dir, name, kind, Mode::RUSR, device)
                })?;
                self.node_attributes(&parent, &name, entry, true)?;
            }
        }
        self.last_parent = Some((parents.join(&b'/'), parent));
        Ok(())
    }

    /// Sets the directories' times and gives the number of bytes no one promised: none.
    pub fn finish(mut self) -> Result<()> {
        for (path, times) in std::mem::take(&mut self.directories) {
            let dir = if path.is_empty() {
                self.reopen_root()?
            } else {
                open_dir_beneath(&self.root, &path[..]).doing(|| "opening a directory")?
            };
            rustix::fs::futimens(&dir, &times).doing(|| "setting a directory's times")?;
        }
        Ok(())
    }

    fn reopen_root(&self) -> Result<OwnedFd> {
        rustix::fs::openat(&self.root, ".", DIRECTORY, Mode::empty()).doing(|| "opening the root")
    }

    /// The directory that the entry goes into; missing ones are made as tar makes them.
    fn parent(&mut self, parents: &[&[u8]], entry: &Entry) -> Result<OwnedFd> {
        let path = parents.join(&b'/');
        if let Some((last, dir)) = self.last_parent.take()
            && last == path
        {
            return Ok(dir);
        }
        if path.is_empty() {
            return self.reopen_root();
        }
        match open_dir_beneath(&self.root, &path[..]) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(through_a_link(entry, errno)),
        }
        let mut dir = self.reopen_root()?;
        for step in parents {
            dir = match open_dir_beneath(&dir, *step) {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    self.meter.entry()?;
                    rustix::fs::mkdirat(&dir, *step, Mode::from_raw_mode(0o755))
                        .doing(|| "making a directory")?;
                    open_dir_beneath(&dir, *step).doing(|| "opening a directory")?
                }
                Err(errno) => return Err(through_a_link(entry, errno)),
            };
        }
        Ok(dir)
    }

    fn make_directory(&self, parent: &OwnedFd, name: &CString, entry: &Entry) -> Result<OwnedFd> {
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .doing(|| "looking up an entry")?;
                if file_type(&stat) != FileType::Directory {
                    rustix::fs::unlinkat(parent, name, AtFlags::empty())
                        .doing(|| "replacing an entry")?;
                    rustix::fs::mkdirat(parent, name, Mode::RWXU).doing(|| "making a directory")?;
                }
            }
            Err(errno) => return Err(errno).doing(|| "making a directory"),
        }
        open_dir_beneath(parent, name).map_err(|errno| through_a_link(entry, errno))
    }

    fn directory_attributes(&mut self, dir: &OwnedFd, entry: &Entry, path: Vec<u8>) -> Result<()> {
        rustix::fs::fchown(dir, Some(uid(entry)), Some(gid(entry)))
            .doing(|| "setting a directory's owner")?;
        set_xattrs(dir, entry)?;
        rustix::fs::fchmod(dir, mode(entry)).doing(|| "setting a directory's mode")?;
        self.held += path.len();
        if self.held > MAX_HELD {
            return Err(Error::Archive(
                "the paths of its directories are too long".into(),
            ));
        }
        self.directories.insert(path, times(entry));
        Ok(())
    }

    /// Makes a new name; an earlier entry of that name goes, unless it is a directory.
    fn exclusively<T>(
        &self,
        parent: &OwnedFd,
        name: &CString,
        entry: &Entry,
        make: impl Fn(&OwnedFd, &CString) -> rustix::io::Result<T>,
    ) -> Result<T> {
        match make(parent, name) {
            Err(Errno::EXIST) => {}
            other => return other.doing(|| format!("making {:?}", entry.shown())),
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                return Err(Error::Archive(format!(
                    "entry {:?} stands where a directory is",
                    entry.shown()
                )));
            }
            Err(errno) => return Err(errno).doing(|| "replacing an entry"),
        }
        make(parent, name).doing(|| format!("making {:?}", entry.shown()))
    }

    fn make_file(&self, parent: &OwnedFd, name: &CString, entry: &Entry) -> Result<OwnedFd> {
        self.exclusively(parent, name, entry, |dir, name| {
            rustix::fs::openat(
                dir,
                name,
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::RUSR | Mode::WUSR,
            )
        })
    }

    fn write(
        &mut self,
        file: &OwnedFd,
        size: u64,
        segments: &[(u64, u64)],
        data: &mut dyn Read,
    ) -> Result<()> {
        for (offset, length) in segments {
            let (mut at, mut left) = (*offset, *length);
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                data.read_exact(&mut self.buffer[..want])
                    .map_err(read_error)?;
                self.meter.bytes(want as u64)?;
                let piece = &self.buffer[..want];
                if piece.iter().any(|b| *b != 0) {
                    let mut done = 0;
                    while done < want {
                        done += rustix::io::pwrite(file, &piece[done..], at + done as u64)
                            .doing(|| "writing a file")?;
                    }
                }
                at += want as u64;
                left -= want as u64;
            }
        }
        rustix::fs::ftruncate(file, size).map_err(|errno| match errno {
            Errno::FBIG | Errno::INVAL => Error::Archive("a file is larger than can be".into()),
            other => Error::io("sizing a file", other),
        })
    }

    fn hard_link(
        &mut self,
        target: &[u8],
        parent: &OwnedFd,
        name: &CString,
        entry: &Entry,
    ) -> Result<()> {
        let own = steps(&entry.path)?;
        let to = steps(target)?;
        // A guest writes to its rootfs; no name in there may be one of what is outside it.
        if self.part != Part::Rootfs && (own.first() != to.first() || own.len() < 2 || to.len() < 2)
        {
            return Err(Error::Archive(format!(
                "hard link {:?} leaves its directory",
                entry.shown()
            )));
        }
        let Some((last, parents)) = to.split_last() else {
            return Err(Error::Archive(format!(
                "hard link {:?} names the root",
                entry.shown()
            )));
        };
        let refuse = |errno: Errno| {
            Error::Archive(format!(
                "hard link {:?} to {:?} can't be made: {errno}",
                entry.shown(),
                shown(target)
            ))
        };
        let path = parents.join(&b'/');
        let from = if path.is_empty() {
            self.reopen_root()?
        } else {
            rustix::fs::openat2(&self.root, &path[..], DIRECTORY, Mode::empty(), BENEATH)
                .map_err(refuse)?
        };
        if own == to {
            return Ok(());
        }
        self.exclusively(parent, name, entry, |dir, name| {
            rustix::fs::linkat(&from, *last, dir, name, AtFlags::empty())
        })
        .map_err(|error| match error {
            Error::Io { source, .. } => Error::Archive(format!(
                "hard link {:?} to {:?} can't be made: {source}",
                entry.shown(),
                shown(target)
            )),
            other => other,
        })
    }

    /// Owner, mode and times of what can't be opened. It was made exclusively a moment ago in a
    /// tree that nobody else can reach, so its name still means it.
    fn node_attributes(
        &self,
        parent: &OwnedFd,
        name: &CString,
        entry: &Entry,
        has_mode: bool,
    ) -> Result<()> {
        rustix::fs::chownat(
            parent,
            name,
            Some(uid(entry)),
            Some(gid(entry)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .doing(|| "setting an owner")?;
        if has_mode {
            rustix::fs::chmodat(parent, name, mode(entry), AtFlags::empty())
                .doing(|| "setting a mode")?;
        }
        rustix::fs::utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
            .doing(|| "setting times")
    }
}

/// Sorts an error of the archive's bytes: what the decoder refuses is the archive's fault.
pub fn read_error(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::Archive("it ends too early".into()),
        _ => Error::Archive(format!("it can't be read: {error}")),
    }
}

fn through_a_link(entry: &Entry, errno: Errno) -> Error {
    match errno {
        Errno::LOOP | Errno::XDEV => Error::Archive(format!(
            "entry {:?} goes through a symbolic link",
            entry.shown()
        )),
        Errno::NOTDIR => Error::Archive(format!(
            "entry {:?} goes through something that is not a directory",
            entry.shown()
        )),
        errno => Error::io(
            format!("opening the directory of {:?}", entry.shown()),
            errno,
        ),
    }
}

/// Sets the attributes that mean something in a guest. Others describe the machine where the
/// archive was made (trusted.overlay.*, security.ima, ...) and are left out.
fn set_xattrs(fd: &OwnedFd, entry: &Entry) -> Result<()> {
    for (name, value) in &entry.xattrs {
        let key = name.to_bytes();
        let wanted = key.starts_with(b"user.")
            || key == b"security.capability"
            || key == b"system.posix_acl_access"
            || key == b"system.posix_acl_default";
        if !wanted {
            tracing::debug!(attribute = ?name, entry = entry.shown(), "attribute left out");
            continue;
        }
        match rustix::fs::fsetxattr(fd.as_fd(), name, value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(errno @ (Errno::INVAL | Errno::RANGE | Errno::TOOBIG)) => {
                return Err(Error::Archive(format!(
                    "entry {:?} has an attribute that is refused: {errno}",
                    entry.shown()
                )));
            }
            Err(errno) => return Err(errno).doing(|| format!("setting attribute {name:?}")),
        }
    }
    Ok(())
}

fn uid(entry: &Entry) -> Uid {
    Uid::from_raw(entry.uid)
}

fn gid(entry: &Entry) -> Gid {
    Gid::from_raw(entry.gid)
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode & 0o7777)
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime.0,
        tv_nsec: i64::from(entry.mtime.1),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
