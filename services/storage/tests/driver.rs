//! The contract of every driver: one suite, run on each kind of pool that this machine can make.
//! Needs root, and a mount namespace of its own, which it takes before there are threads.

mod support;

use std::collections::HashSet;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use berth_storage::driver::{self, Area, Place};
use berth_storage::error::Error;
use berth_storage::host;
use support::TestPool;

type Case = (&'static str, fn(&TestPool));

const CASES: &[Case] = &[
    // A volume is made, published, found and removed.
    ("life", life),
    // A copy is the same in everything and its own.
    ("copies_are_faithful", copies_are_faithful),
    // A snapshot stays when its volume changes.
    ("snapshots_stay", snapshots_stay),
    // A sealed volume can still be copied.
    ("sealed", sealed),
    // Subvolumes inside are copied and removed.
    ("nested", nested),
    // A limit holds, and is lifted.
    ("limits", limits),
    // Usage is told for each volume.
    ("usage", usage),
    // A tree deeper than any path is removed.
    ("deep", deep),
    // What is absent is removed already.
    ("absent", absent),
    // What is not known is set aside.
    ("set_aside", set_aside),
    // A failed copy leaves nothing.
    ("failed_copy", failed_copy),
    // The pool opens again with everything in it.
    ("reopened", reopened),
    // Space is told.
    ("space", space),
];

type Kind = (&'static str, fn() -> Option<TestPool>);

const POOLS: &[Kind] = &[
    ("dir", || Some(support::dir_pool())),
    ("dir_on_xfs_with_quotas", support::dir_quota_pool),
    ("dir_on_ext4_with_quotas", support::dir_ext4_quota_pool),
    ("btrfs_in_a_loop_file", || Some(support::btrfs_pool())),
    ("btrfs_in_a_directory", support::btrfs_path_pool),
];

/// Not the libtest harness: the namespace must be taken while there is one thread. Understands as
/// much of its command line as cargo and nextest use.
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|a| a == flag);
    let wanted = args.iter().find(|a| !a.starts_with('-') && *a != "terse");
    let names = POOLS
        .iter()
        .flat_map(|pool| CASES.iter().map(move |case| (pool, case)));
    let chosen: Vec<_> = names
        .filter(|(pool, case)| {
            let name = format!("{}::{}", pool.0, case.0);
            match wanted {
                Some(wanted) if has("--exact") => name == *wanted,
                Some(wanted) => name.contains(wanted),
                None => true,
            }
        })
        .collect();
    if has("--list") {
        if !has("--ignored") {
            for (pool, case) in chosen {
                println!("{}::{}: test", pool.0, case.0);
            }
        }
        return;
    }
    if !support::is_root() {
        return;
    }
    support::private_mounts();
    let mut skipped = "";
    for ((label, make), (name, case)) in chosen {
        if *label == skipped {
            continue;
        }
        let Some(pool) = make() else {
            skipped = label;
            continue;
        };
        let started = std::time::Instant::now();
        case(&pool);
        println!("ok  {label}::{name} ({:?})", started.elapsed());
    }
}

fn uid() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// Path by which a test reaches a volume: through the descriptor, as the service does.
fn path(pool: &TestPool, place: &Place) -> (std::os::fd::OwnedFd, PathBuf) {
    let fd = pool.driver().open(place).expect("an open volume");
    let path = PathBuf::from(host::fs::proc_path(fd.as_fd()));
    (fd, path)
}

fn volume(pool: &TestPool, quota: u32) -> Place {
    let place = Place::volume(&uid(), 1);
    let driver = pool.driver();
    driver
        .create(&place.staged(), Some(quota))
        .expect("created");
    driver.publish(&place).expect("published");
    place
}

fn names(pool: &TestPool) -> HashSet<String> {
    pool.driver()
        .entries()
        .expect("entries")
        .into_iter()
        .map(|f| f.name)
        .collect()
}

const QUOTA: u32 = berth_storage::model::QUOTA_BASE + 7;

fn life(pool: &TestPool) {
    let driver = pool.driver();
    let place = Place::volume(&uid(), 1);
    driver
        .create(&place.staged(), Some(QUOTA))
        .expect("created");
    assert_eq!(names(pool), HashSet::from([place.staged().name()]));
    assert!(driver.open(&place).is_err());
    driver.publish(&place).expect("published");
    driver.publish(&place).expect("twice is fine");
    let found = driver.entries().expect("entries");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].place.as_ref(), Some(&place));
    let (_fd, path) = path(pool, &place);
    let meta = std::fs::metadata(&path).expect("metadata");
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (0, 0, 0o755)
    );
    let area = rustix::fs::fstat(driver.top().area(Area::Volumes)).expect("stat");
    assert_eq!(
        area.st_mode & 0o777,
        0o700,
        "users of the host must not get in"
    );
    driver.remove(place.area, &place.name()).expect("removed");
    assert!(names(pool).is_empty());
}

