//! Mail hosts by DNS (RFC 5321 5.1): MX, the implicit MX, the null MX (RFC 7505), and the addresses of each host.
//!
//! Runs on the control thread's tokio. Not here: who asked (src/control/resolve.rs), how long answers are believed in a
//! shard, and in which order equal hosts are tried (both src/shard/router.rs). Every lookup ends within
//! [`LOOKUP_TIME`] with a result: what cannot be found out is a temporary failure, with the reason in words.

use crate::policy::outbound_tls::HostTls;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::dnssec::TrustAnchors;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Resolver as Hickory, TokioResolver};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Hosts of one domain that are looked at, those with the lowest preference first. The largest providers have five.
pub const MAX_HOSTS: usize = 16;
/// Addresses of one host that are kept.
pub const MAX_ADDRESSES: usize = 16;
/// Texts of one name that are looked at.
pub const MAX_TEXTS: usize = 32;
/// No answer is believed for a shorter time, so that a TTL of 0 does not mean a lookup per message.
pub const TTL_MIN: Duration = Duration::from_secs(1);
/// No answer is believed for longer, so that a changed MX is noticed.
pub const TTL_MAX: Duration = Duration::from_secs(3600);
/// How long a temporary failure is believed.
pub const TTL_TEMPORARY: Duration = Duration::from_secs(5);
/// How long "there is no such domain" is believed when the answer says nothing (RFC 2308 5 wants a SOA record there).
pub const TTL_NEGATIVE: Duration = Duration::from_secs(60);
/// The whole of a lookup, with all its questions.
pub const LOOKUP_TIME: Duration = Duration::from_secs(12);
/// Answers that hickory keeps: hosts that serve many domains are asked for once.
pub(super) const CACHED_ANSWERS: u64 = 8_192;

const _: () = assert!(
    LOOKUP_TIME.as_millis() < crate::limits::RESOLVE_AGAIN.as_millis(),
    "a shard does not ask again while an answer may come"
);

/// What a shard wants to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// The mail hosts of a domain (lower case, A-labels).
    Mail(Box<str>),
    /// The same, for mail whose way must be protected (RFC 8689): hosts that prove who they are, and that are proven to be the
    /// domain's own.
    SecureMail(Box<str>),
    /// The addresses of a smart host's name.
    Host(Box<str>),
}

impl Query {
    /// The name that is looked up.
    pub fn name(&self) -> &str {
        match self {
            Query::Mail(name) | Query::SecureMail(name) | Query::Host(name) => name,
        }
    }
}

/// What came of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// What was asked.
    pub query: Query,
    /// The hosts in order of preference, each with at least one address; at least one host.
    pub result: Result<Vec<MxHost>, DnsFailure>,
    /// For how long to believe it.
    pub ttl: Duration,
}

/// A host that takes mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MxHost {
    /// Lower comes first; equal ones are for the shard to shuffle.
    pub preference: u16,
    /// Its name, in lower case and without a final dot.
    pub name: Box<str>,
    /// What it, or the domain that names it, asks of TLS.
    pub tls: HostTls,
    /// Its addresses, IPv4 before IPv6: not every machine has IPv6, and large providers are stricter there.
    pub addresses: Vec<IpAddr>,
}

/// Why there are no hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsFailure {
    /// The domain does not exist, or has neither MX nor address, or its mail hosts have none.
    NoDomain,
    /// The domain says that it takes no mail (RFC 7505).
    NullMx,
    /// Not known for now, for this reason.
    Temporary(String),
    /// There are hosts, and the domain's own policy forbids to send to any of them, for this reason.
    Policy(String),
    /// There are hosts, and none that the sender's wish for protection allows, for this reason.
    Unprotected(String),
}

/// Whom to ask, and how.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// The name servers in order; those of /etc/resolv.conf when empty.
    pub servers: Vec<SocketAddr>,
    /// How long one question to one server may take.
    pub timeout: Duration,
    /// How often a question is asked.
    pub attempts: usize,
    /// Lookups at a time; others wait their turn.
    pub concurrency: usize,
}

/// Looks up mail hosts.
#[derive(Debug)]
pub struct Resolver {
    inner: TokioResolver,
    /// Keeps no answers.
    fresh: TokioResolver,
    turns: Semaphore,
}

/// Why there is no resolver.
#[derive(Debug, thiserror::Error)]
#[error("DNS cannot be set up: {0}; put name servers into the configuration, as in [dns] servers = \"127.0.0.1\"")]
pub struct ResolverError(pub(super) String);

