//! The destination's side of the engine: sessions by their places, timers for late answers, limits of connections.

use super::rules::Action;
use super::session::{Next, Session};
use super::{CPU_EVERY, Shared};
use crate::engine::{self, Close, ConnId, Driver, Ended, Io, Listener, TlsRole};
use crate::random::Random;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The timer that is not a connection's.
const CPU_TOKEN: u64 = u64::MAX;

/// Serves until told to stop.
pub(super) fn serve(
    shared: &Arc<Shared>,
    number: usize,
    listeners: Vec<Listener>,
    stop: &AtomicBool,
) -> io::Result<()> {
    engine::keep_on_core(&shared.config.cpus, number)?;
    let mut driver = Destination {
        addresses: listeners.iter().map(|listener| listener.address).collect(),
        first_tls: shared.config.listen.len(),
        sessions: Vec::new(),
        accepted: (number as u64) << 32,
        cpu: Duration::ZERO,
        shared: shared.clone(),
    };
    let result = engine::run(&mut driver, listeners, stop);
    driver.say_cpu();
    result
}

struct Destination {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    /// Listeners from this one on expect TLS from the first octet.
    first_tls: usize,
    sessions: Vec<Option<Box<Session>>>,
    accepted: u64,
    cpu: Duration,
}

impl Destination {
    fn say_cpu(&mut self) {
        let now = engine::cpu_of_thread();
        self.shared.figures.cpu_us.fetch_add((now - self.cpu).as_micros() as u64, Relaxed);
        self.cpu += Duration::from_micros((now - self.cpu).as_micros() as u64);
    }

    fn session(&mut self, conn: ConnId) -> Option<&mut Session> {
        self.sessions.get_mut(conn.index as usize)?.as_deref_mut()
    }

    /// What the rules say about a connection as such. False when it is to be reset.
    fn admit(&mut self, session: &mut Session, io: &mut Io, conn: ConnId) -> bool {
        let shared = self.shared.clone();
        for (number, rule) in shared.rules().iter().enumerate() {
            if !rule.is_of_connection() || !rule.fits_address(session.listener) || !session.draws(rule.per_thousand) {
                continue;
            }
            match rule.action {
                Action::Refuse => {
                    shared.figures.drops.fetch_add(1, Relaxed);
                    return false;
                }
                Action::BrokenTls => session.broken_tls = true,
                Action::CloseAfter(most) => session.close_after = Some(most),
                Action::Connections(max) => {
                    if shared.limits().enter(number, max) {
                        session.counted.push(number);
                        continue;
                    }
                    shared.figures.violations.fetch_add(1, Relaxed);
                    if let Some(out) = io.output(conn) {
                        out.extend_from_slice(b"421 4.3.2 sink.example has too many connections, come back later\r\n");
                    }
                    io.close(conn, Close::Flush);
                    return true;
                }
                _ => {}
            }
        }
        true
    }

    fn go(&mut self, io: &mut Io, conn: ConnId, next: Next) {
        match next {
            Next::Continue => {}
            Next::Close => self.close(io, conn, Close::Flush),
            Next::Drop => self.close(io, conn, Close::Now),
            Next::Wait(span) => io.wake_at(Instant::now() + span, token(conn)),
            Next::StartTls => self.start_tls(io, conn),
        }
    }

    fn start_tls(&mut self, io: &mut Io, conn: ConnId) {
        if self.session(conn).is_some_and(|session| session.broken_tls) {
            self.shared.figures.drops.fetch_add(1, Relaxed);
            if let Some(out) = io.output(conn) {
                out.extend_from_slice(b"this is no TLS\r\n");
            }
            return self.close(io, conn, Close::Flush);
        }
        let Some(config) = self.shared.config.tls.clone() else { return self.close(io, conn, Close::Now) };
        if io.start_tls(conn, TlsRole::Server(config)).is_err() {
            self.close(io, conn, Close::Now);
        }
    }

    fn close(&mut self, io: &mut Io, conn: ConnId, how: Close) {
        io.close(conn, how);
        self.forget(conn);
    }

    fn forget(&mut self, conn: ConnId) {
        let Some(session) = self.sessions.get_mut(conn.index as usize).and_then(Option::take) else { return };
        self.leave(&session);
    }

    fn leave(&self, session: &Session) {
        self.shared.figures.open.fetch_sub(1, Relaxed);
        for rule in &session.counted {
            self.shared.limits().leave(*rule);
        }
    }
}

fn token(conn: ConnId) -> u64 {
    u64::from(conn.generation) << 32 | u64::from(conn.index)
}

impl Driver for Destination {
    fn started(&mut self, io: &mut Io) {
        io.wake_at(Instant::now() + CPU_EVERY, CPU_TOKEN);
    }

    fn accepted(&mut self, io: &mut Io, listener: usize, conn: ConnId) -> bool {
        self.accepted += 1;
        let figures = &self.shared.figures;
        figures.connections.fetch_add(1, Relaxed);
        let open = figures.open.fetch_add(1, Relaxed) + 1;
        figures.open_max.fetch_max(open, Relaxed);
        let random = Random::part(self.shared.config.seed, self.accepted);
        let mut session = Box::new(Session::new(self.addresses[listener], random, Instant::now()));
        if !self.shared.rules().is_empty() && !self.admit(&mut session, io, conn) {
            self.leave(&session);
            return false;
        }
        let implicit = listener >= self.first_tls;
        session.in_tls = implicit;
        // None when the rules have closed it.
        let Some(out) = io.output(conn) else {
            self.leave(&session);
            return true;
        };
        if !implicit {
            session.greet(out);
        }
        let index = conn.index as usize;
        if index >= self.sessions.len() {
            self.sessions.resize_with(index + 1, || None);
        }
        self.sessions[index] = Some(session);
        if implicit {
            self.start_tls(io, conn);
        }
        true
    }

    fn connected(&mut self, _io: &mut Io, _conn: ConnId, _result: Result<(), String>) {}

    fn received(&mut self, io: &mut Io, conn: ConnId, bytes: &[u8]) {
        let Some(session) = self.sessions.get_mut(conn.index as usize).and_then(Option::as_deref_mut) else { return };
        let Some(out) = io.output(conn) else { return };
        let next = session.take(bytes, out, &self.shared);
        self.go(io, conn, next);
    }

    fn tls_started(&mut self, io: &mut Io, conn: ConnId) {
        let implicit =
            self.sessions.get(conn.index as usize).and_then(Option::as_ref).is_some_and(|session| session.in_tls);
        let Some(session) = self.session(conn) else { return };
        session.tls_started();
        if implicit && let Some(out) = io.output(conn) {
            session.greet(out);
        }
    }

    fn ended(&mut self, _io: &mut Io, conn: ConnId, _reason: Ended) {
        self.forget(conn);
    }

    fn timer(&mut self, io: &mut Io, timer: u64) {
        if timer == CPU_TOKEN {
            self.say_cpu();
            return io.wake_at(Instant::now() + CPU_EVERY, CPU_TOKEN);
        }
        let conn = ConnId { index: timer as u32, generation: (timer >> 32) as u32 };
        // None when the connection has ended meanwhile; its place may be another's.
        let Some(out) = io.output(conn) else { return };
        let Some(session) = self.sessions.get_mut(conn.index as usize).and_then(Option::as_deref_mut) else { return };
        let next = session.go_on(out, &self.shared);
        self.go(io, conn, next);
    }

    fn stop_asked(&mut self, io: &mut Io) {
        io.stop();
    }
}
