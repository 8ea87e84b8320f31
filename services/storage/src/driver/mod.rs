//! Backends of a pool. One trait, one module a backend, one contract suite for all of them
//! (`tests/driver.rs`).
//!
//! On disk every pool looks alike, and every name is made from a uid, so that a rename in the API
//! touches one row and nothing here:
//!
//! ```text
//! <top>/volumes/<uid>.<generation>            a volume's contents
//! <top>/volumes/staging-<uid>.<generation>    one that is being made; nobody was told of it
//! <top>/snapshots/<uid>.0                     a snapshot, read-only
//! <top>/*/set-aside-<name>                    found, not known: kept for the administrator
//! ```

pub mod btrfs;
mod btrfs_source;
pub mod dir;

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Doing, Error, Result};
use crate::host;
pub use crate::host::fs::Space;

/// Names of the backends in this build.
pub const DRIVERS: [&str; 2] = ["btrfs", "dir"];

/// Prefix of what is being made.
const STAGING: &str = "staging-";
/// Prefix of what was found and is not known.
const SET_ASIDE: &str = "set-aside-";

/// The two directories of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Area {
    /// Volumes.
    Volumes,
    /// Snapshots.
    Snapshots,
}

impl Area {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Volumes, Self::Snapshots];

    /// Directory's name.
    pub fn dir(self) -> &'static str {
        match self {
            Self::Volumes => "volumes",
            Self::Snapshots => "snapshots",
        }
    }
}

/// Where the contents of one volume or snapshot are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Which directory.
    pub area: Area,
    /// Identity.
    pub uid: String,
    /// Grows when contents are replaced; 0 for snapshots.
    pub generation: i64,
    /// Still under its staging name.
    pub staged: bool,
}

impl Place {
    /// A volume's place.
    pub fn volume(uid: &str, generation: i64) -> Self {
        Self {
            area: Area::Volumes,
            uid: uid.to_owned(),
            generation,
            staged: false,
        }
    }

    /// A snapshot's place.
    pub fn snapshot(uid: &str) -> Self {
        Self {
            area: Area::Snapshots,
            uid: uid.to_owned(),
            generation: 0,
            staged: false,
        }
    }

    /// The same under its staging name.
    pub fn staged(&self) -> Self {
        Self {
            staged: true,
            ..self.clone()
        }
    }

    /// The same under its final name.
    pub fn published(&self) -> Self {
        Self {
            staged: false,
            ..self.clone()
        }
    }

    /// Name in its directory.
    pub fn name(&self) -> String {
        let prefix = if self.staged { STAGING } else { "" };
        format!("{prefix}{}.{}", self.uid, self.generation)
    }

    /// Reads a name back; `None` for what this service never made or has set aside.
    pub fn parse(area: Area, name: &str) -> Option<Self> {
        let (staged, rest) = match name.strip_prefix(STAGING) {
            Some(rest) => (true, rest),
            None => (false, name),
        };
        let (uid, generation) = rest.rsplit_once('.')?;
        uuid::Uuid::try_parse(uid).ok()?;
        Some(Self {
            area,
            uid: uid.to_owned(),
            generation: generation.parse().ok().filter(|g| *g >= 0)?,
            staged,
        })
    }
}

/// One entry of a pool's directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which directory.
    pub area: Area,
    /// Entry's name.
    pub name: String,
    /// What the name says, unless it is foreign.
    pub place: Option<Place>,
}

/// How another service mounts what is in a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// A directory as the host's root namespace sees it.
    HostPath(PathBuf),
    /// A filesystem on a device, and the pool's top in it.
    Device {
        /// Device node.
        path: PathBuf,
        /// Kernel's disk sequence number.
        diskseq: i64,
        /// Filesystem type.
        fs_type: &'static str,
        /// Filesystem options.
        options: Vec<String>,
        /// UUID of the filesystem.
        fs_uuid: String,
    },
}

/// A backend over one opened pool. All calls block. A call that fails leaves nothing under a
/// staging name that it was to make.
pub trait Driver: Send + Sync {
    /// LXD's name of the backend.
    fn name(&self) -> &'static str;

    /// How others reach the pool's top directory.
    fn access(&self) -> Access;

    /// Whether the filesystem takes idmapped mounts.
    fn can_idmap(&self) -> bool;

    /// Whether a snapshot is consistent only while the guest is frozen.
    fn needs_freeze(&self) -> bool;

    /// Whether `size` is enforced.
    fn has_quota(&self) -> bool;

    /// The pool's top directory.
    fn top(&self) -> &Top;

