//! One connection of a destination: commands, DATA and BDAT, and what rules and addresses ask for. Pure: bytes and a time
//! in, replies and what to do next out.
//!
//! Knows only what a destination needs (RFC 5321, 3030, 4954). It is lenient where leniency costs nothing; what is larger
//! than its bounds ends the connection.

use super::data::{DataEnd, unstuff};
use super::effects::Effects;
use super::{Figures, Shared};
use crate::content;
use crate::destination::{Behaviour, Destination, Token};
use crate::ledger::Coming;
use crate::notice::{failed_recipients, sender_token};
use crate::random::Random;
use crate::record::Took;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Octets of a command line.
const COMMAND_MAX: usize = 4096;
/// Octets of one content.
const CONTENT_MAX: u64 = 64 << 20;
/// Octets that a client may send ahead of a late answer.
const HELD_MAX: usize = 64 << 20;
/// Recipients of a message.
const RECIPIENTS_MAX: usize = 10_000;

/// What the connection is to do after the replies have gone out.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Read on.
    Continue,
    /// Close after the replies.
    Close,
    /// Break off without another word.
    Drop,
    /// Begin a handshake as the server.
    StartTls,
    /// Go on after this time.
    Wait(Duration),
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Mode {
    Command,
    Data,
    Chunk {
        left: u64,
        last: bool,
    },
    AuthPlain,
    AuthUser,
    AuthPassword,
    /// The answer is held back.
    Waiting,
    /// Nothing is ever answered again.
    Stalled,
}

pub(super) struct Session {
    pub(super) listener: SocketAddr,
    pub(super) in_tls: bool,
    /// The rules under which it is counted as a connection.
    pub(super) counted: Vec<usize>,
    pub(super) close_after: Option<u32>,
    pub(super) broken_tls: bool,
    mode: Mode,
    carry: Vec<u8>,
    random: Random,
    connected: Instant,
    has_mail: bool,
    sender: Option<Vec<u8>>,
    recipients: usize,
    destinations: Vec<Destination>,
    report_to: Option<Token>,
    effects: Effects,
    content: Vec<u8>,
    content_len: u64,
    data_end: DataEnd,
    messages: u32,
}

impl Session {
    pub(super) fn new(listener: SocketAddr, random: Random, connected: Instant) -> Session {
        Session {
            listener,
            in_tls: false,
            counted: Vec::new(),
            close_after: None,
            broken_tls: false,
            mode: Mode::Command,
            carry: Vec::new(),
            random,
            connected,
            has_mail: false,
            sender: None,
            recipients: 0,
            destinations: Vec::new(),
            report_to: None,
            effects: Effects::default(),
            content: Vec::new(),
            content_len: 0,
            data_end: DataEnd::default(),
            messages: 0,
        }
    }

    /// A draw for a rule that applies in so many of a thousand cases.
    pub(super) fn draws(&mut self, per_thousand: u16) -> bool {
        per_thousand >= 1000 || self.random.below(1000) < u64::from(per_thousand)
    }

