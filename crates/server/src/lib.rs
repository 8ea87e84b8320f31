//! What every service's `main` needs: configuration, telemetry, listeners, health, reflection,
//! metrics, detached handlers and an orderly end.
//!
//! ```ignore
//! let args = berth_server::Args::parse_for("berth-image", "images");
//! let Startup::Serve(config, reload) = args.load::<Config>() else { return };
//! let _telemetry = berth_server::telemetry("berth-image", &config.server)?;
//! let server = Server::new("berth-image", &config.server).with_reload(reload);
//! server.add_service(...).serve().await?;
//! ```

mod args;
mod caller;
mod certificates;
pub mod config;
mod events;
pub mod failpoint;
mod listen;
pub mod metrics;
mod requests;
mod serve;
mod telemetry;
mod tls;
mod watchdog;
mod whole_uploads;

pub use args::{Args, Startup};
pub use config::{
    ConfigError, Configuration, Findings, Key, Kind, Loaded, LogConfig, Origin, Origins, Problem,
    Reload, ServerConfig, TlsConfig, load,
};
pub use events::watch_events;
pub use listen::{Accepted, Address, Connection, Listener, PeerInfo, Rules};
pub use requests::Requests;
pub use serve::{ServeError, Server, notify_systemd};
pub use telemetry::{TelemetryGuard, set_log_level, telemetry};
pub use tls::{Purpose, ServerTls};
pub use whole_uploads::{BrokenOff, WholeUploads};
