//! How a site's limits follow what its provider bears: cut by a share when it says that mail comes too fast or over too many
//! connections, raised by small steps while it says nothing (additive increase, multiplicative decrease: Chiu and Jain,
//! "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance in Computer Networks", 1989). Never above what
//! is configured.
//!
//! Replies to what was under way before a cut say nothing about it, so that one cut is made for all of them. The rate at which a
//! cut was needed is remembered: below it the rate comes back fast, and around it slowly, so that it stays near what
//! the provider bears instead of swinging (as CUBIC does, RFC 9438). Shared by all shards: atomics alone, and whoever changes
//! something first is the one who does.

use crate::clock::Instant;
use crate::limits::{ADAPT_CUT_AGAIN, ADAPT_QUIET, ADAPT_RAISE_EVERY, ADAPT_STEP_MAX};
use crate::reply::class::ReplyClass;
use crate::shard::settings::Rate;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The rate is metered over so long.
const METER: u64 = 10_000_000_000;

/// A pace is dropped when the rate has come so many times over the one at which it was cut, in percent.
const FREE_ABOVE: u64 = 150;

/// What a site bears at present.
#[derive(Debug, Default)]
pub struct Adaptive {
    /// Connections at a time; 0 for as many as are configured.
    connections: AtomicU32,
    /// Nanoseconds from one transaction to the next; 0 for no pace.
    step: AtomicU64,
    /// The step at which the last cut was needed.
    knee: AtomicU64,
    /// When anything was last cut, in nanoseconds.
    cut: AtomicU64,
    /// When anything was last raised.
    raised: AtomicU64,
    /// When the provider last complained.
    complained: AtomicU64,
    meter_since: AtomicU64,
    meter_count: AtomicU64,
    /// Nanoseconds from one to the next, as metered last.
    metered: AtomicU64,
}

/// What a site's provider complained about.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// Too many connections.
    Connections,
    /// Too many messages in a time.
    Rate,
}

/// What has changed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// So many connections from now on.
    Connections(u32),
    /// One transaction in this time from now on.
    Pace(Duration),
    /// What is configured holds again.
    Free,
}

impl Complaint {
    /// What a reply of this class complains about, if it is of that kind.
    pub fn of(class: ReplyClass) -> Option<Complaint> {
        match class {
            ReplyClass::ConnectionsExceeded => Some(Complaint::Connections),
            ReplyClass::Throttled => Some(Complaint::Rate),
            _ => None,
        }
    }
}

impl Adaptive {
    /// Connections at a time, of as many as are configured.
    pub fn connections(&self, configured: u32) -> u32 {
        match self.connections.load(Ordering::Acquire) {
            0 => configured,
            fewer => fewer.min(configured),
        }
    }

    /// The rate of transactions, of what is configured.
    pub fn rate(&self, configured: Option<Rate>) -> Option<Rate> {
        let step = self.step.load(Ordering::Acquire);
        if step == 0 {
            return configured;
        }
        let slower =
            configured.filter(|rate| rate.period.as_nanos() / u128::from(rate.count.max(1)) > u128::from(step));
        slower.or(Some(Rate { count: 1, period: Duration::from_nanos(step), burst: 1 }))
    }

    /// Whether anything differs from what is configured.
    pub fn is_cut(&self) -> bool {
        self.step.load(Ordering::Acquire) != 0 || self.connections.load(Ordering::Acquire) != 0
    }

    /// The provider complains, while so many connections are open.
    pub fn complained(&self, about: Complaint, open: u32, now: Instant) -> Option<Change> {
        let now = now.as_nanos();
        self.complained.store(now, Ordering::Release);
        if !is_time(&self.cut, now, ADAPT_CUT_AGAIN) {
            return None;
        }
        if about == Complaint::Connections {
            let present = match self.connections.load(Ordering::Acquire) {
                0 => open,
                fewer => fewer.min(open.max(1)),
            };
            // By a quarter, and by one at least.
            let fewer = present.saturating_sub((present / 4).max(1)).max(1);
            self.connections.store(fewer, Ordering::Release);
            return Some(Change::Connections(fewer));
        }
        let present = self.step.load(Ordering::Acquire).max(self.metered_step(now));
        self.knee.store(present, Ordering::Release);
        // To two thirds of the rate.
        let step = (present + present / 2).min(ADAPT_STEP_MAX.as_nanos() as u64);
        self.step.store(step, Ordering::Release);
        Some(Change::Pace(Duration::from_nanos(step)))
    }

    /// The provider took a message; `configured` is the greatest number of connections.
    pub fn took(&self, configured: u32, now: Instant) -> Option<Change> {
        let now = now.as_nanos();
        self.meter(now);
        if !self.is_cut()
            || now < self.complained.load(Ordering::Acquire).saturating_add(ADAPT_QUIET.as_nanos() as u64)
            || !is_time(&self.raised, now, ADAPT_RAISE_EVERY)
        {
            return None;
        }
        let connections = self.connections.load(Ordering::Acquire);
        if connections != 0 {
            let more = connections + 1;
            self.connections.store(if more >= configured { 0 } else { more }, Ordering::Release);
        }
        let (step, knee) = (self.step.load(Ordering::Acquire), self.knee.load(Ordering::Acquire));
        if step != 0 {
            // A tenth more while well below the rate that was too much, a fiftieth around it.
            let faster = if step > knee + knee / 20 { step - step / 11 } else { step - step / 51 };
            let free = faster.saturating_mul(FREE_ABOVE) < knee.saturating_mul(100);
            self.step.store(if free { 0 } else { faster.max(1) }, Ordering::Release);
        }
        (!self.is_cut()).then_some(Change::Free)
    }

