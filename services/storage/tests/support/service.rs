//! The whole service in this process, over an in-memory channel.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_proto::storage::create_volume_request::Source;
use berth_proto::storage::pool_service_client::PoolServiceClient;
use berth_proto::storage::volume_service_client::VolumeServiceClient;
use berth_proto::storage::*;
use berth_proto::types;
use berth_rpc::Error;
use berth_storage::{App, Config, MIGRATIONS, Storage};
use berth_store::Store;
use berth_testkit::TestDatabase;

use super::{Archive, sha256};

pub struct Service {
    pub app: Option<Arc<App>>,
    pub pools: PoolServiceClient<berth_rpc::Channel>,
    pub volumes: VolumeServiceClient<berth_rpc::Channel>,
    pub config: Config,
    pub database: TestDatabase,
    pub dir: tempfile::TempDir,
}

async fn serve(
    app: Arc<App>,
) -> (
    PoolServiceClient<berth_rpc::Channel>,
    VolumeServiceClient<berth_rpc::Channel>,
) {
    let storage = Storage::new(app);
    let mut routes = tonic::service::Routes::builder();
    routes.add_service(storage.pool_service());
    routes.add_service(storage.volume_service());
    let channel = berth_testkit::serve_in_memory(routes.routes()).await;
    (
        PoolServiceClient::new(channel.clone()),
        VolumeServiceClient::new(channel),
    )
}

