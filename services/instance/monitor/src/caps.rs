//! Capability numbers and the bounding set.

use crate::sys;

const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// Number of a capability named like `sys_rawio` (a `CAP_` prefix and upper case are taken, too).
pub fn number(name: &str) -> Option<u32> {
    let name = name.to_ascii_lowercase();
    let name = name.strip_prefix("cap_").unwrap_or(&name);
    NAMES.iter().position(|n| *n == name).map(|n| n as u32)
}

/// Takes `drop` out of the bounding set and empties the ambient set. Numbers this kernel does not know
/// cannot be held and are skipped.
pub(crate) fn limit(drop: &[u32]) -> std::io::Result<()> {
    for &cap in drop {
        match sys::prctl(libc::PR_CAPBSET_DROP, cap as usize) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            other => drop_value(other)?,
        }
    }
    match sys::prctl4(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as usize,
        0,
        0,
    ) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => drop_value(other),
    }?;
    clear_inheritable()
}

fn drop_value(result: std::io::Result<i32>) -> std::io::Result<()> {
    result.map(|_| ())
}

/// Empties the inheritable set (runc CVE-2022-24769). What was dropped leaves permitted and effective at the exec
/// by itself, since both are cut by the bounding set there.
fn clear_inheritable() -> std::io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Default, Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let mut header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: both point to live values of the layout capget(2) wants for version 3 (two data elements).
    let got = unsafe { libc::syscall(libc::SYS_capget, &mut header, data.as_mut_ptr()) };
    sys::check(got as i32)?;
    for part in &mut data {
        part.inheritable = 0;
    }
    // SAFETY: as above.
    let set = unsafe { libc::syscall(libc::SYS_capset, &mut header, data.as_ptr()) };
    sys::check(set as i32).map(|_| ())
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(super::number("chown"), Some(0));
        assert_eq!(super::number("CAP_SYS_ADMIN"), Some(21));
        assert_eq!(super::number("sys_rawio"), Some(17));
        assert_eq!(super::number("checkpoint_restore"), Some(40));
        assert_eq!(super::number("everything"), None);
    }
}
