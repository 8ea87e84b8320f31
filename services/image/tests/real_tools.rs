//! Images as people make them: with GNU tar and mksquashfs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use berth_proto::image::image::Type;
use common::*;
use std::path::Path;
use std::process::Command;

/// False, with a reason printed, where the tool isn't installed.
fn run(dir: &Path, line: &str) -> bool {
    let mut words = line.split(' ');
    let program = words.next().unwrap();
    let output = match Command::new(program).args(words).current_dir(dir).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {program} is not installed");
            return false;
        }
        other => other.unwrap(),
    };
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    true
}

#[tokio::test]
async fn gnu_tar_and_mksquashfs_images_are_taken() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let tree = dir.path().join("tree");
    let deep = tree
        .join("rootfs")
        .join("d".repeat(90))
        .join("e".repeat(90))
        .join("f".repeat(90));
    std::fs::create_dir_all(&deep)?;
    std::fs::create_dir_all(tree.join("templates"))?;
    std::fs::write(tree.join("metadata.yaml"), METADATA)?;
    std::fs::write(deep.join("ünïcode"), noise(70_000))?;
    // A sparse file, so that GNU's sparse headers are in the way.
    let sparse = std::fs::File::create(tree.join("rootfs/sparse"))?;
    sparse.set_len(300 << 20)?;
    std::os::unix::fs::FileExt::write_at(&sparse, b"end", 200 << 20)?;
    for i in 0..12u64 {
        std::os::unix::fs::FileExt::write_at(&sparse, b"hole", (i * 2 + 1) << 20)?;
    }
    std::os::unix::fs::symlink("/etc/passwd", tree.join("rootfs/link"))?;
    std::fs::hard_link(deep.join("ünïcode"), tree.join("rootfs/hard"))?;

    let service = Service::start(berth_testkit::TestDatabase::sqlite()).await?;
    let (mut tried, order) = (0, "rootfs templates metadata.yaml");
    for (line, extension) in [
        (
            format!("tar -S --format=gnu -czf ../out -C . {order}"),
            ".tar.gz",
        ),
        (
            format!("tar -S --format=posix -cJf ../out -C . {order}"),
            ".tar.xz",
        ),
        (
            format!("tar -S --sparse-version=0.1 --format=posix -cjf ../out {order}"),
            ".tar.bz2",
        ),
        (
            "tar --zstd -cf ../out ./rootfs ./templates ./metadata.yaml -S".to_owned(),
            ".tar.zst",
        ),
        (
            "tar --format=gnu -Scf ../out metadata.yaml templates rootfs".to_owned(),
            ".tar",
        ),
        (
            "mksquashfs . ../out -noappend -quiet -comp gzip".to_owned(),
            ".squashfs",
        ),
        (
            "mksquashfs . ../out -noappend -quiet -comp xz -b 1M".to_owned(),
            ".squashfs",
        ),
        (
            "mksquashfs . ../out -noappend -quiet -comp zstd -no-fragments".to_owned(),
            ".squashfs",
        ),
        (
            "mksquashfs . ../out -noappend -quiet -noI -noD -noF -always-use-fragments".to_owned(),
            ".squashfs",
        ),
    ] {
        if !run(&tree, &line) {
            continue;
        }
        let bytes = std::fs::read(dir.path().join("out"))?;
        let image = service.import(Upload::unified(bytes.clone())).await?;
        assert_eq!(image.r#type(), Type::Container, "{line}");
        assert_eq!(image.properties["release"], "bookworm", "{line}");
        let exported = export(&service.client, &image.name).await?;
        assert!(
            exported[0].0.ends_with(extension),
            "{line}: {}",
            exported[0].0
        );
        assert_eq!(exported[0].1, bytes);
        tried += 1;
    }
    assert!(tried >= 4, "not even tar is installed");
    if run(
        &tree,
        "mksquashfs rootfs ../root.squashfs -noappend -quiet -comp lzo",
    ) && run(&tree, "tar -cJf ../meta.tar.xz metadata.yaml templates")
    {
        let read = |name| std::fs::read(dir.path().join(name));
        let upload = Upload::split(read("meta.tar.xz")?, read("root.squashfs")?);
        let image = service.import(upload).await?;
        assert_eq!(image.blobs[1].media_type, "application/vnd.squashfs");
    }
    service.remove().await
}
