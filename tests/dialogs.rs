//! Runs the scripts of tests/dialogs/*.smtp against the pure session with an owner that records what it is asked.
//! Each script is run three times: with its input whole, in pieces of seven octets, and octet by octet.
//!
//! A script has one thing a line:
//!
//! ```text
//! # a comment
//! config: max_recipients=2 bare=convert   what differs from the usual settings, before all else
//! C: EHLO client.example                  the client's line; CRLF is added. Lines in a row are sent together
//! R: raw\r\n\0\x7f                        the client's octets, nothing added
//! S: 250 2.1.0 OK                         the next line of the server, exactly
//! S: ~250 * queued as *                   or like this, * standing for anything
//! O: mail <a@b>                           the next thing that the owner was asked
//! T:                                      the server wants TLS; the handshake is done
//! X:                                      the server has closed
//! ```
//!
//! Every line of the server must be in the script, and every question to the owner if any is.
//! The owner refuses by local part: sender `banned`, recipients `nobody` and `later`, and content of the senders
//! `full` (before it), `cut` (within) and `late` (after it). `unstored` is the sender whose message is not stored.

use ringpost::clock::{Instant, Now};
use ringpost::envelope::{Body, Recipient, Ret};
use ringpost::id::MessageId;
use ringpost::reply::Reply;
use ringpost::smtp::server::{BareNewlines, MailFrom, Session, SessionConfig, Step, Transactions};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[derive(Default)]
struct Owner {
    calls: Vec<String>,
    content: Vec<u8>,
    sender: String,
}

impl Owner {
    fn check(&self, name: &str, reply: Reply) -> Result<(), Reply> {
        if self.sender.starts_with(&format!("{name}@")) { Err(reply) } else { Ok(()) }
    }
}

impl Transactions for Owner {
    fn proxied(&mut self, client: SocketAddr, _now: Now) -> Result<(), Reply> {
        self.calls.push(format!("proxied {client}"));
        Ok(())
    }

    fn hello(&mut self, name: &str, extended: bool) {
        self.calls.push(format!("{} {name}", if extended { "ehlo" } else { "helo" }));
    }

    fn mail(&mut self, mail: MailFrom, _now: Now) -> Result<(), Reply> {
        self.sender = mail.reverse_path.as_ref().map(|path| path.to_string()).unwrap_or_default();
        let mut call = format!("mail <{}>", self.sender);
        call.extend(mail.size.map(|size| format!(" size={size}")));
        call.push_str(if mail.body == Body::EightBitMime { " 8bitmime" } else { "" });
        call.push_str(if mail.smtputf8 { " smtputf8" } else { "" });
        call.push_str(match mail.ret {
            None => "",
            Some(Ret::Full) => " ret=full",
            Some(Ret::Headers) => " ret=hdrs",
        });
        call.extend(mail.envid.map(|envid| format!(" envid={envid}")));
        self.calls.push(call);
        self.check("banned", Reply::fixed(554, 5, 7, 1, "You may not send here"))
    }

    fn recipient(&mut self, recipient: Recipient, _now: Now) -> Result<(), Reply> {
        let mut call = format!("recipient <{}>", recipient.address);
        if recipient.notify.is_given() {
            call.push_str(&format!(" notify={}", recipient.notify));
        }
        call.extend(recipient.orcpt.as_ref().map(|orcpt| format!(" orcpt={orcpt}")));
        self.calls.push(call);
        match recipient.address.local_part() {
            "nobody" => Err(Reply::fixed(550, 5, 1, 1, "Nobody has this address")),
            "later" => Err(Reply::fixed(450, 4, 2, 0, "Try again later")),
            _ => Ok(()),
        }
    }

    fn begin_content(&mut self, _now: Now) -> Result<(), Reply> {
        self.content.clear();
        self.calls.push("begin".into());
        self.check("full", Reply::fixed(452, 4, 3, 1, "No room; try again later"))
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), Reply> {
        self.check("cut", Reply::fixed(554, 5, 6, 0, "Not this content"))?;
        self.content.extend_from_slice(bytes);
        Ok(())
    }

    fn end_content(&mut self, _now: Now) -> Result<(), Reply> {
        self.calls.push(format!("content {}", self.content.escape_ascii()));
        self.check("late", Reply::fixed(554, 5, 7, 0, "Not this message"))
    }

