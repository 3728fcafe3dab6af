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
pub mod view;

use crate::clock::{Instant, Now, UnixTime};
use crate::id::MessageId;
use crate::limits;
use destination::{Destinations, Group, SiteCounts};
use recipient_state::{Step, next};
use retry::RetrySchedule;
use slab::{List, NONE, Slab};
use std::collections::VecDeque;
use std::time::Duration;
use store::{DELETE_AFTER, HOLD_AFTER, LEASED, LISTED, Message, Recipient, Store, TRIED, WARN, WARNED};
use timer_wheel::{TimerKey, TimerWheel, tick_at, tick_instant, tick_reached};

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
        let age = now.unix.since(new.envelope.arrived);
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
        self.arm(slot);
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

    /// Brings back what is due, for at most [`limits::TIMEOUT_BATCH`] messages: while there are more,
    /// [`Queue::next_due`] says "now".
    pub fn handle_timeout(&mut self, now: Now) {
        self.tell(now);
        for _ in 0..limits::TIMEOUT_BATCH {
            let Some(place) = self.wheel.poll(now.instant) else { return };
            self.wake(Slot(place));
        }
    }

    fn wake(&mut self, slot: Slot) {
        let reached = tick_reached(self.now.instant);
        let Some(message) = self.store.get_mut(slot) else { return };
        message.timer = TimerKey::NONE.0;
        let due = places(message, |recipient| recipient.state == State::Scheduled && recipient.due <= reached);
        let warn = !self.hold_all && warn_tick(&self.schedule, message).is_some_and(|tick| tick <= reached);
        for place in due {
            self.step(slot, place, Step::Due);
            self.list(slot, place, None, false);
        }
        if let Some(message) = self.store.get_mut(slot).filter(|_| warn) {
            let mut new = false;
            let mut queued = false;
            for recipient in message.recipients_mut() {
                queued |= recipient.flags & WARN != 0;
                if may_warn(recipient) {
                    recipient.flags |= WARN;
                    new = true;
                }
            }
            if new && !queued {
                self.delayed.push_back(slot);
            }
        }
        self.arm(slot);
    }

    /// When to call [`Queue::handle_timeout`] next: never too late, and at most a few times too early.
    pub fn next_due(&self) -> Option<Instant> {
        self.wheel.next_due()
    }

    /// Recipients whose sender is to be told that they still wait. Each comes once in its life.
    pub fn poll_delayed(&mut self) -> Option<(Slot, Vec<u16>)> {
        while let Some(slot) = self.delayed.pop_front() {
            let mut late = Vec::new();
            if let Some(message) = self.store.get_mut(slot) {
                for (place, recipient) in message.recipients_mut().iter_mut().enumerate() {
                    let marked = recipient.flags & WARN != 0;
                    recipient.flags &= !WARN;
                    // In an attempt or on hold by now: it is marked again if it waits again.
                    if marked && may_warn(recipient) {
                        recipient.flags |= WARNED;
                        late.push(place as u16);
                    }
                }
            }
            if !late.is_empty() {
                return Some((slot, late));
            }
        }
        None
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

    /// Keeps the last reply about a recipient, for those who ask why it waits.
    pub fn note_reply(&mut self, slot: Slot, recipient: u16, reply: LastReply) {
        if let Some(recipient) = self.recipient_mut(slot, recipient) {
            recipient.last_reply = reply;
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

    /// Sets the message's timer to the first thing that is due; one that is set for earlier stays.
    fn arm(&mut self, slot: Slot) {
        let recheck = tick_at(self.now.instant.after(limits::WARNING_RECHECK));
        let Some(message) = self.store.get_mut(slot) else { return };
        let warn = warn_tick(&self.schedule, message).map(|tick| if self.hold_all { tick.max(recheck) } else { tick });
        let due = message.recipients().iter().filter_map(|recipient| match recipient.state {
            State::Scheduled if may_warn(recipient) => Some(recipient.due.min(warn.unwrap_or(u32::MAX))),
            State::Scheduled => Some(recipient.due),
            _ if may_warn(recipient) => warn,
            _ => None,
        });
        let Some(tick) = due.min() else { return };
        let timer = TimerKey(message.timer);
        if !timer.is_none() {
            if self.wheel.tick(timer) <= tick {
                return;
            }
            self.wheel.cancel(timer);
        }
        message.timer = self.wheel.insert(tick, slot.0).0;
    }

    fn disarm(&mut self, slot: Slot) {
        if let Some(message) = self.store.get_mut(slot) {
            let timer = TimerKey(std::mem::replace(&mut message.timer, TimerKey::NONE.0));
            if !timer.is_none() {
                self.wheel.cancel(timer);
            }
        }
    }
}

/// The recipients that fit, by place.
fn places(message: &Message, fits: impl Fn(&Recipient) -> bool) -> Vec<u16> {
    let fitting = message.recipients().iter().enumerate().filter(|(_, recipient)| fits(recipient));
    fitting.map(|(place, _)| place as u16).collect()
}

/// Whether a warning about this recipient would tell something: it waits, and there was none.
fn may_warn(recipient: &Recipient) -> bool {
    recipient.flags & (WARN | WARNED) == 0
        && matches!(recipient.state, State::Unrouted | State::Parked | State::Scheduled | State::Ready)
}

/// When the message's recipients are late, in ticks.
fn warn_tick(schedule: &RetrySchedule, message: &Message) -> Option<u32> {
    let wait_ms = schedule.delay_warning?.as_millis().min(i64::MAX as u128 / 4) as i64;
    let at_ms = message.born_ms.saturating_add(wait_ms).max(0) as u64;
    Some(tick_at(Instant::ZERO.after(Duration::from_millis(at_ms))))
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
