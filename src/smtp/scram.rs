//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677): the client proves that it knows a password without sending
//! it, and is shown that the server knows it too; with -PLUS both prove it for this very TLS connection (RFC 9266).
//!
//! Pure. What is kept of a password is in [`ScramKeys`]; whose they are is said by the owner, and for names that nobody
//! has he says something that looks the same (src/policy/scram.rs). What a client gets wrong is malformed, or a proof
//! that fails; it learns no more.

use crate::limits::{LOGIN_OCTETS_MAX, SCRAM_NONCE_OCTETS_MAX};
use crate::smtp::sasl::{Channel, Exchange, Login, Mechanism, Proof, SaslStep, Secret, login_name};
use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU32;

/// Iterations of PBKDF2 for new keys. RFC 7677 4 asks for 4,096 at least and calls about 15,000 the rule: each login costs
/// the client some milliseconds. Secrets that are made here have 192 random bits and need none of it; those of a file of
/// credentials may be weak, and whoever steals the database has this to overcome. It is the same for all, since names that
/// nobody has must not differ.
pub const ITERATIONS: NonZeroU32 = NonZeroU32::new(16_384).unwrap();

/// Octets of a salt.
pub const SALT_OCTETS: usize = 16;

/// Octets of a key, of a proof and of a signature.
pub const KEY_OCTETS: usize = 32;

/// A key, a proof or a signature.
pub type ScramKey = [u8; KEY_OCTETS];

/// The name of the form in which keys are kept (RFC 5803 2).
const SCHEME: &str = "SCRAM-SHA-256";

/// What is kept of a password: enough to check a proof, and not enough to make one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScramKeys {
    /// Random.
    pub salt: [u8; SALT_OCTETS],
    /// Of PBKDF2.
    pub iterations: NonZeroU32,
    /// The hash of the client's key.
    pub stored: ScramKey,
    /// The key with which the server proves itself.
    pub server: ScramKey,
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScramKeys(…)")
    }
}

impl ScramKeys {
    /// Of this password (RFC 5802 3). It is taken octet by octet: SASLprep changes nothing in ASCII without controls, and
    /// clients send other text as it is. Takes some milliseconds.
    pub fn derive(password: &[u8], salt: [u8; SALT_OCTETS], iterations: NonZeroU32) -> ScramKeys {
        let mut salted = zeroize::Zeroizing::new([0; KEY_OCTETS]);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password, &mut salted[..]);
        let client = zeroize::Zeroizing::new(mac(&salted[..], &[b"Client Key"]));
        ScramKeys { salt, iterations, stored: hash(&client[..]), server: mac(&salted[..], &[b"Server Key"]) }
    }
}

impl From<ScramKeys> for String {
    /// RFC 5803 3.
    fn from(keys: ScramKeys) -> String {
        let [salt, stored, server] = [&keys.salt[..], &keys.stored, &keys.server].map(|octets| STANDARD.encode(octets));
        format!("{SCHEME}${}:{salt}${stored}:{server}", keys.iterations)
    }
}

impl TryFrom<String> for ScramKeys {
    type Error = &'static str;

    fn try_from(text: String) -> Result<ScramKeys, &'static str> {
        let read = || {
            let (cost, keys) = text.strip_prefix(SCHEME)?.strip_prefix('$')?.split_once('$')?;
            let ((iterations, salt), (stored, server)) = (cost.split_once(':')?, keys.split_once(':')?);
            let key = |text: &str| STANDARD.decode(text).ok()?.try_into().ok();
            Some(ScramKeys {
                salt: STANDARD.decode(salt).ok()?.try_into().ok()?,
                iterations: iterations.parse().ok()?,
                stored: key(stored)?,
                server: key(server)?,
            })
        };
        read().ok_or("keys of SCRAM-SHA-256 in the form of RFC 5803 are expected")
    }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> ScramKey {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    parts.iter().for_each(|part| context.update(part));
    let mut out = ScramKey::default();
    out.copy_from_slice(context.sign().as_ref());
    out
}

fn hash(octets: &[u8]) -> ScramKey {
    let mut out = ScramKey::default();
    out.copy_from_slice(digest::digest(&digest::SHA256, octets).as_ref());
    out
}

/// What the owner says to a name, whether somebody has it or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScramOffer {
    /// The server's part of the nonce: printable ASCII without a comma, never the same twice, and nobody can guess it.
    pub nonce: Box<str>,
    /// The salt of all of `keys`.
    pub salt: [u8; SALT_OCTETS],
    /// The iterations of all of `keys`.
    pub iterations: NonZeroU32,
    /// Always as many, so that time tells nothing: those of the secrets that are taken now, then some that fit nothing.
    pub keys: Vec<ScramKeys>,
}

