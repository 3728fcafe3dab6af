//! One SMTP session as a server sees it (RFC 5321): bytes of the client and the time in; replies, questions to the
//! owner ([`Transactions`]) and the next [`Step`] out.
//!
//! Not here: sockets, TLS, storing, and who may send what. Whatever the client sends is answered with a reply; what
//! goes beyond a bound ends the session with 421. A session holds memory beyond itself only for a line that has begun.

use crate::clock::{Instant, Now};
use crate::id::MessageId;
use crate::limits::{AUTH_TIMEOUT, HANDSHAKE_TIMEOUT, SESSION_REPLIES_OCTETS_MAX};
use crate::reply::Reply;
use crate::smtp::command::{self, Command};
use crate::smtp::data::{Framing, Scanner};
use crate::smtp::line::{Framed, LineFault, LineReader, LongLines};
use crate::smtp::parameters;
use crate::smtp::proxy::ProxyReader;
use crate::smtp::replies;
use crate::smtp::sasl::Exchange;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

pub use crate::smtp::data::BareNewlines;
pub use crate::smtp::extensions::SessionConfig;
pub use crate::smtp::strangers::{Strangers, Tarpit};
pub use crate::smtp::transaction::{Bounds, MailFrom, Transactions};

/// What the session needs next.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// More input.
    Read,
    /// [`Session::handle_stored`]; input is not taken before.
    AwaitStorage,
    /// [`Session::handle_authenticated`]; input is not taken before.
    AwaitAuthentication,
    /// [`Session::handle_timeout`] at the deadline; input is not taken before.
    Wait,
    /// Send the replies, run the handshake, then [`Session::handle_tls_started`].
    StartTls,
    /// The client begins with its handshake: what is not taken of the input is the start of that.
    BeginTls,
    /// Send the replies and close.
    Close,
}

/// What the next octets are, or why none are taken.
#[derive(Debug)]
pub(super) enum Phase {
    /// A PROXY header.
    Proxy(Box<ProxyReader>),
    /// Nothing: the greeting waits.
    Greeting,
    /// A command line.
    Command,
    /// The reply to an error waits.
    Tarpit { reply: Box<[u8]> },
    /// Content after DATA.
    Data,
    /// A chunk after BDAT.
    Chunk { octets: u64, left: u64, last: bool },
    /// The owner stores the message.
    Storing,
    /// The owner judges a login.
    Authenticating,
    /// The client was told to start TLS; `injected`: it has sent something behind that in the clear.
    StartTls { injected: bool },
    /// A handshake comes first, at once or behind a PROXY header.
    Handshake,
    /// The end.
    Closed,
}

/// The transaction under way, in so far as the session must know it.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// MAIL was accepted.
    pub(super) open: bool,
    /// MAIL had SMTPUTF8.
    pub(super) utf8: bool,
    /// RCPT was tried.
    pub(super) recipient_tried: bool,
    /// Recipients accepted.
    pub(super) recipients: u32,
    /// The content, once it has begun.
    pub(super) scanner: Option<Scanner>,
    /// Octets of content given to the owner.
    pub(super) octets: u64,
    /// So many there may be.
    pub(super) max_octets: u64,
    /// And so many recipients.
    pub(super) max_recipients: u32,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    pub(super) config: Arc<SessionConfig>,
    lines: LineReader,
    pub(super) phase: Phase,
    pub(super) transaction: Transaction,
    /// Why the content under way is skipped, or the chunk of a BDAT that came out of turn.
    pub(super) refusal: Option<Reply>,
    deadline: Instant,
    /// When the content under way must have come whole.
    pub(super) content_deadline: Instant,
    /// The login under way: the next line is its next answer.
    pub(super) exchange: Option<Box<Exchange>>,
    commands: u32,
    pub(super) errors: u32,
    transactions: u32,
    pub(super) failed_logins: u8,
    pub(super) tls: bool,
    pub(super) greeted: bool,
    pub(super) authenticated: bool,
    pub(super) trusted: bool,
    shutting_down: bool,
}

const _: () = assert!(size_of::<Session>() <= 256, "an idle connection must cost little");

impl Session {
    /// A session that has just been accepted; `tls`: under TLS from its start, but for a PROXY header.
    pub fn new(config: Arc<SessionConfig>, tls: bool, now: Instant) -> Session {
        let phase = match (config.proxy, tls) {
            (true, _) => Phase::Proxy(Box::default()),
            (false, true) => Phase::Handshake,
            (false, false) => Phase::Command,
        };
        Session {
            deadline: now.after(config.command_timeout.min(HANDSHAKE_TIMEOUT)),
            config,
            lines: LineReader::default(),
            phase,
            transaction: Transaction::default(),
            refusal: None,
            content_deadline: Instant::MAX,
            exchange: None,
            commands: 0,
            errors: 0,
            transactions: 0,
            failed_logins: 0,
            tls,
            greeted: false,
            authenticated: false,
            trusted: false,
            shutting_down: false,
        }
    }

    /// Greets, unless a PROXY header or a handshake must come first (RFC 5321 3.1). To be called once, before any input.
    pub fn start(&mut self, now: Instant, out: &mut Vec<u8>) {
        if matches!(self.phase, Phase::Command) {
            self.greet(out);
            self.arm(now);
        }
    }

