//! The figures that each shard keeps about itself, and how those of several shards are added up.
//!
//! Values only: a shard counts in plain fields, without atomics, and hands out a copy when asked
//! ([`AdminRequest::Metrics`](crate::shard::message::AdminRequest)). Names and text form for Prometheus are in
//! src/control/metrics_text.rs. Nothing here can fail: counters wrap after centuries, histograms saturate.

use crate::policy::admission::Refusal;
use crate::reply::class::{Meaning, ReplyClass};
use foldhash::HashMap;
use hdrhistogram::Histogram;

/// The longest time a histogram tells apart, in microseconds: one hour. Longer ones count as this.
pub const LONGEST_US: u64 = 3_600_000_000;

/// A histogram of times in microseconds, from 1 us to [`LONGEST_US`], to two significant figures.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Times {
    /// An empty one.
    pub fn new() -> Times {
        // The bounds are constants that hdrhistogram accepts; a test makes one.
        Times(Histogram::new_with_bounds(1, LONGEST_US, 2).expect("the constant bounds of the histogram are in order"))
    }

    /// Counts one time, in microseconds; below 1 counts as 1, above [`LONGEST_US`] as that.
    pub fn saturating_record(&mut self, micros: u64) {
        self.0.saturating_record(micros.max(1));
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Times) {
        // Both have the same bounds, so that nothing can be out of range.
        let _ = self.0.add(&other.0);
    }

    /// How many were counted.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The time below which this share (0 to 1) of all lies, in microseconds.
    pub fn quantile_us(&self, share: f64) -> u64 {
        if self.is_empty() { 0 } else { self.0.value_at_quantile(share) }
    }

    /// For each bound in microseconds, in rising order: how many times were at or below it; and the sum of all, in
    /// microseconds. A value within two significant figures of a bound may count on either side of it.
    pub fn cumulative(&self, bounds_us: &[u64]) -> (Vec<u64>, u64) {
        let mut counts = vec![0u64; bounds_us.len()];
        let mut sum = 0u64;
        for step in self.0.iter_recorded() {
            let value = self.0.median_equivalent(step.value_iterated_to());
            let count = step.count_since_last_iteration();
            sum = sum.saturating_add(value.saturating_mul(count));
            let first = bounds_us.partition_point(|&bound| bound < value);
            if let Some(slot) = counts.get_mut(first) {
                *slot += count;
            }
        }
        let mut below = 0;
        for slot in &mut counts {
            below += *slot;
            *slot = below;
        }
        (counts, sum)
    }
}

impl Default for Times {
    fn default() -> Times {
        Times::new()
    }
}

/// Recipients that are not done, by what they wait for, and the messages they belong to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueDepth {
    /// Messages with at least one recipient that is not done.
    pub messages: u64,
    /// Recipients about to be routed.
    pub unrouted: u64,
    /// Recipients whose domain is being looked up.
    pub resolving: u64,
    /// Recipients that wait for their time.
    pub scheduled: u64,
    /// Recipients that wait for a connection.
    pub ready: u64,
    /// Recipients in a transaction.
    pub in_flight: u64,
    /// Recipients that an operator holds.
    pub held: u64,
}

impl QueueDepth {
    /// All recipients that are not done.
    pub fn recipients(&self) -> u64 {
        self.unrouted + self.resolving + self.scheduled + self.ready + self.in_flight + self.held
    }

    fn add(&mut self, other: &QueueDepth) {
        self.messages += other.messages;
        self.unrouted += other.unrouted;
        self.resolving += other.resolving;
        self.scheduled += other.scheduled;
        self.ready += other.ready;
        self.in_flight += other.in_flight;
        self.held += other.held;
    }
}

