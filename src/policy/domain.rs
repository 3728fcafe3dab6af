//! The domains that tenants send as: whether they are theirs, and the keys that sign for them. Pure; where they are kept is
//! src/control/identities.rs, and who looks into DNS is src/control/domains.rs.
//!
//! A domain is a tenant's once its keys were seen in DNS under their selectors: only its owner can put them there, and keys
//! are made for one tenant alone. A domain speaks for its subdomains, too.

use crate::address::Address;
use crate::policy::dkim::{Algorithm, SigningKey};
use crate::policy::headers::fields;
use crate::reply::Reply;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::{Arc, OnceLock};
use zeroize::Zeroizing;

/// What becomes of mail whose sender's domain is not verified for its tenant.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unverified {
    /// It is refused.
    Refuse,
    /// Where the domain was added, it is taken, signed with the keys that wait for their records, and held until these are seen;
    /// else it is refused.
    Hold,
    /// It goes out unsigned.
    #[default]
    Pass,
}

impl fmt::Display for Unverified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unverified::Refuse => "refuse",
            Unverified::Hold => "hold",
            Unverified::Pass => "pass",
        })
    }
}

/// A private key as PKCS#8. Wiped when dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Zeroizing<Vec<u8>>);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

impl From<Zeroizing<Vec<u8>>> for PrivateKey {
    fn from(der: Zeroizing<Vec<u8>>) -> PrivateKey {
        PrivateKey(der)
    }
}

impl Serialize for PrivateKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(&*self.0)))
    }
}

impl<'de> Deserialize<'de> for PrivateKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PrivateKey, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let der = STANDARD.decode(&*text).map_err(|_| serde::de::Error::custom("a key that is no base64"))?;
        Ok(PrivateKey(Zeroizing::new(der)))
    }
}

/// Where a key is in its life.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// Not seen in DNS yet.
    Pending,
    /// Seen there, and it signs.
    Active,
    /// Replaced: it signs nothing more. Its record stays in DNS until the mail that it has signed is there.
    Retired,
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyState::Pending => "pending",
            KeyState::Active => "active",
            KeyState::Retired => "retired",
        })
    }
}

/// One key of a domain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DomainKey {
    /// The name under `_domainkey`.
    pub selector: Box<str>,
    /// Its kind.
    pub algorithm: Algorithm,
    /// None once it is retired.
    pub private: Option<PrivateKey>,
    /// Where it is in its life.
    pub state: KeyState,
    /// Since when it is there, milliseconds since 1970.
    pub since_ms: u64,
    /// Domains of recipients for which it signs, in place of the keys that name none; empty for all.
    #[serde(default)]
    pub recipients: Vec<Box<str>>,
    /// The key made ready, at its first use.
    #[serde(skip)]
    pub ready: OnceLock<Option<Arc<SigningKey>>>,
}

impl DomainKey {
    /// The key made ready to sign for this domain; None when it is retired or damaged. The first call takes some 100 us.
    pub fn signing(&self, domain: &str) -> Option<&SigningKey> {
        if self.ready.get().is_none() {
            let key = self.private.as_ref();
            let key = key.and_then(|key| SigningKey::new(domain, &self.selector, self.algorithm, &key.0).ok());
            // Another shard may have been faster, with the same key.
            let _ = self.ready.set(key.map(Arc::new));
        }
        self.ready.get().and_then(|ready| ready.as_deref())
    }
}

/// A domain of a tenant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Domain {
    /// Its name, in lower case and A-labels.
    pub name: Box<str>,
    /// Whose it is.
    pub tenant: Box<str>,
    /// When it was added, milliseconds since 1970.
    pub created_ms: u64,
    /// Since when it is known to be the tenant's; None while it is not.
    pub verified_ms: Option<u64>,
    /// Its keys, the newest first.
    pub keys: Vec<DomainKey>,
    /// New with each change.
    pub revision: u64,
}

