//! What a command line says. The verbs are read by smtp-proto, whose answers are not believed further than that: it
//! passes junk behind commands, wraps numbers, and loses quotes, so arguments are read here and in parameters.rs.
//!
//! Not here: framing (line.rs) and whether the command may come now (server.rs). A line that says nothing sound gives
//! the reply that tells so.

use crate::limits::{
    AUTH_LINE_OCTETS_MAX, COMMAND_LINE_OCTETS_MAX, HELLO_NAME_OCTETS_MAX, MAIL_PARAMETERS_OCTETS_MAX,
    RCPT_PARAMETERS_OCTETS_MAX,
};
use crate::reply::Reply;
use crate::smtp::replies;
use smtp_proto::{Error, Request};

/// A command, its arguments checked unless told otherwise.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// HELO or EHLO.
    Hello {
        /// Printable, without spaces, 1 to 255 octets.
        name: &'a str,
        /// EHLO.
        extended: bool,
    },
    /// MAIL with its arguments, for [`crate::smtp::parameters::mail`].
    Mail(&'a [u8]),
    /// RCPT with its arguments, for [`crate::smtp::parameters::recipient`].
    Recipient(&'a [u8]),
    /// DATA.
    Data,
    /// BDAT.
    Bdat {
        /// How many octets follow; `u64::MAX` for a number beyond all bounds.
        octets: u64,
        /// The message ends with them.
        last: bool,
    },
    /// STARTTLS.
    StartTls,
    /// AUTH with its arguments.
    Auth(&'a [u8]),
    /// RSET.
    Reset,
    /// NOOP with whatever.
    Noop,
    /// VRFY with something.
    Verify,
    /// HELP with whatever.
    Help,
    /// QUIT.
    Quit,
}

/// Reads one line with its CRLF, as [`crate::smtp::line::LineReader`] gives it.
pub fn read(line: &[u8]) -> Result<Command<'_>, Reply> {
    let text = line.strip_suffix(b"\r\n").unwrap_or(line);
    let (verb, arguments) = match memchr::memchr(b' ', text) {
        Some(space) => (&text[..space], trim(&text[space + 1..])),
        None => (text, &text[text.len()..]),
    };
    // The verbs whose arguments smtp-proto must not read. RFC 5321 2.4: verbs are in any case.
    let (extra, command) = if verb.eq_ignore_ascii_case(b"RCPT") {
        (RCPT_PARAMETERS_OCTETS_MAX, Command::Recipient(arguments))
    } else if verb.eq_ignore_ascii_case(b"MAIL") {
        (MAIL_PARAMETERS_OCTETS_MAX, Command::Mail(arguments))
    } else if verb.eq_ignore_ascii_case(b"AUTH") {
        (AUTH_LINE_OCTETS_MAX - COMMAND_LINE_OCTETS_MAX, Command::Auth(arguments))
    } else {
        return read_other(line, verb, arguments);
    };
    if line.len() > COMMAND_LINE_OCTETS_MAX + extra { Err(replies::LINE_TOO_LONG) } else { Ok(command) }
}

fn read_other<'a>(line: &[u8], verb: &[u8], arguments: &'a [u8]) -> Result<Command<'a>, Reply> {
    if line.len() > COMMAND_LINE_OCTETS_MAX {
        return Err(replies::LINE_TOO_LONG);
    }
    if verb.eq_ignore_ascii_case(b"BDAT") {
        return bdat(arguments);
    }
    // smtp-proto skips spaces before a verb and takes a tab behind it.
    if verb.is_empty() || !verb.iter().all(u8::is_ascii_alphabetic) {
        return Err(replies::UNKNOWN_COMMAND);
    }
    let alone = |command| if arguments.is_empty() { Ok(command) } else { Err(replies::NO_PARAMETERS) };
    match Request::parse(&mut line.iter()) {
        Ok(Request::Ehlo { .. }) => hello(arguments, true),
        Ok(Request::Helo { .. }) => hello(arguments, false),
        Ok(Request::Data) => alone(Command::Data),
        Ok(Request::Rset) => alone(Command::Reset),
        Ok(Request::Quit) => alone(Command::Quit),
        Ok(Request::StartTls) => alone(Command::StartTls),
        Ok(Request::Noop { .. }) => Ok(Command::Noop),
        Ok(Request::Help { .. }) => Ok(Command::Help),
        Ok(Request::Vrfy { .. }) if arguments.is_empty() => Err(replies::VERIFY_WHAT),
        Ok(Request::Vrfy { .. }) => Ok(Command::Verify),
        Err(Error::SyntaxError { .. } | Error::NeedsMoreData { .. }) => read_short(verb),
        Ok(_) | Err(Error::InvalidParameter { .. } | Error::UnsupportedParameter { .. }) => {
            Err(replies::NOT_IMPLEMENTED)
        }
        Err(_) => Err(replies::UNKNOWN_COMMAND),
    }
}

/// A verb that smtp-proto knows with arguments that it does not like.
fn read_short<'a>(verb: &[u8]) -> Result<Command<'a>, Reply> {
    Err(match verb {
        _ if verb.eq_ignore_ascii_case(b"EHLO") || verb.eq_ignore_ascii_case(b"HELO") => replies::BAD_HELLO,
        _ if verb.eq_ignore_ascii_case(b"VRFY") => replies::VERIFY_WHAT,
        _ if verb.eq_ignore_ascii_case(b"NOOP") => return Ok(Command::Noop),
        _ if verb.eq_ignore_ascii_case(b"HELP") => return Ok(Command::Help),
        _ => replies::NOT_IMPLEMENTED,
    })
}

