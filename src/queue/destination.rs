//! What is ready, by site, and whose turn it is: first come first served within a tenant, fair between tenants.
//!
//! M. Shreedhar and G. Varghese, "Efficient Fair Queuing Using Deficit Round Robin", IEEE/ACM Transactions on
//! Networking 4(3), 1996. Each tenant with ready mail for a site is a flow with a deficit counter; the flows stand
//! in a ring; a flow whose turn begins is granted a quantum and sends while its counter covers the next
//! transaction. A transaction costs its content's length and a fixed amount for its round trips. Content may be
//! far longer than a quantum, so a flow can need many turns for one message; when a whole round serves nobody, all
//! rounds until somebody can be served are granted at once. A choice is thus O(1) for content below the quantum,
//! and at most two rounds of the site's active tenants otherwise. Flows that run empty lose what they saved, as in
//! the paper.
//!
//! A ready group is the recipients of one message that wait for one site together: they go in one transaction.
//! This module knows groups only as members of lists; who is in them stands in the messages.

use super::slab::{Linked, List, NONE, Place, Slab};
use crate::limits;
use foldhash::fast::FixedState;
use std::collections::HashMap;

/// A site: the place where recipients' mail goes. The number is the site registry's.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub u32);

/// A tenant, in the numbers of this process.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u16);

/// The flow number of groups that wait for the router and not for a site.
pub(super) const UNROUTED: u32 = NONE;

/// Recipients of one message that wait in one list together.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// The message.
    pub slot: u32,
    /// The flow it stands in, or [`UNROUTED`].
    pub flow: u32,
    /// The next group of the same message, or [`NONE`].
    pub sibling: u32,
    link: u32,
    back: u32,
    /// The first and the last recipient; the others are chained through the recipients.
    pub first: u16,
    pub last: u16,
}

const _: () = assert!(size_of::<Group>() == 24);

impl Group {
    /// A group of one recipient that stands in no list yet.
    pub fn new(slot: u32, recipient: u16, sibling: u32) -> Group {
        Group { slot, flow: UNROUTED, sibling, link: NONE, back: NONE, first: recipient, last: recipient }
    }
}

impl Place for Group {
    fn link(&self) -> u32 {
        self.link
    }
    fn set_link(&mut self, to: u32) {
        self.link = to;
    }
}

impl Linked for Group {
    fn back(&self) -> u32 {
        self.back
    }
    fn set_back(&mut self, to: u32) {
        self.back = to;
    }
}

/// One tenant's ready groups for one site. It exists only while there are any.
#[derive(Debug, Default)]
struct Flow {
    site: SiteId,
    tenant: TenantId,
    /// Whether its turn was begun: the quantum is granted once per turn.
    in_turn: bool,
    /// What it may still send in this turn.
    deficit: u64,
    groups: List,
    /// The group at which the next sweep goes on, or [`NONE`] for the first.
    sweep_at: u32,
    /// The last round of sweeping that reached its end.
    swept: u32,
    link: u32,
    back: u32,
}

impl Place for Flow {
    fn link(&self) -> u32 {
        self.link
    }
    fn set_link(&mut self, to: u32) {
        self.link = to;
    }
}

impl Linked for Flow {
    fn back(&self) -> u32 {
        self.back
    }
    fn set_back(&mut self, to: u32) {
        self.back = to;
    }
}

/// How much waits at a site.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct SiteCounts {
    /// Ready groups: transactions that could begin.
    pub groups: u32,
    /// Ready recipients.
    pub recipients: u32,
    /// Recipients in an attempt.
    pub in_flight: u32,
    /// Whether it is suspended.
    pub suspended: bool,
}

#[derive(Debug, Default)]
struct Site {
    ring: List,
    counts: SiteCounts,
    /// The present round of sweeping.
    sweep: u32,
}

/// All sites of this shard that have something, with their ready lists.
#[derive(Debug)]
pub(super) struct Destinations {
    sites: HashMap<SiteId, Site, FixedState>,
    flows: Slab<Flow>,
    flow_of: HashMap<(SiteId, TenantId), u32, FixedState>,
}

impl Destinations {
    pub fn new(seed: u64) -> Destinations {
        let hasher = FixedState::with_seed(seed);
        Destinations {
            sites: HashMap::with_hasher(hasher.clone()),
            flows: Slab::new(),
            flow_of: HashMap::with_hasher(hasher),
        }
    }

    pub fn counts(&self, site: SiteId) -> SiteCounts {
        self.sites.get(&site).map_or_else(SiteCounts::default, |site| site.counts)
    }

