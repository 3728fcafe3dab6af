//! The limits of a site, exact over all shards: connections counted, connections and transactions spaced by atomics alone.
//!
//! Not here: which shard uses a permit (src/shard/site.rs) and where limits come from (src/config.rs). A permit that
//! is never released would narrow the site for ever, so each open connection holds a [`ConnectionPermit`], which
//! releases on drop.

use crate::clock::Instant;
use crate::io::dns::MxHost;
use crate::limits::MAX_SITES;
use crate::policy::outbound_tls::TlsRule;
use crate::shard::adaptive::Adaptive;
use crate::shard::gcra::Gcra;
use crate::shard::settings::{Rate, Route, Settings, Target};
use crate::shard::shaping::{Entries, Shape};
use crate::shard::shared_limit::SharedLimit;
use crate::shard::waiting_shards::WaitingShards;
use foldhash::HashMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// One site's shared state: one per site and process, held by every shard that sends there.
#[derive(Debug)]
pub struct SitePermits {
    /// Its place in the registry; small and dense.
    pub index: u32,
    /// As operators read it.
    pub name: Box<str>,
    /// Which of the settings' routes it belongs to.
    pub route: usize,
    /// What it tolerates, and how it is spoken with.
    pub shape: Shape,
    /// The limits that it shares with other sites.
    pub shared: Box<[Arc<SharedLimit>]>,
    used: Arc<Used>,
    waiting: WaitingShards,
    /// Connections by shard.
    held: Box<[AtomicU32]>,
}

/// Why something cannot be done at a site now.
#[derive(Clone, Debug)]
pub enum Busy {
    /// All its connections are in use.
    Connections,
    /// Its own rate has the next at this time.
    Until(Instant),
    /// All connections of a limit that it shares are in use.
    Shared(Arc<SharedLimit>),
    /// The rate of a limit that it shares has the next at this time.
    SharedUntil(Arc<SharedLimit>, Instant),
}

/// What is used of a site's limits. Sites of the same hosts share it, which differ only in what TLS must prove there: a
/// provider's limits hold for all of them together.
#[derive(Debug, Default)]
struct Used {
    /// What the provider bears of them at present.
    adaptive: Adaptive,
    connections: AtomicU32,
    openings: Gcra,
    transactions: Gcra,
}

impl SitePermits {
    /// A site without connections and without burst credit: what was sent before this start is not known.
    pub fn new(
        index: u32,
        name: Box<str>,
        route: usize,
        shape: Shape,
        shared: Box<[Arc<SharedLimit>]>,
        shards: u8,
    ) -> SitePermits {
        SitePermits {
            index,
            name,
            route,
            shape,
            shared,
            used: Arc::default(),
            waiting: WaitingShards::default(),
            held: (0..shards).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Takes a place for one connection of `shard` and the right to open it, if the site and all limits that it shares have
    /// one now.
    pub fn connect(self: &Arc<Self>, shard: u8, now: Instant) -> Result<ConnectionPermit, Busy> {
        let most = self.allowed();
        self.used
            .connections
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < most).then_some(open + 1))
            .map_err(|_| Busy::Connections)?;
        for (taken, limit) in self.shared.iter().enumerate() {
            if !limit.take_place() {
                self.free_places(taken);
                return Err(Busy::Shared(Arc::clone(limit)));
            }
        }
        self.take_opening(now).inspect_err(|_| self.free_places(self.shared.len()))?;
        self.held[usize::from(shard)].fetch_add(1, Ordering::AcqRel);
        Ok(ConnectionPermit { site: Arc::clone(self), shard })
    }

    /// What the provider bears of it at present.
    pub fn adaptive(&self) -> &Adaptive {
        &self.used.adaptive
    }

    /// Connections that it may have at present.
    pub fn allowed(&self) -> u32 {
        self.used.adaptive.connections(self.shape.limits.connections)
    }

    /// Its own rate of transactions at present.
    pub fn rate(&self) -> Option<Rate> {
        self.used.adaptive.rate(self.shape.limits.rate)
    }

    /// Gives back the site's own place, and those of the first so many limits that it shares.
    fn free_places(&self, shared: usize) {
        self.shared[..shared].iter().for_each(|limit| limit.free_place());
        self.used.connections.fetch_sub(1, Ordering::AcqRel);
    }

