//! Services on hosts of their own, as far as one kernel can show that: network and mount namespaces
//! that only cables join, and TLS with certificates on both sides.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use berth_e2e::inventory::{Traces, settles};
use berth_e2e::{Image, Server, python, server, wait};
use tempfile::TempDir;
use xtask::sandbox::{Sandbox, UpOptions, paths};

const PORTS: [(&str, u16); 5] = [
    ("image", 7441),
    ("storage", 7442),
    ("network", 7443),
    ("instance", 7444),
    ("gateway", 7445),
];

fn port(service: &str) -> u16 {
    PORTS.iter().find(|(name, _)| *name == service).unwrap().1
}

/// Certificates as an operator makes them.
struct Certificates(TempDir);

impl Certificates {
    fn create(hosts: &[&str]) -> Self {
        let dir = TempDir::with_prefix("berth-certificates-").unwrap();
        server::open_to_others(dir.path());
        let this = Self(dir);
        let hosts = hosts.iter().flat_map(|host| ["--host", host]);
        this.berth(["create"].into_iter().chain(hosts));
        this
    }

    fn berth<'a>(&self, args: impl Iterator<Item = &'a str>) {
        let mut command = Command::new(server::binaries().join("berth"));
        command.args(["admin", "certificates"]).args(args);
        python::run(command.arg("--out").arg(self.path()));
        self.hand_out();
    }

    /// The services without root get their keys, as a package's or a container's set-up does it.
    fn hand_out(&self) {
        use nix::unistd::Group;
        let group = ["berth", "nogroup"].map(|name| Group::from_name(name).unwrap());
        let group = group.into_iter().flatten().next().unwrap();
        for role in ["image", "gateway"] {
            let key = self.path().join(format!("{role}.key"));
            chown(&key, None, Some(group.gid.as_raw())).unwrap();
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: String) -> PathBuf {
        self.path().join(name)
    }

    /// A service's own table.
    fn server_table(&self, service: &str) -> String {
        format!(
            "[server.tls]\ncertificate = {:?}\nkey = {:?}\nclient_ca = {:?}\n",
            self.file(format!("{service}.crt")),
            self.file(format!("{service}.key")),
            self.path().join("ca.crt"),
        )
    }
}

/// A sandbox with some of the services, which listen to the others.
fn host(services: &[&str], certificates: &Certificates, more: &[(&str, String)]) -> Server {
    let tables = services
        .iter()
        .map(|s| ((*s).to_owned(), certificates.server_table(s)));
    let more = more.iter().map(|(s, t)| ((*s).to_owned(), t.clone()));
    let listen = services
        .iter()
        .map(|s| ((*s).to_owned(), format!("tls:0.0.0.0:{}", port(s))));
    Server::sandbox_with(UpOptions {
        only: services.iter().map(|s| (*s).to_owned()).collect(),
        extra: tables.chain(more).collect(),
        listen: listen.collect(),
        ..UpOptions::default()
    })
}

fn ip(args: &[&str]) {
    python::run(Command::new("ip").args(args));
}

/// A cable between two hosts.
fn join(a: &Sandbox, b: &Sandbox, name: &str, addresses: [&str; 2]) {
    let (near, far) = (a.netns(), b.netns());
    let far_name = format!("{name}-far");
    ip(&[
        "-n", &near, "link", "add", name, "type", "veth", "peer", "name", &far_name, "netns", &far,
    ]);
    for (netns, link, address) in [
        (&near, name, addresses[0]),
        (&far, far_name.as_str(), addresses[1]),
    ] {
        ip(&["-n", netns, "address", "add", address, "dev", link]);
        ip(&["-n", netns, "link", "set", link, "up"]);
    }
}

const IMAGES: &str = "10.231.1.2";
const GUESTS: &str = "10.231.2.2";

