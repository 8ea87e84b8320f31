//! Counters of a guest. A file that is not there is a counter this kernel does not have.

use super::limits::Version;
use super::{Dir, GuestCgroup};
use crate::protocol::MemoryState;
use crate::sys;

/// v1 shows "no limit" as the largest page-aligned number.
const V1_UNLIMITED: u64 = 1 << 62;

impl GuestCgroup {
    /// CPU time used, nanoseconds.
    pub(crate) fn cpu_ns(&self) -> Option<u64> {
        if let Some((dir, Version::V1)) = self.find("cpuacct") {
            return number(dir, "cpuacct.usage");
        }
        // cpu.stat is there without the controller, too.
        let text = sys::read_at(self.v2()?, "cpu.stat").ok()?;
        keyed(&text, "usage_usec").map(|us| us.saturating_mul(1000))
    }

    pub(crate) fn memory(&self) -> MemoryState {
        match self.find("memory") {
            Some((dir, Version::V1)) => v1_memory(dir),
            Some((dir, Version::V2)) => v2_memory(dir),
            None => MemoryState::default(),
        }
    }

    /// (tasks, limit).
    pub(crate) fn pids(&self) -> (Option<u64>, Option<u64>) {
        match self.find("pids") {
            Some((dir, _)) => (number(dir, "pids.current"), number(dir, "pids.max")),
            None => (None, None),
        }
    }
}

fn v1_memory(dir: &Dir) -> MemoryState {
    let usage = number(dir, "memory.usage_in_bytes");
    let peak = number(dir, "memory.max_usage_in_bytes");
    let minus = |both: Option<u64>, memory: Option<u64>| Some(both?.saturating_sub(memory?));
    let stat = sys::read_at(&dir.fd, "memory.stat").unwrap_or_default();
    let oom = sys::read_at(&dir.fd, "memory.oom_control").unwrap_or_default();
    MemoryState {
        usage,
        peak,
        limit: number(dir, "memory.limit_in_bytes").filter(|l| *l < V1_UNLIMITED),
        inactive_file: keyed(&stat, "total_inactive_file"),
        swap_usage: minus(number(dir, "memory.memsw.usage_in_bytes"), usage),
        swap_peak: minus(number(dir, "memory.memsw.max_usage_in_bytes"), peak),
        oom_kills: keyed(&oom, "oom_kill"),
    }
}

fn v2_memory(dir: &Dir) -> MemoryState {
    let stat = sys::read_at(&dir.fd, "memory.stat").unwrap_or_default();
    let events = sys::read_at(&dir.fd, "memory.events").unwrap_or_default();
    MemoryState {
        usage: number(dir, "memory.current"),
        peak: number(dir, "memory.peak"),
        limit: number(dir, "memory.max"),
        inactive_file: keyed(&stat, "inactive_file"),
        swap_usage: number(dir, "memory.swap.current"),
        swap_peak: number(dir, "memory.swap.peak"),
        oom_kills: keyed(&events, "oom_kill"),
    }
}

/// `None` for `max` as well.
fn number(dir: &Dir, file: &str) -> Option<u64> {
    sys::read_at(&dir.fd, file).ok()?.trim().parse().ok()
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
