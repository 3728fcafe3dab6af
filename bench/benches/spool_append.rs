//! What the log itself costs per record: appends, batches and completions on a disk that answers at once, without IO.
//! The checksum of the content is measured beside it, since it is part of every append.
//! Run with `cargo bench -p ringpost-bench --bench spool_append`.
//!
//! Bound: 1 us for a message of 1 KB and its outcome in groups of 20, a fiftieth of the 50 us that accepting may cost
//! (issue 4), and 2 us for one of 10 KB, half of which is the checksum's. A message alone in its group pays for a whole
//! batch, its write and its sync, and may cost 2 us: without load nothing is short. In groups of 200 a message costs no
//! more than in groups of 20, else commits under load would not scale.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost_bench::CONTENTS;
use ringpost_spool::{DiskDone, DiskOp, Log, LogConfig, NewContent, NewMessage, Outcome, OutcomeKind};
use std::hint::black_box;

/// Messages appended between two flushes.
const GROUPS: [u64; 3] = [1, 20, 200];
/// Segments that may be there although every message has ended: in use, prepared, and about to be recycled.
const SEGMENTS_MAX: usize = 8;

/// A log and whoever answers its operations.
struct Owner {
    log: Log,
    next_id: u64,
    now_ms: u64,
}

impl Owner {
    fn new() -> Owner {
        let mut owner = Owner { log: Log::new(LogConfig::new(0, 7), 0), next_id: 1, now_ms: 0 };
        owner.answer();
        owner
    }

    /// Answers everything at once, as a disk of no latency.
    fn answer(&mut self) {
        while let Some(op) = self.log.poll_op() {
            if !matches!(op, DiskOp::Read { .. }) {
                self.log.handle_done(DiskDone { op: op.op(), result: Ok(Bytes::new()) }, self.now_ms);
            }
        }
        while let Some(event) = self.log.poll_event() {
            black_box(event);
        }
    }

    /// What was measured did happen: every record was appended, every turn had its batch and was synced, and what has
    /// ended was recycled, or the figures would be those of a spool that only grows.
    fn check(&self) {
        let usage = self.log.usage();
        assert!(usage.records >= 2 * (self.next_id - 1), "{usage:?}");
        assert!(usage.batches >= self.now_ms && usage.syncs >= self.now_ms, "{usage:?}, {} turns", self.now_ms);
        assert!(usage.segments <= SEGMENTS_MAX, "{usage:?}");
    }

    /// A turn: messages, their outcomes, a flush.
    fn turn(&mut self, group: u64, envelope: &[u8], content: &Bytes) {
        for _ in 0..group {
            let id = self.next_id;
            self.next_id += 1;
            let content = NewContent::Inline(vec![content.clone()]);
            let Ok(stored) = self.log.append_message(NewMessage { id, envelope, recipients: 1, content, held: false })
            else {
                panic!("the disk of this benchmark is never full");
            };
            let outcome = Outcome {
                id,
                recipient: 0,
                kind: OutcomeKind::Delivered,
                attempts: 1,
                at_ms: self.now_ms,
                next_due_ms: 0,
                details: b"250 2.0.0 OK: queued as 0000000000000",
            };
            self.log.append_outcome(outcome, stored.content.segment);
            self.log.finish(id, stored.content);
        }
        self.now_ms += 1;
        self.log.flush(self.now_ms);
        self.answer();
    }
}

fn spool_append(criterion: &mut Criterion) {
    let envelope = [7; 150];
    for (size, octets) in CONTENTS {
        let content = Bytes::from(vec![9; octets]);
        let mut group = criterion.benchmark_group(format!("spool_append/{size}"));
        for messages in GROUPS {
            group.throughput(Throughput::Elements(messages));
            let mut owner = Owner::new();
            group.bench_function(BenchmarkId::new("message and outcome, groups of", messages), |bencher| {
                bencher.iter(|| owner.turn(messages, &envelope, &content));
            });
            owner.check();
        }
        group.throughput(Throughput::Elements(1));
        group.bench_function("checksum of the content", |bencher| {
            bencher.iter(|| crc32c::crc32c(black_box(&content)));
        });
        group.finish();
    }
}

criterion_group!(benches, spool_append);
criterion_main!(benches);
