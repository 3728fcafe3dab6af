//! The limits of a site, exact over all shards: connections counted and transactions spaced by atomics alone.
//!
//! Not here: which shard uses a permit (src/shard/site.rs) and where limits come from (src/config.rs). A permit that
//! is never released would narrow the site for ever, so each open connection holds a [`ConnectionPermit`], which
//! releases on drop.

use crate::clock::Instant;
use crate::io::dns::MxHost;
use crate::limits::{MAX_SHARDS, MAX_SITES};
use crate::policy::outbound_tls::TlsRule;
use crate::shard::settings::{Rate, Route, Settings, SiteLimits, Target};
use foldhash::HashMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Words of the bitmap of waiting shards.
const WAITING_WORDS: usize = MAX_SHARDS / 64;

/// One site's shared state: one per site and process, held by every shard that sends there.
#[derive(Debug)]
pub struct SitePermits {
    /// Its place in the registry; small and dense.
    pub index: u32,
    /// As operators read it.
    pub name: Box<str>,
    /// Which of the settings' routes it belongs to.
    pub route: usize,
    /// What it tolerates.
    pub limits: SiteLimits,
    used: Arc<Used>,
    waiting: [AtomicU64; WAITING_WORDS],
    /// Connections by shard.
    held: Box<[AtomicU32]>,
}

/// What is used of a site's limits. Sites of the same hosts share it, which differ only in what TLS must prove there: a
/// provider's limits hold for all of them together.
#[derive(Debug, Default)]
struct Used {
    connections: AtomicU32,
    /// The theoretical arrival time of the generic cell rate algorithm (ITU-T I.371), in nanoseconds.
    next_free: AtomicU64,
}

