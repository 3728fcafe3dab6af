//! How shards share the connections of a site: who gives one up to whom, and when.
//!
//! A connection moves only where that makes shards more equal (docs/adr/0005-connections-of-a-site-over-shards.md). What one gives
//! up it promises to another at once, and the permit itself goes there when the connection has ended, which over a long way
//! takes a while: nobody else can take it meanwhile, and nobody gives up a second one for the same need.
//!
//! Not here: the limits themselves (src/shard/permits.rs).

use crate::clock::Now;
use crate::io::handler::Command;
use crate::limits::IDLE_YIELD;
use crate::queue::SiteId;
use crate::shard::core::Core;
use crate::shard::limit_queue::Wait;
use crate::shard::message::ToShard;
use crate::shard::permits::{Busy, ConnectionPermit};
use std::sync::Arc;

impl Core {
    /// The right to open one more connection to a site; else it is noted what the site waits for.
    pub(super) fn take_permit(&mut self, site: SiteId, now: Now) -> Option<ConnectionPermit> {
        let known = self.sites.get_mut(site)?;
        if let Some(permit) = known.granted.take() {
            return Some(permit);
        }
        if let Some(limit) = self.stands_behind(site, Wait::Connection) {
            self.wait_for_limit(site, &limit, Wait::Connection, None);
            return None;
        }
        let known = self.sites.get_mut(site)?;
        known.has_limits_turn = false;
        let mut new = false;
        let taken = known.permits.connect(self.shard, now.instant).or_else(|busy| {
            if !matches!(busy, Busy::Connections) {
                return Err(busy);
            }
            new = known.permits.wait(self.shard);
            // A permit may have come free between the two lines above: whoever freed it did not see us.
            known.permits.connect(self.shard, now.instant)
        });
        match taken {
            Ok(permit) => return Some(permit),
            Err(Busy::Connections) if new => self.ask_for_permits(site),
            Err(Busy::Connections) => {}
            Err(Busy::Until(at)) => self.wake_site(site, at),
            Err(Busy::Shared(limit)) => self.wait_for_limit(site, &limit, Wait::Connection, None),
            Err(Busy::SharedUntil(limit, at)) => self.wait_for_limit(site, &limit, Wait::Connection, Some(at)),
        }
        None
    }

    /// The right to begin a transaction at a site; else it is noted what the site waits for.
    pub(super) fn take_transaction(&mut self, site: SiteId, now: Now) -> bool {
        if let Some(limit) = self.stands_behind(site, Wait::Transaction) {
            self.wait_for_limit(site, &limit, Wait::Transaction, None);
            return false;
        }
        let Some(known) = self.sites.get_mut(site) else { return false };
        known.has_limits_turn = false;
        match known.permits.begin_transaction(now.instant) {
            Ok(()) => return true,
            Err(Busy::Until(at)) => self.wake_site(site, at),
            Err(Busy::SharedUntil(limit, at)) => self.wait_for_limit(site, &limit, Wait::Transaction, Some(at)),
            Err(Busy::Connections | Busy::Shared(_)) => {}
        }
        false
    }

    /// A connection of this shard to the site is gone: its permit goes to whom it was promised, or is free.
    pub(super) fn connection_gone(&mut self, site: SiteId, permit: ConnectionPermit) {
        if let Some(known) = self.sites.get_mut(site) {
            known.open -= 1;
        }
        self.give_room();
        let to = permit.shard();
        if to == self.shard {
            return self.free(permit);
        }
        self.commands.push_back(Command::Post { shard: to, message: ToShard::Permit(permit) });
        self.touch(site);
    }

    /// Another shard has passed on a permit: it is used at once, or free.
    pub(super) fn permit_came(&mut self, permit: ConnectionPermit, now: Now) {
        let site = self.sites.of(permit.site());
        let Some(known) = self.sites.get_mut(site) else { return };
        known.granted = Some(permit);
        if self.log.accepts_outcomes() {
            self.pump(site, now);
        }
        if let Some(unused) = self.sites.get_mut(site).and_then(|known| known.granted.take()) {
            self.free(unused);
        }
    }

    /// Whoever waits for a permit is told of this one, in turn.
    pub(super) fn free(&mut self, permit: ConnectionPermit) {
        let shard = self.shard;
        let permits = Arc::clone(permit.site());
        let site = SiteId(permits.index);
        drop(permit);
        self.limits_freed(&permits.shared);
        let Some(known) = self.sites.get_mut(site) else { return };
        match known.permits.next_waiting(shard) {
            Some(next) if next != shard => {
                let message = ToShard::PermitFreed { site: site.0 };
                self.commands.push_back(Command::Post { shard: next, message });
            }
            _ => self.touch(site),
        }
    }

    /// The shard with fewer connections to which this one should give up one.
    pub(super) fn poorer_shard(&self, site: SiteId) -> Option<u8> {
        self.sites.get(site)?.permits.poorer_waiting(self.shard)
    }

    /// Tells the shards that hold connections that this one waits for some.
    pub(super) fn ask_for_permits(&mut self, site: SiteId) {
        let Some(known) = self.sites.get(site) else { return };
        for shard in (0..self.shards).filter(|&shard| shard != self.shard && known.permits.held_by(shard) > 0) {
            let message = ToShard::PermitWanted { site: site.0 };
            self.commands.push_back(Command::Post { shard, message });
        }
    }

    /// Gives up a connection without work while another shard waits: at once to a poorer one, else when it has had none
    /// for [`IDLE_YIELD`]. Who yielded each connection in the moment between two messages would open it again.
    pub(super) fn yield_idle(&mut self, site: SiteId, now: Now) {
        let poorer = self.poorer_shard(site);
        let Some(known) = self.sites.get(site) else { return };
        let Some(&longest) = known.idle.first() else { return };
        let next = known.permits.next_waiting(self.shard).filter(|&next| next != self.shard);
        let Some(next) = next else { return };
        let Some(since) = self.connections.idle_since(longest) else { return };
        let at = since.after(IDLE_YIELD);
        if poorer.is_some() || at <= now.instant {
            self.quit_if_idle(longest, poorer.or(Some(next)), now);
            self.wake_site(site, now.instant.after(IDLE_YIELD));
        } else {
            self.wake_site(site, at);
        }
    }

    /// A shard that waits for a permit asks again now and then: the word that one is free may have been lost.
    pub(super) fn retry_waiting_site(&mut self, site: SiteId, now: Now) {
        let Some(known) = self.sites.get(site) else { return };
        let is_down = known.down.as_ref().is_some_and(|down| down.until > now.instant);
        if is_down || !self.has_work(site) {
            return;
        }
        // So that the others are asked again too.
        known.permits.wait_no_more(self.shard);
        self.touch(site);
    }
}
