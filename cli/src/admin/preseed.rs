//! The preseed document: LXD's YAML, read strictly.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Keys and values. YAML's plain scalars (`15`, `true`) keep the text they were written with.
pub(crate) type Config = BTreeMap<String, String>;

/// What `lxd init --preseed` takes. A field that is not here is refused by its name.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Preseed {
    /// Server keys.
    #[serde(default, deserialize_with = "absent_is_default")]
    pub config: Config,
    /// Managed networks.
    #[serde(default, deserialize_with = "absent_is_default")]
    pub networks: Vec<Network>,
    /// Storage pools.
    #[serde(default, deserialize_with = "absent_is_default")]
    pub storage_pools: Vec<Pool>,
    /// Profiles.
    #[serde(default, deserialize_with = "absent_is_default")]
    pub profiles: Vec<Profile>,
    /// Projects.
    #[serde(default, deserialize_with = "absent_is_default")]
    pub projects: Vec<Project>,
    /// Clustering, which this command does not set up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<serde_yaml_ng::Value>,
}

/// A network to make or update.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    #[serde(default, deserialize_with = "absent_is_default")]
    pub config: Config,
    #[serde(default)]
    pub description: String,
    pub name: String,
    /// Empty = bridge.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Empty = default.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub project: String,
}

/// A pool to make or update.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pool {
    #[serde(default, deserialize_with = "absent_is_default")]
    pub config: Config,
    #[serde(default)]
    pub description: String,
    pub name: String,
    #[serde(default)]
    pub driver: String,
}

/// A profile to make or update.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    #[serde(default, deserialize_with = "absent_is_default")]
    pub config: Config,
    #[serde(default)]
    pub description: String,
    #[serde(default, deserialize_with = "absent_is_default")]
    pub devices: BTreeMap<String, Config>,
    pub name: String,
}

/// A project to make or update.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Project {
    #[serde(default, deserialize_with = "absent_is_default")]
    pub config: Config,
    #[serde(default)]
    pub description: String,
    pub name: String,
}

impl Preseed {
    /// Reads a document; an empty one asks for nothing.
    ///
    /// # Errors
    /// Names the line and the field that is not known.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        // `Option` because a document of comments only is YAML's null.
        let read: Option<Self> =
            serde_yaml_ng::from_str(text).context("cannot read the preseed")?;
        Ok(read.unwrap_or_default())
    }
}

// YAML writers leave `config:` empty where there is nothing to say.
fn absent_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
