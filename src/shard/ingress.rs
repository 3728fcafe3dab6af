//! A client's session at this shard: what the protocol asks (src/smtp/server.rs) is answered here from policy, bounds
//! and the spool.
//!
//! Not here: waiting for the commit (src/shard/storing.rs). A session that dies takes its unfinished transaction with
//! it; a transaction whose content is complete is stored all the same.

use crate::address::Address;
use crate::clock::{Instant, Now};
use crate::envelope::{Envelope, Recipient};
use crate::event::Event;
use crate::id::MessageId;
use crate::io::handler::{CloseReason, ConnId, TlsInfo, TlsSide};
use crate::limits::{INLINE_CONTENT_START, SPILL_CHUNK, SPILL_PIECES_MAX};
use crate::policy::admission::Refusal;
use crate::policy::charge::Charge;
use crate::policy::identity::Credential;
use crate::policy::quota::Counted;
use crate::policy::trace;
use crate::reply::Reply;
use crate::shard::connections::Conn;
use crate::shard::core::Core;
use crate::shard::settings::ListenerSettings;
use crate::shard::spilling::Spill;
use crate::shard::storing::{Origin, refusal};
use crate::smtp::sasl::{Channel, Login};
use crate::smtp::scram::ScramOffer;
use crate::smtp::server::{Bounds, MailFrom, Session, Step, Transactions};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// One client's session.
#[derive(Debug)]
pub struct Inbound {
    /// The protocol.
    pub session: Session,
    /// Everything else.
    pub state: InboundState,
}

/// What the shard knows of a session besides its protocol.
#[derive(Debug)]
pub struct InboundState {
    /// The connection.
    pub conn: ConnId,
    /// Which listener took it.
    pub listener: u16,
    /// The client, as the PROXY header says where one is expected.
    pub client: SocketAddr,
    /// The name given with HELO or EHLO.
    pub helo: Box<str>,
    /// Whether it was EHLO.
    pub extended: bool,
    /// What it has logged in with.
    pub credential: Option<Arc<Credential>>,
    /// The handshake's facts, once there was one.
    pub tls: Option<TlsInfo>,
    /// What is being received.
    pub incoming: Option<Box<Incoming>>,
    /// Whether bytes were left with the machine, to be asked for again.
    pub paused: bool,
    /// Whether the session waits for the commit of its message.
    pub storing: bool,
    /// The address by which the client reached us, unless a proxy stands between.
    pub local: Option<IpAddr>,
    /// Whether it is one of those that wait for the answer to an error.
    pub tarpitted: bool,
    /// Whether the connection counts for the rates of its client and network.
    pub rated: bool,
}

/// A message on its way in.
#[derive(Debug)]
pub struct Incoming {
    /// As far as it is known.
    pub envelope: Envelope,
    /// Given out when the content begins.
    pub id: MessageId,
    /// Trace headers, then content, as far as it is still in memory.
    pub content: Vec<u8>,
    /// Octets of our trace headers at the start of the content.
    pub trace_len: usize,
    /// Octets in all, trace headers included.
    pub len: u64,
    /// Octets of `content` that the shard has counted.
    pub counted: usize,
    /// What has gone to a file of its own.
    pub spill: Option<Spill>,
    /// The content's end was reached.
    pub complete: bool,
    /// What it counts for; given back when it ends here.
    pub charge: Option<Charge>,
}

impl Core {
    pub(super) fn inbound_received(
        &mut self,
        mut inbound: Box<Inbound>,
        bytes: &[u8],
        now: Now,
        out: &mut Vec<u8>,
    ) -> usize {
        if inbound.state.storing || inbound.state.must_wait_for_disk() {
            inbound.state.paused = true;
            let conn = inbound.state.conn;
            self.connections.put(conn, Conn::Inbound(inbound));
            return 0;
        }
        let Inbound { session, state } = &mut *inbound;
        let mut owner = Receiving { core: self, state };
        let (used, step) = session.handle_input(bytes, now, &mut owner, out);
        self.metrics.bytes_received += used as u64;
        inbound.state.paused = used < bytes.len();
        self.wake_when_due(&inbound);
        if matches!(step, Step::Read) && !inbound.state.must_wait_for_disk() {
            // The session stopped for the length of its replies: once they are sent the machine goes on.
            self.resume(&mut inbound.state);
        }
        self.after_step(inbound, step);
        used
    }

    /// Puts a session back and does what its protocol asks next.
    pub(super) fn after_step(&mut self, mut inbound: Box<Inbound>, step: Step) {
        let conn = inbound.state.conn;
        match step {
            Step::Read => {}
            Step::AwaitStorage => inbound.state.storing = true,
            Step::AwaitAuthentication | Step::Wait => {}
            Step::StartTls => self.start_tls(conn, TlsSide::Server { begun: false }),
            Step::BeginTls => {
                inbound.state.paused = false;
                self.start_tls(conn, TlsSide::Server { begun: true });
            }
            Step::Close => self.close(conn, true),
        }
        self.connections.put(conn, Conn::Inbound(inbound));
    }

