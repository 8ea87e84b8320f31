//! Reads an image's parts far enough to know what they are. Nothing is unpacked here.
//!
//! The bytes come from strangers: every length is checked before it is believed, memory is
//! bounded whatever the archive says, and how much is decompressed is bounded by what came in.

mod decompress;
mod inspect;
mod squashfs;
mod tar;

pub use inspect::{Inspected, inspect_split, inspect_unified};

use crate::model::format::{self, Format};

/// What is wrong with an archive. The sentences are for users.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Broken or not what it must be.
    #[error("{0}")]
    Bad(String),
    /// Well-formed, and not done here.
    #[error("{0}")]
    Unsupported(String),
    /// Our own disk failed.
    #[error("reading the upload failed: {0}")]
    Io(std::io::Error),
}

impl ArchiveError {
    fn bad(sentence: impl Into<String>) -> Self {
        Self::Bad(sentence.into())
    }

    /// Sorts an error of a reader: the system's are ours, all others are the archive's.
    fn reading(what: &str, error: std::io::Error) -> Self {
        if error.raw_os_error().is_some() {
            Self::Io(error)
        } else if error.kind() == std::io::ErrorKind::UnexpectedEof {
            Self::Bad(format!("{what} ends too early"))
        } else {
            Self::Bad(format!("{what} cannot be read: {error}"))
        }
    }
}

/// Tells a part's format; `what` names the part in the sentence.
pub fn detect(what: &str, head: &[u8]) -> Result<Format, ArchiveError> {
    Format::detect(head).map_err(|why| match why {
        format::Unrecognised::Unsupported(name) => {
            ArchiveError::Unsupported(format!("{what} is {name}, which is not supported"))
        }
        format::Unrecognised::Unknown => ArchiveError::bad(format!(
            "{what} is none of tar, tar.gz, tar.xz, tar.zst, tar.bz2, squashfs or qcow2"
        )),
    })
}
