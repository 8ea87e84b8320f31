//! One operation is one trace over all five services, as a collector receives it by OTLP.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_e2e::{Image, Server, wait};
use berth_proto::gateway::create_instance_request::Source;
use berth_proto::gateway::gateway_service_client::GatewayServiceClient;
use berth_proto::gateway::{CreateInstanceRequest, DeleteInstanceRequest};
use berth_proto::instance::Instance;
use http::Method;
use nix::sched::{CloneFlags, setns};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use serde_json::{Value, json};
use tonic::{Request, Response, Status};
use xtask::sandbox::UpOptions;

const SOON: Duration = Duration::from_secs(30);
const SERVICES: [&str; 5] = [
    "berth-gateway",
    "berth-image",
    "berth-instance",
    "berth-network",
    "berth-storage",
];

#[derive(Clone, Debug)]
struct Span {
    service: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for from in request.into_inner().resource_spans {
            let attributes = from.resource.map(|r| r.attributes).unwrap_or_default();
            let service = attributes
                .into_iter()
                .find(|attribute| attribute.key == "service.name")
                .and_then(|attribute| attribute.value?.value)
                .map(|value| match value {
                    AnyValue::StringValue(text) => text,
                    other => format!("{other:?}"),
                })
                .unwrap_or_default();
            for span in from.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.0.lock().unwrap().push(Span {
                    service: service.clone(),
                    name: span.name,
                    trace: hex::encode(span.trace_id),
                    id: hex::encode(span.span_id),
                    parent: hex::encode(span.parent_span_id),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves in the sandbox's network namespace, where the services send to.
    fn serve(&self, netns: &str, port: u16) {
        let namespace = File::open(format!("/run/netns/{netns}")).unwrap();
        let service = TraceServiceServer::new(self.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        // The thread alone changes its namespace; the socket stays where it was made.
        std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
            listener.set_nonblocking(true).unwrap();
            ready.send(()).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                let server = tonic::transport::Server::builder().add_service(service);
                server.serve_with_incoming(incoming).await.unwrap();
            });
        });
        is_ready.recv().unwrap();
    }

    fn of(&self, trace: &str) -> Vec<Span> {
        let all = self.0.lock().unwrap();
        all.iter()
            .filter(|span| span.trace == trace)
            .cloned()
            .collect()
    }
}

/// Waits until all five services have reported, and checks that the spans are one tree.
fn is_one_trace(collector: &Collector, trace: &str, client_span: &str) {
    let spans = wait::until("spans of all five services", SOON, || {
        let spans = collector.of(trace);
        let seen: BTreeSet<_> = spans.iter().map(|span| span.service.as_str()).collect();
        let missing: Vec<_> = SERVICES.iter().filter(|s| !seen.contains(*s)).collect();
        let ids: BTreeSet<_> = spans.iter().map(|span| span.id.as_str()).collect();
        let orphans: Vec<_> = spans
            .iter()
            .filter(|span| span.parent != client_span && !ids.contains(span.parent.as_str()))
            .collect();
        if missing.is_empty() && orphans.is_empty() {
            Ok(spans)
        } else {
            Err(format!(
                "no spans of {missing:?}; without parents: {orphans:?}"
            ))
        }
    });
    let mut per_service: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for span in &spans {
        per_service
            .entry(&span.service)
            .or_default()
            .push(&span.name);
    }
    for service in [
        "berth-image",
        "berth-instance",
        "berth-network",
        "berth-storage",
    ] {
        let names = &per_service[service];
        assert!(
            names.iter().any(|name| name.contains("berth.")),
            "{service} names no method among {names:?}"
        );
    }
}

fn ids(number: u8) -> (String, String, String) {
    let (trace, span) = (hex::encode([number; 16]), hex::encode([number + 1; 8]));
    let header = format!("00-{trace}-{span}-01");
    (trace, span, header)
}

