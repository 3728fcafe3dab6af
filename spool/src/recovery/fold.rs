//! The third pass of recovery: outcomes are folded into their messages, and messages that are not done are handed out.

use super::survey::{How, Layout, Plan};
use super::{Damage, Purpose, RecoveredIndex, RecoveredMessage, RecoveredSegment, Recovery};
use crate::disk::FileId;
use crate::reader::{Reader, WINDOW_PICK, WINDOW_SCAN};
use crate::record::{HEAD_LEN, OutcomeKind, RecipientFold, RecordHead, RecordKind};
use crate::segment::{BLOCK, ContentRef, Footer, FooterEntry, SegmentId, checksum_seed, round_up};

/// What is known of a message before its record is met.
#[derive(Debug, Default)]
pub(super) struct Facts {
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

/// What a message's record is worth.
enum Placed {
    /// It waits, with its recipients in these states.
    Live(Vec<RecipientFold>),
    /// All its recipients are done.
    Done,
    /// A newer copy of it was met.
    Moved,
}

impl<'a> Recovery<'a> {
    /// The third pass, newest segments first.
    pub(super) fn read_segment(
        &mut self,
        plan: Plan<'a>,
        emit: &mut dyn FnMut(u8, RecoveredMessage),
    ) -> RecoveredSegment {
        let mut recovered = RecoveredSegment {
            segment: plan.id,
            live: 0,
            live_bytes: 0,
            damaged: plan.damaged,
            generation: 0,
            homes: Vec::new(),
            index: RecoveredIndex::Memory(Vec::new()),
            moved_out: Vec::new(),
            cut: plan.cut,
        };
        match plan.how {
            How::Nothing | How::Lost => {}
            How::Indexed { generation } => self.read_indexed(generation, &mut recovered, emit),
            How::Batches(layout) => {
                let Layout { mut reader, header, seed, end, entries, .. } = *layout;
                self.read_messages(&mut reader, &entries, seed, &mut recovered, emit);
                self.note_unreadable(&mut reader, end, &mut recovered);
                recovered.generation = header.generation;
                recovered.index = RecoveredIndex::Memory(entries);
            }
        }
        recovered
    }

    /// Reads a segment by its footer, and its contents not at all.
    fn read_indexed(
        &mut self,
        generation: u64,
        recovered: &mut RecoveredSegment,
        emit: &mut dyn FnMut(u8, RecoveredMessage),
    ) {
        let id = recovered.segment;
        recovered.generation = generation;
        let opened = Reader::open(self.disk, FileId::Segment(id), WINDOW_PICK).ok();
        let footer = opened.and_then(|mut reader| {
            let trailer = reader.trailer(id)?;
            reader.will_read(0, u64::from(trailer.appended_end));
            Some((reader.footer(&trailer, id)?, reader))
        });
        let Some((footer, mut reader)) = footer else {
            self.damage(id, 0, 0, "its footer cannot be read any more");
            recovered.damaged = true;
            return;
        };
        let seed = checksum_seed(id, generation);
        for entry in &footer.entries {
            self.report.notes += u64::from(entry.kind == RecordKind::Note);
            if entry.kind == RecordKind::Outcome
                && self.take_record(&mut reader, entry.offset, footer.appended_end, seed, id).is_none()
            {
                self.damage(id, entry.offset, HEAD_LEN as u32 + entry.meta_len, "a record is damaged");
                recovered.damaged = true;
            }
        }
        self.read_messages(&mut reader, &footer.entries, seed, recovered, emit);
        if self.purpose == Purpose::Verify {
            recovered.damaged |= self.verify_batches(&mut reader, &footer, id);
        }
        self.note_unreadable(&mut reader, footer.appended_end, recovered);
        recovered.index = RecoveredIndex::Footer(footer.entries.len());
    }

    fn note_unreadable(&mut self, reader: &mut Reader<'_>, end: u32, recovered: &mut RecoveredSegment) {
        for offset in std::mem::take(&mut reader.unreadable) {
            if offset < u64::from(end) {
                self.damage(recovered.segment, offset as u32, BLOCK, "the disk cannot read this block");
                recovered.damaged = true;
            }
        }
    }

    /// Checks one record and keeps what it says, unless it is a message.
    pub(super) fn take_record(
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
        Some(head)
    }

