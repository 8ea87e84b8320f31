//! Pools, images in them, what crashes leave, events.

use std::path::Path;

use crate::support;
use crate::support::service::{PARENT, name, path, services};
use crate::support::{Archive, METADATA};
use berth_proto::storage::create_volume_request::Source;
use berth_proto::storage::*;
use berth_proto::types;
use berth_rpc::{Code, Error};

#[tokio::test]
async fn pools_are_made_listed_changed_and_removed() {
    for mut s in services().await {
        let pool = s
            .pool("p1", "dir", &[("volume.size", "1GiB")])
            .await
            .expect("made");
        assert_eq!(
            (pool.name.as_str(), pool.status.as_str()),
            ("storagePools/p1", "Created")
        );
        assert!(Path::new(&pool.config["source"]).join("volumes").is_dir());
        let again = s
            .pool("p1", "dir", &[])
            .await
            .expect_err("the name is taken");
        assert_eq!(again.code, Code::AlreadyExists);

        for (driver, config, code, word) in [
            (
                "zfs",
                &[][..],
                Code::Unimplemented,
                "driver zfs is not supported by this build",
            ),
            (
                "dir",
                &[("nonsense", "1")],
                Code::InvalidArgument,
                "Unknown configuration key: nonsense",
            ),
            ("dir", &[("size", "1GiB")], Code::InvalidArgument, "size"),
            (
                "dir",
                &[("source", "relative")],
                Code::InvalidArgument,
                "absolute",
            ),
            ("btrfs", &[("size", "lots")], Code::InvalidArgument, "size"),
            (
                "btrfs",
                &[("source", "/proc")],
                Code::InvalidArgument,
                "isn't empty",
            ),
            (
                "btrfs",
                &[("source", "/dev/null")],
                Code::InvalidArgument,
                "neither",
            ),
        ] {
            let error = s.pool("p2", driver, config).await.expect_err("refused");
            assert_eq!(error.code, code, "{driver} {config:?}: {error}");
            assert!(error.message.contains(word), "{error}");
        }
        assert!(s.pool("p/2", "dir", &[]).await.is_err());

        let mut changed = pool.clone();
        changed.description = "fast".into();
        changed.config.insert("volume.size".into(), "2GiB".into());
        let request = UpdatePoolRequest {
            pool: Some(changed.clone()),
            ..UpdatePoolRequest::default()
        };
        let new = s
            .pools
            .update_pool(request.clone())
            .await
            .expect("changed")
            .into_inner();
        assert_eq!(
            (new.description.as_str(), new.config["volume.size"].as_str()),
            ("fast", "2GiB")
        );
        let stale: Error = s
            .pools
            .update_pool(request)
            .await
            .expect_err("an old etag")
            .into();
        assert_eq!(stale.reason, "ETAG_MISMATCH");
        changed.etag.clear();
        changed.config.insert("source".into(), "/elsewhere".into());
        let request = UpdatePoolRequest {
            pool: Some(changed),
            ..UpdatePoolRequest::default()
        };
        let fixed: Error = s
            .pools
            .update_pool(request)
            .await
            .expect_err("source is fixed")
            .into();
        assert_eq!(fixed.fields[0].field, "config.source");

        let request = GetPoolResourcesRequest {
            name: pool.name.clone(),
        };
        let space = s
            .pools
            .get_pool_resources(request)
            .await
            .expect("space")
            .into_inner();
        assert!(space.space_total_bytes > 0);
        let hold = types::Hold {
            holder: "projects/default/profiles/x".into(),
            ..types::Hold::default()
        };
        let request = HoldPoolRequest {
            name: pool.name.clone(),
            hold: Some(hold),
        };
        s.pools.hold_pool(request).await.expect("held");
        let request = DeletePoolRequest {
            name: pool.name.clone(),
            ..DeletePoolRequest::default()
        };
        let held: Error = s
            .pools
            .delete_pool(request.clone())
            .await
            .expect_err("held")
            .into();
        assert_eq!(held.holders, ["projects/default/profiles/x"]);
        let list = s
            .pools
            .list_pools(ListPoolsRequest::default())
            .await
            .expect("list")
            .into_inner();
        assert_eq!(list.pools[0].used_by, ["projects/default/profiles/x"]);
        let release = ReleasePoolRequest {
            name: pool.name.clone(),
            holder: "projects/default/profiles/x".into(),
        };
        s.pools.release_pool(release).await.expect("released");
        s.pools.delete_pool(request).await.expect("deleted");
        assert!(!Path::new(&pool.config["source"]).exists());
        let gone = s
            .pools
            .get_pool(GetPoolRequest { name: pool.name })
            .await
            .expect_err("gone");
        assert_eq!(Error::from(gone).code, Code::NotFound);
        s.finish().await;
    }
}

