//! A hierarchical timing wheel: millions of due times with O(1) insertion, cancellation and expiry.
//!
//! G. Varghese and A. Lauck, "Hashed and Hierarchical Timing Wheels", SOSP 1987, scheme 7: five levels of 64
//! slots, each slot of a level as wide as the whole level below. An entry lies in the level of the highest group
//! of six bits in which its tick differs from the present one, and moves down when its slot begins. A bitmap per
//! level finds the next slot without a search. Entries with one tick come out in the order in which they came in
//! from one level, and the whole is deterministic.
//!
//! Ticks are tenths of a second since boot in 32 bits, good for 13 years of uptime; a due time further ahead than
//! three years fires early, and whoever set it looks at his own due time and sets it again. It reads no clock and
//! does not fail.

use super::slab::{Linked, List, NONE, Place, Slab};
use crate::clock::Instant;
use std::time::Duration;

/// The wheel's resolution. Nothing fires early, and nothing later than this after its due time.
pub const TICK: Duration = Duration::from_millis(100);

const TICK_NANOS: u64 = TICK.as_nanos() as u64;
const LEVELS: usize = 5;
/// Bits of a tick per level.
const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
/// One slot of the top level less than a whole turn: an entry never lands in the slot that is being left.
const REACH: u32 = (1 << (BITS * LEVELS as u32)) - (1 << (BITS * (LEVELS as u32 - 1))) - 1;

/// The tick in which this instant falls due: rounded up.
pub fn tick_at(instant: Instant) -> u32 {
    instant.as_nanos().div_ceil(TICK_NANOS).min(u64::from(u32::MAX)) as u32
}

/// The last tick that has begun at this instant: rounded down.
pub fn tick_reached(instant: Instant) -> u32 {
    (instant.as_nanos() / TICK_NANOS).min(u64::from(u32::MAX)) as u32
}

/// When a tick begins.
pub fn tick_instant(tick: u32) -> Instant {
    Instant::from_nanos(u64::from(tick) * TICK_NANOS)
}

/// Names an entry until it fires or is cancelled.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct TimerKey(pub u32);

impl TimerKey {
    /// No entry.
    pub const NONE: TimerKey = TimerKey(NONE);

    /// Whether there is no entry.
    pub fn is_none(self) -> bool {
        self == TimerKey::NONE
    }
}

/// An entry: with a `u32` as payload, 16 bytes, links included.
#[derive(Debug, Default)]
struct Entry<T> {
    tick: u32,
    payload: T,
    link: u32,
    back: u32,
}

const _: () = assert!(size_of::<Entry<u32>>() == 16);

impl<T: Default> Place for Entry<T> {
    fn link(&self) -> u32 {
        self.link
    }
    fn set_link(&mut self, to: u32) {
        self.link = to;
    }
}

impl<T: Default> Linked for Entry<T> {
    fn back(&self) -> u32 {
        self.back
    }
    fn set_back(&mut self, to: u32) {
        self.back = to;
    }
}

#[derive(Debug)]
struct Level {
    /// Which slots have members.
    occupied: u64,
    slots: [List; SLOTS],
}

/// The wheel. The payload names what is due.
#[derive(Debug)]
pub struct TimerWheel<T> {
    /// The tick up to which everything was moved to `due`.
    now: u32,
    /// What has fallen due and was not yet taken.
    due: List,
    levels: [Level; LEVELS],
    entries: Slab<Entry<T>>,
}

impl<T: Copy + Default> Default for TimerWheel<T> {
    fn default() -> TimerWheel<T> {
        TimerWheel::new()
    }
}

impl<T: Copy + Default> TimerWheel<T> {
    /// An empty wheel at the clock's start.
    pub fn new() -> TimerWheel<T> {
        let level = || Level { occupied: 0, slots: [List::EMPTY; SLOTS] };
        TimerWheel { now: 0, due: List::EMPTY, levels: std::array::from_fn(|_| level()), entries: Slab::new() }
    }

