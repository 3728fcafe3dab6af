//! The arguments of MAIL and RCPT: path and parameters (RFC 5321 4.1.1.2, 4.1.1.3, 4.1.2; SIZE RFC 1870, BODY RFC 6152,
//! SMTPUTF8 RFC 6531, REQUIRETLS RFC 8689, RET, ENVID, NOTIFY and ORCPT RFC 3461 and 6533). Read from the raw text, each octet accounted for.
//!
//! Not here: limits of size and policy. What is not sound gives the reply that says what to mend.

use crate::address::{Address, AddressError, check_domain_or_literal};
use crate::envelope::{Body, Notify, Recipient, Ret, decode_xtext};
use crate::limits::{ENVID_OCTETS_MAX, ORCPT_OCTETS_MAX};
use crate::reply::Reply;
use crate::smtp::command::number;
use crate::smtp::replies;
use crate::smtp::transaction::MailFrom;

/// Which parameters EHLO offered beyond SIZE and BODY.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// RET, ENVID, NOTIFY, ORCPT.
    pub dsn: bool,
    /// SMTPUTF8.
    pub smtputf8: bool,
    /// AUTH= of MAIL.
    pub auth: bool,
    /// REQUIRETLS of MAIL.
    pub require_tls: bool,
}

/// Reads `FROM:<path> [parameters]`.
pub fn mail(arguments: &[u8], offered: Offered) -> Result<MailFrom, Reply> {
    let (path, rest) = split_path(arguments, b"FROM:", &replies::BAD_MAIL)?;
    let mut mail = MailFrom {
        reverse_path: None,
        size: None,
        body: Body::SevenBit,
        smtputf8: false,
        require_tls: false,
        ret: None,
        envid: None,
    };
    let mut seen = 0;
    for (keyword, value) in Parameters(rest) {
        let mut is = |word: &[u8], bit: u8| keyword_is(keyword, word, bit, &mut seen);
        if is(b"SIZE", 1)? {
            mail.size = Some(value.and_then(number).ok_or(replies::BAD_SIZE)?);
        } else if is(b"BODY", 2)? {
            mail.body = body(value)?;
        } else if offered.smtputf8 && is(b"SMTPUTF8", 4)? {
            mail.smtputf8 = value.is_none();
            if value.is_some() {
                return Err(replies::BAD_SMTPUTF8);
            }
        } else if offered.dsn && is(b"RET", 8)? {
            mail.ret = Some(ret(value)?);
        } else if offered.dsn && is(b"ENVID", 16)? {
            mail.envid = Some(envid(value)?);
        } else if offered.auth && is(b"AUTH", 32)? {
            // RFC 4954 5: whoever submits is not trusted to speak for others, so it counts as <>.
            auth(value)?;
        } else if offered.require_tls && is(b"REQUIRETLS", 64)? {
            mail.require_tls = value.is_none();
            if value.is_some() {
                return Err(replies::BAD_REQUIRETLS);
            }
        } else {
            return Err(unknown(keyword, value));
        }
    }
    if !path.is_empty() {
        let mailbox = strip_route(path).ok_or_else(|| bad_sender(AddressError::Domain))?;
        mail.reverse_path = Some(Address::parse(mailbox, mail.smtputf8).map_err(bad_sender)?);
    }
    Ok(mail)
}

