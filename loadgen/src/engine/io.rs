//! What a driver asks of the engine: write, connect, close, TLS, timers; and the table of connections behind it.
//!
//! Nothing is carried out at once: writes of one turn become one send, and all sends of a turn one system call. What a
//! driver asks for a connection that is gone is ignored, since the news may still be on its way.

use super::socket::outgoing;
use super::tls::{Tls, TlsRole};
use super::{Close, ConnId, buffers};
use io_uring::{IoUring, opcode, squeue, types};
use socket2::{SockAddr, Socket};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// How long a connection that is being closed may take to send the rest.
const LINGER: Duration = Duration::from_secs(10);
/// A buffer larger than this is given up when its connection has nothing to send, so that one large message does not
/// cost memory for ever.
const KEPT_CAPACITY: usize = 256 * 1024;

/// What a completion belongs to, in the highest octet of its user data.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Operation {
    Accept = 1,
    Connect = 2,
    Receive = 3,
    Send = 4,
    Cancel = 5,
}

impl Operation {
    pub(super) fn of(user_data: u64) -> Option<Operation> {
        match (user_data >> 56) as u8 {
            1 => Some(Operation::Accept),
            2 => Some(Operation::Connect),
            3 => Some(Operation::Receive),
            4 => Some(Operation::Send),
            5 => Some(Operation::Cancel),
            _ => None,
        }
    }

    fn user_data(self, index: u32) -> u64 {
        u64::from(self as u8) << 56 | u64::from(index)
    }
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Driver(u64),
    /// The connection in this place, in this use of it, has had its time to send the rest.
    Linger(u32, u32),
}

/// One place of the table. Operations of an earlier use are over before the place is used again.
#[derive(Debug, Default)]
pub(super) struct Conn {
    generation: u32,
    socket: Option<Socket>,
    /// What the driver wrote, in clear.
    out: Vec<u8>,
    /// What goes on the wire next.
    wire: Vec<u8>,
    /// What is with the kernel, and how much of it went.
    flying: Vec<u8>,
    flown: usize,
    sending: bool,
    pub(super) receiving: bool,
    pub(super) paused: bool,
    /// Operations that the kernel has not answered.
    operations: u8,
    pub(super) closing: Option<Close>,
    lingering: bool,
    dirty: bool,
    pub(super) tls: Option<Box<Tls>>,
    /// Where it connects to; the kernel reads it when the operation is submitted.
    address: Option<Box<SockAddr>>,
}

/// The engine as its driver sees it.
pub struct Io {
    pub(super) ring: IoUring,
    pub(super) conns: Vec<Conn>,
    free: Vec<u32>,
    dirty: Vec<u32>,
    open: usize,
    timers: BinaryHeap<Reverse<(Instant, Timer)>>,
    pub(super) failed: VecDeque<(ConnId, String)>,
    /// Operations that found no room in the queue.
    held: VecDeque<squeue::Entry>,
    pub(super) stopped: bool,
}

impl Io {
    pub(super) fn new(ring: IoUring) -> Io {
        Io {
            ring,
            conns: Vec::new(),
            free: Vec::new(),
            dirty: Vec::new(),
            open: 0,
            timers: BinaryHeap::new(),
            failed: VecDeque::new(),
            held: VecDeque::new(),
            stopped: false,
        }
    }

    /// Connections that there are, those that are being opened or closed included.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Ends the engine after this turn; connections that are still there are broken off.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Where to write for a connection, in clear; it goes out at the end of the turn. None when it is gone or closing.
    pub fn output(&mut self, id: ConnId) -> Option<&mut Vec<u8>> {
        self.live(id)?;
        self.mark_dirty(id.index);
        Some(&mut self.conns[id.index as usize].out)
    }

    /// Octets that were written and are not yet with the kernel's socket.
    pub fn unsent(&self, id: ConnId) -> usize {
        match self.conns.get(id.index as usize) {
            Some(conn) if conn.generation == id.generation => {
                conn.out.len() + conn.wire.len() + conn.flying.len() - conn.flown
            }
            _ => 0,
        }
    }

