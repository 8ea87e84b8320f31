//! Archives that real tools make, and damaged ones of them.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use crate::support::{Archive, METADATA, sha256};
use berth_storage::host;
use berth_storage::source::{Format, ImageSource, Limits, Part};

use crate::place::{Place, pack};
use crate::support;

#[test]
fn an_honest_image_keeps_everything_in_every_packing() {
    if !support::is_root() {
        return;
    }
    let cap = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let long = format!(
        "rootfs/{}/file",
        ["directory-with-a-long-name"; 8].join("/")
    );
    let bytes = Archive::image()
        .dir("./rootfs/etc/")
        .file("./rootfs/etc/hostname", b"c1\n")
        .file(&long, b"far away")
        .raw(b"rootfs/su", b'0', 0o4755, b"", b"set-id")
        .pax(&[
            ("SCHILY.xattr.security.capability", &cap[..]),
            ("SCHILY.xattr.user.note", b"hello"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("uid", b"100000"),
            ("gid", b"2097152"),
            ("mtime", b"1234567890.5"),
        ])
        .file("rootfs/ping", b"elf")
        .symlink("rootfs/lib", "usr/lib")
        .raw(b"rootfs/sda", b'4', 0o600, b"", b"")
        .raw(b"rootfs/fifo", b'6', 0o600, b"", b"")
        .end();
    for format in [
        Format::Tar,
        Format::TarGzip,
        Format::TarXz,
        Format::TarZstd,
        Format::TarBzip2,
    ] {
        let place = Place::new();
        place
            .unified(&pack(&bytes, format), format)
            .expect("a good image");
        let at = |name: &str| place.volume().join(name);
        let meta = |name: &str| at(name).symlink_metadata().expect("there");
        assert_eq!(std::fs::read(at("metadata.yaml")).expect("read"), METADATA);
        assert_eq!(std::fs::read(at(&long)).expect("read"), b"far away");
        assert_eq!(meta("rootfs/su").mode() & 0o7777, 0o4755);
        let ping = meta("rootfs/ping");
        assert_eq!((ping.uid(), ping.gid()), (100_000, 2_097_152));
        assert_eq!(
            (ping.mtime(), ping.mtime_nsec()),
            (1_234_567_890, 500_000_000)
        );
        assert_eq!(
            meta("rootfs/etc").mtime(),
            i64::from_str_radix("14000000000", 8).expect("t")
        );
        assert!(meta("rootfs/sda").file_type().is_block_device());
        assert_eq!(meta("rootfs/sda").rdev(), rustix::fs::makedev(8, 0));
        assert!(meta("rootfs/fifo").file_type().is_fifo());
        assert_eq!(
            std::fs::read_link(at("rootfs/lib")).expect("link"),
            Path::new("usr/lib")
        );
        let mut value = [0_u8; 64];
        let n = rustix::fs::getxattr(at("rootfs/ping"), c"security.capability", &mut value[..]);
        assert_eq!(n.map(|n| value[..n].to_vec()), Ok(cap.to_vec()));
        let n = rustix::fs::getxattr(at("rootfs/ping"), c"user.note", &mut value[..]);
        assert_eq!(n.map(|n| value[..n].to_vec()), Ok(b"hello".to_vec()));
        let n = rustix::fs::getxattr(
            at("rootfs/ping"),
            c"trusted.overlay.redirect",
            &mut value[..],
        );
        assert_eq!(
            n,
            Err(rustix::io::Errno::NODATA),
            "another machine's business"
        );
    }
}

/// A tree that real tools pack; what they wrote must come out as they would write it.
fn sample(at: &Path) {
    std::fs::create_dir_all(at.join("rootfs/usr/share")).expect("dirs");
    std::fs::write(at.join("metadata.yaml"), METADATA).expect("file");
    for i in 0..300 {
        let text = format!("file {i}\n").repeat(i);
        std::fs::write(at.join(format!("rootfs/usr/share/f{i}")), text).expect("file");
    }
    let mut big = vec![0_u8; 700_000];
    big.iter_mut()
        .enumerate()
        .for_each(|(i, b)| *b = (i * i % 251) as u8);
    std::fs::write(at.join("rootfs/big"), big).expect("file");
    std::fs::hard_link(at.join("rootfs/big"), at.join("rootfs/usr/again")).expect("link");
    std::os::unix::fs::symlink("usr/share", at.join("rootfs/link")).expect("link");
    let sparse = std::fs::File::create(at.join("rootfs/sparse")).expect("file");
    sparse.set_len(50 << 20).expect("size");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 20 << 20).expect("write");
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(at.join("rootfs/big"), c"user.note", b"n", none).expect("attribute");
    std::os::unix::fs::chown(at.join("rootfs/usr"), Some(7), Some(8)).expect("chown");
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    let kind = rustix::fs::FileType::CharacterDevice;
    let (cwd, path) = (rustix::fs::CWD, at.join("rootfs/null"));
    rustix::fs::mknodat(cwd, path, kind, mode, rustix::fs::makedev(1, 3)).expect("node");
}

