//! What is known of an instance, a snapshot, a profile: the records, without any behaviour of the host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::attachment::{Attachment, Port};
use super::idmap::IdRange;
use super::keys::Config;

/// Options of one device, `type` among them.
pub type Device = BTreeMap<String, String>;
/// Devices by name.
pub type Devices = BTreeMap<String, Device>;

/// Milliseconds since the epoch.
pub type Millis = i64;

/// An instance as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// UUID; stays through renames.
    pub uid: String,
    pub project: String,
    pub name: String,
    pub description: String,
    /// Kernel name, e.g. `x86_64`.
    pub architecture: String,
    pub ephemeral: bool,
    pub config: Config,
    pub devices: Devices,
    /// Applied in order.
    pub profiles: Vec<String>,
    pub create_time: Millis,
    /// 0: never started.
    pub last_used_time: Millis,
    /// Counts runs; grows with every start and every reboot from inside.
    pub generation: i64,
    /// Set while it should run: it is started again after the host booted.
    pub running: bool,
    /// Its own range of host ids. Kept also while it is privileged.
    pub ids: IdRange,
    /// By device name.
    #[serde(default)]
    pub attachments: BTreeMap<String, Attachment>,
    #[serde(default)]
    pub ports: BTreeMap<String, Port>,
}

impl Instance {
    /// `projects/{p}/instances/{i}`.
    pub fn resource(&self) -> String {
        resource(&self.project, &self.name)
    }
}

/// Resource name of an instance.
pub fn resource(project: &str, name: &str) -> String {
    format!("projects/{project}/instances/{name}")
}

/// An instance's configuration as it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub uid: String,
    pub name: String,
    pub description: String,
    pub create_time: Millis,
    /// 0: never.
    pub expire_time: Millis,
    pub last_used_time: Millis,
    pub ephemeral: bool,
    pub architecture: String,
    pub config: Config,
    pub devices: Devices,
    pub profiles: Vec<String>,
    pub expanded_config: Config,
    pub expanded_devices: Devices,
    pub ids: IdRange,
}

/// Configuration that many instances share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub uid: String,
    pub project: String,
    pub name: String,
    pub description: String,
    pub config: Config,
    pub devices: Devices,
}

impl Profile {
    pub fn resource(&self) -> String {
        profile_resource(&self.project, &self.name)
    }

    /// Over the writable fields.
    pub fn etag(&self) -> String {
        etag(&(&self.description, &self.config, &self.devices))
    }
}

/// Resource name of a profile.
pub fn profile_resource(project: &str, name: &str) -> String {
    format!("projects/{project}/profiles/{name}")
}

/// What a client may write of an instance.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Writable {
    pub description: String,
    pub architecture: String,
    pub ephemeral: bool,
    pub config: Config,
    pub devices: Devices,
    pub profiles: Vec<String>,
}

impl Instance {
    pub fn writable(&self) -> Writable {
        Writable {
            description: self.description.clone(),
            architecture: self.architecture.clone(),
            ephemeral: self.ephemeral,
            config: self.config.clone(),
            devices: self.devices.clone(),
            profiles: self.profiles.clone(),
        }
    }

    pub fn set_writable(&mut self, writable: Writable) {
        self.description = writable.description;
        self.architecture = writable.architecture;
        self.ephemeral = writable.ephemeral;
        self.config = writable.config;
        self.devices = writable.devices;
        self.profiles = writable.profiles;
    }

    pub fn etag(&self) -> String {
        etag(&self.writable())
    }
}

impl Snapshot {
    pub fn etag(&self) -> String {
        etag(&self.expire_time)
    }
}

/// Hash over the JSON of a value; maps are sorted, so equal values have equal etags.
pub fn etag(value: &impl Serialize) -> String {
    // Strings and maps of strings always serialise; an empty text would only make the etag differ.
    berth_rpc::etag([serde_json::to_string(value).unwrap_or_default().as_str()])
}

/// What an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    Stopped,
    Starting,
    Running,
    Freezing,
    Frozen,
    Stopping,
    Error,
}

impl Status {
    /// A guest's processes exist.
    pub fn is_active(self) -> bool {
        matches!(
            self,
            Status::Running | Status::Freezing | Status::Frozen | Status::Stopping
        )
    }
}