/// Reads `TO:<path> [parameters]`. `utf8`: MAIL had SMTPUTF8. `hostname` is where a bare Postmaster lives.
pub fn recipient(arguments: &[u8], offered: Offered, utf8: bool, hostname: &str) -> Result<Recipient, Reply> {
    let (path, rest) = split_path(arguments, b"TO:", &replies::BAD_RCPT)?;
    if path.is_empty() {
        return Err(replies::NULL_RECIPIENT);
    }
    let mailbox = strip_route(path).ok_or_else(|| bad_recipient(AddressError::Domain))?;
    let address = Address::parse_recipient(mailbox, utf8, hostname).map_err(bad_recipient)?;
    let mut recipient = Recipient { address, notify: Notify::DEFAULT, orcpt: None };
    let mut seen = 0;
    for (keyword, value) in Parameters(rest) {
        let mut is = |word: &[u8], bit: u8| keyword_is(keyword, word, bit, &mut seen);
        if offered.dsn && is(b"NOTIFY", 1)? {
            recipient.notify = value.and_then(Notify::parse).ok_or(replies::BAD_NOTIFY)?;
        } else if offered.dsn && is(b"ORCPT", 2)? {
            recipient.orcpt = Some(value.and_then(|value| orcpt(value, utf8)).ok_or(replies::BAD_ORCPT)?);
        } else {
            return Err(unknown(keyword, value));
        }
    }
    Ok(recipient)
}

/// What stands between the angle brackets, and what follows them. Spaces before the bracket are tolerated: RFC 5321
/// 3.3 forbids them, yet many programs send them and they are harmless.
fn split_path<'a>(arguments: &'a [u8], word: &[u8], syntax: &Reply) -> Result<(&'a [u8], &'a [u8]), Reply> {
    let mut rest = match arguments.split_at_checked(word.len()) {
        Some((start, rest)) if start.eq_ignore_ascii_case(word) => rest,
        _ => return Err(syntax.clone()),
    };
    while let [b' ', behind @ ..] = rest {
        rest = behind;
    }
    let [b'<', inner @ ..] = rest else { return Err(syntax.clone()) };
    let mut quoted = false;
    let mut place = 0;
    while let Some(&octet) = inner.get(place) {
        match octet {
            b'"' => quoted = !quoted,
            b'\\' if quoted => place += 1,
            b'>' if !quoted => {
                let behind = &inner[place + 1..];
                let separated = behind.first().is_none_or(|&octet| octet == b' ');
                return if separated { Ok((&inner[..place], behind)) } else { Err(syntax.clone()) };
            }
            _ => {}
        }
        place += 1;
    }
    Err(syntax.clone())
}

/// The mailbox without a source route `@a,@b:` before it. RFC 5321 4.1.1.3 and appendix C: source routes MUST be
/// accepted and SHOULD be ignored. None if a route is broken.
fn strip_route(path: &[u8]) -> Option<&[u8]> {
    let mut rest = path;
    while let [b'@', hop @ ..] = rest {
        // A literal may have colons of its own.
        let literal = if hop.first() == Some(&b'[') { memchr::memchr(b']', hop)? } else { 0 };
        let end = literal + memchr::memchr2(b',', b':', &hop[literal..])?;
        check_domain_or_literal(std::str::from_utf8(&hop[..end]).ok()?).ok()?;
        rest = &hop[end + 1..];
        match (hop[end], rest.first()) {
            (b',', Some(b'@')) => {}
            (b':', Some(octet)) if *octet != b'@' => return Some(rest),
            _ => return None,
        }
    }
    Some(rest)
}

/// The parameters: words with spaces between them, each a keyword or a keyword with `=` and a value.
struct Parameters<'a>(&'a [u8]);

impl<'a> Iterator for Parameters<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        while let [b' ', rest @ ..] = self.0 {
            self.0 = rest;
        }
        if self.0.is_empty() {
            return None;
        }
        let end = memchr::memchr(b' ', self.0).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(match memchr::memchr(b'=', word) {
            Some(equals) => (&word[..equals], Some(&word[equals + 1..])),
            None => (word, None),
        })
    }
}

/// Whether the keyword is `word`; an error if it was so before.
fn keyword_is(keyword: &[u8], word: &[u8], bit: u8, seen: &mut u8) -> Result<bool, Reply> {
    if !keyword.eq_ignore_ascii_case(word) {
        return Ok(false);
    }
    if *seen & bit != 0 {
        return Err(replies::TWICE);
    }
    *seen |= bit;
    Ok(true)
}

