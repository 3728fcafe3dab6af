//! Segments: the files of the log, their names, headers and footers.
//!
//! A segment is a file of fixed size, zero-filled and synced before its first use and used again after it was
//! recycled. Block 0 holds the header, batches follow, and a footer (an index of all records) ends a sealed segment.
//! Each use has a random generation that enters every checksum, so that what an earlier use left behind is never taken
//! for new. Not for batches and records themselves. Decoding never panics: bytes that are not what they should be
//! give `None` or an error that says why.

use crate::record::RecordKind;
use std::fmt;

/// The unit in which segments are written: no block is written twice in one use of a segment. Bytes.
pub const BLOCK: u32 = 4096;

/// Version of the format, in every header. A newer one is refused, never guessed at.
pub const FORMAT_VERSION: u16 = 1;

/// The smallest segment: header, one batch, footer. Bytes.
pub const SEGMENT_SIZE_MIN: u32 = 4 * BLOCK;

/// The greatest sequence that a segment can have: 24 bits. At 64 MiB each this is 1 PiB per log.
pub const SEQUENCE_MAX: u32 = (1 << 24) - 1;

const HEADER_MAGIC: [u8; 8] = *b"RPSEGMT\x01";
const FOOTER_MAGIC: [u8; 8] = *b"RPFOOTR\x01";
/// Bytes of block 0 that carry the header; the rest of the block is zero.
const HEADER_LEN: usize = 64;
/// Bytes of the trailer, the last bytes of a sealed segment.
const TRAILER_LEN: usize = 64;
/// Bytes of one entry of a footer.
const ENTRY_LEN: usize = 24;

/// `offset` rounded up to a whole block.
pub(crate) const fn round_up(offset: u32) -> u32 {
    offset.div_ceil(BLOCK) * BLOCK
}

/// Reads a little-endian number at a place that the caller has checked to be inside `bytes`.
pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

/// See [`get_u16`].
pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// See [`get_u16`].
pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Names a segment: the log's number in the upper 8 bits, the sequence in the lower 24.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u32);

impl SegmentId {
    /// The segment of log `log` with this sequence (at most [`SEQUENCE_MAX`]; higher bits are cut off).
    pub const fn new(log: u8, sequence: u32) -> SegmentId {
        SegmentId((log as u32) << 24 | (sequence & SEQUENCE_MAX))
    }

    /// Which log it belongs to.
    pub const fn log(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Its place in the log; later segments have greater ones.
    pub const fn sequence(self) -> u32 {
        self.0 & SEQUENCE_MAX
    }

    /// The name of its file: "LL-SSSSSS.seg" in hexadecimal.
    pub fn file_name(self) -> String {
        format!("{self}.seg")
    }

    /// The segment a file name stands for, if it is the name of a segment.
    pub fn from_file_name(name: &str) -> Option<SegmentId> {
        let digits = name.strip_suffix(".seg")?;
        let (log, sequence) = digits.split_once('-')?;
        let hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if log.len() != 2 || sequence.len() != 6 || !hex(log) || !hex(sequence) {
            return None;
        }
        Some(SegmentId::new(u8::from_str_radix(log, 16).ok()?, u32::from_str_radix(sequence, 16).ok()?))
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}-{:06x}", self.log(), self.sequence())
    }
}

/// Where the content of a message lies.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContentRef {
    /// The segment of the message's record, which is also the message's home.
    pub segment: SegmentId,
    /// Of the content in the segment, bytes; when spilled, in its file.
    pub offset: u32,
    /// Octets of content.
    pub len: u32,
    /// CRC-32C of the content.
    pub crc: u32,
    /// Whether the content stands in a file of its own, content/ID.
    pub spilled: bool,
}

/// What every checksum of one use of a segment begins with.
pub(crate) fn checksum_seed(segment: SegmentId, generation: u64) -> u32 {
    #[cfg(feature = "planted-faults")]
    if crate::planted::is(crate::planted::PlantedFault::StaleGeneration) {
        return 0;
    }
    crc32c::crc32c_append(crc32c::crc32c(&generation.to_le_bytes()), &segment.0.to_le_bytes())
}

