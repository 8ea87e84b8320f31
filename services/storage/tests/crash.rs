//! The real binary, killed at every step that matters: after a restart and a retry of the same
//! request everything is right, and after deleting everything nothing is left.

mod support;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_proto::storage::create_volume_request::Source;
use berth_proto::storage::pool_service_client::PoolServiceClient;
use berth_proto::storage::volume_service_client::VolumeServiceClient;
use berth_proto::storage::*;
use berth_proto::types;
use berth_rpc::{Channel, Error};
use berth_storage::host::loopdev::LoopDevice;
use support::service::PARENT;
use support::{Archive, sha256};

struct Host {
    dir: tempfile::TempDir,
    child: Option<Child>,
    image: ImageSource,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path();
        std::fs::create_dir(at.join("blobs")).expect("a directory");
        let config = format!(
            "blob_roots = ['{0}/blobs']\n[server]\nlisten = ['unix:{0}/sock']\nstate_dir = '{0}/state'\n",
            at.display()
        );
        std::fs::write(at.join("storage.toml"), config).expect("a file");
        let bytes = Archive::image().file("rootfs/f", b"x").end();
        let digest = sha256(&bytes);
        let blob = at.join("blobs").join(&digest);
        std::fs::write(&blob, &bytes).expect("a blob");
        let image = ImageSource {
            fingerprint: digest.clone(),
            blobs: vec![types::BlobRef {
                uri: format!("file://{}", blob.display()),
                digest: format!("sha256:{digest}"),
                size_bytes: bytes.len() as i64,
                media_type: "application/x-tar".into(),
                part: types::blob_ref::Part::Unified.into(),
            }],
        };
        Self {
            dir,
            child: None,
            image,
        }
    }

    fn binary(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth-storage"));
        command
            .arg("--config")
            .arg(self.dir.path().join("storage.toml"));
        command.stdout(Stdio::null());
        command
    }

    async fn start(&mut self, failpoints: &str) -> Channel {
        let _ = std::fs::remove_file(self.dir.path().join("sock"));
        let log = std::fs::File::create(self.dir.path().join("log")).expect("a log");
        let mut command = self.binary();
        command.env("BERTH_FAILPOINTS", failpoints).stderr(log);
        self.child = Some(command.spawn().expect("the binary runs"));
        let started = Instant::now();
        let address = format!("unix:{}/sock", self.dir.path().display());
        loop {
            let channel = berth_rpc::connect(&address).expect("an address");
            let mut pools = PoolServiceClient::new(channel.clone());
            if pools.list_drivers(ListDriversRequest {}).await.is_ok() {
                return channel;
            }
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "it doesn't serve: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits for the process to have killed itself.
    fn died(&mut self) -> bool {
        let Some(mut child) = self.child.take() else {
            return false;
        };
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(2) {
            if let Some(status) = child.try_wait().expect("waited") {
                return status.signal() == Some(libc::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child = Some(child);
        false
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn loops(&self) -> Vec<PathBuf> {
        let disks = std::fs::read_dir(self.dir.path().join("state/disks"));
        disks
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| LoopDevice::find(&e.path()).ok().flatten())
            .map(|d| d.path)
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        let _ = self.binary().arg("purge").stderr(Stdio::null()).status();
    }
}

/// One step of a life, under a request id: what a gateway would do and repeat.
async fn step(channel: &Channel, image: &ImageSource, driver: &str, n: usize) -> Result<(), Error> {
    let mut pools = PoolServiceClient::new(channel.clone());
    let mut volumes = VolumeServiceClient::new(channel.clone());
    let request_id = format!("life/{n}");
    let c1 = format!("{PARENT}/containers/c1");
    match n {
        0 => {
            let config = match driver {
                "btrfs" => [("size".to_owned(), "512MiB".to_owned())].into(),
                _ => std::collections::HashMap::new(),
            };
            let pool = Pool {
                driver: driver.into(),
                config,
                ..Pool::default()
            };
            let request = CreatePoolRequest {
                pool_id: "p1".into(),
                pool: Some(pool),
                request_id,
                ..CreatePoolRequest::default()
            };
            pools.create_pool(request).await?;
        }
        1 => {
            let request = CreateVolumeRequest {
                parent: PARENT.into(),
                collection: "containers".into(),
                volume_id: "c1".into(),
                source: Some(Source::Image(image.clone())),
                request_id,
                ..CreateVolumeRequest::default()
            };
            volumes.create_volume(request).await?;
        }
        2 => {
            let request = CreateSnapshotRequest {
                parent: c1,
                snapshot_id: "s".into(),
                request_id,
                ..CreateSnapshotRequest::default()
            };
            volumes.create_snapshot(request).await?;
        }
        3 => {
            let request = RestoreVolumeRequest {
                name: c1,
                snapshot_id: "s".into(),
                request_id,
            };
            volumes.restore_volume(request).await?;
        }
        4 => {
            let volume = Volume {
                name: c1,
                config: [("size".to_owned(), "64MiB".to_owned())].into(),
                ..Volume::default()
            };
            let request = UpdateVolumeRequest {
                volume: Some(volume),
                request_id,
                ..UpdateVolumeRequest::default()
            };
            volumes.update_volume(request).await?;
        }
        5 => {
            let request = DeleteSnapshotRequest {
                name: format!("{c1}/snapshots/s"),
                allow_missing: true,
                request_id,
            };
            volumes.delete_snapshot(request).await?;
        }
        6 => {
            let request = DeleteVolumeRequest {
                name: c1,
                allow_missing: true,
                request_id,
                ..DeleteVolumeRequest::default()
            };
            volumes.delete_volume(request).await?;
        }
        _ => {
            let request = DeletePoolRequest {
                name: "storagePools/p1".into(),
                request_id,
                ..DeletePoolRequest::default()
            };
            match pools.delete_pool(request).await {
                Ok(_) => {}
                // Its removal went on at start.
                Err(status) if status.code() == tonic::Code::NotFound => {}
                Err(status) => return Err(status.into()),
            }
        }
    }
    Ok(())
}

const STEPS: usize = 8;

const POINTS: &[&str] = &[
    "storage.create_pool.recorded",
    "storage.create_pool.made",
    "storage.image.unpacked",
    "storage.image.committed",
    "storage.create_volume.made",
    "storage.create_volume.committed",
    "storage.create_snapshot.made",
    "storage.create_snapshot.committed",
    "storage.restore_volume.made",
    "storage.restore_volume.committed",
    "storage.update_volume.limited",
    "storage.delete_snapshot.committed",
    "storage.delete_volume.committed",
    "storage.delete_pool.recorded",
    "storage.delete_pool.unmade",
];

/// Nothing of the service's making is left, loop devices included.
fn assert_clean(host: &Host, point: &str) {
    assert!(host.loops().is_empty(), "{point}: a loop device stays");
    for dir in ["state/disks", "state/pools"] {
        let left: Vec<_> = std::fs::read_dir(host.dir.path().join(dir))
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect();
        assert!(left.is_empty(), "{point}: {left:?}");
    }
}

async fn crash_everywhere(driver: &str, action: &str) {
    for point in POINTS {
        let mut host = Host::new();
        let mut channel = host.start(&format!("{point}={action}@1")).await;
        let mut hit = false;
        for n in 0..STEPS {
            for attempt in 0..3 {
                let image = host.image.clone();
                match step(&channel, &image, driver, n).await {
                    Ok(()) => break,
                    Err(error) => {
                        assert!(attempt < 2, "{point}: step {n}: {error}\n{}", host.log());
                        if action == "crash" {
                            assert!(host.died(), "{point}: step {n}: {error}\n{}", host.log());
                            channel = host.start("").await;
                        } else {
                            assert_eq!(error.reason, "FAILPOINT", "{point}: step {n}: {error}");
                        }
                        hit = true;
                    }
                }
            }
        }
        assert!(hit, "{point} was never passed");
        assert_clean(&host, point);
        println!("ok  {driver} {action} at {point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dir_pool_survives_a_crash_at_every_step() {
    if support::is_root() {
        crash_everywhere("dir", "crash").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_btrfs_pool_survives_a_crash_at_every_step() {
    if support::is_root() {
        crash_everywhere("btrfs", "crash").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_at_every_step_leaves_nothing() {
    if support::is_root() {
        crash_everywhere("dir", "error").await;
        crash_everywhere("btrfs", "error").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_checks_its_configuration_and_purges() {
    if !support::is_root() {
        return;
    }
    let mut host = Host::new();
    let checked = host.binary().arg("--check-config").status().expect("runs");
    assert!(checked.success());
    let bad = host.dir.path().join("bad.toml");
    std::fs::write(&bad, "blob_rots = []\n").expect("a file");
    let out = Command::new(env!("CARGO_BIN_EXE_berth-storage"))
        .args(["--check-config", "--config"])
        .arg(&bad)
        .output()
        .expect("runs");
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("blob_rots"));
    let channel = host.start("").await;
    let image = host.image.clone();
    for n in 0..3 {
        step(&channel, &image, "btrfs", n).await.expect("done");
    }
    assert_eq!(host.loops().len(), 1);
    host.kill();
    assert_eq!(
        host.loops().len(),
        1,
        "the device stays: guests may be on it"
    );
    assert!(
        no_mount_of(host.dir.path()),
        "nothing of it is in the host's mount table"
    );
    for _ in 0..2 {
        let purged = host.binary().arg("purge").status().expect("runs");
        assert!(purged.success(), "twice is fine");
        assert_clean(&host, "purge");
    }
}

fn no_mount_of(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    !mounts.contains(&path.display().to_string())
}
