//! Configuration file of the gateway.

use std::path::PathBuf;

use berth_server::ServerConfig;
use serde::{Deserialize, Serialize};

/// `gateway.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Path of the socket that speaks LXD's REST API.
    pub rest_socket: PathBuf,
    /// Group that may open it besides its owner; none = the process's own group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rest_group: Option<String>,
    /// Listener for gRPC, state directory, database, logs.
    pub server: ServerConfig,
    /// Where the owners are.
    pub services: Services,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rest_socket: PathBuf::from("/var/lib/berth/unix.socket"),
            rest_group: None,
            server: ServerConfig::for_service("gateway"),
            services: Services::default(),
        }
    }
}

/// Addresses of the four owners: `unix:/path` or `http://host:port`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Services {
    /// Image service.
    pub image: String,
    /// Storage service.
    pub storage: String,
    /// Network service.
    pub network: String,
    /// Instance service.
    pub instance: String,
}

impl Default for Services {
    fn default() -> Self {
        let at = |name: &str| format!("unix:/run/berth/{name}.sock");
        Self {
            image: at("image"),
            storage: at("storage"),
            network: at("network"),
            instance: at("instance"),
        }
    }
}

/// How the server presents itself in `GET /1.0`.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The version clients compare; Berth speaks the dialect of this release of LXD.
    pub api_release: &'static str,
    /// Process id shown as `server_pid`.
    pub pid: u32,
}

impl Identity {
    /// Of this process.
    pub fn of_this_process() -> Self {
        Self {
            api_release: "5.0.2",
            pid: std::process::id(),
        }
    }
}
