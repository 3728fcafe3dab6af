//! The ledger: what was acknowledged against what arrived, by message and recipient.
//!
//! An acknowledged recipient that never arrived is lost; one that arrived again is repeated; a content that is not
//! what was sent is damaged. A recipient that the destination refuses for good arrives as a notification of its
//! sender instead, whether its address asked for that or the destination decided it. What was sent without an acknowledgement may arrive or not. Arrivals are noted before the
//! destination answers, acknowledgements after they were read, so nothing can be counted too early.

use crate::content::Fingerprint;
use crate::destination::{Behaviour, Destination, Token};
use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A message that the server under test took responsibility for.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    /// Which message.
    pub token: Token,
    /// What must arrive.
    pub fingerprint: Fingerprint,
    /// Its recipients, without those that the server refused.
    pub recipients: Vec<Destination>,
    /// The name that the server gave it in its reply.
    pub id: String,
    /// When the reply had been read.
    pub at: Instant,
}

/// A message as it arrived for one recipient.
#[derive(Copy, Clone, Debug)]
pub struct Arrived {
    /// For whom.
    pub destination: Destination,
    /// Of which message the content is; None if it cannot be read.
    pub token: Option<Token>,
    /// What arrived.
    pub fingerprint: Fingerprint,
    /// What is wrong with the content in itself.
    pub damage: Option<&'static str>,
    /// When, and over what.
    pub coming: Coming,
}

/// When something arrived.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Coming {
    /// When the connection that it came over was accepted: tells one life of a server's process from the next,
    /// since what it has sent may be read after its end.
    pub connected: Instant,
    /// When it was taken.
    pub at: Instant,
    /// The destination took it, but will not say so: the server under test has to repeat it.
    pub unanswered: bool,
}

#[derive(Default)]
struct Book {
    acknowledged: HashMap<Token, Acknowledged>,
    arrivals: HashMap<(Token, u16), Vec<Coming>>,
    notices: HashMap<(Token, u16), Vec<Coming>>,
    fingerprints: HashMap<Token, Fingerprint>,
    /// Recipients that the destination has refused for good although their addresses do not ask for it.
    refused: HashSet<(Token, u16)>,
    damaged: Vec<String>,
    strange: Vec<String>,
    /// Acknowledged recipients whose arrival, or notice, has not come.
    open: u64,
    recipients: u64,
    first_arrivals: u64,
}

/// What was acknowledged and what arrived; shared by all sessions of source and sink.
#[derive(Default)]
pub struct Ledger {
    book: Mutex<Book>,
    changed: Condvar,
}

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a message whose acknowledgement has been read.
    pub fn acknowledged(&self, message: Acknowledged) {
        let mut book = self.book();
        let open = message.recipients.iter().filter(|one| !book.has_come(one)).count();
        book.open += open as u64;
        book.recipients += message.recipients.len() as u64;
        book.acknowledged.insert(message.token, message);
        drop(book);
        self.changed.notify_all();
    }

    /// Notes an arrival; to be called before it is answered.
    pub fn arrived(&self, arrival: Arrived) {
        let mut book = self.book();
        let key = (arrival.destination.token, arrival.destination.index);
        let mixed_up = arrival.token.is_some_and(|token| token != arrival.destination.token);
        let differs =
            book.fingerprints.insert(key.0, arrival.fingerprint).is_some_and(|seen| seen != arrival.fingerprint);
        let damage = arrival
            .damage
            .or(mixed_up.then_some("it is the content of another message"))
            .or(differs.then_some("it differs from what another recipient got"));
        if let Some(damage) = damage {
            book.damaged.push(format!("{} for recipient {}: {damage}", key.0, key.1));
        }
        book.note_first(&arrival.destination, arrival.destination.behaviour != Behaviour::RefuseAlways);
        book.arrivals.entry(key).or_default().push(arrival.coming);
        drop(book);
        self.changed.notify_all();
    }

    /// Notes that a sender was told that a recipient failed.
    pub fn notified(&self, failed: Destination, coming: Coming) {
        let mut book = self.book();
        let expected = failed.behaviour == Behaviour::RefuseAlways || book.is_refused(&failed);
        book.note_first(&failed, expected);
        book.notices.entry((failed.token, failed.index)).or_default().push(coming);
        drop(book);
        self.changed.notify_all();
    }

    /// Notes that the destination refuses a recipient for good: its sender has to be told. To be called before the refusal
    /// is sent.
    pub fn refused(&self, destination: Destination) {
        self.book().refused.insert((destination.token, destination.index));
    }

    /// Notes something that belongs to no message of any run.
    pub fn strange(&self, what: String) {
        self.book().strange.push(what);
    }

    /// Messages acknowledged so far.
    pub fn acknowledged_count(&self) -> u64 {
        self.book().acknowledged.len() as u64
    }

    /// Recipients that have arrived at least once.
    pub fn arrived_count(&self) -> u64 {
        self.book().first_arrivals
    }

    /// Waits until more than `count` messages are acknowledged. False when the time is over.
    pub fn wait_acknowledged_above(&self, count: u64, patience: Duration) -> bool {
        self.wait(patience, |book| book.acknowledged.len() as u64 > count)
    }

    /// Waits until every acknowledged recipient has arrived, or its sender was notified. False when nothing has
    /// come for as long as the patience lasts.
    pub fn wait_complete(&self, patience: Duration) -> bool {
        let mut open = u64::MAX;
        loop {
            let before = open;
            if self.wait(patience, |book| {
                open = book.open;
                book.open < before
            }) {
                if open == 0 {
                    return true;
                }
            } else {
                return open == 0;
            }
        }
    }

    fn wait(&self, patience: Duration, mut done: impl FnMut(&Book) -> bool) -> bool {
        let wait = self.changed.wait_timeout_while(self.book(), patience, |book| !done(book));
        let (_book, timeout) = wait.unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }

    /// Takes a message that arrived out of the book, as if it had been lost: for tests of those who judge by it.
    pub fn forget_one_arrival(&self) -> Option<Token> {
        let mut book = self.book();
        let mut tokens = book.acknowledged.values().flat_map(|message| &message.recipients);
        let victim = tokens.find(|one| book.arrivals.contains_key(&(one.token, one.index))).copied()?;
        book.arrivals.remove(&(victim.token, victim.index));
        Some(victim.token)
    }

    /// Compares both sides.
    pub fn findings(&self) -> Findings {
        let book = self.book();
        let mut findings = Findings {
            acknowledged: book.acknowledged.len() as u64,
            recipients: book.recipients,
            damaged: book.damaged.clone(),
            strange: book.strange.clone(),
            ..Findings::default()
        };
        let mut expected = HashSet::new();
        for message in book.acknowledged.values() {
            if book.fingerprints.get(&message.token).is_some_and(|seen| *seen != message.fingerprint) {
                findings.damaged.push(format!("{}: not what was acknowledged", message.token));
            }
            for one in &message.recipients {
                expected.insert((one.token, one.index));
                if !book.has_come(one) {
                    findings.lost.push(Lost { destination: *one, id: message.id.clone(), at: message.at });
                }
            }
        }
        for (key, times) in &book.arrivals {
            findings.arrived += 1;
            findings.unacknowledged += u64::from(!expected.contains(key));
            findings.repeated.extend(Repeated::new(*key, times));
        }
        for (key, times) in &book.notices {
            findings.notified += 1;
            findings.notified_again.extend(Repeated::new(*key, times));
        }
        findings
    }
}