    /// How many entries wait, those due included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sets a timer. One whose time has passed is due at once.
    pub fn insert(&mut self, tick: u32, payload: T) -> TimerKey {
        let tick = tick.min(self.now.saturating_add(REACH));
        let entry = self.entries.insert(Entry { tick, payload, link: NONE, back: NONE });
        self.place(entry, tick);
        TimerKey(entry)
    }

    /// Takes a timer back. The key must name an entry that has neither fired nor been cancelled.
    pub fn cancel(&mut self, key: TimerKey) {
        let tick = self.entries[key.0].tick;
        if tick <= self.now {
            self.due.unlink(&mut self.entries, key.0);
        } else {
            let (level, slot) = position(self.now, tick);
            let list = &mut self.levels[level].slots[slot];
            list.unlink(&mut self.entries, key.0);
            if list.is_empty() {
                self.levels[level].occupied &= !(1 << slot);
            }
        }
        self.entries.remove(key.0);
    }

    /// The tick of a waiting entry.
    pub fn tick(&self, key: TimerKey) -> u32 {
        self.entries[key.0].tick
    }

    /// The next entry that is due at `now`, which is thereby gone. `now` must not go back.
    pub fn poll(&mut self, now: Instant) -> Option<T> {
        let until = tick_reached(now).max(self.now);
        while self.due.is_empty() {
            match self.next_slot() {
                Some((level, slot, start)) if start <= until => self.open_slot(level, slot, start),
                _ => {
                    self.now = until;
                    return None;
                }
            }
        }
        let entry = self.due.pop_front(&mut self.entries)?;
        Some(self.entries.remove(entry).payload)
    }

    /// When to poll next. Never later than the first due time; it may be earlier, at most once per level for one
    /// entry, and polling then brings it nearer.
    pub fn next_due(&self) -> Option<Instant> {
        if !self.due.is_empty() {
            return Some(tick_instant(self.now));
        }
        self.next_slot().map(|(_, _, start)| tick_instant(start))
    }

    fn place(&mut self, entry: u32, tick: u32) {
        if tick <= self.now {
            self.due.push_back(&mut self.entries, entry);
            return;
        }
        let (level, slot) = position(self.now, tick);
        self.levels[level].slots[slot].push_back(&mut self.entries, entry);
        self.levels[level].occupied |= 1 << slot;
    }

    /// The slot that begins next. All of a lower level lies before the next slot of any higher one.
    fn next_slot(&self) -> Option<(usize, usize, u32)> {
        let (number, level) = self.levels.iter().enumerate().find(|(_, level)| level.occupied != 0)?;
        let shift = BITS * number as u32;
        let turn = self.now >> shift;
        let ahead = level.occupied.rotate_right((turn + 1) % SLOTS as u32).trailing_zeros() + 1;
        let start = u64::from(turn + ahead) << shift;
        let slot = (turn + ahead) as usize % SLOTS;
        Some((number, slot, start.min(u64::from(u32::MAX)) as u32))
    }

    /// Goes to the slot's beginning: its entries move down, or are due.
    fn open_slot(&mut self, level: usize, slot: usize, start: u32) {
        self.now = start;
        self.levels[level].occupied &= !(1 << slot);
        let mut list = std::mem::take(&mut self.levels[level].slots[slot]);
        if level == 0 {
            self.due.append(&mut self.entries, list);
            return;
        }
        while let Some(entry) = list.pop_front(&mut self.entries) {
            let tick = self.entries[entry].tick;
            self.place(entry, tick);
        }
    }
}

