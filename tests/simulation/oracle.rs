//! The judge: compares the books when a world has come to rest. What it holds is what src/../docs/TESTING.md says of the
//! design's invariants: every acknowledged recipient ends once, nothing arrives that was not sent, repeats only where a
//! stop or an unheard reply allows them, limits hold over all shards, and nothing is left over.

use crate::world::World;
use crate::world::geography::Zone;
use crate::world::ledger::{Arrival, End, Entry, Ledger, Told, What, Whom, is_suppressed_from_the_start};
use crate::world::plan::{Plan, Stop, Trouble};
use crate::world::random::{MS, Ns, S};
use ringpost::shard::settings::Rate;
use ringpost_spool::Disk;
use std::collections::{BTreeMap, BTreeSet};

/// The longest pause of a log whose disk fails, and a bit.
const FAILURE_PAUSE: Ns = 45 * S;
/// Segments of one shard's log, spares not counted, when nothing waits any more.
const SEGMENTS_AT_REST_MAX: u64 = 8;

/// Judges a world that has come to rest.
pub fn judge(world: &mut World, rested: bool) {
    if !rested {
        let waiting: Vec<String> = world.waiting.iter().map(|message| format!("{message:?}")).take(3).collect();
        world.ledger.violation(format!(
            "the world does not come to rest: {} events, {} links, waiting: {waiting:?}",
            world.handled,
            world.links.len()
        ));
    }
    let mut found = Vec::new();
    {
        let books = Books::new(&world.ledger, &world.plan);
        for (token, entry) in &world.ledger.entries {
            books.judge_entry(*token, entry, &mut found);
        }
        books.judge_reports(&mut found);
        judge_rates(world, &mut found);
    }
    if rested {
        judge_rest(world, &mut found);
    }
    for text in found {
        world.ledger.violation(text);
    }
}

/// The books, sorted for judging.
struct Books<'a> {
    ledger: &'a Ledger,
    plan: &'a Plan,
    arrivals: BTreeMap<Whom, Vec<&'a Arrival>>,
    /// Messages that the relay has said it took.
    received: BTreeSet<u32>,
}

