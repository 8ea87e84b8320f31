//! The questions of `berth admin init`, in the order LXD asks them. Plain lines on stdin, so that
//! they can be answered by a script as well.

use std::io::{BufRead, Write};

use anyhow::{Context, bail};

use super::auto::{self, Present};
use super::preseed::{Config, Pool, Preseed, Profile};

/// Asks on one stream and reads from another.
#[derive(Debug)]
pub(crate) struct Questions<R, W> {
    input: R,
    output: W,
}

impl<R: BufRead, W: Write> Questions<R, W> {
    /// Nothing is asked yet.
    pub(crate) fn new(input: R, output: W) -> Self {
        Self { input, output }
    }

    /// One line; empty takes `default`. Asks again while `check` finds fault.
    fn text(
        &mut self,
        question: &str,
        default: &str,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> anyhow::Result<String> {
        loop {
            write!(self.output, "{question} [default={default}]: ")?;
            self.output.flush()?;
            let mut line = String::new();
            let read = self.input.read_line(&mut line)?;
            if read == 0 {
                bail!("the input ended before the question {question:?} was answered");
            }
            let answer = match line.trim() {
                "" => default,
                text => text,
            };
            match check(answer) {
                Ok(()) => return Ok(answer.to_owned()),
                Err(fault) => writeln!(self.output, "Invalid input: {fault}")?,
            }
        }
    }

    fn yes(&mut self, question: &str, default: bool) -> anyhow::Result<bool> {
        let default = if default { "yes" } else { "no" };
        let answer = self.text(&format!("{question} (yes/no)"), default, |text| {
            if matches!(text, "yes" | "y" | "no" | "n") {
                Ok(())
            } else {
                Err("answer yes or no".into())
            }
        })?;
        Ok(answer.starts_with('y'))
    }
}

/// Asks everything; the flag says whether the preseed is to be printed.
///
/// # Errors
/// When the input ends too early.
pub(crate) fn ask<R: BufRead, W: Write>(
    questions: &mut Questions<R, W>,
    present: &Present,
) -> anyhow::Result<(Preseed, bool)> {
    let mut preseed = Preseed::default();
    let mut profile = Profile {
        name: "default".into(),
        ..Profile::default()
    };
    if questions.yes("Do you want to configure a new storage pool?", true)? {
        let pool = ask_pool(questions, present)?;
        if !present.devices.iter().any(|name| name == "root") {
            profile
                .devices
                .insert("root".into(), auto::root_disk(&pool.name));
        }
        preseed.storage_pools.push(pool);
    }
    if questions.yes("Would you like to create a new local network bridge?", true)? {
        let free = present.free_bridge();
        let name = questions.text("What should the new bridge be called?", &free, |name| {
            if present.links.iter().any(|link| link == name) {
                Err(format!("the network {name:?} exists already"))
            } else if name.len() < 2 || name.len() > 15 {
                Err("a bridge's name has 2 to 15 characters".into())
            } else {
                Ok(())
            }
        })?;
        let ipv4 = ask_address::<ipnet::Ipv4Net, _, _>(questions, "IPv4")?;
        let nat4 = ipv4 != "none"
            && ipv4 != "auto"
            && questions.yes("Would you like to NAT IPv4 traffic on your bridge?", true)?;
        let ipv6 = ask_address::<ipnet::Ipv6Net, _, _>(questions, "IPv6")?;
        let nat6 = ipv6 != "none"
            && ipv6 != "auto"
            && questions.yes("Would you like to NAT IPv6 traffic on your bridge?", true)?;
        let mut bridge = auto::new_bridge(&name, &ipv4, &ipv6);
        for (key, nat) in [("ipv4.nat", nat4), ("ipv6.nat", nat6)] {
            if nat {
                bridge.config.insert(key.into(), "true".into());
            }
        }
        preseed.networks.push(bridge);
        if !present.devices.iter().any(|device| device == "eth0") {
            profile.devices.insert("eth0".into(), auto::nic(&name));
        }
    }
    if !profile.devices.is_empty() {
        preseed.profiles.push(profile);
    }
    let print = questions.yes(
        "Would you like a YAML \"init\" preseed to be printed?",
        false,
    )?;
    Ok((preseed, print))
}

fn ask_pool<R: BufRead, W: Write>(
    questions: &mut Questions<R, W>,
    present: &Present,
) -> anyhow::Result<Pool> {
    let name = questions.text("Name of the new storage pool", auto::DEFAULT_POOL, |name| {
        if present.pools.iter().any(|pool| pool == name) {
            Err(format!("the storage pool {name:?} exists already"))
        } else if name.contains('/') {
            Err("a storage pool's name has no slashes".into())
        } else {
            Ok(())
        }
    })?;
    let drivers = present.drivers.join(", ");
    let driver = questions.text(
        &format!("Name of the storage backend to use ({drivers})"),
        present.best_driver(),
        |driver| {
            if present.drivers.iter().any(|known| known == driver) {
                Ok(())
            } else {
                Err(format!("choose one of {drivers}"))
            }
        },
    )?;
    let mut config = Config::new();
    if driver != "dir" {
        let device = questions.yes(
            "Would you like to use an existing empty block device (e.g. a disk or partition)?",
            false,
        )?;
        if device {
            let path = questions.text("Path to the existing block device", "", |path| {
                if path.starts_with("/dev/") {
                    Ok(())
                } else {
                    Err("a path below /dev is needed".into())
                }
            })?;
            config.insert("source".into(), path);
        } else {
            let size = questions.text(
                "Size in GiB of the new loop device (1GiB minimum)",
                "the server's choice",
                |size| match size {
                    "the server's choice" => Ok(()),
                    text => match gib(text) {
                        Some(1..) => Ok(()),
                        _ => Err("a whole number of at least 1".into()),
                    },
                },
            )?;
            if let Some(size) = gib(&size) {
                config.insert("size".into(), format!("{size}GiB"));
            }
        }
    }
    Ok(Pool {
        name,
        driver,
        config,
        ..Pool::default()
    })
}

fn gib(text: &str) -> Option<u64> {
    text.trim_end_matches("GiB").trim().parse().ok()
}

fn ask_address<N: std::str::FromStr, R: BufRead, W: Write>(
    questions: &mut Questions<R, W>,
    family: &str,
) -> anyhow::Result<String> {
    questions
        .text(
            &format!(
                "What {family} address should be used? (CIDR subnet notation, \"auto\" or \"none\")"
            ),
            "auto",
            |text| match text {
                "auto" | "none" => Ok(()),
                text if text.contains('/') && text.parse::<N>().is_ok() => Ok(()),
                _ => Err(format!(
                    "{text:?} is not an {family} address with its prefix"
                )),
            },
        )
        .with_context(|| format!("{family} address"))
}
