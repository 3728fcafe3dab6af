//! Tenants' domains and their keys, kept beside the identities: added, rotated, removed, and verified when their records
//! were seen in DNS (domain_check.rs looks). In force at once.
//!
//! Making an RSA key takes some 100 ms: everything here runs beside the control thread's loop.

use super::domain_requests::{DomainReply, DomainRequest, DomainView, Secret};
use super::identities::{Identities, IdentityError, check_name, random_u64};
use crate::address::{Address, check_domain_or_literal};
use crate::clock::UnixTime;
use crate::policy::dkim::{Algorithm, SigningKey};
use crate::policy::domain::{Domain, DomainKey, KeyState, PrivateKey};
use redb::TableDefinition;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use zeroize::Zeroizing;

pub(super) const DOMAINS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("domains");

/// Keys of one domain, retired ones included.
const KEYS_MAX: usize = 16;

/// How long a retired key is remembered, so that its record is not taken out of DNS while mail that it has signed is under
/// way.
const RETIRED_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

impl Identities {
    /// Does what is asked, save for looking into DNS. Blocks for the disk, and for making keys.
    pub fn handle_domain(&self, request: DomainRequest, now: UnixTime) -> Result<DomainReply, IdentityError> {
        let _one = self.one_change();
        let now = now.as_millis();
        match request {
            DomainRequest::List { tenant, name } => {
                let directory = self.directory();
                let directory = directory.load();
                let name = name.map(|name| domain_name(&name)).transpose()?;
                let wanted = directory.domains().filter(|domain| {
                    tenant.as_deref().is_none_or(|tenant| *domain.tenant == *tenant)
                        && name.as_deref().is_none_or(|name| *domain.name == *name)
                });
                let mut domains: Vec<DomainView> = wanted.map(|domain| DomainView::of(domain)).collect();
                domains.sort_by(|one, other| (&one.name, &one.tenant).cmp(&(&other.name, &other.tenant)));
                Ok(DomainReply::Domains(domains))
            }
            DomainRequest::Add { tenant, name, algorithms } => {
                self.tenant(&tenant)?;
                let name = domain_name(&name)?;
                if self.directory().load().domain(&tenant, &name).is_some() {
                    return Err(IdentityError::Present("domain", name.into()));
                }
                let mut keys = Vec::new();
                for algorithm in algorithms {
                    keys.push(new_key(algorithm, made_selector(algorithm)?, now)?);
                }
                if keys.is_empty() {
                    return Err(IdentityError::Wrong("a domain needs a key: rsa, ed25519, or both".into()));
                }
                let tenant = tenant.into();
                self.put_domain(Domain { name, tenant, created_ms: now, verified_ms: None, keys, revision: 0 })
            }
            DomainRequest::AddKey { tenant, name, algorithm, selector, pem, recipients } => {
                let mut domain = self.domain(&tenant, &name)?;
                let selector = selector.map_or_else(|| made_selector(algorithm), |given| Ok(given.into()))?;
                check_selector(&selector)?;
                if domain.keys.iter().any(|key| key.selector == selector) {
                    return Err(IdentityError::Present("selector", selector.into()));
                }
                let mut key = new_key(algorithm, selector, now)?;
                if let Some(pem) = pem {
                    key.private = Some(private_key(pem, algorithm, &domain.name)?);
                }
                key.recipients = recipients.iter().map(|name| domain_name(name)).collect::<Result<_, _>>()?;
                domain.keys.insert(0, key);
                self.put_domain(domain)
            }
            DomainRequest::Rotate { tenant, name } => {
                let mut domain = self.domain(&tenant, &name)?;
                if domain.keys.iter().any(|key| key.state == KeyState::Pending && key.recipients.is_empty()) {
                    return Err(IdentityError::Wrong(format!(
                        "{} has keys that were not seen in DNS yet: publish them first, or remove them",
                        domain.name
                    )));
                }
                let replaced =
                    domain.keys.iter().filter(|key| key.state == KeyState::Active && key.recipients.is_empty());
                let algorithms: Vec<Algorithm> = replaced.map(|key| key.algorithm).collect();
                for algorithm in algorithms {
                    let key = new_key(algorithm, made_selector(algorithm)?, now)?;
                    domain.keys.insert(0, key);
                }
                self.put_domain(domain)
            }
            DomainRequest::Verify { tenant, name } => {
                self.domain(&tenant, &name).map(|domain| DomainReply::Domain(DomainView::of(&domain)))
            }
            DomainRequest::RemoveKey { tenant, name, selector } => {
                let mut domain = self.domain(&tenant, &name)?;
                let before = domain.keys.len();
                domain.keys.retain(|key| *key.selector != *selector);
                if domain.keys.len() == before {
                    return Err(IdentityError::Absent("selector", selector));
                }
                if domain.is_verified() && domain.keys.iter().all(|key| key.state != KeyState::Active) {
                    return Err(IdentityError::Wrong(format!(
                        "{selector} is the last key that signs for {}: rotate it, or remove the domain",
                        domain.name
                    )));
                }
                self.put_domain(domain)
            }
            DomainRequest::Remove { tenant, name } => {
                let domain = self.domain(&tenant, &name)?;
                self.remove_domain(&domain)?;
                self.publish()?;
                Ok(DomainReply::Done {})
            }
        }
    }

