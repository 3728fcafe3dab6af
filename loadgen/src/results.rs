//! The results of a run: what a report is made of, and what is kept as JSON to be compared with another run.
//!
//! Fields are only ever added; a file of a version that is not known is refused.

mod waiting;

use crate::hold_up::HoldUps;
use crate::ledger::Findings;
use crate::report::Distribution;
use crate::send::tally::{Point, Tally};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;
pub use waiting::WaitingFigures;

/// The version of the form.
const FORM: u32 = 1;

/// Everything that is known of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The version of this form.
    pub form: u32,
    /// What the run is called.
    pub label: String,
    /// What it is about, where it is a profile.
    #[serde(default)]
    pub about: String,
    /// The command that repeats it.
    pub command: String,
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// From the first message to the last reply, in seconds.
    pub seconds: f64,
    /// What was sent.
    pub sent: Sent,
    /// The course of the run.
    pub points: Vec<Point>,
    /// What a destination counted, by name.
    #[serde(default)]
    pub sink: BTreeMap<String, u64>,
    /// What the ledger found, where both sides were there to be compared.
    pub ledger: Option<LedgerFigures>,
    /// What the relay under test cost.
    pub relay: Option<RelayFigures>,
    /// What its latency is held against, where the load was half of what it takes.
    #[serde(default)]
    pub half: Option<HalfFigures>,
    /// What many waiting recipients cost it, where the run is about them.
    #[serde(default)]
    pub waiting: Option<WaitingFigures>,
}

/// What was sent, and how long it took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sent {
    /// Messages begun.
    pub begun: u64,
    /// Messages acknowledged for at least one recipient.
    pub acknowledged: u64,
    /// Messages acknowledged a second.
    pub per_second: f64,
    /// Their recipients.
    pub recipients: u64,
    /// Octets of their contents.
    pub octets: u64,
    /// Messages refused altogether.
    pub refused: u64,
    /// Recipients refused.
    pub refused_recipients: u64,
    /// Messages sent whole without a reply.
    pub in_doubt: u64,
    /// Messages that were due and not begun.
    pub unsent: u64,
    /// Connections that were ready for mail.
    pub connections: u64,
    /// Connections that failed or were lost.
    pub lost_connections: u64,
    /// CPU time of the source for each acknowledged message, in microseconds.
    pub cpu_us_per_message: f64,
    /// Some of the reasons for refusals and losses.
    pub reasons: Vec<String>,
    /// From when a message was due to its final reply.
    pub latency: Distribution,
    /// From the first octet of a transaction to its final reply.
    pub service: Distribution,
    /// From the start of a connection until it is ready for mail.
    pub connecting: Distribution,
}

/// What a ledger found, in numbers.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerFigures {
    /// Messages acknowledged.
    pub acknowledged: u64,
    /// Their recipients.
    pub recipients: u64,
    /// Recipients that arrived, each counted once.
    pub arrived: u64,
    /// Those whose message was not acknowledged.
    pub unacknowledged: u64,
    /// Failed recipients whose sender was told.
    pub notified: u64,
    /// Acknowledged and gone.
    pub lost: u64,
    /// Arrivals beyond the first.
    pub repeated: u64,
    /// Contents that are not what was sent.
    pub damaged: u64,
    /// What belongs to no message.
    pub strange: u64,
}

impl LedgerFigures {
    /// In numbers what was found.
    pub fn of(findings: &Findings) -> LedgerFigures {
        LedgerFigures {
            acknowledged: findings.acknowledged,
            recipients: findings.recipients,
            arrived: findings.arrived,
            unacknowledged: findings.unacknowledged,
            notified: findings.notified,
            lost: findings.lost.len() as u64,
            repeated: (findings.repeats() + findings.notice_repeats()) as u64,
            damaged: findings.damaged.len() as u64,
            strange: findings.strange.len() as u64,
        }
    }

    /// Nothing lost, repeated or damaged, and nothing that belongs to no message.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.repeated == 0 && self.damaged == 0 && self.strange == 0
    }
}