    /// Where a connection comes from; None when it is gone.
    pub fn peer(&self, id: ConnId) -> Option<SocketAddr> {
        let conn = self.conns.get(id.index as usize).filter(|conn| conn.generation == id.generation)?;
        conn.socket.as_ref()?.peer_addr().ok()?.as_socket()
    }

    /// Opens a connection, from a chosen address if one is given; answered by `connected`.
    pub fn connect(&mut self, to: SocketAddr, from: Option<IpAddr>) -> ConnId {
        match outgoing(to, from) {
            Ok(socket) => {
                let descriptor = types::Fd(socket.as_raw_fd());
                let id = self.insert(Some(socket));
                let conn = &mut self.conns[id.index as usize];
                let address = conn.address.insert(Box::new(SockAddr::from(to)));
                let entry = opcode::Connect::new(descriptor, address.as_ptr().cast(), address.len()).build();
                self.submit(entry, Operation::Connect, id.index);
                id
            }
            Err(error) => {
                let id = self.insert(None);
                self.failed.push_back((id, error.to_string()));
                id
            }
        }
    }

    /// Closes a connection; the driver hears no more of it.
    pub fn close(&mut self, id: ConnId, how: Close) {
        let Some(conn) = self.live(id) else { return };
        conn.closing = Some(how);
        if how != Close::Flush {
            conn.out.clear();
            conn.wire.clear();
        } else if let Some(mut tls) = conn.tls.take() {
            tls.send(&conn.out, &mut conn.wire);
            conn.out.clear();
            tls.say_goodbye();
            tls.send(&[], &mut conn.wire);
        }
        if how == Close::Reset
            && let Some(socket) = &conn.socket
        {
            // A socket that is gone needs no reset.
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
        self.mark_dirty(id.index);
    }

    /// Begins a handshake; what was written before goes out in clear. Answered by `tls_started` or `ended`.
    ///
    /// # Errors
    /// When the role cannot be played: a name that is none, a configuration that does not fit.
    pub fn start_tls(&mut self, id: ConnId, role: TlsRole) -> Result<(), String> {
        let tls = Tls::new(role)?;
        if let Some(conn) = self.live(id) {
            conn.wire.append(&mut conn.out);
            conn.tls = Some(Box::new(tls));
            self.mark_dirty(id.index);
        }
        Ok(())
    }

    /// Reads no more from a connection until `resume`; what is on its way may still come.
    pub fn pause(&mut self, id: ConnId) {
        let Some(conn) = self.live(id) else { return };
        if !std::mem::replace(&mut conn.paused, true) && conn.receiving {
            self.cancel(Operation::Receive, id.index);
        }
    }

    /// Reads on.
    pub fn resume(&mut self, id: ConnId) {
        let Some(conn) = self.live(id) else { return };
        // While the last receive is still being cancelled its end begins the next.
        if std::mem::replace(&mut conn.paused, false) && !conn.receiving {
            self.receive(id.index);
        }
    }

    /// Calls the driver's `timer` at a time, or as soon as possible if it is past.
    pub fn wake_at(&mut self, at: Instant, token: u64) {
        self.timers.push(Reverse((at, Timer::Driver(token))));
    }

    fn live(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(id.index as usize)?;
        (conn.generation == id.generation && conn.closing.is_none()).then_some(conn)
    }

    pub(super) fn id(&self, index: u32) -> ConnId {
        ConnId { index, generation: self.conns[index as usize].generation }
    }

    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    pub(super) fn due_timer(&mut self, now: Instant) -> Option<Timer> {
        match self.timers.peek() {
            Some(Reverse((at, _))) if *at <= now => self.timers.pop().map(|Reverse((_, timer))| timer),
            _ => None,
        }
    }

    /// A connection that was closed with `Flush` has had its time.
    pub(super) fn end_linger(&mut self, index: u32, generation: u32) {
        let conn = &mut self.conns[index as usize];
        if conn.generation == generation && conn.closing == Some(Close::Flush) {
            conn.closing = Some(Close::Now);
            conn.out.clear();
            conn.wire.clear();
            self.mark_dirty(index);
        }
    }

    pub(super) fn insert(&mut self, socket: Option<Socket>) -> ConnId {
        self.open += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.conns.push(Conn::default());
            self.conns.len() as u32 - 1
        });
        self.conns[index as usize].socket = socket;
        self.id(index)
    }

    fn mark_dirty(&mut self, index: u32) {
        if !std::mem::replace(&mut self.conns[index as usize].dirty, true) {
            self.dirty.push(index);
        }
    }

    /// An operation of a connection is over; its place is free once all are.
    pub(super) fn operation_ended(&mut self, index: u32) {
        self.conns[index as usize].operations -= 1;
        if self.conns[index as usize].closing.is_some() {
            self.mark_dirty(index);
        }
    }

    /// Breaks off all connections.
    pub(super) fn drop_all(&mut self) {
        while let Some((id, _)) = self.failed.pop_front() {
            self.drop_connection(id.index);
        }
        for index in 0..self.conns.len() as u32 {
            if self.conns[index as usize].operations > 0 || self.conns[index as usize].socket.is_some() {
                self.drop_connection(index);
            }
        }
    }

    /// The connection is over without the driver having closed it.
    pub(super) fn drop_connection(&mut self, index: u32) {
        let conn = &mut self.conns[index as usize];
        conn.closing = Some(Close::Now);
        conn.out.clear();
        conn.wire.clear();
        self.mark_dirty(index);
    }

    /// Waits for bytes on a connection, until further notice.
    pub(super) fn receive(&mut self, index: u32) {
        let conn = &mut self.conns[index as usize];
        let Some(socket) = &conn.socket else { return };
        let entry = opcode::RecvMulti::new(types::Fd(socket.as_raw_fd()), buffers::GROUP).build();
        conn.receiving = true;
        self.submit(entry, Operation::Receive, index);
    }

    /// So many octets went; the rest, if any, is sent again.
    pub(super) fn sent(&mut self, index: u32, octets: usize) {
        let conn = &mut self.conns[index as usize];
        conn.sending = false;
        conn.flown += octets;
        if conn.flown >= conn.flying.len() {
            conn.flying.clear();
            conn.flown = 0;
            if conn.flying.capacity() > KEPT_CAPACITY {
                conn.flying = Vec::new();
            }
        }
        if !conn.flying.is_empty() || !conn.out.is_empty() || !conn.wire.is_empty() || conn.closing.is_some() {
            self.mark_dirty(index);
        }
    }

    /// The socket takes no more: what is left to send is dropped.
    pub(super) fn give_up_sending(&mut self, index: u32) {
        let conn = &mut self.conns[index as usize];
        conn.out.clear();
        conn.wire.clear();
        conn.flying.clear();
        conn.flown = 0;
    }

    /// Sends what the turn has written and goes on with what is closing.
    pub(super) fn end_turn(&mut self) {
        let mut at = 0;
        while let Some(&index) = self.dirty.get(at) {
            at += 1;
            self.conns[index as usize].dirty = false;
            self.flush(index);
            self.go_on_closing(index);
        }
        self.dirty.clear();
    }

    fn flush(&mut self, index: u32) {
        let conn = &mut self.conns[index as usize];
        if let Some(tls) = &mut conn.tls {
            tls.send(&conn.out, &mut conn.wire);
            conn.out.clear();
        }
        // Not yet connected, or with the kernel already: it is sent when that is over.
        if conn.sending || conn.address.is_some() || matches!(conn.closing, Some(Close::Now | Close::Reset)) {
            return;
        }
        if conn.flown == 0 {
            if conn.wire.is_empty() {
                std::mem::swap(&mut conn.out, &mut conn.flying);
            } else {
                std::mem::swap(&mut conn.wire, &mut conn.flying);
                conn.wire.append(&mut conn.out);
            }
        }
        let Some(socket) = &conn.socket else { return };
        if conn.flying.is_empty() {
            return;
        }
        let rest = &conn.flying[conn.flown..];
        let len = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let entry = opcode::Send::new(types::Fd(socket.as_raw_fd()), rest.as_ptr(), len)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        conn.sending = true;
        self.submit(entry, Operation::Send, index);
    }

    fn go_on_closing(&mut self, index: u32) {
        let conn = &mut self.conns[index as usize];
        let Some(how) = conn.closing else { return };
        let unsent = conn.sending || !conn.flying.is_empty() || !conn.wire.is_empty() || !conn.out.is_empty();
        if conn.operations > 0 && how == Close::Flush && unsent {
            if !std::mem::replace(&mut conn.lingering, true) {
                let linger = Timer::Linger(index, conn.generation);
                self.timers.push(Reverse((Instant::now() + LINGER, linger)));
            }
            return;
        }
        if conn.operations > 0 {
            let connecting = conn.address.is_some();
            if how == Close::Reset || connecting {
                let (receiving, sending) = (conn.receiving, conn.sending);
                for (is, operation) in
                    [(connecting, Operation::Connect), (receiving, Operation::Receive), (sending, Operation::Send)]
                {
                    if is {
                        self.cancel(operation, index);
                    }
                }
            } else if let Some(socket) = &conn.socket {
                // One that the peer has already ended says so, and its operations end all the same.
                let _ = socket.shutdown(std::net::Shutdown::Both);
            }
            return;
        }
        self.remove(index);
    }

    /// Frees a place whose operations are all over.
    fn remove(&mut self, index: u32) {
        let conn = &mut self.conns[index as usize];
        let keep = |mut buffer: Vec<u8>| {
            buffer.clear();
            if buffer.capacity() > KEPT_CAPACITY { Vec::new() } else { buffer }
        };
        let old = std::mem::take(conn);
        conn.generation = old.generation.wrapping_add(1);
        conn.out = keep(old.out);
        conn.wire = keep(old.wire);
        conn.flying = keep(old.flying);
        self.free.push(index);
        self.open -= 1;
    }

    /// The connection stands, or does not: its address is of no more use.
    pub(super) fn connect_ended(&mut self, index: u32) {
        self.conns[index as usize].address = None;
        self.mark_dirty(index);
    }

    fn cancel(&mut self, operation: Operation, index: u32) {
        let entry = opcode::AsyncCancel::new(operation.user_data(index)).build();
        self.push(entry.user_data(Operation::Cancel.user_data(index)));
    }

    fn submit(&mut self, entry: squeue::Entry, operation: Operation, index: u32) {
        self.conns[index as usize].operations += 1;
        self.push(entry.user_data(operation.user_data(index)));
    }

    /// Waits for connections on a listener, until further notice.
    pub(super) fn accept(&mut self, listener: usize, descriptor: i32) {
        let entry = opcode::AcceptMulti::new(types::Fd(descriptor)).flags(libc::SOCK_CLOEXEC).build();
        self.push(entry.user_data(Operation::Accept.user_data(listener as u32)));
    }

    /// Puts an operation into the queue. One that finds no room waits for the next turn, when completions have been taken.
    fn push(&mut self, entry: squeue::Entry) {
        if !self.held.is_empty() || !self.try_push(&entry) {
            self.held.push_back(entry);
        }
    }

    /// False when the queue is full and the kernel takes nothing of it for now.
    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        for _ in 0..2 {
            // SAFETY: what the entry points to belongs to a connection and stays where it is, unchanged, until the
            // operation's completion: `flying` is not touched while `sending`, the address until `connect_ended`.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return true;
            }
            if self.ring.submit().is_err() {
                return false;
            }
        }
        false
    }

    /// Puts operations into the queue that have found no room before. False if some still wait.
    pub(super) fn push_held(&mut self) -> bool {
        while let Some(entry) = self.held.pop_front() {
            if !self.try_push(&entry) {
                self.held.push_front(entry);
                return false;
            }
        }
        true
    }
}
