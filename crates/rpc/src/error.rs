//! One error vocabulary for all services: a code, a stable reason, and a sentence for users.

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

/// Domain of every `ErrorInfo` that Berth sends.
const DOMAIN: &str = "berth";

/// The codes Berth uses; a subset of gRPC's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request is wrong whatever the state of the system.
    InvalidArgument,
    /// The thing named does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The system is not in a state that allows it.
    FailedPrecondition,
    /// It lost against a concurrent change; trying the whole again may work.
    Aborted,
    /// No room left.
    ResourceExhausted,
    /// The caller may not.
    PermissionDenied,
    /// The caller is not known.
    Unauthenticated,
    /// Not done by this server.
    Unimplemented,
    /// Try again later.
    Unavailable,
    /// Took too long.
    DeadlineExceeded,
    /// The caller asked to stop.
    Cancelled,
    /// A fault of the server.
    Internal,
}

impl Code {
    /// The same code in tonic's words.
    pub fn to_tonic(self) -> tonic::Code {
        match self {
            Code::InvalidArgument => tonic::Code::InvalidArgument,
            Code::NotFound => tonic::Code::NotFound,
            Code::AlreadyExists => tonic::Code::AlreadyExists,
            Code::FailedPrecondition => tonic::Code::FailedPrecondition,
            Code::Aborted => tonic::Code::Aborted,
            Code::ResourceExhausted => tonic::Code::ResourceExhausted,
            Code::PermissionDenied => tonic::Code::PermissionDenied,
            Code::Unauthenticated => tonic::Code::Unauthenticated,
            Code::Unimplemented => tonic::Code::Unimplemented,
            Code::Unavailable => tonic::Code::Unavailable,
            Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
            Code::Cancelled => tonic::Code::Cancelled,
            Code::Internal => tonic::Code::Internal,
        }
    }

    /// Codes that Berth never sends are faults of whoever did.
    pub fn from_tonic(code: tonic::Code) -> Self {
        match code {
            tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Code::InvalidArgument,
            tonic::Code::NotFound => Code::NotFound,
            tonic::Code::AlreadyExists => Code::AlreadyExists,
            tonic::Code::FailedPrecondition => Code::FailedPrecondition,
            tonic::Code::Aborted => Code::Aborted,
            tonic::Code::ResourceExhausted => Code::ResourceExhausted,
            tonic::Code::PermissionDenied => Code::PermissionDenied,
            tonic::Code::Unauthenticated => Code::Unauthenticated,
            tonic::Code::Unimplemented => Code::Unimplemented,
            tonic::Code::Unavailable => Code::Unavailable,
            tonic::Code::DeadlineExceeded => Code::DeadlineExceeded,
            tonic::Code::Cancelled => Code::Cancelled,
            tonic::Code::Ok
            | tonic::Code::Unknown
            | tonic::Code::Internal
            | tonic::Code::DataLoss => Code::Internal,
        }
    }

    /// Whether the same call may work a moment later.
    pub fn is_transient(self) -> bool {
        matches!(self, Code::Unavailable | Code::DeadlineExceeded)
    }
}

/// A field of the request that is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field, e.g. `config.limits.cpu`.
    pub field: String,
    /// A sentence.
    pub description: String,
}

