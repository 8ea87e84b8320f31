//! Samples, their median and ninetieth percentile, and the table.

use std::fmt;

use serde_json::{Value, json};

use super::measure::Plan;
use crate::image::Kind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Milliseconds,
    PerSecond,
    Megabytes,
}

impl Unit {
    fn symbol(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::PerSecond => "/s",
            Self::Megabytes => "MiB",
        }
    }
}

/// Everything measured on one server, in the order of first mention.
#[derive(Default)]
pub(super) struct Measured(Vec<(&'static str, Unit, Vec<f64>)>);

impl Measured {
    pub(super) fn add(&mut self, what: &'static str, unit: Unit, sample: f64) {
        match self.0.iter_mut().find(|(name, ..)| *name == what) {
            Some((.., samples)) => samples.push(sample),
            None => self.0.push((what, unit, vec![sample])),
        }
    }

    fn samples(&self, what: &str) -> Option<&[f64]> {
        self.0
            .iter()
            .find(|(name, ..)| *name == what)
            .map(|(.., samples)| samples.as_slice())
    }
}

#[derive(Default)]
pub(super) struct Report(Vec<Section>);

struct Section {
    kind: Kind,
    plan: Plan,
    servers: Vec<(String, Measured)>,
}

impl Report {
    pub(super) fn add(&mut self, kind: Kind, server: &str, plan: Plan, measured: Measured) {
        let measured = (server.to_owned(), measured);
        match self.0.iter_mut().find(|section| section.kind == kind) {
            Some(section) => section.servers.push(measured),
            None => self.0.push(Section {
                kind,
                plan,
                servers: vec![measured],
            }),
        }
    }

    pub(super) fn json(&self) -> Value {
        let sections = self.0.iter().map(|section| {
            let servers = section.servers.iter().map(|(name, measured)| {
                let rows = measured.0.iter().map(|(what, unit, samples)| {
                    json!({
                        "what": what, "unit": unit.symbol(), "median": quantile(samples, 0.5),
                        "p90": quantile(samples, 0.9), "samples": samples,
                    })
                });
                json!({"server": name, "measured": rows.collect::<Vec<_>>()})
            });
            json!({
                "image": section.kind.to_string(), "plan": section.plan,
                "servers": servers.collect::<Vec<_>>(),
            })
        });
        sections.collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for section in &self.0 {
            section.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan {
            rounds,
            fleet,
            callers,
        } = self.plan;
        writeln!(
            f,
            "\n{} image: {rounds} rounds, fleet of {fleet} by {callers} callers; median (p90)",
            self.kind
        )?;
        write!(f, "{:<32}", "")?;
        for (name, _) in &self.servers {
            write!(f, "{name:>22}")?;
        }
        let Some((first, others)) = self.servers.split_first() else {
            return Ok(());
        };
        for (name, _) in others {
            write!(f, "{:>22}", format!("{}/{name}", first.0))?;
        }
        writeln!(f)?;
        for (what, unit, samples) in &first.1.0 {
            write!(f, "{:<32}", format!("{what}, {}", unit.symbol()))?;
            for (_, measured) in &self.servers {
                write!(
                    f,
                    "{:>22}",
                    measured.samples(what).map_or_else(|| "-".into(), cell)
                )?;
            }
            for (_, measured) in others {
                let ratio = measured.samples(what).map_or_else(
                    || "-".into(),
                    |theirs| format!("{:.1}", quantile(samples, 0.5) / quantile(theirs, 0.5)),
                );
                write!(f, "{ratio:>22}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn cell(samples: &[f64]) -> String {
    let median = quantile(samples, 0.5);
    match samples.len() {
        1 => format!("{median:.1}"),
        _ => format!("{median:.1} ({:.1})", quantile(samples, 0.9)),
    }
}

/// The smallest sample that at least this share of the samples does not exceed.
pub(super) fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let samples = [9.0, 1.0, 5.0, 3.0, 7.0, 2.0, 4.0, 6.0, 8.0, 10.0];
        assert_eq!(quantile(&samples, 0.5), 5.0);
        assert_eq!(quantile(&samples, 0.9), 9.0);
        assert_eq!(quantile(&[3.5], 0.9), 3.5);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn the_table_shows_the_first_server_over_the_others() {
        let mut report = Report::default();
        let plan = Plan {
            rounds: 1,
            fleet: 2,
            callers: 1,
        };
        for (server, value) in [("reference", 200.0), ("berth", 20.0)] {
            let mut measured = Measured::default();
            measured.add("launch", Unit::Milliseconds, value);
            report.add(Kind::Busybox, server, plan, measured);
        }
        let text = report.to_string();
        let row = text
            .lines()
            .find(|line| line.starts_with("launch"))
            .unwrap();
        let cells: Vec<_> = row.split_whitespace().collect();
        assert_eq!(cells, ["launch,", "ms", "200.0", "20.0", "10.0"]);
    }
}
