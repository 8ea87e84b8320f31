use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgPoolOptions, Postgres};
use sqlx::sqlite::{
    Sqlite, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool, Transaction};
use tokio::sync::watch;

use crate::value::{from_postgres, from_sqlite};
use crate::{Arg, DatabaseConfig, Durability, Migration, Row, StoreError, migrate};

const READERS: u32 = 4;

enum Pools {
    Sqlite { write: SqlitePool, read: SqlitePool },
    Postgres(PgPool),
}

struct Shared {
    pools: Pools,
    epoch: String,
    last_event: watch::Sender<i64>,
    // Held as long as the database is open.
    _lock: Option<OwnedFd>,
}

/// A service's database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.shared.pools {
            Pools::Sqlite { .. } => "Store(sqlite)",
            Pools::Postgres(_) => "Store(postgres)",
        })
    }
}

/// Binds arguments to a query of either database.
macro_rules! bind {
    ($sql:expr, $args:expr) => {{
        let mut query = sqlx::query(AssertSqlSafe($sql.to_owned()));
        for arg in $args {
            query = match arg {
                Arg::Text(v) => query.bind(v),
                Arg::I64(v) => query.bind(v),
                Arg::Bool(v) => query.bind(v),
                Arg::Bytes(v) => query.bind(v),
            };
        }
        query
    }};
}

/// What reads rows: a transaction, or a reader outside of one.
pub trait Fetch: Send {
    /// All rows of the answer.
    fn fetch_all(
        &mut self,
        sql: &str,
        args: Vec<Arg>,
    ) -> impl Future<Output = Result<Vec<Row>, StoreError>> + Send;

    /// The first row, if there is one.
    fn fetch_optional(
        &mut self,
        sql: &str,
        args: Vec<Arg>,
    ) -> impl Future<Output = Result<Option<Row>, StoreError>> + Send {
        async move { Ok(self.fetch_all(sql, args).await?.into_iter().next()) }
    }

    /// The first row; [`StoreError::NoRow`] without one.
    fn fetch_one(
        &mut self,
        sql: &str,
        args: Vec<Arg>,
    ) -> impl Future<Output = Result<Row, StoreError>> + Send {
        async move {
            self.fetch_optional(sql, args)
                .await?
                .ok_or(StoreError::NoRow)
        }
    }
}

/// Reads outside a transaction, each on its own.
#[derive(Debug)]
pub struct Reader<'a> {
    store: &'a Store,
}

impl Fetch for Reader<'_> {
    async fn fetch_all(&mut self, sql: &str, args: Vec<Arg>) -> Result<Vec<Row>, StoreError> {
        match &self.store.shared.pools {
            Pools::Sqlite { read, .. } => from_sqlite(bind!(sql, args).fetch_all(read).await?),
            Pools::Postgres(pool) => from_postgres(bind!(sql, args).fetch_all(pool).await?),
        }
    }
}

enum Inner {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// A write transaction. Dropped without [`Tx::commit`] it changes nothing.
pub struct Tx {
    inner: Inner,
    store: Store,
    pub(crate) last_event: Option<i64>,
}

impl std::fmt::Debug for Tx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tx")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Fetch for Tx {
    async fn fetch_all(&mut self, sql: &str, args: Vec<Arg>) -> Result<Vec<Row>, StoreError> {
        match &mut self.inner {
            Inner::Sqlite(tx) => from_sqlite(bind!(sql, args).fetch_all(&mut **tx).await?),
            Inner::Postgres(tx) => from_postgres(bind!(sql, args).fetch_all(&mut **tx).await?),
        }
    }
}

impl Tx {
    /// Runs a statement; gives the number of rows it touched.
    pub async fn execute(&mut self, sql: &str, args: Vec<Arg>) -> Result<u64, StoreError> {
        Ok(match &mut self.inner {
            Inner::Sqlite(tx) => bind!(sql, args).execute(&mut **tx).await?.rows_affected(),
            Inner::Postgres(tx) => bind!(sql, args).execute(&mut **tx).await?.rows_affected(),
        })
    }

    /// Several statements without arguments, separated by `;`.
    pub(crate) async fn execute_batch(&mut self, sql: &str) -> Result<(), StoreError> {
        match &mut self.inner {
            Inner::Sqlite(tx) => {
                sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
                    .execute(&mut **tx)
                    .await?;
            }
            Inner::Postgres(tx) => {
                sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
                    .execute(&mut **tx)
                    .await?;
            }
        }
        Ok(())
    }

