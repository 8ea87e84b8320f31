//! dnsmasq's lease file.

use std::net::IpAddr;

use super::mac::Mac;

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLease {
    /// Seconds since the epoch; 0 = never.
    pub expires: u64,
    /// Absent for DHCPv6 clients whose identifier holds none.
    pub mac: Option<Mac>,
    /// What was given.
    pub address: IpAddr,
    /// Empty when the client has none.
    pub hostname: String,
}

/// Reads the file; lines that are none of a lease are passed over.
pub fn parse(text: &str) -> Vec<FileLease> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<FileLease> {
    let mut fields = line.split_ascii_whitespace();
    let expires = fields.next()?.parse().ok()?;
    let hardware = fields.next()?;
    let address: IpAddr = fields.next()?.parse().ok()?;
    let hostname = fields.next()?;
    let client = fields.next()?;
    let mac = match address {
        // `06-aa:bb:..` for hardware that is not Ethernet.
        IpAddr::V4(_) => hardware.parse().ok(),
        IpAddr::V6(_) => mac_of_duid(client),
    };
    let hostname = if hostname == "*" { "" } else { hostname };
    Some(FileLease {
        expires,
        mac,
        address,
        hostname: hostname.to_owned(),
    })
}

/// DUIDs of types 1 (link-layer and time) and 3 (link-layer) end in the MAC.
fn mac_of_duid(text: &str) -> Option<Mac> {
    let bytes = text
        .split(':')
        .map(|b| u8::from_str_radix(b, 16).ok())
        .collect::<Option<Vec<u8>>>()?;
    let mac = match bytes.as_slice() {
        [0, 1, 0, 1, _, _, _, _, mac @ ..] | [0, 3, 0, 1, mac @ ..] => mac,
        _ => return None,
    };
    Some(Mac(mac.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_families_are_read() {
        let leases = parse(
            "1732250000 00:16:3e:aa:bb:cc 10.0.0.5 c1 ff:1:2\n\
             0 00:16:3e:aa:bb:dd 10.0.0.6 * *\n\
             duid 00:01:00:01:2e:d0:17:4d:00:16:3e:11:22:33\n\
             1732250000 1052412 fd42::1234 c1 00:01:00:01:2e:d0:17:4d:00:16:3e:aa:bb:cc\n\
             1732250000 99 fd42::9 * 00:04:11:22\n",
        );
        assert_eq!(leases.len(), 4);
        assert_eq!(leases[1].hostname, "");
        assert_eq!(leases[2].mac.unwrap().to_string(), "00:16:3e:aa:bb:cc");
        assert_eq!(leases[3].mac, None);
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "(\\PC|\n| ){0,120}") {
            let _ = parse(&text);
        }
    }
}
