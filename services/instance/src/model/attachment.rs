//! Values that storage and network made for an instance, as they are kept with it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What to mount to reach a volume.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attachment {
    /// Resource name of the volume.
    pub volume: String,
    pub volume_uid: String,
    /// Grows whenever the contents were replaced.
    pub generation: i64,
    /// The first is the volume's top.
    pub mounts: Vec<Mount>,
    pub needs_freeze: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: Source,
    pub fs_type: String,
    pub fs_options: Vec<String>,
    /// Beneath the filesystem's root.
    pub subpath: String,
    pub read_only: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    pub fs_uuid: String,
    pub ownership: Ownership,
    pub can_idmap: bool,
    /// Below the volume's top; empty for the first.
    pub target: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    Device {
        path: String,
        diskseq: i64,
    },
    HostPath(String),
    Dataset(String),
    Remote {
        url: String,
        options: BTreeMap<String, String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ownership {
    Raw,
    Shifted,
    Unmapped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortKind {
    Bridged,
    P2p,
    Routed,
    Macvlan,
    Ipvlan,
    Physical,
    Vf,
    Tap,
}

/// A link that is declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Resource name.
    pub name: String,
    pub uid: String,
    pub kind: PortKind,
    pub host_name: String,
    pub guest_name: String,
    pub mac: String,
    /// 0: the parent's.
    pub mtu: u32,
    pub parent: String,
    pub addresses: Vec<String>,
    pub routes: Vec<String>,
    pub ingress_bps: i64,
    pub egress_bps: i64,
    pub host_mac: String,
    pub generation: i64,
    pub holder: String,
}
