//! The guest's init before it is init: from clone3 to execve, in the new namespaces.
//!
//! A copy of the single-threaded monitor, so it may allocate. It talks to its parent over one message
//! socket: `G` go (maps are written) → `N` network namespace is there → `C` console and devpts (with
//! descriptors) → `X` execute. `E` and a fault end it. The exec closes the socket: that is success.

use std::os::fd::{AsRawFd, OwnedFd};

use super::prepare::Prepared;
use super::tree;
use super::{devfs, masks};
use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::spec::{GuestCgroups, Spec};
use crate::sys::{self, mount};

pub(super) struct ChildContext<'a> {
    pub(super) spec: &'a Spec,
    pub(super) prepared: Prepared,
    pub(super) sync: OwnedFd,
    pub(super) tasks: &'a [OwnedFd],
    pub(super) has_cgroup2: bool,
}

/// Never returns: it becomes init or ends with the fault sent.
pub(super) fn run(context: ChildContext<'_>) -> ! {
    let sync = match context.sync.try_clone() {
        Ok(sync) => sync,
        Err(_) => sys::exit_now(1),
    };
    let spec = context.spec;
    let fault = match prepare_guest(context).and_then(|()| become_init(spec, &sync)) {
        Err(fault) => fault,
        Ok(never) => match never {},
    };
    send_fault(&sync, &fault);
    sys::exit_now(1)
}

/// Everything is in place and nothing of the host's is held any more but what is inherited from the
/// monitor: that goes here, before a path of the guest's is looked up. Through /proc/self/fd a hostile
/// /sbin/init could name a directory of the host otherwise (CVE-2024-21626).
fn become_init(spec: &Spec, sync: &OwnedFd) -> Result<std::convert::Infallible> {
    close_all_but(sync)?;
    last_steps(spec)?;
    let argv = spec.init_argv();
    let error = execute(&argv[0], &argv, &spec.init_environment());
    Err(Fault::io("init", &error, format!("executing {}", argv[0])))
}

/// Closes all descriptors but stdio and `keep`. Whoever calls this ends by execve or `exit_now`: values that
/// own the others must never be dropped afterwards.
pub(crate) fn close_all_but(keep: &OwnedFd) -> Result<()> {
    let keep = keep.as_raw_fd() as u32;
    if keep > 3 {
        sys::close_range(3, keep - 1, false).at("descriptors", "close_range")?;
    }
    sys::close_range((keep + 1).max(3), u32::MAX, false).at("descriptors", "close_range")
}

/// Best effort: a parent that cannot be told sees the end of the socket instead.
pub(crate) fn send_fault(sync: &OwnedFd, fault: &Fault) {
    let mut message = b"E".to_vec();
    if serde_json::to_writer(&mut message, fault).is_ok() {
        let _ = sys::socket::send(sync, &message, &[] as &[OwnedFd]);
    }
}

fn say(sync: &OwnedFd, word: u8, fds: &[&OwnedFd]) -> Result<()> {
    sys::socket::send(sync, &[word], fds)
        .at("sync", "talking to the monitor")
        .map(|_| ())
}

fn expect(sync: &OwnedFd, word: u8) -> Result<()> {
    let mut message = [0; 1];
    match sys::socket::receive(sync, &mut message, 0).at("sync", "waiting for the monitor")? {
        (1, _) if message[0] == word => Ok(()),
        _ => Err(Fault::new(
            "sync",
            FaultCode::State,
            "the monitor went away",
        )),
    }
}

