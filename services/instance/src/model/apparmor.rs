//! The AppArmor profile of a guest, as text.
//!
//! What keeps an unprivileged guest in is its user namespace, its seccomp filter and its cgroups; the profile is a
//! second fence around it: no way to another profile, no signal to what is not a guest, and nothing that tells of
//! the host or steers it even if ids were mixed up. A privileged guest's root is the host's root, and there the
//! profile is one of the walls: what is below /proc and /sys is denied by path, so no mount may give it another path.
//! With nesting a privileged guest makes mounts as it likes, and is then confined in name only, as with LXD.
//!
//! The profile mediates mount(2). The calls that came after it (fsopen, open_tree, move_mount) are not mediated by every
//! kernel: [`BYPASSES`] are refused to guests whose mounts are restricted, and programs fall back to mount(2).

use std::fmt::Write as _;

/// What decides about the text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Guest {
    pub privileged: bool,
    pub nesting: bool,
    /// `raw.apparmor`, checked.
    pub raw: String,
}

/// Any guest's name in text that guests share. As long as every other guest's.
pub const ANY_UID: &str = "00000000-0000-0000-0000-000000000000";

/// The profile's name. `uid` is an instance's.
pub fn name(uid: &str) -> String {
    format!("berth-{uid}")
}

/// The uid in a profile's name; `None` for profiles that are no guest's (`berth-image` is a service's).
pub fn uid_of(name: &str) -> Option<&str> {
    let uid = name.strip_prefix("berth-")?;
    let canonical = uid.len() == ANY_UID.len() && uuid::Uuid::try_parse(uid).is_ok();
    canonical.then_some(uid)
}

/// System calls that would go round the rules for mounts, as `security.syscalls.deny` has them.
pub const BYPASSES: &str =
    "fsopen errno 38\nfspick errno 38\nopen_tree errno 38\nmove_mount errno 38\n";

impl Guest {
    /// Whether the profile restricts what the guest may mount.
    pub fn restricts_mounts(&self) -> bool {
        self.privileged && !self.nesting
    }
}

/// systemd builds the mount tree of a unit here before it moves it to `/`: what is denied is denied here as well.
const UNIT_ROOT: &str = "/run/systemd/unit-root";
const ROOTS: &str = "/{,run/systemd/unit-root/}";

/// Tells of the host, or steers it; with no namespace of its own.
const DENIED_PROC: [&str; 21] = [
    "acpi/**",
    "bus/**",
    "dynamic_debug/**",
    "fs/**",
    "irq/**",
    "kallsyms",
    "kcore",
    "kmem",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "mem",
    "mtrr",
    "sched_debug",
    "scsi/**",
    "slabinfo",
    "sysrq-trigger",
    "timer_list",
    "timer_stats",
    "vmallocinfo",
];
/// Of those, what may be read.
const READABLE_PROC: [&str; 6] = ["bus/**", "fs/**", "irq/**", "mtrr", "kallsyms", "slabinfo"];
/// Settings that belong to namespaces a guest has of its own.
const OWN_SYSCTLS: [&str; 12] = [
    "fs/mqueue",
    "kernel/domainname",
    "kernel/hostname",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "net",
];
/// Parts of sysfs that belong to namespaces a guest has of its own.
const OWN_SYS: [&str; 3] = ["class/net", "devices/virtual/net", "fs/cgroup"];
/// Filesystems of the kernel that have no namespace.
const HOST_FILESYSTEMS: &str =
    "bpf, configfs, debugfs, efivarfs, pstore, rpc_pipefs, securityfs, selinuxfs, smackfs, tracefs";
/// What systemd mounts over itself, to make it read-only for one of its units.
const OVER_THEMSELVES: [&str; 16] = [
    "proc/",
    "proc/acpi/",
    "proc/fs/",
    "proc/irq/",
    "proc/kallsyms",
    "proc/kcore",
    "proc/latency_stats",
    "proc/mtrr",
    "proc/scsi/",
    "proc/sys/",
    "proc/sys/kernel/domainname",
    "proc/sys/kernel/hostname",
    "proc/sysrq-trigger",
    "sys/",
    "sys/fs/cgroup/",
    "sys/kernel/debug/",
];

