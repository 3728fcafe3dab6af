//! The stand-in for src/io: calls the handler of each shard, carries out its commands, and makes the callbacks that
//! come of them, in the order in which src/io/turn.rs does it.

use crate::world::planted::Planted;
use crate::world::random::{MS, Ns, US};
use crate::world::wire::{Output, RelayEnd};
use crate::world::{Event, TICK, World};
use bytes::Bytes;
use ringpost::clock::{Instant, Now};
use ringpost::io::handler::{CloseReason, Command, ConnId, Handler};
use ringpost::shard::core::Core;
use ringpost::shard::message::{Report, ToShard};
use ringpost::shard::permits::{ConnectionPermit, SitePermits, SiteRegistry};
use ringpost_spool::{DiskDone, DiskOp, Snapshot};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// One life of the process.
pub struct Process {
    pub epoch: u32,
    pub shards: Vec<Shard>,
    pub registry: SiteRegistry,
    pub snapshot: Snapshot,
    /// How many shards have taken over all that recovery found.
    pub recovered_shards: usize,
    /// A stop in good order is under way.
    pub stopping: bool,
    /// What a planted leak holds.
    pub leaked: Option<ConnectionPermit>,
    /// Permits that a planted fault gives to one shard alone.
    pub own_permits: BTreeMap<(u8, u32), Arc<SitePermits>>,
}

/// One shard and its executor.
pub struct Shard {
    /// Taken out while it is called.
    pub core: Option<Core>,
    pub conns: BTreeMap<ConnId, u32>,
    pub callbacks: VecDeque<Callback>,
    pub mailbox: VecDeque<ToShard>,
    /// Messages are taken out in order.
    pub mail_at: Ns,
    pub next_tick: Ns,
    pub quiet_ticks: u32,
    /// When it wants to be woken; in its own time.
    alarm: Option<Instant>,
    turn_open: bool,
    pub listening: bool,
    pub exiting: bool,
    pub over: bool,
    pub operations: usize,
}

/// A call that a command has caused.
pub enum Callback {
    ConnectFailed(ConnId, String),
    Sent(ConnId),
    MessageRefused(u8, ToShard),
    ReportRefused(Report),
}

impl Shard {
    /// A shard that is about to start.
    pub fn new(core: Core, next_tick: Ns) -> Shard {
        Shard {
            core: Some(core),
            conns: BTreeMap::new(),
            callbacks: VecDeque::new(),
            mailbox: VecDeque::new(),
            mail_at: 0,
            next_tick,
            quiet_ticks: 0,
            alarm: None,
            turn_open: false,
            listening: true,
            exiting: false,
            over: false,
            operations: 0,
        }
    }

    /// When a tick is needed next.
    pub fn deadline(&self) -> Option<Instant> {
        if self.over { None } else { self.core.as_ref().and_then(Core::next_deadline) }
    }
}

impl World {
    /// The shard, if the process still runs in this life.
    pub fn shard(&mut self, epoch: u32, shard: u8) -> Option<&mut Shard> {
        let process = self.process.as_mut().filter(|process| process.epoch == epoch)?;
        process.shards.get_mut(usize::from(shard)).filter(|shard| !shard.over)
    }

    /// Calls the handler of a shard; its commands are not carried out yet.
    pub fn enter<T>(&mut self, shard: u8, act: impl FnOnce(&mut Core, Now) -> T) -> Option<T> {
        let now = self.clocks();
        let epoch = self.epoch;
        let delay = self.plan.turn_delay;
        let found = self.shard(epoch, shard)?;
        found.quiet_ticks = 0;
        let mut core = found.core.take()?;
        let opens = !std::mem::replace(&mut found.turn_open, true);
        let result = act(&mut core, now);
        if let Some(found) = self.shard(epoch, shard) {
            found.core = Some(core);
        }
        if opens {
            let wait = self.random.skewed(US, delay);
            self.after(wait, Event::TurnEnd { epoch, shard });
        }
        Some(result)
    }

    /// Calls the handler and carries out what it wants.
    pub fn call<T>(&mut self, shard: u8, act: impl FnOnce(&mut Core, Now) -> T) -> Option<T> {
        let result = self.enter(shard, act)?;
        self.drain(shard);
        Some(result)
    }

