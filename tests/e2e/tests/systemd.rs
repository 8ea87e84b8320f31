//! Berth from its Debian packages, under systemd, on a machine of its own: what `xtask up` cannot
//! show. One machine serves a whole scenario, since a boot and an installation take the most time.
//!
//! `cargo xtask bed test systemd` runs them; `packaged` is the shortest.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::path::PathBuf;

use berth_e2e::Machine;
use berth_e2e::machine::difference;
use tempfile::TempDir;
use xtask::deb;
use xtask::sandbox::{SERVICES, paths};

/// Packages of this build; the later version is what an upgrade installs.
fn packages(version: Option<&str>, out: &TempDir) -> Vec<PathBuf> {
    let binaries = std::env::var_os("BERTH_BIN_DIR").map(PathBuf::from);
    let options = deb::Options {
        bin_dir: Some(binaries.unwrap_or_else(|| paths::build_workspace().unwrap())),
        out: Some(out.path().to_owned()),
        version_suffix: version.map(str::to_owned),
        no_lint: true,
        ..deb::Options::default()
    };
    deb::run(&options).unwrap()
}

/// A machine with Berth installed and set up, and what it was before.
fn installed() -> (Machine, berth_e2e::machine::Traces) {
    let out = TempDir::new().unwrap();
    let machine = Machine::fresh(packages(None, &out));
    // The clients are not Berth's; nor are the tools that look for traces.
    machine.sh("apt-get install --yes lxd-client nftables");
    let before = machine.traces();
    machine.sh("DEBIAN_FRONTEND=noninteractive apt-get install --yes /root/berth/*.deb");
    machine.wait_for_services();
    machine.sh("berth admin init --auto");
    (machine, before)
}

fn launch(machine: &Machine, name: &str) {
    if machine
        .lxc(&["image", "list", "debian", "--format", "csv"])
        .is_empty()
    {
        machine.lxc(&[
            "image",
            "import",
            "/root/debian.tar.gz",
            "--alias",
            "debian",
        ]);
    }
    machine.lxc(&["launch", "debian", name]);
    machine.wait_for_guest(name);
}

/// Everything Berth has goes, then Berth.
fn purge(machine: &Machine, guests: &[&str]) {
    for guest in guests {
        machine.lxc(&["delete", "--force", guest]);
    }
    machine.sh("DEBIAN_FRONTEND=noninteractive apt-get purge --yes --auto-remove 'berth*'");
}

fn confined(machine: &Machine, guest: &str) {
    let init = machine.init_of(guest);
    let label = machine.sh(&format!("cat /proc/{init}/attr/current"));
    let profile = label
        .strip_suffix(" (enforce)")
        .unwrap_or_else(|| panic!("it is {label}"));
    // A profile of its own, not the one that the service has.
    assert!(profile.starts_with("berth-"), "{label}");
    let others = SERVICES.map(|service| format!("berth-{service}"));
    assert!(!others.iter().any(|other| other == profile), "{label}");
    machine.sh(&format!(
        "grep -qxF '{label}' /sys/kernel/security/apparmor/profiles"
    ));

    let map = machine.sh(&format!("cat /proc/{init}/uid_map"));
    let fields: Vec<u64> = map.split_whitespace().map(|f| f.parse().unwrap()).collect();
    let [inside, outside, count] = fields[..] else {
        panic!("one range: {map}")
    };
    assert!(
        inside == 0 && outside >= 100_000 && count >= 65_536,
        "{map}"
    );

    // Pure v2: one hierarchy, and the limit is where the kernel looks for it.
    let cgroup = machine.sh(&format!("cat /proc/{init}/cgroup"));
    assert!(
        cgroup.starts_with("0::/") && cgroup.lines().count() == 1,
        "{cgroup}"
    );
    machine.lxc(&["config", "set", guest, "limits.memory", "256MiB"]);
    machine.lxc(&["config", "set", guest, "limits.cpu", "1"]);
    let limit = (256 << 20).to_string();
    machine.sh(&format!(
        "d=/sys/fs/cgroup$(cut -d: -f3 /proc/{init}/cgroup)\n\
         while [ $d != /sys/fs/cgroup ]; do\n\
             [ \"$(cat $d/memory.max)\" != {limit} ] || exit 0\n\
             d=$(dirname $d)\n\
         done; exit 1"
    ));
    assert_eq!(
        machine.inside(guest, "free --mebi | awk '/^Mem:/ {print $2}'"),
        "256"
    );
    assert_eq!(machine.inside(guest, "nproc"), "1");
    machine.lxc(&["config", "unset", guest, "limits.memory"]);
    machine.lxc(&["config", "unset", guest, "limits.cpu"]);
}

/// A command in a guest whose output goes on arriving, as a unit of the machine.
fn start_stream(machine: &Machine, guest: &str) {
    machine.sh(&format!(
        "systemctl reset-failed stream 2>/dev/null || :\n\
         systemd-run --quiet --unit stream --setenv LXD_SOCKET=/var/lib/berth/unix.socket \
         --property StandardOutput=truncate:/root/stream --property WorkingDirectory=/root \
         --setenv HOME=/root \
         lxc exec {guest} -- sh -c 'i=0; while sleep 0.2; do i=$((i + 1)); echo $i; done'"
    ));
    machine.until("a streaming exec", "[ -s /root/stream ]");
}

