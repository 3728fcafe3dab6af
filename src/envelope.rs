//! The envelope of a message: who sent it, who gets it, and what the sender wants to hear of it. It is what MAIL and
//! RCPT said and what the spool keeps beside the content.
//!
//! Its form on disk ([`Envelope::encode`]) is compact, versioned and canonical: one envelope has one encoding, and
//! [`Envelope::decode`] refuses all else with an [`EnvelopeError`], whatever the bytes.

use crate::address::Address;
use crate::clock::UnixTime;
use std::fmt;

/// All about a message but its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Whom to tell of failure; none is the null path `<>`.
    pub reverse_path: Option<Address>,
    /// What BODY= said of the content.
    pub body: Body,
    /// Whether the client asked for SMTPUTF8 (RFC 6531): the message may only go to peers that have it.
    pub smtputf8: bool,
    /// How much of the message a failure report returns (RFC 3461 4.3).
    pub ret: Option<Ret>,
    /// The sender's own name for this message (RFC 3461 4.4), still encoded as xtext, so that it goes on unchanged;
    /// [`decode_xtext`] reads it.
    pub envid: Option<Box<str>>,
    /// The recipients, in the order in which they were given.
    pub recipients: Vec<Recipient>,
    /// Whose message it is, for fairness and limits.
    pub tenant: Box<str>,
    /// When its last byte was taken.
    pub arrived: UnixTime,
    /// "name [ip]" of the client, for reports and logs; at most 255 octets.
    pub client: Box<str>,
    /// REQUIRETLS (RFC 8689) was asked for: the message goes only to hosts that prove who they are and ask the same of the next.
    pub require_tls: bool,
    /// It is a report that this host made itself.
    pub is_dsn: bool,
    /// Why it came to be held, when it did; at most [`crate::limits::HOLD_REASON_MAX`] octets.
    pub held: Option<Box<str>>,
}

/// BODY= of MAIL (RFC 6152).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Body {
    /// The content is said to be ASCII.
    #[default]
    SevenBit,
    /// The content may have octets above 127.
    EightBitMime,
}

/// RET= of MAIL (RFC 3461 4.3).
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ret {
    /// A failure report returns the whole message.
    Full,
    /// A failure report returns the header alone.
    Headers,
}

/// One recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// Its address.
    pub address: Address,
    /// What the sender wants to hear.
    pub notify: Notify,
    /// The original recipient as `type;address`, still encoded as it came (RFC 3461 4.2, RFC 6533 3).
    pub orcpt: Option<Box<str>>,
}

/// NOTIFY= of RCPT (RFC 3461 4.1): of which ends of a delivery the sender wants to hear.
#[derive(Copy, Clone, Default, PartialEq, Eq, Hash)]
pub struct Notify(u8);

impl Notify {
    const NEVER_BIT: u8 = 1;
    const SUCCESS_BIT: u8 = 2;
    const FAILURE_BIT: u8 = 4;
    const DELAY_BIT: u8 = 8;

    /// No NOTIFY was given: failures and delays are reported, as RFC 3461 4.1 leaves to us.
    pub const DEFAULT: Notify = Notify(0);
    /// NOTIFY=NEVER.
    pub const NEVER: Notify = Notify(Notify::NEVER_BIT);

    /// NOTIFY= with these words; with none of them it is NEVER.
    pub const fn new(success: bool, failure: bool, delay: bool) -> Notify {
        if !success && !failure && !delay {
            return Notify::NEVER;
        }
        Notify(
            success as u8 * Notify::SUCCESS_BIT + failure as u8 * Notify::FAILURE_BIT + delay as u8 * Notify::DELAY_BIT,
        )
    }

