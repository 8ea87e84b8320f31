//! One gRPC call as OpenTelemetry's semantic conventions want it told: a span, and its duration for
//! whoever keeps metrics. The same on both ends.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{LazyLock, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body::{Body, Frame, SizeHint};
use prost::Message;
use tracing::{Instrument, Span};

use crate::trace;

/// A method that this build does not know: naming it would let a caller fill a registry.
const OTHER: &str = "_OTHER";

/// Methods that `berth.*` does not declare but serves.
const FOREIGN: [&str; 4] = [
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/List",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];

/// Prefix of the health service's methods.
const HEALTH: &str = "grpc.health.v1.Health/";

const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

static METHODS: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    // The set is compiled in; if it did not decode, reflection would not start either.
    let set = prost_types::FileDescriptorSet::decode(berth_proto::FILE_DESCRIPTOR_SET)
        .unwrap_or_default();
    let mut methods: HashSet<&'static str> = FOREIGN.into_iter().collect();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                // Once a process, a few kilobytes: labels and span names are then free.
                methods.insert(Box::leak(name.into_boxed_str()));
            }
        }
    }
    methods
});

/// `rpc.method` of a request's path.
fn method(path: &str) -> &'static str {
    METHODS
        .get(path.trim_start_matches('/'))
        .copied()
        .unwrap_or(OTHER)
}

fn code(headers: &http::HeaderMap) -> Option<&'static str> {
    let number = headers.get("grpc-status")?.to_str().ok()?;
    let known = number.parse::<usize>().ok().and_then(|n| CODES.get(n));
    Some(known.copied().unwrap_or("UNKNOWN"))
}

/// Which end of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was answered here.
    Server,
    /// It was made here.
    Client,
}

impl End {
    /// The `error.type` of a code: on a server only what is the server's fault.
    fn error(self, code: &'static str) -> Option<&'static str> {
        match (self, code) {
            (_, "OK") => None,
            (
                Self::Server,
                "UNKNOWN" | "DEADLINE_EXCEEDED" | "UNIMPLEMENTED" | "INTERNAL" | "UNAVAILABLE"
                | "DATA_LOSS",
            )
            | (Self::Client, _) => Some(code),
            (Self::Server, _) => None,
        }
    }
}

/// A call that is over.
#[derive(Debug)]
pub struct Ended<'a> {
    /// Which end this is.
    pub end: End,
    /// `berth.image.v1.ImageService/GetImage`, or `_OTHER`.
    pub method: &'static str,
    /// `OK`, `NOT_FOUND`, ...
    pub code: &'static str,
    /// The code again where it is a fault of whoever answered.
    pub error: Option<&'static str>,
    /// From the request's arrival to the end of the answer.
    pub took: Duration,
    /// Its span.
    pub span: &'a Span,
}

