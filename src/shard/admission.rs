//! Whether a client's connection is taken: asked when it comes, or when a PROXY header has told whose it is. What is refused
//! is counted by reason, and told in the log within bounds: an attack must not fill the disk with its own story.
//!
//! Not here: the counting (src/policy/session_limits.rs, src/policy/connection_rate.rs).

use crate::clock::Now;
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
use std::net::{IpAddr, SocketAddr};

/// The clients of one shard as they come.
#[derive(Debug)]
pub struct Admission {
    sessions: SessionLimits,
    /// Refused connections that the log was told of lately.
    told: u32,
    /// And those it was not.
    untold: u64,
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
        Admission { sessions, told: 0, untold: 0 }
    }

    /// A client that was counted has gone.
    pub fn release(&mut self, client: IpAddr) {
        self.sessions.release(client);
    }
}

impl Core {
    pub(super) fn inbound_accepted(
        &mut self,
        listener: usize,
        peer: SocketAddr,
        now: Now,
        out: &mut Vec<u8>,
    ) -> Option<ConnId> {
        self.metrics.sessions_total += 1;
        let settings = &self.settings.listeners[listener];
        let (config, implicit_tls) = (settings.session.clone(), settings.implicit_tls);
        let admitted = if config.proxy { self.admit_unknown(peer.ip()) } else { self.admit(listener, peer.ip(), now) };
        if let Err(refusal) = admitted {
            let reply = self.refuse_connection(peer, refusal);
            // Whoever is about to begin with a handshake would not understand.
            if !implicit_tls {
                reply.write_to(out);
            }
            return None;
        }
        let mut session = Session::new(config, implicit_tls, now.instant);
        session.start(now.instant, out);
        let conn = self.connections.allocate();
        let state = InboundState::new(conn, listener, peer);
        self.connections.put(conn, Conn::Inbound(Box::new(Inbound { session, state })));
        Some(conn)
    }

    fn admit(&mut self, listener: usize, client: IpAddr, now: Now) -> Result<(), Refusal> {
        if self.stopping.is_some() {
            return Err(Refusal::Stopping);
        }
        let trusted = self.check_rate(listener, client, now)?;
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
        let admitted = self
            .check_rate(usize::from(state.listener), client.ip(), now)
            .and_then(|trusted| self.admission.sessions.identify(state.client.ip(), client.ip(), trusted));
        match admitted {
            Ok(()) => {
                state.client = client;
                Ok(())
            }
            Err(refusal) => Err(self.refuse_connection(client, refusal)),
        }
    }

    /// Counts a connection for its client's rate and its network's, but for those that have none. Gives whether it is one of
    /// a network that the listener trusts.
    fn check_rate(&self, listener: usize, client: IpAddr, now: Now) -> Result<bool, Refusal> {
        let trusted = self.settings.listeners[listener].relay.trusts(client);
        if !trusted && !self.admission.sessions.is_exempt(client) {
            self.settings.connection_rates.admit(client, now.instant)?;
        }
        Ok(trusted)
    }

    /// Counts a refused connection, tells the log of it unless there were many, and gives what the client is told.
    fn refuse_connection(&mut self, client: SocketAddr, refusal: Refusal) -> Reply {
        let reply = refusal.reply();
        self.metrics.refused_connections[refusal.index()] += 1;
        if self.admission.told < CONNECTIONS_TOLD {
            self.admission.told += 1;
            self.event(Event::Rejected {
                client: client.ip(),
                sender: "".into(),
                recipient: None,
                reply: reply.to_string().into(),
            });
        } else {
            self.admission.untold += 1;
        }
        reply
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
    use crate::clock::{Instant, UnixTime};
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

    /// Shards of one process, and what they have reported.
    struct Shards {
        cores: Vec<Core>,
        now: Now,
        events: Vec<Event>,
    }

    impl Shards {
        fn new(limits: &str) -> Shards {
            let text = format!(
                "[[listener]]\naddress = \"127.0.0.1:25\"\ntrusted = \"10.0.0.0/8\"\n\
                 [[listener]]\naddress = \"127.0.0.1:26\"\ntrusted = \"10.0.0.0/8\"\nproxy = true\n\
                 [[listener]]\naddress = \"127.0.0.1:465\"\ntrusted = \"10.0.0.0/8\"\ntls = \"implicit\"\n[limits]\n{limits}"
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
                    recovering: false,
                })
            };
            let now = Now { instant: Instant::from_nanos(1_000_000_000), ..Now::default() };
            Shards { cores: vec![core(0), core(1)], now, events: Vec::new() }
        }

        fn take_events(&mut self) {
            for core in &mut self.cores {
                while let Some(command) = core.poll_command() {
                    if let Command::Report(Report::Event { event, .. }) = command {
                        self.events.push(event);
                    }
                }
            }
        }

        fn connect(&mut self, shard: usize, listener: usize, client: &str) -> (Option<ConnId>, String) {
            let (mut out, peer) = (Vec::new(), SocketAddr::new(client.parse().unwrap(), 4000));
            let conn = self.cores[shard].accepted(listener, peer, peer, self.now, &mut out);
            self.take_events();
            (conn, String::from_utf8(out).unwrap())
        }

        fn say(&mut self, shard: usize, conn: ConnId, text: &str) -> String {
            let mut out = Vec::new();
            self.cores[shard].received(conn, text.as_bytes(), self.now, &mut out);
            self.take_events();
            String::from_utf8(out).unwrap()
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
        assert_eq!(shards.refused(), [0, 0, 0, 0, 3, 1]);
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
