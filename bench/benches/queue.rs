//! What the queue costs: timers, the choice of what goes next, and a message's whole way through it.
//! Run with `cargo bench -p ringpost-bench --bench queue`.
//!
//! Bounds: a timer set and fired, or set and taken back, 0.2 us; to ask when the next is due, 20 ns, since every turn
//! of the executor does; a pick and its return 0.5 us; a message's whole way (insert, assign, pick, settle, remove) 1.6
//! us. A message that is drained after a restart may cost 80 us in all (issue 4), and deciding is held to a fiftieth of
//! that. By issue 4 the cost of scheduling is flat within 20 % from 1,000 to 1,000,000 messages: no step may search. In
//! the figures at 1,000,000 the processor's caches show as well; what is beyond 20 % there must be explained by misses,
//! not by instructions (`perf stat -e instructions,cache-misses`).

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringpost::envelope::Envelope;
use ringpost::id::MessageId;
use ringpost::queue::timer_wheel::{TimerWheel, tick_instant};
use ringpost::queue::{NewMessage, Queue, QueueConfig, SiteId, StoredContent, TenantId, Verdict};
use ringpost_bench::{envelope, now};
use std::hint::black_box;

const SITE: SiteId = SiteId(1);
const TENANTS: u64 = 4;
/// How many messages are ready, or wait.
const LOADS: [(&str, u64); 3] = [("1,000", 1_000), ("100,000", 100_000), ("1,000,000", 1_000_000)];
/// Waiting messages to each site.
const MESSAGES_PER_SITE: u64 = 10;

fn insert(queue: &mut Queue, number: u64, envelope: Envelope) {
    let content =
        StoredContent { segment: 1, offset: 0, len: 1_000 + (number % 7) as u32 * 500, crc: 0, spilled: false };
    let tenant = TenantId((number % TENANTS) as u16);
    queue.insert(NewMessage { id: MessageId(number), envelope, content, states: None, tenant }, now(0));
}

fn ready_queue(messages: u64) -> Queue {
    let mut queue = Queue::new(QueueConfig::default(), 1);
    for number in 0..messages {
        insert(&mut queue, number, envelope(number));
    }
    while let Some((slot, recipient)) = queue.poll_unrouted() {
        queue.assign(slot, recipient, SITE);
    }
    queue
}

