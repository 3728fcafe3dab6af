//! What a tenant or a credential has sent in the present minute, hour and day, and how much more of it may be counted before
//! the disk knows: counts of hours and days outlive the process, so they are reserved on disk in blocks before they are used.
//!
//! Exact over all shards: the counts are atomics that every snapshot of the identities shares. A shard only compares with what
//! is reserved; who reserves is the control thread (src/control/reservations.rs). After a crash all that was reserved counts
//! as used, so that no limit is ever passed, and at most the rest of a block is lost.

use crate::clock::UnixTime;
use crate::limits::QUOTA_BLOCKS;
use crate::policy::quota::{Amount, Counted, Quotas, Window, spent};
use crate::reply::Reply;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is counted on disk, too: by kind and length of time.
const KEPT: [(Counted, Window); 4] = [
    (Counted::Messages, Window::Hour),
    (Counted::Messages, Window::Day),
    (Counted::Recipients, Window::Hour),
    (Counted::Recipients, Window::Day),
];

/// A count together with the number of its window, so that both change as one.
#[derive(Debug, Default)]
struct Cell(AtomicU64);

impl Cell {
    /// The count, if it is of this window; else nothing was counted in it yet.
    fn of(&self, number: u32) -> u32 {
        counted(self.0.load(Ordering::Acquire), number)
    }

    fn set(&self, number: u32, count: u32) {
        self.0.store(packed(number, count), Ordering::Release);
    }

    /// Makes the count of this window what `next` says; nothing when it says none.
    fn change(&self, number: u32, next: impl Fn(u32) -> Option<u32>) -> Option<u32> {
        let changed = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |value| {
            next(counted(value, number)).map(|count| packed(number, count))
        });
        changed.ok().and_then(|before| next(counted(before, number)))
    }

    /// Takes so many from the count, if it is still that of this window.
    fn give_back(&self, number: u32, count: u32) {
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |value| {
            ((value >> 32) as u32 == number).then(|| packed(number, (value as u32).saturating_sub(count)))
        });
    }
}

fn packed(number: u32, count: u32) -> u64 {
    u64::from(number) << 32 | u64::from(count)
}

fn counted(value: u64, number: u32) -> u32 {
    if (value >> 32) as u32 == number { value as u32 } else { 0 }
}

/// A count that the disk knows an upper bound of.
#[derive(Debug, Default)]
struct Kept {
    used: Cell,
    /// What is on disk: never passed.
    reserved: Cell,
    /// Up to where a message needed more than was reserved.
    wanted: Cell,
}

/// What was sent.
#[derive(Debug, Default)]
pub struct Usage {
    minutes: [Cell; 2],
    kept: [Kept; KEPT.len()],
    /// Somebody was asked to reserve more, and has not begun yet.
    asked: AtomicBool,
}

/// What is on disk of one usage: for each of the counts that are kept the number of its window, and how much of it may have
/// been used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record([(u32, u32); KEPT.len()]);

/// How counting went.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It counts.
    Yes,
    /// It counts, and more should be reserved.
    Low,
    /// Nothing was counted: more must be reserved first.
    Unreserved,
}

impl Usage {
    /// Whether so many more would be within the quotas now.
    ///
    /// # Errors
    /// 450 4.7.1 with the time to try again, when they would not.
    pub fn check(&self, quotas: &Quotas, counted: Counted, more: u32, now: UnixTime) -> Result<(), Reply> {
        for amount in quotas.of(counted) {
            let (number, left_s) = amount.window.at(now);
            if self.used(counted, amount.window).of(number).saturating_add(more) > amount.count {
                return Err(spent(counted, amount, left_s));
            }
        }
        Ok(())
    }

