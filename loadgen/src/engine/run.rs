//! The engine's loop: waits, tells the driver what happened, sends what it wrote.
//!
//! Ends with an error when io_uring cannot be used, and in no other way before the driver asks for it: what goes wrong on
//! a connection is that connection's end.

use super::buffers::Buffers;
use super::io::{Io, Operation, Timer};
use super::{Driver, Ended, Listener};
use io_uring::{IoUring, cqueue, types};
use socket2::Socket;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Entries of the submission queue; the completion queue has four times as many. Tests fill it.
const ENTRIES: u32 = if cfg!(test) { 64 } else { 4096 };
/// The longest wait: bounds how long a request to stop goes unseen.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// How long no connection is accepted after that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// How long the end waits for the kernel to give up what it still holds.
const END_MAX: Duration = Duration::from_secs(5);

struct Engine<'a, D> {
    io: Io,
    // After the ring, so that it goes after it.
    buffers: Buffers,
    listeners: Vec<Listener>,
    driver: &'a mut D,
    clear: Vec<u8>,
    accepts_again: Option<Instant>,
    idle_listeners: Vec<usize>,
}

/// Runs a driver on this thread until it stops. `stop`, when set from anywhere, makes the engine ask the driver for that.
///
/// # Errors
/// When the kernel has no io_uring for us, or too old a one, in words.
pub fn run<D: Driver>(driver: &mut D, listeners: Vec<Listener>, stop: &AtomicBool) -> io::Result<()> {
    let explain = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!(
                "io_uring cannot be used ({error}): it needs Linux 6.1 or newer, kernel.io_uring_disabled=0, and a container that allows it"
            ),
        )
    };
    let ring = IoUring::builder()
        .setup_cqsize(ENTRIES * 4)
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_defer_taskrun()
        .setup_submit_all()
        .build(ENTRIES)
        .map_err(explain)?;
    let buffers = Buffers::register(&ring.submitter()).map_err(explain)?;
    sharpen_timers();
    let engine = Engine {
        io: Io::new(ring),
        buffers,
        listeners,
        driver,
        clear: Vec::new(),
        accepts_again: None,
        idle_listeners: Vec::new(),
    };
    engine.run(stop)
}

/// Lets the thread wake at the microsecond asked for; by default the kernel may be 50 us late to save wake-ups.
fn sharpen_timers() {
    // SAFETY: changes only the calling thread's timer slack. A kernel that refuses leaves us less exact.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_usize) };
}

