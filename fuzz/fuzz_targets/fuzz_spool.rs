//! Spools from any bytes. A log lives as the input says, on a disk that fails, is killed and loses power; then its files
//! are damaged, or replaced by bytes of the input, with or without making checksums good again. Reading it must not
//! panic, hang or allocate beyond a bound; recovery finds the same twice, whether or not unused segments were given back
//! before; verify and dump change nothing; and without damage nothing durable is lost and no damage is reported.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use ringpost::taker::Taker;
use ringpost_spool::sim_disk::{FaultAt, SimDiskConfig};
use ringpost_spool::verify::{dump, verify};
use ringpost_spool::{
    ContentRef, Disk, DiskError, FileId, Log, LogConfig, LogEvent, NewContent, NewMessage, Outcome, OutcomeKind,
    Position, RecoveredMessage, RecoveryReport, SegmentId, SimDisk, Snapshot, recover_from,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;

const SEGMENT: u32 = 32 * 1024;
/// Files of a spool: more make the target slow and tell nothing new.
const FILES_MAX: u32 = 24;
/// The largest single allocation: a segment of the test is 32 KiB, a message's states at most 65,536 of 16 bytes.
const ALLOCATION_MAX: usize = 4 << 20;

/// Refuses what a length read from a disk must never ask for.
struct Bounded;

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > ALLOCATION_MAX {
            std::process::abort();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// A message that was appended.
struct Known {
    position: Position,
    place: ContentRef,
    durable: bool,
    touched: bool,
}

struct World {
    disk: SimDisk,
    log: Log,
    now_ms: u64,
    next_id: u64,
    known: BTreeMap<u64, Known>,
}

fn config(seed: u64) -> LogConfig {
    LogConfig {
        segment_size: SEGMENT,
        max_batch: 8 * 1024,
        slack_segments: 0,
        compact_interval_ms: 10,
        ..LogConfig::new(0, seed)
    }
}

/// What a recovery found, small enough to compare however many recipients a record claims.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    messages: Vec<(u64, u64)>,
    damage: Vec<String>,
    outcomes: u64,
    next_sequence: u32,
}

fn digest(message: &RecoveredMessage) -> u64 {
    let mut sum = u64::from(crc32c::crc32c(&message.envelope));
    let place = &message.content;
    for number in [place.segment.0, place.offset, place.len, place.crc, u32::from(place.spilled)] {
        sum = sum.wrapping_mul(0x0100_0000_01b3).wrapping_add(u64::from(number));
    }
    for state in &message.states {
        let kind = state.kind.map_or(0, |kind| kind as u64);
        sum =
            sum.wrapping_mul(0x0100_0000_01b3).wrapping_add(kind ^ u64::from(state.attempts) << 8 ^ state.next_due_ms);
    }
    sum
}

fn read(disk: &SimDisk, snapshot: &Snapshot) -> Option<(Found, RecoveryReport)> {
    let mut messages = Vec::new();
    let report =
        recover_from(disk, snapshot, 1, &mut |_, message| messages.push((message.id, digest(&message)))).ok()?;
    messages.sort_unstable();
    let damage = report.damage.iter().map(ToString::to_string).collect();
    let found = Found { messages, damage, outcomes: report.outcomes, next_sequence: report.next_sequence };
    Some((found, report))
}

fn snapshot(disk: &SimDisk) -> Snapshot {
    Snapshot::take(disk).expect("the simulated disk lists its files")
}

impl World {
    fn new() -> World {
        World {
            disk: SimDisk::new(1, SimDiskConfig::sound(SEGMENT)),
            log: Log::new(config(1), 0),
            now_ms: 1_000,
            next_id: 1,
            known: BTreeMap::new(),
        }
    }

    fn run(&mut self) {
        loop {
            while let Some(op) = self.log.poll_op() {
                self.disk.submit(0, op);
            }
            let Some((_, done)) = self.disk.complete_one() else { break };
            self.log.handle_done(done, self.now_ms);
        }
        while let Some(event) = self.log.poll_event() {
            match event {
                LogEvent::Durable(Position(upto)) => {
                    self.known
                        .values_mut()
                        .filter(|known| known.position.0 <= upto)
                        .for_each(|known| known.durable = true);
                }
                LogEvent::Failed { from, to } => {
                    self.known.retain(|_, known| !(from..=to).contains(&known.position));
                }
                LogEvent::Moved { id, content } => {
                    self.known.entry(id).and_modify(|known| known.place = content);
                }
                LogEvent::WantState { id } => self.log.keep_place(id),
                _ => {}
            }
        }
    }

    fn restart(&mut self) {
        let mut snapshot = snapshot(&self.disk);
        snapshot.free_unused(&self.disk, 4).expect("the simulated disk renames");
        let (_, report) = read(&self.disk, &snapshot).expect("no newer version");
        assert!(report.damage.is_empty(), "damage where none was done: {:?}", report.damage);
        self.now_ms += 1;
        self.log = Log::new(config(self.now_ms), report.next_sequence);
        self.log.adopt(report.segments.into_iter().next().unwrap_or_default());
        // What was not durable may be there or not; positions count anew.
        self.known.retain(|_, known| known.durable);
        self.known.values_mut().for_each(|known| known.position = Position(u64::MAX));
    }

    fn step(&mut self, input: &mut Taker<'_>) {
        match input.byte() % 12 {
            0..=2 => {
                let len = usize::from(input.number()) % 9_000;
                let content = NewContent::Inline(vec![Bytes::from(vec![self.next_id as u8; len])]);
                let message = NewMessage { id: self.next_id, envelope: b"an envelope", recipients: 2, content, held: false };
                if let Ok(stored) = self.log.append_message(message) {
                    let (position, place) = (stored.position, stored.content);
                    self.known.insert(self.next_id, Known { position, place, durable: false, touched: false });
                    self.next_id += 1;
                }
            }
            3 | 4 => {
                let (pick, kind) = (u64::from(input.byte()) % self.next_id.max(1), input.byte());
                // Nothing is attempted before it is durable.
                let Some(known) = self.known.get_mut(&pick).filter(|known| known.durable) else { return };
                known.touched = true;
                let place = known.place;
                let all = kind & 1 == 0;
                for recipient in 0..if all { 2 } else { 1 } {
                    let kind = OutcomeKind::from_byte(kind % 9).filter(|_| !all).unwrap_or(OutcomeKind::Delivered);
                    let (at_ms, attempts) = (self.now_ms, 1);
                    let outcome =
                        Outcome { id: pick, recipient, kind, attempts, at_ms, next_due_ms: 7, details: b"250 fine" };
                    self.log.append_outcome(outcome, place.segment);
                }
                if all {
                    self.log.finish(pick, place);
                    self.known.remove(&pick);
                }
            }
            5 => drop(self.log.append_note(&vec![b'n'; usize::from(input.byte())])),
            6 => self.log.flush(self.now_ms),
            7 | 8 => {
                self.log.flush(self.now_ms);
                self.run();
            }
            9 => {
                self.now_ms += 300;
                self.log.flush(self.now_ms);
                self.run();
            }
            10 => {
                let (at, error) = (input.byte(), DiskError::Io { errno: 5 });
                let at = [FaultAt::Sync, FaultAt::Write, FaultAt::Prepare, FaultAt::Recycle][usize::from(at % 4)];
                self.disk.fail_next(at, error);
            }
            _ => {
                if input.byte() & 1 == 0 {
                    self.disk.kill()
                } else {
                    self.disk.crash()
                }
                self.restart();
            }
        }
    }

    /// Everything durable that nothing was said about is there, and no damage is.
    fn judge(&self, found: &Found) {
        assert!(found.damage.is_empty(), "damage where none was done: {:?}", found.damage);
        for (id, _) in self.known.iter().filter(|(_, known)| known.durable && !known.touched) {
            assert!(found.messages.iter().any(|(there, _)| there == id), "message {id} is lost");
        }
    }
}

/// Damages files as the input says. True if checksums were made good again.
fn damage(disk: &SimDisk, input: &mut Taker<'_>) -> bool {
    let mut sealed = false;
    while !input.is_empty() {
        let segments = disk.segments().expect("the simulated disk lists its files");
        let Some(id) = segments.get(usize::from(input.byte()) % segments.len().max(1)).copied() else { break };
        let file = FileId::Segment(id);
        let mut bytes = disk.bytes(file).expect("it was listed");
        let what = input.byte();
        // Mostly where heads are.
        let block = usize::from(input.byte()) % 8 * 4096;
        let place = block + usize::from(input.number()) % if what & 0x40 == 0 { 160 } else { 4096 };
        match what % 8 {
            0 => bytes.iter_mut().skip(place).take(1).for_each(|byte| *byte ^= input.byte().max(1)),
            1 => bytes.iter_mut().skip(place).take(4).for_each(|byte| *byte = input.byte()),
            2 => bytes.iter_mut().skip(block).take(4096).for_each(|byte| *byte = 0),
            3 => bytes.truncate(place),
            4 => {
                let len = usize::from(input.byte());
                let raw = input.bytes(len).to_vec();
                bytes.iter_mut().skip(block).zip(raw).for_each(|(byte, new)| *byte = new);
            }
            5 => {
                let from = usize::from(input.byte()) % 8 * 4096;
                if let Some(copy) = bytes.get(from..from + 4096).map(<[u8]>::to_vec) {
                    bytes.iter_mut().skip(block).zip(copy).for_each(|(byte, new)| *byte = new);
                }
            }
            6 => {
                disk.break_block(file, block as u64);
                continue;
            }
            _ => {
                let end = bytes.len();
                bytes.iter_mut().skip(end.saturating_sub(place % 96 + 1)).take(4).for_each(|byte| *byte = input.byte());
            }
        }
        if what & 0x80 != 0 {
            make_good(id, &mut bytes);
            sealed = true;
        }
        disk.put(file, bytes);
    }
    sealed
}

fn number(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
}

fn put_sum(bytes: &mut [u8], at: usize, sum: u32) {
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
}

/// The checksum of some bytes in a use with the generation that stands at a place.
fn seed(id: SegmentId, bytes: &[u8], generation_at: usize) -> u32 {
    let generation = bytes.get(generation_at..generation_at + 8).unwrap_or(&[0; 8]);
    crc32c::crc32c_append(crc32c::crc32c(generation), &id.0.to_le_bytes())
}

/// Computes the checksums of header, batches, records and trailer anew, so that what they hold is believed.
fn make_good(id: SegmentId, bytes: &mut [u8]) {
    if bytes.len() < 3 * 4096 {
        return;
    }
    let sum = crc32c::crc32c_append(seed(id, bytes, 16), &bytes[..60]);
    put_sum(bytes, 60, sum);
    for block in (4096..bytes.len() - 4096).step_by(4096).filter(|at| at + 4096 <= bytes.len()).collect::<Vec<_>>() {
        if &bytes[block..block + 4] != b"RPB\x01" {
            continue;
        }
        let seed = seed(id, bytes, block + 8);
        let sum = crc32c::crc32c_append(seed, &bytes[block..block + 44]);
        put_sum(bytes, block + 44, sum);
        let mut at = block + 48;
        for _ in 0..number(bytes, block + 20).min(64) {
            let end = at + 40 + number(bytes, at + 8);
            let Some(record) = bytes.get(at..end) else { break };
            let placed = crc32c::crc32c_append(seed, &(at as u32).to_le_bytes());
            let sum = crc32c::crc32c_append(crc32c::crc32c_append(placed, &record[..4]), &record[8..]);
            let content = if record[2] & 1 == 0 { number(record, 12) } else { 0 };
            put_sum(bytes, at + 4, sum);
            at = end + content;
        }
    }
    let trailer = bytes.len() - 64;
    let seed = seed(id, bytes, trailer + 16);
    let entries = number(bytes, trailer + 24).saturating_mul(24);
    if let Some(sum) = trailer.checked_sub(entries).map(|from| crc32c::crc32c_append(seed, &bytes[from..trailer])) {
        put_sum(bytes, trailer + 28, sum);
    }
    let sum = crc32c::crc32c_append(seed, &bytes[trailer..trailer + 60]);
    put_sum(bytes, trailer + 60, sum);
}

/// All files as they are read.
fn files(disk: &SimDisk) -> Vec<Option<Vec<u8>>> {
    let segments = disk.segments().expect("the simulated disk lists its files");
    segments.into_iter().map(|id| disk.bytes(FileId::Segment(id))).collect()
}

/// Whatever the bytes, reading them is safe and says the same again; a log can go on with what it says.
fn read_all(world: &mut World, made_good: bool) {
    let before = files(&world.disk);
    let _ = verify(&world.disk);
    let mut lines = 0;
    let _ = dump(&world.disk, None, &mut |line| lines += line.to_string().len().min(1));
    assert!(lines <= 24 * SEGMENT as usize && files(&world.disk) == before, "looking changed something");
    let mut snapshot = snapshot(&world.disk);
    // A newer version is refused; only a good checksum can say that it is one.
    let Some((found, _)) = read(&world.disk, &snapshot) else { return assert!(made_good, "refused") };
    let again = read(&world.disk, &snapshot).map(|(found, _)| found);
    assert_eq!(Some(&found), again.as_ref(), "the second recovery differs");
    snapshot.free_unused(&world.disk, 4).expect("the simulated disk renames");
    let Some((freed, report)) = read(&world.disk, &snapshot) else { return };
    assert!(made_good || freed == found, "{freed:?} differs from {found:?}");
    world.log = Log::new(config(99), report.next_sequence);
    world.log.adopt(report.segments.into_iter().next().unwrap_or_default());
    for _ in 0..6 {
        world.now_ms += 400;
        world.log.flush(world.now_ms);
        world.run();
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Taker::new(input);
    let mut world = World::new();
    world.run();
    if input.byte() & 3 == 0 {
        // Files of any bytes, of any length.
        for sequence in 0..u32::from(input.byte() % 4) {
            let len = usize::from(input.number()) % (SEGMENT as usize * 2);
            let piece = usize::from(input.number());
            let mut bytes = input.bytes(piece).to_vec();
            bytes.resize(len, 0);
            let id = SegmentId::new(0, sequence);
            if len > 64 {
                make_good(id, &mut bytes);
            }
            world.disk.put(FileId::Segment(id), bytes);
        }
        return read_all(&mut world, true);
    }
    for _ in 0..input.byte() {
        let many = world.disk.segments().map_or(0, |segments| segments.len()) as u32 > FILES_MAX;
        if many || input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    if input.byte() & 1 == 0 {
        world.disk.kill()
    } else {
        world.disk.crash()
    }
    if input.is_empty() {
        let (found, _) = read(&world.disk, &snapshot(&world.disk)).expect("no newer version");
        world.judge(&found);
        return read_all(&mut world, false);
    }
    let made_good = damage(&world.disk, &mut input);
    read_all(&mut world, made_good);
});
