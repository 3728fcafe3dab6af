//! Who may submit mail, and in whose name: tenants and their credentials, all of them in one immutable snapshot
//! that every shard reads. Pure decisions; where it is kept is src/control/identities.rs.
//!
//! Whoever may not log in is told nothing of the reason: [`Refusal`] is for the operator's log alone.

use crate::address::Address;
use crate::clock::UnixTime;
use crate::policy::domain::{AUTHOR_UNCLEAR, Authors, Domain, Unverified, authors, not_verified, waits_reason};
use crate::policy::quota::Quotas;
use crate::policy::usage::SharedUsage;
use crate::reply::Reply;
use crate::smtp::scram::ScramKeys;
use foldhash::HashMap;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// One customer, or one part of a house: what it sends is counted, limited and answered for together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name: 1 to 64 characters, ASCII without spaces.
    pub name: Box<str>,
    /// Whether it may submit.
    pub enabled: bool,
    /// When it was added, milliseconds since 1970.
    pub created_ms: u64,
    /// What becomes of its mail from domains that are not verified.
    #[serde(default)]
    pub unverified: Unverified,
    /// How much it may send.
    #[serde(default)]
    pub quotas: Quotas,
    /// What it has sent.
    #[serde(skip)]
    pub usage: SharedUsage,
}

impl Tenant {
    /// A new one, without quotas.
    pub fn new(name: &str, unverified: Unverified, created_ms: u64) -> Tenant {
        let (quotas, usage) = Default::default();
        Tenant { name: name.into(), enabled: true, created_ms, unverified, quotas, usage }
    }
}

/// One secret of a credential, hashed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretHash {
    /// Argon2id in the form of PHC strings (`$argon2id$v=19$…`).
    pub phc: Box<str>,
    /// An older secret is taken until then, milliseconds since 1970; none: until it is rotated.
    pub until_ms: Option<u64>,
    /// What SCRAM needs of it; none of a secret that was made before this was kept: it gets them when it is rotated.
    #[serde(default)]
    pub scram: Option<ScramKeys>,
}

/// Secrets of a credential: the present one, and the one before while it is rotated.
pub const SECRETS_MAX: usize = 2;

impl SecretHash {
    /// Whether it is taken at this time.
    pub fn is_taken(&self, now: UnixTime) -> bool {
        self.until_ms.is_none_or(|until| until > now.as_millis())
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretHash").field("until_ms", &self.until_ms).finish_non_exhaustive()
    }
}

/// A login of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Random, for its whole life: another one that gets the same login later is not this one.
    pub id: u64,
    /// The name to log in with, unique over all tenants.
    pub login: Box<str>,
    /// Whose it is.
    pub tenant: Box<str>,
    /// What it is for, as in "production"; for people.
    pub label: Box<str>,
    /// Whether it may log in.
    pub enabled: bool,
    /// When it was added, milliseconds since 1970.
    pub created_ms: u64,
    /// It may not log in from then on.
    pub expires_ms: Option<u64>,
    /// From where it may log in; from everywhere when empty.
    pub networks: Vec<IpNet>,
    /// Which senders it may use of those that its tenant may; all of them when empty.
    pub senders: Vec<SenderRule>,
    /// The certificates with which it may log in without a secret.
    #[serde(default)]
    pub certificates: Vec<CertificateRule>,
    /// Its secrets, the newest first.
    pub secrets: Vec<SecretHash>,
    /// Whether it may send as other tenants, named by a header or the sender's subaddress where the listener looks for one.
    #[serde(default)]
    pub any_tenant: bool,
    /// How much it may send, within its tenant's quotas.
    #[serde(default)]
    pub quotas: Quotas,
    /// What it has sent.
    #[serde(skip)]
    pub usage: SharedUsage,
    /// New with each change of its secrets and of itself: what was remembered of an earlier one counts no more.
    pub revision: u64,
}

/// A client's certificate that a credential logs in with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CertificateRule {
    /// The one with this SHA-256 of its whole (DER).
    Fingerprint([u8; 32]),
    /// Each with this name among the alternative names of its subject, in lower case.
    Name(Box<str>),
}