    /// The greeting; under TLS from the first octet it comes after the handshake.
    pub(super) fn greet(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"220 sink.example ESMTP\r\n");
    }

    /// The handshake is done: all that was said before it is forgotten (RFC 3207 4.2).
    pub(super) fn tls_started(&mut self) {
        self.in_tls = true;
        self.forget();
        self.carry.clear();
    }

    /// The time of [`Next::Wait`] is over.
    pub(super) fn go_on(&mut self, out: &mut Vec<u8>, shared: &Shared) -> Next {
        if self.mode != Mode::Waiting {
            return Next::Continue;
        }
        self.mode = Mode::Command;
        let next = self.answer_content(out);
        if next != Next::Continue {
            return next;
        }
        let held = std::mem::take(&mut self.carry);
        self.take(&held, out, shared)
    }

    /// Takes what came.
    pub(super) fn take(&mut self, mut bytes: &[u8], out: &mut Vec<u8>, shared: &Shared) -> Next {
        while !bytes.is_empty() {
            let next = match self.mode {
                Mode::Stalled => return Next::Continue,
                Mode::Waiting => {
                    self.carry.extend_from_slice(bytes);
                    return if self.carry.len() > HELD_MAX { Next::Drop } else { Next::Continue };
                }
                Mode::Data => self.take_data(&mut bytes, out, shared),
                Mode::Chunk { left, last } => self.take_chunk(&mut bytes, left, last, out, shared),
                _ => self.take_line(&mut bytes, out, shared),
            };
            match next {
                Next::Continue => {}
                Next::Wait(_) => {
                    self.carry.extend_from_slice(bytes);
                    return next;
                }
                _ => return next,
            }
        }
        Next::Continue
    }

    fn take_line(&mut self, bytes: &mut &[u8], out: &mut Vec<u8>, shared: &Shared) -> Next {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            self.carry.extend_from_slice(bytes);
            *bytes = &[];
            return if self.carry.len() > COMMAND_MAX { Next::Drop } else { Next::Continue };
        };
        let (line, rest) = bytes.split_at(end + 1);
        *bytes = rest;
        if self.carry.is_empty() {
            return self.command(line, out, shared);
        }
        let mut carry = std::mem::take(&mut self.carry);
        carry.extend_from_slice(line);
        let next = self.command(&carry, out, shared);
        carry.clear();
        self.carry = carry;
        next
    }

    fn command(&mut self, line: &[u8], out: &mut Vec<u8>, shared: &Shared) -> Next {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > COMMAND_MAX {
            return Next::Drop;
        }
        if matches!(self.mode, Mode::AuthPlain | Mode::AuthUser | Mode::AuthPassword) {
            return self.credentials(line, out, shared);
        }
        let mut verb = [0; 4];
        for (letter, octet) in verb.iter_mut().zip(line) {
            *letter = octet.to_ascii_uppercase();
        }
        match &verb {
            b"MAIL" => return self.mail(line, out),
            b"RCPT" => self.recipient(line, out, shared),
            b"DATA" => self.data(out),
            b"BDAT" => return self.chunk(line, out),
            b"EHLO" => self.hello(out, shared),
            b"HELO" => {
                self.forget();
                out.extend_from_slice(b"250 sink.example\r\n");
            }
            b"RSET" => {
                self.forget();
                out.extend_from_slice(b"250 2.0.0 OK\r\n");
            }
            b"NOOP" => out.extend_from_slice(b"250 2.0.0 OK\r\n"),
            b"STAR" if shared.config.tls.is_some() && !self.in_tls => {
                out.extend_from_slice(b"220 2.0.0 go on\r\n");
                return Next::StartTls;
            }
            b"AUTH" => return self.auth(line, out, shared),
            b"QUIT" => {
                out.extend_from_slice(b"221 2.0.0 Goodbye\r\n");
                return Next::Close;
            }
            _ => out.extend_from_slice(b"500 5.5.1 unknown command\r\n"),
        }
        Next::Continue
    }

    fn hello(&mut self, out: &mut Vec<u8>, shared: &Shared) {
        self.forget();
        out.extend_from_slice(
            b"250-sink.example\r\n250-PIPELINING\r\n250-SIZE 60000000\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n",
        );
        if shared.config.chunking {
            out.extend_from_slice(b"250-CHUNKING\r\n");
        }
        if shared.config.tls.is_some() && !self.in_tls {
            out.extend_from_slice(b"250-STARTTLS\r\n");
        }
        if shared.config.auth.is_some() {
            out.extend_from_slice(b"250-AUTH PLAIN LOGIN\r\n");
        }
        out.extend_from_slice(b"250 ENHANCEDSTATUSCODES\r\n");
    }

    fn mail(&mut self, line: &[u8], out: &mut Vec<u8>) -> Next {
        self.forget();
        if self.close_after.is_some_and(|most| self.messages >= most) {
            out.extend_from_slice(b"421 4.7.0 enough messages for one connection\r\n");
            return Next::Close;
        }
        let Some(path) = path(line) else {
            out.extend_from_slice(b"501 5.5.4 MAIL FROM:<address>\r\n");
            return Next::Continue;
        };
        self.has_mail = true;
        let mut sender = self.sender.take().unwrap_or_default();
        sender.clear();
        sender.extend_from_slice(path);
        self.sender = Some(sender);
        out.extend_from_slice(b"250 2.1.0 OK\r\n");
        Next::Continue
    }

    fn recipient(&mut self, line: &[u8], out: &mut Vec<u8>, shared: &Shared) {
        let Some(path) = path(line).and_then(|path| std::str::from_utf8(path).ok()) else {
            return out.extend_from_slice(b"501 5.5.4 RCPT TO:<address>\r\n");
        };
        if !self.has_mail {
            return out.extend_from_slice(b"503 5.5.1 MAIL first\r\n");
        }
        if self.recipients >= RECIPIENTS_MAX {
            return out.extend_from_slice(b"452 4.5.3 too many recipients\r\n");
        }
        let destination = Destination::parse(path);
        if let Some(refusal) = self.refusal(path, destination, shared) {
            shared.figures.refused_recipients.fetch_add(1, Relaxed);
            let by_rule = destination.filter(|one| one.behaviour != Behaviour::RefuseAlways);
            if let (true, Some(destination)) = (refusal.starts_with(b"5"), by_rule) {
                shared.record.refused(destination);
            }
            return out.extend_from_slice(refusal);
        }
        self.recipients += 1;
        match destination {
            Some(destination) => self.destinations.push(destination),
            None => self.report_to = sender_token(path),
        }
        out.extend_from_slice(b"250 2.1.5 OK\r\n");
    }

    /// Why a recipient is not taken, if it is not; notes what is to happen to the content.
    fn refusal(&mut self, path: &str, destination: Option<Destination>, shared: &Shared) -> Option<&'static [u8]> {
        match destination.map(|one| one.behaviour) {
            Some(Behaviour::RefuseAlways) => return Some(b"550 5.1.1 no such recipient here\r\n"),
            Some(Behaviour::RefuseFirst(_)) if destination.is_some_and(|one| shared.limits().refuses(&one, false)) => {
                return Some(b"450 4.2.1 come back later\r\n");
            }
            _ => {}
        }
        if shared.rules().is_empty() {
            return None;
        }
        let mut effects = std::mem::take(&mut self.effects);
        let refusal = effects.of_recipient(self, path, shared);
        self.effects = effects;
        refusal
    }

    /// The reverse path of the transaction.
    pub(super) fn sender(&self) -> &[u8] {
        self.sender.as_deref().unwrap_or_default()
    }

    fn data(&mut self, out: &mut Vec<u8>) {
        if self.recipients == 0 {
            return out.extend_from_slice(b"554 5.5.1 no valid recipients\r\n");
        }
        self.mode = Mode::Data;
        self.data_end = DataEnd::default();
        out.extend_from_slice(b"354 go on\r\n");
    }

    fn take_data(&mut self, bytes: &mut &[u8], out: &mut Vec<u8>, shared: &Shared) -> Next {
        let (taken, ended) = match self.data_end.find(bytes) {
            Some(end) => (end, true),
            None => (bytes.len(), false),
        };
        let (data, rest) = bytes.split_at(taken);
        *bytes = rest;
        if !self.keep(data, shared) {
            return Next::Drop;
        }
        if !ended {
            return Next::Continue;
        }
        self.content_len = self.content_len.saturating_sub(3);
        let len = self.content.len().saturating_sub(3);
        self.content.truncate(len);
        unstuff(&mut self.content);
        self.finish(out, shared)
    }

    fn chunk(&mut self, line: &[u8], out: &mut Vec<u8>) -> Next {
        let text = String::from_utf8_lossy(line);
        let mut words = text.split_ascii_whitespace().skip(1);
        let Some(left) = words.next().and_then(|word| word.parse().ok()).filter(|len| *len <= CONTENT_MAX) else {
            out.extend_from_slice(b"501 5.5.4 BDAT length [LAST]\r\n");
            return Next::Close;
        };
        let last = words.next().is_some_and(|word| word.eq_ignore_ascii_case("LAST"));
        self.mode = Mode::Chunk { left, last };
        Next::Continue
    }

    fn take_chunk(&mut self, bytes: &mut &[u8], left: u64, last: bool, out: &mut Vec<u8>, shared: &Shared) -> Next {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let (data, rest) = bytes.split_at(taken);
        *bytes = rest;
        if !self.keep(data, shared) {
            return Next::Drop;
        }
        let left = left - taken as u64;
        self.mode = Mode::Chunk { left, last };
        if left > 0 {
            return Next::Continue;
        }
        self.mode = Mode::Command;
        if self.recipients == 0 {
            self.forget();
            out.extend_from_slice(b"554 5.5.1 no valid recipients\r\n");
        } else if last {
            return self.finish(out, shared);
        } else {
            out.extend_from_slice(b"250 2.0.0 more\r\n");
        }
        Next::Continue
    }

    /// Keeps a part of the content, if it will be looked at. False when it is too large.
    fn keep(&mut self, data: &[u8], shared: &Shared) -> bool {
        self.content_len += data.len() as u64;
        if shared.record.is_kept() {
            self.content.extend_from_slice(data);
        }
        self.content_len <= CONTENT_MAX
    }

    /// The content is whole: what becomes of it.
    fn finish(&mut self, out: &mut Vec<u8>, shared: &Shared) -> Next {
        self.mode = Mode::Command;
        if self.effects.stall {
            self.mode = Mode::Stalled;
            shared.figures.stalled.fetch_add(1, Relaxed);
            return Next::Continue;
        }
        if self.effects.drop_before {
            shared.figures.drops.fetch_add(1, Relaxed);
            return Next::Drop;
        }
        let by_address = |one: &Destination| matches!(one.behaviour, Behaviour::RefuseContentFirst(_));
        if self.destinations.iter().any(by_address) {
            // Each is asked, so that all that want it count this refusal.
            let refusing = self.destinations.iter().filter(|one| shared.limits().refuses(one, true)).count();
            if refusing > 0 && self.effects.content_refusal.is_none() {
                self.effects.content_refusal = Some(b"451 4.7.1 not this content, not now\r\n");
            }
        }
        if let Some(refusal) = self.effects.content_refusal {
            shared.figures.refused_contents.fetch_add(1, Relaxed);
            if refusal.starts_with(b"5") {
                self.destinations.iter().for_each(|one| shared.record.refused(*one));
            }
        } else {
            self.enter(shared);
        }
        if self.effects.drop_unanswered {
            shared.figures.drops.fetch_add(1, Relaxed);
            return Next::Drop;
        }
        if self.effects.slow > Duration::ZERO {
            self.mode = Mode::Waiting;
            return Next::Wait(self.effects.slow);
        }
        let next = self.answer_content(out);
        shared.figures.drops.fetch_add(u64::from(next == Next::Close), Relaxed);
        next
    }

    fn answer_content(&mut self, out: &mut Vec<u8>) -> Next {
        out.extend_from_slice(self.effects.content_refusal.unwrap_or(b"250 2.0.0 OK: taken\r\n"));
        let drop = self.effects.drop_after;
        self.forget();
        if drop { Next::Close } else { Next::Continue }
    }

    /// Counts the message and notes it.
    fn enter(&mut self, shared: &Shared) {
        self.messages += 1;
        let Figures { messages, recipients, octets, reports, .. } = &*shared.figures;
        messages.fetch_add(1, Relaxed);
        recipients.fetch_add(self.recipients as u64, Relaxed);
        octets.fetch_add(self.content_len, Relaxed);
        let is_report = self.sender().is_empty();
        reports.fetch_add(u64::from(is_report), Relaxed);
        if !shared.record.is_kept() {
            return;
        }
        let unanswered = self.effects.drop_unanswered;
        let coming = Coming { connected: self.connected, at: Instant::now(), unanswered };
        if is_report {
            return self.enter_report(shared, coming);
        }
        if self.destinations.len() != self.recipients {
            shared.record.strange(format!("mail from {} for others", String::from_utf8_lossy(self.sender())));
        }
        let examined = content::examine(&self.content);
        shared.record.arrived(Took { destinations: &self.destinations, examined, coming });
    }

    /// A report on failures: notes each recipient that it says has failed, if it went to the right sender.
    fn enter_report(&self, shared: &Shared, coming: Coming) {
        let failed = failed_recipients(&self.content);
        if failed.is_empty() {
            shared.record.strange("a report without a failed recipient".to_owned());
        }
        for destination in failed {
            if self.report_to == Some(destination.token) {
                shared.record.notified(destination, coming);
            } else {
                shared.record.strange(format!("a report on {} went to another sender", destination.token));
            }
        }
    }

    fn auth(&mut self, line: &[u8], out: &mut Vec<u8>, shared: &Shared) -> Next {
        let text = String::from_utf8_lossy(line).into_owned();
        let mut words = text.split_ascii_whitespace().skip(1);
        let mechanism = words.next().unwrap_or_default().to_ascii_uppercase();
        match (mechanism.as_str(), words.next()) {
            _ if shared.config.auth.is_none() => out.extend_from_slice(b"502 5.5.1 not offered\r\n"),
            ("PLAIN", Some(initial)) => {
                self.mode = Mode::AuthPlain;
                return self.credentials(initial.as_bytes(), out, shared);
            }
            ("PLAIN", None) => {
                self.mode = Mode::AuthPlain;
                out.extend_from_slice(b"334 \r\n");
            }
            ("LOGIN", None) => {
                self.mode = Mode::AuthUser;
                out.extend_from_slice(b"334 VXNlcm5hbWU6\r\n");
            }
            _ => out.extend_from_slice(b"504 5.5.4 PLAIN or LOGIN\r\n"),
        }
        Next::Continue
    }

    /// A line of an AUTH dialog (RFC 4954, 4616). The user name of LOGIN waits in `content`, which is empty then.
    fn credentials(&mut self, line: &[u8], out: &mut Vec<u8>, shared: &Shared) -> Next {
        use base64::Engine;
        let mode = std::mem::replace(&mut self.mode, Mode::Command);
        let Ok(plain) = base64::engine::general_purpose::STANDARD.decode(line) else {
            out.extend_from_slice(b"501 5.5.2 not base64\r\n");
            return Next::Continue;
        };
        if mode == Mode::AuthUser {
            self.content = plain;
            self.mode = Mode::AuthPassword;
            out.extend_from_slice(b"334 UGFzc3dvcmQ6\r\n");
            return Next::Continue;
        }
        let (user, password) = if mode == Mode::AuthPassword {
            (std::mem::take(&mut self.content), plain)
        } else {
            let mut parts = plain.splitn(3, |octet| *octet == 0).skip(1).map(<[u8]>::to_vec);
            (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
        };
        let right = shared
            .config
            .auth
            .as_ref()
            .is_some_and(|(name, word)| name.as_bytes() == user && word.as_bytes() == password);
        out.extend_from_slice(if right { b"235 2.7.0 welcome\r\n" } else { b"535 5.7.8 wrong user or password\r\n" });
        Next::Continue
    }

    fn forget(&mut self) {
        self.has_mail = false;
        self.recipients = 0;
        self.destinations.clear();
        self.report_to = None;
        self.effects = Effects::default();
        self.content.clear();
        self.content_len = 0;
    }
}

