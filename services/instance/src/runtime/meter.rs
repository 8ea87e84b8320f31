//! Guests' numbers, read in this process: a list of many guests wakes none of their monitors.
//!
//! Counters come from the guests' cgroups, links from a route socket in the guest's network namespace that its
//! monitor hands over once a run. All of it blocks, for microseconds.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_monitor::error::{Fault, FaultCode};
use berth_monitor::meter::{Cgroups, Links};
use berth_monitor::protocol::MemoryState;
use berth_monitor::spec::PortSpec;

use super::Numbers;
use crate::model::spec::cgroup_name;

/// For how long a guest's droppable page cache is not looked up again. The kernel sums the cgroup's counters up
/// over all CPUs for it, which takes longer than everything else here; it does so by itself every two seconds.
const FRESH: Duration = Duration::from_secs(1);

/// What is kept of one run of a guest. It keeps the guest's network namespace, so it must go with the run.
#[derive(Debug)]
pub struct Meter {
    links: Links,
    inactive_file: Option<(Instant, Option<u64>)>,
    _counted: Arc<()>,
}

/// What all guests share.
#[derive(Debug, Default)]
pub struct Meters {
    cgroups: Mutex<Option<Arc<Cgroups>>>,
    /// Has one more owner for each meter.
    counted: Arc<()>,
}

fn broken(what: &str) -> Fault {
    Fault::new("meter", FaultCode::Kernel, what)
}

impl Meters {
    /// Whether this process has descriptors to spare for one more.
    pub(super) fn has_room(&self) -> bool {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let most = limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX) / 2);
        Arc::strong_count(&self.counted) < most
    }

    pub(super) fn meter(&self, route: OwnedFd) -> Meter {
        Meter {
            links: Links::new(route),
            inactive_file: None,
            _counted: self.counted.clone(),
        }
    }

    /// After an error the meter is of no use any more.
    pub(super) fn read(
        &self,
        parents: &[String],
        uid: &str,
        meter: &mut Meter,
        ports: &[PortSpec],
    ) -> Result<Numbers, Fault> {
        let cgroups = self.cgroups(parents)?;
        let name = cgroup_name(uid);
        let Some(usage) = cgroups.usage(&name) else {
            // The guest has ended, or the directories were made anew after the last guest's end.
            *self.cgroups.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Err(broken("the guest has no cgroups"));
        };
        let known = meter
            .inactive_file
            .filter(|(since, _)| since.elapsed() < FRESH);
        let (since, inactive_file) =
            known.unwrap_or_else(|| (Instant::now(), cgroups.inactive_file(&name)));
        meter.inactive_file = Some((since, inactive_file));
        Ok(Numbers {
            cpu_ns: usage.cpu_ns,
            memory: MemoryState {
                inactive_file,
                ..usage.memory
            },
            pids: usage.pids,
            links: meter.links.read(ports)?,
        })
    }

    fn cgroups(&self, parents: &[String]) -> Result<Arc<Cgroups>, Fault> {
        let mut known = self.cgroups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cgroups) = &*known {
            return Ok(cgroups.clone());
        }
        let parent = parents.first().ok_or_else(|| broken("no cgroup parent"))?;
        let opened = Cgroups::open(parent, parents.get(1).map(String::as_str))
            .map_err(|e| Fault::io("meter", &e, "opening the guests' cgroups"))?;
        Ok(known.insert(Arc::new(opened)).clone())
    }
}
