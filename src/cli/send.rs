//! `ringpost send`: sends one message with the relay's own SMTP client, over a blocking socket. For trying a server;
//! it queues nothing and tries nothing again.

use super::args::SendArgs;
use super::{Failure, exit};
use crate::address::Address;
use crate::clock::Instant;
use crate::control::log::sanitised;
use crate::envelope::{Body, Notify};
use crate::io::blocking::BlockingStream;
use crate::io::clock;
use crate::reply::Reply;
use crate::shard::settings::HostSpec;
use crate::smtp::client::{
    Client, ClientConfig, ClientEvent, ClientFailure, ClientTimeouts, OutgoingContent, OutgoingRecipient,
    RecipientOutcome, TlsUse, Transaction,
};
use base64::Engine;
use bytes::Bytes;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

/// Octets of a message read from a file or from standard input.
const MESSAGE_OCTETS_MAX: u64 = 1 << 30;
/// A longer piece of what is sent is only counted in the printed dialogue.
const SHOWN_OCTETS: usize = 2_000;

/// Sends it. The exit code says whether all recipients were accepted.
pub fn run(args: SendArgs) -> Result<u8, Failure> {
    let sender = if args.from.is_empty() { None } else { Some(address(&args.from)?) };
    let recipients = args.to.iter().map(|to| address(to)).collect::<Result<Vec<_>, _>>()?;
    let hostname = args.ehlo.clone().unwrap_or_else(|| crate::config::Config::default().effective_hostname());
    let content = content(&args, &hostname)?;
    let utf8 = sender.iter().chain(&recipients).any(|address| !address.is_ascii());
    let body = if content.iter().any(|byte| *byte > 127) { Body::EightBitMime } else { Body::SevenBit };
    let transaction = Transaction {
        reverse_path: sender.map(|address| address.as_str().into()),
        recipients: recipients
            .iter()
            .map(|address| OutgoingRecipient { address: address.as_str().into(), notify: Notify::DEFAULT, orcpt: None })
            .collect(),
        body,
        smtputf8: utf8,
        require_tls: false,
        ret: None,
        envid: None,
        content_len: content.len() as u64,
        content: OutgoingContent::Whole(vec![content]),
    };
    let host = match &args.server.host {
        HostSpec::Address(address) => address.to_string(),
        HostSpec::Name(name) => name.to_string(),
    };
    let stream = BlockingStream::connect(&host, args.server.port, args.timeout).map_err(|error| {
        let text = format!("{host} port {}: {error}; does a server listen there?", args.server.port);
        Failure::new(exit::UNAVAILABLE, text)
    })?;
    let tls = if args.starttls { TlsUse::Required } else { TlsUse::Never };
    let config = ClientConfig {
        ehlo_name: hostname,
        tls,
        assume_8bitmime: true,
        chunking: true,
        pipelining: true,
        pipelined_messages: false,
        timeouts: timeouts(args.timeout),
    };
    let mut dialogue = Dialogue {
        client: Client::new(Arc::new(config), now()),
        stream: Some(stream),
        host,
        verbose: args.verbose,
        transaction: Some(transaction),
        outcomes: vec![None; recipients.len()],
        failure: None,
        quitting: false,
    };
    dialogue.run()?;
    tell(&recipients, &dialogue.outcomes, dialogue.failure)
}

fn now() -> Instant {
    clock::now().instant
}

fn address(text: &str) -> Result<Address, Failure> {
    Address::parse(text.as_bytes(), true)
        .map_err(|error| Failure::new(exit::USAGE, format!("`{text}` is not a mail address: {error}")))
}

fn timeouts(all: Duration) -> ClientTimeouts {
    ClientTimeouts {
        banner: all,
        hello: all,
        mail: all,
        rcpt: all,
        data: all,
        block: all,
        final_dot: all.max(Duration::from_secs(60)),
        ..ClientTimeouts::default()
    }
}

/// The message, with CRLF at the end of each line.
fn content(args: &SendArgs, hostname: &str) -> Result<Bytes, Failure> {
    let text = match &args.message {
        Some(file) if file.as_os_str() == "-" => read(&mut io::stdin().lock(), "standard input")?,
        Some(file) => {
            let name = file.display().to_string();
            let mut opened =
                std::fs::File::open(file).map_err(|error| Failure::new(exit::NO_INPUT, format!("{name}: {error}")))?;
            read(&mut opened, &name)?
        }
        None => {
            let body = if args.body == "-" {
                read(&mut io::stdin().lock(), "standard input")?
            } else {
                args.body.clone().into()
            };
            let mut message = headers(args, hostname, body.is_ascii()).into_bytes();
            message.extend_from_slice(&body);
            message
        }
    };
    Ok(with_crlf(&text).into())
}

