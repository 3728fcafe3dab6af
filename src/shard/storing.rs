//! From a complete message to its acknowledgement: appended, synced, answered, queued; in this order.
//!
//! Invariant 1 lives here: a reply of success is made by [`Core::messages_durable`] alone, which runs when the spool
//! says that the record is on stable storage.

use crate::clock::{Instant, Now};
use crate::envelope::Envelope;
use crate::event::{Event, Severity};
use crate::id::MessageId;
use crate::io::handler::{Command, ConnId};
use crate::policy::charge::Charge;
use crate::queue::{NewMessage, StoredContent};
use crate::reply::Reply;
use crate::shard::core::Core;
use crate::shard::ingress::{InboundState, Incoming};
use bytes::Bytes;
use ringpost_spool as spool;
use ringpost_spool::{ContentRef, LogFull, NewContent, Position, SegmentId};
use std::collections::VecDeque;
use std::net::IpAddr;

/// A message whose record is appended and not yet known to be durable.
#[derive(Debug)]
pub struct Pending {
    position: Position,
    /// The session that waits; none for a notification of our own.
    origin: Option<Origin>,
    id: MessageId,
    envelope: Envelope,
    content: ContentRef,
    /// The content, for a first attempt without a read; empty when it lies in its own file.
    chunks: Vec<Bytes>,
    since: Instant,
    /// The message that a notification reports on.
    about: Option<MessageId>,
}

/// Whose message it is.
#[derive(Debug)]
pub struct Origin {
    /// The session, which may be gone by now.
    pub conn: ConnId,
    /// The client.
    pub client: IpAddr,
    /// What it called itself.
    pub helo: Box<str>,
    /// Whether the session was encrypted.
    pub tls: bool,
    /// What the message counts for.
    pub charge: Option<Charge>,
}

/// All such messages, in the order of their records.
pub type Storing = VecDeque<Pending>;

/// A message that the spool did not take.
#[derive(Debug)]
pub struct Unstored {
    origin: Option<Origin>,
    id: MessageId,
    envelope: Envelope,
    content: NewContent,
    /// Octets of content in memory, which the shard counts while the message waits.
    counted: usize,
}

impl Unstored {
    pub(super) fn charge(&mut self) -> Option<&mut Charge> {
        self.origin.as_mut().and_then(|origin| origin.charge.as_mut())
    }

    pub(super) fn charge_ref(&self) -> Option<&Charge> {
        self.origin.as_ref().and_then(|origin| origin.charge.as_ref())
    }

    /// Octets of it in memory.
    pub(super) fn counted(&self) -> usize {
        self.counted
    }

    /// What is needed when it ends without being stored: its id, whether it lies in a file of its own, and its session.
    fn end(&self) -> (MessageId, bool, Option<ConnId>) {
        let spilled = matches!(self.content, NewContent::Spilled { .. });
        (self.id, spilled, self.origin.as_ref().map(|origin| origin.conn))
    }
}

/// Messages whose sessions wait for a segment that is being prepared. Bounded by the memory for content, beyond which
/// no content is begun; in time, by the preparation.
pub type AwaitingRoom = VecDeque<Box<Unstored>>;

/// What a client is told whose message the spool does not take.
pub(super) const fn refusal(full: LogFull) -> Reply {
    match full {
        LogFull::NoSpace => Reply::fixed(452, 4, 3, 1, "No room in the spool; try again later"),
        LogFull::Behind => Reply::fixed(451, 4, 3, 0, "The spool's disk does not keep up; try again later"),
        LogFull::Failing => Reply::fixed(451, 4, 3, 0, "The spool's disk reports errors; try again later"),
        LogFull::TooLarge => Reply::fixed(552, 5, 3, 4, "The message is too large for the spool"),
    }
}

pub(super) const STORAGE_FAILED: Reply =
    Reply::fixed(451, 4, 3, 0, "The message could not be put on stable storage; try again later");

