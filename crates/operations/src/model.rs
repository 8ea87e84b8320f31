use std::collections::BTreeMap;

use berth_rpc::{Code, Error};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What kind of operation it is, in LXD's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// It works by itself.
    Task,
    /// Clients connect websockets to it.
    Websocket,
    /// It stands for a secret.
    Token,
}

/// Where it is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Made, not begun.
    Pending,
    /// Going forward.
    Running,
    /// Undoing what it did.
    Unwinding,
    /// Done.
    Succeeded,
    /// Undone after a failure.
    Failed,
    /// Undone because somebody asked.
    Cancelled,
}

impl State {
    /// Nothing will change any more.
    pub fn is_final(self) -> bool {
        matches!(self, State::Succeeded | State::Failed | State::Cancelled)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Running => "running",
            State::Unwinding => "unwinding",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        }
    }

    pub(crate) fn from_str(text: &str) -> Option<Self> {
        [
            State::Pending,
            State::Running,
            State::Unwinding,
            State::Succeeded,
            State::Failed,
            State::Cancelled,
        ]
        .into_iter()
        .find(|s| s.as_str() == text)
    }
}

/// Why an operation failed, as it is stored and shown.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Failure {
    /// gRPC code.
    pub code: i32,
    /// Stable reason.
    pub reason: String,
    /// Sentence for users.
    pub message: String,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            code: error.code.to_tonic() as i32,
            reason: error.reason.clone(),
            message: error.message.clone(),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Error::new(
            Code::from_tonic(tonic::Code::from_i32(failure.code)),
            failure.reason,
            failure.message,
        )
    }
}

/// What is said of an operation when it is made.
#[derive(Debug, Clone)]
pub struct New {
    /// See [`Class`].
    pub class: Class,
    /// What it does, e.g. `create_instance`.
    pub verb: String,
    /// A sentence for users, e.g. `Creating instance`.
    pub description: String,
    /// Project it belongs to.
    pub project: String,
    /// What it works on, by kind.
    pub resources: BTreeMap<String, Vec<String>>,
    /// What clients see of it.
    pub metadata: Map<String, Value>,
    /// Whether [`Operations::cancel`](crate::Operations::cancel) is allowed.
    pub may_cancel: bool,
    /// With an id, a second start of the same request gives the first's operation.
    pub request_id: String,
}

impl New {
    /// A task of the default project without resources or metadata.
    pub fn task(verb: impl Into<String>, description: impl Into<String>) -> Self {
        Self {
            class: Class::Task,
            verb: verb.into(),
            description: description.into(),
            project: berth_rpc::names::DEFAULT_PROJECT.to_owned(),
            resources: BTreeMap::new(),
            metadata: Map::new(),
            may_cancel: false,
            request_id: String::new(),
        }
    }

    /// Adds a resource.
    #[must_use]
    pub fn resource(mut self, kind: impl Into<String>, name: impl Into<String>) -> Self {
        self.resources
            .entry(kind.into())
            .or_default()
            .push(name.into());
        self
    }

    /// Allows cancelling.
    #[must_use]
    pub fn cancellable(mut self) -> Self {
        self.may_cancel = true;
        self
    }
}

/// An operation as it stands.
#[derive(Debug, Clone)]
pub struct Record {
    /// UUID.
    pub id: String,
    /// See [`Class`].
    pub class: Class,
    /// What it does.
    pub verb: String,
    /// A sentence.
    pub description: String,
    /// Project.
    pub project: String,
    /// See [`State`].
    pub state: State,
    /// The stage's steps under way, joined by `+`.
    pub step: String,
    /// What it works on.
    pub resources: BTreeMap<String, Vec<String>>,
    /// What clients see of it.
    pub metadata: Map<String, Value>,
    /// Whether it can be cancelled now.
    pub may_cancel: bool,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// W3C context of the request that began it.
    pub traceparent: String,
}
