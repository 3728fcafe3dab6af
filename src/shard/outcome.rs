//! What an attempt means for its message: the next attempt, the record, the report to the sender, the end.
//!
//! Outcomes are recorded at once, except those that owe the sender a report: these wait for the message's header, which
//! may have to be read, and then go into one batch with the report.

use crate::clock::Now;
use crate::envelope::{Body, Envelope, Notify, Recipient, Ret};
use crate::event::{AttemptFacts, Event, Severity};
use crate::id::MessageId;
use crate::limits::{DETAILS_MAX, DSN_HEAD, DSN_ROOM};
use crate::policy::classify::Question;
use crate::queue::dsn::{self, Action};
use crate::queue::{self, Disposition, LastReply, Settled, Slot};
use crate::reply::class::Meaning;
use crate::reply::{EnhancedCode, Reply};
use crate::shard::attempt::{AttemptOutcome, Verdict};
use crate::shard::core::Core;
use crate::smtp::client::{OutgoingContent, OutgoingRecipient, Transaction};
use bytes::Bytes;
use foldhash::HashMap;
use ringpost_spool::{ContentRef, LogFull, NewContent, OpId, OutcomeKind};
use std::collections::VecDeque;
use std::fmt::Write as _;

/// The status of content that the peer cannot take for its 8-bit octets (RFC 6152 3).
const EIGHT_BIT_REFUSED: EnhancedCode = EnhancedCode { class: 5, subject: 6, detail: 3 };

/// One recipient's fate, of which its sender is to be told.
#[derive(Debug)]
pub struct Reportable {
    recipient: u16,
    action: Action,
    /// What goes into the record; none for a warning of delay.
    record: Option<OutcomeKind>,
    attempts: u16,
    outcome: AttemptOutcome,
}

/// A report that is not stored yet: on which message, about whom, and the beginning of what it was.
type Unstored = (Slot, Vec<Reportable>, Bytes);

/// Reports under way.
#[derive(Debug, Default)]
pub struct Reports {
    /// These wait for their turn to be signed, the oldest first.
    unsigned: VecDeque<Unstored>,
    /// These wait for the message's header to be read.
    reading: HashMap<OpId, (Slot, Vec<Reportable>)>,
    /// These found no room in the spool.
    blocked: Vec<Unstored>,
    /// How many segments were prepared when the last one was blocked.
    prepared: usize,
    /// How many of either a message has: until then it stays in the queue.
    open: HashMap<Slot, u32>,
}

impl Reports {
    /// Whether a report on this message is not stored yet.
    pub fn is_open(&self, slot: Slot) -> bool {
        self.open.contains_key(&slot)
    }

    /// Whether no report waits for anything.
    pub fn none_open(&self) -> bool {
        self.open.is_empty()
    }
}

impl Core {
    /// A recipient that fails before any connection: no route, no such domain.
    pub(super) fn fail_unattempted(&mut self, slot: Slot, recipient: u16, outcome: AttemptOutcome, now: Now) {
        self.conclude(slot, vec![(recipient, outcome)], None, now);
    }

    /// Takes note of what an attempt came to. `head` is the beginning of the content, if it is at hand.
    pub(super) fn conclude(&mut self, slot: Slot, outcomes: Vec<(u16, AttemptOutcome)>, head: Option<Bytes>, now: Now) {
        let mut reports = Vec::new();
        let taken = outcomes.iter().find(|(_, outcome)| outcome.verdict == Verdict::Delivered);
        if let Some(&(recipient, _)) = taken
            && let Some(site) = self.queue.message(slot).and_then(|message| message.site(recipient))
        {
            self.site_took(site, now);
        }
        for (recipient, outcome) in outcomes {
            self.conclude_one(slot, recipient, outcome, &mut reports, now);
        }
        if !reports.is_empty() {
            self.report_fates(slot, reports, head, now);
        }
        self.end_if_finished(slot);
    }

