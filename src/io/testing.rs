//! For the tests of this layer: a shard whose handler tells a test what happens and does what the test says.

use crate::clock::{Instant, Now};
use crate::io::executor::{DiskSpec, ListeningSocket, Mailboxes, ShardSpec, run_shard};
use crate::io::handler::{CloseReason, Command, ConnId, Handler, TlsInfo};
use crate::io::mailbox::{Inbox, Sender, inbox, mailbox};
use crate::io::tls::{self, ServerTls, TlsSetup};
use arc_swap::ArcSwap;
use ringpost_spool::DiskDone;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// A test that waits so long has failed. It never waits so long otherwise, however slow the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What happened on the shard.
#[derive(Debug)]
pub(crate) enum Event {
    Started,
    Accepted(ConnId),
    Connected(ConnId),
    ConnectFailed(ConnId, String),
    Received(ConnId, Vec<u8>),
    Sent(ConnId),
    TlsStarted(ConnId, TlsInfo),
    Closed(ConnId, CloseReason),
    Done(DiskDone),
    Woken(Instant),
    Refused(&'static str),
    Trouble(String),
}

/// What a test tells the handler.
#[derive(Debug)]
pub(crate) enum Order {
    Do(Box<Command<Order, u64>>),
    /// At most so many bytes of each input are taken from now on.
    Take(usize),
    /// Whether input of clients is sent back.
    Echo(bool),
    Panic,
}

/// What a test sees and gives orders to.
pub(crate) struct TestShard {
    orders: Sender<Order>,
    events: mpsc::Receiver<Event>,
    pub(crate) reports: Inbox<u64>,
    pub(crate) address: SocketAddr,
    pub(crate) tls_address: SocketAddr,
    thread: Option<JoinHandle<Result<(), String>>>,
    pub(crate) turns: Arc<AtomicU64>,
    pub(crate) directory: PathBuf,
}

struct TestHandler {
    events: mpsc::Sender<Event>,
    commands: VecDeque<Command<Order, u64>>,
    next: u32,
    take: usize,
    echo: bool,
    turns: Arc<AtomicU64>,
}

impl TestHandler {
    fn tell(&self, event: Event) {
        // The test may be gone already.
        let _ = self.events.send(event);
    }
}

/// Ids that tests give to their own connections begin here.
pub(crate) const OUTGOING: u32 = 100_000;

impl Handler for TestHandler {
    type Message = Order;
    type Report = u64;

    fn started(&mut self, _now: Now) {
        self.tell(Event::Started);
    }

    fn accepted(
        &mut self,
        _listener: usize,
        _peer: SocketAddr,
        _local: SocketAddr,
        _now: Now,
        out: &mut Vec<u8>,
    ) -> Option<ConnId> {
        let conn = ConnId { index: self.next, generation: 7 };
        self.next += 1;
        out.extend_from_slice(b"hello\r\n");
        self.tell(Event::Accepted(conn));
        Some(conn)
    }

    fn connected(&mut self, conn: ConnId, _local: SocketAddr, _now: Now) {
        self.tell(Event::Connected(conn));
    }

    fn connect_failed(&mut self, conn: ConnId, error: &str, _now: Now) {
        self.tell(Event::ConnectFailed(conn, error.to_owned()));
    }

    fn received(&mut self, conn: ConnId, bytes: &[u8], _now: Now, out: &mut Vec<u8>) -> usize {
        let taken = bytes.len().min(self.take);
        if self.echo && conn.index < OUTGOING {
            out.extend_from_slice(&bytes[..taken]);
        }
        self.tell(Event::Received(conn, bytes[..taken].to_vec()));
        taken
    }

    fn sent(&mut self, conn: ConnId, _now: Now) {
        self.tell(Event::Sent(conn));
    }

    fn tls_started(&mut self, conn: ConnId, info: TlsInfo, _now: Now, out: &mut Vec<u8>) {
        if conn.index < OUTGOING {
            out.extend_from_slice(b"protected\r\n");
        }
        self.tell(Event::TlsStarted(conn, info));
    }

    fn closed(&mut self, conn: ConnId, reason: CloseReason, _now: Now) {
        self.tell(Event::Closed(conn, reason));
    }

    fn disk_done(&mut self, done: DiskDone, _now: Now) {
        self.tell(Event::Done(done));
    }

    fn message(&mut self, message: Order, _now: Now) {
        match message {
            Order::Do(command) => self.commands.push_back(*command),
            Order::Take(take) => self.take = take,
            Order::Echo(echo) => self.echo = echo,
            Order::Panic => panic!("the test wants it"),
        }
    }

