//! For tests only: temporary databases and in-memory channels.
//!
//! Services are tested through their real router over [`serve_in_memory`], with a database from
//! [`databases`]: SQLite always, PostgreSQL where `BERTH_TEST_POSTGRES` names a server.

use anyhow::Context;
use berth_store::{DatabaseConfig, Durability, Migration, Store, args};
use hyper_util::rt::TokioIo;
use tonic::service::Routes;
use tonic::transport::{Endpoint, Uri};

/// A database that goes away with the value.
#[derive(Debug)]
pub struct TestDatabase {
    /// What to open.
    pub config: DatabaseConfig,
    dir: tempfile::TempDir,
    schema: Option<(String, String)>,
}

impl TestDatabase {
    /// A SQLite file in a temporary directory.
    pub fn sqlite() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self {
            config: DatabaseConfig::file(dir.path().join("state.db")),
            dir,
            schema: None,
        }
    }

    /// A schema of its own on the server that `BERTH_TEST_POSTGRES` names, if it names one.
    pub async fn postgres() -> anyhow::Result<Option<Self>> {
        let Ok(url) = std::env::var("BERTH_TEST_POSTGRES") else {
            println!("PostgreSQL skipped: BERTH_TEST_POSTGRES is not set");
            return Ok(None);
        };
        let schema = format!("t{:016x}", unique());
        admin(&url, &format!("CREATE SCHEMA {schema}")).await?;
        let separator = if url.contains('?') { '&' } else { '?' };
        Ok(Some(Self {
            config: DatabaseConfig {
                url: format!("{url}{separator}options=-csearch_path%3D{schema}"),
                durability: Durability::Full,
            },
            dir: tempfile::tempdir()?,
            schema: Some((url, schema)),
        }))
    }

    /// A directory that lives as long as the database.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Opens it.
    pub async fn open(&self, migrations: &[Migration]) -> anyhow::Result<Store> {
        Store::open(&self.config, migrations)
            .await
            .context("the test's database")
    }

    /// Removes what the test left on the PostgreSQL server.
    pub async fn remove(self) -> anyhow::Result<()> {
        match &self.schema {
            Some((url, schema)) => admin(url, &format!("DROP SCHEMA {schema} CASCADE")).await,
            None => Ok(()),
        }
    }
}

/// Every kind of database that can be had here.
pub async fn databases() -> anyhow::Result<Vec<TestDatabase>> {
    let mut all = vec![TestDatabase::sqlite()];
    all.extend(TestDatabase::postgres().await?);
    Ok(all)
}

async fn admin(url: &str, sql: &str) -> anyhow::Result<()> {
    let config = DatabaseConfig {
        url: url.to_owned(),
        durability: Durability::Full,
    };
    let store = Store::open(&config, &[]).await?;
    let mut tx = store.begin().await?;
    tx.execute(sql, args![]).await?;
    tx.commit().await?;
    store.close().await;
    Ok(())
}

fn unique() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

/// Serves routes over an in-memory pipe and gives a channel to them.
pub async fn serve_in_memory(routes: Routes) -> berth_rpc::Channel {
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<_>>(8);
    tokio::spawn(
        tonic::transport::Server::builder()
            .layer(berth_rpc::call::ServerLayer)
            .add_routes(routes)
            .serve_with_incoming(tokio_stream::wrappers::ReceiverStream::new(receiver)),
    );
    let channel = Endpoint::from_static("http://in.memory").connect_with_connector_lazy(
        tower::service_fn(move |_: Uri| {
            let sender = sender.clone();
            async move {
                let (client, server) = tokio::io::duplex(1 << 20);
                sender
                    .send(Ok(server))
                    .await
                    .map_err(|_| std::io::Error::other("the server is gone"))?;
                Ok::<_, std::io::Error>(TokioIo::new(client))
            }
        }),
    );
    berth_rpc::Channel::new(channel)
}
