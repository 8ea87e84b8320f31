//! Blobs: where they may be, what they are, and whether they are what they claim.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::error::{Doing, Error, Result};
use crate::host::fs;

/// What a blob holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// metadata.yaml, templates/ and rootfs/.
    Unified,
    /// metadata.yaml and templates/.
    Metadata,
    /// The root filesystem only.
    Rootfs,
}

/// How a blob is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Tar, not compressed.
    Tar,
    /// Tar in gzip.
    TarGzip,
    /// Tar in xz.
    TarXz,
    /// Tar in zstd.
    TarZstd,
    /// Tar in bzip2.
    TarBzip2,
    /// A squashfs image.
    Squashfs,
}

impl Format {
    /// Reads a media type; `field` names it in the error.
    pub fn parse(field: &str, media_type: &str) -> Result<Self> {
        Ok(match media_type {
            "application/x-tar" => Self::Tar,
            "application/x-tar+gzip" => Self::TarGzip,
            "application/x-tar+xz" => Self::TarXz,
            "application/x-tar+zstd" => Self::TarZstd,
            "application/x-tar+bzip2" => Self::TarBzip2,
            "application/vnd.squashfs" => Self::Squashfs,
            _ => {
                return Err(Error::invalid(
                    field,
                    format!("media type {media_type:?} is not supported"),
                ));
            }
        })
    }
}

/// Where a blob's bytes are.
#[derive(Debug, Clone)]
pub enum Location {
    /// An absolute path.
    Path(PathBuf),
    /// They came with the request: a file that has no name.
    Received(Arc<File>),
}

impl PartialEq for Location {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Path(a), Self::Path(b)) => a == b,
            (Self::Received(a), Self::Received(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Eq for Location {}

/// A blob as the request names it, parsed but not yet opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobSource {
    /// Where its bytes are.
    pub location: Location,
    /// Sha256 it must have, lowercase hex.
    pub sha256: String,
    /// Exact length in bytes.
    pub size: u64,
    /// How it is packed.
    pub format: Format,
    /// What it holds.
    pub part: Part,
}

/// The directories beneath which blobs may be.
#[derive(Debug, Clone, Default)]
pub struct BlobRoots(Vec<PathBuf>);

impl BlobRoots {
    /// `roots` are absolute paths from the configuration.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self(roots)
    }

    /// Opens a blob: one that was received, or a regular file of the right length beneath a root
    /// and through no link.
    pub fn open(&self, source: &BlobSource) -> Result<File> {
        let path = match &source.location {
            Location::Path(path) => path,
            Location::Received(file) => {
                let mut file = file.try_clone().doing(|| "duplicating a descriptor")?;
                file.rewind().doing(|| "going to a blob's beginning")?;
                return Ok(file);
            }
        };
        let plain = |p: &Path| {
            p.components()
                .all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
        };
        let beneath = self
            .0
            .iter()
            .find_map(|root| Some((root, path.strip_prefix(root).ok()?)))
            .filter(|(_, rest)| plain(path) && rest.components().next().is_some());
        let Some((root, rest)) = beneath else {
            return Err(Error::Elsewhere(format!(
                "blob {} is not beneath any of this service's blob_roots",
                path.display()
            )));
        };
        let elsewhere = |errno: Option<i32>, sentence: String| {
            let gone = [Errno::NOENT, Errno::ACCESS].map(Errno::raw_os_error);
            if errno.is_some_and(|errno| gone.contains(&errno)) {
                Error::Elsewhere(sentence)
            } else {
                Error::invalid("image.blobs.uri", sentence)
            }
        };
        let root = fs::open_admin_dir(root).map_err(|error| match error {
            Error::Io { doing, source } => {
                elsewhere(source.raw_os_error(), format!("{doing}: {source}"))
            }
            other => other,
        })?;
        let fd: OwnedFd = rustix::fs::openat2(
            &root,
            rest,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
            fs::BENEATH | ResolveFlags::NO_XDEV,
        )
        .map_err(|errno| {
            let sentence = format!("blob {} can't be opened: {errno}", path.display());
            elsewhere(Some(errno.raw_os_error()), sentence)
        })?;
        let stat = rustix::fs::fstat(&fd).doing(|| "reading a blob's size")?;
        if fs::file_type(&stat) != FileType::RegularFile {
            return Err(Error::invalid(
                "image.blobs.uri",
                "the blob is not a regular file",
            ));
        }
        if u64::try_from(stat.st_size).ok() != Some(source.size) {
            return Err(Error::invalid(
                "image.blobs.size_bytes",
                format!("the blob has {} bytes, not {}", stat.st_size, source.size),
            ));
        }
        Ok(File::from(fd))
    }
}

/// Digests of one blob and of all blobs of the image so far.
#[derive(Debug, Default)]
pub struct Digests {
    one: Sha256,
    read: u64,
}

/// The running digest over all parts of an image: its fingerprint in the end.
pub type Whole = Arc<Mutex<Sha256>>;

/// Reads a blob and digests every byte that passes.
pub struct DigestReader {
    file: File,
    digests: Digests,
    whole: Option<Whole>,
}

impl DigestReader {
    /// Starts at the file's beginning; `whole` is digested along where there are several parts.
    pub fn new(file: File, whole: Option<Whole>) -> Self {
        Self {
            file,
            digests: Digests::default(),
            whole,
        }
    }

    /// Reads what is left and compares with what was promised.
    pub fn finish(mut self, source: &BlobSource) -> Result<()> {
        let mut rest = vec![0_u8; 256 * 1024];
        while self.read(&mut rest).doing(|| "reading a blob")? > 0 {}
        let found = hex::encode(self.digests.one.finalize());
        if self.digests.read != source.size || found != source.sha256 {
            return Err(Error::Archive(format!(
                "its bytes have sha256 {found}, not {}",
                source.sha256
            )));
        }
        Ok(())
    }
}

impl Read for DigestReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.digests.one.update(&buffer[..n]);
        self.digests.read += n as u64;
        if let Some(Ok(mut whole)) = self.whole.as_ref().map(|w| w.lock()) {
            whole.update(&buffer[..n]);
        }
        Ok(n)
    }
}
