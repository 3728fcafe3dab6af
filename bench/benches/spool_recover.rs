//! How long a start takes to read a spool of 200,000 waiting messages of 1 KB, with a warm page cache, on real files.
//! Run with `cargo bench -p ringpost-bench --bench spool_recover`. `RINGPOST_BENCH_DIR` names the directory (default:
//! the temporary directory); it takes 320 MB.
//!
//! Bound: 0.8 s, 4 us per message. Draining after a restart may cost 80 us per message (issue 4), of which recovery may
//! have a twentieth; mail is accepted meanwhile, but an old message is delivered only once all that may be known of it
//! was read, and the first delivery is to come within 2 s (docs/PERFORMANCE.md).

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringpost_bench as _;
use ringpost_spool::{
    DiskDone, DiskError, DiskOp, FileId, Log, LogConfig, NewContent, NewMessage, Outcome, OutcomeKind, StdDisk, recover,
};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const MESSAGES: u64 = 200_000;
const SEGMENT: u32 = 64 * 1024 * 1024;

/// Performs one operation; syncs are left out, since only what is read matters here.
fn perform(disk: &StdDisk, op: &DiskOp) -> io::Result<()> {
    match op {
        DiskOp::Prepare { segment, .. } => disk.prepare(*segment, SEGMENT),
        DiskOp::Recycle { segment, .. } | DiskOp::Discard { segment, .. } => disk.discard(*segment),
        DiskOp::Write { segment, offset, chunks, len, .. } => {
            let file: File = OpenOptions::new().write(true).open(disk.path(FileId::Segment(*segment)))?;
            let mut bytes = chunks.concat();
            bytes.resize(*len, 0);
            file.write_all_at(&bytes, *offset)
        }
        _ => Ok(()),
    }
}

fn answer(disk: &StdDisk, log: &mut Log, now_ms: u64) {
    while let Some(op) = log.poll_op() {
        let result = perform(disk, &op).map(|()| Bytes::new()).map_err(|error| DiskError::from_io(&error));
        log.handle_done(DiskDone { op: op.op(), result }, now_ms);
    }
    while log.poll_event().is_some() {}
}

/// A spool of waiting messages, each with one deferral.
fn fill(disk: &StdDisk) {
    let mut log = Log::new(LogConfig { segment_size: SEGMENT, ..LogConfig::new(0, 3) }, 0);
    answer(disk, &mut log, 0);
    let (envelope, content) = ([5; 150], Bytes::from(vec![9; 1024]));
    let mut stored = Vec::with_capacity(MESSAGES as usize);
    for id in 1..=MESSAGES {
        let content = NewContent::Inline(vec![content.clone()]);
        let message = NewMessage { id, envelope: &envelope, recipients: 1, content, held: false };
        match log.append_message(message) {
            Ok(place) => stored.push((id, place.content.segment)),
            Err(error) => panic!("message {id}: {error}"),
        }
        if id % 200 == 0 {
            log.flush(id);
            answer(disk, &mut log, id);
        }
    }
    for (place, (id, home)) in stored.into_iter().enumerate() {
        let (kind, attempts) = (OutcomeKind::Deferred, 1);
        let details = b"450 4.2.1 try again later";
        let outcome = Outcome { id, recipient: 0, kind, attempts, at_ms: 1, next_due_ms: 2, details };
        log.append_outcome(outcome, home);
        if place % 200 == 199 {
            log.flush(MESSAGES + place as u64);
            answer(disk, &mut log, MESSAGES + place as u64);
        }
    }
}

/// Removes the spool also where the benchmark fails.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn spool_recover(criterion: &mut Criterion) {
    let base = std::env::var_os("RINGPOST_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = base.join(format!("ringpost-recover-{}", std::process::id()));
    let disk = match StdDisk::open(&directory) {
        Ok(disk) => disk,
        Err(error) => panic!("{}: {error}", directory.display()),
    };
    let _removed = Removed(directory);
    fill(&disk);
    let mut group = criterion.benchmark_group("spool_recover");
    group.sample_size(10).throughput(Throughput::Elements(MESSAGES));
    group.bench_function("200,000 messages of 1 KB, each with a deferral", |bencher| {
        bencher.iter(|| {
            let mut found = 0;
            let report = recover(&disk, 1, &mut |_, _| found += 1);
            assert_eq!((found, report.map(|report| report.damage.len()).ok()), (MESSAGES, Some(0)));
        });
    });
    group.finish();
}

criterion_group!(benches, spool_recover);
criterion_main!(benches);
