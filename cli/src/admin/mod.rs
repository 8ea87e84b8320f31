//! `berth admin`: what an operator does once per machine.

mod apply;
mod auto;
mod certificates;
mod init;
mod preseed;
mod questions;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::rest::Server;

/// Verbs of `berth admin`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a first storage pool, network and default profile.
    ///
    /// Without a flag it asks. It can be run again: what is there already is left as it is, or
    /// updated where a preseed says so.
    Init(Init),
    /// Certificates for services that are on different hosts.
    #[command(subcommand)]
    Certificates(certificates::Command),
    /// Wait until the server answers.
    Waitready {
        /// Seconds to wait; 0 waits for ever.
        #[arg(short, long, default_value_t = 0)]
        timeout: u64,
    },
}

/// Flags of `berth admin init`; names are those of `lxd init`.
#[derive(Debug, Default, Args)]
pub(crate) struct Init {
    /// Choose everything without asking.
    #[arg(long, group = "mode")]
    pub auto: bool,
    /// The same as --auto, without any choice.
    #[arg(long, group = "mode")]
    pub minimal: bool,
    /// Read the configuration to apply from stdin, as YAML.
    #[arg(long, group = "mode")]
    pub preseed: bool,
    /// Print the present configuration as a preseed.
    #[arg(long, group = "mode")]
    pub dump: bool,
    /// Driver of the pool [default: btrfs where the server has it, else dir].
    #[arg(long, value_name = "DRIVER", requires = "auto")]
    pub storage_backend: Option<String>,
    /// Name of the pool to make or to use.
    #[arg(long, value_name = "POOL", requires = "auto")]
    pub storage_pool: Option<String>,
    /// Put the pool on this block device.
    #[arg(
        long,
        value_name = "DEVICE",
        requires = "auto",
        conflicts_with = "storage_create_loop"
    )]
    pub storage_create_device: Option<String>,
    /// Put the pool on a loop file of this many GiB.
    #[arg(long, value_name = "GIB", requires = "auto")]
    pub storage_create_loop: Option<u64>,
    /// Name of the bridge to make.
    #[arg(long, value_name = "NAME", requires = "auto")]
    pub network_bridge: Option<String>,
}

/// Runs one verb.
pub(crate) async fn run(server: &Server, command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init(flags) => init::run(server, flags).await,
        Command::Certificates(command) => certificates::run(command),
        Command::Waitready { timeout } => waitready(server, timeout).await,
    }
}

async fn waitready(server: &Server, timeout: u64) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let Err(error) = server.ready().await else {
            return Ok(());
        };
        if timeout > 0 && start.elapsed() >= Duration::from_secs(timeout) {
            return Err(error).with_context(|| {
                format!(
                    "{} is not ready after {timeout} seconds",
                    server.socket().display()
                )
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
