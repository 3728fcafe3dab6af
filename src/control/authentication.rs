//! Logins that a shard does not recognise: checked against their password hashes beside the loop, one at a time, so that
//! guessing costs the machine at most one core; failures are delayed, counted and told (src/policy/lockout.rs).
//!
//! What is asked is answered, with a verdict or with 454; a session that is gone by then is told in vain. No password is
//! logged, and the answer to a failure is the same whatever its reason.

use super::identities::{SharedDirectory, verify};
use super::log::EventLog;
use crate::event::{Event, Severity};
use crate::io::clock;
use crate::io::mailbox::Sender;
use crate::limits::LOGINS_WAITING_MAX;
use crate::policy::identity::Refusal;
use crate::policy::lockout::{Lockout, network_of};
use crate::reply::Reply;
use crate::shard::message::{LoginQuestion, LoginVerdict, ToShard};
use crate::smtp::replies::{AUTH_INVALID, AUTH_UNAVAILABLE};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long to wait before a full mailbox is tried again.
const MAILBOX_PAUSE: Duration = Duration::from_millis(20);

/// Checks logins.
#[derive(Clone)]
pub struct Authenticator {
    parts: Arc<Parts>,
}

struct Parts {
    directory: SharedDirectory,
    lockout: Mutex<Lockout>,
    shards: Vec<Sender<ToShard>>,
    log: EventLog,
    hashing: Semaphore,
    waiting: AtomicUsize,
}

impl Authenticator {
    /// For these shards.
    pub fn new(directory: SharedDirectory, shards: Vec<Sender<ToShard>>, log: EventLog) -> Authenticator {
        let parts = Parts {
            directory,
            lockout: Mutex::default(),
            shards,
            log,
            hashing: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
        };
        Authenticator { parts: Arc::new(parts) }
    }

    /// Checks one login and answers the shard. To be called within the control thread's runtime.
    pub fn ask(&self, shard: u8, question: LoginQuestion) {
        let parts = Arc::clone(&self.parts);
        let waiting = parts.waiting.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let LoginQuestion { conn, client, login } = question;
            let verdict = if waiting < LOGINS_WAITING_MAX {
                parts.judge(&LoginQuestion { conn, client, login: login.clone() }).await
            } else {
                Err(AUTH_UNAVAILABLE)
            };
            let mut answer = ToShard::LoginJudged(Box::new(LoginVerdict { conn, login, verdict }));
            while let Some(mailbox) = parts.shards.get(usize::from(shard)) {
                match mailbox.push(answer) {
                    Ok(()) => break,
                    Err(back) => answer = back,
                }
                tokio::time::sleep(MAILBOX_PAUSE).await;
            }
            parts.waiting.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

impl Parts {
    async fn judge(self: &Arc<Parts>, question: &LoginQuestion) -> Result<u64, Reply> {
        let name = &question.login.name;
        if let Some(rest) = self.lockout().locked_for(name, question.client, clock::now().instant) {
            return Err(Reply::new(
                454,
                (4, 7, 0),
                format!("Too many failed logins; try again in {} minutes", rest.as_secs().div_ceil(60)),
            ));
        }
        let Ok(_turn) = self.hashing.acquire().await else { return Err(AUTH_UNAVAILABLE) };
        let (parts, login, client) = (Arc::clone(self), question.login.clone(), question.client);
        let checked = tokio::task::spawn_blocking(move || {
            let now = clock::now().unix;
            let directory = parts.directory.load();
            let credential = directory.credential(&login.name);
            let secrets = credential.map_or(&[][..], |credential| &credential.secrets);
            match (verify(secrets, login.secret.expose(), now), credential) {
                (true, Some(credential)) => directory.check(credential, client, now).map(|()| credential.revision),
                _ => Err(Refusal::Invalid),
            }
        });
        let Ok(checked) = checked.await else { return Err(AUTH_UNAVAILABLE) };
        drop(_turn);
        match checked {
            Ok(revision) => {
                self.lockout().succeeded(name);
                Ok(revision)
            }
            Err(refusal) => {
                let failed = self.lockout().failed(name, client, clock::now().instant);
                self.tell(question, refusal, failed.account_locked, failed.network_locked);
                tokio::time::sleep(failed.delay).await;
                Err(AUTH_INVALID)
            }
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