impl<D: Driver> Engine<'_, D> {
    fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        self.driver.started(&mut self.io);
        for listener in 0..self.listeners.len() {
            self.accept(listener);
        }
        let mut completions = Vec::with_capacity(ENTRIES as usize);
        let mut stop_told = false;
        loop {
            self.io.end_turn();
            if self.io.stopped {
                return self.finish(&mut completions);
            }
            self.wait()?;
            self.take_completions(&mut completions);
            while let Some((id, error)) = self.io.failed.pop_front() {
                self.driver.connected(&mut self.io, id, Err(error));
                self.io.drop_connection(id.index);
            }
            let now = Instant::now();
            while let Some(timer) = self.io.due_timer(now) {
                match timer {
                    Timer::Driver(token) => self.driver.timer(&mut self.io, token),
                    Timer::Linger(index, generation) => self.io.end_linger(index, generation),
                }
            }
            if self.accepts_again.is_some_and(|at| at <= now) {
                self.accepts_again = None;
                for listener in std::mem::take(&mut self.idle_listeners) {
                    self.accept(listener);
                }
            }
            if !stop_told && stop.load(Ordering::Relaxed) {
                stop_told = true;
                self.driver.stop_asked(&mut self.io);
            }
        }
    }

    fn take_completions(&mut self, completions: &mut Vec<(u64, i32, u32)>) {
        completions.extend(self.io.ring.completion().map(|one| (one.user_data(), one.result(), one.flags())));
        for (user_data, result, flags) in completions.drain(..) {
            self.complete(user_data, result, flags);
        }
    }

    /// Breaks off what is left. The kernel may read a buffer until the operation on it is answered, so that is waited for.
    fn finish(mut self, completions: &mut Vec<(u64, i32, u32)>) -> io::Result<()> {
        let deadline = Instant::now() + END_MAX;
        self.io.drop_all();
        while self.io.open() > 0 {
            self.io.end_turn();
            if self.io.open() > 0 {
                self.wait()?;
                self.take_completions(completions);
            }
            if Instant::now() > deadline {
                // Better lost than freed under the kernel's hands.
                std::mem::forget(std::mem::take(&mut self.io.conns));
                return Err(io::Error::other("the kernel does not give up some of the connections"));
            }
        }
        Ok(())
    }

    /// Hands over what there is to do and waits for a completion, a timer, or a while.
    fn wait(&mut self) -> io::Result<()> {
        let timer = self.io.next_timer().map_or(WAIT_MAX, |at| at.saturating_duration_since(Instant::now()));
        let is_quiet = self.io.push_held() && self.io.failed.is_empty();
        let wait = if is_quiet { timer.min(WAIT_MAX) } else { Duration::ZERO };
        let time = types::Timespec::from(wait);
        let arguments = types::SubmitArgs::new().timespec(&time);
        match self.io.ring.submitter().submit_with_args(1, &arguments) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The time is over, a signal came, or completions have to be taken first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn accept(&mut self, listener: usize) {
        let descriptor = self.listeners[listener].socket.as_raw_fd();
        self.io.accept(listener, descriptor);
    }

    fn complete(&mut self, user_data: u64, result: i32, flags: u32) {
        let index = user_data as u32;
        match Operation::of(user_data) {
            Some(Operation::Accept) => self.accepted(index as usize, result, flags),
            Some(Operation::Connect) => self.connected(index, result),
            Some(Operation::Receive) => self.received(index, result, flags),
            Some(Operation::Send) => self.sent(index, result),
            Some(Operation::Cancel) | None => {}
        }
    }

    fn accepted(&mut self, listener: usize, result: i32, flags: u32) {
        if result >= 0 {
            // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
            let socket = unsafe { Socket::from_raw_fd(result) };
            if self.io.stopped {
                return;
            }
            let id = self.io.insert(Some(socket));
            if self.driver.accepted(&mut self.io, listener, id) {
                self.io.receive(id.index);
            } else {
                self.io.close(id, super::Close::Reset);
            }
        }
        if cqueue::more(flags) {
            return;
        }
        if result >= 0 {
            return self.accept(listener);
        }
        self.idle_listeners.push(listener);
        self.accepts_again = Some(Instant::now() + ACCEPT_PAUSE);
    }

    fn connected(&mut self, index: u32, result: i32) {
        self.io.connect_ended(index);
        self.io.operation_ended(index);
        if self.io.conns[index as usize].closing.is_some() {
            return;
        }
        let id = self.io.id(index);
        if result == 0 {
            self.io.receive(index);
            self.driver.connected(&mut self.io, id, Ok(()));
        } else {
            self.driver.connected(&mut self.io, id, Err(words(result)));
            self.io.drop_connection(index);
        }
    }

    fn received(&mut self, index: u32, result: i32, flags: u32) {
        let buffer = cqueue::buffer_select(flags);
        if let (Some(buffer), true) = (buffer, result > 0) {
            self.take_bytes(index, buffer, result as usize);
        }
        if let Some(buffer) = buffer {
            self.buffers.give_back(buffer);
        }
        if cqueue::more(flags) {
            return;
        }
        self.io.conns[index as usize].receiving = false;
        self.io.operation_ended(index);
        let conn = &self.io.conns[index as usize];
        if conn.closing.is_some() {
            return;
        }
        // The ring of buffers ran dry, or the kernel gives others their turn: it is asked again.
        if result > 0 || result == -libc::ENOBUFS || result == -libc::ECANCELED {
            if !conn.paused {
                self.io.receive(index);
            }
            return;
        }
        let reason = if result == 0 { Ended::Peer } else { Ended::Error(words(result)) };
        self.end(index, reason);
    }

    fn take_bytes(&mut self, index: u32, buffer: u16, len: usize) {
        if self.io.conns[index as usize].closing.is_some() {
            return;
        }
        let bytes = self.buffers.filled(buffer, len);
        let id = self.io.id(index);
        let Some(mut tls) = self.io.conns[index as usize].tls.take() else {
            return self.driver.received(&mut self.io, id, bytes);
        };
        let mut clear = std::mem::take(&mut self.clear);
        clear.clear();
        let progress = tls.receive(bytes, &mut clear);
        self.io.conns[index as usize].tls = Some(tls);
        // Answers of the handshake, alerts included, go out with the turn.
        let _ = self.io.output(id);
        match progress {
            Ok(progress) => {
                if progress.started {
                    self.driver.tls_started(&mut self.io, id);
                }
                if !clear.is_empty() && self.io.conns[index as usize].closing.is_none() {
                    self.driver.received(&mut self.io, id, &clear);
                }
                if progress.closed && self.io.conns[index as usize].closing.is_none() {
                    self.end(index, Ended::Peer);
                }
            }
            Err(error) => self.end(index, Ended::Tls(error)),
        }
        self.clear = clear;
    }

    fn sent(&mut self, index: u32, result: i32) {
        self.io.operation_ended(index);
        self.io.sent(index, usize::try_from(result).unwrap_or(0));
        let failed = result < 0 && result != -libc::EAGAIN && result != -libc::EINTR;
        if failed {
            self.io.give_up_sending(index);
            if self.io.conns[index as usize].closing.is_none() {
                self.end(index, Ended::Error(words(result)));
            }
        }
    }

    /// The connection is over: tells the driver, unless it has closed it itself.
    fn end(&mut self, index: u32, reason: Ended) {
        let id = self.io.id(index);
        self.driver.ended(&mut self.io, id, reason);
        self.io.drop_connection(index);
    }
}

