//! A client of the milter protocol, version 6 (as in Sendmail's libmilter; the reference is its include/libmilter/mfdef.h):
//! a complete message is played to the filter as if it came just now, over a connection of its own.
//!
//! Taken from the filter: accept, reject, put off, quarantine, header fields to add. A filter that wants to change headers that
//! are there is not heard in that (they may be signed by others); one that wants to change recipients, sender or body has
//! failed, since the message would not be what it let through. A recipient that it refuses refuses the message.

use super::filter_content::Content;
use super::filters::{Answer, FilterError, rejection};
use crate::limits::FILTER_ANSWER_MAX;
use crate::policy::headers::fields;
use crate::reply::{EnhancedCode, Reply};
use crate::shard::message::FilterQuestion;
use bytes::Bytes;
use std::io;
use std::net::IpAddr;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const VERSION: u32 = 6;
/// All that libmilter knows but lists of macros: filters ask for more than they use.
const ACTIONS: u32 = 0xff;
/// All that libmilter knows but rejected recipients (bit 11) and larger packets.
const STEPS: u32 = 0x1f_ffff & !(1 << 11);
const SKIP: u32 = 1 << 10;
const LEADING_SPACE: u32 = 1 << 20;
/// Octets of body in one packet.
const BODY_MAX: usize = 65_535;

/// A command: its letter, the step bit with which a filter does without it, and that with which it gives no reply.
#[derive(Copy, Clone)]
struct Command {
    letter: u8,
    unwanted: u32,
    unanswered: u32,
}

const CONNECT: Command = Command { letter: b'C', unwanted: 1, unanswered: 1 << 12 };
const HELO: Command = Command { letter: b'H', unwanted: 1 << 1, unanswered: 1 << 13 };
const MAIL: Command = Command { letter: b'M', unwanted: 1 << 2, unanswered: 1 << 14 };
const RCPT: Command = Command { letter: b'R', unwanted: 1 << 3, unanswered: 1 << 15 };
const DATA: Command = Command { letter: b'T', unwanted: 1 << 9, unanswered: 1 << 16 };
const HEADER: Command = Command { letter: b'L', unwanted: 1 << 5, unanswered: 1 << 7 };
const END_OF_HEADER: Command = Command { letter: b'N', unwanted: 1 << 6, unanswered: 1 << 18 };
const BODY: Command = Command { letter: b'B', unwanted: 1 << 4, unanswered: 1 << 19 };
const END_OF_BODY: Command = Command { letter: b'E', unwanted: 0, unanswered: 0 };

/// What the filter wants next.
enum Next {
    GoOn,
    /// No more of the body.
    Skip,
    /// The filter has decided.
    Done,
}

/// A conversation about one message.
struct Milter<S> {
    stream: S,
    steps: u32,
    /// Packets that were not sent yet.
    out: Vec<u8>,
    /// The message's own headers.
    section: Bytes,
    answer: Answer,
}