fn same(a: &Path, b: &Path) {
    let out = Command::new("diff")
        .args(["-r", "--no-dereference", "-x", "null", "-x", "fifo"])
        .arg(a)
        .arg(b)
        .output();
    let out = out.expect("diff runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    let list = |at: &Path| {
        let args = ["-printf", "%P %y %m %U %G %T@ %l %n\\n"];
        let out = Command::new("find")
            .arg(at)
            .args(args)
            .output()
            .expect("find runs");
        let mut lines: Vec<String> = String::from_utf8_lossy(&out.stdout)
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    assert_eq!(list(a), list(b));
}

#[test]
fn what_gnu_tar_packs_comes_out_the_same() {
    if !support::is_root() {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    sample(source.path());
    for args in [
        &["--format=gnu", "--sparse"][..],
        &["--format=posix", "--xattrs", "--xattrs-include=*"],
        &[
            "--format=posix",
            "--sparse",
            "--sparse-version=1.0",
            "--xattrs",
        ],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=ustar"],
    ] {
        let place = Place::new();
        let out = Command::new("tar")
            .args(args)
            .args([
                "-C",
                source.path().to_str().expect("UTF-8"),
                "-cf",
                "-",
                "metadata.yaml",
                "rootfs",
            ])
            .output()
            .expect("tar runs");
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        place
            .unified(&out.stdout, Format::Tar)
            .unwrap_or_else(|e| panic!("{args:?}: {e}"));
        let (a, b) = (source.path().join("rootfs"), place.volume().join("rootfs"));
        if args[0] == "--format=posix" {
            same(&a, &b);
        } else {
            // These formats keep whole seconds only.
            let out = Command::new("diff")
                .args(["-r", "--no-dereference", "-x", "null", "-x", "fifo"])
                .arg(&a)
                .arg(&b)
                .output();
            assert!(out.expect("diff runs").status.success());
        }
        assert!(
            b.join("sparse").metadata().expect("there").blocks() < 1000,
            "holes"
        );
    }
}

#[test]
fn what_mksquashfs_packs_comes_out_the_same() {
    if !support::is_root() {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    sample(source.path());
    let metadata = Archive::new().file("metadata.yaml", METADATA).end();
    for compression in ["gzip", "xz", "zstd"] {
        let place = Place::new();
        let packed = place.dir.path().join("blobs/packed");
        let made = Command::new("mksquashfs")
            .arg(source.path().join("rootfs"))
            .arg(&packed)
            .args(["-comp", compression, "-noappend", "-no-progress"])
            .output();
        if !made.is_ok_and(|m| m.status.success()) {
            println!("squashfs skipped: mksquashfs -comp {compression} failed");
            continue;
        }
        let bytes = std::fs::read(&packed).expect("read");
        let parts = vec![
            place.blob("packed", &bytes, Format::Squashfs, Part::Rootfs),
            place.blob("meta", &metadata, Format::Tar, Part::Metadata),
        ];
        let fingerprint = sha256(&[&metadata[..], &bytes].concat());
        let image = ImageSource::new(fingerprint, parts).expect("an image");
        place
            .unpack(image, Limits::default())
            .unwrap_or_else(|e| panic!("{compression}: {e}"));
        let (a, b) = (source.path().join("rootfs"), place.volume().join("rootfs"));
        // Squashfs keeps whole seconds; everything else is the same.
        let out = Command::new("diff")
            .args(["-r", "--no-dereference", "-x", "null", "-x", "fifo"])
            .arg(&a)
            .arg(&b)
            .output();
        assert!(out.expect("diff runs").status.success());
        let meta = |n: &str| b.join(n).symlink_metadata().expect("there");
        assert_eq!(meta("big").ino(), meta("usr/again").ino(), "hard links");
        assert_eq!((meta("usr").uid(), meta("usr").gid()), (7, 8));
        assert_eq!(meta("null").rdev(), rustix::fs::makedev(1, 3));
        assert_eq!(meta("null").mode() & 0o777, 0o640);
        assert!(meta("sparse").blocks() < 1000, "holes");
        let mut value = [0_u8; 8];
        let n = rustix::fs::getxattr(b.join("big"), c"user.note", &mut value[..]);
        assert_eq!(n.map(|n| value[..n].to_vec()), Ok(b"n".to_vec()));
        squashfs_survives_damage(&bytes, &metadata);
    }
}

/// Flips bytes all over an image: refusals are fine, anything else than an answer is not.
fn squashfs_survives_damage(bytes: &[u8], metadata: &[u8]) {
    let limits = Limits {
        max_bytes: 256 << 20,
        max_entries: 20_000,
        ..Limits::default()
    };
    let mut refused = 0;
    for step in 0..60_usize {
        let mut damaged = bytes.to_vec();
        let at = if step < 30 {
            step * 3
        } else {
            // The tables are at the end.
            damaged.len() - 1 - (step * 37) % (damaged.len() / 4)
        };
        damaged[at] ^= 1 << (step % 8);
        let place = Place::new();
        let parts = vec![
            place.blob("meta", metadata, Format::Tar, Part::Metadata),
            place.blob("packed", &damaged, Format::Squashfs, Part::Rootfs),
        ];
        let fingerprint = sha256(&[metadata, &damaged].concat());
        let image = ImageSource::new(fingerprint, parts).expect("an image");
        refused += usize::from(place.unpack(image, limits).is_err());
    }
    assert!(refused > 20, "only {refused} damaged images were refused");
}

#[test]
fn a_tree_is_copied_through_descriptors_only() {
    if !support::is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::create_dir(&a).expect("dir");
    std::fs::create_dir(&b).expect("dir");
    sample(&a);
    let open = |p: &Path| host::fs::open_admin_dir(p).expect("open");
    host::tree::copy(open(&a).as_fd(), open(&b).as_fd()).expect("copied");
    same(&a, &b);
}
