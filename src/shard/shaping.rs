//! What destinations tolerate: by the provider that a site's mail hosts belong to, and by domain. Pure data and look-ups;
//! where it is written is src/config/shaping.rs.
//!
//! What holds for a site is laid over each other: its route, the default, its provider, its domain; the later says more. A
//! domain with an entry of its own is a site of its own. Shared limits span all sites whose entries name them.

use crate::io::dns::MxHost;
use crate::policy::outbound_tls::{TlsLevel, TlsRule};
use crate::shard::settings::{DomainPattern, Rate, Route, SiteLimits};
use crate::smtp::client::{ClientConfig, ClientTimeouts};
use std::sync::Arc;
use std::time::Duration;

/// All that is known of providers and domains.
#[derive(Debug, Default)]
pub struct Shaping {
    /// For every site of a route that is shaped.
    pub default: Tolerance,
    /// In the order of their names.
    pub providers: Vec<Provider>,
    /// The first that fits is taken.
    pub domains: Vec<DomainEntry>,
    /// The limits that span sites; entries name them by their places here.
    pub limits: Vec<LimitSpec>,
}

/// One provider.
#[derive(Debug)]
pub struct Provider {
    /// As people read it.
    pub name: Box<str>,
    /// A site is this provider's when all its mail hosts fit.
    pub hosts: DomainPattern,
    /// Or when it is the site of one of these domains.
    pub domains: DomainPattern,
    /// What it tolerates.
    pub tolerance: Tolerance,
}

/// Domains with terms of their own.
#[derive(Debug)]
pub struct DomainEntry {
    /// Which.
    pub domains: DomainPattern,
    /// What they tolerate.
    pub tolerance: Tolerance,
}

/// A limit over all sites that name it, for all shards together.
#[derive(Debug)]
pub struct LimitSpec {
    /// As people read it.
    pub name: Box<str>,
    /// Connections at a time.
    pub connections: Option<u32>,
    /// Connections opened in a time.
    pub connection_rate: Option<Rate>,
    /// Transactions begun in a time.
    pub rate: Option<Rate>,
}

/// What is said of one destination; what is not said stays as it was.
#[derive(Clone, Debug, Default)]
pub struct Tolerance {
    /// Connections at a time.
    pub connections: Option<u32>,
    /// Connections opened in a time; `Some(None)`: as many as wanted.
    pub connection_rate: Option<Option<Rate>>,
    /// Transactions begun in a time.
    pub rate: Option<Option<Rate>>,
    /// Messages that a connection carries.
    pub messages_per_connection: Option<Option<u32>>,
    /// Recipients in one transaction.
    pub recipients_per_transaction: Option<usize>,
    /// How TLS is used.
    pub tls: Option<TlsLevel>,
    /// After how long a connection attempt counts as failed.
    pub connect_timeout: Option<Duration>,
    /// How long an unused connection is kept.
    pub idle_timeout: Option<Duration>,
    /// How long to wait for the peer.
    pub timeouts: Timeouts,
    /// Whether limits follow what the provider says.
    pub adapt: Option<bool>,
    /// Places of limits that span sites.
    pub limits: Vec<u32>,
}

/// Those of [`ClientTimeouts`] that are said.
#[derive(Clone, Debug, Default)]
pub struct Timeouts {
    /// The greeting.
    pub banner: Option<Duration>,
    /// The reply to EHLO; STARTTLS and its handshake.
    pub hello: Option<Duration>,
    /// The reply to MAIL.
    pub mail: Option<Duration>,
    /// Each reply to RCPT.
    pub rcpt: Option<Duration>,
    /// The 354 to DATA.
    pub data: Option<Duration>,
    /// Each block of content.
    pub block: Option<Duration>,
    /// The reply to the end of the content.
    pub final_dot: Option<Duration>,
}

/// Which entries fit a site.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Entries {
    /// Place of its provider.
    pub provider: Option<u32>,
    /// Place of its domain's own entry.
    pub domain: Option<u32>,
}

/// What holds for a site, complete.
#[derive(Debug)]
pub struct Shape {
    /// The provider, if it is a known one.
    pub provider: Option<Box<str>>,
    /// Its own limits.
    pub limits: SiteLimits,
    /// How TLS is used.
    pub tls: TlsRule,
    /// How connections speak.
    pub client: Arc<ClientConfig>,
    /// After how long a connection attempt counts as failed.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// Whether its limits follow what the provider says.
    pub adapt: bool,
    /// Places of the limits that it shares with other sites, each once.
    pub shared: Vec<u32>,
}

