//! What the keys of a configuration must satisfy together. All of it in one place, so that an operator's mistake is
//! found before anything starts, and told with its line.

use super::OauthSection;
use super::error::{ConfigError, Place};
use super::filter;
use super::listener;
use super::read::DomainRule;
use super::route::{RouteSection, TargetKey};
use super::{Config, text};
use crate::control::oauth::TokenSource;
use crate::limits::{CERTIFICATES_MAX, MAX_SPILLED_CONTENT, QUEUE_RECIPIENTS_MAX, RETRY_WAIT_MIN};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// A mistake, by the path of its key as in "route[1].rate".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    path: String,
    message: String,
    hint: String,
}

impl Problem {
    /// At the key with this path.
    pub fn new(path: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem { path: path.into(), message: message.into(), hint: hint.into() }
    }

    /// With the place of the key in the text it came from.
    pub fn locate(self, text: &str) -> ConfigError {
        let place = span_of(text, &self.path).map(|span| Place::of(text, span));
        ConfigError { place, ..self.without_place() }
    }

    /// For a configuration that came from flags.
    pub fn without_place(self) -> ConfigError {
        ConfigError::new(format!("{}: {}", self.path, self.message)).with_hint(self.hint)
    }
}

/// Where the value of this path stands; of its nearest parent when it was left out.
fn span_of(text: &str, path: &str) -> Option<std::ops::Range<usize>> {
    let root = DeTable::parse(text).ok()?;
    let mut span = None;
    let mut here: Option<DeValue<'_>> = Some(DeValue::Table(root.into_inner()));
    for part in path.split(['.', '[']).map(|part| part.trim_end_matches(']')) {
        let value = here.as_ref()?;
        let found = match part.parse::<usize>() {
            Ok(index) => value.get(index),
            Err(_) => value.get(part),
        };
        match found {
            Some(found) => {
                span = Some(found.span());
                here = Some(found.get_ref().clone());
            }
            None => break,
        }
    }
    span
}

/// Longer, a shard with little work would hardly ever sleep.
const BUSY_POLL_MAX: Duration = Duration::from_millis(100);

/// Rates above one connection in this time are no limit to speak of.
const CONNECTION_SPACING_MIN: Duration = Duration::from_millis(1);

/// Checks everything.
pub fn check(config: &Config) -> Result<(), Problem> {
    check_top(config)?;
    check_spool(config)?;
    check_listeners(config)?;
    check_routes(config)?;
    check_retry(config)?;
    check_limits(config)?;
    check_oauth(config.oauth.as_ref())?;
    filter::check_filters(config)?;
    config.suppression.check()?;
    super::acme::check(config)?;
    super::outbound_tls::check(config)?;
    check_rest(config)
}

fn check_top(config: &Config) -> Result<(), Problem> {
    match config.shards {
        Some(shards) if !(1..=255).contains(&shards) => Err(Problem::new(
            "shards",
            format!("{shards} shards cannot be run"),
            "1 to 255; leave it out for one per CPU",
        )),
        _ => match config.busy_poll {
            Some(time) if time > BUSY_POLL_MAX => Err(Problem::new(
                "busy_poll",
                format!("{} would keep a core busy all the time", text::format_duration(time)),
                "at most 100ms; leave it out unless each microsecond counts",
            )),
            _ => Ok(()),
        },
    }
}

fn check_spool(config: &Config) -> Result<(), Problem> {
    let spool = &config.spool;
    if spool.dir.as_os_str().is_empty() {
        return Err(Problem::new("spool.dir", "a directory is needed", "as in dir = \"/var/spool/ringpost\""));
    }
    if !(1 << 20..=1 << 30).contains(&spool.segment_size) || !spool.segment_size.is_multiple_of(4096) {
        return Err(Problem::new(
            "spool.segment_size",
            format!("{} cannot be used", text::format_size(spool.segment_size)),
            "1MiB to 1GiB, a multiple of 4KiB; 64MiB is the default",
        ));
    }
    if spool.spill_above < 4096 || spool.spill_above > spool.segment_size / 4 {
        return Err(Problem::new(
            "spool.spill_above",
            format!("{} cannot be used", text::format_size(spool.spill_above)),
            format!("4KiB to a quarter of a segment ({})", text::format_size(spool.segment_size / 4)),
        ));
    }
    if !(1..=1024).contains(&spool.spares) {
        return Err(Problem::new(
            "spool.spares",
            format!("{} cannot be used", spool.spares),
            "1 to 1024; 2 is the default",
        ));
    }
    if spool.content_memory < 1 << 20 {
        return Err(Problem::new("spool.content_memory", "less than 1MiB is too little", "64MiB is the default"));
    }
    Ok(())
}

