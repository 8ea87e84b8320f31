//! Starting a guest: one [`Run`], from cgroups to the exec of init, or nothing at all.

use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::cgroup::{GuestCgroup, devices};
use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::netlink::{RouteSocket, links};
use crate::spec::{IdKind, Spec};
use crate::sys::{self, Child};

pub(crate) mod child;
pub(crate) mod devfs;
mod masks;
pub(crate) mod prepare;
pub(crate) mod tree;

use child::ChildContext;

/// Longest a step of the child may take before the start is given up.
const STEP_SECONDS: i64 = 60;

/// What all runs of one monitor share.
pub(crate) struct Host {
    /// The monitor's own network namespace: where host ends live, and where to come back to.
    pub(crate) netns: OwnedFd,
    pub(crate) route: RouteSocket,
    /// Where device nodes are made.
    pub(crate) devices_dir: OwnedFd,
    pub(crate) oom_score_adj: i32,
}

/// A guest that runs. Dropping it closes descriptors; [`Run::clean_up`] removes what it has on the host.
pub(crate) struct Run {
    pub(crate) init: Child,
    pub(crate) cgroup: GuestCgroup,
    /// `tasks` files for execs to join by.
    pub(crate) tasks: Vec<OwnedFd>,
    pub(crate) userns: OwnedFd,
    pub(crate) netns: OwnedFd,
    /// Route socket inside the guest's namespace.
    pub(crate) guest_route: RouteSocket,
    pub(crate) devpts: OwnedFd,
    pub(crate) console_master: OwnedFd,
    /// Held so that the master never sees "no slave open" while gettys come and go.
    pub(crate) _console_slave: OwnedFd,
    pub(crate) device_program: Option<OwnedFd>,
    pub(crate) started: Instant,
    pub(crate) started_at_ms: u64,
}

/// What exists on the host so far, for undoing.
struct Partial {
    cgroup: Option<GuestCgroup>,
    child: Option<Child>,
    /// Where the child says what failed.
    sync: Option<OwnedFd>,
    links: usize,
}

/// Starts a guest. After an error nothing of it is left.
pub(crate) fn start(spec: &Spec, host: &Host) -> Result<Run> {
    let mut partial = Partial {
        cgroup: None,
        child: None,
        sync: None,
        links: 0,
    };
    match try_start(spec, host, &mut partial) {
        Ok(run) => Ok(run),
        Err(fault) => {
            // A child that failed by itself makes the next thing fail here (its /proc is empty): its word counts.
            let told = partial.sync.as_ref().and_then(pending_fault);
            undo(spec, host, partial);
            Err(told.unwrap_or(fault))
        }
    }
}

fn try_start(spec: &Spec, host: &Host, partial: &mut Partial) -> Result<Run> {
    let prepared = prepare::prepare(spec, &host.devices_dir)?;
    let cgroup = partial.cgroup.insert(GuestCgroup::create(&spec.cgroup)?);
    cgroup.apply(&spec.limits, true)?;
    let device_program = match spec.privileged {
        true => cgroup.allow_devices(&devices::rules(&spec.devices), None)?,
        false => None,
    };
    let tasks = cgroup.tasks()?;
    let (sync, child_sync) = sys::socket::pair().at("sync", "making a socket pair")?;
    let sync = partial.sync.insert(sync);
    sys::socket::receive_timeout(&*sync, STEP_SECONDS).at("sync", "setting the timeout")?;

    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS;
    if !spec.privileged {
        flags |= libc::CLONE_NEWUSER;
    }
    let cgroup2 = cgroup.v2();
    let Some(child) = sys::clone3(flags, cgroup2).at("namespaces", "clone3")? else {
        // The parent's end, in the child's copy: left open here it would hide the parent's death.
        drop(partial.sync.take());
        child::run(ChildContext {
            spec,
            prepared,
            sync: child_sync,
            tasks: &tasks,
            has_cgroup2: cgroup2.is_some(),
        });
    };
    let child = partial.child.insert(child);
    drop(child_sync);
    let pid = child.pid;
    let userns = open_namespace(pid, "user")?;
    if !spec.privileged {
        write_maps(spec, pid)?;
        prepared.idmap(spec, &userns)?;
    }
    let (uid, gid) = root_ids(spec)?;
    cgroup.delegate(uid, gid)?;
    crate::rlimit::apply(pid, &spec.rlimits)?;
    set_oom_score(pid, spec, host)?;
    say(sync, b'G')?;
    // The child has its own copies; these would keep file systems busy.
    drop(prepared);

    expect(sync, b'N')?;
    let netns = open_namespace(pid, "net")?;
    for nic in &spec.nics {
        links::create(&host.route, nic, &netns)?;
        // What was not made is not ours to remove: the name may be another's.
        partial.links += 1;
    }
    let guest_route = open_route_in(&netns, &host.netns)?;
    links::set_up(&guest_route, "lo", true).at("network", "setting lo up")?;

    let mut fds = expect(sync, b'C')?.into_iter();
    let (Some(console_master), Some(console_slave), Some(devpts)) =
        (fds.next(), fds.next(), fds.next())
    else {
        return Err(Fault::new(
            "console",
            FaultCode::State,
            "the child sent no console",
        ));
    };
    sys::set_nonblocking(&console_master).at("console", "making the console non-blocking")?;
    let (started, started_at_ms) = (Instant::now(), sys::now_ms());
    say(sync, b'X')?;
    wait_for_exec(sync)?;
    let (Some(init), Some(cgroup)) = (partial.child.take(), partial.cgroup.take()) else {
        return Err(Fault::new(
            "monitor",
            FaultCode::State,
            "the run was taken apart while starting",
        ));
    };
    Ok(Run {
        init,
        cgroup,
        tasks,
        userns,
        netns,
        guest_route,
        devpts,
        console_master,
        _console_slave: console_slave,
        device_program,
        started,
        started_at_ms,
    })
}

