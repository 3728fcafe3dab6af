//! What crosses between shards and the control thread. Each kind says what happens when the mailbox is full.

use crate::clock::{Instant, UnixTime};
use crate::event::Event;
use crate::id::MessageId;
use crate::io::dns::Resolution;
use crate::io::handler::{ClientCertificate, ConnId};
use crate::metrics::ShardMetrics;
use crate::policy::logins::Granted;
use crate::policy::suppression::Bounce;
use crate::reply::Reply;
use crate::shard::attempt::AttemptOutcome;
use crate::shard::permits::{ConnectionPermit, SitePermits};
use crate::shard::site::HostAddress;
use crate::smtp::client::Transaction;
use crate::smtp::sasl::Login;
use bytes::Bytes;
use ringpost_spool::{ContentRef, RecoveredMessage, RecoveredSegment, SegmentId};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Into a shard's mailbox.
#[derive(Debug)]
pub enum ToShard {
    /// DNS answered. Full: the control thread keeps it and tries again.
    Resolved {
        /// The answer.
        resolution: Resolution,
        /// The site the answer leads to, shared by all shards.
        permits: Option<Arc<SitePermits>>,
    },
    /// Recovery found messages of this shard. Full: the recovery thread waits.
    Recovered(Vec<RecoveredMessage>),
    /// Recovery is complete. Full: the recovery thread waits.
    RecoveryDone {
        /// The old segments that this shard now owns.
        segments: Vec<RecoveredSegment>,
        /// The greatest message id seen on disk.
        greatest_id: u64,
    },
    /// An operator's request. Full: the request is answered with an error that says so.
    Admin {
        /// Names the request in its answer.
        ticket: u64,
        /// What is asked.
        request: AdminRequest,
    },
    /// Stop: take no new mail, finish what is under way, sync, exit. Full: the control thread tries again.
    Shutdown,
    /// A message to deliver for another shard. Full: cannot be, the sender holds a credit; else it comes back and stays with its home.
    Lease(Box<Lease>),
    /// The answer to a lease. Full: cannot be, the place was reserved with the lease.
    LeaseEnded(Box<LeaseEnded>),
    /// An old segment is durably gone. Full: dropped, and segments that wait for it stay until the next start.
    Recycled(SegmentId),
    /// A login was judged. Full: the control thread keeps it and tries again.
    LoginJudged(Box<LoginVerdict>),
    /// A message was looked at by its filters. Full: the control thread keeps it and tries again.
    Filtered(Box<FilterVerdict>),
    /// More of the quotas' counts is on disk. Full: dropped, the shard looks again at its next tick.
    Reserved,
    /// Another shard waits for a permit of a site. Full: dropped, it asks again at its next slow tick.
    PermitWanted {
        /// The site's place in the registry.
        site: u32,
    },
    /// Another shard has sites that wait for a connection under a limit. Full: dropped, the shard that has connections gives
    /// way as they end.
    LimitWanted {
        /// The limit's place.
        limit: u32,
    },
    /// A connection under a limit that this shard waits for may be free. Full: dropped, the shard looks at every tick.
    LimitFreed {
        /// The limit's place.
        limit: u32,
    },
    /// A permit of a site this shard waits for, from one that had more. Full: it is free for whoever asks.
    Permit(ConnectionPermit),
    /// A permit of a site this shard waits for may be free. Full: dropped, the shard asks again at its next tick.
    PermitFreed {
        /// The site's place in the registry.
        site: u32,
    },
}

