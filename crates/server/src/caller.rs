//! Who calls, and what is believed of what it says.

use std::task::{Context, Poll};

use berth_rpc::{ON_BEHALF_OF, tls};
use http::Request;

use crate::PeerInfo;

/// Takes the word of the gateway alone on whom a call is for: from others that metadata is
/// removed before a handler sees it.
#[derive(Debug, Clone)]
pub(crate) struct CallerLayer {
    gateway: Gateway,
}

/// How the gateway is known.
#[derive(Debug, Clone, Copy)]
struct Gateway {
    uid: Option<u32>,
}

impl Gateway {
    fn is(self, peer: &PeerInfo) -> bool {
        match peer.uid {
            // Root could be anybody.
            Some(uid) => uid == 0 || Some(uid) == self.uid,
            None => peer
                .identities
                .iter()
                .any(|i| i.strip_prefix(tls::ROLE_URI) == Some("gateway")),
        }
    }
}

impl CallerLayer {
    /// `user`: whom the gateway runs as on this host; there may be no such user.
    pub(crate) fn new(user: &str) -> Self {
        let uid = match nix::unistd::User::from_name(user) {
            Ok(user) => user.map(|u| u.uid.as_raw()),
            Err(error) => {
                tracing::warn!(%error, user, "server.gateway_user can't be looked up");
                None
            }
        };
        Self {
            gateway: Gateway { uid },
        }
    }
}

impl<S> tower::Layer<S> for CallerLayer {
    type Service = Caller<S>;

    fn layer(&self, inner: S) -> Caller<S> {
        Caller {
            inner,
            gateway: self.gateway,
        }
    }
}

/// See [`CallerLayer`].
#[derive(Debug, Clone)]
pub(crate) struct Caller<S> {
    inner: S,
    gateway: Gateway,
}

impl<S, B> tower::Service<Request<B>> for Caller<S>
where
    S: tower::Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if request.headers().contains_key(ON_BEHALF_OF) {
            let peer = request.extensions().get::<PeerInfo>();
            if !peer.is_some_and(|peer| self.gateway.is(peer)) {
                tracing::debug!(?peer, "{ON_BEHALF_OF} is not believed from this caller");
                request.headers_mut().remove(ON_BEHALF_OF);
            }
        }
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::{Layer, ServiceExt};

    async fn seen(peer: Option<PeerInfo>) -> bool {
        let layer = CallerLayer {
            gateway: Gateway { uid: Some(800) },
        };
        let inner = tower::service_fn(|request: Request<()>| async move {
            Ok::<_, std::convert::Infallible>(request.headers().contains_key(ON_BEHALF_OF))
        });
        let mut request = Request::builder()
            .header(ON_BEHALF_OF, "alice")
            .body(())
            .unwrap();
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        layer.layer(inner).oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn only_the_gateway_is_believed() {
        let unix = |uid| PeerInfo {
            uid: Some(uid),
            ..PeerInfo::default()
        };
        let tls = |uri: &str| PeerInfo {
            identities: vec![uri.to_owned()],
            ..PeerInfo::default()
        };
        assert!(seen(Some(unix(800))).await);
        assert!(seen(Some(unix(0))).await);
        assert!(seen(Some(tls("spiffe://berth/gateway"))).await);
        assert!(!seen(Some(unix(801))).await);
        assert!(!seen(Some(tls("spiffe://berth/client"))).await);
        assert!(!seen(Some(tls("spiffe://elsewhere/gateway"))).await);
        assert!(!seen(Some(PeerInfo::default())).await);
        assert!(!seen(None).await);
    }
}
