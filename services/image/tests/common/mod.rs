//! Images made on the spot, and the service over an in-memory channel.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses a part"
)]

use berth_image::{App, Config, ImageApi, MIGRATIONS};
use berth_proto::image::image_service_client::ImageServiceClient;
use berth_proto::image::{Image, ImportImageRequest, import_image_request as import};
use berth_proto::types::blob_ref::Part;
use berth_testkit::TestDatabase;
use bytes::Bytes;
use std::collections::HashMap;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::Status;

pub type Client = ImageServiceClient<berth_rpc::Channel>;
pub const PARENT: &str = "projects/default";

/// A running service.
pub struct Service {
    pub app: Arc<App>,
    pub client: Client,
    pub state_dir: PathBuf,
    pub database: TestDatabase,
}

impl Service {
    pub async fn start(database: TestDatabase) -> anyhow::Result<Self> {
        Self::start_with(database, |_| {}).await
    }

    pub async fn start_with(
        database: TestDatabase,
        change: impl FnOnce(&mut Config),
    ) -> anyhow::Result<Self> {
        let state_dir = database.dir().join("state");
        let mut config = Config::default();
        config.server.state_dir.clone_from(&state_dir);
        change(&mut config);
        let store = open(&database).await?;
        let app = App::open(&config, store).await?;
        let api = ImageApi::new(app.clone()).into_server();
        let routes = tonic::service::Routes::new(api);
        let channel = berth_testkit::serve_in_memory(routes).await;
        Ok(Self {
            app,
            client: ImageServiceClient::new(channel),
            state_dir,
            database,
        })
    }

    /// Ends it, as SIGTERM would, and gives the database to start it again.
    pub async fn stop(self) -> anyhow::Result<TestDatabase> {
        self.app.flush_uses().await?;
        self.app.store().close().await;
        Ok(self.database)
    }

    pub async fn remove(self) -> anyhow::Result<()> {
        self.stop().await?.remove().await
    }

    /// Names in a directory of the store.
    pub fn files(&self, directory: &str) -> Vec<String> {
        files(&self.state_dir.join(directory))
    }

    pub async fn import(&self, upload: Upload) -> Result<Image, Status> {
        let stream = tokio_stream::iter(upload.messages());
        let answer = self.client.clone().import_image(stream).await?;
        Ok(answer.into_inner())
    }
}

/// The server of a service that was stopped ends a moment after its channel; until then it keeps
/// the database's lock.
async fn open(database: &TestDatabase) -> anyhow::Result<berth_store::Store> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match database.open(MIGRATIONS).await {
            Err(error)
                if error
                    .downcast_ref()
                    .is_some_and(|e| matches!(e, berth_store::StoreError::Locked(_)))
                    && std::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            other => return other,
        }
    }
}

