//! One table: the owners' (code, reason) → LXD's HTTP status and sentence.

use berth_rpc::{Code, Error};
use http::StatusCode;

/// An error as REST clients see it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// HTTP status, also the envelope's `error_code`.
    pub status: StatusCode,
    /// The envelope's `error`.
    pub message: String,
}

impl Failure {
    /// Any status and sentence.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404 with a sentence.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 409.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 500 with a sentence users may see.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 501 that names what this server does not do.
    pub fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("{what}: not implemented"),
        )
    }

    /// 412 in LXD's words.
    pub fn etag(expected: &str, got: &str) -> Self {
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            format!("ETag doesn't match: {expected} vs {got}"),
        )
    }
}

/// LXD's HTTP status of an owner's error. Reasons that LXD answers otherwise than their code come first.
fn status_of(code: Code, reason: &str) -> StatusCode {
    match (code, reason) {
        (_, "ETAG_MISMATCH") => StatusCode::PRECONDITION_FAILED,
        (Code::InvalidArgument | Code::FailedPrecondition, _) => StatusCode::BAD_REQUEST,
        (Code::NotFound, _) => StatusCode::NOT_FOUND,
        (Code::AlreadyExists | Code::Aborted, _) => StatusCode::CONFLICT,
        (Code::PermissionDenied | Code::Unauthenticated, _) => StatusCode::FORBIDDEN,
        (Code::Unimplemented, _) => StatusCode::NOT_IMPLEMENTED,
        (Code::Unavailable | Code::DeadlineExceeded, _) => StatusCode::SERVICE_UNAVAILABLE,
        // A full pool is a server's error in LXD.
        (Code::ResourceExhausted | Code::Cancelled | Code::Internal, _) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// Sentences that clients compare; all others are the owner's own.
fn sentence_of(error: &Error) -> String {
    match error.reason.as_str() {
        "INSTANCE_NOT_FOUND" => "Instance not found".to_owned(),
        "ALIAS_NOT_FOUND" => "Image alias not found".to_owned(),
        "IMAGE_NOT_FOUND" => "Image not found".to_owned(),
        "PROFILE_NOT_FOUND" => "Profile not found".to_owned(),
        "NETWORK_NOT_FOUND" => "Network not found".to_owned(),
        "POOL_NOT_FOUND" => "Storage pool not found".to_owned(),
        "VOLUME_NOT_FOUND" => "Storage volume not found".to_owned(),
        // The owners' shared constructor: `Kind "name" not found`; LXD leaves the name out.
        "NOT_FOUND" => error
            .message
            .split_once(" \"")
            .filter(|(_, rest)| rest.ends_with("\" not found"))
            .map_or_else(
                || error.message.clone(),
                |(kind, _)| format!("{kind} not found"),
            ),
        _ => error.message.clone(),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if let Some(cause) = &error.source {
            tracing::warn!(code = ?error.code, reason = %error.reason, %cause, "{}", error.message);
        }
        Self {
            status: status_of(error.code, &error.reason),
            message: sentence_of(&error),
        }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Error::from(status).into()
    }
}

impl From<Failure> for Error {
    /// For operations, which keep owners' errors: only the sentence matters after this.
    fn from(failure: Failure) -> Self {
        let code = match failure.status {
            StatusCode::BAD_REQUEST => Code::InvalidArgument,
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::CONFLICT => Code::AlreadyExists,
            StatusCode::PRECONDITION_FAILED => Code::Aborted,
            StatusCode::FORBIDDEN => Code::PermissionDenied,
            StatusCode::NOT_IMPLEMENTED => Code::Unimplemented,
            StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
            _ => Code::Internal,
        };
        Error::new(code, "GATEWAY", failure.message)
    }
}

/// The sentence an operation's `err` shows for an owner's error.
pub fn sentence(error: &Error) -> String {
    sentence_of(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_errors_become_lxds() {
        let cases = [
            (
                Error::not_found("Instance", "c1"),
                404,
                "Instance not found",
            ),
            (
                Error::invalid("config.foo", "Unknown configuration key: foo"),
                400,
                "Unknown configuration key: foo",
            ),
            (
                Error::already_exists("Network", "br0"),
                409,
                "Network \"br0\" already exists",
            ),
            (Error::etag_mismatch("c1"), 412, "c1 was changed meanwhile"),
            (Error::unimplemented("Migration"), 501, "Migration"),
            (
                Error::precondition("INSTANCE_RUNNING", "Instance is running"),
                400,
                "Instance is running",
            ),
            (Error::unavailable("away"), 503, "away"),
        ];
        for (error, status, message) in cases {
            let failure = Failure::from(error);
            assert_eq!(failure.status.as_u16(), status, "{message}");
            assert_eq!(failure.message, message);
        }
    }
}
