//! TLS as configured: which files the certificates are in, what each listener asks of its clients, and the set-ups for
//! deliveries.

use crate::config::{ClientCertificates, Config, ListenerSection, Problem};
use crate::control::certificates::{
    CertificatePlan, CertificateView, Certificates, ClientRule, ListenerPlan, PairFiles,
};
use crate::control::log::EventLog;
use crate::event::Severity;
use crate::io::certificate::Pair;
use crate::io::clock;
use crate::io::own_certificate;
use crate::io::presented::ClientProof;
use crate::io::tls::{self, TlsSetup, TlsSetupError};
use std::path::{Path, PathBuf};

/// What is said about each file that cannot be used.
const HINT: &str = "the relay would not start; it reads these files as the user that it runs as";

/// Everything that shards need for TLS, and what watches over the certificates.
pub(super) fn tls_setup(config: &Config, log: &EventLog) -> Result<(TlsSetup, Certificates), TlsSetupError> {
    let certificates = Certificates::open(plan(config), Some(log), clock::now().unix)?;
    let (client_verify, trouble) = tls::client_verify_system()?;
    if let Some(trouble) = trouble {
        log.notice(Severity::Warning, &format!("no certificate of a peer can be verified: {trouble}"));
    }
    let setup = TlsSetup {
        server: certificates.listeners(),
        client_verify,
        client_opportunistic: tls::client_opportunistic()?,
    };
    Ok((setup, certificates))
}

/// Where the certificates are and who presents them.
pub(super) fn plan(config: &Config) -> CertificatePlan {
    let listeners = config.listener.iter().flat_map(|listener| {
        let plan = ListenerPlan { logins: listener.authentication(), clients: client_rule(listener) };
        std::iter::repeat_n(plan, listener.address.len())
    });
    CertificatePlan {
        pairs: pairs(config).map(|(_, pair)| pair).collect(),
        own: Some((config.spool.dir.clone(), config.effective_hostname())),
        listeners: listeners.collect(),
    }
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
    pairs.chain(config.listener.iter().filter_map(|listener| listener.client_authorities.clone())).collect()
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
    Ok(lines)
}

/// The certificates that a relay with this configuration would present now; none is made for that.
///
/// # Errors
/// For the first file that cannot be used.
pub fn certificates_of(config: &Config) -> Result<Vec<CertificateView>, TlsSetupError> {
    let mut plan = plan(config);
    plan.own = None;
    if plan.pairs.is_empty() {
        let (certificate, key) = own_certificate::files(&config.spool.dir);
        plan.pairs.push(PairFiles { certificate, key, awaited: true });
    }
    let now = clock::now().unix;
    Ok(Certificates::open(plan, None, now)?.list(now))
}
