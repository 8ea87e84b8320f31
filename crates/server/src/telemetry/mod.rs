//! Logs to stderr, and traces, metrics and logs over OTLP where the standard `OTEL_*` variables name
//! a collector. See docs/observability.md.

mod bounded;
mod level;
mod otlp;

use std::io::IsTerminal;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{Key, KeyValue};
use opentelemetry_appender_tracing::layer::{OpenTelemetryTracingBridge, TracingSpanAttributes};
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{
    BatchConfigBuilder as LogBatches, BatchLogProcessor, SdkLoggerProvider,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::{EnvResourceDetector, ResourceDetector};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder as SpanBatches, BatchSpanProcessor, SdkTracerProvider,
};
use tokio::runtime::Handle;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};
use uuid::Uuid;

use self::bounded::{Bounded, Counted, Queue};
use self::otlp::{Destination, Signal, Variables};
use crate::{ConfigError, ServerConfig, metrics};

pub use level::{LogLevel, check_log_level, log_level, override_log_level, set_log_level};

/// What the end of a service waits for its last telemetry.
const FAREWELL: Duration = Duration::from_secs(2);

/// Sends what telemetry is left when it is dropped.
#[derive(Debug)]
pub struct TelemetryGuard {
    traces: Option<SdkTracerProvider>,
    logs: Option<SdkLoggerProvider>,
    metrics: Option<metrics::Push>,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        // The collector may be gone; that must not keep the service from ending. Side by side, so
        // that they wait together and not in turn.
        std::thread::scope(|scope| {
            if let Some(traces) = &self.traces {
                scope.spawn(|| traces.shutdown_with_timeout(FAREWELL));
            }
            if let Some(logs) = &self.logs {
                scope.spawn(|| logs.shutdown_with_timeout(FAREWELL));
            }
            if let Some(metrics) = &self.metrics {
                metrics.stop(FAREWELL);
            }
        });
    }
}

/// Sets up logs, traces and metrics. Call it inside a multi-threaded tokio runtime, once a process.
///
/// # Errors
/// When the level, the format or one of the `OTEL_*` variables is malformed; the message names it.
pub fn telemetry(service: &str, config: &ServerConfig) -> Result<TelemetryGuard, ConfigError> {
    check_log_level(&config.log.level)?;
    let variables = Variables::of_process();
    variables.check_sampler()?;
    let resource = resource(service, config, &variables);
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    metrics::install();
    let traces = traces(&variables, &resource)?;
    if traces.is_some() && variables.exemplars()? {
        metrics::use_exemplars();
    }
    let logs = logs(&variables, &resource)?;
    // Without an exporter spans still get ids, so that log lines and operations carry them.
    let tracers = traces.clone().unwrap_or_else(|| {
        SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .build()
    });
    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracers.tracer("berth"))
        // Where in the code and on which thread says nothing to whoever reads a trace, and costs.
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(EnvFilter::new(
            "info,h2=off,hyper=off,tonic=off,tower=off,sqlx=off,opentelemetry=off",
        ));
    let (stderr_filter, stderr) = reload::Layer::new(level::to_stderr(&config.log.level)?);
    let (collector_filter, collector) = reload::Layer::new(level::to_collector(&config.log.level)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match config.log.format.as_str() {
        "text" => lines
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter(stderr_filter)
            .boxed(),
        "json" => lines.json().with_filter(stderr_filter).boxed(),
        other => {
            return Err(ConfigError::Value(format!(
                "server.log.format: {other:?} is neither text nor json"
            )));
        }
    };
    let records = logs.as_ref().map(|provider| {
        OpenTelemetryTracingBridge::builder(provider)
            .with_tracing_span_attributes(TracingSpanAttributes::allowlist(["berth.operation.id"]))
            .build()
            .with_filter(collector_filter)
    });
    tracing_subscriber::registry()
        .with(spans)
        .with(lines)
        .with(records)
        .try_init()
        .map_err(|e| ConfigError::Value(format!("telemetry was set up before: {e}")))?;
    opentelemetry::global::set_tracer_provider(tracers);
    let has_collector = logs.is_some();
    level::install(
        &config.log.level,
        Box::new(move |level| {
            let gone = |e: reload::Error| ConfigError::Value(format!("server.log.level: {e}"));
            let filter = level::to_collector(level)?;
            stderr.reload(level::to_stderr(level)?).map_err(gone)?;
            if has_collector {
                collector.reload(filter).map_err(gone)?;
            }
            Ok(())
        }),
    );
    Ok(TelemetryGuard {
        traces,
        logs,
        metrics: pushed_metrics(&variables, &resource)?,
    })
}

