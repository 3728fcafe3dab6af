//! The control thread's part: reports are read, DNS is asked, sites are registered, recovery is read and handed out, and
//! messages wait here while a mailbox is full.

use crate::world::content;
use crate::world::geography::{Zone, host_name};
use crate::world::machine::Callback;
use crate::world::plan::Trouble;
use crate::world::planted::Planted;
use crate::world::random::{MS, Ns, S};
use crate::world::{Event, World};
use ringpost::event::Event as Fact;
use ringpost::io::dns::{DnsFailure, MxHost, Query, Resolution};
use ringpost::policy::outbound_tls::HostTls;
use ringpost::reply::Reply;
use ringpost::shard::message::{
    AdminReply, FilterContent, FilterQuestion, FilterVerdict, Passed, Rejected, Report, ShardState, ToShard,
};
use ringpost_spool::{FileId, RecoveredMessage, recover_from};
use std::time::Duration;

impl World {
    /// A shard reports.
    pub fn reported(&mut self, shard: u8, report: Report) {
        let epoch = self.epoch;
        if let Report::Event { event, .. } = &report {
            self.trace.line(self.now, format_args!("s{shard} tells {}", shown_fact(event)));
            self.ledger.event(self.now, event);
        }
        if !self.healed && self.random.chance(self.plan.rates.mailbox) {
            self.trace.line(self.now, format_args!("the control thread has no room for s{shard}"));
            if let Some(found) = self.shard(epoch, shard) {
                found.callbacks.push_back(Callback::ReportRefused(report));
            }
            return;
        }
        match report {
            Report::Resolve { query, .. } => self.dns_asked(shard, query),
            Report::Admin { reply, .. } => self.admin_answered(shard, &reply),
            Report::Filter { question, .. } => self.filter_asked(shard, &question),
            Report::Event { .. } | Report::Login { .. } | Report::Reserve { .. } | Report::Bounced { .. } => {}
            Report::State { state, .. } => {
                self.trace.line(self.now, format_args!("s{shard} is {state:?}"));
                if state == ShardState::Recovered
                    && let Some(process) = &mut self.process
                {
                    process.recovered_shards += 1;
                }
            }
        }
    }

    /// A filter sees a message: it adds a header, or it refuses for now or for good.
    fn filter_asked(&mut self, shard: u8, question: &FilterQuestion) {
        let FilterQuestion { id, conn, .. } = *question;
        self.trace.line(self.now, format_args!("s{shard} shows {id} to the filter"));
        let file;
        let shown = match &question.content {
            FilterContent::Memory(bytes) => bytes.as_ref(),
            &FilterContent::File { offset, len } => {
                // A session that ended since has taken its file with it.
                let Some(bytes) = self.disk.bytes(FileId::Content(id.0)) else { return };
                file = bytes;
                file.get(offset as usize..(offset + len) as usize).unwrap_or_default()
            }
        };
        let sent = content::token_of(shown).and_then(|token| self.ledger.content(token));
        if sent.is_none_or(|sent| shown != sent) {
            self.ledger.violation(format!("the filter is shown something else than the content of {id}"));
        }
        let rejected = |reply| Rejected { filter: "filter".into(), reply };
        let result = match self.random.range(0, 40) {
            0 => Err(rejected(Reply::fixed(451, 4, 7, 1, "The filter says: not now"))),
            1 => Err(rejected(Reply::fixed(554, 5, 7, 1, "The filter says: never"))),
            _ => {
                let text = "x".repeat(self.random.range(0, 900) as usize);
                Ok(Passed { headers: format!("X-Filter: {text}\r\n").into_bytes(), held: None })
            }
        };
        let wait = if self.random.chance(30) { self.random.range(S, 12 * S) } else { self.random.skewed(MS, 100 * MS) };
        let message = Box::new(ToShard::Filtered(Box::new(FilterVerdict { id, conn, result, failures: 0 })));
        let epoch = self.epoch;
        self.after(wait, Event::Deliver { epoch, shard, message });
    }

    fn dns_asked(&mut self, shard: u8, query: Query) {
        self.trace.line(self.now, format_args!("s{shard} asks for {query:?}"));
        let lost = |trouble| (trouble == Trouble::DnsLost).then_some(());
        if self.plan.trouble_at(self.now, lost).is_some() {
            return;
        }
        let epoch = self.epoch;
        let wait = if self.random.chance(30) { self.random.range(S, 12 * S) } else { self.random.skewed(MS, 300 * MS) };
        self.after(wait, Event::Dns { epoch, shard, query });
    }

    /// DNS answers a question of a shard.
    pub fn dns_answers(&mut self, epoch: u32, shard: u8, query: Query) {
        if self.shard(epoch, shard).is_none() {
            return;
        }
        let fails = |trouble| (trouble == Trouble::DnsFails).then_some(());
        let result = match self.plan.trouble_at(self.now, fails) {
            Some(()) => Err(DnsFailure::Temporary("SERVFAIL".into())),
            None => self.looked_up(&query),
        };
        let ttl =
            Duration::from_secs(if result.is_err() { self.random.range(1, 20) } else { self.random.range(1, 300) });
        let permits = match (&query, &result, &mut self.process) {
            (Query::Mail(domain) | Query::SecureMail(domain), Ok(hosts), Some(process)) => {
                process.registry.site_of(domain, hosts)
            }
            _ => None,
        };
        let permits = permits.map(|permits| self.plant_in_permits(shard, permits));
        let resolution = Resolution { query, result, ttl };
        self.deliver_some_time(shard, ToShard::Resolved { resolution, permits });
    }

