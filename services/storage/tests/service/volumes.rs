//! Volumes, snapshots, holds, requests.

use crate::support::service::{PARENT, map, name, path, services};
use berth_proto::storage::create_volume_request::Source;
use berth_proto::storage::*;
use berth_proto::types;
use berth_rpc::{Code, Error};

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
        let request = UpdateSnapshotRequest {
            snapshot: Some(Snapshot {
                name: renamed.name.clone(),
                description: "kept".into(),
                expire_time: "2030-01-01T00:00:00Z".into(),
                ..Snapshot::default()
            }),
            ..UpdateSnapshotRequest::default()
        };
        s.volumes.update_snapshot(request).await.expect("described");
        let everywhere = [
            "projects/-/storagePools/-/-/-",
            "projects/default/storagePools/-/custom/-",
            volume.name.as_str(),
        ];
        for parent in everywhere {
            let list = ListSnapshotsRequest {
                parent: parent.into(),
            };
            let listed = s.volumes.list_snapshots(list).await.expect("listed");
            let listed = listed.into_inner().snapshots;
            assert_eq!(listed.len(), 1, "{parent}");
            assert_eq!(listed[0].name, renamed.name, "{parent}");
            assert_eq!(listed[0].description, "kept");
            assert_eq!(listed[0].expire_time, "2030-01-01T00:00:00.000000Z");
        }
        let elsewhere = ListSnapshotsRequest {
            parent: "projects/default/storagePools/-/containers/-".into(),
        };
        let listed = s.volumes.list_snapshots(elsewhere).await.expect("listed");
        assert!(listed.into_inner().snapshots.is_empty());

        let request = RenameVolumeRequest {
            name: volume.name.clone(),
            new_volume_id: "archive".into(),
            ..RenameVolumeRequest::default()
        };
        // Whoever uses it knows it by its name.
        let holder = "projects/default/instances/user";
        let hold = HoldVolumeRequest {
            name: volume.name.clone(),
            hold: Some(berth_proto::types::Hold {
                holder: holder.into(),
                authority: "test".into(),
                ..Default::default()
            }),
        };
        s.volumes.hold_volume(hold).await.expect("held");
        let held = s.volumes.rename_volume(request.clone()).await;
        assert_eq!(
            held.expect_err("in use").code(),
            tonic::Code::FailedPrecondition
        );
        let release = ReleaseVolumeRequest {
            name: volume.name.clone(),
            holder: holder.into(),
        };
        s.volumes.release_volume(release).await.expect("released");
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
