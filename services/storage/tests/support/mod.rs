//! What the suites share: pools of every kind in temporary places, and archives.
#![allow(dead_code, unreachable_pub, reason = "each suite uses a part of it")]

pub mod service;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use berth_storage::driver::{self, Driver, Setup};
use berth_storage::host::loopdev::LoopDevice;
use sha2::{Digest, Sha256};

/// True for root; other suites print why they did nothing.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// A pool that goes away with the value, whatever the test did.
pub struct TestPool {
    pub label: &'static str,
    pub setup: Setup,
    pub driver: Option<Arc<dyn Driver>>,
    mounted: Option<(PathBuf, PathBuf)>,
    // Last, so that it is removed last.
    pub dir: tempfile::TempDir,
}

impl TestPool {
    pub fn driver(&self) -> &dyn Driver {
        self.driver.as_deref().expect("an open pool")
    }
}

impl Drop for TestPool {
    fn drop(&mut self) {
        let driver = self.driver.take();
        if let Some(driver) = &driver {
            for found in driver.entries().unwrap_or_default() {
                let _ = driver.remove(found.area, &found.name);
            }
        }
        let _ = driver::unmake(&self.setup, driver);
        if let Some((mount, backing)) = self.mounted.take() {
            let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
            if let Ok(Some(device)) = LoopDevice::find(&backing) {
                let _ = device.detach();
            }
        }
    }
}

fn make(
    label: &'static str,
    dir: tempfile::TempDir,
    driver_name: &str,
    source: Option<&Path>,
    mounted: Option<(PathBuf, PathBuf)>,
) -> TestPool {
    let uid = uuid::Uuid::new_v4().to_string();
    let size = (driver_name == "btrfs" && source.is_none()).then_some(1 << 30);
    let source = source.map(|p| p.to_str().expect("UTF-8"));
    let options = vec!["user_subvol_rm_allowed".to_owned()];
    let mut setup =
        driver::plan(dir.path(), &uid, "test", driver_name, source, size, options).expect("a plan");
    let driver = driver::make(&mut setup).expect("a pool");
    TestPool {
        label,
        setup,
        driver: Some(driver),
        mounted,
        dir,
    }
}

/// `dir` on whatever filesystem the temporary directory is on.
pub fn dir_pool() -> TestPool {
    make(
        "dir",
        tempfile::tempdir().expect("a directory"),
        "dir",
        None,
        None,
    )
}

/// `btrfs` in a loop file.
pub fn btrfs_pool() -> TestPool {
    make(
        "btrfs in a loop file",
        tempfile::tempdir().expect("a directory"),
        "btrfs",
        None,
        None,
    )
}

/// A filesystem in a loop file, mounted in this process's (private) namespace.
fn mounted(
    mkfs: &[&str],
    fs: &str,
    options: &[&str],
) -> Option<(tempfile::TempDir, PathBuf, PathBuf)> {
    let dir = tempfile::tempdir().expect("a directory");
    let (backing, mount) = (dir.path().join("disk"), dir.path().join("mnt"));
    std::fs::create_dir(&mount).expect("a directory");
    std::fs::File::create(&backing)
        .expect("a file")
        .set_len(1 << 30)
        .expect("a size");
    let done = Command::new(mkfs[0])
        .args(&mkfs[1..])
        .arg(&backing)
        .output();
    if !done.is_ok_and(|d| d.status.success()) {
        println!("{fs} skipped: {} failed or isn't installed", mkfs[0]);
        return None;
    }
    let device = LoopDevice::attach(&backing).expect("a loop device");
    let data = std::ffi::CString::new(options.join(",")).expect("options");
    let done = rustix::mount::mount(
        &device.path,
        &mount,
        fs,
        rustix::mount::MountFlags::empty(),
        Some(data.as_c_str()),
    );
    if let Err(errno) = done {
        println!("{fs} skipped: it can't be mounted with {options:?}: {errno}");
        device.detach().expect("detached");
        return None;
    }
    Some((dir, mount, backing))
}

