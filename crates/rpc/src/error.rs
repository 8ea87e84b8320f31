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
            match holders.get(..HOLDERS_NAMED) {
                Some(first) if holders.len() > HOLDERS_NAMED => format!(
                    "{name} is in use by {} and {} more",
                    first.join(", "),
                    holders.len() - HOLDERS_NAMED
                ),
                _ => format!("{name} is in use by {}", holders.join(", ")),
            },
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

/// An error travels in headers, of which HTTP/2 peers take 16 KiB in all: one that is longer (it quotes
/// what a client sent, or a thing has very many users) would break the connection instead of the call.
const MESSAGE_MAX: usize = 1024;
const DETAILS_MAX: usize = 2048;
/// Users that a sentence names; the others are counted.
const HOLDERS_NAMED: usize = 20;

/// At most `max` bytes, and whole characters.
fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let end = (0..=max).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
    text
}

impl From<Error> for Status {
    /// The service's edge: faults of ours are logged here, once, with their causes.
    fn from(error: Error) -> Self {
        if error.code == Code::Internal {
            tracing::error!(reason = %error.reason, cause = %error.chain(), "{}", error.message);
        }
        let mut details = ErrorDetails::new();
        details.set_error_info(error.reason, DOMAIN, std::collections::HashMap::new());
        let mut room = DETAILS_MAX;
        for violation in error.fields {
            let size = violation.field.len() + violation.description.len();
            // What does not fit whole is cut: one that is told half helps more than none.
            let description = cut(violation.description, room);
            details.add_bad_request_violation(cut(violation.field, room), description);
            room = room.saturating_sub(size);
            if room == 0 {
                break;
            }
        }
        let mut room = DETAILS_MAX;
        for holder in error.holders {
            if holder.len() > room {
                break;
            }
            room -= holder.len();
            details.add_precondition_failure_violation("HELD", holder, "");
        }
        let message = cut(error.message, MESSAGE_MAX);
        Status::with_error_details(error.code.to_tonic(), message, details)
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

    #[test]
    fn an_error_fits_into_headers() {
        let long = "ä".repeat(40_000);
        let errors = [
            Error::not_found("Instance", &long),
            Error::invalid(long.clone(), long.clone()),
            Error::held(&long, vec![long.clone(), "a".into()]),
            Error::held(
                "Network",
                (0..5000).map(|n| format!("instances/c{n}")).collect(),
            ),
        ];
        for error in errors {
            let status = Status::from(error);
            let mut headers = http::HeaderMap::new();
            status.add_header(&mut headers).unwrap();
            let size: usize = headers
                .iter()
                .map(|(k, v)| k.as_str().len() + v.len() + 32)
                .sum();
            assert!(size < 16 << 10, "{size}");
            assert_ne!(Error::from(status).reason, "UNKNOWN");
        }
        let held = Error::held("Network", (0..25).map(|n| format!("c{n}")).collect());
        assert!(held.message.ends_with("c19 and 5 more"), "{}", held.message);
    }

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
