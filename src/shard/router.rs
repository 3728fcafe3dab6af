//! From a recipient's domain to its site: configured routes first, MX records otherwise, answers kept for their time
//! to live.
//!
//! Not here: the lookups themselves (the control thread, src/io/dns.rs). While a domain is being looked up its
//! recipients are parked; when DNS is down they are deferred, never bounced.

use crate::clock::{Instant, Now};
use crate::event::Severity;
use crate::io::dns::{DnsFailure, Query, Resolution};
use crate::limits::{MAX_CACHED_DOMAINS, NEGATIVE_DNS_TTL, RESOLVE_AGAIN};
use crate::policy::outbound_tls::{HostTls, TlsLevel};
use crate::queue::{SiteId, Slot};
use crate::reply::Reply;
use crate::shard::attempt::{AttemptOutcome, Verdict};
use crate::shard::core::Core;
use crate::shard::message::Report;
use crate::shard::permits::SitePermits;
use crate::shard::settings::{HostSpec, Target};
use crate::shard::site::HostAddress;
use foldhash::HashMap;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What the shard knows of a domain.
#[derive(Debug)]
enum Knowledge {
    /// Asked for; these wait.
    Asked { since: Instant, waiting: Vec<(Slot, u16)> },
    /// Leads to this site until then.
    Site { site: SiteId, until: Instant },
    /// Leads nowhere until then.
    Failed { failure: DnsFailure, until: Instant },
}

/// Domains and what is known of them.
#[derive(Debug, Default)]
pub struct Router {
    domains: HashMap<Query, Knowledge>,
    /// What was asked and when, in the order of asking; some are answered.
    asked: VecDeque<(Instant, Query)>,
}

impl Core {
    /// Gives every recipient without a place in the queue one.
    pub(super) fn route_unrouted(&mut self, now: Now) {
        while let Some((slot, recipient)) = self.queue.poll_unrouted() {
            self.route(slot, recipient, now);
        }
    }

    fn route(&mut self, slot: Slot, recipient: u16, now: Now) {
        if self.is_suppressed(slot, recipient) {
            self.suppress(slot, &[recipient]);
            return;
        }
        let Some(domain) = self.queue.message(slot).and_then(|message| message.routing_domain(recipient)) else {
            let reply = Reply::fixed(550, 5, 1, 2, "The domain of this address is not one that DNS can hold");
            self.fail_unattempted(slot, recipient, AttemptOutcome::local(Verdict::Failed, reply), now);
            return;
        };
        let Some(index) = self.settings.routes.iter().position(|route| route.domains.fits(&domain)) else {
            let reply = Reply::fixed(550, 5, 4, 4, "No route takes this domain; add one to the configuration");
            self.fail_unattempted(slot, recipient, AttemptOutcome::local(Verdict::Failed, reply), now);
            return;
        };
        let require_tls = self.queue.message(slot).is_some_and(|message| message.require_tls());
        let route = &self.settings.routes[index];
        match route.target {
            Target::NextHops(_) if require_tls && route.tls.level != TlsLevel::Verified => {
                let text = format!(
                    "REQUIRETLS was asked for, and the hosts of the route {} prove nothing (tls = \"verified\" has them do so)",
                    route.name
                );
                let outcome = AttemptOutcome::local(Verdict::Failed, Reply::new(550, (5, 7, 30), text));
                self.fail_unattempted(slot, recipient, outcome, now);
            }
            Target::NextHops(_) => match self.fixed_sites[index] {
                Some(site) => self.assign(slot, recipient, site),
                None => self.notice(Severity::Error, format!("route {} has no site", self.settings.routes[index].name)),
            },
            Target::Mx { .. } if require_tls => self.route_by_mx(slot, recipient, Query::SecureMail(domain), now),
            Target::Mx { .. } => self.route_by_mx(slot, recipient, Query::Mail(domain), now),
        }
    }

    fn assign(&mut self, slot: Slot, recipient: u16, site: SiteId) {
        self.queue.assign(slot, recipient, site);
        if self.sites.get(site).is_some_and(|known| known.down.is_some())
            && let Some(message) = self.queue.message(slot)
        {
            // It will wait: memory is for what goes out at once.
            self.retained.forget(message.id());
        }
        self.touch(site);
    }