/// A login that a shard does not recognise.
#[derive(Clone, Debug)]
pub struct LoginQuestion {
    /// The session.
    pub conn: ConnId,
    /// Its client.
    pub client: IpAddr,
    /// What it says of itself.
    pub login: Login,
    /// The certificate that it has shown, if a good one came.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// What came of it.
#[derive(Debug)]
pub struct LoginVerdict {
    /// The session, which may be gone.
    pub conn: ConnId,
    /// What was judged.
    pub login: Login,
    /// What it is good for, or what the client is told.
    pub verdict: Result<Granted, Reply>,
}

/// A complete message that content filters are to see.
#[derive(Clone, Debug)]
pub struct FilterQuestion {
    /// The message.
    pub id: MessageId,
    /// Its session.
    pub conn: ConnId,
    /// Which filters, by their places in the configuration, in this order.
    pub filters: Arc<[u16]>,
    /// The client.
    pub client: SocketAddr,
    /// What it called itself.
    pub helo: Box<str>,
    /// Version and cipher, when the session is encrypted.
    pub tls: Option<(&'static str, &'static str)>,
    /// What the client has logged in as.
    pub login: Option<Box<str>>,
    /// Whose message it is.
    pub tenant: Box<str>,
    /// "" for the null reverse path.
    pub sender: Box<str>,
    /// The recipients.
    pub recipients: Vec<Box<str>>,
    /// What the client sent, without our trace headers.
    pub content: FilterContent,
}

/// Where filters find a content.
#[derive(Clone, Debug)]
pub enum FilterContent {
    /// Here.
    Memory(Bytes),
    /// In the message's own file.
    File {
        /// Octets before it.
        offset: u64,
        /// Its octets.
        len: u64,
    },
}

/// What the filters say of a message.
#[derive(Debug)]
pub struct FilterVerdict {
    /// The message.
    pub id: MessageId,
    /// Its session, which may be gone.
    pub conn: ConnId,
    /// What is done with it, or what the client is told.
    pub result: Result<Passed, Rejected>,
    /// How many filters gave no answer.
    pub failures: u16,
}

/// A message that a filter does not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Which one, as the operator named it.
    pub filter: Box<str>,
    /// What the client is told.
    pub reply: Reply,
}

/// A message that filters let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Header fields to be put before it, complete; at most [`crate::limits::FILTER_HEADERS_MAX`] octets.
    pub headers: Vec<u8>,
    /// Why it is to be held; at most [`crate::limits::HOLD_REASON_MAX`] octets.
    pub held: Option<Box<str>>,
}

/// A recipient group of one message, lent to another shard for one attempt. The home shard stays its owner.
#[derive(Debug)]
pub struct Lease {
    /// The owner, to which the answer goes.
    pub home: u8,
    /// Names the lease at its home.
    pub slot: u32,
    /// The message.
    pub id: MessageId,
    /// The site.
    pub site: Arc<SitePermits>,
    /// The site's addresses as its home knows them.
    pub hosts: Vec<HostAddress>,
    /// The whole transaction but its content.
    pub transaction: Transaction,
    /// The recipients' places in the message, in the order of the transaction's.
    pub recipients: Vec<u16>,
    /// Where the content lies.
    pub content: ContentRef,
    /// The content itself when its home still holds it in memory.
    pub held: Option<Vec<Bytes>>,
}

/// What came of a lease.
#[derive(Debug)]
pub struct LeaseEnded {
    /// Which shard answers.
    pub by: u8,
    /// The lease's name at its home.
    pub slot: u32,
    /// The message.
    pub id: MessageId,
    /// The site, by its place in the registry.
    pub site: u32,
    /// The recipients that were lent.
    pub recipients: Vec<u16>,
    /// The outcome of each recipient (its place in the message); those not named were not attempted.
    pub outcomes: Vec<(u16, AttemptOutcome)>,
    /// The site is down: not to be lent again before this.
    pub not_before: Option<Instant>,
}

/// What an operator asks of a shard. Requests that name messages go to every shard: only the owner acts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminRequest {
    /// A page of waiting messages, in the order of ids.
    List {
        /// Which.
        filter: Filter,
        /// Those after this id.
        after: Option<u64>,
        /// At most so many.
        limit: usize,
    },
    /// One message, whole.
    Show {
        /// Its id.
        id: u64,
    },
    /// Attempt now.
    Retry {
        /// Which.
        filter: Filter,
        /// Those after this id.
        after: Option<u64>,
    },
    /// Attempt no more until released.
    Hold {
        /// Which.
        filter: Filter,
        /// Those after this id.
        after: Option<u64>,
    },
    /// Ends a hold.
    Release {
        /// Which.
        filter: Filter,
        /// Those after this id.
        after: Option<u64>,
    },
    /// Ends the message: recorded as deleted, nothing is sent.
    Delete {
        /// Which.
        filter: Filter,
        /// Those after this id.
        after: Option<u64>,
    },
    /// The sites this shard knows and their state.
    Sites,
    /// Counters and histograms.
    Metrics,
}

