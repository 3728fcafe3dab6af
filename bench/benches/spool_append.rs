//! What the log itself costs per record: appends, batches and completions on a disk that answers at once, without IO.
//! The checksum of the content is measured beside it, since it is part of every append.

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringpost_spool::{DiskDone, DiskOp, Log, LogConfig, NewContent, NewMessage, Outcome, OutcomeKind};
use std::hint::black_box;

/// Records appended between two flushes.
const GROUP: u64 = 20;

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

    /// A turn: messages, their outcomes, a flush.
    fn turn(&mut self, envelope: &[u8], content: &Bytes) {
        for _ in 0..GROUP {
            let id = self.next_id;
            self.next_id += 1;
            let content = NewContent::Inline(vec![content.clone()]);
            let Ok(stored) = self.log.append_message(NewMessage { id, envelope, recipients: 1, content }) else {
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
    let (envelope, content) = ([7; 150], Bytes::from(vec![9; 1024]));
    let mut group = criterion.benchmark_group("spool");
    group.throughput(Throughput::Elements(GROUP));
    let mut owner = Owner::new();
    group.bench_function("message of 1 KB and its outcome, groups of 20", |bencher| {
        bencher.iter(|| owner.turn(&envelope, &content));
    });
    group.bench_function("the checksum of 1 KB, 20 times", |bencher| {
        bencher.iter(|| {
            for _ in 0..GROUP {
                black_box(crc32c::crc32c(black_box(&content)));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, spool_append);
criterion_main!(benches);
