//! What a spool says after the process, the machine or the disk failed.
//!
//! Recovery looks at all logs together, newest segments first: outcomes are always younger than their messages, so when
//! a message's record is met, all that became of it is known and it is handed out at once. The cases, each with a test
//! (docs/SPOOL_FORMAT.md explains them):
//!
//! | what is found | what it means | what is done |
//! |---|---|---|
//! | block 0 is no header of this file, nothing says it was used | prepared, never durably used | free |
//! | block 0 is no header, but a successor or the footer says it was used | damage | quarantined; read by its batches |
//! | a newer format version | another program's | refused, nothing is touched |
//! | all known durable, footer good | sealed | read by the footer, contents not looked at |
//! | all known durable, footer bad | damage of the footer alone | read batch by batch |
//! | a bad batch below the durable end | damage | quarantined; the rest is kept |
//! | a bad batch at or above it | was never synced | everything from there is void |
//! | a good batch behind such a one | written, never durable in order | void |
//! | a cut for the segment | it failed there, or was recovered to there | beyond: void; below: all was durable |
//! | a batch of another generation | an earlier use of the file | not there |
//! | two records of one message | one was moved | the later one counts |
//! | an outcome without its message | the message's segment is gone | nothing |
//! | a content file that no live message names | left over | removed, unless there is damage |
//!
//! Not for repairing: nothing is written but the removal of left-over content, and a sync of segments that were read
//! to an end nobody had stated. How it fails: [`RecoveryError`] only where going on could destroy something.

use crate::batch::{BatchHead, DurableEnd};
use crate::disk::{Disk, FileId};
use crate::log::{HashMap, HashSet};
use crate::reader::{Reader, WINDOW_PICK, WINDOW_SCAN, record_seed};
use crate::record::{Cut, HEAD_LEN, OutcomeKind, RecipientFold, RecordHead, RecordKind};
use crate::segment::{
    BLOCK, ContentRef, Footer, FooterEntry, HeaderError, SEQUENCE_MAX, SegmentHeader, SegmentId, checksum_seed,
    round_up,
};
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
    /// In words.
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file {
            FileId::Segment(segment) => write!(f, "{}", segment.file_name())?,
            FileId::Content(id) => write!(f, "content/{id:016x}")?,
        }
        write!(f, " at offset {}", self.offset)?;
        if self.len > 0 {
            write!(f, ", {} bytes", self.len)?;
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
    #[error("{}: written by a newer version (format {version}); run that version or use another spool directory", segment.file_name())]
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
}

impl Snapshot {
    /// Lists the spool. Take it before any log of this run begins.
    pub fn take(disk: &dyn Disk) -> io::Result<Snapshot> {
        Ok(Snapshot { segments: disk.segments()?, contents: disk.contents()? })
    }

    /// The sequence that the logs of this run begin with: above every segment of every log, so that later records have
    /// greater sequences whichever log they are in.
    pub fn next_sequence(&self) -> u32 {
        self.segments.iter().map(|id| id.sequence() + 1).max().unwrap_or(0).min(SEQUENCE_MAX)
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

/// What is known of a message before its record is met.
#[derive(Debug, Default)]
struct Facts {
    outcomes: Vec<Fact>,
    /// Segments with outcomes about it or newer copies of it.
    holders: Vec<SegmentId>,
    /// A newer copy was met.
    placed: bool,
}

#[derive(Copy, Clone, Debug)]
struct Fact {
    recipient: u32,
    order: u64,
    fold: RecipientFold,
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
    /// What headers say of the segment before them: its epoch and where its batches end.
    previous: HashMap<SegmentId, (u32, u32)>,
    facts: HashMap<u64, Facts>,
    homes: HashMap<SegmentId, HashSet<SegmentId>>,
    spilled: HashSet<u64>,
}

/// What a message's record is worth.
enum Placed {
    /// It waits, with its recipients in these states.
    Live(Vec<RecipientFold>),
    /// All its recipients are done.
    Done,
    /// A newer copy of it was met.
    Moved,
}

/// How the segment at hand is read.
struct Layout {
    header: SegmentHeader,
    entries: Vec<FooterEntry>,
    indexed: bool,
    damaged: bool,
    cut: Option<Cut>,
    seed: u32,
    end: u32,
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
        let mut found: Vec<RecoveredSegment> = Vec::with_capacity(order.len());
        for segment in order {
            found.push(self.read_segment(segment, emit));
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
            what: what.to_owned(),
        });
    }

