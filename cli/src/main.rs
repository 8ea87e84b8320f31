//! `berth`: Berth's command line, over LXD's REST API.
//!
//! It knows nothing of the services; whatever answers `/1.0` on the socket can be driven.
//! `admin` holds what an operator does once per machine.

mod admin;
mod rest;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Runs system containers.
#[derive(Debug, Parser)]
#[command(name = "berth", version)]
struct Cli {
    /// REST socket of the gateway [default: $BERTH_SOCKET, $LXD_SOCKET, $LXD_DIR/unix.socket,
    /// /var/lib/berth/unix.socket].
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<std::path::PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set this server up and look after it.
    #[command(subcommand)]
    Admin(admin::Command),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let matches = berth_manual::get_matches(Cli::command(), berth_manual::Section::Commands);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let server = rest::Server::new(cli.socket.unwrap_or_else(rest::default_socket));
    let done = match cli.command {
        Command::Admin(command) => admin::run(&server, command).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
