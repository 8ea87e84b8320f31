//! `up` and `down`: the five real binaries (and lxcfs) with everything they keep below one
//! directory, apart from the machine where asked.
//!
//! ```text
//! DIR/unix.socket       REST                    DIR/etc/<service>.toml   configuration
//! DIR/run/<service>.*   gRPC sockets and pids   DIR/log/<service>.log    standard error
//! DIR/<service>/        state                   DIR/bin/                 the binaries it runs
//! DIR/lxcfs             mount point             DIR/sandbox.json         how it was started
//! ```
//!
//! Isolated means a network namespace (named, so that `ip netns exec` reaches it) and a mount
//! namespace, both kept alive by one idle process. Storage always has a mount namespace of its
//! own. The gateway and image run without root.

mod config;
pub mod engine;
mod namespace;
pub mod paths;
pub(crate) mod process;
mod ready;
mod teardown;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use namespace::Namespaces;
use process::{Account, Spawn};
pub use teardown::{DownOptions, down};

/// The services, in the order they are started.
pub const SERVICES: [&str; 5] = ["image", "storage", "network", "instance", "gateway"];

/// How to start.
#[derive(Clone, Debug, Default)]
pub struct UpOptions {
    /// A network and a mount namespace apart from the machine's.
    pub isolated: bool,
    pub release: bool,
    /// No pool, no bridge, an empty default profile.
    pub bare: bool,
    /// Binaries built already; without it they are built.
    pub bin_dir: Option<PathBuf>,
    /// Start these services alone; all when empty.
    pub only: Vec<String>,
    /// Additions to a service's configuration: (service, TOML).
    pub extra: Vec<(String, String)>,
    /// Addresses where a service listens beside its socket: (service, address).
    pub listen: Vec<(String, String)>,
    /// Additions to the services' environment; what this process has as `BERTH_*`, `OTEL_*` and
    /// `RUST_*` they get anyway.
    pub environment: Vec<(String, String)>,
}

/// A sandbox on disk, running or not.
#[derive(Clone, Debug)]
pub struct Sandbox {
    state: PathBuf,
}

/// What `down`, `kill` and `start` must know about how `up` was called.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    isolated: bool,
    /// Name of the network namespace, when isolated.
    netns: String,
    cgroup_parent: String,
    services: Vec<String>,
    /// user and group of the services that need no root
    accounts: BTreeMap<String, Account>,
}

impl Sandbox {
    pub fn at(state: &Path) -> Self {
        Self {
            state: state.to_owned(),
        }
    }

    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The REST socket.
    pub fn socket(&self) -> PathBuf {
        self.state.join("unix.socket")
    }

    /// A service's gRPC socket.
    pub fn grpc_socket(&self, service: &str) -> PathBuf {
        self.state.join("run").join(format!("{service}.sock"))
    }

    pub fn config_file(&self, service: &str) -> PathBuf {
        self.state.join("etc").join(format!("{service}.toml"))
    }

    pub fn log_file(&self, service: &str) -> PathBuf {
        self.state.join("log").join(format!("{service}.log"))
    }

