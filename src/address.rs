//! Mail addresses: the Mailbox of RFC 5321 4.1.2 with the non-ASCII characters of RFC 6531 3.3, checked once and then
//! carried about as a value that cannot be wrong.
//!
//! Not here: angle brackets, source routes and the null path (src/smtp/command.rs), nor whether an address exists.
//! A text that is no address gives an [`AddressError`] that says what to mend; nothing is repaired in silence.

use crate::limits::{
    ADDRESS_OCTETS_MAX, DOMAIN_NAME_OCTETS_MAX, DOMAIN_OCTETS_MAX, LABEL_OCTETS_MAX, LOCAL_PART_OCTETS_MAX,
};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A mail address as it was written: local part, `@`, domain or address literal.
///
/// Equality is octet by octet, since only the receiving host may say that two local parts are one (RFC 5321 2.4).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address {
    text: Box<str>,
    /// Where the `@` between local part and domain stands.
    at: u8,
}

/// Why a text is not an address.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing stands before or behind the `@`, or there is none.
    #[error("the address needs a local part, an @ and a domain")]
    Incomplete,
    /// More than 254 octets in all.
    #[error("the address has more than {ADDRESS_OCTETS_MAX} octets")]
    TooLong,
    /// More than 64 octets before the `@`.
    #[error("the part before the @ has more than {LOCAL_PART_OCTETS_MAX} octets")]
    LocalPartTooLong,
    /// More than 255 octets behind the `@`, or more than DNS can hold.
    #[error("the domain is longer than a domain name may be")]
    DomainTooLong,
    /// The local part holds what would have to be quoted, or its quotes are wrong.
    #[error("the part before the @ has characters that must be quoted, or wrong quotes")]
    LocalPart,
    /// The domain is no domain name.
    #[error("the domain is not a valid domain name")]
    Domain,
    /// The address literal is neither `[192.0.2.1]` nor `[IPv6:2001:db8::1]`.
    #[error("the address literal is neither like [192.0.2.1] nor like [IPv6:2001:db8::1]")]
    Literal,
    /// Octets above 127 that are not UTF-8, or a control character written in UTF-8.
    #[error("the address has octets that are not printable UTF-8")]
    NotUtf8,
    /// Non-ASCII characters where only ASCII is allowed.
    #[error("the address has non-ASCII characters, which need SMTPUTF8")]
    NeedsSmtpUtf8,
}

impl Address {
    /// Reads an address that stands alone, without angle brackets. `utf8` allows non-ASCII characters (RFC 6531 3.3).
    /// Quotes are kept as given. Bounds: 64 octets of local part, 255 of domain, 254 in all.
    pub fn parse(text: &[u8], utf8: bool) -> Result<Address, AddressError> {
        if text.len() > ADDRESS_OCTETS_MAX {
            return Err(AddressError::TooLong);
        }
        let text = printable(text, utf8)?;
        let at = local_part_end(text.as_bytes())?;
        if at > LOCAL_PART_OCTETS_MAX {
            return Err(AddressError::LocalPartTooLong);
        }
        check_domain_or_literal(&text[at + 1..])?;
        Ok(Address { text: text.into(), at: at as u8 })
    }

    /// Like [`Address::parse`], and takes a bare `Postmaster` in any case for the one at `local_domain`
    /// (RFC 5321 4.5.1: it must be accepted).
    pub fn parse_recipient(text: &[u8], utf8: bool, local_domain: &str) -> Result<Address, AddressError> {
        if text.eq_ignore_ascii_case(b"postmaster") {
            let whole = [text, b"@", local_domain.as_bytes()].concat();
            return Address::parse(&whole, true);
        }
        Address::parse(text, utf8)
    }

    /// The whole address as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What stands before the `@`, quotes included.
    pub fn local_part(&self) -> &str {
        &self.text[..usize::from(self.at)]
    }

    /// What stands behind the `@`: a domain, or an address literal with its brackets.
    pub fn domain(&self) -> &str {
        &self.text[usize::from(self.at) + 1..]
    }

    /// Whether it can be sent to a peer that lacks SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.text.is_ascii()
    }

    /// The domain as routing and DNS know it: lower case, A-labels (RFC 5890). An address literal keeps its brackets
    /// and has its address in the usual short form: `[192.0.2.1]`, `[IPv6:2001:db8::1]`.
    pub fn routing_domain(&self) -> Result<Box<str>, AddressError> {
        routing_domain(self.domain())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.text)
    }
}

