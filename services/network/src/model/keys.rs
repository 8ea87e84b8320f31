//! Configuration keys of a bridge network: one table of what is known, what is supported and how
//! each value is read, and the plan that a valid configuration makes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use berth_rpc::{Code, Error, FieldViolation};
use ipnet::IpNet;

use super::mac::Mac;
use super::plan::{Dhcp, Dns, DnsMode, Family, NetworkPlan};
use super::{is_domain, is_host_address, is_link_name, parse_bool, parse_subnet, split_list};

/// Keys and values, as LXD has them.
pub type Config = BTreeMap<String, String>;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Bool,
    Mac,
    Mtu,
    Driver,
    Mode,
    Links,
    Address4,
    Address6,
    Ip4,
    Ip6,
    Order,
    Expiry,
    Ranges4,
    Ranges6,
    Subnets4,
    Subnets6,
    Domain,
    DnsMode,
    Domains,
    RawDnsmasq,
    /// LXD has it, Berth doesn't.
    Unsupported,
}

const KEYS: &[(&str, Kind)] = &[
    ("bridge.driver", Kind::Driver),
    ("bridge.external_interfaces", Kind::Links),
    ("bridge.hwaddr", Kind::Mac),
    ("bridge.mode", Kind::Mode),
    ("bridge.mtu", Kind::Mtu),
    ("dns.domain", Kind::Domain),
    ("dns.mode", Kind::DnsMode),
    ("dns.search", Kind::Domains),
    ("dns.zone.forward", Kind::Unsupported),
    ("dns.zone.reverse.ipv4", Kind::Unsupported),
    ("dns.zone.reverse.ipv6", Kind::Unsupported),
    ("ipv4.address", Kind::Address4),
    ("ipv4.dhcp", Kind::Bool),
    ("ipv4.dhcp.expiry", Kind::Expiry),
    ("ipv4.dhcp.gateway", Kind::Ip4),
    ("ipv4.dhcp.ranges", Kind::Ranges4),
    ("ipv4.firewall", Kind::Bool),
    ("ipv4.nat", Kind::Bool),
    ("ipv4.nat.address", Kind::Ip4),
    ("ipv4.nat.order", Kind::Order),
    ("ipv4.ovn.ranges", Kind::Unsupported),
    ("ipv4.routes", Kind::Subnets4),
    ("ipv4.routing", Kind::Bool),
    ("ipv6.address", Kind::Address6),
    ("ipv6.dhcp", Kind::Bool),
    ("ipv6.dhcp.expiry", Kind::Expiry),
    ("ipv6.dhcp.ranges", Kind::Ranges6),
    ("ipv6.dhcp.stateful", Kind::Bool),
    ("ipv6.firewall", Kind::Bool),
    ("ipv6.nat", Kind::Bool),
    ("ipv6.nat.address", Kind::Ip6),
    ("ipv6.nat.order", Kind::Order),
    ("ipv6.ovn.ranges", Kind::Unsupported),
    ("ipv6.routes", Kind::Subnets6),
    ("ipv6.routing", Kind::Bool),
    ("maas.subnet.ipv4", Kind::Unsupported),
    ("maas.subnet.ipv6", Kind::Unsupported),
    ("raw.dnsmasq", Kind::RawDnsmasq),
    ("security.acls", Kind::Unsupported),
    ("volatile.bridge.hwaddr", Kind::Mac),
];

/// Prefixes of families of keys that LXD has and Berth doesn't.
const UNSUPPORTED: &[&str] = &["bgp.", "fan.", "security.acls.", "tunnel."];

fn kind(key: &str) -> Option<Kind> {
    if let Ok(i) = KEYS.binary_search_by_key(&key, |(k, _)| k) {
        return Some(KEYS[i].1);
    }
    UNSUPPORTED
        .iter()
        .any(|prefix| key.starts_with(prefix))
        .then_some(Kind::Unsupported)
}

fn bad(key: &str, sentence: impl std::fmt::Display) -> Error {
    Error::invalid(
        format!("config.{key}"),
        format!("Invalid value for network {key:?}: {sentence}"),
    )
}

fn unsupported(key: &str, what: impl std::fmt::Display) -> Error {
    let sentence = format!("Network {what} is not supported by Berth");
    let mut error = Error::new(Code::Unimplemented, "UNSUPPORTED_KEY", sentence.clone());
    error.fields.push(FieldViolation {
        field: format!("config.{key}"),
        description: sentence,
    });
    error
}

