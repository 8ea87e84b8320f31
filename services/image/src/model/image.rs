//! An image's record.

use super::{Fingerprint, Format};
use std::collections::BTreeMap;

/// What an image makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A system container.
    Container,
    /// A virtual machine.
    VirtualMachine,
}

impl Kind {
    /// As LXD and the database write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::VirtualMachine => "virtual-machine",
        }
    }

    /// The inverse of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Container, Self::VirtualMachine]
            .into_iter()
            .find(|k| k.as_str() == text)
    }
}

/// Which part of an image a blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Everything in one archive.
    Unified,
    /// metadata.yaml and templates/.
    Metadata,
    /// The root filesystem or disk.
    Rootfs,
}

impl Part {
    /// As the database writes it, and users read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unified => "unified",
            Self::Metadata => "metadata",
            Self::Rootfs => "rootfs",
        }
    }

    /// The inverse of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Unified, Self::Metadata, Self::Rootfs]
            .into_iter()
            .find(|p| p.as_str() == text)
    }
}

/// One file of an image. Two images may share one (the same rootfs under other metadata).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// What it holds.
    pub part: Part,
    /// sha256 of its bytes; names the file.
    pub digest: Fingerprint,
    /// Length in bytes.
    pub size: u64,
    /// Told by its magic when it came.
    pub format: Format,
}

/// Someone uses the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Resource name of the user.
    pub holder: String,
    /// Who may release it.
    pub authority: String,
    /// Milliseconds since the epoch; the hold counts until then.
    pub expires_at: Option<i64>,
}

impl Hold {
    /// Whether it still counts at `now` (milliseconds since the epoch).
    pub fn is_live(&self, now: i64) -> bool {
        self.expires_at.is_none_or(|at| at > now)
    }
}

/// An image. All times are milliseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// sha256 over all its parts' bytes.
    pub fingerprint: Fingerprint,
    /// What it makes.
    pub kind: Kind,
    /// Kernel name.
    pub architecture: String,
    /// As uploaded.
    pub filename: String,
    /// Visible to untrusted clients.
    pub public: bool,
    /// Follows its source.
    pub auto_update: bool,
    /// Fetched for an instance and dropped when unused.
    pub cached: bool,
    /// Free text by key.
    pub properties: BTreeMap<String, String>,
    /// For instances that name no profiles.
    pub profiles: Vec<String>,
    /// In the order in which they were hashed: unified, or metadata then rootfs.
    pub blobs: Vec<Blob>,
    /// From metadata.yaml.
    pub created_at: i64,
    /// When it came here.
    pub uploaded_at: i64,
    /// Informational, except for cached images.
    pub expires_at: Option<i64>,
    /// Last time an instance was made from it.
    pub last_used_at: Option<i64>,
    /// By holder; expired ones may linger and don't count.
    pub holds: BTreeMap<String, Hold>,
}

impl Image {
    /// Sum of its parts.
    pub fn size(&self) -> u64 {
        self.blobs.iter().map(|b| b.size).sum()
    }

    /// Holders that count at `now`.
    pub fn holders(&self, now: i64) -> Vec<String> {
        self.holds
            .values()
            .filter(|h| h.is_live(now))
            .map(|h| h.holder.clone())
            .collect()
    }

    /// Changes with what a client may write, and with nothing else: a launch that touches the
    /// image doesn't spoil an edit under way.
    pub fn etag(&self) -> String {
        let expires = self.expires_at.map(|t| t.to_string()).unwrap_or_default();
        let counts = format!("{} {}", self.properties.len(), self.profiles.len());
        let mut parts = vec![
            self.fingerprint.as_str(),
            if self.public { "public" } else { "" },
            if self.auto_update { "auto" } else { "" },
            &expires,
            &counts,
        ];
        for (key, value) in &self.properties {
            parts.extend([key.as_str(), value.as_str()]);
        }
        parts.extend(self.profiles.iter().map(String::as_str));
        berth_rpc::etag(parts)
    }
}

/// Most properties an image has.
pub const MAX_PROPERTIES: usize = 1024;
/// Bytes of a property's key.
pub const MAX_PROPERTY_KEY: usize = 255;
/// Bytes of a property's value.
pub const MAX_PROPERTY_VALUE: usize = 64 << 10;

/// Bytes of all properties together, so that an image fits in a message.
pub const MAX_PROPERTIES_SIZE: usize = 1 << 20;

/// Checks properties as a whole and one by one; the error is the key at fault, where it is one,
/// and a sentence for users.
pub fn check_properties<'a>(
    properties: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<(), (Option<String>, String)> {
    let (mut count, mut size) = (0usize, 0usize);
    for (key, value) in properties {
        check_property(key, value).map_err(|sentence| (Some(key.clone()), sentence))?;
        count += 1;
        size = size.saturating_add(key.len()).saturating_add(value.len());
        if count > MAX_PROPERTIES || size > MAX_PROPERTIES_SIZE {
            let sentence = format!(
                "an image has at most {MAX_PROPERTIES} properties and {MAX_PROPERTIES_SIZE} bytes of them"
            );
            return Err((None, sentence));
        }
    }
    Ok(())
}

/// Checks a property; the error is a sentence for users.
pub fn check_property(key: &str, value: &str) -> Result<(), String> {
    if key.is_empty() || key.len() > MAX_PROPERTY_KEY || key.chars().any(char::is_control) {
        return Err(format!(
            "property {key:?} must have a name of 1 to {MAX_PROPERTY_KEY} bytes without control characters"
        ));
    }
    // They become `image.*` keys of instances, which end up in line-based files and environments.
    if value.contains('\0') {
        return Err(format!("property {key:?} must not hold a NUL byte"));
    }
    if value.len() > MAX_PROPERTY_VALUE {
        return Err(format!(
            "property {key:?} is longer than {MAX_PROPERTY_VALUE} bytes"
        ));
    }
    Ok(())
}
