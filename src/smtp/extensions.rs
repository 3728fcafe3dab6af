//! What a session is configured to be and how it says so: the reply to EHLO.
//!
//! Not here: what each extension does. Nothing here can fail.

use crate::smtp::data::BareNewlines;
use crate::smtp::parameters::Offered;
use crate::smtp::sasl::{Channel, Mechanisms};
use crate::smtp::strangers::Strangers;
use crate::smtp::transaction::Bounds;
use std::io::Write;
use std::time::Duration;

/// How the sessions of one listener behave. Shared by all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// The name in the greeting, and where a bare Postmaster lives.
    pub hostname: Box<str>,
    /// Octets of a message's content; one more and it is refused.
    pub max_message_size: u64,
    /// STARTTLS is offered.
    pub starttls: bool,
    /// AUTH is offered, under TLS.
    pub auth: bool,
    /// By which mechanisms clients may log in, where the connection has what they need.
    pub mechanisms: Mechanisms,
    /// AUTH is offered without TLS too: for trials on this machine.
    pub auth_in_clear: bool,
    /// What becomes of a bare CR or LF in content.
    pub bare_newlines: BareNewlines,
    /// A PROXY header comes first. On sessions that are under TLS from the start it has come before and is read by
    /// whoever starts TLS.
    pub proxy: bool,
    /// What is made harder for strangers.
    pub strangers: Strangers,
    /// Recipients of one transaction; the next are told 452. RFC 5321 4.5.3.1.8: at least 100.
    pub max_recipients: u32,
    /// Commands of one session; the next ends it.
    pub max_commands: u32,
    /// Replies of 5xx in one session; the last ends it.
    pub max_errors: u32,
    /// Transactions of one session; the next MAIL ends it.
    pub max_transactions: u32,
    /// How long a command may take to come (RFC 5321 4.5.3.2.7: at least 5 minutes).
    pub command_timeout: Duration,
    /// How long the next part of content may take to come.
    pub data_timeout: Duration,
    /// How long the whole of a message's content may take to come.
    pub message_timeout: Duration,
    /// BDAT is offered (RFC 3030).
    pub chunking: bool,
    /// RET, ENVID, NOTIFY and ORCPT are offered (RFC 3461).
    pub dsn: bool,
    /// SMTPUTF8 is offered (RFC 6531).
    pub smtputf8: bool,
    /// PIPELINING is offered (RFC 2920); it works in any case.
    pub pipelining: bool,
}

/// The largest number that LIMITS can carry: six digits (RFC 9422 4).
const LIMIT_MAX: u32 = 999_999;

impl SessionConfig {
    /// Which parameters MAIL and RCPT may have.
    pub(crate) fn offered(&self, tls: bool) -> Offered {
        Offered { dsn: self.dsn, smtputf8: self.smtputf8, auth: self.auth, require_tls: tls }
    }

    /// Octets and recipients that a message may have.
    pub(crate) fn bounded(&self, bounds: Bounds) -> (u64, u32) {
        let Bounds { message_size, recipients } = bounds;
        (
            message_size.map_or(self.max_message_size, |size| size.min(self.max_message_size)),
            recipients.map_or(self.max_recipients, |count| count.min(self.max_recipients)),
        )
    }

    /// Appends the reply to EHLO (RFC 5321 4.1.1.1). STARTTLS is not offered under TLS (RFC 3207 4.2).
    pub(crate) fn write_ehlo(&self, tls: bool, channel: &Channel, bounds: Bounds, out: &mut Vec<u8>) {
        let (max_octets, max_recipients) = self.bounded(bounds);
        let mut last = out.len();
        let mut line = |offered: bool, text: std::fmt::Arguments<'_>| {
            if offered {
                last = out.len();
                // Writing to a Vec cannot fail.
                let _ = write!(out, "250-{text}\r\n");
            }
        };
        line(true, format_args!("{}", self.hostname));
        line(self.pipelining, format_args!("PIPELINING"));
        line(true, format_args!("SIZE {max_octets}"));
        line(true, format_args!("8BITMIME"));
        line(true, format_args!("ENHANCEDSTATUSCODES"));
        line(self.smtputf8, format_args!("SMTPUTF8"));
        line(self.chunking, format_args!("CHUNKING"));
        line(self.dsn, format_args!("DSN"));
        // RFC 8689 2: only under TLS.
        line(tls, format_args!("REQUIRETLS"));
        let recipients = max_recipients.clamp(1, LIMIT_MAX);
        let transactions = self.max_transactions.clamp(1, LIMIT_MAX);
        line(true, format_args!("LIMITS MAILMAX={transactions} RCPTMAX={recipients}"));
        line(self.starttls && !tls, format_args!("STARTTLS"));
        // RFC 4954 4: not before a password could be sent.
        let names: Vec<&str> = self.mechanisms.usable(channel).map(|one| one.name()).collect();
        let auth = self.auth && (tls || self.auth_in_clear) && !names.is_empty();
        line(auth, format_args!("AUTH {}", names.join(" ")));
        out[last + 3] = b' ';
    }
}
