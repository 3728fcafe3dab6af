//! Who goes next under a limit that spans sites: sites take turns, on each shard in the order in which they began to wait,
//! and shards in turn.
//!
//! A connection that becomes free goes to a site that waits, and the site that had it waits behind the others. While sites wait,
//! connections of the others give way: those without work at once, busy ones between two messages, where their site has
//! several or they have carried their share. No more give way than are wanted.
//!
//! Words between shards may be lost: each shard looks at its queues at every tick.

use crate::clock::{Instant, Now};
use crate::io::handler::{Command, ConnId};
use crate::queue::SiteId;
use crate::shard::connections::Conn;
use crate::shard::core::Core;
use crate::shard::egress::Outbound;
use crate::shard::message::ToShard;
use crate::shard::shared_limit::SharedLimit;
use foldhash::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;

/// The sites of one shard that wait for one limit.
#[derive(Debug)]
struct Waiting {
    limit: Arc<SharedLimit>,
    /// For a connection.
    connection: VecDeque<SiteId>,
    /// For the next transaction, with a connection or without.
    transaction: VecDeque<SiteId>,
}

/// The queues of all limits, by place.
#[derive(Debug, Default)]
pub(super) struct LimitQueues {
    waiting: HashMap<u32, Waiting>,
    /// Limits of which something may be free.
    due: Vec<u32>,
    /// When the next rate lets somebody go.
    alarm: Option<Instant>,
}

/// What a site waits for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Connection,
    Transaction,
}

impl LimitQueues {
    /// When to look again.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.alarm
    }

    fn note_due(&mut self, place: u32) {
        if !self.due.contains(&place) {
            self.due.push(place);
        }
    }

    fn ring_at(&mut self, at: Instant) {
        self.alarm = Some(self.alarm.map_or(at, |alarm| alarm.min(at)));
    }
}

impl Core {
    /// Whether a site must stand behind others that wait for the same limit. Whose turn it is does not.
    pub(super) fn stands_behind(&mut self, site: SiteId, wait: Wait) -> Option<Arc<SharedLimit>> {
        let known = self.sites.get_mut(site)?;
        if known.has_limits_turn || known.permits.shared.is_empty() {
            return None;
        }
        let ahead = |limit: &&Arc<SharedLimit>| {
            self.limit_queues.waiting.get(&limit.place).is_some_and(|waiting| !waiting.of(wait).is_empty())
        };
        known.permits.shared.iter().find(ahead).map(Arc::clone)
    }

    /// A site waits for its turn under a limit; `at` is when a rate may let it go.
    pub(super) fn wait_for_limit(&mut self, site: SiteId, limit: &Arc<SharedLimit>, wait: Wait, at: Option<Instant>) {
        if let Some(at) = at {
            self.limit_queues.ring_at(at);
        }
        let Some(known) = self.sites.get_mut(site) else { return };
        let stands = match wait {
            Wait::Connection => &mut known.waits_for_connection,
            Wait::Transaction => &mut known.waits_for_transaction,
        };
        if stands.replace(limit.place).is_some() {
            return;
        }
        let queue = self.limit_queues.waiting.entry(limit.place).or_insert_with(|| Waiting {
            limit: Arc::clone(limit),
            connection: VecDeque::new(),
            transaction: VecDeque::new(),
        });
        queue.of_mut(wait).push_back(site);
        if wait == Wait::Transaction || at.is_some() {
            return;
        }
        limit.want();
        if limit.waiting.add(self.shard) {
            for shard in (0..self.shards).filter(|&shard| shard != self.shard) {
                self.commands.push_back(Command::Post { shard, message: ToShard::LimitWanted { limit: limit.place } });
            }
        }
        self.end_idle_of(limit);
        // One may have come free before others could see that we wait.
        if limit.has_place() {
            self.limit_queues.note_due(limit.place);
        }
    }

    /// A connection under these limits is gone: whoever waits is told, in turn.
    pub(super) fn limits_freed(&mut self, limits: &[Arc<SharedLimit>]) {
        for limit in limits {
            match limit.waiting.after(self.shard) {
                Some(next) if next != self.shard => {
                    let message = ToShard::LimitFreed { limit: limit.place };
                    self.commands.push_back(Command::Post { shard: next, message });
                }
                Some(_) => self.limit_queues.note_due(limit.place),
                None => {}
            }
        }
    }

    /// Another shard says that something is free.
    pub(super) fn limit_freed(&mut self, place: u32) {
        self.limit_queues.note_due(place);
    }

    /// Another shard waits: connections without work are given up, as many as are wanted.
    pub(super) fn limit_wanted(&mut self, place: u32) {
        let limit = self.sites.iter().find_map(|(_, known)| known.permits.shared.iter().find(|l| l.place == place));
        if let Some(limit) = limit.map(Arc::clone) {
            self.end_idle_of(&limit);
        }
    }

