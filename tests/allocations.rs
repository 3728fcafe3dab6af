//! Allocations per message on the hot path: a whole shard ([`ringpost::shard::core::Core`]) accepts and delivers, and
//! its allocations are counted. They must not grow with what waits nor with the number of sessions, and stay below a
//! bound. Nothing is timed. In a test program of its own, because of its allocator.
//!
//! Run with `cargo test --test allocations -- --nocapture` to see the numbers.

#[path = "allocations/counter.rs"]
mod counter;
#[path = "allocations/destination.rs"]
mod destination;
#[path = "allocations/machine.rs"]
mod machine;

use machine::{Machine, Mail};

#[global_allocator]
static ALLOCATOR: counter::Counting = counter::Counting;

/// Messages over which is counted.
const MESSAGES: u64 = 2_000;
/// Waiting messages: few, and many.
const WAITING: [u64; 2] = [1_000, 10_000];
/// Sessions: few, and many.
const SESSIONS: [usize; 2] = [10, 1_000];
/// By so much a message may cost more where there is more of something: tables that grow by doubling do so now and
/// then.
const GROWTH_MAX: f64 = 0.5;
/// Accepting a message of 1 KB: session, envelope, trace header, content, record, queue, event and reply. Measured:
/// 21.1.
const ACCEPTING_MAX: f64 = 22.0;
/// Accepting and delivering it: the attempt, its transaction, the replies, the outcome and its event too. Measured:
/// 52.9.
const DELIVERING_MAX: f64 = 54.0;
/// Accepting and deferring it: the timer too. Measured: 53.9.
const DEFERRING_MAX: f64 = 55.0;
/// A content beyond [`INLINE_CONTENT_START`](ringpost::limits::INLINE_CONTENT_START) may grow its block so often, up to
/// 10 KB that come in one piece.
const BLOCKS_OF_10_KB_MAX: f64 = 1.5;

const SMALL: Mail = Mail { willing: true, octets: 1_000, chunking: false };
const DEFERRED: Mail = Mail { willing: false, ..SMALL };

/// Sends messages and prints what each costs, by call. Whatever is allocated once and then kept is there before the
/// count begins.
fn count(machine: &mut Machine, what: &str, mail: Mail) -> f64 {
    machine.send(MESSAGES / 2, mail);
    let (before, accepted) = (machine.allocations, machine.accepted);
    machine.send(MESSAGES, mail);
    assert_eq!(machine.accepted - accepted, MESSAGES, "every message is acknowledged in its round");
    let per_message = machine.allocations.since(&before).map(|count| count as f64 / MESSAGES as f64);
    let [received, disk, turn, replied, rest] = per_message;
    let all = per_message.iter().sum();
    println!(
        "{what}: {all:.2} per message ({received:.2} input, {disk:.2} disk, {turn:.2} turn, {replied:.2} replies, \
         {rest:.2} rest)"
    );
    all
}

/// Few and many of something must cost the same, and less than the bound.
fn judge(few_and_many: [f64; 2], max: f64) {
    let [few, many] = few_and_many;
    assert!(many <= few + GROWTH_MAX, "from {few:.2} to {many:.2} allocations per message: they grow with the load");
    assert!(few.max(many) <= max, "{:.2} allocations per message, {max} are allowed", few.max(many));
}

#[test]
fn accepting_costs_the_same_whatever_waits() {
    judge(
        WAITING.map(|waiting| {
            let mut machine = Machine::new(SESSIONS[0], true, true);
            machine.send(waiting, SMALL);
            count(&mut machine, &format!("accept, {waiting} held"), SMALL)
        }),
        ACCEPTING_MAX,
    );
}

#[test]
fn delivering_costs_the_same_whatever_waits() {
    for (how, chunking) in [("BDAT", true), ("DATA", false)] {
        judge(
            WAITING.map(|waiting| {
                let mut machine = Machine::new(SESSIONS[0], false, chunking);
                machine.send(waiting, DEFERRED);
                assert_eq!((machine.delivered, machine.deferred), (0, waiting));
                let each = count(&mut machine, &format!("accept and deliver by {how}, {waiting} deferred"), SMALL);
                assert_eq!((machine.delivered, machine.deferred), (MESSAGES + MESSAGES / 2, waiting));
                each
            }),
            DELIVERING_MAX,
        );
    }
}

#[test]
fn deferring_costs_the_same_whatever_waits() {
    judge(
        WAITING.map(|waiting| {
            let mut machine = Machine::new(SESSIONS[0], false, true);
            machine.send(waiting, DEFERRED);
            count(&mut machine, &format!("accept and defer, {waiting} deferred"), DEFERRED)
        }),
        DEFERRING_MAX,
    );
}

#[test]
fn the_number_of_sessions_does_not_matter() {
    judge(
        SESSIONS.map(|sessions| {
            let mut machine = Machine::new(sessions, true, true);
            count(&mut machine, &format!("accept, {sessions} sessions"), SMALL)
        }),
        ACCEPTING_MAX,
    );
    judge(
        SESSIONS.map(|sessions| {
            let mut machine = Machine::new(sessions, false, true);
            count(&mut machine, &format!("accept and deliver, {sessions} sessions"), SMALL)
        }),
        DELIVERING_MAX,
    );
}

#[test]
fn size_and_way_hardly_matter() {
    let mut machine = Machine::new(SESSIONS[0], false, true);
    let small = count(&mut machine, "accept and deliver 1 KB by DATA", SMALL);
    let chunks = count(&mut machine, "accept and deliver 1 KB by BDAT", Mail { chunking: true, ..SMALL });
    let large = count(&mut machine, "accept and deliver 10 KB by DATA", Mail { octets: 10_000, ..SMALL });
    assert!((chunks - small).abs() <= GROWTH_MAX, "{chunks:.2} by BDAT, {small:.2} by DATA");
    assert!(large <= small + BLOCKS_OF_10_KB_MAX, "{large:.2} for 10 KB, {small:.2} for 1 KB");
}

#[test]
fn the_counter_counts() {
    let mut count = 0;
    let mut kept = counter::counted(&mut count, || vec![0u8; 10]);
    counter::counted(&mut count, || kept.reserve_exact(1_000));
    assert_eq!((count, kept.len()), (2, 10));
    let _uncounted = Box::new(kept);
    counter::counted(&mut count, || ());
    assert_eq!(count, 2);
}
