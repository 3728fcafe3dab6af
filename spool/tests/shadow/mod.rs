//! The naive shadow of a spool: every message and outcome in plain vectors, and what is known of their durability.

use bytes::Bytes;
use ringpost_spool::record::{FRONT_MAX, message_record_len, outcome_record_len};
use ringpost_spool::sim_disk::{FaultAt, SimDiskConfig};
use ringpost_spool::verify::DumpItem;
use ringpost_spool::{
    ContentRef, DiskError, FileId, Log, LogConfig, LogEvent, NewContent, NewMessage, OpId, Outcome, OutcomeKind,
    Position, RecipientFold, RecoveredMessage, SimDisk, Snapshot, recover_from,
};
use std::collections::{BTreeMap, BTreeSet};

const SEGMENT: u32 = 64 * 1024;
/// Spares that a start leaves when it gives back what was never used.
const SPARES: usize = 4;
const FINALS: [OutcomeKind; 3] = [OutcomeKind::Delivered, OutcomeKind::Bounced, OutcomeKind::Expired];

/// What goes wrong besides crashes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Faults {
    None,
    Errors,
    Full,
    All,
}

#[derive(Debug)]
struct Said {
    kind: OutcomeKind,
    attempts: u16,
    next_due_ms: u64,
    position: Position,
    durable: bool,
    /// Its segment may have failed: durable only once everything is quiet.
    tainted: bool,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum State {
    /// The file is being written.
    Spilling,
    Appended,
    Durable,
    Failed,
}

#[derive(Debug)]
struct Message {
    shard: u8,
    envelope: Vec<u8>,
    content: Vec<u8>,
    /// Octets before the content in a file of its own.
    front: usize,
    place: Option<ContentRef>,
    position: Position,
    state: State,
    tainted: bool,
    /// Per recipient, in the order of appends.
    said: Vec<Vec<Said>>,
    finished: bool,
    /// The notification that was appended in one group with a final outcome of a recipient.
    notification: Option<(usize, u64)>,
    reads: BTreeSet<OpId>,
}

impl Message {
    fn fold(&self, recipient: usize) -> RecipientFold {
        let said = &self.said[recipient];
        let last = said.iter().find(|s| s.kind.is_final()).or(said.last());
        last.map_or(RecipientFold::default(), |s| RecipientFold {
            kind: Some(s.kind),
            attempts: s.attempts,
            next_due_ms: s.next_due_ms,
        })
    }

    /// Its own file.
    fn file(&self) -> Bytes {
        [&vec![b'f'; self.front], &self.content[..]].concat().into()
    }

    fn is_done(&self) -> bool {
        (0..self.said.len()).all(|r| self.fold(r).is_final())
    }

    fn is_durably_done(&self) -> bool {
        self.said.iter().all(|said| said.iter().any(|s| s.kind.is_final() && s.durable))
    }
}

pub struct World {
    rng: u64,
    seed: u64,
    faults: Faults,
    disk: SimDisk,
    logs: Vec<Log>,
    failures: Vec<u64>,
    messages: BTreeMap<u64, Message>,
    next_id: u64,
    now_ms: u64,
    read_errors_possible: bool,
}

impl World {
    pub fn new(seed: u64, faults: Faults) -> World {
        let disk = SimDisk::new(seed ^ 0x5eed, SimDiskConfig::sound(SEGMENT));
        let mut world = World {
            rng: seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1,
            seed,
            faults,
            disk,
            logs: Vec::new(),
            failures: Vec::new(),
            messages: BTreeMap::new(),
            next_id: 1,
            now_ms: 1_000,
            read_errors_possible: false,
        };
        world.start(0);
        world
    }

    fn next(&mut self) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        self.rng.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn start(&mut self, first_sequence: u32) {
        let shards = 1 + self.below(3) as u8;
        self.logs.clear();
        self.failures = vec![0; usize::from(shards)];
        for log in 0..shards {
            let seed = self.next();
            let config = LogConfig {
                segment_size: SEGMENT,
                spares: 1 + self.below(2) as usize,
                max_batch: 16 * 1024,
                outcome_sync_count: 8,
                unsynced_max: 128 * 1024,
                moves_max: 8,
                slack_segments: 1,
                compact_interval_ms: 50,
                ..LogConfig::new(log, seed)
            };
            self.logs.push(Log::new(config, first_sequence));
        }
    }

