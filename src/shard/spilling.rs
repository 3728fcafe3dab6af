//! Content that goes to a file of its own while it comes: when it is long, or when memory for content is short.
//!
//! What stands at the front of a stored content is known only when its end has come: signatures, and headers that filters
//! add. So room for them is left at the front of the file, whose first blocks are written once more at the end; what is not
//! used of the room stands before the content and is not of it. Bodies that are signed are hashed piece by piece.
//! Not here: the record that follows (src/shard/storing.rs).

use crate::clock::{Now, UnixTime};
use crate::envelope::Envelope;
use crate::id::MessageId;
use crate::io::handler::ConnId;
use crate::limits::{FILTER_HEADERS_MAX, MAX_SPILLED_CONTENT, SPILL_CHUNK};
use crate::policy::dkim::{self, Body, KeyError};
use crate::policy::domain::Domain;
use crate::policy::headers::section_len;
use crate::reply::Reply;
use crate::shard::connections::Conn;
use crate::shard::core::Core;
use crate::shard::ingress::{Incoming, Receiving};
use crate::shard::signing::keys;
use crate::shard::storing::STORAGE_FAILED;
use bytes::Bytes;
use ringpost_spool::NewContent;
use std::sync::Arc;

/// The block that a file's front is written by.
const BLOCK: usize = 4096;

/// The part of a message's content that lies in its own file.
#[derive(Debug, Default)]
pub struct Spill {
    /// Octets handed to the disk.
    pub written: u64,
    /// Pieces handed over and not yet with the disk.
    pub in_flight: usize,
    /// CRC-32C of what was handed over.
    pub crc: u32,
    /// The disk refused: the message cannot be taken.
    pub failed: bool,
    /// What is written last.
    pub front: Option<Box<Front>>,
    /// Octets of the file that stand before the content.
    pub unused: u32,
    /// The filters are asked as soon as all pieces are with the disk.
    pub for_filters: bool,
}

/// The front of a file, as long as it is open what stands there.
#[derive(Debug)]
pub struct Front {
    /// Octets left for signatures and headers.
    pub room: usize,
    /// The file's first blocks.
    blocks: Vec<u8>,
    signing: Option<SpillSigning>,
}

/// What is kept of a message for its signatures.
#[derive(Debug)]
struct SpillSigning {
    domain: Arc<Domain>,
    /// The header section that is signed.
    section: Vec<u8>,
    /// Where the body begins, in the file.
    body_from: u64,
    body: Body,
    /// Octets that the signatures will have.
    len: usize,
}

impl Front {
    /// Leaves room at the front of what has come so far: for the signatures of the domain, and for headers of filters. None
    /// when nothing will stand there.
    ///
    /// # Errors
    /// When the header section is not complete yet: it is too long to be signed.
    fn begin(
        signer: Option<Arc<Domain>>,
        filtered: bool,
        incoming: &mut Incoming,
        at: UnixTime,
    ) -> Result<Option<Front>, Reply> {
        const TOO_LONG: Reply = Reply::fixed(552, 5, 3, 4, "The header section is too long to be signed");
        let mut signing = None;
        if let Some(domain) = signer {
            let received = &incoming.content[incoming.trace_len..];
            let section = received[..section_len(received).ok_or(TOO_LONG)?].to_vec();
            let len = dkim::signed_len(keys(&domain, &incoming.envelope).iter().copied(), &section, at);
            let body_from = (incoming.trace_len + section.len()) as u64;
            let begun = SpillSigning { domain, section, body_from, body: Body::default(), len };
            signing = Some(begun).filter(|_| len > 0);
        }
        let room = signing.as_ref().map_or(0, |signing| signing.len) + if filtered { FILTER_HEADERS_MAX } else { 0 };
        if room == 0 {
            return Ok(None);
        }
        if let Some(signing) = &mut signing {
            signing.body_from += room as u64;
        }
        incoming.content.splice(..0, std::iter::repeat_n(b' ', room));
        incoming.len += room as u64;
        Ok(Some(Front { room, blocks: Vec::new(), signing }))
    }