fn gateway_table(certificates: &Certificates) -> String {
    let mut text = String::from("[services]\n");
    for (service, at) in [
        ("image", IMAGES),
        ("storage", GUESTS),
        ("network", GUESTS),
        ("instance", GUESTS),
    ] {
        text += &format!("{service} = \"https://{at}:{}\"\n", port(service));
    }
    text + &format!(
        "[services.tls]\ncertificate = {:?}\nkey = {:?}\nca = {:?}\n",
        certificates.path().join("gateway.crt"),
        certificates.path().join("gateway.key"),
        certificates.path().join("ca.crt"),
    )
}

fn expiry(sandbox: &Sandbox, service: &str, certificate: &str) -> Option<i64> {
    let socket = sandbox.state().join(format!("{service}/metrics.sock"));
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let name =
        format!("berth_tls_certificate_expiry_timestamp_seconds{{certificate=\"{certificate}\"}} ");
    text.lines()
        .find_map(|line| line.strip_prefix(&name)?.trim().parse().ok())
}

#[test]
fn the_main_job_with_images_guests_and_gateway_on_three_hosts() {
    let certificates = Certificates::create(&[
        &format!("image={IMAGES}"),
        &format!("storage={GUESTS}"),
        &format!("network={GUESTS}"),
        &format!("instance={GUESTS}"),
        "gateway=127.0.0.1",
    ]);
    let images = host(&["image"], &certificates, &[]);
    let guests = host(&["storage", "network", "instance"], &certificates, &[]);
    let traces = Traces::of(guests.own());
    let gateway = host(
        &["gateway"],
        &certificates,
        &[("gateway", gateway_table(&certificates))],
    );
    let before = traces.look();
    join(
        gateway.own(),
        images.own(),
        "images",
        ["10.231.1.1/30", "10.231.1.2/30"],
    );
    join(
        gateway.own(),
        guests.own(),
        "guests",
        ["10.231.2.1/30", "10.231.2.2/30"],
    );

    let mut init = Command::new(server::binaries().join("berth"));
    init.env("LXD_SOCKET", gateway.socket());
    python::run(init.args(["admin", "init", "--auto"]));
    gateway.import(Image::Busybox);
    let lxc = gateway.lxc();
    // The image's bytes cross from one host by the second to the third, once.
    lxc.ok(&["launch", "busybox", "c1"]);
    lxc.ok(&["launch", "busybox", "c2"]);
    assert_eq!(lxc.ok(&["exec", "c1", "--", "hostname"]).trim(), "c1");
    let log = std::fs::read_to_string(gateway.own().log_file("gateway")).unwrap();
    assert_eq!(
        log.matches("bytes are carried to storage").count(),
        1,
        "{log}"
    );
    assert!(!guests.own().state().join("image/blobs").exists());
    wait::until("an address by DHCP", Duration::from_secs(30), || {
        let listed = lxc.ok(&["list", "c1", "--format", "csv", "--columns", "s4"]);
        if listed.contains("RUNNING") && listed.contains("(eth0)") {
            Ok(())
        } else {
            Err(listed)
        }
    });
    lxc.ok_with(&["file", "push", "-", "c1/root/f"], b"over the wire");
    lxc.ok(&["snapshot", "c1", "s1"]);
    lxc.ok(&["exec", "c1", "--", "rm", "/root/f"]);
    lxc.ok(&["restore", "c1", "s1"]);
    assert_eq!(lxc.ok(&["file", "pull", "c1/root/f", "-"]), "over the wire");

    // New certificates while a stream is open: it goes on, and so does everything after it.
    let stream = lxc.spawn(&[
        "exec",
        "c2",
        "--",
        "sh",
        "-c",
        "while sleep 0.2; do echo on; done",
    ]);
    let places = [
        (gateway.own(), "gateway", "client"),
        (gateway.own(), "gateway", "server"),
        (images.own(), "image", "server"),
        (guests.own(), "instance", "server"),
    ];
    let old = places.map(|(sandbox, service, which)| expiry(sandbox, service, which).unwrap());
    certificates.berth(["renew", "--days", "500"].into_iter());
    for (sandbox, service, _) in places {
        sandbox.reload(service).unwrap();
    }
    for ((sandbox, service, which), old) in places.into_iter().zip(old) {
        wait::until(
            "the new certificate",
            Duration::from_secs(20),
            || match expiry(sandbox, service, which) {
                Some(new) if new > old + 300 * 86_400 => Ok(()),
                other => Err(format!("{service} {which}: {other:?}, was {old}")),
            },
        );
    }
    let lines = |text: String| text.matches("on").count();
    let seen = lines(stream.output());
    wait::until("the stream goes on", Duration::from_secs(10), || {
        let now = lines(stream.output());
        (now > seen)
            .then_some(())
            .ok_or_else(|| format!("{now} lines"))
    });
    // A gateway that begins anew shakes hands with the new ones.
    drop(stream);
    gateway.own().kill("gateway").unwrap();
    gateway.own().start(&["gateway"]).unwrap();
    assert_eq!(lxc.ok(&["exec", "c1", "--", "hostname"]).trim(), "c1");

    // An owner's host is away, and comes back.
    ip(&[
        "-n",
        &gateway.own().netns(),
        "link",
        "set",
        "images",
        "down",
    ]);
    ip(&["-n", &gateway.own().netns(), "link", "set", "images", "up"]);
    lxc.ok(&["image", "list"]);

    let mut python = Command::new("ip");
    python.args(["netns", "exec", &gateway.own().netns()]);
    python.arg(python::interpreter());
    python.arg(paths::workspace().join("examples/python/alone.py"));
    python.args([
        "gateway",
        "--address",
        "127.0.0.1:7445",
        "--alias",
        "busybox",
    ]);
    python::run(python.arg("--certificates").arg(certificates.path()));

    lxc.ok(&["delete", "--force", "c1", "c2"]);
    lxc.ok(&["profile", "device", "remove", "default", "root"]);
    lxc.ok(&["profile", "device", "remove", "default", "eth0"]);
    let network = lxc.ok(&["network", "list", "--format", "csv"]);
    let bridge = network.lines().find(|line| line.contains("YES")).unwrap();
    lxc.ok(&["network", "delete", bridge.split(',').next().unwrap()]);
    lxc.ok(&["image", "delete", "busybox"]);
    lxc.ok(&["storage", "delete", "default"]);
    ip(&["-n", &guests.own().netns(), "link", "delete", "guests-far"]);
    settles(&traces, &before);
}

