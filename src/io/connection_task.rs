//! The task of one connection: waits until its socket has input or takes output, and gives input to the handler. All
//! connections of a shard read into one buffer, since none holds it while it waits.
//!
//! The task ends with the connection; its last act is the handler's `closed` or `connect_failed`, exactly once. A panic in the
//! handler ends the shard.

use crate::io::connection::{Connection, Flushed};
use crate::io::handler::{CloseReason, ConnId, Handler};
use crate::io::net;
use crate::io::turn::{READ_BUFFER, Shard};
use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use glommio::timer::Timer;
use std::future::Future;
use std::io::{self, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// After so many full buffers in a row a connection lets the others in.
const READS_IN_A_ROW: u32 = 4;

/// A wait so short that it only sends the executor through its reactor once. A task that just wakes itself would keep the
/// executor from seeing new events for up to 100 ms.
const BREATH: Duration = Duration::from_micros(10);

/// The task of one connection.
pub(crate) struct ConnectionTask<H: Handler> {
    shard: Rc<Shard<H>>,
    id: ConnId,
    /// Taken when the connection is closed.
    stream: Option<TcpStream>,
    breath: Option<Timer>,
}

/// What to do next.
enum Next {
    Finish,
    Connect,
    /// Give the handler what it left.
    Rest(Vec<u8>),
    /// Look for clear text in rustls, and give it this ciphertext.
    Decrypt(Vec<u8>),
    Read,
    Wait,
}

/// Writes through glommio, so that the task is woken when a full socket takes more.
struct WaitingSocket<'a, 'b, 'c> {
    stream: &'a mut TcpStream,
    context: &'b mut Context<'c>,
}

