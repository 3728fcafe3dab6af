//! What is known about the peer of an SMTP client: its name and the extensions it offers.
//!
//! Reads the lines of an EHLO reply liberally (unknown keywords and malformed parameters are passed over, letter
//! case does not matter) and in bounded space: no text of the peer but its name is kept. Never fails.

use crate::limits::PEER_NAME_OCTETS_MAX;

/// The peer's name and extensions, as its greeting and its last EHLO reply gave them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    name: Box<str>,
    pipelining: bool,
    eight_bit_mime: bool,
    smtputf8: bool,
    chunking: bool,
    dsn: bool,
    starttls: bool,
    require_tls: bool,
    enhanced_status_codes: bool,
    size: bool,
    size_max: Option<u64>,
    mail_max: Option<u32>,
    recipients_max: Option<u32>,
    recipient_domains_max: Option<u32>,
}

impl Peer {
    /// The first word of the greeting: the peer's own idea of its name; graphic ASCII, bounded, may be empty.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// It offers PIPELINING (RFC 2920).
    pub fn pipelining(&self) -> bool {
        self.pipelining
    }

    /// It offers 8BITMIME (RFC 6152).
    pub fn eight_bit_mime(&self) -> bool {
        self.eight_bit_mime
    }

    /// It offers SMTPUTF8 (RFC 6531).
    pub fn smtputf8(&self) -> bool {
        self.smtputf8
    }

    /// It offers CHUNKING (RFC 3030).
    pub fn chunking(&self) -> bool {
        self.chunking
    }

    /// It offers DSN (RFC 3461): it will see to reports itself.
    pub fn dsn(&self) -> bool {
        self.dsn
    }

    /// It offers STARTTLS (RFC 3207).
    pub fn starttls(&self) -> bool {
        self.starttls
    }

    /// It offers REQUIRETLS (RFC 8689).
    pub fn require_tls(&self) -> bool {
        self.require_tls
    }

    /// It offers ENHANCEDSTATUSCODES (RFC 2034).
    pub fn enhanced_status_codes(&self) -> bool {
        self.enhanced_status_codes
    }

    /// It offers SIZE (RFC 1870), with or without a number.
    pub fn size(&self) -> bool {
        self.size
    }

    /// Octets of content it takes at most, if it names a number.
    pub fn size_max(&self) -> Option<u64> {
        self.size_max
    }

    /// Transactions it takes in one session, if it names a number (MAILMAX of RFC 9422).
    pub fn mail_max(&self) -> Option<u32> {
        self.mail_max
    }

    /// Recipients it takes in one transaction, if it names a number (RCPTMAX of RFC 9422).
    pub fn recipients_max(&self) -> Option<u32> {
        self.recipients_max
    }

    /// Distinct domains of recipients it takes in one transaction, if it names a number (RCPTDOMAINMAX of RFC 9422).
    pub fn recipient_domains_max(&self) -> Option<u32> {
        self.recipient_domains_max
    }

    /// Keeps the name from the text of the greeting.
    pub(super) fn read_greeting(&mut self, text: &str) {
        let word = text.split_ascii_whitespace().next().unwrap_or("");
        self.name = word.chars().filter(char::is_ascii_graphic).take(PEER_NAME_OCTETS_MAX).collect();
    }

    /// Forgets the extensions and reads them from the text of an EHLO reply, lines divided by `\n`.
    /// The first line is the peer's greeting and names no extension.
    pub(super) fn read_hello(&mut self, text: &str) {
        *self = Peer { name: std::mem::take(&mut self.name), ..Peer::default() };
        for line in text.split('\n').skip(1) {
            let mut words = line.split_ascii_whitespace();
            let Some(keyword) = words.next() else { continue };
            let is = |name: &str| keyword.eq_ignore_ascii_case(name);
            if is("PIPELINING") {
                self.pipelining = true;
            } else if is("8BITMIME") {
                self.eight_bit_mime = true;
            } else if is("SMTPUTF8") {
                self.smtputf8 = true;
            } else if is("CHUNKING") {
                self.chunking = true;
            } else if is("DSN") {
                self.dsn = true;
            } else if is("STARTTLS") {
                self.starttls = true;
            } else if is("REQUIRETLS") {
                self.require_tls = true;
            } else if is("ENHANCEDSTATUSCODES") {
                self.enhanced_status_codes = true;
            } else if is("SIZE") {
                self.size = true;
                // "SIZE 0" says that there is no fixed maximum (RFC 1870 4); so does a number too great to read.
                self.size_max = words.next().and_then(|number| number.parse().ok()).filter(|&max| max > 0);
            } else if is("LIMITS") {
                words.for_each(|word| self.read_limit(word));
            }
        }
    }

    /// Reads one "NAME=VALUE"; others than known names and positive numbers are passed over (RFC 9422 3).
    fn read_limit(&mut self, word: &str) {
        let Some((name, value)) = word.split_once('=') else { return };
        let Some(value) = value.parse().ok().filter(|&value: &u32| value > 0) else { return };
        if name.eq_ignore_ascii_case("MAILMAX") {
            self.mail_max = Some(value);
        } else if name.eq_ignore_ascii_case("RCPTMAX") {
            self.recipients_max = Some(value);
        } else if name.eq_ignore_ascii_case("RCPTDOMAINMAX") {
            self.recipient_domains_max = Some(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_extensions_are_read_whatever_their_case() {
        let mut peer = Peer::default();
        peer.read_greeting("mx.example.org ESMTP");
        peer.read_hello(
            "mx.example.org PIPELINING\npipelining\nSize 1000\n8BitMime\nSMTPUTF8\nCHUNKING\nDSN\nSTARTTLS\nRequireTLS\n\
             ENHANCEDSTATUSCODES\nLIMITS RCPTMAX=20 mailmax=5 RCPTDOMAINMAX=1 X=Y\nX-UNKNOWN a b",
        );
        let expected = Peer {
            name: "mx.example.org".into(),
            pipelining: true,
            eight_bit_mime: true,
            smtputf8: true,
            chunking: true,
            dsn: true,
            starttls: true,
            require_tls: true,
            enhanced_status_codes: true,
            size: true,
            size_max: Some(1000),
            mail_max: Some(5),
            recipients_max: Some(20),
            recipient_domains_max: Some(1),
        };
        assert_eq!(peer, expected);
        peer.read_hello("mx.example.org");
        assert_eq!(peer, Peer { name: "mx.example.org".into(), ..Peer::default() });
    }

    #[test]
    fn odd_lines_are_passed_over() {
        let mut peer = Peer::default();
        peer.read_hello("STARTTLS\nSIZE\n\n  \nLIMITS RCPTMAX=x MAILMAX=0 =7 RCPTDOMAINMAX\nSTARTTLSX\nPIPELINING=1");
        assert_eq!(peer, Peer { size: true, ..Peer::default() });
        for text in ["x\nSIZE 0", "x\nSIZE 99999999999999999999999", "x\nSIZE -1", "x\nSIZE=5"] {
            peer.read_hello(text);
            assert_eq!(peer.size_max, None, "{text}");
        }
    }

    #[test]
    fn the_name_is_bounded_and_graphic() {
        let mut peer = Peer::default();
        peer.read_greeting("");
        assert_eq!(&*peer.name, "");
        peer.read_greeting("a\u{1b}[2Jé\u{7f}b rest");
        assert_eq!(&*peer.name, "a[2Jb");
        peer.read_greeting(&"x".repeat(5_000));
        assert_eq!(peer.name.len(), PEER_NAME_OCTETS_MAX);
    }
}