    /// Reads the value of NOTIFY=, in any case. None if a word is unknown or missing, or NEVER is not alone
    /// (RFC 3461 4.1: it MUST be).
    pub fn parse(value: &[u8]) -> Option<Notify> {
        let mut bits = 0;
        for word in value.split(|&octet| octet == b',') {
            bits |= match word {
                _ if word.eq_ignore_ascii_case(b"NEVER") => Notify::NEVER_BIT,
                _ if word.eq_ignore_ascii_case(b"SUCCESS") => Notify::SUCCESS_BIT,
                _ if word.eq_ignore_ascii_case(b"FAILURE") => Notify::FAILURE_BIT,
                _ if word.eq_ignore_ascii_case(b"DELAY") => Notify::DELAY_BIT,
                _ => return None,
            };
        }
        Notify::from_bits(bits)
    }

    fn from_bits(bits: u8) -> Option<Notify> {
        match bits {
            0..=1 => Some(Notify(bits)),
            _ if bits & Notify::NEVER_BIT == 0 && bits < 16 => Some(Notify(bits)),
            _ => None,
        }
    }

    /// Whether a delivery is to be reported.
    pub const fn success(self) -> bool {
        self.0 & Notify::SUCCESS_BIT != 0
    }

    /// Whether a failure is to be reported.
    pub const fn failure(self) -> bool {
        self.0 == 0 || self.0 & Notify::FAILURE_BIT != 0
    }

    /// Whether a delay is to be reported.
    pub const fn delay(self) -> bool {
        self.0 == 0 || self.0 & Notify::DELAY_BIT != 0
    }

    /// Whether nothing must be reported.
    pub const fn never(self) -> bool {
        self.0 & Notify::NEVER_BIT != 0
    }

    /// Whether the client gave a NOTIFY at all.
    pub const fn is_given(self) -> bool {
        self.0 != 0
    }
}

impl fmt::Display for Notify {
    /// The value of NOTIFY=; nothing if none was given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            (Notify::NEVER_BIT, "NEVER"),
            (Notify::SUCCESS_BIT, "SUCCESS"),
            (Notify::FAILURE_BIT, "FAILURE"),
            (Notify::DELAY_BIT, "DELAY"),
        ];
        let mut comma = "";
        for (_, word) in words.into_iter().filter(|(bit, _)| self.0 & bit != 0) {
            write!(f, "{comma}{word}")?;
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_given() { fmt::Display::fmt(self, f) } else { f.write_str("DEFAULT") }
    }
}

/// The characters that an xtext stands for (RFC 3461 4): `+3D` is `=`. None if it is no xtext or stands for something
/// that is not printable ASCII, which RFC 3461 forbids in ENVID and in the rfc822 form of ORCPT.
pub fn decode_xtext(text: &str) -> Option<String> {
    let mut decoded = String::with_capacity(text.len());
    let mut octets = text.bytes();
    while let Some(octet) = octets.next() {
        let stands_for = match octet {
            b'+' => hex_digit(octets.next()?)? << 4 | hex_digit(octets.next()?)?,
            b'=' => return None,
            33..=126 => octet,
            _ => return None,
        };
        if !(32..=126).contains(&stands_for) {
            return None;
        }
        decoded.push(char::from(stands_for));
    }
    Some(decoded)
}

/// The text as xtext (RFC 3461 4): what is not a printable ASCII character, and `+` and `=`, as `+` and two digits.
pub fn encode_xtext(text: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = String::with_capacity(text.len());
    for octet in text.bytes() {
        if matches!(octet, 33..=126) && octet != b'+' && octet != b'=' {
            encoded.push(char::from(octet));
        } else {
            encoded.push('+');
            encoded.push(char::from(DIGITS[usize::from(octet >> 4)]));
            encoded.push(char::from(DIGITS[usize::from(octet & 15)]));
        }
    }
    encoded
}

fn hex_digit(octet: u8) -> Option<u8> {
    char::from(octet).to_digit(16).map(|digit| digit as u8)
}