pub fn files(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// An upload in the making.
#[derive(Clone, Default)]
pub struct Upload {
    pub header: import::Header,
    pub parts: Vec<(Part, Vec<u8>)>,
}

impl Upload {
    pub fn unified(bytes: Vec<u8>) -> Self {
        let mut this = Self::default();
        this.header.parent = PARENT.to_owned();
        this.parts.push((Part::Unified, bytes));
        this
    }

    pub fn split(metadata: Vec<u8>, rootfs: Vec<u8>) -> Self {
        let mut this = Self::default();
        this.header.parent = PARENT.to_owned();
        this.header.split = true;
        this.parts.push((Part::Metadata, metadata));
        this.parts.push((Part::Rootfs, rootfs));
        this
    }

    pub fn request_id(mut self, id: &str) -> Self {
        self.header.request_id = id.to_owned();
        self
    }

    pub fn alias(mut self, alias: &str) -> Self {
        self.header.aliases.push(berth_proto::image::Alias {
            alias: alias.to_owned(),
            ..Default::default()
        });
        self
    }

    pub fn property(mut self, key: &str, value: &str) -> Self {
        self.header
            .properties
            .insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn messages(self) -> Vec<ImportImageRequest> {
        let mut out = vec![header(self.header)];
        for (part, bytes) in self.parts {
            out.extend(bytes.chunks(300_000).map(|data| chunk(part, data)));
        }
        out
    }
}

pub fn header(header: import::Header) -> ImportImageRequest {
    ImportImageRequest {
        message: Some(import::Message::Header(header)),
    }
}

pub fn chunk(part: Part, data: &[u8]) -> ImportImageRequest {
    ImportImageRequest {
        message: Some(import::Message::Chunk(import::Chunk {
            part: part.into(),
            data: Bytes::copy_from_slice(data),
        })),
    }
}

pub const METADATA: &str = "architecture: amd64\ncreation_date: 1424284563\nproperties:\n  os: Debian\n  release: bookworm\n  description: Debian 12\n";

/// An entry of a tar.
pub enum Entry<'a> {
    File(&'a str, &'a [u8]),
    Dir(&'a str),
    Symlink(&'a str, &'a str),
}

pub fn tar_of(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        match entry {
            Entry::File(name, data) => {
                header.set_size(data.len() as u64);
                builder.append_data(&mut header, name, *data).unwrap();
            }
            Entry::Dir(name) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                builder.append_data(&mut header, name, &[][..]).unwrap();
            }
            Entry::Symlink(name, to) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, name, to).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

/// A small image; `seed` makes its bytes its own.
pub fn image_tar(seed: &str) -> Vec<u8> {
    tar_of(&[
        Entry::Dir("rootfs"),
        Entry::File("rootfs/seed", seed.as_bytes()),
        Entry::File("rootfs/data", &noise(40_000)),
        Entry::Dir("templates"),
        Entry::File("./metadata.yaml", METADATA.as_bytes()),
    ])
}

pub fn metadata_tar(seed: &str) -> Vec<u8> {
    let yaml = format!("{METADATA}  serial: {seed}\n");
    tar_of(&[
        Entry::File("metadata.yaml", yaml.as_bytes()),
        Entry::Dir("templates"),
    ])
}

pub fn rootfs_tar(seed: &str) -> Vec<u8> {
    tar_of(&[Entry::Dir("bin"), Entry::File("bin/sh", seed.as_bytes())])
}

/// Bytes that don't compress, the same every time.
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut out = liblzma::write::XzEncoder::new(Vec::new(), 1);
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

pub fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub fn squashfs(metadata: &[u8], rootfs_img: bool) -> Vec<u8> {
    let mut writer = backhand::FilesystemWriter::default();
    let header = backhand::NodeHeader::default();
    writer
        .push_file(Cursor::new(metadata.to_vec()), "metadata.yaml", header)
        .unwrap();
    if rootfs_img {
        let disk = Cursor::new(noise(1000));
        writer.push_file(disk, "rootfs.img", header).unwrap();
    } else {
        writer.push_dir("rootfs", header).unwrap();
        let file = Cursor::new(noise(9000));
        writer.push_file(file, "rootfs/data", header).unwrap();
    }
    let mut out = Cursor::new(Vec::new());
    writer.write(&mut out).unwrap();
    out.into_inner()
}

pub fn sha256(parts: &[&[u8]]) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

pub fn image_name(fingerprint: &str) -> String {
    format!("{PARENT}/images/{fingerprint}")
}

pub fn alias_name(alias: &str) -> String {
    format!(
        "{PARENT}/imageAliases/{}",
        berth_rpc::names::encode_segment(alias)
    )
}

/// Reason, and message, of a refusal.
pub fn reason(status: &Status) -> String {
    berth_rpc::Error::from(status.clone()).reason
}

pub fn field(status: &Status) -> String {
    let error = berth_rpc::Error::from(status.clone());
    error
        .fields
        .first()
        .map(|f| f.field.clone())
        .unwrap_or_default()
}

/// What an export gives: name and bytes of each part.
pub async fn export(client: &Client, name: &str) -> Result<Vec<(String, Vec<u8>)>, Status> {
    use berth_proto::image::{ExportImageRequest, export_image_response::Message};
    let request = ExportImageRequest {
        name: name.to_owned(),
    };
    let mut stream = client.clone().export_image(request).await?.into_inner();
    let mut out: Vec<(String, Vec<u8>)> = Vec::new();
    let mut sizes = HashMap::new();
    while let Some(message) = stream.message().await? {
        match message.message.expect("a message") {
            Message::Part(part) => {
                sizes.insert(part.filename.clone(), part.size_bytes);
                out.push((part.filename, Vec::new()));
            }
            Message::Data(data) => out.last_mut().expect("a part first").1.extend(data),
        }
    }
    for (name, bytes) in &out {
        assert_eq!(sizes[name], bytes.len() as i64);
    }
    Ok(out)
}
