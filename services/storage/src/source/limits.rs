//! Bounds on what an archive may make of itself.

use crate::error::{Error, Result};

/// The bounds. All of them are for one image.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of all files of an image together, holes included.
    #[schemars(extend("x-reload" = true))]
    pub max_bytes: u64,
    /// Files, directories, links and devices of an image.
    #[schemars(extend("x-reload" = true))]
    pub max_entries: u64,
    /// Times the packed size that the unpacked may have, from the first GiB on.
    #[schemars(extend("x-reload" = true))]
    pub max_ratio: u64,
    /// Bytes of `metadata.yaml`.
    #[schemars(extend("x-reload" = true))]
    pub max_metadata_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 256 << 30,
            max_entries: 4_000_000,
            max_ratio: 200,
            max_metadata_bytes: 1 << 20,
        }
    }
}

/// Below this much, small images of zeros are nobody's bomb.
const RATIO_FROM: u64 = 1 << 30;

/// What was unpacked so far.
#[derive(Debug)]
pub struct Meter {
    limits: Limits,
    packed: u64,
    bytes: u64,
    entries: u64,
}

impl Meter {
    /// `packed` is the size of all blobs of the image together.
    pub fn new(limits: Limits, packed: u64) -> Self {
        Self {
            limits,
            packed,
            bytes: 0,
            entries: 0,
        }
    }

    /// Counts one more entry.
    pub fn entry(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            return Err(Error::Archive(format!(
                "it holds more than {} entries",
                self.limits.max_entries
            )));
        }
        Ok(())
    }

    /// Counts bytes of contents before they are written.
    pub fn bytes(&mut self, n: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(n);
        if self.bytes > self.limits.max_bytes {
            return Err(Error::Archive(format!(
                "it unpacks to more than {} bytes",
                self.limits.max_bytes
            )));
        }
        let most = self
            .packed
            .saturating_mul(self.limits.max_ratio)
            .max(RATIO_FROM);
        if self.bytes > most {
            return Err(Error::Archive(format!(
                "it unpacks to more than {} times its size",
                self.limits.max_ratio
            )));
        }
        Ok(())
    }

    /// How many bytes may come out of a decoder, contents or not: what is left out, and headers, are work too.
    pub fn stream_limit(&self) -> u64 {
        let most = self.packed.saturating_mul(self.limits.max_ratio);
        most.max(RATIO_FROM)
            .min(self.limits.max_bytes)
            .saturating_add(self.limits.max_entries.saturating_mul(2048))
    }

    /// The most entries there may be.
    pub fn max_entries(&self) -> u64 {
        self.limits.max_entries
    }

    /// The most that metadata.yaml may hold.
    pub fn max_metadata_bytes(&self) -> u64 {
        self.limits.max_metadata_bytes
    }
}