/// What one shard has counted since its start, and its gauges as of now.
#[derive(Clone, Debug, Default)]
pub struct ShardMetrics {
    /// Whose figures these are; after a merge, of the first.
    pub shard: u8,
    /// Incoming sessions begun.
    pub sessions_total: u64,
    /// Of these, those that were refused, by [`Refusal::index`].
    pub refused_connections: [u64; Refusal::NAMES.len()],
    /// Incoming sessions open now.
    pub sessions_open: u64,
    /// Messages made durable and acknowledged.
    pub messages_received: u64,
    /// Octets read from clients.
    pub bytes_received: u64,
    /// Recipients of the messages received.
    pub recipients_received: u64,
    /// Commands and messages refused.
    pub rejected: u64,
    /// Logins that succeeded.
    pub logins: u64,
    /// Logins that failed.
    pub failed_logins: u64,
    /// Errors of strangers that were answered later.
    pub delayed_replies: u64,
    /// Messages signed.
    pub signed: u64,
    /// Messages that content filters let in.
    pub filtered_passed: u64,
    /// Messages that content filters rejected.
    pub filtered_rejected: u64,
    /// Messages that content filters put off.
    pub filtered_deferred: u64,
    /// Messages that content filters want held.
    pub filtered_held: u64,
    /// Times that a content filter gave no answer.
    pub filter_failures: u64,
    /// Recipients delivered.
    pub delivered: u64,
    /// Attempts that ended in a deferral, by recipient.
    pub deferred: u64,
    /// Recipients that failed for good.
    pub bounced: u64,
    /// Recipients whose time ran out.
    pub expired: u64,
    /// Of the deferrals, those with a reply of this class, by [`ReplyClass::index`].
    pub deferred_by_class: [u64; ReplyClass::COUNT],
    /// Of the recipients that failed for good or whose time ran out, those with a last reply of this class.
    pub failed_by_class: [u64; ReplyClass::COUNT],
    /// Recipients to whom nothing was sent.
    pub suppressed: u64,
    /// Recipients deleted by an operator.
    pub deleted: u64,
    /// Delivery status notifications queued.
    pub dsn: u64,
    /// Outgoing connections open now.
    pub outgoing_open: u64,
    /// Outgoing connections begun.
    pub outgoing_total: u64,
    /// Outgoing connections that could not be made.
    pub connect_failures: u64,
    /// Recipient groups lent to other shards.
    pub leases_sent: u64,
    /// Recipient groups taken over from other shards.
    pub leases_taken: u64,
    /// Batches written to the spool.
    pub batches: u64,
    /// Batches that were synced.
    pub syncs: u64,
    /// Records appended to the spool.
    pub records: u64,
    /// Batches that could not be made durable.
    pub sync_failures: u64,
    /// Reports and events dropped because the control thread was behind.
    pub dropped_events: u64,
    /// Segments of this shard's log that hold something.
    pub segments: u64,
    /// Prepared segments in reserve.
    pub spare_segments: u64,
    /// Octets of the segments that hold something.
    pub spool_octets: u64,
    /// Octets of committed content kept in memory for its first attempt.
    pub retained_octets: u64,
    /// Octets of incoming content in memory.
    pub content_octets: u64,
    /// What waits.
    pub queue: QueueDepth,
    /// Ready recipient groups of each site that has any.
    pub queue_by_site: Vec<(Box<str>, u64)>,
    /// From the end of the content to the 250.
    pub commit_us: Times,
    /// From the 250 to the first attempt.
    pub queue_us: Times,
    /// One attempt: from MAIL to the last reply.
    pub attempt_us: Times,
    /// From the 250 to the delivery of a recipient.
    pub end_to_end_us: Times,
    /// One sync of the spool.
    pub sync_us: Times,
    /// By how much a shard's heartbeat came late.
    pub loop_lag_us: Times,
}

impl ShardMetrics {
    /// Nothing counted yet.
    pub fn new(shard: u8) -> ShardMetrics {
        ShardMetrics { shard, ..ShardMetrics::default() }
    }

    /// Counts what the reply meant that a recipient waits for, or ended with.
    pub fn count_class(&mut self, meaning: Option<Meaning>, ended: bool) {
        let Some(Meaning { class, .. }) = meaning else { return };
        let counts = if ended { &mut self.failed_by_class } else { &mut self.deferred_by_class };
        counts[class.index()] += 1;
    }

