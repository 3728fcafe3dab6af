//! One destination as one shard sees it: its hosts and their health, the connections open to it, and whether it is
//! worth trying.
//!
//! Not here: limits over all shards (src/shard/permits.rs) and the fair order of messages (src/queue/destination.rs).

use crate::clock::{Instant, Now};
use crate::event::Event;
use crate::io::dns::{DnsFailure, Query};
use crate::io::handler::ConnId;
use crate::limits::{EXPIRY_SWEEP, HOST_BACKOFF_FIRST, HOST_BACKOFF_MAX, NO_TLS_MEMORY, RESOLVE_AGAIN, SWEEP_SHARE};
use crate::policy::outbound_tls::HostTls;
use crate::queue::{Pick, SiteId};
use crate::reply::Reply;
use crate::shard::ahead::AheadHabit;
use crate::shard::attempt::{AttemptOutcome, Verdict};
use crate::shard::core::Core;
use crate::shard::message::Lease;
use crate::shard::permits::{ConnectionPermit, SitePermits};
use crate::shard::settings::{HostSpec, Target};
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

/// Where a site may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// The host's name, or its address in words.
    pub name: Box<str>,
    /// Where to connect.
    pub address: SocketAddr,
    /// What it asks of TLS.
    pub tls: HostTls,
}

/// One address of a site.
#[derive(Debug)]
pub struct Host {
    /// Its name, or its address in words.
    pub name: Box<str>,
    /// Where to connect.
    pub address: SocketAddr,
    /// What it asks of TLS.
    pub tls: HostTls,
    /// Not tried before this.
    pub down_until: Instant,
    /// Failures in a row.
    pub failures: u32,
    /// STARTTLS broke here: not used before this where TLS is opportunistic.
    pub no_tls_until: Instant,
    /// Whether it takes commands behind a content.
    pub ahead: AheadHabit,
}

/// Why and until when a site is not tried.
#[derive(Debug)]
pub struct Down {
    /// The next probe.
    pub until: Instant,
    /// In words.
    pub reason: Box<str>,
    /// Since when.
    pub since: Instant,
    /// When its hosts were last tried in vain.
    pub tried: Instant,
}

/// A destination.
#[derive(Debug)]
pub struct Site {
    /// Shared with the other shards.
    pub permits: Arc<SitePermits>,
    /// In the order in which to try them.
    pub hosts: Vec<Host>,
    /// When the hosts' names want to be looked up again.
    pub hosts_until: Instant,
    /// Connections without work, the last used at the end.
    pub idle: Vec<ConnId>,
    /// Connections of this shard, those being opened included.
    pub open: u32,
    /// Those being opened.
    pub opening: u32,
    /// Those that were of use and still are, busy or not.
    pub working: u32,
    /// All hosts failed.
    pub down: Option<Down>,
    /// Other shards' messages.
    pub guests: VecDeque<Box<Lease>>,
    /// Whether a guest goes next.
    pub guests_turn: bool,
    /// A permit that another shard has passed on, while it is decided what becomes of it.
    pub(super) granted: Option<ConnectionPermit>,
    /// Stands among those that wait for room.
    pub(super) waits_for_room: bool,
    /// May take room before those that wait.
    pub(super) has_turn: bool,
    /// Stands in the queue of this limit for a connection.
    pub(super) waits_for_connection: Option<u32>,
    /// Stands in the queue of this limit for its next transaction.
    pub(super) waits_for_transaction: Option<u32>,
    /// May go before those that wait for a limit, once.
    pub(super) has_limits_turn: bool,
    /// In the list of sites to pump.
    dirty: bool,
    /// A wake-up is planned for this instant.
    wake: Instant,
    /// The names of its pool were asked for.
    asked: Instant,
}

