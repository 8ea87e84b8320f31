//! Several callers at once, memory, and the cost of a launch's question.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use berth_image::model::{AliasName, Selector};
use berth_proto::image::DeleteImageRequest;
use berth_proto::types::blob_ref::Part;
use common::*;
use std::sync::Arc;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_from_two_callers_are_one_image() -> anyhow::Result<()> {
    for database in berth_testkit::databases().await? {
        let service = Service::start(database).await?;
        for round in 0..5 {
            let upload = || Upload::unified(gzip(&image_tar(&format!("race {round}"))));
            let results = futures::future::join_all((0..4).map(|_| service.import(upload()))).await;
            let (made, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
            assert_eq!((made.len(), refused.len()), (1, 3));
            for error in refused {
                assert_eq!(error.unwrap_err().code(), Code::AlreadyExists);
            }
            assert_eq!(service.files("blobs").len(), round + 1);
        }
        // With one request id they are one request.
        let upload = || Upload::unified(image_tar("joined")).request_id("same");
        let results = futures::future::join_all((0..4).map(|_| service.import(upload()))).await;
        let images: Vec<_> = results.into_iter().collect::<Result<_, _>>()?;
        assert!(images.iter().all(|i| *i == images[0]));
        assert_eq!(service.files("incoming"), Vec::<String>::new());
        service.remove().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_blob_survives_imports_and_deletes_side_by_side() -> anyhow::Result<()> {
    for database in berth_testkit::databases().await? {
        let service = Arc::new(Service::start(database).await?);
        let rootfs = gzip(&rootfs_tar("shared"));
        let tasks = (0..4).map(|task| {
            let (service, rootfs) = (service.clone(), rootfs.clone());
            tokio::spawn(async move {
                for round in 0..10 {
                    let meta = metadata_tar(&format!("{task}-{round}"));
                    let image = service.import(Upload::split(meta, rootfs.clone())).await?;
                    // Its blobs are there as long as it is.
                    assert_eq!(export(&service.client, &image.name).await?.len(), 2);
                    let request = DeleteImageRequest {
                        name: image.name,
                        ..Default::default()
                    };
                    service.client.clone().delete_image(request).await?;
                }
                Ok::<_, anyhow::Error>(())
            })
        });
        for task in futures::future::join_all(tasks).await {
            task??;
        }
        assert_eq!(service.files("blobs"), Vec::<String>::new());
        let Ok(service) = Arc::try_unwrap(service) else {
            panic!("still shared")
        };
        service.remove().await?;
    }
    Ok(())
}

/// Peak resident memory, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_does_not_grow_with_the_image() -> anyhow::Result<()> {
    const SIZE: u64 = 400 << 20;
    let service = Service::start(berth_testkit::TestDatabase::sqlite()).await?;
    let mut header_block = tar::Header::new_gnu();
    header_block.set_path("rootfs/data")?;
    header_block.set_size(SIZE);
    header_block.set_mode(0o644);
    header_block.set_cksum();
    let tail = tar_of(&[Entry::File("metadata.yaml", METADATA.as_bytes())]);
    let data = noise(1 << 20);
    let mut messages = vec![
        header(Upload::unified(Vec::new()).header),
        chunk(Part::Unified, header_block.as_bytes()),
    ];
    let data = chunk(Part::Unified, &data);
    // Clones of one message share its bytes.
    messages.extend(std::iter::repeat_n(data, (SIZE >> 20) as usize));
    messages.push(chunk(Part::Unified, &tail));
    let before = peak();
    let start = std::time::Instant::now();
    let image = service
        .client
        .clone()
        .import_image(tokio_stream::iter(messages))
        .await?
        .into_inner();
    let imported = start.elapsed();
    assert!(image.size_bytes as u64 > SIZE);
    let request = berth_proto::image::ExportImageRequest { name: image.name };
    let mut stream = service
        .client
        .clone()
        .export_image(request)
        .await?
        .into_inner();
    let mut count = 0;
    while stream.message().await?.is_some() {
        count += 1;
    }
    assert!(count > 100);
    let grown = peak() - before;
    println!(
        "400 MiB: import {imported:?}, export {:?}, memory grew by {grown} KiB",
        start.elapsed() - imported
    );
    assert!(grown < 100 << 10, "memory grew by {grown} KiB");
    service.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn resolving_costs_less_than_a_third_of_a_millisecond() -> anyhow::Result<()> {
    let service = Service::start(berth_testkit::TestDatabase::sqlite()).await?;
    for i in 0..60 {
        service
            .import(Upload::unified(image_tar(&i.to_string())).alias(&format!("a/{i}")))
            .await?;
    }
    let selector = Selector::Alias(AliasName::parse("a/30").map_err(anyhow::Error::msg)?);
    let start = std::time::Instant::now();
    for _ in 0..5000 {
        berth_image::app::resolve_image(&service.app, &selector, None, true)?;
    }
    let each = start.elapsed() / 5000;
    let request = || berth_proto::image::ResolveImageRequest {
        parent: PARENT.into(),
        selector: Some(berth_proto::image::resolve_image_request::Selector::Alias(
            "a/30".into(),
        )),
        touch: true,
        ..Default::default()
    };
    let start = std::time::Instant::now();
    for _ in 0..500 {
        service.client.clone().resolve_image(request()).await?;
    }
    println!(
        "resolve: {each:?} here, {:?} over gRPC (debug build)",
        start.elapsed() / 500
    );
    assert!(each < std::time::Duration::from_micros(300), "{each:?}");
    service.remove().await
}
