//! The disk helper of a shard: a thread that does what would block the shard. It prepares segments, makes spares of those
//! that are done with, removes content files and syncs directories.
//!
//! Layout: `segments/LL-SSSSSS.seg` (log and sequence, hex), `segments/spare-N` (whole, of the right size, with old bytes in
//! it), `segments/new-LL-SSSSSS` (being made; worthless after a crash), `content/<id, 16 hex>`. A file gets its final name
//! only when it is whole and synced, so a crash never leaves a half-made segment. Requests are answered in any order but
//! each once; an error is an answer too, and leaves nothing half-made behind.

use crate::io::mailbox::{self, Mailbox};
use crate::io::net;
use crossbeam_queue::ArrayQueue;
use ringpost_spool::{DiskError, FileId, SegmentId};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// At most so many requests are with the helper; the rest waits at the shard.
pub(crate) const REQUESTS_MAX: usize = 1024;

/// A new segment is filled with zeros by pieces of this size.
const ZERO_PIECE: usize = 1024 * 1024;

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
    fn segments(&self) -> PathBuf {
        self.directory.clone()
    }

    fn content(&self) -> PathBuf {
        self.directory.join("content")
    }

    /// Where a file is.
    pub(crate) fn path(&self, file: FileId) -> PathBuf {
        match file {
            FileId::Segment(segment) => self.segments().join(format!("{}.seg", segment_name(segment))),
            FileId::Content(content) => self.content().join(format!("{content:016x}")),
        }
    }

    /// A block of zeros that a shard reads first: see disk.rs.
    pub(crate) fn probe_path(&self, shard: u8) -> PathBuf {
        self.segments().join(format!("probe-{shard:02x}"))
    }
}

