//! What a start makes of what it finds.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use berth_proto::image::resolve_image_request::Selector;
use berth_proto::image::{DeleteImageRequest, Image, ResolveImageRequest};
use common::*;
use tonic::Status;

async fn resolve(service: &Service, fingerprint: &str) -> Result<Image, Status> {
    let request = ResolveImageRequest {
        parent: PARENT.into(),
        selector: Some(Selector::Fingerprint(fingerprint.into())),
        ..Default::default()
    };
    let answer = service.client.clone().resolve_image(request).await?;
    Ok(answer.into_inner())
}

async fn delete(service: &Service, name: &str) -> Result<(), Status> {
    let request = DeleteImageRequest {
        name: name.into(),
        ..Default::default()
    };
    service.client.clone().delete_image(request).await?;
    Ok(())
}

#[tokio::test]
async fn strangers_are_set_aside_and_uploads_swept() -> anyhow::Result<()> {
    for database in berth_testkit::databases().await? {
        let mut service = Service::start(database).await?;
        let image = service.import(Upload::unified(image_tar("keep"))).await?;
        let (blobs, incoming) = (
            service.state_dir.join("blobs"),
            service.state_dir.join("incoming"),
        );
        let orphan = "ab".repeat(32);
        std::fs::write(blobs.join(&orphan), "somebody's data")?;
        std::fs::write(blobs.join("notes.txt"), "mine")?;
        std::fs::write(incoming.join("half"), "an upload")?;
        for _ in 0..2 {
            service = Service::start(service.stop().await?).await?;
            assert_eq!(service.files("incoming"), Vec::<String>::new());
            assert_eq!(
                service.files("blobs"),
                std::slice::from_ref(&image.fingerprint)
            );
            let aside = service.files("set-aside");
            assert_eq!(aside.len(), 2);
            assert!(aside[0].starts_with(&orphan) && aside[1].starts_with("notes.txt."));
            let text =
                std::fs::read_to_string(service.state_dir.join("set-aside").join(&aside[0]))?;
            assert_eq!(text, "somebody's data");
        }
        resolve(&service, &image.fingerprint).await?;
        service.remove().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_damaged_image_is_told_and_can_be_made_anew() -> anyhow::Result<()> {
    for database in berth_testkit::databases().await? {
        let mut service = Service::start(database).await?;
        let bytes = gzip(&image_tar("lost"));
        let image = service.import(Upload::unified(bytes.clone())).await?;
        let path = service.state_dir.join("blobs").join(&image.fingerprint);

        // One bit: found while it is exported, and not handed out as if it were whole.
        let mut changed = bytes.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        std::fs::write(&path, &changed)?;
        let error = export(&service.client, &image.name).await.unwrap_err();
        assert_eq!(reason(&error), "BLOB_DAMAGED");
        assert_eq!(
            reason(&resolve(&service, &image.fingerprint).await.unwrap_err()),
            "BLOB_DAMAGED"
        );

        // Another length, and gone: found at start.
        for step in 0..2 {
            if step == 0 {
                std::fs::write(&path, &bytes[..100])?;
            } else {
                std::fs::remove_file(&path)?;
            }
            service = Service::start(service.stop().await?).await?;
            let error = resolve(&service, &image.fingerprint).await.unwrap_err();
            assert_eq!(reason(&error), "BLOB_DAMAGED");
            assert!(error.message().contains("import it again"));
        }
        assert_eq!(
            reason(&export(&service.client, &image.name).await.unwrap_err()),
            "BLOB_DAMAGED"
        );
        delete(&service, &image.name).await?;
        service.import(Upload::unified(bytes.clone())).await?;
        resolve(&service, &image.fingerprint).await?;
        assert_eq!(export(&service.client, &image.name).await?[0].1, bytes);
        service.remove().await?;
    }
    Ok(())
}

#[tokio::test]
async fn blobs_of_deleted_images_go_even_after_a_crash() -> anyhow::Result<()> {
    for database in berth_testkit::databases().await? {
        let mut service = Service::start(database).await?;
        let bytes = image_tar("removed");
        let image = service.import(Upload::unified(bytes.clone())).await?;
        delete(&service, &image.name).await?;
        // As if the service had been killed between the commit and the removal.
        let path = service.state_dir.join("blobs").join(&image.fingerprint);
        std::fs::write(&path, &bytes)?;
        service = Service::start(service.stop().await?).await?;
        assert!(!path.exists());
        assert_eq!(service.files("set-aside"), Vec::<String>::new());
        // Imported again it is wanted, whatever was once removed.
        service.import(Upload::unified(bytes)).await?;
        service = Service::start(service.stop().await?).await?;
        assert!(path.exists());
        service.remove().await?;
    }
    Ok(())
}
