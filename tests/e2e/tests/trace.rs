//! What an observability stack sees: one launch is one trace over all five services, named after
//! OpenTelemetry's conventions; log lines carry its id; metrics point at it.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::Duration;

use berth_e2e::collector::Span;
use berth_e2e::wait::until;
use berth_e2e::{Collector, Image, Server};
use berth_proto::gateway::create_instance_request::Source;
use berth_proto::gateway::gateway_service_client::GatewayServiceClient;
use berth_proto::longrunning::operations_client::OperationsClient;
use berth_proto::server::admin_service_client::AdminServiceClient;
use berth_proto::server::{GetLogLevelRequest, SetLogLevelRequest};
use berth_proto::{gateway, instance, longrunning};
use http::Method;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;
use xtask::sandbox::{SERVICES, Sandbox, UpOptions};

const PORT: u16 = 4317;

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let always = [
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("http://127.0.0.1:{PORT}"),
        ),
        ("OTEL_BSP_SCHEDULE_DELAY", "200".to_owned()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "300".to_owned()),
    ];
    let more = pairs.iter().map(|(k, v)| (*k, (*v).to_owned()));
    always
        .into_iter()
        .chain(more)
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn metrics(sandbox: &Sandbox, service: &str) -> String {
    let path = sandbox.state().join(format!("{service}/metrics.sock"));
    let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{service}: {text}");
    text
}

/// The value of the first sample whose line begins so.
fn sample(text: &str, begins: &str) -> Option<f64> {
    let line = text.lines().find(|l| l.starts_with(begins))?;
    let value = line.split(" # ").next()?.rsplit(' ').next()?;
    value.parse().ok()
}

#[track_caller]
fn one<'a>(spans: &'a [Span], service: &str, name: &str, kind: SpanKind) -> &'a Span {
    let found = spans
        .iter()
        .find(|s| s.service == service && s.name == name && s.kind == kind);
    found.unwrap_or_else(|| {
        let names: Vec<_> = spans
            .iter()
            .map(|s| format!("{} {:?} {}", s.service, s.kind, s.name))
            .collect();
        panic!("no {kind:?} span {name:?} of {service} among {names:#?}")
    })
}

#[test]
fn a_launch_is_one_trace_over_all_five_services() {
    let json = "[server.log]\nformat = \"json\"".to_owned();
    let server = Server::sandbox_with(UpOptions {
        extra: SERVICES.map(|s| (s.to_owned(), json.clone())).to_vec(),
        environment: environment(&[
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=berth%20tests"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "deployment.environment.name=test",
            ),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "gzip"),
        ]),
        ..UpOptions::default()
    });
    let sandbox = server.own();
    let collector = Collector::start(sandbox, PORT);
    server.import(Image::Busybox);

    // By REST, continuing the client's own trace.
    let (trace, root) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let mut rest = server.rest();
    let body = json!({
        "name": "traced", "start": true,
        "source": {"type": "image", "alias": "busybox"},
    });
    let traceparent = format!("00-{trace}-{root}-01");
    let reply = rest.send(
        Method::POST,
        "/1.0/instances",
        &[
            ("content-type", "application/json"),
            ("traceparent", &traceparent),
        ],
        body.to_string(),
    );
    let answer: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    let operation = answer["operation"].as_str().unwrap().to_owned();
    let done = rest.get(&format!("{operation}/wait?timeout=30"));
    assert_eq!(done["status"], "Success", "{done}");
    assert_eq!(rest.get("/1.0/instances/traced")["status"], "Running");
    let spans = collector.whole_trace(trace, root);
    names_are_those_of_the_conventions(&spans, root);
    log_records_carry_the_trace(&collector, trace, operation.rsplit('/').next().unwrap());
    let log = std::fs::read_to_string(sandbox.log_file("gateway")).unwrap();
    assert!(
        log.contains(trace),
        "the gateway's log lines do not carry the trace's id"
    );

    // By gRPC.
    let (trace, root) = ("1bf7651916cd43dd8448eb211c80319d", "c7ad6b7169203332");
    launch_by_grpc(sandbox, trace, root);
    assert_eq!(rest.get("/1.0/instances/called")["status"], "Running");
    collector.whole_trace(trace, root);

    metrics_have_two_outputs(sandbox, &collector, trace);
    let resource = collector.resource("berth-image");
    assert_eq!(resource["service.namespace"], "berth");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(resource["deployment.environment.name"], "test");
    assert!(!resource["host.name"].is_empty());
    assert_ne!(
        resource["service.instance.id"],
        collector.resource("berth-storage")["service.instance.id"]
    );
    for metadata in collector.metadata() {
        assert_eq!(metadata["x-tenant"], "berth tests", "{metadata:?}");
    }
}