impl Site {
    fn new(permits: Arc<SitePermits>) -> Site {
        Site {
            permits,
            hosts: Vec::new(),
            // Nothing is known yet, and nothing of it by DNS.
            hosts_until: Instant::MAX,
            idle: Vec::new(),
            open: 0,
            opening: 0,
            working: 0,
            down: None,
            guests: VecDeque::new(),
            guests_turn: false,
            granted: None,
            waits_for_room: false,
            has_turn: false,
            waits_for_connection: None,
            waits_for_transaction: None,
            has_limits_turn: false,
            dirty: false,
            wake: Instant::MAX,
            asked: Instant::ZERO,
        }
    }

    /// Takes over a new list of addresses; what is known of an address stays.
    fn set_hosts(&mut self, addresses: Vec<HostAddress>, until: Instant) {
        let mut old = std::mem::take(&mut self.hosts);
        for HostAddress { name, address, tls } in addresses {
            let known = old.iter().position(|host| host.address == address).map(|index| old.swap_remove(index));
            let host = known.unwrap_or_else(|| Host {
                name: Box::default(),
                address,
                tls: HostTls::None,
                down_until: Instant::ZERO,
                failures: 0,
                no_tls_until: Instant::ZERO,
                ahead: AheadHabit::Unknown { served: 0 },
            });
            // The names are those that count now: one must prove its own.
            self.hosts.push(Host { name, tls, ..host });
        }
        self.hosts_until = until;
    }

    /// The first host that may be tried.
    pub fn usable_host(&self, now: Instant) -> Option<usize> {
        self.hosts.iter().position(|host| host.down_until <= now)
    }

    /// Its addresses, in order.
    pub fn addresses(&self) -> Vec<HostAddress> {
        let of = |host: &Host| HostAddress { name: host.name.clone(), address: host.address, tls: host.tls.clone() };
        self.hosts.iter().map(of).collect()
    }

    /// Whether these are its addresses, with what is asked of TLS there, in whatever order.
    pub fn is_at(&self, addresses: &[HostAddress]) -> bool {
        let same = |host: &Host, one: &HostAddress| {
            host.address == one.address && host.name == one.name && host.tls == one.tls
        };
        let known = |one: &HostAddress| self.hosts.iter().any(|host| same(host, one));
        self.hosts.len() == addresses.len() && addresses.iter().all(known)
    }

    /// The host with this address, if the site still has it.
    pub fn host_mut(&mut self, address: SocketAddr) -> Option<&mut Host> {
        self.hosts.iter_mut().find(|host| host.address == address)
    }
}

/// The sites of a shard, by their place in the registry.
#[derive(Debug, Default)]
pub struct Sites {
    sites: Vec<Option<Box<Site>>>,
    dirty: Vec<SiteId>,
    wakes: std::collections::BinaryHeap<Reverse<(Instant, SiteId)>>,
    /// The place that was last looked at.
    swept: usize,
}

impl Sites {
    /// A site that is known to this shard.
    pub fn get(&self, site: SiteId) -> Option<&Site> {
        self.sites.get(site.0 as usize)?.as_deref()
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, site: SiteId) -> Option<&mut Site> {
        self.sites.get_mut(site.0 as usize)?.as_deref_mut()
    }

    /// All that are known, in order.
    pub fn iter(&self) -> impl Iterator<Item = (SiteId, &Site)> {
        self.sites.iter().enumerate().filter_map(|(index, site)| Some((SiteId(index as u32), site.as_deref()?)))
    }

    /// The site of these permits; made when it is new.
    pub fn of(&mut self, permits: &Arc<SitePermits>) -> SiteId {
        let index = permits.index as usize;
        if self.sites.len() <= index {
            self.sites.resize_with(index + 1, || None);
        }
        if self.sites[index].is_none() {
            self.sites[index] = Some(Box::new(Site::new(Arc::clone(permits))));
        }
        SiteId(permits.index)
    }

    /// The next wake-up.
    pub fn next_wake(&self) -> Option<Instant> {
        self.wakes.peek().map(|Reverse((at, _))| *at)
    }
}

impl Core {
    /// Something about this site changed: it is looked at when the turn ends.
    pub(super) fn touch(&mut self, site: SiteId) {
        if let Some(known) = self.sites.get_mut(site)
            && !known.dirty
        {
            known.dirty = true;
            self.sites.dirty.push(site);
        }
    }

