//! DKIM signatures (RFC 6376, and RFC 8463 for Ed25519): which headers are signed, and the signature's header field.
//!
//! Pure: header section, body hash and time in, header fields out. The cryptography, canonicalisation and form of the field
//! are mail-auth's. Not here: who may sign for a domain (domain.rs), and when in a shard's turn it is done
//! (src/shard/signing.rs).
//!
//! The body is c=simple: relays may not touch it anyway, and the library's relaxed hash is wrong for bodies that end with
//! lines of white space. Headers are relaxed, since many hosts fold them anew.

use crate::clock::UnixTime;
use crate::policy::headers::{Field, fields};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mail_auth::common::crypto::{DkimKey, Ed25519Key, HashContext, HashImpl, RsaKey, Sha256, SigningKey as _};
use mail_auth::common::headers::{Writable, Writer};
use mail_auth::dkim::canonicalize::BodyHasher;
use mail_auth::dkim::{Canonicalization, Signature};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::Zeroizing;

/// The headers that are signed where they are there: each with all its instances, and, where the flag is set, once more than
/// there are, so that nobody can add one (RFC 6376 8.15).
const SIGNED: [(&str, bool); 17] = [
    ("From", true),
    ("To", true),
    ("Cc", true),
    ("Subject", true),
    ("Date", true),
    ("Message-ID", true),
    ("Reply-To", true),
    ("Sender", true),
    ("MIME-Version", true),
    ("Content-Type", true),
    ("Content-Transfer-Encoding", true),
    ("In-Reply-To", false),
    ("References", false),
    ("List-ID", false),
    ("List-Unsubscribe", true),
    ("List-Unsubscribe-Post", true),
    ("Feedback-ID", false),
];

/// Whether signatures cover headers of this name.
pub fn covers(name: &str) -> bool {
    SIGNED.iter().any(|(signed, _)| signed.eq_ignore_ascii_case(name))
}

/// Instances of one header that are signed; those above them stay unsigned, as if they were not known.
const INSTANCES_MAX: usize = 16;

/// The kind of a key.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// RSA with 2,048 bits, which every host verifies.
    Rsa,
    /// Ed25519: small and fast, and not verified everywhere yet.
    Ed25519,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Rsa => "rsa",
            Algorithm::Ed25519 => "ed25519",
        })
    }
}

impl Algorithm {
    /// What a signature costs, about, in microseconds of a core: for dividing a shard's time.
    pub const fn cost_us(self) -> u32 {
        match self {
            Algorithm::Rsa => 300,
            Algorithm::Ed25519 => 30,
        }
    }

    /// A new private key as PKCS#8 (DER). Blocks for some 100 ms for RSA.
    ///
    /// # Errors
    /// When the system has no random octets.
    pub fn generate(self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let failed = |_| KeyError("the system has no random octets".into());
        match self {
            Algorithm::Rsa => {
                let key = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).map_err(failed)?;
                let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = key.as_der().map_err(failed)?;
                Ok(Zeroizing::new(der.as_ref().to_vec()))
            }
            Algorithm::Ed25519 => {
                let key = Ed25519Key::generate_pkcs8().map_err(|error| KeyError(error.to_string()))?;
                Ok(Zeroizing::new(key))
            }
        }
    }
}

/// A private key that is none, or of no use here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(String);

impl KeyError {
    /// Of signatures that are not as long as they should be.
    pub(crate) fn length() -> KeyError {
        KeyError("the signatures are not as long as was expected".into())
    }
}

/// A key that signs: of one domain, under one selector.
pub struct SigningKey {
    template: Signature,
    key: DkimKey,
    algorithm: Algorithm,
    signature_len: usize,
    public: Vec<u8>,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}._domainkey.{}, {})", self.template.s, self.template.d, self.algorithm)
    }
}

