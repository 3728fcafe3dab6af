//! What waiting mail costs in memory, counted by the allocator itself. In a test program of its own, because the
//! allocator counts everything that the program does.

use ringpost::address::Address;
use ringpost::clock::{Instant, Now, UnixTime};
use ringpost::envelope::{Body, Envelope, Notify, Recipient};
use ringpost::id::MessageIds;
use ringpost::queue::{NewMessage, Queue, QueueConfig, SiteId, Slot, StoredContent, TenantId, Verdict};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grew(by: usize) {
    let now = ALLOCATED.fetch_add(by, Ordering::Relaxed) + by;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call is handed to the system's allocator as it came; counting touches atomics alone.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`, and `alloc` was the system's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MESSAGES: usize = 200_000;
const SECOND: u64 = 1_000_000_000;

fn now(second: u64) -> Now {
    Now {
        instant: Instant::from_nanos((10_000 + second) * SECOND),
        unix: UnixTime::from_millis(1_790_000_000_000 + second * 1_000),
    }
}

fn envelope(number: usize) -> Envelope {
    let address = |text: String| Address::parse(text.as_bytes(), false).unwrap();
    Envelope {
        reverse_path: Some(address(format!("bounces-{number:06}@news.example.com"))),
        body: Body::SevenBit,
        smtputf8: false,
        ret: None,
        envid: None,
        recipients: vec![Recipient {
            address: address(format!("someone.{number:06}@example-{:02}.net", number % 50)),
            notify: Notify::DEFAULT,
            orcpt: None,
        }],
        tenant: "default".into(),
        arrived: now(0).unix,
        client: "app7.example.com [192.0.2.17]".into(),
        require_tls: false,
        is_dsn: false,
        held: None,
    }
}

#[test]
fn waiting_mail_is_small() {
    let mut ids = MessageIds::new(0);
    let mut queue = Queue::new(QueueConfig::default(), 1);
    let (before, mut addresses) = (ALLOCATED.load(Ordering::Relaxed), 0);
    PEAK.store(before, Ordering::Relaxed);
    let report = |what: &str, bytes: usize, addresses: usize| {
        let beyond = (bytes - addresses) as f64 / MESSAGES as f64;
        println!(
            "{what}: {:.1} MB, {} bytes per message, {beyond:.1} beyond its addresses",
            bytes as f64 / 1e6,
            bytes / MESSAGES
        );
        assert!(beyond <= 256.0, "{what}: {beyond}");
        assert!(bytes <= 50_000_000, "{what}: {bytes}");
    };
    let held = || ALLOCATED.load(Ordering::Relaxed) - before;

    for number in 0..MESSAGES {
        let envelope = envelope(number);
        addresses += envelope.recipients[0].address.as_str().len();
        addresses += envelope.reverse_path.as_ref().map_or(0, |address| address.as_str().len());
        let content = StoredContent { segment: 1, offset: 4_096, len: 1_000, crc: 7, spilled: false };
        let id = ids.next(now(0).unix);
        queue.insert(NewMessage { id, envelope, content, states: None, tenant: TenantId(0) }, now(0));
    }
    report("unrouted", held(), addresses);

    while let Some((slot, recipient)) = queue.poll_unrouted() {
        queue.assign(slot, recipient, SiteId(slot.0 % 50));
    }
    report("ready", held(), addresses);

    for site in 0..50 {
        while let Some(pick) = queue.pick(SiteId(site), 10) {
            queue.settle(pick.slot, pick.recipients[0], Verdict::Deferred { not_before: None }, now(1));
        }
    }
    assert_eq!(queue.counts().scheduled, MESSAGES as u64);
    report("scheduled", held(), addresses);
    report("at the most", PEAK.load(Ordering::Relaxed) - before, addresses);

    let later = now(3_600);
    while queue.next_due().is_some_and(|due| due <= later.instant) {
        queue.handle_timeout(later);
    }
    let mut finished: Vec<Slot> = Vec::with_capacity(MESSAGES);
    while let Some((slot, recipient)) = queue.poll_unrouted() {
        queue.settle(slot, recipient, Verdict::Delivered, later);
        finished.push(slot);
    }
    for slot in finished {
        queue.remove(slot).unwrap();
    }
    assert_eq!(queue.counts().messages, 0);
    let left = ALLOCATED.load(Ordering::Relaxed) - before;
    println!("empty again: {:.2} MB", left as f64 / 1e6);
    assert!(left < 1_000_000, "memory is given back when the queue drains: {left}");
    assert_eq!(later.instant.since(now(0).instant), Duration::from_secs(3_600));
}
