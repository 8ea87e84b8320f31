use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The `[server]` table of every service's file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Where gRPC is served: `unix:/path` or `tcp:address:port`. Sockets handed over by systemd
    /// are served besides.
    pub listen: Vec<String>,
    /// Directory that belongs to this service.
    pub state_dir: PathBuf,
    /// `sqlite:/path` or `postgres://...`; without it a SQLite file in `state_dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Where `/metrics` is served over HTTP: `unix:/path` or `tcp:address:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<String>,
    /// Permission bits of unix sockets, octal.
    pub socket_mode: String,
    /// Seconds that calls under way get when the service is asked to end.
    pub drain_seconds: u64,
    /// Logs.
    pub log: LogConfig,
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
            log: LogConfig::default(),
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
}

/// How logs are written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,berth_image=debug`.
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

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file's text is wrong; the message has the line.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        source: Box<toml::de::Error>,
    },
    /// A value is wrong.
    #[error("{0}")]
    Value(String),
}

/// Reads a service's configuration: its defaults, the file over them, the environment over that.
/// `BERTH_IMAGE__SERVER__LISTEN='["unix:/x"]'` sets `server.listen` for the prefix `BERTH_IMAGE`.
///
/// # Errors
/// When something is there that `C` doesn't know; the message says where.
pub fn load<C>(path: Option<&Path>, env_prefix: &str) -> Result<C, ConfigError>
where
    C: DeserializeOwned + Serialize + Default,
{
    let text = match path {
        None => String::new(),
        Some(path) => std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?,
    };
    let shown = path.unwrap_or(Path::new("(defaults)")).to_owned();
    let vars: BTreeMap<String, String> = std::env::vars().collect();
    load_from(&text, &shown, env_prefix, &vars)
}

fn load_from<C>(
    text: &str,
    path: &Path,
    env_prefix: &str,
    vars: &BTreeMap<String, String>,
) -> Result<C, ConfigError>
where
    C: DeserializeOwned + Serialize + Default,
{
    let parse = |source: toml::de::Error| ConfigError::Parse {
        path: path.to_owned(),
        source: Box::new(source),
    };
    // Straight from the text first, so that an error shows the line.
    let _: C = toml::from_str(text).map_err(parse)?;
    let file: toml::Table = toml::from_str(text).map_err(parse)?;
    let mut table = toml::Table::try_from(C::default())
        .map_err(|e| ConfigError::Value(format!("defaults: {e}")))?;
    merge(&mut table, file);
    let prefix = format!("{env_prefix}__");
    for (name, value) in vars
        .iter()
        .filter_map(|(k, v)| Some((k.strip_prefix(&prefix)?, v)))
    {
        let keys: Vec<String> = name.split("__").map(str::to_lowercase).collect();
        set(&mut table, &keys, scalar(value))
            .ok_or_else(|| ConfigError::Value(format!("{prefix}{name}: not a table above it")))?;
    }
    C::deserialize(toml::Value::Table(table))
        .map_err(|e| ConfigError::Value(format!("{}, with {prefix}*: {e}", path.display())))
}

/// Lays `over` on `base`, table by table; what else is there is replaced.
fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => merge(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// TOML where it reads as TOML, else the text itself.
fn scalar(text: &str) -> toml::Value {
    toml::from_str::<toml::Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

fn set(table: &mut toml::Table, keys: &[String], value: toml::Value) -> Option<()> {
    let (first, rest) = keys.split_first()?;
    if rest.is_empty() {
        table.insert(first.clone(), value);
        return Some(());
    }
    let below = table
        .entry(first.clone())
        .or_insert_with(|| toml::Value::Table(toml::Table::new()));
    set(below.as_table_mut()?, rest, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Config {
        roots: Vec<String>,
        server: ServerConfig,
    }

    impl Default for Config {
        fn default() -> Self {
            Self {
                roots: Vec::new(),
                server: ServerConfig::for_service("image"),
            }
        }
    }

    fn read(text: &str, vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let vars = vars
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        load_from(text, Path::new("image.toml"), "BERTH_IMAGE", &vars)
    }

    #[test]
    fn the_environment_goes_over_the_file() {
        let text = "roots = ['/a']\n[server]\nstate_dir = '/x'\n";
        let vars = [
            ("BERTH_IMAGE__SERVER__STATE_DIR", "/y"),
            ("BERTH_IMAGE__ROOTS", "['/b', '/c']"),
            ("BERTH_STORAGE__ROOTS", "['/no']"),
        ];
        let config = read(text, &vars).unwrap();
        assert_eq!(config.server.state_dir, Path::new("/y"));
        assert_eq!(config.roots, ["/b", "/c"]);
        assert_eq!(config.server.listen, ["unix:/run/berth/image.sock"]);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = read("[server]\nlissen = []\n", &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("lissen") && error.contains("line 2"),
            "{error}"
        );
        let error = read("", &[("BERTH_IMAGE__SERVER__NOPE", "1")])
            .unwrap_err()
            .to_string();
        assert!(error.contains("nope"), "{error}");
    }
}
