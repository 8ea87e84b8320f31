//! Resource limits by name.

use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::spec::Rlimit;
use crate::sys;

const NAMES: [(&str, libc::__rlimit_resource_t); 16] = [
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

fn lower_nofile(pid: i32) -> std::io::Result<()> {
    let mut now = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `now` is a live rlimit to be filled, no new value is given.
    sys::check(unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &mut now) })?;
    now.rlim_cur = now.rlim_cur.min(NOFILE_SOFT);
    // SAFETY: `now` is a live rlimit, the old value is not asked for.
    let set = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &now, std::ptr::null_mut()) };
    sys::check(set).map(drop)
}

/// Kernel number of a limit named like `nofile`.
pub fn resource(name: &str) -> Option<libc::__rlimit_resource_t> {
    NAMES.iter().find(|(n, _)| *n == name).map(|(_, r)| *r)
}

/// Open files that a program of the guest starts with, as the kernel has it for the first process. The service needs
/// far more, and a program that closes or selects over all it may open would suffer from that.
const NOFILE_SOFT: libc::rlim_t = 1024;

/// Sets the limits of a child from outside: the guest's root may not raise them.
pub(crate) fn apply(pid: i32, limits: &[Rlimit]) -> Result<()> {
    if !limits.iter().any(|limit| limit.name == "nofile") {
        lower_nofile(pid).at("rlimits", "setting limit nofile")?;
    }
    for limit in limits {
        let resource = resource(&limit.name).ok_or_else(|| {
            Fault::new(
                "rlimits",
                FaultCode::Invalid,
                format!("unknown resource {:?}", limit.name),
            )
        })?;
        let value = libc::rlimit {
            rlim_cur: limit.soft.unwrap_or(libc::RLIM_INFINITY),
            rlim_max: limit.hard.unwrap_or(libc::RLIM_INFINITY),
        };
        // SAFETY: `value` is a live rlimit, the old value is not asked for.
        let done = unsafe { libc::prlimit(pid, resource, &value, std::ptr::null_mut()) };
        sys::check(done).at("rlimits", format!("setting limit {}", limit.name))?;
    }
    Ok(())
}
