//! What a guest can see and do, and what hostile content of its root filesystem cannot.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;

use berth_monitor::error::FaultCode;
use berth_monitor::protocol::*;
use berth_monitor::spec::*;
use common::*;

fn status_field(text: &str, field: &str) -> String {
    text.lines()
        .find_map(|l| l.strip_prefix(field))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// `ret ALLOW`, after `ERRNO(EPERM)` for one system call.
fn filter_refusing(number: i64) -> Bpf {
    let instruction = |code: u16, jt: u8, jf: u8, k: u32| {
        let mut out = code.to_ne_bytes().to_vec();
        out.extend([jt, jf]);
        out.extend(k.to_ne_bytes());
        out
    };
    let mut program = instruction(0x20, 0, 0, 0);
    program.extend(instruction(0x15, 0, 1, number as u32));
    program.extend(instruction(0x06, 0, 0, 0x0005_0000 | libc::EPERM as u32));
    program.extend(instruction(0x06, 0, 0, 0x7fff_0000));
    Bpf(program)
}

#[test]
fn root_inside_is_nobody_outside_in_init_and_exec() {
    let guest = guest(|spec, _| spec.seccomp = Some(filter_refusing(libc::SYS_mknodat)));
    let on_host = std::fs::read_to_string(format!("/proc/{}/status", guest.init_pid)).unwrap();
    assert!(status_field(&on_host, "Uid:").starts_with("1000000\t1000000"));
    let init = guest.sh("cat /proc/1/status").0;
    let own = guest.sh("cat /proc/self/status").0;
    for text in [&init, &own] {
        assert_eq!(status_field(text, "Seccomp:"), "2");
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(status_field(text, set), "0000000000000000", "{set}");
        }
        let bounding = u64::from_str_radix(&status_field(text, "CapBnd:"), 16).unwrap();
        assert_eq!(
            bounding & (1 << 16 | 1 << 25),
            0,
            "sys_module and sys_time are gone"
        );
        assert_ne!(
            bounding & 1 << 21,
            0,
            "sys_admin over its own namespaces stays"
        );
    }
    for set in ["CapBnd:", "CapEff:", "CapPrm:", "NoNewPrivs:", "Groups:"] {
        assert_eq!(status_field(&init, set), status_field(&own, set), "{set}");
    }
    for ns in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let outside = std::fs::read_link(format!("/proc/self/ns/{ns}")).unwrap();
        let of_init = std::fs::read_link(format!("/proc/{}/ns/{ns}", guest.init_pid)).unwrap();
        assert_ne!(outside, of_init, "{ns}");
        let of_exec = guest.sh(&format!("readlink /proc/self/ns/{ns}")).0;
        assert_eq!(of_exec.trim(), of_init.to_str().unwrap(), "{ns}");
    }
    // Only itself is seen, and files made inside are the guest's root's on the disk.
    assert!(guest.sh("ls -d /proc/[0-9]*").0.lines().count() < 10);
    guest.sh("touch /made");
    use std::os::unix::fs::MetadataExt;
    let made = std::fs::metadata(guest.dir.path().join("root/made")).unwrap();
    assert_eq!(made.uid(), 0, "idmapped: raw ids on the disk");
}

#[test]
fn nothing_of_the_host_is_open_after_exec() {
    let guest = guest(|_, _| {});
    assert_eq!(guest.sh("ls /proc/1/fd").0, "0\n1\n2\n");
    let own = guest.sh("ls -l /proc/self/fd").0;
    // Three pipes, and the directory that ls itself has open.
    assert_eq!(
        own.lines().filter(|l| l.contains("-> pipe:")).count(),
        3,
        "{own}"
    );
    assert_eq!(guest.sh("ls /proc/self/fd").0, "0\n1\n2\n3\n");
    assert_eq!(
        guest
            .sh("cat /proc/self/cgroup | grep -v -x -E '[0-9]+:[^/]*:/' ")
            .0,
        "",
        "cgroup namespace roots"
    );
    // Neither can execs see the monitor, nor does the mount table tell of the host.
    let mounts = guest.sh("cat /proc/self/mountinfo").0;
    assert!(!mounts.contains(guest.spec.run_dir.as_str()), "{mounts}");
    assert_eq!(guest.sh("cat /proc/self/oom_score_adj").0, "0\n");
}