impl<'a> Books<'a> {
    fn new(ledger: &'a Ledger, plan: &'a Plan) -> Books<'a> {
        let mut arrivals: BTreeMap<Whom, Vec<&Arrival>> = BTreeMap::new();
        for arrival in &ledger.arrivals {
            arrivals.entry(arrival.whom).or_default().push(arrival);
        }
        Books { ledger, plan, arrivals, received: ledger.received.values().copied().collect() }
    }

    /// How long before a stop an outcome may have been learned and not be safe.
    fn grace(&self, stop: Stop) -> Ns {
        let disk = 30 * self.plan.disk_delay + 4 * self.plan.turn_delay + 10 * MS;
        match stop {
            Stop::Graceful => 0,
            // Handed to the kernel at once; it may come from another shard, and its report may need a read.
            Stop::Kill => disk + 100 * MS,
            // Synced within 100 ms.
            Stop::Power => 2 * disk + 250 * MS,
        }
    }

    /// Whether what was learned at `at` may have been forgotten: a stop came before it was safe.
    fn may_be_forgotten(&self, at: Ns) -> bool {
        self.ledger.stops.iter().filter(|(_, stop)| *stop != Stop::Graceful).any(|&(stopped, stop)| {
            let grace = self.grace(stop);
            let slow = |&(from, to): &(Ns, Ns)| {
                at + grace >= from && at <= to + FAILURE_PAUSE && stopped <= to + FAILURE_PAUSE
            };
            stopped >= at && (stopped <= at + grace || self.ledger.disk_troubles.iter().any(slow))
        })
    }

    /// Whether the relay may not know of an arrival.
    fn is_excused(&self, arrival: &Arrival) -> bool {
        arrival.replied_at.is_none_or(|at| self.may_be_forgotten(at))
    }

    fn judge_entry(&self, token: u32, entry: &Entry, found: &mut Vec<String>) {
        for (index, accepted) in entry.accepted.iter().enumerate() {
            if *accepted {
                self.judge_recipient(token, index as u16, entry, found);
            }
        }
        if let Told::Refused(code) = entry.told
            && let Some(id) = self.ledger.received.iter().find(|(_, of)| **of == token).map(|(id, _)| id)
        {
            found.push(format!("message t{token} was taken as {id}, and its client was told {code}"));
        }
    }

    fn judge_recipient(&self, token: u32, index: u16, entry: &Entry, found: &mut Vec<String>) {
        let whom = Whom::Recipient(token, index);
        let name = format!("t{token}, recipient {index} ({})", entry.plan.recipients[usize::from(index)].address);
        let arrivals = self.arrivals.get(&whom).map_or(&[][..], |list| &list[..]);
        let ends = self.ledger.ends.get(&whom).map_or(&[][..], |list| &list[..]);
        if let Told::Refused(code) = entry.told {
            if !arrivals.is_empty() && !self.may_be_forgotten(entry.told_at) {
                found.push(format!("{name} was delivered, and its client was told {code}"));
            }
            return;
        }
        let Some((last, before)) = ends.split_last() else {
            // What is durable must end, even if its client went away before the 250 reached it.
            let durable = matches!(entry.told, Told::Accepted(_)) || self.received.contains(&token);
            if durable && !entry.deleted {
                found.push(format!("{name} was acknowledged at {} and never ended", seconds(entry.told_at)));
            }
            for arrival in arrivals.iter().filter(|arrival| !self.is_excused(arrival)) {
                found.push(format!("{name} arrived at {} and was never recorded", seconds(arrival.at)));
            }
            return;
        };
        for end in before.iter().filter(|end| !self.may_be_forgotten(end.at)) {
            found.push(format!("{name} ended as {:?} at {} and again later", end.what, seconds(end.at)));
        }
        let known = arrivals.iter().filter(|arrival| arrival.replied_at.is_some_and(|at| at <= last.at));
        let counted = known.max_by_key(|arrival| arrival.replied_at).map(|arrival| arrival.at);
        let counted = if last.what == What::Delivered { counted } else { None };
        if last.what == What::Delivered && counted.is_none() {
            found.push(format!("{name} is recorded as delivered at {} and never arrived", seconds(last.at)));
        }
        for arrival in arrivals.iter().filter(|arrival| Some(arrival.at) != counted && !self.is_excused(arrival)) {
            found.push(format!(
                "{name} arrived at {} (reply read at {}) beside its end as {:?} at {}",
                seconds(arrival.at),
                seconds(arrival.replied_at.unwrap_or(0)),
                last.what,
                seconds(last.at)
            ));
        }
        self.judge_cause(&name, whom, entry, last, found);
        let host = arrivals.iter().find(|arrival| Some(arrival.at) == counted).map(|arrival| arrival.host);
        self.judge_report_of(&name, whom, entry, last, host, found);
    }

    /// Whether a recipient could end so.
    fn judge_cause(&self, name: &str, whom: Whom, entry: &Entry, end: &End, found: &mut Vec<String>) {
        let Whom::Recipient(_, index) = whom else { return };
        let address = &entry.plan.recipients[usize::from(index)].address;
        let domain = address.rsplit('@').next().unwrap_or("");
        let geography = &self.plan.geography;
        let cause = match end.what {
            What::Delivered => true,
            What::Bounced => {
                let unknown = !matches!(geography.zones.get(domain), Some(Zone::Site(_))) && domain != "pool.test";
                let lacks = geography.site_of(domain).is_some_and(|site| {
                    geography.sites[site].hosts.iter().map(|&host| &geography.hosts[host]).any(|host| {
                        (entry.plan.utf8 && !(host.utf8 && host.extended))
                            || (entry.plan.eight_bit && !(host.eight_bit && host.extended))
                            || host.size_max.is_some_and(|size| size < entry.plan.size as u64 + 3_000)
                    })
                });
                unknown || lacks || self.ledger.refused.contains(&whom)
            }
            What::Suppressed => self.ledger.suppressed.contains(&whom),
            // What a restart finds is as old as the wall clock says, so a jump before a restart can age it.
            What::Expired => {
                let lifetime = self.plan.settings.schedule.lifetime.as_nanos() as Ns;
                let jumped = !self.plan.jumps.is_empty() && self.ledger.stops.iter().any(|stop| stop.0 > entry.sent_at);
                end.at - entry.sent_at + 40 * S >= lifetime || jumped
            }
        };
        if is_suppressed_from_the_start(whom) && end.what != What::Suppressed {
            found.push(format!("{name} ended as {:?}, and nothing was to be sent to it", end.what));
        }
        if !cause {
            found.push(format!("{name} ended as {:?} without cause, aged {} ms: {}", end.what, end.age_ms, end.reply));
        }
    }

    /// Whether the sender was told what it wanted to be told, once.
    fn judge_report_of(
        &self,
        name: &str,
        whom: Whom,
        entry: &Entry,
        end: &End,
        host: Option<usize>,
        found: &mut Vec<String>,
    ) {
        let (Whom::Recipient(token, index), Some(_)) = (whom, &entry.plan.sender) else { return };
        let recipient = &entry.plan.recipients[usize::from(index)];
        let failed = self.reports_of(token, &recipient.address, "failed");
        let relayed = self.reports_of(token, &recipient.address, "relayed");
        let delayed = self.reports_of(token, &recipient.address, "delayed");
        let ends = self.ledger.ends.get(&Whom::Sender(token)).map_or(&[][..], |list| &list[..]);
        let report_died = ends.iter().any(|end| end.what != What::Delivered);
        let wants_failure = end.what != What::Delivered && recipient.wants("FAILURE");
        let peer_reports = host.is_some_and(|host| {
            let host = &self.plan.geography.hosts[host];
            host.dsn && host.extended
        });
        let wants_success = end.what == What::Delivered && recipient.wants("SUCCESS") && !peer_reports;
        for (reports, wanted, action) in [(failed, wants_failure, "failed"), (relayed, wants_success, "relayed")] {
            let right = match reports.len() {
                0 => !wanted || report_died,
                1 => wanted,
                _ => false,
            };
            if !right {
                let last = end.what;
                found.push(format!(
                    "{name} ended as {last:?} at {}, and {} reports say {action}",
                    seconds(end.at),
                    reports.len()
                ));
            }
        }
        let warnings = if recipient.wants("DELAY") { 1 + self.ledger.stops.len() } else { 0 };
        if delayed.len() > warnings {
            found.push(format!("{name}: {} warnings of delay", delayed.len()));
        }
    }

    /// The different reports that name this recipient with this action.
    fn reports_of(&self, token: u32, address: &str, action: &str) -> BTreeSet<&str> {
        let local = address.split('@').next().unwrap_or("");
        let arrivals = self.arrivals.get(&Whom::Sender(token)).map_or(&[][..], |list| &list[..]);
        let reports = arrivals.iter().filter_map(|arrival| arrival.report.as_ref());
        let says = |fates: &[(String, String)]| {
            fates.iter().any(|(of, what)| of.split('.').take(2).eq(local.split('.').take(2)) && what == action)
        };
        reports.filter(|report| says(&report.fates)).map(|report| report.id.as_str()).collect()
    }

    /// No report arrives twice without cause.
    fn judge_reports(&self, found: &mut Vec<String>) {
        for (whom, arrivals) in &self.arrivals {
            let Whom::Sender(token) = whom else { continue };
            let mut by_id: BTreeMap<&str, Vec<&Arrival>> = BTreeMap::new();
            for arrival in arrivals {
                if let Some(report) = &arrival.report {
                    by_id.entry(&report.id).or_default().push(arrival);
                }
            }
            for (id, same) in by_id {
                if same.iter().filter(|arrival| !self.is_excused(arrival)).count() > 1 {
                    found.push(format!("the report {id} on t{token} arrived {} times", same.len()));
                }
            }
        }
    }
}