    /// Adds the figures of another shard.
    pub fn merge(&mut self, other: &ShardMetrics) {
        // A destructuring without `..`, so that a new field cannot be forgotten here.
        let ShardMetrics {
            shard: _,
            sessions_total,
            refused_connections,
            sessions_open,
            messages_received,
            bytes_received,
            recipients_received,
            rejected,
            logins,
            failed_logins,
            delayed_replies,
            signed,
            filtered_passed,
            filtered_rejected,
            filtered_deferred,
            filtered_held,
            filter_failures,
            delivered,
            deferred,
            bounced,
            expired,
            deferred_by_class,
            failed_by_class,
            suppressed,
            deleted,
            dsn,
            outgoing_open,
            outgoing_total,
            connect_failures,
            leases_sent,
            leases_taken,
            batches,
            syncs,
            records,
            sync_failures,
            dropped_events,
            segments,
            spare_segments,
            spool_octets,
            retained_octets,
            content_octets,
            queue,
            queue_by_site,
            commit_us,
            queue_us,
            attempt_us,
            end_to_end_us,
            sync_us,
            loop_lag_us,
        } = other;
        self.sessions_total += sessions_total;
        for (sum, refused) in self.refused_connections.iter_mut().zip(refused_connections) {
            *sum += refused;
        }
        self.sessions_open += sessions_open;
        self.messages_received += messages_received;
        self.bytes_received += bytes_received;
        self.recipients_received += recipients_received;
        self.rejected += rejected;
        self.logins += logins;
        self.failed_logins += failed_logins;
        self.delayed_replies += delayed_replies;
        self.signed += signed;
        self.filtered_passed += filtered_passed;
        self.filtered_rejected += filtered_rejected;
        self.filtered_deferred += filtered_deferred;
        self.filtered_held += filtered_held;
        self.filter_failures += filter_failures;
        self.delivered += delivered;
        self.deferred += deferred;
        self.bounced += bounced;
        self.expired += expired;
        for (sums, others) in
            [(&mut self.deferred_by_class, deferred_by_class), (&mut self.failed_by_class, failed_by_class)]
        {
            for (sum, other) in sums.iter_mut().zip(others) {
                *sum += other;
            }
        }
        self.suppressed += suppressed;
        self.deleted += deleted;
        self.dsn += dsn;
        self.outgoing_open += outgoing_open;
        self.outgoing_total += outgoing_total;
        self.connect_failures += connect_failures;
        self.leases_sent += leases_sent;
        self.leases_taken += leases_taken;
        self.batches += batches;
        self.syncs += syncs;
        self.records += records;
        self.sync_failures += sync_failures;
        self.dropped_events += dropped_events;
        self.segments += segments;
        self.spare_segments += spare_segments;
        self.spool_octets += spool_octets;
        self.retained_octets += retained_octets;
        self.content_octets += content_octets;
        self.queue.add(queue);
        // There may be a hundred thousand of them.
        let places: HashMap<Box<str>, usize> =
            self.queue_by_site.iter().enumerate().map(|(place, (name, _))| (name.clone(), place)).collect();
        for (site, ready) in queue_by_site {
            match places.get(site).and_then(|&place| self.queue_by_site.get_mut(place)) {
                Some((_, sum)) => *sum += ready,
                None => self.queue_by_site.push((site.clone(), *ready)),
            }
        }
        self.commit_us.add(commit_us);
        self.queue_us.add(queue_us);
        self.attempt_us.add(attempt_us);
        self.end_to_end_us.add(end_to_end_us);
        self.sync_us.add(sync_us);
        self.loop_lag_us.add(loop_lag_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::class::BounceKind;

    #[test]
    fn figures_of_shards_add_up() {
        let mut first = ShardMetrics::new(0);
        first.delivered = 3;
        first.queue.ready = 2;
        first.refused_connections[2] = 5;
        first.queue_by_site = vec![("a".into(), 1)];
        let meaning = Some(Meaning { class: ReplyClass::Greylisted, kind: BounceKind::Soft });
        first.count_class(meaning, false);
        first.count_class(None, true);
        first.commit_us.saturating_record(500);
        let mut second = ShardMetrics::new(1);
        second.delivered = 4;
        second.queue.held = 5;
        second.count_class(meaning, false);
        second.count_class(meaning, true);
        second.refused_connections[2] = 6;
        second.queue_by_site = vec![("b".into(), 7), ("a".into(), 2)];
        second.commit_us.saturating_record(2_000_000);
        first.merge(&second);
        assert_eq!((first.shard, first.delivered), (0, 7));
        assert_eq!(first.refused_connections[..4], [0, 0, 11, 0]);
        let place = ReplyClass::Greylisted.index();
        assert_eq!((first.deferred_by_class[place], first.failed_by_class[place]), (2, 1));
        assert_eq!(first.failed_by_class.iter().sum::<u64>(), 1);
        assert_eq!(first.queue.recipients(), 7);
        assert_eq!(first.queue_by_site, vec![("a".into(), 3), ("b".into(), 7)]);
        assert_eq!(first.commit_us.len(), 2);
    }

    #[test]
    fn buckets_are_cumulative_and_everything_is_counted_within_bounds() {
        let mut times = Times::new();
        for micros in [0, 90, 900, 9_000, u64::MAX] {
            times.saturating_record(micros);
        }
        let (counts, sum) = times.cumulative(&[100, 1_000, 10_000]);
        assert_eq!(counts, [2, 3, 4]);
        assert_eq!(times.len(), 5);
        assert!((LONGEST_US * 98 / 100..=LONGEST_US * 102 / 100).contains(&sum), "{sum}");
        assert_eq!(Times::new().quantile_us(0.5), 0);
    }
}
