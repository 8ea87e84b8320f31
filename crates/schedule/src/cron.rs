//! The five fields of cron, matched against a minute. Nothing here looks for the next one, which is
//! what the crates for cron are mostly made of.

use chrono::{Datelike, NaiveDateTime, Timelike};

/// Sets of the values that fit, a bit each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// The field was not `*`. Where both are restricted, a day fits when either does.
    by_day: bool,
    by_weekday: bool,
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Cron {
    /// `None` for text that is not five well-formed fields.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else {
            return None;
        };
        let weekday_set = field(weekdays, 0, 7, &WEEKDAYS, 0)?;
        Some(Self {
            minutes: field(minutes, 0, 59, &[], 0)?,
            hours: field(hours, 0, 23, &[], 0)?,
            days: field(days, 1, 31, &[], 0)?,
            months: field(months, 1, 12, &MONTHS, 1)?,
            // 7 is Sunday too.
            weekdays: (weekday_set | weekday_set >> 7) & 0x7f,
            by_day: !is_any(days),
            by_weekday: !is_any(weekdays),
        })
    }

    pub(crate) fn matches(&self, time: NaiveDateTime) -> bool {
        let has = |set: u64, value: u32| set >> value & 1 == 1;
        let day = has(self.days, time.day());
        let weekday = has(self.weekdays, time.weekday().num_days_from_sunday());
        let date = if self.by_day && self.by_weekday {
            day || weekday
        } else {
            day && weekday
        };
        has(self.minutes, time.minute())
            && has(self.hours, time.hour())
            && has(self.months, time.month())
            && date
    }
}

fn is_any(field: &str) -> bool {
    field.starts_with(['*', '?'])
}

/// `*`, `5`, `1-5`, `*/15`, `10/5`, `1-30/2`, `mon-fri`, and lists of these.
fn field(text: &str, first: u32, last: u32, names: &[&str], names_from: u32) -> Option<u64> {
    let value = |text: &str| -> Option<u32> {
        let lower = text.to_ascii_lowercase();
        if let Some(at) = names.iter().position(|name| *name == lower) {
            return u32::try_from(at).ok().map(|at| at + names_from);
        }
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number: u32 = digits.then(|| text.parse().ok())??;
        (first..=last).contains(&number).then_some(number)
    };
    let mut set = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            None => (part, None),
            Some((range, step)) => {
                let step: usize = step.parse().ok().filter(|step| *step > 0)?;
                (range, Some(step))
            }
        };
        let (from, to) = match (range, range.split_once('-')) {
            ("*" | "?", _) => (first, last),
            (_, Some((from, to))) => (value(from)?, value(to)?),
            // Alone with a step it is where the steps begin.
            (single, None) if step.is_some() => (value(single)?, last),
            (single, None) => (value(single)?, value(single)?),
        };
        if from > to {
            return None;
        }
        for number in (from..=to).step_by(step.unwrap_or(1)) {
            set |= 1 << number;
        }
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> NaiveDateTime {
        NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M").unwrap()
    }

    #[test]
    fn minutes_fit_or_do_not() {
        // 2026-11-27 is a Friday.
        for (cron, time, fits) in [
            ("* * * * *", "2026-11-27 10:11", true),
            ("11 10 * * *", "2026-11-27 10:11", true),
            ("12 10 * * *", "2026-11-27 10:11", false),
            ("*/5 * * * *", "2026-11-27 10:10", true),
            ("*/5 * * * *", "2026-11-27 10:11", false),
            ("10/25 * * * *", "2026-11-27 10:35", true),
            ("10/25 * * * *", "2026-11-27 10:00", false),
            ("0-10/2,59 * * * *", "2026-11-27 10:59", true),
            ("0 0 1 * *", "2026-11-01 00:00", true),
            ("0 0 * * fri", "2026-11-27 00:00", true),
            ("0 0 * * mon-thu", "2026-11-27 00:00", false),
            ("0 0 * * 7", "2026-11-29 00:00", true),
            ("0 0 * nov *", "2026-11-29 00:00", true),
            // Either day counts when both are given.
            ("0 0 1 * fri", "2026-11-27 00:00", true),
            ("0 0 27 * mon", "2026-11-27 00:00", true),
            ("0 0 26 * mon", "2026-11-27 00:00", false),
        ] {
            assert_eq!(
                Cron::parse(cron).unwrap().matches(at(time)),
                fits,
                "{cron} at {time}"
            );
        }
    }

    #[test]
    fn what_is_no_cron_is_refused() {
        for text in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "a * * * *",
            "*/0 * * * *",
            "5-1 * * * *",
            "1,,2 * * * *",
            "-1 * * * *",
            "+1 * * * *",
            "* * * * funday",
        ] {
            assert_eq!(Cron::parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-*/,0-9a-z? ]{0,30}") {
            if let Some(cron) = Cron::parse(&text) {
                let _ = cron.matches(at("2026-02-28 23:59"));
            }
        }

        #[test]
        fn a_time_fits_its_own_fields(minutes in 0i64..10_000_000) {
            let time = at("2020-01-01 00:00") + chrono::Duration::minutes(minutes);
            let text = format!("{} {} {} {} *", time.minute(), time.hour(), time.day(), time.month());
            prop_assert!(Cron::parse(&text).unwrap().matches(time));
            prop_assert!(!Cron::parse(&text).unwrap().matches(time + chrono::Duration::minutes(1)));
        }
    }
}