impl PartialEq for Domain {
    fn eq(&self, other: &Domain) -> bool {
        self.revision == other.revision && self.name == other.name && self.tenant == other.tenant
    }
}

impl Eq for Domain {}

impl Domain {
    /// Whether its keys were seen in DNS.
    pub fn is_verified(&self) -> bool {
        self.verified_ms.is_some()
    }

    /// The keys that sign a message to these domains: those that are for all of them, or else those that are for everybody. Before
    /// the domain is verified those sign, too, that it waits for: what they sign is held.
    pub fn keys_for<'a>(&'a self, recipients: impl Iterator<Item = &'a str> + Clone) -> Vec<&'a SigningKey> {
        let signs = |key: &&DomainKey| match key.state {
            KeyState::Active => true,
            KeyState::Pending => !self.is_verified(),
            KeyState::Retired => false,
        };
        let active = || self.keys.iter().filter(signs);
        let fits = |key: &DomainKey| {
            let mut recipients = recipients.clone();
            recipients.all(|domain| key.recipients.iter().any(|own| own.eq_ignore_ascii_case(domain)))
        };
        let own: Vec<_> = active()
            .filter(|key| !key.recipients.is_empty() && fits(key))
            .filter_map(|key| key.signing(&self.name))
            .collect();
        if !own.is_empty() {
            return own;
        }
        active().filter(|key| key.recipients.is_empty()).filter_map(|key| key.signing(&self.name)).collect()
    }
}

/// A message's author domains, as its From header names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authors {
    /// One header with at least one address; these are their domains, without repeats, in lower case and A-labels.
    Domains(Vec<Box<str>>),
    /// There is no From header.
    Absent,
    /// There are several, or it has no address, or one that is none.
    Unclear,
}

/// Reads the From header (RFC 5322 3.6.2).
pub fn authors(section: &[u8]) -> Authors {
    let mut from = fields(section).filter(|field| field.name.eq_ignore_ascii_case(b"From"));
    let Some(field) = from.next() else { return Authors::Absent };
    if from.next().is_some() {
        return Authors::Unclear;
    }
    let parsed = mail_parser::parsers::MessageStream::new(field.value).parse_address();
    let mail_parser::HeaderValue::Address(parsed) = parsed else { return Authors::Unclear };
    let mut domains: Vec<Box<str>> = Vec::new();
    for one in parsed.iter() {
        let address = one.address.as_deref().and_then(|text| Address::parse(text.as_bytes(), true).ok());
        match address.and_then(|address| address.routing_domain().ok()) {
            Some(domain) if domains.contains(&domain) => {}
            Some(domain) => domains.push(domain),
            None => return Authors::Unclear,
        }
    }
    if domains.is_empty() { Authors::Unclear } else { Authors::Domains(domains) }
}

/// The refusal of a sender whose domain is not the tenant's.
pub fn not_verified(what: &str, domain: &str, known: Option<&Arc<Domain>>) -> Reply {
    let text = match known {
        None => format!("The domain {domain} of the {what} is not one of yours: add it with `ringpost domain add`"),
        Some(known) => format!(
            "The domain {} of the {what} is not verified yet: publish its DKIM records (`ringpost domain show {0}`) and \
             try again",
            known.name
        ),
    };
    Reply::new(550, (5, 7, 1), text)
}

/// Why a message is held whose sender's domain is not verified yet.
pub fn waits_reason(domain: &str) -> Box<str> {
    format!("{WAITS_BEFORE}{domain}{WAITS_BEHIND}").into()
}

/// The domain that a message waits for which is held for this reason.
pub fn waits_for(reason: &str) -> Option<&str> {
    reason.strip_prefix(WAITS_BEFORE)?.strip_suffix(WAITS_BEHIND)
}

const WAITS_BEFORE: &str = "domain ";
const WAITS_BEHIND: &str = " is not verified yet";

