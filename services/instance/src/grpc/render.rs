//! What is known, as the API says it.

use std::collections::HashMap;

use berth_monitor::protocol::LinkState;
use berth_proto::instance::{self as proto, instance_state as wire};
use chrono::{DateTime, SecondsFormat};

use super::convert::{attachment_proto, devices_proto, port_proto};
use crate::Error;
use crate::app::{LiveState, NeededPort, NeededVolume, Plan, View};
use crate::model::keys::Config;
use crate::model::record::{Instance, Millis, Profile, Snapshot, Status};

/// RFC 3339; the epoch for 0, which is what LXD says of what never happened.
pub(super) fn time(millis: Millis) -> String {
    DateTime::from_timestamp_millis(millis)
        .unwrap_or_default()
        .to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// The other way; empty is 0.
pub(super) fn parse_time(field: &str, text: &str) -> Result<Millis, Error> {
    if text.is_empty() {
        return Ok(0);
    }
    DateTime::parse_from_rfc3339(text)
        .map(|t| t.timestamp_millis())
        .map_err(|_| Error::invalid(field, format!("{text:?} is no RFC 3339 time")))
}

fn config(config: &Config) -> HashMap<String, String> {
    config.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

pub(super) fn status(status: Status) -> proto::instance::Status {
    use proto::instance::Status as Wire;
    match status {
        Status::Stopped => Wire::Stopped,
        Status::Starting => Wire::Starting,
        Status::Running => Wire::Running,
        Status::Freezing => Wire::Freezing,
        Status::Frozen => Wire::Frozen,
        Status::Stopping => Wire::Stopping,
        Status::Error => Wire::Error,
    }
}

/// Record and status; state and snapshots are added for view FULL.
pub(super) fn instance(view: &View) -> proto::Instance {
    let record = &view.record;
    proto::Instance {
        name: record.resource(),
        uid: record.uid.clone(),
        description: record.description.clone(),
        r#type: proto::instance::Type::Container.into(),
        architecture: record.architecture.clone(),
        ephemeral: record.ephemeral,
        stateful: false,
        config: config(&record.config),
        devices: devices_proto(&record.devices),
        profiles: record.profiles.clone(),
        expanded_config: config(&view.expanded.config),
        expanded_devices: devices_proto(&view.expanded.devices),
        status: status(view.run.status).into(),
        create_time: time(record.create_time),
        last_used_time: time(record.last_used_time),
        etag: record.etag(),
        state: None,
        snapshots: Vec::new(),
        generation: view.run.generation.max(record.generation),
        attachments: record
            .attachments
            .iter()
            .map(|(n, a)| (n.clone(), attachment_proto(a)))
            .collect(),
        ports: record
            .ports
            .iter()
            .map(|(n, p)| (n.clone(), port_proto(p)))
            .collect(),
        snapshot_count: i32::try_from(view.snapshots.len()).unwrap_or(i32::MAX),
        status_message: view.run.message.clone(),
    }
}

/// With state and snapshots.
pub(super) fn full_instance(view: &View, live: &LiveState) -> proto::Instance {
    let mut full = instance(view);
    full.state = Some(state(view, live));
    full.snapshots = view
        .snapshots
        .iter()
        .map(|s| snapshot(&view.record, s))
        .collect();
    if full.status_message.is_empty() {
        full.status_message.clone_from(&live.unknown);
    }
    full
}

pub(super) fn snapshot(instance: &Instance, s: &Snapshot) -> proto::Snapshot {
    proto::Snapshot {
        name: format!("{}/snapshots/{}", instance.resource(), s.name),
        uid: s.uid.clone(),
        create_time: time(s.create_time),
        expire_time: if s.expire_time == 0 {
            String::new()
        } else {
            time(s.expire_time)
        },
        last_used_time: time(s.last_used_time),
        stateful: false,
        ephemeral: s.ephemeral,
        architecture: s.architecture.clone(),
        config: config(&s.config),
        devices: devices_proto(&s.devices),
        profiles: s.profiles.clone(),
        expanded_config: config(&s.expanded_config),
        expanded_devices: devices_proto(&s.expanded_devices),
        etag: s.etag(),
        description: s.description.clone(),
    }
}

pub(super) fn profile(p: &Profile, users: &[String]) -> proto::Profile {
    proto::Profile {
        name: p.resource(),
        description: p.description.clone(),
        config: config(&p.config),
        devices: devices_proto(&p.devices),
        used_by: users.to_vec(),
        etag: p.etag(),
    }
}

fn signed(number: Option<u64>) -> i64 {
    number.map_or(0, |n| i64::try_from(n).unwrap_or(i64::MAX))
}

pub(super) fn state(view: &View, live: &LiveState) -> proto::InstanceState {
    let mut out = proto::InstanceState {
        status: status(view.run.status).into(),
        pid: i64::from(view.run.pid),
        unknown: live.unknown.clone(),
        memory: Some(wire::Memory {
            total_bytes: signed(Some(live.memory_total)),
            ..Default::default()
        }),
        ..Default::default()
    };
    if !live.unknown.is_empty() {
        out.processes = -1;
    }
    if let Some(numbers) = &live.numbers {
        running(numbers, live, &mut out);
    }
    out
}

fn running(state: &crate::runtime::Numbers, live: &LiveState, out: &mut proto::InstanceState) {
    out.processes = state.pids.map_or(-1, |n| i64::try_from(n).unwrap_or(-1));
    out.cpu_usage_ns = signed(state.cpu_ns);
    // What can be dropped at once is no usage, as `free` counts it too.
    let usage = state
        .memory
        .usage
        .map(|u| u.saturating_sub(state.memory.inactive_file.unwrap_or(0)));
    out.memory = Some(wire::Memory {
        usage_bytes: signed(usage),
        usage_peak_bytes: signed(state.memory.peak),
        swap_usage_bytes: signed(state.memory.swap_usage),
        swap_usage_peak_bytes: signed(state.memory.swap_peak),
        total_bytes: signed(Some(live.memory_total)),
    });
    out.network = state
        .links
        .iter()
        .map(|link| (link.name.clone(), network(link)))
        .collect();
}

fn network(link: &LinkState) -> wire::Network {
    let counters = link.counters;
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    wire::Network {
        addresses: link
            .addresses
            .iter()
            .map(|a| wire::Address {
                family: a.family.clone(),
                address: a.address.clone(),
                netmask: a.prefix.to_string(),
                scope: a.scope.clone(),
            })
            .collect(),
        bytes_received: number(counters.bytes_received),
        bytes_sent: number(counters.bytes_sent),
        packets_received: number(counters.packets_received),
        packets_sent: number(counters.packets_sent),
        errors_received: number(counters.errors_received),
        errors_sent: number(counters.errors_sent),
        packets_dropped_inbound: number(counters.dropped_inbound),
        packets_dropped_outbound: number(counters.dropped_outbound),
        hwaddr: link.hwaddr.clone().unwrap_or_default(),
        host_name: link.host_name.clone().unwrap_or_default(),
        mtu: i32::try_from(link.mtu).unwrap_or(i32::MAX),
        state: if link.up { "up" } else { "down" }.to_owned(),
        r#type: link.kind.clone(),
    }
}

pub(super) fn plan(plan: Plan) -> proto::InstancePlan {
    let needed_port = |NeededPort { device, port }| proto::NeededPort {
        device,
        network: port.network,
        port_id: port.port_id,
        mac: port.mac,
        guest_name: port.guest_name,
        hostname: port.hostname,
        config: port.config.into_iter().collect(),
    };
    let needed_volume = |NeededVolume { device, volume }| proto::NeededVolume {
        device,
        pool: volume.pool,
        root: volume.root,
        volume: volume.volume,
        config: volume.config.into_iter().collect(),
    };
    proto::InstancePlan {
        plan_etag: plan.etag,
        instance: Some(instance(&plan.view)),
        needed_volumes: plan.needed_volumes.into_iter().map(needed_volume).collect(),
        needed_ports: plan.needed_ports.into_iter().map(needed_port).collect(),
        surplus_volumes: plan
            .surplus_volumes
            .into_iter()
            .map(|(device, attachment, root)| proto::SurplusVolume {
                device,
                attachment: Some(attachment_proto(&attachment)),
                root,
            })
            .collect(),
        surplus_ports: plan
            .surplus_ports
            .into_iter()
            .map(|(device, port)| proto::SurplusPort {
                device,
                port: Some(port_proto(&port)),
            })
            .collect(),
        volume_changes: plan
            .volume_changes
            .into_iter()
            .map(|(device, volume, config)| proto::VolumeChange {
                device,
                volume,
                config: config.into_iter().collect(),
            })
            .collect(),
        changed_ports: plan.changed_ports.into_iter().map(needed_port).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        let text = time(1_795_000_000_123);
        assert_eq!(parse_time("t", &text).unwrap(), 1_795_000_000_123);
        assert_eq!(parse_time("t", "").unwrap(), 0);
        assert!(parse_time("t", "tomorrow").is_err());
    }
}
