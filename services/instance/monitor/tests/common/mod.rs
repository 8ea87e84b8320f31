//! A guest with a busybox root filesystem, in namespaces and cgroups of the test's own.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "each test file uses its part"
)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use berth_monitor::client::Client;
use berth_monitor::error::Fault;
use berth_monitor::protocol::*;
use berth_monitor::spawn;
use berth_monitor::spec::*;

pub const MONITOR: &str = env!("CARGO_BIN_EXE_berth-monitor");
pub const HOST_BASE: u32 = 1_000_000;
pub const CGROUPS: &str = "/sys/fs/cgroup";

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub struct Guest {
    pub dir: tempfile::TempDir,
    pub spec: Spec,
    pub init_pid: i32,
    pub monitor_pid: i32,
}

/// Mount and network namespace of this thread alone; what it spawns is born there.
pub fn enter_namespaces() {
    // SAFETY: plain integers.
    let done = unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS | libc::CLONE_NEWNET) };
    assert_eq!(
        done,
        0,
        "these tests need root: {}",
        std::io::Error::last_os_error()
    );
    let private = std::process::Command::new("mount")
        .args(["--make-rprivate", "/"])
        .status()
        .unwrap();
    assert!(private.success());
}

/// A root filesystem with busybox as everything. `init` is a shell script run by pid 1 (busybox init runs rcS).
pub fn busybox_root(root: &Path) {
    for dir in [
        "bin",
        "sbin",
        "etc/init.d",
        "proc",
        "sys",
        "dev",
        "tmp",
        "root",
        "mnt",
        "usr/bin",
    ] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .expect("busybox-static is installed");
    std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "ls", "sleep", "id", "stty", "kill", "mount", "dd", "head", "ip", "nproc",
        "true", "echo", "hostname", "mkdir", "wc", "env", "tty", "grep", "touch", "stat",
        "readlink", "yes",
    ] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    for name in ["init", "reboot", "poweroff", "halt"] {
        symlink("../bin/busybox", root.join("sbin").join(name)).unwrap();
    }
    std::fs::write(
        root.join("etc/inittab"),
        "::sysinit:/bin/sh /etc/init.d/rcS\n::ctrlaltdel:/sbin/reboot\n::shutdown:/bin/true\n",
    )
    .unwrap();
    std::fs::write(root.join("etc/init.d/rcS"), "echo booted\n").unwrap();
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nu:x:1000:1000::/:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(root.join("bin/plain"), "not executable").unwrap();
    std::fs::set_permissions(root.join("bin/plain"), PermissionsExt::from_mode(0o644)).unwrap();
}

/// A spec for the root filesystem in `dir`/root. The directory is on a file system that can be idmapped.
pub fn spec(dir: &Path) -> Spec {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let text = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    for name in ["run", "log"] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
    }
    Spec {
        version: SPEC_VERSION,
        uid: "0190a000-0000-7000-8000-000000000001".into(),
        project: "default".into(),
        name: format!("t{number}"),
        generation: 7,
        run_dir: text("run"),
        log_dir: text("log"),
        host_mount_ns: None,
        init: vec![],
        init_env: vec![],
        hostname: format!("t{number}"),
        idmap: vec![IdMap {
            kind: IdKind::Both,
            host: HOST_BASE,
            ns: 0,
            len: 65536,
        }],
        privileged: false,
        nesting: false,
        rootfs: Attachment {
            source: Source::HostPath {
                path: text("root"),
                recursive: false,
            },
            attr: MountAttr::default(),
            fs_uuid: None,
            ownership: Ownership::Raw,
            can_idmap: true,
        },
        mounts: vec![],
        nics: vec![],
        devices: vec![],
        cgroup: CgroupSpec {
            parent: format!("berth-test-{}-{number}", std::process::id()),
            unified_parent: None,
            name: "guest".into(),
            guest_view: GuestCgroups::Unified,
        },
        limits: Limits::default(),
        rlimits: vec![],
        sysctls: vec![],
        seccomp: None,
        drop_capabilities: vec!["sys_module".into(), "sys_time".into()],
        lxcfs_dir: None,
        apparmor_profile: None,
        oom_score_adj: None,
        dev_lxd_dir: None,
        reboot_in_place: true,
        halt_signal: None,
        max_reboots_per_minute: 10,
        traceparent: None,
    }
}

/// A running busybox guest; `change` may alter its spec and its root filesystem first.
pub fn guest(change: impl FnOnce(&mut Spec, &Path)) -> Guest {
    try_guest(change).unwrap_or_else(|e| panic!("{e}"))
}

pub fn try_guest(change: impl FnOnce(&mut Spec, &Path)) -> Result<Guest, Fault> {
    enter_namespaces();
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    busybox_root(&dir.path().join("root"));
    let mut spec = spec(dir.path());
    change(&mut spec, &dir.path().join("root"));
    let mut guest = Guest {
        dir,
        spec,
        init_pid: 0,
        monitor_pid: 0,
    };
    guest.start()?;
    Ok(guest)
}

