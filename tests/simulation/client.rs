//! Clients that submit mail: each follows its plan, in its manner, and writes down in the ledger what it was told. Some
//! go away in the midst of things, hang, or send the second half of a content late.

use crate::world::ledger::Told;
use crate::world::plan::{Manner, MessagePlan, SessionPlan};
use crate::world::random::{MS, S};
use crate::world::wire::LinkId;
use crate::world::{Event, World};
use ringpost::id::MessageId;
use std::collections::VecDeque;

/// Attempts to connect before a client gives up.
const TRIES_MAX: u32 = 6;

/// The reply a client waits for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Expect {
    Greeting,
    Hello,
    StartTls,
    Mail,
    Recipient(usize),
    Data,
    Chunk,
    /// The end of the content; false when no recipient was accepted.
    Final(bool),
    Reset,
    Quit,
}

/// One client and its one connection.
#[derive(Debug)]
pub struct Client {
    plan: SessionPlan,
    link: Option<LinkId>,
    expects: VecDeque<Expect>,
    buffer: Vec<u8>,
    /// Which message is under way, and whether it was begun.
    message: usize,
    begun: bool,
    mail_accepted: bool,
    replies: u32,
    tries: u32,
    encrypted: bool,
    refused: Option<u16>,
    /// Comes later.
    second_half: Vec<u8>,
    /// Says nothing any more.
    silent: bool,
    /// It is over, one way or the other.
    pub done: bool,
}

impl Client {
    /// A client that has yet to begin.
    pub fn new(plan: SessionPlan) -> Client {
        Client {
            plan,
            link: None,
            expects: VecDeque::new(),
            buffer: Vec::new(),
            message: 0,
            begun: false,
            mail_accepted: false,
            replies: 0,
            tries: 0,
            encrypted: false,
            refused: None,
            second_half: Vec::new(),
            silent: false,
            done: false,
        }
    }

    fn current(&self) -> Option<&MessagePlan> {
        self.plan.messages.get(self.message)
    }

    /// Takes the next whole reply out of the buffer.
    fn next_reply(&mut self) -> Option<(u16, String)> {
        let mut from = 0;
        loop {
            let line_len = self.buffer[from..].windows(2).position(|two| two == b"\r\n")?;
            let line = &self.buffer[from..from + line_len];
            let last = line.get(3) != Some(&b'-');
            from += line_len + 2;
            if last {
                let whole = String::from_utf8_lossy(&self.buffer[..from]).into_owned();
                let code = String::from_utf8_lossy(&line[..line.len().min(3)]).parse().unwrap_or(0);
                self.buffer.drain(..from);
                return Some((code, whole));
            }
        }
    }
}

impl World {
    /// The client connects.
    pub fn client_starts(&mut self, client: usize) {
        if self.clients[client].link.is_some() || self.clients[client].done {
            return;
        }
        match self.client_connects(client) {
            Some(link) => {
                let found = &mut self.clients[client];
                found.link = Some(link);
                found.expects.push_back(Expect::Greeting);
            }
            None => {
                self.clients[client].tries += 1;
                if self.clients[client].tries >= TRIES_MAX {
                    self.clients[client].done = true;
                } else {
                    let wait = self.random.range(500 * MS, 8 * S);
                    self.after(wait, Event::ClientStarts(client));
                }
            }
        }
    }

    /// The late part of a content.
    pub fn client_wakes(&mut self, client: usize) {
        let found = &mut self.clients[client];
        let Some(link) = found.link else { return };
        let bytes = std::mem::take(&mut found.second_half);
        if found.silent || bytes.is_empty() {
            return;
        }
        self.content_sent(client);
        self.party_sends(link, bytes, 0);
    }