#[test]
fn masks_and_devices() {
    let guest = guest(|_, _| {});
    let files = "for f in kcore timer_list timer_stats sched_debug latency_stats; do test -e /proc/$f && cat /proc/$f; done; true";
    assert_eq!(guest.sh(files), (String::new(), 0));
    // /proc/bus and /proc/fs are on every kernel.
    for dir in ["bus", "fs"] {
        let mounts = guest.sh("cat /proc/self/mountinfo").0;
        assert!(
            mounts
                .lines()
                .any(|l| l.contains(&format!(" /proc/{dir} ro,"))),
            "{mounts}"
        );
    }
    assert_eq!(
        guest
            .sh("ls -A /sys/firmware /sys/kernel/debug 2>/dev/null | grep -v :")
            .0
            .trim(),
        ""
    );
    assert_ne!(guest.sh("echo b > /proc/sysrq-trigger").1, 0);
    assert_ne!(
        guest
            .sh("echo 1 > /sys/kernel/mm/transparent_hugepage/enabled")
            .1,
        0
    );
    let (_, code) = guest.sh("for d in null zero full random urandom tty ptmx console; do test -c /dev/$d || exit 1; done; test -d /dev/shm && test -d /dev/mqueue && test -L /dev/fd");
    assert_eq!(code, 0);
    assert_eq!(
        guest
            .sh("head -c 3 /dev/zero | wc -c; echo x >/dev/null")
            .0
            .trim(),
        "3"
    );
    assert_eq!(
        guest.sh("echo text > /dev/shm/f && cat /dev/shm/f").0,
        "text\n"
    );
    assert_ne!(guest.sh("busybox mknod /tmp/sda b 8 0").1, 0);
    assert_eq!(guest.sh("grep cgroup2 /proc/mounts | wc -l").0.trim(), "1");
    assert_eq!(guest.sh("hostname").0.trim(), guest.spec.hostname);
}

#[test]
fn a_guest_may_not_leave_its_limits_or_touch_their_files() {
    let guest = guest(|_, _| {});
    // Delegated: it may make groups below, but not write the knobs of its own directory.
    assert_eq!(
        guest
            .sh("mkdir /sys/fs/cgroup/sub && echo 0 > /sys/fs/cgroup/sub/cgroup.procs")
            .1,
        0
    );
    assert_ne!(guest.sh("echo 1 > /sys/fs/cgroup/cgroup.freeze").1, 0);
    guest.stop();
    assert!(
        guest.cgroups().is_empty(),
        "what the guest made is removed, too"
    );
}

#[test]
fn nesting_has_unmasked_copies() {
    let guest = guest(|spec, _| spec.nesting = true);
    assert_eq!(
        guest
            .sh("test -d /dev/.lxc/proc/1 && test -d /dev/.lxc/sys/kernel")
            .1,
        0
    );
    // A container in the container: a new proc needs a fully visible one.
    let (output, code) = guest.sh(
        "busybox unshare -m -p -f -U -r sh -c 'mount -t proc proc /proc && cat /proc/1/comm; true'",
    );
    assert_eq!((output.trim(), code), ("sh", 0));
}

