//! Many waiting recipients: all are accepted, each is tried once and deferred; the relay is stopped and started again; then
//! the destination takes everything and the relay is told to try all of them now.
//!
//! What is told of memory is told while nothing moves. Fails in words, with the relay's own status, when a step does not
//! come on for as long as the patience lasts.

use super::{PATIENCE, Ran, Run, STOP_TIME};
use crate::process::{Usage, proportional_kib};
use crate::receive::rules::{Action, Rule, Subject};
use crate::relay::{Relay, RelayCommand, waiting};
use crate::results::{LedgerFigures, RelayFigures, Results, WaitingFigures};
use crate::send::Sender;
use crate::send::tally::Point;
use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

/// Between the attempts of the relay: longer than the run, so that nothing is due again in it.
pub(super) const RETRY_SECONDS: u64 = 3600;
/// Domains of the full form, each a site. So few that a connection to each, kept for a while, leaves descriptors over where
/// 20,000 files may be open.
pub(super) const DOMAINS: u32 = 100_000;
/// The longest time in which messages are sent.
const SEND_TIME: Duration = Duration::from_secs(3600);
/// The pause between two looks at the relay. Each costs it a walk over its sites and its open files, which are many here, so
/// they are rare; the short form has few.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_QUICK: Duration = Duration::from_millis(50);
/// The longest time without any arrival before the relay is told again to try all. What fails on the way, for want of a
/// descriptor or an answer by DNS, would not be due before [`RETRY_SECONDS`] are over.
const ORDER_PATIENCE: Duration = Duration::from_secs(20);
/// The exit code with which `ringpost queue` says that there was nothing to do.
const NOTHING: i32 = 1;

/// The destination takes nobody for now.
pub(super) fn rules() -> Vec<Rule> {
    vec![Rule { subject: Subject::Any, action: Action::Defer, per_thousand: 1000 }]
}

/// What the relay says of its queue.
struct Queue {
    status: serde_json::Value,
}

impl Queue {
    fn of(relay: &Relay) -> io::Result<Queue> {
        Ok(Queue { status: relay.ask("/v1/status")? })
    }

    fn count(&self, name: &str) -> u64 {
        self.status.get(name).and_then(serde_json::Value::as_u64).unwrap_or_default()
    }

    /// All recipients wait for their time, and nothing is under way.
    fn is_tried(&self, recipients: u64) -> bool {
        let under_way = self.count("ready") + self.count("in_flight") + self.count("routing");
        under_way == 0 && self.count("scheduled") >= recipients
    }

    /// All shards have read the spool, and all messages are there.
    fn is_known(&self, messages: u64) -> bool {
        self.count("recovered") == self.count("shards") && self.count("messages") >= messages
    }
}

