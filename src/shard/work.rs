//! One transaction's worth of a message on one of our connections: chosen, given its content, and brought to its outcomes.
//!
//! Not here: the connection's own life (src/shard/egress.rs) and what an outcome means for the message
//! (src/shard/outcome.rs).

use crate::clock::{Instant, Now};
use crate::event::Severity;
use crate::id::MessageId;
use crate::io::handler::ConnId;
use crate::queue::{SiteId, Slot};
use crate::reply::Reply;
use crate::shard::attempt::{AttemptOutcome, Verdict};
use crate::shard::connections::Conn;
use crate::shard::core::Core;
use crate::shard::egress::{Outbound, Phase};
use crate::shard::message::{Lease, LeaseEnded};
use crate::smtp::client::{OutgoingContent, RecipientOutcome, Stage, Transaction};
use bytes::Bytes;
use ringpost_spool::{ContentRef, OpId};

/// One transaction's worth of a message.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) owner: Owner,
    pub(super) id: MessageId,
    pub(super) recipients: Vec<u16>,
    pub(super) outcomes: Vec<Option<AttemptOutcome>>,
    pub(super) content: ContentRef,
    /// The beginning of the content, for a report.
    pub(super) head: Option<Bytes>,
    /// Of content that goes out piece by piece: octets given to the protocol, and their CRC-32C.
    pub(super) given: u32,
    pub(super) sum: u32,
    pub(super) began: Instant,
    /// Waits for its content.
    pub(super) transaction: Option<Transaction>,
}

/// What is said of content that is not what was stored.
const DAMAGED: &str = "the stored content is damaged (its checksum differs)";

impl Work {
    /// The whole content is there.
    pub(super) fn set_content(&mut self, chunks: Vec<Bytes>) {
        self.head = chunks.first().cloned();
        if let Some(transaction) = &mut self.transaction {
            transaction.content = OutgoingContent::Whole(chunks);
        }
    }

    /// Takes note of the next piece of streamed content. True when it is the last one and the whole is not what was
    /// stored; the spool itself can compare only what it reads at once.
    fn is_damaged_by(&mut self, piece: &Bytes) -> bool {
        self.head.get_or_insert_with(|| piece.clone());
        self.given = self.given.saturating_add(piece.len() as u32);
        self.sum = crc32c::crc32c_append(self.sum, piece);
        self.given >= self.content.len && self.sum != self.content.crc
    }
}

#[derive(Debug)]
pub(super) enum Owner {
    Here(Slot),
    Elsewhere { home: u8, slot: u32 },
}

impl Core {
    /// All that was sent is with the kernel: the next piece of content may come.
    pub(super) fn outbound_sent(&mut self, conn: ConnId) {
        let Some(mut outbound) = self.connections.take_outbound(conn) else { return };
        if let (Some((offset, max)), Some(work)) = (outbound.wanted.take(), &outbound.work) {
            let len = u64::from(work.content.len).saturating_sub(offset).min(max as u64);
            let op = self.log.read_content(work.id.0, work.content, offset as u32, len as u32);
            self.fetching.insert(op, conn);
        }
        self.connections.put(conn, Conn::Outbound(outbound));
    }

    /// A piece of content came from the spool.
    pub(super) fn content_read(&mut self, op: OpId, result: Result<Bytes, String>, now: Now) {
        let Some(conn) = self.fetching.remove(&op) else { return };
        let Some(mut outbound) = self.connections.take_outbound(conn) else { return };
        if outbound.ahead.as_ref().is_some_and(|ahead| ahead.fetching == Some(op)) {
            self.ahead_read(&mut outbound, result.ok(), now);
            self.drive(outbound, now);
            return;
        }
        let bytes = match result {
            Ok(bytes) => bytes,
            Err(what) => {
                self.content_unreadable(&mut outbound, &what, now);
                self.drive(outbound, now);
                return;
            }
        };
        if outbound.phase == Phase::Fetching(op) {
            self.begin(&mut outbound, bytes, now);
        } else {
            if outbound.work.as_mut().is_some_and(|work| work.is_damaged_by(&bytes)) {
                // Its last piece is held back, so that the peer never has the whole of it.
                self.content_unreadable(&mut outbound, DAMAGED, now);
                self.drive(outbound, now);
                return;
            }
            outbound.client.provide_content(bytes, now.instant);
        }
        self.drive(outbound, now);
    }

