//! Every configuration key of an instance, in one table: its type, for what it is, whether it may
//! change while the guest runs, and whether this version does it.

use std::collections::BTreeMap;

use super::value;
use crate::Error;

/// Configuration as it is stored and sent.
pub type Config = BTreeMap<String, String>;

/// Checks one non-empty value and says what is wrong with it.
type Check = fn(&str) -> Result<(), String>;

/// When a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// At once, also in a running guest.
    Live,
    /// Stored at once, read when the guest starts.
    NextStart,
    /// Refused while the guest runs.
    Stopped,
}

/// Which instances may have the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    Any,
    Container,
    VirtualMachine,
}

/// What this version does with the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Support {
    Done,
    /// Only these values; they are what happens anyway.
    Only(&'static [&'static str]),
    /// LXD has it, Berth does not yet.
    NotYet,
}

struct Key {
    /// The whole key, or a prefix when it ends with `.`.
    name: &'static str,
    check: Check,
    change: Change,
    for_type: For,
    support: Support,
}

const fn key(name: &'static str, check: Check, change: Change, for_type: For) -> Key {
    Key {
        name,
        check,
        change,
        for_type,
        support: Support::Done,
    }
}

const fn not_yet(name: &'static str, for_type: For) -> Key {
    Key {
        name,
        check: any,
        change: Change::NextStart,
        for_type,
        support: Support::NotYet,
    }
}

const fn only(name: &'static str, check: Check, values: &'static [&'static str]) -> Key {
    let support = Support::Only(values);
    Key {
        name,
        check,
        change: Change::Live,
        for_type: For::Any,
        support,
    }
}

fn any(_: &str) -> Result<(), String> {
    Ok(())
}

fn line(text: &str) -> Result<(), String> {
    value::single_line(text)
}

fn no_nul(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        Err("Value holds a NUL".to_owned())
    } else {
        Ok(())
    }
}

fn boolean(text: &str) -> Result<(), String> {
    value::boolean(text)
        .map(drop)
        .ok_or_else(|| format!("Invalid value for a boolean: {text:?}"))
}

fn integer(text: &str) -> Result<(), String> {
    text.parse::<i64>()
        .map(drop)
        .map_err(|_| format!("Invalid value for an integer: {text:?}"))
}

fn seconds(text: &str) -> Result<(), String> {
    text.parse::<u32>()
        .map(drop)
        .map_err(|_| format!("Invalid number of seconds: {text:?}"))
}

fn zero_to_ten(text: &str) -> Result<(), String> {
    match text.parse::<u8>() {
        Ok(0..=10) => Ok(()),
        _ => Err(format!(
            "Invalid value {text:?}: it must be between 0 and 10"
        )),
    }
}

fn processes(text: &str) -> Result<(), String> {
    match text.parse::<u64>() {
        Ok(1..=4_194_304) => Ok(()),
        _ => Err(format!("Invalid number of processes: {text:?}")),
    }
}

fn cpu(text: &str) -> Result<(), String> {
    value::CpuLimit::parse(text).map(drop)
}

fn allowance(text: &str) -> Result<(), String> {
    value::Allowance::parse(text).map(drop)
}

fn memory(text: &str) -> Result<(), String> {
    match value::MemoryLimit::parse(text)? {
        value::MemoryLimit::Bytes(0..1_048_576) => Err("Value is below 1MiB".to_owned()),
        _ => Ok(()),
    }
}

fn enforce(text: &str) -> Result<(), String> {
    match text {
        "hard" | "soft" => Ok(()),
        _ => Err(format!(
            "Invalid value {text:?}: it must be \"hard\" or \"soft\""
        )),
    }
}

fn rlimit(text: &str) -> Result<(), String> {
    value::rlimit(text).map(drop)
}

fn id_size(text: &str) -> Result<(), String> {
    match text.parse::<u32>() {
        Ok(65_536..=16_777_216) => Ok(()),
        _ => Err(format!(
            "Invalid value {text:?}: it must be between 65536 and 16777216"
        )),
    }
}

