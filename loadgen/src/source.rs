//! The source: a closed loop of sessions, each in a thread of its own, that send messages one after the other.
//!
//! A message enters the ledger only after its 250 was read. A lost connection is opened again; while the gate is
//! closed no one tries to. Bounded by a count of messages and by time, whichever ends first.

use crate::destination::Destination;
use crate::ledger::{Acknowledged, Ledger};
use crate::report::Latency;
use crate::session::{Breaker, Broken, Connection};
use crate::workload::{Message, Workload};
use ringpost::smtp::client::{ClientConfig, ClientTimeouts, RecipientOutcome, TlsUse};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a session waits after a refused connection or message, so that refusals do not use up the messages.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);
/// Reasons for lost connections that are kept for the report.
const REASONS_MAX: usize = 32;

/// How to send.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// The server.
    pub target: SocketAddr,
    /// Sessions at a time.
    pub sessions: usize,
    /// Messages in all, at most.
    pub messages: u32,
    /// The longest time that new messages are begun.
    pub duration: Duration,
    /// The longest wait for the server.
    pub patience: Duration,
    /// Messages of a connection before it is closed and opened again.
    pub per_connection: u32,
    /// Also send with BDAT: every other session does.
    pub chunking: bool,
}

impl SourceConfig {
    /// One session for up to a minute.
    pub fn new(target: SocketAddr) -> SourceConfig {
        SourceConfig {
            target,
            sessions: 1,
            messages: u32::MAX,
            duration: Duration::from_secs(60),
            patience: Duration::from_secs(30),
            per_connection: 1000,
            chunking: true,
        }
    }
}

struct Gate {
    closed: bool,
    stopped: bool,
}

struct Common {
    /// Replies that refused something, each once.
    refusals: Mutex<Vec<String>>,
    refused: Condvar,
    config: SourceConfig,
    workload: Workload,
    ledger: Arc<Ledger>,
    gate: Mutex<Gate>,
    gate_changed: Condvar,
    next: AtomicU64,
    deadline: Instant,
    stopped: AtomicBool,
    breakers: Mutex<HashMap<usize, Breaker>>,
}

impl Common {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || Instant::now() >= self.deadline
    }

    /// Waits while the gate is closed. False when the source is to stop.
    fn pass_gate(&self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let wait = self.gate_changed.wait_timeout_while(self.gate(), left, |gate| gate.closed && !gate.stopped);
        let (gate, timeout) = wait.unwrap_or_else(PoisonError::into_inner);
        !gate.stopped && !timeout.timed_out()
    }

    /// A pause that a stop cuts short.
    fn pause(&self) {
        let wait = self.gate_changed.wait_timeout_while(self.gate(), REFUSED_PAUSE, |gate| !gate.stopped);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }

    fn note_refusal(&self, reply: String) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() < REASONS_MAX && !refusals.contains(&reply) {
            refusals.push(reply);
            self.refused.notify_all();
        }
    }

    fn breakers(&self) -> MutexGuard<'_, HashMap<usize, Breaker>> {
        self.breakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running sessions.
pub struct Source {
    common: Arc<Common>,
    threads: Vec<JoinHandle<SourceReport>>,
}

impl Source {
    /// Starts the sessions.
    pub fn start(config: SourceConfig, workload: Workload, ledger: Arc<Ledger>) -> Source {
        let source = Source::start_closed(config, workload, ledger);
        source.open_gate();
        source
    }

    /// Starts the sessions behind a closed gate.
    pub fn start_closed(config: SourceConfig, workload: Workload, ledger: Arc<Ledger>) -> Source {
        let deadline = Instant::now() + config.duration;
        let sessions = config.sessions;
        let common = Arc::new(Common {
            refusals: Mutex::default(),
            refused: Condvar::new(),
            config,
            workload,
            ledger,
            gate: Mutex::new(Gate { closed: true, stopped: false }),
            gate_changed: Condvar::new(),
            next: AtomicU64::new(0),
            deadline,
            stopped: AtomicBool::new(false),
            breakers: Mutex::default(),
        });
        let thread = |number| {
            let common = common.clone();
            std::thread::spawn(move || Session { number, common, report: SourceReport::default() }.run())
        };
        let threads = (0..sessions).map(thread).collect();
        Source { common, threads }
    }

    /// Closes the gate: sessions that lose their connection wait until it opens again.
    pub fn close_gate(&self) {
        self.common.gate().closed = true;
    }

    /// Opens the gate.
    pub fn open_gate(&self) {
        self.common.gate().closed = false;
        self.common.gate_changed.notify_all();
    }

