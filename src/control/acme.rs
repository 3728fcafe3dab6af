//! A certificate that is ordered by ACME and renewed at two thirds of its life. What goes wrong is told with the server's own words
//! and tried again, the less often the longer it lasts: authorities bound how often one may fail.
//!
//! Kept in one directory for the relay's user alone: `account.json`, `certificate.pem` with chain and key in one file, so that a
//! crash cannot tear them apart, and after a failure `failures.json`, so that a program that is started over and over does not ask
//! each time. The order itself is in acme_client.rs; listeners take the certificate as they take any other one.

use super::acme_challenges::Challenges;
use super::acme_client::{AcmeClient, Issued, OrderError};
use super::certificates::Certificates;
use super::log::EventLog;
use crate::clock::UnixTime;
use crate::event::Severity;
use crate::io::certificate::{CertificateFacts, Pair};
use crate::io::clock;
use crate::io::own_certificate::write_whole;
use crate::io::secret_file;
use crate::io::tls::ClientTls;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instant_acme::{ChallengeType, ExternalAccountKey};
use serde::{Deserialize, Serialize};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// How long a whole order may take.
const ORDER_TIME_MAX: Duration = Duration::from_secs(600);
/// The wait after the first failure; doubles with each further one. Four failures in the first hour are within the bounds of
/// public authorities.
const RETRY_FIRST: Duration = Duration::from_secs(300);
/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(12 * 3600);
/// The least wait where the server says that it was asked too often.
const LIMITED: Duration = Duration::from_secs(3600);
/// The longest wait that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// The least time between two certificates, whatever their life: one that is due as soon as it is made must not make a loop.
const BETWEEN: Duration = Duration::from_secs(3600);
/// How often the clock is looked at while nothing is due.
const LOOK: Duration = Duration::from_secs(3600);

/// What is ordered, where, and where it is kept.
#[derive(Clone, Debug)]
pub struct AcmePlan {
    /// The server's directory.
    pub directory: String,
    /// As whom to reach the operator: `mailto:` addresses.
    pub contact: Vec<String>,
    /// The name of an account with the authority, and the file of its key: what a new account here belongs to.
    pub external: Option<(String, PathBuf)>,
    /// The names of the certificate.
    pub domains: Vec<Box<str>>,
    /// The server's certificate is proven by these.
    pub tls: ClientTls,
    /// Where all of it is kept.
    pub files: PathBuf,
    /// Whether http-01 is answered.
    pub http: bool,
    /// Whether tls-alpn-01 is answered.
    pub alpn: bool,
}

/// What proves that a new account belongs to this one of the authority's.
///
/// # Errors
/// In words, when the file cannot be used.
pub fn external_account(name: String, key_file: &Path) -> Result<ExternalAccountKey, String> {
    let text = secret_file::read(key_file)?;
    let key = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map(Zeroizing::new);
    let wrong =
        |_| format!("{} holds no base64url: write the key into it as the authority gave it", key_file.display());
    Ok(ExternalAccountKey::new(name, &key.map_err(wrong)?))
}

/// Orders that failed, for the next run of the program.
#[derive(Copy, Clone, Debug, Serialize, Deserialize)]
struct Failures {
    /// In a row.
    failures: u32,
    /// Before when the next one does not begin.
    until_unix_ms: u64,
}

/// The file with the certificate and its key in such a directory.
pub fn certificate_file(directory: &Path) -> PathBuf {
    directory.join("certificate.pem")
}

/// Orders and renews.
#[derive(Debug)]
pub struct Acme {
    plan: AcmePlan,
    certificates: Arc<Certificates>,
    challenges: Arc<Challenges>,
    log: EventLog,
    wake: Notify,
    /// Orders begun.
    pub orders: AtomicU64,
    /// Of these, those that failed.
    pub failures: AtomicU64,
}

