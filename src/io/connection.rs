//! The state of one connection, and the table of a shard's connections. Knows what waits to be sent and whether there is
//! reading to be done; it sends without waiting and never calls the handler.
//!
//! An idle connection holds no buffer: its output queue and its unread rest are allocated only while they hold something.

use crate::clock::Instant;
use crate::io::handler::{CloseReason, ConnId, TlsSide};
use crate::io::net::{self, DirectSocket};
use crate::io::tls::TlsSetup;
use crate::io::tls_link::TlsLink;
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::task::{Context, Waker};

/// An output queue that grew beyond this many entries gives its memory back when it is empty.
const KEPT_CAPACITY: usize = 4;

/// A table never grows beyond this: handlers give dense places, and a wild one must not take all memory.
const PLACES_MAX: u32 = 1 << 22;

/// What waits to be done with a connection, in order.
#[derive(Debug)]
pub(crate) enum Output {
    /// To be sent.
    Bytes(Bytes),
    /// The handler wants to know when the kernel has taken all before.
    Notify,
    /// A handshake begins when all before is sent.
    StartTls(Box<TlsSide>),
}

/// How far a flush came.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// Everything is with the kernel.
    All,
    /// The socket takes no more now.
    Blocked,
    /// What waits has to wait for the end of the handshake.
    Held,
}

/// One connection. The socket is owned by the connection's task, which takes this out of the table before it closes it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) generation: u32,
    pub(crate) socket: RawFd,
    /// Where it came in; 0 for outgoing ones.
    pub(crate) listener: u16,
    pub(crate) outgoing: bool,
    /// Outgoing and not there yet.
    pub(crate) connecting: bool,
    /// The handler wants no input now.
    pub(crate) paused: bool,
    /// A handshake waits in the output queue: nothing may be read before it.
    pub(crate) handshake_due: bool,
    /// Nothing more will come.
    pub(crate) peer_ended: bool,
    /// To be closed when the output is out.
    pub(crate) closing: bool,
    /// The socket took no more; the task waits until it does.
    pub(crate) blocked: bool,
    /// Stands in the list of connections to be flushed at the end of the drain.
    pub(crate) dirty: bool,
    /// Clear text may wait in rustls: look there before waiting for the socket.
    pub(crate) look: bool,
    pub(crate) output: VecDeque<Output>,
    /// What the handler did not take.
    pub(crate) rest: Vec<u8>,
    pub(crate) tls: Option<Box<TlsLink>>,
    /// Wakes the connection's task.
    pub(crate) waker: Option<Waker>,
    /// It is over, for this reason; the task closes it next.
    pub(crate) end: Option<CloseReason>,
    /// When connecting or flushing has taken too long; `Instant::MAX` for never.
    pub(crate) deadline: Instant,
}

impl Connection {
    pub(crate) fn new(generation: u32, socket: RawFd) -> Connection {
        Connection {
            generation,
            socket,
            listener: 0,
            outgoing: false,
            connecting: false,
            paused: false,
            handshake_due: false,
            peer_ended: false,
            closing: false,
            blocked: false,
            dirty: false,
            look: false,
            output: VecDeque::new(),
            rest: Vec::new(),
            tls: None,
            waker: None,
            end: None,
            deadline: Instant::MAX,
        }
    }

    /// Whether it takes commands: it is neither over nor about to be.
    pub(crate) fn is_open(&self) -> bool {
        self.end.is_none() && !self.closing
    }

    /// Whether the handler may be given input.
    pub(crate) fn takes_input(&self) -> bool {
        self.is_open() && !self.paused && !self.peer_ended && !self.handshake_due && !self.connecting
    }

    /// Whether to read from the socket. A client that does not take our answers is not asked for more; a server that we
    /// send to may have something to say in the midst of it.
    pub(crate) fn reads(&self) -> bool {
        self.takes_input() && (self.outgoing || !self.blocked)
    }

