//! `kill -9` of services while guests run, one launches and one streams: nobody notices.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use berth_e2e::inventory::{Traces, settles};
use berth_e2e::{Image, Rest, Server, wait};
use http::Method;
use serde_json::{Value, json};
use xtask::sandbox::SERVICES;

const GUESTS: u32 = 10;
const LINES: u32 = 80;
const SOON: Duration = Duration::from_secs(30);

fn launch(rest: &mut Rest, name: &str) {
    let body = json!({"name": name, "source": {"type": "image", "alias": "busybox"}});
    rest.change(Method::POST, "/1.0/instances", body);
    let start = json!({"action": "start", "timeout": 30});
    rest.change(Method::PUT, &format!("/1.0/instances/{name}/state"), start);
}

/// A process's start time distinguishes it from a later one with its pid.
fn started_at(pid: i64) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit(") ").next()?.split(' ').nth(19)?.to_owned())
}

fn guests(rest: &mut Rest) -> BTreeMap<String, (i64, Option<String>)> {
    (0..GUESTS)
        .map(|number| {
            let name = format!("guest-{number}");
            let pid = rest.get(&format!("/1.0/instances/{name}/state"))["pid"]
                .as_i64()
                .unwrap();
            (name, (pid, started_at(pid)))
        })
        .collect()
}

/// Waits until no task runs any more; execs of other clients count too.
fn all_operations_end(rest: &mut Rest) {
    wait::until("the end of all operations", SOON, || {
        let all = rest
            .try_get("/1.0/operations?recursion=1")
            .map_err(|e| format!("{e:#}"))?;
        match all["running"].as_array() {
            None => Ok(()),
            Some(running) if running.is_empty() => Ok(()),
            Some(running) => Err(format!("{running:?}")),
        }
    });
}

fn scenario(server: &Server, rest: &mut Rest, killed: &[&str]) {
    let sandbox = server.own();
    let lxc = server.lxc();
    let before = guests(rest);
    let count =
        format!("i=0; while [ $i -lt {LINES} ]; do echo line-$i; i=$((i+1)); sleep 0.05; done");
    let stream = lxc.spawn(&["exec", "guest-0", "--", "sh", "-c", &count]);
    wait::until("the exec streams", SOON, || {
        if stream.output().contains("line-5\n") {
            Ok(())
        } else {
            Err(stream.output())
        }
    });
    let late = json!({"name": "late", "source": {"type": "image", "alias": "busybox"}});
    rest.begin(Method::POST, "/1.0/instances", late);

    for service in killed {
        assert!(sandbox.kill(service).unwrap(), "{service} was not running");
    }
    for (name, (pid, started)) in &before {
        assert_eq!(&started_at(*pid), started, "{name} died with {killed:?}");
    }
    sandbox.start(killed).unwrap();
    if !killed.contains(&"gateway") {
        let (code, output) = stream.wait();
        let wanted: String = (0..LINES).map(|n| format!("line-{n}\n")).collect();
        assert_eq!(output, wanted, "the exec lost something with {killed:?}");
        assert_eq!(code, Some(0));
    } else {
        drop(stream);
    }
    all_operations_end(rest);

    assert_eq!(guests(rest), before, "a guest changed with {killed:?}");
    let listed = lxc.ok(&["list", "--format", "csv", "-c", "ns"]);
    for name in before.keys() {
        assert!(
            listed.contains(&format!("{name},RUNNING")),
            "{killed:?}: {listed}"
        );
    }
    let others: Vec<_> = listed
        .lines()
        .filter(|l| !l.starts_with("guest-"))
        .collect();
    assert!(
        others.is_empty() || others == ["late,STOPPED"],
        "{killed:?}: {listed}"
    );
    for number in 0..GUESTS {
        assert_eq!(
            rest.output(&format!("guest-{number}"), &["echo", "alive"]),
            "alive"
        );
    }
    if !others.is_empty() {
        launched_instance_works(rest);
    }
}

/// A launch that was resumed gave a whole instance.
fn launched_instance_works(rest: &mut Rest) {
    let start = json!({"action": "start", "timeout": 30});
    rest.change(Method::PUT, "/1.0/instances/late/state", start);
    assert_eq!(rest.output("late", &["hostname"]), "late");
    let stop = json!({"action": "stop", "force": true});
    rest.change(Method::PUT, "/1.0/instances/late/state", stop);
    rest.change(Method::DELETE, "/1.0/instances/late", Value::Null);
}

#[test]
fn guests_survive_the_death_of_any_service() {
    let server = Server::sandbox();
    let traces = Traces::of(server.own());
    let empty = traces.look();
    let fingerprint = server.import(Image::Busybox);
    let mut rest = server.rest();
    for number in 0..GUESTS {
        launch(&mut rest, &format!("guest-{number}"));
    }
    for service in SERVICES {
        scenario(&server, &mut rest, &[service]);
    }
    scenario(&server, &mut rest, &SERVICES);

    for number in 0..GUESTS {
        let path = format!("/1.0/instances/guest-{number}");
        let stop = json!({"action": "stop", "force": true});
        rest.change(Method::PUT, &format!("{path}/state"), stop);
        rest.change(Method::DELETE, &path, Value::Null);
    }
    rest.change(
        Method::DELETE,
        &format!("/1.0/images/{fingerprint}"),
        Value::Null,
    );
    settles(&traces, &empty);
    server.down();
    let left = traces.look();
    assert!(left.is_empty(), "left on the machine: {left:#?}");
}

/// What `down` promises, with everything there is to remove and every service dead.
#[test]
fn down_leaves_no_trace_even_of_dead_services() {
    let server = Server::sandbox();
    let traces = Traces::of(server.own());
    server.import(Image::Busybox);
    let mut rest = server.rest();
    launch(&mut rest, "left-running");
    for service in SERVICES {
        server.own().kill(service).unwrap();
    }
    assert!(!traces.look().is_empty());
    server.down();
    let left = traces.look();
    assert!(left.is_empty(), "left on the machine: {left:#?}");
}
