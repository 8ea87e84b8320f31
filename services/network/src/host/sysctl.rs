//! Kernel settings below `/proc/sys/net`, of the service's network namespace.

use std::path::PathBuf;

use super::{HostError, io};

fn path(key: &[&str]) -> PathBuf {
    let mut path = PathBuf::from("/proc/sys/net");
    path.extend(key);
    path
}

/// Writes a setting unless it is so already; a file that is not there (no IPv6) is passed over.
pub(crate) fn set(key: &[&str], value: &str) -> Result<(), HostError> {
    let path = path(key);
    match std::fs::read_to_string(&path) {
        Ok(now) if now.trim() == value => Ok(()),
        Ok(_) => std::fs::write(&path, value).map_err(io(format!("set {}", path.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(io(format!("read {}", path.display()))(e)),
    }
}

/// Whether the kernel has IPv6.
pub(crate) fn has_ipv6() -> bool {
    path(&["ipv6"]).exists()
}

/// Lets the host route. Routing hosts ignore router advertisements, so links that get their
/// address by one keep listening explicitly first.
pub(crate) fn enable_forwarding(v6: bool) -> Result<(), HostError> {
    if !v6 {
        return set(&["ipv4", "ip_forward"], "1");
    }
    let all = path(&["ipv6", "conf", "all", "forwarding"]);
    let Ok(now) = std::fs::read_to_string(&all) else {
        return Ok(());
    };
    if now.trim() == "1" {
        return Ok(());
    }
    let links = std::fs::read_dir(path(&["ipv6", "conf"])).map_err(io("list links"))?;
    for link in links.flatten() {
        let file = link.path().join("accept_ra");
        if std::fs::read_to_string(&file).is_ok_and(|v| v.trim() == "1") {
            // A link may vanish at any moment.
            let _ = std::fs::write(&file, "2");
        }
    }
    std::fs::write(&all, "1").map_err(io("enable IPv6 forwarding"))
}