/// Checks each key and value by itself. `auto` is taken for addresses.
pub fn check(config: &Config) -> Result<(), Error> {
    for (key, value) in config {
        if key.is_empty() || key.len() > 255 || key.chars().any(char::is_control) {
            return Err(Error::invalid(
                "config",
                format!("Invalid configuration key {key:?}"),
            ));
        }
        let breaks = |c: char| c.is_control() && !(key == "raw.dnsmasq" && "\n\t".contains(c));
        let user = key.strip_prefix("user.").is_some_and(|k| !k.is_empty());
        if user {
            if value.contains('\0') {
                return Err(bad(key, "it has a NUL character"));
            }
            continue;
        }
        let Some(kind) = kind(key) else {
            return Err(Error::invalid(
                format!("config.{key}"),
                format!("Unknown configuration key: {key}"),
            ));
        };
        if matches!(kind, Kind::Unsupported) {
            return Err(unsupported(key, format!("configuration key {key:?}")));
        }
        if value.contains(breaks) {
            return Err(bad(key, "it has control characters"));
        }
        check_value(key, kind, value)?;
    }
    Ok(())
}

fn check_value(key: &str, kind: Kind, value: &str) -> Result<(), Error> {
    let ok = match kind {
        Kind::Bool => parse_bool(value).is_some(),
        Kind::Mac => value.parse::<Mac>().is_ok_and(Mac::is_unicast),
        Kind::Mtu => value
            .parse::<u32>()
            .is_ok_and(|m| (68..=65535).contains(&m)),
        Kind::Driver if value == "openvswitch" => {
            return Err(unsupported(key, "bridge.driver \"openvswitch\""));
        }
        Kind::Driver => value == "native",
        Kind::Mode if value == "fan" => return Err(unsupported(key, "bridge.mode \"fan\"")),
        Kind::Mode => value == "standard",
        Kind::Links => split_list(value).all(is_link_name),
        Kind::Address4 => is_bridge_address(value, true),
        Kind::Address6 => is_bridge_address(value, false),
        Kind::Ip4 => value.parse::<std::net::Ipv4Addr>().is_ok(),
        Kind::Ip6 => value.parse::<std::net::Ipv6Addr>().is_ok(),
        Kind::Order => ["before", "after"].contains(&value),
        Kind::Expiry => is_expiry(value),
        Kind::Ranges4 => parse_ranges(value).is_some_and(|r| r.iter().all(|r| r.0.is_ipv4())),
        Kind::Ranges6 => parse_ranges(value).is_some_and(|r| r.iter().all(|r| r.0.is_ipv6())),
        Kind::Subnets4 => split_list(value).all(|s| matches!(parse_subnet(s), Some(IpNet::V4(_)))),
        Kind::Subnets6 => split_list(value).all(|s| matches!(parse_subnet(s), Some(IpNet::V6(_)))),
        Kind::Domain => is_domain(value),
        Kind::DnsMode => ["managed", "dynamic", "none"].contains(&value),
        Kind::Domains => split_list(value).all(is_domain),
        Kind::RawDnsmasq => true,
        Kind::Unsupported => false,
    };
    if ok {
        Ok(())
    } else {
        Err(bad(key, format!("{value:?} is not {}", describe(kind))))
    }
}

fn describe(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "a boolean",
        Kind::Mac => "a unicast MAC address",
        Kind::Mtu => "a number from 68 to 65535",
        Kind::Driver => "\"native\"",
        Kind::Mode => "\"standard\"",
        Kind::Links => "a list of link names",
        Kind::Address4 => "an IPv4 address with prefix length, \"auto\" or \"none\"",
        Kind::Address6 => "an IPv6 address with prefix length, \"auto\" or \"none\"",
        Kind::Ip4 => "an IPv4 address",
        Kind::Ip6 => "an IPv6 address",
        Kind::Order => "\"before\" or \"after\"",
        Kind::Expiry => "a time such as 2m, 1h, 7d or \"infinite\" (two minutes at least)",
        Kind::Ranges4 => "a list of IPv4 ranges FIRST-LAST",
        Kind::Ranges6 => "a list of IPv6 ranges FIRST-LAST",
        Kind::Subnets4 => "a list of IPv4 subnets",
        Kind::Subnets6 => "a list of IPv6 subnets",
        Kind::Domain => "a domain name",
        Kind::DnsMode => "\"managed\", \"dynamic\" or \"none\"",
        Kind::Domains => "a list of domain names",
        Kind::RawDnsmasq | Kind::Unsupported => "allowed",
    }
}

