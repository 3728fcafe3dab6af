//! ringpost's durable spool: append-only segments, group commit, recovery and reclaim, free of any runtime.
//!
//! For: keeping every accepted message, and what became of it, so that neither a killed process nor a power cut nor a
//! failing disk loses anything that was acknowledged. Not for: deciding when to deliver (the queue does), performing
//! IO (the owner does what [`Log::poll_op`] asks) or reading clocks (times are arguments).
//!
//! The map, from the bytes upwards:
//! - [`record`]: one fact (message, outcome, note, cut) as bytes with its own checksums;
//! - [`batch`]: the frame around the records of one write, the unit that is replayed whole or not at all;
//! - [`segment`]: names, headers and footers of the files that hold batches;
//! - [`disk`]: what is asked of a disk ([`DiskOp`]) and how recovery reads one ([`Disk`], [`StdDisk`]);
//! - [`Log`]: one shard's log: appends, group commit, failures, the reserve for outcomes, reclaim;
//! - [`recovery`]: what a spool says after the process, the machine or the disk failed: a table of cases;
//! - [`verify`]: reading a spool for people;
//! - [`sim_disk`]: a disk that forgets, tears, reorders and fails, for tests.
//!
//! How it fails: an append is refused with [`LogFull`], a commit fails with [`LogEvent::Failed`], damage found by
//! recovery is listed in its report. The format is described in docs/SPOOL_FORMAT.md.
#![deny(missing_docs)]

pub mod batch;
pub mod disk;
mod log;
#[cfg(feature = "planted-faults")]
pub mod planted;
mod reader;
pub mod record;
pub mod recovery;
mod rng;
pub mod segment;
pub mod sim_disk;
pub mod std_disk;
pub mod verify;

pub use disk::{ContentError, Disk, DiskDone, DiskError, DiskFile, DiskOp, FileId, OpId};
pub use log::{Log, LogConfig, LogEvent, LogFull, NewContent, NewMessage, Position, Stored, Usage};
pub use record::{Outcome, OutcomeKind, RecipientFold};
pub use recovery::{
    Damage, RecoveredMessage, RecoveredSegment, RecoveryError, RecoveryReport, Snapshot, next_sequences, recover,
    recover_from,
};
pub use segment::{ContentRef, SegmentId};
pub use sim_disk::SimDisk;
pub use std_disk::StdDisk;
