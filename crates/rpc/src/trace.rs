//! W3C trace context on gRPC metadata and in stored records.

use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt;
use tracing_opentelemetry::OpenTelemetrySpanExt;

struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|v| v.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut http::HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = http::HeaderName::from_bytes(key.as_bytes());
        if let (Ok(name), Ok(value)) = (name, http::HeaderValue::from_str(&value)) {
            self.0.insert(name, value);
        }
    }
}

struct Text<'a>(&'a str);

impl Extractor for Text<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

struct TextMut(Option<String>);

impl Injector for TextMut {
    fn set(&mut self, key: &str, value: String) {
        if key == "traceparent" {
            self.0 = Some(value);
        }
    }
}

/// The trace and span of `span`, where it is one that is sampled: 32 and 16 hex digits.
pub fn sampled(span: &tracing::Span) -> Option<(String, String)> {
    let context = span.context();
    let at = context.span();
    let at = at.span_context();
    at.is_sampled()
        .then(|| (at.trace_id().to_string(), at.span_id().to_string()))
}

/// Makes `span` a child of the context that the request's headers carry.
pub fn continue_from_headers(span: &tracing::Span, headers: &http::HeaderMap) {
    let parent = opentelemetry::global::get_text_map_propagator(|p| p.extract(&Headers(headers)));
    if parent.span().span_context().is_valid() {
        // Fails only where no OpenTelemetry layer is installed, and then there is nothing to link.
        let _ = span.set_parent(parent);
    }
}

/// Makes `span` a child of a stored `traceparent`.
pub fn continue_from_text(span: &tracing::Span, traceparent: &str) {
    let parent = opentelemetry::global::get_text_map_propagator(|p| p.extract(&Text(traceparent)));
    if parent.span().span_context().is_valid() {
        let _ = span.set_parent(parent);
    }
}

/// Writes the current span's context into outgoing headers.
pub fn inject(headers: &mut http::HeaderMap) {
    let context = tracing::Span::current().context();
    opentelemetry::global::get_text_map_propagator(|p| {
        p.inject_context(&context, &mut HeadersMut(headers));
    });
}

/// The current span's `traceparent`, to be stored with work that outlives the request.
pub fn current_traceparent() -> Option<String> {
    let context = tracing::Span::current().context();
    let mut text = TextMut(None);
    opentelemetry::global::get_text_map_propagator(|p| p.inject_context(&context, &mut text));
    text.0
}

/// The current trace's id, 32 hex digits, for log lines.
pub fn current_trace_id() -> Option<String> {
    let context = tracing::Span::current().context();
    let id = context.span().span_context().trace_id();
    (id != opentelemetry::TraceId::INVALID).then(|| id.to_string())
}
