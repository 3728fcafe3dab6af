//! What it costs to find the class of a failed reply. Run with `cargo bench -p ringpost-bench --bench classify`.
//!
//! Bound: 5 us for a reply of usual length. A shard does this for failed attempts alone, so that a burst of nothing but
//! refusals costs a tenth more than one of deliveries at most. A reply as long as is looked at costs no more than 30 us.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost::policy::classify::{Classifier, Question};
use ringpost::reply::Reply;
use ringpost::smtp::client::Stage;
use std::hint::black_box;

fn classify(criterion: &mut Criterion) {
    let rules = Classifier::shipped();
    let long = "This text tells nothing that any rule knows, over and over. ".repeat(20);
    let replies = [
        (
            "unknown_user",
            "mx.example.net",
            Reply::new(550, (5, 1, 1), "<ann@example.net>: Recipient address rejected: User unknown"),
        ),
        (
            "provider",
            "mx-eu.mail.am0.yahoodns.net",
            Reply::new(
                421,
                (4, 7, 0),
                "[TSS04] Messages from 192.0.2.25 temporarily deferred due to unexpected volume or user complaints - \
                 4.16.55.1; see https://postmaster.yahooinc.com/error-codes",
            ),
        ),
        ("code_alone", "mx.example.net", Reply::new(451, (4, 0, 0), "Xyzzy")),
        ("longest", "mx.example.net", Reply::new(550, (5, 0, 0), long)),
    ];
    let mut group = criterion.benchmark_group("classify");
    for (name, host, reply) in &replies {
        let question = Question { reply, from_peer: true, stage: Some(Stage::Recipient), host };
        group.throughput(Throughput::Bytes(reply.text.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| rules.classify(black_box(&question)));
        });
    }
    group.finish();
    criterion.bench_function("compile_shipped_rules", |bencher| {
        bencher.iter(|| Classifier::with_rules(black_box(None)).is_ok());
    });
}

criterion_group!(benches, classify);
criterion_main!(benches);