    /// Bytes came from the relay.
    pub fn client_hears(&mut self, client: usize, link: LinkId, bytes: &[u8]) {
        if self.clients[client].link != Some(link) {
            return;
        }
        self.clients[client].buffer.extend_from_slice(bytes);
        while self.clients[client].link == Some(link) && !self.clients[client].silent {
            let Some((code, text)) = self.clients[client].next_reply() else { return };
            self.client_reads(client, link, code, &text);
        }
    }

    /// The relay's half of a handshake came.
    pub fn client_encrypted(&mut self, client: usize, link: LinkId) {
        if self.clients[client].link == Some(link) {
            self.clients[client].encrypted = true;
            self.say(client, "EHLO client.test\r\n", Expect::Hello);
        }
    }

    /// The connection is over.
    pub fn client_lost(&mut self, client: usize, link: LinkId) {
        let found = &mut self.clients[client];
        if found.link == Some(link) {
            found.link = None;
            found.done = true;
        }
    }

    fn say(&mut self, client: usize, line: &str, expect: Expect) {
        let Some(link) = self.clients[client].link else { return };
        self.clients[client].expects.push_back(expect);
        self.party_sends(link, line.as_bytes().to_vec(), 0);
    }

    fn client_reads(&mut self, client: usize, link: LinkId, code: u16, text: &str) {
        *self.ledger.replies.entry(code).or_default() += 1;
        self.trace.line(self.now, format_args!("client {client} reads {}", text.trim_end()));
        let found = &mut self.clients[client];
        let Some(expect) = found.expects.pop_front() else {
            if code != 421 {
                self.ledger.violation(format!("client {client} got a reply that it did not ask for: {text}"));
            }
            return;
        };
        found.replies += 1;
        let leaves = found.plan.leaves_after == Some(found.replies);
        self.client_goes_on(client, expect, code, text);
        if leaves && self.clients[client].link == Some(link) {
            self.client_leaves(client, link);
        }
    }

    fn client_leaves(&mut self, client: usize, link: LinkId) {
        let found = &mut self.clients[client];
        found.done = true;
        match self.random.below(4) {
            0 => {
                found.link = None;
                self.party_resets(link);
            }
            1 => {
                found.link = None;
                self.party_closes(link);
            }
            2 => self.party_half_closes(link),
            // Until the relay has had enough of it.
            _ => found.silent = true,
        }
        self.trace.line(self.now, format_args!("client {client} leaves"));
    }

    fn client_goes_on(&mut self, client: usize, expect: Expect, code: u16, text: &str) {
        let good = code / 100 == 2;
        if code == 421 && !matches!(expect, Expect::Final(_)) {
            return;
        }
        match expect {
            Expect::Greeting if good => self.say(client, "EHLO client.test\r\n", Expect::Hello),
            Expect::Hello if good => {
                let found = &self.clients[client];
                if found.plan.tls.is_some() && !found.encrypted && text.contains("STARTTLS") {
                    self.say(client, "STARTTLS\r\n", Expect::StartTls);
                } else {
                    self.next_message(client);
                }
            }
            Expect::StartTls if good => {
                let found = &self.clients[client];
                if let (Some(link), Some(works)) = (found.link, found.plan.tls) {
                    self.party_starts_tls(link, works);
                }
            }
            Expect::Greeting | Expect::Hello | Expect::StartTls => self.client_quits(client),
            Expect::Mail => {
                self.clients[client].mail_accepted = good;
                self.after_mail(client);
            }
            Expect::Recipient(index) => {
                let token = self.clients[client].current().map_or(0, |message| message.token);
                if let Some(entry) = self.ledger.entries.get_mut(&token) {
                    entry.accepted[index] = good;
                }
                self.after_recipient(client, index);
            }
            Expect::Data if code == 354 => {
                let accepted = self.any_accepted(client);
                self.send_data(client, accepted);
            }
            Expect::Data => self.say(client, "RSET\r\n", Expect::Reset),
            Expect::Chunk => {
                if !good {
                    self.clients[client].refused.get_or_insert(code);
                }
            }
            Expect::Final(accepted) => self.after_final(client, accepted, code, text),
            Expect::Reset => {
                self.clients[client].message += 1;
                self.clients[client].begun = false;
                self.next_message(client);
            }
            Expect::Quit => self.client_closes(client),
        }
    }

