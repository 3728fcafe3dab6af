//! TLS set-ups: certificates, keys, roots and what both sides of a handshake accept. rustls with aws-lc-rs, TLS 1.2 and 1.3
//! only. The bytes of a connection are driven in tls_link.rs; what a session does with TLS is the protocol's affair.
//!
//! A set-up fails at start or at reload, with an error that names the file and what to do; a running server keeps its
//! present certificates then, since they are swapped as a whole.

use crate::io::peer_proof::Authorities;
use crate::io::presented::{ListenerTls, Tickets};
use crate::io::unreadable::unreadable;
use crate::limits::{CERTIFICATE_FILE_OCTETS_MAX, KEY_FILE_OCTETS_MAX};
use arc_swap::ArcSwap;
use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{
    CipherSuite, ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The protocol versions that are spoken: older ones are broken (RFC 8996).
pub(crate) const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// The key exchanges that listeners take, the one that also withstands quantum computers first. A client's own order
/// decides among them, so that no client pays a round trip for one that it does not prefer itself.
pub(crate) const SERVER_KEY_EXCHANGES: [&dyn SupportedKxGroup; 4] = [X25519MLKEM768, X25519, SECP256R1, SECP384R1];

/// What is taken before all other suites.
const FIRST_SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];

/// Where the usual systems keep the certificates of authorities, in one file.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// TLS on one listener. Cloning shares it.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// What it presents and asks for; swapped when certificates are renewed.
    pub presented: Arc<ArcSwap<ListenerTls>>,
    /// Whether clients log in here, so that the channel binding may be needed: it costs some microseconds.
    pub exporter: bool,
}

/// Everything about TLS that a shard needs. Cloning shares it.
#[derive(Clone, Debug)]
pub struct TlsSetup {
    /// For each listener what it presents, or one entry for all. Empty when no listener offers TLS: a handshake then fails
    /// in words.
    pub server: Vec<ServerTls>,
    /// For deliveries, by their place; the first is the usual one. They take any certificate: whom it proves is looked at
    /// behind the handshake, where that is asked for (src/io/peer_proof.rs). Opportunistic TLS (RFC 7435) protects from
    /// listeners, not from impostors.
    pub clients: Vec<Arc<ClientConfig>>,
    /// Who proves names.
    pub authorities: Authorities,
}

impl TlsSetup {
    /// How a delivery speaks TLS.
    pub(crate) fn client(&self, setup: u16) -> Option<&Arc<ClientConfig>> {
        self.clients.get(usize::from(setup)).or_else(|| self.clients.first())
    }

    /// What a listener presents: its own, else what all share.
    pub(crate) fn server_for(&self, listener: usize) -> Option<&ServerTls> {
        self.server.get(listener).or_else(|| self.server.first())
    }
}

