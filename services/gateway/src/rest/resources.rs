//! Hardware of the host, as far as the instance service tells of it. Kinds it tells nothing of are
//! listed as empty, the way LXD lists a host that has none.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use berth_proto::instance::{GetHostRequest, Host, host::Cpu};
use serde_json::{Value, json};

use super::envelope::{self, Answer};
use super::query::Query;
use crate::App;

/// Routes.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/1.0/resources", get(show))
}

async fn show(State(app): State<App>, _query: Query) -> Answer {
    let host = app
        .owners
        .instances()
        .get_host(GetHostRequest {})
        .await?
        .into_inner();
    Ok(envelope::sync(render(&host)))
}

fn render(host: &Host) -> Value {
    let nodes: std::collections::BTreeSet<i32> =
        host.cpus.iter().map(|cpu| cpu.numa_node).collect();
    // One node holds all memory; how it is spread over several is not told.
    let memory_nodes: Vec<Value> = match nodes.len() {
        1 => nodes
            .iter()
            .map(|node| {
                json!({"numa_node": node, "hugepages_used": 0, "hugepages_total": 0,
                    "used": host.memory_used_bytes, "total": host.memory_total_bytes})
            })
            .collect(),
        _ => Vec::new(),
    };
    json!({
        "cpu": {
            "architecture": host.kernel_architecture,
            "sockets": sockets(host),
            "total": host.cpu_count,
        },
        "memory": {
            "nodes": memory_nodes,
            "hugepages_total": 0,
            "hugepages_used": 0,
            "hugepages_size": 0,
            "used": host.memory_used_bytes,
            "total": host.memory_total_bytes,
        },
        "gpu": {"cards": [], "total": 0},
        "network": {"cards": [], "total": 0},
        "storage": {"disks": [], "total": 0},
        "usb": {"devices": [], "total": 0},
        "pci": {"devices": [], "total": 0},
        "system": {
            "uuid": "", "vendor": "", "product": "", "family": "", "version": "", "sku": "",
            "serial": "", "type": "", "firmware": null, "chassis": null, "motherboard": null,
        },
    })
}

fn sockets(host: &Host) -> Vec<Value> {
    let mut sockets: BTreeMap<i32, BTreeMap<(i32, i32), Vec<&Cpu>>> = BTreeMap::new();
    for cpu in &host.cpus {
        sockets
            .entry(cpu.socket)
            .or_default()
            .entry((cpu.die, cpu.core))
            .or_default()
            .push(cpu);
    }
    sockets
        .into_iter()
        .map(|(socket, cores)| {
            let cores: Vec<Value> = cores
                .into_iter()
                .map(|((die, core), threads)| {
                    let threads: Vec<Value> = threads
                        .into_iter()
                        .map(|cpu| {
                            json!({"id": cpu.id, "numa_node": cpu.numa_node,
                                "thread": cpu.thread, "online": cpu.online,
                                "isolated": cpu.isolated})
                        })
                        .collect();
                    json!({"core": core, "die": die, "threads": threads})
                })
                .collect();
            json!({"name": host.cpu_name, "vendor": host.cpu_vendor, "socket": socket,
                "cache": [], "cores": cores})
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_grouped_by_socket_and_core() {
        let cpu = |id, socket, core, thread| Cpu {
            id,
            socket,
            core,
            thread,
            online: true,
            ..Cpu::default()
        };
        let host = Host {
            cpu_count: 4,
            memory_total_bytes: 100,
            memory_used_bytes: 40,
            cpus: vec![
                cpu(0, 0, 0, 0),
                cpu(2, 0, 0, 1),
                cpu(1, 0, 1, 0),
                cpu(3, 1, 0, 0),
            ],
            ..Host::default()
        };
        let shown = render(&host);
        let sockets = shown["cpu"]["sockets"].as_array().unwrap();
        assert_eq!(sockets.len(), 2);
        assert_eq!(sockets[0]["cores"].as_array().unwrap().len(), 2);
        assert_eq!(sockets[0]["cores"][0]["threads"][1]["id"], 2);
        assert_eq!(shown["memory"]["nodes"][0]["used"], 40);
    }
}
