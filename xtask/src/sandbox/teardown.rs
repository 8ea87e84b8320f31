//! `down`: everything a sandbox did to the machine is undone, whatever state it is in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};

use super::process::{self, How};
use super::{SERVICES, Sandbox, namespace};

#[derive(Clone, Debug, Default)]
pub struct DownOptions {
    /// Leave `DIR/log` for whoever wants to know what happened.
    pub keep_logs: bool,
}

/// Owners that have effects outside their state, in the order these depend on each other.
const PURGED: [&str; 3] = ["instance", "network", "storage"];

/// Stops the services, lets each owner remove its effects on the machine, removes the namespaces
/// and the directory. Does nothing where there is nothing, and may be repeated.
pub fn down(state: &Path, options: &DownOptions) -> Result<()> {
    if !state.exists() {
        return Ok(());
    }
    let sandbox = Sandbox::at(&state.canonicalize()?);
    let Ok(record) = sandbox.record() else {
        return match fs::read_dir(sandbox.state())?.next() {
            None => Ok(fs::remove_dir(sandbox.state())?),
            Some(_) => bail!("{} is no sandbox: it has no sandbox.json", state.display()),
        };
    };
    let mut failed = Vec::new();
    let mut attempt = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            failed.push(format!("{what}: {error:#}"));
        }
    };
    for service in SERVICES.iter().rev() {
        attempt(service, end(&sandbox, service));
    }
    for owner in PURGED
        .into_iter()
        .filter(|owner| record.services.iter().any(|s| s == owner))
    {
        attempt(&format!("{owner} purge"), purge(&sandbox, owner));
    }
    attempt("lxcfs", end(&sandbox, "lxcfs"));
    attempt("holder", end(&sandbox, "holder"));
    attempt("network namespace", namespace::remove(&record.netns));
    attempt("mounts", unmount_below(sandbox.state()));
    if !failed.is_empty() {
        bail!(
            "{} stays because of\n{}",
            sandbox.state().display(),
            failed.join("\n")
        );
    }
    remove(sandbox.state(), options.keep_logs)
}

fn end(sandbox: &Sandbox, service: &str) -> Result<()> {
    let file = sandbox.pid_file(service);
    process::stop(&file, &sandbox.executable(service), How::Gently)?;
    Ok(())
}

/// Each owner knows what it made, running or not; nobody else guesses.
fn purge(sandbox: &Sandbox, owner: &str) -> Result<()> {
    let config = sandbox.config_file(owner);
    let binary = sandbox.executable(owner);
    if !config.exists() || !binary.exists() {
        return Ok(());
    }
    let mut command: Command = sandbox.command(&binary)?;
    let output = command.arg("purge").arg("--config").arg(&config).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", output.status, said.trim());
    }
    Ok(())
}

/// Mounts that a service killed half way left in the machine's own namespace, innermost first.
fn unmount_below(state: &Path) -> Result<()> {
    for mount in mounts_below(state)?.iter().rev() {
        umount2(mount, MntFlags::MNT_DETACH).with_context(|| mount.display().to_string())?;
    }
    Ok(())
}

fn mounts_below(state: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescaped(field)))
        .filter(|target| target.starts_with(state) && target != state)
        .collect())
}

/// mountinfo writes blanks and backslashes in octal.
fn unescaped(field: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    escapes
        .iter()
        .fold(field.to_owned(), |text, (code, plain)| {
            text.replace(code, plain)
        })
}

fn remove(state: &Path, keep_logs: bool) -> Result<()> {
    // A mount that appeared meanwhile would be emptied by the removal.
    let mounts = mounts_below(state)?;
    if let Some(mount) = mounts.first() {
        bail!("{} is mounted", mount.display());
    }
    for entry in fs::read_dir(state)? {
        let entry = entry?;
        if keep_logs && entry.file_name() == "log" {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        }
        .with_context(|| path.display().to_string())?;
    }
    if !keep_logs {
        fs::remove_dir(state)?;
    }
    Ok(())
}
