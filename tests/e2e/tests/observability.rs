//! A real collector and a real Prometheus, with the files that are shipped for them.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use berth_e2e::python::{self, run};
use berth_e2e::wait::until;
use berth_e2e::{Collector, Image, Server};
use http::Method;
use serde_json::{Value, json};
use xtask::observe::stack::{self, Pass};
use xtask::sandbox::{SERVICES, Sandbox, UpOptions};

fn read(path: &str) -> String {
    std::fs::read_to_string(stack::shipped(path)).unwrap()
}

/// The body of a GET to the sandbox's loopback.
fn get(sandbox: &Sandbox, port: u16, path: &str) -> Result<String, String> {
    let netns = std::fs::File::open(format!("/run/netns/{}", sandbox.netns())).unwrap();
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n");
    let answer = std::thread::spawn(move || -> std::io::Result<String> {
        nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    let answer = answer.join().unwrap().map_err(|e| e.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    if head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200") {
        Ok(body.to_owned())
    } else {
        Err(answer)
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// The series that a query gives.
fn series(sandbox: &Sandbox, query: &str) -> Result<usize, String> {
    let path = format!("/api/v1/query?query={}", encoded(query));
    let answer: Value = serde_json::from_str(&get(sandbox, stack::PROMETHEUS, &path)?).unwrap();
    match answer["data"]["result"].as_array() {
        Some(result) => Ok(result.len()),
        None => Err(answer.to_string()),
    }
}

/// Every query of the dashboard, as Grafana would send it.
fn of_the_dashboard() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read("grafana/berth.json")).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let query = query
                .replace("$__rate_interval", "1m")
                .replace("$service", ".*");
            assert!(!query.contains('$'), "a variable that nobody sets: {query}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), query));
        }
    }
    assert!(queries.len() > 20, "{queries:?}");
    queries
}

/// What every alert compares, without its threshold: nothing is wrong after a launch, so the alerts
/// themselves give nothing. Where an alert counts failures, this counts what worked.
fn of_the_alerts() -> Vec<(String, String)> {
    let rules: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(&read("prometheus/alerts.yml")).unwrap();
    let rules = rules["groups"][0]["rules"].as_sequence().unwrap();
    let query = |rule: &serde_yaml_ng::Value| {
        let whole = rule["expr"].as_str().unwrap();
        let (compared, threshold) = whole
            .rsplit_once(" > ")
            .or_else(|| whole.rsplit_once(" == "))
            .unwrap_or_else(|| panic!("{whole} compares nothing"));
        threshold.trim().parse::<f64>().unwrap();
        compared
            .replace("error_type!=\"\"", "error_type=\"\"")
            .replace("=~\"5..\"", "=~\"2..\"")
    };
    let queries: Vec<_> = rules
        .iter()
        .map(|rule| (rule["alert"].as_str().unwrap().to_owned(), query(rule)))
        .collect();
    assert!(queries.len() > 10, "{queries:?}");
    queries
}

#[test]
fn the_alert_rules_are_sound_and_fire_when_they_should() {
    let rules = stack::shipped("prometheus");
    run(Command::new("promtool")
        .args(["check", "rules", "alerts.yml"])
        .current_dir(&rules));
    run(Command::new("promtool")
        .args(["check", "config", "prometheus.yml"])
        .current_dir(&rules));
    run(Command::new("promtool")
        .args(["test", "rules", "alerts.test.yml"])
        .current_dir(&rules));
    let tests = read("prometheus/alerts.test.yml");
    for (alert, _) in of_the_alerts() {
        let fires = format!("alertname: {alert}\n");
        assert!(tests.contains(&fires), "no test shows when {alert} fires");
    }
}

#[test]
fn a_real_collector_and_a_real_prometheus_see_a_launch() {
    let server = Server::sandbox_with(UpOptions {
        extra: stack::metrics_listen(),
        environment: stack::environment(),
        ..UpOptions::default()
    });
    let sandbox = server.own();
    let behind = Collector::start(sandbox, stack::BEHIND);
    let _rotel = stack::rotel(sandbox, &python::interpreter(), Pass::Everything).unwrap();
    let _prometheus = stack::prometheus(sandbox, "1s").unwrap();
    until("the collector", Duration::from_secs(20), || {
        // Whatever it answers: it listens.
        match get(sandbox, stack::COLLECTOR_HTTP, "/") {
            Err(error) if error.contains("refused") => Err(error),
            _ => Ok(()),
        }
    });
    server.import(Image::Busybox);
    let (trace, root) = ("2cf7651916cd43dd8448eb211c80319e", "d7ad6b7169203333");
    let mut rest = server.rest();
    let body = json!({
        "name": "watched", "start": true,
        "source": {"type": "image", "alias": "busybox"},
    });
    let traceparent = format!("00-{trace}-{root}-01");
    let headers = [
        ("content-type", "application/json"),
        ("traceparent", traceparent.as_str()),
    ];
    let reply = rest.send(Method::POST, "/1.0/instances", &headers, body.to_string());
    let answer: Value = serde_json::from_slice(&reply.body).unwrap();
    let operation = answer["operation"].as_str().unwrap();
    let done = rest.get(&format!("{operation}/wait?timeout=30"));
    assert_eq!(done["status"], "Success", "{done}");

    behind.whole_trace(trace, root);
    until(
        "logs and metrics behind the collector",
        Duration::from_secs(20),
        || {
            let logs = behind.lines().iter().any(|line| line.trace == trace);
            let metric =
                |service| behind.metric(&format!("berth-{service}"), "rpc.server.call.duration");
            let metrics = SERVICES.iter().all(|service| metric(service).is_some());
            if logs && metrics {
                Ok(())
            } else {
                Err(format!("logs: {logs}, metrics: {metrics}"))
            }
        },
    );

    for (title, query) in of_the_dashboard().into_iter().chain(of_the_alerts()) {
        until(&title, Duration::from_secs(60), || {
            match series(sandbox, &query)? {
                0 => Err(format!("{query} gives nothing")),
                _ => Ok(()),
            }
        });
    }
    let rules: Value =
        serde_json::from_str(&get(sandbox, stack::PROMETHEUS, "/api/v1/rules").unwrap()).unwrap();
    let unwell: Vec<&Value> = rules["data"]["groups"][0]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|rule| rule["health"] != "ok" || rule["state"] == "firing")
        .collect();
    assert!(unwell.is_empty(), "{unwell:#?}");
    let path = format!(
        "/api/v1/query_exemplars?query={}&start=0&end=9999999999",
        encoded("berth_operation_duration_seconds_bucket")
    );
    until("an exemplar of the launch", Duration::from_secs(20), || {
        let found = get(sandbox, stack::PROMETHEUS, &path)?;
        if found.contains(trace) {
            Ok(())
        } else {
            Err(found)
        }
    });
}
