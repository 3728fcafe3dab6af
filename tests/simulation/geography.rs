//! The world outside: domains, their sites and hosts with the extensions they offer, and the settings of the relay
//! that fit them.

use crate::world::random::Random;
use ringpost::io::dns::MxHost;
use ringpost::policy::classify::Classifier;
use ringpost::policy::outbound_tls::{HostTls, TlsLevel, TlsRule};
use ringpost::policy::relay::{ListenerKind, RelayPolicy};
use ringpost::queue::retry::RetrySchedule;
use ringpost::shard::settings::{
    DomainPattern, HostSpec, ListenerSettings, NextHop, Rate, Route, Settings, SiteLimits, Target,
};
use ringpost::shard::shaping::{LimitSpec, Provider, Shaping, Tolerance};
use ringpost::smtp::client::{ClientConfig, ClientTimeouts};
use ringpost::smtp::server::{BareNewlines, SessionConfig};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// What a host does about TLS.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum TlsOffer {
    No,
    Works,
    Broken,
}

/// A host that takes mail.
#[derive(Clone, Debug)]
pub struct HostPlan {
    pub address: SocketAddr,
    pub site: usize,
    /// False: only HELO is known.
    pub extended: bool,
    pub pipelining: bool,
    pub chunking: bool,
    pub eight_bit: bool,
    pub utf8: bool,
    pub dsn: bool,
    pub size_max: Option<u64>,
    pub mail_max: Option<u32>,
    pub tls: TlsOffer,
    /// Never takes anything.
    pub dead: bool,
}

/// The hosts that share limits.
#[derive(Clone, Debug)]
pub struct SitePlan {
    pub hosts: Vec<usize>,
    /// Place in the settings' routes.
    pub route: usize,
}

/// What DNS knows of a domain.
#[derive(Clone, Debug)]
pub enum Zone {
    Site(usize),
    NoDomain,
    NullMx,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Geography {
    pub hosts: Vec<HostPlan>,
    pub sites: Vec<SitePlan>,
    pub zones: BTreeMap<String, Zone>,
    /// Domains of recipients, some of them several times.
    pub domains: Vec<String>,
    /// The sites under the shared limit.
    pub shared: Vec<usize>,
}

/// The domains under the shared limit.
const SHARED: [&str; 4] = ["one.test", "uno.test", "two.test", "senders.test"];

const POOL: usize = 0;
const NARROW: usize = 1;
const RATED: usize = 2;
const REST: usize = 3;

impl Geography {
    /// The world of a seed; without obstacles when `calm`.
    pub fn new(random: &mut Random, calm: bool) -> Geography {
        let mut world = Geography {
            hosts: Vec::new(),
            sites: Vec::new(),
            zones: BTreeMap::new(),
            domains: Vec::new(),
            shared: Vec::new(),
        };
        world.site(random, POOL, 2, calm, &[]);
        world.site(random, NARROW, 1, calm, &["a.narrow.test", "b.narrow.test"]);
        world.site(random, NARROW, 2, calm, &["c.narrow.test"]);
        world.site(random, RATED, 1, calm, &["a.rated.test"]);
        let one = world.site(random, REST, 3, calm, &["one.test", "uno.test"]);
        let two = world.site(random, REST, 1, calm, &["two.test"]);
        let senders = world.site(random, REST, 2, true, &["senders.test"]);
        world.shared = vec![one, two, senders];
        let dead = world.site(random, REST, 1, true, &["dead.test", "void.test"]);
        for host in world.sites[dead].hosts.clone() {
            world.hosts[host].dead = true;
        }
        for host in world.sites[senders].hosts.clone() {
            // Takes whatever a report may hold.
            world.hosts[host].size_max = None;
        }
        world.domains = world.zones.keys().filter(|domain| !is_of_senders(domain)).cloned().collect();
        world.domains.extend(["pool.test", "pool.test", "one.test", "a.narrow.test"].map(String::from));
        if !calm {
            world.zones.insert("gone.test".into(), Zone::NoDomain);
            world.zones.insert("null.test".into(), Zone::NullMx);
            world.domains.extend(["gone.test", "null.test"].map(String::from));
        } else {
            world.domains.retain(|domain| domain != "dead.test");
        }
        world
    }

