//! Filters and limits of ports: what a guest may not send, whatever it runs.
//!
//! Rules are made once; a port is elements keyed by the name of its host-side link, so they hold
//! from the first packet of a link that is born later. The checks hang before the bridge learns
//! an address (prerouting), and on input as well, because link-local frames take that way only.
//! The order matters (CVE-2025-52889, -52890): source MAC first, everything that lets a packet
//! through comes after it and only *returns*.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::expr::{
    ARP, ARP_SENDER_ETHER, ARP_SENDER_IP, DHCP_CHADDR, DPORT, ETHER_SADDR, ETHER_TYPE, ICMP_TYPE,
    ICMPV6, IP_DADDR, IP_FRAGMENT, IP_SADDR, IP4, IP6, IP6_NEXT_HEADER, IP6_PAYLOAD_LEN, IP6_SADDR,
    ND_OPTION, ND_OPTION_ETHER, ND_TARGET, RS_OPTION, RS_OPTION_ETHER, Rule, SPORT, UDP, Verdict,
};
use super::{
    BRIDGE, Batch, ETHER_ADDR, FORWARD, IFNAME, INET, INPUT, IPV4_ADDR, IPV6_ADDR, NfError,
    PREROUTING, concat_key, ifname_key,
};
use crate::host::{AddressFilter, PortGuard};

/// Bytes a port may send at once above its limit; below the largest packet the kernel hands
/// around (64 KiB with segmentation offload) nothing would pass.
const LEAST_BURST: u64 = 128 << 10;

/// Makes both guard tables anew, holding exactly these ports. One transaction: no packet sees
/// a half-made table.
pub(crate) fn rebuild(prefix: &str, ports: &[PortGuard]) -> Result<(), NfError> {
    let mut batch = Batch::new();
    batch.remove_table(BRIDGE, prefix);
    batch.remove_table(INET, prefix);
    if ports.iter().any(PortGuard::is_needed) {
        add_bridge_table(&mut batch, prefix);
        add_inet_table(&mut batch, prefix);
        for port in ports {
            add_port(&mut batch, prefix, port);
        }
    }
    batch.commit()
}

/// Adds a port to tables that are there.
pub(crate) fn arm(prefix: &str, port: &PortGuard) -> Result<(), NfError> {
    let mut batch = Batch::new();
    add_port(&mut batch, prefix, port);
    batch.commit()
}

/// Takes a port's old elements and puts its new ones, between two packets.
pub(crate) fn replace(prefix: &str, old: &PortGuard, new: &PortGuard) -> Result<(), NfError> {
    let mut batch = Batch::new();
    remove_port(&mut batch, prefix, old);
    add_port(&mut batch, prefix, new);
    batch.commit()
}

/// Removes a port's elements.
pub(crate) fn disarm(prefix: &str, port: &PortGuard) -> Result<(), NfError> {
    let mut batch = Batch::new();
    remove_port(&mut batch, prefix, port);
    batch.commit()
}

fn add_bridge_table(batch: &mut Batch, table: &str) {
    batch.add_table(BRIDGE, table);
    for set in [
        "mac_on", "ip4_on", "ip4_none", "ip6_on", "ip6_none", "isolated",
    ] {
        batch.add_set(BRIDGE, table, set, &[IFNAME]);
    }
    batch.add_set(BRIDGE, table, "macs", &[IFNAME, ETHER_ADDR]);
    batch.add_set(BRIDGE, table, "ip4s", &[IFNAME, IPV4_ADDR]);
    batch.add_set(BRIDGE, table, "ip6s", &[IFNAME, IPV6_ADDR]);
    batch.add_limit_map(BRIDGE, table, "egress", &[IFNAME]);
    for chain in ["mac", "ip4", "ip6", "guard"] {
        batch.add_chain(BRIDGE, table, chain);
    }
    for rule in mac_rules() {
        batch.add_rule(BRIDGE, table, "mac", rule);
    }
    for rule in ip4_rules() {
        batch.add_rule(BRIDGE, table, "ip4", rule);
    }
    for rule in ip6_rules() {
        batch.add_rule(BRIDGE, table, "ip6", rule);
    }
    for (set, chain) in [("mac_on", "mac"), ("ip4_on", "ip4"), ("ip6_on", "ip6")] {
        let rule = Rule::new().iifname_in(set).verdict(Verdict::Jump(chain));
        batch.add_rule(BRIDGE, table, "guard", rule);
    }
    for (set, kinds) in [("ip4_none", &[IP4, ARP][..]), ("ip6_none", &[IP6][..])] {
        for kind in kinds {
            let rule = Rule::new().iifname_in(set).equals(ETHER_TYPE, kind).drop();
            batch.add_rule(BRIDGE, table, "guard", rule);
        }
    }
    for (chain, hook) in [("prerouting", PREROUTING), ("input", INPUT)] {
        batch.add_base_chain(BRIDGE, table, chain, ("filter", hook, -300));
        let rule = Rule::new().verdict(Verdict::Jump("guard"));
        batch.add_rule(BRIDGE, table, chain, rule);
    }
    let limit = Rule::new().over_limit_of_iifname("egress").drop();
    batch.add_rule(BRIDGE, table, "prerouting", limit);
    batch.add_base_chain(BRIDGE, table, "forward", ("filter", FORWARD, -300));
    let isolate = Rule::new()
        .iifname_in("isolated")
        .oifname_in("isolated")
        .drop();
    batch.add_rule(BRIDGE, table, "forward", isolate);
}

