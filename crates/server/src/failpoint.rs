//! Faults on demand, for tests: `BERTH_FAILPOINTS="image.import=error;saga.create=crash"`.
//!
//! Actions: `crash` (the process kills itself), `error` (the step fails), `sleep(MS)`, each
//! optionally `N*` in front (only the first N times) or `@N` behind (only the Nth time).
//! Without the variable a point costs one load of a static.
//!
//! `BERTH_FAILPOINT_LOG=FILE` appends the name of every point that is passed, so that a test can
//! learn which points a piece of work has.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Crash,
    Error,
    Sleep(u64),
}

#[derive(Debug)]
struct Point {
    action: Action,
    from: u64,
    to: u64,
    seen: u64,
}

static LOG: OnceLock<Option<File>> = OnceLock::new();
static POINTS: OnceLock<Option<Mutex<HashMap<String, Point>>>> = OnceLock::new();

fn parse(text: &str) -> HashMap<String, Point> {
    let mut points = HashMap::new();
    for item in text.split(';').filter(|i| !i.trim().is_empty()) {
        let Some((name, action)) = item.trim().split_once('=') else {
            continue;
        };
        let (times, action) = match action.split_once('*') {
            Some((n, rest)) => (n.parse().unwrap_or(u64::MAX), rest),
            None => (u64::MAX, action),
        };
        let (action, nth) = match action.split_once('@') {
            Some((rest, n)) => (rest, n.parse::<u64>().ok()),
            None => (action, None),
        };
        let action = match action {
            "crash" => Action::Crash,
            "error" => Action::Error,
            other => match other
                .strip_prefix("sleep(")
                .and_then(|r| r.strip_suffix(')'))
            {
                Some(ms) => Action::Sleep(ms.parse().unwrap_or(0)),
                None => continue,
            },
        };
        let (from, to) = nth.map_or((1, times), |n| (n, n));
        points.insert(
            name.to_owned(),
            Point {
                action,
                from,
                to,
                seen: 0,
            },
        );
    }
    points
}

fn log(name: &str) {
    let open = || {
        let path = std::env::var_os("BERTH_FAILPOINT_LOG")?;
        match OpenOptions::new().append(true).create(true).open(&path) {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::error!(%error, "no failpoint log at {}", path.display());
                None
            }
        }
    };
    // One write per line: appends of several processes do not mix.
    if let Some(mut file) = LOG.get_or_init(open).as_ref()
        && let Err(error) = file.write_all(format!("{name}\n").as_bytes())
    {
        tracing::error!(%error, "failpoint log");
    }
}

fn next(name: &str) -> Option<Action> {
    log(name);
    let points = POINTS
        .get_or_init(|| {
            std::env::var("BERTH_FAILPOINTS")
                .ok()
                .map(|t| Mutex::new(parse(&t)))
        })
        .as_ref()?;
    let mut points = points
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let point = points.get_mut(name)?;
    point.seen += 1;
    (point.from..=point.to)
        .contains(&point.seen)
        .then_some(point.action)
}

/// Passes a point by name.
///
/// # Errors
/// When the point is set to fail.
pub async fn pass(name: &str) -> Result<(), berth_rpc::Error> {
    match next(name) {
        None => Ok(()),
        Some(Action::Sleep(ms)) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Ok(())
        }
        Some(action) => act(action, name),
    }
}

/// The same outside of async code.
///
/// # Errors
/// When the point is set to fail.
pub fn pass_sync(name: &str) -> Result<(), berth_rpc::Error> {
    match next(name) {
        None => Ok(()),
        Some(Action::Sleep(ms)) => {
            std::thread::sleep(Duration::from_millis(ms));
            Ok(())
        }
        Some(action) => act(action, name),
    }
}

fn act(action: Action, name: &str) -> Result<(), berth_rpc::Error> {
    if action == Action::Crash {
        // As an operator's kill -9 would: no destructors, no flush.
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
    Err(berth_rpc::Error::new(
        berth_rpc::Code::Internal,
        "FAILPOINT",
        format!("failpoint {name} was hit"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read() {
        let points = parse("a=error; b=2*sleep(5);c=crash@3;junk;d=what");
        assert_eq!(points.len(), 3);
        assert_eq!(points["b"].action, Action::Sleep(5));
        assert_eq!((points["b"].from, points["b"].to), (1, 2));
        assert_eq!((points["c"].from, points["c"].to), (3, 3));
    }
}
