//! Which shards wait for something that all share: a bit each, so that whoever frees it can tell one of them in turn.

use crate::limits::MAX_SHARDS;
use std::sync::atomic::{AtomicU64, Ordering};

const WORDS: usize = MAX_SHARDS / 64;

/// A set of shards.
#[derive(Debug, Default)]
pub struct WaitingShards([AtomicU64; WORDS]);

impl WaitingShards {
    /// Adds a shard. True when it was not there before.
    pub fn add(&self, shard: u8) -> bool {
        let bit = 1 << (shard % 64);
        self.0[usize::from(shard) / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Takes a shard out.
    pub fn remove(&self, shard: u8) {
        let word = &self.0[usize::from(shard) / 64];
        if word.load(Ordering::Relaxed) & 1 << (shard % 64) != 0 {
            word.fetch_and(!(1 << (shard % 64)), Ordering::AcqRel);
        }
    }

    /// Whether a shard is there.
    pub fn contains(&self, shard: u8) -> bool {
        self.0[usize::from(shard) / 64].load(Ordering::Acquire) & 1 << (shard % 64) != 0
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::Acquire) == 0)
    }

    /// The one after `shard`, in turn; `shard` itself comes last.
    pub fn after(&self, shard: u8) -> Option<u8> {
        let first = |from: usize, to: usize| (from..to).find(|&other| self.contains(other as u8));
        if self.is_empty() {
            return None;
        }
        first(usize::from(shard) + 1, MAX_SHARDS).or_else(|| first(0, usize::from(shard) + 1)).map(|found| found as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_take_turns() {
        let waiting = WaitingShards::default();
        assert_eq!(waiting.after(0), None);
        for shard in [0, 2, 200] {
            assert!(waiting.add(shard) && !waiting.add(shard));
        }
        assert_eq!(waiting.after(0), Some(2));
        assert_eq!(waiting.after(2), Some(200));
        assert_eq!(waiting.after(200), Some(0));
        waiting.remove(0);
        waiting.remove(200);
        assert_eq!((waiting.after(2), waiting.contains(0), waiting.is_empty()), (Some(2), false, false));
    }
}
