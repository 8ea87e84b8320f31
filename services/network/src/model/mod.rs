//! Pure: types, parsers, rules of validity and plans. No I/O, no clock.

pub mod allocate;
pub mod dnsmasq;
pub mod keys;
pub mod lease;
pub mod mac;
pub mod nic;
pub mod plan;
pub mod rate;
pub mod records;

use std::net::IpAddr;

use berth_rpc::Error;

/// Whether the kernel takes it as a link's name, and no program of ours reads it as an option.
/// LXD's rule for networks is stricter by a minimum of two characters.
pub fn is_link_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !name.starts_with('-')
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A managed bridge's name: 2 to 15 characters of `[-_a-zA-Z0-9.]`.
pub fn check_network_name(field: &str, name: &str) -> Result<(), Error> {
    if name.len() < 2 {
        return Err(Error::invalid(
            field,
            format!("Network name {name:?} is too short (minimum 2 characters)"),
        ));
    }
    if name.len() > 15 {
        return Err(Error::invalid(
            field,
            format!("Network name {name:?} is too long (maximum 15 characters)"),
        ));
    }
    if !is_link_name(name) {
        return Err(Error::invalid(
            field,
            format!("Network name {name:?} contains invalid characters"),
        ));
    }
    // Links that every network namespace has or that mean something else to a program of ours.
    if ["lo", "all", "default", "bonding_masters"].contains(&name) {
        return Err(Error::invalid(
            field,
            format!("Network name {name:?} is reserved"),
        ));
    }
    Ok(())
}

/// A DNS label.
pub fn is_hostname(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// A DNS name of one or more labels; underscores are allowed, as in names of services.
pub fn is_domain(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

/// LXD's booleans.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// The parts of a comma separated list, trimmed; empty text has none.
pub fn split_list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

/// A subnet with host bits zero, written canonically.
pub fn parse_subnet(text: &str) -> Option<ipnet::IpNet> {
    let net: ipnet::IpNet = text.parse().ok()?;
    (net.addr() == net.network()).then_some(net)
}

/// An address that a host may have.
pub fn is_host_address(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(a) if a.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || is_broadcast)
}