    fn abort(&mut self) {
        self.calls.push("abort".into());
    }
}

fn config() -> SessionConfig {
    SessionConfig {
        hostname: "mx.example.org".into(),
        max_message_size: 1000,
        starttls: false,
        auth: false,
        mechanisms: Default::default(),
        auth_in_clear: false,
        bare_newlines: BareNewlines::Refuse,
        proxy: false,
        strangers: Default::default(),
        max_recipients: 100,
        max_commands: 1000,
        max_errors: 20,
        max_transactions: 50,
        command_timeout: Duration::from_secs(300),
        data_timeout: Duration::from_secs(180),
        message_timeout: Duration::from_secs(600),
        chunking: true,
        dsn: true,
        smtputf8: true,
        pipelining: true,
    }
}

fn configure(config: &mut SessionConfig, setting: &str) -> Result<(), String> {
    let (name, value) = setting.split_once('=').ok_or("a setting has =")?;
    let number = || value.parse::<u32>().map_err(|_| format!("{setting}: not a number"));
    let yes = value == "yes";
    match name {
        "starttls" => config.starttls = yes,
        "proxy" => config.proxy = yes,
        "chunking" => config.chunking = yes,
        "dsn" => config.dsn = yes,
        "smtputf8" => config.smtputf8 = yes,
        "pipelining" => config.pipelining = yes,
        "bare" if value == "convert" => config.bare_newlines = BareNewlines::Convert,
        "max_recipients" => config.max_recipients = number()?,
        "max_commands" => config.max_commands = number()?,
        "max_errors" => config.max_errors = number()?,
        "max_transactions" => config.max_transactions = number()?,
        "max_message_size" => config.max_message_size = u64::from(number()?),
        _ => return Err(format!("no such setting: {setting}")),
    }
    Ok(())
}

/// One session with what it has said and not been asked for.
struct Dialog {
    session: Session,
    owner: Owner,
    out: Vec<u8>,
    step: Step,
    stored: u64,
    /// What the client is about to send.
    pending: Vec<u8>,
    piece: usize,
    owner_calls_checked: usize,
}

impl Dialog {
    fn new(config: SessionConfig, piece: usize) -> Dialog {
        let mut session = Session::new(Arc::new(config), false, Instant::ZERO);
        let mut out = Vec::new();
        session.start(Instant::ZERO, &mut out);
        let (owner, pending) = (Owner::default(), Vec::new());
        Dialog { session, owner, out, step: Step::Read, stored: 0, pending, piece, owner_calls_checked: 0 }
    }

    /// Sends what is pending, storing each message that is to be stored.
    fn send(&mut self) {
        for piece in std::mem::take(&mut self.pending).chunks(self.piece) {
            let mut rest = piece;
            loop {
                let (consumed, step) = self.session.handle_input(rest, Now::default(), &mut self.owner, &mut self.out);
                rest = &rest[consumed..];
                self.step = step;
                if step != Step::AwaitStorage {
                    break;
                }
                self.stored += 1;
                let unstored = self.owner.check("unstored", Reply::fixed(451, 4, 3, 0, "Not stored; send it again"));
                let result = unstored.map(|()| MessageId(self.stored));
                self.step = self.session.handle_stored(result, Instant::ZERO, &mut self.out);
            }
        }
    }

    fn next_line(&mut self) -> Result<String, String> {
        let end = self.out.windows(2).position(|pair| pair == b"\r\n").ok_or("the server says nothing more")?;
        let line = self.out.drain(..end + 2).take(end).collect();
        String::from_utf8(line).map_err(|_| "the server's line is not UTF-8".to_string())
    }

    fn nothing_unread(&self) -> Result<(), String> {
        if self.out.is_empty() { Ok(()) } else { Err(format!("unexpected: {}", self.out.escape_ascii())) }
    }

