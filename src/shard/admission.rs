//! Whether a client's connection is taken: asked when it comes, or when a PROXY header has told whose it is. What is refused
//! is counted by reason, and told in the log within bounds: an attack must not fill the disk with its own story.
//!
//! Not here: the counting (src/policy/session_limits.rs, src/policy/connection_rate.rs).

use crate::clock::{Instant, Now};
use crate::event::{Event, Severity};
use crate::io::handler::ConnId;
use crate::limits::{CONNECTIONS_TOLD, CONNECTIONS_TOLD_TICKS};
use crate::policy::admission::Refusal;
use crate::policy::session_limits::SessionLimits;
use crate::reply::Reply;
use crate::shard::connections::Conn;
use crate::shard::core::Core;
use crate::shard::ingress::{Inbound, InboundState};
use crate::shard::settings::Settings;
use crate::smtp::server::Session;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};

/// The clients of one shard as they come.
#[derive(Debug)]
pub struct Admission {
    sessions: SessionLimits,
    /// Refused connections that the log was told of lately.
    told: u32,
    /// And those it was not.
    untold: u64,
    /// When which sessions are to be woken that are kept waiting. Of those that have ended meanwhile nobody is found.
    waiting: BinaryHeap<Reverse<(Instant, ConnId)>>,
    /// Sessions that wait for the answer to an error.
    tarpitted: usize,
}

impl Admission {
    /// Nobody has come yet.
    pub fn new(settings: &Settings) -> Admission {
        let sessions = SessionLimits::new(
            settings.max_sessions,
            settings.max_sessions_per_client,
            settings.max_sessions_per_network,
            settings.lift_loopback_limits,
        );
        Admission { sessions, told: 0, untold: 0, waiting: BinaryHeap::new(), tarpitted: 0 }
    }

    /// A client that was counted has gone.
    pub fn release(&mut self, client: IpAddr) {
        self.sessions.release(client);
    }

    /// A session no longer waits for the answer to an error. False if it did not.
    pub fn leave_tarpit(&mut self, state: &mut InboundState) -> bool {
        let left = std::mem::take(&mut state.tarpitted);
        self.tarpitted -= usize::from(left);
        left
    }
}

impl Core {
    pub(super) fn inbound_accepted(
        &mut self,
        listener: usize,
        peer: SocketAddr,
        local: SocketAddr,
        now: Now,
        out: &mut Vec<u8>,
    ) -> Option<ConnId> {
        self.metrics.sessions_total += 1;
        let settings = &self.settings.listeners[listener];
        let (config, implicit_tls) = (settings.session.clone(), settings.implicit_tls);
        let trusted = !config.proxy && settings.relay.trusts(peer.ip());
        let proxied = config.proxy;
        let local = (!proxied).then(|| local.ip());
        let admitted = if config.proxy { self.admit_unknown(peer.ip()) } else { self.admit(peer.ip(), trusted, now) };
        if let Err(refusal) = admitted {
            let reply = self.refuse_connection(peer, refusal);
            // Whoever is about to begin with a handshake would not understand.
            if !implicit_tls {
                reply.write_to(out);
            }
            return None;
        }
        let mut session = Session::new(config, implicit_tls, now.instant);
        if trusted {
            session.trust();
        }
        session.start(now.instant, out);
        let conn = self.connections.allocate();
        let mut inbound = Box::new(Inbound { session, state: InboundState::new(conn, listener, peer, local) });
        inbound.state.rated = !proxied && self.is_rated(peer.ip(), trusted);
        self.wake_when_due(&inbound);
        self.connections.put(conn, Conn::Inbound(inbound));
        Some(conn)
    }

    fn admit(&mut self, client: IpAddr, trusted: bool, now: Now) -> Result<(), Refusal> {
        if self.stopping.is_some() {
            return Err(Refusal::Stopping);
        }
        self.check_rate(client, trusted, now)?;
        self.admission.sessions.admit(client, trusted)
    }

    fn admit_unknown(&mut self, proxy: IpAddr) -> Result<(), Refusal> {
        if self.stopping.is_some() {
            return Err(Refusal::Stopping);
        }
        self.admission.sessions.admit_unknown(proxy)
    }

