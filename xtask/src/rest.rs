//! A client of LXD's REST API over a unix socket, as small as the tools and tests here need:
//! one keep-alive connection, envelopes unwrapped, operations waited for, exec by websockets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

/// Nothing a test or benchmark asks for takes longer; a server that hangs must not hang them.
const PATIENCE: Duration = Duration::from_secs(180);

/// What the server answered, before any interpretation.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON: {:?}", String::from_utf8_lossy(&self.body)))
    }
}

/// An error envelope: the HTTP status and the server's sentence.
#[derive(Debug, Clone)]
pub struct ApiError {
    pub code: u16,
    pub message: String,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for ApiError {}

/// How a command in an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    pub code: i64,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// One caller of one server. Requests go one after another over the same connection.
pub struct Client {
    socket: PathBuf,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            connection: None,
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The next request takes a new connection: for callers whose server may have been restarted.
    pub fn reconnect(&mut self) -> &mut Self {
        self.connection = None;
        self
    }

    async fn connection(&mut self) -> Result<&mut SendRequest<Full<Bytes>>> {
        let usable = match &mut self.connection {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            let stream = UnixStream::connect(&self.socket)
                .await
                .with_context(|| format!("cannot reach {}", self.socket.display()))?;
            let (sender, driver) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(driver);
            self.connection = Some(sender);
        }
        self.connection.as_mut().context("no connection")
    }

