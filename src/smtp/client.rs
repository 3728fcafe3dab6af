//! The client side of SMTP (RFC 5321) as a pure state machine: bytes and times in, bytes and events out.
//!
//! One [`Client`] serves one connection, from the greeting through any number of transactions to QUIT. It knows
//! PIPELINING, CHUNKING, STARTTLS, SIZE, 8BITMIME, SMTPUTF8, DSN and LIMITS. It is not for choosing hosts, pooling,
//! retrying or classifying replies, and does no IO: after each call the owner fetches what there is to send
//! (`poll_transmit`, one piece after another as the socket takes them; it must go on reading meanwhile, since the
//! peer answers a long flight while it is still being written) and then the events (`poll_event`).
//!
//! It fails by exactly one [`ClientEvent::Failed`], after which it does nothing more. Recipients without an
//! outcome by then are undecided.

pub use super::client_config::{ClientConfig, ClientTimeouts, TlsUse};
pub use super::client_event::{ClientEvent, ClientFailure, FailureKind, RecipientOutcome, Stage};
pub use super::client_transaction::{OutgoingContent, OutgoingRecipient, Transaction};
pub use super::peer::Peer;

use super::client_content::ContentPieces;
use super::client_exchange::{Ahead, Current};
use crate::clock::Instant;
use crate::reply::{Reply, ReplyReader};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;

/// What the dialogue waits for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    /// The owner runs the TLS handshake.
    Handshake,
    Idle,
    /// The message at `current`; `Current::step` says what is awaited.
    Transaction,
    /// RSET was sent.
    Reset,
    /// The transaction is over, but a piece of its content is still to come from the owner.
    Surplus,
    Quit,
    /// Failed or closed: nothing happens any more.
    Over,
}

/// Something to send.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// Commands, or the end of the content; `replies` are owed once it was handed out.
    Command {
        bytes: Bytes,
        replies: usize,
    },
    /// The same, of the next transaction: stands behind the end of the content before.
    Ahead {
        bytes: Bytes,
        replies: usize,
    },
    Content(ContentPieces),
}

/// Something to tell.
#[derive(Debug)]
pub(super) enum Telling {
    Event(ClientEvent),
    /// One outcome for all recipients from `next` on that are not decided yet.
    Verdict {
        outcome: RecipientOutcome,
        decided: Vec<bool>,
        next: usize,
    },
}

/// One SMTP connection, seen from the side that delivers.
#[derive(Debug)]
pub struct Client {
    pub(super) config: Arc<ClientConfig>,
    pub(super) state: State,
    deadline: Instant,
    replies: ReplyReader,
    /// Replies the peer owes to what was handed out.
    owed: usize,
    /// The reply being read began when none was owed.
    unsolicited: bool,
    secure: bool,
    pub(super) peer: Peer,
    pub(super) current: Option<Box<Current>>,
    /// The transaction behind it, whose commands have gone out already; nothing of its content has.
    pub(super) ahead: Option<Box<Current>>,
    pub(super) outgoing: VecDeque<Outgoing>,
    pub(super) telling: VecDeque<Telling>,
    /// A piece of content was asked for and has not come.
    pub(super) wanting: bool,
}

impl Client {
    /// A client on a connection just opened: waits for the greeting.
    pub fn new(config: Arc<ClientConfig>, now: Instant) -> Client {
        let mut client = Client {
            config,
            state: State::Greeting,
            deadline: now,
            replies: ReplyReader::default(),
            owed: 1,
            unsolicited: false,
            secure: false,
            peer: Peer::default(),
            current: None,
            ahead: None,
            outgoing: VecDeque::new(),
            telling: VecDeque::new(),
            wanting: false,
        };
        client.arm(now);
        client
    }

    /// Bytes came from the peer.
    pub fn handle_input(&mut self, mut input: &[u8], now: Instant) {
        while !input.is_empty() && self.state != State::Over {
            if self.state == State::Handshake {
                // Whatever stands behind the 220 in clear may be another's (RFC 3207 4.2 and 6).
                return self.fail_protocol("bytes in clear behind the reply to STARTTLS");
            }
            self.unsolicited |= self.owed == 0;
            let (consumed, reply) = self.replies.handle_input(input);
            input = input.get(consumed..).unwrap_or(&[]);
            match reply {
                None if consumed == 0 => return,
                None => {}
                Some(Err(error)) => return self.fail_protocol(&error.to_string()),
                Some(Ok(reply)) => self.handle_reply(reply, now),
            }
        }
    }

