//! Raw netlink: attributes, requests and answers. Used where `rtnetlink` has no words
//! (nf_tables, shapers) and where a transaction must be one datagram.

use std::io;

use netlink_sys::{Socket, SocketAddr};

const NLMSG_HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

/// A run of netlink attributes under construction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attrs(Vec<u8>);

impl Attrs {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Fixed header bytes in front of the attributes.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        pad(&mut self.0);
        self
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        pad(&mut self.0);
        self
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nest(self, kind: u16, inner: Attrs) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

fn pad(buffer: &mut Vec<u8>) {
    while !buffer.len().is_multiple_of(4) {
        buffer.push(0);
    }
}

/// Attributes of a received message; stops at the first malformed one.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The first attribute of a kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

/// Text up to its NUL.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A big-endian number of four bytes, 0 if there are fewer.
pub(crate) fn be32(value: &[u8]) -> u32 {
    value
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

/// Appends one message to a datagram.
pub(crate) fn message(out: &mut Vec<u8>, kind: u16, flags: u16, seq: u32, payload: &[u8]) {
    let len = u32::try_from(NLMSG_HEADER + payload.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&len.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(payload);
    pad(out);
}

/// A blocking socket of one netlink protocol, in the network namespace of the calling thread.
pub(crate) struct Channel {
    socket: Socket,
}

/// A message received.
pub(crate) struct Received {
    pub(crate) kind: u16,
    pub(crate) seq: u32,
    pub(crate) payload: Vec<u8>,
}

impl Channel {
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // One transaction is one datagram: a thousand ports' elements need more than the default.
        let size: libc::c_int = 16 << 20;
        for option in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
            // SAFETY: the descriptor is open, and the option's value is an int that lives here.
            let rc = unsafe {
                libc::setsockopt(
                    std::os::fd::AsRawFd::as_raw_fd(&socket),
                    libc::SOL_SOCKET,
                    option,
                    std::ptr::from_ref(&size).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
            if rc != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self { socket })
    }

    pub(crate) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(datagram, 0)?;
        if sent == datagram.len() {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "netlink took a part of a message",
            ))
        }
    }

    /// The messages of the next datagram.
    pub(crate) fn receive(&self) -> io::Result<Vec<Received>> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        let mut out = Vec::new();
        while rest.len() >= NLMSG_HEADER {
            let len = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if len < NLMSG_HEADER || len > rest.len() {
                break;
            }
            out.push(Received {
                kind: u16::from_ne_bytes([rest[4], rest[5]]),
                seq: u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]),
                payload: rest[NLMSG_HEADER..len].to_vec(),
            });
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(out)
    }

    /// Sends a datagram whose last message (numbered `last`) asks for an acknowledgement, and
    /// waits for it. The error tells the number of the message at fault.
    pub(crate) fn transact(&self, datagram: &[u8], last: u32) -> Result<(), (u32, io::Error)> {
        self.send(datagram).map_err(|e| (0, e))?;
        loop {
            for received in self.receive().map_err(|e| (0, e))? {
                if received.kind != NLMSG_ERROR {
                    continue;
                }
                let code = received
                    .payload
                    .get(..4)
                    .and_then(|b| b.try_into().ok())
                    .map_or(0, i32::from_ne_bytes);
                if code != 0 {
                    return Err((received.seq, io::Error::from_raw_os_error(-code)));
                }
                if received.seq == last {
                    return Ok(());
                }
            }
        }
    }

    /// Sends one dump request and collects its answers. A dump that the kernel says was
    /// interrupted by a change is taken as it is: callers repeat on their timer.
    pub(crate) fn dump(&self, kind: u16, payload: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut datagram = Vec::new();
        message(&mut datagram, kind, NLM_F_REQUEST | NLM_F_DUMP, 1, payload);
        self.send(&datagram)?;
        let mut out = Vec::new();
        loop {
            for received in self.receive()? {
                match received.kind {
                    NLMSG_DONE => return Ok(out),
                    NLMSG_ERROR => {
                        let code = received
                            .payload
                            .get(..4)
                            .and_then(|b| b.try_into().ok())
                            .map_or(0, i32::from_ne_bytes);
                        return if code == 0 {
                            Ok(out)
                        } else {
                            Err(io::Error::from_raw_os_error(-code))
                        };
                    }
                    _ => out.push(received.payload),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_read_back() {
        let attrs = Attrs::new()
            .text(1, "abc")
            .nest(2, Attrs::new().be32(7, 5))
            .bytes(3, &[1]);
        let all: Vec<_> = attributes(attrs.as_slice()).collect();
        assert_eq!(text(all[0].1), "abc");
        assert_eq!(find(all[1].1, 7).map(be32), Some(5));
        assert_eq!(all[2], (3, &[1_u8][..]));
        assert_eq!(attrs.as_slice().len() % 4, 0);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = attributes(&bytes).count();
            let _ = find(&bytes, 3).map(text);
        }
    }
}
