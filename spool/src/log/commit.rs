//! Group commit: the open batch, writes and the one sync in flight, and what happens when one of them fails.
//!
//! Several writes may be in flight. A sync makes durable only the contiguous prefix of batches whose writes were
//! answered before the sync was given out, and segments settle in order, so "durable up to here" never skips anything.
//! An error is final for its segment: what was durable before stays, the rest of it and of segments begun after it is
//! void, and a cut record, the first in the next segment, says so, since the failed bytes may be on disk all the same.
//! A failed sync is never tried again: the kernel may have dropped the pages and would report success.

use super::reclaim::{Kept, Tally};
use super::{Call, Log, LogEvent, LogFull, Position, Who};
use crate::batch::{BATCH_HEAD_LEN, BatchHead, DurableEnd};
use crate::disk::{DiskError, DiskOp, OpId};
use crate::record::{Cut, HEAD_LEN, RecordHead, RecordKind};
use crate::segment::{BLOCK, Footer, SegmentHeader, SegmentId, checksum_seed, footer_len, round_up};
use bytes::Bytes;
use std::collections::VecDeque;

/// A record that is appended again if its segment fails.
#[derive(Debug)]
pub(super) struct Again {
    pub(super) head: RecordHead,
    pub(super) meta: Bytes,
    /// Of a message in a group; empty for others.
    pub(super) content: Vec<Bytes>,
    /// The segments that hold the message it speaks of.
    pub(super) homes: [Option<SegmentId>; 2],
}

impl Again {
    pub(super) fn total_len(&self) -> usize {
        HEAD_LEN + self.meta.len() + self.content.iter().map(Bytes::len).sum::<usize>()
    }
}

/// A record whose batch is not durable yet.
#[derive(Debug)]
pub(super) struct Held {
    /// 0 for the log's own records, which nobody waits for.
    pub(super) position: u64,
    /// 0 for none.
    pub(super) group: u64,
    pub(super) what: What,
}

/// What a record is to the log until it is durable.
#[derive(Debug)]
pub(super) enum What {
    /// A peer waits for it and is told if it fails.
    Message { id: u64, inline_len: u32, spilled: bool },
    /// The log repeats it if it fails.
    Keep(Again),
    /// A survivor of another segment: if it fails it simply still lies there.
    Move { id: u64 },
    /// States all cuts up to this number.
    Cuts { through: u64 },
}

/// The batch that appends go into.
#[derive(Debug)]
pub(super) struct OpenBatch {
    pub(super) offset: u32,
    /// Bytes so far, the header included.
    pub(super) len: u32,
    pub(super) records: u32,
    /// The first is kept free for the header.
    pub(super) chunks: Vec<Bytes>,
    pub(super) held: Vec<Held>,
    pub(super) last_position: u64,
    pub(super) eager: bool,
    pub(super) lazy: usize,
    pub(super) lazy_since_ms: Option<u64>,
}

/// A batch that was given out for writing, or a footer.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) op: OpId,
    pub(super) written: bool,
    /// Where the next one begins.
    pub(super) end: u32,
    pub(super) bytes: u32,
    pub(super) last_position: u64,
    pub(super) held: Vec<Held>,
    pub(super) eager: bool,
    pub(super) lazy: usize,
    pub(super) lazy_since_ms: Option<u64>,
}

/// A segment that holds something not durable, or takes appends.
#[derive(Debug)]
pub(super) struct OpenSegment {
    pub(super) id: SegmentId,
    pub(super) seed: u32,
    pub(super) tally: Tally,
    pub(super) generation: u64,
    pub(super) header: Option<SegmentHeader>,
    pub(super) end: u32,
    pub(super) durable_end: u32,
    pub(super) next_batch: u32,
    pub(super) batches: VecDeque<Batch>,
    pub(super) sealed: bool,
    /// The error that ended it.
    pub(super) failed: Option<DiskError>,
    pub(super) writes: usize,
}

/// The sync under way: always of the oldest open segment.
#[derive(Copy, Clone, Debug)]
pub(super) struct SyncInFlight {
    pub(super) batches: usize,
}

impl Log {
    /// Whether a record of `len` bytes would find room, without making any.
    pub(super) fn place_would_do(&self, len: usize, who: Who) -> bool {
        if self.refusal(who).is_some() {
            return false;
        }
        let at = match (&self.batch, self.active()) {
            (Some(batch), _) => round_up(batch.offset + batch.len),
            (None, Some(active)) => active.end,
            (None, None) => u32::MAX,
        };
        let here = at != u32::MAX && self.fits(at, BATCH_HEAD_LEN as usize + len, 1);
        (here && (who != Who::Message || !self.ready.is_empty())) || self.ready.len() >= segments_needed(who)
    }

