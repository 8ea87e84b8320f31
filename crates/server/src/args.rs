use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::config::{self, ConfigError, Configuration, Reload};

/// The command line that all five services share.
#[derive(Debug, Clone, Parser)]
pub struct Args {
    /// Configuration file (TOML); without it, defaults and the environment.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Check the configuration and exit: with 0 when it is good, with 2 when it is not.
    #[arg(long)]
    pub check_config: bool,
    /// Print the configuration in force, with where each value comes from, and exit.
    #[arg(long)]
    pub print_config: bool,
    /// Print every configuration key as a table in Markdown and exit.
    #[arg(long)]
    pub print_keys: bool,
    /// Ask the service that runs with this configuration whether it serves, and exit: with 0 when
    /// it does.
    #[arg(long)]
    pub health: bool,
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
    Serve(C, Reload<C>),
    /// Remove what the service made on the host.
    Purge(C),
    /// Everything asked for is done.
    Done,
}

/// How a service ends whose configuration is wrong; starting it again would not help.
const WRONG_CONFIG: i32 = 2;

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

    /// Reads the configuration and does what needs no serving. Ends the process, with all that
    /// is wrong on standard error, when the file or the environment holds something wrong.
    pub fn load<C: Configuration>(&self) -> Startup<C> {
        match self.try_load() {
            Ok(startup) => startup,
            Err(error) => {
                eprintln!("{error}");
                std::process::exit(WRONG_CONFIG);
            }
        }
    }

    fn try_load<C: Configuration>(&self) -> Result<Startup<C>, ConfigError> {
        if self.print_keys {
            print(&config::markdown(&config::keys::<C>()));
            return Ok(Startup::Done);
        }
        let loaded = config::load::<C>(self.config.as_deref())?;
        if self.print_config {
            print(&config::print(&loaded)?);
            return Ok(Startup::Done);
        }
        if self.check_config {
            print("configuration is valid\n");
            return Ok(Startup::Done);
        }
        let config = loaded.config;
        if self.health {
            if let Err(why) = crate::health::probe(config.server()) {
                eprintln!("not serving: {why}");
                std::process::exit(1);
            }
            return Ok(Startup::Done);
        }
        Ok(match self.task {
            Some(Task::Purge) => Startup::Purge(config),
            None => {
                let reload = Reload::new(self.config.clone(), config.clone());
                Startup::Serve(config, reload)
            }
        })
    }
}

fn print(text: &str) {
    use std::io::Write;
    // A closed pipe is the reader's wish.
    let _ = std::io::stdout().write_all(text.as_bytes());
}
