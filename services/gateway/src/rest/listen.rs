//! The unix socket that REST clients open.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long requests under way get at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// A bound socket; its file goes away with it, unless systemd made it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: Option<PathBuf>,
}

impl Listener {
    /// The socket of `berth-rest.socket`: systemd keeps it, so that clients wait over a restart instead of failing.
    pub fn handed_over(socket: UnixListener) -> Self {
        Self { socket, path: None }
    }

    /// Binds the socket, mode 0660, and gives it to `group`.
    ///
    /// # Errors
    /// When somebody listens there already, or the path or the group is wrong.
    pub fn bind(path: &Path, group: Option<&str>) -> io::Result<Self> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "somebody listens there already",
            ));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        if let Some(name) = group {
            let group = nix::unistd::Group::from_name(name)?.ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("there is no group {name:?}"),
                )
            })?;
            nix::unistd::chown(path, None, Some(group.gid))?;
        }
        Ok(Self {
            socket,
            path: Some(path.to_owned()),
        })
    }

    /// Serves until `end`, then lets requests under way finish for a moment.
    pub async fn serve(self, router: Router, end: CancellationToken) {
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new());
        let connections = TaskTracker::new();
        loop {
            let stream = tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of descriptors: others will be closed.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = end.cancelled() => break,
            };
            let service = TowerToHyperService::new(router.clone());
            let (builder, end) = (builder.clone(), end.clone());
            connections.spawn(async move {
                let connection =
                    builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
                tokio::pin!(connection);
                let ended = tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = end.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended");
                }
            });
        }
        connections.close();
        if let Some(path) = &self.path {
            // A missing file is what is wanted.
            let _ = std::fs::remove_file(path);
        }
        let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
    }
}