    /// Looks at the site again at this time.
    pub(super) fn wake_site(&mut self, site: SiteId, at: Instant) {
        if let Some(known) = self.sites.get_mut(site)
            && at < known.wake
        {
            known.wake = at;
            self.sites.wakes.push(Reverse((at, site)));
        }
    }

    pub(super) fn wake_due_sites(&mut self, now: Now) {
        while let Some(&Reverse((at, site))) = self.sites.wakes.peek() {
            if at > now.instant {
                break;
            }
            self.sites.wakes.pop();
            if let Some(known) = self.sites.get_mut(site)
                && known.wake <= at
            {
                known.wake = Instant::MAX;
            }
            self.touch(site);
        }
    }

    /// Gives work to the sites that changed. Where outcomes could not be recorded they stay in the list: what changes
    /// that is an answer of the disk, after which this is called again.
    pub(super) fn pump_sites(&mut self, now: Now) {
        while self.log.accepts_outcomes()
            && let Some(site) = self.sites.dirty.pop()
        {
            if let Some(known) = self.sites.get_mut(site) {
                known.dirty = false;
            }
            self.pump(site, now);
        }
    }

    pub(super) fn pump(&mut self, site: SiteId, now: Now) {
        if self.stopping.is_some() || self.settings.hold {
            return;
        }
        loop {
            let own = self.queue.ready_count(site);
            let Some(known) = self.sites.get_mut(site) else { return };
            let ready = own + known.guests.len();
            if ready == 0 {
                known.permits.wait_no_more(self.shard);
                self.yield_idle(site, now);
                return;
            }
            if let Some(down) = &known.down
                && down.until > now.instant
            {
                let until = down.until;
                self.return_guests(site, until);
                self.wake_site(site, until);
                return;
            }
            if known.permits.is_narrow(self.shards) && known.permits.owner(self.shards) != self.shard {
                self.lease_out(site, None);
                return;
            }
            if let Some(conn) = known.idle.pop() {
                if !self.start_idle(conn, now) {
                    return;
                }
                continue;
            }
            let probing = known.down.is_some();
            if known.opening as usize >= ready || (probing && known.open > 0) {
                return;
            }
            let Some(host) = known.usable_host(now.instant) else {
                self.no_host(site, now);
                return;
            };
            let address = known.hosts[host].address;
            if !self.has_room(site, now) {
                return;
            }
            let Some(permit) = self.take_permit(site, now) else { return };
            self.open(site, address, permit, now);
        }
    }

    /// No host of the site can be tried now: ask for its names, or wait until one may be tried again.
    fn no_host(&mut self, site: SiteId, now: Now) {
        let Some(known) = self.sites.get_mut(site) else { return };
        if let Some(at) = known.hosts.iter().map(|host| host.down_until).min() {
            self.wake_site(site, at);
            return;
        }
        self.ask_for_hosts(site, now);
    }

    /// Looks up the names of a pool, at most once in a while.
    pub(super) fn ask_for_hosts(&mut self, site: SiteId, now: Now) {
        let Some(known) = self.sites.get_mut(site) else { return };
        let again = known.asked.after(RESOLVE_AGAIN);
        if known.asked != Instant::ZERO && again > now.instant {
            self.wake_site(site, again);
            return;
        }
        known.asked = now.instant;
        let route = known.permits.route;
        let names: Vec<Box<str>> = match &self.settings.routes[route].target {
            Target::NextHops(hops) => hops
                .iter()
                .filter_map(|hop| match &hop.host {
                    HostSpec::Name(name) => Some(name.clone()),
                    HostSpec::Address(_) => None,
                })
                .collect(),
            Target::Mx { .. } => Vec::new(),
        };
        for name in names {
            self.ask(Query::Host(name));
        }
    }

