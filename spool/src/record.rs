//! Records: one fact each, as bytes. A message (envelope and content, or where its content lies), an outcome (what an
//! attempt at one recipient came to, or an operator's act), a note, a cut (what is void in a segment that failed).
//!
//! A record is a head of 40 bytes, meta bytes, and for messages the content. The head's checksum covers head and meta
//! and begins with the use's generation, the segment and the offset, so a record is valid in its own place alone; the
//! content has a checksum of its own, so that content can be checked when it is sent and skipped at recovery. Unknown
//! kinds with a good checksum are passed over. Not for batches of records (see `batch`). Every input is safe to decode.

use crate::segment::{SegmentId, get_u16, get_u32, get_u64};
use bytes::{BufMut, BytesMut};

/// Bytes of a record before its meta bytes.
pub const HEAD_LEN: usize = 40;

/// The most recipients that one message may have.
pub const RECIPIENTS_MAX: u32 = 65_536;

/// Bytes of an outcome's meta before its details.
const OUTCOME_LEN: usize = 24;
/// Bytes of one folded recipient state.
const FOLD_LEN: usize = 12;
/// Bytes of one cut.
const CUT_LEN: usize = 16;

const RECORD_VERSION: u8 = 1;
/// Content in a file of its own.
const FLAG_SPILLED: u16 = 1;
/// A survivor moved from another segment, with the states of its recipients.
const FLAG_MOVED: u16 = 2;
/// Above the flags stands how many octets of a content's own file come before the content.
const FRONT_SHIFT: u16 = 4;

/// The most octets that may stand before the content in a file of its own.
pub const FRONT_MAX: u32 = u16::MAX as u32 >> FRONT_SHIFT;

/// What a record is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A message.
    Message = 1,
    /// What came of one attempt at one recipient.
    Outcome = 2,
    /// Anything else that must last: opaque bytes.
    Note = 3,
    /// Says where segments of earlier use really end.
    Cut = 4,
}

impl RecordKind {
    /// The kind that a byte stands for.
    pub const fn from_byte(byte: u8) -> Option<RecordKind> {
        match byte {
            1 => Some(RecordKind::Message),
            2 => Some(RecordKind::Outcome),
            3 => Some(RecordKind::Note),
            4 => Some(RecordKind::Cut),
            _ => None,
        }
    }
}

/// What is recorded about one recipient.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OutcomeKind {
    /// Waits for another attempt.
    Deferred = 1,
    /// Final: the next host took it.
    Delivered = 2,
    /// Final: refused for good.
    Bounced = 3,
    /// Final: its time ran out.
    Expired = 4,
    /// Final: not attempted, by a suppression rule.
    Suppressed = 5,
    /// Final: ended by an operator.
    Deleted = 6,
    /// An operator stopped attempts.
    Held = 7,
    /// An operator ended a hold.
    Released = 8,
}

impl OutcomeKind {
    /// Whether the recipient is done with.
    pub const fn is_final(self) -> bool {
        match self {
            OutcomeKind::Deferred | OutcomeKind::Held | OutcomeKind::Released => false,
            OutcomeKind::Delivered
            | OutcomeKind::Bounced
            | OutcomeKind::Expired
            | OutcomeKind::Suppressed
            | OutcomeKind::Deleted => true,
        }
    }

    /// The kind that a byte stands for.
    pub const fn from_byte(byte: u8) -> Option<OutcomeKind> {
        match byte {
            1 => Some(OutcomeKind::Deferred),
            2 => Some(OutcomeKind::Delivered),
            3 => Some(OutcomeKind::Bounced),
            4 => Some(OutcomeKind::Expired),
            5 => Some(OutcomeKind::Suppressed),
            6 => Some(OutcomeKind::Deleted),
            7 => Some(OutcomeKind::Held),
            8 => Some(OutcomeKind::Released),
            _ => None,
        }
    }
}

