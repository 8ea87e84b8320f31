//! systemd's watchdog: told that the service lives only while it does.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Something that ends when a part of the service still works. Its result is logged and no more: a database that
/// answers "away" is answered to callers as well, and a restart would mend nothing.
pub(crate) type Probe =
    Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// How long systemd waits for a sign of life, when it waits at all.
fn patience(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let usec = usec?.parse().ok().filter(|usec| *usec > 0)?;
    Some(Duration::from_micros(usec))
}

/// Sends signs of life for as long as the process lives: from the runtime's own timer, each only after a call
/// went through `socket` (accepting, framing, routing) and `probe` ended. Whatever hangs, the next one is not sent.
pub(crate) fn start(socket: Option<PathBuf>, probe: Option<Probe>) {
    let variable = |name| std::env::var(name).ok();
    let (usec, pid) = (variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
    let Some(patience) = patience(usec.as_deref(), pid.as_deref(), std::process::id()) else {
        return;
    };
    // Three in that time, so that one lost to a busy moment kills nothing.
    let every = patience / 3;
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match tokio::time::timeout(every, alive(socket.as_deref(), probe.as_ref())).await {
                Ok(Ok(())) => crate::notify_systemd("WATCHDOG=1"),
                Ok(Err(why)) => tracing::warn!(why, "no sign of life for systemd"),
                Err(_) => tracing::warn!("no sign of life for systemd: the service hangs"),
            }
        }
    });
}

async fn alive(socket: Option<&Path>, probe: Option<&Probe>) -> Result<(), String> {
    if let Some(path) = socket {
        // A new connection each time, so that accepting is part of what is tried.
        let channel = berth_rpc::client::connect(&format!("unix:{}", path.display()))
            .map_err(|e| e.to_string())?;
        HealthClient::new(channel)
            .check(HealthCheckRequest::default())
            .await
            .map_err(|status| format!("its own health: {status}"))?;
    }
    if let Some(probe) = probe
        && let Err(error) = probe().await
    {
        tracing::warn!(error, "the store answers with an error");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_meant_sends() {
        let minute = Some(Duration::from_secs(60));
        assert_eq!(patience(Some("60000000"), None, 7), minute);
        assert_eq!(patience(Some("60000000"), Some("7"), 7), minute);
        assert_eq!(patience(Some("60000000"), Some("8"), 7), None);
        assert_eq!(patience(Some("60000000"), Some("x"), 7), None);
        assert_eq!(patience(Some("0"), None, 7), None);
        assert_eq!(patience(Some("soon"), None, 7), None);
        assert_eq!(patience(None, Some("7"), 7), None);
    }

    #[tokio::test]
    async fn what_hangs_or_is_not_served_gives_no_sign() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        assert!(alive(Some(&path), None).await.is_err(), "nobody listens");
        let hangs: Probe = Box::new(|| Box::pin(std::future::pending()));
        let waited = tokio::time::timeout(Duration::from_millis(20), alive(None, Some(&hangs)));
        assert!(waited.await.is_err());
        let fails: Probe = Box::new(|| Box::pin(async { Err("away".to_owned()) }));
        assert_eq!(alive(None, Some(&fails)).await, Ok(()));
        let _listener = tokio::net::UnixListener::bind(&path).expect("bind");
        let waited = tokio::time::timeout(Duration::from_millis(50), alive(Some(&path), None));
        assert!(waited.await.is_err(), "a socket that nobody accepts from");
    }
}