    pub(super) fn inbound_tls_started(
        &mut self,
        mut inbound: Box<Inbound>,
        info: TlsInfo,
        now: Now,
        out: &mut Vec<u8>,
    ) {
        inbound.session.handle_tls_started(now.instant, out);
        inbound.state.tls = Some(info);
        inbound.state.helo = Box::default();
        self.wake_when_due(&inbound);
        self.connections.put(inbound.state.conn, Conn::Inbound(inbound));
    }

    /// The machine closed the connection, or somebody asked for it.
    pub(super) fn inbound_closed(&mut self, mut inbound: Box<Inbound>, reason: CloseReason) {
        self.admission.release(inbound.state.client.ip());
        self.admission.leave_tarpit(&mut inbound.state);
        if let CloseReason::Error(what) | CloseReason::Tls(what) = reason {
            self.event(Event::SessionTrouble { client: inbound.state.client, what: what.into() });
        }
        // A message whose record is appended is no longer here: it will be delivered although nobody hears the 250.
        self.drop_incoming(&mut inbound.state);
    }

    /// Forgets what was received so far.
    pub(super) fn drop_incoming(&mut self, state: &mut InboundState) {
        if let Some(incoming) = state.incoming.take() {
            self.content_octets -= incoming.counted;
            if incoming.spill.is_some() {
                self.log.remove_spill(incoming.id.0);
            }
        }
    }

    /// Ends a session whose deadline has passed.
    pub(super) fn inbound_timeout(&mut self, conn: ConnId, now: Now) {
        let Some(mut inbound) = self.connections.take_inbound(conn) else { return };
        if inbound.state.storing || inbound.session.deadline() > now.instant {
            self.connections.put(conn, Conn::Inbound(inbound));
            return;
        }
        let mut out = Vec::new();
        let step = inbound.session.handle_timeout(now.instant, &mut out);
        self.send(conn, out.into());
        if matches!(step, Step::Close) {
            self.drop_incoming(&mut inbound.state);
        }
        self.go_on(&mut inbound.state);
        self.after_step(inbound, step);
    }

    /// Tells a session that the shard stops; it ends now or after its transaction.
    pub(super) fn inbound_shutdown(&mut self, conn: ConnId) {
        let Some(mut inbound) = self.connections.take_inbound(conn) else { return };
        if inbound.state.storing {
            self.connections.put(conn, Conn::Inbound(inbound));
            return;
        }
        let mut out = Vec::new();
        let step = inbound.session.handle_shutdown(&mut out);
        self.send(conn, out.into());
        self.go_on(&mut inbound.state);
        self.after_step(inbound, step);
    }

    pub(super) fn reject(&mut self, client: SocketAddr, sender: &str, recipient: Option<&str>, reply: &Reply) {
        self.metrics.rejected += 1;
        self.event(Event::Rejected {
            client: client.ip(),
            sender: sender.into(),
            recipient: recipient.map(Into::into),
            reply: reply.to_string().into(),
            filter: None,
        });
    }
}

impl InboundState {
    /// Of a connection that has just been taken.
    pub(super) fn new(conn: ConnId, listener: usize, client: SocketAddr, local: Option<IpAddr>) -> InboundState {
        InboundState {
            conn,
            listener: listener as u16,
            client,
            helo: Box::default(),
            extended: false,
            credential: None,
            tls: None,
            incoming: None,
            paused: false,
            storing: false,
            local,
            tarpitted: false,
            rated: false,
        }
    }

    /// Who sends.
    pub(super) fn origin(&self, charge: Option<Charge>) -> Origin {
        let (client, helo) = (self.client.ip(), self.helo.clone());
        Origin { conn: self.conn, client, helo, tls: self.tls.is_some(), charge }
    }

    /// Whether the disk is so far behind with this message that no more is read.
    fn must_wait_for_disk(&self) -> bool {
        let spill = self.incoming.as_ref().and_then(|incoming| incoming.spill.as_ref());
        spill.is_some_and(|spill| spill.in_flight >= SPILL_PIECES_MAX)
    }
}

/// A session together with its shard, for as long as the protocol asks.
pub(super) struct Receiving<'a> {
    pub(super) core: &'a mut Core,
    pub(super) state: &'a mut InboundState,
}

impl Receiving<'_> {
    fn refuse(&mut self, recipient: Option<&str>, reply: Reply) -> Reply {
        let sender = self.state.incoming.as_ref().and_then(|incoming| incoming.envelope.reverse_path.clone());
        self.core.reject(self.state.client, sender.as_ref().map_or("", |sender| sender.as_str()), recipient, &reply);
        reply
    }

    pub(super) fn listener(&self) -> &ListenerSettings {
        &self.core.settings.listeners[usize::from(self.state.listener)]
    }
}

