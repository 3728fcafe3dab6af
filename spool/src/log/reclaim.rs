//! Reclaim: giving segments back, and moving survivors out of sparse ones.
//!
//! Outcomes are tombstones. A segment that holds outcomes (or a moved copy of a message, or a cut) is recycled only
//! after every segment that holds what these speak of is durably recycled; `homes` counts those. A message that lives
//! in a mostly dead segment is moved as one record with its recipients' states folded in, and the source goes once all
//! its moves are durable. So neither old deferrals nor one slow message pin the disk. Reads under way, writes whose
//! answers are outstanding, and moves that the owner has not seen yet keep a segment.
//!
//! Not for deciding whether a message is live: the owner is asked. Fails by waiting: a segment that cannot be emptied or
//! recycled is tried again later.

use super::config::{MESSAGE_OVERHEAD, RECLAIM_RETRY_MS, RECYCLES_MAX};
use super::{Call, HashSet, Held, Log, LogEvent, What, Who};
use crate::disk::{DiskError, DiskOp, FileId};
use crate::record::{self, HEAD_LEN, RecipientFold, RecordHead, RecordKind, RecordView};
use crate::recovery::{RecoveredIndex, RecoveredSegment};
use crate::segment::{ContentRef, Footer, FooterEntry, SegmentId, Trailer, checksum_seed, footer_len};
use bytes::Bytes;

/// Where a segment's index of records is.
#[derive(Debug)]
enum Index {
    Memory(Vec<FooterEntry>),
    /// In the footer, with so many entries.
    Disk(usize),
}

/// What keeps a segment.
#[derive(Debug)]
pub(super) struct Tally {
    generation: u64,
    /// Messages whose record lies here and that are not durably finished or moved.
    pub(super) live: u32,
    pub(super) live_bytes: u64,
    /// Operations under way in it.
    pub(super) outstanding: usize,
    /// Segments that hold what the outcomes, moved messages and cuts in here speak of.
    homes: HashSet<SegmentId>,
    last_home: Option<SegmentId>,
    index: Index,
    /// Messages that were moved out already: the index still names them, but they live elsewhere.
    moved_out: HashSet<u64>,
}

impl Tally {
    pub(super) fn new(generation: u64) -> Tally {
        Tally {
            generation,
            live: 0,
            live_bytes: 0,
            outstanding: 0,
            homes: HashSet::default(),
            last_home: None,
            index: Index::Memory(Vec::new()),
            moved_out: HashSet::default(),
        }
    }

    pub(super) fn add_home(&mut self, home: SegmentId) {
        // Outcomes tend to come in runs about one segment.
        if self.last_home != Some(home) {
            self.homes.insert(home);
            self.last_home = Some(home);
        }
    }

    fn drop_home(&mut self, home: SegmentId) {
        self.homes.remove(&home);
        self.last_home = None;
    }

    pub(super) fn push_entry(&mut self, entry: FooterEntry) {
        if let Index::Memory(entries) = &mut self.index {
            entries.push(entry);
        }
    }

    pub(super) fn entries(&self) -> usize {
        match &self.index {
            Index::Memory(entries) => entries.len(),
            Index::Disk(count) => *count,
        }
    }

    pub(super) fn take_entries(&mut self) -> Vec<FooterEntry> {
        match &mut self.index {
            Index::Memory(entries) => std::mem::take(entries),
            Index::Disk(_) => Vec::new(),
        }
    }

    pub(super) fn restore_entries(&mut self, entries: Vec<FooterEntry>) {
        self.index = Index::Memory(entries);
    }

    /// The footer is durable: the entries are read from there if they are needed.
    pub(super) fn index_on_disk(&mut self) {
        self.index = Index::Disk(self.entries());
    }

    /// Records at or above `end` are void.
    pub(super) fn forget_beyond(&mut self, end: u32) {
        if let Index::Memory(entries) = &mut self.index {
            entries.retain(|entry| entry.offset < end);
            entries.shrink_to_fit();
        }
    }

    fn subtract(&mut self, bytes: u32) {
        self.live = self.live.saturating_sub(1);
        self.live_bytes = self.live_bytes.saturating_sub(u64::from(bytes));
    }

    /// Live bytes, with what live messages need besides their content.
    fn weight(&self) -> u64 {
        self.live_bytes + u64::from(self.live) * MESSAGE_OVERHEAD
    }
}

