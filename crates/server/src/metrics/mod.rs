//! Metrics: one registry per process with two outputs, the OpenMetrics text at `/metrics` and OTLP.
//! Nothing is measured twice; OTLP is made from the registry when it is sent. See docs/adr/0008.

mod exporter;
mod gauges;
mod process;

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use berth_rpc::call::{End, Ended};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub(crate) use exporter::{Push, Settings, resource, start};
pub use prometheus_client::registry::Unit;

/// Seconds; the boundaries that OpenTelemetry advises for calls and requests, and below them a few
/// more, since most of ours take less than its lowest.
pub const CALL_BUCKETS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
    7.5, 10.0,
];

/// Seconds; for work that goes on after its request was answered.
pub const OPERATION_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(|| {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(process::Process::default()));
    registry.register(
        "berth_build",
        "What this process was built from",
        Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
    );
    Mutex::new(registry)
});

/// Whether traces go somewhere, so that pointing at them helps anybody.
static EXEMPLARS: AtomicBool = AtomicBool::new(false);

/// Where an exemplar's trace is.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TraceLabels {
    trace_id: String,
    span_id: String,
}

#[derive(Clone, Debug)]
struct Buckets(&'static [f64]);

impl MetricConstructor<HistogramWithExemplars<TraceLabels>> for Buckets {
    fn new_metric(&self) -> HistogramWithExemplars<TraceLabels> {
        HistogramWithExemplars::new(self.0.iter().copied())
    }
}

/// Histograms of durations in seconds, by labels, with exemplars.
#[derive(Debug, Clone)]
pub struct Durations<L>(Family<L, HistogramWithExemplars<TraceLabels>, Buckets>);

impl<L> Durations<L>
where
    L: Clone + Debug + Hash + Eq + EncodeLabelSet + Send + Sync + 'static,
{
    /// Registers `name`, which is to have no unit: `rpc_server_call_duration`.
    pub fn register(name: &str, help: &str, buckets: &'static [f64]) -> Self {
        let family = Family::new_with_constructor(Buckets(buckets));
        register(|registry| {
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
        });
        Self(family)
    }

    /// Makes these labels known before their first, so that its increase is seen as one.
    pub fn expect(&self, labels: &L) {
        drop(self.0.get_or_create(labels));
    }

    /// Notes one duration; the exemplar is `span`, where it is sampled.
    pub fn observe(&self, labels: &L, took: Duration, span: &tracing::Span) {
        let exemplar = EXEMPLARS
            .load(Ordering::Relaxed)
            .then(|| berth_rpc::trace::sampled(span))
            .flatten()
            .map(|(trace_id, span_id)| TraceLabels { trace_id, span_id });
        let now = exemplar.is_some().then(SystemTime::now);
        self.0
            .get_or_create(labels)
            .observe(took.as_secs_f64(), exemplar, now);
    }
}

/// Names and values.
pub type Labels = Vec<(&'static str, String)>;

/// A counter by labels.
#[derive(Debug, Clone)]
pub struct Counters(Family<Labels, Counter>);

impl Counters {
    /// Registers `name`, which is to have no `_total`.
    pub fn register(name: &str, help: &str) -> Self {
        let family = Family::default();
        register(|registry| registry.register(name, help, family.clone()));
        Self(family)
    }

    /// Adds to one of them; 0 makes it known, so that its first increase is seen as one.
    pub fn add(&self, labels: Labels, number: u64) {
        self.0.get_or_create(&labels).inc_by(number);
    }
}

/// Registers gauges that are read when somebody looks, and never in between. `read` must be quick:
/// it holds up the scrape, and it may not register anything.
pub fn gauges(
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    read: impl Fn() -> Vec<(Labels, i64)> + Send + Sync + 'static,
) {
    let gauges = gauges::Gauges {
        name,
        help,
        unit,
        read: Box::new(read),
    };
    register(|registry| registry.register_collector(Box::new(gauges)));
}

/// Labels of calls, after OpenTelemetry's conventions.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    rpc_system_name: &'static str,
    rpc_method: &'static str,
    rpc_response_status_code: &'static str,
    error_type: Option<&'static str>,
}

struct Calls {
    server: Durations<CallLabels>,
    client: Durations<CallLabels>,
}

static CALLS: LazyLock<Calls> = LazyLock::new(|| Calls {
    server: Durations::register(
        "rpc_server_call_duration",
        "gRPC calls answered, until the answer's end",
        CALL_BUCKETS,
    ),
    client: Durations::register(
        "rpc_client_call_duration",
        "gRPC calls made, until the answer's end",
        CALL_BUCKETS,
    ),
});

static SENT: LazyLock<Counters> = LazyLock::new(|| {
    Counters::register(
        "berth_telemetry_items",
        "Spans, log records and data points, by what became of them",
    )
});

/// What became of something that was to go to a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Exported,
    /// The collector did not take it.
    Failed,
    /// Too many were waiting already.
    Dropped,
}

pub(crate) fn sent(signal: &'static str, outcome: Outcome, items: usize) {
    let outcome = match outcome {
        Outcome::Exported => "exported",
        Outcome::Failed => "failed",
        Outcome::Dropped => "dropped",
    };
    let labels = vec![
        ("signal", signal.to_owned()),
        ("outcome", outcome.to_owned()),
    ];
    SENT.add(labels, u64::try_from(items).unwrap_or(u64::MAX));
}

/// Shows losses as zero before the first, so that an increase of them can be seen.
pub(crate) fn expect_sent(signal: &'static str) {
    for outcome in [Outcome::Exported, Outcome::Failed, Outcome::Dropped] {
        sent(signal, outcome, 0);
    }
}

/// Lets histograms point at traces.
pub(crate) fn use_exemplars() {
    EXEMPLARS.store(true, Ordering::Relaxed);
}

/// Counts this process's calls from now on.
pub(crate) fn install() {
    LazyLock::force(&CALLS);
    berth_rpc::call::observe_with(call_ended);
}

fn call_ended(call: &Ended<'_>) {
    let labels = CallLabels {
        rpc_system_name: "grpc",
        rpc_method: call.method,
        rpc_response_status_code: call.code,
        error_type: call.error,
    };
    let durations = match call.end {
        End::Server => &CALLS.server,
        End::Client => &CALLS.client,
    };
    durations.observe(&labels, call.took, call.span);
}

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds a service's own metrics.
pub fn register(add: impl FnOnce(&mut Registry)) {
    add(&mut registry());
}

/// Everything, as OpenMetrics text.
///
/// # Errors
/// When a collector fails; half of the metrics would look as if the rest were gone.
pub fn render() -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry())?;
    Ok(text)
}
