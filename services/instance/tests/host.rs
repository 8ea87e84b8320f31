//! The real binary with real monitors: busybox guests, in namespaces of the test's own. Needs root, `ip`,
//! busybox-static, and `berth-monitor` built beside the service (`cargo build -p berth-monitor`).

#![allow(clippy::unwrap_used, reason = "a test says by failing what went wrong")]

mod common;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_proto::instance as proto;
use berth_proto::instance::exec_service_client::ExecServiceClient;
use berth_proto::instance::file_service_client::FileServiceClient;
use berth_proto::instance::instance::Status;
use berth_proto::instance::instance_service_client::InstanceServiceClient;
use berth_rpc::Channel;
use common::{attachment, device, full, map, nic, root};
use proto::stream_exec_request::{Ack, Attach, Message as In};
use proto::stream_exec_response::Message as Out;

/// Everything below one directory, and a cgroup parent of the test's own.
struct Bed {
    dir: tempfile::TempDir,
    cgroup: String,
    service: Option<Child>,
}

impl Bed {
    fn new(name: &str) -> Bed {
        enter_namespaces();
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", "br0", "type", "bridge"]);
        run("ip", &["link", "set", "br0", "up"]);
        let cgroup = format!("berth-test-{}-{name}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let bed = Bed {
            dir,
            cgroup,
            service: None,
        };
        let monitor =
            Path::new(env!("CARGO_BIN_EXE_berth-instance")).with_file_name("berth-monitor");
        assert!(
            monitor.exists(),
            "cargo build -p berth-monitor makes {}",
            monitor.display()
        );
        let text = format!(
            "run_dir = '{run}'\nmonitor = '{monitor}'\ncgroup_parent = '{cgroup}'\nlxcfs_dir = ''\n\
             state_deadline_ms = 2000\nsystemd_scope = false\n\
             [server]\nlisten = ['unix:{socket}']\nstate_dir = '{state}'\n",
            run = bed.path("run").display(),
            monitor = monitor.display(),
            cgroup = bed.cgroup,
            socket = bed.path("api.sock").display(),
            state = bed.path("state").display(),
        );
        std::fs::write(bed.path("instance.toml"), text).unwrap();
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth-instance"));
        command.arg("--config").arg(self.path("instance.toml"));
        command
    }

    async fn serve(&mut self) -> Api {
        self.serve_with("").await
    }

    async fn serve_with(&mut self, failpoints: &str) -> Api {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("service.log"))
            .unwrap();
        let mut command = self.command();
        command.env("BERTH_FAILPOINTS", failpoints);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.service = Some(command.spawn().unwrap());
        let channel =
            berth_rpc::connect(&format!("unix:{}", self.path("api.sock").display())).unwrap();
        let mut api = Api {
            instances: InstanceServiceClient::new(channel.clone()),
            execs: ExecServiceClient::new(channel.clone()),
            files: FileServiceClient::new(channel),
        };
        for _ in 0..500 {
            if api
                .instances
                .get_host(proto::GetHostRequest {})
                .await
                .is_ok()
            {
                return api;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the service did not come up:\n{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("service.log")).unwrap_or_default()
    }

    /// As kill -9.
    fn kill(&mut self) {
        let mut child = self.service.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A volume with busybox as everything and a template.
    fn volume(&self, name: &str) -> PathBuf {
        let top = self.path(name);
        let root = top.join("rootfs");
        for dir in [
            "bin",
            "sbin",
            "etc/init.d",
            "proc",
            "sys",
            "dev",
            "tmp",
            "root",
            "usr/bin",
        ] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        std::fs::create_dir_all(top.join("templates")).unwrap();
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|p| Path::new(p).exists());
        std::fs::copy(
            busybox.expect("busybox-static is installed"),
            root.join("bin/busybox"),
        )
        .unwrap();
        for applet in [
            "sh", "cat", "sleep", "nproc", "ip", "true", "echo", "id", "stat", "ls", "head", "wc",
        ] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        for applet in ["init", "reboot", "poweroff", "halt"] {
            symlink("../bin/busybox", root.join("sbin").join(applet)).unwrap();
        }
        std::fs::write(
            root.join("etc/inittab"),
            "::sysinit:/bin/true\n::ctrlaltdel:/sbin/reboot\n",
        )
        .unwrap();
        std::fs::write(top.join("templates/hostname.tpl"), "{{ container.name }}\n").unwrap();
        std::fs::write(
            top.join("metadata.yaml"),
            "architecture: x86_64\ncreation_date: 1\ntemplates:\n  /etc/hostname:\n    when: [create]\n    template: hostname.tpl\n",
        )
        .unwrap();
        top
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(mut child) = self.service.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let purged = self.command().arg("purge").status();
        if !std::thread::panicking() {
            assert!(purged.unwrap().success());
        }
    }
}

fn enter_namespaces() {
    // SAFETY: plain integers; this thread alone changes.
    let done = unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS | libc::CLONE_NEWNET) };
    assert_eq!(
        done,
        0,
        "these tests need root: {}",
        std::io::Error::last_os_error()
    );
    run("mount", &["--make-rprivate", "/"]);
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}");
}