    /// Makes everything since [`Store::begin`] happen.
    pub async fn commit(self) -> Result<(), StoreError> {
        match self.inner {
            Inner::Sqlite(tx) => tx.commit().await?,
            Inner::Postgres(tx) => tx.commit().await?,
        }
        if let Some(sequence) = self.last_event {
            self.store
                .shared
                .last_event
                .send_modify(|last| *last = (*last).max(sequence));
        }
        Ok(())
    }
}

impl Store {
    /// Opens the database, applies what migrations it lacks, and locks it for this process.
    pub async fn open(
        config: &DatabaseConfig,
        migrations: &[Migration],
    ) -> Result<Self, StoreError> {
        let (pools, lock) = if let Some(path) = config.url.strip_prefix("sqlite:") {
            open_sqlite(Path::new(path.strip_prefix("//").unwrap_or(path)), config).await?
        } else if config.url.starts_with("postgres://") || config.url.starts_with("postgresql://") {
            let pool = PgPoolOptions::new()
                .max_connections(8)
                .acquire_timeout(Duration::from_secs(10))
                .connect(&config.url)
                .await?;
            (Pools::Postgres(pool), None)
        } else {
            return Err(StoreError::Url(config.url.clone()));
        };
        let mut store = Self {
            shared: Arc::new(Shared {
                pools,
                epoch: String::new(),
                last_event: watch::Sender::new(0),
                _lock: lock,
            }),
        };
        let (epoch, last) = migrate::run(&store, migrations).await?;
        if let Some(shared) = Arc::get_mut(&mut store.shared) {
            shared.epoch = epoch;
            shared.last_event = watch::Sender::new(last);
        }
        Ok(store)
    }

    /// True for PostgreSQL.
    pub fn is_postgres(&self) -> bool {
        matches!(self.shared.pools, Pools::Postgres(_))
    }

    /// Begins a write. On SQLite it waits for the write before it.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        let inner = match &self.shared.pools {
            Pools::Sqlite { write, .. } => {
                Inner::Sqlite(write.begin_with("BEGIN IMMEDIATE").await?)
            }
            Pools::Postgres(pool) => Inner::Postgres(pool.begin().await?),
        };
        Ok(Tx {
            inner,
            store: self.clone(),
            last_event: None,
        })
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.read()
            .fetch_optional("SELECT 1 AS one", crate::args![])
            .await
            .map(|_| ())
    }

    /// A transaction of one statement, in one step; gives the number of rows it touched.
    pub async fn execute(&self, sql: &str, args: Vec<Arg>) -> Result<u64, StoreError> {
        Ok(match &self.shared.pools {
            Pools::Sqlite { write, .. } => bind!(sql, args).execute(write).await?.rows_affected(),
            Pools::Postgres(pool) => bind!(sql, args).execute(pool).await?.rows_affected(),
        })
    }

    /// Reads outside a transaction.
    pub fn read(&self) -> Reader<'_> {
        Reader { store: self }
    }

    /// Changes when the database is made anew; event sequences of different epochs don't compare.
    pub fn epoch(&self) -> &str {
        &self.shared.epoch
    }

    /// The sequence of the newest committed event, and its changes.
    pub fn watch_events(&self) -> watch::Receiver<i64> {
        self.shared.last_event.subscribe()
    }

    /// Waits for what is under way and closes the database.
    pub async fn close(&self) {
        match &self.shared.pools {
            Pools::Sqlite { write, read } => {
                read.close().await;
                write.close().await;
            }
            Pools::Postgres(pool) => pool.close().await,
        }
    }
}

async fn open_sqlite(
    path: &Path,
    config: &DatabaseConfig,
) -> Result<(Pools, Option<OwnedFd>), StoreError> {
    let lock = lock(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(match config.durability {
            Durability::Full => SqliteSynchronous::Full,
            Durability::Normal => SqliteSynchronous::Normal,
        })
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(30))
        .statement_cache_capacity(256)
        // Statistics are of no use to these small tables, and writing them at close is a write.
        .optimize_on_close(false, None);
    let pool = |size| {
        SqlitePoolOptions::new()
            .max_connections(size)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(Duration::from_secs(30))
            .test_before_acquire(false)
    };
    let write = pool(1)
        .min_connections(1)
        .connect_with(options.clone())
        .await?;
    let read = pool(READERS).connect_with(options.read_only(true)).await?;
    Ok((Pools::Sqlite { write, read }, Some(lock)))
}

fn lock(path: &Path) -> Result<OwnedFd, StoreError> {
    let io = |source: std::io::Error| StoreError::Io {
        path: path.display().to_string(),
        source,
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(io)?;
    }
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.with_extension("lock"))
        .map_err(io)?;
    let fd = OwnedFd::from(file);
    rustix::fs::flock(&fd, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| StoreError::Locked(path.display().to_string()))?;
    Ok(fd)
}
