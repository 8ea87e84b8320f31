//! The service's configuration file.

use std::path::PathBuf;

use berth_server::{ConfigError, ServerConfig};
use serde::{Deserialize, Serialize};

use crate::host::HostConfig;

/// `berth-network`'s TOML. Each key has a default.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What all services have.
    pub server: ServerConfig,
    /// Which rows of a shared database are this host's.
    pub node: String,
    /// Names Berth's nf_tables tables and marks its bridges. Services that share a network
    /// namespace need different ones. 1 to 32 of `[a-z0-9_]`.
    pub table_prefix: String,
    /// dnsmasq's program.
    pub dnsmasq: PathBuf,
    /// The user dnsmasq runs as; when the user is missing or cannot reach `dnsmasq_dir` it runs
    /// as root, with a warning in the log.
    pub dnsmasq_user: String,
    /// Directory of leases, records and pids; `dnsmasq` in `server.state_dir` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dnsmasq_dir: Option<PathBuf>,
    /// Seconds between two comparisons of the host with the database.
    pub reconcile_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: ServerConfig::for_service("network"),
            node: "local".to_owned(),
            table_prefix: "berth".to_owned(),
            dnsmasq: PathBuf::from("/usr/sbin/dnsmasq"),
            dnsmasq_user: "dnsmasq".to_owned(),
            dnsmasq_dir: None,
            reconcile_seconds: 30,
        }
    }
}

impl Config {
    /// The host's side of it.
    ///
    /// # Errors
    /// When a value is wrong.
    pub fn host(&self) -> Result<HostConfig, ConfigError> {
        let prefix = &self.table_prefix;
        let fits = (1..=32).contains(&prefix.len())
            && prefix.starts_with(|c: char| c.is_ascii_lowercase())
            && prefix
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !fits {
            return Err(ConfigError::Value(format!(
                "table_prefix: {prefix:?} is not 1 to 32 of [a-z0-9_] with a letter in front"
            )));
        }
        if self.reconcile_seconds == 0 {
            return Err(ConfigError::Value(
                "reconcile_seconds: must be at least 1".to_owned(),
            ));
        }
        let dir = self.dnsmasq_dir.clone();
        Ok(HostConfig {
            prefix: prefix.clone(),
            dnsmasq: self.dnsmasq.clone(),
            dnsmasq_user: self.dnsmasq_user.clone(),
            dnsmasq_dir: dir.unwrap_or_else(|| self.server.state_dir.join("dnsmasq")),
        })
    }
}