    fn site(&mut self, random: &mut Random, route: usize, hosts: u8, plain: bool, domains: &[&str]) -> usize {
        let site = self.sites.len();
        let first = self.hosts.len();
        for number in 0..hosts {
            let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, site as u8, number + 1)), 25);
            let often = |random: &mut Random| plain || random.chance(750);
            let pipelining = random.chance(600);
            self.hosts.push(HostPlan {
                address,
                site,
                extended: often(random) || random.chance(500),
                pipelining,
                chunking: random.chance(400),
                eight_bit: often(random),
                utf8: often(random),
                dsn: random.chance(400),
                size_max: (!plain && random.chance(300)).then(|| *random.pick(&[3_000, 20_000, 1_000_000])),
                mail_max: random.chance(200).then(|| random.range(1, 4) as u32),
                tls: match random.below(4) {
                    0 => TlsOffer::Works,
                    1 if !plain => TlsOffer::Broken,
                    _ => TlsOffer::No,
                },
                dead: false,
            });
        }
        self.sites.push(SitePlan { hosts: (first..self.hosts.len()).collect(), route });
        for domain in domains {
            self.zones.insert((*domain).into(), Zone::Site(site));
        }
        site
    }

    /// The host with this address.
    pub fn host_at(&self, address: SocketAddr) -> Option<usize> {
        self.hosts.iter().position(|host| host.address == address)
    }

    /// The mail hosts of a site, as DNS gives them.
    pub fn mail_hosts(&self, site: usize) -> Vec<MxHost> {
        let hosts = self.sites[site].hosts.iter();
        hosts
            .map(|&host| MxHost {
                preference: 10 * (host as u16 % 2),
                name: host_name(host),
                tls: HostTls::None,
                addresses: vec![self.hosts[host].address.ip()],
            })
            .collect()
    }

    /// The site that takes mail for a domain.
    pub fn site_of(&self, domain: &str) -> Option<usize> {
        match self.zones.get(domain) {
            Some(Zone::Site(site)) => Some(*site),
            Some(_) => None,
            None => (domain == "pool.test").then_some(POOL),
        }
    }
}

/// The name of a host.
pub fn host_name(host: usize) -> Box<str> {
    format!("mx{host}.hosts.test").into()
}

/// Domains that only reports are sent to.
fn is_of_senders(domain: &str) -> bool {
    matches!(domain, "senders.test" | "void.test")
}

/// The relay's settings. `large`: messages of hundreds of kilobytes come; `small`: segments are as small as can be.
pub fn settings(random: &mut Random, large: bool, small: bool) -> Settings {
    let max_message_size = if large { 800_000 } else { 40_000 };
    let session = SessionConfig {
        hostname: "relay.test".into(),
        max_message_size,
        starttls: random.chance(700),
        auth: false,
        mechanisms: Default::default(),
        auth_in_clear: false,
        bare_newlines: BareNewlines::Refuse,
        proxy: false,
        strangers: Default::default(),
        max_recipients: if random.chance(200) { 2 } else { 100 },
        max_commands: 1_000,
        max_errors: 50,
        max_transactions: if random.chance(200) { 3 } else { 100 },
        command_timeout: Duration::from_secs(30),
        data_timeout: Duration::from_secs(20),
        message_timeout: Duration::from_secs(120),
        chunking: true,
        dsn: true,
        smtputf8: true,
        pipelining: true,
    };
    let lifetime = Duration::from_secs(*random.pick(&[900, 1_800, 7_200]));
    let segment_size = match (large, small) {
        (true, _) => 1 << 20,
        (false, true) => 96 * 1024,
        (false, false) => *random.pick(&[128 * 1024, 256 * 1024, 512 * 1024]),
    };
    Settings {
        hostname: "relay.test".into(),
        listeners: vec![ListenerSettings {
            session: Arc::new(session),
            implicit_tls: false,
            relay: Arc::new(RelayPolicy::new(ListenerKind::Relay, trusted(), false)),
            submission: false,
            tenant: "default".into(),
            tenant_header: None,
            tenant_subaddress: false,
            required_headers: Vec::new(),
            filters: if random.chance(333) { Arc::new([0]) } else { Arc::new([]) },
        }],
        routes: routes(random),
        shaping: shaping(random),
        classifier: Classifier::shipped(),
        schedule: RetrySchedule {
            first: Duration::from_secs(random.range(3, 40)),
            factor: 2,
            max: Duration::from_secs(200),
            jitter_percent: 10,
            lifetime,
            delay_warning: random.chance(500).then(|| Duration::from_secs(random.range(20, 600))),
        },
        hold: false,
        max_received_headers: 100,
        max_sessions: if random.chance(100) { 3 } else { 1_000 },
        max_sessions_per_client: 100,
        max_sessions_per_network: 100_000,
        connection_rates: Default::default(),
        refuse_suppressed: false,
        bounces_suppress: false,
        max_tarpitted: 10,
        max_outgoing: if random.chance(200) { 2 } else { 1_000 },
        lift_loopback_limits: true,
        content_memory: if random.chance(300) { 100_000 } else { 64 << 20 },
        spill_above: 256 * 1024,
        retained_content: *random.pick(&[0, 20_000, 1 << 20]),
        large_message: 600_000,
        segment_size,
        spare_segments: random.range(1, 2) as usize,
    }
}

