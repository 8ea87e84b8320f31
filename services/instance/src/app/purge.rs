//! Removing everything this service made on the host: guests, their cgroups, their run directories.

use std::time::Duration;

use berth_monitor::protocol::{Request, StopHow};

use crate::runtime::Runtime;
use crate::runtime::link::Link;

/// A killed guest is gone within this time, or its tasks are killed through its cgroups.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kills every guest of this run directory through its monitor, else through its cgroups, and removes what
/// they left. The uids that could not be removed.
pub async fn purge(runtime: &dyn Runtime) -> std::io::Result<Vec<String>> {
    let mut left = Vec::new();
    for uid in runtime.known().await? {
        if let Err(error) = kill(runtime, &uid).await {
            tracing::debug!(uid, %error, "no monitor to ask");
        }
        // The cgroup holds the guest's tasks alone; killing them ends the monitor, which waits for them.
        let removed = match runtime.clean(&uid, true).await {
            Ok(()) => runtime.remove_logs(&uid).await,
            failed => failed,
        };
        if let Err(error) = removed {
            tracing::error!(uid, %error, "not removed");
            left.push(uid);
        }
    }
    Ok(left)
}

async fn kill(runtime: &dyn Runtime, uid: &str) -> Result<(), Box<dyn std::error::Error>> {
    let (link, mut events, _hello) = Link::greet(runtime.connect(uid).await?).await?;
    let asked = link
        .call_within(PATIENCE, Request::Stop { how: StopHow::Kill })
        .await;
    // Gone before it answered is gone as well.
    if let Err(error) = asked {
        tracing::debug!(uid, %error, "stopping");
    }
    let ended = async { while events.recv().await.is_some() {} };
    tokio::time::timeout(PATIENCE, ended).await?;
    Ok(())
}
