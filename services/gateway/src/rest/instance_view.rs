//! Instances, states and snapshots as LXD renders them. Maps are never null.

use std::collections::{BTreeMap, HashMap};

use berth_proto::instance::instance::{Status, Type};
use berth_proto::instance::{self, Device};
use serde::Serialize;

use crate::app::time;

/// Config as the API orders it.
type Config = BTreeMap<String, String>;

/// An instance; with `full`, its state, snapshots and backups beside it.
#[derive(Debug, Serialize)]
pub(super) struct InstanceView {
    architecture: String,
    config: Config,
    devices: BTreeMap<String, Config>,
    ephemeral: bool,
    profiles: Vec<String>,
    stateful: bool,
    description: String,
    created_at: String,
    expanded_config: Config,
    expanded_devices: BTreeMap<String, Config>,
    pub(super) name: String,
    status: &'static str,
    status_code: u16,
    last_used_at: String,
    location: &'static str,
    r#type: &'static str,
    project: String,
    #[serde(flatten)]
    full: Option<Full>,
}

/// What recursion adds.
#[derive(Debug, Serialize)]
struct Full {
    /// LXD has null here where there are none.
    backups: Option<Vec<()>>,
    state: StateView,
    snapshots: Option<Vec<SnapshotView>>,
}

/// Runtime state.
#[derive(Debug, Serialize)]
pub(super) struct StateView {
    status: &'static str,
    status_code: u16,
    disk: BTreeMap<String, DiskView>,
    memory: MemoryView,
    network: Option<BTreeMap<String, NetworkView>>,
    pid: i64,
    processes: i64,
    cpu: CpuView,
}

#[derive(Debug, Serialize)]
struct DiskView {
    usage: i64,
    total: i64,
}

#[derive(Debug, Default, Serialize)]
struct MemoryView {
    usage: i64,
    usage_peak: i64,
    swap_usage: i64,
    swap_usage_peak: i64,
    total: i64,
}

#[derive(Debug, Serialize)]
struct CpuView {
    usage: i64,
}

#[derive(Debug, Serialize)]
struct NetworkView {
    addresses: Vec<AddressView>,
    counters: CountersView,
    hwaddr: String,
    host_name: String,
    mtu: i32,
    state: String,
    r#type: String,
}

#[derive(Debug, Serialize)]
struct AddressView {
    family: String,
    address: String,
    netmask: String,
    scope: String,
}

#[derive(Debug, Serialize)]
struct CountersView {
    bytes_received: i64,
    bytes_sent: i64,
    packets_received: i64,
    packets_sent: i64,
    errors_received: i64,
    errors_sent: i64,
    packets_dropped_outbound: i64,
    packets_dropped_inbound: i64,
}

/// A snapshot.
#[derive(Debug, Serialize)]
pub(super) struct SnapshotView {
    expires_at: String,
    architecture: String,
    config: Config,
    created_at: String,
    devices: BTreeMap<String, Config>,
    ephemeral: bool,
    expanded_config: Config,
    expanded_devices: BTreeMap<String, Config>,
    last_used_at: String,
    pub(super) name: String,
    profiles: Vec<String>,
    stateful: bool,
    /// -1 = not known.
    size: i64,
}

/// Bytes used and the quota of volumes, by resource name.
pub(super) type Usage = HashMap<String, (i64, i64)>;

fn config(map: HashMap<String, String>) -> Config {
    map.into_iter().collect()
}

fn devices(map: HashMap<String, Device>) -> BTreeMap<String, Config> {
    map.into_iter()
        .map(|(name, device)| (name, config(device.options)))
        .collect()
}

/// The last segment of a resource name.
pub(super) fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// LXD's word and number for a status.
pub(super) fn status(status: Status) -> (&'static str, u16) {
    match status {
        Status::Stopped | Status::Unspecified => ("Stopped", 102),
        Status::Running => ("Running", 103),
        Status::Frozen => ("Frozen", 110),
        Status::Starting => ("Starting", 106),
        Status::Stopping => ("Stopping", 107),
        Status::Freezing => ("Freezing", 109),
        Status::Error => ("Error", 112),
    }
}

/// LXD's word for a type.
pub(super) fn type_name(kind: Type) -> &'static str {
    match kind {
        Type::VirtualMachine => "virtual-machine",
        Type::Container | Type::Unspecified => "container",
    }
}

impl InstanceView {
    /// Without state.
    pub(super) fn basic(i: instance::Instance) -> Self {
        let (word, code) = status(i.status());
        let mut segments = i.name.split('/').skip(1);
        let project = segments.next().unwrap_or_default().to_owned();
        Self {
            r#type: type_name(i.r#type()),
            status: word,
            status_code: code,
            architecture: i.architecture,
            config: config(i.config),
            devices: devices(i.devices),
            ephemeral: i.ephemeral,
            profiles: i.profiles,
            stateful: i.stateful,
            description: i.description,
            created_at: time::or_zero(&i.create_time).to_owned(),
            expanded_config: config(i.expanded_config),
            expanded_devices: devices(i.expanded_devices),
            name: last(&i.name).to_owned(),
            last_used_at: time::or_zero(&i.last_used_time).to_owned(),
            location: "none",
            project,
            full: None,
        }
    }

