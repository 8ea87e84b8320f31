//! Limits as writes to cgroup files: a pure plan, so that every case can be tested without a kernel.

use crate::spec::Limits;

/// Which interface a controller has here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// One write. Those that only repeat the default are skipped when the controller or file is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) controller: &'static str,
    pub(crate) file: &'static str,
    pub(crate) value: Value,
    /// Wanted by the user: its absence is an error.
    pub(crate) required: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    /// What the parent directory's file of that name (v1) or `.effective` (v2) says.
    Inherit,
    /// v1 memory+swap: bytes and swap bytes, written in an order that never puts memsw below memory.
    MemoryAndSwap {
        memory: Option<u64>,
        swap: Option<u64>,
    },
}

const CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "memory", "pids", "blkio"];

/// Everything that `limits` say. `version_of` tells where a controller is; absent ones are planned as v2 and
/// fail (or are skipped) when written.
pub(crate) fn plan(limits: &Limits, version_of: impl Fn(&str) -> Option<Version>) -> Vec<Write> {
    let mut out = Vec::new();
    for controller in CONTROLLERS {
        let version = version_of(controller).unwrap_or(Version::V2);
        let mut add = |file, value, required| {
            out.push(Write {
                controller,
                file,
                value,
                required,
            })
        };
        match (controller, version) {
            ("cpuset", version) => {
                for (list, file) in [
                    (&limits.cpuset_cpus, "cpuset.cpus"),
                    (&limits.cpuset_mems, "cpuset.mems"),
                ] {
                    let value = match (list, version) {
                        (Some(list), _) => Value::Text(list.clone()),
                        (None, Version::V1) => Value::Inherit,
                        (None, Version::V2) => Value::Text("\n".to_owned()),
                    };
                    add(file, value, list.is_some());
                }
            }
            ("cpu", Version::V1) => {
                let period = limits.cpu_period_us.unwrap_or(100_000);
                let quota = limits
                    .cpu_quota_us
                    .map_or("-1".to_owned(), |q| q.to_string());
                add(
                    "cpu.cfs_period_us",
                    text(period),
                    limits.cpu_quota_us.is_some(),
                );
                add(
                    "cpu.cfs_quota_us",
                    Value::Text(quota),
                    limits.cpu_quota_us.is_some(),
                );
                add(
                    "cpu.shares",
                    text(limits.cpu_shares.unwrap_or(1024)),
                    limits.cpu_shares.is_some(),
                );
            }
            ("cpu", Version::V2) => {
                let period = limits.cpu_period_us.unwrap_or(100_000);
                let quota = limits
                    .cpu_quota_us
                    .map_or("max".to_owned(), |q| q.to_string());
                add(
                    "cpu.max",
                    Value::Text(format!("{quota} {period}")),
                    limits.cpu_quota_us.is_some(),
                );
                let weight = limits.cpu_shares.map_or(100, weight_of_shares);
                add("cpu.weight", text(weight), limits.cpu_shares.is_some());
            }
            ("memory", Version::V1) => {
                let value = Value::MemoryAndSwap {
                    memory: limits.memory_bytes,
                    swap: limits.swap_bytes,
                };
                add(
                    "memory.limit_in_bytes",
                    value,
                    limits.memory_bytes.is_some(),
                );
                add(
                    "memory.soft_limit_in_bytes",
                    or_minus(limits.memory_soft_bytes),
                    limits.memory_soft_bytes.is_some(),
                );
                if let Some(swappiness) = limits.swappiness {
                    add("memory.swappiness", text(swappiness.into()), true);
                }
            }
            ("memory", Version::V2) => {
                add(
                    "memory.max",
                    or_max(limits.memory_bytes),
                    limits.memory_bytes.is_some(),
                );
                add(
                    "memory.high",
                    or_max(limits.memory_soft_bytes),
                    limits.memory_soft_bytes.is_some(),
                );
                add(
                    "memory.swap.max",
                    or_max(limits.swap_bytes),
                    limits.swap_bytes.is_some(),
                );
            }
            ("pids", _) => add("pids.max", or_max(limits.pids), limits.pids.is_some()),
            ("blkio", Version::V1) => {
                let weight = limits.io_weight.unwrap_or(100);
                add(
                    "blkio.bfq.weight",
                    text(weight.into()),
                    limits.io_weight.is_some(),
                );
            }
            (_, _) => {
                let weight = limits.io_weight.unwrap_or(100);
                add(
                    "io.weight",
                    Value::Text(format!("default {weight}")),
                    limits.io_weight.is_some(),
                );
            }
        }
    }
    out
}

fn text(value: u64) -> Value {
    Value::Text(value.to_string())
}

fn or_max(value: Option<u64>) -> Value {
    Value::Text(value.map_or("max".to_owned(), |v| v.to_string()))
}

fn or_minus(value: Option<u64>) -> Value {
    Value::Text(value.map_or("-1".to_owned(), |v| v.to_string()))
}

/// 2..=262144 onto 1..=10000, the conversion the kernel's documentation and every runtime use.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(limits: &Limits, version: Version) -> Vec<(&'static str, Value, bool)> {
        plan(limits, |_| Some(version))
            .into_iter()
            .map(|w| (w.file, w.value, w.required))
            .collect()
    }

    #[test]
    fn nothing_wanted_writes_only_defaults() {
        for version in [Version::V1, Version::V2] {
            let all = values(&Limits::default(), version);
            assert!(all.iter().all(|(_, _, required)| !required));
            assert!(all.iter().any(|(file, ..)| *file == "pids.max"));
        }
    }

    #[test]
    fn v2_values() {
        let limits = Limits {
            cpu_quota_us: Some(50_000),
            cpu_shares: Some(1024),
            memory_bytes: Some(1 << 20),
            swap_bytes: Some(0),
            pids: Some(7),
            io_weight: Some(50),
            ..Limits::default()
        };
        let all = values(&limits, Version::V2);
        let value = |file| {
            all.iter()
                .find(|(f, ..)| *f == file)
                .map(|(_, v, r)| (v.clone(), *r))
                .unwrap()
        };
        assert_eq!(value("cpu.max"), (Value::Text("50000 100000".into()), true));
        assert_eq!(value("cpu.weight"), (Value::Text("39".into()), true));
        assert_eq!(value("memory.max"), (Value::Text("1048576".into()), true));
        assert_eq!(value("memory.swap.max"), (Value::Text("0".into()), true));
        assert_eq!(value("memory.high"), (Value::Text("max".into()), false));
        assert_eq!(value("pids.max"), (Value::Text("7".into()), true));
        assert_eq!(value("io.weight"), (Value::Text("default 50".into()), true));
    }

    #[test]
    fn v1_values() {
        let limits = Limits {
            cpuset_cpus: Some("1".into()),
            memory_bytes: Some(9),
            ..Limits::default()
        };
        let all = values(&limits, Version::V1);
        assert!(all.contains(&("cpuset.cpus", Value::Text("1".into()), true)));
        assert!(all.contains(&("cpuset.mems", Value::Inherit, false)));
        assert!(all.contains(&("cpu.cfs_quota_us", Value::Text("-1".into()), false)));
        let both = Value::MemoryAndSwap {
            memory: Some(9),
            swap: None,
        };
        assert!(all.contains(&("memory.limit_in_bytes", both, true)));
    }

    #[test]
    fn weights_stay_in_the_kernels_range() {
        assert_eq!(weight_of_shares(2), 1);
        assert_eq!(weight_of_shares(262_144), 10_000);
    }
}
