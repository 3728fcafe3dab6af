//! Faults made on purpose, between the world and the shards or in the spool: each stands for a way in which the program
//! could be wrong, and the oracle must find it. What is not found here is not watched.

use crate::world::World;
use crate::world::plan::Kind;
use crate::world::random::{MS, S};
use bytes::Bytes;
use ringpost::clock::Instant;
use ringpost::shard::message::{LeaseEnded, ToShard};
use ringpost::shard::permits::SitePermits;
use ringpost::shard::shaping::Shape;
use ringpost_spool::planted::{PlantedFault, plant};
use ringpost_spool::{DiskDone, DiskOp};
use std::sync::Arc;

/// A fault.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A sync is answered before it was made.
    ReplyBeforeSync,
    /// Old batches of a recycled segment are taken for new.
    StaleGeneration,
    /// Outcomes are thrown away while the messages they speak of are still on the disk.
    TombstoneEarly,
    /// From some moment on the turns of a shard do not end.
    LostWakeUp,
    /// A message between shards is lost.
    LostPost,
    /// The answer to a lease comes twice.
    AnsweredTwice,
    /// A connection is closed and its permit kept.
    PermitLeaked,
    /// Each shard has limits of its own.
    PermitsNotShared,
    /// A write is answered and not made.
    WriteLost,
    /// What recovery found is lost in part.
    RecoveredLost,
    /// The answer to a lease comes without what was decided.
    OutcomeLost,
}

impl Planted {
    /// All of them, each with the kind of world that shows it.
    pub const ALL: [(Planted, Kind); 11] = [
        (Planted::ReplyBeforeSync, Kind::PowerCuts),
        (Planted::StaleGeneration, Kind::Churn),
        (Planted::TombstoneEarly, Kind::Churn),
        (Planted::LostWakeUp, Kind::Mixed),
        (Planted::LostPost, Kind::Mixed),
        (Planted::AnsweredTwice, Kind::Mixed),
        (Planted::PermitLeaked, Kind::Mixed),
        (Planted::PermitsNotShared, Kind::Mixed),
        (Planted::WriteLost, Kind::PowerCuts),
        (Planted::RecoveredLost, Kind::Mixed),
        (Planted::OutcomeLost, Kind::Mixed),
    ];

    /// Tells the spool, which plants some of them itself.
    pub fn plant_in_spool(planted: Option<Planted>) {
        plant(match planted {
            Some(Planted::StaleGeneration) => Some(PlantedFault::StaleGeneration),
            Some(Planted::TombstoneEarly) => Some(PlantedFault::TombstoneEarly),
            _ => None,
        });
    }
}

impl World {
    /// Work for the disk passes by here. None when it is not to be done.
    pub fn plant_in_disk(&mut self, shard: u8, op: DiskOp) -> Option<DiskOp> {
        let forged = match (&self.planted, &op) {
            // The true answer comes later, and nobody waits for it any more.
            (Some(Planted::ReplyBeforeSync), DiskOp::Sync { op, .. }) => Some(*op),
            (Some(Planted::WriteLost), DiskOp::Write { op, .. }) if self.random.chance(50) => {
                self.trace.line(self.now, format_args!("planted: write {} of s{shard} is not made", op.0));
                self.forge(shard, DiskDone { op: *op, result: Ok(Bytes::new()) });
                return None;
            }
            _ => None,
        };
        if let Some(op) = forged {
            self.trace.line(self.now, format_args!("planted: sync {} of s{shard} is answered", op.0));
            self.forge(shard, DiskDone { op, result: Ok(Bytes::new()) });
        }
        Some(op)
    }

    fn forge(&mut self, shard: u8, done: DiskDone) {
        let epoch = self.epoch;
        self.after(MS / 100, crate::world::Event::Forged { epoch, shard, done });
    }

    /// Messages between shards pass by here.
    pub fn plant_in_post(&mut self, from: u8, to: u8, message: ToShard) -> Option<ToShard> {
        match (self.planted, message) {
            (Some(Planted::LostPost), ToShard::Lease(_) | ToShard::LeaseEnded(_)) if self.random.chance(300) => {
                self.trace.line(self.now, format_args!("planted: a message from s{from} to s{to} is lost"));
                None
            }
            (Some(Planted::AnsweredTwice), ToShard::LeaseEnded(ended)) => {
                self.trace.line(self.now, format_args!("planted: s{from} answers s{to} twice"));
                self.put_mail(to, ToShard::LeaseEnded(Box::new(copy(&ended))), MS);
                Some(ToShard::LeaseEnded(ended))
            }
            (Some(Planted::OutcomeLost), ToShard::LeaseEnded(ended)) if self.random.chance(300) => {
                self.trace.line(self.now, format_args!("planted: s{from} forgets what it answers s{to}"));
                Some(ToShard::LeaseEnded(Box::new(LeaseEnded { outcomes: Vec::new(), ..*ended })))
            }
            (_, message) => Some(message),
        }
    }

    /// Turns end here, or not.
    pub fn plant_in_turn(&mut self) -> bool {
        self.has_planted(Planted::LostWakeUp) && self.now > self.plan.active / 2 + S
    }

    /// The permits of a site on their way to a shard: the ones of all shards, or not.
    pub fn plant_in_permits(&mut self, shard: u8, permits: Arc<SitePermits>) -> Arc<SitePermits> {
        if !self.has_planted(Planted::PermitsNotShared) {
            return permits;
        }
        let Some(process) = &mut self.process else { return permits };
        let shards = process.shards.len() as u8;
        let own = process.own_permits.entry((shard, permits.index)).or_insert_with(|| {
            let SitePermits { index, name, route, shared, .. } = &*permits;
            let shape = Shape::of_route(&self.plan.settings.routes[*route]);
            Arc::new(SitePermits::new(*index, name.clone(), *route, shape, shared.clone(), shards))
        });
        Arc::clone(own)
    }

    /// A connection to a destination was closed.
    pub fn plant_in_finish(&mut self, site_name: usize) {
        if !self.has_planted(Planted::PermitLeaked) {
            return;
        }
        let Some(process) = self.process.as_mut().filter(|process| process.leaked.is_none()) else { return };
        let route = self.plan.geography.sites[site_name].route;
        let permits = process.registry.sites().iter().find(|permits| permits.route == route);
        if let Some(permits) = permits {
            process.leaked = permits.connect(0, Instant::ZERO).ok();
        }
    }
}

fn copy(ended: &LeaseEnded) -> LeaseEnded {
    let LeaseEnded { by, slot, id, site, recipients, outcomes, not_before } = ended;
    LeaseEnded {
        by: *by,
        slot: *slot,
        id: *id,
        site: *site,
        recipients: recipients.clone(),
        outcomes: outcomes.clone(),
        not_before: *not_before,
    }
}