    fn begin(&mut self, outbound: &mut Outbound, bytes: Bytes, now: Now) {
        if let Some(work) = outbound.work.as_mut() {
            work.set_content(vec![bytes]);
        }
        self.begin_whole(outbound, now);
    }

    /// Begins with work whose content is there.
    pub(super) fn begin_whole(&mut self, outbound: &mut Outbound, now: Now) {
        outbound.phase = Phase::Busy;
        if let Some(transaction) = outbound.work.as_mut().and_then(|work| work.transaction.take()) {
            outbound.client.begin(transaction, now.instant);
        }
    }

    /// The spool cannot give the content: the attempt ends, and somebody must know.
    fn content_unreadable(&mut self, outbound: &mut Outbound, what: &str, now: Now) {
        if let Some(Work { id, content, .. }) = outbound.work.as_deref() {
            let file = if content.spilled { format!("content/{:016x}", id.0) } else { content.segment.file_name() };
            let offset = content.offset;
            let text = format!(
                "the content of {id} cannot be read from the spool ({file} at offset {offset}): {what}; run `ringpost \
                 spool verify`"
            );
            self.notice(Severity::Error, text);
        }
        let reply = Reply::new(451, (4, 3, 0), "The content cannot be read from the spool at this time");
        if let Some(work) = outbound.work.as_mut() {
            for outcome in &mut work.outcomes {
                outcome.get_or_insert_with(|| {
                    AttemptOutcome::local(Verdict::Deferred { not_before: None }, reply.clone())
                });
            }
        }
        self.finish_work(outbound, now);
        let was_busy = outbound.phase == Phase::Busy;
        self.give_up(outbound, now);
        if was_busy {
            // The content is cut short: no way out but to break the connection, so that the peer drops it.
            self.close(outbound.conn, false);
        } else {
            outbound.client.quit(now.instant);
        }
    }

    pub(super) fn has_work(&self, site: SiteId) -> bool {
        self.queue.ready_count(site) > 0 || self.sites.get(site).is_some_and(|known| !known.guests.is_empty())
    }

    /// Own messages and guests' in turn.
    pub(super) fn next_work(&mut self, site: SiteId, most: usize, now: Now) -> Option<(Box<Work>, Option<Vec<Bytes>>)> {
        let known = self.sites.get_mut(site)?;
        known.guests_turn = !known.guests_turn;
        if (known.guests_turn || self.queue.ready_count(site) == 0)
            && let Some(lease) = known.guests.pop_front()
        {
            return Some(guest_work(*lease, now));
        }
        match self.own_work(site, most, now) {
            Some(work) => Some(work),
            None => {
                let lease = self.sites.get_mut(site)?.guests.pop_front()?;
                Some(guest_work(*lease, now))
            }
        }
    }

    fn own_work(&mut self, site: SiteId, most: usize, now: Now) -> Option<(Box<Work>, Option<Vec<Bytes>>)> {
        let pick = self.pick(site, most)?;
        let (transaction, id, content) = self.transaction_of(pick.slot, &pick.recipients)?;
        let work = Work {
            owner: Owner::Here(pick.slot),
            id,
            outcomes: vec![None; pick.recipients.len()],
            recipients: pick.recipients,
            content,
            head: None,
            given: 0,
            sum: 0,
            began: now.instant,
            transaction: Some(transaction),
        };
        Some((Box::new(work), self.retained.get(id).cloned()))
    }