/// An error of the kernel in words, without its number.
fn words(result: i32) -> String {
    let text = io::Error::from_raw_os_error(-result).to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Close, ConnId, listen};
    use std::net::SocketAddr;

    /// Connects to itself many times, says a word on each connection, and stops when all have come.
    struct Both {
        target: SocketAddr,
        wanted: usize,
        sent: usize,
        came: usize,
        timers: Vec<u64>,
        failures: usize,
    }

    impl Both {
        fn new(target: SocketAddr, wanted: usize) -> Both {
            Both { target, wanted, sent: 0, came: 0, timers: Vec::new(), failures: 0 }
        }
    }

    impl Driver for Both {
        fn started(&mut self, io: &mut Io) {
            for _ in 0..self.wanted {
                io.connect(self.target, None);
            }
        }

        fn accepted(&mut self, _io: &mut Io, _listener: usize, _conn: ConnId) -> bool {
            true
        }

        fn connected(&mut self, io: &mut Io, conn: ConnId, result: Result<(), String>) {
            match (result, io.output(conn)) {
                (Ok(()), Some(out)) => {
                    out.extend_from_slice(b"word");
                    self.sent += 1;
                    io.close(conn, Close::Flush);
                }
                _ => self.failures += 1,
            }
            if self.failures == self.wanted {
                io.stop();
            }
        }

        fn received(&mut self, io: &mut Io, _conn: ConnId, bytes: &[u8]) {
            self.came += bytes.len();
            if self.came == 4 * self.wanted {
                let now = Instant::now();
                for (token, ms) in [(3, 3), (1, 1), (2, 2)] {
                    io.wake_at(now + Duration::from_millis(ms), token);
                }
            }
        }

        fn tls_started(&mut self, _io: &mut Io, _conn: ConnId) {}

        fn ended(&mut self, _io: &mut Io, _conn: ConnId, reason: Ended) {
            assert_eq!(reason, Ended::Peer);
        }

        fn timer(&mut self, io: &mut Io, token: u64) {
            self.timers.push(token);
            if self.timers.len() == 3 {
                io.stop();
            }
        }

        fn stop_asked(&mut self, io: &mut Io) {
            io.stop();
        }
    }

    #[test]
    fn more_operations_than_the_queue_has_room_for() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)), false).unwrap();
        let wanted = 500;
        let mut both = Both::new(listener.address, wanted);
        run(&mut both, vec![listener], &AtomicBool::new(false)).unwrap();
        assert_eq!((both.sent, both.came, both.failures), (wanted, 4 * wanted, 0));
        assert_eq!(both.timers, [1, 2, 3]);
    }

    #[test]
    fn what_cannot_be_connected_is_told() {
        // Bound and not listening: nobody answers there, and nobody else can.
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let mut both = Both::new(socket.local_addr().unwrap().as_socket().unwrap(), 7);
        run(&mut both, Vec::new(), &AtomicBool::new(false)).unwrap();
        assert_eq!(both.failures, 7);
        assert_eq!(words(-libc::ECONNREFUSED), "Connection refused");
    }

    #[test]
    fn the_end_can_be_asked_for_from_outside() {
        let mut both = Both::new(SocketAddr::from(([127, 0, 0, 1], 9)), 0);
        run(&mut both, Vec::new(), &AtomicBool::new(true)).unwrap();
        assert!(both.timers.is_empty());
    }
}
