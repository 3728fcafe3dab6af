//! The configuration: a TOML file, read strictly, checked as a whole, and turned into what shards use.
//!
//! - sections.rs: the keys and their defaults; text.rs, read.rs: how single values are written.
//! - acme.rs, classification.rs, filter.rs, listener.rs, oauth.rs, route.rs, shaping.rs: the sections of one matter each.
//! - check.rs: what the keys must satisfy together, in one place.
//! - overrides.rs: the flags of `ringpost serve`.
//! - settings.rs: from here to [`shard::settings`](crate::shard::settings).
//!
//! It fails with a [`ConfigError`] that shows file, line, column, the line itself and a hint; nothing is ignored in
//! silence. What needs the machine (free ports, readable certificates) is found out at the start, in src/server.rs.

pub mod acme;
pub mod check;
pub mod classification;
pub mod error;
pub mod filter;
pub mod listener;
pub mod oauth;
pub mod outbound_tls;
pub mod overrides;
pub mod read;
pub mod route;
pub mod sections;
pub mod settings;
pub mod shaping;
pub mod suppression;
pub mod text;

pub use crate::control::log::{LogFormat, LogLevel};
pub use acme::AcmeSection;
pub use check::Problem;
pub use classification::ClassificationSection;
pub use error::ConfigError;
pub use filter::FilterSection;
pub use listener::{BareNewlinesKey, ClientCertificates, ListenerKind, ListenerSection, ListenerTls};
pub use oauth::OauthSection;
pub use outbound_tls::OutboundTlsSection;
pub use overrides::Overrides;
pub use route::{RouteSection, TargetKey};
pub use sections::{
    AdminSection, DnsSection, LimitsSection, LogSection, PairSection, ProcessSection, RetrySection, SandboxSection,
    SpoolSection, TlsSection,
};
pub use shaping::ShapingSection;

pub use suppression::{AtRecipient, SuppressionSection};

use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The configuration of `ringpost serve` without `--config`.
const EMBEDDED: &str = include_str!("config/embedded.toml");

/// Octets of a configuration file, at most: more is some other file.
pub const CONFIG_OCTETS_MAX: u64 = 4 << 20;

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The name in greetings, Received headers and notifications; this machine's when left out.
    #[serde(deserialize_with = "read::some_domain")]
    pub hostname: Option<Box<str>>,
    /// How many shards; one for each CPU that the process may use when left out.
    pub shards: Option<u16>,
    /// How long a shard without work looks for more before it sleeps; not at all when left out.
    #[serde(deserialize_with = "read::some")]
    pub busy_poll: Option<Duration>,
    /// Accept, deliver nothing.
    pub hold: bool,
    /// Where accepted mail is kept.
    pub spool: SpoolSection,
    /// Where mail comes in.
    pub listener: Vec<ListenerSection>,
    /// The certificates of the listeners.
    pub tls: TlsSection,
    /// `[oauth]`
    pub oauth: Option<OauthSection>,
    /// `[[filter]]`: what sees mail before it is taken.
    pub filter: Vec<FilterSection>,
    /// Where mail goes: the first that fits a recipient's domain is taken.
    pub route: Vec<RouteSection>,
    /// What providers and domains tolerate.
    pub shaping: ShapingSection,
    /// What the replies of destinations mean.
    pub classification: ClassificationSection,
    /// TLS of all deliveries.
    pub outbound_tls: OutboundTlsSection,
    /// When it is tried again.
    pub retry: RetrySection,
    /// To whom nothing is sent any more.
    pub suppression: SuppressionSection,
    /// What clients may use.
    pub limits: LimitsSection,
    /// How operators reach the program.
    pub admin: AdminSection,
    /// What the process may do.
    pub process: ProcessSection,
    /// Log lines.
    pub log: LogSection,
    /// Name servers.
    pub dns: DnsSection,
    /// The built-in destination.
    pub sandbox: SandboxSection,
}