    fn end_idle_of(&mut self, limit: &Arc<SharedLimit>) {
        if !limit.is_wanted() || limit.has_place() {
            return;
        }
        let is_under = |outbound: &Outbound| {
            self.sites
                .get(outbound.site())
                .is_some_and(|known| known.permits.shared.iter().any(|other| other.place == limit.place))
        };
        let mut idle: Vec<(Instant, ConnId)> = (0..self.connections.places())
            .filter_map(|index| self.connections.at(index))
            .filter_map(|(id, conn)| match conn {
                Conn::Outbound(outbound) if is_under(outbound) => Some((outbound.idle_since()?, id)),
                _ => None,
            })
            .collect();
        idle.sort_unstable_by_key(|&(since, id)| (since, id.index));
        let now = self.now;
        for (_, id) in idle {
            if !limit.give_up_one() {
                return;
            }
            self.quit_if_idle(id, None, now);
        }
    }

    /// Whether a connection between two transactions should end in favour of sites that wait for a limit.
    pub(super) fn makes_way(&self, outbound: &Outbound) -> bool {
        let Some(known) = self.sites.get(outbound.site()) else { return false };
        known.permits.shared.iter().any(|limit| limit.should_make_way(outbound.carried, known.open))
    }

    /// Whether a connection that has no work ends at once, since sites wait for a limit that it is under.
    pub(super) fn is_better_given_up(&self, outbound: &Outbound) -> bool {
        let Some(known) = self.sites.get(outbound.site()) else { return false };
        known.permits.shared.iter().any(|limit| limit.is_wanted() && !limit.has_place() && limit.give_up_one())
    }

    /// At every tick: what was not told is found out.
    pub(super) fn look_at_limits(&mut self, now: Now) {
        if self.limit_queues.waiting.is_empty() {
            return;
        }
        let places: Vec<u32> = self.limit_queues.waiting.keys().copied().collect();
        for place in places {
            if let Some(waiting) = self.limit_queues.waiting.get(&place)
                && !waiting.connection.is_empty()
                && !waiting.limit.is_wanted()
                && !waiting.limit.has_place()
            {
                waiting.limit.want();
                let limit = Arc::clone(&waiting.limit);
                self.end_idle_of(&limit);
            }
            self.limit_queues.note_due(place);
        }
        self.serve_limits(now);
    }

    /// An alarm has rung, or may have.
    pub(super) fn limits_alarm(&mut self, now: Now) {
        if self.limit_queues.alarm.is_some_and(|at| at <= now.instant) {
            self.look_at_limits(now);
        }
    }

    /// Lets sites go whose turn it is.
    pub(super) fn serve_limits(&mut self, now: Now) {
        if self.limit_queues.due.is_empty() || !self.log.accepts_outcomes() {
            return;
        }
        if self.limit_queues.alarm.is_some_and(|at| at <= now.instant) {
            self.limit_queues.alarm = None;
        }
        for place in std::mem::take(&mut self.limit_queues.due) {
            self.serve_limit(place, Wait::Connection, now);
            self.serve_limit(place, Wait::Transaction, now);
            let Some(waiting) = self.limit_queues.waiting.get(&place) else { continue };
            if waiting.connection.is_empty() {
                let limit = Arc::clone(&waiting.limit);
                limit.waiting.remove(self.shard);
                if limit.waiting.is_empty() {
                    limit.want_no_more();
                }
                if limit.has_place()
                    && let Some(next) = limit.waiting.after(self.shard)
                {
                    let message = ToShard::LimitFreed { limit: place };
                    self.commands.push_back(Command::Post { shard: next, message });
                }
            }
            if self.limit_queues.waiting.get(&place).is_some_and(Waiting::is_empty) {
                self.limit_queues.waiting.remove(&place);
            }
        }
    }

    fn serve_limit(&mut self, place: u32, wait: Wait, now: Now) {
        let Some(waiting) = self.limit_queues.waiting.get(&place) else { return };
        let limit = Arc::clone(&waiting.limit);
        // Whoever has to wait again stands at the end and is not looked at twice.
        for _ in 0..waiting.of(wait).len() {
            let (free, next) = match wait {
                Wait::Connection => (limit.has_place(), limit.next_opening(now.instant)),
                Wait::Transaction => (true, limit.next_transaction(now.instant)),
            };
            if let Some(at) = next {
                self.limit_queues.ring_at(at);
            }
            if !free || next.is_some() {
                return;
            }
            let queue = self.limit_queues.waiting.get_mut(&place).map(|waiting| waiting.of_mut(wait));
            let Some(site) = queue.and_then(VecDeque::pop_front) else { return };
            let Some(known) = self.sites.get_mut(site) else { continue };
            match wait {
                Wait::Connection => known.waits_for_connection = None,
                Wait::Transaction => known.waits_for_transaction = None,
            }
            known.has_limits_turn = true;
            self.pump(site, now);
            if let Some(known) = self.sites.get_mut(site) {
                known.has_limits_turn = false;
            }
        }
    }
}

impl Waiting {
    fn of(&self, wait: Wait) -> &VecDeque<SiteId> {
        match wait {
            Wait::Connection => &self.connection,
            Wait::Transaction => &self.transaction,
        }
    }

    fn of_mut(&mut self, wait: Wait) -> &mut VecDeque<SiteId> {
        match wait {
            Wait::Connection => &mut self.connection,
            Wait::Transaction => &mut self.transaction,
        }
    }

    fn is_empty(&self) -> bool {
        self.connection.is_empty() && self.transaction.is_empty()
    }
}
