//! `berth-instance start-guests` and `stop-guests`: what the host's boot and shutdown ask of the running service.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use berth_monitor::protocol::{Request, StopHow};
use berth_proto::instance::instance_service_client::InstanceServiceClient;
use berth_proto::instance::{StartGuestsRequest, StopGuestsRequest};
use berth_rpc::Channel;
use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::runtime::Runtime;
use crate::runtime::link::Link;

/// How long the service may take to be reached. It starts with its socket, and may be starting just now.
const REACH: Duration = Duration::from_secs(60);
/// A guest's time when the service, which knows `boot.host_shutdown_timeout`, is away.
const GRACE_MS: u64 = 30_000;
/// Beyond that, for the kill.
const KILL: Duration = Duration::from_secs(10);

/// The command line.
#[derive(Debug, Clone, Parser)]
#[command(name = "berth-instance", version)]
pub struct Command {
    /// Configuration file (TOML) of the service.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
enum What {
    /// Start the guests that are due after the host's boot.
    StartGuests,
    /// Stop all guests for the host's shutdown, in order, and remember that they ran.
    StopGuests {
        /// Do nothing unless systemd says that the host goes down.
        #[arg(long)]
        at_host_shutdown: bool,
    },
}

impl Command {
    /// The command of this process, when it is one of these.
    pub fn from_args() -> Option<Command> {
        let ours = ["start-guests", "stop-guests"];
        let asked = std::env::args().any(|argument| ours.contains(&argument.as_str()));
        asked.then(Command::parse)
    }

    /// Asks the service; stops guests through their monitors when it is away.
    pub async fn run<H: Runtime>(
        &self,
        config: &Config,
        host: impl FnOnce() -> anyhow::Result<H>,
    ) -> anyhow::Result<()> {
        if self.what
            == (What::StopGuests {
                at_host_shutdown: true,
            })
            && !crate::runtime::scope::host_goes_down().await?
        {
            say("the host stays up: guests are left alone\n");
            return Ok(());
        }
        let service = reach(config).await;
        match (self.what, service) {
            (What::StartGuests, service) => {
                let mut service = service?;
                let answer = service.start_guests(StartGuestsRequest {}).await?;
                say(&format!("started {}\n", answer.get_ref().started));
                Ok(())
            }
            (What::StopGuests { .. }, Ok(mut service)) => {
                let answer = service
                    .stop_guests(StopGuestsRequest {})
                    .await?
                    .into_inner();
                say(&format!(
                    "stopped {}, killed {}\n",
                    answer.stopped, answer.killed
                ));
                let left = answer.left.join(", ");
                anyhow::ensure!(left.is_empty(), "these guests still run: {left}");
                Ok(())
            }
            (What::StopGuests { .. }, Err(error)) => {
                say(&format!("{error:#}; stopping guests without it\n"));
                stop_without_service(&host()?).await
            }
        }
    }
}

fn say(text: &str) {
    use std::io::Write;
    // Who started this may have closed its output.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

async fn reach(config: &Config) -> anyhow::Result<InstanceServiceClient<Channel>> {
    // Over its unix socket: what systemd hands over, or what the file says.
    let mut sockets = config.server.listen.iter();
    let given = sockets
        .find(|address| address.starts_with("unix:"))
        .cloned();
    let address =
        given.unwrap_or_else(|| format!("unix:/run/berth/{}.sock", crate::config::SERVICE));
    let mut client = InstanceServiceClient::new(berth_rpc::connect(&address)?);
    // Under systemd the socket is there before the service, so that only an answer says that it serves.
    let asked = client.get_host(berth_proto::instance::GetHostRequest {});
    tokio::time::timeout(REACH, asked)
        .await
        .with_context(|| format!("{address}: no answer in {}s", REACH.as_secs()))?
        .with_context(|| format!("{address}: the instance service is away"))?;
    Ok(client)
}

/// All at once: priorities are in the service's database. What ran is still written down as running there.
async fn stop_without_service<H: Runtime>(host: &H) -> anyhow::Result<()> {
    let mut left = Vec::new();
    let uids = host.known().await?;
    let stops = uids.iter().map(|uid| async move {
        let done = stop_one(host, uid).await;
        done.map_err(|error| format!("{uid}: {error:#}"))
    });
    for done in futures::future::join_all(stops).await {
        left.extend(done.err());
    }
    anyhow::ensure!(left.is_empty(), "not stopped: {}", left.join("; "));
    Ok(())
}

async fn stop_one<H: Runtime>(host: &H, uid: &str) -> anyhow::Result<()> {
    let stream = match host.connect(uid).await {
        Ok(stream) => stream,
        // No monitor, no guest.
        Err(_) => return Ok(()),
    };
    let (link, mut events, _hello) = Link::greet(stream)
        .await
        .map_err(|e| anyhow::anyhow!("{e}"))?;
    let graceful = Request::Stop {
        how: StopHow::Graceful {
            timeout_ms: GRACE_MS,
        },
    };
    let patience = Duration::from_millis(GRACE_MS) + KILL;
    // A frozen guest does not hear: it is killed, which thaws it.
    if link.call_within(patience, graceful).await.is_err() {
        let kill = Request::Stop { how: StopHow::Kill };
        // Gone before it answered is gone as well: its end is looked at below.
        let _ = link.call_within(KILL, kill).await;
    }
    let ended = async { while events.recv().await.is_some() {} };
    tokio::time::timeout(KILL, ended)
        .await
        .context("its monitor did not end")
}