    /// The site of these permits with these addresses.
    pub(super) fn learn_site(
        &mut self,
        permits: Arc<SitePermits>,
        addresses: Vec<HostAddress>,
        until: Instant,
    ) -> SiteId {
        let site = self.sites.of(&permits);
        self.site_hosts_known(site, addresses, until);
        site
    }

    pub(super) fn site_hosts_known(&mut self, site: SiteId, addresses: Vec<HostAddress>, until: Instant) {
        if let Some(known) = self.sites.get_mut(site) {
            known.set_hosts(addresses, until);
        }
    }

    /// The names of a pool could not be looked up: what is known already stays in use.
    pub(super) fn site_hosts_unknown(
        &mut self,
        site: SiteId,
        name: &str,
        failure: &DnsFailure,
        until: Instant,
        now: Now,
    ) {
        let what = match failure {
            DnsFailure::Temporary(what) => format!("DNS could not be asked for {name}: {what}"),
            DnsFailure::Policy(what) | DnsFailure::Unprotected(what) => what.clone(),
            DnsFailure::NoDomain | DnsFailure::NullMx => format!("the next hop {name} has no address"),
        };
        if self.sites.get(site).is_some_and(|known| known.hosts.is_empty()) {
            self.site_down(site, until, &what, now);
        }
    }

    /// A host could not be reached, or broke off before it was of use.
    pub(super) fn host_failed(&mut self, site: SiteId, address: SocketAddr, reason: &str, now: Now) {
        self.metrics.connect_failures += 1;
        let retry = self.settings.schedule.first;
        let Some(known) = self.sites.get_mut(site) else { return };
        if let Some(host) = known.host_mut(address) {
            // Several connections to one host fail together: that counts once.
            if host.down_until <= now.instant {
                host.failures += 1;
                let backoff = HOST_BACKOFF_FIRST * 2u32.saturating_pow(host.failures.min(10) - 1);
                host.down_until = now.instant.after(backoff.min(HOST_BACKOFF_MAX).min(retry));
            }
        }
        // With connections that work the site is not down: only no more of them are opened for a while.
        if known.usable_host(now.instant).is_some() || known.working > 0 {
            self.touch(site);
            return;
        }
        let until = known.hosts.iter().map(|host| host.down_until).min().unwrap_or(now.instant.after(retry));
        self.site_down(site, until, reason, now);
    }

    /// No host of a site can be used: its mail waits, and one message stands for all in the record.
    pub(super) fn site_down(&mut self, site: SiteId, until: Instant, reason: &str, now: Now) {
        let Some(known) = self.sites.get_mut(site) else { return };
        let since = known.down.as_ref().map_or(now.instant, |down| down.since);
        let fresh = known.down.as_ref().is_none_or(|down| down.until <= now.instant);
        let first = known.down.is_none();
        known.down = Some(Down { until, reason: reason.into(), since, tried: now.instant });
        let name = known.permits.name.clone();
        self.wake_site(site, until);
        if first {
            // Its mail will wait a while and is read back when its time comes. Where it is little, others' stays.
            if 2 * self.queue.ready_count(site) >= self.retained.count() {
                self.retained.clear();
            }
            let state = format!("down: {reason}").into();
            self.event(Event::SiteState { site: name, state });
        }
        if fresh && let Some(pick) = self.queue.pick(site, 1) {
            self.defer_pick(pick, &Reply::new(451, (4, 4, 1), reason.to_string()), now);
        }
        self.return_guests(site, until);
    }

    /// An operator does not want to wait for the next probe of a site that is down.
    pub(super) fn probe_now(&mut self, site: SiteId, now: Now) {
        let Some(known) = self.sites.get_mut(site) else { return };
        for host in &mut known.hosts {
            host.down_until = host.down_until.min(now.instant);
        }
        if let Some(down) = &mut known.down {
            down.until = down.until.min(now.instant);
        }
        self.touch(site);
    }

    /// Recipients that could not be attempted for their site's sake.
    fn defer_pick(&mut self, pick: Pick, reply: &Reply, now: Now) {
        let outcome = AttemptOutcome::local(Verdict::Deferred { not_before: None }, reply.clone());
        let outcomes = pick.recipients.iter().map(|&recipient| (recipient, outcome.clone())).collect();
        self.conclude(pick.slot, outcomes, None, now);
    }