impl Run<'_> {
    /// The whole of it. `show` as in [`super::Named::run`].
    pub(super) fn waiting(&self, show: &mut dyn FnMut(&Point, Option<u64>)) -> io::Result<Ran> {
        let quick = self.setting.quick;
        let workload = self.named.workload(self.setting.seed, quick);
        let mut config = self.named.send_config(self.command.listen, &workload.domain, quick)?;
        config.duration = SEND_TIME;
        let relay = self.command.start()?;
        let before = Usage::of(relay.process())?;
        let mut waiting_figures =
            WaitingFigures { pss_before_kib: proportional_kib(relay.process())?, ..WaitingFigures::default() };
        let mut most = before.anonymous_kib;
        let began = Instant::now();
        let mut looked = began;
        let (tally, points) = Sender::start(config, workload, self.record())?.finish(|point| {
            let queued = (looked.elapsed() >= self.look()).then(|| waiting(relay.admin())).flatten();
            if queued.is_some() {
                looked = Instant::now();
            }
            most = most.max(Usage::of(relay.process()).map_or(0, |usage| usage.anonymous_kib));
            show(point, queued);
            queued
        })?;
        self.wait_for(&relay, "recipients that have been tried", "scheduled", |queue| {
            most = most.max(Usage::of(relay.process()).map_or(0, |usage| usage.anonymous_kib));
            queue.is_tried(tally.recipients)
        })?;
        let tried = Usage::of(relay.process())?;
        waiting_figures.recipients = tally.recipients;
        waiting_figures.tried_seconds = began.elapsed().as_secs_f64();
        waiting_figures.pss_tried_kib = proportional_kib(relay.process())?;
        let per = |cpu: Duration| cpu.as_secs_f64() * 1e6 / tally.acknowledged.max(1) as f64;
        let mut figures = RelayFigures {
            cpu_us_per_message: per(tried.cpu.saturating_sub(before.cpu)),
            memory_before_kib: before.anonymous_kib,
            memory_most_kib: most.max(tried.anonymous_kib),
            memory_after_kib: tried.anonymous_kib,
            ..RelayFigures::default()
        };
        let started_again = Instant::now();
        let relay = self.again(relay, tally.acknowledged, &mut waiting_figures)?;
        let complete = self.deliver(&relay, &mut waiting_figures)?;
        figures.drain_cpu_us_per_message = per(Usage::of(relay.process())?.cpu);
        figures.drain_seconds = started_again.elapsed().as_secs_f64() - waiting_figures.stop_seconds;
        figures.arrived_per_second = self.ledger.arrived_count() as f64 / figures.drain_seconds.max(1e-9);
        if complete {
            self.stop(relay)?;
        }
        let command = format!("ringpost-load profile {}{}", self.named.name, if quick { " --quick" } else { "" });
        let mut results = Results::new(self.named.name, &command, &tally, points);
        let named = self.receiver.figures().named();
        results.sink = named.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        results.ledger = Some(LedgerFigures::of(&self.ledger.findings()));
        results.relay = Some(figures);
        results.waiting = Some(waiting_figures);
        Ok(Ran { results, tally })
    }

    fn look(&self) -> Duration {
        if self.setting.quick { LOOK_QUICK } else { LOOK }
    }

    /// Looks at the queue until it is as wanted. An error when a count of it has not risen for as long as the patience lasts.
    fn wait_for(
        &self,
        relay: &Relay,
        what: &str,
        rising: &str,
        mut done: impl FnMut(&Queue) -> bool,
    ) -> io::Result<Queue> {
        let (mut most, mut risen) = (0, Instant::now());
        loop {
            let queue = Queue::of(relay)?;
            if done(&queue) {
                return Ok(queue);
            }
            if queue.count(rising) > most {
                (most, risen) = (queue.count(rising), Instant::now());
            } else if risen.elapsed() > PATIENCE {
                let text = format!("no more {what} for {PATIENCE:?}; the relay says {}", queue.status);
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            std::thread::sleep(self.look());
        }
    }

    /// Stops the relay in good order and starts it again, until it knows all messages.
    fn again(&self, mut relay: Relay, messages: u64, figures: &mut WaitingFigures) -> io::Result<Relay> {
        let asked = Instant::now();
        let status = relay.stop(STOP_TIME)?;
        if !status.success() {
            return Err(io::Error::other(format!("the relay stopped with {status}")));
        }
        figures.stop_seconds = asked.elapsed().as_secs_f64();
        let started = Instant::now();
        let relay = self.command.start()?;
        figures.listening_seconds = relay.start_time.as_secs_f64();
        let queue =
            self.wait_for(&relay, "messages that it knows again", "messages", |queue| queue.is_known(messages))?;
        figures.known_seconds = started.elapsed().as_secs_f64();
        figures.known_kib = Usage::of(relay.process())?.anonymous_kib;
        figures.pss_known_kib = proportional_kib(relay.process())?;
        figures.tried_early = queue.count("deferred");
        Ok(relay)
    }

    /// Opens the destination, and has all recipients tried until they have arrived. False if some have not.
    fn deliver(&self, relay: &Relay, figures: &mut WaitingFigures) -> io::Result<bool> {
        self.receiver.lift_rules();
        let began = Instant::now();
        let (mut complete, mut arrived, mut risen) = (false, 0, began);
        while !complete && risen.elapsed() <= PATIENCE {
            figures.orders += 1;
            let order = order_retry(self.command)?;
            if figures.orders == 1 {
                figures.order_seconds = began.elapsed().as_secs_f64();
            }
            if let Some(refusal) = order {
                figures.orders_refused += 1;
                if figures.orders_refused == 1 {
                    eprintln!("ringpost-load: an order to try all was refused: {refusal}");
                }
            }
            complete = self.ledger.wait_complete(ORDER_PATIENCE);
            if self.ledger.arrived_count() > arrived {
                (arrived, risen) = (self.ledger.arrived_count(), Instant::now());
            }
        }
        figures.delivered_seconds = began.elapsed().as_secs_f64();
        if !complete {
            eprintln!("ringpost-load: not all has arrived; the relay says {}", Queue::of(relay)?.status);
        }
        Ok(complete)
    }
}

/// `ringpost queue retry --all`; what the relay said if it did not, or not for all of them. That nothing waits is as good.
fn order_retry(command: &RelayCommand) -> io::Result<Option<String>> {
    let output =
        Command::new(&command.binary).args(["queue", "retry", "--all", "--spool"]).arg(&command.spool).output()?;
    match output.status.code() {
        Some(0 | NOTHING) => Ok(None),
        _ => Ok(Some(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())),
    }
}
