//! Message contents that prove their own integrity.
//!
//! The first header line holds the token, and the length and checksum of everything behind it. A server may put
//! trace headers in front (RFC 5321 4.4) and must change nothing else.

use crate::destination::Token;
use crate::random::Random;
use std::sync::LazyLock;

/// The name of the first header line.
const HEADER: &str = "X-Load-Token: ";
/// Octets of a body line, CRLF included.
const LINE: usize = 76;
/// Octets of the text that bodies are cut from.
const TEXT: usize = 1 << 20;

/// What everything behind the token line must be.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// Octets.
    pub len: u32,
    /// Their CRC-32C.
    pub crc: u32,
}

impl Fingerprint {
    /// The fingerprint of some bytes.
    pub fn of(bytes: &[u8]) -> Fingerprint {
        Fingerprint { len: bytes.len() as u32, crc: crc32c::crc32c(bytes) }
    }
}

/// Text to cut bodies from: lines of letters, some of which begin with dots, so that stuffing is always at work.
static BODY_TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(0x7265_6164_6162_6c65);
    let mut text = Vec::with_capacity(TEXT);
    while text.len() < TEXT {
        let column = text.len() % LINE;
        text.push(match column {
            0 | 1 if random.percent(10) => b'.',
            _ if column == LINE - 2 => b'\r',
            _ if column == LINE - 1 => b'\n',
            _ => b"abcdefghijklmnopqrstuvwxyz     "[random.below(31) as usize],
        });
    }
    text.truncate(TEXT / LINE * LINE);
    text
});

/// A message of about `size` octets, never smaller than its headers, and its fingerprint.
pub fn compose(token: Token, size: usize, from: &str, to: &str, random: &mut Random) -> (Vec<u8>, Fingerprint) {
    let head = format!(
        "From: <{from}>\r\nTo: <{to}>\r\nSubject: load {token}\r\nMessage-ID: <{token}@load.example>\r\n\
         Date: Tue, 14 Nov 2023 22:13:20 +0000\r\n\r\n"
    );
    let text = &*BODY_TEXT;
    let mut rest = head.into_bytes();
    rest.reserve(size);
    let lines = size.saturating_sub(rest.len()).div_ceil(LINE);
    let mut start = random.below((TEXT / LINE) as u64) as usize * LINE;
    let mut left = lines * LINE;
    while left > 0 {
        let part = left.min(text.len() - start);
        rest.extend_from_slice(&text[start..start + part]);
        left -= part;
        start = 0;
    }
    let fingerprint = Fingerprint::of(&rest);
    let mut content = format!("{HEADER}{token} {} {:08x}\r\n", fingerprint.len, fingerprint.crc).into_bytes();
    content.append(&mut rest);
    (content, fingerprint)
}

/// What was found in a content that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examined {
    /// Whose it is; None if no token line can be read.
    pub token: Option<Token>,
    /// What stands behind the token line.
    pub fingerprint: Fingerprint,
    /// What is wrong with it.
    pub damage: Option<&'static str>,
}

/// Looks at a content that arrived: lets trace headers pass, then checks everything against the token line.
pub fn examine(content: &[u8]) -> Examined {
    let mut damage = None;
    let mut rest = content;
    let mut in_trace = false;
    while let Some((line, behind)) = split_line(rest) {
        if let Some(claim) = line.strip_prefix(HEADER.as_bytes()) {
            let fingerprint = Fingerprint::of(behind);
            let claim = std::str::from_utf8(claim).ok().and_then(parse_claim);
            return match claim {
                Some((token, claimed)) => {
                    let damage = damage.or((claimed != fingerprint).then_some("the content differs"));
                    Examined { token: Some(token), fingerprint, damage }
                }
                None => Examined { token: None, fingerprint, damage: Some("the token line cannot be read") },
            };
        }
        if line.is_empty() {
            break;
        }
        let folded = line.starts_with(b" ") || line.starts_with(b"\t");
        if !folded {
            in_trace = is_trace(line);
        }
        if !in_trace {
            damage = Some("a header that is not a trace header was put in front");
        }
        rest = behind;
    }
    Examined { token: None, fingerprint: Fingerprint::of(content), damage: Some("there is no token line") }
}

fn is_trace(line: &[u8]) -> bool {
    let names: [&[u8]; 2] = [b"received:", b"return-path:"];
    names.iter().any(|name| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&bytes[..end], &bytes[end + 2..]))
}

fn parse_claim(claim: &str) -> Option<(Token, Fingerprint)> {
    let mut words = claim.split(' ');
    let token = Token::parse(words.next()?)?;
    let len = words.next()?.parse().ok()?;
    let crc = u32::from_str_radix(words.next()?, 16).ok()?;
    if words.next().is_none() { Some((token, Fingerprint { len, crc })) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> (Vec<u8>, Fingerprint) {
        compose(Token::new(1, 2), 5000, "from@load.example", "to@load.example", &mut Random::new(3))
    }

    #[test]
    fn a_content_has_about_the_size_asked_for_and_dots() {
        let (content, fingerprint) = message();
        assert!((5000..5200).contains(&content.len()));
        assert!(content.ends_with(b"\r\n") && content.windows(3).any(|three| three == b"\r\n."));
        assert_eq!(examine(&content), Examined { token: Some(Token::new(1, 2)), fingerprint, damage: None });
        let (large, _) = compose(Token::new(1, 2), 3 << 20, "a@b.example", "c@d.example", &mut Random::new(4));
        assert!(large.len() >= 3 << 20 && examine(&large).damage.is_none());
    }

    #[test]
    fn trace_headers_are_ignored_and_nothing_else() {
        let (content, fingerprint) = message();
        let traced = [b"Received: from a\r\n\tby b; now\r\nreceived: x\r\n".as_slice(), &content].concat();
        assert_eq!(examine(&traced).damage, None);
        assert_eq!(examine(&traced).fingerprint, fingerprint);
        let added = [b"X-Other: y\r\n".as_slice(), &content].concat();
        assert!(examine(&added).damage.is_some());
        assert_eq!(examine(&added).token, Some(Token::new(1, 2)));
    }

    #[test]
    fn any_changed_octet_is_damage() {
        let (content, _) = message();
        for at in (0..content.len()).step_by(7) {
            let mut changed = content.clone();
            changed[at] ^= 1;
            let examined = examine(&changed);
            assert!(examined.damage.is_some() || examined.token != Some(Token::new(1, 2)), "octet {at}");
        }
        assert!(examine(&content[..content.len() - 1]).damage.is_some());
        assert!(examine(b"").damage.is_some());
    }
}