    fn looked_up(&self, query: &Query) -> Result<Vec<MxHost>, DnsFailure> {
        let geography = &self.plan.geography;
        match query {
            Query::Mail(domain) | Query::SecureMail(domain) => match geography.zones.get(&**domain) {
                Some(Zone::Site(site)) => Ok(geography.mail_hosts(*site)),
                Some(Zone::NullMx) => Err(DnsFailure::NullMx),
                Some(Zone::NoDomain) | None => Err(DnsFailure::NoDomain),
            },
            Query::Host(name) => {
                let host = (0..geography.hosts.len()).find(|&host| host_name(host) == *name);
                let host = host.ok_or(DnsFailure::NoDomain)?;
                let address = geography.hosts[host].address.ip();
                Ok(vec![MxHost { preference: 0, name: name.clone(), tls: HostTls::None, addresses: vec![address] }])
            }
        }
    }

    /// Puts a message into a shard's mailbox after a moment, or later when there is no room.
    pub fn deliver_some_time(&mut self, shard: u8, message: ToShard) {
        let epoch = self.epoch;
        let full = !self.healed && self.random.chance(self.plan.rates.mailbox);
        let wait = if full { self.random.range(MS, S) } else { self.random.skewed(0, 2 * MS) };
        self.after(wait, Event::Deliver { epoch, shard, message: Box::new(message) });
    }

    /// The control thread found room in a mailbox.
    pub fn control_delivers(&mut self, epoch: u32, shard: u8, message: ToShard) {
        if self.shard(epoch, shard).is_some() {
            self.put_mail(shard, message, 0);
        }
    }

    /// The recovery thread reads the spool and hands out what it finds, in pieces.
    pub fn recover(&mut self, epoch: u32) {
        let Some(process) = self.process.as_ref().filter(|process| process.epoch == epoch) else { return };
        let shards = process.shards.len();
        let mut found: Vec<Vec<RecoveredMessage>> = vec![Vec::new(); shards];
        let mut misplaced = 0;
        let result = recover_from(&self.disk, &process.snapshot, shards as u8, &mut |shard, message| match found
            .get_mut(usize::from(shard))
        {
            Some(list) => list.push(message),
            None => misplaced += 1,
        });
        if misplaced > 0 {
            self.ledger.violation(format!("recovery gave {misplaced} messages to shards that do not exist"));
        }
        let report = match result {
            Ok(report) => report,
            Err(error) => return self.ledger.violation(format!("the spool cannot be recovered: {error}")),
        };
        self.trace
            .line(self.now, format_args!("recovery: {} messages, {} recipients", report.messages, report.recipients));
        for damage in &report.damage {
            self.trace.line(self.now, format_args!("damage: {damage}"));
            if self.plan.damage.is_none() {
                self.ledger.violation(format!("recovery found damage where there was none: {damage}"));
            }
        }
        self.damage_found += report.damage.len();
        let mut segments = report.segments;
        segments.resize_with(shards, Vec::new);
        for (shard, (messages, segments)) in found.into_iter().zip(segments).enumerate() {
            self.hand_out(shard as u8, messages, segments, report.greatest_id);
        }
    }

    fn hand_out(
        &mut self,
        shard: u8,
        mut messages: Vec<RecoveredMessage>,
        segments: Vec<ringpost_spool::RecoveredSegment>,
        greatest_id: u64,
    ) {
        let mut wait: Ns = 0;
        let mut lost = self.has_planted(Planted::RecoveredLost);
        while !messages.is_empty() {
            let some = self.random.range(1, 20).min(messages.len() as u64) as usize;
            let rest = messages.split_off(some);
            wait = self.random.skewed(0, 50 * MS);
            if !std::mem::take(&mut lost) {
                self.put_mail(shard, ToShard::Recovered(messages), wait);
            }
            messages = rest;
        }
        self.put_mail(shard, ToShard::RecoveryDone { segments, greatest_id }, wait);
    }

    fn admin_answered(&mut self, shard: u8, reply: &AdminReply) {
        match reply {
            AdminReply::Changed { recipients, .. } => {
                self.trace.line(self.now, format_args!("s{shard} changed {recipients} recipients"));
            }
            AdminReply::Messages { messages, .. } => self.waiting.extend(messages.iter().cloned()),
            AdminReply::Metrics(metrics) => self.metrics.push((**metrics).clone()),
            AdminReply::Message(_) | AdminReply::Sites(_) => {}
        }
    }
}

fn shown_fact(fact: &Fact) -> String {
    match fact {
        Fact::Received { id, first_recipient, recipients, .. } => {
            format!("received {id} for {first_recipient} and {} more", recipients - 1)
        }
        Fact::Delivered(facts) => format!("delivered {} {}", facts.id, facts.recipient),
        Fact::Bounced(facts) => format!("bounced {} {}: {}", facts.id, facts.recipient, facts.reply),
        Fact::Suppressed(facts) => format!("suppressed {} {}", facts.id, facts.recipient),
        Fact::Expired(facts) => format!("expired {} {}: {}", facts.id, facts.recipient, facts.reply),
        Fact::Deferred { facts, next } => {
            format!("deferred {} {} to {next}: {}", facts.id, facts.recipient, facts.reply)
        }
        other => format!("{other:?}"),
    }
}