impl Book {
    fn has_come(&self, one: &Destination) -> bool {
        let key = (one.token, one.index);
        match one.behaviour {
            Behaviour::RefuseAlways => self.notices.contains_key(&key),
            _ => self.arrivals.contains_key(&key) || (self.is_refused(one) && self.notices.contains_key(&key)),
        }
    }

    fn is_refused(&self, one: &Destination) -> bool {
        self.refused.contains(&(one.token, one.index))
    }

    /// Counts what is about to be noted for a recipient, if it is the first and what is expected.
    fn note_first(&mut self, one: &Destination, expected: bool) {
        if !expected || self.has_come(one) {
            return;
        }
        self.first_arrivals += 1;
        let acknowledged = self.acknowledged.get(&one.token).is_some_and(|message| message.recipients.contains(one));
        if acknowledged {
            self.open = self.open.saturating_sub(1);
        }
    }
}

/// An acknowledged recipient that neither arrived nor was bounced.
#[derive(Clone, Debug)]
pub struct Lost {
    /// Which one.
    pub destination: Destination,
    /// The server's name for the message.
    pub id: String,
    /// When it was acknowledged.
    pub at: Instant,
}

/// A recipient that got something more often than once.
#[derive(Clone, Debug)]
pub struct Repeated {
    /// The message.
    pub token: Token,
    /// The recipient's place in it.
    pub index: u16,
    /// Arrivals beyond the first, and beyond those that the destination itself made necessary.
    pub times: usize,
    /// All arrivals, in the order in which they were taken.
    pub comings: Vec<Coming>,
}

impl Repeated {
    /// None if nothing came again without need.
    fn new((token, index): (Token, u16), comings: &[Coming]) -> Option<Repeated> {
        let answered = comings.iter().filter(|coming| !coming.unanswered).count();
        let times = answered.saturating_sub(1);
        (times > 0).then(|| Repeated { token, index, times, comings: comings.to_vec() })
    }
}

/// The comparison of both sides.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Messages acknowledged.
    pub acknowledged: u64,
    /// Their recipients.
    pub recipients: u64,
    /// Recipients that arrived, each counted once.
    pub arrived: u64,
    /// Those of them whose message was not acknowledged: the reply was lost, which no one can help.
    pub unacknowledged: u64,
    /// Failed recipients whose sender was told, each counted once.
    pub notified: u64,
    /// Acknowledged and gone.
    pub lost: Vec<Lost>,
    /// Arrived more often than needed.
    pub repeated: Vec<Repeated>,
    /// Senders told more often than once.
    pub notified_again: Vec<Repeated>,
    /// Contents that are not what was sent.
    pub damaged: Vec<String>,
    /// What belongs to no run.
    pub strange: Vec<String>,
}

