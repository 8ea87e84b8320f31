//! Starting background processes, and ending exactly those.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Gid, Group, Pid, Uid, User, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};

use super::namespace::Namespaces;

/// Whom a service runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The services that need no root, and whom they run as: Berth's own users where a package made
/// them, else two that every Debian has. They differ so that image cannot speak as the gateway.
pub(super) fn accounts() -> Result<BTreeMap<String, Account>> {
    let group = match Group::from_name("berth")? {
        Some(group) => group,
        None => Group::from_name("nogroup")?.context("no group nogroup")?,
    };
    let account = |names: [&str; 2]| -> Result<Account> {
        for name in names {
            if let Some(user) = User::from_name(name)? {
                return Ok(Account {
                    uid: user.uid.as_raw(),
                    gid: group.gid.as_raw(),
                });
            }
        }
        bail!("no user {}", names.join(" or "))
    };
    Ok(BTreeMap::from([
        ("gateway".to_owned(), account(["berth", "nobody"])?),
        ("image".to_owned(), account(["berth-image", "daemon"])?),
    ]))
}

/// Services without root must reach the directory by its path.
pub(super) fn check_reachable(directory: &Path) -> Result<()> {
    for ancestor in directory.ancestors().skip(1) {
        if fs::metadata(ancestor)?.mode() & 0o001 == 0 {
            bail!(
                "services that run without root cannot reach {}: {} is closed to others",
                directory.display(),
                ancestor.display()
            );
        }
    }
    Ok(())
}

pub(super) struct Spawn {
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) log: PathBuf,
    pub(super) pid_file: PathBuf,
    pub(super) namespaces: Namespaces,
    pub(super) environment: Vec<(String, String)>,
    pub(super) private_mounts: bool,
    pub(super) account: Option<Account>,
}

/// Environment that reaches the services; everything else of the caller's stays behind.
const PASSED: [&str; 4] = ["BERTH_", "OTEL_", "RUST_", "LD_LIBRARY_PATH"];

/// Starts a process in the background, its pid in `pid_file`.
pub(super) fn spawn(spawn: Spawn) -> Result<()> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&spawn.log)?;
    let mut command = Command::new(&spawn.program);
    command
        .args(&spawn.args)
        .current_dir("/")
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .envs(std::env::vars_os().filter(|(name, _)| {
            let name = name.to_string_lossy();
            PASSED.iter().any(|passed| name.starts_with(passed))
        }))
        .envs(spawn.environment)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let Spawn {
        namespaces,
        private_mounts,
        account,
        ..
    } = spawn;
    // SAFETY: the closure only makes system calls.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o007));
            namespaces.join()?;
            if private_mounts {
                unshare(CloneFlags::CLONE_NEWNS)?;
                let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            }
            if let Some(Account { uid, gid }) = account {
                setgroups(&[])?;
                setgid(Gid::from_raw(gid))?;
                setuid(Uid::from_raw(uid))?;
            }
            Ok(())
        })
    };
    let child = command
        .spawn()
        .with_context(|| spawn.program.display().to_string())?;
    fs::write(&spawn.pid_file, child.id().to_string())?;
    Ok(())
}

/// The recorded pid, if that process still runs the program it was recorded for.
pub(super) fn recorded(pid_file: &Path, program: &Path) -> Option<i32> {
    let pid: i32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    let runs = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let wanted = program
        .canonicalize()
        .unwrap_or_else(|_| program.to_owned());
    (runs == wanted).then_some(pid)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// SIGTERM, and SIGKILL when that took too long.
    Gently,
    Kill,
}

/// How long a service may take to drain.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ends the recorded process. Returns whether it was running.
///
/// The end is the kernel's word on the descriptor: `/proc/PID/exe` goes earlier than the locks of a
/// process with threads, and its successor would find the database in use.
pub(super) fn stop(pid_file: &Path, program: &Path, how: How) -> Result<bool> {
    let Some(pid) = recorded(pid_file, program) else {
        return Ok(false);
    };
    let process = open_process(pid).with_context(|| format!("process {pid}"))?;
    // The descriptor may be of a later process with that pid, unless it still is what was recorded.
    if recorded(pid_file, program) != Some(pid) {
        return Ok(false);
    }
    let signals: &[Signal] = match how {
        How::Gently => &[Signal::SIGTERM, Signal::SIGKILL],
        How::Kill => &[Signal::SIGKILL],
    };
    for &signal in signals {
        send(Pid::from_raw(pid), signal)?;
        if ends_within(&process, PATIENCE)? {
            reap(Pid::from_raw(pid));
            fs::remove_file(pid_file)?;
            return Ok(true);
        }
        eprintln!("{} ({pid}) ignores {signal}", program.display());
    }
    bail!("{} ({pid}) does not end", program.display())
}

pub(crate) fn open_process(pid: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: the call takes two integers, and the descriptor it returns is nobody else's.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            fd if fd < 0 => Err(std::io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd as i32)),
        }
    }
}

pub(crate) fn ends_within(process: &OwnedFd, patience: Duration) -> Result<bool> {
    let mut ready = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut ready, PollTimeout::try_from(patience)?)? > 0)
}

pub(crate) fn send(pid: Pid, signal: Signal) -> Result<()> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("signal to {pid}")),
    }
}

/// A process this very process started stays a zombie until it is waited for; others' children
/// are not ours to wait for, which is the error ignored here.
fn reap(pid: Pid) {
    let _not_a_child = waitpid(pid, Some(WaitPidFlag::WNOHANG));
}
