use std::io::IsTerminal;
use std::sync::OnceLock;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

use crate::{ConfigError, ServerConfig};

/// Changes which log lines are written.
type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// Of this process, once [`telemetry`] was set up.
static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// The SDK speaks of itself at info; whoever wants that names it first.
fn log_filter(level: &str) -> Result<EnvFilter, ConfigError> {
    EnvFilter::try_new(format!("opentelemetry=warn,{level}"))
        .map_err(|e| ConfigError::Value(format!("server.log.level: {e}")))
}

/// Writes log lines of `level` from now on, a level or a filter.
///
/// # Errors
/// When it is neither, or logs are not set up.
pub fn set_log_level(level: &str) -> Result<(), ConfigError> {
    let set = SET_FILTER
        .get()
        .ok_or_else(|| ConfigError::Value("logs are not set up".to_owned()))?;
    set(log_filter(level)?).map_err(ConfigError::Value)
}

/// Sends what spans are left when it is dropped.
#[derive(Debug)]
pub struct TelemetryGuard {
    provider: Option<SdkTracerProvider>,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider {
            // The collector may be gone; that must not keep the service from ending.
            let _ = provider.shutdown_with_timeout(std::time::Duration::from_secs(2));
        }
    }
}

/// Logs to stderr, W3C trace context, and OTLP over gRPC where `OTEL_EXPORTER_OTLP_ENDPOINT` is
/// set. Call it inside a tokio runtime, once a process.
///
/// # Errors
/// When the level, the format or the endpoint is malformed.
pub fn telemetry(service: &str, config: &ServerConfig) -> Result<TelemetryGuard, ConfigError> {
    let (filter, handle) = reload::Layer::new(log_filter(&config.log.level)?);
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let provider = provider(service)?;
    // Without an exporter spans still get ids, so that log lines and operations carry them.
    let tracer_provider = provider.clone().unwrap_or_else(|| {
        SdkTracerProvider::builder()
            .with_resource(resource(service))
            .build()
    });
    let tracer = tracer_provider.tracer("berth");
    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_filter(EnvFilter::new(
            "info,h2=off,hyper=off,tonic=off,tower=off,sqlx=off",
        ));
    let logs = match config.log.format.as_str() {
        "text" => tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter(filter)
            .boxed(),
        "json" => tracing_subscriber::fmt::layer()
            .json()
            .with_writer(std::io::stderr)
            .with_filter(filter)
            .boxed(),
        other => {
            return Err(ConfigError::Value(format!(
                "server.log.format: {other:?} is neither text nor json"
            )));
        }
    };
    tracing_subscriber::registry()
        .with(spans)
        .with(logs)
        .try_init()
        .map_err(|e| ConfigError::Value(format!("telemetry was set up before: {e}")))?;
    // Set once: `try_init` above fails for the second caller.
    let _ = SET_FILTER.set(Box::new(move |filter| {
        handle.reload(filter).map_err(|e| e.to_string())
    }));
    opentelemetry::global::set_tracer_provider(tracer_provider);
    Ok(TelemetryGuard { provider })
}

fn resource(service: &str) -> Resource {
    Resource::builder()
        .with_service_name(service.to_owned())
        .with_attribute(opentelemetry::KeyValue::new("service.namespace", "berth"))
        .with_attribute(opentelemetry::KeyValue::new(
            "service.version",
            env!("CARGO_PKG_VERSION"),
        ))
        .build()
}

fn provider(service: &str) -> Result<Option<SdkTracerProvider>, ConfigError> {
    let endpoint = std::env::var("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        .or_else(|_| std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let Ok(endpoint) = endpoint else {
        return Ok(None);
    };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&endpoint)
        .build()
        .map_err(|e| {
            ConfigError::Value(format!("OTEL_EXPORTER_OTLP_ENDPOINT {endpoint:?}: {e}"))
        })?;
    Ok(Some(
        SdkTracerProvider::builder()
            .with_resource(resource(service))
            .with_batch_exporter(exporter)
            .build(),
    ))
}