/// A segment that takes no more appends.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) tally: Tally,
    /// Its file had an error and is not used again.
    pub(super) failed: bool,
    /// Quarantined by recovery: kept for the operator.
    pub(super) damaged: bool,
    /// From before the start.
    recovered: bool,
    recycling: bool,
    not_before_ms: u64,
}

impl Kept {
    pub(super) fn new(tally: Tally) -> Kept {
        Kept { tally, failed: false, damaged: false, recovered: false, recycling: false, not_before_ms: 0 }
    }

    /// Whether nothing keeps it any more.
    fn is_free(&self) -> bool {
        self.tally.live == 0 && self.tally.outstanding == 0 && self.homes_gone() && !self.stays()
    }

    fn homes_gone(&self) -> bool {
        #[cfg(feature = "planted-faults")]
        if crate::planted::is(crate::planted::PlantedFault::TombstoneEarly) {
            return true;
        }
        self.tally.homes.is_empty()
    }

    fn stays(&self) -> bool {
        self.damaged || self.recycling
    }
}

/// A message whose outcomes are all final and that stops counting once they are durable.
#[derive(Debug)]
pub(super) struct Finishing {
    /// The position to wait for.
    pub(super) after: u64,
    id: u64,
    segment: SegmentId,
    inline_len: u32,
    spilled: bool,
}

/// A moved record from its append until its owner has seen the new place.
#[derive(Debug)]
pub(super) struct Moving {
    source: SegmentId,
    target: ContentRef,
    /// Its `Moved` event is in the queue.
    pub(super) announced: bool,
    /// The message was finished meanwhile, at this position.
    finished: Option<u64>,
}

/// Where one message stands on its way out of a sparse segment.
#[derive(Debug)]
enum MoveState {
    /// The owner is asked whether it is live.
    Asked,
    /// It is, in these states; its record is being read.
    Reading(Vec<RecipientFold>),
    /// The record is at hand, but the states changed: the owner is asked again.
    AskedAgain(Bytes),
}

#[derive(Debug)]
struct Move {
    entry: FooterEntry,
    state: MoveState,
    /// An outcome was appended after the states were given.
    stale: bool,
    /// It was finished, or its owner wants it to stay.
    cancelled: bool,
}

/// The segment being emptied.
#[derive(Debug)]
pub(super) struct Compaction {
    source: SegmentId,
    /// The messages in it; `None` until its footer is read.
    entries: Option<Vec<FooterEntry>>,
    next: usize,
    window: Vec<Move>,
    appended: usize,
    /// No new moves are begun: there is no room, or the source turned out damaged.
    stopped: bool,
}

impl Log {
    /// All recipients of a message have final outcomes appended. Once these are durable the message no longer keeps its
    /// segment, and its spilled content is removed. Call it once per message.
    pub fn finish(&mut self, id: u64, content: ContentRef) {
        if let Some(compaction) = &mut self.compaction {
            for moved in compaction.window.iter_mut().filter(|moved| moved.entry.id == id) {
                moved.cancelled = true;
            }
        }
        let mut segment = content.segment;
        if let Some(moving) = self.moving.get_mut(&id) {
            if !moving.announced {
                moving.finished = Some(self.position);
                return;
            }
            segment = moving.target.segment;
        }
        self.finishing.push_back(Finishing {
            after: self.position,
            id,
            segment,
            inline_len: if content.spilled { 0 } else { content.len },
            spilled: content.spilled,
        });
        self.release_finished();
    }

    /// Answers [`LogEvent::WantState`]: the states of all recipients as of now, in the envelope's order, or `None` if
    /// the message is finished.
    pub fn provide_state(&mut self, id: u64, states: Option<Vec<RecipientFold>>) {
        let Some(compaction) = &mut self.compaction else {
            return;
        };
        let waits = |m: &&mut Move| m.entry.id == id && !matches!(m.state, MoveState::Reading(_));
        let Some(moved) = compaction.window.iter_mut().find(waits) else {
            return;
        };
        let live = states.filter(|states| !states.iter().all(RecipientFold::is_final));
        let Some(states) = live.filter(|_| !moved.cancelled) else {
            compaction.window.retain(|m| m.entry.id != id);
            return;
        };
        moved.stale = false;
        let source = compaction.source;
        match std::mem::replace(&mut moved.state, MoveState::Asked) {
            MoveState::AskedAgain(bytes) => {
                let offset = moved.entry.offset;
                compaction.window.retain(|m| m.entry.id != id);
                self.append_move(source, offset, &bytes, &states);
            }
            _ => {
                moved.state = MoveState::Reading(states);
                let entry = moved.entry;
                let len = HEAD_LEN + entry.meta_len as usize + entry.inline_len as usize;
                self.compaction_read(source, entry.offset, len, Call::CompactionRecord(id));
            }
        }
    }

