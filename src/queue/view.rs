//! What others may read of a waiting message: the router, the attempts, the reports and the operator's lists.
//!
//! Views borrow the queue and change nothing. A recipient is named by its place in the envelope; for a place that is
//! not there the answers are empty.

use super::destination::{SiteId, TenantId};
use super::recipient_state::{LastReply, State};
use super::store::{
    DELETE_AFTER, Fate, HOLD_AFTER, LEASED, Message, NO_SITE, Recipient, Slot, StoredContent, domain_of,
};
use super::timer_wheel::tick_instant;
use super::{Queue, RecoveredState, age_of};
use crate::address::Address;
use crate::clock::UnixTime;
use crate::envelope::{Body, Notify, Ret};
use crate::id::MessageId;
use crate::reply::class::ReplyClass;
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

    /// Why it came to be held, when it did: it may have been released since.
    pub fn came_held(&self) -> Option<&'a str> {
        self.message.came_held()
    }

    /// Its age at the latest time that the queue was told, by the clock that does not jump.
    pub fn age(&self) -> Duration {
        age_of(self.message, self.queue.now)
    }

    /// Whom to tell of failure; none is the null path.
    pub fn reverse_path(&self) -> Option<&'a str> {
        self.message.reverse_path()
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

    /// Whether it goes only where the way on is protected (RFC 8689).
    pub fn require_tls(&self) -> bool {
        self.message.require_tls()
    }

    /// RET=.
    pub fn ret(&self) -> Option<Ret> {
        self.message.ret()
    }

    /// Whether it is a report of this host.
    pub fn is_dsn(&self) -> bool {
        self.message.is_dsn()
    }

    /// How many recipients it was accepted for: their places are the numbers below.
    pub fn recipients(&self) -> u16 {
        self.message.recipients().len() as u16
    }

    /// How many of them have not ended.
    pub fn waiting(&self) -> u16 {
        self.message.waiting
    }

    fn recipient(&self, place: u16) -> Option<&'a Recipient> {
        self.message.recipients().get(usize::from(place))
    }

    /// A recipient's address, as accepted.
    pub fn address(&self, recipient: u16) -> &'a str {
        self.recipient(recipient).map_or("", |recipient| self.message.address(recipient))
    }

    /// Its domain, as written.
    pub fn domain(&self, recipient: u16) -> &'a str {
        domain_of(self.address(recipient))
    }

    /// Its domain as DNS knows it, see [`Address::routing_domain`]; none when DNS cannot hold it.
    pub fn routing_domain(&self, recipient: u16) -> Option<Box<str>> {
        let address = Address::parse(self.address(recipient).as_bytes(), true).ok()?;
        address.routing_domain().ok()
    }

    /// NOTIFY=.
    pub fn notify(&self, recipient: u16) -> Notify {
        self.recipient(recipient).map_or(Notify::DEFAULT, |recipient| recipient.notify)
    }

    /// ORCPT=, encoded as it came.
    pub fn orcpt(&self, recipient: u16) -> Option<&'a str> {
        self.message.orcpt(self.recipient(recipient)?)
    }

    /// Where it is.
    pub fn state(&self, recipient: u16) -> State {
        self.recipient(recipient).map_or(State::default(), |recipient| recipient.state)
    }

    /// Failed attempts so far.
    pub fn attempts(&self, recipient: u16) -> u16 {
        self.recipient(recipient).map_or(0, |recipient| recipient.attempts)
    }

    /// When its next attempt is due, on the wall clock as it was last told; in any state but scheduled: now.
    pub fn due(&self, recipient: u16) -> UnixTime {
        let now = self.queue.now;
        match self.recipient(recipient) {
            Some(recipient) if recipient.state == State::Scheduled => {
                now.unix.after(tick_instant(recipient.due).since(now.instant))
            }
            _ => now.unix,
        }
    }

    /// Where it was last routed to.
    pub fn site(&self, recipient: u16) -> Option<SiteId> {
        self.recipient(recipient).map(|recipient| recipient.site).filter(|&site| site != NO_SITE).map(SiteId)
    }

    /// The last reply about it; [`LastReply::NONE`] before the first, and after a restart.
    pub fn last_reply(&self, recipient: u16) -> LastReply {
        self.recipient(recipient).map_or(LastReply::NONE, |recipient| recipient.last_reply)
    }

    /// The class of that reply, if it was no success.
    pub fn last_class(&self, recipient: u16) -> Option<ReplyClass> {
        let place = usize::from(self.recipient(recipient)?.class).checked_sub(1)?;
        ReplyClass::ALL.get(place).copied()
    }

    fn has_flag(&self, place: u16, flag: u8) -> bool {
        self.recipient(place).is_some_and(|recipient| recipient.flags & flag != 0)
    }

    /// Whether its attempt is made by another shard.
    pub fn is_leased(&self, recipient: u16) -> bool {
        self.has_flag(recipient, LEASED)
    }

    /// Whether it is on hold, or will be when its attempt has failed.
    pub fn is_held(&self, recipient: u16) -> bool {
        self.state(recipient) == State::Held || self.has_flag(recipient, HOLD_AFTER)
    }

    /// Whether it will be ended when its attempt has failed.
    pub fn is_doomed(&self, recipient: u16) -> bool {
        self.has_flag(recipient, DELETE_AFTER)
    }

    /// All recipients' states in the form in which [`Queue::insert`] takes them: what the spool writes when it moves
    /// the message.
    pub fn fold(&self) -> Vec<RecoveredState> {
        let fate = |place| match self.state(place) {
            State::Done(disposition) => Fate::Done(disposition),
            _ if self.is_held(place) => Fate::Held,
            _ => Fate::Waiting,
        };
        let fold =
            |place| RecoveredState { fate: fate(place), attempts: self.attempts(place), next_due: self.due(place) };
        (0..self.recipients()).map(fold).collect()
    }
}
