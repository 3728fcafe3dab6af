//! TLSA records (RFC 6698) as mail uses them (RFC 7672): which can be used, and which certificate one means.
//!
//! Not here: where they come from and whether DNSSEC proves them (src/io/dns.rs), and the chain that a certificate of an
//! authority must have issued (src/io/peer_proof.rs).

use aws_lc_rs::digest::{SHA256, SHA512, digest};

/// One TLSA record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tlsa {
    /// 2: an authority that must have issued the certificate; 3: the host's own certificate or key.
    pub usage: u8,
    /// 0: the whole certificate; 1: its public key.
    pub selector: u8,
    /// 0: as it is; 1: its SHA-256; 2: its SHA-512.
    pub matching: u8,
    /// What must be the same.
    pub data: Box<[u8]>,
}

impl Tlsa {
    /// Whether mail can use it. Usages 0 and 1 speak of public authorities, of which a mail host cannot know which ones its
    /// peer trusts: they count as unusable (RFC 7672 3.1.3).
    pub fn is_usable(&self) -> bool {
        let octets = match self.matching {
            0 => !self.data.is_empty(),
            1 => self.data.len() == 32,
            2 => self.data.len() == 64,
            _ => false,
        };
        matches!(self.usage, 2 | 3) && matches!(self.selector, 0 | 1) && octets
    }

    /// Whether it means this certificate (DER).
    pub fn means(&self, certificate: &[u8]) -> bool {
        let selected = match self.selector {
            0 => certificate,
            1 => match x509_parser::parse_x509_certificate(certificate) {
                Ok((_, parsed)) => return self.is_of(parsed.public_key().raw),
                Err(_) => return false,
            },
            _ => return false,
        };
        self.is_of(selected)
    }

    fn is_of(&self, selected: &[u8]) -> bool {
        match self.matching {
            0 => *self.data == *selected,
            1 => *self.data == *digest(&SHA256, selected).as_ref(),
            2 => *self.data == *digest(&SHA512, selected).as_ref(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(usage: u8, selector: u8, matching: u8, data: &[u8]) -> Tlsa {
        Tlsa { usage, selector, matching, data: data.into() }
    }

    #[test]
    fn usable_are_the_usages_of_mail_with_data_that_fits() {
        for usage in 0..=4 {
            for selector in 0..=2 {
                for matching in 0..=3 {
                    let octets = [20, 32, 64, 20][usize::from(matching)];
                    let wanted = (2..=3).contains(&usage) && selector < 2 && matching < 3;
                    assert_eq!(record(usage, selector, matching, &vec![1; octets]).is_usable(), wanted);
                }
            }
        }
        assert!(!record(3, 1, 1, &[1; 31]).is_usable() && !record(3, 1, 2, &[1; 32]).is_usable());
        assert!(!record(3, 0, 0, &[]).is_usable());
    }

    #[test]
    fn each_selector_and_matching_type_means_its_certificate_alone() {
        let made = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = rcgen::CertificateParams::new(vec!["mx.test".into()]).unwrap().self_signed(&key).unwrap();
            (certificate.der().to_vec(), rcgen::PublicKeyData::subject_public_key_info(&key))
        };
        let ((own, key), (other, _)) = (made(), made());
        for (selector, selected) in [(0, &own), (1, &key)] {
            let sha256 = digest(&SHA256, selected).as_ref().to_vec();
            let sha512 = digest(&SHA512, selected).as_ref().to_vec();
            for (matching, data) in [(0, selected.clone()), (1, sha256), (2, sha512)] {
                let record = record(3, selector, matching, &data);
                assert!(record.means(&own) && !record.means(&other), "{selector} {matching}");
                let mut flipped = record.clone();
                flipped.data[0] ^= 1;
                assert!(!flipped.means(&own));
            }
        }
        assert!(!record(3, 1, 1, &[0; 32]).means(b"no certificate"));
    }
}
