//! Under systemd guests and their monitors live in one delegated scope, apart from the unit of this service.
//!
//! ```text
//! machine.slice/berth.scope/      delegated: systemd touches nothing below
//!     monitors/                             the holder and every monitor: cgroup2 allows processes in leaves only
//!     berth-<uid>/                          a guest, limits on it
//! ```
//!
//! So a restart of the service, or the stop of its unit, reaches no guest. A scope ends with its last process: the
//! holder, which does nothing, keeps it while no guest runs.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use zbus::{OwnedObjectPath, OwnedVariant, Variant};

/// Name of the scope's unit.
pub const UNIT: &str = "berth.scope";
/// Ordered before the scope's end: it stops guests one by one, systemd would signal all their processes at once.
const GUESTS_UNIT: &str = "berth-guests.service";

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// The scope, there whenever a guest starts.
#[derive(Debug)]
pub struct Scope {
    monitor: PathBuf,
    group: String,
    making: tokio::sync::Mutex<()>,
}

/// Whether systemd runs this host.
fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

impl Scope {
    /// Makes the scope or takes the one that is there; `None` where systemd does not run the host.
    pub async fn open(config: &crate::config::Config) -> anyhow::Result<Option<Scope>> {
        if !config.systemd_scope || !systemd_runs() {
            return Ok(None);
        }
        let monitor = config.monitor()?;
        let group = make(&monitor).await?;
        Ok(Some(Scope {
            monitor,
            group,
            making: tokio::sync::Mutex::new(()),
        }))
    }

    /// Its cgroup, relative to the hierarchy's root.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Makes it anew should it have gone (its holder was killed while no guest ran). A look at the cgroup when not.
    pub async fn ensure(&self) -> anyhow::Result<()> {
        if leaf_exists(&self.group)? {
            return Ok(());
        }
        let _one = self.making.lock().await;
        if leaf_exists(&self.group)? {
            return Ok(());
        }
        tracing::warn!(UNIT, "the scope of the guests went away; made anew");
        let group = make(&self.monitor).await?;
        anyhow::ensure!(
            group == self.group,
            "systemd made {UNIT} at {group}, before it was {}",
            self.group
        );
        Ok(())
    }
}

/// The cgroup of a scope that an earlier run of this service made.
pub async fn present() -> anyhow::Result<Option<String>> {
    if !systemd_runs() {
        return Ok(None);
    }
    let bus = zbus::Connection::system().await?;
    Ok(control_group(&bus).await?.filter(|group| !group.is_empty()))
}

/// Whether systemd is shutting the host down.
pub async fn host_goes_down() -> anyhow::Result<bool> {
    let bus = zbus::Connection::system().await?;
    let wanted = (MANAGER, "SystemState");
    let got = bus
        .call_method(
            Some(SYSTEMD),
            MANAGER_PATH,
            Some(PROPERTIES),
            "Get",
            &wanted,
        )
        .await?;
    let value: OwnedVariant = got.body().deserialize()?;
    Ok(String::try_from(value)? == "stopping")
}

