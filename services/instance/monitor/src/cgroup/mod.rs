//! The guest's cgroups: one directory per hierarchy, made before the guest, removed after it.
//!
//! v1: the child writes `0` to each `tasks` itself through descriptors opened here (a parent writing the
//! pid to cgroup.procs waits for an RCU grace period, 11 ms). v2: the child is born in its directory.
//! Only cgroup2 and name=systemd belong to the guest, and there only the files of delegation.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::MONITORS;
use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::spec::{CgroupSpec, Limits};
use crate::sys;

pub(crate) mod devices;
pub(crate) mod hierarchy;
pub(crate) mod limits;
pub(crate) mod stats;

use hierarchy::Kind;
use limits::{Value, Version};

const V2_CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "memory", "pids", "io"];
/// Leaf for execs where the guest's own root may hold no processes (v2, once init enabled controllers there).
const EXEC_LEAF: &str = ".lxc";

fn make_leaf(parent: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    match sys::mkdirat(&parent, name, 0o755) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    sys::openat(&parent, name, libc::O_RDONLY | libc::O_DIRECTORY, 0)
}

/// One directory.
struct Dir {
    kind: Kind,
    parent: OwnedFd,
    fd: OwnedFd,
    /// v2: what the guest's directory offers.
    controllers: Vec<String>,
}

/// Where monitors live: whoever ends the service's own group (a container engine, a session) ends no guest.
pub(crate) struct MonitorGroups {
    v2: Option<OwnedFd>,
    /// `tasks` of v1 hierarchies.
    tasks: Vec<OwnedFd>,
}

impl MonitorGroups {
    /// Makes the directories, in the hierarchies where this process is not at the root already.
    pub(crate) fn open(spec: &CgroupSpec) -> Result<MonitorGroups> {
        let read =
            |path: &str| std::fs::read_to_string(path).at("cgroup", format!("reading {path}"));
        let own = read("/proc/self/cgroup")?;
        let mut groups = MonitorGroups {
            v2: None,
            tasks: Vec::new(),
        };
        for found in hierarchy::parse(&read("/proc/self/mountinfo")?) {
            if found.kind.is_at_root(&own) {
                continue;
            }
            let (parent, above) = spec.place_in(&found.kind);
            groups.add(&found, parent, above).at(
                "cgroup",
                format!("opening {parent}/{MONITORS} in {}", found.mount),
            )?;
        }
        Ok(groups)
    }

    fn add(&mut self, found: &hierarchy::Hierarchy, parent: &str, above: Above) -> io::Result<()> {
        let parent = open_parent(found, parent, above)?;
        let dir = make_leaf(&parent, MONITORS)?;
        if found.kind == Kind::V2 {
            self.v2 = Some(dir);
            return Ok(());
        }
        if found.kind.is_cpuset() {
            fill_cpuset(&parent, &dir)?;
        }
        self.tasks
            .push(sys::openat(&dir, "tasks", libc::O_WRONLY, 0)?);
        Ok(())
    }

    /// Directory for CLONE_INTO_CGROUP.
    pub(crate) fn v2(&self) -> Option<BorrowedFd<'_>> {
        self.v2.as_ref().map(AsFd::as_fd)
    }

    /// Moves this (single-threaded) process into the v1 directories.
    pub(crate) fn join(self) -> Result<()> {
        crate::start::child::join_tasks(&self.tasks)
    }
}

/// All directories of one run of a guest.
pub(crate) struct GuestCgroup {
    name: String,
    dirs: Vec<Dir>,
}

impl GuestCgroup {
    /// Makes the directories. What a killed monitor left under the name is ended and removed first.
    pub(crate) fn create(spec: &CgroupSpec) -> Result<GuestCgroup> {
        let mountinfo =
            std::fs::read_to_string("/proc/self/mountinfo").at("cgroup", "reading mountinfo")?;
        let mut cgroup = GuestCgroup {
            name: spec.name.clone(),
            dirs: Vec::new(),
        };
        let all = hierarchy::parse(&mountinfo);
        if all.is_empty() {
            return Err(Fault::new(
                "cgroup",
                FaultCode::Unsupported,
                "no cgroup hierarchy is mounted",
            ));
        }
        for found in all {
            let (parent, above) = spec.place_in(&found.kind);
            match make_dir(&found, parent, above, &spec.name) {
                Ok(dir) => cgroup.dirs.push(dir),
                Err(e) => {
                    cgroup.remove_quietly();
                    return Err(Fault::io(
                        "cgroup",
                        &e,
                        format!("making {parent}/{} in {}", spec.name, found.mount),
                    ));
                }
            }
        }
        Ok(cgroup)
    }

