//! Figures in words: latencies by percentiles, and what a ledger found.

use crate::ledger::Findings;
use crate::sink::SinkReport;
use crate::source::SourceReport;
use hdrhistogram::Histogram;
use std::fmt;
use std::time::Duration;

/// The longest latency that is told from longer ones, in microseconds: an hour.
const LONGEST_US: u64 = 3_600_000_000;

/// A distribution of times, kept in microseconds to three digits.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Latency {
        Latency(Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are constants in order"))
    }
}

impl Latency {
    /// Counts one time.
    pub fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    /// Adds another distribution.
    pub fn merge(&mut self, other: &Latency) {
        // Both have the same bounds, so that nothing can be refused.
        let _ = self.0.add(&other.0);
    }

    /// The time that so many of a hundred stay below, in microseconds; 0 if none was recorded.
    pub fn percentile_us(&self, percentile: f64) -> u64 {
        self.0.value_at_percentile(percentile)
    }

    /// The distribution as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "count": self.0.len(),
            "p50_us": self.percentile_us(50.0),
            "p90_us": self.percentile_us(90.0),
            "p99_us": self.percentile_us(99.0),
            "p999_us": self.percentile_us(99.9),
            "max_us": self.0.max(),
        })
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, percentile) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)] {
            write!(f, "{name} {:.3} ms, ", self.percentile_us(percentile) as f64 / 1000.0)?;
        }
        write!(f, "max {:.3} ms", self.0.max() as f64 / 1000.0)
    }
}

/// All figures of one run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// From the first connection to the last.
    pub elapsed: Duration,
    /// What was sent.
    pub source: Option<SourceReport>,
    /// What came.
    pub sink: Option<SinkReport>,
    /// The comparison, where both ran in one process.
    pub findings: Option<Findings>,
}

impl Summary {
    /// The figures as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let seconds = self.elapsed.as_secs_f64();
        serde_json::json!({
            "seconds": seconds,
            "source": self.source.as_ref().map(|source| serde_json::json!({
                "acknowledged": source.acknowledged,
                "per_second": source.acknowledged as f64 / seconds,
                "octets": source.octets,
                "refused_recipients": source.refused_recipients,
                "in_doubt": source.in_doubt,
                "lost_connections": source.lost_connections,
                "transaction": source.transaction.to_json(),
            })),
            "sink": self.sink.as_ref().map(|sink| serde_json::json!({
                "connections": sink.connections,
                "messages": sink.messages,
                "recipients": sink.recipients,
                "octets": sink.octets,
                "refused_recipients": sink.refused_recipients,
                "reports": sink.reports,
            })),
            "findings": self.findings.as_ref().map(|findings| serde_json::json!({
                "acknowledged": findings.acknowledged,
                "recipients": findings.recipients,
                "arrived": findings.arrived,
                "unacknowledged": findings.unacknowledged,
                "notified": findings.notified,
                "lost": findings.lost.len(),
                "repeated": findings.repeats(),
                "damaged": findings.damaged.len(),
            })),
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        if let Some(source) = &self.source {
            let rate = source.acknowledged as f64 / seconds;
            writeln!(f, "sent: {} messages acknowledged in {seconds:.2} s, {rate:.0} per second", source.acknowledged)?;
            writeln!(f, "transaction: {}", source.transaction)?;
            writeln!(
                f,
                "refused recipients: {}; in doubt: {}; lost connections: {}",
                source.refused_recipients, source.in_doubt, source.lost_connections
            )?;
            for reason in &source.reasons {
                writeln!(f, "  {reason}")?;
            }
        }
        if let Some(sink) = &self.sink {
            writeln!(
                f,
                "came: {} messages for {} recipients over {} connections; {} reports; {} recipients refused",
                sink.messages, sink.recipients, sink.connections, sink.reports, sink.refused_recipients
            )?;
        }
        if let Some(findings) = &self.findings {
            writeln!(f, "{findings}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} messages acknowledged for {} recipients; {} arrived ({} without acknowledgement), {} senders notified; \
             lost {}, repeated {} (notices {}), damaged {}, strange {}",
            self.acknowledged,
            self.recipients,
            self.arrived,
            self.unacknowledged,
            self.notified,
            self.lost.len(),
            self.repeats(),
            self.notice_repeats(),
            self.damaged.len(),
            self.strange.len()
        )
    }
}