/// The client's first message.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientFirst {
    /// Whose proof will come.
    pub name: Box<str>,
    mechanism: Mechanism,
    /// What `c=` must say: the GS2 header and what binds to the channel, in base64.
    binding: Box<str>,
    /// `client-first-message-bare` (RFC 5802 7).
    bare: Box<str>,
    nonce: Box<str>,
}

/// The client's proof is awaited.
#[derive(Debug)]
pub struct Challenged {
    first: ClientFirst,
    /// Both parts of the nonce.
    nonce: Box<str>,
    /// `server-first-message`.
    said: Box<str>,
    keys: Vec<ScramKeys>,
}

/// Reads the client's first message (RFC 5802 7). `plus_offered`: the client could have bound the channel here.
pub(super) fn first(message: &[u8], mechanism: Mechanism, channel: &Channel, plus_offered: bool) -> SaslStep {
    match read_first(message, mechanism, channel, plus_offered) {
        Ok(first) => SaslStep::Scram(Box::new(first)),
        Err(step) => step,
    }
}

fn read_first(
    message: &[u8],
    mechanism: Mechanism,
    channel: &Channel,
    plus_offered: bool,
) -> Result<ClientFirst, SaslStep> {
    let text = std::str::from_utf8(message).map_err(|_| SaslStep::Malformed)?;
    let mut parts = text.splitn(3, ',');
    let (Some(flag), Some(act_as), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(SaslStep::Malformed);
    };
    let header = format!("{flag},{act_as},");
    let mut binding = header.into_bytes();
    match (mechanism, flag) {
        (Mechanism::ScramPlus, "p=tls-exporter") => {
            binding.extend_from_slice(&channel.exporter.ok_or(SaslStep::Malformed)?);
        }
        (Mechanism::ScramPlus, _) => return Err(SaslStep::Malformed),
        (_, "n") => {}
        // RFC 5802 6: somebody has hidden from the client that -PLUS is offered.
        (_, "y") if plus_offered => return Err(SaslStep::Downgraded),
        (_, "y") => {}
        _ => return Err(SaslStep::Malformed),
    }
    // The attributes come in this order; what follows the nonce are extensions, which are passed over (RFC 5802 5.1).
    // `m=` in the first place is one that must be understood, and none is.
    let mut attributes = bare.split(',');
    let name = attributes.next().and_then(|one| one.strip_prefix("n=")).and_then(decode_name);
    let nonce = attributes.next().and_then(|one| one.strip_prefix("r=")).filter(|nonce| is_nonce(nonce));
    let (Some(name), Some(nonce)) = (name, nonce) else { return Err(SaslStep::Malformed) };
    match act_as.strip_prefix("a=").map(decode_name) {
        None if act_as.is_empty() => {}
        Some(Some(other)) if other == name => {}
        Some(Some(_)) => return Err(SaslStep::OtherIdentity),
        _ => return Err(SaslStep::Malformed),
    }
    Ok(ClientFirst {
        mechanism,
        binding: STANDARD.encode(binding).into(),
        bare: bare.into(),
        nonce: nonce.into(),
        name,
    })
}

fn is_nonce(text: &str) -> bool {
    (1..=SCRAM_NONCE_OCTETS_MAX).contains(&text.len()) && text.bytes().all(|octet| octet.is_ascii_graphic())
}

/// `=2C` and `=3D` stand for the comma and the equals sign, which a name has in no other way (RFC 5802 5.1).
pub(super) fn decode_name(text: &str) -> Option<Box<str>> {
    if text.len() > 3 * LOGIN_OCTETS_MAX {
        return None;
    }
    let mut parts = text.split('=');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (escaped, rest) = part.split_at_checked(2)?;
        name.push(match escaped {
            "2C" => ',',
            "3D" => '=',
            _ => return None,
        });
        name.push_str(rest);
    }
    login_name(name.as_bytes())
}

impl ClientFirst {
    /// Answers with what the owner says; the challenge is not yet in base64.
    pub fn challenge(self, offer: ScramOffer) -> (Exchange, String) {
        let nonce = format!("{}{}", self.nonce, offer.nonce);
        let said = format!("r={nonce},s={},i={}", STANDARD.encode(offer.salt), offer.iterations);
        let challenged = Challenged { first: self, nonce: nonce.into(), said: said.as_str().into(), keys: offer.keys };
        (Exchange::ScramProof(Box::new(challenged)), said)
    }
}