    fn conclude_one(
        &mut self,
        slot: Slot,
        recipient: u16,
        mut outcome: AttemptOutcome,
        reports: &mut Vec<Reportable>,
        now: Now,
    ) {
        outcome.meaning = self.meaning_of(slot, recipient, &outcome);
        let Some(facts) = self.facts(slot, recipient, &outcome, now) else { return };
        let verdict = match outcome.verdict {
            Verdict::Delivered => queue::Verdict::Delivered,
            Verdict::Failed => queue::Verdict::Failed,
            Verdict::Deferred { not_before } => queue::Verdict::Deferred { not_before },
            Verdict::Suppressed => queue::Verdict::Suppressed,
            Verdict::Unresolved => queue::Verdict::Unresolved,
        };
        let class = outcome.meaning.map(|meaning| meaning.class);
        if let Some(class) = class.filter(|_| outcome.from_peer)
            && let Some(site) = self.queue.message(slot).and_then(|message| message.site(recipient))
        {
            self.site_replied(site, class, &outcome.reply, now);
        }
        self.queue.note_reply(slot, recipient, last_reply(&outcome.reply), class);
        let settled = self.queue.settle(slot, recipient, verdict, now);
        self.note_settled(slot, recipient, facts, outcome, settled, reports, now);
    }

    /// Recipients whose attempt was not made go back to their list; those that an operator deleted meanwhile end.
    pub(super) fn give_back(&mut self, slot: Slot, recipients: &[u16], now: Now) {
        if recipients.is_empty() {
            return;
        }
        for recipient in self.queue.unpick(slot, recipients) {
            self.record_deleted(slot, recipient, now);
        }
        self.end_if_finished(slot);
    }

    #[allow(clippy::too_many_arguments)]
    fn note_settled(
        &mut self,
        slot: Slot,
        recipient: u16,
        facts: AttemptFacts,
        outcome: AttemptOutcome,
        settled: Settled,
        reports: &mut Vec<Reportable>,
        now: Now,
    ) {
        let notify = self.queue.message(slot).map_or(Notify::DEFAULT, |message| message.notify(recipient));
        let attempts = facts.attempt;
        let (kind, action, next) = match settled {
            Settled::Ignored => return,
            Settled::Retry { due, .. } => (OutcomeKind::Deferred, None, Some(due)),
            Settled::Expired => (OutcomeKind::Expired, notify.failure().then_some(Action::Failed), None),
            Settled::Done(Disposition::Delivered) => {
                let relayed = notify.success() && !outcome.peer_reports;
                (OutcomeKind::Delivered, relayed.then_some(Action::Relayed), None)
            }
            Settled::Done(Disposition::Deleted) => {
                self.record_deleted(slot, recipient, now);
                return;
            }
            Settled::Done(Disposition::Suppressed) => {
                (OutcomeKind::Suppressed, notify.failure().then_some(Action::Failed), None)
            }
            Settled::Done(_) => (OutcomeKind::Bounced, notify.failure().then_some(Action::Failed), None),
        };
        if attempts == 1 {
            self.metrics
                .queue_us
                .saturating_record(facts.age_ms.saturating_mul(1000).saturating_sub(facts.took_ms * 1000));
        }
        let reply = facts.reply.clone();
        let (id, age_ms) = (facts.id, facts.age_ms);
        match kind {
            OutcomeKind::Delivered => {
                self.metrics.delivered += 1;
                self.metrics.end_to_end_us.saturating_record(age_ms.saturating_mul(1000));
                self.event(Event::Delivered(facts));
            }
            OutcomeKind::Deferred => {
                self.metrics.deferred += 1;
                self.metrics.count_class(facts.meaning, false);
                self.retained.forget(id);
                self.event(Event::Deferred { facts, next: next.unwrap_or(now.unix) });
            }
            OutcomeKind::Expired => {
                self.metrics.expired += 1;
                self.metrics.count_class(facts.meaning, true);
                self.note_bounce(&facts.tenant, &facts.recipient, &outcome);
                self.event(Event::Expired(facts));
            }
            OutcomeKind::Suppressed => {
                self.metrics.suppressed += 1;
                self.event(Event::Suppressed(facts));
            }
            _ => {
                self.metrics.bounced += 1;
                self.metrics.count_class(facts.meaning, true);
                self.note_bounce(&facts.tenant, &facts.recipient, &outcome);
                self.event(Event::Bounced(facts));
            }
        }
        let null_path = self.queue.message(slot).is_some_and(|message| message.reverse_path().is_none());
        if null_path && matches!(kind, OutcomeKind::Bounced | OutcomeKind::Expired | OutcomeKind::Suppressed) {
            // RFC 5321 6.1: a notification is never answered by one. Ours do not ask for any (RFC 3461 5.2.9), so that
            // there is no action to go by.
            self.event(Event::DoubleBounce { id, reply });
        }
        match action {
            Some(action) if !null_path => {
                reports.push(Reportable { recipient, action, record: Some(kind), attempts, outcome });
            }
            _ => {
                let next = next.map_or(0, |due| due.as_millis());
                self.record(slot, recipient, kind, attempts, next, &outcome, now);
            }
        }
    }

