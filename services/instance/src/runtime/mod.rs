//! Guests' monitors: starting them, finding them, speaking to them.
//!
//! [`Runtime`] is the seam: [`host::Host`] starts real monitors, [`fake::Fake`] answers the same protocol
//! without a kernel.

pub mod apparmor;
#[doc(hidden)]
pub mod fake;
pub mod host;
pub mod link;
mod link_fds;
pub mod meter;
pub mod scope;
pub mod seccomp;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use berth_monitor::error::Fault;
use berth_monitor::protocol::{Ended, LinkState, MemoryState, State};
use berth_monitor::spec::{Attachment, PortSpec, Spec};
use tokio::net::UnixStream;

use crate::Error;
use crate::host::ids::IdView;
use crate::host::rootfs::GuestRoot;
use crate::host::templates::{Guest, Templates};
use crate::model::template::Trigger;
use meter::Meter;

/// A guest that just started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    pub init_pid: i32,
    pub monitor_pid: i32,
}

/// What a guest uses now; a part that the kernel does not tell is absent.
#[derive(Debug, Clone, Default)]
pub struct Numbers {
    pub cpu_ns: Option<u64>,
    pub memory: MemoryState,
    pub pids: Option<u64>,
    pub links: Vec<LinkState>,
}

impl From<State> for Numbers {
    fn from(state: State) -> Numbers {
        Numbers {
            cpu_ns: state.cpu_ns,
            memory: state.memory,
            pids: state.pids,
            links: state.links,
        }
    }
}

/// The guest's root directory and user namespace, for work on its files.
#[derive(Debug)]
struct Root {
    dir: OwnedFd,
    /// Held until the root is no longer used, so that its ids keep their meaning.
    userns: OwnedFd,
}

/// Templates to render before a start.
#[derive(Debug, Clone)]
pub struct TemplateJob {
    /// The volume's top.
    pub attachment: Attachment,
    pub ids: IdView,
    /// The image's templates where they were read before.
    pub known: Option<Arc<Templates>>,
    pub triggers: Vec<Trigger>,
    pub guest: Guest,
}

/// Where a guest's files are.
#[derive(Debug, Clone)]
pub enum Place {
    Running {
        uid: String,
        ids: IdView,
    },
    /// The volume's top.
    Stopped {
        attachment: Attachment,
        ids: IdView,
    },
}

/// Where guests run. Instances are named by uid.
#[async_trait::async_trait]
pub trait Runtime: Send + Sync + std::fmt::Debug {
    /// Paths for a spec: run directory and log directory, both made.
    async fn directories(&self, uid: &str) -> std::io::Result<(String, String)>;
    /// Starts a monitor and with it the guest. On an error nothing of it is left.
    async fn start(&self, spec: Spec) -> Result<Started, Fault>;
    /// A new connection to the monitor; `NotFound` or `ConnectionRefused` when there is none.
    async fn connect(&self, uid: &str) -> std::io::Result<UnixStream>;
    /// Opens what [`measure`](Self::measure) needs of a guest's present run; blocks until its monitor answered.
    fn open_meter(&self, uid: &str) -> Result<Meter, Fault>;

    /// What a guest uses, without asking its monitor; blocks for microseconds. After an error the meter is of no
    /// use any more.
    fn measure(&self, uid: &str, meter: &mut Meter, ports: &[PortSpec]) -> Result<Numbers, Fault>;

    /// What the last monitor wrote at its end.
    async fn ended(&self, uid: &str) -> Option<Ended>;
    /// Uids that have a run directory.
    async fn known(&self) -> std::io::Result<Vec<String>>;
    /// Removes the run directory, and with `all` the cgroups that a dead monitor left. Logs stay.
    async fn clean(&self, uid: &str, all: bool) -> std::io::Result<()>;
    /// Renders due templates into a stopped guest; gives all that its image has.
    async fn render_templates(&self, job: TemplateJob) -> Result<Arc<Templates>, Error>;
    /// The guest's root directory.
    async fn root(&self, place: Place) -> Result<GuestRoot, Error>;
    /// Removes an instance's logs.
    async fn remove_logs(&self, uid: &str) -> std::io::Result<()>;
    /// Directory of an instance's logs.
    fn log_dir(&self, uid: &str) -> std::path::PathBuf;
}
