//! Hosts that take mail, or do not: scripted peers that refuse, stall, break off and forget extensions at random, and
//! write down what they took. They also see to it that the relay keeps to what a host offers.

use crate::world::geography::TlsOffer;
use crate::world::plan::Trouble;
use crate::world::random::MS;
use crate::world::wire::LinkId;
use crate::world::{Event, World, content};
use ringpost::smtp::client::TlsUse;
use std::collections::VecDeque;

/// What the next octets are.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Mode {
    Command,
    Data,
    Chunk { left: usize, last: bool },
}

/// The server's side of one connection.
#[derive(Debug)]
pub struct Destination {
    host: usize,
    mode: Mode,
    buffer: Vec<u8>,
    mail: Option<Mail>,
    content: Vec<u8>,
    encrypted: bool,
    carried: u32,
    /// Says nothing any more.
    stalled: bool,
    /// Lines that wait for a slow answer, if it is slow.
    waiting: VecDeque<Vec<u8>>,
}

/// A transaction.
#[derive(Debug)]
struct Mail {
    from: String,
    to: Vec<String>,
    eight_bit: bool,
}

/// What happens instead of the reply that was hoped for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Mood {
    Good,
    Unwilling,
    BreaksOff,
    Stalls,
}

impl World {
    /// Whether a host takes a call now: refuses when false, says nothing when none.
    pub fn host_answers(&mut self, host: usize) -> Option<bool> {
        if self.plan.geography.hosts[host].dead {
            return if host.is_multiple_of(2) { Some(false) } else { None };
        }
        let trouble = |trouble| match trouble {
            Trouble::Refuses(of) if of == host => Some(Some(false)),
            Trouble::Silent(of) if of == host => Some(None),
            _ => None,
        };
        match self.plan.trouble_at(self.now, trouble) {
            Some(answer) => answer,
            None if !self.healed && self.random.chance(self.plan.rates.peer / 4) => Some(false),
            None => Some(true),
        }
    }

    /// A call was taken.
    pub fn destination_accepts(&mut self, link: LinkId, host: usize) {
        let destination = Destination {
            host,
            mode: Mode::Command,
            buffer: Vec::new(),
            mail: None,
            content: Vec::new(),
            encrypted: false,
            carried: 0,
            stalled: false,
            waiting: VecDeque::new(),
        };
        self.destinations.insert(link, destination);
        let unwilling = |trouble| (trouble == Trouble::Unwilling(host)).then_some(());
        if self.plan.trouble_at(self.now, unwilling).is_some() {
            self.reply(link, "421 4.3.2 mx.test too busy\r\n");
            return self.hang_up(link);
        }
        match self.mood(host) {
            Mood::Stalls => self.stall(link),
            Mood::Unwilling => {
                self.reply(link, "554 5.7.1 mx.test does not like you\r\n");
            }
            _ => self.reply(link, "220-mx.test\r\n220 mx.test ESMTP\r\n"),
        }
    }

    fn mood(&mut self, host: usize) -> Mood {
        let stalls = |trouble| (trouble == Trouble::Stalls(host)).then_some(());
        if self.plan.trouble_at(self.now, stalls).is_some() && self.random.chance(300) {
            return Mood::Stalls;
        }
        let rate = self.plan.rates.peer;
        if self.healed || !self.random.chance(rate / 2) {
            return Mood::Good;
        }
        *self.random.pick(&[Mood::Unwilling, Mood::BreaksOff, Mood::BreaksOff, Mood::Stalls])
    }

    /// Whether something with this share of the host's moodiness goes wrong.
    fn is_moody(&mut self, part: u32) -> bool {
        let rate = self.plan.rates.peer;
        !self.healed && self.random.chance(rate / part)
    }

    fn reply(&mut self, link: LinkId, text: &str) {
        let extra = self.random.skewed(0, 20 * MS);
        self.trace.line(self.now, format_args!("#{link} destination: {}", text.trim_end()));
        self.party_sends(link, text.as_bytes().to_vec(), extra);
    }

    fn stall(&mut self, link: LinkId) {
        self.trace.line(self.now, format_args!("#{link} destination stalls"));
        if let Some(found) = self.destinations.get_mut(&link) {
            found.stalled = true;
        }
    }

