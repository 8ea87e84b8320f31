//! What telemetry costs: the same work on two Berths side by side, one that sends traces, metrics and
//! logs to a real collector and one that sends nothing, taking turns.
//!
//! The figure is processor time (user and system) of the five services for one life of an instance.
//! Wall time is shown too, but other work on the machine moves it. The collector's own time is not Berth's.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::measure;
use super::reference::Berth;
use super::report::{Measured, quantile};
use super::{Options, memory::Daemons};
use crate::image::{self, Kind};
use crate::observe::stack::{self, Pass};
use crate::rest::Client;
use crate::sandbox::Sandbox;
use crate::venv;

/// Lives before any is counted: caches fill, the image is unpacked.
const WARM_UP: u32 = 3;

struct Side {
    server: Berth,
    daemons: Daemons,
    client: Client,
    fingerprint: String,
}

#[derive(Clone, Copy)]
struct Cost {
    cpu: f64,
    wall: f64,
}

impl Side {
    async fn start(
        options: &Options,
        environment: Vec<(String, String)>,
        file: &Path,
    ) -> Result<Self> {
        let server = Berth::start_with(options.release, options.bin_dir.clone(), environment)?;
        let target = super::target("berth", server.socket(), Some(server.state())).await?;
        let mut client = Client::new(server.socket());
        let fingerprint = client.upload_image(file).await?;
        Ok(Self {
            server,
            daemons: target.daemons,
            client,
            fingerprint,
        })
    }

    fn cpu(&self) -> Result<Duration> {
        self.daemons
            .processes()
            .iter()
            .map(|pid| {
                let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(*pid))?;
                Ok(Duration::from(clock_gettime(clock)?))
            })
            .sum()
    }

    async fn life(&mut self, name: &str) -> Result<Cost> {
        let (before, begun) = (self.cpu()?, Instant::now());
        let mut unused = (Measured::default(), Measured::default());
        measure::one_by_one(
            &mut self.client,
            name,
            &self.fingerprint,
            &mut unused.0,
            &mut unused.1,
        )
        .await?;
        let wall = begun.elapsed();
        // What is still to be sent is part of the price.
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(Cost {
            cpu: (self.cpu()? - before).as_secs_f64() * 1e3,
            wall: wall.as_secs_f64() * 1e3,
        })
    }
}

pub(super) async fn run(options: &Options) -> Result<()> {
    let python = venv::interpreter(&[stack::ROTEL])?;
    let file = image::cached(Kind::Busybox, &options.cache)?;
    // The standard intervals: how it is run, not how it is tested.
    let endpoint = format!("http://127.0.0.1:{}", stack::COLLECTOR);
    let sends = vec![("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), endpoint)];
    let mut off = Side::start(options, Vec::new(), &file)
        .await
        .context("without telemetry")?;
    let mut on = Side::start(options, sends, &file)
        .await
        .context("with telemetry")?;
    let sandbox = Sandbox::at(&on.server.state());
    let _collector = stack::rotel(&sandbox, &python, Pass::Nothing)?;
    let (mut offs, mut ons) = (Vec::new(), Vec::new());
    for round in 0..options.rounds + WARM_UP {
        let name = format!("life-{round}");
        // Each goes first in every other round.
        let (without, with) = if round % 2 == 0 {
            let without = off.life(&name).await?;
            (without, on.life(&name).await?)
        } else {
            let with = on.life(&name).await?;
            (off.life(&name).await?, with)
        };
        if round >= WARM_UP {
            offs.push(without);
            ons.push(with);
        }
    }
    println!(
        "one life of an instance (create, start, 4 execs, 4 states, snapshot, stop, restore, delete), \
         {} rounds, taking turns; median (10th to 90th percentile)",
        options.rounds
    );
    println!(
        "{:<44}{:>24}{:>24}{:>28}",
        "", "sends nothing", "traces, metrics, logs", "with/without"
    );
    row(
        "processor time of the five services, ms",
        &offs,
        &ons,
        |c| c.cpu,
    );
    row("wall time, ms", &offs, &ons, |c| c.wall);
    Ok(())
}

fn row(what: &str, offs: &[Cost], ons: &[Cost], read: fn(&Cost) -> f64) {
    let values = |costs: &[Cost]| costs.iter().map(read).collect::<Vec<f64>>();
    let (offs, ons) = (values(offs), values(ons));
    // Rounds are pairs: what disturbs the machine for a while disturbs both.
    let ratios: Vec<f64> = ons.iter().zip(&offs).map(|(on, off)| on / off).collect();
    let spread = |values: &[f64], digits: usize| {
        format!(
            "{:.digits$} ({:.digits$} to {:.digits$})",
            quantile(values, 0.5),
            quantile(values, 0.1),
            quantile(values, 0.9)
        )
    };
    println!(
        "{what:<44}{:>24}{:>24}{:>28}",
        spread(&offs, 1),
        spread(&ons, 1),
        spread(&ratios, 3)
    );
    println!(
        "{:<44}{:>24}{:>24}{:>28}",
        "  sum over all rounds",
        format!("{:.0}", offs.iter().sum::<f64>()),
        format!("{:.0}", ons.iter().sum::<f64>()),
        format!("{:.3}", ons.iter().sum::<f64>() / offs.iter().sum::<f64>())
    );
}
