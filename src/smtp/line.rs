//! Framing of command lines: only CRLF ends a line (RFC 5321 2.3.8), no line is longer than its bound, and a line with
//! a bare CR, a bare LF or a NUL is no command.
//!
//! Not here: what a line says, nor message content (src/smtp/data.rs). A line that is wrong is reported once, as soon
//! as that shows, and skipped up to its CRLF, so that no part of it can pass for a command of its own.

use crate::limits::{ANY_COMMAND_LINE_OCTETS_MAX, AUTH_LINE_OCTETS_MAX};
use std::borrow::Cow;

/// What the next bytes are.
#[derive(Debug, PartialEq, Eq)]
pub enum Framed<'a> {
    /// A whole line with its CRLF. Before that it has neither CR, LF nor NUL.
    Line(Cow<'a, [u8]>),
    /// The line that has begun is wrong. The rest of it will be skipped.
    Fault(LineFault),
    /// All bytes were taken and no line has ended.
    Partial,
}

/// What is wrong with a line.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum LineFault {
    /// It is longer than any command may be.
    TooLong,
    /// It has a CR or an LF that is not part of a CRLF.
    BareNewline,
    /// It has a NUL.
    Nul,
}

/// Which lines may be as long as [`AUTH_LINE_OCTETS_MAX`]; all others end at [`ANY_COMMAND_LINE_OCTETS_MAX`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum LongLines {
    /// None.
    None,
    /// AUTH commands: the client may log in.
    Auth,
    /// The next one, which is an answer within a login.
    Answer,
}

/// What a line begins with that may be long.
const AUTH: &[u8] = b"AUTH ";

/// Cuts the bytes of a client into lines. Holds memory only while a line has begun and not ended.
#[derive(Debug, Default)]
pub struct LineReader {
    /// The start of a line: text, and at the end perhaps the CR of its CRLF.
    held: Vec<u8>,
    skipping: Skipping,
}

/// Whether the rest of a wrong line is being skipped.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum Skipping {
    #[default]
    No,
    Yes,
    /// And the last octet was a CR.
    YesAfterCr,
}

