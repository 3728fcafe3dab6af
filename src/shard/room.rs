//! Room for connections: how many a shard has to all destinations together, and who waits when it may have no more.
//!
//! Thousands of domains that each get one message would otherwise hold a connection each until its idle time is over, and take
//! the descriptors that clients need. When there is no room, connections without work are ended first, those longest without;
//! then busy ones give way as their transactions end, first where a site has several. Sites get room in turn.

use crate::clock::{Instant, Now};
use crate::io::handler::ConnId;
use crate::limits::ROOM_SHARE;
use crate::queue::SiteId;
use crate::shard::connections::Conn;
use crate::shard::core::Core;
use crate::shard::egress::Outbound;
use std::collections::VecDeque;

/// One of so many connections is ended at once, so that not each new one has to look for one.
const ENDED_SHARE: usize = 20;

/// Sites that wait for room.
#[derive(Debug, Default)]
pub(super) struct Room {
    waiting: VecDeque<SiteId>,
    /// The tick at which connections were last looked through.
    made_at: u64,
}

impl Core {
    /// Whether one more connection may be opened; otherwise the site waits for its turn.
    pub(super) fn has_room(&mut self, site: SiteId, now: Now) -> bool {
        let Some(known) = self.sites.get_mut(site) else { return false };
        // Whoever has just given way to others must not be the one who takes the room.
        let in_turn = std::mem::take(&mut known.has_turn) || self.room.waiting.is_empty();
        if in_turn && self.connections.outbound() < self.settings.max_outgoing {
            return true;
        }
        if !std::mem::replace(&mut known.waits_for_room, true) {
            self.room.waiting.push_back(site);
        }
        self.end_idle(now);
        false
    }

    /// Lets sites that wait try again, as many as there is room for.
    pub(super) fn give_room(&mut self) {
        let room = self.settings.max_outgoing.saturating_sub(self.connections.outbound());
        for _ in 0..room {
            let Some(site) = self.room.waiting.pop_front() else { return };
            if let Some(known) = self.sites.get_mut(site) {
                known.waits_for_room = false;
                known.has_turn = true;
            }
            self.touch(site);
        }
    }

    /// Ends some of the connections that have been without work the longest. At most once a tick, since it looks at all.
    fn end_idle(&mut self, now: Now) {
        if std::mem::replace(&mut self.room.made_at, self.ticks) == self.ticks {
            return;
        }
        let mut idle: Vec<(Instant, ConnId)> = (0..self.connections.places())
            .filter_map(|index| self.connections.at(index))
            .filter_map(|(id, conn)| match conn {
                Conn::Outbound(outbound) => Some((outbound.idle_since()?, id)),
                Conn::Inbound(_) => None,
            })
            .collect();
        idle.sort_unstable_by_key(|&(since, id)| (since, id.index));
        for (_, id) in idle.into_iter().take(self.settings.max_outgoing.div_ceil(ENDED_SHARE)) {
            self.quit_if_idle(id, None, now);
        }
    }

    /// Whether a connection between two transactions should give way to a site that has none.
    pub(super) fn should_make_room(&self, outbound: &Outbound) -> bool {
        if self.room.waiting.is_empty() || self.connections.outbound() + 1 < self.settings.max_outgoing {
            return false;
        }
        let several = self.sites.get(outbound.site()).is_some_and(|known| known.open > 1);
        several && outbound.carried > 0 || outbound.carried >= ROOM_SHARE
    }
}
