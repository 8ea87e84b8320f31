//! `cargo xtask`: everything about this workspace that is more than one cargo command.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::image::Kind;
use xtask::sandbox::{DownOptions, Sandbox, UpOptions, down, paths, up};
use xtask::{bed, bench, deb, docs, image, observe, quickstart, test};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, run, test and measure Berth")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing, build, start everything and launch a first container.
    Quickstart(quickstart::Options),
    /// Install what the tests need and run all of them.
    Test(test::Options),
    /// Start the five services with everything below one directory; prints the REST socket.
    Up(Up),
    /// Stop them and remove every trace.
    Down {
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// Leave DIR/log.
        #[arg(long)]
        keep_logs: bool,
    },
    /// SIGKILL services of a sandbox.
    Kill {
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        #[arg(required = true)]
        services: Vec<String>,
    },
    /// Start services of a sandbox again.
    Start {
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        #[arg(required = true)]
        services: Vec<String>,
    },
    /// Make a system image from this machine's packages.
    Image {
        kind: Kind,
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Metadata in FILE, the root filesystem as squashfs in FILE.root.
        #[arg(long)]
        split: bool,
        #[arg(long, value_name = "DIR", default_value_os_t = paths::cache())]
        cache: PathBuf,
    },
    /// Make Debian packages; prints their files.
    Deb(deb::Options),
    /// A virtual machine with Debian and systemd, to test in.
    #[command(subcommand)]
    Bed(bed::Task),
    /// Write the pages that are made from the binaries.
    Docs {
        /// Fail when they are not as they would be written.
        #[arg(long)]
        check: bool,
        /// Take the binaries from here and build nothing.
        #[arg(long, value_name = "DIR")]
        bin_dir: Option<PathBuf>,
    },
    /// Start Berth with a collector, Prometheus and a trace viewer, and launch something to look at.
    Observe(observe::Options),
    /// Measure LXD-compatible servers side by side.
    Bench(bench::Options),
}

#[derive(clap::Args)]
struct Up {
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// In a network and a mount namespace apart from the machine's.
    #[arg(long)]
    isolated: bool,
    #[arg(long)]
    release: bool,
    /// Without pool, bridge and default devices.
    #[arg(long)]
    bare: bool,
    /// Take the binaries from here and build nothing.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Start these services alone.
    #[arg(long, value_name = "SERVICE", value_delimiter = ',')]
    only: Vec<String>,
    /// Add TOML to a service's configuration.
    #[arg(long = "service", value_name = "SERVICE=TOML", value_parser = addition)]
    extra: Vec<(String, String)>,
}

fn addition(text: &str) -> Result<(String, String), String> {
    let (service, toml) = text.split_once('=').ok_or("expected SERVICE=TOML")?;
    Ok((service.to_owned(), toml.to_owned()))
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Quickstart(options) => quickstart::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Docs { check, bin_dir } => docs::docs(bin_dir.as_deref(), check),
        Task::Up(options) => {
            let Up {
                state,
                isolated,
                release,
                bare,
                bin_dir,
                only,
                extra,
            } = options;
            let (environment, listen) = (Vec::new(), Vec::new());
            let options = UpOptions {
                isolated,
                release,
                bare,
                bin_dir,
                only,
                extra,
                listen,
                environment,
            };
            println!("{}", up(&state, &options)?.socket().display());
            Ok(())
        }
        Task::Down { state, keep_logs } => down(&state, &DownOptions { keep_logs }),
        Task::Kill { state, services } => {
            let sandbox = Sandbox::at(&state.canonicalize()?);
            for service in services {
                if !sandbox.kill(&service)? {
                    eprintln!("{service} was not running");
                }
            }
            Ok(())
        }
        Task::Start { state, services } => {
            let services: Vec<_> = services.iter().map(String::as_str).collect();
            Sandbox::at(&state.canonicalize()?).start(&services)
        }
        Task::Image {
            kind,
            out,
            split,
            cache,
        } => {
            let written = image::write(kind, &out, split, &cache)?;
            println!("{}", written.image.display());
            if let Some(rootfs) = written.rootfs {
                println!("{}", rootfs.display());
            }
            Ok(())
        }
        Task::Deb(options) => {
            for file in deb::run(&options)? {
                println!("{}", file.display());
            }
            Ok(())
        }
        Task::Bed(task) => bed::run(task),
        Task::Observe(options) => observe::run(&options),
        Task::Bench(options) => bench::run(&options),
    }
}
