//! Servers that the benchmark starts itself, and takes down again.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::sandbox::{self, Sandbox};

/// A server run by a script with `start DIR` and `stop DIR`.
pub(super) struct Reference {
    script: PathBuf,
    directory: TempDir,
    socket: PathBuf,
}

impl Reference {
    pub(super) fn start(script: &Path) -> Result<Self> {
        let script = script
            .canonicalize()
            .with_context(|| format!("no script {}", script.display()))?;
        let directory = TempDir::with_prefix("berth-bench-")?;
        // The guard exists before the start is judged, so a half-started server is stopped too.
        let mut server = Self {
            script,
            directory,
            socket: PathBuf::new(),
        };
        let started = Command::new(&server.script)
            .arg("start")
            .arg(server.directory.path())
            .output()?;
        if !started.status.success() {
            bail!(
                "the reference did not start: {}",
                String::from_utf8_lossy(&started.stderr)
            );
        }
        let printed = String::from_utf8(started.stdout)?;
        server.socket = printed
            .lines()
            .last()
            .map(PathBuf::from)
            .context("no socket printed")?;
        Ok(server)
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        match Command::new(&self.script)
            .arg("stop")
            .arg(self.directory.path())
            .output()
        {
            Ok(stopped) if stopped.status.success() => {}
            Ok(stopped) => {
                eprintln!(
                    "reference stop: {}",
                    String::from_utf8_lossy(&stopped.stderr)
                );
            }
            Err(error) => eprintln!("reference stop: {error}"),
        }
    }
}

/// Berth in a sandbox of its own.
pub(super) struct Berth {
    directory: TempDir,
}

impl Berth {
    pub(super) fn start(release: bool, bin_dir: Option<PathBuf>) -> Result<Self> {
        Self::start_with(release, bin_dir, Vec::new())
    }

    pub(super) fn start_with(
        release: bool,
        bin_dir: Option<PathBuf>,
        environment: Vec<(String, String)>,
    ) -> Result<Self> {
        let directory = TempDir::with_prefix("berth-bench-")?;
        // Services without root pass through it.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711))?;
        let server = Self { directory };
        let options = sandbox::UpOptions {
            isolated: true,
            release,
            bin_dir,
            environment,
            ..Default::default()
        };
        sandbox::up(&server.state(), &options)?;
        Ok(server)
    }

    pub(super) fn state(&self) -> PathBuf {
        self.directory.path().join("berth")
    }

    pub(super) fn socket(&self) -> PathBuf {
        Sandbox::at(&self.state()).socket()
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        if let Err(error) = sandbox::down(&self.state(), &sandbox::DownOptions::default()) {
            eprintln!("berth down: {error:#}");
        }
    }
}