    /// Counts so many, or nothing at all.
    ///
    /// # Errors
    /// As [`Usage::check`].
    pub fn take(&self, quotas: &Quotas, counted: Counted, more: u32, now: UnixTime) -> Result<Taken, Reply> {
        let mut taken = Taken::Yes;
        for (done, amount) in quotas.of(counted).iter().enumerate() {
            let one = self.take_one(amount, counted, more, now);
            if !matches!(one, Ok(Taken::Yes | Taken::Low)) {
                quotas.of(counted)[..done].iter().for_each(|amount| self.give_back(amount, counted, more, now));
                return one;
            }
            if one == Ok(Taken::Low) {
                taken = Taken::Low;
            }
        }
        Ok(taken)
    }

    fn take_one(&self, amount: &Amount, counted: Counted, more: u32, now: UnixTime) -> Result<Taken, Reply> {
        let (number, left_s) = amount.window.at(now);
        let sum_of = |used: u32| used.checked_add(more).filter(|sum| *sum <= amount.count);
        let Some(kept) = kept_place(counted, amount.window).map(|place| &self.kept[place]) else {
            let sum = self.used(counted, amount.window).change(number, sum_of);
            return sum.map(|_| Taken::Yes).ok_or_else(|| spent(counted, amount, left_s));
        };
        let reserved = kept.reserved.of(number);
        if let Some(sum) = kept.used.change(number, |used| sum_of(used).filter(|sum| *sum <= reserved)) {
            let low = reserved < amount.count && reserved - sum < block(amount) / 2;
            return Ok(if low { Taken::Low } else { Taken::Yes });
        }
        let sum = sum_of(kept.used.of(number)).ok_or_else(|| spent(counted, amount, left_s))?;
        kept.wanted.change(number, |wanted| Some(wanted.max(sum)));
        Ok(Taken::Unreserved)
    }

    /// What was taken at that time and not used after all.
    pub fn undo(&self, quotas: &Quotas, counted: Counted, more: u32, taken: UnixTime) {
        quotas.of(counted).iter().for_each(|amount| self.give_back(amount, counted, more, taken));
    }

    fn give_back(&self, amount: &Amount, counted: Counted, more: u32, taken: UnixTime) {
        self.used(counted, amount.window).give_back(amount.window.at(taken).0, more);
    }

    fn used(&self, counted: Counted, window: Window) -> &Cell {
        match kept_place(counted, window) {
            Some(place) => &self.kept[place].used,
            None => &self.minutes[usize::from(counted == Counted::Recipients)],
        }
    }

    /// Whether more is to be asked for by whoever calls this: once until somebody has begun.
    pub fn should_ask(&self) -> bool {
        !self.asked.swap(true, Ordering::AcqRel)
    }

    /// Whoever reserves begins. Gives what is to be on disk before more may be counted; none when enough is.
    pub fn reservation(&self, quotas: &Quotas, now: UnixTime) -> Option<Record> {
        self.asked.store(false, Ordering::Release);
        let (mut record, mut more) = (Record::default(), false);
        for (place, ((counted, window), kept)) in KEPT.iter().zip(&self.kept).enumerate() {
            let number = window.at(now).0;
            let reserved = kept.reserved.of(number);
            record.0[place] = (number, reserved);
            // Where there are several of one length the smallest holds.
            let amounts = quotas.of(*counted).iter().filter(|amount| amount.window == *window);
            let Some(amount) = amounts.min_by_key(|amount| amount.count) else { continue };
            let needed = kept.used.of(number).max(kept.wanted.of(number));
            if reserved < amount.count && reserved < needed.saturating_add(block(amount) / 2 + 1) {
                record.0[place].1 = needed.saturating_add(block(amount)).min(amount.count);
                more = true;
            }
        }
        more.then_some(record)
    }

    /// This is on disk now.
    pub fn reserved(&self, record: &Record) {
        for (kept, (number, count)) in self.kept.iter().zip(record.0) {
            kept.reserved.set(number, count);
        }
    }

    /// What was on disk when the process started: all of it counts as used.
    pub fn restore(&self, record: &Record) {
        for (kept, (number, count)) in self.kept.iter().zip(record.0) {
            kept.used.set(number, count);
            kept.reserved.set(number, count);
        }
    }

