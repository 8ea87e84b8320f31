//! The main job: a Debian 12 system container, as a user meets it through the stock `lxc`.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::time::Duration;

use berth_e2e::{Image, Server, wait};

const BOOT: Duration = Duration::from_secs(60);

#[test]
fn lxc_debian_system_container() {
    let server = Server::any();
    server.import(Image::Debian);
    let lxc = server.lxc();
    lxc.ok(&["launch", "debian", "deb-a"]);
    let run = |command: &str| lxc.run(&["exec", "deb-a", "--", "sh", "-c", command]);
    let out = |command: &str| {
        let done = run(command);
        assert_eq!(done.code, 0, "{command}: {done:?}");
        done.stdout.trim().to_owned()
    };

    wait::until("systemd has started everything", BOOT, || {
        let done = run("systemctl is-system-running");
        let failed = || run("systemctl --failed --no-legend").stdout;
        match done.stdout.trim() {
            "running" => Ok(()),
            "degraded" => panic!("degraded: {}", failed()),
            other => Err(format!("{other}: {}", done.stderr)),
        }
    });
    assert_eq!(out("systemctl is-system-running"), "running");

    let address = wait::until("an address by DHCP", BOOT, || {
        let shown = lxc.ok(&["list", "deb-a", "--format", "csv", "-c", "4"]);
        let shown = shown.trim().trim_matches('"').to_owned();
        shown
            .strip_suffix(" (eth0)")
            .map(str::to_owned)
            .ok_or(shown)
    });
    assert!(out("ip -4 -o addr show eth0").contains(&format!("inet {address}/")));
    let gateway = out("ip -4 route show default | cut -d' ' -f3");
    let resolved = out(&format!(
        "resolvectl --interface=eth0 query deb-a.lxd; echo {gateway}"
    ));
    assert!(resolved.contains(&address), "{resolved}");
    assert!(
        out("resolvectl dns eth0").contains(&gateway),
        "the bridge serves DNS"
    );
    assert_eq!(out("hostname"), "deb-a");

    // Its own processes and no others: pid 1 is its systemd, and no process of the machine shows.
    assert_eq!(out("cat /proc/1/comm"), "systemd");
    let highest = out("ls -d /proc/[0-9]* | wc -l").parse::<u32>().unwrap();
    assert!(highest < 100, "{highest} processes are visible");
    let visible = out("cat /proc/[0-9]*/comm 2>/dev/null | sort -u");
    for foreign in [
        "kthreadd",
        "dnsmasq",
        "lxd",
        "berth-gateway",
        "berth-monitor",
    ] {
        assert!(
            !visible.lines().any(|name| name == foreign),
            "{foreign} shows in {visible}"
        );
    }
    let state = lxc.query(&["/1.0/instances/deb-a/state"]);
    let processes = state["processes"].as_i64().unwrap();
    assert!((3..100).contains(&processes), "{processes} processes");

    let lxcfs = out("grep -c lxcfs /proc/self/mountinfo || true") != "0";
    assert!(lxcfs || !server.is_own(), "the sandbox has no lxcfs");
    limits(&lxc, &out, lxcfs);
    repaired_by_restore(&lxc, &out, &run);

    lxc.ok(&["restart", "deb-a", "--timeout", "60"]);
    wait::until("it runs again", BOOT, || {
        match run("systemctl is-system-running").stdout.trim() {
            "running" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    lxc.ok(&["stop", "deb-a", "--timeout", "60"]);
    lxc.ok(&["delete", "deb-a"]);
    assert_eq!(lxc.ok(&["list", "deb-a", "--format", "csv"]), "");
}

/// Limits show inside at once; memory by lxcfs, which a server under comparison may lack.
fn limits(lxc: &berth_e2e::Lxc, out: &dyn Fn(&str) -> String, lxcfs: bool) {
    let mebibytes = || {
        out("free --mebi | awk '/^Mem:/ {print $2}'")
            .parse::<u32>()
            .unwrap()
    };
    let all = out("nproc").parse::<u32>().unwrap();
    lxc.ok(&["config", "set", "deb-a", "limits.cpu", "1"]);
    assert_eq!(out("nproc"), "1");
    lxc.ok(&["config", "set", "deb-a", "limits.memory", "128MiB"]);
    assert!(!lxcfs || mebibytes() == 128);
    let state = lxc.query(&["/1.0/instances/deb-a/state"]);
    assert!(
        state["memory"]["usage"].as_i64().unwrap() <= 128 << 20,
        "{state}"
    );
    lxc.ok(&["config", "set", "deb-a", "limits.memory", "256MiB"]);
    assert!(!lxcfs || mebibytes() == 256);
    lxc.ok(&["config", "unset", "deb-a", "limits.memory"]);
    lxc.ok(&["config", "unset", "deb-a", "limits.cpu"]);
    assert_eq!(out("nproc").parse::<u32>().unwrap(), all);
    let total = mebibytes();
    assert!(total > 256, "{total} MiB without a limit");
}

fn repaired_by_restore(
    lxc: &berth_e2e::Lxc,
    out: &dyn Fn(&str) -> String,
    run: &dyn Fn(&str) -> berth_e2e::lxc::Done,
) {
    lxc.ok(&["snapshot", "deb-a", "snap"]);
    // /bin is a link to usr/bin; the slash makes rm follow it.
    lxc.ok(&["exec", "deb-a", "--", "rm", "-rf", "/bin/"]);
    lxc.ok(&["exec", "deb-a", "--", "/usr/sbin/ldconfig", "--version"]);
    assert_eq!(run("true").code, 127, "there is no shell any more");
    lxc.ok(&["restore", "deb-a", "snap"]);
    wait::until("it runs again", BOOT, || {
        match run("systemctl is-system-running") {
            done if done.stdout.trim() == "running" => Ok(()),
            done => Err(format!("{done:?}")),
        }
    });
    assert_eq!(out("ls /bin/ls"), "/bin/ls");
}