    fn read_segment(&mut self, id: SegmentId, emit: &mut dyn FnMut(u8, RecoveredMessage)) -> RecoveredSegment {
        let mut recovered = RecoveredSegment {
            segment: id,
            live: 0,
            live_bytes: 0,
            damaged: false,
            generation: 0,
            homes: Vec::new(),
            index: RecoveredIndex::Memory(Vec::new()),
            moved_out: Vec::new(),
            cut: None,
        };
        let mut reader = match Reader::open(self.disk, FileId::Segment(id), WINDOW_SCAN) {
            Ok(reader) => reader,
            Err(error) => {
                self.damage(id, 0, 0, &format!("cannot be opened: {error}"));
                recovered.damaged = true;
                return recovered;
            }
        };
        let Some((header, header_damaged)) = self.header(id, &mut reader, &mut recovered) else {
            return recovered;
        };
        if let Some(previous) = header.previous {
            self.previous.insert(previous, (header.epoch, header.previous_end));
        }
        let mut layout = self.layout(&mut reader, header, header_damaged);
        self.read_messages(&mut reader, &mut layout, &mut recovered, emit);
        for offset in std::mem::take(&mut reader.unreadable) {
            if offset < u64::from(layout.end) {
                self.damage(id, offset as u32, BLOCK, "the disk cannot read this block");
                layout.damaged = true;
            }
        }
        recovered.generation = header.generation;
        recovered.damaged |= layout.damaged;
        recovered.cut = layout.cut;
        recovered.index = match layout.indexed {
            true => RecoveredIndex::Footer(layout.entries.len()),
            false => RecoveredIndex::Memory(layout.entries),
        };
        recovered
    }

    /// The header, or what stands for it when it is damaged. `None`: there is nothing to read.
    fn header(
        &mut self,
        id: SegmentId,
        reader: &mut Reader<'_>,
        recovered: &mut RecoveredSegment,
    ) -> Option<(SegmentHeader, bool)> {
        if let Ok(header) = reader.header(id) {
            return Some((header, false));
        }
        // A footer may have reached the disk though nothing before it did: the log must have gone beyond.
        let settled = |epoch: u32| self.floors.get(&(id.log(), epoch)).is_some_and(|f| f.sequence > id.sequence());
        let trailer = reader.trailer(id).filter(|trailer| settled(trailer.epoch));
        let cut =
            self.cuts.iter().find(|((segment, _), _)| *segment == id).map(|((_, generation), end)| (*generation, *end));
        if cut.is_some_and(|(_, end)| end == 0) {
            return None;
        }
        let successor = self.previous.get(&id).copied().filter(|(epoch, end)| *end > 0 && settled(*epoch));
        let epoch = trailer.map(|t| t.epoch).or(successor.map(|(epoch, _)| epoch)).or(cut.map(|_| u32::MAX))?;
        self.damage(id, 0, BLOCK, "the header is damaged");
        recovered.damaged = true;
        let first = reader.bytes(u64::from(BLOCK), crate::batch::BATCH_HEAD_LEN as usize);
        let first = first.and_then(|bytes| BatchHead::decode(bytes, id, BLOCK)).map(|head| head.generation);
        let Some(generation) = trailer.map(|t| t.generation).or(cut.map(|(generation, _)| generation)).or(first) else {
            self.damage(id, BLOCK, 0, "the first batch is damaged too: nothing of the segment can be told apart");
            return None;
        };
        let size = reader.size();
        Some((SegmentHeader { segment: id, generation, epoch, size, previous: None, previous_end: 0 }, true))
    }

