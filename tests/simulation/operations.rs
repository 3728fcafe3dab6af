//! Starts, stops and troubles: what happens to the process and its disk as a whole, by the plan, and when the world has
//! come to rest.

use crate::world::client::Client;
use crate::world::content::{self, find};
use crate::world::ledger::{Told, Whom};
use crate::world::machine::{Process, Shard};
use crate::world::plan::{Damaged, Operation, Plan, Stop, Trouble};
use crate::world::random::{MS, Ns, S};
use crate::world::{BOOT_TIME, Event, TICK, World};
use ringpost::io::handler::Handler;
use ringpost::shard::core::{Core, CoreParts};
use ringpost::shard::lease::Loads;
use ringpost::shard::message::{AdminRequest, Filter, ToShard};
use ringpost::shard::permits::SiteRegistry;
use ringpost_spool::sim_disk::SimDiskConfig;
use ringpost_spool::{Disk, FileId, SimDisk, Snapshot};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A stop in good order takes at most so long: the drain, and a bit.
const STOP_MAX: Ns = 90 * S;
/// Tickets of requests that are not about one message.
const NO_TOKEN: u64 = 0;
/// Spares that a start leaves when it gives back segments that were never used.
const SPARES: usize = 4;

/// The disk of a plan, new and empty.
pub fn new_disk(plan: &Plan) -> SimDisk {
    SimDisk::new(plan.seed ^ 0xd15c, SimDiskConfig::sound(plan.settings.segment_size))
}

impl World {
    /// Plans what is known beforehand.
    pub fn plan_everything(&mut self) {
        self.clients = self.plan.sessions.iter().cloned().map(Client::new).collect();
        for client in 0..self.clients.len() {
            self.at(self.plan.sessions[client].at, Event::ClientStarts(client));
        }
        for window in self.plan.windows.clone() {
            if window.trouble.is_of_disk() {
                self.at(window.from, Event::DiskChanges);
                self.at(window.to, Event::DiskChanges);
                self.ledger.disk_troubles.push((window.from, window.to));
            }
        }
        for (at, millis) in self.plan.jumps.clone() {
            self.at(at, Event::Jump(millis));
        }
        for (at, operation) in self.plan.operations.clone() {
            self.at(at, Event::Operation(operation));
        }
        for (at, stop) in self.plan.stops.clone() {
            self.at(at, Event::Stop(stop));
        }
        self.at(0, Event::Start);
    }

    /// The process starts.
    pub fn start(&mut self) {
        if self.process.is_some() {
            return;
        }
        let shards = self.plan.shards[self.epoch as usize % self.plan.shards.len()];
        self.epoch += 1;
        self.segments_may_stay = false;
        let epoch = self.epoch;
        self.trace.line(self.now, format_args!("start {epoch} with {shards} shards"));
        if let Some(damaged) = self.plan.damage.filter(|_| epoch > 1 && self.damaged == 0) {
            self.damage_something(damaged);
        }
        let mut snapshot = match Snapshot::take(&self.disk) {
            Ok(snapshot) => snapshot,
            Err(error) => return self.ledger.violation(format!("the spool cannot be listed: {error}")),
        };
        if let Err(error) = snapshot.free_unused(&self.disk, SPARES) {
            return self.ledger.violation(format!("unused segments cannot be freed: {error}"));
        }
        let registry = SiteRegistry::new(Arc::clone(&self.plan.settings), shards);
        let loads = Arc::new(Loads::new(shards));
        let cores: Vec<Core> = (0..shards)
            .map(|shard| {
                Core::new(CoreParts {
                    shard,
                    shards,
                    settings: Arc::clone(&self.plan.settings),
                    sites: registry.sites().to_vec(),
                    loads: Arc::clone(&loads),
                    first_sequence: snapshot.next_sequence(),
                    seed: self.random.next(),
                    spool_written: self.spool_written,
                    directory: self.plan.directory(),
                    login_key: [7; 32],
                    salt_key: [7; 32],
                    suppression: Arc::clone(&self.ledger.suppression),
                    recovering: true,
                })
            })
            .collect();
        let now = self.now;
        let shards = cores.into_iter().enumerate().map(|(number, core)| Shard::new(core, now + number as Ns * MS));
        let shards: Vec<Shard> = shards.collect();
        let count = shards.len() as u8;
        self.process = Some(Process {
            epoch,
            shards,
            registry,
            snapshot,
            recovered_shards: 0,
            stopping: false,
            leaked: None,
            own_permits: BTreeMap::new(),
        });
        for shard in 0..count {
            self.call(shard, |core, now| core.started(now));
        }
        let wait = self.random.skewed(MS, 3 * S);
        self.after(wait, Event::Recover { epoch });
    }

