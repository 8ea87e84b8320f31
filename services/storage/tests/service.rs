//! The service through its gRPC API, over an in-memory channel, on every database there is.

mod support;

use std::path::Path;

use berth_proto::storage::create_volume_request::Source;
use berth_proto::storage::*;
use berth_proto::types;
use berth_rpc::{Code, Error};
use support::METADATA;
use support::service::{PARENT, map, name, path, services};

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
        change(&|i| i.blobs[0].uri = "file:///etc/passwd".into());
        change(&|i| i.blobs[0].uri = "http://example.org/x".into());
        change(&|i| i.blobs[0].media_type = "text/html".into());
        change(&|i| i.blobs[0].part = 0);
        change(&|i| i.blobs.clear());
        change(&|i| i.fingerprint = "1".repeat(64));
        change(&|i| i.fingerprint = "../../etc".into());
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
async fn snapshots_restore_rename_copy() {
    for mut s in services().await {
        let pool = s.pool("p1", "dir", &[]).await.expect("a pool");
        let volume = s.volume("custom", "data", None).await.expect("made");
        let file = path(&volume.attachment).join("file");
        std::fs::write(&file, "one").expect("write");
        let snapshot = s.snapshot(&volume.name, "s1").await.expect("snapshot");
        assert_eq!(snapshot.name, format!("{}/snapshots/s1", volume.name));
        let again = s
            .snapshot(&volume.name, "s1")
            .await
            .expect_err("the name is taken");
        assert_eq!(again.code, Code::AlreadyExists);
        std::fs::write(&file, "two").expect("write");
        let request = RestoreVolumeRequest {
            name: volume.name.clone(),
            snapshot_id: "s1".into(),
            ..RestoreVolumeRequest::default()
        };
        let restored = s
            .volumes
            .restore_volume(request)
            .await
            .expect("restored")
            .into_inner();
        let (old, new) = (
            volume.attachment.clone().expect("one"),
            restored.attachment.clone().expect("one"),
        );
        assert_eq!(new.generation, old.generation + 1);
        assert_ne!(
            path(&volume.attachment),
            path(&restored.attachment),
            "an old attachment is dead"
        );
        assert!(!file.exists());
        let file = path(&restored.attachment).join("file");
        assert_eq!(std::fs::read_to_string(&file).expect("read"), "one");

        let request = RenameSnapshotRequest {
            name: snapshot.name.clone(),
            new_snapshot_id: "first".into(),
            ..RenameSnapshotRequest::default()
        };
        let renamed = s
            .volumes
            .rename_snapshot(request)
            .await
            .expect("renamed")
            .into_inner();
        assert_eq!(renamed.uid, snapshot.uid);
        let request = RenameVolumeRequest {
            name: volume.name.clone(),
            new_volume_id: "archive".into(),
            ..RenameVolumeRequest::default()
        };
        let moved = s
            .volumes
            .rename_volume(request)
            .await
            .expect("renamed")
            .into_inner();
        assert_eq!(
            path(&moved.attachment),
            path(&restored.attachment),
            "a rename touches one row"
        );
        assert_eq!(moved.snapshot_count, 1);

        let request = CreateVolumeRequest {
            parent: PARENT.into(),
            collection: "custom".into(),
            volume_id: "copy".into(),
            source: Some(Source::CopyOf(moved.name.clone())),
            with_snapshots: true,
            ..CreateVolumeRequest::default()
        };
        let copy = s
            .volumes
            .create_volume(request)
            .await
            .expect("copied")
            .into_inner();
        assert_eq!(copy.snapshot_count, 1);
        let of_snapshot = format!("{}/snapshots/first", moved.name);
        let other = s
            .volume("custom", "of-snap", Some(Source::CopyOf(of_snapshot)))
            .await
            .expect("copied");
        assert_eq!(
            std::fs::read_to_string(path(&other.attachment).join("file")).expect("read"),
            "one"
        );
        let wrong = s
            .volume("containers", "c1", Some(Source::CopyOf(moved.name.clone())))
            .await;
        assert_eq!(wrong.expect_err("another kind").fields[0].field, "copy_of");

        s.pool("p2", "dir", &[]).await.expect("another pool");
        let request = CreateVolumeRequest {
            parent: "projects/default/storagePools/p2".into(),
            collection: "custom".into(),
            volume_id: "far".into(),
            source: Some(Source::CopyOf(moved.name.clone())),
            with_snapshots: true,
            ..CreateVolumeRequest::default()
        };
        let far = s
            .volumes
            .create_volume(request)
            .await
            .expect("copied between pools")
            .into_inner();
        assert_eq!(
            std::fs::read_to_string(path(&far.attachment).join("file")).expect("read"),
            "one"
        );

        let request = DeleteSnapshotRequest {
            name: format!("{}/snapshots/first", moved.name),
            ..DeleteSnapshotRequest::default()
        };
        s.volumes
            .delete_snapshot(request.clone())
            .await
            .expect("deleted");
        let gone: Error = s
            .volumes
            .delete_snapshot(request.clone())
            .await
            .expect_err("gone")
            .into();
        assert_eq!(gone.code, Code::NotFound);
        let request = DeleteSnapshotRequest {
            allow_missing: true,
            ..request
        };
        s.volumes
            .delete_snapshot(request)
            .await
            .expect("gone already");
        let list = ListSnapshotsRequest {
            parent: copy.name.clone(),
        };
        assert_eq!(
            s.volumes
                .list_snapshots(list)
                .await
                .expect("list")
                .into_inner()
                .snapshots
                .len(),
            1
        );
        for volume in [&moved, &copy, &other] {
            s.delete(&volume.name)
                .await
                .expect("deleted with snapshots");
        }
        assert!(s.on_disk(&pool).is_empty());
        s.finish().await;
    }
}