    /// Whether a handshake is under way.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| !tls.announced)
    }

    /// Runs the connection's task soon.
    pub(crate) fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Remembers how to run the task.
    pub(crate) fn keep_waker(&mut self, context: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            self.waker = Some(context.waker().clone());
        }
    }

    /// Ends it, unless it has ended already, and runs its task, which closes it.
    pub(crate) fn end(&mut self, reason: CloseReason) {
        if self.end.is_none() {
            self.end = Some(reason);
        }
        self.wake();
    }

    /// Sends what can be sent without waiting; `sent` counts the notices that have become due. With `waiter` given, the
    /// task is woken when a blocked socket takes more.
    pub(crate) fn flush(
        &mut self,
        setup: &TlsSetup,
        sent: &mut usize,
        mut waiter: Option<&mut dyn Write>,
    ) -> Result<Flushed, CloseReason> {
        loop {
            if self.closing
                && self.output.is_empty()
                && let Some(tls) = &mut self.tls
            {
                // The end goes with the last words, in one call.
                tls.close();
            }
            if !self.flush_ciphertext(&mut waiter)? {
                self.blocked = true;
                return Ok(Flushed::Blocked);
            }
            match self.output.front() {
                None => {
                    self.blocked = false;
                    if self.output.capacity() > KEPT_CAPACITY {
                        self.output = VecDeque::new();
                    }
                    return Ok(Flushed::All);
                }
                Some(Output::Notify) => {
                    self.output.pop_front();
                    *sent += 1;
                }
                Some(Output::StartTls(_)) => self.start_tls(setup)?,
                Some(Output::Bytes(_)) if self.is_handshaking() => {
                    self.blocked = false;
                    return Ok(Flushed::Held);
                }
                Some(Output::Bytes(bytes)) => match &mut self.tls {
                    Some(tls) => {
                        let taken = tls.write(bytes).map_err(|error| CloseReason::Error(net::words(&error)))?;
                        self.advance(taken);
                    }
                    None => {
                        if !self.flush_clear(&mut waiter)? {
                            self.blocked = true;
                            return Ok(Flushed::Blocked);
                        }
                    }
                },
            }
        }
    }

    /// Sends what rustls holds. False when the socket takes no more.
    fn flush_ciphertext(&mut self, waiter: &mut Option<&mut dyn Write>) -> Result<bool, CloseReason> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        while tls.wants_write() {
            let mut result = tls.send(&mut DirectSocket(self.socket));
            if would_block(&result)
                && let Some(waiter) = waiter
            {
                result = tls.send(waiter);
            }
            match result {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(CloseReason::Error(net::words(&error))),
            }
        }
        Ok(true)
    }

    /// Sends queued bytes in clear. False when the socket takes no more.
    fn flush_clear(&mut self, waiter: &mut Option<&mut dyn Write>) -> Result<bool, CloseReason> {
        let pieces = self.output.iter().map_while(|output| match output {
            Output::Bytes(bytes) => Some(bytes),
            _ => None,
        });
        let mut result = net::send_queued(self.socket, pieces);
        if would_block(&result)
            && let (Some(waiter), Some(Output::Bytes(bytes))) = (waiter, self.output.front())
        {
            result = waiter.write(bytes);
        }
        match result {
            Ok(sent) => {
                self.advance(sent);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(CloseReason::Error(net::words(&error))),
        }
    }

    /// Takes `count` bytes off the front of the queue.
    fn advance(&mut self, mut count: usize) {
        while let Some(Output::Bytes(bytes)) = self.output.front_mut() {
            if count < bytes.len() {
                bytes.advance(count);
                return;
            }
            count -= bytes.len();
            self.output.pop_front();
        }
    }

    /// Begins the handshake that is at the front of the queue.
    fn start_tls(&mut self, setup: &TlsSetup) -> Result<(), CloseReason> {
        let Some(Output::StartTls(side)) = self.output.pop_front() else { return Ok(()) };
        if self.tls.is_some() {
            return Err(CloseReason::Tls("TLS is in use already".to_owned()));
        }
        // Only for names that cannot stand in SNI.
        let outgoing = matches!(*side, TlsSide::Client { .. });
        let peer = outgoing.then(|| net::addresses(self.socket).ok()).flatten().map(|(peer, _)| peer.ip());
        let mut link = TlsLink::start(setup, &side, peer, usize::from(self.listener)).map_err(CloseReason::Tls)?;
        link.pending = std::mem::take(&mut self.rest);
        self.tls = Some(Box::new(link));
        self.handshake_due = false;
        Ok(())
    }
}

fn would_block(result: &io::Result<usize>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// All connections of a shard, by their places.
#[derive(Debug, Default)]
pub(crate) struct Table {
    places: Vec<Option<Box<Connection>>>,
    open: usize,
}

impl Table {
    /// How many connections there are.
    pub(crate) fn len(&self) -> usize {
        self.open
    }

    /// The connection of this id, if it is still there.
    pub(crate) fn get(&mut self, id: ConnId) -> Option<&mut Connection> {
        let connection = self.places.get_mut(id.index as usize)?.as_deref_mut()?;
        (connection.generation == id.generation).then_some(connection)
    }

    /// Puts a connection in its place.
    ///
    /// # Panics
    /// When the place is taken or absurdly far: the handler has lost count, and nothing it does can be trusted.
    pub(crate) fn insert(&mut self, id: ConnId, connection: Connection) {
        assert!(id.index < PLACES_MAX, "the handler gave the place {} to a connection", id.index);
        let index = id.index as usize;
        if index >= self.places.len() {
            self.places.resize_with(index + 1, || None);
        }
        assert!(self.places[index].is_none(), "the handler gave the place {index} to two connections");
        self.places[index] = Some(Box::new(connection));
        self.open += 1;
    }

    /// Takes a connection out.
    pub(crate) fn remove(&mut self, id: ConnId) -> Option<Box<Connection>> {
        self.get(id)?;
        self.open -= 1;
        self.places[id.index as usize].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_id_does_not_reach_the_next_connection_in_its_place() {
        let mut table = Table::default();
        let old = ConnId { index: 3, generation: 1 };
        table.insert(old, Connection::new(1, -1));
        assert!(table.remove(old).is_some());
        let new = ConnId { index: 3, generation: 2 };
        table.insert(new, Connection::new(2, -1));
        assert!(table.get(old).is_none() && table.remove(old).is_none());
        assert_eq!((table.get(new).map(|connection| connection.generation), table.len()), (Some(2), 1));
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Connection>() <= 160, "{} bytes", size_of::<Connection>());
    }
}