/// One service by itself over TLS, and what it is for, from another language.
#[track_caller]
fn alone(service: &str, more: &[&str]) {
    let certificates = Certificates::create(&["127.0.0.1"]);
    let only = host(&[service], &certificates, &[]);
    let files = TempDir::new_in(only.own().state()).unwrap();
    std::fs::set_permissions(files.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let image = server::image_file(Image::Busybox);
    let run = |role: &str| {
        let mut python = Command::new("ip");
        python.args(["netns", "exec", &only.own().netns()]);
        python.arg(python::interpreter());
        python.arg(paths::workspace().join("examples/python/alone.py"));
        python.args([
            service,
            "--address",
            &format!("127.0.0.1:{}", port(service)),
        ]);
        python.arg("--certificates").arg(certificates.path());
        python.arg("--image").arg(&image);
        python.arg("--directory").arg(files.path());
        python.args(["--role", role]).args(more);
        python
    };
    let said = python::run(&mut run("client"));
    assert!(!said.trim().is_empty());
    // Another service's certificate is of the same authority, and of no caller.
    let other = if service == "image" {
        "storage"
    } else {
        "image"
    };
    let refused = run(other).output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("UNAVAILABLE"), "{said}");
    let log = std::fs::read_to_string(only.own().log_file(service)).unwrap();
    assert!(log.contains("a peer was refused"), "{log}");
}

#[test]
fn image_alone_over_tls() {
    alone("image", &[]);
}

#[test]
fn storage_alone_over_tls() {
    alone("storage", &[]);
}

#[test]
fn network_alone_over_tls() {
    alone("network", &[]);
}

#[test]
fn instance_alone_over_tls() {
    alone("instance", &[]);
}
