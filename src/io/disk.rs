//! Performs the spool's disk operations for one shard: writes, syncs and reads through io_uring and past the page cache
//! (O_DIRECT), the rest through the helper thread (disk_helper.rs). Nothing here blocks the shard for longer than the open
//! of a file.
//!
//! Order: a sync covers every write of its file that was asked for before it; a recycle or removal comes after everything
//! that was asked of its file before. Each operation is answered once. A write that did not write all is an error, and no
//! error is tried again: what it means is the log's affair.
//!
//! A file system that refuses O_DIRECT is written through the page cache, which is slower and is reported once.

use crate::io::disk_helper::{Answer, BLOCK, DiskSpec, Helper, REQUESTS_MAX, Request, disk_error};
use crate::io::waker::WakerCell;
use bytes::Bytes;
use glommio::GlommioError;
use glommio::io::{BufferedFile, DmaFile, OpenOptions};
use ringpost_spool::{DiskDone, DiskError, DiskOp, FileId, OpId, StdDisk};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// At most so many files are kept open while nothing is done with them.
const OPEN_MAX: usize = 128;

/// What the shard is to know.
#[derive(Debug)]
pub(crate) enum DiskEvent {
    Done(DiskDone),
    Trouble(String),
}

/// The disk of one shard.
pub(crate) struct Disk {
    spec: DiskSpec,
    files_at: StdDisk,
    shard: u8,
    helper: Helper,
    files: RefCell<HashMap<FileId, Rc<SpoolFile>>>,
    events: RefCell<VecDeque<DiskEvent>>,
    /// Wakes the task that takes the events.
    waker: WakerCell,
    /// Operations that are not answered yet.
    pending: Cell<usize>,
    /// Requests that the helper has been given and has not answered.
    under_way: Cell<usize>,
    /// Requests for which the helper had no room: there are some only while others are under way.
    waiting_requests: RefCell<VecDeque<(u64, Request)>>,
    /// Answers of the helper, until their tasks take them.
    tickets: RefCell<HashMap<u64, Ticket>>,
    next_ticket: Cell<u64>,
    /// Counts uses, to find the file that was not used for longest.
    uses: Cell<u64>,
    refuses_direct: Cell<bool>,
}

#[derive(Default)]
struct Ticket {
    result: Option<Result<(), DiskError>>,
    waker: Option<Waker>,
}

/// An open file, by the way in which it can be written.
#[derive(Clone)]
enum Handle {
    Direct(Rc<DmaFile>),
    Buffered(Rc<BufferedFile>),
}

/// A file that operations are under way for, or that is kept open.
struct SpoolFile {
    id: FileId,
    handle: RefCell<Option<Handle>>,
    opening: Cell<bool>,
    /// Operations that are under way.
    busy: Cell<usize>,
    /// Counts the syncs asked for: a write belongs to the sync that follows it.
    epoch: Cell<u64>,
    /// Writes under way, by the sync they belong to.
    writes: RefCell<VecDeque<(u64, usize)>>,
    waiters: RefCell<Vec<Waker>>,
    used: Cell<u64>,
}

impl SpoolFile {
    fn new(id: FileId) -> SpoolFile {
        SpoolFile {
            id,
            handle: RefCell::default(),
            opening: Cell::new(false),
            busy: Cell::new(0),
            epoch: Cell::new(0),
            writes: RefCell::default(),
            waiters: RefCell::default(),
            used: Cell::new(0),
        }
    }