impl Core {
    /// Appends a message whose content is in memory.
    pub(super) fn store_inline(&mut self, origin: Origin, incoming: Incoming, now: Now) -> Result<(), Reply> {
        let content = NewContent::Inline(vec![Bytes::from(incoming.content)]);
        self.store(origin, incoming.id, incoming.envelope, content, incoming.counted, now)
    }

    /// Appends a client's message, once it counts; `counted` are the octets of it in memory, should it have to wait.
    pub(super) fn store(
        &mut self,
        origin: Origin,
        id: MessageId,
        envelope: Envelope,
        content: NewContent,
        counted: usize,
        now: Now,
    ) -> Result<(), Reply> {
        let message = Unstored { origin: Some(origin), id, envelope, content, counted };
        match self.await_count(message, now)? {
            Some(message) => self.append_or_wait(message, now).map_err(refusal),
            None => Ok(()),
        }
    }

    /// Appends a message that has waited.
    pub(super) fn store_waiting(&mut self, message: Unstored, now: Now) {
        let end = message.end();
        if let Err(full) = self.append_or_wait(message, now) {
            self.end_waiting(end, refusal(full), now);
        }
    }

    /// Ends a message that has waited and is not stored.
    pub(super) fn refuse_waiting(&mut self, message: Unstored, reply: Reply, now: Now) {
        let end = message.end();
        drop(message);
        self.end_waiting(end, reply, now);
    }

    fn end_waiting(&mut self, end: (MessageId, bool, Option<ConnId>), reply: Reply, now: Now) {
        let (id, spilled, conn) = end;
        if spilled {
            self.log.remove_spill(id.0);
        }
        if let Some(conn) = conn {
            self.answer_stored(conn, Err(reply), now);
        }
    }

    /// Appends a client's message; where a segment is only not prepared yet, it waits for that with its session.
    fn append_or_wait(&mut self, message: Unstored, now: Now) -> Result<(), LogFull> {
        let (full, refused) = if self.awaiting_room.is_empty() {
            let Unstored { origin, id, envelope, content, counted } = message;
            match self.append(origin, id, envelope, content, None, now) {
                Ok(()) => return Ok(()),
                Err((full, unstored)) => (full, Box::new(Unstored { counted, ..*unstored })),
            }
        } else {
            // Nobody overtakes those who wait.
            (self.log.refusal_of_messages().unwrap_or(LogFull::Behind), Box::new(message))
        };
        if full == LogFull::TooLarge || !self.log.room_is_coming() {
            return Err(full);
        }
        self.content_octets += refused.counted;
        self.awaiting_room.push_back(refused);
        Ok(())
    }

    /// Appends what waits for room, as far as there is some now; says so to the sessions when there will be none.
    pub(super) fn append_waiting(&mut self, now: Now) {
        while let Some(waiting) = self.awaiting_room.pop_front() {
            let end = waiting.end();
            let Unstored { origin, id, envelope, content, counted } = *waiting;
            let Err((full, unstored)) = self.append(origin, id, envelope, content, None, now) else {
                self.content_octets -= counted;
                continue;
            };
            if full != LogFull::TooLarge && self.log.room_is_coming() {
                self.awaiting_room.push_front(Box::new(Unstored { counted, ..*unstored }));
                return;
            }
            self.content_octets -= counted;
            self.end_waiting(end, refusal(full), now);
        }
    }

    /// Appends a client's message whose content lies in its own file.
    pub(super) fn store_spilled(
        &mut self,
        origin: Origin,
        id: MessageId,
        envelope: Envelope,
        content: NewContent,
        now: Now,
    ) -> Result<(), Reply> {
        self.store(origin, id, envelope, content, 0, now)
    }

    pub(super) fn resume(&mut self, state: &mut InboundState) {
        if std::mem::take(&mut state.paused) {
            self.commands.push_back(Command::ResumeRead(state.conn));
        }
    }

