//! A crash at every point of every saga and of every owner's part in it.
//!
//! A first run of the work writes down which points are passed, by which service, during which
//! piece of work. Then each point gets its crash: the service that passes it dies there as by
//! `kill -9`, is started again, and every operation must end done or undone, with nothing left
//! over once the piece of work is taken back.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use berth_e2e::inventory::{Inventory, Traces, settles};
use berth_e2e::{Image, Rest, Server, wait};
use http::Method;
use serde_json::Value;
use xtask::sandbox::{SERVICES, UpOptions};

const SOON: Duration = Duration::from_secs(30);

/// One piece of work: a change, what must be there for it, and how it is taken back.
#[derive(Debug)]
struct Work {
    name: &'static str,
    prepare: &'static [Request],
    change: Request,
    /// Best effort: after a crash there may be nothing to take back.
    back: &'static [Request],
}

type Request = (&'static str, &'static str, &'static str);

const CREATE: Request = (
    "POST",
    "/1.0/instances",
    r#"{"name": "fail-i", "source": {"type": "image", "alias": "busybox"}}"#,
);
const START: Request = (
    "PUT",
    "/1.0/instances/fail-i/state",
    r#"{"action": "start"}"#,
);
const STOP: Request = (
    "PUT",
    "/1.0/instances/fail-i/state",
    r#"{"action": "stop", "force": true}"#,
);
const DELETE: Request = ("DELETE", "/1.0/instances/fail-i", "");
const SNAPSHOT: Request = (
    "POST",
    "/1.0/instances/fail-i/snapshots",
    r#"{"name": "s", "stateful": false}"#,
);
const NETWORK: Request = (
    "POST",
    "/1.0/networks",
    r#"{"name": "fail-n", "type": "bridge", "config": {"ipv4.address": "10.99.1.1/24",
        "ipv6.address": "none"}}"#,
);
const NO_NETWORK: Request = ("DELETE", "/1.0/networks/fail-n", "");
const POOL: Request = (
    "POST",
    "/1.0/storage-pools",
    r#"{"name": "fail-p", "driver": "btrfs",
        "config": {"size": "256MiB"}}"#,
);
const NO_POOL: Request = ("DELETE", "/1.0/storage-pools/fail-p", "");
const PROFILE: Request = (
    "POST",
    "/1.0/profiles",
    r#"{"name": "fail-x", "config": {"user.a": "1"}}"#,
);
const NO_PROFILE: Request = ("DELETE", "/1.0/profiles/fail-x", "");

fn works() -> Vec<Work> {
    let work = |name, prepare, change, back| Work {
        name,
        prepare,
        change,
        back,
    };
    vec![
        work("create an instance", &[], CREATE, &[DELETE]),
        work("start", &[CREATE], START, &[STOP, DELETE]),
        work("stop", &[CREATE, START], STOP, &[STOP, DELETE]),
        work("snapshot", &[CREATE], SNAPSHOT, &[DELETE]),
        work(
            "restore",
            &[CREATE, SNAPSHOT],
            ("PUT", "/1.0/instances/fail-i", r#"{"restore": "s"}"#),
            &[DELETE],
        ),
        work(
            "delete a snapshot",
            &[CREATE, SNAPSHOT],
            ("DELETE", "/1.0/instances/fail-i/snapshots/s", ""),
            &[DELETE],
        ),
        work(
            "change an instance",
            &[CREATE],
            (
                "PATCH",
                "/1.0/instances/fail-i",
                r#"{"config": {"user.b": "2"}}"#,
            ),
            &[DELETE],
        ),
        work(
            "add a device",
            &[CREATE],
            (
                "PATCH",
                "/1.0/instances/fail-i",
                r#"{"devices": {"eth1": {"type": "nic", "network": "berthbr0"}}}"#,
            ),
            &[DELETE],
        ),
        work("delete an instance", &[CREATE], DELETE, &[DELETE]),
        work("create a network", &[], NETWORK, &[NO_NETWORK]),
        work("delete a network", &[NETWORK], NO_NETWORK, &[NO_NETWORK]),
        work("create a pool", &[], POOL, &[NO_POOL]),
        work("delete a pool", &[POOL], NO_POOL, &[NO_POOL]),
        work("create a profile", &[], PROFILE, &[NO_PROFILE]),
        work(
            "change a profile",
            &[PROFILE],
            (
                "PATCH",
                "/1.0/profiles/fail-x",
                r#"{"config": {"user.c": "3"}}"#,
            ),
            &[NO_PROFILE],
        ),
        work("delete a profile", &[PROFILE], NO_PROFILE, &[NO_PROFILE]),
        work(
            "create a volume",
            &[],
            (
                "POST",
                "/1.0/storage-pools/default/volumes/custom",
                r#"{"name": "fail-v", "config": {}}"#,
            ),
            &[(
                "DELETE",
                "/1.0/storage-pools/default/volumes/custom/fail-v",
                "",
            )],
        ),
    ]
}

fn attempt(rest: &mut Rest, (method, path, body): Request) -> anyhow::Result<Value> {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(body).unwrap()
    };
    rest.try_change(method, path, body)
}

