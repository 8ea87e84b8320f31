//! RFC 3339 on the wire, milliseconds since the epoch within.

use chrono::{DateTime, SecondsFormat, Utc};

/// How the API writes a time that is not known.
pub const ZERO: &str = "0001-01-01T00:00:00Z";

/// `None` and times that no calendar has become [`ZERO`].
pub fn render(millis: Option<i64>) -> String {
    millis
        .and_then(DateTime::<Utc>::from_timestamp_millis)
        .map_or_else(
            || ZERO.to_owned(),
            |t| t.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        )
}

/// Empty, the zero time and the epoch mean "none"; the error is a sentence for users.
pub fn parse(text: &str) -> Result<Option<i64>, String> {
    if text.is_empty() || text == ZERO {
        return Ok(None);
    }
    let time = DateTime::parse_from_rfc3339(text)
        .map_err(|e| format!("{text:?} is not an RFC 3339 time: {e}"))?;
    let millis = time.timestamp_millis();
    // LXD's clients send both Go's zero time, in any zone, and the epoch for "never".
    Ok((millis > 0).then_some(millis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unknown_times_are_zero() {
        assert_eq!(render(None), ZERO);
        assert_eq!(render(Some(i64::MAX)), ZERO);
        assert_eq!(parse(ZERO), Ok(None));
        assert_eq!(parse("1970-01-01T00:00:00Z"), Ok(None));
        assert!(parse("tomorrow").is_err());
    }

    proptest! {
        #[test]
        fn times_go_both_ways(millis in 1i64..4_102_444_800_000) {
            prop_assert_eq!(parse(&render(Some(millis))), Ok(Some(millis)));
        }
    }
}
