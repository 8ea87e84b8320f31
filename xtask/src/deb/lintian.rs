//! Debian's own checks.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs lintian; errors, warnings and unused overrides that no `lintian-overrides` explains are an error.
pub fn check(packages: &[PathBuf]) -> Result<()> {
    let output = Command::new("lintian")
        .args(["--allow-root", "--tag-display-limit=0"])
        .args(["--fail-on", "error", "--fail-on", "warning"])
        .args(packages)
        .output()
        .context("lintian (package lintian)")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!(
            "lintian: {}\n{}{}",
            output.status,
            said,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
