//! Our connections to destinations: opened within the site's limits, given one transaction after the other, and kept
//! for a while without.
//!
//! Not here: the protocol (src/smtp/client.rs) and what a transaction carries (src/shard/work.rs). A
//! connection that fails gives its undecided recipients back: they go to the next host, or wait with their site.

use crate::clock::{Instant, Now};
use crate::io::handler::{CloseReason, Command, ConnId, TlsInfo, TlsSide};
use crate::policy::outbound_tls::{ConnectionTls, HostTls};
use crate::queue::SiteId;
use crate::reply::Reply;
use crate::shard::ahead::Ahead;
use crate::shard::attempt::{AttemptOutcome, Verdict};
use crate::shard::connections::Conn;
use crate::shard::core::Core;
use crate::shard::permits::ConnectionPermit;
use crate::shard::work::Work;
use crate::smtp::client::{Client, ClientConfig, ClientEvent, ClientFailure, FailureKind, Stage, TlsUse};
use ringpost_spool::OpId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// One of our connections.
#[derive(Debug)]
pub struct Outbound {
    pub(super) conn: ConnId,
    pub(super) client: Client,
    pub(super) site: SiteId,
    pub(super) address: SocketAddr,
    pub(super) remote: Box<str>,
    /// Held for as long as the connection is: dropping it frees the site's place.
    pub(super) permit: ConnectionPermit,
    pub(super) phase: Phase,
    pub(super) work: Option<Box<Work>>,
    /// The work behind it.
    pub(super) ahead: Option<Ahead>,
    /// The transaction under way began so.
    pub(super) began_ahead: bool,
    pub(super) carried: u32,
    pub(super) tls: Option<TlsInfo>,
    /// What it is told about TLS.
    pub(super) wish: Box<ConnectionTls>,
    /// The next piece of content is fetched when the machine has taken the one before.
    pub(super) wanted: Option<(u64, usize)>,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not yet of use: connecting, greeting, TLS.
    Opening,
    /// Without work since then.
    Idle(Instant),
    /// The content is being read from the spool.
    Fetching(OpId),
    /// A transaction is under way.
    Busy,
    /// QUIT was said, or the connection was given up.
    Ending,
}

impl Outbound {
    /// Where it leads.
    pub fn site(&self) -> SiteId {
        self.site
    }

    /// Since when it has had no work, if it has none.
    pub fn idle_since(&self) -> Option<Instant> {
        match self.phase {
            Phase::Idle(since) => Some(since),
            _ => None,
        }
    }
}

/// When a connection needs to be looked at, seen from outside.
pub(super) fn deadline(outbound: &Outbound, idle_timeout: Duration) -> Instant {
    match outbound.phase {
        Phase::Idle(since) => since.after(idle_timeout),
        Phase::Fetching(_) => Instant::MAX,
        Phase::Opening | Phase::Busy | Phase::Ending => outbound.client.deadline(),
    }
}

impl Core {
    /// Opens a connection to one address of a site.
    pub(super) fn open(&mut self, site: SiteId, address: SocketAddr, permit: ConnectionPermit, now: Now) {
        let Some(known) = self.sites.get_mut(site) else { return };
        known.open += 1;
        known.opening += 1;
        let from = self.settings.routes[known.permits.route].source;
        let permits = Arc::clone(&known.permits);
        let shape = &permits.shape;
        let (name, without_tls, wish) = known.host_mut(address).map_or((None, false, HostTls::None), |host| {
            (Some(host.name.clone()), host.no_tls_until > now.instant, host.tls.clone())
        });
        let mut tls = ConnectionTls::new(&shape.tls, name.as_deref().unwrap_or_default(), &wish);
        if without_tls && tls.may_do_without() {
            tls.tls_use = TlsUse::Never;
        }
        let config = if tls.tls_use == shape.client.tls {
            Arc::clone(&shape.client)
        } else {
            Arc::new(ClientConfig { tls: tls.tls_use, ..(*shape.client).clone() })
        };
        let timeout = shape.connect_timeout;
        let remote = match name {
            Some(name) if *name != *address.ip().to_string() => format!("{name} [{}]:{}", address.ip(), address.port()),
            _ => format!("[{}]:{}", address.ip(), address.port()),
        };
        let conn = self.connections.allocate();
        let outbound = Outbound {
            conn,
            client: Client::new(config, now.instant),
            site,
            address,
            remote: remote.into(),
            permit,
            phase: Phase::Opening,
            work: None,
            ahead: None,
            began_ahead: false,
            carried: 0,
            tls: None,
            wish: Box::new(tls),
            wanted: None,
        };
        self.connections.put(conn, Conn::Outbound(Box::new(outbound)));
        self.metrics.outgoing_total += 1;
        self.commands.push_back(Command::Connect { conn, to: address, from, timeout });
    }

