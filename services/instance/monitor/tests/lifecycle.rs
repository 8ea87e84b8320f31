//! Start, stop, reboot, crash: what a guest's life leaves behind, and what it says.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::{Duration, Instant};

use berth_monitor::client::Client;
use berth_monitor::error::FaultCode;
use berth_monitor::protocol::*;
use common::*;

#[test]
fn a_guest_starts_runs_and_goes_without_a_trace() {
    let guest = guest(|_, _| {});
    eventually("boot", || guest.console().contains("booted"));
    assert_eq!(guest.sh("echo hello; exit 3"), ("hello\n".into(), 3));
    let mut client = guest.client();
    let Reply::State(state) = client
        .call(Request::GetState {
            without_network: false,
        })
        .unwrap()
    else {
        panic!()
    };
    assert_eq!(state.status, Status::Running);
    assert_eq!(
        (state.generation, state.run, state.init_pid),
        (7, 1, guest.init_pid)
    );
    assert!(state.cpu_ns.unwrap() > 0);
    assert!(state.memory.usage.unwrap() > 0);
    assert!(state.pids.unwrap() >= 1);
    assert_eq!(state.links.len(), 1);
    assert!(state.links[0].up && state.links[0].kind == "loopback");
    assert!(!guest.cgroups().is_empty());

    client.call(Request::Subscribe).unwrap();
    let begun = Instant::now();
    client.call(Request::Stop { how: StopHow::Kill }).unwrap();
    let took = begun.elapsed();
    assert!(
        took < Duration::from_millis(500),
        "a forced stop took {took:?}"
    );
    assert!(guest.cgroups().is_empty(), "{:?}", guest.cgroups());
    assert!(!alive(guest.init_pid));
    // The answer comes before the monitor's own end.
    eventually("the socket is gone", || {
        !guest.run_dir().join("monitor.sock").exists()
    });
    let ended = guest.status_json();
    assert_eq!(
        (ended.reason, ended.generation, ended.run),
        (ExitReason::Killed, 7, 1)
    );
    assert!(ended.cpu_ns.unwrap() > 0);
    let mut seen = Vec::new();
    while let Ok((event, _)) = client.event() {
        seen.push(event);
    }
    assert!(
        matches!(seen.first(), Some(Event::InitExited { run: 1, .. })),
        "{seen:?}"
    );
    assert!(
        matches!(seen.last(), Some(Event::Stopped(e)) if *e == ended),
        "{seen:?}"
    );
    eventually("the monitor's end", || !alive(guest.monitor_pid));
}

#[test]
fn busybox_halts_on_a_graceful_stop() {
    let guest = guest(|_, _| {});
    eventually("boot", || guest.console().contains("booted"));
    guest
        .client()
        .call(Request::Stop {
            how: StopHow::Graceful { timeout_ms: 15_000 },
        })
        .unwrap();
    let ended = guest.status_json();
    assert_eq!(
        (ended.reason, ended.status),
        (ExitReason::Halt, Some(ExitStatus::Signal(libc::SIGINT)))
    );
}

#[test]
fn a_graceful_stop_that_init_ignores_times_out_and_can_be_forced() {
    let guest = guest(|spec, root| {
        std::fs::write(
            root.join("bin/stubborn"),
            "#!/bin/sh\ntrap '' PWR TERM INT\nwhile :; do sleep 1; done\n",
        )
        .unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(root.join("bin/stubborn"), PermissionsExt::from_mode(0o755))
            .unwrap();
        spec.init = vec!["/bin/stubborn".into()];
    });
    let fault = guest
        .client()
        .call(Request::Stop {
            how: StopHow::Graceful { timeout_ms: 100 },
        })
        .unwrap_err();
    assert_eq!(fault.code, FaultCode::Timeout);
    assert!(alive(guest.init_pid));
    let Reply::State(state) = guest
        .client()
        .call(Request::GetState {
            without_network: true,
        })
        .unwrap()
    else {
        panic!()
    };
    assert_eq!(state.status, Status::Running);
    guest.stop();
    assert_eq!(guest.status_json().reason, ExitReason::Killed);
}

#[test]
fn a_reboot_from_inside_is_a_new_run() {
    let guest = guest(|_, _| {});
    eventually("boot", || guest.console().contains("booted"));
    let mut client = guest.client();
    client.call(Request::Subscribe).unwrap();
    let userns = std::fs::read_link(format!("/proc/{}/ns/user", guest.init_pid)).unwrap();
    let _ = guest
        .client()
        .call(Request::StartExec(exec_of(&["/sbin/reboot", "-f"])));
    let init_pid = loop {
        match client.event().unwrap().0 {
            Event::Rebooted {
                run,
                init_pid,
                generation,
            } => {
                assert_eq!((run, generation), (2, 7));
                break init_pid;
            }
            Event::InitExited { run, reason } => assert_eq!((run, reason), (1, ExitReason::Reboot)),
            _ => {}
        }
    };
    assert_ne!(init_pid, guest.init_pid);
    assert_ne!(
        std::fs::read_link(format!("/proc/{init_pid}/ns/user")).unwrap(),
        userns
    );
    assert_eq!(guest.sh("echo again"), ("again\n".into(), 0));
    // Asked for from outside: the same, answered when it is done.
    client.call(Request::Reboot { how: StopHow::Kill }).unwrap();
    let Reply::State(state) = client
        .call(Request::GetState {
            without_network: true,
        })
        .unwrap()
    else {
        panic!()
    };
    assert_eq!(state.run, 3);
    assert_eq!(guest.sh("echo third").0, "third\n");
}

