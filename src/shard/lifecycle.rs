//! The two ends of a shard's life: what recovery found comes into the queue, and the orderly stop.

use crate::clock::{Now, UnixTime};
use crate::envelope::Envelope;
use crate::event::Severity;
use crate::id::MessageId;
use crate::io::handler::{Command, ConnId};
use crate::limits::{DRAIN_TIME, FIRST_SEGMENT_TIME, STOP_LINGER};
use crate::queue::{Disposition, Fate, NewMessage, RecoveredState, Slot};
use crate::shard::connections::Conn;
use crate::shard::core::Core;
use crate::shard::message::{Report, ShardState, ToShard};
use ringpost_spool::{OutcomeKind, RecipientFold, RecoveredMessage, RecoveredSegment, SegmentId};

impl Core {
    /// Recovery found these messages of ours.
    pub(super) fn recovered(&mut self, messages: Vec<RecoveredMessage>, now: Now) {
        for message in messages {
            let id = MessageId(message.id);
            self.ids.advance_past(id);
            let envelope = match Envelope::decode(&message.envelope) {
                Ok(envelope) => envelope,
                Err(error) => {
                    self.notice(
                        Severity::Error,
                        format!("the envelope of {id} in the spool cannot be read ({error}); it stays there: see `ringpost spool dump`"),
                    );
                    self.unreadable.insert(id);
                    continue;
                }
            };
            let states = message
                .states
                .iter()
                .map(|state| RecoveredState {
                    fate: fate(state),
                    attempts: state.attempts,
                    next_due: UnixTime::from_millis(state.next_due_ms),
                })
                .collect();
            let tenant = self.tenants.id_of(&envelope.tenant);
            self.note_wait(id, &envelope);
            let new = NewMessage { id, envelope, content: message.content.into(), states: Some(states), tenant };
            self.queue.insert(new, now);
        }
        self.route_unrouted(now);
    }

    /// An old segment is gone: segments that other shards own may have waited for that.
    pub(super) fn tell_recycled(&mut self, segment: SegmentId) {
        for shard in (0..self.shards).filter(|&shard| shard != self.shard) {
            self.commands.push_back(Command::Post { shard, message: ToShard::Recycled(segment) });
        }
    }

    /// The spool wants to move a message's record: the states of its recipients, if it is still here.
    pub(super) fn tell_state(&mut self, id: MessageId) {
        match self.queue.find(id) {
            None if self.unreadable.contains(&id) => self.log.keep_place(id.0),
            None => self.log.provide_state(id.0, None),
            // A fate whose report is not stored yet must not look final.
            Some(slot) if self.reports.is_open(slot) => self.log.keep_place(id.0),
            Some(slot) => {
                let states = self.fold(slot);
                self.log.provide_state(id.0, Some(states));
            }
        }
    }

    /// The state of each recipient, for a record that is moved.
    fn fold(&self, slot: Slot) -> Vec<RecipientFold> {
        let states = self.queue.message(slot).map(|message| message.fold()).unwrap_or_default();
        states
            .into_iter()
            .map(|state| RecipientFold {
                kind: kind(state.fate),
                attempts: state.attempts,
                next_due_ms: state.next_due.as_millis(),
            })
            .collect()
    }

    /// Recovery is complete.
    pub(super) fn recovery_done(&mut self, segments: Vec<RecoveredSegment>, greatest_id: u64, now: Now) {
        self.ids.advance_past(MessageId(greatest_id));
        self.log.adopt(segments);
        self.recovering = false;
        let shard = self.shard;
        self.report(Report::State { shard, state: ShardState::Recovered });
        self.route_unrouted(now);
    }

