//! Hostile and honest archives, unpacked as the service does it: whatever an archive says, nothing
//! outside the volume changes, and what is refused is refused by a sentence.

mod support;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_storage::error::Error;
use berth_storage::host;
use berth_storage::source::{BlobRoots, BlobSource, Format, ImageSource, Limits, Part, unpack};
use support::{Archive, METADATA, sha256};

/// A place to unpack into, with something beside it that must not change.
struct Place {
    dir: tempfile::TempDir,
    canary: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("volume")).expect("a directory");
        std::fs::create_dir(dir.path().join("blobs")).expect("a directory");
        let canary = dir.path().join("canary");
        std::fs::write(&canary, "untouched").expect("a file");
        Self { dir, canary }
    }

    fn volume(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    fn blob(&self, name: &str, bytes: &[u8], format: Format, part: Part) -> BlobSource {
        let path = self.dir.path().join("blobs").join(name);
        std::fs::write(&path, bytes).expect("a blob");
        BlobSource {
            path,
            sha256: sha256(bytes),
            size: bytes.len() as u64,
            format,
            part,
        }
    }

    fn roots(&self) -> BlobRoots {
        BlobRoots::new(vec![self.dir.path().join("blobs")])
    }

    /// As the service: on a thread that ends with it.
    fn unpack(&self, image: ImageSource, limits: Limits) -> Result<(), Error> {
        let top: OwnedFd = host::fs::open_admin_dir(&self.volume()).expect("open");
        let roots = self.roots();
        let done = std::thread::spawn(move || unpack(&roots, limits, &image, &top))
            .join()
            .expect("the thread doesn't panic");
        // The thread was locked up; this one must not be.
        assert!(Path::new("/proc/self").exists());
        assert_eq!(
            std::fs::read_to_string(&self.canary).expect("canary"),
            "untouched"
        );
        let names: Vec<_> = std::fs::read_dir(self.dir.path()).expect("list").collect();
        assert_eq!(
            names.len(),
            3,
            "something was made beside the volume: {names:?}"
        );
        done
    }

    fn unified(&self, bytes: &[u8], format: Format) -> Result<(), Error> {
        let blob = self.blob("image", bytes, format, Part::Unified);
        let image = ImageSource::new(blob.sha256.clone(), vec![blob]).expect("an image");
        self.unpack(image, Limits::default())
    }
}

fn refused(archive: &mut Archive) -> String {
    let place = Place::new();
    let error = place
        .unified(&archive.end(), Format::Tar)
        .expect_err("this must be refused");
    assert!(
        matches!(error, Error::Archive(_) | Error::Unsupported(_)),
        "{error:?}"
    );
    error.to_string()
}

fn taken(archive: &mut Archive) -> Place {
    let place = Place::new();
    place
        .unified(&archive.end(), Format::Tar)
        .expect("this is a good image");
    place
}

#[test]
fn paths_that_lead_out_are_refused() {
    if !support::is_root() {
        return;
    }
    for path in [
        "../canary",
        "rootfs/../../canary",
        "rootfs/a/../../../canary",
        "/etc/passwd",
        "//canary",
        "rootfs/..",
        "..",
    ] {
        let sentence = refused(Archive::image().file(path, b"evil"));
        assert!(
            sentence.contains("upwards") || sentence.contains("absolute"),
            "{sentence}"
        );
        refused(Archive::image().dir(path));
        refused(Archive::image().symlink(path, "x"));
        refused(Archive::image().hardlink("rootfs/x", path));
        refused(
            Archive::image()
                .pax(&[("path", path.as_bytes())])
                .file("rootfs/ok", b"evil"),
        );
    }
}

#[test]
fn links_are_made_and_never_followed() {
    if !support::is_root() {
        return;
    }
    for target in [
        "/",
        "..",
        "../..",
        "/proc/self/cwd",
        "/proc/1/root",
        "../../canary",
        ".",
    ] {
        let through = |archive: &mut Archive| {
            let sentence = refused(archive);
            assert!(sentence.contains("goes through"), "{target}: {sentence}");
        };
        through(
            Archive::image()
                .symlink("rootfs/out", target)
                .file("rootfs/out/canary", b"evil"),
        );
        through(
            Archive::image()
                .symlink("rootfs/out", target)
                .dir("rootfs/out/sub/dir"),
        );
        through(
            Archive::image()
                .symlink("rootfs/out", target)
                .symlink("rootfs/out/l", "x"),
        );
        refused(
            Archive::image()
                .symlink("rootfs/out", target)
                .hardlink("rootfs/x", "rootfs/out/canary"),
        );
        // Links instead of the image's own directories.
        refused(
            Archive::new()
                .file("metadata.yaml", METADATA)
                .symlink("rootfs", target),
        );
        refused(Archive::image().symlink("templates", target));
        refused(
            Archive::image()
                .dir("templates")
                .symlink("templates/t.tpl", target),
        );
        refused(
            Archive::new()
                .dir("rootfs")
                .symlink("metadata.yaml", target),
        );
    }
    // A link, then a file of the same name: the link goes, its target stays.
    let place = taken(
        Archive::image()
            .symlink("rootfs/out", "../../canary")
            .file("rootfs/out", b"mine"),
    );
    let out = place.volume().join("rootfs/out");
    assert!(out.symlink_metadata().expect("there").is_file());
    // The same with a directory: made anew, not entered through the link.
    let place = taken(
        Archive::image()
            .symlink("rootfs/d", "/")
            .dir("rootfs/d")
            .file("rootfs/d/f", b"in"),
    );
    assert!(
        place
            .volume()
            .join("rootfs/d")
            .symlink_metadata()
            .expect("there")
            .is_dir()
    );
    // A hard link to a link is another name of the link.
    let place = taken(
        Archive::image()
            .symlink("rootfs/l", "../../canary")
            .hardlink("rootfs/h", "rootfs/l"),
    );
    assert!(
        place
            .volume()
            .join("rootfs/h")
            .symlink_metadata()
            .expect("there")
            .is_symlink()
    );
}

