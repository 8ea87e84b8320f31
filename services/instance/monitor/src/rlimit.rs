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

/// Kernel number of a limit named like `nofile`.
pub fn resource(name: &str) -> Option<libc::__rlimit_resource_t> {
    NAMES.iter().find(|(n, _)| *n == name).map(|(_, r)| *r)
}

/// Sets the limits of a child from outside: the guest's root may not raise them.
pub(crate) fn apply(pid: i32, limits: &[Rlimit]) -> Result<()> {
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
