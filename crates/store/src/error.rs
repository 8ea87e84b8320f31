/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A unique or primary key is taken.
    #[error("already exists")]
    Unique(#[source] sqlx::Error),
    /// A row that must be there is not.
    #[error("no such row")]
    NoRow,
    /// A column is missing or of another type.
    #[error("column {column}: expected {expected}")]
    Column {
        /// Name of the column.
        column: String,
        /// What was asked for.
        expected: &'static str,
    },
    /// Another process has the database open.
    #[error("{0} is in use by another process")]
    Locked(String),
    /// The database's migrations are not this release's.
    #[error("migration {version} ({name}) was changed after it had been applied")]
    MigrationChanged {
        /// Its number.
        version: i64,
        /// Its name.
        name: String,
    },
    /// The database url is of no known form.
    #[error("database {0:?}: expected sqlite:/path or postgres://...")]
    Url(String),
    /// The disk is full.
    #[error("no space left for the database")]
    Full(#[source] sqlx::Error),
    /// Anything else.
    #[error("database: {0}")]
    Sql(#[source] sqlx::Error),
    /// The file system refused.
    #[error("{path}")]
    Io {
        /// The file or directory.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if matches!(error, sqlx::Error::RowNotFound) {
            return Self::NoRow;
        }
        if let Some(db) = error.as_database_error() {
            if db.is_unique_violation() {
                return Self::Unique(error);
            }
            // SQLITE_FULL, and PostgreSQL's disk_full.
            if db.code().is_some_and(|c| c == "13" || c == "53100") {
                return Self::Full(error);
            }
        }
        Self::Sql(error)
    }
}
