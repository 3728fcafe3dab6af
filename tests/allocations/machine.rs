//! The stand-in for src/io: one shard on a clock of its own, a disk that answers at once, clients that send a message
//! each in every round, and a destination. What the shard allocates is counted; what this file allocates is not.
//!
//! Not here: anything that goes wrong (tests/simulation). It fails by panics.

use crate::counter::counted;
use crate::destination::Destination;
use ringpost::clock::{Instant, Now, UnixTime};
use ringpost::io::handler::{CloseReason, Command, ConnId, Handler};
use ringpost::policy::relay::{ListenerKind, RelayPolicy};
use ringpost::queue::retry::RetrySchedule;
use ringpost::shard::core::{Core, CoreParts};
use ringpost::shard::lease::Loads;
use ringpost::shard::permits::SiteRegistry;
use ringpost::shard::settings::{
    DomainPattern, HostSpec, ListenerSettings, NextHop, Route, Settings, SiteLimits, Target,
};
use ringpost::smtp::client::{ClientConfig, ClientTimeouts, TlsUse};
use ringpost::smtp::server::{BareNewlines, SessionConfig};
use ringpost_spool::SimDisk;
use ringpost_spool::sim_disk::SimDiskConfig;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Our own end of a connection, and clients.
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 25);
/// Takes mail.
const WILLING: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// Destinations with this port offer CHUNKING.
const CHUNKING_PORT: u16 = 25;
/// Those with this one do not.
const PLAIN_PORT: u16 = 26;
/// Answers every RCPT with 450.
const UNWILLING: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const SEGMENT: u32 = 8 << 20;
/// Rounds of 1 ms between two heartbeats.
const TICK: u64 = 20;
/// A round that has not come to rest by then never does.
const STEPS_MAX: u32 = 10_000;

/// Allocations, by the call in which they were made.
#[derive(Copy, Clone, Debug, Default)]
pub struct Allocations {
    /// What clients sent.
    pub received: u64,
    /// Answers of the disk: commits, the 250s, and the first attempts.
    pub disk: u64,
    /// Ends of turns: routing, picking, batches.
    pub turn: u64,
    /// What destinations replied.
    pub replied: u64,
    /// Heartbeats, new connections, and taking out commands.
    pub rest: u64,
}

impl Allocations {
    /// Those made since `earlier`, in the order of the fields.
    pub fn since(&self, earlier: &Allocations) -> [u64; 5] {
        [
            self.received - earlier.received,
            self.disk - earlier.disk,
            self.turn - earlier.turn,
            self.replied - earlier.replied,
            self.rest - earlier.rest,
        ]
    }
}

enum Callback {
    Connected(ConnId),
    Sent(ConnId),
    Closed(ConnId),
}

/// What a message is like and where it goes.
#[derive(Copy, Clone, Debug)]
pub struct Mail {
    /// To the destination that takes it; else to the one that defers it.
    pub willing: bool,
    /// Octets of content, about.
    pub octets: usize,
    /// By BDAT.
    pub chunking: bool,
}

/// One shard and all around it.
pub struct Machine {
    core: Core,
    disk: SimDisk,
    millis: u64,
    clients: Vec<ConnId>,
    destinations: BTreeMap<ConnId, Destination>,
    callbacks: Vec<Callback>,
    out: Vec<u8>,
    sent: u64,
    /// Messages acknowledged.
    pub accepted: u64,
    /// Messages that the destination took.
    pub delivered: u64,
    /// Recipients that the other one deferred.
    pub deferred: u64,
    /// What the shard allocated.
    pub allocations: Allocations,
}

