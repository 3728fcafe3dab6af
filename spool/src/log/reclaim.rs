//! Reclaim: giving segments back, and moving survivors out of sparse ones.
//!
//! Outcomes are tombstones. A segment that holds outcomes (or a moved copy of a message, or a cut) is recycled only
//! after every segment that holds what these speak of is durably recycled; `homes` counts those. A message that lives
//! in a mostly dead segment is moved as one record with its recipients' states folded in, and the source goes once all
//! its moves are durable. So neither old deferrals nor one slow message pin the disk. Reads under way, writes whose
//! answers are outstanding, and moves that the owner has not seen yet keep a segment.
//!
//! Not for deciding whether a message is live: the owner is asked. Fails by waiting: a segment that cannot be emptied
//! or recycled is tried again later.

use super::config::{MESSAGE_OVERHEAD, RECLAIM_RETRY_MS, RECYCLES_MAX};
use super::{Call, HashSet, Log, LogEvent};
use crate::disk::{DiskError, DiskOp};
use crate::recovery::{RecoveredIndex, RecoveredSegment};
use crate::segment::{ContentRef, FooterEntry, SegmentId};
use bytes::Bytes;

/// Where a segment's index of records is.
#[derive(Debug)]
pub(super) enum Index {
    Memory(Vec<FooterEntry>),
    /// In the footer, with so many entries.
    Disk(usize),
}

/// What keeps a segment.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) generation: u64,
    /// Messages whose record lies here and that are not durably finished or moved.
    pub(super) live: u32,
    pub(super) live_bytes: u64,
    /// Operations under way in it.
    pub(super) outstanding: usize,
    /// Segments that hold what the outcomes, moved messages and cuts in here speak of.
    pub(super) homes: HashSet<SegmentId>,
    pub(super) last_home: Option<SegmentId>,
    pub(super) index: Index,
    /// Messages that were moved out already: the index still names them, but they live elsewhere.
    pub(super) moved_out: HashSet<u64>,
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

    pub(super) fn drop_home(&mut self, home: SegmentId) {
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

    pub(super) fn subtract(&mut self, bytes: u32) {
        self.live = self.live.saturating_sub(1);
        self.live_bytes = self.live_bytes.saturating_sub(u64::from(bytes));
    }

    /// Live bytes, with what live messages need besides their content.
    pub(super) fn weight(&self) -> u64 {
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
    pub(super) recovered: bool,
    pub(super) recycling: bool,
    pub(super) not_before_ms: u64,
}

impl Kept {
    pub(super) fn new(tally: Tally) -> Kept {
        Kept { tally, failed: false, damaged: false, recovered: false, recycling: false, not_before_ms: 0 }
    }

    /// Whether nothing keeps it any more.
    pub(super) fn is_free(&self) -> bool {
        self.tally.live == 0 && self.tally.outstanding == 0 && self.homes_gone() && !self.stays()
    }

    pub(super) fn homes_gone(&self) -> bool {
        #[cfg(feature = "planted-faults")]
        if crate::planted::is(crate::planted::PlantedFault::TombstoneEarly) {
            return true;
        }
        self.tally.homes.is_empty()
    }

    pub(super) fn stays(&self) -> bool {
        self.damaged || self.recycling
    }
}

/// A message whose outcomes are all final and that stops counting once they are durable.
#[derive(Debug)]
pub(super) struct Finishing {
    /// The position to wait for.
    pub(super) after: u64,
    pub(super) id: u64,
    pub(super) segment: SegmentId,
    pub(super) inline_len: u32,
    pub(super) spilled: bool,
}

impl Log {
    /// All recipients of a message that was reported durable have final outcomes appended. Once these are durable the message no longer keeps its
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

    pub(super) fn drop_home(&mut self, segment: SegmentId) {
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

    pub(super) fn recycle_free(&mut self) {
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

    /// Puts a finished message in line by its position.
    pub(super) fn insert_finishing(&mut self, after: u64, id: u64, segment: SegmentId, content: ContentRef) {
        let place = self.finishing.partition_point(|finishing| finishing.after <= after);
        let inline_len = if content.spilled { 0 } else { content.len };
        self.finishing.insert(place, Finishing { after, id, segment, inline_len, spilled: content.spilled });
    }
}
