//! What an observability stack sees: one launch is one trace over all five services, log lines
//! carry its id, and every service has `/metrics`.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_e2e::wait::until;
use berth_e2e::{Image, Server};
use berth_proto::gateway::create_instance_request::Source;
use berth_proto::gateway::gateway_service_client::GatewayServiceClient;
use berth_proto::longrunning::operations_client::OperationsClient;
use berth_proto::{gateway, instance, longrunning};
use http::Method;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Text;
use serde_json::json;
use xtask::sandbox::{SERVICES, Sandbox, UpOptions};

const PORT: u16 = 4317;

#[derive(Debug, Clone)]
struct Seen {
    service: String,
    trace: String,
    span: String,
    parent: String,
    name: String,
}

#[derive(Clone, Default)]
struct Collector {
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let mut seen = self.seen.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.map(|r| r.attributes).unwrap_or_default();
            let service = attributes
                .into_iter()
                .find(|a| a.key == "service.name")
                .and_then(|a| a.value?.value)
                .map(|v| match v {
                    Text::StringValue(text) => text,
                    other => format!("{other:?}"),
                })
                .unwrap_or_default();
            for span in resource.scope_spans.into_iter().flat_map(|s| s.spans) {
                seen.push(Seen {
                    service: service.clone(),
                    trace: hex::encode(&span.trace_id),
                    span: hex::encode(&span.span_id),
                    parent: hex::encode(&span.parent_span_id),
                    name: span.name,
                });
            }
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on the sandbox's loopback, which is where its services look for a collector.
    fn start(sandbox: &Sandbox) -> Self {
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let netns = std::fs::File::open(format!("/run/netns/{}", sandbox.netns())).unwrap();
        std::thread::spawn(move || {
            nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                tonic::transport::Server::builder()
                    .add_service(service)
                    .serve((std::net::Ipv4Addr::LOCALHOST, PORT).into())
                    .await
                    .unwrap();
            });
        });
        collector
    }

    fn of_trace(&self, trace: &str) -> Vec<Seen> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|s| s.trace == trace)
            .cloned()
            .collect()
    }

    /// Waits until a trace has spans of all five services, and checks that they hang together.
    #[track_caller]
    fn whole_trace(&self, trace: &str, root: &str) {
        let all: BTreeSet<String> = SERVICES.iter().map(|s| format!("berth-{s}")).collect();
        let services = || -> BTreeSet<String> {
            self.of_trace(trace)
                .into_iter()
                .map(|s| s.service)
                .collect()
        };
        until(
            "spans of all five services",
            Duration::from_secs(20),
            || {
                let seen = services();
                if seen == all {
                    Ok(())
                } else {
                    Err(format!("only of {seen:?}"))
                }
            },
        );
        // The last batch of whoever is slowest.
        std::thread::sleep(Duration::from_millis(600));
        let spans = self.of_trace(trace);
        let ids: BTreeSet<&str> = spans
            .iter()
            .map(|s| s.span.as_str())
            .chain([root])
            .collect();
        for span in &spans {
            assert!(
                ids.contains(span.parent.as_str()),
                "{} of {} hangs on nothing",
                span.name,
                span.service
            );
        }
    }
}

fn metrics(sandbox: &Sandbox, service: &str) -> String {
    let path = sandbox.state().join(format!("{service}/metrics.sock"));
    let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_launch_is_one_trace_over_all_five_services() {
    let collector = (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        format!("http://127.0.0.1:{PORT}"),
    );
    let often = ("OTEL_BSP_SCHEDULE_DELAY", "200".to_owned());
    let environment = [collector, often]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
    let server = Server::sandbox_with(UpOptions {
        extra: SERVICES
            .iter()
            .map(|s| {
                (
                    (*s).to_owned(),
                    "[server.log]\nformat = \"json\"".to_owned(),
                )
            })
            .collect(),
        environment,
        ..UpOptions::default()
    });
    let sandbox = server.own();
    let collector = Collector::start(sandbox);
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
    collector.whole_trace(trace, root);
    let log = std::fs::read_to_string(sandbox.log_file("gateway")).unwrap();
    assert!(
        log.contains(trace),
        "the gateway's log lines do not carry the trace's id"
    );

    // By gRPC.
    let (trace, root) = ("1bf7651916cd43dd8448eb211c80319d", "c7ad6b7169203332");
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
    assert_eq!(rest.get("/1.0/instances/called")["status"], "Running");
    collector.whole_trace(trace, root);

    for service in SERVICES {
        let text = metrics(sandbox, service);
        assert!(text.starts_with("HTTP/1.1 200"), "{service}: {text}");
        assert!(
            text.contains("process_resident_memory_bytes"),
            "{service}: {text}"
        );
        assert!(
            text.contains("berth_grpc_calls_total{method=\"berth."),
            "{service}: {text}"
        );
    }
}