/// What is known of one recipient, all outcomes folded into one.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct RecipientFold {
    /// The last outcome, the final one if there is one; `None`: nothing happened yet.
    pub kind: Option<OutcomeKind>,
    /// Attempts so far.
    pub attempts: u16,
    /// When the next attempt is due, milliseconds since 1970; 0 when final or never attempted.
    pub next_due_ms: u64,
}

impl RecipientFold {
    /// Whether the recipient is done with.
    pub fn is_final(&self) -> bool {
        self.kind.is_some_and(OutcomeKind::is_final)
    }
}

/// An outcome to record.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// The message.
    pub id: u64,
    /// The recipient's place in the envelope.
    pub recipient: u32,
    /// What happened.
    pub kind: OutcomeKind,
    /// Attempts so far.
    pub attempts: u16,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// When the next attempt is due, milliseconds since 1970; 0 when final.
    pub next_due_ms: u64,
    /// Anything the owner wants to keep: remote host, reply. At most 64 KiB; what is beyond is cut off.
    pub details: &'a [u8],
}

/// The most bytes of details that an outcome keeps.
pub const DETAILS_LEN_MAX: usize = 65_536;

/// Where a segment's records really end, as stated by a later record.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub segment: SegmentId,
    /// Which use of it.
    pub generation: u64,
    /// Everything at or above this offset is void; everything below was durable.
    pub end: u32,
}

/// The head of a record, without what depends on its place.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordHead {
    /// The kind's byte, which may be unknown to this version.
    pub(crate) kind: u8,
    pub(crate) flags: u16,
    pub(crate) meta_len: u32,
    /// Octets of content, inline or spilled.
    pub(crate) content_len: u32,
    pub(crate) content_crc: u32,
    /// Of a message.
    pub(crate) recipients: u32,
    pub(crate) id: u64,
    /// Orders all records of a spool that are about one message, over restarts too.
    pub(crate) order: u64,
}

impl RecordHead {
    /// The head of a message.
    pub(crate) fn message(id: u64, recipients: u32, content_len: u32, content_crc: u32) -> RecordHead {
        RecordHead { content_len, content_crc, recipients, id, ..RecordHead::plain(RecordKind::Message) }
    }

    /// The same message with its content in a file of its own, behind `front` octets that are not of it; at most
    /// [`FRONT_MAX`].
    pub(crate) fn with_file(self, front: u32) -> RecordHead {
        let front = (front.min(FRONT_MAX) as u16) << FRONT_SHIFT;
        RecordHead { flags: self.flags | FLAG_SPILLED | front, ..self }
    }

    /// The head of a record that has meta bytes alone.
    pub(crate) fn plain(kind: RecordKind) -> RecordHead {
        RecordHead {
            kind: kind as u8,
            flags: 0,
            meta_len: 0,
            content_len: 0,
            content_crc: 0,
            recipients: 0,
            id: 0,
            order: 0,
        }
    }

    /// The same record as a moved survivor.
    pub(crate) fn moved(self) -> RecordHead {
        RecordHead { flags: self.flags | FLAG_MOVED, ..self }
    }

    pub(crate) fn is(&self, kind: RecordKind) -> bool {
        self.kind == kind as u8
    }

    pub(crate) fn spilled(&self) -> bool {
        self.flags & FLAG_SPILLED != 0
    }

    /// Octets that stand before the content in its own file.
    pub(crate) fn front(&self) -> u32 {
        u32::from(self.flags >> FRONT_SHIFT)
    }

    pub(crate) fn is_moved(&self) -> bool {
        self.flags & FLAG_MOVED != 0
    }

    /// Octets of content that follow the meta bytes.
    pub(crate) fn inline_len(&self) -> u32 {
        if self.spilled() { 0 } else { self.content_len }
    }

    /// Bytes of the whole record.
    pub(crate) fn total_len(&self) -> u64 {
        HEAD_LEN as u64 + u64::from(self.meta_len) + u64::from(self.inline_len())
    }

