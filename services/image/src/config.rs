//! The service's configuration.

use berth_server::ServerConfig;
use serde::{Deserialize, Serialize};

/// `berth-image`'s TOML file; `BERTH_IMAGE__MAX_IMAGE_BYTES=...` overrides a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Largest image that is taken, all parts together.
    pub max_image_bytes: u64,
    /// Uses of images are written down this many seconds after the first, all at once.
    pub use_flush_seconds: u64,
    /// Listeners, directory, database, logs.
    pub server: ServerConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_image_bytes: 256 << 30,
            use_flush_seconds: 5,
            server: ServerConfig::for_service("image"),
        }
    }
}
