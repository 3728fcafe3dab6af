//! A source of load on the engine: closed or open loop, any number of sessions on one thread or a few.
//!
//! [`schedule`] says when a message is due, [`protocol`] what is said on a connection, [`tally`] what is counted; the driver
//! brings them together. A connection that fails is opened again after a pause; its message is not sent again, since the
//! server may have it. Ends by count, by time, when told to, or when nothing could be reached for as long as the patience
//! lasts.

mod driver;
pub mod protocol;
pub mod schedule;
pub mod tally;

use crate::record::Record;
use crate::workload::Workload;
use protocol::ClientSettings;
use schedule::Profile;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tally::{Course, Interval, Point, Tally};

/// Sessions of a run, at most.
pub const SESSIONS_MAX: usize = 60_000;
/// Intervals that wait to be put together; a run does not wait for who shows them.
const INTERVALS_MAX: usize = 4096;

/// How to send.
#[derive(Clone, Debug)]
pub struct SendConfig {
    /// The servers; connections take them in turn.
    pub targets: Vec<SocketAddr>,
    /// Where connections come from, in turn; empty for the kernel's choice.
    pub sources: Vec<IpAddr>,
    /// Engines, each a thread of its own with its share of sessions and messages.
    pub threads: usize,
    /// The cores that the threads are kept on, in turn; empty for the kernel's choice.
    pub cpus: Vec<usize>,
    /// Connections at a time; at most [`SESSIONS_MAX`].
    pub sessions: usize,
    /// How load comes.
    pub profile: Profile,
    /// Random distances between messages of an open loop, from this seed.
    pub random_by: Option<u64>,
    /// Messages in all, at most.
    pub messages: u64,
    /// The longest time that new messages are begun.
    pub duration: Duration,
    /// The longest wait for a reply.
    pub patience: Duration,
    /// Messages of a connection before it is closed and another opened.
    pub per_connection: u32,
    /// A session's pause after each message, in a closed loop.
    pub think: Duration,
    /// In an open loop: connect only when a message is due and no connection is free, instead of beforehand.
    pub cold: bool,
    /// What is said.
    pub client: ClientSettings,
    /// With TLS: what is offered, and towards which name.
    pub tls: Option<(Arc<rustls::ClientConfig>, String)>,
}

impl SendConfig {
    /// One session in a closed loop for up to a minute, pipelined, in clear.
    pub fn new(target: SocketAddr, domain: &str) -> SendConfig {
        SendConfig {
            targets: vec![target],
            sources: Vec::new(),
            threads: 1,
            cpus: Vec::new(),
            sessions: 1,
            profile: Profile::Closed,
            random_by: None,
            messages: u64::MAX,
            duration: Duration::from_secs(60),
            patience: Duration::from_secs(60),
            per_connection: u32::MAX,
            think: Duration::ZERO,
            cold: false,
            client: ClientSettings {
                hello: "load.example".to_owned(),
                tls: protocol::TlsMode::Off,
                auth: None,
                pipelining: true,
                chunking: false,
                domain: domain.to_owned(),
            },
            tls: None,
        }
    }
}

/// TLS as a client that takes any certificate (a load generator trusts what it was pointed at).
///
/// # Errors
/// When rustls cannot be set up.
pub fn tls_client(full_handshakes: bool) -> io::Result<Arc<rustls::ClientConfig>> {
    let config = ringpost::io::tls::client_opportunistic().map_err(io::Error::other)?;
    if !full_handshakes {
        return Ok(config);
    }
    let mut config = (*config).clone();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// A running source.
pub struct Sender {
    threads: Vec<JoinHandle<io::Result<Tally>>>,
    intervals: Receiver<Interval>,
    course: Course,
    stop: Arc<AtomicBool>,
}

impl Sender {
    /// Starts the threads.
    ///
    /// # Errors
    /// When a thread cannot be started, or there is nothing to send to.
    pub fn start(mut config: SendConfig, workload: Workload, record: Record) -> io::Result<Sender> {
        if config.targets.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no server to send to"));
        }
        config.sessions = config.sessions.clamp(1, SESSIONS_MAX);
        config.threads = config.threads.clamp(1, config.sessions);
        let count = config.threads;
        let (config, workload) = (Arc::new(config), Arc::new(workload));
        let stop = Arc::new(AtomicBool::new(false));
        let (give, intervals) = sync_channel(INTERVALS_MAX);
        let mut sender = Sender { threads: Vec::new(), intervals, course: Course::new(count), stop };
        for number in 0..count {
            let part = driver::Part {
                number,
                config: config.clone(),
                workload: workload.clone(),
                record: record.clone(),
                intervals: give.clone(),
            };
            let stop = sender.stop.clone();
            let thread = std::thread::Builder::new()
                .name(format!("source-{number}"))
                .spawn(move || driver::send(part, &stop))?;
            sender.threads.push(thread);
        }
        Ok(sender)
    }

    /// The handle by which the source can be told to stop: no message is begun any more once it is set.
    pub fn stop_handle(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// Waits for the end. Each point of the run's course is shown as it is made; what `show` gives is noted as the number
    /// of messages that wait in the relay then.
    ///
    /// # Errors
    /// When an engine failed.
    pub fn finish(mut self, mut show: impl FnMut(&Point) -> Option<u64>) -> io::Result<(Tally, Vec<Point>)> {
        loop {
            match self.intervals.recv_timeout(tally::INTERVAL) {
                Ok(interval) => {
                    let queued = self.course.take(interval).and_then(|point| show(&point));
                    if let Some(queued) = queued {
                        self.course.note_queued(queued);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let mut tally = Tally::default();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(part) => tally.merge(&part?),
                Err(_panic) => return Err(io::Error::other("a thread of the source panicked")),
            }
        }
        let course = std::mem::replace(&mut self.course, Course::new(0));
        Ok((tally, course.finish()))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Who wants to know calls `finish`.
            let _ = thread.join();
        }
    }
}