impl TryFrom<String> for CertificateRule {
    type Error = String;

    fn try_from(text: String) -> Result<CertificateRule, String> {
        text.parse()
    }
}

impl From<CertificateRule> for String {
    fn from(rule: CertificateRule) -> String {
        rule.to_string()
    }
}

impl std::str::FromStr for CertificateRule {
    type Err = String;

    /// 64 hexadecimal digits, with or without colons; or a domain or an address.
    fn from_str(text: &str) -> Result<CertificateRule, String> {
        let digits: Vec<u8> = text.bytes().filter(|octet| *octet != b':').collect();
        if digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit) {
            let mut fingerprint = [0; 32];
            for (octet, pair) in fingerprint.iter_mut().zip(digits.chunks_exact(2)) {
                let value = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default() as u8;
                *octet = value(pair[0]) << 4 | value(pair[1]);
            }
            return Ok(CertificateRule::Fingerprint(fingerprint));
        }
        match text.parse::<SenderRule>() {
            Ok(SenderRule::Address(address)) => Ok(CertificateRule::Name(address)),
            Ok(SenderRule::Domain(domain)) if !text.contains('@') => Ok(CertificateRule::Name(domain)),
            _ => Err(format!("`{text}` is neither a SHA-256 fingerprint nor a name of a certificate")),
        }
    }
}

impl fmt::Display for CertificateRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CertificateRule::Fingerprint(octets) => octets.iter().try_for_each(|octet| write!(f, "{octet:02x}")),
            CertificateRule::Name(name) => f.write_str(name),
        }
    }
}

impl CertificateRule {
    fn fits(&self, fingerprint: &[u8; 32], names: &[Box<str>]) -> bool {
        match self {
            CertificateRule::Fingerprint(own) => own == fingerprint,
            CertificateRule::Name(own) => names.iter().any(|name| name.eq_ignore_ascii_case(own)),
        }
    }
}

/// A sender that a credential may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SenderRule {
    /// This address.
    Address(Box<str>),
    /// All addresses of this domain.
    Domain(Box<str>),
}

impl TryFrom<String> for SenderRule {
    type Error = String;

    fn try_from(text: String) -> Result<SenderRule, String> {
        text.parse()
    }
}

impl From<SenderRule> for String {
    fn from(rule: SenderRule) -> String {
        rule.to_string()
    }
}

impl std::str::FromStr for SenderRule {
    type Err = String;

    /// `someone@example.org`, or `example.org` or `@example.org` for all of a domain.
    fn from_str(text: &str) -> Result<SenderRule, String> {
        let lower = text.to_ascii_lowercase();
        match lower.split_once('@') {
            None | Some(("", _)) => {
                let domain = lower.trim_start_matches('@');
                if crate::address::check_domain_or_literal(domain).is_err() {
                    return Err(format!("`{text}` is neither an address nor a domain"));
                }
                Ok(SenderRule::Domain(domain.into()))
            }
            Some(_) => match Address::parse(lower.as_bytes(), true) {
                Ok(address) => Ok(SenderRule::Address(address.as_str().into())),
                Err(error) => Err(format!("`{text}` is no address: {error}")),
            },
        }
    }
}

impl fmt::Display for SenderRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SenderRule::Address(address) => f.write_str(address),
            SenderRule::Domain(domain) => write!(f, "@{domain}"),
        }
    }
}

impl SenderRule {
    fn fits(&self, address: &Address) -> bool {
        match self {
            SenderRule::Address(own) => own.eq_ignore_ascii_case(address.as_str()),
            SenderRule::Domain(domain) => domain.eq_ignore_ascii_case(address.domain()),
        }
    }
}