fn syscalls(text: &str) -> Result<(), String> {
    crate::model::syscalls::parse(text).map(drop)
}

fn uuid(text: &str) -> Result<(), String> {
    uuid::Uuid::parse_str(text)
        .map(drop)
        .map_err(|_| format!("Invalid UUID: {text:?}"))
}

fn apparmor(text: &str) -> Result<(), String> {
    crate::model::apparmor::check_raw(text)
}

fn expiry(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    berth_schedule::after(text, chrono::DateTime::UNIX_EPOCH).map(drop)
}

fn schedule(text: &str) -> Result<(), String> {
    berth_schedule::Schedule::parse(text).map(drop)
}

fn pattern(text: &str) -> Result<(), String> {
    line(text)?;
    berth_schedule::check_pattern(text)
}

const TABLE: &[Key] = {
    use Change::{Live, NextStart, Stopped};
    use For::{Any, Container, VirtualMachine};
    &[
        key("boot.autostart", boolean, Live, Any),
        key("boot.autostart.delay", seconds, Live, Any),
        key("boot.autostart.priority", integer, Live, Any),
        key("boot.host_shutdown_timeout", seconds, Live, Any),
        key("boot.stop.priority", integer, Live, Any),
        key("cloud-init.network-config", no_nul, NextStart, Any),
        key("cloud-init.user-data", no_nul, NextStart, Any),
        key("cloud-init.vendor-data", no_nul, NextStart, Any),
        key("environment.", line, Live, Any),
        key("image.", line, Live, Any),
        key("user.", no_nul, Live, Any),
        key("limits.cpu", cpu, Live, Any),
        key("limits.cpu.allowance", allowance, Live, Container),
        key("limits.cpu.priority", zero_to_ten, Live, Container),
        key("limits.disk.priority", zero_to_ten, Live, Any),
        key("limits.kernel.", rlimit, NextStart, Container),
        key("limits.memory", memory, Live, Any),
        key("limits.memory.enforce", enforce, Live, Container),
        key("limits.memory.swap", boolean, Live, Container),
        key("limits.memory.swap.priority", zero_to_ten, Live, Container),
        key("limits.processes", processes, Live, Container),
        key("linux.sysctl.", line, NextStart, Container),
        only("migration.stateful", boolean, &["false", "0", "no", "off"]),
        key("raw.apparmor", apparmor, Live, Any),
        key("security.idmap.isolated", boolean, Live, Container),
        key("security.idmap.size", id_size, Stopped, Container),
        key("security.nesting", boolean, NextStart, Container),
        key("security.privileged", boolean, NextStart, Container),
        key("security.protection.delete", boolean, Live, Any),
        key("security.protection.shift", boolean, Live, Container),
        key("security.syscalls.deny", syscalls, NextStart, Container),
        key(
            "security.syscalls.deny_default",
            boolean,
            NextStart,
            Container,
        ),
        only("security.devlxd", boolean, &["false", "0", "no", "off"]),
        key("snapshots.expiry", expiry, Live, Any),
        key("snapshots.pattern", pattern, Live, Any),
        key("snapshots.schedule", schedule, Live, Any),
        key("snapshots.schedule.stopped", boolean, Live, Any),
        key("volatile.", line, Live, Any),
        // Known from LXD, not done by this version.
        not_yet("agent.nic_config", VirtualMachine),
        not_yet("boot.debug_edk2", VirtualMachine),
        not_yet("cluster.evacuate", Any),
        not_yet("limits.cpu.nodes", Any),
        not_yet("limits.hugepages.", Container),
        not_yet("limits.memory.hugepages", VirtualMachine),
        not_yet("limits.network.priority", Any),
        not_yet("linux.kernel_modules", Container),
        not_yet("migration.incremental.", Container),
        not_yet("nvidia.", Container),
        not_yet("raw.idmap", Container),
        not_yet("raw.lxc", Container),
        not_yet("raw.qemu", VirtualMachine),
        not_yet("raw.qemu.conf", VirtualMachine),
        not_yet("raw.seccomp", Container),
        not_yet("security.agent.metrics", VirtualMachine),
        not_yet("security.csm", VirtualMachine),
        not_yet("security.devlxd.images", Any),
        not_yet("security.idmap.base", Container),
        not_yet("security.secureboot", VirtualMachine),
        not_yet("security.sev", VirtualMachine),
        not_yet("security.sev.", VirtualMachine),
        not_yet("security.syscalls.", Container),
    ]
};

