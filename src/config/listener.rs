//! `[[listener]]`: where mail comes in, with which keys, and what these must satisfy together.

use super::check::{Problem, at_most_a_minute, check_message_size, check_recipients};
use super::read::{self, HelloCheck};
use crate::limits::REQUIRED_HEADERS_MAX;
use crate::smtp::sasl::Mechanism;
use crate::smtp::server::BareNewlines;
use ipnet::IpNet;
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// What a listener is for.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerKind {
    /// Mail from other servers and from trusted senders, kept as it comes (RFC 5321).
    #[default]
    Relay,
    /// Mail from people's and programs' mail software, completed with Date and Message-ID (RFC 6409).
    Submission,
}

/// How a listener uses TLS.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerTls {
    /// Not at all.
    None,
    /// Offered by STARTTLS.
    #[default]
    Starttls,
    /// From the first octet.
    Implicit,
}

/// What a listener asks of its clients' certificates.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// Nothing.
    #[default]
    None,
    /// Clients may show one; one that proves nothing is as none.
    Request,
    /// A client without a good one is turned away.
    Require,
}

/// What a listener does with a bare CR or LF in content.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BareNewlinesKey {
    /// The message is refused (550 5.6.11).
    Refuse,
    /// It becomes CRLF.
    Convert,
}

impl From<BareNewlinesKey> for BareNewlines {
    fn from(key: BareNewlinesKey) -> BareNewlines {
        match key {
            BareNewlinesKey::Refuse => BareNewlines::Refuse,
            BareNewlinesKey::Convert => BareNewlines::Convert,
        }
    }
}

/// `[[listener]]`: where mail comes in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerSection {
    /// One address with port, or several.
    #[serde(deserialize_with = "read::many")]
    pub address: Vec<SocketAddr>,
    /// What it is for.
    #[serde(default)]
    pub kind: ListenerKind,
    /// How it uses TLS.
    #[serde(default)]
    pub tls: ListenerTls,
    /// The tenant of what comes in here.
    #[serde(default = "default_tenant")]
    pub tenant: String,
    /// A header that names the tenant instead.
    #[serde(default)]
    pub tenant_header: Option<String>,
    /// Whether the sender's subaddress names the tenant instead.
    #[serde(default)]
    pub tenant_subaddress: bool,
    /// Headers without which a message is refused.
    #[serde(default, deserialize_with = "read::many")]
    pub required_headers: Vec<String>,
    /// Whether each connection begins with a PROXY header (v1 or v2). Then nobody else may reach this port.
    #[serde(default)]
    pub proxy: bool,
    /// By default `refuse` on relay and `convert` on submission listeners.
    #[serde(default)]
    pub bare_newlines: Option<BareNewlinesKey>,
    /// Who may relay here.
    #[serde(default, deserialize_with = "read::some_many")]
    pub trusted: Option<Vec<IpNet>>,
    /// How long strangers wait for the greeting, if they do.
    #[serde(default, deserialize_with = "read::some")]
    pub greet_delay: Option<Duration>,
    /// What the names that strangers give with HELO and EHLO must be.
    #[serde(default, deserialize_with = "read::many")]
    pub helo_checks: Vec<HelloCheck>,
    /// Whether clients log in here, under TLS. By default they do on submission and do not on relay listeners.
    #[serde(default)]
    pub auth: Option<bool>,
    /// By which mechanisms, when not by all that can be used.
    #[serde(default, deserialize_with = "read::some_many")]
    pub auth_mechanisms: Option<Vec<Mechanism>>,
    /// Whether clients may log in without TLS: for trials, where only this machine can connect.
    #[serde(default)]
    pub auth_in_clear: bool,
    /// Which content filters see what comes in here, in this order; all when left out.
    #[serde(default, deserialize_with = "read::some_many")]
    pub filters: Option<Vec<String>>,
    /// Whether clients are asked for certificates.
    #[serde(default)]
    pub client_certificates: ClientCertificates,
    /// PEM of the authorities that prove clients.
    #[serde(default)]
    pub client_authorities: Option<PathBuf>,
    /// Octets of one message, when other than `limits.message_size`.
    #[serde(default, deserialize_with = "read::some_size")]
    pub message_size: Option<u64>,
    /// Recipients of one transaction, when other than `limits.recipients`.
    #[serde(default)]
    pub recipients: Option<u32>,
}

impl ListenerSection {
    /// A relay listener with STARTTLS for clients on loopback.
    pub fn new(address: SocketAddr) -> ListenerSection {
        ListenerSection {
            address: vec![address],
            kind: ListenerKind::Relay,
            tls: ListenerTls::Starttls,
            tenant: default_tenant(),
            tenant_header: None,
            tenant_subaddress: false,
            required_headers: Vec::new(),
            proxy: false,
            bare_newlines: None,
            trusted: None,
            greet_delay: None,
            helo_checks: Vec::new(),
            auth: None,
            auth_mechanisms: None,
            auth_in_clear: false,
            filters: None,
            client_certificates: ClientCertificates::None,
            client_authorities: None,
            message_size: None,
            recipients: None,
        }
    }
}

