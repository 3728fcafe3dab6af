//! When a deferred recipient is tried again, and when its time has run out.
//!
//! Pure arithmetic on attempts and ages; the queue decides when to ask. An age is always measured on the clock
//! that counts from boot, so a jump of the wall clock makes nobody older; what a restart finds on disk is as old
//! as the wall clock says, and therefore nothing expires before it was tried again.

use crate::limits;
use std::time::Duration;

/// The rule by which waits grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrySchedule {
    /// The wait after the first failed attempt.
    pub first: Duration,
    /// Each further wait is this many times the one before.
    pub factor: u32,
    /// No wait is longer than this, jitter aside.
    pub max: Duration,
    /// Each wait is lengthened or shortened by up to this many percent, so that what failed together does not
    /// come back together. At most 100.
    pub jitter_percent: u8,
    /// A recipient that fails an attempt at this age or above expires (RFC 5321 section 4.5.4.1: 4 to 5 days).
    pub lifetime: Duration,
    /// The sender is told, once, that a recipient still waits at this age; never when none.
    pub delay_warning: Option<Duration>,
}

impl Default for RetrySchedule {
    /// 20 minutes, doubling to 4 hours, within a tenth; 5 days; a warning after 4 hours.
    fn default() -> RetrySchedule {
        RetrySchedule {
            first: Duration::from_secs(20 * 60),
            factor: 2,
            max: Duration::from_secs(4 * 60 * 60),
            jitter_percent: 10,
            lifetime: Duration::from_secs(5 * 24 * 60 * 60),
            delay_warning: Some(Duration::from_secs(4 * 60 * 60)),
        }
    }
}

impl RetrySchedule {
    /// The same wait before every retry, as `--retry SECONDS` asks for; the rest as by default.
    pub fn every(wait: Duration) -> RetrySchedule {
        RetrySchedule { first: wait, factor: 1, max: wait, jitter_percent: 0, ..RetrySchedule::default() }
    }

    /// The wait after so many failed attempts, before jitter. At least [`limits::RETRY_WAIT_MIN`].
    fn plain_wait(&self, attempts: u16) -> Duration {
        let mut wait = self.first.min(self.max);
        for _ in 1..attempts {
            if wait >= self.max || self.factor <= 1 {
                break;
            }
            wait = wait.saturating_mul(self.factor).min(self.max);
        }
        wait.max(limits::RETRY_WAIT_MIN)
    }

    /// The wait after so many failed attempts. `roll` is any number, and the same one gives the same wait.
    pub fn wait(&self, attempts: u16, roll: u64) -> Duration {
        let wait = self.plain_wait(attempts);
        let millis = wait.as_millis().min(u128::from(u64::MAX / 256)) as u64;
        let spread = millis * u64::from(self.jitter_percent.min(100)) / 100;
        let offset = if spread == 0 { 0 } else { mix(roll) % (2 * spread + 1) };
        Duration::from_millis(millis - spread + offset).max(limits::RETRY_WAIT_MIN)
    }

    /// The longest wait after so many failed attempts: a due time read from disk is never further ahead than
    /// this, whatever the wall clock did meanwhile.
    pub fn wait_max(&self, attempts: u16) -> Duration {
        let wait = self.plain_wait(attempts);
        wait.saturating_add(wait.saturating_mul(u32::from(self.jitter_percent.min(100))) / 100)
    }

    /// Whether this age is past the lifetime.
    pub fn is_over(&self, age: Duration) -> bool {
        age >= self.lifetime
    }
}

/// Spreads a number's bits (the finaliser of MurmurHash3 with Stafford's constants), for jitter only.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60;

    #[test]
    fn waits_double_up_to_four_hours() {
        let schedule = RetrySchedule { jitter_percent: 0, ..RetrySchedule::default() };
        let minutes: Vec<u64> = (0..8).map(|attempts| schedule.wait(attempts, 1).as_secs() / MINUTE).collect();
        assert_eq!(minutes, [20, 20, 40, 80, 160, 240, 240, 240]);
        assert_eq!(schedule.wait(u16::MAX, 1).as_secs() / MINUTE, 240);
    }

    #[test]
    fn jitter_stays_within_a_tenth_and_uses_all_of_it() {
        let schedule = RetrySchedule::default();
        let waits: Vec<u64> = (0..10_000).map(|roll| schedule.wait(1, roll).as_secs()).collect();
        let (least, most) = (*waits.iter().min().unwrap(), *waits.iter().max().unwrap());
        assert!((1_080..1_085).contains(&least), "{least}");
        assert!((1_315..=1_320).contains(&most), "{most}");
        assert_eq!(schedule.wait(1, 7), schedule.wait(1, 7));
        assert_eq!(schedule.wait_max(1).as_secs(), 1_320);
    }

    #[test]
    fn odd_schedules_do_no_harm() {
        let every = RetrySchedule::every(Duration::from_secs(3));
        assert_eq!((every.wait(1, 9), every.wait(50, 9)), (Duration::from_secs(3), Duration::from_secs(3)));
        let none = RetrySchedule::every(Duration::ZERO);
        assert_eq!(none.wait(1, 9), limits::RETRY_WAIT_MIN);
        let endless = RetrySchedule { first: Duration::MAX, max: Duration::MAX, ..RetrySchedule::default() };
        assert!(endless.wait(9, 9) > Duration::from_secs(1 << 40));
        assert!(endless.is_over(Duration::from_secs(5 * 86_400)) && !endless.is_over(Duration::from_secs(431_999)));
    }
}
