//! Which certificate a client gets, and what is asked of the client's own: several certificates chosen by the name that the
//! client asks for (SNI, RFC 6066 section 3), and proofs of clients' certificates.
//!
//! A set of certificates is a value that is never changed: a reload makes a new one, and sessions that are open keep what they
//! have.

use crate::io::certificate::{Pair, client_certificate};
use crate::io::handler::ClientCertificate;
use crate::io::tls::{TlsSetupError, VERSIONS, load_roots, provider, server_provider, settle};
use foldhash::HashMap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{self, CertificateDer};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use std::path::Path;
use std::sync::Arc;

/// Keys of session tickets, shared by all shards and kept over reloads.
pub type Tickets = Arc<dyn ProducesTickets>;

/// Certificates, the first of which is for clients that ask for no name, or for one that none proves.
#[derive(Debug, Default)]
pub struct Presented {
    all: Vec<Arc<CertifiedKey>>,
    exact: HashMap<Box<str>, Vec<usize>>,
    /// By what follows the first label of a wildcard's name.
    below: HashMap<Box<str>, Vec<usize>>,
}

impl Presented {
    /// These, in the order in which they are preferred where several prove the same name.
    pub fn new<'a>(pairs: impl IntoIterator<Item = &'a Pair>) -> Presented {
        let mut presented = Presented::default();
        for (index, pair) in pairs.into_iter().enumerate() {
            presented.all.push(Arc::clone(&pair.certified));
            for name in &pair.facts.names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut presented.below, parent),
                    None => (&mut presented.exact, &**name),
                };
                map.entry(name.into()).or_default().push(index);
            }
        }
        presented
    }

    /// The certificates for a name, the best first: those that prove it, then all others. An exact name goes before a wildcard,
    /// which stands for one label (RFC 9525 section 6.3).
    fn candidates(&self, name: &str) -> impl Iterator<Item = &Arc<CertifiedKey>> {
        let lower;
        let name = if name.bytes().any(|octet| octet.is_ascii_uppercase()) {
            lower = name.to_ascii_lowercase();
            &*lower
        } else {
            name
        };
        let parent = name.split_once('.').map_or("", |(_, parent)| parent);
        let found = [self.exact.get(name), self.below.get(parent)];
        let found = found.into_iter().flatten().flatten().filter_map(|&index| self.all.get(index));
        found.chain(&self.all)
    }
}

impl ResolvesServerCert for Presented {
    /// Of several the first that the client can verify: so an RSA and a P-256 certificate of one name serve everybody.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut candidates = self.candidates(hello.server_name().unwrap_or(""));
        candidates.find(|pair| pair.key.choose_scheme(hello.signature_schemes()).is_some()).map(Arc::clone)
    }
}

/// What a listener asks of its clients' certificates.
#[derive(Clone, Debug)]
pub struct ClientProof {
    verifier: Arc<dyn ClientCertVerifier>,
    required: bool,
}

impl ClientProof {
    /// Certificates of the authorities in this PEM file prove a client. When `required`, a handshake without such a one
    /// fails; else a client without one is a client like any other.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(authorities: &Path, required: bool) -> Result<ClientProof, TlsSetupError> {
        let roots = Arc::new(load_roots(authorities)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build().map_err(|error| {
            TlsSetupError::File {
                path: authorities.to_owned(),
                problem: error.to_string(),
                expected: "certificates of authorities",
            }
        })?;
        Ok(ClientProof { verifier, required })
    }

