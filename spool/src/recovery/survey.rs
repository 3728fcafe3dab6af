//! The first two passes of recovery: what is known of each segment, and where those end that nobody vouches for.

use super::headless::{Before, ends_at, first_batch};
use super::{Purpose, Recovery};
use crate::batch::{BATCH_HEAD_LEN, BatchHead};
use crate::disk::FileId;
use crate::log::HashSet;
use crate::reader::{Reader, WINDOW_SCAN, record_seed};
use crate::record::{Cut, HEAD_LEN, RecordKind};
use crate::segment::{BLOCK, FooterEntry, SegmentHeader, SegmentId, Trailer, checksum_seed, round_up};

/// What is known of one segment.
pub(super) struct Plan<'a> {
    pub(super) id: SegmentId,
    pub(super) damaged: bool,
    /// It has no header and may hold what was never durable (see `headless`).
    unsure: bool,
    pub(super) how: How<'a>,
    /// The end to state from now on.
    pub(super) cut: Option<Cut>,
}

/// How a segment is read.
pub(super) enum How<'a> {
    /// There is nothing in it.
    Nothing,
    /// It cannot be read at all.
    Lost,
    /// By its footer.
    Indexed { generation: u64 },
    /// Batch by batch.
    Batches(Box<Layout<'a>>),
}

/// A segment that is read batch by batch.
pub(super) struct Layout<'a> {
    pub(super) reader: Reader<'a>,
    pub(super) header: SegmentHeader,
    pub(super) seed: u32,
    batches: Vec<(u32, BatchHead)>,
    /// Everything below was on stable storage once: what is missing there is damage.
    floor: u32,
    /// Its end was stated, or its run is known to have gone beyond it.
    vouched: bool,
    /// Where its good batches end.
    pub(super) end: u32,
    pub(super) entries: Vec<FooterEntry>,
}

