//! Other firewalls on the host. In nf_tables an accept in one table does not help against a drop
//! in another, so their rules decide whether guests reach the world.
//!
//! Docker offers a chain for others' rules (DOCKER-USER): Berth puts accepts there. Everything
//! else is only read, and the rule in the way is named in a warning.

use super::expr::Rule;
use super::{Attrs, Batch, FORWARD, GETCHAIN, GETRULE, INET, INPUT, IPV4, IPV6, NfError, dump};
use crate::host::wire;
use crate::model::plan::NetworkPlan;

const DOCKER_CHAIN: &str = "DOCKER-USER";

/// A chain that belongs to somebody else and ends in a drop.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Obstacle {
    family: u8,
    table: String,
    chain: String,
    hook: u32,
    why: &'static str,
}

#[derive(Debug)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    hook: Option<u32>,
    drops: bool,
}

#[derive(Debug)]
struct ForeignRule {
    handle: u64,
    comment: Option<String>,
    verdict: Option<i32>,
    unconditional: bool,
    compared: Vec<Vec<u8>>,
}

/// Looks at what others have set up, adds accepts where they invite them, and says what is left
/// in the way of this network.
pub(crate) fn settle(prefix: &str, plan: &NetworkPlan) -> Result<Vec<String>, NfError> {
    let chains = chains()?;
    let mut warnings = Vec::new();
    let wanted = accepts(prefix, plan);
    for chain in chains.iter().filter(|c| c.name == DOCKER_CHAIN) {
        if let Err(error) = insert_missing(chain, &wanted) {
            warnings.push(format!(
                "Docker drops forwarded packets, and its chain {DOCKER_CHAIN} cannot be changed: {}",
                error.source
            ));
        }
    }
    let families: Vec<u8> = plan
        .families()
        .map(|f| {
            if f.subnet.addr().is_ipv4() {
                IPV4
            } else {
                IPV6
            }
        })
        .collect();
    for chain in &chains {
        let Some(obstacle) = obstacle(prefix, chain)? else {
            continue;
        };
        let concerns = obstacle.family == INET || families.contains(&obstacle.family);
        if !concerns || is_settled(&chains, chain, &plan.name)? {
            continue;
        }
        warnings.push(sentence(&obstacle, plan));
    }
    Ok(warnings)
}

/// Removes Berth's rules for a network from others' chains.
pub(crate) fn withdraw(prefix: &str, network: &str) -> Result<(), NfError> {
    withdraw_tagged(|comment| comment == tag(prefix, network))
}

/// Removes all rules with this prefix from others' chains.
pub(crate) fn withdraw_all(prefix: &str) -> Result<(), NfError> {
    let start = format!("{prefix}.");
    withdraw_tagged(|comment| comment.starts_with(&start))
}

fn withdraw_tagged(is_ours: impl Fn(&str) -> bool) -> Result<(), NfError> {
    let mut batch = Batch::new();
    for chain in chains()?.iter().filter(|c| c.name == DOCKER_CHAIN) {
        for rule in rules(chain)? {
            if rule.comment.as_deref().is_some_and(&is_ours) {
                batch.remove_rule(chain.family, &chain.table, &chain.name, rule.handle);
            }
        }
    }
    batch.commit()
}

fn tag(prefix: &str, network: &str) -> String {
    format!("{prefix}.{network}")
}

/// What a bridge needs of a chain in the forward path: its guests' packets out, answers back in.
/// Only expressions that `iptables-nft` can show, or the host's `iptables` would refuse its own
/// table from then on; so no `ct state` for the answers. What it lets in besides, the host's
/// routing to the bridge's subnet lets in without Docker as well.
fn accepts(prefix: &str, plan: &NetworkPlan) -> Vec<Rule> {
    let tag = tag(prefix, &plan.name);
    vec![
        Rule::new()
            .oifname(&plan.name)
            .counter()
            .accept()
            .comment(&tag),
        Rule::new()
            .iifname(&plan.name)
            .counter()
            .accept()
            .comment(&tag),
    ]
}

fn insert_missing(chain: &Chain, wanted: &[Rule]) -> Result<(), NfError> {
    let present = rules(chain)?;
    let ours = wanted[0].comment.as_deref();
    if present
        .iter()
        .filter(|r| r.comment.as_deref() == ours)
        .count()
        == wanted.len()
    {
        return Ok(());
    }
    let mut batch = Batch::new();
    for rule in present.iter().filter(|r| r.comment.as_deref() == ours) {
        batch.remove_rule(chain.family, &chain.table, &chain.name, rule.handle);
    }
    for rule in wanted {
        batch.insert_rule(chain.family, &chain.table, &chain.name, rule.clone());
    }
    batch.commit()
}

fn chains() -> Result<Vec<Chain>, NfError> {
    Ok(dump(GETCHAIN, 0, &Attrs::new())?
        .into_iter()
        .filter(|(family, _)| [INET, IPV4, IPV6].contains(family))
        .filter_map(|(family, attrs)| {
            let hook = wire::find(&attrs, 4).and_then(|h| wire::find(h, 1).map(wire::be32));
            Some(Chain {
                family,
                table: wire::text(wire::find(&attrs, 1)?),
                name: wire::text(wire::find(&attrs, 3)?),
                hook,
                drops: wire::find(&attrs, 5).map(wire::be32) == Some(0),
            })
        })
        .collect())
}

