//! How long the machine keeps a thread from running that does nothing but look at the clock: what no program on it can be
//! faster than. A hypervisor or a thread of the kernel that runs for 9 ms once a second is 1 % of all messages.
//!
//! The idea is jHiccup's (Gil Tene): measure the platform by a thread that has nothing to do.

use crate::engine::cores::keep_on_core;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, Instant};

/// What counts as being held up: less is what a look at the clock and an interrupt may take.
const HELD_UP: Duration = Duration::from_millis(1);

/// How threads that only looked at the clock, one on each core at the same time, were held up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HoldUps {
    /// Cores that were watched.
    pub cores: usize,
    /// How long each of them was.
    pub seconds: f64,
    /// Times that a thread did not run for 1 ms or more, on all cores.
    pub times: u64,
    /// The longest of them, in microseconds.
    pub longest_us: u64,
    /// The part of the time that was lost in them on the core where it was most, 0 to 1.
    pub worst_core_share: f64,
}

/// Watches all cores that this process may use, for so long. They are busy meanwhile.
pub fn watch(time: Duration) -> HoldUps {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let watchers: Vec<_> = (0..cores)
        .map(|core| {
            std::thread::spawn(move || {
                // Where a thread may not be kept on a core it watches the one that it is given.
                let _ = keep_on_core(&[core], 0);
                let mut seen = Seen::new(Instant::now());
                while seen.last.duration_since(seen.begun) < time {
                    seen.look(Instant::now());
                }
                seen
            })
        })
        .collect();
    let mut all = HoldUps { cores, seconds: time.as_secs_f64(), ..HoldUps::default() };
    for seen in watchers.into_iter().filter_map(|watcher| watcher.join().ok()) {
        all.times += seen.times;
        all.longest_us = all.longest_us.max(seen.longest.as_micros() as u64);
        let share = seen.lost.as_secs_f64() / seen.last.duration_since(seen.begun).as_secs_f64().max(1e-9);
        all.worst_core_share = all.worst_core_share.max(share);
    }
    all
}

/// What one thread has seen.
#[derive(Debug)]
struct Seen {
    begun: Instant,
    last: Instant,
    times: u64,
    longest: Duration,
    lost: Duration,
}

impl Seen {
    fn new(now: Instant) -> Seen {
        Seen { begun: now, last: now, times: 0, longest: Duration::ZERO, lost: Duration::ZERO }
    }

    fn look(&mut self, now: Instant) {
        let gap = now.duration_since(self.last);
        self.last = now;
        if gap >= HELD_UP {
            self.times += 1;
            self.longest = self.longest.max(gap);
            self.lost += gap;
        }
    }
}

impl fmt::Display for HoldUps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a thread that only looks at the clock was held up for 1 ms or more {:.1} times per second on {} cores, \
             {:.2} % of the time on the worst, {:.1} ms at most",
            self.times as f64 / self.seconds.max(1e-9),
            self.cores,
            self.worst_core_share * 100.0,
            self.longest_us as f64 / 1e3
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_of_a_millisecond_count_and_shorter_ones_do_not() {
        let start = Instant::now();
        let mut seen = Seen::new(start);
        for us in [10, 900, 1_900, 1_910, 11_910] {
            seen.look(start + Duration::from_micros(us));
        }
        assert_eq!((seen.times, seen.longest), (2, Duration::from_millis(10)));
        assert_eq!(seen.lost, Duration::from_millis(11));
    }

    #[test]
    fn every_core_is_watched() {
        let seen = watch(Duration::from_millis(5));
        assert_eq!(seen.cores, std::thread::available_parallelism().unwrap().get());
        assert!((0.0..=1.0).contains(&seen.worst_core_share), "{seen}");
    }
}
