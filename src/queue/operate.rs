//! What operators do with the queue: list, hold, release, retry, delete; suspend a site; hold everything.
//!
//! Acts go message by message, each at most proportional to the recipients of that message. Whoever acts on many gets
//! them in pages, [`Queue::page`], each of which looks at a bounded number of messages, so that no command holds up
//! the mail. An attempt under way is never interrupted: the act applies when it has ended without a delivery.

use super::Queue;
use super::destination::{SiteId, TenantId};
use super::recipient_state::{Disposition, State, Step};
use super::store::{DELETE_AFTER, HOLD_AFTER, NO_SITE, Slot, domain_of};
use crate::clock::Now;
use crate::id::MessageId;

/// Which recipients are meant: those not ended that fit every given part. Empty: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Last routed to this site.
    pub site: Option<SiteId>,
    /// The address's domain, in any case.
    pub domain: Option<Box<str>>,
    /// The address, in any case.
    pub recipient: Option<Box<str>>,
    /// The message's tenant.
    pub tenant: Option<TenantId>,
    /// The message's reverse path, in any case; "" is the null path.
    pub sender: Option<Box<str>>,
    /// In this state.
    pub state: Option<State>,
}

/// A part of the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Messages that have recipients that fit, in the order of ids.
    pub messages: Vec<(MessageId, Slot)>,
    /// Ask again for what comes after this one; none at the queue's end.
    pub next: Option<MessageId>,
}

impl Queue {
    /// The next messages with recipients that fit, after an id and in the order of ids: at most `limit`, after a look
    /// at no more than `budget`.
    pub fn page(&self, filter: &Filter, after: Option<MessageId>, limit: usize, budget: usize) -> Page {
        let mut page = Page::default();
        for (looked_at, (id, slot)) in self.store.after(after).enumerate() {
            if looked_at >= budget.max(1) || page.messages.len() >= limit.max(1) {
                return page;
            }
            page.next = Some(id);
            if self.fits_any(slot, filter) {
                page.messages.push((id, slot));
            }
        }
        page.next = None;
        page
    }

    fn fits_any(&self, slot: Slot, filter: &Filter) -> bool {
        let Some(view) = self.message(slot) else { return false };
        filter.tenant.is_none_or(|tenant| tenant == view.tenant())
            && filter.sender.as_ref().is_none_or(|sender| {
                let reverse_path = view.reverse_path().unwrap_or_default();
                sender.eq_ignore_ascii_case(reverse_path)
            })
            && !self.fitting(slot, filter).is_empty()
    }

    /// The recipients of this message that fit, by place.
    fn fitting(&self, slot: Slot, filter: &Filter) -> Vec<u16> {
        let Some(message) = self.store.get(slot) else { return Vec::new() };
        super::places(message, |recipient| {
            !recipient.state.is_done()
                && filter.state.is_none_or(|state| state == recipient.state)
                && filter.site.is_none_or(|site| recipient.site != NO_SITE && site.0 == recipient.site)
                && filter
                    .recipient
                    .as_ref()
                    .is_none_or(|address| address.eq_ignore_ascii_case(message.address(recipient)))
                && filter
                    .domain
                    .as_ref()
                    .is_none_or(|domain| domain.eq_ignore_ascii_case(domain_of(message.address(recipient))))
        })
    }

    /// Recipients for an act; none when the message does not fit.
    fn chosen(&self, slot: Slot, filter: &Filter) -> Vec<u16> {
        if self.fits_any(slot, filter) { self.fitting(slot, filter) } else { Vec::new() }
    }

    /// Holds the message's recipients that fit: no attempt, no expiry until released. Those in an attempt are held
    /// when it has failed. Returns how many this changed.
    pub fn hold(&mut self, slot: Slot, filter: &Filter) -> usize {
        let chosen = self.chosen(slot, filter);
        self.unlist_where(slot, |place| chosen.binary_search(&place).is_ok());
        let mut changed = 0;
        for place in chosen {
            if self.step_unlisted(slot, place, Step::Hold) || self.mark_in_flight(slot, place, HOLD_AFTER) {
                changed += 1;
            }
        }
        changed
    }

    /// Ends a hold: the recipients that fit are attempted at once. Returns how many this changed.
    pub fn release(&mut self, slot: Slot, filter: &Filter) -> usize {
        let mut changed = 0;
        for place in self.chosen(slot, filter) {
            if self.step(slot, place, Step::Release) {
                self.list(slot, place, None, false);
                changed += 1;
            } else if let Some(recipient) = self.recipient_mut(slot, place) {
                changed += usize::from(recipient.flags & HOLD_AFTER != 0);
                recipient.flags &= !HOLD_AFTER;
            }
        }
        self.arm(slot);
        changed
    }

    /// Attempts the scheduled recipients that fit at once; what is on hold stays so. Returns how many this changed.
    pub fn retry_now(&mut self, slot: Slot, filter: &Filter) -> usize {
        let mut changed = 0;
        for place in self.chosen(slot, filter) {
            if self.step(slot, place, Step::Due) {
                self.list(slot, place, None, false);
                changed += 1;
            }
        }
        changed
    }

    /// Ends the message's recipients that fit and returns them: record that they were deleted. Those in an attempt
    /// are ended when it has failed, which [`Queue::settle`] or [`Queue::unpick`] then tells.
    #[must_use = "these recipients have ended"]
    pub fn delete(&mut self, slot: Slot, filter: &Filter, now: Now) -> Vec<u16> {
        self.tell(now);
        let mut chosen = self.chosen(slot, filter);
        chosen.retain(|&place| !self.mark_in_flight(slot, place, DELETE_AFTER) && !self.is_in_flight(slot, place));
        self.unlist_where(slot, |place| chosen.binary_search(&place).is_ok());
        chosen.retain(|&place| self.step_unlisted(slot, place, Step::Finish(Disposition::Deleted)));
        chosen
    }

    fn is_in_flight(&self, slot: Slot, place: u16) -> bool {
        self.recipient(slot, place).is_some_and(|recipient| recipient.state == State::InFlight)
    }

    /// Notes what is to happen after the attempt; false when there is none or it was noted before.
    fn mark_in_flight(&mut self, slot: Slot, place: u16, flag: u8) -> bool {
        let Some(recipient) = self.recipient_mut(slot, place) else { return false };
        let new = recipient.state == State::InFlight && recipient.flags & flag == 0;
        recipient.flags |= if new { flag } else { 0 };
        new
    }

    /// Suspends a site, or ends that: nothing is picked for it meanwhile, and it takes new recipients as usual.
    pub fn suspend_site(&mut self, site: SiteId, suspended: bool) {
        self.destinations.suspend(site, suspended);
    }

    /// Holds everything, or ends that: messages are taken, and nothing is routed or picked.
    pub fn set_hold_all(&mut self, hold_all: bool) {
        self.hold_all = hold_all;
    }

    /// Whether everything is on hold.
    pub fn holds_all(&self) -> bool {
        self.hold_all
    }
}