#[tokio::test]
async fn an_image_is_unpacked_once_and_cloned() {
    if !support::is_root() {
        return;
    }
    for mut s in services().await {
        let pool = s.pool("p1", "dir", &[]).await.expect("a pool");
        let image = s.image(&[("rootfs/etc/hostname", b"c1\n")]);
        let mut tasks = Vec::new();
        for i in 0..8 {
            let (mut volumes, image) = (s.volumes.clone(), image.clone());
            tasks.push(tokio::spawn(async move {
                let request = CreateVolumeRequest {
                    parent: PARENT.into(),
                    collection: "containers".into(),
                    volume_id: format!("c{i}"),
                    source: Some(Source::Image(image)),
                    hold: Some(types::Hold {
                        holder: format!("projects/default/instances/c{i}"),
                        authority: "gateway".into(),
                        ..types::Hold::default()
                    }),
                    ..CreateVolumeRequest::default()
                };
                volumes.create_volume(request).await
            }));
        }
        for task in tasks {
            let volume = task.await.expect("a task").expect("made").into_inner();
            assert_eq!(volume.holds.len(), 1);
            let mount = &volume.attachment.as_ref().expect("an attachment").mounts[0];
            assert!(mount.attr.as_ref().is_some_and(|a| a.nodev && !a.read_only));
            let path = path(&volume.attachment);
            assert_eq!(
                std::fs::read(path.join("rootfs/etc/hostname")).expect("read"),
                b"c1\n"
            );
            assert_eq!(
                std::fs::read(path.join("metadata.yaml")).expect("read"),
                METADATA
            );
        }
        assert_eq!(s.on_disk(&pool).len(), 9, "eight volumes and one image");
        let cached = s
            .get(&name("images", &image.fingerprint))
            .await
            .expect("the image's volume");
        assert!(
            cached.attachment.expect("one").mounts[0]
                .attr
                .as_ref()
                .is_some_and(|a| a.read_only)
        );
        let list = ListVolumesRequest {
            parent: "projects/-/storagePools/-".into(),
            page_size: 5,
            ..ListVolumesRequest::default()
        };
        let first = s
            .volumes
            .list_volumes(list.clone())
            .await
            .expect("list")
            .into_inner();
        assert_eq!(first.volumes.len(), 5);
        let list = ListVolumesRequest {
            page_token: first.next_page_token,
            ..list
        };
        let rest = s
            .volumes
            .list_volumes(list)
            .await
            .expect("list")
            .into_inner();
        assert_eq!((rest.volumes.len(), rest.next_page_token.as_str()), (4, ""));

        let held = s.delete(&name("containers", "c0")).await.expect_err("held");
        assert_eq!(
            (held.reason.as_str(), &held.holders[..]),
            ("HELD", &["projects/default/instances/c0".to_owned()][..])
        );
        for i in 0..8 {
            let request = DeleteVolumeRequest {
                name: name("containers", &format!("c{i}")),
                holder: format!("projects/default/instances/c{i}"),
                ..DeleteVolumeRequest::default()
            };
            s.volumes
                .delete_volume(request)
                .await
                .expect("its own holder may");
        }
        assert_eq!(s.on_disk(&pool).len(), 1);
        let request = DeletePoolRequest {
            name: pool.name.clone(),
            ..DeletePoolRequest::default()
        };
        s.pools
            .delete_pool(request)
            .await
            .expect("cached images don't keep a pool");
        assert!(!Path::new(&pool.config["source"]).exists());
        s.finish().await;
    }
}