/// The profile `name` of a guest.
pub fn profile(name: &str, guest: &Guest) -> String {
    let mut text = String::new();
    let mut line = |rule: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {rule}");
    };
    line("file,");
    line("capability,");
    line("network,");
    line("unix,");
    line("dbus,");
    // Whoever may signal or look at a guest is the host's affair; what a guest may is here. Its pid namespace keeps
    // one guest from another.
    line("signal (receive),");
    line("signal (send) peer=berth-*,");
    line("ptrace (readby, tracedby),");
    line("ptrace (read, trace) peer=berth-*,");
    if guest.restricts_mounts() {
        privileged_mounts(&mut line);
        // The rest of a name space is left to who builds one; changing the root would change every path below.
        line("umount,");
    } else {
        for rule in ["mount,", "remount,", "umount,", "pivot_root,"] {
            line(rule);
        }
    }
    line(&format!("deny mount fstype=({HOST_FILESYSTEMS}),"));
    for capability in ["mac_admin", "mac_override", "sys_module", "sys_rawio"] {
        line(&format!("deny capability {capability},"));
    }
    for path in DENIED_PROC {
        let access = match READABLE_PROC.contains(&path) {
            true => "wklx",
            false => "rwklx",
        };
        line(&format!("deny {ROOTS}proc/{path} {access},"));
    }
    for path in ["mem", "kmem", "port"] {
        line(&format!("deny {ROOTS}dev/{path} rwklx,"));
    }
    if guest.privileged {
        for path in all_but("proc/sys/", &OWN_SYSCTLS) {
            line(&format!("deny {ROOTS}{path} wklx,"));
        }
        for path in all_but("sys/", &OWN_SYS) {
            line(&format!("deny {ROOTS}{path} wklx,"));
        }
    }
    if !guest.raw.trim().is_empty() {
        line("# raw.apparmor");
        for raw in guest.raw.lines() {
            line(raw);
        }
    }
    format!(
        "abi <abi/3.0>,\n\nprofile {name} flags=(attach_disconnected,mediate_deleted) {{\n{text}}}\n"
    )
}

/// Mounts of a guest whose root is the host's: none that gives a file of /proc or /sys another path.
fn privileged_mounts(line: &mut impl FnMut(&str)) {
    let flags = "options in (rw, ro, nosuid, nodev, noexec, relatime, noatime, nodiratime, strictatime, sync, dirsync, \
                 mand, silent)";
    for fs in [
        "tmpfs",
        "ramfs",
        "devpts",
        "mqueue",
        "hugetlbfs",
        "fuse",
        "fuse.*",
        "fusectl",
    ] {
        line(&format!("mount fstype={fs},"));
    }
    line(&format!("mount fstype=proc {flags} -> {ROOTS}proc/,"));
    line(&format!("mount fstype=sysfs {flags} -> {ROOTS}sys/,"));
    for fs in ["cgroup", "cgroup2"] {
        line(&format!(
            "mount fstype={fs} {flags} -> {ROOTS}sys/fs/cgroup/{{,**}},"
        ));
    }
    // Attributes and propagation change no path.
    line("remount,");
    for kind in ["shared", "slave", "private", "unbindable"] {
        line(&format!("mount options=(rw, make-{kind}),"));
        line(&format!("mount options=(rw, make-r{kind}),"));
    }
    line(&format!(
        "mount options in (rw, bind, rbind, silent) / -> {UNIT_ROOT}/,"
    ));
    line(&format!(
        "mount options in (rw, move, silent) {UNIT_ROOT}/ -> /,"
    ));
    let kernel_files = [
        "proc",
        "sys",
        "run/systemd/unit-root/proc",
        "run/systemd/unit-root/sys",
    ];
    for source in all_but("/", &kernel_files) {
        line(&format!(
            "mount options in (rw, bind, rbind, silent) {source} -> /**,"
        ));
    }
    for path in OVER_THEMSELVES {
        for root in ["", UNIT_ROOT] {
            line(&format!(
                "mount options in (rw, bind, rbind, silent) {root}/{path} -> {root}/{path},"
            ));
        }
    }
}

