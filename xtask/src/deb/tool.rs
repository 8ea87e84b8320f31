//! cargo-deb, installed once beside other things that outlive a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

const VERSION: &str = "3.8.0";

/// The program; installs it when it is not there.
pub fn cargo_deb(cache: &Path) -> Result<PathBuf> {
    let root = cache.join(format!("cargo-deb-{VERSION}"));
    let program = root.join("bin/cargo-deb");
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(cache)?;
    eprintln!("cargo install cargo-deb {VERSION}: once, about a minute");
    // A build of its own: its features must not make the workspace's dependencies build again.
    let build = tempfile::Builder::new()
        .prefix("cargo-deb-build-")
        .tempdir_in(cache)?;
    let fresh = build.path().join("root");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args([
            "install",
            "--quiet",
            "--locked",
            "--no-track",
            "cargo-deb",
            "--version",
            VERSION,
        ])
        .arg("--root")
        .arg(&fresh)
        .arg("--target-dir")
        .arg(build.path().join("target"))
        .output()
        .context("cargo")?;
    if !output.status.success() {
        bail!(
            "cargo install cargo-deb: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    // Whole or not at all; another run may have been first.
    match fs::rename(&fresh, &root) {
        Err(_) if program.exists() => {}
        renamed => renamed.with_context(|| root.display().to_string())?,
    }
    Ok(program)
}
