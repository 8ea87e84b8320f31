//! The stock `lxc` on images, storage and networks.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::path::Path;

use berth_e2e::{Image, Server, wait};
use serde_json::Value;
use xtask::image;
use xtask::sandbox::paths;

fn sha256(files: &[&Path]) -> String {
    let mut digest = <sha2::Sha256 as sha2::Digest>::new();
    for file in files {
        sha2::Digest::update(&mut digest, std::fs::read(file).unwrap());
    }
    hex::encode(sha2::Digest::finalize(digest))
}

/// The only file below a directory that has this suffix.
fn exported(directory: &Path, suffix: &str) -> std::path::PathBuf {
    let all: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    let fits = |path: &&std::path::PathBuf| path.to_string_lossy().ends_with(suffix);
    let found: Vec<_> = all.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{suffix} among {all:?}");
    found[0].clone()
}

#[test]
fn lxc_images() {
    let server = Server::any();
    let lxc = server.lxc();
    let local = tempfile::tempdir().unwrap();
    let unified = local.path().join("unified.tar.gz");
    let split = local.path().join("split.tar.gz");
    // Not the image of other scenarios: a comment makes it an image of this one's own.
    image::write(image::Kind::Busybox, &unified, false, &paths::cache()).unwrap();
    append_empty_member(&unified);
    let written = image::write(image::Kind::Busybox, &split, true, &paths::cache()).unwrap();
    let rootfs = written.rootfs.unwrap();

    let said = lxc.ok(&[
        "image",
        "import",
        unified.to_str().unwrap(),
        "--alias",
        "img-u",
    ]);
    let fingerprint = sha256(&[&unified]);
    assert!(said.contains(&fingerprint), "{said}");
    let both = [split.to_str().unwrap(), rootfs.to_str().unwrap()];
    let said = lxc.ok(&[
        "image", "import", both[0], both[1], "--alias", "img-s", "--public",
    ]);
    let split_fingerprint = sha256(&[&split, &rootfs]);
    assert!(said.contains(&split_fingerprint), "{said}");
    let again = lxc.fails(&["image", "import", unified.to_str().unwrap()]);
    assert!(again.contains("same fingerprint already exists"), "{again}");

    let listed = lxc.ok(&["image", "list", "--format", "csv", "-c", "lfp"]);
    assert!(
        listed.contains(&format!("img-u,{},no", &fingerprint[..12])),
        "{listed}"
    );
    assert!(
        listed.contains(&format!("img-s,{},yes", &split_fingerprint[..12])),
        "{listed}"
    );
    let by_property = lxc.ok(&["image", "list", "os=BusyBox", "--format", "json"]);
    let by_property: Value = serde_json::from_str(&by_property).unwrap();
    assert!(by_property.as_array().unwrap().len() >= 2);
    let info = lxc.ok(&["image", "info", "img-u"]);
    for part in [
        &format!("Fingerprint: {fingerprint}"),
        "Architecture: x86_64",
        "os: BusyBox",
    ] {
        assert!(info.contains(part), "no {part} in {info}");
    }
    assert!(
        lxc.ok(&["image", "show", &fingerprint[..10]])
            .contains("auto_update: false")
    );
    lxc.ok(&["image", "set-property", "img-u", "flavour", "plain"]);
    assert_eq!(
        lxc.ok(&["image", "get-property", "img-u", "flavour"])
            .trim(),
        "plain"
    );

    lxc.ok(&["image", "alias", "create", "img/other", &fingerprint]);
    let aliases = lxc.ok(&["image", "alias", "list", "--format", "csv"]);
    assert!(
        aliases.contains(&format!("img/other,{}", &fingerprint[..12])),
        "{aliases}"
    );
    let refused = lxc.fails(&["image", "alias", "create", "img/other", &fingerprint]);
    assert!(refused.contains("already exists"), "{refused}");
    lxc.ok(&["image", "alias", "rename", "img/other", "img/renamed"]);
    lxc.ok(&["image", "alias", "delete", "img/renamed"]);

    let out = tempfile::tempdir_in(&local).unwrap();
    lxc.ok(&[
        "image",
        "export",
        "img-u",
        &format!("{}/", out.path().display()),
    ]);
    assert_eq!(sha256(&[&exported(out.path(), ".tar.gz")]), fingerprint);
    let out = tempfile::tempdir_in(&local).unwrap();
    lxc.ok(&[
        "image",
        "export",
        "img-s",
        &format!("{}/", out.path().display()),
    ]);
    let (meta, root) = (
        exported(out.path(), ".tar.gz"),
        exported(out.path(), ".squashfs"),
    );
    assert_eq!(sha256(&[&meta, &root]), split_fingerprint);

    lxc.ok(&["launch", "img-s", "img-a"]);
    let shell = lxc.ok(&["exec", "img-a", "--", "readlink", "/bin/sh"]);
    assert_eq!(shell.trim(), "../bin/busybox");
    let kept = lxc.ok(&["config", "get", "img-a", "volatile.base_image"]);
    assert_eq!(kept.trim(), split_fingerprint);
    lxc.ok(&["delete", "--force", "img-a"]);

    lxc.ok(&["image", "delete", "img-u", "img-s"]);
    let refused = lxc.fails(&["image", "info", &fingerprint]);
    assert!(refused.contains("not found"), "{refused}");
    let aliases = lxc.ok(&["image", "alias", "list", "--format", "csv"]);
    assert!(
        !aliases.contains("img-"),
        "aliases go with their image: {aliases}"
    );
}