    fn hang_up(&mut self, link: LinkId) {
        self.destinations.remove(&link);
        if self.random.chance(500) {
            self.party_closes(link);
        } else {
            self.party_resets(link);
        }
    }

    /// The relay's half of a handshake came.
    pub fn destination_encrypted(&mut self, link: LinkId) {
        let Some(found) = self.destinations.get_mut(&link) else { return };
        found.encrypted = true;
        found.mail = None;
        let works = self.plan.geography.hosts[found.host].tls == TlsOffer::Works;
        self.party_starts_tls(link, works);
        if !works {
            self.destinations.remove(&link);
        }
    }

    /// A slow host goes on.
    pub fn destination_acts(&mut self, link: LinkId) {
        let Some(bytes) = self.destinations.get_mut(&link).and_then(|found| found.waiting.pop_front()) else { return };
        self.destination_reads(link, &bytes);
    }

    /// Bytes came from the relay.
    pub fn destination_hears(&mut self, link: LinkId, bytes: &[u8]) {
        let slow = self.random.chance(50);
        let wait = self.random.skewed(MS, 500 * MS);
        let Some(found) = self.destinations.get_mut(&link) else { return };
        if slow || !found.waiting.is_empty() {
            found.waiting.push_back(bytes.to_vec());
            self.after(wait, Event::DestinationActs(link));
        } else {
            self.destination_reads(link, bytes);
        }
    }

    fn destination_reads(&mut self, link: LinkId, bytes: &[u8]) {
        let Some(found) = self.destinations.get_mut(&link) else { return };
        if found.stalled {
            return;
        }
        found.buffer.extend_from_slice(bytes);
        while let Some(found) = self.destinations.get_mut(&link)
            && !found.stalled
        {
            match found.mode {
                Mode::Command => {
                    let Some(end) = content::find(&found.buffer, b"\r\n") else { return };
                    let line: Vec<u8> = found.buffer.drain(..end + 2).collect();
                    let line = String::from_utf8_lossy(&line[..end]).into_owned();
                    self.command(link, &line);
                }
                Mode::Data => {
                    let end = match found.buffer.starts_with(b".\r\n") {
                        true => Some(0),
                        false => content::find(&found.buffer, b"\r\n.\r\n").map(|at| at + 2),
                    };
                    let Some(end) = end else { return };
                    let stuffed: Vec<u8> = found.buffer.drain(..end + 3).collect();
                    found.content = unstuffed(&stuffed[..end]);
                    found.mode = Mode::Command;
                    self.content_ended(link);
                }
                Mode::Chunk { left, last } => {
                    let taken = left.min(found.buffer.len());
                    found.content.extend(found.buffer.drain(..taken));
                    if taken < left {
                        found.mode = Mode::Chunk { left: left - taken, last };
                        return;
                    }
                    found.mode = Mode::Command;
                    if last {
                        self.content_ended(link);
                    } else {
                        self.reply(link, "250 2.0.0 go on\r\n");
                    }
                }
            }
        }
    }

    fn command(&mut self, link: LinkId, line: &str) {
        let Some(host) = self.destinations.get(&link).map(|found| found.host) else { return };
        let verb = line.split([' ', ':']).next().unwrap_or("").to_ascii_uppercase();
        let mood = if verb == "QUIT" { Mood::Good } else { self.mood(host) };
        match mood {
            Mood::Good => {}
            Mood::Unwilling => {
                self.reply(link, "421 4.3.2 mx.test is going down\r\n");
                return self.hang_up(link);
            }
            Mood::BreaksOff => return self.hang_up(link),
            Mood::Stalls => return self.stall(link),
        }
        match verb.as_str() {
            "EHLO" => self.hello(link, host),
            "HELO" => self.reply(link, "250 mx.test\r\n"),
            "STARTTLS" => {
                self.reply(link, "220 2.0.0 go ahead\r\n");
            }
            "MAIL" => self.mail_from(link, host, line),
            "RCPT" => self.recipient(link, host, line),
            "DATA" => self.data(link),
            "BDAT" => self.chunk(link, host, line),
            "RSET" => {
                if let Some(found) = self.destinations.get_mut(&link) {
                    found.mail = None;
                    found.content.clear();
                }
                self.reply(link, "250 2.0.0 reset\r\n");
            }
            "NOOP" => self.reply(link, "250 2.0.0 yes\r\n"),
            "QUIT" => {
                self.reply(link, "221 2.0.0 bye\r\n");
                self.destinations.remove(&link);
                self.party_closes(link);
            }
            _ => {
                self.ledger.violation(format!("the relay said to host {host}: {line}"));
                self.reply(link, "500 5.5.2 what?\r\n");
            }
        }
    }