/// Why somebody may not log in; for the operator, never for the client.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such login, or the wrong secret.
    Invalid,
    /// The credential is disabled.
    Disabled,
    /// The credential has expired.
    Expired,
    /// The tenant is disabled, or gone.
    TenantDisabled,
    /// Not from this network.
    Network,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Invalid => "unknown login or wrong secret",
            Refusal::Disabled => "the credential is disabled",
            Refusal::Expired => "the credential has expired",
            Refusal::TenantDisabled => "its tenant is disabled",
            Refusal::Network => "the credential may not be used from this network",
        })
    }
}

/// How a message of a tenant leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passage {
    /// The domain that signs it; none: it goes unsigned.
    pub signer: Option<Arc<Domain>>,
    /// Why it is held, when it is ([`crate::policy::domain::waits_for`] reads it).
    pub held: Option<Box<str>>,
}

/// All identities, as they are at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    tenants: HashMap<Box<str>, Arc<Tenant>>,
    credentials: HashMap<Box<str>, Arc<Credential>>,
    /// By tenant, then by name.
    domains: HashMap<Box<str>, HashMap<Box<str>, Arc<Domain>>>,
    /// Those that are verified, by name: where several tenants have one, that of the first to be verified.
    verified: HashMap<Box<str>, Arc<Domain>>,
    /// The logins of those that have certificates.
    certified: Vec<Box<str>>,
}

impl Directory {
    /// Of these.
    pub fn new(tenants: Vec<Tenant>, credentials: Vec<Credential>) -> Directory {
        let with_certificates = credentials.iter().filter(|one| !one.certificates.is_empty());
        Directory {
            certified: with_certificates.map(|one| one.login.clone()).collect(),
            tenants: tenants.into_iter().map(|tenant| (tenant.name.clone(), Arc::new(tenant))).collect(),
            credentials: credentials.into_iter().map(|one| (one.login.clone(), Arc::new(one))).collect(),
            domains: HashMap::default(),
            verified: HashMap::default(),
        }
    }

    /// With these domains. Those that `before` has unchanged are taken from there, since their keys are made ready.
    pub fn with_domains(mut self, domains: Vec<Domain>, before: &Directory) -> Directory {
        for domain in domains {
            let known = before.domain(&domain.tenant, &domain.name).filter(|known| ***known == domain);
            let domain = known.cloned().unwrap_or_else(|| Arc::new(domain));
            if let Some(since) = domain.verified_ms {
                let first = self.verified.entry(domain.name.clone()).or_insert_with(|| Arc::clone(&domain));
                if (since, &domain.tenant) < (first.verified_ms.unwrap_or(u64::MAX), &first.tenant) {
                    *first = Arc::clone(&domain);
                }
            }
            self.domains.entry(domain.tenant.clone()).or_default().insert(domain.name.clone(), domain);
        }
        self
    }

    /// Counts go on where those of the same tenants and credentials were before.
    pub fn with_usage_of(mut self, before: &Directory) -> Directory {
        for (name, tenant) in &mut self.tenants {
            let known = before.tenants.get(name).filter(|known| known.created_ms == tenant.created_ms);
            if let (Some(known), Some(tenant)) = (known, Arc::get_mut(tenant)) {
                tenant.usage = known.usage.clone();
            }
        }
        for (login, credential) in &mut self.credentials {
            let known = before.credentials.get(login).filter(|known| known.id == credential.id);
            if let (Some(known), Some(credential)) = (known, Arc::get_mut(credential)) {
                credential.usage = known.usage.clone();
            }
        }
        self
    }

    /// The verified domain that signs for this host: its own or one above it, whosever it is.
    pub fn signer_of(&self, host: &str) -> Option<&Arc<Domain>> {
        let mut names = std::iter::successors(Some(host), |name| name.split_once('.').map(|(_, above)| above));
        names.find_map(|name| self.verified.get(name))
    }

    /// A domain of this tenant.
    pub fn domain(&self, tenant: &str, name: &str) -> Option<&Arc<Domain>> {
        self.domains.get(tenant)?.get(name)
    }

    /// All domains, in no order.
    pub fn domains(&self) -> impl Iterator<Item = &Arc<Domain>> {
        self.domains.values().flat_map(HashMap::values)
    }

