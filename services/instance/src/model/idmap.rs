//! Ranges of host ids: every instance has one of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Ids `base..base+len` on the host are `0..len` in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    pub base: u32,
    pub len: u32,
}

impl IdRange {
    /// LXD's JSON for `volatile.idmap.*`.
    pub fn volatile(self) -> String {
        let entry = |uid: bool| {
            format!(
                "{{\"Isuid\":{uid},\"Isgid\":{gid},\"Hostid\":{base},\"Nsid\":0,\"Maprange\":{len}}}",
                gid = !uid,
                base = self.base,
                len = self.len
            )
        };
        format!("[{},{}]", entry(true), entry(false))
    }
}

/// Which ids are given away; the ranges never overlap.
#[derive(Debug)]
pub struct IdSpace {
    base: u64,
    end: u64,
    /// Length by base.
    used: BTreeMap<u64, u64>,
}

impl IdSpace {
    /// `base..base+count` may be given.
    pub fn new(base: u32, count: u32) -> IdSpace {
        let base = u64::from(base);
        IdSpace {
            base,
            end: base + u64::from(count),
            used: BTreeMap::new(),
        }
    }

    /// Marks a stored range; `false` when it overlaps another.
    pub fn take(&mut self, range: IdRange) -> bool {
        let (base, end) = (
            u64::from(range.base),
            u64::from(range.base) + u64::from(range.len),
        );
        let before = self.used.range(..end).next_back();
        if before.is_some_and(|(b, len)| b + len > base) {
            return false;
        }
        self.used.insert(base, end - base);
        true
    }

    /// The lowest free range of `len`, aligned to 65,536 where the base is.
    pub fn allocate(&mut self, len: u32) -> Option<IdRange> {
        let len64 = u64::from(len);
        let step = 65_536;
        let align = |at: u64| self.base + (at - self.base).div_ceil(step) * step;
        let mut at = self.base;
        for (&base, &used) in &self.used {
            if base + used <= at {
                continue;
            }
            if base >= at + len64 {
                break;
            }
            at = align(base + used);
        }
        if at + len64 > self.end {
            return None;
        }
        self.used.insert(at, len64);
        Some(IdRange {
            base: u32::try_from(at).ok()?,
            len,
        })
    }

    pub fn free(&mut self, range: IdRange) {
        self.used.remove(&u64::from(range.base));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_freed_range_is_given_again() {
        let mut space = IdSpace::new(1_000_000, 200_000);
        let first = space.allocate(65_536).unwrap();
        assert_eq!(first.base, 1_000_000);
        let second = space.allocate(65_536).unwrap();
        let third = space.allocate(65_536).unwrap();
        assert!(space.allocate(65_536).is_none());
        space.free(second);
        assert_eq!(space.allocate(65_536), Some(second));
        assert!(!space.take(IdRange {
            base: third.base + 1,
            len: 5
        }));
    }

    proptest! {
        #[test]
        fn ranges_never_overlap(ops in proptest::collection::vec((any::<bool>(), 1u32..200_000), 1..60)) {
            let mut space = IdSpace::new(1_000_000, 10_000_000);
            let mut given: Vec<IdRange> = Vec::new();
            for (allocate, n) in ops {
                if allocate {
                    if let Some(range) = space.allocate(n) {
                        let end = |r: &IdRange| u64::from(r.base) + u64::from(r.len);
                        for other in &given {
                            prop_assert!(end(&range) <= u64::from(other.base) || end(other) <= u64::from(range.base));
                        }
                        prop_assert!(range.base >= 1_000_000 && end(&range) <= 11_000_000);
                        given.push(range);
                    }
                } else if !given.is_empty() {
                    let at = n as usize % given.len();
                    space.free(given.swap_remove(at));
                }
            }
        }
    }
}
