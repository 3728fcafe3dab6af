//! Handoff between shards: a message's recipients are lent to another shard for one attempt, and come back with their
//! outcomes. Only a descriptor crosses; the message's home stays its owner and records what happened.
//!
//! Why mailboxes cannot lock up: a shard has at most [`LEASES_PER_SHARD`] leases with each other shard, and a
//! mailbox has room for all leases and all answers that this allows (the relation is asserted in src/limits.rs).

use crate::clock::{Instant, Now};
use crate::io::handler::Command;
use crate::limits::{HELP_ABOVE, LEASES_PER_SHARD};
use crate::queue::{SiteId, Slot};
use crate::shard::core::Core;
use crate::shard::message::{Lease, LeaseEnded, ToShard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How much each shard has to do, for the others to see, and how many of them stop.
#[derive(Debug)]
pub struct Loads {
    ready: Vec<AtomicU32>,
    stopping: AtomicU32,
}

impl Loads {
    /// Of so many shards.
    pub fn new(shards: u8) -> Loads {
        Loads { ready: (0..shards).map(|_| AtomicU32::new(0)).collect(), stopping: AtomicU32::new(0) }
    }

    fn publish(&self, shard: u8, ready: u32) {
        self.ready[usize::from(shard)].store(ready, Ordering::Relaxed);
    }

    /// One more shard stops: it lends nothing from here on.
    pub(super) fn note_stopping(&self) {
        self.stopping.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether every shard stops, so that no new lease can come.
    pub(super) fn all_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire) as usize >= self.ready.len()
    }

    /// The least loaded of the other shards, if it has much less to do than `shard`.
    fn helper_for(&self, shard: u8, ready: u32) -> Option<u8> {
        let (least, load) = self
            .ready
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != usize::from(shard))
            .map(|(other, load)| (other as u8, load.load(Ordering::Relaxed)))
            .min_by_key(|&(_, load)| load)?;
        (load < ready / 4).then_some(least)
    }
}

/// What this shard has lent.
#[derive(Debug)]
pub struct Leases {
    /// With each shard.
    out: Vec<u32>,
}

impl Leases {
    /// Nothing yet, with so many shards.
    pub fn new(shards: u8) -> Leases {
        Leases { out: vec![0; usize::from(shards)] }
    }

    /// Whether every lease has come back.
    pub fn none_out(&self) -> bool {
        self.out.iter().all(|&out| out == 0)
    }
}

impl Core {
    /// Lends ready messages of a site to its owner, or to `helper`, as far as the credit goes.
    pub(super) fn lease_out(&mut self, site: SiteId, helper: Option<u8>) {
        let Some(permits) = self.sites.get(site).map(|known| Arc::clone(&known.permits)) else { return };
        let to = helper.unwrap_or_else(|| permits.owner(self.shards));
        if to == self.shard {
            return;
        }
        // What another shard delivers for this one must find room here to be recorded.
        while self.leases.out[usize::from(to)] < LEASES_PER_SHARD && self.log.accepts_outcomes() {
            let Some(pick) = self.pick(site, permits.shape.limits.recipients_per_transaction) else { return };
            let Some((transaction, id, content)) = self.transaction_of(pick.slot, &pick.recipients) else { return };
            let held = self.retained.get(id).cloned();
            let hosts = self.sites.get(site).map(|known| known.addresses()).unwrap_or_default();
            let lease = Lease {
                home: self.shard,
                slot: pick.slot.0,
                id,
                site: Arc::clone(&permits),
                hosts,
                transaction,
                recipients: pick.recipients,
                content,
                held,
            };
            self.queue.lease(pick.slot, &lease.recipients);
            self.leases.out[usize::from(to)] += 1;
            self.metrics.leases_sent += 1;
            self.commands.push_back(Command::Post { shard: to, message: ToShard::Lease(Box::new(lease)) });
        }
    }

    /// Another shard lends us a message.
    pub(super) fn lease_taken(&mut self, lease: Box<Lease>, now: Now) {
        self.metrics.leases_taken += 1;
        let site = self.sites.of(&lease.site);
        // Whoever is only lent mail has never asked DNS: it goes by what the homes know, which changes.
        let by_others = |until| until == Instant::MAX || until <= now.instant;
        if self.sites.get(site).is_some_and(|known| by_others(known.hosts_until) && !known.is_at(&lease.hosts))
            && !lease.hosts.is_empty()
        {
            self.site_hosts_known(site, lease.hosts.clone(), Instant::MAX);
        }
        if let Some(known) = self.sites.get_mut(site) {
            known.guests.push_back(lease);
        }
        if self.stopping.is_some() {
            self.return_guests(site, now.instant);
        }
        self.touch(site);
    }

    /// The lease did not get into the mailbox: the message stays with its home.
    pub(super) fn lease_refused(&mut self, to: u8, lease: &Lease, now: Now) {
        self.leases.out[usize::from(to)] -= 1;
        self.give_back(Slot(lease.slot), &lease.recipients, now);
    }

    /// Sends the answer to a lease.
    pub(super) fn end_lease(&mut self, home: u8, ended: LeaseEnded) {
        self.commands.push_back(Command::Post { shard: home, message: ToShard::LeaseEnded(Box::new(ended)) });
    }

    /// The answer to a lease of ours.
    pub(super) fn lease_ended(&mut self, ended: LeaseEnded, now: Now) {
        let LeaseEnded { by, slot, id, site, recipients, outcomes, not_before } = ended;
        self.leases.out[usize::from(by)] -= 1;
        let slot = Slot(slot);
        if self.queue.find(id) != Some(slot) {
            return;
        }
        let undecided: Vec<u16> =
            recipients.into_iter().filter(|r| !outcomes.iter().any(|(decided, _)| decided == r)).collect();
        self.give_back(slot, &undecided, now);
        self.conclude(slot, outcomes, None, now);
        let site = SiteId(site);
        match not_before {
            Some(until) => self.site_down(site, until, "the shard that sends to this site could not reach it", now),
            None => self.touch(site),
        }
    }

    /// Gives guests of a site that is down back to their homes.
    pub(super) fn return_guests(&mut self, site: SiteId, until: Instant) {
        let Some(known) = self.sites.get_mut(site) else { return };
        for lease in std::mem::take(&mut known.guests) {
            let Lease { home, slot, id, recipients, .. } = *lease;
            let ended = LeaseEnded {
                by: self.shard,
                slot,
                id,
                site: site.0,
                recipients,
                outcomes: Vec::new(),
                not_before: Some(until),
            };
            self.end_lease(home, ended);
        }
    }

    /// The shard stops: what others lent goes back.
    pub(super) fn return_all_guests(&mut self, now: Instant) {
        let sites: Vec<SiteId> =
            self.sites.iter().filter(|(_, known)| !known.guests.is_empty()).map(|(site, _)| site).collect();
        for site in sites {
            self.return_guests(site, now);
        }
    }

    /// Tells the others how much there is to do here, and lets an idle shard help.
    pub(super) fn balance(&mut self) {
        let ready = self.queue.counts().ready as u32;
        self.loads.publish(self.shard, ready);
        if ready < HELP_ABOVE || self.settings.hold || self.stopping.is_some() {
            return;
        }
        let Some(helper) = self.loads.helper_for(self.shard, ready) else { return };
        let busiest = self
            .sites
            .iter()
            .filter(|(_, known)| known.down.is_none() && !known.permits.is_narrow(self.shards))
            .max_by_key(|(site, _)| self.queue.ready_count(*site))
            .map(|(site, _)| site);
        if let Some(site) = busiest {
            self.lease_out(site, Some(helper));
        }
    }
}