fn rules(chain: &Chain) -> Result<Vec<ForeignRule>, NfError> {
    let filter = Attrs::new().text(1, &chain.table).text(2, &chain.name);
    Ok(dump(GETRULE, chain.family, &filter)?
        .into_iter()
        // Old kernels ignore the filter.
        .filter(|(family, attrs)| {
            *family == chain.family
                && wire::find(attrs, 1).map(wire::text).as_deref() == Some(&chain.table)
                && wire::find(attrs, 2).map(wire::text).as_deref() == Some(&chain.name)
        })
        .map(|(_, attrs)| parse_rule(&attrs))
        .collect())
}

fn parse_rule(attrs: &[u8]) -> ForeignRule {
    let mut rule = ForeignRule {
        handle: wire::find(attrs, 3)
            .and_then(|v| v.get(..8))
            .and_then(|b| b.try_into().ok())
            .map_or(0, u64::from_be_bytes),
        comment: wire::find(attrs, 7).and_then(comment),
        verdict: None,
        unconditional: true,
        compared: Vec::new(),
    };
    let Some(list) = wire::find(attrs, 4) else {
        return rule;
    };
    for (_, expression) in wire::attributes(list) {
        let name = wire::find(expression, 1)
            .map(wire::text)
            .unwrap_or_default();
        let data = wire::find(expression, 2).unwrap_or(&[]);
        match name.as_str() {
            "counter" | "log" | "notrack" => {}
            "reject" => rule.verdict = Some(0),
            "immediate" => {
                if let Some(verdict) = wire::find(data, 2).and_then(|d| wire::find(d, 2)) {
                    rule.verdict = wire::find(verdict, 1).map(|c| wire::be32(c).cast_signed());
                }
            }
            "target" => {
                rule.verdict = wire::find(data, 1)
                    .map(wire::text)
                    .and_then(|t| (t == "REJECT").then_some(0));
            }
            "cmp" => {
                rule.unconditional = false;
                if let Some(value) = wire::find(data, 3).and_then(|d| wire::find(d, 1)) {
                    rule.compared.push(value.to_vec());
                }
            }
            _ => rule.unconditional = false,
        }
    }
    rule
}

/// User data of a rule is a run of (type, length, value); type 0 is its comment.
fn comment(mut user: &[u8]) -> Option<String> {
    while let [kind, len, rest @ ..] = user {
        let value = rest.get(..usize::from(*len))?;
        if *kind == 0 {
            return Some(wire::text(value));
        }
        user = &rest[usize::from(*len)..];
    }
    None
}

fn obstacle(prefix: &str, chain: &Chain) -> Result<Option<Obstacle>, NfError> {
    let Some(hook @ (FORWARD | INPUT)) = chain.hook else {
        return Ok(None);
    };
    if chain.table == prefix || chain.table.starts_with(&format!("{prefix}.")) {
        return Ok(None);
    }
    let why = if chain.drops {
        "policy drop"
    } else if rules(chain)?
        .last()
        .is_some_and(|r| r.unconditional && r.verdict == Some(0))
    {
        "ends in a drop or reject of everything"
    } else {
        return Ok(None);
    };
    Ok(Some(Obstacle {
        family: chain.family,
        table: chain.table.clone(),
        chain: chain.name.clone(),
        hook,
        why,
    }))
}

/// Whether some accepting or jumping rule of the same table names the bridge, or for what is
/// forwarded Docker's chain stands in front (Berth's accepts are in it).
fn is_settled(chains: &[Chain], base: &Chain, bridge: &str) -> Result<bool, NfError> {
    let mut name = bridge.as_bytes().to_vec();
    name.push(0);
    for chain in chains
        .iter()
        .filter(|c| c.family == base.family && c.table == base.table)
    {
        if chain.name == DOCKER_CHAIN && base.hook == Some(INPUT) {
            continue;
        }
        for rule in rules(chain)? {
            let names_it = rule
                .compared
                .iter()
                .any(|v| v.starts_with(&name) || v == bridge.as_bytes());
            if names_it && rule.verdict.is_some_and(|v| v == 1 || v == -3 || v == -4) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn sentence(obstacle: &Obstacle, plan: &NetworkPlan) -> String {
    let family = match obstacle.family {
        IPV4 => "ip",
        IPV6 => "ip6",
        _ => "inet",
    };
    let bridge = &plan.name;
    let (effect, ufw) = if obstacle.hook == FORWARD {
        (
            "packets of guests to other networks are dropped",
            format!("ufw route allow in on {bridge}; ufw route allow out on {bridge}"),
        )
    } else {
        (
            "DHCP and DNS of guests are dropped",
            format!("ufw allow in on {bridge}"),
        )
    };
    let cure = if obstacle.table == "firewalld" {
        format!(
            "firewall-cmd --permanent --zone=trusted --change-interface={bridge}; firewall-cmd --reload"
        )
    } else if obstacle.table == "filter" {
        ufw
    } else {
        format!("accept {bridge} in that chain")
    };
    format!(
        "The chain \"{family} {} {}\" ({}) of another firewall is in the way: {effect}. To let them through: {cure}",
        obstacle.table, obstacle.chain, obstacle.why
    )
}