fn fill(path: &std::path::Path) {
    std::fs::create_dir_all(path.join("rootfs/etc")).expect("dir");
    std::fs::write(path.join("rootfs/etc/hostname"), "c1\n").expect("file");
    std::fs::hard_link(path.join("rootfs/etc/hostname"), path.join("rootfs/name")).expect("link");
    std::os::unix::fs::symlink("/etc/hostname", path.join("rootfs/link")).expect("symlink");
    let mut file = std::fs::File::create(path.join("rootfs/sparse")).expect("file");
    file.seek(SeekFrom::Start(64 << 20)).expect("seek");
    file.write_all(b"end").expect("write");
    let tool = path.join("rootfs/tool");
    std::fs::write(&tool, "#!/bin/sh\n").expect("file");
    std::os::unix::fs::chown(&tool, Some(1000), Some(2000)).expect("chown");
    rustix::fs::setxattr(
        &tool,
        c"user.note",
        b"hello",
        rustix::fs::XattrFlags::empty(),
    )
    .expect("attribute");
    // VFS_CAP_REVISION_2, cap_net_raw: what ping has.
    let cap = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&tool, c"security.capability", &cap, none).expect("capability");
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o4755)).expect("mode");
    let node = |name: &str, kind, dev| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path.join(name), kind, mode, dev).expect("node");
    };
    node(
        "rootfs/null",
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::makedev(1, 3),
    );
    node("rootfs/fifo", rustix::fs::FileType::Fifo, 0);
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123);
    std::fs::File::open(path.join("rootfs/etc"))
        .expect("dir")
        .set_modified(old)
        .expect("time");
}

fn copies_are_faithful(pool: &TestPool) {
    let driver = pool.driver();
    let from = volume(pool, QUOTA);
    let (_a, source) = path(pool, &from);
    fill(&source);
    let to = Place::volume(&uid(), 1);
    driver
        .copy(&from, &to.staged(), Some(QUOTA + 1), false)
        .expect("copied");
    driver.publish(&to).expect("published");
    let (_b, copy) = path(pool, &to);
    let meta = |p: &std::path::Path, n: &str| p.join(n).symlink_metadata().expect("metadata");
    for name in [
        "rootfs",
        "rootfs/etc",
        "rootfs/etc/hostname",
        "rootfs/link",
        "rootfs/sparse",
        "rootfs/tool",
        "rootfs/null",
        "rootfs/fifo",
    ] {
        let (a, b) = (meta(&source, name), meta(&copy, name));
        let facts = |m: &std::fs::Metadata| {
            (
                m.mode(),
                m.uid(),
                m.gid(),
                m.len() * u64::from(m.is_file()),
                m.rdev(),
                m.mtime(),
                m.mtime_nsec(),
            )
        };
        assert_eq!(facts(&a), facts(&b), "{name}");
    }
    assert_eq!(meta(&copy, "rootfs/tool").mode() & 0o7777, 0o4755);
    assert!(meta(&copy, "rootfs/null").file_type().is_char_device());
    assert!(
        meta(&copy, "rootfs/sparse").blocks() < 1000,
        "holes stay holes"
    );
    let inode = meta(&copy, "rootfs/name").ino();
    assert_eq!(
        inode,
        meta(&copy, "rootfs/etc/hostname").ino(),
        "hard links stay links"
    );
    assert_eq!(
        std::fs::read_link(copy.join("rootfs/link")).expect("link"),
        PathBuf::from("/etc/hostname")
    );
    let mut value = [0_u8; 64];
    for name in [c"user.note", c"security.capability"] {
        let n = rustix::fs::getxattr(copy.join("rootfs/tool"), name, &mut value[..]);
        assert!(n.is_ok_and(|n| n > 0), "{name:?}");
    }
    std::fs::write(copy.join("rootfs/etc/hostname"), "c2\n").expect("write");
    let there = std::fs::read_to_string(source.join("rootfs/etc/hostname")).expect("read");
    assert_eq!(there, "c1\n", "a copy is its own");
}

