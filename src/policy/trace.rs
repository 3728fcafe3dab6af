//! Trace and submission headers: composing Received, Date and Message-ID, and looking whether they are there.
//!
//! Pure functions over bytes. Nothing a client says (its HELO name, an address) can begin a line or end a clause of
//! what is composed here: whatever could is replaced or left out. Lines are folded at 78 columns where a fold is
//! possible and are never longer than 998 octets. Rewriting of headers that are there is not done here, nor
//! anywhere on a relay. Nothing here fails: what cannot be read is as if it were not there.

use crate::clock::UnixTime;
use crate::id::MessageId;
use crate::limits::{HEADER_SCAN_OCTETS_MAX, TRACE_NAME_OCTETS_MAX};
use std::fmt::{self, Display, Formatter, Write as _};
use std::io::Write as _;
use std::net::IpAddr;

/// Columns at which a header line is folded (RFC 5322 2.1.1).
const FOLD_COLUMN: usize = 78;

/// What a Received header tells (RFC 5321 4.4).
#[derive(Copy, Clone, Debug)]
pub struct Received<'a> {
    /// What the client called itself in HELO or EHLO; empty if it did not.
    pub helo: &'a str,
    /// Where it connected from.
    pub client: IpAddr,
    /// The name of this host.
    pub host: &'a str,
    /// It said EHLO.
    pub extended: bool,
    /// Version and cipher, if the connection is encrypted.
    pub tls: Option<(&'a str, &'a str)>,
    /// The client logged in.
    pub authenticated: bool,
    /// MAIL had the parameter SMTPUTF8.
    pub smtputf8: bool,
    /// The message's id on this host.
    pub id: MessageId,
    /// The recipient, given only if it is the only one: others must not see each other (RFC 5321 7.2).
    pub recipient: Option<&'a str>,
    /// When it came.
    pub at: UnixTime,
}

impl Received<'_> {
    /// Appends the header, CRLF included.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let mut line = Folding::new(out, "Received:");
        line.word("from");
        line.word(CleanName(self.helo, self.smtputf8));
        line.word(format_args!("({})", AddressLiteral(self.client)));
        line.fold();
        line.word("by");
        line.word(CleanName(self.host, self.smtputf8));
        line.word("with");
        line.word(self.protocol());
        if let Some((version, cipher)) = self.tls {
            line.word(format_args!("({} {})", CleanName(version, false), CleanName(cipher, false)));
        }
        line.word("id");
        match self.recipient.filter(|recipient| fits_path(recipient, self.smtputf8)) {
            None => line.word(format_args!("{};", self.id)),
            Some(recipient) => {
                line.word(self.id);
                line.fold();
                line.word("for");
                line.word(format_args!("<{recipient}>;"));
            }
        }
        line.word(Date(self.at));
        line.end();
    }

    /// The registered name of the protocol and what was agreed in it (RFC 3848, RFC 6531 4.3).
    fn protocol(&self) -> &'static str {
        match (self.smtputf8, self.extended, self.tls.is_some(), self.authenticated) {
            (true, _, false, false) => "UTF8SMTP",
            (true, _, false, true) => "UTF8SMTPA",
            (true, _, true, false) => "UTF8SMTPS",
            (true, _, true, true) => "UTF8SMTPSA",
            (false, true, false, false) => "ESMTP",
            (false, true, false, true) => "ESMTPA",
            (false, true, true, false) => "ESMTPS",
            (false, true, true, true) => "ESMTPSA",
            (false, false, _, _) => "SMTP",
        }
    }
}

/// A client as "name [address]", for reports and logs; bounded like a name.
pub fn client_name(helo: &str, client: IpAddr) -> Box<str> {
    let address = AddressLiteral(client).to_string();
    let mut name = String::with_capacity(helo.len().min(TRACE_NAME_OCTETS_MAX) + 1 + address.len());
    // Writing to a String cannot fail.
    let _ = write!(name, "{}", CleanName(helo, true));
    let mut end = name.len().min(TRACE_NAME_OCTETS_MAX - 1 - address.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name.push(' ');
    name.push_str(&address);
    name.into()
}

/// An address literal (RFC 5321 4.1.3), brackets included.
struct AddressLiteral(IpAddr);

impl Display for AddressLiteral {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.to_canonical() {
            IpAddr::V4(address) => write!(f, "[{address}]"),
            IpAddr::V6(address) => write!(f, "[IPv6:{address}]"),
        }
    }
}

