//! The id of a message: 64 bits that sort by time of acceptance, written as 13 letters and digits.
//!
//! Layout: 42 bits of milliseconds since 2024-01-01, 8 bits of shard, 14 bits of sequence. A shard that
//! takes more than 16,384 messages within a millisecond, or sees its clock go back, runs ahead of the clock.

use crate::clock::UnixTime;
use std::fmt;
use std::str::FromStr;

/// 2024-01-01T00:00:00Z in milliseconds since 1970.
const EPOCH_MS: u64 = 1_704_067_200_000;
const SHARD_BITS: u32 = 8;
const SEQUENCE_BITS: u32 = 14;
/// Crockford's base 32: no I, L, O, U, so that an id survives being read out.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Names one accepted message on this host, for ever.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u64);

impl MessageId {
    /// When it was given out (within the bounds of the module's note on clocks).
    pub fn time(self) -> UnixTime {
        UnixTime::from_millis(EPOCH_MS + (self.0 >> (SHARD_BITS + SEQUENCE_BITS)))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; 13];
        for (place, digit) in text.iter_mut().enumerate() {
            *digit = DIGITS[(self.0 >> (5 * (12 - place)) & 31) as usize];
        }
        // The table holds ASCII alone.
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// Why a text is not a message id.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message id: 13 letters and digits are expected, as in `250 2.0.0 OK: queued as ID`")]
pub struct NotAMessageId;

impl FromStr for MessageId {
    type Err = NotAMessageId;

    fn from_str(text: &str) -> Result<MessageId, NotAMessageId> {
        if text.len() != 13 {
            return Err(NotAMessageId);
        }
        let mut value: u64 = 0;
        for (place, letter) in text.bytes().enumerate() {
            let upper = match letter.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                other => other,
            };
            let digit = DIGITS.iter().position(|&d| d == upper).ok_or(NotAMessageId)? as u64;
            if place == 0 && digit > 15 {
                return Err(NotAMessageId);
            }
            value = value << 5 | digit;
        }
        Ok(MessageId(value))
    }
}

/// Gives out the ids of one shard, each greater than all before it.
#[derive(Debug)]
pub struct MessageIds {
    shard: u8,
    /// Milliseconds and sequence of the last id, without the shard: the id's order within this shard.
    last: u64,
}

impl MessageIds {
    /// The ids of shard `shard`.
    pub fn new(shard: u8) -> MessageIds {
        MessageIds { shard, last: 0 }
    }

    /// The ids of shard `shard`, all later than this time.
    pub fn above(shard: u8, time: UnixTime) -> MessageIds {
        let millis = time.as_millis().saturating_sub(EPOCH_MS);
        MessageIds { shard, last: (millis << SEQUENCE_BITS) | ((1 << SEQUENCE_BITS) - 1) }
    }

    /// Never gives out an id at or below the time of `seen`: called for what recovery finds.
    pub fn advance_past(&mut self, seen: MessageId) {
        let millis = seen.0 >> (SHARD_BITS + SEQUENCE_BITS);
        self.last = self.last.max((millis << SEQUENCE_BITS) | ((1 << SEQUENCE_BITS) - 1));
    }

    /// The next id.
    pub fn next(&mut self, now: UnixTime) -> MessageId {
        let millis = now.as_millis().saturating_sub(EPOCH_MS);
        self.last = (self.last + 1).max(millis << SEQUENCE_BITS);
        let millis = self.last >> SEQUENCE_BITS;
        let sequence = self.last & ((1 << SEQUENCE_BITS) - 1);
        MessageId(millis << (SHARD_BITS + SEQUENCE_BITS) | u64::from(self.shard) << SEQUENCE_BITS | sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_though_the_clock_goes_back() {
        let mut ids = MessageIds::new(3);
        let first = ids.next(UnixTime::from_millis(EPOCH_MS + 5_000));
        let second = ids.next(UnixTime::from_millis(EPOCH_MS + 4_000));
        assert!(second > first);
        assert_eq!(first.time(), UnixTime::from_millis(EPOCH_MS + 5_000));
    }

    #[test]
    fn ids_after_recovery_are_new() {
        let mut old = MessageIds::new(1);
        let seen = (0..40_000).map(|_| old.next(UnixTime::from_millis(EPOCH_MS + 9))).last().unwrap();
        let mut ids = MessageIds::new(1);
        ids.advance_past(seen);
        assert!(ids.next(UnixTime::from_millis(EPOCH_MS)) > seen);
    }

    #[test]
    fn text_and_back() {
        for id in [MessageId(0), MessageId(u64::MAX), MessageId(0x0123_4567_89ab_cdef)] {
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(id.to_string().to_lowercase().parse(), Ok(id));
        }
        assert_eq!("".parse::<MessageId>(), Err(NotAMessageId));
        assert_eq!("ZZZZZZZZZZZZZ".parse::<MessageId>(), Err(NotAMessageId));
        assert_eq!("0000000000é0".parse::<MessageId>(), Err(NotAMessageId));
    }
}