    /// The tenant's domain that speaks for this name (lower case, A-labels): itself, or the nearest above it.
    pub fn speaker(&self, tenant: &str, name: &str) -> Option<&Arc<Domain>> {
        let own = self.domains.get(tenant)?;
        let mut name = name;
        loop {
            match (own.get(name), name.split_once('.')) {
                (Some(domain), _) => return Some(domain),
                (None, Some((_, above))) => name = above,
                (None, None) => return None,
            }
        }
    }

    /// What becomes of a tenant's mail from domains that are not verified. Whoever is no tenant here may send as any.
    fn unverified(&self, tenant: &str) -> Unverified {
        self.tenant(tenant).map_or(Unverified::Pass, |tenant| tenant.unverified)
    }

    /// Whether a tenant may use this reverse path, and the domain that must be verified before such a message goes out.
    pub fn may_return_to(&self, tenant: &str, sender: &Address) -> Result<Option<&Arc<Domain>>, Reply> {
        let unverified = self.unverified(tenant);
        if unverified == Unverified::Pass {
            return Ok(None);
        }
        let name = sender.routing_domain().unwrap_or_else(|_| sender.domain().into());
        match self.speaker(tenant, &name) {
            Some(domain) if domain.is_verified() => Ok(None),
            Some(domain) if unverified == Unverified::Hold => Ok(Some(domain)),
            known => Err(not_verified("sender", &name, known)),
        }
    }

    /// Who signs a message of this tenant with this reverse path and these headers, which is the domain of its author, and
    /// which domain it waits for; or its refusal. One that waits for two domains is refused.
    pub fn passage(&self, tenant: &str, sender: Option<&Address>, section: &[u8]) -> Result<Passage, Reply> {
        let unverified = self.unverified(tenant);
        let strict = unverified != Unverified::Pass;
        if !strict && !self.domains.contains_key(tenant) {
            return Ok(Passage::default());
        }
        let mut waits_for = match sender {
            Some(sender) => self.may_return_to(tenant, sender)?,
            None => None,
        };
        let domains = match authors(section) {
            Authors::Domains(domains) => domains,
            Authors::Absent | Authors::Unclear if strict => return Err(AUTHOR_UNCLEAR),
            Authors::Absent | Authors::Unclear => return Ok(Passage::default()),
        };
        let mut signer = None;
        for name in &domains {
            match self.speaker(tenant, name) {
                Some(domain) if domain.is_verified() => signer = signer.or(Some(domain)),
                Some(domain)
                    if unverified == Unverified::Hold && waits_for.is_none_or(|other| other.name == domain.name) =>
                {
                    (signer, waits_for) = (signer.or(Some(domain)), Some(domain));
                }
                known if strict => return Err(not_verified("From header", name, known)),
                _ => {}
            }
        }
        Ok(Passage { signer: signer.cloned(), held: waits_for.map(|domain| waits_reason(&domain.name)) })
    }

    /// The tenant of this name.
    pub fn tenant(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.tenants.get(name)
    }

    /// The credential with this login.
    pub fn credential(&self, login: &str) -> Option<&Arc<Credential>> {
        self.credentials.get(login)
    }

    /// The credential with this login that a certificate logs in with; without a login, the only one.
    pub fn by_certificate(&self, login: &str, fingerprint: &[u8; 32], names: &[Box<str>]) -> Option<&Arc<Credential>> {
        let fits = |one: &&Arc<Credential>| one.certificates.iter().any(|rule| rule.fits(fingerprint, names));
        if !login.is_empty() {
            return self.credential(login).filter(fits);
        }
        let mut all = self.certified.iter().filter_map(|login| self.credential(login)).filter(fits);
        all.next().filter(|_| all.next().is_none())
    }