#[tokio::test]
async fn a_bad_image_leaves_nothing() {
    if !support::is_root() {
        return;
    }
    for mut s in services().await {
        let pool = s.pool("p1", "dir", &[]).await.expect("a pool");
        let good = s.image(&[("rootfs/f", b"x")]);
        let mut cases: Vec<(ImageSource, Code)> = Vec::new();
        for path in ["../../out", "/abs"] {
            cases.push((s.image(&[(path, b"evil")]), Code::InvalidArgument));
        }
        cases.push((s.blob(b"no archive"), Code::InvalidArgument));
        let mut change = |f: &dyn Fn(&mut ImageSource)| {
            let mut image = good.clone();
            f(&mut image);
            cases.push((image, Code::InvalidArgument));
        };
        change(&|i| i.blobs[0].digest = format!("sha256:{}", "0".repeat(64)));
        change(&|i| i.blobs[0].size_bytes = 5);
        change(&|i| i.blobs[0].uri = "http://example.org/x".into());
        change(&|i| i.blobs[0].media_type = "text/html".into());
        change(&|i| i.blobs[0].part = 0);
        change(&|i| i.blobs.clear());
        change(&|i| i.fingerprint = "1".repeat(64));
        change(&|i| i.fingerprint = "../../etc".into());
        for elsewhere in ["/etc/passwd", "/nowhere"] {
            let mut image = good.clone();
            image.blobs[0].uri = format!("file://{elsewhere}");
            cases.push((image, Code::FailedPrecondition));
        }
        for (image, code) in cases {
            let shown = format!("{image:?}");
            let error = s
                .volume("containers", "c1", Some(Source::Image(image)))
                .await;
            let error = error.expect_err(&shown);
            assert_eq!(error.code, code, "{shown}: {error}");
            assert!(
                s.on_disk(&pool).is_empty(),
                "{shown}: {:?}",
                s.on_disk(&pool)
            );
            assert!(s.get(&name("containers", "c1")).await.is_err());
        }
        s.volume("containers", "c1", Some(Source::Image(good)))
            .await
            .expect("the good one works");
        s.finish().await;
    }
}

#[tokio::test]
async fn an_image_comes_by_its_bytes() {
    if !support::is_root() {
        return;
    }
    for mut s in services().await {
        let pool = s.pool("p1", "dir", &[]).await.expect("a pool");
        let mut archive = Archive::image();
        archive.file("rootfs/f", b"x");
        let bytes = archive.end();
        let mut image = s.blob(&bytes);
        std::fs::remove_file(image.blobs[0].uri.strip_prefix("file://").expect("a file"))
            .expect("the blob goes");
        image.blobs[0].uri = "file:///elsewhere/blob".into();
        let create = |image: &ImageSource| Some(Source::Image(image.clone()));
        let error = s.volume("containers", "c1", create(&image)).await;
        assert_eq!(error.expect_err("not here").reason, "BLOB_ELSEWHERE");

        let mut flipped = bytes.clone();
        flipped[600] ^= 1;
        let longer = [bytes.as_slice(), b"x"].concat();
        let wrong = [&bytes[..bytes.len() - 1], &longer, &flipped, &[]];
        for (case, wrong) in wrong.into_iter().enumerate() {
            let error = s
                .import(&image, wrong, 1000)
                .await
                .expect_err("wrong bytes");
            assert_eq!(error.code, Code::InvalidArgument, "case {case}: {error}");
            assert!(s.on_disk(&pool).is_empty(), "case {case}");
        }
        let mut huge = image.clone();
        huge.blobs[0].size_bytes = i64::MAX;
        let error = s.import(&huge, &bytes, 1000).await.expect_err("too large");
        assert_eq!(error.fields[0].field, "header.image.blobs.size_bytes");

        let made = s.import(&image, &bytes, 1000).await.expect("imported");
        assert!(made.name.ends_with(&image.fingerprint), "{}", made.name);
        // What is there is not asked for again.
        let again = s.import(&image, &[], 1).await.expect("there already");
        assert_eq!(again.uid, made.uid);
        let volume = s.volume("containers", "c1", create(&image)).await;
        let volume = volume.expect("cloned");
        let file = path(&volume.attachment).join("rootfs/f");
        assert_eq!(std::fs::read(file).expect("a file"), b"x");
        s.finish().await;
    }
}

