//! From the configuration to what shards use: complete, and in their types. Nothing is checked here any more.

use super::Config;
use super::filter::filters_of;
use super::listener::{ListenerKind, ListenerSection, ListenerTls};
use super::outbound_tls::{self, ClientSetup};
use super::read::{DomainRule, HelloCheck};
use super::route::{RouteSection, TargetKey};
use super::suppression::AtRecipient;
use crate::policy::classify::Classifier;
use crate::policy::connection_rate::{ConnectionRate, ConnectionRates};
use crate::policy::relay::{self, RelayPolicy};
use crate::queue::retry::RetrySchedule;
use crate::shard::settings::{
    DomainPattern, HostSpec, ListenerSettings, NextHop, Rate, Route, Settings, SiteLimits, Target,
};
use crate::smtp::client::{ClientConfig, ClientTimeouts};
use crate::smtp::sasl::{Mechanism, Mechanisms};
use crate::smtp::server::{BareNewlines, SessionConfig, Strangers, Tarpit};
use std::net::SocketAddr;
use std::sync::Arc;

/// The routes as configured, and after them the one for all other domains: the sandbox when it runs, else MX.
pub fn complete_routes(config: &Config) -> Vec<RouteSection> {
    let mut routes = config.route.clone();
    if !routes.iter().any(|route| route.domains.contains(&DomainRule::Any)) {
        let target = if config.sandbox.enabled { TargetKey::Sandbox } else { TargetKey::Mx };
        routes.push(RouteSection { target: Some(target), ..RouteSection::default() });
    }
    routes
}

/// Whether any route leads to the sandbox.
pub fn needs_sandbox(config: &Config) -> bool {
    complete_routes(config).iter().any(|route| route.target == Some(TargetKey::Sandbox))
}

/// The routes in words, a line each.
pub fn route_plan(config: &Config) -> Vec<String> {
    complete_routes(config).iter().map(|route| format!("{} -> {}", domains_text(route), target_text(route))).collect()
}

fn domains_text(route: &RouteSection) -> String {
    let rules: Vec<String> = route
        .domains
        .iter()
        .map(|rule| match rule {
            DomainRule::Any => "*".to_owned(),
            DomainRule::Exactly(name) => name.to_string(),
            DomainRule::Below(name) => format!(".{name}"),
        })
        .collect();
    rules.join(" ")
}

fn hop_text(hop: &NextHop) -> String {
    match &hop.host {
        HostSpec::Address(address) => SocketAddr::new(*address, hop.port).to_string(),
        HostSpec::Name(name) => format!("{name}:{}", hop.port),
    }
}

fn target_text(route: &RouteSection) -> String {
    if !route.next_hops.is_empty() {
        return route.next_hops.iter().map(hop_text).collect::<Vec<_>>().join(", ");
    }
    match (route.target, route.port) {
        (Some(TargetKey::Sandbox), _) => "the sandbox".into(),
        (_, None) => "the domain's mail hosts".into(),
        (_, Some(port)) => format!("the domain's mail hosts, port {port}"),
    }
}

/// What the shards are told. `sandbox` is where the sandbox listens, when it runs.
pub fn settings(config: &Config, sandbox: Option<SocketAddr>) -> Settings {
    let hostname = config.effective_hostname();
    let limits = &config.limits;
    let setups = outbound_tls::client_setups(config);
    Settings {
        listeners: config.listener.iter().flat_map(|listener| listeners(config, listener, &hostname)).collect(),
        routes: complete_routes(config).iter().map(|section| route(section, &setups, &hostname, sandbox)).collect(),
        shaping: config.shaping.rules(),
        // Those with the operator's rules take its place at the start.
        classifier: Classifier::shipped(),
        refuse_suppressed: config.suppression.at_rcpt == AtRecipient::Refuse,
        bounces_suppress: config.suppression.hard_bounces || config.suppression.soft_bounces > 0,
        schedule: RetrySchedule {
            first: config.retry.first,
            factor: config.retry.factor,
            max: config.retry.max,
            jitter_percent: config.retry.jitter,
            lifetime: config.retry.lifetime,
            delay_warning: config.retry.delay_warning,
        },
        hold: config.hold,
        max_received_headers: limits.received_headers,
        max_sessions: limits.sessions,
        max_sessions_per_client: limits.sessions_per_client,
        max_sessions_per_network: limits.sessions_per_network,
        connection_rates: ConnectionRates::new(
            limits.connections_per_client.map(connection_rate),
            limits.connections_per_network.map(connection_rate),
        ),
        max_tarpitted: limits.tarpit_sessions,
        max_outgoing: limits.outgoing,
        lift_loopback_limits: limits.loopback_exempt,
        content_memory: usize_of(config.spool.content_memory),
        spill_above: usize_of(config.spool.spill_above),
        retained_content: usize_of(config.spool.retained_content),
        large_message: limits.large_message,
        segment_size: u32::try_from(config.spool.segment_size).unwrap_or(u32::MAX),
        spare_segments: config.spool.spares,
        hostname,
    }
}

