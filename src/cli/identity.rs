//! `ringpost tenant` and `ringpost credential`: who may submit mail. Asked of the running relay, in force at once.

use super::args::Target;
use super::client::Relay;
use super::identity_args::{CredentialCommand, TenantCommand};
use super::queue::write_json;
use super::table::{Table, counted};
use super::{Failure, exit};
use crate::clock::UnixTime;
use crate::control::identity_requests::{CredentialView, IdentityReply, IdentityRequest};
use crate::policy::domain::Unverified;
use crate::policy::identity::Tenant;
use crate::policy::quota::Quotas;
use std::io::{self, Write};
use std::time::Duration;

const PATH: &str = "/v1/identities";

/// Carries out one of the commands on tenants.
pub fn tenant(command: TenantCommand) -> Result<u8, Failure> {
    let (request, target, done) = match command {
        TenantCommand::Add { name, unverified, target } => {
            let domain = match unverified {
                Unverified::Refuse | Unverified::Hold => {
                    format!(", and a domain to send as with `ringpost domain add --tenant {name} DOMAIN`")
                }
                Unverified::Pass => String::new(),
            };
            let done =
                format!("tenant {name} added; give it a login with `ringpost credential add --tenant {name}`{domain}");
            (IdentityRequest::AddTenant { name, unverified }, target, done)
        }
        TenantCommand::List { json, target } => return list_tenants(json, &target),
        TenantCommand::Enable { name, target } => {
            let done = format!("tenant {name} may submit again");
            (IdentityRequest::SetTenant { name, enabled: Some(true), unverified: None }, target, done)
        }
        TenantCommand::Disable { name, target } => {
            let done = format!("tenant {name} may not submit any more; what it has submitted is delivered");
            (IdentityRequest::SetTenant { name, enabled: Some(false), unverified: None }, target, done)
        }
        TenantCommand::Set { name, unverified, target } => {
            let done = match unverified {
                Unverified::Refuse => format!("tenant {name} sends as its verified domains alone"),
                Unverified::Hold => {
                    format!(
                        "tenant {name} sends as its verified domains alone; mail of those that it has added waits for them"
                    )
                }
                Unverified::Pass => format!("tenant {name} sends as any domain, signed where it is verified"),
            };
            (IdentityRequest::SetTenant { name, enabled: None, unverified: Some(unverified) }, target, done)
        }
        TenantCommand::Limit { name, quotas, target } => {
            let quotas: Quotas = quotas.into();
            let done = format!("quotas of tenant {name}: {quotas}");
            (IdentityRequest::SetTenantQuotas { name, quotas }, target, done)
        }
        TenantCommand::Remove { name, target } => {
            let done = format!(
                "tenant {name}, its credentials and its domains are removed; what it has submitted is delivered"
            );
            (IdentityRequest::RemoveTenant { name }, target, done)
        }
    };
    act(&request, &target, &done)
}