/// What stands between the angle brackets.
fn path(line: &[u8]) -> Option<&[u8]> {
    let start = memchr::memchr(b'<', line)? + 1;
    let end = start + memchr::memchr(b'>', &line[start..])?;
    Some(&line[start..end])
}

#[cfg(test)]
mod tests {
    use super::super::{ReceiveConfig, Shared};
    use super::*;
    use crate::ledger::Ledger;
    use crate::record::Record;
    use crate::send::protocol::{Client, ClientSettings, Outcome, TlsMode};
    use crate::workload::Workload;
    use std::sync::Arc;

    fn listener() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 25))
    }

    fn shared(config: ReceiveConfig, record: Record) -> Shared {
        Shared { config, record, figures: Arc::default(), limits: Default::default(), rules_lifted: Default::default() }
    }

    /// A dialog that holds everything, and how many messages it delivers.
    fn dialog() -> (Vec<u8>, u64) {
        let workload = Workload { content_refused: 0, ..Workload::mixed(3) };
        let mut all = b"EHLO a\r\nNOOP\r\nhello\r\nRCPT TO:<x@y>\r\nDATA\r\n".to_vec();
        let mut taken = 0;
        for number in 0..12 {
            let chunking = number % 2 == 0;
            let settings = ClientSettings {
                hello: "load.example".to_owned(),
                tls: TlsMode::Off,
                auth: None,
                pipelining: true,
                chunking,
                domain: "load.example".to_owned(),
            };
            let mut client = Client::new(Arc::new(settings));
            let mut out = Vec::new();
            client.take(b"220 a\r\n", &mut out);
            client.take(b"250-PIPELINING\r\n250-CHUNKING\r\n250 b\r\n", &mut out);
            out.clear();
            let message = workload.message(number);
            let takes = message.destinations.iter().any(|one| one.behaviour == Behaviour::Accept);
            if !takes {
                continue;
            }
            let count = message.destinations.len();
            client.begin(message, &mut out);
            if !chunking {
                let replies = format!("250 m\r\n{}354 d\r\n", "250 r\r\n".repeat(count));
                assert_eq!(client.take(replies.as_bytes(), &mut out).1, Outcome::None);
            }
            taken += 1;
            all.extend_from_slice(&out);
        }
        all.extend_from_slice(b"QUIT\r\n");
        (all, taken)
    }

    #[test]
    fn any_split_of_a_dialog_gives_the_same_answers() {
        let (dialog, taken) = dialog();
        let mut expected = None;
        for size in [dialog.len(), 1, 2, 3, 5, 7, 64, 1000, 16_384] {
            let ledger = Arc::new(Ledger::default());
            let record = Record::Ledger(ledger.clone());
            let config = ReceiveConfig::new(listener());
            let shared = shared(config, record);
            let mut session = Session::new(listener(), Random::new(1), Instant::now());
            let (mut out, mut last) = (Vec::new(), Next::Continue);
            for piece in dialog.chunks(size) {
                assert_eq!(last, Next::Continue, "pieces of {size}");
                last = session.take(piece, &mut out, &shared);
            }
            assert_eq!(last, Next::Close, "pieces of {size}");
            assert_eq!(shared.figures.messages.load(Relaxed), taken, "pieces of {size}");
            let findings = ledger.findings();
            assert!(findings.damaged.is_empty() && findings.strange.is_empty(), "{:?}", findings.damaged);
            assert_eq!(expected.get_or_insert_with(|| out.clone()), &out, "pieces of {size}");
        }
    }

    #[test]
    fn rules_can_be_lifted_while_a_connection_stands() {
        let rules = vec!["* defer".parse().unwrap()];
        let shared = shared(ReceiveConfig { rules, ..ReceiveConfig::new(listener()) }, Record::Nothing);
        let mut session = Session::new(listener(), Random::new(1), Instant::now());
        let mut out = Vec::new();
        session.take(b"EHLO a\r\nMAIL FROM:<a@b>\r\n", &mut out, &shared);
        for (lifted, expected) in [(false, "450 "), (true, "250 ")] {
            shared.rules_lifted.store(lifted, Relaxed);
            out.clear();
            session.take(b"RCPT TO:<x@y>\r\n", &mut out, &shared);
            assert!(out.starts_with(expected.as_bytes()), "{}", String::from_utf8_lossy(&out));
        }
    }

    #[test]
    fn what_is_too_large_ends_the_connection() {
        let shared = shared(ReceiveConfig::new(listener()), Record::Nothing);
        let take = |bytes: &[u8]| {
            Session::new(listener(), Random::new(1), Instant::now()).take(bytes, &mut Vec::new(), &shared)
        };
        assert_eq!(take(&[b'x'; COMMAND_MAX + 1]), Next::Drop);
        assert_eq!(take(&[&[b'x'; COMMAND_MAX + 1][..], b"\r\n"].concat()), Next::Drop);
        assert_eq!(take(b"BDAT 99999999999999999999 LAST\r\n"), Next::Close);
        assert_eq!(take(b"BDAT -1\r\n"), Next::Close);
        assert_eq!(take(b"\xff\xfe\0\r\nRCPT TO:<\xff>\r\nNOOP\r\n"), Next::Continue);
    }
}
