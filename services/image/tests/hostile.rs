//! Uploads that mean harm, or are broken: a clear refusal, and nothing stays behind.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use berth_proto::image::ListImagesRequest;
use berth_proto::types::blob_ref::Part;
use common::*;
use std::time::Duration;
use tonic::{Code, Status};

async fn service() -> Service {
    Service::start(berth_testkit::TestDatabase::sqlite())
        .await
        .unwrap()
}

/// Nothing half-made, and the service still works.
async fn assert_clean(service: &Service) {
    // A broken off upload is cleaned up by its own task, a moment later.
    for _ in 0..200 {
        if service.files("incoming").is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(service.files("incoming"), Vec::<String>::new());
    assert_eq!(service.files("blobs"), Vec::<String>::new());
    assert_eq!(service.files("set-aside"), Vec::<String>::new());
    let request = ListImagesRequest {
        parent: PARENT.into(),
        ..Default::default()
    };
    let images = service.client.clone().list_images(request).await.unwrap();
    assert!(images.into_inner().images.is_empty());
}

async fn refused(service: &Service, upload: Upload, code: Code, says: &str) {
    let error = service.import(upload).await.unwrap_err();
    assert_eq!(error.code(), code, "{says}: {error}");
    assert!(
        error.message().contains(says),
        "{says:?} not in {:?}",
        error.message()
    );
    assert_clean(service).await;
}

async fn send(service: &Service, messages: Vec<berth_proto::image::ImportImageRequest>) -> Status {
    let stream = tokio_stream::iter(messages);
    service
        .client
        .clone()
        .import_image(stream)
        .await
        .unwrap_err()
}

fn with_yaml(yaml: &[u8]) -> Vec<u8> {
    tar_of(&[Entry::Dir("rootfs"), Entry::File("metadata.yaml", yaml)])
}

#[tokio::test]
async fn broken_archives_are_refused() {
    let service = service().await;
    let bad = Code::InvalidArgument;
    let good = image_tar("x");
    let squash = squashfs(METADATA.as_bytes(), false);
    for compressed in [gzip(&good), xz(&good), zstd(&good), bzip2(&good)] {
        let cut = compressed[..compressed.len() / 2].to_vec();
        refused(&service, Upload::unified(cut), bad, "the archive").await;
    }
    // These two check each block as they go; the others only at their end.
    for compressed in [xz(&good), bzip2(&good)] {
        let mut damaged = compressed.clone();
        let middle = damaged.len() / 2;
        for byte in &mut damaged[middle..middle + 64] {
            *byte ^= 0x5a;
        }
        refused(&service, Upload::unified(damaged), bad, "the archive").await;
    }
    refused(
        &service,
        Upload::unified(good[..5000].to_vec()),
        bad,
        "ends too early",
    )
    .await;
    refused(
        &service,
        Upload::unified(squash[..90].to_vec()),
        bad,
        "squashfs",
    )
    .await;
    refused(
        &service,
        Upload::unified(squash[..squash.len() / 2].to_vec()),
        bad,
        "squashfs",
    )
    .await;
    refused(
        &service,
        Upload::unified(noise(100_000)),
        bad,
        "none of tar",
    )
    .await;
    refused(
        &service,
        Upload::unified(gzip(&noise(100_000))),
        bad,
        "not a tar",
    )
    .await;
    refused(
        &service,
        Upload::unified(b"{}".to_vec()),
        bad,
        "none of tar",
    )
    .await;
    let lzma = [&[0x5d, 0, 0, 0x80, 0][..], &noise(100)].concat();
    refused(&service, Upload::unified(lzma), Code::Unimplemented, "lzma").await;
    let mut lzo = squash.clone();
    lzo[20] = 3;
    refused(&service, Upload::unified(lzo), Code::Unimplemented, "lzo").await;
    let disk = [b"QFI\xfb".as_slice(), &noise(500)].concat();
    refused(&service, Upload::unified(disk.clone()), bad, "bare disk").await;
    let meta = metadata_tar("x");
    refused(
        &service,
        Upload::split(disk, rootfs_tar("x")),
        bad,
        "metadata part is a disk",
    )
    .await;
    refused(
        &service,
        Upload::split(meta.clone(), noise(900)),
        bad,
        "the rootfs part is none",
    )
    .await;
    refused(
        &service,
        Upload::split(rootfs_tar("x"), meta),
        bad,
        "no metadata.yaml",
    )
    .await;
}

#[tokio::test]
async fn archives_that_are_no_image_are_refused() {
    let service = service().await;
    let bad = Code::InvalidArgument;
    let yaml = METADATA.as_bytes();
    let file = |name| Entry::File(name, yaml);
    for (entries, says) in [
        (vec![Entry::Dir("rootfs")], "has no metadata.yaml"),
        (
            vec![file("metadata.yaml")],
            "neither rootfs/ nor rootfs.img",
        ),
        (
            vec![file("sub/metadata.yaml"), Entry::Dir("rootfs")],
            "has no metadata.yaml",
        ),
        (
            vec![
                Entry::Dir("rootfs"),
                Entry::Symlink("metadata.yaml", "/etc/shadow"),
            ],
            "not a regular file",
        ),
        (
            vec![Entry::Symlink("rootfs", "/"), file("metadata.yaml")],
            "rootfs in the image is not a directory",
        ),
        (
            vec![
                Entry::Symlink("templates", "/root"),
                file("metadata.yaml"),
                Entry::Dir("rootfs"),
            ],
            "templates",
        ),
        (
            vec![file("rootfs"), file("metadata.yaml")],
            "rootfs in the image is not a directory",
        ),
        (
            vec![Entry::Dir("rootfs.img"), file("metadata.yaml")],
            "rootfs.img in the image is not a regular file",
        ),
    ] {
        refused(
            &service,
            Upload::unified(gzip(&tar_of(&entries))),
            bad,
            says,
        )
        .await;
    }
    let giant = [yaml, &vec![b'#'; 2 << 20]].concat();
    for (yaml, says) in [
        (giant.as_slice(), "larger than 1048576 bytes"),
        (b"", "empty"),
        (
            b"architecture: vax\ncreation_date: 1\n",
            "unknown architecture \"vax\"",
        ),
        (
            b"architecture: [x86_64]\ncreation_date: 1\n",
            "architecture",
        ),
        (
            b"architecture: 64\ncreation_date: 1\n",
            "unknown architecture",
        ),
        (b"creation_date: 1\n", "has no architecture"),
        (b"architecture: x86_64\n", "has no creation_date"),
        (
            b"architecture: x86_64\ncreation_date: tomorrow\n",
            "creation_date",
        ),
        (
            b"architecture: x86_64\ncreation_date: 1\nproperties: 7\n",
            "properties",
        ),
        (b"%%%\n\t- [", "metadata.yaml"),
        (b"\xff\xff", "UTF-8"),
    ] {
        refused(&service, Upload::unified(zstd(&with_yaml(yaml))), bad, says).await;
        let split = Upload::split(
            xz(&tar_of(&[Entry::File("metadata.yaml", yaml)])),
            rootfs_tar("r"),
        );
        refused(&service, split, bad, says).await;
        if !yaml.is_empty() {
            refused(
                &service,
                Upload::unified(squashfs(yaml, false)),
                bad,
                if says.starts_with("larger") {
                    "larger"
                } else {
                    says
                },
            )
            .await;
        }
    }
}

#[tokio::test]
async fn a_decompression_bomb_is_stopped() {
    // 40 GiB of zeros in a few MiB, as the data of a file before metadata.yaml.
    let mut header = tar::Header::new_gnu();
    header.set_path("rootfs/zeros").unwrap();
    header.set_size(40 << 30);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    let mut bomb = zstd::encode_all(&header.as_bytes()[..], 1).unwrap();
    let frame = zstd::encode_all(&vec![0u8; 64 << 20][..], 3).unwrap();
    for _ in 0..640 {
        bomb.extend_from_slice(&frame);
    }
    assert!(bomb.len() < 8 << 20, "{}", bomb.len());
    let service = service().await;
    let start = std::time::Instant::now();
    refused(
        &service,
        Upload::unified(bomb),
        Code::InvalidArgument,
        "decompression bomb",
    )
    .await;
    println!("stopped after {:?}", start.elapsed());
}

#[tokio::test]
async fn a_stream_out_of_order_is_refused() {
    let service = service().await;
    let tar = image_tar("order");
    let head = || header(Upload::unified(Vec::new()).header);
    let split = || header(Upload::split(Vec::new(), Vec::new()).header);
    let unified = || chunk(Part::Unified, &tar);
    let part = |part| chunk(part, &tar);
    for (messages, at) in [
        (vec![], "header"),
        (vec![unified()], "header"),
        (
            vec![berth_proto::image::ImportImageRequest { message: None }],
            "header",
        ),
        (vec![head()], "chunk"),
        (vec![head(), head()], "header"),
        (vec![head(), part(Part::Unspecified)], "chunk.part"),
        (vec![head(), part(Part::Rootfs)], "chunk.part"),
        (vec![head(), unified(), part(Part::Rootfs)], "chunk.part"),
        (vec![split(), unified()], "chunk.part"),
        (vec![split(), part(Part::Rootfs)], "chunk.part"),
        (vec![split(), part(Part::Metadata)], "chunk"),
        (
            vec![
                split(),
                part(Part::Metadata),
                part(Part::Rootfs),
                part(Part::Metadata),
            ],
            "chunk.part",
        ),
        (
            vec![head(), chunk(Part::Unified, &vec![0; (1 << 20) + 1])],
            "chunk.data",
        ),
        (vec![head(), chunk(Part::Unified, &[])], "chunk.data"),
    ] {
        let error = send(&service, messages).await;
        assert_eq!(
            (error.code(), field(&error).as_str()),
            (Code::InvalidArgument, at),
            "{error}"
        );
        assert_clean(&service).await;
    }
}

#[tokio::test]
async fn a_wrong_header_is_refused_by_field() {
    let service = service().await;
    type Change = fn(&mut berth_proto::image::import_image_request::Header);
    let changes: [(Change, &str); 9] = [
        (|h| h.parent = "default".into(), "header.parent"),
        (|h| h.filename = "../x".into(), "header.filename"),
        (|h| h.filename = "a\nb".into(), "header.filename"),
        (
            |h| h.expected_fingerprint = "../../etc/passwd".into(),
            "header.expected_fingerprint",
        ),
        (|h| h.expire_time = "soon".into(), "header.expire_time"),
        (|h| h.profiles = vec![String::new()], "header.profiles"),
        (
            |h| {
                h.properties.insert("a\nb".into(), String::new());
            },
            "header.properties.a\nb",
        ),
        (
            |h| {
                h.properties.insert("k".into(), "x".repeat(70_000));
            },
            "header.properties.k",
        ),
        (
            |h| h.aliases = vec![Default::default()],
            "header.aliases[0].alias",
        ),
    ];
    for (change, at) in changes {
        let mut upload = Upload::unified(image_tar("h"));
        change(&mut upload.header);
        let error = service.import(upload).await.unwrap_err();
        assert_eq!(
            (error.code(), field(&error).as_str()),
            (Code::InvalidArgument, at)
        );
    }
    let twice = Upload::unified(image_tar("h")).alias("a").alias("a");
    assert_eq!(
        field(&service.import(twice).await.unwrap_err()),
        "header.aliases[1].alias"
    );
    assert_clean(&service).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_nothing() {
    let service = service().await;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let mut client = service.client.clone();
    let call = tokio::spawn(async move {
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        client.import_image(stream).await
    });
    sender
        .send(header(Upload::unified(Vec::new()).header))
        .await
        .unwrap();
    sender
        .send(chunk(Part::Unified, &image_tar("gone")))
        .await
        .unwrap();
    while service.files("incoming").is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    call.abort();
    let _ = call.await;
    assert_clean(&service).await;
    drop(sender);
}

#[tokio::test]
async fn an_image_larger_than_allowed_is_refused() {
    let database = berth_testkit::TestDatabase::sqlite();
    let service = Service::start_with(database, |config| config.max_image_bytes = 10_000)
        .await
        .unwrap();
    let error = service
        .import(Upload::unified(image_tar("large")))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(reason(&error), "IMAGE_TOO_LARGE");
    assert_clean(&service).await;
}

/// Every prefix and many single changes of a valid image: never anything but a clean refusal or a
/// valid image.
#[tokio::test]
async fn random_damage_is_survived() {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    let service = service().await;
    let tar = tar_of(&[
        Entry::Dir("rootfs"),
        Entry::File("metadata.yaml", METADATA.as_bytes()),
    ]);
    let originals = [
        gzip(&tar),
        squashfs(METADATA.as_bytes(), false),
        zstd(&tar),
        tar,
    ];
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = (any::<u16>(), any::<u8>(), any::<u16>());
    for i in 0..200 {
        let (at, to, cut) = strategy.new_tree(&mut runner).unwrap().current();
        let mut bytes = originals[i % originals.len()].clone();
        let length = bytes.len();
        bytes[usize::from(at) % length] = to;
        if i % 3 == 0 {
            bytes.truncate(usize::from(cut) % length);
        }
        match service.import(Upload::unified(bytes)).await {
            Ok(image) => {
                let request = berth_proto::image::DeleteImageRequest {
                    name: image.name,
                    ..Default::default()
                };
                service.client.clone().delete_image(request).await.unwrap();
            }
            Err(error) => assert!(
                matches!(error.code(), Code::InvalidArgument | Code::Unimplemented),
                "{error}"
            ),
        }
    }
    assert_clean(&service).await;
}