/// Names that `limits.kernel.` takes.
const KERNEL_LIMITS: [&str; 14] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rtprio",
    "sigpending",
    "stack",
];

fn find(name: &str) -> Option<&'static Key> {
    let exact = TABLE
        .iter()
        .find(|k| k.name == name && !name.ends_with('.'));
    exact.or_else(|| {
        // The longest prefix counts, so that `security.sev.x` is not taken for another family.
        let prefixes = TABLE
            .iter()
            .filter(|k| k.name.ends_with('.') && name.starts_with(k.name));
        prefixes
            .filter(|k| name.len() > k.name.len())
            .max_by_key(|k| k.name.len())
    })
}

/// Where a configuration is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Container,
    /// Takes keys of containers and of virtual machines, and no `volatile.*`.
    Profile,
}

/// Refuses unknown keys, wrong values and what this version does not do, naming the key.
pub fn validate(config: &Config, scope: Scope) -> Result<(), Error> {
    for (name, text) in config {
        validate_one(name, text, scope)?;
    }
    Ok(())
}

fn validate_one(name: &str, text: &str, scope: Scope) -> Result<(), Error> {
    let field = format!("config.{name}");
    let unknown = || Error::invalid(field.clone(), format!("Unknown configuration key: {name}"));
    let key = find(name).ok_or_else(unknown)?;
    if scope == Scope::Container && key.for_type == For::VirtualMachine {
        return Err(unknown());
    }
    if scope == Scope::Profile && key.name == "volatile." {
        return Err(Error::invalid(
            field,
            format!("Volatile keys can't be set in profiles: {name}"),
        ));
    }
    check_suffix(key, name).map_err(|()| unknown())?;
    if text.is_empty() {
        return Ok(());
    }
    match key.support {
        Support::NotYet => {
            return Err(Error::invalid(
                field,
                format!("The configuration key {name} is not supported by this version"),
            ));
        }
        Support::Only(values) if !values.contains(&text.to_ascii_lowercase().as_str()) => {
            return Err(Error::invalid(
                field,
                format!("The value {text:?} of {name} is not supported by this version"),
            ));
        }
        _ => {}
    }
    (key.check)(text).map_err(|why| {
        Error::invalid(
            field.clone(),
            format!("Invalid config option {name:?}: {why}"),
        )
    })?;
    if matches!(name, "volatile.uuid" | "volatile.cloud-init.instance-id") {
        uuid(text).map_err(|why| Error::invalid(field, why))?;
    }
    Ok(())
}

/// Keys that services keep beside the user's: those of an instance, and what they keep for each device.
const VOLATILE: [&str; 12] = [
    "apply_nvram",
    "apply_quota",
    "apply_template",
    "base_image",
    "cloud-init.instance-id",
    "evacuate.origin",
    "idmap.base",
    "idmap.current",
    "idmap.next",
    "last_state.idmap",
    "last_state.power",
    "uuid",
];
const VOLATILE_DEVICE: [&str; 14] = [
    ".apply_quota",
    ".ceph_rbd",
    ".driver",
    ".host_name",
    ".hwaddr",
    ".last_state.created",
    ".last_state.hwaddr",
    ".last_state.mtu",
    ".last_state.vf.hwaddr",
    ".last_state.vf.id",
    ".last_state.vf.spoofcheck",
    ".last_state.vf.vlan",
    ".name",
    ".uuid",
];

fn is_volatile(suffix: &str) -> bool {
    let of_device = |end: &str| suffix.len() > end.len() && suffix.ends_with(end);
    VOLATILE.contains(&suffix) || VOLATILE_DEVICE.iter().any(|end| of_device(end))
}

