//! Links, addresses and routes by rtnetlink.
//!
//! The messages are few and fixed, so they are written here byte by byte: a veth whose peer is born in
//! another namespace with its final name, MAC and MTU is one message, one system call, one answer.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::sys;

pub(crate) mod links;

/// `aa:bb:cc:dd:ee:ff`.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next()?;
        if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// `10.0.0.0/24`, `2001:db8::/64`; an address alone is a host route.
pub fn parse_prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Some(longest), |l| l.parse().ok())?;
    (length <= longest).then_some((address, length))
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NESTED: u16 = 0x8000;

/// A request being written.
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// `family` is the fixed struct after the header (ifinfomsg, rtmsg, ...).
    pub(crate) fn new(kind: u16, flags: u16, family: &[u8]) -> Message {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&kind.to_ne_bytes());
        out.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        out.extend_from_slice(&1u32.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        let mut message = Message(out);
        message.raw(family);
        message
    }

    /// Bytes without an attribute header, padded.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0
            .extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value);
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        let start = self.0.len();
        self.0.extend_from_slice(&0u16.to_ne_bytes());
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn finish(mut self, flags: u16) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let old = u16::from_ne_bytes([self.0[6], self.0[7]]);
        self.0[6..8].copy_from_slice(&(old | flags).to_ne_bytes());
        self.0
    }
}

/// A route socket in the namespace it was opened in.
#[derive(Debug)]
pub(crate) struct RouteSocket(OwnedFd);

impl RouteSocket {
    /// In the calling thread's present network namespace.
    pub(crate) fn open() -> io::Result<RouteSocket> {
        // SAFETY: plain integers.
        let fd = sys::own(unsafe {
            libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::NETLINK_ROUTE,
            )
        })?;
        sys::socket::receive_timeout(&fd, 5)?;
        Ok(RouteSocket(fd))
    }

    /// One that was opened elsewhere; it stays with the namespace it was opened in.
    pub(crate) fn from_fd(fd: OwnedFd) -> RouteSocket {
        RouteSocket(fd)
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Asks for a change and waits for the kernel's verdict.
    pub(crate) fn request(&self, message: Message) -> io::Result<()> {
        self.send(&message.finish(NLM_F_ACK))?;
        let mut verdict = Ok(());
        self.each_reply(|kind, body| {
            if kind == NLMSG_ERROR {
                verdict = error_of(body);
                return false;
            }
            true
        })?;
        verdict
    }

    /// All answers to a dump request: (message type, body).
    pub(crate) fn dump(&self, message: Message) -> io::Result<Vec<(u16, Vec<u8>)>> {
        self.send(&message.finish(NLM_F_DUMP))?;
        let mut all = Vec::new();
        let mut verdict = Ok(());
        self.each_reply(|kind, body| match kind {
            NLMSG_DONE => false,
            NLMSG_ERROR => {
                verdict = error_of(body);
                false
            }
            _ => {
                all.push((kind, body.to_vec()));
                true
            }
        })?;
        verdict.map(|()| all)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: bytes live over the call; without an address the kernel is the receiver.
        let n = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if n < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Feeds replies to `more` until it says stop.
    fn each_reply(&self, mut more: impl FnMut(u16, &[u8]) -> bool) -> io::Result<()> {
        let mut buffer = vec![0; 32 << 10];
        loop {
            let (n, _) = sys::socket::receive(&self.0, &mut buffer, 0)?;
            let mut rest = &buffer[..n];
            while rest.len() >= 16 {
                let length = u32_at(rest, 0) as usize;
                if length < 16 || length > rest.len() {
                    return Err(io::Error::from_raw_os_error(libc::EBADMSG));
                }
                if !more(u16::from_ne_bytes([rest[4], rest[5]]), &rest[16..length]) {
                    return Ok(());
                }
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            }
        }
    }
}

fn error_of(body: &[u8]) -> io::Result<()> {
    if body.len() < 4 {
        return Err(io::Error::from_raw_os_error(libc::EBADMSG));
    }
    match u32_at(body, 0) as i32 {
        0 => Ok(()),
        negative => Err(io::Error::from_raw_os_error(-negative)),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}

/// (type without flags, value) of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if bytes.len() < 4 {
            return None;
        }
        let length = u16::from_ne_bytes([bytes[0], bytes[1]]) as usize;
        if length < 4 || length > bytes.len() {
            return None;
        }
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        let value = &bytes[4..length];
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs() {
        assert_eq!(
            parse_mac("00:16:3e:aB:00:01"),
            Some([0, 0x16, 0x3e, 0xab, 0, 1])
        );
        for bad in [
            "",
            "00:16:3e:ab:00",
            "00:16:3e:ab:00:01:02",
            "0:16:3e:ab:00:01",
            "+0:16:3e:ab:00:01",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }

    #[test]
    fn prefixes() {
        assert_eq!(
            parse_prefix("10.0.0.0/8"),
            Some(("10.0.0.0".parse().unwrap(), 8))
        );
        assert_eq!(
            parse_prefix("fd00::1"),
            Some(("fd00::1".parse().unwrap(), 128))
        );
        for bad in ["10.0.0.0/33", "10.0.0/8", "x", "fd00::/129", "1.2.3.4/"] {
            assert_eq!(parse_prefix(bad), None, "{bad}");
        }
    }

    #[test]
    fn attributes_nest_and_stop_at_garbage() {
        let mut message = Message::new(16, 0, &[0; 16]);
        message.nest(18, |m| m.text(1, "veth"));
        message.number(4, 1500);
        let bytes = message.finish(0);
        let seen: Vec<_> = attributes(&bytes[32..]).collect();
        assert_eq!(seen.len(), 2);
        assert_eq!(attributes(seen[0].1).next(), Some((1, &b"veth\0"[..])));
        assert_eq!(seen[1], (4, &1500u32.to_ne_bytes()[..]));
        assert_eq!(attributes(&[200, 0, 1, 0, 5]).count(), 0);
    }
}
