//! dnsmasq's command line and its records of hosts. Everything is an argument of its own or a
//! line made of checked values: no text of a user is ever parsed as configuration, but
//! `raw.dnsmasq`, which is exactly that.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::mac::Mac;
use super::plan::{DnsMode, Family, NetworkPlan};

/// Where a network's dnsmasq has its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Directory that it may write to.
    pub dir: PathBuf,
}

impl Paths {
    /// Files of one network below the service's directory for dnsmasq.
    pub fn new(root: &Path, network: &str) -> Self {
        Self {
            dir: root.join(network),
        }
    }

    /// Its leases; kept over restarts.
    pub fn leases(&self) -> PathBuf {
        self.dir.join("leases")
    }

    /// Its process id.
    pub fn pid(&self) -> PathBuf {
        self.dir.join("pid")
    }

    /// One file per port; read when it appears.
    pub fn hosts(&self) -> PathBuf {
        self.dir.join("hosts.d")
    }

    /// `raw.dnsmasq`. The digest in the name makes a change of it a change of the command line.
    pub fn raw(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("raw-{digest}.conf"))
    }
}

/// Who it runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User's name.
    pub user: String,
    /// Group's name.
    pub group: String,
}

/// The arguments, without the program's name.
pub fn arguments(
    plan: &NetworkPlan,
    paths: &Paths,
    raw: &Path,
    account: Option<&Account>,
) -> Vec<String> {
    let mut args = vec![
        format!("--conf-file={}", raw.display()),
        format!("--pid-file={}", paths.pid().display()),
        format!("--dhcp-leasefile={}", paths.leases().display()),
        format!("--dhcp-hostsdir={}", paths.hosts().display()),
        format!("--interface={}", plan.name),
        "--except-interface=lo".to_owned(),
        "--bind-interfaces".to_owned(),
        "--strict-order".to_owned(),
        "--no-ping".to_owned(),
        "--no-hosts".to_owned(),
        "--quiet-dhcp".to_owned(),
        "--quiet-dhcp6".to_owned(),
        "--quiet-ra".to_owned(),
        "--dhcp-no-override".to_owned(),
        "--dhcp-authoritative".to_owned(),
        "--dhcp-rapid-commit".to_owned(),
        // A lease belongs to a MAC. Client identifiers are the guest's to invent, each one worth
        // another address of the pool.
        "--dhcp-ignore-clid".to_owned(),
    ];
    match account {
        Some(account) => {
            args.push(format!("--user={}", account.user));
            args.push(format!("--group={}", account.group));
        }
        None => args.push("--user=root".to_owned()),
    }
    for family in plan.families() {
        args.push(format!("--listen-address={}", family.gateway()));
    }
    dns_arguments(plan, &mut args);
    if let Some(family) = &plan.ipv4 {
        ipv4_arguments(plan, family, &mut args);
    }
    if let Some(family) = &plan.ipv6 {
        ipv6_arguments(plan, family, &mut args);
    }
    args
}

fn dns_arguments(plan: &NetworkPlan, args: &mut Vec<String>) {
    let domain = &plan.dns.domain;
    args.push(format!("--domain={domain}"));
    args.push(format!("--local=/{domain}/"));
    match plan.dns.mode {
        // Names only for ports that Berth knows; a stray client cannot claim one.
        DnsMode::Managed => args.push("--dhcp-ignore-names=tag:!known".to_owned()),
        DnsMode::Dynamic => {}
        DnsMode::None => args.push("--dhcp-ignore-names".to_owned()),
    }
    if plan.dns.mode != DnsMode::None {
        args.push(format!("--interface-name=_gateway.{domain},{}", plan.name));
    }
    if !plan.dns.search.is_empty() {
        let list = plan.dns.search.join(",");
        args.push(format!("--dhcp-option-force=option:domain-search,{list}"));
        args.push(format!("--dhcp-option-force=option6:domain-search,{list}"));
    }
}

