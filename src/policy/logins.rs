//! Logins that were found good lately: a client that comes back is recognised in microseconds, without the password hash
//! that takes a thousand times as long.
//!
//! Nothing can be read from it: a password, a token or a key of SCRAM is kept as HMAC-SHA-256 under a key that is made at the start of the process.
//! It is bounded, and forgets at a credential's next revision or after its time. It decides nothing else: whether the
//! credential may be used now is asked of the directory each time.

use crate::clock::{Instant, Now, UnixTime};
use crate::limits::{LOGIN_REMEMBERED, LOGINS_REMEMBERED_MAX};
use crate::policy::identity::{Credential, Directory};
use crate::smtp::sasl::Login;
use aws_lc_rs::hmac;
use foldhash::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A login that was found good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its credential's login.
    pub login: Box<str>,
    /// The revision of that at which it was found good.
    pub revision: u64,
    /// What it was found good by ends then; none: not by itself.
    pub until: Option<UnixTime>,
}

/// What one shard, or the control thread, remembers.
pub struct Logins {
    key: hmac::Key,
    /// By the HMAC of name and secret, so that an application may use its old and its new password side by side. Whoever
    /// does not know the key cannot come near a tag, so looking one up tells nothing by its time.
    known: HashMap<Tag, Known>,
}

type Tag = [u8; 32];

struct Known {
    granted: Granted,
    since: UnixTime,
    until: Instant,
}

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logins").field("known", &self.known.len()).finish_non_exhaustive()
    }
}

impl Logins {
    /// Nobody yet. The key is random octets that nobody else knows.
    pub fn new(key: &[u8; 32]) -> Logins {
        Logins { key: hmac::Key::new(hmac::HMAC_SHA256, key), known: HashMap::default() }
    }

    /// The credential of a login that is remembered and may be used by this client now.
    pub fn recognise(&self, login: &Login, directory: &Directory, client: IpAddr, now: Now) -> Option<Arc<Credential>> {
        let known = self.known.get(&self.tag(login)?)?;
        let credential = directory.credential(&known.granted.login)?;
        // Where a secret's time has ended since, it may have been that one.
        let ended = |until: u64| (known.since.as_millis()..=now.unix.as_millis()).contains(&until);
        let fresh = known.until > now.instant
            && known.granted.revision == credential.revision
            && !credential.secrets.iter().filter_map(|secret| secret.until_ms).any(ended);
        (fresh && directory.check(credential, client, now.unix).is_ok()).then(|| Arc::clone(credential))
    }

    /// The same, with what it was found good for, to tell others that shall remember it.
    pub fn recall(&self, login: &Login, directory: &Directory, client: IpAddr, now: Now) -> Option<Granted> {
        self.recognise(login, directory, client, now)?;
        self.known.get(&self.tag(login)?).map(|known| known.granted.clone())
    }

    /// Remembers a login that was found good.
    pub fn remember(&mut self, login: &Login, granted: &Granted, now: Now) {
        let Some(tag) = self.tag(login) else { return };
        if self.known.len() >= LOGINS_REMEMBERED_MAX && !self.known.contains_key(&tag) {
            self.known.retain(|_, known| known.until > now.instant);
            if self.known.len() >= LOGINS_REMEMBERED_MAX {
                return;
            }
        }
        let rest = granted.until.map_or(Duration::MAX, |until| {
            Duration::from_millis(until.as_millis().saturating_sub(now.unix.as_millis()))
        });
        let until = now.instant.after(LOGIN_REMEMBERED.min(rest));
        self.known.insert(tag, Known { granted: granted.clone(), since: now.unix, until });
    }

