//! What time does to the queue: due recipients come back to the router, and late ones are told to their senders.
//!
//! A message has at most one timer, set for the first thing that will concern it. A timer may be early, when an
//! operator or an answer has changed what it was set for; it then finds nothing to do and is set again.

use super::recipient_state::{State, Step};
use super::retry::RetrySchedule;
use super::store::{Message, Recipient, Slot, WARN, WARNED};
use super::timer_wheel::{TimerKey, tick_at, tick_reached};
use super::{Queue, places};
use crate::clock::{Instant, Now};
use crate::limits;
use std::ops::Range;
use std::time::Duration;

impl Queue {
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

    /// Sets the message's timer to the first thing that is due; one that is set for earlier stays.
    pub(super) fn arm(&mut self, slot: Slot) {
        self.arm_for(slot, 0..usize::from(u16::MAX));
    }

    /// As [`Queue::arm`], when only these recipients can have made it earlier.
    pub(super) fn arm_for(&mut self, slot: Slot, places: Range<usize>) {
        let recheck = tick_at(self.now.instant.after(limits::WARNING_RECHECK));
        let Some(message) = self.store.get_mut(slot) else { return };
        let warn = warn_tick(&self.schedule, message).map(|tick| if self.hold_all { tick.max(recheck) } else { tick });
        let recipients = message.recipients();
        let recipients = &recipients[places.start..places.end.min(recipients.len())];
        let due = recipients.iter().filter_map(|recipient| match recipient.state {
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

    pub(super) fn disarm(&mut self, slot: Slot) {
        if let Some(message) = self.store.get_mut(slot) {
            let timer = TimerKey(std::mem::replace(&mut message.timer, TimerKey::NONE.0));
            if !timer.is_none() {
                self.wheel.cancel(timer);
            }
        }
    }
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
