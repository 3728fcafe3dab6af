//! One message as the SMTP client is to send it: envelope, content, and its MAIL and RCPT commands in wire form.
//!
//! Also decides, before anything is sent, what cannot be sent to this peer unchanged. Which recipients go
//! together and over which connection is not decided here. Commands never fail to be written: what could break
//! a command line is found by [`Transaction::obstacle`] first.

use crate::envelope::{Body, Notify, Ret};
use crate::reply::{EnhancedCode, Reply};
use crate::smtp::client_event::{RecipientOutcome, Stage};
use crate::smtp::peer::Peer;
use bytes::Bytes;

/// One transaction: a message and the recipients that get it over this connection.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Where reports go; None is the null reverse path.
    pub reverse_path: Option<Box<str>>,
    /// At least one; the owner keeps to the peer's RCPTMAX (RFC 9422).
    pub recipients: Vec<OutgoingRecipient>,
    /// Whether the content holds octets above 127 (RFC 6152).
    pub body: Body,
    /// The message needs SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// It may only go to a peer that offers REQUIRETLS under TLS (RFC 8689). Whether the peer has proven who it is the owner knows.
    pub require_tls: bool,
    /// RET=, sent where the peer offers DSN.
    pub ret: Option<Ret>,
    /// ENVID= in xtext as it was given, sent where the peer offers DSN.
    pub envid: Option<Box<str>>,
    /// Octets of the content; for a streamed content exact, as its end is known by it.
    pub content_len: u64,
    /// The content itself.
    pub content: OutgoingContent,
}

/// A recipient with its DSN parameters (RFC 3461 4.1 and 4.2).
#[derive(Clone, Debug)]
pub struct OutgoingRecipient {
    /// Without the angle brackets.
    pub address: Box<str>,
    /// NOTIFY=, sent if it was given and the peer offers DSN.
    pub notify: Notify,
    /// ORCPT= as it was given (type, semicolon, xtext).
    pub orcpt: Option<Box<str>>,
}

/// Where the content comes from. It ends with CRLF or gets one; an empty content stays empty.
#[derive(Clone, Debug)]
pub enum OutgoingContent {
    /// At hand, in chunks that are sent without copying.
    Whole(Vec<Bytes>),
    /// Asked for piece by piece with [`WantContent`](super::client_event::ClientEvent::WantContent).
    Streamed,
}

impl Transaction {
    /// What keeps this transaction from being sent to this peer as it is; the same for all its recipients.
    pub(super) fn obstacle(&self, peer: &Peer, secure: bool, assume_8bitmime: bool) -> Option<RecipientOutcome> {
        let broken = |byte: u8| byte < b' ' || byte == 0x7f;
        let mut parameters = self.recipients.iter().filter_map(|one| one.orcpt.as_ref()).chain(&self.envid);
        if self.paths().any(|path| path.bytes().any(broken))
            || parameters.any(|text| text.bytes().any(|byte| broken(byte) || byte == b' '))
        {
            // The parsers of the reception side let none of these in; this stands against a command hidden in one.
            let text = "The envelope of the message holds an address or a parameter with control characters or \
                        spaces that cannot be sent; correct it and send the message again";
            return Some(RecipientOutcome::Refused { reply: Reply::fixed(501, 5, 1, 3, text), stage: Stage::Mail });
        }
        if self.needs_smtputf8() && !peer.smtputf8() {
            return Some(RecipientOutcome::Unsupported {
                enhanced: EnhancedCode { class: 5, subject: 6, detail: 7 },
                text: "The host of the recipient does not support internationalized mail (SMTPUTF8), \
                       which this message needs",
            });
        }
        if self.require_tls && !(secure && peer.require_tls()) {
            return Some(RecipientOutcome::Unsupported {
                enhanced: EnhancedCode { class: 5, subject: 7, detail: 30 },
                text: "The host of the recipient does not support REQUIRETLS, which the sender of this message asked for",
            });
        }
        if self.body == Body::EightBitMime && !peer.eight_bit_mime() && !assume_8bitmime {
            return Some(RecipientOutcome::Unsupported {
                enhanced: EnhancedCode { class: 5, subject: 6, detail: 3 },
                text: "The host of the recipient does not support 8-bit content (8BITMIME), which this message has",
            });
        }
        if peer.size_max().is_some_and(|max| self.content_len > max) {
            let text = "The message is larger than the host of the recipient takes, by its own announcement; \
                        send a smaller one, or a link";
            return Some(RecipientOutcome::Refused { reply: Reply::fixed(552, 5, 3, 4, text), stage: Stage::Mail });
        }
        None
    }

    /// Appends the MAIL command, with the parameters for which the peer offers the extension.
    pub(super) fn write_mail(&self, peer: &Peer, out: &mut Vec<u8>) {
        put(out, &["MAIL FROM:<", self.reverse_path.as_deref().unwrap_or(""), ">"]);
        if peer.size() {
            put(out, &[" SIZE=", &self.content_len.to_string()]);
        }
        if self.body == Body::EightBitMime && peer.eight_bit_mime() {
            put(out, &[" BODY=8BITMIME"]);
        }
        if self.needs_smtputf8() {
            put(out, &[" SMTPUTF8"]);
        }
        if self.require_tls {
            put(out, &[" REQUIRETLS"]);
        }
        if peer.dsn() {
            match self.ret {
                Some(Ret::Full) => put(out, &[" RET=FULL"]),
                Some(Ret::Headers) => put(out, &[" RET=HDRS"]),
                None => {}
            }
            if let Some(envid) = &self.envid {
                put(out, &[" ENVID=", envid]);
            }
        }
        put(out, &["\r\n"]);
    }

    /// Appends the RCPT command of the recipient at `index`; nothing if there is none.
    pub(super) fn write_recipient(&self, index: usize, peer: &Peer, out: &mut Vec<u8>) {
        let Some(recipient) = self.recipients.get(index) else { return };
        put(out, &["RCPT TO:<", &recipient.address, ">"]);
        if peer.dsn() {
            let notify = recipient.notify;
            if notify.is_given() {
                let mut before = " NOTIFY=";
                for (word, asked) in [
                    ("NEVER", notify.never()),
                    ("SUCCESS", notify.success()),
                    ("FAILURE", notify.failure()),
                    ("DELAY", notify.delay()),
                ] {
                    if asked {
                        put(out, &[before, word]);
                        before = ",";
                    }
                }
            }
            if let Some(orcpt) = &recipient.orcpt {
                put(out, &[" ORCPT=", orcpt]);
            }
        }
        put(out, &["\r\n"]);
    }

    /// About how many octets the MAIL and RCPT commands take: enough to write them without growing.
    pub(super) fn commands_len(&self) -> usize {
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len() + 8);
        let mail = 96 + text(&self.reverse_path) + text(&self.envid);
        self.recipients.iter().fold(mail, |sum, one| sum + 48 + one.address.len() + text(&one.orcpt))
    }

    /// By its own word, or since an address cannot be written without it.
    fn needs_smtputf8(&self) -> bool {
        self.smtputf8 || !self.paths().all(|path| path.is_ascii())
    }

    fn paths(&self) -> impl Iterator<Item = &Box<str>> {
        self.recipients.iter().map(|one| &one.address).chain(&self.reverse_path)
    }
}

fn put(out: &mut Vec<u8>, texts: &[&str]) {
    texts.iter().for_each(|text| out.extend_from_slice(text.as_bytes()));
}
