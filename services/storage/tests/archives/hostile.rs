//! Archives that mean harm.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::support::{Archive, METADATA};
use berth_storage::source::{BlobSource, Format, ImageSource, Limits, Location, Part};

use crate::place::{Place, pack, refused, taken};
use crate::support;

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

/// What is left out of a volume has to be unpacked all the same.
#[test]
fn bombs_beside_the_image_do_not_go_off() {
    if !support::is_root() {
        return;
    }
    let limits = Limits {
        max_bytes: 1 << 20,
        max_entries: 100,
        ..Limits::default()
    };
    let place = Place::new();
    let beside = Archive::image()
        .file("elsewhere/zeros", &vec![0; 8 << 20])
        .end();
    let mut headers = Archive::image();
    for _ in 0..4096 {
        headers.raw(b"label", b'V', 0o644, b"", b"");
    }
    for bytes in [beside, headers.end()] {
        let bytes = pack(&bytes, Format::TarGzip);
        let blob = place.blob("image", &bytes, Format::TarGzip, Part::Unified);
        let image = ImageSource::new(blob.sha256.clone(), vec![blob]).expect("an image");
        let error = place.unpack(image, limits).expect_err("a bomb");
        assert!(error.to_string().contains("limits allow"), "{error}");
    }
}

/// Global headers stay in memory and go with every entry.
#[test]
fn global_headers_are_bounded_together() {
    if !support::is_root() {
        return;
    }
    let mut archive = Archive::image();
    for i in 0..8 {
        let text = format!("k{i}={}\n", "x".repeat(20_000));
        let length = text.len() + 6;
        let record = format!("{length} {text}");
        assert_eq!(record.len(), length);
        archive.raw(b"g", b'g', 0o644, b"", record.as_bytes());
    }
    let sentence = refused(&mut archive);
    assert!(sentence.contains("global headers"), "{sentence}");
}

/// A directory that lists itself costs memory at each level, long before its path is too long.
#[test]
fn a_squashfs_directory_may_not_hold_itself() {
    if !support::is_root() {
        return;
    }
    let place = Place::new();
    let from = tempfile::tempdir().expect("a directory");
    let rootfs = from.path().join("rootfs");
    std::fs::create_dir_all(rootfs.join("a")).expect("a directory");
    for i in 0..100 {
        std::fs::write(rootfs.join(format!("f{i}")), "").expect("a file");
    }
    std::fs::write(from.path().join("metadata.yaml"), METADATA).expect("a file");
    let packed = place.dir.path().join("blobs/packed");
    let made = std::process::Command::new("mksquashfs")
        .arg(from.path())
        .arg(&packed)
        .args(["-quiet", "-no-progress", "-noI", "-no-xattrs"])
        .status()
        .expect("mksquashfs is installed");
    assert!(made.success());
    let mut bytes = std::fs::read(&packed).expect("a squashfs");
    let table = u64::from_le_bytes(bytes[64..72].try_into().expect("eight bytes"));
    let first = usize::try_from(table).expect("small") + 2;
    // Every inode here is one of 32 bytes; directories say how long their listing is at 24.
    let size = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at + 24], bytes[at + 25]]);
    let directories: Vec<usize> = (0..103)
        .map(|i| first + i * 32)
        .filter(|at| bytes[*at..*at + 2] == [1, 0])
        .collect();
    let full = *directories
        .iter()
        .max_by_key(|at| size(&bytes, **at))
        .expect("rootfs");
    let empty = *directories
        .iter()
        .find(|at| size(&bytes, **at) == 3)
        .expect("a");
    // Where the listing begins (block and offset) and its length.
    for range in [16..20, 24..28] {
        let part = bytes[full + range.start..full + range.end].to_vec();
        bytes[empty + range.start..empty + range.end].copy_from_slice(&part);
    }
    let limits = Limits {
        max_entries: 250,
        ..Limits::default()
    };
    let blob = place.blob("image", &bytes, Format::Squashfs, Part::Unified);
    let image = ImageSource::new(blob.sha256.clone(), vec![blob]).expect("an image");
    let error = place.unpack(image, limits).expect_err("it has no end");
    assert!(error.to_string().contains("list too many names"), "{error}");
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
    let at = |path: PathBuf| with(&|b| b.location = Location::Path(path.clone()));
    at(place.canary.clone()).expect_err("outside of the roots");
    at(place.dir.path().join("blobs/../canary")).expect_err("outside by ..");
    at(PathBuf::from("/etc/passwd")).expect_err("outside");
    let blobs = place.dir.path().join("blobs");
    std::os::unix::fs::symlink(blobs.join("image"), blobs.join("link")).expect("link");
    at(blobs.join("link")).expect_err("a link");
    let image = ImageSource::new("1".repeat(64), vec![blob.clone()]).expect("an image");
    let wrong = place
        .unpack(image, Limits::default())
        .expect_err("another fingerprint");
    assert!(wrong.to_string().contains("fingerprint"), "{wrong}");
}
