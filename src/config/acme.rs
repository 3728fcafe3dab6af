//! `[tls.acme]`: a certificate that is ordered by ACME (RFC 8555).

use super::read::{self, FromText};
use super::{Config, Problem, text};
use crate::limits::ACME_NAMES_MAX;
use serde::{Deserialize, Deserializer};
use std::net::SocketAddr;
use std::path::PathBuf;

/// `[tls.acme]`: a certificate ordered and renewed without an operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AcmeSection {
    /// The server's directory, an address of HTTPS.
    pub directory: String,
    /// Whether the operator has agreed to the server's terms.
    pub terms_agreed: bool,
    /// Mail addresses at which the server may reach the operator.
    #[serde(deserialize_with = "read::many")]
    pub contact: Vec<String>,
    /// The name of the account with the authority that the new one belongs to (RFC 8555 7.3.4).
    pub external_account: Option<String>,
    /// The file of the key for that, in base64url, as such authorities give it.
    pub external_account_key_file: Option<PathBuf>,
    /// The names of the certificate; `hostname` when left out.
    #[serde(deserialize_with = "names")]
    pub domains: Vec<Box<str>>,
    /// Where http-01 is answered; the server comes to port 80.
    #[serde(deserialize_with = "read::many")]
    pub http: Vec<SocketAddr>,
    /// Where tls-alpn-01 is answered; the server comes to port 443.
    #[serde(deserialize_with = "read::many")]
    pub alpn: Vec<SocketAddr>,
    /// PEM of the authorities that prove the server's name; the system's when left out.
    pub authorities: Option<PathBuf>,
}

/// A name of the certificate.
struct Name(Box<str>);

impl FromText for Name {
    const EXPECTED: &'static str = "a domain name, as in \"mail.example.org\"";
    fn from_text(name: &str) -> Result<Name, String> {
        if name.starts_with("*.") {
            let why = "a wildcard is proven by DNS alone, which ringpost does not do";
            return Err(format!("`{name}`: {why}; name the hosts, or get it by another program and name its files"));
        }
        text::parse_domain(name).map(Name)
    }
}

fn names<'de, D: Deserializer<'de>>(reader: D) -> Result<Vec<Box<str>>, D::Error> {
    let names: Vec<Name> = read::many(reader)?;
    Ok(names.into_iter().map(|name| name.0).collect())
}

impl AcmeSection {
    /// The names of the certificate, each once.
    pub fn effective_domains(&self, hostname: Box<str>) -> Vec<Box<str>> {
        let mut names: Vec<Box<str>> = Vec::new();
        for name in &self.domains {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        if names.is_empty() {
            names.push(hostname);
        }
        names
    }
}

/// Checks what the keys must satisfy together.
pub(super) fn check(config: &Config) -> Result<(), Problem> {
    let Some(acme) = &config.tls.acme else { return Ok(()) };
    let url = acme.directory.parse::<hyper::Uri>().ok();
    if url.is_none_or(|url| url.scheme_str() != Some("https") || url.host().is_none()) {
        return Err(Problem::new(
            "tls.acme.directory",
            format!("`{}` is no address of HTTPS", acme.directory),
            "that of the server's directory, as in \"https://acme-v02.api.letsencrypt.org/directory\"",
        ));
    }
    if !acme.terms_agreed {
        return Err(Problem::new(
            "tls.acme.terms_agreed",
            "the server makes accounts for those who agree to its terms",
            "read them, then write terms_agreed = true",
        ));
    }
    if let Some(contact) = acme.contact.iter().find(|contact| !contact.contains('@') || contact.contains(':')) {
        let message = format!("`{contact}` is no mail address");
        return Err(Problem::new("tls.acme.contact", message, "as in contact = \"postmaster@example.org\""));
    }
    if acme.external_account.is_some() != acme.external_account_key_file.is_some() {
        return Err(Problem::new(
            "tls.acme",
            "external_account and external_account_key_file belong together",
            "write both, as the authority gave them, or neither",
        ));
    }
    if acme.domains.len() > ACME_NAMES_MAX {
        let message = format!("{} names are too many", acme.domains.len());
        return Err(Problem::new("tls.acme.domains", message, format!("at most {ACME_NAMES_MAX}")));
    }
    if acme.http.is_empty() && acme.alpn.is_empty() {
        return Err(Problem::new(
            "tls.acme",
            "it is not said how the server is shown that the names are ours",
            "add http = \"0.0.0.0:80\", or alpn = \"0.0.0.0:443\"",
        ));
    }
    let mut taken: Vec<SocketAddr> = config.listener.iter().flat_map(|listener| listener.address.clone()).collect();
    for (key, addresses) in [("http", &acme.http), ("alpn", &acme.alpn)] {
        for address in addresses {
            let path = format!("tls.acme.{key}");
            if address.port() == 0 {
                return Err(Problem::new(path, format!("{address} has no port"), "80 for http, 443 for alpn"));
            }
            if taken.contains(address) {
                let message = format!("{address} is listened on already");
                return Err(Problem::new(path, message, "each address and port is for one thing"));
            }
            taken.push(*address);
        }
    }
    Ok(())
}
