//! What a session and its owner say to each other about transactions: the questions of [`Transactions`] and their
//! values.
//!
//! Not here: the order in which they are asked (src/smtp/server.rs). An owner refuses with a reply that goes to the
//! client as it is.

use crate::address::Address;
use crate::clock::Now;
use crate::envelope::{Body, Recipient, Ret};
use crate::reply::Reply;
use crate::smtp::replies;
use crate::smtp::sasl::{Channel, Login};
use crate::smtp::scram::ScramOffer;
use std::net::{IpAddr, SocketAddr};

/// What MAIL said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailFrom {
    /// None is the null path `<>`.
    pub reverse_path: Option<Address>,
    /// SIZE=: how many octets the client thinks it will send (RFC 1870); within the session's bound.
    pub size: Option<u64>,
    /// BODY=.
    pub body: Body,
    /// SMTPUTF8 was given.
    pub smtputf8: bool,
    /// REQUIRETLS was given (RFC 8689).
    pub require_tls: bool,
    /// RET=.
    pub ret: Option<Ret>,
    /// ENVID=, still encoded as xtext.
    pub envid: Option<Box<str>>,
}

/// What bounds this client's messages besides the listener's settings; the smaller holds.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Octets of a message.
    pub message_size: Option<u64>,
    /// Recipients of a message.
    pub recipients: Option<u32>,
}

impl Bounds {
    /// The smaller of both.
    pub fn and(self, other: Bounds) -> Bounds {
        let least = |one: Option<u64>, other: Option<u64>| one.into_iter().chain(other).min();
        Bounds {
            message_size: least(self.message_size, other.message_size),
            recipients: self.recipients.into_iter().chain(other.recipients).min(),
        }
    }
}

/// What a session asks of its owner, each when it is due; all of it is answered at once.
///
/// The order: `proxied` at most once and first; then any number of `hello`s and transactions. A transaction is `mail`,
/// `recipient`s, `begin_content`, `content`s, `end_content`. An owner that refuses `mail` or `recipient` has taken
/// nothing of it. After a refusal of `begin_content`, `content` or `end_content` the transaction is over and the
/// session calls `abort`.
pub trait Transactions {
    /// The client is not the peer of the connection but this one: a PROXY header said so. Refused, the session closes.
    fn proxied(&mut self, client: SocketAddr, now: Now) -> Result<(), Reply>;

    /// Whether the client is of a network that the listener trusts.
    fn trusts_client(&self) -> bool {
        false
    }

    /// The client spoke before the greeting, and the session closes.
    fn spoke_early(&mut self) {}

    /// Whether this session may be kept waiting for the answer to its error. If so it is, until its next deadline or its end.
    fn keep_waiting(&mut self) -> bool {
        false
    }

    /// Whether this is an address of ours, as the client sees us.
    fn is_own_address(&self, address: IpAddr) -> bool {
        let _ = address;
        false
    }

    /// HELO or (`extended`) EHLO with this name, which is printable ASCII of at most 255 octets and proves nothing.
    fn hello(&mut self, name: &str, extended: bool);

    /// Is this login good? None: [`handle_authenticated`](crate::smtp::server::Session::handle_authenticated) will say.
    /// Owners whose sessions do not offer AUTH are never asked.
    fn authenticate(&mut self, login: Login, now: Now) -> Option<Result<(), Reply>> {
        let _ = (login, now);
        Some(Err(replies::AUTH_UNAVAILABLE))
    }

    /// What the connection gives to log in with.
    fn channel(&self) -> Channel {
        Channel::default()
    }

    /// What a client of SCRAM is told of this name, which says nothing of whether somebody has it. None: it cannot be
    /// said now.
    fn scram(&mut self, name: &str, now: Now) -> Option<ScramOffer> {
        let _ = (name, now);
        None
    }

    /// What bounds a message of this client; with the sender that MAIL has named, or before that.
    fn bounds(&self, sender: Option<&Address>) -> Bounds {
        let _ = sender;
        Bounds::default()
    }

    /// The client has given up a login that was found good, before it counted.
    fn forget_login(&mut self) {}

    /// May this sender send?
    fn mail(&mut self, mail: MailFrom, now: Now) -> Result<(), Reply>;

    /// May this recipient be sent to?
    fn recipient(&mut self, recipient: Recipient, now: Now) -> Result<(), Reply>;

    /// DATA or the first BDAT has come, with at least one recipient: may the content come?
    fn begin_content(&mut self, now: Now) -> Result<(), Reply>;

    /// The next octets of the content, dots unstuffed, line ends as they shall be kept. Refused once, it is not called
    /// again: the session skips the rest of the content and then gives the refusal.
    fn content(&mut self, bytes: &[u8]) -> Result<(), Reply>;

    /// The content is complete. Ok: it is being stored, and the session waits for
    /// [`handle_stored`](crate::smtp::server::Session::handle_stored).
    fn end_content(&mut self, now: Now) -> Result<(), Reply>;

    /// The transaction is over and is to be forgotten: RSET, a new EHLO, content refused, QUIT. When the connection
    /// is lost or the session closes by itself (timeouts, shutdown), the owner knows it without being called.
    fn abort(&mut self);
}
