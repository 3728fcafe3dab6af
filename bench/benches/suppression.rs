//! Ten million suppressed addresses: what a look-up takes, how much memory the table has, and how long a start reads it.

use criterion::{Criterion, criterion_group, criterion_main};
use ringpost::clock::UnixTime;
use ringpost::control::suppression_log::{Kind, Record, Source, SuppressionLog};
use ringpost::policy::suppression::FOR_EVER;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

const ENTRIES: u32 = 10_000_000;
const BATCH: u32 = 100_000;
const NOW: UnixTime = UnixTime::from_millis(1_790_000_000_000);

fn address(number: u32) -> String {
    format!("some.recipient.{number}@dest-{}.example", number % 1_000)
}

/// Octets of memory that this process holds.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("pages");
    pages * 4096
}

fn suppression(criterion: &mut Criterion) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("suppression-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let (mut log, table, _) = SuppressionLog::open(&directory, [3; 16], NOW).expect("a list");
    let begun = Instant::now();
    for batch in 0..ENTRIES / BATCH {
        let records: Vec<Record> = (batch * BATCH..(batch + 1) * BATCH)
            .map(|number| {
                let address = address(number);
                Record {
                    kind: Kind::Suppressed,
                    source: Source::Import,
                    fingerprint: table.fingerprint(None, &address),
                    until_s: FOR_EVER,
                    since_s: 1,
                    tenant: "".into(),
                    address: address.into(),
                    reason: "550 5.1.1 no such user".into(),
                }
            })
            .collect();
        log.append(&table, &records).expect("an append");
    }
    println!("{ENTRIES} entries added in {:.1?}", begun.elapsed());
    drop((log, table));
    let before = resident();
    let begun = Instant::now();
    let (log, table, _) = SuppressionLog::open(&directory, [3; 16], NOW).expect("a list");
    println!(
        "{} entries read in {:.1?}, {} MB of memory, {} MB on disk",
        table.len(),
        begun.elapsed(),
        (resident().saturating_sub(before)) / 1_000_000,
        std::fs::metadata(log.path()).expect("the file").len() / 1_000_000
    );
    // Addresses are made beforehand: what is measured is the look-up, in both lists, at places that no cache holds.
    let known: Vec<String> = (0..100_000).map(|number| address(number * 97 % ENTRIES)).collect();
    let unknown: Vec<String> = (0..100_000).map(|number| address(ENTRIES + number * 97)).collect();
    let mut group = criterion.benchmark_group("suppression of 10 million");
    for (name, addresses) in [("known", known), ("unknown", unknown)] {
        let mut at = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                at = (at + 1) % addresses.len();
                table.is_suppressed(black_box("acme"), black_box(&addresses[at]), NOW)
            });
        });
    }
    group.finish();
    std::fs::remove_dir_all(&directory).expect("it goes");
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = suppression
}
criterion_main!(benches);