    /// Waits until something was refused with a reply that begins so. False when the time is over.
    pub fn wait_refusal(&self, start: &str, patience: Duration) -> bool {
        let refusals = self.common.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let none = |refusals: &mut Vec<String>| !refusals.iter().any(|reply| reply.starts_with(start));
        let wait = self.common.refused.wait_timeout_while(refusals, patience, none);
        !wait.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Lets each session finish the message it is at, and no more.
    pub fn stop(&self) {
        self.common.stopped.store(true, Ordering::Relaxed);
        self.common.gate().stopped = true;
        self.common.gate_changed.notify_all();
    }

    /// Stops, and breaks off what still waits for the server.
    pub fn abort(&self) {
        self.stop();
        self.common.breakers().values().for_each(Breaker::break_off);
    }

    /// Waits for the end of all sessions; afterwards there are none, and the report is empty.
    pub fn join(&mut self) -> SourceReport {
        let mut report = SourceReport::default();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(part) => report.merge(&part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        report
    }
}

/// What the sessions saw.
#[derive(Clone, Debug, Default)]
pub struct SourceReport {
    /// Messages acknowledged for at least one recipient.
    pub acknowledged: u64,
    /// Octets of their contents.
    pub octets: u64,
    /// Recipients that the server refused.
    pub refused_recipients: u64,
    /// Messages sent whole without a reply: the server may have them or not.
    pub in_doubt: u64,
    /// Connections that were lost or refused.
    pub lost_connections: u64,
    /// Some of the reasons for both.
    pub reasons: Vec<String>,
    /// Time of a transaction, from MAIL to the final reply.
    pub transaction: Latency,
}

impl SourceReport {
    fn merge(&mut self, other: &SourceReport) {
        self.acknowledged += other.acknowledged;
        self.octets += other.octets;
        self.refused_recipients += other.refused_recipients;
        self.in_doubt += other.in_doubt;
        self.lost_connections += other.lost_connections;
        other.reasons.iter().for_each(|reason| self.note_reason(reason));
        self.transaction.merge(&other.transaction);
    }

    fn note_reason(&mut self, reason: &str) {
        if self.reasons.len() < REASONS_MAX && !self.reasons.iter().any(|known| known == reason) {
            self.reasons.push(reason.to_owned());
        }
    }
}

struct Session {
    number: usize,
    common: Arc<Common>,
    report: SourceReport,
}

impl Session {
    fn run(mut self) -> SourceReport {
        let config = Arc::new(ClientConfig {
            ehlo_name: "load.example".into(),
            tls: TlsUse::Never,
            assume_8bitmime: true,
            chunking: self.common.config.chunking && self.number % 2 == 1,
            pipelining: true,
            pipelined_messages: false,
            timeouts: ClientTimeouts::default(),
        });
        while !self.common.is_over() && self.common.pass_gate() {
            let (target, patience) = (self.common.config.target, self.common.config.patience);
            let connection = Connection::open(target, config.clone(), patience);
            match connection.and_then(|connection| self.use_connection(connection)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(broken) => {
                    self.report.lost_connections += 1;
                    self.report.in_doubt += u64::from(broken.in_doubt);
                    self.report.note_reason(&broken.reason);
                    self.common.pause();
                }
            }
            self.common.breakers().remove(&self.number);
        }
        self.report
    }

    /// Sends over one connection. False when there is nothing more to send.
    fn use_connection(&mut self, mut connection: Connection) -> Result<bool, Broken> {
        if let Ok(breaker) = connection.breaker() {
            self.common.breakers().insert(self.number, breaker);
        }
        for _ in 0..self.common.config.per_connection {
            let number = self.common.next.fetch_add(1, Ordering::Relaxed);
            if self.common.is_over() || number >= u64::from(self.common.config.messages) {
                connection.quit();
                return Ok(false);
            }
            let message = self.common.workload.message(number as u32);
            self.send(&mut connection, message)?;
        }
        connection.quit();
        Ok(true)
    }

    fn send(&mut self, connection: &mut Connection, message: Message) -> Result<(), Broken> {
        let domain = &self.common.workload.domain;
        let addresses: Vec<String> =
            (0..message.destinations.len()).map(|index| message.address(index, domain)).collect();
        let octets = message.content.len() as u64;
        let answer = connection.send(&message.reverse_path, &addresses, message.content)?;
        let at = Instant::now();
        let mut id = String::new();
        let mut recipients: Vec<Destination> = Vec::new();
        for (destination, outcome) in message.destinations.iter().zip(answer.outcomes) {
            match outcome {
                RecipientOutcome::Delivered(reply) => {
                    id = reply.text.rsplit(' ').next().unwrap_or_default().to_owned();
                    recipients.push(*destination);
                }
                RecipientOutcome::Refused { reply, stage } => {
                    self.report.refused_recipients += 1;
                    self.report.note_reason(&format!("{stage}: {reply}"));
                    self.common.note_refusal(reply.to_string());
                }
                RecipientOutcome::Unsupported { text, .. } => {
                    self.report.refused_recipients += 1;
                    self.report.note_reason(text);
                }
            }
        }
        if !recipients.is_empty() {
            self.report.acknowledged += 1;
            self.report.octets += octets;
            self.report.transaction.record(answer.duration);
            let (token, fingerprint) = (message.token, message.fingerprint);
            self.common.ledger.acknowledged(Acknowledged { token, fingerprint, recipients, id, at });
        } else {
            self.common.pause();
        }
        Ok(())
    }
}
