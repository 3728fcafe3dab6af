//! What a spool says after the process, the machine or the disk failed.
//!
//! Recovery looks at all logs together, in three passes. The first, newest segments first, finds what is known of each
//! segment: its header, how far its run was durable, where it was said to end (`survey`). The second, oldest first,
//! walks the few segments that nobody vouches for and finds their ends; behind the first gap of a run nothing counts.
//! The third, newest first, hands out messages (`fold`): outcomes are always younger than their messages, so when a
//! message's record is met, all that became of it is known. The cases, each with a test (docs/SPOOL_FORMAT.md explains
//! them):
//!
//! | what is found | what it means | what is done |
//! |---|---|---|
//! | block 0 is zeros, no batch of this segment behind it, nothing says it was used | prepared, never used | free |
//! | block 0 is zeros, batches behind it that were perhaps never durable | first write torn | as a last segment's end |
//! | block 0 is neither zeros nor a header, or a batch says it was durable, or the size is wrong | damage | quarantined |
//! | block 0 is no header, but a successor or the footer says it was used | damage | quarantined; read by its batches |
//! | a newer format version | another program's | refused, nothing is touched |
//! | all known durable, footer good | sealed | read by the footer, contents not looked at |
//! | all known durable, footer bad | damage of the footer alone | read batch by batch |
//! | a bad batch below the durable end | damage | quarantined; the rest is kept |
//! | a bad batch at or above it | was never synced | everything from there is void |
//! | a good batch behind such a one, in this or a later segment of the run | never durable in order | void |
//! | a cut for the segment | it failed there, or was recovered to there | beyond: void; below: all was durable |
//! | a batch of another generation | an earlier use of the file | not there |
//! | two records of one message | one was moved | the later one counts |
//! | an outcome without its message | the message's segment is gone | nothing |
//! | a content file that no live message names | left over | removed, unless there is damage |
//!
//! Before all this, and before the logs begin, [`Snapshot::free_unused`] gives back what was surely never used (`unused`).
//!
//! Not for repairing: nothing is written but the removal of left-over content, and a sync of segments that were read
//! to an end nobody had stated. How it fails: [`RecoveryError`] only where going on could destroy something.

mod fold;
mod headless;
mod survey;
mod unused;

use crate::batch::DurableEnd;
use crate::disk::{Disk, FileId};
use crate::log::{HashMap, HashSet};
use crate::reader::Reader;
use crate::record::{Cut, RecipientFold};
use crate::segment::{BLOCK, ContentRef, FooterEntry, HeaderError, SEQUENCE_MAX, SegmentId};
use fold::Facts;
pub(crate) use headless::first_batch;
use std::fmt;
use std::io;

/// A message with at least one recipient that is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredMessage {
    /// Its id.
    pub id: u64,
    /// The envelope as it was appended.
    pub envelope: Vec<u8>,
    /// Where its content lies. Not read by recovery: damage in it shows when it is sent.
    pub content: ContentRef,
    /// The recipients in the envelope's order.
    pub states: Vec<RecipientFold>,
}

/// A segment from before the start, for [`Log::adopt`](crate::Log::adopt).
#[derive(Clone, Debug)]
pub struct RecoveredSegment {
    /// Which.
    pub segment: SegmentId,
    /// Messages in it that were handed out.
    pub live: u32,
    /// Their octets of inline content.
    pub live_bytes: u64,
    /// Whether it is quarantined: kept as it is for the operator.
    pub damaged: bool,
    pub(crate) generation: u64,
    pub(crate) homes: Vec<SegmentId>,
    pub(crate) index: RecoveredIndex,
    /// Messages of which a newer copy lies elsewhere.
    pub(crate) moved_out: Vec<u64>,
    /// The end to state, so that the next recovery knows it.
    pub(crate) cut: Option<Cut>,
}

/// Where reclaim finds the records of a recovered segment.
#[derive(Clone, Debug)]
pub(crate) enum RecoveredIndex {
    Memory(Vec<FooterEntry>),
    Footer(usize),
}

/// Bytes that should be there and are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// In which file.
    pub file: FileId,
    /// From where, bytes.
    pub offset: u64,
    /// How much, bytes; 0 when it is not known.
    pub len: u64,
    /// The message that it hits, where that is known.
    pub message: Option<u64>,
    /// In words.
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &hexadecimal)
    }
}