fn cgroups(name: &str) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let group = matches!(right.split(' ').next(), Some("cgroup" | "cgroup2"));
        group.then(|| PathBuf::from(left.split(' ').nth(4).unwrap()).join(name))
    });
    points.filter(|p| p.exists()).collect()
}

#[derive(Clone)]
struct Api {
    instances: InstanceServiceClient<Channel>,
    execs: ExecServiceClient<Channel>,
    files: FileServiceClient<Channel>,
}

impl Api {
    async fn create(&mut self, name: &str, volume: &Path) -> proto::Instance {
        let instance = proto::Instance {
            devices: [root(), nic()].into(),
            ..Default::default()
        };
        let plan = proto::PlanCreateInstanceRequest {
            parent: common::PROJECT.into(),
            instance_id: name.into(),
            default_profiles: true,
            instance: Some(instance),
            ..Default::default()
        };
        let plan = self
            .instances
            .plan_create_instance(plan)
            .await
            .unwrap()
            .into_inner();
        let mut request = common::commit(name, &plan);
        request.attachments = [("root".to_owned(), attachment(name, volume))].into();
        self.instances
            .create_instance(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn start(&mut self, name: &str) -> proto::Instance {
        let request = proto::StartInstanceRequest {
            name: full(name),
            ..Default::default()
        };
        self.instances
            .start_instance(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn stop(&mut self, name: &str, force: bool) -> proto::Instance {
        let request = proto::StopInstanceRequest {
            name: full(name),
            force,
            timeout_seconds: 30,
            ..Default::default()
        };
        self.instances
            .stop_instance(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn get(&mut self, name: &str) -> proto::Instance {
        let view = proto::InstanceView::Full.into();
        let request = proto::GetInstanceRequest {
            name: full(name),
            view,
        };
        self.instances
            .get_instance(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn begin(&mut self, name: &str, command: &[&str]) -> proto::Exec {
        let request = proto::CreateExecRequest {
            parent: full(name),
            command: command.iter().map(|s| (*s).to_owned()).collect(),
            no_stdin: true,
            ..Default::default()
        };
        self.execs.create_exec(request).await.unwrap().into_inner()
    }

    /// Output from an offset on, and the exit code.
    async fn finish(&mut self, exec: &str, from: u64) -> (String, i32) {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let attach = Attach {
            name: exec.into(),
            stdout_offset: from,
            ..Default::default()
        };
        sender
            .send(proto::StreamExecRequest {
                message: Some(In::Attach(attach)),
            })
            .await
            .unwrap();
        let input = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut output = self.execs.stream_exec(input).await.unwrap().into_inner();
        let mut text = Vec::new();
        while let Some(message) = output.message().await.unwrap() {
            match message.message.unwrap() {
                Out::Stdout(piece) => {
                    let stdout_offset = piece.offset + piece.data.len() as u64;
                    text.extend(piece.data);
                    let ack = In::Ack(Ack {
                        stdout_offset,
                        stderr_offset: 0,
                    });
                    let _ = sender
                        .send(proto::StreamExecRequest { message: Some(ack) })
                        .await;
                }
                Out::Exit(exit) => return (String::from_utf8(text).unwrap(), exit.exit_code),
                _ => {}
            }
        }
        panic!("no exit");
    }

    async fn exec(&mut self, name: &str, command: &[&str]) -> (String, i32) {
        let exec = self.begin(name, command).await;
        self.finish(&exec.name, 0).await
    }

    async fn set(&mut self, name: &str, pairs: &[(&str, &str)]) {
        let paths = pairs.iter().map(|(k, _)| format!("config.{k}")).collect();
        let request = proto::UpdateInstanceRequest {
            instance: Some(proto::Instance {
                name: full(name),
                config: map(pairs),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths }),
            ..Default::default()
        };
        self.instances.update_instance(request).await.unwrap();
    }

    async fn put(&mut self, name: &str, path: &str, text: &'static str) {
        use proto::put_file_request::{Header, Message};
        let header = Header {
            name: full(name),
            path: path.into(),
            uid: Some(1000),
            gid: Some(1000),
            mode: Some(0o640),
            ..Default::default()
        };
        let messages = [Message::Header(header), Message::Data(text.into())];
        let messages = messages.map(|m| proto::PutFileRequest { message: Some(m) });
        self.files
            .put_file(tokio_stream::iter(messages))
            .await
            .unwrap();
    }

    async fn read(&mut self, name: &str, path: &str) -> (proto::FileHeader, String) {
        use proto::get_file_response::Message;
        let request = proto::GetFileRequest {
            name: full(name),
            path: path.into(),
            head_only: false,
        };
        let mut stream = self.files.get_file(request).await.unwrap().into_inner();
        let (mut header, mut text) = (None, Vec::new());
        while let Some(message) = stream.message().await.unwrap() {
            match message.message.unwrap() {
                Message::Header(h) => header = Some(h),
                Message::Data(data) => text.extend(data),
            }
        }
        (header.unwrap(), String::from_utf8(text).unwrap())
    }

    async fn wait(
        &mut self,
        name: &str,
        what: impl Fn(&proto::Instance) -> bool,
    ) -> proto::Instance {
        for _ in 0..1000 {
            let instance = self.get(name).await;
            if what(&instance) {
                return instance;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}", self.get(name).await);
    }
}

fn on_runtime(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

#[test]
fn the_life_of_a_real_guest() {
    let mut bed = Bed::new("life");
    on_runtime(async {
        let mut api = bed.serve().await;
        let volume = bed.volume("v1");
        api.create("c1", &volume).await;
        let started = api.start("c1").await;
        assert_eq!(started.status(), Status::Running);
        assert_eq!(
            api.exec("c1", &["cat", "/etc/hostname"]).await,
            ("c1\n".to_owned(), 0)
        );
        let (links, _) = api.exec("c1", &["ip", "link", "show", "eth0"]).await;
        assert!(links.contains(&started.ports["eth0"].mac), "{links}");
        assert_eq!(api.exec("c1", &["no-such-command"]).await.1, 127);
        assert_eq!(api.exec("c1", &["sh", "-c", "exit 7"]).await.1, 7);
        let (large, _) = api
            .exec(
                "c1",
                &[
                    "sh",
                    "-c",
                    "head -c 3000000 /dev/zero | wc -c; head -c 1000000 /dev/zero",
                ],
            )
            .await;
        assert_eq!(large.len(), 8 + 1_000_000);

        let state = api.get("c1").await.state.unwrap();
        assert!(state.pid > 0 && state.memory.unwrap().usage_bytes > 0);
        assert_eq!(state.network["eth0"].hwaddr, started.ports["eth0"].mac);
        api.set(
            "c1",
            &[
                ("limits.cpu", "1"),
                ("limits.memory", "64MiB"),
                ("limits.processes", "50"),
            ],
        )
        .await;
        assert_eq!(api.exec("c1", &["nproc"]).await.0, "1\n");
        let memory = api.get("c1").await.state.unwrap().memory.unwrap();
        assert_eq!(memory.total_bytes, 64 << 20);

        // Files of the running guest.
        api.put("c1", "/root/f", "pushed").await;
        assert_eq!(
            api.exec("c1", &["stat", "-c", "%u %g %a", "/root/f"])
                .await
                .0,
            "1000 1000 640\n"
        );
        let (header, text) = api.read("c1", "/root/f").await;
        assert_eq!(
            (header.uid, header.mode, text.as_str()),
            (1000, 0o640, "pushed")
        );

        // A disk of the host, plugged in.
        let shared = bed.path("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::write(shared.join("x"), "shared").unwrap();
        let options = [
            ("type", "disk"),
            ("path", "/mnt/s"),
            ("source", shared.to_str().unwrap()),
        ];
        let request = proto::UpdateInstanceRequest {
            instance: Some(proto::Instance {
                name: full("c1"),
                devices: [("s".to_owned(), device(&options))].into(),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["devices.s".into()],
            }),
            ..Default::default()
        };
        api.instances.update_instance(request).await.unwrap();
        assert_eq!(api.exec("c1", &["cat", "/mnt/s/x"]).await.0, "shared");

        // From inside.
        api.begin("c1", &["reboot"]).await;
        let rebooted = api
            .wait("c1", |i| i.generation == 2 && i.status() == Status::Running)
            .await;
        assert_ne!(rebooted.state.unwrap().pid, state.pid);
        assert_eq!(api.exec("c1", &["nproc"]).await.0, "1\n");
        assert_eq!(api.exec("c1", &["cat", "/mnt/s/x"]).await.0, "shared");

        let began = Instant::now();
        api.stop("c1", true).await;
        println!("forced stop: {:?}", began.elapsed());
        assert_eq!(api.read("c1", "/root/f").await.1, "pushed");
        api.put("c1", "/root/g", "while stopped").await;
        api.start("c1").await;
        assert_eq!(
            api.exec("c1", &["stat", "-c", "%u", "/root/g"]).await.0,
            "1000\n"
        );
        api.stop("c1", false).await;
        let request = proto::DeleteInstanceRequest {
            name: full("c1"),
            ..Default::default()
        };
        api.instances.delete_instance(request).await.unwrap();
        assert_eq!(
            cgroups(&bed.cgroup).iter().filter(|g| has_child(g)).count(),
            0
        );
    });
}

/// A guest's, that is: monitors' own stays.
fn has_child(group: &Path) -> bool {
    std::fs::read_dir(group)
        .unwrap()
        .map(Result::unwrap)
        .any(|e| e.file_type().unwrap().is_dir() && e.file_name() != "monitors")
}

fn parent_of(pid: i64) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|l| l.strip_prefix("PPid:"));
    parent.unwrap().trim().parse().unwrap()
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: plain integers; the process is the monitor of this test's guest.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// While it lives the monitor is stopped: who gets an answer got it from somebody else.
struct Stopped(i32);

impl Stopped {
    fn new(monitor: i32) -> Self {
        signal(monitor, libc::SIGSTOP);
        Self(monitor)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, libc::SIGCONT);
    }
}

#[test]
fn numbers_are_told_without_the_monitor() {
    let mut bed = Bed::new("numbers");
    on_runtime(async {
        let mut api = bed.serve().await;
        let service = bed.service.as_ref().unwrap().id();
        // To monitors, and the one in the guest's network namespace.
        let sockets = || {
            let open = std::fs::read_dir(format!("/proc/{service}/fd")).unwrap();
            let targets = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
            targets
                .filter(|t| t.to_string_lossy().starts_with("socket:"))
                .count()
        };
        let volume = bed.volume("v1");
        api.create("c1", &volume).await;
        let before = sockets();
        let started = api.start("c1").await;
        let address = ["ip", "addr", "add", "10.1.2.3/24", "dev", "eth0"];
        assert_eq!(api.exec("c1", &address).await.1, 0);
        for generation in [1, 2] {
            let running =
                |i: &proto::Instance| i.generation == generation && i.status() == Status::Running;
            let asked = api.wait("c1", running).await.state.unwrap();
            assert_eq!(asked.unknown, "");
            let monitor = parent_of(asked.pid);
            let mut told = proto::InstanceState::default();
            // The first question of a run makes ready for the next.
            for _ in 0..100 {
                let stopped = Stopped::new(monitor);
                told = api.get("c1").await.state.unwrap();
                drop(stopped);
                if told.unknown.is_empty() {
                    break;
                }
                // The monitor must run for a moment to hand over what is asked of it.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!((told.unknown.as_str(), told.pid), ("", asked.pid));
            assert!(told.processes >= 1 && told.cpu_usage_ns >= asked.cpu_usage_ns);
            assert!(told.memory.unwrap().usage_bytes > 0);
            let (link, same) = (&told.network["eth0"], &asked.network["eth0"]);
            assert_eq!(link.hwaddr, started.ports["eth0"].mac);
            assert_eq!(link.host_name, started.ports["eth0"].host_name);
            assert_eq!((&link.addresses, link.mtu), (&same.addresses, same.mtu));
            let has_address = link.addresses.iter().any(|a| a.address == "10.1.2.3");
            assert_eq!(has_address, generation == 1, "the run's own links");
            if generation == 1 {
                api.begin("c1", &["reboot"]).await;
            }
        }
        api.stop("c1", true).await;
        // Nothing of the guest's is kept, least of all its network namespace.
        for _ in 0..1000 {
            if sockets() <= before {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} sockets, {before} before the start", sockets());
    });
}

#[test]
fn guests_and_execs_survive_the_service() {
    let mut bed = Bed::new("survive");
    on_runtime(async {
        let mut api = bed.serve().await;
        let volume = bed.volume("v1");
        let created = api.create("c1", &volume).await;
        api.create("c2", &bed.volume("v2")).await;
        api.start("c1").await;
        api.start("c2").await;
        let pid = api.get("c1").await.state.unwrap().pid;
        let exec = api
            .begin(
                "c1",
                &["sh", "-c", "echo before; sleep 1; echo after; exit 3"],
            )
            .await;
        bed.kill();
        let socket = bed.path("run").join(&created.uid).join("monitor.sock");
        assert!(socket.exists());
        let mut api = bed.serve().await;
        let found = api.get("c1").await;
        assert_eq!(
            (found.status(), found.state.unwrap().pid),
            (Status::Running, pid)
        );
        assert_eq!(api.finish(&exec.name, 7).await, ("after\n".to_owned(), 3));
        bed.kill();
        assert!(stop_unheard(&bed, &created).await);
        let mut api = bed.serve().await;
        api.wait("c1", |i| i.status() == Status::Stopped).await;
        assert_eq!(api.get("c2").await.status(), Status::Running);
        api.start("c1").await;
        api.stop("c1", true).await;
    });
    // Purge (at the end of `bed`) kills c2.
    let cgroup = bed.cgroup.clone();
    drop(bed);
    assert_eq!(cgroups(&cgroup), Vec::<PathBuf>::new());
}

/// The service dies at each step of a start; the retry of the request answers as if it had not.
#[test]
fn a_start_survives_a_crash_at_each_step() {
    let mut bed = Bed::new("crash");
    on_runtime(async {
        let mut api = bed.serve().await;
        let volume = bed.volume("v1");
        api.create("c1", &volume).await;
        for (at, point) in ["begin", "spawn", "spawned", "commit"].iter().enumerate() {
            bed.kill();
            let mut api = bed
                .serve_with(&format!("instance.start.{point}=crash"))
                .await;
            let request = proto::StartInstanceRequest {
                name: full("c1"),
                request_id: format!("start-{at}"),
                ..Default::default()
            };
            api.instances
                .start_instance(request.clone())
                .await
                .unwrap_err();
            bed.service.take().unwrap().wait().unwrap();
            let mut api = bed.serve().await;
            let started = api
                .instances
                .start_instance(request.clone())
                .await
                .unwrap()
                .into_inner();
            let wanted = i64::try_from(at).unwrap() + 1;
            assert_eq!(
                (started.status(), started.generation),
                (Status::Running, wanted),
                "{point}"
            );
            let again = api
                .instances
                .start_instance(request)
                .await
                .unwrap()
                .into_inner();
            assert_eq!(again.generation, wanted, "{point}");
            api.stop("c1", true).await;
        }
    });
    let cgroup = bed.cgroup.clone();
    drop(bed);
    assert_eq!(cgroups(&cgroup), Vec::<PathBuf>::new());
}

/// Stops a guest behind the service's back.
async fn stop_unheard(bed: &Bed, instance: &proto::Instance) -> bool {
    use berth_instance::runtime::link::Link;
    use berth_monitor::protocol::{Request, StopHow};
    let socket = bed.path("run").join(&instance.uid).join("monitor.sock");
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let (link, _events, _hello) = Link::greet(stream).await.unwrap();
    link.done(Request::Stop { how: StopHow::Kill })
        .await
        .is_ok()
}

/// Prints what a start, an exec, a list and a stop take.
#[test]
fn measures() {
    let mut bed = Bed::new("measures");
    on_runtime(async {
        let mut api = bed.serve().await;
        let mut times: [Vec<Duration>; 4] = Default::default();
        for at in 0..10 {
            let name = format!("m{at}");
            let volume = bed.volume(&name);
            api.create(&name, &volume).await;
            let began = Instant::now();
            api.start(&name).await;
            times[0].push(began.elapsed());
            let began = Instant::now();
            api.exec(&name, &["true"]).await;
            times[1].push(began.elapsed());
        }
        for _ in 0..10 {
            let began = Instant::now();
            let request = proto::ListInstancesRequest {
                parent: "projects/-".into(),
                view: proto::InstanceView::Full.into(),
                ..Default::default()
            };
            api.instances.list_instances(request).await.unwrap();
            times[2].push(began.elapsed());
        }
        for at in 0..10 {
            let began = Instant::now();
            api.stop(&format!("m{at}"), true).await;
            times[3].push(began.elapsed());
        }
        for (what, times) in ["start", "exec true", "list 10 with state", "forced stop"]
            .iter()
            .zip(&mut times)
        {
            times.sort();
            println!(
                "{what}: median {:?}, most {:?}",
                times[times.len() / 2],
                times[times.len() - 1]
            );
            // Far above the aim: it only catches a sleep or a poll that crept in.
            assert!(
                times[times.len() / 2] < Duration::from_millis(500),
                "{what}"
            );
        }
    });
}