    /// A PROXY header has told whose connection this is.
    pub(super) fn identify(&mut self, state: &mut InboundState, client: SocketAddr, now: Now) -> Result<(), Reply> {
        let trusted = self.settings.listeners[usize::from(state.listener)].relay.trusts(client.ip());
        let admitted = self
            .check_rate(client.ip(), trusted, now)
            .and_then(|()| self.admission.sessions.identify(state.client.ip(), client.ip(), trusted));
        match admitted {
            Ok(()) => {
                state.client = client;
                state.rated = self.is_rated(client.ip(), trusted);
                Ok(())
            }
            Err(refusal) => Err(self.refuse_connection(client, refusal)),
        }
    }

    /// Counts a connection for its client's rate and its network's, but for those that have none.
    fn check_rate(&self, client: IpAddr, trusted: bool, now: Now) -> Result<(), Refusal> {
        if !self.is_rated(client, trusted) {
            return Ok(());
        }
        self.settings.connection_rates.admit(client, now.instant)
    }

    /// Whether a connection counts for its client's rate and its network's.
    fn is_rated(&self, client: IpAddr, trusted: bool) -> bool {
        !trusted && !self.admission.sessions.is_exempt(client)
    }

    /// Counts a refused connection, tells the log of it unless there were many, and gives what the client is told.
    pub(super) fn refuse_connection(&mut self, client: SocketAddr, refusal: Refusal) -> Reply {
        let reply = refusal.reply();
        self.metrics.refused_connections[refusal.index()] += 1;
        if self.admission.told < CONNECTIONS_TOLD {
            self.admission.told += 1;
            self.event(Event::Rejected {
                client: client.ip(),
                sender: "".into(),
                recipient: None,
                reply: reply.to_string().into(),
                filter: None,
            });
        } else {
            self.admission.untold += 1;
        }
        reply
    }

    /// A session that is kept waiting is woken when that is over; others are left to the sweep.
    pub(super) fn wake_when_due(&mut self, inbound: &Inbound) {
        if inbound.session.is_waiting() {
            self.admission.waiting.push(Reverse((inbound.session.deadline(), inbound.state.conn)));
        }
    }

    /// Wakes the sessions that have waited long enough.
    pub(super) fn wake_waiting(&mut self, now: Now) {
        while let Some(&Reverse((due, conn))) = self.admission.waiting.peek()
            && due <= now.instant
        {
            self.admission.waiting.pop();
            self.inbound_timeout(conn, now);
        }
    }

    /// Whether one more session may be kept waiting for the answer to an error.
    pub(super) fn keep_waiting(&mut self, state: &mut InboundState) -> bool {
        let room = self.admission.tarpitted < self.settings.max_tarpitted;
        if room {
            self.admission.tarpitted += 1;
            state.tarpitted = true;
            self.metrics.delayed_replies += 1;
        }
        room
    }

    /// A session that waited for the answer to an error has it, and is read from again.
    pub(super) fn go_on(&mut self, state: &mut InboundState) {
        if self.admission.leave_tarpit(state) {
            self.resume(state);
        }
    }