impl Guest {
    pub fn start(&mut self) -> Result<(), Fault> {
        // Another program in its place (a tracer, an older release) for finding out.
        let binary = std::env::var("BERTH_TEST_MONITOR").unwrap_or_else(|_| MONITOR.into());
        match spawn::start(binary, &self.spec)? {
            StartReport::Ok {
                init_pid,
                monitor_pid,
                ..
            } => {
                self.init_pid = init_pid;
                self.monitor_pid = monitor_pid;
                Ok(())
            }
            StartReport::Error(fault) => Err(fault),
        }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.spec.run_dir.clone().into()
    }

    pub fn client(&self) -> Client {
        let mut client = Client::connect(&self.run_dir()).unwrap();
        client.set_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }

    /// Output and exit of a shell line in the guest.
    pub fn sh(&self, line: &str) -> (String, i32) {
        self.exec(exec_of(&["/bin/sh", "-c", line]))
    }

    pub fn exec(&self, start: StartExec) -> (String, i32) {
        let mut client = self.client();
        let id = start.exec_id.clone();
        client
            .call(Request::StartExec(start))
            .unwrap_or_else(|e| panic!("{e}"));
        let (output, status) = follow(&mut client, &id);
        client.call(Request::DeleteExec { exec_id: id }).unwrap();
        (output, status.shell_code())
    }

    pub fn stop(&self) {
        self.client()
            .call(Request::Stop { how: StopHow::Kill })
            .unwrap();
    }

    pub fn status_json(&self) -> Ended {
        let text = std::fs::read(self.run_dir().join("status.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// Directories of this guest in all hierarchies.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let name = format!("{}/{}", self.spec.cgroup.parent, self.spec.cgroup.name);
        hierarchies()
            .into_iter()
            .map(|h| h.join(&name))
            .filter(|p| p.exists())
            .collect()
    }

    pub fn cgroup_file(&self, hierarchy: &str, file: &str) -> String {
        let path = Path::new(CGROUPS)
            .join(hierarchy)
            .join(&self.spec.cgroup.parent)
            .join(&self.spec.cgroup.name)
            .join(file);
        std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
            .trim()
            .to_owned()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(Path::new(&self.spec.log_dir).join("monitor.log")).unwrap()
    }

    pub fn console(&self) -> String {
        String::from_utf8_lossy(
            &self
                .client()
                .call_with(Request::GetConsoleLog, &[])
                .unwrap()
                .1,
        )
        .into_owned()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Ok(mut client) = Client::connect(&self.run_dir()) {
            let _ = client.call(Request::Stop { how: StopHow::Kill });
        }
        for hierarchy in hierarchies() {
            let parent = hierarchy.join(&self.spec.cgroup.parent);
            let _ = std::fs::remove_dir(parent.join(&self.spec.cgroup.name));
            // The monitor answers before it ends.
            let monitors = parent.join(berth_monitor::MONITORS);
            for _ in 0..200 {
                match std::fs::remove_dir(&monitors) {
                    Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                    _ => break,
                }
            }
            let _ = std::fs::remove_dir(parent);
        }
        if std::thread::panicking() {
            eprintln!(
                "monitor.log:\n{}",
                std::fs::read_to_string(Path::new(&self.spec.log_dir).join("monitor.log"))
                    .unwrap_or_default()
            );
        }
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let mut all = vec![PathBuf::from(CGROUPS)];
    all.extend(
        std::fs::read_dir(CGROUPS)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.join("cgroup.procs").exists()),
    );
    all
}

pub fn exec_of(argv: &[&str]) -> StartExec {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    StartExec {
        exec_id: format!("e{number}"),
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        env: vec![
            ("PATH".into(), "/usr/bin:/sbin:/bin".into()),
            ("HOME".into(), "/root".into()),
        ],
        cwd: None,
        uid: 0,
        gid: 0,
        groups: vec![],
        pty: None,
        stdin: false,
    }
}

/// Attaches from the start, acknowledges all, gives both streams in order of arrival and the exit.
pub fn follow(client: &mut Client, id: &str) -> (String, ExitStatus) {
    client
        .call(Request::AttachExec {
            exec_id: id.into(),
            stdout_offset: 0,
            stderr_offset: 0,
        })
        .unwrap();
    let mut output = Vec::new();
    let mut ends = [0u64; 2];
    loop {
        match client.event().unwrap() {
            (
                Event::ExecOutput {
                    exec_id,
                    stream,
                    offset,
                },
                payload,
            ) if exec_id == id => {
                let end = &mut ends[usize::from(stream == Stream::Stderr)];
                assert_eq!(*end, offset, "output without gaps");
                *end += payload.len() as u64;
                output.extend(payload);
                let ack = Request::AckExec {
                    exec_id,
                    stdout: ends[0],
                    stderr: ends[1],
                };
                client.cast(ack, &[]).unwrap();
            }
            (
                Event::ExecExited {
                    exec_id,
                    status,
                    stdout_end,
                    stderr_end,
                },
                _,
            ) if exec_id == id => {
                assert_eq!(ends, [stdout_end, stderr_end]);
                return (String::from_utf8_lossy(&output).into_owned(), status);
            }
            _ => {}
        }
    }
}

/// Until it is true, at most ten seconds.
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn alive(pid: i32) -> bool {
    // SAFETY: signal 0 only asks.
    unsafe { libc::kill(pid, 0) == 0 }
}
