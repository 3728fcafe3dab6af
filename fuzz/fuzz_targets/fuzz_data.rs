//! Content: the cut of the input matters not; DATA ends only at CRLF.CRLF and at the first one; nothing that ends a
//! message, and no bare CR, LF or NUL, passes as accepted content; stuffing it again gives the same content.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringpost::pieces::Pieces;
use ringpost::smtp::data::{BareNewlines, Fault, Framing, Scanner};

#[derive(PartialEq, Eq, Debug)]
struct Seen {
    content: Vec<u8>,
    fault: Option<Fault>,
    end: Option<usize>,
}

fn scan(pieces: &[&[u8]], framing: Framing, bare_newlines: BareNewlines) -> Seen {
    let mut scanner = Scanner::new(framing, bare_newlines);
    let mut content = Vec::new();
    let mut done = 0;
    for piece in pieces {
        let scanned = scanner.scan(piece, &mut |slice| content.extend_from_slice(slice));
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

/// Where CRLF.CRLF first ends, the start counting as behind a CRLF.
fn first_end(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(b".\r\n") {
        return Some(3);
    }
    bytes.windows(5).position(|window| window == b"\r\n.\r\n").map(|place| place + 5)
}

fn stuff(content: &[u8]) -> Vec<u8> {
    let mut stuffed = Vec::new();
    for line in content.split_inclusive(|&octet| octet == b'\n') {
        if line[0] == b'.' {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    stuffed.extend_from_slice(b".\r\n");
    stuffed
}

fuzz_target!(|input: &[u8]| {
    let Some(pieces) = Pieces::of(input) else { return };
    let framing = if pieces.settings & 1 == 0 { Framing::Dots } else { Framing::Counted };
    let bare_newlines = if pieces.settings & 2 == 0 { BareNewlines::Refuse } else { BareNewlines::Convert };
    let whole = scan(&[pieces.bytes], framing, bare_newlines);
    assert_eq!(whole, scan(&pieces.cut(), framing, bare_newlines));
    if framing == Framing::Dots {
        assert_eq!(whole.end, first_end(pieces.bytes));
    }
    let complete = whole.end.is_some() || framing == Framing::Counted;
    if whole.fault.is_some() || !complete {
        return;
    }
    for (place, octet) in whole.content.iter().enumerate() {
        match octet {
            0 => panic!("a NUL passed"),
            b'\n' => assert!(place > 0 && whole.content[place - 1] == b'\r', "a bare LF passed"),
            b'\r' => assert_eq!(whole.content.get(place + 1), Some(&b'\n'), "a bare CR passed"),
            _ => {}
        }
    }
    if framing == Framing::Counted && bare_newlines == BareNewlines::Refuse {
        assert_eq!(whole.content, pieces.bytes);
    }
    if framing == Framing::Dots {
        assert!(whole.content.is_empty() || whole.content.ends_with(b"\r\n"));
        let stuffed = stuff(&whole.content);
        let again = scan(&[&stuffed], Framing::Dots, BareNewlines::Refuse);
        assert_eq!(again, Seen { content: whole.content, fault: None, end: Some(stuffed.len()) });
    }
});
