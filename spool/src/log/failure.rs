//! What follows when a write or a sync failed: messages are reported, outcomes and notes wait to be appended again, and
//! a cut record says where the failed segments really end. Records that find no room wait here too, in order.

use super::commit::{Again, Held, OpenSegment, What};
use super::config::{FAILURE_PAUSE_MS, FAILURE_PAUSE_MS_MAX};
use super::reclaim::Kept;
use super::{Log, LogEvent, Pending, Position, Who};
use crate::record::{self, Cut, RecordHead, RecordKind};

impl Log {
    /// A write or the sync of an open segment failed: what is not durable in it and in those begun after it is void.
    /// Those after it go too, so that what is durable is always a beginning of what was appended.
    pub(super) fn settle_failed(&mut self, place: usize) {
        let batch = if self.active_or_failing() { self.batch.take() } else { None };
        let mut segments: Vec<OpenSegment> = self.open.drain(place..).collect();
        if let Some(newest) = segments.last() {
            self.last = Some((newest.id, newest.durable_end));
        }
        let mut held: Vec<Held> = Vec::new();
        for segment in &mut segments {
            let cut = Cut { segment: segment.id, generation: segment.generation, end: segment.durable_end };
            self.cuts.push((self.next_cut, cut));
            self.next_cut += 1;
            for batch in segment.batches.drain(..) {
                self.unsynced_bytes = self.unsynced_bytes.saturating_sub(u64::from(batch.bytes));
                held.extend(batch.held);
            }
        }
        held.extend(batch.into_iter().flat_map(|batch| batch.held));
        let void = self.void_records(held, self.next_cut - 1);
        // Those that wait for outcomes in the void part now wait for their repetition.
        let position = self.position;
        for finishing in &mut self.finishing {
            finishing.after = position;
        }
        for segment in segments {
            self.keep_failed(segment, void);
        }
        self.usage.failures += 1;
        self.recycle_check = true;
        self.failures_in_row += 1;
        if self.failures_in_row > 1 {
            let doubled = FAILURE_PAUSE_MS << (self.failures_in_row - 2).min(16);
            self.paused_until_ms = self.now_ms + doubled.min(FAILURE_PAUSE_MS_MAX);
        }
        // With nothing left to become durable, no later sync would let go of messages whose outcomes are durable.
        if self.open.is_empty() && self.pending.is_empty() {
            self.durable = self.position;
            self.release_finished();
        }
    }

    /// Whether the newest open segment takes appends, or would if it had not failed.
    pub(super) fn active_or_failing(&self) -> bool {
        self.open.back().is_some_and(|segment| !segment.sealed)
    }

    pub(super) fn keep_failed(&mut self, mut segment: OpenSegment, void: usize) {
        if let Some(error) = &segment.failed {
            self.event(LogEvent::Trouble(format!(
                "segment {}: {error}; it is closed at offset {}, {void} messages were answered with 451",
                segment.id, segment.durable_end
            )));
        }
        segment.tally.forget_beyond(segment.durable_end);
        segment.tally.outstanding += segment.writes;
        let mut kept = Kept::new(segment.tally);
        kept.failed = segment.failed.is_some();
        self.kept.insert(segment.id, kept);
    }

    /// Reports the messages among void records and queues the others to be appended again. Returns how many messages
    /// were reported.
    pub(super) fn void_records(&mut self, held: Vec<Held>, cut: u64) -> usize {
        let mut run: Option<(u64, u64)> = None;
        let mut count = 0;
        for Held { position, group, what } in held {
            match what {
                What::Message { id, spilled, .. } => {
                    count += 1;
                    run = match run {
                        Some((from, to)) if to + 1 == position => Some((from, position)),
                        ended => {
                            self.report_failed(ended);
                            Some((position, position))
                        }
                    };
                    if spilled {
                        self.void_contents.push((cut, id));
                    }
                }
                What::Keep(record) => {
                    self.position += 1;
                    self.pending.push_back(Pending { position: self.position, group, record });
                }
                What::Move { id } => self.move_failed(id),
                What::Cuts { .. } => self.cuts_stated = 0,
            }
        }
        self.report_failed(run);
        count
    }

    pub(super) fn report_failed(&mut self, run: Option<(u64, u64)>) {
        if let Some((from, to)) = run {
            self.event(LogEvent::Failed { from: Position(from), to: Position(to) });
        }
    }

    /// Whether a cut is in no batch yet.
    pub(super) fn cuts_waiting(&self) -> bool {
        self.cuts.last().is_some_and(|(number, _)| *number > self.cuts_stated)
    }

    /// Appends what waits for room: cuts first, then records in the order of their positions.
    pub(super) fn drain_pending(&mut self) {
        if self.cuts_waiting() {
            self.drop_needless_cuts();
        }
        if self.cuts_waiting() {
            if self.place(record::cuts_record_len(self.cuts.len()), 1, Who::Outcome).is_err() {
                return;
            }
            self.put_cut_record();
        }
        while let Some(first) = self.pending.front() {
            let group = first.group;
            let together = |p: &&Pending| group != 0 && p.group == group;
            let count = self.pending.iter().take_while(together).count().max(1);
            let len = self.pending.iter().take(count).map(|p| p.record.total_len()).sum();
            if self.place(len, count, Who::Outcome).is_err() {
                return;
            }
            for _ in 0..count {
                if let Some(pending) = self.pending.pop_front() {
                    self.put_again(pending);
                }
            }
        }
    }

    /// A cut says nothing any more once its segment is gone.
    pub(super) fn drop_needless_cuts(&mut self) {
        let kept = &self.kept;
        self.cuts.retain(|(_, cut)| kept.contains_key(&cut.segment));
        let cuts = &self.cuts;
        let (keep, gone) =
            self.void_contents.drain(..).partition::<Vec<_>, _>(|(n, _)| cuts.iter().any(|(c, _)| c == n));
        self.void_contents = keep;
        for (_, content) in gone {
            self.remove_content(content);
        }
    }

    pub(super) fn put_cut_record(&mut self) {
        let cuts: Vec<Cut> = self.cuts.iter().map(|(_, cut)| *cut).collect();
        let through = self.cuts.last().map_or(0, |(number, _)| *number);
        let head = RecordHead { order: self.next_order(), ..RecordHead::plain(RecordKind::Cut) };
        self.put(head, cuts.len() * 16, |out| record::put_cuts(out, &cuts), Vec::new());
        for cut in &cuts {
            self.add_homes([Some(cut.segment), None]);
        }
        self.cuts_stated = through;
        self.hold(Held { position: 0, group: 0, what: What::Cuts { through } }, false);
    }

    pub(super) fn put_again(&mut self, pending: Pending) {
        let Pending { position, group, record } = pending;
        let meta = record.meta.clone();
        let (content, meta) =
            self.put(record.head, meta.len(), |out| out.extend_from_slice(&meta), record.content.clone());
        self.add_homes(record.homes);
        let message = record.head.is(RecordKind::Message);
        if message {
            self.event(LogEvent::Moved { id: record.head.id, content });
        }
        self.hold(Held { position, group, what: What::Keep(Again { meta, ..record }) }, message);
    }
}