    /// One life of the process, up to where the crash comes.
    pub fn live(&mut self) -> Result<(), String> {
        self.disturb();
        let steps = 200 + self.below(600);
        for _ in 0..steps {
            self.step()?;
        }
        if self.below(3) == 0 {
            self.settle()?;
        }
        Ok(())
    }

    fn disturb(&mut self) {
        let mut config = SimDiskConfig::sound(SEGMENT);
        if matches!(self.faults, Faults::Errors | Faults::All) {
            let rates = [0, 0, 3, 15];
            config.write_errors = rates[self.below(4) as usize];
            config.sync_errors = rates[self.below(4) as usize];
            config.read_errors = rates[self.below(4) as usize];
            config.name_errors = rates[self.below(4) as usize];
            self.read_errors_possible |= config.read_errors > 0;
        }
        if matches!(self.faults, Faults::Full | Faults::All) {
            config.capacity = u64::from(SEGMENT) * (6 + self.below(20));
        }
        self.disk.set_config(config);
    }

    fn step(&mut self) -> Result<(), String> {
        let shard = self.below(self.logs.len() as u64) as u8;
        match self.below(100) {
            0..=24 => self.append(shard),
            25..=54 => self.tell(shard),
            55..=58 => self.notify(shard),
            59..=61 => self.begin_spill(shard),
            62..=63 => self.read(),
            64 => {
                let _ = self.logs[usize::from(shard)].append_note(b"a note");
            }
            65..=79 => {
                self.now_ms += self.below(40);
                let now = self.now_ms;
                self.logs[usize::from(shard)].flush(now);
                self.drain(shard)?;
            }
            80 if matches!(self.faults, Faults::Errors | Faults::All) && self.below(10) == 0 => {
                let at = [FaultAt::Sync, FaultAt::Write, FaultAt::Prepare, FaultAt::Recycle, FaultAt::ContentSync];
                let at = at[self.below(5) as usize];
                self.disk.fail_next(at, DiskError::Io { errno: 5 });
            }
            _ => {
                for _ in 0..1 + self.below(4) {
                    self.complete()?;
                }
            }
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<(), String> {
        let Some((shard, done)) = self.disk.complete_one() else {
            return Ok(());
        };
        self.now_ms += 1;
        let now = self.now_ms;
        if let Some(log) = self.logs.get_mut(usize::from(shard)) {
            log.handle_done(done, now);
        }
        self.drain(shard)
    }

    /// Operations out, events in.
    fn drain(&mut self, shard: u8) -> Result<(), String> {
        let place = usize::from(shard);
        let failures = self.logs[place].usage().failures;
        if failures != self.failures[place] {
            self.failures[place] = failures;
            for message in self.messages.values_mut().filter(|m| m.shard == shard) {
                message.tainted |= message.state != State::Durable;
                message.said.iter_mut().flatten().filter(|s| !s.durable).for_each(|s| s.tainted = true);
            }
        }
        while let Some(event) = self.logs[place].poll_event() {
            self.event(shard, event)?;
        }
        while let Some(op) = self.logs[place].poll_op() {
            self.disk.submit(shard, op);
        }
        Ok(())
    }

    fn event(&mut self, shard: u8, event: LogEvent) -> Result<(), String> {
        match event {
            LogEvent::Durable(upto) => {
                for message in self.messages.values_mut().filter(|m| m.shard == shard) {
                    if message.state == State::Appended && message.position <= upto {
                        message.state = State::Durable;
                    }
                    for said in message.said.iter_mut().flatten() {
                        said.durable |= said.position <= upto && !said.tainted;
                    }
                }
            }
            LogEvent::Failed { from, to } => {
                for message in self.messages.values_mut().filter(|m| m.shard == shard) {
                    if (from..=to).contains(&message.position) {
                        if message.state != State::Appended {
                            return Err(format!("a message that is {:?} failed", message.state));
                        }
                        message.state = State::Failed;
                    }
                }
            }
            LogEvent::Spilled { id, result } => self.spilled(shard, id, result.is_ok()),
            LogEvent::WantState { id } => {
                let state = self.messages.get(&id).filter(|m| !m.finished && m.state == State::Durable);
                let states = state.map(|m| (0..m.said.len()).map(|r| m.fold(r)).collect::<Vec<_>>());
                if self.below(20) == 0 {
                    self.logs[usize::from(shard)].keep_place(id);
                } else {
                    self.logs[usize::from(shard)].provide_state(id, states);
                }
            }
            LogEvent::Moved { id, content } => {
                let message = self.messages.get_mut(&id).ok_or_else(|| format!("unknown message {id} moved"))?;
                message.place = Some(content);
            }
            LogEvent::ContentRead { op, id, result } => {
                let message = self.messages.get_mut(&id).ok_or("a read of an unknown message")?;
                message.reads.remove(&op);
                match result {
                    Ok(bytes) if bytes == message.content => {}
                    Ok(_) => return Err(format!("message {id} reads back differently")),
                    Err(_) if self.read_errors_possible => {}
                    Err(_) if message.finished || message.tainted => {}
                    Err(error) => return Err(format!("message {id} at {:?} cannot be read: {error}", message.place)),
                }
            }
            LogEvent::Recycled { segment } => {
                for (other, log) in self.logs.iter_mut().enumerate() {
                    if other != usize::from(shard) {
                        log.note_recycled(segment);
                    }
                }
            }
            LogEvent::SpillProgress { id, .. } => self.spill_on(shard, id),
            LogEvent::Trouble(_) | LogEvent::SpaceLow | LogEvent::SpaceBack => {}
        }
        Ok(())
    }

    fn make(&mut self, shard: u8, len: u64) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let envelope: Vec<u8> = (0..self.below(300)).map(|n| (n as u8) ^ (id as u8)).collect();
        let content: Vec<u8> = (0..len).map(|n| (n as u8).wrapping_mul(31) ^ (id as u8)).collect();
        let recipients = 1 + self.below(3) as usize;
        let message = Message {
            shard,
            envelope,
            content,
            front: 0,
            place: None,
            position: Position(u64::MAX),
            state: State::Spilling,
            tainted: false,
            said: (0..recipients).map(|_| Vec::new()).collect(),
            finished: false,
            notification: None,
            reads: BTreeSet::new(),
        };
        self.messages.insert(id, message);
        id
    }

    fn append(&mut self, shard: u8) {
        let len = if self.below(12) == 0 { self.below(30_000) } else { self.below(3_000) };
        let id = self.make(shard, len);
        let _ = self.append_made(shard, id, false);
    }

    fn append_made(&mut self, shard: u8, id: u64, spilled: bool) -> bool {
        let held = self.below(16) == 0;
        let message = self.messages.get_mut(&id).unwrap();
        let content = if spilled {
            NewContent::Spilled {
                front: message.front as u32,
                len: message.content.len() as u32,
                crc: crc32c::crc32c(&message.content),
            }
        } else {
            let middle = message.content.len() / 2;
            let all = Bytes::from(message.content.clone());
            NewContent::Inline(vec![all.slice(..middle), all.slice(middle..)])
        };
        let new = NewMessage { id, envelope: &message.envelope, recipients: message.said.len() as u32, content, held };
        match self.logs[usize::from(shard)].append_message(new) {
            Ok(stored) => {
                message.place = Some(stored.content);
                message.position = stored.position;
                let said = |said: &mut Vec<Said>| {
                    let (kind, position) = (OutcomeKind::Held, stored.position);
                    said.push(Said { kind, attempts: 0, next_due_ms: 0, position, durable: false, tainted: false });
                };
                message.said.iter_mut().filter(|_| held).for_each(said);
                message.state = State::Appended;
                true
            }
            Err(_) => {
                self.messages.remove(&id);
                false
            }
        }
    }

    fn begin_spill(&mut self, shard: u8) {
        let len = 1 + self.below(20_000);
        let id = self.make(shard, len);
        let front = [0, self.below(u64::from(FRONT_MAX) + 1) as usize][self.below(2) as usize];
        let message = self.messages.get_mut(&id).unwrap();
        message.front = front;
        let content = message.file();
        let first = content.len().min(8192);
        let log = &mut self.logs[usize::from(shard)];
        if content.len() > first {
            // The second piece follows when the first, which makes the file, is written.
            log.spill(id, 0, vec![content.slice(..first)], false);
        } else {
            log.spill(id, 0, vec![content], true);
        }
    }

    /// The first piece is written; some spills are given up here.
    fn spill_on(&mut self, shard: u8, id: u64) {
        let Some(message) = self.messages.get(&id).filter(|m| m.file().len() > 8192 && m.reads.is_empty()) else {
            return;
        };
        let rest = message.file().slice(8192..);
        if self.below(8) == 0 {
            self.messages.remove(&id);
            self.logs[usize::from(shard)].remove_spill(id);
        } else {
            // Any number serves as a mark that the second piece is under way.
            let op = self.logs[usize::from(shard)].spill(id, 8192, vec![rest], true);
            self.messages.get_mut(&id).unwrap().reads.insert(op);
        }
    }

    fn spilled(&mut self, shard: u8, id: u64, good: bool) {
        let known = self.messages.contains_key(&id);
        let stored = known && good && self.below(10) > 0 && self.append_made(shard, id, true);
        if !stored {
            self.messages.remove(&id);
            self.logs[usize::from(shard)].remove_spill(id);
        }
    }

    fn pick(&mut self, shard: u8) -> Option<u64> {
        let live: Vec<u64> = self
            .messages
            .iter()
            .filter(|(_, m)| m.shard == shard && m.state == State::Durable && !m.finished)
            .map(|(id, _)| *id)
            .collect();
        if live.is_empty() { None } else { Some(live[self.below(live.len() as u64) as usize]) }
    }

    /// An outcome of some recipient.
    fn tell(&mut self, shard: u8) {
        if !self.logs[usize::from(shard)].accepts_outcomes() {
            return;
        }
        if let Some(id) = self.pick(shard) {
            let kind = match self.below(5) {
                0 | 1 => OutcomeKind::Deferred,
                _ => FINALS[self.below(3) as usize],
            };
            self.tell_about(shard, id, kind);
        }
    }

    fn tell_about(&mut self, shard: u8, id: u64, kind: OutcomeKind) {
        let message = &self.messages[&id];
        let Some(recipient) = (0..message.said.len()).find(|r| !message.fold(*r).is_final()) else {
            return;
        };
        let attempts = message.said[recipient].len() as u16 + 1;
        let next_due_ms = if kind.is_final() { 0 } else { self.now_ms + self.below(1_000) };
        let details = &b"250 2.0.0 OK"[..self.below(12) as usize];
        let outcome =
            Outcome { id, recipient: recipient as u32, kind, attempts, at_ms: self.now_ms, next_due_ms, details };
        let log = &mut self.logs[usize::from(shard)];
        let message = self.messages.get_mut(&id).unwrap();
        let place = message.place.unwrap();
        let position = log.append_outcome(outcome, place.segment);
        message.said[recipient].push(Said { kind, attempts, next_due_ms, position, durable: false, tainted: false });
        if message.is_done() {
            message.finished = true;
            log.finish(id, place);
        }
    }

    /// A bounce and its notification, in one group.
    fn notify(&mut self, shard: u8) {
        let Some(about) = self.pick(shard).filter(|id| self.messages[id].notification.is_none()) else {
            return;
        };
        let message = &self.messages[&about];
        let Some(recipient) = (0..message.said.len()).find(|r| !message.fold(*r).is_final()) else {
            return;
        };
        let len = self.below(2_000);
        let id = self.make(shard, len);
        let bytes = message_record_len(self.messages[&id].envelope.len(), len as usize) + outcome_record_len(12);
        if self.logs[usize::from(shard)].reserve_group(bytes).is_err() {
            self.messages.remove(&id);
            return;
        }
        assert!(self.append_made(shard, id, false), "a reserved group takes its message");
        self.messages.get_mut(&about).unwrap().notification = Some((recipient, id));
        self.tell_about(shard, about, OutcomeKind::Bounced);
        self.logs[usize::from(shard)].end_group();
    }

    fn read(&mut self) {
        let ids: Vec<u64> =
            self.messages.iter().filter(|(_, m)| m.state == State::Durable && !m.finished).map(|(id, _)| *id).collect();
        if ids.is_empty() {
            return;
        }
        let id = ids[self.below(ids.len() as u64) as usize];
        let message = self.messages.get_mut(&id).unwrap();
        let place = message.place.unwrap();
        let op = self.logs[usize::from(message.shard)].read_content(id, place, 0, place.len);
        message.reads.insert(op);
    }

    /// Lets everything under way come to rest.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..400 {
            self.now_ms += 500;
            for shard in 0..self.logs.len() as u8 {
                let now = self.now_ms;
                self.logs[usize::from(shard)].flush(now);
                self.drain(shard)?;
            }
            for _ in 0..20 {
                if self.disk.pending() == 0 {
                    break;
                }
                self.complete()?;
            }
            let quiet = |log: &Log| log.usage().unsynced_bytes == 0 && log.usage().parked == 0;
            if self.disk.pending() == 0 && self.logs.iter().all(quiet) {
                for message in self.messages.values_mut() {
                    if message.state == State::Durable {
                        message.tainted = false;
                    }
                    for said in message.said.iter_mut().flatten() {
                        said.durable = true;
                    }
                }
                return Ok(());
            }
        }
        if self.faults == Faults::None { Err("the logs do not come to rest".into()) } else { Ok(()) }
    }

