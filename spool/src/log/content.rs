//! Content on disk: reading it back, and spilling what is too large for the log into files of its own.
//!
//! A spilled file is synced, its directory too, before [`LogEvent::Spilled`] says so and the message's record is
//! appended; it is removed once the message's last outcome is durable. Not for deciding what spills.

use super::{Call, Log, LogEvent};
use crate::disk::{ContentError, DiskError, DiskOp, FileId, OpId};
use crate::segment::{BLOCK, ContentRef, SegmentId};
use bytes::Bytes;

/// A read under way for the owner.
#[derive(Debug)]
pub(super) struct ReadCall {
    id: u64,
    /// The checksum to compare, when the whole content is read.
    crc: Option<u32>,
    len: usize,
    /// The segment that must not be recycled meanwhile.
    segment: Option<SegmentId>,
}

/// A content file being written.
#[derive(Debug, Default)]
pub(super) struct Spill {
    /// Not answered, those that wait for the file included.
    writes: usize,
    /// The piece that makes the file was given out.
    begun: bool,
    /// The file exists: that piece is written.
    created: bool,
    /// Pieces that wait for that.
    waiting: Vec<DiskOp>,
    last: bool,
    syncing: bool,
    failed: bool,
    removing: bool,
}

impl Log {
    /// Reads `len` octets of a message's content from octet `from` on; what lies beyond the end is not read. Works for
    /// the content of other logs too, but only this log's own segments are kept from being recycled meanwhile.
    pub fn read_content(&mut self, id: u64, content: ContentRef, from: u32, len: u32) -> OpId {
        let from = from.min(content.len);
        let len = len.min(content.len - from);
        let (file, segment) = match content.spilled {
            true => (FileId::Content(id), None),
            false => (FileId::Segment(content.segment), Some(content.segment)),
        };
        let held = segment.and_then(|segment| self.tally_mut(segment)).map(|tally| tally.outstanding += 1);
        let whole = from == 0 && len == content.len;
        let op = self.call(Call::Read(ReadCall {
            id,
            crc: whole.then_some(content.crc),
            len: len as usize,
            segment: segment.filter(|_| held.is_some()),
        }));
        self.ops.push_back(DiskOp::Read {
            op,
            file,
            offset: u64::from(content.offset) + u64::from(from),
            len: len as usize,
        });
        op
    }

    /// A read was answered.
    pub(super) fn content_read(&mut self, op: OpId, call: ReadCall, result: Result<Bytes, DiskError>) {
        if let Some(segment) = call.segment {
            self.let_go(segment);
        }
        let result = match result {
            Ok(bytes) if bytes.len() < call.len => Err(ContentError::Disk(DiskError::Short)),
            Ok(bytes) => {
                let bytes = bytes.slice(..call.len);
                match call.crc {
                    Some(crc) if crc32c::crc32c(&bytes) != crc => Err(ContentError::Damaged),
                    _ => Ok(bytes),
                }
            }
            Err(error) => Err(ContentError::Disk(error)),
        };
        self.event(LogEvent::ContentRead { op, id: call.id, result });
    }

    /// One outstanding operation fewer keeps the segment.
    pub(super) fn let_go(&mut self, segment: SegmentId) {
        if let Some(tally) = self.tally_mut(segment) {
            tally.outstanding = tally.outstanding.saturating_sub(1);
            self.recycle_check = true;
        }
    }

    /// Writes a piece of content to the message's own file. `offset` is a multiple of 4096, pieces but the last are
    /// too. The first has offset 0 and creates the file, so the others are held back until it is written. A later piece at
    /// offset 0 is written over the beginning. With `last` the file is synced when all pieces are written.
    pub fn spill(&mut self, id: u64, offset: u64, chunks: Vec<Bytes>, last: bool) -> OpId {
        let len = chunks.iter().map(Bytes::len).sum::<usize>().next_multiple_of(BLOCK as usize);
        let spill = self.spills.entry(id).or_default();
        spill.writes += 1;
        spill.last |= last;
        let create = !std::mem::replace(&mut spill.begun, true);
        let held_back = !create && !spill.created;
        let op = self.call(Call::SpillWrite(id));
        let write = DiskOp::ContentWrite { op, content: id, create, offset, chunks, len };
        match self.spills.get_mut(&id).filter(|_| held_back) {
            Some(spill) => spill.waiting.push(write),
            None => self.ops.push_back(write),
        }
        op
    }

    /// Removes the content file of a message that was not appended, or whose spill failed. Pieces under way are waited
    /// for first. Not to be called for a message that was appended: the log removes its file itself.
    pub fn remove_spill(&mut self, id: u64) {
        match self.spills.get_mut(&id) {
            Some(spill) if spill.writes > 0 || spill.syncing => spill.removing = true,
            _ => {
                self.spills.remove(&id);
                self.remove_content(id);
            }
        }
    }

    /// Unlinks a content file.
    pub(super) fn remove_content(&mut self, content: u64) {
        let op = self.call(Call::Remove);
        self.ops.push_back(DiskOp::ContentRemove { op, content });
    }

    /// An unlinking was answered. A file that stays is found by the next recovery.
    pub(super) fn removed(&mut self, result: Result<Bytes, DiskError>) {
        match result {
            Ok(_) | Err(DiskError::NotFound) => {}
            Err(error) => {
                self.event(LogEvent::Trouble(format!(
                    "a finished message's content file could not be removed: {error}"
                )));
            }
        }
    }

    /// A piece is written.
    pub(super) fn spill_written(&mut self, id: u64, op: OpId, result: Result<Bytes, DiskError>) {
        let Some(spill) = self.spills.get_mut(&id) else {
            return;
        };
        spill.writes = spill.writes.saturating_sub(1);
        let first_failure = result.is_err() && !spill.failed;
        spill.failed |= result.is_err();
        let waiting = std::mem::take(&mut spill.waiting);
        if result.is_err() || spill.removing {
            // Without its beginning the rest is of no use.
            spill.writes -= waiting.len();
            for write in &waiting {
                self.calls.remove(&write.op());
            }
        } else {
            spill.created = true;
            self.ops.extend(waiting);
        }
        if spill.removing {
            if spill.writes == 0 {
                self.spills.remove(&id);
                self.remove_content(id);
            }
            return;
        }
        let complete = spill.last && spill.writes == 0 && !spill.failed;
        spill.syncing = complete;
        match result {
            Ok(_) => self.event(LogEvent::SpillProgress { id, op }),
            Err(error) if first_failure => self.event(LogEvent::Spilled { id, result: Err(error) }),
            Err(_) => {}
        }
        if complete {
            let op = self.call(Call::SpillSync(id));
            self.ops.push_back(DiskOp::ContentSync { op, content: id });
        }
    }

    /// The file is synced, or is not.
    pub(super) fn spill_synced(&mut self, id: u64, result: Result<Bytes, DiskError>) {
        let Some(spill) = self.spills.remove(&id) else {
            return;
        };
        if spill.removing {
            self.remove_content(id);
        } else {
            self.event(LogEvent::Spilled { id, result: result.map(|_| ()) });
        }
    }
}
