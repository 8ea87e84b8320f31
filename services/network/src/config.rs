//! The service's configuration file.

use std::path::PathBuf;

use berth_server::{Configuration, Findings, ServerConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::host::HostConfig;

/// `berth-network`'s TOML. Each key has a default.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
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
    pub fn host(&self) -> HostConfig {
        let dir = self.dnsmasq_dir.clone();
        HostConfig {
            prefix: self.table_prefix.clone(),
            dnsmasq: self.dnsmasq.clone(),
            dnsmasq_user: self.dnsmasq_user.clone(),
            dnsmasq_dir: dir.unwrap_or_else(|| self.server.state_dir.join("dnsmasq")),
        }
    }
}

impl Configuration for Config {
    const VARIABLES: &'static str = "BERTH_NETWORK";

    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn check_own(&self, findings: &mut Findings) {
        let prefix = &self.table_prefix;
        let fits = (1..=32).contains(&prefix.len())
            && prefix.starts_with(|c: char| c.is_ascii_lowercase())
            && prefix
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !fits {
            findings.add(
                "table_prefix",
                format!("{prefix:?} is not 1 to 32 of [a-z0-9_] with a letter in front"),
            );
        }
        findings.ensure("node", !self.node.is_empty(), "must not be empty");
        findings.absolute("dnsmasq", &self.dnsmasq);
        if let Some(dir) = &self.dnsmasq_dir {
            findings.absolute("dnsmasq_dir", dir);
        }
        findings.ensure(
            "reconcile_seconds",
            self.reconcile_seconds > 0,
            "must be at least 1",
        );
    }
}
