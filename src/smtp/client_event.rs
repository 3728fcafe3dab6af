//! What the SMTP client tells its owner: events, outcomes of recipients, and why a connection failed.
//!
//! Values only. Deciding which outcome or failure it is happens in `client.rs`; what to do about it (retry,
//! bounce, take the next host) is decided by the queue and the shard.

use crate::reply::{EnhancedCode, Reply};
use std::fmt;

/// Where in the dialogue something happened.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Opening the connection; never reported by the client itself, which begins with the greeting.
    Connect,
    /// Waiting for the greeting.
    Greeting,
    /// EHLO, or HELO where EHLO is refused.
    Hello,
    /// STARTTLS and the handshake behind it.
    StartTls,
    /// Between messages, RSET included.
    Idle,
    /// MAIL FROM.
    Mail,
    /// RCPT TO.
    Recipient,
    /// DATA, until its 354.
    Data,
    /// The content is being sent.
    Content,
    /// The content was sent whole; its final reply is awaited.
    FinalReply,
}

impl fmt::Display for Stage {
    /// Words that fit behind "in reply to" and "while waiting for the reply to".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Connect => "connecting",
            Stage::Greeting => "connection (greeting)",
            Stage::Hello => "EHLO",
            Stage::StartTls => "STARTTLS",
            Stage::Idle => "waiting between messages",
            Stage::Mail => "MAIL FROM",
            Stage::Recipient => "RCPT TO",
            Stage::Data => "DATA",
            Stage::Content => "message content",
            Stage::FinalReply => "end of message content",
        })
    }
}

/// What became of one recipient in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipientOutcome {
    /// The peer took responsibility (RFC 5321 4.2.5).
    Delivered(Reply),
    /// Refused for now (4xx) or for good (5xx); also by ourselves, without asking the peer, where its
    /// announced SIZE or the syntax leaves no doubt.
    Refused {
        /// The reply that decides.
        reply: Reply,
        /// To which command it came.
        stage: Stage,
    },
    /// The peer lacks an extension without which this message cannot be sent unchanged: bounce it.
    Unsupported {
        /// 5.6.7 (SMTPUTF8, RFC 6531 3.2) or 5.6.3 (8BITMIME, RFC 6152 3).
        enhanced: EnhancedCode,
        /// Says it in words.
        text: &'static str,
    },
}

/// Why a connection is of no more use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The peer refused the connection, EHLO or RSET, or said 421 at any place (RFC 5321 3.8).
    Refused(Reply),
    /// No reply, or no content from the owner, in the time allowed (RFC 5321 4.5.3.2).
    Timeout,
    /// The connection was lost; the owner's words.
    Closed(String),
    /// The peer broke the protocol.
    Protocol(String),
    /// TLS is required and the peer refused STARTTLS.
    TlsRefused(Reply),
    /// TLS is required and the peer does not offer it.
    TlsNotOffered,
    /// The peer did not prove who it is; the owner's words.
    Unproven(String),
    /// The owner could not provide the content it announced: the dialogue can only be broken off.
    ContentUnavailable,
}

impl FailureKind {
    /// Whether it is TLS that is missing, or not as it was asked for.
    pub fn is_for_want_of_tls(&self) -> bool {
        matches!(self, FailureKind::TlsRefused(_) | FailureKind::TlsNotOffered | FailureKind::Unproven(_))
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FailureKind::Refused(reply) => write!(f, "refused: {reply}"),
            FailureKind::Timeout => f.write_str("no answer in the time allowed"),
            FailureKind::Closed(reason) => write!(f, "connection lost: {reason}"),
            FailureKind::Protocol(what) => write!(f, "protocol error: {what}"),
            FailureKind::TlsRefused(reply) => write!(f, "TLS is required, but STARTTLS was refused: {reply}"),
            FailureKind::TlsNotOffered => f.write_str("TLS is required, but the host does not offer STARTTLS"),
            FailureKind::Unproven(why) => write!(f, "the host has not proven who it is: {why}"),
            FailureKind::ContentUnavailable => f.write_str("the content of the message could not be read"),
        }
    }
}

/// The end of a connection that did not end by [`Client::quit`](super::client::Client::quit).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFailure {
    /// What the client was doing.
    pub stage: Stage,
    /// What went wrong.
    pub kind: FailureKind,
    /// The end of the content had been handed out and no reply to it came: the peer may or may not have taken
    /// the message for the recipients that remain undecided (RFC 5321 4.5.3.2.6, RFC 1047).
    pub after_final_dot: bool,
}

impl fmt::Display for ClientFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.kind, self.stage)
    }
}

/// What the owner of a [`Client`](super::client::Client) is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// A transaction may begin: after the greetings, and again after each transaction.
    Ready,
    /// The transaction under way is decided, and the one that was begun ahead has taken its place.
    Next,
    /// The peer agreed to STARTTLS: the owner runs the handshake, then calls `handle_tls_started`.
    StartTls,
    /// The owner shall answer with `provide_content`. At most one such wish is open at a time, and no Ready
    /// comes before it was answered.
    WantContent {
        /// Of the first byte wanted, in the content.
        offset: u64,
        /// At most so many bytes are wanted, and at least one.
        max: usize,
    },
    /// Decided: exactly once per recipient, unless Failed comes.
    Recipient {
        /// Place in the transaction's list of recipients.
        index: usize,
        /// What became of it.
        outcome: RecipientOutcome,
    },
    /// The connection is to be closed. Recipients undecided so far remain undecided.
    Failed(ClientFailure),
    /// After `quit`: the peer said goodbye, or there is no point in waiting for it. The connection is to be closed.
    Closed,
}