    fn take_opening(&self, now: Instant) -> Result<(), Busy> {
        let own = self.shape.limits.connection_rate;
        own.map_or(Ok(()), |rate| self.used.openings.take(rate, now)).map_err(Busy::Until)?;
        for (taken, limit) in self.shared.iter().enumerate() {
            if let Err(at) = limit.take_opening(now) {
                self.shared[..taken].iter().for_each(|limit| limit.return_opening());
                if let Some(rate) = own {
                    self.used.openings.give_back(rate);
                }
                return Err(Busy::SharedUntil(Arc::clone(limit), at));
            }
        }
        Ok(())
    }

    /// Connections of one shard.
    pub fn held_by(&self, shard: u8) -> u32 {
        self.held[usize::from(shard)].load(Ordering::Acquire)
    }

    /// Connections of all shards.
    pub fn connections(&self) -> u32 {
        self.used.connections.load(Ordering::Acquire)
    }

    /// Takes the right to begin one transaction, here and under all limits that the site shares, or says what has to be
    /// waited for. The first call after a start finds no credit but the one transaction.
    pub fn begin_transaction(&self, now: Instant) -> Result<(), Busy> {
        let own = self.rate();
        own.map_or(Ok(()), |rate| self.used.transactions.take(rate, now)).map_err(Busy::Until)?;
        for (taken, limit) in self.shared.iter().enumerate() {
            if let Err(at) = limit.take_transaction(now) {
                self.return_transactions(taken);
                return Err(Busy::SharedUntil(Arc::clone(limit), at));
            }
        }
        Ok(())
    }

    /// When the next transaction may begin by the site's own rate, if not now. Takes nothing.
    pub fn next_transaction(&self, now: Instant) -> Option<Instant> {
        self.used.transactions.next(self.rate()?, now)
    }

    /// When the next connection may be opened by the site's own rate, if not now. Takes nothing.
    pub fn next_opening(&self, now: Instant) -> Option<Instant> {
        self.used.openings.next(self.shape.limits.connection_rate?, now)
    }

    /// Gives back the right of [`begin_transaction`](Self::begin_transaction) that was not used.
    pub fn return_transaction(&self) {
        self.return_transactions(self.shared.len());
    }

    fn return_transactions(&self, shared: usize) {
        self.shared[..shared].iter().for_each(|limit| limit.return_transaction());
        if let Some(rate) = self.rate() {
            self.used.transactions.give_back(rate);
        }
    }

    /// Notes that `shard` has mail for this site and no connection permit. True when it did not wait before.
    pub fn wait(&self, shard: u8) -> bool {
        self.waiting.add(shard)
    }

    /// The poorest of the other shards that wait, if it has so few connections that one of `shard`'s would make them more
    /// equal. Never so for both of two shards, so that connections do not go to and fro.
    pub fn poorer_waiting(&self, shard: u8) -> Option<u8> {
        // Asked behind every transaction; mostly nobody waits.
        if self.waiting.is_empty() {
            return None;
        }
        let own = self.held_by(shard);
        (0..self.held.len() as u8)
            .filter(|&other| other != shard && self.waiting.contains(other))
            .map(|other| (self.held_by(other), other))
            .filter(|&(held, _)| held + 1 < own)
            .min()
            .map(|(_, other)| other)
    }

    /// `shard` no longer waits.
    pub fn wait_no_more(&self, shard: u8) {
        self.waiting.remove(shard);
    }

    /// The shard after `shard`, in turn, that waits for a permit; `shard` itself comes last.
    pub fn next_waiting(&self, shard: u8) -> Option<u8> {
        self.waiting.after(shard)
    }

    /// The one shard that sends to this site when it is narrower than there are shards (rendezvous hashing,
    /// Thaler & Ravishankar 1998: the owner of few sites changes when the number of shards does).
    pub fn owner(&self, shards: u8) -> u8 {
        (0..shards).max_by_key(|&shard| mix(fingerprint(&self.name) ^ mix(u64::from(shard) + 1))).unwrap_or(0)
    }

    /// Whether one shard alone should send here.
    pub fn is_narrow(&self, shards: u8) -> bool {
        self.shape.limits.connections < u32::from(shards)
    }
}