fn prepare_guest(context: ChildContext<'_>) -> Result<()> {
    let ChildContext {
        spec,
        prepared,
        sync,
        tasks,
        has_cgroup2,
    } = context;
    join_tasks(tasks)?;
    expect(&sync, b'G')?;
    become_root(&[], 0, 0)?;
    die_with_parent(&sync)?;
    // SAFETY: no arguments.
    sys::check(unsafe { libc::setsid() }).at("session", "setsid")?;
    // After the maps: namespaces born before them would belong to nobody (sysfs, mqueue, mtu).
    sys::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWCGROUP)
        .at("namespaces", "unshare")?;
    say(&sync, b'N', &[])?;
    let hostname = &spec.hostname;
    // SAFETY: the bytes live over the call.
    sys::check(unsafe { libc::sethostname(hostname.as_ptr().cast(), hostname.len()) })
        .at("hostname", "sethostname")?;

    mount::propagation("/", libc::MS_PRIVATE).at("mounts", "making the mount tree private")?;
    // While the host's own are still fully visible: the kernel allows new ones only then.
    let safe = mount::ATTR_NOSUID | mount::ATTR_NODEV | mount::ATTR_NOEXEC;
    let proc =
        mount::new_filesystem("proc", Some("proc"), &[], safe).at("mounts", "making proc")?;
    let sysfs =
        mount::new_filesystem("sysfs", Some("sysfs"), &[], safe).at("mounts", "making sysfs")?;
    let nested = if spec.nesting {
        let proc = mount::new_filesystem("proc", Some("proc"), &[], safe)
            .at("mounts", "making a second proc")?;
        let sysfs = mount::new_filesystem("sysfs", Some("sysfs"), &[], safe)
            .at("mounts", "making a second sysfs")?;
        Some((proc, sysfs))
    } else {
        None
    };
    write_sysctls(spec, &proc)?;

    attach_root(&prepared.root)?;
    let root = &prepared.root;
    mount::attach(&proc, tree::plain_dir(root, "proc")?).at("mounts", "attaching /proc")?;
    mount::attach(&sysfs, tree::plain_dir(root, "sys")?).at("mounts", "attaching /sys")?;
    let dev = devfs::mount_dev(root, &prepared.nodes, nested)?;
    let console = devfs::make_console(&dev)?;
    masks::apply(spec, &dev.fd, &proc, &sysfs)?;
    for (path, file) in &prepared.lxcfs {
        let (base, rest) = match path.strip_prefix("proc/") {
            Some(rest) => (&proc, rest),
            None => (&sysfs, path.strip_prefix("sys/").unwrap_or(path)),
        };
        if let Some(place) = tree::existing(base, rest).at("lxcfs", format!("finding {path}"))? {
            mount::attach(file, &place).at("lxcfs", format!("binding {path}"))?;
        }
    }
    if has_cgroup2 && spec.cgroup.guest_view == GuestCgroups::Unified {
        mount_cgroup2(&sysfs)?;
    }
    for (path, node) in &prepared.devices {
        tree::attach_at(root, path, node).at("devices", format!("attaching {path}"))?;
    }
    for (disk, tree) in &prepared.mounts {
        tree::attach_at(root, &disk.target, tree)
            .at("mounts", format!("attaching disk {:?}", disk.name))?;
    }
    if let Some(dir) = &prepared.dev_lxd {
        tree::attach_at(root, "/dev/lxd", dir).at("devices", "attaching /dev/lxd")?;
    }
    enter_root(root)?;
    devfs::take_console(&console)?;
    if let Some(profile) = &spec.apparmor_profile {
        confine(&proc, profile)?;
    }
    say(&sync, b'C', &[&console.master, &console.slave, &dev.pts])?;
    expect(&sync, b'X')
}

/// Joins the v1 cgroups: a single-threaded task that moves itself does not wait for a grace period.
pub(crate) fn join_tasks(tasks: &[OwnedFd]) -> Result<()> {
    for file in tasks {
        sys::write_whole(file, b"0").at("cgroup", "joining a cgroup")?;
    }
    Ok(())
}

/// Ids in the namespace; supplementary groups first, while they may be set.
pub(crate) fn become_root(groups: &[u32], uid: u32, gid: u32) -> Result<()> {
    // Raw calls: glibc's wrappers would signal threads that this copy of the process does not have.
    // SAFETY: the list lives over the call, the rest are integers.
    let (set_groups, set_gid, set_uid) = unsafe {
        let a = libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
        let a = sys::check(a as i32);
        let b = libc::syscall(libc::SYS_setresgid, gid, gid, gid);
        let b = sys::check(b as i32);
        let c = libc::syscall(libc::SYS_setresuid, uid, uid, uid);
        (a, b, sys::check(c as i32))
    };
    set_groups.at("ids", "setgroups")?;
    set_gid.at("ids", format!("setresgid {gid}"))?;
    set_uid.at("ids", format!("setresuid {uid}"))?;
    Ok(())
}

/// The monitor's death ends the guest: without it nobody would see it stop, or account for it. Set after the
/// change of ids, which clears it; a parent that died before shows as the end of the socket.
fn die_with_parent(sync: &OwnedFd) -> Result<()> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as usize).at("monitor", "PR_SET_PDEATHSIG")?;
    let mut nothing = [0; 1];
    match sys::socket::receive(sync, &mut nothing, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        _ => Err(Fault::new(
            "monitor",
            FaultCode::State,
            "the monitor went away",
        )),
    }
}

/// Through our own proc, never the guest's: a procfs redirect cannot turn the write elsewhere.
fn write_sysctls(spec: &Spec, proc: &OwnedFd) -> Result<()> {
    for (key, value) in &spec.sysctls {
        let path = if key.contains('/') {
            key.clone()
        } else {
            key.replace('.', "/")
        };
        sys::write_at(proc, &format!("sys/{path}"), value)
            .at("sysctls", format!("setting {key}"))?;
    }
    Ok(())
}

