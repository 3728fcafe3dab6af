//! One shard's handler and everything its commands act on. A call of the handler is followed by a drain: its commands are
//! carried out in order, connections with output are flushed once, and callbacks that commands have caused are made after
//! that, each with a drain of its own. So the handler is never entered twice, and a burst of sends is one system call.
//!
//! A panic in the handler is the end of the shard, and the shard's end is the end of the process (executor.rs).

use crate::clock::{Instant, Now};
use crate::io::alarm::Alarm;
use crate::io::clock::Clock;
use crate::io::connection::{Connection, Flushed, Output, Table};
use crate::io::connection_task::ConnectionTask;
use crate::io::disk::Disk;
use crate::io::handler::{CloseReason, Command, ConnId, Handler, TlsInfo, TlsSide};
use crate::io::mailbox::{InboxSender, Sender};
use crate::io::net;
use crate::io::tls::TlsSetup;
use crate::io::waker::WakerCell;
use bytes::Bytes;
use glommio::net::TcpStream;
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// One read takes at most so much; every connection of a shard reads into the same buffer.
pub(crate) const READ_BUFFER: usize = 64 * 1024;

/// Clear text is decrypted by pieces of at most one TLS record.
const PLAIN_BUFFER: usize = 16 * 1024;

/// The scratch buffer for replies gives back what it grew beyond this.
const OUT_KEPT: usize = 256 * 1024;

/// How long a connection that is being closed may take to send what is queued.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the messages and reports of a shard go.
#[derive(Debug)]
pub(crate) struct Outlets<M, R> {
    pub(crate) shards: Vec<Sender<M>>,
    pub(crate) control: InboxSender<R>,
}

/// A call of the handler that a command has caused.
enum Callback<M, R> {
    ConnectFailed(ConnId, String),
    Sent(ConnId),
    MessageRefused(u8, M),
    ReportRefused(R),
}

/// One shard: its handler and what that acts on. Lives on one thread, shared by the shard's tasks.
pub(crate) struct Shard<H: Handler> {
    pub(crate) number: u8,
    pub(crate) clock: Clock,
    pub(crate) tls: TlsSetup,
    pub(crate) disk: Rc<Disk>,
    pub(crate) read_buffer: RefCell<Box<[u8]>>,
    pub(crate) plain_buffer: RefCell<Box<[u8]>>,
    /// The sockets of the listeners that still take connections.
    pub(crate) listeners: RefCell<Vec<RawFd>>,
    /// Wakes the task that calls `turn_ended`.
    pub(crate) flusher: WakerCell,
    /// Wakes the main task, which ends the executor.
    pub(crate) main: WakerCell,
    /// When the handler wants to be woken.
    pub(crate) alarm: Alarm,
    handler: RefCell<H>,
    out: RefCell<Vec<u8>>,
    table: RefCell<Table>,
    outlets: Outlets<H::Message, H::Report>,
    dirty: RefCell<Vec<ConnId>>,
    callbacks: RefCell<VecDeque<Callback<H::Message, H::Report>>>,
    deadlines: RefCell<BinaryHeap<Reverse<(Instant, ConnId)>>>,
    turn_open: Cell<bool>,
    /// The handler wants another turn after this one.
    another_turn: Cell<bool>,
    exiting: Cell<bool>,
    over: Cell<bool>,
    failure: RefCell<Option<String>>,
}