    /// These selectors were seen in DNS: they sign from now on, and what they replace retires. Gives the domain as it is then;
    /// None when it is gone.
    ///
    /// # Errors
    /// Those of a change.
    pub fn keys_seen(
        &self,
        domain: &Domain,
        seen: &[Box<str>],
        now: UnixTime,
    ) -> Result<Option<Domain>, IdentityError> {
        let _one = self.one_change();
        let Ok(mut current) = self.domain(&domain.tenant, &domain.name) else { return Ok(None) };
        let now = now.as_millis();
        let is_new = |key: &DomainKey| key.state == KeyState::Pending && seen.contains(&key.selector);
        // A kind's old key signs until the new one of its kind is there.
        let replaced: Vec<(Algorithm, Vec<Box<str>>)> =
            current.keys.iter().filter(|key| is_new(key)).map(|key| (key.algorithm, key.recipients.clone())).collect();
        let mut changed = false;
        for key in &mut current.keys {
            if is_new(key) {
                (key.state, key.since_ms, changed) = (KeyState::Active, now, true);
            } else if key.state == KeyState::Active
                && replaced.iter().any(|(kind, recipients)| *kind == key.algorithm && *recipients == key.recipients)
            {
                (key.state, key.since_ms, key.private) = (KeyState::Retired, now, None);
                key.ready = OnceLock::new();
            }
        }
        let kept = RETIRED_KEPT.as_millis() as u64;
        let before = current.keys.len();
        current.keys.retain(|key| key.state != KeyState::Retired || now.saturating_sub(key.since_ms) < kept);
        if !changed && before == current.keys.len() {
            return Ok(Some(current));
        }
        if changed && current.verified_ms.is_none() && current.keys.iter().all(|key| key.state != KeyState::Pending) {
            current.verified_ms = Some(now);
        }
        self.put_domain(current.clone())?;
        Ok(Some(current))
    }

    fn put_domain(&self, domain: Domain) -> Result<DomainReply, IdentityError> {
        if domain.keys.len() > KEYS_MAX {
            return Err(IdentityError::Wrong(format!("{} has {KEYS_MAX} keys already", domain.name)));
        }
        let domain = Domain { revision: random_u64()?, ..domain };
        self.put(DOMAINS, &table_key(&domain), &domain)?;
        self.publish()?;
        Ok(DomainReply::Domain(DomainView::of(&domain)))
    }

    fn remove_domain(&self, domain: &Domain) -> Result<(), IdentityError> {
        self.change(|tables| {
            tables.open_table(DOMAINS)?.remove(table_key(domain).as_str()).map(|_| ()).map_err(Into::into)
        })
    }

    fn domain(&self, tenant: &str, name: &str) -> Result<Domain, IdentityError> {
        let name = domain_name(name)?;
        let directory = self.directory();
        let known = directory.load().domain(tenant, &name).map(Arc::clone);
        known.map(|domain| Domain::clone(&domain)).ok_or_else(|| IdentityError::Absent("domain", name.into()))
    }
}

/// A tenant's name has no spaces, so that each pair has a key of its own.
pub(super) fn table_key(domain: &Domain) -> String {
    format!("{} {}", domain.name, domain.tenant)
}

