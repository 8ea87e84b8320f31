//! Pythons with packages from PyPI, made once and kept in the cache.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::sandbox::paths;

/// The interpreter of a virtual environment that has exactly these packages installed.
pub fn interpreter(packages: &[&str]) -> Result<PathBuf> {
    let digest = <sha2::Sha256 as sha2::Digest>::digest(packages.join(" ").as_bytes());
    let home = paths::cache().join(format!("python-{}", hex::encode(&digest[..4])));
    let (python, complete) = (home.join("bin/python"), home.join("complete"));
    if complete.exists() {
        return Ok(python);
    }
    fs::create_dir_all(paths::cache())?;
    // Tests are processes of their own; the first makes it, the others wait here.
    let lock = fs::File::create(home.with_extension("lock"))?;
    lock.lock()?;
    if !complete.exists() {
        output(
            Command::new("/usr/bin/python3")
                .args(["-m", "venv", "--clear"])
                .arg(&home),
        )?;
        output(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet"])
                .arg("--disable-pip-version-check")
                .args(packages),
        )?;
        fs::write(&complete, "")?;
    }
    Ok(python)
}

/// Standard output of a program that must succeed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
