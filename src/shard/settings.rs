//! What a shard is told at its start: the configuration in the form the core uses, checked and complete.

use crate::policy::classify::Classifier;
use crate::policy::connection_rate::ConnectionRates;
use crate::policy::outbound_tls::TlsRule;
use crate::policy::relay::RelayPolicy;
use crate::queue::retry::RetrySchedule;
use crate::shard::shaping::Shaping;
use crate::smtp::client::ClientConfig;
use crate::smtp::server::SessionConfig;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Everything a shard needs to know, immutable but for what all shards count together, and shared by them.
#[derive(Debug)]
pub struct Settings {
    /// The name in greetings, Received headers and notifications.
    pub hostname: Box<str>,
    /// In the order of the sockets that the executor is given.
    pub listeners: Vec<ListenerSettings>,
    /// In order: the first whose pattern fits a recipient's domain is taken.
    pub routes: Vec<Route>,
    /// What providers and domains tolerate.
    pub shaping: Shaping,
    /// What the replies of destinations mean.
    pub classifier: Classifier,
    /// When attempts are made, and for how long.
    pub schedule: RetrySchedule,
    /// Accept, deliver nothing.
    pub hold: bool,
    /// A message with more Received headers goes round in a loop (RFC 5321 6.3).
    pub max_received_headers: u32,
    /// Suppressed recipients are refused at RCPT.
    pub refuse_suppressed: bool,
    /// The control thread is told of failures that say something of an address.
    pub bounces_suppress: bool,
    /// Sessions in all, per shard; further ones get 421.
    pub max_sessions: usize,
    /// Sessions of one client address, per shard; loopback clients are exempt when `lift_loopback_limits`.
    pub max_sessions_per_client: usize,
    /// Sessions of the clients of one network that the listener does not trust, per shard.
    pub max_sessions_per_network: usize,
    /// How often clients and networks may connect, counted by all shards together.
    pub connection_rates: ConnectionRates,
    /// Sessions that may be kept waiting for the answer to an error, per shard.
    pub max_tarpitted: usize,
    /// Connections to destinations in all, per shard; beyond, sites take turns.
    pub max_outgoing: usize,
    /// Whether clients on loopback have no limits of their own.
    pub lift_loopback_limits: bool,
    /// Octets of incoming content held in memory, per shard; beyond it content spills to files.
    pub content_memory: usize,
    /// Content longer than this spills to its own file.
    pub spill_above: usize,
    /// Octets of committed content kept in memory for its first attempt, per shard.
    pub retained_content: usize,
    /// Messages above this many octets raise a warning event.
    pub large_message: u64,
    /// Octets in one log segment.
    pub segment_size: u32,
    /// Prepared segments kept in reserve, per shard.
    pub spare_segments: usize,
}

/// One listening address.
#[derive(Debug)]
pub struct ListenerSettings {
    /// The protocol's settings.
    pub session: Arc<SessionConfig>,
    /// TLS from the first byte (port 465).
    pub implicit_tls: bool,
    /// Who may relay here.
    pub relay: Arc<RelayPolicy>,
    /// Adds Date and Message-ID when they are missing (RFC 6409 8).
    pub submission: bool,
    /// The tenant of mail that comes in here.
    pub tenant: Box<str>,
    /// A header that names the tenant instead, where the client may name one; taken away before the message is stored.
    pub tenant_header: Option<Box<str>>,
    /// Whether a subaddress of the sender names the tenant, where the client may name one.
    pub tenant_subaddress: bool,
    /// Headers without which a message is refused.
    pub required_headers: Vec<Box<str>>,
    /// The content filters that see what comes in here, in this order, by their places in the configuration.
    pub filters: Arc<[u16]>,
}

/// Where the mail of some domains goes.
#[derive(Debug)]
pub struct Route {
    /// As the operator named it.
    pub name: Box<str>,
    /// Which domains.
    pub domains: DomainPattern,
    /// Where to.
    pub target: Target,
    /// The limits of each site of this route, where shaping says nothing else.
    pub limits: SiteLimits,
    /// Whether shaping has a say.
    pub shaped: bool,
    /// Whether limits follow what destinations say.
    pub adapt: bool,
    /// How TLS is used.
    pub tls: TlsRule,
    /// How connections speak.
    pub client: Arc<ClientConfig>,
    /// After how long a connection attempt counts as failed.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// The local address to send from.
    pub source: Option<IpAddr>,
}

/// A set of domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainPattern {
    /// Every domain.
    All,
    /// These and no others (lower case, A-labels).
    Exact(Vec<Box<str>>),
    /// Everything below these, not they themselves.
    Below(Vec<Box<str>>),
    /// Both kinds in one route, so that they share its sites and limits.
    Either {
        /// These themselves.
        exact: Vec<Box<str>>,
        /// Everything below these.
        below: Vec<Box<str>>,
    },
}

impl DomainPattern {
    /// Whether the domain (lower case, A-labels) is meant.
    pub fn fits(&self, domain: &str) -> bool {
        match self {
            DomainPattern::All => true,
            DomainPattern::Exact(names) => is_one_of(domain, names),
            DomainPattern::Below(names) => is_below(domain, names),
            DomainPattern::Either { exact, below } => is_one_of(domain, exact) || is_below(domain, below),
        }
    }
}

fn is_one_of(domain: &str, names: &[Box<str>]) -> bool {
    names.iter().any(|name| **name == *domain)
}

fn is_below(domain: &str, names: &[Box<str>]) -> bool {
    names.iter().any(|name| domain.strip_suffix(&**name).is_some_and(|front| front.len() > 1 && front.ends_with('.')))
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The hosts of the domain's MX records, on this port.
    Mx {
        /// 25, but for tests.
        port: u16,
    },
    /// A pool of hosts, in order: the next is used when the one before fails.
    NextHops(Vec<NextHop>),
}

/// One host of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Where.
    pub host: HostSpec,
    /// Its port.
    pub port: u16,
}

/// A host by address or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostSpec {
    /// As given.
    Address(IpAddr),
    /// Looked up (A and AAAA, no MX).
    Name(Box<str>),
}

/// What a site tolerates, over all shards together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteLimits {
    /// Connections at a time.
    pub connections: u32,
    /// Connections opened: so many in each period; none: no limit.
    pub connection_rate: Option<Rate>,
    /// Messages a connection carries before it is closed; none: no limit.
    pub messages_per_connection: Option<u32>,
    /// Transactions begun: so many in each period; none: no limit.
    pub rate: Option<Rate>,
    /// Recipients in one transaction.
    pub recipients_per_transaction: usize,
}

/// So many in each period (GCRA: evenly spaced, with bursts of at most `burst`).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In which time.
    pub period: Duration,
    /// How many may come at once.
    pub burst: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_labels_only() {
        let below = DomainPattern::Below(vec!["example.com".into()]);
        assert!(below.fits("a.example.com"));
        assert!(!below.fits("example.com") && !below.fits("badexample.com") && !below.fits(".example.com"));
        assert!(DomainPattern::Exact(vec!["example.com".into()]).fits("example.com"));
    }
}
