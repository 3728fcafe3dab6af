//! Segments without a good header of which nothing else says that they were used: a first write that a power cut tore,
//! or damage to the last segment of a run.
//!
//! What tells them apart: the header lies in one sector, so a torn write leaves there the zeros of preparing or the
//! whole header. Anything else is damage. So is a missing header where a batch of the segment states that the segment
//! was durable beyond its first block, since the header was then durable too. What is left (zeros, and batches that were
//! perhaps never synced) is read as any end of a run is: what is whole counts, if the run surely has no gap before it,
//! and the rest is void. It is not reported, since nothing is lost by it.
//!
//! The generation is taken only from places that never hold content: block 1, where the first batch of every use of the
//! file begins, and the trailer. A batch head met elsewhere may be part of a message, so it can raise an alarm at most.

use super::{Purpose, Recovery};
use crate::batch::{BATCH_HEAD_LEN, BatchHead};
use crate::disk::FileId;
use crate::log::HashMap;
use crate::reader::{Reader, record_seed};
use crate::segment::{BLOCK, SEGMENT_SIZE_MIN, SegmentHeader, SegmentId, round_up};

/// The head of the first batch of a segment, of whatever generation.
pub(crate) fn first_batch(reader: &mut Reader<'_>, id: SegmentId) -> Option<BatchHead> {
    BatchHead::decode(reader.bytes(u64::from(BLOCK), BATCH_HEAD_LEN as usize)?, id, BLOCK)
}

/// What looks like batches of a segment, of whatever generation, below `limit`.
pub(super) fn any_batches(reader: &mut Reader<'_>, id: SegmentId, limit: u32) -> Vec<(u32, BatchHead)> {
    let mut found = Vec::new();
    let (mut offset, limit) = (BLOCK, limit.min(reader.size()));
    while offset < limit {
        let bytes = reader.bytes(u64::from(offset), BATCH_HEAD_LEN as usize);
        let head = bytes.and_then(|bytes| BatchHead::decode(bytes, id, offset));
        found.extend(head.map(|head| (offset, head)));
        offset += BLOCK;
    }
    found
}

/// The run that wrote a segment, by the order of its records.
fn epoch_of(reader: &mut Reader<'_>, id: SegmentId, generation: u64, batches: &[(u32, BatchHead)]) -> Option<u32> {
    batches.iter().find_map(|(offset, batch)| {
        let seed = record_seed(id, generation, batch);
        let view = reader.record(offset + BATCH_HEAD_LEN, offset + batch.len, seed)?;
        Some((view.head.order >> 40) as u32)
    })
}

impl Recovery<'_> {
    /// What stands for the header that is missing, where nothing else says that the segment was used. `unsure` becomes
    /// true if it may hold what was never durable, so that it counts only if its run has no gap before it.
    pub(super) fn headless(
        &mut self,
        id: SegmentId,
        reader: &mut Reader<'_>,
        damaged: &mut bool,
        unsure: &mut bool,
    ) -> Option<SegmentHeader> {
        let size = reader.size();
        if !size.is_multiple_of(BLOCK) || size < SEGMENT_SIZE_MIN {
            self.damage(id, 0, 0, &format!("the file has {size} bytes, which no segment has"));
            *damaged = true;
        }
        // What counts is what the disk itself holds.
        reader.drop_cache();
        let blank = reader.bytes(0, BLOCK as usize).is_none_or(|bytes| bytes.iter().all(|byte| *byte == 0));
        let unreadable = reader.unreadable.contains(&0);
        let trailer = reader.trailer(id);
        let first = first_batch(reader, id);
        let generation = first.map(|head| head.generation).or(trailer.map(|trailer| trailer.generation));
        let batches = match generation {
            Some(generation) => reader.batches(id, generation, size),
            None => any_batches(reader, id, size),
        };
        let stated =
            |batch: &BatchHead| batch.durable_end.sequence == id.sequence() && batch.durable_end.offset > BLOCK;
        let stated = batches.iter().any(|(_, batch)| stated(batch));
        let epoch = generation.and_then(|generation| epoch_of(reader, id, generation, &batches));
        let settled = epoch.is_some_and(|epoch| {
            self.floors.get(&(id.log(), epoch)).is_some_and(|floor| floor.sequence > id.sequence())
        });
        let certain = stated || settled || !blank || (unreadable && !batches.is_empty());
        // A running relay may have given the file to another segment since it was opened.
        if certain && self.purpose == Purpose::Verify && !self.exists(id) {
            return None;
        }
        if certain {
            self.damage(id, 0, BLOCK, "the header is damaged");
            *damaged = true;
        }
        let (Some(generation), Some(epoch)) = (generation, epoch) else {
            if certain {
                let what = "the first batch is damaged too: nothing of the segment can be told apart";
                self.damage(id, BLOCK, 0, what);
            }
            return None;
        };
        *unsure = !stated && !settled;
        Some(SegmentHeader { segment: id, generation, epoch, size, previous: None, previous_end: 0 })
    }

    fn exists(&self, id: SegmentId) -> bool {
        !self.disk.open(FileId::Segment(id)).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }
}

/// The newest segment of each log that the second pass has met so far.
#[derive(Debug, Default)]
pub(super) struct Before(HashMap<u8, Met>);

#[derive(Copy, Clone, Debug)]
struct Met {
    sequence: u32,
    whole: bool,
    damaged: bool,
}

impl Before {
    /// The next one; `whole`: nothing is missing at its end.
    pub(super) fn meet(&mut self, id: SegmentId, whole: bool, damaged: bool) {
        self.0.insert(id.log(), Met { sequence: id.sequence(), whole, damaged });
    }

    /// Whether the run of a segment surely has no gap just before it.
    pub(super) fn continues(&self, id: SegmentId, epoch: u32) -> bool {
        self.of_run(id, epoch).is_none_or(|met| met.whole)
    }

    /// Whether the segment before it, of the same run, is damaged.
    pub(super) fn is_damaged(&self, id: SegmentId, epoch: u32) -> bool {
        self.of_run(id, epoch).is_some_and(|met| met.damaged)
    }

    fn of_run(&self, id: SegmentId, epoch: u32) -> Option<&Met> {
        self.0.get(&id.log()).filter(|met| met.sequence >= epoch)
    }
}

/// Whether the trailer says that a segment's batches end where good ones were found to end.
pub(super) fn ends_at(reader: &mut Reader<'_>, header: &SegmentHeader, end: u32) -> bool {
    let trailer = reader.trailer(header.segment).filter(|trailer| trailer.generation == header.generation);
    trailer.is_some_and(|trailer| round_up(trailer.appended_end) == end)
}
