//! Time as values. The pure layers are told what time it is and never ask.
//!
//! Two clocks, never mixed: [`Instant`] counts from boot and only goes forwards (timers, deadlines,
//! rates); [`UnixTime`] is the wall clock (headers, records on disk, what people read) and may jump.
//! Reading a clock is for src/io and the simulator alone.

use std::fmt;
use std::time::Duration;

/// A point on the clock that counts from boot, sleep included (CLOCK_BOOTTIME), in nanoseconds.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The start of the clock.
    pub const ZERO: Instant = Instant(0);
    /// Later than any instant that will be seen: "never".
    pub const MAX: Instant = Instant(u64::MAX);

    /// The instant this many nanoseconds after the clock's start.
    pub const fn from_nanos(nanos: u64) -> Instant {
        Instant(nanos)
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Milliseconds since the clock's start, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// This much later; stays at [`Instant::MAX`] instead of wrapping.
    pub const fn after(self, wait: Duration) -> Instant {
        let nanos = wait.as_nanos();
        if nanos > u64::MAX as u128 { Instant::MAX } else { Instant(self.0.saturating_add(nanos as u64)) }
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The wall clock, in milliseconds since 1970-01-01 UTC. May jump either way.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(u64);

impl UnixTime {
    /// The time this many milliseconds after 1970-01-01 UTC.
    pub const fn from_millis(millis: u64) -> UnixTime {
        UnixTime(millis)
    }

    /// Milliseconds since 1970-01-01 UTC.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// This much later, saturating.
    pub const fn after(self, wait: Duration) -> UnixTime {
        let millis = wait.as_millis();
        UnixTime(self.0.saturating_add(if millis > u64::MAX as u128 { u64::MAX } else { millis as u64 }))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub const fn since(self, earlier: UnixTime) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for UnixTime {
    /// RFC 3339 in UTC with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0.min(i64::MAX as u64) as i64) {
            Ok(at) => write!(f, "{at:.3}"),
            Err(_) => write!(f, "{} ms after 1970", self.0),
        }
    }
}

/// Both clocks, read together once per turn of a shard.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For timers and rates.
    pub instant: Instant,
    /// For what people and disks see.
    pub unix: UnixTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_saturate_at_both_ends() {
        assert_eq!(Instant::MAX.after(Duration::from_secs(1)), Instant::MAX);
        assert_eq!(Instant::ZERO.since(Instant::from_nanos(5)), Duration::ZERO);
        assert_eq!(Instant::ZERO.after(Duration::MAX), Instant::MAX);
    }

    #[test]
    fn wall_time_reads_as_rfc_3339() {
        assert_eq!(UnixTime::from_millis(1_790_000_000_123).to_string(), "2026-09-21T14:13:20.123Z");
    }
}
