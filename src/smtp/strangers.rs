//! What a session makes harder for strangers, who are neither of a trusted network nor logged in: the greeting waits, and
//! whoever speaks before it is refused; names given with HELO and EHLO are looked at; after some errors each further one is
//! answered later. Nothing of it unless it is configured.
//!
//! Not here: who is trusted and how many may be kept waiting, which the owner says. A session that waits is woken by its
//! deadline ([`Session::handle_timeout`]); nothing sleeps.

use crate::address::{check_domain_or_literal, literal_address};
use crate::clock::Instant;
use crate::reply::Reply;
use crate::smtp::replies;
use crate::smtp::server::{Phase, Session, Step, Transactions};
use std::io::Write;
use std::time::Duration;

/// How a listener treats strangers; by default as everybody else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strangers {
    /// How long the greeting waits. Zero: not at all.
    pub greet_delay: Duration,
    /// HELO and EHLO must give a name with a dot in it or an address literal (RFC 5321 4.1.4).
    pub qualified_hello: bool,
    /// They must not give this host's own name or address.
    pub foreign_hello: bool,
    /// When errors are answered later.
    pub tarpit: Option<Tarpit>,
}

/// How errors are answered later.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Tarpit {
    /// After so many errors of a session.
    pub after: u32,
    /// By so much.
    pub delay: Duration,
}

impl Session {
    /// The client is of a network that the listener trusts. To be called before [`Session::start`]; behind a PROXY header
    /// the owner is asked.
    pub fn trust(&mut self) {
        self.trusted = true;
    }

    /// Whether the client is kept waiting: then [`Session::handle_timeout`] is due at the deadline, and not much later.
    pub fn is_waiting(&self) -> bool {
        matches!(self.phase, Phase::Greeting | Phase::Tarpit { .. })
    }

    /// Greets a client that may be greeted: now, or when it has waited for it.
    pub(super) fn greet(&mut self, out: &mut Vec<u8>) {
        if self.trusted || self.config.strangers.greet_delay.is_zero() {
            self.phase = Phase::Command;
            self.write_greeting(out);
        } else {
            self.phase = Phase::Greeting;
        }
    }

    fn write_greeting(&self, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail.
        let _ = write!(out, "220 {} ESMTP ready\r\n", self.config.hostname);
    }

    /// Something came before the greeting (RFC 5321 3.1: a client waits for it).
    pub(super) fn spoke_early<T: Transactions>(&mut self, owner: &mut T, out: &mut Vec<u8>) {
        owner.spoke_early();
        replies::SPOKE_EARLY.write_to(out);
        self.phase = Phase::Closed;
    }

    /// Gives a refusal and counts it, at once or, after too many of a stranger's errors, later.
    pub(super) fn refuse_in_time<T: Transactions>(&mut self, reply: &Reply, owner: &mut T, out: &mut Vec<u8>) {
        let before = out.len();
        self.refuse(reply, out);
        if let Some(tarpit) = self.config.strangers.tarpit
            && self.errors > tarpit.after
            && reply.is_permanent()
            && matches!(self.phase, Phase::Command)
            && !self.is_known(owner)
            && owner.keep_waiting()
        {
            self.phase = Phase::Tarpit { reply: out.split_off(before).into() };
        }
    }

    fn is_known<T: Transactions>(&self, owner: &T) -> bool {
        self.authenticated || owner.trusts_client()
    }

    /// The wait of a client is over.
    pub(super) fn end_wait(&mut self, now: Instant, out: &mut Vec<u8>) -> Step {
        match std::mem::replace(&mut self.phase, Phase::Command) {
            Phase::Greeting => self.write_greeting(out),
            Phase::Tarpit { reply } => out.extend_from_slice(&reply),
            other => self.phase = other,
        }
        self.close_if_over(out);
        self.arm(now);
        self.step()
    }

    /// Ends a wait before its time, since the host stops: whoever waits for the greeting is told so instead of it.
    pub(super) fn cut_wait(&mut self, out: &mut Vec<u8>) {
        if !self.is_waiting() {
            return;
        }
        if let Phase::Tarpit { reply } = std::mem::replace(&mut self.phase, Phase::Command) {
            out.extend_from_slice(&reply);
        }
    }

