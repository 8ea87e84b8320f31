//! `btrfs`: a subvolume for each volume and snapshot, simple quotas for limits and usage.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::btrfs_source::{self, Opened};
use super::{Access, Area, Driver, Place, Setup, Top};
use crate::error::{Doing, Error, Result};
use crate::host::{self, btrfs, loopdev::LoopDevice};

/// Subvolumes nested deeper than this are refused, so that a guest can't make a copy recurse for ever.
const NEST_DEPTH: usize = 64;

/// A full pool's caller waits at most two seconds for space to come back.
const RECLAIM_LOOKS: u32 = 100;
const RECLAIM_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// An opened btrfs pool.
pub struct Btrfs {
    top: Top,
    access: Access,
    device: Option<LoopDevice>,
    loop_file: Option<PathBuf>,
    quota: AtomicBool,
}

impl Btrfs {
    /// Opens the pool: attaches, mounts, and checks that it is the filesystem it should be.
    pub fn open(setup: &Setup) -> Result<Self> {
        let Opened { fd, access, device } = btrfs_source::open(setup)?;
        let quota = btrfs::quota_mode(&fd)? != btrfs::QuotaMode::Off;
        Ok(Self {
            top: Top::open(fd)?,
            access,
            loop_file: device.as_ref().map(|_| setup.source.clone()),
            device,
            quota: AtomicBool::new(quota),
        })
    }

    fn quota_on(&self) -> bool {
        self.quota.load(Ordering::Acquire)
    }

    fn group(&self, quota: Option<u32>) -> Result<Option<u32>> {
        let Some(id) = quota.filter(|_| self.quota_on()) else {
            return Ok(None);
        };
        btrfs::create_group(&self.top.fd, id)?;
        Ok(Some(id))
    }

    /// Copies a subvolume and those nested in it. `depth` counts levels of nesting.
    fn copy_subvolume(
        &self,
        source: &OwnedFd,
        parent: &impl AsFd,
        name: &str,
        group: Option<u32>,
        read_only: bool,
        depth: usize,
    ) -> Result<()> {
        if depth > NEST_DEPTH {
            return Err(Error::Precondition(format!(
                "subvolumes are nested more than {NEST_DEPTH} levels deep"
            )));
        }
        let nested = btrfs::nested(&self.top.fd, btrfs::subvolume_id(source)?)?;
        // With something to put into it the copy is sealed last.
        btrfs::snapshot(source, parent, name, read_only && nested.is_empty(), group)
            .doing(|| "making a snapshot")?;
        if nested.is_empty() {
            return Ok(());
        }
        let copy = host::fs::open_dir_beneath(parent, name).doing(|| "opening a snapshot")?;
        for inner in nested {
            let Some(path) = &inner.path else {
                return Err(Error::Precondition(
                    "a nested subvolume's path is too long to be copied".into(),
                ));
            };
            let (directory, last) = split(path);
            // Those made after the snapshot have no place in it.
            let Ok(inner_source) = btrfs::open_nested(source, path) else {
                continue;
            };
            let Ok(holder) = btrfs::open_nested(&copy, directory) else {
                continue;
            };
            let Ok(last) = std::str::from_utf8(last) else {
                return Err(Error::Precondition(
                    "a nested subvolume's name is not UTF-8".into(),
                ));
            };
            // A snapshot shows a nested subvolume as an empty directory.
            match rustix::fs::unlinkat(&holder, last, rustix::fs::AtFlags::REMOVEDIR) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(errno).doing(|| "making room for a nested subvolume"),
            }
            self.copy_subvolume(&inner_source, &holder, last, group, read_only, depth + 1)?;
        }
        if read_only {
            btrfs::set_read_only(&copy, true)?;
        }
        Ok(())
    }

    /// Removes all subvolumes inside `top`, innermost first. A guest may nest them as deep as it
    /// likes, so there is no recursion.
    fn remove_nested(&self, top: &OwnedFd) -> Result<()> {
        let mut stack = vec![self.level(None, Some(top))?];
        while let Some(level) = stack.last_mut() {
            if let Some(inner) = level.left.pop() {
                let fd = level
                    .fd
                    .as_ref()
                    .zip(inner.path.as_ref())
                    .and_then(|(fd, path)| btrfs::open_nested(fd, path).ok());
                let next = self.level(Some(inner.id), fd.as_ref())?;
                stack.push(next);
                continue;
            }
            let Some(id) = stack.pop().and_then(|level| level.id) else {
                continue;
            };
            match btrfs::destroy_id(&self.top.fd, id) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error).doing(|| "removing a nested subvolume"),
            }
        }
        Ok(())
    }

    fn level(&self, id: Option<u64>, fd: Option<&OwnedFd>) -> Result<Level> {
        let (known, fd) = match (id, fd) {
            (Some(id), fd) => (id, fd),
            (None, Some(fd)) => (btrfs::subvolume_id(fd)?, Some(fd)),
            (None, None) => return Err(Error::Unavailable("no subvolume to look into".into())),
        };
        let left = btrfs::nested(&self.top.fd, known)?;
        if let Some(fd) = fd.filter(|_| !left.is_empty()) {
            // Nothing can be taken out of a read-only one.
            btrfs::set_read_only(fd, false)?;
        }
        let fd = match fd {
            Some(fd) => {
                Some(rustix::io::fcntl_dupfd_cloexec(fd, 0).doing(|| "duplicating a descriptor")?)
            }
            None => None,
        };
        Ok(Level { id, fd, left })
    }
}

