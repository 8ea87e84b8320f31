//! A Debian system with systemd boots, runs, reboots and powers off. Needs a root filesystem as a tar file in
//! BERTH_TEST_DEBIAN (mmdebstrap --variant=minbase --include=systemd,systemd-sysv,dbus,iproute2 bookworm); ignored
//! without it, because making one takes a minute and a package mirror.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use berth_monitor::protocol::*;
use berth_monitor::spec::GuestCgroups;
use common::*;

fn debian(view: GuestCgroups, nesting: bool) -> Guest {
    enter_namespaces();
    let archive = std::env::var("BERTH_TEST_DEBIAN")
        .expect("BERTH_TEST_DEBIAN names a root filesystem's tar");
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let unpacked = Command::new("tar")
        .args(["-xpf", &archive, "--numeric-owner", "-C"])
        .arg(&root)
        .status()
        .unwrap();
    assert!(unpacked.success());
    let mut spec = spec(dir.path());
    spec.cgroup.guest_view = view;
    spec.nesting = nesting;
    spec.drop_capabilities = [
        "sys_module",
        "sys_time",
        "sys_rawio",
        "mac_admin",
        "mac_override",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut guest = Guest {
        dir,
        spec,
        init_pid: 0,
        monitor_pid: 0,
    };
    guest.start().unwrap();
    guest
}

fn wait_running(guest: &Guest) {
    let begun = Instant::now();
    loop {
        let (state, _) = guest.sh(
            "systemctl is-system-running --wait 2>&1 || systemctl --failed --no-legend --plain",
        );
        if state.trim() == "running" {
            break;
        }
        let problems = guest
            .sh("journalctl -b -p warning --no-pager 2>&1 | tail -40")
            .0;
        assert!(
            !state.contains("degraded") && begun.elapsed() < Duration::from_secs(40),
            "{state}\n{problems}\n{}",
            guest.console()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("running after {:?}", begun.elapsed());
}

fn boots_runs_reboots_and_halts(view: GuestCgroups, nesting: bool) {
    let guest = debian(view, nesting);
    wait_running(&guest);
    assert_eq!(
        guest
            .sh("systemctl is-active systemd-journald dbus")
            .0
            .lines()
            .filter(|l| *l == "active")
            .count(),
        2
    );
    let mut client = guest.client();
    client.call(Request::Subscribe).unwrap();
    guest.sh("systemctl reboot");
    while !matches!(client.event().unwrap().0, Event::Rebooted { run: 2, .. }) {}
    wait_running(&guest);
    client
        .call(Request::Stop {
            how: StopHow::Graceful { timeout_ms: 20_000 },
        })
        .unwrap();
    let ended = guest.status_json();
    assert_eq!((ended.reason, ended.run), (ExitReason::Halt, 2));
    assert!(guest.cgroups().is_empty());
}

#[test]
#[ignore = "needs BERTH_TEST_DEBIAN"]
fn unified() {
    boots_runs_reboots_and_halts(GuestCgroups::Unified, false);
}

#[test]
#[ignore = "needs BERTH_TEST_DEBIAN"]
fn what_the_guest_mounts_itself() {
    boots_runs_reboots_and_halts(GuestCgroups::Empty, false);
}

#[test]
#[ignore = "needs BERTH_TEST_DEBIAN"]
fn nested() {
    boots_runs_reboots_and_halts(GuestCgroups::Unified, true);
}