/// How messages are named where their owner does not say how.
pub(crate) fn hexadecimal(id: u64) -> String {
    format!("{id:016x}")
}

impl Damage {
    /// Writes it as `Display` does, with messages named by `name`.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn write(&self, f: &mut dyn fmt::Write, name: &dyn Fn(u64) -> String) -> fmt::Result {
        match self.file {
            FileId::Segment(segment) => write!(f, "{}", segment.file_name())?,
            FileId::Content(id) => write!(f, "content/{id:016x}")?,
        }
        write!(f, " at offset {}", self.offset)?;
        if self.len > 0 {
            write!(f, ", {} bytes", self.len)?;
        }
        if let Some(id) = self.message {
            write!(f, ", message {}", name(id))?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Why a spool was not read. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The directory cannot be listed.
    #[error("the spool directory cannot be read: {0}")]
    List(#[source] io::Error),
    /// A segment of a newer program.
    #[error("{segment}.seg: written by a newer version (format {version}); run that version or use another spool")]
    Version {
        /// Which.
        segment: SegmentId,
        /// Its format version.
        version: u16,
    },
}

/// What recovery found.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    /// The old segments by the shard that owns them now.
    pub segments: Vec<Vec<RecoveredSegment>>,
    /// The sequence that every log begins with.
    pub next_sequence: u32,
    /// The greatest message id seen, finished ones included; 0 when there is none.
    pub greatest_id: u64,
    /// What is missing. Not empty: an operator should look, and content files nobody names are kept.
    pub damage: Vec<Damage>,
    /// Messages handed out.
    pub messages: u64,
    /// Recipients of theirs that are not done.
    pub recipients: u64,
    /// Outcome records read.
    pub outcomes: u64,
    /// Note records seen.
    pub notes: u64,
    /// Records of kinds this version does not know, passed over.
    pub unknown: u64,
    /// Content files removed because no live message names them.
    pub orphans_removed: u64,
    /// Such files that were kept because of damage, or could not be removed.
    pub orphans_kept: u64,
    /// Bytes of batches that were found but never became durable.
    pub void_bytes: u64,
}

/// The names in a spool before anything new is written to it.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    segments: Vec<SegmentId>,
    contents: Vec<u64>,
    next_sequence: u32,
}

impl Snapshot {
    /// Lists the spool. Take it before any log of this run begins.
    pub fn take(disk: &dyn Disk) -> io::Result<Snapshot> {
        let segments = disk.segments()?;
        let used = segments.iter().map(|id| id.sequence() + 1).max().unwrap_or(0);
        // A spare still holds batches under its old number: if that came again, they could be taken for new ones.
        let next_sequence = used.max(disk.spares_end()?).min(SEQUENCE_MAX);
        Ok(Snapshot { segments, contents: disk.contents()?, next_sequence })
    }

    /// The sequence that the logs of this run begin with: above every segment of every log, so that later records have
    /// greater sequences whichever log they are in.
    pub fn next_sequence(&self) -> u32 {
        self.next_sequence
    }
}

/// The first sequence of each log, from file names alone: it lets shards take mail before recovery is done. All
/// entries are equal (see [`Snapshot::next_sequence`]).
pub fn next_sequences(disk: &dyn Disk) -> io::Result<[u32; 256]> {
    Ok([Snapshot::take(disk)?.next_sequence(); 256])
}

/// Reads a spool that nobody writes to. See [`recover_from`].
///
/// # Errors
/// See [`RecoveryError`].
pub fn recover(
    disk: &dyn Disk,
    shards: u8,
    emit: &mut dyn FnMut(u8, RecoveredMessage),
) -> Result<RecoveryReport, RecoveryError> {
    let snapshot = Snapshot::take(disk).map_err(RecoveryError::List)?;
    recover_from(disk, &snapshot, shards, emit)
}

/// Reads what a snapshot names, while new segments may already be written. Each message that is not done is handed to
/// `emit` with the shard that owns it: its log's number modulo the number of shards.
///
/// # Errors
/// See [`RecoveryError`].
pub fn recover_from(
    disk: &dyn Disk,
    snapshot: &Snapshot,
    shards: u8,
    emit: &mut dyn FnMut(u8, RecoveredMessage),
) -> Result<RecoveryReport, RecoveryError> {
    Recovery::new(disk, snapshot, shards, Purpose::Start).run(emit)
}

