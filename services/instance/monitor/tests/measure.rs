//! Figures, not checks: `cargo test --release --test measure -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::{Duration, Instant};

use berth_monitor::protocol::*;
use berth_monitor::spawn;
use common::*;

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{what:32} median {:7.2} ms   p10 {:7.2}   p90 {:7.2}",
        at(50),
        at(10),
        at(90)
    );
}

fn pss_kib(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    text.lines()
        .find_map(|l| {
            l.strip_prefix("Pss:")?
                .trim()
                .strip_suffix(" kB")?
                .trim()
                .parse()
                .ok()
        })
        .unwrap()
}

#[test]
#[ignore = "measures"]
fn start_exec_state_stop() {
    enter_namespaces();
    let ip = |arguments: &str| {
        assert!(
            std::process::Command::new("ip")
                .args(arguments.split(' '))
                .status()
                .unwrap()
                .success()
        )
    };
    ip("link add br0 type bridge");
    ip("link set br0 up");
    let dir = tempfile::tempdir().unwrap();
    busybox_root(&dir.path().join("root"));
    let mut spec = spec(dir.path());
    spec.nics = vec![serde_json::from_value(serde_json::json!({
        "name": "eth0", "kind": "bridged", "parent": "br0", "host_name": "vmeasure", "guest_name": "eth0"
    })).unwrap()];
    spec.limits.pids = Some(500);
    let mut guest = Guest {
        dir,
        spec,
        init_pid: 0,
        monitor_pid: 0,
    };
    let [mut start, mut exec, mut state, mut stop, mut freeze] = [const { Vec::new() }; 5];
    for round in 0..25 {
        std::thread::sleep(Duration::from_millis(100));
        let begun = Instant::now();
        guest.start().unwrap();
        let took = begun.elapsed();
        std::thread::sleep(Duration::from_millis(100));
        let mut client = guest.client();
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(20));
            let begun = Instant::now();
            let id = exec_of(&[]).exec_id;
            client
                .call(Request::StartExec(StartExec {
                    exec_id: id.clone(),
                    ..exec_of(&["/bin/true"])
                }))
                .unwrap();
            follow(&mut client, &id);
            exec.push(begun.elapsed());
            let begun = Instant::now();
            client
                .call(Request::GetState {
                    without_network: false,
                })
                .unwrap();
            state.push(begun.elapsed());
        }
        let begun = Instant::now();
        client
            .call(Request::Freeze {
                holder: "m".into(),
                lease_seconds: None,
            })
            .unwrap();
        client.call(Request::Thaw { holder: "m".into() }).unwrap();
        freeze.push(begun.elapsed());
        if round == 20 {
            println!("monitor Pss {} KiB alone", pss_kib(guest.monitor_pid));
        }
        std::thread::sleep(Duration::from_millis(50));
        let begun = Instant::now();
        client.call(Request::Stop { how: StopHow::Kill }).unwrap();
        if round >= 3 {
            stop.push(begun.elapsed());
            start.push(took);
        }
    }
    show("start (spawn to init's exec)", start);
    show("exec /bin/true, round trip", exec);
    show("state with network", state);
    show("freeze + thaw", freeze);
    show("forced stop, cleaned up", stop);
}

#[test]
#[ignore = "measures"]
fn memory_of_ten_monitors() {
    enter_namespaces();
    let guests: Vec<Guest> = (0..10)
        .map(|_| {
            let dir = tempfile::tempdir().unwrap();
            busybox_root(&dir.path().join("root"));
            let spec = spec(dir.path());
            let mut guest = Guest {
                dir,
                spec,
                init_pid: 0,
                monitor_pid: 0,
            };
            let Ok(StartReport::Ok {
                init_pid,
                monitor_pid,
                ..
            }) = spawn::start(MONITOR, &guest.spec)
            else {
                panic!()
            };
            (guest.init_pid, guest.monitor_pid) = (init_pid, monitor_pid);
            guest
        })
        .collect();
    let total: u64 = guests.iter().map(|g| pss_kib(g.monitor_pid)).sum();
    println!("ten monitors: mean Pss {} KiB", total / 10);
}
