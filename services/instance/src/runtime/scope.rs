//! Under systemd guests' cgroups must be in a unit that is delegated, or systemd would take them over.

use std::path::Path;
use std::process::Stdio;

use zbus::{OwnedObjectPath, OwnedVariant, Variant};

/// First argument with which this program keeps a scope alive and does nothing else.
pub const HOLDER: &str = "scope-holder";
const UNIT: &str = "berth-instances.scope";

/// Whether systemd runs this host.
fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The life of a holder: until it is killed with its scope.
pub fn hold() -> ! {
    loop {
        std::thread::park();
    }
}

/// The cgroup for guests under systemd; `None` where guests' cgroups are made directly.
pub async fn for_guests(config: &crate::config::Config) -> anyhow::Result<Option<String>> {
    if !config.systemd_scope || !systemd_runs() {
        return Ok(None);
    }
    // A scope ends with its last process, and is born with one: not with this service, which may end first.
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg(HOLDER).env_clear().current_dir("/");
    let mut holder = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = holder
        .id()
        .ok_or_else(|| anyhow::anyhow!("the scope's holder ended at once"))?;
    let (group, made) = delegated(UNIT, pid).await?;
    if !made {
        // Another holder keeps it already.
        holder.kill().await?;
    }
    Ok(Some(group))
}

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Makes the delegated scope `unit` around the process `pid` and gives the cgroup (relative to the
/// hierarchy's root) that guests go into. A scope that is there already is taken: the second value is false.
async fn delegated(unit: &str, pid: u32) -> zbus::Result<(String, bool)> {
    let bus = zbus::Connection::system().await?;
    let properties: Vec<(&str, Variant<'_>)> = vec![
        ("Description", Variant::from("Berth's instances")),
        ("Delegate", Variant::from(true)),
        ("PIDs", Variant::from(vec![pid])),
        ("CollectMode", Variant::from("inactive-or-failed")),
    ];
    let auxiliary: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
    let body = (unit, "fail", properties, auxiliary);
    let started = bus
        .call_method(
            Some(SYSTEMD),
            MANAGER_PATH,
            Some(MANAGER),
            "StartTransientUnit",
            &body,
        )
        .await;
    let made = match started {
        Ok(_) => true,
        Err(zbus::Error::MethodError(name, _, _))
            if name.as_str() == "org.freedesktop.systemd1.UnitExists" =>
        {
            false
        }
        Err(error) => return Err(error),
    };
    Ok((wait_for_cgroup(&bus, unit).await?, made))
}

async fn wait_for_cgroup(bus: &zbus::Connection, unit: &str) -> zbus::Result<String> {
    // The job is asynchronous; the group's path appears with it.
    for _ in 0..100 {
        let found = bus
            .call_method(
                Some(SYSTEMD),
                MANAGER_PATH,
                Some(MANAGER),
                "GetUnit",
                &(unit,),
            )
            .await?;
        let path: OwnedObjectPath = found.body().deserialize()?;
        let wanted = ("org.freedesktop.systemd1.Scope", "ControlGroup");
        let got = bus
            .call_method(Some(SYSTEMD), &path, Some(PROPERTIES), "Get", &wanted)
            .await?;
        let value: OwnedVariant = got.body().deserialize()?;
        let group = String::try_from(value)?;
        if !group.is_empty() {
            return Ok(group.trim_start_matches('/').to_owned());
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    Err(zbus::Error::Failure(format!(
        "{unit} did not get a control group"
    )))
}