/// One lookup of records: the values found, and until when they may be believed.
struct Found<T> {
    values: Vec<T>,
    valid_until: Instant,
}

/// Why a lookup gave nothing.
enum Nothing {
    /// The name does not exist.
    NoName(Option<u32>),
    /// The name has no such record.
    NoRecord(Option<u32>),
    /// Not known.
    Unknown(String),
}

impl Resolver {
    /// A resolver; tokio must run.
    pub fn new(config: &DnsConfig) -> Result<Resolver, ResolverError> {
        let inner = hickory(config, CACHED_ANSWERS, None)?;
        let fresh = hickory(config, 0, None)?;
        Ok(Resolver { inner, fresh, turns: Semaphore::new(config.concurrency.max(1)) })
    }

    /// Looks up the hosts. Always answers, within [`LOOKUP_TIME`] of its turn.
    pub async fn resolve(&self, query: Query) -> Resolution {
        let turn = self.turns.acquire().await;
        let work = async {
            match &query {
                Query::Mail(domain) | Query::SecureMail(domain) => self.mail_hosts(domain).await,
                Query::Host(name) => self.single_host(name).await,
            }
        };
        let (result, ttl) = tokio::time::timeout(LOOKUP_TIME, work)
            .await
            .unwrap_or_else(|_| temporary(format!("DNS did not answer within {} s", LOOKUP_TIME.as_secs())));
        drop(turn);
        Resolution { query, result, ttl: ttl.clamp(TTL_MIN, TTL_MAX) }
    }

    /// The TXT records of a name, each as one text (RFC 7208 3.3), asked for anew each time. Always answers, within
    /// [`LOOKUP_TIME`] of its turn; at most [`MAX_TEXTS`].
    pub async fn texts(&self, name: &str) -> Result<Vec<String>, DnsFailure> {
        let _turn = self.turns.acquire().await;
        match tokio::time::timeout(LOOKUP_TIME, lookup(&self.fresh, name, RecordType::TXT, text)).await {
            Ok(Ok(mut found)) => {
                found.values.truncate(MAX_TEXTS);
                Ok(found.values)
            }
            Ok(Err(Nothing::NoName(_) | Nothing::NoRecord(_))) => Err(DnsFailure::NoDomain),
            Ok(Err(Nothing::Unknown(why))) => Err(DnsFailure::Temporary(why)),
            Err(_) => Err(DnsFailure::Temporary(format!("DNS did not answer within {} s", LOOKUP_TIME.as_secs()))),
        }
    }

    /// The same, where an answer of before that has not ended is as good; empty where there are none.
    ///
    /// # Errors
    /// When it could not be found out.
    pub async fn known_texts(&self, name: &str) -> Result<Vec<String>, String> {
        let _turn = self.turns.acquire().await;
        match lookup(&self.inner, name, RecordType::TXT, text).await {
            Ok(mut found) => {
                found.values.truncate(MAX_TEXTS);
                Ok(found.values)
            }
            Err(Nothing::NoName(_) | Nothing::NoRecord(_)) => Ok(Vec::new()),
            Err(Nothing::Unknown(why)) => Err(why),
        }
    }

    /// The addresses of a name.
    ///
    /// # Errors
    /// In words.
    pub async fn addresses_of(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let _turn = self.turns.acquire().await;
        match self.addresses(name).await {
            Ok(found) => Ok(found.values),
            Err(Nothing::NoName(_) | Nothing::NoRecord(_)) => Err(format!("{name} has no address")),
            Err(Nothing::Unknown(why)) => Err(format!("address of {name}: {why}")),
        }
    }

    /// RFC 5321 5.1.
    async fn mail_hosts(&self, domain: &str) -> (Result<Vec<MxHost>, DnsFailure>, Duration) {
        if let Some(address) = literal_address(domain) {
            let host = MxHost { preference: 0, name: domain.into(), tls: HostTls::None, addresses: vec![address] };
            return if is_usable(&address) { (Ok(vec![host]), TTL_MAX) } else { no_domain(None) };
        }
        let found = match lookup(&self.inner, domain, RecordType::MX, mail_exchange).await {
            Ok(found) => found,
            Err(Nothing::NoName(ttl)) => return no_domain(ttl),
            // No MX: the domain itself is its mail host.
            Err(Nothing::NoRecord(_)) => return self.single_host(domain).await,
            Err(Nothing::Unknown(why)) => return temporary(format!("MX of {domain}: {why}")),
        };
        let mut exchanges = found.values;
        if exchanges.iter().all(|(_, name)| name.is_empty()) {
            return (Err(DnsFailure::NullMx), remaining(found.valid_until));
        }
        // A null MX beside real ones is a mistake of the domain (RFC 7505 3): the real ones count.
        exchanges.retain(|(_, name)| !name.is_empty());
        exchanges.sort();
        exchanges.dedup_by(|a, b| a.1 == b.1);
        exchanges.truncate(MAX_HOSTS);
        self.with_addresses(exchanges, remaining(found.valid_until)).await
    }