impl SigningKey {
    /// From PKCS#8 (DER). Takes some 100 us for RSA, whose numbers are checked.
    ///
    /// # Errors
    /// When it is no such key, or an RSA key of less than 2,048 bits (RFC 8301 3.2 wants as many, and the library takes no
    /// less) or of more than 4,096 (what fits in a record of DNS).
    pub fn new(domain: &str, selector: &str, algorithm: Algorithm, pkcs8: &[u8]) -> Result<SigningKey, KeyError> {
        let wrong = |error: mail_auth::Error| KeyError(format!("no {algorithm} key in PKCS#8: {error}"));
        let (key, signature_len, public) = match algorithm {
            Algorithm::Rsa => {
                let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
                let key = RsaKey::<Sha256>::from_key_der(der).map_err(wrong)?;
                let pair = aws_lc_rs::rsa::KeyPair::from_pkcs8(pkcs8).map_err(|error| KeyError(error.to_string()))?;
                let octets = pair.public_modulus_len();
                if !(256..=512).contains(&octets) {
                    return Err(KeyError(format!("an RSA key of {} bits: 2048 to 4096 are taken", octets * 8)));
                }
                let public: aws_lc_rs::encoding::PublicKeyX509Der<'_> =
                    pair.public_key().as_der().map_err(|_| KeyError("the key has no public half".into()))?;
                (DkimKey::Rsa(key), octets, public.as_ref().to_vec())
            }
            Algorithm::Ed25519 => {
                let key = Ed25519Key::from_pkcs8_maybe_unchecked_der(pkcs8).map_err(wrong)?;
                let public = key.public_key();
                (DkimKey::Ed25519(key), 64, public)
            }
        };
        let template = Signature {
            v: 1,
            a: key.algorithm(),
            d: domain.into(),
            s: selector.into(),
            ch: Canonicalization::Relaxed,
            cb: Canonicalization::Simple,
            ..Signature::default()
        };
        Ok(SigningKey { template, key, algorithm, signature_len, public })
    }

    /// The text of the TXT record at `selector._domainkey.domain` (RFC 6376 3.6.1, RFC 8463 4).
    pub fn record(&self) -> String {
        format!("v=DKIM1; k={}; p={}", self.algorithm, STANDARD.encode(&self.public))
    }

    /// Its kind.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether a TXT record holds this key and lets it sign mail (RFC 6376 3.6.1).
    pub fn is_in(&self, record: &str) -> bool {
        let mut found = false;
        for tag in record.split(';') {
            let Some((name, value)) = tag.split_once('=') else { continue };
            let value: String = value.chars().filter(|letter| !letter.is_ascii_whitespace()).collect();
            match name.trim() {
                "v" if value != "DKIM1" => return false,
                "k" if value != self.algorithm.to_string() => return false,
                "h" if !value.split(':').any(|hash| hash == "sha256") => return false,
                "s" if !value.split(':').any(|service| service == "*" || service == "email") => return false,
                "p" => found = STANDARD.decode(&value).is_ok_and(|key| key == self.public || self.is_bare(&key)),
                _ => {}
            }
        }
        found
    }

    /// Whether it is the RSA key without its frame, as some publish it: the frame ends with the bare key.
    fn is_bare(&self, key: &[u8]) -> bool {
        self.algorithm == Algorithm::Rsa && key.len() + 24 == self.public.len() && self.public.ends_with(key)
    }

    /// The signature over these headers and this body.
    fn sign(&self, headers: &SignedHeaders<'_>, body: &BodyHash, at: UnixTime) -> Result<Signature, KeyError> {
        let mut signature = self.unsigned(headers, body, at);
        let signable = Signable { headers, signature: &signature };
        signature.b = self.key.sign(signable).map_err(|error| KeyError(error.to_string()))?;
        Ok(signature)
    }

    fn unsigned(&self, headers: &SignedHeaders<'_>, body: &BodyHash, at: UnixTime) -> Signature {
        Signature {
            h: headers.names.iter().map(|name| (*name).to_owned()).collect(),
            t: at.as_millis() / 1000,
            bh: body.0.to_vec(),
            ..self.template.clone()
        }
    }
}

/// The hash of a body under simple canonicalisation (RFC 6376 3.4.3).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct BodyHash([u8; 32]);

type Hasher = <Sha256 as HashImpl>::Context;

/// Hashes a body that comes in pieces.
pub struct Body(BodyHasher<Hasher>);

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Body")
    }
}

impl Default for Body {
    fn default() -> Body {
        Body(BodyHasher::new(Sha256::hasher(), Canonicalization::Simple, 0))
    }
}

impl Body {
    /// The next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.write(piece);
    }

    /// All of it was given.
    pub fn finish(self) -> BodyHash {
        let (hasher, _) = self.0.finish();
        let mut hash = [0; 32];
        hash.copy_from_slice(hasher.complete().as_ref());
        BodyHash(hash)
    }
}