fn is_bridge_address(text: &str, v4: bool) -> bool {
    if text == "auto" || text == "none" {
        return true;
    }
    text.parse::<IpNet>().is_ok_and(|net| {
        is_host_address(net.addr())
            && if v4 {
                matches!(net, IpNet::V4(n) if (1..=32).contains(&n.prefix_len())
                    && (n.prefix_len() > 30 || (n.addr() != n.network() && n.addr() != n.broadcast())))
            } else {
                matches!(net, IpNet::V6(n) if (64..=128).contains(&n.prefix_len()))
            }
    })
}

/// dnsmasq's lease times; it takes nothing below two minutes.
fn is_expiry(text: &str) -> bool {
    if text == "infinite" {
        return true;
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return false,
    };
    !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_digit())
        && digits
            .parse::<u32>()
            .ok()
            .and_then(|n| n.checked_mul(factor))
            .is_some_and(|seconds| seconds >= 120)
}

fn parse_ranges(text: &str) -> Option<Vec<(IpAddr, IpAddr)>> {
    split_list(text)
        .map(|range| {
            let (first, last) = range.split_once('-')?;
            let (first, last): (IpAddr, IpAddr) =
                (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first.is_ipv4() == last.is_ipv4() && first <= last).then_some((first, last))
        })
        .collect()
}

/// Adds what LXD adds to a new network: addresses are `auto` unless given, and what is `auto` is
/// translated unless told otherwise.
pub fn fill_for_create(config: &mut Config) {
    for family in ["ipv4", "ipv6"] {
        let address = config
            .entry(format!("{family}.address"))
            .or_insert_with(|| "auto".to_owned());
        if address == "auto" {
            config
                .entry(format!("{family}.nat"))
                .or_insert_with(|| "true".to_owned());
        }
    }
}

/// A valid configuration with no `auto` left in it, as a plan. Finds what is wrong between keys.
pub fn plan(name: &str, uid: &str, hwaddr: Mac, config: &Config) -> Result<NetworkPlan, Error> {
    check(config)?;
    let get = |key: &str| config.get(key).map(String::as_str);
    let hwaddr = get("bridge.hwaddr")
        .or_else(|| get("volatile.bridge.hwaddr"))
        .and_then(|m| m.parse().ok())
        .unwrap_or(hwaddr);
    let external_interfaces: Vec<String> = get("bridge.external_interfaces")
        .map(|l| split_list(l).map(str::to_owned).collect())
        .unwrap_or_default();
    if external_interfaces.iter().any(|l| l == name) {
        return Err(bad(
            "bridge.external_interfaces",
            "a bridge cannot be its own port",
        ));
    }
    let domain = get("dns.domain").unwrap_or("lxd").to_owned();
    Ok(NetworkPlan {
        name: name.to_owned(),
        uid: uid.to_owned(),
        hwaddr,
        mtu: get("bridge.mtu").and_then(|m| m.parse().ok()),
        external_interfaces,
        ipv4: family(config, "ipv4")?,
        ipv6: family(config, "ipv6")?,
        dns: Dns {
            domain,
            mode: match get("dns.mode") {
                Some("dynamic") => DnsMode::Dynamic,
                Some("none") => DnsMode::None,
                _ => DnsMode::Managed,
            },
            search: get("dns.search")
                .map(|l| split_list(l).map(str::to_owned).collect())
                .unwrap_or_default(),
        },
        raw_dnsmasq: get("raw.dnsmasq").unwrap_or_default().to_owned(),
    })
}

fn family(config: &Config, which: &str) -> Result<Option<Family>, Error> {
    let get = |key: &str| config.get(&format!("{which}.{key}")).map(String::as_str);
    let flag = |key: &str, default| get(key).and_then(parse_bool).unwrap_or(default);
    let subnet: IpNet = match get("address") {
        None | Some("none") => return Ok(None),
        Some(text) => text.parse().map_err(|_| {
            bad(
                &format!("{which}.address"),
                format!("{text:?} is not resolved"),
            )
        })?,
    };
    Ok(Some(Family {
        subnet,
        nat: flag("nat", false),
        nat_address: get("nat.address").and_then(|a| a.parse().ok()),
        nat_after: get("nat.order") == Some("after"),
        firewall: flag("firewall", true),
        routing: flag("routing", true),
        dhcp: dhcp(config, which, subnet)?,
        routes: get("routes")
            .map(|l| split_list(l).filter_map(parse_subnet).collect())
            .unwrap_or_default(),
    }))
}

