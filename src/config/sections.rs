//! The sections of the configuration file as types: each key, its unit and its default. docs/CONFIGURATION.md says
//! the same for operators, and a test compares the keys. What keys mean together is checked in check.rs.

use super::AcmeSection;
use super::read::{self, NameServer};
use crate::control::log::{LogFormat, LogLevel};
use crate::shard::settings::Rate;
use serde::Deserialize;
use std::net::SocketAddr;
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
