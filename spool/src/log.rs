//! One shard's log: what is appended, when it is written and synced, what is reported to its owner.
//!
//! For: turning appends into batches, batches into few writes and fewer syncs, and completions into "durable up to
//! here". Not for IO or clocks: the owner performs what [`Log::poll_op`] gives out, hands the answers to
//! [`Log::handle_done`], calls [`Log::flush`] at the end of each turn and reads [`Log::poll_event`] until it is empty.
//! The same calls with the same seed give the same operations.
//!
//! How it fails: an append of a message is refused with [`LogFull`]; an error of a write or a sync is final for its
//! segment and comes as [`LogEvent::Failed`] for the messages in it, while outcomes and notes in it are appended again.
//! Outcomes are never refused: segments are held back for them, and beyond that they wait in memory while
//! [`Log::accepts_outcomes`] asks the owner to stop delivering.
//!
//! The parts: `values` (what goes in and comes out), `commit` (batches, writes, syncs), `failure` (what happens when
//! one fails), `space` (prepared segments), `content` (reads, spilled content), `reclaim` (recycling), `compaction`
//! (moving survivors), `config`.

mod commit;
mod compaction;
mod config;
mod content;
mod failure;
mod reclaim;
mod space;
mod values;

pub use config::LogConfig;
pub use values::{LogEvent, LogFull, NewContent, NewMessage, Position, Stored, Usage};

use crate::disk::{DiskDone, DiskOp, OpId};
use crate::record::{self, Cut, Outcome, OutcomeKind, RecipientFold, RecordHead, RecordKind};
use crate::rng::Rng;
use crate::segment::{ContentRef, FooterEntry, SegmentId};
use bytes::{Bytes, BytesMut};
use commit::{Again, Held, OpenBatch, OpenSegment, SyncInFlight, What};
use compaction::{Compaction, Moving};
use content::{ReadCall, Spill};
use reclaim::{Finishing, Kept, Tally};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
pub(crate) type HashSet<K> = std::collections::HashSet<K, foldhash::fast::RandomState>;

/// What an outstanding operation is for.
#[derive(Debug)]
enum Call {
    Prepare(SegmentId),
    Write(SegmentId),
    Sync,
    Read(ReadCall),
    Recycle(SegmentId),
    SpillWrite(u64),
    SpillSync(u64),
    Remove,
    CompactionIndex,
    CompactionRecord(u64),
}

/// Who asks for room: they may go to different depths into the reserve.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Who {
    Message,
    Move,
    Outcome,
}

/// Appends that belong together (see [`Log::reserve_group`]).
#[derive(Copy, Clone, Debug)]
struct Group {
    number: u64,
    left: usize,
}

/// A record that has a position but no place on disk yet.
#[derive(Debug)]
struct Pending {
    position: u64,
    group: u64,
    record: Again,
}

/// One shard's log.
#[derive(Debug)]
pub struct Log {
    config: LogConfig,
    rng: Rng,
    now_ms: u64,
    epoch: u32,
    next_sequence: u32,
    next_op: u64,
    next_group: u64,
    next_cut: u64,
    orders: u64,
    ops: VecDeque<DiskOp>,
    events: VecDeque<LogEvent>,
    calls: HashMap<OpId, Call>,
    /// The last position given out, and the last one known durable.
    position: u64,
    durable: u64,
    /// Segments that hold something not durable, oldest first; the last may be open for appends.
    open: VecDeque<OpenSegment>,
    batch: Option<OpenBatch>,
    scratch: BytesMut,
    group: Option<Group>,
    sync: Option<SyncInFlight>,
    writes_in_flight: usize,
    unsynced_bytes: u64,
    /// The segment filled last and where its batches end, for the next header.
    last: Option<(SegmentId, u32)>,
    /// Cuts not yet durable, each with its number; the number in front of which all are in a batch already.
    cuts: Vec<(u64, Cut)>,
    cuts_stated: u64,
    /// Content files of failed messages, removed once the cut of that number is durable.
    void_contents: Vec<(u64, u64)>,
    pending: VecDeque<Pending>,
    failures_in_row: u32,
    paused_until_ms: u64,
    ready: BTreeSet<SegmentId>,
    preparing: usize,
    prepare_retry_ms: Option<u64>,
    /// Whether the attempt before the retry found no space.
    prepare_found_full: bool,
    /// Attempts to prepare segments that failed in a row.
    prepare_failures: u32,
    disk_full: bool,
    kept: BTreeMap<SegmentId, Kept>,
    adopted: bool,
    /// Segments of other shards that went before the old segments were adopted.
    gone: HashSet<SegmentId>,
    early_finished: Vec<(SegmentId, u32)>,
    finishing: VecDeque<Finishing>,
    recycles_in_flight: usize,
    recycle_check: bool,
    compaction: Option<Compaction>,
    compact_at_ms: u64,
    moving: HashMap<u64, Moving>,
    moved_unpolled: usize,
    spills: HashMap<u64, Spill>,
    usage: Usage,
}

