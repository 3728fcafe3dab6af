//! A limit that spans sites: a provider as a whole, or whatever an operator names. Exact over all shards, by atomics alone.
//!
//! Which site gets what becomes free is src/shard/limit_queue.rs.

use crate::clock::Instant;
use crate::limits::ROOM_SHARE;
use crate::shard::gcra::Gcra;
use crate::shard::settings::Rate;
use crate::shard::shaping::LimitSpec;
use crate::shard::waiting_shards::WaitingShards;
use std::sync::atomic::{AtomicU32, Ordering};

/// One such limit, held by every site that it spans.
#[derive(Debug)]
pub struct SharedLimit {
    /// Its place among the limits of the configuration.
    pub place: u32,
    /// As people read it.
    pub name: Box<str>,
    /// Connections at a time.
    pub connections: Option<u32>,
    /// Connections opened in a time.
    pub connection_rate: Option<Rate>,
    /// Transactions begun in a time.
    pub rate: Option<Rate>,
    /// Shards with sites that wait for a connection.
    pub waiting: WaitingShards,
    open: AtomicU32,
    openings: Gcra,
    transactions: Gcra,
    /// Connections that others should give up.
    wanted: AtomicU32,
}

impl SharedLimit {
    /// A limit of which nothing is used.
    pub fn new(place: u32, spec: &LimitSpec) -> SharedLimit {
        SharedLimit {
            place,
            name: spec.name.clone(),
            connections: spec.connections,
            connection_rate: spec.connection_rate,
            rate: spec.rate,
            waiting: WaitingShards::default(),
            open: AtomicU32::new(0),
            openings: Gcra::default(),
            transactions: Gcra::default(),
            wanted: AtomicU32::new(0),
        }
    }

    /// Connections of all sites.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Acquire)
    }

    /// Whether one more connection fits, by number.
    pub fn has_place(&self) -> bool {
        self.connections.is_none_or(|most| self.open() < most)
    }

    /// Takes a place for a connection.
    pub(super) fn take_place(&self) -> bool {
        let most = self.connections.unwrap_or(u32::MAX);
        self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < most).then_some(open + 1)).is_ok()
    }

    /// Gives a place back.
    pub(super) fn free_place(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// Takes the right to open a connection, or says when to ask again.
    pub(super) fn take_opening(&self, now: Instant) -> Result<(), Instant> {
        self.connection_rate.map_or(Ok(()), |rate| self.openings.take(rate, now))
    }

    /// Gives it back unused.
    pub(super) fn return_opening(&self) {
        if let Some(rate) = self.connection_rate {
            self.openings.give_back(rate);
        }
    }

    /// When the next connection may be opened, if not now.
    pub fn next_opening(&self, now: Instant) -> Option<Instant> {
        self.openings.next(self.connection_rate?, now)
    }

    /// Takes the right to begin a transaction, or says when to ask again.
    pub(super) fn take_transaction(&self, now: Instant) -> Result<(), Instant> {
        self.rate.map_or(Ok(()), |rate| self.transactions.take(rate, now))
    }

    /// Gives it back unused.
    pub(super) fn return_transaction(&self) {
        if let Some(rate) = self.rate {
            self.transactions.give_back(rate);
        }
    }

    /// When the next transaction may begin, if not now.
    pub fn next_transaction(&self, now: Instant) -> Option<Instant> {
        self.transactions.next(self.rate?, now)
    }

    /// One more site waits for a connection.
    pub fn want(&self) {
        self.wanted.fetch_add(1, Ordering::AcqRel);
    }

    /// Nobody waits any more: what was wanted has come otherwise.
    pub fn want_no_more(&self) {
        self.wanted.store(0, Ordering::Release);
    }

    /// Whether somebody wants a connection to be given up.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire) > 0
    }

    /// Takes it on to give one up. False when nobody wants one any more, so that no more are given up than are wanted.
    pub fn give_up_one(&self) -> bool {
        self.wanted.fetch_update(Ordering::AcqRel, Ordering::Acquire, |wanted| wanted.checked_sub(1)).is_ok()
    }

    /// Whether a connection that carried so many messages, of a site with so many connections, should make way.
    pub fn should_make_way(&self, carried: u32, open: u32) -> bool {
        self.is_wanted()
            && !self.has_place()
            && (open > 1 && carried > 0 || carried >= ROOM_SHARE)
            && self.give_up_one()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(connections: u32) -> SharedLimit {
        let spec = LimitSpec { name: "all".into(), connections: Some(connections), connection_rate: None, rate: None };
        SharedLimit::new(0, &spec)
    }

    #[test]
    fn places_are_never_more_than_there_are() {
        let limit = limit(5);
        let greatest = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if limit.take_place() {
                            greatest.fetch_max(limit.open(), Ordering::Relaxed);
                            limit.free_place();
                        }
                    }
                });
            }
        });
        assert!(greatest.load(Ordering::Relaxed) <= 5);
        assert_eq!(limit.open(), 0);
    }

    #[test]
    fn no_more_are_given_up_than_are_wanted() {
        let limit = limit(2);
        assert!(limit.take_place() && limit.take_place() && !limit.take_place());
        assert!(!limit.should_make_way(ROOM_SHARE, 1), "nobody wants one");
        limit.want();
        assert!(!limit.should_make_way(0, 2), "it has carried nothing yet");
        assert!(!limit.should_make_way(1, 1), "it is its site's only one and has not had its share");
        assert!(limit.should_make_way(1, 2));
        assert!(!limit.should_make_way(1, 2), "that one was enough");
    }
}
