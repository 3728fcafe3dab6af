//! Figures in words: latencies by percentiles, and what a ledger found.

use crate::ledger::Findings;
use crate::sink::SinkReport;
use crate::source::SourceReport;
use hdrhistogram::Histogram;
use std::fmt;
use std::io::{self, Write};
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

    /// How many times were recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The figures and the curve of the distribution.
    pub fn distribution(&self) -> Distribution {
        let curve = self.0.iter_quantiles(5).map(|step| (step.quantile_iterated_to(), step.value_iterated_to()));
        Distribution {
            count: self.0.len(),
            mean_us: self.0.mean(),
            p50_us: self.percentile_us(50.0),
            p90_us: self.percentile_us(90.0),
            p99_us: self.percentile_us(99.0),
            p999_us: self.percentile_us(99.9),
            max_us: self.0.max(),
            curve: curve.collect(),
        }
    }

    /// Writes the distribution in the text form of HdrHistogram (.hgrm), in milliseconds, which its plotters read.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_hgrm(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
        for step in self.0.iter_quantiles(5) {
            let quantile = step.quantile_iterated_to();
            let value = step.value_iterated_to() as f64 / 1000.0;
            write!(out, "{value:>12.3} {quantile:>2.12} {:>10}", self.0.count_between(0, step.value_iterated_to()))?;
            match quantile < 1.0 {
                true => writeln!(out, " {:>14.2}", 1.0 / (1.0 - quantile))?,
                false => writeln!(out)?,
            }
        }
        let (mean, deviation) = (self.0.mean() / 1000.0, self.0.stdev() / 1000.0);
        writeln!(out, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]")?;
        writeln!(out, "#[Max     = {:>12.3}, Total count    = {:>12}]", self.0.max() as f64 / 1000.0, self.0.len())
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

/// The figures of a distribution of times, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Distribution {
    /// How many times.
    pub count: u64,
    /// Their mean.
    pub mean_us: f64,
    /// Their median.
    pub p50_us: u64,
    /// What 90 of 100 stayed below.
    pub p90_us: u64,
    /// What 99 of 100 stayed below.
    pub p99_us: u64,
    /// What 999 of 1000 stayed below.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
    /// Quantiles, denser towards 1, and their times.
    pub curve: Vec<(f64, u64)>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_tells_the_same_in_all_forms() {
        let mut latency = Latency::default();
        (1..=1000).for_each(|ms| latency.record(Duration::from_millis(ms)));
        let figures = latency.distribution();
        assert_eq!(figures.count, 1000);
        assert!((499_000..=501_500).contains(&figures.p50_us) && (989_000..=991_500).contains(&figures.p99_us));
        assert!(figures.curve.is_sorted() && figures.curve.last().is_some_and(|last| last.0 == 1.0));
        let mut text = Vec::new();
        latency.write_hgrm(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let median = text.lines().find(|line| line.contains(" 0.500000000000 ")).unwrap();
        assert!(median.trim_start().starts_with("500.") && median.contains(" 500 "), "{median}");
        assert!(text.contains("Total count    =         1000]"));
    }
}
