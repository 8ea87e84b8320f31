//! Limits, freezing, network, disks, device nodes, the console: set at the start and changed while it runs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use berth_monitor::error::FaultCode;
use berth_monitor::protocol::*;
use berth_monitor::spec::*;
use common::*;

fn state(guest: &Guest) -> State {
    match guest
        .client()
        .call(Request::GetState {
            without_network: false,
        })
        .unwrap()
    {
        Reply::State(state) => *state,
        other => panic!("{other:?}"),
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn host_disk(name: &str, source: &Path, target: &str, ro: bool) -> Mount {
    Mount {
        name: name.into(),
        attachment: Attachment {
            source: Source::HostPath {
                path: source.to_str().unwrap().into(),
                recursive: false,
            },
            attr: MountAttr {
                ro,
                ..MountAttr::default()
            },
            fs_uuid: None,
            ownership: Ownership::Raw,
            can_idmap: true,
        },
        target: target.into(),
        optional: false,
    }
}

#[test]
fn limits_hold_from_the_start_and_change_live() {
    let guest = guest(|spec, _| {
        spec.limits = Limits {
            cpuset_cpus: Some("0".into()),
            memory_bytes: Some(64 << 20),
            swap_bytes: Some(0),
            pids: Some(20),
            cpu_quota_us: Some(50_000),
            cpu_shares: Some(512),
            ..Limits::default()
        };
        spec.rlimits = vec![Rlimit {
            name: "nofile".into(),
            soft: Some(100),
            hard: Some(200),
        }];
        spec.sysctls = vec![("net.ipv4.ip_forward".into(), "1".into())];
    });
    assert_eq!(guest.sh("nproc").0, "1\n");
    assert_eq!(guest.sh("ulimit -n; ulimit -H -n").0, "100\n200\n");
    assert_eq!(guest.sh("cat /proc/sys/net/ipv4/ip_forward").0, "1\n");
    let now = state(&guest);
    assert_eq!(
        (now.memory.limit, now.pids_limit),
        (Some(64 << 20), Some(20))
    );
    if Path::new("/sys/fs/cgroup/memory").exists() {
        assert_eq!(
            guest.cgroup_file("memory", "memory.memsw.limit_in_bytes"),
            (64u64 << 20).to_string()
        );
        assert_eq!(guest.cgroup_file("cpu", "cpu.cfs_quota_us"), "50000");
        assert_eq!(guest.cgroup_file("cpu", "cpu.shares"), "512");
    }
    let (output, _) = guest.sh("for i in $(busybox seq 40); do sleep 2 & done 2>&1; true");
    assert!(output.contains("fork"), "{output}");
    guest.sh("busybox killall -9 sleep");

    let all = std::thread::available_parallelism()
        .unwrap()
        .get()
        .to_string();
    for limits in [
        // Raised, cut, and none at all: memory and swap go in different orders.
        Limits {
            memory_bytes: Some(200 << 20),
            swap_bytes: Some(10 << 20),
            pids: Some(30),
            ..Limits::default()
        },
        Limits {
            memory_bytes: Some(100 << 20),
            swap_bytes: Some(0),
            ..Limits::default()
        },
        Limits::default(),
    ] {
        guest
            .client()
            .call(Request::UpdateLimits {
                limits: limits.clone(),
            })
            .unwrap();
        let now = state(&guest);
        assert_eq!(
            (now.memory.limit, now.pids_limit),
            (limits.memory_bytes, limits.pids)
        );
        assert_eq!(guest.sh("nproc").0.trim(), all);
    }
    // More than it may have is killed; the dead one's file is gone with its namespace.
    guest
        .client()
        .call(Request::UpdateLimits {
            limits: Limits {
                memory_bytes: Some(64 << 20),
                swap_bytes: Some(0),
                ..Limits::default()
            },
        })
        .unwrap();
    let (_, code) = guest.sh("busybox unshare -m sh -c 'mount -t tmpfs t /mnt && exec dd if=/dev/zero of=/mnt/x bs=1M count=100'");
    assert_eq!(code, 137);
    let bad = Limits {
        cpuset_cpus: Some("0;1".into()),
        ..Limits::default()
    };
    assert_eq!(
        guest
            .client()
            .call(Request::UpdateLimits { limits: bad })
            .unwrap_err()
            .code,
        FaultCode::Invalid
    );
    let absent = Limits {
        cpuset_cpus: Some("4000".into()),
        ..Limits::default()
    };
    assert_eq!(
        guest
            .client()
            .call(Request::UpdateLimits { limits: absent })
            .unwrap_err()
            .code,
        FaultCode::Kernel
    );
}

#[test]
fn freezing_holds_until_the_last_holder_goes() {
    let guest = guest(|_, _| {});
    let mut client = guest.client();
    let id = exec_of(&[]).exec_id;
    let ticker = StartExec {
        exec_id: id.clone(),
        ..exec_of(&["sh", "-c", "while :; do echo x; sleep 0.02; done"])
    };
    client.call(Request::StartExec(ticker)).unwrap();
    let freeze = |holder: &str, lease_seconds| Request::Freeze {
        holder: holder.into(),
        lease_seconds,
    };
    client.call(freeze("user", None)).unwrap();
    client.call(freeze("snapshot", Some(60))).unwrap();
    let produced = || {
        let Reply::Exec(state) = guest
            .client()
            .call(Request::GetExec {
                exec_id: id.clone(),
            })
            .unwrap()
        else {
            panic!()
        };
        state.stdout.1
    };
    assert_eq!(state(&guest).status, Status::Frozen);
    let before = produced();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(produced(), before, "nothing runs");
    assert_eq!(
        client
            .call(Request::StartExec(exec_of(&["true"])))
            .unwrap_err()
            .code,
        FaultCode::State
    );
    client
        .call(Request::Thaw {
            holder: "user".into(),
        })
        .unwrap();
    assert_eq!(state(&guest).frozen_by, ["snapshot"]);
    client
        .call(Request::Thaw {
            holder: "snapshot".into(),
        })
        .unwrap();
    assert_eq!(state(&guest).status, Status::Running);
    eventually("output", || produced() > before);
    assert_eq!(
        client
            .call(Request::Thaw {
                holder: "user".into()
            })
            .unwrap_err()
            .code,
        FaultCode::NotFound
    );
    // A lease ends by itself.
    client.call(freeze("snapshot", Some(1))).unwrap();
    drop(client);
    let after = produced();
    eventually("the lease's end", || {
        state(&guest).status == Status::Running && produced() > after
    });
    // A frozen guest can be killed at once.
    guest.client().call(freeze("user", None)).unwrap();
    guest.stop();
    assert_eq!(guest.status_json().reason, ExitReason::Killed);
}

#[test]
fn nics_are_born_in_the_guest_and_go_with_it() {
    let guest = guest(|spec, _| {
        ip("link add br0 type bridge");
        ip("addr add 10.99.0.1/24 dev br0");
        ip("link set br0 up");
        ip("link add low0 type veth peer name low1");
        ip("link set low0 up");
        let nic = |text: serde_json::Value| serde_json::from_value::<PortSpec>(text).unwrap();
        spec.nics = vec![
            nic(
                serde_json::json!({"name": "eth0", "kind": "bridged", "parent": "br0", "host_name": "vbr0", "guest_name": "eth0",
                "hwaddr": "00:16:3e:00:00:01", "mtu": 1400, "isolated": true}),
            ),
            nic(
                serde_json::json!({"name": "p", "kind": "p2p", "host_name": "vp0", "guest_name": "ptp0",
                "host_hwaddr": "fe:00:00:00:00:02", "host_routes": ["10.77.0.0/24", "fd77::/64"]}),
            ),
            nic(
                serde_json::json!({"name": "m", "kind": "macvlan", "parent": "low0", "guest_name": "mac0",
                "hwaddr": "00:16:3e:00:00:03"}),
            ),
        ];
    });
    let host = ip("-d link show vbr0");
    assert!(
        host.contains("master br0") && host.contains("UP") && host.contains("isolated on"),
        "{host}"
    );
    assert!(ip("link show vp0").contains("fe:00:00:00:00:02"));
    assert!(ip("route show dev vp0").contains("10.77.0.0/24"));
    let (_, code) = guest.sh("ip addr add 10.99.0.2/24 dev eth0 && ip link set eth0 up && ip link set ptp0 up && ip link set mac0 up && busybox ping -c 1 -W 2 10.99.0.1");
    assert_eq!(code, 0);
    let now = state(&guest);
    let eth0 = now.links.iter().find(|l| l.name == "eth0").unwrap();
    assert_eq!(
        (eth0.hwaddr.as_deref(), eth0.mtu, eth0.host_name.as_deref()),
        (Some("00:16:3e:00:00:01"), 1400, Some("vbr0"))
    );
    let address = eth0.addresses.iter().find(|a| a.family == "inet").unwrap();
    assert_eq!(
        (
            address.address.as_str(),
            address.prefix,
            address.scope.as_str()
        ),
        ("10.99.0.2", 24, "global")
    );
    assert!(eth0.counters.bytes_sent > 0 && eth0.counters.packets_received > 0);
    // The guest's own: mtu can be written (the namespace belongs to it).
    assert_eq!(
        guest.sh("echo 1300 > /sys/class/net/eth0/mtu && cat /sys/class/net/eth0/mtu"),
        ("1300\n".into(), 0)
    );

    let mut client = guest.client();
    let added = serde_json::json!({"name": "eth1", "kind": "bridged", "parent": "br0", "host_name": "vbr1", "guest_name": "eth1"});
    client
        .call(Request::AddNic {
            nic: serde_json::from_value(added.clone()).unwrap(),
        })
        .unwrap();
    assert_eq!(guest.sh("test -d /sys/class/net/eth1").1, 0);
    let twice = client
        .call(Request::AddNic {
            nic: serde_json::from_value(added).unwrap(),
        })
        .unwrap_err();
    assert_eq!(twice.code, FaultCode::Exists);
    client
        .call(Request::SetNicLink {
            name: "eth1".into(),
            up: false,
        })
        .unwrap();
    assert!(ip("link show vbr1").contains("state DOWN"));
    for name in ["eth1", "m"] {
        client
            .call(Request::RemoveNic { name: name.into() })
            .unwrap();
    }
    assert_ne!(
        guest
            .sh("test -d /sys/class/net/eth1 || test -d /sys/class/net/mac0")
            .1,
        0
    );
    let vlan = serde_json::json!({"name": "v", "kind": "bridged", "parent": "br0", "host_name": "vv", "guest_name": "v", "vlan": 5});
    let fault = client
        .call(Request::AddNic {
            nic: serde_json::from_value(vlan).unwrap(),
        })
        .unwrap_err();
    assert_eq!(fault.code, FaultCode::Unsupported);
    guest.stop();
    eventually("the links' end", || {
        let links = ip("-o link");
        !links.contains("vbr0") && !links.contains("vp0")
    });
    assert!(ip("-o link").contains("br0"));
}

/// On hosts where mounts are shared, as systemd makes them, nothing that a guest mounts shows on the host:
/// neither over its root, its disks (from the start or later) nor its device nodes.
#[test]
fn mounts_of_the_guest_do_not_reach_the_host() {
    use std::os::unix::fs::FileTypeExt;
    let mount = |arguments: &[&str]| {
        let done = Command::new("mount").args(arguments).status().unwrap();
        assert!(done.success(), "mount {arguments:?}");
    };
    for everything in [false, true] {
        let share = tempfile::tempdir().unwrap();
        let path = share.path().to_str().unwrap();
        let guest = guest(|spec, _| {
            mount(&["-t", "tmpfs", "share", path]);
            std::fs::create_dir(share.path().join("below")).unwrap();
            std::fs::write(share.path().join("file"), "").unwrap();
            mount(&["--make-shared", path]);
            mount(&["--bind", "/dev", "/dev"]);
            mount(&["--make-shared", "/dev"]);
            if everything {
                mount(&["--make-rshared", "/"]);
            }
            spec.mounts
                .push(host_disk("d", share.path(), "/mnt/d", false));
        });
        let add = Request::AddMount {
            mount: host_disk("e", share.path(), "/mnt/e", false),
        };
        guest.client().call(add).unwrap();
        let before = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let (said, code) = guest.sh("set -e; mount -t tmpfs mark /tmp; \
             mount -t tmpfs mark /mnt/d/below; mount -t tmpfs mark /mnt/e/below; touch /x; \
             mount -o bind /x /mnt/d/file; mount -o bind /x /dev/null");
        assert_eq!(code, 0, "{said}");
        let after = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert_eq!(before, after);
        let null = std::fs::metadata("/dev/null").unwrap().file_type();
        assert!(null.is_char_device(), "the host's /dev/null was covered");
        drop(guest);
        mount(&["--make-rprivate", "/"]);
        assert!(Command::new("umount").arg(path).status().unwrap().success());
    }
}

/// `host_name` is a user's choice: a link of the host's that has it stays.
#[test]
fn a_link_of_the_host_is_never_taken_for_a_leftover() {
    let guest = guest(|_, _| {
        ip("link add br0 type bridge");
        ip("link add br1 type bridge");
        ip("link add other0 type veth peer name other1");
        ip("link set other0 master br1");
        ip("link add lone0 type veth peer name lone1");
    });
    let mut client = guest.client();
    for name in ["br0", "br1", "lo", "other0", "lone0"] {
        let nic = serde_json::json!({"name": "n", "kind": "bridged", "parent": "br0", "host_name": name, "guest_name": "n0"});
        let nic = serde_json::from_value(nic).unwrap();
        let fault = client.call(Request::AddNic { nic }).unwrap_err();
        assert_eq!(fault.code, FaultCode::Exists, "{name}: {fault}");
        assert!(
            ip("-o link").contains(&format!(" {name}")),
            "{name} is gone"
        );
    }
    // A veth on the same bridge is one.
    ip("link add left0 type veth peer name left1");
    ip("link set left0 master br0");
    let nic = serde_json::json!({"name": "n", "kind": "bridged", "parent": "br0", "host_name": "left0", "guest_name": "n0"});
    let nic = serde_json::from_value(nic).unwrap();
    client.call(Request::AddNic { nic }).unwrap();
    assert!(!ip("-o link").contains("left1"));
    // Neither does the undoing of a start that failed remove it.
    let refused = try_guest(|spec, _| {
        ip("link add br0 type bridge");
        let nic =
            serde_json::json!({"name": "n", "kind": "p2p", "host_name": "br0", "guest_name": "n0"});
        spec.nics = vec![serde_json::from_value(nic).unwrap()];
    });
    assert_eq!(refused.err().unwrap().code, FaultCode::Exists);
    assert!(ip("-o link").contains(" br0"));
}

#[test]
fn disks_come_and_go_with_the_guests_ids() {
    let share = tempfile::tempdir().unwrap();
    std::fs::write(share.path().join("file"), "content").unwrap();
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), "one file").unwrap();
    let guest = guest(|spec, _| {
        spec.mounts = vec![
            host_disk("share", share.path(), "/mnt/deep/share", false),
            host_disk("config", config.path(), "/etc/config", true),
            Mount {
                optional: true,
                ..host_disk("gone", Path::new("/nonexistent"), "/mnt/gone", false)
            },
        ];
    });
    assert_eq!(
        guest.sh("cat /mnt/deep/share/file /etc/config").0,
        "contentone file"
    );
    assert_eq!(
        guest.sh("stat -c %u /mnt/deep/share/file; echo new > /mnt/deep/share/new"),
        ("0\n".into(), 0)
    );
    assert_ne!(guest.sh("echo x > /etc/config").1, 0, "read-only");

    let mut client = guest.client();
    client
        .call(Request::AddMount {
            mount: host_disk("hot", share.path(), "/mnt/hot", true),
        })
        .unwrap();
    assert_eq!(guest.sh("cat /mnt/hot/new"), ("new\n".into(), 0));
    assert_ne!(guest.sh("touch /mnt/hot/x").1, 0);
    let again = client
        .call(Request::AddMount {
            mount: host_disk("hot", share.path(), "/mnt/x", true),
        })
        .unwrap_err();
    assert_eq!(again.code, FaultCode::Exists);
    let missing = client.call(Request::AddMount {
        mount: host_disk("no", Path::new("/nonexistent"), "/mnt/x", true),
    });
    assert_eq!(missing.unwrap_err().errno, libc::ENOENT);
    client
        .call(Request::RemoveMount { name: "hot".into() })
        .unwrap();
    assert_ne!(guest.sh("ls /mnt/hot/new").1, 0);
    // What was plugged in stays over a reboot, what was taken out does not come back.
    client
        .call(Request::AddMount {
            mount: host_disk("stays", share.path(), "/mnt/stays", true),
        })
        .unwrap();
    client.call(Request::Reboot { how: StopHow::Kill }).unwrap();
    assert_eq!(guest.sh("cat /mnt/stays/new").1, 0);
    assert_ne!(guest.sh("ls /mnt/hot/new").1, 0);
}

