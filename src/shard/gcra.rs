//! A rate that all shards keep to together: the generic cell rate algorithm (ITU-T I.371) on one atomic word.

use crate::clock::Instant;
use crate::shard::settings::Rate;
use std::sync::atomic::{AtomicU64, Ordering};

/// When the next of something may come. The rate itself is given with each call, since it may change meanwhile.
///
/// There is no credit at the beginning: what was done before this start is not known, so the first use is taken as if the
/// whole burst had just been spent.
#[derive(Debug, Default)]
pub struct Gcra {
    /// The theoretical arrival time, in nanoseconds; 0 before the first use.
    next_free: AtomicU64,
}

impl Gcra {
    /// Takes one, or says when to ask again.
    pub fn take(&self, rate: Rate, now: Instant) -> Result<(), Instant> {
        let (step, tolerance) = spacing(rate);
        let now = now.as_nanos();
        let taken = self.next_free.fetch_update(Ordering::AcqRel, Ordering::Acquire, |next_free| {
            if next_free == 0 {
                return Some(now + step + tolerance);
            }
            let start = next_free.max(now);
            (start - now <= tolerance).then_some(start + step)
        });
        match taken {
            Ok(_) => Ok(()),
            Err(next_free) => Err(Instant::from_nanos(next_free - tolerance)),
        }
    }

    /// When the next may be taken, if not now. Takes nothing.
    pub fn next(&self, rate: Rate, now: Instant) -> Option<Instant> {
        let (_, tolerance) = spacing(rate);
        let next_free = self.next_free.load(Ordering::Acquire);
        let at = Instant::from_nanos(next_free.saturating_sub(tolerance));
        (at > now).then_some(at)
    }

    /// Gives back one that was taken at this rate and not used.
    pub fn give_back(&self, rate: Rate) {
        let (step, _) = spacing(rate);
        self.next_free.fetch_sub(step, Ordering::AcqRel);
    }
}

/// Nanoseconds between two, and how far ahead of them a burst may run.
fn spacing(rate: Rate) -> (u64, u64) {
    let period = rate.period.as_nanos().min(u128::from(u64::MAX / 2)) as u64;
    let step = (period / u64::from(rate.count.max(1))).max(1);
    (step, step.saturating_mul(u64::from(rate.burst.saturating_sub(1))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn uses_are_spaced_and_begin_without_credit() {
        let rate = Rate { count: 10, period: Duration::from_secs(1), burst: 3 };
        let gcra = Gcra::default();
        let start = Instant::from_nanos(1_000_000_000);
        assert_eq!(gcra.take(rate, start), Ok(()));
        let at = gcra.take(rate, start).unwrap_err();
        assert_eq!(at, start.after(Duration::from_millis(100)));
        assert_eq!(gcra.next(rate, start), Some(at));
        assert_eq!(gcra.next(rate, at), None);
        assert_eq!(gcra.take(rate, at), Ok(()));
        // A long pause earns the burst and no more.
        let later = start.after(Duration::from_secs(60));
        let taken = (0..10).filter(|_| gcra.take(rate, later).is_ok()).count();
        assert_eq!(taken, 3);
    }

    #[test]
    fn in_any_second_no_more_than_the_rate_and_the_burst() {
        let rate = Rate { count: 50, period: Duration::from_secs(1), burst: 5 };
        let gcra = Gcra::default();
        let mut begun: Vec<u64> = Vec::new();
        for at in (1..5_000_000_000u64).step_by(777_777) {
            if gcra.take(rate, Instant::from_nanos(at)).is_ok() {
                begun.push(at);
            }
        }
        for (first, at) in begun.iter().enumerate() {
            let within = begun[first..].iter().take_while(|&&other| other - at < 1_000_000_000).count();
            assert!(within <= 55, "{within} in a second");
        }
        assert!(begun.len() >= 240);
    }

    #[test]
    fn what_was_not_used_comes_back() {
        let rate = Rate { count: 1, period: Duration::from_secs(1), burst: 1 };
        let gcra = Gcra::default();
        let now = Instant::from_nanos(5);
        assert_eq!(gcra.take(rate, now), Ok(()));
        assert!(gcra.take(rate, now).is_err());
        gcra.give_back(rate);
        assert_eq!(gcra.take(rate, now), Ok(()));
    }
}