    /// With state (of view FULL) and what its volumes use.
    pub(super) fn full(mut i: instance::Instance, usage: &Usage) -> Self {
        let disks = disks(&i, usage);
        let status = i.status();
        let state = StateView::new(i.state.take(), status, disks);
        let snapshots: Vec<_> = std::mem::take(&mut i.snapshots)
            .into_iter()
            .map(SnapshotView::new)
            .collect();
        let mut view = Self::basic(i);
        view.full = Some(Full {
            backups: None,
            state,
            snapshots: (!snapshots.is_empty()).then_some(snapshots),
        });
        view
    }
}

/// What each disk device uses, for those that storage can tell.
fn disks(i: &instance::Instance, usage: &Usage) -> BTreeMap<String, DiskView> {
    i.attachments
        .iter()
        .filter_map(|(device, attachment)| {
            let (used, total) = usage.get(&attachment.volume)?;
            Some((
                device.clone(),
                DiskView {
                    usage: *used,
                    total: *total,
                },
            ))
        })
        .collect()
}

impl StateView {
    /// A state, or that of a stopped instance.
    fn new(
        state: Option<instance::InstanceState>,
        instance_status: Status,
        disk: BTreeMap<String, DiskView>,
    ) -> Self {
        let state = state.unwrap_or_else(|| instance::InstanceState {
            status: instance_status.into(),
            ..Default::default()
        });
        let (word, code) = status(state.status());
        let memory = state.memory.unwrap_or_default();
        let network: BTreeMap<_, _> = state
            .network
            .into_iter()
            .map(|(name, link)| (name, NetworkView::new(link)))
            .collect();
        Self {
            status: word,
            status_code: code,
            disk,
            memory: MemoryView {
                usage: memory.usage_bytes,
                usage_peak: memory.usage_peak_bytes,
                swap_usage: memory.swap_usage_bytes,
                swap_usage_peak: memory.swap_usage_peak_bytes,
                total: memory.total_bytes,
            },
            // LXD has null for a stopped instance, and its clients know.
            network: (!network.is_empty()).then_some(network),
            pid: state.pid,
            processes: state.processes,
            cpu: CpuView {
                usage: state.cpu_usage_ns,
            },
        }
    }

    /// Of an instance read with view FULL.
    pub(super) fn of(mut i: instance::Instance, usage: &Usage) -> Self {
        let disks = disks(&i, usage);
        let status = i.status();
        Self::new(i.state.take(), status, disks)
    }
}

impl NetworkView {
    fn new(link: instance::instance_state::Network) -> Self {
        Self {
            addresses: link
                .addresses
                .into_iter()
                .map(|a| AddressView {
                    family: a.family,
                    address: a.address,
                    netmask: a.netmask,
                    scope: a.scope,
                })
                .collect(),
            counters: CountersView {
                bytes_received: link.bytes_received,
                bytes_sent: link.bytes_sent,
                packets_received: link.packets_received,
                packets_sent: link.packets_sent,
                errors_received: link.errors_received,
                errors_sent: link.errors_sent,
                packets_dropped_outbound: link.packets_dropped_outbound,
                packets_dropped_inbound: link.packets_dropped_inbound,
            },
            // The loopback link has none.
            hwaddr: match link.hwaddr.as_str() {
                "00:00:00:00:00:00" => String::new(),
                _ => link.hwaddr,
            },
            host_name: link.host_name,
            mtu: link.mtu,
            state: link.state,
            r#type: link.r#type,
        }
    }
}

impl SnapshotView {
    pub(super) fn new(s: instance::Snapshot) -> Self {
        Self {
            expires_at: time::or_zero(&s.expire_time).to_owned(),
            architecture: s.architecture,
            config: config(s.config),
            created_at: time::or_zero(&s.create_time).to_owned(),
            devices: devices(s.devices),
            ephemeral: s.ephemeral,
            expanded_config: config(s.expanded_config),
            expanded_devices: devices(s.expanded_devices),
            last_used_at: time::or_zero(&s.last_used_time).to_owned(),
            name: last(&s.name).to_owned(),
            profiles: s.profiles,
            stateful: s.stateful,
            size: -1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_stopped_instance_has_maps_and_a_state() {
        let view = InstanceView::full(
            instance::Instance {
                name: "projects/default/instances/c1".into(),
                status: Status::Stopped.into(),
                ..Default::default()
            },
            &Usage::new(),
        );
        let value: Value = serde_json::to_value(view).unwrap();
        for map in [
            "config",
            "devices",
            "expanded_config",
            "expanded_devices",
            "state",
        ] {
            assert!(value[map].is_object(), "{map}");
        }
        assert_eq!(value["profiles"], Value::Array(vec![]));
        assert_eq!(value["created_at"], time::ZERO);
        assert_eq!(value["state"]["disk"], Value::Object(Default::default()));
        assert_eq!(value["status_code"], 102);
        assert_eq!(value["project"], "default");
    }
}