    /// What a failed attempt's reply means. The host is known by its name; where it gave none, by that of its site.
    fn meaning_of(&self, slot: Slot, recipient: u16, outcome: &AttemptOutcome) -> Option<Meaning> {
        if outcome.verdict == Verdict::Delivered {
            return None;
        }
        let site = || {
            let site = self.queue.message(slot).and_then(|message| message.site(recipient));
            site.and_then(|site| self.sites.get(site)).map_or("", |site| &*site.permits.name)
        };
        let name = outcome.remote.as_deref().and_then(|remote| remote.split_once(' ')).map(|(name, _)| name);
        let question = Question {
            reply: &outcome.reply,
            from_peer: outcome.from_peer,
            stage: outcome.stage,
            host: name.unwrap_or_else(site),
        };
        Some(self.classifier.classify(&question).meaning())
    }

    fn facts(&self, slot: Slot, recipient: u16, outcome: &AttemptOutcome, now: Now) -> Option<AttemptFacts> {
        let message = self.queue.message(slot)?;
        let site = message.site(recipient).and_then(|site| self.sites.get(site));
        Some(AttemptFacts {
            id: message.id(),
            recipient: message.address(recipient).into(),
            tenant: self.tenants.name(message.tenant()).into(),
            site: site.map_or("", |site| &*site.permits.name).into(),
            remote: outcome.remote.clone(),
            reply: outcome.reply.to_string().into(),
            meaning: outcome.meaning,
            attempt: message.attempts(recipient).saturating_add(1),
            age_ms: now.unix.since(message.arrived()).as_millis() as u64,
            took_ms: outcome.took.as_millis() as u64,
            tls: outcome.tls,
            tls_policy: outcome.tls_policy,
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn record(
        &mut self,
        slot: Slot,
        recipient: u16,
        kind: OutcomeKind,
        attempts: u16,
        next_due_ms: u64,
        outcome: &AttemptOutcome,
        now: Now,
    ) {
        let Some(message) = self.queue.message(slot) else { return };
        let details = details(outcome);
        let record = ringpost_spool::Outcome {
            id: message.id().0,
            recipient: u32::from(recipient),
            kind,
            attempts,
            at_ms: now.unix.as_millis(),
            next_due_ms,
            details: details.as_bytes(),
        };
        let home = ContentRef::from(message.content()).segment;
        self.log.append_outcome(record, home);
    }

    /// Makes the report to the sender, reading the message's header first when it is not at hand.
    fn report_fates(&mut self, slot: Slot, reports: Vec<Reportable>, head: Option<Bytes>, now: Now) {
        let Some(message) = self.queue.message(slot) else { return };
        let (id, content) = (message.id(), ContentRef::from(message.content()));
        let head = head.or_else(|| self.retained.get(id).and_then(|chunks| chunks.first().cloned()));
        *self.reports.open.entry(slot).or_default() += 1;
        match head {
            Some(head) => self.sign_report(slot, reports, head, now),
            None => {
                let op = self.log.read_content(id.0, content, 0, content.len.min(DSN_HEAD));
                self.reports.reading.insert(op, (slot, reports));
            }
        }
    }

    /// A message's header was read for its report. False when the read was not for a report.
    pub(super) fn head_read(&mut self, op: OpId, result: &Result<Bytes, String>, now: Now) -> bool {
        let Some((slot, reports)) = self.reports.reading.remove(&op) else { return false };
        // A report without the original's header is better than none.
        let head = result.as_ref().cloned().unwrap_or_default();
        self.sign_report(slot, reports, head, now);
        true
    }

    /// Tries again what found no room, when some has come: until a report is stored, so is not what it speaks of, and
    /// a killed process would say it again.
    pub(super) fn retry_reports_with_room(&mut self, now: Now) {
        if !self.reports.blocked.is_empty() && self.log.prepared_segments() > self.reports.prepared {
            self.retry_blocked_reports(now);
        }
    }

    /// Tries again what found no room.
    pub(super) fn retry_blocked_reports(&mut self, now: Now) {
        for (slot, reports, head) in std::mem::take(&mut self.reports.blocked) {
            self.sign_report(slot, reports, head, now);
        }
    }

    /// Stores the report, when its turn has come where it is signed.
    fn sign_report(&mut self, slot: Slot, reports: Vec<Reportable>, head: Bytes, now: Now) {
        if self.signs_reports() {
            self.reports.unsigned.push_back((slot, reports, head));
        } else {
            self.send_report(slot, reports, head, now);
        }
    }

    /// Whether a report waits for its turn to be signed.
    pub(super) fn has_unsigned_reports(&self) -> bool {
        !self.reports.unsigned.is_empty()
    }

    /// Stores the oldest report that waits for that. Gives about how long it took, in microseconds; none when none waits.
    pub(super) fn sign_next_report(&mut self, now: Now) -> Option<u32> {
        let (slot, reports, head) = self.reports.unsigned.pop_front()?;
        Some(self.send_report(slot, reports, head, now))
    }

    /// Stores the report together with the outcomes it speaks of. Gives about how long its signatures took, in microseconds.
    fn send_report(&mut self, slot: Slot, mut reports: Vec<Reportable>, head: Bytes, now: Now) -> u32 {
        let id = self.ids.next(now.unix);
        let Some((envelope, content)) = self.compose(id, slot, &reports, &head, now) else {
            self.close_report(slot);
            return 0;
        };
        let signatures_len = self.report_signatures_len(&envelope, &content, now);
        let room = signatures_len + content.len() + DSN_ROOM + reports.len() * (DETAILS_MAX + 256);
        let reserved = self.log.reserve_group(room);
        if reserved == Err(LogFull::TooLarge) && reports.len() > 1 {
            // More recipients than a segment has room for: several reports.
            let rest = reports.split_off(reports.len() / 2);
            *self.reports.open.entry(slot).or_default() += 1;
            let spent_us = self.send_report(slot, reports, head.clone(), now);
            return spent_us + self.send_report(slot, rest, head, now);
        }
        if reserved.is_err() {
            if self.reports.blocked.is_empty() {
                self.notice(Severity::Error, "the spool has no room for delivery reports: free some disk space");
            }
            self.reports.blocked.push((slot, reports, head));
            self.reports.prepared = self.log.prepared_segments();
            return 0;
        }
        for report in &reports {
            if let Some(kind) = report.record {
                self.record(slot, report.recipient, kind, report.attempts, 0, &report.outcome, now);
            }
        }
        let about = self.queue.message(slot).map(|message| message.id());
        let (signatures, spent_us) = self.report_signatures(&envelope, &content, now);
        let mut chunks = vec![signatures, Bytes::from(content)];
        chunks.retain(|chunk| !chunk.is_empty());
        if self.append(None, id, envelope.clone(), NewContent::Inline(chunks.clone()), about, now).is_err() {
            self.unsent_notifications.push((id, envelope, chunks, about));
        }
        self.log.end_group();
        self.close_report(slot);
        spent_us
    }

    fn close_report(&mut self, slot: Slot) {
        if let Some(open) = self.reports.open.get_mut(&slot) {
            *open -= 1;
            if *open == 0 {
                self.reports.open.remove(&slot);
            }
        }
        self.end_if_finished(slot);
    }

    fn compose(
        &self,
        id: MessageId,
        slot: Slot,
        reports: &[Reportable],
        head: &[u8],
        now: Now,
    ) -> Option<(Envelope, Vec<u8>)> {
        let message = self.queue.message(slot)?;
        let sender = message.reverse_path()?;
        let recipients = reports
            .iter()
            .map(|report| dsn::ReportedRecipient {
                address: message.address(report.recipient),
                orcpt: message.orcpt(report.recipient),
                action: report.action,
                status: status(report),
                remote: report.outcome.remote.as_deref().filter(|_| report.outcome.from_peer),
                reply: &report.outcome.reply,
                meaning: report.outcome.meaning,
                last_attempt: now.unix,
                will_retry_until: (report.action == Action::Delayed)
                    .then(|| message.arrived().after(self.settings.schedule.lifetime)),
            })
            .collect();
        // Where 8-bit content could not go, a report that returns it could not go either.
        let eight_bit_refused = reports.iter().any(|report| report.outcome.reply.enhanced == Some(EIGHT_BIT_REFUSED));
        let report = dsn::Report {
            reporting_host: &self.settings.hostname,
            sender,
            envid: message.envid(),
            arrived: message.arrived(),
            about: message.id(),
            recipients,
            original: head,
            original_complete: head.len() as u64 == u64::from(message.content().len),
            ret: if eight_bit_refused { Some(Ret::Headers) } else { message.ret() },
            smtputf8: message.smtputf8(),
            now: now.unix,
            serial: id,
        };
        let dsn::Dsn { content, eight_bit, smtputf8 } = dsn::compose(&report);
        let to = crate::address::Address::parse(sender.as_bytes(), true).ok()?;
        let envelope = Envelope {
            reverse_path: None,
            body: if eight_bit { Body::EightBitMime } else { Body::SevenBit },
            smtputf8: smtputf8 || !to.is_ascii(),
            ret: None,
            envid: None,
            // RFC 3461 5.2.9: a report asks for no reports.
            recipients: vec![Recipient { address: to, notify: Notify::NEVER, orcpt: None }],
            tenant: self.tenants.name(message.tenant()).into(),
            arrived: now.unix,
            client: Box::default(),
            // RFC 8689 5: what a report tells is protected as the message is.
            require_tls: message.require_tls(),
            is_dsn: true,
            held: None,
        };
        Some((envelope, content))
    }

    /// Messages that have waited so long that their senders are told.
    pub(super) fn report_delays(&mut self, now: Now) {
        while let Some((slot, recipients)) = self.queue.poll_delayed() {
            let Some(message) = self.queue.message(slot) else { continue };
            if message.reverse_path().is_none() {
                continue;
            }
            let reports: Vec<Reportable> = recipients
                .into_iter()
                .filter(|&recipient| message.notify(recipient).delay())
                .map(|recipient| {
                    let reply = Reply::new(451, (4, 4, 7), self.why_waiting(slot, recipient, now));
                    let class = message.last_class(recipient);
                    let meaning = class.map(|class| Meaning { class, kind: class.kind(false) });
                    let outcome = AttemptOutcome::local(Verdict::Deferred { not_before: None }, reply);
                    let outcome = AttemptOutcome { meaning, ..outcome };
                    Reportable { recipient, action: Action::Delayed, record: None, attempts: 0, outcome }
                })
                .collect();
            if !reports.is_empty() {
                self.report_fates(slot, reports, None, now);
            }
        }
    }

    /// When every recipient is done and reported, the message leaves the queue and, in time, the disk.
    pub(super) fn end_if_finished(&mut self, slot: Slot) {
        if self.reports.is_open(slot) || !self.queue.is_finished(slot) {
            return;
        }
        if let Some(message) = self.queue.message(slot) {
            let (id, content) = (message.id(), ContentRef::from(message.content()));
            self.log.finish(id.0, content);
            self.retained.forget(id);
        }
        self.queue.remove(slot);
    }

    /// The transaction of some of a message's recipients, without its content.
    pub(super) fn transaction_of(
        &self,
        slot: Slot,
        recipients: &[u16],
    ) -> Option<(Transaction, MessageId, ContentRef)> {
        let message = self.queue.message(slot)?;
        let transaction = Transaction {
            reverse_path: message.reverse_path().map(Into::into),
            recipients: recipients
                .iter()
                .map(|&recipient| OutgoingRecipient {
                    address: message.address(recipient).into(),
                    notify: message.notify(recipient),
                    orcpt: message.orcpt(recipient).map(Into::into),
                })
                .collect(),
            body: message.body(),
            smtputf8: message.smtputf8(),
            require_tls: message.require_tls(),
            ret: message.ret(),
            envid: message.envid().map(Into::into),
            content_len: u64::from(message.content().len),
            content: OutgoingContent::Streamed,
        };
        Some((transaction, message.id(), message.content().into()))
    }

    /// Records an operator's end of a message.
    pub(super) fn record_deleted(&mut self, slot: Slot, recipient: u16, now: Now) {
        let reply = Reply::fixed(550, 5, 0, 0, "Deleted by an operator");
        let outcome = AttemptOutcome::local(Verdict::Failed, reply);
        self.record(slot, recipient, OutcomeKind::Deleted, 0, 0, &outcome, now);
        self.metrics.deleted += 1;
    }

    /// Records that an operator holds a recipient, or no longer does.
    pub(super) fn record_act(&mut self, slot: Slot, recipient: u16, kind: OutcomeKind, now: Now) {
        let Some(message) = self.queue.message(slot) else { return };
        let (attempts, due) = (message.attempts(recipient), message.due(recipient).as_millis());
        let outcome = AttemptOutcome::local(Verdict::Unresolved, Reply::fixed(250, 2, 0, 0, "An operator's act"));
        self.record(slot, recipient, kind, attempts, due, &outcome, now);
    }
}

/// The status of RFC 3463 that a report gives: the peer's if it gave one, else by the kind of failure.
fn status(report: &Reportable) -> (u8, u16, u16) {
    if report.record == Some(OutcomeKind::Expired) {
        return (5, 4, 7);
    }
    let class = match report.action {
        Action::Failed => 5,
        Action::Delayed => 4,
        _ => 2,
    };
    match &report.outcome.reply.enhanced {
        Some(code) if code.class == class => (code.class, code.subject, code.detail),
        Some(code) if class != 2 => (class, code.subject, code.detail),
        _ => (class, 0, 0),
    }
}

fn last_reply(reply: &Reply) -> LastReply {
    let enhanced = reply.enhanced.as_ref().map(|code| (code.class, code.subject, code.detail));
    LastReply::new(reply.code, enhanced)
}

/// What the record keeps of an attempt besides its numbers: the peer, its reply, which may be cut, and what that means.
fn details(outcome: &AttemptOutcome) -> String {
    let remote = outcome.remote.as_deref().unwrap_or("");
    let mut text = String::with_capacity(remote.len() + outcome.reply.text.len() + 64);
    // Writing to a String cannot fail.
    let _ = write!(text, "{remote}\n{}", outcome.reply);
    let words = outcome.meaning.map(|Meaning { class, kind }| ["\nclass=", class.name(), " kind=", kind.name()]);
    let room = DETAILS_MAX - words.iter().flatten().map(|word| word.len()).sum::<usize>();
    if text.len() > room {
        let end = (0..=room).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
    text.extend(words.into_iter().flatten());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::class::{BounceKind, ReplyClass};

    #[test]
    fn a_record_keeps_what_a_long_reply_means() {
        let meaning = Meaning { class: ReplyClass::ConnectionsExceeded, kind: BounceKind::Block };
        let mut outcome = AttemptOutcome::local(Verdict::Failed, Reply::new(550, (5, 0, 0), "é".repeat(400)));
        outcome.remote = Some("mx.example.net [192.0.2.1]:25".into());
        outcome.meaning = Some(meaning);
        let text = details(&outcome);
        assert!(text.len() <= DETAILS_MAX && text.len() > DETAILS_MAX - 4, "{}", text.len());
        let lines: Vec<&str> = text.split('\n').collect();
        assert_eq!((lines.len(), lines[0]), (3, "mx.example.net [192.0.2.1]:25"));
        assert_eq!(lines[2], "class=connections-exceeded kind=block");
        outcome.meaning = None;
        assert_eq!(details(&outcome).split('\n').count(), 2);
    }
}
