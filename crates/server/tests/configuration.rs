//! What is read from files and the environment, what is found wrong, and where.

#![allow(clippy::unwrap_used, reason = "a scenario reports by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use berth_server::config::{keys, load_from, markdown, mixed, print};
use berth_server::{ConfigError, Configuration, Findings, Kind, Loaded, ServerConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    /// Most bytes.
    #[schemars(extend("x-reload" = true))]
    max_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 7 }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Config {
    /// Where blobs
    /// are.
    roots: Vec<String>,
    /// Whose rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Bounds.
    unpack: Limits,
    server: ServerConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            roots: Vec::new(),
            node: None,
            unpack: Limits::default(),
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
        for (index, root) in self.roots.iter().enumerate() {
            findings.absolute(&format!("roots[{index}]"), Path::new(root));
        }
    }
}

fn read(text: &str, vars: &[(&str, &str)]) -> Result<Loaded<Config>, ConfigError> {
    let vars: BTreeMap<_, _> = vars
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    load_from(text, Path::new("image.toml"), &vars)
}

fn wrong(text: &str, vars: &[(&str, &str)]) -> Vec<String> {
    match read(text, vars) {
        Err(ConfigError::Wrong(problems)) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("not refused for its values: {other:?}"),
    }
}

#[test]
fn the_environment_goes_over_the_file() {
    let text = "roots = ['/a']\n[server]\nstate_dir = '/x'\n";
    let vars = [
        ("BERTH_IMAGE__SERVER__STATE_DIR", "/y"),
        ("BERTH_IMAGE__ROOTS", "['/b', '/c']"),
        ("BERTH_IMAGE__NODE", "12"),
        ("BERTH_IMAGE__SERVER__LOG__LEVEL", "\"debug\""),
        ("BERTH_STORAGE__ROOTS", "['/no']"),
    ];
    let Loaded { config, origins } = read(text, &vars).unwrap();
    assert_eq!(config.server.state_dir, Path::new("/y"));
    assert_eq!(config.roots, ["/b", "/c"]);
    assert_eq!(config.node.as_deref(), Some("12"), "a text needs no quotes");
    assert_eq!(config.server.log.level, "debug");
    assert_eq!(config.server.listen, ["unix:/run/berth/image.sock"]);
    let from = |key: &str| origins.of(key).to_string();
    assert_eq!(from("roots[1]"), "BERTH_IMAGE__ROOTS");
    assert_eq!(from("server.state_dir"), "BERTH_IMAGE__SERVER__STATE_DIR");
    assert_eq!(from("unpack.max_bytes"), "default");
}

#[test]
fn unknown_keys_are_named_with_their_lines_and_a_suggestion() {
    let text = "rots = []\nlisten = []\nzzzzzz = 1\n[server]\nlissen = []\n[sever]\nx = 1\n";
    assert_eq!(
        wrong(
            text,
            &[
                ("BERTH_IMAGE__SERVER__STATEDIR", "/x"),
                ("BERTH_IMAGE__NOPENOPE", "1")
            ]
        ),
        [
            "image.toml:1: rots: there is no such key; did you mean roots?",
            "image.toml:2: listen: there is no such key; did you mean server.listen?",
            "image.toml:3: zzzzzz: there is no such key",
            "image.toml:5: server.lissen: there is no such key; did you mean server.listen?",
            "image.toml:6: sever: there is no such key; did you mean server?",
            "BERTH_IMAGE__NOPENOPE: nopenope: there is no such key",
            "BERTH_IMAGE__SERVER__STATEDIR: server.statedir: there is no such key; did you mean \
             BERTH_IMAGE__SERVER__STATE_DIR?",
        ]
    );
}

#[test]
fn all_wrong_types_are_told_at_once() {
    let text = "roots = 'x'\nunpack = 3\n[server]\ndrain_seconds = -1\nlisten = [\n  'unix:/a',\n  4,\n]\n[server.tls]\nkey = '/k'\n";
    let said = wrong(text, &[("BERTH_IMAGE__SERVER__INSECURE_TCP", "perhaps")]);
    let starts = [
        "image.toml:1: roots: invalid type: string",
        "image.toml:2: unpack: this is a table",
        "image.toml:4: server.drain_seconds: invalid value: integer `-1`",
        "image.toml:7: server.listen[1]: invalid type: integer",
        "image.toml:9: server.tls: missing field `certificate`",
        "BERTH_IMAGE__SERVER__INSECURE_TCP: server.insecure_tcp: invalid type: string",
    ];
    assert_eq!(said.len(), starts.len(), "{said:#?}");
    for (said, start) in said.iter().zip(starts) {
        assert!(said.starts_with(start), "{said}");
    }
}

