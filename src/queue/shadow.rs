//! The queue against a naive shadow of it: random operations on both, and after each one the same states, the same
//! counts, picks that the fairness rule allows, and a queue whose lists, groups and timers agree with each other.

mod agreement;
mod operation;

use super::store::{DELETE_AFTER, HOLD_AFTER, LISTED, NOBODY};
use super::timer_wheel::TimerKey;
use super::*;
use crate::address::Address;
use crate::envelope::{Body, Envelope, Notify};
use operation::{Op, op};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const SITES: u32 = 3;
const HOUR: u64 = 3_600_000;

#[derive(Debug)]
struct Shadow {
    state: State,
    attempts: u16,
    due_ms: u64,
    listed: bool,
    hold_after: bool,
    delete_after: bool,
    leased: bool,
    tried: bool,
    may_warn: bool,
    site: u32,
}

#[derive(Debug)]
struct ShadowMessage {
    slot: Slot,
    tenant: u16,
    cost: u64,
    born_ms: i64,
    recipients: Vec<Shadow>,
}

/// The ready groups of each site and tenant, in order: message, recipients.
type Lists = BTreeMap<(u32, u16), Vec<(u64, Vec<u16>)>>;

struct World {
    queue: Queue,
    now_ms: u64,
    wall_ms: u64,
    messages: BTreeMap<u64, ShadowMessage>,
    ready: Lists,
    suspended: BTreeSet<u32>,
    hold_all: bool,
    /// Warnings may lag until then, because everything was on hold.
    warnings_lag_until_ms: u64,
    next_id: u64,
    /// What each tenant's picks cost at a site since its set of tenants last changed.
    served: BTreeMap<u32, BTreeMap<u16, u64>>,
}

impl World {
    fn new() -> World {
        World {
            queue: Queue::new(QueueConfig::default(), 5),
            now_ms: 1_000_000,
            wall_ms: 1_790_000_000_000,
            messages: BTreeMap::new(),
            ready: Lists::new(),
            suspended: BTreeSet::new(),
            hold_all: false,
            warnings_lag_until_ms: 0,
            next_id: 1,
            served: BTreeMap::new(),
        }
    }

    fn now(&self) -> Now {
        Now { instant: Instant::from_nanos(self.now_ms * 1_000_000), unix: UnixTime::from_millis(self.wall_ms) }
    }

    fn age_ms(&self, message: &ShadowMessage) -> u64 {
        (self.now_ms as i64 - message.born_ms).max(0) as u64
    }

    fn id_of(&self, slot: Slot) -> u64 {
        self.queue.message(slot).unwrap().id().0
    }

    fn shadow(&mut self, id: u64, place: u16) -> &mut Shadow {
        &mut self.messages.get_mut(&id).unwrap().recipients[usize::from(place)]
    }

    fn all_in(&self, fits: impl Fn(&Shadow) -> bool) -> Vec<(u64, u16)> {
        let each = self.messages.iter().flat_map(|(&id, message)| {
            message.recipients.iter().enumerate().map(move |(place, recipient)| (id, place as u16, recipient))
        });
        each.filter(|(_, _, recipient)| fits(recipient)).map(|(id, place, _)| (id, place)).collect()
    }

    fn choose(&self, which: usize, fits: impl Fn(&Shadow) -> bool) -> Option<(u64, u16)> {
        let all = self.all_in(fits);
        (!all.is_empty()).then(|| all[which % all.len()])
    }

    fn make_ready(&mut self, id: u64, place: u16, site: u32, front: bool) {
        let tenant = self.messages[&id].tenant;
        let recipient = self.shadow(id, place);
        (recipient.state, recipient.listed, recipient.site) = (State::Ready, false, site);
        let list = self.ready.entry((site, tenant)).or_default();
        match list.iter_mut().find(|(other, _)| *other == id) {
            Some((_, group)) if front => group.insert(0, place),
            Some((_, group)) => group.push(place),
            None if front => list.insert(0, (id, vec![place])),
            None => {
                if list.is_empty() {
                    self.served.remove(&site);
                }
                list.push((id, vec![place]));
            }
        }
        if front {
            // What was paid comes back: the account begins anew.
            self.served.remove(&site);
        }
    }

