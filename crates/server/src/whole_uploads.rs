//! Tells an upload that ended from one that was cancelled.
//!
//! tonic gives a server the same end of stream for both: a client's RST_STREAM(CANCEL) reads like
//! its END_STREAM. An upload that breaks off would pass for a whole one, so the body is watched
//! underneath and a mark goes along in the request's extensions.

use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::server::NamedService;

/// Set when the request's body failed before its end.
#[derive(Debug, Clone, Default)]
pub struct BrokenOff(Arc<AtomicBool>);

impl BrokenOff {
    /// The mark of a request that a [`WholeUploads`] let through.
    ///
    /// # Errors
    /// When the service was added without one.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, tonic::Status> {
        let mark = request.extensions().get::<Self>().cloned();
        mark.ok_or_else(|| tonic::Status::internal("the upload's body is not watched"))
    }

    /// Whether it broke off. It is known once the stream has ended.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A gRPC service whose handlers find a [`BrokenOff`] in each request's extensions.
#[derive(Debug, Clone)]
pub struct WholeUploads<S> {
    inner: S,
}

impl<S> WholeUploads<S> {
    /// Watches the bodies of a service's requests.
    pub fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S: NamedService> NamedService for WholeUploads<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: tower::Service<http::Request<Body>>> tower::Service<http::Request<Body>>
    for WholeUploads<S>
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let mark = BrokenOff::default();
        request.extensions_mut().insert(mark.clone());
        self.inner
            .call(request.map(|inner| Body::new(Watched { inner, mark })))
    }
}

struct Watched {
    inner: Body,
    mark: BrokenOff,
}

impl http_body::Body for Watched {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Err(_))) = &frame {
            self.mark.0.store(true, Ordering::Release);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use bytes::Bytes;
    use http_body_util::{BodyExt, StreamBody};
    use tower::Service as _;

    /// Reads a body of these frames to its end, as a handler would, and gives the mark.
    async fn read(frames: Vec<Result<Frame<Bytes>, tonic::Status>>) -> bool {
        let mut service =
            WholeUploads::new(tower::service_fn(|request: http::Request<Body>| async {
                let mark = request.extensions().get::<BrokenOff>().cloned().unwrap();
                let mut body = request.into_body();
                while let Some(Ok(_)) = body.frame().await {}
                Ok::<_, std::convert::Infallible>(mark.is_set())
            }));
        let body = Body::new(StreamBody::new(futures::stream::iter(frames)));
        service.call(http::Request::new(body)).await.unwrap()
    }

    #[tokio::test]
    async fn a_reset_is_not_an_end() {
        let data = || Ok(Frame::data(Bytes::from_static(b"half")));
        assert!(!read(vec![data(), data()]).await);
        assert!(read(vec![data(), Err(tonic::Status::cancelled("reset"))]).await);
    }
}