    /// The next piece goes to the disk, at this place. Gives the part of it that the checksum covers now: the front's comes
    /// when it is written again.
    fn update<'a>(&mut self, piece: &'a [u8], at: u64) -> &'a [u8] {
        if let Some(signing) = &mut self.signing {
            let skipped = signing.body_from.saturating_sub(at).min(piece.len() as u64) as usize;
            signing.body.update(&piece[skipped..]);
        }
        if at > 0 {
            return piece;
        }
        let blocks = self.room.next_multiple_of(BLOCK).min(piece.len());
        self.blocks = piece[..blocks].to_vec();
        &piece[blocks..]
    }

    /// All pieces were seen: gives the file's first blocks with signatures and headers in them, and how much of them stays
    /// unused before these. The headers fit: they have at most [`FILTER_HEADERS_MAX`] octets, and none where no filter is
    /// asked.
    ///
    /// # Errors
    /// When a key does not sign.
    fn finish(mut self, headers: &[u8], envelope: &Envelope, at: UnixTime) -> Result<(Bytes, usize, bool), KeyError> {
        let mut front = Vec::with_capacity(self.room);
        let signed = self.signing.is_some();
        if let Some(signing) = self.signing {
            let keys = keys(&signing.domain, envelope);
            dkim::sign(keys.into_iter(), &signing.section, &signing.body.finish(), at, &mut front)?;
            if front.len() != signing.len {
                return Err(KeyError::length());
            }
        }
        front.extend_from_slice(headers);
        let unused = self.room.checked_sub(front.len()).ok_or_else(KeyError::length)?;
        self.blocks.get_mut(unused..self.room).ok_or_else(KeyError::length)?.copy_from_slice(&front);
        Ok((self.blocks.into(), unused, signed))
    }
}

impl Receiving<'_> {
    /// Begins the message's own file: what its headers say is checked, and room is left for what is to stand before them.
    pub(super) fn begin_spill(&mut self, now: Now) -> Result<(), Reply> {
        let signer = self.check_headers(now)?;
        let filtered = !self.listener().filters.is_empty();
        let Some(incoming) = self.state.incoming.as_mut() else { return Ok(()) };
        let before = incoming.content.len();
        let front = Front::begin(signer, filtered, incoming, now.unix)?;
        let added = incoming.content.len() - before;
        incoming.counted += added;
        self.core.content_octets += added;
        incoming.spill = Some(Spill { front: front.map(Box::new), ..Spill::default() });
        Ok(())
    }

    /// Moves what is in memory to the message's own file: whole pieces of it, or all.
    pub(super) fn spill(&mut self, all: bool) {
        self.core.spill(self.state.conn, self.state.incoming.as_deref_mut(), all);
    }

    /// The content is complete.
    pub(super) fn end_spill(&mut self, now: Now) -> Result<(), Reply> {
        self.core.check_named_bounds(self.state)?;
        let filtered = !self.listener().filters.is_empty();
        let Some(incoming) = self.state.incoming.as_mut() else { return Ok(()) };
        let Some(spill) = incoming.spill.as_mut() else { return Ok(()) };
        incoming.complete = true;
        spill.for_filters = filtered;
        self.core.spill(self.state.conn, Some(incoming), true);
        if filtered {
            return Ok(());
        }
        self.core.finish_spill(incoming, &[], now)
    }
}

impl Core {
    fn spill(&mut self, conn: ConnId, incoming: Option<&mut Incoming>, all: bool) {
        let Some(incoming) = incoming else { return };
        let Some(spill) = incoming.spill.as_mut() else { return };
        let whole = if all { incoming.content.len() } else { incoming.content.len() / SPILL_CHUNK * SPILL_CHUNK };
        let rest = incoming.content.split_off(whole);
        let chunk = Bytes::from(std::mem::replace(&mut incoming.content, rest));
        let counted = match &mut spill.front {
            Some(front) => front.update(&chunk, spill.written),
            None => &chunk[..],
        };
        spill.crc = crc32c::crc32c_append(spill.crc, counted);
        spill.in_flight += 1;
        let offset = spill.written;
        spill.written += chunk.len() as u64;
        self.content_octets -= incoming.counted - incoming.content.len();
        incoming.counted = incoming.content.len();
        self.spilling.insert(incoming.id, conn);
        // What is written at the front comes last.
        let last = incoming.complete && spill.front.is_none();
        self.log.spill(incoming.id.0, offset, vec![chunk], last);
    }

