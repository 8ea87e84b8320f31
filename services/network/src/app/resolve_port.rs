//! From what is asked of a port to everything decided about it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use berth_rpc::{Error, names};

use super::{App, plan_of};
use crate::host::LinkKind;
use crate::model::allocate;
use crate::model::mac::Mac;
use crate::model::nic::{AddressOption, Options};
use crate::model::plan::{DnsMode, Family, NetworkPlan};
use crate::model::records::{Filter, NetworkRecord, PortKind, PortRecord, PortSpec};
use crate::model::{is_hostname, is_link_name};

/// Where a port goes.
pub(super) struct Place {
    pub(super) kind: PortKind,
    /// Link on the host: bridge or parent; empty for p2p.
    pub(super) parent: String,
    /// The managed network, with its plan.
    pub(super) network: Option<(NetworkRecord, NetworkPlan)>,
}

impl Place {
    pub(super) fn plan(&self) -> Option<&NetworkPlan> {
        self.network.as_ref().map(|(_, plan)| plan)
    }
}

fn bad(key: &str, sentence: impl std::fmt::Display) -> Error {
    Error::invalid(
        format!("spec.config.{key}"),
        format!("Invalid value for device option {key:?}: {sentence}"),
    )
}

impl App {
    /// Finds the network or link that a port goes to.
    pub(super) async fn place(
        &self,
        parent: &names::Network,
        options: &Options,
    ) -> Result<Place, Error> {
        if parent.network != "-" {
            return self.place_on_network(parent, options).await;
        }
        if options.network.is_some() {
            return Err(bad(
                "network",
                "ports on a network go below its name, not below \"-\"",
            ));
        }
        let kind = options
            .kind
            .ok_or_else(|| bad("nictype", "it is needed where no network is given"))?;
        if kind == PortKind::P2p {
            return Ok(Place {
                kind,
                parent: String::new(),
                network: None,
            });
        }
        let link = options
            .parent
            .clone()
            .ok_or_else(|| bad("parent", "it is needed"))?;
        if kind == PortKind::Bridged
            && let Some(record) = self.store.network(&link).await?
        {
            let plan = plan_of(&record)?;
            return Ok(Place {
                kind,
                parent: link,
                network: Some((record, plan)),
            });
        }
        let Some(found) = self.host.link(&link).await? else {
            return Err(Error::precondition(
                "NO_LINK",
                format!("Parent interface {link:?} does not exist"),
            ));
        };
        if kind == PortKind::Bridged && found.kind != LinkKind::Bridge {
            return Err(bad("parent", format!("{link:?} is not a bridge")));
        }
        Ok(Place {
            kind,
            parent: link,
            network: None,
        })
    }

    async fn place_on_network(
        &self,
        parent: &names::Network,
        options: &Options,
    ) -> Result<Place, Error> {
        let name = &parent.network;
        if options.network.as_ref().is_some_and(|n| n != name) {
            return Err(bad("network", format!("the port is on network {name:?}")));
        }
        if options.network.is_some() && options.kind.is_some() {
            return Err(bad("nictype", "it cannot be used together with network"));
        }
        if options.kind.is_some_and(|k| k != PortKind::Bridged) {
            return Err(bad("nictype", "a port on a bridge network is \"bridged\""));
        }
        if options.parent.as_ref().is_some_and(|p| p != name) {
            return Err(bad("parent", format!("the port is on network {name:?}")));
        }
        let record = self.managed(&parent.project, name).await?;
        let plan = plan_of(&record)?;
        Ok(Place {
            kind: PortKind::Bridged,
            parent: name.clone(),
            network: Some((record, plan)),
        })
    }

