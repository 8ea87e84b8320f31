//! LXD's REST API over the gateway's unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

const DEFAULT_SOCKET: &str = "/var/lib/berth/unix.socket";

/// A server's answer that says no.
#[derive(Debug)]
pub(crate) struct Refused {
    /// HTTP status.
    pub status: u16,
    /// The server's sentence.
    pub message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}

/// Whether `error` is the server's 404.
pub(crate) fn is_missing(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Refused>()
        .is_some_and(|refused| refused.status == 404)
}

#[derive(Debug, Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    metadata: Value,
}

/// An object with the etag it was read under.
#[derive(Debug)]
pub(crate) struct Read<T> {
    /// The object.
    pub value: T,
    /// As the server sent it; to be given back as If-Match.
    pub etag: Option<String>,
}

/// The server behind one socket.
#[derive(Debug)]
pub(crate) struct Server {
    socket: PathBuf,
}

/// Where the socket is when nobody says: the variables that LXD's clients know count as well.
pub(crate) fn default_socket() -> PathBuf {
    let named = |key: &str| {
        std::env::var_os(key)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    named("BERTH_SOCKET")
        .or_else(|| named("LXD_SOCKET"))
        .or_else(|| named("LXD_DIR").map(|dir| dir.join("unix.socket")))
        .unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET))
}

impl Server {
    /// Nothing is connected yet.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The socket's path.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Reads one object.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Read<T>> {
        let (envelope, etag) = self.send("GET", path, None, None).await?;
        let value = serde_json::from_value(envelope.metadata)
            .with_context(|| format!("cannot read the server's answer to GET {path}"))?;
        Ok(Read { value, etag })
    }

    /// Sends a change and waits until it is done, also where the server makes it an operation.
    pub(crate) async fn change(
        &self,
        method: &str,
        path: &str,
        body: &impl Serialize,
        etag: Option<&str>,
    ) -> anyhow::Result<()> {
        let body = serde_json::to_vec(body)?;
        let (envelope, _) = self.send(method, path, Some(body), etag).await?;
        if envelope.kind == "async" {
            self.wait(&envelope.operation).await?;
        }
        Ok(())
    }

    async fn wait(&self, operation: &str) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Operation {
            status_code: i64,
            #[serde(default)]
            err: String,
        }
        let done: Read<Operation> = self.get(&format!("{operation}/wait")).await?;
        match done.value.status_code {
            200 => Ok(()),
            401 => bail!("the operation was cancelled"),
            _ => bail!(done.value.err),
        }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<Vec<u8>>,
        etag: Option<&str>,
    ) -> anyhow::Result<(Envelope, Option<String>)> {
        let stream = tokio::net::UnixStream::connect(&self.socket)
            .await
            .with_context(|| format!("cannot reach a server at {}", self.socket.display()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
        // It ends with the answer, and its errors come out of send_request as well.
        tokio::spawn(connection);
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "unix.socket");
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        if let Some(etag) = etag {
            request = request.header("if-match", etag);
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())))?;
        let answer = sender
            .send_request(request)
            .await
            .with_context(|| format!("{method} {path} got no answer"))?;
        let status = answer.status();
        let etag = answer
            .headers()
            .get("etag")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let bytes = answer.into_body().collect().await?.to_bytes();
        let envelope: Envelope = serde_json::from_slice(&bytes).map_err(|error| {
            anyhow!("{method} {path} was answered with {status} and no LXD envelope ({error})")
        })?;
        if envelope.kind == "error" || status.is_client_error() || status.is_server_error() {
            return Err(Refused {
                status: status.as_u16(),
                message: envelope.error,
            }
            .into());
        }
        Ok((envelope, etag))
    }

    /// Whether the server answers now.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        let limit = Duration::from_secs(5);
        tokio::time::timeout(limit, self.get::<Value>("/1.0"))
            .await
            .context("the server does not answer")??;
        Ok(())
    }
}

/// Percent-encodes one segment of a path.
pub(crate) fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
