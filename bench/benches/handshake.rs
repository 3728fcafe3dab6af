//! What a server's part of a full TLS 1.3 handshake costs in rustls alone, P-256 certificate, in memory: `bare` with rustls'
//! own defaults, `listener` with what our listeners use (io/tls.rs), for clients that offer X25519 alone and for such that
//! offer X25519MLKEM768 first. Only the server's steps are timed.
//! Run with `cargo bench -p ringpost-bench --bench handshake`.
//!
//! Bound: `listener` takes at most a quarter more than `bare`, whose figure is what a connection's TLS is compared with in
//! docs/PERFORMANCE.md. Most of it is one signature with P-256 and one key exchange; a handshake is one step of a shard, and
//! may hold others up for 1 ms.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rcgen::{CertificateParams, KeyPair};
use ringpost::io::tls;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, ServerConnection, SignatureScheme};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Takes every certificate: the client's side is not measured.
#[derive(Debug)]
struct Trusting(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

fn certificate() -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().expect("a P-256 key");
    let params = CertificateParams::new(vec!["mail.example.com".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate");
    (vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

fn client(groups: Vec<&'static dyn SupportedKxGroup>) -> Arc<ClientConfig> {
    let provider = CryptoProvider { kx_groups: groups, ..aws_lc_rs::default_provider() };
    let algorithms = provider.signature_verification_algorithms;
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting(algorithms)))
        .with_no_client_auth();
    // Each handshake is a full one.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// One handshake; the time of the server's part.
fn handshake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Duration {
    let name = ServerName::try_from("mail.example.com").expect("a name");
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let mut wire = Vec::with_capacity(8192);
    let mut spent = Duration::ZERO;
    let begun = Instant::now();
    let mut server = ServerConnection::new(Arc::clone(server)).expect("a server");
    spent += begun.elapsed();
    while client.is_handshaking() || server.is_handshaking() {
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory");
        }
        let begun = Instant::now();
        let mut rest = &wire[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("memory");
            server.process_new_packets().expect("what the client said");
        }
        let mut back = Vec::with_capacity(8192);
        while server.wants_write() {
            server.write_tls(&mut back).expect("memory");
        }
        spent += begun.elapsed();
        wire.clear();
        let mut rest = &back[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            client.process_new_packets().expect("what the server said");
        }
    }
    spent
}

fn measure(criterion: &mut Criterion) {
    let (chain, key) = certificate();
    let bare = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain.clone(), key.clone_key())
        .expect("a pair");
    let tickets = tls::ticketer().expect("tickets");
    let listener = tls::server_config(chain, key, tickets).expect("a pair");
    let clients = [
        ("X25519", client(vec![aws_lc_rs::kx_group::X25519])),
        ("X25519MLKEM768", client(vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519])),
    ];
    let mut group = criterion.benchmark_group("handshake");
    for (exchange, client) in &clients {
        for (name, server) in [("bare", Arc::new(bare.clone())), ("listener", Arc::clone(&listener))] {
            group.bench_function(BenchmarkId::new(name, exchange), |bencher| {
                bencher.iter_custom(|times| (0..times).map(|_| handshake(&server, client)).sum());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, measure);
criterion_main!(benches);
