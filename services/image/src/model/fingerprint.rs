//! Fingerprints: the sha256 over an image's bytes as they were uploaded.

use std::fmt;

/// 64 lowercase hex digits. Built only from a digest or a checked text, so that it can be a file
/// name: a fingerprint that a client sends never reaches a path unchecked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// From the 32 bytes of a sha256.
    pub fn from_digest(digest: impl AsRef<[u8]>) -> Self {
        Self(hex::encode(digest))
    }

    /// `None` unless `text` is 64 hex digits; upper case is lowered.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| Self(text.to_ascii_lowercase()))
    }

    /// The 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Fingerprint {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The beginning of a fingerprint, 1 to 64 lowercase hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// `None` unless `text` is 1 to 64 hex digits; upper case is lowered.
    pub fn parse(text: &str) -> Option<Self> {
        (!text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| Self(text.to_ascii_lowercase()))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_that_is_a_path_is_a_fingerprint() {
        for bad in ["", "..", "/etc/passwd", "g", &"a".repeat(65), "ab/cd", "é"] {
            assert!(Fingerprint::parse(bad).is_none(), "{bad}");
            assert!(Prefix::parse(bad).is_none(), "{bad}");
        }
        assert!(Fingerprint::parse("ab").is_none());
        assert_eq!(Prefix::parse("AB").unwrap().as_str(), "ab");
    }

    proptest! {
        #[test]
        fn every_digest_is_a_fingerprint(bytes: [u8; 32]) {
            let fingerprint = Fingerprint::from_digest(bytes);
            prop_assert_eq!(Fingerprint::parse(fingerprint.as_str()), Some(fingerprint.clone()));
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,80}") {
            if let Some(prefix) = Prefix::parse(&text) {
                prop_assert!(prefix.as_str().bytes().all(|b| b.is_ascii_hexdigit()));
            }
        }
    }
}
