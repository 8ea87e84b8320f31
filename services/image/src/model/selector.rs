//! How a caller names an image.

use super::{AliasName, Prefix};
use std::collections::BTreeMap;

/// One way to name an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Exactly this alias.
    Alias(AliasName),
    /// The one fingerprint that begins so.
    Fingerprint(Prefix),
    /// The newest image that has all of these; never empty.
    Properties(BTreeMap<String, String>),
}