/// Tells a parameter that is not known from what is no parameter at all (`esmtp-param`, RFC 5321 4.1.2).
fn unknown(keyword: &[u8], value: Option<&[u8]>) -> Reply {
    let sound_keyword = keyword.first().is_some_and(u8::is_ascii_alphanumeric)
        && keyword.iter().all(|octet| octet.is_ascii_alphanumeric() || *octet == b'-');
    let sound_value = value
        .is_none_or(|value| !value.is_empty() && value.iter().all(|octet| matches!(octet, 33..=60 | 62..=126 | 128..)));
    if sound_keyword && sound_value { replies::UNKNOWN_PARAMETER } else { replies::BAD_PARAMETER }
}

fn body(value: Option<&[u8]>) -> Result<Body, Reply> {
    match value {
        Some(value) if value.eq_ignore_ascii_case(b"7BIT") => Ok(Body::SevenBit),
        Some(value) if value.eq_ignore_ascii_case(b"8BITMIME") => Ok(Body::EightBitMime),
        Some(value) if value.eq_ignore_ascii_case(b"BINARYMIME") => Err(replies::NO_BINARYMIME),
        _ => Err(replies::BAD_BODY),
    }
}

fn ret(value: Option<&[u8]>) -> Result<Ret, Reply> {
    match value {
        Some(value) if value.eq_ignore_ascii_case(b"FULL") => Ok(Ret::Full),
        Some(value) if value.eq_ignore_ascii_case(b"HDRS") => Ok(Ret::Headers),
        _ => Err(replies::BAD_RET),
    }
}

fn auth(value: Option<&[u8]>) -> Result<(), Reply> {
    let text = value.and_then(|value| std::str::from_utf8(value).ok()).ok_or(replies::BAD_AUTH_PARAMETER)?;
    if text == "<>" || (!text.is_empty() && decode_xtext(text).is_some()) {
        Ok(())
    } else {
        Err(replies::BAD_AUTH_PARAMETER)
    }
}

fn envid(value: Option<&[u8]>) -> Result<Box<str>, Reply> {
    let text = value.and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
    let fits = (1..=ENVID_OCTETS_MAX).contains(&text.len()) && decode_xtext(text).is_some();
    if fits { Ok(text.into()) } else { Err(replies::BAD_ENVID) }
}

/// `rfc822;xtext`, `utf-8;address` (RFC 6533 3), or another type with xtext; kept as it came.
fn orcpt(value: &[u8], utf8: bool) -> Option<Box<str>> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= ORCPT_OCTETS_MAX)?;
    let (kind, address) = text.split_once(';')?;
    let kind_fits = !kind.is_empty() && kind.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-');
    let address_fits = if kind.eq_ignore_ascii_case("utf-8") {
        is_utf8_address(address, utf8)
    } else {
        decode_xtext(address).is_some()
    };
    if kind_fits && !address.is_empty() && address_fits { Some(text.into()) } else { None }
}

/// `utf-8-addr-xtext`, and with SMTPUTF8 `utf-8-addr-unitext` (RFC 6533 3): characters as they are, or as `\x{HEX}`.
fn is_utf8_address(text: &str, utf8: bool) -> bool {
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        rest = match character {
            '\\' => match escape_end(rest) {
                Some(end) => &rest[end..],
                None => return false,
            },
            '+' | '=' => return false,
            '!'..='~' => &rest[1..],
            _ if utf8 && !character.is_ascii() && !character.is_control() => &rest[character.len_utf8()..],
            _ => return false,
        };
    }
    true
}

/// The length of the `\x{HEX}` at the start of `text`, if it stands for a character that may be shown.
fn escape_end(text: &str) -> Option<usize> {
    let (digits, _) = text.strip_prefix("\\x{")?.split_once('}')?;
    let sound = (2..=6).contains(&digits.len()) && digits.bytes().all(|octet| octet.is_ascii_hexdigit());
    let character = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32)?;
    if sound && !character.is_control() { Some(digits.len() + "\\x{}".len()) } else { None }
}