    /// What was really used, when nothing is counted any more: the rest of the blocks is given back. None when there is nothing
    /// to remember.
    pub fn settled(&self, now: UnixTime) -> Option<Record> {
        let mut record = Record::default();
        for (place, ((_, window), kept)) in KEPT.iter().zip(&self.kept).enumerate() {
            let number = window.at(now).0;
            record.0[place] = (number, kept.used.of(number));
        }
        record.0.iter().any(|(_, count)| *count > 0).then_some(record)
    }
}

/// Where a count is kept; none of a minute, which no restart is shorter than.
fn kept_place(counted: Counted, window: Window) -> Option<usize> {
    KEPT.iter().position(|kept| *kept == (counted, window))
}

/// How much of a quota is reserved at a time.
fn block(amount: &Amount) -> u32 {
    amount.count.div_ceil(QUOTA_BLOCKS)
}

/// The usage of a tenant or credential, which each snapshot of it shares; as values they are equal whatever was sent.
#[derive(Clone, Debug, Default)]
pub struct SharedUsage(pub Arc<Usage>);

impl PartialEq for SharedUsage {
    fn eq(&self, _other: &SharedUsage) -> bool {
        true
    }
}

impl Eq for SharedUsage {}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(messages: &[&str], recipients: &[&str]) -> Quotas {
        let amounts = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Quotas { messages: amounts(messages), recipients: amounts(recipients), ..Quotas::default() }
    }

    const fn at(seconds: u64) -> UnixTime {
        UnixTime::from_millis(seconds * 1_000)
    }

    /// Counts, and reserves what is asked for as the control thread does.
    fn take(usage: &Usage, quotas: &Quotas, counted: Counted, more: u32, now: UnixTime) -> Result<(), String> {
        loop {
            match usage.take(quotas, counted, more, now).map_err(|reply| reply.to_string())? {
                Taken::Yes | Taken::Low => return Ok(()),
                Taken::Unreserved => usage.reserved(&usage.reservation(quotas, now).expect("there is more to reserve")),
            }
        }
    }

    #[test]
    fn counts_end_with_their_window() {
        let quotas = quotas(&["2/minute", "3/hour"], &[]);
        let usage = Usage::default();
        let take = |seconds| take(&usage, &quotas, Counted::Messages, 1, at(seconds));
        assert_eq!((take(3_600), take(3_659)), (Ok(()), Ok(())));
        let refused = take(3_659).unwrap_err();
        assert!(
            refused.starts_with("450 4.7.1 ") && refused.ends_with("(2/minute): try again in 1 seconds"),
            "{refused}"
        );
        // What the minute refused did not count for the hour.
        assert_eq!(take(3_660), Ok(()));
        let refused = take(3_661).unwrap_err();
        assert!(refused.ends_with("(3/hour): try again in 59 minutes"), "{refused}");
        assert_eq!(take(7_200), Ok(()));
        // A clock that goes back begins a window of its own; nobody is refused for ever.
        assert_eq!(take(3_600), Ok(()));
    }

    #[test]
    fn all_or_nothing() {
        let quotas = quotas(&[], &["10/day", "5/minute"]);
        let usage = Usage::default();
        let take = |count, seconds| take(&usage, &quotas, Counted::Recipients, count, at(seconds)).is_ok();
        assert!(usage.check(&quotas, Counted::Recipients, 5, at(0)).is_ok());
        assert!(usage.check(&quotas, Counted::Recipients, 6, at(0)).is_err());
        assert!(take(5, 0) && !take(1, 1) && take(4, 60));
        usage.undo(&quotas, Counted::Recipients, 4, at(60));
        assert!(take(5, 60) && !take(1, 120));
        assert!(usage.take(&quotas, Counted::Messages, u32::MAX, at(0)).is_ok(), "what has no quota is not counted");
    }

    #[test]
    fn what_is_given_back_late_is_of_its_own_window() {
        let quotas = quotas(&["2/hour"], &[]);
        let usage = Usage::default();
        let take = |seconds| take(&usage, &quotas, Counted::Messages, 1, at(seconds)).is_ok();
        assert!(take(3_599) && take(3_600) && take(3_601) && !take(3_602));
        usage.undo(&quotas, Counted::Messages, 1, at(3_599));
        assert!(!take(3_603), "the hour before has nothing to give to this one");
        usage.undo(&quotas, Counted::Messages, 1, at(3_600));
        assert!(take(3_604) && !take(3_605));
    }

    #[test]
    fn nothing_is_counted_that_is_not_reserved() {
        let quotas = quotas(&["160/hour"], &["1000/day"]);
        let usage = Usage::default();
        let take = |more| usage.take(&quotas, Counted::Messages, more, at(5)).unwrap();
        assert_eq!(take(1), Taken::Unreserved);
        assert!(usage.should_ask() && !usage.should_ask(), "one question is enough");
        let record = usage.reservation(&quotas, at(5)).unwrap();
        assert!(usage.should_ask());
        assert_eq!(take(1), Taken::Unreserved, "not before it is on disk");
        usage.reserved(&record);
        // A sixteenth, and what was asked for.
        let took: Vec<Taken> = (0..12).map(|_| take(1)).collect();
        assert_eq!((&took[..6], &took[6..11]), (&[Taken::Yes; 6][..], &[Taken::Low; 5][..]));
        assert_eq!(took[11], Taken::Unreserved);
        usage.reserved(&usage.reservation(&quotas, at(5)).unwrap());
        assert_eq!(usage.reservation(&quotas, at(5)), None, "enough is reserved");
        assert_eq!(take(100), Taken::Unreserved);
        usage.reserved(&usage.reservation(&quotas, at(5)).unwrap());
        assert_eq!(take(100), Taken::Yes, "as much as a message needs");
    }

    #[test]
    fn a_crash_loses_less_than_a_block_and_a_stop_nothing() {
        let quotas = quotas(&["160/hour", "5/minute"], &["320/day"]);
        let sent = |usage: &Usage, counted, now| {
            (0..1000).take_while(|_| take(usage, &quotas, counted, 1, now).is_ok()).count() as u32
        };
        for used in 1..=5 {
            let usage = Usage::default();
            let mut on_disk = Record::default();
            for _ in 0..used {
                while usage.take(&quotas, Counted::Messages, 1, at(5)).unwrap() == Taken::Unreserved {
                    on_disk = usage.reservation(&quotas, at(5)).unwrap();
                    usage.reserved(&on_disk);
                }
            }
            let (crashed, stopped) = (Usage::default(), Usage::default());
            crashed.restore(&on_disk);
            stopped.restore(&usage.settled(at(6)).unwrap());
            let hour =
                |usage: &Usage| (0..60).map(|minute| sent(usage, Counted::Messages, at(minute * 60))).sum::<u32>();
            let left = hour(&crashed);
            assert!((150 - used..160 - used).contains(&left), "{left} after {used}");
            assert_eq!(hour(&stopped), 160 - used);
            assert_eq!(sent(&crashed, Counted::Messages, at(3_600)), 5, "the next hour is whole");
        }
        assert_eq!(Usage::default().settled(at(6)), None);
    }

    #[test]
    fn shards_together_never_pass_a_quota() {
        let quotas = quotas(&["1000/day"], &[]);
        let usage = Usage::default();
        let one = || match usage.take(&quotas, Counted::Messages, 1, at(5)) {
            Ok(Taken::Unreserved) => {
                if let Some(record) = usage.reservation(&quotas, at(5)) {
                    usage.reserved(&record);
                }
                None
            }
            took => Some(took.is_ok()),
        };
        let take = || (0..600).filter(|_| std::iter::repeat_with(one).flatten().next() == Some(true)).count() as u32;
        let taken: u32 = std::thread::scope(|scope| {
            let shards: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            shards.into_iter().map(|shard| shard.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
    }
}
