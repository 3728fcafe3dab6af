//! One SMTP connection as a client that measures: the dialog from greeting to QUIT, one transaction after the other. Pure:
//! bytes in, bytes and results out.
//!
//! Not the program's own client: this one is to cost as little as possible, to send whatever it is told to (also what a
//! careful client would not), and to share no defect with what it measures. A reply that makes no sense ends the connection.

use crate::workload::Message;
use base64::Engine;
use std::sync::Arc;

/// Octets of one line of a reply (RFC 5321 4.5.3.1.5 allows 512; servers say more).
const LINE_MAX: usize = 8192;

/// When TLS begins.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Never.
    Off,
    /// With STARTTLS (RFC 3207); a server without it is an error.
    Start,
    /// From the first octet (RFC 8314).
    Implicit,
}

/// How to log in (RFC 4954).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// In one go (RFC 4616).
    Plain,
    /// In the steps of an expired draft that servers still know.
    Login,
}

/// What a client says, the same on all connections.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// The name in EHLO.
    pub hello: String,
    /// When TLS begins.
    pub tls: TlsMode,
    /// Method, user, password.
    pub auth: Option<(AuthMethod, String, String)>,
    /// Send the commands of a transaction in one flight where the server offers PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// Send contents with BDAT where the server offers CHUNKING (RFC 3030).
    pub chunking: bool,
    /// The workload's domain.
    pub domain: String,
}

/// What a reply came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing for the driver.
    None,
    /// Ready for a transaction.
    Ready,
    /// The transaction is over: the recipients that were taken are in [`Client::accepted`].
    Done,
    /// TLS is to begin.
    StartTls,
    /// Goodbye was said, or the server wants no more: the connection is to be closed.
    Over,
    /// The connection is of no use; why.
    Broken(String),
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    Hello,
    StartTls,
    Handshake,
    AuthPlain,
    AuthUser,
    AuthPassword,
    AuthEnd,
    Ready,
    Mail,
    Recipient(usize),
    Data,
    Reset,
    End,
    Quit,
}

/// A connection's dialog.
#[derive(Debug)]
pub struct Client {
    settings: Arc<ClientSettings>,
    phase: Phase,
    carry: Vec<u8>,
    offers_pipelining: bool,
    offers_chunking: bool,
    offers_starttls: bool,
    in_tls: bool,
    /// What is being sent.
    message: Option<Message>,
    accepted: Vec<u16>,
    refusal: Option<String>,
    id: String,
    content_sent: bool,
    going: bool,
}

impl Client {
    /// A connection that has just been made.
    pub fn new(settings: Arc<ClientSettings>) -> Client {
        let in_tls = settings.tls == TlsMode::Implicit;
        Client {
            settings,
            phase: Phase::Greeting,
            carry: Vec::new(),
            offers_pipelining: false,
            offers_chunking: false,
            offers_starttls: false,
            in_tls,
            message: None,
            accepted: Vec::new(),
            refusal: None,
            id: String::new(),
            content_sent: false,
            going: false,
        }
    }

    /// The message under way, or just done.
    pub fn message(&self) -> Option<&Message> {
        self.message.as_ref()
    }

    /// Takes the message that is done.
    pub fn take_message(&mut self) -> Option<Message> {
        self.message.take()
    }

    /// The places of the recipients that were taken. Empty when the whole message was refused.
    pub fn accepted(&self) -> &[u16] {
        &self.accepted
    }

    /// The first reply that refused something in the last transaction.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// The server's name for the last message: the last word of its reply.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the whole content is sent and its reply has not come.
    pub fn is_in_doubt(&self) -> bool {
        self.content_sent && self.message.is_some()
    }

    /// Begins a transaction. Only after [`Outcome::Ready`] or [`Outcome::Done`].
    pub fn begin(&mut self, message: Message, out: &mut Vec<u8>) {
        self.accepted.clear();
        self.refusal = None;
        self.id.clear();
        self.content_sent = false;
        out.extend_from_slice(b"MAIL FROM:<");
        out.extend_from_slice(message.reverse_path.as_bytes());
        out.extend_from_slice(b">\r\n");
        self.phase = Phase::Mail;
        let recipients = message.destinations.len();
        let message = self.message.insert(message);
        if !self.offers_pipelining {
            return;
        }
        for index in 0..recipients {
            put_recipient(message, index, &self.settings.domain, out);
        }
        if self.offers_chunking {
            self.put_chunk(out);
        } else {
            out.extend_from_slice(b"DATA\r\n");
        }
    }

