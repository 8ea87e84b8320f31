//! What can go wrong below the API, before it is given a gRPC code.

use std::io;

/// Failures of drivers and image sources. `Display` is the sentence a user may read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No space or quota left.
    #[error("storage pool is full: no space left while {0}")]
    Full(String),
    /// The request can't be served with this value.
    #[error("{message}")]
    Invalid {
        /// Field of the request or configuration key.
        field: String,
        /// Sentence.
        message: String,
    },
    /// An image's bytes are not on this host, or not where this service may read.
    #[error("{0}")]
    Elsewhere(String),
    /// What an image holds is refused.
    #[error("image is refused: {0}")]
    Archive(String),
    /// Something stands in the way.
    #[error("{0}")]
    Precondition(String),
    /// The pool isn't usable now.
    #[error("{0}")]
    Unavailable(String),
    /// Known, but not part of this build.
    #[error("{0}")]
    Unsupported(String),
    /// The kernel refused; `doing` says what was tried.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Shorthand of this crate's lower layers.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error about one field.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            message: message.into(),
        }
    }

    /// Sorts an error of the kernel.
    pub fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (doing, source) = (doing.into(), source.into());
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::Full(doing),
            _ => Self::Io { doing, source },
        }
    }

    /// True when the kernel said `errno`.
    pub fn is_errno(&self, errno: i32) -> bool {
        matches!(self, Self::Io { source, .. } if source.raw_os_error() == Some(errno))
    }
}

/// Adds what was being done to an error of the kernel.
pub trait Doing<T> {
    /// `doing` completes the sentence "… : <kernel's answer>".
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::io(doing(), source))
    }
}

impl From<Error> for berth_rpc::Error {
    fn from(error: Error) -> Self {
        let sentence = error.to_string();
        match error {
            Error::Full(_) => Self::exhausted("POOL_FULL", sentence),
            Error::Invalid { field, .. } => Self::invalid(field, sentence),
            Error::Elsewhere(_) => Self::precondition("BLOB_ELSEWHERE", sentence),
            Error::Archive(_) => Self::invalid("image", sentence),
            Error::Precondition(_) => Self::precondition("NOT_NOW", sentence),
            Error::Unavailable(_) => Self::unavailable(sentence),
            Error::Unsupported(_) => Self::unimplemented(sentence),
            Error::Io { .. } => Self::internal_with(sentence, error),
        }
    }
}