/// A subvolume under removal: its id unless it is the outermost, itself where it could be opened,
/// and what is left in it.
struct Level {
    id: Option<u64>,
    fd: Option<OwnedFd>,
    left: Vec<btrfs::Nested>,
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b".", path),
    }
}

impl Driver for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn access(&self) -> Access {
        self.access.clone()
    }

    fn can_idmap(&self) -> bool {
        true
    }

    fn needs_freeze(&self) -> bool {
        false
    }

    fn has_quota(&self) -> bool {
        true
    }

    fn top(&self) -> &Top {
        &self.top
    }

    fn create(&self, place: &Place, quota: Option<u32>) -> Result<()> {
        let area = self.top.area(place.area);
        let name = place.name();
        btrfs::create(area, &name, self.group(quota)?).doing(|| "making a subvolume")?;
        let fd = self.open(place)?;
        rustix::fs::fchmod(&fd, rustix::fs::Mode::from_raw_mode(0o755))
            .doing(|| "setting a subvolume's mode")
    }

    fn copy(&self, from: &Place, to: &Place, quota: Option<u32>, read_only: bool) -> Result<()> {
        let source = self.open(from)?;
        let area = self.top.area(to.area);
        let group = self.group(quota)?;
        let result = self.copy_subvolume(&source, &area, &to.name(), group, read_only, 0);
        if result.is_err()
            && let Err(error) = self.remove(to.area, &to.name())
        {
            tracing::warn!(volume = to.uid, %error, "cleaning up after a failed copy");
        }
        result
    }

    fn seal(&self, place: &Place) -> Result<()> {
        btrfs::set_read_only(self.open(place)?, true)
    }

    fn remove(&self, area: Area, name: &str) -> Result<()> {
        let dir = self.top.area(area);
        let top = match host::fs::open_dir_beneath(dir, name) {
            Ok(top) => top,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                return host::tree::remove(dir, name);
            }
            Err(errno) => return Err(errno).doing(|| format!("opening {name} to remove it")),
        };
        if !btrfs::is_subvolume(&top)? {
            return host::tree::remove(dir, name);
        }
        // A running guest might nest another meanwhile: then the kernel says ENOTEMPTY.
        for _ in 0..16 {
            match btrfs::destroy(dir, name) {
                Ok(()) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) => {
                    self.remove_nested(&top)?;
                }
                Err(error) => return Err(error).doing(|| format!("removing subvolume {name}")),
            }
        }
        Err(Error::Precondition(format!(
            "subvolume {name} can't be removed: others are being made inside it"
        )))
    }

    fn set_limit(&self, place: &Place, quota: u32, bytes: Option<u64>) -> Result<()> {
        if !self.quota_on() {
            if bytes.is_none() {
                return Ok(());
            }
            // An existing filesystem of the administrator's gets quotas only when they are wanted.
            btrfs::enable_simple_quota(&self.top.fd)?;
            self.quota.store(true, Ordering::Release);
        }
        btrfs::create_group(&self.top.fd, quota)?;
        let id = btrfs::subvolume_id(self.open(place)?)?;
        btrfs::join_group(&self.top.fd, id, quota)?;
        btrfs::set_group_limit(&self.top.fd, quota, bytes)
    }

    fn usage(&self, quotas: &[u32]) -> Result<HashMap<u32, u64>> {
        if !self.quota_on() {
            return Ok(HashMap::new());
        }
        let wanted: HashSet<u32> = quotas.iter().copied().collect();
        Ok(btrfs::group_usage(&self.top.fd)?
            .into_iter()
            .filter(|(id, _)| wanted.contains(id))
            .collect())
    }

    fn collect_quotas(&self, live: &HashSet<u32>) -> Result<()> {
        if !self.quota_on() {
            return Ok(());
        }
        for (id, _) in btrfs::group_usage(&self.top.fd)? {
            // Groups outside the range are somebody else's.
            if id >= crate::model::QUOTA_BASE && !live.contains(&id) {
                btrfs::remove_group(&self.top.fd, id)?;
            }
        }
        Ok(())
    }

    /// The kernel frees a removed subvolume after the next commit, and its space with the one after.
    fn reclaim(&self) -> Result<()> {
        btrfs::sync(&self.top.fd)?;
        for _ in 0..RECLAIM_LOOKS {
            if btrfs::deleted_subvolumes(&self.top.fd)? == 0 {
                break;
            }
            std::thread::sleep(RECLAIM_PAUSE);
        }
        btrfs::sync(&self.top.fd)
    }

    fn flush(&self) -> Result<()> {
        btrfs::sync(&self.top.fd)
    }

    fn grow(&self, bytes: u64) -> Result<()> {
        let (Some(device), Some(file)) = (&self.device, &self.loop_file) else {
            return Err(Error::invalid(
                "config.size",
                "only pools in a loop file of this service can be resized",
            ));
        };
        grow_file(file, bytes)?;
        device.grow()?;
        btrfs::resize_to_device(&self.top.fd)
    }
}

fn grow_file(path: &Path, bytes: u64) -> Result<()> {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .doing(|| format!("opening {}", path.display()))?;
    let now = file
        .metadata()
        .doing(|| "reading the loop file's size")?
        .len();
    if bytes < now {
        return Err(Error::invalid(
            "config.size",
            "a loop pool can only grow: making it smaller is not supported",
        ));
    }
    file.set_len(bytes).doing(|| "growing the loop file")
}