    /// Makes an empty volume, counted under the number `quota` from now on; `None` = for nobody.
    fn create(&self, place: &Place, quota: Option<u32>) -> Result<()>;

    /// Makes a copy of `from`, subvolumes inside it included.
    fn copy(&self, from: &Place, to: &Place, quota: Option<u32>, read_only: bool) -> Result<()>;

    /// Makes the contents unchangeable where the backend can.
    fn seal(&self, place: &Place) -> Result<()>;

    /// Gives a staged volume its final name. Done already is fine.
    fn publish(&self, place: &Place) -> Result<()> {
        let dir = self.top().area(place.area);
        let (from, to) = (place.staged().name(), place.published().name());
        match rustix::fs::renameat_with(
            dir,
            from.as_str(),
            dir,
            to.as_str(),
            rustix::fs::RenameFlags::NOREPLACE,
        ) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::NOENT) if host::fs::exists(dir, &to)? => Ok(()),
            Err(errno) => Err(errno).doing(|| format!("publishing volume {}", place.uid)),
        }
    }

    /// Removes one entry of an area with all in it, also what a guest nested there.
    fn remove(&self, area: Area, name: &str) -> Result<()>;

    /// Limits a volume; `None` lifts it. Where quotas aren't there nothing is limited.
    fn set_limit(&self, place: &Place, quota: u32, bytes: Option<u64>) -> Result<()>;

    /// Used bytes by quota number, without walking any tree. What can't be told is left out.
    fn usage(&self, quotas: &[u32]) -> Result<HashMap<u32, u64>>;

    /// Drops accounting records of volumes that are gone; `live` are the numbers in use.
    fn collect_quotas(&self, live: &HashSet<u32>) -> Result<()>;

    /// Grows the pool to `bytes`.
    fn grow(&self, bytes: u64) -> Result<()>;

    /// Opens a volume's top directory.
    fn open(&self, place: &Place) -> Result<OwnedFd> {
        host::fs::open_dir_beneath(self.top().area(place.area), place.name().as_str())
            .doing(|| format!("opening the contents of {}", place.uid))
    }

    /// Everything in the pool's directories.
    fn entries(&self) -> Result<Vec<Found>> {
        let mut out = Vec::new();
        for area in Area::ALL {
            for name in host::fs::names(self.top().area(area))? {
                if name.starts_with(SET_ASIDE) {
                    continue;
                }
                let place = Place::parse(area, &name);
                out.push(Found { area, name, place });
            }
        }
        Ok(out)
    }

    /// Renames what isn't known, so that it is out of the way and yet there.
    fn set_aside(&self, area: Area, name: &str) -> Result<String> {
        let dir = self.top().area(area);
        let to = format!("{SET_ASIDE}{name}");
        rustix::fs::renameat_with(
            dir,
            name,
            dir,
            to.as_str(),
            rustix::fs::RenameFlags::NOREPLACE,
        )
        .doing(|| format!("setting {name} aside"))?;
        Ok(to)
    }

    /// Space of the pool.
    fn space(&self) -> Result<Space> {
        host::fs::space(&self.top().fd)
    }

    /// Makes an empty volume outlast a power cut; copies do so by themselves or not at all.
    fn persist(&self, place: &Place) -> Result<()> {
        rustix::fs::fsync(self.open(place)?).doing(|| "writing a volume out")?;
        rustix::fs::fsync(self.top().area(place.area)).doing(|| "writing a directory out")
    }

    /// Waits a moment for the space of what was removed, where that comes back late.
    fn reclaim(&self) -> Result<()> {
        Ok(())
    }

    /// Writes everything out: once after an image was unpacked, so that clones of it don't pay.
    fn flush(&self) -> Result<()> {
        rustix::fs::syncfs(&self.top().fd).doing(|| "writing the pool out")
    }
}

/// A pool's top directory and the areas in it.
#[derive(Debug)]
pub struct Top {
    /// Top directory.
    pub fd: OwnedFd,
    volumes: OwnedFd,
    snapshots: OwnedFd,
}

impl Top {
    /// Opens the areas, and makes them when they are missing. Only root may pass: a shifted
    /// volume's set-id files must not be within reach of the host's users.
    pub fn open(fd: OwnedFd) -> Result<Self> {
        let volumes = host::fs::ensure_dir(&fd, Area::Volumes.dir(), 0o700)?;
        let snapshots = host::fs::ensure_dir(&fd, Area::Snapshots.dir(), 0o700)?;
        Ok(Self {
            fd,
            volumes,
            snapshots,
        })
    }