#[test]
fn device_nodes_are_the_guests_and_vanish_on_removal() {
    let node = |name: &str, path: &str, mode| DeviceNode {
        name: name.into(),
        path: path.into(),
        kind: NodeKind::Char,
        major: 1,
        minor: 5,
        mode,
        uid: 1000,
        gid: 0,
    };
    let guest = guest(|spec, _| spec.devices = vec![node("z", "/dev/mine/zero", 0o640)]);
    assert_eq!(
        guest
            .sh("stat -c %u:%a /dev/mine/zero; head -c 2 /dev/mine/zero | wc -c")
            .0,
        "1000:640\n2\n"
    );
    let mut client = guest.client();
    client
        .call(Request::AddDevice {
            device: node("hot/odd name", "/dev/hot", 0o666),
        })
        .unwrap();
    assert_eq!(guest.sh("head -c 2 /dev/hot | wc -c").0, "2\n");
    client
        .call(Request::RemoveDevice {
            name: "hot/odd name".into(),
        })
        .unwrap();
    assert_ne!(guest.sh("test -e /dev/hot").1, 0);
    assert_eq!(
        std::fs::read_dir(guest.run_dir().join("devices"))
            .unwrap()
            .count(),
        1
    );
    guest.stop();
    assert_eq!(
        std::fs::read_dir(guest.run_dir().join("devices"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn the_console_shows_takes_keys_and_remembers() {
    let guest = guest(|_, root| {
        std::fs::write(
            root.join("etc/inittab"),
            "::sysinit:/bin/echo booted\nconsole::respawn:/bin/sh\n",
        )
        .unwrap();
    });
    eventually("boot", || guest.console().contains("booted"));
    let mut client = guest.client();
    client
        .call(Request::AttachConsole {
            force: false,
            size: Some(PtySize { rows: 20, cols: 70 }),
        })
        .unwrap();
    let other = guest
        .client()
        .call(Request::AttachConsole {
            force: false,
            size: None,
        })
        .unwrap_err();
    assert_eq!(other.code, FaultCode::State);
    client
        .cast(Request::ConsoleInput, b"stty size; echo ans''wer\n")
        .unwrap();
    let mut shown = String::new();
    while !shown.contains("answer") {
        if let (Event::ConsoleOutput, payload) = client.event().unwrap() {
            shown.push_str(&String::from_utf8_lossy(&payload));
        }
    }
    assert!(shown.contains("20 70"), "{shown}");
    let mut thief = guest.client();
    thief
        .call(Request::AttachConsole {
            force: true,
            size: None,
        })
        .unwrap();
    while !matches!(client.event().unwrap().0, Event::ConsoleDetached) {}
    assert!(guest.console().contains("answer"));
    let file = std::fs::read_to_string(Path::new(&guest.spec.log_dir).join("console.log")).unwrap();
    assert!(file.contains("booted") && file.contains("answer"));
    thief.call(Request::ClearConsoleLog).unwrap();
    assert_eq!(guest.console(), "");
}

#[test]
fn a_device_attachment_is_checked_before_it_is_mounted() {
    enter_namespaces();
    let images = tempfile::tempdir().unwrap();
    let image = images.path().join("image");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let run = |line: &str| {
        let output = Command::new("sh").args(["-ec", line]).output().unwrap();
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    run(&format!("mkfs.ext4 -q {}", image.display()));
    let device = run(&format!("losetup --find --show {}", image.display()));
    struct Detach(String);
    impl Drop for Detach {
        fn drop(&mut self) {
            let _ = Command::new("losetup").args(["-d", &self.0]).status();
        }
    }
    let _detach = Detach(device.clone());
    let uuid = run(&format!("blkid -p -s UUID -o value {device}"));
    let sequence: u64 = run(&format!(
        "cat /sys/block/{}/diskseq",
        device.trim_start_matches("/dev/")
    ))
    .parse()
    .unwrap();
    let attachment = |uuid: &str, diskseq| Attachment {
        source: Source::Device {
            path: device.clone(),
            diskseq: Some(diskseq),
            fs_type: "ext4".into(),
            options: vec!["noload".into()],
            subpath: None,
        },
        attr: MountAttr {
            ro: true,
            ..MountAttr::default()
        },
        fs_uuid: Some(uuid.into()),
        ownership: Ownership::Raw,
        can_idmap: true,
    };
    let other = "00000000-0000-0000-0000-000000000000";
    for (uuid, sequence) in [(other, sequence), (uuid.as_str(), sequence + 1)] {
        let fault =
            berth_monitor::attach::open_attachment(&attachment(uuid, sequence), None).unwrap_err();
        assert_eq!(fault.code, FaultCode::State, "{fault}");
    }
    let tree = berth_monitor::attach::open_attachment(&attachment(&uuid, sequence), None).unwrap();
    berth_monitor::sys::openat2(
        &tree,
        "lost+found",
        libc::O_PATH,
        0,
        berth_monitor::sys::RESOLVE_BENEATH,
    )
    .unwrap();
    let write = berth_monitor::sys::openat(&tree, "new", libc::O_CREAT | libc::O_WRONLY, 0o600);
    assert_eq!(write.unwrap_err().raw_os_error(), Some(libc::EROFS));
    // As a guest's disk.
    let dir = tempfile::tempdir().unwrap();
    busybox_root(&dir.path().join("root"));
    let mut spec = spec(dir.path());
    let disk = Mount {
        name: "d".into(),
        attachment: attachment(&uuid, sequence),
        target: "/mnt/d".into(),
        optional: false,
    };
    spec.mounts.push(disk);
    let mut guest = Guest {
        dir,
        spec,
        init_pid: 0,
        monitor_pid: 0,
    };
    drop(tree);
    guest.start().unwrap();
    assert_eq!(guest.sh("stat -c %u /mnt/d/lost+found").0, "0\n");
    guest.stop();
}

#[test]
fn lxcfs_shows_the_guests_own_figures() {
    enter_namespaces();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(at("lxcfs")).unwrap();
    let lxcfs = Command::new("lxcfs")
        .args(["-f", "-p", &at("pid"), &at("lxcfs")])
        .stderr(std::process::Stdio::null())
        .spawn();
    struct End(std::process::Child);
    impl Drop for End {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let _end = End(lxcfs.expect("lxcfs is installed"));
    eventually("lxcfs", || Path::new(&at("lxcfs/proc/meminfo")).exists());
    busybox_root(&dir.path().join("root"));
    let mut spec = spec(dir.path());
    spec.lxcfs_dir = Some(at("lxcfs"));
    spec.limits = Limits {
        memory_bytes: Some(96 << 20),
        cpuset_cpus: Some("0".into()),
        ..Limits::default()
    };
    let mut guest = Guest {
        dir: tempfile::tempdir().unwrap(),
        spec,
        init_pid: 0,
        monitor_pid: 0,
    };
    guest.start().unwrap();
    let meminfo = guest.sh("cat /proc/meminfo").0;
    assert!(meminfo.contains("MemTotal:          98304 kB"), "{meminfo}");
    assert_eq!(guest.sh("grep -c ^processor /proc/cpuinfo").0, "1\n");
    let limits = Limits {
        memory_bytes: Some(48 << 20),
        ..Limits::default()
    };
    guest
        .client()
        .call(Request::UpdateLimits { limits })
        .unwrap();
    assert!(
        guest
            .sh("cat /proc/meminfo")
            .0
            .contains("MemTotal:          49152 kB")
    );
    guest.stop();
}
