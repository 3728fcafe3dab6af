//! A peer's replies: the cut matters not; what is kept is bounded; written by us, a reply is read again as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringpost::limits::{PEER_REPLY_LINES_MAX, PEER_REPLY_OCTETS_MAX};
use ringpost::pieces::Pieces;
use ringpost::reply::{Reply, ReplyError, ReplyReader};

fn read(pieces: &[&[u8]]) -> Vec<Result<Reply, ReplyError>> {
    let mut reader = ReplyReader::new();
    let mut replies = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() {
            let (consumed, reply) = reader.handle_input(rest);
            assert!(consumed > 0 && (consumed == rest.len() || reply.is_some()));
            rest = &rest[consumed..];
            replies.extend(reply);
        }
    }
    replies
}

fuzz_target!(|input: &[u8]| {
    let Some(pieces) = Pieces::of(input) else { return };
    let whole = read(&[pieces.bytes]);
    assert_eq!(whole, read(&pieces.cut()));
    for reply in whole.into_iter().flatten() {
        assert!((200..600).contains(&reply.code));
        assert!(reply.text.len() <= PEER_REPLY_OCTETS_MAX);
        assert!(reply.text.split('\n').count() <= PEER_REPLY_LINES_MAX);
        assert!(!reply.to_string().contains(char::is_control));
        let mut out = Vec::new();
        reply.write_to(&mut out);
        assert!(out.split_inclusive(|&octet| octet == b'\n').all(|line| line.len() <= 512 && line.ends_with(b"\r\n")));
        // Folding may take more lines than a reader bears.
        if let [Ok(again)] = &read(&[&out])[..] {
            assert_eq!(again.code, reply.code);
            assert!(reply.enhanced.is_none() || again.enhanced == reply.enhanced);
        } else {
            assert!(out.iter().filter(|&&octet| octet == b'\n').count() > PEER_REPLY_LINES_MAX);
        }
    }
});
