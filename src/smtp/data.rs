//! Message content as it comes: the end of DATA, the dots put before lines, and line ends that are none.
//!
//! Only CRLF.CRLF ends DATA (RFC 5321 4.1.1.4), and only a CRLF makes what follows the start of a line; a bare CR or
//! LF never does (RFC 5321 2.3.8), which is what keeps messages from being smuggled inside others. The octets go on as
//! slices of the input wherever possible. What must not be accepted is reported once as a [`Fault`], and the scanner
//! keeps looking for the true end of the content. It cannot fail.
//!
//! Not here: how large a message may be, and what the client is told (src/smtp/server.rs).

/// What to do with a bare CR or a bare LF in content.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum BareNewlines {
    /// The message is refused, as a relay should.
    #[default]
    Refuse,
    /// It becomes a CRLF, as users' programs on submission need.
    Convert,
}

/// Why content must not be accepted.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A CR without LF or an LF without CR.
    BareNewline,
    /// A NUL.
    Nul,
}

/// How content is framed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Framing {
    /// DATA: ended by a line of one dot, other dots at the start of lines doubled.
    Dots,
    /// BDAT: the end is known by counting; dots mean nothing (RFC 3030 2).
    Counted,
}

/// What a scan has found.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Octets taken; less than all only if the content has ended.
    pub consumed: usize,
    /// The end of DATA was among them.
    pub ended: bool,
}

/// Where in a line the next octet stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Behind a CRLF, or at the very start.
    LineStart,
    /// Anywhere else.
    Within,
    /// Behind a CR that was passed on.
    AfterCr,
    /// Behind a dot at the start of a line, which was not passed on.
    AfterDot,
    /// Behind such a dot and a CR, neither of which was passed on.
    AfterDotCr,
}

/// Scans the content of one message, in any pieces.
#[derive(Debug)]
pub struct Scanner {
    place: Place,
    framing: Framing,
    bare_newlines: BareNewlines,
    fault: Option<Fault>,
}

impl Scanner {
    /// At the start of a message's content.
    pub fn new(framing: Framing, bare_newlines: BareNewlines) -> Scanner {
        Scanner { place: Place::LineStart, framing, bare_newlines, fault: None }
    }

    /// The first fault found, if there was one. From then on nothing is passed on.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// How this content is framed.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Takes all of `input`, or for DATA up to the end of the content, and passes the content on to `sink`.
    pub fn scan(&mut self, input: &[u8], sink: &mut dyn FnMut(&[u8])) -> Scanned {
        // `from` is the first octet that was not passed on, `at` the first that was not looked at.
        let (mut from, mut at) = (0, 0);
        while at < input.len() {
            match self.place {
                Place::Within => match memchr::memchr3(b'\r', b'\n', 0, &input[at..]) {
                    None => at = input.len(),
                    Some(length) => {
                        let special = at + length;
                        at = special + 1;
                        match input[special] {
                            b'\r' => self.place = Place::AfterCr,
                            octet => {
                                self.pass_on(&input[from..special], sink);
                                from = at;
                                self.handle_bare(octet, sink);
                            }
                        }
                    }
                },
                Place::AfterCr if input[at] == b'\n' => {
                    at += 1;
                    self.place = Place::LineStart;
                }
                Place::AfterCr => {
                    self.pass_on(&input[from..at], sink);
                    from = at;
                    self.handle_bare(b'\r', sink);
                }
                Place::LineStart if input[at] == b'.' && self.framing == Framing::Dots => {
                    self.pass_on(&input[from..at], sink);
                    at += 1;
                    from = at;
                    self.place = Place::AfterDot;
                }
                Place::LineStart => self.place = Place::Within,
                Place::AfterDot if input[at] == b'\r' => {
                    at += 1;
                    from = at;
                    self.place = Place::AfterDotCr;
                }
                // RFC 5321 4.5.2: the dot is deleted if other characters follow on the line.
                Place::AfterDot => self.place = Place::Within,
                Place::AfterDotCr if input[at] == b'\n' => return Scanned { consumed: at + 1, ended: true },
                Place::AfterDotCr => {
                    self.pass_on(b"\r", sink);
                    self.handle_bare(b'\r', sink);
                }
            }
        }
        self.pass_on(&input[from..], sink);
        Scanned { consumed: input.len(), ended: false }
    }

    /// The counted content ends here: a CR at its very end is a bare one.
    pub fn finish(&mut self, sink: &mut dyn FnMut(&[u8])) {
        if self.place == Place::AfterCr {
            self.handle_bare(b'\r', sink);
        }
    }

    /// An octet that may not stand alone. A CR was passed on before, the others were not.
    fn handle_bare(&mut self, octet: u8, sink: &mut dyn FnMut(&[u8])) {
        self.place = Place::Within;
        match (octet, self.bare_newlines) {
            (0, _) => self.fault = self.fault.or(Some(Fault::Nul)),
            (_, BareNewlines::Refuse) => self.fault = self.fault.or(Some(Fault::BareNewline)),
            (b'\r', BareNewlines::Convert) => self.pass_on(b"\n", sink),
            (_, BareNewlines::Convert) => self.pass_on(b"\r\n", sink),
        }
    }