    /// Hands out the messages of a segment whose outcomes, here and in newer segments, are all known.
    fn read_messages(
        &mut self,
        reader: &mut Reader<'_>,
        entries: &[FooterEntry],
        seed: u32,
        recovered: &mut RecoveredSegment,
        emit: &mut dyn FnMut(u8, RecoveredMessage),
    ) {
        let id = recovered.segment;
        let messages = entries.iter().filter(|entry| entry.kind == RecordKind::Message);
        for entry in messages {
            let view = reader.record(entry.offset, reader.size(), seed);
            let parts = view.and_then(|view| {
                let message = view.message()?;
                let folds = message.folds();
                Some((view.head, folds, message.envelope.to_vec()))
            });
            let Some((head, folds, envelope)) = parts.filter(|(head, _, _)| head.id == entry.id) else {
                let (offset, len) = (u64::from(entry.offset), HEAD_LEN as u64 + u64::from(entry.meta_len));
                let what = "a message's record is damaged".to_owned();
                self.report.damage.push(Damage {
                    file: FileId::Segment(id),
                    offset,
                    len,
                    message: Some(entry.id),
                    what,
                });
                recovered.damaged = true;
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
                offset: if head.spilled() { head.front() } else { entry.offset + HEAD_LEN as u32 + head.meta_len },
                len: head.content_len,
                crc: head.content_crc,
                spilled: head.spilled(),
            };
            if self.purpose == Purpose::Verify {
                recovered.damaged |= self.verify_content(reader, head.id, &content);
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
        // An older segment cannot speak of this one, and must never wait for it.
        for holder in facts.holders.iter().filter(|holder| holder.sequence() > segment.sequence()) {
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

    /// Compares what a start does not need to look at where a footer is good: the headers of batches, and records that
    /// are neither messages nor outcomes. True if some are damaged.
    fn verify_batches(&mut self, reader: &mut Reader<'_>, footer: &Footer, id: SegmentId) -> bool {
        let seed = checksum_seed(id, footer.generation);
        let (mut at, mut sequence, mut damaged) = (BLOCK, 0, false);
        let mut bad = |from: u32, to: u32, recovery: &mut Self| {
            recovery.damage(id, from, to - from, "a batch's header is damaged; its records are found by the footer");
            damaged = true;
        };
        let mut entries = footer.entries.iter().peekable();
        for (offset, batch) in reader.batches(id, footer.generation, footer.appended_end) {
            let end = offset + batch.len;
            while entries.next_if(|entry| entry.offset < offset).is_some() {}
            let within = std::iter::from_fn(|| entries.next_if(|entry| entry.offset < end)).count();
            if offset > at || batch.sequence != sequence {
                bad(at, offset.max(at + BLOCK), self);
            } else if within != batch.records as usize {
                bad(offset, end, self);
            }
            at = round_up(end);
            sequence = batch.sequence.wrapping_add(1);
        }
        if at < footer.appended_end {
            bad(at, footer.appended_end, self);
        }
        let others = |entry: &&FooterEntry| matches!(entry.kind, RecordKind::Note | RecordKind::Cut);
        for entry in footer.entries.iter().filter(others) {
            if reader.record(entry.offset, footer.appended_end, seed).is_none() {
                self.damage(id, entry.offset, HEAD_LEN as u32 + entry.meta_len, "a record is damaged");
                damaged = true;
            }
        }
        damaged
    }

    /// Compares a content with its checksum; true if it is damaged.
    fn verify_content(&mut self, reader: &mut Reader<'_>, id: u64, content: &ContentRef) -> bool {
        let (file, good) = if content.spilled {
            let file = FileId::Content(id);
            let good = Reader::open(self.disk, file, WINDOW_SCAN)
                .is_ok_and(|mut spilled| spilled.content_is(u64::from(content.offset), content.len, content.crc));
            (file, good)
        } else {
            let good = reader.content_is(u64::from(content.offset), content.len, content.crc);
            (FileId::Segment(content.segment), good)
        };
        if !good {
            let what = "its content is damaged or missing".to_owned();
            let (offset, len) = (u64::from(content.offset), u64::from(content.len));
            self.report.damage.push(Damage { file, offset, len, message: Some(id), what });
        }
        !good
    }
}

/// Applies outcomes younger than `base`. A final outcome stays final: of several the first counts; of others the last.
fn fold_facts(states: &mut [RecipientFold], base: u64, facts: &mut [Fact]) {
    facts.sort_unstable_by_key(|fact| fact.order);
    for fact in facts.iter().filter(|fact| fact.order > base) {
        if let Some(state) = states.get_mut(fact.recipient as usize)
            && !state.kind.is_some_and(OutcomeKind::is_final)
        {
            *state = fact.fold;
        }
    }
}
