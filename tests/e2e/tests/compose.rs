//! The main job by `docker compose`: five containers, one for each service, of which any may be
//! restarted, replaced or killed while guests run.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use berth_e2e::inventory::Traces;
use berth_e2e::python::run;
use berth_e2e::server::{image_file, open_to_others};
use berth_e2e::{Image, Lxc, wait};
use tempfile::TempDir;
use xtask::sandbox::engine::{Engine, Tools};
use xtask::sandbox::{SERVICES, paths};

const SOON: Duration = Duration::from_secs(60);

/// A copy of the files that compose reads, with the binaries under test, and an engine for it.
struct Project {
    engine: Engine,
    directory: PathBuf,
    whole: Option<TempDir>,
}

impl Project {
    fn new() -> Self {
        let tools = Tools::cached().unwrap();
        let whole = TempDir::with_prefix("berth-compose-").unwrap();
        open_to_others(whole.path());
        let directory = whole.path().join("p");
        for file in ["docker-compose.yml", ".dockerignore", "deploy/Dockerfile"] {
            let to = directory.join(file);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(paths::workspace().join(file), to).unwrap();
        }
        binaries(&directory.join("bin"));
        let engine = Engine::start(&whole.path().join("e"), &tools).unwrap();
        let project = Self {
            engine,
            directory,
            whole: Some(whole),
        };
        std::fs::write(project.directory.join("here.yml"), project.here()).unwrap();
        run(project
            .engine
            .docker()
            .unwrap()
            .arg("import")
            .arg(&tools.base)
            .arg("berth-base"));
        project
    }

    /// What an engine inside another machine's sandbox must be told: capabilities that even root
    /// lacks there cannot be given away.
    fn here(&self) -> String {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let bounding = status
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:"))
            .map(|hex| u64::from_str_radix(hex.trim(), 16).unwrap())
            .unwrap();
        const SYS_RESOURCE: u64 = 1 << 24;
        let missing = match bounding & SYS_RESOURCE {
            0 => "[SYS_RESOURCE]",
            _ => "[]",
        };
        format!("services:\n  instance:\n    cap_drop: {missing}\n")
    }

    fn compose(&self, args: &[&str]) -> Command {
        let mut command = self.engine.docker().unwrap();
        command
            .args(["compose", "--project-directory"])
            .arg(&self.directory)
            .args(["--progress", "plain"])
            .arg("--file")
            .arg(self.directory.join("docker-compose.yml"))
            .arg("--file")
            .arg(self.directory.join("here.yml"))
            .args(args)
            .env("BERTH_BIN", "bin")
            .env("BERTH_STATE", self.engine.state())
            .env(
                "BERTH_HOST_MOUNT_NS",
                self.engine.mount_namespace().unwrap(),
            )
            .env("BERTH_CGROUP", format!("{}/guests", self.engine.cgroup()))
            .env("BERTH_HEALTH_INTERVAL", "1s");
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.compose(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "docker compose {}: {}{}\n{}",
            args.join(" "),
            text(&output.stdout),
            text(&output.stderr),
            text(
                &self
                    .compose(&["logs", "--tail=50"])
                    .output()
                    .unwrap()
                    .stdout
            ),
        );
        text(&output.stdout)
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("run/unix.socket")
    }

    fn container(&self, service: &str) -> String {
        self.ok(&["ps", "--quiet", service]).trim().to_owned()
    }

    /// Everything guests have on the machine, then the containers and their volumes.
    fn remove(&self) {
        self.ok(&["stop"]);
        for owner in ["instance", "network", "storage"] {
            self.ok(&["run", "--rm", "--no-deps", owner, "purge"]);
        }
        self.ok(&["down", "--volumes", "--timeout=5"]);
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let Some(whole) = self.whole.take() else {
            return;
        };
        if std::thread::panicking() {
            let logs = self.compose(&["logs", "--no-color"]).output();
            let kept = paths::target().join("e2e-logs/compose.log");
            let text = logs.map(|logs| logs.stdout).unwrap_or_default();
            let kept_at = kept.parent().map(std::fs::create_dir_all);
            eprintln!(
                "logs: {kept:?}: {kept_at:?} {:?}",
                std::fs::write(&kept, text)
            );
        }
        if let Err(error) = self.engine.stop() {
            eprintln!("{} stays: {error:#}", whole.keep().display());
        }
    }
}

/// Stripped: lines and names are half a gigabyte that every image would carry.
fn binaries(into: &Path) {
    let built = match std::env::var_os("BERTH_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => paths::build(false).unwrap(),
    };
    std::fs::create_dir_all(into).unwrap();
    for (_, name) in paths::BINARIES {
        run(Command::new("strip")
            .arg("--strip-all")
            .arg("-o")
            .arg(into.join(name))
            .arg(built.join(name)));
    }
}

/// A guest that must not notice.
struct Guest<'a> {
    lxc: &'a Lxc,
    pid: i64,
    address: String,
    count: u64,
}