impl Acme {
    /// Nothing is asked before [`run`](Acme::run).
    pub fn new(
        plan: AcmePlan,
        certificates: Arc<Certificates>,
        challenges: Arc<Challenges>,
        log: EventLog,
    ) -> Arc<Acme> {
        let (orders, failures) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Acme { plan, certificates, challenges, log, wake: Notify::new(), orders, failures })
    }

    /// Orders a certificate now, whatever the schedule says.
    pub fn renew(&self) {
        self.wake.notify_one();
    }

    /// Orders when it is due, for as long as the program runs.
    pub async fn run(self: Arc<Acme>) {
        // How often in a row it failed, and before when it is not tried again.
        let (mut failures, mut earliest) = self.recall().await;
        loop {
            let facts = self.certificates.facts_of(&certificate_file(&self.plan.files));
            let left = due(facts.as_deref(), &self.plan.domains).since(clock::now().unix);
            let wait = left.max(earliest.saturating_duration_since(Instant::now()));
            if !wait.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(wait.min(LOOK)) => continue,
                    () = self.wake.notified() => {}
                }
            }
            match self.obtain().await {
                Ok(text) => {
                    failures = 0;
                    earliest = Instant::now() + BETWEEN;
                    self.remember(None).await;
                    self.log.notice(Severity::Info, &text);
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    let wait = wait_after(failures, &error);
                    earliest = Instant::now() + wait;
                    let text = format!(
                        "ACME: no certificate for {} from {}: {error}; tried again in {} minutes, or at once by `ringpost \
                         certificate renew`",
                        self.plan.domains.join(" "),
                        self.plan.directory,
                        wait.as_secs().div_ceil(60)
                    );
                    self.log.notice(Severity::Error, &text);
                    let until = clock::now().unix.after(wait).as_millis();
                    self.remember(Some(Failures { failures, until_unix_ms: until })).await;
                }
            }
        }
    }

    /// What an earlier run of the program has left.
    async fn recall(&self) -> (u32, Instant) {
        let file = self.failures_file();
        let kept = blocking(move || Ok(std::fs::read(file).ok())).await.ok().flatten();
        let Some(kept) = kept.and_then(|text| serde_json::from_slice::<Failures>(&text).ok()) else {
            return (0, Instant::now());
        };
        let wait = UnixTime::from_millis(kept.until_unix_ms).since(clock::now().unix).min(RETRY_AFTER_MAX);
        let text = format!(
            "ACME: the last order failed, {} times in a row; the next begins in {} minutes, or at once by `ringpost certificate \
             renew`",
            kept.failures,
            wait.as_secs().div_ceil(60)
        );
        self.log.notice(Severity::Warning, &text);
        (kept.failures, Instant::now() + wait)
    }

    /// Keeps it for the next run. Where that fails, the next run asks a little earlier than it should.
    async fn remember(&self, failures: Option<Failures>) {
        let file = self.failures_file();
        let kept = blocking(move || {
            let written = match failures.map(|failures| serde_json::to_vec(&failures)) {
                Some(text) => keep(&file, &text.unwrap_or_default()),
                None => std::fs::remove_file(&file),
            };
            match written {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unkept(&file, &error)),
                _ => Ok(()),
            }
        });
        if let Err(error) = kept.await {
            self.log.notice(Severity::Warning, &format!("ACME: {error}"));
        }
    }

    fn failures_file(&self) -> PathBuf {
        self.plan.files.join("failures.json")
    }

    /// One order; the certificate is in use when it succeeds. Gives what to tell of it.
    async fn obtain(&self) -> Result<String, OrderError> {
        self.orders.fetch_add(1, Ordering::Relaxed);
        let plan = &self.plan;
        let names = plan.domains.join(" ");
        self.log.notice(Severity::Info, &format!("ACME: ordering a certificate for {names} from {}", plan.directory));
        let (account_file, directory) = (plan.files.join("account.json"), plan.directory.clone());
        let file = account_file.clone();
        let account = blocking(move || read_account(&file, &directory)).await?;
        let external = match (&plan.external, &account) {
            (Some((name, file)), None) => {
                let (name, file) = (name.clone(), file.clone());
                Some(blocking(move || external_account(name, &file).map_err(OrderError::new)).await?)
            }
            _ => None,
        };
        let file = account_file.clone();
        let keep = async move |text: Zeroizing<String>| {
            blocking(move || keep(&file, text.as_bytes()).map_err(|error| unkept(&file, &error))).await
        };
        let kinds: Vec<ChallengeType> = [(plan.http, ChallengeType::Http01), (plan.alpn, ChallengeType::TlsAlpn01)]
            .into_iter()
            .filter_map(|(answered, kind)| answered.then_some(kind))
            .collect();
        let client = AcmeClient {
            directory: &plan.directory,
            tls: &plan.tls,
            contact: &plan.contact,
            domains: &plan.domains,
            kinds: &kinds,
            challenges: &self.challenges,
        };
        let order = client.order(account.as_ref().map(|text| text.as_str()), external.as_ref(), keep);
        let issued = match tokio::time::timeout(ORDER_TIME_MAX, order).await {
            Ok(Ok(issued)) => issued,
            Ok(Err(error)) => {
                if error.account_is_gone {
                    blocking(move || {
                        std::fs::remove_file(&account_file).map_err(|error| unkept(&account_file, &error))
                    })
                    .await?;
                }
                return Err(error);
            }
            Err(_) => {
                self.challenges.clear();
                return Err(OrderError::new(format!(
                    "no certificate within {} minutes",
                    ORDER_TIME_MAX.as_secs() / 60
                )));
            }
        };
        let (file, domains) = (certificate_file(&plan.files), plan.domains.clone());
        let facts = blocking(move || keep_certificate(&file, &domains, &issued)).await?;
        self.certificates.reload_now().await;
        let next = due(Some(&facts), &plan.domains);
        let end = facts.not_after;
        Ok(format!("ACME: the certificate for {names} ends on {end}; the next one is ordered on {next}"))
    }
}

