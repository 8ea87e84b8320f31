//! What can go wrong here, and how it crosses the edge.

use crate::archive::ArchiveError;
use berth_store::StoreError;

/// Errors of the image service. The sentences are for users.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request is wrong, or anything else of the shared vocabulary.
    #[error(transparent)]
    Rpc(#[from] berth_rpc::Error),
    /// Only `default` exists yet.
    #[error("Project {0:?} not found")]
    NoProject(String),
    /// No image matches.
    #[error("Image {0:?} not found")]
    NoImage(String),
    /// No alias has this name.
    #[error("Image alias {0:?} not found")]
    NoAlias(String),
    /// The bytes are already here.
    #[error("Image with same fingerprint already exists")]
    ImageExists,
    /// The alias is taken.
    #[error("Alias {0:?} already exists")]
    AliasExists(String),
    /// A prefix fits several images.
    #[error("More than one image matches")]
    Ambiguous,
    /// The image's bytes are missing or not what they were.
    #[error("Image {0:?} is damaged: delete it and import it again")]
    Damaged(String),
    /// The upload is not an image.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The database failed.
    #[error("the database failed")]
    Store(#[from] StoreError),
    /// The file system failed.
    #[error("{what} failed")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Error {
    /// Wraps an error of the file system.
    pub fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// A field of the request is wrong.
    pub fn invalid(field: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self::Rpc(berth_rpc::Error::invalid(field, sentence))
    }
}

impl From<Error> for berth_rpc::Error {
    fn from(error: Error) -> Self {
        use berth_rpc::{Code, Error as Rpc};
        let sentence = error.to_string();
        match error {
            Error::Rpc(error) => error,
            Error::NoProject(_) | Error::NoImage(_) | Error::NoAlias(_) => {
                Rpc::new(Code::NotFound, "NOT_FOUND", sentence)
            }
            Error::ImageExists | Error::AliasExists(_) => {
                Rpc::new(Code::AlreadyExists, "ALREADY_EXISTS", sentence)
            }
            Error::Ambiguous => Rpc::precondition("AMBIGUOUS", sentence),
            Error::Damaged(_) => Rpc::precondition("BLOB_DAMAGED", sentence),
            Error::Archive(ArchiveError::Bad(_)) => Rpc::invalid("chunk.data", sentence),
            Error::Archive(ArchiveError::Unsupported(_)) => Rpc::unimplemented(sentence),
            Error::Archive(ArchiveError::Io(source)) => io("reading the upload", source),
            Error::Store(StoreError::Full(source)) => full(source),
            Error::Store(source) => Rpc::internal_with(sentence, source),
            Error::Io { what, source } => io(what, source),
        }
    }
}

fn io(what: &str, source: std::io::Error) -> berth_rpc::Error {
    if matches!(
        source.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    ) {
        full(source)
    } else {
        berth_rpc::Error::internal_with(format!("{what} failed"), source)
    }
}

fn full(source: impl std::error::Error + Send + Sync + 'static) -> berth_rpc::Error {
    let mut error =
        berth_rpc::Error::exhausted("NO_SPACE", "no space left where images are stored");
    error.source = Some(Box::new(source));
    error
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        berth_rpc::Error::from(error).into()
    }
}
