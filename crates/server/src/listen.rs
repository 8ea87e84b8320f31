use std::io;
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    /// A unix socket, and the file to remove at the end when we made it.
    Unix(UnixListener, Option<PathBuf>),
    /// A TCP port.
    Tcp(TcpListener),
}

/// Who is at the other end.
#[derive(Debug, Clone, Default)]
pub struct PeerInfo {
    /// Of a unix peer.
    pub uid: Option<u32>,
    /// Of a unix peer.
    pub pid: Option<i32>,
    /// Of a TCP peer.
    pub address: Option<std::net::SocketAddr>,
}

/// One connection.
#[derive(Debug)]
pub enum Connection {
    /// Over a unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
}

impl Listener {
    /// Binds `unix:/path` or `tcp:address:port`. A socket file that nobody serves is replaced.
    ///
    /// # Errors
    /// When the address is malformed or in use.
    pub async fn bind(address: &str, mode: u32) -> io::Result<Self> {
        if let Some(path) = address.strip_prefix("unix:") {
            return bind_unix(Path::new(path), mode).await;
        }
        if let Some(address) = address.strip_prefix("tcp:") {
            return Ok(Self::Tcp(TcpListener::bind(address).await?));
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{address:?}: expected unix:/path or tcp:address:port"),
        ))
    }

    /// Sockets that systemd handed over (`LISTEN_FDS`), by name (`LISTEN_FDNAMES`).
    ///
    /// # Errors
    /// When a descriptor is no stream socket.
    pub fn from_systemd(name: &str) -> io::Result<Vec<Self>> {
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
                    Self::Tcp(TcpListener::from_std(listener)?)
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

    /// Where it listens, when that is a path.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Unix(listener, _) => {
                let address = listener.local_addr().ok()?;
                address.as_pathname().map(Path::to_owned)
            }
            Self::Tcp(_) => None,
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// As accept(2).
    pub async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(listener, _) => Ok(Connection::Unix(listener.accept().await?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Connection::Tcp(stream))
            }
        }
    }
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
                    address: None,
                },
            ),
            Self::Tcp(stream) => PeerInfo {
                address: stream.peer_addr().ok(),
                ..PeerInfo::default()
            },
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
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_flush(cx),
            Self::Tcp(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
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
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Unix(s) => s.is_write_vectored(),
            Self::Tcp(s) => s.is_write_vectored(),
        }
    }
}