/// Why bytes are not an envelope.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It ends too early.
    #[error("the envelope is cut short")]
    Short,
    /// It was written by a later version of this program.
    #[error("the envelope has version {0}, which this program does not know")]
    Version(u8),
    /// A field holds what it cannot hold.
    #[error("the envelope's {0} is not valid")]
    Field(&'static str),
    /// Something follows it.
    #[error("bytes follow the end of the envelope")]
    Trailing,
}

const VERSION: u8 = 1;
/// The version of an envelope that says why its message came to be held, and of no other.
const VERSION_HELD: u8 = 2;

// The octet of flags behind the version. RET takes two bits: 0 none, 1 FULL, 2 HDRS.
const HAS_REVERSE_PATH: u8 = 1;
const IS_EIGHT_BIT: u8 = 1 << 1;
const IS_SMTPUTF8: u8 = 1 << 2;
const RET_SHIFT: u8 = 3;
const HAS_ENVID: u8 = 1 << 5;
const IS_REQUIRE_TLS: u8 = 1 << 6;
const IS_DSN: u8 = 1 << 7;
/// In a recipient's octet, above the bits of [`Notify`].
const HAS_ORCPT: u8 = 1 << 7;

impl Envelope {
    /// Appends the form on disk: version, flags, time, tenant, client, why it was held, reverse path, ENVID, recipients. Numbers are
    /// LEB128; each text has its length before it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let ret = match self.ret {
            None => 0,
            Some(Ret::Full) => 1,
            Some(Ret::Headers) => 2,
        };
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        out.push(if self.held.is_some() { VERSION_HELD } else { VERSION });
        out.push(
            flag(self.reverse_path.is_some(), HAS_REVERSE_PATH)
                | flag(self.body == Body::EightBitMime, IS_EIGHT_BIT)
                | flag(self.smtputf8, IS_SMTPUTF8)
                | ret << RET_SHIFT
                | flag(self.envid.is_some(), HAS_ENVID)
                | flag(self.require_tls, IS_REQUIRE_TLS)
                | flag(self.is_dsn, IS_DSN),
        );
        push_number(out, self.arrived.as_millis());
        push_text(out, &self.tenant);
        push_text(out, &self.client);
        if let Some(held) = &self.held {
            push_text(out, held);
        }
        if let Some(address) = &self.reverse_path {
            push_text(out, address.as_str());
        }
        if let Some(envid) = &self.envid {
            push_text(out, envid);
        }
        push_number(out, self.recipients.len() as u64);
        for recipient in &self.recipients {
            out.push(recipient.notify.0 | flag(recipient.orcpt.is_some(), HAS_ORCPT));
            push_text(out, recipient.address.as_str());
            if let Some(orcpt) = &recipient.orcpt {
                push_text(out, orcpt);
            }
        }
    }

    /// Reads what [`Envelope::encode`] wrote. Any bytes are safe to give; memory used is bounded by their number.
    pub fn decode(bytes: &[u8]) -> Result<Envelope, EnvelopeError> {
        let mut rest = Rest(bytes);
        let is_held = match rest.octet()? {
            VERSION => false,
            VERSION_HELD => true,
            other => return Err(EnvelopeError::Version(other)),
        };
        let flags = rest.octet()?;
        let ret = match flags >> RET_SHIFT & 3 {
            0 => None,
            1 => Some(Ret::Full),
            2 => Some(Ret::Headers),
            _ => return Err(EnvelopeError::Field("flags")),
        };
        let arrived = UnixTime::from_millis(rest.number()?);
        let tenant = rest.text("tenant")?.into();
        let client = rest.text("client")?.into();
        let held = if is_held { Some(rest.text("reason of a hold")?.into()) } else { None };
        let reverse_path = match flags & HAS_REVERSE_PATH {
            0 => None,
            _ => Some(rest.address("reverse path")?),
        };
        let envid = match flags & HAS_ENVID {
            0 => None,
            _ => Some(rest.text("ENVID")?.into()),
        };
        let count = rest.number()?;
        // The count is believed only as far as the bytes can bear it: a recipient has four octets at least.
        let mut recipients = Vec::with_capacity(count.min(rest.0.len() as u64 / 4) as usize);
        for _ in 0..count {
            let octet = rest.octet()?;
            let notify = Notify::from_bits(octet & !HAS_ORCPT).ok_or(EnvelopeError::Field("NOTIFY"))?;
            let address = rest.address("recipient")?;
            let orcpt = match octet & HAS_ORCPT {
                0 => None,
                _ => Some(rest.text("ORCPT")?.into()),
            };
            recipients.push(Recipient { address, notify, orcpt });
        }
        if !rest.0.is_empty() {
            return Err(EnvelopeError::Trailing);
        }
        Ok(Envelope {
            reverse_path,
            body: if flags & IS_EIGHT_BIT != 0 { Body::EightBitMime } else { Body::SevenBit },
            smtputf8: flags & IS_SMTPUTF8 != 0,
            ret,
            envid,
            recipients,
            tenant,
            arrived,
            client,
            require_tls: flags & IS_REQUIRE_TLS != 0,
            is_dsn: flags & IS_DSN != 0,
            held,
        })
    }
}

