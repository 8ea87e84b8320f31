//! The service's configuration.

use std::path::PathBuf;

use berth_server::{Configuration, Findings, ServerConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::source::Limits;

/// `berth-storage`'s TOML file; `BERTH_STORAGE__BLOB_ROOTS=...` overrides a key.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
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

impl Configuration for Config {
    const VARIABLES: &'static str = "BERTH_STORAGE";

    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn check_own(&self, findings: &mut Findings) {
        for (index, root) in self.blob_roots.iter().enumerate() {
            findings.absolute(&format!("blob_roots[{index}]"), root);
        }
        findings.ensure("node", !self.node.is_empty(), "must not be empty");
        let at_least_one = "must be at least 1";
        findings.ensure(
            "reconcile_seconds",
            self.reconcile_seconds > 0,
            at_least_one,
        );
        let unpack = &self.unpack;
        findings.ensure("unpack.max_bytes", unpack.max_bytes > 0, at_least_one);
        findings.ensure("unpack.max_entries", unpack.max_entries > 0, at_least_one);
        findings.ensure("unpack.max_ratio", unpack.max_ratio > 0, at_least_one);
        findings.ensure(
            "unpack.max_metadata_bytes",
            unpack.max_metadata_bytes > 0,
            at_least_one,
        );
    }
}
