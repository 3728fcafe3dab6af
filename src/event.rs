//! The facts that operators see: one typed event for each thing that happens to a message, a session or a site.
//! Shards make them, the control thread writes them (src/control/log.rs). They are values: formatting happens off the shard.

use crate::clock::UnixTime;
use crate::id::MessageId;
use crate::reply::class::Meaning;
use std::net::{IpAddr, SocketAddr};

/// How much an event matters to an operator.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The usual course of mail.
    Info,
    /// Mail waits or a peer misbehaves; nothing is lost.
    Warning,
    /// An operator is needed.
    Error,
}

/// One attempt at one recipient, as an event tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptFacts {
    /// The message.
    pub id: MessageId,
    /// The recipient's address.
    pub recipient: Box<str>,
    /// Its tenant.
    pub tenant: Box<str>,
    /// The site (MX set or route) it goes to.
    pub site: Box<str>,
    /// The remote host and address, when one was reached.
    pub remote: Option<Box<str>>,
    /// The reply, or in its absence what went wrong, on one line.
    pub reply: Box<str>,
    /// What that means; none for a success.
    pub meaning: Option<Meaning>,
    /// Counts from 1.
    pub attempt: u16,
    /// Milliseconds since the message was accepted.
    pub age_ms: u64,
    /// Milliseconds the attempt took.
    pub took_ms: u64,
    /// TLS version, when the connection was encrypted.
    pub tls: Option<&'static str>,
    /// Whose policy of TLS held for the connection, when it was more than to take what is offered.
    pub tls_policy: Option<&'static str>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message was made durable and acknowledged.
    Received {
        /// Its id.
        id: MessageId,
        /// The client's address.
        client: IpAddr,
        /// What the client called itself.
        helo: Box<str>,
        /// "" for the null reverse path.
        sender: Box<str>,
        /// How many recipients.
        recipients: u32,
        /// The first recipient's address.
        first_recipient: Box<str>,
        /// Octets of content as stored.
        size: u64,
        /// Its tenant.
        tenant: Box<str>,
        /// Whether the session was encrypted.
        tls: bool,
        /// Microseconds from the end of the content to the reply.
        commit_us: u64,
    },
    /// A command or a message was refused.
    Rejected {
        /// The client's address.
        client: IpAddr,
        /// "" when not known yet or null.
        sender: Box<str>,
        /// The recipient that was refused, if one was.
        recipient: Option<Box<str>>,
        /// The reply, on one line.
        reply: Box<str>,
        /// The content filter that refused, if one did.
        filter: Option<Box<str>>,
    },
    /// A login was refused.
    LoginFailed {
        /// The client's address.
        client: IpAddr,
        /// The name it gave.
        login: Box<str>,
        /// Why, for the operator alone.
        reason: Box<str>,
    },
    /// A message is larger than providers usually take (docs/CONFIGURATION.md advises to send a link).
    LargeMessage {
        /// Its id.
        id: MessageId,
        /// Octets.
        size: u64,
    },
    /// A message was taken, and is held until an operator releases it.
    CameHeld {
        /// Its id.
        id: MessageId,
        /// Why.
        reason: Box<str>,
    },
    /// A recipient was delivered.
    Delivered(AttemptFacts),
    /// A recipient waits for another attempt.
    Deferred {
        /// The attempt.
        facts: AttemptFacts,
        /// When the next attempt is due.
        next: UnixTime,
    },
    /// A recipient failed for good.
    Bounced(AttemptFacts),
    /// A recipient's time ran out.
    Expired(AttemptFacts),
    /// Nothing was sent to a recipient: its address is suppressed.
    Suppressed(AttemptFacts),
    /// A delivery status notification was queued.
    DsnQueued {
        /// The notification's id.
        id: MessageId,
        /// The message it reports on.
        about: MessageId,
        /// To whom.
        recipient: Box<str>,
    },
    /// A notification could not be delivered and there is nobody to tell.
    DoubleBounce {
        /// The notification that failed.
        id: MessageId,
        /// The last reply.
        reply: Box<str>,
    },
    /// An operator's act on a message.
    OperatorAct {
        /// The message.
        id: MessageId,
        /// "held", "released", "retried", "deleted".
        act: &'static str,
    },
    /// A site or a host of it changed state (down, up).
    SiteState {
        /// The site.
        site: Box<str>,
        /// In words.
        state: Box<str>,
    },
    /// A session ended abnormally.
    SessionTrouble {
        /// The client.
        client: SocketAddr,
        /// In words.
        what: Box<str>,
    },
    /// Anything about the program itself: disk, recovery, start, stop.
    Notice {
        /// How much it matters.
        severity: Severity,
        /// What happened, where, and what to do.
        text: Box<str>,
    },
}

impl Event {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Event::Received { .. } | Event::Delivered(_) | Event::DsnQueued { .. } | Event::OperatorAct { .. } => {
                Severity::Info
            }
            Event::Notice { severity, .. } => *severity,
            _ => Severity::Warning,
        }
    }
}
