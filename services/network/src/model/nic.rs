//! LXD's options of a nic, read and checked by themselves.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use berth_rpc::{Code, Error, FieldViolation};
use ipnet::IpNet;

use super::mac::Mac;
use super::records::PortKind;
use super::{is_host_address, is_link_name, parse_bool, parse_subnet, rate, split_list};

/// An address option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressOption<A> {
    /// Not given.
    Unset,
    /// `none`.
    None,
    /// Given.
    Given(A),
}

/// The options of a nic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// From `nictype`; absent with `network`.
    pub kind: Option<PortKind>,
    /// Managed network's name.
    pub network: Option<String>,
    /// Link of the host.
    pub parent: Option<String>,
    /// Link's name on the host.
    pub host_name: Option<String>,
    /// Link's name in the guest.
    pub guest_name: Option<String>,
    /// Guest's MAC.
    pub mac: Option<Mac>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// `ipv4.address`.
    pub ipv4: AddressOption<Ipv4Addr>,
    /// `ipv6.address`.
    pub ipv6: AddressOption<Ipv6Addr>,
    /// `ipv4.routes` and `ipv6.routes`.
    pub routes: Vec<IpNet>,
    /// Bits per second towards the guest, 0 = unlimited.
    pub ingress_bps: u64,
    /// Bits per second from the guest, 0 = unlimited.
    pub egress_bps: u64,
    /// `security.mac_filtering`; implied by the two below.
    pub mac_filtering: bool,
    /// `security.ipv4_filtering`.
    pub ipv4_filtering: bool,
    /// `security.ipv6_filtering`.
    pub ipv6_filtering: bool,
    /// `security.port_isolation`.
    pub isolated: bool,
}

const BRIDGED: &[&str] = &[
    "boot.priority",
    "host_name",
    "hwaddr",
    "ipv4.address",
    "ipv4.routes",
    "ipv6.address",
    "ipv6.routes",
    "limits.egress",
    "limits.ingress",
    "limits.max",
    "mtu",
    "name",
    "network",
    "nictype",
    "parent",
    "security.ipv4_filtering",
    "security.ipv6_filtering",
    "security.mac_filtering",
    "security.port_isolation",
    "type",
];
const P2P: &[&str] = &[
    "boot.priority",
    "host_name",
    "hwaddr",
    "ipv4.routes",
    "ipv6.routes",
    "limits.egress",
    "limits.ingress",
    "limits.max",
    "mtu",
    "name",
    "nictype",
    "type",
];
const MACVLAN: &[&str] = &[
    "boot.priority",
    "hwaddr",
    "mtu",
    "name",
    "nictype",
    "parent",
    "type",
];

/// Options that LXD knows for one of these kinds and Berth does not do.
const UNSUPPORTED: &[&str] = &[
    "gvrp",
    "ipv4.routes.external",
    "ipv6.routes.external",
    "limits.priority",
    "maas.subnet.ipv4",
    "maas.subnet.ipv6",
    "queue.tx.length",
    "security.acls",
    "vlan",
    "vlan.tagged",
];

fn field(key: &str) -> String {
    format!("spec.config.{key}")
}

fn bad(key: &str, sentence: impl std::fmt::Display) -> Error {
    Error::invalid(
        field(key),
        format!("Invalid value for device option {key:?}: {sentence}"),
    )
}

/// An error for what LXD has and Berth doesn't.
pub fn unsupported(key: &str, what: impl std::fmt::Display) -> Error {
    let sentence = format!("{what} is not supported by Berth");
    let mut error = Error::new(Code::Unimplemented, "UNSUPPORTED_OPTION", sentence.clone());
    error.fields.push(FieldViolation {
        field: field(key),
        description: sentence,
    });
    error
}