impl Log {
    /// An empty log that asks at once for its first segments. `first_sequence` comes from
    /// [`next_sequences`](crate::next_sequences): above every segment that exists, of all logs.
    pub fn new(config: LogConfig, first_sequence: u32) -> Log {
        let config = config.checked();
        let mut log = Log {
            rng: Rng::new(config.seed),
            now_ms: 0,
            epoch: first_sequence,
            next_sequence: first_sequence,
            next_op: 1,
            next_group: 1,
            next_cut: 1,
            orders: 0,
            ops: VecDeque::new(),
            events: VecDeque::new(),
            calls: HashMap::default(),
            position: 0,
            durable: 0,
            open: VecDeque::new(),
            batch: None,
            scratch: BytesMut::with_capacity(config::SCRATCH_LEN),
            group: None,
            sync: None,
            writes_in_flight: 0,
            unsynced_bytes: 0,
            last: None,
            cuts: Vec::new(),
            cuts_stated: 0,
            void_contents: Vec::new(),
            pending: VecDeque::new(),
            failures_in_row: 0,
            paused_until_ms: 0,
            ready: BTreeSet::new(),
            preparing: 0,
            prepare_retry_ms: None,
            prepare_found_full: false,
            prepare_failures: 0,
            disk_full: false,
            kept: BTreeMap::new(),
            adopted: false,
            gone: HashSet::default(),
            early_finished: Vec::new(),
            finishing: VecDeque::new(),
            recycles_in_flight: 0,
            recycle_check: false,
            compaction: None,
            compact_at_ms: 0,
            moving: HashMap::default(),
            moved_unpolled: 0,
            spills: HashMap::default(),
            usage: Usage::default(),
            config,
        };
        log.prepare_more();
        log
    }

    /// Appends a message. It is void unless [`LogEvent::Durable`] reaches its position.
    ///
    /// # Errors
    /// [`LogFull`]: nothing was appended.
    pub fn append_message(&mut self, message: NewMessage<'_>) -> Result<Stored, LogFull> {
        if message.recipients > record::RECIPIENTS_MAX {
            return Err(LogFull::TooLarge);
        }
        let (len, spilled) = match &message.content {
            NewContent::Inline(chunks) => (chunks.iter().map(Bytes::len).sum::<usize>(), false),
            NewContent::Spilled { len, .. } => (*len as usize, true),
        };
        let inline_len = if spilled { 0 } else { len };
        let held = RecipientFold { kind: Some(OutcomeKind::Held), ..RecipientFold::default() };
        let states = vec![held; if message.held { message.recipients as usize } else { 0 }];
        let meta_len = 4 + record::folds_len(states.len()) + message.envelope.len();
        let group = self.make_room(record::HEAD_LEN + meta_len + inline_len, Who::Message)?;
        let head = |crc| RecordHead::message(message.id, message.recipients, len as u32, crc);
        let (head, chunks) = match message.content {
            NewContent::Inline(chunks) => {
                (head(chunks.iter().fold(0, |sum, chunk| crc32c::crc32c_append(sum, chunk))), chunks)
            }
            NewContent::Spilled { front, crc, .. } => (head(crc).with_file(front), Vec::new()),
        };
        let head = RecordHead { order: self.next_order(), ..head };
        self.position += 1;
        let position = self.position;
        // A message of a group is kept whole until it is durable, so that it can be appended again with its group.
        let kept_content = if group == 0 { Vec::new() } else { chunks.clone() };
        let (content, meta) =
            self.put(head, meta_len, |out| record::put_message(out, &states, message.envelope), chunks);
        let what = if group == 0 {
            What::Message { id: message.id, inline_len: inline_len as u32, spilled }
        } else {
            What::Keep(Again { head, meta, content: kept_content, homes: [None; 2] })
        };
        self.hold(Held { position, group, what }, true);
        Ok(Stored { position: Position(position), content })
    }