impl LineReader {
    /// Takes bytes up to the end of a line or up to what shows that it is wrong, and says how many.
    pub fn handle_input<'a>(&mut self, input: &'a [u8], long: LongLines) -> (usize, Framed<'a>) {
        let mut start = 0;
        if self.skipping != Skipping::No {
            match self.skip(input) {
                Some(behind) => start = behind,
                None => return (input.len(), Framed::Partial),
            }
        }
        let (consumed, framed) = self.take(&input[start..], long);
        (start + consumed, framed)
    }

    /// Forgets a line that has begun, as if nothing had come.
    pub fn clear(&mut self) {
        *self = LineReader::default();
    }

    /// Whether a line has begun and not ended.
    pub fn is_partial(&self) -> bool {
        !self.held.is_empty() || self.skipping != Skipping::No
    }

    /// Skips up to and including a CRLF; None if it has not come.
    fn skip(&mut self, input: &[u8]) -> Option<usize> {
        let mut after_cr = self.skipping == Skipping::YesAfterCr;
        let mut start = 0;
        while let Some(length) = memchr::memchr(b'\n', &input[start..]) {
            let end = start + length;
            if if end == 0 { after_cr } else { input[end - 1] == b'\r' } {
                self.skipping = Skipping::No;
                return Some(end + 1);
            }
            start = end + 1;
        }
        if let Some(last) = input.last() {
            after_cr = *last == b'\r';
        }
        self.skipping = if after_cr { Skipping::YesAfterCr } else { Skipping::Yes };
        None
    }

    /// Octets that this line may have without its CRLF. An octet too many never comes before the whole of [`AUTH`].
    fn text_octets_max(&self, input: &[u8], long: LongLines) -> usize {
        let begins_with_auth = || {
            let beginning = self.held.iter().chain(input).take(AUTH.len());
            beginning.map(u8::to_ascii_uppercase).eq(AUTH.iter().copied())
        };
        let is_long = match long {
            LongLines::None => false,
            LongLines::Auth => begins_with_auth(),
            LongLines::Answer => true,
        };
        if is_long { AUTH_LINE_OCTETS_MAX - 2 } else { ANY_COMMAND_LINE_OCTETS_MAX - 2 }
    }

    fn take<'a>(&mut self, input: &'a [u8], long: LongLines) -> (usize, Framed<'a>) {
        if input.is_empty() {
            return (0, Framed::Partial);
        }
        if self.held.last() == Some(&b'\r') {
            if input[0] != b'\n' {
                return self.fault(0, LineFault::BareNewline);
            }
            self.held.push(b'\n');
            return (1, Framed::Line(Cow::Owned(std::mem::take(&mut self.held))));
        }
        // What may be long has not changed since the line began: a login begins and ends with a line.
        let room = self.text_octets_max(input, long).saturating_sub(self.held.len());
        let special = memchr::memchr3(b'\r', b'\n', 0, &input[..input.len().min(room + 1)]);
        match special.map(|place| (place, input[place], input.get(place + 1))) {
            None if input.len() > room => self.fault(room + 1, LineFault::TooLong),
            None => self.hold(input),
            Some((place, 0, _)) => self.fault(place + 1, LineFault::Nul),
            Some((place, b'\n', _)) => self.fault(place + 1, LineFault::BareNewline),
            Some((place, _, Some(b'\n'))) => {
                let end = &input[..place + 2];
                let line = if self.held.is_empty() {
                    Cow::Borrowed(end)
                } else {
                    self.held.extend_from_slice(end);
                    Cow::Owned(std::mem::take(&mut self.held))
                };
                (place + 2, Framed::Line(line))
            }
            Some((place, _, Some(_))) => self.fault(place + 1, LineFault::BareNewline),
            Some((_, _, None)) => self.hold(input),
        }
    }

    fn hold<'a>(&mut self, input: &[u8]) -> (usize, Framed<'a>) {
        self.held.extend_from_slice(input);
        (input.len(), Framed::Partial)
    }

    fn fault<'a>(&mut self, consumed: usize, fault: LineFault) -> (usize, Framed<'a>) {
        self.held = Vec::new();
        self.skipping = Skipping::Yes;
        (consumed, Framed::Fault(fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT_OCTETS_MAX: usize = ANY_COMMAND_LINE_OCTETS_MAX - 2;

    /// Lines as Ok, faults as Err.
    fn frame(pieces: &[&[u8]]) -> Vec<Result<Vec<u8>, LineFault>> {
        frame_long(pieces, LongLines::None)
    }

    fn frame_long(pieces: &[&[u8]], long: LongLines) -> Vec<Result<Vec<u8>, LineFault>> {
        let mut reader = LineReader::default();
        let mut seen = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            loop {
                let (consumed, framed) = reader.handle_input(rest, long);
                rest = &rest[consumed..];
                match framed {
                    Framed::Line(line) => seen.push(Ok(line.into_owned())),
                    Framed::Fault(fault) => seen.push(Err(fault)),
                    Framed::Partial => break,
                }
            }
            assert!(rest.is_empty());
            assert!(reader.held.len() < AUTH_LINE_OCTETS_MAX);
            assert!(long != LongLines::None || reader.held.len() <= TEXT_OCTETS_MAX + 1);
        }
        seen
    }

    fn line(text: &str) -> Result<Vec<u8>, LineFault> {
        Ok(format!("{text}\r\n").into_bytes())
    }

    #[test]
    fn only_crlf_ends_a_line() {
        assert_eq!(frame(&[b"NOOP\r\nQUIT\r\nRS"]), [line("NOOP"), line("QUIT")]);
        assert_eq!(frame(&[b"\r\n"]), [line("")]);
        assert_eq!(frame(&[b"NOOP\r", b"\n"]), [line("NOOP")]);
        for bad in
            [&b"NOOP\nQUIT\r\nRSET\r\n"[..], b"NOOP\rQUIT\r\nRSET\r\n", b"NOOP\r\r\nRSET\r\n", b"\n\n\r\nRSET\r\n"]
        {
            assert_eq!(frame(&[bad]), [Err(LineFault::BareNewline), line("RSET")], "{bad:?}");
        }
        assert_eq!(frame(&[b"NO\0OP\nx\r\nRSET\r\n"]), [Err(LineFault::Nul), line("RSET")]);
    }

    #[test]
    fn length_is_bounded_exactly() {
        let fits = vec![b'x'; TEXT_OCTETS_MAX];
        let whole = [&fits[..], b"\r\n"].concat();
        assert_eq!(frame(&[&fits, b"\r\n"]), [Ok(whole.clone())]);
        assert_eq!(frame(&[&whole]), [Ok(whole.clone())]);
        assert_eq!(frame(&[&fits, b"x\r\nNOOP\r\n"]), [Err(LineFault::TooLong), line("NOOP")]);
        let long = [&vec![b'x'; 100_000][..], b"\r\nNOOP\r\n"].concat();
        assert_eq!(frame(&[&long]), [Err(LineFault::TooLong), line("NOOP")]);
    }

    #[test]
    fn only_logins_may_be_long() {
        let auth = [&b"auth "[..], &vec![b'x'; AUTH_LINE_OCTETS_MAX - 7]].concat();
        let answer = vec![b'x'; AUTH_LINE_OCTETS_MAX - 2];
        for (line, long, fits) in [
            (&auth, LongLines::Auth, true),
            (&auth, LongLines::None, false),
            (&answer, LongLines::Answer, true),
            (&answer, LongLines::Auth, false),
        ] {
            for pieces in [&[line, &b"\r\n"[..]][..], &[&line[..3], &line[3..], b"\r", b"\n"]] {
                assert_eq!(frame_long(pieces, long) == [Ok([line, &b"\r\n"[..]].concat())], fits, "{long:?}");
            }
            assert_eq!(frame_long(&[line, b"x\r\n"], long), [Err(LineFault::TooLong)]);
        }
    }

    #[test]
    fn memory_is_held_only_for_a_begun_line() {
        let mut reader = LineReader::default();
        reader.handle_input(b"NOOP\r\n", LongLines::None);
        assert_eq!(reader.held.capacity(), 0);
        reader.handle_input(b"NO", LongLines::None);
        assert!(reader.is_partial());
        reader.handle_input(b"OP\r\n", LongLines::None);
        assert!(!reader.is_partial());
        assert_eq!(reader.held.capacity(), 0);
    }

    proptest! {
        #[test]
        fn any_split_frames_the_same(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just(b"\r\n".to_vec()), Just(b"\r".to_vec()), Just(b"\n".to_vec()), Just(b"\0".to_vec()),
                    Just(b"AUTH ".to_vec()), "[A-Z ]{0,9}".prop_map(String::into_bytes),
                    (TEXT_OCTETS_MAX - 3..TEXT_OCTETS_MAX + 3).prop_map(|length| vec![b'x'; length]),
                ],
                0..12,
            ),
            cuts in proptest::collection::vec(1usize..50, 1..30),
        ) {
            let bytes = parts.concat();
            let mut pieces = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, behind) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = behind;
            }
            prop_assert_eq!(frame(&[&bytes]), frame(&pieces));
            prop_assert_eq!(frame_long(&[&bytes], LongLines::Auth), frame_long(&pieces, LongLines::Auth));
        }
    }
}
