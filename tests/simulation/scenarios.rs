//! One trouble at a time, each as an operator meets it: what clients are told meanwhile, that mail goes on where it can,
//! and that nothing acknowledged is lost. The seeds of simulation.rs mix all of them; here the answer itself is shown.

use crate::world::ledger::{Told, What};
use crate::world::plan::{Damaged, Kind, Manner, MessagePlan, Plan, Rates, RecipientPlan, Stop, Trouble, Window};
use crate::world::random::{MS, Ns};
use crate::world::run::{Outcome, run};

/// Seeds for each scenario.
const SEEDS: u64 = 5;

/// A plan in which nothing goes wrong.
fn quiet_plan(seed: u64, kind: Kind) -> Plan {
    let mut plan = Plan::new(seed, kind);
    plan.windows.clear();
    plan.stops.clear();
    plan.jumps.clear();
    plan.operations.clear();
    plan.rates = Rates { peer: 0, mailbox: 0, reset: 0 };
    for session in &mut plan.sessions {
        session.leaves_after = None;
    }
    plan
}

/// Runs a scenario with several seeds: much mail, and small segments.
fn each(change: impl Fn(&mut Plan), judge: impl Fn(&Outcome)) {
    each_of(Kind::Churn, change, judge);
}

fn each_of(kind: Kind, change: impl Fn(&mut Plan), judge: impl Fn(&Outcome)) {
    for seed in 1..=SEEDS {
        let mut plan = quiet_plan(seed, kind);
        change(&mut plan);
        judge(&run(plan, None, false));
    }
}

fn assert_good(outcome: &Outcome) {
    if !outcome.is_good() {
        outcome.print();
    }
    assert!(outcome.is_good(), "seed {}: {:?}", outcome.seed, outcome.violations);
}

/// The middle half of the time in which mail comes.
fn middle(plan: &Plan, trouble: Trouble) -> Window {
    Window { from: plan.active / 4, to: 3 * plan.active / 4, trouble }
}

/// How many replies with this code clients have read.
fn replies(outcome: &Outcome, code: u16) -> u64 {
    outcome.world.ledger.replies.get(&code).copied().unwrap_or(0)
}

/// Recipients that arrived within a window.
fn arrived_within(outcome: &Outcome, window: &Window) -> usize {
    let arrivals = outcome.world.ledger.arrivals.iter();
    arrivals.filter(|arrival| window.from < arrival.at && arrival.at < window.to).count()
}

/// Messages acknowledged from then on.
fn acknowledged_after(outcome: &Outcome, at: Ns) -> usize {
    let entries = outcome.world.ledger.entries.values();
    entries.filter(|entry| matches!(entry.told, Told::Accepted(_)) && entry.told_at > at).count()
}

fn ends(outcome: &Outcome, what: What) -> usize {
    outcome.world.ledger.ends.values().flatten().filter(|end| end.what == what).count()
}

#[test]
fn a_full_disk_gets_452_and_delivery_goes_on() {
    let told = std::cell::Cell::new(0);
    each(
        |plan| plan.windows.push(middle(plan, Trouble::DiskFull)),
        |outcome| {
            assert_good(outcome);
            let window = outcome.world.plan.windows[0];
            told.set(told.get() + replies(outcome, 452));
            assert!(arrived_within(outcome, &window) > 0, "seed {}: delivery stood still", outcome.seed);
            assert!(acknowledged_after(outcome, window.to) > 0, "seed {}: mail is taken again", outcome.seed);
        },
    );
    assert!(told.get() > 0, "nobody was told that the disk is full");
}

#[test]
fn a_sync_that_fails_gets_451_and_is_never_taken_for_good() {
    let told = std::cell::Cell::new(0);
    each(
        |plan| {
            let window = middle(plan, Trouble::SyncErrors(1_000));
            plan.windows.push(window);
            // What was refused must not come back, what was acknowledged must.
            plan.stops.push((window.to + window.to / 10, Stop::Power));
        },
        |outcome| {
            assert_good(outcome);
            told.set(told.get() + replies(outcome, 451));
            assert!(acknowledged_after(outcome, outcome.world.plan.windows[0].to) > 0, "mail is taken again");
            assert!(!outcome.world.ledger.notices.is_empty(), "the operator is told");
        },
    );
    assert!(told.get() > 0, "nobody was told that the disk fails");
}

#[test]
fn mail_waits_while_dns_is_down() {
    each(
        |plan| {
            plan.windows.push(Window { from: 0, to: plan.active / 2, trouble: Trouble::DnsFails });
            plan.windows.push(Window { from: plan.active / 2, to: 3 * plan.active / 4, trouble: Trouble::DnsLost });
        },
        |outcome| {
            assert_good(outcome);
            let ends = outcome.world.ledger.ends.values().flatten();
            let blamed = ends.filter(|end| end.what != What::Delivered && end.reply.contains("DNS")).count();
            assert_eq!(blamed, 0, "seed {}: mail failed because of DNS", outcome.seed);
        },
    );
}