fn snapshots_stay(pool: &TestPool) {
    let driver = pool.driver();
    let from = volume(pool, QUOTA);
    let (_fd, source) = path(pool, &from);
    std::fs::write(source.join("file"), "before").expect("write");
    let snapshot = Place::snapshot(&uid());
    driver
        .copy(&from, &snapshot.staged(), None, true)
        .expect("snapshot");
    driver
        .publish(&snapshot)
        .expect("a read-only snapshot is published too");
    std::fs::write(source.join("file"), "after").expect("write");
    let (_fd, kept) = path(pool, &snapshot);
    assert_eq!(
        std::fs::read_to_string(kept.join("file")).expect("read"),
        "before"
    );
    let next = Place::volume(&from.uid, 2);
    driver
        .copy(&snapshot, &next, Some(QUOTA + 2), false)
        .expect("restored");
    driver
        .remove(from.area, &from.name())
        .expect("the old contents go");
    let (_fd, restored) = path(pool, &next);
    assert_eq!(
        std::fs::read_to_string(restored.join("file")).expect("read"),
        "before"
    );
    std::fs::write(restored.join("file"), "writable").expect("a restored volume is writable");
    driver
        .remove(snapshot.area, &snapshot.name())
        .expect("removed");
    assert_eq!(names(pool), HashSet::from([next.name()]));
}

fn sealed(pool: &TestPool) {
    let driver = pool.driver();
    let image = volume(pool, QUOTA);
    let (fd, source) = path(pool, &image);
    std::fs::write(source.join("file"), "image").expect("write");
    driver.seal(&image).expect("sealed");
    drop(fd);
    let clone = Place::volume(&uid(), 1);
    driver
        .copy(&image, &clone.staged(), Some(QUOTA + 1), false)
        .expect("cloned");
    driver.publish(&clone).expect("published");
    let (_fd, path) = path(pool, &clone);
    std::fs::write(path.join("file"), "mine").expect("a clone is writable");
    driver
        .remove(image.area, &image.name())
        .expect("a sealed volume is removed");
}

fn nested(pool: &TestPool) {
    let driver = pool.driver();
    let from = volume(pool, QUOTA);
    let (fd, source) = path(pool, &from);
    if pool.setup.driver == "btrfs" {
        host::btrfs::create(&fd, "outer", None).expect("as a guest does");
        let outer = host::btrfs::open_nested(&fd, b"outer").expect("open");
        std::fs::create_dir(source.join("outer/deep")).expect("dir");
        let deep = host::btrfs::open_nested(&outer, b"deep").expect("open");
        host::btrfs::create(&deep, "inner", None).expect("as a guest does");
    } else {
        std::fs::create_dir_all(source.join("outer/deep/inner")).expect("dirs");
    }
    std::fs::write(source.join("outer/deep/inner/file"), "kept").expect("write");
    let snapshot = Place::snapshot(&uid());
    driver
        .copy(&from, &snapshot.staged(), None, true)
        .expect("snapshot");
    driver.publish(&snapshot).expect("published");
    let clone = Place::volume(&uid(), 1);
    driver
        .copy(&snapshot, &clone, Some(QUOTA + 1), false)
        .expect("clone of the snapshot");
    let (_fd, copy) = path(pool, &clone);
    let file = copy.join("outer/deep/inner/file");
    assert_eq!(std::fs::read_to_string(&file).expect("read"), "kept");
    std::fs::write(&file, "writable").expect("write");
    for place in [from, snapshot, clone] {
        driver
            .remove(place.area, &place.name())
            .expect("removed with what is nested");
    }
    assert!(names(pool).is_empty());
}

fn write_mib(path: &std::path::Path, mib: usize) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let mut noise = vec![0_u8; 1 << 20];
    let mut random = std::fs::File::open("/dev/urandom")?;
    for _ in 0..mib {
        random.read_exact(&mut noise)?;
        file.write_all(&noise)?;
    }
    file.sync_all()
}

fn limits(pool: &TestPool) {
    let driver = pool.driver();
    let place = volume(pool, QUOTA);
    let (_fd, path) = path(pool, &place);
    let has = driver.has_quota();
    driver
        .set_limit(&place, QUOTA, Some(8 << 20))
        .expect("a limit is taken");
    if !has {
        write_mib(&path.join("big"), 16).expect("nothing limits, and the pool says so");
        return;
    }
    write_mib(&path.join("small"), 2).expect("there is room");
    let error = write_mib(&path.join("big"), 16).expect_err("there is no room");
    assert!(
        matches!(error.raw_os_error(), Some(libc::EDQUOT | libc::ENOSPC)),
        "{error}"
    );
    driver
        .set_limit(&place, QUOTA, Some(64 << 20))
        .expect("raised");
    write_mib(&path.join("big"), 16).expect("there is room now");
    driver.set_limit(&place, QUOTA, None).expect("lifted");
    write_mib(&path.join("bigger"), 80).expect("nothing limits");
    let mapped = Error::io("writing", std::io::Error::from_raw_os_error(libc::EDQUOT));
    assert!(matches!(mapped, Error::Full(_)));
}