    /// Writes what stands at the front of a complete content, if anything does; the file is synced then.
    ///
    /// # Errors
    /// When the message could not be signed.
    pub(super) fn finish_spill(&mut self, incoming: &mut Incoming, headers: &[u8], now: Now) -> Result<(), Reply> {
        let Some(spill) = incoming.spill.as_mut() else { return Ok(()) };
        spill.for_filters = false;
        let Some(front) = spill.front.take() else { return Ok(()) };
        let (blocks, unused, signed) = match front.finish(headers, &incoming.envelope, now.unix) {
            Ok(finished) => finished,
            Err(error) => return Err(self.not_signed(&error)),
        };
        self.metrics.signed += u64::from(signed);
        let behind = spill.written as usize - blocks.len();
        spill.crc = crc32c::crc32c_combine(crc32c::crc32c(&blocks[unused..]), spill.crc, behind);
        spill.unused = unused as u32;
        spill.in_flight += 1;
        incoming.len -= unused as u64;
        self.log.spill(incoming.id.0, 0, vec![blocks], true);
        Ok(())
    }

    /// A message's own file is synced, or could not be: its record follows.
    pub(super) fn content_spilled(&mut self, id: MessageId, failed: bool, now: Now) {
        let Some(conn) = self.spilling.remove(&id) else { return };
        let Some(mut inbound) = self.connections.take_inbound(conn) else {
            self.log.remove_spill(id.0);
            return;
        };
        let complete = inbound.state.incoming.as_ref().is_some_and(|incoming| incoming.id == id && incoming.complete);
        if failed && !complete {
            // The content still flows: the session learns of it at its next block.
            if let Some(spill) = inbound.state.incoming.as_mut().and_then(|incoming| incoming.spill.as_mut()) {
                spill.failed = true;
                spill.in_flight = 0;
            }
            self.resume(&mut inbound.state);
            self.connections.put(conn, Conn::Inbound(inbound));
            return;
        }
        let stored = match inbound.state.incoming.take() {
            Some(mut incoming) if complete && !failed && incoming.len <= MAX_SPILLED_CONTENT => {
                let (crc, front) = incoming.spill.as_ref().map_or((0, 0), |spill| (spill.crc, spill.unused));
                self.content_octets -= incoming.counted;
                let content = NewContent::Spilled { front, len: incoming.len as u32, crc };
                let origin = inbound.state.origin(incoming.charge.take());
                self.store_spilled(origin, id, incoming.envelope, content, now)
            }
            Some(incoming) => {
                self.content_octets -= incoming.counted;
                Err(STORAGE_FAILED)
            }
            None => Err(STORAGE_FAILED),
        };
        self.connections.put(conn, Conn::Inbound(inbound));
        if let Err(reply) = stored {
            self.log.remove_spill(id.0);
            self.answer_stored(conn, Err(reply), now);
        }
    }

    /// A block of a message's own file is with the disk.
    pub(super) fn spill_progress(&mut self, id: MessageId) {
        let Some(&conn) = self.spilling.get(&id) else { return };
        let Some(mut inbound) = self.connections.take_inbound(conn) else { return };
        if let Some(spill) = inbound.state.incoming.as_mut().and_then(|incoming| incoming.spill.as_mut()) {
            spill.in_flight = spill.in_flight.saturating_sub(1);
            if spill.for_filters && spill.in_flight == 0 {
                self.ask_filters_of_file(&inbound.state);
            }
        }
        self.resume(&mut inbound.state);
        self.connections.put(conn, Conn::Inbound(inbound));
    }
}