    /// Takes input and appends replies to `out`. The rest of what is not taken is to be offered again when the step is
    /// done; after `Read`, when the replies are sent: there were more than [`SESSION_REPLIES_OCTETS_MAX`].
    pub fn handle_input<T: Transactions>(
        &mut self,
        input: &[u8],
        now: Now,
        owner: &mut T,
        out: &mut Vec<u8>,
    ) -> (usize, Step) {
        let mut done = 0;
        let mut progress = false;
        let replies_before = out.len();
        loop {
            let rest = &input[done..];
            let (consumed, advanced) = match self.phase {
                Phase::Proxy(_) => self.take_proxy(rest, now, owner, out),
                Phase::Greeting if rest.is_empty() => return (done, Step::Read),
                Phase::Greeting => {
                    self.spoke_early(owner, out);
                    (rest.len(), true)
                }
                Phase::Command => self.take_line(rest, now, owner, out),
                Phase::Tarpit { .. } => return (done, Step::Wait),
                Phase::Data => (self.take_data(rest, now, owner, out), !rest.is_empty()),
                Phase::Chunk { .. } => (self.take_chunk(rest, now, owner, out), !rest.is_empty()),
                Phase::StartTls { injected } => {
                    // RFC 3207 4.2, and the attack of CVE-2011-0411: nothing said before TLS may count after it.
                    self.errors += u32::from(!injected && !rest.is_empty());
                    self.phase = Phase::StartTls { injected: injected || !rest.is_empty() };
                    return (input.len(), Step::StartTls);
                }
                Phase::Handshake => return (done, Step::BeginTls),
                Phase::Storing => return (done, Step::AwaitStorage),
                Phase::Authenticating => return (done, Step::AwaitAuthentication),
                Phase::Closed => return (input.len(), Step::Close),
            };
            done += consumed;
            progress |= advanced;
            if advanced {
                self.close_if_due(owner, out);
            }
            if self.step() != Step::Read || self.is_waiting() {
                self.arm(now.instant);
            } else if done == input.len() {
                if progress {
                    self.arm(now.instant);
                }
                return (done, Step::Read);
            } else if out.len() - replies_before >= SESSION_REPLIES_OCTETS_MAX {
                // Many short commands can ask for much: the peer is to take these replies before it gets more.
                self.arm(now.instant);
                return (done, Step::Read);
            }
        }
    }

    /// The message whose content has ended was stored, or not. Input left over may be offered again.
    pub fn handle_stored(&mut self, result: Result<MessageId, Reply>, now: Instant, out: &mut Vec<u8>) -> Step {
        if !matches!(self.phase, Phase::Storing) {
            return self.step();
        }
        self.phase = Phase::Command;
        self.end_transaction();
        match result {
            // Writing to a Vec cannot fail.
            Ok(id) => drop(write!(out, "250 2.0.0 OK: queued as {id}\r\n")),
            Err(reply) => self.refuse(&reply, out),
        }
        self.close_if_over(out);
        self.arm(now);
        self.step()
    }

    /// The handshake is done: all that was said before is forgotten (RFC 3207 4.2) but for what counts as abuse. Greets
    /// where the handshake came first.
    pub fn handle_tls_started(&mut self, now: Instant, out: &mut Vec<u8>) {
        let greets = matches!(self.phase, Phase::Handshake);
        self.tls = true;
        self.greeted = false;
        self.exchange = None;
        self.lines.clear();
        self.end_transaction();
        if greets {
            self.greet(out);
        } else if !matches!(self.phase, Phase::Closed) {
            self.phase = Phase::Command;
        }
        self.arm(now);
    }