/// Checks a domain name or an address literal as it may stand behind the `@` (RFC 5321 4.1.2, 4.1.3), as in source
/// routes. Non-ASCII domains must be ones that IDNA can map to A-labels.
pub fn check_domain_or_literal(text: &str) -> Result<(), AddressError> {
    if text.len() > DOMAIN_OCTETS_MAX {
        return Err(AddressError::DomainTooLong);
    }
    if text.starts_with('[') {
        return literal(text).map(|_| ());
    }
    if text.is_ascii() { check_domain_name(text.as_bytes()) } else { to_a_labels(text).map(|_| ()) }
}

/// The address of an address literal; none for anything else.
pub fn literal_address(text: &str) -> Option<IpAddr> {
    match literal(text).ok()? {
        Literal::V4(address) => Some(address.into()),
        Literal::V6(address) => Some(address.into()),
    }
}

/// A checked domain or literal in the form of [`Address::routing_domain`].
fn routing_domain(domain: &str) -> Result<Box<str>, AddressError> {
    if domain.starts_with('[') {
        return Ok(match literal(domain)? {
            Literal::V4(address) => format!("[{address}]").into(),
            Literal::V6(address) => format!("[IPv6:{address}]").into(),
        });
    }
    if domain.is_ascii() {
        check_domain_name(domain.as_bytes())?;
        return Ok(domain.to_ascii_lowercase().into());
    }
    to_a_labels(domain)
}

/// A-labels of a domain with U-labels (RFC 6531 3.7.1 asks for them before DNS is asked).
fn to_a_labels(domain: &str) -> Result<Box<str>, AddressError> {
    let ascii = idna::domain_to_ascii(domain).map_err(|_| AddressError::Domain)?;
    check_domain_name(ascii.as_bytes())?;
    Ok(ascii.into())
}

/// Letters, digits and hyphens in labels that neither start nor end with a hyphen (RFC 5321 4.1.2). An underscore
/// passes for a letter: hosts are named so, above all in container networks, and refusing their mail helps nobody.
fn check_domain_name(name: &[u8]) -> Result<(), AddressError> {
    if name.is_empty() {
        return Err(AddressError::Incomplete);
    }
    if name.len() > DOMAIN_NAME_OCTETS_MAX {
        return Err(AddressError::DomainTooLong);
    }
    let mut label = 0;
    let mut before = b'.';
    for &octet in name {
        match octet {
            b'.' if label == 0 || before == b'-' => return Err(AddressError::Domain),
            b'.' => label = 0,
            b'-' if label == 0 => return Err(AddressError::Domain),
            b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => label += 1,
            _ => return Err(AddressError::Domain),
        }
        if label > LABEL_OCTETS_MAX {
            return Err(AddressError::DomainTooLong);
        }
        before = octet;
    }
    if before == b'.' || before == b'-' { Err(AddressError::Domain) } else { Ok(()) }
}

enum Literal {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

/// `[192.0.2.1]` or `[IPv6:2001:db8::1]`. IPv6 is the only tag that was ever registered (RFC 5321 4.1.3).
fn literal(text: &str) -> Result<Literal, AddressError> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).ok_or(AddressError::Literal)?;
    let v6 = match (inner.get(..5), inner.get(5..)) {
        (Some(tag), Some(rest)) if tag.eq_ignore_ascii_case("IPv6:") => Some(rest),
        _ => None,
    };
    match v6 {
        Some(address) => address.parse().map(Literal::V6).map_err(|_| AddressError::Literal),
        None => inner.parse().map(Literal::V4).map_err(|_| AddressError::Literal),
    }
}

/// The text as characters, if it has only such as this session may use. Controls are refused here once for all parts.
fn printable(text: &[u8], utf8: bool) -> Result<&str, AddressError> {
    if text.is_ascii() {
        return std::str::from_utf8(text).map_err(|_| AddressError::NotUtf8);
    }
    if !utf8 {
        return Err(AddressError::NeedsSmtpUtf8);
    }
    let text = std::str::from_utf8(text).map_err(|_| AddressError::NotUtf8)?;
    // The ASCII controls are found by the grammar of each part. Those above would pass as "UTF8-non-ascii" of
    // RFC 6531 3.3, but terminals obey them.
    if text.chars().any(|c| !c.is_ascii() && c.is_control()) { Err(AddressError::NotUtf8) } else { Ok(text) }
}

