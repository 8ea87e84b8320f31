//! Times as LXD writes them.

use chrono::{DateTime, SecondsFormat, Utc};

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

/// The time of an expiry such as `1H 3d` from now; an empty one is never.
///
/// # Errors
/// The sentence for text that is none.
pub fn expiry(rule: Option<&String>) -> Result<String, String> {
    match rule.map(String::as_str) {
        None | Some("") => Ok(String::new()),
        Some(rule) => {
            let then = berth_schedule::after(rule, Utc::now())?;
            Ok(then.to_rfc3339_opts(SecondsFormat::Secs, true))
        }
    }
}

/// Whether an owner's time is reached; an empty one never is.
pub fn is_over(time: &str, now: DateTime<Utc>) -> bool {
    DateTime::parse_from_rfc3339(time).is_ok_and(|time| time <= now)
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
    fn an_expiry_is_counted_from_now() {
        let day = String::from("1d");
        let then = expiry(Some(&day)).unwrap();
        assert!(!is_over(&then, Utc::now()));
        assert!(is_over(&then, Utc::now() + chrono::Duration::hours(25)));
        assert_eq!(expiry(None).unwrap(), "");
        assert_eq!(expiry(Some(&String::new())).unwrap(), "");
        assert!(expiry(Some(&String::from("soon"))).is_err());
        assert!(!is_over("", Utc::now()));
    }
}