impl Machine {
    /// With so many sessions that have said EHLO. `hold`: nothing is attempted. `chunking`: destinations offer it.
    pub fn new(sessions: usize, hold: bool, chunking: bool) -> Machine {
        let settings = Arc::new(settings(hold, chunking));
        let registry = SiteRegistry::new(Arc::clone(&settings), 1);
        let core = Core::new(CoreParts {
            shard: 0,
            shards: 1,
            settings,
            sites: registry.sites().to_vec(),
            loads: Arc::new(Loads::new(1)),
            first_sequence: 0,
            seed: 7,
            spool_written: UnixTime::from_millis(0),
            directory: Arc::default(),
            login_key: [7; 32],
            salt_key: [7; 32],
            suppression: Default::default(),
            recovering: false,
        });
        let mut machine = Machine {
            core,
            disk: SimDisk::new(7, SimDiskConfig::sound(SEGMENT)),
            millis: 0,
            clients: Vec::new(),
            destinations: BTreeMap::new(),
            callbacks: Vec::new(),
            out: Vec::with_capacity(64 * 1024),
            sent: 0,
            accepted: 0,
            delivered: 0,
            deferred: 0,
            allocations: Allocations::default(),
        };
        let now = machine.now();
        machine.core.started(now);
        machine.settle();
        for _ in 0..sessions {
            machine.out.clear();
            let conn = machine.core.accepted(0, LOCAL, LOCAL, now, &mut machine.out).expect("a session is taken");
            machine.clients.push(conn);
            machine.say(conn, b"EHLO client.example.com\r\n");
        }
        machine.settle();
        machine
    }

    fn now(&self) -> Now {
        Now {
            instant: Instant::ZERO.after(Duration::from_millis(1_000_000 + self.millis)),
            unix: UnixTime::from_millis(1_790_000_000_000 + self.millis),
        }
    }

    /// Sends so many messages, in rounds of one per session, and lets each round come to its end.
    pub fn send(&mut self, messages: u64, mail: Mail) {
        let end = self.sent + messages;
        while self.sent < end {
            self.millis += 1;
            for place in 0..self.clients.len().min((end - self.sent) as usize) {
                let message = message(self.sent, mail);
                self.sent += 1;
                self.say(self.clients[place], &message);
            }
            self.settle();
            if self.millis.is_multiple_of(TICK) {
                let now = self.now();
                counted(&mut self.allocations.rest, || self.core.tick(now, Duration::ZERO));
                self.settle();
            }
        }
    }

    /// A client says something, all of which the shard takes.
    fn say(&mut self, conn: ConnId, bytes: &[u8]) {
        let now = self.now();
        self.out.clear();
        let taken = counted(&mut self.allocations.received, || self.core.received(conn, bytes, now, &mut self.out));
        assert_eq!(taken, bytes.len(), "{}", String::from_utf8_lossy(&self.out));
        self.carry_out();
    }