fn timer_wheel(c: &mut Criterion) {
    const TIMERS: u32 = 100_000;
    let mut group = c.benchmark_group("timer_wheel");
    group.throughput(Throughput::Elements(u64::from(TIMERS)));
    group.bench_function("insert and fire over 4 hours", |b| {
        b.iter_batched(
            TimerWheel::<u32>::new,
            |mut wheel| {
                for number in 0..TIMERS {
                    wheel.insert(1 + number.wrapping_mul(2_654_435_761) % 144_000, number);
                }
                while let Some(due) = wheel.next_due() {
                    while let Some(payload) = wheel.poll(due) {
                        black_box(payload);
                    }
                }
                wheel
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("insert and cancel", |b| {
        let mut wheel = TimerWheel::<u32>::new();
        b.iter(|| {
            for number in 0..TIMERS {
                let key = wheel.insert(1 + number.wrapping_mul(2_654_435_761) % 144_000, number);
                wheel.cancel(key);
            }
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("next_due with 100,000 waiting", |b| {
        let mut wheel = TimerWheel::<u32>::new();
        for number in 0..TIMERS {
            wheel.insert(64 * 64 + number, number);
        }
        b.iter(|| black_box(&wheel).next_due().unwrap_or(tick_instant(0)));
    });
    group.finish();
}

/// One pick and its return, so that the number ready stays the same.
fn ready(c: &mut Criterion) {
    let mut group = c.benchmark_group("ready");
    group.throughput(Throughput::Elements(1));
    for (name, messages) in LOADS {
        let mut queue = ready_queue(messages);
        group.bench_function(BenchmarkId::new("pick, defer, retry, put back at the end", name), |b| {
            b.iter(|| {
                let pick = queue.pick(SITE, 100).expect("it is ready");
                queue.settle(pick.slot, pick.recipients[0], Verdict::Deferred { not_before: None }, now(0));
                queue.retry_now(pick.slot, &Default::default());
                let (slot, recipient) = queue.poll_unrouted().expect("it is to be routed");
                queue.assign(slot, recipient, SITE);
            });
        });
        group.bench_function(BenchmarkId::new("pick and unpick", name), |b| {
            b.iter(|| {
                let pick = queue.pick(SITE, 100).expect("it is ready");
                queue.unpick(pick.slot, &pick.recipients)
            });
        });
        assert_eq!(queue.counts().ready, messages);
    }
    group.finish();
}

/// Messages that all wait for a retry, to sites of their own, their due times spread over hours by the schedule's
/// jitter and by when they came.
fn waiting_queue(messages: u64) -> Queue {
    let mut queue = Queue::new(QueueConfig::default(), 1);
    for number in 0..messages {
        insert(&mut queue, number, envelope(number));
        let (slot, recipient) = queue.poll_unrouted().expect("it is to be routed");
        let site = SiteId(SITE.0 + 1 + (number / MESSAGES_PER_SITE) as u32);
        queue.assign(slot, recipient, site);
        let pick = queue.pick(site, 100).expect("it is ready");
        let tried = now(number * 7_200_000 / messages);
        queue.settle(pick.slot, pick.recipients[0], Verdict::Deferred { not_before: None }, tried);
    }
    queue
}

/// A message that passes by many that wait.
fn waiting(c: &mut Criterion) {
    let mut group = c.benchmark_group("waiting");
    group.throughput(Throughput::Elements(1));
    for (name, messages) in LOADS {
        let mut queue = waiting_queue(messages);
        let mut number = messages;
        group.bench_function(BenchmarkId::new("insert, assign, pick, settle, remove", name), |b| {
            b.iter_batched(
                || {
                    number += 1;
                    (number, envelope(number))
                },
                |(number, envelope)| pass(&mut queue, number, envelope),
                BatchSize::SmallInput,
            );
        });
        group.bench_function(BenchmarkId::new("when is the next due", name), |b| {
            b.iter(|| black_box(&queue).next_due())
        });
        assert_eq!(queue.counts().scheduled, messages);
    }
    group.finish();
}

/// A message's whole way, delivered at the first attempt.
fn pass(queue: &mut Queue, number: u64, envelope: Envelope) {
    insert(queue, number, envelope);
    let (slot, recipient) = queue.poll_unrouted().expect("it is to be routed");
    queue.assign(slot, recipient, SITE);
    let pick = queue.pick(SITE, 100).expect("it is ready");
    queue.settle(pick.slot, pick.recipients[0], Verdict::Delivered, now(1));
    black_box(queue.remove(pick.slot));
}

fn way_through(c: &mut Criterion) {
    const MESSAGES: u64 = 10_000;
    let mut group = c.benchmark_group("way_through");
    group.throughput(Throughput::Elements(MESSAGES));
    group.bench_function("insert, assign, pick, settle, remove", |b| {
        b.iter_batched(
            || (Queue::new(QueueConfig::default(), 1), (0..MESSAGES).map(envelope).collect::<Vec<_>>()),
            |(mut queue, envelopes)| {
                for (number, envelope) in envelopes.into_iter().enumerate() {
                    pass(&mut queue, number as u64, envelope);
                }
                queue
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("insert, assign, pick, defer, and all due again", |b| {
        b.iter_batched(
            || (Queue::new(QueueConfig::default(), 1), (0..MESSAGES).map(envelope).collect::<Vec<_>>()),
            |(mut queue, envelopes)| {
                for (number, envelope) in envelopes.into_iter().enumerate() {
                    insert(&mut queue, number as u64, envelope);
                    let (slot, recipient) = queue.poll_unrouted().expect("it is to be routed");
                    queue.assign(slot, recipient, SITE);
                    let pick = queue.pick(SITE, 100).expect("it is ready");
                    queue.settle(pick.slot, pick.recipients[0], Verdict::Deferred { not_before: None }, now(1));
                }
                let later = now(3_600_000);
                while queue.next_due().is_some_and(|due| due <= later.instant) {
                    queue.handle_timeout(later);
                }
                while let Some(unrouted) = queue.poll_unrouted() {
                    black_box(unrouted);
                }
                queue
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, timer_wheel, ready, waiting, way_through);
criterion_main!(benches);