    pub fn crash_and_recover(&mut self) -> Result<(), String> {
        if self.below(2) == 0 {
            self.disk.crash();
        } else {
            self.disk.kill();
        }
        self.disk.set_config(SimDiskConfig::sound(SEGMENT));
        self.read_errors_possible = false;
        // Nothing that the next life reports is about these.
        for message in self.messages.values_mut() {
            message.position = Position(u64::MAX);
            message.said.iter_mut().flatten().for_each(|said| said.position = Position(u64::MAX));
        }
        let mut snapshot = Snapshot::take(&self.disk).map_err(|error| error.to_string())?;
        if self.below(4) != 0 {
            snapshot.free_unused(&self.disk, SPARES).map_err(|error| error.to_string())?;
        }
        self.start(snapshot.next_sequence());
        let shards = self.logs.len() as u8;
        let mut found = BTreeMap::new();
        // New mail comes in before recovery is done.
        let newest = self.next_id;
        for _ in 0..self.below(60) {
            let shard = self.below(u64::from(shards)) as u8;
            match self.below(3) {
                0 => self.append(shard),
                1 => self.complete()?,
                _ => {
                    let now = self.now_ms;
                    self.logs[usize::from(shard)].flush(now);
                    self.drain(shard)?;
                }
            }
        }
        let mut twice = None;
        let report = recover_from(&self.disk, &snapshot, shards, &mut |shard, message| {
            if found.insert(message.id, (shard, message.clone())).is_some() {
                twice = Some(message.id);
            }
        })
        .map_err(|error| error.to_string())?;
        if let Some(id) = twice {
            return Err(format!("message {id} was recovered twice"));
        }
        if !report.damage.is_empty() {
            let tale = tale(&self.disk, u64::MAX);
            return Err(format!("damage where none was done: {}{tale}", report.damage[0]));
        }
        self.compare(found, newest)?;
        for (shard, segments) in report.segments.into_iter().enumerate() {
            self.logs[shard].adopt(segments);
            self.drain(shard as u8)?;
        }
        Ok(())
    }