    /// Directory for CLONE_INTO_CGROUP.
    pub(crate) fn v2(&self) -> Option<BorrowedFd<'_>> {
        self.v2_dir().map(AsFd::as_fd)
    }

    fn v2_dir(&self) -> Option<&OwnedFd> {
        let dir = self.dirs.iter().find(|d| d.kind == Kind::V2);
        dir.map(|d| &d.fd)
    }

    /// `tasks` of each v1 hierarchy, opened for writing.
    pub(crate) fn tasks(&self) -> Result<Vec<OwnedFd>> {
        self.dirs
            .iter()
            .filter(|d| d.kind != Kind::V2)
            .map(|d| sys::openat(&d.fd, "tasks", libc::O_WRONLY, 0).at("cgroup", "opening tasks"))
            .collect()
    }

    /// A child of the v2 directory for execs, for when that itself may hold no processes.
    pub(crate) fn v2_leaf(&self) -> Result<Option<OwnedFd>> {
        let Some(dir) = self.v2() else {
            return Ok(None);
        };
        make_leaf(dir, EXEC_LEAF)
            .at("cgroup", "making the exec leaf")
            .map(Some)
    }

    /// Hands the guest's root the directories and files it may write.
    pub(crate) fn delegate(&self, uid: u32, gid: u32) -> Result<()> {
        for dir in self.dirs.iter().filter(|d| d.kind.delegated()) {
            let files: &[&str] = match dir.kind {
                Kind::V2 => &[
                    "",
                    "cgroup.procs",
                    "cgroup.threads",
                    "cgroup.subtree_control",
                ],
                _ => &["", "cgroup.procs", "tasks"],
            };
            for file in files {
                sys::fchownat(&dir.fd, file, uid, gid)
                    .at("cgroup", format!("delegating {file:?}"))?;
            }
        }
        Ok(())
    }

    /// Writes the limits. `only_wanted` leaves out what is the default of a new directory.
    pub(crate) fn apply(&self, limits: &Limits, only_wanted: bool) -> Result<()> {
        for write in limits::plan(limits, |c| self.find(c).map(|(_, v)| v)) {
            if only_wanted && !write.required {
                continue;
            }
            let Some((dir, version)) = self.find(write.controller) else {
                if write.required {
                    let name = write.controller;
                    return Err(Fault::new(
                        "limits",
                        FaultCode::Unsupported,
                        format!("the host has no {name} controller for {}", write.file),
                    ));
                }
                continue;
            };
            let done = match &write.value {
                Value::Text(text) => sys::write_at(&dir.fd, write.file, text),
                Value::Inherit => sys::read_at(&dir.parent, write.file)
                    .and_then(|text| sys::write_at(&dir.fd, write.file, text.trim())),
                Value::MemoryAndSwap { memory, swap } => write_v1_memory(dir, *memory, *swap),
            };
            match done {
                Err(e) if !write.required && absent(&e) => {}
                Err(e) if absent(&e) => {
                    let text = format!("the host's kernel has no {}", write.file);
                    return Err(Fault::io("limits", &e, text).with_code(FaultCode::Unsupported));
                }
                other => other.at("limits", format!("writing {} ({version:?})", write.file))?,
            }
        }
        Ok(())
    }

    fn find(&self, controller: &str) -> Option<(&Dir, Version)> {
        self.dirs.iter().find_map(|dir| {
            let version = dir.kind.counts(&dir.controllers, controller)?;
            Some((dir, version))
        })
    }

    /// Starts freezing or thawing. `Some`: poll this `cgroup.events` with [`frozen`](Self::frozen) for the end of it.
    pub(crate) fn set_frozen(&self, frozen: bool) -> Result<()> {
        if let Some(dir) = self.v2() {
            return sys::write_at(dir, "cgroup.freeze", if frozen { "1" } else { "0" })
                .at("freeze", "writing cgroup.freeze");
        }
        let (dir, _) = self.freezer()?;
        sys::write_at(
            &dir.fd,
            "freezer.state",
            if frozen { "FROZEN" } else { "THAWED" },
        )
        .at("freeze", "writing freezer.state")
    }

    /// Whether all tasks are frozen now.
    pub(crate) fn frozen(&self) -> Result<bool> {
        if let Some(dir) = self.v2() {
            let text = sys::read_at(dir, "cgroup.events").at("freeze", "reading cgroup.events")?;
            return Ok(text.lines().any(|l| l == "frozen 1"));
        }
        let (dir, _) = self.freezer()?;
        Ok(sys::read_at(&dir.fd, "freezer.state")
            .at("freeze", "reading freezer.state")?
            .trim()
            == "FROZEN")
    }

    /// A descriptor that signals EPOLLPRI when `frozen` may have changed; v1 has none and is asked again.
    pub(crate) fn events(&self) -> Option<OwnedFd> {
        self.v2()
            .and_then(|dir| sys::openat(dir, "cgroup.events", libc::O_RDONLY, 0).ok())
    }

    fn freezer(&self) -> Result<(&Dir, Version)> {
        self.find("freezer")
            .ok_or_else(|| Fault::new("freeze", FaultCode::Unsupported, "the host has no freezer"))
    }

    /// Removes everything, children that the guest made included. All tasks must have ended or be ending.
    pub(crate) fn remove(&self) -> Result<()> {
        let mut first = Ok(());
        for dir in &self.dirs {
            let done = remove_tree(&dir.parent, &self.name)
                .at("cgroup", format!("removing {} ({:?})", self.name, dir.kind));
            first = first.and(done);
        }
        first
    }

    fn remove_quietly(&self) {
        for dir in &self.dirs {
            // Undoing a failed creation whose own error is reported.
            let _ = sys::unlinkat(&dir.parent, &self.name, libc::AT_REMOVEDIR);
        }
    }
}