/// Order matters: cgroups are busy until the child is reaped.
fn undo(spec: &Spec, host: &Host, partial: Partial) {
    if let Some(child) = partial.child {
        // It may have ended by itself already.
        let _ = sys::pidfd_signal(&child.pidfd, libc::SIGKILL);
        if let Err(e) = sys::wait_for(child.pid) {
            crate::log::line(format_args!("waiting for the failed child: {e}"));
        }
    }
    for nic in spec.nics.iter().take(partial.links) {
        if let Err(e) = links::delete(&host.route, nic) {
            crate::log::line(format_args!("removing nic {:?}: {e}", nic.name));
        }
    }
    if let Some(cgroup) = partial.cgroup
        && let Err(e) = cgroup.remove()
    {
        crate::log::line(format_args!("{e}"));
    }
    remove_nodes(spec, host);
}

fn remove_nodes(spec: &Spec, host: &Host) {
    for device in &spec.devices {
        if let Err(e) = prepare::remove_node(&host.devices_dir, &device.name) {
            crate::log::line(format_args!("removing the node of {:?}: {e}", device.name));
        }
    }
}

impl Run {
    /// Removes cgroups and device nodes of a guest whose init was reaped. Failures are logged: there is nobody to
    /// undo them, and the next start cleans up by name.
    pub(crate) fn take_down(&self, spec: &Spec, host: &Host) {
        if let Err(e) = self.cgroup.remove() {
            crate::log::line(format_args!("{e}"));
        }
        remove_nodes(spec, host);
    }

    /// Removes the links. Apart from the rest, because the kernel takes some 20 ms for it (it waits for grace
    /// periods under its global lock) and nobody needs to wait for that.
    pub(crate) fn remove_links(&self, spec: &Spec, host: &Host) {
        for nic in &spec.nics {
            let done = match nic.host_name {
                Some(_) => links::delete(&host.route, nic),
                None => links::delete_named(&self.guest_route, &nic.guest_name),
            };
            if let Err(e) = done {
                crate::log::line(format_args!("removing nic {:?}: {e}", nic.name));
            }
        }
    }

    /// Ends a guest at once and takes it down.
    pub(crate) fn destroy(&self, spec: &Spec, host: &Host) {
        // It may have ended by itself already.
        let _ = sys::pidfd_signal(&self.init.pidfd, libc::SIGKILL);
        if let Err(e) = sys::wait_for(self.init.pid) {
            crate::log::line(format_args!("waiting for init: {e}"));
        }
        self.take_down(spec, host);
        self.remove_links(spec, host);
    }
}