    /// Answers [`LogEvent::WantState`]: the message must stay where it is for now, since another shard reads it.
    pub fn keep_place(&mut self, id: u64) {
        if let Some(compaction) = &mut self.compaction {
            // One whose record is being read is passed over when the read is answered.
            compaction.window.iter_mut().filter(|m| m.entry.id == id).for_each(|m| m.cancelled = true);
            compaction.window.retain(|m| m.entry.id != id || matches!(m.state, MoveState::Reading(_)));
        }
    }

    /// Takes over what recovery found for this log's shard: once, at any time after the start.
    pub fn adopt(&mut self, segments: Vec<RecoveredSegment>) {
        let known: HashSet<SegmentId> = segments.iter().map(|s| s.segment).collect();
        for recovered in segments {
            let mut tally = Tally::new(recovered.generation);
            tally.live = recovered.live;
            tally.live_bytes = recovered.live_bytes;
            tally.moved_out.extend(recovered.moved_out);
            tally.index = match recovered.index {
                RecoveredIndex::Memory(entries) => Index::Memory(entries),
                RecoveredIndex::Footer(count) => Index::Disk(count),
            };
            let mut kept = Kept::new(tally);
            kept.damaged = recovered.damaged;
            kept.recovered = true;
            // Some may belong to other shards; these are taken off by `note_recycled`.
            for home in recovered.homes.into_iter().filter(|home| !self.gone.contains(home)) {
                kept.tally.add_home(home);
            }
            if let Some(cut) = recovered.cut {
                self.cuts.push((self.next_cut, cut));
                self.next_cut += 1;
            }
            self.kept.insert(recovered.segment, kept);
        }
        self.adopted = true;
        self.gone = HashSet::default();
        for (segment, bytes) in std::mem::take(&mut self.early_finished) {
            if let Some(tally) = self.tally_mut(segment) {
                tally.subtract(bytes);
            }
        }
        let exists: HashSet<SegmentId> = self.kept.keys().copied().chain(self.open.iter().map(|s| s.id)).collect();
        let own = self.kept.iter_mut().filter(|(id, _)| !known.contains(id)).map(|(_, kept)| &mut kept.tally);
        for tally in own.chain(self.open.iter_mut().map(|open| &mut open.tally)) {
            tally.homes.retain(|home| exists.contains(home));
            tally.last_home = None;
        }
        self.recycle_check = true;
    }

    /// Another shard's log said [`LogEvent::Recycled`].
    pub fn note_recycled(&mut self, segment: SegmentId) {
        if !self.adopted {
            self.gone.insert(segment);
        }
        self.drop_home(segment);
        self.recycle_check = true;
    }

    fn drop_home(&mut self, segment: SegmentId) {
        let kept = self.kept.values_mut().map(|kept| &mut kept.tally);
        for tally in kept.chain(self.open.iter_mut().map(|open| &mut open.tally)) {
            tally.drop_home(segment);
        }
    }

    /// The segments that keep an outcome about this message: its home, and while it moves both places.
    pub(super) fn homes_of(&mut self, id: u64, home: SegmentId) -> [Option<SegmentId>; 2] {
        if let Some(compaction) = &mut self.compaction {
            compaction.window.iter_mut().filter(|m| m.entry.id == id).for_each(|m| m.stale = true);
        }
        match self.moving.get(&id) {
            Some(moving) => [Some(moving.source), Some(moving.target.segment)],
            None => [Some(home), None],
        }
    }

    /// A message in this segment became durable.
    pub(super) fn count_live(&mut self, segment: SegmentId, inline_len: u32) {
        if let Some(tally) = self.tally_mut(segment) {
            tally.live += 1;
            tally.live_bytes += u64::from(inline_len);
        }
    }

