//! A network's own table: translation of what leaves it, and the accept rules of its services.

use super::expr::{DPORT, ICMP, ICMPV6, Rule, TCP, UDP};
use super::{Batch, FORWARD, INET, INPUT, IPV4, IPV6, NfError, POSTROUTING};
use crate::model::plan::{Family, NetworkPlan};

/// srcnat is 100; "before" and "after" are relative to the rules of others there.
const BEFORE: i32 = 90;
const AFTER: i32 = 110;

/// Name of a network's table.
pub(crate) fn table(prefix: &str, network: &str) -> String {
    format!("{prefix}.{network}")
}

/// Replaces the network's table in one transaction.
pub(crate) fn apply(prefix: &str, plan: &NetworkPlan) -> Result<(), NfError> {
    let table = table(prefix, &plan.name);
    let mut batch = Batch::new();
    batch.remove_table(INET, &table);
    batch.add_table(INET, &table);
    add_forward(&mut batch, &table, plan);
    add_input(&mut batch, &table, plan);
    for family in plan.families() {
        add_nat(&mut batch, &table, family);
    }
    batch.commit()
}

/// Removes the network's table, if it is there.
pub(crate) fn remove(prefix: &str, network: &str) -> Result<(), NfError> {
    let mut batch = Batch::new();
    batch.remove_table(INET, &table(prefix, network));
    batch.commit()
}

fn number(family: &Family) -> u8 {
    if family.subnet.addr().is_ipv4() {
        IPV4
    } else {
        IPV6
    }
}

fn add_forward(batch: &mut Batch, table: &str, plan: &NetworkPlan) {
    batch.add_base_chain(INET, table, "forward", ("filter", FORWARD, 0));
    for family in plan.families().filter(|f| f.firewall) {
        let match_family = || Rule::new().nfproto(number(family));
        let rules = if family.routing {
            [
                match_family().iifname(&plan.name).accept(),
                match_family().oifname(&plan.name).accept(),
            ]
        } else {
            [
                match_family().iifname(&plan.name).reject(),
                match_family().oifname(&plan.name).reject(),
            ]
        };
        for rule in rules {
            batch.add_rule(INET, table, "forward", rule);
        }
    }
}

fn add_input(batch: &mut Batch, table: &str, plan: &NetworkPlan) {
    batch.add_base_chain(INET, table, "input", ("filter", INPUT, 0));
    for family in plan.families().filter(|f| f.firewall) {
        let on_bridge = |proto: u8| {
            Rule::new()
                .nfproto(number(family))
                .iifname(&plan.name)
                .l4proto(proto)
        };
        let v4 = number(family) == IPV4;
        for proto in [TCP, UDP] {
            let rule = on_bridge(proto)
                .equals(DPORT, &53_u16.to_be_bytes())
                .accept();
            batch.add_rule(INET, table, "input", rule);
        }
        if family.dhcp.is_some() {
            let port: u16 = if v4 { 67 } else { 547 };
            let rule = on_bridge(UDP).equals(DPORT, &port.to_be_bytes()).accept();
            batch.add_rule(INET, table, "input", rule);
        }
        let icmp = if v4 { ICMP } else { ICMPV6 };
        batch.add_rule(INET, table, "input", on_bridge(icmp).accept());
    }
}

fn add_nat(batch: &mut Batch, table: &str, family: &Family) {
    if !family.nat {
        return;
    }
    let (chain, priority) = match (number(family) == IPV4, family.nat_after) {
        (true, false) => ("nat4", BEFORE),
        (true, true) => ("nat4", AFTER),
        (false, false) => ("nat6", BEFORE),
        (false, true) => ("nat6", AFTER),
    };
    batch.add_base_chain(INET, table, chain, ("nat", POSTROUTING, priority));
    let net = family.subnet.trunc();
    let rule = Rule::new().source_in(net).target_not_in(net);
    let rule = match family.nat_address {
        Some(address) => rule.snat(address),
        None => rule.masquerade(),
    };
    batch.add_rule(INET, table, chain, rule);
}
