//! The lists of suppressed addresses: each tenant's and that of all. Changed by operators and by what destinations reply, in force
//! for all shards as soon as it is on disk.
//!
//! Everything here may block for the disk and runs beside the control thread's loop. Bounces that find no room while the disk is
//! slow are dropped and told: they come again with the next message.

use super::identities::SharedDirectory;
use super::log::EventLog;
use super::suppression_log::{Kind, Record, Source, SuppressionLog, end_of};
use super::suppression_requests::{EntryView, NewEntry, SuppressionReply, SuppressionRequest};
use crate::address::Address;
use crate::clock::UnixTime;
use crate::event::Severity;
use crate::io::clock;
use crate::limits::{
    ADDRESS_OCTETS_MAX, BOUNCES_WAITING_MAX, SOFT_BOUNCES_MAX, SUPPRESSION_ENTRIES_MAX, SUPPRESSION_PAGE_MAX,
    SUPPRESSION_REASON_MAX,
};
use crate::policy::suppression::{Bounce, Fingerprint, SuppressionTable, holds};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// What bounces lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuppressionPlan {
    /// Addresses that do not exist are suppressed for so long; none: they are not.
    pub hard: Option<Option<Duration>>,
    /// So many final failures suppress an address; none: they do not.
    pub soft_bounces: Option<u32>,
    /// Within this time.
    pub soft_period: Duration,
    /// For so long; none: for ever.
    pub soft_lifetime: Option<Duration>,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum SuppressionError {
    /// The disk.
    #[error("the list of suppressed addresses: {0}")]
    Disk(#[from] io::Error),
    /// The request.
    #[error("{0}")]
    Wrong(String),
    /// It is not there.
    #[error("{0} is not suppressed")]
    Absent(String),
}

/// A delivery that failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounced {
    /// Whose message.
    pub tenant: Box<str>,
    /// To whom.
    pub address: Box<str>,
    /// What it says of the address.
    pub bounce: Bounce,
    /// The last reply.
    pub reply: Box<str>,
}

/// Final failures of addresses of late, the oldest first.
#[derive(Debug, Default)]
struct SoftBounces {
    times: HashMap<Fingerprint, Vec<u32>>,
    order: VecDeque<Fingerprint>,
}

impl SoftBounces {
    /// One more; how many there were within the period.
    fn note(&mut self, one: Fingerprint, at_s: u32, period_s: u32) -> u32 {
        let times = self.times.entry(one).or_insert_with(|| {
            self.order.push_back(one);
            Vec::new()
        });
        times.retain(|time| time.saturating_add(period_s) > at_s);
        times.push(at_s);
        let count = times.len() as u32;
        while self.times.len() > SOFT_BOUNCES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.times.remove(&oldest);
        }
        count
    }

    fn forget(&mut self, one: Fingerprint) {
        if self.times.remove(&one).is_some() {
            self.order.retain(|other| *other != one);
        }
    }
}

/// The lists.
#[derive(Debug)]
pub struct Suppressions {
    table: Arc<SuppressionTable>,
    state: Mutex<State>,
    plan: SuppressionPlan,
    bounced: Mutex<Vec<Bounced>>,
    wake: Notify,
}

#[derive(Debug)]
struct State {
    log: SuppressionLog,
    soft: SoftBounces,
}

