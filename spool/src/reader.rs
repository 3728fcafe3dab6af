//! Reading a segment piece by piece: a window over the file, and the walk from batch to batch.
//!
//! For recovery, verify and dump. Reads are plain reads, never a map: a sector that cannot be read is read around and
//! remembered, and counts as damage, where a page fault on it would end the process. Not for serving content.

use crate::batch::{BATCH_HEAD_LEN, BatchHead};
use crate::disk::{Disk, DiskFile, FileId};
use crate::record::{HEAD_LEN, RecordHead, RecordView};
use crate::segment::{BLOCK, Footer, HeaderError, SegmentHeader, SegmentId, Trailer, checksum_seed, round_up};
use std::io;

/// Bytes read at a time when a segment is read from end to end.
pub(crate) const WINDOW_SCAN: usize = 256 * 1024;
/// Bytes read at a time when records are picked by an index.
pub(crate) const WINDOW_PICK: usize = 16 * 1024;

/// A file of the spool behind a window.
pub(crate) struct Reader<'a> {
    file: Box<dyn DiskFile + 'a>,
    size: u64,
    window: Vec<u8>,
    start: u64,
    step: usize,
    /// Offsets of blocks that could not be read and are taken as zeros.
    pub(crate) unreadable: Vec<u64>,
}

impl<'a> Reader<'a> {
    /// Opens a file; `step` is how much is read at a time.
    pub(crate) fn open(disk: &'a dyn Disk, file: FileId, step: usize) -> io::Result<Reader<'a>> {
        let file = disk.open(file)?;
        let size = file.size()?;
        Ok(Reader { file, size, window: Vec::new(), start: 0, step, unreadable: Vec::new() })
    }

    /// Bytes of the file, at most what a segment can have.
    pub(crate) fn size(&self) -> u32 {
        self.size.min(u64::from(u32::MAX - BLOCK)) as u32
    }

    pub(crate) fn will_read(&self, offset: u64, len: u64) {
        self.file.will_read(offset, len);
    }

    /// What is read from here on is what the disk holds, not what a cache does.
    pub(crate) fn drop_cache(&mut self) {
        self.file.drop_cache();
        self.window.clear();
    }

    /// The bytes at a place; `None` beyond the end of the file.
    pub(crate) fn bytes(&mut self, offset: u64, len: usize) -> Option<&[u8]> {
        let end = offset.checked_add(len as u64)?;
        if end > self.size {
            return None;
        }
        let held = self.start + self.window.len() as u64;
        if offset < self.start || end > held {
            self.fill(offset, len);
        }
        let from = (offset - self.start) as usize;
        self.window.get(from..from + len)
    }

    fn fill(&mut self, offset: u64, len: usize) {
        let block = u64::from(BLOCK);
        let start = offset / block * block;
        let wanted = ((offset - start) as usize + len).max(self.step).next_multiple_of(BLOCK as usize);
        let wanted = (wanted as u64).min(self.size - start) as usize;
        self.window.resize(wanted, 0);
        self.start = start;
        match self.file.read_at(start, &mut self.window) {
            Ok(read) => self.window[read..].fill(0),
            Err(_) => self.fill_by_blocks(),
        }
    }

    /// Reads around blocks that cannot be read.
    fn fill_by_blocks(&mut self) {
        for (place, block) in self.window.chunks_mut(BLOCK as usize).enumerate() {
            let offset = self.start + place as u64 * u64::from(BLOCK);
            match self.file.read_at(offset, block) {
                Ok(read) => block[read..].fill(0),
                Err(_) => {
                    block.fill(0);
                    if !self.unreadable.contains(&offset) {
                        self.unreadable.push(offset);
                    }
                }
            }
        }
    }

    /// The header.
    pub(crate) fn header(&mut self, segment: SegmentId) -> Result<SegmentHeader, HeaderError> {
        match self.bytes(0, BLOCK as usize) {
            Some(block) => SegmentHeader::decode(block, segment),
            None => Err(HeaderError::Absent),
        }
    }

    /// The trailer, if the segment is sealed.
    pub(crate) fn trailer(&mut self, segment: SegmentId) -> Option<Trailer> {
        let size = self.size();
        let at = size.checked_sub(Trailer::LEN)?;
        let bytes = self.bytes(u64::from(at), Trailer::LEN as usize)?;
        Trailer::decode(bytes, segment, size)
    }

    /// Whether the place of the trailer holds what only damage leaves there.
    pub(crate) fn trailer_is_damaged(&mut self) -> bool {
        let size = self.size();
        let at = size.saturating_sub(Trailer::LEN);
        self.bytes(u64::from(at), Trailer::LEN as usize).is_some_and(|bytes| Trailer::is_damaged(bytes, size))
    }

    /// The footer that belongs to a trailer.
    pub(crate) fn footer(&mut self, trailer: &Trailer, segment: SegmentId) -> Option<Footer> {
        let (at, len) = trailer.entries_at(self.size());
        Footer::decode(trailer, self.bytes(u64::from(at), len as usize)?, segment)
    }

    /// The header of a batch at `offset`, of this generation.
    pub(crate) fn batch(&mut self, segment: SegmentId, generation: u64, offset: u32) -> Option<BatchHead> {
        let size = u64::from(self.size());
        let bytes = self.bytes(u64::from(offset), BATCH_HEAD_LEN as usize)?;
        let head = BatchHead::decode(bytes, segment, offset)?;
        let same = head.generation == generation || generation_ignored();
        (same && u64::from(offset) + u64::from(head.len) <= size).then_some(head)
    }

    /// The lengths of the record at `offset`, unchecked but inside `end`.
    pub(crate) fn peek(&mut self, offset: u32, end: u32) -> Option<RecordHead> {
        let head = RecordHead::peek(self.bytes(u64::from(offset), HEAD_LEN)?)?;
        (u64::from(offset) + head.total_len() <= u64::from(end)).then_some(head)
    }

    /// The record at `offset`, checked but for its content; it must end at or before `end`.
    pub(crate) fn record(&mut self, offset: u32, end: u32, seed: u32) -> Option<RecordView<'_>> {
        let head = self.peek(offset, end)?;
        let bytes = self.bytes(u64::from(offset), HEAD_LEN + head.meta_len as usize)?;
        RecordView::decode(bytes, seed, offset)
    }