impl<'a> Guest<'a> {
    fn launch(lxc: &'a Lxc, image: &Path) -> Self {
        lxc.ok(&[
            "image",
            "import",
            image.to_str().unwrap(),
            "--alias",
            "debian",
        ]);
        lxc.ok(&["launch", "debian", "c1"]);
        wait::until("systemd has started everything", SOON, || {
            let done = lxc.run(&["exec", "c1", "--", "systemctl", "is-system-running"]);
            match done.stdout.trim() {
                "running" => Ok(()),
                _ => Err(format!("{done:?}")),
            }
        });
        let address = address(lxc);
        let count = "i=0; while :; do i=$((i+1)); echo $i >/run/count; sleep 0.05; done";
        lxc.ok(&[
            "exec",
            "c1",
            "--",
            "systemd-run",
            "--quiet",
            "sh",
            "-c",
            count,
        ]);
        let mut guest = Self {
            lxc,
            pid: 0,
            address,
            count: 0,
        };
        guest.pid = guest.ask_pid();
        guest
    }

    fn ask_pid(&self) -> i64 {
        self.lxc.query(&["/1.0/instances/c1/state"])["pid"]
            .as_i64()
            .unwrap()
    }

    /// The same process, with the same address, still counting.
    #[track_caller]
    fn goes_on(&mut self, after: &str) {
        assert_eq!(self.ask_pid(), self.pid, "{after}");
        let before = self.count;
        wait::until("the counter goes on", SOON, || {
            let done = self.lxc.run(&["exec", "c1", "--", "cat", "/run/count"]);
            // The file is empty for a moment each time it is written.
            match done.stdout.trim().parse::<u64>() {
                Ok(now) if now > before => {
                    self.count = now;
                    Ok(())
                }
                _ => Err(format!("{before} before {after}, now {done:?}")),
            }
        });
        assert_eq!(address(self.lxc), self.address, "{after}");
    }
}

fn address(lxc: &Lxc) -> String {
    wait::until("an address by DHCP", SOON, || {
        let shown = lxc.ok(&["list", "c1", "--format", "csv", "-c", "4"]);
        let shown = shown.trim().trim_matches('"').to_owned();
        shown
            .strip_suffix(" (eth0)")
            .map(str::to_owned)
            .ok_or(shown)
    })
}

/// What the guest sees of its limits, which lxcfs shows.
fn limits(lxc: &Lxc) {
    let out = |command: &str| {
        let text = lxc.ok(&["exec", "c1", "--", "sh", "-c", command]);
        text.trim().to_owned()
    };
    let total = "free --mebi | awk '/^Mem:/ {print $2}'";
    lxc.ok(&["config", "set", "c1", "limits.cpu", "1"]);
    lxc.ok(&["config", "set", "c1", "limits.memory", "256MiB"]);
    assert_eq!((out("nproc"), out(total)), ("1".into(), "256".into()));
    lxc.ok(&["config", "unset", "c1", "limits.memory"]);
    lxc.ok(&["config", "unset", "c1", "limits.cpu"]);
}

#[test]
fn any_container_may_go_while_guests_run() {
    let project = Project::new();
    let traces = Traces::of_engine(&project.engine);
    let up = ["up", "--detach", "--wait", "--wait-timeout=60"];
    project.ok(&[&up[..], &["--build"]].concat());
    project.ok(&["exec", "-T", "gateway", "berth", "admin", "init", "--auto"]);
    let lxc = Lxc::new(&project.socket());
    let mut guest = Guest::launch(&lxc, &image_file(Image::Debian));
    limits(&lxc);

    for service in SERVICES {
        project.ok(&["restart", service]);
        project.ok(&up);
        guest.goes_on(&format!("{service} restarted"));

        project.ok(&["kill", "--signal=KILL", service]);
        project.ok(&up);
        guest.goes_on(&format!("{service} killed"));

        let before = project.container(service);
        let replace = ["--force-recreate", "--no-deps", service];
        project.ok(&[&up[..], &replace].concat());
        assert_ne!(
            project.container(service),
            before,
            "{service} was not replaced"
        );
        guest.goes_on(&format!("{service} replaced"));
    }
    project.ok(&["kill", "--signal=KILL"]);
    project.ok(&up);
    guest.goes_on("all killed");

    // Those that came after do the whole job too, for old guests and new ones.
    limits(&lxc);
    lxc.ok(&[
        "exec",
        "c1",
        "--",
        "systemctl",
        "restart",
        "systemd-networkd",
    ]);
    guest.goes_on("its lease asked for again");
    lxc.ok(&["launch", "debian", "c2"]);
    wait::until("the bridge's DNS knows the new one", SOON, || {
        let query = [
            "exec",
            "c1",
            "--",
            "resolvectl",
            "--interface=eth0",
            "query",
            "c2.lxd",
        ];
        let done = lxc.run(&query);
        (done.code == 0).then_some(()).ok_or(done.stderr)
    });
    // Restarts wait for calls under way, and for nothing else.
    let logs = project.ok(&["logs", "--no-color"]);
    assert!(!logs.contains("calls were still under way"), "{logs}");
    lxc.ok(&["restart", "c1", "--timeout", "60"]);
    for name in ["c1", "c2"] {
        lxc.ok(&["delete", "--force", name]);
    }
    // One is left to what an operator does at the end.
    lxc.ok(&["launch", "debian", "c3"]);
    project.remove();
    let mut project = project;
    project.engine.stop().unwrap();
    project.whole.take().unwrap().close().unwrap();
    let left = traces.look();
    assert!(left.is_empty(), "left on the machine: {left:#?}");
}