fn check_listeners(config: &Config) -> Result<(), Problem> {
    if config.listener.is_empty() {
        return Err(Problem::new(
            "listener",
            "there is no [[listener]], so no mail could come in",
            "add a section [[listener]] with address = \"127.0.0.1:2525\"",
        ));
    }
    let mut seen: HashMap<SocketAddr, usize> = HashMap::new();
    for (index, listener) in config.listener.iter().enumerate() {
        let at = |key: &str| format!("listener[{index}].{key}");
        listener::check(listener, &at)?;
        for &address in &listener.address {
            if seen.insert(address, index).is_some() {
                return Err(Problem::new(
                    at("address"),
                    format!("{address} is listened on twice"),
                    "each address and port belongs to one listener",
                ));
            }
        }
    }
    Ok(())
}

pub(super) fn check_message_size(size: Option<u64>, path: &str) -> Result<(), Problem> {
    match size {
        Some(size) if !(65_536..=MAX_SPILLED_CONTENT).contains(&size) => Err(Problem::new(
            path,
            format!("{} cannot be used", text::format_size(size)),
            "64KiB (RFC 5321 4.5.3.1.7) to just below 4GiB; 50MiB is the default",
        )),
        _ => Ok(()),
    }
}

pub(super) fn check_recipients(recipients: Option<u32>, path: &str) -> Result<(), Problem> {
    match recipients {
        Some(count) if !(100..=QUEUE_RECIPIENTS_MAX).contains(&(count as usize)) => Err(Problem::new(
            path,
            format!("{count} cannot be used"),
            format!("100 (RFC 5321 4.5.3.1.8) to {QUEUE_RECIPIENTS_MAX}; 1000 is the default"),
        )),
        _ => Ok(()),
    }
}

fn check_routes(config: &Config) -> Result<(), Problem> {
    let mut names: HashMap<&str, usize> = HashMap::new();
    let mut all_taken_by = None;
    for (index, route) in config.route.iter().enumerate() {
        let at = |key: &str| format!("route[{index}].{key}");
        if let Some(earlier) = all_taken_by {
            return Err(Problem::new(
                format!("route[{index}]"),
                "this route is never taken",
                format!("route number {} takes all domains: move this one before it", earlier + 1),
            ));
        }
        if route.domains.contains(&DomainRule::Any) {
            all_taken_by = Some(index);
        }
        if let Some(name) = &route.name {
            if name.is_empty() || name.len() > 128 || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
                return Err(Problem::new(at("name"), "not a route's name", "1 to 128 characters without spaces"));
            }
            if names.insert(name, index).is_some() {
                return Err(Problem::new(
                    at("name"),
                    format!("`{name}` is taken by an earlier route"),
                    "choose another",
                ));
            }
        }
        check_target(config, route, &at)?;
        check_route_limits(route, &at)?;
    }
    Ok(())
}

fn check_target(config: &Config, route: &RouteSection, at: &dyn Fn(&str) -> String) -> Result<(), Problem> {
    if route.domains.is_empty() {
        return Err(Problem::new(at("domains"), "the list is empty", "leave it out, or write \"*\", for all domains"));
    }
    if route.target.is_some() && !route.next_hops.is_empty() {
        return Err(Problem::new(
            at("target"),
            "`target` and `next_hops` exclude each other",
            "keep `next_hops` to send to these hosts, or `target` to send to the domain's own",
        ));
    }
    if route.target == Some(TargetKey::Sandbox) && !config.sandbox.enabled {
        return Err(Problem::new(at("target"), "the sandbox is not enabled", "add [sandbox] with enabled = true"));
    }
    match route.port {
        Some(0) => Err(Problem::new(at("port"), "there is no port 0 to connect to", "25 is the port of SMTP")),
        Some(_) if !route.next_hops.is_empty() || route.target == Some(TargetKey::Sandbox) => Err(Problem::new(
            at("port"),
            "`port` is for hosts found by MX",
            "write the port of a next hop after its name, as in \"smtp.example.net:2525\"",
        )),
        _ => Ok(()),
    }
}

