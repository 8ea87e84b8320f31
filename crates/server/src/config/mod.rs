//! A service's configuration: one file, the environment over it.

mod keys;
mod load;
mod print;
mod problems;
mod reload;

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use keys::{Key, Kind, keys, markdown};
pub use load::{Loaded, load, load_from};
pub use print::print;
pub use problems::{ConfigError, Findings, Origin, Origins, Problem};
pub(crate) use reload::Reloading;
pub use reload::{Reload, mixed};

use crate::listen::Address;

/// A service's file: its keys, in a table below the top at most, `[server]` among them.
///
/// A field's doc comment is what the documentation says of its key. `#[schemars(extend("x-reload"
/// = true))]` marks those that a reload takes up, `x-secret` those that may hold a password.
pub trait Configuration:
    Clone + Serialize + DeserializeOwned + Default + JsonSchema + Send + Sync + 'static
{
    /// What the variables that go over the file begin with, `BERTH_IMAGE`.
    const VARIABLES: &'static str;

    /// The `[server]` table.
    fn server(&self) -> &ServerConfig;

    /// Finds what is wrong with the service's own values.
    fn check_own(&self, findings: &mut Findings);

    /// Finds what is wrong with the values.
    fn check(&self, findings: &mut Findings) {
        self.server().check(findings);
        self.check_own(findings);
    }
}

/// The `[server]` table of every service's file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Where gRPC is served: `unix:/path`, `tls:address:port` (which needs `[server.tls]`), or
    /// `tcp:address:port` on loopback. Sockets handed over by systemd are served besides.
    pub listen: Vec<String>,
    /// Directory that belongs to this service.
    pub state_dir: PathBuf,
    /// `sqlite:/path` or `postgres://user:password@host/database`; without it a SQLite file in
    /// `server.state_dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub database: Option<String>,
    /// Where `/metrics` is served over HTTP: `unix:/path`, `tcp:address:port`, or
    /// `tls:address:port` for whoever has a certificate of `server.tls.client_ca`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<String>,
    /// Permission bits of unix sockets, octal.
    pub socket_mode: String,
    /// Seconds that calls under way get when the service is asked to end.
    #[schemars(extend("x-reload" = true))]
    pub drain_seconds: u64,
    /// Lets `tcp:` listen beyond loopback. Whoever reaches such a port controls the service.
    pub insecure_tcp: bool,
    /// User whose calls over a unix socket are the gateway's, besides root.
    pub gateway_user: String,
    /// Logs.
    pub log: LogConfig,
    /// Certificates for `tls:` addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            state_dir: PathBuf::from("/var/lib/berth"),
            database: None,
            metrics_listen: None,
            socket_mode: "0660".to_owned(),
            drain_seconds: 10,
            insecure_tcp: false,
            gateway_user: "berth".to_owned(),
            log: LogConfig::default(),
            tls: None,
        }
    }
}

impl ServerConfig {
    /// The defaults of one service: its socket and its directory.
    pub fn for_service(name: &str) -> Self {
        Self {
            listen: vec![format!("unix:/run/berth/{name}.sock")],
            state_dir: PathBuf::from(format!("/var/lib/berth/{name}")),
            ..Self::default()
        }
    }

    /// The database to open.
    pub fn database(&self) -> berth_store::DatabaseConfig {
        match &self.database {
            Some(url) => berth_store::DatabaseConfig {
                url: url.clone(),
                durability: berth_store::Durability::Full,
            },
            None => berth_store::DatabaseConfig::file(self.state_dir.join("state.db")),
        }
    }

    /// Permission bits of unix sockets.
    ///
    /// # Errors
    /// When they are no octal number; the sentence says so.
    pub fn mode(&self) -> Result<u32, String> {
        u32::from_str_radix(&self.socket_mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| format!("{:?} is no octal number up to 0777", self.socket_mode))
    }

