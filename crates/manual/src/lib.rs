//! Manual pages and shell completions, written by the program that they describe: `PROGRAM manual DIR`.
//!
//! The verb is not part of the command line that is described, so nobody's shell completes it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;
use clap_mangen::Man;

const VERB: &str = "manual";

/// Where in the manual a program belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// What users run.
    Commands = 1,
    /// What the system runs.
    Daemons = 8,
}

/// Reads the process's arguments; ends the process on bad usage, `--help`, and when it was asked to
/// write its manual.
pub fn get_matches(command: Command, section: Section) -> ArgMatches {
    let directory = Arg::new("directory")
        .required(true)
        .value_parser(clap::value_parser!(PathBuf));
    let verb = Command::new(VERB).hide(true).arg(directory);
    let mut asked = command.clone().subcommand(verb);
    let matches = asked.get_matches_mut();
    let Some((VERB, about)) = matches.subcommand() else {
        return matches;
    };
    let written = about
        .get_one::<PathBuf>("directory")
        .ok_or_else(|| io::Error::other("no directory"))
        .and_then(|directory| write(command, section, directory));
    match written {
        Ok(()) => std::process::exit(0),
        Err(error) => asked.error(clap::error::ErrorKind::Io, error).exit(),
    }
}

/// Writes everything below `share`, laid out like `/usr/share`: a page of the manual for the program and, for
/// users' programs, for each of its commands; completions for bash, fish and zsh.
///
/// # Errors
/// When a file can't be written.
pub fn write(mut command: Command, section: Section, share: &Path) -> io::Result<()> {
    let name = command.get_name().to_owned();
    for (shell, directory, file) in [
        (Shell::Bash, "bash-completion/completions", name.clone()),
        (
            Shell::Fish,
            "fish/vendor_completions.d",
            format!("{name}.fish"),
        ),
        (Shell::Zsh, "zsh/vendor-completions", format!("_{name}")),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), &name, &mut text);
        let directory = share.join(directory);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(file), text)?;
    }
    let directory = share.join(format!("man/man{}", section as u8));
    fs::create_dir_all(&directory)?;
    command = command.disable_help_subcommand(true);
    command.build();
    pages(&command, &name, section, &directory)
}

fn pages(command: &Command, name: &str, section: Section, directory: &Path) -> io::Result<()> {
    let number = (section as u8).to_string();
    let version = command.get_version().unwrap_or_default();
    let page = Man::new(command.clone().display_name(name.to_owned()))
        .title(name.to_uppercase())
        .section(&number)
        .source(format!("Berth {version}").trim_end())
        .manual("Berth");
    page.render(&mut File::create(
        directory.join(format!("{name}.{number}")),
    )?)?;
    if section == Section::Daemons {
        return Ok(());
    }
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        pages(
            verb,
            &format!("{name}-{}", verb.get_name()),
            section,
            directory,
        )?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test ends where its set-up fails")]
mod tests {
    use super::*;

    fn command() -> Command {
        let init = Command::new("init")
            .about("Sets a server up")
            .arg(Arg::new("auto").long("auto"));
        let admin = Command::new("admin")
            .about("Looks after a server")
            .subcommand(init);
        Command::new("berth")
            .version("1.2")
            .about("Runs systems")
            .subcommand(admin)
    }

    fn files(directory: &Path) -> Vec<String> {
        let mut found: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        found
    }

    #[test]
    fn users_programs_have_a_page_for_each_command() {
        let share = tempfile::tempdir().unwrap();
        write(command(), Section::Commands, share.path()).unwrap();
        let man = share.path().join("man/man1");
        assert_eq!(
            files(&man),
            ["berth-admin-init.1", "berth-admin.1", "berth.1"]
        );
        let page = fs::read_to_string(man.join("berth-admin-init.1")).unwrap();
        assert!(
            page.contains("Sets a server up") && page.contains("auto"),
            "{page}"
        );
        assert!(
            page.contains(".TH BERTH\\-ADMIN\\-INIT 1") || page.contains(".TH BERTH-ADMIN-INIT 1"),
            "{page}"
        );
    }

    #[test]
    fn each_shell_gets_the_program_s_own_words_and_not_the_verb_that_writes_them() {
        let share = tempfile::tempdir().unwrap();
        write(command(), Section::Daemons, share.path()).unwrap();
        assert_eq!(files(&share.path().join("man/man8")), ["berth.8"]);
        for file in [
            "bash-completion/completions/berth",
            "fish/vendor_completions.d/berth.fish",
            "zsh/vendor-completions/_berth",
        ] {
            let text = fs::read_to_string(share.path().join(file)).unwrap();
            assert!(text.contains("auto"), "{file}");
            assert!(!text.contains(VERB), "{file}");
        }
    }
}
