//! AUTH in a server's session (RFC 4954): when it may come, what the client is asked, and what it is told. Only under TLS,
//! but where the listener's configuration says otherwise.
//!
//! Not here: the mechanisms (sasl.rs), and who may log in, which the owner says, at once or later.

use crate::clock::{Instant, Now};
use crate::limits::AUTH_FAILURES_MAX;
use crate::reply::Reply;
use crate::smtp::replies;
use crate::smtp::sasl::{Exchange, Mechanism, SaslStep};
use crate::smtp::server::{Phase, Session, Step, Transactions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::io::Write;

impl Session {
    /// AUTH with its arguments: `mechanism [initial-response]`.
    pub(super) fn auth<T: Transactions>(
        &mut self,
        arguments: &[u8],
        now: Now,
        owner: &mut T,
        out: &mut Vec<u8>,
    ) -> Result<(), Reply> {
        if !self.config.auth {
            return Err(replies::NOT_IMPLEMENTED);
        }
        if !self.tls && !self.config.auth_in_clear {
            return Err(replies::ENCRYPT_FIRST);
        }
        if !self.greeted {
            return Err(replies::HELLO_FIRST);
        }
        // RFC 4954 4: not twice, and not within a transaction.
        if self.authenticated {
            return Err(replies::AUTHENTICATED);
        }
        if self.transaction.open {
            return Err(replies::NO_AUTH_NOW);
        }
        let mut words = arguments.split(|octet| *octet == b' ').filter(|word| !word.is_empty());
        let mechanism = words.next().ok_or(replies::BAD_AUTH)?;
        let channel = owner.channel();
        let offered = |one: Mechanism| self.config.mechanisms.usable(&channel).any(|known| known == one);
        let mechanism = Mechanism::named(mechanism).filter(|one| offered(*one)).ok_or(replies::UNKNOWN_MECHANISM)?;
        let plus_offered = offered(Mechanism::ScramPlus);
        let initial = words.next();
        if words.next().is_some() {
            return Err(replies::BAD_AUTH);
        }
        let (exchange, step) = Exchange::begin(mechanism, initial, channel, plus_offered);
        self.go_on_authenticating(exchange, step, now, owner, out)
    }

    /// A line within the exchange, with its CRLF.
    pub(super) fn auth_answer<T: Transactions>(
        &mut self,
        exchange: Exchange,
        line: &[u8],
        now: Now,
        owner: &mut T,
        out: &mut Vec<u8>,
    ) -> Result<(), Reply> {
        // Until it is confirmed a login that was found good does not count.
        let proved = matches!(exchange, Exchange::Proved);
        let (exchange, step) = exchange.answered(line.strip_suffix(b"\r\n").unwrap_or(line));
        if proved && step != SaslStep::Confirmed {
            owner.forget_login();
        }
        self.go_on_authenticating(exchange, step, now, owner, out)
    }

    fn go_on_authenticating<T: Transactions>(
        &mut self,
        exchange: Option<Exchange>,
        step: SaslStep,
        now: Now,
        owner: &mut T,
        out: &mut Vec<u8>,
    ) -> Result<(), Reply> {
        self.exchange = exchange.map(Box::new);
        match step {
            SaslStep::Challenge(challenge) => challenge_with(&challenge, out),
            SaslStep::Scram(first) => {
                let offer = owner.scram(&first.name, now).ok_or(replies::AUTH_UNAVAILABLE)?;
                let (exchange, challenge) = first.challenge(offer);
                self.exchange = Some(Box::new(exchange));
                challenge_with(&STANDARD.encode(challenge), out);
            }
            SaslStep::Complete(login) => match owner.authenticate(login, now) {
                Some(result) => self.judged(result, out),
                None => self.phase = Phase::Authenticating,
            },
            SaslStep::Confirmed => self.logged_in(out),
            SaslStep::Noted => self.login_failed(&replies::AUTH_INVALID, out),
            SaslStep::Cancelled => return Err(replies::AUTH_CANCELLED),
            SaslStep::Malformed => return Err(replies::BAD_AUTH_ANSWER),
            SaslStep::OtherIdentity => return Err(replies::AUTH_INVALID),
            SaslStep::Downgraded => return Err(replies::AUTH_DOWNGRADED),
        }
        Ok(())
    }

    /// Ends a login under way, as one does whose line is wrong.
    pub(super) fn end_exchange<T: Transactions>(&mut self, owner: &mut T) {
        if let Some(Exchange::Proved) = self.exchange.take().as_deref() {
            owner.forget_login();
        }
    }

    /// Whether AUTH may come now, or after EHLO.
    pub(super) fn may_log_in(&self) -> bool {
        self.config.auth && (self.tls || self.config.auth_in_clear) && !self.authenticated
    }

    /// The owner has decided about the login. Input left over may be offered again.
    pub fn handle_authenticated(&mut self, result: Result<(), Reply>, now: Instant, out: &mut Vec<u8>) -> Step {
        if !matches!(self.phase, Phase::Authenticating) {
            return self.step();
        }
        self.phase = Phase::Command;
        self.judged(result, out);
        self.close_if_over(out);
        self.arm(now);
        self.step()
    }

    /// Says what came of it, after what the mechanism says first: RFC 4954 4 has no other place for it than a challenge.
    fn judged(&mut self, result: Result<(), Reply>, out: &mut Vec<u8>) {
        let (success, failure) = match self.exchange.take().map(|exchange| *exchange) {
            Some(Exchange::Judged { success, failure }) => (success, failure),
            _ => (None, None),
        };
        match (result, success, failure) {
            (Ok(()), Some(proof), _) => {
                self.exchange = Some(Box::new(Exchange::Proved));
                challenge_with(&proof, out);
            }
            (Ok(()), None, _) => self.logged_in(out),
            (Err(reply), _, Some(why)) if reply == replies::AUTH_INVALID => {
                self.exchange = Some(Box::new(Exchange::Failed));
                challenge_with(why, out);
            }
            (Err(reply), ..) => self.login_failed(&reply, out),
        }
    }

    fn logged_in(&mut self, out: &mut Vec<u8>) {
        self.authenticated = true;
        out.extend_from_slice(replies::AUTHENTICATION_SUCCESSFUL);
    }

    fn login_failed(&mut self, reply: &Reply, out: &mut Vec<u8>) {
        self.refuse(reply, out);
        self.failed_logins += 1;
        if self.failed_logins >= AUTH_FAILURES_MAX && !matches!(self.phase, Phase::Closed) {
            self.close(out, "4.7.0", "too many failed logins; check name and password and connect again");
        }
    }
}

fn challenge_with(text: &str, out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "334 {text}\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Recipient;
    use crate::smtp::extensions::SessionConfig;
    use crate::smtp::sasl::{Channel, Login, Mechanisms, Proof};
    use crate::smtp::scram::{ITERATIONS, ScramKeys, ScramOffer};
    use crate::smtp::transaction::MailFrom;
    use std::net::SocketAddr;
    use std::sync::Arc;

    /// Knows "good" at once, and decides later about everybody else.
    #[derive(Default)]
    struct Owner {
        asked: Vec<Login>,
        channel: Channel,
        forgotten: u32,
    }

    /// The server's part of the nonce, and the salt.
    const NONCE: &str = "server";
    const SALT: [u8; 16] = [9; 16];

    impl Transactions for Owner {
        fn proxied(&mut self, _client: SocketAddr, _now: Now) -> Result<(), Reply> {
            Ok(())
        }
        fn hello(&mut self, _name: &str, _extended: bool) {}

        fn authenticate(&mut self, login: Login, _now: Now) -> Option<Result<(), Reply>> {
            let known = &*login.name == "good" && login.proof != Proof::Scram(None);
            self.asked.push(login);
            known.then_some(Ok(()))
        }

        fn channel(&self) -> Channel {
            self.channel
        }

        fn scram(&mut self, _name: &str, _now: Now) -> Option<ScramOffer> {
            let keys = vec![ScramKeys::derive(b"secret", SALT, ITERATIONS)];
            Some(ScramOffer { nonce: NONCE.into(), salt: SALT, iterations: ITERATIONS, keys })
        }

        fn forget_login(&mut self) {
            self.forgotten += 1;
        }

        fn mail(&mut self, _mail: MailFrom, _now: Now) -> Result<(), Reply> {
            Ok(())
        }

        fn recipient(&mut self, _recipient: Recipient, _now: Now) -> Result<(), Reply> {
            Ok(())
        }

        fn begin_content(&mut self, _now: Now) -> Result<(), Reply> {
            Ok(())
        }

        fn content(&mut self, _bytes: &[u8]) -> Result<(), Reply> {
            Ok(())
        }

        fn end_content(&mut self, _now: Now) -> Result<(), Reply> {
            Ok(())
        }

        fn abort(&mut self) {}
    }

    /// "\0late\0secret"
    const LATE: &str = "AUTH PLAIN AGxhdGUAc2VjcmV0\r\n";
    /// "\0good\0secret"
    const GOOD: &str = "AUTH PLAIN AGdvb2QAc2VjcmV0\r\n";

    /// A session under TLS that has said EHLO.
    fn session() -> (Session, Owner) {
        let mechanisms = Mechanisms::of(Mechanism::ALL);
        let config = SessionConfig { auth: true, mechanisms, ..crate::smtp::server::tests::config() };
        let mut session = Session::new(Arc::new(config), true, Instant::ZERO);
        let mut owner = Owner::default();
        session.handle_tls_started(Instant::ZERO, &mut Vec::new());
        let (_, hello) = say(&mut session, &mut owner, "EHLO x\r\n");
        assert!(hello.contains("250 AUTH PLAIN LOGIN SCRAM-SHA-256 OAUTHBEARER XOAUTH2\r\n"), "{hello}");
        (session, owner)
    }

    fn say(session: &mut Session, owner: &mut Owner, input: &str) -> ((usize, Step), String) {
        let mut out = Vec::new();
        let taken = session.handle_input(input.as_bytes(), Now::default(), owner, &mut out);
        (taken, String::from_utf8(out).unwrap())
    }

    #[test]
    fn nothing_is_read_while_the_owner_decides() {
        let (mut session, mut owner) = session();
        let ((taken, step), replies) = say(&mut session, &mut owner, &format!("{LATE}NOOP\r\n"));
        assert_eq!((taken, step, &*replies), (LATE.len(), Step::AwaitAuthentication, ""));
        assert_eq!((&*owner.asked[0].name, owner.asked[0].proof.secret().unwrap().expose()), ("late", &b"secret"[..]));
        assert_eq!(say(&mut session, &mut owner, "NOOP\r\n"), ((0, Step::AwaitAuthentication), String::new()));
        let mut out = Vec::new();
        assert_eq!(session.handle_authenticated(Ok(()), Instant::ZERO, &mut out), Step::Read);
        assert_eq!(out, replies::AUTHENTICATION_SUCCESSFUL);
        let (_, reply) = say(&mut session, &mut owner, GOOD);
        assert!(reply.starts_with("503 5.5.1 Already logged in"), "{reply}");
        // A verdict that nobody asked for changes nothing.
        assert_eq!(session.handle_authenticated(Err(replies::AUTH_INVALID), Instant::ZERO, &mut out), Step::Read);
    }

    #[test]
    fn a_third_failure_ends_the_session() {
        let (mut session, mut owner) = session();
        let mut out = Vec::new();
        for attempt in 1..=AUTH_FAILURES_MAX {
            say(&mut session, &mut owner, LATE);
            let step = session.handle_authenticated(Err(replies::AUTH_INVALID), Instant::ZERO, &mut out);
            assert_eq!(step == Step::Close, attempt == AUTH_FAILURES_MAX, "{attempt}");
        }
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("535 5.7.8 ").count(), usize::from(AUTH_FAILURES_MAX));
        assert!(text.lines().last().unwrap().starts_with("421 4.7.0 "), "{text}");
    }

    #[test]
    fn a_verdict_that_never_comes_ends_the_session() {
        let (mut session, mut owner) = session();
        say(&mut session, &mut owner, LATE);
        let mut out = Vec::new();
        assert_eq!(session.handle_timeout(Instant::ZERO, &mut out), Step::AwaitAuthentication);
        assert_eq!(session.handle_timeout(session.deadline(), &mut out), Step::Close);
        assert!(out.starts_with(b"421 4.7.0 "));
    }

    #[test]
    fn a_known_login_is_answered_at_once_and_the_exchange_reads_lines_that_look_like_commands() {
        let (mut session, mut owner) = session();
        let (_, replies) = say(&mut session, &mut owner, "AUTH LOGIN\r\nQUIT\r\nNOOP\r\n");
        // "QUIT" is base64 of three octets that are no name: the exchange is over, and NOOP is a command again.
        assert!(replies.starts_with("334 VXNlcm5hbWU6\r\n501 5.5.2 "), "{replies}");
        assert!(replies.ends_with("250 2.0.0 OK\r\n"), "{replies}");
        let (_, replies) = say(&mut session, &mut owner, &format!("{GOOD}NOOP\r\n"));
        assert_eq!(replies, "235 2.7.0 Authentication successful\r\n250 2.0.0 OK\r\n");
        let (_, replies) = say(&mut session, &mut owner, "AUTH LOGIN\r\n");
        assert!(replies.starts_with("503 "), "{replies}");
    }

    /// The client's first message, and its last with this password.
    fn scram(name: &str, password: &[u8]) -> (String, String) {
        use aws_lc_rs::{digest, hmac, pbkdf2};
        let mac = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
        let mut salted = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, &SALT, password, &mut salted);
        let client = mac(&salted, b"Client Key");
        let stored = digest::digest(&digest::SHA256, client.as_ref());
        let said = format!("r=client{NONCE},s={},i={ITERATIONS}", STANDARD.encode(SALT));
        let bare = format!("c=biws,r=client{NONCE}");
        let signature = mac(stored.as_ref(), format!("n={name},r=client,{said},{bare}").as_bytes());
        let proof: Vec<u8> = client.as_ref().iter().zip(signature.as_ref()).map(|(one, other)| one ^ other).collect();
        let first = STANDARD.encode(format!("n,,n={name},r=client"));
        let last = STANDARD.encode(format!("{bare},p={}", STANDARD.encode(proof)));
        (format!("AUTH SCRAM-SHA-256 {first}\r\n"), format!("{last}\r\n"))
    }

    #[test]
    fn scram_proves_both_sides_before_it_counts() {
        let (mut session, mut owner) = session();
        let (first, last) = scram("good", b"secret");
        let (_, reply) = say(&mut session, &mut owner, &first);
        assert!(reply.starts_with("334 "), "{reply}");
        let (_, reply) = say(&mut session, &mut owner, &last);
        let proof = STANDARD.decode(reply.trim_end().strip_prefix("334 ").unwrap()).unwrap();
        assert!(proof.starts_with(b"v="));
        assert_eq!(say(&mut session, &mut owner, "\r\n").1, "235 2.7.0 Authentication successful\r\n");
        assert_eq!(owner.forgotten, 0);
        // Whoever does not take the server's proof is not logged in, whatever it says instead.
        for answer in ["*\r\n", "YQ==\r\n", "!\r\n", "\0\r\n"] {
            let (mut session, mut owner) = self::session();
            say(&mut session, &mut owner, &format!("{first}{last}"));
            let (_, reply) = say(&mut session, &mut owner, answer);
            assert!(reply.starts_with("50"), "{reply}");
            assert_eq!(owner.forgotten, 1, "{answer}");
            assert!(!session.authenticated);
        }
    }

    #[test]
    fn a_proof_that_fails_is_judged_by_the_owner_too() {
        let (mut session, mut owner) = session();
        let (first, last) = scram("good", b"wrong");
        let ((_, step), _) = say(&mut session, &mut owner, &format!("{first}{last}"));
        assert_eq!((step, &owner.asked[0].proof), (Step::AwaitAuthentication, &Proof::Scram(None)));
        let mut out = Vec::new();
        session.handle_authenticated(Err(replies::AUTH_INVALID), Instant::ZERO, &mut out);
        assert!(out.starts_with(b"535 5.7.8 "));
        // A client that was not told of -PLUS says so where it is offered.
        owner.channel.exporter = Some([1; 32]);
        let downgraded = format!("AUTH SCRAM-SHA-256 {}\r\n", STANDARD.encode("y,,n=good,r=client"));
        assert!(say(&mut session, &mut owner, &downgraded).1.starts_with("535 5.7.8 "));
        assert!(say(&mut session, &mut owner, "AUTH EXTERNAL =\r\n").1.starts_with("504 "));
    }

    #[test]
    fn a_token_that_fails_is_explained_first() {
        for (mechanism, answer) in [
            ("OAUTHBEARER", "n,a=late,\u{1}auth=Bearer t\u{1}\u{1}"),
            ("XOAUTH2", "user=late\u{1}auth=Bearer t\u{1}\u{1}"),
        ] {
            let (mut session, mut owner) = session();
            let auth = format!("AUTH {mechanism} {}\r\n", STANDARD.encode(answer));
            say(&mut session, &mut owner, &auth);
            let mut out = Vec::new();
            assert_eq!(session.handle_authenticated(Err(replies::AUTH_INVALID), Instant::ZERO, &mut out), Step::Read);
            assert!(out.starts_with(b"334 eyJzdGF0dXMiOi"), "{}", out.escape_ascii());
            assert!(say(&mut session, &mut owner, "AQ==\r\n").1.starts_with("535 5.7.8 "));
            say(&mut session, &mut owner, &auth);
            out.clear();
            session.handle_authenticated(Err(replies::AUTH_UNAVAILABLE), Instant::ZERO, &mut out);
            assert!(out.starts_with(b"454 "), "nothing is wrong with the token");
            let long = format!("AUTH {mechanism} {}\r\n", "x".repeat(crate::limits::AUTH_LINE_OCTETS_MAX));
            assert!(say(&mut session, &mut owner, &long).1.starts_with("500 "));
        }
    }
}