/// Lower case, A-labels.
fn domain_name(text: &str) -> Result<Box<str>, IdentityError> {
    let wrong = || IdentityError::Wrong(format!("`{text}` is no domain, as in example.org"));
    let text_given = text.trim_end_matches('.');
    if text_given.starts_with('[') || !text_given.contains('.') || check_domain_or_literal(text_given).is_err() {
        return Err(wrong());
    }
    let address = Address::parse(format!("postmaster@{text_given}").as_bytes(), true).map_err(|_| wrong())?;
    address.routing_domain().map_err(|_| wrong())
}

/// RFC 6376 3.1: labels of a name, letters and digits with hyphens inside.
fn check_selector(selector: &str) -> Result<(), IdentityError> {
    check_name("selector", selector, 63)?;
    let good = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
    };
    if selector.split('.').all(good) {
        return Ok(());
    }
    Err(IdentityError::Wrong(format!("`{selector}` is no selector: letters, digits and hyphens, as in s2026")))
}

/// Nobody else can hold the record of a selector that is made anew for each key.
fn made_selector(algorithm: Algorithm) -> Result<Box<str>, IdentityError> {
    Ok(format!("rp-{:012x}-{algorithm}", random_u64()? >> 16).into())
}

fn new_key(algorithm: Algorithm, selector: Box<str>, now: u64) -> Result<DomainKey, IdentityError> {
    let private = algorithm.generate().map_err(|error| IdentityError::Secret(error.to_string()))?;
    Ok(DomainKey {
        selector,
        algorithm,
        private: Some(private.into()),
        state: KeyState::Pending,
        since_ms: now,
        recipients: Vec::new(),
        ready: OnceLock::new(),
    })
}

