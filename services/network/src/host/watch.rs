//! News from the kernel: links that appear, rules that others change.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use futures::StreamExt;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;

use super::links::{Link, parse_link};
use super::{HostError, io};

const NETLINK_NETFILTER: isize = 12;
const GROUP_NFTABLES: u32 = 7;

/// Calls `seen` for each link that appears or changes, until the process ends.
pub(crate) fn links(seen: impl Fn(Link) + Send + 'static) -> Result<(), HostError> {
    let (connection, _handle, mut messages) =
        rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).map_err(io("watch links"))?;
    tokio::spawn(connection);
    tokio::spawn(async move {
        // Keeps the connection open.
        let _handle = _handle;
        while let Some((message, _)) = messages.next().await {
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) =
                message.payload
            {
                seen(parse_link(&link));
            }
        }
    });
    Ok(())
}

/// Notifies when chains or tables come or go, whoever changed them.
pub(crate) fn firewall(changed: Arc<Notify>) -> Result<(), HostError> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(io("watch nf_tables"))?;
    socket
        .socket_mut()
        .bind(&SocketAddr::new(0, 0))
        .map_err(io("watch nf_tables"))?;
    let group: libc::c_uint = GROUP_NFTABLES;
    // SAFETY: the descriptor is open, and the option's value is an unsigned int that lives here.
    let rc = unsafe {
        libc::setsockopt(
            socket.socket_ref().as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            std::ptr::from_ref(&group).cast(),
            size_of::<libc::c_uint>() as libc::socklen_t,
        )
    };
    if rc != 0 {
        return Err(io("watch nf_tables")(std::io::Error::last_os_error()));
    }
    tokio::spawn(async move {
        loop {
            match socket.recv_from_full().await {
                Ok((bytes, _)) => {
                    // New and deleted tables and chains: message types 0, 2, 3, 5.
                    let concerns = bytes.get(4).is_some_and(|kind| [0, 2, 3, 5].contains(kind));
                    if concerns {
                        changed.notify_one();
                    }
                }
                // Too much at once: something changed.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => changed.notify_one(),
                Err(error) => {
                    tracing::warn!(%error, "changes of firewall rules are no longer seen; the timer remains");
                    return;
                }
            }
        }
    });
    Ok(())
}