/// The headers of a message that are signed, in the order of h=: of each name from the last instance up, as a verifier takes
/// them (RFC 6376 5.4.2).
struct SignedHeaders<'a> {
    names: Vec<&'static str>,
    fields: Vec<Field<'a>>,
}

impl<'a> SignedHeaders<'a> {
    fn of(section: &'a [u8]) -> SignedHeaders<'a> {
        let mut found: [Vec<Field<'a>>; SIGNED.len()] = Default::default();
        for field in fields(section) {
            let place = SIGNED.iter().position(|(name, _)| field.name.eq_ignore_ascii_case(name.as_bytes()));
            if let Some(place) = place {
                found[place].push(field);
            }
        }
        let mut signed = SignedHeaders { names: Vec::with_capacity(2 * SIGNED.len()), fields: Vec::new() };
        for ((name, once_more), instances) in SIGNED.iter().zip(&found) {
            let last = instances.iter().rev().take(INSTANCES_MAX);
            signed.names.extend(last.clone().map(|_| *name));
            signed.fields.extend(last);
            // Where some are left out one more would not be the one that nobody has.
            if *once_more && instances.len() < INSTANCES_MAX {
                signed.names.push(name);
            }
        }
        signed
    }
}

/// What is signed: the headers, then the signature's own field without its end (RFC 6376 3.7).
struct Signable<'a> {
    headers: &'a SignedHeaders<'a>,
    signature: &'a Signature,
}

impl Writable for Signable<'_> {
    fn write(self, writer: &mut impl Writer) {
        let fields = self.headers.fields.iter().map(|field| (field.name, field.value));
        Canonicalization::Relaxed.canonicalize_headers(fields, writer);
        self.signature.write(writer, false);
    }
}

