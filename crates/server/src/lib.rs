//! What every service's `main` needs: configuration, telemetry, listeners, health, reflection,
//! metrics, detached handlers and an orderly end.
//!
//! ```ignore
//! let args = berth_server::Args::parse_for("berth-image", "images");
//! let config: Config = args.load("BERTH_IMAGE")?;
//! let _telemetry = berth_server::telemetry("berth-image", &config.server)?;
//! Server::new("berth-image", &config.server).add_service(...).serve().await?;
//! ```

mod args;
mod config;
mod events;
pub mod failpoint;
mod listen;
pub mod metrics;
mod requests;
mod serve;
mod telemetry;
mod watchdog;

pub use args::{Args, Startup};
pub use config::{ConfigError, LogConfig, ServerConfig, load};
pub use events::watch_events;
pub use listen::{Listener, PeerInfo};
pub use requests::Requests;
pub use serve::{ServeError, Server, notify_systemd};
pub use telemetry::{TelemetryGuard, telemetry};
