//! What one attempt came to: a value that egress makes, that may cross to another shard, and that outcome.rs turns into a
//! record, an event and a report.

use crate::clock::Instant;
use crate::reply::Reply;
use crate::reply::class::Meaning;
use crate::smtp::client::Stage;
use std::time::Duration;

/// What one attempt came to, for one recipient.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptOutcome {
    /// What it means.
    pub verdict: Verdict,
    /// The peer's reply, or our own words.
    pub reply: Reply,
    /// At which point of the dialogue; none when there was none.
    pub stage: Option<Stage>,
    /// The peer, as "name [address]:port".
    pub remote: Option<Box<str>>,
    /// The version of TLS, when there was.
    pub tls: Option<&'static str>,
    /// Whose policy of TLS held, when it was more than to take what is offered.
    pub tls_policy: Option<&'static str>,
    /// From the start of the transaction.
    pub took: Duration,
    /// The reply is the peer's own, not our words about it.
    pub from_peer: bool,
    /// The peer will report on delivery itself (it offers DSN).
    pub peer_reports: bool,
    /// What the reply means, once the message's owner has found that out; none for a success.
    pub meaning: Option<Meaning>,
}

/// What an attempt means for a recipient.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next host has it.
    Delivered,
    /// It will never work.
    Failed,
    /// Another time.
    Deferred {
        /// Not earlier than this.
        not_before: Option<Instant>,
    },
    /// Nothing is sent to this address.
    Suppressed,
    /// No attempt could be made, for a reason that is not the recipient's: another time.
    Unresolved,
}

impl AttemptOutcome {
    /// An outcome that no peer had a part in.
    pub fn local(verdict: Verdict, reply: Reply) -> AttemptOutcome {
        AttemptOutcome {
            verdict,
            reply,
            stage: None,
            remote: None,
            tls: None,
            tls_policy: None,
            took: Duration::ZERO,
            from_peer: false,
            peer_reports: false,
            meaning: None,
        }
    }
}