    /// Whether the bytes at a place have this checksum.
    pub(crate) fn content_is(&mut self, offset: u64, len: u32, crc: u32) -> bool {
        let (mut at, end, mut sum) = (offset, offset + u64::from(len), 0);
        while at < end {
            let piece = (end - at).min(WINDOW_SCAN as u64) as usize;
            let Some(bytes) = self.bytes(at, piece) else {
                return false;
            };
            sum = crc32c::crc32c_append(sum, bytes);
            at += piece as u64;
        }
        sum == crc
    }

    /// All batches of a generation below `limit`, in order; blocks that begin none are stepped over.
    pub(crate) fn batches(&mut self, segment: SegmentId, generation: u64, limit: u32) -> Vec<(u32, BatchHead)> {
        let mut found = Vec::new();
        let mut offset = BLOCK;
        let limit = limit.min(self.size());
        while offset < limit {
            match self.batch(segment, generation, offset) {
                Some(head) => {
                    found.push((offset, head));
                    offset = round_up(offset + head.len);
                }
                None => offset += BLOCK,
            }
        }
        found
    }
}

/// The seed with which the records of a segment are checked.
pub(crate) fn record_seed(segment: SegmentId, generation: u64, batch: &BatchHead) -> u32 {
    let generation = if generation_ignored() { batch.generation } else { generation };
    checksum_seed(segment, generation)
}

/// A fault for the tests of the tests: batches of an earlier use are taken for new.
fn generation_ignored() -> bool {
    #[cfg(feature = "planted-faults")]
    {
        crate::planted::is(crate::planted::PlantedFault::StaleGeneration)
    }
    #[cfg(not(feature = "planted-faults"))]
    false
}