    fn client_quits(&mut self, client: usize) {
        self.say(client, "QUIT\r\n", Expect::Quit);
    }

    fn client_closes(&mut self, client: usize) {
        let found = &mut self.clients[client];
        found.done = true;
        if let Some(link) = found.link.take() {
            self.party_closes(link);
        }
    }

    fn any_accepted(&self, client: usize) -> bool {
        let token = self.clients[client].current().map_or(0, |message| message.token);
        self.ledger.entries.get(&token).is_some_and(|entry| entry.accepted.contains(&true))
    }

    fn next_message(&mut self, client: usize) {
        let Some(message) = self.clients[client].current().cloned() else { return self.client_quits(client) };
        self.clients[client].begun = true;
        self.clients[client].refused = None;
        self.ledger.submit(&message);
        let mail = mail_command(&message, self.random.chance(500));
        match self.clients[client].plan.manner {
            Manner::Lockstep => self.say(client, &mail, Expect::Mail),
            manner => {
                let mut flight = mail;
                let mut expects = vec![Expect::Mail];
                for index in 0..message.recipients.len() {
                    flight.push_str(&recipient_command(&message, index));
                    expects.push(Expect::Recipient(index));
                }
                if manner == Manner::Pipelined {
                    flight.push_str("DATA\r\n");
                    expects.push(Expect::Data);
                }
                self.clients[client].expects.extend(expects);
                if let Some(link) = self.clients[client].link {
                    self.party_sends(link, flight.into_bytes(), 0);
                }
            }
        }
    }

    fn after_mail(&mut self, client: usize) {
        if self.clients[client].plan.manner != Manner::Lockstep {
            return;
        }
        let Some(message) = self.clients[client].current().cloned() else { return };
        if self.clients[client].mail_accepted {
            self.say(client, &recipient_command(&message, 0), Expect::Recipient(0));
        } else {
            self.say(client, "RSET\r\n", Expect::Reset);
        }
    }

    fn after_recipient(&mut self, client: usize, index: usize) {
        let Some(message) = self.clients[client].current().cloned() else { return };
        let last = index + 1 == message.recipients.len();
        let accepted = self.any_accepted(client);
        match self.clients[client].plan.manner {
            Manner::Pipelined => {}
            Manner::Lockstep if !last => {
                self.say(client, &recipient_command(&message, index + 1), Expect::Recipient(index + 1));
            }
            Manner::Lockstep if accepted => self.say(client, "DATA\r\n", Expect::Data),
            Manner::Chunks if last && accepted => self.send_chunks(client, message.token),
            Manner::Lockstep => self.say(client, "RSET\r\n", Expect::Reset),
            Manner::Chunks if last => self.say(client, "RSET\r\n", Expect::Reset),
            Manner::Chunks => {}
        }
    }

    /// The content and the dot that ends it; the dot alone when nobody is to get it.
    fn send_data(&mut self, client: usize, accepted: bool) {
        let token = self.clients[client].current().map_or(0, |message| message.token);
        let mut bytes = Vec::new();
        if accepted && let Some(content) = self.ledger.content(token) {
            for line in content.split_inclusive(|&byte| byte == b'\n') {
                if line.starts_with(b".") {
                    bytes.push(b'.');
                }
                bytes.extend_from_slice(line);
            }
        }
        bytes.extend_from_slice(b".\r\n");
        self.clients[client].expects.push_back(Expect::Final(accepted));
        self.send_content(client, bytes, accepted);
    }