    fn leave_lists(&mut self, id: u64, place: u16) {
        self.shadow(id, place).listed = false;
        for ((site, _), list) in &mut self.ready {
            for (other, group) in list.iter_mut() {
                if *other == id {
                    group.retain(|&member| member != place);
                }
            }
            let before = list.len();
            list.retain(|(_, group)| !group.is_empty());
            if before > 0 && list.is_empty() {
                self.served.remove(site);
            }
        }
        self.ready.retain(|_, list| !list.is_empty());
    }

    fn set(&mut self, id: u64, place: u16, state: State) {
        self.leave_lists(id, place);
        let recipient = self.shadow(id, place);
        recipient.state = state;
        recipient.listed = state == State::Unrouted;
        if state != State::InFlight {
            (recipient.hold_after, recipient.delete_after, recipient.leased) = (false, false, false);
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Insert { recipients, tenant, len, null_path, age_ms, recovered } => {
                self.insert(recipients, tenant, len, null_path, age_ms, recovered);
            }
            Op::Route { how, times } => (0..times).for_each(|turn| self.route(how.wrapping_add(turn as u8))),
            Op::Unpark(which) => {
                if let Some((id, place)) = self.choose(which, |recipient| recipient.state == State::Parked) {
                    assert!(self.queue.unpark(self.messages[&id].slot, place));
                    self.set(id, place, State::Unrouted);
                }
            }
            Op::Pick { site, max } => self.pick(site, max),
            Op::Unpick { which, lease } => self.unpick(which, lease),
            Op::Settle { which, verdict } => {
                if let Some((id, place)) = self.choose(which, |recipient| recipient.state == State::InFlight) {
                    self.settle(id, place, verdict);
                }
            }
            Op::StaleSettle { which, verdict } => {
                if let Some((id, place)) = self.choose(which, |_| true) {
                    self.settle(id, place, verdict);
                }
            }
            Op::Operate { which, act, domain } => self.operate(which, act, domain),
            Op::Suspend(site) => {
                let suspended = self.suspended.insert(site) || !self.suspended.remove(&site);
                self.queue.suspend_site(SiteId(site), suspended);
            }
            Op::HoldAll => {
                self.hold_all = !self.hold_all;
                self.queue.set_hold_all(self.hold_all);
                self.warnings_lag_until_ms = self.now_ms + limits::WARNING_RECHECK.as_millis() as u64 + 100;
            }
            Op::Jump(by_ms) => {
                self.now_ms += by_ms;
                self.wall_ms += by_ms;
                self.fire();
            }
            Op::WallJump(to_ms) => self.wall_ms = 1_789_000_000_000 + to_ms,
            Op::Sweep { site, budget } => self.sweep(site, budget),
        }
    }

    fn insert(&mut self, count: usize, tenant: u16, len: u32, null_path: bool, age_ms: u64, recovered: Option<u8>) {
        let address = |text: String| Address::parse(text.as_bytes(), false).unwrap();
        let notify = |place: usize| if place % 3 == 2 { Notify::NEVER } else { Notify::DEFAULT };
        let recipients = (0..count).map(|place| crate::envelope::Recipient {
            address: address(format!("r{place}@site{}.example", place % 2)),
            notify: notify(place),
            orcpt: None,
        });
        let id = self.next_id;
        self.next_id += 1;
        let envelope = Envelope {
            reverse_path: (!null_path).then(|| address("sender@example.org".into())),
            body: Body::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            recipients: recipients.collect(),
            tenant: "default".into(),
            arrived: UnixTime::from_millis(self.wall_ms - age_ms),
            client: "".into(),
            require_tls: false,
            is_dsn: false,
            held: None,
        };
        let schedule = RetrySchedule::default();
        let fold = |place: usize, seed: u8| {
            let fate = match (seed as usize + place) % 5 {
                0 => Fate::Held,
                1 => Fate::Done(Disposition::Bounced),
                _ => Fate::Waiting,
            };
            let ahead = u64::from(seed) * 200_000;
            RecoveredState {
                fate,
                attempts: u16::from(seed % 7),
                next_due: UnixTime::from_millis(self.wall_ms + ahead),
            }
        };
        // What was not recovered is new, whatever the wall clock said at its MAIL.
        let age_ms = if recovered.is_some() { age_ms } else { 0 };
        let states: Option<Vec<RecoveredState>> = recovered.map(|seed| (0..count).map(|n| fold(n, seed)).collect());
        let warns = !null_path && (states.is_none() || age_ms < 4 * HOUR);
        let shadows = (0..count).map(|place| {
            let folded = states.as_ref().map(|states| states[place]);
            let attempts = folded.map_or(0, |folded| folded.attempts);
            let wait = folded.map_or(0, |folded| folded.next_due.as_millis() - self.wall_ms);
            let wait = wait.min(schedule.wait_max(attempts).as_millis() as u64);
            let state = match folded.map(|folded| folded.fate) {
                Some(Fate::Held) => State::Held,
                Some(Fate::Done(disposition)) => State::Done(disposition),
                _ if wait > 0 => State::Scheduled,
                _ => State::Unrouted,
            };
            Shadow {
                state,
                attempts,
                due_ms: (self.now_ms + wait).next_multiple_of(100),
                listed: state == State::Unrouted,
                hold_after: false,
                delete_after: false,
                leased: false,
                tried: false,
                may_warn: warns && notify(place).delay(),
                site: u32::MAX,
            }
        });
        let recipients = shadows.collect();
        let content = StoredContent { len, ..StoredContent::default() };
        let new = NewMessage { id: MessageId(id), envelope, content, states, tenant: TenantId(tenant) };
        let slot = self.queue.insert(new, self.now());
        let cost = u64::from(len) + limits::TRANSACTION_COST;
        let born_ms = self.now_ms as i64 - age_ms as i64;
        self.messages.insert(id, ShadowMessage { slot, tenant, cost, born_ms, recipients });
        self.remove_finished(id);
    }

