//! AUTH in a server's session (RFC 4954): when it may come, what the client is asked, and what it is told. Only under TLS.
//!
//! Not here: the mechanisms (sasl.rs), and who may log in, which the owner says, at once or later.

use crate::clock::{Instant, Now};
use crate::limits::AUTH_FAILURES_MAX;
use crate::reply::Reply;
use crate::smtp::replies;
use crate::smtp::sasl::{Exchange, Mechanism, SaslStep};
use crate::smtp::server::{Phase, Session, Step, Transactions};
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
        if !self.tls {
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
        let mechanism = Mechanism::named(mechanism).ok_or(replies::UNKNOWN_MECHANISM)?;
        let initial = words.next();
        if words.next().is_some() {
            return Err(replies::BAD_AUTH);
        }
        let (exchange, step) = Exchange::begin(mechanism, initial);
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
        let (exchange, step) = exchange.answered(line.strip_suffix(b"\r\n").unwrap_or(line));
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
        match step {
            SaslStep::Challenge(challenge) => {
                self.exchange = exchange.map(Box::new);
                // Writing to a Vec cannot fail.
                let _ = write!(out, "334 {challenge}\r\n");
                Ok(())
            }
            SaslStep::Complete(login) => match owner.authenticate(login, now) {
                Some(Ok(())) => {
                    self.logged_in(out);
                    Ok(())
                }
                Some(Err(reply)) => {
                    self.login_failed(&reply, out);
                    Ok(())
                }
                None => {
                    self.phase = Phase::Authenticating;
                    Ok(())
                }
            },
            SaslStep::Cancelled => Err(replies::AUTH_CANCELLED),
            SaslStep::Malformed => Err(replies::BAD_AUTH_ANSWER),
            SaslStep::OtherIdentity => Err(replies::AUTH_INVALID),
        }
    }

    /// The owner has decided about the login. Input left over may be offered again.
    pub fn handle_authenticated(&mut self, result: Result<(), Reply>, now: Instant, out: &mut Vec<u8>) -> Step {
        if !matches!(self.phase, Phase::Authenticating) {
            return self.step();
        }
        self.phase = Phase::Command;
        match result {
            Ok(()) => self.logged_in(out),
            Err(reply) => self.login_failed(&reply, out),
        }
        self.close_if_over(out);
        self.arm(now);
        self.step()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Recipient;
    use crate::smtp::extensions::SessionConfig;
    use crate::smtp::sasl::Login;
    use crate::smtp::transaction::MailFrom;
    use std::net::SocketAddr;
    use std::sync::Arc;

    /// Knows "good" at once, and decides later about everybody else.
    #[derive(Default)]
    struct Owner {
        asked: Vec<Login>,
    }

    impl Transactions for Owner {
        fn proxied(&mut self, _client: SocketAddr) {}
        fn hello(&mut self, _name: &str, _extended: bool) {}

        fn authenticate(&mut self, login: Login, _now: Now) -> Option<Result<(), Reply>> {
            let known = &*login.name == "good";
            self.asked.push(login);
            known.then_some(Ok(()))
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
        let config = SessionConfig { auth: true, ..crate::smtp::server::tests::config() };
        let mut session = Session::new(Arc::new(config), true, Instant::ZERO);
        let mut owner = Owner::default();
        session.handle_tls_started(Instant::ZERO, &mut Vec::new());
        let (_, hello) = say(&mut session, &mut owner, "EHLO x\r\n");
        assert!(hello.contains("250 AUTH PLAIN LOGIN\r\n"), "{hello}");
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
        assert_eq!((&*owner.asked[0].name, owner.asked[0].secret.expose()), ("late", &b"secret"[..]));
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
}
