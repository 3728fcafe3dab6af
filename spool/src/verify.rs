//! Reading a spool for people: `verify` compares everything with its checksums, `dump` tells every record.
//!
//! Nothing is changed, and a spool that is in use may be read: what is being written looks like a torn tail. Not for
//! starting (see `recovery`).

use crate::disk::{Disk, FileId};
use crate::reader::{Reader, WINDOW_SCAN, record_seed};
use crate::record::{HEAD_LEN, OutcomeKind, RecordKind};
use crate::recovery::{Purpose, Recovery, RecoveryError, RecoveryReport, Snapshot, first_batch, hexadecimal};
use crate::segment::{BLOCK, HeaderError, SegmentId, round_up};
use std::fmt;
use std::io;

/// Reads all of a spool, the content of waiting messages included. The report says what a start would find; nothing is
/// changed.
///
/// # Errors
/// See [`RecoveryError`].
pub fn verify(disk: &dyn Disk) -> Result<RecoveryReport, RecoveryError> {
    let snapshot = Snapshot::take(disk).map_err(RecoveryError::List)?;
    Recovery::new(disk, &snapshot, 1, Purpose::Verify).run(&mut |_, _| ())
}

/// One line of a dump. `Display` makes it readable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpLine {
    /// The segment.
    pub segment: SegmentId,
    /// Bytes from its start.
    pub offset: u32,
    /// What is there.
    pub item: DumpItem,
}

/// What a dump found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpItem {
    /// The header of a segment in use.
    Segment {
        /// Its generation.
        generation: u64,
        /// Bytes of the file.
        size: u32,
        /// Whether it has a footer.
        sealed: bool,
    },
    /// A prepared segment, or one of which neither the header nor the first batch can be read.
    Unused,
    /// A segment without a good header: torn or damaged. What follows is told by its first batch.
    Headless {
        /// Its generation.
        generation: u64,
        /// Bytes of the file.
        size: u32,
    },
    /// A batch.
    Batch {
        /// Counts from 0.
        sequence: u32,
        /// Records in it.
        records: u32,
        /// Bytes.
        len: u32,
        /// The durable end that it states: segment sequence and offset.
        durable_end: (u32, u32),
    },
    /// A message.
    Message {
        /// Its id.
        id: u64,
        /// Recipients.
        recipients: u32,
        /// The envelope, encoded.
        envelope: Vec<u8>,
        /// Octets of content.
        content_len: u32,
        /// Whether the content has a file of its own.
        spilled: bool,
        /// Whether it was moved here by reclaim.
        moved: bool,
        /// Whether the content has its checksum; not looked at for spilled content.
        content_good: bool,
    },
    /// An outcome.
    Outcome {
        /// The message.
        id: u64,
        /// The recipient's place.
        recipient: u32,
        /// What happened.
        kind: OutcomeKind,
        /// Attempts so far.
        attempts: u16,
        /// When, milliseconds since 1970.
        at_ms: u64,
        /// When the next attempt is due, milliseconds since 1970.
        next_due_ms: u64,
        /// What the owner kept.
        details: Vec<u8>,
    },
    /// A note.
    Note {
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// The stated end of another segment.
    Cut {
        /// Which.
        segment: SegmentId,
        /// Its end.
        end: u32,
    },
    /// A record of a kind that this version does not know.
    Unknown {
        /// The kind's byte.
        kind: u8,
        /// Bytes of the record.
        len: u64,
    },
    /// A record that cannot be read; the rest of its batch is passed over.
    Damaged,
}

impl fmt::Display for DumpLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &hexadecimal)
    }
}

impl DumpLine {
    /// Writes it as `Display` does, with messages named by `name`.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn write(&self, f: &mut dyn fmt::Write, name: &dyn Fn(u64) -> String) -> fmt::Result {
        write!(f, "{}+{:08x} ", self.segment, self.offset)?;
        match &self.item {
            DumpItem::Segment { generation, size, sealed } => {
                write!(
                    f,
                    "segment generation {generation:016x} size {size} {}",
                    if *sealed { "sealed" } else { "open" }
                )
            }
            DumpItem::Headless { generation, size } => {
                write!(f, "segment WITHOUT A GOOD HEADER generation {generation:016x} size {size}")
            }
            DumpItem::Unused => write!(f, "segment unused"),
            DumpItem::Batch { sequence, records, len, durable_end: (segment, offset) } => write!(
                f,
                "  batch {sequence} records {records} bytes {len} durable to segment {segment:06x} offset {offset:x}"
            ),
            DumpItem::Message { id, recipients, envelope, content_len, spilled, moved, content_good } => {
                write!(f, "    message {} recipients {recipients} envelope {} bytes", name(*id), envelope.len())?;
                write!(f, " content {content_len} bytes{}", if *spilled { " in a file of its own" } else { "" })?;
                let good = if *content_good { "" } else { " CONTENT DAMAGED" };
                write!(f, "{}{good}", if *moved { " moved" } else { "" })
            }
            DumpItem::Outcome { id, recipient, kind, attempts, at_ms, next_due_ms, details } => {
                write!(f, "    outcome {} recipient {recipient} {kind:?} attempts {attempts} at {at_ms}", name(*id))?;
                write!(f, " next {next_due_ms} {}", details.escape_ascii())
            }
            DumpItem::Note { bytes } => write!(f, "    note {}", bytes.escape_ascii()),
            DumpItem::Cut { segment, end } => write!(f, "    cut segment {segment} ends at offset {end:x}"),
            DumpItem::Unknown { kind, len } => write!(f, "    record of unknown kind {kind}, {len} bytes"),
            DumpItem::Damaged => write!(f, "    DAMAGED record; the rest of the batch is passed over"),
        }
    }
}