fn dhcp(config: &Config, which: &str, subnet: IpNet) -> Result<Option<Dhcp>, Error> {
    let key = |key: &str| format!("{which}.{key}");
    let get = |k: &str| config.get(&key(k)).map(String::as_str);
    let asked = get("dhcp").and_then(parse_bool);
    if asked == Some(false) {
        return Ok(None);
    }
    let v4 = matches!(subnet, IpNet::V4(_));
    let stateful = v4 || get("dhcp.stateful").and_then(parse_bool).unwrap_or(false);
    let room = subnet.prefix_len() <= if v4 { 30 } else { 126 };
    if !room {
        return match asked {
            None => Ok(None),
            Some(_) => Err(bad(
                &key("dhcp"),
                format!("{subnet} has no room for guests"),
            )),
        };
    }
    if !stateful && subnet.prefix_len() != 64 {
        return Err(bad(
            &key("address"),
            "without ipv6.dhcp.stateful=true guests choose their addresses, and that needs a /64",
        ));
    }
    let ranges = match get("dhcp.ranges").and_then(parse_ranges) {
        Some(ranges) if !ranges.is_empty() => {
            for (first, last) in &ranges {
                if !subnet.contains(first) || !subnet.contains(last) {
                    return Err(bad(
                        &key("dhcp.ranges"),
                        format!("{first}-{last} is not within {}", subnet.trunc()),
                    ));
                }
            }
            ranges
        }
        _ => vec![default_range(subnet)],
    };
    Ok(Some(Dhcp {
        expiry: get("dhcp.expiry").unwrap_or("1h").to_owned(),
        gateway: get("dhcp.gateway").and_then(|a| a.parse().ok()),
        ranges,
        stateful,
    }))
}