/// Reads the options of a nic.
pub fn parse(config: &BTreeMap<String, String>) -> Result<Options, Error> {
    let get = |key: &str| {
        config
            .get(key)
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    };
    for (key, value) in config {
        if key.chars().chain(value.chars()).any(char::is_control) {
            return Err(Error::invalid(
                "spec.config",
                format!("Device option {key:?} has control characters"),
            ));
        }
    }
    let kind = kind_of(get("nictype"))?;
    let known = match kind {
        None | Some(PortKind::Bridged) => BRIDGED,
        Some(PortKind::P2p) => P2P,
        Some(PortKind::Macvlan) => MACVLAN,
    };
    for key in config.keys() {
        if UNSUPPORTED.contains(&key.as_str()) || key.starts_with("security.acls.") {
            return Err(unsupported(key, format!("Device option {key:?}")));
        }
        if !known.contains(&key.as_str()) {
            return Err(Error::invalid(
                field(key),
                format!("Invalid device option {key:?}"),
            ));
        }
    }
    if get("type").is_some_and(|t| t != "nic") {
        return Err(bad("type", "only \"nic\" makes a port"));
    }
    if get("boot.priority").is_some_and(|p| p.parse::<u32>().is_err()) {
        return Err(bad("boot.priority", "not a number"));
    }
    let link = |key: &str| match get(key) {
        Some(name) if !is_link_name(name) => Err(bad(key, format!("{name:?} is no link's name"))),
        name => Ok(name.map(str::to_owned)),
    };
    let (max_in, max_out) = (
        limit(get("limits.ingress"), "limits.ingress")?,
        limit(get("limits.egress"), "limits.egress")?,
    );
    let max = limit(get("limits.max"), "limits.max")?;
    if max.is_some() && (max_in.is_some() || max_out.is_some()) {
        return Err(bad(
            "limits.max",
            "it cannot be used together with limits.ingress or limits.egress",
        ));
    }
    let mut routes = subnets(get("ipv4.routes"), "ipv4.routes", true)?;
    routes.extend(subnets(get("ipv6.routes"), "ipv6.routes", false)?);
    let ipv4_filtering = flag(get("security.ipv4_filtering"), "security.ipv4_filtering")?;
    let ipv6_filtering = flag(get("security.ipv6_filtering"), "security.ipv6_filtering")?;
    let options = Options {
        kind,
        network: link("network")?,
        parent: link("parent")?,
        host_name: link("host_name")?,
        guest_name: link("name")?,
        mac: mac(get("hwaddr"))?,
        mtu: mtu(get("mtu"))?,
        ipv4: address(get("ipv4.address"), "ipv4.address", |a: &Ipv4Addr| {
            is_host_address((*a).into())
        })?,
        ipv6: address(get("ipv6.address"), "ipv6.address", |a: &Ipv6Addr| {
            is_host_address((*a).into())
        })?,
        routes,
        ingress_bps: max_in.or(max).unwrap_or(0),
        egress_bps: max_out.or(max).unwrap_or(0),
        mac_filtering: flag(get("security.mac_filtering"), "security.mac_filtering")?
            || ipv4_filtering
            || ipv6_filtering,
        ipv4_filtering,
        ipv6_filtering,
        isolated: flag(get("security.port_isolation"), "security.port_isolation")?,
    };
    for (none, filtering, family) in [
        (options.ipv4 == AddressOption::None, ipv4_filtering, "ipv4"),
        (options.ipv6 == AddressOption::None, ipv6_filtering, "ipv6"),
    ] {
        if none && !filtering {
            return Err(bad(
                &format!("{family}.address"),
                format!("\"none\" needs security.{family}_filtering=true"),
            ));
        }
    }
    Ok(options)
}

fn kind_of(nictype: Option<&str>) -> Result<Option<PortKind>, Error> {
    Ok(match nictype {
        None => None,
        Some("bridged") => Some(PortKind::Bridged),
        Some("p2p") => Some(PortKind::P2p),
        Some("macvlan") => Some(PortKind::Macvlan),
        Some(kind @ ("routed" | "ipvlan" | "physical" | "sriov" | "ovn")) => {
            return Err(unsupported("nictype", format!("nictype {kind:?}")));
        }
        Some(kind) => return Err(bad("nictype", format!("unknown nictype {kind:?}"))),
    })
}

fn flag(value: Option<&str>, key: &str) -> Result<bool, Error> {
    value.map_or(Ok(false), |v| {
        parse_bool(v).ok_or_else(|| bad(key, format!("{v:?} is not a boolean")))
    })
}

/// `None` for unset and for 0, which LXD reads as unlimited.
fn limit(value: Option<&str>, key: &str) -> Result<Option<u64>, Error> {
    value
        .map(|v| rate::parse(v).ok_or_else(|| bad(key, format!("{v:?} is not a bit rate"))))
        .transpose()
        .map(|v| v.filter(|v| *v > 0))
}