    /// Asks something of a shard without a turn of its own: for the oracle, which must not keep the world awake.
    pub fn ask(&mut self, shard: u8, message: ToShard) {
        let epoch = self.epoch;
        let Some(found) = self.shard(epoch, shard) else { return };
        let (quiet, open) = (found.quiet_ticks, std::mem::replace(&mut found.turn_open, true));
        self.call(shard, |core, now| core.message(message, now));
        if let Some(found) = self.shard(epoch, shard) {
            (found.quiet_ticks, found.turn_open) = (quiet, open);
        }
    }

    /// The heartbeat.
    pub fn tick(&mut self, shard: u8) {
        let epoch = self.epoch;
        let late = if self.random.chance(20) { self.random.below(30 * MS) } else { 0 };
        let Some(found) = self.shard(epoch, shard) else { return };
        let quiet = found.quiet_ticks;
        // When nothing else happens the turn ends with the tick, at once.
        let alone = quiet > 2 && !std::mem::replace(&mut found.turn_open, true);
        let before = self.trace.count();
        self.call(shard, |core, now| core.tick(now, Duration::from_nanos(late)));
        if alone {
            self.end_turn(epoch, shard);
        }
        let silent = self.trace.count() == before;
        let now = self.now;
        if let Some(found) = self.shard(epoch, shard) {
            found.quiet_ticks = if silent { quiet + 1 } else { 0 };
            found.next_tick = now + TICK + late;
        }
    }

    /// The time has come at which a shard wanted to be woken, if it still does.
    pub fn alarm(&mut self, epoch: u32, shard: u8, at: Instant) {
        if self.shard(epoch, shard).is_some_and(|found| found.alarm.take_if(|alarm| *alarm == at).is_some()) {
            self.call(shard, |core, now| core.woken(now));
        }
    }

    /// The turn of the executor is over.
    pub fn end_turn(&mut self, epoch: u32, shard: u8) {
        let Some(found) = self.shard(epoch, shard) else { return };
        found.turn_open = false;
        let quiet = found.quiet_ticks;
        if self.plant_in_turn() {
            return;
        }
        let now = self.clocks();
        let Some(found) = self.shard(epoch, shard) else { return };
        let Some(core) = &mut found.core else { return };
        core.turn_ended(now);
        let before = self.trace.count();
        self.drain(shard);
        let silent = self.trace.count() == before;
        if let Some(found) = self.shard(epoch, shard) {
            found.quiet_ticks = if silent { quiet } else { 0 };
        }
    }

    /// Carries out everything the handler wants.
    pub fn drain(&mut self, shard: u8) {
        let epoch = self.epoch;
        let mut dirty = Vec::new();
        loop {
            while let Some(command) =
                self.shard(epoch, shard).and_then(|found| found.core.as_mut()).and_then(Handler::poll_command)
            {
                self.carry_out(shard, command, &mut dirty);
            }
            for link in std::mem::take(&mut dirty) {
                self.flush_relay(link);
            }
            let Some(callback) = self.shard(epoch, shard).and_then(|found| found.callbacks.pop_front()) else { break };
            self.enter(shard, |core, now| match callback {
                Callback::ConnectFailed(conn, error) => core.connect_failed(conn, &error, now),
                Callback::Sent(conn) => core.sent(conn, now),
                Callback::MessageRefused(to, message) => core.message_refused(to, message, now),
                Callback::ReportRefused(report) => core.report_refused(report, now),
            });
        }
        self.check_over(shard);
    }

    /// A shard that has said Exit ends when nothing is left; the process ends with its last shard.
    fn check_over(&mut self, shard: u8) {
        let epoch = self.epoch;
        let Some(found) = self.shard(epoch, shard) else { return };
        if !(found.exiting && found.conns.is_empty() && found.operations == 0) {
            return;
        }
        found.over = true;
        self.trace.line(self.now, format_args!("s{shard} is over"));
        if self.process.as_ref().is_some_and(|process| process.shards.iter().all(|shard| shard.over)) {
            self.process_ended();
        }
    }

    fn link_of(&self, shard: u8, conn: ConnId) -> Option<u32> {
        self.process.as_ref()?.shards.get(usize::from(shard))?.conns.get(&conn).copied()
    }

    /// The relay's end of one of a shard's connections.
    fn end_of(&mut self, shard: u8, conn: ConnId) -> Option<(u32, &mut RelayEnd)> {
        let link = self.link_of(shard, conn)?;
        Some((link, self.links.get_mut(&link)?.relay.as_mut()?))
    }

