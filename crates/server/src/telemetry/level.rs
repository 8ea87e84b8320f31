//! What is logged, changed while the service runs.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use tracing_subscriber::EnvFilter;

use crate::ConfigError;

/// Crates that speak while telemetry is sent: exporting their lines would make more of them.
const EXPORTERS_OWN: &str = "h2=off,hyper=off,hyper_util=off,tonic=off,tower=off,opentelemetry=off";

/// Puts a new filter in force, in every place that filters logs.
type Apply = Box<dyn Fn(&str) -> Result<(), ConfigError> + Send + Sync>;

static CONTROL: OnceLock<Control> = OnceLock::new();

struct Control {
    apply: Apply,
    state: Mutex<State>,
}

struct State {
    configured: String,
    /// What is in force instead, and until when.
    instead: Option<(String, Option<SystemTime>)>,
    /// Counts changes, so that a timer does not end what came after it was set.
    change: u64,
}

/// What is logged at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLevel {
    /// The filter in force.
    pub level: String,
    /// What the configuration says.
    pub configured: String,
    /// When the configured one comes back by itself.
    pub until: Option<SystemTime>,
}

impl Control {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn shown(&self) -> LogLevel {
        let (level, until) = match &self.instead {
            Some((level, until)) => (level.clone(), *until),
            None => (self.configured.clone(), None),
        };
        LogLevel {
            level,
            configured: self.configured.clone(),
            until,
        }
    }
}

/// Keeps what changes the filters; the first caller's stays.
pub(super) fn install(configured: &str, apply: Apply) {
    let state = State {
        configured: configured.to_owned(),
        instead: None,
        change: 0,
    };
    let _ = CONTROL.set(Control {
        apply,
        state: Mutex::new(state),
    });
}

/// The filter of lines that a person reads.
pub(super) fn to_stderr(level: &str) -> Result<EnvFilter, ConfigError> {
    // Whoever wants to hear the SDK itself names it in the level; a collector that is away is
    // reported by us, once, and not by its exporter at each try.
    parse(&format!(
        "opentelemetry=warn,opentelemetry-otlp=off,{level}"
    ))
}

/// The filter of lines that go to a collector.
pub(super) fn to_collector(level: &str) -> Result<EnvFilter, ConfigError> {
    parse(&format!("{level},{EXPORTERS_OWN}"))
}

fn parse(filter: &str) -> Result<EnvFilter, ConfigError> {
    EnvFilter::try_new(filter).map_err(|e| bad(&e.to_string()))
}

fn bad(why: &str) -> ConfigError {
    ConfigError::Value(format!("server.log.level: {why}"))
}

/// Whether `level` is `error`, `warn`, `info`, `debug`, `trace`, `off`, or a filter of such, as
/// `info,berth_image=debug`.
///
/// # Errors
/// When it is not; the message names `server.log.level`.
pub fn check_log_level(level: &str) -> Result<(), ConfigError> {
    // To the filter's own parser a misspelt level is the name of a crate to be traced.
    crate::config::check_level(level).map_err(|why| bad(&why))
}

/// The filter in force and the configured one.
pub fn log_level() -> Option<LogLevel> {
    CONTROL.get().map(|control| control.state().shown())
}

/// Makes `level` the configured one and puts it in force, in place of what [`override_log_level`]
/// set.
///
/// # Errors
/// When it is malformed; what was in force stays.
pub fn set_log_level(level: &str) -> Result<(), ConfigError> {
    check_log_level(level)?;
    let Some(control) = CONTROL.get() else {
        return Ok(());
    };
    let mut state = control.state();
    (control.apply)(level)?;
    level.clone_into(&mut state.configured);
    state.instead = None;
    state.change += 1;
    Ok(())
}

/// Puts `level` in force in place of the configured one: for a time, or until the configuration is
/// read again. An empty one brings the configured one back. Call it inside a tokio runtime.
///
/// # Errors
/// When it is malformed, or telemetry was never set up; what was in force stays.
pub fn override_log_level(
    level: &str,
    duration: Option<Duration>,
) -> Result<LogLevel, ConfigError> {
    let control = CONTROL
        .get()
        .ok_or_else(|| bad("this process has no logs"))?;
    let mut state = control.state();
    if level.is_empty() {
        (control.apply)(&state.configured)?;
        state.instead = None;
        state.change += 1;
        return Ok(state.shown());
    }
    check_log_level(level)?;
    let until = match duration {
        Some(duration) => Some(
            SystemTime::now()
                .checked_add(duration)
                .ok_or_else(|| ConfigError::Value("duration: too long".to_owned()))?,
        ),
        None => None,
    };
    (control.apply)(level)?;
    state.instead = Some((level.to_owned(), until));
    state.change += 1;
    if let Some(duration) = duration {
        tokio::spawn(back_after(control, duration, state.change));
    }
    Ok(state.shown())
}

async fn back_after(control: &'static Control, duration: Duration, change: u64) {
    tokio::time::sleep(duration).await;
    let level = {
        let mut state = control.state();
        if state.change != change {
            return;
        }
        // It was in force before, so it parses.
        if let Err(error) = (control.apply)(&state.configured) {
            tracing::error!(%error, "the configured log level");
        }
        state.instead = None;
        state.change += 1;
        state.configured.clone()
    };
    tracing::info!(level, "the configured log level is back");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_told_from_slips() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,berth_image=debug",
            "berth_image[request]=trace",
        ] {
            check_log_level(good).unwrap_or_else(|e| panic!("{good}: {e}"));
        }
        for slip in [
            "inof",
            "",
            "info,berth_image",
            "berth_image=loud",
            "info,,warn",
            "warn, berth_network=info",
        ] {
            let error = check_log_level(slip).unwrap_err().to_string();
            assert!(error.starts_with("server.log.level: "), "{slip}: {error}");
        }
    }

    #[test]
    fn the_exporters_own_lines_never_reach_the_collector() {
        let filter = to_collector("trace,h2=trace").unwrap().to_string();
        assert!(filter.contains("h2=off"), "{filter}");
        assert!(!filter.contains("h2=trace"), "{filter}");
    }
}
