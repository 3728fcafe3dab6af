//! One log on a simulated disk, driven step by step.
#![allow(dead_code)]

use bytes::Bytes;
use ringpost_spool::sim_disk::SimDiskConfig;
use ringpost_spool::{
    ContentRef, DiskDone, DiskOp, Log, LogConfig, LogEvent, LogFull, NewContent, NewMessage, Outcome, OutcomeKind,
    Position, RecoveredMessage, RecoveryReport, SegmentId, SimDisk, Stored, recover,
};

pub const SEGMENT: u32 = 64 * 1024;

pub struct Rig {
    pub disk: SimDisk,
    pub log: Log,
    pub now_ms: u64,
    pub events: Vec<LogEvent>,
}

pub fn config() -> LogConfig {
    LogConfig {
        segment_size: SEGMENT,
        max_batch: 16 * 1024,
        slack_segments: 0,
        compact_interval_ms: 10,
        ..LogConfig::new(0, 42)
    }
}

impl Rig {
    /// A log with its first segments prepared.
    pub fn new() -> Rig {
        Rig::with(config(), SimDiskConfig::sound(SEGMENT))
    }

    pub fn with(config: LogConfig, disk: SimDiskConfig) -> Rig {
        let mut rig = Rig { disk: SimDisk::new(1, disk), log: Log::new(config, 0), now_ms: 1_000, events: Vec::new() };
        rig.run();
        rig
    }

    /// A new life of the process on the same disk; segments are adopted.
    pub fn restart(&mut self) -> (Vec<RecoveredMessage>, RecoveryReport) {
        self.disk.kill();
        let (messages, report) = self.recover();
        self.log = Log::new(LogConfig { seed: 43 + self.now_ms, ..config() }, report.next_sequence);
        self.events.clear();
        self.log.adopt(report.segments[0].clone());
        (messages, report)
    }

    pub fn recover(&self) -> (Vec<RecoveredMessage>, RecoveryReport) {
        let mut messages = Vec::new();
        let report = recover(&self.disk, 1, &mut |_, message| messages.push(message)).expect("a readable spool");
        messages.sort_by_key(|message| message.id);
        (messages, report)
    }

    pub fn ids(&self) -> Vec<u64> {
        self.recover().0.iter().map(|message| message.id).collect()
    }

    pub fn append(&mut self, id: u64, len: usize) -> Stored {
        self.try_append(id, len).expect("room for a message")
    }

    pub fn try_append(&mut self, id: u64, len: usize) -> Result<Stored, LogFull> {
        let content = NewContent::Inline(vec![Bytes::from(vec![id as u8; len])]);
        self.log.append_message(NewMessage { id, envelope: b"an envelope", recipients: 1, content, held: false })
    }

    pub fn outcome(&mut self, id: u64, kind: OutcomeKind, home: SegmentId) -> Position {
        let outcome = Outcome {
            id,
            recipient: 0,
            kind,
            attempts: 1,
            at_ms: self.now_ms,
            next_due_ms: 0,
            details: b"250 2.0.0 OK",
        };
        self.log.append_outcome(outcome, home)
    }

    pub fn deliver(&mut self, id: u64, content: ContentRef) {
        self.outcome(id, OutcomeKind::Delivered, content.segment);
        self.log.finish(id, content);
    }

    pub fn flush(&mut self) {
        self.log.flush(self.now_ms);
    }

    /// The operations given out since last time; those that prepare segments go to the disk at once.
    pub fn ops(&mut self) -> Vec<DiskOp> {
        let (prepare, others): (Vec<DiskOp>, Vec<DiskOp>) =
            std::iter::from_fn(|| self.log.poll_op()).partition(|op| matches!(op, DiskOp::Prepare { .. }));
        prepare.into_iter().for_each(|op| self.disk.submit(0, op));
        others
    }

    pub fn submit(&mut self) {
        for op in self.ops() {
            self.disk.submit(0, op);
        }
    }

    /// Performs everything that is given out, without flushing.
    pub fn run(&mut self) {
        self.submit();
        while let Some((_, done)) = self.disk.complete_one() {
            self.done(done);
            self.submit();
        }
        self.take_events();
    }

    pub fn done(&mut self, done: DiskDone) {
        self.log.handle_done(done, self.now_ms);
    }

    pub fn take_events(&mut self) {
        while let Some(event) = self.log.poll_event() {
            self.events.push(event);
        }
    }

    /// Flushes and performs everything until nothing moves any more.
    pub fn settle(&mut self) {
        for _ in 0..40 {
            self.now_ms += 200;
            self.flush();
            self.run();
        }
    }

    pub fn durable(&self) -> u64 {
        let durable = |event: &LogEvent| match event {
            LogEvent::Durable(Position(upto)) => Some(*upto),
            _ => None,
        };
        self.events.iter().filter_map(durable).max().unwrap_or(0)
    }

    pub fn failed(&self) -> Vec<(u64, u64)> {
        let failed = |event: &LogEvent| match event {
            LogEvent::Failed { from, to } => Some((from.0, to.0)),
            _ => None,
        };
        self.events.iter().filter_map(failed).collect()
    }
}
