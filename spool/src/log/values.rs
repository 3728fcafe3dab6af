//! What goes into a log and comes out of it, as plain values.

use crate::disk::{ContentError, DiskError, OpId};
use crate::segment::{ContentRef, SegmentId};
use bytes::Bytes;

/// Counts the records appended to this log since it was made; the first has 1.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// The content of a message to append.
#[derive(Clone, Debug)]
pub enum NewContent {
    /// Goes into the log beside the envelope. Never copied.
    Inline(Vec<Bytes>),
    /// Stands in a content file already: [`LogEvent::Spilled`] came with success.
    Spilled {
        /// Octets of the file that come before the content; at most [`crate::record::FRONT_MAX`].
        front: u32,
        /// Octets.
        len: u32,
        /// CRC-32C.
        crc: u32,
    },
}

/// A message to append.
#[derive(Clone, Debug)]
pub struct NewMessage<'a> {
    /// Its id, never used before.
    pub id: u64,
    /// The envelope, encoded; opaque here.
    pub envelope: &'a [u8],
    /// How many recipients the envelope has; at most [`crate::record::RECIPIENTS_MAX`].
    pub recipients: u32,
    /// The content.
    pub content: NewContent,
    /// Whether an operator is to release it before anything is sent: recorded together with it, as if each recipient's
    /// first outcome were [`crate::OutcomeKind::Held`].
    pub held: bool,
}

/// Where an appended message went. It counts only once [`LogEvent::Durable`] reached the position.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place in the order of appends.
    pub position: Position,
    /// Where the content lies.
    pub content: ContentRef,
}

/// Why an append was refused.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFull {
    /// No prepared segment can be had for messages: the disk is full, or segment numbers are used up.
    #[error("the spool has no room: make space on its disk")]
    NoSpace,
    /// More bytes wait for their sync than [`crate::LogConfig::unsynced_max`] allows, or segments are filled faster than
    /// they are prepared.
    #[error("the spool's disk is too slow for what comes in")]
    Behind,
    /// Writes or syncs failed one after another, or preparing a segment did; the log waits before it tries again.
    #[error("the spool's disk reports errors: replace the disk or move the spool")]
    Failing,
    /// The record could never fit a segment.
    #[error("the record is larger than a segment of the spool")]
    TooLarge,
}

/// What the owner has to know.
#[derive(Clone, Debug)]
pub enum LogEvent {
    /// Everything up to and including this position is on stable storage, but for what was reported as failed.
    Durable(Position),
    /// The messages at these positions (both ends included) are void: answer 451. Outcomes and notes between them were
    /// appended again by the log; a message of a group was too, and comes as `Moved` instead.
    Failed {
        /// The first.
        from: Position,
        /// The last.
        to: Position,
    },
    /// The answer to [`crate::Log::read_content`].
    ContentRead {
        /// The operation that was returned.
        op: OpId,
        /// The message.
        id: u64,
        /// The bytes; their checksum was compared if the whole content was read at once.
        result: Result<Bytes, ContentError>,
    },
    /// One piece of spilled content is written, not yet synced.
    SpillProgress {
        /// The message.
        id: u64,
        /// The operation that [`crate::Log::spill`] returned.
        op: OpId,
    },
    /// Spilled content is complete and durable, or failed. Comes once; after an error call
    /// [`crate::Log::remove_spill`].
    Spilled {
        /// The message.
        id: u64,
        /// How it went.
        result: Result<(), DiskError>,
    },
    /// Reclaim asks what became of a message: answer with [`crate::Log::provide_state`] or [`crate::Log::keep_place`].
    WantState {
        /// The message.
        id: u64,
    },
    /// The message lies elsewhere from now on: reads, outcomes and `finish` are to name this place.
    Moved {
        /// The message.
        id: u64,
        /// The new place.
        content: ContentRef,
    },
    /// A segment from before the start is durably gone. Where there are several shards, call
    /// [`crate::Log::note_recycled`] of all the others: after a change of the number of shards their segments may wait
    /// for it. Not doing so only keeps such segments until the next start.
    Recycled {
        /// Which.
        segment: SegmentId,
    },
    /// For the operator's log: what happened, in words.
    Trouble(String),
    /// No segment could be prepared: the disk is full and new messages will be refused.
    SpaceLow,
    /// Segments can be prepared again.
    SpaceBack,
}

/// Counters and gauges of one log.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Segments in use, prepared ones not counted.
    pub segments: usize,
    /// Prepared segments.
    pub spares: usize,
    /// Bytes of the segments in use.
    pub bytes: u64,
    /// Messages that are not finished, as far as this log knows.
    pub live_messages: u64,
    /// Octets of inline content of these.
    pub live_bytes: u64,
    /// Bytes appended and not synced yet.
    pub unsynced_bytes: u64,
    /// Batches written since the start.
    pub batches: u64,
    /// Bytes written to segments since the start.
    pub bytes_written: u64,
    /// Batches that a sync has made durable.
    pub synced_batches: u64,
    /// Syncs that succeeded.
    pub syncs: u64,
    /// Writes and syncs that failed.
    pub failures: u64,
    /// Records appended, moved and repeated ones included.
    pub records: u64,
    /// Messages moved by reclaim.
    pub moved: u64,
    /// Segments recycled.
    pub recycled: u64,
    /// Outcomes that wait in memory for a segment.
    pub parked: usize,
    /// Segments that are kept because they are damaged.
    pub quarantined: usize,
}