    /// Says goodbye.
    pub fn quit(&mut self, out: &mut Vec<u8>) {
        self.phase = Phase::Quit;
        out.extend_from_slice(b"QUIT\r\n");
    }

    /// The handshake is done. With STARTTLS the dialog begins again (RFC 3207 4.2).
    pub fn tls_started(&mut self, out: &mut Vec<u8>) {
        self.in_tls = true;
        if self.phase == Phase::Handshake {
            self.carry.clear();
            self.hello(out);
        }
    }

    /// Takes bytes up to the end of a reply that means something to the driver. Gives how many, and what.
    pub fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> (usize, Outcome) {
        let mut at = 0;
        while let Some(end) = memchr::memchr(b'\n', &bytes[at..]) {
            let line = &bytes[at..at + end];
            at += end + 1;
            let outcome = if self.carry.is_empty() {
                self.line(line, out)
            } else {
                let mut carry = std::mem::take(&mut self.carry);
                carry.extend_from_slice(line);
                let outcome = self.line(&carry, out);
                carry.clear();
                self.carry = carry;
                outcome
            };
            if outcome != Outcome::None {
                return (at, outcome);
            }
        }
        self.carry.extend_from_slice(&bytes[at..]);
        let outcome = match self.carry.len() > LINE_MAX {
            true => Outcome::Broken("a line of a reply is too long".to_owned()),
            false => Outcome::None,
        };
        (bytes.len(), outcome)
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> Outcome {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let code = match line {
            [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', ..] => {
                u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
            }
            _ => return Outcome::Broken(format!("not a reply: {}", String::from_utf8_lossy(line))),
        };
        let text = line.get(4..).unwrap_or_default();
        if self.phase == Phase::Hello && code == 250 {
            self.note_offer(text);
        }
        match line.get(3) {
            Some(b'-') => Outcome::None,
            _ => self.reply(code, line, out),
        }
    }

    fn note_offer(&mut self, text: &[u8]) {
        let is = |name: &[u8]| text.len() >= name.len() && text[..name.len()].eq_ignore_ascii_case(name);
        self.offers_pipelining |= is(b"PIPELINING") && self.settings.pipelining;
        self.offers_chunking |= is(b"CHUNKING") && self.settings.chunking;
        self.offers_starttls |= is(b"STARTTLS");
    }

    fn hello(&mut self, out: &mut Vec<u8>) {
        self.phase = Phase::Hello;
        self.offers_pipelining = false;
        self.offers_chunking = false;
        self.offers_starttls = false;
        out.extend_from_slice(b"EHLO ");
        out.extend_from_slice(self.settings.hello.as_bytes());
        out.extend_from_slice(b"\r\n");
    }

    fn reply(&mut self, code: u16, line: &[u8], out: &mut Vec<u8>) -> Outcome {
        let good = (200..300).contains(&code);
        match self.phase {
            Phase::Mail | Phase::Recipient(_) | Phase::Data | Phase::Reset | Phase::End => {
                return self.transaction_reply(code, line, out);
            }
            Phase::Greeting if good => {
                self.hello(out);
                return Outcome::None;
            }
            Phase::Hello if good => return self.after_hello(out),
            Phase::StartTls if good => {
                self.phase = Phase::Handshake;
                return Outcome::StartTls;
            }
            Phase::AuthPlain | Phase::AuthUser | Phase::AuthPassword if code == 334 => {
                self.credentials(out);
                return Outcome::None;
            }
            Phase::AuthEnd if good => {
                self.phase = Phase::Ready;
                return Outcome::Ready;
            }
            Phase::Quit => return Outcome::Over,
            _ => {}
        }
        Outcome::Broken(String::from_utf8_lossy(line).into_owned())
    }

    fn after_hello(&mut self, out: &mut Vec<u8>) -> Outcome {
        if self.settings.tls == TlsMode::Start && !self.in_tls {
            if !self.offers_starttls {
                return Outcome::Broken("the server does not offer STARTTLS".to_owned());
            }
            self.phase = Phase::StartTls;
            out.extend_from_slice(b"STARTTLS\r\n");
            return Outcome::None;
        }
        match &self.settings.auth {
            None => {
                self.phase = Phase::Ready;
                Outcome::Ready
            }
            Some((AuthMethod::Plain, ..)) => {
                self.phase = Phase::AuthPlain;
                out.extend_from_slice(b"AUTH PLAIN ");
                self.credentials(out);
                Outcome::None
            }
            Some((AuthMethod::Login, ..)) => {
                self.phase = Phase::AuthUser;
                out.extend_from_slice(b"AUTH LOGIN\r\n");
                Outcome::None
            }
        }
    }

    /// The next line of an AUTH dialog.
    fn credentials(&mut self, out: &mut Vec<u8>) {
        let Some((_, user, password)) = &self.settings.auth else { return };
        let (plain, next) = match self.phase {
            Phase::AuthPlain => (format!("\0{user}\0{password}"), Phase::AuthEnd),
            Phase::AuthUser => (user.clone(), Phase::AuthPassword),
            _ => (password.clone(), Phase::AuthEnd),
        };
        out.extend_from_slice(base64::engine::general_purpose::STANDARD.encode(plain).as_bytes());
        out.extend_from_slice(b"\r\n");
        self.phase = next;
    }

    fn transaction_reply(&mut self, code: u16, line: &[u8], out: &mut Vec<u8>) -> Outcome {
        let good = (200..300).contains(&code);
        if !good && code != 354 && self.refusal.is_none() {
            self.refusal = Some(String::from_utf8_lossy(line).into_owned());
        }
        self.going |= code == 421;
        let Some(message) = &self.message else { return Outcome::Broken("a reply to nothing".to_owned()) };
        let recipients = message.destinations.len();
        match self.phase {
            Phase::Mail if good || self.offers_pipelining => self.phase = self.next_recipient(0, out),
            Phase::Mail => return self.done(),
            Phase::Recipient(index) => {
                if good {
                    self.accepted.push(index as u16);
                }
                self.phase = match index + 1 < recipients {
                    true => self.next_recipient(index + 1, out),
                    false => self.after_recipients(out),
                };
            }
            Phase::Data if code == 354 => {
                // The server agreed although all recipients were refused: the shortest content there is (RFC 2920 3.1).
                if self.accepted.is_empty() {
                    out.extend_from_slice(b".\r\n");
                } else {
                    put_stuffed(&message.content, out);
                    self.content_sent = true;
                }
                self.phase = Phase::End;
            }
            Phase::End if good => {
                let word = line.rsplit(|octet| *octet == b' ').next().unwrap_or_default();
                self.id.push_str(&String::from_utf8_lossy(word));
                return self.done();
            }
            _ => {
                self.accepted.clear();
                return self.done();
            }
        }
        // A server that is closing sends no more replies.
        if self.going {
            self.accepted.clear();
            return self.done();
        }
        Outcome::None
    }

    fn done(&mut self) -> Outcome {
        self.content_sent = false;
        self.phase = Phase::Ready;
        Outcome::Done
    }

    /// Whether the server has said that it closes the connection (421).
    pub fn is_going(&self) -> bool {
        self.going
    }

    fn next_recipient(&self, index: usize, out: &mut Vec<u8>) -> Phase {
        if let (false, Some(message)) = (self.offers_pipelining, &self.message) {
            put_recipient(message, index, &self.settings.domain, out);
        }
        Phase::Recipient(index)
    }

    fn after_recipients(&mut self, out: &mut Vec<u8>) -> Phase {
        match (self.offers_pipelining, self.offers_chunking) {
            (true, true) => Phase::End,
            (true, false) => Phase::Data,
            (false, _) if self.accepted.is_empty() => {
                out.extend_from_slice(b"RSET\r\n");
                Phase::Reset
            }
            (false, true) => {
                self.put_chunk(out);
                Phase::End
            }
            (false, false) => {
                out.extend_from_slice(b"DATA\r\n");
                Phase::Data
            }
        }
    }

    fn put_chunk(&mut self, out: &mut Vec<u8>) {
        let Some(message) = &self.message else { return };
        out.extend_from_slice(format!("BDAT {} LAST\r\n", message.content.len()).as_bytes());
        out.extend_from_slice(&message.content);
        self.content_sent = true;
    }
}

fn put_recipient(message: &Message, index: usize, domain: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"RCPT TO:<");
    out.extend_from_slice(message.address(index, domain).as_bytes());
    out.extend_from_slice(b">\r\n");
}

