//! `instance_type`: a size such as `c2-m4`. Sizes by the names that clouds give them would need their list.

use std::collections::BTreeMap;

use berth_rpc::Error;

/// Limits that a size stands for: CPUs and GiB of memory, either of which may be left out. What is
/// no whole number of CPUs becomes a share of the next one.
///
/// # Errors
/// When it is no such size.
pub fn limits(size: &str) -> Result<BTreeMap<&'static str, String>, Error> {
    let unknown = || {
        Error::invalid(
            "instance_type",
            format!("Provided instance type doesn't exist: {size}"),
        )
    };
    let mut cpus = None;
    let mut memory = None;
    for part in size.split('-') {
        let (slot, number) = match (part.strip_prefix('c'), part.strip_prefix('m')) {
            (Some(number), _) => (&mut cpus, number),
            (_, Some(number)) => (&mut memory, number),
            _ => return Err(unknown()),
        };
        let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let value: f64 = number.parse().map_err(|_| unknown())?;
        let sensible = value > 0.0 && value <= 100_000.0;
        if !plain || !sensible || slot.replace(value).is_some() {
            return Err(unknown());
        }
    }
    let mut limits = BTreeMap::new();
    if let Some(cpus) = cpus {
        let whole = cpus.ceil();
        limits.insert("limits.cpu", format!("{whole:.0}"));
        if cpus < whole {
            limits.insert(
                "limits.cpu.allowance",
                format!("{:.0}%", cpus / whole * 100.0),
            );
        }
    }
    if let Some(memory) = memory {
        limits.insert("limits.memory", format!("{:.0}MB", memory * 1024.0));
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn sizes_are_limits() {
        let shown = |size: &str| {
            let limits = limits(size).unwrap();
            let pairs = limits.iter().map(|(key, value)| format!("{key}={value}"));
            pairs.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown("c1-m2"), "limits.cpu=1 limits.memory=2048MB");
        assert_eq!(shown("m0.5"), "limits.memory=512MB");
        assert_eq!(shown("c3"), "limits.cpu=3");
        assert_eq!(shown("c0.5"), "limits.cpu=1 limits.cpu.allowance=50%");
        for bad in [
            "", "t2.micro", "c", "c-m", "c1-c2", "cinf", "c-1", "c0", "c1e3", "m1-x", "cnan",
        ] {
            let error = limits(bad).unwrap_err();
            assert!(error.message.contains("doesn't exist"), "{bad}: {error}");
        }
    }
}
