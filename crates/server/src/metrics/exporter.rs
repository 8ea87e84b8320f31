//! The registry as OTLP, sent now and then.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1 as otlp;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prometheus_client::encoding::prometheus_protobuf::{
    encode, prometheus_data_model as prometheus,
};
use tokio_util::sync::CancellationToken;

/// Prometheus's names of what OpenTelemetry's conventions name too; None is not sent. Others of ours
/// begin with `berth_`, in OTLP `berth.`.
const NAMES: &[(&str, Option<&str>)] = &[
    ("rpc_server_call_duration", Some("rpc.server.call.duration")),
    ("rpc_client_call_duration", Some("rpc.client.call.duration")),
    (
        "http_server_request_duration",
        Some("http.server.request.duration"),
    ),
    ("process_cpu", Some("process.cpu.time")),
    ("process_resident_memory", Some("process.memory.usage")),
    (
        "process_open_fds",
        Some("process.unix.file_descriptor.count"),
    ),
    ("process_threads", Some("process.thread.count")),
    // The resource says it, or nobody asks for it there.
    ("process_start_time", None),
    ("process_max_fds", None),
    ("berth_build", None),
];

/// Labels that are attributes of the conventions; others of ours become `berth.*`.
const ATTRIBUTES: &[(&str, &str)] = &[
    ("rpc_system_name", "rpc.system.name"),
    ("rpc_method", "rpc.method"),
    ("rpc_response_status_code", "rpc.response.status_code"),
    ("error_type", "error.type"),
    ("http_request_method", "http.request.method"),
    ("http_response_status_code", "http.response.status_code"),
    ("http_route", "http.route"),
    ("url_scheme", "url.scheme"),
];

/// Who speaks, as OTLP says it.
pub(crate) fn resource(resource: &opentelemetry_sdk::Resource) -> Resource {
    use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
    Resource {
        attributes: ResourceAttributesWithSchema::from(resource).attributes.0,
        ..Resource::default()
    }
}

/// Where metrics are sent, and how.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) channel: tonic::transport::Channel,
    pub(crate) headers: tonic::metadata::MetadataMap,
    pub(crate) gzip: bool,
    pub(crate) timeout: Duration,
    pub(crate) every: Duration,
    pub(crate) resource: Resource,
}

/// Told of every export: how many data points, and whether the collector took them.
pub(crate) type Note = Box<dyn Fn(usize, Result<(), String>) + Send + Sync>;

/// The task that sends metrics.
#[derive(Debug)]
pub(crate) struct Push {
    stop: CancellationToken,
    done: std::sync::mpsc::Receiver<()>,
}

impl Push {
    /// Sends once more and ends, within `limit`.
    pub(crate) fn stop(&self, limit: Duration) {
        self.stop.cancel();
        // Whether it came in time or not, the process goes on to its end.
        let _ = self.done.recv_timeout(limit);
    }
}

/// Sends the registry every so often until it is stopped. Call it inside a tokio runtime.
pub(crate) fn start(settings: Settings, note: Note) -> Push {
    let stop = CancellationToken::new();
    let (sender, done) = std::sync::mpsc::channel();
    tokio::spawn(run(Arc::new(settings), note, stop.clone(), sender));
    Push { stop, done }
}

async fn run(
    settings: Arc<Settings>,
    note: Note,
    stop: CancellationToken,
    done: std::sync::mpsc::Sender<()>,
) {
    let began = nanos(SystemTime::now());
    loop {
        let last = tokio::select! {
            () = tokio::time::sleep(settings.every) => false,
            () = stop.cancelled() => true,
        };
        let (points, result) = send(&settings, began).await;
        note(points, result);
        if last {
            // The other end may have waited long enough.
            let _ = done.send(());
            return;
        }
    }
}

