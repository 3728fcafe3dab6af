//! The sections of the configuration file as types: each key, its unit and its default. docs/CONFIGURATION.md says
//! the same for operators, and a test compares the keys. What keys mean together is checked in check.rs.

use super::AcmeSection;
use super::outbound_tls::{TlsOptions, TlsUseKey};
use super::read::{self, DomainRule, HelloCheck, NameServer};
use crate::control::log::{LogFormat, LogLevel};
use crate::shard::settings::{NextHop, Rate};
use crate::smtp::sasl::Mechanism;
use crate::smtp::server::BareNewlines;
use ipnet::IpNet;
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

/// `[spool]`: where accepted mail is kept.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolSection {
    /// The directory; made with mode 0700 when missing.
    pub dir: PathBuf,
    /// Octets of one log segment.
    #[serde(deserialize_with = "read::size")]
    pub segment_size: u64,
    /// Prepared segments in reserve, for each shard.
    pub spares: usize,
    /// Octets of incoming content held in memory, for each shard; beyond it content goes to files at once.
    #[serde(deserialize_with = "read::size")]
    pub content_memory: u64,
    /// Content longer than this goes to a file of its own.
    #[serde(deserialize_with = "read::size")]
    pub spill_above: u64,
    /// Octets of committed content kept in memory for the first attempt, for each shard.
    #[serde(deserialize_with = "read::size")]
    pub retained_content: u64,
}

impl Default for SpoolSection {
    fn default() -> SpoolSection {
        SpoolSection {
            dir: PathBuf::from("/var/spool/ringpost"),
            segment_size: 64 << 20,
            spares: 2,
            content_memory: 64 << 20,
            spill_above: 256 << 10,
            retained_content: 8 << 20,
        }
    }
}

/// What a listener is for.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerKind {
    /// Mail from other servers and from trusted senders, kept as it comes (RFC 5321).
    #[default]
    Relay,
    /// Mail from people's and programs' mail software, completed with Date and Message-ID (RFC 6409).
    Submission,
}

/// How a listener uses TLS.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerTls {
    /// Not at all.
    None,
    /// Offered by STARTTLS.
    #[default]
    Starttls,
    /// From the first octet.
    Implicit,
}

/// What a listener asks of its clients' certificates.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// Nothing.
    #[default]
    None,
    /// Clients may show one; one that proves nothing is as none.
    Request,
    /// A client without a good one is turned away.
    Require,
}

/// What a listener does with a bare CR or LF in content.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BareNewlinesKey {
    /// The message is refused (550 5.6.11).
    Refuse,
    /// It becomes CRLF.
    Convert,
}

impl From<BareNewlinesKey> for BareNewlines {
    fn from(key: BareNewlinesKey) -> BareNewlines {
        match key {
            BareNewlinesKey::Refuse => BareNewlines::Refuse,
            BareNewlinesKey::Convert => BareNewlines::Convert,
        }
    }
}

/// `[[listener]]`: where mail comes in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerSection {
    /// One address with port, or several.
    #[serde(deserialize_with = "read::many")]
    pub address: Vec<SocketAddr>,
    /// What it is for.
    #[serde(default)]
    pub kind: ListenerKind,
    /// How it uses TLS.
    #[serde(default)]
    pub tls: ListenerTls,
    /// The tenant of what comes in here.
    #[serde(default = "default_tenant")]
    pub tenant: String,
    /// A header that names the tenant instead.
    #[serde(default)]
    pub tenant_header: Option<String>,
    /// Whether each connection begins with a PROXY header (v1 or v2). Then nobody else may reach this port.
    #[serde(default)]
    pub proxy: bool,
    /// By default `refuse` on relay and `convert` on submission listeners.
    #[serde(default)]
    pub bare_newlines: Option<BareNewlinesKey>,
    /// Who may relay here.
    #[serde(default, deserialize_with = "read::some_many")]
    pub trusted: Option<Vec<IpNet>>,
    /// How long strangers wait for the greeting, if they do.
    #[serde(default, deserialize_with = "read::some")]
    pub greet_delay: Option<Duration>,
    /// What the names that strangers give with HELO and EHLO must be.
    #[serde(default, deserialize_with = "read::many")]
    pub helo_checks: Vec<HelloCheck>,
    /// Whether clients log in here, under TLS. By default they do on submission and do not on relay listeners.
    #[serde(default)]
    pub auth: Option<bool>,
    /// By which mechanisms, when not by all that can be used.
    #[serde(default, deserialize_with = "read::some_many")]
    pub auth_mechanisms: Option<Vec<Mechanism>>,
    /// Whether clients may log in without TLS: for trials, where only this machine can connect.
    #[serde(default)]
    pub auth_in_clear: bool,
    /// Which content filters see what comes in here, in this order; all when left out.
    #[serde(default, deserialize_with = "read::some_many")]
    pub filters: Option<Vec<String>>,
    /// Whether clients are asked for certificates.
    #[serde(default)]
    pub client_certificates: ClientCertificates,
    /// PEM of the authorities that prove clients.
    #[serde(default)]
    pub client_authorities: Option<PathBuf>,
    /// Octets of one message, when other than `limits.message_size`.
    #[serde(default, deserialize_with = "read::some_size")]
    pub message_size: Option<u64>,
    /// Recipients of one transaction, when other than `limits.recipients`.
    #[serde(default)]
    pub recipients: Option<u32>,
}

