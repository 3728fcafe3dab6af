//! Batches: the frame around the records of one write.
//!
//! A batch starts on a fresh block and no block is written twice in one use of a segment, so a torn write cannot hurt
//! what was acknowledged before. Its header says how long it is, how many records it holds and how far the log was
//! known to be durable when it was written; that last number tells damage from a tail that was never synced. Its
//! records carry their own checksums, seeded alike, so a batch is whole if its header, every record and every content
//! hold. Not for deciding what to do with a broken batch: recovery does.

use crate::segment::{FORMAT_VERSION, SegmentId, checksum_seed, get_u16, get_u32, get_u64};

/// Bytes of a batch's header; the first record follows at once.
pub const BATCH_HEAD_LEN: u32 = 48;

const MAGIC: [u8; 4] = *b"RPB\x01";

/// A place up to which a run of a log is known to be on stable storage. Orders as the log does.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DurableEnd {
    /// Sequence of the segment; all earlier ones of the same run are settled.
    pub sequence: u32,
    /// Bytes of that segment.
    pub offset: u32,
}

/// The header of a batch.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct BatchHead {
    /// The segment's generation.
    pub generation: u64,
    /// Counts the batches of this use of the segment from 0.
    pub sequence: u32,
    /// How many records follow.
    pub records: u32,
    /// Bytes of header and records; zeros fill the last block.
    pub len: u32,
    /// How far the log was durable when this was written.
    pub durable_end: DurableEnd,
}

impl BatchHead {
    /// The header's bytes for a batch at `offset` of `segment`.
    pub fn encode(&self, segment: SegmentId, offset: u32) -> [u8; BATCH_HEAD_LEN as usize] {
        let mut bytes = [0; BATCH_HEAD_LEN as usize];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.records.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..32].copy_from_slice(&offset.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.durable_end.sequence.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.durable_end.offset.to_le_bytes());
        let sum = crc32c::crc32c_append(checksum_seed(segment, self.generation), &bytes[..44]);
        bytes[44..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the header of a batch that was written at `offset` of `segment`, of whatever generation. `None` if there
    /// is none: zeros, an older use, a torn or damaged header.
    pub fn decode(bytes: &[u8], segment: SegmentId, offset: u32) -> Option<BatchHead> {
        let bytes = bytes.get(..BATCH_HEAD_LEN as usize)?;
        if bytes[..4] != MAGIC || get_u16(bytes, 4) != FORMAT_VERSION || get_u32(bytes, 28) != offset {
            return None;
        }
        let head = BatchHead {
            generation: get_u64(bytes, 8),
            sequence: get_u32(bytes, 16),
            records: get_u32(bytes, 20),
            len: get_u32(bytes, 24),
            durable_end: DurableEnd { sequence: get_u32(bytes, 32), offset: get_u32(bytes, 36) },
        };
        let sum = crc32c::crc32c_append(checksum_seed(segment, head.generation), &bytes[..44]);
        (sum == get_u32(bytes, 44) && head.len >= BATCH_HEAD_LEN).then_some(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(generation: u64, sequence: u32, records: u32, len in BATCH_HEAD_LEN.., segment: u32, at: u32) {
            let head = BatchHead {
                generation, sequence, records, len, durable_end: DurableEnd { sequence: at, offset: records },
            };
            let bytes = head.encode(SegmentId(segment), at);
            prop_assert_eq!(BatchHead::decode(&bytes, SegmentId(segment), at), Some(head));
            prop_assert_eq!(BatchHead::decode(&bytes, SegmentId(segment), at.wrapping_add(4096)), None);
            prop_assert_eq!(BatchHead::decode(&bytes, SegmentId(segment.wrapping_add(1)), at), None);
        }

        #[test]
        fn any_flipped_bit_is_seen(place in 0usize..48, bit in 0u8..8) {
            let head = BatchHead {
                generation: 77, sequence: 3, records: 2, len: 900, durable_end: DurableEnd::default(),
            };
            let mut bytes = head.encode(SegmentId(1), 4096);
            bytes[place] ^= 1 << bit;
            prop_assert_eq!(BatchHead::decode(&bytes, SegmentId(1), 4096), None);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = BatchHead::decode(&bytes, SegmentId(1), 4096);
        }
    }
}