fn check_route_limits(route: &RouteSection, at: &dyn Fn(&str) -> String) -> Result<(), Problem> {
    if route.connections == 0 {
        return Err(Problem::new(
            at("connections"),
            "0 connections deliver nothing",
            "to deliver nothing, use hold = true",
        ));
    }
    if route.messages_per_connection == Some(0) {
        return Err(Problem::new(
            at("messages_per_connection"),
            "0 messages deliver nothing",
            "leave it out for no limit",
        ));
    }
    if !(1..=QUEUE_RECIPIENTS_MAX).contains(&(route.recipients_per_transaction as usize)) {
        return Err(Problem::new(
            at("recipients_per_transaction"),
            format!("{} cannot be used", route.recipients_per_transaction),
            format!("1 to {QUEUE_RECIPIENTS_MAX}; 100 is what every server takes (RFC 5321 4.5.3.1.8)"),
        ));
    }
    let timeouts = &route.timeouts;
    for (key, time) in [
        ("connect_timeout", route.connect_timeout),
        ("timeouts.banner", timeouts.banner),
        ("timeouts.hello", timeouts.hello),
        ("timeouts.mail", timeouts.mail),
        ("timeouts.rcpt", timeouts.rcpt),
        ("timeouts.data", timeouts.data),
        ("timeouts.block", timeouts.block),
        ("timeouts.final_dot", timeouts.final_dot),
    ] {
        at_least_a_second(time, &at(key))?;
    }
    Ok(())
}

fn at_least_a_second(time: Duration, path: &str) -> Result<(), Problem> {
    if time < Duration::from_secs(1) {
        return Err(Problem::new(path, "shorter than a second", "\"1s\" is the least"));
    }
    Ok(())
}

/// Clients wait five minutes for a greeting or a reply (RFC 5321 4.5.3.2), their users less.
const CLIENT_WAIT_MAX: Duration = Duration::from_secs(60);

pub(super) fn at_most_a_minute(time: Duration, path: &str) -> Result<(), Problem> {
    if time > CLIENT_WAIT_MAX {
        return Err(Problem::new(path, "longer than a minute", "good clients may wait for it, too: some seconds do"));
    }
    Ok(())
}

fn check_retry(config: &Config) -> Result<(), Problem> {
    let retry = &config.retry;
    let shown = text::format_duration;
    if retry.first < RETRY_WAIT_MIN {
        return Err(Problem::new("retry.first", "too short", format!("{} is the least", shown(RETRY_WAIT_MIN))));
    }
    if retry.max < retry.first {
        return Err(Problem::new(
            "retry.max",
            format!("{} is less than `first` ({})", shown(retry.max), shown(retry.first)),
            "the longest wait is at least the first one",
        ));
    }
    if !(1..=100).contains(&retry.factor) {
        return Err(Problem::new(
            "retry.factor",
            format!("{} cannot be used", retry.factor),
            "1 (always the same wait) to 100",
        ));
    }
    if retry.jitter > 100 {
        return Err(Problem::new("retry.jitter", format!("{} percent cannot be used", retry.jitter), "0 to 100"));
    }
    if retry.lifetime < retry.first {
        return Err(Problem::new(
            "retry.lifetime",
            format!("{} is less than `first` ({})", shown(retry.lifetime), shown(retry.first)),
            "mail would be given up after its first failure; 5d is the default",
        ));
    }
    if retry.delay_warning.is_some_and(|warning| warning >= retry.lifetime) {
        return Err(Problem::new(
            "retry.delay_warning",
            "the warning would come when the mail is given up already",
            "less than `lifetime`, or \"never\"",
        ));
    }
    Ok(())
}

fn check_limits(config: &Config) -> Result<(), Problem> {
    let limits = &config.limits;
    check_message_size(Some(limits.message_size), "limits.message_size")?;
    check_recipients(Some(limits.recipients), "limits.recipients")?;
    for (key, value) in [
        ("sessions", limits.sessions),
        ("sessions_per_client", limits.sessions_per_client),
        ("sessions_per_network", limits.sessions_per_network),
        ("outgoing", limits.outgoing),
        ("commands", limits.commands as usize),
        ("errors", limits.errors as usize),
        ("transactions", limits.transactions as usize),
        ("received_headers", limits.received_headers as usize),
    ] {
        if value == 0 {
            return Err(Problem::new(
                format!("limits.{key}"),
                "0 would refuse everything",
                "leave it out for the default",
            ));
        }
    }
    for (key, rate) in [
        ("connections_per_client", limits.connections_per_client),
        ("connections_per_network", limits.connections_per_network),
    ] {
        if rate.is_some_and(|rate| rate.period < CONNECTION_SPACING_MIN * rate.count) {
            return Err(Problem::new(
                format!("limits.{key}"),
                "more than a thousand connections in a second",
                "so many are not told apart from no limit: write \"unlimited\"",
            ));
        }
    }
    at_most_a_minute(limits.tarpit_delay, "limits.tarpit_delay")?;
    for (key, time) in [
        ("limits.command_timeout", limits.command_timeout),
        ("limits.data_timeout", limits.data_timeout),
        ("limits.message_timeout", limits.message_timeout),
    ] {
        at_least_a_second(time, key)?;
    }
    Ok(())
}

/// The longest time that clocks may differ: a token must not live much longer than its issuer says.
const LEEWAY_MAX: Duration = Duration::from_secs(600);

