//! Names that users give.

use crate::Error;

/// Longest name of an instance: it becomes a host name.
const INSTANCE_MAX: usize = 63;
const OTHER_MAX: usize = 64;

/// A host name in lower or upper case: letters, digits and `-`, not starting with a digit or `-`, not
/// ending with `-`, not all digits.
pub fn instance(name: &str) -> Result<(), Error> {
    let bad = |why: &str| Error::invalid("name", format!("Invalid instance name {name:?}: {why}"));
    if name.is_empty() || name.len() > INSTANCE_MAX {
        return Err(bad("Name must be 1-63 characters long"));
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(bad(
            "Name can only contain alphanumeric and hyphen characters",
        ));
    }
    if name.as_bytes()[0].is_ascii_digit() || name.starts_with('-') {
        return Err(bad("Name must not start with a digit or a hyphen"));
    }
    if name.ends_with('-') {
        return Err(bad("Name must not end with a hyphen"));
    }
    Ok(())
}

fn segment(field: &'static str, kind: &str, name: &str) -> Result<(), Error> {
    let bad = |why: &str| Error::invalid(field, format!("Invalid {kind} name {name:?}: {why}"));
    if name.is_empty() {
        return Err(bad("No name provided"));
    }
    if name.len() > OTHER_MAX {
        return Err(bad("Name must not be longer than 64 bytes"));
    }
    if matches!(name, "." | "..") {
        return Err(bad("Name is reserved"));
    }
    if name
        .chars()
        .any(|c| c == '/' || c == '\\' || c.is_whitespace() || c.is_control())
    {
        return Err(bad(
            "Name can't contain slashes, spaces or control characters",
        ));
    }
    Ok(())
}

pub fn snapshot(name: &str) -> Result<(), Error> {
    segment("name", "snapshot", name)
}

pub fn profile(name: &str) -> Result<(), Error> {
    segment("name", "profile", name)
}

pub fn device(name: &str) -> Result<(), Error> {
    segment("devices", "device", name)
}

/// A link's name as the kernel takes it.
pub fn link(name: &str) -> Result<(), String> {
    let bad = |b: u8| b == b'/' || b == b':' || b.is_ascii_whitespace() || b.is_ascii_control();
    if name.is_empty() || name.len() > 15 || matches!(name, "." | "..") || name.bytes().any(bad) {
        return Err(format!("Invalid network interface name {name:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn instance_names() {
        for good in ["c1", "a", "Web-01", &"a".repeat(63)] {
            assert!(instance(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "1c",
            "-a",
            "a-",
            "a_b",
            "a.b",
            "a/b",
            "ä",
            &"a".repeat(64),
        ] {
            assert!(instance(bad).is_err(), "{bad}");
        }
        assert!(snapshot("snap.0_1").is_ok());
        assert!(snapshot("a/b").is_err());
        assert!(link("eth0").is_ok());
        assert!(link("a-name-too-long-by-far").is_err());
    }

    proptest! {
        #[test]
        fn good_names_are_host_names(name in ".{0,70}") {
            if instance(&name).is_ok() {
                prop_assert!(name.len() <= 63 && !name.contains(['.', '/', '\0', ' ']));
            }
        }
    }
}
