//! Quotas' counts of hours and days on disk: reserved in blocks before shards count in them, given back at an orderly stop.
//!
//! Kept beside the identities. One change of the disk serves all that was asked for meanwhile. When the disk refuses, what is
//! reserved may be used up, and messages beyond it are told to come later; it is tried again when they ask again.

use super::identities::{Identities, IdentityError};
use super::log::EventLog;
use crate::clock::UnixTime;
use crate::event::Severity;
use crate::io::clock;
use crate::io::mailbox::Sender;
use crate::policy::identity::{Credential, Directory, Tenant};
use crate::policy::quota::Quotas;
use crate::policy::usage::{Record, Usage};
use crate::shard::message::ToShard;
use redb::TableDefinition;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// By [`key_of_tenant`] or [`key_of_credential`].
const USAGE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("usage");

/// How long to wait after the disk has refused.
const PAUSE: Duration = Duration::from_secs(1);

/// Whose counts: a tenant by its name, or a credential by its login.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Account {
    /// A tenant.
    Tenant(Box<str>),
    /// A credential.
    Credential(Box<str>),
}

/// Another one that gets the same name later does not get the counts with it.
fn key_of_tenant(tenant: &Tenant) -> String {
    format!("tenant {} {}", tenant.created_ms, tenant.name)
}

fn key_of_credential(credential: &Credential) -> String {
    format!("credential {} {}", credential.id, credential.login)
}

/// The key on disk of an account and what it has sent of how much; none when it is gone.
fn account<'a>(directory: &'a Directory, account: &Account) -> Option<(String, &'a Quotas, &'a Usage)> {
    match account {
        Account::Tenant(name) => directory.tenant(name).map(|one| (key_of_tenant(one), &one.quotas, &*one.usage.0)),
        Account::Credential(login) => {
            directory.credential(login).map(|one| (key_of_credential(one), &one.quotas, &*one.usage.0))
        }
    }
}

fn all_usages(directory: &Directory) -> impl Iterator<Item = (String, &Usage)> {
    let tenants = directory.tenants().map(|one| (key_of_tenant(one), &*one.usage.0));
    tenants.chain(directory.credentials().map(|one| (key_of_credential(one), &*one.usage.0)))
}

impl Identities {
    /// Reserves more for those of these accounts that have too little. Blocks for the disk.
    pub fn reserve(&self, accounts: &HashSet<Account>, now: UnixTime) -> Result<(), IdentityError> {
        let directory = self.directory().load_full();
        let wanted = accounts.iter().filter_map(|one| account(&directory, one)).filter_map(|(key, quotas, usage)| {
            let record = usage.reservation(quotas, now)?;
            Some((key, usage, record))
        });
        let wanted: Vec<(String, &Usage, Record)> = wanted.collect();
        if wanted.is_empty() {
            return Ok(());
        }
        self.change(|tables| {
            let mut table = tables.open_table(USAGE)?;
            for (key, _, record) in &wanted {
                table.insert(key.as_str(), encoded(record).as_slice())?;
            }
            Ok(())
        })?;
        wanted.iter().for_each(|(_, usage, record)| usage.reserved(record));
        Ok(())
    }

    /// No shard counts any more: what was really used is written, and nothing else is left on disk. Blocks for the disk.
    pub fn settle(&self, now: UnixTime) -> Result<(), IdentityError> {
        let directory = self.directory().load_full();
        let known = self.kept_usages()?;
        let used: Vec<(String, Record)> =
            all_usages(&directory).filter_map(|(key, usage)| Some((key, usage.settled(now)?))).collect();
        if used == known {
            return Ok(());
        }
        self.change(|tables| {
            tables.delete_table(USAGE)?;
            let mut table = tables.open_table(USAGE)?;
            for (key, record) in &used {
                table.insert(key.as_str(), encoded(record).as_slice())?;
            }
            Ok(())
        })
    }

    /// The process starts: all that is on disk counts as used.
    pub(super) fn restore_usages(&self) -> Result<(), IdentityError> {
        let kept: std::collections::HashMap<String, Record> = self.kept_usages()?.into_iter().collect();
        if kept.is_empty() {
            return Ok(());
        }
        let directory = self.directory().load_full();
        for (key, usage) in all_usages(&directory) {
            if let Some(record) = kept.get(&key) {
                usage.restore(record);
            }
        }
        Ok(())
    }

    fn kept_usages(&self) -> Result<Vec<(String, Record)>, IdentityError> {
        self.entries(USAGE)
    }
}

fn encoded(record: &Record) -> Vec<u8> {
    serde_json::to_vec(record).unwrap_or_default()
}

/// Reserves what shards ask for.
#[derive(Clone)]
pub struct Reservations(Arc<Parts>);