/// Checks the local part and finds the `@` behind it.
fn local_part_end(text: &[u8]) -> Result<usize, AddressError> {
    let end = if text.first() == Some(&b'"') { quoted_string_end(text)? } else { dot_string_end(text)? };
    if text.get(end) != Some(&b'@') {
        return Err(if end == text.len() { AddressError::Incomplete } else { AddressError::LocalPart });
    }
    if end == 0 { Err(AddressError::Incomplete) } else { Ok(end) }
}

/// `Dot-string` (RFC 5321 4.1.2): atoms with single dots between them.
fn dot_string_end(text: &[u8]) -> Result<usize, AddressError> {
    let mut before = b'.';
    for (place, &octet) in text.iter().enumerate() {
        match octet {
            b'@' if place == 0 => return Err(AddressError::Incomplete),
            b'@' if before == b'.' => return Err(AddressError::LocalPart),
            b'@' => return Ok(place),
            b'.' if before == b'.' => return Err(AddressError::LocalPart),
            b'.' => {}
            _ if is_atext(octet) => {}
            _ => return Err(AddressError::LocalPart),
        }
        before = octet;
    }
    Err(AddressError::Incomplete)
}

/// `Quoted-string` (RFC 5321 4.1.2): printable ASCII and spaces, `"` and `\` behind a `\`; returns the place behind it.
fn quoted_string_end(text: &[u8]) -> Result<usize, AddressError> {
    let mut place = 1;
    while let Some(&octet) = text.get(place) {
        match octet {
            b'"' => return Ok(place + 1),
            b'\\' => {
                if !matches!(text.get(place + 1), Some(32..=126)) {
                    return Err(AddressError::LocalPart);
                }
                place += 2;
            }
            32..=126 | 128..=255 => place += 1,
            _ => return Err(AddressError::LocalPart),
        }
    }
    Err(AddressError::LocalPart)
}

