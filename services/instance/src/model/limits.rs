//! `limits.*` as the monitor wants them.

use berth_monitor::spec::{Limits, Rlimit};

use super::expand::Expanded;
use super::value::{self, Allowance, CpuLimit, MemoryLimit};

/// What the host has, for limits relative to it.
#[derive(Debug, Clone, Copy)]
pub struct HostSize {
    pub memory_bytes: u64,
}

/// `limits.cpu`, when it is set.
pub fn cpu(expanded: &Expanded) -> Option<CpuLimit> {
    expanded
        .get("limits.cpu")
        .and_then(|text| CpuLimit::parse(text).ok())
}

/// All limits; `cpus` is where the guest was placed. Values were validated when they were stored.
pub fn limits(expanded: &Expanded, cpus: Option<&[u32]>, host: HostSize) -> Limits {
    let mut limits = Limits {
        cpuset_cpus: cpus.map(value::cpu_list),
        ..Limits::default()
    };
    cpu_share(expanded, &mut limits);
    memory(expanded, host, &mut limits);
    limits.pids = expanded
        .get("limits.processes")
        .and_then(|text| text.parse().ok());
    limits.io_weight = number(expanded, "limits.disk.priority").map(|p| (p * 100).max(10));
    limits
}

fn number(expanded: &Expanded, key: &str) -> Option<u16> {
    expanded.get(key).and_then(|text| text.parse().ok())
}

/// A weight of 1024 is a guest's normal one; a priority below 10 takes a little of it.
fn cpu_share(expanded: &Expanded, limits: &mut Limits) {
    let allowance = expanded
        .get("limits.cpu.allowance")
        .and_then(|text| Allowance::parse(text).ok());
    let priority = number(expanded, "limits.cpu.priority");
    let mut shares = None;
    match allowance {
        Some(Allowance::Soft(percent)) => shares = Some(1024 * percent / 100),
        Some(Allowance::Hard {
            quota_us,
            period_us,
        }) => {
            limits.cpu_quota_us = Some(quota_us.max(1000));
            limits.cpu_period_us = Some(period_us);
        }
        None => {}
    }
    if let Some(priority) = priority {
        let less = 10 - u64::from(priority.min(10));
        shares = Some(shares.unwrap_or(1024).saturating_sub(less));
    }
    limits.cpu_shares = shares.map(|s| s.max(2));
}

fn memory(expanded: &Expanded, host: HostSize, limits: &mut Limits) {
    let bytes = expanded
        .get("limits.memory")
        .and_then(|text| MemoryLimit::parse(text).ok())
        .map(|limit| limit.bytes(host.memory_bytes));
    match expanded.get("limits.memory.enforce") {
        Some("soft") => limits.memory_soft_bytes = bytes,
        _ => limits.memory_bytes = bytes,
    }
    let no_swap = expanded.get("limits.memory.swap").and_then(value::boolean) == Some(false);
    if no_swap {
        limits.swappiness = Some(0);
        limits.swap_bytes = limits.memory_bytes.map(|_| 0);
    } else if let Some(priority) = number(expanded, "limits.memory.swap.priority") {
        // 60 is the kernel's own; a higher priority keeps more in memory.
        limits.swappiness = Some(60 - priority.min(10) as u8);
    }
}

/// `limits.kernel.*`.
pub fn rlimits(expanded: &Expanded) -> Vec<Rlimit> {
    let kernel = expanded.config.iter().filter_map(|(key, text)| {
        let name = key.strip_prefix("limits.kernel.")?;
        let (soft, hard) = value::rlimit(text).ok()?;
        Some(Rlimit {
            name: name.to_owned(),
            soft,
            hard,
        })
    });
    kernel.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Limits {
        let config = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let expanded = Expanded {
            config,
            ..Expanded::default()
        };
        let limits = limits(
            &expanded,
            Some(&[0, 1]),
            HostSize {
                memory_bytes: 1 << 30,
            },
        );
        limits.validate().unwrap();
        limits
    }

    #[test]
    fn every_limit_arrives() {
        let limits = of(&[
            ("limits.cpu.allowance", "25ms/100ms"),
            ("limits.memory", "128MiB"),
            ("limits.memory.swap", "false"),
            ("limits.processes", "50"),
            ("limits.disk.priority", "0"),
        ]);
        assert_eq!(limits.cpuset_cpus.as_deref(), Some("0-1"));
        assert_eq!(
            (limits.cpu_quota_us, limits.cpu_period_us),
            (Some(25_000), Some(100_000))
        );
        assert_eq!(
            (limits.memory_bytes, limits.swap_bytes),
            (Some(128 << 20), Some(0))
        );
        assert_eq!((limits.pids, limits.io_weight), (Some(50), Some(10)));
    }

    #[test]
    fn shares_follow_allowance_and_priority() {
        assert_eq!(of(&[("limits.cpu.allowance", "50%")]).cpu_shares, Some(512));
        let both = of(&[
            ("limits.cpu.allowance", "50%"),
            ("limits.cpu.priority", "5"),
        ]);
        assert_eq!(both.cpu_shares, Some(507));
        assert_eq!(of(&[]).cpu_shares, None);
        let soft = of(&[("limits.memory", "50%"), ("limits.memory.enforce", "soft")]);
        assert_eq!(
            (soft.memory_bytes, soft.memory_soft_bytes),
            (None, Some((1 << 30) / 100 * 50))
        );
    }
}