/// What the relay under test cost, and how long its parts of the run took.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RelayFigures {
    /// CPU time for each message, in microseconds, from the first message to the end of the last delivery.
    pub cpu_us_per_message: f64,
    /// The same for delivery alone, where the relay was started again for that; 0 otherwise.
    #[serde(default)]
    pub drain_cpu_us_per_message: f64,
    /// Memory of its own (RssAnon) before the run, in KiB.
    pub memory_before_kib: u64,
    /// The most that was seen during the run, by a look at each tenth of a second.
    pub memory_most_kib: u64,
    /// When everything had been delivered.
    pub memory_after_kib: u64,
    /// From the last acknowledgement, or the second start, to the last arrival, in seconds.
    pub drain_seconds: f64,
    /// Recipients that arrived a second, from the first message, or the second start, to the last arrival.
    pub arrived_per_second: f64,
}

/// What latencies at half of the capacity are held against.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HalfFigures {
    /// One block written to the spool's disk and made durable while nothing else ran.
    pub bare_sync: Distribution,
    /// What the machine's cores were held up before anything ran.
    #[serde(default)]
    pub hold_ups: HoldUps,
    /// Messages that were acknowledged a second in a closed loop, with delivery.
    pub capacity_per_second: f64,
    /// Messages that became due a second in the open loop: half of that.
    pub offered_per_second: f64,
    /// First attempts in the open loop.
    pub first_attempts: u64,
    /// What half of the times from the 250 to the first attempt stayed below, in microseconds: the upper bound of the bucket
    /// in which the relay counted it, by whole milliseconds. None when that has no bound.
    pub first_attempt_p50_below_us: Option<u64>,
    /// The same for 99 of 100.
    pub first_attempt_p99_below_us: Option<u64>,
}

impl HalfFigures {
    /// What 99 of 100 acknowledgements are to stay below, in microseconds: a message may just miss a sync, wait for its end
    /// and need the next, and a millisecond is for everything else.
    pub fn bound_us(&self) -> u64 {
        2 * self.bare_sync.p99_us + 1000
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, latency: &Distribution) -> fmt::Result {
        let below =
            |bound: Option<u64>| bound.map_or("without bound".to_owned(), |us| format!("{} ms", us as f64 / 1e3));
        writeln!(f, "  bare sync     {}", self.bare_sync)?;
        writeln!(f, "  machine       {}", self.hold_ups)?;
        writeln!(
            f,
            "  half load     {:.0} per second due, half of {:.0} in a closed loop",
            self.offered_per_second, self.capacity_per_second
        )?;
        writeln!(
            f,
            "  first attempt after the 250: p50 at most {}, p99 at most {} (upper bounds of buckets, by whole ms)",
            below(self.first_attempt_p50_below_us),
            below(self.first_attempt_p99_below_us)
        )?;
        let verdict = if latency.p99_us <= self.bound_us() { "kept" } else { "not kept" };
        writeln!(
            f,
            "  bound         p99 to 250 {:.3} ms: at most twice the bare sync's p99 and 1 ms, that is {:.3} ms: {verdict}",
            latency.p99_us as f64 / 1e3,
            self.bound_us() as f64 / 1e3
        )
    }
}

