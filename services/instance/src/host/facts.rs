//! Facts of the host that guests share.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::model::value::cpu_set;

/// Read once at start; a host does not change its kernel under us.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub hostname: String,
    pub kernel: String,
    pub kernel_version: String,
    pub kernel_architecture: String,
    pub architectures: Vec<String>,
    pub kernel_features: BTreeMap<String, String>,
    pub runtime_features: BTreeMap<String, String>,
    pub os_name: String,
    pub os_version: String,
    pub memory_bytes: u64,
    /// CPUs that guests may have.
    pub cpus: Vec<u32>,
    pub boot_id: String,
    /// Every logical CPU.
    pub topology: Vec<Cpu>,
    pub cpu_vendor: String,
    pub cpu_name: String,
}

/// Where a logical CPU is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    pub id: u32,
    pub socket: u32,
    pub die: u32,
    pub core: u32,
    /// Which of its core's threads.
    pub thread: u32,
    pub numa_node: u32,
    pub online: bool,
    pub isolated: bool,
}

impl Facts {
    pub fn read() -> std::io::Result<Facts> {
        let uname = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        let machine = text(uname.machine());
        let (os_name, os_version) = os_release();
        let (cpu_vendor, cpu_name) = cpu_model();
        Ok(Facts {
            hostname: text(uname.nodename()),
            kernel: text(uname.sysname()),
            kernel_version: text(uname.release()),
            architectures: architectures(&machine),
            kernel_architecture: machine,
            kernel_features: kernel_features(),
            runtime_features: runtime_features(),
            os_name,
            os_version,
            memory_bytes: memory_total()?,
            cpus: online_cpus()?,
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")?
                .trim()
                .to_owned(),
            topology: topology()?,
            cpu_vendor,
            cpu_name,
        })
    }
}

/// Bytes of the host's memory in use now; 0 where the kernel does not say.
pub fn memory_used() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| meminfo(&text, key);
    match (kib("MemTotal:"), kib("MemAvailable:")) {
        (Some(total), Some(available)) => total.saturating_sub(available) * 1024,
        _ => 0,
    }
}

fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn cpu_model() -> (String, String) {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let get = |key: &str| {
        let value = text
            .lines()
            .find_map(|l| l.strip_prefix(key)?.trim_start().strip_prefix(':'));
        value.unwrap_or_default().trim().to_owned()
    };
    (get("vendor_id"), get("model name"))
}

fn topology() -> std::io::Result<Vec<Cpu>> {
    let list = |name: &str| {
        let text =
            fs::read_to_string(format!("/sys/devices/system/cpu/{name}")).unwrap_or_default();
        cpu_set(text.trim()).unwrap_or_default()
    };
    let (online, isolated) = (list("online"), list("isolated"));
    let mut cpus: Vec<Cpu> = list("present")
        .into_iter()
        .map(|id| cpu(id, &online, &isolated))
        .collect();
    for at in 1..cpus.len() {
        let this = cpus[at];
        let same = |c: &&Cpu| (c.socket, c.die, c.core) == (this.socket, this.die, this.core);
        cpus[at].thread = u32::try_from(cpus[..at].iter().filter(same).count()).unwrap_or(0);
    }
    Ok(cpus)
}

fn cpu(id: u32, online: &[u32], isolated: &[u32]) -> Cpu {
    let dir = format!("/sys/devices/system/cpu/cpu{id}");
    let number = |name: &str| {
        let text = fs::read_to_string(format!("{dir}/topology/{name}")).ok();
        text.and_then(|t| t.trim().parse().ok()).unwrap_or(0)
    };
    let nodes = fs::read_dir(&dir).into_iter().flatten().flatten();
    let node = nodes
        .filter_map(|e| e.file_name().to_str()?.strip_prefix("node")?.parse().ok())
        .next();
    Cpu {
        id,
        socket: number("physical_package_id"),
        die: number("die_id"),
        core: number("core_id"),
        thread: 0,
        numa_node: node.unwrap_or(0),
        online: online.contains(&id),
        isolated: isolated.contains(&id),
    }
}

/// What the kernel runs natively, its own first.
fn architectures(machine: &str) -> Vec<String> {
    let others: &[&str] = match machine {
        "x86_64" => &["i686"],
        "aarch64" => &["armv7l"],
        _ => &[],
    };
    std::iter::once(machine)
        .chain(others.iter().copied())
        .map(str::to_owned)
        .collect()
}

fn memory_total() -> std::io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let total = meminfo(&text, "MemTotal:");
    total
        .map(|kib| kib * 1024)
        .ok_or_else(|| std::io::Error::other("/proc/meminfo has no MemTotal"))
}

/// CPUs of the cpuset this service is in; the online ones where that cannot be read.
fn online_cpus() -> std::io::Result<Vec<u32>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let allowed = status
        .lines()
        .find_map(|l| l.strip_prefix("Cpus_allowed_list:"));
    let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
    let online = cpu_set(online.trim()).map_err(std::io::Error::other)?;
    let allowed = allowed
        .and_then(|l| cpu_set(l.trim()).ok())
        .unwrap_or_else(|| online.clone());
    Ok(online
        .into_iter()
        .filter(|cpu| allowed.contains(cpu))
        .collect())
}

fn os_release() -> (String, String) {
    let text = fs::read_to_string("/etc/os-release")
        .or_else(|_| fs::read_to_string("/usr/lib/os-release"))
        .unwrap_or_default();
    let get = |key: &str| {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    (get("NAME"), get("VERSION_ID"))
}

fn kernel_features() -> BTreeMap<String, String> {
    let exists = |path: &str| Path::new(path).exists();
    // From Linux 5.12 on every filesystem that allows it takes idmapped mounts, and the syscall is there.
    // SAFETY: mount_setattr with a bad descriptor has no effect but its error.
    let probe = unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, 0, 0) };
    let errno = std::io::Error::last_os_error().raw_os_error();
    let idmapped = probe < 0 && errno != Some(libc::ENOSYS);
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let features = [
        ("apparmor", enabled.is_ok_and(|text| text.trim() == "Y")),
        ("idmapped_mounts", idmapped),
        ("netnsid_getifaddrs", true),
        (
            "seccomp_listener",
            exists("/proc/sys/kernel/seccomp/actions_avail"),
        ),
        (
            "seccomp_listener_continue",
            exists("/proc/sys/kernel/seccomp/actions_avail"),
        ),
        ("shiftfs", false),
        ("uevent_injection", false),
        ("unpriv_fscaps", true),
    ];
    features
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_string()))
        .collect()
}

/// In the words of LXD's `lxc_features`: what Berth's monitor does.
fn runtime_features() -> BTreeMap<String, String> {
    let features = [
        ("cgroup2", true),
        ("core_scheduling", false),
        ("devpts_fd", true),
        ("idmapped_mounts_v2", true),
        ("mount_injection_file", true),
        ("network_gateway_device_route", false),
        ("network_ipvlan", false),
        ("network_l2proxy", false),
        ("network_phys_macvlan_mtu", true),
        ("network_veth_router", false),
        ("pidfd", true),
        ("seccomp_allow_deny_syntax", true),
        ("seccomp_notify", false),
        ("seccomp_proxy_send_notify_fd", false),
    ];
    features
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_string()))
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_host_has_facts() {
        let facts = super::Facts::read().unwrap();
        assert!(facts.memory_bytes > 1 << 20);
        assert!(!facts.cpus.is_empty() && !facts.boot_id.is_empty());
        assert_eq!(facts.architectures[0], facts.kernel_architecture);
    }
}