fn read(source: &mut dyn Read, name: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    source
        .take(MESSAGE_OCTETS_MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::new(exit::IO, format!("{name} cannot be read: {error}")))?;
    Ok(bytes)
}

fn headers(args: &SendArgs, hostname: &str, ascii: bool) -> String {
    let at = jiff::Timestamp::now();
    let date = jiff::fmt::rfc2822::to_string(&at.to_zoned_datetime(jiff::tz::TimeZone::UTC)).unwrap_or_default();
    let id = format!("{}.{}@{hostname}", at.as_nanosecond(), std::process::id());
    let from = if args.from.is_empty() { format!("postmaster@{hostname}") } else { args.from.clone() };
    let subject = encoded_words(&args.subject);
    let encoding = if ascii { "7bit" } else { "8bit" };
    format!(
        "Date: {date}\r\nFrom: <{from}>\r\nTo: {}\r\nSubject: {subject}\r\nMessage-ID: <{id}>\r\nMIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n",
        args.to.iter().map(|to| format!("<{to}>")).collect::<Vec<_>>().join(",\r\n ")
    )
}

/// A header's text: as it is when it is plain ASCII, else in encoded words (RFC 2047).
fn encoded_words(text: &str) -> String {
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && text.len() <= 900 {
        return text.to_owned();
    }
    let mut words = Vec::new();
    let mut piece = String::new();
    for letter in text.chars() {
        // An encoded word has at most 75 characters, which hold 45 octets.
        if piece.len() + letter.len_utf8() > 45 {
            words.push(std::mem::take(&mut piece));
        }
        piece.push(letter);
    }
    words.push(piece);
    let encode = |word: &String| format!("=?utf-8?B?{}?=", base64::engine::general_purpose::STANDARD.encode(word));
    words.iter().map(encode).collect::<Vec<_>>().join("\r\n ")
}

/// Every line end becomes CRLF.
fn with_crlf(text: &[u8]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(text.len() + text.len() / 32 + 2);
    let mut before = 0;
    for &byte in text {
        match byte {
            b'\n' if before == b'\r' => lines.push(b'\n'),
            b'\n' => lines.extend_from_slice(b"\r\n"),
            other => {
                if before == b'\r' {
                    lines.push(b'\n');
                }
                lines.push(other);
            }
        }
        before = byte;
    }
    if before == b'\r' {
        lines.push(b'\n');
    }
    lines
}

/// The exchange with the server.
struct Dialogue {
    client: Client,
    stream: Option<BlockingStream>,
    host: String,
    verbose: bool,
    transaction: Option<Transaction>,
    outcomes: Vec<Option<RecipientOutcome>>,
    failure: Option<ClientFailure>,
    quitting: bool,
}

impl Dialogue {
    /// Until it is over.
    fn run(&mut self) -> Result<(), Failure> {
        loop {
            while let Some(bytes) = self.client.poll_transmit() {
                self.show('>', &bytes)?;
                let sent = match &mut self.stream {
                    Some(stream) => stream.write_all(&bytes).and_then(|()| stream.flush()),
                    None => Err(io::ErrorKind::NotConnected.into()),
                };
                if let Err(error) = sent {
                    self.client.handle_closed(&error.to_string(), now());
                }
            }
            match self.client.poll_event() {
                Some(ClientEvent::Failed(failure)) => {
                    self.failure = Some(failure);
                    return Ok(());
                }
                Some(ClientEvent::Closed) => return Ok(()),
                Some(event) => self.event(event)?,
                None => self.receive()?,
            }
        }
    }