impl Results {
    /// The results of a source.
    pub fn new(label: &str, command: &str, tally: &Tally, points: Vec<Point>) -> Results {
        let seconds = tally.elapsed.as_secs_f64();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Results {
            form: FORM,
            label: label.to_owned(),
            command: command.to_owned(),
            began: now.saturating_sub(tally.elapsed).as_secs(),
            seconds,
            sent: Sent::of(tally),
            points,
            ..Results::default()
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or is not of this form; names the file.
    pub fn read(path: &Path) -> io::Result<Results> {
        let fail = |text: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {text}", path.display()));
        let text = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
        let results: Results = serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
        if results.form == FORM { Ok(results) } else { Err(fail(format!("form {} is not known", results.form))) }
    }

    /// The results as JSON.
    ///
    /// # Errors
    /// When a figure is none (not a number), which no run gives.
    pub fn to_json(&self) -> io::Result<String> {
        serde_json::to_string_pretty(self).map_err(io::Error::other)
    }
}

impl Sent {
    fn of(tally: &Tally) -> Sent {
        let per = |sum: Duration| sum.as_secs_f64() * 1e6 / tally.acknowledged.max(1) as f64;
        let seconds = tally.elapsed.as_secs_f64();
        Sent {
            begun: tally.begun,
            acknowledged: tally.acknowledged,
            per_second: if seconds > 0.0 { tally.acknowledged as f64 / seconds } else { 0.0 },
            recipients: tally.recipients,
            octets: tally.octets,
            refused: tally.refused,
            refused_recipients: tally.refused_recipients,
            in_doubt: tally.in_doubt,
            unsent: tally.unsent,
            connections: tally.connections,
            lost_connections: tally.lost_connections,
            cpu_us_per_message: per(tally.cpu),
            reasons: tally.reasons.clone(),
            latency: tally.latency.distribution(),
            service: tally.service.distribution(),
            connecting: tally.connecting.distribution(),
        }
    }
}

/// The final table.
impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sent = &self.sent;
        writeln!(f, "{}", self.label)?;
        writeln!(
            f,
            "  sent          {} of {} messages in {:.2} s, {:.0} per second, {:.1} MB/s",
            sent.acknowledged,
            sent.begun,
            self.seconds,
            sent.per_second,
            sent.octets as f64 / 1e6 / self.seconds.max(1e-9)
        )?;
        writeln!(f, "  source        {:.1} us of CPU per message", sent.cpu_us_per_message)?;
        for (name, one) in
            [("latency", &sent.latency), ("transaction", &sent.service), ("connecting", &sent.connecting)]
        {
            if one.count > 0 {
                writeln!(f, "  {name:<13} {one}")?;
            }
        }
        let troubles = [
            ("refused", sent.refused),
            ("recipients refused", sent.refused_recipients),
            ("in doubt", sent.in_doubt),
            ("due and not sent", sent.unsent),
            ("connections lost", sent.lost_connections),
        ];
        let troubles: Vec<String> =
            troubles.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name} {count}")).collect();
        if !troubles.is_empty() {
            writeln!(f, "  but           {}", troubles.join(", "))?;
        }
        for reason in &sent.reasons {
            writeln!(f, "                {reason}")?;
        }
        let shown: Vec<String> =
            self.sink.iter().filter(|(_, count)| **count > 0).map(|(name, count)| format!("{name} {count}")).collect();
        if !shown.is_empty() {
            writeln!(f, "  sink          {}", shown.join(", "))?;
        }
        if let Some(relay) = &self.relay {
            let memory = [relay.memory_before_kib, relay.memory_most_kib, relay.memory_after_kib].map(|kib| kib / 1024);
            writeln!(
                f,
                "  relay         {:.1} us of CPU per message, own memory {} MiB before, {} at most, {} after",
                relay.cpu_us_per_message, memory[0], memory[1], memory[2]
            )?;
            write!(f, "  delivery      {:.0} arrived per second", relay.arrived_per_second)?;
            match relay.drain_cpu_us_per_message > 0.0 {
                true => writeln!(
                    f,
                    ", {:.1} us of CPU per message, all of it {:.2} s after the start",
                    relay.drain_cpu_us_per_message, relay.drain_seconds
                )?,
                false => writeln!(f, ", the last {:.2} s after the last 250", relay.drain_seconds)?,
            }
        }
        if let Some(half) = &self.half {
            half.write(f, &sent.latency)?;
        }
        if let Some(waiting) = &self.waiting {
            write!(f, "{waiting}")?;
        }
        if let Some(ledger) = &self.ledger {
            writeln!(f, "  ledger        {ledger}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us as f64 / 1000.0;
        write!(
            f,
            "p50 {:.3} ms, p90 {:.3}, p99 {:.3}, p99.9 {:.3}, max {:.3}",
            ms(self.p50_us),
            ms(self.p90_us),
            ms(self.p99_us),
            ms(self.p999_us),
            ms(self.max_us)
        )
    }
}

impl fmt::Display for LedgerFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} messages for {} recipients acknowledged, {} arrived ({} without acknowledgement), {} senders told; \
             lost {}, repeated {}, damaged {}, strange {}",
            self.acknowledged,
            self.recipients,
            self.arrived,
            self.unacknowledged,
            self.notified,
            self.lost,
            self.repeated,
            self.damaged,
            self.strange
        )
    }
}