impl Suppressions {
    /// Those of this spool directory, and what an operator must know. Blocks for the disk.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn open(
        spool: &Path,
        key: [u8; 16],
        plan: SuppressionPlan,
        now: UnixTime,
    ) -> io::Result<(Suppressions, Option<String>)> {
        let (log, table, found) = SuppressionLog::open(spool, key, now)?;
        let mut soft = SoftBounces::default();
        let period_s = seconds(plan.soft_period);
        for (one, at_s) in found.soft_bounces {
            soft.note(one, at_s, period_s);
        }
        let state = Mutex::new(State { log, soft });
        let (bounced, wake) = (Mutex::default(), Notify::new());
        Ok((Suppressions { table: Arc::new(table), state, plan, bounced, wake }, found.damage))
    }

    /// What shards look into.
    pub fn table(&self) -> Arc<SuppressionTable> {
        Arc::clone(&self.table)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is asked. Blocks for the disk.
    ///
    /// # Errors
    /// When it cannot be done: nothing was changed then.
    pub fn handle(
        &self,
        request: SuppressionRequest,
        directory: &SharedDirectory,
        now: UnixTime,
    ) -> Result<SuppressionReply, SuppressionError> {
        match request {
            SuppressionRequest::Add { tenant, entries, import } => {
                let source = if import { Source::Import } else { Source::Command };
                self.add(tenant.as_deref(), &entries, source, now)
            }
            SuppressionRequest::List { tenant, after, limit } => {
                let reader = self.state().log.reader()?;
                let limit = limit.unwrap_or(SUPPRESSION_PAGE_MAX).clamp(1, SUPPRESSION_PAGE_MAX);
                let wanted = |record: &Record| tenant.as_deref().is_none_or(|tenant| *record.tenant == *tenant);
                let (page, next) = reader.page(&self.table, after.unwrap_or(0), limit, now, wanted)?;
                let entries = page.into_iter().map(EntryView::from).collect();
                Ok(SuppressionReply::Entries { entries, next, total: self.table.len() })
            }
            SuppressionRequest::Show { address, tenant } => {
                let directory = directory.load();
                let mut lists: Vec<Option<&str>> = match &tenant {
                    Some(tenant) => vec![Some(tenant)],
                    None => directory.tenants().map(|tenant| Some(&*tenant.name)).collect(),
                };
                lists.push(None);
                let state = self.state();
                let mut entries = Vec::new();
                for list in lists {
                    let entry = self.table.get(self.table.fingerprint(list, &address));
                    if let Some(entry) = entry.filter(|entry| holds(*entry, now)) {
                        entries.push(EntryView::from(state.log.record(entry)?));
                    }
                }
                if entries.is_empty() {
                    return Err(SuppressionError::Absent(address));
                }
                Ok(SuppressionReply::Entries { entries, next: None, total: self.table.len() })
            }
            SuppressionRequest::Remove { tenant, address } => {
                let fingerprint = self.table.fingerprint(tenant.as_deref(), &address);
                let mut state = self.state();
                if self.table.get(fingerprint).is_none_or(|entry| entry.until_s == 0) {
                    return Err(SuppressionError::Absent(address));
                }
                let entry = NewEntry { address, reason: String::new(), until_ms: None };
                let record = self.record(tenant.as_deref(), &entry, Source::Command, now)?;
                state.log.append(&self.table, &[Record { kind: Kind::Removed, until_s: 0, ..record }])?;
                state.soft.forget(fingerprint);
                Ok(SuppressionReply::Done {})
            }
        }
    }

    fn add(
        &self,
        tenant: Option<&str>,
        entries: &[NewEntry],
        source: Source,
        now: UnixTime,
    ) -> Result<SuppressionReply, SuppressionError> {
        if entries.len() > SUPPRESSION_PAGE_MAX {
            return Err(SuppressionError::Wrong(format!("more than {SUPPRESSION_PAGE_MAX} entries at a time")));
        }
        let records: Result<Vec<Record>, _> =
            entries.iter().map(|entry| self.record(tenant, entry, source, now)).collect();
        let records = records?;
        let mut state = self.state();
        if self.table.len() + records.len() > SUPPRESSION_ENTRIES_MAX {
            return Err(SuppressionError::Wrong(format!("there is room for {SUPPRESSION_ENTRIES_MAX} entries")));
        }
        state.log.append(&self.table, &records)?;
        Ok(SuppressionReply::Added { entries: records.len() })
    }

    fn record(
        &self,
        tenant: Option<&str>,
        entry: &NewEntry,
        source: Source,
        now: UnixTime,
    ) -> Result<Record, SuppressionError> {
        let NewEntry { address, reason, until_ms } = entry;
        if address.len() > ADDRESS_OCTETS_MAX || Address::parse(address.as_bytes(), true).is_err() {
            return Err(SuppressionError::Wrong(format!("`{address}` is no address")));
        }
        if tenant.is_some_and(|tenant| !(1..=64).contains(&tenant.len()) || !tenant.is_ascii()) {
            return Err(SuppressionError::Wrong("a tenant's name has 1 to 64 ASCII characters".into()));
        }
        Ok(Record {
            kind: Kind::Suppressed,
            source,
            fingerprint: self.table.fingerprint(tenant, address),
            until_s: end_of(*until_ms),
            since_s: (now.as_millis() / 1000) as u32,
            tenant: tenant.unwrap_or_default().into(),
            address: address.as_str().into(),
            reason: plain(reason),
        })
    }

    /// A delivery failed for good.
    pub fn bounced(&self, bounced: Bounced, log: &EventLog) {
        let mut waiting = self.bounced.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() == BOUNCES_WAITING_MAX {
            log.notice(
                Severity::Warning,
                "the disk is too slow for the list of suppressed addresses: bounces are left out of it",
            );
        }
        if waiting.len() <= BOUNCES_WAITING_MAX {
            waiting.push(bounced);
        }
        self.wake.notify_one();
    }

    /// Takes note of bounces, for as long as the program runs.
    pub async fn run(self: Arc<Suppressions>, log: EventLog) {
        loop {
            self.wake.notified().await;
            let bounced = std::mem::take(&mut *self.bounced.lock().unwrap_or_else(PoisonError::into_inner));
            let own = Arc::clone(&self);
            let noted = tokio::task::spawn_blocking(move || own.note(&bounced, clock::now().unix)).await;
            if let Err(error) = noted.unwrap_or_else(|error| Err(io::Error::other(error).into())) {
                log.notice(Severity::Error, &format!("bounces are not in the list of suppressed addresses: {error}"));
            }
        }
    }

    /// What bounces lead to, by one sync of the disk. Blocks for it.
    fn note(&self, bounced: &[Bounced], now: UnixTime) -> Result<(), SuppressionError> {
        let mut state = self.state();
        let now_s = (now.as_millis() / 1000) as u32;
        let mut records = Vec::with_capacity(bounced.len());
        for Bounced { tenant, address, bounce, reply } in bounced {
            let fingerprint = self.table.fingerprint(Some(tenant), address);
            let until = |lifetime: Option<Duration>| lifetime.map(|lifetime| now.after(lifetime).as_millis());
            let (kind, source, until_ms) = match (bounce, &self.plan.hard, self.plan.soft_bounces) {
                (Bounce::Hard, Some(lifetime), _) => (Kind::Suppressed, Source::HardBounce, until(*lifetime)),
                (Bounce::Soft, _, Some(most)) => {
                    if state.soft.note(fingerprint, now_s, seconds(self.plan.soft_period)) < most {
                        (Kind::SoftBounce, Source::SoftBounces, None)
                    } else {
                        state.soft.forget(fingerprint);
                        (Kind::Suppressed, Source::SoftBounces, until(self.plan.soft_lifetime))
                    }
                }
                _ => continue,
            };
            if self.table.is_suppressed(tenant, address, now) {
                continue;
            }
            let record = Record {
                kind,
                source,
                fingerprint,
                until_s: end_of(until_ms),
                since_s: now_s,
                tenant: tenant.clone(),
                address: address.clone(),
                reason: plain(reply),
            };
            if record.fits() && self.table.len() + records.len() < SUPPRESSION_ENTRIES_MAX {
                records.push(record);
            }
        }
        if !records.is_empty() {
            state.log.append(&self.table, &records)?;
        }
        Ok(())
    }
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

/// A reason on one line, within its bound.
fn plain(reason: &str) -> Box<str> {
    let mut kept = String::new();
    for c in reason.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if kept.len() + c.len_utf8() > SUPPRESSION_REASON_MAX {
            break;
        }
        kept.push(c);
    }
    kept.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400_000;

    fn plan() -> SuppressionPlan {
        SuppressionPlan {
            hard: Some(None),
            soft_bounces: Some(3),
            soft_period: Duration::from_secs(10 * 86_400),
            soft_lifetime: Some(Duration::from_secs(86_400)),
        }
    }

    fn at(ms: u64) -> UnixTime {
        UnixTime::from_millis(100 * DAY + ms)
    }

    fn bounced(address: &str, bounce: Bounce) -> Bounced {
        Bounced { tenant: "acme".into(), address: address.into(), bounce, reply: "550 5.1.1 \r\nno".into() }
    }

    #[test]
    fn bounces_suppress_for_their_tenant_over_starts() {
        let path = std::env::temp_dir().join(format!("suppressions-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        let open = |now| Suppressions::open(&path, [1; 16], plan(), now).unwrap().0;
        let lists = open(at(0));
        let is = |lists: &Suppressions, address: &str, now| lists.table.is_suppressed("acme", address, now);
        lists.note(&[bounced("Gone@b.test", Bounce::Hard), bounced("full@b.test", Bounce::Soft)], at(0)).unwrap();
        assert!(is(&lists, "gone@b.test", at(0)) && !lists.table.is_suppressed("shop", "gone@b.test", at(0)));
        lists.note(&[bounced("full@b.test", Bounce::Soft)], at(DAY)).unwrap();
        assert!(!is(&lists, "full@b.test", at(DAY)));
        // A start in between loses no count; what lies too far back does not count.
        let lists = open(at(DAY));
        assert!(is(&lists, "gone@b.test", at(DAY)));
        lists.note(&[bounced("full@b.test", Bounce::Soft)], at(11 * DAY)).unwrap();
        assert!(!is(&lists, "full@b.test", at(11 * DAY)), "two of them are too old");
        lists
            .note(&[bounced("full@b.test", Bounce::Soft), bounced("full@b.test", Bounce::Soft)], at(12 * DAY))
            .unwrap();
        assert!(is(&lists, "full@b.test", at(12 * DAY)) && !is(&lists, "full@b.test", at(13 * DAY)), "for a day");
        let directory = SharedDirectory::default();
        let show = SuppressionRequest::Show { address: "gone@B.test".into(), tenant: Some("acme".into()) };
        let SuppressionReply::Entries { entries, .. } = lists.handle(show.clone(), &directory, at(0)).unwrap() else {
            panic!()
        };
        assert_eq!((&*entries[0].reason, entries[0].source), ("550 5.1.1   no", Source::HardBounce));
        let remove = SuppressionRequest::Remove { tenant: Some("acme".into()), address: "GONE@b.test".into() };
        lists.handle(remove.clone(), &directory, at(0)).unwrap();
        assert!(lists.handle(remove, &directory, at(0)).is_err() && lists.handle(show, &directory, at(0)).is_err());
        assert!(!is(&lists, "gone@b.test", at(0)) && !is(&open(at(0)), "gone@b.test", at(0)));
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn soft_bounces_are_forgotten_in_their_order() {
        let mut soft = SoftBounces::default();
        let one =
            |number: u64| Fingerprint::from_octets((u128::from(number) << 64 | u128::from(number) | 1).to_le_bytes());
        for number in 0..SOFT_BOUNCES_MAX as u64 + 10 {
            assert_eq!(soft.note(one(number), 5, 100), 1);
        }
        assert_eq!(soft.times.len(), SOFT_BOUNCES_MAX);
        assert_eq!(soft.note(one(SOFT_BOUNCES_MAX as u64), 6, 100), 2);
        assert_eq!(soft.note(one(0), 6, 100), 1);
    }
}
