//! The queue of one shard: which recipient waits for what, and which one goes next.
//!
//! A message comes in with [`Queue::insert`] after its 250, and leaves with [`Queue::remove`] when every recipient
//! has its disposition. Between, each recipient is in exactly one state of [`recipient_state`]: the router gets it
//! from [`Queue::poll_unrouted`], its site's list gives it to an attempt by [`Queue::pick`], the attempt's end is told
//! with [`Queue::settle`], and [`Queue::handle_timeout`] brings it back when it is due.
//!
//! The queue is pure: it reads no clock, does no IO and holds no content; it is not durable, the spool is. Every step
//! is O(1), or proportional to the recipients of the one message it concerns; inserting, finding and removing a
//! message also cost a step down a sorted map. It does not fail: a call that does not fit the recipient's state
//! changes nothing, because an operator may have acted while an answer was on its way.

pub mod destination;
pub mod dsn;
mod dsn_text;
mod grouping;
pub mod operate;
pub mod recipient_state;
pub mod retry;
#[cfg(test)]
mod shadow;
pub mod slab;
pub mod store;
pub mod timer_wheel;
mod timers;
pub mod view;

use crate::clock::{Instant, Now, UnixTime};
use crate::id::MessageId;
use crate::limits;
use crate::reply::class::ReplyClass;
use destination::{Destinations, Group, SiteCounts};
use recipient_state::{Step, next};
use retry::RetrySchedule;
use slab::{List, NONE, Slab};
use std::collections::VecDeque;
use std::time::Duration;
use store::{DELETE_AFTER, HOLD_AFTER, LEASED, LISTED, Message, Recipient, Store, TRIED, WARNED};
use timer_wheel::{TimerWheel, tick_at, tick_instant};

pub use destination::{SiteId, TenantId};
pub use operate::{Filter, Page};
pub use recipient_state::{Disposition, LastReply, State};
pub use store::{Fate, NewMessage, RecoveredState, Slot, StoredContent};
pub use view::MessageView;

/// How a queue behaves.
#[derive(Clone, Debug, Default)]
pub struct QueueConfig {
    /// When deferred recipients come back.
    pub schedule: RetrySchedule,
    /// Take messages and deliver nothing, until [`Queue::set_hold_all`] says otherwise.
    pub hold_all: bool,
}

/// What goes in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    /// The message.
    pub slot: Slot,
    /// Its recipients, by their place in the envelope. At least one.
    pub recipients: Vec<u16>,
}

/// What became of an attempt at a recipient, or of its routing.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next hop took it.
    Delivered,
    /// It failed for good.
    Failed,
    /// An attempt failed for now.
    Deferred {
        /// No retry before this, as the peer asked; obeyed for up to [`limits::RETRY_NOT_BEFORE_MAX`].
        not_before: Option<Instant>,
    },
    /// No attempt could be made: DNS gave no answer, or something local failed. Waits as after a failed attempt, but
    /// the first such failure in this process does not make it expire.
    Unresolved,
    /// A rule of ours keeps it from being sent.
    Suppressed,
    /// An operator ended it.
    Deleted,
}

/// What a verdict led to.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It has ended, so: record it. [`Disposition::Deleted`] also after a deferral, when an operator had asked.
    Done(Disposition),
    /// It waits for its next attempt; on hold, if an operator had asked, and the due time is what it would have been.
    Retry {
        /// When, on the wall clock as it is now.
        due: UnixTime,
        /// Failed attempts so far.
        attempts: u16,
    },
    /// It failed once more and its time is over: it has ended, record it.
    Expired,
    /// Nothing changed: it had ended before, is not under way, or is unknown. An answer that came twice.
    Ignored,
}

/// What [`Queue::remove`] gives back.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The message.
    pub id: MessageId,
    /// Where its content lies.
    pub content: StoredContent,
}

/// How much waits.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages.
    pub messages: u64,
    /// Recipients that the router is to answer for.
    pub unrouted: u64,
    /// Recipients that wait for DNS.
    pub parked: u64,
    /// Recipients that wait for their time.
    pub scheduled: u64,
    /// Recipients in their site's list.
    pub ready: u64,
    /// Recipients in an attempt, those lent included.
    pub in_flight: u64,
    /// Recipients in an attempt of another shard.
    pub leased: u64,
    /// Recipients on hold.
    pub held: u64,
    /// Recipients that have ended while others of their message wait.
    pub done: u64,
}