/// What a reading of the spool is for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Starting: ends are synced, left-over content is removed.
    Start,
    /// Looking: nothing is changed and contents are compared with their checksums.
    Verify,
}

/// One reading of the spool.
pub(crate) struct Recovery<'a> {
    disk: &'a dyn Disk,
    snapshot: &'a Snapshot,
    shards: u8,
    purpose: Purpose,
    report: RecoveryReport,
    /// How far each run of each log was durable, by log and epoch.
    floors: HashMap<(u8, u32), DurableEnd>,
    /// Ends that were stated, by segment and generation.
    cuts: HashMap<(SegmentId, u64), u32>,
    /// Those of them that stand in records which last.
    kept_cuts: HashSet<(SegmentId, u64)>,
    /// What headers say of the segment before them: its epoch and where its batches end.
    previous: HashMap<SegmentId, (u32, u32)>,
    facts: HashMap<u64, Facts>,
    homes: HashMap<SegmentId, HashSet<SegmentId>>,
    spilled: HashSet<u64>,
}

impl<'a> Recovery<'a> {
    pub(crate) fn new(disk: &'a dyn Disk, snapshot: &'a Snapshot, shards: u8, purpose: Purpose) -> Recovery<'a> {
        Recovery {
            disk,
            snapshot,
            shards: shards.max(1),
            purpose,
            report: RecoveryReport::default(),
            floors: HashMap::default(),
            cuts: HashMap::default(),
            kept_cuts: HashSet::default(),
            previous: HashMap::default(),
            facts: HashMap::default(),
            homes: HashMap::default(),
            spilled: HashSet::default(),
        }
    }

    pub(crate) fn run(mut self, emit: &mut dyn FnMut(u8, RecoveredMessage)) -> Result<RecoveryReport, RecoveryError> {
        let mut order = self.snapshot.segments.clone();
        // Sequences grow over all logs and runs: whatever speaks of a segment is in one with a greater sequence, or in
        // the segment itself.
        order.sort_by_key(|id| (std::cmp::Reverse(id.sequence()), id.log()));
        self.refuse_newer(&order)?;
        let mut plans: Vec<survey::Plan<'a>> = Vec::with_capacity(order.len());
        for segment in order {
            let plan = self.survey(segment);
            plans.push(plan);
        }
        self.find_ends(&mut plans);
        let mut found: Vec<RecoveredSegment> = Vec::with_capacity(plans.len());
        for plan in plans {
            found.push(self.read_segment(plan, emit));
        }
        let exists: HashSet<SegmentId> = found.iter().map(|segment| segment.segment).collect();
        self.report.segments = vec![Vec::new(); usize::from(self.shards)];
        for mut segment in found {
            let homes = self.homes.remove(&segment.segment).unwrap_or_default();
            segment.homes = homes.into_iter().filter(|h| *h != segment.segment && exists.contains(h)).collect();
            segment.homes.sort_unstable();
            let owner = segment.segment.log() % self.shards;
            self.report.segments[usize::from(owner)].push(segment);
        }
        self.clean_contents();
        self.report.next_sequence = self.snapshot.next_sequence();
        Ok(self.report)
    }

    /// Nothing is touched if any segment is of a newer version.
    fn refuse_newer(&self, order: &[SegmentId]) -> Result<(), RecoveryError> {
        for segment in order {
            if let Ok(mut reader) = Reader::open(self.disk, FileId::Segment(*segment), BLOCK as usize)
                && let Err(HeaderError::Version(version)) = reader.header(*segment)
            {
                return Err(RecoveryError::Version { segment: *segment, version });
            }
        }
        Ok(())
    }

    fn damage(&mut self, segment: SegmentId, offset: u32, len: u32, what: &str) {
        self.report.damage.push(Damage {
            file: FileId::Segment(segment),
            offset: u64::from(offset),
            len: u64::from(len),
            message: None,
            what: what.to_owned(),
        });
    }

    fn clean_contents(&mut self) {
        for content in &self.snapshot.contents {
            self.report.greatest_id = self.report.greatest_id.max(*content);
            if self.spilled.contains(content) {
                continue;
            }
            // A message whose record is damaged may be the one that names it.
            let removable = self.report.damage.is_empty() && self.purpose == Purpose::Start;
            if removable && self.disk.remove_content(*content).is_ok() {
                self.report.orphans_removed += 1;
            } else {
                self.report.orphans_kept += 1;
            }
        }
    }
}
