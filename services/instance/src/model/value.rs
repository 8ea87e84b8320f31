//! Values as they are written in configuration: booleans, sizes, CPU sets, allowances.

/// `true/1/yes/on` and `false/0/no/off`, in any case.
pub fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// True only when the key is there and says so; values were validated when they were stored.
pub fn is_true(value: Option<&String>) -> bool {
    value.and_then(|v| boolean(v)).unwrap_or(false)
}

const UNITS: [(&str, u64); 15] = [
    ("", 1),
    ("B", 1),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
    ("EB", 1_000_000_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("EiB", 1 << 60),
];

/// Bytes of `10GiB`, `5GB`, `1024`, `512kB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("Invalid value: {text}"))?;
    let factor = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| *factor)
        .ok_or_else(|| format!("Unknown unit: {unit}"))?;
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("Value is too large: {text}"))
}

/// A memory limit: bytes, or a share of the host's memory as `50%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryLimit {
    Bytes(u64),
    Percent(u64),
}

impl MemoryLimit {
    pub fn parse(text: &str) -> Result<MemoryLimit, String> {
        let Some(percent) = text.strip_suffix('%') else {
            return bytes(text).map(MemoryLimit::Bytes);
        };
        match percent.parse() {
            Ok(value @ 1..=100) => Ok(MemoryLimit::Percent(value)),
            _ => Err(format!("Invalid percentage: {text}")),
        }
    }

    pub fn bytes(self, host_total: u64) -> u64 {
        match self {
            MemoryLimit::Bytes(bytes) => bytes,
            MemoryLimit::Percent(percent) => host_total / 100 * percent,
        }
    }
}

/// `limits.cpu`: how many, or which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuLimit {
    Count(usize),
    Set(Vec<u32>),
}

impl CpuLimit {
    pub fn parse(text: &str) -> Result<CpuLimit, String> {
        match text.parse::<usize>() {
            Ok(0) => Err("Value must be at least 1".to_owned()),
            Ok(count) => Ok(CpuLimit::Count(count)),
            Err(_) => cpu_set(text).map(CpuLimit::Set),
        }
    }
}

/// Highest CPU number that a set may name; the kernel's own bound is 8192.
const CPU_MAX: u32 = 8191;

/// Sorted numbers of `0-3,7`.
pub fn cpu_set(text: &str) -> Result<Vec<u32>, String> {
    let bad = || format!("Invalid CPU set: {text}");
    let number = |part: &str| match part.parse::<u32>() {
        Ok(n) if n <= CPU_MAX && part.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
        _ => Err(bad()),
    };
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        match part.split_once('-') {
            None => cpus.push(number(part)?),
            Some((from, to)) => {
                let (from, to) = (number(from)?, number(to)?);
                if from > to {
                    return Err(bad());
                }
                cpus.extend(from..=to);
            }
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// `0-3,7` of sorted numbers.
pub fn cpu_list(cpus: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => parts.push((cpu, cpu)),
        }
    }
    let text = |(a, b): &(u32, u32)| {
        if a == b {
            a.to_string()
        } else {
            format!("{a}-{b}")
        }
    };
    parts.iter().map(text).collect::<Vec<_>>().join(",")
}

/// `limits.cpu.allowance`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// A weight that counts only under contention, in percent.
    Soft(u64),
    /// Microseconds of CPU time in each period.
    Hard { quota_us: u64, period_us: u64 },
}

impl Allowance {
    pub fn parse(text: &str) -> Result<Allowance, String> {
        let bad = || format!("Invalid CPU allowance: {text}");
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse() {
                Ok(value @ 1..=100) => Ok(Allowance::Soft(value)),
                _ => Err(bad()),
            };
        }
        let (quota, period) = text.split_once('/').ok_or_else(bad)?;
        let milliseconds = |part: &str| -> Result<u64, String> {
            let number = part.strip_suffix("ms").ok_or_else(bad)?;
            let value: u64 = number.parse().map_err(|_| bad())?;
            value.checked_mul(1000).ok_or_else(bad)
        };
        let (quota_us, period_us) = (milliseconds(quota)?, milliseconds(period)?);
        if quota_us == 0 || !(1000..=1_000_000).contains(&period_us) {
            return Err(format!("{}: the period is between 1ms and 1000ms", bad()));
        }
        Ok(Allowance::Hard {
            quota_us,
            period_us,
        })
    }
}

