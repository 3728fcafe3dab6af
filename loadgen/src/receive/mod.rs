//! A destination on the engine: takes mail as fast as the kernel allows, or does to its clients what rules say.
//!
//! One or several threads, which share listeners' addresses and the memory of the rules. What it takes it notes before it
//! answers. It ends when told to or when dropped; an engine that fails ends all, with the reason in its report. Not a mail
//! server: nothing is kept but notes.

mod data;
mod driver;
mod effects;
pub mod limits;
pub mod rules;
mod session;

use crate::engine::{self, Listener};
use crate::record::Record;
use limits::Limits;
use rules::Rule;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How a destination behaves.
#[derive(Clone, Debug)]
pub struct ReceiveConfig {
    /// Where it listens; port 0 for any free one.
    pub listen: Vec<SocketAddr>,
    /// Where it listens for TLS from the first octet.
    pub listen_tls: Vec<SocketAddr>,
    /// Engines, each a thread of its own.
    pub threads: usize,
    /// The cores that the threads are kept on, in turn; empty for the kernel's choice.
    pub cpus: Vec<usize>,
    /// What is random comes from it.
    pub seed: u64,
    /// Offer CHUNKING (RFC 3030).
    pub chunking: bool,
    /// Offer STARTTLS (RFC 3207) with this certificate; also for `listen_tls`.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Offer AUTH (RFC 4954) and take this user and password.
    pub auth: Option<(String, String)>,
    /// What is done to whom; the first [`rules::RULES_MAX`] count.
    pub rules: Vec<Rule>,
}

impl ReceiveConfig {
    /// Takes everything at once, with one thread.
    pub fn new(listen: SocketAddr) -> ReceiveConfig {
        ReceiveConfig {
            listen: vec![listen],
            listen_tls: Vec::new(),
            threads: 1,
            cpus: Vec::new(),
            seed: 0,
            chunking: true,
            tls: None,
            auth: None,
            rules: Vec::new(),
        }
    }
}

/// What came so far; counted by all threads.
#[derive(Debug, Default)]
pub struct Figures {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Connections that stand.
    pub open: AtomicU64,
    /// Connections that stood at a time, at most.
    pub open_max: AtomicU64,
    /// Messages taken.
    pub messages: AtomicU64,
    /// Their recipients.
    pub recipients: AtomicU64,
    /// Octets of their contents, as they came.
    pub octets: AtomicU64,
    /// Recipients refused at RCPT.
    pub refused_recipients: AtomicU64,
    /// Contents refused.
    pub refused_contents: AtomicU64,
    /// Messages with the null reverse path.
    pub reports: AtomicU64,
    /// Connections refused, dropped or reset on purpose.
    pub drops: AtomicU64,
    /// Messages left without an answer on purpose.
    pub stalled: AtomicU64,
    /// Connections and messages beyond a limit that a rule sets.
    pub violations: AtomicU64,
    /// Microseconds of CPU time of the threads that have ended or last said so.
    pub cpu_us: AtomicU64,
}

impl Figures {
    /// All of them by name, in the order of the report.
    pub fn named(&self) -> [(&'static str, u64); 13] {
        let read = |one: &AtomicU64| one.load(Ordering::Relaxed);
        [
            ("connections", read(&self.connections)),
            ("open", read(&self.open)),
            ("open_max", read(&self.open_max)),
            ("messages", read(&self.messages)),
            ("recipients", read(&self.recipients)),
            ("octets", read(&self.octets)),
            ("refused_recipients", read(&self.refused_recipients)),
            ("refused_contents", read(&self.refused_contents)),
            ("reports", read(&self.reports)),
            ("drops", read(&self.drops)),
            ("stalled", read(&self.stalled)),
            ("violations", read(&self.violations)),
            ("cpu_us", read(&self.cpu_us)),
        ]
    }
}

/// What the threads of a destination share.
pub(crate) struct Shared {
    pub(crate) config: ReceiveConfig,
    pub(crate) record: Record,
    pub(crate) figures: Arc<Figures>,
    limits: Mutex<Limits>,
    rules_lifted: AtomicBool,
}

impl Shared {
    /// The rules that apply now.
    pub(crate) fn rules(&self) -> &[Rule] {
        if self.rules_lifted.load(Ordering::Relaxed) { &[] } else { &self.config.rules }
    }

    pub(crate) fn limits(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running destination.
pub struct Receiver {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Receiver {
    /// Listens, and serves on threads of its own.
    ///
    /// # Errors
    /// When it cannot listen, or TLS is asked for without a certificate.
    pub fn start(mut config: ReceiveConfig, record: Record) -> io::Result<Receiver> {
        if !config.listen_tls.is_empty() && config.tls.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "TLS from the first octet needs a certificate"));
        }
        config.rules.truncate(rules::RULES_MAX);
        let threads = config.threads.max(1);
        let wanted: Vec<SocketAddr> = config.listen.iter().chain(&config.listen_tls).copied().collect();
        let mut sets: Vec<Vec<Listener>> = Vec::new();
        let mut addresses = wanted;
        for _ in 0..threads {
            let set: Vec<Listener> =
                addresses.iter().map(|address| engine::listen(*address, threads > 1)).collect::<io::Result<_>>()?;
            // The next threads listen where the first was given a place.
            addresses = set.iter().map(|listener| listener.address).collect();
            sets.push(set);
        }
        let shared = Arc::new(Shared {
            config,
            record,
            figures: Arc::default(),
            limits: Mutex::default(),
            rules_lifted: AtomicBool::new(false),
        });
        let stop = Arc::new(AtomicBool::new(false));
        let mut receiver = Receiver { shared: shared.clone(), addresses, stop, threads: Vec::new() };
        for (number, listeners) in sets.into_iter().enumerate() {
            let (shared, stop) = (shared.clone(), receiver.stop.clone());
            let thread = std::thread::Builder::new()
                .name(format!("sink-{number}"))
                .spawn(move || driver::serve(&shared, number, listeners, &stop))?;
            receiver.threads.push(thread);
        }
        Ok(receiver)
    }

    /// Where it listens: the plain addresses in their order, then those for TLS.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What came so far.
    pub fn figures(&self) -> Arc<Figures> {
        self.shared.figures.clone()
    }

    /// From now on no rule applies, to connections that stand neither. What addresses ask for still does.
    pub fn lift_rules(&self) {
        self.shared.rules_lifted.store(true, Ordering::Relaxed);
    }

    /// Whether a thread has ended, which none does by itself unless it failed.
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Breaks off all connections and waits for the threads.
    ///
    /// # Errors
    /// When an engine failed.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let mut result = Ok(());
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(ended) => result = result.and(ended),
                Err(_panic) => result = Err(io::Error::other("a thread of the destination panicked")),
            }
        }
        result
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Who wants to know calls `stop`.
        let _ = self.end();
    }
}

/// A certificate for a destination that proves nothing.
///
/// # Errors
/// When it cannot be made, in words.
pub fn self_signed() -> io::Result<Arc<rustls::ServerConfig>> {
    use ringpost::io::tls;
    let (chain, key) = tls::self_signed("sink.example").map_err(io::Error::other)?;
    let tickets = tls::ticketer().map_err(io::Error::other)?;
    tls::server_config(chain, key, tickets).map_err(io::Error::other)
}

/// How often a thread says how much CPU time it has used.
const CPU_EVERY: Duration = Duration::from_millis(200);