    fn compare(&mut self, mut found: BTreeMap<u64, (u8, RecoveredMessage)>, newest: u64) -> Result<(), String> {
        let ids: Vec<u64> = self.messages.keys().copied().filter(|id| *id < newest).collect();
        let mut lost = BTreeSet::new();
        for id in ids {
            let message = self.messages.get_mut(&id).unwrap();
            match found.remove(&id) {
                None => {
                    if message.state == State::Durable && !message.tainted && !message.is_done() {
                        let tale = tale(&self.disk, id);
                        return Err(format!(
                            "message {id} was durable and is lost: {:?} {:?}{tale}",
                            message.place, message.said
                        ));
                    }
                    lost.insert(id);
                }
                Some((shard, recovered)) => {
                    check(id, message, &recovered).map_err(|why| format!("{why}{}", tale(&self.disk, id)))?;
                    let place = recovered.content;
                    let file = if place.spilled { FileId::Content(id) } else { FileId::Segment(place.segment) };
                    let bytes = self.disk.bytes(file).ok_or_else(|| format!("the file of message {id} is lost"))?;
                    let offset = place.offset as usize;
                    if bytes.get(offset..offset + place.len as usize) != Some(&message.content[..]) {
                        return Err(format!("the content of message {id} differs"));
                    }
                    take_over(message, shard, recovered);
                }
            }
        }
        if let Some(id) = found.keys().next() {
            return Err(format!("message {id} was never appended, or was refused"));
        }
        self.compare_groups(&lost)?;
        self.messages.retain(|id, _| !lost.contains(id));
        Ok(())
    }