    /// Whether the listener takes this name of HELO or EHLO. RFC 5321 4.1.4 forbids to refuse mail because a name is not
    /// that of the client's address; it does not forbid to refuse what cannot be anybody's name, or is ours.
    pub(super) fn check_hello<T: Transactions>(&self, name: &str, owner: &T) -> Result<(), Reply> {
        let strangers = &self.config.strangers;
        if !(strangers.qualified_hello || strangers.foreign_hello) || self.is_known(owner) {
            return Ok(());
        }
        if strangers.foreign_hello {
            let own_name = name.trim_end_matches('.').eq_ignore_ascii_case(&self.config.hostname);
            if own_name || literal_address(name).is_some_and(|address| owner.is_own_address(address)) {
                return Err(replies::OWN_HELLO);
            }
        }
        if strangers.qualified_hello && !is_qualified(name) { Err(replies::UNQUALIFIED_HELLO) } else { Ok(()) }
    }
}

/// An address literal, or a domain of several labels whose last is not a number, as in an address without brackets.
fn is_qualified(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    if check_domain_or_literal(name).is_err() {
        return false;
    }
    let last = name.rsplit_once('.').map(|(_, last)| last);
    name.starts_with('[') || last.is_some_and(|last| !last.bytes().all(|octet| octet.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;
    use crate::envelope::Recipient;
    use crate::smtp::extensions::SessionConfig;
    use crate::smtp::transaction::MailFrom;
    use std::net::{IpAddr, SocketAddr};
    use std::sync::Arc;

    const DELAY: Duration = Duration::from_secs(2);

    /// Takes nothing, and keeps so many waiting.
    #[derive(Default)]
    struct Owner {
        trusted: bool,
        room: u32,
        early: u32,
        greeted: Vec<String>,
    }

    impl Transactions for Owner {
        fn proxied(&mut self, client: SocketAddr, _now: Now) -> Result<(), Reply> {
            self.trusted = client.ip() == IpAddr::from([10, 0, 0, 1]);
            Ok(())
        }

        fn trusts_client(&self) -> bool {
            self.trusted
        }

        fn spoke_early(&mut self) {
            self.early += 1;
        }

        fn keep_waiting(&mut self) -> bool {
            let room = self.room > 0;
            self.room = self.room.saturating_sub(1);
            room
        }

        fn is_own_address(&self, address: IpAddr) -> bool {
            address == IpAddr::from([192, 0, 2, 25])
        }

        fn hello(&mut self, name: &str, _extended: bool) {
            self.greeted.push(name.into());
        }

        fn mail(&mut self, _mail: MailFrom, _now: Now) -> Result<(), Reply> {
            Ok(())
        }

        fn recipient(&mut self, _recipient: Recipient, _now: Now) -> Result<(), Reply> {
            Err(Reply::fixed(550, 5, 1, 1, "no"))
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

    struct Talk {
        session: Session,
        owner: Owner,
        now: Now,
    }

    impl Talk {
        fn with(strangers: Strangers, more: impl FnOnce(&mut SessionConfig)) -> Talk {
            let mut config = SessionConfig { strangers, ..crate::smtp::server::tests::config() };
            more(&mut config);
            let session = Session::new(Arc::new(config), false, Instant::ZERO);
            Talk { session, owner: Owner::default(), now: Now::default() }
        }

        fn start(&mut self) -> String {
            let mut out = Vec::new();
            self.session.start(self.now.instant, &mut out);
            String::from_utf8(out).unwrap()
        }

        /// What was taken, the step, and the reply.
        fn say(&mut self, input: &str) -> (usize, Step, String) {
            let mut out = Vec::new();
            let (taken, step) = self.session.handle_input(input.as_bytes(), self.now, &mut self.owner, &mut out);
            (taken, step, String::from_utf8(out).unwrap())
        }

        /// Waits until the deadline.
        fn wait(&mut self) -> (Step, String) {
            let mut out = Vec::new();
            let early = self.session.handle_timeout(self.now.instant, &mut out);
            assert!(out.is_empty() && early != Step::Close, "it is not due yet");
            self.now.instant = self.session.deadline();
            (self.session.handle_timeout(self.now.instant, &mut out), String::from_utf8(out).unwrap())
        }
    }

    fn delayed() -> Strangers {
        Strangers { greet_delay: DELAY, ..Strangers::default() }
    }

    #[test]
    fn a_greeting_waits_and_who_speaks_before_it_is_refused() {
        let mut patient = Talk::with(delayed(), |_| {});
        assert_eq!(patient.start(), "");
        assert!(patient.session.is_waiting());
        assert_eq!(patient.session.deadline(), Instant::ZERO.after(DELAY));
        assert_eq!(patient.say(""), (0, Step::Read, String::new()));
        assert_eq!(patient.wait(), (Step::Read, "220 mx.example.org ESMTP ready\r\n".into()));
        assert!(!patient.session.is_waiting());
        assert_eq!(patient.say("NOOP\r\n").2, "250 2.0.0 OK\r\n");
        assert_eq!(patient.session.deadline(), patient.now.instant.after(Duration::from_secs(300)));

        for early in ["E", "EHLO early\r\nMAIL FROM:<a@b.test>\r\n"] {
            let mut talk = Talk::with(delayed(), |_| {});
            talk.start();
            let (taken, step, reply) = talk.say(early);
            assert_eq!((taken, step), (early.len(), Step::Close));
            assert!(reply.starts_with("554 5.5.1 ") && reply.lines().count() == 1, "{reply}");
            assert!(talk.owner.early == 1 && talk.owner.greeted.is_empty());
        }

        let mut trusted = Talk::with(delayed(), |_| {});
        trusted.session.trust();
        assert!(trusted.start().starts_with("220 "));
    }

    #[test]
    fn behind_a_proxy_and_under_tls_it_waits_as_well() {
        let proxied = || Talk::with(delayed(), |config| config.proxy = true);
        let mut talk = proxied();
        talk.start();
        assert!(!talk.session.is_waiting());
        talk.now.instant = Instant::ZERO.after(Duration::from_secs(9));
        assert_eq!(talk.say("PROXY TCP4 192.0.2.7 192.0.2.1 5 25\r\n").1, Step::Read);
        assert_eq!(talk.session.deadline(), talk.now.instant.after(DELAY));
        assert!(talk.wait().1.starts_with("220 "));
        let mut talk = proxied();
        assert_eq!(talk.say("PROXY TCP4 192.0.2.7 192.0.2.1 5 25\r\nEHLO x\r\n").1, Step::Close);
        let mut talk = proxied();
        assert!(talk.say("PROXY TCP4 10.0.0.1 192.0.2.1 5 25\r\n").2.starts_with("220 "), "of a trusted network");

        let mut talk = Talk::with(delayed(), |_| {});
        talk.session = Session::new(Arc::clone(&talk.session.config), true, Instant::ZERO);
        let mut out = Vec::new();
        talk.session.start(Instant::ZERO, &mut out);
        talk.session.handle_tls_started(Instant::ZERO, &mut out);
        assert!(out.is_empty() && talk.session.is_waiting());
        assert!(talk.wait().1.starts_with("220 "));
    }

    #[test]
    fn a_stop_ends_each_wait() {
        let mut talk = Talk::with(delayed(), |_| {});
        talk.start();
        let mut out = Vec::new();
        assert_eq!(talk.session.handle_shutdown(&mut out), Step::Close);
        assert!(out.starts_with(b"421 4.3.2 "), "{}", out.escape_ascii());
        let mut talk = tarpit(0, 1);
        talk.say("EHLO x\r\nMAIL FROM:<a@b.test>\r\n");
        assert_eq!(talk.say("XYZZY\r\n").1, Step::Wait);
        let mut out = Vec::new();
        assert_eq!(talk.session.handle_shutdown(&mut out), Step::Read, "a transaction is under way");
        assert!(out.starts_with(b"500 5.5.1 ") && !talk.session.is_waiting());
    }

    fn tarpit(after: u32, room: u32) -> Talk {
        let tarpit = Some(Tarpit { after, delay: DELAY });
        let mut talk = Talk::with(Strangers { tarpit, ..Strangers::default() }, |config| config.max_errors = 5);
        talk.start();
        talk.owner.room = room;
        talk
    }

    #[test]
    fn after_some_errors_each_further_one_is_answered_later() {
        let mut talk = tarpit(2, 2);
        let (taken, step, replies) = talk.say("ONE\r\nTWO\r\nTHREE\r\nNOOP\r\n");
        assert_eq!((taken, step), ("ONE\r\nTWO\r\nTHREE\r\n".len(), Step::Wait));
        assert_eq!(replies.matches("500 5.5.1 ").count(), 2);
        assert_eq!(talk.say("NOOP\r\n"), (0, Step::Wait, String::new()), "nothing is taken meanwhile");
        let (step, reply) = talk.wait();
        assert!(step == Step::Read && reply.starts_with("500 5.5.1 ") && reply.lines().count() == 1, "{reply}");
        assert_eq!(talk.say("NOOP\r\n").2, "250 2.0.0 OK\r\n", "what is no error is answered at once");
        assert_eq!(talk.say("FOUR\r\n").1, Step::Wait);
        talk.wait();
        // There is no room for it any more: it is answered at once, and as the last of its session, closed.
        let (_, step, replies) = talk.say("FIVE\r\n");
        assert!(step == Step::Close && replies.starts_with("500 ") && replies.contains("\r\n421 4.7.0 "), "{replies}");

        let mut talk = tarpit(0, 9);
        talk.say("EHLO x\r\nMAIL FROM:<a@b.test>\r\n");
        assert_eq!(talk.say("RCPT TO:<c@d.test>\r\n").1, Step::Wait);
        assert_eq!(talk.wait(), (Step::Read, "550 5.1.1 no\r\n".into()));
        for _ in 0..3 {
            talk.say("XYZZY\r\n");
            talk.wait();
        }
        talk.say("XYZZY\r\n");
        let (step, replies) = talk.wait();
        assert!(step == Step::Close && replies.contains("\r\n421 4.7.0 "), "the last reply closes, too: {replies}");
    }

    #[test]
    fn who_is_known_is_never_kept_waiting() {
        let mut talk = tarpit(0, 9);
        talk.owner.trusted = true;
        assert_eq!(talk.say("ONE\r\nTWO\r\n").1, Step::Read);
        let mut talk = tarpit(0, 9);
        talk.session.authenticated = true;
        assert_eq!(talk.say("ONE\r\nTWO\r\n").1, Step::Read);
    }

    #[test]
    fn names_are_looked_at_where_it_is_wanted() {
        let checked = |qualified_hello, foreign_hello, name: &str| {
            let mut talk = Talk::with(Strangers { qualified_hello, foreign_hello, ..Strangers::default() }, |_| {});
            talk.start();
            let (_, _, reply) = talk.say(&format!("EHLO {name}\r\n"));
            assert_eq!(talk.owner.greeted.is_empty(), !reply.starts_with("250"), "{name}");
            reply[..3].to_owned()
        };
        for (name, qualified, foreign) in [
            ("client.example", "250", "250"),
            ("client.example.", "250", "250"),
            ("my_host.example", "250", "250"),
            ("[192.0.2.7]", "250", "250"),
            ("[IPv6:2001:db8::7]", "250", "250"),
            ("localhost", "504", "250"),
            ("192.0.2.7", "504", "250"),
            ("[192.0.2]", "504", "250"),
            ("-.example", "504", "250"),
            ("client..example", "504", "250"),
            ("MX.example.org", "250", "550"),
            ("mx.example.org.", "250", "550"),
            ("[192.0.2.25]", "250", "550"),
        ] {
            assert_eq!((&*checked(true, false, name), &*checked(false, true, name)), (qualified, foreign), "{name}");
            assert_eq!(checked(false, false, name), "250");
        }
        let mut talk = Talk::with(Strangers { qualified_hello: true, ..Strangers::default() }, |_| {});
        talk.start();
        talk.owner.trusted = true;
        assert!(talk.say("EHLO localhost\r\n").2.starts_with("250"));
        // A refusal leaves everything as it was (RFC 5321 4.1.4).
        talk.owner.trusted = false;
        assert!(talk.say("HELO localhost\r\n").2.starts_with("504 5.5.2 "));
        assert!(talk.say("MAIL FROM:<a@b.test>\r\n").2.starts_with("250 "));
    }
}