    /// The TLS handshake after [`ClientEvent::StartTls`] succeeded.
    pub fn handle_tls_started(&mut self, now: Instant) {
        if self.state == State::Handshake {
            self.secure = true;
            self.hello(State::Ehlo, now);
        }
    }

    /// The handshake succeeded, and the peer has not shown that it is who it should be: nothing is said to it.
    pub fn handle_unproven(&mut self, why: &str) {
        if self.state == State::Handshake {
            self.fail(FailureKind::Unproven(why.to_owned()));
        }
    }

    /// Starts a transaction; only after [`ClientEvent::Ready`], and without effect on a client that has failed.
    pub fn begin(&mut self, transaction: Transaction, now: Instant) {
        debug_assert!(self.is_idle() || self.state == State::Over, "a transaction begins only after Ready");
        if !self.is_idle() {
            return;
        }
        let obstacle = transaction.obstacle(&self.peer, self.secure, self.config.assume_8bitmime);
        let chunking = self.config.chunking && self.peer.chunking();
        let pipelined = self.config.pipelining && self.peer.pipelining();
        let no_recipients = transaction.recipients.is_empty();
        self.current = Some(Box::new(Current::new(transaction, chunking, pipelined)));
        if let Some(outcome) = obstacle {
            self.settle(outcome);
            return self.rest(now);
        }
        debug_assert!(!no_recipients, "a transaction has recipients");
        if no_recipients {
            return self.rest(now);
        }
        self.state = State::Transaction;
        self.send_envelope();
        self.arm(now);
    }

    /// Whether [`Client::begin_ahead`] is possible: the content of the transaction under way has gone out by DATA, and only
    /// its final reply is awaited.
    pub fn may_begin_ahead(&self) -> bool {
        self.state == State::Transaction
            && self.ahead.is_none()
            && self.current.as_ref().is_some_and(|current| current.allows_next())
    }

    /// Sends the commands of the next transaction behind the content of the one under way, without waiting for its final
    /// reply: RFC 2920 3.1 lets a content be the first of a group. [`ClientEvent::Next`] comes when the one under way is
    /// decided. Nothing of the next content goes before the peer has answered to DATA, so that whatever breaks before has
    /// no effect on it. Replies that speak of a peer that has lost commands end the connection; in a `trial` all do that
    /// refuse.
    ///
    /// # Errors
    /// Gives the transaction back where it is not possible: the peer lacks what it needs, or it is not the time.
    pub fn begin_ahead(&mut self, transaction: Transaction, trial: bool) -> Result<(), Box<Transaction>> {
        let obstacle = transaction.obstacle(&self.peer, self.secure, self.config.assume_8bitmime).is_some();
        if !self.may_begin_ahead() || obstacle || transaction.recipients.is_empty() {
            return Err(Box::new(transaction));
        }
        let mut next = Current::new(transaction, false, true);
        next.ahead = if trial { Ahead::Trial } else { Ahead::Known };
        let (bytes, replies) = next.data_flight(&self.peer);
        self.outgoing.push_back(Outgoing::Ahead { bytes, replies });
        self.ahead = Some(Box::new(next));
        Ok(())
    }

    /// The next bytes of a streamed content, in order: the answer to [`ClientEvent::WantContent`]. Empty bytes say
    /// that the content cannot be read; then, or with more than is left of the content, the connection fails.
    pub fn provide_content(&mut self, bytes: Bytes, now: Instant) {
        if !std::mem::take(&mut self.wanting) {
            return;
        }
        match (self.state, &mut self.current) {
            (State::Surplus, _) => self.rest(now),
            (State::Transaction, Some(current)) if !current.settled => {
                let left = current.transaction.content_len - current.provided;
                if bytes.is_empty() || bytes.len() as u64 > left {
                    return self.fail(FailureKind::ContentUnavailable);
                }
                current.provided += bytes.len() as u64;
                self.send_content(vec![bytes]);
                self.arm(now);
            }
            _ => {}
        }
    }

    /// Ends the connection: politely between messages, at once elsewhere. [`ClientEvent::Closed`] follows.
    pub fn quit(&mut self, now: Instant) {
        match self.state {
            State::Over | State::Quit => {}
            State::Idle => {
                self.state = State::Quit;
                self.send(Bytes::from_static(b"QUIT\r\n"), 1);
                self.arm(now);
            }
            _ => self.close(),
        }
    }