#[tokio::test]
async fn requests_are_answered_once() {
    for mut s in services().await {
        let pool = s.pool("p1", "dir", &[]).await.expect("a pool");
        let first = s
            .volume_with("custom", "v", None, &[], "op1/volume")
            .await
            .expect("made");
        let again = s
            .volume_with("custom", "v", None, &[], "op1/volume")
            .await
            .expect("the same");
        assert_eq!(first, again);
        let other = s
            .volume_with("custom", "v", None, &[], "op2/volume")
            .await
            .expect_err("taken");
        assert_eq!(other.code, Code::AlreadyExists);
        s.restart().await;
        let later = s
            .volume_with("custom", "v", None, &[], "op1/volume")
            .await
            .expect("the same");
        assert_eq!(first.uid, later.uid);
        let request = DeleteVolumeRequest {
            name: first.name.clone(),
            request_id: "op1/undo".into(),
            ..DeleteVolumeRequest::default()
        };
        s.volumes
            .delete_volume(request.clone())
            .await
            .expect("deleted");
        s.volumes
            .delete_volume(request)
            .await
            .expect("the same answer");
        let missing = s.delete(&first.name).await.expect_err("there is none");
        assert_eq!(missing.code, Code::NotFound);
        assert!(s.on_disk(&pool).is_empty());
        s.finish().await;
    }
}

