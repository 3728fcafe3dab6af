//! Signing what tenants send (src/policy/dkim.rs), before it is stored: the signatures stand at the front of the content.
//!
//! A signature with RSA takes a shard about as long as everything else that it does for a message, several times over. So
//! complete messages wait in a list of which each turn signs a slice of [`SIGN_SLICE_US`]; their sessions wait as they do for
//! the commit. What lies in a file of its own is hashed piece by piece as it comes, and signed when its end is there: room
//! for the signatures, whose length is known beforehand, is left at the front of the file.

use crate::clock::Now;
use crate::clock::UnixTime;
use crate::envelope::Envelope;
use crate::event::Severity;
use crate::io::handler::Command;
use crate::limits::{SIGN_OCTETS_PER_US, SIGN_SLICE_US};
use crate::policy::dkim::{self, Body, KeyError, SigningKey};
use crate::policy::domain::Domain;
use crate::policy::headers::section_len;
use crate::reply::Reply;
use crate::shard::core::Core;
use crate::shard::ingress::Incoming;
use crate::shard::storing::Origin;
use crate::shard::storing::refusal;
use bytes::Bytes;
use ringpost_spool::NewContent;
use std::collections::VecDeque;
use std::sync::Arc;

/// A complete message that waits for its signatures.
#[derive(Debug)]
pub struct Unsigned {
    origin: Origin,
    incoming: Incoming,
    domain: Arc<Domain>,
}

/// All such messages, the oldest first. Bounded by the memory for content, beyond which no content is begun.
pub type Signing = VecDeque<Box<Unsigned>>;

/// What the client is told when a key does not sign: that of a broken machine.
const NOT_SIGNED: Reply = Reply::fixed(451, 4, 7, 5, "The message could not be signed; try again later");

/// The block that a file's front is written by.
const BLOCK: usize = 4096;

/// What is kept of a message in a file of its own, for its signatures.
#[derive(Debug)]
pub struct SpillSigning {
    domain: Arc<Domain>,
    /// The header section that is signed.
    section: Vec<u8>,
    /// Octets left at the front.
    room: usize,
    /// Where the body begins, in the whole content.
    body_from: u64,
    body: Body,
    /// The blocks at the front of the file, which are written once more.
    front: Vec<u8>,
}

impl SpillSigning {
    /// Leaves room for the signatures at the front of what has come so far. None when no key signs.
    ///
    /// # Errors
    /// When the header section is not complete yet: it is too long to be signed.
    pub(super) fn begin(
        domain: Arc<Domain>,
        incoming: &mut Incoming,
        at: UnixTime,
    ) -> Result<Option<SpillSigning>, Reply> {
        const TOO_LONG: Reply = Reply::fixed(552, 5, 3, 4, "The header section is too long to be signed");
        let received = &incoming.content[incoming.trace_len..];
        let section = received[..section_len(received).ok_or(TOO_LONG)?].to_vec();
        let keys = keys(&domain, &incoming.envelope);
        let room = dkim::signed_len(keys.iter().copied(), &section, at);
        if room == 0 {
            return Ok(None);
        }
        incoming.content.splice(..0, std::iter::repeat_n(b' ', room));
        incoming.len += room as u64;
        let body_from = (room + incoming.trace_len + section.len()) as u64;
        Ok(Some(SpillSigning { domain, section, room, body_from, body: Body::default(), front: Vec::new() }))
    }