/// `atext` of RFC 5322 3.2.3 with the octets of UTF-8, which [`printable`] has already checked.
fn is_atext(octet: u8) -> bool {
    const ATEXT: [bool; 256] = {
        let mut table = [false; 256];
        let mut octet = 0;
        while octet < 256 {
            table[octet] = octet >= 128 || (octet as u8).is_ascii_alphanumeric();
            octet += 1;
        }
        let marks = b"!#$%&'*+-/=?^_`{|}~";
        let mut mark = 0;
        while mark < marks.len() {
            table[marks[mark] as usize] = true;
            mark += 1;
        }
        table
    };
    ATEXT[usize::from(octet)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Address, AddressError> {
        Address::parse(text.as_bytes(), false)
    }

    #[test]
    fn parts_are_kept_as_written() {
        let address = parse("\"a@b \\\" c\"@Example.COM").unwrap();
        assert_eq!(address.local_part(), "\"a@b \\\" c\"");
        assert_eq!(address.domain(), "Example.COM");
        assert_eq!(address.as_str(), "\"a@b \\\" c\"@Example.COM");
        assert_eq!(&*address.routing_domain().unwrap(), "example.com");
        assert!(address.is_ascii());
    }

    #[test]
    fn good_addresses() {
        for text in [
            "a@b",
            "first.last+tag@sub.example.org",
            "!#$%&'*+-/=?^_`{|}~@example.org",
            "\"\"@example.org",
            "\"with space\"@example.org",
            "u@[192.0.2.1]",
            "u@[IPv6:2001:db8::1]",
            "u@[ipv6:::ffff:192.0.2.1]",
            "u@xn--bcher-kva.example",
            "root@web_1.internal",
            "u@1.2.3.example",
        ] {
            assert!(parse(text).is_ok(), "{text}: {:?}", parse(text));
        }
    }

    #[test]
    fn bad_addresses() {
        use AddressError::*;
        let long_local = format!("{}@example.org", "a".repeat(65));
        let long_label = format!("a@{}.org", "b".repeat(64));
        let long = format!("a@{}", "b.".repeat(130));
        for (text, error) in [
            ("", Incomplete),
            ("a", Incomplete),
            ("@b", Incomplete),
            ("a@", Incomplete),
            ("Postmaster", Incomplete),
            (".a@b", LocalPart),
            ("a.@b", LocalPart),
            ("a..b@c", LocalPart),
            ("a b@c", LocalPart),
            ("a\r@c", LocalPart),
            ("a\0@c", LocalPart),
            ("a<b@c", LocalPart),
            ("\"a@c", LocalPart),
            ("\"a\"b@c", LocalPart),
            ("\"a\\\r\"@c", LocalPart),
            ("\"a\r\"@c", LocalPart),
            ("a@b@c", Domain),
            ("a@b c", Domain),
            ("a@-b.org", Domain),
            ("a@b-.org", Domain),
            ("a@b-", Domain),
            ("a@.b", Domain),
            ("a@b.", Domain),
            ("a@b..c", Domain),
            ("a@b>", Domain),
            ("a@[192.0.2]", Literal),
            ("a@[192.0.2.256]", Literal),
            ("a@[192.0.2.1", Literal),
            ("a@[IPv6:1:2]", Literal),
            ("a@[IPv6:]", Literal),
            ("a@[]", Literal),
            ("a@[x:y]", Literal),
            ("a@[fe80::1%eth0]", Literal),
            (&long_local, LocalPartTooLong),
            (&long_label, DomainTooLong),
            (&long, TooLong),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn bounds_are_exact() {
        assert!(parse(&format!("{}@example.org", "a".repeat(64))).is_ok());
        let domain = format!("{0}.{0}.{0}", "b".repeat(61));
        let text = format!("{}@{domain}.org", "a".repeat(64));
        assert_eq!(text.len(), 254);
        assert!(parse(&text).is_ok());
        assert_eq!(parse(&format!("{text}x")), Err(AddressError::TooLong));
    }

    #[test]
    fn international_addresses() {
        let text = "пошта@Bücher.example";
        assert_eq!(parse(text), Err(AddressError::NeedsSmtpUtf8));
        let address = Address::parse(text.as_bytes(), true).unwrap();
        assert_eq!(&*address.routing_domain().unwrap(), "xn--bcher-kva.example");
        assert_eq!(address.domain(), "Bücher.example");
        assert!(!address.is_ascii());
        assert_eq!(Address::parse(b"a\xff@b", true), Err(AddressError::NotUtf8));
        assert_eq!(Address::parse("a\u{85}@b".as_bytes(), true), Err(AddressError::NotUtf8));
        assert_eq!(Address::parse("a@b\u{200e}ü".as_bytes(), true), Err(AddressError::Domain));
        assert_eq!(Address::parse("a@ü b.example".as_bytes(), true), Err(AddressError::Domain));
        assert_eq!(Address::parse("a@[ü]".as_bytes(), true), Err(AddressError::Literal));
    }

    #[test]
    fn literals_are_normal_in_routing() {
        for (text, routing) in [("u@[192.0.2.1]", "[192.0.2.1]"), ("u@[ipV6:2001:DB8:0:0::1]", "[IPv6:2001:db8::1]")] {
            assert_eq!(&*parse(text).unwrap().routing_domain().unwrap(), routing);
        }
    }

    #[test]
    fn postmaster_is_at_home_here() {
        let parsed = Address::parse_recipient(b"PostMaster", false, "mx.example.org").unwrap();
        assert_eq!(parsed.as_str(), "PostMaster@mx.example.org");
        assert_eq!(Address::parse_recipient(b"abuse", false, "mx.example.org"), Err(AddressError::Incomplete));
    }

    proptest! {
        #[test]
        fn whatever_parses_is_sound(text in proptest::collection::vec(any::<u8>(), 0..80), utf8 in any::<bool>()) {
            if let Ok(address) = Address::parse(&text, utf8) {
                prop_assert_eq!(address.as_str().as_bytes(), &text[..]);
                prop_assert_eq!(format!("{}@{}", address.local_part(), address.domain()), address.as_str());
                prop_assert!(address.routing_domain().unwrap().is_ascii());
                prop_assert!(!text.iter().any(|&octet| octet < 32 || octet == 127));
            }
        }

        #[test]
        fn plain_addresses_parse(local in "[a-z0-9]{1,20}(\\.[a-z0-9+_-]{1,20}){0,2}", domain in "[a-z0-9]{1,20}(\\.[a-z]{2,8}){1,3}") {
            let text = format!("{local}@{domain}");
            let address = Address::parse(text.as_bytes(), false).unwrap();
            prop_assert_eq!(address.local_part(), local);
            prop_assert_eq!(address.domain(), domain);
        }
    }
}
