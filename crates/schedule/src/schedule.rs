//! `snapshots.schedule`: five fields of cron, or names such as `@daily`, several of these joined by
//! commas; `@startup` for each start, `@never` for not at all.

use chrono::NaiveDateTime;

use crate::cron::Cron;

/// Named times, and the fields each stands for. `{m}` and the like differ from subject to subject,
/// so that a host full of `@daily` does not take every snapshot at midnight.
const NAMES: [(&str, &str); 7] = [
    ("@hourly", "{m} * * * *"),
    ("@daily", "{m} {h} * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "{m} {h} * * {w}"),
    ("@monthly", "{m} {h} {d} * *"),
    ("@annually", "{m} {h} {d} {o} *"),
    ("@yearly", "{m} {h} {d} {o} *"),
];

/// A parsed schedule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule {
    entries: Vec<Entry>,
    at_start: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Cron(Cron),
    Named(&'static str),
}

impl Schedule {
    /// Parses the text; the empty one is never due.
    ///
    /// # Errors
    /// A sentence in LXD's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let mut schedule = Self::default();
        if text.is_empty() {
            return Ok(schedule);
        }
        // A comma within the fields of cron has no blank behind it, and no `@`.
        if !text.contains('@') {
            for one in text.split(", ") {
                let cron = Cron::parse(one).ok_or_else(|| {
                    "Schedule must be of the form: <minute> <hour> <day-of-month> <month> <day-of-week>"
                        .to_owned()
                })?;
                schedule.entries.push(Entry::Cron(cron));
            }
            return Ok(schedule);
        }
        let mut never = false;
        for part in text.split(", ").flat_map(|part| match part.contains(' ') {
            // Fields of cron among names.
            true => vec![part],
            false => part.split(',').collect(),
        }) {
            let name = part.trim().to_ascii_lowercase();
            match (
                name.as_str(),
                NAMES.iter().find(|(known, _)| *known == name),
            ) {
                ("@startup", _) => schedule.at_start = true,
                ("@never", _) => never = true,
                (_, Some((_, fields))) => schedule.entries.push(Entry::Named(fields)),
                (_, None) => match Cron::parse(part) {
                    Some(cron) => schedule.entries.push(Entry::Cron(cron)),
                    None => return Err(format!("Invalid schedule: {part:?} is no time")),
                },
            }
        }
        Ok(if never { Self::default() } else { schedule })
    }

    /// Whether a snapshot of `subject` (anything that identifies it for good) is due in this minute.
    pub fn is_due(&self, time: NaiveDateTime, subject: &str) -> bool {
        self.entries.iter().any(|entry| match entry {
            Entry::Cron(cron) => cron.matches(time),
            Entry::Named(fields) => spread(fields, subject).is_some_and(|cron| cron.matches(time)),
        })
    }

    /// Whether one is due whenever it starts.
    pub fn at_start(&self) -> bool {
        self.at_start
    }
}

fn spread(fields: &str, subject: &str) -> Option<Cron> {
    // FNV-1a: stable from release to release.
    let hash = subject
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let text = fields
        .replace("{m}", &(hash % 60).to_string())
        .replace("{h}", &(hash / 60 % 24).to_string())
        .replace("{w}", &(hash / 1440 % 7).to_string())
        .replace("{d}", &(hash / 1440 % 28 + 1).to_string())
        .replace("{o}", &(hash / 40_320 % 12 + 1).to_string());
    Cron::parse(&text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use chrono::{Duration, NaiveDate};

    /// Times from the first of January or, for less, of February on.
    fn times(schedule: &str, subject: &str, days: i64) -> usize {
        let schedule = Schedule::parse(schedule).unwrap();
        let month = if days < 60 { 2 } else { 1 };
        let begin = NaiveDate::from_ymd_opt(2027, month, 1)
            .unwrap()
            .and_hms_opt(0, 0, 0)
            .unwrap();
        (0..days * 1440)
            .filter(|minutes| schedule.is_due(begin + Duration::minutes(*minutes), subject))
            .count()
    }

    #[test]
    fn names_come_as_often_as_they_say() {
        for (schedule, often) in [
            ("@hourly", 672),
            ("@daily", 28),
            ("@midnight", 28),
            ("@weekly", 4),
            ("@monthly", 1),
            ("0 6 * * *", 28),
            ("0 6 * * *, 0 18 * * *", 56),
            ("@startup", 0),
            ("@never", 0),
            ("@daily,@never", 0),
            ("", 0),
        ] {
            for subject in ["c1", "0190c0de-uid"] {
                assert_eq!(times(schedule, subject, 28), often, "{schedule} {subject}");
            }
        }
        assert_eq!(times("@yearly", "c1", 365), 1);
        assert_eq!(NAMES[5].1, NAMES[6].1);
    }

    #[test]
    fn lists_and_starts() {
        let schedule = Schedule::parse("@Startup, @daily").unwrap();
        assert!(schedule.at_start());
        assert_eq!(schedule.entries.len(), 1);
        assert!(!Schedule::parse("@daily, @hourly").unwrap().at_start());
        assert_eq!(
            Schedule::parse("@daily, 0 6 * * *").unwrap().entries.len(),
            2
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "bogus",
            "* * *",
            "@sometimes",
            "@daily, x",
            "@daily,,@hourly",
            "* * * * * *",
        ] {
            assert!(Schedule::parse(bad).is_err(), "{bad}");
        }
    }
}
