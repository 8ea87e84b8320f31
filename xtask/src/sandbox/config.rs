//! The configuration each service gets.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use super::{SERVICES, Sandbox, UpOptions};

pub(super) const LXCFS: &str = "/usr/bin/lxcfs";

/// The TOML text for one service.
pub(super) fn text(
    sandbox: &Sandbox,
    service: &str,
    lxcfs: bool,
    options: &UpOptions,
) -> Result<String> {
    let state = sandbox.state();
    let mut table = Table::new();
    let mut server = Table::new();
    let more = options.listen.iter().filter(|(of, _)| of == service);
    let more = more.map(|(_, address)| Value::String(address.clone()));
    let listen = [unix(&sandbox.grpc_socket(service))]
        .into_iter()
        .chain(more);
    server.insert("listen".into(), Value::Array(listen.collect()));
    server.insert("state_dir".into(), path(&state.join(service)));
    let metrics = state.join(service).join("metrics.sock");
    server.insert("metrics_listen".into(), unix(&metrics));
    let mut set = |key: &str, value: Value| table.insert(key.to_owned(), value);
    set("server", Value::Table(server));
    match service {
        "gateway" => {
            set("rest_socket", path(&sandbox.socket()));
            let owners = SERVICES.iter().filter(|&&owner| owner != "gateway");
            let owners = owners.map(|&owner| (owner.to_owned(), unix(&sandbox.grpc_socket(owner))));
            set("services", Value::Table(owners.collect()));
        }
        "instance" => {
            set("monitor", path(&sandbox.binary("berth-monitor")));
            set("cgroup_parent", Value::String(sandbox.cgroup_parent()));
            set("run_dir", path(&state.join("instance/run")));
            // Empty: guests see the machine's CPUs and memory.
            let lxcfs = if lxcfs {
                state.join("lxcfs")
            } else {
                PathBuf::new()
            };
            set("lxcfs_dir", path(&lxcfs));
            // The sandbox's cgroups are its own business, also where systemd runs.
            set("systemd_scope", Value::Boolean(false));
        }
        "storage" => {
            set(
                "blob_roots",
                Value::Array(vec![path(&state.join("image/blobs"))]),
            );
        }
        "network" => {
            set("dnsmasq", path(&dnsmasq()?));
        }
        _ => {}
    }
    for (_, addition) in options.extra.iter().filter(|(name, _)| name == service) {
        let addition: Table = addition
            .parse()
            .with_context(|| format!("addition to {service}: {addition:?}"))?;
        merge(&mut table, addition);
    }
    Ok(toml::to_string(&table)?)
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn path(path: &Path) -> Value {
    Value::String(path.display().to_string())
}

fn unix(socket: &Path) -> Value {
    Value::String(format!("unix:{}", socket.display()))
}

fn dnsmasq() -> Result<PathBuf> {
    for candidate in [
        "/usr/sbin/dnsmasq",
        "/usr/bin/dnsmasq",
        "/usr/local/sbin/dnsmasq",
    ] {
        if Path::new(candidate).exists() {
            return Ok(PathBuf::from(candidate));
        }
    }
    bail!("no dnsmasq (package dnsmasq-base)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_reach_into_tables_and_replace_values() {
        let mut table: Table = "a = 1\n[log]\nlevel = \"info\"\njson = true"
            .parse()
            .unwrap();
        merge(
            &mut table,
            "a = 2\nb = 3\nlog.level = \"debug\"".parse().unwrap(),
        );
        let wanted: Table = "a = 2\nb = 3\n[log]\nlevel = \"debug\"\njson = true"
            .parse()
            .unwrap();
        assert_eq!(table, wanted);
    }
}
