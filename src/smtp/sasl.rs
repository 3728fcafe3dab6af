//! Logging in by SASL (RFC 4954, RFC 4422): the mechanisms PLAIN (RFC 4616), LOGIN (which has no RFC but many clients), SCRAM
//! (scram.rs), OAUTHBEARER (RFC 7628), XOAUTH2 (its forerunner) and EXTERNAL (RFC 4422 appendix A).
//!
//! Pure: it reads what the client answers to challenges and ends with a [`Login`] for the owner to judge. Not here:
//! whether AUTH may come now (src/smtp/server_auth.rs), and who is who (src/policy/identity.rs). Secrets are overwritten
//! when they are dropped and never shown.

use crate::limits::{LOGIN_OCTETS_MAX, TOKEN_OCTETS_MAX};
use crate::smtp::scram::{self, Challenged, ClientFirst};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::borrow::Cow;
use std::fmt;
use zeroize::Zeroizing;

/// How a client proves who it is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// Name and password, each asked for.
    Login,
    /// RFC 7677, bound to the channel.
    ScramPlus,
    /// RFC 7677.
    Scram,
    /// RFC 7628.
    OauthBearer,
    /// The form of it that came before the RFC.
    Xoauth2,
    /// By the certificate that the client has shown (RFC 4422 appendix A).
    External,
}

impl Mechanism {
    /// All, in the order in which they are offered.
    pub const ALL: [Mechanism; 7] = [
        Mechanism::Plain,
        Mechanism::Login,
        Mechanism::ScramPlus,
        Mechanism::Scram,
        Mechanism::OauthBearer,
        Mechanism::Xoauth2,
        Mechanism::External,
    ];

    /// By its name, in any case; None: there is no such.
    pub fn named(name: &[u8]) -> Option<Mechanism> {
        Mechanism::ALL.into_iter().find(|known| known.name().as_bytes().eq_ignore_ascii_case(name))
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::Login => "LOGIN",
            Mechanism::ScramPlus => "SCRAM-SHA-256-PLUS",
            Mechanism::Scram => "SCRAM-SHA-256",
            Mechanism::OauthBearer => "OAUTHBEARER",
            Mechanism::Xoauth2 => "XOAUTH2",
            Mechanism::External => "EXTERNAL",
        }
    }
}

impl std::str::FromStr for Mechanism {
    type Err = String;

    fn from_str(name: &str) -> Result<Mechanism, String> {
        Mechanism::named(name.as_bytes()).ok_or_else(|| {
            let names = Mechanism::ALL.map(Mechanism::name).join(", ");
            format!("`{name}` is no mechanism that is known here; those are {names}")
        })
    }
}

/// Some of the mechanisms.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Mechanisms(u8);

impl Mechanisms {
    /// These.
    pub fn of(some: impl IntoIterator<Item = Mechanism>) -> Mechanisms {
        Mechanisms(some.into_iter().fold(0, |bits, one| bits | 1 << one as u8))
    }

    /// All that need nothing but a password.
    pub fn with_password() -> Mechanisms {
        Mechanisms::of([Mechanism::Plain, Mechanism::Login, Mechanism::ScramPlus, Mechanism::Scram])
    }

    /// Whether this is one of them.
    pub fn contains(self, one: Mechanism) -> bool {
        self.0 & 1 << one as u8 != 0
    }

    /// Those that are offered on such a connection.
    pub fn usable(self, channel: &Channel) -> impl Iterator<Item = Mechanism> {
        let fits = move |one: &Mechanism| match one {
            Mechanism::ScramPlus => channel.exporter.is_some(),
            Mechanism::External => channel.certified,
            _ => true,
        };
        Mechanism::ALL.into_iter().filter(move |one| self.contains(*one)).filter(fits)
    }
}

/// What the connection gives to log in with.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// What this TLS connection alone has (RFC 9266); none without TLS.
    pub exporter: Option<[u8; 32]>,
    /// The client has shown a certificate that was verified.
    pub certified: bool,
}

