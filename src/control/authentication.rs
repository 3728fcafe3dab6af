//! Logins that a shard does not recognise: checked against their password hashes beside the loop, one at a time, so that
//! guessing costs the machine at most one core; failures are delayed, counted and told (src/policy/lockout.rs).
//!
//! What is asked is answered, with a verdict or with 454; a session that is gone by then is told in vain. No password is
//! logged, and the answer to a failure is the same whatever its reason.

use super::identities::{SharedDirectory, verify};
use super::log::EventLog;
use super::oauth::{TokenChecker, TokenError};
use super::post::post;
use crate::clock::Instant;
use crate::event::{Event, Severity};
use crate::io::clock;
use crate::io::mailbox::Sender;
use crate::limits::{LOGIN_DELAY_MAX, LOGINS_WAITING_MAX};
use crate::policy::identity::{Credential, Refusal, SecretHash};
use crate::policy::lockout::{Lockout, network_of};
use crate::policy::logins::{Granted, Logins};
use crate::reply::Reply;
use crate::shard::message::{LoginQuestion, LoginVerdict, ToShard};
use crate::smtp::replies::{AUTH_INVALID, AUTH_UNAVAILABLE};
use crate::smtp::sasl::{Proof, Secret};
use aws_lc_rs::constant_time;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How often an operator is told that tokens cannot be checked.
const TROUBLE_PAUSE: Duration = Duration::from_secs(60);

/// Checks logins.
#[derive(Clone)]
pub struct Authenticator {
    parts: Arc<Parts>,
}

struct Parts {
    directory: SharedDirectory,
    lockout: Mutex<Lockout>,
    /// What is remembered for all shards: an application opens its sessions together, and one hash is enough for them.
    logins: Mutex<Logins>,
    shards: Vec<Sender<ToShard>>,
    log: EventLog,
    /// None: nobody logs in with tokens.
    tokens: Option<TokenChecker>,
    /// When an operator was last told that tokens cannot be checked.
    trouble: Mutex<Option<Instant>>,
    hashing: Semaphore,
    /// Logins that wait for their hash.
    waiting: AtomicUsize,
    /// Answers that are held back.
    delayed: AtomicUsize,
}

impl Authenticator {
    /// For these shards.
    pub fn new(
        directory: SharedDirectory,
        login_key: &[u8; 32],
        shards: Vec<Sender<ToShard>>,
        log: EventLog,
        tokens: Option<TokenChecker>,
    ) -> Authenticator {
        let parts = Parts {
            directory,
            lockout: Mutex::default(),
            logins: Mutex::new(Logins::new(login_key)),
            shards,
            log,
            tokens,
            trouble: Mutex::default(),
            hashing: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            delayed: AtomicUsize::new(0),
        };
        Authenticator { parts: Arc::new(parts) }
    }

    /// Checks one login and answers the shard. To be called within the control thread's runtime.
    pub fn ask(&self, shard: u8, question: LoginQuestion) {
        let parts = Arc::clone(&self.parts);
        tokio::spawn(async move {
            let verdict = parts.judge(&question).await;
            let LoginQuestion { conn, login, .. } = question;
            let answer = ToShard::LoginJudged(Box::new(LoginVerdict { conn, login, verdict }));
            post(&parts.shards, shard, answer).await;
        });
    }
}

/// Good for this credential as it is, for as long as it is.
fn granted(credential: &Credential) -> Granted {
    Granted { login: credential.login.clone(), revision: credential.revision, until: None }
}

/// One of [`LOGINS_WAITING_MAX`] places, given back when it is dropped.
struct Place<'a>(&'a AtomicUsize);