    fn route_by_mx(&mut self, slot: Slot, recipient: u16, query: Query, now: Now) {
        match self.router.domains.get_mut(&query) {
            Some(Knowledge::Site { site, until }) if *until > now.instant => {
                let site = *site;
                self.assign(slot, recipient, site);
            }
            Some(Knowledge::Failed { failure, until }) if *until > now.instant => {
                let failure = failure.clone();
                self.settle_unresolved(slot, recipient, query.name(), &failure, now);
            }
            Some(Knowledge::Asked { waiting, .. }) => {
                waiting.push((slot, recipient));
                self.queue.park(slot, recipient);
            }
            _ => {
                self.queue.park(slot, recipient);
                self.make_room(now);
                self.ask(query.clone());
                self.router.asked.push_back((now.instant, query.clone()));
                let asked = Knowledge::Asked { since: now.instant, waiting: vec![(slot, recipient)] };
                self.router.domains.insert(query, asked);
            }
        }
    }

    /// Keeps the cache bounded: what is out of date goes, then anything that nobody waits for.
    fn make_room(&mut self, now: Now) {
        if self.router.domains.len() < MAX_CACHED_DOMAINS {
            return;
        }
        self.router.domains.retain(|_, known| match known {
            Knowledge::Asked { .. } => true,
            Knowledge::Site { until, .. } | Knowledge::Failed { until, .. } => *until > now.instant,
        });
        if self.router.domains.len() >= MAX_CACHED_DOMAINS {
            let mut keep = false;
            self.router.domains.retain(|_, known| {
                keep = !keep;
                keep || matches!(known, Knowledge::Asked { .. })
            });
        }
    }

    pub(super) fn ask(&mut self, query: Query) {
        let shard = self.shard;
        self.report(Report::Resolve { shard, query });
    }

    /// Asks again for what was asked long ago: the question or its answer found no room.
    pub(super) fn ask_again(&mut self, now: Now) {
        while let Some((asked, _)) = self.router.asked.front()
            && now.instant.since(*asked) >= RESOLVE_AGAIN
        {
            let Some((asked, query)) = self.router.asked.pop_front() else { return };
            // An answer may have come, and gone out of date, and the question have been put anew since.
            if let Some(Knowledge::Asked { since, .. }) = self.router.domains.get_mut(&query)
                && *since == asked
            {
                *since = now.instant;
                self.ask(query.clone());
                self.router.asked.push_back((now.instant, query));
            }
        }
    }

    /// DNS answered.
    pub(super) fn resolved(&mut self, resolution: Resolution, permits: Option<Arc<SitePermits>>, now: Now) {
        match &resolution.query {
            Query::Host(name) => self.next_hop_resolved(name, &resolution, now),
            Query::Mail(_) | Query::SecureMail(_) => self.domain_resolved(&resolution, permits, now),
        }
    }

    fn domain_resolved(&mut self, resolution: &Resolution, permits: Option<Arc<SitePermits>>, now: Now) {
        let query = &resolution.query;
        let waiting = match self.router.domains.remove(query) {
            Some(Knowledge::Asked { waiting, .. }) => waiting,
            _ => Vec::new(),
        };
        let (failure, ttl) = match (&resolution.result, permits) {
            (Ok(hosts), Some(permits)) => {
                let Target::Mx { port } = self.settings.routes[permits.route].target else { return };
                let until = now.instant.after(resolution.ttl);
                let addresses = self.shuffled(hosts, port);
                let site = self.learn_site(permits, addresses, until);
                self.router.domains.insert(query.clone(), Knowledge::Site { site, until });
                self.route_again(waiting, now);
                return;
            }
            (Ok(_), None) => (DnsFailure::Temporary("too many sites are known".into()), NEGATIVE_DNS_TTL),
            (Err(failure), _) => (failure.clone(), resolution.ttl),
        };
        let until = now.instant.after(ttl);
        self.router.domains.insert(query.clone(), Knowledge::Failed { failure, until });
        self.route_again(waiting, now);
    }