impl Counts {
    /// Recipients that have not ended.
    pub fn waiting(&self) -> u64 {
        self.unrouted + self.parked + self.scheduled + self.ready + self.in_flight + self.held
    }
}

/// The queue. See the module's note.
#[derive(Debug)]
pub struct Queue {
    schedule: RetrySchedule,
    hold_all: bool,
    seed: u64,
    /// The latest time told.
    now: Now,
    store: Store,
    groups: Slab<Group>,
    destinations: Destinations,
    /// Groups that wait for the router.
    unrouted: List,
    /// At most one timer per message.
    wheel: TimerWheel<u32>,
    /// Messages with recipients that have `WARN`; it may name places that were freed or taken again.
    delayed: VecDeque<Slot>,
    /// Recipients by [`State::index`].
    tally: [u64; State::COUNT],
    leased: u64,
}

impl Queue {
    /// An empty queue. The seed decides the jitter of retries.
    pub fn new(config: QueueConfig, seed: u64) -> Queue {
        Queue {
            schedule: config.schedule,
            hold_all: config.hold_all,
            seed,
            now: Now::default(),
            store: Store::default(),
            groups: Slab::new(),
            destinations: Destinations::new(seed),
            unrouted: List::EMPTY,
            wheel: TimerWheel::new(),
            delayed: VecDeque::new(),
            tally: [0; State::COUNT],
            leased: 0,
        }
    }

    /// Takes a message. Recipients whose time is still to come are scheduled, no further ahead than one wait of the
    /// schedule; the others come out of [`Queue::poll_unrouted`]. A message that is there already stays as it is.
    pub fn insert(&mut self, new: NewMessage, now: Now) -> Slot {
        self.tell(now);
        if let Some(slot) = self.store.find(new.id) {
            return slot;
        }
        // A message that was taken just now is new even if the wall clock jumped since its MAIL.
        let age = if new.states.is_some() { now.unix.since(new.envelope.arrived) } else { Duration::ZERO };
        let born_ms = signed_millis(now.instant) - age.as_millis().min(i64::MAX as u128 / 4) as i64;
        let mut message = Message::pack(new.id, &new.envelope, new.content, new.tenant, born_ms);
        // Whether a warning was given before a restart is not on disk: better none than one after each restart.
        let warns = message.has_reverse_path()
            && self.schedule.delay_warning.is_some_and(|wait| new.states.is_none() || age < wait);
        let mut waiting = message.waiting;
        for (place, recipient) in message.recipients_mut().iter_mut().enumerate() {
            if !warns || !recipient.notify.delay() {
                recipient.flags |= WARNED;
            }
            if let Some(recovered) = new.states.as_ref().and_then(|states| states.get(place)) {
                recipient.attempts = recovered.attempts;
                recipient.state = match recovered.fate {
                    Fate::Held => State::Held,
                    Fate::Done(disposition) => State::Done(disposition),
                    Fate::Waiting => {
                        let wait = recovered.next_due.since(now.unix).min(self.schedule.wait_max(recovered.attempts));
                        recipient.due = tick_at(now.instant.after(wait));
                        if wait.is_zero() { State::Unrouted } else { State::Scheduled }
                    }
                };
                waiting -= u16::from(recipient.state.is_done());
            } else if new.envelope.held.is_some() {
                recipient.state = State::Held;
            }
            self.tally[recipient.state.index()] += 1;
        }
        message.waiting = waiting;
        let unrouted: Vec<u16> = places(&message, |recipient| recipient.state == State::Unrouted);
        let slot = self.store.insert(message);
        for place in unrouted {
            self.list(slot, place, None, false);
        }
        self.arm(slot);
        slot
    }

    /// The next recipient that the router is to answer for, with [`Queue::assign`], [`Queue::park`] or
    /// [`Queue::settle`]. It comes once.
    pub fn poll_unrouted(&mut self) -> Option<(Slot, u16)> {
        let group = self.unrouted.head();
        if self.hold_all || group == NONE {
            return None;
        }
        let slot = Slot(self.groups[group].slot);
        let place = self.take_first(slot, group);
        Some((slot, place))
    }

