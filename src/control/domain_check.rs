//! Looks into DNS for the records of tenants' keys: when an operator asks, and by itself for keys that were not seen yet, the
//! less often the longer they are waited for.
//!
//! A name server that does not answer changes nothing: what was seen once counts until an operator takes it back.

use super::domain_requests::{DomainReply, DomainRequest, DomainView, Finding, record_name};
use super::identities::{Identities, IdentityError};
use super::log::EventLog;
use crate::event::Severity;
use crate::io::clock;
use crate::io::dns::{DnsFailure, Resolver};
use crate::policy::domain::{Domain, DomainKey, KeyState};
use std::sync::Arc;
use std::time::Duration;

/// How often the keys that are waited for are gone through.
const ROUND: Duration = Duration::from_secs(60);

/// Domains looked up in one round; the others have their turn in the next one.
const DOMAINS_PER_ROUND: usize = 500;

/// Checks domains.
#[derive(Clone, Debug)]
pub struct DomainCheck {
    identities: Arc<Identities>,
    resolver: Arc<Resolver>,
    log: EventLog,
}

impl DomainCheck {
    /// Of these.
    pub fn new(identities: Arc<Identities>, resolver: Arc<Resolver>, log: EventLog) -> DomainCheck {
        DomainCheck { identities, resolver, log }
    }

    /// Does what an operator asks.
    pub async fn handle(&self, request: DomainRequest) -> Result<DomainReply, IdentityError> {
        let checked = match &request {
            DomainRequest::Verify { tenant, name } => Some((tenant.clone(), name.clone())),
            _ => None,
        };
        let identities = Arc::clone(&self.identities);
        let reply = blocking(move || identities.handle_domain(request, clock::now().unix)).await?;
        let (Some((tenant, _)), DomainReply::Domain(view)) = (checked, &reply) else { return Ok(reply) };
        let directory = self.identities.directory();
        let Some(domain) = directory.load().domain(&tenant, &view.name).cloned() else { return Ok(reply) };
        let (domain, found) = self.look(&domain).await?;
        let policy = async |name: String, version: &str| {
            let texts = self.resolver.texts(&name).await.unwrap_or_default();
            texts.into_iter().find(|text| text.starts_with(version))
        };
        let dmarc = policy(format!("_dmarc.{}", domain.name), "v=DMARC1").await;
        let spf = policy(domain.name.to_string(), "v=spf1").await;
        Ok(DomainReply::Checked { domain: DomainView::of(&domain), found, dmarc, spf })
    }

    /// Looks up the keys that sign or wait to.
    async fn look(&self, domain: &Domain) -> Result<(Domain, Vec<Finding>), IdentityError> {
        let mut seen = Vec::new();
        let mut found = Vec::new();
        for key in domain.keys.iter().filter(|key| key.state != KeyState::Retired) {
            let finding = self.find(domain, key).await;
            if finding.good {
                seen.push(key.selector.clone());
            }
            found.push(finding);
        }
        let (identities, asked) = (Arc::clone(&self.identities), domain.clone());
        let was_verified = domain.is_verified();
        let changed = blocking(move || identities.keys_seen(&asked, &seen, clock::now().unix)).await?;
        let current = changed.unwrap_or_else(|| domain.clone());
        if !was_verified && current.is_verified() {
            let text = format!("domain {} of tenant {} is verified: its mail is signed", current.name, current.tenant);
            self.log.notice(Severity::Info, &text);
            self.log.flush();
        }
        Ok((current, found))
    }

    async fn find(&self, domain: &Domain, key: &DomainKey) -> Finding {
        let name = record_name(&key.selector, &domain.name);
        let (good, text) = match (self.resolver.texts(&name).await, key.signing(&domain.name)) {
            (_, None) => (false, "the key itself is damaged: remove it and make another".to_owned()),
            (Ok(texts), Some(ready)) if texts.iter().any(|text| ready.is_in(text)) => (true, "published".to_owned()),
            (Ok(texts), _) => {
                let other = texts.first().map_or(String::new(), |text| format!(": {}", text.escape_debug()));
                (false, format!("{name} has another TXT record{other}"))
            }
            (Err(DnsFailure::NoDomain | DnsFailure::NullMx), _) => (false, format!("{name} has no TXT record yet")),
            (Err(DnsFailure::Temporary(why) | DnsFailure::Policy(why) | DnsFailure::Unprotected(why)), _) => {
                (false, format!("{name} cannot be looked up: {why}"))
            }
        };
        Finding { selector: key.selector.to_string(), good, text }
    }

    /// Looks for the keys that are waited for, as long as the program runs.
    pub async fn run(self) {
        let mut interval = tokio::time::interval(ROUND);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut turn = 0;
        loop {
            interval.tick().await;
            let now = clock::now().unix.as_millis();
            let directory = self.identities.directory();
            let directory = directory.load_full();
            let waiting = directory.domains().filter(|domain| is_due(domain, now));
            let mut waiting: Vec<_> = waiting.cloned().collect();
            waiting.sort_by(|one, other| (&one.name, &one.tenant).cmp(&(&other.name, &other.tenant)));
            let begin = if turn < waiting.len() { turn } else { 0 };
            for domain in waiting.iter().skip(begin).take(DOMAINS_PER_ROUND) {
                if let Err(error) = self.look(domain).await {
                    self.log.notice(Severity::Warning, &format!("domain {} was not checked: {error}", domain.name));
                    self.log.flush();
                }
            }
            turn = begin + DOMAINS_PER_ROUND;
        }
    }
}

/// Whether a domain has a key that is waited for and due: each minute in its first hour, then each tenth, and after a day
/// once an hour, for sixty days.
fn is_due(domain: &Domain, now_ms: u64) -> bool {
    const MINUTE: u64 = 60_000;
    domain.keys.iter().filter(|key| key.state == KeyState::Pending).any(|key| {
        let minutes = now_ms.saturating_sub(key.since_ms) / MINUTE;
        match minutes {
            0..60 => true,
            60..1440 => minutes.is_multiple_of(10),
            1440..86_400 => minutes.is_multiple_of(60),
            _ => false,
        }
    })
}

/// Runs what blocks beside the loop.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, IdentityError> + Send + 'static,
) -> Result<T, IdentityError> {
    match tokio::task::spawn_blocking(act).await {
        Ok(result) => result,
        Err(error) => Err(IdentityError::Wrong(error.to_string())),
    }
}