    fn pass_on(&self, bytes: &[u8], sink: &mut dyn FnMut(&[u8])) {
        if !bytes.is_empty() && self.fault.is_none() {
            sink(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Seen {
        content: Vec<u8>,
        fault: Option<Fault>,
        /// Where the content ended.
        end: Option<usize>,
    }

    fn scan(bytes: &[u8], cuts: &[usize], framing: Framing, bare_newlines: BareNewlines) -> Seen {
        let mut scanner = Scanner::new(framing, bare_newlines);
        let mut content = Vec::new();
        let mut done = 0;
        for cut in cuts.iter().cycle() {
            if done == bytes.len() {
                break;
            }
            let piece = &bytes[done..(done + cut).min(bytes.len())];
            let scanned = scanner.scan(piece, &mut |slice| content.extend_from_slice(slice));
            assert!(scanned.consumed <= piece.len());
            done += scanned.consumed;
            if scanned.ended {
                return Seen { content, fault: scanner.fault(), end: Some(done) };
            }
            assert_eq!(scanned.consumed, piece.len());
        }
        if framing == Framing::Counted {
            scanner.finish(&mut |slice| content.extend_from_slice(slice));
        }
        Seen { content, fault: scanner.fault(), end: None }
    }

    fn data(bytes: &[u8], bare_newlines: BareNewlines) -> Seen {
        scan(bytes, &[usize::MAX / 2], Framing::Dots, bare_newlines)
    }

    /// A second scanner, as plain as can be: octet by octet over the whole.
    fn shadow(bytes: &[u8], framing: Framing, bare_newlines: BareNewlines) -> Seen {
        let mut content = Vec::new();
        let mut fault = None;
        let (mut at, mut line_start) = (0, true);
        let dots = framing == Framing::Dots;
        while at < bytes.len() {
            if dots && line_start && bytes[at..].starts_with(b".\r\n") {
                return Seen { content, fault, end: Some(at + 3) };
            }
            if dots && line_start && bytes[at] == b'.' {
                line_start = false;
                at += 1;
                continue;
            }
            line_start = false;
            if bytes[at..].starts_with(b"\r\n") {
                if fault.is_none() {
                    content.extend_from_slice(b"\r\n");
                }
                at += 2;
                line_start = true;
                continue;
            }
            // A CR at the very end of DATA may still become a CRLF, so that nothing is known of it yet.
            let undecided = dots && bytes[at] == b'\r' && at + 1 == bytes.len();
            let found = match bytes[at] {
                0 => Some(Fault::Nul),
                b'\r' | b'\n' if !undecided && bare_newlines == BareNewlines::Refuse => Some(Fault::BareNewline),
                _ => None,
            };
            let bare = matches!(bytes[at], b'\r' | b'\n') && !undecided;
            if fault.is_none() {
                match (bytes[at], found) {
                    (0 | b'\n', Some(_)) => {}
                    _ if bare && found.is_none() => content.extend_from_slice(b"\r\n"),
                    (octet, _) => content.push(octet),
                }
            }
            fault = fault.or(found);
            at += 1;
        }
        if dots && fault.is_none() && ends_in_dot_cr(bytes) {
            content.pop();
        }
        Seen { content, fault, end: None }
    }

    /// ".CR" at the start of a line is held back whole.
    fn ends_in_dot_cr(bytes: &[u8]) -> bool {
        bytes == b".\r" || bytes.ends_with(b"\r\n.\r")
    }

    #[test]
    fn the_end_of_data() {
        for (bytes, content, end) in [
            (&b".\r\n"[..], &b""[..], Some(3)),
            (b".\r\nQUIT\r\n", b"", Some(3)),
            (b"a\r\n.\r\nQUIT", b"a\r\n", Some(6)),
            (b"\r\n.\r\n", b"\r\n", Some(5)),
            (b"..\r\n.\r\n", b".\r\n", Some(7)),
            (b"...\r\n.a\r\n.\r\n", b"..\r\na\r\n", Some(12)),
            (b"a.\r\n.b\r\n", b"a.\r\nb\r\n", None),
            (b"a\r\n.", b"a\r\n", None),
            (b"a\r\n.\r", b"a\r\n", None),
        ] {
            assert_eq!(data(bytes, BareNewlines::Refuse), Seen { content: content.to_vec(), fault: None, end });
        }
    }

    /// The sequences of December 2023 and their kin: none of them ends DATA.
    #[test]
    fn smuggling_sequences() {
        for sequence in [
            &b"\n.\n"[..],
            b"\n.\r\n",
            b"\r\n.\n",
            b"\r.\r",
            b"\r.\r\n",
            b"\r\n.\r",
            b"\n.\r",
            b"\r.\n",
            b"\r\n.\r\r\n",
            b"\r\n\r.\r\n",
            b"\n\r.\r\n",
            b"\r\n.\n\r\n",
            b"\r\n\0.\r\n",
            b"\r\n.\0\r\n",
            b"\0\r\n.\r\0\n",
            b"\n\n.\r\n",
            b"\r\n \r.\r\n",
        ] {
            let bytes = [b"first", sequence, b"MAIL FROM:<evil@x.example>\r\n", b"\r\n.\r\n"].concat();
            let refused = data(&bytes, BareNewlines::Refuse);
            assert_eq!(refused.end, Some(bytes.len()), "{sequence:?}");
            assert!(refused.fault.is_some(), "{sequence:?}");
            let converted = data(&bytes, BareNewlines::Convert);
            assert_eq!(converted.end, Some(bytes.len()), "{sequence:?}");
            assert_eq!(converted.fault.is_some(), sequence.contains(&0), "{sequence:?}");
            assert!(newlines_are_clean(&converted.content), "{sequence:?}");
        }
        // A bare CR before a true end spoils the message but not its end.
        let refused = data(b"a\r\r\n.\r\n", BareNewlines::Refuse);
        assert_eq!((refused.fault, refused.end), (Some(Fault::BareNewline), Some(7)));
    }

    fn newlines_are_clean(content: &[u8]) -> bool {
        content.iter().enumerate().all(|(place, octet)| match octet {
            b'\n' => place > 0 && content[place - 1] == b'\r',
            b'\r' => content.get(place + 1) == Some(&b'\n'),
            0 => false,
            _ => true,
        })
    }

    #[test]
    fn conversion() {
        let seen = data(b"a\nb\rc\r\n\n.\n..d\r\n.\re\r\n.\r\n", BareNewlines::Convert);
        assert_eq!(seen.content, b"a\r\nb\r\nc\r\n\r\n.\r\n..d\r\n\r\ne\r\n");
        assert_eq!(seen.fault, None);
        let seen = scan(b"x\r", &[1], Framing::Counted, BareNewlines::Convert);
        assert_eq!(seen.content, b"x\r\n");
    }

    #[test]
    fn counted_content_is_kept_as_it_is() {
        let bytes = b".\r\n..a\r\n.\r\nno end";
        let seen = scan(bytes, &[3], Framing::Counted, BareNewlines::Refuse);
        assert_eq!(seen, Seen { content: bytes.to_vec(), fault: None, end: None });
        assert_eq!(scan(b"a\r", &[9], Framing::Counted, BareNewlines::Refuse).fault, Some(Fault::BareNewline));
    }

    #[test]
    fn plain_content_is_passed_on_in_one_slice() {
        let mut scanner = Scanner::new(Framing::Dots, BareNewlines::Refuse);
        let bytes = [&b"a line of text\r\n".repeat(100)[..], b".\r\n"].concat();
        let mut slices = 0;
        assert!(scanner.scan(&bytes, &mut |_| slices += 1).ended);
        assert_eq!(slices, 1);
    }

    fn octets() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            4 => Just(b"\r\n".to_vec()), 4 => Just(b".".to_vec()), 1 => Just(b"\r".to_vec()), 1 => Just(b"\n".to_vec()),
            1 => Just(b"\0".to_vec()), 3 => "[a-z]{0,40}".prop_map(String::into_bytes), 1 => Just(b"\r\n.\r\n".to_vec()),
        ];
        proptest::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
    }

    fn framing() -> impl Strategy<Value = Framing> {
        prop_oneof![Just(Framing::Dots), Just(Framing::Counted)]
    }

    fn bare_newlines() -> impl Strategy<Value = BareNewlines> {
        prop_oneof![Just(BareNewlines::Refuse), Just(BareNewlines::Convert)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn any_split_scans_as_the_shadow_does(
            bytes in octets(),
            cuts in proptest::collection::vec(1usize..30, 1..20),
            framing in framing(),
            bare_newlines in bare_newlines(),
        ) {
            let expected = shadow(&bytes, framing, bare_newlines);
            prop_assert_eq!(&scan(&bytes, &[usize::MAX / 2], framing, bare_newlines), &expected);
            prop_assert_eq!(&scan(&bytes, &cuts, framing, bare_newlines), &expected);
            prop_assert_eq!(&scan(&bytes, &[1], framing, bare_newlines), &expected);
            if expected.fault.is_none() && expected.end.is_some() {
                prop_assert!(newlines_are_clean(&expected.content));
            }
        }

        /// smtp-proto is right about content that has a first line, ends in CRLF.CRLF and has no bare CR or LF.
        #[test]
        fn agrees_with_smtp_proto_where_that_is_right(lines in proptest::collection::vec("[a-z.]{0,12}", 1..12)) {
            let mut bytes = b"Subject: x\r\n".to_vec();
            for line in &lines {
                if line.starts_with('.') {
                    bytes.push(b'.');
                }
                bytes.extend_from_slice(line.as_bytes());
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b".\r\nQUIT\r\n");
            let seen = data(&bytes, BareNewlines::Refuse);
            let mut receiver = smtp_proto::request::receiver::DataReceiver::new();
            let mut theirs = Vec::new();
            let mut iter = bytes.iter();
            prop_assert!(receiver.ingest(&mut iter, &mut theirs));
            prop_assert_eq!(seen.end, Some(bytes.len() - iter.len()));
            prop_assert_eq!(seen.content, theirs);
        }
    }
}