    pub(super) fn outbound_connect_failed(&mut self, outbound: Box<Outbound>, error: &str, now: Now) {
        let Outbound { site, address, remote, permit, .. } = *outbound;
        if let Some(known) = self.sites.get_mut(site) {
            known.opening -= 1;
        }
        self.connection_gone(site, permit);
        self.host_failed(site, address, &format!("connecting to {remote}: {error}"), now);
    }

    pub(super) fn outbound_received(&mut self, mut outbound: Box<Outbound>, bytes: &[u8], now: Now) {
        outbound.client.handle_input(bytes, now.instant);
        self.drive(outbound, now);
    }

    pub(super) fn outbound_tls_started(&mut self, mut outbound: Box<Outbound>, info: TlsInfo, now: Now) {
        match &info.unproven {
            Some(unproven) if outbound.wish.enforced => outbound.client.handle_unproven(&unproven.text),
            _ => outbound.client.handle_tls_started(now.instant),
        }
        outbound.tls = Some(info);
        self.drive(outbound, now);
    }

    /// The machine says that the connection is gone; nothing more comes from it.
    pub(super) fn outbound_closed(&mut self, mut outbound: Box<Outbound>, reason: CloseReason, now: Now) {
        if outbound.phase != Phase::Ending {
            if let CloseReason::Tls(what) = &reason
                && outbound.wish.may_do_without()
            {
                self.host_without_tls(outbound.site, outbound.address, what, now);
                self.give_up(&mut outbound, now);
            } else {
                let what = match reason {
                    CloseReason::Asked | CloseReason::Peer => "the peer closed the connection".to_string(),
                    CloseReason::Error(what) => what,
                    CloseReason::Tls(what) => format!("TLS failed: {what}; {} forbids to do without", outbound.wish.by),
                };
                outbound.client.handle_closed(&what, now.instant);
                outbound = match self.work_events(outbound, now) {
                    Some(outbound) => outbound,
                    None => return,
                };
            }
        }
        self.outbound_ended(outbound, now);
    }

    fn outbound_ended(&mut self, mut outbound: Box<Outbound>, now: Now) {
        self.give_up(&mut outbound, now);
        let Outbound { site, permit, .. } = *outbound;
        self.connection_gone(site, permit);
    }

    /// The connection is of no use from here on: it is counted as such, whatever it did last.
    pub(super) fn give_up(&mut self, outbound: &mut Outbound, now: Now) {
        let phase = std::mem::replace(&mut outbound.phase, Phase::Ending);
        if let Phase::Fetching(op) = phase {
            self.fetching.remove(&op);
        }
        self.return_ahead(outbound, now);
        let Some(known) = self.sites.get_mut(outbound.site) else { return };
        match phase {
            Phase::Opening => known.opening -= 1,
            Phase::Idle(_) => {
                known.idle.retain(|&idle| idle != outbound.conn);
                known.working -= 1;
            }
            Phase::Fetching(_) | Phase::Busy => known.working -= 1,
            Phase::Ending => {}
        }
    }

    /// A connection's time to answer, or to be idle, is over.
    pub(super) fn outbound_timeout(&mut self, conn: ConnId, now: Now) {
        let Some(mut outbound) = self.connections.take_outbound(conn) else { return };
        match outbound.phase {
            Phase::Idle(_) => self.quit(outbound, now),
            Phase::Ending => {
                self.close(conn, false);
                self.connections.put(conn, Conn::Outbound(outbound));
            }
            Phase::Opening | Phase::Busy | Phase::Fetching(_) => {
                outbound.client.handle_timeout(now.instant);
                self.drive(outbound, now);
            }
        }
    }

    /// Ends a connection that has nothing to do.
    pub(super) fn quit(&mut self, mut outbound: Box<Outbound>, now: Now) {
        self.give_up(&mut outbound, now);
        outbound.client.quit(now.instant);
        self.drive(outbound, now);
    }

    /// Ends a connection if it is idle, in favour of another shard or since this one stops.
    pub(super) fn quit_if_idle(&mut self, conn: ConnId, in_favour_of: Option<u8>, now: Now) {
        let Some(mut outbound) = self.connections.take_outbound(conn) else { return };
        match outbound.phase {
            Phase::Idle(_) => {
                if let Some(to) = in_favour_of {
                    outbound.permit.promise(to);
                }
                self.quit(outbound, now);
            }
            _ => self.connections.put(conn, Conn::Outbound(outbound)),
        }
    }