    /// The next piece goes to the disk, at this place. Gives the part of it that the checksum covers now: the front's comes
    /// when it is written again.
    pub(super) fn update<'a>(&mut self, piece: &'a [u8], at: u64) -> &'a [u8] {
        let skipped = self.body_from.saturating_sub(at).min(piece.len() as u64) as usize;
        self.body.update(&piece[skipped..]);
        if at > 0 {
            return piece;
        }
        let front = self.room.next_multiple_of(BLOCK).min(piece.len());
        self.front = piece[..front].to_vec();
        &piece[front..]
    }

    /// All pieces were seen: gives the front with the signatures in it, for the file's beginning, and its domain.
    ///
    /// # Errors
    /// When a key does not sign.
    pub(super) fn finish(mut self, envelope: &Envelope, at: UnixTime) -> Result<Bytes, KeyError> {
        let mut signatures = Vec::with_capacity(self.room);
        let keys = keys(&self.domain, envelope);
        dkim::sign(keys.into_iter(), &self.section, &self.body.finish(), at, &mut signatures)?;
        match self.front.get_mut(..self.room) {
            Some(room) if room.len() == signatures.len() => room.copy_from_slice(&signatures),
            _ => return Err(KeyError::length()),
        }
        Ok(self.front.into())
    }
}

fn keys<'a>(domain: &'a Domain, envelope: &'a Envelope) -> Vec<&'a SigningKey> {
    domain.keys_for(envelope.recipients.iter().map(|recipient| recipient.address.domain()))
}

impl Core {
    /// A complete message in memory whose author's domain signs.
    pub(super) fn await_signature(&mut self, origin: Origin, incoming: Incoming, domain: Arc<Domain>) {
        self.signing.push_back(Box::new(Unsigned { origin, incoming, domain }));
    }

    /// Signs some of what waits, and asks for another turn when something is left.
    pub(super) fn sign_waiting(&mut self, now: Now) {
        let mut spent_us = 0;
        while spent_us < SIGN_SLICE_US {
            let Some(unsigned) = self.signing.pop_front() else { return };
            let Unsigned { origin, incoming, domain } = *unsigned;
            spent_us += incoming.content.len() as u32 / SIGN_OCTETS_PER_US;
            spent_us += keys(&domain, &incoming.envelope).iter().map(|key| key.algorithm().cost_us()).sum::<u32>();
            let conn = origin.conn;
            self.content_octets -= incoming.counted;
            let stored = match self.signatures(&incoming, &domain, now) {
                Ok(signatures) => self.store_signed(origin, incoming, signatures, now).map_err(refusal),
                Err(reply) => Err(reply),
            };
            if let Err(reply) = stored {
                self.answer_stored(conn, Err(reply), now);
            }
        }
        if !self.signing.is_empty() {
            self.commands.push_back(Command::NextTurn);
        }
    }

    fn signatures(&mut self, incoming: &Incoming, domain: &Domain, now: Now) -> Result<Bytes, Reply> {
        let received = &incoming.content[incoming.trace_len..];
        let (section, rest) = received.split_at(section_len(received).unwrap_or(received.len()));
        let mut body = Body::default();
        body.update(rest);
        let mut signatures = Vec::with_capacity(2048);
        let keys = keys(domain, &incoming.envelope);
        match dkim::sign(keys.into_iter(), section, &body.finish(), now.unix, &mut signatures) {
            Ok(()) => {
                self.metrics.signed += u64::from(!signatures.is_empty());
                Ok(signatures.into())
            }
            Err(error) => Err(self.not_signed(&error)),
        }
    }

    pub(super) fn not_signed(&mut self, error: &KeyError) -> Reply {
        self.notice(
            Severity::Error,
            format!("a message could not be signed: {error}; its sender is asked to try again"),
        );
        NOT_SIGNED
    }

    fn store_signed(
        &mut self,
        origin: Origin,
        incoming: Incoming,
        signatures: Bytes,
        now: Now,
    ) -> Result<(), ringpost_spool::LogFull> {
        let counted = incoming.counted + signatures.len();
        let mut chunks = Vec::with_capacity(2);
        if !signatures.is_empty() {
            chunks.push(signatures);
        }
        chunks.push(Bytes::from(incoming.content));
        self.store(origin, incoming.id, incoming.envelope, NewContent::Inline(chunks), counted, now)
    }
}
