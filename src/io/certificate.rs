//! A certificate with its key, as listeners present it, and what people want to know of a certificate: whose it is, until
//! when, and the fingerprints by which clients pin it. Also what is heard of a client's certificate.
//!
//! Not here: which certificate a client gets (presented.rs) and when files are read again (src/control/certificates.rs).

use crate::clock::UnixTime;
use crate::io::handler::ClientCertificate;
use crate::io::tls::{TlsSetupError, load_chain, load_key, provider};
use crate::limits::{CLIENT_NAMES_MAX, SERVER_NAMES_MAX};
use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The names it proves: DNS names in lower case and addresses, in its order; at most
    /// [`SERVER_NAMES_MAX`](crate::limits::SERVER_NAMES_MAX).
    pub names: Vec<Box<str>>,
    /// Its subject (RFC 4514); "" for none.
    pub subject: String,
    /// Who issued it.
    pub issuer: String,
    /// From when on it holds.
    pub not_before: UnixTime,
    /// Until when.
    pub not_after: UnixTime,
    /// SHA-256 of the certificate (DER).
    pub fingerprint: [u8; 32],
    /// SHA-256 of its public key (SubjectPublicKeyInfo, DER), which stays when a certificate is renewed with the same key.
    pub public_key: [u8; 32],
}

impl CertificateFacts {
    /// Of this certificate (DER).
    ///
    /// # Errors
    /// In words, when it cannot be read.
    pub fn of(octets: &[u8]) -> Result<CertificateFacts, String> {
        let (_, certificate) = X509Certificate::from_der(octets).map_err(|error| error.to_string())?;
        let mut names = Vec::new();
        if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
            names.extend(alternative.value.general_names.iter().filter_map(server_name).take(SERVER_NAMES_MAX));
        }
        let validity = certificate.validity();
        Ok(CertificateFacts {
            names,
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            not_before: time_of(validity.not_before),
            not_after: time_of(validity.not_after),
            fingerprint: sha256(octets),
            public_key: sha256(certificate.public_key().raw),
        })
    }

    /// The names as a person reads them; the subject where there are none.
    pub fn title(&self) -> String {
        if self.names.is_empty() { self.subject.clone() } else { self.names.join(" ") }
    }
}

/// A digest as `openssl x509 -fingerprint -sha256` prints it.
pub fn shown_fingerprint(digest: &[u8]) -> String {
    digest.iter().map(|octet| format!("{octet:02X}")).collect::<Vec<_>>().join(":")
}

fn sha256(octets: &[u8]) -> [u8; 32] {
    let mut result = [0; 32];
    result.copy_from_slice(digest(&SHA256, octets).as_ref());
    result
}

/// Times before 1970 become 1970: nobody has certificates from then.
fn time_of(time: ASN1Time) -> UnixTime {
    UnixTime::from_millis(u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1000))
}

fn server_name(name: &GeneralName<'_>) -> Option<Box<str>> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase().into()),
        GeneralName::IPAddress(octets) => {
            let address = match octets.len() {
                4 => <[u8; 4]>::try_from(*octets).ok().map(IpAddr::from),
                16 => <[u8; 16]>::try_from(*octets).ok().map(IpAddr::from),
                _ => None,
            };
            address.map(|address| address.to_string().into())
        }
        _ => None,
    }
}

/// What is heard of a client's certificate that has been proven; None when it cannot be read.
pub(crate) fn client_certificate(octets: &[u8]) -> Option<ClientCertificate> {
    let (_, certificate) = X509Certificate::from_der(octets).ok()?;
    let mut names = Vec::new();
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        names.extend(alternative.value.general_names.iter().filter_map(client_name).take(CLIENT_NAMES_MAX));
    }
    Some(ClientCertificate { fingerprint: sha256(octets), names })
}

fn client_name(name: &GeneralName<'_>) -> Option<Box<str>> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase().into()),
        GeneralName::RFC822Name(address) => Some(match address.rsplit_once('@') {
            Some((local, domain)) => format!("{local}@{}", domain.to_ascii_lowercase()).into(),
            None => address.to_ascii_lowercase().into(),
        }),
        _ => None,
    }
}

/// A certificate with its chain and its key. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Pair {
    /// What the certificate says.
    pub facts: Arc<CertificateFacts>,
    pub(crate) certified: Arc<CertifiedKey>,
}

