//! A stream of requests that must not end by accident.
//!
//! A request stream that just stops looks complete to the service that reads it: the client that
//! sent half an image would have sent a whole, shorter one. So the end of the stream is an error
//! on the wire (a reset) unless it was declared.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use berth_rpc::Channel;
use bytes::Bytes;
use http_body::{Body, Frame};

/// Declares that everything was sent.
#[derive(Debug, Clone, Default)]
pub struct Complete(Arc<AtomicBool>);

impl Complete {
    /// The stream's end, when it comes, is the end of the request.
    pub fn declare(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A channel whose requests end well only when declared [`Complete`].
#[derive(Debug, Clone)]
pub struct Declared {
    inner: Channel,
    complete: Complete,
}

impl Declared {
    /// Over `inner`, until `complete` is declared.
    pub fn new(inner: Channel, complete: Complete) -> Self {
        Self { inner, complete }
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Declared {
    type Response = <Channel as tower::Service<http::Request<tonic::body::Body>>>::Response;
    type Error = <Channel as tower::Service<http::Request<tonic::body::Body>>>::Error;
    type Future = <Channel as tower::Service<http::Request<tonic::body::Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let complete = self.complete.clone();
        self.inner.call(request.map(|inner| {
            tonic::body::Body::new(DeclaredBody {
                inner,
                complete,
                ended: false,
            })
        }))
    }
}

struct DeclaredBody {
    inner: tonic::body::Body,
    complete: Complete,
    ended: bool,
}

impl Body for DeclaredBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(None) => {
                self.ended = true;
                if self.complete.0.load(Ordering::Acquire) {
                    Poll::Ready(None)
                } else {
                    Poll::Ready(Some(Err(tonic::Status::cancelled(
                        "the upload ended before it was complete",
                    ))))
                }
            }
            other => other,
        }
    }
}