impl Write for WaitingSocket<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match Pin::new(&mut *self.stream).poll_write(self.context, bytes) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<H: Handler + 'static> ConnectionTask<H> {
    pub(crate) fn new(shard: Rc<Shard<H>>, id: ConnId, stream: TcpStream) -> ConnectionTask<H> {
        ConnectionTask { shard, id, stream: Some(stream), breath: None }
    }

    fn run(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut reads = 0;
        loop {
            let next = self.next(context);
            if self.breath.is_some() && !matches!(next, Next::Finish) {
                match self.breath.as_mut().map(|breath| Pin::new(breath).poll(context)) {
                    Some(Poll::Pending) => {
                        self.put_back(next);
                        return Poll::Pending;
                    }
                    _ => self.breath = None,
                }
            }
            match next {
                Next::Finish => {
                    self.shard.finish(self.id, self.stream.take());
                    return Poll::Ready(());
                }
                Next::Wait => return Poll::Pending,
                Next::Connect => match self.poll_connect(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => self.shard.connected(self.id),
                    Poll::Ready(Err(error)) => self.end(CloseReason::Error(net::words(&error))),
                },
                Next::Rest(rest) => self.shard.deliver(self.id, &rest),
                Next::Decrypt(pending) => self.decrypt(&pending),
                Next::Read => match self.poll_read(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(read) => {
                        reads += 1;
                        if read == READ_BUFFER && reads % READS_IN_A_ROW == 0 {
                            self.breath = Some(Timer::new(BREATH));
                        }
                    }
                },
            }
        }
    }

    /// Sends what can be sent, and finds out what comes next.
    fn next(&mut self, context: &mut Context<'_>) -> Next {
        loop {
            let Some(stream) = &mut self.stream else { return Next::Wait };
            let mut sent = 0;
            let next = self.shard.with(self.id, |connection| {
                connection.keep_waker(context);
                if connection.end.is_some() {
                    return Next::Finish;
                }
                if connection.connecting {
                    return Next::Connect;
                }
                let mut waiting = WaitingSocket { stream, context };
                match connection.flush(&self.shard.tls, &mut sent, Some(&mut waiting)) {
                    Ok(flushed) => after_flush(connection, flushed),
                    Err(reason) => {
                        connection.end = Some(reason);
                        Next::Finish
                    }
                }
            });
            // Without an entry in the table there is nothing to be done: the socket is closed with the task.
            let Some(next) = next else { return Next::Finish };
            if sent == 0 {
                return next;
            }
            // The handler hears of it first, and that may change what comes next.
            self.put_back(next);
            self.shard.note_sent(self.id, sent);
            self.shard.drain();
        }
    }

    /// Gives back what was taken for a step that is not done now.
    fn put_back(&self, next: Next) {
        self.shard.with(self.id, |connection| match next {
            Next::Rest(rest) => connection.rest = rest,
            Next::Decrypt(pending) => {
                connection.look = true;
                if let Some(tls) = &mut connection.tls {
                    tls.pending = pending;
                }
            }
            _ => {}
        });
    }

    fn end(&self, reason: CloseReason) {
        self.shard.with(self.id, |connection| connection.end(reason));
    }

    /// Waits until a connecting socket is connected. To write nothing is EAGAIN until then, and tells the error if it failed.
    fn poll_connect(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_write(context, &[]).map_ok(|_| ()),
            None => Poll::Pending,
        }
    }

    /// Reads and gives the handler what came. Gives how much that was.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        let Some(stream) = &mut self.stream else { return Poll::Pending };
        let mut buffer = self.shard.read_buffer.borrow_mut();
        match Pin::new(stream).poll_read(context, &mut buffer) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) => {
                let reason = CloseReason::Tls("the peer closed the connection during the handshake".to_owned());
                self.shard.with(self.id, |connection| {
                    if connection.is_handshaking() {
                        connection.end(reason);
                    }
                });
                self.shard.peer_ended(self.id);
            }
            Poll::Ready(Ok(read)) => {
                // The buffer is lent out while the handler runs; nothing else reads meanwhile, since tasks do not nest.
                let bytes = &buffer[..read];
                if self.shard.with(self.id, |connection| connection.tls.is_some()) == Some(true) {
                    self.decrypt(bytes);
                } else {
                    self.shard.deliver(self.id, bytes);
                }
                return Poll::Ready(read);
            }
            Poll::Ready(Err(error)) => self.end(CloseReason::Error(net::words(&error))),
        }
        Poll::Ready(0)
    }

    /// Gives ciphertext to rustls and the clear text to the handler, as long as it takes some.
    fn decrypt(&self, mut input: &[u8]) {
        let mut plain = self.shard.plain_buffer.borrow_mut();
        loop {
            if !self.give_clear_text(&mut plain) {
                let rest = input;
                self.shard.with(self.id, |connection| {
                    if let Some(tls) = &mut connection.tls
                        && !rest.is_empty()
                    {
                        tls.pending = rest.to_vec();
                    }
                });
                return;
            }
            if input.is_empty() {
                return;
            }
            let mut sent = 0;
            let info = self.shard.with(self.id, |connection| {
                let tls = connection.tls.as_mut()?;
                let taken = tls.take(&mut input);
                let announced = tls.announced;
                let info = tls.announce();
                // The next flight of the handshake, or the alert that tells the peer what was wrong.
                let flushed = connection.flush(&self.shard.tls, &mut sent, None);
                match (taken, flushed) {
                    (Err(error), _) if announced => connection.end(CloseReason::Error(format!("TLS: {error}"))),
                    (Err(error), _) => connection.end(CloseReason::Tls(error)),
                    (Ok(()), Err(reason)) => connection.end(reason),
                    (Ok(()), Ok(_)) => {}
                }
                if connection.end.is_none() { info } else { None }
            });
            self.shard.note_sent(self.id, sent);
            if let Some(info) = info.flatten() {
                self.shard.tls_started(self.id, info);
            }
        }
    }

    /// Gives the handler the clear text that rustls holds. False when it takes no more, or nothing more will come.
    fn give_clear_text(&self, plain: &mut [u8]) -> bool {
        loop {
            let read = self.shard.with(self.id, |connection| {
                // What the handler left comes before anything newer.
                if !connection.takes_input() || !connection.rest.is_empty() {
                    return None;
                }
                connection.look = false;
                Some(connection.tls.as_mut()?.read(plain))
            });
            match read.flatten() {
                None => return false,
                Some(Ok(0)) => return true,
                Some(Ok(read)) => self.shard.deliver(self.id, &plain[..read]),
                Some(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.shard.peer_ended(self.id);
                    return false;
                }
                Some(Err(error)) => {
                    self.end(CloseReason::Error(net::words(&error)));
                    return false;
                }
            }
        }
    }
}

/// What comes next once everything is sent that can be.
fn after_flush(connection: &mut Connection, flushed: Flushed) -> Next {
    let reason = match (connection.closing, connection.peer_ended) {
        (true, _) => Some(CloseReason::Asked),
        (false, true) => Some(CloseReason::Peer),
        (false, false) => None,
    };
    if let Some(reason) = reason {
        if flushed == Flushed::Blocked {
            return Next::Wait;
        }
        if let Some(tls) = &mut connection.tls {
            tls.close();
            // The last record goes if the socket takes it; nobody waits for it.
            let _ = tls.send(&mut net::DirectSocket(connection.socket));
        }
        connection.end = Some(reason);
        return Next::Finish;
    }
    if connection.reads() && !connection.rest.is_empty() {
        return Next::Rest(std::mem::take(&mut connection.rest));
    }
    if connection.reads()
        && let Some(tls) = &mut connection.tls
        && (connection.look || !tls.pending.is_empty())
    {
        connection.look = false;
        return Next::Decrypt(std::mem::take(&mut tls.pending));
    }
    if connection.reads() { Next::Read } else { Next::Wait }
}

impl<H: Handler + 'static> Future for ConnectionTask<H> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let shard = Rc::clone(&this.shard);
        shard.guard("the handling of a connection", || this.run(context))
    }
}