impl Pair {
    /// From the chain, its own certificate first, and the key of that; `path` is named in errors.
    ///
    /// # Errors
    /// When the key is another's or of a kind that is not supported, or the certificate cannot be read.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        path: &Path,
    ) -> Result<Pair, TlsSetupError> {
        let fail = |problem: String| TlsSetupError::Pair { path: path.to_owned(), problem };
        let own = chain.first().ok_or_else(|| fail("it holds no certificate".into()))?;
        let facts = Arc::new(CertificateFacts::of(own).map_err(fail)?);
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| fail(error.to_string()))?;
        Ok(Pair { facts, certified: Arc::new(certified) })
    }

    /// From PEM files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(certificate: &Path, key: &Path) -> Result<Pair, TlsSetupError> {
        Pair::new(load_chain(certificate)?, load_key(key)?, certificate)
    }

    /// From PEM with the chain and the key; `path` is named in errors.
    ///
    /// # Errors
    /// As those of [`new`](Pair::new), and when one of both is not there.
    pub fn from_pem(octets: &[u8], path: &Path) -> Result<Pair, TlsSetupError> {
        let fail = |problem: String| TlsSetupError::Pair { path: path.to_owned(), problem };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(octets).collect();
        let key = PrivateKeyDer::from_pem_slice(octets).map_err(|error| fail(error.to_string()))?;
        Pair::new(chain.map_err(|error| fail(error.to_string()))?, key, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData, SanType};

    #[test]
    fn facts_are_those_that_openssl_tells() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["Mail.Example.org".to_owned(), "*.example.net".into()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress("192.0.2.1".parse().unwrap()));
        params.distinguished_name.push(DnType::CommonName, "the relay");
        params.not_before = rcgen::date_time_ymd(2026, 1, 2);
        params.not_after = rcgen::date_time_ymd(2026, 4, 2);
        let certificate = params.self_signed(&key).unwrap();
        let facts = CertificateFacts::of(certificate.der()).unwrap();
        let names: Vec<&str> = facts.names.iter().map(|name| &**name).collect();
        assert_eq!(names, ["mail.example.org", "*.example.net", "192.0.2.1"]);
        assert_eq!(facts.title(), "mail.example.org *.example.net 192.0.2.1");
        assert_eq!(facts.not_before.to_string(), "2026-01-02T00:00:00.000Z");
        assert_eq!(facts.not_after.as_millis() - facts.not_before.as_millis(), 90 * 86_400_000);
        assert!(facts.subject.contains("the relay") && facts.issuer == facts.subject, "{facts:?}");
        let file = crate::io::testing::directory("facts").join("certificate.pem");
        std::fs::write(&file, certificate.pem()).unwrap();
        let openssl = std::process::Command::new("openssl")
            .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
            .arg(&file)
            .output();
        let Ok(openssl) = openssl else {
            println!("SKIPPED: THERE IS NO OPENSSL TO COMPARE WITH");
            return;
        };
        let text = String::from_utf8(openssl.stdout).unwrap();
        assert_eq!(text.trim().rsplit_once('=').unwrap().1, shown_fingerprint(&facts.fingerprint));
        assert_eq!(facts.public_key, sha256(&key.subject_public_key_info()));
        assert!(CertificateFacts::of(b"nothing").is_err());
    }

    #[test]
    fn names_of_clients_are_addresses_and_domains() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["App.Example.org".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::Rfc822Name("Ann@Example.ORG".try_into().unwrap()));
        params.subject_alt_names.push(SanType::URI("https://example.org".try_into().unwrap()));
        let more = (0..40).map(|n| SanType::DnsName(format!("n{n}.example").try_into().unwrap()));
        params.subject_alt_names.extend(more);
        let client = client_certificate(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!((&*client.names[0], &*client.names[1]), ("app.example.org", "Ann@example.org"));
        assert_eq!(client.names.len(), CLIENT_NAMES_MAX);
    }

    #[test]
    fn a_key_of_another_certificate_is_told_with_the_file() {
        let (chain, _) = crate::io::tls::self_signed("a.example").unwrap();
        let (_, key) = crate::io::tls::self_signed("b.example").unwrap();
        let error = Pair::new(chain, key, Path::new("/etc/mail/a.pem")).unwrap_err().to_string();
        assert!(error.starts_with("/etc/mail/a.pem: ") && error.contains("key"), "{error}");
    }
}