    /// Gives an idle connection work. False when there was none to give (the connection stays idle or is given up).
    pub(super) fn start_idle(&mut self, conn: ConnId, now: Now) -> bool {
        let Some(outbound) = self.connections.take_outbound(conn) else { return true };
        self.next_transaction(outbound, now)
    }

    /// Carries out what the client's side of the protocol wants, and puts the connection back.
    pub(super) fn drive(&mut self, outbound: Box<Outbound>, now: Now) {
        if let Some(outbound) = self.work_events(outbound, now) {
            self.connections.put(outbound.conn, Conn::Outbound(outbound));
        }
    }

    /// Sends and learns what there is. None when the connection was put back on the way.
    fn work_events(&mut self, mut outbound: Box<Outbound>, now: Now) -> Option<Box<Outbound>> {
        loop {
            if outbound.client.may_begin_ahead() {
                self.begin_ahead(&mut outbound, now);
            }
            while let Some(bytes) = outbound.client.poll_transmit() {
                self.send(outbound.conn, bytes);
            }
            let Some(event) = outbound.client.poll_event() else { return Some(outbound) };
            match event {
                ClientEvent::Ready => {
                    if outbound.phase == Phase::Opening {
                        if let Some(known) = self.sites.get_mut(outbound.site) {
                            known.opening -= 1;
                            known.working += 1;
                        }
                        // Counted as opened: whatever comes next must not count it down again.
                        outbound.phase = Phase::Busy;
                        self.host_works(outbound.site, outbound.address, now);
                    }
                    self.next_transaction(outbound, now);
                    return None;
                }
                ClientEvent::Next => self.next_in_place(&mut outbound, now),
                ClientEvent::StartTls => {
                    let name = outbound.remote.split(' ').next().unwrap_or_default();
                    let name = if name.starts_with('[') { outbound.address.ip().to_string() } else { name.to_string() };
                    let (setup, proof) = (outbound.wish.setup, outbound.wish.proof.clone());
                    self.start_tls(outbound.conn, TlsSide::Client { name, setup, proof });
                }
                ClientEvent::WantContent { offset, max } => {
                    outbound.wanted = Some((offset, max));
                    self.commands.push_back(Command::NotifySent(outbound.conn));
                }
                ClientEvent::Recipient { index, outcome } => {
                    self.note_outcome(&mut outbound, index, outcome, now);
                }
                ClientEvent::Failed(failure) => {
                    self.outbound_failed(&mut outbound, failure, now);
                    self.close(outbound.conn, false);
                }
                ClientEvent::Closed => self.close(outbound.conn, true),
            }
        }
    }

    /// Chooses what the connection does next. False when it has nothing to do.
    fn next_transaction(&mut self, mut outbound: Box<Outbound>, now: Now) -> bool {
        let site = outbound.site;
        let spent = self.is_spent(&outbound);
        let poorer = self.poorer_shard(site);
        let beyond = self.sites.get(site).is_some_and(|known| known.permits.connections() > known.permits.allowed());
        let gives_way = spent || beyond || poorer.is_some() || self.should_make_room(&outbound);
        if self.stopping.is_some() || gives_way || self.makes_way(&outbound) {
            if let Some(to) = poorer {
                outbound.permit.promise(to);
            }
            self.quit(outbound, now);
            return spent;
        }
        if !self.has_work(site) && outbound.ahead.is_none() {
            if self.is_better_given_up(&outbound) {
                self.quit(outbound, now);
                return false;
            }
            self.go_idle(outbound, now);
            return false;
        }
        if !self.log.accepts_outcomes() {
            self.return_ahead(&mut outbound, now);
            self.go_idle(outbound, now);
            self.touch(site);
            return false;
        }
        if outbound.ahead.is_some() {
            self.begin_chosen(&mut outbound, now);
            self.drive(outbound, now);
            return true;
        }
        let Some(permits) = self.sites.get(site).map(|known| Arc::clone(&known.permits)) else { return false };
        if !self.take_transaction(site, now) {
            self.go_idle(outbound, now);
            return false;
        }
        let Some(work) = self.next_work(site, permits.shape.limits.recipients_per_transaction, now) else {
            permits.return_transaction();
            self.go_idle(outbound, now);
            return false;
        };
        outbound.carried += 1;
        self.start_work(&mut outbound, work, now);
        self.drive(outbound, now);
        true
    }

