//! What the queue costs: timers, the choice of what goes next, and a message's whole way through it.
//! Run with `cargo bench -p ringpost-bench --bench queue`.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringpost::address::Address;
use ringpost::clock::{Instant, Now, UnixTime};
use ringpost::envelope::{Body, Envelope, Notify, Recipient};
use ringpost::id::MessageId;
use ringpost::queue::timer_wheel::{TimerWheel, tick_instant};
use ringpost::queue::{NewMessage, Queue, QueueConfig, SiteId, StoredContent, TenantId, Verdict};
use std::hint::black_box;
use std::time::Duration;

const SITE: SiteId = SiteId(1);
const TENANTS: u64 = 4;

fn now(millis: u64) -> Now {
    Now {
        instant: Instant::ZERO.after(Duration::from_millis(1_000_000 + millis)),
        unix: UnixTime::from_millis(1_790_000_000_000 + millis),
    }
}

fn envelope(number: u64) -> Envelope {
    let address = |text: String| Address::parse(text.as_bytes(), false).unwrap();
    Envelope {
        reverse_path: Some(address(format!("bounces-{number:07}@news.example.com"))),
        body: Body::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        recipients: vec![Recipient {
            address: address(format!("someone.{number:07}@example.net")),
            notify: Notify::DEFAULT,
            orcpt: None,
        }],
        tenant: "default".into(),
        arrived: now(0).unix,
        client: "".into(),
        require_tls: false,
        is_dsn: false,
    }
}

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
fn scheduler(c: &mut Criterion) {
    let mut group = c.benchmark_group("scheduler");
    for (name, messages) in [("1,000", 1_000), ("1,000,000", 1_000_000)] {
        let mut queue = ready_queue(messages);
        group.bench_function(format!("pick at {name} ready, put back at the end"), |b| {
            b.iter(|| {
                let pick = queue.pick(SITE, 100).expect("it is ready");
                queue.settle(pick.slot, pick.recipients[0], Verdict::Deferred { not_before: None }, now(0));
                queue.retry_now(pick.slot, &Default::default());
                let (slot, recipient) = queue.poll_unrouted().expect("it is to be routed");
                queue.assign(slot, recipient, SITE);
            });
        });
        group.bench_function(format!("pick and unpick at {name} ready"), |b| {
            b.iter(|| {
                let pick = queue.pick(SITE, 100).expect("it is ready");
                queue.unpick(pick.slot, &pick.recipients)
            });
        });
    }
    group.finish();
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
                    insert(&mut queue, number as u64, envelope);
                    let (slot, recipient) = queue.poll_unrouted().expect("it is to be routed");
                    queue.assign(slot, recipient, SITE);
                    let pick = queue.pick(SITE, 100).expect("it is ready");
                    queue.settle(pick.slot, pick.recipients[0], Verdict::Delivered, now(1));
                    black_box(queue.remove(pick.slot));
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

criterion_group!(benches, timer_wheel, scheduler, way_through);
criterion_main!(benches);
