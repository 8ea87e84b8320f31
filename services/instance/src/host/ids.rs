//! Ids of a guest's files as they look from here, and making files as one of them.

use berth_monitor::spec::{IdKind, IdMap};

/// How the ids seen through a descriptor relate to the guest's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdView {
    /// They are the guest's: a privileged guest, or an unmapped look at ids stored raw.
    Same,
    /// They are mapped by these lines.
    Mapped(Vec<IdMap>),
}

/// Owner shown for an id that the guest has no name for.
const NOBODY: u32 = 65_534;

impl IdView {
    /// The id here of a guest's id; `None` when it is not in its range.
    pub fn to_host(&self, kind: IdKind, id: u32) -> Option<u32> {
        let IdView::Mapped(lines) = self else {
            return Some(id);
        };
        let line = lines
            .iter()
            .filter(|l| l.kind == IdKind::Both || l.kind == kind);
        line.filter(|l| id >= l.ns && id - l.ns < l.len)
            .map(|l| l.host + (id - l.ns))
            .next()
    }

    /// The guest's id of an id here.
    pub fn to_guest(&self, kind: IdKind, id: u32) -> u32 {
        let IdView::Mapped(lines) = self else {
            return id;
        };
        let line = lines
            .iter()
            .filter(|l| l.kind == IdKind::Both || l.kind == kind);
        let found = line.filter(|l| id >= l.host && id - l.host < l.len);
        found.map(|l| l.ns + (id - l.host)).next().unwrap_or(NOBODY)
    }
}

/// Makes this thread create files as `uid` and `gid`, keeping its capabilities: an idmapped mount refuses
/// files of ids that it does not map, the service's own among them. For threads that end afterwards.
pub fn create_as(uid: u32, gid: u32) -> std::io::Result<()> {
    use caps::CapSet;
    let effective = caps::read(None, CapSet::Effective).map_err(std::io::Error::other)?;
    // SAFETY: setfsgid and setfsuid change this thread's credentials only and have no memory effects.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, libc::c_long::from(gid));
        libc::syscall(libc::SYS_setfsuid, libc::c_long::from(uid));
    }
    // A change away from 0 takes the file capabilities out of the effective set; they are still permitted.
    // With CAP_SYS_RESOURCE the guest's disk quota would not hold for what is pushed into it.
    let wanted: caps::CapsHashSet = effective
        .into_iter()
        .filter(|c| *c != caps::Capability::CAP_SYS_RESOURCE)
        .collect();
    caps::set(None, CapSet::Effective, &wanted).map_err(std::io::Error::other)?;
    // Both calls answer with the id in force before; asking with an impossible one only reads it.
    // SAFETY: as above.
    let now = unsafe { libc::syscall(libc::SYS_setfsuid, -1i64) };
    if now != i64::from(uid) {
        return Err(std::io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_survive_the_way_there_and_back(id in 0u32..70_000) {
            let line = IdMap { kind: IdKind::Both, host: 1_000_000, ns: 0, len: 65_536 };
            let view = IdView::Mapped(vec![line]);
            match view.to_host(IdKind::Uid, id) {
                Some(host) => prop_assert_eq!(view.to_guest(IdKind::Uid, host), id),
                None => prop_assert!(id >= 65_536),
            }
            prop_assert_eq!(view.to_guest(IdKind::Uid, id), NOBODY);
        }
    }
}