/// A name that stands as one word in a header: bounded, and without what has a meaning there. The flag: UTF-8 is
/// allowed.
struct CleanName<'a>(&'a str, bool);

impl Display for CleanName<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let CleanName(name, utf8) = *self;
        let mut len = 0;
        for letter in name.chars() {
            let kept = match letter {
                '(' | ')' | '<' | '>' | ',' | ';' | '\\' | '"' => false,
                _ if letter.is_ascii() => letter.is_ascii_graphic(),
                _ => utf8 && !letter.is_control() && !letter.is_whitespace(),
            };
            let letter = if kept { letter } else { '?' };
            len += letter.len_utf8();
            if len > TRACE_NAME_OCTETS_MAX {
                break;
            }
            f.write_char(letter)?;
        }
        if len == 0 { f.write_str("unknown") } else { Ok(()) }
    }
}

/// Whether an address can stand in a `for` clause: one line, bounded, and UTF-8 only where that is allowed.
fn fits_path(address: &str, utf8: bool) -> bool {
    address.len() <= 2 * TRACE_NAME_OCTETS_MAX
        && (utf8 || address.is_ascii())
        && !address.chars().any(|letter| letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}'))
}

/// Writes words with a space between them, and folds where the next one would pass the column.
struct Folding<'a> {
    out: &'a mut Vec<u8>,
    column: usize,
}

impl<'a> Folding<'a> {
    fn new(out: &'a mut Vec<u8>, name: &str) -> Folding<'a> {
        out.extend_from_slice(name.as_bytes());
        Folding { out, column: name.len() }
    }

    fn fits(&self, len: usize) -> bool {
        self.column + 1 + len <= FOLD_COLUMN
    }

    /// Writes the word in its place at once: a header costs no memory but the one it stands in.
    fn word(&mut self, word: impl Display) {
        // At the start of a folded line its tab is the space.
        let space = usize::from(self.column > 1);
        let start = self.out.len();
        if space == 1 {
            self.out.push(b' ');
        }
        // Writing to a Vec cannot fail.
        let _ = write!(self.out, "{word}");
        let len = self.out.len() - start - space;
        if space == 1 && !self.fits(len) {
            self.out.splice(start..=start, *b"\r\n\t");
            self.column = 1;
        } else {
            self.column += space;
        }
        self.column += len;
    }

    fn fold(&mut self) {
        self.out.extend_from_slice(b"\r\n\t");
        self.column = 1;
    }

    fn end(self) {
        self.out.extend_from_slice(b"\r\n");
    }
}

/// A time as RFC 5322 3.3 writes it, in UTC.
#[derive(Copy, Clone, Debug)]
pub struct Date(pub UnixTime);

impl Display for Date {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
        const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        // A clock beyond the year 9999 is broken; the header stays well-formed all the same.
        let seconds = i64::try_from(self.0.as_millis() / 1000).unwrap_or(i64::MAX).min(253_370_764_800);
        let at = jiff::Timestamp::from_second(seconds).unwrap_or_default();
        let at = jiff::tz::Offset::UTC.to_datetime(at);
        let day = DAYS[at.weekday().to_monday_zero_offset() as usize % 7];
        let month = MONTHS[(at.month() - 1) as usize % 12];
        let (hour, minute, second) = (at.hour(), at.minute(), at.second());
        write!(f, "{day}, {:02} {month} {:04} {hour:02}:{minute:02}:{second:02} +0000", at.day(), at.year())
    }
}

/// Looks through the header section of a content, as it comes in pieces, for what relaying and submission ask.
///
/// Bounded in memory (a few bytes) and in length: what lies beyond the header section, or beyond
/// [`HEADER_SCAN_OCTETS_MAX`] octets, is not looked at.
#[derive(Clone, Debug)]
pub struct Headers {
    /// How many Received headers there are: past a bound, the message runs in a loop (RFC 5321 6.3).
    pub received_count: u32,
    /// There is a Date header.
    pub has_date: bool,
    /// There is a Message-ID header.
    pub has_message_id: bool,
    place: Place,
    /// The field name of this line so far, in lower case.
    name: [u8; NAME_LENGTH],
    name_len: usize,
    scanned: usize,
}