static OBSERVER: OnceLock<fn(&Ended<'_>)> = OnceLock::new();

/// Names who is told of every call that ends in this process; the first one stays.
pub fn observe_with(observer: fn(&Ended<'_>)) {
    let _ = OBSERVER.set(observer);
}

/// A call under way. Dropped before its end was seen, it counts as cancelled.
#[derive(Debug)]
struct Call {
    end: End,
    method: &'static str,
    span: Span,
    began: Instant,
    over: bool,
}

impl Call {
    fn over(&mut self, code: &'static str) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let error = self.end.error(code);
        self.span.record("rpc.response.status_code", code);
        if let Some(error) = error {
            self.span.record("error.type", error);
            self.span.record("otel.status_code", "ERROR");
        }
        if let Some(observer) = OBSERVER.get() {
            observer(&Ended {
                end: self.end,
                method: self.method,
                code,
                error,
                took: self.began.elapsed(),
                span: &self.span,
            });
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.over("CANCELLED");
    }
}

/// An answer's body, which shows how the call ended.
#[derive(Debug)]
pub struct CallBody<B> {
    inner: B,
    /// None once the end is known: hyper may keep a body for a while after that.
    call: Option<Call>,
}

impl<B> CallBody<B> {
    fn new(inner: B, call: Call) -> Self {
        Self {
            inner,
            call: Some(call),
        }
    }
}

impl<B> Body for CallBody<B>
where
    B: Body + Unpin,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let polled = {
            let _entered = this.call.as_ref().map(|call| call.span.enter());
            Pin::new(&mut this.inner).poll_frame(cx)
        };
        let code = match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                frame.trailers_ref().map(|t| code(t).unwrap_or("UNKNOWN"))
            }
            Poll::Ready(Some(Err(_))) => Some("UNAVAILABLE"),
            // An end without trailers: the status was lost on the way.
            Poll::Ready(None) => Some("UNKNOWN"),
            Poll::Pending => None,
        };
        if let Some(code) = code
            && let Some(mut call) = this.call.take()
        {
            call.over(code);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The future of an answer whose end is watched.
pub(crate) type Answer<B, E> =
    Pin<Box<dyn Future<Output = Result<http::Response<CallBody<B>>, E>> + Send>>;

/// Runs `answer` in `call`'s span and hands the call on to the body, where it ends.
fn follow<B, E>(
    mut call: Call,
    answer: impl Future<Output = Result<http::Response<B>, E>> + Send + 'static,
) -> Answer<B, E> {
    let answer = answer.instrument(call.span.clone());
    Box::pin(async move {
        let response = match answer.await {
            Ok(response) => response,
            Err(error) => {
                call.over("UNAVAILABLE");
                return Err(error);
            }
        };
        if response.status() != http::StatusCode::OK {
            call.over("UNKNOWN");
        } else if let Some(code) = code(response.headers()) {
            call.over(code);
        }
        Ok(response.map(|body| CallBody::new(body, call)))
    })
}

/// Server layer: a span per call that continues the caller's trace.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServerLayer;

impl<S> tower::Layer<S> for ServerLayer {
    type Service = Served<S>;

    fn layer(&self, inner: S) -> Served<S> {
        Served { inner }
    }
}

/// See [`ServerLayer`].
#[derive(Debug, Clone)]
pub struct Served<S> {
    inner: S,
}

impl<S, B, R> tower::Service<http::Request<B>> for Served<S>
where
    S: tower::Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<CallBody<R>>;
    type Error = S::Error;
    type Future = Answer<R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let began = Instant::now();
        let method = method(request.uri().path());
        // Probes come every few seconds for ever: they are counted, and would drown every trace viewer.
        let span = if method.starts_with(HEALTH) {
            Span::none()
        } else {
            tracing::info_span!(
                "call",
                otel.name = if method == OTHER { "grpc" } else { method },
                otel.kind = "server",
                otel.status_code = tracing::field::Empty,
                rpc.system.name = "grpc",
                rpc.method = method,
                rpc.method_original = tracing::field::Empty,
                rpc.response.status_code = tracing::field::Empty,
                "error.type" = tracing::field::Empty,
                trace_id = tracing::field::Empty,
            )
        };
        if method == OTHER {
            span.record("rpc.method_original", request.uri().path());
        }
        trace::continue_from_headers(&span, request.headers());
        if let Some(id) = span.in_scope(trace::current_trace_id) {
            span.record("trace_id", id);
        }
        let call = Call {
            end: End::Server,
            method,
            began,
            over: false,
            span,
        };
        let _entered = call.span.clone().entered();
        let answer = self.inner.call(request);
        follow(call, answer)
    }
}

/// Makes a call with a span of its own, whose context travels in the request's headers.
pub(crate) fn send<S, B, R>(
    service: &mut S,
    address: &str,
    mut request: http::Request<B>,
) -> Answer<R, S::Error>
where
    S: tower::Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
{
    let began = Instant::now();
    let method = method(request.uri().path());
    let span = tracing::info_span!(
        "call",
        otel.name = if method == OTHER { "grpc" } else { method },
        otel.kind = "client",
        otel.status_code = tracing::field::Empty,
        rpc.system.name = "grpc",
        rpc.method = method,
        rpc.response.status_code = tracing::field::Empty,
        "error.type" = tracing::field::Empty,
        server.address = address,
    );
    let entered = span.clone().entered();
    trace::inject(request.headers_mut());
    let answer = service.call(request);
    drop(entered);
    let call = Call {
        end: End::Client,
        method,
        began,
        over: false,
        span,
    };
    follow(call, answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_ones_or_other() {
        let get = "berth.image.v1.ImageService/GetImage";
        assert_eq!(method(&format!("/{get}")), get);
        assert_eq!(
            method("/grpc.health.v1.Health/Check"),
            "grpc.health.v1.Health/Check"
        );
        assert_eq!(method("/berth.image.v1.ImageService/Get"), OTHER);
        assert_eq!(method("/"), OTHER);
    }

    #[test]
    fn a_servers_error_is_its_own_fault_a_clients_is_any() {
        assert_eq!(End::Server.error("NOT_FOUND"), None);
        assert_eq!(End::Server.error("INTERNAL"), Some("INTERNAL"));
        assert_eq!(End::Client.error("NOT_FOUND"), Some("NOT_FOUND"));
        assert_eq!(End::Client.error("OK"), None);
    }

    #[test]
    fn a_code_is_told_by_name() {
        let mut headers = http::HeaderMap::new();
        assert_eq!(code(&headers), None);
        for (number, name) in [
            ("0", "OK"),
            ("5", "NOT_FOUND"),
            ("16", "UNAUTHENTICATED"),
            ("99", "UNKNOWN"),
        ] {
            headers.insert("grpc-status", number.parse().unwrap());
            assert_eq!(code(&headers), Some(name));
        }
    }
}
