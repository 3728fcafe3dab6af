//! Replies of SMTP: the values, how we write them, and how those of a peer are read (RFC 5321 4.2).
//!
//! Not here: what a reply means for a message (src/queue) nor which one a session gives (src/smtp). Writing cannot
//! fail: what may not stand in a reply line is made visible and long lines are folded. Reading is strict on framing
//! and liberal in text, keeps a bounded part of what comes, and gives a [`ReplyError`] when the peer talks no SMTP.

pub mod class;

use crate::limits::{PEER_REPLY_LINE_OCTETS_MAX, PEER_REPLY_LINES_MAX, PEER_REPLY_OCTETS_MAX, REPLY_LINE_OCTETS_MAX};
use std::borrow::Cow;
use std::fmt;

/// An enhanced status code (RFC 3463), like 5.1.1.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct EnhancedCode {
    /// 2 success, 4 for now, 5 for good.
    pub class: u8,
    /// What it is about: 1 addresses, 2 mailboxes, 3 the system, 4 network, 5 protocol, 6 content, 7 policy.
    pub subject: u16,
    /// Which case of it.
    pub detail: u16,
}

impl EnhancedCode {
    /// The code of these three numbers.
    pub const fn new(class: u8, subject: u16, detail: u16) -> EnhancedCode {
        EnhancedCode { class, subject, detail }
    }

    /// Reads `class.subject.detail` (RFC 3463 2): class 2, 4 or 5, the others one to three digits.
    pub fn parse(text: &str) -> Option<EnhancedCode> {
        let mut parts = text.split('.');
        let class = match parts.next()? {
            "2" => 2,
            "4" => 4,
            "5" => 5,
            _ => return None,
        };
        let mut number = || {
            let part = parts.next()?;
            let fits = (1..=3).contains(&part.len()) && part.bytes().all(|octet| octet.is_ascii_digit());
            if fits { part.parse().ok() } else { None }
        };
        let (subject, detail) = (number()?, number()?);
        if parts.next().is_some() { None } else { Some(EnhancedCode { class, subject, detail }) }
    }
}

impl fmt::Display for EnhancedCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// One reply: ours to a client, or a peer's to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Three digits.
    pub code: u16,
    /// The enhanced code, if there is one.
    pub enhanced: Option<EnhancedCode>,
    /// The text without codes; several lines have '\n' between them.
    pub text: Cow<'static, str>,
}

impl Reply {
    /// A reply of fixed text with an enhanced code: it costs nothing to make.
    pub const fn fixed(code: u16, class: u8, subject: u16, detail: u16, text: &'static str) -> Reply {
        Reply { code, enhanced: Some(EnhancedCode { class, subject, detail }), text: Cow::Borrowed(text) }
    }

    /// A reply whose text is made for the occasion.
    pub fn new(code: u16, enhanced: (u8, u16, u16), text: impl Into<String>) -> Reply {
        let (class, subject, detail) = enhanced;
        Reply { code, enhanced: Some(EnhancedCode { class, subject, detail }), text: Cow::Owned(text.into()) }
    }

    /// Appends the reply as it goes over the wire. The enhanced code stands on each line (RFC 2034 4). A line that
    /// would have more than 512 octets (RFC 5321 4.5.3.1.5) goes on in the next; control characters become `?`.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let mut prefix = [0; 20];
        let prefix_len = self.write_prefix(&mut prefix);
        let prefix = &prefix[..prefix_len];
        let room = REPLY_LINE_OCTETS_MAX - "\r\n".len() - prefix_len;
        let mut last_start = out.len();
        for line in self.text.split('\n') {
            let mut rest = line;
            loop {
                let (piece, behind) = split_to_fit(rest, room);
                last_start = out.len();
                out.extend_from_slice(prefix);
                out.extend(piece.bytes().map(|octet| if octet < 32 || octet == 127 { b'?' } else { octet }));
                out.extend_from_slice(b"\r\n");
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
        }
        out[last_start + 3] = b' ';
    }

