//! TLS as configured: which files the certificates are in, what each listener asks of its clients, and the set-ups for
//! deliveries.

use super::ServeError;
use crate::config::outbound_tls;
use crate::config::{AcmeSection, ClientCertificates, Config, ListenerSection, Problem};
use crate::control::AcmeParts;
use crate::control::acme::{self, AcmePlan};
use crate::control::acme_challenges::Challenges;
use crate::control::certificates::{
    CertificatePlan, CertificateView, Certificates, ClientRule, ListenerPlan, PairFiles,
};
use crate::control::log::EventLog;
use crate::event::Severity;
use crate::io::bind::{self, BindError};
use crate::io::certificate::Pair;
use crate::io::clock;
use crate::io::own_certificate;
use crate::io::peer_proof;
use crate::io::presented::ClientProof;
use crate::io::tls::{self, TlsSetup, TlsSetupError};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::net::TcpListener;

/// What is said about each file that cannot be used.
const HINT: &str = "the relay would not start; it reads these files as the user that it runs as";

/// Everything that shards need for TLS, and what watches over the certificates.
pub(super) fn tls_setup(config: &Config, log: &EventLog) -> Result<(TlsSetup, Certificates), TlsSetupError> {
    let certificates = Certificates::open(plan(config), Some(log), clock::now().unix)?;
    let roots = match &config.outbound_tls.authorities {
        Some(file) => Ok(tls::load_roots(file)?),
        None => tls::system_roots(),
    };
    if let Err(trouble) = &roots {
        log.notice(Severity::Warning, &format!("no certificate of a peer can be verified: {trouble}"));
    }
    let clients = outbound_tls::client_setups(config).into_iter();
    let setup = TlsSetup {
        server: certificates.listeners(),
        clients: clients.map(|setup| tls::client_delivering(setup.tls13_alone, setup.own)).collect::<Result<_, _>>()?,
        authorities: roots.ok().and_then(peer_proof::authorities),
    };
    Ok((setup, certificates))
}

/// Where the certificates are and who presents them.
pub(super) fn plan(config: &Config) -> CertificatePlan {
    let listeners = config.listener.iter().flat_map(|listener| {
        let plan = ListenerPlan { logins: listener.authentication(), clients: client_rule(listener) };
        std::iter::repeat_n(plan, listener.address.len())
    });
    let awaited = config.tls.acme.as_ref().map(|_| {
        let file = acme::certificate_file(&acme_directory(config));
        PairFiles { certificate: file.clone(), key: file, awaited: true }
    });
    CertificatePlan {
        pairs: pairs(config).map(|(_, pair)| pair).chain(awaited).collect(),
        own: Some((config.spool.dir.clone(), config.effective_hostname())),
        listeners: listeners.collect(),
    }
}

fn acme_directory(config: &Config) -> PathBuf {
    config.spool.dir.join("tls").join("acme")
}

/// What is ordered by ACME.
pub(super) fn acme_plan(config: &Config) -> Result<Option<AcmePlan>, TlsSetupError> {
    let Some(acme) = &config.tls.acme else { return Ok(None) };
    Ok(Some(AcmePlan {
        directory: acme.directory.clone(),
        contact: acme.contact.iter().map(|address| format!("mailto:{address}")).collect(),
        external: external_account(acme),
        domains: acme.effective_domains(config.effective_hostname()),
        tls: tls::client_verify_by(acme.authorities.as_deref())?,
        files: acme_directory(config),
        http: !acme.http.is_empty(),
        alpn: !acme.alpn.is_empty(),
    }))
}

fn external_account(acme: &AcmeSection) -> Option<(String, PathBuf)> {
    Some((acme.external_account.clone()?, acme.external_account_key_file.clone()?))
}

/// The ports for challenges of ACME, bound and not yet listening.
#[derive(Debug, Default)]
pub(super) struct ChallengeSockets {
    http: Vec<(SocketAddr, OwnedFd)>,
    alpn: Vec<(SocketAddr, OwnedFd)>,
}

impl ChallengeSockets {
    /// Binds them.
    pub(super) fn bind(config: &Config) -> Result<ChallengeSockets, BindError> {
        let Some(acme) = &config.tls.acme else { return Ok(ChallengeSockets::default()) };
        let bound = |addresses: &[SocketAddr]| {
            let mut sockets = Vec::new();
            for &address in addresses {
                sockets.extend(bind::reserve(address, 1)?.into_iter().map(|socket| (address, socket)));
            }
            Ok(sockets)
        };
        Ok(ChallengeSockets { http: bound(&acme.http)?, alpn: bound(&acme.alpn)? })
    }
}

