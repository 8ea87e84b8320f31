//! Aliases: names for images, one namespace per project.

use super::{Fingerprint, Kind};
use std::fmt;

/// Longest alias in bytes.
pub const MAX_LENGTH: usize = 255;

/// The text of an alias. May hold `/` and `.`, since `debian/12/amd64` is how users name images.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AliasName(String);

impl AliasName {
    /// The error is a sentence for users.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an alias must not be empty".to_owned());
        }
        if text.len() > MAX_LENGTH {
            return Err(format!("an alias has at most {MAX_LENGTH} bytes"));
        }
        if text.chars().any(char::is_control) {
            return Err("an alias must not hold control characters".to_owned());
        }
        if text.trim() != text {
            return Err("an alias must not begin or end with blanks".to_owned());
        }
        Ok(Self(text.to_owned()))
    }

    /// Sorts before every alias there can be.
    pub(super) fn first() -> Self {
        Self(String::new())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for AliasName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AliasName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An alias and what it points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// Unique in its project.
    pub name: AliasName,
    /// Free text.
    pub description: String,
    /// Always an image that exists.
    pub target: Fingerprint,
    /// The target's.
    pub kind: Kind,
}

impl Alias {
    /// Changes with what a client may write.
    pub fn etag(&self) -> String {
        berth_rpc::etag([
            self.name.as_str(),
            self.description.as_str(),
            self.target.as_str(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn aliases_may_look_like_paths_and_hosts() {
        for good in ["debian/12", "ubuntu/22.04/cloud", "a.b", "..", "ü", "a b"] {
            assert_eq!(AliasName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", " a", "a\n", "a\0b", &"x".repeat(256)] {
            assert!(AliasName::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_keeps_the_text_or_refuses(text in ".{0,300}") {
            if let Ok(name) = AliasName::parse(&text) {
                prop_assert_eq!(name.as_str(), text.as_str());
            }
        }
    }
}
