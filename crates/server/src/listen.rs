use std::io;
use std::net::SocketAddr;
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::server::TlsStream;

use crate::tls::{Purpose, ServerTls};

/// How long a peer may take to show its certificate.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket, and the file to remove at the end when we made it.
    Unix(UnixListener, Option<PathBuf>),
    /// A TCP port.
    Tcp(TcpListener),
    /// A TCP port where both sides show a certificate.
    Tls(TcpListener, Arc<ServerTls>, Purpose),
}

/// What a service's listeners have in common.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Permission bits of unix sockets.
    pub mode: u32,
    /// For `tls:` addresses.
    pub tls: Option<Arc<ServerTls>>,
    /// Whether `tcp:` may be other than loopback.
    pub insecure_tcp: bool,
    /// What connections are for.
    pub purpose: Purpose,
}

/// How an address in the configuration is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address<'a> {
    /// `unix:/path`.
    Unix(&'a Path),
    /// `tcp:address:port`.
    Tcp(&'a str),
    /// `tls:address:port`.
    Tls(&'a str),
}

impl<'a> Address<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// When it is of no known form; the sentence says so.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        let with_port = |rest: &'a str| {
            let port = rest.rsplit_once(':');
            port.filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
                .map(|_| rest)
                .ok_or_else(|| format!("{text:?}: expected address:port after the scheme"))
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Path::new(path);
            if !path.is_absolute() {
                return Err(format!("{text:?}: the path is not absolute"));
            }
            Ok(Self::Unix(path))
        } else if let Some(rest) = text.strip_prefix("tcp:") {
            with_port(rest).map(Self::Tcp)
        } else if let Some(rest) = text.strip_prefix("tls:") {
            with_port(rest).map(Self::Tls)
        } else {
            Err(format!(
                "{text:?}: expected unix:/path, tcp:address:port or tls:address:port"
            ))
        }
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, Default)]
pub struct PeerInfo {
    /// Of a unix peer.
    pub uid: Option<u32>,
    /// Of a unix peer.
    pub pid: Option<i32>,
    /// Of a TCP peer.
    pub address: Option<SocketAddr>,
    /// The names in its certificate, where it showed one: URIs, and `dns:NAME`.
    pub identities: Vec<String>,
}

/// One connection.
#[derive(Debug)]
pub enum Connection {
    /// Over a unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
    /// Over TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection whose peer is not yet known to be allowed.
pub enum Accepted {
    /// Nothing is left to do.
    Ready(Connection),
    /// Certificates have to be shown.
    Handshake(TcpStream, SocketAddr, tokio_rustls::TlsAcceptor),
}

impl Accepted {
    /// Waits until the peer has shown who it is.
    ///
    /// # Errors
    /// When it did not, or is not allowed.
    pub async fn finish(self) -> io::Result<Connection> {
        match self {
            Self::Ready(connection) => Ok(connection),
            Self::Handshake(stream, peer, acceptor) => {
                berth_rpc::notice_loss(&stream)?;
                let named = |error: io::Error| {
                    io::Error::new(error.kind(), format!("TLS with {peer}: {error}"))
                };
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(done) => Ok(Connection::Tls(Box::new(done.map_err(named)?))),
                    Err(_) => Err(named(io::ErrorKind::TimedOut.into())),
                }
            }
        }
    }
}