/// Tells every batch and record of the spool, or of one segment, in the order of segments and offsets. What never
/// became durable is told too: a dump does not judge.
///
/// # Errors
/// The directory or a segment cannot be read.
pub fn dump(disk: &dyn Disk, only: Option<SegmentId>, emit: &mut dyn FnMut(DumpLine)) -> io::Result<()> {
    let mut segments = disk.segments()?;
    segments.retain(|segment| only.is_none_or(|only| only == *segment));
    segments.sort_unstable();
    for segment in segments {
        dump_segment(disk, segment, emit)?;
    }
    Ok(())
}

fn dump_segment(disk: &dyn Disk, segment: SegmentId, emit: &mut dyn FnMut(DumpLine)) -> io::Result<()> {
    let mut reader = Reader::open(disk, FileId::Segment(segment), WINDOW_SCAN)?;
    let mut line = |offset, item| emit(DumpLine { segment, offset, item });
    let sealed = reader.trailer(segment).is_some();
    let generation = match reader.header(segment) {
        Ok(header) => {
            line(0, DumpItem::Segment { generation: header.generation, size: header.size, sealed });
            header.generation
        }
        Err(HeaderError::Absent) => {
            let Some(first) = first_batch(&mut reader, segment) else {
                line(0, DumpItem::Unused);
                return Ok(());
            };
            line(0, DumpItem::Headless { generation: first.generation, size: reader.size() });
            first.generation
        }
        Err(HeaderError::Version(version)) => {
            return Err(io::Error::other(format!("{segment} has format version {version}, which is newer than this")));
        }
    };
    let mut offset = BLOCK;
    while offset < reader.size() {
        let Some(batch) = reader.batch(segment, generation, offset) else {
            offset += BLOCK;
            continue;
        };
        let durable_end = (batch.durable_end.sequence, batch.durable_end.offset);
        line(offset, DumpItem::Batch { sequence: batch.sequence, records: batch.records, len: batch.len, durable_end });
        let seed = record_seed(segment, generation, &batch);
        let (mut at, end) = (offset + crate::batch::BATCH_HEAD_LEN, offset + batch.len);
        for _ in 0..batch.records {
            let Some(len) = dump_record(&mut reader, at, end, seed, &mut line) else {
                line(at, DumpItem::Damaged);
                break;
            };
            at += len as u32;
        }
        offset = round_up(end);
    }
    Ok(())
}

/// Tells the record at `at` and returns its length.
fn dump_record(
    reader: &mut Reader<'_>,
    at: u32,
    end: u32,
    seed: u32,
    line: &mut dyn FnMut(u32, DumpItem),
) -> Option<u64> {
    let view = reader.record(at, end, seed)?;
    let head = view.head;
    let len = head.total_len();
    if let Some(outcome) = view.outcome() {
        line(
            at,
            DumpItem::Outcome {
                id: outcome.id,
                recipient: outcome.recipient,
                kind: outcome.kind,
                attempts: outcome.attempts,
                at_ms: outcome.at_ms,
                next_due_ms: outcome.next_due_ms,
                details: outcome.details.to_vec(),
            },
        );
        return Some(len);
    }
    let envelope = view.message().map(|message| message.envelope.to_vec());
    match (RecordKind::from_byte(head.kind), envelope) {
        (Some(RecordKind::Message), Some(envelope)) => {
            let content = u64::from(at) + HEAD_LEN as u64 + u64::from(head.meta_len);
            let content_good = head.spilled() || reader.content_is(content, head.content_len, head.content_crc);
            line(
                at,
                DumpItem::Message {
                    id: head.id,
                    recipients: head.recipients,
                    envelope,
                    content_len: head.content_len,
                    spilled: head.spilled(),
                    moved: head.is_moved(),
                    content_good,
                },
            );
        }
        (Some(RecordKind::Note), _) => line(at, DumpItem::Note { bytes: view.meta.to_vec() }),
        (Some(RecordKind::Cut), _) => {
            for cut in view.cuts() {
                line(at, DumpItem::Cut { segment: cut.segment, end: cut.end });
            }
        }
        (Some(RecordKind::Message | RecordKind::Outcome), _) => return None,
        (None, _) => line(at, DumpItem::Unknown { kind: head.kind, len }),
    }
    Some(len)
}