/// A password, a token, or something else to be kept secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// These octets.
    pub fn new(octets: Vec<u8>) -> Secret {
        Secret(Zeroizing::new(octets))
    }

    /// Its octets. They belong in no log.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How a client has proved who it is, or tried to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A password of 1 to 255 octets.
    Password(Secret),
    /// The stored key that its proof fits, which is secret too; none: it fits none.
    Scram(Option<Secret>),
    /// A bearer's token of 1 to 8192 octets.
    Token(Secret),
    /// The certificate of the connection.
    Certificate,
}

impl Proof {
    /// The octets by which it can be recognised, if it can at all.
    pub fn secret(&self) -> Option<&Secret> {
        match self {
            Proof::Password(secret) | Proof::Token(secret) => Some(secret),
            Proof::Scram(key) => key.as_ref(),
            Proof::Certificate => None,
        }
    }

    /// Tells the kinds apart: one's octets must not pass for another's.
    pub fn kind(&self) -> u8 {
        match self {
            Proof::Password(_) => 0,
            Proof::Scram(_) => 1,
            Proof::Token(_) => 2,
            Proof::Certificate => 3,
        }
    }
}

/// What a client says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The name, 1 to 255 octets without controls. Empty where a token or a certificate is to say it.
    pub name: Box<str>,
    /// How it proves that.
    pub proof: Proof,
    /// By which mechanism.
    pub mechanism: Mechanism,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum SaslStep {
    /// The client is to be asked this (already in base64).
    Challenge(Cow<'static, str>),
    /// The owner is to be asked about this name; then [`ClientFirst::challenge`].
    Scram(Box<ClientFirst>),
    /// It has said all.
    Complete(Login),
    /// It has taken note of the server's proof: the login that was found good stands.
    Confirmed,
    /// It has taken note of why its login failed: now the refusal follows.
    Noted,
    /// It has given up (`*`).
    Cancelled,
    /// It has said something that cannot be read.
    Malformed,
    /// It wants to act as somebody else, which nobody here may (RFC 4616 2).
    OtherIdentity,
    /// It was told less than is offered: somebody stands between.
    Downgraded,
}

/// Where an exchange is.
#[derive(Debug)]
pub enum Exchange {
    /// PLAIN's one answer is awaited.
    Plain,
    /// LOGIN's name is awaited.
    Name,
    /// LOGIN's password is awaited, for this name.
    Password(Box<str>),
    /// SCRAM's first message is awaited.
    ScramFirst {
        /// With or without binding.
        mechanism: Mechanism,
        /// What to bind to.
        channel: Channel,
        /// Whether the client could have bound the channel.
        plus_offered: bool,
    },
    /// SCRAM's proof is awaited.
    ScramProof(Box<Challenged>),
    /// OAUTHBEARER's or XOAUTH2's one answer is awaited.
    Token(Mechanism),
    /// EXTERNAL's one answer is awaited.
    External,
    /// The owner judges, and then this is said, in base64, before the reply.
    Judged {
        /// After success: the server's proof.
        success: Option<Box<str>>,
        /// After failure: why.
        failure: Option<&'static str>,
    },
    /// The server's proof was sent.
    Proved,
    /// Why the login has failed was sent.
    Failed,
}

/// "Username:".
const ASK_NAME: &str = "VXNlcm5hbWU6";
/// "Password:".
const ASK_PASSWORD: &str = "UGFzc3dvcmQ6";
/// `{"status":"invalid_token"}` (RFC 7628 3.2.2).
const INVALID_TOKEN: &str = "eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=";
/// `{"status":"401","schemes":"bearer"}`, as XOAUTH2's clients expect it.
const INVALID_TOKEN_XOAUTH2: &str = "eyJzdGF0dXMiOiI0MDEiLCJzY2hlbWVzIjoiYmVhcmVyIn0=";

impl Exchange {
    /// Begins, with the answer that the client sent ahead, if it did. None as the exchange: it is over with the step.
    /// `plus_offered`: SCRAM could have been bound to the channel here.
    pub fn begin(
        mechanism: Mechanism,
        initial: Option<&[u8]>,
        channel: Channel,
        plus_offered: bool,
    ) -> (Option<Exchange>, SaslStep) {
        let exchange = match mechanism {
            Mechanism::Plain => Exchange::Plain,
            Mechanism::Login => Exchange::Name,
            Mechanism::ScramPlus | Mechanism::Scram => Exchange::ScramFirst { mechanism, channel, plus_offered },
            Mechanism::OauthBearer | Mechanism::Xoauth2 => Exchange::Token(mechanism),
            Mechanism::External => Exchange::External,
        };
        match initial {
            // RFC 4954 4: "=" stands for an answer without octets.
            Some(b"=") => exchange.answered(b""),
            Some(answer) => exchange.answered(answer),
            None => {
                let challenge = if mechanism == Mechanism::Login { ASK_NAME } else { "" };
                (Some(exchange), SaslStep::Challenge(challenge.into()))
            }
        }
    }

    /// The client answered with this line, without its CRLF.
    pub fn answered(self, line: &[u8]) -> (Option<Exchange>, SaslStep) {
        if matches!(self, Exchange::Failed) {
            // RFC 7628 3.2.3: the answer says nothing, and `*` changes nothing.
            return (None, SaslStep::Noted);
        }
        if line == b"*" {
            return (None, SaslStep::Cancelled);
        }
        let Ok(answer) = STANDARD.decode(line).map(Zeroizing::new) else { return (None, SaslStep::Malformed) };
        match self {
            Exchange::Plain => (None, plain(&answer)),
            Exchange::Name => match login_name(&answer) {
                Some(name) => (Some(Exchange::Password(name)), SaslStep::Challenge(ASK_PASSWORD.into())),
                None => (None, SaslStep::Malformed),
            },
            Exchange::Password(name) => (None, complete(Some(name), &answer, Mechanism::Login)),
            Exchange::ScramFirst { mechanism, channel, plus_offered } => {
                (None, scram::first(&answer, mechanism, &channel, plus_offered))
            }
            Exchange::ScramProof(challenged) => challenged.prove(&answer),
            Exchange::Token(mechanism) => match token(&answer, mechanism) {
                step @ SaslStep::Complete(_) => {
                    let bearer = mechanism == Mechanism::OauthBearer;
                    let failure = Some(if bearer { INVALID_TOKEN } else { INVALID_TOKEN_XOAUTH2 });
                    (Some(Exchange::Judged { success: None, failure }), step)
                }
                step => (None, step),
            },
            Exchange::External => (None, external(&answer)),
            Exchange::Proved if answer.is_empty() => (None, SaslStep::Confirmed),
            Exchange::Proved | Exchange::Judged { .. } | Exchange::Failed => (None, SaslStep::Malformed),
        }
    }
}

/// `[authzid] NUL authcid NUL passwd` (RFC 4616 2).
fn plain(answer: &[u8]) -> SaslStep {
    let mut parts = answer.split(|octet| *octet == 0);
    let (Some(act_as), Some(own), Some(password), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return SaslStep::Malformed;
    };
    if !act_as.is_empty() && act_as != own {
        return SaslStep::OtherIdentity;
    }
    complete(login_name(own), password, Mechanism::Plain)
}

fn complete(name: Option<Box<str>>, password: &[u8], mechanism: Mechanism) -> SaslStep {
    match name {
        Some(name) if (1..=LOGIN_OCTETS_MAX).contains(&password.len()) => {
            SaslStep::Complete(Login { name, proof: Proof::Password(Secret::new(password.to_vec())), mechanism })
        }
        _ => SaslStep::Malformed,
    }
}

/// `n,a=NAME,` ^A `auth=Bearer TOKEN` ^A ^A, with other pairs between (RFC 7628 3.1), or `user=NAME` ^A `auth=Bearer TOKEN`
/// ^A ^A (XOAUTH2).
fn token(answer: &[u8], mechanism: Mechanism) -> SaslStep {
    let read = || {
        let text = std::str::from_utf8(answer).ok()?;
        let (head, pairs) = text.strip_suffix("\u{1}\u{1}")?.split_once('\u{1}')?;
        let name = if mechanism == Mechanism::Xoauth2 {
            login_name(head.strip_prefix("user=")?.as_bytes())?
        } else {
            let act_as = head.strip_prefix("n,").or_else(|| head.strip_prefix("y,"))?.strip_suffix(',')?;
            match act_as.strip_prefix("a=") {
                Some(name) => scram::decode_name(name)?,
                None if act_as.is_empty() => "".into(),
                None => return None,
            }
        };
        let scheme_and_token = pairs.split('\u{1}').find_map(|pair| pair.strip_prefix("auth="))?;
        let (scheme, token) = scheme_and_token.split_once(' ')?;
        let fits = scheme.eq_ignore_ascii_case("bearer")
            && (1..=TOKEN_OCTETS_MAX).contains(&token.len())
            && token.bytes().all(|octet| octet.is_ascii_graphic());
        fits.then(|| Login { name, proof: Proof::Token(Secret::new(token.into())), mechanism })
    };
    read().map_or(SaslStep::Malformed, SaslStep::Complete)
}

/// The name to act as, or nothing (RFC 4422 A.1).
fn external(answer: &[u8]) -> SaslStep {
    let name = if answer.is_empty() { Some("".into()) } else { login_name(answer) };
    name.map_or(SaslStep::Malformed, |name| {
        SaslStep::Complete(Login { name, proof: Proof::Certificate, mechanism: Mechanism::External })
    })
}

/// A login's name, when it can be one.
pub(super) fn login_name(octets: &[u8]) -> Option<Box<str>> {
    let text = std::str::from_utf8(octets).ok()?;
    let fits = (1..=LOGIN_OCTETS_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    fits.then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn login(step: SaslStep) -> (String, Vec<u8>) {
        match step {
            SaslStep::Complete(login) => (login.name.into(), login.proof.secret().unwrap().expose().to_vec()),
            other => panic!("{other:?}"),
        }
    }

    fn begin(mechanism: Mechanism, initial: Option<&[u8]>) -> (Option<Exchange>, SaslStep) {
        Exchange::begin(mechanism, initial, Channel::default(), false)
    }

    #[test]
    fn plain_in_one_and_in_two_steps() {
        let answer = STANDARD.encode("\0user\0secret");
        let (exchange, step) = begin(Mechanism::Plain, Some(answer.as_bytes()));
        assert!(exchange.is_none());
        assert_eq!(login(step), ("user".into(), b"secret".to_vec()));
        let (exchange, step) = begin(Mechanism::Plain, None);
        assert_eq!(step, SaslStep::Challenge("".into()));
        let (exchange, step) = exchange.unwrap().answered(STANDARD.encode("user\0user\0p w").as_bytes());
        assert!(exchange.is_none());
        assert_eq!(login(step), ("user".into(), b"p w".to_vec()));
    }

    #[test]
    fn login_asks_for_name_and_password() {
        let (exchange, step) = begin(Mechanism::Login, None);
        assert_eq!(step, SaslStep::Challenge(ASK_NAME.into()));
        let (exchange, step) = exchange.unwrap().answered(STANDARD.encode("user").as_bytes());
        assert_eq!(step, SaslStep::Challenge(ASK_PASSWORD.into()));
        let (_, step) = exchange.unwrap().answered(STANDARD.encode("secret").as_bytes());
        assert_eq!(login(step), ("user".into(), b"secret".to_vec()));
        let (exchange, step) = begin(Mechanism::Login, Some(STANDARD.encode("user").as_bytes()));
        assert!(exchange.is_some());
        assert_eq!(step, SaslStep::Challenge(ASK_PASSWORD.into()));
        assert_eq!(STANDARD.decode(ASK_NAME).unwrap(), b"Username:");
        assert_eq!(STANDARD.decode(ASK_PASSWORD).unwrap(), b"Password:");
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for text in ["\0user\0", "\0\0secret", "user\0secret", "\0a\0b\0c", "", "\0us\ner\0x"] {
            let (exchange, step) = begin(Mechanism::Plain, Some(STANDARD.encode(text).as_bytes()));
            assert!(exchange.is_none());
            assert_eq!(step, SaslStep::Malformed, "{text:?}");
        }
        let step = |line: &str| Exchange::Plain.answered(line.as_bytes()).1;
        assert_eq!(step("*"), SaslStep::Cancelled);
        assert_eq!(step("not base64!"), SaslStep::Malformed);
        assert_eq!(step(&STANDARD.encode("boss\0user\0secret")), SaslStep::OtherIdentity);
        assert_eq!(step(&STANDARD.encode(format!("\0u\0{}", "x".repeat(LOGIN_OCTETS_MAX + 1)))), SaslStep::Malformed);
        assert_eq!(begin(Mechanism::Plain, Some(b"=")).1, SaslStep::Malformed);
        assert_eq!(Mechanism::named(b"login"), Some(Mechanism::Login));
        assert_eq!(Mechanism::named(b"CRAM-MD5"), None);
        assert!(!format!("{:?}", Secret::new(b"hidden".to_vec())).contains("hidden"));
    }

    #[test]
    fn tokens_are_read() {
        let read = |text: &str, mechanism| begin(mechanism, Some(STANDARD.encode(text).as_bytes())).1;
        let bearer = "n,a=app=2C1,\u{1}host=mx\u{1}port=587\u{1}auth=Bearer abc.def\u{1}\u{1}";
        assert_eq!(login(read(bearer, Mechanism::OauthBearer)), ("app,1".into(), b"abc.def".to_vec()));
        assert_eq!(login(read("n,,\u{1}auth=bearer t\u{1}\u{1}", Mechanism::OauthBearer)).0, "");
        let older = "user=app\u{1}auth=Bearer abc\u{1}\u{1}";
        assert_eq!(login(read(older, Mechanism::Xoauth2)), ("app".into(), b"abc".to_vec()));
        let long = format!("user=app\u{1}auth=Bearer {}\u{1}\u{1}", "x".repeat(TOKEN_OCTETS_MAX + 1));
        for text in [
            "",
            "user=app",
            "user=\u{1}auth=Bearer abc\u{1}\u{1}",
            "user=app\u{1}auth=Bearer \u{1}\u{1}",
            "user=app\u{1}auth=Basic abc\u{1}\u{1}",
            "user=app\u{1}auth=Bearer a b\u{1}\u{1}",
            bearer,
            &long,
        ] {
            assert_eq!(read(text, Mechanism::Xoauth2), SaslStep::Malformed, "{text:?}");
        }
        for text in [older, "p,,\u{1}auth=Bearer t\u{1}\u{1}", "n,x,\u{1}auth=Bearer t\u{1}\u{1}"] {
            assert_eq!(read(text, Mechanism::OauthBearer), SaslStep::Malformed, "{text:?}");
        }
        let decoded = |text: &str| STANDARD.decode(text).unwrap();
        assert_eq!(decoded(INVALID_TOKEN), br#"{"status":"invalid_token"}"#);
        assert_eq!(decoded(INVALID_TOKEN_XOAUTH2), br#"{"status":"401","schemes":"bearer"}"#);
    }

    #[test]
    fn a_certificate_may_name_its_login_or_not() {
        let named = |answer: Option<&[u8]>| match begin(Mechanism::External, answer).1 {
            SaslStep::Complete(Login { name, proof: Proof::Certificate, .. }) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!([named(Some(b"=")), named(Some(b"YXBw"))], ["".into(), "app".into()]);
        assert_eq!(begin(Mechanism::External, None).1, SaslStep::Challenge("".into()));
    }

    #[test]
    fn what_is_offered_depends_on_the_connection() {
        let all = Mechanisms::of(Mechanism::ALL);
        let count = |some: Mechanisms, exporter, certified| some.usable(&Channel { exporter, certified }).count();
        assert_eq!([count(all, None, false), count(all, Some([0; 32]), true)], [5, 7]);
        assert_eq!(count(Mechanisms::with_password(), Some([0; 32]), true), 4);
        assert_eq!(count(Mechanisms::default(), None, true), 0);
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            for exchange in [
                Exchange::Plain,
                Exchange::Name,
                Exchange::Password("x".into()),
                Exchange::Token(Mechanism::OauthBearer),
                Exchange::Token(Mechanism::Xoauth2),
                Exchange::External,
                Exchange::Proved,
                Exchange::Failed,
            ] {
                let _ = exchange.answered(&line);
            }
        }
    }
}
