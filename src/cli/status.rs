//! `ringpost status`: counts and sites of the running relay.

use super::args::StatusArgs;
use super::client::Relay;
use super::queue::write_json;
use super::table::Table;
use super::{Failure, exit};
use crate::config::text::format_duration;
use crate::control::http::Status;
use crate::shard::message::SiteSummary;
use serde::Serialize;
use std::io::{self, Write};
use std::time::Duration;

#[derive(Serialize)]
struct Whole {
    status: Status,
    sites: Vec<SiteSummary>,
}

/// Shows it.
pub fn run(args: &StatusArgs) -> Result<u8, Failure> {
    let relay = Relay::find(&args.target)?;
    let status: Status = relay.get("/v1/status")?;
    let sites: Vec<SiteSummary> = relay.get("/v1/sites")?;
    let out = &mut io::stdout().lock();
    if args.json {
        write_json(out, &Whole { status, sites })?;
        return Ok(exit::OK);
    }
    let uptime = format_duration(Duration::from_secs(status.uptime_s));
    writeln!(out, "ringpost {} is {}, up {uptime}, {} shards", status.version, status.state, status.shards)?;
    if status.recovered < status.shards {
        writeln!(out, "the spool is still being read: {} of {} shards are done", status.recovered, status.shards)?;
    }
    let Status { messages, ready, in_flight, scheduled, held, routing, .. } = status;
    writeln!(
        out,
        "waiting     {messages} messages; recipients: {ready} ready, {in_flight} in flight, {scheduled} scheduled, {held} held, {routing} being routed"
    )?;
    let Status { received, delivered, deferred, bounced, expired, suppressed, .. } = status;
    writeln!(
        out,
        "since start {received} received; {delivered} delivered, {deferred} deferrals, {bounced} bounced, {expired} expired, {suppressed} suppressed"
    )?;
    writeln!(out, "open        {} sessions, {} outgoing connections", status.sessions_open, status.outgoing_open)?;
    writeln!(out, "memory      {} MiB", status.resident_octets >> 20)?;
    if !sites.is_empty() {
        writeln!(out)?;
        let mut table = Table::new(&["SITE", "READY", "CONNECTIONS", "STATE"]);
        for site in sites.iter().take(args.sites) {
            let connections = format!("{}/{}", site.connections, site.max_connections);
            table.row(&[&site.name, &site.ready.to_string(), &connections, &site.state]);
        }
        table.write(out)?;
        if sites.len() > args.sites {
            writeln!(out, "{} more sites: see --sites", sites.len() - args.sites)?;
        }
    }
    Ok(exit::OK)
}
