//! What a client of SCRAM is told of a name, from the snapshot of identities: the same kind of answer whether somebody has
//! the name or not.
//!
//! Pure but for its counter. A name that nobody has, or whose secret was made before keys of SCRAM were kept, gets a salt
//! that is always the same, made with a key that nobody knows, and keys that no proof fits.

use crate::clock::UnixTime;
use crate::policy::identity::{Directory, SECRETS_MAX};
use crate::smtp::scram::{ITERATIONS, SALT_OCTETS, ScramKey, ScramKeys, ScramOffer};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use std::fmt;

/// Octets of a server's nonce before base64.
const NONCE_OCTETS: usize = 18;

/// One shard's source of answers.
pub struct ScramSource {
    /// Makes nonces.
    key: hmac::Key,
    /// Makes what a name gets that nobody has.
    names: hmac::Key,
    shard: u8,
    /// Nonces given out.
    count: u64,
}

impl fmt::Debug for ScramSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramSource").field("count", &self.count).finish_non_exhaustive()
    }
}

impl ScramSource {
    /// `secret`: random octets of the process that nobody else knows, the same for all shards. `lasting`: such that stay the same
    /// over restarts, or else who asks before and after one could tell real salts from those made up.
    pub fn new(secret: &[u8; 32], lasting: &[u8; 32], shard: u8) -> ScramSource {
        // Keys of their own: what is made with them is shown to clients, and must not say anything of remembered logins.
        let own = |secret| {
            let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), b"answers to clients of SCRAM");
            hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())
        };
        ScramSource { key: own(secret), names: own(lasting), shard, count: 0 }
    }

    /// What a client that gives this name is told.
    pub fn offer(&mut self, name: &str, directory: &Directory, now: UnixTime) -> ScramOffer {
        let nonce = made(&self.key, &[b"nonce", &[self.shard], &self.count.to_be_bytes()]);
        self.count += 1;
        let nobody = self.nobody(name);
        let secrets = directory.credential(name).map_or(&[][..], |credential| &credential.secrets);
        let mut keys: Vec<ScramKeys> = Vec::with_capacity(SECRETS_MAX);
        keys.extend(secrets.iter().filter(|secret| secret.is_taken(now)).filter_map(|secret| secret.scram.clone()));
        // One salt can be told: secrets of a rotation share theirs, and one that does not is not taken.
        let (salt, iterations) = keys.first().map_or((nobody.salt, ITERATIONS), |first| (first.salt, first.iterations));
        keys.retain(|one| one.salt == salt && one.iterations == iterations);
        keys.resize(SECRETS_MAX, nobody);
        let nonce = STANDARD_NO_PAD.encode(&nonce[..NONCE_OCTETS]).into();
        ScramOffer { nonce, salt, iterations, keys }
    }

    /// Keys that no proof fits, always the same for a name.
    fn nobody(&self, name: &str) -> ScramKeys {
        let [whole, stored, server] =
            [&b"salt"[..], b"stored", b"server"].map(|use_| made(&self.names, &[use_, b"\0", name.as_bytes()]));
        let mut salt = [0; SALT_OCTETS];
        salt.copy_from_slice(&whole[..SALT_OCTETS]);
        ScramKeys { salt, iterations: ITERATIONS, stored, server }
    }
}

fn made(key: &hmac::Key, parts: &[&[u8]]) -> ScramKey {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    let mut out = ScramKey::default();
    out.copy_from_slice(context.sign().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::identity::{Credential, SecretHash};

    fn secret(password: &str, salt: u8, until_ms: Option<u64>) -> SecretHash {
        let scram = Some(ScramKeys::derive(password.as_bytes(), [salt; SALT_OCTETS], ITERATIONS));
        SecretHash { phc: "".into(), until_ms, scram }
    }

    fn directory(secrets: Vec<SecretHash>) -> Directory {
        Directory::new(Vec::new(), vec![Credential { secrets, ..Credential::of("app", "a") }])
    }

    #[test]
    fn names_that_nobody_has_look_like_others() {
        let mut source = ScramSource::new(&[7; 32], &[8; 32], 1);
        let known = directory(vec![secret("x", 1, None)]);
        let now = UnixTime::from_millis(1);
        let offers = ["app", "nobody", "nobody", "other"].map(|name| source.offer(name, &known, now));
        let [app, nobody, again, other] = &offers;
        assert_eq!(app.salt, [1; SALT_OCTETS]);
        assert_eq!(nobody.salt, again.salt);
        assert!(nobody.salt != other.salt && nobody.nonce != again.nonce);
        assert!(offers.iter().all(|offer| offer.keys.len() == SECRETS_MAX && offer.iterations == ITERATIONS));
        let of = |secret, lasting, shard| {
            ScramSource::new(&[secret; 32], &[lasting; 32], shard).offer("nobody", &known, now)
        };
        assert_eq!(of(7, 8, 2).salt, nobody.salt, "in each shard");
        assert_eq!(of(9, 8, 1).salt, nobody.salt, "after a restart");
        assert_ne!(of(7, 9, 1).salt, nobody.salt);
        assert!(of(7, 8, 2).nonce != app.nonce && of(9, 8, 1).nonce != app.nonce);
        let old = directory(vec![SecretHash { phc: "".into(), until_ms: None, scram: None }]);
        assert_ne!(source.offer("app", &old, now).salt, [1; SALT_OCTETS]);
    }

    #[test]
    fn secrets_count_until_their_time_and_only_with_the_salt_that_is_told() {
        let mut source = ScramSource::new(&[7; 32], &[8; 32], 1);
        let mut real = |directory: &Directory, now| {
            let offer = source.offer("app", directory, UnixTime::from_millis(now));
            offer.keys.iter().filter(|keys| keys.salt == [1; SALT_OCTETS]).count()
        };
        let rotated = directory(vec![secret("new", 1, None), secret("old", 1, Some(5))]);
        assert_eq!([real(&rotated, 4), real(&rotated, 5)], [2, 1]);
        let mixed = directory(vec![secret("new", 1, None), secret("old", 2, None)]);
        assert_eq!(real(&mixed, 1), 1);
    }
}
