//! Frames as a hostile guest would make them, and a look at what arrives elsewhere.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Runs on a thread of its own inside the network namespace `name`.
pub fn inside<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let path = format!("/run/netns/{name}");
    std::thread::spawn(move || {
        let file = File::open(path).unwrap();
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
    .join()
    .unwrap()
}

/// A packet socket on a link of the current namespace.
pub fn packet_socket(link: &str) -> OwnedFd {
    // SAFETY: plain system calls on a descriptor that is owned from its creation on; the
    // address lives as long as the call.
    unsafe {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(protocol));
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let name = std::ffi::CString::new(link).unwrap();
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
        assert!(address.sll_ifindex > 0, "no link {link}");
        let rc = libc::bind(
            fd.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        );
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
        fd
    }
}

/// Sends a frame from a guest.
pub fn send(guest: &str, frame: &[u8]) {
    let frame = frame.to_vec();
    inside(guest, move || {
        let socket = packet_socket("eth0");
        let sent = nix::unistd::write(&socket, &frame).unwrap();
        assert_eq!(sent, frame.len());
    });
}

/// A guest that looks for frames that hold a mark.
pub struct Watcher(OwnedFd);

impl Watcher {
    pub fn new(guest: &str) -> Self {
        Self(inside(guest, || packet_socket("eth0")))
    }

    /// Whether a frame with the mark arrives before long.
    pub fn sees(&self, mark: &[u8], patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let mut buffer = [0_u8; 4096];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let mut poll = [nix::poll::PollFd::new(
                std::os::fd::AsFd::as_fd(&self.0),
                nix::poll::PollFlags::POLLIN,
            )];
            let wait = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
            if nix::poll::poll(&mut poll, wait).unwrap() == 0 {
                return false;
            }
            let n = nix::unistd::read(&self.0, &mut buffer).unwrap();
            if buffer[..n].windows(mark.len()).any(|w| w == mark) {
                return true;
            }
        }
    }
}

pub type Mac = [u8; 6];
pub const EVERYONE: Mac = [0xff; 6];

pub fn mac(text: &str) -> Mac {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|b| u8::from_str_radix(b, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

/// An Ethernet frame to everyone, marked at its end.
pub fn ethernet(from: Mac, kind: u16, payload: &[u8], mark: &[u8]) -> Vec<u8> {
    let mut frame = EVERYONE.to_vec();
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(payload);
    frame.extend_from_slice(mark);
    frame
}

/// An ARP reply: `ip` is at `sender`.
pub fn arp(from: Mac, sender: Mac, ip: Ipv4Addr, mark: &[u8]) -> Vec<u8> {
    let mut p = vec![0, 1, 8, 0, 6, 4, 0, 2];
    p.extend_from_slice(&sender);
    p.extend_from_slice(&ip.octets());
    p.extend_from_slice(&EVERYONE);
    p.extend_from_slice(&ip.octets());
    ethernet(from, 0x0806, &p, mark)
}

/// UDP over IPv4; the checksum of IP is right, UDP has none.
pub fn udp4(
    from: Mac,
    (source, sport): (Ipv4Addr, u16),
    (target, dport): (Ipv4Addr, u16),
    data: &[u8],
    mark: &[u8],
) -> Vec<u8> {
    let length = u16::try_from(28 + data.len() + mark.len()).unwrap();
    let mut p = vec![0x45, 0];
    p.extend_from_slice(&length.to_be_bytes());
    p.extend_from_slice(&[0, 1, 0, 0, 64, 17, 0, 0]);
    p.extend_from_slice(&source.octets());
    p.extend_from_slice(&target.octets());
    let sum = checksum(&p);
    p[10..12].copy_from_slice(&sum.to_be_bytes());
    p.extend_from_slice(&sport.to_be_bytes());
    p.extend_from_slice(&dport.to_be_bytes());
    p.extend_from_slice(&(length - 20).to_be_bytes());
    p.extend_from_slice(&[0, 0]);
    p.extend_from_slice(data);
    ethernet(from, 0x0800, &p, mark)
}

/// A DHCP discover for `chaddr`.
pub fn dhcp_discover(from: Mac, chaddr: Mac, mark: &[u8]) -> Vec<u8> {
    let mut data = vec![1, 1, 6, 0, 9, 9, 9, 9];
    data.resize(28, 0);
    data.extend_from_slice(&chaddr);
    data.resize(236, 0);
    data.extend_from_slice(&[99, 130, 83, 99, 53, 1, 1, 255]);
    udp4(
        from,
        (Ipv4Addr::UNSPECIFIED, 68),
        (Ipv4Addr::BROADCAST, 67),
        &data,
        mark,
    )
}

/// ICMPv6 with a right checksum, behind an extension header if asked. Bridges cut what follows
/// the packet, so its mark is the flow label.
pub fn icmp6(
    from: Mac,
    source: Ipv6Addr,
    target: Ipv6Addr,
    message: &[u8],
    extension: bool,
    flow: u8,
) -> Vec<u8> {
    let mut message = message.to_vec();
    let mut pseudo = source.octets().to_vec();
    pseudo.extend_from_slice(&target.octets());
    pseudo.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    pseudo.extend_from_slice(&[0, 0, 0, 58]);
    pseudo.extend_from_slice(&message);
    let sum = checksum(&pseudo);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut body = Vec::new();
    if extension {
        // Destination options with padding only.
        body.extend_from_slice(&[58, 0, 1, 4, 0, 0, 0, 0]);
    }
    body.extend_from_slice(&message);
    let mut p = vec![0x60, 0, 0x77, flow];
    p.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    p.push(if extension { 60 } else { 58 });
    p.push(255);
    p.extend_from_slice(&source.octets());
    p.extend_from_slice(&target.octets());
    p.extend_from_slice(&body);
    ethernet(from, 0x86dd, &p, b"")
}

/// What tells a frame from all others.
pub fn mark(frame: &[u8]) -> &[u8] {
    if frame[12..14] == [0x86, 0xdd] {
        &frame[6..54]
    } else {
        &frame[frame.len() - 11..]
    }
}

/// A neighbour advertisement: `address` is at `lladdr`.
pub fn neighbour_advertisement(address: Ipv6Addr, lladdr: Mac) -> Vec<u8> {
    let mut m = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    m.extend_from_slice(&address.octets());
    m.extend_from_slice(&[2, 1]);
    m.extend_from_slice(&lladdr);
    m
}

/// A router advertisement.
pub fn router_advertisement() -> Vec<u8> {
    let mut m = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08];
    m.resize(16, 0);
    m
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
