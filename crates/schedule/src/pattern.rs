//! `snapshots.pattern`: text with one `%d`, and `{{ creation_date }}`, which may have a layout after
//! Go's example date: `{{ creation_date|date:'2006-01-02_15-04-05' }}`.

use chrono::{DateTime, Local};

/// What Go's example date has for each part, longer ones first where one begins another.
const LAYOUT: [(&str, &str); 23] = [
    ("2006", "%Y"),
    ("January", "%B"),
    ("Jan", "%b"),
    ("Monday", "%A"),
    ("Mon", "%a"),
    ("MST", "%Z"),
    ("-07:00", "%:z"),
    ("-0700", "%z"),
    ("15", "%H"),
    ("01", "%m"),
    ("02", "%d"),
    ("03", "%I"),
    ("04", "%M"),
    ("05", "%S"),
    ("06", "%y"),
    ("PM", "%p"),
    ("pm", "%P"),
    ("_2", "%e"),
    ("1", "%-m"),
    ("2", "%-d"),
    ("3", "%-I"),
    ("4", "%-M"),
    ("5", "%-S"),
];

/// Whether a pattern can be filled in.
///
/// # Errors
/// A sentence that says what cannot.
pub fn check(pattern: &str) -> Result<(), String> {
    fill(pattern, DateTime::UNIX_EPOCH.with_timezone(&Local), &[]).map(drop)
}

/// The next free name: the time filled in, and one more than the highest number in use. A pattern
/// without a number is the name itself while that is free.
///
/// # Errors
/// A sentence, for a template that is not understood.
pub fn fill(pattern: &str, now: DateTime<Local>, taken: &[&str]) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = pattern;
    while let Some((before, tail)) = rest.split_once("{{") {
        let (template, tail) = tail.split_once("}}").ok_or_else(|| not_understood(rest))?;
        text.push_str(before);
        text.push_str(&date(template, now)?);
        rest = tail;
    }
    text.push_str(rest);
    if text.contains("{%") || text.contains("}}") {
        return Err(not_understood(pattern));
    }
    if text.matches("%d").count() > 1 {
        return Err("Snapshot pattern may contain '%d' only once".to_owned());
    }
    if !text.contains("%d") {
        if !taken.contains(&text.as_str()) {
            return Ok(text);
        }
        text.push_str("-%d");
    }
    let (before, after) = text.split_once("%d").unwrap_or((&text, ""));
    let number = |name: &&str| -> Option<u64> {
        name.strip_prefix(before)?.strip_suffix(after)?.parse().ok()
    };
    let next = taken
        .iter()
        .filter_map(number)
        .max()
        .map_or(0, |highest| highest.saturating_add(1));
    Ok(format!("{before}{next}{after}"))
}

fn not_understood(template: &str) -> String {
    format!(
        "Invalid snapshot pattern: {template:?} is not {{{{ creation_date }}}} or \
         {{{{ creation_date|date:'2006-01-02' }}}}"
    )
}

/// What stands between the braces, filled in.
fn date(template: &str, now: DateTime<Local>) -> Result<String, String> {
    let wrong = || not_understood(template);
    let (name, filter) = match template.split_once('|') {
        None => (template, None),
        Some((name, filter)) => (name, Some(filter)),
    };
    if name.trim() != "creation_date" {
        return Err(wrong());
    }
    let Some(filter) = filter else {
        return Ok(now.format("%Y-%m-%dT%H-%M-%S").to_string());
    };
    let (name, layout) = filter.split_once(':').ok_or_else(wrong)?;
    let layout = layout.trim();
    let quoted = ['\'', '"']
        .iter()
        .find_map(|q| layout.strip_prefix(*q)?.strip_suffix(*q));
    match (name.trim(), quoted) {
        ("date", Some(layout)) => Ok(now.format(&strftime(layout)).to_string()),
        _ => Err(wrong()),
    }
}

fn strftime(layout: &str) -> String {
    let mut out = String::new();
    let mut rest = layout;
    while let Some(c) = rest.chars().next() {
        if let Some((go, ours)) = LAYOUT.iter().find(|(go, _)| rest.starts_with(go)) {
            out.push_str(ours);
            rest = &rest[go.len()..];
        } else {
            if c == '%' {
                out.push('%');
            }
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use chrono::TimeZone;
    use proptest::prelude::*;

    fn filled(pattern: &str, taken: &[&str]) -> String {
        let now = Local.with_ymd_and_hms(2026, 11, 7, 9, 8, 7).unwrap();
        fill(pattern, now, taken).unwrap()
    }

    #[test]
    fn snapshots_are_numbered_after_the_highest() {
        assert_eq!(filled("snap%d", &[]), "snap0");
        assert_eq!(filled("snap%d", &["snap0", "snap7", "other"]), "snap8");
        assert_eq!(filled("daily", &[]), "daily");
        assert_eq!(filled("daily", &["daily", "daily-0"]), "daily-1");
        assert_eq!(filled("ä%dé", &["ä4é"]), "ä5é");
    }

    #[test]
    fn dates_are_laid_out_after_gos_example() {
        assert_eq!(filled("{{ creation_date }}", &[]), "2026-11-07T09-08-07");
        assert_eq!(
            filled("{{creation_date|date:'2006-01-02_15-04-05'}}", &[]),
            "2026-11-07_09-08-07"
        );
        assert_eq!(
            filled(
                "a-{{ creation_date | date:\"Jan-2-06\" }}-%d",
                &["a-Nov-7-26-3"]
            ),
            "a-Nov-7-26-4"
        );
        // A percent sign is one, not the beginning of ours.
        assert_eq!(filled("{{ creation_date|date:'15%Y' }}", &[]), "09%Y");
    }

    #[test]
    fn other_templates_are_refused() {
        for bad in [
            "{{ creation_date",
            "{{ name }}",
            "{{ creation_date|upper }}",
            "{{ creation_date|date:2006 }}",
            "{% if x %}",
            "a}}",
            "%d-%d",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_pattern_panics(text in "[{}%d| :'a-z0-9é]{0,40}") {
            let _ = check(&text);
        }

        #[test]
        fn any_layout_can_be_filled_in(layout in "[^'{}%]{0,30}") {
            let pattern = format!("{{{{ creation_date|date:'{layout}' }}}}");
            prop_assert!(check(&pattern).is_ok());
        }
    }
}