/// Which messages are meant: all that fit every given part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// This one message.
    pub id: Option<u64>,
    /// A recipient's domain.
    pub domain: Option<String>,
    /// The reverse path.
    pub sender: Option<String>,
    /// A recipient's address.
    pub recipient: Option<String>,
    /// The tenant.
    pub tenant: Option<String>,
    /// "waiting", "held", "in_flight", "ready", "scheduled".
    pub state: Option<String>,
    /// Needed, in acts, when nothing else is given, so that nobody deletes a queue by leaving out a word.
    pub all: bool,
}

/// A shard's answer.
#[derive(Debug)]
pub enum AdminReply {
    /// To `List`.
    Messages {
        /// In the order of ids.
        messages: Vec<MessageSummary>,
        /// There may be more after this id.
        next: Option<u64>,
    },
    /// To `Show`: none when another shard owns it, or nobody.
    Message(Option<Box<MessageSummary>>),
    /// To acts.
    Changed {
        /// How many recipients were changed.
        recipients: u64,
        /// There may be more after this id: ask again from there.
        next: Option<u64>,
    },
    /// To `Sites`.
    Sites(Vec<SiteSummary>),
    /// To `Metrics`.
    Metrics(Box<ShardMetrics>),
}

/// A waiting message as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageSummary {
    /// As in "queued as".
    pub id: String,
    /// RFC 3339.
    pub arrived: String,
    /// "" for the null reverse path.
    pub sender: String,
    /// Octets.
    pub size: u64,
    /// The tenant.
    pub tenant: String,
    /// The owner.
    pub shard: u8,
    /// The recipients that are not done.
    pub recipients: Vec<RecipientSummary>,
    /// How many are done.
    pub done: usize,
}

/// A waiting recipient as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipientSummary {
    /// Its address.
    pub address: String,
    /// "unrouted", "resolving", "scheduled", "ready", "in_flight", "held".
    pub state: String,
    /// Attempts so far.
    pub attempts: u16,
    /// RFC 3339, when the next attempt is due by a schedule.
    pub next: Option<String>,
    /// The site, when routed.
    pub site: Option<String>,
    /// The class of the last reply, when there was one since the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Why it waits: the last reply, the limit or the state that holds it.
    pub why: String,
}

/// A site as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteSummary {
    /// Its name.
    pub name: String,
    /// Recipients groups ready in this shard.
    pub ready: usize,
    /// Connections of all shards, and the limit.
    pub connections: u32,
    /// The limit.
    pub max_connections: u32,
    /// In words: "up", "down until …: reason".
    pub state: String,
}

/// From a shard to the control thread.
#[derive(Debug)]
pub enum Report {
    /// Please look this up. Full: the shard asks again at its next tick.
    Resolve {
        /// Who asks.
        shard: u8,
        /// What is to be looked up.
        query: crate::io::dns::Query,
    },
    /// Is this login good? Full: the shard keeps it and tries again.
    Login {
        /// Who asks.
        shard: u8,
        /// What.
        question: Box<LoginQuestion>,
    },
    /// What do the filters say of this message? Full: the shard keeps it and tries again.
    Filter {
        /// Who asks.
        shard: u8,
        /// What.
        question: Box<FilterQuestion>,
    },
    /// More of these quotas' counts should be on disk. Full: the shard keeps it and tries again.
    Reserve {
        /// The tenant's name, where it has quotas.
        tenant: Option<Box<str>>,
        /// The credential's login, where it has quotas.
        login: Option<Box<str>>,
    },
    /// A delivery failed for good, and says something of its address. Full: the shard keeps it and tries again.
    Bounced {
        /// Whose message.
        tenant: Box<str>,
        /// To whom.
        address: Box<str>,
        /// What it says.
        bounce: Bounce,
        /// The last reply.
        reply: Box<str>,
    },
    /// The answer to an operator's request. Full: the shard keeps it and tries again.
    Admin {
        /// Who answers.
        shard: u8,
        /// The request's name.
        ticket: u64,
        /// The answer.
        reply: AdminReply,
    },
    /// Something happened. Full: dropped and counted; the count is reported when there is room.
    Event {
        /// In which shard.
        shard: u8,
        /// When.
        at: UnixTime,
        /// What.
        event: Event,
    },
    /// The shard listens, or is done with recovery, or has stopped. Full: tried again.
    State {
        /// Which shard.
        shard: u8,
        /// What.
        state: ShardState,
    },
}

/// Where a shard is in its life.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ShardState {
    /// It takes mail.
    Listening,
    /// All that the spool held is in the queue.
    Recovered,
    /// Everything is synced and closed.
    Stopped,
}