    /// The addresses of all hosts, asked for at the same time.
    async fn with_addresses(
        &self,
        exchanges: Vec<(u16, Box<str>)>,
        mut ttl: Duration,
    ) -> (Result<Vec<MxHost>, DnsFailure>, Duration) {
        let lookups = exchanges.iter().map(|(_, name)| self.addresses(name));
        let answers = join_all(lookups).await;
        let mut hosts = Vec::with_capacity(exchanges.len());
        let mut unknown = None;
        for ((preference, name), answer) in exchanges.into_iter().zip(answers) {
            match answer {
                Ok(found) => {
                    ttl = ttl.min(remaining(found.valid_until));
                    hosts.push(MxHost { preference, name, tls: HostTls::None, addresses: found.values });
                }
                Err(Nothing::Unknown(why)) => unknown = Some(format!("address of {name}: {why}")),
                // RFC 5321 5.1: a host without an address is passed over.
                Err(Nothing::NoName(_) | Nothing::NoRecord(_)) => {}
            }
        }
        match (hosts.is_empty(), unknown) {
            (false, None) => (Ok(hosts), ttl),
            // What could not be found out is asked again soon.
            (false, Some(_)) => (Ok(hosts), ttl.min(TTL_TEMPORARY)),
            (true, Some(why)) => temporary(why),
            (true, None) => (Err(DnsFailure::NoDomain), TTL_NEGATIVE),
        }
    }

    /// A host by its own name: the implicit MX, or a smart host.
    async fn single_host(&self, name: &str) -> (Result<Vec<MxHost>, DnsFailure>, Duration) {
        match self.addresses(name).await {
            Ok(found) => {
                let name = name.to_ascii_lowercase().into();
                let host = MxHost { preference: 0, name, tls: HostTls::None, addresses: found.values };
                (Ok(vec![host]), remaining(found.valid_until))
            }
            Err(Nothing::NoName(ttl) | Nothing::NoRecord(ttl)) => no_domain(ttl),
            Err(Nothing::Unknown(why)) => temporary(format!("address of {name}: {why}")),
        }
    }

    /// A and AAAA records, asked for at the same time. One kind is enough when the other is not known.
    async fn addresses(&self, name: &str) -> Result<Found<IpAddr>, Nothing> {
        let (v4, v6) = tokio::join!(
            lookup(&self.inner, name, RecordType::A, address),
            lookup(&self.inner, name, RecordType::AAAA, address)
        );
        let mut both = match (v4, v6) {
            (Ok(v4), Ok(v6)) => {
                let valid_until = v4.valid_until.min(v6.valid_until);
                Found { values: v4.values.into_iter().chain(v6.values).collect(), valid_until }
            }
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => one,
            (Err(Nothing::Unknown(why)), Err(_)) | (Err(_), Err(Nothing::Unknown(why))) => {
                return Err(Nothing::Unknown(why));
            }
            (Err(nothing), Err(_)) => return Err(nothing),
        };
        both.values.retain(is_usable);
        both.values.dedup();
        both.values.truncate(MAX_ADDRESSES);
        if both.values.is_empty() { Err(Nothing::NoRecord(None)) } else { Ok(both) }
    }
}

/// A resolver that keeps so many answers; with keys to begin with it proves them by DNSSEC.
pub(super) fn hickory(
    config: &DnsConfig,
    answers: u64,
    anchors: Option<Arc<TrustAnchors>>,
) -> Result<TokioResolver, ResolverError> {
    let provider = TokioRuntimeProvider::default();
    let wrong = |error: NetError| ResolverError(error.to_string());
    let mut builder = if config.servers.is_empty() {
        Hickory::builder(provider).map_err(wrong)?
    } else {
        let servers = config.servers.iter().map(|&address| name_server(address)).collect();
        let mut builder = Hickory::builder_with_config(ResolverConfig::from_parts(None, Vec::new(), servers), provider);
        let options = builder.options_mut();
        options.use_hosts_file = ResolveHosts::Never;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        builder
    };
    set_options(builder.options_mut(), config);
    builder.options_mut().cache_size = answers;
    if let Some(anchors) = anchors {
        builder = builder.with_trust_anchor(anchors);
    }
    builder.build().map_err(wrong)
}