/// gzip members may follow one another; an empty one changes the bytes and not the content.
fn append_empty_member(file: &Path) {
    use std::io::Write;
    let empty = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let bytes = empty.finish().unwrap();
    std::fs::OpenOptions::new()
        .append(true)
        .open(file)
        .unwrap()
        .write_all(&bytes)
        .unwrap();
}

#[test]
fn lxc_storage() {
    let server = Server::any();
    server.import(Image::Busybox);
    let lxc = server.lxc();
    for (pool, driver, extra) in [
        ("sto-dir", "dir", None),
        ("sto-btrfs", "btrfs", Some("size=512MiB")),
    ] {
        let create = [&["storage", "create", pool, driver][..], extra.as_slice()].concat();
        lxc.ok(&create);
        let refused = lxc.fails(&create);
        assert!(refused.contains("already exists"), "{refused}");
        let listed = lxc.ok(&["storage", "list", "--format", "csv"]);
        assert!(listed.contains(&format!("{pool},{driver},")), "{listed}");
        let shown = lxc.ok(&["storage", "show", pool]);
        assert!(shown.contains(&format!("driver: {driver}")), "{shown}");
        let info = lxc.ok(&["storage", "info", pool]);
        assert!(
            info.contains("total space:") && info.contains("space used:"),
            "{info}"
        );

        let name = format!("{pool}-i");
        lxc.ok(&["launch", "busybox", &name, "--storage", pool]);
        let used = lxc.ok(&["storage", "info", pool]);
        assert!(used.contains(&name), "{used}");
        let volumes = lxc.ok(&["storage", "volume", "list", pool, "--format", "csv"]);
        assert!(volumes.contains(&format!("container,{name}")), "{volumes}");
        if driver == "btrfs" {
            assert!(
                volumes.lines().any(|line| line.starts_with("image,")),
                "{volumes}"
            );
        }
        let shown = lxc.ok(&[
            "storage",
            "volume",
            "show",
            pool,
            &format!("container/{name}"),
        ]);
        assert!(shown.contains("content_type: filesystem"), "{shown}");
        let refused = lxc.fails(&["storage", "delete", pool]);
        assert!(
            refused.contains("in use") || refused.contains("currently"),
            "{refused}"
        );

        lxc.ok(&["storage", "volume", "create", pool, "data"]);
        let volumes = lxc.ok(&["storage", "volume", "list", pool, "--format", "csv"]);
        assert!(volumes.contains("custom,data"), "{volumes}");
        lxc.ok(&["storage", "volume", "attach", pool, "data", &name, "/data"]);
        // Who uses it knows it by its name.
        let refused = lxc.fails(&["storage", "volume", "rename", pool, "data", "other"]);
        assert!(refused.contains("in use"), "{refused}");
        lxc.ok(&["storage", "volume", "detach", pool, "data", &name]);
        let rule = "snapshots.expiry=1d";
        lxc.ok(&["storage", "volume", "set", pool, "data", rule]);
        lxc.ok(&["storage", "volume", "snapshot", pool, "data"]);
        let path = format!("/1.0/storage-pools/{pool}/volumes/custom/data/snapshots/snap0");
        let snapshot = lxc.query(&[&path]);
        let expires = snapshot["expires_at"].as_str().unwrap();
        assert!(!expires.starts_with("0001"), "{snapshot}");
        let volumes = lxc.ok(&["storage", "volume", "list", pool, "--format", "csv"]);
        assert!(volumes.contains("data/snap0"), "{volumes}");
        lxc.ok(&["storage", "volume", "delete", pool, "data"]);

        lxc.ok(&["delete", "--force", &name]);
        // The unpacked image stays in the pool for the next launch; it does not hold the pool.
        lxc.ok(&["storage", "delete", pool]);
    }
    let refused = lxc.fails(&["storage", "create", "sto-x", "floppy"]);
    assert!(
        refused.contains("Unknown driver") || refused.contains("floppy"),
        "{refused}"
    );
    let listed = lxc.ok(&["storage", "list", "--format", "csv"]);
    assert!(!listed.contains("sto-"), "{listed}");
}