    /// A binary as this sandbox runs it.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.state.join("bin").join(name)
    }

    /// The name of its network namespace.
    pub fn netns(&self) -> String {
        format!("berth-{}", self.tag())
    }

    /// The directory its instances have in every cgroup hierarchy.
    pub fn cgroup_parent(&self) -> String {
        format!("berth-{}", self.tag())
    }

    /// Eight hex digits of the state directory's path.
    fn tag(&self) -> String {
        use std::os::unix::ffi::OsStrExt;
        let digest = <sha2::Sha256 as sha2::Digest>::digest(self.state.as_os_str().as_bytes());
        hex::encode(&digest[..4])
    }

    /// The pid of a running service; `None` when it is dead or was never started.
    pub fn pid(&self, service: &str) -> Option<i32> {
        process::recorded(&self.pid_file(service), &self.executable(service))
    }

    fn pid_file(&self, service: &str) -> PathBuf {
        self.state.join("run").join(format!("{service}.pid"))
    }

    fn executable(&self, service: &str) -> PathBuf {
        match service {
            "lxcfs" => PathBuf::from(config::LXCFS),
            "holder" => PathBuf::from("/usr/bin/sleep"),
            _ => self.binary(&format!("berth-{service}")),
        }
    }

    fn record(&self) -> Result<Record> {
        let file = self.state.join("sandbox.json");
        let text = fs::read(&file).with_context(|| format!("no sandbox at {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| file.display().to_string())
    }

    /// A command to run where the services run: their network and mount namespaces.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        self.namespaces()?.enter(&mut command);
        Ok(command)
    }

    fn namespaces(&self) -> Result<Namespaces> {
        let record = self.record()?;
        if !record.isolated {
            return Ok(Namespaces::machine());
        }
        Namespaces::of_sandbox(self.pid("holder"), &record.netns)
    }

    /// SIGHUP: the service reads its configuration and certificates again.
    pub fn reload(&self, service: &str) -> Result<()> {
        let pid = self.pid(service);
        let pid = pid.with_context(|| format!("{service} does not run"))?;
        let signal = nix::sys::signal::Signal::SIGHUP;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)?;
        Ok(())
    }

    /// SIGKILL, to the recorded process and no other. Returns whether it was running.
    pub fn kill(&self, service: &str) -> Result<bool> {
        known(service)?;
        process::stop(
            &self.pid_file(service),
            &self.executable(service),
            process::How::Kill,
        )
    }

    /// Starts services that are not running and waits until they answer.
    pub fn start(&self, services: &[&str]) -> Result<()> {
        self.start_with(services, &[])
    }

    /// The same with additions to their environment, for example `BERTH_FAILPOINTS`.
    pub fn start_with(&self, services: &[&str], environment: &[(&str, &str)]) -> Result<()> {
        for service in services {
            known(service)?;
            if self.pid(service).is_none() {
                self.launch(service, environment)?;
            }
        }
        for service in services {
            ready::wait(self, service)?;
        }
        Ok(())
    }

    fn launch(&self, service: &str, environment: &[(&str, &str)]) -> Result<()> {
        let record = self.record()?;
        process::spawn(Spawn {
            program: self.executable(service),
            args: vec!["--config".into(), self.config_file(service).into()],
            log: self.log_file(service),
            pid_file: self.pid_file(service),
            namespaces: self.namespaces()?,
            environment: owned(environment),
            private_mounts: service == "storage",
            account: record.accounts.get(service).copied(),
        })
        .with_context(|| format!("cannot start {service}"))
    }
}

