//! `[[route]]`: where the mail of some domains goes, and how.

use super::outbound_tls::{TlsOptions, TlsUseKey};
use super::read::{self, DomainRule};
use crate::shard::settings::{NextHop, Rate};
use serde::Deserialize;
use std::net::IpAddr;
use std::time::Duration;

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

/// Where a route leads when it names no hosts.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKey {
    /// To the mail hosts of the recipient's domain.
    Mx,
    /// To the built-in sandbox.
    Sandbox,
}

/// `[[route]]`: where the mail of some domains goes, and how.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteSection {
    /// For logs and `status`; made from the target when left out.
    pub name: Option<String>,
    /// Which domains; all when left out.
    #[serde(deserialize_with = "read::many")]
    pub domains: Vec<DomainRule>,
    /// `mx` or `sandbox`; not together with `next_hops`.
    pub target: Option<TargetKey>,
    /// Hosts, in the order in which they are tried.
    #[serde(deserialize_with = "read::many")]
    pub next_hops: Vec<NextHop>,
    /// The port of mail hosts found by MX; 25 when left out.
    pub port: Option<u16>,
    /// Connections at a time to one site, over all shards.
    pub connections: u32,
    /// Transactions to one site in a time, over all shards.
    #[serde(deserialize_with = "read::some")]
    pub rate: Option<Rate>,
    /// Connections opened to one site in a time, over all shards.
    #[serde(deserialize_with = "read::some")]
    pub connection_rate: Option<Rate>,
    /// Messages that one connection carries.
    pub messages_per_connection: Option<u32>,
    /// Recipients in one transaction.
    pub recipients_per_transaction: u32,
    /// The local address to send from.
    #[serde(deserialize_with = "read::some")]
    pub source: Option<IpAddr>,
    /// The name given in EHLO, when other than `hostname`.
    #[serde(deserialize_with = "read::some_domain")]
    pub ehlo_name: Option<Box<str>>,
    /// How TLS is used.
    pub tls: TlsUseKey,
    /// Send 8-bit content also to hosts that do not offer 8BITMIME.
    pub assume_8bitmime: bool,
    /// Use CHUNKING where offered.
    pub chunking: bool,
    /// Use PIPELINING where offered.
    pub pipelining: bool,
    /// Send the next message's commands behind a content, to hosts that have shown that they take it.
    pub pipelined_messages: bool,
    /// After how long a connection attempt counts as failed.
    #[serde(deserialize_with = "read::one")]
    pub connect_timeout: Duration,
    /// How long an unused connection is kept.
    #[serde(deserialize_with = "read::one")]
    pub idle_timeout: Duration,
    /// How long to wait for the peer, by what is awaited.
    pub timeouts: TimeoutsSection,
    /// More of how TLS is used.
    pub tls_options: TlsOptions,
    /// Whether limits follow what destinations say.
    pub adapt: bool,
    /// Whether the shaping of providers and domains has a say.
    pub shaping: bool,
}

impl Default for RouteSection {
    fn default() -> RouteSection {
        RouteSection {
            name: None,
            domains: vec![DomainRule::Any],
            target: None,
            next_hops: Vec::new(),
            port: None,
            connections: 20,
            rate: None,
            connection_rate: None,
            messages_per_connection: None,
            recipients_per_transaction: 100,
            source: None,
            ehlo_name: None,
            tls: TlsUseKey::Opportunistic,
            assume_8bitmime: false,
            chunking: true,
            pipelining: true,
            pipelined_messages: true,
            connect_timeout: Duration::from_secs(4),
            idle_timeout: Duration::from_secs(15),
            timeouts: TimeoutsSection::default(),
            tls_options: TlsOptions::default(),
            adapt: true,
            shaping: true,
        }
    }
}

/// `[route.timeouts]`: RFC 5321 4.5.3.2.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutsSection {
    /// The greeting.
    #[serde(deserialize_with = "read::one")]
    pub banner: Duration,
    /// The reply to EHLO, and STARTTLS with its handshake.
    #[serde(deserialize_with = "read::one")]
    pub hello: Duration,
    /// The reply to MAIL.
    #[serde(deserialize_with = "read::one")]
    pub mail: Duration,
    /// Each reply to RCPT.
    #[serde(deserialize_with = "read::one")]
    pub rcpt: Duration,
    /// The 354 to DATA.
    #[serde(deserialize_with = "read::one")]
    pub data: Duration,
    /// Each block of content.
    #[serde(deserialize_with = "read::one")]
    pub block: Duration,
    /// The reply to the end of the content.
    #[serde(deserialize_with = "read::one")]
    pub final_dot: Duration,
}

impl Default for TimeoutsSection {
    fn default() -> TimeoutsSection {
        TimeoutsSection {
            banner: minutes(5),
            hello: minutes(5),
            mail: minutes(5),
            rcpt: minutes(5),
            data: minutes(2),
            block: minutes(3),
            final_dot: minutes(10),
        }
    }
}