impl SitePermits {
    /// A site without connections and without burst credit: what was sent before this start is not known.
    pub fn new(index: u32, name: Box<str>, route: usize, limits: SiteLimits, shards: u8) -> SitePermits {
        SitePermits {
            index,
            name,
            route,
            limits,
            used: Arc::default(),
            waiting: std::array::from_fn(|_| AtomicU64::new(0)),
            held: (0..shards).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Takes a place for one connection of `shard`, if the site has one left.
    pub fn connect(self: &Arc<Self>, shard: u8) -> Option<ConnectionPermit> {
        self.used
            .connections
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| {
                (open < self.limits.connections).then_some(open + 1)
            })
            .ok()
            .map(|_| {
                self.held[usize::from(shard)].fetch_add(1, Ordering::AcqRel);
                ConnectionPermit { site: Arc::clone(self), shard }
            })
    }

    /// Connections of one shard.
    pub fn held_by(&self, shard: u8) -> u32 {
        self.held[usize::from(shard)].load(Ordering::Acquire)
    }

    /// Connections of all shards.
    pub fn connections(&self) -> u32 {
        self.used.connections.load(Ordering::Acquire)
    }

    /// Takes the right to begin one transaction, or says when to ask again. Spacing and burst are those of
    /// [`Rate`]; the first call after a start finds no credit but the one transaction.
    pub fn begin_transaction(&self, now: Instant) -> Result<(), Instant> {
        let Some(rate) = self.limits.rate else { return Ok(()) };
        let (step, tolerance) = spacing(rate);
        let now = now.as_nanos();
        let taken = self.used.next_free.fetch_update(Ordering::AcqRel, Ordering::Acquire, |next_free| {
            if next_free == 0 {
                // The first use: as if the whole burst had just been spent.
                return Some(now + step + tolerance);
            }
            let start = next_free.max(now);
            (start - now <= tolerance).then_some(start + step)
        });
        match taken {
            Ok(_) => Ok(()),
            Err(next_free) => Err(Instant::from_nanos(next_free - tolerance)),
        }
    }

    /// When the next transaction may begin, if not now. Takes nothing.
    pub fn next_transaction(&self, now: Instant) -> Option<Instant> {
        let (_, tolerance) = spacing(self.limits.rate?);
        let next_free = self.used.next_free.load(Ordering::Acquire);
        let at = Instant::from_nanos(next_free.saturating_sub(tolerance));
        (at > now).then_some(at)
    }

    /// Gives back the right of [`begin_transaction`](Self::begin_transaction) that was not used.
    pub fn return_transaction(&self) {
        if let Some(rate) = self.limits.rate {
            let (step, _) = spacing(rate);
            self.used.next_free.fetch_sub(step, Ordering::AcqRel);
        }
    }

    /// Notes that `shard` has mail for this site and no connection permit. True when it did not wait before.
    pub fn wait(&self, shard: u8) -> bool {
        let bit = 1 << (shard % 64);
        self.waiting[usize::from(shard) / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    fn waits(&self, shard: u8) -> bool {
        self.waiting[usize::from(shard) / 64].load(Ordering::Acquire) & 1 << (shard % 64) != 0
    }

    /// The poorest of the other shards that wait, if it has so few connections that one of `shard`'s would make them more
    /// equal. Never so for both of two shards, so that connections do not go to and fro.
    pub fn poorer_waiting(&self, shard: u8) -> Option<u8> {
        // Asked behind every transaction; mostly nobody waits.
        if self.waiting.iter().all(|word| word.load(Ordering::Acquire) == 0) {
            return None;
        }
        let own = self.held_by(shard);
        (0..self.held.len() as u8)
            .filter(|&other| other != shard && self.waits(other))
            .map(|other| (self.held_by(other), other))
            .filter(|&(held, _)| held + 1 < own)
            .min()
            .map(|(_, other)| other)
    }

    /// `shard` no longer waits.
    pub fn wait_no_more(&self, shard: u8) {
        let word = &self.waiting[usize::from(shard) / 64];
        if word.load(Ordering::Relaxed) & 1 << (shard % 64) != 0 {
            word.fetch_and(!(1 << (shard % 64)), Ordering::AcqRel);
        }
    }

    /// The shard after `shard`, in turn, that waits for a permit; `shard` itself comes last.
    pub fn next_waiting(&self, shard: u8) -> Option<u8> {
        let bits = |from: usize, to: usize| (from..to).find(|&s| self.waits(s as u8));
        if self.waiting.iter().all(|word| word.load(Ordering::Acquire) == 0) {
            return None;
        }
        bits(usize::from(shard) + 1, MAX_SHARDS).or_else(|| bits(0, usize::from(shard) + 1)).map(|s| s as u8)
    }

    /// The one shard that sends to this site when it is narrower than there are shards (rendezvous hashing,
    /// Thaler & Ravishankar 1998: the owner of few sites changes when the number of shards does).
    pub fn owner(&self, shards: u8) -> u8 {
        (0..shards).max_by_key(|&shard| mix(fingerprint(&self.name) ^ mix(u64::from(shard) + 1))).unwrap_or(0)
    }

    /// Whether one shard alone should send here.
    pub fn is_narrow(&self, shards: u8) -> bool {
        self.limits.connections < u32::from(shards)
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

/// Nanoseconds between transactions, and how far ahead of them a burst may run.
fn spacing(rate: Rate) -> (u64, u64) {
    let period = rate.period.as_nanos().min(u128::from(u64::MAX / 2)) as u64;
    let step = (period / u64::from(rate.count.max(1))).max(1);
    (step, step.saturating_mul(u64::from(rate.burst.saturating_sub(1))))
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
        self.site.used.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// All sites of the process: owned by the control thread, which resolves names and so is the first to see a site.
#[derive(Debug)]
pub struct SiteRegistry {
    settings: Arc<Settings>,
    shards: u8,
    sites: Vec<Arc<SitePermits>>,
    by_hosts: HashMap<(usize, Box<str>), u32>,
    used_by_hosts: HashMap<(usize, Box<str>), Arc<Used>>,
}

impl SiteRegistry {
    /// The sites of the settings' smart hosts, in the order of routes; MX sites come as they are seen.
    pub fn new(settings: Arc<Settings>, shards: u8) -> SiteRegistry {
        let mut registry = SiteRegistry {
            settings: Arc::clone(&settings),
            shards,
            sites: Vec::new(),
            by_hosts: HashMap::default(),
            used_by_hosts: HashMap::default(),
        };
        for (index, route) in settings.routes.iter().enumerate() {
            if matches!(route.target, Target::NextHops(_)) {
                registry.add(index, route.name.clone(), route.limits.clone());
            }
        }
        registry
    }

    fn add(&mut self, route: usize, name: Box<str>, limits: SiteLimits) -> Arc<SitePermits> {
        let permits = SitePermits::new(self.sites.len() as u32, name, route, limits, self.shards);
        self.keep(permits)
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

    /// What the route of a domain asks of TLS, and the port of its mail hosts; none where it has none.
    pub fn tls_rule(&self, domain: &str) -> Option<(&TlsRule, u16)> {
        match self.settings.routes.iter().find(|route| route.domains.fits(domain))? {
            Route { target: Target::Mx { port }, tls, .. } => Some((tls, *port)),
            _ => None,
        }
    }

    /// The site that the mail hosts of `domain` make: all domains with the same set of hosts share it, as far as the same is
    /// asked of TLS there; where not, their sites share the limits. None when no route takes the domain, or when
    /// [`MAX_SITES`] are known.
    pub fn site_of(&mut self, domain: &str, hosts: &[MxHost]) -> Option<Arc<SitePermits>> {
        let settings = Arc::clone(&self.settings);
        let (index, route) = settings.routes.iter().enumerate().find(|(_, route)| route.domains.fits(domain))?;
        let mut names: Vec<(&str, &str)> = hosts.iter().map(|host| (&*host.name, host.tls.kind())).collect();
        names.sort_unstable();
        names.dedup();
        let joined = |texts: Vec<&str>| (index, texts.join(" ").into_boxed_str());
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
        let name = match kinds.is_empty() {
            true => name.into(),
            false => format!("{name} ({})", kinds.into_iter().collect::<Vec<_>>().join(", ")).into(),
        };
        let mut permits = SitePermits::new(self.sites.len() as u32, name, index, route.limits.clone(), self.shards);
        permits.used = Arc::clone(self.used_by_hosts.entry(plain).or_insert_with(|| Arc::clone(&permits.used)));
        let permits = self.keep(permits);
        self.by_hosts.insert(key, permits.index);
        Some(permits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn site(connections: u32, rate: Option<Rate>) -> Arc<SitePermits> {
        let limits = SiteLimits { connections, messages_per_connection: None, rate, recipients_per_transaction: 100 };
        Arc::new(SitePermits::new(0, "mx.dest.test".into(), 0, limits, 4))
    }

    #[test]
    fn connections_never_pass_the_limit_from_many_threads() {
        let site = site(7, None);
        let greatest = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let permit = site.connect(1);
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
        let mut held: Vec<_> = [0, 0, 1].into_iter().filter_map(|shard| site.connect(shard)).collect();
        assert!(held.len() == 3 && site.connect(1).is_none());
        assert!(site.wait(1) && !site.wait(1));
        assert_eq!(site.poorer_waiting(0), None, "two and one are as equal as three can be");
        assert!(site.wait(2));
        assert_eq!((site.poorer_waiting(0), site.poorer_waiting(1)), (Some(2), None));
        held[0].promise(2);
        assert!((0..4).all(|shard| site.poorer_waiting(shard).is_none()), "what is promised counts at once");
        assert!(site.connect(2).is_none(), "and is not free");
        held.clear();
        assert!((0..4).all(|shard| site.held_by(shard) == 0) && site.connections() == 0);
    }

    #[test]
    fn transactions_are_spaced_and_begin_without_credit() {
        let rate = Rate { count: 10, period: Duration::from_secs(1), burst: 3 };
        let site = site(1, Some(rate));
        let start = Instant::from_nanos(1_000_000_000);
        assert_eq!(site.begin_transaction(start), Ok(()));
        let at = site.begin_transaction(start).unwrap_err();
        assert_eq!(at, start.after(Duration::from_millis(100)));
        assert_eq!(site.next_transaction(start), Some(at));
        assert_eq!(site.next_transaction(at), None);
        assert_eq!(site.begin_transaction(at), Ok(()));
        // A long pause earns the burst and no more.
        let later = start.after(Duration::from_secs(60));
        let taken = (0..10).filter(|_| site.begin_transaction(later).is_ok()).count();
        assert_eq!(taken, 3);
    }

    #[test]
    fn in_any_second_no_more_than_the_rate_and_the_burst() {
        let rate = Rate { count: 50, period: Duration::from_secs(1), burst: 5 };
        let site = site(1, Some(rate));
        let mut begun: Vec<u64> = Vec::new();
        for at in (1..5_000_000_000u64).step_by(777_777) {
            if site.begin_transaction(Instant::from_nanos(at)).is_ok() {
                begun.push(at);
            }
        }
        for (first, at) in begun.iter().enumerate() {
            let within = begun[first..].iter().take_while(|&&other| other - at < 1_000_000_000).count();
            assert!(within <= 55, "{within} transactions in a second");
        }
        assert!(begun.len() >= 240);
    }

    #[test]
    fn a_right_that_was_not_used_comes_back() {
        let site = site(1, Some(Rate { count: 1, period: Duration::from_secs(1), burst: 1 }));
        let now = Instant::from_nanos(5);
        assert_eq!(site.begin_transaction(now), Ok(()));
        assert!(site.begin_transaction(now).is_err());
        site.return_transaction();
        assert_eq!(site.begin_transaction(now), Ok(()));
    }

    #[test]
    fn waiting_shards_take_turns() {
        let site = site(1, None);
        assert_eq!(site.next_waiting(0), None);
        for shard in [0, 2, 200] {
            assert!(site.wait(shard));
        }
        assert_eq!(site.next_waiting(0), Some(2));
        assert_eq!(site.next_waiting(2), Some(200));
        assert_eq!(site.next_waiting(200), Some(0));
        site.wait_no_more(0);
        site.wait_no_more(200);
        assert_eq!(site.next_waiting(2), Some(2));
    }

    #[test]
    fn owners_are_spread_and_stay_when_a_shard_is_added() {
        let owners = |shards: u8| -> Vec<u8> {
            (0..1000)
                .map(|n| {
                    let limits = SiteLimits {
                        connections: 1,
                        messages_per_connection: None,
                        rate: None,
                        recipients_per_transaction: 1,
                    };
                    SitePermits::new(n, format!("mx{n}.test").into(), 0, limits, shards).owner(shards)
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
        let held: Vec<_> = [&plain, &named, &half].into_iter().map(|site| site.connect(0).unwrap()).collect();
        assert!(plain.connect(1).is_none() && named.connect(1).is_none() && half.connections() == 3);
        drop(held);
        assert_eq!((plain.connections(), named.connections()), (0, 0));
        // The first transaction of either spends what there is for all.
        let now = Instant::from_nanos(1_000_000_000);
        assert!(named.begin_transaction(now).is_ok() && plain.begin_transaction(now).is_err());
    }
}
