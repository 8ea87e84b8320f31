//! The one error that leaves the monitor: where it happened, what the kernel said, a sentence.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a caller can do about a [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultCode {
    /// The kernel refused something; `errno` says what.
    Kernel,
    /// The request or spec is malformed.
    Invalid,
    /// Known, but not done by this version.
    Unsupported,
    /// No such exec, mount, nic, device.
    NotFound,
    /// It exists already.
    Exists,
    /// Not possible in the guest's present state (frozen, stopping, console taken).
    State,
    /// The guest did not do it in time.
    Timeout,
    /// The exec's command does not exist (exit 127).
    CommandNotFound,
    /// The exec's command cannot be executed (exit 126).
    CommandNotExecutable,
    /// Output at the wanted offset was acknowledged and is gone.
    OffsetGone,
}

/// A failure with the stage it happened in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Stable lower-case name of the step: `spec`, `rootfs`, `cgroup`, `network`, `exec`, ...
    pub stage: String,
    pub code: FaultCode,
    /// 0 when no system call failed.
    pub errno: i32,
    pub message: String,
}

/// Result of everything in this crate.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

impl Fault {
    pub fn new(stage: &str, code: FaultCode, message: impl Into<String>) -> Fault {
        Fault {
            stage: stage.to_owned(),
            code,
            errno: 0,
            message: message.into(),
        }
    }

    /// From a failed system call; `what` says what was tried.
    pub fn os(stage: &str, errno: i32, what: impl fmt::Display) -> Fault {
        let text = std::io::Error::from_raw_os_error(errno);
        Fault {
            stage: stage.to_owned(),
            code: FaultCode::Kernel,
            errno,
            message: format!("{what}: {text}"),
        }
    }

    pub fn io(stage: &str, error: &std::io::Error, what: impl fmt::Display) -> Fault {
        Fault {
            stage: stage.to_owned(),
            code: FaultCode::Kernel,
            errno: error.raw_os_error().unwrap_or(0),
            message: format!("{what}: {error}"),
        }
    }

    pub fn with_code(mut self, code: FaultCode) -> Fault {
        self.code = code;
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.stage, self.message)
    }
}

impl std::error::Error for Fault {}

/// Turns an errno-carrying result into a [`Fault`] of a stage.
pub trait AtStage<T> {
    fn at(self, stage: &str, what: impl fmt::Display) -> Result<T>;
}

impl<T> AtStage<T> for std::io::Result<T> {
    fn at(self, stage: &str, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Fault::io(stage, &e, what))
    }
}