/// Why TLS could not be set up; the text names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// A file could not be read, or does not hold what it should.
    #[error("{path}: {problem}; give a PEM file with {expected} that this process may read")]
    File {
        /// Which file.
        path: PathBuf,
        /// What was wrong.
        problem: String,
        /// What should be in it.
        expected: &'static str,
    },
    /// Others may read the key, or change it.
    #[error("others may use the private key {path} (mode {mode:o}): chmod 640 {path}, or a stricter mode")]
    OpenKey {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A certificate that was made could not be kept.
    #[error("{path} cannot be written: {cause}; check who owns the spool directory, and its disk")]
    Unwritten {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A certificate and its key do not fit together, or use something that is not supported.
    #[error("{path}: {problem}; check that it is a certificate, and that its key is the one of its first certificate")]
    Pair {
        /// The certificate's file.
        path: PathBuf,
        /// What was wrong.
        problem: String,
    },
    /// No file with the certificates of authorities was found.
    #[error("no file with the certificates of authorities was found; install the package ca-certificates")]
    NoRoots,
    /// The certificate and its key do not fit together, or use something that is not supported.
    #[error("the certificate cannot be used: {0}; check that the key belongs to the first certificate of the chain")]
    Certificate(#[from] rustls::Error),
    /// Making a certificate failed.
    #[error("a certificate for {hostname} could not be made: {problem}; check the host name")]
    SelfSigned {
        /// For whom.
        hostname: String,
        /// What was wrong.
        problem: String,
    },
}

/// The cryptography of both sides. Suites with AES-128 and SHA-256 come first: they are no weaker than the key exchange before
/// them, and processors count SHA-256 by instructions of their own. With SHA-384, which they lack, the keys of a handshake
/// take a third of the time of all its cryptography (docs/PERFORMANCE.md).
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    // Versions are chosen before suites, so that the order counts only within one.
    provider.cipher_suites.sort_by_key(|suite| !FIRST_SUITES.contains(&suite.suite()));
    Arc::new(provider)
}

/// The same for listeners, with their key exchanges.
pub(crate) fn server_provider() -> Arc<CryptoProvider> {
    let provider = Arc::unwrap_or_clone(provider());
    Arc::new(CryptoProvider { kx_groups: SERVER_KEY_EXCHANGES.to_vec(), ..provider })
}

/// A fresh key for session tickets. Made once and given to every configuration, so that a client that comes back may land
/// on any shard.
///
/// # Errors
/// When the random source fails.
pub fn ticketer() -> Result<Tickets, TlsSetupError> {
    Ok(aws_lc_rs::Ticketer::new()?)
}

/// What a listener presents: a chain, its own certificate first, and the key of that.
///
/// # Errors
/// When the key does not belong to the certificate or is of a kind that is not supported.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    tickets: Tickets,
) -> Result<Arc<ServerConfig>, TlsSetupError> {
    let mut config = ServerConfig::builder_with_provider(server_provider())
        .with_protocol_versions(VERSIONS)?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    settle(&mut config, Some(tickets));
    Ok(Arc::new(config))
}

/// What all listeners have in common. Without `tickets` no session is resumed.
pub(crate) fn settle(config: &mut ServerConfig, tickets: Option<Tickets>) {
    config.send_tls13_tickets = usize::from(tickets.is_some());
    if let Some(tickets) = tickets {
        config.ticketer = tickets;
    }
    // Tickets hold the state at the client. A server-side store would be a lock that all shards share.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // All suites are sound; which of them is taken is ours to say, whatever order a client was given by somebody.
    config.ignore_client_order = true;
}

/// How a client of TLS behaves; for modules that only pass it on.
pub type ClientTls = Arc<ClientConfig>;

/// For deliveries that ask for a name proven by one of these authorities.
///
/// # Errors
/// When the crypto provider lacks a protocol version.
pub fn client_verify(roots: RootCertStore) -> Result<Arc<ClientConfig>, TlsSetupError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// For questions to a server whose name is proven by the authorities in this file, else by the system's.
///
/// # Errors
/// Names the file that cannot be used, or says that the system has none.
pub fn client_verify_by(authorities: Option<&Path>) -> Result<ClientTls, TlsSetupError> {
    client_verify(authorities.map_or_else(system_roots, load_roots)?)
}

/// For deliveries that ask for a name proven by one of the system's authorities. Where the system has none, every proof
/// fails, and the second value says why.
///
/// # Errors
/// When the crypto provider lacks a protocol version.
pub fn client_verify_system() -> Result<(Arc<ClientConfig>, Option<TlsSetupError>), TlsSetupError> {
    match system_roots() {
        Ok(roots) => Ok((client_verify(roots)?, None)),
        Err(trouble) => Ok((client_verify(RootCertStore::empty())?, Some(trouble))),
    }
}

/// For deliveries that take any certificate (RFC 7435).
///
/// # Errors
/// When the crypto provider lacks a protocol version.
pub fn client_opportunistic() -> Result<Arc<ClientConfig>, TlsSetupError> {
    client_delivering(false, None)
}

/// For deliveries, with TLS 1.3 alone or not, and with a certificate of our own or none.
///
/// # Errors
/// When the files cannot be used.
pub fn client_delivering(tls13_alone: bool, own: Option<(&Path, &Path)>) -> Result<Arc<ClientConfig>, TlsSetupError> {
    let versions = if tls13_alone { &[&rustls::version::TLS13] } else { VERSIONS };
    let builder = taking_any_certificate(provider(), versions)?;
    let config = match own {
        Some((certificate, key)) => builder.with_client_auth_cert(load_chain(certificate)?, load_key(key)?)?,
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// The beginning of a client that takes any certificate.
pub(crate) fn taking_any_certificate(
    provider: Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsSetupError> {
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate { schemes })))
}