fn trusted() -> Vec<ipnet::IpNet> {
    vec![ipnet::IpNet::V4(ipnet::Ipv4Net::new(Ipv4Addr::LOCALHOST, 8).expect("8 is a prefix length of IPv4"))]
}

/// In half of the worlds some sites share a limit.
fn shaping(random: &mut Random) -> Shaping {
    let seconds = |random: &mut Random| Duration::from_secs(random.range(1, 10));
    let rate = |random: &mut Random| Rate {
        count: random.range(1, 20) as u32,
        period: seconds(random),
        burst: random.range(1, 3) as u32,
    };
    let limit = LimitSpec {
        name: "shared".into(),
        connections: random.chance(700).then(|| random.range(1, 4) as u32),
        connection_rate: random.chance(200).then(|| rate(random)),
        rate: random.chance(400).then(|| rate(random)),
    };
    let some = random.chance(500);
    Shaping {
        providers: vec![Provider {
            name: "some".into(),
            hosts: DomainPattern::Exact(Vec::new()),
            domains: DomainPattern::Exact(SHARED.map(Into::into).to_vec()),
            tolerance: Tolerance { limits: if some { vec![0] } else { Vec::new() }, ..Tolerance::default() },
        }],
        limits: vec![limit],
        ..Shaping::default()
    }
}

fn routes(random: &mut Random) -> Vec<Route> {
    let hop = |number: u8| NextHop { host: HostSpec::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, number))), port: 25 };
    let named = |number: usize| NextHop { host: HostSpec::Name(host_name(number)), port: 25 };
    let pool = if random.chance(500) { vec![hop(1), hop(2)] } else { vec![named(0), named(1)] };
    let rate = Rate {
        count: random.range(1, 10) as u32,
        period: Duration::from_secs(random.range(1, 10)),
        burst: random.range(1, 3) as u32,
    };
    let below = |name: &str| DomainPattern::Below(vec![name.into()]);
    let exact = DomainPattern::Exact(vec!["pool.test".into()]);
    let (narrow, pool_connections) = (random.range(1, 3) as u32, random.range(1, 6) as u32);
    vec![
        route(random, "pool", exact, Target::NextHops(pool), pool_connections, None),
        route(random, "narrow", below("narrow.test"), Target::Mx { port: 25 }, narrow, None),
        route(random, "rated", below("rated.test"), Target::Mx { port: 25 }, 3, Some(rate)),
        route(random, "rest", DomainPattern::All, Target::Mx { port: 25 }, 4, None),
    ]
}

fn route(
    random: &mut Random,
    name: &str,
    domains: DomainPattern,
    target: Target,
    connections: u32,
    rate: Option<Rate>,
) -> Route {
    let seconds = Duration::from_secs;
    let level = if random.chance(600) { TlsLevel::Opportunistic } else { TlsLevel::Never };
    Route {
        tls: TlsRule::of(level),
        name: name.into(),
        domains,
        target,
        limits: SiteLimits {
            connections,
            connection_rate: None,
            messages_per_connection: random.chance(300).then(|| random.range(1, 5) as u32),
            rate,
            recipients_per_transaction: *random.pick(&[1, 2, 50]),
        },
        client: Arc::new(ClientConfig {
            ehlo_name: "relay.test".into(),
            tls: TlsRule::of(level).tls_use(),
            assume_8bitmime: random.chance(300),
            chunking: random.chance(800),
            pipelining: random.chance(800),
            pipelined_messages: true,
            timeouts: ClientTimeouts {
                banner: seconds(15),
                hello: seconds(15),
                mail: seconds(15),
                rcpt: seconds(15),
                data: seconds(15),
                block: seconds(15),
                final_dot: seconds(30),
                quit: seconds(5),
            },
        }),
        connect_timeout: seconds(5),
        idle_timeout: seconds(random.range(1, 20)),
        shaped: true,
        adapt: true,
        source: None,
    }
}
