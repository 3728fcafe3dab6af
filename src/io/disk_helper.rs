//! The disk helper of a shard: a thread that does what would block the shard. It prepares segments, makes spares of those
//! that are done with, removes content files and syncs directories.
//!
//! How files are made and named is the spool's own affair ([`StdDisk`]). Requests are answered in any order but each once; an
//! error is an answer too.

use crate::io::mailbox::{self, Mailbox};
use crate::io::net;
use crossbeam_queue::ArrayQueue;
use ringpost_spool::{Disk, DiskError, FileId, SegmentId, StdDisk};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// At most so many requests are with the helper; the rest waits at the shard.
pub(crate) const REQUESTS_MAX: usize = 1024;

/// Blocks of direct IO: what every disk accepts.
pub(crate) const BLOCK: usize = 4096;

/// Where a shard's part of the spool is and how its files are made.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// The spool; shared by all shards. Created if it is missing.
    pub directory: PathBuf,
    /// Octets of a segment file: a multiple of 4096.
    pub segment_size: u32,
    /// How many spare segment files are kept in the whole directory; more are removed.
    pub spares: usize,
}

impl DiskSpec {
    /// A block of zeros that a shard reads first: see disk.rs.
    pub(crate) fn probe_path(&self, shard: u8) -> PathBuf {
        self.directory.join(format!("probe-{shard:02x}"))
    }
}

/// What the helper is asked.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Request {
    Prepare(SegmentId),
    Recycle(SegmentId),
    Discard(SegmentId),
    RemoveContent(u64),
    SyncContentDirectory,
}

/// An answer of the helper.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) ticket: u64,
    pub(crate) result: Result<(), DiskError>,
    /// What an operator should know.
    pub(crate) trouble: Option<String>,
}

struct Shared {
    requests: ArrayQueue<(u64, Request)>,
    stop: AtomicBool,
}

/// The shard's end of its helper.
pub(crate) struct Helper {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    pub(crate) answers: Mailbox<Answer>,
}

impl Helper {
    /// Makes the directories and starts the thread.
    ///
    /// # Errors
    /// When a directory cannot be made, or no thread started.
    pub(crate) fn start(spec: DiskSpec, shard: u8) -> io::Result<Helper> {
        let disk = make_ready(&spec, shard).map_err(|error| {
            let place = spec.directory.display();
            io::Error::new(
                error.kind(),
                format!("spool {place}: {error}; it must be a directory this process may write to"),
            )
        })?;
        let shared = Arc::new(Shared { requests: ArrayQueue::new(REQUESTS_MAX), stop: AtomicBool::new(false) });
        // One place for each request that may be under way, so an answer always finds room.
        let (sender, answers) = mailbox::mailbox(REQUESTS_MAX * 2);
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(format!("disk-{shard}")).spawn(move || {
            let mut worker = Worker { spec, disk };
            while let Some(batch) = next_batch(&theirs) {
                for answer in worker.perform(batch) {
                    let pushed = sender.push(answer);
                    debug_assert!(pushed.is_ok(), "each request has a place for its answer");
                }
            }
        })?;
        Ok(Helper { shared, thread, answers })
    }

    /// Asks for something.
    ///
    /// # Errors
    /// Gives the request back when too many are under way.
    pub(crate) fn ask(&self, ticket: u64, request: Request) -> Result<(), Request> {
        self.shared.requests.push((ticket, request)).map_err(|(_, request)| request)?;
        self.thread.thread().unpark();
        Ok(())
    }

    /// Whether the thread has ended, which it does only when asked to, or by a panic.
    pub(crate) fn is_dead(&self) -> bool {
        self.thread.is_finished()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
    }
}

/// Everything that is asked now; waits for the first. None when the helper is to end.
fn next_batch(shared: &Shared) -> Option<Vec<(u64, Request)>> {
    loop {
        let batch: Vec<_> = std::iter::from_fn(|| shared.requests.pop()).take(REQUESTS_MAX).collect();
        if !batch.is_empty() {
            return Some(batch);
        }
        if shared.stop.load(Ordering::Acquire) {
            return None;
        }
        // A request or the stop that came since the look above has left a permit, so this returns at once then.
        std::thread::park();
    }
}

struct Worker {
    spec: DiskSpec,
    disk: StdDisk,
}

impl Worker {
    /// Performs requests; those that need the same directory synced share one sync.
    fn perform(&mut self, batch: Vec<(u64, Request)>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(batch.len());
        let mut sync_content = Vec::new();
        for (ticket, request) in batch {
            let result = match request {
                Request::Prepare(segment) => self.disk.prepare(segment, self.spec.segment_size),
                Request::Recycle(segment) => self.disk.recycle(segment, self.spec.spares),
                Request::Discard(segment) => self.disk.discard(segment),
                Request::RemoveContent(content) => self.disk.remove_content(content),
                Request::SyncContentDirectory => {
                    sync_content.push(ticket);
                    continue;
                }
            };
            let trouble = result.as_ref().err().map(|error| self.trouble(request, error));
            answers.push(Answer { ticket, result: result.map_err(|error| disk_error(&error)), trouble });
        }
        if !sync_content.is_empty() {
            let result = self.disk.sync_contents();
            let trouble = result.as_ref().err().map(|error| self.trouble(Request::SyncContentDirectory, error));
            let result = result.map_err(|error| disk_error(&error));
            answers.extend(sync_content.into_iter().map(|ticket| Answer {
                ticket,
                result: result.clone(),
                trouble: trouble.clone(),
            }));
        }
        answers
    }

    fn trouble(&self, request: Request, error: &io::Error) -> String {
        let (what, path) = match request {
            Request::Prepare(segment) => ("preparing the segment", self.disk.path(FileId::Segment(segment))),
            Request::Recycle(segment) => ("recycling the segment", self.disk.path(FileId::Segment(segment))),
            Request::Discard(segment) => ("removing the segment", self.disk.path(FileId::Segment(segment))),
            Request::RemoveContent(content) => ("removing the content file", self.disk.path(FileId::Content(content))),
            Request::SyncContentDirectory => ("syncing the directory", self.spec.directory.join("content")),
        };
        let cure = match disk_error(error) {
            DiskError::NoSpace => "free space on the spool's file system",
            _ => "check the spool's disk and permissions",
        };
        format!("{what} {} failed: {}; {cure}", path.display(), net::words(error))
    }
}

/// Makes the spool's directories, clears away what a crash left half-made by this shard, and writes the block that disk.rs
/// reads first.
fn make_ready(spec: &DiskSpec, shard: u8) -> io::Result<StdDisk> {
    let disk = StdDisk::open(&spec.directory)?;
    disk.remove_half_made(shard)?;
    let mut probe =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(spec.probe_path(shard))?;
    probe.write_all(&[0; BLOCK])?;
    Ok(disk)
}

/// What the log is told of an error.
pub(crate) fn disk_error(error: &io::Error) -> DiskError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskError::NoSpace,
        Some(libc::ENOENT) => DiskError::NotFound,
        Some(errno) => DiskError::Io { errno },
        None if error.kind() == io::ErrorKind::UnexpectedEof => DiskError::Short,
        None if error.kind() == io::ErrorKind::WriteZero => DiskError::Short,
        None => DiskError::Io { errno: libc::EIO },
    }
}
