//! Reads the machine's clocks into values. Only src/io does so: everything above is told what time it is.
//!
//! Reading costs one call without a system call (vDSO): the wall clock is kept as its distance from the boot clock and
//! measured anew by [`Clock::refresh`], which the shard's heartbeat calls. So a jump of the wall clock is seen within one
//! heartbeat. It cannot fail: the two clocks exist on every Linux that has io_uring.

use crate::clock::{Instant, Now, UnixTime};
use std::cell::Cell;

/// The clocks of one thread.
#[derive(Debug)]
pub struct Clock {
    /// The wall clock minus the boot clock, in nanoseconds.
    offset: Cell<i128>,
}

impl Clock {
    /// A clock that knows the present distance between both clocks.
    pub fn new() -> Clock {
        let clock = Clock { offset: Cell::new(0) };
        clock.refresh();
        clock
    }

    /// Measures the distance between the clocks again, after which [`now`](Clock::now) follows a jump of the wall clock.
    pub fn refresh(&self) {
        let boot = read(libc::CLOCK_BOOTTIME);
        self.offset.set(i128::from(read(libc::CLOCK_REALTIME)) - i128::from(boot));
    }

    /// What time it is.
    pub fn now(&self) -> Now {
        let boot = read(libc::CLOCK_BOOTTIME);
        let unix = (i128::from(boot) + self.offset.get()).max(0) / 1_000_000;
        Now { instant: Instant::from_nanos(boot), unix: UnixTime::from_millis(u64::try_from(unix).unwrap_or(u64::MAX)) }
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

/// What time it is, read from both clocks: for threads that keep no [`Clock`].
pub fn now() -> Now {
    Clock::new().now()
}

/// One clock in nanoseconds since its start.
fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that the call fills in; nothing else is touched.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    debug_assert_eq!(result, 0, "both clocks are there since Linux 2.6.39");
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_go_forwards_and_agree_with_the_system() {
        let clock = Clock::new();
        let first = clock.now();
        let second = clock.now();
        assert!(second.instant >= first.instant);
        let system = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
        assert!(system.abs_diff(second.unix.as_millis()) < 60_000, "the wall clock is far off");
    }
}