    /// Lets happen what has to, until nothing is left to do.
    fn settle(&mut self) {
        let now = self.now();
        for _ in 0..STEPS_MAX {
            counted(&mut self.allocations.turn, || self.core.turn_ended(now));
            self.carry_out();
            let mut moved = false;
            while let Some(done) = self.disk.complete_one_of(0) {
                counted(&mut self.allocations.disk, || self.core.disk_done(done, now));
                self.carry_out();
                moved = true;
            }
            for callback in std::mem::take(&mut self.callbacks) {
                counted(&mut self.allocations.rest, || match callback {
                    Callback::Connected(conn) => self.core.connected(conn, LOCAL, now),
                    Callback::Sent(conn) => self.core.sent(conn, now),
                    Callback::Closed(conn) => self.core.closed(conn, CloseReason::Asked, now),
                });
                self.carry_out();
                moved = true;
            }
            let conns: Vec<ConnId> = self.destinations.keys().copied().collect();
            for conn in conns {
                let Some(reply) = self.destinations.get_mut(&conn).and_then(Destination::poll_reply) else { continue };
                self.out.clear();
                counted(&mut self.allocations.replied, || self.core.received(conn, &reply, now, &mut self.out));
                self.carry_out();
                moved = true;
            }
            if !moved {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// Does what the shard wants.
    fn carry_out(&mut self) {
        while let Some(command) = counted(&mut self.allocations.rest, || self.core.poll_command()) {
            match command {
                Command::Send { conn, bytes } => match self.destinations.get_mut(&conn) {
                    Some(destination) => {
                        let (delivered, deferred) = destination.handle_input(&bytes);
                        self.delivered += delivered;
                        self.deferred += deferred;
                    }
                    None => {
                        let text = String::from_utf8_lossy(&bytes);
                        assert!(text.starts_with("250 2.0.0 OK: queued as "), "{text}");
                        self.accepted += 1;
                    }
                },
                Command::NotifySent(conn) => self.callbacks.push(Callback::Sent(conn)),
                Command::Close { conn, .. } => {
                    self.destinations.remove(&conn);
                    self.callbacks.push(Callback::Closed(conn));
                }
                Command::Connect { conn, to, .. } => {
                    let chunking = to.port() == CHUNKING_PORT;
                    self.destinations.insert(conn, Destination::new(to.ip() == WILLING, chunking));
                    self.callbacks.push(Callback::Connected(conn));
                }
                Command::Disk(op) => self.disk.submit(0, op),
                Command::PauseRead(_)
                | Command::ResumeRead(_)
                | Command::Report(_)
                | Command::NextTurn
                | Command::WakeAt(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// The bytes of one transaction. All messages are equally long.
fn message(number: u64, mail: Mail) -> Vec<u8> {
    let domain = if mail.willing { "willing.test" } else { "waiting.test" };
    let mut content = format!("Subject: {number:08}\r\n\r\n");
    while content.len() < mail.octets {
        content.push_str("The quick brown fox jumps over the lazy dog, and then it does so once again.\r\n");
    }
    let commands = format!("MAIL FROM:<sender.{number:08}@example.com>\r\nRCPT TO:<someone.{number:08}@{domain}>\r\n");
    if mail.chunking {
        format!("{commands}BDAT {} LAST\r\n{content}", content.len()).into_bytes()
    } else {
        format!("{commands}DATA\r\n{content}.\r\n").into_bytes()
    }
}

fn settings(hold: bool, chunking: bool) -> Settings {
    let session = SessionConfig {
        hostname: "relay.test".into(),
        max_message_size: 1 << 20,
        starttls: false,
        auth: false,
        mechanisms: Default::default(),
        auth_in_clear: false,
        bare_newlines: BareNewlines::Refuse,
        proxy: false,
        strangers: Default::default(),
        max_recipients: 100,
        max_commands: u32::MAX,
        max_errors: 10,
        max_transactions: u32::MAX,
        command_timeout: Duration::from_secs(300),
        data_timeout: Duration::from_secs(180),
        message_timeout: Duration::from_secs(600),
        chunking: true,
        dsn: true,
        smtputf8: true,
        pipelining: true,
    };
    let trusted = "127.0.0.0/8".parse().expect("it is a network");
    Settings {
        hostname: "relay.test".into(),
        listeners: vec![ListenerSettings {
            session: Arc::new(session),
            implicit_tls: false,
            relay: Arc::new(RelayPolicy::new(ListenerKind::Relay, vec![trusted], false)),
            submission: false,
            tenant: "default".into(),
            tenant_header: None,
            tenant_subaddress: false,
            required_headers: Vec::new(),
            filters: Arc::new([]),
        }],
        routes: vec![route("willing", WILLING, chunking), route("waiting", UNWILLING, chunking)],
        shaping: Default::default(),
        classifier: ringpost::policy::classify::Classifier::shipped(),
        schedule: RetrySchedule::default(),
        hold,
        max_received_headers: 100,
        max_sessions: 100_000,
        max_sessions_per_client: 100_000,
        max_sessions_per_network: 100_000,
        connection_rates: Default::default(),
        refuse_suppressed: false,
        bounces_suppress: false,
        max_tarpitted: 10,
        max_outgoing: 100_000,
        lift_loopback_limits: true,
        content_memory: 64 << 20,
        spill_above: 256 * 1024,
        retained_content: 64 << 20,
        large_message: 1 << 20,
        segment_size: SEGMENT,
        spare_segments: 2,
    }
}

fn route(name: &str, host: IpAddr, chunking: bool) -> Route {
    let port = if chunking { CHUNKING_PORT } else { PLAIN_PORT };
    Route {
        tls: ringpost::policy::outbound_tls::TlsRule::of(ringpost::policy::outbound_tls::TlsLevel::Never),
        name: name.into(),
        domains: DomainPattern::Exact(vec![format!("{name}.test").into()]),
        target: Target::NextHops(vec![NextHop { host: HostSpec::Address(host), port }]),
        limits: SiteLimits {
            connections: 20,
            connection_rate: None,
            messages_per_connection: None,
            rate: None,
            recipients_per_transaction: 50,
        },
        client: Arc::new(ClientConfig {
            ehlo_name: "relay.test".into(),
            tls: TlsUse::Never,
            assume_8bitmime: false,
            chunking: true,
            pipelining: true,
            pipelined_messages: true,
            timeouts: ClientTimeouts::default(),
        }),
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(3_600),
        shaped: false,
        adapt: true,
        source: None,
    }
}