fn names_are_those_of_the_conventions(spans: &[Span], root: &str) {
    let request = one(
        spans,
        "berth-gateway",
        "POST /1.0/instances",
        SpanKind::Server,
    );
    assert_eq!(request.parent, root);
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/1.0/instances"),
        ("http.response.status_code", "202"),
        ("url.path", "/1.0/instances"),
        ("url.scheme", "http"),
    ] {
        assert_eq!(request.attributes[key], value, "{key}");
    }
    let method = "berth.instance.v1.InstanceService/StartInstance";
    let called = one(spans, "berth-gateway", method, SpanKind::Client);
    let served = one(spans, "berth-instance", method, SpanKind::Server);
    assert_eq!(
        served.parent, called.span,
        "a call is two spans, one below the other"
    );
    for span in [called, served] {
        assert!(!span.is_error, "{span:?}");
        for (key, value) in [
            ("rpc.system.name", "grpc"),
            ("rpc.method", method),
            ("rpc.response.status_code", "OK"),
        ] {
            assert_eq!(span.attributes[key], value, "{key}");
        }
    }
    assert!(called.attributes["server.address"].starts_with("unix:"));
    let operation = spans
        .iter()
        .find(|s| s.attributes.contains_key("berth.operation.id"))
        .expect("a span of the operation");
    let steps: BTreeSet<&str> = spans
        .iter()
        .filter(|s| s.parent == operation.span)
        .filter_map(|s| s.attributes.get("berth.step"))
        .map(String::as_str)
        .collect();
    assert!(steps.len() > 2, "a span for each step: {steps:?}");
}

fn log_records_carry_the_trace(collector: &Collector, trace: &str, operation: &str) {
    until("log records of the trace", Duration::from_secs(20), || {
        let lines = collector.lines();
        let told = lines.iter().find(|line| {
            line.trace == trace
                && line.span.len() == 16
                && line
                    .attributes
                    .get("berth.operation.id")
                    .map(String::as_str)
                    == Some(operation)
        });
        match told {
            Some(line) if line.severity == "INFO" && !line.body.is_empty() => Ok(()),
            other => Err(format!("{other:?} of {} records", lines.len())),
        }
    });
}

fn launch_by_grpc(sandbox: &Sandbox, trace: &str, root: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let address = format!("unix:{}", sandbox.grpc_socket("gateway").display());
        let channel = berth_rpc::connect(&address).unwrap();
        let mut request = tonic::Request::new(gateway::CreateInstanceRequest {
            parent: "projects/default".into(),
            instance_id: "called".into(),
            instance: Some(instance::Instance::default()),
            default_profiles: true,
            source: Some(Source::ImageAlias("busybox".into())),
            start: true,
            request_id: "launch-called".into(),
        });
        let traceparent = format!("00-{trace}-{root}-01").parse().unwrap();
        request.metadata_mut().insert("traceparent", traceparent);
        let operation = GatewayServiceClient::new(channel.clone())
            .create_instance(request)
            .await
            .unwrap();
        let wait = longrunning::WaitOperationRequest {
            name: operation.into_inner().name,
            timeout: None,
        };
        let done = OperationsClient::new(channel)
            .wait_operation(wait)
            .await
            .unwrap()
            .into_inner();
        assert!(done.done);
        assert!(
            matches!(
                done.result,
                Some(longrunning::operation::Result::Response(_))
            ),
            "{done:?}"
        );
    });
}

