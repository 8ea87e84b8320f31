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
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        return wrong("Name must not start with a number");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_host_names() {
        assert!(validate_name("c1").is_ok());
        assert!(validate_name(&random_name()).is_ok());
        for bad in ["", "c_1", "-a", "a-", "123", "1a", "a/b", "ä"] {
            assert!(validate_name(bad).is_err(), "{bad}");
        }
        assert!(validate_name(&"a".repeat(64)).is_err());
    }
}