    fn carry_out(&mut self, shard: u8, command: Command<ToShard, Report>, dirty: &mut Vec<u32>) {
        match command {
            Command::Send { conn, bytes } => self.send(shard, conn, bytes, dirty),
            Command::NotifySent(conn) => self.queue(shard, conn, Output::Notify, dirty),
            Command::Close { conn, flush } => self.close(shard, conn, flush, dirty),
            Command::PauseRead(conn) => {
                if let Some((_, end)) = self.end_of(shard, conn) {
                    end.paused = true;
                }
            }
            Command::ResumeRead(conn) => {
                if let Some((link, end)) = self.end_of(shard, conn) {
                    end.paused = false;
                    self.look_soon(link);
                }
            }
            Command::Connect { conn, to, timeout, .. } => self.connect(shard, conn, to, timeout),
            Command::StartTls { conn, .. } => {
                self.trace.line(self.now, format_args!("s{shard} StartTls {conn:?}"));
                if let Some((_, end)) = self.end_of(shard, conn) {
                    // What came in clear must not be taken for something that came protected.
                    end.rest = Bytes::new();
                    end.paused = false;
                    end.handshake_due = true;
                }
                self.queue(shard, conn, Output::StartTls, dirty);
            }
            Command::Disk(op) => self.disk_wanted(shard, op),
            Command::Post { shard: to, message } => self.post(shard, to, message),
            Command::Report(report) => self.reported(shard, report),
            Command::WakeAt(at) => {
                let (epoch, now) = (self.epoch, self.clocks().instant);
                if let Some(found) = self.shard(epoch, shard) {
                    found.alarm = Some(at);
                }
                self.after(at.since(now).as_nanos() as Ns, Event::Alarm { epoch, shard, at });
            }
            Command::NextTurn => {
                let (epoch, delay) = (self.epoch, self.plan.turn_delay);
                let opens = self.shard(epoch, shard).map(|found| !std::mem::replace(&mut found.turn_open, true));
                if opens == Some(true) {
                    let wait = self.random.skewed(US, delay);
                    self.after(wait, Event::TurnEnd { epoch, shard });
                }
            }
            Command::StopListening => {
                self.trace.line(self.now, format_args!("s{shard} stops listening"));
                if let Some(found) = self.shard(self.epoch, shard) {
                    found.listening = false;
                }
            }
            Command::Exit => {
                self.trace.line(self.now, format_args!("s{shard} exits"));
                if let Some(found) = self.shard(self.epoch, shard) {
                    found.exiting = true;
                    found.listening = false;
                }
            }
        }
    }

    /// Queues bytes and notes what they begin.
    fn send(&mut self, shard: u8, conn: ConnId, bytes: Bytes, dirty: &mut Vec<u32>) {
        let Some(link) = self.link_of(shard, conn) else { return };
        self.trace.line(
            self.now,
            format_args!("s{shard} sends on #{link} {}: {}", bytes.len(), crate::world::network::shown(&bytes)),
        );
        if let Some(found) = self.links.get(&link)
            && !found.inbound
            && (bytes.starts_with(b"MAIL FROM:<") || crate::world::content::find(&bytes, b"\r\nMAIL FROM:<").is_some())
        {
            let site = self.plan.geography.hosts[found.party].site;
            self.site_begun[site].push((self.epoch, self.now));
        }
        self.queue(shard, conn, Output::Bytes(bytes), dirty);
    }

    fn queue(&mut self, shard: u8, conn: ConnId, output: Output, dirty: &mut Vec<u32>) {
        if let Some((link, end)) = self.end_of(shard, conn)
            && end.is_open()
        {
            end.output.push_back(output);
            if !dirty.contains(&link) {
                dirty.push(link);
            }
        }
    }

    fn close(&mut self, shard: u8, conn: ConnId, flush: bool, dirty: &mut Vec<u32>) {
        self.trace.line(self.now, format_args!("s{shard} closes {conn:?} flush {flush}"));
        let deadline = self.clocks().instant.after(Duration::from_nanos(crate::world::wire::FLUSH_TIMEOUT));
        let Some((link, end)) = self.end_of(shard, conn) else { return };
        if !flush || end.connecting || end.handshaking || end.handshake_due {
            return self.end_link(link, CloseReason::Asked);
        }
        if end.end.is_some() || std::mem::replace(&mut end.closing, true) {
            return;
        }
        end.deadline = deadline;
        dirty.push(link);
        self.after(crate::world::wire::FLUSH_TIMEOUT, Event::FlushTimeout(link));
    }