/// The fault among what the child said and nobody heard yet.
fn pending_fault(sync: &OwnedFd) -> Option<Fault> {
    let mut message = vec![0; 8 << 10];
    loop {
        match sys::socket::receive(sync, &mut message, libc::MSG_DONTWAIT) {
            Ok((n, _)) if n > 1 && message[0] == b'E' => return Some(parse_fault(&message[1..n])),
            Ok((1.., _)) => {}
            _ => return None,
        }
    }
}

fn say(sync: &OwnedFd, word: u8) -> Result<()> {
    sys::socket::send(sync, &[word], &[] as &[OwnedFd])
        .at("sync", "talking to the child")
        .map(|_| ())
}

fn expect(sync: &OwnedFd, word: u8) -> Result<Vec<OwnedFd>> {
    let mut message = vec![0; 8 << 10];
    let (n, fds) =
        sys::socket::receive(sync, &mut message, 0).at("sync", "waiting for the child")?;
    match message.first() {
        Some(got) if n == 1 && *got == word => Ok(fds),
        Some(b'E') if n > 1 => Err(parse_fault(&message[1..n])),
        _ => Err(Fault::new(
            "sync",
            FaultCode::State,
            "the child ended before it reported",
        )),
    }
}

pub(crate) fn parse_fault(bytes: &[u8]) -> Fault {
    serde_json::from_slice(bytes).unwrap_or_else(|e| {
        Fault::new(
            "sync",
            FaultCode::Invalid,
            format!("unreadable report of the child: {e}"),
        )
    })
}

/// The close-on-exec socket closes when init runs.
fn wait_for_exec(sync: &OwnedFd) -> Result<()> {
    let mut message = vec![0; 8 << 10];
    match sys::socket::receive(sync, &mut message, 0).at("sync", "waiting for init")? {
        (0, _) => Ok(()),
        (n, _) if message[0] == b'E' => Err(parse_fault(&message[1..n])),
        _ => Err(Fault::new(
            "sync",
            FaultCode::State,
            "the child sent something else than its end",
        )),
    }
}

/// The child is ours and not reaped, so its number cannot mean another process.
fn open_namespace(pid: i32, name: &str) -> Result<OwnedFd> {
    sys::open(&format!("/proc/{pid}/ns/{name}"), libc::O_RDONLY)
        .at("namespaces", format!("opening the {name} namespace"))
}

fn write_maps(spec: &Spec, pid: i32) -> Result<()> {
    for (file, kind) in [("gid_map", IdKind::Gid), ("uid_map", IdKind::Uid)] {
        let path = format!("/proc/{pid}/{file}");
        let fd = sys::open(&path, libc::O_WRONLY).at("idmap", format!("opening {file}"))?;
        sys::write_whole(&fd, spec.map_text(kind).as_bytes())
            .at("idmap", format!("writing {file}"))?;
    }
    Ok(())
}

/// Host ids of the guest's root.
pub(crate) fn root_ids(spec: &Spec) -> Result<(u32, u32)> {
    let (uid, gid) = (spec.host_id(IdKind::Uid, 0), spec.host_id(IdKind::Gid, 0));
    uid.zip(gid)
        .ok_or_else(|| Fault::new("idmap", FaultCode::Invalid, "idmap does not map id 0"))
}

/// The service may be protected from the OOM killer; its guests are not, unless asked for.
fn set_oom_score(pid: i32, spec: &Spec, host: &Host) -> Result<()> {
    let wanted = spec.oom_score_adj.unwrap_or(0);
    if wanted == host.oom_score_adj {
        return Ok(());
    }
    let fd = sys::open(&format!("/proc/{pid}/oom_score_adj"), libc::O_WRONLY)
        .at("oom", "opening oom_score_adj")?;
    sys::write_whole(&fd, wanted.to_string().as_bytes())
        .at("oom", format!("setting oom_score_adj to {wanted}"))
}

/// A route socket of another namespace: one is bound to where it was made, so the monitor steps over and back.
pub(crate) fn open_route_in(netns: &OwnedFd, home: &OwnedFd) -> Result<RouteSocket> {
    sys::setns(netns, libc::CLONE_NEWNET)
        .at("network", "entering the guest's network namespace")?;
    let socket = RouteSocket::open();
    if let Err(e) = sys::setns(home, libc::CLONE_NEWNET) {
        // Everything after this would touch the guest's links instead of the host's.
        crate::log::line(format_args!(
            "cannot return to the host's network namespace: {e}"
        ));
        sys::exit_now(1);
    }
    socket.at("network", "opening a route socket in the guest")
}
