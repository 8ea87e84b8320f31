//! The programs of an observability stack, run beside a sandbox in its namespaces.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::sandbox::{Sandbox, paths};
use crate::venv;

/// Where services send to.
pub const COLLECTOR: u16 = 4317;
/// The collector's port for HTTP.
pub const COLLECTOR_HTTP: u16 = 4318;
/// Where the collector passes telemetry on to.
pub const BEHIND: u16 = 4319;
pub const PROMETHEUS: u16 = 9090;
/// Phoenix's pages.
pub const VIEWER: u16 = 6006;

/// A collector in Rust, as a wheel.
pub const ROTEL: &str = "rotel==0.0.1a15";
/// A trace viewer; large.
pub const PHOENIX: &str = "arize-phoenix==20.26.1";

/// A program that ends with this value.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    fn start(sandbox: &Sandbox, name: &str, mut command: Command) -> Result<Self> {
        let log = File::create(sandbox.log_file(name))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Self(command.spawn().with_context(|| name.to_owned())?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended by itself is what its log is for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The files that are shipped for others' programs.
pub fn shipped(path: &str) -> PathBuf {
    paths::workspace().join("deploy/observability").join(path)
}

/// What each service is to have in its configuration for the shipped Prometheus to find it.
pub fn metrics_listen() -> Vec<(String, String)> {
    let ports = (9640..).zip(["gateway", "image", "storage", "network", "instance"]);
    ports
        .map(|(port, service)| {
            let listen = format!("[server]\nmetrics_listen = \"tcp:127.0.0.1:{port}\"");
            (service.to_owned(), listen)
        })
        .collect()
}

/// What each service is to have in its environment to reach the collector.
pub fn environment() -> Vec<(String, String)> {
    [
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("http://127.0.0.1:{COLLECTOR}"),
        ),
        ("OTEL_BSP_SCHEDULE_DELAY", "500".to_owned()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1000".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// Prometheus with the shipped configuration, scraping every so often.
pub fn prometheus(sandbox: &Sandbox, every: &str) -> Result<Running> {
    let home = sandbox.state().join("prometheus");
    fs::create_dir_all(&home)?;
    for file in ["alerts.yml", "targets.yml"] {
        fs::copy(shipped("prometheus").join(file), home.join(file))?;
    }
    let config = fs::read_to_string(shipped("prometheus/prometheus.yml"))?;
    let config = config.replace("interval: 15s", &format!("interval: {every}"));
    fs::write(home.join("prometheus.yml"), config)?;
    let mut command = sandbox.command("prometheus")?;
    let option = |name: &str, path: &str| format!("--{name}={}", home.join(path).display());
    command
        .arg(option("config.file", "prometheus.yml"))
        .arg(option("storage.tsdb.path", "data"))
        .arg(format!("--web.listen-address=127.0.0.1:{PROMETHEUS}"))
        .arg("--enable-feature=exemplar-storage");
    Running::start(sandbox, "prometheus", command)
}

/// What the collector passes on to [`BEHIND`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    Everything,
    /// Whoever is behind it takes nothing else.
    Traces,
    /// It only takes.
    Nothing,
}

/// The collector, from a Python that has [`ROTEL`].
pub fn rotel(sandbox: &Sandbox, python: &Path, pass: Pass) -> Result<Running> {
    let program = venv::output(Command::new(python).args([
        "-c",
        "import pathlib, rotel; print(pathlib.Path(rotel.__file__).with_name('rotel-agent'))",
    ]))?;
    let behind = format!("http://127.0.0.1:{BEHIND}");
    let mut command = sandbox.command(program.trim())?;
    command
        .arg("start")
        .arg(format!("--otlp-grpc-endpoint=127.0.0.1:{COLLECTOR}"))
        .arg(format!("--otlp-http-endpoint=127.0.0.1:{COLLECTOR_HTTP}"));
    match pass {
        Pass::Everything => {
            command
                .arg("--exporter=otlp")
                .arg(format!("--otlp-exporter-endpoint={behind}"));
        }
        Pass::Nothing => {
            command.arg("--exporter=blackhole");
        }
        Pass::Traces => {
            command
                .arg("--exporters=behind:otlp,nowhere:blackhole")
                .args(["--exporters-traces=behind", "--exporters-metrics=nowhere"])
                .arg("--exporters-logs=nowhere")
                .env("ROTEL_EXPORTER_BEHIND_ENDPOINT", behind);
        }
    }
    Running::start(sandbox, "rotel", command)
}

/// The trace viewer, from a Python that has [`PHOENIX`].
pub fn phoenix(sandbox: &Sandbox, python: &Path) -> Result<Running> {
    let home = sandbox.state().join("phoenix");
    fs::create_dir_all(&home)?;
    let mut command = sandbox.command(python.with_file_name("phoenix"))?;
    command
        .arg("serve")
        .env("PHOENIX_WORKING_DIR", home)
        .env("PHOENIX_HOST", "127.0.0.1")
        .env("PHOENIX_PORT", VIEWER.to_string())
        .env("PHOENIX_GRPC_PORT", BEHIND.to_string())
        .env("PHOENIX_TELEMETRY_ENABLED", "false");
    Running::start(sandbox, "phoenix", command)
}