fn usage(pool: &TestPool) {
    let driver = pool.driver();
    let (small, large) = (volume(pool, QUOTA), volume(pool, QUOTA + 1));
    for (place, quota) in [(&small, QUOTA), (&large, QUOTA + 1)] {
        // An existing btrfs counts from when it is first asked to limit.
        driver
            .set_limit(place, quota, Some(512 << 20))
            .expect("limit");
    }
    let (_a, a) = path(pool, &small);
    let (_b, b) = path(pool, &large);
    write_mib(&a.join("file"), 3).expect("write");
    write_mib(&b.join("file"), 20).expect("write");
    driver.flush().expect("flushed");
    let used = driver.usage(&[QUOTA, QUOTA + 1]).expect("usage");
    if !driver.has_quota() {
        assert!(used.is_empty(), "what can't be told is left out");
        return;
    }
    let near = |id: u32, mib: u64| {
        let bytes = used.get(&id).copied().unwrap_or(0);
        assert!(
            bytes >= mib << 20 && bytes < (mib + 2) << 20,
            "{id}: {bytes}"
        );
    };
    near(QUOTA, 3);
    near(QUOTA + 1, 20);
    driver.remove(large.area, &large.name()).expect("removed");
    driver
        .collect_quotas(&HashSet::from([QUOTA]))
        .expect("collected");
    assert!(driver.usage(&[QUOTA]).expect("usage").contains_key(&QUOTA));
}

fn deep(pool: &TestPool) {
    let place = volume(pool, QUOTA);
    let (fd, _) = path(pool, &place);
    let mut dir = fd;
    for _ in 0..5000 {
        dir = host::fs::ensure_dir(&dir, "d", 0o755).expect("a deeper directory");
    }
    pool.driver()
        .remove(place.area, &place.name())
        .expect("removed");
    assert!(names(pool).is_empty());
}

fn absent(pool: &TestPool) {
    let place = Place::volume(&uid(), 1);
    pool.driver()
        .remove(place.area, &place.name())
        .expect("nothing to do");
    assert!(
        pool.driver().publish(&place).is_err(),
        "nothing can't be published"
    );
}

fn set_aside(pool: &TestPool) {
    let driver = pool.driver();
    host::fs::ensure_dir(driver.top().area(Area::Volumes), "holiday", 0o755).expect("made");
    let found = driver.entries().expect("entries");
    assert_eq!(found.len(), 1);
    assert!(found[0].place.is_none());
    let to = driver
        .set_aside(Area::Volumes, "holiday")
        .expect("set aside");
    assert!(
        driver.entries().expect("entries").is_empty(),
        "it is out of the way"
    );
    assert!(
        host::fs::exists(driver.top().area(Area::Volumes), &to).expect("yes"),
        "and there"
    );
    driver
        .remove(Area::Volumes, &to)
        .expect("tidied for the next case");
}

fn failed_copy(pool: &TestPool) {
    let driver = pool.driver();
    let ghost = Place::volume(&uid(), 1);
    let to = Place::volume(&uid(), 1);
    driver
        .copy(&ghost, &to.staged(), Some(QUOTA), false)
        .expect_err("there is no source");
    assert!(names(pool).is_empty());
}

fn reopened(pool: &TestPool) {
    let place = volume(pool, QUOTA);
    let (_fd, path) = path(pool, &place);
    std::fs::write(path.join("file"), "there").expect("write");
    let again = driver::open(&pool.setup).expect("opened beside the first");
    assert_eq!(
        again.access(),
        pool.driver().access(),
        "the same device, never a second one"
    );
    let fd = again.open(&place).expect("open");
    let seen = PathBuf::from(host::fs::proc_path(fd.as_fd())).join("file");
    assert_eq!(std::fs::read_to_string(seen).expect("read"), "there");
    let mut other = pool.setup.clone();
    if !other.fs_uuid.is_empty() {
        other.fs_uuid = uid();
        let error = driver::open(&other)
            .err()
            .expect("another filesystem is refused");
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
    }
}

fn space(pool: &TestPool) {
    let space = pool.driver().space().expect("space");
    assert!(space.total > 0 && space.used <= space.total, "{space:?}");
    let grown = pool.driver().grow(2 << 30);
    if pool.label == "btrfs in a loop file" {
        grown.expect("a loop pool grows");
        assert_eq!(pool.driver().space().expect("space").total, 2 << 30);
        pool.driver().grow(1 << 30).expect_err("and doesn't shrink");
    } else {
        grown.expect_err("this pool has no size of its own");
    }
}