    /// Decides everything about a port. `old` is what it was, whose choices are kept.
    pub(super) async fn resolve(
        &self,
        name: &names::Port,
        spec: PortSpec,
        place: &Place,
        options: &Options,
        old: Option<&PortRecord>,
    ) -> Result<PortRecord, Error> {
        check_spec(&spec)?;
        let mac = choose_mac(&spec, options, old)?;
        let host_name = match (&options.host_name, old) {
            (Some(given), _) => given.clone(),
            (None, Some(old)) => old.host_name.clone(),
            (None, None) => random_link_name(place.kind),
        };
        let dns_name = self.dns_name(&spec, place).await?;
        let uid = old.map_or_else(|| uuid::Uuid::now_v7().to_string(), |o| o.uid.clone());
        let mut record = PortRecord {
            uid,
            project: name.project.clone(),
            segment: name.network.clone(),
            id: name.port.clone(),
            network: place.network.as_ref().map(|(n, _)| n.uid.clone()),
            kind: place.kind,
            host_name,
            mac: mac.to_string(),
            mtu: options
                .mtu
                .or_else(|| place.plan().and_then(|p| p.mtu))
                .unwrap_or(0),
            parent: place.parent.clone(),
            dns_name,
            addresses: Vec::new(),
            routes: options.routes.clone(),
            ingress_bps: options.ingress_bps,
            egress_bps: options.egress_bps,
            mac_filtering: options.mac_filtering,
            ipv4_filter: Filter::Off,
            ipv6_filter: Filter::Off,
            isolated: options.isolated,
            generation: old.map_or(1, |o| o.generation + 1),
            spec,
        };
        if place.kind == PortKind::Bridged {
            self.choose_addresses(&mut record, place, options, old)
                .await?;
        }
        Ok(record)
    }

    async fn dns_name(&self, spec: &PortSpec, place: &Place) -> Result<Option<String>, Error> {
        let Some((network, plan)) = &place.network else {
            return Ok(None);
        };
        if spec.hostname.is_empty() || plan.dns.mode == DnsMode::None {
            return Ok(None);
        }
        // Names of instances are unique in their project only.
        let project = names::Instance::parse("spec.holder", &spec.holder).map(|i| i.project);
        let dns_name = match project {
            Ok(project) if project != network.project => format!("{}-{project}", spec.hostname),
            _ => spec.hostname.clone(),
        };
        if !is_hostname(&dns_name) {
            return Ok(None);
        }
        let other = self
            .store
            .dns_name_holder(&network.uid, &dns_name, &spec.holder)
            .await?;
        if let Some(holder) = other {
            let mut error = Error::new(
                berth_rpc::Code::AlreadyExists,
                "DNS_NAME_TAKEN",
                format!(
                    "Instance DNS name {dns_name:?} is already used on network {:?} by {holder}",
                    network.name
                ),
            );
            error.holders = vec![holder];
            return Err(error);
        }
        Ok(Some(dns_name))
    }

    async fn choose_addresses(
        &self,
        record: &mut PortRecord,
        place: &Place,
        options: &Options,
        old: Option<&PortRecord>,
    ) -> Result<(), Error> {
        let v4 = to_ip(options.ipv4);
        let v6 = to_ip(options.ipv6);
        let plan = place.plan();
        for (option, filtering, v4) in [
            (v4, options.ipv4_filtering, true),
            (v6, options.ipv6_filtering, false),
        ] {
            let family = plan.and_then(|p| if v4 { p.ipv4.as_ref() } else { p.ipv6.as_ref() });
            let key = if v4 { "ipv4.address" } else { "ipv6.address" };
            let mut filter = if filtering { Filter::Own } else { Filter::Off };
            match option {
                AddressOption::None => filter = Filter::Nothing,
                AddressOption::Given(address) => {
                    self.check_given(place, family, key, address, filtering)?;
                    record.addresses.push(address);
                }
                AddressOption::Unset if !filtering => {}
                AddressOption::Unset if plan.is_none() => {
                    return Err(bad(
                        key,
                        "filtering on a bridge that Berth does not manage needs an address or \"none\"",
                    ));
                }
                AddressOption::Unset => match family {
                    None => filter = Filter::Nothing,
                    // Guests choose their own from their MAC; no lease is needed.
                    Some(f) if !v4 && !f.dhcp.as_ref().is_some_and(|d| d.stateful) => {}
                    Some(f) => {
                        let address = self.pick_address(record, place, f, old).await?;
                        record.addresses.push(address);
                    }
                },
            }
            if v4 {
                record.ipv4_filter = filter;
            } else {
                record.ipv6_filter = filter;
            }
        }
        Ok(())
    }