    /// The content in chunks of random sizes.
    fn send_chunks(&mut self, client: usize, token: u32) {
        let Some(content) = self.ledger.content(token) else { return };
        let mut bytes = Vec::with_capacity(content.len() + 100);
        let mut rest = &content[..];
        loop {
            let len = if self.random.chance(500) { rest.len() } else { self.random.below(rest.len() as u64) as usize };
            let (chunk, left) = rest.split_at(len);
            let last = left.is_empty();
            bytes.extend_from_slice(format!("BDAT {len}{}\r\n", if last { " LAST" } else { "" }).as_bytes());
            bytes.extend_from_slice(chunk);
            self.clients[client].expects.push_back(if last { Expect::Final(true) } else { Expect::Chunk });
            rest = left;
            if last {
                break;
            }
        }
        self.send_content(client, bytes, true);
    }

    fn send_content(&mut self, client: usize, mut bytes: Vec<u8>, counts: bool) {
        let Some(link) = self.clients[client].link else { return };
        if counts && bytes.len() > 2 && self.random.chance(100) {
            let half = self.random.range(1, bytes.len() as u64 - 1) as usize;
            self.clients[client].second_half = bytes.split_off(half);
            let wait = self.random.skewed(MS, 30 * S);
            self.after(wait, Event::ClientWakes(client));
        } else if counts {
            self.content_sent(client);
        }
        self.party_sends(link, bytes, 0);
    }

    /// The content is on its way whole: from here on it may be delivered.
    fn content_sent(&mut self, client: usize) {
        let now = self.now;
        let token = self.clients[client].current().map_or(0, |message| message.token);
        if let Some(entry) = self.ledger.entries.get_mut(&token) {
            entry.told = Told::Waiting;
            entry.sent_at = now;
        }
    }

    fn after_final(&mut self, client: usize, accepted: bool, code: u16, text: &str) {
        let now = self.now;
        let token = self.clients[client].current().map_or(0, |message| message.token);
        let id = text.split("queued as ").nth(1).and_then(|id| id.trim_end().parse::<MessageId>().ok());
        if let Some(entry) = self.ledger.entries.get_mut(&token) {
            match (accepted, code, id) {
                (true, 250, Some(id)) => {
                    entry.told = Told::Accepted(id);
                    entry.told_at = now;
                }
                (_, 250, _) => self.ledger.violation(format!("message t{token} was answered with {text}")),
                (true, _, _) => {
                    entry.told = Told::Refused(code);
                    entry.told_at = now;
                }
                (false, _, _) => {}
            }
        }
        self.clients[client].second_half.clear();
        if code == 421 {
            return;
        }
        if code == 250 && self.clients[client].refused.is_none() {
            self.clients[client].message += 1;
            self.clients[client].begun = false;
            self.next_message(client);
        } else {
            self.say(client, "RSET\r\n", Expect::Reset);
        }
    }
}

fn mail_command(message: &MessagePlan, with_size: bool) -> String {
    let mut command = format!("MAIL FROM:<{}>", message.sender.as_deref().unwrap_or(""));
    if with_size {
        command.push_str(&format!(" SIZE={}", message.size));
    }
    if message.eight_bit {
        command.push_str(" BODY=8BITMIME");
    }
    if message.utf8 {
        command.push_str(" SMTPUTF8");
    }
    match message.token % 5 {
        0 => command.push_str(&format!(" RET=HDRS ENVID=e{}", message.token)),
        1 => command.push_str(" RET=FULL"),
        _ => {}
    }
    command + "\r\n"
}

fn recipient_command(message: &MessagePlan, index: usize) -> String {
    let recipient = &message.recipients[index];
    let mut command = format!("RCPT TO:<{}>", recipient.address);
    if let Some(notify) = recipient.notify {
        command.push_str(&format!(" NOTIFY={notify}"));
    }
    if message.token.is_multiple_of(3) && recipient.address.is_ascii() {
        command.push_str(&format!(" ORCPT=rfc822;{}", recipient.address));
    }
    command + "\r\n"
}