/// An error as it crosses a service's edge.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What kind of error it is.
    pub code: Code,
    /// Stable, UPPER_SNAKE; clients branch on it.
    pub reason: String,
    /// A sentence that names the resource; users see it.
    pub message: String,
    /// The fields at fault, for `InvalidArgument`.
    pub fields: Vec<FieldViolation>,
    /// Who holds the thing, for `HELD`.
    pub holders: Vec<String>,
    /// What caused it; logged at the edge, never sent.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Any code, reason and sentence.
    pub fn new(code: Code, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            message: message.into(),
            fields: Vec::new(),
            holders: Vec::new(),
            source: None,
        }
    }

    /// A field of the request is wrong.
    pub fn invalid(field: impl Into<String>, sentence: impl Into<String>) -> Self {
        let description = sentence.into();
        let mut error = Self::new(
            Code::InvalidArgument,
            "INVALID_ARGUMENT",
            description.clone(),
        );
        error.fields.push(FieldViolation {
            field: field.into(),
            description,
        });
        error
    }

    /// `kind` is a noun with a capital, e.g. `Instance`; `name` what was asked for.
    pub fn not_found(kind: &str, name: impl std::fmt::Display) -> Self {
        Self::new(
            Code::NotFound,
            "NOT_FOUND",
            format!("{kind} {name:?} not found", name = name.to_string()),
        )
    }

    /// The name is taken.
    pub fn already_exists(kind: &str, name: impl std::fmt::Display) -> Self {
        Self::new(
            Code::AlreadyExists,
            "ALREADY_EXISTS",
            format!("{kind} {name:?} already exists", name = name.to_string()),
        )
    }

    /// The system is in the wrong state for it.
    pub fn precondition(reason: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, reason, sentence)
    }

    /// The thing is in use by `holders`.
    pub fn held(name: impl std::fmt::Display, holders: Vec<String>) -> Self {
        let mut error = Self::new(
            Code::FailedPrecondition,
            "HELD",
            format!("{name} is in use by {}", holders.join(", ")),
        );
        error.holders = holders;
        error
    }

    /// The resource changed since the caller read it.
    pub fn etag_mismatch(name: impl std::fmt::Display) -> Self {
        Self::new(
            Code::Aborted,
            "ETAG_MISMATCH",
            format!("{name} was changed meanwhile"),
        )
    }

    /// It lost against a concurrent change.
    pub fn aborted(reason: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self::new(Code::Aborted, reason, sentence)
    }

    /// No room left.
    pub fn exhausted(reason: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self::new(Code::ResourceExhausted, reason, sentence)
    }

    /// This server doesn't do that; `what` is a whole sentence naming it.
    pub fn unimplemented(what: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, "UNIMPLEMENTED", what)
    }

    /// Something needed is away.
    pub fn unavailable(sentence: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, "UNAVAILABLE", sentence)
    }

    /// A fault of ours. The cause is logged, not sent.
    pub fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let mut error = Self::new(Code::Internal, "INTERNAL", "internal error");
        error.source = Some(source.into());
        error
    }

    /// A fault of ours with a sentence that may be shown.
    pub fn internal_with(
        sentence: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let mut error = Self::new(Code::Internal, "INTERNAL", sentence);
        error.source = Some(source.into());
        error
    }

    /// Adds what was being done, in front of the sentence.
    #[must_use]
    pub fn context(mut self, doing: impl std::fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// Whether the same call may work a moment later.
    pub fn is_transient(&self) -> bool {
        self.code.is_transient()
    }

    fn chain(&self) -> String {
        let mut text = String::new();
        let mut next: Option<&(dyn std::error::Error + 'static)> = self
            .source
            .as_deref()
            .map(|s| s as &(dyn std::error::Error + 'static));
        while let Some(error) = next {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }
}

impl From<Error> for Status {
    /// The service's edge: faults of ours are logged here, once, with their causes.
    fn from(error: Error) -> Self {
        if error.code == Code::Internal {
            tracing::error!(reason = %error.reason, cause = %error.chain(), "{}", error.message);
        }
        let mut details = ErrorDetails::new();
        details.set_error_info(error.reason, DOMAIN, std::collections::HashMap::new());
        for violation in error.fields {
            details.add_bad_request_violation(violation.field, violation.description);
        }
        for holder in error.holders {
            details.add_precondition_failure_violation("HELD", holder, "");
        }
        Status::with_error_details(error.code.to_tonic(), error.message, details)
    }
}

/// A connection that breaks under a call comes as UNKNOWN, INTERNAL or CANCELLED of tonic's own
/// making, with hyper's or h2's error as its source. Services of Berth send such codes with details.
fn is_broken_connection(status: &Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::Unknown | tonic::Code::Internal | tonic::Code::Cancelled
    ) && std::error::Error::source(status).is_some()
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let code = if details.error_info().is_none() && is_broken_connection(&status) {
            Code::Unavailable
        } else {
            Code::from_tonic(status.code())
        };
        let reason = details.error_info().map_or_else(
            || {
                if code == Code::Unavailable {
                    "UNAVAILABLE"
                } else {
                    "UNKNOWN"
                }
                .to_owned()
            },
            |info| info.reason.clone(),
        );
        let fields = details
            .bad_request()
            .map(|b| {
                b.field_violations
                    .iter()
                    .map(|v| FieldViolation {
                        field: v.field.clone(),
                        description: v.description.clone(),
                    })
                    .collect()
            })
            .unwrap_or_default();
        let holders = details
            .precondition_failure()
            .map(|p| p.violations.iter().map(|v| v.subject.clone()).collect())
            .unwrap_or_default();
        let message = status.message().to_owned();
        let source = (code == Code::Unavailable)
            .then(|| Box::new(status) as Box<dyn std::error::Error + Send + Sync>);
        Self {
            code,
            reason,
            message,
            fields,
            holders,
            source,
        }
    }
}

impl From<tonic::transport::Error> for Error {
    fn from(error: tonic::transport::Error) -> Self {
        let mut e = Self::unavailable("the service cannot be reached");
        e.source = Some(Box::new(error));
        e
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Code; 13] = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::AlreadyExists,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::ResourceExhausted,
        Code::PermissionDenied,
        Code::Unauthenticated,
        Code::Unimplemented,
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::Internal,
    ];

    #[test]
    fn codes_survive_the_wire() {
        for code in ALL {
            assert_eq!(Code::from_tonic(code.to_tonic()), code);
        }
    }

    #[test]
    fn an_error_survives_the_wire_without_its_cause() {
        let mut error = Error::invalid("config.limits.cpu", "not a number");
        error.holders = vec!["projects/default/instances/c1".into()];
        error.source = Some("secret path".into());
        let back = Error::from(Status::from(error));
        assert_eq!(back.code, Code::InvalidArgument);
        assert_eq!(back.reason, "INVALID_ARGUMENT");
        assert_eq!(back.fields[0].field, "config.limits.cpu");
        assert_eq!(back.holders, ["projects/default/instances/c1"]);
        assert!(back.source.is_none());
        assert!(!back.message.contains("secret"));
    }
}