fn metrics_have_two_outputs(sandbox: &Sandbox, collector: &Collector, trace: &str) {
    for service in SERVICES {
        let text = metrics(sandbox, service);
        for name in [
            "process_resident_memory_bytes",
            "process_cpu_seconds_total",
            "berth_build_info{version=",
            "rpc_server_call_duration_seconds_count{rpc_system_name=\"grpc\",rpc_method=\"berth.",
        ] {
            assert!(text.contains(name), "{service} has no {name}: {text}");
        }
        assert!(text.trim_end().ends_with("# EOF"), "{service}: {text}");
        until("metrics by OTLP", Duration::from_secs(20), || {
            let metric = collector
                .metric(&format!("berth-{service}"), "rpc.server.call.duration")
                .ok_or("none yet")?;
            let Some(Data::Histogram(histogram)) = metric.data else {
                return Err(format!("{metric:?}"));
            };
            let exemplars = histogram.data_points.iter().flat_map(|p| &p.exemplars);
            let points_at_it = exemplars
                .map(|e| hex::encode(&e.trace_id))
                .any(|t| t == trace);
            if metric.unit == "s" && points_at_it {
                Ok(())
            } else {
                Err(format!("{service}: no exemplar of {trace}"))
            }
        });
        let exemplar = format!("# {{trace_id=\"{trace}\",span_id=\"");
        let text = metrics(sandbox, service);
        assert!(
            text.contains(&exemplar),
            "{service} has no {exemplar}: {text}"
        );
    }
    let text = metrics(sandbox, "gateway");
    let launched = sample(
        &text,
        "berth_operation_duration_seconds_count{saga=\"create_instance\",result=\"succeeded\"}",
    );
    assert!(launched >= Some(2.0), "{text}");
    assert!(text.contains("berth_operation_step_duration_seconds_count{saga="));
    let route = "http_server_request_duration_seconds_count{http_request_method=\"POST\",\
                 http_route=\"/1.0/instances\",http_response_status_code=\"202\"";
    assert!(sample(&text, route) >= Some(1.0), "{text}");
    let text = metrics(sandbox, "instance");
    assert_eq!(
        sample(&text, "berth_instances{status=\"Running\"}"),
        Some(2.0)
    );
    assert_eq!(sample(&text, "berth_monitors"), Some(2.0), "{text}");
    let text = metrics(sandbox, "network");
    assert_eq!(sample(&text, "berth_dnsmasq_up{"), Some(1.0), "{text}");
    let text = metrics(sandbox, "storage");
    assert!(
        sample(&text, "berth_pool_used_bytes{") > Some(0.0),
        "{text}"
    );
    let text = metrics(sandbox, "image");
    assert!(
        sample(&text, "berth_image_store_bytes") > Some(0.0),
        "{text}"
    );
}

/// Takes connections and never answers.
fn deaf_collector(sandbox: &Sandbox) {
    let netns = std::fs::File::open(format!("/run/netns/{}", sandbox.netns())).unwrap();
    std::thread::spawn(move || {
        nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let listener = std::net::TcpListener::bind(("127.0.0.1", PORT)).unwrap();
        let taken: Vec<_> = listener.incoming().collect();
        drop(taken);
    });
}

#[test]
fn a_collector_that_hears_nothing_costs_telemetry_and_nothing_else() {
    let server = Server::sandbox_with(UpOptions {
        environment: environment(&[
            ("OTEL_BSP_MAX_QUEUE_SIZE", "32"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000"),
        ]),
        ..UpOptions::default()
    });
    let sandbox = server.own();
    deaf_collector(sandbox);
    let mut rest = server.rest();
    // Each is a span, none of which ever gets away.
    for _ in 0..100 {
        rest.get("/1.0/instances?recursion=2");
    }
    let text = metrics(sandbox, "gateway");
    let dropped = sample(
        &text,
        "berth_telemetry_items_total{signal=\"traces\",outcome=\"dropped\"}",
    );
    assert!(dropped > Some(0.0), "{text}");
    // Its end waits for the collector, but not as long as that would have it.
    let pid = sandbox.pid("gateway").unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM).unwrap();
    until(
        "the gateway's end",
        Duration::from_secs(30),
        || match sandbox.pid("gateway") {
            None => Ok(()),
            Some(pid) => Err(format!("{pid} runs on")),
        },
    );
}

#[test]
fn the_log_level_changes_while_a_service_runs() {
    let server = Server::sandbox_with(UpOptions {
        only: vec!["image".to_owned()],
        ..UpOptions::default()
    });
    let sandbox = server.own();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let address = format!("unix:{}", sandbox.grpc_socket("image").display());
        let channel = berth_rpc::connect(&address).unwrap();
        let mut admin = AdminServiceClient::new(channel);
        let now = admin.get_log_level(GetLogLevelRequest {}).await.unwrap();
        assert_eq!(now.into_inner().level, "info");
        let set = |level: &str, seconds: Option<i64>| SetLogLevelRequest {
            level: level.to_owned(),
            duration: seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        };
        let error = admin.set_log_level(set("inof", None)).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error:?}");
        let now = admin.set_log_level(set("debug", Some(1))).await.unwrap();
        let now = now.into_inner();
        assert_eq!(
            (now.level.as_str(), now.configured_level.as_str()),
            ("debug", "info")
        );
        assert!(now.expire_time.is_some());
        let log = || std::fs::read_to_string(sandbox.log_file("image")).unwrap();
        until("a debug line", Duration::from_secs(10), || {
            if log().contains("DEBUG") {
                Ok(())
            } else {
                Err(log())
            }
        });
        until(
            "the configured level again",
            Duration::from_secs(10),
            || {
                if log().contains("the configured log level is back") {
                    Ok(())
                } else {
                    Err(log())
                }
            },
        );
        let now = admin.get_log_level(GetLogLevelRequest {}).await.unwrap();
        assert_eq!(now.into_inner().level, "info");
    });
}
