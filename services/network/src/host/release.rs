//! Giving back a lease in the place of a guest that is gone.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use crate::model::mac::Mac;

/// The message (RFC 2131): a release of `address` by `mac`, to `server`.
fn packet(mac: Mac, address: Ipv4Addr, server: Ipv4Addr, transaction: u32) -> Vec<u8> {
    let mut out = vec![1, 1, 6, 0];
    out.extend_from_slice(&transaction.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&address.octets());
    out.extend_from_slice(&[0; 12]);
    out.extend_from_slice(&mac.0);
    // The rest of chaddr, sname and file.
    out.resize(236, 0);
    out.extend_from_slice(&[99, 130, 83, 99]);
    out.extend_from_slice(&[53, 1, 7]);
    out.extend_from_slice(&[54, 4]);
    out.extend_from_slice(&server.octets());
    out.push(255);
    out.resize(300, 0);
    out
}

/// Sends it; a release has no answer.
pub(crate) fn send(mac: Mac, address: Ipv4Addr, server: Ipv4Addr) -> io::Result<()> {
    let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_nonblocking(true)?;
    let packet = packet(mac, address, server, u32::from(address));
    socket.send_to(&packet, SocketAddrV4::new(server, 67))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_protocol_has_them() {
        let p = packet(
            Mac([0, 0x16, 0x3e, 1, 2, 3]),
            Ipv4Addr::new(10, 0, 0, 9),
            Ipv4Addr::new(10, 0, 0, 1),
            7,
        );
        assert_eq!(&p[12..16], &[10, 0, 0, 9]);
        assert_eq!(&p[28..34], &[0, 0x16, 0x3e, 1, 2, 3]);
        assert_eq!(&p[236..243], &[99, 130, 83, 99, 53, 1, 7]);
        assert_eq!(p.len(), 300);
    }
}