    /// The router's answer: this site. The recipient is ready, behind what its tenant has waiting there, together
    /// with the other recipients of its message for that site.
    pub fn assign(&mut self, slot: Slot, recipient: u16, site: SiteId) {
        if self.step(slot, recipient, Step::Assign) {
            self.list(slot, recipient, Some(site), false);
        }
    }

    /// The router waits for DNS; it keeps who waits for which domain.
    pub fn park(&mut self, slot: Slot, recipient: u16) {
        self.step(slot, recipient, Step::Park);
    }

    /// DNS answered: the recipient comes out of [`Queue::poll_unrouted`] again, unless it is assigned or settled
    /// before. False, and nothing happens, when it is not parked: an operator has held or deleted it meanwhile.
    /// [`Queue::assign`] and [`Queue::settle`] also take a parked recipient as it is.
    pub fn unpark(&mut self, slot: Slot, recipient: u16) -> bool {
        let parked = self.step(slot, recipient, Step::Unpark);
        if parked {
            self.list(slot, recipient, None, false);
        }
        parked
    }

    /// What goes to this site next, with at most so many recipients (at least one): they are in flight now. Those
    /// beyond stay ready, first in their list. None when nothing is ready, the site is suspended or all is on hold.
    pub fn pick(&mut self, site: SiteId, max_recipients: usize) -> Option<Pick> {
        if self.hold_all {
            return None;
        }
        let (store, groups) = (&self.store, &self.groups);
        let group = self.destinations.choose(site, |group| {
            store.get(Slot(groups[group].slot)).map_or(limits::TRANSACTION_COST, Message::cost)
        })?;
        let slot = Slot(self.groups[group].slot);
        Some(self.take_group(slot, group, max_recipients))
    }

    fn take_group(&mut self, slot: Slot, group: u32, max_recipients: usize) -> Pick {
        let mut recipients = Vec::new();
        loop {
            let last = self.groups[group].first == self.groups[group].last;
            let place = self.take_first(slot, group);
            self.shift(slot, place, State::InFlight);
            recipients.push(place);
            if last || recipients.len() >= max_recipients {
                return Pick { slot, recipients };
            }
        }
    }

    /// Takes a pick back, or a part of it: no attempt was made. The recipients are ready again, first in their list.
    /// Returned are those that an operator deleted meanwhile: they have ended, record that.
    #[must_use = "these recipients have ended"]
    pub fn unpick(&mut self, slot: Slot, recipients: &[u16]) -> Vec<u16> {
        let mut deleted = Vec::new();
        for &place in recipients.iter().rev() {
            let Some((state, flags, site)) = self.recipient(slot, place).map(|r| (r.state, r.flags, r.site)) else {
                continue;
            };
            if state != State::InFlight {
                continue;
            }
            if flags & DELETE_AFTER != 0 {
                self.end(slot, place, Disposition::Deleted);
                deleted.push(place);
                continue;
            }
            self.shift(slot, place, State::Ready);
            if flags & HOLD_AFTER != 0 {
                self.shift(slot, place, State::Held);
            } else {
                self.list(slot, place, Some(SiteId(site)), true);
            }
        }
        deleted.reverse();
        self.arm(slot);
        deleted
    }

    /// Marks recipients in flight as lent to another shard, until they are settled or taken back.
    pub fn lease(&mut self, slot: Slot, recipients: &[u16]) {
        for &place in recipients {
            if let Some(recipient) = self.recipient_mut(slot, place)
                && recipient.state == State::InFlight
                && recipient.flags & LEASED == 0
            {
                recipient.flags |= LEASED;
                self.leased += 1;
            }
        }
    }