#[tokio::test]
async fn bad_requests_name_the_field() {
    for mut s in services().await {
        s.pool("p1", "dir", &[]).await.expect("a pool");
        for (collection, volume, config, code, word) in [
            (
                "custom",
                "v",
                &[("zfs.blocksize", "1")][..],
                Code::InvalidArgument,
                "Unknown configuration key: zfs.blocksize",
            ),
            (
                "custom",
                "v",
                &[("size", "-1")],
                Code::InvalidArgument,
                "size",
            ),
            (
                "containers",
                "v",
                &[("security.shifted", "true")],
                Code::InvalidArgument,
                "security.shifted",
            ),
            ("custom", "a/b", &[], Code::InvalidArgument, "a/b"),
            ("custom", "", &[], Code::InvalidArgument, "empty"),
            ("boxes", "v", &[], Code::InvalidArgument, "boxes"),
            (
                "virtualMachines",
                "v",
                &[],
                Code::Unimplemented,
                "virtual machines",
            ),
            ("images", "v", &[], Code::InvalidArgument, "image"),
        ] {
            let error = s.volume_with(collection, volume, None, config, "").await;
            let error = error.expect_err(word);
            assert_eq!(error.code, code, "{error}");
            assert!(error.message.contains(word), "{word}: {error}");
        }
        let request = CreateVolumeRequest {
            parent: "projects/other/storagePools/p1".into(),
            collection: "custom".into(),
            volume_id: "v".into(),
            ..CreateVolumeRequest::default()
        };
        let error: Error = s
            .volumes
            .create_volume(request)
            .await
            .expect_err("no project")
            .into();
        assert_eq!(error.code, Code::NotFound);
        let error = s
            .get("projects/default/storagePools/none/custom/v")
            .await
            .expect_err("no pool");
        assert_eq!(error.message, "Storage pool \"none\" not found");
        let checked = CreateVolumeRequest {
            parent: PARENT.into(),
            collection: "custom".into(),
            volume_id: "v".into(),
            validate_only: true,
            ..CreateVolumeRequest::default()
        };
        s.volumes
            .create_volume(checked)
            .await
            .expect("it would work");
        assert!(
            s.get(&name("custom", "v")).await.is_err(),
            "and was not made"
        );
        s.finish().await;
    }
}

#[tokio::test]
async fn holds_expire_and_config_changes() {
    for mut s in services().await {
        s.pool("p1", "dir", &[("volume.snapshots.expiry", "1w")])
            .await
            .expect("a pool");
        let volume = s
            .volume_with("custom", "v", None, &[("user.note", "a")], "")
            .await
            .expect("made");
        assert_eq!(
            volume.config["snapshots.expiry"], "1w",
            "the pool's default"
        );
        let hold = |expire: &str| HoldVolumeRequest {
            name: volume.name.clone(),
            hold: Some(types::Hold {
                holder: "projects/default/instances/c1".into(),
                authority: "gateway".into(),
                expire_time: expire.into(),
            }),
        };
        s.volumes
            .hold_volume(hold("2001-01-01T00:00:00+01:00"))
            .await
            .expect("held");
        assert!(
            s.get(&volume.name).await.expect("there").holds.is_empty(),
            "long over"
        );
        s.volumes.hold_volume(hold("")).await.expect("held");
        s.volumes
            .hold_volume(hold(""))
            .await
            .expect("twice is one hold");
        assert_eq!(s.get(&volume.name).await.expect("there").holds.len(), 1);
        assert_eq!(
            s.delete(&volume.name).await.expect_err("held").reason,
            "HELD"
        );

        let patch = UpdateVolumeRequest {
            volume: Some(Volume {
                name: volume.name.clone(),
                config: map(&[("size", "10MiB")]),
                ..Volume::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["config.size".into()],
            }),
            ..UpdateVolumeRequest::default()
        };
        let changed = s
            .volumes
            .update_volume(patch)
            .await
            .expect("changed")
            .into_inner();
        assert_eq!(changed.config["user.note"], "a");
        assert_eq!(changed.config["size"], "10MiB");
        let put = UpdateVolumeRequest {
            volume: Some(Volume {
                name: volume.name.clone(),
                etag: volume.etag.clone(),
                ..Volume::default()
            }),
            ..UpdateVolumeRequest::default()
        };
        let stale: Error = s
            .volumes
            .update_volume(put)
            .await
            .expect_err("an old etag")
            .into();
        assert_eq!(stale.reason, "ETAG_MISMATCH");
        let release = ReleaseVolumeRequest {
            name: volume.name.clone(),
            holder: "projects/default/instances/c1".into(),
        };
        s.volumes.release_volume(release).await.expect("released");
        s.delete(&volume.name).await.expect("deleted");
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
