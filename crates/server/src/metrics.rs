//! Prometheus metrics: a registry per process, served at `/metrics` in the OpenMetrics text form.

use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Labels of calls.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CallLabels {
    /// `berth.image.v1.ImageService/GetImage`.
    pub method: String,
    /// gRPC code as a number, or the HTTP status where there is none.
    pub code: String,
}

struct Calls {
    count: Family<CallLabels, Counter>,
    seconds: Family<CallLabels, Histogram>,
}

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(|| Mutex::new(Registry::default()));

static CALLS: LazyLock<Calls> = LazyLock::new(|| {
    let calls = Calls {
        count: Family::default(),
        seconds: Family::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_25, 4.0, 10))
        }),
    };
    register(|registry| {
        registry.register(
            "berth_grpc_calls",
            "gRPC calls answered",
            calls.count.clone(),
        );
        registry.register(
            "berth_grpc_call_duration_seconds",
            "Time until the answer began",
            calls.seconds.clone(),
        );
    });
    calls
});

/// Adds a service's own metrics.
pub fn register(add: impl FnOnce(&mut Registry)) {
    add(&mut REGISTRY
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner));
}

/// Notes one call.
pub fn observe_call(method: &str, code: &str, took: Duration) {
    let labels = CallLabels {
        method: method.to_owned(),
        code: code.to_owned(),
    };
    CALLS.count.get_or_create(&labels).inc();
    CALLS
        .seconds
        .get_or_create(&labels)
        .observe(took.as_secs_f64());
}

/// Everything, as text.
pub fn render() -> String {
    LazyLock::force(&CALLS);
    let mut text = String::new();
    let registry = REGISTRY
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text.insert_str(0, &process());
    text
}

/// Memory and descriptors of this process, by procfs.
fn process() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .and_then(|v| v.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0);
    let fds = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    format!(
        "# HELP process_resident_memory_bytes Resident memory.\n\
         # TYPE process_resident_memory_bytes gauge\n\
         process_resident_memory_bytes {}\n\
         # HELP process_open_fds Open descriptors.\n\
         # TYPE process_open_fds gauge\n\
         process_open_fds {fds}\n",
        rss * 1024
    )
}