/// A content with its dots doubled, and the end (RFC 5321 4.5.2). Contents end with CRLF.
fn put_stuffed(content: &[u8], out: &mut Vec<u8>) {
    let mut rest = content;
    if rest.first() == Some(&b'.') {
        out.push(b'.');
    }
    for at in memchr::memmem::find_iter(content, b"\r\n.") {
        let begun = content.len() - rest.len();
        let (head, tail) = rest.split_at(at + 2 - begun);
        out.extend_from_slice(head);
        out.push(b'.');
        rest = tail;
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(b".\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Workload;

    fn settings() -> ClientSettings {
        ClientSettings {
            hello: "load.example".to_owned(),
            tls: TlsMode::Off,
            auth: None,
            pipelining: true,
            chunking: false,
            domain: "load.example".to_owned(),
        }
    }

    fn message(recipients: u16) -> Message {
        Workload { recipients_min: recipients, recipients_max: recipients, ..Workload::plain(1, 600) }.message(7)
    }

    /// Gives a client what a server says; what it says and what came of it.
    fn say(client: &mut Client, text: &str) -> (String, Outcome) {
        let mut out = Vec::new();
        let (taken, outcome) = client.take(text.as_bytes(), &mut out);
        assert_eq!(taken, text.len(), "{text}");
        (String::from_utf8(out).unwrap(), outcome)
    }

    fn ready(settings: ClientSettings, offers: &str) -> Client {
        let mut client = Client::new(Arc::new(settings));
        assert_eq!(say(&mut client, "220-hello\r\n220 x\r\n"), ("EHLO load.example\r\n".to_owned(), Outcome::None));
        let (_, outcome) = say(&mut client, &format!("250-x\r\n{offers}250 HELP\r\n"));
        assert_eq!(outcome, Outcome::Ready);
        client
    }

    fn begin(client: &mut Client, recipients: u16) -> String {
        let mut out = Vec::new();
        client.begin(message(recipients), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_command_at_a_time_without_pipelining() {
        let mut client = ready(settings(), "");
        assert!(begin(&mut client, 2).ends_with("@load.example>\r\n"));
        assert!(say(&mut client, "250 ok\r\n").0.starts_with("RCPT TO:<ok-"));
        assert!(say(&mut client, "250 ok\r\n").0.starts_with("RCPT TO:<ok-"));
        assert_eq!(say(&mut client, "550 no\r\n").0, "DATA\r\n");
        let (content, _) = say(&mut client, "354 go\r\n");
        assert!(content.ends_with("\r\n.\r\n") && client.is_in_doubt());
        assert_eq!(say(&mut client, "250 OK: queued as A7\r\n").1, Outcome::Done);
        assert_eq!((client.accepted(), client.id(), client.refusal()), (&[0_u16][..], "A7", Some("550 no")));
        assert!(!client.is_in_doubt());
    }

    #[test]
    fn in_one_flight_with_pipelining_and_chunking() {
        let offers = "250-PIPELINING\r\n250-CHUNKING\r\n";
        let mut client = ready(ClientSettings { chunking: true, ..settings() }, offers);
        let flight = begin(&mut client, 3);
        assert_eq!((flight.matches("RCPT TO").count(), flight.matches(" LAST\r\n").count()), (3, 1));
        let mut out = Vec::new();
        let replies = b"250 ok\r\n250 1\r\n450 2\r\n250 3\r\n250 taken as B\r\n221 more";
        let (taken, outcome) = client.take(replies, &mut out);
        assert_eq!((taken, outcome, out.len()), (replies.len() - 8, Outcome::Done, 0));
        assert_eq!(client.accepted(), [0, 2]);
    }

    #[test]
    fn refused_altogether_is_done_too() {
        let mut client = ready(settings(), "250-PIPELINING\r\n");
        begin(&mut client, 1);
        assert_eq!(say(&mut client, "451 no\r\n503 no\r\n503 no\r\n").1, Outcome::Done);
        assert!(client.accepted().is_empty());
        begin(&mut client, 1);
        let (shortest, _) = say(&mut client, "250 ok\r\n550 no\r\n354 go\r\n");
        assert_eq!(shortest, ".\r\n");
        assert_eq!(say(&mut client, "554 no valid recipients\r\n").1, Outcome::Done);
        let mut client = ready(settings(), "");
        begin(&mut client, 1);
        say(&mut client, "250 ok\r\n");
        assert_eq!(say(&mut client, "450 later\r\n").0, "RSET\r\n");
        assert_eq!(say(&mut client, "250 ok\r\n").1, Outcome::Done);
        begin(&mut client, 1);
        assert_eq!(say(&mut client, "421 closing\r\n").1, Outcome::Done);
        assert!(client.is_going());
    }

    #[test]
    fn logs_in_by_both_methods() {
        let user = |method| ClientSettings { auth: Some((method, "u".to_owned(), "p".to_owned())), ..settings() };
        let mut client = Client::new(Arc::new(user(AuthMethod::Plain)));
        say(&mut client, "220 x\r\n");
        assert_eq!(say(&mut client, "250 AUTH PLAIN LOGIN\r\n").0, "AUTH PLAIN AHUAcA==\r\n");
        assert_eq!(say(&mut client, "235 ok\r\n").1, Outcome::Ready);
        let mut client = Client::new(Arc::new(user(AuthMethod::Login)));
        say(&mut client, "220 x\r\n");
        assert_eq!(say(&mut client, "250 AUTH PLAIN LOGIN\r\n").0, "AUTH LOGIN\r\n");
        assert_eq!(say(&mut client, "334 VXNlcm5hbWU6\r\n").0, "dQ==\r\n");
        assert_eq!(say(&mut client, "334 UGFzc3dvcmQ6\r\n").0, "cA==\r\n");
        assert!(matches!(say(&mut client, "535 wrong\r\n").1, Outcome::Broken(_)));
    }

    #[test]
    fn starttls_begins_the_dialog_again() {
        let mut client = Client::new(Arc::new(ClientSettings { tls: TlsMode::Start, ..settings() }));
        say(&mut client, "220 x\r\n");
        assert_eq!(say(&mut client, "250-x\r\n250 STARTTLS\r\n").0, "STARTTLS\r\n");
        assert_eq!(say(&mut client, "220 go\r\n").1, Outcome::StartTls);
        let mut out = Vec::new();
        client.tls_started(&mut out);
        assert_eq!(out, b"EHLO load.example\r\n");
        assert_eq!(say(&mut client, "250 x\r\n").1, Outcome::Ready);
        let mut client = Client::new(Arc::new(ClientSettings { tls: TlsMode::Start, ..settings() }));
        say(&mut client, "220 x\r\n");
        assert!(matches!(say(&mut client, "250 x\r\n").1, Outcome::Broken(_)));
    }

    #[test]
    fn replies_may_come_in_any_pieces() {
        let mut client = Client::new(Arc::new(settings()));
        let mut out = Vec::new();
        let outcomes: Vec<Outcome> = b"220 x\r\n250-PIPELINING\r\n250 y\r\n"
            .iter()
            .map(|octet| client.take(&[*octet], &mut out).1)
            .filter(|outcome| *outcome != Outcome::None)
            .collect();
        assert_eq!((outcomes, out.as_slice()), (vec![Outcome::Ready], b"EHLO load.example\r\n".as_slice()));
        assert!(matches!(client.take(&[b'2'; LINE_MAX + 1], &mut out).1, Outcome::Broken(_)));
        assert!(matches!(Client::new(Arc::new(settings())).take(b"hello\r\n", &mut out).1, Outcome::Broken(_)));
    }

    #[test]
    fn dots_are_doubled() {
        for (plain, stuffed) in
            [("a\r\n", "a\r\n.\r\n"), (".\r\n..\r\n", "..\r\n...\r\n.\r\n"), ("a.\r\n.b\r\n", "a.\r\n..b\r\n.\r\n")]
        {
            let mut out = Vec::new();
            put_stuffed(plain.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), stuffed);
        }
    }
}