    fn connect(&mut self, shard: u8, conn: ConnId, to: SocketAddr, timeout: Duration) {
        let epoch = self.epoch;
        let descriptors_gone = self.out_of_descriptors();
        let Some(host) = self.plan.geography.host_at(to) else {
            return self.ledger.violation(format!("shard {shard} connects to {to}, where nobody is"));
        };
        if descriptors_gone {
            self.trace.line(self.now, format_args!("s{shard} has no descriptor for {to}"));
            if let Some(found) = self.shard(epoch, shard) {
                found.callbacks.push_back(Callback::ConnectFailed(conn, "Too many open files".into()));
            }
            return;
        }
        let link = self.new_link(false, host);
        self.trace.line(self.now, format_args!("s{shard} connects to {to} as #{link} {conn:?}"));
        if let Some(found) = self.links.get_mut(&link) {
            found.relay = Some(RelayEnd::new(epoch, shard, conn, true));
        }
        let Some(found) = self.shard(epoch, shard) else { return };
        if found.conns.insert(conn, link).is_some() {
            self.ledger.violation(format!("shard {shard} gave the id {conn:?} to two connections"));
        }
        let site = self.plan.geography.hosts[host].site;
        let limit = self.plan.settings.routes[self.plan.geography.sites[site].route].limits.connections;
        self.site_open[site] += 1;
        self.site_of_link.insert(link, site);
        let shaping = &self.plan.settings.shaping;
        let most = shaping.limits[0].connections.filter(|_| !shaping.providers[0].tolerance.limits.is_empty());
        let shared: u32 = self.plan.geography.shared.iter().map(|&site| self.site_open[site]).sum();
        if self.plan.geography.shared.contains(&site) && most.is_some_and(|most| shared > most) {
            self.ledger.violation(format!("{shared} connections are open under the shared limit of {most:?}"));
        }
        if self.site_open[site] > limit {
            let open = self.site_open[site];
            self.ledger.violation(format!("site {site} has {open} connections, {limit} are allowed"));
        }
        self.after(timeout.as_nanos() as Ns, Event::ConnectTimeout(link));
        let wait = self.random.skewed(self.plan.network_delay / 2, 3 * self.plan.network_delay);
        self.after(wait, Event::Answered(link));
    }

    fn disk_wanted(&mut self, shard: u8, op: DiskOp) {
        let epoch = self.epoch;
        self.trace.line(self.now, format_args!("s{shard} disk {}", shown_op(&op)));
        if let Some(found) = self.shard(epoch, shard) {
            found.operations += 1;
        }
        let Some(op) = self.plant_in_disk(shard, op) else { return };
        self.disk.submit(shard, op);
        let wait = self.disk_wait();
        self.after(wait, Event::Disk { epoch, shard });
    }

    /// The disk answers one of a shard's operations.
    pub fn complete_disk(&mut self, epoch: u32, shard: u8) {
        if self.shard(epoch, shard).is_none() {
            return;
        }
        if let Some(done) = self.disk.complete_one_of(shard) {
            self.disk_done(shard, done);
        }
    }

    /// Hands an answer to the shard.
    pub fn disk_done(&mut self, shard: u8, done: DiskDone) {
        let epoch = self.epoch;
        match &done.result {
            Ok(bytes) => self.trace.line(self.now, format_args!("s{shard} done {} ({})", done.op.0, bytes.len())),
            Err(error) => self.trace.line(self.now, format_args!("s{shard} done {}: {error}", done.op.0)),
        }
        self.spool_written = self.clocks().unix;
        if let Some(found) = self.shard(epoch, shard) {
            found.operations = found.operations.saturating_sub(1);
        }
        self.call(shard, |core, now| core.disk_done(done, now));
    }

