//! Whether the queue and its shadow agree, and the queue with itself: lists, groups, counts and timers.

use super::*;

impl World {
    /// Both say the same, and the queue's own parts agree.
    pub(super) fn check(&self) {
        let mut tally = [0u64; State::COUNT];
        let mut leased = 0;
        for (&id, message) in &self.messages {
            assert_eq!(self.queue.find(MessageId(id)), Some(message.slot));
            let view = self.queue.message(message.slot).unwrap();
            assert_eq!(usize::from(view.recipients()), message.recipients.len());
            for (place, recipient) in message.recipients.iter().enumerate() {
                let place = place as u16;
                assert_eq!(view.state(place), recipient.state, "message {id} recipient {place}");
                assert_eq!(view.attempts(place), recipient.attempts);
                assert_eq!(view.is_leased(place), recipient.leased);
                if recipient.state == State::Scheduled {
                    assert_eq!(
                        tick_instant(self.queue.recipient(message.slot, place).unwrap().due).as_millis(),
                        recipient.due_ms
                    );
                }
                tally[recipient.state.index()] += 1;
                leased += u64::from(recipient.leased);
            }
        }
        assert_eq!((self.queue.tally, self.queue.leased), (tally, leased));
        assert_eq!(self.queue.counts().messages, self.messages.len() as u64);
        for site in 0..SITES {
            let lists = self.ready.iter().filter(|((of, _), _)| *of == site);
            let groups: Vec<usize> = lists.flat_map(|(_, list)| list.iter().map(|(_, group)| group.len())).collect();
            let in_flight = self.all_in(|recipient| recipient.state == State::InFlight && recipient.site == site);
            let expected = SiteCounts {
                groups: groups.len() as u32,
                recipients: groups.iter().sum::<usize>() as u32,
                in_flight: in_flight.len() as u32,
                suspended: self.suspended.contains(&site),
            };
            assert_eq!(self.queue.site_counts(SiteId(site)), expected);
        }
        self.check_inside();
        let page = self.queue.page(&Filter::default(), None, usize::MAX, usize::MAX);
        assert!(page.next.is_none() && page.messages.iter().map(|(id, _)| id.0).eq(self.messages.keys().copied()));
    }

    /// Each recipient stands in the one list that its state asks for, and each message's timer is early enough.
    fn check_inside(&self) {
        let queue = &self.queue;
        let mut groups = 0;
        let mut timers = 0;
        for message in self.messages.values() {
            let stored = queue.store.get(message.slot).unwrap();
            let mut seen = BTreeMap::new();
            let mut group = stored.group;
            while group != NONE {
                groups += 1;
                assert_eq!(queue.groups[group].slot, message.slot.0);
                let site = queue.destinations.site_of(queue.groups[group].flow);
                let (mut place, mut last) = (queue.groups[group].first, NOBODY);
                while place != NOBODY {
                    assert!(seen.insert(place, site).is_none(), "in two lists");
                    last = place;
                    place = stored.recipients()[usize::from(place)].next;
                }
                assert_eq!(queue.groups[group].last, last);
                group = queue.groups[group].sibling;
            }
            for (place, (recipient, shadow)) in stored.recipients().iter().zip(&message.recipients).enumerate() {
                let listed = recipient.flags & LISTED != 0;
                assert_eq!(listed, shadow.listed);
                assert_eq!(recipient.flags & HOLD_AFTER != 0, shadow.hold_after);
                assert_eq!(recipient.flags & DELETE_AFTER != 0, shadow.delete_after);
                let list = match recipient.state {
                    State::Ready => Some(Some(SiteId(recipient.site))),
                    _ if listed => Some(None),
                    _ => None,
                };
                assert_eq!(seen.get(&(place as u16)).copied(), list);
                if recipient.state == State::Scheduled {
                    assert!(queue.wheel.tick(TimerKey(stored.timer)) <= recipient.due);
                }
            }
            timers += usize::from(!TimerKey(stored.timer).is_none());
        }
        assert_eq!((queue.groups.len(), queue.wheel.len()), (groups, timers));
    }
}