    /// Finds the records of a segment, by its footer where that suffices.
    fn layout(&mut self, reader: &mut Reader<'_>, header: SegmentHeader, header_damaged: bool) -> Layout {
        let id = header.segment;
        let run = self.floors.get(&(id.log(), header.epoch)).copied().unwrap_or_default();
        let cut = self.cuts.get(&(id, header.generation)).copied();
        let settled = run.sequence > id.sequence();
        let trailer = reader.trailer(id).filter(|trailer| trailer.generation == header.generation);
        let all_durable = |end: u32| cut.map_or(settled, |cut| cut >= end);
        let mut layout = Layout {
            header,
            entries: Vec::new(),
            indexed: false,
            damaged: header_damaged,
            cut: None,
            seed: checksum_seed(id, header.generation),
            end: 0,
        };
        if let Some(trailer) = trailer.filter(|trailer| all_durable(trailer.appended_end)) {
            if let Some(footer) = reader.footer(&trailer, id) {
                self.read_indexed(reader, &mut layout, footer);
                return layout;
            }
            // Behind a stated end the footer may never have been durable.
            if cut.is_none() {
                self.damage(id, trailer.appended_end, 0, "the footer is damaged; the segment was read without it");
                layout.damaged = true;
            }
        }
        // Nobody vouches for all of it, so what the disk itself holds counts, header included.
        reader.drop_cache();
        if !header_damaged && reader.header(id) != Ok(header) {
            return layout;
        }
        let limit = cut.unwrap_or(header.size).min(reader.size());
        let batches = reader.batches(id, header.generation, limit);
        let mut own = 0;
        for (_, batch) in &batches {
            let floor = self.floors.entry((id.log(), header.epoch)).or_default();
            *floor = (*floor).max(batch.durable_end);
            if batch.durable_end.sequence == id.sequence() {
                own = own.max(batch.durable_end.offset);
            }
        }
        // Everything below the floor was on stable storage once: what is missing there is damage.
        let floor = match cut {
            Some(cut) => cut,
            None if settled => {
                let stated = self.previous.get(&id).map(|(_, end)| *end).or(trailer.map(|t| t.appended_end));
                let last = batches.last().map(|(offset, batch)| round_up(offset + batch.len));
                stated.or(last).unwrap_or(BLOCK)
            }
            None if run.sequence == id.sequence() => own.max(run.offset),
            None => own,
        };
        self.read_batches(reader, &mut layout, &batches, floor);
        if cut.is_none() && self.purpose == Purpose::Start && !layout.entries.is_empty() {
            // Stating the end makes it binding, so what was read must be on stable storage first.
            match self.disk.sync(id) {
                Ok(()) => {
                    layout.cut = Some(Cut { segment: id, generation: header.generation, end: layout.end });
                }
                Err(error) => {
                    self.damage(id, 0, 0, &format!("cannot be synced: {error}"));
                    layout.damaged = true;
                }
            }
        }
        layout
    }

    /// Reads outcomes and cuts by the footer; messages come later.
    fn read_indexed(&mut self, reader: &mut Reader<'_>, layout: &mut Layout, footer: Footer) {
        let id = layout.header.segment;
        reader.set_step(WINDOW_PICK);
        reader.will_read(0, u64::from(footer.appended_end));
        layout.indexed = true;
        layout.end = footer.appended_end;
        for entry in &footer.entries {
            match entry.kind {
                RecordKind::Message => continue,
                RecordKind::Note => {
                    self.report.notes += 1;
                    continue;
                }
                RecordKind::Outcome | RecordKind::Cut => {}
            }
            if self.take_record(reader, entry.offset, footer.appended_end, layout.seed, id).is_none() {
                self.damage(id, entry.offset, HEAD_LEN as u32 + entry.meta_len, "a record is damaged");
                layout.damaged = true;
            }
        }
        layout.entries = footer.entries;
    }