#[test]
fn jumps_of_the_clock_make_nobody_older() {
    each(
        |plan| {
            let days = 10 * 24 * 3_600_000;
            for step in 1..8 {
                let millis = if step % 2 == 0 { -2 * days } else { days };
                plan.jumps.push((plan.active * step / 8, millis));
            }
        },
        |outcome| {
            assert_good(outcome);
            let ends = &outcome.world.ledger.ends;
            let dead = |whom: &_| outcome.world.is_bound_for_dead_hosts(whom);
            let early = ends.iter().filter(|(whom, _)| !dead(*whom)).flat_map(|(_, ends)| ends);
            assert_eq!(early.filter(|end| end.what == What::Expired).count(), 0, "seed {}", outcome.seed);
        },
    );
}

#[test]
fn without_descriptors_mail_waits_and_sessions_go_on() {
    each(
        |plan| plan.windows.push(middle(plan, Trouble::Descriptors)),
        |outcome| {
            assert_good(outcome);
            let window = outcome.world.plan.windows[0];
            assert!(acknowledged_after(outcome, window.to) > 0, "seed {}: clients are let in again", outcome.seed);
        },
    );
}

#[test]
fn a_stop_in_good_order_ends_and_repeats_nothing() {
    each(
        |plan| {
            plan.shards = vec![4];
            for step in 1..8 {
                let at = plan.active * step / 8;
                plan.stops.push((at, Stop::Graceful));
                // All that comes in this part comes just before.
                let part = plan.active / 8;
                for session in plan.sessions.iter_mut().filter(|s| s.at <= at && s.at + part > at) {
                    session.at = at.saturating_sub(session.at % (300 * MS));
                }
            }
        },
        |outcome| {
            assert_good(outcome);
            assert!(outcome.world.epoch > 1, "seed {}: it was stopped {} times", outcome.seed, outcome.world.epoch - 1);
        },
    );
}

#[test]
fn a_stop_in_good_order_ends_though_the_disk_is_full() {
    each(
        |plan| {
            plan.windows.push(Window { from: plan.active / 4, to: plan.active * 4, trouble: Trouble::DiskFull });
            plan.active *= 4;
            plan.stops.push((plan.active / 8, Stop::Graceful));
        },
        assert_good,
    );
}

#[test]
fn an_idle_shard_helps_a_loaded_one() {
    let helped = std::cell::Cell::new(0);
    each(
        |plan| {
            plan.shards = vec![2];
            // Hundreds of recipients at one site, on the shard of one client.
            plan.sessions.truncate(1);
            let session = &mut plan.sessions[0];
            session.manner = Manner::Pipelined;
            let template = session.messages[0].clone();
            session.messages = (1..=9).map(|token| crowd(&template, token)).collect();
        },
        |outcome| {
            assert_good(outcome);
            helped.set(helped.get() + outcome.world.metrics.iter().map(|metrics| metrics.leases_taken).sum::<u64>());
        },
    );
    assert!(helped.get() > 0, "nobody helped");
}

/// A message to a hundred recipients at one site.
fn crowd(template: &MessagePlan, token: u32) -> MessagePlan {
    let recipient = |n| RecipientPlan { address: format!("r{n}.t{token}@two.test"), notify: None };
    MessagePlan {
        token,
        sender: Some(format!("s.t{token}@senders.test")),
        recipients: (0..100).map(recipient).collect(),
        eight_bit: false,
        utf8: false,
        ..template.clone()
    }
}

/// All mail waits, then the process is killed and a byte flips.
fn with_damage(plan: &mut Plan, damaged: Damaged) {
    for host in 0..plan.geography.hosts.len() {
        plan.windows.push(Window { from: 0, to: 3 * plan.active / 4, trouble: Trouble::Refuses(host) });
    }
    plan.stops.push((plan.active / 2, Stop::Kill));
    plan.damage = Some(damaged);
}

#[test]
fn damaged_content_is_never_sent() {
    each(
        |plan| with_damage(plan, Damaged::Content),
        |outcome| {
            assert_eq!(outcome.world.damaged, 1);
            assert_good(outcome);
            // Whoever meets it first tells: a delivery that wants it, or the spool that moves it.
            let tells = |text: &String| {
                text.contains("cannot be read from the spool") || text.contains("a message's content is damaged")
            };
            let notices = &outcome.world.ledger.notices;
            assert!(notices.iter().any(tells), "seed {}: the operator is told: {notices:?}", outcome.seed);
            assert!(ends(outcome, What::Delivered) > 0);
        },
    );
}

#[test]
fn a_damaged_content_file_is_never_sent_whole() {
    let told = std::cell::Cell::new(0);
    each_of(
        Kind::Large,
        |plan| with_damage(plan, Damaged::File),
        |outcome| {
            assert_good(outcome);
            let unreadable = |text: &&String| text.contains("cannot be read from the spool");
            told.set(told.get() + outcome.world.ledger.notices.iter().filter(unreadable).count());
        },
    );
    assert!(told.get() > 0, "the operator is told, where the content was wanted at all");
}

#[test]
fn a_damaged_record_is_reported_and_the_rest_is_delivered() {
    each(
        |plan| with_damage(plan, Damaged::Record),
        |outcome| {
            assert_eq!(outcome.world.damaged, 1);
            assert!(outcome.world.damage_found > 0, "seed {}: the damage was not seen", outcome.seed);
            let lost: std::collections::BTreeSet<&str> =
                outcome.violations.iter().filter_map(|text| text.split(',').next()).collect();
            let only_lost = outcome.violations.iter().all(|text| text.ends_with("and never ended"));
            assert!(only_lost && lost.len() <= 1, "seed {}: {:?}", outcome.seed, outcome.violations);
        },
    );
}