/// A certificate chain from a PEM file.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn load_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let fail = |problem: String| TlsSetupError::File {
        path: path.to_owned(),
        problem,
        expected: "the certificate and its chain, the own one first",
    };
    let file = File::open(path).map_err(|error| fail(unreadable(path, &error)))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(file.take(CERTIFICATE_FILE_OCTETS_MAX)).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(fail("it holds no certificate".to_owned())),
        Ok(chain) => Ok(chain),
        Err(error) => Err(fail(error.to_string())),
    }
}

/// A private key from a PEM file (PKCS#8, PKCS#1 or SEC1). Its group may read it, as is usual where several services share
/// a certificate; nobody else may, and only its owner may change it.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsSetupError> {
    let fail = |problem: String| TlsSetupError::File { path: path.to_owned(), problem, expected: "one private key" };
    let file = File::open(path).map_err(|error| fail(unreadable(path, &error)))?;
    // Of the file that was opened: the path may lead to another one a moment later.
    let mode = file.metadata().map_err(|error| fail(error.to_string()))?.permissions().mode() & 0o7777;
    if mode & 0o027 != 0 {
        return Err(TlsSetupError::OpenKey { path: path.to_owned(), mode });
    }
    let key = PrivateKeyDer::pem_reader_iter(file.take(KEY_FILE_OCTETS_MAX)).next();
    match key {
        Some(Ok(key)) => Ok(key),
        Some(Err(error)) => Err(fail(error.to_string())),
        None => Err(fail("it holds no private key".to_owned())),
    }
}

/// The certificates of authorities in a PEM file; those that cannot be used are left out.
///
/// # Errors
/// Names the file when it cannot be read or holds none.
pub fn load_roots(path: &Path) -> Result<RootCertStore, TlsSetupError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(load_chain(path)?);
    if added == 0 {
        return Err(TlsSetupError::File {
            path: path.to_owned(),
            problem: "none of its certificates can be used".to_owned(),
            expected: "certificates of authorities",
        });
    }
    Ok(roots)
}

/// The authorities that this system trusts.
///
/// # Errors
/// When none of the usual files is there, or the one that is cannot be used.
pub fn system_roots() -> Result<RootCertStore, TlsSetupError> {
    match SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists()) {
        Some(path) => load_roots(path),
        None => Err(TlsSetupError::NoRoots),
    }
}

/// A certificate made at start, with a P-256 key, for a server that was given none: enough for opportunistic TLS.
///
/// # Errors
/// When the host name cannot stand in a certificate.
pub fn self_signed(hostname: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsSetupError> {
    let fail =
        |error: rcgen::Error| TlsSetupError::SelfSigned { hostname: hostname.to_owned(), problem: error.to_string() };
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(fail)?;
    let certificate = rcgen::CertificateParams::new(vec![hostname.to_owned()])
        .and_then(|params| params.self_signed(&key))
        .map_err(fail)?;
    Ok((vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into())))
}

/// Takes every certificate, without looking at it: a peer with an odd or expired one is still better encrypted than not.
#[derive(Debug)]
struct AnyCertificate {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Who signed is not asked, so a signature would prove nothing; checking it would only refuse odd certificates.
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_certificate_makes_a_server() {
        let (chain, key) = self_signed("mail.example.org").unwrap();
        assert_eq!(chain.len(), 1);
        server_config(chain, key, ticketer().unwrap()).unwrap();
    }

    #[test]
    fn errors_name_the_file_and_the_cure() {
        let error = load_chain(Path::new("/nonexistent/chain.pem")).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/chain.pem: "), "{error}");
        assert!(error.contains("the own one first"), "{error}");
        let empty = std::env::temp_dir().join(format!("ringpost-empty-{}.pem", std::process::id()));
        std::fs::write(&empty, "nothing\n").unwrap();
        std::fs::set_permissions(&empty, std::fs::Permissions::from_mode(0o600)).unwrap();
        let chain = load_chain(&empty).unwrap_err().to_string();
        let key = load_key(&empty).unwrap_err().to_string();
        std::fs::remove_file(&empty).unwrap();
        assert!(chain.contains("holds no certificate"), "{chain}");
        assert!(key.contains("one private key"), "{key}");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (chain, _) = self_signed("a.example").unwrap();
        let (_, key) = self_signed("b.example").unwrap();
        let error = server_config(chain, key, ticketer().unwrap()).unwrap_err().to_string();
        assert!(error.contains("check that the key belongs"), "{error}");
    }