    /// "250-2.1.0 " and its length. Twenty octets hold the longest code there is.
    fn write_prefix(&self, prefix: &mut [u8; 20]) -> usize {
        use std::io::Write;
        let mut at = &mut prefix[..];
        // Writing to the array fails only if numbers had more than three digits; then the prefix is cut, not lost.
        let _ = write!(at, "{:03}-", self.code % 1000);
        if let Some(enhanced) = self.enhanced {
            let _ = write!(at, "{enhanced} ");
        }
        let left = at.len();
        prefix.len() - left
    }

    /// 2xx, or 3xx which asks to go on.
    pub fn is_positive(&self) -> bool {
        (200..400).contains(&self.code)
    }

    /// 4xx: not now (RFC 5321 4.2.1).
    pub fn is_transient(&self) -> bool {
        (400..500).contains(&self.code)
    }

    /// 5xx: not ever (RFC 5321 4.2.1).
    pub fn is_permanent(&self) -> bool {
        (500..600).contains(&self.code)
    }
}

/// The longest head of `line` that has at most `room` octets and ends at a character, best at a space; and the rest.
fn split_to_fit(line: &str, room: usize) -> (&str, &str) {
    if line.len() <= room {
        return (line, "");
    }
    let mut end = room;
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    match line[..end].rfind(' ') {
        Some(space) if space > room / 2 => (&line[..space], &line[space + 1..]),
        _ => line.split_at(end),
    }
}

impl fmt::Display for Reply {
    /// "550 5.1.1 text" on one line: " / " between the lines of a longer one, control characters made visible.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        for (number, line) in self.text.split('\n').enumerate() {
            f.write_str(if number == 0 { " " } else { " / " })?;
            for character in line.chars() {
                if character.is_control() {
                    write!(f, "{}", character.escape_default())?;
                } else {
                    write!(f, "{character}")?;
                }
            }
        }
        Ok(())
    }
}

/// Why what a peer said is not a reply. The connection is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// A line without a reply code; its start is kept for the log.
    #[error("the peer sent a line that is not an SMTP reply: {0}")]
    NotAReply(Box<str>),
    /// The lines of one reply have different codes (RFC 5321 4.2.1 forbids it).
    #[error("the peer sent one reply with two codes, {0} and {1}")]
    CodeChanged(u16, u16),
    /// More than 64 lines.
    #[error("the peer sent a reply of more than {PEER_REPLY_LINES_MAX} lines")]
    TooManyLines,
}

/// Reads the replies of a peer from any pieces of its bytes.
#[derive(Debug, Default)]
pub struct ReplyReader {
    /// The start of a line whose end has not come; at most one octet more than is kept, for a CR.
    line: Vec<u8>,
    /// Octets of this line were dropped, so that a CR at the end of `line` is not the one before the LF.
    cut: bool,
    /// The lines before it, joined by '\n', of a reply that goes on.
    text: String,
    code: u16,
    enhanced: Option<EnhancedCode>,
    /// How many lines of the reply have come.
    lines: usize,
}

impl ReplyReader {
    /// A reader at the start of a reply.
    pub fn new() -> ReplyReader {
        ReplyReader::default()
    }

    /// Takes bytes up to and including the end of one whole reply and says how many. None: all were taken and the
    /// reply goes on. After an error the reader stands at the start of a reply again.
    ///
    /// A line ends with LF; a CR before it is dropped. RFC 5321 2.3.8 wants CRLF, but a peer that forgets the CR can
    /// smuggle nothing past us in a reply.
    pub fn handle_input(&mut self, input: &[u8]) -> (usize, Option<Result<Reply, ReplyError>>) {
        let mut consumed = 0;
        while let Some(length) = memchr::memchr(b'\n', &input[consumed..]) {
            let line = &input[consumed..consumed + length];
            consumed += length + 1;
            let result = if self.line.is_empty() && !self.cut {
                self.handle_line(line)
            } else {
                self.hold(line);
                let whole = std::mem::take(&mut self.line);
                self.cut = false;
                self.handle_line(&whole)
            };
            match result {
                Ok(None) => {}
                Ok(Some(reply)) => return (consumed, Some(Ok(reply))),
                Err(error) => {
                    *self = ReplyReader::new();
                    return (consumed, Some(Err(error)));
                }
            }
        }
        self.hold(&input[consumed..]);
        (input.len(), None)
    }

