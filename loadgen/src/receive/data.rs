//! The end of DATA, and the dots that were doubled before it (RFC 5321 4.5.2).
//!
//! Only CRLF . CRLF ends a content; it is found however the bytes are cut into pieces.

use memchr::memmem;
use std::sync::LazyLock;

static END: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\r\n.\r\n"));
static DOT: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"\r\n."));

/// Looks for the end of a content.
#[derive(Clone, Debug)]
pub(super) struct DataEnd {
    /// The last octets that went by.
    last: [u8; 4],
}

impl Default for DataEnd {
    /// At the beginning of a content, which counts as the beginning of a line.
    fn default() -> DataEnd {
        DataEnd { last: *b"  \r\n" }
    }
}

impl DataEnd {
    /// Where in these bytes the content is over: behind the last LF. None if it goes on.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut seam = [0; 8];
        seam[..4].copy_from_slice(&self.last);
        let head = bytes.len().min(4);
        seam[4..4 + head].copy_from_slice(&bytes[..head]);
        if let Some(at) = END.find(&seam[..4 + head]) {
            return Some(at + 1);
        }
        if let Some(at) = END.find(bytes) {
            return Some(at + 5);
        }
        if bytes.len() >= 4 {
            self.last.copy_from_slice(&bytes[bytes.len() - 4..]);
        } else {
            self.last.copy_from_slice(&seam[head..4 + head]);
        }
        None
    }
}

/// Takes the doubled dots out of a content.
pub(super) fn unstuff(content: &mut Vec<u8>) {
    let mut to = 0;
    let mut from = usize::from(content.first() == Some(&b'.'));
    while let Some(at) = DOT.find(&content[from..]) {
        content.copy_within(from..from + at + 2, to);
        to += at + 2;
        from += at + 3;
    }
    let len = content.len();
    content.copy_within(from..len, to);
    content.truncate(to + len - from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_however_the_bytes_are_cut() {
        for content in ["", "a\r\n", "..\r\n.b\r\n", "x\r\n.\rz\r\n", "\r\n"] {
            let whole = format!("{content}.\r\nQUIT\r\n");
            for size in 1..=whole.len() {
                let (mut end, mut at) = (DataEnd::default(), 0);
                let found = whole.as_bytes().chunks(size).find_map(|piece| {
                    let found = end.find(piece).map(|inside| at + inside);
                    at += piece.len();
                    found
                });
                assert_eq!(found, Some(content.len() + 3), "{content:?} in pieces of {size}");
            }
        }
        assert_eq!(DataEnd::default().find(b"a\n.\nb\r\n.\n"), None);
    }

    #[test]
    fn doubled_dots_are_halved() {
        for (stuffed, plain) in
            [("", ""), ("..\r\n", ".\r\n"), ("a\r\n..b\r\n.. \r\n", "a\r\n.b\r\n. \r\n"), ("a.b", "a.b")]
        {
            let mut content = stuffed.as_bytes().to_vec();
            unstuff(&mut content);
            assert_eq!(content, plain.as_bytes());
        }
    }
}
