//! Segments that an earlier run prepared and never used: found and given back at the start, before the logs ask for
//! theirs. Without this each start that ends before its recovery does leaves its prepared files behind, and many quick
//! starts fill the disk with them.
//!
//! A segment counts as never used only if everything says so: it has a size that segments have, its first block is
//! zeros, as preparing leaves it, no batch of this segment begins in the megabyte behind it, it has no trailer, and no later header names it as the one filled before. Header
//! and first batch are one write, so an acknowledged record always comes with a header. What is doubtful (a torn first
//! write, a first block that went bad) is left to recovery, which knows cuts and durable ends as well. In particular
//! - a segment that a header names stays, though nothing of it may have reached the disk: it is the gap behind which the
//!   later segments of its run are void;
//! - where anything is doubtful, all stay: whether a segment without a header is read may go by the files around it;
//! - one that is older than a run that wrote something stays, since that run may have stated its end in a cut.

use super::Snapshot;
use super::headless::any_batches;
use crate::disk::{Disk, FileId};
use crate::log::HashSet;
use crate::reader::Reader;
use crate::segment::{BLOCK, HeaderError, SEGMENT_SIZE_MIN, SegmentId};
use std::io;

/// After so many used segments of a log in a row, its older ones are not looked at: unused ones of a run are its last.
const USED_IN_ROW_MAX: usize = 64;

/// How far batches are looked for, bytes: what damages a header may have damaged the first batches too.
const LOOK_LEN: u32 = 1024 * 1024;

/// What the first blocks of a segment say.
enum Seen {
    /// In use, by a header: the epoch, and the segment it names as the one before.
    Used(u32, Option<SegmentId>),
    /// Prepared and never used.
    Unused,
    /// Neither for sure.
    Doubtful,
    /// Written by a newer program.
    Newer,
}

impl Snapshot {
    /// Makes segments that were prepared by an earlier run, and never used, into spares, or removes them where there are
    /// `spares_max`; gives their number. The snapshot forgets them, but [`Snapshot::next_sequence`] stays above them.
    /// Nothing is touched if a segment seen is of a newer version.
    ///
    /// # Errors
    /// Files that could not be renamed or removed, and are kept; the spool can be used all the same.
    pub fn free_unused(&mut self, disk: &dyn Disk, spares_max: usize) -> io::Result<usize> {
        let Some(unused) = self.find_unused(disk) else {
            return Ok(0);
        };
        if unused.is_empty() {
            return Ok(0);
        }
        let freed = disk.recycle_all(&unused, spares_max);
        // After an error some may be gone: recovery must not miss them.
        let gone: HashSet<SegmentId> = match &freed {
            Ok(()) => unused.iter().copied().collect(),
            Err(_) => {
                let left: HashSet<SegmentId> = disk.segments()?.into_iter().collect();
                unused.iter().copied().filter(|id| !left.contains(id)).collect()
            }
        };
        self.segments.retain(|id| !gone.contains(id));
        freed.map(|()| gone.len())
    }

    /// `None`: nothing may be touched.
    fn find_unused(&self, disk: &dyn Disk) -> Option<Vec<SegmentId>> {
        let mut order = self.segments.clone();
        // Newest first: what speaks of a segment is in one with a greater sequence.
        order.sort_unstable_by_key(|id| std::cmp::Reverse((id.sequence(), id.log())));
        let mut unused = Vec::new();
        let mut named: HashSet<SegmentId> = HashSet::default();
        let (mut newest_run, mut used_in_row) = (0, [0usize; 256]);
        for id in order {
            if id.sequence() < newest_run {
                break;
            }
            let row = &mut used_in_row[usize::from(id.log())];
            if *row >= USED_IN_ROW_MAX {
                continue;
            }
            *row += 1;
            match look(disk, id) {
                Seen::Newer => return None,
                Seen::Used(epoch, previous) => {
                    newest_run = newest_run.max(epoch);
                    named.extend(previous);
                }
                Seen::Unused if !named.contains(&id) => {
                    unused.push(id);
                    *row = 0;
                }
                Seen::Unused => {}
                // What recovery makes of it may go by the files around it: it must find them all.
                Seen::Doubtful => return Some(Vec::new()),
            }
        }
        // Of equal sequences one may have been looked at before the header of a later run was.
        unused.retain(|id| id.sequence() >= newest_run);
        Some(unused)
    }
}

fn look(disk: &dyn Disk, id: SegmentId) -> Seen {
    let Ok(mut reader) = Reader::open(disk, FileId::Segment(id), LOOK_LEN as usize / 4) else {
        return Seen::Doubtful;
    };
    match reader.header(id) {
        Ok(header) => return Seen::Used(header.epoch, header.previous),
        Err(HeaderError::Version(_)) => return Seen::Newer,
        Err(HeaderError::Absent) => {}
    }
    let zeros = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let prepared = reader.bytes(0, BLOCK as usize).is_some_and(zeros);
    let batch = !any_batches(&mut reader, id, LOOK_LEN).is_empty();
    let whole = reader.size() >= SEGMENT_SIZE_MIN && reader.size().is_multiple_of(BLOCK);
    let sealed = reader.trailer(id).is_some();
    // Blocks that cannot be read look like zeros.
    if prepared && whole && !batch && !sealed && reader.unreadable.is_empty() { Seen::Unused } else { Seen::Doubtful }
}
