//! What is asked of a disk: operations that a log gives out, and reading for recovery.
//!
//! A [`DiskOp`] is performed by the log's owner (io_uring, a helper thread, or [`SimDisk`](crate::SimDisk)) and
//! answered with a [`DiskDone`]. Order: an operation may overtake others freely; the log waits for answers where order
//! matters. [`Disk`] is the blocking side, for recovery, verify and dump. It reads by `pread`, never through a map: a
//! sector that cannot be read is then an error of one read and not a SIGBUS that ends the process.

use crate::segment::SegmentId;
use bytes::Bytes;
use std::io;

/// A file of the spool.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileId {
    /// A segment.
    Segment(SegmentId),
    /// The spilled content of the message with this id.
    Content(u64),
}

/// Names one operation of one log; counts from 1.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// One operation to perform.
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// Makes a segment ready: takes a spare file or creates one (fallocated, zero-filled), overwrites block 0 with
    /// zeros, syncs it, gives it the segment's name and syncs the directory. For a helper thread.
    Prepare {
        /// Answer with this.
        op: OpId,
        /// The name to give.
        segment: SegmentId,
    },
    /// Writes chunks, then zeros up to `len`.
    Write {
        /// Answer with this.
        op: OpId,
        /// Where.
        segment: SegmentId,
        /// A multiple of 4096.
        offset: u64,
        /// What, in order.
        chunks: Vec<Bytes>,
        /// A multiple of 4096, at least the sum of the chunks.
        len: usize,
    },
    /// fdatasync: all writes that were answered before this was given out are on stable storage when it is answered.
    Sync {
        /// Answer with this.
        op: OpId,
        /// Of which segment.
        segment: SegmentId,
    },
    /// Reads exactly `len` bytes at any offset; fewer is [`DiskError::Short`].
    Read {
        /// Answer with this.
        op: OpId,
        /// From where.
        file: FileId,
        /// Bytes from its start, not aligned.
        offset: u64,
        /// Bytes, not aligned.
        len: usize,
    },
    /// The segment holds nothing any more: its file becomes a spare, or is removed if spares are many. Answered once
    /// the directory is synced. For a helper thread.
    Recycle {
        /// Answer with this.
        op: OpId,
        /// Which.
        segment: SegmentId,
    },
    /// As `Recycle`, but the file had an error and is removed, never used again.
    Discard {
        /// Answer with this.
        op: OpId,
        /// Which.
        segment: SegmentId,
    },
    /// Writes spilled content as `Write` does.
    ContentWrite {
        /// Answer with this.
        op: OpId,
        /// The message's id.
        content: u64,
        /// Whether this makes the file, or empties it: the first piece does.
        create: bool,
        /// A multiple of 4096.
        offset: u64,
        /// What, in order.
        chunks: Vec<Bytes>,
        /// A multiple of 4096.
        len: usize,
    },
    /// fdatasync of the content file and fsync of its directory.
    ContentSync {
        /// Answer with this.
        op: OpId,
        /// The message's id.
        content: u64,
    },
    /// Unlinks a content file. That it is absent already is success.
    ContentRemove {
        /// Answer with this.
        op: OpId,
        /// The message's id.
        content: u64,
    },
}

impl DiskOp {
    /// The operation's name.
    pub fn op(&self) -> OpId {
        match self {
            DiskOp::Prepare { op, .. }
            | DiskOp::Write { op, .. }
            | DiskOp::Sync { op, .. }
            | DiskOp::Read { op, .. }
            | DiskOp::Recycle { op, .. }
            | DiskOp::Discard { op, .. }
            | DiskOp::ContentWrite { op, .. }
            | DiskOp::ContentSync { op, .. }
            | DiskOp::ContentRemove { op, .. } => *op,
        }
    }
}

/// The answer to a [`DiskOp`].
#[derive(Clone, Debug)]
pub struct DiskDone {
    /// Which.
    pub op: OpId,
    /// The bytes read, empty for all but `Read`; or what went wrong.
    pub result: Result<Bytes, DiskError>,
}

/// What a disk can answer instead of success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// ENOSPC or EDQUOT.
    #[error("no space is left on the disk")]
    NoSpace,
    /// Any other error.
    #[error("the disk failed: {}", io::Error::from_raw_os_error(*.errno))]
    Io {
        /// As the system gave it.
        errno: i32,
    },
    /// The file does not exist.
    #[error("the file does not exist")]
    NotFound,
    /// The file ends before the bytes asked for.
    #[error("the file is shorter than it should be")]
    Short,
}

impl DiskError {
    /// The error for what the system reported; an error without a number counts as EIO.
    pub fn from_io(error: &io::Error) -> DiskError {
        match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::NotFound, _) => DiskError::NotFound,
            (io::ErrorKind::UnexpectedEof, _) => DiskError::Short,
            (_, Some(libc::ENOSPC | libc::EDQUOT)) => DiskError::NoSpace,
            (_, errno) => DiskError::Io { errno: errno.unwrap_or(libc::EIO) },
        }
    }
}

/// Why content could not be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// The bytes were read but are not those that were stored.
    #[error("the stored content is damaged (its checksum differs)")]
    Damaged,
    /// The read failed.
    #[error(transparent)]
    Disk(DiskError),
}

/// A spool directory, read and cleaned by blocking calls. Safe to use while logs write to other segments.
pub trait Disk: Sync {
    /// Every segment by its file's name, in any order. Spares are not among them.
    fn segments(&self) -> io::Result<Vec<SegmentId>>;
    /// The message ids of all content files, in any order.
    fn contents(&self) -> io::Result<Vec<u64>>;
    /// How many spare files there are.
    fn spares(&self) -> io::Result<usize>;
    /// A sequence above all that the spare files were last used under: they may still hold batches of these.
    fn spares_end(&self) -> io::Result<u32>;
    /// Opens a file for reading.
    fn open(&self, file: FileId) -> io::Result<Box<dyn DiskFile + '_>>;
    /// These segments hold nothing: their files become spares, or are removed where `spares_max` exist already. The
    /// directory is synced once, at the end.
    fn recycle_all(&self, segments: &[SegmentId], spares_max: usize) -> io::Result<()>;
    /// fdatasync: what was read before this is on stable storage afterwards.
    fn sync(&self, segment: SegmentId) -> io::Result<()>;
    /// Unlinks a content file.
    fn remove_content(&self, content: u64) -> io::Result<()>;
}

/// An open file of a spool.
pub trait DiskFile {
    /// Bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills the buffer from `offset` on; returns fewer bytes only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Says that these bytes will be read soon, so that the disk can begin.
    fn will_read(&self, offset: u64, len: u64);
    /// Reads from here on see the disk itself: after a failed sync the cache may hold what the disk does not.
    fn drop_cache(&self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_sorted() {
        assert_eq!(DiskError::from_io(&io::Error::from_raw_os_error(libc::ENOSPC)), DiskError::NoSpace);
        assert_eq!(DiskError::from_io(&io::Error::from_raw_os_error(libc::ENOENT)), DiskError::NotFound);
        assert_eq!(DiskError::from_io(&io::Error::other("x")), DiskError::Io { errno: libc::EIO });
        assert_eq!(DiskError::from_io(&io::ErrorKind::UnexpectedEof.into()), DiskError::Short);
    }
}
