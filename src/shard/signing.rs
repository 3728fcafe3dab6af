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

/// About how long signing so many octets takes, in microseconds.
fn cost_us(keys: &[&SigningKey], octets: usize) -> u32 {
    octets as u32 / SIGN_OCTETS_PER_US + keys.iter().map(|key| key.algorithm().cost_us()).sum::<u32>()
}

/// The signatures of a content, to be put before it.
fn signatures(content: &[u8], domain: &Domain, envelope: &Envelope, now: Now) -> Result<Bytes, KeyError> {
    let (section, rest) = content.split_at(section_len(content).unwrap_or(content.len()));
    let mut body = Body::default();
    body.update(rest);
    let mut signatures = Vec::with_capacity(2048);
    dkim::sign(keys(domain, envelope).into_iter(), section, &body.finish(), now.unix, &mut signatures)?;
    Ok(signatures.into())
}

impl Core {
    /// A complete message in memory whose author's domain signs.
    pub(super) fn await_signature(&mut self, origin: Origin, incoming: Incoming, domain: Arc<Domain>) {
        self.signing.push_back(Box::new(Unsigned { origin, incoming, domain }));
    }

    /// Signs some of what waits, and asks for another turn when something is left. Reports take turns with clients' messages, so
    /// that neither starves.
    pub(super) fn sign_waiting(&mut self, now: Now) {
        let mut spent_us = 0;
        while spent_us < SIGN_SLICE_US {
            let reported = self.sign_next_report(now);
            let signed = self.sign_next(now);
            if reported.is_none() && signed.is_none() {
                return;
            }
            spent_us += reported.unwrap_or_default() + signed.unwrap_or_default();
        }
        if !self.signing.is_empty() || self.has_unsigned_reports() {
            self.commands.push_back(Command::NextTurn);
        }
    }

    /// Signs the oldest message that waits. Gives about how long it took, in microseconds; none when none waits.
    fn sign_next(&mut self, now: Now) -> Option<u32> {
        let Unsigned { origin, incoming, domain } = *self.signing.pop_front()?;
        let spent_us = cost_us(&keys(&domain, &incoming.envelope), incoming.content.len());
        let conn = origin.conn;
        self.content_octets -= incoming.counted;
        let received = &incoming.content[incoming.trace_len..];
        let stored = match signatures(received, &domain, &incoming.envelope, now) {
            Ok(signatures) => {
                self.metrics.signed += u64::from(!signatures.is_empty());
                self.store_signed(origin, incoming, signatures, now)
            }
            Err(error) => Err(self.not_signed(&error)),
        };
        if let Err(reply) = stored {
            self.answer_stored(conn, Err(reply), now);
        }
        Some(spent_us)
    }

    /// Whether our own reports are signed: the domain that they come from is a verified one.
    pub(super) fn signs_reports(&self) -> bool {
        self.directory.load().signer_of(&self.settings.hostname).is_some()
    }

    /// The octets that [`Core::report_signatures`] will have.
    pub(super) fn report_signatures_len(&self, envelope: &Envelope, content: &[u8], now: Now) -> usize {
        let directory = self.directory.load();
        let Some(domain) = directory.signer_of(&self.settings.hostname) else { return 0 };
        let section = &content[..section_len(content).unwrap_or(content.len())];
        dkim::signed_len(keys(domain, envelope).into_iter(), section, now.unix)
    }

    /// The signatures of a report of ours, where there are any, and about how long they took, in microseconds. A report that
    /// cannot be signed goes out unsigned: it is better than none.
    pub(super) fn report_signatures(&mut self, envelope: &Envelope, content: &[u8], now: Now) -> (Bytes, u32) {
        let directory = self.directory.load();
        let Some(domain) = directory.signer_of(&self.settings.hostname).cloned() else { return Default::default() };
        drop(directory);
        let spent_us = cost_us(&keys(&domain, envelope), content.len());
        match signatures(content, &domain, envelope, now) {
            Ok(signatures) => {
                self.metrics.signed += u64::from(!signatures.is_empty());
                (signatures, spent_us)
            }
            Err(error) => {
                self.notice(Severity::Error, format!("a report could not be signed and goes out without: {error}"));
                (Bytes::new(), spent_us)
            }
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
