//! The service's configuration.

use berth_server::{Configuration, Findings, ServerConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `berth-image`'s TOML file; `BERTH_IMAGE__MAX_IMAGE_BYTES=...` overrides a key.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Largest image that is taken, all parts together, in bytes.
    #[schemars(extend("x-reload" = true))]
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

impl Configuration for Config {
    const VARIABLES: &'static str = "BERTH_IMAGE";

    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn check_own(&self, findings: &mut Findings) {
        findings.ensure(
            "max_image_bytes",
            self.max_image_bytes > 0,
            "no image would be taken",
        );
    }
}