/// Appends one DKIM-Signature field for each key, to be put before the header section that is signed (RFC 6376 5.6).
///
/// # Errors
/// When the cryptography fails, which it does on broken hardware alone. Nothing was appended then.
pub fn sign<'a>(
    keys: impl Iterator<Item = &'a SigningKey>,
    section: &[u8],
    body: &BodyHash,
    at: UnixTime,
    out: &mut Vec<u8>,
) -> Result<(), KeyError> {
    let headers = SignedHeaders::of(section);
    let begin = out.len();
    for key in keys {
        match key.sign(&headers, body, at) {
            Ok(signature) => write_field(&signature, out),
            Err(error) => {
                out.truncate(begin);
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Appends a signature's field. Where the library folds it just behind the signature's last octet, the fold is taken out: not
/// every verifier takes white space there for a part of the signature (RFC 6376 3.7), and those find the rest wrong.
fn write_field(signature: &Signature, out: &mut Vec<u8>) {
    const FOLDED_END: &[u8] = b"\r\n\t;\r\n";
    signature.write(out, true);
    if out.ends_with(FOLDED_END) {
        out.truncate(out.len() - FOLDED_END.len());
        out.extend_from_slice(b";\r\n");
    }
}

/// The octets that [`sign`] will append, whatever the body.
pub fn signed_len<'a>(keys: impl Iterator<Item = &'a SigningKey>, section: &[u8], at: UnixTime) -> usize {
    let headers = SignedHeaders::of(section);
    let mut out = Vec::with_capacity(2048);
    for key in keys {
        let mut signature = key.unsigned(&headers, &BodyHash([0; 32]), at);
        signature.b = vec![0; key.signature_len];
        write_field(&signature, &mut out);
    }
    out.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static KEYS: LazyLock<[SigningKey; 2]> = LazyLock::new(|| {
        [Algorithm::Rsa, Algorithm::Ed25519].map(|algorithm| {
            let key = algorithm.generate().unwrap();
            SigningKey::new("example.org", &format!("s-{algorithm}"), algorithm, &key).unwrap()
        })
    });
    const AT: UnixTime = UnixTime::from_millis(1_790_000_000_123);

    fn signatures(section: &str, body: &str) -> String {
        let mut hash = Body::default();
        hash.update(body.as_bytes());
        let mut out = Vec::new();
        sign(KEYS.iter(), section.as_bytes(), &hash.finish(), AT, &mut out).unwrap();
        assert_eq!(out.len(), signed_len(KEYS.iter(), section.as_bytes(), AT));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn headers_are_signed_from_the_last_up_and_once_more() {
        let section =
            "Received: x\r\nfrom: a@example.org\r\nList-ID: <l.example>\r\nTo: b@b.example\r\nTo: c@b.example\r\n\r\n";
        let headers = SignedHeaders::of(section.as_bytes());
        let once_more =
            "Cc:Subject:Date:Message-ID:Reply-To:Sender:MIME-Version:Content-Type:Content-Transfer-Encoding";
        let expected = format!("From:From:To:To:To:{once_more}:List-ID:List-Unsubscribe:List-Unsubscribe-Post");
        assert_eq!(headers.names.join(":"), expected);
        let values: Vec<&[u8]> = headers.fields.iter().map(|field| field.value).collect();
        assert_eq!(values, [&b" a@example.org\r\n"[..], b" c@b.example\r\n", b" b@b.example\r\n", b" <l.example>\r\n"]);
    }

    #[test]
    fn a_field_for_each_key_with_what_a_verifier_needs() {
        let text = signatures("From: a@example.org\r\n\r\n", "Hello\r\n");
        assert_eq!(text.matches("DKIM-Signature: v=1; ").count(), 2);
        for tag in ["a=rsa-sha256; s=s-rsa; d=example.org; c=relaxed/simple;", "a=ed25519-sha256;", "t=1790000000;"] {
            assert!(text.contains(tag), "{tag} is not in {text}");
        }
        assert!(text.ends_with("\r\n") && text.lines().all(|line| line.len() <= 100), "{text}");
    }

    #[test]
    fn no_signature_ends_with_white_space() {
        for several in 0..64 {
            let mut section = "From: a@example.org\r\n".to_owned();
            section.push_str(&"To: b@b.example\r\n".repeat(several % 8));
            section.push_str(&"References: <a@b>\r\n".repeat(several / 8 % 2));
            section.push_str(&"List-ID: <a.b>\r\n".repeat(several / 16 % 2));
            section.push_str(&"Feedback-ID: a\r\n".repeat(several / 32));
            let text = signatures(&(section + "\r\n"), "Hello\r\n");
            assert!(!text.contains("\t;\r\n") && !text.contains(" ;\r\n"), "{text}");
        }
    }

    #[test]
    fn bodies_hash_as_rfc_6376_says() {
        let hash = |pieces: &[&str]| {
            let mut body = Body::default();
            pieces.iter().for_each(|piece| body.update(piece.as_bytes()));
            STANDARD.encode(body.finish().0)
        };
        // RFC 6376 3.4.3: an empty body counts as one CRLF, and empty lines at the end do not count.
        assert_eq!(hash(&[]), "frcCV1k9oG9oKj3dpUqdJg1PxRT2RSN/XKdLCPjaYaY=");
        assert_eq!(hash(&["\r\n", "\r", "\n"]), "frcCV1k9oG9oKj3dpUqdJg1PxRT2RSN/XKdLCPjaYaY=");
        assert_eq!(hash(&["a \r", "\n\r\n"]), hash(&["a \r\n"]));
        assert_ne!(hash(&["a\r\n"]), hash(&["a \r\n"]));
    }

    #[test]
    fn a_record_holds_its_key_and_no_other() {
        let [rsa, ed25519] = &*KEYS;
        assert!(rsa.is_in(&rsa.record()) && ed25519.is_in(&ed25519.record()));
        assert!(!rsa.is_in(&ed25519.record()) && !ed25519.is_in(&rsa.record()));
        let record = rsa.record();
        let spaced = record.replace("; ", " ;\t").replace("p=", "p= ").replace('A', "A ");
        assert!(rsa.is_in(&spaced), "white space has no meaning");
        let bare = STANDARD.encode(&rsa.public[24..]);
        assert!(rsa.is_in(&format!("v=DKIM1; p={bare}")));
        for wrong in [
            record.replace("v=DKIM1", "v=DKIM2"),
            format!("{record}; h=sha1"),
            format!("{record}; s=tlsrpt"),
            "v=DKIM1; k=rsa; p=".into(),
            "v=spf1 -all".into(),
        ] {
            assert!(!rsa.is_in(&wrong), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let small = rcgen::KeyPair::generate().unwrap();
        for algorithm in [Algorithm::Rsa, Algorithm::Ed25519] {
            for wrong in [&b""[..], b"no key", small.serialized_der()] {
                assert!(SigningKey::new("a.example", "s", algorithm, wrong).is_err());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_length_is_known_beforehand(headers in proptest::collection::vec("(From|To|List-ID|X): [ -~]{0,90}\r\n", 0..60), body in ".{0,40}") {
            signatures(&headers.concat(), &body);
        }
    }
}
