//! Every path of LXD 5.0.2: done, or refused by name.

use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, StatusCode};

use super::{
    aliases, certificates, cluster, console, events, exec, files, images, instance_state,
    instances, logs, measure, metadata, networks, operations, profiles, projects, refuse_all,
    resources, server, snapshots, storage_pools, storage_volumes, warnings,
};
use crate::App;
use crate::error::Failure;

/// Paths under which instances are served; all three mean the same collection.
pub const INSTANCE_PREFIXES: [&str; 3] =
    ["/1.0/instances", "/1.0/containers", "/1.0/virtual-machines"];

/// The whole API.
pub fn router(app: App) -> Router {
    measure::install();
    let mut api = Router::new()
        .merge(server::routes())
        .merge(events::routes())
        .merge(operations::routes())
        .merge(images::routes())
        .merge(aliases::routes())
        .merge(profiles::routes())
        .merge(storage_pools::routes())
        .merge(storage_volumes::routes())
        .merge(networks::routes())
        .merge(projects::routes())
        .merge(certificates::routes())
        .merge(warnings::routes())
        .merge(resources::routes())
        .merge(cluster::routes());
    for prefix in INSTANCE_PREFIXES {
        api = api
            .merge(instances::routes(prefix))
            .merge(instance_state::routes(prefix))
            .merge(exec::routes(prefix))
            .merge(console::routes(prefix))
            .merge(files::routes(prefix))
            .merge(snapshots::routes(prefix))
            .merge(logs::routes(prefix))
            .merge(metadata::routes(prefix));
    }
    api.merge(refuse_all(&[
        ("/1.0/metrics", "metrics over REST"),
        ("/1.0/network-acls", "network ACLs"),
        ("/1.0/network-acls/{name}", "network ACLs"),
        ("/1.0/network-acls/{name}/log", "network ACLs"),
        ("/1.0/network-zones", "network zones"),
        ("/1.0/network-zones/{zone}", "network zones"),
        ("/1.0/network-zones/{zone}/records", "network zones"),
        (
            "/1.0/network-zones/{zone}/records/{record}",
            "network zones",
        ),
    ]))
    .fallback(|| async { Failure::not_found("not found") })
    .method_not_allowed_fallback(|| async {
        Failure::new(StatusCode::NOT_IMPLEMENTED, "not implemented")
    })
    .layer(from_fn(small_body))
    .layer(from_fn_with_state(app.clone(), trace))
    .with_state(app)
}

/// Bodies up to this size are read before they are looked at.
const SMALL_BODY: u64 = 256 << 10;

/// Reads a small body whole before anything is answered. A request that is refused before its body was
/// read ends its connection, and a client that still writes sees a broken pipe instead of the answer.
async fn small_body(request: Request, next: Next) -> Response {
    let length = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_none_or(|length| length > SMALL_BODY) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    match axum::body::to_bytes(body, usize::try_from(SMALL_BODY).unwrap_or(usize::MAX)).await {
        Ok(bytes) => next.run(Request::from_parts(parts, bytes.into())).await,
        Err(error) => {
            Failure::bad_request(format!("the body cannot be read: {error}")).into_response()
        }
    }
}

/// A span per request that continues the client's own trace, its duration for the metrics, and a
/// logging event for those who watch; OPTIONS answers for itself.
async fn trace(State(app): State<App>, request: Request, next: Next) -> Response {
    use tracing::Instrument;

    if request.method() == http::Method::OPTIONS {
        return (StatusCode::OK, HeaderMap::new()).into_response();
    }
    let began = Instant::now();
    let mut context = serde_json::Map::new();
    for (key, value) in [
        ("method", request.method().to_string()),
        ("url", request.uri().path().to_owned()),
        ("protocol", "unix".to_owned()),
        ("username", "root".to_owned()),
    ] {
        context.insert(key.to_owned(), value.into());
    }
    app.events
        .log("debug", "Handling API request", context.clone());
    let method = measure::method(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let span = tracing::info_span!(
        "request",
        otel.name = route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}")),
        otel.kind = "server",
        otel.status_code = tracing::field::Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = tracing::field::Empty,
        url.path = request.uri().path(),
        url.scheme = "http",
        network.transport = "unix",
        user_agent.original = request
            .headers()
            .get(http::header::USER_AGENT)
            .and_then(|agent| agent.to_str().ok()),
        "error.type" = tracing::field::Empty,
        trace_id = tracing::field::Empty,
    );
    berth_rpc::trace::continue_from_headers(&span, request.headers());
    if let Some(id) = span.in_scope(berth_rpc::trace::current_trace_id) {
        span.record("trace_id", id);
    }
    let route = route.map(str::to_owned);
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("error.type", status.as_str());
        span.record("otel.status_code", "ERROR");
        context.insert("status".to_owned(), status.as_str().into());
        app.events.log("error", "API request failed", context);
    }
    measure::request(method, route, status, began.elapsed(), &span);
    tracing::debug!(parent: &span, status = status.as_u16(), "answered");
    response
}
