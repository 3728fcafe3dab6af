//! The flags of `ringpost serve`: each replaces a part of the configuration, so that anyone can run the program
//! without writing a file.

use super::check::check;
use super::error::ConfigError;
use super::listener::{ListenerKind, ListenerSection, ListenerTls};
use super::read::NameServer;
use super::route::{RouteSection, TargetKey};
use super::{Config, RetrySection};
use crate::control::log::LogFormat;
use crate::shard::settings::NextHop;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What was given on the command line; see `ringpost serve --help`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--hostname`
    pub hostname: Option<Box<str>>,
    /// `--spool`
    pub spool: Option<PathBuf>,
    /// `--listen`: instead of the configured listeners.
    pub listen: Vec<SocketAddr>,
    /// `--submission`: with STARTTLS, besides `--listen` or instead of the configured listeners.
    pub submission: Vec<SocketAddr>,
    /// `--submissions`: under TLS from the start, likewise.
    pub submissions: Vec<SocketAddr>,
    /// `--next-hop`: instead of the configured routes.
    pub next_hops: Vec<NextHop>,
    /// `--connections`
    pub connections: Option<u32>,
    /// `--retry`
    pub retry: Option<Duration>,
    /// `--hold`
    pub hold: bool,
    /// `--shards`
    pub shards: Option<u16>,
    /// `--resolver`
    pub resolver: Option<NameServer>,
    /// `--delivery-port`
    pub delivery_port: Option<u16>,
    /// `--log-format`
    pub log_format: Option<LogFormat>,
    /// `--metrics`
    pub metrics: Option<SocketAddr>,
    /// `--no-metrics`
    pub no_metrics: bool,
    /// `--admin-socket`
    pub admin_socket: Option<PathBuf>,
    /// `--user`
    pub user: Option<String>,
}

impl Overrides {
    /// Whether nothing was given.
    pub fn is_empty(&self) -> bool {
        *self == Overrides::default()
    }

    /// The configuration with these parts replaced, checked again.
    pub fn apply(mut self, mut config: Config) -> Result<Config, ConfigError> {
        // It replaces no part of what the relay does, so that clients' limits stay as they are.
        config.process.user = self.user.take().or(config.process.user);
        if self.is_empty() {
            return Ok(config);
        }
        // Whoever measures from this machine must not meet the limits that keep strangers in check.
        config.limits.loopback_exempt = true;
        let submission = |tls| {
            move |address| ListenerSection { kind: ListenerKind::Submission, tls, ..ListenerSection::new(address) }
        };
        let listeners: Vec<ListenerSection> = (self.listen.into_iter().map(ListenerSection::new))
            .chain(self.submission.into_iter().map(submission(ListenerTls::Starttls)))
            .chain(self.submissions.into_iter().map(submission(ListenerTls::Implicit)))
            .collect();
        if !listeners.is_empty() {
            config.listener = listeners;
        }
        let direct = self.resolver.is_some() || self.delivery_port.is_some();
        if !self.next_hops.is_empty() {
            config.route = vec![RouteSection {
                next_hops: self.next_hops,
                connections: self.connections.unwrap_or(20),
                ..RouteSection::default()
            }];
        } else if direct {
            config.route = vec![RouteSection {
                target: Some(TargetKey::Mx),
                port: self.delivery_port,
                connections: self.connections.unwrap_or(20),
                ..RouteSection::default()
            }];
        } else if let Some(connections) = self.connections {
            config.route = super::settings::complete_routes(&config);
            for route in &mut config.route {
                route.connections = connections;
            }
        }
        if let Some(server) = self.resolver {
            config.dns.servers = vec![server];
        }
        if let Some(wait) = self.retry {
            let lifetime = config.retry.lifetime.max(wait);
            let warning = config.retry.delay_warning.filter(|warning| *warning < lifetime);
            config.retry =
                RetrySection { first: wait, factor: 1, max: wait, jitter: 0, lifetime, delay_warning: warning };
        }
        config.hold |= self.hold;
        config.hostname = self.hostname.or(config.hostname);
        config.shards = self.shards.or(config.shards);
        if let Some(dir) = self.spool {
            config.spool.dir = dir;
        }
        config.log.format = self.log_format.unwrap_or(config.log.format);
        config.admin.socket = self.admin_socket.or(config.admin.socket);
        config.admin.metrics = if self.no_metrics { None } else { self.metrics.or(config.admin.metrics) };
        check(&config).map_err(|problem| problem.without_place())?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::settings::HostSpec;

    fn hop(port: u16) -> NextHop {
        NextHop { host: HostSpec::Address([127, 0, 0, 1].into()), port }
    }

    #[test]
    fn a_pool_replaces_all_routes_and_lifts_loopback_limits() {
        let overrides = Overrides {
            next_hops: vec![hop(2601), hop(2602)],
            listen: vec!["127.0.0.1:2501".parse().unwrap()],
            retry: Some(Duration::from_secs(1)),
            ..Overrides::default()
        };
        let config = overrides.apply(Config::embedded().unwrap()).unwrap();
        assert_eq!(config.route.len(), 1);
        assert_eq!(config.route[0].connections, 20);
        assert_eq!((config.route[0].rate, config.route[0].messages_per_connection), (None, None));
        assert!(config.limits.loopback_exempt);
        assert_eq!(
            (config.retry.first, config.retry.max, config.retry.jitter),
            (Duration::from_secs(1), Duration::from_secs(1), 0)
        );
        assert_eq!(config.listener[0].address[0].port(), 2501);
    }

    #[test]
    fn a_resolver_means_direct_delivery() {
        let overrides = Overrides {
            resolver: Some(NameServer { address: [127, 0, 0, 1].into(), port: Some(5353) }),
            delivery_port: Some(2626),
            ..Overrides::default()
        };
        let config = overrides.apply(Config::embedded().unwrap()).unwrap();
        assert_eq!(config.route[0].target, Some(TargetKey::Mx));
        assert_eq!(config.route[0].port, Some(2626));
        assert_eq!(config.dns.servers[0].port, Some(5353));
    }

    #[test]
    fn what_flags_break_is_told() {
        let overrides = Overrides { shards: Some(0), ..Overrides::default() };
        let error = overrides.apply(Config::embedded().unwrap()).unwrap_err();
        assert!(error.to_string().starts_with("shards: 0 shards"), "{error}");
    }
}
