//! The text of delivery reports: cleaning, folding, wrapping, copying, and what a sender can do about a failure.
//!
//! Here it is made sure that no text of others becomes a line of its own and that lines stay short; the report's
//! structure is made in `dsn.rs`. Nothing here fails.

use std::fmt::Write as _;

/// Columns of a line, where its text has spaces to break at (RFC 5322 2.1.1).
const COLUMNS: usize = 76;
/// Octets of a word that is not broken; longer ones are, so that no line comes near the 998 octets of RFC 5322 2.1.1.
const WORD_OCTETS_MAX: usize = 600;

/// The text on one line: control characters become `?`; where UTF-8 may not stand, other characters than ASCII are
/// written `\x{HEX}` (as RFC 6533 3 does in addresses).
pub(super) fn clean(text: &str, utf8: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' => out.push(' '),
            _ if letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}') => out.push('?'),
            _ if letter.is_ascii() || utf8 => out.push(letter),
            _ => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\x{{{:X}}}", u32::from(letter));
            }
        }
    }
    out
}

/// Appends a field, folded at spaces. `value` is clean.
pub(super) fn fold(out: &mut String, name: &str, value: &str) {
    out.push_str(name);
    out.push(':');
    let mut column = name.len() + 1;
    for word in words(value) {
        // A fold is a line end before the space, so that unfolding gives back the text (RFC 5322 2.2.3).
        if column + 1 + word.len() > COLUMNS && column > name.len() + 1 {
            out.push_str("\r\n");
            column = 0;
        }
        out.push(' ');
        out.push_str(word);
        column += 1 + word.len();
    }
    out.push_str("\r\n");
}

/// Appends a field as it is, so that not even the spaces in an address change; only an overlong one is folded.
pub(super) fn field(out: &mut String, name: &str, value: &str) {
    if value.len() > WORD_OCTETS_MAX {
        return fold(out, name, value);
    }
    for text in [name, ": ", value, "\r\n"] {
        out.push_str(text);
    }
}

/// Appends a paragraph, wrapped at spaces, each line behind `indent`. `text` is clean.
pub(super) fn wrap(out: &mut String, indent: &str, text: &str) {
    let mut column = 0;
    for word in words(text) {
        if column > 0 && column + 1 + word.len() > COLUMNS {
            out.push_str("\r\n");
            column = 0;
        }
        out.push_str(if column == 0 { indent } else { " " });
        column += if column == 0 { indent.len() } else { 1 } + word.len();
        out.push_str(word);
    }
    out.push_str("\r\n");
}

/// The words of a text, overlong ones in pieces.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_ascii_whitespace().flat_map(|word| {
        let mut rest = word;
        std::iter::from_fn(move || {
            let mut end = rest.len().min(WORD_OCTETS_MAX);
            while !rest.is_char_boundary(end) {
                end -= 1;
            }
            let (piece, behind) = rest.split_at(end);
            rest = behind;
            (!piece.is_empty()).then_some(piece)
        })
    })
}

/// Appends a message or a part of it: CRLF for every line end, a last line end if it has none, no NUL.
pub(super) fn copy_lines(bytes: &[u8], out: &mut Vec<u8>) {
    let mut rest = bytes;
    while let Some(at) = memchr::memchr3(b'\r', b'\n', 0, rest) {
        out.extend_from_slice(&rest[..at]);
        let taken = match &rest[at..] {
            [b'\r', b'\n', ..] => 2,
            _ => 1,
        };
        out.extend_from_slice(if rest[at] == 0 { b"?" } else { b"\r\n" });
        rest = &rest[at + taken..];
    }
    out.extend_from_slice(rest);
    if !rest.is_empty() {
        out.extend_from_slice(b"\r\n");
    }
}

/// What a sender can do about a failure with this status (RFC 3463 3).
pub(super) fn advice((_, subject, detail): (u8, u16, u16)) -> &'static str {
    match (subject, detail) {
        (1, 1) => {
            "check the address for typing errors, above all the part before the @. If it is right, the mailbox does \
             not exist any more or takes no mail; ask the recipient in another way."
        }
        (1, 2) => "check the part of the address behind the @ for typing errors: there is no such mail domain.",
        (1, 10) => "ask the recipient for another address: this domain takes no mail at all.",
        (1, _) => "check the address for typing errors.",
        (2, 1) => "ask the recipient for another address: this mailbox takes no mail at present.",
        (2, 2) => "tell the recipient in another way that the mailbox is full, and send the message again later.",
        (2, 3) | (3, 4) => "send a smaller message, or a link instead of the files: it is too large for the recipient.",
        (3, _) => "send the message again later: the mail system of the recipient has a problem of its own.",
        (4, 6) => "tell the administrator of the recipient's mail system: the message went round in a loop.",
        (4, 7) => {
            "the mail server tried until the time for it was over. Ask the recipient in another way, or send the \
             message again later."
        }
        (4, _) => "send the message again later: the mail system of the recipient could not be reached.",
        (6, 7) => {
            "ask the recipient for an address of plain English letters, and use one yourself: the mail system of the \
             recipient does not know others."
        }
        (6, _) => "send the message again as plain text: the mail system of the recipient cannot take its form.",
        (7, _) => {
            "read the result above, which may name the reason or a page that explains it. The mail system of the \
             recipient refused the message by its rules; the administrator of your mail system can help with this \
             report."
        }
        _ => "read the result above. If it does not help, give this report to the administrator of your mail system.",
    }
}
