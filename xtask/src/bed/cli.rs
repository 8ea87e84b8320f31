//! `cargo xtask bed`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use super::{Accel, Bed, Image, Options, suites};
use crate::sandbox::paths;

/// What to do with a bed.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Make the image, unless it is there.
    Build {
        #[arg(value_enum, default_values = ["plain", "full"])]
        images: Vec<Image>,
    },
    /// Boot a bed that stays, and print how to reach it.
    Up {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        machine: MachineArgs,
        /// End one of that name that runs, and begin anew.
        #[arg(long)]
        fresh: bool,
    },
    /// Run a command in it; its exit code is this one's.
    Run {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        job: Job,
    },
    /// Copy files or directories into it.
    CopyIn {
        #[command(flatten)]
        name: Name,
        #[arg(required = true)]
        from: Vec<PathBuf>,
        to: String,
    },
    /// Copy a file or directory out of it.
    CopyOut {
        #[command(flatten)]
        name: Name,
        from: String,
        to: PathBuf,
    },
    /// A shell in it.
    Shell {
        #[command(flatten)]
        name: Name,
    },
    /// Reboot it and wait until it runs.
    Reboot {
        #[command(flatten)]
        name: Name,
    },
    /// Print its serial console and its journal.
    Logs {
        #[command(flatten)]
        name: Name,
    },
    /// End it; what was written in it is gone.
    Down {
        #[command(flatten)]
        name: Name,
    },
    /// Run the services' own tests in a bed, or what takes too long for `cargo xtask test`.
    Test {
        what: Tests,
        /// Only test programs, or scenarios, whose name has this.
        filter: Option<String>,
        #[arg(long, value_enum, default_value = "auto")]
        accel: Accel,
    },
    /// Boot a bed, run a command in it, end it.
    Exec {
        #[command(flatten)]
        machine: MachineArgs,
        #[command(flatten)]
        job: Job,
    },
}

/// Which tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tests {
    /// Of the services that touch the kernel, on cgroup v2 with AppArmor.
    Suites,
    /// Berth from its packages, under systemd.
    Systemd,
}

#[derive(Debug, Args)]
pub struct Name {
    #[arg(long, value_name = "NAME", default_value = "bed")]
    name: String,
}

#[derive(Debug, Args)]
pub struct MachineArgs {
    /// What is installed in it.
    #[arg(long, value_enum, default_value_t = Image::Full)]
    image: Image,
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accel,
    /// With a suffix M or G.
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = mebibytes)]
    memory: u32,
    #[arg(long, value_name = "NUMBER", default_value_t = 2)]
    cpus: u32,
}

#[derive(Debug, Args)]
pub struct Job {
    /// Copy this in before.
    #[arg(long = "copy", value_name = "FROM:TO", value_parser = pair)]
    copies: Vec<(String, String)>,
    /// Copy Berth's programs to this directory before, without debugging symbols.
    #[arg(long, value_name = "TO")]
    programs: Option<String>,
    /// Where Berth's programs are; they are built without it.
    #[arg(long, value_name = "DIR", env = "BERTH_BIN_DIR", requires = "programs")]
    bin_dir: Option<PathBuf>,
    /// Copy this out afterwards, however the command ends.
    #[arg(long = "result", value_name = "FROM:TO", value_parser = pair)]
    results: Vec<(String, String)>,
    /// Seconds until the command is ended.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (from, to) = text.split_once(':').ok_or("expected FROM:TO")?;
    Ok((from.to_owned(), to.to_owned()))
}

fn mebibytes(text: &str) -> Result<u32, String> {
    let expected = || format!("`{text}`: expected a size such as 1536M or 2G");
    let (number, factor) = match text.strip_suffix('G') {
        Some(number) => (number, 1024),
        None => (text.strip_suffix('M').ok_or_else(expected)?, 1),
    };
    let number: u32 = number.parse().map_err(|_| expected())?;
    number.checked_mul(factor).ok_or_else(expected)
}

/// Carries out a task; ends this process with a command's exit code.
pub fn run(task: Task) -> Result<()> {
    match task {
        Task::Build { images } => {
            for image in images {
                println!("{}", super::build(image)?.display());
            }
        }
        Task::Up {
            name: Name { name },
            machine,
            fresh,
        } => {
            if let (true, Ok(bed)) = (fresh, Bed::named(&name)) {
                bed.down()?;
            }
            let bed = Bed::up(&name, &machine.into())?;
            println!("cargo xtask bed run --name {name} -- COMMAND");
            println!("ssh -F {}/ssh_config bed", bed.directory().display());
        }
        Task::Run { name, job } => exit(job.run(&name.bed()?)?),
        Task::CopyIn { name, from, to } => {
            let from: Vec<_> = from.iter().map(PathBuf::as_path).collect();
            name.bed()?.copy_in(&from, &to)?;
        }
        Task::CopyOut { name, from, to } => name.bed()?.copy_out(&from, &to)?,
        Task::Shell { name } => exit(name.bed()?.ssh.shell()?),
        Task::Reboot { name } => name.bed()?.reboot()?,
        Task::Logs { name } => {
            let bed = name.bed()?;
            print!("{}", bed.console()?);
            print!("{}", bed.journal()?);
        }
        Task::Down { name } => name.bed()?.down()?,
        Task::Test {
            what,
            filter,
            accel,
        } => {
            let options = Options {
                accel,
                ..Options::default()
            };
            match what {
                Tests::Suites => suites::run(&options, filter.as_deref())?,
                Tests::Systemd => crate::test::systemd(filter.as_deref())?,
            }
        }
        Task::Exec { machine, job } => {
            let bed = Bed::boot(&machine.into())?;
            let code = job.run(&bed);
            // `exit` runs no destructors.
            drop(bed);
            exit(code?);
        }
    }
    Ok(())
}

fn exit(code: i32) {
    std::process::exit(code);
}

impl Name {
    fn bed(&self) -> Result<Bed> {
        Bed::named(&self.name)
    }
}

impl Job {
    fn run(&self, bed: &Bed) -> Result<i32> {
        if let Some(to) = &self.programs {
            let binaries = match &self.bin_dir {
                Some(directory) => directory.clone(),
                None => paths::build(false)?,
            };
            bed.copy_build(&binaries, to)?;
        }
        for (from, to) in &self.copies {
            bed.copy_in(&[from.as_ref()], to)
                .with_context(|| format!("--copy {from}"))?;
        }
        let argv: Vec<_> = self.command.iter().map(String::as_str).collect();
        let code = bed.stream(Duration::from_secs(self.timeout), &argv);
        for (from, to) in &self.results {
            bed.copy_out(from, to.as_ref())
                .with_context(|| format!("--result {from}"))?;
        }
        code
    }
}

impl From<MachineArgs> for Options {
    fn from(args: MachineArgs) -> Self {
        Self {
            image: args.image,
            accel: args.accel,
            memory: args.memory,
            cpus: args.cpus,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(mebibytes("2G"), Ok(2048));
        assert_eq!(mebibytes("1536M"), Ok(1536));
        for bad in ["", "2", "G", "-1G", "2T", "99999999G"] {
            assert!(mebibytes(bad).unwrap_err().contains(bad), "{bad}");
        }
    }
}
