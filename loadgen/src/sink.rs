//! The sink: a destination that takes mail, or refuses it as the recipients' addresses say.
//!
//! One thread for each connection. What it takes it enters into the ledger before it answers. It can be slow and it
//! can drop connections; a connection dropped without an answer makes the server under test repeat, which the
//! ledger is told. Not a mail server: nothing is kept.

use crate::destination::{Behaviour, Destination};
use crate::ledger::Ledger;
use crate::sink_session::Session;
use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How the destination behaves.
#[derive(Clone, Debug)]
pub struct SinkConfig {
    /// Where it listens; port 0 for any free one.
    pub listen: SocketAddr,
    /// What is random comes from it.
    pub seed: u64,
    /// Offer CHUNKING.
    pub chunking: bool,
    /// Connections at a time; more get 421.
    pub connections_max: usize,
    /// Messages in a hundred that are answered slowly.
    pub slow_percent: u64,
    /// How slowly.
    pub slow: Duration,
    /// Messages in a hundred at whose end the connection is dropped instead of taking them.
    pub drop_untaken_percent: u64,
    /// Messages in a hundred that are taken and then not answered.
    pub drop_unanswered_percent: u64,
    /// Messages in a hundred after whose answer the connection is closed without a word.
    pub drop_answered_percent: u64,
}

impl SinkConfig {
    /// Takes everything at once.
    pub fn new(listen: SocketAddr) -> SinkConfig {
        SinkConfig {
            listen,
            seed: 0,
            chunking: true,
            connections_max: 1000,
            slow_percent: 0,
            slow: Duration::from_millis(30),
            drop_untaken_percent: 0,
            drop_unanswered_percent: 0,
            drop_answered_percent: 0,
        }
    }
}

/// What came.
#[derive(Clone, Debug, Default)]
pub struct SinkReport {
    /// Connections accepted.
    pub connections: u64,
    /// Connections at a time, at most.
    pub connections_max: u64,
    /// Messages taken.
    pub messages: u64,
    /// Their recipients.
    pub recipients: u64,
    /// Octets of their contents.
    pub octets: u64,
    /// Recipients refused at RCPT.
    pub refused_recipients: u64,
    /// Contents refused.
    pub refused_contents: u64,
    /// Messages with the null reverse path.
    pub reports: u64,
    /// Connections dropped on purpose.
    pub drops: u64,
}

/// What all connections share.
pub(crate) struct Common {
    pub(crate) config: SinkConfig,
    pub(crate) ledger: Arc<Ledger>,
    report: Mutex<SinkReport>,
    /// How often each recipient was refused.
    refusals: Mutex<HashMap<Destination, u32>>,
    open: Mutex<HashMap<u64, TcpStream>>,
    next: AtomicU64,
    stopped: AtomicBool,
}

impl Common {
    pub(crate) fn report(&self) -> MutexGuard<'_, SinkReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether RCPT, or the content, of a recipient is to be refused now; counts it if so.
    pub(crate) fn refuses(&self, destination: &Destination, at_content: bool) -> bool {
        let times = match (destination.behaviour, at_content) {
            (Behaviour::RefuseFirst(times), false) | (Behaviour::RefuseContentFirst(times), true) => times,
            _ => return false,
        };
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = refusals.entry(*destination).or_default();
        *refused += 1;
        *refused <= times
    }
}

/// A running destination; it ends when dropped.
pub struct Sink {
    common: Arc<Common>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Sink {
    /// Listens.
    pub fn start(config: SinkConfig, ledger: Arc<Ledger>) -> io::Result<Sink> {
        let listener = TcpListener::bind(config.listen)?;
        let address = listener.local_addr()?;
        let common = Arc::new(Common {
            config,
            ledger,
            report: Mutex::default(),
            refusals: Mutex::default(),
            open: Mutex::default(),
            next: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let acceptor = std::thread::spawn({
            let common = common.clone();
            move || accept(&listener, &common)
        });
        Ok(Sink { common, address, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What came so far.
    pub fn report(&self) -> SinkReport {
        self.common.report().clone()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.common.stopped.store(true, Ordering::SeqCst);
        // The acceptor sees that it is to stop when somebody connects; if nobody can, it has ended already.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        if let Some(acceptor) = self.acceptor.take() {
            // Its threads are told by their sockets; a panic of one was printed when it happened.
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, common: &Arc<Common>) {
    let mut threads = Vec::new();
    for stream in listener.incoming() {
        if common.stopped.load(Ordering::SeqCst) {
            break;
        }
        let Ok(stream) = stream else { continue };
        threads.retain(|thread: &JoinHandle<()>| !thread.is_finished());
        let connected = Instant::now();
        let number = common.next.fetch_add(1, Ordering::Relaxed);
        let (Ok(handle), at_a_time) = (stream.try_clone(), common.open().len() + 1) else { continue };
        {
            let mut report = common.report();
            report.connections += 1;
            report.connections_max = report.connections_max.max(at_a_time as u64);
        }
        common.open().insert(number, handle);
        let common = common.clone();
        threads.push(std::thread::spawn(move || {
            let full = at_a_time > common.config.connections_max;
            // A connection that breaks is the peer's affair: it repeats what was not answered.
            let _ = Session::new(stream, number, connected, &common).and_then(|session| session.run(full));
            common.open().remove(&number);
        }));
    }
    for stream in common.open().values() {
        // A connection that is over already needs no shutting down.
        let _ = stream.shutdown(Shutdown::Both);
    }
    for thread in threads {
        let _ = thread.join();
    }
}