/// Carries out one of the commands on credentials.
pub fn credential(command: CredentialCommand) -> Result<u8, Failure> {
    let (request, target, done) = match command {
        CredentialCommand::Add {
            login,
            tenant,
            label,
            expires,
            network,
            sender,
            certificate,
            any_tenant,
            json,
            target,
        } => {
            let request = IdentityRequest::AddCredential {
                tenant,
                login,
                label,
                lifetime_ms: expires.map(millis),
                networks: network,
                senders: sender,
                certificates: certificate,
                any_tenant,
            };
            return show_secret(&request, json, &target);
        }
        CredentialCommand::Rotate { login, overlap, json, target } => {
            return show_secret(
                &IdentityRequest::RotateCredential { login, overlap_ms: millis(overlap) },
                json,
                &target,
            );
        }
        CredentialCommand::List { tenant, json, target } => return list_credentials(tenant, json, &target),
        CredentialCommand::Limit { login, quotas, target } => {
            let quotas: Quotas = quotas.into();
            let done = format!("quotas of {login}: {quotas}");
            (IdentityRequest::SetCredentialQuotas { login, quotas }, target, done)
        }
        CredentialCommand::Enable { login, target } => {
            let done = format!("{login} may log in again");
            (IdentityRequest::SetCredential { login, enabled: true }, target, done)
        }
        CredentialCommand::Disable { login, target } => {
            let done = format!("{login} may not log in any more, and its open sessions send nothing more");
            (IdentityRequest::SetCredential { login, enabled: false }, target, done)
        }
        CredentialCommand::Remove { login, target } => {
            let done = format!("{login} is removed, and its open sessions send nothing more");
            (IdentityRequest::RemoveCredential { login }, target, done)
        }
    };
    act(&request, &target, &done)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn unexpected<T>() -> Result<T, Failure> {
    Err(Failure::new(exit::IO, "the relay's answer is not understood; is it of another version?"))
}

fn act(request: &IdentityRequest, target: &Target, done: &str) -> Result<u8, Failure> {
    match Relay::find(target)?.post(PATH, request)? {
        IdentityReply::Done {} => {
            writeln!(io::stdout(), "{done}")?;
            Ok(exit::OK)
        }
        _ => unexpected(),
    }
}

fn show_secret(request: &IdentityRequest, json: bool, target: &Target) -> Result<u8, Failure> {
    let reply: IdentityReply = Relay::find(target)?.post(PATH, request)?;
    let IdentityReply::Secret { login, secret } = reply else { return unexpected() };
    let out = &mut io::stdout().lock();
    if json {
        write_json(out, &serde_json::json!({ "login": login, "secret": secret }))?;
    } else {
        writeln!(out, "login     {login}")?;
        writeln!(out, "password  {secret}")?;
        writeln!(out, "The password is shown this once: keep it where your application reads it.")?;
    }
    Ok(exit::OK)
}

pub(super) fn day(ms: u64) -> String {
    let text = UnixTime::from_millis(ms).to_string();
    text.split_once('.').map_or(text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

fn yes(enabled: bool) -> &'static str {
    if enabled { "enabled" } else { "disabled" }
}

fn list_tenants(json: bool, target: &Target) -> Result<u8, Failure> {
    let reply: IdentityReply = Relay::find(target)?.post(PATH, &IdentityRequest::Tenants)?;
    let IdentityReply::Tenants(tenants) = reply else { return unexpected() };
    let out = &mut io::stdout().lock();
    if json {
        write_json(out, &tenants)?;
        return Ok(exit::OK);
    }
    let mut table = Table::new(&["TENANT", "STATE", "UNVERIFIED DOMAINS", "QUOTAS", "ADDED"]);
    for Tenant { name, enabled, created_ms, unverified, quotas, .. } in &tenants {
        table.row(&[name, yes(*enabled), &unverified.to_string(), &quotas.to_string(), &day(*created_ms)]);
    }
    print(out, &table, tenants.len(), "tenant")
}

fn list_credentials(tenant: Option<String>, json: bool, target: &Target) -> Result<u8, Failure> {
    let reply: IdentityReply = Relay::find(target)?.post(PATH, &IdentityRequest::Credentials { tenant })?;
    let IdentityReply::Credentials(credentials) = reply else { return unexpected() };
    let out = &mut io::stdout().lock();
    if json {
        write_json(out, &credentials)?;
        return Ok(exit::OK);
    }
    let mut table = Table::new(&[
        "LOGIN",
        "TENANT",
        "LABEL",
        "STATE",
        "ADDED",
        "EXPIRES",
        "NETWORKS",
        "SENDERS",
        "CERTIFICATES",
        "QUOTAS",
        "OLD SECRET UNTIL",
    ]);
    for credential in &credentials {
        let CredentialView { login, tenant, label, enabled, created_ms, .. } = credential;
        let expires = credential.expires_ms.map_or("never".to_owned(), day);
        table.row(&[
            login,
            &if credential.any_tenant { format!("{tenant}, others") } else { tenant.clone() },
            label,
            yes(*enabled),
            &day(*created_ms),
            &expires,
            &joined(&credential.networks, "everywhere"),
            &joined(&credential.senders, "all"),
            &joined(&credential.certificates, "none"),
            &credential.quotas.to_string(),
            &credential.old_secret_until_ms.map_or("-".to_owned(), day),
        ]);
    }
    print(out, &table, credentials.len(), "credential")
}

fn joined<T: ToString>(values: &[T], none: &str) -> String {
    if values.is_empty() {
        return none.to_owned();
    }
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

pub(super) fn print(out: &mut impl Write, table: &Table, count: usize, what: &str) -> Result<u8, Failure> {
    if count > 0 {
        table.write(out)?;
    }
    writeln!(out, "{}", counted(count as u64, what))?;
    Ok(exit::OK)
}