    /// Appends a message's record. On refusal nothing was changed, and the message comes back.
    pub(super) fn append(
        &mut self,
        origin: Option<Origin>,
        id: MessageId,
        envelope: Envelope,
        content: NewContent,
        about: Option<MessageId>,
        now: Now,
    ) -> Result<(), (LogFull, Box<Unstored>)> {
        self.scratch.clear();
        envelope.encode(&mut self.scratch);
        let (chunks, spilled) = match &content {
            NewContent::Inline(chunks) => (chunks.clone(), None),
            NewContent::Spilled { front, len, crc } => (Vec::new(), Some((*front, *len, *crc))),
        };
        let message = spool::NewMessage {
            id: id.0,
            envelope: &self.scratch,
            recipients: envelope.recipients.len() as u32,
            content,
            held: envelope.held.is_some(),
        };
        let stored = match self.log.append_message(message) {
            Ok(stored) => stored,
            Err(full) => {
                let content = match spilled {
                    Some((front, len, crc)) => NewContent::Spilled { front, len, crc },
                    None => NewContent::Inline(chunks),
                };
                return Err((full, Box::new(Unstored { origin, id, envelope, content, counted: 0 })));
            }
        };
        self.storing.push_back(Pending {
            position: stored.position,
            origin,
            id,
            envelope,
            content: stored.content,
            chunks,
            since: now.instant,
            about,
        });
        Ok(())
    }

    /// The spool says that everything up to `position` is on stable storage.
    pub(super) fn messages_durable(&mut self, position: Position, now: Now) {
        while self.storing.front().is_some_and(|pending| pending.position <= position) {
            if let Some(pending) = self.storing.pop_front() {
                self.message_durable(pending, now);
            }
        }
    }

    fn message_durable(&mut self, pending: Pending, now: Now) {
        let Pending { origin, id, envelope, content, chunks, since, about, .. } = pending;
        match (origin, about) {
            (Some(origin), _) => self.acknowledge(origin, id, &envelope, content, since, now),
            (None, Some(about)) => {
                let recipient = envelope.recipients.first().map_or("", |recipient| recipient.address.as_str()).into();
                self.metrics.dsn += 1;
                self.event(Event::DsnQueued { id, about, recipient });
            }
            (None, None) => {}
        }
        let tenant = self.tenants.id_of(&envelope.tenant);
        if !self.settings.hold && envelope.held.is_none() && !chunks.is_empty() {
            self.retained.keep(id, chunks);
        }
        self.note_wait(id, &envelope);
        let message = NewMessage { id, envelope, content: content.into(), states: None, tenant };
        self.queue.insert(message, now);
        self.metrics.messages_received += 1;
        self.route_unrouted(now);
    }

    fn acknowledge(
        &mut self,
        origin: Origin,
        id: MessageId,
        envelope: &Envelope,
        content: ContentRef,
        since: Instant,
        now: Now,
    ) {
        let commit = now.instant.since(since).as_micros() as u64;
        self.metrics.commit_us.saturating_record(commit);
        self.metrics.recipients_received += envelope.recipients.len() as u64;
        let size = u64::from(content.len);
        if size > self.settings.large_message {
            self.event(Event::LargeMessage { id, size });
        }
        if let Some(reason) = &envelope.held {
            self.event(Event::CameHeld { id, reason: reason.clone() });
        }
        let Origin { conn, client, helo, tls, charge } = origin;
        charge.into_iter().for_each(Charge::keep);
        self.event(Event::Received {
            id,
            client,
            helo,
            sender: envelope.reverse_path.as_ref().map_or("", |path| path.as_str()).into(),
            recipients: envelope.recipients.len() as u32,
            first_recipient: envelope.recipients.first().map_or("", |first| first.address.as_str()).into(),
            size,
            tenant: envelope.tenant.clone(),
            tls,
            commit_us: commit,
        });
        self.answer_stored(conn, Ok(id), now);
    }