/// Points that a service passed, in a file of its own, since the last look.
struct Log<'a>(&'a Path);

impl Log<'_> {
    fn take(&self, service: &str) -> BTreeSet<String> {
        let file = self.0.join(service);
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(&file, "").unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

fn quiet(rest: &mut Rest) {
    wait::until("the end of all operations", SOON, || {
        let all = rest
            .try_get("/1.0/operations")
            .map_err(|e| format!("{e:#}"))?;
        match all["running"].as_array() {
            Some(running) if !running.is_empty() => Err(format!("{running:?}")),
            _ => Ok(()),
        }
    });
}

fn take_back(rest: &mut Rest, work: &Work, why: &str) {
    wait::until(&format!("{why}: taking back"), SOON, || {
        let mut refused = Vec::new();
        for &request in work.back {
            if let Err(error) = attempt(rest, request) {
                refused.push((request, format!("{error:#}")));
            }
        }
        // Nothing is there any more when the last request says so.
        let last = work
            .back
            .last()
            .map(|(_, path, _)| *path)
            .unwrap_or_default();
        match rest.try_get(last) {
            Err(error)
                if error.to_string().contains("(404)")
                    || format!("{error:#}").contains("(404)") =>
            {
                Ok(())
            }
            answer => Err(format!("{answer:?} after {refused:?}")),
        }
    });
}

#[test]
fn a_crash_at_any_point_leaves_nothing_half_done() {
    let logs = tempfile::tempdir().unwrap();
    berth_e2e::server::open_to_others(logs.path());
    for service in SERVICES {
        use std::os::unix::fs::PermissionsExt;
        let file = logs.path().join(service);
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    let server = Server::sandbox_with(UpOptions::default());
    let sandbox = server.own();
    server.import(Image::Busybox);
    let mut rest = server.rest();
    // Unpack the image now: that it stays unpacked is no trace of a crash.
    for request in [CREATE, START, STOP, DELETE] {
        attempt(&mut rest, request).unwrap();
    }
    for service in SERVICES {
        let file = logs.path().join(service).display().to_string();
        sandbox.kill(service).unwrap();
        sandbox
            .start_with(&[service], &[("BERTH_FAILPOINT_LOG", &file)])
            .unwrap();
    }
    let traces = Traces::of(sandbox);
    let before = traces.look();
    let points = learn(&mut rest, &Log(logs.path()));
    assert!(points.len() >= 30, "only these points: {points:?}");
    for service in SERVICES {
        sandbox.kill(service).unwrap();
        sandbox.start(&[service]).unwrap();
    }
    for (work, service, point) in &points {
        let armed = format!("{point}=crash");
        crash_at(&server, &mut rest, work, service, &armed);
        unchanged(&traces, &before, point);
    }
    let mut undos = BTreeSet::new();
    let steps = |point: &str| point.starts_with("saga.") && point.ends_with(".run.done");
    for (work, service, point) in points.iter().filter(|(_, _, point)| steps(point)) {
        let undone = fail_at(&server, &mut rest, work, point, &Log(logs.path()));
        unchanged(&traces, &before, point);
        for undo in undone.difference(&undos.clone()) {
            let armed = format!("{point}=error;{undo}=crash");
            crash_at(&server, &mut rest, work, service, &armed);
            unchanged(&traces, &before, &armed);
            undos.insert(undo.clone());
        }
    }
    assert!(undos.len() >= 5, "only these are undone: {undos:?}");
    eprintln!(
        "{} points crashed, {} while undoing",
        points.len(),
        undos.len()
    );
}

/// Each point once: with the first piece of work that passes it.
fn learn(rest: &mut Rest, log: &Log<'_>) -> Vec<(Work, &'static str, String)> {
    let mut seen = BTreeSet::new();
    let mut points = Vec::new();
    for (index, work) in works().into_iter().enumerate() {
        for &request in work.prepare {
            attempt(rest, request).unwrap();
        }
        for service in SERVICES {
            log.take(service);
        }
        attempt(rest, work.change).unwrap_or_else(|error| panic!("{}: {error:#}", work.name));
        let passed = SERVICES.map(|service| (service, log.take(service)));
        take_back(rest, &work, work.name);
        for (service, names) in passed {
            for name in names {
                if seen.insert((service, name.clone())) {
                    points.push((works().swap_remove(index), service, name));
                }
            }
        }
    }
    points
}

fn crash_at(server: &Server, rest: &mut Rest, work: &Work, service: &str, armed: &str) {
    let sandbox = server.own();
    let why = format!("{} with {service} armed with {armed}", work.name);
    for &request in work.prepare {
        attempt(rest, request).unwrap_or_else(|error| panic!("{why}: preparing: {error:#}"));
    }
    sandbox.kill(service).unwrap();
    if let Err(error) = sandbox.start_with(&[service], &[("BERTH_FAILPOINTS", armed)]) {
        // Points that reconciliation passes too are met at the start already.
        assert!(sandbox.pid(service).is_none(), "{why}: {error:#}");
    }
    let socket = server.socket().to_owned();
    let change = work.change;
    // It answers only once the service is back, or not at all when the gateway died.
    let caller = std::thread::spawn(move || attempt(&mut Rest::new(&socket), change).is_ok());
    wait::until(&format!("{why}: the crash"), SOON, || {
        match sandbox.pid(service) {
            None => Ok(()),
            Some(pid) => Err(format!("{service} still runs as {pid}")),
        }
    });
    sandbox.start(&[service]).unwrap();
    quiet(rest);
    caller.join().unwrap();
    take_back(rest, work, &why);
}

/// The step is done and fails all the same: everything is undone. Gives the undo points passed.
fn fail_at(
    server: &Server,
    rest: &mut Rest,
    work: &Work,
    point: &str,
    log: &Log<'_>,
) -> BTreeSet<String> {
    let sandbox = server.own();
    let why = format!("{} failing at {point}", work.name);
    for &request in work.prepare {
        attempt(rest, request).unwrap_or_else(|error| panic!("{why}: preparing: {error:#}"));
    }
    sandbox.kill("gateway").unwrap();
    log.take("gateway");
    let (fail, file) = (
        format!("{point}=error"),
        log.0.join("gateway").display().to_string(),
    );
    let armed = [
        ("BERTH_FAILPOINTS", &*fail),
        ("BERTH_FAILPOINT_LOG", &*file),
    ];
    sandbox.start_with(&["gateway"], &armed).unwrap();
    assert!(attempt(rest, work.change).is_err(), "{why}: it succeeded");
    quiet(rest);
    sandbox.kill("gateway").unwrap();
    sandbox.start(&["gateway"]).unwrap();
    take_back(rest, work, &why);
    let passed = log.take("gateway").into_iter();
    passed
        .filter(|name| name.ends_with(".undo") || name.ends_with(".undo.done"))
        .collect()
}

#[track_caller]
fn unchanged(traces: &Traces, before: &Inventory, point: &str) {
    let difference = before.difference(&traces.look());
    if !difference.is_empty() {
        eprintln!("after {point}: {difference:?}; waiting for it to settle");
        settles(traces, before);
    }
}