    /// Reserves the head's place in `out`; the meta bytes are to be put behind it and then [`RecordHead::seal`]ed.
    pub(crate) fn begin(out: &mut BytesMut) -> usize {
        let start = out.len();
        out.put_bytes(0, HEAD_LEN);
        start
    }

    /// Completes a record begun at `start` of `out`, whose meta bytes end `out`; it will stand at `offset`.
    pub(crate) fn seal(&mut self, out: &mut BytesMut, start: usize, seed: u32, offset: u32) {
        self.meta_len = (out.len() - start - HEAD_LEN) as u32;
        let head = &mut out[start..start + HEAD_LEN];
        head[0] = self.kind;
        head[1] = RECORD_VERSION;
        head[2..4].copy_from_slice(&self.flags.to_le_bytes());
        head[8..12].copy_from_slice(&self.meta_len.to_le_bytes());
        head[12..16].copy_from_slice(&self.content_len.to_le_bytes());
        head[16..20].copy_from_slice(&self.content_crc.to_le_bytes());
        head[20..24].copy_from_slice(&self.recipients.to_le_bytes());
        head[24..32].copy_from_slice(&self.id.to_le_bytes());
        head[32..40].copy_from_slice(&self.order.to_le_bytes());
        let sum = checksum(&out[start..], seed, offset);
        out[start + 4..start + 8].copy_from_slice(&sum.to_le_bytes());
    }

    /// Reads the lengths of a record without trusting them: `None` when there are not even `HEAD_LEN` bytes.
    pub(crate) fn peek(bytes: &[u8]) -> Option<RecordHead> {
        let head = bytes.get(..HEAD_LEN)?;
        Some(RecordHead {
            kind: head[0],
            flags: get_u16(head, 2),
            meta_len: get_u32(head, 8),
            content_len: get_u32(head, 12),
            content_crc: get_u32(head, 16),
            recipients: get_u32(head, 20),
            id: get_u64(head, 24),
            order: get_u64(head, 32),
        })
    }
}

/// The checksum of head and meta bytes, the head's own checksum left out.
fn checksum(head_and_meta: &[u8], seed: u32, offset: u32) -> u32 {
    let placed = crc32c::crc32c_append(seed, &offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(placed, &head_and_meta[..4]), &head_and_meta[8..])
}

/// A record whose head and meta bytes were checked.
#[derive(Copy, Clone, Debug)]
pub(crate) struct RecordView<'a> {
    pub(crate) head: RecordHead,
    pub(crate) meta: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// Checks the record that begins `bytes` and stands at `offset` of the segment with this checksum seed.
    pub(crate) fn decode(bytes: &'a [u8], seed: u32, offset: u32) -> Option<RecordView<'a>> {
        let head = RecordHead::peek(bytes)?;
        let end = HEAD_LEN.checked_add(head.meta_len as usize)?;
        let covered = bytes.get(..end)?;
        if covered[1] != RECORD_VERSION || checksum(covered, seed, offset) != get_u32(covered, 4) {
            return None;
        }
        if head.is(RecordKind::Message) && head.recipients > RECIPIENTS_MAX {
            return None;
        }
        Some(RecordView { head, meta: &covered[HEAD_LEN..] })
    }

    /// Where a message record's envelope begins within its meta bytes, and the folded states before it.
    pub(crate) fn message(&self) -> Option<MessageView<'a>> {
        let count = self.meta.get(..4).map(|b| get_u32(b, 0))? as usize;
        let fits = count == 0 || count == self.head.recipients as usize;
        let end = count.checked_mul(FOLD_LEN)?.checked_add(4)?;
        if !self.head.is(RecordKind::Message) || !fits {
            return None;
        }
        Some(MessageView { states: self.meta.get(4..end)?, envelope: self.meta.get(end..)? })
    }

    /// The outcome.
    pub(crate) fn outcome(&self) -> Option<Outcome<'a>> {
        let meta = self.meta;
        if !self.head.is(RecordKind::Outcome) || meta.len() < OUTCOME_LEN {
            return None;
        }
        Some(Outcome {
            id: self.head.id,
            recipient: get_u32(meta, 0),
            kind: OutcomeKind::from_byte(meta[4])?,
            attempts: get_u16(meta, 6),
            at_ms: get_u64(meta, 8),
            next_due_ms: get_u64(meta, 16),
            details: &meta[OUTCOME_LEN..],
        })
    }

    /// The cuts; none for other kinds.
    pub(crate) fn cuts(&self) -> impl Iterator<Item = Cut> + 'a {
        let meta = if self.head.is(RecordKind::Cut) { self.meta } else { &[] };
        meta.chunks_exact(CUT_LEN).map(|b| Cut {
            segment: SegmentId(get_u32(b, 0)),
            end: get_u32(b, 4),
            generation: get_u64(b, 8),
        })
    }
}