/// The contents of block 0.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Must be that of the file's name: a recycled file keeps its old header until the first write of its new use.
    pub segment: SegmentId,
    /// Random, new for each use.
    pub generation: u64,
    /// The first sequence of the run of the program that wrote this segment. What a batch says about the durable end
    /// holds for segments of its own run alone.
    pub epoch: u32,
    /// Bytes of the file.
    pub size: u32,
    /// The segment that the same run filled before this one.
    pub previous: Option<SegmentId>,
    /// Where the batches of `previous` end; 0 when there is none.
    pub previous_end: u32,
}

/// Why block 0 does not tell of a use of the segment.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// No header, a header of another segment, or a damaged one.
    Absent,
    /// Written by a newer version of the program.
    Version(u16),
}

impl SegmentHeader {
    /// Block 0, whole.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(BLOCK as usize);
        block.extend_from_slice(&HEADER_MAGIC);
        block.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        block.extend_from_slice(&[0, 0]);
        block.extend_from_slice(&self.segment.0.to_le_bytes());
        block.extend_from_slice(&self.generation.to_le_bytes());
        block.extend_from_slice(&self.epoch.to_le_bytes());
        block.extend_from_slice(&self.size.to_le_bytes());
        block.extend_from_slice(&self.previous.map_or(u32::MAX, |id| id.0).to_le_bytes());
        block.extend_from_slice(&self.previous_end.to_le_bytes());
        block.resize(HEADER_LEN - 4, 0);
        let sum = crc32c::crc32c_append(checksum_seed(self.segment, self.generation), &block);
        block.extend_from_slice(&sum.to_le_bytes());
        block.resize(BLOCK as usize, 0);
        block
    }

    /// Reads the header of the segment that the file's name says.
    pub fn decode(block: &[u8], named: SegmentId) -> Result<SegmentHeader, HeaderError> {
        if block.len() < HEADER_LEN || block[..8] != HEADER_MAGIC {
            return Err(HeaderError::Absent);
        }
        let header = SegmentHeader {
            segment: SegmentId(get_u32(block, 12)),
            generation: get_u64(block, 16),
            epoch: get_u32(block, 24),
            size: get_u32(block, 28),
            previous: match get_u32(block, 32) {
                u32::MAX => None,
                id => Some(SegmentId(id)),
            },
            previous_end: get_u32(block, 36),
        };
        let sum = crc32c::crc32c_append(checksum_seed(header.segment, header.generation), &block[..HEADER_LEN - 4]);
        if sum != get_u32(block, HEADER_LEN - 4) || header.segment != named {
            return Err(HeaderError::Absent);
        }
        match get_u16(block, 8) {
            FORMAT_VERSION => Ok(header),
            version => Err(HeaderError::Version(version)),
        }
    }
}

/// One record in a footer: enough to read the record without looking at its neighbours.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FooterEntry {
    /// What it is.
    pub kind: RecordKind,
    /// Of the record's head in the segment, bytes.
    pub offset: u32,
    /// Bytes between the head and the content.
    pub meta_len: u32,
    /// Octets of content that follow inline: 0 for spilled content.
    pub inline_len: u32,
    /// The message that it is about; 0 for notes.
    pub id: u64,
}

/// What the last bytes of a sealed segment say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The use's generation.
    pub generation: u64,
    /// The use's epoch, as in the header.
    pub epoch: u32,
    /// Where the batches end.
    pub appended_end: u32,
    /// Every record, in the order of offsets.
    pub entries: Vec<FooterEntry>,
}

/// The bytes that a footer with `entries` entries takes at the end of a segment, a whole number of blocks.
pub(crate) const fn footer_len(entries: usize) -> u32 {
    round_up((entries * ENTRY_LEN + TRAILER_LEN) as u32)
}

