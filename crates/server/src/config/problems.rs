//! What is wrong with a configuration, and where it is written.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nothing says otherwise.
    Default,
    /// A line of the file.
    File(PathBuf, usize),
    /// A variable of the environment.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => f.write_str(name),
        }
    }
}

/// Where each key of a configuration comes from; what is not in here is a default.
#[derive(Debug, Clone, Default)]
pub struct Origins(pub(super) BTreeMap<String, Origin>);

impl Origins {
    /// Of a key, `server.listen[1]` for an element; of what it is in, where it has none itself.
    pub fn of(&self, key: &str) -> Origin {
        let mut key = key;
        loop {
            if let Some(origin) = self.0.get(key) {
                return origin.clone();
            }
            match key.rfind(['.', '[']) {
                Some(end) => key = &key[..end],
                None => return Origin::Default,
            }
        }
    }

    /// Of a key itself.
    pub(super) fn exactly(&self, key: &str) -> Origin {
        self.0.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// Sets a key's, in place of those of what is below it.
    pub(super) fn set(&mut self, key: &str, origin: Origin) {
        let below = |other: &str| {
            other
                .strip_prefix(key)
                .is_some_and(|rest| rest.starts_with(['.', '[']))
        };
        self.0.retain(|other, _| !below(other));
        self.0.insert(key.to_owned(), origin);
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it is written.
    pub origin: Origin,
    /// The key, `server.listen[1]`; empty where the text as a whole is meant.
    pub key: String,
    /// A sentence.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// What is found wrong with the values of a configuration, by key.
#[derive(Debug, Default)]
pub struct Findings(pub(super) Vec<(String, String)>);

impl Findings {
    /// `key` as it is written in the file, `server.listen[1]` for an element.
    pub fn add(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.0.push((key.into(), message.into()));
    }

    /// The keys that something is wrong with.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }

    /// Adds what `check` says is wrong.
    pub fn check<T>(&mut self, key: &str, check: Result<T, impl fmt::Display>) {
        if let Err(message) = check {
            self.add(key, message.to_string());
        }
    }

    /// Adds `message` unless it holds.
    pub fn ensure(&mut self, key: &str, holds: bool, message: &str) {
        if !holds {
            self.add(key, message);
        }
    }

    /// Requires an absolute path.
    pub fn absolute(&mut self, key: &str, path: &Path) {
        if !path.is_absolute() {
            self.add(
                key,
                format!("{:?} is not an absolute path", path.display().to_string()),
            );
        }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// All that is wrong with it, by place.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Wrong(Vec<Problem>),
    /// A value is wrong.
    #[error("{0}")]
    Value(String),
}
