//! `snapshots.expiry`.

use chrono::{DateTime, Duration, Months, Utc};

/// The time that an expiry such as `1H 3d` is after `from`: blank-separated numbers of S, M
/// (minutes), H, d, w, m (months), y, each unit once.
///
/// # Errors
/// A sentence, for text that is none.
pub fn after(expiry: &str, from: DateTime<Utc>) -> Result<DateTime<Utc>, String> {
    let wrong = || format!("Invalid expiry expression: {expiry:?} is not one such as \"1H 3d\"");
    let mut time = from;
    let mut seen = String::new();
    for part in expiry.split_ascii_whitespace() {
        let unit = part
            .chars()
            .next_back()
            .filter(char::is_ascii)
            .ok_or_else(wrong)?;
        let digits = &part[..part.len() - 1];
        if seen.contains(unit) || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        seen.push(unit);
        let number: u32 = digits.parse().map_err(|_| wrong())?;
        let wide = i64::from(number);
        let moved = match unit {
            'S' => time.checked_add_signed(Duration::seconds(wide)),
            'M' => time.checked_add_signed(Duration::minutes(wide)),
            'H' => time.checked_add_signed(Duration::hours(wide)),
            'd' => time.checked_add_signed(Duration::days(wide)),
            'w' => time.checked_add_signed(Duration::weeks(wide)),
            'm' => time.checked_add_months(Months::new(number)),
            'y' => number
                .checked_mul(12)
                .and_then(|months| time.checked_add_months(Months::new(months))),
            _ => None,
        };
        time = moved.ok_or_else(wrong)?;
    }
    if seen.is_empty() {
        return Err(wrong());
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn expiries_are_sums_of_units() {
        let epoch = DateTime::UNIX_EPOCH;
        let seconds = |text: &str| (after(text, epoch).unwrap() - epoch).num_seconds();
        assert_eq!(seconds("1H 1d"), 25 * 3600);
        assert_eq!(seconds("5S 2M"), 125);
        assert_eq!(seconds("1m"), 31 * 86_400);
        assert_eq!(seconds("1y 1w"), 372 * 86_400);
        for bad in [
            "",
            " ",
            "1",
            "1H 1H",
            "xH",
            "1q",
            "1é",
            "-1d",
            "+1d",
            "9999999999y",
        ] {
            assert!(after(bad, epoch).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = after(&text, DateTime::UNIX_EPOCH);
        }
    }
}