    /// Tells what became of a recipient. Time runs out here alone, after an attempt that failed, and in
    /// [`Queue::expire_ready`]; never for a recipient that an operator wants held.
    pub fn settle(&mut self, slot: Slot, recipient: u16, verdict: Verdict, now: Now) -> Settled {
        self.tell(now);
        let Some(found) = self.recipient(slot, recipient) else { return Settled::Ignored };
        let flags = found.flags;
        let disposition = match verdict {
            Verdict::Delivered => Disposition::Delivered,
            Verdict::Failed => Disposition::Bounced,
            Verdict::Suppressed => Disposition::Suppressed,
            Verdict::Deleted => Disposition::Deleted,
            Verdict::Deferred { .. } | Verdict::Unresolved if flags & DELETE_AFTER != 0 => Disposition::Deleted,
            Verdict::Deferred { not_before } => return self.defer(slot, recipient, not_before, true),
            Verdict::Unresolved => return self.defer(slot, recipient, None, false),
        };
        if self.end(slot, recipient, disposition) { Settled::Done(disposition) } else { Settled::Ignored }
    }

    fn defer(&mut self, slot: Slot, place: u16, not_before: Option<Instant>, attempted: bool) -> Settled {
        let (now, seed) = (self.now, self.seed);
        let Some(message) = self.store.get_mut(slot) else { return Settled::Ignored };
        let (id, age) = (message.id, age_of(message, now));
        let Some(recipient) = message.recipients_mut().get_mut(usize::from(place)) else { return Settled::Ignored };
        if next(recipient.state, Step::Defer).is_none() {
            return Settled::Ignored;
        }
        recipient.attempts = recipient.attempts.saturating_add(1);
        let (attempts, flags) = (recipient.attempts, recipient.flags);
        recipient.flags |= TRIED;
        let held = flags & HOLD_AFTER != 0;
        if self.schedule.is_over(age) && (attempted || flags & TRIED != 0) && !held {
            self.end(slot, place, Disposition::Expired);
            return Settled::Expired;
        }
        // The same for all recipients of a message, so that they stay together.
        let wait = self.schedule.wait(attempts, seed ^ id.wrapping_mul(31) ^ u64::from(attempts));
        let latest = now.instant.after(limits::RETRY_NOT_BEFORE_MAX);
        let due = now.instant.after(wait).max(not_before.unwrap_or_default().min(latest));
        let due = tick_at(if due.since(now.instant) >= limits::RETRY_ROUNDING_FROM { whole_second(due) } else { due });
        recipient.due = due;
        self.step(slot, place, Step::Defer);
        if held {
            self.step(slot, place, Step::Hold);
        }
        self.arm_for(slot, usize::from(place)..usize::from(place) + 1);
        Settled::Retry { due: now.unix.after(tick_instant(due).since(now.instant)), attempts }
    }

    /// Picks the recipients of a site that have waited too long in its list: [`Verdict::Deferred`] then ends them as
    /// [`Settled::Expired`]. For a site that is down, whose lists nobody else picks from. `attempted` is when its
    /// hosts were last tried in this process, in vain: a recipient is picked only if that was after its time had run
    /// out, so nothing expires unattempted after a start. Looks at no more than `budget` groups, and goes on from
    /// there when called again.
    #[must_use = "these recipients are in flight"]
    pub fn expire_ready(&mut self, site: SiteId, attempted: Instant, now: Now, budget: usize) -> Vec<Pick> {
        self.tell(now);
        let mut found = Vec::new();
        if !self.hold_all && !self.destinations.counts(site).suspended {
            self.destinations.sweep(site, &self.groups, budget, &mut found);
        }
        let mut picks = Vec::new();
        for group in found {
            let slot = Slot(self.groups[group].slot);
            let overdue = self.store.get(slot).is_some_and(|message| {
                let tried = Now { instant: attempted.min(now.instant), unix: now.unix };
                self.schedule.is_over(age_of(message, tried))
            });
            if overdue {
                picks.push(self.take_group(slot, group, usize::MAX));
            }
        }
        picks
    }

    /// Whether every recipient of the message has ended; also when there is no such message.
    pub fn is_finished(&self, slot: Slot) -> bool {
        self.store.get(slot).is_none_or(|message| message.waiting == 0)
    }

    /// Lets go of a finished message. None, and nothing happens, when it is not finished or not there.
    pub fn remove(&mut self, slot: Slot) -> Option<Removed> {
        let message = self.store.get(slot).filter(|message| message.waiting == 0)?;
        for recipient in message.recipients() {
            self.tally[recipient.state.index()] -= 1;
        }
        self.disarm(slot);
        let message = self.store.remove(slot);
        Some(Removed { id: MessageId(message.id), content: message.content() })
    }