#[test]
fn a_launch_is_one_trace_over_five_services() {
    let pairs = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let environment = pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    let options = UpOptions {
        environment,
        ..UpOptions::default()
    };
    let server = Server::sandbox_with(options);
    let collector = Collector::default();
    collector.serve(&server.own().netns(), 4317);
    server.import(Image::Busybox);
    let mut rest = server.rest();

    let (trace, span, header) = ids(0xa1);
    let body = json!({
        "name": "traced-a", "start": true, "source": {"type": "image", "alias": "busybox"},
    });
    let headers = [
        ("content-type", "application/json"),
        ("traceparent", header.as_str()),
    ];
    let reply = rest.send(Method::POST, "/1.0/instances", &headers, body.to_string());
    let operation = reply.json().unwrap()["operation"]
        .as_str()
        .unwrap()
        .to_owned();
    let ended = rest.get(&format!("{operation}/wait"));
    assert_eq!(ended["status_code"], 200, "{ended}");
    assert_eq!(
        rest.get("/1.0/instances/traced-a/state")["status"],
        "Running"
    );
    is_one_trace(&collector, &trace, &span);

    let (trace, span, header) = ids(0xb1);
    let socket = server.own().grpc_socket("gateway");
    rest.runtime().block_on(launch_by_grpc(&socket, &header));
    is_one_trace(&collector, &trace, &span);

    log_lines_carry_the_trace(&server, &trace);
    for name in ["traced-a", "traced-b"] {
        let path = format!("/1.0/instances/{name}");
        let stop = json!({"action": "stop", "force": true});
        if rest.get(&path)["status"] == "Running" {
            rest.change(Method::PUT, &format!("{path}/state"), stop);
        }
        rest.change(Method::DELETE, &path, Value::Null);
    }
}

async fn launch_by_grpc(socket: &std::path::Path, traceparent: &str) {
    let endpoint = format!("unix:{}", socket.display());
    let channel = tonic::transport::Endpoint::from_shared(endpoint)
        .unwrap()
        .connect()
        .await;
    let mut gateway = GatewayServiceClient::new(channel.unwrap());
    let mut request = Request::new(CreateInstanceRequest {
        parent: "projects/default".into(),
        instance_id: "traced-b".into(),
        instance: Some(Instance::default()),
        default_profiles: true,
        source: Some(Source::ImageAlias("busybox".into())),
        start: true,
        ..Default::default()
    });
    request
        .metadata_mut()
        .insert("traceparent", traceparent.parse().unwrap());
    let mut operation = gateway.create_instance(request).await.unwrap().into_inner();
    let begun = std::time::Instant::now();
    let mut operations = operations_client(socket).await;
    while !operation.done {
        assert!(begun.elapsed() < SOON, "{operation:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let name = operation.name.clone();
        let get = berth_proto::longrunning::GetOperationRequest { name };
        operation = operations.get_operation(get).await.unwrap().into_inner();
    }
    let result = operation.result.unwrap();
    assert!(
        matches!(
            result,
            berth_proto::longrunning::operation::Result::Response(_)
        ),
        "{result:?}"
    );
    // The verbs over gRPC are the same whole thing: one more, refused for its reason.
    let name = "projects/default/instances/no-such".to_owned();
    let refused = gateway.delete_instance(DeleteInstanceRequest {
        name,
        ..Default::default()
    });
    assert_eq!(refused.await.unwrap_err().code(), tonic::Code::NotFound);
}

async fn operations_client(
    socket: &std::path::Path,
) -> berth_proto::longrunning::operations_client::OperationsClient<tonic::transport::Channel> {
    let endpoint = format!("unix:{}", socket.display());
    let channel = tonic::transport::Endpoint::from_shared(endpoint)
        .unwrap()
        .connect()
        .await;
    berth_proto::longrunning::operations_client::OperationsClient::new(channel.unwrap())
}

fn log_lines_carry_the_trace(server: &Server, trace: &str) {
    let with_trace = SERVICES.iter().filter(|service| {
        let name = service.trim_start_matches("berth-");
        let log = std::fs::read_to_string(server.own().log_file(name)).unwrap();
        log.contains(trace)
    });
    let with_trace: Vec<_> = with_trace.collect();
    assert!(
        with_trace.contains(&&"berth-gateway"),
        "only {with_trace:?} log the trace's id"
    );
}