impl Shaping {
    /// What fits the mail hosts of this domain.
    pub fn entries_of(&self, domain: &str, hosts: &[MxHost]) -> Entries {
        let is_of = |provider: &Provider| {
            provider.domains.fits(domain)
                || (!hosts.is_empty() && hosts.iter().all(|host| provider.hosts.fits(&host.name)))
        };
        let place = |found: Option<usize>| found.map(|place| place as u32);
        Entries {
            provider: place(self.providers.iter().position(is_of)),
            domain: place(self.domains.iter().position(|entry| entry.domains.fits(domain))),
        }
    }

    /// What holds for a site of this route with these entries.
    pub fn shape(&self, route: &Route, entries: Entries) -> Shape {
        let mut shape = Shape::of_route(route);
        if !route.shaped {
            return shape;
        }
        let provider = entries.provider.and_then(|place| self.providers.get(place as usize));
        let domain = entries.domain.and_then(|place| self.domains.get(place as usize));
        shape.lay_over(&self.default);
        if let Some(provider) = provider {
            shape.provider = Some(provider.name.clone());
            shape.lay_over(&provider.tolerance);
        }
        if let Some(entry) = domain {
            shape.lay_over(&entry.tolerance);
        }
        shape
    }
}

impl Shape {
    /// What a route says for itself.
    pub fn of_route(route: &Route) -> Shape {
        Shape {
            provider: None,
            limits: route.limits.clone(),
            tls: route.tls.clone(),
            client: Arc::clone(&route.client),
            connect_timeout: route.connect_timeout,
            idle_timeout: route.idle_timeout,
            adapt: route.adapt,
            shared: Vec::new(),
        }
    }

    fn lay_over(&mut self, said: &Tolerance) {
        let limits = &mut self.limits;
        limits.connections = said.connections.unwrap_or(limits.connections);
        limits.connection_rate = said.connection_rate.unwrap_or(limits.connection_rate);
        limits.rate = said.rate.unwrap_or(limits.rate);
        limits.messages_per_connection = said.messages_per_connection.unwrap_or(limits.messages_per_connection);
        limits.recipients_per_transaction =
            said.recipients_per_transaction.unwrap_or(limits.recipients_per_transaction);
        self.connect_timeout = said.connect_timeout.unwrap_or(self.connect_timeout);
        self.idle_timeout = said.idle_timeout.unwrap_or(self.idle_timeout);
        self.adapt = said.adapt.unwrap_or(self.adapt);
        for place in &said.limits {
            if !self.shared.contains(place) {
                self.shared.push(*place);
            }
        }
        let (old, said_times) = (self.client.timeouts, &said.timeouts);
        let timeouts = ClientTimeouts {
            banner: said_times.banner.unwrap_or(old.banner),
            hello: said_times.hello.unwrap_or(old.hello),
            mail: said_times.mail.unwrap_or(old.mail),
            rcpt: said_times.rcpt.unwrap_or(old.rcpt),
            data: said_times.data.unwrap_or(old.data),
            block: said_times.block.unwrap_or(old.block),
            final_dot: said_times.final_dot.unwrap_or(old.final_dot),
            ..old
        };
        // Whoever wants proof is not content with encryption.
        let weaker = self.tls.level == TlsLevel::Verified && said.tls == Some(TlsLevel::Required);
        if let Some(level) = said.tls.filter(|_| !weaker) {
            self.tls.level = level;
        }
        let tls = self.tls.tls_use();
        if timeouts != old || tls != self.client.tls {
            self.client = Arc::new(ClientConfig { tls, timeouts, ..(*self.client).clone() });
        }
    }
}

#[cfg(test)]
impl Shape {
    /// These limits, and nothing out of the ordinary.
    pub(crate) fn plain(limits: SiteLimits) -> Shape {
        let client = ClientConfig {
            ehlo_name: "relay.test".into(),
            tls: crate::smtp::client::TlsUse::Never,
            assume_8bitmime: false,
            chunking: true,
            pipelining: true,
            pipelined_messages: true,
            timeouts: ClientTimeouts::default(),
        };
        Shape {
            provider: None,
            limits,
            tls: TlsRule::of(TlsLevel::Never),
            client: Arc::new(client),
            connect_timeout: Duration::from_secs(4),
            idle_timeout: Duration::from_secs(15),
            adapt: true,
            shared: Vec::new(),
        }
    }
}