#[test]
fn an_ephemeral_guest_that_reboots_ends() {
    let guest = guest(|spec, _| spec.reboot_in_place = false);
    let _ = guest
        .client()
        .call(Request::StartExec(exec_of(&["/sbin/reboot", "-f"])));
    eventually("the end", || guest.run_dir().join("status.json").exists());
    assert_eq!(guest.status_json().reason, ExitReason::Reboot);
}

#[test]
fn a_reboot_loop_ends() {
    let guest = guest(|spec, root| {
        std::fs::write(root.join("etc/init.d/rcS"), "/sbin/reboot -f\n").unwrap();
        spec.max_reboots_per_minute = 3;
    });
    eventually("the end", || guest.run_dir().join("status.json").exists());
    let ended = guest.status_json();
    assert_eq!((ended.reason, ended.run), (ExitReason::RebootLoop, 4));
    eventually("clean cgroups", || guest.cgroups().is_empty());
}

#[test]
fn an_init_that_fails_is_a_crash() {
    let guest = guest(|spec, _| spec.init = vec!["/bin/sh".into(), "-c".into(), "exit 9".into()]);
    eventually("the end", || guest.run_dir().join("status.json").exists());
    let ended = guest.status_json();
    assert_eq!(
        (ended.reason, ended.status),
        (ExitReason::Crash, Some(ExitStatus::Code(9)))
    );
}

#[test]
fn a_failed_start_says_where_and_leaves_nothing() {
    enter_namespaces();
    type Break = fn(&mut berth_monitor::spec::Spec);
    let cases: [(&str, Break); 4] = [
        ("init", |s| s.init = vec!["/bin/missing".into()]),
        ("attachment", |s| {
            s.rootfs.source = berth_monitor::spec::Source::HostPath {
                path: "/nonexistent".into(),
                recursive: false,
            };
        }),
        ("network", |s| {
            s.nics = vec![serde_json::from_value(serde_json::json!({
                "name": "eth0", "kind": "bridged", "parent": "nobridge0", "host_name": "vtest0", "guest_name": "eth0",
            }))
            .unwrap()];
        }),
        ("sysctls", |s| {
            s.sysctls = vec![("no.such.thing".into(), "1".into())]
        }),
    ];
    for (stage, break_it) in cases {
        let dir = tempfile::tempdir().unwrap();
        busybox_root(&dir.path().join("root"));
        let mut spec = spec(dir.path());
        break_it(&mut spec);
        let mut guest = Guest {
            dir,
            spec,
            init_pid: 0,
            monitor_pid: 0,
        };
        let fault = guest.start().unwrap_err();
        assert_eq!(fault.stage, stage, "{fault}");
        assert!(fault.errno != 0, "{fault}");
        assert!(guest.cgroups().is_empty(), "{stage}");
        assert!(!guest.run_dir().join("monitor.sock").exists(), "{stage}");
    }
}

#[test]
fn a_killed_monitor_takes_init_along_and_the_next_start_cleans_up() {
    let mut guest = guest(|_, _| {});
    let (init, monitor) = (guest.init_pid, guest.monitor_pid);
    // SAFETY: a process this test started.
    unsafe { libc::kill(monitor, libc::SIGKILL) };
    eventually("init's end", || !alive(init));
    assert!(!guest.cgroups().is_empty(), "nobody removed them");
    guest.start().unwrap();
    assert_eq!(guest.sh("echo back").0, "back\n");
    guest.stop();
    assert!(guest.cgroups().is_empty());
}

#[test]
fn one_monitor_per_instance() {
    let mut guest = guest(|_, _| {});
    let fault = guest.start().unwrap_err();
    assert_eq!(fault.code, FaultCode::Exists, "{fault}");
    assert_eq!(guest.sh("echo unharmed").0, "unharmed\n");
}

#[test]
fn nonsense_on_the_socket_harms_nobody() {
    use std::io::Write;
    let guest = guest(|_, _| {});
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 64],
        &[8, 0, 0, 0, 4, 0, 0, 0, b'n', b'u', b'l', b'l'],
        &[0xff; 9],
    ] {
        let mut socket =
            std::os::unix::net::UnixStream::connect(guest.run_dir().join("monitor.sock")).unwrap();
        socket.write_all(bytes).unwrap();
    }
    // A request before hello is refused.
    let mut socket =
        std::os::unix::net::UnixStream::connect(guest.run_dir().join("monitor.sock")).unwrap();
    let header = ToMonitor {
        id: 1,
        body: Request::ListExecs,
    };
    socket
        .write_all(&berth_monitor::frame::encode(&header, &[]).unwrap())
        .unwrap();
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut socket, &mut answer).unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("hello"));
    assert_eq!(guest.sh("echo fine").0, "fine\n");
    assert!(Client::connect(guest.dir.path()).is_err());
}
