//! The books of a world: what clients were told, what arrived where, what the relay said it did, and when it was
//! stopped. Written while the world runs, judged by the oracle.

use crate::world::content::{self, ReportSaid};
use crate::world::plan::{MessagePlan, Stop};
use crate::world::random::Ns;
use ringpost::event::Event;
use ringpost::id::MessageId;
use ringpost::policy::suppression::{self, SuppressionTable};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the client of a message knows.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The content was not sent to its end.
    Nothing,
    /// It was, and no reply came (yet).
    Waiting,
    /// 250, with the id.
    Accepted(MessageId),
    /// Refused after the content.
    Refused(u16),
}

/// One message of a client.
#[derive(Clone, Debug)]
pub struct Entry {
    pub plan: MessagePlan,
    pub told: Told,
    /// When the client learned it.
    pub told_at: Ns,
    /// When the content's end was sent.
    pub sent_at: Ns,
    /// Which recipients were accepted.
    pub accepted: Vec<bool>,
    /// An operator asked for its end.
    pub deleted: bool,
}

/// Who got something: a recipient of a message, or the sender of one as the reader of a report.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Whom {
    /// Recipient `.1` of message `.0`.
    Recipient(u32, u16),
    /// The sender of the message.
    Sender(u32),
}

impl Whom {
    /// Reads the local part of an address of this world.
    pub fn of(address: &str) -> Option<Whom> {
        let local = address.split('@').next()?;
        let mut parts = local.split('.');
        let (first, token) = (parts.next()?, parts.next()?);
        let token = token.strip_prefix('t')?.parse().ok()?;
        match first {
            "s" => Some(Whom::Sender(token)),
            _ => Some(Whom::Recipient(token, first.get(1..)?.parse().ok()?)),
        }
    }
}

/// Something that a destination took.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub at: Ns,
    pub whom: Whom,
    pub host: usize,
    /// What it was, if it was a report.
    pub report: Option<ReportSaid>,
    /// When the relay read the reply that says so.
    pub replied_at: Option<Ns>,
}

/// The relay's own word that it is done with a recipient.
#[derive(Clone, Debug)]
pub struct End {
    pub at: Ns,
    pub what: What,
    pub reply: String,
    pub age_ms: u64,
}

/// What an end was.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum What {
    Delivered,
    Bounced,
    Expired,
    Suppressed,
}

/// All books.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Whether what clients submit is signed.
    pub signed: bool,
    /// Whether a filter adds a header to it.
    pub filtered: bool,
    pub entries: BTreeMap<u32, Entry>,
    pub arrivals: Vec<Arrival>,
    pub ends: BTreeMap<Whom, Vec<End>>,
    /// Refused for good by a destination.
    pub refused: BTreeSet<Whom>,
    /// To whom nothing is to be sent, as the shards read it; it outlives the process.
    pub suppression: Arc<SuppressionTable>,
    /// The same, as the oracle reads it.
    pub suppressed: BTreeSet<Whom>,
    /// When the process ended, and how.
    pub stops: Vec<(Ns, Stop)>,
    /// When the disk was in trouble.
    pub disk_troubles: Vec<(Ns, Ns)>,
    /// Messages that the relay took though nobody may have heard.
    pub received: BTreeMap<MessageId, u32>,
    pub double_bounces: u64,
    pub reports_queued: u64,
    /// Replies by code, from the relay to clients.
    pub replies: BTreeMap<u16, u64>,
    /// Words of the relay to its operator that are errors.
    pub notices: Vec<String>,
    pub violations: Vec<String>,
}

/// Whether nothing is ever to be sent to this recipient.
pub fn is_suppressed_from_the_start(whom: Whom) -> bool {
    matches!(whom, Whom::Recipient(token, index) if (token * 7 + u32::from(index)) % 16 == 3)
}

impl Ledger {
    /// Something must not be.
    pub fn violation(&mut self, text: String) {
        if self.violations.len() < 50 {
            self.violations.push(text);
        }
    }

    /// A client is about to submit this.
    pub fn submit(&mut self, plan: &MessagePlan) {
        let accepted = vec![false; plan.recipients.len()];
        let entry = Entry { plan: plan.clone(), told: Told::Nothing, told_at: 0, sent_at: 0, accepted, deleted: false };
        for (index, recipient) in plan.recipients.iter().enumerate() {
            let whom = Whom::Recipient(plan.token, index as u16);
            if is_suppressed_from_the_start(whom) {
                self.suppress(whom, &recipient.address);
            }
        }
        self.entries.insert(plan.token, entry);
    }