    fn tag(&self, login: &Login) -> Option<Tag> {
        let mut context = hmac::Context::with_key(&self.key);
        // A name has no NUL, so that neither can take octets of the other.
        for part in [&[login.proof.kind()], login.name.as_bytes(), b"\0", login.proof.secret()?.expose()] {
            context.update(part);
        }
        let mut tag = Tag::default();
        tag.copy_from_slice(context.sign().as_ref());
        Some(tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::identity::{SecretHash, Tenant};
    use crate::smtp::sasl::{Mechanism, Proof, Secret};

    fn login(password: &str) -> Login {
        let secret = Secret::new(password.as_bytes().to_vec());
        Login { name: "app".into(), proof: Proof::Password(secret), mechanism: Mechanism::Plain }
    }

    fn granted(revision: u64) -> Granted {
        Granted { login: "app".into(), revision, until: None }
    }

    fn directory(revision: u64, enabled: bool) -> Directory {
        let credential = Credential { enabled, revision, ..Credential::of("app", "a") };
        Directory::new(vec![Tenant::new("a", Default::default(), 0)], vec![credential])
    }

    #[test]
    fn a_good_login_is_recognised_until_something_changes() {
        let mut logins = Logins::new(&[7; 32]);
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let at = |seconds: u64| Now {
            instant: Instant::from_nanos(seconds * 1_000_000_000),
            unix: UnixTime::from_millis(seconds * 1000),
        };
        let knows = |logins: &Logins, password: &str, directory: &Directory, seconds| {
            logins.recognise(&login(password), directory, client, at(seconds)).is_some()
        };
        assert!(!knows(&logins, "secret", &directory(1, true), 1));
        logins.remember(&login("secret"), &granted(1), at(1));
        assert!(knows(&logins, "secret", &directory(1, true), 2));
        assert!(!knows(&logins, "Secret", &directory(1, true), 2));
        assert!(!knows(&logins, "secret", &directory(2, true), 2));
        assert!(!knows(&logins, "secret", &directory(1, false), 2));
        assert!(!knows(&logins, "secret", &Directory::default(), 2));
        assert!(!knows(&logins, "secret", &directory(1, true), 2 + LOGIN_REMEMBERED.as_secs()));
        logins.remember(&login("newer"), &granted(1), at(1));
        assert!(knows(&logins, "newer", &directory(1, true), 2) && knows(&logins, "secret", &directory(1, true), 2));
        // The old secret of a rotation ends at its time, remembered or not.
        let mut rotated = Credential::clone(directory(1, true).credential("app").unwrap());
        rotated.secrets = vec![SecretHash { phc: "".into(), until_ms: Some(5_000), scram: None }];
        let tenant = Tenant::new("a", Default::default(), 0);
        let rotated = Directory::new(vec![tenant], vec![rotated]);
        assert!(knows(&logins, "secret", &rotated, 4) && !knows(&logins, "secret", &rotated, 5));
        logins.remember(&login("secret"), &granted(1), at(6));
        assert!(knows(&logins, "secret", &rotated, 7));
        assert!(!format!("{logins:?}").contains("secret"));
    }

    #[test]
    fn a_token_is_remembered_until_its_end_and_is_no_password() {
        let mut logins = Logins::new(&[7; 32]);
        let at = |seconds: u64| Now {
            instant: Instant::from_nanos(seconds * 1_000_000_000),
            unix: UnixTime::from_millis(seconds * 1000),
        };
        let token = |proof: fn(Secret) -> Proof| Login {
            name: "".into(),
            proof: proof(Secret::new(b"t".to_vec())),
            mechanism: Mechanism::OauthBearer,
        };
        let knows = |logins: &Logins, login: &Login, seconds| {
            let client = "192.0.2.1".parse().unwrap();
            logins.recognise(login, &directory(1, true), client, at(seconds)).map(|one| one.login.clone())
        };
        logins.remember(&token(Proof::Token), &Granted { until: Some(at(5).unix), ..granted(1) }, at(1));
        assert_eq!(knows(&logins, &token(Proof::Token), 4).as_deref(), Some("app"));
        assert_eq!(knows(&logins, &token(Proof::Token), 5), None);
        let recalled = logins.recall(&token(Proof::Token), &directory(1, true), "192.0.2.1".parse().unwrap(), at(4));
        assert_eq!(recalled.and_then(|granted| granted.until), Some(at(5).unix), "its end is told with it");
        assert_eq!(knows(&logins, &token(Proof::Password), 4), None);
        assert_eq!(knows(&logins, &token(|key| Proof::Scram(Some(key))), 4), None);
    }

    #[test]
    fn it_does_not_grow_beyond_its_bound() {
        let mut logins = Logins::new(&[7; 32]);
        for number in 0..LOGINS_REMEMBERED_MAX + 10 {
            let one = Login { name: number.to_string().into(), ..login("x") };
            logins.remember(&one, &granted(1), Now::default());
        }
        assert_eq!(logins.known.len(), LOGINS_REMEMBERED_MAX);
        let late = Now { instant: Instant::ZERO.after(LOGIN_REMEMBERED), ..Now::default() };
        logins.remember(&Login { name: "late".into(), ..login("x") }, &granted(1), late);
        assert_eq!(logins.known.len(), 1);
    }
}
