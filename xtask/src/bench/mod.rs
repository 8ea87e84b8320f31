//! `cargo xtask bench`: the same work on any server that speaks LXD's REST API, side by side.

mod measure;
mod memory;
mod overhead;
mod reference;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::image::{self, Kind};
use crate::rest::Client;
use crate::sandbox;
use measure::Plan;
use memory::Daemons;
use report::Report;

/// What to measure and on which servers.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// A running server: NAME=PATH of its unix socket; its default profile must have a root disk.
    #[arg(long = "socket", value_name = "NAME=PATH", value_parser = named_socket)]
    sockets: Vec<(String, PathBuf)>,

    /// Start the reference LXD, measure it, stop it.
    #[arg(long)]
    reference: bool,

    /// A script that answers `start DIR` (prints the socket) and `stop DIR`.
    #[arg(long, value_name = "FILE", env = "BERTH_REFERENCE_SCRIPT")]
    reference_script: Option<PathBuf>,

    /// Start Berth in a sandbox of its own, measure it, take it down.
    #[arg(long)]
    berth: bool,

    /// Build and measure Berth with optimisation.
    #[arg(long)]
    release: bool,

    /// Berth's binaries, built already.
    #[arg(long, value_name = "DIR", env = "BERTH_BIN_DIR")]
    bin_dir: Option<PathBuf>,

    /// Instead: what telemetry costs Berth, sent to a real collector against not sent.
    #[arg(long, conflicts_with_all = ["reference", "berth", "sockets", "json"])]
    telemetry: bool,

    #[arg(long, value_enum, default_value = "busybox")]
    image: Images,

    /// Instances measured one after another.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Instances launched side by side and then listed (busybox; a tenth of it for Debian).
    #[arg(long, default_value_t = 86, value_parser = clap::value_parser!(u32).range(1..=2000))]
    fleet: u32,

    /// Clients that launch the fleet.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    callers: u32,

    /// Also write every sample to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Where images are kept between runs.
    #[arg(long, value_name = "DIR", default_value_os_t = sandbox::paths::cache())]
    cache: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Images {
    Busybox,
    Debian,
    Both,
}

impl Images {
    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Busybox => &[Kind::Busybox],
            Self::Debian => &[Kind::Debian],
            Self::Both => &[Kind::Busybox, Kind::Debian],
        }
    }
}

fn named_socket(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(path)))
        }
        _ => Err("expected NAME=PATH".to_owned()),
    }
}

struct Target {
    name: String,
    socket: PathBuf,
    daemons: Daemons,
}

/// Runs everything and prints the table.
pub fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if options.telemetry {
        return runtime.block_on(overhead::run(options));
    }
    // Both guards stop their server when dropped, also when a measurement fails half way.
    let (mut targets, mut guards) = (Vec::new(), Vec::new());
    if options.reference {
        let script = options
            .reference_script
            .as_deref()
            .context("--reference needs --reference-script FILE or BERTH_REFERENCE_SCRIPT")?;
        let server = reference::Reference::start(script)?;
        let socket = server.socket().to_owned();
        guards.push(Guard::Reference(server));
        targets.push(runtime.block_on(target("reference", socket, None))?);
    }
    if options.berth {
        let server = reference::Berth::start(options.release, options.bin_dir.clone())?;
        let (socket, state) = (server.socket(), server.state());
        guards.push(Guard::Berth(server));
        targets.push(runtime.block_on(target("berth", socket, Some(state)))?);
    }
    for (name, socket) in &options.sockets {
        targets.push(runtime.block_on(target(name, socket.clone(), None))?);
    }
    if targets.is_empty() {
        bail!("nothing to measure: give --reference, --berth or --socket NAME=PATH");
    }
    let mut report = Report::default();
    for &kind in options.image.kinds() {
        let file = image::cached(kind, &options.cache)?;
        for target in &targets {
            eprintln!("{kind}: {}", target.name);
            let fleet = if kind == Kind::Debian {
                options.fleet.div_ceil(10)
            } else {
                options.fleet
            };
            let plan = Plan {
                rounds: options.rounds,
                fleet,
                callers: options.callers,
            };
            let measured = runtime
                .block_on(measure::all(&target.socket, &target.daemons, &file, plan))
                .with_context(|| format!("{kind} on {}", target.name))?;
            report.add(kind, &target.name, plan, measured);
        }
    }
    drop(guards);
    print!("{report}");
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report.json())?)?;
    }
    Ok(())
}

#[expect(dead_code, reason = "held for what their drop does")]
enum Guard {
    Reference(reference::Reference),
    Berth(reference::Berth),
}

async fn target(name: &str, socket: PathBuf, state: Option<PathBuf>) -> Result<Target> {
    let mut client = Client::new(&socket);
    let server = client
        .get("/1.0")
        .await
        .with_context(|| format!("server {name}"))?;
    let front = server["environment"]["server_pid"]
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok())
        .context("the server does not tell its pid")?;
    let daemons = match state {
        Some(state) => Daemons::recorded(front, &state)?,
        None => Daemons::single(front),
    };
    crate::setup::ensure(&mut client)
        .await
        .with_context(|| format!("set-up of {name}"))?;
    Ok(Target {
        name: name.to_owned(),
        socket,
        daemons,
    })
}
