//! The API's behaviour, with guests in memory.

#![allow(clippy::unwrap_used, reason = "a test says by failing what went wrong")]

mod common;

use berth_monitor::protocol::ExitReason;
use berth_proto::instance as proto;
use berth_proto::instance::instance::Status;
use common::{attachment, commit, device, full, map, new, nic, open, port, reason, root};
use tonic::Code;

#[tokio::test]
async fn an_instance_is_planned_created_and_found() {
    let (mut service, _db) = new().await;
    let instance = proto::Instance {
        devices: [root(), nic()].into(),
        config: map(&[("limits.cpu", "1"), ("user.x", "y")]),
        ..Default::default()
    };
    let plan = service.plan("c1", instance).await.unwrap();
    assert_eq!(plan.needed_volumes.len(), 1);
    assert!(plan.needed_volumes[0].root);
    assert_eq!(plan.needed_ports[0].guest_name, "eth0");
    assert!(plan.needed_ports[0].mac.starts_with("00:16:3e:"));
    let mut request = commit("c1", &plan);
    request.request_id = "r1".into();
    let created = service
        .instances
        .create_instance(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(created.profiles, ["default"]);
    assert_eq!(
        created.config["volatile.eth0.hwaddr"],
        plan.needed_ports[0].mac
    );
    assert_eq!(created.status(), Status::Stopped);
    // A retry gets the same answer and makes nothing.
    let again = service
        .instances
        .create_instance(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again, created);
    assert_eq!(service.actions().await, ["instance-created"]);
    let error = service
        .plan("c1", proto::Instance::default())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    let found = service.get("c1").await.unwrap();
    assert_eq!(found.state.unwrap().memory.unwrap().usage_bytes, 0);
}

#[tokio::test]
async fn bad_input_is_refused_by_name() {
    let (mut service, _db) = new().await;
    let with = |config: &[(&str, &str)]| proto::Instance {
        devices: [root()].into(),
        config: map(config),
        ..Default::default()
    };
    let error = service
        .plan("c1", with(&[("bogus.key", "1")]))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (
            Code::InvalidArgument,
            "Unknown configuration key: bogus.key"
        )
    );
    let error = service.plan("1c", with(&[])).await.unwrap_err();
    assert!(
        error.message().contains("must not start with a digit"),
        "{error}"
    );
    let error = service
        .plan("c1", proto::Instance::default())
        .await
        .unwrap_err();
    assert!(
        error.message().contains("No root device could be found"),
        "{error}"
    );
    let mut machine = with(&[]);
    machine.r#type = proto::instance::Type::VirtualMachine.into();
    assert_eq!(
        service.plan("c1", machine).await.unwrap_err().code(),
        Code::Unimplemented
    );
    let mut profile = with(&[]);
    profile.profiles = vec!["nope".into()];
    let error = service.plan("c1", profile).await.unwrap_err();
    assert!(error.message().contains("nope"), "{error}");
    // A commit without what its devices need.
    let plan = service.plan("c1", with(&[])).await.unwrap();
    let mut request = commit("c1", &plan);
    request.attachments.clear();
    let error = service
        .instances
        .create_instance(request)
        .await
        .unwrap_err();
    assert!(error.message().contains("\"root\""), "{error}");
}

#[tokio::test]
async fn a_stale_plan_is_refused() {
    let (mut service, _db) = new().await;
    let instance = proto::Instance {
        devices: [root()].into(),
        ..Default::default()
    };
    let plan = service.plan("c1", instance).await.unwrap();
    let request = proto::UpdateProfileRequest {
        profile: Some(proto::Profile {
            name: "projects/default/profiles/default".into(),
            config: map(&[("limits.cpu", "1")]),
            ..Default::default()
        }),
        ..Default::default()
    };
    service.profiles.update_profile(request).await.unwrap();
    let error = service
        .instances
        .create_instance(commit("c1", &plan))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), reason(&error).as_str()),
        (Code::Aborted, "PLAN_STALE")
    );
}

