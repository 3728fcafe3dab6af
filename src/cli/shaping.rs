//! `ringpost shaping`: what is known of providers and domains, as the relay reads it.

use super::Failure;
use super::table::Table;
use crate::config::Config;
use crate::config::settings::settings;
use crate::config::text::{format_duration, format_rate};
use crate::io::dns::MxHost;
use crate::policy::outbound_tls::HostTls;
use crate::shard::settings::{DomainPattern, Route, Settings, Target};
use crate::shard::shaping::{Entries, LimitSpec, Shape};
use crate::smtp::client::TlsUse;
use clap::Args;
use std::io::{self, Write};
use std::path::PathBuf;

/// `ringpost shaping …`
#[derive(Debug, Args)]
pub struct ShapingArgs {
    /// What holds for this domain
    #[arg(long, value_name = "NAME")]
    pub domain: Option<String>,
    /// What holds for these mail hosts; several times for several hosts of one domain
    #[arg(long, value_name = "NAME")]
    pub host: Vec<String>,
    /// The configuration, which names further files
    #[arg(long, value_name = "FILE", env = "RINGPOST_CONFIG")]
    pub config: Option<PathBuf>,
}

/// Shows it.
pub fn run(args: &ShapingArgs) -> Result<u8, Failure> {
    let config = match &args.config {
        Some(file) => Config::load(file)?,
        None => Config::parse("[[listener]]\naddress = \"127.0.0.1:25\"\n")?,
    };
    let settings = settings(&config, None);
    let out = &mut io::stdout().lock();
    if args.domain.is_none() && args.host.is_empty() {
        list(out, &config, &settings)?;
        return Ok(0);
    }
    let domain = args.domain.as_deref().unwrap_or("").to_ascii_lowercase();
    let route = settings.routes.iter().find(|route| route.domains.fits(&domain));
    let Some(route) = route else {
        writeln!(out, "no route takes {domain}")?;
        return Ok(1);
    };
    let named = args.host.iter().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
    let hosts: Vec<MxHost> = named
        .map(|name| MxHost { preference: 0, name: name.into(), addresses: Vec::new(), tls: HostTls::None })
        .collect();
    let by_mx = matches!(route.target, Target::Mx { .. }) && route.shaped;
    let entries = if by_mx { settings.shaping.entries_of(&domain, &hosts) } else { Entries::default() };
    one(out, &settings, route, &settings.shaping.shape(route, entries), entries)?;
    Ok(0)
}

/// The route of mail that no other route names, if it goes by MX.
fn usual_route(settings: &Settings) -> Option<&Route> {
    settings.routes.iter().rev().find(|route| matches!(route.target, Target::Mx { .. }) && route.shaped)
}

fn list(out: &mut dyn Write, config: &Config, settings: &Settings) -> io::Result<()> {
    let Some(route) = usual_route(settings) else {
        return writeln!(out, "no route goes to domains' own mail hosts: nothing is shaped");
    };
    let mut table = Table::new(&["FOR", "MAIL HOSTS OR DOMAINS", "LIMITS", "FROM"]);
    let shaping = &settings.shaping;
    let shown = |entries: Entries| limits_text(&shaping.shape(route, entries), &shaping.limits);
    table.row(&["all others", "", &shown(Entries::default()), ""]);
    for (place, provider) in shaping.providers.iter().enumerate() {
        let entries = Entries { provider: Some(place as u32), domain: None };
        let whom = [pattern_text(&provider.hosts), pattern_text(&provider.domains)].join(" ");
        let source = config.shaping.source_of(&provider.name).unwrap_or("");
        table.row(&[&provider.name, whom.trim(), &shown(entries), source]);
    }
    for (place, entry) in shaping.domains.iter().enumerate() {
        let entries = Entries { provider: None, domain: Some(place as u32) };
        table.row(&["domain", &pattern_text(&entry.domains), &shown(entries), ""]);
    }
    table.write(out)
}

fn one(out: &mut dyn Write, settings: &Settings, route: &Route, shape: &Shape, entries: Entries) -> io::Result<()> {
    writeln!(out, "route        {}", route.name)?;
    writeln!(out, "provider     {}", shape.provider.as_deref().unwrap_or("none that is known"))?;
    if entries.domain.is_some() {
        writeln!(out, "domain       has terms of its own")?;
    }
    writeln!(out, "limits       {}", limits_text(shape, &settings.shaping.limits))?;
    let (connect, idle) = (format_duration(shape.connect_timeout), format_duration(shape.idle_timeout));
    writeln!(out, "timeouts     {connect} to connect, {idle} without work")
}

fn pattern_text(pattern: &DomainPattern) -> String {
    let (exact, below): (&[Box<str>], &[Box<str>]) = match pattern {
        DomainPattern::All => return "*".into(),
        DomainPattern::Exact(exact) => (exact, &[]),
        DomainPattern::Below(below) => (&[], below),
        DomainPattern::Either { exact, below } => (exact, below),
    };
    let below = below.iter().map(|name| format!(".{name}"));
    exact.iter().map(ToString::to_string).chain(below).collect::<Vec<_>>().join(" ")
}

fn limits_text(shape: &Shape, shared: &[LimitSpec]) -> String {
    let limits = &shape.limits;
    let mut parts = vec![format!("{} connections", limits.connections)];
    parts.extend(limits.messages_per_connection.map(|most| format!("{most} messages each")));
    parts.extend(limits.connection_rate.map(|rate| format!("{} connections", format_rate(rate))));
    parts.extend(limits.rate.map(|rate| format!("{} messages", format_rate(rate))));
    match shape.client.tls {
        TlsUse::Required => parts.push("TLS required".into()),
        TlsUse::Never => parts.push("no TLS".into()),
        TlsUse::Opportunistic => {}
    }
    for limit in shape.shared.iter().filter_map(|place| shared.get(*place as usize)) {
        let mut of_all: Vec<String> = limit.connections.iter().map(|most| format!("{most} connections")).collect();
        of_all.extend(limit.connection_rate.map(|rate| format!("{} connections", format_rate(rate))));
        of_all.extend(limit.rate.map(|rate| format!("{} messages", format_rate(rate))));
        parts.push(format!("{} ({})", of_all.join(" and "), limit.name));
    }
    parts.join(", ")
}