    /// Those that waited for DNS are routed by what is known now.
    fn route_again(&mut self, waiting: Vec<(Slot, u16)>, now: Now) {
        for (slot, recipient) in waiting {
            self.queue.unpark(slot, recipient);
        }
        self.route_unrouted(now);
    }

    fn settle_unresolved(&mut self, slot: Slot, recipient: u16, domain: &str, failure: &DnsFailure, now: Now) {
        let outcome = match failure {
            DnsFailure::NoDomain => AttemptOutcome::local(
                Verdict::Failed,
                Reply::new(
                    550,
                    (5, 1, 2),
                    format!("The domain {domain} does not exist or has no mail host; check the address"),
                ),
            ),
            // RFC 7505 4.
            DnsFailure::NullMx => AttemptOutcome::local(
                Verdict::Failed,
                Reply::new(556, (5, 1, 10), format!("The domain {domain} says that it takes no mail (null MX)")),
            ),
            DnsFailure::Unprotected(what) => {
                AttemptOutcome::local(Verdict::Failed, Reply::new(550, (5, 7, 30), what.clone()))
            }
            DnsFailure::Policy(what) => {
                AttemptOutcome::local(Verdict::Unresolved, Reply::new(451, (4, 7, 5), what.clone()))
            }
            DnsFailure::Temporary(what) => AttemptOutcome::local(
                Verdict::Unresolved,
                Reply::new(451, (4, 4, 3), format!("DNS could not be asked for {domain}: {what}")),
            ),
        };
        self.fail_unattempted(slot, recipient, outcome, now);
    }

    /// The hosts' addresses in the order in which to try them: by preference, equals in random order (RFC 5321 5.1).
    fn shuffled(&mut self, hosts: &[crate::io::dns::MxHost], port: u16) -> Vec<HostAddress> {
        let mut order: Vec<(u16, u64, usize)> =
            hosts.iter().enumerate().map(|(index, host)| (host.preference, self.random(), index)).collect();
        order.sort_unstable();
        let mut addresses = Vec::new();
        for (_, _, index) in order {
            let host = &hosts[index];
            addresses.extend(host.addresses.iter().map(|&address| HostAddress {
                name: host.name.clone(),
                address: SocketAddr::new(address, port),
                tls: host.tls.clone(),
            }));
        }
        addresses
    }

    /// An address of a pool's named host came, or did not.
    fn next_hop_resolved(&mut self, name: &str, resolution: &Resolution, now: Now) {
        for index in 0..self.settings.routes.len() {
            let Some(site) = self.fixed_sites[index] else { continue };
            let Target::NextHops(hops) = &self.settings.routes[index].target else { continue };
            if !hops.iter().any(|hop| matches!(&hop.host, HostSpec::Name(host) if **host == *name)) {
                continue;
            }
            let until = now.instant.after(resolution.ttl);
            match &resolution.result {
                Ok(hosts) => {
                    self.named_hops.insert(name.into(), hosts.iter().flat_map(|host| host.addresses.clone()).collect());
                    let addresses = self.pool_addresses(index);
                    self.site_hosts_known(site, addresses, until);
                }
                Err(failure) => self.site_hosts_unknown(site, name, failure, until, now),
            }
            self.touch(site);
        }
    }

    /// The addresses of a pool in its order, as far as its names are known.
    pub(super) fn pool_addresses(&self, route: usize) -> Vec<HostAddress> {
        let Target::NextHops(hops) = &self.settings.routes[route].target else { return Vec::new() };
        let mut addresses = Vec::new();
        let mut add = |name: Box<str>, address: IpAddr, port| {
            addresses.push(HostAddress { name, address: SocketAddr::new(address, port), tls: HostTls::None });
        };
        for hop in hops {
            match &hop.host {
                HostSpec::Address(address) => add(address.to_string().into(), *address, hop.port),
                HostSpec::Name(name) => {
                    for &address in self.named_hops.get(name).into_iter().flatten() {
                        add(name.clone(), address, hop.port);
                    }
                }
            }
        }
        addresses
    }
}
