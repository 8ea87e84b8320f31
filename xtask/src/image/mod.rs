//! System images made from the machine's own packages, so that tests and benchmarks need no
//! image server: a tiny one of static busybox and a Debian one with systemd.

mod archive;
mod busybox;
mod debian;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The images `xtask` can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Busybox,
    Debian,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busybox => "busybox",
            Self::Debian => "debian",
        })
    }
}

/// What was written: one file, or a metadata file and a root filesystem beside it.
#[derive(Debug, Clone)]
pub struct Written {
    pub image: PathBuf,
    pub rootfs: Option<PathBuf>,
}

/// Writes an image to `out`. Split images put the root filesystem, a squashfs, at `out` + `.root`.
///
/// `cache` keeps the Debian root filesystem, which takes mmdebstrap a minute.
pub fn write(kind: Kind, out: &Path, split: bool, cache: &Path) -> Result<Written> {
    if let Some(parent) = out.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match kind {
        Kind::Busybox => busybox::write(out, split),
        Kind::Debian => debian::write(out, split, cache),
    }
    .with_context(|| format!("cannot make the {kind} image"))
}

/// The unified image of this kind, made once and kept in `cache`.
pub fn cached(kind: Kind, cache: &Path) -> Result<PathBuf> {
    let recipe = match kind {
        Kind::Busybox => busybox::recipe()?,
        Kind::Debian => debian::recipe(),
    };
    let file = cache.join(format!("{kind}-{recipe}.tar.gz"));
    if !file.exists() {
        write(kind, &file, false, cache)?;
    }
    Ok(file)
}

/// Eight hex digits that stand for these bytes.
pub(crate) fn short_digest(parts: &[&[u8]]) -> String {
    let mut digest = <sha2::Sha256 as sha2::Digest>::new();
    for part in parts {
        sha2::Digest::update(&mut digest, part.len().to_le_bytes());
        sha2::Digest::update(&mut digest, part);
    }
    hex::encode(&sha2::Digest::finalize(digest)[..4])
}