impl Place<'_> {
    fn take(count: &AtomicUsize) -> Option<Place<'_>> {
        let place = Place(count);
        (count.fetch_add(1, Ordering::Relaxed) < LOGINS_WAITING_MAX).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Parts {
    async fn judge(self: &Arc<Parts>, question: &LoginQuestion) -> Result<Granted, Reply> {
        let name = &question.login.name;
        // What another shard has seen is good here, too: whoever guesses in the same network locks out none of those who are
        // known already.
        if let Some(granted) = self.recall(question) {
            return Ok(granted);
        }
        let locked = self.lockout().locked_for(name, question.client, clock::now().instant);
        if let Some(rest) = locked {
            // Else whoever is locked could ask the faster.
            self.hold_back(LOGIN_DELAY_MAX).await;
            let minutes = rest.as_secs().div_ceil(60);
            return Err(Reply::new(454, (4, 7, 0), format!("Too many failed logins; try again in {minutes} minutes")));
        }
        let Some(checked) = self.check(question).await else { return Err(AUTH_UNAVAILABLE) };
        match checked {
            Ok(granted) => {
                self.lockout().succeeded(&granted.login, question.client, clock::now().instant);
                Ok(granted)
            }
            Err(refusal) => {
                let failed = self.lockout().failed(name, question.client, clock::now().instant);
                self.tell(question, refusal, failed.account_locked, failed.network_locked);
                self.hold_back(failed.delay).await;
                Err(AUTH_INVALID)
            }
        }
    }

    /// Checks proof and credential; None when that cannot be done now.
    async fn check(self: &Arc<Parts>, question: &LoginQuestion) -> Option<Result<Granted, Refusal>> {
        let checked = match &question.login.proof {
            Proof::Password(password) => self.check_password(question, password).await?,
            Proof::Scram(key) => self.check_scram(question, key.as_ref()),
            Proof::Token(token) => self.check_token(question, token).await?,
            Proof::Certificate => self.check_certificate(question),
        };
        if let Ok(granted) = &checked {
            self.logins().remember(&question.login, granted, clock::now());
        }
        Some(checked)
    }

    /// Checks a password when it is this login's turn; None when too many wait for theirs.
    async fn check_password(
        self: &Arc<Parts>,
        question: &LoginQuestion,
        password: &Secret,
    ) -> Option<Result<Granted, Refusal>> {
        let _place = Place::take(&self.waiting)?;
        let _turn = self.hashing.acquire().await.ok()?;
        if let Some(granted) = self.recall(question) {
            return Some(Ok(granted));
        }
        let (parts, name, client) = (Arc::clone(self), question.login.name.clone(), question.client);
        let password = password.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let now = clock::now().unix;
            let directory = parts.directory.load();
            let credential = directory.credential(&name);
            let secrets = credential.map_or(&[][..], |credential| &credential.secrets);
            match (verify(secrets, password.expose(), now), credential) {
                (true, Some(credential)) => directory.check(credential, client, now).map(|()| granted(credential)),
                _ => Err(Refusal::Invalid),
            }
        });
        checked.await.ok()
    }

    /// The session has checked the proof against a key; here that must be one of the credential still.
    fn check_scram(&self, question: &LoginQuestion, key: Option<&Secret>) -> Result<Granted, Refusal> {
        let now = clock::now().unix;
        let directory = self.directory.load();
        let (Some(key), Some(credential)) = (key, directory.credential(&question.login.name)) else {
            return Err(Refusal::Invalid);
        };
        let is_it = |secret: &SecretHash| {
            let stored = secret.scram.as_ref().map_or(&[][..], |keys| &keys.stored[..]);
            secret.is_taken(now) && constant_time::verify_slices_are_equal(stored, key.expose()).is_ok()
        };
        if !credential.secrets.iter().any(is_it) {
            return Err(Refusal::Invalid);
        }
        directory.check(credential, question.client, now).map(|()| granted(credential))
    }

    /// The handshake has proved the certificate; here it must belong to the credential that the client names, or to one alone
    /// when it names none.
    fn check_certificate(&self, question: &LoginQuestion) -> Result<Granted, Refusal> {
        let directory = self.directory.load();
        let certificate = question.certificate.as_ref().ok_or(Refusal::Invalid)?;
        let credential = directory.by_certificate(&question.login.name, &certificate.fingerprint, &certificate.names);
        let credential = credential.ok_or(Refusal::Invalid)?;
        directory.check(credential, question.client, clock::now().unix).map(|()| granted(credential))
    }

    /// Checks a token, and that it is of whom the client says; None when that cannot be done now.
    async fn check_token(&self, question: &LoginQuestion, token: &Secret) -> Option<Result<Granted, Refusal>> {
        let _place = Place::take(&self.waiting)?;
        if let Some(granted) = self.recall(question) {
            return Some(Ok(granted));
        }
        let token = std::str::from_utf8(token.expose()).ok()?;
        let now = clock::now().unix;
        let owner = match self.tokens.as_ref()?.check(token, now).await {
            Ok(owner) => owner,
            Err(TokenError::Wrong(why)) => {
                self.log.notice(Severity::Info, &super::log::sanitised(&format!("a login by token failed: {why}")));
                return Some(Err(Refusal::Invalid));
            }
            Err(TokenError::Unavailable(why)) => {
                self.tell_trouble(&why);
                return None;
            }
        };
        let name = &question.login.name;
        let directory = self.directory.load();
        let credential = directory.credential(&owner.login).filter(|_| name.is_empty() || *name == owner.login);
        Some(match credential {
            Some(credential) => directory
                .check(credential, question.client, now)
                .map(|()| Granted { until: Some(owner.until), ..granted(credential) }),
            None => Err(Refusal::Invalid),
        })
    }

    /// Tells the operator, once in a while, that tokens cannot be checked.
    fn tell_trouble(&self, why: &str) {
        let now = clock::now().instant;
        let mut last = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| now.since(last) >= TROUBLE_PAUSE) {
            *last = Some(now);
            let text = format!("logins by token cannot be checked: {why}; see [oauth] in the configuration");
            self.log.notice(Severity::Warning, &super::log::sanitised(&text));
            self.log.flush();
        }
    }

    fn recall(&self, question: &LoginQuestion) -> Option<Granted> {
        self.logins().recall(&question.login, &self.directory.load(), question.client, clock::now())
    }

    fn logins(&self) -> std::sync::MutexGuard<'_, Logins> {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits before a failure is told. With too many that wait it is told at once, since good logins must find room.
    async fn hold_back(&self, delay: Duration) {
        if let Some(_place) = Place::take(&self.delayed) {
            tokio::time::sleep(delay).await;
        }
    }

    fn lockout(&self) -> std::sync::MutexGuard<'_, Lockout> {
        self.lockout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, question: &LoginQuestion, refusal: Refusal, account_locked: bool, network_locked: bool) {
        let (client, login) = (question.client, &question.login.name);
        let event = Event::LoginFailed { client, login: login.clone(), reason: refusal.to_string().into() };
        self.log.event(clock::now().unix, None, &event);
        if account_locked {
            let text = format!("login {login} is locked for a while: too many failures, the last from {client}");
            self.log.notice(Severity::Warning, &super::log::sanitised(&text));
        }
        if network_locked {
            let network = network_of(client);
            let text =
                format!("logins from {network} are locked for a while: too many failures, the last from {client}");
            self.log.notice(Severity::Warning, &text);
        }
        self.log.flush();
    }
}