#[tokio::test]
async fn what_a_crash_leaves_is_put_right() {
    for mut s in services().await {
        let pool = s.pool("p1", "dir", &[]).await.expect("a pool");
        let kept = s.volume("custom", "kept", None).await.expect("made");
        let unpublished = s.volume("custom", "unpublished", None).await.expect("made");
        let volumes = Path::new(&pool.config["source"]).join("volumes");
        // Committed, not yet renamed.
        let name = path(&unpublished.attachment);
        let last = name
            .file_name()
            .and_then(|n| n.to_str())
            .expect("a name")
            .to_owned();
        std::fs::rename(&name, volumes.join(format!("staging-{last}"))).expect("rename");
        // Made, never committed.
        let uid = uuid::Uuid::now_v7();
        std::fs::create_dir_all(volumes.join(format!("staging-{uid}.1/rootfs"))).expect("dir");
        // A restore that wasn't committed.
        std::fs::create_dir(volumes.join(format!("{}.2", kept.uid))).expect("dir");
        // What nobody knows.
        std::fs::create_dir(volumes.join(format!("{uid}.1"))).expect("dir");
        std::fs::write(volumes.join("notes.txt"), "whose?").expect("file");
        // A volume whose deletion was committed.
        let doomed = s.volume("custom", "doomed", None).await.expect("made");
        let at = path(&doomed.attachment);
        s.delete(&doomed.name).await.expect("deleted");
        std::fs::create_dir(&at).expect("back again, as after a power cut");
        s.restart().await;
        let mut expected = vec![
            format!("{}.1", kept.uid),
            last,
            "set-aside-notes.txt".to_owned(),
            format!("set-aside-{uid}.1"),
        ];
        expected.sort();
        assert_eq!(s.on_disk(&pool), expected);
        s.restart().await;
        assert_eq!(s.on_disk(&pool), expected, "twice is the same as once");
        s.finish().await;
    }
}

#[tokio::test]
async fn a_pool_that_is_away_does_not_stop_the_service() {
    for mut s in services().await {
        let source = s.dir.path().join("disk");
        std::fs::create_dir(&source).expect("a directory");
        s.pool("p1", "dir", &[("source", source.to_str().expect("UTF-8"))])
            .await
            .expect("a pool");
        s.volume("custom", "v", None).await.expect("made");
        let away = s.dir.path().join("unplugged");
        std::fs::rename(&source, &away).expect("rename");
        s.restart().await;
        let request = GetPoolRequest {
            name: "storagePools/p1".into(),
        };
        let pool = s.pools.get_pool(request).await.expect("known").into_inner();
        assert_eq!(pool.status, "Unavailable");
        assert!(!pool.status_message.is_empty());
        let error = s.volume("custom", "w", None).await.expect_err("not now");
        assert_eq!(error.code, Code::Unavailable);
        assert!(
            s.get(&name("custom", "v"))
                .await
                .expect("listed")
                .attachment
                .is_none()
        );
        std::fs::rename(&away, &source).expect("plugged in");
        s.restart().await;
        s.delete(&name("custom", "v")).await.expect("usable again");
        let foreign = source.join("volumes/set-aside-x");
        std::fs::create_dir(&foreign).expect("dir");
        let request = DeletePoolRequest {
            name: "storagePools/p1".into(),
            ..DeletePoolRequest::default()
        };
        s.pools.delete_pool(request).await.expect("deleted");
        assert!(
            foreign.exists(),
            "what isn't known stays in a directory that was there before"
        );
        s.finish().await;
    }
}

#[tokio::test]
async fn events_tell_what_happened() {
    for mut s in services().await {
        let request = types::WatchEventsRequest::default();
        let mut events = s
            .pools
            .watch_events(request)
            .await
            .expect("a stream")
            .into_inner();
        s.pool("p1", "dir", &[]).await.expect("a pool");
        let volume = s.volume("custom", "v", None).await.expect("made");
        s.snapshot(&volume.name, "s").await.expect("snapshot");
        s.delete(&volume.name).await.expect("deleted");
        let mut seen = Vec::new();
        while seen.len() < 4 {
            let next =
                tokio::time::timeout(std::time::Duration::from_secs(5), events.message()).await;
            let event = next.expect("in time").expect("no error").expect("no end");
            seen.push((event.action, event.resource));
        }
        let pool = "storagePools/p1".to_owned();
        assert_eq!(
            seen,
            [
                ("storage-pool-created".to_owned(), pool),
                ("storage-volume-created".to_owned(), volume.name.clone()),
                (
                    "storage-volume-snapshot-created".to_owned(),
                    format!("{}/snapshots/s", volume.name)
                ),
                ("storage-volume-deleted".to_owned(), volume.name),
            ]
        );
        s.finish().await;
    }
}