    /// Sites with ready groups, in no order.
    pub fn ready_sites(&self) -> impl Iterator<Item = SiteId> + '_ {
        self.sites.iter().filter(|(_, site)| site.counts.groups > 0).map(|(&id, _)| id)
    }

    pub fn site_of(&self, flow: u32) -> Option<SiteId> {
        (flow != UNROUTED).then(|| self.flows[flow].site)
    }

    /// Suspends a site, or ends that.
    pub fn suspend(&mut self, site: SiteId, suspended: bool) {
        self.sites.entry(site).or_default().counts.suspended = suspended;
        self.forget_if_idle(site);
    }

    /// Counts recipients that became ready or ceased to be.
    pub fn add_recipients(&mut self, site: SiteId, by: i32) {
        let counts = &mut self.sites.entry(site).or_default().counts;
        counts.recipients = counts.recipients.saturating_add_signed(by);
        self.forget_if_idle(site);
    }

    /// Counts recipients that entered or left an attempt.
    pub fn add_in_flight(&mut self, site: SiteId, by: i32) {
        let counts = &mut self.sites.entry(site).or_default().counts;
        counts.in_flight = counts.in_flight.saturating_add_signed(by);
        self.forget_if_idle(site);
    }

    fn forget_if_idle(&mut self, site: SiteId) {
        if self.sites.get(&site).is_some_and(|site| site.counts == SiteCounts::default()) {
            self.sites.remove(&site);
        }
    }

    /// Puts a group at the end of its tenant's list, or at its front. A front place is for what was picked and not
    /// sent: what the flow paid for it comes back.
    pub fn push(&mut self, site: SiteId, tenant: TenantId, groups: &mut Slab<Group>, group: u32, front: Option<u64>) {
        let flow = match self.flow_of.get(&(site, tenant)) {
            Some(&flow) => flow,
            None => self.open_flow(site, tenant),
        };
        groups[group].flow = flow;
        let flow = &mut self.flows[flow];
        match front {
            None => flow.groups.push_back(groups, group),
            Some(cost) => {
                flow.groups.push_front(groups, group);
                flow.deficit = (flow.deficit + cost).min(limits::FAIRNESS_QUANTUM + cost);
            }
        }
        self.sites.entry(site).or_default().counts.groups += 1;
    }

    fn open_flow(&mut self, site: SiteId, tenant: TenantId) -> u32 {
        let entry = self.sites.entry(site).or_default();
        let swept = entry.sweep.wrapping_sub(1);
        let flow = self.flows.insert(Flow { site, tenant, sweep_at: NONE, swept, ..Flow::default() });
        entry.ring.push_back(&mut self.flows, flow);
        self.flow_of.insert((site, tenant), flow);
        flow
    }

    /// Takes a group out of its list.
    pub fn remove(&mut self, groups: &mut Slab<Group>, group: u32) {
        let number = groups[group].flow;
        let flow = &mut self.flows[number];
        if flow.sweep_at == group {
            flow.sweep_at = flow.groups.after(groups, group);
            // The last of the list: the round ends here, instead of beginning anew.
            if flow.sweep_at == NONE {
                flow.swept = self.sites.get(&flow.site).map_or(0, |site| site.sweep);
            }
        }
        flow.groups.unlink(groups, group);
        let (site, tenant, empty) = (flow.site, flow.tenant, flow.groups.is_empty());
        let entry = self.sites.entry(site).or_default();
        entry.counts.groups -= 1;
        if empty {
            entry.ring.unlink(&mut self.flows, number);
            self.flows.remove(number);
            self.flow_of.remove(&(site, tenant));
        }
        self.forget_if_idle(site);
    }

    /// The group whose turn it is, and charges its flow. `cost` tells a group's cost, see the module's note.
    pub fn choose(&mut self, site: SiteId, cost: impl Fn(u32) -> u64) -> Option<u32> {
        let site = self.sites.get_mut(&site).filter(|site| !site.counts.suspended)?;
        let first = site.ring.head();
        if first == NONE {
            return None;
        }
        // Alone, a tenant saves nothing and owes nothing.
        if self.flows[first].link() == first {
            let flow = &mut self.flows[first];
            (flow.deficit, flow.in_turn) = (0, false);
            return Some(flow.groups.head());
        }
        loop {
            // Rounds in which nobody can send, while this one goes round.
            let mut idle_rounds = u64::MAX;
            loop {
                let number = site.ring.head();
                let flow = &mut self.flows[number];
                let group = flow.groups.head();
                let cost = cost(group);
                if !flow.in_turn {
                    flow.in_turn = true;
                    flow.deficit += limits::FAIRNESS_QUANTUM;
                }
                if flow.deficit >= cost {
                    flow.deficit -= cost;
                    return Some(group);
                }
                idle_rounds = idle_rounds.min((cost - flow.deficit).div_ceil(limits::FAIRNESS_QUANTUM) - 1);
                flow.in_turn = false;
                site.ring.rotate(&self.flows);
                if site.ring.head() == first {
                    break;
                }
            }
            let mut number = first;
            while number != NONE {
                self.flows[number].deficit += idle_rounds * limits::FAIRNESS_QUANTUM;
                number = site.ring.after(&self.flows, number);
            }
        }
    }

    /// Goes through a site's groups, each once per round, from where the last call stopped. Looks at no more than
    /// `budget` groups; fewer come when the round is complete, and the next call begins a new one.
    pub fn sweep(&mut self, site: SiteId, groups: &Slab<Group>, budget: usize, found: &mut Vec<u32>) {
        let Some(entry) = self.sites.get_mut(&site) else { return };
        let mut number = entry.ring.head();
        while number != NONE {
            let flow = &mut self.flows[number];
            if flow.swept != entry.sweep {
                let mut at = if flow.sweep_at == NONE { flow.groups.head() } else { flow.sweep_at };
                while at != NONE && found.len() < budget {
                    found.push(at);
                    at = flow.groups.after(groups, at);
                }
                flow.sweep_at = at;
                if at != NONE {
                    return;
                }
                flow.swept = entry.sweep;
            }
            number = entry.ring.after(&self.flows, number);
        }
        entry.sweep = entry.sweep.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: SiteId = SiteId(7);

    struct World {
        destinations: Destinations,
        groups: Slab<Group>,
        costs: HashMap<u32, u64>,
    }

    impl World {
        fn new() -> World {
            World { destinations: Destinations::new(1), groups: Slab::new(), costs: HashMap::new() }
        }

        fn add(&mut self, tenant: u16, cost: u64) -> u32 {
            let group = self.groups.insert(Group::default());
            self.destinations.push(SITE, TenantId(tenant), &mut self.groups, group, None);
            self.costs.insert(group, cost);
            group
        }

        fn take(&mut self) -> Option<(u16, u64)> {
            let group = self.destinations.choose(SITE, |group| self.costs[&group])?;
            let tenant = self.destinations.flows[self.groups[group].flow].tenant;
            self.destinations.remove(&mut self.groups, group);
            self.groups.remove(group);
            Some((tenant.0, self.costs[&group]))
        }
    }

    #[test]
    fn bytes_are_shared_evenly_though_messages_differ_in_length() {
        let mut world = World::new();
        for _ in 0..4_000 {
            world.add(1, 5_000);
        }
        for _ in 0..100 {
            world.add(2, 300_000);
        }
        let mut sent = [0u64; 3];
        for _ in 0..2_000 {
            let (tenant, cost) = world.take().unwrap();
            sent[tenant as usize] += cost;
            let apart = sent[1].abs_diff(sent[2]);
            assert!(apart <= 300_000 + 2 * limits::FAIRNESS_QUANTUM, "{sent:?}");
        }
    }

    #[test]
    fn a_newcomer_does_not_wait_for_a_backlog() {
        let mut world = World::new();
        for _ in 0..100_000 {
            world.add(1, 5_000);
        }
        for _ in 0..50 {
            world.take();
        }
        world.add(2, 5_000);
        let waited = std::iter::from_fn(|| world.take()).take_while(|&(tenant, _)| tenant != 2).count() as u64;
        assert!(waited * 5_000 <= 2 * limits::FAIRNESS_QUANTUM, "{waited}");
    }

    #[test]
    fn long_content_takes_its_turns_without_a_long_search() {
        let mut world = World::new();
        for tenant in 0..1_000 {
            world.add(tenant, 50 << 20);
            world.add(tenant, 50 << 20);
        }
        let looks = std::cell::Cell::new(0u64);
        let group = world.destinations.choose(SITE, |group| {
            looks.set(looks.get() + 1);
            world.costs[&group]
        });
        assert!(group.is_some() && looks.get() <= 2_000, "{}", looks.get());
    }

    #[test]
    fn a_lone_tenant_owes_nothing_and_a_site_is_forgotten_when_empty() {
        let mut world = World::new();
        for _ in 0..10 {
            world.add(1, 1 << 30);
        }
        while world.take().is_some() {}
        assert!(world.destinations.sites.is_empty() && world.destinations.flow_of.is_empty());
        assert!(world.destinations.flows.is_empty());
    }

    #[test]
    fn a_suspended_site_gives_nothing_and_is_remembered() {
        let mut world = World::new();
        world.destinations.suspend(SITE, true);
        world.add(1, 1);
        assert_eq!(world.take(), None);
        world.destinations.suspend(SITE, false);
        assert_eq!(world.take(), Some((1, 1)));
        assert!(world.destinations.sites.is_empty());
    }

    #[test]
    fn a_sweep_sees_each_group_once_per_round_though_some_vanish() {
        let mut world = World::new();
        let added: Vec<u32> = (0..30).map(|number| world.add(number % 3, 1)).collect();
        let mut seen = Vec::new();
        for _ in 0..5 {
            let mut found = Vec::new();
            world.destinations.sweep(SITE, &world.groups, 7, &mut found);
            // The one after the last seen of its tenant is where the sweep would go on.
            let next = added.iter().copied().find(|group| !seen.contains(group) && !found.contains(group));
            seen.extend(found);
            if let Some(next) = next.filter(|_| seen.len() == 7) {
                world.destinations.remove(&mut world.groups, next);
                seen.push(next);
            }
        }
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!((seen.len(), count), (30, 30));
    }
}