    fn route(&mut self, how: u8) {
        let Some((slot, place)) = self.queue.poll_unrouted() else {
            assert!(self.hold_all || self.all_in(|recipient| recipient.listed).is_empty());
            return;
        };
        let id = self.id_of(slot);
        assert!(!self.hold_all && self.shadow(id, place).listed, "it comes once");
        self.shadow(id, place).listed = false;
        match how % 8 {
            0 => {
                self.queue.park(slot, place);
                self.shadow(id, place).state = State::Parked;
            }
            1 => self.settle(id, place, 1),
            2 => self.settle(id, place, 5),
            _ => {
                let site = u32::from(how / 8) % SITES;
                self.queue.assign(slot, place, SiteId(site));
                self.make_ready(id, place, site, false);
            }
        }
    }

    fn pick(&mut self, site: u32, max: usize) {
        let tenants: Vec<u16> = self.ready.keys().filter(|key| key.0 == site).map(|key| key.1).collect();
        let Some(pick) = self.queue.pick(SiteId(site), max) else {
            assert!(tenants.is_empty() || self.hold_all || self.suspended.contains(&site), "nobody is forgotten");
            return;
        };
        assert!(!self.hold_all && !self.suspended.contains(&site));
        let id = self.id_of(pick.slot);
        let (tenant, cost) = (self.messages[&id].tenant, self.messages[&id].cost);
        let (first, group) = &self.ready[&(site, tenant)][0];
        assert_eq!(*first, id, "first come, first served within a tenant");
        assert_eq!(pick.recipients[..], group[..max.max(1).min(group.len())]);
        let served = self.served.entry(site).or_default();
        *served.entry(tenant).or_default() += cost;
        let most = served.values().max().unwrap();
        let least = tenants.iter().map(|tenant| served.get(tenant).copied().unwrap_or_default()).min().unwrap();
        let allowed = 2 * (300_000 + limits::TRANSACTION_COST) + 3 * limits::FAIRNESS_QUANTUM;
        assert!(most - least <= allowed, "unfair: {served:?}");
        for place in pick.recipients {
            self.set(id, place, State::InFlight);
        }
    }

    fn unpick(&mut self, which: usize, lease: bool) {
        let Some((id, _)) = self.choose(which, |recipient| recipient.state == State::InFlight) else { return };
        let slot = self.messages[&id].slot;
        let in_flight = self.all_in(|recipient| recipient.state == State::InFlight);
        let places: Vec<u16> =
            in_flight.into_iter().filter(|&(other, _)| other == id).map(|(_, place)| place).collect();
        if lease {
            self.queue.lease(slot, &places);
            places.iter().for_each(|&place| self.shadow(id, place).leased = true);
            return;
        }
        let doomed: Vec<u16> = places.iter().copied().filter(|&place| self.shadow(id, place).delete_after).collect();
        assert_eq!(self.queue.unpick(slot, &places), doomed);
        for &place in places.iter().rev() {
            let recipient = self.shadow(id, place);
            let (held, site) = (recipient.hold_after, recipient.site);
            if doomed.contains(&place) {
                self.set(id, place, State::Done(Disposition::Deleted));
            } else if held {
                self.set(id, place, State::Held);
            } else {
                self.set(id, place, State::Ready);
                self.make_ready(id, place, site, true);
            }
        }
        self.remove_finished(id);
    }

