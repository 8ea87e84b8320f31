//! Durations of REST requests, after OpenTelemetry's conventions.

use std::sync::LazyLock;
use std::time::Duration;

use berth_server::metrics::{CALL_BUCKETS, Durations};
use http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    http_request_method: &'static str,
    http_route: Option<String>,
    http_response_status_code: u16,
    url_scheme: &'static str,
    error_type: Option<String>,
}

static REQUESTS: LazyLock<Durations<RequestLabels>> = LazyLock::new(|| {
    Durations::register(
        "http_server_request_duration",
        "REST requests, until the answer began; with those that wait for an operation or an event",
        CALL_BUCKETS,
    )
});

/// Makes the metric known before the first request.
pub(super) fn install() {
    LazyLock::force(&REQUESTS);
}

/// `http.request.method`: one that is made up would be a label of its own.
pub(super) fn method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "_OTHER",
    }
}

pub(super) fn request(
    method: &'static str,
    route: Option<String>,
    status: StatusCode,
    took: Duration,
    span: &tracing::Span,
) {
    let labels = RequestLabels {
        http_request_method: method,
        http_route: route,
        http_response_status_code: status.as_u16(),
        url_scheme: "http",
        error_type: status.is_server_error().then(|| status.as_str().to_owned()),
    };
    REQUESTS.observe(&labels, took, span);
}