#[test]
fn hard_links_stay_inside_the_root_filesystem() {
    if !support::is_root() {
        return;
    }
    refused(Archive::image().hardlink("rootfs/m", "metadata.yaml"));
    refused(Archive::image().hardlink("rootfs/m", "../blobs/image"));
    refused(Archive::image().hardlink("rootfs/m", "rootfs/absent"));
    refused(Archive::image().hardlink("metadata.yaml", "rootfs/x"));
    refused(
        Archive::image()
            .dir("rootfs/d")
            .hardlink("rootfs/m", "rootfs/d"),
    );
    let place = taken(
        Archive::image()
            .file("rootfs/a", b"x")
            .hardlink("rootfs/b", "rootfs/a"),
    );
    let inode = |n: &str| place.volume().join(n).metadata().expect("there").ino();
    assert_eq!(inode("rootfs/a"), inode("rootfs/b"));
}

#[test]
fn what_is_no_image_is_refused() {
    if !support::is_root() {
        return;
    }
    assert!(refused(Archive::new().dir("rootfs")).contains("metadata.yaml"));
    assert!(refused(Archive::new().file("metadata.yaml", METADATA)).contains("rootfs"));
    refused(
        Archive::new()
            .file("metadata.yaml", METADATA)
            .file("rootfs", b"a file"),
    );
    refused(
        Archive::new()
            .file("metadata.yaml", &vec![b'a'; 2 << 20])
            .dir("rootfs"),
    );
    assert!(refused(Archive::image().file("rootfs.img", b"QFI")).contains("virtual machine"));
    refused(Archive::image().raw(b"rootfs/m", b'M', 0o644, b"", b"multi-volume"));
    refused(Archive::image().raw(b"rootfs/s", b'2', 0o777, b"x", b"a link with data"));
    refused(
        Archive::image()
            .file("rootfs/d/f", b"x")
            .file("rootfs/d", b"where a directory is"),
    );
    refused(
        Archive::image()
            .file("rootfs/f", b"x")
            .file("rootfs/f/g", b"through a file"),
    );
    refused(Archive::image().file(&format!("rootfs/{}", "x".repeat(300)), b"long"));
    refused(Archive::image().file(&format!("rootfs/{}", "d/".repeat(3000)), b"deep"));
    refused(
        Archive::image()
            .raw(b"rootfs/a\0b", b'0', 0o644, b"", b"x")
            .pax(&[("path", b"rootfs/a\0b")])
            .file("rootfs/x", b"y"),
    );
    // What isn't part of an image is left out, even where it means harm.
    let place = taken(
        Archive::image()
            .symlink("exec-output", "/etc")
            .file("backup.yaml", b"x"),
    );
    let mut names: Vec<_> = std::fs::read_dir(place.volume())
        .expect("list")
        .map(|e| e.expect("entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["metadata.yaml", "rootfs"]);
}

#[test]
fn broken_streams_are_refused_and_never_crash() {
    if !support::is_root() {
        return;
    }
    let whole = Archive::image().file("rootfs/f", &[7; 3000]).end();
    let place = Place::new();
    for cut in [0, 100, 512, 700, 1600, 2100] {
        place
            .unified(&whole[..cut], Format::Tar)
            .expect_err("cut off");
    }
    for format in [
        Format::TarGzip,
        Format::TarXz,
        Format::TarZstd,
        Format::TarBzip2,
        Format::Tar,
    ] {
        place
            .unified(b"junk that is no archive of any kind at all", format)
            .expect_err("junk");
        if format != Format::Tar {
            place.unified(&whole, format).expect_err("not packed");
            let packed = pack(&whole, format);
            place
                .unified(&packed[..packed.len() / 2], format)
                .expect_err("cut off");
            let mut flipped = packed.clone();
            let at = flipped.len() / 2;
            flipped[at] ^= 0x55;
            // bit rot is found by the decoder or by the tar's own checks, or is harmless padding;
            // what counts is that nothing panics and nothing leads out.
            let _ = place.unified(&flipped, format);
        }
    }
    let mut huge = Archive::image();
    huge.block(b"rootfs/f", b'0', 0o644, b"", b"little", (8 << 30) - 1);
    let error = place
        .unified(&huge.end(), Format::Tar)
        .expect_err("a lie about a size");
    assert!(error.to_string().contains("too early"), "{error}");
    let mut long = Archive::image();
    long.block(b"x", b'x', 0o644, b"", b"9 a=b\n", 4 << 30);
    let error = place
        .unified(&long.end(), Format::Tar)
        .expect_err("memory is not taken");
    assert!(error.to_string().contains("too large"), "{error}");
}

#[test]
fn bombs_do_not_go_off() {
    if !support::is_root() {
        return;
    }
    let limits = Limits {
        max_bytes: 4 << 20,
        max_entries: 100,
        ..Limits::default()
    };
    let place = Place::new();
    let run = |bytes: Vec<u8>, format| {
        let blob = place.blob("image", &bytes, format, Part::Unified);
        let image = ImageSource::new(blob.sha256.clone(), vec![blob]).expect("an image");
        place.unpack(image, limits).expect_err("a bomb").to_string()
    };
    let zeros = Archive::image()
        .file("rootfs/zeros", &vec![0; 8 << 20])
        .end();
    for format in [
        Format::TarGzip,
        Format::TarXz,
        Format::TarZstd,
        Format::TarBzip2,
    ] {
        let sentence = run(pack(&zeros, format), format);
        assert!(sentence.contains("unpacks to more than"), "{sentence}");
    }
    let mut many = Archive::image();
    for i in 0..200 {
        many.file(&format!("rootfs/f{i}"), b"");
    }
    assert!(run(many.end(), Format::Tar).contains("entries"));
    // Directories nobody listed count too.
    let mut deep = Archive::image();
    deep.file(&format!("rootfs/{}f", "d/".repeat(300)), b"");
    assert!(run(deep.end(), Format::Tar).contains("entries"));
}

#[test]
fn the_ratio_counts_from_a_gibibyte_on() {
    let mut meter = berth_storage::source::limits::Meter::new(Limits::default(), 1000);
    meter
        .bytes(1 << 30)
        .expect("small images of zeros are fine");
    let error = meter.bytes(1).expect_err("a million times its size");
    assert!(error.to_string().contains("200 times"), "{error}");
}

#[test]
fn digests_are_checked() {
    if !support::is_root() {
        return;
    }
    let bytes = Archive::image().file("rootfs/f", b"x").end();
    let place = Place::new();
    let blob = place.blob("image", &bytes, Format::Tar, Part::Unified);
    let with = |change: &dyn Fn(&mut BlobSource)| {
        let mut blob = blob.clone();
        change(&mut blob);
        let image = ImageSource::new(blob.sha256.clone(), vec![blob]).expect("an image");
        place.unpack(image, Limits::default())
    };
    let wrong = with(&|b| b.sha256 = "0".repeat(64)).expect_err("another digest");
    assert!(wrong.to_string().contains("sha256"), "{wrong}");
    with(&|b| b.size += 1).expect_err("another size");
    with(&|b| b.path = place.canary.clone()).expect_err("outside of the roots");
    with(&|b| b.path = place.dir.path().join("blobs/../canary")).expect_err("outside by ..");
    with(&|b| b.path = PathBuf::from("/etc/passwd")).expect_err("outside");
    std::os::unix::fs::symlink(&blob.path, place.dir.path().join("blobs/link")).expect("link");
    with(&|b| b.path = place.dir.path().join("blobs/link")).expect_err("a link");
    let image = ImageSource::new("1".repeat(64), vec![blob.clone()]).expect("an image");
    let wrong = place
        .unpack(image, Limits::default())
        .expect_err("another fingerprint");
    assert!(wrong.to_string().contains("fingerprint"), "{wrong}");
}

fn pack(bytes: &[u8], format: Format) -> Vec<u8> {
    match format {
        Format::TarGzip => {
            let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            to.write_all(bytes).expect("write");
            to.finish().expect("packed")
        }
        Format::TarXz => {
            let mut to = liblzma::write::XzEncoder::new(Vec::new(), 1);
            to.write_all(bytes).expect("write");
            to.finish().expect("packed")
        }
        Format::TarZstd => zstd::encode_all(bytes, 1).expect("packed"),
        Format::TarBzip2 => {
            let mut to = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            to.write_all(bytes).expect("write");
            to.finish().expect("packed")
        }
        Format::Tar | Format::Squashfs => bytes.to_vec(),
    }
}

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