fn mac(value: Option<&str>) -> Result<Option<Mac>, Error> {
    value
        .map(|v| {
            v.parse::<Mac>()
                .ok()
                .filter(|m| m.is_unicast())
                .ok_or_else(|| bad("hwaddr", format!("{v:?} is not a unicast MAC address")))
        })
        .transpose()
}

fn mtu(value: Option<&str>) -> Result<Option<u32>, Error> {
    value
        .map(|v| {
            v.parse()
                .ok()
                .filter(|m| (68..=65535).contains(m))
                .ok_or_else(|| bad("mtu", format!("{v:?} is not a number from 68 to 65535")))
        })
        .transpose()
}

fn address<A: std::str::FromStr>(
    value: Option<&str>,
    key: &str,
    is_host: impl Fn(&A) -> bool,
) -> Result<AddressOption<A>, Error> {
    match value {
        None => Ok(AddressOption::Unset),
        Some("none") => Ok(AddressOption::None),
        Some(text) => text
            .parse()
            .ok()
            .filter(is_host)
            .map(AddressOption::Given)
            .ok_or_else(|| bad(key, format!("{text:?} is not an address of that family"))),
    }
}

fn subnets(value: Option<&str>, key: &str, v4: bool) -> Result<Vec<IpNet>, Error> {
    split_list(value.unwrap_or_default())
        .map(|text| {
            parse_subnet(text)
                .filter(|n| matches!(n, IpNet::V4(_)) == v4)
                .ok_or_else(|| bad(key, format!("{text:?} is not a subnet of that family")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(pairs: &[(&str, &str)]) -> Result<Options, Error> {
        parse(
            &pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn filters_imply_the_mac_filter() {
        let o = options(&[("network", "br0"), ("security.ipv4_filtering", "true")]).unwrap();
        assert!(o.mac_filtering && o.ipv4_filtering && !o.ipv6_filtering);
    }

    #[test]
    fn max_is_both_and_excludes_either() {
        let o = options(&[("limits.max", "10Mbit")]).unwrap();
        assert_eq!((o.ingress_bps, o.egress_bps), (10_000_000, 10_000_000));
        assert!(options(&[("limits.max", "1"), ("limits.egress", "2")]).is_err());
    }

    #[test]
    fn what_is_wrong_or_not_done_is_named() {
        for (pairs, code, key) in [
            (&[("nictype", "sriov")][..], Code::Unimplemented, "nictype"),
            (&[("nictype", "x")], Code::InvalidArgument, "nictype"),
            (&[("vlan", "5")], Code::Unimplemented, "vlan"),
            (&[("nonsense", "5")], Code::InvalidArgument, "nonsense"),
            (
                &[("nictype", "p2p"), ("parent", "x")],
                Code::InvalidArgument,
                "parent",
            ),
            (
                &[("nictype", "macvlan"), ("limits.max", "1")],
                Code::InvalidArgument,
                "limits.max",
            ),
            (
                &[("ipv4.address", "none")],
                Code::InvalidArgument,
                "ipv4.address",
            ),
            (
                &[("ipv4.address", "fd42::1")],
                Code::InvalidArgument,
                "ipv4.address",
            ),
            (&[("hwaddr", "x")], Code::InvalidArgument, "hwaddr"),
            (&[("host_name", "-x")], Code::InvalidArgument, "host_name"),
            (
                &[("limits.ingress", "fast")],
                Code::InvalidArgument,
                "limits.ingress",
            ),
        ] {
            let error = options(pairs).unwrap_err();
            assert_eq!(error.code, code, "{pairs:?}");
            assert_eq!(error.fields[0].field, format!("spec.config.{key}"));
        }
    }

    proptest! {
        #[test]
        fn nothing_is_injected(
            key in prop::sample::select(BRIDGED),
            before in "[a-z0-9.:]{0,8}",
            evil in prop::sample::select(vec!["\n", "\0", "\"", "'", "\\", "#", ";", "{", "\u{1b}"]),
            after in "[a-z0-9.:]{0,8}",
        ) {
            let value = format!("{before}{evil}{after}");
            prop_assert!(options(&[(key, &value)]).is_err());
        }
    }
}