    /// The message's place.
    pub fn find(&self, id: MessageId) -> Option<Slot> {
        self.store.find(id)
    }

    /// The spool has moved the content.
    pub fn update_content(&mut self, slot: Slot, content: StoredContent) {
        if let Some(message) = self.store.get_mut(slot) {
            message.set_content(content);
        }
    }

    /// Keeps the last reply about a recipient and its class, for those who ask why it waits.
    pub fn note_reply(&mut self, slot: Slot, recipient: u16, reply: LastReply, class: Option<ReplyClass>) {
        if let Some(recipient) = self.recipient_mut(slot, recipient) {
            recipient.last_reply = reply;
            recipient.class = class.map_or(0, |class| class.index() as u8 + 1);
        }
    }

    /// Groups ready for this site: transactions that could begin.
    pub fn ready_count(&self, site: SiteId) -> usize {
        self.destinations.counts(site).groups as usize
    }

    /// What waits at this site.
    pub fn site_counts(&self, site: SiteId) -> SiteCounts {
        self.destinations.counts(site)
    }

    /// The sites that have something ready, in no order.
    pub fn ready_sites(&self) -> impl Iterator<Item = SiteId> + '_ {
        self.destinations.ready_sites()
    }

    /// What waits in all.
    pub fn counts(&self) -> Counts {
        let tally = |state: State| self.tally[state.index()];
        Counts {
            messages: self.store.len() as u64,
            unrouted: tally(State::Unrouted),
            parked: tally(State::Parked),
            scheduled: tally(State::Scheduled),
            ready: tally(State::Ready),
            in_flight: tally(State::InFlight),
            leased: self.leased,
            held: tally(State::Held),
            done: tally(State::Done(Disposition::Delivered)),
        }
    }

    /// The wall clock may jump; the other never goes back.
    fn tell(&mut self, now: Now) {
        self.now = Now { instant: now.instant.max(self.now.instant), unix: now.unix };
    }

    fn recipient(&self, slot: Slot, place: u16) -> Option<&Recipient> {
        self.store.get(slot)?.recipients().get(usize::from(place))
    }

    fn recipient_mut(&mut self, slot: Slot, place: u16) -> Option<&mut Recipient> {
        self.store.get_mut(slot)?.recipients_mut().get_mut(usize::from(place))
    }

    /// Makes a step if the table has it: takes the recipient out of its list, and says whether it was made.
    fn step(&mut self, slot: Slot, place: u16, step: Step) -> bool {
        let Some(recipient) = self.recipient(slot, place) else { return false };
        if next(recipient.state, step).is_some() && (recipient.state == State::Ready || recipient.flags & LISTED != 0) {
            self.unlist_where(slot, |other| other == place);
        }
        self.step_unlisted(slot, place, step)
    }

    /// As [`Queue::step`], for a recipient that was taken out of its list already.
    fn step_unlisted(&mut self, slot: Slot, place: u16, step: Step) -> bool {
        let to = self.recipient(slot, place).and_then(|recipient| next(recipient.state, step));
        if let Some(to) = to {
            self.shift(slot, place, to);
        }
        to.is_some()
    }

    fn end(&mut self, slot: Slot, place: u16, disposition: Disposition) -> bool {
        self.step(slot, place, Step::Finish(disposition))
    }

    /// Sets the state of a recipient that stands in no list, and counts.
    fn shift(&mut self, slot: Slot, place: u16, to: State) {
        let Some(message) = self.store.get_mut(slot) else { return };
        let Some(recipient) = message.recipients_mut().get_mut(usize::from(place)) else { return };
        let (from, flags, site) = (recipient.state, recipient.flags, SiteId(recipient.site));
        recipient.state = to;
        if from == State::InFlight {
            recipient.flags &= !(LEASED | HOLD_AFTER | DELETE_AFTER);
            self.leased -= u64::from(flags & LEASED != 0);
            self.destinations.add_in_flight(site, -1);
        }
        if to == State::InFlight {
            self.destinations.add_in_flight(site, 1);
        }
        self.tally[from.index()] -= 1;
        self.tally[to.index()] += 1;
        if to.is_done() {
            message.waiting -= 1;
            if message.waiting == 0 {
                self.disarm(slot);
            }
        }
    }
}

