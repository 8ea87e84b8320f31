//! A root filesystem that has what the packages depend on, so that tests can install them without a network.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::PACKAGES;
use crate::image::short_digest;

/// Beside what the packages ask for. `lxd-client`: no file of it may be one of ours.
const BESIDE: [&str; 1] = ["lxd-client"];

/// A tar file of Debian 12 with all that the packages need, made once and kept in `cache`.
pub fn base_system(cache: &Path) -> Result<PathBuf> {
    let mut wanted: Vec<&str> = PACKAGES
        .iter()
        .flat_map(|package| package.depends.iter().chain(package.recommends))
        .map(|dependency| dependency.split([' ', '(']).next().unwrap_or(dependency))
        .filter(|name| !name.starts_with("berth"))
        .chain(BESIDE)
        // What the binaries are linked with.
        .chain(["libseccomp2"])
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    let include = wanted.join(",");
    let tar = cache.join(format!(
        "deb-base-{}.tar",
        short_digest(&[include.as_bytes()])
    ));
    if tar.exists() {
        return Ok(tar);
    }
    std::fs::create_dir_all(cache)?;
    eprintln!("mmdebstrap: a Debian system to install packages in, once, about a minute");
    let partial = tempfile::Builder::new()
        .prefix("deb-base-")
        .suffix(".tar")
        .tempfile_in(cache)?;
    let output = Command::new("mmdebstrap")
        .args(["--mode=root", "--variant=minbase", "--quiet"])
        .arg(format!("--include={include}"))
        .arg("bookworm")
        .arg(partial.path())
        .output()
        .context("mmdebstrap (package mmdebstrap)")?;
    if !output.status.success() {
        bail!(
            "mmdebstrap: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    partial.persist(&tar)?;
    Ok(tar)
}
