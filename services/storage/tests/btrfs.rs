//! The service over a btrfs loop pool: what only a real filesystem shows. Needs root and loop
//! devices. Prints what the main operations cost.

mod support;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_proto::storage::create_volume_request::Source;
use berth_proto::storage::*;
use berth_proto::types;
use berth_rpc::{Code, Error};
use berth_storage::host;
use berth_storage::host::loopdev::LoopDevice;
use berth_testkit::TestDatabase;
use support::Archive;
use support::service::{PARENT, Service, name};

/// A running service that leaves no loop device behind, whatever the test did.
struct Cleaned(Option<Service>);

impl std::ops::Deref for Cleaned {
    type Target = Service;
    fn deref(&self) -> &Service {
        self.0.as_ref().expect("running")
    }
}

impl std::ops::DerefMut for Cleaned {
    fn deref_mut(&mut self) -> &mut Service {
        self.0.as_mut().expect("running")
    }
}

impl Drop for Cleaned {
    fn drop(&mut self) {
        let Some(service) = self.0.take() else { return };
        let disks = service.config.server.state_dir.join("disks");
        drop(service.app);
        for entry in std::fs::read_dir(disks).into_iter().flatten().flatten() {
            if let Ok(Some(device)) = LoopDevice::find(&entry.path()) {
                let _ = device.detach();
            }
        }
    }
}

async fn start(size: &str) -> Option<(Cleaned, Pool)> {
    if !support::is_root() {
        return None;
    }
    let mut s = Cleaned(Some(Service::start(TestDatabase::sqlite()).await));
    let pool = s
        .pool("p1", "btrfs", &[("size", size)])
        .await
        .expect("a pool");
    Some((s, pool))
}

/// Mounts what an attachment says, as a monitor does, and opens the volume's top.
fn mount(attachment: &Option<types::Attachment>) -> std::os::fd::OwnedFd {
    let mount = &attachment.as_ref().expect("an attachment").mounts[0];
    let Some(types::attachment::mount::Source::Device(device)) = &mount.source else {
        panic!("not a device: {mount:?}");
    };
    let file = std::fs::File::open(&device.path).expect("the device");
    let seq = host::loopdev::diskseq(std::os::fd::AsRawFd::as_raw_fd(&file)).expect("diskseq");
    assert_eq!(seq, device.diskseq);
    let top =
        host::mount::mount_detached(&mount.fs_type, Path::new(&device.path), &mount.fs_options)
            .expect("mounted");
    assert_eq!(host::btrfs::fs_uuid(&top).expect("uuid"), mount.fs_uuid);
    host::fs::open_dir_beneath(&top, mount.subpath.as_str()).expect("the volume")
}

fn at(fd: &impl AsFd, path: &str) -> PathBuf {
    PathBuf::from(host::fs::proc_path(fd.as_fd())).join(path)
}