/// FNV-1a: stable over processes, which the owner must be.
fn fingerprint(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The finaliser of splitmix64 (Steele, Lea & Flood 2014).
fn mix(mut value: u64) -> u64 {
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// The right to one open connection; released on drop.
#[derive(Debug)]
pub struct ConnectionPermit {
    site: Arc<SitePermits>,
    shard: u8,
}

impl ConnectionPermit {
    /// The site that it is for.
    pub fn site(&self) -> &Arc<SitePermits> {
        &self.site
    }

    /// The shard that has it, or gets it when its connection has ended.
    pub fn shard(&self) -> u8 {
        self.shard
    }

    /// Counts for another shard from now on: a connection may take seconds to end, and until then nobody shall find this
    /// shard too rich, or that one too poor.
    pub fn promise(&mut self, to: u8) {
        self.site.held[usize::from(to)].fetch_add(1, Ordering::AcqRel);
        self.site.held[usize::from(self.shard)].fetch_sub(1, Ordering::AcqRel);
        self.shard = to;
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.site.held[usize::from(self.shard)].fetch_sub(1, Ordering::AcqRel);
        self.site.free_places(self.site.shared.len());
    }
}

/// All sites of the process: owned by the control thread, which resolves names and so is the first to see a site.
#[derive(Debug)]
pub struct SiteRegistry {
    settings: Arc<Settings>,
    shards: u8,
    sites: Vec<Arc<SitePermits>>,
    shared: Vec<Arc<SharedLimit>>,
    by_hosts: HashMap<(usize, Entries, Box<str>), u32>,
    used_by_hosts: HashMap<(usize, Entries, Box<str>), Arc<Used>>,
}

impl SiteRegistry {
    /// The sites of the settings' smart hosts, in the order of routes; MX sites come as they are seen.
    pub fn new(settings: Arc<Settings>, shards: u8) -> SiteRegistry {
        let specs = settings.shaping.limits.iter().enumerate();
        let shared = specs.map(|(place, spec)| Arc::new(SharedLimit::new(place as u32, spec))).collect();
        let mut registry = SiteRegistry {
            settings: Arc::clone(&settings),
            shards,
            sites: Vec::new(),
            shared,
            by_hosts: HashMap::default(),
            used_by_hosts: HashMap::default(),
        };
        for (index, route) in settings.routes.iter().enumerate() {
            if matches!(route.target, Target::NextHops(_)) {
                registry.add(index, route.name.clone(), Shape::of_route(route));
            }
        }
        registry
    }

    fn add(&mut self, route: usize, name: Box<str>, shape: Shape) -> Arc<SitePermits> {
        let permits = self.make(route, name, shape);
        self.keep(permits)
    }

    fn make(&self, route: usize, name: Box<str>, shape: Shape) -> SitePermits {
        let shared = shape.shared.iter().filter_map(|place| self.shared.get(*place as usize)).map(Arc::clone).collect();
        SitePermits::new(self.sites.len() as u32, name, route, shape, shared, self.shards)
    }

    fn keep(&mut self, permits: SitePermits) -> Arc<SitePermits> {
        let permits = Arc::new(permits);
        self.sites.push(Arc::clone(&permits));
        permits
    }

    /// What all of it is made from.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The fixed sites, for the shards' start.
    pub fn sites(&self) -> &[Arc<SitePermits>] {
        &self.sites
    }

    /// The limits that span sites.
    pub fn shared(&self) -> &[Arc<SharedLimit>] {
        &self.shared
    }

    /// What the route of a domain asks of TLS, and the port of its mail hosts; none where it has none.
    pub fn tls_rule(&self, domain: &str) -> Option<(&TlsRule, u16)> {
        match self.settings.routes.iter().find(|route| route.domains.fits(domain))? {
            Route { target: Target::Mx { port }, tls, .. } => Some((tls, *port)),
            _ => None,
        }
    }

    /// The site that the mail hosts of `domain` make: all domains with the same set of hosts share it, but for those with
    /// other terms, and as far as the same is asked of TLS there; where not, their sites share the limits. None when no
    /// route takes the domain, or when [`MAX_SITES`] are known.
    pub fn site_of(&mut self, domain: &str, hosts: &[MxHost]) -> Option<Arc<SitePermits>> {
        let settings = Arc::clone(&self.settings);
        let (index, route) = settings.routes.iter().enumerate().find(|(_, route)| route.domains.fits(domain))?;
        let mut names: Vec<(&str, &str)> = hosts.iter().map(|host| (&*host.name, host.tls.kind())).collect();
        names.sort_unstable();
        names.dedup();
        let entries = if route.shaped { settings.shaping.entries_of(domain, hosts) } else { Entries::default() };
        let joined = |texts: Vec<&str>| (index, entries, texts.join(" ").into_boxed_str());
        let plain = joined(names.iter().map(|(name, _)| *name).collect());
        let kinds: BTreeSet<&str> = names.iter().map(|(_, kind)| *kind).filter(|kind| !kind.is_empty()).collect();
        let key = match kinds.is_empty() {
            true => plain.clone(),
            false => joined(names.iter().flat_map(|(name, kind)| [*name, "/", *kind]).collect()),
        };
        if let Some(&site) = self.by_hosts.get(&key) {
            return Some(Arc::clone(&self.sites[site as usize]));
        }
        if self.sites.len() >= MAX_SITES {
            return None;
        }
        let name = hosts.iter().min_by_key(|host| (host.preference, &host.name)).map_or(domain, |host| &*host.name);
        // A domain with terms of its own is told from the others of its hosts.
        let name = if entries.domain.is_some() { format!("{domain} at {name}") } else { name.to_owned() };
        let name = match kinds.is_empty() {
            true => name,
            false => format!("{name} ({})", kinds.into_iter().collect::<Vec<_>>().join(", ")),
        };
        let mut permits = self.make(index, name.into(), settings.shaping.shape(route, entries));
        permits.used = Arc::clone(self.used_by_hosts.entry(plain).or_insert_with(|| Arc::clone(&permits.used)));
        let permits = self.keep(permits);
        self.by_hosts.insert(key, permits.index);
        Some(permits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::settings::SiteLimits;
    use crate::shard::shaping::LimitSpec;
    use std::time::Duration;

    fn limits(connections: u32, rate: Option<Rate>) -> SiteLimits {
        SiteLimits {
            connections,
            connection_rate: None,
            messages_per_connection: None,
            rate,
            recipients_per_transaction: 100,
        }
    }

    fn site_of(connections: u32, rate: Option<Rate>, shared: &[&Arc<SharedLimit>]) -> Arc<SitePermits> {
        let shared = shared.iter().copied().map(Arc::clone).collect();
        Arc::new(SitePermits::new(0, "mx.dest.test".into(), 0, Shape::plain(limits(connections, rate)), shared, 4))
    }

    fn site(connections: u32, rate: Option<Rate>) -> Arc<SitePermits> {
        site_of(connections, rate, &[])
    }

    #[test]
    fn connections_never_pass_the_limit_from_many_threads() {
        let site = site(7, None);
        let greatest = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let permit = site.connect(1, Instant::ZERO);
                        greatest.fetch_max(site.connections(), Ordering::Relaxed);
                        drop(permit);
                    }
                });
            }
        });
        assert!(greatest.load(Ordering::Relaxed) <= 7);
        assert_eq!((site.connections(), site.held_by(1)), (0, 0));
    }

    #[test]
    fn a_connection_is_given_up_only_where_that_makes_shards_more_equal() {
        let site = site(3, None);
        let mut held: Vec<_> =
            [0, 0, 1].into_iter().filter_map(|shard| site.connect(shard, Instant::ZERO).ok()).collect();
        assert!(held.len() == 3 && site.connect(1, Instant::ZERO).is_err());
        assert!(site.wait(1) && !site.wait(1));
        assert_eq!(site.poorer_waiting(0), None, "two and one are as equal as three can be");
        assert!(site.wait(2));
        assert_eq!((site.poorer_waiting(0), site.poorer_waiting(1)), (Some(2), None));
        held[0].promise(2);
        assert!((0..4).all(|shard| site.poorer_waiting(shard).is_none()), "what is promised counts at once");
        assert!(site.connect(2, Instant::ZERO).is_err(), "and is not free");
        held.clear();
        assert!((0..4).all(|shard| site.held_by(shard) == 0) && site.connections() == 0);
    }

    #[test]
    fn what_one_limit_refuses_costs_the_others_nothing() {
        let second = |count| Some(Rate { count, period: Duration::from_secs(1), burst: 1 });
        let spec = |connections, rate| LimitSpec { name: "all".into(), connections, connection_rate: None, rate };
        let wide = Arc::new(SharedLimit::new(0, &spec(Some(2), None)));
        let slow = Arc::new(SharedLimit::new(1, &spec(None, second(1))));
        let one = site_of(5, second(10), &[&wide, &slow]);
        let other = site_of(5, None, &[&wide]);
        let now = Instant::from_nanos(1_000_000_000);
        let (first, _second) = (one.connect(0, now).unwrap(), other.connect(1, now).unwrap());
        assert!(matches!(one.connect(0, now), Err(Busy::Shared(limit)) if limit.place == 0));
        assert_eq!((one.connections(), other.connections(), wide.open(), slow.open()), (1, 1, 2, 1));
        drop(first);
        assert_eq!((one.connections(), wide.open(), slow.open()), (0, 1, 0));
        assert!(one.begin_transaction(now).is_ok());
        let later = now.after(Duration::from_millis(500));
        let busy = one.begin_transaction(later);
        assert!(
            matches!(busy, Err(Busy::SharedUntil(limit, at)) if limit.place == 1 && at == now.after(Duration::from_secs(1)))
        );
        assert_eq!(one.next_transaction(later), None, "its own rate was given back");
    }

    #[test]
    fn connections_are_opened_no_faster_than_the_rate() {
        let limits = SiteLimits {
            connection_rate: Some(Rate { count: 1, period: Duration::from_secs(10), burst: 1 }),
            ..limits(5, None)
        };
        let site = Arc::new(SitePermits::new(0, "mx.dest.test".into(), 0, Shape::plain(limits), Box::new([]), 4));
        let now = Instant::from_nanos(1_000_000_000);
        let held = site.connect(0, now).unwrap();
        let at = now.after(Duration::from_secs(10));
        assert!(matches!(site.connect(0, now), Err(Busy::Until(when)) if when == at));
        assert_eq!((site.next_opening(now), site.connections()), (Some(at), 1));
        drop(held);
        assert!(site.connect(0, now).is_err() && site.connect(0, at).is_ok());
    }

    #[test]
    fn owners_are_spread_and_stay_when_a_shard_is_added() {
        let owners = |shards: u8| -> Vec<u8> {
            (0..1000)
                .map(|n| {
                    let (name, shape) = (format!("mx{n}.test").into(), Shape::plain(limits(1, None)));
                    SitePermits::new(n, name, 0, shape, Box::new([]), shards).owner(shards)
                })
                .collect()
        };
        let (four, five) = (owners(4), owners(5));
        for shard in 0..4 {
            assert!(four.iter().filter(|&&o| o == shard).count() > 150);
        }
        let moved = four.iter().zip(&five).filter(|(a, b)| a != b).count();
        assert!(moved < 300, "{moved} of 1000 moved");
    }

    #[test]
    fn sites_of_the_same_hosts_differ_by_policy_and_share_their_limits() {
        use crate::policy::outbound_tls::HostTls;
        let text = "[[listener]]\naddress = \"127.0.0.1:25\"\n[[route]]\nconnections = 3\nrate = \"1/1s\"\n";
        let config = crate::config::Config::parse(text).unwrap();
        let settings = Arc::new(crate::config::settings::settings(&config, None));
        let mut registry = SiteRegistry::new(settings, 2);
        let hosts = |tls: [HostTls; 2]| {
            let names = ["a.test", "b.test"].into_iter().zip(tls);
            let host =
                |(name, tls): (&str, HostTls)| MxHost { preference: 0, name: name.into(), tls, addresses: Vec::new() };
            names.map(host).collect::<Vec<_>>()
        };
        let dane = |octet| {
            HostTls::Dane(Arc::from([crate::policy::dane::Tlsa {
                usage: 3,
                selector: 1,
                matching: 1,
                data: [octet; 32].into(),
            }]))
        };
        let mut of = |tls| registry.site_of("d.test", &hosts(tls)).unwrap();
        let plain = of([HostTls::None, HostTls::None]);
        let named = of([HostTls::Named, HostTls::Named]);
        let half = of([dane(1), HostTls::None]);
        assert_eq!((&*plain.name, &*named.name, &*half.name), ("a.test", "a.test (MTA-STS)", "a.test (DANE)"));
        // New records are no new site, and neither is a domain of which the same is asked.
        assert!(
            Arc::ptr_eq(&half, &of([dane(2), HostTls::None]))
                && Arc::ptr_eq(&named, &of([HostTls::Named, HostTls::Named]))
        );
        assert!(!Arc::ptr_eq(&half, &of([HostTls::None, dane(1)])));
        let held: Vec<_> =
            [&plain, &named, &half].into_iter().map(|site| site.connect(0, Instant::ZERO).unwrap()).collect();
        assert!(
            plain.connect(1, Instant::ZERO).is_err()
                && named.connect(1, Instant::ZERO).is_err()
                && half.connections() == 3
        );
        drop(held);
        assert_eq!((plain.connections(), named.connections()), (0, 0));
        // The first transaction of either spends what there is for all.
        let now = Instant::from_nanos(1_000_000_000);
        assert!(named.begin_transaction(now).is_ok() && plain.begin_transaction(now).is_err());
    }
}