/// The footer's last bytes, found at the very end of the segment: they say how much there is to read before them.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) generation: u64,
    pub(crate) epoch: u32,
    pub(crate) appended_end: u32,
    pub(crate) count: u32,
    entries_sum: u32,
}

impl Trailer {
    /// Bytes to read from the end of the segment to see it.
    pub(crate) const LEN: u32 = TRAILER_LEN as u32;

    /// Reads a trailer; `None` if the bytes are not one of this segment.
    pub(crate) fn decode(bytes: &[u8], segment: SegmentId, size: u32) -> Option<Trailer> {
        if bytes.len() != TRAILER_LEN || bytes[..8] != FOOTER_MAGIC || get_u16(bytes, 8) != FORMAT_VERSION {
            return None;
        }
        let trailer = Trailer {
            generation: get_u64(bytes, 16),
            epoch: get_u32(bytes, 36),
            appended_end: get_u32(bytes, 32),
            count: get_u32(bytes, 24),
            entries_sum: get_u32(bytes, 28),
        };
        let sum = crc32c::crc32c_append(checksum_seed(segment, trailer.generation), &bytes[..TRAILER_LEN - 4]);
        let room = size.checked_sub(trailer.appended_end)?;
        let sound = sum == get_u32(bytes, TRAILER_LEN - 4)
            && get_u32(bytes, 12) == segment.0
            && trailer.count as u64 * ENTRY_LEN as u64 + TRAILER_LEN as u64 <= u64::from(room);
        sound.then_some(trailer)
    }

    /// Whether bytes that [`Trailer::decode`] refused cannot have been left by anything but damage: the end of a file
    /// holds zeros, or the trailer of this or an earlier use, and no other write reaches it.
    pub(crate) fn is_damaged(bytes: &[u8], size: u32) -> bool {
        if bytes.len() != TRAILER_LEN || bytes.iter().all(|byte| *byte == 0) {
            return false;
        }
        Trailer::decode(bytes, SegmentId(get_u32(bytes, 12)), size).is_none()
    }

    /// Where the entries stand: offset in the segment and bytes.
    pub(crate) fn entries_at(&self, size: u32) -> (u32, u32) {
        let len = self.count * ENTRY_LEN as u32;
        (size - TRAILER_LEN as u32 - len, len)
    }
}

