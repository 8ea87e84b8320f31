//! Configuration file of the gateway.

use std::path::PathBuf;
use std::sync::Arc;

use berth_rpc::tls::{CertificateFiles, ClientTls, TlsError};
use berth_server::{Configuration, Findings, ServerConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `gateway.toml`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
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

/// Addresses of the four owners: `unix:/path`, `https://host:port` with `[services.tls]`, or
/// `http://host:port` without protection.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
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
    /// The certificate that the gateway shows at `https://` addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTlsConfig>,
}

/// PEM files, read again when they change.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientTlsConfig {
    /// PEM file with the gateway's certificate, then those that lead to the authority's.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// PEM file with the authorities that the owners' certificates come from.
    pub ca: PathBuf,
}

impl ClientTlsConfig {
    /// Reads the files.
    ///
    /// # Errors
    /// When they can't be used.
    pub fn open(&self) -> Result<Arc<ClientTls>, TlsError> {
        ClientTls::open(CertificateFiles {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            authority: self.ca.clone(),
        })
    }
}

impl Default for Services {
    fn default() -> Self {
        let at = |name: &str| format!("unix:/run/berth/{name}.sock");
        Self {
            image: at("image"),
            storage: at("storage"),
            network: at("network"),
            instance: at("instance"),
            tls: None,
        }
    }
}

impl Configuration for Config {
    const VARIABLES: &'static str = "BERTH_GATEWAY";

    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn check_own(&self, findings: &mut Findings) {
        findings.absolute("rest_socket", &self.rest_socket);
        let services = &self.services;
        let tls = services.tls.is_some();
        for (name, address) in [
            ("image", &services.image),
            ("storage", &services.storage),
            ("network", &services.network),
            ("instance", &services.instance),
        ] {
            let key = format!("services.{name}");
            if let Err(error) = berth_rpc::check_address(address) {
                findings.add(key, error);
            } else if address.starts_with("https://") && !tls {
                findings.add(key, "https:// needs the table [services.tls]");
            }
        }
        if let Some(tls) = &services.tls {
            findings.absolute("services.tls.certificate", &tls.certificate);
            findings.absolute("services.tls.key", &tls.key);
            findings.absolute("services.tls.ca", &tls.ca);
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
