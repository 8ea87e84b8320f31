//! The folder of blobs: files named by the sha256 of their bytes, written once.
//!
//! `blobs/` holds what images need, `incoming/` uploads under way, `set-aside/` files that nobody
//! knows. All on one file system: an upload becomes a blob by a rename.

use crate::model::Fingerprint;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Directories and files are readable by the group: storage runs as another user and reads them.
const DIRECTORY_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;

/// The folder.
#[derive(Debug)]
pub struct Blobs {
    blobs: PathBuf,
    incoming: PathBuf,
    set_aside: PathBuf,
}

/// An upload under way; its file goes when this is dropped, unless it was placed.
#[derive(Debug)]
pub struct Incoming {
    /// Open for reading and writing.
    pub file: File,
    path: PathBuf,
    placed: bool,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.placed
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an upload's file stays behind");
        }
    }
}

/// A name in `blobs/`.
#[derive(Debug)]
pub enum Entry {
    /// A blob.
    Blob(Fingerprint),
    /// Something else.
    Stranger(String),
}

impl Blobs {
    /// Makes the directories under `state_dir` where they are missing.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let state_dir = std::path::absolute(state_dir)?;
        let this = Self {
            blobs: state_dir.join("blobs"),
            incoming: state_dir.join("incoming"),
            set_aside: state_dir.join("set-aside"),
        };
        for directory in [&this.blobs, &this.incoming, &this.set_aside] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(DIRECTORY_MODE)
                .create(directory)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(DIRECTORY_MODE))?;
        }
        Ok(this)
    }

    /// A new file to write an upload to.
    pub fn begin(&self) -> io::Result<Incoming> {
        let path = self.incoming.join(uuid::Uuid::now_v7().to_string());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&path)?;
        let incoming = Incoming {
            file,
            path,
            placed: false,
        };
        // The umask may have taken the group's bit.
        incoming
            .file
            .set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
        Ok(incoming)
    }

    /// Makes a synced upload the blob of its digest. Durable after [`Self::sync`].
    pub fn place(&self, incoming: &mut Incoming, digest: &Fingerprint) -> io::Result<()> {
        fs::rename(&incoming.path, self.path(digest))?;
        incoming.placed = true;
        Ok(())
    }

    /// Makes renames and removals in `blobs/` durable.
    pub fn sync(&self) -> io::Result<()> {
        File::open(&self.blobs)?.sync_all()
    }

    /// Where a blob is or would be.
    pub fn path(&self, digest: &Fingerprint) -> PathBuf {
        self.blobs.join(digest.as_str())
    }

    /// `file://` and the path, percent-encoded.
    pub fn uri(&self, digest: &Fingerprint) -> String {
        let path = self.path(digest);
        let mut uri = String::from("file://");
        for byte in path.as_os_str().as_encoded_bytes() {
            if byte.is_ascii_alphanumeric() || b"/-_.~".contains(byte) {
                uri.push(char::from(*byte));
            } else {
                uri.push_str(&format!("%{byte:02X}"));
            }
        }
        uri
    }

    /// Opens a blob for reading.
    pub fn read(&self, digest: &Fingerprint) -> io::Result<File> {
        File::open(self.path(digest))
    }

    /// A blob's length, `None` where there is no such file.
    pub fn length(&self, digest: &Fingerprint) -> io::Result<Option<u64>> {
        match fs::symlink_metadata(self.path(digest)) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a blob; absent is fine.
    pub fn remove(&self, digest: &Fingerprint) -> io::Result<()> {
        match fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Everything in `blobs/`.
    pub fn list(&self) -> io::Result<Vec<Entry>> {
        fs::read_dir(&self.blobs)?
            .map(|entry| {
                let name = entry?.file_name().to_string_lossy().into_owned();
                Ok(match Fingerprint::parse(&name) {
                    Some(digest) if digest.as_str() == name => Entry::Blob(digest),
                    _ => Entry::Stranger(name),
                })
            })
            .collect()
    }

    /// Moves a file of `blobs/` out of the way; gives its new place.
    pub fn set_aside(&self, name: &str) -> io::Result<PathBuf> {
        let to = self
            .set_aside
            .join(format!("{name}.{}", uuid::Uuid::now_v7()));
        fs::rename(self.blobs.join(name), &to)?;
        Ok(to)
    }

    /// Removes what uploads left behind when the service was killed; gives their number.
    pub fn sweep_incoming(&self) -> io::Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(&self.incoming)? {
            fs::remove_file(entry?.path())?;
            count += 1;
        }
        Ok(count)
    }
}
