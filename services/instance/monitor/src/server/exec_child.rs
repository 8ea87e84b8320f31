//! An exec before it is the program: from clone3 to execve, into the guest.
//!
//! Born in the guest's pid namespace (and cgroup2), it joins the rest by init's pidfd and then takes on
//! everything init has: bounding set, no inheritable or ambient capabilities, the filter, the label.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::protocol::StartExec;
use crate::spec::Spec;
use crate::start::child;
use crate::sys;

/// Where commands are looked up when the environment has no PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) struct ExecContext<'a> {
    pub(super) spec: &'a Spec,
    pub(super) start: &'a StartExec,
    pub(super) init: &'a OwnedFd,
    pub(super) tasks: &'a [OwnedFd],
    pub(super) oom_score_adj: i32,
    pub(super) status: OwnedFd,
    /// stdin, stdout, stderr of the program; with a terminal all three are its slave.
    pub(super) stdio: [OwnedFd; 3],
}

/// Never returns: it becomes the program or ends with the fault sent.
pub(super) fn run(context: ExecContext<'_>) -> ! {
    let Err(fault) = become_program(&context);
    child::send_fault(&context.status, &fault);
    sys::exit_now(match fault.code {
        FaultCode::CommandNotFound => 127,
        _ => 126,
    })
}

fn become_program(context: &ExecContext<'_>) -> Result<std::convert::Infallible> {
    let ExecContext {
        spec,
        start,
        init,
        tasks,
        ..
    } = context;
    // Until the exec nobody in the guest may look into this copy of the monitor.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).at("exec", "PR_SET_DUMPABLE")?;
    child::join_tasks(tasks)?;
    crate::rlimit::apply(0, &spec.rlimits)?;
    let wanted = spec.oom_score_adj.unwrap_or(0);
    if wanted != context.oom_score_adj {
        write_host("/proc/self/oom_score_adj", &wanted.to_string())?;
    }
    // Opened while /proc is the host's.
    let label = match &spec.apparmor_profile {
        Some(_) => Some(
            sys::open("/proc/thread-self/attr/apparmor/exec", libc::O_WRONLY)
                .at("apparmor", "opening the label")?,
        ),
        None => None,
    };
    let userns = if spec.privileged {
        0
    } else {
        libc::CLONE_NEWUSER
    };
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    sys::setns(init, namespaces | userns).at("exec", "entering the guest")?;
    if let (Some(label), Some(profile)) = (&label, &spec.apparmor_profile) {
        sys::write_whole(label, format!("exec {profile}").as_bytes())
            .at("apparmor", format!("taking profile {profile}"))?;
    }
    drop(label);
    take_stdio(context)?;
    // From here on paths are the guest's or the caller's: /proc/self/fd must not lead to the directories that
    // the monitor has open (CVE-2024-21626).
    child::close_all_but(&context.status)?;
    enter_directory(start.cwd.as_deref().unwrap_or("/"))?;
    child::restrict(spec)?;
    child::become_root(&start.groups, start.uid, start.gid)?;
    // The change of ids has made it so already; said again because everything depends on it.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).at("exec", "PR_SET_DUMPABLE")?;
    Err(look_up_and_execute(start))
}

fn enter_directory(cwd: &str) -> Result<()> {
    let directory = libc::O_PATH | libc::O_DIRECTORY;
    let resolve = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS;
    sys::open("/", directory)
        .and_then(|root| sys::openat2(&root, cwd, directory, 0, resolve))
        .and_then(|dir| Ok(rustix::process::fchdir(&dir)?))
        .at("cwd", format!("entering {cwd}"))
}

fn write_host(path: &str, text: &str) -> Result<()> {
    let file = sys::open(path, libc::O_WRONLY).at("exec", format!("opening {path}"))?;
    sys::write_whole(&file, text.as_bytes()).at("exec", format!("writing {path}"))
}

fn take_stdio(context: &ExecContext<'_>) -> Result<()> {
    // SAFETY: no arguments.
    sys::check(unsafe { libc::setsid() }).at("exec", "setsid")?;
    if context.start.pty.is_some() {
        // SAFETY: plain integers.
        sys::check(unsafe { libc::ioctl(context.stdio[0].as_raw_fd(), libc::TIOCSCTTY, 0) })
            .at("exec", "TIOCSCTTY")?;
    }
    for (number, fd) in context.stdio.iter().enumerate() {
        sys::dup2(fd.as_raw_fd(), number as i32).at("exec", "taking stdio")?;
    }
    Ok(())
}

/// As execvpe does it, with the guest's PATH: the first hit that can be executed; one that cannot is
/// remembered as 126 against 127.
fn look_up_and_execute(start: &StartExec) -> Fault {
    let command = &start.argv[0];
    if command.contains('/') {
        return fault_of(command, &child::execute(command, &start.argv, &start.env));
    }
    let path = start
        .env
        .iter()
        .find(|(k, _)| k == "PATH")
        .map_or(PATH, |(_, v)| v);
    let mut result = Fault::new(
        "exec",
        FaultCode::CommandNotFound,
        format!("{command}: command not found"),
    );
    for dir in path.split(':') {
        let candidate = if dir.is_empty() {
            format!("./{command}")
        } else {
            format!("{dir}/{command}")
        };
        let fault = fault_of(
            command,
            &child::execute(&candidate, &start.argv, &start.env),
        );
        match fault.code {
            FaultCode::CommandNotFound => {}
            FaultCode::CommandNotExecutable if fault.errno == libc::EACCES => result = fault,
            _ => return fault,
        }
    }
    result
}

fn fault_of(command: &str, error: &std::io::Error) -> Fault {
    let fault = Fault::io("exec", error, format!("executing {command}"));
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => fault.with_code(FaultCode::CommandNotFound),
        Some(
            libc::EACCES | libc::ENOEXEC | libc::EPERM | libc::EISDIR | libc::ELOOP | libc::ETXTBSY,
        ) => fault.with_code(FaultCode::CommandNotExecutable),
        _ => fault,
    }
}
