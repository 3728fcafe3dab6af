//! What senders count: sums, latencies, and the course of a run in short intervals.
//!
//! Each thread counts for itself and hands over an interval at a time; nothing is shared while messages are timed.

use crate::report::Latency;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::Duration;

/// Reasons for failures that are kept.
const REASONS_MAX: usize = 32;
/// Points of a course that are kept: beyond, two neighbours become one.
const POINTS_MAX: usize = 4096;
/// The longest latency of an interval that is told from longer ones, in microseconds.
const INTERVAL_LONGEST_US: u64 = 600_000_000;

/// The length of an interval.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// What the senders of a run saw.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Messages begun.
    pub begun: u64,
    /// Messages acknowledged for at least one recipient.
    pub acknowledged: u64,
    /// Their recipients.
    pub recipients: u64,
    /// Octets of their contents.
    pub octets: u64,
    /// Messages that were refused altogether.
    pub refused: u64,
    /// Recipients refused, those of refused messages included.
    pub refused_recipients: u64,
    /// Messages sent whole without a reply: the server may have them or not.
    pub in_doubt: u64,
    /// Messages that were due within the time of the run and were not begun.
    pub unsent: u64,
    /// Connections that were ready for mail.
    pub connections: u64,
    /// Connections that failed or were lost.
    pub lost_connections: u64,
    /// Some of the reasons, each once.
    pub reasons: Vec<String>,
    /// From when a message was due to its final reply. In a closed loop it is due when it is begun.
    pub latency: Latency,
    /// From the first octet of a transaction to its final reply.
    pub service: Latency,
    /// From the start of a connection until it is ready for mail.
    pub connecting: Latency,
    /// Timers for the next due message that went off: at most one for each message, or the source wakes itself for nothing.
    pub due_timers: u64,
    /// CPU time of the threads.
    pub cpu: Duration,
    /// The time of the slowest thread.
    pub elapsed: Duration,
}

impl Tally {
    /// Adds what another thread saw.
    pub fn merge(&mut self, other: &Tally) {
        self.begun += other.begun;
        self.acknowledged += other.acknowledged;
        self.recipients += other.recipients;
        self.octets += other.octets;
        self.refused += other.refused;
        self.refused_recipients += other.refused_recipients;
        self.in_doubt += other.in_doubt;
        self.unsent += other.unsent;
        self.connections += other.connections;
        self.lost_connections += other.lost_connections;
        other.reasons.iter().for_each(|reason| self.note_reason(reason));
        self.latency.merge(&other.latency);
        self.service.merge(&other.service);
        self.connecting.merge(&other.connecting);
        self.due_timers += other.due_timers;
        self.cpu += other.cpu;
        self.elapsed = self.elapsed.max(other.elapsed);
    }

    /// Keeps a reason, if there is room and it is new.
    pub fn note_reason(&mut self, reason: &str) {
        if self.reasons.len() < REASONS_MAX && !self.reasons.iter().any(|known| known == reason) {
            self.reasons.push(reason.to_owned());
        }
    }
}

/// What one thread saw within one interval.
#[derive(Clone, Debug)]
pub struct Interval {
    /// Its number, from the beginning.
    pub number: u64,
    /// Messages begun.
    pub begun: u64,
    /// Messages acknowledged.
    pub acknowledged: u64,
    /// Messages under way at its end.
    pub in_flight: u64,
    /// Latencies from the due time, in microseconds.
    pub latency: Histogram<u32>,
}

impl Interval {
    /// An empty one.
    pub fn new(number: u64) -> Interval {
        // The bounds are constants in order, which is all that can be wrong with them.
        let latency = Histogram::new_with_bounds(1, INTERVAL_LONGEST_US, 2).unwrap_or_else(|_| unreachable!());
        Interval { number, begun: 0, acknowledged: 0, in_flight: 0, latency }
    }
}

/// One point of the course of a run.
#[derive(Copy, Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Point {
    /// The end of the interval, in seconds from the beginning.
    pub at: f64,
    /// How long it is, in seconds.
    pub length: f64,
    /// Messages begun in it.
    pub begun: u64,
    /// Messages acknowledged in it.
    pub acknowledged: u64,
    /// Messages under way at its end.
    pub in_flight: u64,
    /// The median of its latencies, in microseconds; 0 when it has none.
    pub p50_us: u64,
    /// What 99 of 100 stayed below.
    pub p99_us: u64,
    /// What 999 of 1000 stayed below.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
    /// Messages that wait in the relay's queue, where somebody asks for them.
    pub queued: Option<u64>,
}