    fn hello(&mut self, link: LinkId, host: usize) {
        let plan = self.plan.geography.hosts[host].clone();
        if !plan.extended {
            return self.reply(link, "502 5.5.1 EHLO is not known here\r\n");
        }
        let encrypted = self.destinations.get(&link).is_some_and(|found| found.encrypted);
        let mut lines = vec!["mx.test".to_string()];
        let mut offer = |offered: bool, text: &str| {
            if offered {
                lines.push(text.to_string());
            }
        };
        offer(plan.pipelining, "PIPELINING");
        offer(plan.chunking, "CHUNKING");
        offer(plan.eight_bit, "8BITMIME");
        offer(plan.utf8, "SMTPUTF8");
        offer(plan.dsn, "DSN");
        offer(plan.tls != TlsOffer::No && !encrypted, "STARTTLS");
        offer(plan.size_max.is_some(), &format!("SIZE {}", plan.size_max.unwrap_or(0)));
        offer(plan.mail_max.is_some(), &format!("LIMITS MAILMAX={}", plan.mail_max.unwrap_or(0)));
        let last = lines.len() - 1;
        let mut text = String::new();
        for (number, line) in lines.iter().enumerate() {
            text.push_str(&format!("250{}{line}\r\n", if number == last { ' ' } else { '-' }));
        }
        self.reply(link, &text);
    }

    fn mail_from(&mut self, link: LinkId, host: usize, line: &str) {
        let Some(from) = path(line) else {
            return self.ledger.violation(format!("the relay said to host {host}: {line}"));
        };
        let plan = self.plan.geography.hosts[host].clone();
        let site = &self.plan.geography.sites[plan.site];
        let route = &self.plan.settings.routes[site.route];
        let most = [route.limits.messages_per_connection, plan.mail_max.filter(|_| plan.extended)];
        let most = most.into_iter().flatten().min();
        let tls_required = route.client.tls == TlsUse::Required;
        let Some(found) = self.destinations.get_mut(&link) else { return };
        found.carried += 1;
        let (carried, encrypted) = (found.carried, found.encrypted);
        if found.mail.is_some() {
            self.ledger.violation(format!("the relay began a transaction within another at host {host}"));
        }
        let extended = |word: &str| line.contains(word);
        if (extended(" BODY=") && !(plan.eight_bit && plan.extended))
            || (extended(" SMTPUTF8") && !(plan.utf8 && plan.extended))
            || ((extended(" RET=") || extended(" ENVID=")) && !(plan.dsn && plan.extended))
        {
            self.ledger.violation(format!("host {host} does not offer what this needs: {line}"));
        }
        if most.is_some_and(|most| carried > most) {
            self.ledger.violation(format!("host {host} got transaction {carried} on one connection"));
        }
        if tls_required && !encrypted {
            self.ledger.violation(format!("host {host} got mail in clear"));
        }
        if self.is_moody(3) {
            return self.reply(link, "451 4.3.0 not now\r\n");
        }
        if let Some(found) = self.destinations.get_mut(&link) {
            let eight_bit = line.contains(" BODY=8BITMIME");
            found.content.clear();
            found.mail = Some(Mail { from, to: Vec::new(), eight_bit });
        }
        self.reply(link, "250 2.1.0 fine\r\n");
    }

    fn recipient(&mut self, link: LinkId, host: usize, line: &str) {
        let Some(address) = path(line) else {
            return self.ledger.violation(format!("the relay said to host {host}: {line}"));
        };
        let plan = &self.plan.geography.hosts[host];
        let (dsn, site) = (plan.dsn && plan.extended, plan.site);
        if (line.contains(" NOTIFY=") || line.contains(" ORCPT=")) && !dsn {
            self.ledger.violation(format!("host {host} does not offer DSN: {line}"));
        }
        let domain = address.rsplit('@').next().unwrap_or("");
        if self.plan.geography.site_of(domain) != Some(site) {
            self.ledger.violation(format!("mail for {address} was brought to host {host}"));
        }
        if self.destinations.get(&link).is_none_or(|found| found.mail.is_none()) {
            return self.reply(link, "503 5.5.1 MAIL first\r\n");
        }
        if address.starts_with('x') || self.is_moody(4) {
            if let Some(whom) = crate::world::ledger::Whom::of(&address) {
                self.ledger.refused.insert(whom);
            }
            return self.reply(link, "550 5.1.1 nobody here\r\n");
        }
        if self.is_moody(1) {
            return self.reply(link, "450 4.2.0 greylisted\r\n");
        }
        if let Some(mail) = self.destinations.get_mut(&link).and_then(|found| found.mail.as_mut()) {
            mail.to.push(address);
        }
        self.reply(link, "250 2.1.5 fine\r\n");
    }