/// Any name that can be printed: RFC 5321 4.1.4 forbids to refuse mail because the name is not the client's, and many
/// a good client has a name that is no domain.
fn hello(name: &[u8], extended: bool) -> Result<Command<'_>, Reply> {
    let fits = (1..=HELLO_NAME_OCTETS_MAX).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(name) {
        Ok(name) if fits => Ok(Command::Hello { name, extended }),
        _ => Err(replies::BAD_HELLO),
    }
}

/// `octets [LAST]` (RFC 3030 2).
fn bdat(arguments: &[u8]) -> Result<Command<'_>, Reply> {
    let mut words = arguments.split(|&octet| octet == b' ').filter(|word| !word.is_empty());
    let octets = words.next().and_then(number).ok_or(replies::BAD_BDAT)?;
    let last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case(b"LAST") => true,
        Some(_) => return Err(replies::BAD_BDAT),
    };
    if words.next().is_some() { Err(replies::BAD_BDAT) } else { Ok(Command::Bdat { octets, last }) }
}

/// A number of digits alone; `u64::MAX` if it is greater. None if it is no number.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, digit| match digit {
        b'0'..=b'9' => Some(number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))),
        _ => None,
    })
}

/// Without spaces at both ends. RFC 5321 4.1.1: white space at the end SHOULD be tolerated.
fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' '] = text {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn command(text: &str) -> Result<Command<'static>, Reply> {
        read(format!("{text}\r\n").into_bytes().leak())
    }

    #[test]
    fn verbs() {
        let hello = |name, extended| Ok(Command::Hello { name, extended });
        assert_eq!(command("EHLO mail.example.org"), hello("mail.example.org", true));
        assert_eq!(command("ehlo [192.0.2.1] "), hello("[192.0.2.1]", true));
        assert_eq!(command("HELO my_host"), hello("my_host", false));
        assert_eq!(command("MAIL FROM:<a@b> SIZE=1 "), Ok(Command::Mail(b"FROM:<a@b> SIZE=1")));
        assert_eq!(command("rcpt TO:<a@b>"), Ok(Command::Recipient(b"TO:<a@b>")));
        assert_eq!(command("Data"), Ok(Command::Data));
        assert_eq!(command("RSET "), Ok(Command::Reset));
        assert_eq!(command("NOOP"), Ok(Command::Noop));
        assert_eq!(command("NOOP anything at all"), Ok(Command::Noop));
        assert_eq!(command("VRFY someone"), Ok(Command::Verify));
        assert_eq!(command("HELP"), Ok(Command::Help));
        assert_eq!(command("HELP MAIL"), Ok(Command::Help));
        assert_eq!(command("QUIT"), Ok(Command::Quit));
        assert_eq!(command("STARTTLS"), Ok(Command::StartTls));
        assert_eq!(command("auth PLAIN  AGEAYg== "), Ok(Command::Auth(b"PLAIN  AGEAYg==")));
        assert_eq!(command("AUTH"), Ok(Command::Auth(b"")));
        assert_eq!(command("BDAT 12"), Ok(Command::Bdat { octets: 12, last: false }));
        assert_eq!(command("bdat 0  last"), Ok(Command::Bdat { octets: 0, last: true }));
        let beyond = "BDAT 99999999999999999999999 LAST";
        assert_eq!(command(beyond), Ok(Command::Bdat { octets: u64::MAX, last: true }));
    }

    #[test]
    fn refusals() {
        let long_name = format!("EHLO {}", "x".repeat(256));
        let long = format!("NOOP {}", "x".repeat(506));
        for (text, code) in [
            ("", 500),
            (" NOOP", 500),
            ("NOOP\tx", 500),
            ("XYZZY", 500),
            ("MAILFROM:<a@b>", 500),
            ("STARTTLSX", 500),
            ("GET / HTTP/1.1", 500),
            ("NO OP", 500),
            ("\u{1}QUIT", 500),
            (&long, 500),
            ("EHLO", 501),
            ("EHLO ", 501),
            ("HELO", 501),
            ("EHLO a b", 501),
            ("EHLO a\u{1}b", 501),
            ("EHLO ä", 501),
            (&long_name, 501),
            ("DATA junk", 501),
            ("RSET x", 501),
            ("QUIT now", 501),
            ("STARTTLS 1.3", 501),
            ("VRFY", 501),
            ("BDAT", 501),
            ("BDAT x", 501),
            ("BDAT -1", 501),
            ("BDAT +1", 501),
            ("BDAT 1 FIRST", 501),
            ("BDAT 1 LAST x", 501),
            ("EXPN list", 502),
            ("ETRN example.org", 502),
            ("LHLO x", 502),
        ] {
            assert_eq!(command(text).map_err(|reply| reply.code), Err(code), "{text:?}");
        }
        assert!(command(&format!("NOOP {}", "x".repeat(505))).is_ok());
        let mail = |length: usize| command(&format!("MAIL FROM:<a@b> {}", "x".repeat(length - 18)));
        assert!(mail(COMMAND_LINE_OCTETS_MAX + MAIL_PARAMETERS_OCTETS_MAX).is_ok());
        assert_eq!(mail(COMMAND_LINE_OCTETS_MAX + MAIL_PARAMETERS_OCTETS_MAX + 1), Err(replies::LINE_TOO_LONG));
    }

    proptest! {
        #[test]
        fn any_line_is_answered(text in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(&[&text[..], b"\r\n"].concat());
        }
    }
}