    /// Takes no new mail, finishes what is under way, and ends.
    pub(super) fn shut_down(&mut self, now: Now) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(now.instant);
        self.loads.note_stopping();
        self.return_all_guests(now.instant);
        self.commands.push_back(Command::StopListening);
        let open: Vec<(ConnId, bool)> = (0..self.connections.places())
            .filter_map(|index| self.connections.at(index))
            .map(|(id, conn)| (id, matches!(conn, Conn::Inbound(_))))
            .collect();
        for (id, inbound) in open {
            if inbound {
                self.inbound_shutdown(id);
            } else {
                self.quit_if_idle(id, None, now);
            }
        }
    }

    /// Tells the control thread that mail is taken: once the spool has its first segment, which on a fresh spool takes
    /// a moment. A spool without room keeps nobody waiting for long, since what it holds is delivered all the same.
    pub(super) fn announce(&mut self, now: Now) {
        let Some(since) = self.unannounced else { return };
        if self.log.accepts_messages() || now.instant.since(since) >= FIRST_SEGMENT_TIME {
            self.unannounced = None;
            let shard = self.shard;
            self.report(Report::State { shard, state: ShardState::Listening });
        }
    }

    /// Ends the shard once nothing is under way, or the time for it is over.
    pub(super) fn stop_if_done(&mut self, now: Now) {
        let Some(since) = self.stopping else { return };
        if self.is_stopped() {
            return;
        }
        let late = now.instant.since(since) >= DRAIN_TIME;
        let quiet = self.connections.inbound() == 0
            && self.connections.outbound() == 0
            && self.storing.is_empty()
            && self.signing.is_empty()
            && self.filtering.is_empty()
            && self.awaiting_room.is_empty()
            && self.awaiting_count.is_empty()
            && self.unsent_answers.is_empty()
            && self.leases.none_out();
        if late && !quiet {
            self.close_all();
        }
        if quiet && self.reports.none_open() && self.log.is_idle() && self.none_lends_to_us(now) {
            self.set_stopped();
            let shard = self.shard;
            self.report(Report::State { shard, state: ShardState::Stopped });
            self.commands.push_back(Command::Exit);
        }
    }

    /// Whether no other shard can have lent something that is not answered: each of them stops, and what they sent
    /// before that has had time to come out of the mailbox. Who left earlier would take the answers with him.
    fn none_lends_to_us(&mut self, now: Now) -> bool {
        if self.shards == 1 {
            return true;
        }
        if !self.loads.all_stopping() {
            return false;
        }
        let since = *self.all_stop_since.get_or_insert(now.instant);
        now.instant.since(since) >= STOP_LINGER
    }

    fn close_all(&mut self) {
        let open: Vec<ConnId> =
            (0..self.connections.places()).filter_map(|index| self.connections.at(index)).map(|(id, _)| id).collect();
        for id in open {
            self.close(id, false);
        }
    }
}

/// What the queue is told of a recipient that recovery found.
fn fate(state: &RecipientFold) -> Fate {
    match state.kind {
        Some(OutcomeKind::Delivered) => Fate::Done(Disposition::Delivered),
        Some(OutcomeKind::Bounced) => Fate::Done(Disposition::Bounced),
        Some(OutcomeKind::Expired) => Fate::Done(Disposition::Expired),
        Some(OutcomeKind::Suppressed) => Fate::Done(Disposition::Suppressed),
        Some(OutcomeKind::Deleted) => Fate::Done(Disposition::Deleted),
        Some(OutcomeKind::Held) => Fate::Held,
        Some(OutcomeKind::Deferred | OutcomeKind::Released) | None => Fate::Waiting,
    }
}

/// The other way round.
fn kind(fate: Fate) -> Option<OutcomeKind> {
    match fate {
        Fate::Done(Disposition::Delivered) => Some(OutcomeKind::Delivered),
        Fate::Done(Disposition::Bounced) => Some(OutcomeKind::Bounced),
        Fate::Done(Disposition::Expired) => Some(OutcomeKind::Expired),
        Fate::Done(Disposition::Suppressed) => Some(OutcomeKind::Suppressed),
        Fate::Done(Disposition::Deleted) => Some(OutcomeKind::Deleted),
        Fate::Held => Some(OutcomeKind::Held),
        Fate::Waiting => None,
    }
}
