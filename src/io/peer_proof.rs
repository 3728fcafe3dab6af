//! Whether the host at the other end of TLS is who it should be: looked at once the handshake is done, before a word is said
//! under it. So one set-up serves all deliveries, whatever they ask for, and what is only to be told is found in the same way
//! as what is to be enforced.
//!
//! Resumed sessions are looked at as new ones are: rustls keeps the chain that came with the first of them.

use crate::io::tls::provider;
use crate::policy::dane::Tlsa;
use crate::policy::outbound_tls::{Proof, TlsFailure};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, RootCertStore};
use std::sync::Arc;

/// What there is to say against a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproven {
    /// For reports.
    pub failure: TlsFailure,
    /// For people.
    pub text: String,
}

/// The public authorities that prove names; none where there are none to be had.
pub type Authorities = Option<Arc<WebPkiServerVerifier>>;

/// Those of this store.
pub fn authorities(roots: RootCertStore) -> Authorities {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().ok()
}

/// Looks at the chain that a peer has shown, its own certificate first.
///
/// # Errors
/// When it does not prove what it should.
pub(crate) fn look(
    proof: &Proof,
    chain: &[CertificateDer<'_>],
    authorities: &Authorities,
    now: UnixTime,
) -> Result<(), Unproven> {
    let unproven = |failure, text: String| Err(Unproven { failure, text });
    let Some((own, issuers)) = chain.split_first() else {
        return match proof {
            Proof::None => Ok(()),
            _ => unproven(TlsFailure::Validation, "the peer presented no certificate".into()),
        };
    };
    match proof {
        Proof::None => Ok(()),
        Proof::Names(names) => {
            let Some(authorities) = authorities else {
                return unproven(TlsFailure::NotTrusted, "this host knows no authorities (ca-certificates)".into());
            };
            let mut last = None;
            for name in names.iter() {
                match verify(authorities, own, issuers, name, now) {
                    Ok(()) => return Ok(()),
                    Err(error) => last = Some(error),
                }
            }
            last.map_or(Ok(()), Err)
        }
        Proof::Dane { records, name } => by_records(records, own, issuers, name, now),
    }
}

/// RFC 7672 3.1.
fn by_records(
    records: &[Tlsa],
    own: &CertificateDer<'_>,
    issuers: &[CertificateDer<'_>],
    name: &str,
    now: UnixTime,
) -> Result<(), Unproven> {
    // DANE-EE: neither names nor times nor issuers count (3.1.1).
    if records.iter().any(|record| record.usage == 3 && record.is_usable() && record.means(own)) {
        return Ok(());
    }
    // DANE-TA: the authority is in the chain, and vouches for the name (3.1.2).
    let mut found = None;
    for record in records.iter().filter(|record| record.usage == 2 && record.is_usable()) {
        for (index, issuer) in issuers.iter().enumerate().filter(|(_, issuer)| record.means(issuer)) {
            let mut roots = RootCertStore::empty();
            if roots.add(issuer.clone().into_owned()).is_err() {
                continue;
            }
            let Some(authority) = self::authorities(roots) else { continue };
            match verify(&authority, own, &issuers[..index], name, now) {
                Ok(()) => return Ok(()),
                Err(error) => found = Some(error),
            }
        }
    }
    Err(found.unwrap_or_else(|| Unproven {
        failure: TlsFailure::TlsaMismatch,
        text: format!("no TLSA record of {name} means the certificate that it presents"),
    }))
}

fn verify(
    authorities: &WebPkiServerVerifier,
    own: &CertificateDer<'_>,
    issuers: &[CertificateDer<'_>],
    name: &str,
    now: UnixTime,
) -> Result<(), Unproven> {
    let Ok(server) = ServerName::try_from(name) else {
        let text = format!("{name:?} is not a name that a certificate can prove");
        return Err(Unproven { failure: TlsFailure::HostMismatch, text });
    };
    let Err(error) = authorities.verify_server_cert(own, issuers, &server, &[], now) else { return Ok(()) };
    let failure = match &error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsFailure::HostMismatch
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => TlsFailure::Expired,
            // The second where the issuer has the name of one that is trusted.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsFailure::NotTrusted,
            _ => TlsFailure::Validation,
        },
        _ => TlsFailure::Validation,
    };
    let text = match &error {
        rustls::Error::InvalidCertificate(problem) => problem.to_string(),
        other => other.to_string(),
    };
    Err(Unproven { failure, text: format!("its certificate does not prove the name {name}: {text}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PublicKeyData};
    use std::time::Duration;

    const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_790_000_000));

    struct World {
        own: CertificateDer<'static>,
        own_key: Vec<u8>,
        issuer: CertificateDer<'static>,
    }

    /// A certificate for a name, good until then, by an authority of its own.
    fn world(name: &str, until: i32) -> World {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let own = params.signed_by(&key, &issuer).unwrap().der().clone();
        World { own, own_key: key.subject_public_key_info(), issuer: issuer.der().clone() }
    }

    fn names(of: &[&str]) -> Proof {
        Proof::Names(of.iter().map(|name| Box::from(*name)).collect())
    }

    fn dane(usage: u8, selector: u8, data: &[u8]) -> Proof {
        let record = Tlsa { usage, selector, matching: 0, data: data.into() };
        Proof::Dane { records: Arc::from([record]), name: "mx.test".into() }
    }

    impl World {
        fn look(&self, proof: &Proof) -> Result<(), TlsFailure> {
            let mut roots = RootCertStore::empty();
            roots.add(self.issuer.clone()).unwrap();
            let chain = [self.own.clone(), self.issuer.clone()];
            look(proof, &chain, &authorities(roots), NOW).map_err(|unproven| unproven.failure)
        }
    }

    #[test]
    fn names_are_proven_by_public_authorities() {
        let good = world("mx.test", 2040);
        assert_eq!(good.look(&Proof::None), Ok(()));
        assert_eq!(good.look(&names(&["mx.test"])), Ok(()));
        assert_eq!(good.look(&names(&["other.test", "mx.test"])), Ok(()));
        assert_eq!(good.look(&names(&["other.test"])), Err(TlsFailure::HostMismatch));
        assert_eq!(world("mx.test", 2022).look(&names(&["mx.test"])), Err(TlsFailure::Expired));
        let chain = [good.own.clone()];
        let foreign = authorities({
            let mut roots = RootCertStore::empty();
            roots.add(world("mx.test", 2040).issuer).unwrap();
            roots
        });
        let unproven = look(&names(&["mx.test"]), &chain, &foreign, NOW).unwrap_err();
        assert_eq!(unproven.failure, TlsFailure::NotTrusted);
        assert!(unproven.text.contains("does not prove the name mx.test"), "{}", unproven.text);
        assert!(look(&names(&["mx.test"]), &chain, &None, NOW).is_err());
        assert!(look(&names(&["mx.test"]), &[], &foreign, NOW).is_err());
    }

    #[test]
    fn records_of_the_host_need_nothing_else_and_those_of_authorities_the_name() {
        let (good, expired, misnamed) = (world("mx.test", 2040), world("mx.test", 2022), world("else.test", 2040));
        for world in [&good, &expired, &misnamed] {
            assert_eq!(world.look(&dane(3, 1, &world.own_key)), Ok(()));
            assert_eq!(world.look(&dane(3, 0, &world.own)), Ok(()));
        }
        assert_eq!(good.look(&dane(3, 0, &expired.own)), Err(TlsFailure::TlsaMismatch));
        // The host's own record is no authority's, and the other way round.
        assert_eq!(good.look(&dane(3, 0, &good.issuer)), Err(TlsFailure::TlsaMismatch));
        assert_eq!(good.look(&dane(2, 0, &good.own)), Err(TlsFailure::TlsaMismatch));
        assert_eq!(good.look(&dane(2, 0, &good.issuer)), Ok(()));
        assert_eq!(expired.look(&dane(2, 0, &expired.issuer)), Err(TlsFailure::Expired));
        assert_eq!(misnamed.look(&dane(2, 0, &misnamed.issuer)), Err(TlsFailure::HostMismatch));
        // An authority that has not issued the certificate, though it is sent along.
        let chain = [good.own.clone(), misnamed.issuer.clone()];
        let foreign = look(&dane(2, 0, &misnamed.issuer), &chain, &None, NOW);
        assert_eq!(foreign.unwrap_err().failure, TlsFailure::NotTrusted);
        // Usages of public authorities prove nothing.
        assert_eq!(good.look(&dane(1, 0, &good.own)), Err(TlsFailure::TlsaMismatch));
    }
}
