//! A network and a mount namespace apart from the machine's.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Namespaces to run a process in; empty means the machine's.
#[derive(Default)]
pub(super) struct Namespaces {
    mount: Option<File>,
    network: Option<File>,
}

impl Namespaces {
    pub(super) fn machine() -> Self {
        Self::default()
    }

    /// Those of a sandbox. Without its holder the network namespace still has its name, and the
    /// mount namespace went with its last process, so nothing is left in it.
    pub(super) fn of_sandbox(holder: Option<i32>, netns: &str) -> Result<Self> {
        let mount = match holder {
            Some(pid) => Some(File::open(format!("/proc/{pid}/ns/mnt"))?),
            None => None,
        };
        let named = named(netns);
        let network = File::open(&named).with_context(|| named.clone())?;
        Ok(Self {
            mount,
            network: Some(network),
        })
    }

    /// Makes `command` join them before it runs.
    pub(super) fn enter(self, command: &mut Command) {
        // SAFETY: the closure only makes system calls.
        unsafe { command.pre_exec(move || self.join()) };
    }

    pub(super) fn join(&self) -> io::Result<()> {
        if let Some(network) = &self.network {
            setns(network, CloneFlags::CLONE_NEWNET)?;
        }
        if let Some(mount) = &self.mount {
            setns(mount, CloneFlags::CLONE_NEWNS)?;
        }
        Ok(())
    }
}

fn named(netns: &str) -> String {
    format!("/run/netns/{netns}")
}

/// Whether the named network namespace exists.
pub(super) fn exists(netns: &str) -> bool {
    Path::new(&named(netns)).exists()
}

/// Makes both namespaces and the process that holds the second.
pub(super) fn create(netns: &str, state: &Path, pid_file: &Path) -> Result<()> {
    ip(&["netns", "add", netns])?;
    ip(&["-n", netns, "link", "set", "lo", "up"])?;
    let network = File::open(named(netns))?;
    let scratch = state.join("run/sys");
    fs::create_dir_all(&scratch)?;
    let scratch = CString::new(scratch.as_os_str().as_bytes())?;
    let kept = CString::new([scratch.as_bytes(), b"/cgroup"].concat())?;
    let mut holder = Command::new("/usr/bin/sleep");
    holder
        .arg("infinity")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    holder.current_dir("/");
    // SAFETY: the closure only makes system calls, on memory allocated before the fork.
    unsafe {
        holder.pre_exec(move || {
            nix::unistd::setsid()?;
            setns(&network, CloneFlags::CLONE_NEWNET)?;
            unshare(CloneFlags::CLONE_NEWNS)?;
            own_sysfs(&scratch, &kept)
        })
    };
    let child = holder.spawn().context("cannot make the mount namespace")?;
    fs::write(pid_file, child.id().to_string())?;
    Ok(())
}

/// `/sys/class/net` shows the network namespace that sysfs was mounted in, so the sandbox needs
/// its own; the cgroup mounts below the machine's are carried over.
fn own_sysfs(scratch: &CString, kept: &CString) -> io::Result<()> {
    const NONE: Option<&str> = None;
    let (scratch, kept) = (scratch.as_c_str(), kept.as_c_str());
    let recursive = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE)?;
    mount(Some("none"), scratch, Some("tmpfs"), MsFlags::empty(), NONE)?;
    nix::unistd::mkdir(kept, nix::sys::stat::Mode::S_IRWXU)?;
    mount(Some("/sys/fs/cgroup"), kept, NONE, recursive, NONE)?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), "/sys", Some("sysfs"), safe, NONE)?;
    mount(Some(kept), "/sys/fs/cgroup", NONE, recursive, NONE)?;
    umount2(scratch, MntFlags::MNT_DETACH)?;
    Ok(())
}

pub(super) fn remove(netns: &str) -> Result<()> {
    if exists(netns) {
        ip(&["netns", "del", netns])?;
    }
    Ok(())
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(args)
        .output()
        .context("ip (package iproute2)")?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