fn absent(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound
}

/// Levels of cgroups that a guest may make below its own; guests in guests take some ten each.
const DEEPEST: &str = "128";

/// Who passes controllers on to the parent of guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Above {
    Ours,
    Systemd,
}

impl CgroupSpec {
    /// The parent in this hierarchy, and who passes controllers on to it.
    fn place_in(&self, kind: &Kind) -> (&str, Above) {
        let delegated = kind.delegated();
        let unified_parent = self.unified_parent.as_deref();
        let above = match unified_parent {
            // What is above the scope is systemd's: it passes on what a delegated unit needs.
            Some(_) if delegated => Above::Systemd,
            _ => Above::Ours,
        };
        let parent = CgroupSpec::parent_in(&self.parent, unified_parent, delegated);
        (parent, above)
    }
}

/// Opens the directory that guests' and monitors' directories are in, made when missing.
fn open_parent(found: &hierarchy::Hierarchy, parent: &str, above: Above) -> io::Result<OwnedFd> {
    let directory = libc::O_RDONLY | libc::O_DIRECTORY;
    let mut at = sys::open(&found.mount, directory)?;
    for component in parent.split('/') {
        if above == Above::Ours {
            prepare(&found.kind, &at)?;
        }
        match sys::mkdirat(&at, component, 0o755) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let next = sys::openat(&at, component, directory, 0)?;
        if found.kind.is_cpuset() {
            fill_cpuset(&at, &next)?;
        }
        at = next;
    }
    prepare(&found.kind, &at)?;
    Ok(at)
}

fn make_dir(
    found: &hierarchy::Hierarchy,
    parent: &str,
    above: Above,
    name: &str,
) -> io::Result<Dir> {
    let directory = libc::O_RDONLY | libc::O_DIRECTORY;
    let at = open_parent(found, parent, above)?;
    match sys::mkdirat(&at, name, 0o755) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            remove_tree(&at, name)?;
            sys::mkdirat(&at, name, 0o755)?;
        }
        other => other?,
    }
    let fd = sys::openat(&at, name, directory, 0)?;
    if found.kind.is_cpuset() {
        fill_cpuset(&at, &fd)?;
    }
    if found.kind == Kind::V2 {
        // The directory becomes the guest's. Removing what it made in there descends as deep as that is.
        match sys::write_at(&fd, "cgroup.max.depth", DEEPEST) {
            Err(e) if !absent(&e) => return Err(e),
            _ => {}
        }
    }
    let controllers = match found.kind {
        Kind::V2 => sys::read_at(&fd, "cgroup.controllers")?
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    };
    Ok(Dir {
        kind: found.kind.clone(),
        parent: at,
        fd,
        controllers,
    })
}