    fn check_given(
        &self,
        place: &Place,
        family: Option<&Family>,
        key: &str,
        address: IpAddr,
        filtering: bool,
    ) -> Result<(), Error> {
        let Some((network, _)) = &place.network else {
            return if filtering {
                Ok(())
            } else {
                Err(bad(
                    key,
                    "a bridge that Berth does not manage gives no addresses; it is for filtering only",
                ))
            };
        };
        let name = &network.name;
        let Some(family) = family else {
            return Err(bad(key, format!("network {name:?} has no such addresses")));
        };
        match &family.dhcp {
            None => {
                return Err(bad(key, format!("DHCP is off on network {name:?}")));
            }
            Some(dhcp) if !dhcp.stateful => {
                return Err(bad(
                    key,
                    format!("network {name:?} has no ipv6.dhcp.stateful=true"),
                ));
            }
            Some(_) => {}
        }
        if !family.can_host(address) {
            return Err(bad(
                key,
                format!(
                    "{address} is not a free address of network {name:?} subnet {}",
                    family.subnet.trunc()
                ),
            ));
        }
        Ok(())
    }

    /// A port whose addresses are filtered has to have one that stays.
    async fn pick_address(
        &self,
        record: &PortRecord,
        place: &Place,
        family: &Family,
        old: Option<&PortRecord>,
    ) -> Result<IpAddr, Error> {
        let kept = old
            .filter(|o| o.network == record.network)
            .and_then(|o| o.addresses.iter().find(|a| family.can_host(**a)));
        if let Some(kept) = kept {
            return Ok(*kept);
        }
        let Some((network, _)) = &place.network else {
            return Err(Error::internal("an address was asked of no network"));
        };
        let ranges = family.dhcp.as_ref().map_or(&[][..], |d| &d.ranges);
        let mut taken: BTreeSet<IpAddr> = self
            .store
            .addresses(&network.uid, &record.uid)
            .await?
            .iter()
            .filter_map(|a| a.parse().ok())
            .collect();
        taken.insert(family.gateway());
        for lease in self.host.leases(&network.name).await? {
            if lease.mac.is_none_or(|m| m.to_string() != record.mac) {
                taken.insert(lease.address);
            }
        }
        allocate::pick_address(ranges, &taken).ok_or_else(|| {
            Error::exhausted(
                "NO_FREE_ADDRESS",
                format!("Network {:?} has no free address left", network.name),
            )
        })
    }
}

fn to_ip<A: Into<IpAddr>>(option: AddressOption<A>) -> AddressOption<IpAddr> {
    match option {
        AddressOption::Unset => AddressOption::Unset,
        AddressOption::None => AddressOption::None,
        AddressOption::Given(a) => AddressOption::Given(a.into()),
    }
}

fn check_spec(spec: &PortSpec) -> Result<(), Error> {
    if spec.holder.is_empty() || spec.holder.chars().any(char::is_control) {
        return Err(Error::invalid(
            "spec.holder",
            "A port needs a holder's name",
        ));
    }
    if !spec.hostname.is_empty() && !is_hostname(&spec.hostname) {
        return Err(Error::invalid(
            "spec.hostname",
            format!("{:?} is not a host name", spec.hostname),
        ));
    }
    if !spec.guest_name.is_empty() && !is_link_name(&spec.guest_name) {
        return Err(Error::invalid(
            "spec.guest_name",
            format!("{:?} is no link's name", spec.guest_name),
        ));
    }
    Ok(())
}

fn choose_mac(spec: &PortSpec, options: &Options, old: Option<&PortRecord>) -> Result<Mac, Error> {
    let given = if spec.mac.is_empty() {
        None
    } else {
        let mac = spec.mac.parse::<Mac>().ok().filter(|m| m.is_unicast());
        Some(mac.ok_or_else(|| {
            Error::invalid(
                "spec.mac",
                format!("{:?} is not a unicast MAC address", spec.mac),
            )
        })?)
    };
    if let (Some(a), Some(b)) = (given, options.mac)
        && a != b
    {
        return Err(bad("hwaddr", "it differs from spec.mac"));
    }
    if let Some(mac) = given.or(options.mac) {
        return Ok(mac);
    }
    match old {
        Some(old) => old.mac.parse().map_err(Error::internal),
        None => Ok(Mac::from_random(rand::random())),
    }
}

fn random_link_name(kind: PortKind) -> String {
    let prefix = match kind {
        PortKind::Bridged | PortKind::P2p => "veth",
        PortKind::Macvlan => "mac",
    };
    format!("{prefix}{:08x}", rand::random::<u32>())
}