    /// Whether a reply has begun and not ended.
    pub fn is_partial(&self) -> bool {
        !self.line.is_empty() || self.lines > 0
    }

    /// Keeps what the bound allows of a line that is not complete. One more octet than the bound is held, so that a
    /// line of just the bound and its CR lose nothing.
    fn hold(&mut self, bytes: &[u8]) {
        let room = PEER_REPLY_LINE_OCTETS_MAX + 1 - self.line.len();
        let kept = bytes.len().min(room);
        self.line.extend_from_slice(&bytes[..kept]);
        self.cut |= kept < bytes.len();
    }

    fn handle_line(&mut self, line: &[u8]) -> Result<Option<Reply>, ReplyError> {
        let line = match line.strip_suffix(b"\r") {
            Some(stripped) if line.len() <= PEER_REPLY_LINE_OCTETS_MAX + 1 => stripped,
            _ => line,
        };
        let line = &line[..line.len().min(PEER_REPLY_LINE_OCTETS_MAX)];
        let (code, goes_on, text) = split_line(line).ok_or_else(|| ReplyError::NotAReply(printable_start(line)))?;
        if self.lines > 0 && code != self.code {
            return Err(ReplyError::CodeChanged(self.code, code));
        }
        if self.lines == PEER_REPLY_LINES_MAX {
            return Err(ReplyError::TooManyLines);
        }
        let text = String::from_utf8_lossy(text);
        let (enhanced, text) = split_enhanced(code, &text);
        if self.lines == 0 {
            self.code = code;
            self.enhanced = enhanced;
            self.push_text(text);
        } else if enhanced == self.enhanced {
            self.push_text("\n");
            self.push_text(text);
        } else {
            // Another code than on the first line: it stays in the text, where nobody can miss it.
            self.push_text("\n");
            if let Some(enhanced) = enhanced {
                self.push_text(&format!("{enhanced} "));
            }
            self.push_text(text);
        }
        self.lines += 1;
        if goes_on {
            return Ok(None);
        }
        let text = std::mem::take(&mut self.text);
        self.lines = 0;
        Ok(Some(Reply { code, enhanced: self.enhanced.take(), text: Cow::Owned(text) }))
    }

    fn push_text(&mut self, text: &str) {
        let mut room = (PEER_REPLY_OCTETS_MAX - self.text.len()).min(text.len());
        while !text.is_char_boundary(room) {
            room -= 1;
        }
        self.text.push_str(&text[..room]);
    }
}

/// Code, whether another line follows, text. The code is all of a line that some peers send (RFC 5321 4.2 allows it).
fn split_line(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let (digits, rest) = line.split_at_checked(3)?;
    if !matches!(digits[0], b'2'..=b'5') || !digits[1].is_ascii_digit() || !digits[2].is_ascii_digit() {
        return None;
    }
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    match rest.split_first() {
        None => Some((code, false, rest)),
        Some((b' ', text)) => Some((code, false, text)),
        Some((b'-', text)) => Some((code, true, text)),
        Some(_) => None,
    }
}

/// Takes an enhanced code off the text if it belongs to the code (RFC 2034 4: the class is the code's first digit).
fn split_enhanced(code: u16, text: &str) -> (Option<EnhancedCode>, &str) {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    match EnhancedCode::parse(word) {
        Some(enhanced) if u16::from(enhanced.class) == code / 100 => (Some(enhanced), rest),
        _ => (None, text),
    }
}