    /// Lets go of the messages whose last outcomes are durable.
    pub(super) fn release_finished(&mut self) {
        while self.finishing.front().is_some_and(|finishing| finishing.after <= self.durable) {
            let Some(done) = self.finishing.pop_front() else {
                return;
            };
            let adopted = self.adopted;
            match self.tally_mut(done.segment) {
                Some(tally) => tally.subtract(done.inline_len),
                None if !adopted => self.early_finished.push((done.segment, done.inline_len)),
                None => {}
            }
            self.recycle_check = true;
            if done.spilled {
                self.remove_content(done.id);
            }
        }
    }

    /// A prepared segment that came too late to be filled in order.
    pub(super) fn keep_unused(&mut self, segment: SegmentId) {
        self.kept.insert(segment, Kept::new(Tally::new(0)));
        self.recycle_check = true;
    }

    /// One step: recycles what is free, and empties the sparsest segment if much is dead.
    pub(super) fn reclaim(&mut self) {
        // While the owner has not seen where a message went, it may still ask for the old place.
        if self.recycle_check && self.moved_unpolled == 0 {
            self.recycle_check = false;
            self.recycle_free();
        }
        if self.compaction.is_none() && self.now_ms >= self.compact_at_ms {
            self.compact_at_ms = self.now_ms + self.config.compact_interval_ms;
            self.begin_compaction();
        }
        self.step_compaction();
    }

    fn recycle_free(&mut self) {
        let now_ms = self.now_ms;
        let source = self.compaction.as_ref().map(|compaction| compaction.source);
        let free = self
            .kept
            .iter()
            .filter(|(id, kept)| kept.is_free() && kept.not_before_ms <= now_ms && source != Some(**id));
        let free: Vec<SegmentId> =
            free.map(|(id, _)| *id).take(RECYCLES_MAX.saturating_sub(self.recycles_in_flight)).collect();
        for segment in free {
            let op = self.call(Call::Recycle(segment));
            let Some(kept) = self.kept.get_mut(&segment) else {
                continue;
            };
            kept.recycling = true;
            self.recycles_in_flight += 1;
            self.ops.push_back(match kept.failed {
                true => DiskOp::Discard { op, segment },
                false => DiskOp::Recycle { op, segment },
            });
        }
    }

    /// A recycle was answered.
    pub(super) fn recycled(&mut self, segment: SegmentId, result: Result<Bytes, DiskError>) {
        self.recycles_in_flight = self.recycles_in_flight.saturating_sub(1);
        self.recycle_check = true;
        match result {
            Ok(_) | Err(DiskError::NotFound) => {
                let recovered = self.kept.remove(&segment).is_some_and(|kept| kept.recovered);
                self.usage.recycled += 1;
                self.prepare_retry_ms = self.prepare_retry_ms.filter(|at| *at == u64::MAX);
                self.drop_home(segment);
                if recovered {
                    self.event(LogEvent::Recycled { segment });
                }
            }
            Err(error) => {
                if let Some(kept) = self.kept.get_mut(&segment) {
                    kept.recycling = false;
                    kept.not_before_ms = self.now_ms + RECLAIM_RETRY_MS;
                }
                self.event(LogEvent::Trouble(format!("segment {segment} could not be recycled: {error}")));
            }
        }
    }

    /// Chooses a segment to empty if dead bytes outweigh live ones.
    fn begin_compaction(&mut self) {
        // Segments whose retry time came are looked at again.
        self.recycle_check = true;
        let size = u64::from(self.config.segment_size);
        let live: u64 = self.kept.values().map(|kept| kept.tally.weight()).sum();
        let total = self.kept.len() as u64 * size;
        let dead = total.saturating_sub(live);
        if dead <= live + self.config.slack_segments * size && !self.disk_full {
            return;
        }
        // Only a segment that speaks of no other is free at once when it is emptied; the oldest always is such a one.
        let fit = |kept: &Kept| {
            kept.tally.live > 0 && kept.tally.homes.is_empty() && !kept.stays() && kept.not_before_ms <= self.now_ms
        };
        let sparse = self.kept.iter().filter(|(_, kept)| fit(kept) && kept.tally.weight() * 2 <= size);
        let sparsest = sparse.min_by_key(|(_, kept)| kept.tally.weight()).map(|(id, _)| *id);
        // Without a sparse one, the dead bytes are outcomes that wait for their homes: empty the oldest home.
        let oldest = || self.kept.iter().filter(|(_, kept)| fit(kept)).min_by_key(|(id, _)| id.sequence());
        let Some(source) = sparsest.or_else(|| oldest().map(|(id, _)| *id)) else {
            return;
        };
        let Some(kept) = self.kept.get(&source) else {
            return;
        };
        let entries = match &kept.tally.index {
            Index::Memory(entries) => Some(entries.clone()),
            Index::Disk(_) => None,
        };
        let footer = footer_len(kept.tally.entries());
        let ask = entries.is_none();
        let entries = entries.map(|entries| self.movable(source, entries));
        self.compaction =
            Some(Compaction { source, entries, next: 0, window: Vec::new(), appended: 0, stopped: false });
        if ask {
            let at = self.config.segment_size.saturating_sub(footer);
            self.compaction_read(source, at, footer as usize, Call::CompactionIndex);
        }
    }