    pub(super) fn start_work(
        &mut self,
        outbound: &mut Outbound,
        (mut work, held): (Box<Work>, Option<Vec<Bytes>>),
        now: Now,
    ) {
        outbound.phase = Phase::Busy;
        outbound.began_ahead = false;
        let spilled = work.content.spilled;
        let fetching = match held {
            Some(chunks) => {
                work.set_content(chunks);
                None
            }
            None if spilled => None,
            None => Some(self.fetch_content(&work, outbound.conn)),
        };
        outbound.work = Some(work);
        match fetching {
            Some(op) => outbound.phase = Phase::Fetching(op),
            None => self.begin_whole(outbound, now),
        }
    }

    /// Asks the spool for the content of a piece of work, for this connection.
    pub(super) fn fetch_content(&mut self, work: &Work, conn: ConnId) -> OpId {
        let op = self.log.read_content(work.id.0, work.content, 0, work.content.len);
        self.fetching.insert(op, conn);
        op
    }

    pub(super) fn note_outcome(&mut self, outbound: &mut Outbound, index: usize, outcome: RecipientOutcome, now: Now) {
        let Some(work) = outbound.work.as_mut() else { return };
        let took = now.instant.since(work.began);
        let (verdict, reply, stage) = match outcome {
            RecipientOutcome::Delivered(reply) => (Verdict::Delivered, reply, Some(Stage::FinalReply)),
            RecipientOutcome::Refused { reply, stage } => {
                let verdict =
                    if reply.is_permanent() { Verdict::Failed } else { Verdict::Deferred { not_before: None } };
                (verdict, reply, Some(stage))
            }
            RecipientOutcome::Unsupported { enhanced, text } => {
                let reply = Reply { code: 550, enhanced: Some(enhanced), text: text.into() };
                (Verdict::Failed, reply, None)
            }
        };
        let outcome = AttemptOutcome {
            verdict,
            reply,
            stage,
            remote: Some(outbound.remote.clone()),
            tls: outbound.tls.as_ref().map(|tls| tls.version),
            tls_policy: outbound.wish.by.policy(),
            took,
            from_peer: stage.is_some(),
            peer_reports: outbound.client.peer().dsn(),
            meaning: None,
        };
        if let Some(place) = work.outcomes.get_mut(index) {
            *place = Some(outcome);
        }
        if work.outcomes.iter().all(Option::is_some) {
            self.judge_ahead(outbound);
            self.finish_work(outbound, now);
        }
    }

    /// Hands the outcomes to the message's owner.
    pub(super) fn finish_work(&mut self, outbound: &mut Outbound, now: Now) {
        let Some(work) = outbound.work.take() else { return };
        let took = now.instant.since(work.began);
        self.metrics.attempt_us.saturating_record(took.as_micros() as u64);
        self.hand_over(*work, outbound.site, now);
    }

    /// Hands what was decided of a piece of work to the message's owner, and gives back the rest.
    pub(super) fn hand_over(&mut self, work: Work, site: SiteId, now: Now) {
        let Work { owner, id, recipients, outcomes, head, .. } = work;
        let mut decided = Vec::with_capacity(recipients.len());
        let mut undecided = Vec::new();
        for (&recipient, outcome) in recipients.iter().zip(outcomes) {
            match outcome {
                Some(outcome) => decided.push((recipient, outcome)),
                None => undecided.push(recipient),
            }
        }
        match owner {
            Owner::Here(slot) => {
                self.give_back(slot, &undecided, now);
                self.conclude(slot, decided, head, now);
            }
            Owner::Elsewhere { home, slot } => {
                let site = site.0;
                let (by, outcomes) = (self.shard, decided);
                self.end_lease(home, LeaseEnded { by, slot, id, site, recipients, outcomes, not_before: None });
            }
        }
    }
}

fn guest_work(lease: Lease, now: Now) -> (Box<Work>, Option<Vec<Bytes>>) {
    let work = Work {
        owner: Owner::Elsewhere { home: lease.home, slot: lease.slot },
        id: lease.id,
        outcomes: vec![None; lease.recipients.len()],
        recipients: lease.recipients,
        content: lease.content,
        head: None,
        given: 0,
        sum: 0,
        began: now.instant,
        transaction: Some(lease.transaction),
    };
    (Box::new(work), lease.held)
}