/// Ends the scope with everything in it.
pub async fn end() -> anyhow::Result<()> {
    let bus = zbus::Connection::system().await?;
    match manager(&bus, "StopUnit", &(UNIT, "replace")).await {
        Err(zbus::Error::MethodError(name, _, _)) if name.as_str() == NO_SUCH_UNIT => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

async fn make(monitor: &Path) -> anyhow::Result<String> {
    // A scope is born with a process: not with this service, which may end first.
    let mut holder = holder(monitor.as_os_str())?;
    let pid = holder
        .id()
        .ok_or_else(|| anyhow::anyhow!("the scope's holder ended at once"))?;
    let made = delegated(pid).await;
    if !matches!(made, Ok((_, true))) {
        // Another holder keeps it already, or nobody needs one.
        holder.kill().await?;
    }
    let (group, _) = made?;
    clear_root(&group)?;
    Ok(group)
}

fn holder(monitor: &OsStr) -> io::Result<tokio::process::Child> {
    let mut command = std::process::Command::new(monitor);
    command.arg0("[berth scope]").arg("--hold").env_clear();
    let mut command = tokio::process::Command::from(command);
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn()
}

async fn manager<B>(bus: &zbus::Connection, method: &str, body: &B) -> zbus::Result<zbus::Message>
where
    B: serde::Serialize + zbus::DynamicType,
{
    bus.call_method(Some(SYSTEMD), MANAGER_PATH, Some(MANAGER), method, body)
        .await
}

/// Makes the delegated scope around the process `pid` and gives the cgroup (relative to the hierarchy's root)
/// that guests go into. A scope that is there already is taken: the second value is false.
async fn delegated(pid: u32) -> zbus::Result<(String, bool)> {
    let bus = zbus::Connection::system().await?;
    let properties: Vec<(&str, Variant<'_>)> = vec![
        ("Description", Variant::from("Berth's guests and monitors")),
        ("Delegate", Variant::from(true)),
        ("PIDs", Variant::from(vec![pid])),
        ("Slice", Variant::from("machine.slice")),
        // Guests have limits of their own; a default for one unit must not be shared by all of them.
        ("TasksMax", Variant::from(u64::MAX)),
        ("Before", Variant::from(vec![GUESTS_UNIT])),
        ("CollectMode", Variant::from("inactive-or-failed")),
    ];
    let auxiliary: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
    let body = (UNIT, "fail", properties, auxiliary);
    let made = match manager(&bus, "StartTransientUnit", &body).await {
        Ok(_) => true,
        Err(zbus::Error::MethodError(name, _, _)) if name.as_str() == EXISTS => false,
        Err(error) => return Err(error),
    };
    Ok((wait_for_cgroup(&bus).await?, made))
}

/// The scope's cgroup; empty while it is being made.
async fn control_group(bus: &zbus::Connection) -> zbus::Result<Option<String>> {
    let found = match manager(bus, "GetUnit", &(UNIT,)).await {
        Err(zbus::Error::MethodError(name, _, _)) if name.as_str() == NO_SUCH_UNIT => {
            return Ok(None);
        }
        other => other?,
    };
    let path: OwnedObjectPath = found.body().deserialize()?;
    let wanted = ("org.freedesktop.systemd1.Scope", "ControlGroup");
    let got = bus
        .call_method(Some(SYSTEMD), &path, Some(PROPERTIES), "Get", &wanted)
        .await?;
    let value: OwnedVariant = got.body().deserialize()?;
    let group = String::try_from(value)?;
    Ok(Some(group.trim_start_matches('/').to_owned()))
}

async fn wait_for_cgroup(bus: &zbus::Connection) -> zbus::Result<String> {
    // The job is asynchronous; the group's path appears with it.
    for _ in 0..500 {
        match control_group(bus).await? {
            Some(group) if !group.is_empty() => return Ok(group),
            _ => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
    Err(zbus::Error::Failure(format!(
        "{UNIT} did not get a control group"
    )))
}

/// The scope's directory in each hierarchy that systemd delegates in.
fn directories(group: &str) -> io::Result<Vec<PathBuf>> {
    let points = crate::host::cgroup::hierarchies()?;
    let directories = points.into_iter().map(|point| point.join(group));
    Ok(directories.filter(|directory| directory.is_dir()).collect())
}

fn leaf_exists(group: &str) -> io::Result<bool> {
    let directories = directories(group)?;
    Ok(!directories.is_empty()
        && directories
            .iter()
            .all(|d| d.join(berth_monitor::MONITORS).is_dir()))
}

/// Processes in the scope's own directory go to the leaf, or no controller could be passed on to guests.
fn clear_root(group: &str) -> io::Result<()> {
    for directory in directories(group)? {
        let leaf = directory.join(berth_monitor::MONITORS);
        match std::fs::create_dir(&leaf) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        for pid in std::fs::read_to_string(directory.join("cgroup.procs"))?.lines() {
            match std::fs::write(leaf.join("cgroup.procs"), pid) {
                Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}
