//! What operators ask of tenants' domains, and what they are answered: the admin interface's words, as JSON. No private key
//! is ever in an answer.

use crate::policy::dkim::Algorithm;
use crate::policy::domain::{Domain, DomainKey, KeyState};
use serde::{Deserialize, Serialize};

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DomainRequest {
    /// All domains, or a tenant's, or those of this name.
    List {
        /// Whose.
        tenant: Option<String>,
        /// Which.
        name: Option<String>,
    },
    /// A new domain, with a key of each kind.
    Add {
        /// Whose.
        tenant: String,
        /// Its name.
        name: String,
        /// The kinds of its keys.
        algorithms: Vec<Algorithm>,
    },
    /// One more key for a domain: it signs once it was seen in DNS.
    AddKey {
        /// Whose.
        tenant: String,
        /// Which domain.
        name: String,
        /// Its kind.
        algorithm: Algorithm,
        /// Its selector; one is made when left out.
        selector: Option<String>,
        /// The key itself as PEM, when there is one already.
        #[serde(default)]
        pem: Option<Secret>,
        /// Domains of recipients for which alone it signs.
        #[serde(default)]
        recipients: Vec<String>,
    },
    /// A new key in place of each one that signs for everybody. The old ones sign until the new ones were seen in DNS.
    Rotate {
        /// Whose.
        tenant: String,
        /// Which domain.
        name: String,
    },
    /// Looks into DNS now.
    Verify {
        /// Whose.
        tenant: String,
        /// Which domain.
        name: String,
    },
    /// No such key any more.
    RemoveKey {
        /// Whose.
        tenant: String,
        /// Which domain.
        name: String,
        /// Its selector.
        selector: String,
    },
    /// No such domain any more.
    Remove {
        /// Whose.
        tenant: String,
        /// Which.
        name: String,
    },
}

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DomainReply {
    /// By name and tenant.
    Domains(Vec<DomainView>),
    /// One, as it is now.
    Domain(DomainView),
    /// One, and what was found for it in DNS.
    Checked {
        /// As it is now.
        domain: DomainView,
        /// What was found for each key that was looked up.
        found: Vec<Finding>,
        /// Whether a DMARC policy was found (RFC 7489).
        dmarc: Option<String>,
        /// Whether an SPF policy was found (RFC 7208).
        spf: Option<String>,
    },
    /// It is so.
    Done {},
}

/// What DNS has for a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The key's selector.
    pub selector: String,
    /// Whether it is the key's record.
    pub good: bool,
    /// In words.
    pub text: String,
}

/// A domain as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainView {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// When it was added, milliseconds since 1970.
    pub created_ms: u64,
    /// Since when it is known to be the tenant's.
    pub verified_ms: Option<u64>,
    /// Its keys.
    pub keys: Vec<KeyView>,
}

/// A key as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyView {
    /// Its selector.
    pub selector: String,
    /// Its kind.
    pub algorithm: Algorithm,
    /// Where it is in its life.
    pub state: KeyState,
    /// Since when.
    pub since_ms: u64,
    /// For which recipients' domains alone.
    pub recipients: Vec<String>,
    /// The name of its TXT record.
    pub record_name: String,
    /// The text of its TXT record; None when the key is retired.
    pub record: Option<String>,
}

impl DomainView {
    /// Of this one.
    pub fn of(domain: &Domain) -> DomainView {
        DomainView {
            name: domain.name.to_string(),
            tenant: domain.tenant.to_string(),
            created_ms: domain.created_ms,
            verified_ms: domain.verified_ms,
            keys: domain.keys.iter().map(|key| KeyView::of(key, &domain.name)).collect(),
        }
    }
}

impl KeyView {
    fn of(key: &DomainKey, domain: &str) -> KeyView {
        KeyView {
            selector: key.selector.to_string(),
            algorithm: key.algorithm,
            state: key.state,
            since_ms: key.since_ms,
            recipients: key.recipients.iter().map(ToString::to_string).collect(),
            record_name: record_name(&key.selector, domain),
            record: key.signing(domain).map(|ready| ready.record()),
        }
    }
}

/// Where a key's record stands (RFC 6376 3.6.2.1).
pub fn record_name(selector: &str, domain: &str) -> String {
    format!("{selector}._domainkey.{domain}")
}