impl<'a> Recovery<'a> {
    /// The first pass, newest segments first.
    pub(super) fn survey(&mut self, id: SegmentId) -> Plan<'a> {
        let mut plan = Plan { id, damaged: false, unsure: false, how: How::Nothing, cut: None };
        let mut reader = match Reader::open(self.disk, FileId::Segment(id), WINDOW_SCAN) {
            Ok(reader) => reader,
            // Whoever uses the spool meanwhile has recycled it since it was listed: nothing in it was needed any more.
            Err(error) if self.purpose == Purpose::Verify && error.kind() == std::io::ErrorKind::NotFound => {
                return plan;
            }
            Err(error) => {
                self.damage(id, 0, 0, &format!("cannot be opened: {error}"));
                return Plan { damaged: true, how: How::Lost, ..plan };
            }
        };
        if let Some(header) = self.header(id, &mut reader, &mut plan.damaged, &mut plan.unsure) {
            if let Some(previous) = header.previous {
                self.previous.insert(previous, (header.epoch, header.previous_end));
            }
            plan.how = self.plan(reader, header, plan.unsure, &mut plan.damaged);
        } else if plan.damaged {
            plan.how = How::Lost;
        }
        plan
    }

    /// The header, or what stands for it when it is damaged. `None`: there is nothing to read.
    fn header(
        &mut self,
        id: SegmentId,
        reader: &mut Reader<'_>,
        damaged: &mut bool,
        unsure: &mut bool,
    ) -> Option<SegmentHeader> {
        if let Ok(header) = reader.header(id) {
            if header.size != reader.size() {
                self.damage(id, 0, 0, &format!("the file has {} bytes and should have {}", reader.size(), header.size));
                *damaged = true;
            }
            return Some(header);
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
        let epoch = trailer.map(|t| t.epoch).or(successor.map(|(epoch, _)| epoch)).or(cut.map(|_| u32::MAX));
        let Some(epoch) = epoch else {
            return self.headless(id, reader, damaged, unsure);
        };
        self.damage(id, 0, BLOCK, "the header is damaged");
        *damaged = true;
        let first = first_batch(reader, id).map(|head| head.generation);
        let Some(generation) = trailer.map(|t| t.generation).or(cut.map(|(generation, _)| generation)).or(first) else {
            self.damage(id, BLOCK, 0, "the first batch is damaged too: nothing of the segment can be told apart");
            return None;
        };
        let size = reader.size();
        Some(SegmentHeader { segment: id, generation, epoch, size, previous: None, previous_end: 0 })
    }

    /// Decides by what the records of a segment are found.
    fn plan(&mut self, mut reader: Reader<'a>, header: SegmentHeader, unsure: bool, damaged: &mut bool) -> How<'a> {
        let id = header.segment;
        let run = self.floors.get(&(id.log(), header.epoch)).copied().unwrap_or_default();
        let cut = self.cuts.get(&(id, header.generation)).copied();
        let settled = run.sequence > id.sequence();
        let trailer = reader.trailer(id).filter(|trailer| trailer.generation == header.generation);
        let all_durable = |end: u32| cut.map_or(settled, |cut| cut >= end);
        let seed = checksum_seed(id, header.generation);
        if let Some(trailer) = trailer.filter(|trailer| all_durable(trailer.appended_end)) {
            if let Some(footer) = reader.footer(&trailer, id) {
                for entry in footer.entries.iter().filter(|entry| entry.kind == RecordKind::Cut) {
                    self.take_cuts(&mut reader, entry.offset, footer.appended_end, seed);
                    self.keep_cuts(&mut reader, entry.offset, footer.appended_end, seed, id);
                }
                return How::Indexed { generation: header.generation };
            }
            // Behind a stated end the footer may never have been durable.
            if cut.is_none() {
                self.damage(id, trailer.appended_end, 0, "the footer is damaged; the segment was read without it");
                *damaged = true;
            }
        } else if trailer.is_none() {
            // The log went on only after the footer was durable, or a cut would say so. Where it did not go on, nothing is
            // read by the footer and a start need not know.
            let missing = settled && cut.is_none();
            if missing || (self.purpose == Purpose::Verify && reader.trailer_is_damaged()) {
                let at = reader.size().saturating_sub(Trailer::LEN);
                self.damage(id, at, Trailer::LEN, "the footer's trailer is damaged; the segment was read without it");
                *damaged = true;
            }
        }
        // Nobody vouches for all of it, so what the disk itself holds counts, header included.
        reader.drop_cache();
        if !*damaged && !unsure && reader.header(id) != Ok(header) {
            return How::Nothing;
        }
        let limit = cut.unwrap_or(header.size).min(reader.size());
        let batches = reader.batches(id, header.generation, limit);
        let mut own = 0;
        for (offset, batch) in &batches {
            let floor = self.floors.entry((id.log(), header.epoch)).or_default();
            *floor = (*floor).max(batch.durable_end);
            if batch.durable_end.sequence == id.sequence() {
                own = own.max(batch.durable_end.offset);
            }
            self.find_cuts(&mut reader, *offset, batch, seed);
        }
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
        let vouched = cut.is_some() || settled;
        let (end, entries) = (BLOCK, Vec::new());
        How::Batches(Box::new(Layout { reader, header, seed, batches, floor, vouched, end, entries }))
    }

    /// Cuts are facts wherever they stand, so they are taken from batches that turn out void as well.
    fn find_cuts(&mut self, reader: &mut Reader<'_>, offset: u32, batch: &BatchHead, seed: u32) {
        let (mut at, end) = (offset + BATCH_HEAD_LEN, offset + batch.len);
        for _ in 0..batch.records {
            let Some(head) = reader.peek(at, end) else {
                return;
            };
            if head.is(RecordKind::Cut) {
                self.take_cuts(reader, at, end, seed);
            }
            at += head.total_len() as u32;
        }
    }

    fn take_cuts(&mut self, reader: &mut Reader<'_>, at: u32, end: u32, seed: u32) {
        for cut in reader.record(at, end, seed).iter().flat_map(|view| view.cuts()) {
            let end = self.cuts.entry((cut.segment, cut.generation)).or_insert(cut.end);
            *end = (*end).min(cut.end);
        }
    }

    /// A cut in a record that lasts; its segment must outlive those it speaks of.
    fn keep_cuts(&mut self, reader: &mut Reader<'_>, at: u32, end: u32, seed: u32, segment: SegmentId) {
        for cut in reader.record(at, end, seed).iter().flat_map(|view| view.cuts()) {
            self.kept_cuts.insert((cut.segment, cut.generation));
            self.homes.entry(segment).or_default().insert(cut.segment);
        }
    }

    /// The second pass: oldest first, since behind the first gap of a run nothing was durable.
    pub(super) fn find_ends(&mut self, plans: &mut [Plan<'a>]) {
        let unused = plans.iter().filter(|plan| matches!(plan.how, How::Nothing)).map(|plan| plan.id);
        let unused: HashSet<SegmentId> = unused.collect();
        let ids: Vec<SegmentId> = plans.iter().map(|plan| plan.id).collect();
        let mut broken: HashSet<(u8, u32)> = HashSet::default();
        let mut before = Before::default();
        for plan in plans.iter_mut().rev() {
            let id = plan.id;
            let How::Batches(layout) = &mut plan.how else {
                before.meet(id, matches!(plan.how, How::Indexed { .. }), plan.damaged);
                continue;
            };
            let run = (id.log(), layout.header.epoch);
            if plan.unsure && (broken.contains(&run) || !before.continues(id, run.1)) {
                broken.insert(run);
                self.pass_over(plan, &ids, before.is_damaged(id, run.1));
                before.meet(id, false, plan.damaged);
                continue;
            }
            let found = !layout.batches.is_empty();
            // The segment before it was given out for writing, but nothing of it reached the disk.
            let gap = layout.header.previous.is_some_and(|previous| {
                let stated = self.cuts.keys().any(|(segment, _)| *segment == previous);
                layout.header.previous_end > 0 && unused.contains(&previous) && !stated
            });
            if gap && !layout.vouched {
                broken.insert(run);
            }
            let mut end = 0;
            if layout.vouched || !broken.contains(&run) {
                self.read_batches(layout, &mut plan.damaged);
                end = layout.end;
            } else {
                self.report.void_bytes += layout.batches.iter().map(|(_, batch)| u64::from(batch.len)).sum::<u64>();
            }
            let successor = self.previous.get(&id).filter(|(epoch, _)| *epoch == layout.header.epoch);
            if !layout.vouched && successor.is_some_and(|(_, appended)| *appended > end) {
                broken.insert(run);
            }
            let whole = layout.vouched || (!broken.contains(&run) && ends_at(&mut layout.reader, &layout.header, end));
            before.meet(id, whole, plan.damaged);
            let stated = self.cuts.contains_key(&(id, layout.header.generation));
            if !stated && self.purpose == Purpose::Start && found {
                // Stating the end makes it binding, so what was read must be on stable storage first.
                match self.disk.sync(id) {
                    // A cut would say that the header was durable too. The same is found again without it.
                    Ok(()) if plan.unsure && !plan.damaged => {}
                    Ok(()) => {
                        plan.cut = Some(Cut { segment: id, generation: layout.header.generation, end });
                    }
                    Err(error) => {
                        plan.damaged = true;
                        self.damage(id, 0, 0, &format!("cannot be synced: {error}"));
                    }
                }
            }
        }
        // A cut that stood in a batch that turned out void is stated again, so that the next recovery sees the same.
        for plan in plans.iter_mut().filter(|plan| plan.cut.is_none()) {
            let layout = match &plan.how {
                How::Batches(layout) => layout,
                How::Nothing => {
                    let mut void = self.cuts.iter().filter(|((id, _), end)| *id == plan.id && **end == 0);
                    let void = void.find(|(key, _)| !self.kept_cuts.contains(key));
                    plan.cut = void.map(|((segment, generation), end)| Cut {
                        segment: *segment,
                        generation: *generation,
                        end: *end,
                    });
                    continue;
                }
                How::Lost | How::Indexed { .. } => continue,
            };
            let key = (plan.id, layout.header.generation);
            if let Some(end) = self.cuts.get(&key).filter(|_| !self.kept_cuts.contains(&key)) {
                plan.cut = Some(Cut { segment: plan.id, generation: layout.header.generation, end: *end });
            }
        }
    }

    /// A segment without a header that may stand behind a gap of its run is void, and stays so: its end is stated, and
    /// the segments before it go after it. Where the segment before it, or it itself, is damaged, it is kept unread.
    fn pass_over(&mut self, plan: &mut Plan<'a>, ids: &[SegmentId], beside_damage: bool) {
        let How::Batches(layout) = std::mem::replace(&mut plan.how, How::Nothing) else {
            return;
        };
        let (id, header) = (plan.id, layout.header);
        if beside_damage || plan.damaged {
            self.damage(
                id,
                BLOCK,
                0,
                "without its header nobody can say whether its batches count: they are kept unread",
            );
            plan.damaged = true;
            plan.how = How::Lost;
            return;
        }
        self.report.void_bytes += layout.batches.iter().map(|(_, batch)| u64::from(batch.len)).sum::<u64>();
        if self.purpose == Purpose::Start {
            plan.cut = Some(Cut { segment: id, generation: header.generation, end: 0 });
        }
        let of_run = |other: &&SegmentId| (header.epoch..id.sequence()).contains(&other.sequence());
        for older in ids.iter().filter(|other| other.log() == id.log()).filter(of_run) {
            self.homes.entry(*older).or_default().insert(id);
        }
    }

    /// Reads batch after batch up to the first that never became durable.
    fn read_batches(&mut self, layout: &mut Layout<'a>, damaged: &mut bool) {
        let id = layout.header.segment;
        let (batches, floor) = (std::mem::take(&mut layout.batches), layout.floor);
        let (mut at, mut sequence) = (BLOCK, 0);
        let mut next = batches.iter().copied().peekable();
        loop {
            while next.peek().is_some_and(|(offset, batch)| *offset < at || batch.sequence < sequence) {
                next.next();
            }
            let here = next.peek().copied().filter(|(offset, batch)| *offset == at && batch.sequence == sequence);
            if let Some((offset, batch)) = here {
                let seed = record_seed(id, layout.header.generation, &batch);
                if offset >= floor && !batch_is_whole(&mut layout.reader, offset, &batch, seed) {
                    break;
                }
                *damaged |= !self.read_records(layout, offset, &batch, seed);
                at = round_up(offset + batch.len);
                sequence = batch.sequence + 1;
                layout.end = at;
                continue;
            }
            if at >= floor {
                break;
            }
            *damaged = true;
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

    /// Reads the records of one batch; false if some are damaged.
    fn read_records(&mut self, layout: &mut Layout<'a>, offset: u32, batch: &BatchHead, seed: u32) -> bool {
        let id = layout.header.segment;
        let end = offset + batch.len;
        let mut at = offset + BATCH_HEAD_LEN;
        for _ in 0..batch.records {
            let Some(head) = self.take_record(&mut layout.reader, at, end, seed, id) else {
                self.damage(id, at, end.saturating_sub(at), "records are damaged");
                return false;
            };
            if let Some(kind) = RecordKind::from_byte(head.kind) {
                if kind == RecordKind::Cut {
                    self.keep_cuts(&mut layout.reader, at, end, seed, id);
                }
                let (meta_len, inline_len) = (head.meta_len, head.inline_len());
                layout.entries.push(FooterEntry { kind, offset: at, meta_len, inline_len, id: head.id });
                self.report.notes += u64::from(kind == RecordKind::Note);
            } else {
                self.report.unknown += 1;
            }
            at += head.total_len() as u32;
        }
        true
    }
}

/// Whether every byte of a batch that may have been torn is as it was given out.
fn batch_is_whole(reader: &mut Reader<'_>, offset: u32, batch: &BatchHead, seed: u32) -> bool {
    let end = offset + batch.len;
    let mut at = offset + BATCH_HEAD_LEN;
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