    fn settle(&mut self, id: u64, place: u16, verdict: u8) {
        let not_before_ms = self.now_ms + u64::from(verdict) * 100_000;
        let not_before = Instant::from_nanos(not_before_ms * 1_000_000);
        let (verdict, disposition) = match verdict % 8 {
            0 => (Verdict::Delivered, Some(Disposition::Delivered)),
            1 => (Verdict::Failed, Some(Disposition::Bounced)),
            2 => (Verdict::Suppressed, Some(Disposition::Suppressed)),
            3 => (Verdict::Deleted, Some(Disposition::Deleted)),
            4 => (Verdict::Deferred { not_before: Some(not_before) }, None),
            5 => (Verdict::Unresolved, None),
            _ => (Verdict::Deferred { not_before: None }, None),
        };
        let (now, slot) = (self.now(), self.messages[&id].slot);
        let over = self.age_ms(&self.messages[&id]) >= 120 * HOUR;
        let recipient = self.shadow(id, place);
        let (state, hold_after, tried) = (recipient.state, recipient.hold_after, recipient.tried);
        let disposition = disposition.or(recipient.delete_after.then_some(Disposition::Deleted));
        let settled = self.queue.settle(slot, place, verdict, now);
        if state.is_done() {
            assert_eq!(settled, Settled::Ignored);
        } else if let Some(disposition) = disposition {
            assert_eq!(settled, Settled::Done(disposition));
            self.set(id, place, State::Done(disposition));
        } else if matches!(state, State::Scheduled | State::Held) {
            assert_eq!(settled, Settled::Ignored);
        } else {
            let recipient = self.shadow(id, place);
            recipient.attempts += 1;
            recipient.tried = true;
            let attempts = recipient.attempts;
            if over && !hold_after && (tried || verdict != Verdict::Unresolved) {
                assert_eq!(settled, Settled::Expired);
                self.set(id, place, State::Done(Disposition::Expired));
            } else {
                let Settled::Retry { due, attempts: told } = settled else { panic!("{settled:?}") };
                let wait_ms = due.as_millis() - self.wall_ms;
                let schedule = RetrySchedule::default();
                let least = schedule.wait(1, 0).as_millis() as u64 / 2;
                assert!(told == attempts && wait_ms >= least, "{wait_ms}");
                match verdict {
                    Verdict::Deferred { not_before: Some(_) } => assert!(self.now_ms + wait_ms >= not_before_ms),
                    _ => assert!(wait_ms <= schedule.wait_max(attempts).as_millis() as u64 + 1_000, "{wait_ms}"),
                }
                self.set(id, place, if hold_after { State::Held } else { State::Scheduled });
                self.shadow(id, place).due_ms = self.now_ms + wait_ms;
            }
        }
        self.remove_finished(id);
    }

    fn operate(&mut self, which: usize, act: u8, domain: Option<u8>) {
        let Some((id, _)) = self.choose(which, |_| true) else { return };
        let filter =
            Filter { domain: domain.map(|number| format!("SITE{number}.example").into()), ..Filter::default() };
        let (slot, now) = (self.messages[&id].slot, self.now());
        let chosen: Vec<u16> = (0..self.messages[&id].recipients.len() as u16)
            .filter(|place| domain.is_none_or(|domain| u16::from(domain) == place % 2))
            .collect();
        let mut changed = 0;
        let mut deleted = Vec::new();
        for place in chosen {
            let state = self.shadow(id, place).state;
            match (act, state) {
                (0, State::InFlight) => {
                    changed += usize::from(!std::mem::replace(&mut self.shadow(id, place).hold_after, true))
                }
                (0, State::Unrouted | State::Parked | State::Scheduled | State::Ready) => {
                    self.set(id, place, State::Held);
                    changed += 1;
                }
                (1, State::InFlight) => changed += usize::from(std::mem::take(&mut self.shadow(id, place).hold_after)),
                (1, State::Held) | (2, State::Scheduled) => {
                    self.set(id, place, State::Unrouted);
                    changed += 1;
                }
                (3, State::InFlight) => self.shadow(id, place).delete_after = true,
                (3, state) if !state.is_done() => {
                    self.set(id, place, State::Done(Disposition::Deleted));
                    deleted.push(place);
                }
                _ => {}
            }
        }
        match act {
            0 => assert_eq!(self.queue.hold(slot, &filter), changed),
            1 => assert_eq!(self.queue.release(slot, &filter), changed),
            2 => assert_eq!(self.queue.retry_now(slot, &filter), changed),
            _ => assert_eq!(self.queue.delete(slot, &filter, now), deleted),
        }
        self.remove_finished(id);
    }