impl Footer {
    /// The bytes that end the segment: a whole number of blocks, the trailer last.
    pub(crate) fn encode(&self, segment: SegmentId) -> Vec<u8> {
        let len = footer_len(self.entries.len()) as usize;
        let mut bytes = Vec::with_capacity(len);
        bytes.resize(len - TRAILER_LEN - self.entries.len() * ENTRY_LEN, 0);
        let first = bytes.len();
        for entry in &self.entries {
            bytes.extend_from_slice(&[entry.kind as u8, 0, 0, 0]);
            bytes.extend_from_slice(&entry.offset.to_le_bytes());
            bytes.extend_from_slice(&entry.meta_len.to_le_bytes());
            bytes.extend_from_slice(&entry.inline_len.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        let seed = checksum_seed(segment, self.generation);
        let entries_sum = crc32c::crc32c_append(seed, &bytes[first..]);
        let trailer = bytes.len();
        bytes.extend_from_slice(&FOOTER_MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&segment.0.to_le_bytes());
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&entries_sum.to_le_bytes());
        bytes.extend_from_slice(&self.appended_end.to_le_bytes());
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.resize(trailer + TRAILER_LEN - 4, 0);
        let sum = crc32c::crc32c_append(seed, &bytes[trailer..]);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the entries that a trailer tells of; `None` if they are damaged or point outside the batches.
    pub(crate) fn decode(trailer: &Trailer, entries: &[u8], segment: SegmentId) -> Option<Footer> {
        let seed = checksum_seed(segment, trailer.generation);
        let whole = entries.len() == trailer.count as usize * ENTRY_LEN;
        if !whole || crc32c::crc32c_append(seed, entries) != trailer.entries_sum {
            return None;
        }
        let mut read = Vec::with_capacity(trailer.count as usize);
        for bytes in entries.chunks_exact(ENTRY_LEN) {
            let entry = FooterEntry {
                kind: RecordKind::from_byte(bytes[0])?,
                offset: get_u32(bytes, 4),
                meta_len: get_u32(bytes, 8),
                inline_len: get_u32(bytes, 12),
                id: get_u64(bytes, 16),
            };
            let end = u64::from(entry.offset)
                + crate::record::HEAD_LEN as u64
                + u64::from(entry.meta_len)
                + u64::from(entry.inline_len);
            if end > u64::from(trailer.appended_end) {
                return None;
            }
            read.push(entry);
        }
        Some(Footer {
            generation: trailer.generation,
            epoch: trailer.epoch,
            appended_end: trailer.appended_end,
            entries: read,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_back() {
        let id = SegmentId::new(0x1f, 0x00_abcd);
        assert_eq!(id.file_name(), "1f-00abcd.seg");
        assert_eq!(SegmentId::from_file_name("1f-00abcd.seg"), Some(id));
        for name in ["", "1f-00abcd", "1F-00abcd.seg", "1f-0abcd.seg", "+f-00abcd.seg", "1f-00abcd.seg.tmp"] {
            assert_eq!(SegmentId::from_file_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_header_of_another_segment_or_version_is_not_taken() {
        let header = SegmentHeader {
            segment: SegmentId::new(1, 5),
            generation: 99,
            epoch: 3,
            size: 65_536,
            previous: Some(SegmentId::new(1, 4)),
            previous_end: 8192,
        };
        let mut block = header.encode();
        assert_eq!(block.len(), BLOCK as usize);
        assert_eq!(SegmentHeader::decode(&block, header.segment), Ok(header));
        assert_eq!(SegmentHeader::decode(&block, SegmentId::new(1, 6)), Err(HeaderError::Absent));
        block[8] = 2;
        let sum = crc32c::crc32c_append(checksum_seed(header.segment, 99), &block[..HEADER_LEN - 4]);
        block[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&block, header.segment), Err(HeaderError::Version(2)));
        block[20] ^= 1;
        assert_eq!(SegmentHeader::decode(&block, header.segment), Err(HeaderError::Absent));
    }

    #[test]
    fn footers_hold_their_entries() {
        let id = SegmentId::new(0, 7);
        let footer = Footer {
            generation: 12,
            epoch: 7,
            appended_end: 40_960,
            entries: (0..300)
                .map(|n| FooterEntry {
                    kind: RecordKind::Message,
                    offset: 4144 + n * 100,
                    meta_len: 20,
                    inline_len: 40,
                    id: u64::from(n),
                })
                .collect(),
        };
        let bytes = footer.encode(id);
        assert_eq!(bytes.len(), footer_len(300) as usize);
        let size = 65_536;
        let trailer = Trailer::decode(&bytes[bytes.len() - TRAILER_LEN..], id, size).unwrap();
        let (at, len) = trailer.entries_at(size);
        let start = at as usize - (size as usize - bytes.len());
        assert_eq!(Footer::decode(&trailer, &bytes[start..start + len as usize], id), Some(footer));
        let last = &mut bytes.clone()[bytes.len() - TRAILER_LEN..];
        assert_eq!(Trailer::decode(last, SegmentId::new(0, 8), size), None);
        assert!(!Trailer::is_damaged(last, size) && !Trailer::is_damaged(&[0; TRAILER_LEN], size));
        for place in [0, 12, 30, 50, 63] {
            last[place] ^= 1;
            assert!(Trailer::is_damaged(last, size));
            last[place] ^= 1;
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), id: u32) {
            let _ = SegmentHeader::decode(&bytes, SegmentId(id));
            if let Some(last) = bytes.last_chunk::<TRAILER_LEN>() {
                let _ = Trailer::decode(last, SegmentId(id), 65_536);
            }
        }
    }
}