/// What comes after a prefix has rules of its own where it becomes a name elsewhere.
fn check_suffix(key: &Key, name: &str) -> Result<(), ()> {
    let Some(suffix) = name.strip_prefix(key.name).filter(|s| !s.is_empty()) else {
        return Ok(());
    };
    let plain = |extra: &[u8]| {
        suffix
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
    };
    let fine = match key.name {
        "environment." => plain(b"_") && !suffix.as_bytes()[0].is_ascii_digit(),
        "limits.kernel." => KERNEL_LIMITS.contains(&suffix),
        "linux.sysctl." => plain(b"._-/") && !suffix.contains(".."),
        "volatile." => is_volatile(suffix) && !suffix.chars().any(char::is_control),
        _ => !suffix.chars().any(char::is_control),
    };
    if fine { Ok(()) } else { Err(()) }
}

/// How a change of this key takes effect; unknown keys were refused before.
pub fn change(name: &str) -> Change {
    find(name).map_or(Change::Stopped, |k| k.change)
}

/// Whether the key changes what the monitor limits.
pub fn is_limit(name: &str) -> bool {
    name.starts_with("limits.") && !name.starts_with("limits.kernel.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(name: &str, text: &str) -> Result<(), Error> {
        let config = Config::from([(name.to_owned(), text.to_owned())]);
        validate(&config, Scope::Container)
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = TABLE.iter().map(|k| k.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn unknown_keys_are_named() {
        let error = check("limits.bogus", "1").unwrap_err();
        assert_eq!(error.message, "Unknown configuration key: limits.bogus");
        for name in [
            "",
            "user.",
            "environment.A B",
            "environment.1A",
            "limits.kernel.magic",
            "volatile.foo",
            "volatile.hwaddr",
        ] {
            assert!(check(name, "1").is_err(), "{name}");
        }
    }

    #[test]
    fn supported_values_pass() {
        for (name, text) in [
            ("limits.cpu", "2"),
            ("limits.memory", "128MiB"),
            ("limits.memory", "50%"),
            ("limits.processes", "200"),
            ("user.anything/at:all", "x\ny"),
            ("environment.FOO_BAR", "x y"),
            ("limits.kernel.nofile", "1024:unlimited"),
            ("volatile.eth0.hwaddr", "00:16:3e:00:00:01"),
            ("limits.cpu", ""),
        ] {
            assert!(check(name, text).is_ok(), "{name}={text}");
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        for (name, text) in [
            ("limits.cpu", "zero"),
            ("limits.memory", "4kB"),
            ("environment.FOO", "a\nlxc.hook=1"),
            ("security.privileged", "maybe"),
            ("raw.lxc", "lxc.mount.entry = x"),
            ("snapshots.schedule", "@sometimes"),
            ("snapshots.expiry", "1d 2d"),
            ("snapshots.pattern", "{{ name }}"),
            ("security.devlxd", "true"),
            ("security.secureboot", "true"),
        ] {
            assert!(check(name, text).is_err(), "{name}={text}");
        }
    }

    #[test]
    fn profiles_take_machine_keys_but_nothing_volatile() {
        let config = Config::from([("volatile.uuid".to_owned(), "x".to_owned())]);
        assert!(validate(&config, Scope::Profile).is_err());
    }

    proptest! {
        #[test]
        fn line_breaks_never_reach_single_line_keys(
            at in 0usize..TABLE.len(), before in "[a-z0-9]{0,5}", bad in "[\\n\\r\\x00]",
        ) {
            let name = TABLE[at].name;
            let free = ["user.", "cloud-init.network-config", "cloud-init.user-data",
                "cloud-init.vendor-data", "security.syscalls.deny", "snapshots.expiry", "raw.apparmor"];
            prop_assume!(!free.contains(&name));
            let name = if name.ends_with('.') { format!("{name}nofile") } else { name.to_owned() };
            let text = format!("{before}{bad}x");
            prop_assert!(check(&name, &text).is_err());
        }
    }
}