    /// The process is stopped, if it runs.
    pub fn stop(&mut self, stop: Stop) {
        let Some(process) = &mut self.process else { return };
        if stop == Stop::Graceful {
            if process.stopping {
                return;
            }
            process.stopping = true;
            let epoch = process.epoch;
            let shards = process.shards.len() as u8;
            self.trace.line(self.now, format_args!("stop in good order"));
            for shard in 0..shards {
                let wait = self.random.skewed(0, 50 * MS);
                self.after(wait, Event::Deliver { epoch, shard, message: Box::new(ToShard::Shutdown) });
            }
            self.after(STOP_MAX, Event::StopTimeout { epoch });
            return;
        }
        self.trace.line(self.now, format_args!("stop: {stop:?}"));
        self.ledger.stops.push((self.now, stop));
        match stop {
            Stop::Power => self.disk.crash(),
            _ => self.disk.kill(),
        }
        self.relay_ends_vanish(stop == Stop::Power);
        self.gone();
        if stop == Stop::Power {
            self.booted = self.now;
        }
    }

    /// The last shard is over.
    pub fn process_ended(&mut self) {
        self.trace.line(self.now, format_args!("the process has ended in good order"));
        self.ledger.stops.push((self.now, Stop::Graceful));
        self.gone();
    }

    fn gone(&mut self) {
        self.process = None;
        self.site_open.iter_mut().for_each(|open| *open = 0);
        self.site_of_link.clear();
        let wait = self.random.range(50 * MS, 5 * S);
        self.after(wait, Event::Start);
    }

    /// A stop in good order must end.
    pub fn stop_timeout(&mut self, epoch: u32) {
        if self.process.as_ref().is_some_and(|process| process.epoch == epoch) {
            self.ledger.violation(format!("start {epoch} did not stop in good order within {} s", STOP_MAX / S));
            self.stop(Stop::Kill);
        }
    }

    /// Sets the disk's faults to those of the troubles under way.
    pub fn disk_changes(&mut self) {
        let mut config = SimDiskConfig::sound(self.plan.settings.segment_size);
        for window in self.plan.windows.iter().filter(|w| w.from <= self.now && self.now < w.to) {
            match window.trouble {
                Trouble::WriteErrors(rate) => config.write_errors = rate,
                Trouble::SyncErrors(rate) => config.sync_errors = rate,
                Trouble::ReadErrors(rate) => config.read_errors = rate,
                Trouble::NameErrors(rate) => config.name_errors = rate,
                Trouble::DiskFull => config.capacity = 0,
                _ => continue,
            }
        }
        self.trace.line(self.now, format_args!("disk: {config:?}"));
        self.disk.set_config(config);
    }

    /// How long the disk takes for an operation.
    pub fn disk_wait(&mut self) -> Ns {
        let slow = |trouble| match trouble {
            Trouble::SlowDisk(delay) => Some(delay),
            _ => None,
        };
        let most = self.plan.trouble_at(self.now, slow).unwrap_or(self.plan.disk_delay);
        self.random.skewed(most / 20, most)
    }

    /// Whether the process can open nothing.
    pub fn out_of_descriptors(&self) -> bool {
        let gone = |trouble| (trouble == Trouble::Descriptors).then_some(());
        self.plan.trouble_at(self.now, gone).is_some()
    }

    /// Flips a byte of the first message that still waits.
    fn damage_something(&mut self, damaged: Damaged) {
        let segments = self.disk.segments().unwrap_or_default().into_iter().map(FileId::Segment);
        let contents = self.disk.contents().unwrap_or_default().into_iter().map(FileId::Content);
        let files: Vec<FileId> = if damaged == Damaged::File { contents.collect() } else { segments.collect() };
        for file in files {
            let bytes = self.disk.bytes(file).unwrap_or_default();
            let Some((trace, token)) = self.waiting_message(&bytes) else { continue };
            // The envelope stands before the content that begins with our trace header.
            let at = match damaged {
                Damaged::Content => token + 4,
                Damaged::Record => trace - 8,
                Damaged::File => bytes.len() / 2,
            };
            self.disk.damage(file, at as u64, 0x55);
            self.damaged += 1;
            self.trace.line(self.now, format_args!("{file:?} is damaged at {at}"));
            return;
        }
    }