    /// Appends an outcome. `home` is the segment of the message's [`ContentRef`]. Never refused: if there is no room at
    /// all it waits in memory, and [`Log::accepts_outcomes`] is false until it found room.
    pub fn append_outcome(&mut self, outcome: Outcome<'_>, home: SegmentId) -> Position {
        let homes = self.homes_of(outcome.id, home);
        let order = self.next_order();
        let head = RecordHead { id: outcome.id, order, ..RecordHead::plain(RecordKind::Outcome) };
        self.append_kept(head, record::outcome_record_len(outcome.details.len()), homes, |out| {
            record::put_outcome(out, &outcome)
        })
    }

    /// Appends a note: opaque bytes that last as long as their segment.
    ///
    /// # Errors
    /// [`LogFull`]: nothing was appended.
    pub fn append_note(&mut self, note: &[u8]) -> Result<Position, LogFull> {
        let group = self.make_room(record::HEAD_LEN + note.len(), Who::Message)?;
        let head = RecordHead { order: self.next_order(), ..RecordHead::plain(RecordKind::Note) };
        self.position += 1;
        let position = self.position;
        let (_, meta) = self.put(head, note.len(), |out| out.extend_from_slice(note), Vec::new());
        let again = Again { head, meta, content: Vec::new(), homes: [None; 2] };
        self.hold(Held { position, group, what: What::Keep(again) }, false);
        Ok(Position(position))
    }

    /// Makes sure that what is appended next, up to `bytes` ([`record::message_record_len`] and
    /// [`record::outcome_record_len`] say how many), lands in one batch: it becomes durable whole or not at all. The
    /// group ends with [`Log::end_group`], [`Log::flush`], [`Log::handle_done`] or when it is full. If its segment
    /// fails, the log appends all of the group again, messages too; their new places come as [`LogEvent::Moved`].
    ///
    /// # Errors
    /// [`LogFull`]: no group was begun.
    pub fn reserve_group(&mut self, bytes: usize) -> Result<(), LogFull> {
        self.group = None;
        self.drain_pending();
        if self.something_waits() {
            return Err(self.why_full());
        }
        self.place(bytes, bytes / record::HEAD_LEN + 1, Who::Message)?;
        self.group = Some(Group { number: self.next_group, left: bytes });
        self.next_group += 1;
        Ok(())
    }

    /// What is appended from here on does not belong to the group any more.
    pub fn end_group(&mut self) {
        self.group = None;
    }

    /// Whether a message of usual size would be taken now. False: the disk is full or fails, or is far behind.
    pub fn accepts_messages(&self) -> bool {
        let room = (self.config.segment_size / 16) as usize;
        !self.something_waits() && self.place_would_do(room, Who::Message)
    }

    /// Why a message of usual size would be refused now; `None`: it would be taken.
    pub fn refusal_of_messages(&self) -> Option<LogFull> {
        if self.accepts_messages() {
            return None;
        }
        Some(self.refusal(Who::Message).unwrap_or_else(|| self.why_no_segment()))
    }

    /// Whether room that messages do not find now is on its way: segments are being prepared, or will be again a moment
    /// after a first failure, and nothing says that this will not do. What ends it comes with [`Log::handle_done`], or
    /// with [`Log::flush`] at its deadline.
    pub fn room_is_coming(&self) -> bool {
        self.segments_are_coming() && self.refusal(Who::Message).is_none()
    }

    /// Segments that are prepared and not in use.
    pub fn prepared_segments(&self) -> usize {
        self.ready.len()
    }

    /// Whether outcomes find room on disk, and few of them wait to be written. False: stop delivering until it is true
    /// again, since every outcome waits in memory, and a killed process would repeat it.
    pub fn accepts_outcomes(&self) -> bool {
        !self.something_waits()
            && self.outcomes_unwritten() < config::OUTCOMES_UNWRITTEN_MAX
            && self.place_would_do(record::outcome_record_len(4096), Who::Outcome)
    }

    /// Outcomes of batches that are not written, or stand behind one that is not: recovery does not read beyond a gap.
    /// A kill may leave one, since it cancels writes that still wait in the kernel while later ones are done.
    fn outcomes_unwritten(&self) -> usize {
        let batches = self.open.iter().flat_map(|segment| &segment.batches);
        let behind_a_gap: usize = batches.skip_while(|batch| batch.written).map(|batch| batch.lazy).sum();
        behind_a_gap + self.batch.as_ref().map_or(0, |batch| batch.lazy)
    }

