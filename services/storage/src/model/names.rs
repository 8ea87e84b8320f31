//! Names of pools, volumes and snapshots.

use berth_rpc::Error;

/// The collections of volumes, in the words of the API.
pub const COLLECTIONS: [&str; 4] = ["containers", "virtualMachines", "images", "custom"];

fn check(field: &str, kind: &str, name: &str, most: usize) -> Result<(), Error> {
    let bad = |why: &str| Error::invalid(field, format!("{kind} name {name:?} {why}"));
    if name.is_empty() {
        return Err(Error::invalid(field, format!("{kind} name is empty")));
    }
    if name.len() > most {
        return Err(bad(&format!("is longer than {most} bytes")));
    }
    if name == "." || name == ".." || name == "-" {
        return Err(bad("is reserved"));
    }
    if name
        .chars()
        .any(|c| c == '/' || c == '\\' || c.is_control() || c.is_whitespace())
    {
        return Err(bad("holds a slash, a blank or a control character"));
    }
    Ok(())
}

/// A pool's name: also a filesystem's label, so short and plain.
pub fn pool(field: &str, name: &str) -> Result<(), Error> {
    check(field, "Pool", name, 63)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.chars().all(plain) || name.starts_with('-') {
        return Err(Error::invalid(
            field,
            format!("Pool name {name:?} may hold letters, digits, \"-\", \"_\" and \".\" only"),
        ));
    }
    Ok(())
}

/// A collection's name.
pub fn collection(field: &str, name: &str) -> Result<(), Error> {
    if COLLECTIONS.contains(&name) {
        return Ok(());
    }
    Err(Error::invalid(
        field,
        format!(
            "Unknown volume collection {name:?}: use one of {}",
            COLLECTIONS.join(", ")
        ),
    ))
}

/// A volume's name.
pub fn volume(field: &str, name: &str) -> Result<(), Error> {
    check(field, "Volume", name, 255)
}

/// A snapshot's name.
pub fn snapshot(field: &str, name: &str) -> Result<(), Error> {
    check(field, "Snapshot", name, 255)
}

/// A sha256 in lowercase hex.
pub fn fingerprint(field: &str, text: &str) -> Result<(), Error> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() == 64 && text.bytes().all(hex) {
        return Ok(());
    }
    Err(Error::invalid(
        field,
        format!("Image fingerprint {text:?} is not 64 lowercase hexadecimal digits"),
    ))
}

/// A project's name as it stands in resource names; its record is kept elsewhere.
pub fn project(field: &str, name: &str) -> Result<(), Error> {
    check(field, "Project", name, 63)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_could_be_a_path_is_refused() {
        for bad in ["", ".", "..", "-", "a/b", "a\\b", "a b", "a\nb", "a\0"] {
            assert!(volume("volume_id", bad).is_err(), "{bad:?}");
        }
        assert!(volume("volume_id", "c1_data.2").is_ok());
        assert!(pool("pool_id", "-q").is_err());
        assert!(pool("pool_id", "späti").is_err());
        assert!(fingerprint("f", &"a".repeat(64)).is_ok());
        assert!(fingerprint("f", &"A".repeat(64)).is_err());
        assert!(fingerprint("f", "../../etc").is_err());
    }

    proptest! {
        #[test]
        fn an_accepted_name_is_one_segment(name in "\\PC{0,40}") {
            if volume("volume_id", &name).is_ok() {
                let full = berth_rpc::names::Volume::new("p", "s", "custom", name.clone());
                let back = berth_rpc::names::Volume::parse("name", &full.to_string());
                prop_assert_eq!(back.map(|v| v.volume).ok(), Some(name));
            }
        }
    }
}