/// Links that are in no bridge (p2p) pass here.
fn add_inet_table(batch: &mut Batch, table: &str) {
    batch.add_table(INET, table);
    batch.add_limit_map(INET, table, "egress", &[IFNAME]);
    batch.add_base_chain(INET, table, "prerouting", ("filter", PREROUTING, -300));
    let limit = Rule::new().over_limit_of_iifname("egress").drop();
    batch.add_rule(INET, table, "prerouting", limit);
}

/// Claims about a link-layer address: the frame's, ARP's, DHCP's and neighbour discovery's.
fn mac_rules() -> Vec<Rule> {
    let udp_to = |port: u16| {
        Rule::new()
            .equals(ETHER_TYPE, &IP4)
            .l4proto(UDP)
            .equals(DPORT, &port.to_be_bytes())
    };
    let nd = |kind: u8| {
        Rule::new()
            .equals(ETHER_TYPE, &IP6)
            .equals(IP6_NEXT_HEADER, &[ICMPV6])
            .equals(ICMP_TYPE, &[kind])
    };
    let mut rules = vec![
        Rule::new().pair_not_in(ETHER_SADDR, "macs").drop(),
        Rule::new()
            .equals(ETHER_TYPE, &ARP)
            .pair_not_in(ARP_SENDER_ETHER, "macs")
            .drop(),
        // A lease belongs to `chaddr`, not to the frame's source: other people's chaddr would
        // empty the pool. In fragments it could not be seen.
        udp_to(67).has_bits(IP_FRAGMENT, &[0x3f, 0xff]).drop(),
        udp_to(67).pair_not_in(DHCP_CHADDR, "macs").drop(),
    ];
    // Neighbour discovery names an address in an option. With room for one option only, it
    // cannot hide behind another; a nonce (RFC 7527) may stand in its place.
    for (kind, option) in [(135_u8, 1_u8), (136, 2)] {
        rules.push(nd(kind).above(IP6_PAYLOAD_LEN, &[0, 32]).drop());
        rules.push(
            nd(kind)
                .equals(ND_OPTION, &[option])
                .pair_not_in(ND_OPTION_ETHER, "macs")
                .drop(),
        );
    }
    rules.push(nd(133).above(IP6_PAYLOAD_LEN, &[0, 16]).drop());
    rules.push(
        nd(133)
            .equals(RS_OPTION, &[1])
            .pair_not_in(RS_OPTION_ETHER, "macs")
            .drop(),
    );
    rules.extend(nd_behind_extension_headers());
    rules
}

/// RFC 6980 in spirit: neighbour discovery with extension headers has no honest use, and its
/// fields lie where the other rules do not look.
fn nd_behind_extension_headers() -> Vec<Rule> {
    (133_u8..=137)
        .map(|kind| {
            Rule::new()
                .equals(ETHER_TYPE, &IP6)
                .differs(IP6_NEXT_HEADER, &[ICMPV6])
                .l4proto(ICMPV6)
                .equals(ICMP_TYPE, &[kind])
                .drop()
        })
        .collect()
}

/// Only ARP, IPv4 and IPv6: a VLAN tag or another protocol would carry anything past the rules.
fn known_protocols_only() -> Rule {
    Rule::new()
        .differs(ETHER_TYPE, &ARP)
        .differs(ETHER_TYPE, &IP4)
        .differs(ETHER_TYPE, &IP6)
        .drop()
}

