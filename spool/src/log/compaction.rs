//! Moving survivors out of a sparse segment: one segment at a time, a bounded number of messages under way.
//!
//! For each message the owner is asked for its state, the record is read, and it is appended again with its states
//! folded in; if an outcome was appended meanwhile, the owner is asked once more, so that the fold and its place in the
//! order of records agree. Fails by stopping: what was not moved stays in its place, and the segment is looked at again
//! later.

use super::commit::{Held, What};
use super::config::{MOVE_PADDING_PART, OUTCOME_ROOM_PART, RECLAIM_RETRY_MS};
use super::reclaim::{Index, Kept};
use super::{Call, Log, LogEvent, Who};
use crate::disk::{DiskError, DiskOp, FileId};
use crate::record::{self, HEAD_LEN, RecipientFold, RecordHead, RecordKind, RecordView};
use crate::segment::{BLOCK, ContentRef, Footer, FooterEntry, SegmentId, Trailer, checksum_seed, footer_len};
use bytes::Bytes;

/// A moved record from its append until its owner has seen the new place.
#[derive(Debug)]
pub(super) struct Moving {
    pub(super) source: SegmentId,
    pub(super) target: ContentRef,
    /// Its `Moved` event is in the queue.
    pub(super) announced: bool,
    /// The message was finished meanwhile, at this position.
    pub(super) finished: Option<u64>,
}

/// Where one message stands on its way out of a sparse segment.
#[derive(Debug)]
pub(super) enum MoveState {
    /// The owner is asked whether it is live.
    Asked,
    /// It is, in these states; its record is being read.
    Reading(Vec<RecipientFold>),
    /// The record is at hand, but the states changed: the owner is asked again.
    AskedAgain(Bytes),
}

#[derive(Debug)]
pub(super) struct Move {
    pub(super) entry: FooterEntry,
    pub(super) state: MoveState,
    /// An outcome was appended after the states were given.
    pub(super) stale: bool,
    /// It was finished, or its owner wants it to stay.
    pub(super) cancelled: bool,
}

/// The segment being emptied.
#[derive(Debug)]
pub(super) struct Compaction {
    pub(super) source: SegmentId,
    /// The messages in it; `None` until its footer is read.
    pub(super) entries: Option<Vec<FooterEntry>>,
    pub(super) next: usize,
    pub(super) window: Vec<Move>,
    pub(super) appended: usize,
    /// No new moves are begun: there is no room, or the source turned out damaged.
    pub(super) stopped: bool,
}

impl Log {
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

    /// Chooses a segment to empty if dead bytes outweigh live ones.
    pub(super) fn begin_compaction(&mut self) {
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
        // Moves give room only once the last one is durable. Half of them would use up what is held back for outcomes, and
        // then neither could go on.
        if self.room_for_moves() < kept.tally.weight() + kept.tally.weight() / MOVE_PADDING_PART {
            return;
        }
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

    /// Bytes that moves may take, of the prepared segments, or of the open one where there are none and no message competes
    /// for it; a part is left to outcomes.
    fn room_for_moves(&self) -> u64 {
        let size = u64::from(self.config.segment_size);
        let room = match (self.ready.len() as u64, self.active()) {
            (0, None) => 0,
            (0, Some(active)) => size - u64::from(active.end.min(self.config.segment_size)),
            (prepared, _) => prepared * (size - u64::from(BLOCK)),
        };
        room.saturating_sub(size / OUTCOME_ROOM_PART)
    }

    /// The messages among a segment's records that were not moved out before.
    pub(super) fn movable(&mut self, source: SegmentId, mut entries: Vec<FooterEntry>) -> Vec<FooterEntry> {
        if let Some(tally) = self.tally_mut(source) {
            entries.retain(|e| e.kind == RecordKind::Message && !tally.moved_out.contains(&e.id));
        }
        entries
    }

    pub(super) fn compaction_read(&mut self, source: SegmentId, offset: u32, len: usize, call: Call) {
        if let Some(tally) = self.tally_mut(source) {
            tally.outstanding += 1;
        }
        let op = self.call(call);
        self.ops.push_back(DiskOp::Read { op, file: FileId::Segment(source), offset: u64::from(offset), len });
    }

    /// Asks the owner about further messages, or ends the compaction when all went their way.
    pub(super) fn step_compaction(&mut self) {
        let window = self.config.moves_max;
        let source = self.compaction.as_ref().map(|compaction| compaction.source);
        let live = source.and_then(|source| self.tally_mut(source)).map_or(0, |tally| tally.live);
        let Some(compaction) = &mut self.compaction else {
            return;
        };
        // The last of its messages may finish while the owner is being asked.
        if live == 0 && !compaction.window.iter().any(|m| matches!(m.state, MoveState::Reading(_))) {
            compaction.window.clear();
            compaction.stopped = true;
        }
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
    pub(super) fn append_move(&mut self, source: SegmentId, offset: u32, bytes: &Bytes, states: &[RecipientFold]) {
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

    pub(super) fn move_refused(&mut self, source: SegmentId, why: &str) {
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
}