    /// Sends one request and reads the whole answer, whatever its status.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Reply> {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header("host", "unix.socket");
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_str(value)?);
        }
        let request = request.body(Full::new(body))?;
        let exchange = async {
            let response = self.connection().await?.send_request(request).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            anyhow::Ok(Reply {
                status: parts.status,
                headers: parts.headers,
                body,
            })
        };
        match timeout(PATIENCE, exchange).await {
            Ok(reply) => reply.with_context(|| format!("{method} {path}")),
            Err(_) => {
                // The answer may still arrive on that connection; it must not be taken for the next.
                self.connection = None;
                bail!("{method} {path}: no answer within {} s", PATIENCE.as_secs())
            }
        }
    }

    /// Sends JSON (or nothing) and returns the whole envelope; an error envelope is an [`ApiError`].
    pub async fn envelope(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value> {
        let (headers, body): (&[(&str, &str)], Bytes) = match body {
            Some(body) => (
                &[("content-type", "application/json")],
                body.to_string().into(),
            ),
            None => (&[], Bytes::new()),
        };
        let reply = self.send(method.clone(), path, headers, body).await?;
        checked(&reply).with_context(|| format!("{method} {path}"))
    }

    /// The `metadata` of a synchronous answer.
    pub async fn get(&mut self, path: &str) -> Result<Value> {
        let mut envelope = self.envelope(Method::GET, path, None).await?;
        Ok(envelope["metadata"].take())
    }

    /// `get`, with 404 as `None`.
    pub async fn find(&mut self, path: &str) -> Result<Option<Value>> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(error) => match error.downcast_ref::<ApiError>() {
                Some(api) if api.code == 404 => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Sends a change and, where it became an operation, waits for its end.
    /// Returns the operation object, or the metadata of a synchronous answer.
    pub async fn change(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value> {
        let envelope = self.envelope(method.clone(), path, body).await?;
        self.settle(envelope)
            .await
            .with_context(|| format!("{method} {path}"))
    }

    /// Waits for the operation an envelope announces; a failed one is an error.
    pub async fn settle(&mut self, mut envelope: Value) -> Result<Value> {
        if envelope["type"] != "async" {
            return Ok(envelope["metadata"].take());
        }
        let operation = envelope["operation"]
            .as_str()
            .context("async answer without operation")?;
        let ended = self.get(&format!("{operation}/wait")).await?;
        match ended["status_code"].as_i64() {
            Some(200) => Ok(ended),
            code => Err(ApiError {
                code: u16::try_from(code.unwrap_or(0)).unwrap_or(0),
                message: ended["err"]
                    .as_str()
                    .unwrap_or("operation failed")
                    .to_owned(),
            }
            .into()),
        }
    }

    /// Uploads an image file in LXD's raw form and returns its fingerprint.
    pub async fn upload_image(&mut self, file: &Path) -> Result<String> {
        let bytes = tokio::fs::read(file)
            .await
            .with_context(|| format!("cannot read {}", file.display()))?;
        let fingerprint = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes));
        if self
            .find(&format!("/1.0/images/{fingerprint}"))
            .await?
            .is_some()
        {
            return Ok(fingerprint);
        }
        let name = file
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or("image.tar.gz");
        let headers = [
            ("content-type", "application/octet-stream"),
            ("x-lxd-filename", name),
        ];
        let reply = self
            .send(Method::POST, "/1.0/images", &headers, bytes.into())
            .await?;
        let envelope = checked(&reply).context("POST /1.0/images")?;
        let operation = self.settle(envelope).await.context("image import")?;
        match operation["metadata"]["fingerprint"].as_str() {
            Some(told) if told == fingerprint => Ok(fingerprint),
            told => bail!("the server says fingerprint {told:?}, the file's is {fingerprint}"),
        }
    }

    /// Opens a websocket, for example `/1.0/events` or an operation's.
    pub async fn websocket(&self, path: &str) -> Result<WebSocketStream<UnixStream>> {
        let stream = UnixStream::connect(&self.socket).await?;
        let upgrade = client_async(format!("ws://unix.socket{path}"), stream);
        let (socket, _) = timeout(PATIENCE, upgrade)
            .await
            .map_err(|_| anyhow!("no answer"))?
            .with_context(|| format!("websocket {}", path.split('?').next().unwrap_or(path)))?;
        Ok(socket)
    }

    /// Runs a command in a running instance, its output collected, its stdin empty.
    pub async fn exec(&mut self, instance: &str, command: &[&str]) -> Result<Exec> {
        let body = json!({
            "command": command, "environment": {}, "interactive": false,
            "wait-for-websocket": true,
        });
        let path = format!("/1.0/instances/{instance}/exec");
        let envelope = self.envelope(Method::POST, &path, Some(body)).await?;
        let operation = envelope["operation"]
            .as_str()
            .context("exec without operation")?;
        let fds = &envelope["metadata"]["metadata"]["fds"];
        let url = |fd: &str| {
            let secret = fds[fd]
                .as_str()
                .with_context(|| format!("no secret for fd {fd}"))?;
            anyhow::Ok(format!("{operation}/websocket?secret={secret}"))
        };
        let (stdin, stdout, stderr) = (url("0")?, url("1")?, url("2")?);
        let (mut stdin, stdout, stderr) = tokio::try_join!(
            self.websocket(&stdin),
            self.websocket(&stdout),
            self.websocket(&stderr)
        )?;
        stdin.send(Message::text("")).await?;
        let (stdout, stderr) = timeout(PATIENCE, async {
            tokio::try_join!(until_barrier(stdout), until_barrier(stderr))
        })
        .await
        .map_err(|_| anyhow!("exec of {command:?} did not end"))??;
        let ended = self.get(&format!("{operation}/wait")).await?;
        let code = ended["metadata"]["return"]
            .as_i64()
            .with_context(|| format!("exec ended without a code: {}", ended["err"]))?;
        Ok(Exec {
            code,
            stdout,
            stderr,
        })
    }
}

/// Collects binary messages until the empty text message that ends a stream, or its close.
async fn until_barrier(mut socket: WebSocketStream<UnixStream>) -> Result<Vec<u8>> {
    let mut collected = Vec::new();
    while let Some(message) = socket.next().await {
        match message {
            Ok(Message::Binary(bytes)) => collected.extend_from_slice(&bytes),
            Ok(Message::Text(text)) if text.is_empty() => break,
            Ok(Message::Text(text)) => collected.extend_from_slice(text.as_bytes()),
            Ok(Message::Close(_)) => break,
            Ok(_) => {}
            Err(error) => bail!("exec stream broke: {error}"),
        }
    }
    Ok(collected)
}

fn checked(reply: &Reply) -> Result<Value> {
    let envelope = reply.json()?;
    if envelope["type"] == "error"
        || reply.status.is_client_error()
        || reply.status.is_server_error()
    {
        return Err(ApiError {
            code: reply.status.as_u16(),
            message: envelope["error"]
                .as_str()
                .unwrap_or("no message")
                .to_owned(),
        }
        .into());
    }
    Ok(envelope)
}