    fn message_refused(&mut self, _shard: u8, _message: Order, _now: Now) {
        self.tell(Event::Refused("message"));
    }

    fn report_refused(&mut self, _report: u64, _now: Now) {
        self.tell(Event::Refused("report"));
    }

    fn trouble(&mut self, text: String, _now: Now) {
        self.tell(Event::Trouble(text));
    }

    fn tick(&mut self, _now: Now, _late: Duration) {}

    fn woken(&mut self, now: Now) {
        self.tell(Event::Woken(now.instant));
    }

    fn turn_ended(&mut self, _now: Now) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn poll_command(&mut self) -> Option<Command<Order, u64>> {
        self.commands.pop_front()
    }
}

/// A fresh directory for one test.
pub(crate) fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("ringpost-io-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Certificates made for the test.
pub(crate) fn tls_setup() -> TlsSetup {
    let (chain, key) = tls::self_signed("mail.example.org").unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(chain[0].clone()).unwrap();
    let server = tls::server_config(chain, key, tls::ticketer().unwrap()).unwrap();
    TlsSetup {
        server: vec![ServerTls { presented: Arc::new(ArcSwap::from_pointee(server.into())), exporter: true }],
        clients: vec![tls::client_opportunistic().unwrap()],
        authorities: crate::io::peer_proof::authorities(roots),
    }
}

impl TestShard {
    /// A shard with a plain listener and one of implicit TLS; segments of 1 MiB.
    pub(crate) fn start(name: &str) -> TestShard {
        let directory = directory(name);
        TestShard::start_in(&directory)
    }

    pub(crate) fn start_in(directory: &Path) -> TestShard {
        let bind = || crate::io::bind::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
        let (plain, implicit) = (bind(), bind());
        let of = |socket| socket2::SockRef::from(socket).local_addr().unwrap().as_socket().unwrap();
        let (address, tls_address) = (of(&plain), of(&implicit));
        let (orders, own) = mailbox(1024);
        let (control, reports) = inbox(4, |_| true);
        let spec = ShardSpec {
            shard: 0,
            cpu: None,
            busy_poll: Duration::ZERO,
            listeners: vec![
                ListeningSocket { socket: plain, implicit_tls: false, refusal: b"421 later\r\n" },
                ListeningSocket { socket: implicit, implicit_tls: true, refusal: b"" },
            ],
            disk: DiskSpec { directory: directory.to_owned(), segment_size: 1 << 20, spares: 2 },
            tls: tls_setup(),
            mailboxes: Mailboxes { own, shards: vec![orders.clone()], control },
            io_memory: 1 << 20,
        };
        let (sender, events) = mpsc::channel();
        let turns = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&turns);
        let thread = run_shard(spec, move || TestHandler {
            events: sender,
            commands: VecDeque::new(),
            next: 0,
            take: usize::MAX,
            echo: true,
            turns: counted,
        })
        .unwrap();
        let directory = directory.to_owned();
        let shard = TestShard { orders, events, reports, address, tls_address, thread: Some(thread), turns, directory };
        assert!(matches!(shard.event(), Event::Started));
        shard
    }

    pub(crate) fn order(&self, mut order: Order) {
        while let Err(back) = self.orders.push(order) {
            order = back;
            std::thread::yield_now();
        }
    }

    pub(crate) fn command(&self, command: Command<Order, u64>) {
        self.order(Order::Do(Box::new(command)));
    }

    /// The next event.
    pub(crate) fn event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("nothing happens any more")
    }

    /// The next event of a client that has just connected.
    pub(crate) fn accepted(&self) -> ConnId {
        match self.event() {
            Event::Accepted(conn) => conn,
            other => panic!("{other:?} instead of a client"),
        }
    }

    /// What comes on a connection, until it is so much.
    pub(crate) fn received(&self, conn: ConnId, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            match self.event() {
                Event::Received(from, more) if from == conn => bytes.extend(more),
                other => panic!("{other:?} instead of input"),
            }
        }
        bytes
    }

    /// Connects to an address as the given place.
    pub(crate) fn connect(&self, index: u32, to: SocketAddr, timeout: Duration) -> ConnId {
        let conn = ConnId { index: OUTGOING + index, generation: 1 };
        self.command(Command::Connect { conn, to, from: None, timeout });
        conn
    }

    /// Ends the shard and gives how it ended.
    pub(crate) fn exit(mut self) -> Result<(), String> {
        self.command(Command::Exit);
        self.join()
    }

    /// Waits for the end of the shard.
    pub(crate) fn join(&mut self) -> Result<(), String> {
        let result = self.thread.take().unwrap().join().unwrap();
        let _ = std::fs::remove_dir_all(&self.directory);
        result
    }
}
