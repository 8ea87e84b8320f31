//! A service's database: SQLite in a file, or PostgreSQL, behind one type.
//!
//! Nobody else names sqlx. Services write one SQL for both: `$1` parameters, `RETURNING`,
//! `ON CONFLICT`, and the column types TEXT, BIGINT, BOOLEAN and BYTEA. Ids are made by us.
//!
//! * Writes go through [`Store::begin`], one at a time on SQLite (`BEGIN IMMEDIATE`). Await
//!   nothing but SQL between it and [`Tx::commit`].
//! * With [`Durability::Full`] a commit that was answered survives a power cut.
//! * Events ([`Tx::emit`]) and results of requests ([`Tx::finish_request`]) are rows of the same
//!   transaction as the change they tell of.
//! * A database file is used by one process at a time; a second one is refused.

mod error;
mod events;
mod migrate;
mod pools;
mod requests;
mod value;

pub use error::StoreError;
pub use events::{Event, EventRecord};
pub use migrate::Migration;
pub use pools::{Fetch, Reader, Store, Tx};
pub use value::{Arg, Row};

/// Whether a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// What was committed survives a power cut.
    #[default]
    Full,
    /// What was committed survives a crash of the process, not always one of the machine.
    Normal,
}

/// Which database to open.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// `sqlite:/path/to/file.db` or `postgres://user:password@host/database`.
    pub url: String,
    /// See [`Durability`].
    pub durability: Durability,
}

impl DatabaseConfig {
    /// A SQLite file in a service's state directory.
    pub fn file(path: impl AsRef<std::path::Path>) -> Self {
        Self {
            url: format!("sqlite:{}", path.as_ref().display()),
            durability: Durability::Full,
        }
    }

    /// The same with another durability.
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }
}

/// Arguments of a statement: `args![id, 5_i64, true]`.
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => {
        vec![$($crate::Arg::from($value)),*]
    };
}

/// Now, as the database and the API write it: RFC 3339, UTC, microseconds.
pub fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}