/// `dir` on xfs with project quotas, where the machine can mount it.
pub fn dir_quota_pool() -> Option<TestPool> {
    let (dir, mount, backing) = mounted(&["mkfs.xfs", "-q"], "xfs", &["prjquota"])?;
    let source = mount.join("pool");
    std::fs::create_dir(&source).expect("a directory");
    Some(make(
        "dir on xfs with project quotas",
        dir,
        "dir",
        Some(&source),
        Some((mount, backing)),
    ))
}

/// `dir` on ext4 with project quotas, where the machine can mount it.
pub fn dir_ext4_quota_pool() -> Option<TestPool> {
    let mkfs = [
        "mkfs.ext4",
        "-q",
        "-F",
        "-O",
        "quota,project",
        "-E",
        "quotatype=prjquota",
    ];
    let (dir, mount, backing) = mounted(&mkfs, "ext4", &["prjquota"])?;
    let source = mount.join("pool");
    std::fs::create_dir(&source).expect("a directory");
    Some(make(
        "dir on ext4 with project quotas",
        dir,
        "dir",
        Some(&source),
        Some((mount, backing)),
    ))
}

/// `btrfs` in a directory of a btrfs that is there.
pub fn btrfs_path_pool() -> Option<TestPool> {
    let (dir, mount, backing) = mounted(&["mkfs.btrfs", "-q"], "btrfs", &[])?;
    let source = mount.join("pool");
    std::fs::create_dir(&source).expect("a directory");
    Some(make(
        "btrfs in a directory",
        dir,
        "btrfs",
        Some(&source),
        Some((mount, backing)),
    ))
}

/// Gives the test process a mount namespace of its own, once, before it has other threads.
pub fn private_mounts() {
    berth_storage::host::mount::private_mounts().expect("a mount namespace");
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Writes a tar entry whose header says exactly what the test wants, however wrong.
pub struct Archive(pub Vec<u8>);

impl Archive {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Entry with a raw path.
    pub fn raw(&mut self, path: &[u8], kind: u8, mode: u32, link: &[u8], data: &[u8]) -> &mut Self {
        if path.len() > 100 || link.len() > 100 {
            for (what, text) in [(b'L', path), (b'K', link)] {
                if text.len() > 100 {
                    let long = [text, b"\0"].concat();
                    self.block(b"././@LongLink", what, 0, b"", &long, long.len() as u64);
                }
            }
        }
        let short = |t: &[u8]| t[..t.len().min(100)].to_vec();
        self.block(
            &short(path),
            kind,
            mode,
            &short(link),
            data,
            data.len() as u64,
        );
        self
    }

    pub fn block(&mut self, path: &[u8], kind: u8, mode: u32, link: &[u8], data: &[u8], size: u64) {
        let mut header = [0_u8; 512];
        header[..path.len()].copy_from_slice(path);
        header[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        header[136..147].copy_from_slice(b"14000000000");
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link);
        header[257..265].copy_from_slice(b"ustar\x0000");
        if kind == b'3' || kind == b'4' {
            header[329..336].copy_from_slice(b"0000010");
            header[337..344].copy_from_slice(b"0000000");
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self.0.extend(data);
        self.0.extend(vec![0; (512 - data.len() % 512) % 512]);
    }

    pub fn dir(&mut self, path: &str) -> &mut Self {
        self.raw(path.as_bytes(), b'5', 0o755, b"", b"")
    }

    pub fn file(&mut self, path: &str, data: &[u8]) -> &mut Self {
        self.raw(path.as_bytes(), b'0', 0o644, b"", data)
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.raw(path.as_bytes(), b'2', 0o777, target.as_bytes(), b"")
    }

    pub fn hardlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.raw(path.as_bytes(), b'1', 0o644, target.as_bytes(), b"")
    }

    /// A pax header with these records in front of the next entry.
    pub fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            data.extend(format!("{length} {key}=").as_bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        let size = data.len() as u64;
        self.block(b"pax", b'x', 0o644, b"", &data, size);
        self
    }

    pub fn end(&mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        std::mem::take(&mut self.0)
    }

    /// What every image starts with.
    pub fn image() -> Self {
        let mut archive = Self::new();
        archive.file("metadata.yaml", METADATA).dir("rootfs");
        archive
    }
}

pub const METADATA: &[u8] = b"architecture: x86_64\ncreation_date: 1700000000\n";
