//! `cargo xtask test`: every test there is, and one line at the end that counts them.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::bed;
use crate::deb;
use crate::image::{self, Kind};
use crate::packages;
use crate::postgres::Postgres;
use crate::sandbox::engine::Tools;
use crate::sandbox::paths;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only tests whose name contains this.
    filter: Option<String>,

    /// Only this package's tests.
    #[arg(long, short)]
    package: Vec<String>,

    /// Also check formatting and lints, first.
    #[arg(long)]
    lint: bool,
}

pub fn run(options: &Options) -> Result<()> {
    packages::install(packages::RUN)?;
    packages::install(packages::TEST)?;
    if options.lint {
        cargo(&["fmt", "--all", "--check"])?;
        let strict = [
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        cargo(&strict)?;
    }
    // Scenarios run the real binaries and real images; making them inside a test would count
    // against its time.
    let binaries = paths::build_workspace()?;
    for kind in [Kind::Busybox, Kind::Debian] {
        image::cached(kind, &paths::cache())?;
    }
    deb::prepare(&paths::cache())?;
    Tools::cached()?;
    let postgres = Postgres::start()?;
    let counted = run_tests(options, &binaries, &postgres)?;
    // Before `exit`, which runs no destructors.
    drop(postgres);
    println!("\n{counted}");
    if counted.failed > 0 || !counted.finished {
        std::process::exit(1);
    }
    if counted.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// All scenarios of Berth from its packages, each in a machine of its own.
pub fn systemd(filter: Option<&str>) -> Result<()> {
    packages::install(packages::RUN)?;
    packages::install(packages::TEST)?;
    let binaries = paths::build_workspace()?;
    image::cached(Kind::Debian, &paths::cache())?;
    bed::build(bed::Image::Plain)?;
    let mut command = Command::new(cargo_binary());
    command
        .current_dir(paths::workspace())
        .env("BERTH_BIN_DIR", binaries)
        .env("BERTH_CACHE", paths::cache())
        .args(["test", "--package", "berth-e2e", "--test", "systemd"])
        .args(["--", "--include-ignored", "--test-threads", "1"])
        .args(filter);
    let status = command.status().context("cargo")?;
    if !status.success() {
        bail!("cargo test: {status}");
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Result<()> {
    let status = Command::new(cargo_binary())
        .current_dir(paths::workspace())
        .args(args)
        .status()?;
    if !status.success() {
        bail!("cargo {}: {status}", args.join(" "));
    }
    Ok(())
}

fn cargo_binary() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or("cargo".into())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// The runner came to its end and was content.
    finished: bool,
    /// nextest has given its own sum.
    summed_up: bool,
}

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
            finished,
            summed_up: _,
        } = self;
        let run = passed + failed;
        write!(
            f,
            "{run} tests run: {passed} passed, {failed} failed, {skipped} skipped"
        )?;
        if !finished && *failed == 0 {
            f.write_str(" (the run was cut short)")?;
        }
        Ok(())
    }
}

fn run_tests(options: &Options, binaries: &Path, postgres: &Postgres) -> Result<Counted> {
    let has = |args: &[&str]| {
        let mut probe = Command::new(cargo_binary());
        probe.args(args).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    };
    let nextest = has(&["nextest", "--version"]);
    let mut command = Command::new(cargo_binary());
    command
        .current_dir(paths::workspace())
        .env("BERTH_BIN_DIR", binaries);
    command
        .env("BERTH_CACHE", paths::cache())
        .env("BERTH_TEST_POSTGRES", postgres.url());
    if nextest {
        command.args(["nextest", "run", "--no-fail-fast", "--color", "never"]);
    } else {
        // Scenarios look at the whole machine, so they must not run beside each other.
        command.args(["test", "--no-fail-fast", "--color", "never"]);
    }
    match options.package.as_slice() {
        [] => command.arg("--workspace"),
        packages => command.args(packages.iter().flat_map(|p| ["--package", p])),
    };
    if let Some(filter) = &options.filter {
        command.arg(filter);
    }
    if !nextest {
        command.args(["--", "--test-threads", "1"]);
    }
    let (stream, quiet) = std::io::pipe()?;
    command.stdout(quiet.try_clone()?).stderr(quiet);
    let mut child = command.spawn().context("cargo")?;
    // The command holds the writing end; while it lives the reader never sees the end.
    drop(command);
    let mut counted = Counted::default();
    let mut out = std::io::stdout().lock();
    for line in BufReader::new(stream).split(b'\n') {
        let line = line?;
        out.write_all(&line)?;
        out.write_all(b"\n")?;
        counted.read(&String::from_utf8_lossy(&line));
    }
    counted.finished = child.wait()?.success();
    Ok(counted)
}

impl Counted {
    /// Understands nextest's `Summary [..] 3 tests run: 2 passed, 1 failed, 0 skipped` and the
    /// `test result:` line of each of cargo's test programs.
    fn read(&mut self, line: &str) {
        let line = line.trim();
        let summary = match line.strip_prefix("Summary [") {
            Some(rest) => rest.split_once("run:").map(|(_, counts)| counts),
            None => line
                .strip_prefix("test result:")
                .and_then(|r| r.split_once('.'))
                .map(|r| r.1),
        };
        let Some(summary) = summary else { return };
        // nextest shows a failed test's own `test result:` lines too, before and after its summary.
        if line.starts_with("Summary [") {
            *self = Self {
                summed_up: true,
                ..Self::default()
            };
        } else if self.summed_up {
            return;
        }
        for part in summary.split([',', ';']) {
            let mut words = part.split_whitespace();
            let count = words.next().and_then(|word| word.parse::<u64>().ok());
            let (Some(count), Some(what)) = (count, words.next()) else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" | "exec" | "timed" => self.failed += count,
                "skipped" | "ignored" => self.skipped += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Counted {
        let mut counted = Counted::default();
        lines.iter().for_each(|line| counted.read(line));
        counted
    }

    #[test]
    fn reads_nextest() {
        let line = "     Summary [   3.214s] 12 tests run: 9 passed (1 slow), 2 failed, \
                    1 timed out, 4 skipped";
        let wanted = Counted {
            passed: 9,
            failed: 3,
            skipped: 4,
            finished: false,
            summed_up: true,
        };
        assert_eq!(read(&[line]), wanted);
        let failed = "test result: FAILED. 0 passed; 1 failed; 0 ignored";
        assert_eq!(read(&[failed, line, failed]), wanted);
        let cut = "Summary [ 1.0s] 5/12 tests run: 5 passed, 0 skipped";
        assert_eq!(read(&[cut]).passed, 5);
    }

    #[test]
    fn adds_up_what_cargo_says() {
        let lines = [
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; \
             finished in 0.00s",
            "running 2 tests",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        ];
        let wanted = Counted {
            passed: 4,
            failed: 1,
            skipped: 1,
            finished: false,
            summed_up: false,
        };
        assert_eq!(read(&lines), wanted);
    }
}