    fn fire(&mut self) {
        let now = self.now();
        while self.queue.next_due().is_some_and(|due| due <= now.instant) {
            self.queue.handle_timeout(now);
        }
        let reached = self.now_ms / 100 * 100;
        for (id, place) in self.all_in(|recipient| recipient.state == State::Scheduled && recipient.due_ms <= reached) {
            self.set(id, place, State::Unrouted);
        }
        while let Some((slot, late)) = self.queue.poll_delayed() {
            let id = self.id_of(slot);
            assert!(self.age_ms(&self.messages[&id]) >= 4 * HOUR && !self.hold_all);
            for place in late {
                assert!(std::mem::take(&mut self.shadow(id, place).may_warn), "told once");
            }
        }
        if !self.hold_all && self.now_ms >= self.warnings_lag_until_ms {
            for message in self.messages.values() {
                let late = self.age_ms(message) >= 4 * HOUR + 100;
                let quiet =
                    |recipient: &Shadow| matches!(recipient.state, State::Held | State::InFlight | State::Done(_));
                assert!(!late || message.recipients.iter().all(|recipient| !recipient.may_warn || quiet(recipient)));
            }
        }
    }

    fn sweep(&mut self, site: u32, budget: usize) {
        let now = self.now();
        for pick in self.queue.expire_ready(SiteId(site), now.instant, now, budget) {
            let id = self.id_of(pick.slot);
            assert!(self.age_ms(&self.messages[&id]) >= 120 * HOUR);
            assert!(!self.hold_all && !self.suspended.contains(&site));
            let tenant = self.messages[&id].tenant;
            let group = self.ready[&(site, tenant)].iter().find(|(other, _)| *other == id).unwrap().1.clone();
            assert_eq!(pick.recipients, group);
            for place in pick.recipients {
                self.set(id, place, State::InFlight);
                self.settle(id, place, 6);
            }
        }
    }

    fn remove_finished(&mut self, id: u64) {
        let message = &self.messages[&id];
        let finished = message.recipients.iter().all(|recipient| recipient.state.is_done());
        assert_eq!(self.queue.is_finished(message.slot), finished);
        if finished {
            assert_eq!(self.queue.remove(message.slot).unwrap().id, MessageId(id));
            self.messages.remove(&id);
        } else {
            assert_eq!(self.queue.remove(message.slot), None);
        }
    }

    /// Ends all that is left: whatever happened, everyone can still be delivered.
    fn drain(&mut self) {
        if self.hold_all {
            self.apply(Op::HoldAll);
        }
        for site in std::mem::take(&mut self.suspended) {
            self.queue.suspend_site(SiteId(site), false);
        }
        let in_flight = self.all_in(|recipient| recipient.state == State::InFlight);
        in_flight.into_iter().for_each(|(id, place)| self.settle(id, place, 0));
        for act in [1, 2] {
            for id in self.messages.keys().copied().collect::<Vec<_>>() {
                let which = self.all_in(|_| true).iter().position(|&(other, _)| other == id).unwrap();
                self.operate(which, act, None);
            }
        }
        while let Some((id, place)) = self.choose(0, |recipient| recipient.state == State::Parked) {
            assert!(self.queue.unpark(self.messages[&id].slot, place));
            self.set(id, place, State::Unrouted);
        }
        while !self.all_in(|recipient| recipient.listed).is_empty() {
            self.route(3);
        }
        while let Some((id, place)) = self.choose(0, |recipient| recipient.state == State::Ready) {
            self.pick(self.messages[&id].recipients[usize::from(place)].site, 1);
            let (id, place) = self.choose(0, |recipient| recipient.state == State::InFlight).unwrap();
            self.settle(id, place, 0);
        }
        assert!(self.messages.is_empty(), "{:?}", self.messages);
        self.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(400)))]

    #[test]
    fn agrees_with_its_shadow(ops in prop::collection::vec(op(), 1..150)) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
            world.check();
        }
        world.drain();
    }
}