/// Attaches the root where it can be pivoted to. The host's /dev in this private copy of the mount tree will
/// do: nothing below it is needed any more.
fn attach_root(root: &OwnedFd) -> Result<()> {
    let place = sys::open("/dev", libc::O_PATH | libc::O_DIRECTORY)
        .at("rootfs", "opening a mount point")?;
    mount::attach(root, &place).at("rootfs", "attaching the root filesystem")
}

fn enter_root(root: &OwnedFd) -> Result<()> {
    // SAFETY: plain integer.
    sys::check(unsafe { libc::fchdir(root.as_raw_fd()) })
        .at("rootfs", "entering the root filesystem")?;
    mount::pivot_into_cwd().at("rootfs", "pivot_root")?;
    std::env::set_current_dir("/").at("rootfs", "entering /")?;
    // systemd expects shared propagation.
    mount::propagation("/", libc::MS_SHARED).at("rootfs", "sharing the mount tree")
}

fn mount_cgroup2(sysfs: &OwnedFd) -> Result<()> {
    let attr = mount::ATTR_NOSUID | mount::ATTR_NODEV | mount::ATTR_NOEXEC;
    let Some(place) = tree::existing(sysfs, "fs/cgroup").at("cgroup", "finding /sys/fs/cgroup")?
    else {
        return Ok(());
    };
    let cgroup2 = mount::new_filesystem("cgroup2", Some("cgroup2"), &[], attr)
        .at("cgroup", "making cgroup2")?;
    mount::attach(&cgroup2, &place).at("cgroup", "attaching cgroup2")
}

/// AppArmor label for the coming exec, through our own proc.
pub(crate) fn confine(proc: &OwnedFd, profile: &str) -> Result<()> {
    let text = format!("exec {profile}");
    // A disk may have been attached below /proc by a link of the image's: what lies over procfs would take
    // the label instead of the kernel (CVE-2019-19921).
    let resolve = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_XDEV | sys::RESOLVE_NO_MAGICLINKS;
    let path = "thread-self/attr/apparmor/exec";
    let written = sys::openat2(proc, path, libc::O_WRONLY, 0, resolve)
        .and_then(|file| sys::write_whole(&file, text.as_bytes()));
    match written {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Fault::new(
            "apparmor",
            FaultCode::Unsupported,
            "the kernel has no AppArmor",
        )),
        other => other.at("apparmor", format!("taking profile {profile}")),
    }
}

fn last_steps(spec: &Spec) -> Result<()> {
    restrict(spec)?;
    let cwd = std::env::current_dir().at("rootfs", "reading the working directory")?;
    if cwd != std::path::Path::new("/") {
        return Err(Fault::new(
            "rootfs",
            FaultCode::State,
            "the working directory is outside the guest",
        ));
    }
    Ok(())
}

/// What init and every exec share: capabilities, signals, descriptors, the filter last.
pub(crate) fn restrict(spec: &Spec) -> Result<()> {
    let drop: Vec<u32> = spec
        .drop_capabilities
        .iter()
        .filter_map(|n| crate::caps::number(n))
        .collect();
    // SAFETY: sets one integer of this process.
    unsafe { libc::umask(0o022) };
    // Nothing of the service's session keyring is the guest's.
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: a null name makes an anonymous keyring.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0usize) };
    match sys::check(joined as i32) {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {}
        other => other.at("keyring", "a new session keyring").map(|_| ())?,
    }
    sys::reset_signals().at("signals", "resetting")?;
    sys::close_range(3, u32::MAX, true).at("descriptors", "close_range")?;
    crate::caps::limit(&drop).at("capabilities", "limiting")?;
    if let Some(filter) = &spec.seccomp {
        sys::seccomp(&filter.0).at("seccomp", "installing the filter")?;
    }
    Ok(())
}

/// execve(2); comes back only with its error.
pub(crate) fn execute(path: &str, argv: &[String], env: &[(String, String)]) -> std::io::Error {
    let run = || -> std::io::Result<std::io::Error> {
        let path = sys::cstring(path)?;
        let argv = argv
            .iter()
            .map(sys::cstring)
            .collect::<std::io::Result<Vec<_>>>()?;
        let env = env
            .iter()
            .map(|(k, v)| sys::cstring(format!("{k}={v}")))
            .collect::<std::io::Result<Vec<_>>>()?;
        let pointers = |list: &[std::ffi::CString]| {
            list.iter()
                .map(|s| s.as_ptr())
                .chain([std::ptr::null()])
                .collect::<Vec<_>>()
        };
        let (argv_pointers, env_pointers) = (pointers(&argv), pointers(&env));
        // SAFETY: all strings and the null-terminated arrays live over the call.
        unsafe { libc::execve(path.as_ptr(), argv_pointers.as_ptr(), env_pointers.as_ptr()) };
        Ok(std::io::Error::last_os_error())
    };
    run().unwrap_or_else(|e| e)
}