fn owned(environment: &[(&str, &str)]) -> Vec<(String, String)> {
    environment
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn known(service: &str) -> Result<()> {
    ensure!(
        SERVICES.contains(&service),
        "no service {service:?}: they are {}",
        SERVICES.join(", ")
    );
    Ok(())
}

/// Starts everything and waits until it answers. On failure what was started is taken down.
pub fn up(state: &Path, options: &UpOptions) -> Result<Sandbox> {
    ensure!(nix::unistd::geteuid().is_root(), "this needs root");
    for service in options
        .only
        .iter()
        .chain(options.extra.iter().map(|(name, _)| name))
    {
        known(service)?;
    }
    let bin_dir = match &options.bin_dir {
        Some(directory) => directory.clone(),
        None => paths::build(options.release)?,
    };
    fs::create_dir_all(state).with_context(|| state.display().to_string())?;
    let sandbox = Sandbox::at(&state.canonicalize()?);
    if sandbox.state.join("sandbox.json").exists() {
        bail!("{} is in use: take it down first", state.display());
    }
    match bring_up(&sandbox, &bin_dir, options) {
        Ok(()) => Ok(sandbox),
        Err(error) => {
            let kept = DownOptions { keep_logs: true };
            if let Err(after) = down(sandbox.state(), &kept) {
                eprintln!("and taking it down again failed: {after:#}");
            }
            Err(error.context(format!(
                "logs are in {}",
                sandbox.state.join("log").display()
            )))
        }
    }
}

fn bring_up(sandbox: &Sandbox, bin_dir: &Path, options: &UpOptions) -> Result<()> {
    let services: Vec<&str> = SERVICES
        .into_iter()
        .filter(|service| options.only.is_empty() || options.only.iter().any(|o| o == service))
        .collect();
    let accounts = process::accounts()?;
    let record = Record {
        isolated: options.isolated,
        netns: sandbox.netns(),
        cgroup_parent: sandbox.cgroup_parent(),
        services: services.iter().map(|&service| service.to_owned()).collect(),
        accounts: accounts.clone(),
    };
    fs::write(
        sandbox.state.join("sandbox.json"),
        serde_json::to_vec_pretty(&record)?,
    )?;
    directories(sandbox, &accounts)?;
    for (_, binary) in paths::BINARIES {
        place(&bin_dir.join(binary), &sandbox.binary(binary))?;
    }
    if options.isolated {
        namespace::create(&record.netns, &sandbox.state, &sandbox.pid_file("holder"))?;
    }
    let lxcfs = Path::new(config::LXCFS).exists() && services.contains(&"instance");
    if lxcfs {
        start_lxcfs(sandbox)?;
    }
    for service in &services {
        let text = config::text(sandbox, service, lxcfs, options)?;
        fs::write(sandbox.config_file(service), text)?;
        let environment: Vec<_> = options
            .environment
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        sandbox.launch(service, &environment)?;
    }
    for service in &services {
        ready::wait(sandbox, service)?;
    }
    if services.len() == SERVICES.len() && !options.bare {
        initialise(sandbox)?;
    }
    Ok(())
}

/// The sticky bit lets the gateway create its sockets beside the others' and remove none of them;
/// the set-group bit gives every socket in `run` to the gateway's group.
fn directories(sandbox: &Sandbox, accounts: &BTreeMap<String, Account>) -> Result<()> {
    let group = accounts.get("gateway").map(|account| account.gid);
    let make = |path: PathBuf, uid: u32, gid: Option<u32>, mode: u32| -> Result<()> {
        fs::create_dir_all(&path)?;
        chown(&path, Some(uid), gid)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(())
    };
    let state = sandbox.state.clone();
    process::check_reachable(&state)?;
    make(state.clone(), 0, group, 0o1771)?;
    make(state.join("run"), 0, group, 0o3770)?;
    for name in ["etc", "log", "bin", "lxcfs"] {
        make(state.join(name), 0, None, 0o755)?;
    }
    for service in SERVICES {
        let account = accounts.get(service);
        make(
            state.join(service),
            account.map_or(0, |a| a.uid),
            account.map(|a| a.gid),
            // Guests' root filesystems and monitors' sockets live below the two others.
            if account.is_some() { 0o750 } else { 0o711 },
        )?;
    }
    Ok(())
}

/// A hard link where it can be one: a rebuild replaces the file, it does not change it.
fn place(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_file(to)?;
    }
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).with_context(|| format!("no binary {}", from.display()))?;
    }
    Ok(())
}

fn start_lxcfs(sandbox: &Sandbox) -> Result<()> {
    let mount = sandbox.state.join("lxcfs");
    process::spawn(Spawn {
        program: PathBuf::from(config::LXCFS),
        args: vec![
            "--foreground".into(),
            "--enable-cfs".into(),
            "--enable-pidfd".into(),
            "--pidfile".into(),
            sandbox.state.join("run/lxcfs.lock").into(),
            mount.into(),
        ],
        log: sandbox.log_file("lxcfs"),
        pid_file: sandbox.pid_file("lxcfs"),
        namespaces: sandbox.namespaces()?,
        environment: Vec::new(),
        private_mounts: false,
        account: None,
    })?;
    ready::lxcfs(sandbox)
}

fn initialise(sandbox: &Sandbox) -> Result<()> {
    let output = Command::new(sandbox.binary("berth"))
        .env("LXD_SOCKET", sandbox.socket())
        .args(["admin", "init", "--auto"])
        .output()?;
    if !output.status.success() {
        bail!(
            "berth admin init --auto: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