    /// A message from one shard to another.
    fn post(&mut self, from: u8, to: u8, message: ToShard) {
        let epoch = self.epoch;
        self.trace.line(self.now, format_args!("s{from} posts to s{to}: {}", shown_message(&message)));
        let Some(message) = self.plant_in_post(from, to, message) else { return };
        // Its place was reserved with the lease.
        let reserved = matches!(message, ToShard::LeaseEnded(_));
        let refused = !reserved && self.random.chance(self.plan.rates.mailbox);
        let waits = self.random.skewed(US, MS);
        if refused || self.process.as_ref().is_none_or(|process| usize::from(to) >= process.shards.len()) {
            self.trace.line(self.now, format_args!("s{to} has no room"));
            // By its contract such a message is dropped, and segments stay until the next start.
            self.segments_may_stay |= matches!(message, ToShard::Recycled(_));
            if let Some(found) = self.shard(epoch, from) {
                found.callbacks.push_back(Callback::MessageRefused(to, message));
            }
            return;
        }
        self.put_mail(to, message, waits);
    }

    /// Puts a message into a mailbox. A shard that is over takes nothing out.
    pub fn put_mail(&mut self, to: u8, message: ToShard, wait: Ns) {
        let (epoch, now) = (self.epoch, self.now);
        let Some(found) = self.shard(epoch, to) else { return };
        found.mailbox.push_back(message);
        found.mail_at = found.mail_at.max(now + wait) + 1;
        let at = found.mail_at;
        self.at(at, Event::Mail { epoch, shard: to });
    }

    /// The next message is taken out of a mailbox.
    pub fn take_mail(&mut self, epoch: u32, shard: u8) {
        let Some(message) = self.shard(epoch, shard).and_then(|found| found.mailbox.pop_front()) else { return };
        self.trace.line(self.now, format_args!("s{shard} takes {}", shown_message(&message)));
        self.call(shard, |core, now| core.message(message, now));
    }

    /// Whether this fault is planted.
    pub fn has_planted(&self, fault: Planted) -> bool {
        self.planted == Some(fault)
    }
}

fn shown_op(op: &DiskOp) -> String {
    match op {
        DiskOp::Prepare { op, segment } => format!("{} Prepare {segment}", op.0),
        DiskOp::Write { op, segment, offset, len, .. } => format!("{} Write {segment} {offset}+{len}", op.0),
        DiskOp::Sync { op, segment } => format!("{} Sync {segment}", op.0),
        DiskOp::Read { op, file, offset, len } => format!("{} Read {file:?} {offset}+{len}", op.0),
        DiskOp::Recycle { op, segment } => format!("{} Recycle {segment}", op.0),
        DiskOp::Discard { op, segment } => format!("{} Discard {segment}", op.0),
        DiskOp::ContentWrite { op, content, offset, len, .. } => {
            format!("{} ContentWrite {content:x} {offset}+{len}", op.0)
        }
        DiskOp::ContentSync { op, content } => format!("{} ContentSync {content:x}", op.0),
        DiskOp::ContentRemove { op, content } => format!("{} ContentRemove {content:x}", op.0),
    }
}

fn shown_message(message: &ToShard) -> String {
    match message {
        ToShard::Resolved { resolution, .. } => format!("Resolved {:?} {:?}", resolution.query, resolution.result),
        ToShard::Recovered(messages) => format!("Recovered {}", messages.len()),
        ToShard::RecoveryDone { segments, greatest_id } => {
            format!("RecoveryDone {} segments, ids to {greatest_id:x}", segments.len())
        }
        ToShard::Admin { request, .. } => format!("Admin {request:?}"),
        ToShard::Shutdown => "Shutdown".into(),
        ToShard::Filtered(verdict) => format!("Filtered {}", verdict.id),
        ToShard::LoginJudged(judged) => format!("LoginJudged {}", judged.login.name),
        ToShard::Lease(lease) => format!("Lease {} of s{} {:?}", lease.id, lease.home, lease.recipients),
        ToShard::LeaseEnded(ended) => {
            format!("LeaseEnded {} by s{} {:?} decided {}", ended.id, ended.by, ended.recipients, ended.outcomes.len())
        }
        ToShard::Permit(permit) => format!("Permit {}", permit.site().index),
        ToShard::PermitFreed { site } => format!("PermitFreed {site}"),
        ToShard::LimitFreed { limit } => format!("LimitFreed {limit}"),
        ToShard::LimitWanted { limit } => format!("LimitWanted {limit}"),
        ToShard::PermitWanted { site } => format!("PermitWanted {site}"),
        ToShard::Reserved => "Reserved".into(),
        ToShard::Recycled(segment) => format!("Recycled {segment}"),
    }
}
