//! Counters of a guest. A file that is not there is a counter this kernel does not have.

use std::borrow::Cow;
use std::io;
use std::os::fd::OwnedFd;

use super::limits::Version;
use super::{Dir, GuestCgroup};
use crate::protocol::MemoryState;
use crate::sys;

/// v1 shows "no limit" as the largest page-aligned number.
const V1_UNLIMITED: u64 = 1 << 62;

/// Where a guest's counters are read: its own directories, or the same by name below their parents.
pub(crate) trait Counters {
    /// Which kind of hierarchy counts for a controller, where one does.
    fn version(&self, controller: &str) -> Option<Version>;

    /// The guest's directory for a controller and what to open in it for `file`; its v2 directory when there is
    /// no controller of that name.
    fn place<'a>(
        &'a self,
        controller: &str,
        file: &'a str,
    ) -> io::Result<(&'a OwnedFd, Cow<'a, str>)>;

    /// CPU time used, nanoseconds.
    fn cpu_ns(&self) -> Option<u64> {
        if let Some(Version::V1) = self.version("cpuacct") {
            return self.number("cpuacct", "cpuacct.usage");
        }
        // cpu.stat is there without the controller, too.
        let text = self.read("", "cpu.stat").ok()?;
        keyed(&text, "usage_usec").map(|us| us.saturating_mul(1000))
    }

    /// Usage and limits of memory; not what the kernel keeps in other files.
    fn memory(&self) -> MemoryState {
        match self.version("memory") {
            Some(Version::V1) => {
                let number = |file| self.number("memory", file);
                let usage = number("memory.usage_in_bytes");
                let peak = number("memory.max_usage_in_bytes");
                let minus =
                    |both: Option<u64>, memory: Option<u64>| Some(both?.saturating_sub(memory?));
                MemoryState {
                    usage,
                    peak,
                    limit: number("memory.limit_in_bytes").filter(|l| *l < V1_UNLIMITED),
                    swap_usage: minus(number("memory.memsw.usage_in_bytes"), usage),
                    swap_peak: minus(number("memory.memsw.max_usage_in_bytes"), peak),
                    ..MemoryState::default()
                }
            }
            Some(Version::V2) => {
                let number = |file| self.number("memory", file);
                MemoryState {
                    usage: number("memory.current"),
                    peak: number("memory.peak"),
                    limit: number("memory.max"),
                    swap_usage: number("memory.swap.current"),
                    swap_peak: number("memory.swap.peak"),
                    ..MemoryState::default()
                }
            }
            None => MemoryState::default(),
        }
    }

    /// Page cache that could be dropped. For this one number the kernel sums up all counters of the cgroup over
    /// all CPUs: it costs more than all the others together.
    fn inactive_file(&self) -> Option<u64> {
        let key = match self.version("memory")? {
            Version::V1 => "total_inactive_file",
            Version::V2 => "inactive_file",
        };
        keyed(&self.read("memory", "memory.stat").ok()?, key)
    }

    /// How often the kernel killed one for want of memory.
    fn oom_kills(&self) -> Option<u64> {
        let file = match self.version("memory")? {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        keyed(&self.read("memory", file).ok()?, "oom_kill")
    }

    /// Tasks now.
    fn pids(&self) -> Option<u64> {
        self.version("pids")?;
        self.number("pids", "pids.current")
    }

    /// Tasks at most.
    fn pids_limit(&self) -> Option<u64> {
        self.version("pids")?;
        self.number("pids", "pids.max")
    }

    fn read(&self, controller: &str, file: &str) -> io::Result<String> {
        let (dir, file) = self.place(controller, file)?;
        sys::read_at(dir, &file)
    }

    /// `None` for `max` as well.
    fn number(&self, controller: &str, file: &str) -> Option<u64> {
        let (dir, file) = self.place(controller, file).ok()?;
        sys::read_line_at(dir, &file).ok()?.trim().parse().ok()
    }
}

impl Counters for GuestCgroup {
    fn version(&self, controller: &str) -> Option<Version> {
        self.find(controller).map(|(_, version)| version)
    }

    fn place<'a>(
        &'a self,
        controller: &str,
        file: &'a str,
    ) -> io::Result<(&'a OwnedFd, Cow<'a, str>)> {
        let dir = match self.find(controller) {
            Some((Dir { fd, .. }, _)) => fd,
            None => self.v2_dir().ok_or(io::ErrorKind::NotFound)?,
        };
        Ok((dir, Cow::Borrowed(file)))
    }
}

/// Value of a `key value` line.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(key)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_match_whole_words() {
        let text = "total_inactive_file 7\ninactive_file_x 3\ninactive_file 5\n";
        assert_eq!(super::keyed(text, "inactive_file"), Some(5));
        assert_eq!(super::keyed(text, "inactive"), None);
    }
}