#[test]
fn hostile_roots_are_refused_or_harmless() {
    enter_namespaces();
    let attempt = |prepare: &dyn Fn(&Path, &mut Spec)| {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        busybox_root(&root);
        let mut spec = spec(dir.path());
        prepare(&root, &mut spec);
        let mut guest = Guest {
            dir,
            spec,
            init_pid: 0,
            monitor_pid: 0,
        };
        guest.start().map(|()| guest)
    };
    for name in ["proc", "sys", "dev"] {
        let fault = attempt(&|root, _| {
            std::fs::remove_dir(root.join(name)).unwrap();
            symlink("/tmp", root.join(name)).unwrap();
        })
        .err()
        .unwrap();
        assert_eq!(
            (fault.stage.as_str(), fault.code),
            ("rootfs", FaultCode::Invalid),
            "{name}: {fault}"
        );
    }
    // A disk whose target leads out of the root by links stays inside.
    let outside = tempfile::tempdir().unwrap();
    let share = tempfile::tempdir().unwrap();
    std::fs::write(share.path().join("mark"), "shared").unwrap();
    let out = outside.path().to_str().unwrap().to_owned();
    let source = share.path().to_str().unwrap().to_owned();
    let guest = attempt(&|root, spec| {
        symlink("../../../../../../../../..", root.join("up")).unwrap();
        spec.mounts
            .push(disk("d", &source, &format!("/up{out}/x"), false));
    })
    .unwrap();
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    assert_eq!(guest.sh(&format!("cat {out}/x/mark")).0, "shared");
}