/// RFC 6531 3.5 and RFC 3463 3.2: 5.6.7 for characters that need SMTPUTF8, else 5.1.7.
fn bad_sender(error: AddressError) -> Reply {
    match error {
        AddressError::NeedsSmtpUtf8 => needs_smtputf8(),
        _ => Reply::new(501, (5, 1, 7), format!("Bad sender address: {error}; correct it")),
    }
}

/// As for senders, with 5.1.3 for syntax.
fn bad_recipient(error: AddressError) -> Reply {
    match error {
        AddressError::NeedsSmtpUtf8 => needs_smtputf8(),
        _ => Reply::new(501, (5, 1, 3), format!("Bad recipient address: {error}; correct it")),
    }
}

fn needs_smtputf8() -> Reply {
    Reply::fixed(550, 5, 6, 7, "The address has non-ASCII characters; give MAIL the parameter SMTPUTF8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smtp_proto::Request;

    const ALL: Offered = Offered { dsn: true, smtputf8: true, auth: true, require_tls: true };
    const NONE: Offered = Offered { dsn: false, smtputf8: false, auth: false, require_tls: false };

    fn from(text: &str) -> Result<MailFrom, Reply> {
        mail(text.as_bytes(), ALL)
    }

    fn to(text: &str) -> Result<Recipient, Reply> {
        recipient(text.as_bytes(), ALL, false, "mx.example.org")
    }

    fn codes<T>(result: Result<T, Reply>) -> (u16, String) {
        match result {
            Ok(_) => (0, String::new()),
            Err(reply) => (reply.code, reply.enhanced.map(|code| code.to_string()).unwrap_or_default()),
        }
    }

    #[test]
    fn protection_is_asked_for_where_it_is_offered() {
        assert!(from("FROM:<a@b> requiretls").unwrap().require_tls && !from("FROM:<a@b>").unwrap().require_tls);
        assert_eq!(codes(from("FROM:<a@b> REQUIRETLS=yes")), (501, "5.5.4".into()));
        assert_eq!(codes(from("FROM:<a@b> REQUIRETLS REQUIRETLS")).0, 501);
        assert_eq!(codes(mail(b"FROM:<a@b> REQUIRETLS", NONE)).0, 555);
    }

    #[test]
    fn senders() {
        let sender = |text: &str| from(text).unwrap().reverse_path.map(|address| address.to_string());
        assert_eq!(sender("FROM:<>"), None);
        assert_eq!(sender("from:<a@b>").as_deref(), Some("a@b"));
        assert_eq!(sender("FROM: <a@b>").as_deref(), Some("a@b"));
        assert_eq!(sender("FROM:<\"a>@\\\"b\"@c>").as_deref(), Some("\"a>@\\\"b\"@c"));
        assert_eq!(sender("FROM:<@a,@b:user@c>").as_deref(), Some("user@c"));
        assert_eq!(sender("FROM:<@[IPv6:2001:db8::1],@b.example:user@c>").as_deref(), Some("user@c"));
        assert_eq!(sender("FROM:<u@[192.0.2.1]>").as_deref(), Some("u@[192.0.2.1]"));
        assert_eq!(sender("FROM:<пошта@bücher.example> SMTPUTF8").as_deref(), Some("пошта@bücher.example"));
    }

    #[test]
    fn mail_parameters() {
        let all = from("FROM:<a@b> SIZE=1000  BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ+3D1").unwrap();
        assert_eq!(all.size, Some(1000));
        assert_eq!(all.body, Body::EightBitMime);
        assert!(all.smtputf8);
        assert_eq!(all.ret, Some(Ret::Headers));
        assert_eq!(all.envid.as_deref(), Some("QQ+3D1"));
        let any_case = from("FROM:<a@b> size=0 body=7bit ret=full").unwrap();
        assert_eq!((any_case.size, any_case.body, any_case.ret), (Some(0), Body::SevenBit, Some(Ret::Full)));
        assert_eq!(from("FROM:<a@b> SIZE=99999999999999999999999").unwrap().size, Some(u64::MAX));
    }

    #[test]
    fn bad_mail() {
        let long_envid = format!("FROM:<a@b> ENVID={}", "x".repeat(101));
        for (text, code, enhanced) in [
            ("", 501, "5.5.4"),
            ("FROM", 501, "5.5.4"),
            ("TO:<a@b>", 501, "5.5.4"),
            ("FROM:a@b", 501, "5.5.4"),
            ("FROM:<a@b", 501, "5.5.4"),
            ("FROM:<a@b>SIZE=1", 501, "5.5.4"),
            ("FROM:<\"a@b>", 501, "5.5.4"),
            ("FROM:<a@b>>", 501, "5.5.4"),
            ("FROM :<a@b>", 501, "5.5.4"),
            ("FROM:<a>", 501, "5.1.7"),
            ("FROM:< >", 501, "5.1.7"),
            ("FROM:<Postmaster>", 501, "5.1.7"),
            ("FROM:<a b@c>", 501, "5.1.7"),
            ("FROM:<@a:>", 501, "5.1.7"),
            ("FROM:<@a,b:u@c>", 501, "5.1.7"),
            ("FROM:<@a,:u@c>", 501, "5.1.7"),
            ("FROM:<@a u@c>", 501, "5.1.7"),
            ("FROM:<@-a:u@c>", 501, "5.1.7"),
            ("FROM:<@a:@b:u@c>", 501, "5.1.7"),
            ("FROM:<ä@b>", 550, "5.6.7"),
            ("FROM:<a@b> SIZE", 501, "5.5.4"),
            ("FROM:<a@b> SIZE=", 501, "5.5.4"),
            ("FROM:<a@b> SIZE=1x", 501, "5.5.4"),
            ("FROM:<a@b> SIZE=-1", 501, "5.5.4"),
            ("FROM:<a@b> SIZE=1 SIZE=1", 501, "5.5.4"),
            ("FROM:<a@b> BODY=8BIT", 501, "5.5.4"),
            ("FROM:<a@b> BODY", 501, "5.5.4"),
            ("FROM:<a@b> BODY=BINARYMIME", 504, "5.5.4"),
            ("FROM:<a@b> SMTPUTF8=1", 501, "5.5.4"),
            ("FROM:<a@b> SMTPUTF8 smtputf8", 501, "5.5.4"),
            ("FROM:<a@b> RET=ALL", 501, "5.5.4"),
            ("FROM:<a@b> ENVID=", 501, "5.5.4"),
            ("FROM:<a@b> ENVID=a+0A", 501, "5.5.4"),
            ("FROM:<a@b> ENVID=a=b", 501, "5.5.4"),
            (&long_envid, 501, "5.5.4"),
            ("FROM:<a@b> NOTIFY=NEVER", 555, "5.5.4"),
            ("FROM:<a@b> AUTH=", 501, "5.5.4"),
            ("FROM:<a@b> AUTH", 501, "5.5.4"),
            ("FROM:<a@b> AUTH=+", 501, "5.5.4"),
            ("FROM:<a@b> AUTH=<> AUTH=<>", 501, "5.5.4"),
            ("FROM:<a@b> X-THING", 555, "5.5.4"),
            ("FROM:<a@b> =x", 501, "5.5.4"),
            ("FROM:<a@b> X=", 501, "5.5.4"),
            ("FROM:<a@b> >", 501, "5.5.4"),
            ("FROM:<a@b> SIZE=1\tBODY=7BIT", 501, "5.5.4"),
        ] {
            assert_eq!(codes(from(text)), (code, enhanced.to_string()), "{text:?}");
        }
        for text in ["FROM:<a@b> SMTPUTF8", "FROM:<a@b> RET=FULL", "FROM:<a@b> ENVID=x"] {
            assert_eq!(codes(mail(text.as_bytes(), NONE)).0, 555, "{text:?}");
        }
        assert!(mail(b"FROM:<a@b> SIZE=1 BODY=7BIT", NONE).is_ok());
    }

    #[test]
    fn recipients() {
        assert_eq!(to("TO:<postMASTER>").unwrap().address.as_str(), "postMASTER@mx.example.org");
        assert_eq!(to("to: <@hop.example:a@b>").unwrap().address.as_str(), "a@b");
        let all = to("TO:<a@b> NOTIFY=SUCCESS,delay ORCPT=rfc822;a+2Bx@b").unwrap();
        assert_eq!(all.notify, Notify::new(true, false, true));
        assert_eq!(all.orcpt.as_deref(), Some("rfc822;a+2Bx@b"));
        assert!(to("TO:<a@b> ORCPT=utf-8;\\x{43F}@b").is_ok());
        assert!(to("TO:<a@b> ORCPT=x400;/c=").is_err());
        assert!(recipient("TO:<я@b> ORCPT=utf-8;я@b".as_bytes(), ALL, true, "mx").is_ok());
        let long_orcpt = format!("TO:<a@b> ORCPT=rfc822;{}", "x".repeat(494));
        for (text, code, enhanced) in [
            ("TO:<>", 501, "5.1.3"),
            ("TO:<a>", 501, "5.1.3"),
            ("TO:<a@b@c>", 501, "5.1.3"),
            ("TO:<я@b>", 550, "5.6.7"),
            ("FROM:<a@b>", 501, "5.5.4"),
            ("TO:<a@b> NOTIFY=", 501, "5.5.4"),
            ("TO:<a@b> NOTIFY", 501, "5.5.4"),
            ("TO:<a@b> NOTIFY=NEVER,SUCCESS", 501, "5.5.4"),
            ("TO:<a@b> NOTIFY=SUCCESS,NEVER", 501, "5.5.4"),
            ("TO:<a@b> NOTIFY=SUCCESS NOTIFY=DELAY", 501, "5.5.4"),
            ("TO:<a@b> NOTIFY=SOMETIMES", 501, "5.5.4"),
            ("TO:<a@b> ORCPT=a@b", 501, "5.5.4"),
            ("TO:<a@b> ORCPT=rfc822;", 501, "5.5.4"),
            ("TO:<a@b> ORCPT=;a@b", 501, "5.5.4"),
            ("TO:<a@b> ORCPT=rfc822;a+0D+0A@b", 501, "5.5.4"),
            ("TO:<a@b> ORCPT=utf-8;я@b", 501, "5.5.4"),
            ("TO:<a@b> ORCPT=utf-8;\\x{0A}@b", 501, "5.5.4"),
            ("TO:<a@b> ORCPT=utf-8;\\x{zz}@b", 501, "5.5.4"),
            ("TO:<a@b> ORCPT=utf-8;\\x{110000}@b", 501, "5.5.4"),
            ("TO:<a@b> ORCPT=utf-8;a+b@c", 501, "5.5.4"),
            (&long_orcpt, 501, "5.5.4"),
            ("TO:<a@b> SIZE=1", 555, "5.5.4"),
            ("TO:<a@b> RRVS=2014-01-01T00:00:00Z", 555, "5.5.4"),
        ] {
            assert_eq!(codes(to(text)), (code, enhanced.to_string()), "{text:?}");
        }
        assert_eq!(codes(recipient(b"TO:<a@b> NOTIFY=NEVER", NONE, false, "mx")).0, 555);
    }

    proptest! {
        /// Where smtp-proto reads a plain line, we read the same.
        #[test]
        fn agrees_with_smtp_proto_on_mail(
            address in "[a-z]{1,9}@[a-z]{1,9}\\.[a-z]{2,4}",
            size in proptest::option::of(0u64..10_000_000_000),
            body in proptest::option::of(prop_oneof![Just("7BIT"), Just("8bitmime")]),
            utf8 in any::<bool>(),
            ret in proptest::option::of(prop_oneof![Just("FULL"), Just("hdrs")]),
            envid in proptest::option::of("[a-z0-9]{1,20}"),
        ) {
            let mut text = format!("FROM:<{address}>");
            text.extend(size.map(|size| format!(" SIZE={size}")));
            text.extend(body.map(|body| format!(" BODY={body}")));
            text.extend(utf8.then_some(" SMTPUTF8"));
            text.extend(ret.map(|ret| format!(" RET={ret}")));
            text.extend(envid.as_ref().map(|envid| format!(" ENVID={envid}")));
            let ours = from(&text).unwrap();
            let line = format!("MAIL {text}\r\n");
            let Ok(Request::Mail { from: theirs }) = Request::parse(&mut line.as_bytes().iter()) else {
                return Err(TestCaseError::fail(line));
            };
            let sender = ours.reverse_path.unwrap();
            prop_assert_eq!(sender.as_str(), theirs.address);
            prop_assert_eq!(ours.size.unwrap_or(0), theirs.size as u64);
            prop_assert_eq!(ours.body == Body::EightBitMime, theirs.flags & smtp_proto::MAIL_BODY_8BITMIME != 0);
            prop_assert_eq!(ours.smtputf8, theirs.flags & smtp_proto::MAIL_SMTPUTF8 != 0);
            prop_assert_eq!(ours.ret == Some(Ret::Full), theirs.flags & smtp_proto::MAIL_RET_FULL != 0);
            prop_assert_eq!(ours.ret == Some(Ret::Headers), theirs.flags & smtp_proto::MAIL_RET_HDRS != 0);
            prop_assert_eq!(ours.envid.as_deref(), theirs.env_id.as_deref());
        }

        #[test]
        fn agrees_with_smtp_proto_on_recipients(
            address in "[a-z]{1,9}@[a-z]{1,9}\\.[a-z]{2,4}",
            notify in any::<[bool; 3]>(),
            orcpt in proptest::option::of("[a-z]{1,9}@[a-z]{1,9}"),
        ) {
            let notify = Notify::new(notify[0], notify[1], notify[2]);
            let mut text = format!("TO:<{address}> NOTIFY={notify}");
            text.extend(orcpt.as_ref().map(|orcpt| format!(" ORCPT=rfc822;{orcpt}")));
            let ours = to(&text).unwrap();
            let line = format!("RCPT {text}\r\n");
            let Ok(Request::Rcpt { to: theirs }) = Request::parse(&mut line.as_bytes().iter()) else {
                return Err(TestCaseError::fail(line));
            };
            prop_assert_eq!(ours.address.as_str(), theirs.address);
            prop_assert_eq!(ours.notify, notify);
            prop_assert_eq!(notify.never(), theirs.flags & smtp_proto::RCPT_NOTIFY_NEVER != 0);
            prop_assert_eq!(notify.success(), theirs.flags & smtp_proto::RCPT_NOTIFY_SUCCESS != 0);
            prop_assert_eq!(notify.failure(), theirs.flags & smtp_proto::RCPT_NOTIFY_FAILURE != 0);
            prop_assert_eq!(notify.delay(), theirs.flags & smtp_proto::RCPT_NOTIFY_DELAY != 0);
            let kept = ours.orcpt.as_deref().map(|kept| kept.trim_start_matches("rfc822;"));
            prop_assert_eq!(kept, theirs.orcpt.as_deref());
        }

        #[test]
        fn anything_is_answered(text in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'<'), Just(b'@'), Just(b' '), Just(b'=')], 0..60), utf8 in any::<bool>()) {
            let _ = mail(&[b"FROM:<", &text[..]].concat(), ALL);
            let _ = recipient(&[b"TO:<", &text[..]].concat(), ALL, utf8, "mx.example.org");
        }
    }
}