/// From the second host address to the last; the bridge usually has the first.
fn default_range(subnet: IpNet) -> (IpAddr, IpAddr) {
    match subnet {
        IpNet::V4(net) => {
            let first = u32::from(net.network()) + if net.prefix_len() == 30 { 1 } else { 2 };
            let last = u32::from(net.broadcast()) - 1;
            (
                std::net::Ipv4Addr::from(first).into(),
                std::net::Ipv4Addr::from(last).into(),
            )
        }
        IpNet::V6(net) => {
            let first = u128::from(net.network()) + 2;
            (
                std::net::Ipv6Addr::from(first).into(),
                net.broadcast().into(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(pairs: &[(&str, &str)]) -> Config {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn make(pairs: &[(&str, &str)]) -> Result<NetworkPlan, Error> {
        plan("br0", "uid", Mac([0, 0x16, 0x3e, 1, 2, 3]), &config(pairs))
    }

    #[test]
    fn the_table_is_sorted() {
        assert!(KEYS.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn a_new_network_is_automatic_and_translated() {
        let mut filled = config(&[("ipv6.address", "none")]);
        fill_for_create(&mut filled);
        assert_eq!(filled["ipv4.address"], "auto");
        assert_eq!(filled["ipv4.nat"], "true");
        assert_eq!(filled["ipv6.address"], "none");
        assert!(!filled.contains_key("ipv6.nat"));
    }

    #[test]
    fn a_full_configuration_is_understood() {
        let plan = make(&[
            ("bridge.mtu", "1400"),
            ("dns.domain", "example.org"),
            ("dns.mode", "dynamic"),
            ("ipv4.address", "10.1.2.1/24"),
            (
                "ipv4.dhcp.ranges",
                "10.1.2.10-10.1.2.20, 10.1.2.30-10.1.2.40",
            ),
            ("ipv4.nat", "true"),
            ("ipv6.address", "fd42::1/64"),
            ("user.anything", "goes\nhere"),
        ])
        .unwrap();
        let v4 = plan.ipv4.unwrap();
        assert!(v4.nat);
        assert_eq!(v4.dhcp.unwrap().ranges.len(), 2);
        let v6 = plan.ipv6.unwrap();
        assert!(!v6.nat && !v6.dhcp.unwrap().stateful);
        assert_eq!(plan.dns.mode, DnsMode::Dynamic);
    }

    #[test]
    fn wrong_values_name_their_key() {
        for (key, value) in [
            ("ipv4.address", "10.0.0.0/24"),
            ("ipv4.address", "10.0.0.255/24"),
            ("ipv4.address", "10.0.0.1"),
            ("ipv4.address", "fd42::1/64"),
            ("ipv4.address", "127.0.0.1/8"),
            ("ipv6.address", "fd42::1/48"),
            ("ipv4.dhcp.expiry", "1s"),
            ("ipv4.dhcp.expiry", "h"),
            ("ipv4.dhcp.ranges", "10.0.0.9-10.0.0.1"),
            ("ipv4.nat", "maybe"),
            ("ipv4.routes", "10.0.0.1/24"),
            ("bridge.hwaddr", "01:00:5e:00:00:01"),
            ("bridge.mtu", "12"),
            ("bridge.external_interfaces", "eth0,a b"),
            ("dns.domain", "a b"),
            ("dns.mode", "x"),
            ("dns.search", "ok,not/ok"),
        ] {
            let error = check(&config(&[(key, value)])).unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument, "{key}={value}");
            assert_eq!(error.fields[0].field, format!("config.{key}"));
        }
    }

    #[test]
    fn between_keys() {
        let range = make(&[
            ("ipv4.address", "10.0.0.1/24"),
            ("ipv4.dhcp.ranges", "10.0.1.2-10.0.1.9"),
        ]);
        assert_eq!(
            range.unwrap_err().fields[0].field,
            "config.ipv4.dhcp.ranges"
        );
        assert!(make(&[("ipv6.address", "fd42::1/80")]).is_err());
        assert!(
            make(&[
                ("ipv6.address", "fd42::1/80"),
                ("ipv6.dhcp.stateful", "true")
            ])
            .is_ok()
        );
        assert!(make(&[("bridge.external_interfaces", "br0")]).is_err());
        assert!(
            make(&[("ipv4.address", "10.0.0.1/32")])
                .unwrap()
                .ipv4
                .unwrap()
                .dhcp
                .is_none()
        );
    }

    #[test]
    fn unknown_and_unsupported_are_told_apart() {
        let unknown = check(&config(&[("foo.bar", "1")])).unwrap_err();
        assert_eq!(unknown.message, "Unknown configuration key: foo.bar");
        for key in [
            "fan.type",
            "tunnel.a.protocol",
            "bgp.peers.x.address",
            "security.acls",
            "security.acls.default.egress.action",
            "dns.zone.forward",
            "ipv4.ovn.ranges",
        ] {
            let error = check(&config(&[(key, "x")])).unwrap_err();
            assert_eq!(error.code, Code::Unimplemented, "{key}");
            assert!(error.message.contains(key));
        }
        let driver = check(&config(&[("bridge.driver", "openvswitch")])).unwrap_err();
        assert_eq!(driver.code, Code::Unimplemented);
    }

    proptest! {
        /// No key but `user.*` and `raw.dnsmasq` takes a line break, a quote or a NUL.
        #[test]
        fn nothing_is_injected(
            index in 0..KEYS.len(),
            before in "[a-z0-9./:-]{0,12}",
            evil in prop::sample::select(vec!["\n", "\r", "\0", "\"", "'", "\\", "\u{85}", "\u{1b}", "#", " "]),
            after in "[a-z0-9./:=-]{0,12}",
        ) {
            let key = KEYS[index].0;
            let value = format!("{before}{evil}{after}");
            let result = check(&config(&[(key, &value)]));
            if key == "raw.dnsmasq" {
                let allowed = ["\n", "\"", "'", "\\", "#", " "].contains(&evil);
                prop_assert_eq!(result.is_ok(), allowed);
            } else if evil != " " {
                // Blanks may stand around the items of a list.
                prop_assert!(result.is_err(), "{}={:?}", key, value);
            }
        }

        #[test]
        fn no_input_panics(key in "\\PC{0,30}", value in "\\PC{0,60}", index in 0..KEYS.len()) {
            let _ = make(&[(&key, &value)]);
            let _ = make(&[(KEYS[index].0, &value)]);
        }

        #[test]
        fn ranges_lie_in_their_subnet(address: u32, prefix in 1_u8..=32) {
            let text = format!("{}/{prefix}", std::net::Ipv4Addr::from(address));
            if let Ok(plan) = make(&[("ipv4.address", &text)]) {
                let family = plan.ipv4.unwrap();
                for (first, last) in family.dhcp.iter().flat_map(|d| &d.ranges) {
                    prop_assert!(first <= last);
                    prop_assert!(family.subnet.contains(first) && family.subnet.contains(last));
                }
            }
        }
    }
}
