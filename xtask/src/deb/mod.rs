//! `cargo xtask deb`: Debian packages from built binaries.
//!
//! Each package is a tree of files below a stage directory and a manifest beside it; cargo-deb makes the
//! package of the two and adds what depends on the tree: dependencies on libraries, checksums, conffiles, systemd's
//! part of the maintainer scripts. What is in which package is in [`package`]; texts and scripts are in `packaging/`.

mod base;
mod changelog;
mod lintian;
mod manifest;
mod package;
mod script;
mod stage;
mod tool;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::packages;
use crate::sandbox::paths;
pub use base::base_system;
pub use lintian::check;
pub use package::PACKAGES;
pub use stage::conffile;
pub use tool::cargo_deb;

#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Build with the release profile.
    #[arg(long, conflicts_with = "profile")]
    pub release: bool,
    /// Build with this profile [default: dev].
    #[arg(long)]
    pub profile: Option<String>,
    /// Take the binaries from here and build nothing.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["release", "profile"])]
    pub bin_dir: Option<PathBuf>,
    /// Where the packages go [default: `deb` in the target directory].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Added to the version, e.g. `b2` for 0.1.0-1+b2.
    #[arg(long, value_name = "SUFFIX", value_parser = suffix)]
    pub version_suffix: Option<String>,
    /// Compress well; without it only `--release` does.
    #[arg(long)]
    pub small: bool,
    /// Do not run lintian.
    #[arg(long)]
    pub no_lint: bool,
}

/// A version may hold these; anything else would only fail in dpkg.
fn suffix(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '~');
    if text.is_empty() || !text.chars().all(fits) {
        return Err("expected letters, digits, '.', '+' and '~'".to_owned());
    }
    Ok(text.to_owned())
}

/// What tests need beside the packages: the tool, and a system to install them in. Both outlive a run.
pub fn prepare(cache: &Path) -> Result<()> {
    packages::install(packages::DEB)?;
    cargo_deb(cache)?;
    base_system(cache)?;
    Ok(())
}

/// Makes all packages and gives their files.
pub fn run(options: &Options) -> Result<Vec<PathBuf>> {
    packages::install(packages::DEB)?;
    let profile = match (&options.profile, options.release) {
        (Some(profile), _) => profile,
        (None, true) => "release",
        (None, false) => "dev",
    };
    let binaries = match &options.bin_dir {
        Some(directory) => directory
            .canonicalize()
            .with_context(|| directory.display().to_string())?,
        None => paths::build_with(profile)?,
    };
    let out = match &options.out {
        Some(directory) => directory.clone(),
        None => paths::target().join("deb"),
    };
    fs::create_dir_all(&out)?;
    let out = out.canonicalize()?;
    let version = version(options.version_suffix.as_deref());
    // Two runs may share a cache, never a stage.
    let stage = tempfile::Builder::new().prefix("stage-").tempdir_in(&out)?;
    let tool = cargo_deb(&paths::cache())?;
    let mut made = Vec::new();
    for package in PACKAGES {
        let directory = stage.path().join(package.name);
        stage::lay_out(package, &binaries, &version, &directory)
            .with_context(|| format!("laying out {}", package.name))?;
        let small = options.small || profile == "release";
        let file = pack(&tool, &directory, &out, &version, small).with_context(|| package.name)?;
        made.push(file);
    }
    if !options.no_lint {
        check(&made)?;
    }
    Ok(made)
}

fn version(suffix: Option<&str>) -> String {
    let upstream = env!("CARGO_PKG_VERSION");
    match suffix {
        Some(suffix) => format!("{upstream}-1+{suffix}"),
        None => format!("{upstream}-1"),
    }
}

fn pack(tool: &Path, stage: &Path, out: &Path, version: &str, small: bool) -> Result<PathBuf> {
    let mut command = Command::new(tool);
    command
        .arg("deb")
        .args([
            "--quiet",
            "--offline",
            "--no-build",
            "--no-strip",
            "--no-dbgsym",
        ])
        .arg("--manifest-path")
        .arg(stage.join("Cargo.toml"))
        .arg("--output")
        .arg(out)
        .args(["--deb-version", version]);
    if !small {
        command.arg("--fast");
    }
    let output = command.current_dir(stage).output().context("cargo-deb")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("cargo-deb: {}\n{}", output.status, errors.trim());
    }
    // It names the file that it wrote, and nothing else.
    let printed = String::from_utf8_lossy(&output.stdout);
    let file = PathBuf::from(printed.trim());
    ensure!(
        file.is_file(),
        "cargo-deb wrote no package: {printed}{errors}"
    );
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_make_later_versions() {
        assert_eq!(version(None), concat!(env!("CARGO_PKG_VERSION"), "-1"));
        assert!(suffix("b2").is_ok() && suffix("git20261127.0823dfc").is_ok());
        assert!(suffix("").is_err() && suffix("b-2").is_err() && suffix("b 2").is_err());
        let later = Command::new("dpkg")
            .args([
                "--compare-versions",
                &version(Some("b2")),
                "gt",
                &version(None),
            ])
            .status();
        assert!(later.unwrap().success());
    }
}