fn segment_name(segment: SegmentId) -> String {
    format!("{:02x}-{:06x}", segment.0 >> 24, segment.0 & 0x00ff_ffff)
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
        make_directories(&spec, shard).map_err(|error| {
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
            let mut worker = Worker { spec, direct_zeros: true };
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
    /// Whether zeros are written past the page cache.
    direct_zeros: bool,
}

impl Worker {
    /// Performs requests; those that need the same directory synced share one sync.
    fn perform(&mut self, batch: Vec<(u64, Request)>) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(batch.len());
        let mut sync_content = Vec::new();
        for (ticket, request) in batch {
            let result = match request {
                Request::Prepare(segment) => self.prepare(segment),
                Request::Recycle(segment) => self.recycle(segment),
                Request::Discard(segment) => self.discard(segment),
                Request::RemoveContent(content) => match fs::remove_file(self.spec.path(FileId::Content(content))) {
                    // Gone is what was wanted.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    other => other,
                },
                Request::SyncContentDirectory => {
                    sync_content.push(ticket);
                    continue;
                }
            };
            let trouble = result.as_ref().err().map(|error| self.trouble(request, error));
            answers.push(Answer { ticket, result: result.map_err(|error| disk_error(&error)), trouble });
        }
        if !sync_content.is_empty() {
            let result = sync_directory(&self.spec.content());
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
            Request::Prepare(segment) => ("preparing the segment", self.spec.path(FileId::Segment(segment))),
            Request::Recycle(segment) => ("recycling the segment", self.spec.path(FileId::Segment(segment))),
            Request::Discard(segment) => ("removing the segment", self.spec.path(FileId::Segment(segment))),
            Request::RemoveContent(content) => ("removing the content file", self.spec.path(FileId::Content(content))),
            Request::SyncContentDirectory => ("syncing the directory", self.spec.content()),
        };
        let cure = match disk_error(error) {
            DiskError::NoSpace => "free space on the spool's file system",
            _ => "check the spool's disk and permissions",
        };
        format!("{what} {} failed: {}; {cure}", path.display(), net::words(error))
    }

    fn prepare(&mut self, segment: SegmentId) -> io::Result<()> {
        let path = self.spec.path(FileId::Segment(segment));
        if !self.take_spare(&path)? {
            let new = self.spec.segments().join(format!("new-{}", segment_name(segment)));
            if let Err(error) = self.make(&new).and_then(|()| fs::rename(&new, &path)) {
                let _ = fs::remove_file(&new);
                return Err(error);
            }
        }
        sync_directory(&self.spec.segments())
    }

    /// Gives a spare file the name `path`. False when there is none.
    fn take_spare(&self, path: &Path) -> io::Result<bool> {
        let taken = self.spec.segments().join(format!("new-{}", path.file_name().unwrap_or_default().display()));
        for spare in self.spares()? {
            match fs::metadata(&spare) {
                Ok(data) if data.len() == u64::from(self.spec.segment_size) => match fs::rename(&spare, &taken) {
                    // Nobody may take its old header for the new one's.
                    Ok(()) => {
                        let file = OpenOptions::new().write(true).open(&taken)?;
                        file.write_all_at(&[0; BLOCK], 0)?;
                        file.sync_all()?;
                        fs::rename(&taken, path)?;
                        return Ok(true);
                    }
                    // Another shard took it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                },
                // Made when segments had another size.
                Ok(_) => remove_if_there(&spare)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    fn spares(&self) -> io::Result<Vec<PathBuf>> {
        named(&self.spec.segments(), "spare-")
    }

    /// Makes a file of zeros whose every block is allocated and written, so that writing it again needs no new space and no
    /// change of the file system's own records.
    fn make(&mut self, path: &Path) -> io::Result<()> {
        let size = u64::from(self.spec.segment_size);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        allocate(&file, size)?;
        if self.direct_zeros {
            match OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path) {
                Ok(direct) => match write_zeros(&direct, size) {
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.direct_zeros = false,
                    other => other?,
                },
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.direct_zeros = false,
                Err(error) => return Err(error),
            }
        }
        if !self.direct_zeros {
            write_zeros(&file, size)?;
        }
        file.sync_all()
    }

    fn recycle(&self, segment: SegmentId) -> io::Result<()> {
        let path = self.spec.path(FileId::Segment(segment));
        let data = fs::metadata(&path)?;
        if self.spares()?.len() < self.spec.spares && data.len() == u64::from(self.spec.segment_size) {
            // A segment's number is never used twice, so neither is the spare's.
            fs::rename(&path, self.spec.segments().join(format!("spare-{}", segment.0)))?;
        } else {
            fs::remove_file(&path)?;
        }
        sync_directory(&self.spec.segments())
    }
}

impl Worker {
    /// A file that had an error is not used again.
    fn discard(&self, segment: SegmentId) -> io::Result<()> {
        remove_if_there(&self.spec.path(FileId::Segment(segment)))?;
        sync_directory(&self.spec.segments())
    }
}

/// Makes the spool's directories and clears away what a crash left half-made by this shard.
fn make_directories(spec: &DiskSpec, shard: u8) -> io::Result<()> {
    for directory in [spec.segments(), spec.content()] {
        fs::create_dir_all(&directory)?;
    }
    sync_directory(&spec.directory)?;
    for leftover in named(&spec.segments(), &format!("new-{shard:02x}-"))? {
        remove_if_there(&leftover)?;
    }
    let mut probe =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(spec.probe_path(shard))?;
    probe.write_all(&[0; BLOCK])
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The files of a directory whose names begin so.
fn named(directory: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let begins = |name: &OsStr| name.to_str().is_some_and(|name| name.starts_with(prefix));
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if begins(&entry.file_name()) {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Reserves the space of a file, so that a full disk is met now and not when it is written.
fn allocate(file: &File, size: u64) -> io::Result<()> {
    let size = libc::off_t::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the descriptor is open for the whole call and no memory is passed.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, size) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // The zeros that follow meet a full disk too, only later.
        error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        error => Err(error),
    }
}

/// A piece of zeros that direct IO accepts.
#[repr(align(4096))]
struct Zeros([u8; ZERO_PIECE]);

fn write_zeros(file: &File, size: u64) -> io::Result<()> {
    static ZEROS: Zeros = Zeros([0; ZERO_PIECE]);
    let mut offset = 0;
    while offset < size {
        let piece = ZERO_PIECE.min(usize::try_from(size - offset).unwrap_or(ZERO_PIECE));
        file.write_all_at(&ZEROS.0[..piece], offset)?;
        offset += piece as u64;
    }
    Ok(())
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