struct Parts {
    identities: Arc<Identities>,
    shards: Vec<Sender<ToShard>>,
    log: EventLog,
    /// What was asked for and not begun. Bounded by the number of accounts.
    asked: Mutex<HashSet<Account>>,
    wake: Notify,
}

impl Reservations {
    /// For these shards. To be called within the control thread's runtime.
    pub fn start(identities: Arc<Identities>, shards: Vec<Sender<ToShard>>, log: EventLog) -> Reservations {
        let parts = Parts { identities, shards, log, asked: Mutex::default(), wake: Notify::new() };
        let reservations = Reservations(Arc::new(parts));
        tokio::spawn(Arc::clone(&reservations.0).run());
        reservations
    }

    /// More is wanted for these.
    pub fn ask(&self, tenant: Option<Box<str>>, login: Option<Box<str>>) {
        let accounts = tenant.map(Account::Tenant).into_iter().chain(login.map(Account::Credential));
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner).extend(accounts);
        self.0.wake.notify_one();
    }
}

impl Parts {
    async fn run(self: Arc<Parts>) {
        loop {
            self.wake.notified().await;
            let asked = std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner));
            let identities = Arc::clone(&self.identities);
            let reserved = tokio::task::spawn_blocking(move || {
                identities.reserve(&asked, clock::now().unix).map_err(|e| e.to_string())
            });
            match reserved.await.unwrap_or_else(|error| Err(error.to_string())) {
                // A full mailbox is no harm: shards look again by themselves.
                Ok(()) => self.shards.iter().for_each(|shard| drop(shard.push(ToShard::Reserved))),
                Err(error) => {
                    let text = format!(
                        "the use of quotas cannot be recorded, so that mail beyond what is reserved is told to come later: {error}"
                    );
                    self.log.notice(Severity::Error, &text);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity_requests::IdentityRequest;
    use super::*;
    use crate::policy::charge::Charge;
    use crate::policy::domain::Unverified;
    use crate::policy::usage::Taken;
    use std::path::PathBuf;

    const NOW: UnixTime = UnixTime::from_millis(3_600_000);

    fn spool(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("reservations-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn add(identities: &Identities, now: UnixTime) {
        let unverified = Unverified::Pass;
        identities.handle(IdentityRequest::AddTenant { name: "a".into(), unverified }, now).unwrap();
        let quotas = Quotas { messages: vec!["32/hour".parse().unwrap()], ..Quotas::default() };
        identities.handle(IdentityRequest::SetTenantQuotas { name: "a".into(), quotas }, now).unwrap();
    }

    /// How many messages can be sent.
    fn send(identities: &Identities, most: usize) -> usize {
        let sent = |_: &usize| loop {
            let directory = identities.directory().load_full();
            let mut charge = Charge::of(directory.tenant("a"), None, 1).unwrap();
            match charge.take(NOW) {
                Ok(Taken::Unreserved) => {
                    identities.reserve(&HashSet::from([Account::Tenant("a".into())]), NOW).unwrap();
                }
                taken => {
                    charge.keep();
                    break taken.is_ok();
                }
            }
        };
        (0..most).take_while(sent).count()
    }

    #[test]
    fn a_crash_keeps_the_limit_and_a_stop_gives_back() {
        let path = spool("crash");
        let identities = Identities::open(&path).unwrap();
        add(&identities, NOW);
        assert_eq!(send(&identities, 5), 5);
        // The process is killed here: nothing is settled.
        drop(identities);
        let identities = Identities::open(&path).unwrap();
        let left = send(&identities, 10);
        assert_eq!(left, 10);
        identities.settle(NOW).unwrap();
        drop(identities);
        let identities = Identities::open(&path).unwrap();
        let rest = send(&identities, 100);
        assert!((5 + left + rest) <= 32 && (5 + left + rest) >= 30, "at most a block of two was lost: {rest}");
        identities.settle(NOW).unwrap();
        drop(identities);
        assert_eq!(send(&Identities::open(&path).unwrap(), 100), 0);
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn another_tenant_of_the_same_name_begins_anew() {
        let path = spool("anew");
        let identities = Identities::open(&path).unwrap();
        add(&identities, NOW);
        assert_eq!(send(&identities, 100), 32);
        identities.settle(NOW).unwrap();
        identities.handle(IdentityRequest::RemoveTenant { name: "a".into() }, NOW).unwrap();
        add(&identities, UnixTime::from_millis(3_600_001));
        drop(identities);
        let identities = Identities::open(&path).unwrap();
        assert_eq!(send(&identities, 100), 32);
        identities.settle(NOW).unwrap();
        assert_eq!(identities.kept_usages().unwrap().len(), 1, "the one that is gone is forgotten");
        std::fs::remove_dir_all(path).unwrap();
    }
}