    /// The last position given out: when this is durable, everything appended so far is.
    pub fn position(&self) -> Position {
        Position(self.position)
    }

    /// The end of a turn: writes the open batch if no write or sync is in flight or if it holds outcomes, else lets it
    /// grow; begins a sync if one is due; lets reclaim take a step. A `now_ms` that goes back counts as the last one.
    pub fn flush(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.group = None;
        self.advance();
        if let Some(batch) = &self.batch {
            let lazy = batch.lazy > 0 && self.writes_in_flight < config::WRITES_MAX;
            // What is written during a sync has to wait for the next one anyway: better that it grows until then.
            let quiet = self.writes_in_flight == 0 && self.sync.is_none();
            if quiet || lazy {
                self.close_batch();
            }
        }
        self.reclaim();
    }

    /// The next operation to perform.
    pub fn poll_op(&mut self) -> Option<DiskOp> {
        self.ops.pop_front()
    }

    /// The answer to an operation. Answers to unknown operations are passed over.
    pub fn handle_done(&mut self, done: DiskDone, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.group = None;
        let Some(call) = self.calls.remove(&done.op) else {
            return;
        };
        match call {
            Call::Prepare(segment) => self.prepared(segment, done.result),
            Call::Write(segment) => self.written(segment, done.op, done.result),
            Call::Sync => self.synced(done.result),
            Call::Read(call) => self.content_read(done.op, call, done.result),
            Call::Recycle(segment) => self.recycled(segment, done.result),
            Call::SpillWrite(id) => self.spill_written(id, done.op, done.result),
            Call::SpillSync(id) => self.spill_synced(id, done.result),
            Call::Remove => self.removed(done.result),
            Call::CompactionIndex => self.compaction_index(done.result),
            Call::CompactionRecord(id) => self.compaction_record(id, done.result),
        }
        self.advance();
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<LogEvent> {
        let event = self.events.pop_front();
        if let Some(LogEvent::Moved { id, .. }) = &event {
            self.moved_unpolled = self.moved_unpolled.saturating_sub(1);
            if self.moving.get(id).is_some_and(|moving| moving.announced) {
                self.moving.remove(id);
            }
        }
        event
    }

    /// When [`Log::flush`] must be called at the latest, milliseconds on the clock of `flush`.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let pause = self.something_waits().then_some(self.paused_until_ms);
        [self.sync_deadline_ms(), self.prepare_retry_ms, pause.filter(|at| *at > self.now_ms)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether everything that was appended is durable and no write or sync is under way.
    pub fn is_idle(&self) -> bool {
        let usage = self.usage();
        usage.unsynced_bytes == 0 && usage.parked == 0 && self.batch.is_none() && self.pending.is_empty()
    }

    /// Counters and gauges.
    pub fn usage(&self) -> Usage {
        let tallies = || self.open.iter().map(|s| &s.tally).chain(self.kept.values().map(|k| &k.tally));
        let segments = self.open.len() + self.kept.len();
        Usage {
            segments,
            spares: self.ready.len(),
            bytes: segments as u64 * u64::from(self.config.segment_size),
            live_messages: tallies().map(|t| u64::from(t.live)).sum(),
            live_bytes: tallies().map(|t| t.live_bytes).sum(),
            unsynced_bytes: self.unsynced_bytes + self.batch.as_ref().map_or(0, |batch| u64::from(batch.len)),
            parked: self.pending.len(),
            quarantined: self.kept.values().filter(|k| k.damaged).count(),
            ..self.usage
        }
    }

    /// Whether records wait for room; nothing may overtake them.
    fn something_waits(&self) -> bool {
        !self.pending.is_empty() || self.cuts_waiting()
    }

    /// Room for a record of `total` bytes: in the group if there is one, else wherever it fits. Returns the group's
    /// number, 0 for none.
    fn make_room(&mut self, total: usize, who: Who) -> Result<u64, LogFull> {
        if let Some(group) = &mut self.group {
            if group.left >= total && self.batch.is_some() {
                group.left -= total;
                return Ok(group.number);
            }
            self.group = None;
        }
        self.drain_pending();
        if self.something_waits() {
            return Err(self.why_full());
        }
        self.place(total, 1, who)?;
        Ok(0)
    }

    /// Appends a record that the log itself repeats if its segment fails.
    fn append_kept(
        &mut self,
        head: RecordHead,
        total: usize,
        homes: [Option<SegmentId>; 2],
        write_meta: impl FnOnce(&mut BytesMut),
    ) -> Position {
        let room = self.make_room(total, Who::Outcome);
        self.position += 1;
        let position = self.position;
        match room {
            Ok(group) => {
                let (_, meta) = self.put(head, total - record::HEAD_LEN, write_meta, Vec::new());
                self.add_homes(homes);
                let again = Again { head, meta, content: Vec::new(), homes };
                self.hold(Held { position, group, what: What::Keep(again) }, false);
            }
            Err(_) => {
                self.scratch.reserve(total);
                write_meta(&mut self.scratch);
                let meta = self.scratch.split().freeze();
                let record = Again { head, meta, content: Vec::new(), homes };
                self.pending.push_back(Pending { position, group: 0, record });
            }
        }
        Position(position)
    }

    /// Puts a record into the open batch, in which [`Log::place`] made room. Returns where its content lies and its
    /// meta bytes.
    fn put(
        &mut self,
        mut head: RecordHead,
        meta_len: usize,
        write_meta: impl FnOnce(&mut BytesMut),
        content: Vec<Bytes>,
    ) -> (ContentRef, Bytes) {
        self.scratch.reserve(record::HEAD_LEN + meta_len);
        let start = RecordHead::begin(&mut self.scratch);
        write_meta(&mut self.scratch);
        let (Some(segment), Some(batch)) = (self.open.back_mut(), self.batch.as_mut()) else {
            unreachable!("a record is put only after place() opened a batch");
        };
        let offset = batch.offset + batch.len;
        head.seal(&mut self.scratch, start, segment.seed, offset);
        let bytes = self.scratch.split().freeze();
        let content_offset = offset + bytes.len() as u32;
        let inline_len = head.inline_len();
        segment.tally.push_entry(FooterEntry {
            kind: RecordKind::from_byte(head.kind).unwrap_or(RecordKind::Note),
            offset,
            meta_len: head.meta_len,
            inline_len,
            id: head.id,
        });
        batch.len += bytes.len() as u32 + inline_len;
        batch.records += 1;
        let meta = bytes.slice(record::HEAD_LEN..);
        batch.chunks.push(bytes);
        batch.chunks.extend(content.into_iter().filter(|chunk| !chunk.is_empty()));
        self.usage.records += 1;
        let content = ContentRef {
            segment: segment.id,
            offset: if head.spilled() { head.front() } else { content_offset },
            len: head.content_len,
            crc: head.content_crc,
            spilled: head.spilled(),
        };
        (content, meta)
    }

    /// Notes what is to be done with the record just put once its batch is durable or failed. `eager`: somebody waits.
    fn hold(&mut self, held: Held, eager: bool) {
        let now_ms = self.now_ms;
        if let Some(batch) = self.batch.as_mut() {
            batch.last_position = batch.last_position.max(held.position);
            batch.held.push(held);
            if eager {
                batch.eager = true;
            } else {
                batch.lazy += 1;
                batch.lazy_since_ms.get_or_insert(now_ms);
            }
        }
    }

    /// The next number in the order of all records, over restarts too: the run's epoch in the upper 24 bits.
    fn next_order(&mut self) -> u64 {
        self.orders += 1;
        u64::from(self.epoch) << 40 | self.orders
    }

    /// Records that outcomes in the open segment speak of messages in these segments.
    fn add_homes(&mut self, homes: [Option<SegmentId>; 2]) {
        for home in homes.into_iter().flatten() {
            // Before the old segments are adopted nobody knows which of them exist, so any may.
            let known = !self.adopted || self.kept.contains_key(&home) || self.open.iter().any(|s| s.id == home);
            if let Some(segment) = self.open.back_mut()
                && segment.id != home
                && known
            {
                segment.tally.add_home(home);
            }
        }
    }

    fn call(&mut self, call: Call) -> OpId {
        let op = OpId(self.next_op);
        self.next_op += 1;
        self.calls.insert(op, call);
        op
    }

    fn event(&mut self, event: LogEvent) {
        if let LogEvent::Moved { .. } = &event {
            self.moved_unpolled += 1;
        }
        self.events.push_back(event);
    }

    fn tally_mut(&mut self, segment: SegmentId) -> Option<&mut Tally> {
        if let Some(kept) = self.kept.get_mut(&segment) {
            return Some(&mut kept.tally);
        }
        self.open.iter_mut().find(|open| open.id == segment).map(|open| &mut open.tally)
    }
}