    /// Whether a credential whose secret is right may be used by this client now.
    pub fn check(&self, credential: &Credential, client: IpAddr, now: UnixTime) -> Result<(), Refusal> {
        let client = client.to_canonical();
        if !credential.enabled {
            return Err(Refusal::Disabled);
        }
        if credential.expires_ms.is_some_and(|end| end <= now.as_millis()) {
            return Err(Refusal::Expired);
        }
        if !self.tenant(&credential.tenant).is_some_and(|tenant| tenant.enabled) {
            return Err(Refusal::TenantDisabled);
        }
        if !credential.networks.is_empty() && !credential.networks.iter().any(|network| network.contains(&client)) {
            return Err(Refusal::Network);
        }
        Ok(())
    }

    /// All tenants, in no order.
    pub fn tenants(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.tenants.values()
    }

    /// All credentials, in no order.
    pub fn credentials(&self) -> impl Iterator<Item = &Arc<Credential>> {
        self.credentials.values()
    }
}

impl Credential {
    /// With this login, of this tenant: enabled, for everything, and without a secret.
    #[cfg(test)]
    pub(crate) fn of(login: &str, tenant: &str) -> Credential {
        Credential {
            id: 1,
            login: login.into(),
            tenant: tenant.into(),
            label: "production".into(),
            enabled: true,
            created_ms: 1,
            expires_ms: None,
            networks: Vec::new(),
            senders: Vec::new(),
            certificates: Vec::new(),
            secrets: Vec::new(),
            any_tenant: false,
            quotas: Quotas::default(),
            usage: SharedUsage::default(),
            revision: 1,
        }
    }

