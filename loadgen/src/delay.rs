//! A proxy that makes the other end of a connection seem far away: every octet comes half a round trip late, in both
//! directions, and a connection takes as long to stand as it would.
//!
//! Not a model of a network: no loss, no limit of bandwidth, no slow start. Its own error, how late beyond the intended time
//! it lets bytes go, is measured all the time. For each direction of a connection it holds so much as [`HELD_MAX`] says and
//! reads no more beyond that, as a sender's window would have it.

use crate::engine::{self, Close, ConnId, Driver, Ended, Io, Listener};
use crate::report::Latency;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Octets on the way in one direction of a connection; beyond, the sender has to wait.
pub const HELD_MAX: usize = 8 << 20;
/// Connections at a time; more are reset.
pub const CONNECTIONS_MAX: usize = 30_000;
/// How often what was measured is handed over.
const SAY_EVERY: Duration = Duration::from_millis(100);

const SAY: u64 = u64::MAX;

/// What the proxy measured of itself.
#[derive(Clone, Debug, Default)]
pub struct DelayReport {
    /// How late bytes went, beyond the intended time.
    pub error: Latency,
    /// Connections taken.
    pub connections: u64,
    /// Connections that the other end refused.
    pub refused: u64,
    /// Octets passed on.
    pub octets: u64,
}

/// Runs a proxy on this thread until `stop` is set; `report` is kept up to date.
///
/// # Errors
/// When it cannot listen or the engine fails.
pub fn run(
    listener: Listener,
    to: SocketAddr,
    round_trip: Duration,
    report: &Arc<Mutex<DelayReport>>,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut proxy = Proxy {
        to,
        half: round_trip / 2,
        pairs: HashMap::new(),
        owners: Vec::new(),
        next: 0,
        measured: DelayReport::default(),
        report: report.clone(),
    };
    let result = engine::run(&mut proxy, vec![listener], stop);
    proxy.say();
    result
}

/// What is on its way.
enum Passing {
    Bytes(Vec<u8>),
    End,
}

/// One end of a connection through the proxy, and what comes from it.
#[derive(Default)]
struct Side {
    conn: Option<ConnId>,
    is_up: bool,
    passing: VecDeque<(Instant, Passing)>,
    held: usize,
    paused: bool,
}

/// The client's end and the server's.
type Pair = [Side; 2];

struct Proxy {
    to: SocketAddr,
    half: Duration,
    pairs: HashMap<u64, Pair>,
    /// The pair and the end that a connection is, by its place.
    owners: Vec<(u64, usize)>,
    next: u64,
    measured: DelayReport,
    report: Arc<Mutex<DelayReport>>,
}

/// Timers name a pair and what is due: bytes of one end or the other, or the connection to the server.
fn token(pair: u64, what: u64) -> u64 {
    pair << 2 | what
}

const CONNECT: u64 = 2;

impl Proxy {
    fn say(&self) {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = self.measured.clone();
    }

    fn own(&mut self, conn: ConnId, pair: u64, side: usize) {
        let index = conn.index as usize;
        if index >= self.owners.len() {
            self.owners.resize(index + 1, (u64::MAX, 0));
        }
        self.owners[index] = (pair, side);
    }

    fn owner(&self, conn: ConnId) -> Option<(u64, usize)> {
        let (pair, side) = *self.owners.get(conn.index as usize)?;
        (self.pairs.get(&pair)?[side].conn == Some(conn)).then_some((pair, side))
    }

    fn hold(&mut self, io: &mut Io, conn: ConnId, passing: Passing) {
        let Some((number, side)) = self.owner(conn) else { return };
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        let due = Instant::now() + self.half;
        let end = &mut pair[side];
        if let Passing::Bytes(bytes) = &passing {
            end.held += bytes.len();
        }
        if end.held > HELD_MAX && !end.paused {
            end.paused = true;
            io.pause(conn);
        }
        end.passing.push_back((due, passing));
        io.wake_at(due, token(number, side as u64));
    }

    /// Lets go what is due.
    fn pass(&mut self, io: &mut Io, number: u64, side: usize) {
        let Some(pair) = self.pairs.get_mut(&number) else { return };
        if !pair[1].is_up && side == 0 {
            return;
        }
        let other = pair[1 - side].conn;
        let end = &mut pair[side];
        let now = Instant::now();
        let mut is_over = false;
        while end.passing.front().is_some_and(|(due, _)| *due <= now) {
            let Some((due, passing)) = end.passing.pop_front() else { break };
            self.measured.error.record(now - due);
            match passing {
                Passing::Bytes(bytes) => {
                    end.held -= bytes.len();
                    self.measured.octets += bytes.len() as u64;
                    if let Some(out) = other.and_then(|other| io.output(other)) {
                        out.extend_from_slice(&bytes);
                    }
                }
                Passing::End => is_over = true,
            }
        }
        if end.paused && end.held < HELD_MAX / 2 {
            end.paused = false;
            if let Some(conn) = end.conn {
                io.resume(conn);
            }
        }
        if is_over {
            self.remove(io, number);
        }
    }

    fn remove(&mut self, io: &mut Io, number: u64) {
        let Some(pair) = self.pairs.remove(&number) else { return };
        for conn in pair.into_iter().filter_map(|side| side.conn) {
            io.close(conn, Close::Flush);
        }
    }
}

impl Driver for Proxy {
    fn started(&mut self, io: &mut Io) {
        io.wake_at(Instant::now() + SAY_EVERY, SAY);
    }

    fn accepted(&mut self, io: &mut Io, _listener: usize, conn: ConnId) -> bool {
        if self.pairs.len() >= CONNECTIONS_MAX {
            return false;
        }
        self.measured.connections += 1;
        let number = self.next;
        self.next += 1;
        let client = Side { conn: Some(conn), is_up: true, ..Side::default() };
        self.pairs.insert(number, [client, Side::default()]);
        self.own(conn, number, 0);
        // The client believes that the connection stands, which it would one round trip later; then its acknowledgement
        // would take another half to the server. Only then does the server know.
        io.wake_at(Instant::now() + self.half * 3, token(number, CONNECT));
        true
    }

    fn connected(&mut self, io: &mut Io, conn: ConnId, result: Result<(), String>) {
        let Some((number, _)) = self.owner(conn) else { return };
        match result {
            Ok(()) => {
                if let Some(pair) = self.pairs.get_mut(&number) {
                    pair[1].is_up = true;
                }
                self.pass(io, number, 0);
            }
            Err(_reason) => {
                self.measured.refused += 1;
                self.remove(io, number);
            }
        }
    }

    fn received(&mut self, io: &mut Io, conn: ConnId, bytes: &[u8]) {
        self.hold(io, conn, Passing::Bytes(bytes.to_vec()));
    }

    fn tls_started(&mut self, _io: &mut Io, _conn: ConnId) {}

    fn ended(&mut self, io: &mut Io, conn: ConnId, _reason: Ended) {
        self.hold(io, conn, Passing::End);
    }

    fn timer(&mut self, io: &mut Io, timer: u64) {
        if timer == SAY {
            self.say();
            return io.wake_at(Instant::now() + SAY_EVERY, SAY);
        }
        let (number, what) = (timer >> 2, timer & 3);
        if what != CONNECT {
            return self.pass(io, number, what as usize);
        }
        if self.pairs.contains_key(&number) {
            let conn = io.connect(self.to, None);
            self.own(conn, number, 1);
            if let Some(pair) = self.pairs.get_mut(&number) {
                pair[1].conn = Some(conn);
            }
        }
    }

    fn stop_asked(&mut self, io: &mut Io) {
        io.stop();
    }
}