    /// Who the client is, where its chain proves it now. What it holds the key of is proven by the handshake already.
    pub(crate) fn client(
        &self,
        chain: &[CertificateDer<'_>],
        now: pki_types::UnixTime,
    ) -> Option<Arc<ClientCertificate>> {
        let (own, others) = chain.split_first()?;
        if !self.required {
            self.verifier.verify_client_cert(own, others, now).ok()?;
        }
        client_certificate(own).map(Arc::new)
    }
}

/// Asks for a certificate and takes any: whether it proves somebody is looked at when the handshake is done, since a client
/// that shows one which is of no use here may still send as one without.
#[derive(Debug)]
struct Requested(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Requested {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: pki_types::UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// What a listener presents and asks for, as one value.
#[derive(Clone, Debug)]
pub struct ListenerTls {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) clients: Option<ClientProof>,
}

impl ListenerTls {
    /// Presents these certificates. Sessions are resumed by tickets where no certificates of clients are asked for; else each
    /// connection proves its own anew, so that neither an expired one nor one of another listener's authorities lives on in a
    /// ticket.
    ///
    /// # Errors
    /// When the crypto provider lacks a protocol version.
    pub fn new(
        presented: Arc<Presented>,
        clients: Option<ClientProof>,
        tickets: &Tickets,
    ) -> Result<ListenerTls, TlsSetupError> {
        let builder = ServerConfig::builder_with_provider(server_provider()).with_protocol_versions(VERSIONS)?;
        let builder = match &clients {
            None => builder.with_no_client_auth(),
            Some(proof) if proof.required => builder.with_client_cert_verifier(Arc::clone(&proof.verifier)),
            Some(proof) => builder.with_client_cert_verifier(Arc::new(Requested(Arc::clone(&proof.verifier)))),
        };
        let mut config = builder.with_cert_resolver(presented);
        settle(&mut config, clients.is_none().then(|| Arc::clone(tickets)));
        Ok(ListenerTls { config: Arc::new(config), clients })
    }
}

impl From<Arc<ServerConfig>> for ListenerTls {
    /// A set-up that was made elsewhere and asks for no certificates of clients.
    fn from(config: Arc<ServerConfig>) -> ListenerTls {
        ListenerTls { config, clients: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::certificate::CertificateFacts;
    use crate::io::tls::{self, ticketer};
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
        date_time_ymd,
    };
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConnection, SupportedProtocolVersion};

    fn pair(names: &[&str], kind: &'static rcgen::SignatureAlgorithm) -> Pair {
        let key = KeyPair::generate_for(kind).unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Pair::new(vec![certificate.der().clone()], key, Path::new("test.pem")).unwrap()
    }

    /// A handshake in memory: the client's end and the server's, or what was wrong and with whom.
    fn handshake(
        server: &ListenerTls,
        client: &Arc<ClientConfig>,
        name: &str,
    ) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::clone(&server.config)).unwrap();
        while client.wants_write() || server.wants_write() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            server.read_tls(&mut &bytes[..]).unwrap();
            server.process_new_packets()?;
            bytes.clear();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets()?;
        }
        assert!(!server.is_handshaking());
        Ok((client, server))
    }

    /// The names of the certificate that a client gets.
    fn got(server: &ListenerTls, client: &Arc<ClientConfig>, name: &str) -> String {
        let (client, _) = handshake(server, client, name).unwrap();
        CertificateFacts::of(&client.peer_certificates().unwrap()[0]).unwrap().title()
    }

    #[test]
    fn certificates_are_chosen_by_name_and_the_first_is_for_everybody_else() {
        let (p256, ed25519) = (&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519);
        let pairs = [
            pair(&["mail.example.org"], p256),
            pair(&["mx.example.net", "*.example.net"], p256),
            pair(&["special.example.net"], p256),
            pair(&["two.example"], ed25519),
            pair(&["two.example", "second.example"], p256),
        ];
        let server = ListenerTls::new(Arc::new(Presented::new(&pairs)), None, &ticketer().unwrap()).unwrap();
        let client = tls::client_opportunistic().unwrap();
        for (asked, given) in [
            ("mail.example.org", "mail.example.org"),
            ("Mail.EXAMPLE.org", "mail.example.org"),
            ("mx.example.net", "mx.example.net *.example.net"),
            ("any.example.net", "mx.example.net *.example.net"),
            ("special.example.net", "special.example.net"),
            ("two.example", "two.example"),
            // One label alone; and neither the parent nor a name that ends alike.
            ("a.b.example.net", "mail.example.org"),
            ("example.net", "mail.example.org"),
            ("evilexample.net", "mail.example.org"),
            ("unknown.example", "mail.example.org"),
            // No SNI is sent for an address.
            ("192.0.2.1", "mail.example.org"),
        ] {
            assert_eq!(got(&server, &client, asked), given, "{asked}");
        }
        // Clients of the older version tell which signatures they can verify, and this one cannot verify Ed25519.
        let mut provider = aws_lc_rs::default_provider();
        let all = provider.signature_verification_algorithms.mapping;
        let without: Vec<_> = all.iter().copied().filter(|(scheme, _)| *scheme != SignatureScheme::ED25519).collect();
        provider.signature_verification_algorithms.mapping = Vec::leak(without);
        let config =
            ClientConfig::builder_with_provider(Arc::new(provider.clone())).with_safe_default_protocol_versions();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(pairs[4].certified.cert[0].clone()).unwrap();
        let old = Arc::new(config.unwrap().with_root_certificates(roots).with_no_client_auth());
        assert_eq!(got(&server, &old, "two.example"), "two.example second.example");
    }

    /// An authority and a file with its certificate.
    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        file: std::path::PathBuf,
    }

    impl Authority {
        fn new(name: &str) -> Authority {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.self_signed(&key).unwrap();
            let file = crate::io::testing::directory(name).join("authority.pem");
            std::fs::write(&file, certificate.pem()).unwrap();
            Authority { issuer: Issuer::new(params, key), file }
        }

        /// A client with a certificate of it for app.example, good until this year.
        fn client(&self, until: i32, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["app.example".to_owned()]).unwrap();
            params.subject_alt_names.push(SanType::Rfc822Name("ann@app.example".try_into().unwrap()));
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(until, 1, 1));
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
            let builder = tls::taking_any_certificate(provider(), &[version]).unwrap();
            Arc::new(builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap())
        }
    }

    fn asking(authority: &Authority, required: bool, tickets: &Tickets) -> ListenerTls {
        let presented = Arc::new(Presented::new(&[pair(&["mail.example.org"], &rcgen::PKCS_ECDSA_P256_SHA256)]));
        let proof = ClientProof::load(&authority.file, required).unwrap();
        ListenerTls::new(presented, Some(proof), tickets).unwrap()
    }

    /// Whom a listener takes the client for.
    fn client_of(server: &ListenerTls, connection: &ServerConnection) -> Option<Arc<ClientCertificate>> {
        server.clients.as_ref()?.client(connection.peer_certificates()?, pki_types::UnixTime::now())
    }

    #[test]
    fn a_required_certificate_is_there_good_and_of_the_right_authority() {
        let (own, other) = (Authority::new("own"), Authority::new("other"));
        let server = asking(&own, true, &ticketer().unwrap());
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let client = own.client(2100, version);
            let (_, connection) = handshake(&server, &client, "mail.example.org").unwrap();
            let names = client_of(&server, &connection).unwrap().names.clone();
            assert_eq!(names, ["app.example".into(), "ann@app.example".into()]);
            let absent = tls::taking_any_certificate(provider(), &[version]).unwrap().with_no_client_auth();
            for (what, client) in [
                ("none", Arc::new(absent)),
                ("expired", own.client(2021, version)),
                ("of another authority", other.client(2100, version)),
            ] {
                let error = handshake(&server, &client, "mail.example.org").unwrap_err();
                let expected =
                    matches!(error, rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_));
                assert!(expected, "{what}: {error:?}");
            }
        }
    }

    #[test]
    fn a_requested_certificate_proves_its_client_or_nothing() {
        let (own, other) = (Authority::new("requested-own"), Authority::new("requested-other"));
        let server = asking(&own, false, &ticketer().unwrap());
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let absent = tls::taking_any_certificate(provider(), &[version]).unwrap().with_no_client_auth();
            for (what, client, proven) in [
                ("a good one", own.client(2100, version), true),
                ("none", Arc::new(absent), false),
                ("an expired one", own.client(2021, version), false),
                ("one of another authority", other.client(2100, version), false),
            ] {
                let (_, connection) = handshake(&server, &client, "mail.example.org").unwrap();
                assert_eq!(client_of(&server, &connection).is_some(), proven, "{what}");
            }
        }
    }

    #[test]
    fn a_client_proves_itself_anew_on_each_connection_and_no_ticket_leads_round_it() {
        let (own, other) = (Authority::new("tickets-own"), Authority::new("tickets-other"));
        let tickets = ticketer().unwrap();
        let presented = Arc::new(Presented::new(&[pair(&["mail.example.org"], &rcgen::PKCS_ECDSA_P256_SHA256)]));
        let open = ListenerTls::new(presented, None, &tickets).unwrap();
        let (first, second) = (asking(&own, true, &tickets), asking(&other, false, &tickets));
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let client = own.client(2100, version);
            let mut kinds = Vec::new();
            for (server, proven) in
                [(&first, true), (&first, true), (&second, false), (&open, false), (&open, false), (&first, true)]
            {
                let (_, connection) = handshake(server, &client, "mail.example.org").unwrap();
                kinds.push(connection.handshake_kind().unwrap() == HandshakeKind::Resumed);
                assert_eq!(client_of(server, &connection).is_some(), proven);
            }
            assert_eq!(kinds, [false, false, false, false, true, false], "{version:?}");
        }
    }
}