    /// Time has passed; without effect before [`Client::deadline`].
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.deadline {
            return;
        }
        match self.state {
            State::Over | State::Idle => {}
            State::Quit => self.close(),
            _ => self.fail(FailureKind::Timeout),
        }
    }

    /// When [`Client::handle_timeout`] is to be called; [`Instant::MAX`] when nothing is awaited of the peer. It is
    /// renewed by each whole reply and each piece of content, never by a part of a reply.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The connection was lost, for this reason.
    pub fn handle_closed(&mut self, reason: &str, _now: Instant) {
        match self.state {
            State::Over => {}
            State::Quit => self.close(),
            _ => self.fail(FailureKind::Closed(reason.to_owned())),
        }
    }

    /// The next bytes to send, never empty; None when there are none for now. Ask again when they were written.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        match self.outgoing.front_mut()? {
            Outgoing::Command { bytes, replies } | Outgoing::Ahead { bytes, replies } => {
                let bytes = std::mem::take(bytes);
                self.owed += *replies;
                self.outgoing.pop_front();
                Some(bytes)
            }
            Outgoing::Content(pieces) => {
                let piece = pieces.next();
                if pieces.is_done() {
                    self.outgoing.pop_front();
                }
                piece
            }
        }
    }

    /// The next thing to know; None when there is none for now. To be asked after `poll_transmit` gave None, too:
    /// more content is wanted only when what came before was handed out.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        while let Some(telling) = self.telling.front_mut() {
            match telling {
                Telling::Verdict { outcome, decided, next } => {
                    if let Some(index) = (*next..decided.len()).find(|&index| !decided[index]) {
                        *next = index + 1;
                        return Some(ClientEvent::Recipient { index, outcome: outcome.clone() });
                    }
                    self.telling.pop_front();
                }
                Telling::Event(_) => {
                    let Some(Telling::Event(event)) = self.telling.pop_front() else { return None };
                    return Some(event);
                }
            }
        }
        self.want_content()
    }

    /// Nothing is under way and nothing left to tell: [`Client::begin`] and a polite [`Client::quit`] are possible.
    pub fn is_idle(&self) -> bool {
        self.state == State::Idle && self.telling.is_empty()
    }

    /// The connection is encrypted by STARTTLS.
    pub fn secure(&self) -> bool {
        self.secure
    }

    /// The peer, as far as it has introduced itself.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// A whole reply was read.
    fn handle_reply(&mut self, reply: Reply, now: Instant) {
        if self.state == State::Quit {
            return self.close();
        }
        let unsolicited = std::mem::take(&mut self.unsolicited);
        if reply.code == 421 {
            return self.fail(FailureKind::Refused(reply));
        }
        if unsolicited {
            return self.handle_unsolicited(reply);
        }
        self.owed = self.owed.saturating_sub(1);
        let class = reply.code / 100;
        match (self.state, class) {
            (State::Greeting, 2) => {
                self.peer.read_greeting(&reply.text);
                self.hello(State::Ehlo, now);
            }
            (State::Ehlo, 2) => {
                self.peer.read_hello(&reply.text);
                self.after_hello(now);
            }
            (State::Ehlo, 5) => self.hello(State::Helo, now),
            (State::Helo, 2) => self.after_hello(now),
            (State::StartTls, 2) if reply.code == 220 => {
                self.state = State::Handshake;
                self.tell(ClientEvent::StartTls);
                self.arm(now);
            }
            (State::StartTls, 4 | 5) if self.config.tls == TlsUse::Required => {
                self.fail(FailureKind::TlsRefused(reply));
            }
            (State::StartTls, 4 | 5) => self.rest(now),
            (State::Reset, 2) => self.rest(now),
            (State::Greeting | State::Ehlo | State::Helo | State::Reset, 4 | 5) => {
                self.fail(FailureKind::Refused(reply));
            }
            (State::Transaction, _) => {
                self.handle_transaction_reply(reply, now);
                if self.state == State::Transaction {
                    self.arm(now);
                }
            }
            _ => self.fail_unexpected(&reply),
        }
    }

    /// A reply to nothing. A refusal in the midst of DATA is final for its recipients, though the dialogue has
    /// lost its step; anything else tells nothing.
    fn handle_unsolicited(&mut self, reply: Reply) {
        let sending =
            self.state == State::Transaction && self.current.as_ref().is_some_and(|current| current.is_sending_data());
        if sending && matches!(reply.code / 100, 4 | 5) {
            self.settle(RecipientOutcome::Refused { reply, stage: Stage::Content });
            return self.fail_protocol("the content was refused before its end");
        }
        let text = format!("a reply to no command: {reply}");
        self.fail_protocol(&text);
    }

    /// The peer answered EHLO or HELO.
    fn after_hello(&mut self, now: Instant) {
        if self.secure || self.config.tls == TlsUse::Never {
            return self.rest(now);
        }
        if self.peer.starttls() {
            self.state = State::StartTls;
            self.send(Bytes::from_static(b"STARTTLS\r\n"), 1);
            return self.arm(now);
        }
        match self.config.tls {
            TlsUse::Required => {
                self.state = State::StartTls;
                self.fail(FailureKind::TlsNotOffered);
            }
            TlsUse::Never | TlsUse::Opportunistic => self.rest(now),
        }
    }

    /// Says EHLO or HELO. What the peer offered before is forgotten (RFC 3207 4.2).
    fn hello(&mut self, state: State, now: Instant) {
        self.state = state;
        self.peer.read_hello("");
        let verb = if state == State::Helo { "HELO " } else { "EHLO " };
        let command = [verb, &self.config.ehlo_name, "\r\n"].concat();
        self.send(Bytes::from(command), 1);
        self.arm(now);
    }

    /// Nothing is under way any more; Ready, unless the owner still owes a piece of content.
    pub(super) fn rest(&mut self, now: Instant) {
        self.state = if self.wanting { State::Surplus } else { State::Idle };
        self.current = None;
        if self.state == State::Idle {
            self.tell(ClientEvent::Ready);
        }
        self.arm(now);
    }

    pub(super) fn send(&mut self, bytes: Bytes, replies: usize) {
        self.outgoing.push_back(Outgoing::Command { bytes, replies });
    }

    pub(super) fn push_content(&mut self, pieces: ContentPieces) {
        if !pieces.is_done() {
            self.outgoing.push_back(Outgoing::Content(pieces));
        }
    }

    pub(super) fn tell(&mut self, event: ClientEvent) {
        self.telling.push_back(Telling::Event(event));
    }

    pub(super) fn fail_protocol(&mut self, what: &str) {
        self.fail(FailureKind::Protocol(what.to_owned()));
    }

    pub(super) fn fail_unexpected(&mut self, reply: &Reply) {
        let text = format!("unexpected reply to {}: {reply}", self.stage());
        self.fail_protocol(&text);
    }

    fn fail(&mut self, kind: FailureKind) {
        let refused = matches!(kind, FailureKind::Refused(_));
        let after_final_dot = !refused && self.is_uncertain();
        let failure = ClientFailure { stage: self.stage(), kind, after_final_dot };
        self.tell(ClientEvent::Failed(failure));
        self.end();
    }

    fn close(&mut self) {
        self.tell(ClientEvent::Closed);
        self.end();
    }

    fn end(&mut self) {
        self.state = State::Over;
        self.deadline = Instant::MAX;
        self.outgoing.clear();
    }

    /// The peer may have taken the message for a recipient that has no outcome: all of it was handed out.
    fn is_uncertain(&self) -> bool {
        self.state == State::Transaction
            && !self.content_left()
            && self.current.as_ref().is_some_and(|current| current.is_uncertain())
    }

    /// Something of the transaction under way is yet to be handed out.
    pub(super) fn content_left(&self) -> bool {
        self.outgoing.iter().any(|outgoing| !matches!(outgoing, Outgoing::Ahead { .. }))
    }

    fn stage(&self) -> Stage {
        match self.state {
            State::Greeting => Stage::Greeting,
            State::Ehlo | State::Helo => Stage::Hello,
            State::StartTls | State::Handshake => Stage::StartTls,
            State::Idle | State::Reset | State::Surplus | State::Quit | State::Over => Stage::Idle,
            State::Transaction => self.current.as_ref().map_or(Stage::Mail, |current| current.stage()),
        }
    }

    /// Sets the deadline for what is awaited now.
    pub(super) fn arm(&mut self, now: Instant) {
        let timeouts = &self.config.timeouts;
        let wait = match self.state {
            State::Idle | State::Over => {
                self.deadline = Instant::MAX;
                return;
            }
            State::Greeting => timeouts.banner,
            State::Ehlo | State::Helo | State::StartTls | State::Handshake => timeouts.hello,
            State::Reset => timeouts.mail,
            State::Surplus => timeouts.block,
            State::Quit => timeouts.quit,
            State::Transaction => self.current.as_ref().map_or(timeouts.mail, |current| current.wait(timeouts)),
        };
        self.deadline = now.after(wait);
    }
}