    fn event(&mut self, event: ClientEvent) -> Result<(), Failure> {
        match event {
            ClientEvent::Ready => match self.transaction.take() {
                Some(transaction) => self.client.begin(transaction, now()),
                None => {
                    self.quitting = true;
                    self.client.quit(now());
                }
            },
            ClientEvent::StartTls => {
                let started = match self.stream.take() {
                    Some(stream) => stream.start_tls(&self.host),
                    None => Err(io::ErrorKind::NotConnected.into()),
                };
                match started {
                    Ok((stream, version)) => {
                        self.note(&format!("encrypted with {version}"))?;
                        self.stream = Some(stream);
                        self.client.handle_tls_started(now());
                    }
                    Err(error) => self.client.handle_closed(&format!("the TLS handshake failed: {error}"), now()),
                }
            }
            ClientEvent::Recipient { index, outcome } => {
                if let Some(place) = self.outcomes.get_mut(index) {
                    *place = Some(outcome);
                }
            }
            // The whole content was given with the transaction.
            ClientEvent::WantContent { .. } => self.client.provide_content(Bytes::new(), now()),
            ClientEvent::Next | ClientEvent::Failed(_) | ClientEvent::Closed => {}
        }
        Ok(())
    }

    /// Waits for the server, until the client's deadline at most.
    fn receive(&mut self) -> Result<(), Failure> {
        let mut buffer = [0; 16 * 1024];
        let wait = self.client.deadline().since(now()).min(Duration::from_secs(3600));
        let read = match &mut self.stream {
            Some(stream) => stream.set_timeout(wait).and_then(|()| stream.read(&mut buffer)),
            None => Ok(0),
        };
        match read {
            Ok(0) => self.client.handle_closed("the server closed it", now()),
            Ok(octets) => {
                self.show('<', &buffer[..octets])?;
                self.client.handle_input(&buffer[..octets], now());
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                self.client.handle_timeout(now().max(self.client.deadline()));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.client.handle_closed(&error.to_string(), now()),
        }
        Ok(())
    }

    fn show(&self, side: char, bytes: &[u8]) -> Result<(), Failure> {
        if !self.verbose {
            return Ok(());
        }
        let out = &mut io::stdout().lock();
        if bytes.len() > SHOWN_OCTETS {
            writeln!(out, "{side} … {} octets", bytes.len())?;
            return Ok(());
        }
        for line in String::from_utf8_lossy(bytes).lines() {
            writeln!(out, "{side} {}", sanitised(line))?;
        }
        Ok(())
    }

    fn note(&self, text: &str) -> Result<(), Failure> {
        if self.verbose {
            writeln!(io::stdout(), "* {text}")?;
        }
        Ok(())
    }
}

/// Prints what became of each recipient.
fn tell(
    recipients: &[Address],
    outcomes: &[Option<RecipientOutcome>],
    failure: Option<ClientFailure>,
) -> Result<u8, Failure> {
    let out = &mut io::stdout().lock();
    let mut code = exit::OK;
    for (recipient, outcome) in recipients.iter().zip(outcomes) {
        let (text, worst) = match outcome {
            Some(RecipientOutcome::Delivered(reply)) => (reply_text(reply), exit::OK),
            Some(RecipientOutcome::Refused { reply, stage }) => {
                let worst = if reply.is_transient() { exit::TEMPORARY } else { exit::NOTHING };
                (format!("{} (in reply to {stage})", reply_text(reply)), worst)
            }
            Some(RecipientOutcome::Unsupported { text, .. }) => ((*text).to_owned(), exit::NOTHING),
            None => ("not decided".to_owned(), exit::TEMPORARY),
        };
        code = code.max(worst);
        writeln!(out, "<{recipient}>: {}", sanitised(&text))?;
    }
    let decided = outcomes.iter().all(Option::is_some);
    match failure {
        // All is said: what happens after the last reply does not matter.
        Some(failure) if !decided => Err(Failure::new(exit::UNAVAILABLE, format!("not sent: {failure}"))),
        _ => Ok(code),
    }
}

fn reply_text(reply: &Reply) -> String {
    reply.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_end_becomes_crlf() {
        assert_eq!(with_crlf(b"a\nb\r\nc\rd\r"), b"a\r\nb\r\nc\r\nd\r\n");
        assert_eq!(with_crlf(b"\r\r\n\n"), b"\r\n\r\n\r\n");
        assert_eq!(with_crlf(b""), b"");
    }

    #[test]
    fn subjects_are_encoded_when_they_must_be() {
        assert_eq!(encoded_words("hello"), "hello");
        assert_eq!(encoded_words("grün"), "=?utf-8?B?Z3LDvG4=?=");
        let long = encoded_words(&"ü".repeat(100));
        assert!(long.split("\r\n ").all(|word| word.len() <= 75), "{long}");
    }
}