/// The meta bytes of a message, taken apart.
#[derive(Copy, Clone, Debug)]
pub(crate) struct MessageView<'a> {
    states: &'a [u8],
    pub(crate) envelope: &'a [u8],
}

impl MessageView<'_> {
    /// The folded states of a message that was moved or came to be held, one per recipient; empty for others.
    pub(crate) fn folds(&self) -> Vec<RecipientFold> {
        let fold = |b: &[u8]| RecipientFold {
            kind: OutcomeKind::from_byte(b[0]),
            attempts: get_u16(b, 2),
            next_due_ms: get_u64(b, 4),
        };
        self.states.chunks_exact(FOLD_LEN).map(fold).collect()
    }
}

/// Puts a message's meta bytes.
pub(crate) fn put_message(out: &mut BytesMut, states: &[RecipientFold], envelope: &[u8]) {
    out.put_u32_le(states.len() as u32);
    for state in states {
        out.put_u8(state.kind.map_or(0, |kind| kind as u8));
        out.put_u8(0);
        out.put_u16_le(state.attempts);
        out.put_u64_le(state.next_due_ms);
    }
    out.put_slice(envelope);
}

/// Puts an outcome's meta bytes.
pub(crate) fn put_outcome(out: &mut BytesMut, outcome: &Outcome<'_>) {
    out.put_u32_le(outcome.recipient);
    out.put_u8(outcome.kind as u8);
    out.put_u8(0);
    out.put_u16_le(outcome.attempts);
    out.put_u64_le(outcome.at_ms);
    out.put_u64_le(outcome.next_due_ms);
    out.put_slice(&outcome.details[..outcome.details.len().min(DETAILS_LEN_MAX)]);
}

/// Puts the meta bytes of a cut record.
pub(crate) fn put_cuts(out: &mut BytesMut, cuts: &[Cut]) {
    for cut in cuts {
        out.put_u32_le(cut.segment.0);
        out.put_u32_le(cut.end);
        out.put_u64_le(cut.generation);
    }
}

/// Bytes that the record of a message takes in a batch.
pub const fn message_record_len(envelope_len: usize, inline_len: usize) -> usize {
    HEAD_LEN + 4 + envelope_len + inline_len
}

/// Bytes that the record of an outcome takes in a batch.
pub const fn outcome_record_len(details_len: usize) -> usize {
    HEAD_LEN + OUTCOME_LEN + if details_len < DETAILS_LEN_MAX { details_len } else { DETAILS_LEN_MAX }
}

/// Bytes that folded states of recipients add to a message's record.
pub const fn folds_len(recipients: usize) -> usize {
    recipients * FOLD_LEN
}