impl ListenerSection {
    /// A relay listener with STARTTLS for clients on loopback.
    pub fn new(address: SocketAddr) -> ListenerSection {
        ListenerSection {
            address: vec![address],
            kind: ListenerKind::Relay,
            tls: ListenerTls::Starttls,
            tenant: default_tenant(),
            tenant_header: None,
            proxy: false,
            bare_newlines: None,
            trusted: None,
            greet_delay: None,
            helo_checks: Vec::new(),
            auth: None,
            auth_mechanisms: None,
            auth_in_clear: false,
            filters: None,
            client_certificates: ClientCertificates::None,
            client_authorities: None,
            message_size: None,
            recipients: None,
        }
    }
}

impl ListenerSection {
    /// Whether clients log in here.
    pub fn authentication(&self) -> bool {
        let protected = self.tls != ListenerTls::None || self.auth_in_clear;
        self.auth.unwrap_or(self.kind == ListenerKind::Submission) && protected
    }

    /// The networks that may relay here without a login: on relay listeners those of this machine when none are named.
    pub fn trusted_networks(&self) -> Vec<IpNet> {
        match &self.trusted {
            Some(networks) => networks.clone(),
            None if self.kind == ListenerKind::Submission => Vec::new(),
            None => loopback(),
        }
    }
}

fn default_tenant() -> String {
    "default".into()
}

/// The networks of clients on this machine.
fn loopback() -> Vec<IpNet> {
    let v4 = ipnet::Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8).map(IpNet::V4);
    v4.into_iter().chain([IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST))]).collect()
}

/// `[tls]`: the certificates of all listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSection {
    /// PEM, with the chain. Without any, one is made once, signed by itself, and kept in the spool directory.
    pub certificate: Option<PathBuf>,
    /// PEM.
    pub key: Option<PathBuf>,
    /// Further ones, chosen by the names they prove.
    pub pair: Vec<PairSection>,
    /// One that is ordered and renewed by itself.
    pub acme: Option<AcmeSection>,
}

/// `[[tls.pair]]`: a further certificate, for clients that ask for one of its names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairSection {
    /// PEM, with the chain.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
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

/// `[retry]`: when a deferred recipient is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetrySection {
    /// The wait after the first failed attempt.
    #[serde(deserialize_with = "read::one")]
    pub first: Duration,
    /// Each further wait is this many times the one before.
    pub factor: u32,
    /// No wait is longer than this.
    #[serde(deserialize_with = "read::one")]
    pub max: Duration,
    /// Each wait is longer or shorter by up to this many percent.
    pub jitter: u8,
    /// A recipient that fails an attempt at this age is given up.
    #[serde(deserialize_with = "read::one")]
    pub lifetime: Duration,
    /// At this age the sender is told, once, that a recipient still waits.
    #[serde(deserialize_with = "read::or_never")]
    pub delay_warning: Option<Duration>,
}

impl Default for RetrySection {
    fn default() -> RetrySection {
        RetrySection {
            first: minutes(20),
            factor: 2,
            max: minutes(240),
            jitter: 10,
            lifetime: minutes(5 * 24 * 60),
            delay_warning: Some(minutes(240)),
        }
    }
}