    /// Opens a batch with room for `records` records of `len` bytes in all, in the open segment or the next one.
    pub(super) fn place(&mut self, len: usize, records: usize, who: Who) -> Result<(), LogFull> {
        if let Some(refusal) = self.refusal(who) {
            return Err(refusal);
        }
        if let Some(batch) = &self.batch {
            // Messages must leave a prepared segment behind for outcomes, even where the open one has room.
            if who == Who::Message && self.ready.is_empty() {
                return Err(self.why_no_segment());
            }
            let grown = batch.len as usize + len;
            if self.fits(batch.offset, grown, records) && (batch.records == 0 || grown <= self.config.max_batch) {
                return Ok(());
            }
            if self.fits(round_up(batch.offset + batch.len), BATCH_HEAD_LEN as usize + len, records) {
                self.close_batch();
                self.open_batch();
                return Ok(());
            }
        } else if let Some(active) = self.active()
            && self.fits(active.end, BATCH_HEAD_LEN as usize + len, records)
        {
            if who == Who::Message && self.ready.is_empty() {
                return Err(self.why_no_segment());
            }
            self.open_batch();
            return Ok(());
        }
        let largest = u64::from(self.config.segment_size - BLOCK - BATCH_HEAD_LEN);
        if len as u64 + u64::from(footer_len(records)) + u64::from(BLOCK) > largest {
            return Err(LogFull::TooLarge);
        }
        if self.ready.len() < segments_needed(who) {
            return Err(self.why_no_segment());
        }
        self.close_batch();
        self.seal();
        self.activate();
        self.open_batch();
        Ok(())
    }

    /// Why nothing can be appended whatever the room.
    pub(super) fn refusal(&self, who: Who) -> Option<LogFull> {
        if self.now_ms < self.paused_until_ms {
            return Some(LogFull::Failing);
        }
        let waiting = self.unsynced_bytes + self.batch.as_ref().map_or(0, |batch| u64::from(batch.len));
        (who != Who::Outcome && waiting > self.config.unsynced_max).then_some(LogFull::Behind)
    }

    /// The reason to give while records wait for room.
    pub(super) fn why_full(&self) -> LogFull {
        self.refusal(Who::Outcome).unwrap_or_else(|| self.why_no_segment())
    }

    /// Whether a batch of `len` bytes at `offset` leaves room for the footer.
    pub(super) fn fits(&self, offset: u32, len: usize, records: usize) -> bool {
        let entries = self.active().map_or(0, |active| active.tally.entries()) + records;
        let end = u64::from(offset) + len as u64;
        end.next_multiple_of(u64::from(BLOCK)) + u64::from(footer_len(entries)) <= u64::from(self.config.segment_size)
    }

    pub(super) fn active(&self) -> Option<&OpenSegment> {
        self.open.back().filter(|segment| !segment.sealed && segment.failed.is_none())
    }

    pub(super) fn open_batch(&mut self) {
        if let Some(active) = self.open.back() {
            self.batch = Some(OpenBatch {
                offset: active.end,
                len: BATCH_HEAD_LEN,
                records: 0,
                chunks: vec![Bytes::new()],
                held: Vec::new(),
                last_position: 0,
                eager: false,
                lazy: 0,
                lazy_since_ms: None,
            });
        }
    }

    /// Takes the next prepared segment.
    pub(super) fn activate(&mut self) {
        let Some(id) = self.ready.pop_first() else {
            return;
        };
        let generation = self.rng.next();
        let header = SegmentHeader {
            segment: id,
            generation,
            epoch: self.epoch,
            size: self.config.segment_size,
            previous: self.last.map(|(previous, _)| previous),
            previous_end: self.last.map_or(0, |(_, end)| end),
        };
        self.open.push_back(OpenSegment {
            id,
            seed: checksum_seed(id, generation),
            tally: Tally::new(generation),
            generation,
            header: Some(header),
            end: BLOCK,
            durable_end: 0,
            next_batch: 0,
            batches: VecDeque::new(),
            sealed: false,
            failed: None,
            writes: 0,
        });
        self.prepare_more();
    }

    /// How far the log is durable, as batches state it. Never beyond a failed segment whose cut is not durable.
    pub(super) fn stated_end(&self) -> DurableEnd {
        let own = |cut: &Cut| cut.segment.log() == self.config.log && cut.segment.sequence() >= self.epoch;
        let cut = self.cuts.iter().map(|(_, cut)| cut).filter(|cut| own(cut));
        let cut = cut.map(|cut| DurableEnd { sequence: cut.segment.sequence(), offset: cut.end });
        let front = self.open.front();
        let front = front.map(|s| DurableEnd { sequence: s.id.sequence(), offset: s.durable_end });
        cut.chain(front).min().unwrap_or_default()
    }

