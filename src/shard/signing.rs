//! Signing what tenants send (src/policy/dkim.rs), before it is stored: the signatures stand at the front of the content.
//!
//! A signature with RSA takes a shard about as long as everything else that it does for a message, several times over. So
//! complete messages wait in a list of which each turn signs a slice of [`SIGN_SLICE_US`]; their sessions wait as they do for
//! the commit. What lies in a file of its own is signed by src/shard/spilling.rs.

use crate::clock::Now;
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

pub(super) fn keys<'a>(domain: &'a Domain, envelope: &'a Envelope) -> Vec<&'a SigningKey> {
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
                Ok(signatures) => self.store_signed(origin, incoming, signatures, now),
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

    fn store_signed(&mut self, origin: Origin, incoming: Incoming, signatures: Bytes, now: Now) -> Result<(), Reply> {
        let counted = incoming.counted + signatures.len();
        let mut chunks = Vec::with_capacity(2);
        if !signatures.is_empty() {
            chunks.push(signatures);
        }
        chunks.push(Bytes::from(incoming.content));
        self.store(origin, incoming.id, incoming.envelope, NewContent::Inline(chunks), counted, now)
    }
}