    fn data(&mut self, link: LinkId) {
        let Some(found) = self.destinations.get_mut(&link) else { return };
        if found.mail.as_ref().is_none_or(|mail| mail.to.is_empty()) {
            return self.reply(link, "554 5.5.1 no valid recipients\r\n");
        }
        if self.is_moody(3) {
            return self.reply(link, "451 4.3.0 not now\r\n");
        }
        if let Some(found) = self.destinations.get_mut(&link) {
            found.mode = Mode::Data;
        }
        self.reply(link, "354 send it\r\n");
    }

    fn chunk(&mut self, link: LinkId, host: usize, line: &str) {
        let mut words = line.split(' ').skip(1);
        let len = words.next().and_then(|word| word.parse::<usize>().ok());
        let last = words.next() == Some("LAST");
        let plan = &self.plan.geography.hosts[host];
        let offered = plan.chunking && plan.extended;
        let Some(len) = len.filter(|_| offered) else {
            return self.ledger.violation(format!("the relay said to host {host}: {line}"));
        };
        if let Some(found) = self.destinations.get_mut(&link) {
            found.mode = Mode::Chunk { left: len, last };
        }
    }

    /// A whole message stands there: it is taken, or not.
    fn content_ended(&mut self, link: LinkId) {
        let Some(found) = self.destinations.get_mut(&link) else { return };
        let bytes = std::mem::take(&mut found.content);
        let host = found.host;
        let mail = found.mail.take();
        let Some(mail) = mail.filter(|mail| !mail.to.is_empty()) else {
            return self.reply(link, "554 5.5.1 no valid recipients\r\n");
        };
        let route = &self.plan.settings.routes[self.plan.geography.sites[self.plan.geography.hosts[host].site].route];
        if !bytes.is_ascii() && !mail.eight_bit && !route.client.assume_8bitmime {
            self.ledger.violation(format!("host {host} got octets above 127 without BODY=8BITMIME"));
        }
        match self.mood(host) {
            Mood::Good => {}
            Mood::Unwilling => {
                self.reply(link, "421 4.3.2 mx.test is going down\r\n");
                return self.hang_up(link);
            }
            Mood::BreaksOff => return self.hang_up(link),
            Mood::Stalls => return self.stall(link),
        }
        if mail.to.iter().any(|address| address.starts_with('y')) || self.is_moody(4) {
            for whom in mail.to.iter().filter_map(|address| crate::world::ledger::Whom::of(address)) {
                self.ledger.refused.insert(whom);
            }
            return self.reply(link, "554 5.6.0 not like this\r\n");
        }
        if self.is_moody(1) {
            return self.reply(link, "451 4.3.0 not now\r\n");
        }
        let arrivals = self.ledger.arrive(self.now, host, &mail.from, &mail.to, &bytes);
        self.trace.line(self.now, format_args!("#{link} host {host} took mail for {:?}", mail.to));
        if self.is_moody(2) {
            // Taken, and nobody hears of it.
            return if self.random.chance(500) { self.hang_up(link) } else { self.stall(link) };
        }
        self.reply(link, "250 2.0.0 taken\r\n");
        self.mark_reply(link, arrivals);
        if self.is_moody(2) {
            self.hang_up(link);
        }
    }
}

/// What stands between the angle brackets.
fn path(line: &str) -> Option<String> {
    let from = line.find(":<")? + 2;
    let to = from + line[from..].find('>')?;
    Some(line[from..to].to_string())
}

/// Content without the dots that protect its lines (RFC 5321 4.5.2).
fn unstuffed(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        out.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
    }
    out
}
