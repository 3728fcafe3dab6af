//! What a DKIM signature costs (RFC 6376), with RSA of 2,048 bits and with Ed25519, over messages of 1 KB, 10 KB and 1 MB,
//! header relaxed and body simple: ours (`signed`), mail-auth's own signer (`library`), and the bare cryptography: the hash of
//! the body and one signature over a short text (`bare`). Ours may take 15 % more than the bare one.
//! Run with `cargo bench -p ringpost-bench --bench dkim`.
//!
//! Bound: 0.5 ms for 10 KB with RSA, 0.1 ms with Ed25519. A signature is made on the shard, and the shard holds up
//! every other session meanwhile; time to the 250 may be 1 ms above twice a bare sync at the 99th percentile (issue 4),
//! and one signature may take half of that. What the size adds is the digest's and the canonicalisation's: 1 MB may
//! take 5 ms, a quarter of a shard's tick (20 ms); a machine that is slower must sign such messages elsewhere. The
//! processor time is not part of the 50 us for accepting: whoever asks for RSA signatures gets at most one core's 2,000
//! to 4,000 a second.
//!
//! The body is simple because mail-auth 0.13 computes a wrong bh= for relaxed bodies that end with lines of white space
//! only; a newer one does not build with the compiler that ringpost supports.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mail_auth::common::crypto::{Ed25519Key, RsaKey, Sha256, SigningKey};
use mail_auth::common::headers::HeaderWriter;
use mail_auth::dkim::{Canonicalization, DkimSigner, Done};
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use ringpost::clock::UnixTime;
use ringpost::policy::dkim::{Algorithm, Body, sign};
use ringpost::policy::headers::section_len;
use ringpost_bench::content;
use std::hint::black_box;

const CONTENTS: [(&str, usize); 3] = [("1 KB", 1024), ("10 KB", 10 * 1024), ("1 MB", 1024 * 1024)];

/// What a bulk sender's signature covers.
const HEADERS: [&str; 6] = ["From", "To", "Subject", "Date", "Message-ID", "MIME-Version"];

fn signer<K: SigningKey>(key: K) -> DkimSigner<K, Done> {
    DkimSigner::from_key(key)
        .domain("news.example.com")
        .selector("s2026")
        .headers(HEADERS)
        .header_canonicalization(Canonicalization::Relaxed)
        .body_canonicalization(Canonicalization::Simple)
}

/// Ours, whole: the header section is found, the body hashed, the field written.
fn measure_ours(criterion: &mut Criterion, name: &str, algorithm: Algorithm, pkcs8: &[u8]) {
    let key = ringpost::policy::dkim::SigningKey::new("news.example.com", "s2026", algorithm, pkcs8).expect("a key");
    let mut group = criterion.benchmark_group(format!("dkim/{name}/signed"));
    for (size, octets) in CONTENTS {
        let message = content(octets);
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| {
                let message = black_box(&message);
                let (section, rest) = message.split_at(section_len(message).unwrap_or_default());
                let mut body = Body::default();
                body.update(rest);
                let mut out = Vec::with_capacity(2048);
                sign([&key].into_iter(), section, &body.finish(), UnixTime::from_millis(1_790_000_000_000), &mut out)
                    .map(|()| out)
            });
        });
    }
    group.finish();
}

fn measure<K: SigningKey<Hasher = Sha256>>(criterion: &mut Criterion, name: &str, key: K) {
    let mut group = criterion.benchmark_group(format!("dkim/{name}/bare"));
    for (size, octets) in CONTENTS {
        let message = content(octets);
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| (key.hash(&black_box(&message)[..]), key.sign(&b"a short text"[..])));
        });
    }
    group.finish();
    let signer = signer(key);
    let mut group = criterion.benchmark_group(format!("dkim/{name}/library"));
    for (size, octets) in CONTENTS {
        let message = content(octets);
        let header = signer.sign(&message).expect("a sound message is signed").to_header();
        assert!(header.contains("c=relaxed/simple") && header.contains("bh="), "{header}");
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| signer.sign(black_box(&message)).map(|signature| signature.to_header()));
        });
    }
    group.finish();
}

fn signatures(criterion: &mut Criterion) {
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key is made");
    measure_ours(criterion, "RSA-2048", Algorithm::Rsa, &rsa.serialize_der());
    measure(criterion, "RSA-2048", RsaKey::<Sha256>::from_key_der(rsa.into()).expect("it is a key"));
    let ed25519 = Ed25519Key::generate_pkcs8().expect("a key is made");
    measure_ours(criterion, "Ed25519", Algorithm::Ed25519, &ed25519);
    measure(criterion, "Ed25519", Ed25519Key::from_pkcs8_der(&ed25519).expect("it is a key"));
}

criterion_group!(benches, signatures);
criterion_main!(benches);
