//! Where builds, caches and binaries are.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The workspace this tool was built from.
pub fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .components()
        .collect()
}

/// Cargo's target directory, as Cargo itself would choose it.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// Images and downloads that outlive a run: `$BERTH_CACHE`, else beside the build.
pub fn cache() -> PathBuf {
    match std::env::var_os("BERTH_CACHE") {
        Some(directory) => PathBuf::from(directory),
        None => target().join("berth-cache"),
    }
}

/// Packages whose binaries make up Berth, and the binaries' names.
pub const BINARIES: [(&str, &str); 7] = [
    ("berth-image", "berth-image"),
    ("berth-storage", "berth-storage"),
    ("berth-network", "berth-network"),
    ("berth-instance", "berth-instance"),
    ("berth-gateway", "berth-gateway"),
    ("berth-monitor", "berth-monitor"),
    ("berth-cli", "berth"),
];

/// Builds the binaries and returns the directory they are in.
pub fn build(release: bool) -> Result<PathBuf> {
    build_with(if release { "release" } else { "dev" })
}

/// The same with any profile.
pub fn build_with(profile: &str) -> Result<PathBuf> {
    let packages: Vec<_> = BINARIES
        .iter()
        .flat_map(|(package, _)| ["--package", package])
        .collect();
    cargo_build(&packages, profile)
}

/// The same with the features that the tests' build unifies to, so that nothing is built twice.
pub fn build_workspace() -> Result<PathBuf> {
    cargo_build(&["--workspace", "--bins"], "dev")
}

fn cargo_build(what: &[&str], profile: &str) -> Result<PathBuf> {
    let mut cargo = std::process::Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .current_dir(workspace())
        .args(["build", "--quiet", "--profile", profile])
        .args(what);
    let status = cargo.status().context("cargo")?;
    if !status.success() {
        bail!("cargo build: {status}");
    }
    // Cargo's one exception: the directory of `dev` is `debug`.
    Ok(target().join(if profile == "dev" { "debug" } else { profile }))
}