impl Challenged {
    /// Reads the client's final message, and says what to tell it once its login is found good.
    pub(super) fn prove(self, message: &[u8]) -> (Option<Exchange>, SaslStep) {
        let Some((without_proof, proof)) = std::str::from_utf8(message).ok().and_then(|text| text.rsplit_once(",p="))
        else {
            return (None, SaslStep::Malformed);
        };
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|one| one.strip_prefix("c="));
        let nonce = attributes.next().and_then(|one| one.strip_prefix("r="));
        let proof: Option<ScramKey> = STANDARD.decode(proof).ok().and_then(|proof| proof.try_into().ok());
        let (Some(binding), Some(nonce), Some(proof)) = (binding, nonce, proof) else {
            return (None, SaslStep::Malformed);
        };
        let same =
            |one: &str, other: &str| constant_time::verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok();
        let bound = same(binding, &self.first.binding) & same(nonce, &self.nonce);
        let message = [self.first.bare.as_bytes(), b",", self.said.as_bytes(), b",", without_proof.as_bytes()];
        let mut proved = None;
        // All keys are tried, so that time does not tell which of them fits.
        for keys in &self.keys {
            let mut client = proof;
            client.iter_mut().zip(mac(&keys.stored, &message)).for_each(|(octet, other)| *octet ^= other);
            let fits = constant_time::verify_slices_are_equal(&hash(&client), &keys.stored).is_ok();
            let signature = mac(&keys.server, &message);
            if fits & bound {
                proved = Some((keys.stored, signature));
            }
        }
        let Login { name, mechanism, .. } =
            Login { name: self.first.name, mechanism: self.first.mechanism, proof: Proof::Scram(None) };
        match proved {
            Some((stored, signature)) => {
                let last = STANDARD.encode(format!("v={}", STANDARD.encode(signature)));
                let proof = Proof::Scram(Some(Secret::new(stored.to_vec())));
                let after = Exchange::Judged { success: Some(last.into()), failure: None };
                (Some(after), SaslStep::Complete(Login { name, proof, mechanism }))
            }
            None => (None, SaslStep::Complete(Login { name, proof: Proof::Scram(None), mechanism })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The example of RFC 7677 3.
    const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn keys(password: &str) -> ScramKeys {
        let salt = STANDARD.decode(SALT).unwrap().try_into().unwrap();
        ScramKeys::derive(password.as_bytes(), salt, NonZeroU32::new(4096).unwrap())
    }

    fn offer(keys: Vec<ScramKeys>) -> ScramOffer {
        let one = &keys[0];
        ScramOffer { nonce: SERVER_NONCE.into(), salt: one.salt, iterations: one.iterations, keys }
    }

    fn begun(message: &str, mechanism: Mechanism, channel: &Channel, plus: bool) -> ClientFirst {
        match first(message.as_bytes(), mechanism, channel, plus) {
            SaslStep::Scram(first) => *first,
            other => panic!("{other:?}"),
        }
    }

    fn proved(first: ClientFirst, keys: Vec<ScramKeys>, answer: &str) -> (Option<Exchange>, SaslStep) {
        let (exchange, _) = first.challenge(offer(keys));
        exchange.answered(STANDARD.encode(answer).as_bytes())
    }

    fn is_proved(step: &SaslStep) -> bool {
        matches!(step, SaslStep::Complete(Login { proof: Proof::Scram(Some(_)), .. }))
    }

    #[test]
    fn the_example_of_the_rfc() {
        let first = begun(FIRST, Mechanism::Scram, &Channel::default(), false);
        assert_eq!(&*first.name, "user");
        let (exchange, challenge) = first.challenge(offer(vec![keys("pencil")]));
        assert_eq!(challenge, format!("r=rOprNGfwEbeRWgbNEkqO{SERVER_NONCE},s={SALT},i=4096"));
        let (after, step) = exchange.answered(STANDARD.encode(FINAL).as_bytes());
        assert!(is_proved(&step), "{step:?}");
        let Some(Exchange::Judged { success: Some(last), failure: None }) = after else { panic!("{after:?}") };
        assert_eq!(STANDARD.decode(&*last).unwrap(), b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn either_secret_of_a_rotation_proves_and_others_do_not() {
        let start = || begun(FIRST, Mechanism::Scram, &Channel::default(), false);
        assert!(is_proved(&proved(start(), vec![keys("other"), keys("pencil")], FINAL).1));
        let (after, step) = proved(start(), vec![keys("other"), keys("third")], FINAL);
        assert!(after.is_none());
        assert!(matches!(step, SaslStep::Complete(Login { proof: Proof::Scram(None), .. })), "{step:?}");
        // Another binding or another nonce than said, each with the proof of the example.
        for (from, to) in [("c=biws", "c=eSws"), ("r=rO", "r=rP")] {
            assert!(!is_proved(&proved(start(), vec![keys("pencil")], &FINAL.replace(from, to)).1), "{to}");
        }
        for wrong in ["", "c=biws", "c=biws,r=x", "c=biws,r=x,p=!", "c=biws,r=x,p=YQ==", ",p=YQ=="] {
            assert_eq!(proved(start(), vec![keys("pencil")], wrong).1, SaslStep::Malformed, "{wrong}");
        }
    }

    #[test]
    fn the_channel_is_bound() {
        let channel = Channel { exporter: Some([7; 32]), certified: false };
        let message = "p=tls-exporter,,n=user,r=abc";
        let final_for = |exporter: [u8; 32]| {
            let mut binding = b"p=tls-exporter,,".to_vec();
            binding.extend_from_slice(&exporter);
            let keys = keys("pencil");
            let bare = format!("c={},r=abc{SERVER_NONCE}", STANDARD.encode(binding));
            let said = format!("r=abc{SERVER_NONCE},s={SALT},i=4096");
            let mut salted = [0; 32];
            pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, keys.iterations, &keys.salt, b"pencil", &mut salted);
            let mut proof = mac(&salted, &[b"Client Key"]);
            let signature = mac(&keys.stored, &[format!("n=user,r=abc,{said},{bare}").as_bytes()]);
            proof.iter_mut().zip(signature).for_each(|(octet, other)| *octet ^= other);
            format!("{bare},p={}", STANDARD.encode(proof))
        };
        let start = || begun(message, Mechanism::ScramPlus, &channel, true);
        assert!(is_proved(&proved(start(), vec![keys("pencil")], &final_for([7; 32])).1));
        assert!(!is_proved(&proved(start(), vec![keys("pencil")], &final_for([8; 32])).1), "another connection's");
    }

    #[test]
    fn first_messages_are_read_or_refused() {
        let channel = Channel { exporter: Some([7; 32]), certified: false };
        let read = |text: &str, mechanism, plus| first(text.as_bytes(), mechanism, &channel, plus);
        let name = begun("y,a=a=2Cb=3D,n=a=2Cb=3D,r=x,ext=1", Mechanism::Scram, &channel, false).name;
        assert_eq!(&*name, "a,b=");
        assert_eq!(read("y,,n=user,r=x", Mechanism::Scram, true), SaslStep::Downgraded);
        assert!(matches!(read("n,,n=user,r=x", Mechanism::Scram, true), SaslStep::Scram(_)));
        assert_eq!(read("n,a=boss,n=user,r=x", Mechanism::Scram, false), SaslStep::OtherIdentity);
        for text in [
            "",
            "n",
            "n,",
            "n,,",
            "n,,n=user",
            "n,,r=x,n=user",
            "n,,n=,r=x",
            "n,,n=user,r=",
            "n,,n=us=er,r=x",
            "n,,n=u=2,r=x",
            "n,,m=x,n=user,r=x",
            "z,,n=user,r=x",
            "p=tls-exporter,,n=user,r=x",
            "n,x,n=user,r=x",
            "n,a=,n=user,r=x",
        ] {
            assert_eq!(read(text, Mechanism::Scram, false), SaslStep::Malformed, "{text}");
        }
        for text in ["n,,n=user,r=x", "y,,n=user,r=x", "p=tls-unique,,n=user,r=x"] {
            assert_eq!(read(text, Mechanism::ScramPlus, true), SaslStep::Malformed, "{text}");
        }
        let long = format!("n,,n=user,r={}", "x".repeat(SCRAM_NONCE_OCTETS_MAX + 1));
        assert_eq!(read(&long, Mechanism::Scram, false), SaslStep::Malformed);
    }

    #[test]
    fn keys_are_kept_as_text() {
        let keys = keys("pencil");
        let text = String::from(keys.clone());
        assert!(text.starts_with("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"), "{text}");
        assert_eq!(ScramKeys::try_from(text), Ok(keys.clone()));
        for wrong in ["", "SCRAM-SHA-256$0:YQ==$YQ==:YQ==", "SCRAM-SHA-1$1:YQ==$YQ==:YQ=="] {
            assert!(ScramKeys::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
        assert_eq!(format!("{keys:?}"), "ScramKeys(…)");
    }

    proptest! {
        #[test]
        fn any_message_is_read_or_refused(message in proptest::collection::vec(any::<u8>(), 0..80), text in ".*") {
            let channel = Channel::default();
            for message in [&message[..], text.as_bytes()] {
                let _ = first(message, Mechanism::Scram, &channel, false);
                let start = begun(FIRST, Mechanism::Scram, &channel, false);
                let (Exchange::ScramProof(challenged), _) = start.challenge(ScramOffer {
                    nonce: "x".into(), salt: [1; 16], iterations: ITERATIONS, keys: Vec::new(),
                }) else { unreachable!() };
                let _ = challenged.prove(message);
            }
        }
    }
}