impl Service {
    pub async fn start(database: TestDatabase) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("blobs")).expect("a directory");
        let mut config = Config {
            blob_roots: vec![dir.path().join("blobs")],
            ..Config::default()
        };
        config.server.state_dir = dir.path().join("state");
        let store = Store::open(&database.config, MIGRATIONS)
            .await
            .expect("a store");
        let app = App::start(store, &config).await.expect("a service");
        let (pools, volumes) = serve(app.clone()).await;
        Self {
            app: Some(app),
            pools,
            volumes,
            config,
            database,
            dir,
        }
    }

    /// As after a crash: the same database and disks, a new process's memory.
    pub async fn restart(&mut self) {
        let app = self.app.take().expect("running");
        app.store.close().await;
        drop(app);
        // The old server lives as long as its clients.
        let nobody = berth_testkit::serve_in_memory(tonic::service::Routes::default()).await;
        self.pools = PoolServiceClient::new(nobody.clone());
        self.volumes = VolumeServiceClient::new(nobody);
        let store = self.reopened_store().await;
        let app = App::start(store, &self.config).await.expect("a service");
        let (pools, volumes) = serve(app.clone()).await;
        (self.app, self.pools, self.volumes) = (Some(app), pools, volumes);
    }

    /// The old service's last tasks may hold the database a moment longer.
    pub async fn reopened_store(&self) -> Store {
        for _ in 0..200 {
            match Store::open(&self.database.config, MIGRATIONS).await {
                Ok(store) => return store,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
        panic!("the database stays locked");
    }

    pub async fn pool(
        &mut self,
        name: &str,
        driver: &str,
        config: &[(&str, &str)],
    ) -> Result<Pool, Error> {
        let request = CreatePoolRequest {
            pool_id: name.into(),
            pool: Some(Pool {
                driver: driver.into(),
                config: map(config),
                ..Pool::default()
            }),
            ..CreatePoolRequest::default()
        };
        Ok(self.pools.create_pool(request).await?.into_inner())
    }

    pub async fn volume(
        &mut self,
        collection: &str,
        name: &str,
        source: Option<Source>,
    ) -> Result<Volume, Error> {
        self.volume_with(collection, name, source, &[], "").await
    }

    pub async fn volume_with(
        &mut self,
        collection: &str,
        name: &str,
        source: Option<Source>,
        config: &[(&str, &str)],
        request_id: &str,
    ) -> Result<Volume, Error> {
        let request = CreateVolumeRequest {
            parent: PARENT.into(),
            collection: collection.into(),
            volume_id: name.into(),
            volume: Some(Volume {
                config: map(config),
                ..Volume::default()
            }),
            source,
            request_id: request_id.into(),
            ..CreateVolumeRequest::default()
        };
        Ok(self.volumes.create_volume(request).await?.into_inner())
    }

    pub async fn get(&mut self, name: &str) -> Result<Volume, Error> {
        Ok(self
            .volumes
            .get_volume(GetVolumeRequest { name: name.into() })
            .await?
            .into_inner())
    }

    pub async fn delete(&mut self, name: &str) -> Result<(), Error> {
        let request = DeleteVolumeRequest {
            name: name.into(),
            ..DeleteVolumeRequest::default()
        };
        self.volumes.delete_volume(request).await?;
        Ok(())
    }

    pub async fn snapshot(&mut self, volume: &str, name: &str) -> Result<Snapshot, Error> {
        let request = CreateSnapshotRequest {
            parent: volume.into(),
            snapshot_id: name.into(),
            ..CreateSnapshotRequest::default()
        };
        Ok(self.volumes.create_snapshot(request).await?.into_inner())
    }

    pub fn image(&self, files: &[(&str, &[u8])]) -> ImageSource {
        let mut archive = Archive::image();
        for (path, data) in files {
            archive.file(path, data);
        }
        self.blob(&archive.end())
    }

    pub fn blob(&self, bytes: &[u8]) -> ImageSource {
        let digest = sha256(bytes);
        let path = self.dir.path().join("blobs").join(&digest);
        std::fs::write(&path, bytes).expect("a blob");
        ImageSource {
            fingerprint: digest.clone(),
            blobs: vec![types::BlobRef {
                uri: format!("file://{}", path.display()),
                digest: format!("sha256:{digest}"),
                size_bytes: bytes.len() as i64,
                media_type: "application/x-tar".into(),
                part: types::blob_ref::Part::Unified.into(),
            }],
        }
    }

    /// Sends an image's bytes in chunks to the pool `p1`.
    pub async fn import(
        &mut self,
        image: &ImageSource,
        bytes: &[u8],
        chunk: usize,
    ) -> Result<Volume, Error> {
        use import_image_request::{Header, Message};
        let header = Message::Header(Header {
            parent: PARENT.into(),
            image: Some(image.clone()),
            request_id: String::new(),
        });
        let data = bytes
            .chunks(chunk)
            .map(|c| Message::Data(c.to_vec().into()));
        let messages: Vec<_> = std::iter::once(header)
            .chain(data)
            .map(|message| ImportImageRequest {
                message: Some(message),
            })
            .collect();
        let stream = tokio_stream::iter(messages);
        Ok(self.volumes.import_image(stream).await?.into_inner())
    }

    /// Names in the pool's directory of volumes.
    pub fn on_disk(&self, pool: &Pool) -> Vec<String> {
        let top = Path::new(&pool.config["source"]);
        let mut names = Vec::new();
        for area in ["volumes", "snapshots"] {
            for entry in std::fs::read_dir(top.join(area)).expect("list") {
                names.push(
                    entry
                        .expect("entry")
                        .file_name()
                        .into_string()
                        .expect("UTF-8"),
                );
            }
        }
        names.sort();
        names
    }

    pub async fn finish(mut self) {
        let app = self.app.take().expect("running");
        app.store.close().await;
        self.database.remove().await.expect("the database goes");
    }
}

pub const PARENT: &str = "projects/default/storagePools/p1";

pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).into(), (*v).into()))
        .collect()
}

pub fn name(collection: &str, volume: &str) -> String {
    format!("{PARENT}/{collection}/{volume}")
}

pub fn path(attachment: &Option<types::Attachment>) -> PathBuf {
    let mount = &attachment.as_ref().expect("an attachment").mounts[0];
    match mount.source.as_ref().expect("a source") {
        types::attachment::mount::Source::HostPath(path) => PathBuf::from(path),
        other => panic!("not a path: {other:?}"),
    }
}

pub async fn services() -> Vec<Service> {
    let mut out = Vec::new();
    for database in berth_testkit::databases().await.expect("databases") {
        out.push(Service::start(database).await);
    }
    out
}