/// When a certificate is ordered: at two thirds of the life of the present one, and at once where that lacks a name.
fn due(present: Option<&CertificateFacts>, domains: &[Box<str>]) -> UnixTime {
    let Some(facts) = present.filter(|facts| domains.iter().all(|name| facts.names.contains(name))) else {
        return UnixTime::from_millis(0);
    };
    facts.not_before.after(facts.not_after.since(facts.not_before) * 2 / 3)
}

/// How long to wait after so many failures in a row.
fn wait_after(failures: u32, error: &OrderError) -> Duration {
    let doubled = RETRY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(RETRY_MAX);
    let least = if error.limited { LIMITED } else { Duration::ZERO };
    doubled.max(least).max(error.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX))
}

/// The account that was made at this server, if there is one.
fn read_account(file: &Path, directory: &str) -> Result<Option<Zeroizing<String>>, OrderError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unkept(file, &error)),
    };
    let of_server = serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|json| json["directory"] == directory);
    Ok(of_server.then_some(text))
}

fn keep_certificate(file: &Path, domains: &[Box<str>], issued: &Issued) -> Result<Arc<CertificateFacts>, OrderError> {
    let octets = Zeroizing::new(format!("{}{}", &*issued.key, issued.certificate));
    let pair = Pair::from_pem(octets.as_bytes(), file)
        .map_err(|error| OrderError::new(format!("what the server has issued cannot be used: {error}")))?;
    if let Some(missing) = domains.iter().find(|name| !pair.facts.names.contains(name)) {
        return Err(OrderError::new(format!("the certificate that the server has issued lacks {missing}")));
    }
    keep(file, octets.as_bytes()).map_err(|error| unkept(file, &error))?;
    Ok(pair.facts)
}

/// For the relay's user alone, whole or not at all.
fn keep(file: &Path, octets: &[u8]) -> io::Result<()> {
    if let Some(directory) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    write_whole(file, octets)
}

fn unkept(file: &Path, error: &io::Error) -> OrderError {
    OrderError::new(format!("{}: {error}; check the spool's disk and whose it is", file.display()))
}

/// Runs what blocks beside the loop.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, OrderError> + Send + 'static,
) -> Result<T, OrderError> {
    match tokio::task::spawn_blocking(act).await {
        Ok(result) => result,
        Err(error) => Err(OrderError::new(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life_and_at_once_for_a_new_name() {
        let start = UnixTime::from_millis(1_790_000_000_000);
        let facts = CertificateFacts {
            names: vec!["a.test".into(), "b.test".into()],
            subject: String::new(),
            issuer: String::new(),
            not_before: start,
            not_after: start.after(DAY * 90),
            fingerprint: [0; 32],
            public_key: [0; 32],
        };
        let names = |names: &[&str]| names.iter().map(|&name| name.into()).collect::<Vec<Box<str>>>();
        assert_eq!(due(Some(&facts), &names(&["b.test", "a.test"])), start.after(DAY * 60));
        assert_eq!(due(Some(&facts), &names(&["a.test"])), start.after(DAY * 60));
        assert_eq!(due(Some(&facts), &names(&["a.test", "c.test"])), UnixTime::from_millis(0));
        assert_eq!(due(None, &names(&["a.test"])), UnixTime::from_millis(0));
    }

    #[test]
    fn failures_are_tried_again_ever_less_often_and_as_the_server_wishes() {
        let error = OrderError::new("no");
        let minutes = |failures, error: &OrderError| wait_after(failures, error).as_secs() / 60;
        let waits: Vec<u64> = (1..=10).map(|failures| minutes(failures, &error)).collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 640, 720, 720]);
        assert_eq!(minutes(u32::MAX, &error), 720);
        let limited = OrderError { limited: true, ..error.clone() };
        assert_eq!((minutes(1, &limited), minutes(6, &limited)), (60, 160));
        let told = |wait| OrderError { retry_after: Some(wait), ..limited.clone() };
        assert_eq!(minutes(1, &told(DAY)), 1440);
        assert_eq!(minutes(1, &told(DAY * 1000)), 7 * 1440);
    }
}