    fn meter(&self, now: u64) {
        let since = self.meter_since.load(Ordering::Acquire);
        let count = self.meter_count.fetch_add(1, Ordering::AcqRel) + 1;
        if since != 0 && now < since.saturating_add(METER) {
            return;
        }
        if self.meter_since.compare_exchange(since, now.max(1), Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.meter_count.store(0, Ordering::Release);
            let step = if since == 0 { 0 } else { (now - since) / count };
            self.metered.store(step, Ordering::Release);
        }
    }

    /// Nanoseconds from one message to the next of late. A second where nothing is known.
    fn metered_step(&self, now: u64) -> u64 {
        let (since, count) = (self.meter_since.load(Ordering::Acquire), self.meter_count.load(Ordering::Acquire));
        let metered = self.metered.load(Ordering::Acquire);
        if metered != 0 {
            return metered;
        }
        if since != 0 && count > 0 { (now - since).max(1) / count } else { 1_000_000_000 }
    }
}

/// Whether so much time has passed since it was done last; the first who asks does it.
fn is_time(last: &AtomicU64, now: u64, wait: Duration) -> bool {
    let done = last.load(Ordering::Acquire);
    let due = done == 0 || now >= done.saturating_add(wait.as_nanos() as u64);
    due && last.compare_exchange(done, now.max(1), Ordering::AcqRel, Ordering::Acquire).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(1_000_000_000 + millis * 1_000_000)
    }

    /// Takes messages evenly, `step` milliseconds apart, and gives the time after it.
    fn run(adaptive: &Adaptive, from: u64, to: u64, step: u64) -> u64 {
        for now in (from..to).step_by(step as usize) {
            adaptive.took(20, at(now));
        }
        to
    }

    #[test]
    fn a_complaint_cuts_once_for_all_that_was_under_way() {
        let adaptive = Adaptive::default();
        let now = run(&adaptive, 0, 30_000, 100);
        assert!(!adaptive.is_cut());
        let Some(Change::Pace(pace)) = adaptive.complained(Complaint::Rate, 5, at(now)) else { panic!("no cut") };
        assert!((148..=152).contains(&pace.as_millis()), "two thirds of ten a second: {pace:?}");
        assert_eq!(adaptive.complained(Complaint::Rate, 5, at(now + 50)), None);
        let again = now + ADAPT_CUT_AGAIN.as_millis() as u64;
        assert!(
            matches!(adaptive.complained(Complaint::Rate, 5, at(again)), Some(Change::Pace(slower)) if slower > pace)
        );
        let configured = Rate { count: 1, period: Duration::from_secs(60), burst: 1 };
        assert_eq!(adaptive.rate(Some(configured)), Some(configured), "what is configured is slower");
        assert_eq!(adaptive.rate(None).map(|rate| rate.count), Some(1));
    }

    #[test]
    fn connections_are_cut_by_a_quarter_and_come_back_one_by_one() {
        let adaptive = Adaptive::default();
        assert_eq!(adaptive.complained(Complaint::Connections, 20, at(0)), Some(Change::Connections(15)));
        assert_eq!((adaptive.connections(20), adaptive.connections(3)), (15, 3));
        let now = run(&adaptive, 1_000, 20_000, 500);
        assert_eq!(adaptive.connections(20), 15, "not so soon after a complaint");
        let now = run(&adaptive, now, now + 30_000, 500);
        let raised = adaptive.connections(20);
        assert!((16..=18).contains(&raised), "{raised}");
        let cut = adaptive.complained(Complaint::Connections, raised, at(now));
        assert!(
            matches!(cut, Some(Change::Connections(fewer)) if fewer < raised),
            "at once, however lately it was raised"
        );
        run(&adaptive, now, now + 200_000, 500);
        assert_eq!((adaptive.connections(20), adaptive.is_cut()), (20, false));
        for _ in 0..20 {
            adaptive.complained(Complaint::Connections, 1, at(900_000));
        }
        assert_eq!(adaptive.connections(20), 1, "never none");
    }

    #[test]
    fn the_rate_comes_back_fast_below_where_it_was_too_much_and_slowly_around_it() {
        let adaptive = Adaptive::default();
        let mut now = run(&adaptive, 0, 30_000, 100);
        adaptive.complained(Complaint::Rate, 5, at(now));
        let step = |adaptive: &Adaptive| adaptive.rate(None).map_or(0, |rate| rate.period.as_millis());
        let mut steps = vec![step(&adaptive)];
        for _ in 0..100 {
            now = run(&adaptive, now, now + 10_000, 1_000);
            steps.push(step(&adaptive));
        }
        let reached = steps.iter().position(|step| *step <= 106).unwrap();
        assert!((4..=12).contains(&reached), "near the old rate within two minutes: {steps:?}");
        let later = steps[reached + 4];
        assert!((90..=104).contains(&later), "and slowly from there: {steps:?}");
        assert!(!adaptive.is_cut(), "free again when nobody complains: {steps:?}");
    }
}