/// The refusal of a message whose author is not clear.
pub const AUTHOR_UNCLEAR: Reply =
    Reply::fixed(550, 5, 7, 1, "The message needs one From header with at least one whole address");

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(section: &str) -> Authors {
        authors(section.as_bytes())
    }

    fn some(names: &[&str]) -> Authors {
        Authors::Domains(names.iter().map(|name| (*name).into()).collect())
    }

    #[test]
    fn authors_are_read_strictly() {
        for (section, expected) in [
            ("From: a@Example.org\r\n\r\n", some(&["example.org"])),
            ("from : \"x@evil.example\" <a@example.org>\r\n", some(&["example.org"])),
            (
                "From: A <a@example.org>,\r\n b@mail.example.net, c@example.org\r\n",
                some(&["example.org", "mail.example.net"]),
            ),
            ("From: team: a@example.org, b@x.example;\r\n", some(&["example.org", "x.example"])),
            ("From: (c@x.example) a@example.org (d)\r\n", some(&["example.org"])),
            ("From: ü@bücher.example\r\n", some(&["xn--bcher-kva.example"])),
            ("To: a@example.org\r\n\r\nFrom: a@example.org\r\n", Authors::Absent),
            ("From: a@example.org\r\nFrom: b@example.org\r\n", Authors::Unclear),
            ("From: nobody\r\n", Authors::Unclear),
            ("From:\r\n", Authors::Unclear),
            ("From: a@example.org, b@\r\n", Authors::Unclear),
        ] {
            assert_eq!(domains(section), expected, "{section}");
        }
    }

    fn key(selector: &str, state: KeyState, recipients: &[&str]) -> DomainKey {
        DomainKey {
            selector: selector.into(),
            algorithm: Algorithm::Ed25519,
            private: Some(Algorithm::Ed25519.generate().unwrap().into()),
            state,
            since_ms: 0,
            recipients: recipients.iter().map(|domain| (*domain).into()).collect(),
            ready: OnceLock::new(),
        }
    }

    #[test]
    fn active_keys_sign_and_those_of_the_recipients_before_others() {
        let keys = vec![
            key("new", KeyState::Pending, &[]),
            key("usual", KeyState::Active, &[]),
            key("big", KeyState::Active, &["big.example", "mail.big.example"]),
            key("old", KeyState::Retired, &[]),
        ];
        let domain = Domain {
            name: "example.org".into(),
            tenant: "a".into(),
            created_ms: 0,
            verified_ms: Some(1),
            keys,
            revision: 1,
        };
        let selectors = |recipients: &[&str]| -> Vec<String> {
            domain.keys_for(recipients.iter().copied()).iter().map(|key| format!("{key:?}")).collect()
        };
        let usual = ["SigningKey(usual._domainkey.example.org, ed25519)"];
        assert_eq!(selectors(&["x.example"]), usual);
        assert_eq!(selectors(&["Big.example", "x.example"]), usual);
        let big = ["SigningKey(big._domainkey.example.org, ed25519)"];
        assert_eq!(selectors(&["Big.example", "mail.big.example"]), big);
        // Before it is verified those sign, too, that wait for their records: some may have been seen already.
        let unverified = Domain { verified_ms: None, ..domain.clone() };
        let waiting = unverified.keys_for(["x.example"].into_iter());
        assert_eq!(
            format!("{waiting:?}"),
            "[SigningKey(new._domainkey.example.org, ed25519), SigningKey(usual._domainkey.example.org, ed25519)]"
        );
    }

    #[test]
    fn a_key_is_kept_and_never_shown() {
        let one = key("s", KeyState::Active, &[]);
        let json = serde_json::to_string(&one).unwrap();
        let back: DomainKey = serde_json::from_str(&json).unwrap();
        assert_eq!(back.private, one.private);
        let secret = STANDARD.encode(&*one.private.as_ref().unwrap().0);
        assert!(json.contains(&secret) && !format!("{one:?}").contains(&secret[40..]));
    }
}