#[test]
fn wrong_values_are_told_with_their_lines() {
    let text = "roots = [\n '/a',\n 'b',\n]\n[server]\nlisten = ['udp:1', 'tls:0.0.0.0:7443', 'tcp:0.0.0.0:1']\nsocket_mode = '999'\ndatabase = 'mysql://x'\nstate_dir = 'x'\ndrain_seconds = 4000\nmetrics_listen = 'tcp:x'\n[server.log]\nlevel = 'info,berth_image=loud'\nformat = 'xml'\n";
    let said = wrong(text, &[]);
    let keys: Vec<_> = said
        .iter()
        .map(|s| s.splitn(4, ": ").take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        keys,
        [
            "image.toml:3 roots[1]",
            "image.toml:6 server.listen[0]",
            "image.toml:6 server.listen[1]",
            "image.toml:6 server.listen[2]",
            "image.toml:7 server.socket_mode",
            "image.toml:8 server.database",
            "image.toml:9 server.state_dir",
            "image.toml:10 server.drain_seconds",
            "image.toml:11 server.metrics_listen",
            "image.toml:13 server.log.level",
            "image.toml:14 server.log.format",
        ],
        "{said:#?}"
    );
    assert!(said[9].contains("\"loud\" is no level"), "{}", said[9]);
}

#[test]
fn a_wrong_text_is_told_with_its_lines() {
    let said = wrong("roots = [\n[server\nx = = 1\n", &[]);
    assert!(
        said.iter().all(|s| s.starts_with("image.toml:")),
        "{said:?}"
    );
    assert!(said.len() > 1, "{said:?}");
    assert!(wrong("a = 1\na = 2\n", &[])[0].starts_with("image.toml:2: "));
}

#[test]
fn what_is_printed_says_where_it_is_from_and_reads_the_same() {
    let text = "[server]\nlisten = ['tls:[::]:7443']\ndatabase = 'postgres://me:pw@h/d'\n[server.tls]\ncertificate = '/c'\nkey = '/k'\nclient_ca = '/a'\n";
    let loaded = read(text, &[("BERTH_IMAGE__UNPACK__MAX_BYTES", "9")]).unwrap();
    let printed = print(&loaded, false).unwrap();
    for line in [
        "roots = []  # default",
        "# node =",
        "max_bytes = 9  # BERTH_IMAGE__UNPACK__MAX_BYTES",
        "listen = [\"tls:[::]:7443\"]  # image.toml:2",
        "database = \"postgres://me:***@h/d\"  # image.toml:3",
        "[server.tls]",
        "allow = [\"gateway\", \"client\"]  # default",
    ] {
        assert!(printed.lines().any(|l| l == line), "{line}\n{printed}");
    }
    assert!(!printed.contains("pw"), "{printed}");
    assert!(print(&loaded, true).unwrap().contains("me:pw@"));
    let again = read(&printed, &[]).unwrap().config;
    assert_eq!(again.server.tls, loaded.config.server.tls);
    assert_eq!(again.unpack, loaded.config.unpack);
    // Defaults alone give no table that is not there.
    let plain = print(&read("", &[]).unwrap(), false).unwrap();
    assert!(plain.contains("# [server.tls]"), "{plain}");
    assert!(read(&plain, &[]).unwrap().config.server.tls.is_none());
}

#[test]
fn a_reload_takes_what_may_change_and_names_the_rest() {
    let old = read("[server]\ndrain_seconds = 1\nstate_dir = '/a'\n", &[])
        .unwrap()
        .config;
    let new = "[unpack]\nmax_bytes = 8\n[server]\ndrain_seconds = 2\nstate_dir = '/b'\n[server.log]\nlevel = 'debug'\n[server.tls]\ncertificate = '/c'\nkey = '/k'\nclient_ca = '/a'\n";
    let new = read(new, &[]).unwrap().config;
    let (mixed, waiting, changed) = mixed(&old, &new).unwrap();
    assert_eq!(mixed.server.drain_seconds, 2);
    assert_eq!(mixed.server.log.level, "debug");
    assert_eq!(mixed.unpack.max_bytes, 8);
    assert_eq!(mixed.server.state_dir, Path::new("/a"));
    assert!(mixed.server.tls.is_none());
    assert_eq!(
        changed,
        [
            "server.drain_seconds",
            "server.log.level",
            "unpack.max_bytes"
        ]
    );
    let tls = ["allow", "certificate", "client_ca", "key"].map(|k| format!("server.tls.{k}"));
    assert_eq!(waiting[0], "server.state_dir");
    assert_eq!(waiting[1..], tls);
}

#[test]
fn every_key_is_told_from_the_types() {
    let keys = keys::<Config>();
    let key = |name: &str| keys.iter().find(|k| k.name == name).unwrap();
    let roots = key("roots");
    assert_eq!(roots.meaning, "Where blobs are.");
    assert_eq!(roots.kind, Kind::Texts);
    assert_eq!(roots.default.as_deref(), Some("[]"));
    assert_eq!(key("node").default, None);
    assert_eq!(
        key("server.tls.allow").default.as_deref(),
        Some("[\"gateway\",\"client\"]")
    );
    assert_eq!(
        key("server.log.level").variable,
        "BERTH_IMAGE__SERVER__LOG__LEVEL"
    );
    assert!(key("server.log.level").reload && !key("server.listen").reload);
    assert!(key("server.database").secret);
    for key in &keys {
        assert!(!key.meaning.is_empty(), "{} says nothing", key.name);
    }
    let table = markdown(&keys);
    assert_eq!(table.lines().count(), keys.len() + 2);
}
