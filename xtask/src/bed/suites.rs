//! The tests of the services that touch the kernel, run in the bed: there all of cgroup v2,
//! AppArmor and device-mapper is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Bed, Options};
use crate::sandbox::paths;

/// Whose tests.
const PACKAGES: &[&str] = &[
    "berth-monitor",
    "berth-instance",
    "berth-network",
    "berth-storage",
];

/// For one program of tests.
const LIMIT: Duration = Duration::from_secs(1800);

/// What cargo says of a thing it has built; of other messages nothing is needed.
#[derive(Deserialize)]
struct Artifact {
    reason: String,
    #[serde(default)]
    executable: Option<PathBuf>,
    #[serde(default)]
    profile: Profile,
}

#[derive(Default, Deserialize)]
struct Profile {
    #[serde(default)]
    test: bool,
}

/// Runs those whose program's name has `filter`, each test by itself; an error names what failed.
pub(super) fn run(options: &Options, filter: Option<&str>) -> Result<()> {
    let built = build()?;
    let wanted = |program: &&Artifact| {
        let name = program.executable.as_ref().and_then(|e| e.file_name());
        let name = name.map(|name| name.to_string_lossy());
        filter.is_none_or(|filter| name.is_some_and(|name| name.contains(filter)))
    };
    let tests: Vec<_> = built
        .iter()
        .filter(|artifact| artifact.profile.test)
        .filter(wanted)
        .filter_map(|artifact| artifact.executable.clone())
        .collect();
    ensure!(!tests.is_empty(), "no program of tests has that name");
    let programs: Vec<_> = built
        .iter()
        .filter(|artifact| !artifact.profile.test)
        .filter_map(|artifact| artifact.executable.clone())
        .collect();

    let bed = Bed::boot(options)?;
    // Tests know the paths of programs and of their own sources from when they were compiled.
    let directories = tests.iter().chain(&programs).filter_map(|p| p.parent());
    for directory in directories.collect::<BTreeSet<_>>() {
        let here = |p: &&PathBuf| p.parent() == Some(directory);
        let files: Vec<_> = tests.iter().chain(&programs).filter(here).collect();
        let files: Vec<_> = files.into_iter().map(PathBuf::as_path).collect();
        bed.copy_programs(&files, path(directory)?)?;
    }
    let services = paths::workspace().join("services");
    bed.run(&["mkdir", "-p", path(&paths::workspace())?])?;
    bed.copy_in(&[&services], path(&services)?)?;

    let mut failed = Vec::new();
    for test in &tests {
        println!("\n{}", test.display());
        // As at home; each by itself, since some look at the whole machine.
        let code = bed.stream(LIMIT, &[path(test)?, "--test-threads", "1"])?;
        if code != 0 {
            failed.push(test.display().to_string());
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(" "));
    Ok(())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

fn build() -> Result<Vec<Artifact>> {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let output = Command::new(cargo)
        .current_dir(paths::workspace())
        .args(["test", "--no-run", "--quiet", "--message-format", "json"])
        .args(PACKAGES.iter().flat_map(|package| ["--package", package]))
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cargo")?;
    ensure!(output.status.success(), "cargo test: {}", output.status);
    let mut artifacts = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n') {
        if line.is_empty() {
            continue;
        }
        let artifact: Artifact = serde_json::from_slice(line).context("cargo's messages")?;
        if artifact.reason == "compiler-artifact" && artifact.executable.is_some() {
            artifacts.push(artifact);
        }
    }
    Ok(artifacts)
}
