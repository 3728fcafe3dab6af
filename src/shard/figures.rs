//! What a shard tells of itself in figures.

use crate::metrics::{QueueDepth, ShardMetrics};
use crate::shard::core::Core;

impl Core {
    /// The shard's figures as of now.
    pub(super) fn gather_metrics(&self) -> ShardMetrics {
        let mut metrics = (*self.metrics).clone();
        let counts = self.queue.counts();
        let usage = self.log.usage();
        metrics.sessions_open = self.connections.inbound() as u64;
        metrics.outgoing_open = self.connections.outbound() as u64;
        metrics.queue = QueueDepth {
            messages: counts.messages,
            unrouted: counts.unrouted,
            resolving: counts.parked,
            scheduled: counts.scheduled,
            ready: counts.ready,
            in_flight: counts.in_flight,
            held: counts.held,
        };
        metrics.segments = usage.segments as u64;
        metrics.spare_segments = usage.spares as u64;
        metrics.spool_octets = usage.bytes;
        metrics.batches = usage.batches;
        metrics.syncs = usage.syncs;
        metrics.records = usage.records;
        metrics.retained_octets = self.retained.octets() as u64;
        metrics.content_octets = self.content_octets as u64;
        metrics.queue_by_site = self
            .sites
            .iter()
            .map(|(site, known)| (known.permits.name.clone(), self.queue.ready_count(site) as u64))
            .filter(|(_, ready)| *ready > 0)
            .collect();
        metrics
    }
}