impl Findings {
    /// Arrivals beyond what was needed.
    pub fn repeats(&self) -> usize {
        self.repeated.iter().map(|one| one.times).sum()
    }

    /// Notifications beyond the first of each failed recipient.
    pub fn notice_repeats(&self) -> usize {
        self.notified_again.iter().map(|one| one.times).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(behaviour: Behaviour) -> Destination {
        Destination { behaviour, token: Token::new(1, 1), index: 0 }
    }

    const FINGERPRINT: Fingerprint = Fingerprint { len: 1, crc: 2 };

    fn acknowledged(one: Destination) -> Acknowledged {
        let id = "A1".to_owned();
        Acknowledged { token: one.token, fingerprint: FINGERPRINT, recipients: vec![one], id, at: Instant::now() }
    }

    fn now() -> Coming {
        Coming { connected: Instant::now(), at: Instant::now(), unanswered: false }
    }

    fn arrived(one: Destination) -> Arrived {
        let token = Some(one.token);
        Arrived { destination: one, token, fingerprint: FINGERPRINT, damage: None, coming: now() }
    }

    #[test]
    fn lost_until_it_arrives_and_repeated_when_it_comes_again() {
        let ledger = Ledger::default();
        let one = destination(Behaviour::Accept);
        ledger.acknowledged(acknowledged(one));
        assert_eq!(ledger.findings().lost.len(), 1);
        assert!(!ledger.wait_complete(Duration::ZERO));
        ledger.arrived(arrived(one));
        assert!(ledger.wait_complete(Duration::ZERO) && ledger.findings().lost.is_empty());
        ledger.arrived(arrived(one));
        assert_eq!(ledger.findings().repeats(), 1);
        assert_eq!(ledger.forget_one_arrival(), Some(one.token));
        assert_eq!(ledger.findings().lost.len(), 1);
    }

    #[test]
    fn an_arrival_before_its_acknowledgement_counts() {
        let ledger = Ledger::default();
        let one = destination(Behaviour::RefuseFirst(1));
        ledger.arrived(arrived(one));
        assert_eq!(ledger.findings().unacknowledged, 1);
        ledger.acknowledged(acknowledged(one));
        assert!(ledger.wait_complete(Duration::ZERO));
        assert_eq!(ledger.findings().unacknowledged, 0);
    }

    #[test]
    fn a_failed_recipient_needs_a_notice() {
        let ledger = Ledger::default();
        let one = destination(Behaviour::RefuseAlways);
        ledger.acknowledged(acknowledged(one));
        assert_eq!(ledger.findings().lost.len(), 1);
        ledger.notified(one, now());
        ledger.notified(one, now());
        let findings = ledger.findings();
        assert_eq!((findings.lost.len(), findings.notified, findings.notice_repeats()), (0, 1, 1));
    }

    #[test]
    fn a_recipient_that_the_destination_decides_to_refuse_needs_a_notice_too() {
        let ledger = Ledger::default();
        let one = destination(Behaviour::Accept);
        ledger.acknowledged(acknowledged(one));
        ledger.notified(one, now());
        assert_eq!(ledger.findings().lost.len(), 1, "nobody has refused it");
        ledger.refused(one);
        assert!(ledger.findings().lost.is_empty());
        let ledger = Ledger::default();
        ledger.refused(one);
        ledger.acknowledged(acknowledged(one));
        assert_eq!(ledger.findings().lost.len(), 1, "nobody was told");
        ledger.notified(one, now());
        assert!(ledger.wait_complete(Duration::ZERO));
    }

    #[test]
    fn damage_is_seen_from_all_sides() {
        let one = destination(Behaviour::Accept);
        let other = Fingerprint { len: 9, crc: 9 };
        let cases = [
            Arrived { damage: Some("torn"), ..arrived(one) },
            Arrived { token: Some(Token::new(5, 5)), ..arrived(one) },
            Arrived { fingerprint: other, ..arrived(one) },
        ];
        for arrival in cases {
            let ledger = Ledger::default();
            ledger.acknowledged(acknowledged(one));
            ledger.arrived(arrival);
            assert_eq!(ledger.findings().damaged.len(), 1, "{arrival:?}");
        }
    }

    #[test]
    fn what_the_destination_left_unanswered_is_no_repeat() {
        let ledger = Ledger::default();
        let one = destination(Behaviour::Accept);
        ledger.arrived(Arrived { coming: Coming { unanswered: true, ..now() }, ..arrived(one) });
        ledger.arrived(arrived(one));
        assert_eq!(ledger.findings().repeats(), 0);
        ledger.arrived(arrived(one));
        assert_eq!(ledger.findings().repeats(), 1);
    }
}