/// No more transactions were begun at a site than its rate allows, nor at those together that share a limit.
fn judge_rates(world: &World, found: &mut Vec<String>) {
    let (geography, settings) = (&world.plan.geography, &world.plan.settings);
    for (site, begun) in world.site_begun.iter().enumerate() {
        if let Some(rate) = settings.routes[geography.sites[site].route].limits.rate {
            judge_rate(world, &format!("site {site}"), rate, begun, found);
        }
    }
    let limited = !settings.shaping.providers[0].tolerance.limits.is_empty();
    if let Some(rate) = settings.shaping.limits[0].rate.filter(|_| limited) {
        let mut begun: Vec<_> = geography.shared.iter().flat_map(|&site| world.site_begun[site].clone()).collect();
        begun.sort_unstable();
        judge_rate(world, "the shared limit", rate, &begun, found);
    }
}

fn judge_rate(world: &World, what: &str, rate: Rate, begun: &[(u32, Ns)], found: &mut Vec<String>) {
    // A transaction is begun when its content is at hand, which may take the disk a moment.
    let moment = 30 * world.plan.disk_delay + 100 * MS;
    let slow = |at: Ns| world.ledger.disk_troubles.iter().any(|(from, to)| *from <= at && at <= to + 10 * S);
    let period = (rate.period.as_nanos() as Ns).saturating_sub(moment);
    for (first, &(epoch, at)) in begun.iter().enumerate() {
        let within = begun[first..].iter().take_while(|&&(other, later)| other == epoch && later - at < period).count();
        if within as u32 > rate.count + rate.burst && !slow(at) {
            found.push(format!("{what}: {within} transactions within {period} ns from {}", seconds(at)));
            break;
        }
    }
}

/// Nothing is left over.
fn judge_rest(world: &mut World, found: &mut Vec<String>) {
    world.gather_metrics();
    for metrics in &world.metrics {
        let shard = metrics.shard;
        let leftovers = [
            ("sessions", metrics.sessions_open),
            ("connections", metrics.outgoing_open),
            ("messages", metrics.queue.messages),
            ("recipients", metrics.queue.recipients()),
            ("octets of incoming content", metrics.content_octets),
        ];
        for (what, count) in leftovers {
            if count > 0 {
                found.push(format!("shard {shard} is left with {count} {what}"));
            }
        }
        if metrics.segments > SEGMENTS_AT_REST_MAX && world.damaged == 0 && !world.segments_may_stay {
            found.push(format!("shard {shard} keeps {} segments though nothing waits", metrics.segments));
        }
    }
    if let Some(process) = &world.process {
        for permits in process.registry.sites() {
            if permits.connections() > 0 {
                found.push(format!("site {} has {} permits in use", permits.name, permits.connections()));
            }
        }
    }
    let contents = world.disk.contents().unwrap_or_default();
    // A file that could not be removed stays until the next start.
    let stuck = world.plan.windows.iter().any(|window| matches!(window.trouble, Trouble::NameErrors(_)));
    if !contents.is_empty() && world.damaged == 0 && !stuck {
        found.push(format!("{} content files are left: {contents:x?}", contents.len()));
    }
    if world.clients.iter().any(|client| !client.done) {
        found.push("a client still waits".into());
    }
}

fn seconds(at: Ns) -> String {
    format!("{}.{:06}", at / S, at % S / 1_000)
}
