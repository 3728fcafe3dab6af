//! The arguments of `ringpost tenant` and `ringpost credential`.

use super::args::Target;
use crate::config::read::FromText;
use crate::config::text;
use crate::control::identities::DEFAULT_TENANT;
use crate::policy::domain::Unverified;
use crate::policy::identity::{CertificateRule, SenderRule};
use crate::policy::quota::{Amount, Quotas};
use clap::{Args, Subcommand};
use ipnet::IpNet;
use std::time::Duration;

fn unverified(text_given: &str) -> Result<Unverified, String> {
    match text_given {
        "refuse" => Ok(Unverified::Refuse),
        "hold" => Ok(Unverified::Hold),
        "pass" => Ok(Unverified::Pass),
        _ => Err("refuse, hold or pass".into()),
    }
}

/// `ringpost tenant …`
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Add a tenant
    Add {
        /// Its name: up to 64 ASCII characters without spaces
        name: String,
        /// What becomes of its mail from domains that are not verified for it: `refuse`, `hold` until they
        /// are (those that were added), or `pass` unsigned
        #[arg(long, default_value = "refuse", value_parser = unverified)]
        unverified: Unverified,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// List the tenants
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Let a tenant submit again
    Enable {
        /// Its name
        name: String,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Let a tenant submit no more
    Disable {
        /// Its name
        name: String,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Change what becomes of a tenant's mail from domains that are not verified for it
    Set {
        /// Its name
        name: String,
        /// `refuse`, `hold` until they are, or `pass` unsigned
        #[arg(long, value_parser = unverified)]
        unverified: Unverified,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Bound what a tenant may send, in place of what bounded it before; without any option nothing does
    Limit {
        /// Its name
        name: String,
        /// How much.
        #[command(flatten)]
        quotas: QuotaArgs,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Remove a tenant, all its credentials and its domains with their keys
    Remove {
        /// Its name
        name: String,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
}

/// How much may be sent.
#[derive(Debug, Args)]
pub struct QuotaArgs {
    /// Messages in a minute, an hour or a day of UTC, as in 1000/hour; several with commas
    #[arg(long, value_name = "AMOUNTS", value_delimiter = ',')]
    messages: Vec<Amount>,
    /// Recipients of messages, in the same way
    #[arg(long, value_name = "AMOUNTS", value_delimiter = ',')]
    recipients: Vec<Amount>,
    /// Recipients of one message, within the listener's bound
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    recipients_per_message: Option<u32>,
    /// Size of one message, as in 10MB, within the listener's bound
    #[arg(long, value_name = "SIZE", value_parser = text::parse_size)]
    message_size: Option<u64>,
}

impl From<QuotaArgs> for Quotas {
    fn from(args: QuotaArgs) -> Quotas {
        let QuotaArgs { messages, recipients, recipients_per_message, message_size } = args;
        Quotas { messages, recipients, recipients_per_message, message_size }
    }
}

/// `ringpost credential …`
#[derive(Debug, Subcommand)]
pub enum CredentialCommand {
    /// Add a login and show its password, this once
    Add {
        /// The name to log in with [default: made from the tenant's]
        login: Option<String>,
        /// Whose it is
        #[arg(long, value_name = "NAME", default_value = DEFAULT_TENANT)]
        tenant: String,
        /// What it is for, as in production
        #[arg(long, value_name = "TEXT", default_value = "")]
        label: String,
        /// It may log in for so long, as in 90d [default: for ever]
        #[arg(long, value_name = "TIME", value_parser = text::parse_duration)]
        expires: Option<Duration>,
        /// It may log in from this network alone; repeat for several
        #[arg(long, value_name = "NETWORK", value_parser = network)]
        network: Vec<IpNet>,
        /// It may send as this address, or as all of this domain; repeat for several [default: all]
        #[arg(long, value_name = "ADDRESS|DOMAIN")]
        sender: Vec<SenderRule>,
        /// It may log in with the certificate of this SHA-256 fingerprint or name; repeat for several
        #[arg(long, value_name = "SHA256|NAME")]
        certificate: Vec<CertificateRule>,
        /// It may send as other tenants, which a header or the sender's subaddress names
        /// (`[[listener]] tenant_header`, `tenant_subaddress`)
        #[arg(long)]
        any_tenant: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// List the logins, without passwords
    List {
        /// Only this tenant's
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Make a new password and show it, this once; the old one goes on for a while
    Rotate {
        /// Which
        login: String,
        /// The old password is taken for so long; 0s ends it at once
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = text::parse_duration)]
        overlap: Duration,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Bound what may be sent with a login, within its tenant's quotas, in place of what bounded it before
    Limit {
        /// Which
        login: String,
        /// How much.
        #[command(flatten)]
        quotas: QuotaArgs,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Let it log in again
    Enable {
        /// Which
        login: String,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Let it log in no more, and send nothing more in open sessions
    Disable {
        /// Which
        login: String,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
    /// Remove it
    Remove {
        /// Which
        login: String,
        /// The relay.
        #[command(flatten)]
        target: Target,
    },
}

fn network(text_given: &str) -> Result<IpNet, String> {
    IpNet::from_text(text_given)
}