/// It has lost nothing, and more arrives.
fn stream_goes_on(machine: &Machine, after: &str) {
    machine.until(
        &format!("the exec after {after}"),
        "n=$(wc -l </root/stream); sleep 1; [ $(wc -l </root/stream) -gt $n ]",
    );
    machine.sh("[ \"$(cat /root/stream)\" = \"$(seq $(wc -l </root/stream))\" ]");
}

/// Each service ends and comes back; the guest and its exec notice nothing. The gateway's end is
/// that of its clients' websockets, so it goes last.
fn services_come_back(machine: &Machine, guest: &str, how: &dyn Fn(&str) -> String) {
    let init = machine.init_of(guest);
    start_stream(machine, guest);
    for service in ["image", "storage", "network", "instance"] {
        let unit = format!("berth-{service}.service");
        let pid = format!("systemctl show --property MainPID --value {unit}");
        let before = machine.sh(&pid);
        let script = how(&unit);
        machine.sh(&script);
        machine.until(
            &format!("{unit} anew"),
            &format!("p=$({pid}); [ $p != 0 ] && [ $p != {before} ] && systemctl is-active {unit}"),
        );
        assert_eq!(machine.init_of(guest), init, "the guest after `{script}`");
        stream_goes_on(machine, &script);
    }
    machine.sh(&how("berth-gateway.service"));
    machine.wait_for_services();
    assert_eq!(machine.init_of(guest), init);
    assert_eq!(machine.inside(guest, "echo it lives"), "it lives");
}

fn restart(unit: &str) -> String {
    format!("systemctl restart {unit}")
}

fn kill(unit: &str) -> String {
    format!("systemctl kill --kill-whom main --signal KILL {unit}")
}

#[test]
#[ignore = "takes minutes; cargo xtask bed test systemd"]
fn packaged() {
    let (machine, before) = installed();
    assert_eq!(
        machine.sh("systemctl is-system-running || systemctl --failed"),
        "running"
    );
    launch(&machine, "c1");
    confined(&machine, "c1");
    services_come_back(&machine, "c1", &restart);
    services_come_back(&machine, "c1", &kill);
    purge(&machine, &["c1"]);
    let left = difference(&before, &machine.traces());
    assert!(left.is_empty(), "{}", left.join("\n"));
}

#[test]
#[ignore = "takes minutes; cargo xtask bed test systemd"]
fn all_services_killed_at_once() {
    let (machine, before) = installed();
    launch(&machine, "c1");
    let init = machine.init_of("c1");
    start_stream(&machine, "c1");
    let units: Vec<_> = SERVICES
        .iter()
        .map(|s| format!("berth-{s}.service"))
        .collect();
    machine.sh(&kill(&units.join(" ")));
    machine.wait_for_services();
    assert_eq!(machine.init_of("c1"), init);
    assert_eq!(machine.inside("c1", "echo it lives"), "it lives");
    machine.lxc(&["stop", "c1"]);
    machine.lxc(&["start", "c1"]);
    machine.wait_for_guest("c1");
    purge(&machine, &["c1"]);
    let left = difference(&before, &machine.traces());
    assert!(left.is_empty(), "{}", left.join("\n"));
}

#[test]
#[ignore = "takes minutes; cargo xtask bed test systemd"]
fn upgraded_and_rebooted() {
    let (mut machine, before) = installed();
    launch(&machine, "c1");
    machine.lxc(&["config", "set", "c1", "boot.autostart", "true"]);
    machine.inside("c1", "echo kept >/root/data && sync");
    launch(&machine, "c2");
    machine.lxc(&["stop", "c2"]);

    let out = TempDir::new().unwrap();
    let later = packages(Some("b2"), &out);
    let later: Vec<_> = later.iter().map(PathBuf::as_path).collect();
    machine.sh("mkdir /root/later");
    machine.bed().copy_in(&later, "/root/later").unwrap();
    let (init, version) = (
        machine.init_of("c1"),
        "dpkg-query -W -f '${Version}' berth-instance",
    );
    let old = machine.sh(version);
    start_stream(&machine, "c1");
    machine.sh("DEBIAN_FRONTEND=noninteractive apt-get install --yes /root/later/*.deb");
    assert_ne!(machine.sh(version), old);
    machine.wait_for_services();
    assert_eq!(machine.init_of("c1"), init, "an upgrade stops no guest");
    assert_eq!(machine.inside("c1", "cat /root/data"), "kept");

    machine.bed().reboot().unwrap();
    machine.wait_for_services();
    machine.wait_for_guest("c1");
    assert_eq!(machine.inside("c1", "cat /root/data"), "kept");
    assert_eq!(
        machine.lxc(&["list", "c2", "--format", "csv", "-c", "s"]),
        "STOPPED"
    );
    machine.lxc(&["start", "c2"]);
    machine.wait_for_guest("c2");
    confined(&machine, "c2");

    purge(&machine, &["c1", "c2"]);
    let left = difference(&before, &machine.traces());
    assert!(left.is_empty(), "{}", left.join("\n"));
}
