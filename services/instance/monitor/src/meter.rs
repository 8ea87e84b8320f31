//! A guest's numbers without its monitor: for whoever lists many guests and shall not wake a process for each.
//!
//! All of it blocks, for microseconds: these are reads of the kernel's own counters.

use std::borrow::Cow;
use std::io;
use std::os::fd::OwnedFd;

use crate::cgroup::hierarchy::{self, Kind};
use crate::cgroup::limits::Version;
use crate::cgroup::stats::Counters;
use crate::error::Result;
use crate::netlink::{RouteSocket, links};
use crate::protocol::{LinkState, MemoryState};
use crate::spec::{CgroupSpec, PortSpec};
use crate::sys;

/// The directories below which guests' cgroups are, one for each hierarchy.
#[derive(Debug)]
pub struct Cgroups(Vec<Parent>);

#[derive(Debug)]
struct Parent {
    kind: Kind,
    fd: OwnedFd,
    /// v2: what children have.
    controllers: Vec<String>,
}

/// What one guest uses; a part that the kernel does not tell is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_ns: Option<u64>,
    /// Without `inactive_file` and `oom_kills`.
    pub memory: MemoryState,
    pub pids: Option<u64>,
}

impl Cgroups {
    /// Opens what a [`CgroupSpec`] calls `parent` and `unified_parent`. They are there once a guest has run.
    pub fn open(parent: &str, unified_parent: Option<&str>) -> io::Result<Cgroups> {
        let mut parents = Vec::new();
        for found in hierarchy::parse(&std::fs::read_to_string("/proc/self/mountinfo")?) {
            let parent = CgroupSpec::parent_in(parent, unified_parent, found.kind.delegated());
            let path = format!("{}/{parent}", found.mount);
            let fd = sys::open(&path, libc::O_RDONLY | libc::O_DIRECTORY)?;
            let controllers = match found.kind {
                Kind::V2 => sys::read_at(&fd, "cgroup.subtree_control")?
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect(),
                _ => Vec::new(),
            };
            parents.push(Parent {
                kind: found.kind,
                fd,
                controllers,
            });
        }
        Ok(Cgroups(parents))
    }

    /// Counters of the guest with this cgroup name; `None` when it has no such cgroups.
    pub fn usage(&self, name: &str) -> Option<Usage> {
        let guest = Guest { all: self, name };
        let usage = Usage {
            cpu_ns: guest.cpu_ns(),
            memory: guest.memory(),
            pids: guest.pids(),
        };
        (usage != Usage::default()).then_some(usage)
    }

    /// Page cache that the guest's cgroup could drop. Dearer than all of [`usage`](Self::usage).
    pub fn inactive_file(&self, name: &str) -> Option<u64> {
        Guest { all: self, name }.inactive_file()
    }

    fn find(&self, controller: &str) -> Option<(&Parent, Version)> {
        self.0.iter().find_map(|parent| {
            let version = parent.kind.counts(&parent.controllers, controller)?;
            Some((parent, version))
        })
    }
}

struct Guest<'a> {
    all: &'a Cgroups,
    name: &'a str,
}

impl Counters for Guest<'_> {
    fn version(&self, controller: &str) -> Option<Version> {
        self.all.find(controller).map(|(_, version)| version)
    }

    fn place<'a>(
        &'a self,
        controller: &str,
        file: &'a str,
    ) -> io::Result<(&'a OwnedFd, Cow<'a, str>)> {
        let parent = match self.all.find(controller) {
            Some((parent, _)) => parent,
            None => {
                let v2 = self.all.0.iter().find(|p| p.kind == Kind::V2);
                v2.ok_or(io::ErrorKind::NotFound)?
            }
        };
        Ok((&parent.fd, Cow::Owned(format!("{}/{file}", self.name))))
    }
}

/// Reads the links of one guest's run. While it is held the guest's network namespace stays.
#[derive(Debug)]
pub struct Links(RouteSocket);

impl Links {
    /// From the descriptor of `Reply::Route`. Nobody else may use it: answers would mix.
    pub fn new(fd: OwnedFd) -> Links {
        Links(RouteSocket::from_fd(fd))
    }

    /// All links with addresses and counters. After an error the socket is of no use any more.
    pub fn read(&self, ports: &[PortSpec]) -> Result<Vec<LinkState>> {
        let mut all = links::read(&self.0)?;
        links::name_hosts(&mut all, ports);
        Ok(all)
    }
}