    fn obey(&mut self, kind: &str, text: &str) -> Result<(), String> {
        match kind {
            "C" | "R" => {
                self.nothing_unread()?;
                if kind == "R" {
                    self.pending.extend_from_slice(&unescape(text)?);
                } else {
                    self.pending.extend_from_slice(format!("{text}\r\n").as_bytes());
                }
                return Ok(());
            }
            _ => self.send(),
        }
        match kind {
            "S" => {
                let line = self.next_line()?;
                let fits = match text.strip_prefix('~') {
                    Some(pattern) => fits(pattern, &line),
                    None => text == line,
                };
                if fits { Ok(()) } else { Err(format!("the server said: {line}")) }
            }
            "O" => {
                let call = self.owner.calls.get(self.owner_calls_checked).ok_or("the owner was asked nothing more")?;
                self.owner_calls_checked += 1;
                if call == text { Ok(()) } else { Err(format!("the owner was asked: {call}")) }
            }
            "T" => {
                self.nothing_unread()?;
                if self.step != Step::StartTls {
                    return Err(format!("no TLS was wanted but {:?}", self.step));
                }
                self.session.handle_tls_started(Instant::ZERO, &mut self.out);
                self.step = Step::Read;
                Ok(())
            }
            "X" => {
                self.nothing_unread()?;
                if self.step == Step::Close { Ok(()) } else { Err(format!("not closed but {:?}", self.step)) }
            }
            _ => Err(format!("no such kind of line: {kind}")),
        }
    }

    fn finish(&mut self) -> Result<(), String> {
        self.send();
        self.nothing_unread()?;
        let unchecked = &self.owner.calls[self.owner_calls_checked..];
        if self.owner_calls_checked > 0 && !unchecked.is_empty() {
            return Err(format!("the owner was asked too: {unchecked:?}"));
        }
        Ok(())
    }
}

/// Whether the line is like the pattern, whose `*` stand for anything.
fn fits(pattern: &str, line: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == line,
        Some((start, rest)) => line.strip_prefix(start).is_some_and(|behind| {
            (0..=behind.len()).any(|skip| behind.get(skip..).is_some_and(|tail| fits(rest, tail)))
        }),
    }
}

fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut octets = Vec::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            octets.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match characters.next() {
            Some('r') => octets.push(b'\r'),
            Some('n') => octets.push(b'\n'),
            Some('0') => octets.push(0),
            Some('\\') => octets.push(b'\\'),
            Some('x') => {
                let digits: String = characters.by_ref().take(2).collect();
                octets.push(u8::from_str_radix(&digits, 16).map_err(|_| format!("bad \\x{digits}"))?);
            }
            other => return Err(format!("bad escape {other:?}")),
        }
    }
    Ok(octets)
}

fn run(script: &str, piece: usize) -> Result<(), String> {
    let mut config = config();
    let mut dialog = None;
    for (number, line) in script.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = |error: String| format!("line {}: `{line}`: {error}", number + 1);
        let (kind, text) = line.split_once(':').ok_or_else(|| at("no colon".into()))?;
        let text = text.strip_prefix(' ').unwrap_or(text);
        if kind == "config" {
            text.split(' ').try_for_each(|setting| configure(&mut config, setting)).map_err(at)?;
            continue;
        }
        dialog.get_or_insert_with(|| Dialog::new(config.clone(), piece)).obey(kind, text).map_err(at)?;
    }
    dialog.ok_or("an empty script")?.finish().map_err(|error| format!("at the end: {error}"))
}

#[test]
fn all_dialogs_go_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogs");
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "smtp"));
    paths.sort();
    assert!(paths.len() >= 12, "scripts are missing in {}", folder.display());
    let mut failures = Vec::new();
    for path in paths {
        let script = std::fs::read_to_string(&path).unwrap();
        for piece in [usize::MAX, 7, 1] {
            if let Err(error) = run(&script, piece) {
                failures.push(format!("{} in pieces of {piece}: {error}", path.display()));
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn a_wrong_script_is_noticed() {
    for (script, error) in [
        ("S: 220 nobody ESMTP ready", "the server said"),
        ("C: NOOP", "unexpected: 220"),
        ("S: ~220 *\nC: NOOP", "unexpected: 250"),
        ("S: ~220 *\nS: ~*", "nothing more"),
        ("S: ~220 *\nX:", "not closed"),
        ("S: ~220 *\nC: EHLO a\nO: ehlo b", "the owner was asked"),
        ("config: what=ever", "no such setting"),
        ("hello", "no colon"),
    ] {
        let found = run(script, 1).unwrap_err();
        assert!(found.contains(error), "{script}: {found}");
    }
}