async fn send(settings: &Settings, began: u64) -> (usize, Result<(), String>) {
    // The registry is locked no longer than this takes.
    let encoded = encode(&super::registry());
    let families = match encoded {
        Ok(families) => families,
        Err(error) => return (0, Err(format!("the metrics can't be gathered: {error}"))),
    };
    let metrics: Vec<otlp::Metric> = families
        .into_iter()
        .filter_map(|family| convert(family, began, nanos(SystemTime::now())))
        .collect();
    let points = metrics.iter().map(count).sum();
    let mut request = tonic::Request::new(ExportMetricsServiceRequest {
        resource_metrics: vec![otlp::ResourceMetrics {
            resource: Some(settings.resource.clone()),
            scope_metrics: vec![otlp::ScopeMetrics {
                scope: Some(InstrumentationScope {
                    name: "berth".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    ..InstrumentationScope::default()
                }),
                metrics,
                ..otlp::ScopeMetrics::default()
            }],
            ..otlp::ResourceMetrics::default()
        }],
    });
    *request.metadata_mut() = settings.headers.clone();
    let mut client = MetricsServiceClient::new(settings.channel.clone());
    if settings.gzip {
        client = client.send_compressed(tonic::codec::CompressionEncoding::Gzip);
    }
    let result = match tokio::time::timeout(settings.timeout, client.export(request)).await {
        Err(_) => Err(format!("no answer within {:?}", settings.timeout)),
        Ok(Err(status)) => Err(format!("{:?}", status.code())),
        Ok(Ok(answer)) => match answer.into_inner().partial_success {
            Some(partial) if partial.rejected_data_points > 0 => Err(format!(
                "{} data points were refused: {}",
                partial.rejected_data_points, partial.error_message
            )),
            _ => Ok(()),
        },
    };
    (points, result)
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn count(metric: &otlp::Metric) -> usize {
    match &metric.data {
        Some(otlp::metric::Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(otlp::metric::Data::Sum(sum)) => sum.data_points.len(),
        Some(otlp::metric::Data::Histogram(histogram)) => histogram.data_points.len(),
        _ => 0,
    }
}

fn convert(family: prometheus::MetricFamily, began: u64, now: u64) -> Option<otlp::Metric> {
    let kind = family.r#type();
    let name = name(&family)?;
    let unit = match family.unit.as_str() {
        "seconds" => "s",
        "bytes" => "By",
        _ => "1",
    };
    let mut numbers = Vec::new();
    let mut histograms = Vec::new();
    for metric in family.metric {
        let attributes = attributes(&metric.label);
        let number = metric.gauge.map(|g| g.value);
        let number = number.or(metric.counter.map(|c| c.value));
        if let Some(value) = number {
            numbers.push(otlp::NumberDataPoint {
                attributes,
                start_time_unix_nano: began,
                time_unix_nano: now,
                value: Some(otlp::number_data_point::Value::AsDouble(value)),
                ..otlp::NumberDataPoint::default()
            });
        } else if let Some(value) = metric.histogram {
            histograms.push(histogram(value, attributes, began, now));
        }
    }
    let cumulative = otlp::AggregationTemporality::Cumulative.into();
    let data = match kind {
        prometheus::MetricType::Histogram => otlp::metric::Data::Histogram(otlp::Histogram {
            data_points: histograms,
            aggregation_temporality: cumulative,
        }),
        prometheus::MetricType::Counter => otlp::metric::Data::Sum(otlp::Sum {
            data_points: numbers,
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        _ => otlp::metric::Data::Gauge(otlp::Gauge {
            data_points: numbers,
        }),
    };
    Some(otlp::Metric {
        name,
        description: family.help,
        unit: unit.to_owned(),
        data: Some(data),
        ..otlp::Metric::default()
    })
}

/// OpenTelemetry's names have neither Prometheus's `_total` nor the unit.
fn name(family: &prometheus::MetricFamily) -> Option<String> {
    let full = family.name.as_str();
    let bare = full.strip_suffix("_total").unwrap_or(full);
    let bare = bare
        .strip_suffix(family.unit.as_str())
        .and_then(|bare| bare.strip_suffix('_'))
        .unwrap_or(bare);
    match NAMES.iter().find(|(ours, _)| *ours == bare) {
        Some((_, theirs)) => theirs.map(str::to_owned),
        None => Some(bare.replacen('_', ".", 1)),
    }
}

fn attributes(labels: &[prometheus::LabelPair]) -> Vec<KeyValue> {
    labels
        .iter()
        // In Prometheus's form an empty label is one that is not there.
        .filter(|label| !label.value.is_empty())
        .map(|label| {
            let known = ATTRIBUTES.iter().find(|(ours, _)| *ours == label.name);
            let key = known.map_or_else(
                || format!("berth.{}", label.name),
                |(_, theirs)| (*theirs).to_owned(),
            );
            let value = match label.value.parse::<i64>() {
                Ok(code) if key == "http.response.status_code" => any_value::Value::IntValue(code),
                _ => any_value::Value::StringValue(label.value.clone()),
            };
            KeyValue {
                key,
                value: Some(AnyValue { value: Some(value) }),
                ..KeyValue::default()
            }
        })
        .collect()
}

/// Prometheus's buckets count what is below their bound, OTLP's what is in them.
fn histogram(
    value: prometheus::Histogram,
    attributes: Vec<KeyValue>,
    began: u64,
    now: u64,
) -> otlp::HistogramDataPoint {
    let mut bounds = Vec::new();
    let mut counts = Vec::new();
    let mut exemplars = Vec::new();
    let mut below = 0;
    for bucket in value.bucket {
        exemplars.extend(bucket.exemplar.and_then(exemplar));
        if bucket.upper_bound.is_finite() && bucket.upper_bound < f64::MAX {
            bounds.push(bucket.upper_bound);
            counts.push(bucket.cumulative_count.saturating_sub(below));
            below = bucket.cumulative_count;
        }
    }
    counts.push(value.sample_count.saturating_sub(below));
    otlp::HistogramDataPoint {
        attributes,
        start_time_unix_nano: began,
        time_unix_nano: now,
        count: value.sample_count,
        sum: Some(value.sample_sum),
        bucket_counts: counts,
        explicit_bounds: bounds,
        exemplars,
        ..otlp::HistogramDataPoint::default()
    }
}

fn exemplar(exemplar: prometheus::Exemplar) -> Option<otlp::Exemplar> {
    let id = |name: &str| {
        let label = exemplar.label.iter().find(|l| l.name == name)?;
        hex::decode(&label.value).ok()
    };
    let at = exemplar.timestamp.as_ref()?;
    let seconds = u64::try_from(at.seconds).ok()?;
    let rest = u64::try_from(at.nanos).ok()?;
    Some(otlp::Exemplar {
        trace_id: id("trace_id")?,
        span_id: id("span_id")?,
        time_unix_nano: seconds * 1_000_000_000 + rest,
        value: Some(otlp::exemplar::Value::AsDouble(exemplar.value)),
        ..otlp::Exemplar::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::EncodeLabelSet;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::exemplar::HistogramWithExemplars;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::registry::{Registry, Unit};

    #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
    struct Labels {
        rpc_method: &'static str,
        error_type: Option<&'static str>,
        pool: &'static str,
    }

    fn converted(registry: &Registry) -> Vec<otlp::Metric> {
        encode(registry)
            .unwrap()
            .into_iter()
            .filter_map(|family| convert(family, 1, 2))
            .collect()
    }

    #[test]
    fn a_histogram_keeps_its_buckets_and_its_exemplar() {
        let mut registry = Registry::default();
        let histogram = HistogramWithExemplars::new([0.1, 1.0].into_iter());
        let family = Family::<Labels, _, _>::new_with_constructor({
            let histogram = histogram.clone();
            move || histogram.clone()
        });
        registry.register_with_unit(
            "rpc_server_call_duration",
            "calls",
            Unit::Seconds,
            family.clone(),
        );
        let at = UNIX_EPOCH + Duration::from_millis(1_500);
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let labels = Labels {
            rpc_method: "a.B/C",
            error_type: None,
            pool: "fast",
        };
        let point = family.get_or_create_owned(&labels);
        point.observe(0.05, None, None);
        point.observe(
            0.5,
            Some(vec![("trace_id", trace), ("span_id", span)]),
            Some(at),
        );
        point.observe(7.0, None, None);
        let metrics = converted(&registry);
        let [metric] = metrics.as_slice() else {
            panic!("{metrics:?}");
        };
        assert_eq!(metric.name, "rpc.server.call.duration");
        assert_eq!(metric.unit, "s");
        let Some(otlp::metric::Data::Histogram(data)) = &metric.data else {
            panic!("{metric:?}");
        };
        let point = &data.data_points[0];
        assert_eq!(point.bucket_counts, [1, 1, 1]);
        assert_eq!(point.explicit_bounds, [0.1, 1.0]);
        assert_eq!((point.count, point.sum), (3, Some(7.55)));
        let keys: Vec<&str> = point.attributes.iter().map(|a| a.key.as_str()).collect();
        assert_eq!(keys, ["rpc.method", "berth.pool"]);
        let exemplar = &point.exemplars[0];
        assert_eq!(hex::encode(&exemplar.trace_id), trace);
        assert_eq!(hex::encode(&exemplar.span_id), span);
        assert_eq!(exemplar.time_unix_nano, 1_500_000_000);
    }

    #[test]
    fn a_counter_is_a_sum_that_only_grows() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        registry.register("berth_dnsmasq_restarts", "restarts", counter.clone());
        counter.inc_by(3);
        let metrics = converted(&registry);
        assert_eq!(metrics[0].name, "berth.dnsmasq_restarts");
        let Some(otlp::metric::Data::Sum(sum)) = &metrics[0].data else {
            panic!("{metrics:?}");
        };
        assert!(sum.is_monotonic);
        assert_eq!(
            sum.data_points[0].value,
            Some(otlp::number_data_point::Value::AsDouble(3.0))
        );
    }

    #[test]
    fn names_are_those_of_the_conventions() {
        use opentelemetry_semantic_conventions::{attribute, metric};
        let names: Vec<&str> = NAMES.iter().filter_map(|(_, theirs)| *theirs).collect();
        assert_eq!(
            names,
            [
                metric::RPC_SERVER_CALL_DURATION,
                metric::RPC_CLIENT_CALL_DURATION,
                metric::HTTP_SERVER_REQUEST_DURATION,
                metric::PROCESS_CPU_TIME,
                metric::PROCESS_MEMORY_USAGE,
                metric::PROCESS_UNIX_FILE_DESCRIPTOR_COUNT,
                metric::PROCESS_THREAD_COUNT,
            ]
        );
        let attributes: Vec<&str> = ATTRIBUTES.iter().map(|(_, theirs)| *theirs).collect();
        assert_eq!(
            attributes,
            [
                attribute::RPC_SYSTEM_NAME,
                attribute::RPC_METHOD,
                attribute::RPC_RESPONSE_STATUS_CODE,
                attribute::ERROR_TYPE,
                attribute::HTTP_REQUEST_METHOD,
                attribute::HTTP_RESPONSE_STATUS_CODE,
                attribute::HTTP_ROUTE,
                attribute::URL_SCHEME,
            ]
        );
    }
}