impl ListenerSection {
    /// Whether clients log in here.
    pub fn authentication(&self) -> bool {
        let protected = self.tls != ListenerTls::None || self.auth_in_clear;
        self.auth.unwrap_or(self.kind == ListenerKind::Submission) && protected
    }

    /// The networks that may relay here without a login: on relay listeners those of this machine when none are named.
    pub fn trusted_networks(&self) -> Vec<IpNet> {
        match &self.trusted {
            Some(networks) => networks.clone(),
            None if self.kind == ListenerKind::Submission => Vec::new(),
            None => loopback(),
        }
    }
}

fn default_tenant() -> String {
    "default".into()
}

/// The networks of clients on this machine.
fn loopback() -> Vec<IpNet> {
    let v4 = ipnet::Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8).map(IpNet::V4);
    v4.into_iter().chain([IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST))]).collect()
}

/// Checks what the keys of one listener must satisfy; `at` names a key in full.
pub(super) fn check(listener: &ListenerSection, at: &dyn Fn(&str) -> String) -> Result<(), Problem> {
    if listener.address.is_empty() {
        return Err(Problem::new(at("address"), "the list is empty", "as in address = \"0.0.0.0:25\""));
    }
    if let Some(address) = listener.address.iter().find(|address| address.port() == 0) {
        return Err(Problem::new(
            at("address"),
            format!("{address} has no port"),
            "all shards share the port, so it has to be chosen here",
        ));
    }
    let plain = |text: &str| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if !plain(&listener.tenant) {
        return Err(Problem::new(at("tenant"), "not a tenant's name", "1 to 64 ASCII characters without spaces"));
    }
    let is_header = |name: &String| plain(name) && !name.contains(':');
    if let Some(header) = listener.tenant_header.as_ref().filter(|name| !is_header(name)) {
        return Err(Problem::new(
            at("tenant_header"),
            format!("`{header}` is not a header's name"),
            "as in tenant_header = \"X-Tenant\", without a colon (RFC 5322 3.6.8)",
        ));
    }
    if let Some(header) = listener.required_headers.iter().find(|name| !is_header(name)) {
        return Err(Problem::new(
            at("required_headers"),
            format!("`{header}` is not a header's name"),
            "as in required_headers = [\"Message-ID\"], without a colon (RFC 5322 3.6.8)",
        ));
    }
    if listener.required_headers.len() > REQUIRED_HEADERS_MAX {
        return Err(Problem::new(
            at("required_headers"),
            "the list is too long",
            format!("at most {REQUIRED_HEADERS_MAX} headers"),
        ));
    }
    if listener.auth == Some(true) && !listener.authentication() {
        return Err(Problem::new(
            at("auth"),
            "no password is taken in the clear",
            "add tls = \"starttls\" or tls = \"implicit\"",
        ));
    }
    if let Some(delay) = listener.greet_delay {
        at_most_a_minute(delay, &at("greet_delay"))?;
    }
    if listener.auth_in_clear {
        let bound = listener.address.iter().all(|address| address.ip().to_canonical().is_loopback());
        if !bound || listener.proxy {
            return Err(Problem::new(
                at("auth_in_clear"),
                "others than this machine could reach this listener, and passwords could be read on the way",
                "use TLS; this is for trials on a loopback address without PROXY headers",
            ));
        }
    }
    check_client_certificates(listener, at)?;
    if listener.auth_mechanisms.as_ref().is_some_and(Vec::is_empty) {
        return Err(Problem::new(
            at("auth_mechanisms"),
            "the list is empty",
            "as in auth_mechanisms = [\"PLAIN\", \"SCRAM-SHA-256\"], or auth = false",
        ));
    }
    if !listener.authentication() && listener.trusted_networks().is_empty() {
        return Err(Problem::new(
            at("trusted"),
            "nobody may send here: no network is trusted and no client can log in",
            "name the networks of your senders, or use TLS so that they can log in",
        ));
    }
    check_message_size(listener.message_size, &at("message_size"))?;
    check_recipients(listener.recipients, &at("recipients"))
}

fn check_client_certificates(listener: &ListenerSection, at: &dyn Fn(&str) -> String) -> Result<(), Problem> {
    match (listener.client_certificates, &listener.client_authorities) {
        (ClientCertificates::None, None) => Ok(()),
        (ClientCertificates::None, Some(_)) => Err(Problem::new(
            at("client_authorities"),
            "clients are not asked for certificates",
            "add client_certificates = \"request\" or \"require\"",
        )),
        (_, None) => Err(Problem::new(
            at("client_certificates"),
            "it is not said who proves clients",
            "add client_authorities = \"…/clients.pem\", the certificates of your own authority",
        )),
        (_, Some(_)) if listener.tls == ListenerTls::None => Err(Problem::new(
            at("client_certificates"),
            "there are no certificates without TLS",
            "add tls = \"starttls\" or tls = \"implicit\"",
        )),
        (_, Some(_)) => Ok(()),
    }
}