    /// Whether a connection has carried as many messages as it should.
    pub(super) fn is_spent(&self, outbound: &Outbound) -> bool {
        let site = self.sites.get(outbound.site).and_then(|known| known.permits.shape.limits.messages_per_connection);
        let peer = outbound.client.peer().mail_max();
        [site, peer].into_iter().flatten().any(|most| outbound.carried >= most)
    }

    fn go_idle(&mut self, mut outbound: Box<Outbound>, now: Now) {
        let site = outbound.site;
        outbound.phase = Phase::Idle(now.instant);
        if let Some(known) = self.sites.get_mut(site) {
            known.idle.push(outbound.conn);
        }
        self.connections.put(outbound.conn, Conn::Outbound(outbound));
        // Another shard may wait for it. Only without work: else the site would be looked at again and again.
        if !self.has_work(site) {
            self.touch(site);
        }
    }

    /// The connection is of no use any more. What was under way is given back or, when it may have arrived, deferred.
    fn outbound_failed(&mut self, outbound: &mut Outbound, failure: ClientFailure, now: Now) {
        let mut what = failure.to_string();
        if failure.kind.is_for_want_of_tls() {
            what = format!("{what}; {} asks for it", outbound.wish.by);
        }
        let reason = format!("{}: {what}", outbound.remote);
        let reused = outbound.carried > 1;
        let opening = outbound.phase == Phase::Opening;
        let idle = matches!(outbound.phase, Phase::Idle(_));
        self.give_up(outbound, now);
        // Other connections to the site work: then it is this message, or chance, and no reason to stop. The message waits
        // for its retry, so that it does not break one connection after the other.
        let others_work = self.sites.get(outbound.site).is_some_and(|known| known.working > 0);
        let at_first_word = matches!(failure.stage, Stage::Idle | Stage::Mail);
        // Of a message that went ahead nothing was sent yet: the habit is to blame, neither it nor the host.
        let went_ahead = outbound.began_ahead && matches!(failure.stage, Stage::Mail | Stage::Recipient | Stage::Data);
        if went_ahead {
            self.ahead_failed(outbound, &failure);
        }
        if let FailureKind::Refused(reply) = &failure.kind {
            self.connection_refused(outbound.site, &outbound.remote, failure.stage, reply, now);
        }
        if let Some(work) = outbound.work.as_mut() {
            let decided_some = work.outcomes.iter().any(Option::is_some);
            // A peer that closes a connection it has kept before it answers to the first word has not read the rest.
            let unread = reused && failure.stage == Stage::Mail && matches!(failure.kind, FailureKind::Closed(_));
            let its_own = others_work && !(reused && at_first_word) && !went_ahead;
            if (failure.after_final_dot && !unread) || decided_some || its_own {
                let reply = failure_reply(&failure, &what);
                let outcome = AttemptOutcome {
                    verdict: Verdict::Deferred { not_before: None },
                    reply,
                    stage: Some(failure.stage),
                    remote: Some(outbound.remote.clone()),
                    tls: outbound.tls.as_ref().map(|tls| tls.version),
                    tls_policy: outbound.wish.by.policy(),
                    took: now.instant.since(work.began),
                    from_peer: matches!(failure.kind, FailureKind::Refused(_) | FailureKind::TlsRefused(_)),
                    peer_reports: false,
                    meaning: None,
                };
                for place in &mut work.outcomes {
                    place.get_or_insert_with(|| outcome.clone());
                }
            }
            self.finish_work(outbound, now);
        }
        if failure.stage == Stage::StartTls && outbound.wish.may_do_without() {
            // As when the handshake fails: the next connection does without.
            self.host_without_tls(outbound.site, outbound.address, &what, now);
            return;
        }
        // A peer that closes a connection it has served before, between transactions, does nothing wrong.
        let between = idle || (reused && failure.stage == Stage::Mail && !matches!(failure.kind, FailureKind::Timeout));
        if opening || !(between || others_work || went_ahead) {
            self.host_failed(outbound.site, outbound.address, &reason, now);
        }
        self.touch(outbound.site);
    }
}

fn failure_reply(failure: &ClientFailure, what: &str) -> Reply {
    match &failure.kind {
        FailureKind::Refused(reply) | FailureKind::TlsRefused(reply) => reply.clone(),
        _ => Reply::new(451, (4, 4, 2), what.to_string()),
    }
}