fn disk(name: &str, source: &str, target: &str, ro: bool) -> Mount {
    Mount {
        name: name.into(),
        attachment: Attachment {
            source: Source::HostPath {
                path: source.into(),
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
fn privileged_guests_are_fenced_by_capabilities_masks_and_device_rules() {
    let guest = guest(|spec, _| {
        spec.privileged = true;
        spec.idmap = vec![];
    });
    let status = guest.sh("cat /proc/self/status").0;
    let bounding = u64::from_str_radix(&status_field(&status, "CapBnd:"), 16).unwrap();
    assert_eq!(bounding & 1 << 16, 0);
    assert_ne!(
        guest.sh("echo 1 > /proc/sys/kernel/panic").1,
        0,
        "/proc/sys is read-only"
    );
    assert_eq!(
        guest.sh("echo 1 > /proc/sys/net/ipv4/ip_forward").1,
        0,
        "its own network's part is not"
    );
    assert_ne!(guest.sh("touch /sys/kernel/x").1, 0);
    // A node may be made, but not opened.
    assert_ne!(
        guest
            .sh("busybox mknod /tmp/vda b 254 0 && head -c 1 /tmp/vda")
            .1,
        0
    );
    assert_eq!(
        guest.sh("echo ok >/dev/null; echo fine"),
        ("fine\n".into(), 0)
    );
    assert!(
        guest.sh("cat /proc/mounts").0.contains("sysfs ro"),
        "sysfs is read-only"
    );
    // The program cannot be written through the processes it forks: it runs from a read-only mount.
    let flags = std::fs::read_to_string(format!("/proc/{}/cmdline", guest.monitor_pid)).unwrap();
    assert!(flags.starts_with("[berth monitor] default "), "{flags}");
    let exe = std::fs::File::open(format!("/proc/{}/exe", guest.monitor_pid)).unwrap();
    // SAFETY: an all-zero statvfs is valid and the descriptor is open.
    let flags = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        assert_eq!(
            libc::fstatvfs(std::os::fd::AsRawFd::as_raw_fd(&exe), &mut stat),
            0
        );
        stat.f_flag
    };
    assert_ne!(flags & libc::ST_RDONLY, 0);
}

#[test]
fn the_root_descriptor_is_the_guests_and_its_namespace_too() {
    let guest = guest(|_, _| {});
    let (root, userns) = guest.client().open_root().unwrap();
    let file = berth_monitor::sys::openat2(
        &root,
        "/etc/passwd",
        libc::O_RDONLY,
        0,
        berth_monitor::sys::RESOLVE_IN_ROOT,
    )
    .unwrap();
    let text = std::io::read_to_string(std::fs::File::from(file)).unwrap();
    assert!(text.starts_with("root:x:0"));
    use std::os::fd::AsRawFd;
    let ns = std::fs::read_link(format!("/proc/self/fd/{}", userns.as_raw_fd())).unwrap();
    assert_eq!(
        ns,
        std::fs::read_link(format!("/proc/{}/ns/user", guest.init_pid)).unwrap()
    );
}

#[test]
fn clients_that_are_not_root_are_refused() {
    let guest = guest(|_, _| {});
    let path = guest.run_dir().join("monitor.sock");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    for dir in [guest.run_dir(), guest.dir.path().to_owned()] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let header = ToMonitor {
        id: 1,
        body: Request::Hello { version: 1 },
    };
    let frame = berth_monitor::frame::encode(&header, &[]).unwrap();
    let answer = std::thread::spawn(move || {
        // SAFETY: changes the ids of this thread alone (raw call).
        unsafe { libc::syscall(libc::SYS_setresuid, 12345, 12345, 12345) };
        let mut socket = std::os::unix::net::UnixStream::connect(path).unwrap();
        use std::io::{Read, Write};
        let _ = socket.write_all(&frame);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        answer
    })
    .join()
    .unwrap();
    assert!(answer.is_empty());
}

/// CVE-2024-21626: a directory or command below /proc/self/fd would be one that the monitor has open.
#[test]
fn no_path_of_an_exec_or_of_init_leads_through_the_monitors_descriptors() {
    let guest = guest(|_, _| {});
    let mut client = guest.client();
    for fd in 3..64 {
        let mut exec = exec_of(&["ls", "-a"]);
        exec.cwd = Some(format!("/proc/self/fd/{fd}"));
        let fault = client.call(Request::StartExec(exec)).unwrap_err();
        assert_eq!(fault.stage, "cwd", "descriptor {fd}: {fault}");
        let exec = exec_of(&[&format!(
            "/proc/self/fd/{fd}/../../../../../../../bin/busybox"
        )]);
        let fault = client.call(Request::StartExec(exec)).unwrap_err();
        assert_eq!(fault.code, FaultCode::CommandNotFound, "{fd}: {fault}");
    }
    // A link of the guest's says the same.
    guest.sh("ln -s /proc/self/fd/3 /link");
    let mut exec = exec_of(&["ls", "-a"]);
    exec.cwd = Some("/link".into());
    assert_eq!(
        client.call(Request::StartExec(exec)).unwrap_err().stage,
        "cwd"
    );
    // Ordinary links still work.
    guest.sh("ln -s /tmp /ordinary");
    let mut exec = exec_of(&["/bin/busybox", "pwd", "-P"]);
    exec.cwd = Some("/ordinary".into());
    assert_eq!(guest.exec(exec), ("/tmp\n".into(), 0));
}

/// The image chooses what /sbin/init is: a link through a descriptor that a start has open is one to the host.
#[test]
fn init_is_no_program_of_the_hosts() {
    for fd in 3..48 {
        let started = try_guest(|_, root| {
            std::fs::remove_file(root.join("sbin/init")).unwrap();
            let target = format!("/proc/self/fd/{fd}/../../../../../../../../bin/busybox");
            symlink(target, root.join("sbin/init")).unwrap();
        });
        assert!(started.is_err(), "descriptor {fd}");
    }
}

/// The monitor removes by descending what the guest made in its cgroup.
#[test]
fn cgroups_of_a_guest_have_a_depth() {
    let guest = guest(|_, _| {});
    let (depth, code) = guest.sh("cd /sys/fs/cgroup; i=0; \
         while mkdir d 2>/dev/null && cd d; do i=$((i+1)); done; echo $i");
    assert_eq!((depth.trim(), code), ("128", 0));
    let cgroups = guest.cgroups();
    assert!(!cgroups.is_empty());
    guest.stop();
    eventually("the cgroups' end", || cgroups.iter().all(|c| !c.exists()));
}

/// What the guest binds over its ptmx is not opened by the monitor.
#[test]
fn a_terminal_comes_from_devpts_only() {
    let guest = guest(|_, _| {});
    assert_eq!(guest.sh("touch /x && mount -o bind /x /dev/pts/ptmx").1, 0);
    let mut exec = exec_of(&["true"]);
    exec.pty = Some(PtySize { rows: 1, cols: 1 });
    let fault = guest.client().call(Request::StartExec(exec)).unwrap_err();
    assert_eq!(fault.errno, libc::EXDEV, "{fault}");
}