/// Puts the intervals of several threads together.
#[derive(Debug)]
pub struct Course {
    threads: usize,
    open: BTreeMap<u64, (usize, Interval)>,
    points: Vec<Point>,
}

impl Course {
    /// For so many threads.
    pub fn new(threads: usize) -> Course {
        Course { threads, open: BTreeMap::new(), points: Vec::new() }
    }

    /// Takes an interval of one thread. When all threads have given this one, the point that it makes.
    pub fn take(&mut self, interval: Interval) -> Option<Point> {
        let number = interval.number;
        let given = match self.open.get_mut(&number) {
            None => {
                self.open.insert(number, (1, interval));
                1
            }
            Some((given, sum)) => {
                sum.begun += interval.begun;
                sum.acknowledged += interval.acknowledged;
                sum.in_flight += interval.in_flight;
                // Both have the same bounds, so that nothing can be refused.
                let _ = sum.latency.add(&interval.latency);
                *given += 1;
                *given
            }
        };
        if given < self.threads {
            return None;
        }
        let (_, sum) = self.open.remove(&number)?;
        Some(self.close(&sum))
    }

    fn close(&mut self, sum: &Interval) -> Point {
        let length = INTERVAL.as_secs_f64();
        let point = Point {
            at: (sum.number + 1) as f64 * length,
            length,
            begun: sum.begun,
            acknowledged: sum.acknowledged,
            in_flight: sum.in_flight,
            p50_us: sum.latency.value_at_percentile(50.0),
            p99_us: sum.latency.value_at_percentile(99.0),
            p999_us: sum.latency.value_at_percentile(99.9),
            max_us: sum.latency.max(),
            queued: None,
        };
        self.points.push(point);
        if self.points.len() > POINTS_MAX {
            self.points = self.points.chunks(2).map(join).collect();
        }
        point
    }

    /// Notes how many messages wait in the relay, with the last point.
    pub fn note_queued(&mut self, queued: u64) {
        if let Some(point) = self.points.last_mut() {
            point.queued = Some(queued);
        }
    }

    /// All points; intervals that some thread did not give are closed as they are.
    pub fn finish(mut self) -> Vec<Point> {
        for (_, (_, sum)) in std::mem::take(&mut self.open) {
            self.close(&sum);
        }
        self.points
    }
}

/// One point of two neighbours. Percentiles cannot be joined: the higher one stands, which is on the safe side.
fn join(points: &[Point]) -> Point {
    let mut joined = points[0];
    for point in &points[1..] {
        joined.at = point.at;
        joined.length += point.length;
        joined.begun += point.begun;
        joined.acknowledged += point.acknowledged;
        joined.in_flight = point.in_flight;
        joined.p50_us = joined.p50_us.max(point.p50_us);
        joined.p99_us = joined.p99_us.max(point.p99_us);
        joined.p999_us = joined.p999_us.max(point.p999_us);
        joined.max_us = joined.max_us.max(point.max_us);
        joined.queued = point.queued.or(joined.queued);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(number: u64, acknowledged: u64, us: u64) -> Interval {
        let mut interval = Interval { acknowledged, ..Interval::new(number) };
        interval.latency.saturating_record(us);
        interval
    }

    #[test]
    fn a_point_is_made_when_all_threads_have_given_theirs() {
        let mut course = Course::new(2);
        assert_eq!(course.take(interval(0, 3, 100)), None);
        assert_eq!(course.take(interval(1, 9, 100)), None);
        let point = course.take(interval(0, 4, 900)).unwrap();
        assert_eq!((point.acknowledged, point.at), (7, 0.1));
        assert!(point.max_us >= 900 && point.p50_us < 200);
        assert_eq!(course.finish().len(), 2);
    }

    #[test]
    fn a_long_course_stays_short_and_whole() {
        let mut course = Course::new(1);
        for number in 0..10_000 {
            course.take(interval(number, 1, number));
        }
        let points = course.finish();
        assert!(points.len() <= POINTS_MAX);
        assert_eq!(points.iter().map(|point| point.acknowledged).sum::<u64>(), 10_000);
        assert!(points.is_sorted_by(|a, b| a.at < b.at));
    }
}
