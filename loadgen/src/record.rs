//! Where both ends of a load note what was acknowledged and what arrived: nowhere, in a ledger in memory, or in a file.
//!
//! A file has one line for each message, so that it can be searched with grep, and is read back into a ledger by
//! [`read`]. A line that cannot be read is an error with its number: a comparison of half a file would be worth nothing.

use crate::content::{Examined, Fingerprint};
use crate::destination::{Destination, Token};
use crate::ledger::{Acknowledged, Arrived, Coming, Ledger};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Octets of a line, at most: a message has at most a thousand recipients.
const LINE_MAX: usize = 64 * 1024;

/// Where notes go. Cloning shares it.
#[derive(Clone, Default)]
pub enum Record {
    /// Nowhere: contents are not examined.
    #[default]
    Nothing,
    /// Into a ledger in memory.
    Ledger(Arc<Ledger>),
    /// Into a file.
    File(Arc<Mutex<BufWriter<File>>>),
}

/// What a destination took.
#[derive(Debug)]
pub struct Took<'a> {
    /// For whom.
    pub destinations: &'a [Destination],
    /// What it was.
    pub examined: Examined,
    /// When, over what, and whether it will be answered.
    pub coming: Coming,
}

impl Record {
    /// A fresh file.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn file(path: &Path) -> io::Result<Record> {
        Ok(Record::File(Arc::new(Mutex::new(BufWriter::with_capacity(1 << 20, File::create(path)?)))))
    }

    /// Whether anything is kept, so that contents have to be examined.
    pub fn is_kept(&self) -> bool {
        !matches!(self, Record::Nothing)
    }

    /// Notes a message whose acknowledgement was read.
    pub fn acknowledged(&self, message: Acknowledged) {
        match self {
            Record::Nothing => {}
            Record::Ledger(ledger) => ledger.acknowledged(message),
            Record::File(file) => {
                let Acknowledged { token, fingerprint, recipients, id, .. } = message;
                let id = if id.is_empty() || id.contains(char::is_whitespace) { "-" } else { &id };
                let mut line = format!("sent {token} {} {:08x} {id} ", fingerprint.len, fingerprint.crc);
                append_destinations(&mut line, &recipients);
                write(file, line);
            }
        }
    }

    /// Notes what arrived; to be called before it is answered.
    pub fn arrived(&self, took: Took<'_>) {
        let Examined { token, fingerprint, damage } = took.examined;
        match self {
            Record::Nothing => {}
            Record::Ledger(ledger) => {
                for destination in took.destinations {
                    let destination = *destination;
                    ledger.arrived(Arrived { destination, token, fingerprint, damage, coming: took.coming });
                }
            }
            Record::File(file) => {
                let token = token.map_or_else(|| "-".to_owned(), |token| token.to_string());
                let state = match (damage, took.coming.unanswered) {
                    (Some(_), _) => "damaged",
                    (None, true) => "unanswered",
                    (None, false) => "ok",
                };
                let mut line = format!("came {token} {} {:08x} {state} ", fingerprint.len, fingerprint.crc);
                append_destinations(&mut line, took.destinations);
                write(file, line);
            }
        }
    }

    /// Notes that a sender was told of a failed recipient.
    pub fn notified(&self, failed: Destination, coming: Coming) {
        match self {
            Record::Nothing => {}
            Record::Ledger(ledger) => ledger.notified(failed, coming),
            Record::File(file) => {
                let mut line = "told ".to_owned();
                append_destinations(&mut line, &[failed]);
                write(file, line);
            }
        }
    }

    /// Notes that the destination refuses a recipient for good, which its address does not ask for; to be called before
    /// it says so.
    pub fn refused(&self, destination: Destination) {
        match self {
            Record::Nothing => {}
            Record::Ledger(ledger) => ledger.refused(destination),
            Record::File(file) => {
                let mut line = "refused ".to_owned();
                append_destinations(&mut line, &[destination]);
                write(file, line);
            }
        }
    }

    /// Notes something that belongs to no message of any run.
    pub fn strange(&self, what: String) {
        match self {
            Record::Nothing => {}
            Record::Ledger(ledger) => ledger.strange(what),
            Record::File(file) => write(file, format!("strange {}", what.replace(['\r', '\n'], " "))),
        }
    }

    /// Hands a file's last lines to the kernel.
    ///
    /// # Errors
    /// When they, or earlier ones, could not be written.
    pub fn flush(&self) -> io::Result<()> {
        match self {
            Record::File(file) => file.lock().unwrap_or_else(PoisonError::into_inner).flush(),
            _ => Ok(()),
        }
    }
}

fn append_destinations(line: &mut String, destinations: &[Destination]) {
    for (at, one) in destinations.iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        line.push_str(&format!("{comma}{}-{}-{}", one.behaviour, one.token, one.index));
    }
}

