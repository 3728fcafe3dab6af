//! The certificate that a server makes for itself where it was given none. It is made once and kept, so that clients that
//! pin it keep trusting it over restarts, and made anew when it no longer proves the host name or is near its end.

use crate::clock::UnixTime;
use crate::io::tls::{TlsSetupError, load_chain, load_key, provider};
use rcgen::{DistinguishedName, DnType};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{self, CertificateDer, PrivateKeyDer, ServerName};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// For how long one is made. Nobody but who pins it trusts it, and to them each change is work.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// One that ends earlier than this is made anew.
const NEARLY_OVER: Duration = Duration::from_secs(30 * 24 * 3600);
/// The clocks of clients may be this far behind.
const CLOCKS_APART: Duration = DAY;

/// A certificate signed by itself, with its key.
#[derive(Debug)]
pub struct OwnCertificate {
    /// The certificate alone.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its P-256 key.
    pub key: PrivateKeyDer<'static>,
    /// Where the certificate is kept.
    pub file: PathBuf,
    /// Whether it was made just now.
    pub made: bool,
}

/// Where it is kept, and where its key is.
pub fn files(spool: &Path) -> (PathBuf, PathBuf) {
    let directory = spool.join("tls");
    (directory.join("self-signed.pem"), directory.join("self-signed.key"))
}

/// The certificate kept in the directory `tls` of this spool, if it proves the host name from `now` on for thirty days;
/// else a new one, which is kept there.
///
/// # Errors
/// When others may read the kept key, when the files cannot be written, or when the host name cannot stand in a
/// certificate.
pub fn own_certificate(spool: &Path, hostname: &str, now: UnixTime) -> Result<OwnCertificate, TlsSetupError> {
    let directory = spool.join("tls");
    let (file, key_file) = files(spool);
    match (load_chain(&file), load_key(&key_file)) {
        (_, Err(open @ TlsSetupError::OpenKey { .. })) => return Err(open),
        (Ok(chain), Ok(key)) if belong_together(&chain, &key) && proves(&chain, hostname, now) => {
            return Ok(OwnCertificate { chain, key, file, made: false });
        }
        // Missing, damaged, of another name or near its end: all the same, a new one serves.
        _ => {}
    }
    let made = Made::new(hostname, now)?;
    let unwritten = |path: &Path| {
        let path = path.to_owned();
        move |cause| TlsSetupError::Unwritten { path, cause }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(unwritten(&directory))?;
    // After a crash between the two they do not belong together, and are made anew.
    write_whole(&key_file, made.key_pem.as_bytes()).map_err(unwritten(&key_file))?;
    write_whole(&file, made.certificate_pem.as_bytes()).map_err(unwritten(&file))?;
    File::open(&directory).and_then(|directory| directory.sync_all()).map_err(unwritten(&directory))?;
    Ok(OwnCertificate { chain: vec![made.certificate], key: made.key, file, made: true })
}

/// What people read as the certificate's name. Programs read the alternative names; this one has a bound (RFC 5280, A.1).
fn names_of(hostname: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    if hostname.len() <= 64 {
        names.push(DnType::CommonName, hostname);
    }
    names
}

struct Made {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key: PrivateKeyDer<'static>,
    key_pem: Zeroizing<String>,
}

impl Made {
    fn new(hostname: &str, now: UnixTime) -> Result<Made, TlsSetupError> {
        let fail = |error: rcgen::Error| TlsSetupError::SelfSigned {
            hostname: hostname.to_owned(),
            problem: error.to_string(),
        };
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(fail)?;
        let mut params = rcgen::CertificateParams::new(vec![hostname.to_owned()]).map_err(fail)?;
        params.distinguished_name = names_of(hostname);
        let today = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(now.as_millis());
        params.not_before = today - CLOCKS_APART;
        params.not_after = today + LIFETIME;
        let certificate = params.self_signed(&key).map_err(fail)?;
        Ok(Made {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            key_pem: Zeroizing::new(key.serialize_pem()),
        })
    }
}

fn belong_together(chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'static>) -> bool {
    rustls::sign::CertifiedKey::from_der(chain.to_vec(), key.clone_key(), &provider())
        .is_ok_and(|pair| pair.keys_match().is_ok())
}

/// Whether a client that pins this certificate accepts it for this name, now and for as long as it must still last.
fn proves(chain: &[CertificateDer<'static>], hostname: &str, now: UnixTime) -> bool {
    let (Some(certificate), Ok(name)) = (chain.first(), ServerName::try_from(hostname)) else { return false };
    let mut roots = RootCertStore::empty();
    if roots.add(certificate.clone()).is_err() {
        return false;
    }
    let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build() else {
        return false;
    };
    [now, now.after(NEARLY_OVER)].into_iter().all(|at| {
        let at = pki_types::UnixTime::since_unix_epoch(Duration::from_millis(at.as_millis()));
        verifier.verify_server_cert(certificate, &[], &name, &[], at).is_ok()
    })
}

/// Writes a file for its owner alone, that appears whole or not at all.
pub(crate) fn write_whole(path: &Path, octets: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(octets)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::testing::directory;
    use std::os::unix::fs::PermissionsExt;

    const NAME: &str = "mail.example.org";
    const START: UnixTime = UnixTime::from_millis(1_790_000_000_000);

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn it_is_made_once_and_for_its_owner_alone() {
        let spool = directory("own-once");
        let first = own_certificate(&spool, NAME, START).unwrap();
        let again = own_certificate(&spool, NAME, START.after(DAY)).unwrap();
        assert!(first.made && !again.made);
        let (_, read) = x509_parser::parse_x509_certificate(&first.chain[0]).unwrap();
        assert_eq!(read.subject().to_string(), format!("CN={NAME}"));
        assert_eq!((first.chain, first.key.secret_der()), (again.chain, again.key.secret_der()));
        let kept = spool.join("tls");
        assert_eq!((mode(&kept), mode(&kept.join("self-signed.key"))), (0o700, 0o600));
        std::fs::remove_dir_all(&spool).unwrap();
    }

    #[test]
    fn another_name_a_near_end_and_damage_make_a_new_one() {
        let spool = directory("own-anew");
        let made = |name, now| own_certificate(&spool, name, now).unwrap().made;
        assert!(made(NAME, START));
        assert!(made("mx.example.org", START));
        let last = START.after(LIFETIME - NEARLY_OVER - DAY);
        assert!(!made("mx.example.org", last));
        assert!(made("mx.example.org", last.after(2 * DAY)));
        assert!(made("mx.example.org", START), "one that is not valid yet");
        for file in ["self-signed.pem", "self-signed.key"] {
            std::fs::write(spool.join("tls").join(file), "damaged").unwrap();
            assert!(made("mx.example.org", START) && !made("mx.example.org", START), "{file}");
        }
        // The key of another certificate, as after a crash between the two files.
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        std::fs::write(spool.join("tls/self-signed.key"), key.serialize_pem()).unwrap();
        assert!(made("mx.example.org", START));
        std::fs::remove_dir_all(&spool).unwrap();
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let spool = directory("own-open");
        own_certificate(&spool, NAME, START).unwrap();
        let key = spool.join("tls/self-signed.key");
        for (mode, fine) in [(0o640, true), (0o400, true), (0o644, false), (0o620, false), (0o601, false)] {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
            let outcome = own_certificate(&spool, NAME, START);
            assert_eq!(outcome.is_ok(), fine, "{mode:o}");
            if let Err(error) = outcome {
                assert!(error.to_string().contains(&format!("chmod 640 {}", key.display())), "{error}");
            }
        }
        std::fs::remove_dir_all(&spool).unwrap();
    }
}
