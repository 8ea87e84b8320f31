use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::Service;

use crate::{Listener, ServerConfig};

/// Why a service stopped serving.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener could not be made.
    #[error("{address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// There is nothing to listen on.
    #[error("server.listen is empty and systemd handed over no socket")]
    NoListener,
    /// The transport failed.
    #[error("serving: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// A configuration value is wrong.
    #[error("{0}")]
    Config(String),
}

/// A gRPC server with health, reflection, traces, metrics and an orderly end.
pub struct Server {
    name: &'static str,
    config: ServerConfig,
    routes: tonic::service::RoutesBuilder,
    health: tonic_health::server::HealthReporter,
    names: Vec<&'static str>,
    shutdown: CancellationToken,
    probe: Option<crate::watchdog::Probe>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// `name` is the binary's, e.g. `berth-image`; sockets handed over by systemd carry it.
    pub fn new(name: &'static str, config: &ServerConfig) -> Self {
        let (health, health_service) = tonic_health::server::health_reporter();
        let mut routes = Routes::builder();
        routes.add_service(health_service);
        match tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(berth_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
        {
            Ok(reflection) => {
                routes.add_service(reflection);
            }
            Err(error) => tracing::error!(%error, "no reflection"),
        }
        Self {
            name,
            config: config.clone(),
            routes,
            health,
            names: Vec::new(),
            shutdown: CancellationToken::new(),
            probe: None,
        }
    }

    /// What must still end for systemd's watchdog to be told that the service lives, beside an answer on its
    /// own socket. An error is an end as well.
    #[must_use]
    pub fn probe<F, Fut>(mut self, probe: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.probe = Some(Box::new(move || Box::pin(probe())));
        self
    }

    /// [`Server::probe`] with a question to the database.
    #[must_use]
    pub fn probe_store(self, store: &berth_store::Store) -> Self {
        let store = store.clone();
        self.probe(move || {
            let store = store.clone();
            async move { store.ping().await.map_err(|e| e.to_string()) }
        })
    }

    /// Adds a service; its health is SERVING from the moment [`Server::serve`] accepts.
    #[must_use]
    pub fn add_service<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes.add_service(service);
        self
    }

    /// Cancelled when the service is asked to end; long streams end with it.
    pub fn shutdown_token(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Serves until SIGTERM or SIGINT, then lets calls under way finish.
    ///
    /// # Errors
    /// When it can't listen.
    pub async fn serve(self) -> Result<(), ServeError> {
        let mode = u32::from_str_radix(&self.config.socket_mode, 8).map_err(|_| {
            ServeError::Config(format!(
                "server.socket_mode: {:?} is not octal",
                self.config.socket_mode
            ))
        })?;
        let listeners = listeners(self.name, &self.config, mode).await?;
        let own_socket = listeners.iter().find_map(Listener::path);
        let token = self.shutdown.clone();
        watch_signals(token.clone());
        if let Some(address) = &self.config.metrics_listen {
            serve_metrics(address, mode, token.clone()).await?;
        }
        let (sender, incoming) = tokio::sync::mpsc::channel(32);
        for listener in listeners {
            tokio::spawn(accept(listener, sender.clone(), token.clone()));
        }
        drop(sender);
        for name in &self.names {
            self.health
                .set_service_status(*name, tonic_health::ServingStatus::Serving)
                .await;
        }
        let routes = self.routes.routes();
        let server = tonic::transport::Server::builder()
            .layer(berth_rpc::trace::TraceLayer)
            .layer(MetricsLayer)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .add_routes(routes)
            .serve_with_incoming_shutdown(
                tokio_stream::wrappers::ReceiverStream::new(incoming),
                token.clone().cancelled_owned(),
            );
        notify_systemd("READY=1");
        crate::watchdog::start(own_socket, self.probe);
        tracing::info!(listen = ?self.config.listen, "{} serves", self.name);
        let drain = Duration::from_secs(self.config.drain_seconds);
        tokio::select! {
            done = server => done?,
            () = async { token.cancelled().await; tokio::time::sleep(drain).await } => {
                tracing::warn!("calls were still under way after {}s", drain.as_secs());
            }
        }
        Ok(())
    }
}

async fn listeners(
    name: &str,
    config: &ServerConfig,
    mode: u32,
) -> Result<Vec<Listener>, ServeError> {
    let mut all = Listener::from_systemd(name).map_err(|source| ServeError::Listen {
        address: "LISTEN_FDS".to_owned(),
        source,
    })?;
    if all.is_empty() {
        for address in &config.listen {
            all.push(
                Listener::bind(address, mode)
                    .await
                    .map_err(|source| ServeError::Listen {
                        address: address.clone(),
                        source,
                    })?,
            );
        }
    }
    if all.is_empty() {
        Err(ServeError::NoListener)
    } else {
        Ok(all)
    }
}

async fn accept(
    listener: Listener,
    sender: tokio::sync::mpsc::Sender<Result<crate::listen::Connection, io::Error>>,
    token: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = token.cancelled() => return,
        };
        match accepted {
            Ok(connection) => {
                if sender.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // Out of descriptors: going round at once would only burn the processor.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn watch_signals(token: CancellationToken) {
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) else {
            tracing::error!("signals can't be watched");
            return;
        };
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        notify_systemd("STOPPING=1");
        token.cancel();
    });
}

/// Tells systemd a state (`READY=1`), where it listens.
pub fn notify_systemd(state: &str) {
    use std::os::unix::net::UnixDatagram;
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let sent = UnixDatagram::unbound().and_then(|socket| {
        use std::os::linux::net::SocketAddrExt;
        let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name)?,
            None => std::os::unix::net::SocketAddr::from_pathname(&path)?,
        };
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd was not told {state}");
    }
}

async fn serve_metrics(
    address: &str,
    mode: u32,
    token: CancellationToken,
) -> Result<(), ServeError> {
    let listener = Listener::bind(address, mode)
        .await
        .map_err(|source| ServeError::Listen {
            address: address.to_owned(),
            source,
        })?;
    let app = axum::Router::new().route(
        "/metrics",
        axum::routing::get(|| async {
            (
                [(
                    http::header::CONTENT_TYPE,
                    "application/openmetrics-text; version=1.0.0",
                )],
                crate::metrics::render(),
            )
        }),
    );
    tokio::spawn(async move {
        loop {
            let connection = tokio::select! {
                Ok(connection) = listener.accept() => connection,
                () = token.cancelled() => return,
            };
            let app = app.clone();
            tokio::spawn(async move {
                let service = hyper_util::service::TowerToHyperService::new(app);
                let io = hyper_util::rt::TokioIo::new(connection);
                // A scraper that goes away is no fault of ours.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(io, service)
                    .await;
            });
        }
    });
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct MetricsLayer;

impl<S> tower::Layer<S> for MetricsLayer {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured { inner }
    }
}

#[derive(Debug, Clone)]
struct Measured<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Measured<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let method = request.uri().path().trim_start_matches('/').to_owned();
        let start = Instant::now();
        let call = self.inner.call(request);
        Box::pin(async move {
            let response = call.await?;
            // Unknown methods would let a caller fill the registry.
            if response.status() == http::StatusCode::OK {
                let code = response
                    .headers()
                    .get("grpc-status")
                    .and_then(|v| v.to_str().ok())
                    .unwrap_or("0");
                if code != "12" {
                    crate::metrics::observe_call(&method, code, start.elapsed());
                }
            }
            Ok(response)
        })
    }
}
