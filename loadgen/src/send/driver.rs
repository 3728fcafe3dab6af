//! The source's side of the engine: sessions, each with at most one connection and one message, and which of them does what
//! next.
//!
//! In a closed loop a session that is done begins the next message. In an open loop messages become due by the schedule and
//! wait for a free session; their latency counts from when they were due.

use super::SendConfig;
use super::protocol::{Client, ClientSettings};
use super::schedule::{Profile, Schedule, Traced};
use super::tally::{INTERVAL, Interval, Tally};
use crate::destination::Destination;
use crate::engine::{self, Close, ConnId, Io};
use crate::ledger::Acknowledged;
use crate::record::Record;
use crate::workload::{Message, Workload};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

mod events;

/// The pause before a failed connection is opened again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Due messages that are held; further ones wait in the schedule, which keeps their times all the same.
const WAITING_MAX: usize = 1 << 20;

const TICK: u64 = u64::MAX;
const DUE: u64 = u64::MAX - 1;

/// One thread's part of a run.
pub(super) struct Part {
    pub(super) number: usize,
    pub(super) config: Arc<SendConfig>,
    pub(super) workload: Arc<Workload>,
    pub(super) record: Record,
    pub(super) intervals: SyncSender<Interval>,
}

/// Sends its part of a run.
pub(super) fn send(part: Part, stop: &AtomicBool) -> io::Result<Tally> {
    let config = &part.config;
    engine::keep_on_core(&config.cpus, part.number)?;
    let sessions = (0..config.sessions).filter(|number| number % config.threads == part.number).count();
    let settings = Arc::new(config.client.clone());
    let now = Instant::now();
    let slot = |_| Slot {
        conn: None,
        client: Client::new(settings.clone()),
        state: State::Down,
        sent: 0,
        due: now,
        begun: now,
        progress: now,
    };
    let schedule = (config.profile != Profile::Closed).then(|| Schedule::new(config.profile.clone(), config.random_by));
    let mut source = Source {
        slots: (0..sessions).map(slot).collect(),
        live: 0,
        settings,
        owners: Vec::new(),
        idle: Vec::new(),
        down: Vec::new(),
        opening: 0,
        unready: if config.cold { 0 } else { sessions },
        busy: 0,
        schedule,
        ahead: None,
        waiting: VecDeque::new(),
        next: 0,
        epoch: now,
        last_reply: now,
        armed: None,
        is_begun: false,
        is_ending: false,
        connects: part.number as u64,
        interval: Interval::new(0),
        tally: Tally::default(),
        part,
    };
    engine::run(&mut source, Vec::new(), stop)?;
    Ok(source.finish())
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum State {
    /// Without a connection.
    Down,
    /// Waits before it connects again.
    Pausing,
    Opening,
    Idle,
    Busy,
    Thinking,
    Quitting,
}

struct Slot {
    conn: Option<ConnId>,
    client: Client,
    state: State,
    /// Messages of this connection.
    sent: u32,
    due: Instant,
    begun: Instant,
    progress: Instant,
}

/// A message that is due.
struct Due {
    number: u64,
    at: Instant,
    like: Traced,
}

struct Source {
    part: Part,
    settings: Arc<ClientSettings>,
    slots: Vec<Slot>,
    /// Slots that are not down.
    live: usize,
    /// The slot of each connection, by its place.
    owners: Vec<u32>,
    /// Slots that are ready for a message, in an open loop.
    idle: Vec<u32>,
    /// Slots that may be connected when they are needed, in an open loop.
    down: Vec<u32>,
    opening: usize,
    /// Slots that have not been ready yet; the schedule begins when there are none.
    unready: usize,
    busy: usize,
    schedule: Option<Schedule>,
    /// The next message of the schedule, not due yet.
    ahead: Option<Due>,
    waiting: VecDeque<Due>,
    /// Messages given out by this thread's count.
    next: u64,
    epoch: Instant,
    last_reply: Instant,
    armed: Option<Instant>,
    is_begun: bool,
    is_ending: bool,
    /// Connections made so far, from the thread's number in steps of the number of threads.
    connects: u64,
    interval: Interval,
    tally: Tally,
}

impl Source {
    fn finish(mut self) -> Tally {
        self.tally.elapsed = self.last_reply.saturating_duration_since(self.epoch);
        self.tally.cpu = engine::cpu_of_thread();
        self.give_interval();
        self.tally
    }

    /// The number of this thread's next message; None when all are given out.
    fn next_number(&mut self) -> Option<u64> {
        let number = self.part.number as u64 + self.next * self.part.config.threads as u64;
        if number >= self.part.config.messages || number > u64::from(u32::MAX) {
            return None;
        }
        self.next += 1;
        Some(number)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.is_ending || (self.is_begun && now >= self.epoch + self.part.config.duration)
    }

    fn open(&mut self, io: &mut Io, slot: u32) {
        let config = &self.part.config;
        let number = self.connects as usize;
        self.connects += config.threads as u64;
        let target = config.targets[number % config.targets.len()];
        let from = config.sources.get(number % config.sources.len().max(1)).copied();
        let conn = io.connect(target, from);
        let index = conn.index as usize;
        if index >= self.owners.len() {
            self.owners.resize(index + 1, u32::MAX);
        }
        self.owners[index] = slot;
        let settings = self.settings.clone();
        let now = Instant::now();
        self.live += usize::from(self.slots[slot as usize].state == State::Down);
        let place = &mut self.slots[slot as usize];
        *place = Slot {
            conn: Some(conn),
            client: Client::new(settings),
            state: State::Opening,
            sent: 0,
            due: now,
            begun: now,
            progress: now,
        };
        self.opening += 1;
    }

    fn owner(&self, conn: ConnId) -> Option<u32> {
        let slot = *self.owners.get(conn.index as usize)?;
        (self.slots.get(slot as usize)?.conn == Some(conn)).then_some(slot)
    }

    /// A slot has been ready for the first time, or has failed: the last one begins the run of an open loop.
    fn count_ready(&mut self) {
        self.unready = self.unready.saturating_sub(1);
        // A closed loop has begun with the first connection.
        if self.unready == 0 && !self.is_begun {
            self.is_begun = true;
            self.epoch = Instant::now();
            self.interval = Interval::new(0);
        }
    }

    /// A connection is ready for its next message.
    fn go_on(&mut self, io: &mut Io, slot: u32) {
        let now = Instant::now();
        let place = &mut self.slots[slot as usize];
        if place.state == State::Busy {
            self.busy -= 1;
        }
        place.state = State::Idle;
        if self.is_over(now) || self.slots[slot as usize].sent >= self.part.config.per_connection {
            return self.quit(io, slot);
        }
        if self.schedule.is_some() {
            self.idle.push(slot);
            return self.pump(io);
        }
        match self.next_number() {
            Some(number) => {
                let like = Traced { at: Duration::ZERO, size: None, recipients: None };
                self.begin(io, slot, &Due { number, at: now, like });
            }
            None => self.quit(io, slot),
        }
    }

    fn begin(&mut self, io: &mut Io, slot: u32, due: &Due) {
        let message = self.part.workload.message_like(due.number as u32, due.like.size, due.like.recipients);
        let place = &mut self.slots[slot as usize];
        let Some(out) = place.conn.and_then(|conn| io.output(conn)) else { return };
        place.client.begin(message, out);
        place.state = State::Busy;
        place.sent += 1;
        place.due = due.at;
        place.begun = Instant::now();
        place.progress = place.begun;
        self.busy += 1;
        self.tally.begun += 1;
        self.interval.begun += 1;
    }

    /// Gives due messages to free sessions, and sees to it that the next one is not forgotten.
    fn pump(&mut self, io: &mut Io) {
        if !self.is_begun || self.schedule.is_none() {
            return;
        }
        let now = Instant::now();
        if self.is_over(now) {
            return self.end(io);
        }
        self.collect_due(now);
        while let Some(due) = self.waiting.pop_front() {
            let Some(slot) = self.idle.pop() else {
                self.waiting.push_front(due);
                break;
            };
            self.begin(io, slot, &due);
        }
        while self.opening < self.waiting.len() {
            let Some(slot) = self.down.pop() else { break };
            self.open(io, slot);
        }
        if let Some(ahead) = &self.ahead
            && self.armed.is_none_or(|armed| armed <= now || armed > ahead.at)
        {
            self.armed = Some(ahead.at);
            io.wake_at(ahead.at, DUE);
        }
        self.end_if_done(io);
    }

    /// Moves what is due from the schedule to the messages that wait.
    fn collect_due(&mut self, now: Instant) {
        loop {
            if self.ahead.is_none() {
                self.ahead = self.next_due();
            }
            match &self.ahead {
                Some(ahead) if ahead.at <= now && self.waiting.len() < WAITING_MAX => {
                    self.waiting.extend(self.ahead.take());
                }
                _ => return,
            }
        }
    }

    /// This thread's next message by the schedule, which all threads go through and each takes its own of.
    fn next_due(&mut self) -> Option<Due> {
        let number = self.next_number()?;
        let schedule = self.schedule.as_mut()?;
        let threads = self.part.config.threads;
        let before = if self.next == 1 { self.part.number } else { threads - 1 };
        for _ in 0..before {
            schedule.next()?;
        }
        let like = schedule.next()?;
        Some(Due { number, at: self.epoch + like.at, like })
    }

    /// A transaction has ended.
    fn done(&mut self, io: &mut Io, slot: u32) {
        let now = Instant::now();
        self.last_reply = now;
        let place = &mut self.slots[slot as usize];
        place.progress = now;
        let Some(message) = place.client.take_message() else { return };
        let accepted = place.client.accepted().len();
        self.tally.refused_recipients += (message.destinations.len() - accepted) as u64;
        if let Some(reason) = place.client.refusal() {
            self.tally.note_reason(reason);
        }
        if accepted == 0 {
            self.tally.refused += 1;
        } else {
            let latency = now.saturating_duration_since(place.due);
            self.tally.acknowledged += 1;
            self.tally.recipients += accepted as u64;
            self.tally.octets += message.content.len() as u64;
            self.tally.latency.record(latency);
            self.tally.service.record(now.saturating_duration_since(place.begun));
            self.interval.acknowledged += 1;
            self.interval.latency.saturating_record((latency.as_micros() as u64).max(1));
            if self.part.record.is_kept() {
                let acknowledged = note(&message, &place.client, now);
                self.part.record.acknowledged(acknowledged);
            }
        }
        if place.client.is_going() {
            return self.lose(io, slot, "the server closed the session (421)");
        }
        let think = self.part.config.think;
        if think > Duration::ZERO && self.schedule.is_none() && !self.is_ending {
            self.busy -= 1;
            self.slots[slot as usize].state = State::Thinking;
            return io.wake_at(now + think, u64::from(slot));
        }
        self.go_on(io, slot);
    }

    fn quit(&mut self, io: &mut Io, slot: u32) {
        let place = &mut self.slots[slot as usize];
        place.progress = Instant::now();
        place.state = State::Quitting;
        if let Some(out) = place.conn.and_then(|conn| io.output(conn)) {
            place.client.quit(out);
        }
        self.end_if_done(io);
    }

    /// A connection is over in good order.
    fn closed(&mut self, io: &mut Io, slot: u32) {
        let place = &mut self.slots[slot as usize];
        if let Some(conn) = place.conn.take() {
            io.close(conn, Close::Flush);
        }
        self.set_down(io, slot);
    }

    fn put_down(&mut self, slot: u32) {
        self.slots[slot as usize].state = State::Down;
        self.live -= 1;
    }

    /// A slot has no connection any more: it gets another one, now or when it is needed.
    fn set_down(&mut self, io: &mut Io, slot: u32) {
        self.put_down(slot);
        let now = Instant::now();
        let more = match &self.schedule {
            Some(_) => true,
            None => self.next.saturating_mul(self.part.config.threads as u64) < self.part.config.messages,
        };
        if more && !self.is_over(now) {
            if self.schedule.is_some() && self.part.config.cold {
                self.down.push(slot);
                return self.pump(io);
            }
            return self.open(io, slot);
        }
        self.end_if_done(io);
    }

    /// A connection was lost or could not be made.
    fn lose(&mut self, io: &mut Io, slot: u32, reason: &str) {
        self.tally.lost_connections += 1;
        self.tally.note_reason(reason);
        let place = &mut self.slots[slot as usize];
        self.tally.in_doubt += u64::from(place.client.is_in_doubt());
        match place.state {
            State::Busy => self.busy -= 1,
            State::Opening => {
                self.opening -= 1;
                self.count_ready();
            }
            State::Idle => self.idle.retain(|idle| *idle != slot),
            _ => {}
        }
        let place = &mut self.slots[slot as usize];
        if let Some(conn) = place.conn.take() {
            io.close(conn, Close::Now);
        }
        place.state = State::Pausing;
        if self.is_ending {
            self.put_down(slot);
            return self.end_if_done(io);
        }
        io.wake_at(Instant::now() + RETRY_PAUSE, u64::from(slot));
        self.end_if_done(io);
    }

    /// Ends when nothing is left to send, and stops when nothing is left open.
    fn end_if_done(&mut self, io: &mut Io) {
        if self.is_ending {
            if self.live == 0 {
                io.stop();
            }
            return;
        }
        let given_out = match self.schedule {
            Some(_) => self.is_begun && self.ahead.is_none() && self.waiting.is_empty(),
            None => self.part.number as u64 + self.next * self.part.config.threads as u64 >= self.part.config.messages,
        };
        if given_out && self.busy == 0 {
            self.end(io);
        }
    }

    /// Begins nothing any more and says goodbye on all connections; those that are busy follow when they are done.
    fn end(&mut self, io: &mut Io) {
        if std::mem::replace(&mut self.is_ending, true) {
            return;
        }
        self.count_unsent();
        self.idle.clear();
        for slot in 0..self.slots.len() as u32 {
            match self.slots[slot as usize].state {
                State::Idle | State::Thinking => self.quit(io, slot),
                State::Opening => {
                    self.opening -= 1;
                    if let Some(conn) = self.slots[slot as usize].conn.take() {
                        io.close(conn, Close::Now);
                    }
                    self.put_down(slot);
                }
                State::Pausing => self.put_down(slot),
                _ => {}
            }
        }
        self.end_if_done(io);
    }

    /// What was due and finds no session any more.
    fn count_unsent(&mut self) {
        let end = Instant::now().min(self.epoch + self.part.config.duration);
        self.collect_due(end);
        self.tally.unsent += self.waiting.len() as u64;
        self.waiting.clear();
        self.ahead = None;
    }

    fn give_interval(&mut self) {
        let next = Interval::new(self.interval.number + 1);
        let mut interval = std::mem::replace(&mut self.interval, next);
        interval.in_flight = self.busy as u64;
        // Who shows them may be slow; the figures of the whole run are kept here.
        let _ = self.part.intervals.try_send(interval);
    }

    fn tick(&mut self, io: &mut Io) {
        let now = Instant::now();
        while self.is_begun && now >= self.epoch + INTERVAL * (self.interval.number as u32 + 1) {
            self.give_interval();
        }
        let patience = self.part.config.patience;
        for slot in 0..self.slots.len() as u32 {
            let place = &self.slots[slot as usize];
            let waits = matches!(place.state, State::Opening | State::Busy | State::Quitting);
            if waits && now.saturating_duration_since(place.progress) > patience {
                self.lose(io, slot, "no reply in time");
            }
        }
        let unreachable = self.tally.connections == 0 && now.saturating_duration_since(self.epoch) > patience;
        if self.is_over(now) || unreachable {
            self.end(io);
        }
        io.wake_at(now + INTERVAL / 2, TICK);
    }
}

fn note(message: &Message, client: &Client, at: Instant) -> Acknowledged {
    let recipients: Vec<Destination> =
        client.accepted().iter().filter_map(|index| message.destinations.get(usize::from(*index))).copied().collect();
    Acknowledged { token: message.token, fingerprint: message.fingerprint, recipients, id: client.id().to_owned(), at }
}
