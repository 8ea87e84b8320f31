use std::net::IpAddr;

use berth_proto::network as proto;
use berth_proto::types;
use prost::Message;

use crate::app::{Lease, LeaseKind, NetworkView};
use crate::host::{Link, LinkKind, Scope};
use crate::model::records::{PortKind, PortRecord};

pub(super) fn network(view: &NetworkView) -> proto::Network {
    let record = &view.record;
    let status = match (view.managed, view.trouble.is_empty()) {
        (true, true) => "Created",
        (true, false) => "Errored",
        (false, _) => "",
    };
    proto::Network {
        name: record.resource(),
        uid: record.uid.clone(),
        description: record.description.clone(),
        r#type: view.kind.clone(),
        managed: view.managed,
        status: status.to_owned(),
        status_message: view.trouble.clone(),
        config: record.config.clone().into_iter().collect(),
        used_by: view.used_by.clone(),
        etag: if view.managed {
            record.etag()
        } else {
            String::new()
        },
        warnings: view.warnings.clone(),
    }
}

pub(super) fn network_bytes(view: &NetworkView) -> Vec<u8> {
    network(view).encode_to_vec()
}

pub(super) fn port(record: &PortRecord) -> types::Port {
    let kind = match record.kind {
        PortKind::Bridged => types::port::Kind::Bridged,
        PortKind::P2p => types::port::Kind::P2p,
        PortKind::Macvlan => types::port::Kind::Macvlan,
    };
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    types::Port {
        name: record.resource(),
        uid: record.uid.clone(),
        kind: kind.into(),
        host_name: record.host_name.clone(),
        guest_name: record.spec.guest_name.clone(),
        mac: record.mac.clone(),
        mtu: i32::try_from(record.mtu).unwrap_or(0),
        parent: record.parent.clone(),
        addresses: record.addresses.iter().map(IpAddr::to_string).collect(),
        routes: record.routes.iter().map(ToString::to_string).collect(),
        ingress_bps: number(record.ingress_bps),
        egress_bps: number(record.egress_bps),
        host_mac: String::new(),
        generation: record.generation,
        holder: record.spec.holder.clone(),
    }
}

pub(super) fn port_bytes(record: &PortRecord) -> Vec<u8> {
    port(record).encode_to_vec()
}

pub(super) fn lease(lease: &Lease) -> proto::Lease {
    let kind = match lease.kind {
        LeaseKind::Static => "static",
        LeaseKind::Dynamic => "dynamic",
        LeaseKind::Gateway => "gateway",
    };
    proto::Lease {
        hostname: lease.hostname.clone(),
        hwaddr: lease.mac.clone(),
        address: lease.address.to_string(),
        r#type: kind.to_owned(),
        project: lease.project.clone(),
    }
}

pub(super) fn state(link: &Link, upper: Vec<String>) -> proto::NetworkState {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let kind = if link.kind == LinkKind::Loopback {
        "loopback"
    } else if link.point_to_point {
        "point-to-point"
    } else if link.broadcast {
        "broadcast"
    } else {
        "unknown"
    };
    let [bytes_received, packets_received, bytes_sent, packets_sent] = link.counters.map(number);
    proto::NetworkState {
        addresses: link
            .addresses
            .iter()
            .map(|a| proto::network_state::Address {
                family: if a.net.addr().is_ipv4() {
                    "inet"
                } else {
                    "inet6"
                }
                .to_owned(),
                address: a.net.addr().to_string(),
                netmask: a.net.prefix_len().to_string(),
                scope: match a.scope {
                    Scope::Global => "global",
                    Scope::Link => "link",
                    Scope::Local => "local",
                }
                .to_owned(),
            })
            .collect(),
        counters: Some(proto::network_state::Counters {
            bytes_received,
            bytes_sent,
            packets_received,
            packets_sent,
        }),
        hwaddr: link.mac.map(|m| m.to_string()).unwrap_or_default(),
        mtu: i32::try_from(link.mtu).unwrap_or(i32::MAX),
        state: if link.up { "up" } else { "down" }.to_owned(),
        r#type: kind.to_owned(),
        bridge: link.bridge.as_ref().map(|b| proto::network_state::Bridge {
            id: b.id.clone(),
            stp: b.stp,
            forward_delay: b.forward_delay.into(),
            vlan_default: b.vlan_default.into(),
            vlan_filtering: b.vlan_filtering,
            upper_devices: upper,
        }),
    }
}
