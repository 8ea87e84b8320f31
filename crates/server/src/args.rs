use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ConfigError;

/// The command line that all five services share.
#[derive(Debug, Clone, Parser)]
pub struct Args {
    /// Configuration file (TOML); without it, defaults and the environment.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Check the configuration and exit.
    #[arg(long)]
    pub check_config: bool,
    /// Print the configuration in force and exit.
    #[arg(long)]
    pub print_config: bool,
    /// A task to do instead of serving.
    #[command(subcommand)]
    pub task: Option<Task>,
}

/// What a service can do besides serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Subcommand)]
pub enum Task {
    /// Remove everything this service made on the host. Data goes with it.
    Purge,
}

/// What the command line asked for, once the configuration is read.
#[derive(Debug)]
pub enum Startup<C> {
    /// Serve with this configuration.
    Serve(C),
    /// Remove what the service made on the host.
    Purge(C),
    /// Everything asked for is done.
    Done,
}

impl Args {
    /// Reads the command line of the binary `name`, which does `about`; ends the process on bad
    /// usage and on `--help`.
    pub fn parse_for(name: &'static str, about: &'static str) -> Self {
        let command = Self::command()
            .name(name)
            .about(about)
            .version(env!("CARGO_PKG_VERSION"));
        let matches = berth_manual::get_matches(command, berth_manual::Section::Daemons);
        Self::from_arg_matches(&matches).unwrap_or_else(|e| e.exit())
    }

    /// Reads the configuration and does what needs no serving.
    ///
    /// # Errors
    /// When the file or the environment holds something the service doesn't understand.
    pub fn load<C: DeserializeOwned + Serialize + Default>(
        &self,
        env_prefix: &str,
    ) -> Result<Startup<C>, ConfigError> {
        let config: C = crate::load(self.config.as_deref(), env_prefix)?;
        if self.print_config {
            print(&toml::to_string_pretty(&config).unwrap_or_default());
            return Ok(Startup::Done);
        }
        if self.check_config {
            print("configuration is valid\n");
            return Ok(Startup::Done);
        }
        Ok(match self.task {
            Some(Task::Purge) => Startup::Purge(config),
            None => Startup::Serve(config),
        })
    }
}

fn print(text: &str) {
    use std::io::Write;
    // A closed pipe is the reader's wish.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
