//! `dir`: plain directories. Copies are real copies (shared extents where the filesystem can),
//! limits are project quotas where the filesystem has them.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

use super::{Access, Area, Driver, Place, Setup, SourceKind, Top, empty_dir};
use crate::error::{Doing, Error, Result};
use crate::host::{self, fs::Space, project_quota, tree};

/// An opened pool of directories.
pub struct Dir {
    top: Top,
    path: PathBuf,
    magic: i64,
    quota: bool,
}

pub(super) fn plan(state_dir: &Path, source: Option<&str>, setup: &mut Setup) -> Result<()> {
    setup.kind = SourceKind::Directory;
    setup.source = match source {
        None | Some("") => state_dir.join("pools").join(&setup.uid),
        Some(path) if path.starts_with('/') => PathBuf::from(path),
        Some(path) => {
            return Err(Error::invalid(
                "config.source",
                format!("source {path:?} is not an absolute path"),
            ));
        }
    };
    Ok(())
}

pub(super) fn make(setup: &Setup) -> Result<()> {
    if is_own(setup) {
        return std::fs::create_dir_all(&setup.source)
            .doing(|| format!("making directory {}", setup.source.display()));
    }
    empty_dir(&setup.source).map(drop)
}

pub(super) fn unmake(setup: &Setup) -> Result<()> {
    if !is_own(setup) {
        // The directory was there before the pool; only what the pool made in it goes.
        return match host::fs::open_admin_dir(&setup.source) {
            Ok(fd) => remove_empty_areas(fd),
            Err(error) if error.is_errno(libc::ENOENT) => Ok(()),
            Err(error) => Err(error),
        };
    }
    match host::fs::open_admin_dir(&setup.source) {
        Ok(fd) => remove_empty_areas(fd)?,
        Err(error) if error.is_errno(libc::ENOENT) => return Ok(()),
        Err(error) => return Err(error),
    }
    match std::fs::remove_dir(&setup.source) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).doing(|| format!("removing directory {}", setup.source.display())),
    }
}

/// Removes the areas that are empty; what still holds something stays.
pub(super) fn remove_empty_areas(top: impl AsFd) -> Result<()> {
    for area in Area::ALL {
        match rustix::fs::unlinkat(&top, area.dir(), rustix::fs::AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTEMPTY) => {}
            Err(errno) => return Err(errno).doing(|| format!("removing {}", area.dir())),
        }
    }
    Ok(())
}

/// True for the directory that the pool got below the service's state directory.
fn is_own(setup: &Setup) -> bool {
    setup.source.file_name().and_then(|n| n.to_str()) == Some(setup.uid.as_str())
}

impl Dir {
    /// Opens the pool's directory.
    pub fn open(setup: &Setup) -> Result<Self> {
        let fd = host::fs::open_admin_dir(&setup.source)?;
        let magic = host::fs::magic(&fd)?;
        let quota = project_quota::enforced(&fd);
        Ok(Self {
            top: Top::open(fd)?,
            path: setup.source.clone(),
            magic,
            quota,
        })
    }

    fn make_top(&self, place: &Place, quota: Option<u32>) -> Result<()> {
        let (area, name) = (self.top.area(place.area), place.name());
        rustix::fs::mkdirat(area, name.as_str(), Mode::from_raw_mode(0o755))
            .doing(|| format!("making directory {name}"))?;
        // The umask must not decide.
        rustix::fs::chmodat(
            area,
            name.as_str(),
            Mode::from_raw_mode(0o755),
            rustix::fs::AtFlags::empty(),
        )
        .doing(|| format!("setting the mode of {name}"))?;
        if let (true, Some(quota)) = (self.quota, quota) {
            project_quota::assign(self.open(place)?, quota)?;
        }
        Ok(())
    }

    fn or_remove(&self, place: &Place, result: Result<()>) -> Result<()> {
        if result.is_err()
            && let Err(error) = self.remove(place.area, &place.name())
        {
            tracing::warn!(volume = place.uid, %error, "cleaning up after a failed copy");
        }
        result
    }
}

impl Driver for Dir {
    fn name(&self) -> &'static str {
        "dir"
    }

    fn access(&self) -> Access {
        Access::HostPath(self.path.clone())
    }

    fn can_idmap(&self) -> bool {
        host::fs::can_idmap(self.magic)
    }

    fn needs_freeze(&self) -> bool {
        true
    }

    fn has_quota(&self) -> bool {
        self.quota
    }

    fn top(&self) -> &Top {
        &self.top
    }

    fn create(&self, place: &Place, quota: Option<u32>) -> Result<()> {
        let result = self.make_top(place, quota);
        self.or_remove(place, result)
    }

    fn copy(&self, from: &Place, to: &Place, quota: Option<u32>, _read_only: bool) -> Result<()> {
        let source = self.open(from)?;
        let result = self
            .make_top(to, quota)
            .and_then(|()| tree::copy(&source, self.open(to)?));
        self.or_remove(to, result)
    }

    /// Plain directories can't be sealed; the attachment is read-only as a mount.
    fn seal(&self, _place: &Place) -> Result<()> {
        Ok(())
    }

    fn remove(&self, area: Area, name: &str) -> Result<()> {
        tree::remove(self.top.area(area), name)
    }

    fn set_limit(&self, _place: &Place, quota: u32, bytes: Option<u64>) -> Result<()> {
        if self.quota {
            project_quota::set_limit(&self.top.fd, quota, bytes)?;
        }
        Ok(())
    }

    fn usage(&self, quotas: &[u32]) -> Result<HashMap<u32, u64>> {
        let mut out = HashMap::new();
        if self.quota {
            for quota in quotas {
                if let Some(bytes) = project_quota::usage(&self.top.fd, *quota)? {
                    out.insert(*quota, bytes);
                }
            }
        }
        Ok(out)
    }

    /// A project without files and limit is forgotten by the kernel itself.
    fn collect_quotas(&self, _live: &HashSet<u32>) -> Result<()> {
        Ok(())
    }

    fn grow(&self, _bytes: u64) -> Result<()> {
        Err(Error::invalid(
            "config.size",
            "a dir pool is as large as the filesystem it is in; it has no size of its own",
        ))
    }

    fn space(&self) -> Result<Space> {
        host::fs::space(&self.top.fd)
    }
}
