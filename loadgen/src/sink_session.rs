//! One connection of the sink: commands, DATA and BDAT, and what the addresses ask for.
//!
//! Knows only what a destination needs. Lines must end with CRLF; what is larger than its bounds ends the connection.

use crate::content::{self, Examined};
use crate::destination::{Behaviour, Destination};
use crate::ledger::{Arrived, Coming};
use crate::notice::{failed_recipients, path, sender_token};
use crate::random::Random;
use crate::sink::Common;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Octets of a command line.
const COMMAND_MAX: u64 = 4096;
/// Octets of one content.
const CONTENT_MAX: usize = 64 << 20;
/// How long a silent peer is borne with.
const PATIENCE: Duration = Duration::from_secs(300);

/// What became of a transaction.
enum End {
    Continue,
    Drop,
}

pub(crate) struct Session<'a> {
    input: BufReader<TcpStream>,
    output: TcpStream,
    pending: Vec<u8>,
    common: &'a Common,
    random: Random,
    connected: Instant,
    reverse_path: Option<String>,
    recipients: Vec<String>,
    content: Vec<u8>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        stream: TcpStream,
        number: u64,
        connected: Instant,
        common: &'a Common,
    ) -> io::Result<Session<'a>> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Session {
            output: stream.try_clone()?,
            input: BufReader::with_capacity(64 * 1024, stream),
            pending: Vec::new(),
            common,
            random: Random::part(common.config.seed, number),
            connected,
            reverse_path: None,
            recipients: Vec::new(),
            content: Vec::new(),
        })
    }

    /// Serves the connection to its end.
    pub(crate) fn run(mut self, full: bool) -> io::Result<()> {
        if full {
            self.say("421 4.3.2 sink.example has too many connections, come back later");
            return self.flush();
        }
        self.say("220 sink.example ESMTP");
        loop {
            if self.input.buffer().is_empty() {
                self.flush()?;
            }
            let Some(line) = self.read_line(COMMAND_MAX)? else { return Ok(()) };
            let line = String::from_utf8(line).map_err(io::Error::other)?;
            let upper = line.to_ascii_uppercase();
            let end = match upper.split([' ', ':']).next().unwrap_or_default() {
                "EHLO" => self.hello(),
                "HELO" => self.answer("250 sink.example"),
                "MAIL" => self.mail(&line),
                "RCPT" => self.recipient(&line),
                "DATA" => self.data()?,
                "BDAT" => self.chunk(&upper)?,
                "RSET" => {
                    self.forget();
                    self.answer("250 2.0.0 OK")
                }
                "NOOP" => self.answer("250 2.0.0 OK"),
                "QUIT" => {
                    self.say("221 2.0.0 Goodbye");
                    End::Drop
                }
                _ => self.answer("500 5.5.1 unknown command"),
            };
            if matches!(end, End::Drop) {
                return self.flush();
            }
        }
    }

    fn hello(&mut self) -> End {
        self.forget();
        self.say("250-sink.example");
        self.say("250-PIPELINING");
        self.say("250-SIZE 60000000");
        self.say("250-8BITMIME");
        self.say("250-SMTPUTF8");
        self.say("250-DSN");
        if self.common.config.chunking {
            self.say("250-CHUNKING");
        }
        self.answer("250 ENHANCEDSTATUSCODES")
    }

    fn mail(&mut self, line: &str) -> End {
        self.forget();
        match path(line) {
            Some(path) => {
                self.reverse_path = Some(path.to_owned());
                self.answer("250 2.1.0 OK")
            }
            None => self.answer("501 5.5.4 MAIL FROM:<address>"),
        }
    }

    fn recipient(&mut self, line: &str) -> End {
        let Some(path) = path(line) else { return self.answer("501 5.5.4 RCPT TO:<address>") };
        if self.reverse_path.is_none() {
            return self.answer("503 5.5.1 MAIL first");
        }
        let destination = Destination::parse(path);
        let refused_for_good = destination.is_some_and(|one| one.behaviour == Behaviour::RefuseAlways);
        if refused_for_good {
            self.common.report().refused_recipients += 1;
            return self.answer("550 5.1.1 no such recipient here");
        }
        if destination.is_some_and(|one| self.common.refuses(&one, false)) {
            self.common.report().refused_recipients += 1;
            return self.answer("450 4.2.1 come back later");
        }
        self.recipients.push(path.to_owned());
        self.answer("250 2.1.5 OK")
    }

    fn data(&mut self) -> io::Result<End> {
        if self.recipients.is_empty() {
            return Ok(self.answer("554 5.5.1 no valid recipients"));
        }
        self.say("354 go on");
        self.flush()?;
        loop {
            let Some(mut line) = self.read_line(CONTENT_MAX as u64)? else { return Ok(End::Drop) };
            if line == b"." {
                break;
            }
            if line.first() == Some(&b'.') {
                line.remove(0);
            }
            self.content.extend_from_slice(&line);
            self.content.extend_from_slice(b"\r\n");
            self.bound_content()?;
        }
        self.finish()
    }

    fn chunk(&mut self, line: &str) -> io::Result<End> {
        let mut words = line.split_ascii_whitespace().skip(1);
        let len: u64 = words.next().and_then(|word| word.parse().ok()).ok_or_else(|| io::Error::other("BDAT"))?;
        let last = words.next() == Some("LAST");
        if (&mut self.input).take(len).read_to_end(&mut self.content)? as u64 != len {
            return Ok(End::Drop);
        }
        self.bound_content()?;
        if self.recipients.is_empty() {
            self.content.clear();
            return Ok(self.answer("554 5.5.1 no valid recipients"));
        }
        if last { self.finish() } else { Ok(self.answer("250 2.0.0 more")) }
    }

    /// The content is whole: takes it, refuses it, or drops the connection.
    fn finish(&mut self) -> io::Result<End> {
        let config = &self.common.config;
        if self.random.percent(config.slow_percent) {
            std::thread::sleep(config.slow.mul_f64(self.random.below(1000) as f64 / 1000.0));
        }
        if self.random.percent(config.drop_untaken_percent) {
            self.common.report().drops += 1;
            return Ok(End::Drop);
        }
        let destinations: Vec<Destination> =
            self.recipients.iter().filter_map(|address| Destination::parse(address)).collect();
        // Each is asked, so that all that want it count this refusal.
        let refusing = destinations.iter().filter(|one| self.common.refuses(one, true)).count();
        if refusing > 0 {
            self.common.report().refused_contents += 1;
            self.forget();
            return Ok(self.answer("451 4.7.1 not this content, not now"));
        }
        let unanswered = self.random.percent(config.drop_unanswered_percent);
        self.take(&destinations, unanswered);
        if unanswered {
            self.common.report().drops += 1;
            return Ok(End::Drop);
        }
        if self.random.percent(config.slow_percent) {
            std::thread::sleep(config.slow.mul_f64(self.random.below(1000) as f64 / 1000.0));
        }
        self.forget();
        self.say("250 2.0.0 OK: taken");
        if self.random.percent(config.drop_answered_percent) {
            self.common.report().drops += 1;
            return Ok(End::Drop);
        }
        Ok(End::Continue)
    }

    /// Enters the content into the ledger.
    fn take(&mut self, destinations: &[Destination], unanswered: bool) {
        let coming = Coming { connected: self.connected, at: Instant::now(), unanswered };
        let is_report = self.reverse_path.as_deref() == Some("");
        {
            let mut report = self.common.report();
            report.messages += 1;
            report.recipients += self.recipients.len() as u64;
            report.octets += self.content.len() as u64;
            report.reports += u64::from(is_report);
        }
        if is_report {
            return self.take_report(coming);
        }
        if destinations.len() != self.recipients.len() {
            self.common.ledger.strange(format!("mail for {:?}", self.recipients));
        }
        let Examined { token, fingerprint, damage } = content::examine(&self.content);
        for destination in destinations {
            let destination = *destination;
            self.common.ledger.arrived(Arrived { destination, token, fingerprint, damage, coming });
        }
    }

    /// A report on failures: notes each recipient that it says has failed, if it went to the right sender.
    fn take_report(&mut self, coming: Coming) {
        let failed = failed_recipients(&self.content);
        let to = self.recipients.first().and_then(|address| sender_token(address));
        if failed.is_empty() {
            self.common.ledger.strange(format!("a report to {:?} without a failed recipient", self.recipients));
        }
        for destination in failed {
            if to == Some(destination.token) {
                self.common.ledger.notified(destination, coming);
            } else {
                let address = &self.recipients;
                self.common.ledger.strange(format!("a report on {} to {address:?}", destination.token));
            }
        }
    }

    fn bound_content(&self) -> io::Result<()> {
        if self.content.len() > CONTENT_MAX { Err(io::Error::other("the content is too large")) } else { Ok(()) }
    }

    fn forget(&mut self) {
        self.reverse_path = None;
        self.recipients.clear();
        self.content.clear();
    }

    fn answer(&mut self, text: &str) -> End {
        self.say(text);
        End::Continue
    }

    fn say(&mut self, text: &str) {
        self.pending.extend_from_slice(text.as_bytes());
        self.pending.extend_from_slice(b"\r\n");
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.write_all(&self.pending)?;
        self.pending.clear();
        Ok(())
    }

    /// A line without its CRLF; None at the end of the connection.
    fn read_line(&mut self, max: u64) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        (&mut self.input).take(max).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        if !line.ends_with(b"\r\n") {
            return Err(io::Error::other("a line without CRLF, or too long"));
        }
        line.truncate(line.len() - 2);
        Ok(Some(line))
    }
}