fn connection_rate(rate: Rate) -> ConnectionRate {
    ConnectionRate { every: rate.period / rate.count.max(1), burst: rate.burst }
}

fn usize_of(octets: u64) -> usize {
    usize::try_from(octets).unwrap_or(usize::MAX)
}

/// The addresses that shards listen on, in the order of [`Settings::listeners`].
pub fn listen_addresses(config: &Config) -> Vec<SocketAddr> {
    config.listener.iter().flat_map(|listener| listener.address.iter().copied()).collect()
}

/// By which mechanisms clients log in at a listener.
fn mechanisms(section: &ListenerSection, tokens: bool) -> Mechanisms {
    let usable = |one: &Mechanism| tokens || !matches!(one, Mechanism::OauthBearer | Mechanism::Xoauth2);
    match &section.auth_mechanisms {
        Some(named) => Mechanisms::of(named.iter().copied().filter(usable)),
        None => Mechanisms::of(Mechanism::ALL.into_iter().filter(usable)),
    }
}

/// One listener for each address of the section.
fn listeners(config: &Config, section: &ListenerSection, hostname: &str) -> Vec<ListenerSettings> {
    let limits = &config.limits;
    let submission = section.kind == ListenerKind::Submission;
    let session = Arc::new(SessionConfig {
        hostname: hostname.into(),
        max_message_size: section.message_size.unwrap_or(limits.message_size),
        starttls: section.tls == ListenerTls::Starttls,
        auth: section.authentication(),
        mechanisms: mechanisms(section, config.oauth.is_some()),
        auth_in_clear: section.auth_in_clear,
        bare_newlines: match section.bare_newlines {
            Some(key) => key.into(),
            None if submission => BareNewlines::Convert,
            None => BareNewlines::Refuse,
        },
        proxy: section.proxy,
        strangers: Strangers {
            greet_delay: section.greet_delay.unwrap_or_default(),
            qualified_hello: section.helo_checks.contains(&HelloCheck::Qualified),
            foreign_hello: section.helo_checks.contains(&HelloCheck::Foreign),
            tarpit: limits.tarpit_after.map(|after| Tarpit { after, delay: limits.tarpit_delay }),
        },
        max_recipients: section.recipients.unwrap_or(limits.recipients),
        max_commands: limits.commands,
        max_errors: limits.errors,
        max_transactions: limits.transactions,
        command_timeout: limits.command_timeout,
        data_timeout: limits.data_timeout,
        message_timeout: limits.message_timeout,
        chunking: true,
        dsn: true,
        smtputf8: true,
        pipelining: true,
    });
    let relay = Arc::new(relay_policy(section));
    let filters = filters_of(config, section);
    section
        .address
        .iter()
        .map(|_| ListenerSettings {
            session: Arc::clone(&session),
            implicit_tls: section.tls == ListenerTls::Implicit,
            relay: Arc::clone(&relay),
            submission,
            tenant: section.tenant.as_str().into(),
            tenant_header: section.tenant_header.as_deref().map(Into::into),
            tenant_subaddress: section.tenant_subaddress,
            required_headers: section.required_headers.iter().map(|name| name.as_str().into()).collect(),
            filters: Arc::clone(&filters),
        })
        .collect()
}

fn relay_policy(section: &ListenerSection) -> RelayPolicy {
    let kind = if section.authentication() { relay::ListenerKind::Submission } else { relay::ListenerKind::Relay };
    RelayPolicy::new(kind, section.trusted_networks(), false)
}