    /// Gives the open batch out for writing.
    pub(super) fn close_batch(&mut self) {
        let Some(mut batch) = self.batch.take() else {
            return;
        };
        let durable_end = self.stated_end();
        let op = OpId(self.next_op);
        let Some(segment) = self.open.back_mut() else {
            return;
        };
        if batch.records == 0 {
            return;
        }
        let head = BatchHead {
            generation: segment.generation,
            sequence: segment.next_batch,
            records: batch.records,
            len: batch.len,
            durable_end,
        };
        let head = head.encode(segment.id, batch.offset);
        // The first write of a segment carries its header block too: one write, one sync.
        let (offset, head) = match segment.header.take() {
            Some(header) => {
                let mut bytes = header.encode();
                bytes.extend_from_slice(&head);
                (0, Bytes::from(bytes))
            }
            None => (batch.offset, Bytes::copy_from_slice(&head)),
        };
        batch.chunks[0] = head;
        let end = round_up(batch.offset + batch.len);
        let bytes = end - offset;
        segment.end = end;
        segment.next_batch += 1;
        segment.writes += 1;
        segment.batches.push_back(Batch {
            op,
            written: false,
            end,
            bytes,
            last_position: batch.last_position,
            held: batch.held,
            eager: batch.eager,
            lazy: batch.lazy,
            lazy_since_ms: batch.lazy_since_ms,
        });
        let segment = segment.id;
        self.call(Call::Write(segment));
        self.give_write(op, segment, offset, batch.chunks, bytes);
        self.usage.batches += 1;
    }

    pub(super) fn give_write(&mut self, op: OpId, segment: SegmentId, offset: u32, chunks: Vec<Bytes>, bytes: u32) {
        self.writes_in_flight += 1;
        self.unsynced_bytes += u64::from(bytes);
        self.usage.bytes_written += u64::from(bytes);
        self.ops.push_back(DiskOp::Write { op, segment, offset: u64::from(offset), chunks, len: bytes as usize });
    }

    /// Ends the open segment with its footer. The open batch was closed before.
    pub(super) fn seal(&mut self) {
        if self.active().is_none() {
            return;
        }
        let op = OpId(self.next_op);
        let Some(segment) = self.open.back_mut() else {
            return;
        };
        let footer = Footer {
            generation: segment.generation,
            epoch: self.epoch,
            appended_end: segment.end,
            entries: segment.tally.take_entries(),
        };
        let bytes = footer.encode(segment.id);
        let len = bytes.len() as u32;
        segment.sealed = true;
        segment.writes += 1;
        segment.batches.push_back(Batch {
            op,
            written: false,
            end: self.config.segment_size,
            bytes: len,
            last_position: 0,
            held: Vec::new(),
            eager: false,
            lazy: 0,
            lazy_since_ms: None,
        });
        let (id, end) = (segment.id, segment.end);
        // The index stays in memory until the footer is durable: a failure in between needs it.
        segment.tally.restore_entries(footer.entries);
        self.last = Some((id, end));
        self.call(Call::Write(id));
        self.give_write(op, id, self.config.segment_size - len, vec![Bytes::from(bytes)], len);
    }

    /// A write was answered.
    pub(super) fn written(&mut self, id: SegmentId, op: OpId, result: Result<Bytes, DiskError>) {
        self.writes_in_flight = self.writes_in_flight.saturating_sub(1);
        if let Some(segment) = self.open.iter_mut().find(|segment| segment.id == id) {
            segment.writes = segment.writes.saturating_sub(1);
            match result {
                Ok(_) => {
                    if let Some(batch) = segment.batches.iter_mut().find(|batch| batch.op == op) {
                        batch.written = true;
                        #[cfg(feature = "planted-faults")]
                        if crate::planted::is(crate::planted::PlantedFault::AckBeforeSync) {
                            self.events.push_back(LogEvent::Durable(Position(batch.last_position)));
                        }
                    }
                }
                Err(error) => {
                    segment.failed.get_or_insert(error);
                }
            }
        } else if let Some(kept) = self.kept.get_mut(&id) {
            kept.tally.outstanding = kept.tally.outstanding.saturating_sub(1);
            self.recycle_check = true;
        }
    }