    fn check(&self, findings: &mut Findings) {
        for (index, address) in self.listen.iter().enumerate() {
            let key = format!("server.listen[{index}]");
            match Address::parse(address) {
                Err(message) => findings.add(key, message),
                Ok(Address::Tls(_)) if self.tls.is_none() => {
                    findings.add(key, "tls: needs the table [server.tls]");
                }
                Ok(Address::Tcp(at)) if !self.insecure_tcp && !is_loopback(at) => findings.add(
                    key,
                    format!(
                        "{at} is not loopback, and whoever reaches it would control this service; \
                         use tls: or set server.insecure_tcp"
                    ),
                ),
                Ok(_) => {}
            }
        }
        if let Some(address) = &self.metrics_listen {
            match Address::parse(address) {
                Err(message) => findings.add("server.metrics_listen", message),
                Ok(Address::Tls(_)) if self.tls.is_none() => {
                    findings.add("server.metrics_listen", "tls: needs the table [server.tls]");
                }
                Ok(_) => {}
            }
        }
        findings.absolute("server.state_dir", &self.state_dir);
        if let Some(url) = &self.database {
            let known = ["sqlite:", "postgres://", "postgresql://"];
            findings.ensure(
                "server.database",
                known.iter().any(|scheme| url.starts_with(scheme)),
                "expected sqlite:/path or postgres://host/database",
            );
        }
        findings.check("server.socket_mode", self.mode());
        findings.ensure(
            "server.drain_seconds",
            self.drain_seconds <= 3600,
            "more than an hour: systemd and others would not wait",
        );
        findings.check("server.log.level", check_level(&self.log.level));
        findings.ensure(
            "server.log.format",
            matches!(self.log.format.as_str(), "text" | "json"),
            &format!("{:?} is neither text nor json", self.log.format),
        );
        if let Some(tls) = &self.tls {
            tls.check(findings);
        }
    }
}

/// Names other than `localhost` are resolved, and judged, when the service listens.
fn is_loopback(address: &str) -> bool {
    match address.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => true,
    }
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A filter would take a misspelt level for a module's name, and log nothing.
pub(crate) fn check_level(text: &str) -> Result<(), String> {
    for directive in text.split(',') {
        let level = directive
            .rsplit_once('=')
            .map_or(directive, |(_, level)| level);
        if !LEVELS.contains(&level.trim().to_lowercase().as_str()) {
            return Err(format!(
                "{level:?} is no level; levels are {}",
                LEVELS.join(", ")
            ));
        }
    }
    tracing_subscriber::EnvFilter::try_new(text)
        .map(drop)
        .map_err(|e| e.to_string())
}

/// The service's certificate, and whose certificates it takes calls from. PEM files, read again
/// when they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the service's certificate, then those that lead to the authority's. It and
    /// the two others are read again when they change.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// PEM file with the authorities that callers' certificates come from.
    pub client_ca: PathBuf,
    /// Which callers of these authorities are taken: roles (`gateway` is
    /// `spiffe://berth/gateway`), whole URIs, or `dns:NAME`.
    #[serde(default = "TlsConfig::default_allow")]
    #[schemars(extend("x-reload" = true))]
    pub allow: Vec<String>,
}

impl TlsConfig {
    /// The gateway, and clients that call the service directly.
    pub fn default_allow() -> Vec<String> {
        vec!["gateway".to_owned(), "client".to_owned()]
    }

    fn check(&self, findings: &mut Findings) {
        for (index, allowed) in self.allow.iter().enumerate() {
            let key = format!("server.tls.allow[{index}]");
            findings.check(&key, berth_rpc::tls::identity(allowed));
        }
        findings.ensure(
            "server.tls.allow",
            !self.allow.is_empty(),
            "nobody could call",
        );
        findings.absolute("server.tls.certificate", &self.certificate);
        findings.absolute("server.tls.key", &self.key);
        findings.absolute("server.tls.client_ca", &self.client_ca);
    }
}

/// How logs are written.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,berth_image=debug`.
    #[schemars(extend("x-reload" = true))]
    pub level: String,
    /// `text` or `json`.
    pub format: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: "text".to_owned(),
        }
    }
}