fn ip4_rules() -> Vec<Rule> {
    let ip = || Rule::new().equals(ETHER_TYPE, &IP4);
    let any = Ipv4Addr::UNSPECIFIED.octets();
    vec![
        known_protocols_only(),
        // A probe (sender 0.0.0.0) claims nothing.
        Rule::new()
            .equals(ETHER_TYPE, &ARP)
            .differs(ARP_SENDER_IP, &any)
            .pair_not_in(ARP_SENDER_IP, "ip4s")
            .drop(),
        // Nobody but the network answers DHCP.
        ip().l4proto(UDP)
            .equals(SPORT, &67_u16.to_be_bytes())
            .drop(),
        ip().l4proto(UDP)
            .equals(SPORT, &68_u16.to_be_bytes())
            .equals(DPORT, &67_u16.to_be_bytes())
            .equals(IP_SADDR, &any)
            .equals(IP_DADDR, &Ipv4Addr::BROADCAST.octets())
            .verdict(Verdict::Return),
        ip().pair_not_in(IP_SADDR, "ip4s").drop(),
    ]
}

fn ip6_rules() -> Vec<Rule> {
    let ip6 = || Rule::new().equals(ETHER_TYPE, &IP6);
    let icmp = |kind: u8| ip6().l4proto(ICMPV6).equals(ICMP_TYPE, &[kind]);
    let any = Ipv6Addr::UNSPECIFIED.octets();
    let mut rules = vec![
        known_protocols_only(),
        // Router advertisements and redirects are the network's to send, and so is DHCPv6.
        icmp(134).drop(),
        icmp(137).drop(),
        ip6()
            .l4proto(UDP)
            .equals(SPORT, &547_u16.to_be_bytes())
            .drop(),
    ];
    rules.extend(nd_behind_extension_headers());
    rules.extend([
        icmp(136).pair_not_in(ND_TARGET, "ip6s").drop(),
        // Duplicate address detection, asked from `::`, claims its target.
        icmp(135)
            .equals(IP6_SADDR, &any)
            .pair_not_in(ND_TARGET, "ip6s")
            .drop(),
        ip6()
            .equals(IP6_SADDR, &any)
            .l4proto(ICMPV6)
            .verdict(Verdict::Return),
        ip6().pair_not_in(IP6_SADDR, "ip6s").drop(),
    ]);
    rules
}

/// Sets and keys that a port puts into the bridge table.
fn port_elements(port: &PortGuard) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let name = ifname_key(&port.host_name);
    let mut out = Vec::new();
    if let Some(mac) = port.mac {
        out.push(("macs", vec![concat_key(&port.host_name, &mac)]));
        out.push(("mac_on", vec![name.clone()]));
    }
    match &port.ipv4 {
        AddressFilter::Off => {}
        AddressFilter::Nothing => out.push(("ip4_none", vec![name.clone()])),
        AddressFilter::Only(allowed) => {
            let keys = allowed
                .iter()
                .map(|a| concat_key(&port.host_name, &a.octets()))
                .collect();
            out.push(("ip4s", keys));
            out.push(("ip4_on", vec![name.clone()]));
        }
    }
    match &port.ipv6 {
        AddressFilter::Off => {}
        AddressFilter::Nothing => out.push(("ip6_none", vec![name.clone()])),
        AddressFilter::Only(allowed) => {
            let keys = allowed
                .iter()
                .map(|a| concat_key(&port.host_name, &a.octets()))
                .collect();
            out.push(("ip6s", keys));
            out.push(("ip6_on", vec![name.clone()]));
        }
    }
    if port.isolated {
        out.push(("isolated", vec![name]));
    }
    out
}

fn limit_name(port: &PortGuard) -> String {
    // The rate is a part of the name because the kernel cannot change a limit in place.
    format!("{}.{}", port.host_name, port.egress_bps)
}

fn limit_family(port: &PortGuard) -> u8 {
    if port.bridged { BRIDGE } else { INET }
}

fn add_port(batch: &mut Batch, table: &str, port: &PortGuard) {
    for (set, keys) in port_elements(port) {
        batch.add_elements(BRIDGE, table, set, &keys);
    }
    if port.egress_bps > 0 {
        let family = limit_family(port);
        let limit = limit_name(port);
        let bytes = (port.egress_bps / 8).max(1);
        let burst = (bytes / 10).clamp(LEAST_BURST, u64::from(u32::MAX));
        let burst = u32::try_from(burst).unwrap_or(u32::MAX);
        batch.add_limit(family, table, &limit, bytes, burst);
        batch.map_limit(
            family,
            table,
            "egress",
            &ifname_key(&port.host_name),
            &limit,
        );
    }
}

fn remove_port(batch: &mut Batch, table: &str, port: &PortGuard) {
    for (set, keys) in port_elements(port) {
        // Adding first makes removing safe to repeat.
        batch.add_elements(BRIDGE, table, set, &keys);
        batch.remove_elements(BRIDGE, table, set, &keys);
    }
    if port.egress_bps > 0 {
        let family = limit_family(port);
        let key = ifname_key(&port.host_name);
        batch.remove_elements(family, table, "egress", &[key]);
        batch.remove_limit(family, table, &limit_name(port));
    }
}
