//! What it costs to find the end of a message's content, to undo its dots and to keep smuggled ones out.
//! Run with `cargo bench -p ringpost-bench --bench content`.
//!
//! Bound: 0.5 us for 1 KB and 2.5 us for 10 KB of ordinary text by DATA, no more by BDAT. That is the scanner's fifth
//! of the 2.5 us that the protocol may take of a message's 50 us (see session.rs). For the other 9 KB of a message of
//! 10 KB issue 4 allows 15 us, in which they are received, scanned, copied, summed up and written; 2 us of them are the
//! scanner's. Text whose every line begins with a dot is the worst that a sender can do and may cost twice as much,
//! since it is handed on in pieces. How the input is cut must not matter: pieces of a packet (1,448 octets) cost the
//! same within a tenth.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost::smtp::data::{BareNewlines, Framing, Scanner};
use ringpost_bench::{CONTENTS, content, data};
use std::hint::black_box;

/// What a packet on an Ethernet carries.
const PACKET: usize = 1448;

/// Scans a whole content in pieces; returns how many octets were passed on.
fn scan(input: &[u8], framing: Framing, piece: usize) -> usize {
    let mut scanner = Scanner::new(framing, BareNewlines::Refuse);
    let mut passed = 0;
    let mut sink = |bytes: &[u8]| passed += black_box(bytes).len();
    for piece in input.chunks(piece) {
        scanner.scan(piece, &mut sink);
    }
    if framing == Framing::Counted {
        scanner.finish(&mut sink);
    }
    assert!(scanner.fault().is_none());
    passed
}

fn contents(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("content");
    for (name, octets) in CONTENTS {
        let (text, dots, counted) = (data(octets, false), data(octets, true), content(octets));
        group.throughput(Throughput::Bytes(counted.len() as u64));
        let mut measure = |what: &str, input: &[u8], framing, piece, passed: usize| {
            group.bench_function(BenchmarkId::new(what, name), |bencher| {
                bencher.iter(|| assert_eq!(scan(black_box(input), framing, piece), passed));
            });
        };
        // One dot of each pair goes, and the line that ends the content.
        let undotted = dots.len() - 3 - dots.windows(3).filter(|window| *window == b"\n..").count();
        measure("DATA", &text, Framing::Dots, text.len(), counted.len());
        measure("DATA by packets", &text, Framing::Dots, PACKET, counted.len());
        measure("DATA, every line begins with a dot", &dots, Framing::Dots, dots.len(), undotted);
        measure("BDAT", &counted, Framing::Counted, counted.len(), counted.len());
    }
    group.finish();
}

criterion_group!(benches, contents);
criterion_main!(benches);
