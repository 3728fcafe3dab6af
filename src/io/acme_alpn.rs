//! Answers to the challenge tls-alpn-01 (RFC 8737): a handshake for the protocol `acme-tls/1` that presents a certificate made for
//! it, and nothing after it.

use crate::io::tls::{TlsSetupError, VERSIONS, provider};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// The protocol's name (RFC 8737 section 6.2).
const PROTOCOL: &[u8] = b"acme-tls/1";

/// Answers by domain.
#[derive(Debug, Default)]
struct Answers(Mutex<HashMap<Box<str>, Arc<CertifiedKey>>>);

impl Answers {
    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<CertifiedKey>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for Answers {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // A client that names no protocol gets this far, and no further.
        let mut protocols = hello.alpn()?;
        let name = hello.server_name()?.to_ascii_lowercase();
        if !protocols.any(|protocol| protocol == PROTOCOL) {
            return None;
        }
        self.lock().get(&*name).map(Arc::clone)
    }
}

/// Answers challenges.
#[derive(Clone)]
pub struct AlpnResponder {
    answers: Arc<Answers>,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for AlpnResponder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlpnResponder").finish_non_exhaustive()
    }
}

impl AlpnResponder {
    /// Without any answer yet.
    ///
    /// # Errors
    /// When the crypto provider lacks a protocol version.
    pub fn new() -> Result<AlpnResponder, TlsSetupError> {
        let answers = Arc::new(Answers::default());
        let resolver: Arc<dyn ResolvesServerCert> = Arc::<Answers>::clone(&answers);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.send_tls13_tickets = 0;
        Ok(AlpnResponder { answers, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Answers for this domain from now on; `digest` is SHA-256 of the key authorization (RFC 8737 section 3).
    ///
    /// # Errors
    /// In words, when the certificate cannot be made.
    pub fn offer(&self, domain: &str, digest: &[u8]) -> Result<(), String> {
        let words = |error: rcgen::Error| format!("the certificate of a challenge cannot be made: {error}");
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(words)?;
        let mut params = rcgen::CertificateParams::new(vec![domain.to_owned()]).map_err(words)?;
        params.custom_extensions.push(rcgen::CustomExtension::new_acme_identifier(digest));
        let certificate = params.self_signed(&key).map_err(words)?;
        let signer = any_ecdsa_type(&PrivateKeyDer::Pkcs8(key.serialize_der().into())).map_err(|e| e.to_string())?;
        let pair = CertifiedKey::new(vec![certificate.der().clone()], signer);
        self.answers.lock().insert(domain.to_ascii_lowercase().into(), Arc::new(pair));
        Ok(())
    }

    /// Forgets all answers.
    pub fn clear(&self) {
        self.answers.lock().clear();
    }

    /// Goes through one handshake, and closes.
    ///
    /// # Errors
    /// When the client is none of an ACME server, or goes away.
    pub async fn answer(&self, stream: TcpStream) -> io::Result<()> {
        self.acceptor.accept(stream).await?.shutdown().await
    }
}