/// What orders a certificate, within the runtime.
pub(super) fn acme_parts(plan: AcmePlan, sockets: ChallengeSockets) -> Result<AcmeParts, ServeError> {
    let listening = |sockets: Vec<(SocketAddr, OwnedFd)>| {
        let mut listeners = Vec::new();
        for (address, socket) in sockets {
            bind::listen(&socket, address).map_err(ServeError::Bind)?;
            let listener = std::net::TcpListener::from(socket);
            let ready = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
            listeners
                .push(ready.map_err(|cause| ServeError::Start { what: "the port for challenges of ACME", cause })?);
        }
        Ok::<_, ServeError>(listeners)
    };
    let (http, alpn) = (listening(sockets.http)?, listening(sockets.alpn)?);
    Ok(AcmeParts { plan, challenges: Challenges::new()?, http, alpn })
}

fn client_rule(listener: &ListenerSection) -> Option<ClientRule> {
    let authorities = listener.client_authorities.clone()?;
    let required = listener.client_certificates == ClientCertificates::Require;
    Some(ClientRule { authorities, required })
}

/// The configured pairs, each with the path of its keys in the configuration.
fn pairs(config: &Config) -> impl Iterator<Item = (String, PairFiles)> {
    let files = |certificate: &Path, key: &Path| PairFiles {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        awaited: false,
    };
    let first = match (&config.tls.certificate, &config.tls.key) {
        (Some(certificate), Some(key)) => Some(("tls".to_owned(), files(certificate, key))),
        _ => None,
    };
    let more = config.tls.pair.iter().enumerate();
    first
        .into_iter()
        .chain(more.map(move |(index, pair)| (format!("tls.pair[{index}]"), files(&pair.certificate, &pair.key))))
}

/// Every file that is read again while the relay runs.
pub(super) fn files(config: &Config) -> Vec<PathBuf> {
    let pairs = pairs(config).flat_map(|(_, pair)| [pair.certificate, pair.key]);
    let authorities = config.listener.iter().filter_map(|listener| listener.client_authorities.clone());
    let acme = config.tls.acme.iter().flat_map(|acme| [&acme.authorities, &acme.external_account_key_file]);
    let acme = acme.flatten().cloned();
    let outbound = outbound_tls::files(config).cloned();
    pairs.chain(authorities).chain(acme).chain(outbound).collect()
}

/// Reads all files with certificates, as the start will, and says what they are: a line for each certificate.
///
/// # Errors
/// With the key of the configuration that names a file which cannot be used.
pub fn check_files(config: &Config) -> Result<Vec<String>, Problem> {
    let mut lines = Vec::new();
    for (path, files) in pairs(config) {
        let problem = |key: &str, error: TlsSetupError| Problem::new(format!("{path}.{key}"), error.to_string(), HINT);
        let chain = tls::load_chain(&files.certificate).map_err(|error| problem("certificate", error))?;
        let key = tls::load_key(&files.key).map_err(|error| problem("key", error))?;
        let pair = Pair::new(chain, key, &files.certificate).map_err(|error| problem("certificate", error))?;
        let (file, facts) = (files.certificate.display(), &pair.facts);
        lines.push(format!("certificate {file} for {}, until {}", facts.title(), facts.not_after));
    }
    for (index, rule) in config.listener.iter().enumerate().filter_map(|(index, one)| Some((index, client_rule(one)?)))
    {
        ClientProof::load(&rule.authorities, rule.required)
            .map_err(|error| Problem::new(format!("listener[{index}].client_authorities"), error.to_string(), HINT))?;
    }
    if let Some(file) = config.tls.acme.as_ref().and_then(|acme| acme.authorities.as_deref()) {
        tls::load_roots(file).map_err(|error| Problem::new("tls.acme.authorities", error.to_string(), HINT))?;
    }
    if let Some((name, file)) = config.tls.acme.as_ref().and_then(external_account) {
        acme::external_account(name, &file)
            .map_err(|error| Problem::new("tls.acme.external_account_key_file", error, HINT))?;
    }
    if let Some(file) = &config.outbound_tls.authorities {
        tls::load_roots(file).map_err(|error| Problem::new("outbound_tls.authorities", error.to_string(), HINT))?;
    }
    for (index, route) in config.route.iter().enumerate() {
        let options = &route.tls_options;
        tls::client_delivering(false, options.certificate.as_deref().zip(options.key.as_deref())).map_err(|error| {
            Problem::new(format!("route[{index}].tls_options.certificate"), error.to_string(), HINT)
        })?;
    }
    Ok(lines)
}

/// The certificates that a relay with this configuration would present now; none is made for that.
///
/// # Errors
/// For the first file that cannot be used.
pub fn certificates_of(config: &Config) -> Result<Vec<CertificateView>, TlsSetupError> {
    let mut plan = plan(config);
    plan.own = None;
    if plan.pairs.iter().all(|pair| pair.awaited && !pair.certificate.exists()) {
        let (certificate, key) = own_certificate::files(&config.spool.dir);
        plan.pairs.push(PairFiles { certificate, key, awaited: true });
    }
    let now = clock::now().unix;
    Ok(Certificates::open(plan, None, now)?.list(now))
}