/// The longest field name looked for.
const NAME_LENGTH: usize = "message-id".len();

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Place {
    LineStart,
    /// Behind a CR that began a line.
    EmptyLine,
    Name,
    /// Behind a name, where white space may stand before the colon (RFC 5322 4.5).
    BehindName,
    /// In what is of no interest, until the next line.
    Rest,
    /// Behind the header section.
    Done,
}

impl Default for Headers {
    fn default() -> Headers {
        Headers {
            received_count: 0,
            has_date: false,
            has_message_id: false,
            place: Place::LineStart,
            name: [0; NAME_LENGTH],
            name_len: 0,
            scanned: 0,
        }
    }
}

impl Headers {
    /// Looks through a whole content at once.
    pub fn scan(content: &[u8]) -> Headers {
        let mut scan = Headers::default();
        scan.handle_input(content);
        scan
    }

    /// The next bytes of the content.
    pub fn handle_input(&mut self, bytes: &[u8]) {
        if self.place == Place::Done {
            return;
        }
        let bytes = &bytes[..bytes.len().min(HEADER_SCAN_OCTETS_MAX - self.scanned)];
        self.scanned += bytes.len();
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at += 1;
            match self.place {
                Place::Rest => match memchr::memchr(b'\n', &bytes[at - 1..]) {
                    Some(end) => {
                        at += end;
                        self.place = Place::LineStart;
                    }
                    None => break,
                },
                Place::LineStart => self.start_line(byte),
                Place::EmptyLine => self.place = if byte == b'\n' { Place::Done } else { Place::Rest },
                Place::Name | Place::BehindName => self.read_name(byte),
                Place::Done => return,
            }
        }
        if self.scanned == HEADER_SCAN_OCTETS_MAX {
            self.place = Place::Done;
        }
    }

    fn start_line(&mut self, byte: u8) {
        self.name_len = 0;
        self.place = Place::Name;
        match byte {
            b'\r' => self.place = Place::EmptyLine,
            b'\n' => self.place = Place::Done,
            b' ' | b'\t' => self.place = Place::Rest,
            _ => self.read_name(byte),
        }
    }

    fn read_name(&mut self, byte: u8) {
        match byte {
            b':' => {
                self.place = Place::Rest;
                match &self.name[..self.name_len] {
                    b"received" => self.received_count = self.received_count.saturating_add(1),
                    b"date" => self.has_date = true,
                    b"message-id" => self.has_message_id = true,
                    _ => {}
                }
            }
            b'\n' => self.place = Place::LineStart,
            b' ' | b'\t' => self.place = Place::BehindName,
            _ if self.place == Place::BehindName || self.name_len == NAME_LENGTH => self.place = Place::Rest,
            _ => {
                self.name[self.name_len] = byte.to_ascii_lowercase();
                self.name_len += 1;
            }
        }
    }

    /// The whole header section was seen, or as much of it as is looked at.
    pub fn is_done(&self) -> bool {
        self.place == Place::Done
    }
}

/// The headers that a submitted message lacks (RFC 6409 8.2 and 8.3), to be put before those it has.
pub fn submission_headers(headers: &Headers, id: MessageId, host: &str, at: UnixTime) -> Vec<u8> {
    let mut text = String::new();
    if !headers.has_date {
        text = format!("Date: {}\r\n", Date(at));
    }
    if !headers.has_message_id {
        text = format!("{text}Message-ID: <{id}@{}>\r\n", CleanName(host, false).to_string().replace('@', "?"));
    }
    text.into_bytes()
}

/// The value of the first header of this name, unfolded and trimmed. None where there is none in the part of the
/// header section that is looked at, or where its value is empty, is not UTF-8, holds control characters or is longer
/// than a name may be.
pub fn header_value(content: &[u8], name: &str) -> Option<Box<str>> {
    let mut rest = &content[..content.len().min(HEADER_SCAN_OCTETS_MAX)];
    loop {
        let (line, behind) = split_line(rest);
        if line.is_empty() {
            return None;
        }
        rest = behind;
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        if !line[..colon].trim_ascii_end().eq_ignore_ascii_case(name.as_bytes()) {
            continue;
        }
        let mut value = line[colon + 1..].trim_ascii().to_vec();
        while let [b' ' | b'\t', ..] = rest {
            let (line, behind) = split_line(rest);
            value.push(b' ');
            value.extend_from_slice(line.trim_ascii());
            rest = behind;
        }
        let value = std::str::from_utf8(value.trim_ascii()).ok()?;
        let fits = (1..=TRACE_NAME_OCTETS_MAX).contains(&value.len()) && !value.chars().any(char::is_control);
        return fits.then(|| value.into());
    }
}

