//! `ringpost domain`: the domains that tenants send as, and the keys that sign for them. Asked of the running relay, in force
//! at once.

use super::args::Target;
use super::client::Relay;
use super::identity::{day, print, unexpected};
use super::queue::write_json;
use super::table::Table;
use super::{Failure, exit};
use crate::control::domain_requests::{DomainReply, DomainRequest, DomainView, Finding, KeyView, Secret};
use crate::control::identities::DEFAULT_TENANT;
use crate::policy::dkim::Algorithm;
use crate::policy::domain::KeyState;
use clap::{Args, Subcommand};
use std::io::{self, Write};
use std::path::PathBuf;

const PATH: &str = "/v1/domains";

/// Characters of one string of a TXT record in a zone file (RFC 1035 3.3.14).
const TXT_STRING: usize = 255;

/// `ringpost domain …`
#[derive(Debug, Subcommand)]
pub enum DomainCommand {
    /// Add a domain: makes its keys and prints the records to publish
    Add {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// Kinds of keys to make, each of which signs: `rsa`, `ed25519`
        #[arg(long, value_name = "KIND", value_delimiter = ',', default_value = "rsa,ed25519", value_parser = algorithm)]
        keys: Vec<Algorithm>,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// List the domains
    List {
        /// Those of this tenant alone
        #[arg(long)]
        tenant: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Print a domain's keys and the records to publish
    Show {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Look into DNS now; keys that are found there sign from then on
    Verify {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Make new keys; the old ones sign until the new ones are found in DNS
    Rotate {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Add one more key, made here or from a file, for everybody or for some recipients' domains
    AddKey {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// Its kind: `rsa` or `ed25519`
        #[arg(long, default_value = "rsa", value_parser = algorithm)]
        kind: Algorithm,
        /// Its selector; one is made when left out
        #[arg(long)]
        selector: Option<String>,
        /// The private key in PKCS#8 (PEM); one is made when left out
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Recipients' domains that get this signature in place of the usual one; several with commas
        #[arg(long, value_name = "DOMAINS", value_delimiter = ',')]
        recipients: Vec<String>,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Remove one key
    RemoveKey {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// Its selector
        selector: String,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Remove a domain and its keys
    Remove {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
}

/// A domain of a tenant.
#[derive(Debug, Args)]
pub struct Which {
    /// The domain, as in example.org; it speaks for its subdomains, too
    name: String,
    /// The tenant that sends as it
    #[arg(long, default_value = DEFAULT_TENANT)]
    tenant: String,
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    match text {
        "rsa" => Ok(Algorithm::Rsa),
        "ed25519" => Ok(Algorithm::Ed25519),
        _ => Err("rsa or ed25519".into()),
    }
}

/// Carries out one of the commands on domains.
pub fn domain(command: DomainCommand) -> Result<u8, Failure> {
    let (request, target, done) = match command {
        DomainCommand::Add { which: Which { name, tenant }, keys, target } => {
            let request = DomainRequest::Add { tenant, name, algorithms: keys };
            return show_one(&request, &target, false);
        }
        DomainCommand::List { tenant, json, target } => return list(tenant, json, &target),
        DomainCommand::Show { which: Which { name, tenant }, json, target } => {
            return show(tenant, name, json, &target);
        }
        DomainCommand::Verify { which: Which { name, tenant }, json, target } => {
            return verify(&DomainRequest::Verify { tenant, name }, json, &target);
        }
        DomainCommand::Rotate { which: Which { name, tenant }, target } => {
            return show_one(&DomainRequest::Rotate { tenant, name }, &target, true);
        }
        DomainCommand::AddKey { which: Which { name, tenant }, kind, selector, file, recipients, target } => {
            let read = |path: PathBuf| match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Secret(text)),
                Err(error) => Err(Failure::new(exit::NO_INPUT, format!("{}: {error}", path.display()))),
            };
            let pem = file.map(read).transpose()?;
            let request = DomainRequest::AddKey { tenant, name, algorithm: kind, selector, pem, recipients };
            return show_one(&request, &target, true);
        }
        DomainCommand::RemoveKey { which: Which { name, tenant }, selector, target } => {
            let done = format!("the key {selector} of {name} is removed: its TXT record may go a week from now");
            (DomainRequest::RemoveKey { tenant, name, selector }, target, done)
        }
        DomainCommand::Remove { which: Which { name, tenant }, target } => {
            let done = format!("{name} is removed with its keys; what it has signed is delivered");
            (DomainRequest::Remove { tenant, name }, target, done)
        }
    };
    match Relay::find(&target)?.post(PATH, &request)? {
        DomainReply::Done {} | DomainReply::Domain(_) => {
            writeln!(io::stdout(), "{done}")?;
            Ok(exit::OK)
        }
        _ => unexpected(),
    }
}

fn show_one(request: &DomainRequest, target: &Target, known: bool) -> Result<u8, Failure> {
    let reply: DomainReply = Relay::find(target)?.post(PATH, request)?;
    let DomainReply::Domain(domain) = reply else { return unexpected() };
    let out = &mut io::stdout().lock();
    write_records(out, &domain, KeyState::Pending)?;
    if !known {
        write_advice(out, &domain)?;
    }
    let verify = format!("ringpost domain verify {}{}", domain.name, tenant_flag(&domain));
    writeln!(out, "\nThe relay looks for them by itself each minute at first; `{verify}` looks now.")?;
    if known {
        writeln!(
            out,
            "Keys that sign go on until then; take their records out of DNS a week after that at the earliest."
        )?;
    }
    Ok(exit::OK)
}

fn tenant_flag(domain: &DomainView) -> String {
    if domain.tenant == DEFAULT_TENANT { String::new() } else { format!(" --tenant {}", domain.tenant) }
}

/// The records of all keys in this state, as a zone file has them.
fn write_records(out: &mut impl Write, domain: &DomainView, state: KeyState) -> io::Result<()> {
    writeln!(out, "Publish in the zone of {}:\n", domain.name)?;
    for key in domain.keys.iter().filter(|key| key.state == state) {
        if let Some(record) = &key.record {
            writeln!(out, "{}. TXT {}", key.record_name, quoted(record))?;
        }
    }
    Ok(())
}

/// The strings of a TXT record; a value of more than 255 characters needs several.
fn quoted(record: &str) -> String {
    let mut parts = Vec::new();
    let mut rest = record;
    while !rest.is_empty() {
        // Records are ASCII, so that any place is one between characters.
        let (part, behind) = rest.split_at_checked(TXT_STRING).unwrap_or((rest, ""));
        parts.push(format!("\"{part}\""));
        rest = behind;
    }
    parts.join(" ")
}

fn write_advice(out: &mut impl Write, domain: &DomainView) -> io::Result<()> {
    let name = &domain.name;
    writeln!(out, "\nProviders want these two as well; where there are records of the kind already, change those:\n")?;
    writeln!(out, "{name}. TXT \"v=spf1 ip4:ADDRESS-OF-THIS-RELAY ~all\"")?;
    writeln!(out, "_dmarc.{name}. TXT \"v=DMARC1; p=none; rua=mailto:postmaster@{name}\"")?;
    writeln!(
        out,
        "\nThe domain of envelope senders (the return path) needs a mail host (MX) that takes bounces, and the SPF record; \
         {name} or a subdomain of it aligns with DMARC."
    )
}

fn show(tenant: String, name: String, json: bool, target: &Target) -> Result<u8, Failure> {
    let text = format!("there is no domain `{name}` of tenant {tenant}");
    let request = DomainRequest::List { tenant: Some(tenant), name: Some(name) };
    let reply: DomainReply = Relay::find(target)?.post(PATH, &request)?;
    let DomainReply::Domains(domains) = reply else { return unexpected() };
    let Some(domain) = domains.first() else { return Err(Failure::new(exit::NOTHING, text)) };
    let out = &mut io::stdout().lock();
    if json {
        write_json(out, domain)?;
        return Ok(exit::OK);
    }
    write_state(out, domain)?;
    write_keys(out, domain)?;
    for state in [KeyState::Pending, KeyState::Active] {
        if domain.keys.iter().any(|key| key.state == state) {
            writeln!(out)?;
            write_records(out, domain, state)?;
        }
    }
    Ok(exit::OK)
}

fn write_state(out: &mut impl Write, domain: &DomainView) -> io::Result<()> {
    let DomainView { name, tenant, verified_ms, .. } = domain;
    match verified_ms {
        Some(since) => writeln!(out, "{name} of tenant {tenant}: verified since {}", day(*since)),
        None => writeln!(out, "{name} of tenant {tenant}: not verified, its mail is not signed"),
    }
}

fn write_keys(out: &mut impl Write, domain: &DomainView) -> io::Result<()> {
    let mut table = Table::new(&["SELECTOR", "KIND", "STATE", "SINCE", "RECIPIENTS"]);
    for KeyView { selector, algorithm, state, since_ms, recipients, .. } in &domain.keys {
        let recipients = if recipients.is_empty() { "all".to_owned() } else { recipients.join(" ") };
        table.row(&[selector, &algorithm.to_string(), &state.to_string(), &day(*since_ms), &recipients]);
    }
    table.write(out)
}

fn list(tenant: Option<String>, json: bool, target: &Target) -> Result<u8, Failure> {
    let reply: DomainReply = Relay::find(target)?.post(PATH, &DomainRequest::List { tenant, name: None })?;
    let DomainReply::Domains(domains) = reply else { return unexpected() };
    let out = &mut io::stdout().lock();
    if json {
        write_json(out, &domains)?;
        return Ok(exit::OK);
    }
    let mut table = Table::new(&["DOMAIN", "TENANT", "VERIFIED", "SIGNING KEYS", "AWAITED KEYS", "ADDED"]);
    for domain in &domains {
        let count = |state| domain.keys.iter().filter(|key| key.state == state).count().to_string();
        let verified = domain.verified_ms.map_or("no".to_owned(), day);
        table.row(&[
            &domain.name,
            &domain.tenant,
            &verified,
            &count(KeyState::Active),
            &count(KeyState::Pending),
            &day(domain.created_ms),
        ]);
    }
    print(out, &table, domains.len(), "domain")
}

/// Exit code 1 when a key is not where it should be.
fn verify(request: &DomainRequest, json: bool, target: &Target) -> Result<u8, Failure> {
    let reply: DomainReply = Relay::find(target)?.post(PATH, request)?;
    let out = &mut io::stdout().lock();
    if json {
        write_json(out, &reply)?;
    }
    let DomainReply::Checked { domain, found, dmarc, spf } = reply else { return unexpected() };
    let all_good = found.iter().all(|finding| finding.good);
    let code = if all_good { exit::OK } else { exit::NOTHING };
    if json {
        return Ok(code);
    }
    write_state(out, &domain)?;
    for Finding { selector, text, .. } in &found {
        writeln!(out, "key {selector}: {text}")?;
    }
    let or_none = |record: Option<String>| record.unwrap_or_else(|| "none found; providers want one".to_owned());
    writeln!(out, "SPF: {}", or_none(spf).escape_debug())?;
    writeln!(out, "DMARC: {}", or_none(dmarc).escape_debug())?;
    if !all_good {
        writeln!(out, "DNS can take as long as the records' TTL to show a change; the relay goes on looking.")?;
    }
    Ok(code)
}
