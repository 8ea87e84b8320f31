//! Legacy iptables keep their rules outside nf_tables. Berth does not change them; whether their
//! policy drops what guests send is read from the kernel, and told.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::model::plan::NetworkPlan;

/// Offsets in `struct ipt_entry` and `struct ip6t_entry`, and the levels of their socket options.
struct Layout {
    family: libc::c_int,
    level: libc::c_int,
    names: &'static str,
    shown: &'static str,
    target_offset: usize,
}

const LAYOUTS: [Layout; 2] = [
    Layout {
        family: libc::AF_INET,
        level: libc::IPPROTO_IP,
        names: "/proc/self/net/ip_tables_names",
        shown: "iptables-legacy",
        target_offset: 88,
    },
    Layout {
        family: libc::AF_INET6,
        level: libc::IPPROTO_IPV6,
        names: "/proc/self/net/ip6_tables_names",
        shown: "ip6tables-legacy",
        target_offset: 140,
    },
];

const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// name, valid hooks, five entries, five underflows, number of entries, size.
const INFO_LEN: usize = 32 + 4 + 20 + 20 + 4 + 4;
/// name, size, and room to the entries' alignment.
const ENTRIES_HEAD: usize = 40;
const TARGET_HEAD: usize = 32;
/// Verdicts of the standard target are stored as -verdict - 1.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;

/// What legacy rules do to guests of a network.
pub(crate) fn warnings(plan: &NetworkPlan) -> Vec<String> {
    let v4 = plan.ipv4.is_some();
    let v6 = plan.ipv6.is_some();
    let mut out = Vec::new();
    for (layout, concerns) in LAYOUTS.iter().zip([v4, v6]) {
        // Asking for a table that is not there would make it.
        let names = std::fs::read_to_string(layout.names).unwrap_or_default();
        if !concerns || !names.lines().any(|n| n == "filter") {
            continue;
        }
        for (hook, chain, effect) in [
            (1, "INPUT", "DHCP and DNS of guests"),
            (2, "FORWARD", "packets of guests to other networks"),
        ] {
            match policy_drops(layout, hook) {
                Ok(false) => {}
                Ok(true) => out.push(format!(
                    "The legacy chain \"filter {chain}\" (policy drop) may be in the way: it drops {effect} unless a rule of it lets them through. To let them through: {} -I {chain} -i {} -j ACCEPT",
                    layout.shown, plan.name
                )),
                Err(error) => tracing::debug!(chain, %error, "legacy rules cannot be read"),
            }
        }
    }
    out
}

fn policy_drops(layout: &Layout, hook: usize) -> io::Result<bool> {
    // SAFETY: a plain system call; the descriptor is owned from here on.
    let socket = unsafe {
        let fd = libc::socket(layout.family, libc::SOCK_RAW, libc::IPPROTO_RAW);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let mut info = vec![0_u8; INFO_LEN];
    info[..6].copy_from_slice(b"filter");
    get(&socket, layout.level, GET_INFO, &mut info)?;
    let number = |bytes: &[u8], at: usize| -> usize {
        bytes
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u32::from_ne_bytes) as usize
    };
    // The entry at a hook's underflow is its policy.
    let underflow = number(&info, 56 + 4 * hook);
    let size = number(&info, 80);
    let mut entries = vec![0_u8; ENTRIES_HEAD + size];
    entries[..6].copy_from_slice(b"filter");
    entries[32..36].copy_from_slice(&u32::try_from(size).unwrap_or(0).to_ne_bytes());
    get(&socket, layout.level, GET_ENTRIES, &mut entries)?;
    let entry = ENTRIES_HEAD + underflow;
    let offset = entry + layout.target_offset;
    let target = entries
        .get(offset..offset + 2)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u16::from_ne_bytes);
    let verdict = number(&entries, entry + usize::from(target) + TARGET_HEAD);
    let verdict = u32::try_from(verdict).unwrap_or(0).cast_signed();
    match verdict {
        DROP => Ok(true),
        ACCEPT => Ok(false),
        other => Err(io::Error::other(format!("policy {other} is neither"))),
    }
}

fn get(
    socket: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut len = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the buffer is `len` bytes long and the kernel writes no more than that.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asking makes the kernel load the tables with policy accept, in a namespace of the test's.
    #[test]
    fn a_fresh_table_accepts() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: it needs root");
            return;
        }
        let answers = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            LAYOUTS.each_ref().map(|layout| {
                let mut policies = Vec::new();
                for hook in [1, 2, 3] {
                    match policy_drops(layout, hook) {
                        Ok(drops) => policies.push(drops),
                        // A kernel without legacy tables.
                        Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => {}
                        Err(e) => panic!("{}: {e}", layout.shown),
                    }
                }
                policies
            })
        })
        .join()
        .unwrap();
        assert!(answers.iter().flatten().all(|drops| !drops), "{answers:?}");
    }
}