    /// Reads batch after batch up to the first that never became durable.
    fn read_batches(&mut self, reader: &mut Reader<'_>, layout: &mut Layout, batches: &[(u32, BatchHead)], floor: u32) {
        let id = layout.header.segment;
        let (mut at, mut sequence) = (BLOCK, 0);
        let mut next = batches.iter().peekable();
        layout.end = BLOCK;
        loop {
            while next.peek().is_some_and(|(offset, batch)| *offset < at || batch.sequence < sequence) {
                next.next();
            }
            let here = next.peek().filter(|(offset, batch)| *offset == at && batch.sequence == sequence);
            if let Some((offset, batch)) = here.copied().copied() {
                let durable = offset < floor;
                let seed = record_seed(id, layout.header.generation, &batch);
                if !durable && !self.batch_is_whole(reader, offset, &batch, seed) {
                    break;
                }
                self.read_records(reader, layout, offset, &batch, seed);
                at = round_up(offset + batch.len);
                sequence = batch.sequence + 1;
                layout.end = at;
                continue;
            }
            if at >= floor {
                break;
            }
            layout.damaged = true;
            match next.peek() {
                Some((offset, batch)) => {
                    self.damage(id, at, offset - at, "batches are damaged or missing");
                    at = *offset;
                    sequence = batch.sequence;
                }
                None => {
                    self.damage(id, at, floor - at, "batches are damaged or missing");
                    layout.end = layout.end.max(floor);
                    break;
                }
            }
        }
        let void = batches.iter().filter(|(offset, _)| *offset >= layout.end);
        self.report.void_bytes += void.map(|(_, batch)| u64::from(batch.len)).sum::<u64>();
    }

    /// Whether every byte of a batch that may have been torn is as it was given out.
    fn batch_is_whole(&self, reader: &mut Reader<'_>, offset: u32, batch: &BatchHead, seed: u32) -> bool {
        let end = offset + batch.len;
        let mut at = offset + crate::batch::BATCH_HEAD_LEN;
        for _ in 0..batch.records {
            let Some(head) = reader.record(at, end, seed).map(|view| view.head) else {
                return false;
            };
            let content = at + HEAD_LEN as u32 + head.meta_len;
            if head.inline_len() > 0 && !reader.content_is(u64::from(content), head.inline_len(), head.content_crc) {
                return false;
            }
            at += head.total_len() as u32;
        }
        at == end
    }

    fn read_records(
        &mut self,
        reader: &mut Reader<'_>,
        layout: &mut Layout,
        offset: u32,
        batch: &BatchHead,
        seed: u32,
    ) {
        let id = layout.header.segment;
        let end = offset + batch.len;
        let mut at = offset + crate::batch::BATCH_HEAD_LEN;
        for _ in 0..batch.records {
            let Some(head) = self.take_record(reader, at, end, seed, id) else {
                self.damage(id, at, end.saturating_sub(at), "records are damaged");
                layout.damaged = true;
                return;
            };
            if let Some(kind) = RecordKind::from_byte(head.kind) {
                let (meta_len, inline_len) = (head.meta_len, head.inline_len());
                layout.entries.push(FooterEntry { kind, offset: at, meta_len, inline_len, id: head.id });
                self.report.notes += u64::from(kind == RecordKind::Note);
            } else {
                self.report.unknown += 1;
            }
            at += head.total_len() as u32;
        }
    }

    /// Checks one record and keeps what it says, unless it is a message.
    fn take_record(
        &mut self,
        reader: &mut Reader<'_>,
        at: u32,
        end: u32,
        seed: u32,
        segment: SegmentId,
    ) -> Option<RecordHead> {
        let view = reader.record(at, end, seed)?;
        let head = view.head;
        self.report.greatest_id = self.report.greatest_id.max(head.id);
        if let Some(outcome) = view.outcome() {
            self.report.outcomes += 1;
            let (kind, attempts) = (Some(outcome.kind), outcome.attempts);
            let fold = RecipientFold { kind, attempts, next_due_ms: outcome.next_due_ms };
            let facts = self.facts.entry(head.id).or_default();
            if !facts.placed {
                facts.outcomes.push(Fact { recipient: outcome.recipient, order: head.order, fold });
            }
            if !facts.holders.contains(&segment) {
                facts.holders.push(segment);
            }
        }
        for cut in view.cuts() {
            let end = self.cuts.entry((cut.segment, cut.generation)).or_insert(cut.end);
            *end = (*end).min(cut.end);
            self.homes.entry(segment).or_default().insert(cut.segment);
        }
        Some(head)
    }