/// The recipients that fit, by place.
fn places(message: &Message, fits: impl Fn(&Recipient) -> bool) -> Vec<u16> {
    let fitting = message.recipients().iter().enumerate().filter(|(_, recipient)| fits(recipient));
    fitting.map(|(place, _)| place as u16).collect()
}

fn age_of(message: &Message, now: Now) -> Duration {
    Duration::from_millis(signed_millis(now.instant).saturating_sub(message.born_ms).max(0) as u64)
}

fn signed_millis(instant: Instant) -> i64 {
    instant.as_millis().min(i64::MAX as u64 / 4) as i64
}

fn whole_second(instant: Instant) -> Instant {
    const SECOND: u64 = 1_000_000_000;
    Instant::from_nanos(instant.as_nanos().div_ceil(SECOND).saturating_mul(SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;
    use crate::envelope::{Body, Envelope, Notify, Ret};

    const HOUR: u64 = 3_600;
    const DAY: u64 = 24 * HOUR;
    const SITE: SiteId = SiteId(4);

    fn at(second: u64) -> Now {
        Now {
            instant: Instant::from_nanos((50_000 + second) * 1_000_000_000),
            unix: UnixTime::from_millis(1_790_000_000_000 + second * 1_000),
        }
    }

    fn address(text: &str) -> Address {
        Address::parse(text.as_bytes(), true).unwrap()
    }

    fn message(id: u64, recipients: usize, arrived: UnixTime) -> NewMessage {
        let recipients = (0..recipients).map(|number| crate::envelope::Recipient {
            address: address(&format!("r{number}@example.net")),
            notify: Notify::DEFAULT,
            orcpt: None,
        });
        let envelope = Envelope {
            reverse_path: Some(address("sender@example.org")),
            body: Body::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            recipients: recipients.collect(),
            tenant: "default".into(),
            arrived,
            client: "".into(),
            require_tls: false,
            is_dsn: false,
            held: None,
        };
        let content = StoredContent { len: 1_000, ..StoredContent::default() };
        NewMessage { id: MessageId(id), envelope, content, states: None, tenant: TenantId(0) }
    }

    fn queue() -> Queue {
        Queue::new(QueueConfig::default(), 1)
    }

    fn route_all(queue: &mut Queue) {
        while let Some((slot, place)) = queue.poll_unrouted() {
            queue.assign(slot, place, SITE);
        }
    }

    fn defer_all(queue: &mut Queue, now: Now) -> Vec<Settled> {
        let pick = queue.pick(SITE, 10_000).unwrap();
        let places = pick.recipients.iter();
        places.map(|&place| queue.settle(pick.slot, place, Verdict::Deferred { not_before: None }, now)).collect()
    }

    fn fire(queue: &mut Queue, now: Now) {
        while queue.next_due().is_some_and(|due| due <= now.instant) {
            queue.handle_timeout(now);
        }
    }

    #[test]
    fn all_of_an_envelope_that_is_needed_is_kept() {
        let mut new = message(9, 3, at(0).unix);
        new.envelope.recipients[1].orcpt = Some(format!("rfc822;{}@example.net", "x".repeat(400)).into());
        new.envelope.recipients[1].notify = Notify::new(true, false, true);
        new.envelope.recipients[2].address = address("bücher@bücher.example");
        new.envelope.envid = Some("QQ314159".into());
        (new.envelope.ret, new.envelope.body, new.envelope.smtputf8) = (Some(Ret::Headers), Body::EightBitMime, true);
        (new.envelope.is_dsn, new.content.spilled) = (true, true);
        let (envelope, content) = (new.envelope.clone(), new.content);
        let mut queue = queue();
        let slot = queue.insert(new, at(0));
        let view = queue.message(slot).unwrap();
        assert_eq!((view.id(), view.arrived(), view.content()), (MessageId(9), envelope.arrived, content));
        assert_eq!((view.reverse_path(), view.envid()), (Some("sender@example.org"), Some("QQ314159")));
        assert_eq!(
            (view.ret(), view.body(), view.smtputf8(), view.is_dsn()),
            (envelope.ret, envelope.body, true, true)
        );
        for (place, recipient) in (0..).zip(&envelope.recipients) {
            assert_eq!(view.address(place), recipient.address.as_str());
            assert_eq!(view.notify(place), recipient.notify);
            assert_eq!(view.orcpt(place), recipient.orcpt.as_deref());
        }
        assert_eq!(view.domain(2), "bücher.example");
        assert_eq!(view.routing_domain(2).as_deref(), Some("xn--bcher-kva.example"));
        assert_eq!((view.address(3), view.orcpt(3), view.site(3)), ("", None, None));
        let mut bare = message(10, 1, at(0).unix);
        (bare.envelope.reverse_path, bare.envelope.envid) = (None, Some("E".into()));
        let slot = queue.insert(bare, at(0));
        let view = queue.message(slot).unwrap();
        assert_eq!((view.reverse_path(), view.envid(), view.ret()), (None, Some("E"), None));
    }

    #[test]
    fn recipients_that_failed_together_come_back_together() {
        let mut queue = queue();
        queue.insert(message(1, 5, at(0).unix), at(0));
        route_all(&mut queue);
        let pick = queue.pick(SITE, 100).unwrap();
        for &place in &pick.recipients {
            // Replies come one after the other.
            let now = Now { instant: at(1).instant.after(Duration::from_millis(u64::from(place) * 20)), ..at(1) };
            queue.settle(pick.slot, place, Verdict::Deferred { not_before: None }, now);
        }
        fire(&mut queue, at(2 * HOUR));
        route_all(&mut queue);
        assert_eq!(queue.pick(SITE, 100).unwrap().recipients, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_jump_of_the_wall_clock_makes_nobody_older() {
        let mut queue = queue();
        queue.insert(message(1, 1, at(0).unix), at(0));
        route_all(&mut queue);
        let jumped = Now { instant: at(10).instant, unix: at(30 * DAY).unix };
        let [Settled::Retry { due, attempts: 1 }] = defer_all(&mut queue, jumped)[..] else { panic!("it expired") };
        assert!(due > jumped.unix && due < at(31 * DAY).unix);
        // And back: the due time is shown on the clock of the day, and the wait stays what it is.
        queue.handle_timeout(Now { instant: at(11).instant, unix: at(0).unix });
        let view = queue.message(queue.find(MessageId(1)).unwrap()).unwrap();
        assert!(view.due(0) > at(0).unix && view.due(0) < at(HOUR).unix);
    }

    #[test]
    fn after_a_start_an_old_recipient_is_tried_before_it_expires() {
        let mut queue = queue();
        let mut old = message(1, 3, at(0).unix);
        let far = UnixTime::from_millis(u64::MAX / 2);
        let waiting = |next_due| RecoveredState { fate: Fate::Waiting, attempts: 9, next_due };
        old.states = Some(vec![waiting(at(0).unix), waiting(far), waiting(far)]);
        let now = at(20 * DAY);
        let slot = queue.insert(old, now);
        route_all(&mut queue);
        assert!(queue.expire_ready(SITE, at(19 * DAY).instant, now, 10).len() == 1, "tried when its time was over");
        assert_eq!(queue.settle(slot, 0, Verdict::Deferred { not_before: None }, now), Settled::Expired);
        // The due time on disk is no further ahead than one wait.
        fire(&mut queue, at(20 * DAY + 4 * HOUR + HOUR / 2));
        let (_, place) = queue.poll_unrouted().unwrap();
        assert!(matches!(
            queue.settle(slot, place, Verdict::Unresolved, at(20 * DAY + 5 * HOUR)),
            Settled::Retry { .. }
        ));
        let (_, place) = queue.poll_unrouted().unwrap();
        queue.assign(slot, place, SITE);
        assert!(queue.expire_ready(SITE, at(4 * DAY).instant, at(21 * DAY), 10).is_empty(), "not tried since");
        assert_eq!(defer_all(&mut queue, at(21 * DAY)), [Settled::Expired]);
    }

    #[test]
    fn a_time_the_peer_names_is_honoured_within_a_day() {
        let mut queue = queue();
        let slot = queue.insert(message(1, 2, at(0).unix), at(0));
        let (soon, never) = (at(3 * HOUR).instant, Instant::MAX);
        let due = |settled| match settled {
            Settled::Retry { due, .. } => due,
            other => panic!("{other:?}"),
        };
        route_all(&mut queue);
        queue.pick(SITE, 2).unwrap();
        assert_eq!(due(queue.settle(slot, 0, Verdict::Deferred { not_before: Some(soon) }, at(1))), at(3 * HOUR).unix);
        assert_eq!(due(queue.settle(slot, 1, Verdict::Deferred { not_before: Some(never) }, at(1))), at(DAY + 1).unix);
    }

    #[test]
    fn many_recipients_cost_no_more_than_their_number() {
        let mut queue = queue();
        let slot = queue.insert(message(1, 50_000, at(0).unix), at(0));
        route_all(&mut queue);
        assert_eq!((queue.ready_count(SITE), queue.site_counts(SITE).recipients), (1, 50_000));
        while queue.ready_count(SITE) > 0 {
            defer_all(&mut queue, at(1));
        }
        assert_eq!((queue.wheel.len(), queue.counts().scheduled), (1, 50_000));
        fire(&mut queue, at(HOUR));
        route_all(&mut queue);
        assert_eq!(queue.hold(slot, &Filter::default()), 50_000);
        assert_eq!(queue.release(slot, &Filter::default()), 50_000);
        assert_eq!(queue.delete(slot, &Filter::default(), at(HOUR)).len(), 50_000);
        assert_eq!(queue.remove(slot).unwrap().id, MessageId(1));
        assert_eq!((queue.groups.len(), queue.wheel.len()), (0, 0));
    }

    #[test]
    fn very_many_timers_are_handled_in_turns() {
        let mut queue = queue();
        for id in 0..3 * limits::TIMEOUT_BATCH as u64 {
            let mut new = message(id, 1, at(0).unix);
            new.states = Some(vec![RecoveredState { fate: Fate::Waiting, attempts: 1, next_due: at(60).unix }]);
            queue.insert(new, at(0));
        }
        queue.handle_timeout(at(61));
        assert_eq!(queue.counts().unrouted, limits::TIMEOUT_BATCH as u64);
        assert!(queue.next_due().unwrap() <= at(61).instant, "it asks to be called again at once");
        fire(&mut queue, at(61));
        assert_eq!(queue.counts().scheduled, 0);
    }

    #[test]
    fn pages_follow_each_other_and_keep_their_budget() {
        let mut queue = queue();
        for id in 1..=20 {
            let mut new = message(id, 1, at(0).unix);
            new.tenant = TenantId((id % 2) as u16);
            queue.insert(new, at(0));
        }
        let odd = Filter { tenant: Some(TenantId(1)), ..Filter::default() };
        let first = queue.page(&odd, None, 3, 100);
        assert_eq!(first.messages.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [1, 3, 5]);
        let second = queue.page(&odd, first.next, 100, 4);
        assert_eq!((second.messages.len(), second.next), (2, Some(MessageId(9))));
        let last = queue.page(&odd, second.next, 100, 100);
        assert_eq!((last.messages.len(), last.next), (5, None));
        let held = Filter { state: Some(State::Held), ..Filter::default() };
        assert_eq!(queue.hold(first.messages[0].1, &Filter::default()), 1);
        assert_eq!(queue.page(&held, None, 100, 100).messages, first.messages[..1]);
        let sender = Filter { sender: Some("SENDER@example.org".into()), ..Filter::default() };
        assert_eq!(queue.page(&sender, None, 100, 100).messages.len(), 20);
        let null = Filter { sender: Some("".into()), ..Filter::default() };
        assert!(queue.page(&null, None, 100, 100).messages.is_empty());
    }

    #[test]
    fn a_message_that_is_there_already_stays() {
        let mut queue = queue();
        let slot = queue.insert(message(1, 1, at(0).unix), at(0));
        assert_eq!(queue.insert(message(1, 4, at(0).unix), at(0)), slot);
        assert_eq!((queue.counts().messages, queue.counts().unrouted), (1, 1));
        assert!(queue.message(Slot(77)).is_none() && queue.is_finished(Slot(77)));
        assert_eq!(queue.settle(Slot(77), 0, Verdict::Delivered, at(0)), Settled::Ignored);
    }
}
