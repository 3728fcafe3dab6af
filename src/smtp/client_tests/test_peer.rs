//! A strict peer for the client: understands what it sends, refuses what it is told to, keeps what it was given.
//! It panics at what no server would understand.

use super::*;

/// A peer that understands what a client sends, strictly, and keeps what it was given.
#[derive(Default)]
pub(super) struct TestPeer {
    pub(super) extensions: Vec<&'static str>,
    /// Answers of this kind are refused with this reply: "MAIL", "RCPT <address>", "DATA", "BDAT", "END".
    pub(super) refuse: Vec<(&'static str, &'static str)>,
    pub(super) input: Vec<u8>,
    pub(super) mail: Option<String>,
    pub(super) recipients: Vec<String>,
    pub(super) content: Vec<u8>,
    pub(super) in_data: bool,
    /// Octets of a chunk that are to come, and whether it is the last.
    pub(super) chunk: Option<(usize, bool)>,
    pub(super) messages: Vec<(String, Vec<String>, Vec<u8>)>,
    pub(super) commands: Vec<String>,
}

impl TestPeer {
    pub(super) fn handle(&mut self, input: &[u8]) -> Vec<u8> {
        self.input.extend_from_slice(input);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    fn refusal(&self, what: &str) -> Option<&'static str> {
        self.refuse.iter().find(|(key, _)| *key == what).map(|(_, reply)| *reply)
    }

    fn end_message(&mut self) -> &'static str {
        let content = std::mem::take(&mut self.content);
        let recipients = std::mem::take(&mut self.recipients);
        let mail = self.mail.take().unwrap_or_default();
        if recipients.is_empty() {
            return "554 5.5.1 no recipients";
        }
        if let Some(reply) = self.refusal("END") {
            return reply;
        }
        self.messages.push((mail, recipients, content));
        "250 2.0.0 stored"
    }

    fn step(&mut self, out: &mut Vec<u8>) -> bool {
        let mut say = |reply: &str| out.extend_from_slice(format!("{reply}\r\n").as_bytes());
        if let Some((length, last)) = self.chunk {
            if self.input.len() < length {
                return false;
            }
            let chunk: Vec<u8> = self.input.drain(..length).collect();
            self.chunk = None;
            if self.recipients.is_empty() {
                say("503 5.5.1 no recipients");
            } else if let Some(reply) = self.refusal("BDAT") {
                self.recipients.clear();
                say(reply);
            } else {
                self.content.extend_from_slice(&chunk);
                let reply = if last { self.end_message() } else { "250 2.0.0 chunk" };
                say(reply);
            }
            return true;
        }
        if self.in_data {
            let Some(end) = memchr::memmem::find(&self.input, b"\r\n") else { return false };
            let line: Vec<u8> = self.input.drain(..end + 2).collect();
            if line == b".\r\n" {
                self.in_data = false;
                let reply = self.end_message();
                say(reply);
            } else {
                self.content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
            }
            return true;
        }
        let Some(end) = memchr::memmem::find(&self.input, b"\r\n") else { return false };
        let line: Vec<u8> = self.input.drain(..end + 2).collect();
        let line = String::from_utf8(line[..end].to_vec()).unwrap();
        self.commands.push(line.clone());
        let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match verb {
            "EHLO" => out.extend_from_slice(hello(&self.extensions).as_bytes()),
            "MAIL" => match self.refusal("MAIL") {
                Some(reply) => say(reply),
                None => {
                    assert!(self.mail.is_none(), "a transaction is open");
                    self.mail = Some(rest.to_owned());
                    say("250 2.1.0 OK");
                }
            },
            "RCPT" => {
                let address = rest.strip_prefix("TO:<").unwrap().split('>').next().unwrap();
                match self.refusal(address) {
                    Some(reply) => say(reply),
                    None if self.mail.is_none() => say("503 5.5.1 MAIL first"),
                    None => {
                        self.recipients.push(address.to_owned());
                        say("250 2.1.5 OK");
                    }
                }
            }
            "DATA" => match self.refusal("DATA") {
                Some(reply) => say(reply),
                None if self.mail.is_none() => say("503 5.5.1 MAIL first"),
                None => {
                    self.in_data = true;
                    say("354 go");
                }
            },
            "BDAT" => {
                let (length, last) = rest.split_once(' ').unwrap_or((rest, ""));
                self.chunk = Some((length.parse().unwrap(), last == "LAST"));
            }
            "RSET" => {
                (self.mail, self.recipients, self.content) = (None, Vec::new(), Vec::new());
                say("250 2.0.0 OK");
            }
            "QUIT" => say("221 2.0.0 bye"),
            other => panic!("unknown command {other}"),
        }
        true
    }
}

/// Runs transactions over a connection to `peer`, feeding replies in pieces of the lengths in `cuts`, round and round.
/// Gives all transmissions and events. `piece`: how much of a streamed content is provided at a time.
pub(super) fn converse(
    client: &mut Client,
    peer: &mut TestPeer,
    mut transactions: Vec<(Transaction, Vec<u8>)>,
    piece: usize,
    cuts: &[usize],
) -> (Vec<u8>, Vec<ClientEvent>) {
    transactions.reverse();
    let (mut all, mut seen, mut content) = (Vec::new(), Vec::new(), Vec::new());
    let mut to_client = b"220 mx.example ESMTP\r\n".to_vec();
    let mut cuts = cuts.iter().copied().filter(|&cut| cut > 0).cycle();
    for _ in 0..100_000 {
        let mut still = true;
        if let Some(bytes) = client.poll_transmit() {
            all.extend_from_slice(&bytes);
            to_client.extend_from_slice(&peer.handle(&bytes));
            still = false;
        } else if let Some(event) = client.poll_event() {
            match &event {
                ClientEvent::Ready => match transactions.pop() {
                    Some((next, bytes)) => {
                        content = bytes;
                        client.begin(next, at(1));
                    }
                    None => client.quit(at(1)),
                },
                ClientEvent::WantContent { offset, max } => {
                    let from = usize::try_from(*offset).unwrap();
                    let until = content.len().min(from + piece.min(*max));
                    client.provide_content(Bytes::copy_from_slice(&content[from..until]), at(1));
                }
                _ => {}
            }
            seen.push(event);
            still = false;
        } else if !to_client.is_empty() {
            let cut = cuts.next().unwrap_or(usize::MAX).min(to_client.len());
            let input: Vec<u8> = to_client.drain(..cut).collect();
            client.handle_input(&input, at(1));
            still = false;
        }
        if still {
            return (all, seen);
        }
    }
    panic!("the conversation does not end");
}