/// v2: passes the controllers we use on to children. One that cannot be (a threaded parent, processes in it)
/// stays absent, and a limit that needs it is refused by name.
fn prepare(kind: &Kind, dir: &OwnedFd) -> io::Result<()> {
    if *kind != Kind::V2 {
        return Ok(());
    }
    let offered = sys::read_at(dir, "cgroup.controllers")?;
    let enabled = sys::read_at(dir, "cgroup.subtree_control")?;
    for controller in V2_CONTROLLERS {
        let has = |list: &str| list.split_whitespace().any(|c| c == controller);
        if has(&offered) && !has(&enabled) {
            match sys::write_at(dir, "cgroup.subtree_control", &format!("+{controller}")) {
                Err(e)
                    if !matches!(
                        e.raw_os_error(),
                        Some(libc::EBUSY | libc::EOPNOTSUPP | libc::ENOENT | libc::EINVAL)
                    ) =>
                {
                    return Err(e);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// A v1 cpuset takes no task while its lists are empty.
fn fill_cpuset(parent: &OwnedFd, dir: &OwnedFd) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if sys::read_at(dir, file)?.trim().is_empty() {
            sys::write_at(dir, file, sys::read_at(parent, file)?.trim())?;
        }
    }
    Ok(())
}

/// `memory.limit` may never exceed `memory.memsw.limit`: on a raise the second must go first, on a cut the
/// first. Trying the first and turning round on EINVAL does both.
fn write_v1_memory(dir: &Dir, memory: Option<u64>, swap: Option<u64>) -> io::Result<()> {
    const MEMORY: &str = "memory.limit_in_bytes";
    const BOTH: &str = "memory.memsw.limit_in_bytes";
    let memory_text = memory.map_or("-1".to_owned(), |m| m.to_string());
    let both_text = match (memory, swap) {
        (Some(memory), Some(swap)) => memory.saturating_add(swap).to_string(),
        _ => "-1".to_owned(),
    };
    match sys::write_at(&dir.fd, MEMORY, &memory_text) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            sys::write_at(&dir.fd, BOTH, &both_text)?;
            sys::write_at(&dir.fd, MEMORY, &memory_text)
        }
        Err(e) => Err(e),
        Ok(()) => match sys::write_at(&dir.fd, BOTH, &both_text) {
            // Without swap accounting there is no such file, and without a swap limit none is needed.
            Err(e) if absent(&e) && swap.is_none() => Ok(()),
            other => other,
        },
    }
}

/// Removes a directory and all beneath it. Tasks still in there (a killed monitor's guest) are killed;
/// EBUSY of ending tasks is waited out for at most two seconds.
fn remove_tree(parent: &OwnedFd, name: &str) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match sys::unlinkat(parent, name, libc::AT_REMOVEDIR) {
            Ok(()) => return Ok(()),
            Err(e) if absent(&e) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                let dir = sys::openat(parent, name, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
                let busy = end_and_empty(&dir)?;
                if busy && Instant::now() > deadline {
                    return Err(e);
                }
                if busy {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Err(e) => return Err(e),
        }
    }
}

/// Kills what is in `dir`, removes its children; whether tasks were still there.
fn end_and_empty(dir: &OwnedFd) -> io::Result<bool> {
    let mut busy = false;
    let killed = sys::write_at(dir, "cgroup.kill", "1").is_ok();
    // A v1-frozen task does not even die; absent in other hierarchies.
    let _ = sys::write_at(dir, "freezer.state", "THAWED");
    for pid in sys::read_at(dir, "cgroup.procs")?
        .lines()
        .filter_map(|l| l.parse::<i32>().ok())
    {
        busy = true;
        if !killed && let Ok(pidfd) = sys::pidfd_open(pid) {
            // It may have ended in between.
            let _ = sys::pidfd_signal(&pidfd, libc::SIGKILL);
        }
    }
    for name in subdirectories(dir)? {
        remove_tree(dir, &name)?;
    }
    Ok(busy)
}

fn subdirectories(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let reading = rustix::fs::Dir::read_from(dir)?;
    for entry in reading {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type() == rustix::fs::FileType::Directory && name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}