/// A key that there is already.
fn private_key(pem: Secret, algorithm: Algorithm, domain: &str) -> Result<PrivateKey, IdentityError> {
    let pem = Zeroizing::new(pem.0);
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
        let text = "the file holds no private key in PKCS#8 (PEM, `BEGIN PRIVATE KEY`); `openssl pkcs8 -topk8 -nocrypt \
                    -in OLD` makes one of other forms";
        IdentityError::Wrong(text.into())
    })?;
    let der = Zeroizing::new(der.secret_pkcs8_der().to_vec());
    SigningKey::new(domain, "check", algorithm, &der).map_err(|error| IdentityError::Wrong(error.to_string()))?;
    Ok(der.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::identity_requests::IdentityRequest;
    use crate::policy::domain::Unverified;

    const NOW: UnixTime = UnixTime::from_millis(1_000);

    /// With the tenant "a", in a directory that goes with the first value.
    fn identities() -> (tempdir::Directory, Identities) {
        let directory = tempdir::Directory::new();
        let identities = Identities::open(&directory.0).unwrap();
        let tenant = IdentityRequest::AddTenant { name: "a".into(), unverified: Unverified::Refuse };
        identities.handle(tenant, NOW).unwrap();
        (directory, identities)
    }

    mod tempdir {
        use std::path::PathBuf;
        use std::sync::atomic::{AtomicU32, Ordering};

        pub struct Directory(pub PathBuf);

        impl Directory {
            pub fn new() -> Directory {
                static COUNT: AtomicU32 = AtomicU32::new(0);
                let number = COUNT.fetch_add(1, Ordering::Relaxed);
                let path = std::env::temp_dir().join(format!("domains-{}-{number}", std::process::id()));
                std::fs::create_dir_all(&path).unwrap();
                Directory(path)
            }
        }

        impl Drop for Directory {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
    }

    fn add(name: &str, algorithms: &[Algorithm]) -> DomainRequest {
        DomainRequest::Add { tenant: "a".into(), name: name.into(), algorithms: algorithms.to_vec() }
    }

    fn of(tenant: &str, name: &str, selector: Option<&str>, recipients: &[&str]) -> DomainRequest {
        DomainRequest::AddKey {
            tenant: tenant.into(),
            name: name.into(),
            algorithm: Algorithm::Ed25519,
            selector: selector.map(Into::into),
            pem: None,
            recipients: recipients.iter().map(|domain| (*domain).to_owned()).collect(),
        }
    }

    /// The states of a domain's keys, the newest first.
    fn states(identities: &Identities) -> Vec<KeyState> {
        let directory = identities.directory().load_full();
        directory.domain("a", "example.org").unwrap().keys.iter().map(|key| key.state).collect()
    }

    fn see(identities: &Identities, which: impl Fn(&DomainKey) -> bool, now: u64) {
        let domain = identities.directory().load().domain("a", "example.org").cloned().unwrap();
        let seen: Vec<Box<str>> = domain.keys.iter().filter(|key| which(key)).map(|key| key.selector.clone()).collect();
        identities.keys_seen(&domain, &seen, UnixTime::from_millis(now)).unwrap();
    }

    #[test]
    fn keys_are_awaited_sign_and_retire() {
        use KeyState::{Active, Pending, Retired};
        let (directory, identities) = identities();
        identities.handle_domain(add("Example.ORG.", &[Algorithm::Ed25519, Algorithm::Ed25519]), NOW).unwrap();
        let verified = || identities.directory().load().domain("a", "example.org").unwrap().verified_ms;
        let first = identities.directory().load().domain("a", "example.org").unwrap().keys[0].selector.clone();
        see(&identities, |key| key.selector == first, 2_000);
        assert_eq!((states(&identities), verified()), (vec![Active, Pending], None), "both must be seen");
        see(&identities, |key| key.state == Pending, 3_000);
        // The second of one kind replaced the first.
        assert_eq!((states(&identities), verified()), (vec![Retired, Active], Some(3_000)));
        let rotate = || DomainRequest::Rotate { tenant: "a".into(), name: "example.org".into() };
        identities.handle_domain(rotate(), NOW).unwrap();
        assert_eq!(states(&identities), [Pending, Retired, Active]);
        let again = identities.handle_domain(rotate(), NOW).unwrap_err().to_string();
        assert!(again.contains("not seen in DNS yet"), "{again}");
        see(&identities, |_| false, 4_000);
        assert_eq!(states(&identities), [Pending, Retired, Active]);
        see(&identities, |key| key.state == Pending, 5_000);
        assert_eq!(states(&identities), [Active, Retired, Retired]);
        assert!(identities.directory().load().domain("a", "example.org").unwrap().keys[1].private.is_none());
        // A key for some recipients replaces none that is for all.
        identities.handle_domain(of("a", "example.org", Some("big"), &["Big.Example"]), NOW).unwrap();
        see(&identities, |key| key.state == Pending, 6_000);
        assert_eq!(states(&identities), [Active, Active, Retired, Retired]);
        // What is retired is forgotten after its time.
        see(&identities, |_| false, 5_000 + RETIRED_KEPT.as_millis() as u64);
        assert_eq!(states(&identities), [Active, Active]);
        drop(identities);
        assert_eq!(states(&Identities::open(&directory.0).unwrap()), [Active, Active]);
    }

    #[test]
    fn what_cannot_be_is_told() {
        let (_directory, identities) = identities();
        let error = |request| identities.handle_domain(request, NOW).unwrap_err().to_string();
        for name in ["", "example", "[192.0.2.1]", "a b.example", "-.example", &"x".repeat(300)] {
            assert!(error(add(name, &[Algorithm::Ed25519])).contains("is no domain"), "{name}");
        }
        assert!(error(add("example.org", &[])).contains("needs a key"));
        let other = DomainRequest::Add { tenant: "b".into(), name: "example.org".into(), algorithms: Vec::new() };
        assert!(error(other).contains("no tenant `b`"));
        assert!(error(of("a", "example.org", None, &[])).contains("no domain `example.org`"));
        identities.handle_domain(add("bücher.example", &[Algorithm::Ed25519]), NOW).unwrap();
        assert!(error(add("xn--bcher-kva.example", &[Algorithm::Ed25519])).contains("already"));
        for selector in ["", ".", "a..b", "-a", "a_b", "a b", &"x".repeat(64)] {
            let request = of("a", "bücher.example", Some(selector), &[]);
            assert!(error(request).contains("no "), "{selector}");
        }
        assert!(error(of("a", "bücher.example", Some("s"), &["nothing"])).contains("is no domain"));
        for number in 1..KEYS_MAX {
            identities.handle_domain(of("a", "bücher.example", Some(&format!("s{number}")), &[]), NOW).unwrap();
        }
        assert!(error(of("a", "bücher.example", None, &[])).contains("keys already"));
        // A tenant takes its domains with it.
        identities.handle(IdentityRequest::RemoveTenant { name: "a".into() }, NOW).unwrap();
        assert_eq!(identities.directory().load().domains().count(), 0);
    }
}