fn loops_of(service: &Service) -> usize {
    let disks = service.config.server.state_dir.join("disks");
    std::fs::read_dir(disks)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| LoopDevice::find(&e.path()).expect("looked").is_some())
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_pool_outlives_its_service_and_goes_without_a_trace() {
    let Some((mut s, pool)) = start("1GiB").await else {
        return;
    };
    assert_eq!(pool.config["size"], "1GiB");
    let image = s.image(&[("rootfs/etc/hostname", b"c1\n")]);
    let volume = s
        .volume("containers", "c1", Some(Source::Image(image)))
        .await
        .expect("made");
    let guest = mount(&volume.attachment);
    std::fs::write(at(&guest, "rootfs/file"), "written by a guest").expect("write");
    s.restart().await;
    std::fs::write(at(&guest, "rootfs/more"), "the guest goes on").expect("write");
    let again = s.get(&volume.name).await.expect("there");
    assert_eq!(
        again.attachment, volume.attachment,
        "an attachment holds over a restart"
    );
    s.snapshot(&volume.name, "s1").await.expect("snapshot");
    std::fs::remove_dir_all(at(&guest, "rootfs/etc")).expect("an accident");
    drop(guest);
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
    let guest = mount(&restored.attachment);
    assert_eq!(
        std::fs::read(at(&guest, "rootfs/etc/hostname")).expect("read"),
        b"c1\n"
    );
    // As Docker in a guest does.
    host::btrfs::create(&guest, "nested", None).expect("a subvolume inside");
    drop(guest);
    s.delete(&volume.name)
        .await
        .expect("deleted with what is nested");
    let mut grow = pool.clone();
    grow.etag.clear();
    grow.config.insert("size".into(), "2GiB".into());
    let request = UpdatePoolRequest {
        pool: Some(grow),
        ..UpdatePoolRequest::default()
    };
    s.pools.update_pool(request).await.expect("grown");
    let request = GetPoolResourcesRequest {
        name: pool.name.clone(),
    };
    let space = s
        .pools
        .get_pool_resources(request)
        .await
        .expect("space")
        .into_inner();
    assert_eq!(space.space_total_bytes, 2 << 30);
    assert_eq!(loops_of(&s), 1);
    let request = DeletePoolRequest {
        name: pool.name.clone(),
        ..DeletePoolRequest::default()
    };
    s.pools.delete_pool(request).await.expect("deleted");
    let disks = s.config.server.state_dir.join("disks");
    assert_eq!(std::fs::read_dir(disks).expect("list").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_removes_everything() {
    let Some((mut s, _)) = start("1GiB").await else {
        return;
    };
    let image = s.image(&[("rootfs/f", b"x")]);
    s.volume("containers", "c1", Some(Source::Image(image)))
        .await
        .expect("made");
    let config = s.config.clone();
    assert_eq!(loops_of(&s), 1);
    let service = s.0.take().expect("running");
    let Service {
        app,
        pools,
        volumes,
        database,
        dir,
        ..
    } = service;
    let app = app.expect("running");
    app.store.close().await;
    drop((app, pools, volumes));
    let mut config = config;
    config.server.database = Some(database.config.url.clone());
    let mut done = Err(Error::unavailable("not tried"));
    for _ in 0..200 {
        done = berth_storage::purge(&config).await;
        if done.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    done.expect("purged");
    let disks = config.server.state_dir.join("disks");
    assert_eq!(std::fs::read_dir(disks).expect("list").count(), 0);
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_says_so_and_keeps_nothing_half_made() {
    let Some((mut s, _)) = start("256MiB").await else {
        return;
    };
    let mut noise = vec![0_u8; 300 << 20];
    let mut x = 88_172_645_463_325_252_u64;
    for chunk in noise.chunks_exact_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        chunk.copy_from_slice(&x.to_le_bytes());
    }
    let image = s.image(&[("rootfs/big", &noise)]);
    let error = s
        .volume("containers", "c1", Some(Source::Image(image)))
        .await;
    let error = error.expect_err("there is no room");
    assert_eq!(
        (error.code, error.reason.as_str()),
        (Code::ResourceExhausted, "POOL_FULL"),
        "{error}"
    );
    assert!(error.message.contains("full"), "{error}");
    let list = ListVolumesRequest {
        parent: PARENT.into(),
        ..ListVolumesRequest::default()
    };
    assert!(
        s.volumes
            .list_volumes(list)
            .await
            .expect("list")
            .into_inner()
            .volumes
            .is_empty()
    );
    let small = s.image(&[("rootfs/f", b"x")]);
    s.volume("containers", "c1", Some(Source::Image(small)))
        .await
        .expect("there is room again at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_holds_and_usage_is_told() {
    let Some((mut s, _)) = start("1GiB").await else {
        return;
    };
    let image = s.image(&[("rootfs/f", &[1; 5 << 20])]);
    let source = Some(Source::Image(image));
    let volume = s
        .volume_with("containers", "c1", source, &[("size", "16MiB")], "")
        .await
        .expect("made");
    let guest = mount(&volume.attachment);
    std::fs::write(at(&guest, "rootfs/ok"), vec![2; 8 << 20]).expect("there is room");
    rustix::fs::syncfs(&guest).expect("sync");
    let big = || -> std::io::Result<()> {
        std::fs::write(at(&guest, "rootfs/big"), vec![3; 32 << 20])?;
        std::fs::File::open(at(&guest, "rootfs/big"))?.sync_all()
    };
    let error = big().expect_err("no room");
    assert_eq!(error.raw_os_error(), Some(libc::EDQUOT), "{error}");
    std::fs::remove_file(at(&guest, "rootfs/big")).expect("removed");
    // A guest's own subvolume counts too: no way around the limit.
    host::btrfs::create(&guest, "escape", None).expect("a subvolume");
    let way_out = || -> std::io::Result<()> {
        std::fs::write(at(&guest, "escape/big"), vec![4; 32 << 20])?;
        std::fs::File::open(at(&guest, "escape/big"))?.sync_all()
    };
    way_out().expect_err("still no room");
    std::fs::remove_file(at(&guest, "escape/big")).expect("removed");
    rustix::fs::syncfs(&guest).expect("sync");
    let ask = BatchGetUsageRequest {
        parent: PARENT.into(),
        ..BatchGetUsageRequest::default()
    };
    let usages = s
        .volumes
        .batch_get_usage(ask)
        .await
        .expect("usage")
        .into_inner()
        .usages;
    assert_eq!(usages.len(), 2, "the volume and the image: {usages:?}");
    let own = usages.iter().find(|u| u.name == volume.name).expect("told");
    assert!(
        own.used_bytes >= 8 << 20 && own.used_bytes < 14 << 20,
        "{own:?}"
    );
    assert_eq!(own.total_bytes, 16 << 20);
    let ask = BatchGetUsageRequest {
        names: vec![volume.name.clone()],
        ..BatchGetUsageRequest::default()
    };
    let usages = s
        .volumes
        .batch_get_usage(ask)
        .await
        .expect("usage")
        .into_inner()
        .usages;
    assert_eq!(usages.len(), 1);
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn cloning_costs_milliseconds_whatever_the_image() {
    let Some((mut s, _)) = start("4GiB").await else {
        return;
    };
    let mut archive = Archive::image();
    for i in 0..6400 {
        archive.file(
            &format!("rootfs/d{}/f{i}", i / 100),
            &vec![(i % 251) as u8; 3000 + i % 8000],
        );
    }
    let image = s.blob(&archive.end());
    let started = Instant::now();
    s.volume("containers", "first", Some(Source::Image(image.clone())))
        .await
        .expect("made");
    println!("unpack 6,400 files and clone: {:?}", started.elapsed());
    let (mut create, mut snap, mut restore, mut delete) = (vec![], vec![], vec![], vec![]);
    for i in 0..30 {
        let c = format!("c{i}");
        let source = Some(Source::Image(image.clone()));
        let started = Instant::now();
        let volume = s
            .volume_with("containers", &c, source, &[], &format!("op{i}"))
            .await
            .expect("made");
        create.push(started.elapsed());
        let started = Instant::now();
        s.snapshot(&volume.name, "s").await.expect("snapshot");
        snap.push(started.elapsed());
        let request = RestoreVolumeRequest {
            name: volume.name.clone(),
            snapshot_id: "s".into(),
            ..RestoreVolumeRequest::default()
        };
        let started = Instant::now();
        s.volumes.restore_volume(request).await.expect("restored");
        restore.push(started.elapsed());
    }
    let started = Instant::now();
    let ask = BatchGetUsageRequest {
        parent: PARENT.into(),
        ..BatchGetUsageRequest::default()
    };
    let usages = s
        .volumes
        .batch_get_usage(ask)
        .await
        .expect("usage")
        .into_inner()
        .usages;
    println!("usage of {} volumes: {:?}", usages.len(), started.elapsed());
    for i in 0..30 {
        let started = Instant::now();
        s.delete(&name("containers", &format!("c{i}")))
            .await
            .expect("deleted");
        delete.push(started.elapsed());
    }
    let started = Instant::now();
    let mut tasks = Vec::new();
    for i in 0..32 {
        let (mut volumes, image) = (s.volumes.clone(), image.clone());
        tasks.push(tokio::spawn(async move {
            let request = CreateVolumeRequest {
                parent: PARENT.into(),
                collection: "containers".into(),
                volume_id: format!("p{i}"),
                source: Some(Source::Image(image)),
                ..CreateVolumeRequest::default()
            };
            volumes.create_volume(request).await
        }));
    }
    for task in tasks {
        task.await.expect("a task").expect("made");
    }
    println!("32 clones at once: {:?}", started.elapsed());
    let all = [
        ("create", create),
        ("snapshot", snap),
        ("restore", restore),
        ("delete", delete),
    ];
    for (what, times) in all {
        let mid = median(times);
        println!("{what}: {mid:?}");
        // Far above what it takes, far below what copying would take.
        assert!(mid < Duration::from_millis(150), "{what} takes {mid:?}");
    }
}