fn check_oauth(section: Option<&OauthSection>) -> Result<(), Problem> {
    let Some(oauth) = section else { return Ok(()) };
    for (key, list) in [("issuers", &oauth.issuers), ("audiences", &oauth.audiences)] {
        if list.is_empty() || list.iter().any(String::is_empty) {
            let hint = "else tokens that were made for others could be used here";
            return Err(Problem::new(format!("oauth.{key}"), "is needed, as a text or a list of texts", hint));
        }
    }
    let url = match oauth.source() {
        None => {
            return Err(Problem::new(
                "oauth",
                "it is not said how tokens are checked",
                "either keys = \"https://…/jwks.json\" or a file, or introspection with client_id and client_secret_file",
            ));
        }
        Some(TokenSource::File(_)) => None,
        Some(TokenSource::Url(url)) => Some(("keys", url)),
        Some(TokenSource::Introspection { url, .. }) => Some(("introspection", url)),
    };
    if let Some((key, url)) = url
        && !is_safe_url(&url)
    {
        return Err(Problem::new(
            format!("oauth.{key}"),
            format!("`{url}` is no address of HTTPS"),
            "https://HOST/…; http:// is taken for 127.0.0.1 and [::1] alone",
        ));
    }
    if oauth.algorithms.is_empty() {
        return Err(Problem::new("oauth.algorithms", "the list is empty", "leave it out for the usual ones"));
    }
    if oauth.leeway > LEEWAY_MAX {
        return Err(Problem::new("oauth.leeway", "longer than 10m", "1m is the default"));
    }
    if oauth.claim.is_empty() {
        return Err(Problem::new("oauth.claim", "a claim is needed", "`sub` is the default; `email` is usual too"));
    }
    Ok(())
}

/// Whether what is asked there, and its answer, are protected on the way.
/// Whether nobody on the way can read what is asked there.
pub(super) fn is_safe_url(url: &str) -> bool {
    let Ok(url) = url.parse::<hyper::Uri>() else { return false };
    let loopback = || url.host().is_some_and(|host| ["127.0.0.1", "[::1]"].contains(&host));
    match url.scheme_str() {
        Some("https") => url.host().is_some(),
        Some("http") => loopback(),
        _ => false,
    }
}

fn check_rest(config: &Config) -> Result<(), Problem> {
    match (&config.tls.certificate, &config.tls.key) {
        (Some(_), None) => {
            return Err(Problem::new("tls.certificate", "a certificate without its key", "add key = \"…/key.pem\""));
        }
        (None, Some(_)) => {
            return Err(Problem::new("tls.key", "a key without its certificate", "add certificate = \"…/chain.pem\""));
        }
        _ => {}
    }
    let mut files: Vec<_> = config.tls.certificate.iter().collect();
    for (index, pair) in config.tls.pair.iter().enumerate() {
        if files.contains(&&pair.certificate) {
            let message = format!("{} is named twice", pair.certificate.display());
            return Err(Problem::new(
                format!("tls.pair[{index}].certificate"),
                message,
                "once is enough for all its names",
            ));
        }
        files.push(&pair.certificate);
    }
    if config.tls.pair.len() >= CERTIFICATES_MAX {
        return Err(Problem::new("tls.pair", "too many certificates", format!("fewer than {CERTIFICATES_MAX}")));
    }
    if let Some(metrics) = config.admin.metrics {
        if !metrics.ip().is_loopback() {
            return Err(Problem::new(
                "admin.metrics",
                format!("{metrics} can be reached from elsewhere"),
                "use a loopback address; to publish metrics, put a proxy with access control before it",
            ));
        }
        if metrics.port() == 0 {
            return Err(Problem::new("admin.metrics", "has no port", "as in metrics = \"127.0.0.1:9525\""));
        }
    }
    if config.dns.port == 0 || config.dns.servers.iter().any(|server| server.port == Some(0)) {
        return Err(Problem::new("dns", "there is no port 0 to ask", "53 is the port of DNS"));
    }
    if !(1..=10).contains(&config.dns.attempts) || !(1..=10_000).contains(&config.dns.concurrency) {
        return Err(Problem::new("dns", "out of bounds", "attempts: 1 to 10; concurrency: 1 to 10000"));
    }
    at_least_a_second(config.dns.timeout, "dns.timeout")?;
    if !config.sandbox.listen.ip().is_loopback() {
        return Err(Problem::new(
            "sandbox.listen",
            format!("{} can be reached from elsewhere", config.sandbox.listen),
            "the sandbox takes everything: use a loopback address",
        ));
    }
    if !(1..=100_000).contains(&config.sandbox.keep) {
        return Err(Problem::new("sandbox.keep", format!("{} cannot be used", config.sandbox.keep), "1 to 100000"));
    }
    Ok(())
}
