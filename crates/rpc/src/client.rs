//! Channels to Berth's services over unix sockets, TCP, or TLS over TCP.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Endpoint, Uri};

use crate::Error;
use crate::call::{self, Answer, CallBody};
use crate::tls::ClientTls;

/// A lazy channel that reconnects by itself and makes a span of each call.
#[derive(Debug, Clone)]
pub struct Channel {
    inner: tonic::transport::Channel,
    address: Arc<str>,
}

impl Channel {
    /// Wraps a channel made elsewhere, e.g. an in-memory one.
    pub fn new(inner: tonic::transport::Channel) -> Self {
        Self::named(inner, "")
    }

    fn named(inner: tonic::transport::Channel, address: &str) -> Self {
        Self {
            inner,
            address: address.into(),
        }
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<CallBody<tonic::body::Body>>;
    type Error = tonic::transport::Error;
    type Future = Answer<tonic::body::Body, tonic::transport::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower::Service::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        call::send(&mut self.inner, &self.address, request)
    }
}

/// Connects to `unix:/path/to.sock` or `http://host:port`, lazily.
///
/// # Errors
/// When the address is of neither form.
pub fn connect(address: &str) -> Result<Channel, Error> {
    connect_with(address, None)
}

/// As [`connect`], and to `https://host:port` with a client's certificate: the server's must be
/// for `host` and come from the client's authority.
///
/// # Errors
/// When the address is of no such form, or needs a certificate and there is none.
pub fn connect_with(address: &str, tls: Option<&Arc<ClientTls>>) -> Result<Channel, Error> {
    let bad = |why: &str| Error::invalid("address", format!("{address:?}: {why}"));
    if let Some(path) = address.strip_prefix("unix:") {
        let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
        let endpoint = settings(Endpoint::from_static("http://localhost"));
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }));
        return Ok(Channel::named(channel, address));
    }
    let (host, port) = authority(address).map_err(|why| bad(&why))?;
    let tls = match (address.starts_with("https://"), tls) {
        (false, _) => None,
        (true, Some(tls)) => {
            let name = ServerName::try_from(host.clone()).map_err(|e| bad(&e.to_string()))?;
            Some((tls.clone(), name))
        }
        (true, None) => return Err(bad("TLS needs a client certificate")),
    };
    let uri: Uri = address
        .trim_end_matches('/')
        .parse()
        .map_err(|_| bad("not a URI"))?;
    // The connector below does TLS: tonic, asked for https, would do it once more.
    let plain = Endpoint::from_shared(address.replacen("https://", "http://", 1))
        .map_err(|e| bad(&e.to_string()))?;
    let endpoint = settings(plain.origin(uri));
    let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (host, tls) = (host.clone(), tls.clone());
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            notice_loss(&stream)?;
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(stream),
                Some((tls, name)) => {
                    let connector = TlsConnector::from(tls.config());
                    Box::new(connector.connect(name, stream).await?)
                }
            };
            Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    }));
    Ok(Channel::named(channel, address))
}

/// Whether [`connect_with`] knows what to do with an address.
///
/// # Errors
/// When it does not; the sentence says what is expected.
pub fn check_address(address: &str) -> Result<(), String> {
    match address.strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => Ok(()),
        Some(_) => Err(format!("{address:?}: the path is not absolute")),
        None => authority(address)
            .map(drop)
            .map_err(|why| format!("{address:?}: {why}")),
    }
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for S {}

/// The host, without brackets, and the port of `http[s]://host:port`.
fn authority(address: &str) -> Result<(String, u16), String> {
    let form = "expected unix:/path, http://host:port or https://host:port";
    let rest = address
        .strip_prefix("http://")
        .or_else(|| address.strip_prefix("https://"))
        .ok_or(form)?;
    let authority: http::uri::Authority = rest
        .trim_end_matches('/')
        .parse()
        .map_err(|_| form.to_owned())?;
    let port = authority.port_u16().ok_or(form)?;
    let host = authority.host();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || authority.as_str().contains('@') {
        return Err(form.to_owned());
    }
    Ok((host.to_owned(), port))
}

/// Makes the kernel find out when the other host is gone without a word: streams may be silent
/// for days, and an answer that never comes must not be waited for.
///
/// # Errors
/// When the socket doesn't take the options.
pub fn notice_loss(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, 60_000)?;
    Ok(())
}

fn settings(endpoint: Endpoint) -> Endpoint {
    // The windows let 1 MiB chunks through without a round trip each.
    endpoint
        .connect_timeout(Duration::from_secs(5))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .tcp_nodelay(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let host = |s: &str| authority(s).map(|(host, port)| format!("{host} {port}"));
        assert_eq!(
            host("https://image.example:7443").unwrap(),
            "image.example 7443"
        );
        assert_eq!(host("http://[fd00::1]:80/").unwrap(), "fd00::1 80");
        for wrong in [
            "image:7443",
            "https://image",
            "https://:1",
            "http://a@b:1",
            "http://a:x",
        ] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn tls_without_a_certificate_is_refused() {
        let error = connect("https://localhost:1").unwrap_err();
        assert!(error.message.contains("certificate"), "{}", error.message);
    }
}