    /// The sync was answered.
    pub(super) fn synced(&mut self, result: Result<Bytes, DiskError>) {
        let Some(sync) = self.sync.take() else {
            return;
        };
        match result {
            Ok(_) => {
                self.failures_in_row = 0;
                self.usage.syncs += 1;
                self.usage.synced_batches += sync.batches as u64;
                self.settle_durable(sync.batches);
            }
            Err(error) => {
                if let Some(front) = self.open.front_mut() {
                    front.failed.get_or_insert(error);
                }
            }
        }
    }

    /// The first `count` batches of the oldest open segment are durable.
    pub(super) fn settle_durable(&mut self, count: usize) {
        let before = self.durable;
        for _ in 0..count {
            let Some(front) = self.open.front_mut() else {
                return;
            };
            let id = front.id;
            let Some(batch) = front.batches.pop_front() else {
                break;
            };
            front.durable_end = batch.end;
            self.unsynced_bytes = self.unsynced_bytes.saturating_sub(u64::from(batch.bytes));
            self.durable = self.durable.max(batch.last_position);
            for held in batch.held {
                self.settle_record(id, held);
            }
        }
        if self.durable > before {
            self.event(LogEvent::Durable(Position(self.durable)));
        }
        self.release_finished();
    }

    pub(super) fn settle_record(&mut self, segment: SegmentId, held: Held) {
        match held.what {
            What::Message { inline_len, .. } => self.count_live(segment, inline_len),
            What::Keep(again) => {
                if again.head.is(RecordKind::Message) {
                    self.count_live(segment, again.head.inline_len());
                }
            }
            What::Move { id } => self.move_durable(id),
            What::Cuts { through } => {
                self.cuts.retain(|(number, _)| *number > through);
                let (done, rest) =
                    self.void_contents.drain(..).partition::<Vec<_>, _>(|(number, _)| *number <= through);
                self.void_contents = rest;
                for (_, content) in done {
                    self.remove_content(content);
                }
            }
        }
    }

    /// All that follows from an answer or from time going on.
    pub(super) fn advance(&mut self) {
        loop {
            let syncing = self.sync.is_some();
            let failed =
                self.open.iter().enumerate().find(|(place, s)| s.failed.is_some() && !(syncing && *place == 0));
            if let Some((place, _)) = failed {
                self.settle_failed(place);
                continue;
            }
            let settled = self.open.front().is_some_and(|front| front.sealed && front.batches.is_empty());
            if settled && !syncing {
                self.keep_front();
                continue;
            }
            break;
        }
        self.begin_sync();
        self.drain_pending();
        self.prepare_more();
    }

    /// The oldest open segment is sealed and durable.
    pub(super) fn keep_front(&mut self) {
        if let Some(mut front) = self.open.pop_front() {
            front.tally.index_on_disk();
            self.kept.insert(front.id, Kept::new(front.tally));
            self.recycle_check = true;
        }
    }

    /// The one sync at a time, when one is due.
    pub(super) fn begin_sync(&mut self) {
        if self.sync.is_some() {
            return;
        }
        let Some(front) = self.open.front().filter(|front| front.failed.is_none()) else {
            return;
        };
        let written = front.batches.iter().take_while(|batch| batch.written).count();
        if written == 0 {
            return;
        }
        let prefix = || front.batches.iter().take(written);
        let eager = prefix().any(|batch| batch.eager);
        let sealed = front.sealed && written == front.batches.len();
        let lazy = prefix().map(|batch| batch.lazy).sum::<usize>();
        let oldest = prefix().filter_map(|batch| batch.lazy_since_ms).min();
        let late = oldest.is_some_and(|since| since + self.config.outcome_sync_ms <= self.now_ms);
        if !(eager || sealed || late || lazy >= self.config.outcome_sync_count) {
            return;
        }
        let segment = front.id;
        let op = self.call(Call::Sync);
        self.sync = Some(SyncInFlight { batches: written });
        self.ops.push_back(DiskOp::Sync { op, segment });
    }

    /// When the oldest unsynced outcome is due.
    pub(super) fn sync_deadline_ms(&self) -> Option<u64> {
        if self.sync.is_some() {
            return None;
        }
        let written = self.open.front()?.batches.iter().take_while(|batch| batch.written);
        let oldest = written.filter_map(|batch| batch.lazy_since_ms).min()?;
        Some(oldest + self.config.outcome_sync_ms)
    }
}

/// How many prepared segments there must be for one to be taken.
const fn segments_needed(who: Who) -> usize {
    match who {
        // One stays behind for outcomes and for survivors that make room.
        Who::Message => 2,
        Who::Move | Who::Outcome => 1,
    }
}