    /// Where the content and the token of a message stand that has a recipient without an end.
    fn waiting_message(&self, bytes: &[u8]) -> Option<(usize, usize)> {
        let mut from = 0;
        loop {
            let begin: &[u8] = match (self.plan.signs(), self.plan.filters()) {
                (true, _) => b"DKIM-Signature: v=1; a=ed",
                (false, true) => b"X-Filter: ",
                (false, false) => b"Received: from ",
            };
            let trace = from + find(&bytes[from..], begin)?;
            let token_at = trace + find(&bytes[trace..], b"X-Token: t")?;
            let token = content::token_of(&bytes[trace..])?;
            let entry = self.ledger.entries.get(&token)?;
            let waits = |index: usize| !self.ledger.ends.contains_key(&Whom::Recipient(token, index as u16));
            if matches!(entry.told, Told::Accepted(_)) && (0..entry.plan.recipients.len()).all(waits) {
                return Some((trace, token_at));
            }
            from = token_at;
        }
    }

    /// An operator acts.
    pub fn operate(&mut self, operation: Operation) {
        let Some(process) = &self.process else {
            // Whoever holds must release.
            if operation == Operation::ReleaseAll {
                self.after(6 * S, Event::Operation(operation));
            }
            return;
        };
        let shards = process.shards.len() as u8;
        if operation == Operation::ReleaseAll && (process.stopping || usize::from(shards) > process.recovered_shards) {
            return self.after(S, Event::Operation(operation));
        }
        self.trace.line(self.now, format_args!("operator: {operation:?}"));
        let everything = Filter { all: true, ..Filter::default() };
        let (ticket, request) = match operation {
            Operation::HoldAll => (NO_TOKEN, AdminRequest::Hold { filter: everything, after: None }),
            Operation::ReleaseAll => (NO_TOKEN, AdminRequest::Release { filter: everything, after: None }),
            Operation::RetryAll => (NO_TOKEN, AdminRequest::Retry { filter: everything, after: None }),
            Operation::DeleteOne => {
                let accepted: Vec<(u32, u64)> = self
                    .ledger
                    .entries
                    .iter()
                    .filter_map(|(token, entry)| match entry.told {
                        Told::Accepted(id) => Some((*token, id.0)),
                        _ => None,
                    })
                    .collect();
                if accepted.is_empty() {
                    return;
                }
                let (token, id) = *self.random.pick(&accepted);
                // Recipients in an attempt end with it, so the answer need not count them.
                if let Some(entry) = self.ledger.entries.get_mut(&token) {
                    entry.deleted = true;
                }
                let filter = Filter { id: Some(id), ..Filter::default() };
                (u64::from(token), AdminRequest::Delete { filter, after: None })
            }
        };
        for shard in 0..shards {
            self.deliver_some_time(shard, ToShard::Admin { ticket, request: request.clone() });
        }
    }

    /// Whether all is over: nothing waits, nothing is open, nothing will happen.
    pub fn is_at_rest(&mut self) -> bool {
        let Some(process) = &self.process else { return false };
        if self.now < self.plan.active || process.stopping || !self.links.is_empty() || !self.events.is_empty() {
            return false;
        }
        let shards = process.shards.len() as u8;
        if process.recovered_shards < usize::from(shards) {
            return false;
        }
        self.waiting.clear();
        for shard in 0..shards {
            let request = AdminRequest::List { filter: Filter::default(), after: None, limit: 20 };
            self.ask(shard, ToShard::Admin { ticket: NO_TOKEN, request });
        }
        let rest = self.waiting.is_empty() && self.disk.pending() == 0;
        if rest {
            // A little longer, until the spool has tidied up.
            self.rests += 1;
        } else {
            self.rests = 0;
        }
        self.rests > 12
    }

    /// Asks every shard for its figures.
    pub fn gather_metrics(&mut self) {
        self.metrics.clear();
        let shards = self.process.as_ref().map_or(0, |process| process.shards.len() as u8);
        for shard in 0..shards {
            self.ask(shard, ToShard::Admin { ticket: NO_TOKEN, request: AdminRequest::Metrics });
        }
    }
}

const _: () = assert!(BOOT_TIME > TICK);