/// `[limits]`: what clients may use.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// Octets of one message, announced by SIZE.
    #[serde(deserialize_with = "read::size")]
    pub message_size: u64,
    /// Messages above this many octets raise a warning.
    #[serde(deserialize_with = "read::size")]
    pub large_message: u64,
    /// Recipients of one transaction.
    pub recipients: u32,
    /// Sessions, for each shard.
    pub sessions: usize,
    /// Sessions of one client address (IPv6: of one /64), for each shard.
    pub sessions_per_client: usize,
    /// Sessions of the clients of one network (IPv4 /24, IPv6 /48), for each shard.
    pub sessions_per_network: usize,
    /// How often one client may connect, over all shards.
    #[serde(deserialize_with = "read::connection_rate")]
    pub connections_per_client: Option<Rate>,
    /// How often the clients of one network may connect, over all shards.
    #[serde(deserialize_with = "read::connection_rate")]
    pub connections_per_network: Option<Rate>,
    /// Connections to destinations, for each shard.
    pub outgoing: usize,
    /// Whether clients on loopback have no limit of their own.
    pub loopback_exempt: bool,
    /// Commands in one session.
    pub commands: u32,
    /// Errors in one session.
    pub errors: u32,
    /// Errors in one session after which a stranger's further ones are answered later, if they are.
    pub tarpit_after: Option<u32>,
    /// By how much.
    #[serde(deserialize_with = "read::one")]
    pub tarpit_delay: Duration,
    /// Sessions that may wait so, for each shard.
    pub tarpit_sessions: usize,
    /// Transactions in one session.
    pub transactions: u32,
    /// How long a client may take for a command.
    #[serde(deserialize_with = "read::one")]
    pub command_timeout: Duration,
    /// How long a client may take for a block of content.
    #[serde(deserialize_with = "read::one")]
    pub data_timeout: Duration,
    /// How long a client may take for a whole message.
    #[serde(deserialize_with = "read::one")]
    pub message_timeout: Duration,
    /// A message with more Received headers goes round in a loop.
    pub received_headers: u32,
}

impl Default for LimitsSection {
    fn default() -> LimitsSection {
        LimitsSection {
            message_size: 50 << 20,
            large_message: 25_000_000,
            recipients: 1_000,
            sessions: 10_000,
            sessions_per_client: 50,
            sessions_per_network: 500,
            connections_per_client: Some(Rate { count: 3_000, period: minutes(1), burst: 1_000 }),
            connections_per_network: Some(Rate { count: 12_000, period: minutes(1), burst: 4_000 }),
            outgoing: 10_000,
            loopback_exempt: false,
            commands: 1_000_000,
            errors: 20,
            tarpit_after: None,
            tarpit_delay: Duration::from_secs(5),
            tarpit_sessions: 100,
            transactions: 100_000,
            command_timeout: minutes(5),
            data_timeout: minutes(3),
            message_timeout: minutes(30),
            received_headers: 100,
        }
    }
}

/// `[admin]`: how operators and monitoring reach the program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSection {
    /// The Unix socket of the admin interface; `control.sock` in the spool directory when left out.
    pub socket: Option<PathBuf>,
    /// A loopback address and port for metrics and health.
    #[serde(deserialize_with = "read::some")]
    pub metrics: Option<SocketAddr>,
}

/// `[process]`: what the process may do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessSection {
    /// The user that root becomes once its ports are bound; `ringpost`, where there is one, when left out.
    pub user: Option<String>,
    /// Whether the process restricts itself to the files it needs.
    pub landlock: bool,
    /// Further files and directories that stay readable then.
    pub readable: Vec<PathBuf>,
    /// Whether memory may be dumped and debugged.
    pub core_dumps: bool,
}

impl Default for ProcessSection {
    fn default() -> ProcessSection {
        ProcessSection { user: None, landlock: true, readable: Vec::new(), core_dumps: false }
    }
}

/// `[log]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSection {
    /// The form.
    pub format: LogFormat,
    /// What is logged.
    pub level: LogLevel,
}

/// `[dns]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DnsSection {
    /// The name servers; those of /etc/resolv.conf when left out.
    #[serde(deserialize_with = "read::many")]
    pub servers: Vec<NameServer>,
    /// The port of those that name none.
    pub port: u16,
    /// How long one question to one server may take.
    #[serde(deserialize_with = "read::one")]
    pub timeout: Duration,
    /// How often a question is asked.
    pub attempts: usize,
    /// Lookups at a time.
    pub concurrency: usize,
}

impl Default for DnsSection {
    fn default() -> DnsSection {
        DnsSection { servers: Vec::new(), port: 53, timeout: Duration::from_secs(3), attempts: 2, concurrency: 256 }
    }
}

/// `[sandbox]`: the built-in destination that sends nothing on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxSection {
    /// Whether it runs. Without any `[[route]]` all mail goes to it then.
    pub enabled: bool,
    /// Its address; port 0 is any free one.
    #[serde(deserialize_with = "read::one")]
    pub listen: SocketAddr,
    /// How many messages it keeps.
    pub keep: usize,
}

impl Default for SandboxSection {
    fn default() -> SandboxSection {
        SandboxSection { enabled: false, listen: SocketAddr::from(([127, 0, 0, 1], 0)), keep: 1_000 }
    }
}