    /// Both sides in memory, until nothing more is to be said; what was exchanged is the server's to tell.
    fn handshake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> rustls::ServerConnection {
        let name = ServerName::try_from("a.example").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(client), name).unwrap();
        let mut server = rustls::ServerConnection::new(Arc::clone(server)).unwrap();
        while client.wants_write() || server.wants_write() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            server.read_tls(&mut &bytes[..]).unwrap();
            server.process_new_packets().unwrap();
            bytes.clear();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets().unwrap();
        }
        assert!(!server.is_handshaking());
        server
    }

    #[test]
    fn a_client_that_prefers_the_hybrid_key_exchange_gets_it_and_no_other_pays_for_it() {
        use rustls::{HandshakeKind, NamedGroup};
        let (chain, key) = self_signed("a.example").unwrap();
        let server = server_config(chain, key, ticketer().unwrap()).unwrap();
        for (groups, expected) in [
            (vec![X25519MLKEM768, X25519], NamedGroup::X25519MLKEM768),
            (vec![X25519, X25519MLKEM768], NamedGroup::X25519),
            (vec![SECP256R1], NamedGroup::secp256r1),
        ] {
            let provider = CryptoProvider { kx_groups: groups, ..aws_lc_rs::default_provider() };
            let client = taking_any_certificate(Arc::new(provider), VERSIONS).unwrap().with_no_client_auth();
            let done = handshake(&server, &Arc::new(client));
            assert_eq!(done.negotiated_key_exchange_group().unwrap().name(), expected);
            assert_eq!(done.handshake_kind(), Some(HandshakeKind::Full), "no HelloRetryRequest");
        }
    }

    #[test]
    fn the_order_of_suites_is_ours() {
        let (chain, key) = self_signed("a.example").unwrap();
        let server = server_config(chain, key, ticketer().unwrap()).unwrap();
        for (versions, expected) in [
            (&[&rustls::version::TLS13], CipherSuite::TLS13_AES_128_GCM_SHA256),
            (&[&rustls::version::TLS12], CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        ] {
            let mut provider = aws_lc_rs::default_provider();
            provider.cipher_suites.reverse();
            let client = taking_any_certificate(Arc::new(provider), versions).unwrap().with_no_client_auth();
            let done = handshake(&server, &Arc::new(client));
            assert_eq!(done.negotiated_cipher_suite().unwrap().suite(), expected);
        }
    }

    #[test]
    fn a_ticket_of_one_configuration_is_resumed_by_another_with_the_same_key() {
        use rustls::HandshakeKind;
        let tickets = ticketer().unwrap();
        let configuration = |tickets: &Tickets| {
            let (chain, key) = self_signed("a.example").unwrap();
            server_config(chain, key, Arc::clone(tickets)).unwrap()
        };
        let (one, renewed) = (configuration(&tickets), configuration(&tickets));
        let client = client_opportunistic().unwrap();
        assert_eq!(handshake(&one, &client).handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(handshake(&renewed, &client).handshake_kind(), Some(HandshakeKind::Resumed));
        let stranger = configuration(&ticketer().unwrap());
        assert_eq!(handshake(&stranger, &client).handshake_kind(), Some(HandshakeKind::Full));
    }

    #[test]
    fn pem_files_load() {
        let directory = std::env::temp_dir();
        let path = directory.join(format!("ringpost-pair-{}.pem", std::process::id()));
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["x.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(&path, certificate.pem() + &key.serialize_pem()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let loaded = (load_chain(&path), load_key(&path));
        std::fs::remove_file(&path).unwrap();
        server_config(loaded.0.unwrap(), loaded.1.unwrap(), ticketer().unwrap()).unwrap();
    }
}