/// Globs that together match everything below `above` but `kept` and what is below those.
fn all_but(above: &str, kept: &[&str]) -> Vec<String> {
    let mut globs = Vec::new();
    complement(above.to_owned(), kept, &mut globs);
    globs
}

/// `at` was matched letter by letter; `rest` is what of the kept names comes after it.
fn complement(at: String, rest: &[&str], globs: &mut Vec<String>) {
    if rest.iter().any(|name| name.is_empty()) {
        // A kept name ends here: what goes on otherwise than with a slash is another name.
        globs.push(format!("{at}[^/]**"));
        return;
    }
    let mut next: Vec<char> = rest.iter().filter_map(|name| name.chars().next()).collect();
    next.sort_unstable();
    next.dedup();
    let others: String = next.iter().collect();
    globs.push(format!("{at}{{,[^{others}]**}}"));
    for letter in next {
        let further: Vec<&str> = rest
            .iter()
            .filter_map(|name| name.strip_prefix(letter))
            .collect();
        complement(format!("{at}{letter}"), &further, globs);
    }
}

/// Whether `raw.apparmor` can only be rules inside a profile. The parser checks that they are rules; this checks that
/// none of them ends the profile that they are put into. Where comments, quotes and globs could be read in two ways
/// it refuses rather than to guess how the parser does.
pub fn check_raw(text: &str) -> Result<(), String> {
    let mut depth = 0usize;
    for (number, line) in text.lines().enumerate() {
        check_line(line, &mut depth).map_err(|why| format!("line {}: {why}", number + 1))?;
    }
    match depth {
        0 => Ok(()),
        _ => Err("a brace is not closed".to_owned()),
    }
}

fn check_line(line: &str, depth: &mut usize) -> Result<(), String> {
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return Err("control characters are not allowed".to_owned());
    }
    let trimmed = line.trim();
    if has_include(line) {
        return check_include(trimmed);
    }
    let code = match line.split_once('#') {
        Some((code, comment)) => {
            if comment.contains(['{', '}', '"', '\\']) {
                return Err("braces, quotes and backslashes are not allowed after #".to_owned());
            }
            code
        }
        None => line,
    };
    for (i, part) in code.split('"').enumerate() {
        if i % 2 == 1 {
            if part.contains(['{', '}', '\\']) {
                return Err("braces and backslashes are not allowed in quotes".to_owned());
            }
            continue;
        }
        if part.contains("\\{") || part.contains("\\}") || part.contains("\\\\") {
            return Err("escaped braces and backslashes are not allowed".to_owned());
        }
        for letter in part.chars() {
            match letter {
                '{' => *depth += 1,
                '}' => {
                    *depth = depth
                        .checked_sub(1)
                        .ok_or("a closing brace would end the profile")?;
                }
                _ => {}
            }
        }
    }
    if line.matches('"').count() % 2 == 1 {
        return Err("a quote is not closed in its line".to_owned());
    }
    // A backslash at the end would take the next line's beginning, or our own closing brace, with it.
    if trimmed.ends_with('\\') {
        return Err("a backslash at the end of a line is not allowed".to_owned());
    }
    Ok(())
}

/// Whether the parser could read the word as the directive: not where it is part of a path.
fn has_include(line: &str) -> bool {
    line.match_indices("include").any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| c.is_whitespace() || "#,{}\";".contains(c))
    })
}

/// An include takes in a file of the host: only what its packages mean for that.
fn check_include(line: &str) -> Result<(), String> {
    let refuse = || {
        "the word include is allowed in paths and in lines `include <abstractions/NAME>` only"
            .to_owned()
    };
    let rest = line.strip_prefix('#').unwrap_or(line);
    let rest = rest
        .strip_prefix("include")
        .ok_or_else(refuse)?
        .trim_start();
    let rest = rest.strip_prefix("if exists").unwrap_or(rest).trim();
    let rest = rest.strip_suffix(',').unwrap_or(rest);
    let name = rest
        .strip_prefix("<abstractions/")
        .and_then(|rest| rest.strip_suffix('>'))
        .ok_or_else(refuse)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+/".contains(c);
    match !name.is_empty() && name.chars().all(plain) && !name.contains("..") {
        true => Ok(()),
        false => Err(refuse()),
    }
}

#[cfg(test)]
mod tests;