    /// Hands out the messages of a segment whose outcomes, here and in newer segments, are all known.
    fn read_messages(
        &mut self,
        reader: &mut Reader<'_>,
        layout: &mut Layout,
        recovered: &mut RecoveredSegment,
        emit: &mut dyn FnMut(u8, RecoveredMessage),
    ) {
        let id = layout.header.segment;
        let messages = layout.entries.iter().filter(|entry| entry.kind == RecordKind::Message);
        for entry in messages.copied().collect::<Vec<_>>() {
            let view = reader.record(entry.offset, reader.size(), layout.seed);
            let parts = view.and_then(|view| {
                let message = view.message()?;
                let folds = message.folds();
                Some((view.head, folds, message.envelope.to_vec()))
            });
            let Some((head, folds, envelope)) = parts.filter(|(head, _, _)| head.id == entry.id) else {
                self.damage(id, entry.offset, HEAD_LEN as u32 + entry.meta_len, "a message's record is damaged");
                layout.damaged = true;
                continue;
            };
            self.report.greatest_id = self.report.greatest_id.max(head.id);
            let states = match self.place(id, &head, folds) {
                Placed::Live(states) => states,
                Placed::Done => continue,
                Placed::Moved => {
                    recovered.moved_out.push(head.id);
                    continue;
                }
            };
            let content = ContentRef {
                segment: id,
                offset: if head.spilled() { 0 } else { entry.offset + HEAD_LEN as u32 + head.meta_len },
                len: head.content_len,
                crc: head.content_crc,
                spilled: head.spilled(),
            };
            if self.purpose == Purpose::Verify {
                layout.damaged |= self.verify_content(reader, head.id, &content);
            }
            if content.spilled {
                self.spilled.insert(head.id);
            }
            recovered.live += 1;
            recovered.live_bytes += u64::from(head.inline_len());
            self.report.messages += 1;
            self.report.recipients += states.iter().filter(|state| !state.is_final()).count() as u64;
            emit(id.log() % self.shards, RecoveredMessage { id: head.id, envelope, content, states });
        }
    }

    /// Folds all that is known into a message's states.
    fn place(&mut self, segment: SegmentId, head: &RecordHead, folds: Vec<RecipientFold>) -> Placed {
        let mut facts = self.facts.remove(&head.id).unwrap_or_default();
        for holder in &facts.holders {
            self.homes.entry(*holder).or_default().insert(segment);
        }
        let known = std::mem::replace(&mut facts.placed, true);
        let mut states = folds;
        states.resize(head.recipients as usize, RecipientFold::default());
        if !known {
            fold_facts(&mut states, head.order, &mut facts.outcomes);
        }
        // Only a moved record has older copies that must be told from it.
        if head.is_moved() || known {
            facts.outcomes = Vec::new();
            if !facts.holders.contains(&segment) {
                facts.holders.push(segment);
            }
            self.facts.insert(head.id, facts);
        }
        match (known, states.iter().all(RecipientFold::is_final)) {
            (true, _) => Placed::Moved,
            (false, true) => Placed::Done,
            (false, false) => Placed::Live(states),
        }
    }

    /// Compares a content with its checksum; true if it is damaged.
    fn verify_content(&mut self, reader: &mut Reader<'_>, id: u64, content: &ContentRef) -> bool {
        let (file, good) = if content.spilled {
            let file = FileId::Content(id);
            let good = Reader::open(self.disk, file, WINDOW_SCAN)
                .is_ok_and(|mut spilled| spilled.content_is(0, content.len, content.crc));
            (file, good)
        } else {
            let good = reader.content_is(u64::from(content.offset), content.len, content.crc);
            (FileId::Segment(content.segment), good)
        };
        if !good {
            let what = format!("the content of message {id:016x} is damaged or missing");
            let (offset, len) = (u64::from(content.offset), u64::from(content.len));
            self.report.damage.push(Damage { file, offset, len, what });
        }
        !good
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

/// Applies outcomes younger than `base`. A final outcome stays final: of several the first counts; of others the last.
fn fold_facts(states: &mut [RecipientFold], base: u64, facts: &mut Vec<Fact>) {
    facts.sort_unstable_by_key(|fact| fact.order);
    for fact in facts.iter().filter(|fact| fact.order > base) {
        if let Some(state) = states.get_mut(fact.recipient as usize)
            && !state.kind.is_some_and(OutcomeKind::is_final)
        {
            *state = fact.fold;
        }
    }
}