    /// An area's directory.
    pub fn area(&self, area: Area) -> std::os::fd::BorrowedFd<'_> {
        match area {
            Area::Volumes => self.volumes.as_fd(),
            Area::Snapshots => self.snapshots.as_fd(),
        }
    }
}

/// Where a pool's storage is, as its row keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// Pool's uid; also the filesystem's, where this service makes it.
    pub uid: String,
    /// Pool's name, for labels and sentences.
    pub name: String,
    /// Backend.
    pub driver: String,
    /// `source` as resolved: a directory, a block device, or the loop file.
    pub source: PathBuf,
    /// Size of the loop file in bytes; 0 unless there is one.
    pub size: u64,
    /// How `source` is used.
    pub kind: SourceKind,
    /// UUID that the filesystem must have; empty = not known yet, or not checked.
    pub fs_uuid: String,
    /// Filesystem options, from `btrfs.mount_options`.
    pub mount_options: Vec<String>,
}

/// What a pool's `source` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory that was there, or that this service made below its own state directory.
    Directory,
    /// A file of this service with a filesystem in it.
    Loop,
    /// A whole block device given over to the pool.
    Device,
}

impl SourceKind {
    /// As stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Loop => "loop",
            Self::Device => "device",
        }
    }

    /// Reads what was stored.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Directory, Self::Loop, Self::Device]
            .into_iter()
            .find(|k| k.as_str() == text)
    }
}

/// Decides what the user's `source` and `size` mean, without changing anything.
/// `state_dir` is where this service keeps loop files and directories of its own.
pub fn plan(
    state_dir: &Path,
    uid: &str,
    name: &str,
    driver: &str,
    source: Option<&str>,
    size: Option<u64>,
    mount_options: Vec<String>,
) -> Result<Setup> {
    let mut setup = Setup {
        uid: uid.to_owned(),
        name: name.to_owned(),
        driver: driver.to_owned(),
        source: PathBuf::new(),
        size: 0,
        kind: SourceKind::Directory,
        fs_uuid: String::new(),
        mount_options,
    };
    match driver {
        "dir" => dir::plan(state_dir, source, &mut setup)?,
        "btrfs" => btrfs_source::plan(state_dir, source, size, &mut setup)?,
        _ => return Err(unsupported(driver)),
    }
    Ok(setup)
}

/// The refusal of a backend that isn't in this build.
pub fn unsupported(driver: &str) -> Error {
    Error::Unsupported(format!("driver {driver} is not supported by this build"))
}

/// Makes the pool's storage: directories, loop file, filesystem. On failure nothing is left.
pub fn make(setup: &mut Setup) -> Result<Arc<dyn Driver>> {
    let made = match setup.driver.as_str() {
        "dir" => dir::make(setup),
        "btrfs" => btrfs_source::make(setup),
        other => return Err(unsupported(other)),
    };
    let opened = made.and_then(|()| open(setup));
    if opened.is_err()
        && let Err(error) = unmake(setup, None)
    {
        tracing::warn!(pool = setup.name, %error, "cleaning up after a failed pool");
    }
    opened
}

/// Opens a pool that was made before. What a host's restart took away (loop device, mount) is put
/// back first.
pub fn open(setup: &Setup) -> Result<Arc<dyn Driver>> {
    match setup.driver.as_str() {
        "dir" => Ok(Arc::new(dir::Dir::open(setup)?)),
        "btrfs" => Ok(Arc::new(btrfs::Btrfs::open(setup)?)),
        other => Err(unsupported(other)),
    }
}

/// Removes what [`make`] made. `driver` is the opened pool, if it could be opened. In a directory
/// that was there before, what isn't known stays; a loop file goes with all that is in it.
pub fn unmake(setup: &Setup, driver: Option<Arc<dyn Driver>>) -> Result<()> {
    // The mount must be gone before its device can be.
    drop(driver);
    match setup.driver.as_str() {
        "dir" => dir::unmake(setup),
        "btrfs" => btrfs_source::unmake(setup),
        other => Err(unsupported(other)),
    }
}

/// Opens an administrator's directory for a new pool, which must be empty and absolute.
fn empty_dir(path: &Path) -> Result<OwnedFd> {
    let fd = host::fs::open_admin_dir(path)?;
    let left = host::fs::names(&fd)?;
    if left.iter().any(|n| n != "lost+found") {
        return Err(Error::invalid(
            "config.source",
            format!("source directory {} isn't empty", path.display()),
        ));
    }
    Ok(fd)
}