/// The records of one kind; hickory follows CNAMEs.
async fn lookup<T>(
    resolver: &TokioResolver,
    name: &str,
    kind: RecordType,
    read: fn(&RData) -> Option<T>,
) -> Result<Found<T>, Nothing> {
    let Ok(name) = Name::from_ascii(format!("{}.", name.trim_end_matches('.'))) else {
        return Err(Nothing::NoName(None));
    };
    match resolver.lookup(name, kind).await {
        Ok(lookup) => {
            let values: Vec<T> = lookup.answers().iter().filter_map(|record| read(&record.data)).collect();
            if values.is_empty() {
                return Err(Nothing::NoRecord(None));
            }
            Ok(Found { values, valid_until: lookup.valid_until().into() })
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => match none.response_code {
            ResponseCode::NXDomain => Err(Nothing::NoName(none.negative_ttl)),
            ResponseCode::NoError => Err(Nothing::NoRecord(none.negative_ttl)),
            code => Err(Nothing::Unknown(format!("the name server says {code}"))),
        },
        Err(NetError::Dns(DnsError::ResponseCode(code))) => {
            Err(Nothing::Unknown(format!("the name server says {code}")))
        }
        Err(NetError::Timeout) => Err(Nothing::Unknown("no name server answered in time".into())),
        Err(error) => Err(Nothing::Unknown(error.to_string())),
    }
}

/// A server that is asked by UDP, and by TCP when the answer is long.
fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = address.port();
    }
    NameServerConfig::new(address.ip(), true, connections)
}

fn set_options(options: &mut ResolverOpts, config: &DnsConfig) {
    options.timeout = config.timeout;
    options.attempts = config.attempts;
    options.positive_max_ttl = Some(TTL_MAX);
    options.negative_max_ttl = Some(TTL_MAX);
    options.max_active_requests = config.concurrency.max(64);
}

/// Preference and name; "" is the root, the name of the null MX.
pub(super) fn mail_exchange(data: &RData) -> Option<(u16, Box<str>)> {
    match data {
        RData::MX(mx) => {
            let name = mx.exchange.to_ascii().to_ascii_lowercase();
            Some((mx.preference, name.trim_end_matches('.').into()))
        }
        _ => None,
    }
}

/// A record's character strings, one behind the other.
fn text(data: &RData) -> Option<String> {
    match data {
        RData::TXT(txt) => {
            let octets: Vec<u8> = txt.txt_data.iter().flat_map(|part| part.iter().copied()).collect();
            Some(String::from_utf8_lossy(&octets).into_owned())
        }
        _ => None,
    }
}

fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    }
}

/// The address of a literal in the form of [`crate::address::Address::routing_domain`]: it is its own mail host (RFC
/// 5321 4.1.3).
fn literal_address(domain: &str) -> Option<IpAddr> {
    let inner = domain.strip_prefix('[')?.strip_suffix(']')?;
    match inner.strip_prefix("IPv6:") {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => inner.parse().ok().map(IpAddr::V4),
    }
}

/// Addresses that cannot be a mail host. Those on loopback are left in: what is sent round in a circle is found by
/// its Received headers.
fn is_usable(address: &IpAddr) -> bool {
    let broadcast = *address == IpAddr::V4(Ipv4Addr::BROADCAST);
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() && *v6 != Ipv6Addr::UNSPECIFIED);
    !address.is_unspecified() && !address.is_multicast() && !broadcast && !mapped
}

pub(super) fn remaining(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

fn temporary<T>(why: String) -> (Result<T, DnsFailure>, Duration) {
    (Err(DnsFailure::Temporary(why)), TTL_TEMPORARY)
}

fn no_domain<T>(ttl: Option<u32>) -> (Result<T, DnsFailure>, Duration) {
    (Err(DnsFailure::NoDomain), ttl.map_or(TTL_NEGATIVE, |seconds| Duration::from_secs(seconds.into())))
}

/// Runs all at the same time on this task; the results in order.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(move |context| {
        let mut pending = false;
        for (future, output) in &mut running {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(running.iter_mut().filter_map(|(_, output)| output.take()).collect())
    })
    .await
}
