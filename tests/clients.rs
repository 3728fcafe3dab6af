//! Other programs and the real binary: mail that comes in from them and goes out to them, byte for byte but for trace
//! headers in front. See docs/TESTING.md.
//!
//! Each test starts its own relay on free loopback ports with a spool of its own, waits only for what it can see (a
//! log line, an arrival, an answer of the admin interface) and ends everything it started. A missing program makes
//! its tests print a line that begins with `SKIPPED:` and names the package; with `RINGPOST_CLIENTS_STRICT=1`, as
//! bin/test sets it, they fail instead.

#[path = "clients/acme.rs"]
mod acme;
#[path = "clients/acme_server.rs"]
mod acme_server;
#[path = "clients/attacks.rs"]
mod attacks;
#[path = "clients/auth.rs"]
mod auth;
#[path = "clients/bodies.rs"]
mod bodies;
#[path = "clients/certificates.rs"]
mod certificates;
#[path = "clients/dane.rs"]
mod dane;
#[path = "clients/destinations.rs"]
mod destinations;
#[path = "clients/direct.rs"]
mod direct;
#[path = "clients/dns.rs"]
mod dns;
#[path = "clients/domains.rs"]
mod domains;
#[path = "clients/external.rs"]
mod external;
#[path = "clients/filters.rs"]
mod filters;
#[path = "clients/nodemailer.rs"]
mod nodemailer;
#[path = "clients/oauth.rs"]
mod oauth;
#[path = "clients/operator.rs"]
mod operator;
#[path = "clients/outbound_tls.rs"]
mod outbound_tls;
#[path = "clients/postfix.rs"]
mod postfix;
#[path = "clients/programs.rs"]
mod programs;
#[path = "clients/relay.rs"]
mod relay;
#[path = "clients/rspamd.rs"]
mod rspamd;
#[path = "clients/secrets.rs"]
mod secrets;
#[path = "clients/senders.rs"]
mod senders;
#[path = "clients/shaping.rs"]
mod shaping;
#[path = "clients/sink.rs"]
mod sink;
#[path = "clients/smtplib.rs"]
mod smtplib;
#[path = "clients/suppression.rs"]
mod suppression;
#[path = "clients/talk.rs"]
mod talk;
#[path = "clients/tenants.rs"]
mod tenants;
#[path = "clients/tls.rs"]
mod tls;
#[path = "clients/with_postfix.rs"]
mod with_postfix;

use std::time::Duration;

/// The longest wait for one thing. Nothing waits that long unless it fails: seven may share this machine's two cores.
const PATIENCE: Duration = Duration::from_secs(60);
