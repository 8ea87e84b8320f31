//! The service's configuration.

use std::path::PathBuf;

use berth_server::ServerConfig;
use serde::{Deserialize, Serialize};

use crate::source::Limits;

/// `berth-storage`'s TOML file; `BERTH_STORAGE__BLOB_ROOTS=...` overrides a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directories beneath which image blobs may be read; absolute. Empty = no images.
    pub blob_roots: Vec<PathBuf>,
    /// Name of this host among those that share one database. With a database of its own a host
    /// needs no other name; it must not change while there are pools.
    pub node: String,
    /// Whether the process takes a mount namespace of its own at start.
    pub private_mounts: bool,
    /// Seconds between two looks after pools that are away and data that is left over.
    pub reconcile_seconds: u64,
    /// Bounds on what an image may unpack to.
    pub unpack: Limits,
    /// Listeners, directory, database, logs.
    pub server: ServerConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            blob_roots: vec![PathBuf::from("/var/lib/berth/image/blobs")],
            node: "local".to_owned(),
            private_mounts: true,
            reconcile_seconds: 60,
            unpack: Limits::default(),
            server: ServerConfig::for_service("storage"),
        }
    }
}
