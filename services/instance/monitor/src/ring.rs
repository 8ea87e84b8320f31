//! A bounded byte queue addressed by absolute offsets.

use std::collections::VecDeque;

/// Bytes `base..end` of a stream.
#[derive(Debug)]
pub struct Ring {
    data: VecDeque<u8>,
    base: u64,
    capacity: usize,
}

impl Ring {
    /// Memory is taken as it fills, and given back when it is empty.
    pub fn new(capacity: usize) -> Ring {
        Ring {
            data: VecDeque::new(),
            base: 0,
            capacity,
        }
    }

    pub fn base(&self) -> u64 {
        self.base
    }

    pub fn end(&self) -> u64 {
        self.base + self.data.len() as u64
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        self.capacity - self.data.len()
    }

    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Appends what fits and says how much that was.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.data.extend(&bytes[..taken]);
        taken
    }

    /// Appends all, dropping the oldest.
    pub fn push_over(&mut self, bytes: &[u8]) {
        let keep = &bytes[bytes.len().saturating_sub(self.capacity)..];
        self.base += (bytes.len() - keep.len()) as u64;
        let excess = (self.data.len() + keep.len()).saturating_sub(self.capacity);
        self.data.drain(..excess);
        self.base += excess as u64;
        self.data.extend(keep);
    }

    /// Forgets what is before `offset`; offsets outside `base..=end` change nothing or stop at the end.
    pub fn release(&mut self, offset: u64) {
        let count = offset.saturating_sub(self.base).min(self.data.len() as u64) as usize;
        self.data.drain(..count);
        self.base += count as u64;
        if self.data.is_empty() {
            self.data = VecDeque::new();
        }
    }

    /// Up to `limit` bytes from `offset`, which must not be before `base`.
    pub fn read(&self, offset: u64, limit: usize) -> Vec<u8> {
        let skip = offset.saturating_sub(self.base).min(self.data.len() as u64) as usize;
        let count = (self.data.len() - skip).min(limit);
        let (first, second) = self.data.as_slices();
        let mut out = Vec::with_capacity(count);
        if skip < first.len() {
            out.extend_from_slice(&first[skip..first.len().min(skip + count)]);
        }
        let left = count - out.len();
        let from = skip.saturating_sub(first.len());
        out.extend_from_slice(&second[from..from + left]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn full_takes_no_more_until_released() {
        let mut ring = Ring::new(4);
        assert_eq!(ring.push(b"abcdef"), 4);
        assert_eq!(ring.push(b"x"), 0);
        ring.release(2);
        assert_eq!(ring.push(b"xyz"), 2);
        assert_eq!(ring.read(2, 10), b"cdxy");
        assert_eq!((ring.base(), ring.end()), (2, 6));
    }

    #[test]
    fn overwriting_keeps_the_newest() {
        let mut ring = Ring::new(4);
        ring.push_over(b"abc");
        ring.push_over(b"defgh");
        assert_eq!(ring.read(ring.base(), 9), b"efgh");
        assert_eq!(ring.end(), 8);
        ring.push_over(b"i");
        assert_eq!(ring.read(ring.base(), 9), b"fghi");
    }

    proptest! {
        #[test]
        fn behaves_like_a_whole_buffer(steps in proptest::collection::vec((0usize..20, 0u64..10, 0usize..30), 0..60)) {
            let mut ring = Ring::new(16);
            let mut all: Vec<u8> = Vec::new();
            for (len, ack, limit) in steps {
                let bytes: Vec<u8> = (0..len).map(|i| (all.len() + i) as u8).collect();
                let taken = ring.push(&bytes);
                all.extend(&bytes[..taken]);
                prop_assert_eq!(ring.end(), all.len() as u64);
                ring.release(ring.base() + ack);
                let from = ring.base() as usize;
                let want = &all[from..all.len().min(from + limit)];
                prop_assert_eq!(ring.read(from as u64, limit), want);
            }
        }
    }
}