    /// Whether it may send as this address. The null path is no sender and always allowed.
    pub fn may_send_as(&self, sender: &Address) -> Result<(), Reply> {
        if self.senders.is_empty() || self.senders.iter().any(|rule| rule.fits(sender)) {
            return Ok(());
        }
        let text =
            format!("This login may not send as <{sender}>: use one of its senders, or ask for this one to be added");
        Err(Reply::new(550, (5, 7, 1), text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(login: &str, tenant: &str) -> Credential {
        Credential::of(login, tenant)
    }

    fn tenant(name: &str) -> Tenant {
        Tenant::new(name, Unverified::Pass, 1)
    }

    fn address(text: &str) -> Address {
        Address::parse(text.as_bytes(), true).unwrap()
    }

    #[test]
    fn who_may_log_in() {
        let directory = Directory::new(vec![tenant("a"), Tenant { enabled: false, ..tenant("off") }], vec![]);
        let client: IpAddr = "192.0.2.7".parse().unwrap();
        let now = UnixTime::from_millis(1_000);
        let good = credential("app", "a");
        let check = |credential: &Credential| directory.check(credential, client, now);
        assert_eq!(check(&good), Ok(()));
        assert_eq!(check(&Credential { enabled: false, ..good.clone() }), Err(Refusal::Disabled));
        assert_eq!(check(&Credential { expires_ms: Some(1_000), ..good.clone() }), Err(Refusal::Expired));
        assert_eq!(check(&Credential { expires_ms: Some(1_001), ..good.clone() }), Ok(()));
        assert_eq!(check(&credential("app", "off")), Err(Refusal::TenantDisabled));
        assert_eq!(check(&credential("app", "gone")), Err(Refusal::TenantDisabled));
        let networks = |text: &str| Credential { networks: vec![text.parse().unwrap()], ..good.clone() };
        assert_eq!(check(&networks("192.0.2.0/24")), Ok(()));
        assert_eq!(check(&networks("198.51.100.0/24")), Err(Refusal::Network));
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
        assert_eq!(directory.check(&networks("192.0.2.0/24"), mapped, now), Ok(()));
    }

    #[test]
    fn senders_must_fit_a_rule_where_there_are_rules() {
        let a = credential("app", "a");
        assert_eq!(a.may_send_as(&address("x@anything.example")), Ok(()));
        let senders = ["news@own.example", "@bulk.example"].map(|rule| rule.parse().unwrap());
        let narrow = Credential { senders: senders.into(), ..a };
        for sender in ["News@Own.example", "any@bulk.example"] {
            assert_eq!(narrow.may_send_as(&address(sender)), Ok(()), "{sender}");
        }
        for sender in ["other@own.example", "x@sub.bulk.example"] {
            let reply = narrow.may_send_as(&address(sender)).unwrap_err().to_string();
            assert!(reply.starts_with("550 5.7.1 ") && reply.contains(sender), "{reply}");
        }
    }

    #[test]
    fn a_strict_tenant_sends_as_its_verified_domains_alone() {
        let domain = |tenant: &str, name: &str, verified_ms| Domain {
            name: name.into(),
            tenant: tenant.into(),
            created_ms: 1,
            verified_ms,
            keys: Vec::new(),
            revision: 1,
        };
        let strict = Tenant { unverified: Unverified::Refuse, ..tenant("strict") };
        let domains = vec![
            domain("strict", "own.example", Some(1)),
            domain("strict", "new.own.example", None),
            domain("a", "a.example", Some(1)),
        ];
        let directory = Directory::new(vec![strict, tenant("a")], vec![]).with_domains(domains, &Directory::default());
        let path = |tenant: &str, sender: &str| directory.may_return_to(tenant, &address(sender)).map(|_| ());
        let signer = |tenant: &str, from: &str| {
            let passage = directory.passage(tenant, None, format!("From: {from}\r\n\r\n").as_bytes());
            passage.map(|passage| passage.signer.map_or(String::new(), |domain| domain.name.to_string()))
        };
        for sender in ["x@own.example", "x@Deep.in.Own.example"] {
            assert_eq!(path("strict", sender), Ok(()));
            assert_eq!(signer("strict", sender), Ok("own.example".into()));
        }
        for (sender, wrong) in [
            ("x@a.example", "not one of yours"),
            ("x@example", "not one of yours"),
            ("x@notown.example", "not one of yours"),
            ("x@[192.0.2.1]", "not one of yours"),
            ("x@new.own.example", "not verified yet"),
            ("x@sub.new.own.example", "not verified yet"),
        ] {
            for refused in [path("strict", sender).unwrap_err(), signer("strict", sender).unwrap_err()] {
                let text = refused.to_string();
                assert!(text.starts_with("550 5.7.1 ") && text.contains(wrong), "{text}");
            }
        }
        assert!(signer("strict", "x@own.example, y@a.example").is_err(), "every author counts");
        assert_eq!(signer("strict", "nobody"), Err(AUTHOR_UNCLEAR));
        // Another tenant, or none, sends as it likes, and is signed where it can be.
        assert_eq!(path("a", "x@own.example"), Ok(()));
        assert_eq!(signer("a", "x@own.example"), Ok(String::new()));
        assert_eq!(signer("a", "x@own.example, y@a.example"), Ok("a.example".into()));
        assert_eq!(signer("a", "nobody"), Ok(String::new()));
        assert_eq!((path("gone", "x@own.example"), signer("gone", "x@own.example")), (Ok(()), Ok(String::new())));
    }

    #[test]
    fn whoever_verified_a_host_first_signs_for_it() {
        let domain = |tenant: &str, name: &str, verified_ms| Domain {
            name: name.into(),
            tenant: tenant.into(),
            created_ms: 1,
            verified_ms,
            keys: Vec::new(),
            revision: 1,
        };
        let domains = vec![
            domain("a", "host.example", Some(2)),
            domain("b", "host.example", Some(1)),
            domain("c", "host.example", None),
            domain("c", "mx.host.example", None),
        ];
        let directory = Directory::default().with_domains(domains, &Directory::default());
        let signer = |host: &str| directory.signer_of(host).map(|domain| domain.tenant.to_string());
        assert_eq!(signer("host.example").as_deref(), Some("b"));
        assert_eq!(signer("mx.host.example").as_deref(), Some("b"));
        assert_eq!((signer("example"), signer("other.example"), signer("myhost.example")), (None, None, None));
    }

    #[test]
    fn mail_waits_for_one_domain_that_was_added() {
        let domain = |name: &str, verified_ms| Domain {
            name: name.into(),
            tenant: "a".into(),
            created_ms: 1,
            verified_ms,
            keys: Vec::new(),
            revision: 1,
        };
        let holds = Tenant { unverified: Unverified::Hold, ..tenant("a") };
        let domains = vec![domain("good.example", Some(1)), domain("new.example", None), domain("late.example", None)];
        let directory = Directory::new(vec![holds], vec![]).with_domains(domains, &Directory::default());
        let passage = |sender: &str, from: &str| {
            let passage = directory.passage("a", Some(&address(sender)), format!("From: {from}\r\n\r\n").as_bytes());
            passage.map(|Passage { signer, held }| {
                let held = held.map(|reason| crate::policy::domain::waits_for(&reason).map(str::to_owned).unwrap());
                (signer.map(|domain| domain.name.to_string()).unwrap_or_default(), held.unwrap_or_default())
            })
        };
        let is = |signer: &str, held: &str| Ok((signer.to_owned(), held.to_owned()));
        assert_eq!(passage("x@good.example", "x@good.example"), is("good.example", ""));
        assert_eq!(passage("x@new.example", "x@new.example"), is("new.example", "new.example"));
        assert_eq!(passage("x@new.example", "x@good.example"), is("good.example", "new.example"));
        assert_eq!(passage("x@good.example", "x@good.example, x@new.example"), is("good.example", "new.example"));
        for (sender, from) in [
            ("x@new.example", "x@late.example"),
            ("x@good.example", "x@new.example, x@late.example"),
            ("x@else.example", "x@new.example"),
            ("x@new.example", "x@else.example"),
        ] {
            let refused = passage(sender, from).unwrap_err().to_string();
            assert!(refused.starts_with("550 5.7.1 "), "{sender}, {from}: {refused}");
        }
        assert_eq!(crate::policy::domain::waits_for("filter x: domain y is not verified yet"), None);
    }

    #[test]
    fn certificates_belong_to_credentials() {
        let fingerprint = "ab:CD:".to_owned() + &"00".repeat(30);
        let rule: CertificateRule = fingerprint.parse().unwrap();
        assert_eq!(rule.to_string(), format!("abcd{}", "00".repeat(30)));
        let CertificateRule::Fingerprint(octets) = rule else { panic!() };
        let with = |login: &str, rules: &[&str]| Credential {
            certificates: rules.iter().map(|rule| rule.parse().unwrap()).collect(),
            ..credential(login, "a")
        };
        let all =
            vec![with("one", &[&fingerprint]), with("two", &["App.example.org"]), with("three", &["app.example.org"])];
        let directory = Directory::new(Vec::new(), all);
        let login = |name: &str, fingerprint: &[u8; 32], names: &[&str]| {
            let names: Vec<Box<str>> = names.iter().map(|name| (*name).into()).collect();
            directory.by_certificate(name, fingerprint, &names).map(|one| one.login.to_string())
        };
        assert_eq!(login("", &octets, &[]).as_deref(), Some("one"));
        assert_eq!(login("one", &octets, &[]).as_deref(), Some("one"));
        assert_eq!(login("two", &octets, &[]), None);
        assert_eq!(login("two", &[0; 32], &["app.example.org"]).as_deref(), Some("two"));
        assert_eq!(login("", &[0; 32], &["app.example.org"]), None, "it is not clear whose it is");
        assert_eq!(login("", &[0; 32], &["other.example.org"]), None);
        for text in ["", "@example.org", "abcd", &"g".repeat(65)] {
            assert!(text.parse::<CertificateRule>().is_err() || text == "abcd", "{text}");
        }
    }

    #[test]
    fn sender_rules_are_read_and_shown() {
        for (text, shown) in
            [("A@Example.org", "a@example.org"), ("example.org", "@example.org"), ("@example.org", "@example.org")]
        {
            assert_eq!(text.parse::<SenderRule>().unwrap().to_string(), shown);
        }
        for text in ["", "@", "a@", "a b@example.org", "exa mple.org"] {
            assert!(text.parse::<SenderRule>().is_err(), "{text}");
        }
    }
}
