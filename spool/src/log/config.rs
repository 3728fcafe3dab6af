//! The bounds of a log. Not for policy: who may send how much is decided far above.

use crate::segment::{BLOCK, SEGMENT_SIZE_MIN};

/// Bytes allocated at a time for heads, envelopes and outcomes.
pub(super) const SCRATCH_LEN: usize = 64 * 1024;
/// Writes in flight beyond which outcomes wait for the next turn instead of getting a write of their own.
pub(super) const WRITES_MAX: usize = 32;
/// Outcomes not written yet beyond which no more deliveries should be begun: with those under way, this is what a killed
/// process repeats. A healthy disk writes so many thousands of times a second.
pub(super) const OUTCOMES_UNWRITTEN_MAX: usize = 16;
/// Recycles in flight: each is a rename and a sync of the directory.
pub(super) const RECYCLES_MAX: usize = 4;
/// After how long a segment that could not be prepared is asked for again.
pub(super) const PREPARE_RETRY_MS: u64 = 1_000;
/// The wait after the second failure in a row; it doubles with each further one.
pub(super) const FAILURE_PAUSE_MS: u64 = 500;
/// The longest wait between failures.
pub(super) const FAILURE_PAUSE_MS_MAX: u64 = 30_000;
/// After how long a segment is looked at again that could not be emptied or recycled.
pub(super) const RECLAIM_RETRY_MS: u64 = 10_000;
/// The part of a segment that moved messages leave to outcomes.
pub(super) const OUTCOME_ROOM_PART: u64 = 8;
/// The part of their own bytes that moved messages may need for the ends of their blocks.
pub(super) const MOVE_PADDING_PART: u64 = 8;
/// Bytes that a live message is taken to need besides its content, when reclaim compares segments.
pub(super) const MESSAGE_OVERHEAD: u64 = 256;

const _: () = assert!(FAILURE_PAUSE_MS < FAILURE_PAUSE_MS_MAX);
const _: () = assert!(SCRATCH_LEN >= BLOCK as usize);

/// How a log behaves.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The log's number: in every name of its segments.
    pub log: u8,
    /// Bytes of a segment; a multiple of 4096. Default 64 MiB.
    pub segment_size: u32,
    /// Segments kept prepared, beside the one that is held back for outcomes. At least 1, default 2.
    pub spares: usize,
    /// Bytes beyond which a batch is closed; a larger record gets a batch of its own. Default 1 MiB.
    pub max_batch: usize,
    /// How long an outcome waits at most for its sync. Default 100 ms.
    pub outcome_sync_ms: u64,
    /// How many outcomes wait at most for their sync. Default 64.
    pub outcome_sync_count: usize,
    /// Bytes written or waiting to be written, and not synced, beyond which messages are refused. Default 64 MiB.
    pub unsynced_max: u64,
    /// Messages that reclaim moves at a time. Default 64.
    pub moves_max: usize,
    /// Segments' worth of dead bytes that are left alone whatever the ratio. Default 4.
    pub slack_segments: u64,
    /// How often reclaim looks for a sparse segment. Default 1,000 ms.
    pub compact_interval_ms: u64,
    /// Makes generations; take it from the system's random source, anew at each start.
    pub seed: u64,
}

impl LogConfig {
    /// The defaults for log `log`.
    pub fn new(log: u8, seed: u64) -> LogConfig {
        LogConfig {
            log,
            segment_size: 64 * 1024 * 1024,
            spares: 2,
            max_batch: 1024 * 1024,
            outcome_sync_ms: 100,
            outcome_sync_count: 64,
            unsynced_max: 64 * 1024 * 1024,
            moves_max: 64,
            slack_segments: 4,
            compact_interval_ms: 1_000,
            seed,
        }
    }

    /// The same within the bounds that the log relies on.
    pub(super) fn checked(mut self) -> LogConfig {
        self.segment_size = (self.segment_size / BLOCK * BLOCK).max(SEGMENT_SIZE_MIN);
        self.spares = self.spares.max(1);
        self.max_batch = self.max_batch.clamp(BLOCK as usize, self.segment_size as usize);
        self.moves_max = self.moves_max.max(1);
        self.outcome_sync_count = self.outcome_sync_count.max(1);
        self
    }
}