impl Config {
    /// Reads and checks a text.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        let mut config: Config = toml::from_str(text).map_err(|error| ConfigError::from_toml(text, &error))?;
        check::check(&config).map_err(|problem| problem.locate(text))?;
        config.shaping.load()?;
        Ok(config)
    }

    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        // An error of a file that this one names is that one's.
        Config::parse(&Config::read(file)?)
            .map_err(|error| if error.file.is_none() { error.in_file(file) } else { error })
    }

    /// A mistake that came up later, with its place in the file that was loaded.
    pub fn locate(file: &Path, problem: Problem) -> ConfigError {
        match Config::read(file) {
            Ok(text) => problem.locate(&text).in_file(file),
            Err(_) => problem.without_place().in_file(file),
        }
    }

    pub(crate) fn read(file: &Path) -> Result<String, ConfigError> {
        let trouble = |error: &std::io::Error| {
            ConfigError::new(format!("the configuration cannot be read: {error}"))
                .in_file(file)
                .with_hint("give the path of a TOML file that this user may read")
        };
        let length = std::fs::metadata(file).map_err(|error| trouble(&error))?.len();
        if length > CONFIG_OCTETS_MAX {
            return Err(ConfigError::new(format!("{length} octets are too many for a configuration")).in_file(file));
        }
        std::fs::read_to_string(file).map_err(|error| trouble(&error))
    }

    /// What runs without a file: a listener on loopback, everything goes to the sandbox.
    pub fn embedded() -> Result<Config, ConfigError> {
        Config::parse(EMBEDDED)
    }

    /// The hostname to use: as configured, or this machine's, or "localhost".
    pub fn effective_hostname(&self) -> Box<str> {
        self.hostname.clone().unwrap_or_else(|| {
            std::fs::read_to_string("/proc/sys/kernel/hostname")
                .ok()
                .and_then(|name| text::parse_domain(name.trim()).ok())
                .unwrap_or_else(|| "localhost".into())
        })
    }

    /// How many shards to run.
    pub fn effective_shards(&self) -> u8 {
        let wanted = match self.shards {
            Some(shards) => usize::from(shards),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        // A shard's number has one octet, and 255 shards are more than any machine of today needs.
        wanted.clamp(1, usize::from(u8::MAX)) as u8
    }

    /// The path of the admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.admin.socket.clone().unwrap_or_else(|| self.spool.dir.join("control.sock"))
    }

    /// What `check-config` prints: the parts that matter, a line each.
    pub fn summary(&self) -> String {
        let mut lines = vec![
            format!("hostname   {}", self.effective_hostname()),
            format!("spool      {}", self.spool.dir.display()),
            format!("shards     {}", self.effective_shards()),
        ];
        for listener in &self.listener {
            let addresses: Vec<String> = listener.address.iter().map(ToString::to_string).collect();
            let tls = match listener.tls {
                ListenerTls::None => "no TLS",
                ListenerTls::Starttls => "STARTTLS",
                ListenerTls::Implicit => "TLS",
            };
            let kind = match listener.kind {
                ListenerKind::Relay => "relay",
                ListenerKind::Submission => "submission",
            };
            let mut relays: Vec<String> = listener.trusted_networks().iter().map(ToString::to_string).collect();
            if listener.authentication() {
                relays.push("those who log in".into());
            }
            let clients = match listener.client_certificates {
                ClientCertificates::None => "",
                ClientCertificates::Request => ", asks clients for certificates",
                ClientCertificates::Require => ", for clients with certificates alone",
            };
            lines.push(format!(
                "listener   {} {kind}, {tls}{clients}, relays for {}",
                addresses.join(" "),
                relays.join(" ")
            ));
        }
        let routes = settings::route_plan(self);
        for route in &routes {
            lines.push(format!("route      {route}"));
        }
        lines.push(format!("admin      {}", self.admin_socket().display()));
        if let Some(acme) = &self.tls.acme {
            let names = acme.effective_domains(self.effective_hostname()).join(" ");
            lines.push(format!("ACME       {names}, from {}", acme.directory));
        }
        if let Some(metrics) = self.admin.metrics {
            lines.push(format!("metrics    http://{metrics}/metrics"));
        }
        if self.hold {
            lines.push("hold       mail is accepted and not delivered".into());
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests;