    /// An outcome and the notification it causes are both there or neither is.
    fn compare_groups(&self, lost: &BTreeSet<u64>) -> Result<(), String> {
        for (id, message) in &self.messages {
            if let Some((recipient, notification)) = message.notification {
                let there = lost.contains(id) || message.fold(recipient).is_final();
                let unfinished = self.messages.get(&notification).is_some_and(|n| !n.is_done());
                let durable = message.state == State::Durable;
                if there && durable && unfinished && lost.contains(&notification) {
                    return Err(format!(
                        "the outcome of message {id} is there, its notification {notification} is lost: {} {}",
                        tale(&self.disk, *id),
                        tale(&self.disk, notification)
                    ));
                }
            }
        }
        Ok(())
    }

    /// Everything is delivered; nearly all segments must come back.
    pub fn finish_everything(&mut self) -> Result<(), String> {
        self.settle()?;
        for _ in 0..6 {
            for shard in 0..self.logs.len() as u8 {
                while let Some(id) = self.pick(shard) {
                    self.tell_about(shard, id, OutcomeKind::Delivered);
                }
            }
            self.settle()?;
        }
        for _ in 0..100 {
            self.settle()?;
        }
        for log in &self.logs {
            let usage = log.usage();
            if usage.segments > 3 || usage.live_messages > 0 {
                return Err(format!("segments stay though all mail is done: {usage:?} {log:?}"));
            }
        }
        Ok(())
    }

