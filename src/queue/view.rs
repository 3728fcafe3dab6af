//! What others may read of a waiting message: the router, the attempts, the reports and the operator's lists.
//!
//! Views borrow the queue and change nothing.

use super::destination::{SiteId, TenantId};
use super::recipient_state::{LastReply, State};
use super::store::{DELETE_AFTER, HOLD_AFTER, LEASED, Message, NO_SITE, Recipient, Slot, StoredContent, domain_of};
use super::timer_wheel::tick_instant;
use super::{Queue, age_of};
use crate::clock::UnixTime;
use crate::envelope::{Body, Notify, Ret};
use crate::id::MessageId;
use std::time::Duration;

impl Queue {
    /// The message at this place, if there is one.
    pub fn message(&self, slot: Slot) -> Option<MessageView<'_>> {
        self.store.get(slot).map(|message| MessageView { message, queue: self })
    }
}

/// A waiting message.
#[derive(Copy, Clone, Debug)]
pub struct MessageView<'a> {
    message: &'a Message,
    queue: &'a Queue,
}

impl<'a> MessageView<'a> {
    /// Its id.
    pub fn id(&self) -> MessageId {
        MessageId(self.message.id)
    }

    /// Its tenant.
    pub fn tenant(&self) -> TenantId {
        self.message.tenant
    }

    /// Where its content lies.
    pub fn content(&self) -> StoredContent {
        self.message.content()
    }

    /// When it was accepted.
    pub fn arrived(&self) -> UnixTime {
        self.message.arrived()
    }

    /// Its age at the latest time that the queue was told, by the clock that does not jump.
    pub fn age(&self) -> Duration {
        age_of(self.message, self.queue.now)
    }

    /// Whom to tell of failure; none is the null path.
    pub fn reverse_path(&self) -> Option<&'a str> {
        self.message.reverse_path()
    }

    /// "name [ip]" of the client that sent it.
    pub fn client(&self) -> &'a str {
        self.message.client()
    }

    /// The sender's name for it, as xtext (RFC 3461 section 4.4).
    pub fn envid(&self) -> Option<&'a str> {
        self.message.envid()
    }

    /// BODY=.
    pub fn body(&self) -> Body {
        self.message.body()
    }

    /// Whether it needs peers with SMTPUTF8.
    pub fn smtputf8(&self) -> bool {
        self.message.smtputf8()
    }

    /// RET=.
    pub fn ret(&self) -> Option<Ret> {
        self.message.ret()
    }

    /// Whether it is a report of this host.
    pub fn is_dsn(&self) -> bool {
        self.message.is_dsn()
    }

    /// How many recipients it was accepted for.
    pub fn recipient_count(&self) -> usize {
        self.message.recipients().len()
    }

    /// How many of them have not ended.
    pub fn waiting_count(&self) -> usize {
        usize::from(self.message.waiting)
    }

    /// One recipient, by its place in the envelope.
    pub fn recipient(&self, place: u16) -> Option<RecipientView<'a>> {
        let recipient = self.message.recipients().get(usize::from(place))?;
        Some(RecipientView { recipient, message: self.message, queue: self.queue })
    }

    /// All recipients with their places, those that have ended included.
    pub fn recipients(&self) -> impl Iterator<Item = (u16, RecipientView<'a>)> + use<'a> {
        let MessageView { message, queue } = *self;
        let recipients = message.recipients().iter().enumerate();
        recipients.map(move |(place, recipient)| (place as u16, RecipientView { recipient, message, queue }))
    }
}

/// A recipient of a waiting message.
#[derive(Copy, Clone, Debug)]
pub struct RecipientView<'a> {
    recipient: &'a Recipient,
    message: &'a Message,
    queue: &'a Queue,
}

impl<'a> RecipientView<'a> {
    /// Its address, as accepted.
    pub fn address(&self) -> &'a str {
        self.message.address(self.recipient)
    }

    /// The address's domain, as written.
    pub fn domain(&self) -> &'a str {
        domain_of(self.address())
    }

    /// NOTIFY=.
    pub fn notify(&self) -> Notify {
        self.recipient.notify
    }

    /// ORCPT=, encoded as it came.
    pub fn orcpt(&self) -> Option<&'a str> {
        self.message.orcpt(self.recipient)
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.recipient.state
    }

    /// Failed attempts so far.
    pub fn attempts(&self) -> u16 {
        self.recipient.attempts
    }

    /// When its next attempt is due, while it is scheduled, on the wall clock as it was last told.
    pub fn due(&self) -> Option<UnixTime> {
        let now = self.queue.now;
        let wait = tick_instant(self.recipient.due).since(now.instant);
        (self.recipient.state == State::Scheduled).then(|| now.unix.after(wait))
    }

    /// Where it was last routed to.
    pub fn site(&self) -> Option<SiteId> {
        (self.recipient.site != NO_SITE).then_some(SiteId(self.recipient.site))
    }

    /// The last reply about it; [`LastReply::NONE`] before the first, and after a restart.
    pub fn last_reply(&self) -> LastReply {
        self.recipient.last_reply
    }

    /// Whether its attempt is made by another shard.
    pub fn is_leased(&self) -> bool {
        self.recipient.flags & LEASED != 0
    }

    /// Whether it is on hold, or will be when its attempt has failed.
    pub fn is_held(&self) -> bool {
        self.recipient.state == State::Held || self.recipient.flags & HOLD_AFTER != 0
    }

    /// Whether it will be ended when its attempt has failed.
    pub fn is_doomed(&self) -> bool {
        self.recipient.flags & DELETE_AFTER != 0
    }
}
