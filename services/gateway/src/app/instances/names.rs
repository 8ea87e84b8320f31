//! Names of instances and snapshots, as clients may give them.

use berth_rpc::Error;
use rand::seq::IndexedRandom;

const ADJECTIVES: [&str; 32] = [
    "able", "amber", "bold", "brave", "brisk", "calm", "clear", "clever", "cosy", "deep", "eager",
    "early", "fair", "fond", "frank", "fresh", "gentle", "glad", "golden", "keen", "kind", "light",
    "lucky", "merry", "mild", "noble", "proud", "quick", "quiet", "ready", "steady", "warm",
];

const SHIPS: [&str; 32] = [
    "barge", "bark", "boat", "brig", "canoe", "clipper", "cog", "coracle", "cutter", "dhow",
    "dinghy", "ferry", "frigate", "galley", "gig", "junk", "kayak", "ketch", "launch", "lugger",
    "packet", "pinnace", "prow", "punt", "raft", "schooner", "skiff", "sloop", "tender", "tug",
    "wherry", "yawl",
];

/// A name for an instance that was given none; the number makes a clash unlikely.
pub fn random_name() -> String {
    let mut random = rand::rng();
    let adjective = ADJECTIVES.choose(&mut random).copied().unwrap_or("calm");
    let ship = SHIPS.choose(&mut random).copied().unwrap_or("boat");
    let number: u16 = rand::random();
    format!("{adjective}-{ship}-{number}")
}

/// Whether an instance may be called that: it becomes a host name.
///
/// # Errors
/// LXD's sentence.
pub fn validate_name(name: &str) -> Result<(), Error> {
    let wrong = |why: &str| {
        Err(Error::invalid(
            "name",
            format!("Invalid instance name: {why}"),
        ))
    };
    if name.contains('/') {
        return Err(Error::invalid(
            "name",
            "The character \"/\" is reserved for snapshots",
        ));
    }
    if name.is_empty() || name.len() > 63 {
        return wrong("Name must be 1-63 characters long");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return wrong("Name can only contain alphanumeric and hyphen characters");
    }
    if name.starts_with('-') {
        return wrong("Name must not start with \"-\" character");
    }
    if name.ends_with('-') {
        return wrong("Name must not end with \"-\" character");
    }
    if name.bytes().all(|b| b.is_ascii_digit()) {
        return wrong("Name must not be a number");
    }
    Ok(())
}

/// Whether a snapshot may be called that.
///
/// # Errors
/// LXD's sentence.
pub(super) fn validate_snapshot_name(name: &str) -> Result<(), Error> {
    let wrong = |why: &str| {
        Err(Error::invalid(
            "name",
            format!("Invalid snapshot name: {why}"),
        ))
    };
    if name.is_empty() {
        return wrong("Cannot be empty");
    }
    if name.contains('/') {
        return wrong("Cannot contain \"/\"");
    }
    if name == "." || name == ".." || name.contains(char::is_whitespace) {
        return wrong("Cannot be \".\" or \"..\" or contain spaces");
    }
    if name.len() > 255 || name.chars().any(char::is_control) {
        return wrong("Must be printable and at most 255 bytes long");
    }
    Ok(())
}

/// The next free name of a pattern with one `%d`.
pub(super) fn next_snapshot_name(pattern: &str, taken: &[String]) -> Result<String, Error> {
    if pattern.contains("{{") {
        return Err(Error::unimplemented(
            "Templates in snapshots.pattern (only %d is filled in)",
        ));
    }
    let Some((before, after)) = pattern.split_once("%d") else {
        // Without a number the pattern itself is the name, and numbers follow when it is taken.
        if !taken.iter().any(|name| name == pattern) {
            return Ok(pattern.to_owned());
        }
        return next_snapshot_name(&format!("{pattern}-%d"), taken);
    };
    let next = taken
        .iter()
        .filter_map(|name| {
            name.strip_prefix(before)?
                .strip_suffix(after)?
                .parse::<u64>()
                .ok()
        })
        .max()
        .map_or(0, |n| n + 1);
    Ok(format!("{before}{next}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_numbered_after_the_highest() {
        let taken = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let next = |pattern, names: &[&str]| next_snapshot_name(pattern, &taken(names)).unwrap();
        assert_eq!(next("snap%d", &[]), "snap0");
        assert_eq!(next("snap%d", &["snap0", "snap7", "other"]), "snap8");
        assert_eq!(next("daily", &[]), "daily");
        assert_eq!(next("daily", &["daily", "daily-0"]), "daily-1");
        assert!(next_snapshot_name("{{ creation_date }}", &[]).is_err());
    }

    #[test]
    fn names_are_host_names() {
        assert!(validate_name("c1").is_ok());
        assert!(validate_name(&random_name()).is_ok());
        for bad in ["", "c_1", "-a", "a-", "123", "a/b", "ä"] {
            assert!(validate_name(bad).is_err(), "{bad}");
        }
        assert!(validate_name(&"a".repeat(64)).is_err());
    }
}