/// Asks a filter at the other end of this stream.
///
/// # Errors
/// When the filter does not keep to the protocol, or wants what cannot be done.
pub async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    hostname: &str,
    question: &FilterQuestion,
    content: &Content,
) -> Result<Answer, FilterError> {
    let mut milter = Milter { stream, steps: 0, out: Vec::new(), section: Bytes::new(), answer: Answer::default() };
    milter.negotiate().await?;
    milter.play(hostname, question, content).await?;
    milter.packet(b'Q', &[]);
    // The answer is there, whether or not the filter hears the goodbye.
    let _ = milter.flush().await;
    Ok(milter.answer)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Milter<S> {
    async fn negotiate(&mut self) -> Result<(), FilterError> {
        let offer = [VERSION, ACTIONS, STEPS].map(u32::to_be_bytes).concat();
        self.packet(b'O', &offer);
        let (letter, body) = self.read().await?;
        let (b'O', Some(words)) = (letter, body.get(..12)) else {
            return Err(FilterError::protocol(format!("it answers the negotiation with {}", shown(letter))));
        };
        let word = |at: usize| u32::from_be_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
        let (version, steps) = (word(0), word(8));
        if !(2..=VERSION).contains(&version) {
            return Err(FilterError::protocol(format!("it speaks version {version} of the milter protocol")));
        }
        if steps & !STEPS != 0 {
            return Err(FilterError::protocol(format!(
                "it wants steps of the protocol that were not offered ({steps:#x})"
            )));
        }
        self.steps = steps;
        Ok(())
    }

    /// Tells of everything in turn, until the filter has decided.
    async fn play(&mut self, hostname: &str, question: &FilterQuestion, content: &Content) -> Result<(), FilterError> {
        let id = question.id.to_string();
        self.macros(CONNECT, &[("j", hostname), ("{daemon_name}", "ringpost")]);
        if let Next::Done = self.command(CONNECT, &connection(question)).await? {
            return Ok(());
        }
        if let Some((version, cipher)) = question.tls {
            self.macros(HELO, &[("{tls_version}", version), ("{cipher}", cipher)]);
        }
        if let Next::Done = self.command(HELO, &texts(&[&question.helo])).await? {
            return Ok(());
        }
        let login = question.login.as_deref();
        let mut macros = vec![("i", &*id), ("{mail_addr}", &*question.sender)];
        macros.extend(login.map(|login| ("{auth_authen}", login)));
        self.macros(MAIL, &macros);
        if let Next::Done = self.command(MAIL, &texts(&[&format!("<{}>", question.sender)])).await? {
            return Ok(());
        }
        for recipient in &question.recipients {
            self.macros(RCPT, &[("{rcpt_addr}", recipient)]);
            if let Next::Done = self.command(RCPT, &texts(&[&format!("<{recipient}>")])).await? {
                return Ok(());
            }
        }
        if let Next::Done = self.command(DATA, &[]).await? {
            return Ok(());
        }
        self.section = content.header_section().await?;
        let section = self.section.clone();
        for field in fields(&section) {
            let named =
                [field.name, b"\0", &header_value(field.value, self.steps & LEADING_SPACE != 0), b"\0"].concat();
            if let Next::Done = self.command(HEADER, &named).await? {
                return Ok(());
            }
        }
        if let Next::Done = self.command(END_OF_HEADER, &[]).await? {
            return Ok(());
        }
        if let Next::Done = self.body(content, section.len() as u64).await? {
            return Ok(());
        }
        self.macros(END_OF_BODY, &[("i", &id)]);
        self.command(END_OF_BODY, &[]).await?;
        Ok(())
    }

    async fn body(&mut self, content: &Content, from: u64) -> Result<Next, FilterError> {
        let mut at = from;
        while self.steps & BODY.unwanted == 0 && at < content.len() {
            let piece = content.piece(at).await?;
            at += piece.len() as u64;
            for packet in piece.chunks(BODY_MAX) {
                match self.command(BODY, packet).await? {
                    Next::GoOn => {}
                    Next::Skip => return Ok(Next::GoOn),
                    Next::Done => return Ok(Next::Done),
                }
            }
        }
        Ok(Next::GoOn)
    }

    /// Gives one command, if the filter wants it, and hears the reply, if there is one.
    async fn command(&mut self, command: Command, body: &[u8]) -> Result<Next, FilterError> {
        if self.steps & command.unwanted != 0 {
            return Ok(Next::GoOn);
        }
        self.packet(command.letter, body);
        if self.steps & command.unanswered != 0 {
            // Long content is not gathered here.
            if self.out.len() > BODY_MAX {
                self.flush().await?;
            }
            return Ok(Next::GoOn);
        }
        loop {
            let (letter, body) = self.read().await?;
            match letter {
                b'c' => return Ok(Next::GoOn),
                b's' if command.letter == BODY.letter && self.steps & SKIP != 0 => return Ok(Next::Skip),
                b'a' => return Ok(Next::Done),
                b'r' => self.answer.refusal = Some(rejection(None)),
                // Nothing that was accepted may vanish: whoever sent it hears that it was not.
                b'd' => self.answer.refusal = Some(rejection(None)),
                b't' => self.answer.refusal = Some(Reply::fixed(451, 4, 7, 1, "Try again later")),
                b'y' => self.answer.refusal = Some(reply_of(&body)?),
                // It is busy with it.
                b'p' => continue,
                letter if command.letter == END_OF_BODY.letter => {
                    self.modification(letter, &body)?;
                    continue;
                }
                other => return Err(FilterError::protocol(format!("it answers with {}", shown(other)))),
            }
            return Ok(Next::Done);
        }
    }

    fn modification(&mut self, letter: u8, body: &[u8]) -> Result<(), FilterError> {
        match letter {
            b'h' => self.add_header(body),
            b'i' => self.add_header(body.get(4..).unwrap_or_default()),
            b'q' => self.answer.hold = Some(first_text(body)),
            b'm' => self.change_header(body.get(4..).unwrap_or_default()),
            b'b' => return Err(FilterError::protocol("it wants to replace the body, which is not done".into())),
            b'+' | b'-' | b'2' => {
                return Err(FilterError::protocol("it wants to change the recipients, which is not done".into()));
            }
            b'e' => return Err(FilterError::protocol("it wants to change the sender, which is not done".into())),
            other => return Err(FilterError::protocol(format!("it answers with {}", shown(other)))),
        }
        Ok(())
    }

    /// A header that is there stays as it is; to change one that is not there is to add it, and to remove one is done then.
    fn change_header(&mut self, body: &[u8]) {
        let (name, value) = (first_text(body), body.split(|octet| *octet == 0).nth(1).unwrap_or_default());
        if fields(&self.section).any(|field| field.name.eq_ignore_ascii_case(name.as_bytes())) {
            self.answer.ignored = Some("to change or remove a header that is there");
        } else if !value.is_empty() {
            self.add_header(body);
        }
    }

    fn add_header(&mut self, body: &[u8]) {
        let mut texts = body.split(|octet| *octet == 0).map(|text| String::from_utf8_lossy(text).into_owned());
        if let (Some(name), Some(value)) = (texts.next(), texts.next()) {
            self.answer.headers.push((name, value));
        }
    }

    fn macros(&mut self, command: Command, macros: &[(&str, &str)]) {
        if self.steps & command.unwanted != 0 {
            return;
        }
        let mut body = vec![command.letter];
        for (name, value) in macros {
            body.extend_from_slice(&texts(&[name, value]));
        }
        self.packet(b'D', &body);
    }

    fn packet(&mut self, letter: u8, body: &[u8]) {
        self.out.extend_from_slice(&(body.len() as u32 + 1).to_be_bytes());
        self.out.push(letter);
        self.out.extend_from_slice(body);
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        self.stream.flush().await
    }

    async fn read(&mut self) -> Result<(u8, Vec<u8>), FilterError> {
        self.flush().await?;
        let len = self.stream.read_u32().await? as usize;
        if !(1..=FILTER_ANSWER_MAX).contains(&len) {
            return Err(FilterError::protocol(format!("it announces an answer of {len} octets")));
        }
        let mut packet = vec![0; len];
        self.stream.read_exact(&mut packet).await?;
        let letter = packet.remove(0);
        Ok((letter, packet))
    }
}

/// Texts with a zero behind each. None can be within: what clients say has none.
fn texts(all: &[&str]) -> Vec<u8> {
    all.iter().flat_map(|text| text.bytes().filter(|octet| *octet != 0).chain([0])).collect()
}

fn connection(question: &FilterQuestion) -> Vec<u8> {
    let address = question.client.ip().to_canonical();
    let family = match address {
        IpAddr::V4(_) => b'4',
        IpAddr::V6(_) => b'6',
    };
    let mut body = texts(&[&format!("[{address}]")]);
    body.push(family);
    body.extend_from_slice(&question.client.port().to_be_bytes());
    body.extend_from_slice(&texts(&[&address.to_string()]));
    body
}

/// A header's value as filters see it: without the line's end, with plain LF where it is folded.
fn header_value(value: &[u8], leading_space: bool) -> Vec<u8> {
    let value = value.strip_suffix(b"\r\n").unwrap_or(value);
    let value = if leading_space { value } else { value.strip_prefix(b" ").unwrap_or(value) };
    value.iter().copied().filter(|octet| !matches!(octet, b'\r' | 0)).collect()
}

fn first_text(body: &[u8]) -> String {
    String::from_utf8_lossy(body.split(|octet| *octet == 0).next().unwrap_or_default()).into_owned()
}

/// The reply that a filter wants to be given: "554 5.7.1 text", in one line or several.
fn reply_of(body: &[u8]) -> Result<Reply, FilterError> {
    let text = first_text(body);
    let lines: Vec<&str> = text.lines().collect();
    let code = lines.first().and_then(|line| line.get(..3)).and_then(|code| code.parse::<u16>().ok());
    let Some(code) = code.filter(|code| (400..600).contains(code)) else {
        return Err(FilterError::protocol(format!("it wants a reply that refuses nothing: {text:?}")));
    };
    let class = if code < 500 { 4 } else { 5 };
    let mut enhanced = EnhancedCode::new(class, 7, 1);
    let mut words = Vec::new();
    for line in lines {
        let rest = line.get(4..).unwrap_or_default();
        let (first, behind) = rest.split_once(' ').unwrap_or((rest, ""));
        match EnhancedCode::parse(first).filter(|code| code.class == class) {
            Some(given) => {
                enhanced = given;
                words.push(behind);
            }
            None => words.push(rest),
        }
    }
    let said = rejection(Some(&words.join(" ")));
    Ok(Reply { code, enhanced: Some(enhanced), ..said })
}

fn shown(letter: u8) -> String {
    format!("'{}'", letter.escape_ascii())
}
