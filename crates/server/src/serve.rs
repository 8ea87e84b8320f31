use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::Service;

use berth_rpc::tls::ClientTls;

use crate::caller::CallerLayer;
use crate::certificates::Certificates;
use crate::config::Reloading;
use crate::listen::{Accepted, Connection, Rules};
use crate::tls::{Purpose, ServerTls};
use crate::{ConfigError, Configuration, Listener, Reload, ServerConfig};

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
    /// A certificate can't be used.
    #[error("server.tls: {0}")]
    Tls(#[from] berth_rpc::tls::TlsError),
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
    client_tls: Option<Arc<ClientTls>>,
    reload: Option<Arc<dyn Reloading>>,
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
            client_tls: None,
            reload: None,
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

    /// On SIGHUP the configuration is read again, and what may change at run time is taken up.
    #[must_use]
    pub fn with_reload<C: Configuration>(mut self, reload: Reload<C>) -> Self {
        self.reload = Some(Arc::new(reload));
        self
    }

    /// The certificate that this service calls others with is looked after as its own is.
    #[must_use]
    pub fn with_client_tls(mut self, tls: Option<Arc<ClientTls>>) -> Self {
        self.client_tls = tls;
        self
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
        let mode = self.config.mode();
        let mode = mode.map_err(|e| ServeError::Config(format!("server.socket_mode: {e}")))?;
        let tls = self.config.tls.as_ref().map(ServerTls::open).transpose()?;
        let rules = Rules {
            mode,
            tls: tls.clone(),
            insecure_tcp: self.config.insecure_tcp,
            purpose: Purpose::Grpc,
        };
        let listeners = listeners(self.name, &self.config, &rules).await?;
        let own_socket = listeners.iter().find_map(Listener::path);
        let token = self.shutdown.clone();
        watch_signals(token.clone());
        let certificates = Certificates::new(tls, self.client_tls);
        tokio::spawn(certificates.clone().watch(token.clone()));
        let drain = Arc::new(AtomicU64::new(self.config.drain_seconds));
        let hangups = Hangups {
            reload: self.reload,
            certificates,
            drain: drain.clone(),
        };
        hangups.watch()?;
        if let Some(address) = &self.config.metrics_listen {
            let rules = Rules {
                purpose: Purpose::Metrics,
                ..rules
            };
            serve_metrics(address, &rules, token.clone()).await?;
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
            .layer(CallerLayer::new(&self.config.gateway_user))
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
        let drained = async {
            token.cancelled().await;
            let seconds = drain.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            seconds
        };
        tokio::select! {
            done = server => done?,
            seconds = drained => {
                tracing::warn!("calls were still under way after {seconds}s");
            }
        }
        Ok(())
    }
}

async fn listeners(
    name: &str,
    config: &ServerConfig,
    rules: &Rules,
) -> Result<Vec<Listener>, ServeError> {
    let mut all = Listener::from_systemd(name, rules).map_err(|source| ServeError::Listen {
        address: "LISTEN_FDS".to_owned(),
        source,
    })?;
    let handed: Vec<_> = all.iter().filter_map(Listener::path).collect();
    for address in &config.listen {
        // systemd's unit and the file name the same socket by default.
        let path = address.strip_prefix("unix:").map(std::path::Path::new);
        if path.is_some_and(|path| handed.iter().any(|h| h == path)) {
            continue;
        }
        all.push(
            Listener::bind(address, rules)
                .await
                .map_err(|source| ServeError::Listen {
                    address: address.clone(),
                    source,
                })?,
        );
    }
    if all.is_empty() {
        Err(ServeError::NoListener)
    } else {
        Ok(all)
    }
}

/// Connections of one listener whose peers are still to show a certificate.
const HANDSHAKES: usize = 256;

async fn accept(
    listener: Listener,
    sender: tokio::sync::mpsc::Sender<Result<Connection, io::Error>>,
    token: CancellationToken,
) {
    let handshakes = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = token.cancelled() => return,
        };
        match accepted {
            Ok(Accepted::Ready(connection)) => {
                if sender.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
            Ok(waiting @ Accepted::Handshake(..)) => {
                let Ok(permit) = handshakes.clone().try_acquire_owned() else {
                    tracing::warn!(
                        "a connection was refused: {HANDSHAKES} others show no certificate"
                    );
                    continue;
                };
                let sender = sender.clone();
                tokio::spawn(async move {
                    match waiting.finish().await {
                        Ok(connection) => drop(sender.send(Ok(connection)).await),
                        Err(error) => tracing::warn!(%error, "a peer was refused"),
                    }
                    drop(permit);
                });
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
        crate::events::stopping().cancel();
        token.cancel();
    });
}

/// What SIGHUP does.
struct Hangups {
    reload: Option<Arc<dyn Reloading>>,
    certificates: Certificates,
    drain: Arc<AtomicU64>,
}

impl Hangups {
    /// Until the process ends: a SIGHUP that nobody watches would end it.
    fn watch(self) -> Result<(), ServeError> {
        let mut hangups = signal(SignalKind::hangup())
            .map_err(|e| ServeError::Config(format!("SIGHUP can't be watched: {e}")))?;
        let this = Arc::new(self);
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                notify_systemd(&reloading());
                // Files may be on a slow disk.
                let this = this.clone();
                if let Err(error) = tokio::task::spawn_blocking(move || this.reload()).await {
                    tracing::error!(%error, "reloading");
                }
                notify_systemd("READY=1");
            }
        });
        Ok(())
    }

    fn reload(&self) {
        if let Some(reload) = &self.reload {
            match reload.reload() {
                Ok(config) => self.take_up(&config),
                Err(ConfigError::Wrong(problems)) => {
                    for problem in problems {
                        tracing::error!(%problem, "the old configuration stays in force");
                    }
                }
                Err(error) => tracing::error!(%error, "the old configuration stays in force"),
            }
        }
        self.certificates.refresh();
    }

    fn take_up(&self, config: &ServerConfig) {
        if let Err(error) = crate::set_log_level(&config.log.level) {
            tracing::error!(%error, "the old log level stays in force");
        }
        self.drain.store(config.drain_seconds, Ordering::Relaxed);
        if let Some(tls) = &config.tls {
            self.certificates.allow(tls);
        }
    }
}

/// systemd takes a READY=1 for the end of this reload only when it knows when that began.
fn reloading() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
    format!("RELOADING=1\nMONOTONIC_USEC={usec}")
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
    rules: &Rules,
    token: CancellationToken,
) -> Result<(), ServeError> {
    let listener = Listener::bind(address, rules)
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
            let accepted = tokio::select! {
                Ok(accepted) = listener.accept() => accepted,
                () = token.cancelled() => return,
            };
            let app = app.clone();
            tokio::spawn(async move {
                let connection = match accepted.finish().await {
                    Ok(connection) => connection,
                    Err(error) => {
                        tracing::warn!(%error, "a reader of metrics was refused");
                        return;
                    }
                };
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