    /// A few messages wait while much mail passes: the segments in use stay few.
    pub fn outlive_much_traffic(&mut self) -> Result<(), String> {
        for _ in 0..12 {
            for _ in 0..30 {
                for shard in 0..self.logs.len() as u8 {
                    self.append(shard);
                }
            }
            self.settle()?;
            for shard in 0..self.logs.len() as u8 {
                let slow = self.pick(shard);
                let ids: Vec<u64> =
                    self.messages.iter().filter(|(_, m)| m.shard == shard && !m.finished).map(|(id, _)| *id).collect();
                for id in ids {
                    let waits = slow == Some(id) || self.messages[&id].said.iter().any(|said| said.len() > 1);
                    let kind = if waits { OutcomeKind::Deferred } else { OutcomeKind::Delivered };
                    for _ in 0..3 {
                        self.tell_about(shard, id, kind);
                    }
                }
            }
            self.settle()?;
        }
        for _ in 0..100 {
            self.now_ms += 5_000;
            self.settle()?;
        }
        for log in &self.logs {
            let usage = log.usage();
            if usage.segments > 8 {
                return Err(format!("waiting messages pin the disk: {usage:?} {log:?}"));
            }
        }
        Ok(())
    }

    /// For messages about a failing seed.
    #[allow(dead_code)]
    pub fn seed(&self) -> u64 {
        self.seed
    }
}

/// What the disk says about one message, and all that is not about messages.
fn tale(disk: &SimDisk, about: u64) -> String {
    let mut lines = String::new();
    let dumped = ringpost_spool::verify::dump(disk, None, &mut |line| {
        let told = match &line.item {
            DumpItem::Message { id, .. } | DumpItem::Outcome { id, .. } => *id == about,
            DumpItem::Batch { .. } => true,
            DumpItem::Note { .. } => false,
            _ => true,
        };
        if told {
            lines.push_str(&format!("\n{line}"));
        }
    });
    dumped.map_or_else(|error| error.to_string(), |()| lines)
}

/// Whether what was recovered is among what the shadow allows.
fn check(id: u64, message: &Message, recovered: &RecoveredMessage) -> Result<(), String> {
    if recovered.envelope != message.envelope || recovered.states.len() != message.said.len() {
        return Err(format!("message {id} came back changed"));
    }
    if message.is_durably_done() {
        return Err(format!("message {id} was durably done and came back"));
    }
    for (recipient, state) in recovered.states.iter().enumerate() {
        let said = &message.said[recipient];
        let sure = said.iter().rposition(|s| s.durable);
        let fits =
            |s: &Said| state.kind == Some(s.kind) && state.attempts == s.attempts && state.next_due_ms == s.next_due_ms;
        let from = sure.unwrap_or(0);
        let allowed = said[from..].iter().any(fits) || (sure.is_none() && *state == RecipientFold::default());
        if !allowed {
            return Err(format!("message {id} recipient {recipient}: {state:?} is not among {said:?}"));
        }
    }
    Ok(())
}

/// From here on the recovered state is what is durable.
fn take_over(message: &mut Message, shard: u8, recovered: RecoveredMessage) {
    message.shard = shard;
    message.place = Some(recovered.content);
    message.state = State::Durable;
    message.position = Position(0);
    message.tainted = false;
    message.finished = false;
    message.reads.clear();
    for (said, state) in message.said.iter_mut().zip(&recovered.states) {
        let upto = said.iter().position(|s| {
            Some(s.kind) == state.kind && s.attempts == state.attempts && s.next_due_ms == state.next_due_ms
        });
        said.truncate(upto.map_or(0, |place| place + 1));
        said.iter_mut().for_each(|s| s.durable = true);
    }
}