fn failed(signal: &str, error: impl std::fmt::Display) -> ConfigError {
    ConfigError::Value(format!("OTLP {signal}: {error}"))
}

fn counted<E>(inner: E, queue: &std::sync::Arc<Queue>, to: &Destination) -> Counted<E> {
    Counted {
        inner,
        queue: queue.clone(),
        // The exporter tries again within its own limit, and may begin a try at the end of that.
        limit: to.timeout * 2,
        runtime: Handle::current(),
    }
}

fn traces(
    variables: &Variables,
    resource: &Resource,
) -> Result<Option<SdkTracerProvider>, ConfigError> {
    let Some(to) = variables.destination(Signal::Traces)? else {
        return Ok(None);
    };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_channel(to.channel.clone())
        .with_timeout(to.timeout)
        .build()
        .map_err(|e| failed("traces", e))?;
    let places = variables.count("OTEL_BSP_MAX_QUEUE_SIZE", 2048)?;
    let batch = variables.count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)?;
    let delay = variables.millis("OTEL_BSP_SCHEDULE_DELAY", Duration::from_secs(5))?;
    let queue = Queue::new("traces", &to.endpoint, places);
    let batches = SpanBatches::default()
        .with_max_queue_size(places)
        .with_max_export_batch_size(batch.min(places))
        .with_scheduled_delay(delay)
        .build();
    let inner = BatchSpanProcessor::builder(counted(exporter, &queue, &to))
        .with_batch_config(batches)
        .build();
    metrics::expect_sent("traces");
    Ok(Some(
        SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_span_processor(Bounded { inner, queue })
            .build(),
    ))
}

fn logs(
    variables: &Variables,
    resource: &Resource,
) -> Result<Option<SdkLoggerProvider>, ConfigError> {
    let Some(to) = variables.destination(Signal::Logs)? else {
        return Ok(None);
    };
    let exporter = opentelemetry_otlp::LogExporter::builder()
        .with_tonic()
        .with_channel(to.channel.clone())
        .with_timeout(to.timeout)
        .build()
        .map_err(|e| failed("logs", e))?;
    let places = variables.count("OTEL_BLRP_MAX_QUEUE_SIZE", 2048)?;
    let batch = variables.count("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", 512)?;
    let delay = variables.millis("OTEL_BLRP_SCHEDULE_DELAY", Duration::from_secs(1))?;
    let queue = Queue::new("logs", &to.endpoint, places);
    let batches = LogBatches::default()
        .with_max_queue_size(places)
        .with_max_export_batch_size(batch.min(places))
        .with_scheduled_delay(delay)
        .build();
    let inner = BatchLogProcessor::builder(counted(exporter, &queue, &to))
        .with_batch_config(batches)
        .build();
    metrics::expect_sent("logs");
    Ok(Some(
        SdkLoggerProvider::builder()
            .with_resource(resource.clone())
            .with_log_processor(Bounded { inner, queue })
            .build(),
    ))
}

fn pushed_metrics(
    variables: &Variables,
    resource: &Resource,
) -> Result<Option<metrics::Push>, ConfigError> {
    let Some(to) = variables.destination(Signal::Metrics)? else {
        return Ok(None);
    };
    let every = variables.millis("OTEL_METRIC_EXPORT_INTERVAL", Duration::from_secs(60))?;
    let queue = Queue::new("metrics", &to.endpoint, 1);
    metrics::expect_sent("metrics");
    let settings = metrics::Settings {
        channel: to.channel,
        headers: to.headers,
        gzip: to.gzip,
        timeout: to.timeout,
        every,
        resource: metrics::resource(resource),
    };
    let note = Box::new(move |points, result| queue.note(points, result));
    Ok(Some(metrics::start(settings, note)))
}

/// Who speaks. What the environment says goes before what we know ourselves.
fn resource(service: &str, config: &ServerConfig, variables: &Variables) -> Resource {
    let host = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default();
    // The same after a restart, so that its metrics go on, and another one for every state.
    let place = format!("{host}/{service}/{}", config.state_dir.display());
    let instance = Uuid::new_v5(&Uuid::NAMESPACE_OID, place.as_bytes());
    let told = EnvResourceDetector::new().detect();
    let ours = [
        ("service.name", service.to_owned()),
        ("service.namespace", "berth".to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", instance.to_string()),
        ("host.name", host),
    ]
    .into_iter()
    .filter(|(key, _)| told.get(&Key::new(*key)).is_none())
    .filter(|(key, _)| *key != "service.name" || variables.get("OTEL_SERVICE_NAME").is_none())
    .map(|(key, value)| KeyValue::new(key, value));
    Resource::builder()
        .with_attributes(ours)
        .with_attribute(KeyValue::new("process.pid", i64::from(std::process::id())))
        .build()
}
