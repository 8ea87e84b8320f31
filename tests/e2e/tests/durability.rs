//! How often a change waits for the disk. Each wait is a few milliseconds on a disk that spins, and one
//! that is too many stays unseen on a machine with a fast one; so they are counted.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_e2e::{Image, Rest, Server, wait};
use http::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use xtask::sandbox::SERVICES;

const SOON: Duration = Duration::from_secs(30);

/// System calls that wait until something is on the disk.
const SYNCS: &str = "fsync,fdatasync,sync,syncfs,sync_file_range,msync";

/// Traces the five services and what they start.
struct Syncs {
    strace: Child,
    file: PathBuf,
}

impl Syncs {
    fn of(server: &Server, directory: &Path) -> Self {
        let file = directory.join("syncs");
        let services = SERVICES.map(|name| server.own().pid(name).unwrap());
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "signal=none", "-e"]);
        command.arg(format!("trace={SYNCS}")).arg("-o").arg(&file);
        for pid in services {
            command.arg("-p").arg(pid.to_string());
        }
        let strace = command.stdin(Stdio::null()).spawn().unwrap();
        let tracer = format!("TracerPid:\t{}", strace.id());
        let syncs = Self { strace, file };
        wait::until("strace at every thread", SOON, || {
            for pid in services {
                for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
                    let status = std::fs::read_to_string(task.unwrap().path().join("status"));
                    // A thread may end in between.
                    if status.is_ok_and(|text| !text.lines().any(|line| line == tracer)) {
                        return Err(format!("process {pid}"));
                    }
                }
            }
            Ok(())
        });
        syncs
    }

    /// The calls so far, one a line, each with its thread; without those of the image service, which writes
    /// down when an image was last used a while later.
    fn calls(&self, server: &Server) -> Vec<String> {
        let image = format!("/proc/{}/task", server.own().pid("image").unwrap());
        let text = std::fs::read_to_string(&self.file).unwrap();
        let calls = text.lines().filter(|line| !line.contains("resumed>"));
        let of_image = |line: &str| {
            let thread = line.split(' ').next().unwrap_or_default();
            Path::new(&image).join(thread).exists()
        };
        let others = calls.filter(|line| !of_image(line));
        others.map(str::to_owned).collect()
    }
}

impl Drop for Syncs {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.strace.id()).unwrap());
        let _ = kill(pid, Signal::SIGINT);
        let _ = self.strace.wait();
    }
}

fn create(rest: &mut Rest, name: &str) {
    let body = json!({"name": name, "source": {"type": "image", "alias": "busybox"}});
    rest.change(Method::POST, "/1.0/instances", body);
}

fn set_state(rest: &mut Rest, name: &str, action: &str) {
    let body = json!({"action": action, "timeout": 30, "force": true});
    rest.change(Method::PUT, &format!("/1.0/instances/{name}/state"), body);
}

#[test]
fn a_launch_waits_for_the_disk_at_most_eight_times_and_a_read_never() {
    let server = Server::sandbox();
    let mut rest = server.rest();
    server.import(Image::Busybox);
    // The first one unpacks the image into the pool.
    create(&mut rest, "first");

    let directory = tempfile::tempdir().unwrap();
    let syncs = Syncs::of(&server, directory.path());
    create(&mut rest, "c1");
    set_state(&mut rest, "c1", "start");
    let launch = syncs.calls(&server);
    // Volume, port, record, start: what each owner answered is on its disk.
    assert!((4..=8).contains(&launch.len()), "{launch:#?}");

    assert_eq!(rest.output("c1", &["echo", "hello"]), "hello");
    rest.get("/1.0/instances?recursion=2");
    rest.get("/1.0/instances/c1/state");
    assert_eq!(
        syncs.calls(&server).len(),
        launch.len(),
        "{:#?}",
        syncs.calls(&server)
    );

    let before = syncs.calls(&server).len();
    let snapshot = json!({"name": "s0", "stateful": false});
    rest.change(Method::POST, "/1.0/instances/c1/snapshots", snapshot);
    set_state(&mut rest, "c1", "stop");
    let after = syncs.calls(&server);
    // Contents and record; the end of the run. A database may empty its log meanwhile.
    assert!(
        (3..=6).contains(&(after.len() - before)),
        "{:#?}",
        &after[before..]
    );
}
