//! TLS of deliveries: `[route] tls` and `[route.tls_options]` for single routes, `[outbound_tls]` for all of them.

use super::{Config, Problem, read};
use crate::policy::outbound_tls::{TlsLevel, TlsRule};
use ipnet::IpNet;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// How a route uses TLS.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsUseKey {
    /// In clear.
    Never,
    /// Encrypted where offered.
    #[default]
    Opportunistic,
    /// Encrypted or not at all.
    Required,
    /// Encrypted, to a host that proves its name, or not at all.
    Verified,
}

impl From<TlsUseKey> for TlsLevel {
    fn from(key: TlsUseKey) -> TlsLevel {
        match key {
            TlsUseKey::Never => TlsLevel::Never,
            TlsUseKey::Opportunistic => TlsLevel::Opportunistic,
            TlsUseKey::Required => TlsLevel::Required,
            TlsUseKey::Verified => TlsLevel::Verified,
        }
    }
}

/// The least version of TLS.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum MinVersion {
    /// RFC 5246.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// RFC 8446.
    #[serde(rename = "1.3")]
    Tls13,
}

/// `[route.tls_options]`: more of how a route uses TLS.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsOptions {
    /// With `verified`: the names of which a host must prove one, in place of its own.
    #[serde(deserialize_with = "read::domains")]
    pub names: Vec<Box<str>>,
    /// The least version.
    pub min_version: MinVersion,
    /// PEM: our own certificate, for hosts that ask for one.
    pub certificate: Option<PathBuf>,
    /// PEM: its key.
    pub key: Option<PathBuf>,
    /// Whether policies of MTA-STS are obeyed.
    pub mta_sts: bool,
    /// Whether TLSA records are obeyed.
    pub dane: bool,
}

impl Default for TlsOptions {
    fn default() -> TlsOptions {
        TlsOptions {
            names: Vec::new(),
            min_version: MinVersion::Tls12,
            certificate: None,
            key: None,
            mta_sts: true,
            dane: false,
        }
    }
}

/// `[outbound_tls]`: TLS of all deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboundTlsSection {
    /// PEM of the authorities that prove names of hosts and of servers of policies; the system's when left out.
    pub authorities: Option<PathBuf>,
    /// The port of servers of policies: 443, but for tests.
    pub policy_port: u16,
    /// Private networks in which servers of policies may be.
    #[serde(deserialize_with = "read::many")]
    pub policy_networks: Vec<IpNet>,
    /// Keys from which DNSSEC is proven, as DNSKEY records; those of the root when left out.
    pub trust_anchors: Option<PathBuf>,
}

impl Default for OutboundTlsSection {
    fn default() -> OutboundTlsSection {
        OutboundTlsSection { authorities: None, policy_port: 443, policy_networks: Vec::new(), trust_anchors: None }
    }
}

/// A set-up of TLS for deliveries: what its connections have in common.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientSetup<'a> {
    /// Nothing older.
    pub tls13_alone: bool,
    /// Our own certificate and its key.
    pub own: Option<(&'a Path, &'a Path)>,
}

impl TlsOptions {
    fn setup(&self) -> ClientSetup<'_> {
        ClientSetup {
            tls13_alone: self.min_version == MinVersion::Tls13,
            own: self.certificate.as_deref().zip(self.key.as_deref()),
        }
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.certificate.iter().chain(&self.key)
    }
}

/// The set-ups that routes need, each once; the first is the usual one.
pub fn client_setups(config: &Config) -> Vec<ClientSetup<'_>> {
    let mut setups = vec![ClientSetup::default()];
    for route in &config.route {
        let setup = route.tls_options.setup();
        if !setups.contains(&setup) {
            setups.push(setup);
        }
    }
    setups
}

/// What a route asks of TLS.
pub(super) fn rule(setups: &[ClientSetup<'_>], level: TlsUseKey, options: &TlsOptions) -> TlsRule {
    let wanted = options.setup();
    let setup = setups.iter().position(|setup| *setup == wanted).unwrap_or_default();
    TlsRule {
        level: level.into(),
        names: options.names.iter().cloned().collect(),
        setup: u16::try_from(setup).unwrap_or_default(),
        mta_sts: options.mta_sts,
        dane: options.dane,
    }
}

/// The files that are read for it.
pub fn files(config: &Config) -> impl Iterator<Item = &PathBuf> {
    let section = &config.outbound_tls;
    let own = config.route.iter().flat_map(|route| route.tls_options.files());
    own.chain(&section.authorities).chain(&section.trust_anchors)
}

/// Checks what the keys must satisfy together.
pub(super) fn check(config: &Config) -> Result<(), Problem> {
    for (index, route) in config.route.iter().enumerate() {
        let (options, at) = (&route.tls_options, |key: &str| format!("route[{index}].tls_options.{key}"));
        if !options.names.is_empty() && route.tls != TlsUseKey::Verified {
            let message = "names are proven with tls = \"verified\" alone";
            return Err(Problem::new(at("names"), message, "add tls = \"verified\" to the route, or leave names out"));
        }
        match (&options.certificate, &options.key) {
            (Some(_), None) => {
                return Err(Problem::new(
                    at("certificate"),
                    "a certificate without its key",
                    "add key = \"…/key.pem\"",
                ));
            }
            (None, Some(_)) => {
                let hint = "add certificate = \"…/chain.pem\"";
                return Err(Problem::new(at("key"), "a key without its certificate", hint));
            }
            _ => {}
        }
    }
    if config.outbound_tls.policy_port == 0 {
        return Err(Problem::new("outbound_tls.policy_port", "there is no port 0", "443 is the port of HTTPS"));
    }
    Ok(())
}