/// Bytes that the record of cuts takes in a batch.
pub(crate) const fn cuts_record_len(cuts: usize) -> usize {
    HEAD_LEN + cuts * CUT_LEN
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_fold() -> impl Strategy<Value = RecipientFold> {
        (0u8..9, any::<u16>(), any::<u64>()).prop_map(|(kind, attempts, next_due_ms)| RecipientFold {
            kind: OutcomeKind::from_byte(kind),
            attempts,
            next_due_ms,
        })
    }

    proptest! {
        #[test]
        fn messages_round_trip(
            id: u64, order: u64, crc: u32, len in 0u32..1_000_000, spilled in proptest::option::of(0..=FRONT_MAX), seed: u32, offset: u32,
            states in proptest::collection::vec(any_fold(), 0..5),
            envelope in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut head = RecordHead::message(id, states.len() as u32, len, crc);
            if let Some(front) = spilled {
                head = head.with_file(front);
                prop_assert_eq!(head.front(), front);
            }
            prop_assert_eq!(head.spilled(), spilled.is_some());
            head.order = order;
            let mut out = BytesMut::from(&b"before"[..]);
            let start = RecordHead::begin(&mut out);
            put_message(&mut out, &states, &envelope);
            head.seal(&mut out, start, seed, offset);
            let view = RecordView::decode(&out[6..], seed, offset).unwrap();
            prop_assert_eq!(view.head, head);
            let message = view.message().unwrap();
            prop_assert_eq!(message.folds(), states);
            prop_assert_eq!(message.envelope, &envelope[..]);
            prop_assert!(view.outcome().is_none());
            prop_assert!(RecordView::decode(&out[6..], seed ^ 1, offset).is_none());
            prop_assert!(RecordView::decode(&out[6..], seed, offset ^ 1).is_none());
        }

        #[test]
        fn outcomes_round_trip(
            id: u64, recipient: u32, kind in 1u8..9, attempts: u16, at_ms: u64, next_due_ms: u64,
            details in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let kind = OutcomeKind::from_byte(kind).unwrap();
            let outcome = Outcome { id, recipient, kind, attempts, at_ms, next_due_ms, details: &details };
            let mut head = RecordHead { id, ..RecordHead::plain(RecordKind::Outcome) };
            let mut out = BytesMut::new();
            let start = RecordHead::begin(&mut out);
            put_outcome(&mut out, &outcome);
            head.seal(&mut out, start, 1, 2);
            prop_assert_eq!(out.len(), outcome_record_len(details.len()));
            prop_assert_eq!(RecordView::decode(&out, 1, 2).unwrap().outcome(), Some(outcome));
        }

        #[test]
        fn any_flipped_bit_is_seen(place in 0usize..HEAD_LEN + 28, bit in 0u8..8) {
            let mut head = RecordHead::plain(RecordKind::Outcome);
            let details = b"4.2.";
            let outcome = Outcome {
                id: 0, recipient: 1, kind: OutcomeKind::Deferred, attempts: 1, at_ms: 2, next_due_ms: 3, details,
            };
            let mut out = BytesMut::new();
            let start = RecordHead::begin(&mut out);
            put_outcome(&mut out, &outcome);
            head.seal(&mut out, start, 9, 4144);
            out[place] ^= 1 << bit;
            prop_assert!(RecordView::decode(&out, 9, 4144).is_none());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), seed: u32) {
            if let Some(view) = RecordView::decode(&bytes, seed, 0) {
                let _ = (view.message(), view.outcome(), view.cuts().count());
            }
            for kind in 0..6 {
                let head = RecordHead { kind, recipients: 3, ..RecordHead::plain(RecordKind::Note) };
                let view = RecordView { head, meta: &bytes };
                let _ = (view.message().map(|m| m.folds()), view.outcome(), view.cuts().count());
            }
        }
    }

    #[test]
    fn cuts_round_trip() {
        let cuts = [
            Cut { segment: SegmentId::new(1, 2), generation: 3, end: 4096 },
            Cut { segment: SegmentId::new(4, 5), generation: 6, end: 0 },
        ];
        let mut out = BytesMut::new();
        let start = RecordHead::begin(&mut out);
        put_cuts(&mut out, &cuts);
        RecordHead::plain(RecordKind::Cut).seal(&mut out, start, 0, 0);
        assert_eq!(out.len(), cuts_record_len(2));
        assert_eq!(RecordView::decode(&out, 0, 0).unwrap().cuts().collect::<Vec<_>>(), cuts);
    }
}
