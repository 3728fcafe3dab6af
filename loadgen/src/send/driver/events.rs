//! What the engine tells the source: connections that stand or fail, replies, timers.

use super::{DUE, Source, State, TICK};
use crate::engine::{ConnId, Driver, Ended, Io, TlsRole};
use crate::send::protocol::{Outcome, TlsMode};
use std::time::Instant;

impl Driver for Source {
    fn started(&mut self, io: &mut Io) {
        self.epoch = Instant::now();
        if self.schedule.is_none() || self.part.config.cold {
            self.is_begun = true;
        }
        for slot in 0..self.slots.len() as u32 {
            if self.part.config.cold && self.schedule.is_some() {
                self.down.push(slot);
            } else {
                self.open(io, slot);
            }
        }
        io.wake_at(self.epoch, TICK);
        self.pump(io);
    }

    fn accepted(&mut self, _io: &mut Io, _listener: usize, _conn: ConnId) -> bool {
        false
    }

    fn connected(&mut self, io: &mut Io, conn: ConnId, result: Result<(), String>) {
        let Some(slot) = self.owner(conn) else { return };
        if let Err(reason) = result {
            return self.lose(io, slot, &reason);
        }
        self.slots[slot as usize].progress = Instant::now();
        if self.part.config.client.tls == TlsMode::Implicit {
            self.start_tls(io, slot);
        }
    }

    fn received(&mut self, io: &mut Io, conn: ConnId, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(slot) = self.owner(conn) else { return };
            let Some(out) = io.output(conn) else { return };
            let (taken, outcome) = self.slots[slot as usize].client.take(bytes, out);
            bytes = &bytes[taken..];
            match outcome {
                Outcome::None => {}
                Outcome::Ready => {
                    let place = &self.slots[slot as usize];
                    self.tally.connecting.record(place.begun.elapsed());
                    self.tally.connections += 1;
                    self.opening -= 1;
                    self.count_ready();
                    self.go_on(io, slot);
                }
                Outcome::Done => self.done(io, slot),
                Outcome::StartTls => {
                    // What a server sends ahead of the handshake is not to be trusted (RFC 3207 6): it is dropped.
                    return self.start_tls(io, slot);
                }
                Outcome::Over => self.closed(io, slot),
                Outcome::Broken(reason) => self.lose(io, slot, &reason),
            }
        }
    }

    fn tls_started(&mut self, io: &mut Io, conn: ConnId) {
        let Some(slot) = self.owner(conn) else { return };
        if let Some(out) = io.output(conn) {
            self.slots[slot as usize].client.tls_started(out);
        }
    }

    fn ended(&mut self, io: &mut Io, conn: ConnId, reason: Ended) {
        let Some(slot) = self.owner(conn) else { return };
        if self.slots[slot as usize].state == State::Quitting {
            return self.closed(io, slot);
        }
        match reason {
            Ended::Peer => self.lose(io, slot, "the server closed the connection"),
            Ended::Error(text) | Ended::Tls(text) => self.lose(io, slot, &text),
        }
    }

    fn timer(&mut self, io: &mut Io, token: u64) {
        match token {
            TICK => self.tick(io),
            // `armed` stays: when a reply was quicker than this timer, the next one is set already.
            DUE => {
                self.tally.due_timers += 1;
                self.pump(io);
            }
            slot => match self.slots[slot as usize].state {
                State::Pausing => self.set_down(io, slot as u32),
                State::Thinking => self.go_on(io, slot as u32),
                _ => {}
            },
        }
    }

    fn stop_asked(&mut self, io: &mut Io) {
        self.end(io);
    }
}

impl Source {
    fn start_tls(&mut self, io: &mut Io, slot: u32) {
        let Some((config, name)) = self.part.config.tls.clone() else {
            return self.lose(io, slot, "TLS is asked for and not set up");
        };
        let Some(conn) = self.slots[slot as usize].conn else { return };
        if let Err(reason) = io.start_tls(conn, TlsRole::Client(config, name)) {
            self.lose(io, slot, &reason);
        }
    }
}
