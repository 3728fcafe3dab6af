//! Logging in by SASL (RFC 4954, RFC 4422): the mechanisms PLAIN (RFC 4616) and LOGIN (which has no RFC but many clients).
//!
//! Pure: it reads what the client answers to challenges and ends with a [`Login`] for the owner to judge. Not here:
//! whether AUTH may come now (src/smtp/server_auth.rs), and who is who (src/policy/identity.rs). Secrets are overwritten
//! when they are dropped and never shown.

use crate::limits::LOGIN_OCTETS_MAX;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use zeroize::Zeroizing;

/// How a client proves who it is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// Name and password, each asked for.
    Login,
}

impl Mechanism {
    /// By its name, in any case; None: not offered.
    pub fn named(name: &[u8]) -> Option<Mechanism> {
        [Mechanism::Plain, Mechanism::Login]
            .into_iter()
            .find(|known| known.name().as_bytes().eq_ignore_ascii_case(name))
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::Login => "LOGIN",
        }
    }
}

/// A password.
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

/// What a client says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The name, 1 to 255 octets without controls.
    pub name: Box<str>,
    /// Its password, 1 to 255 octets.
    pub secret: Secret,
    /// By which mechanism.
    pub mechanism: Mechanism,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum SaslStep {
    /// The client is to be asked this (already in base64).
    Challenge(&'static str),
    /// It has said all.
    Complete(Login),
    /// It has given up (`*`).
    Cancelled,
    /// It has said something that cannot be read.
    Malformed,
    /// It wants to act as somebody else, which nobody here may (RFC 4616 2).
    OtherIdentity,
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
}

/// "Username:".
const ASK_NAME: &str = "VXNlcm5hbWU6";
/// "Password:".
const ASK_PASSWORD: &str = "UGFzc3dvcmQ6";

impl Exchange {
    /// Begins, with the answer that the client sent ahead, if it did. None as the exchange: it is over with the step.
    pub fn begin(mechanism: Mechanism, initial: Option<&[u8]>) -> (Option<Exchange>, SaslStep) {
        let exchange = match mechanism {
            Mechanism::Plain => Exchange::Plain,
            Mechanism::Login => Exchange::Name,
        };
        match initial {
            // RFC 4954 4: "=" stands for an answer without octets.
            Some(b"=") => exchange.answered(b""),
            Some(answer) => exchange.answered(answer),
            None => {
                let challenge = if mechanism == Mechanism::Plain { "" } else { ASK_NAME };
                (Some(exchange), SaslStep::Challenge(challenge))
            }
        }
    }

    /// The client answered with this line, without its CRLF.
    pub fn answered(self, line: &[u8]) -> (Option<Exchange>, SaslStep) {
        if line == b"*" {
            return (None, SaslStep::Cancelled);
        }
        let Ok(answer) = STANDARD.decode(line).map(Zeroizing::new) else { return (None, SaslStep::Malformed) };
        match self {
            Exchange::Plain => (None, plain(&answer)),
            Exchange::Name => match name(&answer) {
                Some(name) => (Some(Exchange::Password(name)), SaslStep::Challenge(ASK_PASSWORD)),
                None => (None, SaslStep::Malformed),
            },
            Exchange::Password(name) => (None, complete(Some(name), &answer, Mechanism::Login)),
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
    complete(name(own), password, Mechanism::Plain)
}

fn complete(name: Option<Box<str>>, password: &[u8], mechanism: Mechanism) -> SaslStep {
    match name {
        Some(name) if (1..=LOGIN_OCTETS_MAX).contains(&password.len()) => {
            SaslStep::Complete(Login { name, secret: Secret::new(password.to_vec()), mechanism })
        }
        _ => SaslStep::Malformed,
    }
}

fn name(octets: &[u8]) -> Option<Box<str>> {
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
            SaslStep::Complete(login) => (login.name.into(), login.secret.expose().to_vec()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn plain_in_one_and_in_two_steps() {
        let answer = STANDARD.encode("\0user\0secret");
        let (exchange, step) = Exchange::begin(Mechanism::Plain, Some(answer.as_bytes()));
        assert!(exchange.is_none());
        assert_eq!(login(step), ("user".into(), b"secret".to_vec()));
        let (exchange, step) = Exchange::begin(Mechanism::Plain, None);
        assert_eq!(step, SaslStep::Challenge(""));
        let (exchange, step) = exchange.unwrap().answered(STANDARD.encode("user\0user\0p w").as_bytes());
        assert!(exchange.is_none());
        assert_eq!(login(step), ("user".into(), b"p w".to_vec()));
    }

    #[test]
    fn login_asks_for_name_and_password() {
        let (exchange, step) = Exchange::begin(Mechanism::Login, None);
        assert_eq!(step, SaslStep::Challenge(ASK_NAME));
        let (exchange, step) = exchange.unwrap().answered(STANDARD.encode("user").as_bytes());
        assert_eq!(step, SaslStep::Challenge(ASK_PASSWORD));
        let (_, step) = exchange.unwrap().answered(STANDARD.encode("secret").as_bytes());
        assert_eq!(login(step), ("user".into(), b"secret".to_vec()));
        let (exchange, step) = Exchange::begin(Mechanism::Login, Some(STANDARD.encode("user").as_bytes()));
        assert!(exchange.is_some());
        assert_eq!(step, SaslStep::Challenge(ASK_PASSWORD));
        assert_eq!(STANDARD.decode(ASK_NAME).unwrap(), b"Username:");
        assert_eq!(STANDARD.decode(ASK_PASSWORD).unwrap(), b"Password:");
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for text in ["\0user\0", "\0\0secret", "user\0secret", "\0a\0b\0c", "", "\0us\ner\0x"] {
            let (exchange, step) = Exchange::begin(Mechanism::Plain, Some(STANDARD.encode(text).as_bytes()));
            assert!(exchange.is_none());
            assert_eq!(step, SaslStep::Malformed, "{text:?}");
        }
        let step = |line: &str| Exchange::Plain.answered(line.as_bytes()).1;
        assert_eq!(step("*"), SaslStep::Cancelled);
        assert_eq!(step("not base64!"), SaslStep::Malformed);
        assert_eq!(step(&STANDARD.encode("boss\0user\0secret")), SaslStep::OtherIdentity);
        assert_eq!(step(&STANDARD.encode(format!("\0u\0{}", "x".repeat(LOGIN_OCTETS_MAX + 1)))), SaslStep::Malformed);
        assert_eq!(Exchange::begin(Mechanism::Plain, Some(b"=")).1, SaslStep::Malformed);
        assert_eq!(Mechanism::named(b"login"), Some(Mechanism::Login));
        assert_eq!(Mechanism::named(b"CRAM-MD5"), None);
        assert!(!format!("{:?}", Secret::new(b"hidden".to_vec())).contains("hidden"));
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            for exchange in [Exchange::Plain, Exchange::Name, Exchange::Password("x".into())] {
                let _ = exchange.answered(&line);
            }
        }
    }
}