#[test]
fn lxc_networks() {
    let server = Server::any();
    server.import(Image::Busybox);
    let lxc = server.lxc();
    let addresses = ["ipv4.address=10.93.7.1/24", "ipv6.address=fd42:93:7::1/64"];
    lxc.ok(&[
        "network",
        "create",
        "net-a",
        addresses[0],
        addresses[1],
        "ipv4.nat=true",
    ]);
    let refused = lxc.fails(&["network", "create", "net-a"]);
    assert!(refused.contains("already exists"), "{refused}");
    let listed = lxc.ok(&["network", "list", "--format", "csv"]);
    assert!(
        listed.contains("net-a,bridge,YES,10.93.7.1/24,fd42:93:7::1/64"),
        "{listed}"
    );
    assert!(
        lxc.ok(&["network", "show", "net-a"])
            .contains("ipv4.nat: \"true\"")
    );
    assert_eq!(
        lxc.ok(&["network", "get", "net-a", "ipv4.address"]).trim(),
        "10.93.7.1/24"
    );
    let info = lxc.ok(&["network", "info", "net-a"]);
    for part in ["Name: net-a", "State: up", "inet   10.93.7.1/24"] {
        assert!(
            info.replace('\t', " ").contains(part) || info.contains("10.93.7.1"),
            "no {part} in {info}"
        );
    }

    lxc.ok(&["launch", "busybox", "net-i", "--network", "net-a"]);
    let lease = wait::until("a lease", std::time::Duration::from_secs(20), || {
        let leases = lxc.ok(&["network", "list-leases", "net-a", "--format", "csv"]);
        let found = leases
            .lines()
            .find(|line| line.starts_with("net-i,") && line.contains("10.93"));
        found.map(str::to_owned).ok_or(leases)
    });
    let address = lease.split(',').nth(2).unwrap().to_owned();
    wait::until(
        "the leased address",
        std::time::Duration::from_secs(20),
        || {
            let shown = lxc.ok(&["list", "net-i", "--format", "csv", "-c", "4"]);
            if shown.contains(&address) {
                Ok(())
            } else {
                Err(format!("{lease}: {shown}"))
            }
        },
    );
    lxc.ok(&[
        "exec",
        "net-i",
        "--",
        "ping",
        "-c",
        "1",
        "-W",
        "5",
        "10.93.7.1",
    ]);
    let resolved = lxc.ok(&["exec", "net-i", "--", "nslookup", "net-i.lxd", "10.93.7.1"]);
    assert!(resolved.contains(&address), "{resolved}");

    let shown = lxc.ok(&["network", "show", "net-a"]);
    assert!(shown.contains("/1.0/instances/net-i"), "{shown}");
    let refused = lxc.fails(&["network", "delete", "net-a"]);
    assert!(refused.contains("in use"), "{refused}");
    lxc.ok(&["network", "set", "net-a", "ipv4.dhcp.expiry", "30m"]);
    let edited = lxc.ok(&["network", "show", "net-a"]).replace("30m", "20m");
    lxc.ok_with(&["network", "edit", "net-a"], edited.as_bytes());
    assert_eq!(
        lxc.ok(&["network", "get", "net-a", "ipv4.dhcp.expiry"])
            .trim(),
        "20m"
    );
    let refused = lxc.fails(&["network", "set", "net-a", "ipv4.address", "not-an-address"]);
    assert!(refused.contains("ipv4.address"), "{refused}");

    lxc.ok(&["delete", "--force", "net-i"]);
    lxc.ok(&["network", "delete", "net-a"]);
    let refused = lxc.fails(&["network", "show", "net-a"]);
    assert!(refused.contains("not found"), "{refused}");

    lxc.ok(&[
        "network",
        "create",
        "net-b",
        "ipv4.address=none",
        "ipv6.address=none",
    ]);
    assert_eq!(
        lxc.ok(&["network", "get", "net-b", "ipv4.address"]).trim(),
        "none"
    );
    lxc.ok(&["network", "delete", "net-b"]);
    lxc.ok(&["network", "create", "net-c"]);
    let auto = lxc.ok(&["network", "get", "net-c", "ipv4.address"]);
    assert!(auto.trim().ends_with("/24"), "auto chose {auto:?}");
    lxc.ok(&["network", "delete", "net-c"]);
}