impl<H: Handler + 'static> Shard<H> {
    pub(crate) fn new(
        number: u8,
        handler: H,
        tls: TlsSetup,
        disk: Rc<Disk>,
        outlets: Outlets<H::Message, H::Report>,
    ) -> Shard<H> {
        Shard {
            number,
            clock: Clock::new(),
            tls,
            disk,
            read_buffer: RefCell::new(vec![0; READ_BUFFER].into()),
            plain_buffer: RefCell::new(vec![0; PLAIN_BUFFER].into()),
            listeners: RefCell::default(),
            flusher: WakerCell::default(),
            main: WakerCell::default(),
            alarm: Alarm::default(),
            handler: RefCell::new(handler),
            out: RefCell::default(),
            table: RefCell::default(),
            outlets,
            dirty: RefCell::default(),
            callbacks: RefCell::default(),
            deadlines: RefCell::default(),
            turn_open: Cell::new(false),
            another_turn: Cell::new(false),
            exiting: Cell::new(false),
            over: Cell::new(false),
            failure: RefCell::default(),
        }
    }

    /// Runs a task of the shard. It begins in a later step of the executor, never inside this call. A panic in it ends the
    /// shard.
    pub(crate) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let guarded = Guarded { shard: Rc::clone(self), task: Box::pin(task) };
        match glommio::spawn_local_into(guarded, glommio::TaskQueueHandle::default()) {
            Ok(task) => drop(task.detach()),
            Err(error) => self.fail(format!("the executor takes no tasks: {error}")),
        }
    }

    /// Runs the task of a connection: as [`spawn`](Shard::spawn), without a second allocation.
    fn spawn_connection(self: &Rc<Self>, id: ConnId, stream: TcpStream) {
        let task = ConnectionTask::new(Rc::clone(self), id, stream);
        match glommio::spawn_local_into(task, glommio::TaskQueueHandle::default()) {
            Ok(task) => drop(task.detach()),
            Err(error) => self.fail(format!("the executor takes no tasks: {error}")),
        }
    }

    /// Does something with a connection, if it is still there.
    pub(crate) fn with<T>(&self, id: ConnId, act: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        self.table.borrow_mut().get(id).map(act)
    }

    /// Calls the handler, then carries out its commands.
    pub(crate) fn call(self: &Rc<Self>, act: impl FnOnce(&mut H, Now)) {
        self.enter(act);
        self.drain();
    }

    fn enter<T>(&self, act: impl FnOnce(&mut H, Now) -> T) -> T {
        if !self.turn_open.replace(true) {
            self.flusher.wake();
        }
        act(&mut self.handler.borrow_mut(), self.clock.now())
    }

    /// Closes the turn, if the handler was called since the last one.
    pub(crate) fn end_turn(self: &Rc<Self>) {
        if self.turn_open.replace(false) {
            let now = self.clock.now();
            self.handler.borrow_mut().turn_ended(now);
            self.drain();
        }
    }

    /// Whether another turn is wanted; to be asked once.
    pub(crate) fn wants_turn(&self) -> bool {
        self.another_turn.replace(false)
    }

    /// Begins a turn in which nothing has happened yet.
    pub(crate) fn begin_turn(&self) {
        self.turn_open.set(true);
    }

    /// A client has connected.
    pub(crate) fn accepted(self: &Rc<Self>, listener: usize, implicit_tls: bool, stream: TcpStream) {
        let socket = stream.as_raw_fd();
        // A client that has gone again since is not worth a word.
        let Ok((peer, local)) = net::addresses(socket) else { return };
        net::set_nodelay(socket);
        let mut out = self.out.take();
        let id = self.enter(|handler, now| handler.accepted(listener, peer, local, now, &mut out));
        match id {
            None => {
                if !implicit_tls {
                    let _ = net::send(socket, &[std::io::IoSlice::new(&out)]);
                }
                net::shutdown(socket, false);
                net::drain_input(socket, &mut self.read_buffer.borrow_mut());
                out.clear();
            }
            Some(id) => {
                let mut connection = Connection::new(id.generation, socket);
                connection.listener = u16::try_from(listener).unwrap_or(u16::MAX);
                if implicit_tls {
                    connection.output.push_back(Output::StartTls(Box::new(TlsSide::Server { begun: true })));
                    connection.handshake_due = true;
                }
                self.table.borrow_mut().insert(id, connection);
                self.spawn_connection(id, stream);
                self.send_out(id, &mut out);
            }
        }
        self.keep_out(out);
        self.drain();
    }

    /// Gives the handler input of a connection and keeps what it does not take.
    pub(crate) fn deliver(self: &Rc<Self>, id: ConnId, bytes: &[u8]) {
        let mut out = self.out.take();
        let taken = self.enter(|handler, now| handler.received(id, bytes, now, &mut out));
        if taken < bytes.len() {
            self.with(id, |connection| {
                connection.rest = bytes[taken..].to_vec();
                connection.paused = true;
            });
        }
        self.send_out(id, &mut out);
        self.keep_out(out);
        self.drain();
    }

    /// Tells the handler that a handshake is done.
    pub(crate) fn tls_started(self: &Rc<Self>, id: ConnId, info: TlsInfo) {
        let mut out = self.out.take();
        self.enter(|handler, now| handler.tls_started(id, info, now, &mut out));
        self.send_out(id, &mut out);
        self.keep_out(out);
        // What was held during the handshake goes out now.
        self.mark_dirty(id);
        self.drain();
    }

    /// Sends the scratch buffer's bytes on a connection: at once if nothing waits before them.
    fn send_out(&self, id: ConnId, out: &mut Vec<u8>) {
        if out.is_empty() {
            return;
        }
        let queued = self.with(id, |connection| {
            if !connection.is_open() {
                return false;
            }
            let mut taken = 0;
            if connection.output.is_empty() && !connection.connecting {
                let result = match &mut connection.tls {
                    None => net::send(connection.socket, &[std::io::IoSlice::new(out)]),
                    Some(tls) if tls.announced && !tls.wants_write() => tls.write(out),
                    Some(_) => Ok(0),
                };
                // An error is met again, and answered, by the flush.
                taken = result.unwrap_or(0);
            }
            if taken < out.len() {
                connection.output.push_back(Output::Bytes(Bytes::copy_from_slice(&out[taken..])));
            }
            taken < out.len() || connection.tls.is_some()
        });
        out.clear();
        if queued == Some(true) {
            self.mark_dirty(id);
        }
    }

    fn keep_out(&self, mut out: Vec<u8>) {
        out.clear();
        out.shrink_to(OUT_KEPT);
        self.out.replace(out);
    }

    fn mark_dirty(&self, id: ConnId) {
        let marked = self.with(id, |connection| !std::mem::replace(&mut connection.dirty, true));
        if marked == Some(true) {
            self.dirty.borrow_mut().push(id);
        }
    }

    /// Carries out everything the handler wants, and makes the callbacks that come of it.
    pub(crate) fn drain(self: &Rc<Self>) {
        loop {
            loop {
                let command = self.handler.borrow_mut().poll_command();
                match command {
                    Some(command) => self.carry_out(command),
                    None => break,
                }
            }
            self.flush_dirty();
            let Some(callback) = self.callbacks.borrow_mut().pop_front() else { break };
            self.enter(|handler, now| match callback {
                Callback::ConnectFailed(id, error) => handler.connect_failed(id, &error, now),
                Callback::Sent(id) => handler.sent(id, now),
                Callback::MessageRefused(shard, message) => handler.message_refused(shard, message, now),
                Callback::ReportRefused(report) => handler.report_refused(report, now),
            });
        }
        self.check_over();
    }

    fn flush_dirty(&self) {
        let mut dirty = self.dirty.take();
        for id in dirty.drain(..) {
            self.flush(id);
        }
        // Keeps the list's memory.
        self.dirty.replace(dirty);
    }

    fn flush(&self, id: ConnId) {
        let mut sent = 0;
        self.with(id, |connection| {
            connection.dirty = false;
            if connection.end.is_some() || connection.connecting || connection.blocked {
                return;
            }
            let due = connection.handshake_due;
            match connection.flush(&self.tls, &mut sent, None) {
                Ok(Flushed::All | Flushed::Held) if !connection.closing && !connection.peer_ended && !due => {}
                Ok(_) => connection.wake(),
                Err(reason) => connection.end(reason),
            }
        });
        self.note_sent(id, sent);
    }

    /// Keeps in mind to tell the handler so many times that its bytes are with the kernel.
    pub(crate) fn note_sent(&self, id: ConnId, count: usize) {
        self.callbacks.borrow_mut().extend((0..count).map(|_| Callback::Sent(id)));
    }

    fn carry_out(self: &Rc<Self>, command: Command<H::Message, H::Report>) {
        match command {
            Command::Send { conn, bytes } => {
                if !bytes.is_empty() {
                    self.queue(conn, Output::Bytes(bytes));
                }
            }
            Command::NotifySent(conn) => self.queue(conn, Output::Notify),
            Command::Close { conn, flush } => self.close(conn, flush),
            Command::PauseRead(conn) => {
                self.with(conn, |connection| connection.paused = true);
            }
            Command::ResumeRead(conn) => {
                self.with(conn, |connection| {
                    connection.paused = false;
                    connection.look = true;
                    connection.wake();
                });
            }
            Command::Connect { conn, to, from, timeout } => self.connect(conn, to, from, timeout),
            Command::StartTls { conn, side } => {
                self.with(conn, |connection| {
                    if side != (TlsSide::Server { begun: true }) {
                        connection.rest = Vec::new();
                    }
                    connection.paused = false;
                    connection.handshake_due = true;
                });
                self.queue(conn, Output::StartTls(Box::new(side)));
            }
            Command::Disk(op) => self.disk.perform(op),
            Command::Post { shard, message } => {
                let refused = match self.outlets.shards.get(usize::from(shard)) {
                    Some(sender) => sender.push(message).err(),
                    None => Some(message),
                };
                if let Some(message) = refused {
                    self.callbacks.borrow_mut().push_back(Callback::MessageRefused(shard, message));
                }
            }
            Command::Report(report) => {
                if let Err(report) = self.outlets.control.push(report) {
                    self.callbacks.borrow_mut().push_back(Callback::ReportRefused(report));
                }
            }
            Command::WakeAt(at) => self.alarm.set(at),
            Command::NextTurn => self.another_turn.set(true),
            Command::StopListening => self.stop_listening(),
            Command::Exit => {
                self.exiting.set(true);
                self.stop_listening();
            }
        }
    }

    fn queue(&self, id: ConnId, output: Output) {
        let queued = self.with(id, |connection| {
            let open = connection.is_open();
            if open {
                connection.output.push_back(output);
            }
            open
        });
        if queued == Some(true) {
            self.mark_dirty(id);
        }
    }

    fn close(&self, id: ConnId, flush: bool) {
        let deadline = self.clock.now().instant.after(FLUSH_TIMEOUT);
        let flushing = self.with(id, |connection| {
            if !flush || connection.connecting || connection.is_handshaking() || connection.handshake_due {
                connection.end(CloseReason::Asked);
                return false;
            }
            if connection.end.is_some() || std::mem::replace(&mut connection.closing, true) {
                return false;
            }
            connection.deadline = deadline;
            true
        });
        if flushing == Some(true) {
            self.deadlines.borrow_mut().push(Reverse((deadline, id)));
            self.mark_dirty(id);
        }
    }

    /// The peer has sent its end: what is queued goes out, then the connection is over.
    pub(crate) fn peer_ended(&self, id: ConnId) {
        let deadline = self.clock.now().instant.after(FLUSH_TIMEOUT);
        self.with(id, |connection| {
            connection.peer_ended = true;
            connection.deadline = connection.deadline.min(deadline);
        });
        self.deadlines.borrow_mut().push(Reverse((deadline, id)));
    }

    fn connect(self: &Rc<Self>, id: ConnId, to: SocketAddr, from: Option<IpAddr>, timeout: Duration) {
        let socket = match net::start_connect(to, from) {
            Ok(socket) => socket.into_raw_fd(),
            Err(error) => {
                self.callbacks.borrow_mut().push_back(Callback::ConnectFailed(id, net::words(&error)));
                return;
            }
        };
        // SAFETY: the descriptor was made just now and given up by its owner, so the stream is its only one.
        let stream = unsafe { TcpStream::from_raw_fd(socket) };
        let deadline = self.clock.now().instant.after(timeout);
        let mut connection = Connection::new(id.generation, socket);
        connection.outgoing = true;
        connection.connecting = true;
        connection.deadline = deadline;
        self.table.borrow_mut().insert(id, connection);
        self.deadlines.borrow_mut().push(Reverse((deadline, id)));
        self.spawn_connection(id, stream);
    }

    /// An outgoing connection stands.
    pub(crate) fn connected(self: &Rc<Self>, id: ConnId) {
        let socket = self.with(id, |connection| {
            connection.connecting = false;
            connection.deadline = Instant::MAX;
            connection.socket
        });
        let Some(socket) = socket else { return };
        match net::local_address(socket) {
            Ok(local) => {
                self.enter(|handler, now| handler.connected(id, local, now));
                self.mark_dirty(id);
                self.drain();
            }
            Err(error) => {
                self.with(id, |connection| {
                    connection.connecting = true;
                    connection.end(CloseReason::Error(net::words(&error)));
                });
            }
        }
    }

    /// Closes a connection whose end has come and tells the handler: the last thing its task does.
    pub(crate) fn finish(self: &Rc<Self>, id: ConnId, stream: Option<TcpStream>) {
        let Some(connection) = self.table.borrow_mut().remove(id) else { return };
        let reason = connection.end.clone().unwrap_or(CloseReason::Asked);
        // A poll that is still in the ring keeps the socket open for a moment, so its end is sent by hand.
        let gently = connection.output.is_empty() && matches!(reason, CloseReason::Asked | CloseReason::Tls(_));
        net::shutdown(connection.socket, !gently);
        if gently {
            net::drain_input(connection.socket, &mut self.read_buffer.borrow_mut());
        }
        drop(stream);
        if connection.connecting {
            let error = match reason {
                CloseReason::Error(error) => error,
                _ => "given up".to_owned(),
            };
            self.call(|handler, now| handler.connect_failed(id, &error, now));
        } else {
            self.call(|handler, now| handler.closed(id, reason, now));
        }
    }

    /// Ends connections that took too long to connect or to flush.
    pub(crate) fn check_deadlines(&self, now: Instant) {
        let mut deadlines = self.deadlines.borrow_mut();
        while let Some(&Reverse((deadline, id))) = deadlines.peek()
            && deadline <= now
        {
            deadlines.pop();
            self.with(id, |connection| {
                if connection.deadline > now {
                    return;
                }
                connection.end(if connection.connecting {
                    CloseReason::Error("no answer in time".to_owned())
                } else if connection.peer_ended {
                    CloseReason::Peer
                } else {
                    CloseReason::Asked
                });
            });
        }
    }

    fn stop_listening(&self) {
        for listener in self.listeners.borrow().iter() {
            net::end_listener(*listener);
        }
    }

    /// A listener takes no more.
    pub(crate) fn listener_ended(&self, socket: RawFd) {
        self.listeners.borrow_mut().retain(|other| *other != socket);
        self.check_over();
    }

    /// Ends the executor when the handler has asked for it and nothing is under way.
    pub(crate) fn check_over(&self) {
        let idle = self.exiting.get()
            && self.table.borrow().len() == 0
            && self.listeners.borrow().is_empty()
            && self.disk.is_idle();
        if idle && !self.over.replace(true) {
            self.main.wake();
            self.flusher.wake();
            self.alarm.set(Instant::ZERO);
            self.disk.wake();
        }
    }

    /// Whether the shard has done its work.
    pub(crate) fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Ends the shard with an error.
    pub(crate) fn fail(&self, text: String) {
        self.failure.borrow_mut().get_or_insert(text);
        self.main.wake();
    }

    /// Whether the shard has failed; no handler is called any more then.
    pub(crate) fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// The error it failed with.
    pub(crate) fn take_failure(&self) -> Option<String> {
        self.failure.borrow_mut().take()
    }

    /// Polls a task of the shard; a panic in it is the shard's failure.
    pub(crate) fn guard(&self, what: &str, poll: impl FnOnce() -> Poll<()>) -> Poll<()> {
        if self.has_failed() {
            return Poll::Ready(());
        }
        match catch_unwind(AssertUnwindSafe(poll)) {
            Ok(poll) => poll,
            Err(panic) => {
                let text = panic
                    .downcast_ref::<&str>()
                    .map(|text| (*text).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_else(|| "no text".to_owned());
                self.fail(format!("shard {}: panic in {what}: {text}", self.number));
                Poll::Ready(())
            }
        }
    }
}

/// A task of a shard whose panic ends the shard.
struct Guarded<H: Handler> {
    shard: Rc<Shard<H>>,
    task: Pin<Box<dyn Future<Output = ()>>>,
}

impl<H: Handler + 'static> Future for Guarded<H> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let (shard, task) = (&this.shard, &mut this.task);
        shard.guard("a task", || task.as_mut().poll(context))
    }
}