    /// A host answered as it should.
    pub(super) fn host_works(&mut self, site: SiteId, address: SocketAddr, now: Now) {
        let Some(known) = self.sites.get_mut(site) else { return };
        if let Some(host) = known.host_mut(address) {
            host.failures = 0;
            host.down_until = Instant::ZERO;
        }
        if let Some(down) = known.down.take() {
            let away = now.instant.since(down.since);
            let name = known.permits.name.clone();
            self.event(Event::SiteState { site: name, state: format!("up again after {} s", away.as_secs()).into() });
            self.touch(site);
        }
    }

    /// A host's STARTTLS is broken: opportunistic connections do without for a while (RFC 7435).
    pub(super) fn host_without_tls(&mut self, site: SiteId, address: SocketAddr, reason: &str, now: Now) {
        let Some(known) = self.sites.get_mut(site) else { return };
        let name = known.permits.name.clone();
        if let Some(host) = known.host_mut(address) {
            host.no_tls_until = now.instant.after(NO_TLS_MEMORY);
        }
        self.touch(site);
        self.event(Event::SiteState { site: name, state: format!("STARTTLS of {address} is broken: {reason}").into() });
    }

    /// Ends the waiting of recipients whose time is over at a site that is down, a few at a time.
    fn expire_at_down_site(&mut self, site: SiteId, now: Now) {
        let Some(tried) = self.sites.get(site).and_then(|known| known.down.as_ref()).map(|down| down.tried) else {
            return;
        };
        for pick in self.queue.expire_ready(site, tried, now, EXPIRY_SWEEP) {
            let down = self.sites.get(site).and_then(|known| known.down.as_ref());
            let reason = down.map_or("it could not be reached", |down| &down.reason);
            let reply = Reply::new(451, (4, 4, 7), format!("Delivery time expired; the last trouble was: {reason}"));
            self.defer_pick(pick, &reply, now);
        }
    }

    /// Looks at a share of the sites for what only time brings: each is seen about once a second.
    pub(super) fn sweep_sites(&mut self, now: Now) {
        let places = self.sites.sites.len();
        for _ in 0..places.div_ceil(SWEEP_SHARE) {
            self.sites.swept = if self.sites.swept + 1 < places { self.sites.swept + 1 } else { 0 };
            let site = SiteId(self.sites.swept as u32);
            self.retry_waiting_site(site, now);
            self.expire_at_down_site(site, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::settings::SiteLimits;
    use crate::shard::shaping::Shape;

    #[test]
    fn an_address_keeps_its_health_and_takes_the_name_and_the_wish_of_now() {
        let limits = SiteLimits {
            connections: 1,
            connection_rate: None,
            messages_per_connection: None,
            rate: None,
            recipients_per_transaction: 1,
        };
        let mut site =
            Site::new(Arc::new(SitePermits::new(0, "a.test".into(), 0, Shape::plain(limits), Box::new([]), 1)));
        let at = |name: &str, last: u8, tls| HostAddress {
            name: name.into(),
            address: SocketAddr::from(([192, 0, 2, last], 25)),
            tls,
        };
        site.set_hosts(vec![at("a.test", 1, HostTls::None), at("b.test", 2, HostTls::None)], Instant::ZERO);
        site.hosts[0].failures = 3;
        let now = vec![at("b.test", 2, HostTls::None), at("new.test", 1, HostTls::Named)];
        assert!(!site.is_at(&now));
        site.set_hosts(now.clone(), Instant::ZERO);
        assert!(site.is_at(&now) && site.addresses() == now);
        assert_eq!(site.host_mut(now[1].address).map(|host| host.failures), Some(3));
        assert!(
            !site.is_at(&now[..1]) && !site.is_at(&[at("b.test", 2, HostTls::None), at("a.test", 1, HostTls::Named)])
        );
    }
}