    /// The messages among a segment's records that were not moved out before.
    fn movable(&mut self, source: SegmentId, mut entries: Vec<FooterEntry>) -> Vec<FooterEntry> {
        if let Some(tally) = self.tally_mut(source) {
            entries.retain(|e| e.kind == RecordKind::Message && !tally.moved_out.contains(&e.id));
        }
        entries
    }

    fn compaction_read(&mut self, source: SegmentId, offset: u32, len: usize, call: Call) {
        if let Some(tally) = self.tally_mut(source) {
            tally.outstanding += 1;
        }
        let op = self.call(call);
        self.ops.push_back(DiskOp::Read { op, file: FileId::Segment(source), offset: u64::from(offset), len });
    }

    /// Asks the owner about further messages, or ends the compaction when all went their way.
    fn step_compaction(&mut self) {
        let window = self.config.moves_max;
        let Some(compaction) = &mut self.compaction else {
            return;
        };
        let Some(entries) = &compaction.entries else {
            return;
        };
        let mut asked = Vec::new();
        while !compaction.stopped && compaction.window.len() + compaction.appended < window {
            let Some(entry) = entries.get(compaction.next) else {
                compaction.stopped = true;
                break;
            };
            compaction.next += 1;
            compaction.window.push(Move { entry: *entry, state: MoveState::Asked, stale: false, cancelled: false });
            asked.push(entry.id);
        }
        if compaction.stopped && compaction.window.is_empty() && compaction.appended == 0 {
            let source = compaction.source;
            self.compaction = None;
            self.recycle_check = true;
            self.compact_at_ms = self.now_ms;
            if let Some(kept) = self.kept.get_mut(&source)
                && kept.tally.live > 0
            {
                kept.not_before_ms = self.now_ms + RECLAIM_RETRY_MS;
                self.compact_at_ms = self.now_ms + self.config.compact_interval_ms;
            }
        }
        for id in asked {
            self.event(LogEvent::WantState { id });
        }
    }

    /// The footer of the source was read.
    pub(super) fn compaction_index(&mut self, result: Result<Bytes, DiskError>) {
        let size = self.config.segment_size;
        let Some(source) = self.compaction.as_ref().map(|compaction| compaction.source) else {
            return;
        };
        let entries = result.ok().and_then(|bytes| {
            let split = bytes.len().checked_sub(Trailer::LEN as usize)?;
            let trailer = Trailer::decode(&bytes[split..], source, size)?;
            let (_, len) = trailer.entries_at(size);
            let first = split.checked_sub(len as usize)?;
            Footer::decode(&trailer, &bytes[first..split], source).map(|footer| footer.entries)
        });
        let found = entries.map(|entries| self.movable(source, entries));
        let readable = found.is_some();
        if let Some(compaction) = &mut self.compaction {
            compaction.entries = Some(found.unwrap_or_default());
        }
        if !readable {
            self.event(LogEvent::Trouble(format!("segment {source}: its footer cannot be read; it is kept as it is")));
        }
        self.let_go(source);
    }

    /// The record of a message to be moved was read.
    pub(super) fn compaction_record(&mut self, id: u64, result: Result<Bytes, DiskError>) {
        let Some(compaction) = &mut self.compaction else {
            return;
        };
        let source = compaction.source;
        let reads = |m: &Move| m.entry.id == id && matches!(m.state, MoveState::Reading(_));
        if let Some(place) = compaction.window.iter().position(reads) {
            let moved = &mut compaction.window[place];
            match result {
                _ if moved.cancelled => {
                    compaction.window.swap_remove(place);
                }
                Ok(bytes) if moved.stale => {
                    moved.state = MoveState::AskedAgain(bytes);
                    self.event(LogEvent::WantState { id });
                }
                Ok(bytes) => {
                    let moved = compaction.window.swap_remove(place);
                    if let MoveState::Reading(states) = moved.state {
                        self.append_move(source, moved.entry.offset, &bytes, &states);
                    }
                }
                Err(error) => {
                    compaction.window.swap_remove(place);
                    compaction.stopped = true;
                    self.event(LogEvent::Trouble(format!("segment {source}: a message cannot be moved: {error}")));
                }
            }
        }
        self.let_go(source);
    }