    /// To be called when the deadline has passed. On `Close` the owner forgets the transaction by itself.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Vec<u8>) -> Step {
        if now < self.deadline {
            return self.step();
        }
        match self.phase {
            Phase::Storing | Phase::Closed => return self.step(),
            Phase::Greeting | Phase::Tarpit { .. } => return self.end_wait(now, out),
            Phase::Authenticating => {
                self.close(out, "4.7.0", "the login was not checked in time; connect again later");
            }
            // Whoever has not said who the client is, or is within a handshake, would not understand.
            Phase::Proxy(_) | Phase::StartTls { .. } | Phase::Handshake => self.phase = Phase::Closed,
            Phase::Command if self.transaction.scanner.is_none() => {
                self.close(out, "4.4.2", "no command came in time; connect again");
            }
            Phase::Command | Phase::Data | Phase::Chunk { .. } => {
                self.close(out, "4.4.2", "the message did not come in time; send it again");
            }
        }
        Step::Close
    }

    /// When [`Session::handle_timeout`] is due. Never while the owner stores a message.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The host stops: a session between transactions ends with 421 (RFC 5321 3.8), another one after its transaction.
    pub fn handle_shutdown(&mut self, out: &mut Vec<u8>) -> Step {
        self.shutting_down = true;
        if matches!(self.phase, Phase::StartTls { .. } | Phase::Handshake) {
            self.phase = Phase::Closed;
        }
        self.cut_wait(out);
        self.close_if_over(out);
        self.step()
    }

    /// Whether nothing is under way: no transaction, no line that has begun, no handshake.
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Command)
            && !self.transaction.open
            && self.exchange.is_none()
            && !self.lines.is_partial()
    }

    pub(super) fn step(&self) -> Step {
        match self.phase {
            Phase::Proxy(_) | Phase::Greeting | Phase::Command | Phase::Data | Phase::Chunk { .. } => Step::Read,
            Phase::Tarpit { .. } => Step::Wait,
            Phase::Storing => Step::AwaitStorage,
            Phase::Authenticating => Step::AwaitAuthentication,
            Phase::StartTls { .. } => Step::StartTls,
            Phase::Handshake => Step::BeginTls,
            Phase::Closed => Step::Close,
        }
    }

    pub(super) fn arm(&mut self, now: Instant) {
        let config = &self.config;
        self.deadline = match self.phase {
            Phase::Storing | Phase::Closed => Instant::MAX,
            Phase::Authenticating => now.after(AUTH_TIMEOUT),
            Phase::Greeting => now.after(config.strangers.greet_delay),
            Phase::Tarpit { .. } => now.after(config.strangers.tarpit.map_or(Duration::ZERO, |tarpit| tarpit.delay)),
            Phase::Data | Phase::Chunk { .. } => now.after(config.data_timeout).min(self.content_deadline),
            // Between chunks the message is still coming.
            Phase::Command if self.transaction.scanner.is_some() => {
                now.after(config.command_timeout).min(self.content_deadline)
            }
            Phase::Command => now.after(config.command_timeout),
            Phase::Proxy(_) | Phase::StartTls { .. } | Phase::Handshake => {
                now.after(config.command_timeout.min(HANDSHAKE_TIMEOUT))
            }
        };
    }

    /// Ends the session with 421, which may come at any time (RFC 5321 3.8).
    pub(super) fn close(&mut self, out: &mut Vec<u8>, enhanced: &str, text: &str) {
        // Writing to a Vec cannot fail.
        let _ = write!(out, "421 {enhanced} {} {text}\r\n", self.config.hostname);
        self.phase = Phase::Closed;
    }

    /// Gives a refusal and counts it. An owner's 421 is a wish to close (RFC 5321 4.2.2).
    pub(super) fn refuse(&mut self, reply: &Reply, out: &mut Vec<u8>) {
        reply.write_to(out);
        self.errors += u32::from(reply.is_permanent());
        if reply.code == 421 {
            self.phase = Phase::Closed;
        }
    }

    /// After each command and each content: too many errors, or the shutdown's turn.
    fn close_if_due<T: Transactions>(&mut self, owner: &mut T, out: &mut Vec<u8>) {
        self.close_if_over(out);
        if matches!(self.phase, Phase::Closed) {
            self.abort(owner);
        }
    }

    pub(super) fn close_if_over(&mut self, out: &mut Vec<u8>) {
        if !matches!(self.phase, Phase::Command | Phase::Proxy(_)) {
            return;
        }
        if self.errors >= self.config.max_errors.max(1) {
            self.close(out, "4.7.0", "too many errors; correct the commands refused above and connect again");
        } else if self.shutting_down && !self.transaction.open {
            self.close(out, "4.3.2", "shutting down; connect again later");
        }
    }

    /// Tells the owner that the transaction is over, if there is one.
    fn abort<T: Transactions>(&mut self, owner: &mut T) {
        if self.transaction.open && self.refusal.is_none() {
            owner.abort();
        }
        self.end_transaction();
    }

    pub(super) fn end_transaction(&mut self) {
        self.transaction = Transaction::default();
        self.refusal = None;
        self.content_deadline = Instant::MAX;
    }

    fn take_proxy<T: Transactions>(
        &mut self,
        input: &[u8],
        now: Now,
        owner: &mut T,
        out: &mut Vec<u8>,
    ) -> (usize, bool) {
        let Phase::Proxy(reader) = &mut self.phase else { return (0, false) };
        match reader.handle_input(input) {
            Ok((consumed, None)) => (consumed, false),
            Ok((consumed, Some(client))) => {
                if let Some(Err(reply)) = client.map(|client| owner.proxied(client, now)) {
                    // Whoever is about to begin with a handshake would not understand.
                    if !self.tls {
                        reply.write_to(out);
                    }
                    self.phase = Phase::Closed;
                } else {
                    self.trusted |= owner.trusts_client();
                    if self.tls { self.phase = Phase::Handshake } else { self.greet(out) }
                }
                (consumed, true)
            }
            Err(_) => {
                self.phase = Phase::Closed;
                (input.len(), true)
            }
        }
    }

    /// Takes one line. The flag tells whether one was whole, so that trickling octets put off no deadline.
    fn take_line<T: Transactions>(
        &mut self,
        input: &[u8],
        now: Now,
        owner: &mut T,
        out: &mut Vec<u8>,
    ) -> (usize, bool) {
        let long = match &self.exchange {
            Some(_) => LongLines::Answer,
            None if self.may_log_in() => LongLines::Auth,
            None => LongLines::None,
        };
        let (consumed, framed) = self.lines.handle_input(input, long);
        if matches!(framed, Framed::Partial) {
            return (consumed, false);
        }
        self.commands = self.commands.saturating_add(1);
        if self.commands > self.config.max_commands {
            self.close(out, "4.7.0", "too many commands in one session; connect again for more");
            return (consumed, true);
        }
        let result = match &framed {
            Framed::Fault(LineFault::TooLong) => Err(replies::LINE_TOO_LONG),
            Framed::Fault(LineFault::BareNewline) => Err(replies::BARE_NEWLINE_IN_LINE),
            Framed::Fault(LineFault::Nul) => Err(replies::NUL_IN_LINE),
            Framed::Line(line) if self.exchange.is_some() => match self.exchange.take() {
                Some(exchange) => self.auth_answer(*exchange, line, now, owner, out),
                None => Ok(()),
            },
            Framed::Line(line) => command::read(line).and_then(|command| self.obey(command, now, owner, out)),
            Framed::Partial => Ok(()),
        };
        if let Err(reply) = result {
            self.end_exchange(owner);
            self.refuse_in_time(&reply, owner, out);
        }
        (consumed, true)
    }

    /// Does one command; what it may not do now, or the owner refuses, is the error.
    fn obey<T: Transactions>(
        &mut self,
        command: Command<'_>,
        now: Now,
        owner: &mut T,
        out: &mut Vec<u8>,
    ) -> Result<(), Reply> {
        match command {
            Command::Hello { name, extended } => return self.hello(name, extended, owner, out),
            Command::Mail(arguments) => return self.mail(arguments, now, owner, out),
            Command::Recipient(arguments) => return self.recipient(arguments, now, owner, out),
            Command::Data => return self.data(now, owner, out),
            Command::Bdat { octets, last } => return self.bdat(octets, last, now, owner, out),
            Command::StartTls => return self.start_tls(out),
            Command::Auth(arguments) => return self.auth(arguments, now, owner, out),
            Command::Reset => {
                self.abort(owner);
                out.extend_from_slice(replies::OK);
            }
            Command::Noop => out.extend_from_slice(replies::OK),
            Command::Verify => replies::NOT_VERIFIED.write_to(out),
            Command::Help => replies::HELP.write_to(out),
            Command::Quit => {
                self.abort(owner);
                out.extend_from_slice(replies::GOODBYE);
                self.phase = Phase::Closed;
            }
        }
        Ok(())
    }

    /// RFC 5321 4.1.4: it resets as RSET does.
    fn hello<T: Transactions>(
        &mut self,
        name: &str,
        extended: bool,
        owner: &mut T,
        out: &mut Vec<u8>,
    ) -> Result<(), Reply> {
        self.check_hello(name, owner)?;
        self.abort(owner);
        owner.hello(name, extended);
        self.greeted = true;
        if extended {
            self.config.write_ehlo(self.tls, &owner.channel(), owner.bounds(None), out);
        } else {
            // Writing to a Vec cannot fail.
            let _ = write!(out, "250 {}\r\n", self.config.hostname);
        }
        Ok(())
    }

    fn mail<T: Transactions>(
        &mut self,
        arguments: &[u8],
        now: Now,
        owner: &mut T,
        out: &mut Vec<u8>,
    ) -> Result<(), Reply> {
        // RFC 5321 4.1.4: no mail before a greeting, no transaction within another.
        if !self.greeted {
            return Err(replies::HELLO_FIRST);
        }
        if self.transaction.open {
            return Err(replies::NESTED_MAIL);
        }
        let mail = parameters::mail(arguments, self.config.offered(self.tls))?;
        // RFC 1870 6.1: refused now, before the content is sent in vain.
        let bounds = owner.bounds(mail.reverse_path.as_ref());
        let (max_octets, max_recipients) = self.config.bounded(bounds);
        if mail.size.is_some_and(|size| size > max_octets) {
            return Err(replies::TOO_BIG);
        }
        if self.transactions >= self.config.max_transactions {
            self.close(out, "4.7.0", "too many messages in one session; connect again for more");
            return Ok(());
        }
        let utf8 = mail.smtputf8;
        owner.mail(mail, now)?;
        self.transactions += 1;
        self.transaction = Transaction { open: true, utf8, max_octets, max_recipients, ..Transaction::default() };
        out.extend_from_slice(replies::SENDER_OK);
        Ok(())
    }

    fn recipient<T: Transactions>(
        &mut self,
        arguments: &[u8],
        now: Now,
        owner: &mut T,
        out: &mut Vec<u8>,
    ) -> Result<(), Reply> {
        if !self.transaction.open {
            return Err(replies::MAIL_FIRST);
        }
        if self.transaction.scanner.is_some() {
            return Err(replies::CHUNKS_UNDER_WAY);
        }
        self.transaction.recipient_tried = true;
        let config = &self.config;
        let recipient =
            parameters::recipient(arguments, config.offered(self.tls), self.transaction.utf8, &config.hostname)?;
        // RFC 5321 4.5.3.1.10: 452, and what was accepted stays so.
        if self.transaction.recipients >= self.transaction.max_recipients {
            return Err(replies::TOO_MANY_RECIPIENTS);
        }
        owner.recipient(recipient, now)?;
        self.transaction.recipients += 1;
        out.extend_from_slice(replies::RECIPIENT_OK);
        Ok(())
    }

    /// Whether content may come. RFC 5321 3.3: 503 without MAIL or RCPT, 554 if all recipients were refused.
    pub(super) fn check_recipients(&self) -> Result<(), Reply> {
        match &self.transaction {
            Transaction { open: false, .. } => Err(replies::MAIL_FIRST),
            Transaction { recipients: 0, recipient_tried: false, .. } => Err(replies::RECIPIENT_FIRST),
            Transaction { recipients: 0, .. } => Err(replies::NO_RECIPIENTS),
            _ => Ok(()),
        }
    }

    fn data<T: Transactions>(&mut self, now: Now, owner: &mut T, out: &mut Vec<u8>) -> Result<(), Reply> {
        // RFC 3030 2: DATA after BDAT is out of sequence.
        if self.transaction.scanner.is_some() {
            return Err(replies::CHUNKS_UNDER_WAY);
        }
        self.check_recipients()?;
        if let Err(reply) = owner.begin_content(now) {
            self.abort(owner);
            return Err(reply);
        }
        self.begin_content(Framing::Dots, now);
        self.phase = Phase::Data;
        out.extend_from_slice(replies::START_CONTENT);
        Ok(())
    }

    /// RFC 3207 4.
    fn start_tls(&mut self, out: &mut Vec<u8>) -> Result<(), Reply> {
        if self.tls {
            return Err(replies::TLS_ACTIVE);
        }
        if !self.config.starttls {
            return Err(replies::NOT_IMPLEMENTED);
        }
        if self.transaction.open {
            return Err(replies::NO_TLS_NOW);
        }
        self.phase = Phase::StartTls { injected: false };
        out.extend_from_slice(replies::START_TLS);
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::envelope::Recipient;
    use proptest::prelude::*;
    use std::net::SocketAddr;
    use std::time::Duration;

    /// An owner that takes all but what names say: see each method.
    #[derive(Debug, Default)]
    struct Owner {
        calls: Vec<String>,
        content: Vec<u8>,
        sender: String,
        open: bool,
    }

    /// A client of this port is refused.
    const REFUSED_PORT: u16 = 421;

    impl Owner {
        fn answer(&self, name: &str, code: u16) -> Result<(), Reply> {
            if self.sender.starts_with(name) { Err(Reply::new(code, (5, 0, 0), name)) } else { Ok(()) }
        }
    }

    impl Transactions for Owner {
        fn proxied(&mut self, client: SocketAddr, _now: Now) -> Result<(), Reply> {
            assert!(self.calls.is_empty());
            self.calls.push(format!("proxied {client}"));
            if client.port() == REFUSED_PORT { Err(Reply::new(421, (4, 7, 0), "too often")) } else { Ok(()) }
        }

        fn hello(&mut self, name: &str, extended: bool) {
            assert!(!self.open);
            self.calls.push(format!("hello {name} {extended}"));
        }

        fn mail(&mut self, mail: MailFrom, _now: Now) -> Result<(), Reply> {
            assert!(!self.open);
            self.calls.push(format!("{mail:?}"));
            self.sender = mail.reverse_path.map(|path| path.to_string()).unwrap_or_default();
            self.answer("mail", 550)?;
            self.open = true;
            Ok(())
        }

        fn recipient(&mut self, recipient: Recipient, _now: Now) -> Result<(), Reply> {
            assert!(self.open);
            self.calls.push(format!("{recipient:?}"));
            if recipient.address.as_str().starts_with("no") { Err(Reply::new(550, (5, 1, 1), "no")) } else { Ok(()) }
        }

        fn begin_content(&mut self, _now: Now) -> Result<(), Reply> {
            assert!(self.open);
            self.content.clear();
            self.calls.push("begin".into());
            self.answer("begin", 452)
        }

        fn content(&mut self, bytes: &[u8]) -> Result<(), Reply> {
            assert!(self.open && !bytes.is_empty());
            self.answer("content", 552)?;
            self.content.extend_from_slice(bytes);
            Ok(())
        }

        fn end_content(&mut self, _now: Now) -> Result<(), Reply> {
            assert!(self.open);
            self.calls.push(format!("end {}", self.content.escape_ascii()));
            self.answer("end", 554)?;
            self.open = false;
            Ok(())
        }

        fn abort(&mut self) {
            assert!(self.open);
            self.open = false;
            self.calls.push(format!("abort {}", self.content.escape_ascii()));
            self.content.clear();
        }
    }

    pub(in crate::smtp) fn config() -> SessionConfig {
        SessionConfig {
            hostname: "mx.example.org".into(),
            max_message_size: 100,
            starttls: true,
            auth: false,
            mechanisms: Default::default(),
            auth_in_clear: false,
            bare_newlines: BareNewlines::Refuse,
            proxy: false,
            strangers: Default::default(),
            max_recipients: 2,
            max_commands: 100,
            max_errors: 100,
            max_transactions: 100,
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(180),
            message_timeout: Duration::from_secs(600),
            chunking: true,
            dsn: true,
            smtputf8: true,
            pipelining: true,
        }
    }

    fn at(seconds: u64) -> Now {
        Now { instant: Instant::ZERO.after(Duration::from_secs(seconds)), ..Now::default() }
    }

    /// A session, its owner and what it has replied.
    struct Talk {
        session: Session,
        owner: Owner,
        out: Vec<u8>,
        stored: u64,
    }

    impl Talk {
        fn new(config: SessionConfig) -> Talk {
            let session = Session::new(Arc::new(config), false, at(0).instant);
            let mut talk = Talk { session, owner: Owner::default(), out: Vec::new(), stored: 0 };
            talk.session.start(at(0).instant, &mut talk.out);
            talk
        }

        /// Gives all of `input`, storing what is to be stored, and returns the last step.
        fn say_at(&mut self, input: &[u8], now: Now) -> Step {
            let mut rest = input;
            loop {
                let (consumed, step) = self.session.handle_input(rest, now, &mut self.owner, &mut self.out);
                rest = &rest[consumed..];
                match step {
                    Step::Read => assert!(rest.is_empty()),
                    Step::AwaitStorage => {
                        self.stored += 1;
                        let result = Ok(MessageId(self.stored));
                        self.session.handle_stored(result, now.instant, &mut self.out);
                    }
                    Step::StartTls | Step::BeginTls | Step::AwaitAuthentication | Step::Wait | Step::Close => {
                        return step;
                    }
                }
                if rest.is_empty() {
                    return self.session.step();
                }
            }
        }

        fn say(&mut self, input: &str) -> Step {
            self.say_at(input.as_bytes(), at(0))
        }

        fn replies(&mut self) -> String {
            String::from_utf8(std::mem::take(&mut self.out)).unwrap()
        }
    }

    const OPENING: &str = "EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n";

    #[test]
    fn many_short_commands_with_long_replies_are_taken_in_parts() {
        let mut talk = Talk::new(SessionConfig { max_commands: 5000, ..config() });
        talk.replies();
        let input = b"HELP\r\n".repeat(5000);
        let (mut done, mut replies) = (0, 0);
        while done < input.len() {
            let (taken, step) = talk.session.handle_input(&input[done..], at(0), &mut talk.owner, &mut talk.out);
            assert!(step == Step::Read && taken > 0 && talk.out.len() <= SESSION_REPLIES_OCTETS_MAX + 1024);
            done += taken;
            replies += talk.replies().lines().filter(|line| line.starts_with("214 ")).count();
        }
        assert_eq!(replies, 5000);
    }

    #[test]
    fn input_behind_content_waits_for_storage() {
        let mut talk = Talk::new(config());
        let input = format!("{OPENING}DATA\r\nx\r\n.\r\nNOOP\r\n").into_bytes();
        let (consumed, step) = talk.session.handle_input(&input, at(0), &mut talk.owner, &mut talk.out);
        assert_eq!((consumed, step), (input.len() - 6, Step::AwaitStorage));
        assert!(talk.replies().ends_with("354 Start mail input; end with CRLF.CRLF\r\n"));
        assert_eq!(talk.session.deadline(), Instant::MAX);
        let again = talk.session.handle_input(&input[consumed..], at(0), &mut talk.owner, &mut talk.out);
        assert_eq!(again, (0, Step::AwaitStorage));
        assert_eq!(talk.session.handle_timeout(Instant::MAX, &mut talk.out), Step::AwaitStorage);
        assert!(talk.out.is_empty() && !talk.session.is_idle());
        let refused = Err(Reply::fixed(451, 4, 3, 0, "Try again"));
        assert_eq!(talk.session.handle_stored(refused, at(1).instant, &mut talk.out), Step::Read);
        assert_eq!(talk.session.handle_stored(Ok(MessageId(1)), at(1).instant, &mut talk.out), Step::Read);
        assert_eq!(talk.say("NOOP\r\n"), Step::Read);
        assert_eq!(talk.replies(), "451 4.3.0 Try again\r\n250 2.0.0 OK\r\n");
        assert!(talk.session.is_idle());
    }

    #[test]
    fn deadlines() {
        let mut talk = Talk::new(config());
        assert_eq!(talk.session.deadline(), at(300).instant);
        talk.say_at(b"EHLO c\r\n", at(10));
        assert_eq!(talk.session.deadline(), at(310).instant);
        talk.say_at(b"MAIL FR", at(20));
        assert_eq!(talk.session.deadline(), at(310).instant, "a line that trickles in gains no time");
        talk.say_at(b"OM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n", at(30));
        assert_eq!(talk.session.deadline(), at(210).instant);
        talk.say_at(b"x", at(200));
        assert_eq!(talk.session.deadline(), at(380).instant);
        talk.say_at(b"x", at(600));
        assert_eq!(talk.session.deadline(), at(630).instant, "the whole message has its own time");
        talk.replies();
        assert_eq!(talk.session.handle_timeout(at(629).instant, &mut talk.out), Step::Read);
        assert_eq!(talk.session.handle_timeout(at(630).instant, &mut talk.out), Step::Close);
        assert_eq!(talk.replies(), "421 4.4.2 mx.example.org the message did not come in time; send it again\r\n");
        assert_eq!(talk.session.handle_timeout(at(999).instant, &mut talk.out), Step::Close);
        assert_eq!(talk.say("NOOP\r\n"), Step::Close);
        assert!(talk.out.is_empty());
    }

    #[test]
    fn slow_chunks_run_out_of_time() {
        let mut talk = Talk::new(config());
        talk.say_at(OPENING.as_bytes(), at(0));
        for second in [0, 250, 500] {
            assert_eq!(talk.say_at(b"BDAT 1\r\nx", at(second)), Step::Read);
        }
        assert_eq!(talk.session.deadline(), at(600).instant);
        talk.replies();
        assert_eq!(talk.session.handle_timeout(at(600).instant, &mut talk.out), Step::Close);
        assert!(talk.replies().starts_with("421 4.4.2 "));
    }

    #[test]
    fn waiting_for_a_command_ends() {
        let mut talk = Talk::new(config());
        talk.replies();
        assert_eq!(talk.session.handle_timeout(at(300).instant, &mut talk.out), Step::Close);
        assert_eq!(talk.replies(), "421 4.4.2 mx.example.org no command came in time; connect again\r\n");
    }

    #[test]
    fn shutdown_waits_for_the_transaction() {
        let mut talk = Talk::new(config());
        talk.say(OPENING);
        talk.replies();
        assert_eq!(talk.session.handle_shutdown(&mut talk.out), Step::Read);
        assert!(talk.out.is_empty());
        assert_eq!(talk.say("DATA\r\nx\r\n.\r\nNOOP\r\n"), Step::Close);
        assert_eq!(
            talk.replies(),
            "354 Start mail input; end with CRLF.CRLF\r\n250 2.0.0 OK: queued as 0000000000001\r\n\
             421 4.3.2 mx.example.org shutting down; connect again later\r\n"
        );
        let mut talk = Talk::new(config());
        talk.replies();
        assert_eq!(talk.session.handle_shutdown(&mut talk.out), Step::Close);
        assert_eq!(talk.replies(), "421 4.3.2 mx.example.org shutting down; connect again later\r\n");
        let mut talk = Talk::new(config());
        talk.say(OPENING);
        talk.session.handle_shutdown(&mut talk.out);
        assert_eq!(talk.say("RSET\r\n"), Step::Close);
        assert!(
            talk.replies().ends_with("250 2.0.0 OK\r\n421 4.3.2 mx.example.org shutting down; connect again later\r\n")
        );
    }

    #[test]
    fn tls_forgets_what_was_said_before() {
        let mut talk = Talk::new(config());
        talk.say("EHLO c\r\n");
        talk.replies();
        assert_eq!(talk.say("STARTTLS\r\nMAIL FROM:<evil@x>\r\n"), Step::StartTls);
        assert_eq!(talk.say("more"), Step::StartTls);
        assert_eq!(talk.replies(), "220 2.0.0 Ready to start TLS\r\n");
        assert_eq!(talk.session.errors, 1);
        talk.session.handle_tls_started(at(5).instant, &mut talk.out);
        assert_eq!(talk.session.deadline(), at(305).instant);
        assert_eq!(talk.say("MAIL FROM:<a@b>\r\nSTARTTLS\r\nEHLO c\r\n"), Step::Read);
        let replies = talk.replies();
        assert!(replies.starts_with("503 5.5.1 Send EHLO or HELO first\r\n503 5.5.1 TLS is already active"));
        assert!(replies.ends_with("250 LIMITS MAILMAX=100 RCPTMAX=2\r\n"));
        assert_eq!(talk.owner.calls, ["hello c true", "hello c true"]);
    }

    #[test]
    fn a_proxy_speaks_first() {
        let proxied = || Talk::new(SessionConfig { proxy: true, ..config() });
        let mut talk = proxied();
        assert!(talk.out.is_empty());
        assert_eq!(talk.say("PROXY TCP4 192.0.2.7 192.0.2.1 5 25\r\nNOOP\r\n"), Step::Read);
        assert_eq!(talk.replies(), "220 mx.example.org ESMTP ready\r\n250 2.0.0 OK\r\n");
        assert_eq!(talk.owner.calls, ["proxied 192.0.2.7:5"]);
        let mut talk = proxied();
        assert_eq!(talk.say("PROXY UNKNOWN\r\n"), Step::Read);
        assert!(talk.owner.calls.is_empty() && !talk.out.is_empty());
        let mut talk = proxied();
        assert_eq!(talk.say("EHLO c\r\n"), Step::Close);
        assert!(talk.out.is_empty());
        let refused = format!("PROXY TCP4 192.0.2.7 192.0.2.1 {REFUSED_PORT} 25\r\nNOOP\r\n");
        let mut talk = proxied();
        assert_eq!(talk.say(&refused), Step::Close);
        assert_eq!(talk.replies(), "421 4.7.0 too often\r\n");
        let mut talk = proxied();
        assert_eq!(talk.session.handle_timeout(at(300).instant, &mut talk.out), Step::Close);
        assert!(talk.out.is_empty());
    }

    #[test]
    fn what_follows_a_proxy_header_may_be_a_handshake() {
        let config = || Arc::new(SessionConfig { proxy: true, ..config() });
        let (mut session, mut owner, mut out) =
            (Session::new(config(), true, at(0).instant), Owner::default(), Vec::new());
        session.start(at(0).instant, &mut out);
        let header = b"PROXY TCP4 192.0.2.7 192.0.2.1 5 465\r\n";
        let (taken, step) = session.handle_input(&[&header[..], b"\x16\x03"].concat(), at(1), &mut owner, &mut out);
        assert_eq!((taken, step, out.len()), (header.len(), Step::BeginTls, 0));
        assert_eq!(session.handle_input(b"\x01", at(2), &mut owner, &mut out), (0, Step::BeginTls));
        session.handle_tls_started(at(3).instant, &mut out);
        assert_eq!(out, b"220 mx.example.org ESMTP ready\r\n");
        assert_eq!(session.handle_input(b"STARTTLS\r\n", at(4), &mut owner, &mut out), (10, Step::Read));
        assert!(out.ends_with(b"503 5.5.1 TLS is already active; go on with EHLO\r\n"), "{}", out.escape_ascii());

        let (mut session, mut owner) = (Session::new(config(), true, at(0).instant), Owner::default());
        let refused = format!("PROXY TCP4 192.0.2.7 192.0.2.1 {REFUSED_PORT} 465\r\n\x16\x03");
        let said = out.len();
        assert_eq!(session.handle_input(refused.as_bytes(), at(1), &mut owner, &mut out).1, Step::Close);
        assert_eq!(out.len(), said, "a client that begins with a handshake would not understand");

        let (mut session, mut owner) = (Session::new(config(), true, at(0).instant), Owner::default());
        assert_eq!(session.handle_input(header, at(1), &mut owner, &mut out).1, Step::BeginTls);
        assert_eq!(session.deadline(), at(61).instant);
        let said = out.len();
        assert_eq!((session.handle_timeout(at(61).instant, &mut out), out.len()), (Step::Close, said));
    }

    #[test]
    fn an_owner_that_says_421_closes() {
        #[derive(Debug)]
        struct Closing;
        impl Transactions for Closing {
            fn proxied(&mut self, _client: SocketAddr, _now: Now) -> Result<(), Reply> {
                Ok(())
            }
            fn hello(&mut self, _name: &str, _extended: bool) {}
            fn mail(&mut self, _mail: MailFrom, _now: Now) -> Result<(), Reply> {
                Err(Reply::fixed(421, 4, 3, 2, "Later"))
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
        let mut talk = Talk::new(config());
        let (_, step) = talk.session.handle_input(OPENING.as_bytes(), at(0), &mut Closing, &mut talk.out);
        assert_eq!(step, Step::Close);
        assert!(talk.replies().ends_with("421 4.3.2 Later\r\n"));
    }

    #[test]
    fn the_owner_sees_each_refusal_of_content_as_the_end() {
        for (sender, reply) in [("begin@b", "452 "), ("content@b", "552 "), ("end@b", "554 ")] {
            let mut talk = Talk::new(config());
            talk.say(&format!("EHLO c\r\nMAIL FROM:<{sender}>\r\nRCPT TO:<c@d>\r\n"));
            talk.replies();
            talk.say("DATA\r\n");
            if sender != "begin@b" {
                assert!(talk.replies().starts_with("354 "));
                talk.say("x\r\n.\r\n");
            }
            assert!(talk.replies().starts_with(reply), "{sender}");
            assert!(talk.owner.calls.last().unwrap().starts_with("abort"), "{sender}");
            talk.say("MAIL FROM:<a@b>\r\n");
            assert_eq!(talk.replies(), "250 2.1.0 OK\r\n");
        }
    }

    fn script() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            6 => Just(OPENING.to_string()),
            4 => "(EHLO c|HELO c|RSET|NOOP|DATA|MAIL FROM:<(a|mail|begin|content|end)@b>( SIZE=[0-9]{1,3})?|RCPT TO:<(c|no)@d>|QUIT|HELP|XYZ|EHLO)\r\n",
            3 => "BDAT [0-9]{1,2}( LAST)?\r\n[a-z]{0,40}",
            2 => "BDAT 4( LAST)?\r\n(ab\r\n|\r\n\r\n|\r\n.\r|a\r\nb|ab\n\r)",
            3 => "DATA\r\n(([a-z.]{0,30}|\\.\\.?)(\r\n)){0,4}\\.\r\n",
            1 => "[\r\n\0. a]{1,6}",
            1 => Just("\r\n.\r\n".to_string()),
            1 => (0usize..1200).prop_map(|length| format!("NOOP {}\r\n", "x".repeat(length))),
        ];
        proptest::collection::vec(part, 1..12).prop_map(|parts| parts.concat().into_bytes())
    }

    fn run(script: &[u8], cuts: &[usize], config: &SessionConfig) -> (Vec<String>, Step, String) {
        let mut talk = Talk::new(config.clone());
        let mut step = Step::Read;
        let mut rest = script;
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((*cut).min(rest.len()));
            rest = behind;
            step = talk.say_at(piece, at(0));
        }
        (std::mem::take(&mut talk.owner.calls), step, talk.replies())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn any_split_is_the_same_session(
            script in script(),
            proxy in any::<bool>(),
            convert in any::<bool>(),
            limits in (1u32..30, 1u32..12, 1u32..4),
            cuts in proptest::collection::vec(1usize..60, 1..30),
        ) {
            let config = SessionConfig {
                proxy,
                bare_newlines: if convert { BareNewlines::Convert } else { BareNewlines::Refuse },
                max_commands: limits.0,
                max_errors: limits.1,
                max_transactions: limits.2,
                ..config()
            };
            let header = if proxy { &b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n"[..] } else { b"" };
            let script = [header, &script[..]].concat();
            let whole = run(&script, &[usize::MAX], &config);
            prop_assert_eq!(&whole, &run(&script, &cuts, &config));
            prop_assert_eq!(&whole, &run(&script, &[1], &config));
            let (_, step, replies) = whole;
            for line in replies.split_terminator("\r\n") {
                prop_assert!(line.len() <= 510 && !line.contains(['\r', '\n']), "{}", line);
            }
            prop_assert!(replies.is_empty() || replies.ends_with("\r\n"));
            prop_assert!(step == Step::Close || !replies.contains("\r\n421 "));
        }
    }
}
