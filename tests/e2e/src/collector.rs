//! An OTLP collector of the tests' own: takes traces, metrics and logs over gRPC and keeps them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status};
use xtask::sandbox::{SERVICES, Sandbox};

use crate::wait::until;

/// Attributes, values as text.
pub type Attributes = BTreeMap<String, String>;

/// A span as it came.
#[derive(Debug, Clone)]
pub struct Span {
    pub service: String,
    pub trace: String,
    pub span: String,
    pub parent: String,
    pub name: String,
    pub kind: SpanKind,
    pub is_error: bool,
    pub attributes: Attributes,
}

/// A log record as it came.
#[derive(Debug, Clone)]
pub struct Line {
    pub service: String,
    pub trace: String,
    pub span: String,
    pub severity: String,
    pub body: String,
    pub attributes: Attributes,
}

#[derive(Debug, Default)]
struct Seen {
    spans: Vec<Span>,
    lines: Vec<Line>,
    /// The newest of each service and name.
    metrics: BTreeMap<(String, String), Metric>,
    resources: BTreeMap<String, Attributes>,
    /// Metadata of the calls that came.
    metadata: Vec<Attributes>,
}

/// What came, shared with whoever serves.
#[derive(Debug, Clone, Default)]
pub struct Collector {
    seen: Arc<Mutex<Seen>>,
}

fn attributes(pairs: Vec<KeyValue>) -> Attributes {
    let text = |value: any_value::Value| match value {
        any_value::Value::StringValue(text) => text,
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::DoubleValue(number) => number.to_string(),
        any_value::Value::BoolValue(truth) => truth.to_string(),
        other => format!("{other:?}"),
    };
    pairs
        .into_iter()
        .filter_map(|pair| Some((pair.key, text(pair.value?.value?))))
        .collect()
}

impl Collector {
    /// Listens on the sandbox's loopback, which is where its services look for a collector.
    pub fn start(sandbox: &Sandbox, port: u16) -> Self {
        let collector = Self::default();
        let served = collector.clone();
        let netns = std::fs::File::open(format!("/run/netns/{}", sandbox.netns())).unwrap();
        std::thread::spawn(move || {
            nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let gzip = CompressionEncoding::Gzip;
                tonic::transport::Server::builder()
                    .add_service(TraceServiceServer::new(served.clone()).accept_compressed(gzip))
                    .add_service(MetricsServiceServer::new(served.clone()).accept_compressed(gzip))
                    .add_service(LogsServiceServer::new(served).accept_compressed(gzip))
                    .serve((std::net::Ipv4Addr::LOCALHOST, port).into())
                    .await
                    .unwrap();
            });
        });
        collector
    }

    fn note<T>(&self, request: &Request<T>) {
        let metadata = request
            .metadata()
            .iter()
            .filter_map(|entry| match entry {
                tonic::metadata::KeyAndValueRef::Ascii(key, value) => {
                    Some((key.to_string(), value.to_str().ok()?.to_owned()))
                }
                tonic::metadata::KeyAndValueRef::Binary(..) => None,
            })
            .collect();
        self.seen.lock().unwrap().metadata.push(metadata);
    }

    fn service(&self, resource: Option<Resource>) -> String {
        let attributes = attributes(resource.map(|r| r.attributes).unwrap_or_default());
        let service = attributes.get("service.name").cloned().unwrap_or_default();
        let mut seen = self.seen.lock().unwrap();
        seen.resources.insert(service.clone(), attributes);
        service
    }

    /// The spans of one trace so far.
    pub fn of_trace(&self, trace: &str) -> Vec<Span> {
        let seen = self.seen.lock().unwrap();
        let spans = seen.spans.iter().filter(|s| s.trace == trace);
        spans.cloned().collect()
    }

    /// The log records so far.
    pub fn lines(&self) -> Vec<Line> {
        self.seen.lock().unwrap().lines.clone()
    }

    /// The newest form of a service's metric.
    pub fn metric(&self, service: &str, name: &str) -> Option<Metric> {
        let seen = self.seen.lock().unwrap();
        let key = (service.to_owned(), name.to_owned());
        seen.metrics.get(&key).cloned()
    }

    /// What a service says of itself.
    pub fn resource(&self, service: &str) -> Attributes {
        let seen = self.seen.lock().unwrap();
        seen.resources.get(service).cloned().unwrap_or_default()
    }

    /// Metadata of all calls so far.
    pub fn metadata(&self) -> Vec<Attributes> {
        self.seen.lock().unwrap().metadata.clone()
    }

    /// Waits until a trace has spans of all five services and all of them hang on one another, or on
    /// `root`, and gives them.
    #[track_caller]
    pub fn whole_trace(&self, trace: &str, root: &str) -> Vec<Span> {
        let all: BTreeSet<String> = SERVICES.iter().map(|s| format!("berth-{s}")).collect();
        until("a whole trace", Duration::from_secs(20), || {
            let spans = self.of_trace(trace);
            let services: BTreeSet<String> = spans.iter().map(|s| s.service.clone()).collect();
            if services != all {
                return Err(format!("only spans of {services:?}"));
            }
            let ids: BTreeSet<&str> = spans
                .iter()
                .map(|s| s.span.as_str())
                .chain([root])
                .collect();
            match spans.iter().find(|s| !ids.contains(s.parent.as_str())) {
                Some(lost) => Err(format!(
                    "{} of {} hangs on nothing",
                    lost.name, lost.service
                )),
                None => Ok(spans.clone()),
            }
        })
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.note(&request);
        for resource in request.into_inner().resource_spans {
            let service = self.service(resource.resource);
            let spans = resource.scope_spans.into_iter().flat_map(|s| s.spans);
            let spans = spans.map(|span| Span {
                service: service.clone(),
                trace: hex::encode(&span.trace_id),
                span: hex::encode(&span.span_id),
                parent: hex::encode(&span.parent_span_id),
                kind: span.kind(),
                is_error: span.status.is_some_and(|s| {
                    s.code() == opentelemetry_proto::tonic::trace::v1::status::StatusCode::Error
                }),
                name: span.name,
                attributes: attributes(span.attributes),
            });
            self.seen.lock().unwrap().spans.extend(spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.note(&request);
        for resource in request.into_inner().resource_metrics {
            let service = self.service(resource.resource);
            let metrics = resource.scope_metrics.into_iter().flat_map(|s| s.metrics);
            let mut seen = self.seen.lock().unwrap();
            for metric in metrics {
                seen.metrics
                    .insert((service.clone(), metric.name.clone()), metric);
            }
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.note(&request);
        for resource in request.into_inner().resource_logs {
            let service = self.service(resource.resource);
            let records = resource.scope_logs.into_iter().flat_map(|s| s.log_records);
            let lines = records.map(|record| Line {
                service: service.clone(),
                trace: hex::encode(&record.trace_id),
                span: hex::encode(&record.span_id),
                severity: record.severity_text,
                body: match record.body.and_then(|b| b.value) {
                    Some(any_value::Value::StringValue(text)) => text,
                    other => format!("{other:?}"),
                },
                attributes: attributes(record.attributes),
            });
            self.seen.lock().unwrap().lines.extend(lines);
        }
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}