fn push_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    push_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// What of the bytes has not been read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn octet(&mut self) -> Result<u8, EnvelopeError> {
        let (&octet, rest) = self.0.split_first().ok_or(EnvelopeError::Short)?;
        self.0 = rest;
        Ok(octet)
    }

    /// A LEB128 number in its shortest form.
    fn number(&mut self) -> Result<u64, EnvelopeError> {
        let mut number = 0;
        for place in 0..10 {
            let octet = self.octet()?;
            let bits = u64::from(octet & 0x7f);
            let too_wide = place == 9 && bits > 1;
            let not_shortest = place > 0 && octet == 0;
            if too_wide || not_shortest {
                return Err(EnvelopeError::Field("number"));
            }
            number |= bits << (7 * place);
            if octet < 0x80 {
                return Ok(number);
            }
        }
        Err(EnvelopeError::Field("number"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], EnvelopeError> {
        let len = usize::try_from(self.number()?).map_err(|_| EnvelopeError::Short)?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(EnvelopeError::Short)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, EnvelopeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| EnvelopeError::Field(field))
    }

    fn address(&mut self, field: &'static str) -> Result<Address, EnvelopeError> {
        Address::parse(self.bytes()?, true).map_err(|_| EnvelopeError::Field(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address() -> impl Strategy<Value = Address> {
        prop_oneof![
            "[a-z0-9]{1,12}@[a-z]{1,12}\\.[a-z]{2,5}",
            "\"[a-z @]{0,9}\"@b\\.example",
            "[а-я]{1,9}@пример\\.example"
        ]
        .prop_map(|text| Address::parse(text.as_bytes(), true).unwrap())
    }

    fn notify() -> impl Strategy<Value = Notify> {
        prop_oneof![
            Just(Notify::DEFAULT),
            any::<(bool, bool, bool)>().prop_map(|(success, failure, delay)| Notify::new(success, failure, delay))
        ]
    }

    fn recipient() -> impl Strategy<Value = Recipient> {
        (address(), notify(), proptest::option::of("rfc822;[a-z+@]{1,20}")).prop_map(|(address, notify, orcpt)| {
            Recipient { address, notify, orcpt: orcpt.map(String::into_boxed_str) }
        })
    }

    fn envelope() -> impl Strategy<Value = Envelope> {
        let first = (
            proptest::option::of(address()),
            prop_oneof![Just(Body::SevenBit), Just(Body::EightBitMime)],
            any::<[bool; 3]>(),
            prop_oneof![Just(None), Just(Some(Ret::Full)), Just(Some(Ret::Headers))],
            proptest::option::of("[a-zA-Z0-9]{1,100}"),
        );
        let second = (
            proptest::collection::vec(recipient(), 0..5),
            ".{0,30}",
            any::<u64>(),
            ".{0,60}",
            proptest::option::of(".{0,40}"),
        );
        (first, second).prop_map(
            |((reverse_path, body, flags, ret, envid), (recipients, tenant, arrived, client, held))| Envelope {
                reverse_path,
                body,
                smtputf8: flags[0],
                ret,
                envid: envid.map(String::into_boxed_str),
                recipients,
                tenant: tenant.into(),
                arrived: UnixTime::from_millis(arrived),
                client: client.into(),
                require_tls: flags[1],
                is_dsn: flags[2],
                held: held.map(String::into_boxed_str),
            },
        )
    }

    proptest! {
        #[test]
        fn encoded_and_decoded_is_the_same(envelope in envelope()) {
            let mut bytes = Vec::new();
            envelope.encode(&mut bytes);
            prop_assert_eq!(Envelope::decode(&bytes), Ok(envelope));
            for cut in 0..bytes.len() {
                prop_assert!(Envelope::decode(&bytes[..cut]).is_err());
            }
        }

        #[test]
        fn any_bytes_decode_to_what_encodes_to_them(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decodes_canonically(&bytes)?;
        }

        #[test]
        fn damaged_bytes_decode_to_what_encodes_to_them(envelope in envelope(), place in any::<prop::sample::Index>(), octet in any::<u8>()) {
            let mut bytes = Vec::new();
            envelope.encode(&mut bytes);
            let place = place.index(bytes.len());
            bytes[place] = octet;
            decodes_canonically(&bytes)?;
        }

        #[test]
        fn xtext_round_trip(text in "[ -~]{0,40}") {
            prop_assert_eq!(decode_xtext(&encode_xtext(&text)), Some(text));
        }
    }

    fn decodes_canonically(bytes: &[u8]) -> Result<(), TestCaseError> {
        if let Ok(envelope) = Envelope::decode(bytes) {
            let mut again = Vec::new();
            envelope.encode(&mut again);
            prop_assert_eq!(&again[..], bytes);
        }
        Ok(())
    }

    #[test]
    fn a_count_beyond_the_bytes_takes_no_memory() {
        let mut bytes = vec![VERSION, 0, 0, 0, 0];
        push_number(&mut bytes, u64::MAX);
        assert_eq!(Envelope::decode(&bytes), Err(EnvelopeError::Short));
    }

    #[test]
    fn notify_words() {
        assert_eq!(Notify::parse(b"never"), Some(Notify::NEVER));
        assert_eq!(Notify::parse(b"SUCCESS,Delay"), Some(Notify::new(true, false, true)));
        assert_eq!(Notify::parse(b"NEVER,SUCCESS"), None);
        assert_eq!(Notify::parse(b"SUCCESS,NEVER"), None);
        assert_eq!(Notify::parse(b""), None);
        assert_eq!(Notify::parse(b"SUCCESS,"), None);
        assert_eq!(Notify::new(true, true, true).to_string(), "SUCCESS,FAILURE,DELAY");
        assert_eq!(Notify::NEVER.to_string(), "NEVER");
        assert_eq!(Notify::DEFAULT.to_string(), "");
        assert!(Notify::DEFAULT.failure() && Notify::DEFAULT.delay() && !Notify::DEFAULT.success());
        assert!(!Notify::DEFAULT.is_given() && !Notify::DEFAULT.never());
        assert!(Notify::NEVER.never() && !Notify::NEVER.failure() && !Notify::NEVER.delay());
        assert!(Notify::new(false, true, false).failure() && !Notify::new(false, true, false).delay());
    }

    #[test]
    fn xtext_refuses_what_it_must_not_hold() {
        assert_eq!(decode_xtext("a+3Db+2B").as_deref(), Some("a=b+"));
        for bad in ["+", "+4", "+4G", "a=b", "a b", "a+0A", "a+00", "ü", "a+80"] {
            assert_eq!(decode_xtext(bad), None, "{bad}");
        }
    }
}