/// Level and slot of a tick that lies ahead.
fn position(now: u32, tick: u32) -> (usize, usize) {
    let highest = 31 - (now ^ tick).leading_zeros();
    let level = (highest / BITS).min(LEVELS as u32 - 1);
    (level as usize, (tick >> (BITS * level)) as usize % SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn at(tick: u32) -> Instant {
        tick_instant(tick)
    }

    #[test]
    fn ticks_round_so_that_nothing_fires_early() {
        assert_eq!(tick_at(Instant::from_nanos(1)), 1);
        assert_eq!(tick_reached(Instant::from_nanos(TICK_NANOS - 1)), 0);
        assert_eq!(tick_at(Instant::MAX), u32::MAX);
    }

    #[test]
    fn what_is_due_comes_out_in_order() {
        let mut wheel = TimerWheel::new();
        for tick in [70_000, 3, 64, 4_096, 3, 63, 65] {
            wheel.insert(tick, tick);
        }
        assert_eq!(wheel.next_due(), Some(at(3)));
        assert_eq!(wheel.poll(at(2)), None);
        let out: Vec<u32> = std::iter::from_fn(|| wheel.poll(at(5_000))).collect();
        assert_eq!(out, [3, 3, 63, 64, 65, 4_096]);
        assert!(wheel.next_due().unwrap() <= at(70_000));
        assert_eq!(wheel.poll(at(80_000)), Some(70_000));
        assert!(wheel.is_empty() && wheel.next_due().is_none());
    }

    #[test]
    fn years_ahead_fires_early_and_not_never() {
        let mut wheel = TimerWheel::new();
        wheel.insert(u32::MAX, 1u32);
        assert_eq!(wheel.poll(at(REACH - 1)), None);
        assert_eq!(wheel.poll(at(REACH)), Some(1));
        // Near the end of the ticks everything is due at the last one.
        let mut wheel = TimerWheel::new();
        assert_eq!(wheel.poll(at(u32::MAX - 10)), None);
        wheel.insert(u32::MAX, 2u32);
        assert_eq!(wheel.poll(at(u32::MAX)), Some(2));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Insert(u32),
        Cancel(usize),
        Jump(u32),
        JumpToNext,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let distance = prop_oneof![0..100u32, 0..10_000u32, 0..40_000_000u32, 0..u32::MAX];
        let act = prop_oneof![
            4 => distance.prop_map(Act::Insert),
            1 => any::<usize>().prop_map(Act::Cancel),
            2 => prop_oneof![0..70u32, 0..5_000u32, 0..20_000_000u32].prop_map(Act::Jump),
            2 => Just(Act::JumpToNext),
        ];
        prop::collection::vec(act, 1..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Against a sorted map: everything fires once, in its tick, and next_due is never late.
        #[test]
        fn agrees_with_a_sorted_map(acts in acts()) {
            let mut wheel = TimerWheel::new();
            let mut shadow: BTreeMap<(u32, u32), TimerKey> = BTreeMap::new();
            let (mut now, mut name) = (0u32, 0u32);
            for act in acts {
                match act {
                    Act::Insert(ahead) => {
                        let tick = now.saturating_add(ahead).min(now.saturating_add(REACH));
                        shadow.insert((tick, name), wheel.insert(now.saturating_add(ahead), name));
                        name += 1;
                    }
                    Act::Cancel(which) if !shadow.is_empty() => {
                        let (&entry, &key) = shadow.iter().nth(which % shadow.len()).unwrap();
                        shadow.remove(&entry);
                        prop_assert_eq!(wheel.tick(key), entry.0);
                        wheel.cancel(key);
                    }
                    Act::Cancel(_) => {}
                    Act::Jump(ahead) => now = now.saturating_add(ahead),
                    Act::JumpToNext => now = wheel.next_due().map_or(now, |due| tick_reached(due).max(now)),
                }
                let mut fired = Vec::new();
                while let Some(payload) = wheel.poll(at(now)) {
                    fired.push(payload);
                }
                let due: Vec<(u32, u32)> = shadow.range(..=(now, u32::MAX)).map(|(&entry, _)| entry).collect();
                let ticks: BTreeMap<u32, u32> = due.iter().map(|&(tick, name)| (name, tick)).collect();
                prop_assert!(fired.is_sorted_by_key(|name| ticks.get(name).copied()), "{:?} of {:?}", fired, due);
                fired.sort_unstable();
                prop_assert!(fired.iter().eq(ticks.keys()), "{:?} of {:?}", fired, due);
                shadow.retain(|entry, _| !due.contains(entry));
                match shadow.first_key_value() {
                    None => prop_assert!(wheel.next_due().is_none()),
                    Some((&(tick, _), _)) => {
                        let next = wheel.next_due().unwrap();
                        prop_assert!(next <= at(tick) && next > at(now));
                    }
                }
                prop_assert_eq!(wheel.len(), shadow.len());
            }
        }
    }
}
