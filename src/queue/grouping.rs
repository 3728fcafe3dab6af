//! Recipients of one message that stand in one list stand there as one group; here they join and leave it.
//!
//! The chain of a group runs through the recipients, the chain of a message's groups through the groups, so that a
//! message with one recipient costs one group and no search. Deciding who joins what is the rest of the queue's.

use super::Queue;
use super::destination::{Group, SiteId, UNROUTED};
use super::slab::NONE;
use super::store::{LISTED, Message, NOBODY, Slot};

impl Queue {
    /// Puts a recipient that stands in no list into a site's, or without a site into the router's, with its message's
    /// other recipients there if there are any. At the front of its list and group, or at the end.
    pub(super) fn list(&mut self, slot: Slot, place: u16, site: Option<SiteId>, front: bool) {
        let Some(message) = self.store.get_mut(slot) else { return };
        let (tenant, cost) = (message.tenant, message.cost());
        let mut group = message.group;
        while group != NONE && self.destinations.site_of(self.groups[group].flow) != site {
            group = self.groups[group].sibling;
        }
        let found = group != NONE;
        if !found {
            group = self.groups.insert(Group::new(slot.0, place, message.group));
            message.group = group;
        }
        let recipients = message.recipients_mut();
        let recipient = &mut recipients[usize::from(place)];
        recipient.next = NOBODY;
        match site {
            Some(site) => recipient.site = site.0,
            None => recipient.flags |= LISTED,
        }
        if found {
            let group = &mut self.groups[group];
            if front {
                recipient.next = group.first;
                group.first = place;
            } else {
                recipients[usize::from(group.last)].next = place;
                group.last = place;
            }
        }
        match site {
            None if !found => self.unrouted.push_back(&mut self.groups, group),
            None => {}
            Some(site) => {
                if !found {
                    self.destinations.push(site, tenant, &mut self.groups, group, front.then_some(cost));
                }
                self.destinations.add_recipients(site, 1);
            }
        }
    }

    /// Takes the first recipient out of a group; the group is gone with its last.
    pub(super) fn take_first(&mut self, slot: Slot, group: u32) -> u16 {
        let site = self.destinations.site_of(self.groups[group].flow);
        let place = self.groups[group].first;
        let mut next = NOBODY;
        if let Some(message) = self.store.get_mut(slot) {
            let recipient = &mut message.recipients_mut()[usize::from(place)];
            next = std::mem::replace(&mut recipient.next, NOBODY);
            recipient.flags &= !LISTED;
        }
        self.groups[group].first = next;
        if next == NOBODY {
            self.drop_group(slot, group);
        }
        if let Some(site) = site {
            self.destinations.add_recipients(site, -1);
        }
        place
    }

    /// Takes those recipients of a message that fit out of whatever list they stand in.
    pub(super) fn unlist_where(&mut self, slot: Slot, leaves: impl Fn(u16) -> bool) {
        let mut group = self.store.get(slot).map_or(NONE, |message| message.group);
        while group != NONE {
            let sibling = self.groups[group].sibling;
            let Some(message) = self.store.get_mut(slot) else { return };
            let left = thin_out(message, &mut self.groups[group], &leaves);
            let site = self.destinations.site_of(self.groups[group].flow);
            if self.groups[group].first == NOBODY {
                self.drop_group(slot, group);
            }
            if let Some(site) = site {
                self.destinations.add_recipients(site, -left);
            }
            group = sibling;
        }
    }

    /// Ends a group, without a look at its recipients.
    pub(super) fn drop_group(&mut self, slot: Slot, group: u32) {
        let sibling = self.groups[group].sibling;
        if let Some(message) = self.store.get_mut(slot) {
            if message.group == group {
                message.group = sibling;
            } else {
                let mut before = message.group;
                while self.groups[before].sibling != group {
                    before = self.groups[before].sibling;
                }
                self.groups[before].sibling = sibling;
            }
        }
        if self.groups[group].flow == UNROUTED {
            self.unrouted.unlink(&mut self.groups, group);
        } else {
            self.destinations.remove(&mut self.groups, group);
        }
        self.groups.remove(group);
    }
}

/// Takes those who leave out of a group's chain, and counts them.
fn thin_out(message: &mut Message, group: &mut Group, leaves: &impl Fn(u16) -> bool) -> i32 {
    let recipients = message.recipients_mut();
    let mut at = group.first;
    let mut left = 0;
    (group.first, group.last) = (NOBODY, NOBODY);
    while at != NOBODY {
        let next = std::mem::replace(&mut recipients[usize::from(at)].next, NOBODY);
        if leaves(at) {
            recipients[usize::from(at)].flags &= !LISTED;
            left += 1;
        } else {
            match group.last {
                NOBODY => group.first = at,
                last => recipients[usize::from(last)].next = at,
            }
            group.last = at;
        }
        at = next;
    }
    left
}