fn route(section: &RouteSection, setups: &[ClientSetup<'_>], hostname: &str, sandbox: Option<SocketAddr>) -> Route {
    let target = if !section.next_hops.is_empty() {
        Target::NextHops(section.next_hops.clone())
    } else if section.target == Some(TargetKey::Sandbox)
        && let Some(address) = sandbox
    {
        Target::NextHops(vec![NextHop { host: HostSpec::Address(address.ip()), port: address.port() }])
    } else {
        Target::Mx { port: section.port.unwrap_or(25) }
    };
    let name = section.name.clone().unwrap_or_else(|| match (section.next_hops.first(), section.target) {
        (Some(hop), _) => hop_text(hop),
        (None, Some(TargetKey::Sandbox)) => "sandbox".into(),
        (None, _) => "mx".into(),
    });
    let timeouts = &section.timeouts;
    let tls = outbound_tls::rule(setups, section.tls, &section.tls_options);
    let client = Arc::new(ClientConfig {
        ehlo_name: section.ehlo_name.clone().unwrap_or_else(|| hostname.into()),
        tls: tls.tls_use(),
        assume_8bitmime: section.assume_8bitmime,
        chunking: section.chunking,
        pipelining: section.pipelining,
        pipelined_messages: section.pipelined_messages,
        timeouts: ClientTimeouts {
            banner: timeouts.banner,
            hello: timeouts.hello,
            mail: timeouts.mail,
            rcpt: timeouts.rcpt,
            data: timeouts.data,
            block: timeouts.block,
            final_dot: timeouts.final_dot,
            ..ClientTimeouts::default()
        },
    });
    Route {
        name: name.into(),
        domains: pattern(&section.domains),
        target,
        limits: SiteLimits {
            connections: section.connections,
            connection_rate: section.connection_rate,
            messages_per_connection: section.messages_per_connection,
            rate: section.rate,
            recipients_per_transaction: section.recipients_per_transaction as usize,
        },
        tls,
        client,
        connect_timeout: section.connect_timeout,
        idle_timeout: section.idle_timeout,
        shaped: section.shaping,
        adapt: section.adapt,
        source: section.source,
    }
}

pub(super) fn pattern(rules: &[DomainRule]) -> DomainPattern {
    let (mut exact, mut below) = (Vec::new(), Vec::new());
    for rule in rules {
        match rule {
            DomainRule::Any => return DomainPattern::All,
            DomainRule::Exactly(name) => exact.push(name.clone()),
            DomainRule::Below(name) => below.push(name.clone()),
        }
    }
    match (exact.is_empty(), below.is_empty()) {
        (_, true) => DomainPattern::Exact(exact),
        (true, false) => DomainPattern::Below(below),
        (false, false) => DomainPattern::Either { exact, below },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_default_delivers_to_the_sandbox() {
        let config = Config::embedded().unwrap();
        let address: SocketAddr = "127.0.0.1:4025".parse().unwrap();
        let settings = settings(&config, Some(address));
        assert_eq!(settings.listeners.len(), 3);
        let auth: Vec<bool> = settings.listeners.iter().map(|listener| listener.session.auth).collect();
        assert_eq!(auth, [false, true, true]);
        assert!(settings.lift_loopback_limits);
        assert_eq!(settings.routes.len(), 1);
        assert_eq!(settings.routes[0].domains, DomainPattern::All);
        let hop = NextHop { host: HostSpec::Address(address.ip()), port: 4025 };
        assert_eq!(settings.routes[0].target, Target::NextHops(vec![hop]));
    }

    #[test]
    fn mixed_domain_rules_stay_one_route() {
        let text = "[[listener]]\naddress = \"127.0.0.1:25\"\n[[route]]\nname = \"a\"\ndomains = [\"x.test\", \".y.test\"]\nnext_hops = \"192.0.2.1:25\"\n";
        let config = Config::parse(text).unwrap();
        let settings = settings(&config, None);
        let names: Vec<&str> = settings.routes.iter().map(|route| &*route.name).collect();
        assert_eq!(names, ["a", "mx"]);
        let domains = &settings.routes[0].domains;
        assert!(
            domains.fits("x.test") && domains.fits("b.y.test") && !domains.fits("y.test") && !domains.fits("a.x.test")
        );
        assert_eq!(route_plan(&config), ["x.test .y.test -> 192.0.2.1:25", "* -> the domain's mail hosts"]);
    }
}
