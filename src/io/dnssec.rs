//! What DNSSEC proves of a domain's mail hosts, and their TLSA records (RFC 7672): asked for where a route obeys DANE.
//!
//! The proof is made here, from the keys of the root or those of the operator, and is the name server's only in so far as that
//! hands on what it needs. A domain whose MX records are proven, or proven not to be there, has its hosts looked at; for others
//! nothing is asked. What is neither proven nor proven to be unsigned is not used: mail waits, since the one who spoils a proof
//! may be the one who wants the mail (2.1.1).

use crate::io::dns::{
    DnsConfig, DnsFailure, LOOKUP_TIME, MAX_TEXTS, Resolution, ResolverError, TTL_MIN, hickory, mail_exchange,
    remaining,
};
use crate::limits::UNMET_POLICY_TTL;
use crate::policy::dane::Tlsa;
use crate::policy::outbound_tls::HostTls;
use hickory_resolver::TokioResolver;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::dnssec::{Proof, TrustAnchors};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Looks up what can be proven.
pub struct Prover {
    resolver: TokioResolver,
}

impl std::fmt::Debug for Prover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prover").finish_non_exhaustive()
    }
}

/// What came of a question.
enum Proven<T> {
    /// These records, for so long.
    Records(Vec<T>, Duration),
    /// There are none, and that is proven.
    Nothing,
    /// It is proven that nothing can be proven here.
    Unsigned,
    /// Not known.
    Unknown(String),
}

impl Prover {
    /// With the keys in this file, else those of the root; tokio must run.
    ///
    /// # Errors
    /// When the file cannot be used, or no name server is known.
    pub fn new(config: &DnsConfig, anchors: Option<&Path>) -> Result<Prover, ResolverError> {
        let anchors = match anchors {
            Some(file) => {
                let wrong = |what: String| ResolverError(format!("{}: {what}", file.display()));
                let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
                if !text.contains("DNSKEY") {
                    return Err(wrong("it holds no DNSKEY record".into()));
                }
                text.parse::<TrustAnchors>().map_err(|error| wrong(error.to_string()))?
            }
            None => TrustAnchors::default(),
        };
        Ok(Prover { resolver: hickory(config, crate::io::dns::CACHED_ANSWERS, Some(Arc::new(anchors)))? })
    }

    /// Looks at the hosts of a domain: which of them DNSSEC proves to be its own, and what they ask of TLS at this port. Hosts
    /// of which that cannot be found out are taken away. Ends within [`LOOKUP_TIME`].
    pub async fn prove(&self, domain: &str, port: u16, resolution: &mut Resolution) {
        if resolution.result.is_err() || domain.starts_with('[') {
            return;
        }
        let unmet = |why: String| Err(DnsFailure::Policy(why));
        match tokio::time::timeout(LOOKUP_TIME, self.look(domain, port, resolution)).await {
            Ok(Ok(())) => return,
            Ok(Err(why)) => resolution.result = unmet(why),
            Err(_) => {
                let why = format!("DNSSEC: nothing was proven of {domain} within {} s", LOOKUP_TIME.as_secs());
                resolution.result = unmet(why);
            }
        }
        resolution.ttl = resolution.ttl.min(UNMET_POLICY_TTL);
    }

    async fn look(&self, domain: &str, port: u16, resolution: &mut Resolution) -> Result<(), String> {
        let Ok(hosts) = &mut resolution.result else { return Ok(()) };
        match self.lookup(domain, RecordType::MX, mail_exchange).await {
            Proven::Records(exchanges, ttl) => {
                hosts.retain(|host| exchanges.iter().any(|(_, name)| *name == host.name));
                resolution.ttl = resolution.ttl.min(ttl.max(TTL_MIN));
                if hosts.is_empty() {
                    return Err(format!(
                        "DNSSEC: the MX records of {domain} that were given are not those that are proven"
                    ));
                }
            }
            // The domain is its own host.
            Proven::Nothing => {}
            Proven::Unsigned => return Ok(()),
            Proven::Unknown(why) => {
                return Err(format!(
                    "DNSSEC: the MX records of {domain} are neither proven nor proven to be unsigned: {why}"
                ));
            }
        }
        let mut trouble = Vec::new();
        let mut kept = Vec::with_capacity(hosts.len());
        for mut host in std::mem::take(hosts) {
            let name = format!("_{port}._tcp.{}", host.name);
            match self.lookup(&name, RecordType::TLSA, tlsa).await {
                Proven::Records(mut records, ttl) => {
                    records.truncate(MAX_TEXTS);
                    records.retain(Tlsa::is_usable);
                    records.sort();
                    resolution.ttl = resolution.ttl.min(ttl.max(TTL_MIN));
                    host.tls = if records.is_empty() { HostTls::Encrypted } else { HostTls::Dane(records.into()) };
                    kept.push(host);
                }
                Proven::Nothing | Proven::Unsigned => kept.push(host),
                Proven::Unknown(why) => trouble.push(format!("{}: {why}", host.name)),
            }
        }
        if kept.is_empty() {
            return Err(format!(
                "DANE: the TLSA records of {domain}'s hosts are neither proven nor proven to be unsigned: {}",
                trouble.join("; ")
            ));
        }
        *hosts = kept;
        Ok(())
    }

    async fn lookup<T>(&self, name: &str, kind: RecordType, read: fn(&RData) -> Option<T>) -> Proven<T> {
        let Ok(name) = Name::from_ascii(format!("{}.", name.trim_end_matches('.'))) else { return Proven::Nothing };
        match self.resolver.lookup(name, kind).await {
            Ok(lookup) => {
                let proof = lookup.answers().iter().map(|record| record.proof).min().unwrap_or_default();
                let values: Vec<T> = lookup.answers().iter().filter_map(|record| read(&record.data)).collect();
                match proof {
                    Proof::Secure if values.is_empty() => Proven::Nothing,
                    Proof::Secure => Proven::Records(values, remaining(lookup.valid_until().into())),
                    Proof::Insecure => Proven::Unsigned,
                    Proof::Bogus | Proof::Indeterminate => Proven::Unknown("its signatures do not prove it".into()),
                }
            }
            Err(NetError::Dns(DnsError::Nsec { proof: Proof::Secure, .. })) => Proven::Nothing,
            Err(NetError::Dns(DnsError::Nsec { proof: Proof::Insecure, .. })) => Proven::Unsigned,
            Err(NetError::Dns(DnsError::NoRecordsFound(none)))
                if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError) =>
            {
                let proofs = none.authorities.iter().flat_map(|records| records.iter().map(|record| record.proof));
                if proofs.min() == Some(Proof::Secure) { Proven::Nothing } else { Proven::Unsigned }
            }
            Err(NetError::Timeout) => Proven::Unknown("no name server answered in time".into()),
            Err(error) => Proven::Unknown(error.to_string()),
        }
    }
}

fn tlsa(data: &RData) -> Option<Tlsa> {
    match data {
        RData::TLSA(tlsa) => Some(Tlsa {
            usage: tlsa.cert_usage.into(),
            selector: tlsa.selector.into(),
            matching: tlsa.matching.into(),
            data: tlsa.cert_data.clone().into(),
        }),
        _ => None,
    }
}