/// `soft:hard`, one value for both, `unlimited` for either.
pub fn rlimit(text: &str) -> Result<(Option<u64>, Option<u64>), String> {
    let one = |part: &str| match part {
        "unlimited" => Ok(None),
        number => number
            .parse()
            .map(Some)
            .map_err(|_| format!("Invalid kernel limit: {text}")),
    };
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    let (soft, hard) = (one(soft)?, one(hard)?);
    match (soft, hard) {
        (None, Some(_)) => Err(format!("Invalid kernel limit: {text}: soft is above hard")),
        (Some(s), Some(h)) if s > h => {
            Err(format!("Invalid kernel limit: {text}: soft is above hard"))
        }
        pair => Ok(pair),
    }
}

/// Six bytes as `aa:bb:cc:dd:ee:ff`, lower case.
pub fn mac(text: &str) -> Result<String, String> {
    let bad = || format!("Invalid MAC address: {text}");
    let parts: Vec<&str> = text.split(':').collect();
    let hex = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
    if parts.len() != 6 || !parts.iter().all(hex) {
        return Err(bad());
    }
    let first = u8::from_str_radix(parts[0], 16).map_err(|_| bad())?;
    if first & 1 == 1 {
        return Err(format!("{}: it is a group address", bad()));
    }
    Ok(text.to_ascii_lowercase())
}

/// Refuses what could break a line-based file or a C string made from the value.
pub fn single_line(text: &str) -> Result<(), String> {
    if text.chars().any(|c| matches!(c, '\n' | '\r' | '\0')) {
        return Err("Value holds a line break or NUL".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("0"), Ok(0));
        assert_eq!(bytes("512MiB"), Ok(512 << 20));
        assert_eq!(bytes("5GB"), Ok(5_000_000_000));
        for bad in ["", "MiB", "1.5GiB", "-1", "1 GiB", "1gib", "99999999999EiB"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(MemoryLimit::parse("50%").map(|m| m.bytes(1000)), Ok(500));
        assert!(MemoryLimit::parse("101%").is_err());
    }

    #[test]
    fn cpu_limits() {
        assert_eq!(CpuLimit::parse("2"), Ok(CpuLimit::Count(2)));
        assert_eq!(CpuLimit::parse("0-1,4"), Ok(CpuLimit::Set(vec![0, 1, 4])));
        for bad in ["0", "", "3-1", "a", "1,,2", "0-99999999", "+1-2", "-1"] {
            assert!(CpuLimit::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Allowance::parse("50%"), Ok(Allowance::Soft(50)));
        let hard = Allowance::Hard {
            quota_us: 25_000,
            period_us: 100_000,
        };
        assert_eq!(Allowance::parse("25ms/100ms"), Ok(hard));
        for bad in ["0%", "25ms", "25/100", "0ms/100ms", "1ms/5000ms"] {
            assert!(Allowance::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kernel_limits_and_macs() {
        assert_eq!(rlimit("1024:2048"), Ok((Some(1024), Some(2048))));
        assert_eq!(rlimit("unlimited"), Ok((None, None)));
        assert!(rlimit("10:5").is_err());
        assert_eq!(mac("00:16:3E:aa:bb:cc").as_deref(), Ok("00:16:3e:aa:bb:cc"));
        for bad in [
            "",
            "00:16:3e:aa:bb",
            "01:16:3e:aa:bb:cc",
            "0g:16:3e:aa:bb:cc",
        ] {
            assert!(mac(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn cpu_lists_survive_a_round_trip(mut cpus in proptest::collection::vec(0u32..200, 1..40)) {
            cpus.sort_unstable();
            cpus.dedup();
            prop_assert_eq!(cpu_set(&cpu_list(&cpus)), Ok(cpus));
        }

        #[test]
        fn parsers_never_panic(text in ".{0,40}") {
            let _ = (bytes(&text), CpuLimit::parse(&text), Allowance::parse(&text));
            let _ = (rlimit(&text), mac(&text), MemoryLimit::parse(&text));
        }

        #[test]
        fn byte_units_scale(number in 0u64..1000, at in 0usize..UNITS.len()) {
            let (unit, factor) = UNITS[at];
            prop_assert_eq!(bytes(&format!("{number}{unit}")).ok(), number.checked_mul(factor));
        }
    }
}