    /// Gives a waiting session its answer and lets it read on.
    pub(super) fn answer_stored(&mut self, conn: ConnId, result: Result<MessageId, Reply>, now: Now) {
        if let Err(reply) = &result
            && let Some(client) = self.connections.client_of(conn)
        {
            self.reject(client, "", None, reply);
        }
        self.tell_stored(conn, result, now);
    }

    /// The same, where the log has been told.
    pub(super) fn tell_stored(&mut self, conn: ConnId, result: Result<MessageId, Reply>, now: Now) {
        let Some(mut inbound) = self.connections.take_inbound(conn) else { return };
        inbound.state.storing = false;
        let mut out = Vec::with_capacity(64);
        let step = inbound.session.handle_stored(result, now.instant, &mut out);
        self.send(conn, out.into());
        self.resume(&mut inbound.state);
        self.after_step(inbound, step);
        if self.stopping.is_some() {
            self.inbound_shutdown(conn);
        }
    }

    /// The spool lost these records: nobody was told that they are safe, and now the senders learn that they are not.
    pub(super) fn messages_failed(&mut self, to: Position, now: Now) {
        self.metrics.sync_failures += 1;
        while self.storing.front().is_some_and(|pending| pending.position <= to) {
            let Some(pending) = self.storing.pop_front() else { break };
            match pending.origin {
                Some(origin) => self.answer_stored(origin.conn, Err(STORAGE_FAILED), now),
                // A notification of our own: the spool appends it again, with its outcome, and says where it is then.
                None => self.moving_notifications.push(pending),
            }
        }
    }

    /// A message's record lies elsewhere from now on.
    pub(super) fn message_moved(&mut self, id: MessageId, content: ContentRef) {
        let is_it = |pending: &Pending| pending.id == id && pending.origin.is_none();
        let moving = self.moving_notifications.iter().position(is_it);
        let pending = match moving {
            Some(at) => Some(self.moving_notifications.swap_remove(at)),
            None => self.storing.iter().position(is_it).and_then(|at| self.storing.remove(at)),
        };
        if let Some(pending) = pending {
            // Appended again, not durable yet: it waits for everything that is appended by now.
            let position = self.log.position();
            self.storing.push_back(Pending { content, position, ..pending });
        } else if let Some(slot) = self.queue.find(id) {
            self.queue.update_content(slot, content.into());
        }
    }

    /// Tries again to store notifications for which the spool had no room.
    pub(super) fn append_unsent_notifications(&mut self, now: Now) {
        for (id, envelope, chunks, about) in std::mem::take(&mut self.unsent_notifications) {
            let content = NewContent::Inline(chunks.clone());
            if self.append(None, id, envelope.clone(), content, about, now).is_err() {
                self.unsent_notifications.push((id, envelope, chunks, about));
            }
        }
    }

    pub(super) fn notice(&mut self, severity: Severity, text: impl Into<String>) {
        self.event(Event::Notice { severity, text: text.into().into() });
    }
}

impl From<ContentRef> for StoredContent {
    fn from(content: ContentRef) -> StoredContent {
        let ContentRef { segment, offset, len, crc, spilled } = content;
        StoredContent { segment: segment.0, offset, len, crc, spilled }
    }
}

impl From<StoredContent> for ContentRef {
    fn from(content: StoredContent) -> ContentRef {
        let StoredContent { segment, offset, len, crc, spilled } = content;
        ContentRef { segment: SegmentId(segment), offset, len, crc, spilled }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_of_the_spool_has_its_own_reply() {
        let all = [LogFull::NoSpace, LogFull::Behind, LogFull::Failing, LogFull::TooLarge].map(refusal);
        let (codes, texts): (Vec<u16>, Vec<_>) = all.iter().map(|reply| (reply.code, reply.text.as_ref())).unzip();
        // 452 is for room alone: a sender that reads the words must not look for a full disk where there is none.
        assert_eq!(codes, [452, 451, 451, 552]);
        assert!(texts[0].contains("room") && texts[1].contains("keep up"));
        assert!(texts[2].contains("errors") && texts[3].contains("too large"));
    }
}