    /// Tells the log how many connections were refused that it was not told of.
    pub(super) fn tell_refused_connections(&mut self) {
        if !self.ticks.is_multiple_of(CONNECTIONS_TOLD_TICKS) {
            return;
        }
        self.admission.told = 0;
        let untold = std::mem::take(&mut self.admission.untold);
        if untold > 0 {
            let text = format!(
                "{untold} more connections were refused lately than this log tells of (ringpost_refused_connections_total \
                 counts them by reason)"
            );
            self.notice(Severity::Warning, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixTime;
    use crate::config::{Config, settings::settings};
    use crate::io::handler::{Command, Handler};
    use crate::limits::SLOW_TICKS;
    use crate::shard::core::CoreParts;
    use crate::shard::lease::Loads;
    use crate::shard::message::Report;
    use std::sync::Arc;
    use std::time::Duration;

    const PLAIN: usize = 0;
    const PROXIED: usize = 1;
    const IMPLICIT: usize = 2;
    const SLOW: usize = 3;

    /// Shards of one process, and what they have reported.
    struct Shards {
        cores: Vec<Core>,
        now: Now,
        events: Vec<Event>,
        sent: Vec<(ConnId, String)>,
        resumed: Vec<ConnId>,
    }

    impl Shards {
        fn new(limits: &str) -> Shards {
            let text = format!(
                "[[listener]]\naddress = \"127.0.0.1:25\"\ntrusted = \"10.0.0.0/8\"\n\
                 [[listener]]\naddress = \"127.0.0.1:26\"\ntrusted = \"10.0.0.0/8\"\nproxy = true\n\
                 [[listener]]\naddress = \"127.0.0.1:465\"\ntrusted = \"10.0.0.0/8\"\ntls = \"implicit\"\n\
                 [[listener]]\naddress = \"127.0.0.1:27\"\ntrusted = \"10.0.0.0/8\"\ngreet_delay = \"2s\"\n\
                 helo_checks = \"foreign\"\n[limits]\n{limits}"
            );
            let config = Config::parse(&text).unwrap_or_else(|error| panic!("{error}"));
            let settings = Arc::new(settings(&config, None));
            let core = |shard| {
                Core::new(CoreParts {
                    shard,
                    shards: 2,
                    settings: Arc::clone(&settings),
                    sites: Vec::new(),
                    loads: Arc::new(Loads::new(2)),
                    first_sequence: 0,
                    seed: 1,
                    spool_written: UnixTime::default(),
                    directory: Arc::default(),
                    login_key: [0; 32],
                    salt_key: [0; 32],
                    suppression: Arc::default(),
                    recovering: false,
                })
            };
            let now = Now { instant: Instant::from_nanos(1_000_000_000), ..Now::default() };
            Shards { cores: vec![core(0), core(1)], now, events: Vec::new(), sent: Vec::new(), resumed: Vec::new() }
        }

        fn take_events(&mut self) {
            for core in &mut self.cores {
                while let Some(command) = core.poll_command() {
                    match command {
                        Command::Report(Report::Event { event, .. }) => self.events.push(event),
                        Command::Send { conn, bytes } => {
                            self.sent.push((conn, String::from_utf8(bytes.to_vec()).unwrap()));
                        }
                        Command::ResumeRead(conn) => self.resumed.push(conn),
                        _ => {}
                    }
                }
            }
        }

        fn connect(&mut self, shard: usize, listener: usize, client: &str) -> (Option<ConnId>, String) {
            let (mut out, peer) = (Vec::new(), SocketAddr::new(client.parse().unwrap(), 4000));
            let local = SocketAddr::new([192, 0, 2, 25].into(), 25);
            let conn = self.cores[shard].accepted(listener, peer, local, self.now, &mut out);
            self.take_events();
            (conn, String::from_utf8(out).unwrap())
        }

        fn say(&mut self, shard: usize, conn: ConnId, text: &str) -> String {
            let mut out = Vec::new();
            self.cores[shard].received(conn, text.as_bytes(), self.now, &mut out);
            self.take_events();
            String::from_utf8(out).unwrap()
        }

        /// Lets so much time pass for the first shard; what it sent meanwhile.
        fn pass(&mut self, time: Duration) -> Vec<(ConnId, String)> {
            self.now.instant = self.now.instant.after(time);
            let now = self.now;
            self.cores[0].tick(now, Duration::ZERO);
            self.take_events();
            std::mem::take(&mut self.sent)
        }

        fn refused(&self) -> [u64; Refusal::NAMES.len()] {
            let mut sum = self.cores[0].gather_metrics();
            sum.merge(&self.cores[1].gather_metrics());
            sum.refused_connections
        }
    }

    #[test]
    fn a_rate_holds_over_all_shards_but_not_for_those_who_are_trusted() {
        let mut shards = Shards::new("connections_per_client = \"3/1m\"\nconnections_per_network = \"4/1m\"\n");
        for shard in [0, 1, 1] {
            assert!(shards.connect(shard, PLAIN, "192.0.2.1").1.starts_with("220 "));
        }
        for (shard, listener) in [(0, PLAIN), (1, PLAIN), (0, IMPLICIT)] {
            let (conn, reply) = shards.connect(shard, listener, "192.0.2.1");
            assert_eq!(conn, None);
            let told = "421 4.7.0 Too many connections from your address in a short time; come again in 20 seconds";
            assert!(reply.starts_with(told) || listener == IMPLICIT && reply.is_empty(), "{reply}");
        }
        assert!(shards.connect(0, PLAIN, "192.0.2.2").1.starts_with("220 "));
        assert!(shards.connect(1, PLAIN, "192.0.2.3").1.contains("from your network"));
        assert!((0..9).all(|_| shards.connect(0, PLAIN, "10.1.2.3").0.is_some()));
        assert_eq!(shards.refused(), [0, 0, 0, 0, 3, 1, 0]);
        shards.now.instant = shards.now.instant.after(Duration::from_secs(21));
        assert!(shards.connect(0, PLAIN, "192.0.2.1").0.is_some());
    }

    #[test]
    fn behind_a_proxy_the_client_is_counted_and_not_the_proxy() {
        let mut shards = Shards::new("sessions_per_client = 2\nconnections_per_client = \"3/1m\"\n");
        let mut session = |client: &str| {
            let (conn, greeting) = shards.connect(0, PROXIED, "198.51.100.1");
            assert_eq!(greeting, "");
            let conn = conn.unwrap();
            (conn, shards.say(0, conn, &format!("PROXY TCP4 {client} 192.0.2.250 4000 25\r\n")))
        };
        assert!(session("192.0.2.1").1.starts_with("220 "));
        let (second, greeting) = session("192.0.2.1");
        assert!(greeting.starts_with("220 "));
        let (third, reply) = session("192.0.2.1");
        assert!(reply.starts_with("421 4.7.0 Too many sessions are open from your address"), "{reply}");
        assert!(session("192.0.2.1").1.starts_with("421 4.7.0 Too many connections from your address"));
        let trusted = (0..5).filter(|_| session("10.0.0.1").1.starts_with("220 ")).count();
        assert_eq!(trusted, 2, "sessions of one client are bounded also where it is trusted");
        assert!(session("192.0.2.2").1.starts_with("220 "));
        let told = |event: &Event| matches!(event, Event::Rejected { client, .. } if client.to_string() == "192.0.2.1");
        assert_eq!(shards.events.iter().filter(|event| told(event)).count(), 2);
        // Whoever was refused gives back what it took of the proxy's, and nothing of the client's.
        let core = &mut shards.cores[0];
        core.closed(third, crate::io::handler::CloseReason::Asked, shards.now);
        assert_eq!(core.admission.sessions.open_of("192.0.2.1".parse().unwrap()), 2);
        core.closed(second, crate::io::handler::CloseReason::Peer, shards.now);
        assert_eq!(core.admission.sessions.open_of("192.0.2.1".parse().unwrap()), 1);
    }

    #[test]
    fn whoever_logs_in_may_connect_as_often_as_it_likes() {
        let mut shards = Shards::new("connections_per_client = \"3/1m\"\nconnections_per_network = \"4/1m\"\n");
        let credential = Arc::new(crate::policy::identity::Credential::of("app", "default"));
        let mut session = |listener: usize, logs_in: bool| {
            let (conn, greeting) = shards.connect(0, listener, "192.0.2.1");
            let Some(conn) = conn else { return greeting };
            if listener == PROXIED {
                shards.say(0, conn, "PROXY TCP4 192.0.2.1 192.0.2.250 4000 25\r\n");
            }
            let mut inbound = shards.cores[0].connections.take_inbound(conn).unwrap();
            // Each connection is given back once.
            for _ in 0..if logs_in { 5 } else { 0 } {
                shards.cores[0].logged_in(&mut inbound.state, Arc::clone(&credential), shards.now);
            }
            shards.cores[0].connections.put(conn, Conn::Inbound(inbound));
            greeting
        };
        for listener in [PLAIN, PROXIED] {
            for _ in 0..10 {
                assert!(!session(listener, true).starts_with("421"), "{listener}");
            }
        }
        let strangers = (0..9).filter(|_| session(PLAIN, false).starts_with("220 ")).count();
        assert_eq!(strangers, 3, "others of the same address have their rate");
    }

    #[test]
    fn a_greeting_that_waits_comes_in_time_and_early_talkers_are_counted() {
        let mut shards = Shards::new("");
        let (early, greeting) = shards.connect(0, SLOW, "192.0.2.1");
        assert_eq!(greeting, "");
        assert!(shards.say(0, early.unwrap(), "EHLO x\r\n").starts_with("554 5.5.1 "));
        assert_eq!(shards.refused()[Refusal::EarlyTalker.index()], 1);
        let patient = shards.connect(0, SLOW, "192.0.2.1").0.unwrap();
        assert!(shards.connect(0, SLOW, "10.0.0.1").1.starts_with("220 "), "of a trusted network");
        let gone = shards.connect(0, SLOW, "192.0.2.1").0.unwrap();
        let now = shards.now;
        shards.cores[0].closed(gone, crate::io::handler::CloseReason::Peer, now);
        assert!(shards.pass(Duration::from_millis(1990)).is_empty());
        // The first tick behind its time greets, and no sweep of all connections is waited for.
        let greeted = shards.pass(Duration::from_millis(20));
        assert!(greeted.len() == 1 && greeted[0].0 == patient && greeted[0].1.starts_with("220 "), "{greeted:?}");
        assert!(shards.say(0, patient, "EHLO [192.0.2.25]\r\n").starts_with("550 5.7.1 "), "our own address");
        assert!(shards.say(0, patient, "EHLO [192.0.2.26]\r\n").starts_with("250-"));
    }

    #[test]
    fn so_many_sessions_are_kept_waiting_and_no_more() {
        let mut shards = Shards::new("tarpit_after = 1\ntarpit_delay = \"3s\"\ntarpit_sessions = 2\n");
        let sessions: Vec<ConnId> = (0..4).map(|_| shards.connect(0, PLAIN, "192.0.2.1").0.unwrap()).collect();
        let trusted = shards.connect(0, PLAIN, "10.0.0.1").0.unwrap();
        assert_eq!(shards.say(0, trusted, "X\r\nX\r\nX\r\n").lines().count(), 3);
        for (session, replies) in sessions.iter().zip([1, 1, 2, 2]) {
            let said = shards.say(0, *session, "X\r\nX\r\n");
            assert_eq!(said.matches("500 ").count(), replies);
        }
        assert_eq!(shards.say(0, sessions[0], "NOOP\r\n"), "", "it is read from later");
        // One that goes makes room for another.
        let now = shards.now;
        shards.cores[0].closed(sessions[1], crate::io::handler::CloseReason::Peer, now);
        assert_eq!(shards.say(0, sessions[2], "X\r\n"), "");
        assert_eq!(shards.cores[0].gather_metrics().delayed_replies, 3);
        let answered = shards.pass(Duration::from_secs(3));
        let mut who: Vec<ConnId> = answered.iter().map(|(conn, _)| *conn).collect();
        who.sort();
        assert_eq!(who, [sessions[0], sessions[2]]);
        assert!(answered.iter().all(|(_, reply)| reply.starts_with("500 ") && reply.lines().count() == 1));
        assert_eq!(shards.resumed, [sessions[0]], "only it has input that waits");
        assert_eq!(shards.cores[0].admission.tarpitted, 0);
        assert_eq!(shards.say(0, sessions[0], "NOOP\r\n"), "250 2.0.0 OK\r\n");
    }

    #[test]
    fn the_log_tells_of_some_and_counts_the_others() {
        let mut shards = Shards::new("connections_per_client = \"1/1m\"\n");
        for _ in 0..=100 {
            shards.connect(0, PLAIN, "192.0.2.1");
        }
        assert_eq!(shards.events.len(), CONNECTIONS_TOLD as usize);
        assert_eq!(shards.refused()[4], 100);
        shards.events.clear();
        for _ in 0..CONNECTIONS_TOLD_TICKS + SLOW_TICKS {
            let now = shards.now;
            shards.cores[0].tick(now, Duration::ZERO);
        }
        shards.take_events();
        let [Event::Notice { text, .. }] = &shards.events[..] else { panic!("{:?}", shards.events) };
        assert!(text.starts_with("80 more connections were refused"), "{text}");
        shards.connect(0, PLAIN, "192.0.2.1");
        assert_eq!(shards.events.len(), 2, "the next is told again");
    }
}
