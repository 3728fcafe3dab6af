//! The content of a message on its way to the peer: handed through without copying, dots stuffed where DATA asks it.
//!
//! Pieces are made one at a time as they are fetched, so that a content of nothing but dots costs no memory.
//! Only CRLF makes a line here (RFC 5321 2.3.8): the reception side lets no bare CR or LF into a content.
//! Nothing here can fail.

use bytes::Bytes;
use memchr::memmem;

/// Where in a line the content stands, across the borders of its chunks.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum LineState {
    /// At the start of a line: nothing sent yet, or CRLF came last.
    Start,
    /// Behind a CR.
    AfterCr,
    /// Anywhere else.
    Within,
}

impl LineState {
    /// The state behind `chunk`, looking at its end alone.
    pub(super) fn after(self, chunk: &[u8]) -> LineState {
        match chunk {
            [] => self,
            [b'\n'] if self == LineState::AfterCr => LineState::Start,
            [.., b'\r', b'\n'] => LineState::Start,
            [.., b'\r'] => LineState::AfterCr,
            _ => LineState::Within,
        }
    }

    /// Where the first dot stands that begins a line of `chunk`.
    fn next_dot(self, chunk: &[u8]) -> Option<usize> {
        match (self, chunk) {
            (LineState::Start, [b'.', ..]) => Some(0),
            (LineState::AfterCr, [b'\n', b'.', ..]) => Some(1),
            _ => memmem::find(chunk, b"\r\n.").map(|at| at + 2),
        }
    }

    /// What ends a content that stands here, so that DATA ends: the line is closed if need be, then the dot.
    pub(super) fn final_dot(self) -> Bytes {
        Bytes::from_static(if self == LineState::Start { b".\r\n" } else { b"\r\n.\r\n" })
    }

    /// What closes the last line of a content that is sent by BDAT; empty if it is closed.
    pub(super) fn line_end(self) -> &'static [u8] {
        if self == LineState::Start { b"" } else { b"\r\n" }
    }
}

/// Gives out a run of content piece by piece.
#[derive(Debug)]
pub(super) struct ContentPieces {
    /// What is left of the chunk being given out; empty only at the very end.
    chunk: Bytes,
    rest: std::vec::IntoIter<Bytes>,
    /// Some: dots are stuffed, and this is where `chunk` begins.
    stuffing: Option<LineState>,
    /// The dot in front of `chunk` is yet to be doubled.
    dot_due: bool,
}

impl ContentPieces {
    /// The chunks as they are, for BDAT.
    pub(super) fn plain(chunks: Vec<Bytes>) -> ContentPieces {
        ContentPieces::new(chunks, None)
    }

    /// The chunks with each leading dot doubled, for DATA (RFC 5321 4.5.2); they go on from `state`.
    pub(super) fn stuffed(chunks: Vec<Bytes>, state: LineState) -> ContentPieces {
        ContentPieces::new(chunks, Some(state))
    }

    fn new(chunks: Vec<Bytes>, stuffing: Option<LineState>) -> ContentPieces {
        let mut pieces = ContentPieces { chunk: Bytes::new(), rest: chunks.into_iter(), stuffing, dot_due: false };
        pieces.advance();
        pieces
    }

    /// All was given out.
    pub(super) fn is_done(&self) -> bool {
        self.chunk.is_empty()
    }

    /// The next piece, never empty; None when all was given out.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        if self.chunk.is_empty() {
            return None;
        }
        if self.dot_due {
            self.dot_due = false;
            self.stuffing = Some(LineState::Within);
            return Some(Bytes::from_static(b"."));
        }
        let end = match self.stuffing {
            None => self.chunk.len(),
            Some(state) => match state.next_dot(&self.chunk) {
                None => self.chunk.len(),
                Some(0) => {
                    self.dot_due = true;
                    return self.next();
                }
                Some(dot) => {
                    self.dot_due = true;
                    dot
                }
            },
        };
        let piece = self.chunk.split_to(end);
        self.stuffing = self.stuffing.map(|state| state.after(&piece));
        self.advance();
        Some(piece)
    }

    /// Goes on to the next chunk that holds something.
    fn advance(&mut self) {
        while self.chunk.is_empty() {
            match self.rest.next() {
                Some(chunk) => self.chunk = chunk,
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Dot-stuffing as the RFC tells it, byte by byte.
    fn stuffed_plainly(content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for (at, &byte) in content.iter().enumerate() {
            if byte == b'.' && (at == 0 || content[..at].ends_with(b"\r\n")) {
                out.push(b'.');
            }
            out.push(byte);
        }
        out.extend_from_slice(if content.is_empty() || content.ends_with(b"\r\n") { b".\r\n" } else { b"\r\n.\r\n" });
        out
    }

    fn stuffed(chunks: &[Bytes]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut pieces = ContentPieces::stuffed(chunks.to_vec(), LineState::Start);
        while let Some(piece) = pieces.next() {
            assert!(!piece.is_empty());
            out.extend_from_slice(&piece);
        }
        assert!(pieces.is_done());
        let end = chunks.iter().fold(LineState::Start, |state, chunk| state.after(chunk));
        out.extend_from_slice(&end.final_dot());
        out
    }

    #[test]
    fn content_without_leading_dots_is_one_uncopied_piece() {
        let content = Bytes::from(b"Subject: x\r\n\r\na.b ..\r\n".to_vec());
        let mut pieces = ContentPieces::stuffed(vec![content.clone()], LineState::Start);
        let piece = pieces.next().unwrap();
        assert_eq!(piece.as_ptr(), content.as_ptr());
        assert_eq!(piece, content);
        assert!(pieces.is_done());
        assert_eq!(pieces.next(), None);
    }

    #[test]
    fn empty_chunks_give_no_pieces() {
        let pieces = ContentPieces::plain(vec![Bytes::new(), Bytes::new()]);
        assert!(pieces.is_done());
        assert_eq!(stuffed(&[]), b".\r\n");
        assert_eq!(LineState::Within.line_end(), b"\r\n");
        assert_eq!(LineState::Start.line_end(), b"");
    }

    proptest! {
        #[test]
        fn any_chunks_are_stuffed_as_the_rfc_tells(
            content in proptest::collection::vec(prop_oneof![Just(b'.'), Just(b'\r'), Just(b'\n'), Just(b'x')], 0..60),
            cuts in proptest::collection::vec(0usize..60, 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(content.len())).collect();
            cuts.extend([0, content.len()]);
            cuts.sort_unstable();
            let chunks: Vec<Bytes> =
                cuts.windows(2).map(|pair| Bytes::copy_from_slice(&content[pair[0]..pair[1]])).collect();
            prop_assert_eq!(stuffed(&chunks), stuffed_plainly(&content));
        }
    }
}