    /// Appends a survivor in its new place.
    fn append_move(&mut self, source: SegmentId, offset: u32, bytes: &Bytes, states: &[RecipientFold]) {
        let generation = self.tally_mut(source).map_or(0, |tally| tally.generation);
        let checked = RecordView::decode(bytes, checksum_seed(source, generation), offset);
        let whole = checked.and_then(|view| view.message().map(|message| (view.head, message.envelope)));
        let Some((head, envelope)) = whole.filter(|(head, _)| head.recipients as usize == states.len()) else {
            self.move_refused(source, "a message's record is damaged and stays where it is");
            return;
        };
        let content = bytes.slice(HEAD_LEN + head.meta_len as usize..);
        if !head.spilled()
            && (content.len() != head.content_len as usize || crc32c::crc32c(&content) != head.content_crc)
        {
            self.move_refused(source, "a message's content is damaged and stays where it is");
            return;
        }
        let meta_len = 4 + record::folds_len(states.len()) + envelope.len();
        self.drain_pending();
        if self.something_waits() || self.place(HEAD_LEN + meta_len + content.len(), 1, Who::Move).is_err() {
            if let Some(compaction) = &mut self.compaction {
                compaction.stopped = true;
            }
            return;
        }
        let head = RecordHead { order: self.next_order(), ..head.moved() };
        let (target, _) = self.put(head, meta_len, |out| record::put_message(out, states, envelope), vec![content]);
        // The new copy is what buries the old one, so it lasts as long as that.
        self.add_homes([Some(source), None]);
        self.hold(Held { position: 0, group: 0, what: What::Move { id: head.id } }, false);
        self.moving.insert(head.id, Moving { source, target, announced: false, finished: None });
        if let Some(compaction) = &mut self.compaction {
            compaction.appended += 1;
        }
    }

    fn move_refused(&mut self, source: SegmentId, why: &str) {
        if let Some(compaction) = &mut self.compaction {
            compaction.stopped = true;
        }
        if let Some(kept) = self.kept.get_mut(&source) {
            kept.damaged = true;
        }
        self.event(LogEvent::Trouble(format!("segment {source}: {why}; the segment is kept for an operator")));
    }

    /// A moved record is durable in its new place.
    pub(super) fn move_durable(&mut self, id: u64) {
        if let Some(compaction) = &mut self.compaction {
            compaction.appended = compaction.appended.saturating_sub(1);
        }
        let Some(moving) = self.moving.get_mut(&id) else {
            return;
        };
        moving.announced = true;
        let (source, target, finished) = (moving.source, moving.target, moving.finished);
        let inline_len = if target.spilled { 0 } else { target.len };
        if let Some(tally) = self.tally_mut(source) {
            tally.subtract(inline_len);
            tally.moved_out.insert(id);
        }
        self.count_live(target.segment, inline_len);
        self.usage.moved += 1;
        self.recycle_check = true;
        match finished {
            Some(after) => {
                self.moving.remove(&id);
                self.insert_finishing(after, id, target.segment, target);
            }
            None => self.event(LogEvent::Moved { id, content: target }),
        }
    }

    /// The segment of a moved record failed: the message still lies in its old place.
    pub(super) fn move_failed(&mut self, id: u64) {
        if let Some(compaction) = &mut self.compaction {
            compaction.appended = compaction.appended.saturating_sub(1);
            compaction.stopped = true;
        }
        if let Some(moving) = self.moving.remove(&id)
            && let Some(after) = moving.finished
        {
            self.insert_finishing(after, id, moving.source, moving.target);
        }
    }

    /// Puts a finished message in line by its position.
    fn insert_finishing(&mut self, after: u64, id: u64, segment: SegmentId, content: ContentRef) {
        let place = self.finishing.partition_point(|finishing| finishing.after <= after);
        let inline_len = if content.spilled { 0 } else { content.len };
        self.finishing.insert(place, Finishing { after, id, segment, inline_len, spilled: content.spilled });
    }
}