impl Listener {
    /// Binds `unix:/path`, `tcp:address:port` or `tls:address:port`. A socket file that nobody
    /// serves is replaced.
    ///
    /// # Errors
    /// When the address is malformed, in use, or against the rules.
    pub async fn bind(address: &str, rules: &Rules) -> io::Result<Self> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        match Address::parse(address).map_err(invalid)? {
            Address::Unix(path) => bind_unix(path, rules.mode).await,
            Address::Tcp(address) => {
                let targets: Vec<_> = tokio::net::lookup_host(address).await?.collect();
                for target in &targets {
                    refuse_plain(*target, rules)?;
                }
                Ok(Self::Tcp(TcpListener::bind(targets.as_slice()).await?))
            }
            Address::Tls(address) => match &rules.tls {
                Some(tls) => Ok(Self::Tls(
                    TcpListener::bind(address).await?,
                    tls.clone(),
                    rules.purpose,
                )),
                None => Err(invalid("tls: needs the table [server.tls]".to_owned())),
            },
        }
    }

    /// The address of a port.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(..) => None,
            Self::Tcp(listener) | Self::Tls(listener, ..) => listener.local_addr().ok(),
        }
    }

    /// The path of a unix socket.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Unix(listener, _) => Some(listener.local_addr().ok()?.as_pathname()?.to_owned()),
            Self::Tcp(_) | Self::Tls(..) => None,
        }
    }

    /// Sockets that systemd handed over (`LISTEN_FDS`), by name (`LISTEN_FDNAMES`).
    ///
    /// # Errors
    /// When a descriptor is no stream socket, or a port is against the rules.
    pub fn from_systemd(name: &str, rules: &Rules) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for owned in handed_over(|given| [name, "", "connection"].contains(&given))? {
            let address = rustix::net::getsockname(&owned)?;
            found.push(
                if address.address_family() == rustix::net::AddressFamily::UNIX {
                    let listener = std::os::unix::net::UnixListener::from(owned);
                    listener.set_nonblocking(true)?;
                    Self::Unix(UnixListener::from_std(listener)?, None)
                } else {
                    let listener = std::net::TcpListener::from(owned);
                    listener.set_nonblocking(true)?;
                    let address = listener.local_addr()?;
                    let listener = TcpListener::from_std(listener)?;
                    match &rules.tls {
                        Some(tls) => Self::Tls(listener, tls.clone(), rules.purpose),
                        None => {
                            refuse_plain(address, rules)?;
                            Self::Tcp(listener)
                        }
                    }
                },
            );
        }
        Ok(found)
    }

    /// The unix sockets that systemd handed over under exactly this name.
    ///
    /// # Errors
    /// When one is no unix stream socket.
    pub fn unix_from_systemd(name: &str) -> io::Result<Vec<UnixListener>> {
        let given = handed_over(|given| given == name)?;
        let listeners = given.into_iter().map(|owned| {
            let family = rustix::net::getsockname(&owned)?.address_family();
            if family != rustix::net::AddressFamily::UNIX {
                let why = format!("{name}: the socket unit's ListenStream must be a path");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            let listener = std::os::unix::net::UnixListener::from(owned);
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        });
        listeners.collect()
    }

    /// The next connection.
    ///
    /// # Errors
    /// As accept(2).
    pub async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Unix(listener, _) => Ok(Accepted::Ready(Connection::Unix(
                listener.accept().await?.0,
            ))),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Ready(Connection::Tcp(stream)))
            }
            Self::Tls(listener, tls, purpose) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Handshake(stream, peer, tls.acceptor(*purpose)))
            }
        }
    }
}

/// Whoever reaches a plain port controls the service; metrics can only be read.
fn refuse_plain(address: SocketAddr, rules: &Rules) -> io::Result<()> {
    if address.ip().is_loopback() || rules.insecure_tcp || rules.purpose == Purpose::Metrics {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "{address} is not loopback, and whoever reaches it over plain tcp: would control this \
             service; use tls: or set server.insecure_tcp"
        ),
    ))
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, Some(path)) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Descriptors from systemd whose name is `wanted`. Each name may be asked for once.
fn handed_over(wanted: impl Fn(&str) -> bool) -> io::Result<Vec<std::os::fd::OwnedFd>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<i32>().ok());
    let (Some(pid), Some(count)) = (number("LISTEN_PID"), number("LISTEN_FDS")) else {
        return Ok(Vec::new());
    };
    if u32::try_from(pid) != Ok(std::process::id()) {
        return Ok(Vec::new());
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat(""));
    let mut found = Vec::new();
    for (fd, name) in (3..3i32.saturating_add(count)).zip(names) {
        if !wanted(name) {
            continue;
        }
        // SAFETY: systemd passes these descriptors to this process, and each is taken once.
        let owned = unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) };
        rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC)?;
        found.push(owned);
    }
    Ok(found)
}

async fn bind_unix(path: &Path, mode: u32) -> io::Result<Listener> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    if path.exists() {
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{} is served by another process", path.display()),
            ));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(Listener::Unix(listener, Some(path.to_owned())))
}

impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        match self {
            Self::Unix(stream) => stream.peer_cred().map_or_else(
                |_| PeerInfo::default(),
                |cred| PeerInfo {
                    uid: Some(cred.uid()),
                    pid: cred.pid(),
                    ..PeerInfo::default()
                },
            ),
            Self::Tcp(stream) => PeerInfo {
                address: stream.peer_addr().ok(),
                ..PeerInfo::default()
            },
            Self::Tls(stream) => {
                let (tcp, session) = stream.get_ref();
                let chain = session.peer_certificates().unwrap_or_default();
                PeerInfo {
                    address: tcp.peer_addr().ok(),
                    identities: chain
                        .first()
                        .map(|c| berth_rpc::tls::identities(c))
                        .unwrap_or_default(),
                    ..PeerInfo::default()
                }
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_flush(cx),
            Self::Tcp(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Unix(s) => s.is_write_vectored(),
            Self::Tcp(s) => s.is_write_vectored(),
            Self::Tls(s) => s.is_write_vectored(),
        }
    }
}