    /// Nothing is to be sent to this address from now on.
    fn suppress(&mut self, whom: Whom, address: &str) {
        let one = self.suppression.fingerprint(None, &address.to_uppercase());
        self.suppression.put(one, suppression::Entry { place: 0, until_s: suppression::FOR_EVER });
        self.suppressed.insert(whom);
    }

    /// Some are suppressed while they wait.
    fn deferred(&mut self, address: &str) {
        if let Some(whom @ Whom::Recipient(token, index)) = Whom::of(address)
            && (token + u32::from(index)) % 4 == 1
        {
            self.suppress(whom, address);
        }
    }

    /// The content of a message as it was submitted.
    pub fn content(&self, token: u32) -> Option<Vec<u8>> {
        let plan = &self.entries.get(&token)?.plan;
        Some(content::make(token, plan.size, plan.eight_bit))
    }

    /// A destination takes a message for these addresses. Gives the arrivals' places.
    pub fn arrive(&mut self, at: Ns, host: usize, from: &str, to: &[String], bytes: &[u8]) -> Vec<usize> {
        let mut places = Vec::new();
        let report = content::read_report(bytes);
        if report.is_none() {
            self.check_content(to, bytes);
        } else if !from.is_empty() {
            self.violation(format!("a report came from <{from}>, not from the null path"));
        }
        for address in to {
            let Some(whom) = Whom::of(address) else {
                self.violation(format!("mail for {address}, which nobody sent, arrived at host {host}"));
                continue;
            };
            let token = match whom {
                Whom::Recipient(token, _) | Whom::Sender(token) => token,
            };
            let Some(entry) = self.entries.get(&token) else {
                self.violation(format!("mail for {address} arrived, and it was never submitted"));
                continue;
            };
            let fits = match whom {
                Whom::Sender(_) => report.is_some() && entry.plan.sender.as_deref() == Some(address),
                Whom::Recipient(_, index) => {
                    let index = usize::from(index);
                    report.is_none()
                        && entry.plan.recipients.get(index).is_some_and(|recipient| recipient.address == *address)
                        && entry.plan.sender.as_deref().unwrap_or("") == from
                        && entry.accepted.get(index) == Some(&true)
                }
            };
            if !fits || entry.told == Told::Nothing {
                let told = entry.told;
                self.violation(format!(
                    "mail from <{from}> arrived for {address}, which was not to be sent so; its client was told {told:?}"
                ));
            }
            places.push(self.arrivals.len());
            let report = report.clone();
            self.arrivals.push(Arrival { at, whom, host, report, replied_at: None });
        }
        places
    }

    fn check_content(&mut self, to: &[String], bytes: &[u8]) {
        let Some(token) = content::token_of(bytes) else {
            return self.violation(format!("mail without a token arrived for {to:?}"));
        };
        let Some(sent) = self.content(token) else {
            return self.violation(format!("message t{token} arrived and was never submitted"));
        };
        if let Err(what) = content::same_but_for_trace(bytes, &sent, self.signed, self.filtered) {
            self.violation(format!("message t{token}: {what}"));
        }
        for address in to {
            if !matches!(Whom::of(address), Some(Whom::Recipient(of, _)) if of == token) {
                self.violation(format!("the content of message t{token} was sent to {address}"));
            }
        }
    }

    /// The relay tells of something.
    pub fn event(&mut self, at: Ns, event: &Event) {
        let (facts, what) = match event {
            Event::Delivered(facts) => (facts, What::Delivered),
            Event::Bounced(facts) => (facts, What::Bounced),
            Event::Expired(facts) => (facts, What::Expired),
            Event::Suppressed(facts) => (facts, What::Suppressed),
            Event::Deferred { facts, .. } => return self.deferred(&facts.recipient),
            Event::Received { id, first_recipient, .. } => {
                if let Some(Whom::Recipient(token, _)) = Whom::of(first_recipient) {
                    self.received.insert(*id, token);
                }
                return;
            }
            Event::DoubleBounce { .. } => {
                self.double_bounces += 1;
                return;
            }
            Event::DsnQueued { .. } => {
                self.reports_queued += 1;
                return;
            }
            Event::Notice { severity: ringpost::event::Severity::Error, text } => {
                self.notices.push(text.to_string());
                return;
            }
            _ => return,
        };
        let Some(whom) = Whom::of(&facts.recipient) else {
            return self.violation(format!("the relay tells of {}, which nobody sent", facts.recipient));
        };
        let end = End { at, what, reply: facts.reply.to_string(), age_ms: facts.age_ms };
        self.ends.entry(whom).or_default().push(end);
    }
}