impl Transactions for Receiving<'_> {
    fn proxied(&mut self, client: SocketAddr, now: Now) -> Result<(), Reply> {
        self.core.identify(self.state, client, now)
    }

    fn trusts_client(&self) -> bool {
        self.core.settings.listeners[usize::from(self.state.listener)].relay.trusts(self.state.client.ip())
    }

    fn spoke_early(&mut self) {
        self.core.refuse_connection(self.state.client, Refusal::EarlyTalker);
    }

    fn keep_waiting(&mut self) -> bool {
        self.core.keep_waiting(self.state)
    }

    fn is_own_address(&self, address: IpAddr) -> bool {
        self.state.local.is_some_and(|local| local.to_canonical() == address.to_canonical())
    }

    fn hello(&mut self, name: &str, extended: bool) {
        self.state.helo = name.into();
        self.state.extended = extended;
    }

    fn authenticate(&mut self, login: Login, now: Now) -> Option<Result<(), Reply>> {
        let certificate = self.state.tls.as_ref().and_then(|tls| tls.client.clone());
        let (conn, client) = (self.state.conn, self.state.client.ip());
        let credential = self.core.authenticate(conn, client, login, certificate, now)?;
        self.core.logged_in(self.state, credential, now);
        Some(Ok(()))
    }

    fn channel(&self) -> Channel {
        self.state
            .tls
            .as_ref()
            .map_or(Channel::default(), |tls| Channel { exporter: tls.exporter, certified: tls.client.is_some() })
    }

    fn scram(&mut self, name: &str, now: Now) -> Option<ScramOffer> {
        Some(self.core.scram(name, now))
    }

    fn bounds(&self, sender: Option<&Address>) -> Bounds {
        self.core.bounds(self.state, sender)
    }

    fn forget_login(&mut self) {
        self.state.credential = None;
    }

    fn mail(&mut self, mail: MailFrom, now: Now) -> Result<(), Reply> {
        if self.core.stopping.is_some() {
            return Err(Reply::fixed(421, 4, 3, 2, "Shutting down; try again later"));
        }
        if let Some(full) = self.core.log.refusal_of_messages()
            && !self.core.log.room_is_coming()
        {
            return Err(self.refuse(None, refusal(full)));
        }
        if let Some(credential) = &self.state.credential {
            let current = self.core.current_credential(credential, self.state.client.ip(), now);
            let current = current.map_err(|reply| self.refuse(None, reply))?;
            if let Some(Err(reply)) = mail.reverse_path.as_ref().map(|sender| current.may_send_as(sender)) {
                self.core.reject(
                    self.state.client,
                    mail.reverse_path.as_ref().map_or("", |one| one.as_str()),
                    None,
                    &reply,
                );
                return Err(reply);
            }
            self.state.credential = Some(current);
        }
        let tenant = self.core.tenant_of(self.state, mail.reverse_path.as_ref()).map(Box::<str>::from);
        let tenant = tenant.map_err(|reply| self.refuse(None, reply))?;
        self.core.may_send(self.state, &tenant, Counted::Messages, 1, now).map_err(|reply| self.refuse(None, reply))?;
        // Where a header may name another tenant it is judged when that has come.
        let later = self.core.is_named_later(self.state);
        if let Some(sender) = mail.reverse_path.as_ref().filter(|_| !later)
            && let Err(reply) = self.core.directory.load().may_return_to(&tenant, sender)
        {
            self.core.reject(self.state.client, sender.as_str(), None, &reply);
            return Err(reply);
        }
        let envelope = Envelope {
            reverse_path: mail.reverse_path,
            body: mail.body,
            smtputf8: mail.smtputf8,
            ret: mail.ret,
            envid: mail.envid,
            recipients: Vec::with_capacity(1),
            tenant,
            arrived: now.unix,
            client: Box::default(),
            require_tls: mail.require_tls,
            is_dsn: false,
            held: None,
        };
        self.state.incoming = Some(Box::new(Incoming {
            envelope,
            id: MessageId(0),
            content: Vec::new(),
            trace_len: 0,
            len: 0,
            counted: 0,
            spill: None,
            complete: false,
            charge: None,
        }));
        Ok(())
    }

    fn recipient(&mut self, recipient: Recipient, now: Now) -> Result<(), Reply> {
        let listener = &self.core.settings.listeners[usize::from(self.state.listener)];
        if let Err(reply) =
            listener.relay.may_relay(self.state.client.ip(), self.state.tls.is_some(), self.state.credential.is_some())
        {
            return Err(self.refuse(Some(recipient.address.as_str()), reply));
        }
        if let Some(Envelope { tenant, recipients, .. }) = self.state.incoming.as_ref().map(|one| &one.envelope)
            && let Err(reply) =
                self.core.may_send(self.state, tenant, Counted::Recipients, recipients.len() as u32 + 1, now)
        {
            return Err(self.refuse(Some(recipient.address.as_str()), reply));
        }
        if let Some(Envelope { tenant, .. }) = self.state.incoming.as_ref().map(|one| &one.envelope)
            && let Err(reply) = self.core.check_suppressed(self.state, tenant, recipient.address.as_str())
        {
            return Err(self.refuse(Some(recipient.address.as_str()), reply));
        }
        if let Some(incoming) = self.state.incoming.as_mut() {
            incoming.envelope.recipients.push(recipient);
        }
        Ok(())
    }

    fn begin_content(&mut self, now: Now) -> Result<(), Reply> {
        if self.core.content_octets >= self.core.content_ceiling {
            let reply = Reply::fixed(452, 4, 3, 1, "Too much content under way; try again later");
            return Err(self.refuse(None, reply));
        }
        self.core.count_message(self.state, false, now).map_err(|reply| self.refuse(None, reply))?;
        let id = self.core.ids.next(now.unix);
        let Some(incoming) = self.state.incoming.as_mut() else { return Ok(()) };
        incoming.id = id;
        let received = trace::Received {
            helo: &self.state.helo,
            client: self.state.client.ip(),
            host: &self.core.settings.hostname,
            extended: self.state.extended,
            tls: self.state.tls.as_ref().map(|tls| (tls.version, tls.cipher)),
            authenticated: self.state.credential.is_some(),
            smtputf8: incoming.envelope.smtputf8,
            id,
            recipient: match &incoming.envelope.recipients[..] {
                [only] => Some(only.address.as_str()),
                _ => None,
            },
            at: now.unix,
        };
        incoming.content.reserve(INLINE_CONTENT_START);
        received.write_to(&mut incoming.content);
        incoming.trace_len = incoming.content.len();
        incoming.len = incoming.content.len() as u64;
        incoming.counted = incoming.content.len();
        incoming.envelope.client = trace::client_name(&self.state.helo, self.state.client.ip());
        self.core.content_octets += incoming.counted;
        Ok(())
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), Reply> {
        let Some(incoming) = self.state.incoming.as_mut() else { return Ok(()) };
        if incoming.spill.as_ref().is_some_and(|spill| spill.failed) {
            return Err(Reply::fixed(452, 4, 3, 1, "The spool could not take the message; try again later"));
        }
        incoming.content.extend_from_slice(bytes);
        incoming.len += bytes.len() as u64;
        incoming.counted += bytes.len();
        self.core.content_octets += bytes.len();
        let crowded = self.core.content_octets > self.core.settings.content_memory;
        if incoming.content.len() >= self.core.settings.spill_above.max(SPILL_CHUNK)
            || (crowded && incoming.content.len() >= SPILL_CHUNK)
        {
            if incoming.spill.is_none() {
                self.begin_spill(self.core.now).map_err(|reply| self.refuse(None, reply))?;
            }
            // What was taken out of the header section may have left less than a piece.
            if self.state.incoming.as_ref().is_some_and(|incoming| incoming.content.len() >= SPILL_CHUNK) {
                self.spill(false);
            }
        }
        Ok(())
    }

    fn end_content(&mut self, now: Now) -> Result<(), Reply> {
        let Some(incoming) = self.state.incoming.as_mut() else { return Ok(()) };
        if incoming.spill.as_ref().is_some_and(|spill| spill.failed) {
            return Err(Reply::fixed(452, 4, 3, 1, "The spool could not take the message; try again later"));
        }
        if incoming.spill.is_some() {
            return self.end_spill(now).map_err(|reply| self.refuse(None, reply));
        }
        let signer = self.check_headers(now).map_err(|reply| self.refuse(None, reply))?;
        let Some(mut incoming) = self.state.incoming.take() else { return Ok(()) };
        let origin = self.state.origin(incoming.charge.take());
        if !self.listener().filters.is_empty() {
            let question = self.core.filter_question(self.state, &incoming.envelope, incoming.id);
            self.core.await_filters(origin, *incoming, signer, question);
            return Ok(());
        }
        if let Some(domain) = signer {
            self.core.await_signature(origin, *incoming, domain);
            return Ok(());
        }
        self.core.content_octets -= incoming.counted;
        self.core.store_inline(origin, *incoming, now).map_err(|reply| self.refuse(None, reply))
    }

    fn abort(&mut self) {
        self.core.drop_incoming(self.state);
    }
}

/// When a session must have moved on, seen from outside.
pub(super) fn deadline(inbound: &Inbound) -> Instant {
    if inbound.state.storing { Instant::MAX } else { inbound.session.deadline() }
}