    async fn until(&self, mut holds: impl FnMut(&SpoolFile) -> bool) {
        poll_fn(|context| {
            if holds(self) {
                return Poll::Ready(());
            }
            self.waiters.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn changed(&self) {
        self.waiters.take().into_iter().for_each(Waker::wake);
    }

    fn begin_write(&self) -> u64 {
        let epoch = self.epoch.get();
        let mut writes = self.writes.borrow_mut();
        match writes.back_mut() {
            Some((last, count)) if *last == epoch => *count += 1,
            _ => writes.push_back((epoch, 1)),
        }
        epoch
    }

    fn end_write(&self, epoch: u64) {
        let mut writes = self.writes.borrow_mut();
        if let Some((_, count)) = writes.iter_mut().find(|(of, _)| *of == epoch) {
            *count -= 1;
        }
        while writes.front().is_some_and(|(_, count)| *count == 0) {
            writes.pop_front();
        }
    }

    /// Whether all writes of this epoch and of earlier ones are done.
    fn written(&self, epoch: u64) -> bool {
        self.writes.borrow().front().is_none_or(|(first, _)| *first > epoch)
    }
}

impl Disk {
    /// The disk of a shard; its helper thread is started. To be called before the executor.
    ///
    /// # Errors
    /// When the spool's directories cannot be made.
    pub(crate) fn start_helper(spec: &DiskSpec, shard: u8) -> io::Result<Helper> {
        Helper::start(spec.clone(), shard)
    }

    pub(crate) fn new(spec: DiskSpec, shard: u8, helper: Helper) -> Disk {
        Disk {
            files_at: StdDisk::at(&spec.directory),
            spec,
            shard,
            helper,
            files: RefCell::default(),
            events: RefCell::default(),
            waker: WakerCell::default(),
            pending: Cell::new(0),
            under_way: Cell::new(0),
            waiting_requests: RefCell::default(),
            tickets: RefCell::default(),
            next_ticket: Cell::new(0),
            uses: Cell::new(0),
            refuses_direct: Cell::new(false),
        }
    }

    /// Opens the probe file. glommio tries on the first file of each device whether it can be polled, by reading; were that
    /// file empty, the answer would be wrong and every later write would fail.
    pub(crate) async fn probe(&self) {
        let path = self.spec.probe_path(self.shard);
        match OpenOptions::new().read(true).dma_open(&path).await {
            Ok(file) => drop(file.close().await),
            Err(error) => self.refused(&raw_error(error)),
        }
        // Nobody needs the file any more, and a later start writes it anew.
        let _ = std::fs::remove_file(&path);
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.get() == 0 && self.events.borrow().is_empty()
    }

    /// Wakes the task that takes the events.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// Whether the helper thread has died: nothing can be prepared any more, and what it was asked is never answered.
    pub(crate) fn is_broken(&self) -> bool {
        self.helper.is_dead()
    }

    /// Forgets who waits, so that nothing of the executor outlives it.
    pub(crate) fn forget_wakers(&self) {
        self.waker.forget();
        drop(self.helper.answers.forget_waker());
    }

    /// The next event; the task is woken when one comes.
    pub(crate) fn poll_event(&self, context: &mut Context<'_>) -> Poll<DiskEvent> {
        self.waker.keep(context);
        while let Poll::Ready(answer) = self.helper.answers.poll_pop(context) {
            self.take_answer(answer);
        }
        if let Some(event) = self.events.borrow_mut().pop_front() {
            return Poll::Ready(event);
        }
        Poll::Pending
    }

    fn take_answer(&self, answer: Answer) {
        if let Some(trouble) = answer.trouble {
            self.events.borrow_mut().push_back(DiskEvent::Trouble(trouble));
        }
        if let Some(ticket) = self.tickets.borrow_mut().get_mut(&answer.ticket) {
            ticket.result = Some(answer.result);
            if let Some(waker) = ticket.waker.take() {
                waker.wake();
            }
        }
        self.under_way.set(self.under_way.get() - 1);
        loop {
            // The loan must have ended when a request goes back.
            let next = self.waiting_requests.borrow_mut().pop_front();
            match next {
                Some((ticket, request)) if self.give(ticket, request) => {}
                _ => return,
            }
        }
    }

    fn event(&self, event: DiskEvent) {
        self.events.borrow_mut().push_back(event);
        self.waker.wake();
    }

    fn done(&self, op: OpId, result: Result<Bytes, DiskError>) {
        self.pending.set(self.pending.get() - 1);
        self.event(DiskEvent::Done(DiskDone { op, result }));
    }

    /// Begins an operation. Its answer comes as an event, never inside this call.
    pub(crate) fn perform(self: &Rc<Self>, op: DiskOp) {
        self.pending.set(self.pending.get() + 1);
        match op {
            DiskOp::Prepare { op, segment } => {
                let file = self.begin(FileId::Segment(segment));
                self.run(op, file, async move |disk, file| {
                    disk.ask(Request::Prepare(segment)).await?;
                    if let Err(error) = disk.open(&file, false).await {
                        // The log takes it as not there, so it must not stay: each attempt would leave one. If it cannot
                        // be removed, the next start gives it back.
                        let _ = disk.ask(Request::Discard(segment)).await;
                        return Err(error);
                    }
                    Ok(Bytes::new())
                });
            }
            DiskOp::Write { op, segment, offset, chunks, len } => {
                self.write(op, FileId::Segment(segment), false, offset, chunks, len);
            }
            DiskOp::ContentWrite { op, content, create, offset, chunks, len } => {
                self.write(op, FileId::Content(content), create, offset, chunks, len);
            }
            DiskOp::Sync { op, segment } => self.sync(op, FileId::Segment(segment)),
            DiskOp::ContentSync { op, content } => self.sync(op, FileId::Content(content)),
            DiskOp::Read { op, file, offset, len } => {
                let file = self.begin(file);
                self.run(op, file, async move |disk, file| {
                    let handle = disk.open(&file, false).await?;
                    read(&handle, offset, len).await
                });
            }
            DiskOp::Recycle { op, segment } => self.part(op, FileId::Segment(segment), Request::Recycle(segment)),
            DiskOp::Discard { op, segment } => self.part(op, FileId::Segment(segment), Request::Discard(segment)),
            DiskOp::ContentRemove { op, content } => {
                self.part(op, FileId::Content(content), Request::RemoveContent(content));
            }
        }
    }

    fn write(self: &Rc<Self>, op: OpId, file: FileId, create: bool, offset: u64, chunks: Vec<Bytes>, len: usize) {
        let file = self.begin(file);
        let epoch = file.begin_write();
        self.run(op, file, async move |disk, file| {
            let result = match disk.open(&file, create).await {
                Ok(handle) => write(&handle, offset, chunks, len).await,
                Err(error) => Err(error),
            };
            file.end_write(epoch);
            result.map(|()| Bytes::new())
        });
    }

    fn sync(self: &Rc<Self>, op: OpId, file: FileId) {
        let file = self.begin(file);
        let epoch = file.epoch.get();
        file.epoch.set(epoch + 1);
        self.run(op, file, async move |disk, file| {
            file.until(|file| file.written(epoch)).await;
            match disk.open(&file, false).await? {
                Handle::Direct(handle) => handle.fdatasync().await,
                Handle::Buffered(handle) => handle.fdatasync().await,
            }
            .map_err(|error| disk_error(&raw_error(error)))?;
            if matches!(file.id, FileId::Content(_)) {
                disk.ask(Request::SyncContentDirectory).await?;
            }
            Ok(Bytes::new())
        });
    }

    /// Closes a file and has the helper do away with it.
    fn part(self: &Rc<Self>, op: OpId, id: FileId, request: Request) {
        let file = self.begin(id);
        // What is asked of this name from now on is about another file.
        self.files.borrow_mut().remove(&id);
        self.run(op, file, async move |disk, file| {
            file.until(|file| file.busy.get() == 1 && !file.opening.get()).await;
            file.handle.take();
            disk.ask(request).await.map(|()| Bytes::new())
        });
    }

    /// The file that an operation is about, which counts as busy from now on.
    fn begin(&self, id: FileId) -> Rc<SpoolFile> {
        let mut files = self.files.borrow_mut();
        let file = Rc::clone(files.entry(id).or_insert_with(|| Rc::new(SpoolFile::new(id))));
        file.busy.set(file.busy.get() + 1);
        self.uses.set(self.uses.get() + 1);
        file.used.set(self.uses.get());
        if files.len() > OPEN_MAX {
            let idle = files.iter().filter(|(_, file)| file.busy.get() == 0).min_by_key(|(_, file)| file.used.get());
            if let Some(id) = idle.map(|(id, _)| *id) {
                files.remove(&id);
            }
        }
        file
    }

    /// Runs an operation in a task of its own.
    fn run<F>(self: &Rc<Self>, op: OpId, file: Rc<SpoolFile>, act: impl FnOnce(Rc<Disk>, Rc<SpoolFile>) -> F + 'static)
    where
        F: Future<Output = Result<Bytes, DiskError>> + 'static,
    {
        let disk = Rc::clone(self);
        let task = async move {
            let result = act(Rc::clone(&disk), Rc::clone(&file)).await;
            file.busy.set(file.busy.get() - 1);
            file.changed();
            disk.done(op, result);
        };
        // The default queue is always there; an executor without it is broken beyond reporting.
        if let Ok(task) = glommio::spawn_local_into(task, glommio::TaskQueueHandle::default()) {
            drop(task.detach());
        }
    }

    async fn open(&self, file: &SpoolFile, create: bool) -> Result<Handle, DiskError> {
        file.until(|file| !file.opening.get()).await;
        if let Some(handle) = &*file.handle.borrow() {
            return Ok(handle.clone());
        }
        file.opening.set(true);
        let opened = self.open_anew(file.id, create).await;
        file.opening.set(false);
        if let Ok(handle) = &opened {
            file.handle.replace(Some(handle.clone()));
        }
        file.changed();
        opened.map_err(|error| disk_error(&error))
    }

    async fn open_anew(&self, id: FileId, create: bool) -> io::Result<Handle> {
        let path = self.files_at.path(id);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).mode(0o600);
        if !self.refuses_direct.get() {
            match options.dma_open(&path).await.map_err(raw_error) {
                Ok(file) => return Ok(Handle::Direct(Rc::new(file))),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.refused(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(Handle::Buffered(Rc::new(options.buffered_open(&path).await.map_err(raw_error)?)))
    }

    /// Notes that the spool's file system has no direct IO.
    fn refused(&self, error: &io::Error) {
        if error.raw_os_error() == Some(libc::EINVAL) && !self.refuses_direct.replace(true) {
            self.event(DiskEvent::Trouble(format!(
                "the file system of {} refuses direct IO; it is written through the page cache, which is slower: put the \
                 spool on ext4 or XFS",
                self.spec.directory.display()
            )));
        }
    }

    /// Gives the helper a request, or keeps it while it has enough of them.
    fn post(&self, number: u64, request: Request) {
        // Those that wait go first.
        if self.waiting_requests.borrow().is_empty() {
            self.give(number, request);
        } else {
            self.waiting_requests.borrow_mut().push_back((number, request));
        }
    }

    /// Gives the helper a request. False when it has as many as there are places for answers: then it waits, before all
    /// others, for the next answer.
    fn give(&self, number: u64, request: Request) -> bool {
        let under_way = self.under_way.get();
        let given = under_way < REQUESTS_MAX && self.helper.ask(number, request).is_ok();
        if given {
            self.under_way.set(under_way + 1);
        } else {
            self.waiting_requests.borrow_mut().push_front((number, request));
        }
        given
    }

    /// Has the helper do something.
    async fn ask(&self, request: Request) -> Result<(), DiskError> {
        let number = self.next_ticket.get();
        self.next_ticket.set(number + 1);
        self.tickets.borrow_mut().insert(number, Ticket::default());
        self.post(number, request);
        poll_fn(|context| {
            let mut tickets = self.tickets.borrow_mut();
            let Some(ticket) = tickets.get_mut(&number) else {
                return Poll::Ready(Err(DiskError::Io { errno: libc::EIO }));
            };
            match ticket.result.take() {
                Some(result) => {
                    tickets.remove(&number);
                    Poll::Ready(result)
                }
                None => {
                    ticket.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// Writes chunks, then zeros up to `len`: the one copy between the socket and the disk.
async fn write(handle: &Handle, offset: u64, chunks: Vec<Bytes>, len: usize) -> Result<(), DiskError> {
    if len == 0 {
        return Ok(());
    }
    let written = match handle {
        Handle::Direct(file) => {
            let mut buffer = file.alloc_dma_buffer(len);
            gather(buffer.as_bytes_mut(), chunks)?;
            file.write_at(buffer, offset).await
        }
        Handle::Buffered(file) => {
            let mut buffer = vec![0; len];
            gather(&mut buffer, chunks)?;
            file.write_at(buffer, offset).await
        }
    };
    match written {
        Ok(written) if written == len => Ok(()),
        Ok(_) => Err(DiskError::Short),
        Err(error) => Err(disk_error(&raw_error(error))),
    }
}

fn gather(buffer: &mut [u8], chunks: Vec<Bytes>) -> Result<(), DiskError> {
    let mut at = 0;
    for chunk in chunks {
        let place = buffer.get_mut(at..at + chunk.len()).ok_or(DiskError::Short)?;
        place.copy_from_slice(&chunk);
        at += chunk.len();
    }
    buffer[at..].fill(0);
    Ok(())
}

async fn read(handle: &Handle, offset: u64, len: usize) -> Result<Bytes, DiskError> {
    if len == 0 {
        return Ok(Bytes::new());
    }
    // Direct IO reads whole blocks; the ends are cut off here.
    let block = BLOCK as u64;
    let start = offset / block * block;
    let skip = (offset - start) as usize;
    let whole = (skip + len).next_multiple_of(BLOCK);
    let bytes = match handle {
        Handle::Direct(file) => file.read_at_aligned(start, whole).await,
        Handle::Buffered(file) => file.read_at(start, whole).await,
    }
    .map_err(|error| disk_error(&raw_error(error)))?;
    bytes.get(skip..skip + len).map(Bytes::copy_from_slice).ok_or(DiskError::Short)
}

/// The system's error inside glommio's, whose own conversion loses the number.
fn raw_error(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::IoError(error) | GlommioError::EnhancedIoError { source: error, .. } => error,
        other => other.into(),
    }
}
