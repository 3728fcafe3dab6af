//! How an SMTP client is to speak with its peer: name, TLS, extensions, timeouts.
//!
//! Values only; where they come from (the configuration, the policy of a site) is not decided here.

use std::time::Duration;

/// Whether a connection is to be encrypted by STARTTLS.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum TlsUse {
    /// STARTTLS is never asked for.
    Never,
    /// Asked for where offered; refused, the dialogue goes on in clear.
    Opportunistic,
    /// No message goes without it.
    Required,
}

/// How long to wait for the peer, by what is awaited (RFC 5321 4.5.3.2).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ClientTimeouts {
    /// The greeting.
    pub banner: Duration,
    /// Replies to EHLO, HELO and STARTTLS, and the TLS handshake.
    pub hello: Duration,
    /// The replies to MAIL and RSET.
    pub mail: Duration,
    /// Each reply to RCPT.
    pub rcpt: Duration,
    /// The 354 to DATA.
    pub data: Duration,
    /// Each block of content: for the owner to provide it, and for the peer to acknowledge a chunk.
    pub block: Duration,
    /// The reply to the end of the content.
    pub final_dot: Duration,
    /// The reply to QUIT, on which nothing depends.
    pub quit: Duration,
}

impl Default for ClientTimeouts {
    /// The least that RFC 5321 4.5.3.2 asks for.
    fn default() -> ClientTimeouts {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        ClientTimeouts {
            banner: minutes(5),
            hello: minutes(5),
            mail: minutes(5),
            rcpt: minutes(5),
            data: minutes(2),
            block: minutes(3),
            final_dot: minutes(10),
            quit: Duration::from_secs(5),
        }
    }
}

/// How to speak with a peer; shared by all connections of one kind.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The name given in EHLO and HELO: a domain or an address literal.
    pub ehlo_name: Box<str>,
    /// When to use STARTTLS.
    pub tls: TlsUse,
    /// Send 8-bit content to a peer that does not offer 8BITMIME, instead of giving it up.
    pub assume_8bitmime: bool,
    /// Use CHUNKING where offered.
    pub chunking: bool,
    /// Use PIPELINING where offered.
    pub pipelining: bool,
    /// Send the next transaction's commands behind a content, without waiting for its final reply, where the owner finds
    /// that the peer takes it.
    pub pipelined_messages: bool,
    /// How long to wait.
    pub timeouts: ClientTimeouts,
}