/// The start of a line for the log.
fn printable_start(line: &[u8]) -> Box<str> {
    String::from_utf8_lossy(&line[..line.len().min(80)]).escape_debug().to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(reply: &Reply) -> String {
        let mut out = Vec::new();
        reply.write_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn read_all(input: &[u8]) -> Vec<Result<Reply, ReplyError>> {
        let mut reader = ReplyReader::new();
        let mut replies = Vec::new();
        let mut at = 0;
        while at < input.len() {
            let (consumed, reply) = reader.handle_input(&input[at..]);
            at += consumed;
            replies.extend(reply);
        }
        replies
    }

    fn read(input: &str) -> Result<Reply, ReplyError> {
        let mut replies = read_all(input.as_bytes());
        assert_eq!(replies.len(), 1, "{input:?}");
        replies.remove(0)
    }

    #[test]
    fn enhanced_codes() {
        assert_eq!(EnhancedCode::parse("5.7.509"), Some(EnhancedCode::new(5, 7, 509)));
        for bad in ["", "5", "5.1", "5.1.", "3.1.1", "5.1.1.1", "5.1.1000", "5.+1.1", "5.1.1 ", "51.1.1"] {
            assert_eq!(EnhancedCode::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn replies_are_written() {
        assert_eq!(written(&Reply::fixed(250, 2, 1, 0, "OK")), "250 2.1.0 OK\r\n");
        assert_eq!(written(&Reply::new(550, (5, 7, 1), "a\nb")), "550-5.7.1 a\r\n550 5.7.1 b\r\n");
        assert_eq!(written(&Reply { code: 354, enhanced: None, text: "Go".into() }), "354 Go\r\n");
        assert_eq!(written(&Reply::new(550, (5, 7, 1), "a\r250 OK\0")), "550 5.7.1 a?250 OK?\r\n");
        assert_eq!(written(&Reply::new(250, (2, 0, 0), "")), "250 2.0.0 \r\n");
    }

    #[test]
    fn long_texts_are_folded() {
        let text = "wörter ".repeat(200);
        let out = written(&Reply::new(550, (5, 7, 100), text.as_str()));
        let lines: Vec<_> = out.split_terminator("\r\n").collect();
        assert!(lines.len() > 2 && lines.iter().all(|line| line.len() <= 510));
        assert!(lines[..lines.len() - 1].iter().all(|line| line.starts_with("550-5.7.100 w")));
        assert!(lines.last().unwrap().starts_with("550 5.7.100 w"));
        let unbroken = written(&Reply::new(550, (5, 7, 1), "é".repeat(300)));
        assert!(unbroken.split("\r\n").all(|line| line.len() <= 510));
    }

    #[test]
    fn one_line_for_the_log() {
        assert_eq!(Reply::new(550, (5, 1, 1), "No\nsuch\tuser").to_string(), "550 5.1.1 No / such\\tuser");
        assert_eq!(Reply { code: 250, enhanced: None, text: "OK".into() }.to_string(), "250 OK");
        assert!(Reply::fixed(450, 4, 2, 0, "").is_transient() && Reply::fixed(354, 2, 0, 0, "").is_positive());
        assert!(Reply::fixed(550, 5, 2, 0, "").is_permanent() && !Reply::fixed(550, 5, 2, 0, "").is_positive());
    }

    #[test]
    fn replies_are_read() {
        assert_eq!(read("250 2.1.0 OK\r\n"), Ok(Reply::new(250, (2, 1, 0), "OK")));
        assert_eq!(read("550-5.7.509 a\r\n550 5.7.509 b\r\n"), Ok(Reply::new(550, (5, 7, 509), "a\nb")));
        assert_eq!(read("250-mx\r\n250-SIZE 9\r\n250 DSN\r\n").unwrap().text, "mx\nSIZE 9\nDSN");
        assert_eq!(read("250\r\n").unwrap().text, "");
        assert_eq!(read("250 \n").unwrap().text, "");
        assert_eq!(read("451 5.7.1 odd\r\n").unwrap(), Reply { code: 451, enhanced: None, text: "5.7.1 odd".into() });
        assert_eq!(read("550-5.1.1 a\r\n550 5.7.1 b\r\n"), Ok(Reply::new(550, (5, 1, 1), "a\n5.7.1 b")));
        assert_eq!(read("550 5.1.1\r\n"), Ok(Reply::new(550, (5, 1, 1), "")));
        assert_eq!(read_all(b"250 \xff\r\n")[0].as_ref().unwrap().text, "\u{fffd}");
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for bad in
            ["\r\n", "25\r\n", "2500 x\r\n", "150 x\r\n", "650 x\r\n", "HTTP/1.1 400 Bad\r\n", "25x OK\n", "250_x\n"]
        {
            assert!(matches!(read(bad), Err(ReplyError::NotAReply(_))), "{bad:?}");
        }
        assert_eq!(read("250-a\r\n251 b\r\n"), Err(ReplyError::CodeChanged(250, 251)));
        let endless = "250-x\r\n".repeat(PEER_REPLY_LINES_MAX + 1);
        assert_eq!(read(&endless), Err(ReplyError::TooManyLines));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let long = format!("250 {}\r\n250 OK\r\n", "x".repeat(100_000));
        let replies = read_all(long.as_bytes());
        assert_eq!(replies.len(), 2);
        assert_eq!(replies[0].as_ref().unwrap().text.len(), PEER_REPLY_LINE_OCTETS_MAX - 4);
        let many = format!("{}250 end\r\n", format!("250-{}\r\n", "y".repeat(900)).repeat(20));
        assert_eq!(read(&many).unwrap().text.len(), PEER_REPLY_OCTETS_MAX);
        let mut reader = ReplyReader::new();
        for _ in 0..100 {
            reader.handle_input(&[b'2'; 1000]);
        }
        assert!(reader.line.len() <= PEER_REPLY_LINE_OCTETS_MAX + 1);
    }

    fn reply_bytes() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            "(250|550|421)[ -](5\\.1\\.1 )?[a-z\r]{0,8}(\r\n|\n)".prop_map(String::into_bytes),
            (990usize..1010, any::<bool>()).prop_map(|(length, cr)| {
                let mut line = b"250 ".to_vec();
                line.resize(length, b'x');
                line.extend_from_slice(if cr { b"\r\n" } else { b"\n" });
                line
            }),
            proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'2'), any::<u8>()], 0..8),
        ];
        proptest::collection::vec(line, 0..8).prop_map(|lines| lines.concat())
    }

    proptest! {
        #[test]
        fn any_split_reads_the_same(bytes in reply_bytes(), cuts in proptest::collection::vec(1usize..40, 1..40)) {
            let whole = read_all(&bytes);
            let mut reader = ReplyReader::new();
            let mut replies = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (mut piece, behind) = rest.split_at((*cut).min(rest.len()));
                rest = behind;
                while !piece.is_empty() {
                    let (consumed, reply) = reader.handle_input(piece);
                    piece = &piece[consumed..];
                    replies.extend(reply);
                }
            }
            prop_assert_eq!(whole, replies);
        }

        #[test]
        fn what_we_write_we_read(code in prop_oneof![Just(250u16), Just(450), Just(550)], text in "[a-zà-ü][a-zà-ü ]{0,700}(\n[a-z]{1,9}){0,3}") {
            let reply = Reply::new(code, ((code / 100) as u8, 7, 509), text.as_str());
            let out = written(&reply);
            let mut replies = read_all(out.as_bytes());
            prop_assert_eq!(replies.len(), 1);
            let read = replies.remove(0).unwrap();
            prop_assert_eq!(read.code, code);
            prop_assert_eq!(read.enhanced, reply.enhanced);
            prop_assert_eq!(read.text.replace(['\n', ' '], ""), text.replace(['\n', ' '], ""));
        }
    }
}