fn write(file: &Mutex<BufWriter<File>>, mut line: String) {
    line.push('\n');
    // The writer keeps what it could not write and tries again: the last flush reports a disk that stays full.
    let _ = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
}

/// Reads a file of notes into a ledger. Gives the number of lines.
///
/// # Errors
/// When the file cannot be read, or a line is none of ours; the error names the line.
pub fn read(path: &Path, ledger: &Ledger) -> io::Result<u64> {
    let mut input = BufReader::with_capacity(1 << 20, File::open(path)?);
    let (mut line, mut number) = (String::new(), 0);
    loop {
        line.clear();
        let read = io::Read::take(&mut input, LINE_MAX as u64).read_line(&mut line)?;
        if read == 0 {
            return Ok(number);
        }
        number += 1;
        let whole = line.strip_suffix('\n');
        whole.and_then(|line| enter(line, ledger)).ok_or_else(|| {
            let text = format!("{}, line {number}: not a line of a ledger, or not whole", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
    }
}

/// Enters one line; None if it cannot be read.
fn enter(line: &str, ledger: &Ledger) -> Option<()> {
    let (kind, rest) = line.split_once(' ')?;
    let now = Instant::now();
    let mut coming = Coming { connected: now, at: now, unanswered: false };
    let mut words = rest.split(' ');
    match kind {
        "sent" => {
            let token = Token::parse(words.next()?)?;
            let fingerprint = parse_fingerprint(&mut words)?;
            let id = words.next()?.to_owned();
            let recipients = parse_destinations(words.next()?)?;
            ledger.acknowledged(Acknowledged { token, fingerprint, recipients, id, at: now });
        }
        "came" => {
            let token = match words.next()? {
                "-" => None,
                text => Some(Token::parse(text)?),
            };
            let fingerprint = parse_fingerprint(&mut words)?;
            let damage = match words.next()? {
                "ok" => None,
                "unanswered" => {
                    coming.unanswered = true;
                    None
                }
                "damaged" => Some("the destination found it damaged"),
                _ => return None,
            };
            for destination in parse_destinations(words.next()?)? {
                ledger.arrived(Arrived { destination, token, fingerprint, damage, coming });
            }
        }
        "refused" => ledger.refused(*parse_destinations(rest)?.first()?),
        "told" => ledger.notified(*parse_destinations(rest)?.first()?, coming),
        "strange" => ledger.strange(rest.to_owned()),
        _ => return None,
    }
    Some(())
}

fn parse_fingerprint<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Fingerprint> {
    let len = words.next()?.parse().ok()?;
    let crc = u32::from_str_radix(words.next()?, 16).ok()?;
    Some(Fingerprint { len, crc })
}

fn parse_destinations(text: &str) -> Option<Vec<Destination>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',').map(Destination::parse_local).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::Behaviour;

    fn one(index: u16) -> Destination {
        Destination { behaviour: Behaviour::Accept, token: Token::new(1, 2), index }
    }

    fn file(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("ringpost-record-{}-{name}", std::process::id()))
    }

    #[test]
    fn what_a_file_holds_is_what_a_ledger_would_hold() {
        let path = file("both");
        let record = Record::file(&path).unwrap();
        let fingerprint = Fingerprint { len: 7, crc: 0xdead_beef };
        let now = Instant::now();
        let (token, recipients) = (Token::new(1, 2), vec![one(0), one(1), one(2)]);
        record.acknowledged(Acknowledged { token, fingerprint, recipients, id: "A b".to_owned(), at: now });
        let coming = Coming { connected: now, at: now, unanswered: false };
        for destinations in [&[one(0)][..], &[one(0), one(1)]] {
            let examined = Examined { token: Some(token), fingerprint, damage: None };
            record.arrived(Took { destinations, examined, coming });
        }
        let damaged = Examined { token: None, fingerprint, damage: Some("torn") };
        record.arrived(Took { destinations: &[one(9)], examined: damaged, coming });
        record.strange("two\r\nlines".to_owned());
        record.flush().unwrap();
        let ledger = Ledger::default();
        assert_eq!(read(&path, &ledger).unwrap(), 5);
        let findings = ledger.findings();
        assert_eq!((findings.lost.len(), findings.repeats(), findings.damaged.len()), (1, 1, 1), "{findings}");
        assert_eq!(findings.strange, ["two  lines"]);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_torn_line_is_named() {
        let path = file("torn");
        for text in ["sent 0000000100000002 7 deadbeef - ok-0000000100000002-0", "hello there\n", "came - x 0 ok \n"] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path, &Ledger::default()).unwrap_err();
            assert!(error.to_string().contains("line 1"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