#[tokio::test]
async fn the_life_of_a_guest() {
    let (mut service, _db) = new().await;
    let created = service.simple("c1").await;
    assert_eq!(
        reason(&service.stop("c1", true).await.unwrap_err()),
        "ALREADY_STOPPED"
    );
    let started = service.start("c1").await.unwrap();
    assert_eq!((started.status(), started.generation), (Status::Running, 1));
    assert_eq!(started.config["volatile.last_state.power"], "RUNNING");
    assert!(started.config.contains_key("volatile.eth0.host_name"));
    assert!(!started.config.contains_key("volatile.apply_template"));
    assert_eq!(
        reason(&service.start("c1").await.unwrap_err()),
        "ALREADY_RUNNING"
    );
    assert_eq!(
        service.fake.rendered(),
        [("c1".to_owned(), vec!["create".to_owned(), "start".into()])]
    );
    let spec = service.fake.spec(&created.uid).unwrap();
    assert_eq!((spec.idmap[0].host, spec.generation), (1_000_000, 1));
    assert!(spec.seccomp.is_some());

    let request = proto::FreezeInstanceRequest {
        name: full("c1"),
        ..Default::default()
    };
    let frozen = service
        .instances
        .freeze_instance(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(frozen.status(), Status::Frozen);
    let request = proto::UnfreezeInstanceRequest {
        name: full("c1"),
        ..Default::default()
    };
    let thawed = service
        .instances
        .unfreeze_instance(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(thawed.status(), Status::Running);
    let error = service
        .instances
        .unfreeze_instance(request)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "NOT_FROZEN");

    service.fake.reboot(&created.uid);
    for _ in 0..200 {
        if service.get("c1").await.unwrap().generation == 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(service.get("c1").await.unwrap().generation, 2);

    let stopped = service.stop("c1", false).await.unwrap();
    assert_eq!(stopped.status(), Status::Stopped);
    assert!(!stopped.config.contains_key("volatile.eth0.host_name"));
    let restarted = service.start("c1").await.unwrap();
    assert_eq!(restarted.generation, 3);
    let request = proto::RestartInstanceRequest {
        name: full("c1"),
        force: true,
        ..Default::default()
    };
    let restarted = service
        .instances
        .restart_instance(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (restarted.status(), restarted.generation),
        (Status::Running, 4)
    );
    service.stop("c1", true).await.unwrap();
    let wanted = [
        "instance-created",
        "instance-started",
        "instance-paused",
        "instance-resumed",
        "instance-restarted",
        "instance-shutdown",
        "instance-started",
        "instance-restarted",
        "instance-stopped",
    ];
    assert_eq!(service.actions().await, wanted);

    let request = proto::DeleteInstanceRequest {
        name: full("c1"),
        ..Default::default()
    };
    let deleted = service
        .instances
        .delete_instance(request)
        .await
        .unwrap()
        .into_inner();
    assert!(deleted.attachments.contains_key("root") && deleted.ports.contains_key("eth0"));
    assert_eq!(service.get("c1").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_failed_start_leaves_it_stopped() {
    let (mut service, _db) = new().await;
    service.simple("c1").await;
    service.fake.fail_next_start("no such volume");
    let error = service.start("c1").await.unwrap_err();
    assert!(error.message().contains("no such volume"), "{error}");
    let instance = service.get("c1").await.unwrap();
    assert_eq!(
        (instance.status(), instance.generation),
        (Status::Stopped, 0)
    );
    assert_eq!(service.start("c1").await.unwrap().generation, 1);
}

#[tokio::test]
async fn a_forced_stop_goes_past_one_that_hangs() {
    let (mut service, _db) = new().await;
    let created = service.simple("c1").await;
    service.start("c1").await.unwrap();
    service.fake.ignore_shutdown(&created.uid);
    let error = service.stop("c1", false).await.unwrap_err();
    assert_eq!(reason(&error), "SHUTDOWN_TIMEOUT");
    let mut other = service.instances.clone();
    let hanging = tokio::spawn(async move {
        let request = proto::StopInstanceRequest {
            name: full("c1"),
            timeout_seconds: -1,
            ..Default::default()
        };
        other.stop_instance(request).await
    });
    while !service
        .fake
        .requests(&created.uid)
        .iter()
        .filter(|r| *r == "Stop")
        .count()
        == 2
    {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    assert_eq!(
        service.stop("c1", true).await.unwrap().status(),
        Status::Stopped
    );
    assert_eq!(
        hanging.await.unwrap().unwrap().into_inner().status(),
        Status::Stopped
    );
}

#[tokio::test]
async fn a_guest_ends_by_itself() {
    let (mut service, _db) = new().await;
    let instance = proto::Instance {
        devices: [root()].into(),
        ephemeral: true,
        ..Default::default()
    };
    let created = service.create("c1", instance).await.unwrap();
    service.start("c1").await.unwrap();
    service.fake.end(&created.uid, ExitReason::Halt);
    service.wait_for("c1", Status::Stopped).await;
    let events = service
        .app
        .records
        .store()
        .events_after(0, 100)
        .await
        .unwrap();
    let last = &events.last().unwrap().event;
    assert_eq!(
        (last.action.as_str(), last.generation),
        ("instance-shutdown", 1)
    );
    assert_eq!(last.attributes["ephemeral"], "true");
    assert_eq!(last.attributes["reason"], "halt");
    // A late clean-up of run 1 does not touch run 2.
    service.start("c1").await.unwrap();
    service.stop("c1", true).await.unwrap();
    let request = proto::DeleteInstanceRequest {
        name: full("c1"),
        generation: 1,
        ..Default::default()
    };
    let error = service
        .instances
        .delete_instance(request)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "GENERATION_PASSED");
}

#[tokio::test]
async fn a_killed_monitor_is_noticed() {
    let (mut service, _db) = new().await;
    let created = service.simple("c1").await;
    service.start("c1").await.unwrap();
    service.fake.kill_monitor(&created.uid);
    let stopped = service.wait_for("c1", Status::Stopped).await;
    assert!(
        stopped.status_message.contains("monitor died"),
        "{}",
        stopped.status_message
    );
    assert_eq!(service.start("c1").await.unwrap().generation, 2);
}

#[tokio::test]
async fn privilege_changes_with_the_next_start() {
    let (mut service, _db) = new().await;
    let created = service.simple("c1").await;
    service.start("c1").await.unwrap();
    let current = |instance: &proto::Instance| instance.config["volatile.idmap.current"].clone();
    let privileged = [("security.privileged", "true")];
    let changed = service.set("c1", &privileged).await.unwrap();
    assert_eq!(changed.config["security.privileged"], "true");
    assert_ne!(current(&changed), "[]", "this run is as it began");
    // That is what a reboot from inside would start from.
    assert!(service.fake.spec(&created.uid).unwrap().privileged);

    service.stop("c1", true).await.unwrap();
    let started = service.start("c1").await.unwrap();
    assert_eq!(current(&started), "[]");
    assert!(service.fake.spec(&created.uid).unwrap().privileged);
}

#[tokio::test]
async fn limits_and_devices_change_live() {
    let (mut service, _db) = new().await;
    let created = service.simple("c1").await;
    service.start("c1").await.unwrap();
    let changed = service
        .set("c1", &[("limits.memory", "128MiB"), ("user.a", "b")])
        .await
        .unwrap();
    assert_eq!(changed.config["limits.memory"], "128MiB");
    let spec = service.fake.spec(&created.uid).unwrap();
    assert_eq!(spec.limits.memory_bytes, Some(128 << 20));
    // An unset key is gone, and so is its limit.
    service.set("c1", &[("limits.memory", "")]).await.unwrap();
    assert_eq!(
        service.fake.spec(&created.uid).unwrap().limits.memory_bytes,
        None
    );
    let error = service
        .set("c1", &[("security.idmap.size", "131072")])
        .await
        .unwrap_err();
    assert!(error.message().contains("security.idmap.size"), "{error}");

    // A disk of the host, plugged in and out.
    let mut request = proto::UpdateInstanceRequest {
        instance: Some(proto::Instance {
            name: full("c1"),
            devices: [(
                "data".to_owned(),
                device(&[("type", "disk"), ("path", "/data"), ("source", "/srv")]),
            )]
            .into(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["devices.data".into()],
        }),
        ..Default::default()
    };
    service
        .instances
        .update_instance(request.clone())
        .await
        .unwrap();
    request.instance.as_mut().unwrap().devices.clear();
    service.instances.update_instance(request).await.unwrap();
    let requests = service.fake.requests(&created.uid);
    let plugged = requests
        .iter()
        .filter(|r| r.ends_with("Mount"))
        .cloned()
        .collect::<Vec<_>>();
    assert_eq!(plugged, ["AddMount", "RemoveMount"]);
}

#[tokio::test]
async fn a_guest_that_refuses_a_change_keeps_its_configuration() {
    let (mut service, _db) = new().await;
    let created = service.simple("c1").await;
    service.start("c1").await.unwrap();
    service.fake.refuse("UpdateLimits");
    assert!(
        service
            .set("c1", &[("limits.memory", "1MiB")])
            .await
            .is_err()
    );
    service.fake.refuse("");
    let now = service.get("c1").await.unwrap();
    assert!(!now.config.contains_key("limits.memory"));
    assert_eq!(
        service.fake.spec(&created.uid).unwrap().limits.memory_bytes,
        None
    );
}

#[tokio::test]
async fn a_nic_is_planned_and_plugged_in() {
    let (mut service, _db) = new().await;
    let instance = proto::Instance {
        devices: [root()].into(),
        ..Default::default()
    };
    let created = service.create("c1", instance).await.unwrap();
    service.start("c1").await.unwrap();
    let mut request = proto::UpdateInstanceRequest {
        instance: Some(proto::Instance {
            name: full("c1"),
            devices: [nic()].into(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["devices.eth0".into()],
        }),
        ..Default::default()
    };
    let plan = service
        .instances
        .plan_update_instance(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(plan.needed_ports.len(), 1);
    assert!(plan.needed_volumes.is_empty() && plan.surplus_ports.is_empty());
    request.plan_etag.clone_from(&plan.plan_etag);
    request.ports = [("eth0".to_owned(), port(&plan.needed_ports[0]))].into();
    let updated = service
        .instances
        .update_instance(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        updated.config["volatile.eth0.hwaddr"],
        plan.needed_ports[0].mac
    );
    assert!(
        service
            .fake
            .requests(&created.uid)
            .contains(&"AddNic".to_owned())
    );
    // Taken away again, the port is surplus.
    request.instance.as_mut().unwrap().devices.clear();
    let plan = service
        .instances
        .plan_update_instance(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(plan.surplus_ports[0].device, "eth0");
}

#[tokio::test]
async fn a_put_replaces_and_keeps_what_is_the_services() {
    let (mut service, _db) = new().await;
    let created = service.simple("c1").await;
    let etag = service.get("c1").await.unwrap().etag;
    let put = |etag: &str| proto::UpdateInstanceRequest {
        instance: Some(proto::Instance {
            name: full("c1"),
            description: "new".into(),
            config: map(&[("user.k", "v")]),
            devices: [root(), nic()].into(),
            profiles: vec!["default".into()],
            etag: etag.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let updated = service
        .instances
        .update_instance(put(&etag))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (
            updated.description.as_str(),
            updated.config["user.k"].as_str()
        ),
        ("new", "v")
    );
    assert_eq!(
        updated.config["volatile.uuid"],
        created.config["volatile.uuid"]
    );
    let error = service
        .instances
        .update_instance(put(&etag))
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "ETAG_MISMATCH");
}

#[tokio::test]
async fn profiles_change_all_who_have_them() {
    let (mut service, _db) = new().await;
    let request = proto::CreateProfileRequest {
        parent: common::PROJECT.into(),
        profile_id: "small".into(),
        profile: Some(proto::Profile {
            config: map(&[("limits.memory", "64MiB")]),
            ..Default::default()
        }),
        ..Default::default()
    };
    service.profiles.create_profile(request).await.unwrap();
    let instance = proto::Instance {
        devices: [root()].into(),
        profiles: vec!["default".into(), "small".into()],
        ..Default::default()
    };
    let created = service.create("c1", instance).await.unwrap();
    assert_eq!(created.expanded_config["limits.memory"], "64MiB");
    service.start("c1").await.unwrap();
    let name = "projects/default/profiles/small".to_owned();
    let update = proto::UpdateProfileRequest {
        profile: Some(proto::Profile {
            name: name.clone(),
            config: map(&[("limits.memory", "96MiB")]),
            devices: [nic()].into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let plan = service
        .profiles
        .plan_update_profile(update.clone())
        .await
        .unwrap()
        .into_inner();
    let needed = &plan.instances[0].needed_ports[0];
    let ports = [("eth0".to_owned(), port(needed))].into();
    let values = proto::InstanceValues {
        ports,
        ..Default::default()
    };
    let commit = proto::UpdateProfileRequest {
        plan_etag: plan.plan_etag.clone(),
        instances: [(full("c1"), values)].into(),
        ..update
    };
    let updated = service
        .profiles
        .update_profile(commit)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(updated.used_by, [full("c1")]);
    let spec = service.fake.spec(&created.uid).unwrap();
    assert_eq!(spec.limits.memory_bytes, Some(96 << 20));
    assert!(
        service
            .fake
            .requests(&created.uid)
            .contains(&"AddNic".to_owned())
    );
    let delete = proto::DeleteProfileRequest {
        name: name.clone(),
        ..Default::default()
    };
    let error = service.profiles.delete_profile(delete).await.unwrap_err();
    assert_eq!(
        (reason(&error).as_str(), error.message()),
        ("HELD", "Profile is currently in use")
    );
    let rename = proto::RenameProfileRequest {
        name,
        new_profile_id: "tiny".into(),
        ..Default::default()
    };
    service.profiles.rename_profile(rename).await.unwrap();
    assert_eq!(
        service.get("c1").await.unwrap().profiles,
        ["default", "tiny"]
    );
    let delete = proto::DeleteProfileRequest {
        name: "projects/default/profiles/default".into(),
        ..Default::default()
    };
    assert!(service.profiles.delete_profile(delete).await.is_err());
    let request = proto::ListProfilesRequest {
        parent: common::PROJECT.into(),
        ..Default::default()
    };
    let all = service
        .profiles
        .list_profiles(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(all.profiles.len(), 2);
}

#[tokio::test]
async fn snapshots_are_recorded_restored_and_copied() {
    let (mut service, _db) = new().await;
    service.simple("c1").await;
    service.set("c1", &[("user.v", "1")]).await.unwrap();
    let create = proto::CreateSnapshotRequest {
        parent: full("c1"),
        snapshot_id: "s1".into(),
        snapshot: Some(proto::Snapshot {
            expire_time: "2030-01-01T00:00:00Z".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let snapshot = service
        .snapshots
        .create_snapshot(create.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(snapshot.expire_time, "2030-01-01T00:00:00Z");
    assert_eq!(
        service
            .snapshots
            .create_snapshot(create)
            .await
            .unwrap_err()
            .code(),
        Code::AlreadyExists
    );
    service.set("c1", &[("user.v", "2")]).await.unwrap();
    let restore = proto::RestoreSnapshotRequest {
        name: full("c1"),
        snapshot_id: "s1".into(),
        attachments: [(
            "root".to_owned(),
            attachment("c1", std::path::Path::new("/pool/new")),
        )]
        .into(),
        ..Default::default()
    };
    let restored = service
        .snapshots
        .restore_snapshot(restore)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(restored.config["user.v"], "1");
    let mounts = &restored.attachments["root"].mounts;
    assert!(format!("{mounts:?}").contains("/pool/new"));

    let plan = proto::PlanCreateInstanceRequest {
        parent: common::PROJECT.into(),
        instance_id: "c2".into(),
        copy_of: format!("{}/snapshots/s1", full("c1")),
        default_profiles: true,
        ..Default::default()
    };
    let plan = service
        .instances
        .plan_create_instance(plan)
        .await
        .unwrap()
        .into_inner();
    let copy = service
        .instances
        .create_instance(commit("c2", &plan))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(copy.config["user.v"], "1");
    let mac = |i: &proto::Instance| i.config["volatile.eth0.hwaddr"].clone();
    assert_ne!(mac(&copy), mac(&restored));
    assert_ne!(
        copy.config["volatile.idmap.base"],
        restored.config["volatile.idmap.base"]
    );

    let name = format!("{}/snapshots/s1", full("c1"));
    let rename = proto::RenameSnapshotRequest {
        name,
        new_snapshot_id: "s2".into(),
        ..Default::default()
    };
    service.snapshots.rename_snapshot(rename).await.unwrap();
    let name = format!("{}/snapshots/s2", full("c1"));
    let delete = proto::DeleteSnapshotRequest {
        name,
        ..Default::default()
    };
    service
        .snapshots
        .delete_snapshot(delete.clone())
        .await
        .unwrap();
    assert_eq!(
        service
            .snapshots
            .delete_snapshot(delete)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn a_rename_keeps_uid_and_run_counter() {
    let (mut service, db) = new().await;
    let created = service.simple("c1").await;
    service.start("c1").await.unwrap();
    let rename = proto::RenameInstanceRequest {
        name: full("c1"),
        new_instance_id: "c2".into(),
        ..Default::default()
    };
    let error = service
        .instances
        .rename_instance(rename.clone())
        .await
        .unwrap_err();
    assert!(error.message().contains("running"), "{error}");
    service.stop("c1", true).await.unwrap();
    let renamed = service
        .instances
        .rename_instance(rename)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((renamed.uid, renamed.generation), (created.uid.clone(), 1));
    assert!(service.get("c1").await.is_err());
    service.start("c2").await.unwrap();
    assert_eq!(
        service.fake.rendered().last().unwrap().1,
        ["rename", "start"]
    );
    drop(db);
}

#[tokio::test]
async fn one_stuck_guest_delays_no_list() {
    let (mut service, _db) = new().await;
    for name in ["c1", "c2", "c3"] {
        service.simple(name).await;
        service.start(name).await.unwrap();
    }
    let uid = service.get("c2").await.unwrap().uid;
    service.fake.make_deaf(&uid, true);
    let began = std::time::Instant::now();
    let request = proto::ListInstancesRequest {
        parent: "projects/-".into(),
        view: proto::InstanceView::Full.into(),
        ..Default::default()
    };
    let list = service
        .instances
        .list_instances(request)
        .await
        .unwrap()
        .into_inner()
        .instances;
    assert!(began.elapsed() < std::time::Duration::from_secs(1));
    let unknown: Vec<bool> = list
        .iter()
        .map(|i| !i.state.as_ref().unwrap().unknown.is_empty())
        .collect();
    assert_eq!(unknown, [false, true, false]);
    assert_eq!(list[0].state.as_ref().unwrap().processes, 3);
}

#[test]
fn a_restarted_service_takes_its_guests_over() {
    let lived = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let first = lived();
    let (fake, db, uids) = first.block_on(async {
        let (mut service, db) = new().await;
        let mut uids = Vec::new();
        for name in ["runs", "halted", "killed", "rebooted"] {
            uids.push(service.simple(name).await.uid);
            service.start(name).await.unwrap();
        }
        (service.fake.clone(), db, uids)
    });
    // The service dies with all its tasks.
    first.shutdown_timeout(std::time::Duration::from_secs(5));
    fake.end(&uids[1], ExitReason::Halt);
    fake.kill_monitor(&uids[2]);
    fake.reboot(&uids[3]);
    lived().block_on(async {
        let mut service = open(&db, &fake).await;
        let state = |i: &proto::Instance| (i.status(), i.generation);
        assert_eq!(
            state(&service.get("runs").await.unwrap()),
            (Status::Running, 1)
        );
        assert_eq!(
            state(&service.wait_for("halted", Status::Stopped).await),
            (Status::Stopped, 1)
        );
        assert_eq!(
            state(&service.wait_for("killed", Status::Stopped).await),
            (Status::Stopped, 1)
        );
        assert_eq!(
            state(&service.get("rebooted").await.unwrap()),
            (Status::Running, 2)
        );
        // Nothing is started again by a mere restart of the service.
        assert_eq!(service.fake.rendered().len(), 4);
        service.stop("runs", true).await.unwrap();
    });
}

#[test]
fn a_stuck_monitor_holds_up_no_restart() {
    let lived = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let first = lived();
    let (fake, db, uid) = first.block_on(async {
        let (mut service, db) = new().await;
        let uid = service.simple("stuck").await.uid;
        service.simple("fine").await;
        service.start("stuck").await.unwrap();
        service.start("fine").await.unwrap();
        (service.fake.clone(), db, uid)
    });
    first.shutdown_timeout(std::time::Duration::from_secs(5));
    fake.make_deaf(&uid, true);
    lived().block_on(async {
        let began = std::time::Instant::now();
        let mut service = open(&db, &fake).await;
        assert!(began.elapsed() < std::time::Duration::from_secs(5));
        assert_eq!(service.get("fine").await.unwrap().status(), Status::Running);
        assert_eq!(service.get("stuck").await.unwrap().status(), Status::Error);
        assert_eq!(
            service.stop("stuck", true).await.unwrap_err().code(),
            Code::Unavailable
        );
        fake.make_deaf(&uid, false);
        service.wait_for("stuck", Status::Running).await;
        service.stop("stuck", true).await.unwrap();
    });
}

/// A runtime that ends with a run of the service.
fn lived() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn after_a_boot_guests_start_again() {
    let first = lived();
    let (fake, db) = first.block_on(async {
        let (mut service, db) = new().await;
        for (name, autostart) in [
            ("was-on", ""),
            ("was-off", ""),
            ("wanted", "true"),
            ("unwanted", "false"),
        ] {
            service.simple(name).await;
            if !autostart.is_empty() {
                service
                    .set(name, &[("boot.autostart", autostart)])
                    .await
                    .unwrap();
            }
        }
        service.start("was-on").await.unwrap();
        service.start("unwanted").await.unwrap();
        (service.fake.clone(), db)
    });
    first.shutdown_timeout(std::time::Duration::from_secs(5));
    // The host goes down and comes up: no monitor, no run directory, another boot id.
    let fake_after = berth_instance::runtime::fake::Fake::new(db.dir().to_owned());
    drop(fake);
    lived().block_on(async {
        let mut facts = berth_instance::host::facts::Facts::read().unwrap();
        facts.boot_id = "another".into();
        let mut service = common::open_with(&db, &fake_after, facts).await;
        let mut running = Vec::new();
        for name in ["was-on", "was-off", "wanted", "unwanted"] {
            running.push(service.get(name).await.unwrap().status() == Status::Running);
        }
        assert_eq!(running, [true, false, true, false]);
    });
}

/// Priorities decide the order, a guest that ignores it is killed, nothing starts meanwhile, and what ran is started
/// again: by the next start of guests, also when the service ended in between.
#[test]
fn a_host_that_goes_down_stops_guests_in_order_and_the_boot_starts_them() {
    let first = lived();
    let (fake, db) = first.block_on(async {
        let (mut service, db) = new().await;
        for (name, priority) in [
            ("last", "-1"),
            ("first", "10"),
            ("between", ""),
            ("off", "99"),
        ] {
            service.simple(name).await;
            service
                .set(name, &[("boot.stop.priority", priority)])
                .await
                .unwrap();
        }
        service
            .set("between", &[("boot.host_shutdown_timeout", "1")])
            .await
            .unwrap();
        let mut uids = Vec::new();
        for name in ["first", "between", "last"] {
            uids.push(service.start(name).await.unwrap().uid);
        }
        service.fake.ignore_shutdown(&uids[1]);
        let stopped = service
            .instances
            .stop_guests(proto::StopGuestsRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!((stopped.stopped, stopped.killed), (2, 1));
        assert!(stopped.left.is_empty());
        let order = [&uids[0], &uids[1], &uids[1], &uids[2]].map(String::clone);
        assert_eq!(service.fake.stops(), order);
        let record = service.get("first").await.unwrap();
        assert_eq!(record.status(), Status::Stopped);
        assert_eq!(record.config["volatile.last_state.power"], "RUNNING");
        let refused = service.start("off").await.unwrap_err();
        assert!(refused.message().contains("shutting down"), "{refused}");
        (service.fake.clone(), db)
    });
    first.shutdown_timeout(std::time::Duration::from_secs(5));
    lived().block_on(async {
        // Opening it starts what is due: it is the first start of guests since they were stopped.
        let mut service = common::open(&db, &fake).await;
        let mut running = Vec::new();
        for name in ["first", "between", "last", "off"] {
            running.push(service.get(name).await.unwrap().status() == Status::Running);
        }
        assert_eq!(running, [true, true, true, false]);
        service.stop("first", true).await.unwrap();
        service
            .instances
            .stop_guests(proto::StopGuestsRequest {})
            .await
            .unwrap();
        let started = service
            .instances
            .start_guests(proto::StartGuestsRequest {})
            .await
            .unwrap();
        assert_eq!(started.get_ref().started, 2);
        let again = service
            .instances
            .start_guests(proto::StartGuestsRequest {})
            .await
            .unwrap();
        assert_eq!(again.get_ref().started, 0);
        service.start("off").await.unwrap();
    });
}

#[tokio::test]
async fn raw_apparmor_is_rules_or_refused() {
    let (mut service, _db) = new().await;
    service.simple("c1").await;
    for wrong in ["}\nprofile evil { file, }", "/a no-such-mode,"] {
        let error = service
            .set("c1", &[("raw.apparmor", wrong)])
            .await
            .unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
        assert!(error.message().contains("raw.apparmor"), "{error}");
    }
    service
        .set("c1", &[("raw.apparmor", "/srv/** r,")])
        .await
        .unwrap();
}

#[tokio::test]
async fn execs_carry_their_streams() {
    use proto::stream_exec_request::{Attach, Data, Message as In};
    use proto::stream_exec_response::Message as Out;
    let (mut service, _db) = new().await;
    service.simple("c1").await;
    let exec = |command: &[&str]| proto::CreateExecRequest {
        parent: full("c1"),
        command: command.iter().map(|s| (*s).to_owned()).collect(),
        ..Default::default()
    };
    let error = service
        .execs
        .create_exec(exec(&["true"]))
        .await
        .unwrap_err();
    assert_eq!(
        (reason(&error).as_str(), error.message()),
        ("NOT_RUNNING", "Instance is not running")
    );
    service.start("c1").await.unwrap();
    let failed = service
        .execs
        .create_exec(exec(&["missing"]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((failed.exited, failed.exit_code), (true, 127));

    let started = service
        .execs
        .create_exec(exec(&["cat"]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(started.environment["HOME"], "/root");
    let send = |message: In| proto::StreamExecRequest {
        message: Some(message),
    };
    let attach = In::Attach(Attach {
        name: started.name.clone(),
        ..Default::default()
    });
    let data = |offset: u64, text: &'static str, eof: bool| {
        In::Stdin(Data {
            offset,
            data: text.into(),
            eof,
        })
    };
    // The second piece repeats part of the first, as after a reconnect.
    let input = tokio_stream::iter([
        send(attach.clone()),
        send(data(0, "hello ", false)),
        send(data(3, "lo you", false)),
        send(data(9, "", true)),
    ]);
    let mut output = service.execs.stream_exec(input).await.unwrap().into_inner();
    let (mut text, mut exit) = (Vec::new(), None);
    while let Some(message) = output.message().await.unwrap() {
        match message.message.unwrap() {
            Out::Stdout(piece) => {
                assert_eq!(piece.offset, text.len() as u64);
                text.extend(piece.data);
            }
            Out::Exit(e) => exit = Some(e.exit_code),
            _ => {}
        }
    }
    assert_eq!(
        (String::from_utf8(text).unwrap().as_str(), exit),
        ("hello you", Some(0))
    );
    let mut again = Attach {
        name: started.name.clone(),
        stdout_offset: 6,
        stderr_offset: 0,
    };
    again.stdout_offset = 6;
    let input = tokio_stream::iter([send(In::Attach(again))]);
    let mut output = service.execs.stream_exec(input).await.unwrap().into_inner();
    let mut rest = Vec::new();
    while let Some(message) = output.message().await.unwrap() {
        if let Some(Out::Stdout(piece)) = message.message {
            rest.extend(piece.data);
        }
    }
    assert_eq!(rest, b"you");
    let delete = proto::DeleteExecRequest { name: started.name };
    service.execs.delete_exec(delete.clone()).await.unwrap();
    assert_eq!(
        service.execs.delete_exec(delete).await.unwrap_err().code(),
        Code::NotFound
    );
}