fn ipv4_arguments(plan: &NetworkPlan, family: &Family, args: &mut Vec<String>) {
    let Some(dhcp) = &family.dhcp else { return };
    if let Some(gateway) = dhcp.gateway {
        args.push(format!("--dhcp-option-force=3,{gateway}"));
    } else if !family.routing {
        // An empty option: no router is announced.
        args.push("--dhcp-option-force=3".to_owned());
    }
    if let Some(mtu) = plan.mtu.filter(|m| *m != 1500) {
        args.push(format!("--dhcp-option-force=26,{mtu}"));
    }
    for (first, last) in &dhcp.ranges {
        args.push(format!(
            "--dhcp-range={first},{last},{},{}",
            family.subnet.netmask(),
            dhcp.expiry
        ));
    }
}

fn ipv6_arguments(plan: &NetworkPlan, family: &Family, args: &mut Vec<String>) {
    let bridge = &plan.name;
    match &family.dhcp {
        Some(dhcp) if dhcp.stateful => {
            for (first, last) in &dhcp.ranges {
                args.push(format!(
                    "--dhcp-range={first},{last},{},{}",
                    family.subnet.prefix_len(),
                    dhcp.expiry
                ));
            }
        }
        Some(_) => args.push(format!(
            "--dhcp-range=::,constructor:{bridge},ra-stateless,ra-names"
        )),
        None if family.subnet.prefix_len() == 64 => {
            args.push(format!("--dhcp-range=::,constructor:{bridge},ra-only"));
        }
        // Nobody can choose an address by himself in a longer prefix, so nothing is announced.
        None => return,
    }
    args.push("--enable-ra".to_owned());
    if !family.routing {
        // Lifetime 0: not a default router.
        args.push(format!("--ra-param={bridge},0,0"));
    }
}

/// What dnsmasq knows of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRecord {
    /// The port's id; names the file.
    pub port: String,
    /// Whose it is.
    pub mac: Mac,
    /// Static addresses.
    pub addresses: Vec<IpAddr>,
    /// DNS name, absent where the network has none.
    pub hostname: Option<String>,
}

impl HostRecord {
    /// The record's file: one line.
    pub fn line(&self) -> String {
        let mut line = self.mac.to_string();
        for address in &self.addresses {
            match address {
                IpAddr::V4(a) => line.push_str(&format!(",{a}")),
                IpAddr::V6(a) => line.push_str(&format!(",[{a}]")),
            }
        }
        if let Some(hostname) = &self.hostname {
            line.push(',');
            line.push_str(hostname);
        }
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::keys;

    fn args_of(pairs: &[(&str, &str)]) -> Vec<String> {
        let config = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let plan = keys::plan("br0", "u", Mac([0, 0x16, 0x3e, 0, 0, 1]), &config).unwrap();
        let paths = Paths::new(Path::new("/x"), "br0");
        arguments(&plan, &paths, &paths.raw("0"), None)
    }

    #[test]
    fn families_get_their_ranges() {
        let args = args_of(&[
            ("ipv4.address", "10.0.0.1/24"),
            ("ipv4.dhcp.expiry", "2h"),
            ("ipv6.address", "fd42::1/64"),
        ]);
        assert!(args.contains(&"--dhcp-range=10.0.0.2,10.0.0.254,255.255.255.0,2h".to_owned()));
        assert!(args.contains(&"--dhcp-range=::,constructor:br0,ra-stateless,ra-names".to_owned()));
        let stateful = args_of(&[
            ("ipv6.address", "fd42::1/64"),
            ("ipv6.dhcp.stateful", "true"),
        ]);
        assert!(
            stateful
                .iter()
                .any(|a| a.starts_with("--dhcp-range=fd42::2,fd42::ffff"))
        );
    }

    #[test]
    fn without_routing_no_router_is_announced() {
        let args = args_of(&[
            ("ipv4.address", "10.0.0.1/24"),
            ("ipv4.routing", "false"),
            ("ipv6.address", "fd42::1/64"),
            ("ipv6.routing", "false"),
        ]);
        assert!(args.contains(&"--dhcp-option-force=3".to_owned()));
        assert!(args.contains(&"--ra-param=br0,0,0".to_owned()));
    }

    #[test]
    fn a_record_is_one_line() {
        let record = HostRecord {
            port: "p".into(),
            mac: Mac([0, 0x16, 0x3e, 0, 0, 1]),
            addresses: vec!["10.0.0.5".parse().unwrap(), "fd42::5".parse().unwrap()],
            hostname: Some("c1".into()),
        };
        assert_eq!(record.line(), "00:16:3e:00:00:01,10.0.0.5,[fd42::5],c1\n");
    }
}