/// The first line without its end, and what is behind it.
fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (line, rest) = match memchr::memchr(b'\n', bytes) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    (line.strip_suffix(b"\r").unwrap_or(line), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AT: UnixTime = UnixTime::from_millis(1_790_000_000_123);

    fn received(trace: Received<'_>) -> String {
        let mut out = Vec::new();
        trace.write_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn usual() -> Received<'static> {
        Received {
            helo: "client.example.org",
            client: "192.0.2.1".parse().unwrap(),
            host: "mx.example.net",
            extended: true,
            tls: None,
            authenticated: false,
            smtputf8: false,
            id: MessageId(7),
            recipient: Some("bob@example.net"),
            at: AT,
        }
    }

    #[test]
    fn a_received_header_has_all_clauses() {
        assert_eq!(
            received(usual()),
            "Received: from client.example.org ([192.0.2.1])\r\n\tby mx.example.net with ESMTP id 0000000000007\r\n\
             \tfor <bob@example.net>; Mon, 21 Sep 2026 14:13:20 +0000\r\n"
        );
        let tls = Some(("TLSv1.3", "TLS13_AES_256_GCM_SHA384"));
        let sparse = Received { helo: "", client: "2001:db8::1".parse().unwrap(), recipient: None, tls, ..usual() };
        assert_eq!(
            received(sparse),
            "Received: from unknown ([IPv6:2001:db8::1])\r\n\
             \tby mx.example.net with ESMTPS (TLSv1.3 TLS13_AES_256_GCM_SHA384) id\r\n\t0000000000007; Mon, 21 Sep 2026 14:13:20 +0000\r\n"
        );
    }

    #[test]
    fn hostile_names_and_addresses_inject_nothing() {
        let text = received(Received {
            helo: "a\r\nBcc: x@y (;)\u{85}é",
            recipient: Some("a\r\nBcc: x@y"),
            host: "h\r\n\r\nbody",
            ..usual()
        });
        assert_eq!(
            text,
            "Received: from a??Bcc:?x@y?????? ([192.0.2.1])\r\n\tby h????body with ESMTP id 0000000000007; \
             Mon, 21 Sep 2026 14:13:20 +0000\r\n"
        );
        let long = "x".repeat(3_000);
        let text = received(Received { helo: &long, host: &long, recipient: Some(&long), ..usual() });
        assert!(text.split("\r\n").all(|line| line.len() < 400), "{text}");
    }

    #[test]
    fn utf8_stands_only_in_internationalized_mail() {
        let trace = Received { helo: "bücher.example", recipient: Some("jörg@example.net"), ..usual() };
        let text = received(trace);
        assert!(text.is_ascii() && !text.contains("for <"));
        let text = received(Received { smtputf8: true, authenticated: true, ..trace });
        assert!(text.contains("from bücher.example") && text.contains("with UTF8SMTPA id"));
        assert!(text.contains("for <jörg@example.net>;"));
    }

    #[test]
    fn dates_are_those_of_rfc_5322() {
        for (millis, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 +0000"),
            (951_827_696_000, "Tue, 29 Feb 2000 12:34:56 +0000"),
            (u64::MAX, "Fri, 01 Jan 9999 00:00:00 +0000"),
        ] {
            assert_eq!(Date(UnixTime::from_millis(millis)).to_string(), text);
        }
    }

    #[test]
    fn headers_are_found_in_the_header_section_alone() {
        let scan = Headers::scan(
            b"RECEIVED: a\r\nReceived : b\r\n received: no\r\nX-Received: no\r\nReceived-SPF: no\r\nReceivedx\r\n\
              Date\r\nMessage-Idx: no\r\n\r\nReceived: no\r\nDate: no\r\nMessage-ID: no\r\n",
        );
        assert_eq!((scan.received_count, scan.has_date, scan.has_message_id), (2, false, false));
        assert!(scan.is_done());
        let scan = Headers::scan(b"date:x\r\nMESSAGE-ID:<a@b>\r\n");
        assert_eq!((scan.received_count, scan.has_date, scan.has_message_id), (0, true, true));
        assert!(!scan.is_done());
        assert!(Headers::scan(b"\r\nDate: no\r\n").is_done());
    }

    #[test]
    fn the_scan_is_bounded() {
        let mut content = b"X: ".to_vec();
        content.resize(HEADER_SCAN_OCTETS_MAX, b'x');
        content.extend_from_slice(b"\r\nReceived: far\r\n");
        let mut scan = Headers::scan(&content);
        assert!(scan.is_done());
        scan.handle_input(b"\r\nReceived: far\r\n");
        assert_eq!(scan.received_count, 0);
    }

    #[test]
    fn a_submitted_message_gets_what_it_lacks() {
        let headers = Headers::scan(b"Subject: x\r\n\r\n");
        let expected = "Date: Mon, 21 Sep 2026 14:13:20 +0000\r\nMessage-ID: <0000000000007@mx.example.net??X>\r\n";
        let added = submission_headers(&headers, MessageId(7), "mx.example.net\r\nX", AT);
        assert_eq!(String::from_utf8(added).unwrap(), expected);
        let headers = Headers::scan(b"Date: x\r\nMessage-Id: y\r\n\r\n");
        assert!(submission_headers(&headers, MessageId(7), "x", AT).is_empty());
    }

    #[test]
    fn a_header_is_found_by_its_name() {
        let content = b"Subject: x\r\n folded: no\r\nX-Tenant : \tred\r\n\t team \r\nX-Tenant: blue\r\n\
                        X-Empty:\r\nX-Bad: a\x00b\r\n\r\nX-Body: no\r\n";
        for (name, value) in [
            ("x-tenant", Some("red team")),
            ("SUBJECT", Some("x folded: no")),
            ("folded", None),
            ("X-Empty", None),
            ("X-Bad", None),
            ("X-Body", None),
            ("X", None),
        ] {
            assert_eq!(header_value(content, name).as_deref(), value, "{name}");
        }
        assert_eq!(header_value(b"X: y", "x").as_deref(), Some("y"));
        assert_eq!(header_value(b"", ""), None);
        assert_eq!(header_value(format!("X: {}", "y".repeat(300)).as_bytes(), "x"), None);
    }

    #[test]
    fn a_client_has_a_bounded_name() {
        let client = "192.0.2.1".parse().unwrap();
        assert_eq!(&*client_name("mx.example.org\r\n", client), "mx.example.org?? [192.0.2.1]");
        assert_eq!(&*client_name("", client), "unknown [192.0.2.1]");
        assert!(client_name(&"é".repeat(300), client).len() <= 255);
    }

    proptest! {
        #[test]
        fn any_split_of_a_content_is_scanned_alike(
            lines in proptest::collection::vec(
                prop_oneof![
                    Just("Received: x\r\n"), Just("Date: x\r\n"), Just("Message-ID :x\r\n"), Just("\r\n"),
                    Just(" Received: x\r\n"), Just("Rec"), Just("\r"), Just("x\n"), Just(":"),
                ],
                0..12,
            ),
            cut in 0usize..100,
        ) {
            let content = lines.concat().into_bytes();
            let whole = Headers::scan(&content);
            let mut split = Headers::default();
            let (head, tail) = content.split_at(cut.min(content.len()));
            split.handle_input(head);
            tail.iter().for_each(|byte| split.handle_input(&[*byte]));
            let found = |scan: &Headers| (scan.received_count, scan.has_date, scan.has_message_id, scan.is_done());
            prop_assert_eq!(found(&whole), found(&split));
        }

        #[test]
        fn no_received_header_holds_more_than_its_own_lines(helo in ".{0,80}", recipient in ".{0,80}", utf8: bool) {
            let text = received(Received { helo: &helo, recipient: Some(&recipient), smtputf8: utf8, ..usual() });
            prop_assert!(text.ends_with("\r\n"));
            prop_assert!(text.trim_end_matches("\r\n").split("\r\n").skip(1).all(|line| line.starts_with('\t')));
            prop_assert!(!text.replace("\r\n", "").contains(['\r', '\n', '\0']));
        }
    }
}
