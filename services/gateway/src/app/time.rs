//! Times as LXD writes them.

use chrono::{DateTime, Duration, Months, SecondsFormat, Utc};

/// What LXD writes for no time at all; "" would break its clients' decoding.
pub const ZERO: &str = "0001-01-01T00:00:00Z";

/// Now, RFC 3339 with nanoseconds.
pub fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// An owner's time, with [`ZERO`] for an absent one.
pub fn or_zero(time: &str) -> &str {
    if time.is_empty() { ZERO } else { time }
}

/// A client's time for an owner: the zero time and an absent one are both empty, which means never.
///
/// # Errors
/// The sentence for text that is not RFC 3339.
pub fn or_empty(time: Option<&str>) -> Result<String, String> {
    match time {
        None | Some("") => Ok(String::new()),
        Some(text) => {
            let parsed = DateTime::parse_from_rfc3339(text)
                .map_err(|e| format!("{text:?} is not an RFC 3339 time: {e}"))?;
            // Go's zero time, in whatever zone it was written.
            if parsed.timestamp() <= -62_135_596_800 + 86_400 {
                return Ok(String::new());
            }
            Ok(text.to_owned())
        }
    }
}

/// The time that an expiry such as `1H 3d` is away: blank-separated numbers of S, M (minutes), H,
/// d, w, m (months), y, each unit once.
///
/// # Errors
/// The sentence for text that is none.
pub fn after(expiry: &str) -> Result<String, String> {
    let wrong = || format!("{expiry:?} is not an expiry such as \"1H 3d\"");
    let mut time = Utc::now();
    let mut seen = String::new();
    for part in expiry.split_whitespace() {
        let unit = part.chars().next_back().ok_or_else(wrong)?;
        if seen.contains(unit) || !unit.is_ascii() {
            return Err(wrong());
        }
        seen.push(unit);
        let number: u32 = part[..part.len() - 1].parse().map_err(|_| wrong())?;
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
    Ok(time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_time_means_never() {
        assert_eq!(or_empty(Some(ZERO)).unwrap(), "");
        assert_eq!(or_empty(None).unwrap(), "");
        assert_eq!(
            or_empty(Some("2030-01-01T00:00:00Z")).unwrap(),
            "2030-01-01T00:00:00Z"
        );
        assert!(or_empty(Some("tomorrow")).is_err());
        assert_eq!(or_zero(""), ZERO);
    }

    #[test]
    fn expiries_are_sums_of_units() {
        let hours = |text: &str| {
            let then = DateTime::parse_from_rfc3339(&after(text).unwrap()).unwrap();
            (then.with_timezone(&Utc) - Utc::now()).num_minutes()
        };
        assert!((24 * 60 + 58..=24 * 60 + 60).contains(&hours("1H 1d")));
        for bad in ["", "1", "1H 1H", "xH", "1q", "9999999999y"] {
            assert!(after(bad).is_err(), "{bad}");
        }
    }
}
