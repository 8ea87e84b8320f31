//! Channels to Berth's services over unix sockets or TCP.

use std::path::PathBuf;
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::transport::{Endpoint, Uri};

use crate::Error;

/// A lazy channel that reconnects by itself and carries the trace of the current span.
#[derive(Debug, Clone)]
pub struct Channel {
    inner: tonic::transport::Channel,
}

impl Channel {
    /// Wraps a channel made elsewhere, e.g. an in-memory one.
    pub fn new(inner: tonic::transport::Channel) -> Self {
        Self { inner }
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<tonic::body::Body>;
    type Error = tonic::transport::Error;
    type Future = tonic::transport::channel::ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower::Service::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, mut request: http::Request<tonic::body::Body>) -> Self::Future {
        crate::trace::inject(request.headers_mut());
        tower::Service::call(&mut self.inner, request)
    }
}

/// Connects to `unix:/path/to.sock` or `http://host:port`, lazily.
///
/// # Errors
/// When the address is of neither form.
pub fn connect(address: &str) -> Result<Channel, Error> {
    let bad = |why: String| Error::invalid("address", format!("{address:?}: {why}"));
    if let Some(path) = address.strip_prefix("unix:") {
        let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
        let endpoint = settings(Endpoint::from_static("http://localhost"));
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }));
        return Ok(Channel::new(channel));
    }
    if !address.starts_with("http://") && !address.starts_with("https://") {
        return Err(bad("expected unix:/path or http://host:port".to_owned()));
    }
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|e| bad(e.to_string()))?;
    Ok(Channel::new(settings(endpoint).connect_lazy()))
}

fn settings(endpoint: Endpoint) -> Endpoint {
    // The windows let 1 MiB chunks through without a round trip each.
    endpoint
        .connect_timeout(Duration::from_secs(5))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .tcp_nodelay(true)
}
